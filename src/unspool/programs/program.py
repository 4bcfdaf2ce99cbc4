"""A program, what it may use, and how it ended."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import PurePosixPath

from unspool.core.errors import InvalidInput, UnspoolError

MIB = 1 << 20


class SandboxError(UnspoolError):
    """Programs cannot be run here, or not under the conditions that were asked for."""


class LanguageMissing(UnspoolError):
    """The compiler or interpreter of a language is not installed. Names what to install."""


@dataclass(frozen=True)
class Limits:
    """What a program may use. Compilers have limits of their own (`COMPILING`).

    Attributes:
        wall_seconds: time on the clock.
        cpu_seconds: processor time of all its processes together.
        memory_bytes: memory of all its processes together, and of each.
        file_bytes: size of each file.
        processes: at one time; a thread counts as one.
        output_bytes: that are kept of standard output, and as many of standard error. What is beyond is thrown away,
            and the program stopped when that becomes `FLOOD` times as much.
        folder_bytes: all its files together.
        folder_files: how many files and folders.
    """

    wall_seconds: float = 10.0
    cpu_seconds: float = 10.0
    memory_bytes: int = 1024 * MIB
    file_bytes: int = 16 * MIB
    processes: int = 32
    output_bytes: int = 64 * 1024
    folder_bytes: int = 128 * MIB
    folder_files: int = 4096

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if not (value > 0 and math.isfinite(value)):
                raise InvalidInput(f"limit {item.name}={value!r}: it has to be a number above zero")


DEFAULT = Limits()

COMPILING = Limits(
    wall_seconds=60.0,
    cpu_seconds=60.0,
    memory_bytes=3072 * MIB,
    file_bytes=128 * MIB,
    processes=64,
)
"""Limits of compilers; those of the folder are the program's."""

FLOOD = 256


class Status(StrEnum):
    """How a program ended."""

    PASSED = "passed"
    FAILED = "failed"
    TIMEOUT = "timeout"
    OUT_OF_MEMORY = "out of memory"
    BLOCKED = "blocked"


@dataclass(frozen=True)
class Program:
    """Source, and what it is given.

    Attributes:
        source: of the main file. It is ``main.py``, ``main.sh``, ``main.c``, ... in the program's own folder.
        language: a name of `languages()`.
        files: other files of that folder, by their relative paths. Python can import them.
        stdin: standard input.
        arguments: of the command line.
        must_finish: Python only: exit code 0 is not enough, the main file must be executed to its last line.
        success_marker: if it is not empty: exit code 0 is not enough, the last line of standard output must be this
            text (it is cut off from the outcome's). For languages other than Python; let it be one that cannot be
            guessed.
    """

    source: str
    language: str = "python"
    files: Mapping[str, str] = field(default_factory=dict)
    stdin: str = ""
    arguments: tuple[str, ...] = ()
    must_finish: bool = False
    success_marker: str = ""

    def __post_init__(self) -> None:
        for name in self.files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or str(path) != name or name == "." or "\0" in name:
                raise InvalidInput(f"file {name!r}: it needs a plain relative path, such as data/input.txt")
        if self.must_finish and self.language != "python":
            raise InvalidInput(
                f"must_finish is for Python; let the {self.language} program print a success_marker as its last line"
            )
        if self.success_marker != self.success_marker.strip() or len(self.success_marker.splitlines()) > 1:
            raise InvalidInput(
                f"success_marker {self.success_marker!r}: it has to be one line without blanks around it"
            )
        if any("\0" in argument for argument in self.arguments):
            raise InvalidInput("an argument holds a zero byte, which no command line can")


@dataclass(frozen=True)
class Outcome:
    """How a program ended.

    Attributes:
        status: see `Status`.
        exit_code: what it returned; minus the number of the signal that ended it; None if the sandbox stopped it.
        stdout, stderr: what it wrote, up to the limit; bytes that are no UTF-8 are replaced. If it does not compile,
            these are the compiler's.
        truncated: whether it wrote more than that.
        seconds: on the clock, for the program alone.
        reason: why the status is what it is; empty if it passed.
        phase: "compile" if that is how far it came, else "run".
        cpu_seconds: of all its processes.
        peak_bytes: the most memory that was seen in use.
        refused: system calls that the filter refused, whether or not the program minded.
        compile_seconds: on the clock, 0 for languages without a compiler.
    """

    status: Status
    exit_code: int | None
    stdout: str
    stderr: str
    truncated: bool
    seconds: float
    reason: str = ""
    phase: str = "run"
    cpu_seconds: float = 0.0
    peak_bytes: int = 0
    refused: tuple[str, ...] = ()
    compile_seconds: float = 0.0

    @property
    def passed(self) -> bool:
        return self.status is Status.PASSED
