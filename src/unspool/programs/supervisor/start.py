"""The last moments before a program: its descriptors, its limits, what it gives up, its filter."""

from __future__ import annotations

import fcntl
import json
import math
import os
import resource
import signal
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from unspool.programs.supervisor import landlock, linux, plan, users, view
from unspool.programs.supervisor.plan import part

if TYPE_CHECKING:
    from unspool.programs.supervisor.jail import Jail
    from unspool.programs.supervisor.plan import Plan, Step

OPEN_FILES = 256
_STACK = 64 * 2**20
_OTHERS = 64  # processes that the user's other work may start meanwhile, where the kernel counts them along
_HIGH = 128  # descriptors of the verdict get numbers from here on, out of the way of the program's


@dataclass(frozen=True)
class Pipes:
    """The ends that a program gets: three streams, and for a judged one where the secret comes from and goes to."""

    stdin: int
    stdout: int
    stderr: int
    secret: int | None
    verdict: int | None


def become_program(jail: Jail, step: Step, pipes: Pipes) -> NoReturn:
    """Turn this process, just forked by the keeper, into the program of a step."""
    os.setsid()
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # by Python, and exec would pass that on
        signal.signal(ignored, signal.SIG_DFL)
    for number, stream in enumerate((pipes.stdin, pipes.stdout, pipes.stderr)):
        os.dup2(stream, number)
    arguments = list(step.argv or ())
    if pipes.secret is not None and pipes.verdict is not None:
        for inherited in (pipes.secret, pipes.verdict):
            high = fcntl.fcntl(inherited, fcntl.F_DUPFD, _HIGH)
            os.set_inheritable(high, True)
            arguments.append(str(high))
    _limit(step, jail.job.plan)
    linux.no_new_privileges()
    try:
        linux.drop_capabilities()
    except PermissionError:
        if os.geteuid() == 0:
            raise  # an ordinary user has none to drop
    if plan.LANDLOCK in jail.parts and plan.MOUNT not in jail.parts:
        _confine(jail)
    if plan.SECCOMP in jail.parts:
        _filter(jail)
    if step.argv is None:
        jail.tell(forked=_count_forks(step.processes))
        os._exit(0)
    environment = {**step.environment, "HOME": jail.folder, "TMPDIR": _temporary(jail)}
    try:
        os.execve(arguments[0], arguments, environment)
    except OSError as error:
        jail.tell(unstartable=arguments[0], why=error.strerror)
        os._exit(127)


def _temporary(jail: Jail) -> str:
    return "/tmp" if plan.MOUNT in jail.parts else jail.folder


def _limit(step: Step, made: Plan) -> None:
    seconds = math.ceil(step.cpu_seconds)
    # The keeper counts as well, and the builder where it belongs to the same user.
    processes = step.processes + (1 if made.privileged else 2)
    if not made.own_count:
        processes += users.count_tasks(os.getuid()) + _OTHERS
    wanted = {
        resource.RLIMIT_CPU: (seconds, seconds + 1),
        resource.RLIMIT_DATA: (step.memory_bytes, step.memory_bytes),
        resource.RLIMIT_FSIZE: (step.file_bytes, step.file_bytes),
        resource.RLIMIT_NPROC: (processes, processes),
        resource.RLIMIT_NOFILE: (OPEN_FILES, OPEN_FILES),
        resource.RLIMIT_MSGQUEUE: (0, 0),
        resource.RLIMIT_MEMLOCK: (0, 0),
        resource.RLIMIT_CORE: (0, 0),
    }
    if step.address_space:
        wanted[resource.RLIMIT_AS] = (step.address_space, step.address_space)
    soft, _ = resource.getrlimit(resource.RLIMIT_STACK)
    stack = _STACK if soft == resource.RLIM_INFINITY else min(soft, _STACK)
    wanted[resource.RLIMIT_STACK] = (stack, _STACK)
    for what, (low, high) in wanted.items():
        _, most = resource.getrlimit(what)
        if most != resource.RLIM_INFINITY:
            low, high = min(low, most), min(high, most)
        resource.setrlimit(what, (low, high))


def _confine(jail: Jail) -> None:
    with part(plan.LANDLOCK):
        landlock.confine((*jail.job.readable, "/proc"), view.DEVICES, jail.folder)


def _filter(jail: Jail) -> None:
    listen = plan.LISTENER in jail.parts
    with part(plan.LISTENER if listen else plan.SECCOMP):
        listener = linux.install_filter(jail.job.plan.filter, listen=listen)
    if listener is not None:
        socket.send_fds(jail.channel, [json.dumps({"listener": True}).encode()], [listener])
        os.close(listener)


def _count_forks(limit: int) -> int:
    """How many children the limit of processes really allows, up to a few more than it should."""
    forked = 0
    while forked < limit + 8:
        try:
            pid = os.fork()
        except BlockingIOError:
            break
        if pid == 0:
            signal.pause()
            os._exit(0)
        forked += 1
    return forked
