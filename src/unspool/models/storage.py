"""The folder where models are kept: its place, its locks, and what can go wrong on its disk, in words."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout
from platformdirs import user_cache_dir

from unspool.core.errors import DownloadError
from unspool.models.progress import console

_FULL = {errno.ENOSPC, errno.EDQUOT}
_CLOSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}


def cache_dir() -> Path:
    """The folder where models are kept. It need not exist yet."""
    return Path(os.environ.get("UNSPOOL_CACHE") or user_cache_dir("unspool")).expanduser().absolute()


@contextlib.contextmanager
def lock(label: str) -> Iterator[None]:
    """Only one process at a time fetches, converts or removes a model. Says so when it has to wait."""
    place = cache_dir() / "locks"
    with disk(place):
        place.mkdir(parents=True, exist_ok=True)
        held = FileLock(place / f"{label}.lock")
        try:
            held.acquire(timeout=2)
        except Timeout:
            console().print(f"Another process is getting {label} ready; waiting for it.")
            held.acquire()
    try:
        yield
    finally:
        held.release()


@contextlib.contextmanager
def disk(place: Path | str, variable: str = "UNSPOOL_CACHE") -> Iterator[None]:
    """Within it, a full or a write-protected disk is a DownloadError that names ``place``. Other errors pass.

    Args:
        place: what is being written.
        variable: the environment variable that moves it elsewhere.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise no_room(place, error.strerror or str(error), variable) from error
        if error.errno in _CLOSED:
            raise DownloadError(
                f"{place} cannot be written to: {error.strerror or error}. Set {variable} to a folder that can be."
            ) from error
        raise


def no_room(place: Path | str, reason: str, variable: str = "UNSPOOL_CACHE") -> DownloadError:
    """The error for a full disk."""
    return DownloadError(
        f"No room on the disk for {place} ({reason}). Nothing half-written was kept. Free some space, or set "
        f"{variable} to a folder on another disk."
    )


def check_room(needed: int, folder: Path, place: Path) -> None:
    """Refuse before the first byte when the disk of ``folder`` has fewer than ``needed`` bytes left for ``place``.

    Raises:
        DownloadError: it has, or the folder cannot be made.
    """
    with disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    if free < needed:
        raise no_room(place, f"{needed / 1e6:,.0f} MB are needed, {free / 1e6:,.0f} MB are free")


def draft_of(final: Path) -> Path:
    """A new hidden name beside ``final``: what is finished under it moves into its place by one rename."""
    return final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}")


def sweep(final: Path) -> None:
    """Remove the drafts of ``final`` that a killed process left. For who holds the lock: nobody is at work there."""
    for leftover in final.parent.glob(f".{final.name}.*"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def write_whole(final: Path, content: bytes) -> None:
    """Write a small file whole or not at all."""
    final.parent.mkdir(parents=True, exist_ok=True)
    draft = draft_of(final)
    try:
        draft.write_bytes(content)
        draft.replace(final)
    finally:
        draft.unlink(missing_ok=True)


def replace_folder(work: Path, final: Path) -> None:
    """Move a finished folder into its place, where an older one may be."""
    if not final.exists():
        work.rename(final)
        return
    old = draft_of(final)
    final.rename(old)
    work.rename(final)
    shutil.rmtree(old, ignore_errors=True)


def tree_size(folder: Path) -> int:
    """Bytes of all files below a folder, while others may be at work in it."""
    total = 0
    for place, _, files in os.walk(folder):
        for file in files:
            with contextlib.suppress(FileNotFoundError):
                total += os.lstat(os.path.join(place, file)).st_size
    return total
