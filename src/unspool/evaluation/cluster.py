"""A cluster's machines: how many replicas find a place on them, and whether it can be reached."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Sequence
from urllib.parse import urlsplit

from unspool.core.errors import InvalidInput

HERE = "auto"
"""Address of the cluster that this machine belongs to."""

_REACH_SECONDS = 5.0


def share(
    machines: Sequence[tuple[int, int]], replicas: int | None, threads: int | None, own: int, gpus: int = 0
) -> tuple[int, int]:
    """How many replicas there are, and how many threads each has.

    Args:
        machines: cores and cards of each.
        replicas: that are asked for.
        threads: that are asked for.
        own: what this process would use.
        gpus: cards that each replica has for itself.

    Raises:
        InvalidInput: if there is no room for them.
    """
    largest = max((cores for cores, _ in machines), default=0)
    if threads is None:
        most = max(1, min(own, largest))
        choices = range(most, 0, -1) if replicas is not None else (most,)
        threads = next((one for one in choices if places(machines, one, gpus) >= (replicas or 1)), choices[-1])
    room = places(machines, threads, gpus)
    if room < (replicas or 1):
        cards = f" and {gpus} GPU" if gpus else ""
        have = ", ".join(f"{cores} cores" + (f" and {has} GPUs" if gpus else "") for cores, has in machines)
        raise InvalidInput(
            f"{replicas or 1} replicas of {threads} threads{cards} were asked for, and there is room for {room} "
            f"(machines: {have or 'none'}); ask for fewer with --replicas or --threads"
        )
    return (room if replicas is None else replicas), threads


def places(machines: Iterable[tuple[int, int]], threads: int, gpus: int = 0) -> int:
    """How many replicas find a place; none spans two machines."""
    return sum(min(cores // threads, cards // gpus) if gpus else cores // threads for cores, cards in machines)


def check_reachable(address: str) -> None:
    """Look whether anything listens at an address, since Ray itself tries for minutes.

    Raises:
        InvalidInput: if nothing does, or it is no address.
    """
    if address == HERE:
        return
    example = "give HOST:PORT as `ray start --head` tells it (10.0.0.1:6379), or `auto` on a machine of the cluster"
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise InvalidInput(f"--address {address} is no address ({error}); {example}") from error
    if not host or port is None:
        raise InvalidInput(f"--address {address} is no address; {example}")
    try:
        socket.create_connection((host, port), _REACH_SECONDS).close()
    except OSError as error:
        raise InvalidInput(f"--address {address} cannot be reached ({error.strerror or error}); {example}") from error
