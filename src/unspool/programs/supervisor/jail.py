"""The jail from the inside: the builder, and the keeper that it becomes the parent of."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
from contextlib import suppress
from typing import Any, NoReturn

from unspool.programs.supervisor import linux, plan, tree, users, view
from unspool.programs.supervisor.plan import Job, StageError, Step, part
from unspool.programs.supervisor.start import Pipes, become_program

_FLAGS = {
    plan.MOUNT: linux.CLONE_NEWNS,
    plan.PID: linux.CLONE_NEWPID,
    plan.NETWORK: linux.CLONE_NEWNET,
    plan.IPC: linux.CLONE_NEWIPC,
    plan.UTS: linux.CLONE_NEWUTS,
}


class Jail:
    """One job's jail. All that runs in it is below the process that `start` makes.

    Attributes:
        folder: where the program works, as it sees the path.
    """

    def __init__(self, job: Job, channel: socket.socket, pipes: list[Pipes], folder: str, user: int | None) -> None:
        self.job, self.channel, self.pipes, self.folder, self.user = job, channel, pipes, folder, user
        self.parts = job.plan.parts

    def start(self) -> int:
        """Fork the builder; returns its process number."""
        return self._fork(self._build)

    def _fork(self, action: Any) -> int:
        """Fork a process that does `action` and never returns from here."""
        pid = os.fork()
        if pid:
            return pid
        try:
            action()
            os._exit(0)
        except StageError as error:
            self.tell(failed=error.part, why=error.why)
        except BaseException as error:  # noqa: BLE001  a fork must not go on as its parent
            frame = error.__traceback__
            while frame is not None and frame.tb_next is not None:
                frame = frame.tb_next
            place = f"line {frame.tb_lineno} of {frame.tb_frame.f_code.co_name}" if frame else "?"
            self.tell(failed="", why=f"{type(error).__name__}: {error} ({place})")
        finally:
            os._exit(1)

    def tell(self, **message: Any) -> None:
        """Send a message to the supervisor; whoever sends one that it does not hear is alone and ends."""
        try:
            self.channel.send(json.dumps(message).encode())
        except OSError:
            os._exit(1)

    # -- the builder ---------------------------------------------------------------------------------------------

    def _build(self) -> None:
        linux.die_with_parent()
        for handled in (signal.SIGINT, signal.SIGTERM):
            signal.signal(handled, signal.SIG_DFL)  # so that the program cannot reach process 1 with any signal
        nothing = os.open("/dev/null", os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(nothing, number)
        os.setsid()
        _expose_to_memory_killer()
        if not self.job.plan.privileged:
            if self.user is not None:
                with part(plan.OWN_USER):
                    users.become(self.user)
            if plan.USER in self.parts:
                with part(plan.USER):
                    enter_user_namespace()
        for name, flag in _FLAGS.items():
            if name in self.parts:
                with part(name):
                    linux.unshare(flag)
        linux.die_with_parent()
        if plan.UTS in self.parts:
            with part(plan.UTS):
                linux.set_hostname("sandbox")
        if plan.MOUNT in self.parts:
            with part(plan.MOUNT):
                view.build(
                    self.job.readable,
                    folder_bytes=self.job.folder_bytes,
                    folder_files=self.job.folder_files,
                    owner=self.user if self.job.plan.privileged else None,
                )
        keeper = self._fork(self._keep)
        # Nothing of the job is left here but the wait: the supervisor kills this process, and with it the keeper.
        os.waitpid(keeper, 0)

    # -- the keeper ----------------------------------------------------------------------------------------------

    def _keep(self) -> None:
        linux.adopt_orphans()
        if plan.USER in self.parts and not self.job.plan.privileged:
            forbid_user_namespaces()
        if plan.MOUNT in self.parts:
            if plan.PROC in self.parts:
                with part(plan.PROC):
                    view.mount_proc()
            with part(plan.MOUNT):
                view.enter()
        if self.job.plan.privileged:
            if self.user is not None:
                with part(plan.OWN_USER):
                    users.become(self.user)
            if plan.USER in self.parts:
                with part(plan.USER):
                    enter_user_namespace()
                forbid_user_namespaces()
        linux.set_dumpable(False)
        linux.die_with_parent()
        self.channel.setblocking(False)
        try:
            if self.channel.recv(1, socket.MSG_PEEK) == b"":
                return  # the supervisor ended before `die_with_parent` could tell
        except BlockingIOError:
            pass
        self.channel.setblocking(True)
        self._lay_out_files()
        for number, step in enumerate(self.job.steps):
            if not self._run(number, step):
                return

    def _lay_out_files(self) -> None:
        os.umask(0o077)
        os.chdir(self.folder)
        for name, content in self.job.files.items():
            if os.path.dirname(name):
                os.makedirs(os.path.dirname(name), exist_ok=True)
            with open(name, "xb") as file:
                file.write(content)

    def _run(self, number: int, step: Step) -> bool:
        """Run a step to the end of everything it started; whether it succeeded."""
        self.tell(started=number)
        before = _children_cpu()
        program = self._fork(lambda: self._become(number, step))
        peak = 0
        status = None
        while status is None:
            pid, ended, used = os.wait4(-1, 0)
            peak = max(peak, used.ru_maxrss * 1024)
            if pid == program:
                status = ended
        self._sweep()
        self.tell(ended=number, status=status, peak=peak, cpu=_children_cpu() - before)
        return status == 0

    def _become(self, number: int, step: Step) -> NoReturn:
        become_program(self, step, self.pipes[number])

    def _sweep(self) -> None:
        """End what the step has left behind."""
        while True:
            if plan.PID in self.parts:
                with suppress(ProcessLookupError):
                    os.kill(-1, signal.SIGKILL)
            else:
                for number in (signal.SIGSTOP, signal.SIGKILL):
                    for pid in tree.descendants(os.getpid()):
                        with suppress(ProcessLookupError):
                            os.kill(pid, number)
            try:
                while os.waitpid(-1, os.WNOHANG if plan.PID not in self.parts else 0)[0]:
                    pass
            except ChildProcessError:
                return


def _children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def enter_user_namespace() -> None:
    """A namespace of users in which the caller has every right, and outside of it none. It is user 1000 there: not the
    root of anything, so that nothing it executes keeps a right."""
    user, group = os.getuid(), os.getgid()
    linux.set_dumpable(True)  # the files below belong to root otherwise
    linux.unshare(linux.CLONE_NEWUSER)
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{view.USER} {user} 1"),
        ("gid_map", f"{view.USER} {group} 1"),
    ):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)


def forbid_user_namespaces() -> None:
    """No namespace of users can be made inside this one; in one of its own a program could mount memory."""
    # Without /proc this is left to the filter of system calls.
    with suppress(OSError), open("/proc/sys/user/max_user_namespaces", "w", encoding="ascii") as file:
        file.write("0")


def _expose_to_memory_killer() -> None:
    """When the machine runs out of memory, the kernel shall end this and not the process with the model."""
    # A container may forbid it; nothing else depends on it.
    with suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("1000")
