"""What a program sees of the file system where a mount namespace can be made: a root of its own.

It holds the system's programs and libraries and the interpreter, read-only; a few devices; /proc of its own processes;
and one folder to write in, /tmp, which lives in memory, is limited in bytes and files, and vanishes with the namespace.
Homes, projects, other mounts, sockets and nearly all of /etc are not there.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable

from unspool.programs.supervisor import linux

FOLDER = "/tmp/program"
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
USER = 1000  # the program's user inside
_COVERED = ("/tmp", "/var/tmp", "/run", "/mnt", "/media", "/srv")
_ETC = {
    "passwd": f"program:x:{USER}:{USER}::{FOLDER}:/bin/sh\nnobody:x:65534:65534::/nonexistent:/bin/false\n",
    "group": f"program:x:{USER}:\nnogroup:x:65534:\n",
    "hosts": "127.0.0.1 localhost\n::1 localhost\n",
}
_LINKS = {"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"}


def build(readable: Iterable[str], *, folder_bytes: int, folder_files: int, owner: int | None) -> None:
    """Make the view, and make its root the working directory. `mount_proc` and `enter` follow.

    Args:
        readable: absolute paths to show at their own places. Symbolic links are shown as links; what does not exist is
            left out.
        owner: who the folder belongs to, if not the caller.

    Raises:
        OSError: if the kernel refuses a mount.
    """
    linux.mount("", "/", "", linux.MS_REC | linux.MS_PRIVATE)
    # Opened before anything is covered, so that a path below /tmp can be shown as well.
    sources = [(path, opened) for path in _outermost(readable) if (opened := _open(path)) is not None]
    devices = [(path, opened) for path in DEVICES if (opened := _open(path)) is not None]
    base = next(path for path in _COVERED if os.path.isdir(path))
    linux.mount("tmpfs", base, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=0755,size=4m,nr_inodes=4096")
    os.chdir(base)
    for name in ("proc", "dev", "etc", "tmp"):
        os.mkdir(name, 0o755)
    owned = "" if owner is None else f",uid={owner},gid={owner}"
    options = f"mode=0755,size={folder_bytes},nr_inodes={folder_files + 64}{owned}"
    linux.mount("tmpfs", "tmp", "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, options)
    os.mkdir(FOLDER[1:], 0o700)
    if owner is not None:
        os.chown(FOLDER[1:], owner, owner)
    for path, opened in sources:
        _show(path, opened)
    for path, opened in devices:
        os.close(os.open(path[1:], os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        linux.bind(opened, path[1:])
        linux.restrict_mount(path[1:], linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NOEXEC, recursive=True)
        os.close(opened)
    for name, target in _LINKS.items():
        os.symlink(target, f"dev/{name}")
    os.symlink("/tmp", "dev/shm")
    for name, text in _ETC.items():
        with open(f"etc/{name}", "x", encoding="ascii") as file:
            file.write(text)


def mount_proc() -> None:
    """Show /proc of the process namespace that the caller is in. Before `enter`: the kernel lets an ordinary user do it
    only as long as a whole /proc is in sight.

    Raises:
        OSError: if the kernel refuses, as it does where parts of the outer /proc are covered.
    """
    linux.mount("proc", "proc", "proc", linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC)


def enter() -> None:
    """Make the view the root, out of which there is no way; nothing can be made in the root itself from here on."""
    linux.change_root()
    linux.restrict_mount("/", linux.MOUNT_ATTR_RDONLY | linux.MOUNT_ATTR_NODEV, recursive=False)


def _outermost(paths: Iterable[str]) -> list[str]:
    """The paths without those that lie below another one, but for links: those are shown only if they are named."""
    kept: list[str] = []
    for path in sorted({os.path.normpath(path) for path in paths}):
        if path != "/" and not any(path.startswith(above + "/") and not os.path.islink(above) for above in kept):
            kept.append(path)
    return kept


def _open(path: str) -> int | None:
    try:
        return os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None  # not there, or not to be reached by this user: then the program shall not see it either


def _show(path: str, opened: int) -> None:
    target = path[1:]
    mode = os.fstat(opened).st_mode
    if os.path.dirname(target):
        os.makedirs(os.path.dirname(target), exist_ok=True)
    if stat.S_ISLNK(mode):
        os.symlink(os.readlink("", dir_fd=opened), target)
    elif stat.S_ISDIR(mode) or stat.S_ISREG(mode):
        if stat.S_ISDIR(mode):
            os.makedirs(target, exist_ok=True)
        else:
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
        linux.bind(opened, target)
        attributes = linux.MOUNT_ATTR_RDONLY | linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NODEV
        linux.restrict_mount(target, attributes, recursive=True)
    os.close(opened)
