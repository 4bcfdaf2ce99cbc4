"""The unprivileged user that root's programs run as: one of its own for every jail."""

from __future__ import annotations

import errno
import os
import random

_NAMED_FROM, _NAMED_TO = 60_000, 65_533  # beyond people and services, below nobody
_FAR = 1 << 24


def choose() -> int:
    """A user and group number that nobody else has, within what this namespace of users knows.

    Where millions of numbers are known, one of the upper half is drawn; in a container with 65536, one of those that
    systems leave free.

    Raises:
        OSError: where there are too few to have one for this.
    """
    with open("/proc/self/uid_map", encoding="ascii") as file:
        extents = [(int(inside), int(length)) for inside, _, length in (line.split() for line in file)]
    start, length = max(extents, key=lambda extent: extent[1])
    last = min(start + length, (1 << 31) - 1) - 1
    draw = random.SystemRandom()
    if last - start >= _FAR:
        return draw.randint(start + (last - start) // 2, last - 1)
    if last < _NAMED_TO:
        raise OSError(errno.EINVAL, f"only {length} user numbers are known here")
    return draw.randint(_NAMED_FROM, _NAMED_TO)


def become(user: int) -> None:
    """Give up root for good.

    Raises:
        OSError: without the right to change users.
    """
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def count_tasks(user: int) -> int:
    """How many threads of all processes belong to a user, as far as /proc tells."""
    total = 0
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                if os.stat(f"/proc/{name}").st_uid == user:
                    total += len(os.listdir(f"/proc/{name}/task"))
            except (FileNotFoundError, ProcessLookupError):
                continue  # ended in between
    return total
