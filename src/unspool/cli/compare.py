"""``unspool compare``: what changed between two results files, beyond noise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unspool.cli import _options, _terminal

if TYPE_CHECKING:
    from rich.console import Console

    from unspool.evaluation.comparing import Change, Comparison

_HELP = """Tell what changed from one results file to another, beyond noise.

Items that both files hold are compared in pairs. Intervals (95%) are bootstrapped over items; a change is told as one
only if a randomisation test, corrected for the number of comparisons, finds it. Speed is also compared relative to
plain decoding in the same file, which a machine that was slower on the whole does not move.

[bold]Examples[/bold]

  unspool compare before.json after.json

  unspool compare before.json after.json --all --categories

  unspool compare before.json after.json --json | jq .regressions

  unspool compare main.json branch.json --fail-on-regression
"""

_COLOURS = {"better": "green", "worse": "red", "changed": "yellow"}


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("compare", help=_HELP)(compare)


def compare(
    before: Annotated[Path, typer.Argument(help="Results of `unspool bench` or `unspool eval`.", metavar="A.json")],
    after: Annotated[Path, typer.Argument(help="The results to compare with them.", metavar="B.json")],
    categories: Annotated[
        bool, typer.Option("--categories", help="Also within each category; every further comparison costs sharpness.")
    ] = False,
    every: Annotated[bool, typer.Option("--all", help="Also show what did not change.")] = False,
    fail: Annotated[
        bool, typer.Option("--fail-on-regression", help="Exit code 1 if something got worse beyond noise.")
    ] = False,
    quiet: _options.Quiet = False,
    as_json: _options.Json = False,
) -> None:
    """Compare two results files; see the help text."""
    with _terminal.working("Comparing", quiet=quiet or as_json):
        from unspool.evaluation import comparing

        found = comparing.compare(comparing.read(before), comparing.read(after), categories=categories)
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=2))
    else:
        _show(_terminal.output(), found, every)
    if fail and found.regressions:
        raise typer.Exit(1)


def _show(console: Console, found: Comparison, every: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    if found.differences:
        console.print(Text("The files differ in more than their numbers:", "bold yellow"))
        grid = Table(box=None, padding=(0, 3, 0, 2), header_style="dim")
        for title in ("", "before", "after"):
            grid.add_column(title, overflow="fold")
        for one in found.differences:
            grid.add_row(*(Text(_terminal.harmless(_plain(value))) for value in (one.what, one.a, one.b)))
        console.print(grid)
        console.print()
    for arms, where in ((found.only_a, "before"), (found.only_b, "after")):
        if arms:
            console.print(Text(f"only in the results {where}: {', '.join(arms)}", "dim"))
    shown = [change for change in found.changes if every or change.verdict in _COLOURS]
    if shown:
        grid = Table(box=None, padding=(0, 2, 0, 2), header_style="dim")
        grid.add_column("arm", no_wrap=True)
        grid.add_column("measure")
        for title in ("before", "after", "change"):
            grid.add_column(title, justify="right", no_wrap=True)
        grid.add_column("95% interval", no_wrap=True)
        grid.add_column("items", justify="right", no_wrap=True)
        grid.add_column("verdict", no_wrap=True)
        for change in shown:
            grid.add_row(*_cells(change))
        console.print(grid)
    silent = sum(change.verdict == "no clear change" for change in found.changes)
    few = sum(change.verdict == "too few items" for change in found.changes)
    counted = f"{len(found.changes)} comparisons: {len(found.changes) - silent - few} changed beyond noise"
    counted += f", {silent} show no clear change" + (f", {few} have too few items to tell" if few else "")
    console.print(
        Text(
            f"{counted}. Chances are corrected for their number (Holm): even one false alarm among all of them has a "
            f"chance of {found.level:.0%} at most.",
            "dim",
        )
    )
    if any(change.metric == "tokens_per_second" for change in found.changes):
        console.print(
            Text(
                "Between runs a machine as a whole gets faster or slower, which no test over items can see: trust "
                "speed relative to another arm of the same run more than speed.",
                "dim",
            )
        )


def _cells(change: Change) -> list[Any]:
    from rich.text import Text

    from unspool.evaluation.measures import measure

    told = measure(change.metric)
    name = told.label if change.relative_to is None else f"{told.label} relative to {change.relative_to}"
    ratio = change.compared == "ratio"
    if told.unit and change.relative_to is None:
        name += f", {told.unit}"
    if change.category is not None:
        name += f" ({change.category})"
    return [
        Text(change.arm),
        Text(name),
        f"{change.a:.4g}",
        f"{change.b:.4g}",
        f"{100 * (change.value - 1):+.1f}%" if ratio else f"{change.value:+.4g}",
        _interval(change),
        str(change.n[0]) if change.paired else f"{change.n[0]} / {change.n[1]}",
        Text(change.verdict, _COLOURS.get(change.verdict, "dim")),
    ]


def _interval(change: Change) -> str:
    if change.low is None or change.high is None:
        return ""
    if change.compared == "ratio":
        return f"{100 * (change.low - 1):+.1f}% to {100 * (change.high - 1):+.1f}%"
    return f"{change.low:+.4g} to {change.high:+.4g}"


def _plain(value: Any) -> str:
    return "–" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
