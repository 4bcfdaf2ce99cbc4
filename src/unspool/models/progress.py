"""What a user sees while weights are fetched or converted."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn


def console() -> Console:
    """Where people are told things: standard error, so that standard output stays clean."""
    return Console(stderr=True)


@contextlib.contextmanager
def bar(title: str, total: int, shown: bool) -> Iterator[Callable[[int], None]]:
    """A bar on standard error; yields what sets the number of bytes done."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console(), disable=not shown, transient=True) as bars:
        task = bars.add_task(title, total=total)

        def done(count: int) -> None:
            bars.update(task, completed=min(count, total))

        yield done
