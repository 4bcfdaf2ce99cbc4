"""Which system calls a program may not make, as a BPF program. Compiled by libseccomp through pyseccomp.

The filter lists what is refused and lets the rest through: model-written programs use everything that ordinary programs
use. What is refused is what opens a way around the other walls (new namespaces, mounts, the network, looking into other
processes, memory that no limit counts) or has a record of faults in the kernel (io_uring, bpf, keys, userfaultfd).
"""

from __future__ import annotations

import errno
import functools
import importlib
import platform
import socket
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Refused with "Operation not permitted", and noted where the kernel can tell the supervisor.
_TOLD = (
    "acct", "add_key", "adjtimex", "bpf", "chroot", "clock_adjtime", "clock_settime", "create_module",
    "delete_module", "fanotify_init", "finit_module", "fsconfig", "fsmount", "fsopen", "fspick", "init_module",
    "ioperm", "iopl", "kcmp", "kexec_file_load", "kexec_load", "keyctl", "lookup_dcookie", "memfd_secret", "mount",
    "mount_setattr", "move_mount", "msgget", "name_to_handle_at", "nfsservctl", "open_by_handle_at", "open_tree",
    "perf_event_open", "pidfd_getfd", "pivot_root", "process_madvise", "process_vm_readv", "process_vm_writev",
    "ptrace", "quotactl", "quotactl_fd", "reboot", "request_key", "semget", "setdomainname", "setfsgid", "setfsuid",
    "sethostname", "setns", "settimeofday", "shmget", "swapoff", "swapon", "syslog", "umount", "umount2", "unshare",
    "userfaultfd", "vhangup",
)  # fmt: skip
# Refused as if this kernel did not have them: libraries try them and go on without.
_UNKNOWN = ("clone3", "io_uring_enter", "io_uring_register", "io_uring_setup", "memfd_create")
_NAMESPACE_FLAGS = (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000)
_ARCHITECTURES = ("x86_64", "aarch64", "riscv64")


@dataclass(frozen=True)
class Filter:
    """A BPF program, and the names of the calls that it tells of by number."""

    program: bytes
    names: Mapping[int, str]


def _library() -> Any:
    try:
        return importlib.import_module("pyseccomp")
    except ImportError:
        return None
    except RuntimeError:  # pyseccomp is there, and the C library that it calls is not
        return None


def missing() -> str | None:
    """Why no filter can be made, and what would help; None if one can."""
    if platform.machine() not in _ARCHITECTURES:
        return f"not tried on {platform.machine()}"
    if _library() is None:
        return "needs pyseccomp (pip install 'unspool[sandbox]') and the system's libseccomp"
    return None


@functools.cache
def compile_filter(*, listen: bool, own_processes: bool, own_files: bool) -> Filter:
    """The filter for a jail.

    Args:
        listen: what is refused is told to a listener (which answers), instead of being refused by the kernel alone.
        own_processes: the jail has a process namespace; else signals to "all processes" are refused as well.
        own_files: the jail has a view and a network of its own; else sockets in folders are refused as well.
    """
    seccomp = _library()
    told = seccomp.NOTIFY if listen else seccomp.ERRNO(errno.EPERM)
    made = seccomp.SyscallFilter(seccomp.ALLOW)
    names: dict[int, str] = {}

    def refuse(action: int, name: str, *conditions: Any) -> None:
        number = seccomp.resolve_syscall(seccomp.Arch.NATIVE, name)
        if number < 0:
            return  # this architecture has no such call
        made.add_rule(action, number, *conditions)
        names[number] = name

    for name in _TOLD:
        refuse(told, name)
    for name in _UNKNOWN:
        refuse(seccomp.ERRNO(errno.ENOSYS), name)
    for flag in _NAMESPACE_FLAGS:
        refuse(told, "clone", seccomp.Arg(0, seccomp.MASKED_EQ, flag, flag))
    # Arguments that are a C int may arrive with anything in their upper half.
    low = 0xFFFFFFFF
    if own_files:
        for family in range(socket.AF_INET, 64):
            refuse(told, "socket", seccomp.Arg(0, seccomp.MASKED_EQ, low, family))
    else:
        refuse(told, "socket")
    refuse(seccomp.ERRNO(errno.EPERM), "prlimit64", seccomp.Arg(0, seccomp.GT, 0))
    if not own_processes:
        refuse(told, "kill", seccomp.Arg(0, seccomp.MASKED_EQ, low, low))
    with tempfile.TemporaryFile() as file:
        made.export_bpf(file)
        file.seek(0)
        return Filter(file.read(), names)
