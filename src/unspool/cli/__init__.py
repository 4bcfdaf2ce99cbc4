"""The command line: one file a command.

Nothing here imports torch before a command needs it, so that help and completion answer at once.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
import threading
from typing import Annotated, NoReturn

import typer

from unspool.cli._group import Commands

app = typer.Typer(
    name="unspool",
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="rich",
    # A traceback that shows every local would print whole tensors, and prompts.
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done; 1 something failed (a download, a file, a claim that does not hold); 2 wrong input; "
    '130 interrupted. With --json an error is told on stderr, and as {"error": {"type", "message"}} on stdout.',
)


def _version(wanted: bool) -> None:
    if wanted:
        from unspool import __version__

        typer.echo(f"unspool {__version__}")
        raise typer.Exit()


@app.callback()
def unspool(
    version: Annotated[
        bool, typer.Option("--version", "-V", help="Print the version and leave.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Decode language models: faster, controlled, searched; every published way behind one interface.

    [bold]Examples[/bold]

      unspool generate "Write a Python function that reverses a list."

      unspool methods

      unspool pull smollm2-135m
    """


def main() -> None:
    """The console script."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character gets an escape for it, not an error in the middle of a text.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    # Advice for programmers that transformers prints; and forks of tokenizers that nobody here makes.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Importing makes a million objects that stay; to look through them after every 700 takes a tenth of the time.
    gc.set_threshold(50_000, 20, 50)
    try:
        app(prog_name="unspool")
    except SystemExit as end:
        _leave(end.code)


def _leave(code: str | int | None) -> NoReturn:
    """End as the interpreter would, but without taking PyTorch and the model apart first, which takes half a second."""
    if not isinstance(code, int | None):
        sys.exit(code)
    threading._shutdown()  # type: ignore[attr-defined]  # waits for the threads that are still at work
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code or 0)
