"""``unspool eval``: how good the answers are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from unspool.cli import _measuring, _options, _scores, _suites
from unspool.core.errors import InvalidInput

_HELP = """Ask a model the questions of a suite and judge the answers; without a suite, list them.

Intervals are bootstrapped over the questions. A run that was stopped goes on where it stood when the same command is
given again.

[bold]Examples[/bold]

  unspool eval

  unspool eval builtin-code --limit 10

  unspool eval humaneval --data data/ --samples 10 --temperature 0.8 --out humaneval.json

  unspool eval my-questions.jsonl --methods plain,momentum-decoding

  unspool eval perplexity --text book.txt --stride 256

  unspool eval humaneval --data data/ --methods reference,planted-bug
"""


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("eval", help=_HELP)(_options.sampling_options(_options.loading_options(evaluate)))


def evaluate(
    suite: _suites.Argument = None,
    data: _suites.Data = None,
    text: Annotated[
        list[Path] | None,
        typer.Option("--text", metavar="FILE", help="For perplexity and repetition: a text file. Repeatable."),
    ] = None,
    window: Annotated[int, typer.Option("--window", help="For perplexity: tokens that the model sees at once.")] = 1024,
    stride: Annotated[int, typer.Option("--stride", help="For perplexity: tokens by which the window moves.")] = 512,
    limit: _suites.Limit = None,
    method: Annotated[
        str | None,
        typer.Option("--method", "-M", help="A slug; join several with +.", autocompletion=_options.complete_method),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            "--methods",
            help="Several to compare, with commas between. `reference` gives a suite's own answers, `planted-bug` the "
            "same with a mistake in each.",
            autocompletion=_suites.complete_methods,
        ),
    ] = None,
    setting: _options.Set = None,
    draft: _options.Draft = None,
    samples: Annotated[
        int, typer.Option("--samples", help="Answers to each question, for pass@k; wants a temperature.")
    ] = 1,
    max_new_tokens: _suites.MaxNewTokens = None,
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
    """Measure quality; see the help text."""
    if suite is None:
        _suites.show(as_json)
        return
    if method is not None and methods is not None:
        raise InvalidInput(f"take --method {method} or --methods {methods}, not both")
    from unspool.evaluation.arms import parse

    wish = _measuring.Wish(
        suite,
        data=data,
        texts=tuple(text or ()),
        limit=limit,
        window=window,
        stride=stride,
        raw=raw,
        methods=[method] if method is not None else [] if methods is None else parse(methods),
        loading=loading,
        draft=draft,
        settings=_options.parse_settings(setting),
        sampling=sampling,
        samples=samples,
        seed=seed,
        max_new_tokens=max_new_tokens,
        engine=engine,
        address=address,
        replicas=replicas,
        out=out,
        report=report,
        as_json=as_json,
        quiet=quiet,
        fresh=fresh,
    )
    results, asked = _measuring.measure(wish)
    if as_json:
        typer.echo(json.dumps(results))
    else:
        _scores.show_quality(results, asked.metrics)
