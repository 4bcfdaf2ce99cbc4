"""``unspool methods``: what there is to decode with."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unspool.cli import _declared, _options, _terminal
from unspool.core.errors import InvalidInput

if TYPE_CHECKING:
    from unspool.core.registry import Method

_HELP = """List the methods, or show one with its settings.

[bold]Examples[/bold]

  unspool methods

  unspool methods token-recycling

  unspool methods --kind sampler

  unspool methods --json | jq -r '.[] | select(.lossless) | .slug'
"""


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("methods", help=_HELP)(methods)


def complete_slug(incomplete: str) -> list[tuple[str, str]]:
    """Slugs of methods that begin like this."""
    return [(slug, name) for slug, name in _declared.methods() if slug.startswith(incomplete)]


def methods(
    slug: Annotated[str | None, typer.Argument(help="Show this method alone.", autocompletion=complete_slug)] = None,
    kind: Annotated[
        str | None, typer.Option("--kind", help="Only those that fill this socket (drafter, sampler, ...).")
    ] = None,
    room: Annotated[
        str | None, typer.Option("--room", help="Only those of this room (speculation, sampling, ...).")
    ] = None,
    as_json: _options.Json = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="A table for a document.", rich_help_panel=_options.SHOWING)
    ] = False,
) -> None:
    """List the methods, or show one; see the help text."""
    with _terminal.working("Reading the methods", quiet=as_json):
        from unspool.core.registry import registry

        found = list(registry) if slug is None else [registry[slug]]
    if kind is not None:
        found = _only("kind", kind, found, lambda method: [method.card.kind.value])
    if room is not None:
        found = _only("room", room, found, lambda method: [method.room, method.room.split("/")[0]])
    if as_json:
        rows = [_row(method, with_settings=slug is not None) for method in found]
        typer.echo(json.dumps(rows if slug is None else rows[0], indent=2))
    elif markdown:
        typer.echo(table(found))
    elif slug is not None:
        _card(found[0])
    else:
        _list(found)


def _only(what: str, value: str, found: list[Method], names: Any) -> list[Method]:
    wanted = value.strip().lower().replace("-", " ") if what == "kind" else value.strip("/")
    kept = [method for method in found if wanted in names(method)]
    if not kept:
        there = sorted({name for method in found for name in names(method)})
        raise InvalidInput(f"no method has the {what} {value!r}; there are: {', '.join(there)}")
    return kept


def _row(method: Method, *, with_settings: bool = False) -> dict[str, Any]:
    from unspool.core.cards import setting_fields

    row = method.as_dict()
    if with_settings:
        row["settings"] = [
            {"name": field.name, "type": field.type_name, "default": field.default, "help": field.help}
            for field in setting_fields(method.settings)
        ]
    return row


def table(found: list[Method]) -> str:
    """The methods as a Markdown table."""
    lines = [
        "| Method | | Room | Socket | Lossless | Needs | Paper |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for method in found:
        row = method.as_dict()
        cells = [
            f"`{row['slug']}`",
            f"**{row['name']}.** {row['summary']}",
            row["room"],
            row["kind"],
            "yes" if row["lossless"] else "no",
            ", ".join(row["needs"]),
            row["paper"],
        ]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def _list(found: list[Method]) -> None:
    from rich.markup import escape
    from rich.table import Table

    console = _terminal.output()
    roomy = console.width >= 110
    grid = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for title in ("", "lossless", "fills", "") if roomy else ("", "lossless", ""):
        grid.add_column(title, no_wrap=title != "" or not grid.columns)
    room = None
    for method in found:
        if method.room != room:
            room = method.room
            grid.add_row(f"\n[bold]{escape(room)}[/bold]")
        card = method.card
        needs = method.as_dict()["needs"]
        cells = [f"  [cyan]{escape(card.slug)}[/cyan]", "[green]yes[/green]" if card.lossless else "[dim]no[/dim]"]
        cells += [card.kind.value] if roomy else []
        grid.add_row(*cells, escape(card.summary) + (f" [dim]Needs {escape(', '.join(needs))}.[/dim]" if needs else ""))
    console.print(grid)
    console.print(f"\n{len(found)} methods. [dim]`unspool methods SLUG` shows one with its settings.[/dim]")


def _card(method: Method) -> None:
    from rich.table import Table
    from rich.text import Text

    from unspool.core.cards import setting_fields

    console, row = _terminal.output(), method.as_dict()
    console.print(Text.assemble((row["name"], "bold"), "  ", (row["slug"], "cyan")))
    console.print(row["summary"], markup=False)
    facts = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name in ("paper", "claim", "room", "kind", "lossless", "needs"):
        value = row[name]
        text = (
            ("yes" if value else "no")
            if isinstance(value, bool)
            else ", ".join(value)
            if isinstance(value, list)
            else value
        )
        if text:
            facts.add_row(Text(name, "dim"), Text(text))
    console.print()
    console.print(facts)
    fields = setting_fields(method.settings)
    if not fields:
        console.print("\nIt has no settings.")
        return
    grid = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for title in ("setting", "type", "default", ""):
        grid.add_column(title)
    for field in fields:
        grid.add_row(Text(field.name, "cyan"), Text(field.type_name), Text(repr(field.default)), Text(field.help))
    console.print()
    console.print(grid)
