"""What this machine lets a sandbox be made of. Found by building one, and leaving out what fails until one stands."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from unspool.programs import filters
from unspool.programs.program import FLOOD, Limits, SandboxError
from unspool.programs.supervisor import plan as parts
from unspool.programs.supervisor.plan import Plan
from unspool.programs.worker import Supervisor, make_job, make_step


class Mechanism(StrEnum):
    """What a sandbox can be made of."""

    OWN_USER = parts.OWN_USER
    USER_NAMESPACE = parts.USER
    MOUNT_NAMESPACE = parts.MOUNT
    PID_NAMESPACE = parts.PID
    NETWORK_NAMESPACE = parts.NETWORK
    IPC_NAMESPACE = parts.IPC
    UTS_NAMESPACE = parts.UTS
    PROC = parts.PROC
    LANDLOCK = parts.LANDLOCK
    SECCOMP = parts.SECCOMP
    SECCOMP_LISTENER = parts.LISTENER

    @property
    def meaning(self) -> str:
        return _MEANINGS[self]


_MEANINGS = {
    Mechanism.OWN_USER: "each program runs as an unprivileged user of its own",
    Mechanism.USER_NAMESPACE: "what is inside has no rights outside, and its processes are counted apart",
    Mechanism.MOUNT_NAMESPACE: "a view of the file system with the system, the interpreter and one folder in memory",
    Mechanism.PID_NAMESPACE: "no other process is seen, and all end with the first",
    Mechanism.NETWORK_NAMESPACE: "a network without any interface",
    Mechanism.IPC_NAMESPACE: "no shared memory or queues of others",
    Mechanism.UTS_NAMESPACE: "a host name of its own",
    Mechanism.PROC: "/proc shows the program's own processes",
    Mechanism.LANDLOCK: "the kernel confines files (and TCP and signals, where new enough)",
    Mechanism.SECCOMP: "dangerous system calls are refused",
    Mechanism.SECCOMP_LISTENER: "and what was refused is reported",
}

_NAMESPACES = frozenset({parts.MOUNT, parts.PID, parts.NETWORK, parts.IPC, parts.UTS})
# A view needs process numbers of its own: without them nothing could be mounted at its /proc.
_NEEDS = {parts.PROC: parts.MOUNT, parts.MOUNT: parts.PID, parts.LISTENER: parts.SECCOMP}
_REHEARSAL = Limits(processes=4, wall_seconds=20.0)

SYSTEM = (
    "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store", "/gnu/store", "/etc/alternatives",
    "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/localtime",
)  # fmt: skip
"""What every program may read: programs, libraries, and how they are found."""


@dataclass(frozen=True)
class Ground:
    """What is used here, and why the rest is not.

    Attributes:
        plan: how jails are built.
        absent: mechanisms that are not used, each with the reason.
    """

    plan: Plan
    absent: Mapping[Mechanism, str]

    @property
    def mechanisms(self) -> frozenset[Mechanism]:
        return frozenset(Mechanism(part) for part in self.plan.parts)


@functools.lru_cache(maxsize=64)
def explore(without: frozenset[Mechanism] = frozenset()) -> Ground:
    """Find out what can be used, but for what is to be left alone. Takes some tens of milliseconds, once.

    Raises:
        SandboxError: if not even processes can be started and limited.
    """
    absent: dict[str, str] = dict.fromkeys(without, "switched off")
    root = os.geteuid() == 0
    if not root:
        absent.setdefault(parts.OWN_USER, "only root can become another user")
    if (reason := filters.missing()) is not None:
        absent.setdefault(parts.SECCOMP, reason)
    privileged = root
    supervisor = Supervisor()
    try:
        while True:
            plan = _plan(absent, privileged)
            report = supervisor.run(make_job(plan.write(), SYSTEM, {}, _REHEARSAL, [_rehearsal()]))
            failed = report.get("failed")
            if failed is None:
                break
            if not failed or failed in absent:
                raise SandboxError(f"programs cannot be run here: {report['why']}")
            if privileged and failed in _NAMESPACES:
                # Root of a container: what it is refused, an ordinary user with a namespace of users may get.
                privileged = False
                continue
            absent[failed] = report["why"]
    finally:
        supervisor.stop()
    if "forked" not in report:
        raise SandboxError("programs cannot be run here: a rehearsal ended too early")
    forked = report["forked"]
    if forked != _REHEARSAL.processes - 1:  # one of them was who counted
        plan = replace(plan, own_count=False)
    reasons = {Mechanism(part): why for part, why in absent.items()}
    for mechanism in Mechanism:
        if mechanism not in plan.parts:
            needed = _NEEDS.get(mechanism)
            reasons.setdefault(mechanism, f"needs the {needed}" if needed else "the mount namespace takes its place")
    return Ground(plan, dict(sorted(reasons.items())))


def _plan(absent: Mapping[str, str], privileged: bool) -> Plan:
    used = {part.value for part in Mechanism} - absent.keys()
    for part in (parts.MOUNT, parts.PROC, parts.LISTENER):  # in the order in which one needs the other
        if _NEEDS[part] not in used:
            used.discard(part)
    if parts.MOUNT in used:
        used.discard(parts.LANDLOCK)
    if parts.SECCOMP not in used:
        return Plan(frozenset(used), privileged)
    made = filters.compile_filter(
        listen=parts.LISTENER in used,
        own_processes=parts.PID in used,
        own_files=parts.MOUNT in used and parts.NETWORK in used,
    )
    return Plan(frozenset(used), privileged, filter=made.program, names=made.names)


def _rehearsal() -> dict[str, object]:
    return make_step(None, _REHEARSAL, environment={}, flood=FLOOD)
