"""The processes below another one: who they are, what they use, and their end. Read from /proc."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass

_TICK = os.sysconf("SC_CLK_TCK")
_KIB = 1024


@dataclass(frozen=True)
class Usage:
    """What some processes use at this moment.

    Attributes:
        memory: bytes of memory of their own (anonymous and shared memory, no pages of files); pages that several share
            are counted once for each.
        cpu: seconds of processor time, with that of children which they have waited for.
    """

    memory: int
    cpu: float


def descendants(pid: int) -> list[int]:
    """Every process below `pid`, parents before children; `pid` itself is not among them."""
    found: list[int] = []
    waiting = [pid]
    while waiting:
        children = _children(waiting.pop())
        found += children
        waiting += children
    return found


def _children(pid: int) -> list[int]:
    children: list[int] = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children", encoding="ascii") as file:
                children += [int(word) for word in file.read().split()]
    except (FileNotFoundError, ProcessLookupError, NotADirectoryError):
        if os.path.isdir(f"/proc/{pid}") and not os.path.exists(f"/proc/{os.getpid()}/task/{os.getpid()}/children"):
            return _children_by_scan(pid)
    return children


def _children_by_scan(pid: int) -> list[int]:
    """For kernels that were built without lists of children."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdecimal() and (fields := _stat(int(name))) is not None and int(fields[1]) == pid:
            found.append(int(name))
    return found


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the third on (state, parent, ...); None if the process has ended."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def waited_cpu(pid: int) -> float:
    """Processor seconds of the children that a process has waited for."""
    fields = _stat(pid)
    return 0.0 if fields is None else (int(fields[13]) + int(fields[14])) / _TICK


def usage(pids: list[int]) -> Usage:
    """What these processes use, as far as they still exist."""
    memory, ticks = 0, 0
    for pid in pids:
        fields = _stat(pid)
        if fields is not None:
            ticks += sum(int(value) for value in fields[11:15])
            memory += _memory(f"/proc/{pid}/status", ("RssAnon:", "RssShmem:"))
    return Usage(memory, ticks / _TICK)


def shared_memory(pids: list[int]) -> int:
    """Like the memory of `usage`, but a page that n processes share counts one n-th for each of them. Slower."""
    total = 0
    for pid in pids:
        try:
            total += _memory(f"/proc/{pid}/smaps_rollup", ("Pss_Anon:", "Pss_Shmem:"))
        except PermissionError:
            total += _memory(f"/proc/{pid}/status", ("RssAnon:", "RssShmem:"))
    return total


def _memory(path: str, names: tuple[str, ...]) -> int:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return sum(int(line.split()[1]) * _KIB for line in file if line.startswith(names))
    except (FileNotFoundError, ProcessLookupError):
        return 0


def end(pid: int, *, seconds: float = 10.0) -> None:
    """Kill everything below the calling process and wait until it has no child left; `pid` is killed first.

    Orphans come to the caller (`linux.adopt_orphans`), so nothing gets away by leaving its parent or its session. All
    are stopped before they are killed: what is stopped cannot fork.

    Raises:
        TimeoutError: if something lives on, which would be a fault of the kernel or a device.
    """
    deadline = time.monotonic() + seconds
    _signal(pid, signal.SIGKILL)
    while True:
        below = descendants(os.getpid())
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for child in below:
                _signal(child, number)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes live on after {seconds:g} s: {below}")
        time.sleep(0.001)


def _signal(pid: int, number: int) -> None:
    # Ended in between; or it belongs to another user, and ends with its namespace.
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)
