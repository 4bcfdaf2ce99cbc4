"""``unspool reproduce``: test a method's claim on this machine."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unspool.cli import _declared, _options, _terminal
from unspool.core.errors import InvalidInput, UnspoolError

if TYPE_CHECKING:
    from rich.console import Console

    from unspool.evaluation.reproductions import Reproduction

_HELP = """Run the smallest honest experiment that tests a method's claim, and print what was measured.

The exit code is 0 if the claim holds or its direction does, and 1 if it fails.

[bold]Examples[/bold]

  unspool reproduce

  unspool reproduce token-recycling --quick

  unspool reproduce token-recycling --json | jq .measured

  unspool reproduce --all --quick --table docs/results.md
"""

_HEADING = """# Results

Printed by `{command} --table FILE`. `unspool reproduce SLUG` shows the same numbers with the criteria behind each
verdict, the machine, and notes on what differs from the paper's setting.

"""

_COLOURS = {"holds": "green", "direction holds": "yellow", "fails": "red"}


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("reproduce", help=_HELP)(reproduce)


def complete_slug(incomplete: str) -> list[tuple[str, str]]:
    """Slugs of methods that begin like this."""
    return [(slug, name) for slug, name in _declared.methods() if slug.startswith(incomplete)]


def reproduce(
    slug: Annotated[
        str | None,
        typer.Argument(help="Of a method with a claim; without it, those are listed.", autocompletion=complete_slug),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="One after the other, every method that has an experiment.")
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer prompts and tokens: about a minute on two free cores.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Instead of the experiment's own.", autocompletion=_options.complete_model),
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="The experiment's data, where it is not packaged.")
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option(
            "--table",
            help="Also write the results as a Markdown table.",
            metavar="FILE",
            rich_help_panel=_options.SHOWING,
        ),
    ] = None,
    threads: _options.Threads = None,
    quiet: _options.Quiet = False,
    as_json: _options.Json = False,
) -> None:
    """Test a method's claim; see the help text."""
    if table is not None:
        _options.check_place(table, "--table")
    if every and slug is not None:
        raise InvalidInput(f"take --all or one method, not both: {slug}")
    with _terminal.working("Starting", quiet=quiet or as_json):
        from unspool.evaluation import reproductions

        if threads is not None:
            import torch

            torch.set_num_threads(threads)
    if slug is None and not every:
        slugs = list(reproductions.available())
        typer.echo(json.dumps(slugs) if as_json else "\n".join(slugs))
        return

    progress = not quiet and not as_json and _terminal.errors().is_terminal
    console = _terminal.output()
    done: list[Reproduction] = []
    results: list[dict[str, Any]] = []
    for name in reproductions.available() if every else [slug]:
        assert name is not None
        try:
            done.append(reproductions.run(name, quick=quick, model=model, data=data, progress=progress))
            results.append(done[-1].as_dict())
        except UnspoolError as error:
            if not every:
                raise
            # The others are still worth running; this one is told, and counts as failed.
            results.append(
                {"slug": name, "verdict": "fails", "error": {"type": type(error).__name__, "message": str(error)}}
            )
        if not as_json:
            _show(console, results[-1])
    if as_json:
        typer.echo(json.dumps(results if every else results[0], indent=2))
    if table is not None:
        command = f"unspool reproduce {slug or '--all'}{' --quick' if quick else ''}"
        _write(table, _HEADING.format(command=command) + reproductions.table(done))
    if any(result["verdict"] not in ("holds", "direction holds") for result in results):
        raise typer.Exit(1)


def _show(console: Console, result: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    console.print(Text(result["slug"], "bold"))
    if "error" in result:
        console.print(Text("  " + result["error"]["message"], "red"))
        return
    console.print(Text(f"  claim   {result['claim']}"))
    console.print(Text(f"  setup   {_plain(result['setup'])}"))
    grid = Table(box=None, padding=(0, 3, 0, 2), header_style="dim")
    grid.add_column("measured")
    for title in ("baseline", "method", "ratio"):
        grid.add_column(title, justify="right")
    for row in result["measured"]:
        grid.add_row(Text(str(row["metric"])), *(Text(_number(row[key])) for key in ("baseline", "method", "ratio")))
    console.print(grid)
    for check in result["checks"]:
        mark = ("yes", "green") if check["met"] else ("in part", "yellow") if check["direction"] else ("no", "red")
        console.print(Text.assemble("  ", mark, f"  {check['criterion']}: {check['measured']}"))
    for note in result["notes"]:
        console.print(Text(f"  {note}", "dim"))
    console.print(Text.assemble("  verdict ", (result["verdict"], f"bold {_COLOURS.get(result['verdict'], 'red')}")))
    console.print()


def _number(value: Any) -> str:
    if value is None or isinstance(value, bool) or not isinstance(value, int | float):
        return "" if value is None else str(value)
    return str(value) if isinstance(value, int) or not math.isfinite(value) else f"{value:.4g}"


def _plain(setup: Any) -> str:
    return ", ".join(f"{key} {value}" for key, value in setup.items()) if isinstance(setup, dict) else str(setup)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InvalidInput(f"the table cannot be written to {path}: {error.strerror or error}") from error
