"""Talking to a supervisor: started, given jobs one at a time, ended."""

from __future__ import annotations

import base64
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unspool.programs.program import Limits, SandboxError
from unspool.programs.supervisor.frames import read_frame, write_frame

# The packages above the supervisor are named without being executed: theirs would import what it has no use for, and
# in an interpreter without site-packages could not.
_BOOT = """
import sys, types
root = sys.argv[1]
for name, path in (("unspool", root), ("unspool.programs", root + "/programs")):
    module = types.ModuleType(name)
    module.__path__ = [path]
    sys.modules[name] = module
from unspool.programs.supervisor.main import main
main()
"""
_ROOT = Path(__file__).resolve().parents[1]
_LAST_SECONDS = 15.0


class Supervisor:
    """A supervisor process. Not for several threads at once.

    Raises:
        SandboxError: if the process cannot be started.
    """

    def __init__(self) -> None:
        if sys.platform != "linux":
            raise SandboxError(f"programs are run in facilities of Linux; this is {sys.platform}")
        if not sys.executable:
            raise SandboxError("programs are run by a second Python interpreter, and where this one lies is not known")
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _BOOT, str(_ROOT)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                env={"LANG": "C.UTF-8", "TMPDIR": tempfile.gettempdir()},
                start_new_session=True,  # an interrupt from the keyboard is for this process to pass on
            )
        except OSError as error:
            raise SandboxError(f"the supervisor of programs cannot be started: {error}") from error
        # Its standard input ends when this object goes, and with it whatever it runs.
        self._finalizer = weakref.finalize(self, _stop, self._process)

    def run(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Run one job (see `make_job`) and return the report.

        Raises:
            SandboxError: if the supervisor ends before it has reported.
        """
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            write_frame(process.stdin.fileno(), job)
            report: dict[str, Any] = read_frame(process.stdout.fileno())
        except (EOFError, BrokenPipeError) as error:
            assert process.stderr is not None
            self._finalizer.detach()
            process.stdin.close()
            said = process.stderr.read().decode("utf-8", "replace").strip()
            process.stdout.close()
            process.stderr.close()
            code = process.wait()
            last = said.splitlines()[-1] if said else "it said nothing"
            raise SandboxError(f"the supervisor of programs ended with code {code}: {last}") from error
        return report

    def stop(self) -> None:
        """Stop what it runs, and it. Can be called from another thread while `run` waits, and more than once."""
        self._finalizer()


def _stop(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(_LAST_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()  # its children die with it, as far as the kernel was asked to see to that
        process.wait()
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def make_job(
    plan: Mapping[str, Any],
    readable: Sequence[str],
    files: Mapping[str, str],
    limits: Limits,
    steps: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """What a supervisor is told. Characters that UTF-8 cannot hold (a model can produce half of a pair) become "?"."""
    return {
        "plan": plan,
        "readable": list(readable),
        "files": {name: _encode(content) for name, content in files.items()},
        "folder_bytes": limits.folder_bytes,
        "folder_files": limits.folder_files,
        "steps": list(steps),
    }


def make_step(
    argv: Sequence[str] | None,
    limits: Limits,
    *,
    environment: Mapping[str, str],
    stdin: str = "",
    judged: bool = False,
    address_space: int = 0,
    flood: int,
) -> dict[str, Any]:
    """One command of a job; see `supervisor.plan.Step`."""
    return {
        "argv": None if argv is None else [str(word).encode("utf-8", "replace").decode() for word in argv],
        "environment": dict(environment),
        "stdin": _encode(stdin),
        "judged": judged,
        "wall_seconds": limits.wall_seconds,
        "cpu_seconds": limits.cpu_seconds,
        "memory_bytes": limits.memory_bytes,
        "address_space": address_space,
        "file_bytes": limits.file_bytes,
        "processes": limits.processes,
        "output_bytes": limits.output_bytes,
        "flood_bytes": limits.output_bytes * flood,
    }


def _encode(text: str) -> str:
    return base64.b64encode(text.encode("utf-8", "replace")).decode()
