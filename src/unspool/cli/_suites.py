"""The suites on the command line: options that ``eval`` and ``bench`` share, completion, and the list."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from unspool.cli import _options, _terminal


def complete_suite(incomplete: str) -> list[tuple[str, str]]:
    """Suites that begin like this."""
    from unspool.evaluation import suites

    return [(name, suite.summary) for name, suite in suites.available().items() if name.startswith(incomplete)]


def complete_methods(incomplete: str) -> list[tuple[str, str]]:
    """Methods that begin like what stands behind the last comma."""
    before, comma, last = incomplete.rpartition(",")
    return [(before + comma + slug, name) for slug, name in _options.complete_method(last)]


Argument = Annotated[
    str | None,
    typer.Argument(
        help="A suite, or a JSON Lines file of your own; without it, the suites are listed.",
        autocompletion=complete_suite,
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data", metavar="PATH", help="The suite's data: a file, or a folder that holds it. \\[default: $UNSPOOL_DATA]"
    ),
]
Limit = Annotated[int | None, typer.Option("--limit", help="So many items at most, taken from the categories in turn.")]
MaxNewTokens = Annotated[
    int | None, typer.Option("--max-new-tokens", "-n", help="Of each turn at most. \\[default: the suite's]")
]
Raw = Annotated[bool, typer.Option("--raw", help="Ask without the chat template.")]
Engine = Annotated[
    str,
    typer.Option(
        "--engine",
        help="Where it runs: inprocess; or ray, on many replicas, here or on a cluster.",
        rich_help_panel=_options.RUNNING,
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="HOST:PORT",
        help="Of the cluster that --engine ray joins. \\[default: a Ray of its own on this machine]",
        rich_help_panel=_options.RUNNING,
    ),
]
Replicas = Annotated[
    int | None,
    typer.Option(
        "--replicas",
        help="With --engine ray: how many. \\[default: as many as the cores allow with --threads each]",
        rich_help_panel=_options.RUNNING,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", metavar="FILE.json", help="Write the results file.", rich_help_panel=_options.SHOWING),
]
Report = Annotated[
    Path | None,
    typer.Option("--report", metavar="FILE.html", help="Write a page with plots.", rich_help_panel=_options.SHOWING),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Drop what an earlier run with the same command has left.")]


def show(as_json: bool) -> None:
    """List the suites, and where their data lies."""
    from unspool.evaluation import suites
    from unspool.evaluation.suites._data import there

    rows = []
    for name, suite in suites.available().items():
        place = there(name, suite.files) if suite.files else "" if name == "file" else "packaged"
        rows.append(
            {
                "suite": name,
                "summary": suite.summary,
                "metrics": list(suite.metrics),
                "data": place,
                "files": list(suite.files),
                "origin": suite.origin,
            }
        )
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for title in ("suite", "data", ""):
        grid.add_column(title)
    for row in rows:
        data = row["data"]
        where = Text("not here", "dim") if data is None else Text(str(data) or "yours")
        grid.add_row(Text(str(row["suite"]), "cyan"), where, Text(str(row["summary"])))
    console = _terminal.output()
    console.print(grid)
    console.print(
        Text("Data is found with --data PATH, in the folder $UNSPOOL_DATA, or through the datasets library.", "dim")
    )
