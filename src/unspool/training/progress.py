"""Bars and messages of a training, on standard error, or nowhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars


class Progress:
    """Tells what a training does.

    Args:
        console: where; ``None`` for silence. Bars are drawn on terminals only, messages go to logs as well.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console
        self.began = time.perf_counter()

    def say(self, text: str) -> None:
        """A line with the seconds since the start."""
        if self.console is not None:
            self.console.print(f"[dim]{time.perf_counter() - self.began:7.1f} s[/dim]  {text}", highlight=False)

    @contextmanager
    def bar(self, title: str, total: int) -> Iterator[Callable[[int, str], None]]:
        """Within it, a function that is told how many of ``total`` are done, and a note to show."""
        if self.console is None or not self.console.is_terminal:
            yield lambda done, note: None
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
        )
        with Bars(*columns, console=self.console, transient=True) as bars:
            task = bars.add_task(title, total=total, note="")
            yield lambda done, note: bars.update(task, completed=done, note=note)
