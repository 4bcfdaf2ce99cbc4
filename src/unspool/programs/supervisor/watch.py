"""A job from the outside: what the program writes is read and cut, what it uses is added up, and it is stopped."""

from __future__ import annotations

import fcntl
import json
import os
import select
import selectors
import signal
import socket
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from unspool.programs.supervisor import folder, linux, plan, tree, users, view
from unspool.programs.supervisor.jail import Jail
from unspool.programs.supervisor.plan import Job, Step
from unspool.programs.supervisor.start import Pipes

_POLL = 0.02
_SETUP_SECONDS = 20.0
_CHUNK = 1 << 16
_SECRET_BYTES = 32
_REFUSALS = 16  # told apart; what is refused after that is refused, and not noted

# linux/seccomp.h: struct seccomp_notif {id, pid, flags, {nr, arch, ip, args[6]}}, struct seccomp_notif_resp
_NOTIFICATION, _RESPONSE = struct.Struct("QIIiIQ6Q"), struct.Struct("QqiI")
_RECEIVE, _RESPOND = 0xC0502100, 0xC0182101
_EPERM, _AF_NAMES = 1, {family.value: family.name for family in socket.AddressFamily}


@dataclass
class Stream:
    """What is kept of an output: its first `limit` bytes."""

    descriptor: int
    limit: int
    kept: bytearray = field(default_factory=bytearray)
    total: int = 0

    def read(self) -> bool:
        """Take what is there; False at its end."""
        try:
            chunk = os.read(self.descriptor, _CHUNK)
        except BlockingIOError:
            return True
        self.total += len(chunk)
        self.kept += chunk[: max(0, self.limit - len(self.kept))]
        return bool(chunk)

    def drain(self, flood: int) -> None:
        """Take what is left when all writers are gone, up to a bound that only a reader too slow could meet."""
        while self.total <= flood:
            before = self.total
            if not self.read() or self.total == before:
                return


@dataclass
class Running:
    """A step, its ends of the pipes, and what was seen of it."""

    step: Step
    pipes: Pipes
    stdout: Stream
    stderr: Stream
    verdict: int | None
    secret: bytes
    started: float | None = None
    seconds: float = 0.0
    cpu: float = 0.0
    cpu_before: float = 0.0
    memory: int = 0
    status: int | None = None
    killed: str | None = None
    refused: dict[str, None] = field(default_factory=dict)

    def report(self) -> dict[str, Any]:
        """What the supervisor tells of it."""
        for stream in (self.stdout, self.stderr):
            stream.drain(self.step.flood_bytes)
        return {
            "status": self.status,
            "killed": self.killed,
            "seconds": self.seconds,
            "cpu_seconds": self.cpu,
            "peak_bytes": self.memory,
            "stdout": self.stdout.kept.decode("utf-8", "replace"),
            "stderr": self.stderr.kept.decode("utf-8", "replace"),
            "truncated": any(stream.total > stream.limit for stream in (self.stdout, self.stderr)),
            "finished": self._is_finished(),
            "refused": list(self.refused),
        }

    def _is_finished(self) -> bool:
        if self.verdict is None:
            return True
        try:
            return os.read(self.verdict, 2 * _SECRET_BYTES) == self.secret
        except BlockingIOError:
            return False

    def close(self) -> None:
        """Close every descriptor."""
        self.close_inner()
        for descriptor in (self.stdout.descriptor, self.stderr.descriptor, self.verdict):
            if descriptor is not None:
                os.close(descriptor)

    def close_inner(self) -> None:
        """Close the program's ends; once."""
        ends = self.pipes
        for descriptor in (ends.stdin, ends.stdout, ends.stderr, ends.secret, ends.verdict):
            if descriptor is not None and descriptor >= 0:
                os.close(descriptor)
        self.pipes = Pipes(-1, -1, -1, None, None)


def prepare(step: Step) -> Running:
    """Open the pipes of a step."""
    stdin = os.memfd_create("stdin", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(stdin, "wb", closefd=False) as file:
        file.write(step.stdin)
    os.lseek(stdin, 0, os.SEEK_SET)
    fcntl.fcntl(stdin, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    out, out_end = os.pipe()
    err, err_end = os.pipe()
    secret, secret_end, verdict, verdict_end = b"", None, None, None
    if step.judged:
        secret = os.urandom(_SECRET_BYTES)
        secret_end, feed = os.pipe()
        os.write(feed, secret)
        os.close(feed)
        verdict, verdict_end = os.pipe()
        os.set_blocking(verdict, False)
    for descriptor in (out, err):
        os.set_blocking(descriptor, False)
    pipes = Pipes(stdin, out_end, err_end, secret_end, verdict_end)
    return Running(step, pipes, Stream(out, step.output_bytes), Stream(err, step.output_bytes), verdict, secret)


class Watch:
    """Runs one job and reports on it."""

    def __init__(self, job: Job, host: int) -> None:
        self.job, self.host = job, host
        self.steps = [prepare(step) for step in job.steps]
        self.listeners: set[int] = set()
        self.current: Running | None = None
        self.builder = 0
        self.notes: dict[str, Any] = {}
        self.selector = selectors.DefaultSelector()

    def run(self) -> dict[str, Any]:
        """The report: `steps`, one entry for each that was started, and `failed`/`why` if the jail was not made."""
        parts = self.job.plan.parts
        try:
            user = users.choose() if plan.OWN_USER in parts else None
        except OSError as error:
            return {"steps": [], "failed": plan.OWN_USER, "why": error.strerror}
        own_folder = None if plan.MOUNT in parts else folder.make(user)
        channel, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            jail = Jail(self.job, far, [running.pipes for running in self.steps], own_folder or view.FOLDER, user)
            self.builder = jail.start()
            far.close()
            try:
                for running in self.steps:
                    running.close_inner()
                self._watch(channel)
            finally:
                tree.end(self.builder)
            reports = [running.report() for running in self.steps if running.started is not None]
            return {"steps": reports, **self.notes}
        finally:
            self.selector.close()
            channel.close()
            for running in self.steps:
                running.close()
            for listener in self.listeners:
                os.close(listener)
            if own_folder is not None:
                folder.remove(os.path.dirname(own_folder))

    def _watch(self, channel: socket.socket) -> None:
        """Until the last step has ended, or something has to be stopped."""
        self.selector.register(channel, selectors.EVENT_READ, "channel")
        self.selector.register(self.host, selectors.EVENT_READ, "host")
        made_by = time.monotonic() + _SETUP_SECONDS
        polled = time.monotonic()
        while True:
            for key, _ in self.selector.select(self._patience()):
                if key.data == "channel":
                    if not self._hear(channel):
                        return
                elif key.data == "host":
                    raise EOFError("whoever started this supervisor has ended or has lost patience")
                elif key.data == "listener":
                    self._refuse(key.fd)
                elif not key.data.read():
                    self._forget(key.fd)
            now = time.monotonic()
            if self.current is None:
                if now > made_by and "failed" not in self.notes:
                    self.notes = {"failed": "", "why": f"the jail was not made within {_SETUP_SECONDS:g} s"}
                    return
                continue
            if now - polled >= _POLL:
                polled = now
                self._measure(self.current)
            self._judge(self.current, now)
            if self.current.killed is not None:
                self.current.seconds = time.monotonic() - (self.current.started or now)
                return

    def _patience(self) -> float:
        if self.current is None or self.current.started is None:
            return 0.2
        left = self.current.started + self.current.step.wall_seconds - time.monotonic()
        return max(0.0, min(_POLL, left))

    def _hear(self, channel: socket.socket) -> bool:
        """Take a message from inside; False when there will be no more."""
        data, descriptors, _, _ = socket.recv_fds(channel, 1 << 16, 1)
        for descriptor in descriptors:
            self.listeners.add(descriptor)
            self.selector.register(descriptor, selectors.EVENT_READ, "listener")
        if not data:
            if self.current is not None and self.current.status is None:
                self.current.killed = "keeper"  # only the program can have ended it
            return False
        message: Mapping[str, Any] = json.loads(data)
        if "started" in message:
            self._start(self.steps[message["started"]])
        elif "ended" in message and self.current is not None:
            running = self.current
            running.status = message["status"]
            running.seconds = time.monotonic() - (running.started or 0.0)
            running.memory = max(running.memory, message["peak"])
            running.cpu = max(running.cpu, message["cpu"])
            self.current = None
            self._mute(running)
        elif not descriptors:
            self.notes.update(message)
        return True

    def _start(self, running: Running) -> None:
        self.current = running
        running.started = time.monotonic()
        keepers = tree.descendants(self.builder)[:1]
        running.cpu_before = sum(tree.waited_cpu(keeper) for keeper in keepers)
        for stream in (running.stdout, running.stderr):
            self.selector.register(stream.descriptor, selectors.EVENT_READ, stream)

    def _mute(self, running: Running) -> None:
        for stream in (running.stdout, running.stderr):
            self._forget(stream.descriptor)

    def _forget(self, descriptor: int) -> None:
        """Watch it no longer; it may have come to its end before, or within the same round."""
        if descriptor in self.selector.get_map():
            self.selector.unregister(descriptor)

    def _measure(self, running: Running) -> None:
        """Add up what everything below the keeper uses now."""
        below = tree.descendants(self.builder)
        keeper, others = below[:1], below[1:]
        used = tree.usage(others)
        waited = sum(tree.waited_cpu(pid) for pid in keeper) - running.cpu_before
        running.cpu = max(running.cpu, used.cpu + waited)
        memory = used.memory
        if memory > running.step.memory_bytes and len(others) > 1:
            memory = tree.shared_memory(others)
        running.memory = max(running.memory, memory)
        if memory > running.step.memory_bytes:
            running.killed = "memory"
        elif len(others) > running.step.processes and running.step.argv is not None:
            running.killed = "processes"

    def _judge(self, running: Running, now: float) -> None:
        """Whether the step has to be stopped, for something that needs no measuring."""
        step = running.step
        if running.killed is None and running.started is not None:
            if now - running.started >= step.wall_seconds:
                running.killed = "wall"
            elif running.cpu >= step.cpu_seconds:
                running.killed = "cpu"
            elif running.stdout.total + running.stderr.total > step.flood_bytes:
                running.killed = "output"

    def _refuse(self, listener: int) -> None:
        """Answer a system call that the filter holds back: no. Note which it was."""
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        if not any(event & select.POLLIN for _, event in poll.poll(0)):  # all who used the filter are gone
            self._forget(listener)
            self.listeners.discard(listener)
            os.close(listener)
            return
        buffer = bytearray(_NOTIFICATION.size)
        try:
            fcntl.ioctl(listener, _RECEIVE, buffer)
            identity, _, _, number, _, _, first, *_ = _NOTIFICATION.unpack(buffer)
            fcntl.ioctl(listener, _RESPOND, bytearray(_RESPONSE.pack(identity, 0, -_EPERM, 0)))
        except FileNotFoundError:
            return  # the caller was killed in between
        name = self.job.plan.names.get(number, f"system call {number}")
        if name == "socket":
            name += f" ({_AF_NAMES.get(first & 0xFFFFFFFF, first)})"
        if self.current is not None and len(self.current.refused) < _REFUSALS:
            self.current.refused[name] = None


def run(job: Job, host: int) -> dict[str, Any]:
    """Run one job; `host` is the descriptor whose end of file means to stop.

    Raises:
        EOFError: when that happens, after everything has been stopped and deleted.
    """
    return Watch(job, host).run()


def settle() -> None:
    """Make this process fit to supervise, whatever signals it was told to ignore."""
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    linux.set_dumpable(False)
    linux.adopt_orphans()
