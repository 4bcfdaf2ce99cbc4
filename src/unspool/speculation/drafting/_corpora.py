"""Corpora that drafters look things up in: files to texts, texts to tokens, tokens to an index that is kept.

An index is written once to the folder ``indexes`` below the cache folder, under a hash of its texts and its tokenizer,
and mapped from there by every later start.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import sysconfig
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from unspool.core.errors import InvalidInput
from unspool.core.model import LanguageModel
from unspool.models import artefacts, storage
from unspool.models.answers import read_answers
from unspool.models.progress import console
from unspool.models.tokenizer import TextTokenizer
from unspool.speculation.drafting._suffix_array import SuffixArray
from unspool.speculation.drafting._trigrams import TrigramTable

STANDARD_LIBRARY = "stdlib"
"""Stands for the source of the running Python's standard library, wherever a place is asked for."""

SOURCE_CODE = frozenset(
    {
        ".c",
        ".cc",
        ".cpp",
        ".cs",
        ".css",
        ".cu",
        ".go",
        ".h",
        ".hpp",
        ".html",
        ".java",
        ".js",
        ".json",
        ".jsx",
        ".kt",
        ".lua",
        ".md",
        ".php",
        ".pl",
        ".proto",
        ".py",
        ".pyi",
        ".r",
        ".rb",
        ".rs",
        ".rst",
        ".scala",
        ".sh",
        ".sql",
        ".swift",
        ".tex",
        ".toml",
        ".ts",
        ".tsx",
        ".yaml",
        ".yml",
    }
)
"""Endings of the files of a repository that are worth looking up."""

_PASSED_OVER = {"__pycache__", "node_modules", "site-packages", "dist-packages", "venv", "build", "dist", "target"}
# The library's tests are as large as the rest of it, and nobody writes like them.
_NOT_LIBRARY = {"test", "tests", "idle_test", "lib2to3"}
_FORMAT = "1"
_ANSWERS, _ANSWERING = "smollm2-outputs", "smollm2-135m"
_BATCH = 64


@dataclass
class Texts:
    """Files that could be read as text.

    Attributes:
        names: paths below the folder that was named, in order.
        documents: their texts.
        skipped: files that were left out, by reason.
    """

    names: list[str] = field(default_factory=list)
    documents: list[str] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)

    @property
    def characters(self) -> int:
        return sum(map(len, self.documents))

    def __str__(self) -> str:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.skipped.items()))
        left_out = f" (left out: {reasons})" if reasons else ""
        return f"{len(self.documents)} files, {self.characters / 1e6:.1f} million characters{left_out}"


def read_texts(
    place: str | Path,
    who: str,
    *,
    endings: frozenset[str] | None = None,
    exclude: Sequence[str] = (),
    file_bytes: int = 1_000_000,
    total_bytes: int = 16_000_000,
) -> Texts:
    """The texts of a file, or of all files below a folder, in the order of their paths.

    Hidden folders, and those that hold what was generated or installed, are passed over. What is not UTF-8, or holds
    zero bytes, is no text.

    Args:
        place: a file, a folder, or ``stdlib``.
        who: who wants them, for messages.
        endings: of the files to take, in lower case; ``None`` for all. Of the standard library: Python's source.
        exclude: patterns of paths below ``place`` to leave out, as for a shell (``docs/*``, ``*_pb2.py``).
        file_bytes: larger files are left out.
        total_bytes: what does not fit any more is left out.

    Raises:
        InvalidInput: if there is no such place, or no text in it.
    """
    library = str(place) == STANDARD_LIBRARY
    root = Path(sysconfig.get_paths()["stdlib"]) if library else Path(place).expanduser()
    if not root.exists():
        raise InvalidInput(f"{who}: {place} does not exist; give a file, a folder, or {STANDARD_LIBRARY!r}")
    if library:
        endings = frozenset({".py"})
    found, left = Texts(), total_bytes
    for path in [root] if root.is_file() else _files(root, _PASSED_OVER | _NOT_LIBRARY if library else _PASSED_OVER):
        name = path.name if path == root else path.relative_to(root).as_posix()
        if endings is not None and path != root and path.suffix.lower() not in endings:
            continue
        if any(fnmatch.fnmatch(name, pattern) for pattern in exclude):
            found.skipped["excluded"] += 1
            continue
        try:
            size = path.stat().st_size
            if size > min(file_bytes, left):
                reason = f"beyond {file_bytes:,} bytes" if size > file_bytes else f"beyond {total_bytes:,} bytes in all"
                found.skipped[reason] += 1
                continue
            raw = path.read_bytes()
            text = raw.decode("utf-8")
        except OSError:
            found.skipped["unreadable"] += 1
            continue
        except UnicodeDecodeError:
            found.skipped["not text"] += 1
            continue
        if b"\0" in raw:
            found.skipped["not text"] += 1
        elif text.strip():
            left -= size
            found.names.append(name)
            found.documents.append(text)
    if not found.documents:
        raise InvalidInput(f"{who} finds no text in {place}: {found}")
    return found


def _files(root: Path, passed_over: set[str]) -> Iterator[Path]:
    for folder, below, files in os.walk(root):
        below[:] = sorted(name for name in below if name not in passed_over and not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(files))


# -- tokens -------------------------------------------------------------------------------------------------------


def encode_all(tokenizer: Any, documents: Sequence[str], title: str = "Reading") -> list[list[int]]:
    """Token ids of every text, without special tokens; a bar on standard error if it takes more than two seconds."""
    if not isinstance(tokenizer, TextTokenizer):
        return [list(tokenizer.encode(document)) for document in documents]
    encoded: list[list[int]] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(), transient=True, disable=len(documents) <= _BATCH) as bars:
        began = time.perf_counter()
        task = bars.add_task(title, total=len(documents), visible=False)
        for first in range(0, len(documents), _BATCH):
            # In batches, which the tokenizers library encodes on all cores.
            batch = list(documents[first : first + _BATCH])
            ids = tokenizer.hf(batch, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
            encoded.extend(ids)
            bars.update(task, advance=len(batch), visible=time.perf_counter() - began > 2)
    return encoded


def fingerprint(tokenizer: Any) -> str | None:
    """A hash that two tokenizers share only if they cut texts alike; ``None`` if it cannot be told."""
    backend = getattr(getattr(tokenizer, "hf", None), "backend_tokenizer", None)
    return None if backend is None else hashlib.sha256(backend.to_str().encode()).hexdigest()


# -- the index ----------------------------------------------------------------------------------------------------

Index = TypeVar("Index", SuffixArray, TrigramTable)


def index(texts: Texts, tokenizer: Any, vocab_size: int, who: str, kind: type[Index]) -> Index:
    """An index of these texts, from the cache folder if it was built before.

    An index of a tokenizer that has no fingerprint is not kept.

    Args:
        texts: what to index.
        tokenizer, vocab_size: of the model.
        who: who wants it, for messages.
        kind: what to build.

    Raises:
        DownloadError: if the cache folder cannot be written to.
    """
    identity = fingerprint(tokenizer)
    if identity is None:
        return _built(texts, tokenizer, vocab_size, who, kind)
    whole = hashlib.sha256(f"{_FORMAT} {kind.kind} {identity} {vocab_size}".encode())
    for document in texts.documents:
        raw = document.encode()
        # The length in front keeps ("ab", "c") from being ("a", "bc").
        whole.update(len(raw).to_bytes(8, "little") + raw)
    key = whole.hexdigest()[:32]
    place = storage.cache_dir() / "indexes" / f"{key}.safetensors"
    if not place.exists():
        with storage.lock(f"index-{key}"):
            # Another process may have finished it while this one waited.
            if not place.exists():
                built = _built(texts, tokenizer, vocab_size, who, kind)
                storage.check_room(built.nbytes, place.parent, place)
                storage.sweep(place)
                with storage.disk(place):
                    built.save(place)
    made = kind()
    made.vocab_size = vocab_size
    made.load(place)
    return made


def _built(texts: Texts, tokenizer: Any, vocab_size: int, who: str, kind: type[Index]) -> Index:
    began = time.perf_counter()
    built = kind.build(encode_all(tokenizer, texts.documents, f"{who}: reading"), vocab_size)
    if texts.skipped or time.perf_counter() - began > 2:
        console().print(f"{who}: made {kind.kind} of {texts}.", highlight=False)
    return built


# -- what the model says ------------------------------------------------------------------------------------------


def own_answers(target: LanguageModel) -> list[tuple[list[int], list[int]]]:
    """Pairs of a prompt and what the model answered greedily, token ids, if ``unspool train`` has recorded them; else
    nothing. Only the packaged SmolLM2 has such a recipe.

    Raises:
        WeightsError: if the record is damaged.
    """
    if target.name != _ANSWERING or not any(artefacts.made(_ANSWERS)):
        return []
    found = read_answers(artefacts.find(_ANSWERS) / "greedy.safetensors")
    return [(one.prompt, one.answer) for one in found]
