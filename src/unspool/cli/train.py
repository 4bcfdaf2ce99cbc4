"""``unspool train``: make the small models and data that experiments need."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unspool.cli import _options, _terminal
from unspool.core.errors import InvalidInput

if TYPE_CHECKING:
    from unspool.training.recipes import Made, Recipe

_HELP = """Make a small model, or data, by its recipe; without a name, list the recipes.

A recipe takes minutes on a CPU, from data that it makes or finds (the standard library of Python). What it makes is
kept in the cache folder (UNSPOOL_CACHE moves it) and used by its name: `unspool generate -m stdlib-pair/target "def "`.

[bold]Examples[/bold]

  unspool train

  unspool train stdlib-pair

  unspool train chained-sums --set steps=3000 --set seed=1

  unspool train line-retrieval --json | jq .quality
"""


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("train", help=_HELP)(train)


def complete_recipe(incomplete: str) -> list[str]:
    """Names of recipes that begin like this."""
    from unspool.models.artefacts import recipe_names

    return [name for name in recipe_names() if name.startswith(incomplete)]


def train(
    recipe: Annotated[
        str | None, typer.Argument(help="Its name; without it, all are listed.", autocompletion=complete_recipe)
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", metavar="KEY=VALUE", help="A setting of the recipe. Repeatable."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Make it again, though it is there.")] = False,
    into: Annotated[
        Path | None,
        typer.Option("--into", metavar="FOLDER", help="Put it below this folder instead of into the cache."),
    ] = None,
    threads: _options.Threads = None,
    quiet: _options.Quiet = False,
    as_json: _options.Json = False,
) -> None:
    """Make an artefact; see the help text."""
    values = _options.parse_settings(settings)
    if recipe is None and (values or force or into):
        raise InvalidInput("--set, --force and --into need the name of a recipe")
    if into is not None and not into.is_dir():
        raise InvalidInput(f"--into {into}: there is no such folder")
    with _terminal.working("Starting", quiet=quiet or as_json):
        from unspool.training import recipes
        from unspool.training.progress import Progress

        if threads is not None:
            import torch

            torch.set_num_threads(threads)
    if recipe is None:
        _list(recipes.recipes(), as_json)
        return
    progress = Progress(None if quiet or as_json else _terminal.errors())
    made = recipes.make(recipe, values, force=force, into=into, progress=progress)
    if as_json:
        typer.echo(json.dumps({**made.card, "path": str(made.folder), "was_there": made.was_there}))
    elif not quiet:
        _tell(recipe, made)


def _tell(name: str, made: Made) -> None:
    size = sum(file["bytes"] for file in made.card["files"].values())
    state = "was made before" if made.was_there else f"is made, in {made.card['seconds'] / 60:.1f} minutes"
    typer.echo(f"{name} {state}: {made.folder} ({size / 1e6:.1f} MB)")
    for line in _lines(made.card["quality"]):
        typer.echo("  " + line)


def _lines(values: dict[str, Any], above: str = "") -> list[str]:
    """What was measured, one line a number."""
    lines = []
    for key, value in values.items():
        name = above + key.replace("_", " ")
        lines += _lines(value, name + ", ") if isinstance(value, dict) else [f"{name}: {value}"]
    return lines


def _list(recipes: list[Recipe], as_json: bool) -> None:
    from unspool.core.cards import setting_fields
    from unspool.training.recipes import where

    rows = []
    for found in recipes:
        place = where(found)
        rows.append(
            {
                "recipe": found.slug,
                "summary": found.summary,
                "minutes": found.minutes,
                "megabytes": found.megabytes,
                "settings": {field.name: field.default for field in setting_fields(found.settings)},
                "path": None if place is None else str(place),
            }
        )
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for title in ("recipe", "made", "minutes", "size", ""):
        grid.add_column(title)
    for row in rows:
        grid.add_row(
            Text(str(row["recipe"]), "cyan"),
            "no" if row["path"] is None else "yes",
            f"{row['minutes']:g}",
            f"{row['megabytes']:g} MB",
            Text(str(row["summary"])),
        )
    console = _terminal.output()
    console.print(grid)
    for row in rows:
        if row["path"] is not None:
            console.print(Text(f"{row['recipe']} lies in {row['path']}", "dim"), soft_wrap=True)
