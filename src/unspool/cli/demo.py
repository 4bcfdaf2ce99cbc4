"""``unspool demo``: the same answer with and without speculation, measured in one run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unspool.cli import _options, _session, _terminal
from unspool.core.errors import Incompatible, InvalidInput

if TYPE_CHECKING:
    from unspool.engine import Engine

QUESTION = "Write a Python function that checks whether a string is a palindrome. Include a docstring and two examples."
WARM_UP = "Name three rivers."

_HELP = """Answer a coding question with a lossless speculative method, then again with plain decoding, and compare.

Both are warmed up with another question first, and the method then forgets what it learned from it: nothing of the
measured answer is known beforehand. The answers must be the same, token for token; the exit code is 1 if they are not.

[bold]Examples[/bold]

  unspool demo

  unspool demo --method token-recycling --threads 2

  unspool demo "Write quicksort in Python." --max-new-tokens 256 --json
"""


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("demo", help=_HELP)(_options.loading_options(demo))


def demo(
    prompt: Annotated[str, typer.Argument(help="Another question.")] = QUESTION,
    method: _options.Method = _options.DEFAULT_METHOD,
    setting: _options.Set = None,
    draft: _options.Draft = None,
    max_new_tokens: _options.MaxNewTokens = 160,
    loading: _options.Loading = _options.LOADING,
    trace: Annotated[
        Path | None,
        typer.Option(
            "--trace",
            help="Write a page that replays the speculative run; for it the run is made once more, unmeasured.",
            metavar="FILE.html",
            rich_help_panel=_options.SHOWING,
        ),
    ] = None,
    quiet: _options.Quiet = False,
    as_json: _options.Json = False,
) -> None:
    """Compare a lossless method with plain decoding; see the help text."""
    if trace is not None:
        _options.check_place(trace, "--trace")
    settings = _options.parse_settings(setting)
    with _terminal.working("Starting", quiet=quiet or as_json):
        _session.check(method, {})
    engine = _session.open_engine(loading, quiet=quiet or as_json)
    composition = engine.compose(method, draft=draft, settings=settings)
    if not (composition.lossless and composition.sampler.card.lossless):
        raise Incompatible(
            f"{method} changes the output on purpose, so there is nothing to compare: take a lossless method"
        )
    if not composition.sampler.deterministic:
        raise InvalidInput(f"{method} draws at random, so two answers differ anyway: the demo compares greedy decoding")
    console = _terminal.output()
    options = {"max_new_tokens": max_new_tokens}
    mine = {"draft": draft, "settings": settings, **options}

    with _terminal.working("Warming up both ways of decoding", quiet=quiet or as_json):
        for name, more in ((method, mine), ("plain", options)):
            _run(engine, WARM_UP, name, _session.ignore, **{**more, "max_new_tokens": 8})
        engine.forget()

    watch = _session.ignore if as_json else _session.write_text
    if not as_json:
        console.print(f"[bold]{loading.model}[/bold] answers with [bold]{method}[/bold]:\n", markup=True)
    fast = _run(engine, prompt, method, watch, **mine)
    if not as_json:
        console.print("\n\nThe same question with [bold]plain[/bold] decoding:\n")
    slow = _run(engine, prompt, "plain", watch, **options)

    identical = fast.tokens == slow.tokens
    a, b = fast.statistics, slow.statistics
    ratio = a.tokens_per_second / b.tokens_per_second
    if as_json:
        answer = {
            "model": loading.model,
            "method": method,
            "prompt": prompt,
            "text": fast.text,
            "identical": identical,
            "speed_ratio": ratio,
            "statistics": {"method": a.as_dict(), "plain": b.as_dict()},
        }
        typer.echo(json.dumps(answer))
    else:
        _table(console, method, a, b, ratio)
        if identical:
            console.print(f"The answers are [green]identical[/green]: {a.tokens} tokens.")
        else:
            place = next(
                (i for i, (x, y) in enumerate(zip(fast.tokens, slow.tokens, strict=False)) if x != y),
                min(a.tokens, b.tokens),
            )
            console.print(f"The answers [red]differ[/red] from token {place} on. A lossless method must not do that.")
    if trace is not None:
        _record(engine, prompt, method, loading.model, trace, mine)
        if not quiet and not as_json:
            console.print(f"trace: {trace}", markup=False, soft_wrap=True)
    if not identical:
        raise typer.Exit(1)


def _run(engine: Engine, prompt: str, method: str, watch: Any, **options: Any) -> _session.Run:
    result = _session.run(engine, engine.encode(prompt), method, watch, **options)
    if result.interrupted:
        raise KeyboardInterrupt
    return result


def _record(engine: Engine, prompt: str, method: str, model: str, path: Path, options: dict[str, Any]) -> None:
    from unspool.evaluation.trace import TraceRecorder

    engine.forget()
    encoded = engine.encode(prompt)
    recorder = TraceRecorder(
        engine.model.tokenizer, [encoded], model=model, method=method, settings=options["settings"]
    )
    result = _session.run(engine, encoded, method, recorder.update, probe=True, **options)
    if result.interrupted:
        raise KeyboardInterrupt
    recorder.write(path)


def _table(console: Any, method: str, a: Any, b: Any, ratio: float) -> None:
    from rich.table import Table

    grid = Table(box=None, padding=(0, 3, 0, 0), header_style="dim")
    grid.add_column("")
    for title in ("tokens/s", "forwards/token", "seconds"):
        grid.add_column(title, justify="right")
    for name, statistics in ((method, a), ("plain", b)):
        grid.add_row(
            name,
            f"{statistics.tokens_per_second:.1f}",
            f"{statistics.forwards_per_token:.2f}",
            f"{statistics.seconds:.2f}",
        )
    console.print("\n")
    console.print(grid)
    console.print(
        f"\n[bold]{method} is {ratio:.2f} times as fast as plain decoding[/bold] (one run each, after a warm-up)."
    )
