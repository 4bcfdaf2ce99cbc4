"""Tables of a grammar engine on the disk, so that the next start need not compute them.

They lie in the cache folder, one file for every grammar and vocabulary, and only the latest few are kept. A file that
cannot be read is made again.
"""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from unspool.constraints._grammar import Grammar
from unspool.constraints._precheck import Precheck
from unspool.constraints._spanner import Spanner
from unspool.constraints._vocabulary import Vocabulary
from unspool.models.storage import cache_dir, disk, write_whole

FORMAT = 1
"""Goes into the names of files; changes with what they mean."""
MOST_FILES = 24


def place(slug: str, grammar: Grammar, vocabulary: Vocabulary) -> Path:
    """The file of a grammar and a vocabulary."""
    digest = vocabulary.forms.get("digest")
    if digest is None:
        parts = hashlib.sha256(repr(sorted(vocabulary.stop)).encode())
        for string in vocabulary.tokens:
            parts.update(b"-" if string is None else len(string).to_bytes(4, "little") + string)
        digest = vocabulary.forms["digest"] = parts.hexdigest()
    key = hashlib.sha256("\0".join([str(FORMAT), slug, grammar.kind, grammar.text, digest]).encode()).hexdigest()
    return cache_dir() / "grammars" / f"{key[:32]}.safetensors"


def store(path: Path, spanner: Spanner, precheck: Precheck) -> None:
    """Write tables, whole or not at all, and remove the oldest others.

    Raises:
        DownloadError: if the disk is full or write-protected.
    """
    profiles = [sorted(profile) for profile in spanner.profiles]
    arrays = {
        "parents": np.array(spanner.parents, dtype=np.int32),
        "terminals": np.array(spanner.terminals, dtype=np.int32),
        "profiles": np.array(list(itertools.chain(*profiles)), dtype=np.int32).reshape(-1, 2),
        "profile_sizes": np.array([len(profile) for profile in profiles], dtype=np.int32),
        "row_sequence": spanner.row_sequence,
        "row_profile": spanner.row_profile,
        "first": spanner.first,
        "tokens": spanner.tokens,
        "rows": spanner.rows,
        "place": np.array(precheck.place, dtype=np.int32),
        "accepted": precheck.accepted,
        **_flat("undecided", precheck.undecided),
        **_flat("of_state", precheck.of_state),
    }
    with disk(path):
        write_whole(path, save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))
        files = sorted(path.parent.glob("*.safetensors"), key=lambda file: file.stat().st_mtime, reverse=True)
        for old in files[MOST_FILES:]:
            old.unlink(missing_ok=True)


def restore(path: Path) -> tuple[Spanner, Precheck] | None:
    """Tables from a file; ``None`` if there is none, or it is damaged."""
    try:
        arrays = load(path.read_bytes())
        bounds = np.cumsum([0, *arrays["profile_sizes"].tolist()])
        pairs = [(int(a), int(b)) for a, b in arrays["profiles"]]
        spanner = Spanner(
            arrays["parents"].tolist(),
            arrays["terminals"].tolist(),
            [frozenset(pairs[a:b]) for a, b in itertools.pairwise(bounds.tolist())],
            arrays["row_sequence"],
            arrays["row_profile"],
            arrays["first"],
            arrays["tokens"],
            arrays["rows"],
        )
        precheck = Precheck(
            arrays["place"].tolist(), arrays["accepted"], _lists(arrays, "undecided"), _lists(arrays, "of_state")
        )
    except (OSError, SafetensorError, KeyError, ValueError):
        # Whatever is wrong with a file that only saves time, it is made again.
        return None
    return spanner, precheck


def _flat(name: str, lists: list[NDArray[np.int32]]) -> dict[str, NDArray[np.int32]]:
    sizes = np.array([len(each) for each in lists], dtype=np.int32)
    return {name: np.concatenate([np.zeros(0, dtype=np.int32), *lists]), f"{name}_sizes": sizes}


def _lists(arrays: dict[str, NDArray[np.int32]], name: str) -> list[NDArray[np.int32]]:
    return np.split(arrays[name], np.cumsum(arrays[f"{name}_sizes"])[:-1])
