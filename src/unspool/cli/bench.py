"""``unspool bench``: how fast the answers come."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from unspool.cli import _measuring, _options, _scores, _suites
from unspool.core.errors import InvalidInput

_HELP = """Measure the speed of methods, and of other programs beside them, on the prompts of a suite.

All arms answer the same prompts in turn within one run, each warmed up once. Intervals are bootstrapped over the
prompts. A run that was stopped goes on where it stood when the same command is given again.

[bold]Examples[/bold]

  unspool bench builtin-text --limit 8 --tokens 64

  unspool bench spec-bench --data data/ --methods auto,token-recycling,plain --peers --limit 40 --report r.html

  unspool bench builtin-text --methods auto,plain --limit 16 --batches 1,2,4,8 --report r.html

  unspool bench builtin-code --methods auto,plain --peers llama.cpp --threads 2 --json | jq .paired
"""

DEFAULT_METHODS = "auto,plain"
DEFAULT_TOKENS = 64


class _Bench(TyperCommand):
    """Lets ``--peers`` stand alone: then it means all of them."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        whole = []
        for place, word in enumerate(args):
            whole.append(word)
            if word == "--peers" and (place + 1 == len(args) or args[place + 1].startswith("-")):
                whole.append("all")
        return super().parse_args(ctx, whole)


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("bench", cls=_Bench, help=_HELP)(_options.sampling_options(_options.loading_options(bench)))


def bench(
    suite: _suites.Argument = None,
    data: _suites.Data = None,
    limit: _suites.Limit = None,
    methods: Annotated[
        str,
        typer.Option(
            "--methods",
            "--method",
            "-M",
            help="What to compare, with commas between; ratios are to `plain` if it is there, else to the first.",
            autocompletion=_suites.complete_methods,
        ),
    ] = DEFAULT_METHODS,
    peers: Annotated[
        str | None,
        typer.Option(
            "--peers",
            metavar="[NAMES]",
            help="Other programs beside: all that are installed, or those named, with commas between.",
        ),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(
            "--tokens",
            help="Exactly so many new tokens each turn, so that all do the same work: what would end an answer is "
            f"ignored. \\[default: {DEFAULT_TOKENS}, without --max-new-tokens]",
            min=1,
        ),
    ] = None,
    max_new_tokens: _suites.MaxNewTokens = None,
    batches: Annotated[
        str | None,
        typer.Option(
            "--batches",
            metavar="SIZES",
            help="Afterwards, the speed of our methods with so many requests decoded together, as in 1,2,4,8.",
        ),
    ] = None,
    setting: _options.Set = None,
    draft: _options.Draft = None,
    raw: _suites.Raw = False,
    seed: _options.Seed = 0,
    loading: _options.Loading = _options.LOADING,
    engine: _suites.Engine = "inprocess",
    address: _suites.Address = None,
    replicas: _suites.Replicas = None,
    out: _suites.Out = None,
    report: _suites.Report = None,
    fresh: _suites.Fresh = False,
    quiet: _options.Quiet = False,
    as_json: _options.Json = False,
    **sampling: Any,
) -> None:
    """Measure speed; see the help text."""
    if suite is None:
        _suites.show(as_json)
        return
    if tokens is not None and max_new_tokens is not None:
        raise InvalidInput(f"--tokens {tokens} is an exact number, --max-new-tokens {max_new_tokens} a limit: take one")
    if max_new_tokens is None and tokens is None:
        tokens = DEFAULT_TOKENS
    from unspool.evaluation import batches as together
    from unspool.evaluation.arms import parse

    wish = _measuring.Wish(
        suite,
        data=data,
        limit=limit,
        raw=raw,
        methods=parse(methods),
        peers=peers,
        loading=loading,
        draft=draft,
        settings=_options.parse_settings(setting),
        sampling=sampling,
        seed=seed,
        max_new_tokens=tokens if tokens is not None else max_new_tokens,
        exact=tokens is not None,
        engine=engine,
        address=address,
        replicas=replicas,
        out=out,
        report=report,
        as_json=as_json,
        quiet=quiet,
        fresh=fresh,
        roofline=True,
        batches=together.parse(batches) if batches is not None else (),
    )
    results, _ = _measuring.measure(wish)
    if as_json:
        typer.echo(json.dumps(results))
    else:
        _scores.show_speed(results)
