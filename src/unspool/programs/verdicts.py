"""From what a supervisor saw to how a program ended."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from typing import Any

from unspool.programs.languages import Language
from unspool.programs.program import FLOOD, MIB, Limits, Outcome, Program, Status

# What the system's messages say about the wall that a program ran into, in any language that passes them on.
_WALLS = {
    "Network is unreachable": "it tried to use the network",
    "Read-only file system": "it tried to write outside of its folder",
    "Operation not permitted": "it tried something that is not permitted",
    "Permission denied": "it tried something that is not permitted",
    "File too large": "it tried to make a file that is too large",
    "File size limit exceeded": "it tried to make a file that is too large",
    "No space left on device": "its folder is full",
    "Resource temporarily unavailable": "it tried to start too many processes",
    "can't start new thread": "it tried to start too many threads",
    "Too many open files": "it tried to open too many files",
}
_SIGNALS = {
    signal.SIGXCPU: (Status.TIMEOUT, "it used up its processor time"),
    signal.SIGXFSZ: (Status.BLOCKED, "it tried to make a file that is too large"),
    signal.SIGSYS: (Status.BLOCKED, "it made a system call that is not permitted"),
}
_NEARLY = 0.9  # who failed with this part of the memory in use had not enough of it
_TAIL_LINES = 12


def judge(
    steps: list[Mapping[str, Any]], limits: list[Limits], phases: list[str], language: Language, program: Program
) -> Outcome:
    """The outcome of a program, from the report on its steps.

    Args:
        steps: what the supervisor reported; the last one decides.
        limits, phases: for each step that was planned, its limits and "compile" or "run".
    """
    last = len(steps) - 1
    step, phase = steps[last], phases[last]
    status, reason, stdout = _verdict(step, limits[last], phase, language, program)
    compiled = [seen["seconds"] for seen, name in zip(steps, phases, strict=False) if name == "compile"]
    return Outcome(
        status=status,
        exit_code=None if step["killed"] is not None else _exit_code(step["status"]),
        stdout=stdout,
        stderr=step["stderr"],
        truncated=step["truncated"],
        seconds=step["seconds"] if phase == "run" else 0.0,
        reason=reason,
        phase=phase,
        cpu_seconds=step["cpu_seconds"],
        peak_bytes=step["peak_bytes"],
        refused=tuple(step["refused"]),
        compile_seconds=sum(compiled, 0.0),
    )


def _exit_code(status: int) -> int:
    return os.waitstatus_to_exitcode(status)


def _verdict(
    step: Mapping[str, Any], limits: Limits, phase: str, language: Language, program: Program
) -> tuple[Status, str, str]:
    """Status, reason, and standard output without the marker."""
    stdout: str = step["stdout"]
    who = "the compiler" if phase == "compile" else "it"
    if step["killed"] is not None:
        return *_stopped(step["killed"], limits, who), stdout
    code = _exit_code(step["status"])
    if code == 0 and phase == "run":
        return _succeeded(step, program, stdout)
    if -code in _SIGNALS:
        return *_SIGNALS[signal.Signals(-code)], stdout
    tail = "\n".join(step["stderr"].splitlines()[-_TAIL_LINES:])
    if step["peak_bytes"] >= _NEARLY * limits.memory_bytes or any(text in tail for text in language.complaints):
        return Status.OUT_OF_MEMORY, f"{who} needed more than {limits.memory_bytes / MIB:g} MiB of memory", stdout
    if step["refused"]:
        return Status.BLOCKED, f"{who} was refused: {', '.join(step['refused'])}", stdout
    if phase == "compile":
        return Status.FAILED, "it does not compile", stdout
    for text, meaning in _WALLS.items():
        if text in tail:
            return Status.BLOCKED, f"{meaning} ({text})", stdout
    if code < 0:
        return Status.FAILED, f"it was ended by {_name(-code)}", stdout
    return Status.FAILED, f"it ended with exit code {code}", stdout


def _succeeded(step: Mapping[str, Any], program: Program, stdout: str) -> tuple[Status, str, str]:
    if not step["finished"]:
        return Status.FAILED, "it ended with exit code 0, but not at its last line", stdout
    if program.success_marker:
        body, found, after = stdout.rpartition(program.success_marker)
        if not found or after.strip() or not (body == "" or body.endswith("\n")):
            return Status.FAILED, "it ended with exit code 0, but its last line is not the success marker", stdout
        return Status.PASSED, "", body
    return Status.PASSED, "", stdout


def _stopped(why: str, limits: Limits, who: str) -> tuple[Status, str]:
    if why == "wall":
        return Status.TIMEOUT, f"{who} ran for more than {limits.wall_seconds:g} s"
    if why == "cpu":
        return Status.TIMEOUT, f"{who} used more than {limits.cpu_seconds:g} s of processor time"
    if why == "memory":
        return Status.OUT_OF_MEMORY, f"{who} needed more than {limits.memory_bytes / MIB:g} MiB of memory"
    if why == "processes":
        return Status.BLOCKED, f"{who} started more than {limits.processes} processes"
    if why == "output":
        return Status.BLOCKED, f"{who} wrote more than {limits.output_bytes * FLOOD / MIB:g} MiB of output"
    return Status.BLOCKED, f"{who} attacked the process that looks after it"


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
