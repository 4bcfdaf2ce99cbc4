"""Corpora, token streams, and answers on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.training.small import library

from unspool.core.errors import InvalidInput, WeightsError
from unspool.models.answers import Answer, read_answers, write_answers
from unspool.training import corpora
from unspool.training.corpora import Document


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return library(tmp_path)


def test_every_file_once_and_in_order(folder: Path) -> None:
    names = [document.name for document in corpora.stdlib(folder=folder)]
    assert names == sorted(names)
    assert len(names) == len(set(names)) == 40  # without the tests, and the file that is no UTF-8
    assert "test/test_all.py" in [document.name for document in corpora.stdlib(folder=folder, tests=True)]


def test_the_split_is_whole_and_depends_on_the_path(folder: Path) -> None:
    every = {document.name for document in corpora.stdlib(folder=folder)}
    train, held = ({d.name for d in corpora.stdlib(split, folder=folder)} for split in corpora.SPLITS)
    assert train | held == every
    assert not train & held
    assert held
    assert held == {name for name in every if corpora.is_held_out(name)}
    for name in held:
        (folder / name).write_text("changed = True\n")
    assert held == {d.name for d in corpora.stdlib("held-out", folder=folder)}


def test_the_running_python_has_a_library() -> None:
    held = list(corpora.stdlib("held-out"))
    assert len(held) > 20
    assert not any(document.name.startswith("test/") for document in held)


def test_docstrings(folder: Path) -> None:
    found = list(corpora.docstrings(folder=folder))
    assert len(found) == 40
    assert found[0].name == "part0/module0.py:module"
    assert found[0].text.startswith("Module 0.\n\nIt has")
    assert not list(corpora.docstrings(folder=folder, least=1000))


def test_no_library_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="holds no Python source"):
        list(corpora.stdlib(folder=tmp_path))


def test_a_fingerprint_changes_with_names_texts_and_order() -> None:
    one, two = Document("a", "b"), Document("c", "d")
    prints = [
        corpora.fingerprint(documents)
        for documents in ([one, two], [two, one], [one], [Document("ab", "")], [Document("a", "bc"), Document("", "d")])
    ]
    assert len(set(prints)) == len(prints)
    assert corpora.fingerprint([one, two]) == prints[0]


@pytest.mark.parametrize(("vocabulary", "width"), [(300, 2), (1 << 16, 2), ((1 << 16) + 1, 4)])
def test_packed_streams(tmp_path: Path, vocabulary: int, width: int) -> None:
    place = tmp_path / "stream"
    stream = corpora.pack(["abc", "", "de"], lambda text: [ord(c) for c in text], 0, place, vocabulary)
    assert stream.tokens.tolist() == [0, 97, 98, 99, 0, 0, 100, 101, 0]
    assert place.stat().st_size == 9 * width
    assert isinstance(stream.tokens, np.memmap)
    rng = torch.Generator().manual_seed(0)
    windows = stream.random(200, 4, rng)
    whole = stream.tokens.tolist()
    assert {tuple(window) for window in windows.tolist()} == {tuple(whole[i : i + 4]) for i in range(6)}
    assert stream.even(10, 4).tolist() == [whole[:4], whole[4:8]]


def test_nothing_to_pack_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no documents"):
        corpora.pack_tokens([], 0, tmp_path / "stream", 100)


def test_windows_grow_late_in_the_training(tmp_path: Path) -> None:
    stream = corpora.pack_tokens([list(range(1, 500))], 0, tmp_path / "stream", 1000)
    make = corpora.windows(stream, 3, 64, seed=0)
    assert make(0, 0.1).tokens.shape == (6, 33)
    assert make(1, 0.9).tokens.shape == (3, 65)
    again = corpora.windows(stream, 3, 64, seed=0)
    assert torch.equal(again(0, 0.1).tokens, corpora.windows(stream, 3, 64, seed=0)(0, 0.1).tokens)


def test_answers_round_trip(tmp_path: Path) -> None:
    answers = [Answer([1, 2], [3]), Answer([4], [5, 49151, 2])]
    write_answers(answers, tmp_path / "a" / "answers.safetensors")
    assert read_answers(tmp_path / "a" / "answers.safetensors") == answers


def test_damaged_answers_are_told(tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(b"nothing")
    for name in ("bad", "missing"):
        with pytest.raises(WeightsError, match="holds no answers"):
            read_answers(tmp_path / name)
