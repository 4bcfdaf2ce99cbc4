from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from tests.evaluation.small import small_engine

from unspool.core.errors import InvalidInput, WeightsError
from unspool.models.storage import cache_dir
from unspool.speculation.drafting import _corpora
from unspool.speculation.drafting._corpora import SOURCE_CODE, encode_all, fingerprint, index, own_answers, read_texts
from unspool.speculation.drafting._suffix_array import SuffixArray


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNSPOOL_CACHE", str(tmp_path / "cache"))


def repository(root: Path) -> Path:
    files = {
        "b.py": b"import a\n",
        "a.py": b"import b\n",
        "pkg/c.py": "é = 1\n".encode(),
        "pkg/gen_pb2.py": b"generated = 1\n",
        ".git/config.py": b"hidden = 1\n",
        "node_modules/d.js": b"installed = 1\n",
        "latin.py": "é = 1\n".encode("latin-1"),
        "zero.py": b"a\0b\n",
        "empty.py": b" \n",
        "large.py": b"x = 1\n" * 100,
        "photo.png": b"\x89PNG",
    }
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def test_source_files_are_read_and_the_rest_is_counted(tmp_path: Path) -> None:
    texts = read_texts(repository(tmp_path / "r"), "me", endings=SOURCE_CODE, exclude=("*_pb2.py",), file_bytes=500)
    assert texts.names == ["a.py", "b.py", "pkg/c.py"]
    assert texts.documents[2] == "é = 1\n"
    assert texts.skipped == {"excluded": 1, "not text": 2, "beyond 500 bytes": 1}
    assert "3 files" in str(texts)
    assert "2 not text" in str(texts)


def test_the_whole_is_bounded(tmp_path: Path) -> None:
    texts = read_texts(repository(tmp_path / "r"), "me", endings=frozenset({".py"}), total_bytes=20)
    assert sum(len(text.encode()) for text in texts.documents) <= 20
    assert texts.skipped["beyond 20 bytes in all"] >= 1


def test_one_file_and_places_that_are_none(tmp_path: Path) -> None:
    root = repository(tmp_path / "r")
    assert read_texts(root / "b.py", "me").documents == ["import a\n"]
    with pytest.raises(InvalidInput, match="nowhere does not exist"):
        read_texts(tmp_path / "nowhere", "me")
    with pytest.raises(InvalidInput, match="finds no text"):
        read_texts(root / "photo.png", "me")


def test_the_standard_library() -> None:
    texts = read_texts("stdlib", "me", total_bytes=300_000)
    assert "abc.py" in texts.names
    assert not any(name.startswith(("test/", "site-packages/")) for name in texts.names)


def test_an_index_is_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = small_engine().model
    texts = read_texts(repository(tmp_path / "r"), "me", endings=frozenset({".py"}))
    first = index(texts, lm.tokenizer, lm.vocab_size, "me", SuffixArray)
    assert len(first) == sum(len(text.encode()) for text in texts.documents)
    assert len(first.find(encode_all(lm.tokenizer, ["import"])[0])) == 2
    assert len(list((cache_dir() / "indexes").iterdir())) == 1

    def never(*_: object) -> None:
        raise AssertionError("the index was there")

    with monkeypatch.context() as patch:
        patch.setattr(_corpora, "_built", never)
        again = index(texts, lm.tokenizer, lm.vocab_size, "me", SuffixArray)
        assert again.suffixes.tolist() == first.suffixes.tolist()
        texts.documents[0] += " "
        with pytest.raises(AssertionError):
            index(texts, lm.tokenizer, lm.vocab_size, "me", SuffixArray)


def test_a_tokenizer_without_a_fingerprint_gives_an_index_that_is_not_kept(tmp_path: Path) -> None:
    class Letters:
        def encode(self, text: str, /) -> list[int]:
            return [ord(letter) % 64 for letter in text]

    assert fingerprint(Letters()) is None
    assert fingerprint(None) is None
    texts = read_texts(repository(tmp_path / "r") / "a.py", "me")
    assert len(index(texts, Letters(), 64, "me", SuffixArray)) == len("import b\n")
    assert not (cache_dir() / "indexes").exists()


def test_recorded_answers(tmp_path: Path) -> None:
    lm = small_engine().model
    assert own_answers(lm) == [], "nobody recorded this model"
    lm.name = "smollm2-135m"
    folder = cache_dir() / "artefacts" / "smollm2-outputs" / "key"
    folder.mkdir(parents=True)
    (folder / "card.json").write_text('{"recipe": "smollm2-outputs", "version": 99}')
    arrays = {"tokens": [1, 2, 3, 4, 5, 6], "offsets": [0, 4, 6], "prompts": [1, 1]}
    save_file({name: np.array(values, np.int32) for name, values in arrays.items()}, folder / "greedy.safetensors")
    assert own_answers(lm) == [([1], [2, 3, 4]), ([5], [6])]
    (folder / "greedy.safetensors").write_bytes(b"nothing")
    with pytest.raises(WeightsError, match="holds no answers"):
        own_answers(lm)
