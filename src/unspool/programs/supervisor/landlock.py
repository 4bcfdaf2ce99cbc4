"""Landlock: what a process without any right can still take from itself. Used where no mount namespace can be made.

Kernel documentation: userspace-api/landlock. Version 1 (Linux 5.13) rules over files, 4 over TCP ports, 6 over signals
and abstract sockets. It does not rule over looking up names, their attributes, or connecting to sockets that lie in
folders.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterable

from unspool.programs.supervisor import linux

_NR_CREATE, _NR_ADD_RULE, _NR_RESTRICT = 444, 445, 446
_VERSION_FLAG, _RULE_PATH_BENEATH = 1, 1

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_FIRST_FILES = (1 << 13) - 1
_TCP = 0b11
_SIGNALS_AND_ABSTRACT_SOCKETS = 0b11

SCOPES = 6  # the version that keeps signals inside


def version() -> int:
    """The version that is in force.

    Raises:
        OSError: if there is none.
    """
    return linux.syscall(_NR_CREATE, None, 0, _VERSION_FLAG)


def confine(readable: Iterable[str], devices: Iterable[str], folder: str) -> None:
    """Let this process and its descendants read and execute below `readable`, use `devices`, write below `folder`, and
    as far as the version goes neither use TCP nor signal anyone outside. Paths that do not exist are left out.

    Raises:
        OSError: if the kernel refuses.
    """
    number = version()
    files = _FIRST_FILES
    files |= _REFER if number >= 2 else 0
    files |= _TRUNCATE if number >= 3 else 0
    files |= _IOCTL_DEV if number >= 5 else 0
    attributes = struct.pack("Q", files)
    if number >= 4:
        attributes += struct.pack("Q", _TCP)
    if number >= SCOPES:
        attributes += struct.pack("Q", _SIGNALS_AND_ABSTRACT_SOCKETS)
    ruleset = linux.syscall(_NR_CREATE, attributes, len(attributes), 0)
    try:
        for path in readable:
            _allow(ruleset, path, _EXECUTE | _READ_FILE | _READ_DIR)
        for path in devices:
            _allow(ruleset, path, (_READ_FILE | _WRITE_FILE | _TRUNCATE | _IOCTL_DEV) & files)
        _allow(ruleset, folder, files)
        linux.syscall(_NR_RESTRICT, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, access: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # what is not there, or not to be reached, needs no rule
    try:
        if not stat.S_ISDIR(os.fstat(place).st_mode):
            access &= ~_READ_DIR
        linux.syscall(_NR_ADD_RULE, ruleset, _RULE_PATH_BENEATH, struct.pack("=Qi", access, place), 0)
    finally:
        os.close(place)
