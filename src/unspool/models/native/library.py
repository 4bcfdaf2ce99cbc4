"""The compiled kernels: built once for this machine by its own C++ compiler, kept in the cache folder."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
from functools import lru_cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from unspool.core.errors import UnspoolError
from unspool.models.storage import cache_dir, disk, draft_of, lock

FOLDER_VARIABLE = "UNSPOOL_KERNELS"
"""Names the folder of the compiled kernels, where that is not to be the cache's."""
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fopenmp", "-fPIC", "-shared")
_INTERFACE = 3
_SECONDS = 300


class NoCompiler(UnspoolError):
    """The kernels cannot be built here; the message says what was tried and what would help."""


def compiler() -> str | None:
    """The C++ compiler that is used: ``$CXX``, or the first of g++, clang++ and c++ that is there."""
    named = os.environ.get("CXX")
    return shutil.which(named) if named else next(filter(None, map(shutil.which, ("g++", "clang++", "c++"))), None)


@lru_cache(maxsize=1)
def kernels() -> ctypes.CDLL:
    """The kernels, compiled first if this machine has not done so yet (about fifteen seconds, once).

    Raises:
        NoCompiler: if there is no compiler, or it fails.
    """
    # torch's OpenMP is loaded before ours asks for one, so that both run on the same threads.
    import torch  # noqa: F401

    path = _built()
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise NoCompiler(
            f"the native kernels in {path} cannot be loaded: {error}; delete the file to build them anew"
        ) from error
    if library.interface_version() != _INTERFACE:
        raise NoCompiler(f"the native kernels in {path} are of another version; delete the file to build them anew")
    library.run_layers.argtypes = [ctypes.c_void_p, ctypes.c_int64, *[ctypes.c_void_p] * 3, ctypes.c_int32]
    library.product.argtypes = [
        ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_float, ctypes.c_int64,
        *[ctypes.c_void_p] * 5, ctypes.c_int32,
    ]  # fmt: skip
    library.normalise.argtypes = [
        ctypes.c_void_p, ctypes.c_void_p, ctypes.c_float, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p
    ]  # fmt: skip
    library.embed.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_void_p]
    library.pack_floats.argtypes = [ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    library.pack4.argtypes = [*[ctypes.c_void_p] * 3, ctypes.c_int64, ctypes.c_int64, ctypes.c_int32, ctypes.c_void_p]
    library.pack8.argtypes = [*[ctypes.c_void_p] * 2, ctypes.c_int64, ctypes.c_int64, ctypes.c_int32, ctypes.c_void_p]
    for name in ("run_layers", "product", "normalise", "embed", "pack_floats", "pack4", "pack8"):
        getattr(library, name).restype = None
    return library


def layout() -> str:
    """A name for how the kernels want matrices to lie: equal names, equal bytes."""
    return hashlib.sha256(_source().read_bytes() + _processor().encode()).hexdigest()[:12]


def _source() -> Traversable:
    return resources.files(__package__) / "kernels.cpp"


def _built() -> Path:
    source = _source()
    text = source.read_bytes()
    found = compiler()
    if found is None:
        asked = os.environ.get("CXX")
        raise NoCompiler(
            f"the compiler {asked!r} that CXX names is not there; name one that is, or install g++"
            if asked
            else "there is no C++ compiler (g++ or clang++), with which the native kernels are built once; install one "
            "(on Debian and Ubuntu: apt install g++)"
        )
    key = hashlib.sha256(repr((text, FLAGS, _version(found), _processor())).encode()).hexdigest()[:16]
    final = Path(os.environ.get(FOLDER_VARIABLE) or cache_dir() / "native") / f"kernels-{key}.so"
    if final.exists():
        return final
    with lock("native-kernels"), disk(final):
        if final.exists():
            return final
        final.parent.mkdir(parents=True, exist_ok=True)
        draft = draft_of(final)
        try:
            with resources.as_file(source) as path:
                command = [found, *FLAGS, str(path), "-o", str(draft)]
                try:
                    done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
                except (OSError, subprocess.TimeoutExpired) as error:
                    raise NoCompiler(f"the native kernels cannot be built: {error}") from error
            if done.returncode:
                said = (done.stderr.strip().splitlines() or ["no message"])[0]
                raise NoCompiler(f"{found} cannot build the native kernels: {said}")
            draft.replace(final)
        finally:
            draft.unlink(missing_ok=True)
    return final


def _version(found: str) -> str:
    done = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=_SECONDS, check=False)
    return done.stdout.partition("\n")[0]


def _processor() -> str:
    """What ``-march=native`` depends on: the instructions that this processor has."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), platform.machine())
