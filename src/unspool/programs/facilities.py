"""What is in force: each facility is claimed only after a program in the sandbox has tried to get around it."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from unspool.programs.ground import Ground, Mechanism, explore
from unspool.programs.languages import python_at
from unspool.programs.program import FLOOD, MIB, Limits, SandboxError
from unspool.programs.worker import Supervisor, make_job, make_step


class Facility(StrEnum):
    """What a sandbox can promise."""

    RESOURCE_LIMITS = "resource limits"
    PROCESS_LIMIT = "process limit"
    WHOLE_TREE = "whole tree ended"
    NO_NETWORK = "no network"
    NO_READING = "no reading outside"
    NO_WRITING = "no writing outside"
    NO_SIGNALS = "no signals outside"
    NO_PRIVILEGES = "no privileges"
    FOLDER_LIMIT = "folder limit"
    SYSTEM_CALLS = "system calls filtered"

    @property
    def meaning(self) -> str:
        return _MEANINGS[self]


_MEANINGS = {
    Facility.RESOURCE_LIMITS: "time, memory, file size and output are limited",
    Facility.PROCESS_LIMIT: "a program cannot start more processes than allowed",
    Facility.WHOLE_TREE: "every process that it started ends with it, whatever it did to get away",
    Facility.NO_NETWORK: "no connection, neither to the network, nor to this machine, nor to a socket in a folder",
    Facility.NO_READING: "no files but the system's, the interpreter's and its own can be read",
    Facility.NO_WRITING: "no file but those of its own folder can be written, or have its rights changed",
    Facility.NO_SIGNALS: "no process outside can be signalled",
    Facility.NO_PRIVILEGES: "it is no root, has no capability and can get none",
    Facility.FOLDER_LIMIT: "its own folder is limited, in bytes and in files",
    Facility.SYSTEM_CALLS: "system calls that no ordinary program needs are refused",
}

_LIMITS = Limits(
    wall_seconds=20.0, processes=6, file_bytes=MIB, folder_bytes=2 * MIB, folder_files=64, memory_bytes=512 * MIB
)
_SECRET = "this must not be read"

# Tries everything, and tells what worked. The last try comes after the report: it may be stopped from outside.
_ATTACKS = r"""
import ctypes, errno, json, os, resource, signal, socket, sys, time
given = json.loads(sys.stdin.read())
done = {}

def attempt(name, action):
    try:
        done[name] = bool(action())
    except (OSError, MemoryError):
        done[name] = False

def read():
    with open(given["file"]) as file:
        return given["secret"] in file.read()

def write():
    with open(given["folder"] + "/written", "w") as file:
        file.write("x")
    return True

def change():
    os.chmod(given["file"], 0o640)
    return True

def connect(family, address):
    with socket.socket(family, socket.SOCK_STREAM) as client:
        client.settimeout(2)
        client.connect(address)
    return True

def datagram():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.sendto(b"x", ("127.0.0.1", given["udp"]))
    return True

def send_signal():
    own = {1, os.getpid()} if given["own_numbers"] else {os.getpid()}  # 1 is the keeper in a process namespace
    for number in {*range(2, 3000), given["process"]} - own:
        try:
            os.kill(number, 0)
            return True
        except OSError:
            pass
    return False

def inner_namespace():
    libc = ctypes.CDLL(None, use_errno=True)
    return libc.unshare(0x10000000) == 0

def big_file():
    with open("big", "wb") as file:
        for _ in range(given["file_bytes"] // 65536 + 4):
            file.write(b"x" * 65536)
    return True

def big_memory():
    return len(bytearray(given["memory_bytes"] + 2**26)) > 0

def many_files():
    for number in range(given["folder_files"] + 200):
        with open(f"many-{number}", "w"):
            pass
    return True

def much_in_files():
    for number in range(given["folder_bytes"] // given["file_bytes"] + 4):
        with open(f"much-{number}", "wb") as file:
            file.write(b"x" * given["file_bytes"])
    return True

attempt("read", read)
attempt("write", write)
attempt("change", change)
attempt("tcp", lambda: connect(socket.AF_INET, ("127.0.0.1", given["tcp"])))
attempt("unix", lambda: connect(socket.AF_UNIX, given["unix"]))
attempt("abstract", lambda: connect(socket.AF_UNIX, "\0" + given["abstract"]))
attempt("udp", datagram)
attempt("signal", send_signal)
attempt("inner namespace", inner_namespace)
attempt("big file", big_file)
attempt("big memory", big_memory)
attempt("much in files", much_in_files)
for name in os.listdir("."):
    if name.startswith(("big", "much")):
        os.unlink(name)
attempt("many files", many_files)
done["root"] = 0 in os.getresuid() or 0 in os.getresgid()
libc = ctypes.CDLL(None)
done["new privileges"] = libc.prctl(39, 0, 0, 0, 0) != 1
done["filtered"] = libc.prctl(21, 0, 0, 0, 0) == 2
done["capabilities"] = any(libc.prctl(23, number, 0, 0, 0) == 1 and os.geteuid() == 0 for number in range(41))
done["cpu"] = resource.getrlimit(resource.RLIMIT_CPU)[1] == resource.RLIM_INFINITY
print(json.dumps(done), flush=True)
forked = 0
while forked < given["processes"] + 20:
    try:
        pid = os.fork()
    except OSError:
        break
    if pid == 0:
        os.setsid()
        time.sleep(3)
        os._exit(0)
    forked += 1
print(json.dumps({"forked": forked}), flush=True)
"""


@functools.lru_cache(maxsize=64)
def in_force(without: frozenset[Mechanism] = frozenset(), python: str = sys.executable) -> frozenset[Facility]:
    """What holds on this machine, found by attacking it. Takes about a tenth of a second, once.

    Raises:
        SandboxError: if programs cannot be run here at all.
    """
    ground = explore(without)
    interpreter = python_at(python)
    with _targets() as targets:
        given = {
            **targets,
            "secret": _SECRET,
            "own_numbers": Mechanism.PID_NAMESPACE in ground.mechanisms,
            "processes": _LIMITS.processes,
            "file_bytes": _LIMITS.file_bytes,
            "memory_bytes": _LIMITS.memory_bytes,
            "folder_bytes": _LIMITS.folder_bytes,
            "folder_files": _LIMITS.folder_files,
        }
        step = make_step(
            [interpreter.executable, "-I", "-S", "-B", "main.py"],
            _LIMITS,
            environment={},
            stdin=json.dumps(given),
            flood=FLOOD,
        )
        job = make_job(ground.plan.write(), interpreter.readable, {"main.py": _ATTACKS}, _LIMITS, [step])
        supervisor = Supervisor()
        try:
            report = supervisor.run(job)
        finally:
            supervisor.stop()
    return _judge(report, ground)


@contextlib.contextmanager
def _targets() -> Iterator[dict[str, Any]]:
    """Things outside that must not be reached: a file, a folder, sockets, this process."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="unspool-probe-")))
        folder.chmod(0o755)
        (folder / "secret").write_text(_SECRET)
        (folder / "secret").chmod(0o644)
        (folder / "open").mkdir()
        (folder / "open").chmod(0o777)
        name = f"unspool-{os.urandom(8).hex()}"
        tcp, udp = socket.socket(socket.AF_INET), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        unix, abstract = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
        for bound, address in (
            (tcp, ("127.0.0.1", 0)),
            (udp, ("127.0.0.1", 0)),
            (unix, str(folder / "socket")),
            (abstract, "\0" + name),
        ):
            stack.enter_context(bound)
            bound.bind(address)
            if bound is not udp:
                bound.listen(1)
        (folder / "socket").chmod(0o777)
        yield {
            "file": str(folder / "secret"),
            "folder": str(folder / "open"),
            "tcp": tcp.getsockname()[1],
            "udp": udp.getsockname()[1],
            "unix": str(folder / "socket"),
            "abstract": name,
            "process": os.getpid(),
        }


def _judge(report: Mapping[str, Any], ground: Ground) -> frozenset[Facility]:
    if "why" in report or not report["steps"]:
        raise SandboxError(f"programs cannot be run here: {report.get('why', 'the jail ended at once')}")
    step = report["steps"][0]
    lines = step["stdout"].splitlines()
    if not lines:
        raise SandboxError(f"the sandbox cannot be tried out: {step['stderr'].strip() or step['killed']}")
    worked = json.loads(lines[0])
    forked = json.loads(lines[1])["forked"] if len(lines) > 1 else 0
    stopped = step["killed"] == "processes"
    holds = {
        Facility.RESOURCE_LIMITS: not (worked["big file"] or worked["big memory"] or worked["cpu"]),
        Facility.PROCESS_LIMIT: stopped or (len(lines) > 1 and forked <= _LIMITS.processes + 1),
        # The supervisor reports only when it has no child left, and the forks above tried to leave.
        Facility.WHOLE_TREE: True,
        Facility.NO_NETWORK: not any(worked[name] for name in ("tcp", "udp", "unix", "abstract")),
        Facility.NO_READING: not worked["read"],
        Facility.NO_WRITING: not (worked["write"] or worked["change"]),
        Facility.NO_SIGNALS: not worked["signal"],
        Facility.NO_PRIVILEGES: not any(
            worked[name] for name in ("root", "new privileges", "capabilities", "inner namespace")
        ),
        Facility.FOLDER_LIMIT: not (worked["many files"] or worked["much in files"]),
        Facility.SYSTEM_CALLS: worked["filtered"] and Mechanism.SECCOMP in ground.mechanisms,
    }
    return frozenset(facility for facility, is_so in holds.items() if is_so)


def describe(facilities: frozenset[Facility], ground: Ground) -> str:
    """What is in force, what is not, and what it is made of, for people to read."""
    lines = ["In force here (each was tried):"]
    lines += [f"  {facility}: {facility.meaning}" for facility in Facility if facility in facilities]
    if missing := [facility for facility in Facility if facility not in facilities]:
        lines.append("NOT in force here:")
        lines += [f"  {facility}" for facility in missing]
    lines.append("Made of:")
    lines += [f"  {mechanism}: {mechanism.meaning}" for mechanism in Mechanism if mechanism in ground.mechanisms]
    if ground.absent:
        lines.append("Not used:")
        lines += [f"  {mechanism}: {reason}" for mechanism, reason in ground.absent.items()]
    return "\n".join(lines)
