"""The system calls that Python does not offer, by ctypes: namespaces, mounts, process control, filters.

Manual pages: prctl(2), unshare(2), mount(2), mount_setattr(2), pivot_root(2), seccomp(2), capabilities(7).
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
MNT_DETACH = 2
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC = 1, 2, 4, 8

_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_CAPBSET_READ, _PR_CAPBSET_DROP = 1, 4, 23, 24
_PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS, _PR_SET_SECUREBITS = 36, 38, 28
_SECUREBITS_NO_ROOT = 0b1111  # NOROOT and NO_SETUID_FIXUP, both locked: user 0 is a user like any other
_SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_NEW_LISTENER = 1, 8

# Numbers from 424 on are the same on every architecture; older ones are not.
_NR_MOUNT_SETATTR = 442
_NR = {
    "x86_64": {"pivot_root": 155, "seccomp": 317},
    "aarch64": {"pivot_root": 41, "seccomp": 277},
    "riscv64": {"pivot_root": 41, "seccomp": 277},
}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def syscall(number: int, *arguments: object) -> int:
    """A system call by its number.

    Raises:
        OSError: if the kernel refuses it.
    """
    full = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    return _checked(int(_libc.syscall(ctypes.c_long(number), *full)), f"system call {number}")


def _numbered(name: str) -> int:
    try:
        return _NR[os.uname().machine][name]
    except KeyError:
        raise OSError(38, f"{name}: its number on {os.uname().machine} is not known") from None


def _prctl(option: int, *values: int) -> int:
    longs = [ctypes.c_ulong(value) for value in (*values, 0, 0, 0, 0)][:4]
    return _checked(int(_libc.prctl(option, *longs)), f"prctl {option}")


def unshare(flags: int) -> None:
    """Move the calling process into new namespaces (its next children, for the process namespace)."""
    _checked(int(_libc.unshare(flags)), "unshare")


def die_with_parent() -> None:
    """Be killed when the parent ends. A change of user, group or namespace of users takes this back."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def set_dumpable(dumpable: bool) -> None:
    """Whether other processes of the same user may look into this one; not kept across exec."""
    _prctl(_PR_SET_DUMPABLE, int(dumpable))


def adopt_orphans() -> None:
    """Become the parent of every descendant whose parent ends."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def no_new_privileges() -> None:
    """No exec gives rights from here on: no setuid files, no file capabilities."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def drop_capabilities() -> None:
    """Let nothing that is executed from here on have a capability, if this process may decide that."""
    for capability in range(64):
        try:
            held = _prctl(_PR_CAPBSET_READ, capability)
        except OSError:
            break  # the last one that this kernel knows was the one before
        if held:
            _prctl(_PR_CAPBSET_DROP, capability)
    _prctl(_PR_SET_SECUREBITS, _SECUREBITS_NO_ROOT)


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    """mount(2)."""
    result = _libc.mount(
        source.encode(), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), options.encode() or None
    )
    _checked(int(result), f"mounting {kind or source} on {target}")


def bind(source: int, target: str) -> None:
    """Show what an open descriptor stands for at another place as well, with all that is mounted below it."""
    mount(f"/proc/self/fd/{source}", target, "", MS_BIND | MS_REC)


def restrict_mount(target: str, attributes: int, *, recursive: bool) -> None:
    """Add attributes (read-only, ...) to a mount, and to those below it."""
    attr = struct.pack("QQQQ", attributes, 0, 0, 0)
    flags = _AT_RECURSIVE if recursive else 0
    syscall(_NR_MOUNT_SETATTR, _AT_FDCWD, os.fsencode(target), flags, attr, len(attr))


def change_root() -> None:
    """Make the working directory, a mount, the root, and let go of the old one."""
    syscall(_numbered("pivot_root"), b".", b".")
    _checked(int(_libc.umount2(b".", MNT_DETACH)), "detaching the old root")
    os.chdir("/")


def set_hostname(name: str) -> None:
    """The name of the machine in this namespace of names."""
    _checked(int(_libc.sethostname(name.encode(), ctypes.c_size_t(len(name)))), "sethostname")


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def install_filter(instructions: bytes, *, listen: bool) -> int | None:
    """Filter the system calls of this process and its descendants; needs `no_new_privileges`.

    Args:
        instructions: a BPF program, 8 bytes an instruction.
        listen: whether to return a descriptor on which calls with the action "notify" are told.
    """
    program = _Program(len(instructions) // 8, instructions)
    flags = _SECCOMP_FILTER_FLAG_NEW_LISTENER if listen else 0
    result = syscall(_numbered("seccomp"), _SECCOMP_SET_MODE_FILTER, flags, ctypes.byref(program))
    if not listen:
        return None
    os.set_inheritable(result, False)
    return result
