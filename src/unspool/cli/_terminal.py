"""What the commands write on: consoles, spinners, streamed text."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

# C0 and C1 control characters but tab and line feed. A model may write them, and terminals obey them.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def output() -> Console:
    """Standard output, for tables and coloured text."""
    from rich.console import Console

    return Console(highlight=False)


def errors() -> Console:
    """Standard error: messages, statistics, progress."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def harmless(text: str) -> str:
    """Text of a model without what would steer a terminal."""
    return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text)


def shown(text: str) -> str:
    """A model's text as it goes to standard output: to a terminal without control characters, else as it is."""
    return harmless(text) if sys.stdout.isatty() else text


def stream(text: str) -> None:
    """Write a piece of a model's text at once; see :func:`shown`."""
    sys.stdout.write(shown(text))
    sys.stdout.flush()


@contextmanager
def working(what: str, *, quiet: bool = False) -> Iterator[None]:
    """A spinner on standard error while something takes its time; nothing where that is not a terminal."""
    console = errors()
    if quiet or not console.is_terminal:
        yield
        return
    with console.status(what, spinner="dots"):
        yield
