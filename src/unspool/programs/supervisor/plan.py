"""What a job says: the plan of the jail, and the steps in it. Made of JSON, which is how it arrives."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

# Names of what a jail can be made of; the plan lists those that work here. `unspool.programs.ground` finds them.
OWN_USER, USER, MOUNT, PID, NETWORK = "own user", "user namespace", "mount namespace", "pid namespace", "net namespace"
IPC, UTS, PROC = "ipc namespace", "uts namespace", "proc"
LANDLOCK, SECCOMP, LISTENER = "landlock", "seccomp", "seccomp listener"


class StageError(Exception):
    """A part of the jail that this machine refuses."""

    def __init__(self, part: str, why: str) -> None:
        super().__init__(f"{part}: {why}")
        self.part, self.why = part, why


@contextmanager
def part(name: str) -> Iterator[None]:
    """What is done inside belongs to this part of the plan."""
    try:
        yield
    except OSError as error:
        raise StageError(name, error.strerror or str(error)) from error


@dataclass(frozen=True)
class Plan:
    """How a jail is built.

    Attributes:
        parts: which of the names above are used.
        privileged: namespaces are made with the rights of root, and given up afterwards; else a namespace of users
            comes first and gives the rights to make the others.
        own_count: the limit of processes counts this jail's alone.
        filters: BPF programs for system calls.
        names: system call numbers that a filter tells of, and what they are called.
    """

    parts: frozenset[str]
    privileged: bool
    own_count: bool = True
    filter: bytes = b""
    names: Mapping[int, str] = field(default_factory=dict)

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Plan:
        return cls(
            frozenset(data["parts"]),
            data["privileged"],
            data["own_count"],
            base64.b64decode(data["filter"]),
            {int(number): name for number, name in data["names"].items()},
        )

    def write(self) -> dict[str, Any]:
        return {
            "parts": sorted(self.parts),
            "privileged": self.privileged,
            "own_count": self.own_count,
            "filter": base64.b64encode(self.filter).decode(),
            "names": {str(number): name for number, name in self.names.items()},
        }


@dataclass(frozen=True)
class Step:
    """One command in the jail, and its limits.

    Attributes:
        argv: what is executed, argv[0] with its folder; None to rehearse: everything is set up and nothing executed.
        judged: the program gets two descriptors whose numbers follow its arguments: one to read a secret from, one to
            write it to at its end.
        address_space: bytes of addresses, or 0 for no limit.
        output_bytes: of standard output, and as many of standard error; `flood_bytes`: of both, beyond which it is
            stopped.
    """

    argv: tuple[str, ...] | None
    environment: Mapping[str, str]
    stdin: bytes
    judged: bool
    wall_seconds: float
    cpu_seconds: float
    memory_bytes: int
    address_space: int
    file_bytes: int
    processes: int
    output_bytes: int
    flood_bytes: int

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Step:
        argv = None if data["argv"] is None else tuple(data["argv"])
        return cls(**{**data, "argv": argv, "stdin": base64.b64decode(data["stdin"])})


@dataclass(frozen=True)
class Job:
    """Files to lay out, and steps to run one after the other until one fails.

    Attributes:
        readable: absolute paths that the program may read.
        files: name in the folder, and content.
    """

    plan: Plan
    readable: tuple[str, ...]
    files: Mapping[str, bytes]
    folder_bytes: int
    folder_files: int
    steps: tuple[Step, ...]

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Job:
        return cls(
            Plan.read(data["plan"]),
            tuple(data["readable"]),
            {name: base64.b64decode(content) for name, content in data["files"].items()},
            data["folder_bytes"],
            data["folder_files"],
            tuple(Step.read(step) for step in data["steps"]),
        )
