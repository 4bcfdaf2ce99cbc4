"""Sandboxes as this machine makes them, and as a machine without namespaces would."""

import os
import stat
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from unspool.programs import Facility, Limits, Mechanism, Outcome, Program, Sandbox

NAMESPACES = frozenset(mechanism for mechanism in Mechanism if mechanism.value.endswith("namespace"))
SMALL = Limits(wall_seconds=2.0, cpu_seconds=2.0, memory_bytes=256 << 20, file_bytes=1 << 20, processes=12)


def python_for_everyone() -> str:
    """An interpreter that an unprivileged user can start; the running one may lie in root's home."""
    for candidate in (sys.executable, "/usr/bin/python3"):
        if os.path.exists(candidate) and _is_open(Path(candidate)):
            return candidate
    pytest.skip("no Python here that users other than root can start")


def _is_open(path: Path) -> bool:
    places = [path, Path(os.path.realpath(path))]
    parents = {parent for place in places for parent in place.parents}
    return os.geteuid() != 0 or all(parent.stat().st_mode & stat.S_IXOTH for parent in parents)


@dataclass
class Trial:
    """A sandbox to attack."""

    sandbox: Sandbox

    def needs(self, *facilities: Facility) -> None:
        for facility in facilities:
            if facility not in self.sandbox.facilities:
                pytest.skip(f"not in force here: {facility}")

    def run(self, source: str, **limits: float) -> Outcome:
        """Run Python, and see that no process of it is left when it has ended."""
        mark = uuid.uuid4().hex
        values = {**vars(SMALL), **limits}
        outcome = self.sandbox.run(Program(source, arguments=(mark,)), Limits(**values))
        assert not processes(mark)
        return outcome


def processes(mark: str) -> list[int]:
    """Processes with this text in their command lines; forks keep the command line."""
    found = []
    for name in os.listdir("/proc"):
        try:
            if name.isdecimal() and mark.encode() in Path(f"/proc/{name}/cmdline").read_bytes():
                found.append(int(name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def wait_for_none(mark: str, seconds: float = 5.0) -> list[int]:
    until = time.monotonic() + seconds
    while (left := processes(mark)) and time.monotonic() < until:
        time.sleep(0.02)
    return left


@pytest.fixture(scope="session")
def whole() -> Iterator[Trial]:
    with Sandbox(SMALL) as sandbox:
        yield Trial(sandbox)


@pytest.fixture(scope="session")
def without_namespaces() -> Iterator[Trial]:
    with Sandbox(SMALL, without=NAMESPACES, python=python_for_everyone()) as sandbox:
        yield Trial(sandbox)


@pytest.fixture(params=["whole", "without_namespaces"])
def trial(request: pytest.FixtureRequest) -> Trial:
    return request.getfixturevalue(request.param)


@pytest.fixture
def outside() -> Iterator[Path]:
    """A folder in which everyone may do everything, with a file that everyone may read."""
    with tempfile.TemporaryDirectory(prefix="outside-") as name:
        folder = Path(name)
        folder.chmod(0o777)
        (folder / "secret.txt").write_text("the secret of the outside")
        (folder / "secret.txt").chmod(0o666)
        yield folder
