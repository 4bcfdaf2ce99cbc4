"""A folder on disk for programs to write in, where no mount namespace gives them one in memory."""

from __future__ import annotations

import os
import stat


def make(owner: int | None) -> str:
    """A new folder that only `owner` (or this user) may enter, in a new one that only this user may change.

    Returns:
        the path of the inner one; `remove` takes the outer one, its parent.
    """
    import tempfile  # takes as long to import as half of all the others, and is not needed with namespaces

    outer = os.path.realpath(tempfile.mkdtemp(prefix="unspool-sandbox-"))
    inner = os.path.join(outer, "program")
    os.mkdir(inner, 0o700)
    if owner is not None:
        os.chmod(outer, 0o711)
        os.chown(inner, owner, owner)
    return inner


def remove(path: str) -> None:
    """Delete the folder, whatever was done to it: rights taken away, links, trees too deep for any path.

    Nothing is followed and nothing recurses: what lies in a folder of the top is moved up to the top before that folder
    is deleted, so a tree of any depth takes one open descriptor. No program may be running in it any more.

    Raises:
        OSError: if something cannot be deleted, such as a file that an administrator made immutable.
    """
    try:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            os.unlink(path)  # a user's program can put something else in its place, where nothing confines it
            return
    except FileNotFoundError:
        return
    os.chmod(path, 0o700)
    top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        moved = 0
        while names := os.listdir(top):
            for name in names:
                if not _is_folder(name, top):
                    os.unlink(name, dir_fd=top)
                    continue
                os.chmod(name, 0o700, dir_fd=top)
                inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=top)
                try:
                    for below in os.listdir(inner):
                        if _is_folder(below, inner):
                            os.chmod(below, 0o700, dir_fd=inner)
                            moved += 1
                            os.rename(below, f".moved-{moved}-{os.urandom(4).hex()}", src_dir_fd=inner, dst_dir_fd=top)
                        else:
                            os.unlink(below, dir_fd=inner)
                finally:
                    os.close(inner)
                os.rmdir(name, dir_fd=top)
    finally:
        os.close(top)
    os.rmdir(path)


def _is_folder(name: str, parent: int) -> bool:
    return stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)
