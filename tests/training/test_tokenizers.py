"""Tokenizers that are made here."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from unspool.core.errors import InvalidInput
from unspool.models.tokenizer import TextTokenizer
from unspool.training.tokenizers import END, UNKNOWN, byte_bpe, listed

BPE = byte_bpe(["def f(x):\n    return x\n\n\ndef g(y):\n    return y\n"] * 3, 300)


@given(st.text())
def test_any_text_comes_back(text: str) -> None:
    tokenizer = TextTokenizer(BPE)
    if END not in text:
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("text", ["naïve 漢字 🙂", "\x00\t \r\n  ", "    return x", "e\u0301"])
def test_odd_text_comes_back(text: str) -> None:
    assert BPE.decode(BPE.encode(text)) == text


def test_what_was_seen_is_merged() -> None:
    assert len(BPE.encode("    return x\n")) < 8
    assert 257 < len(BPE) <= 300


def test_the_end_is_one_token() -> None:
    assert BPE.encode("a" + END) == [*BPE.encode("a"), BPE.eos_token_id]
    assert (BPE.eos_token, BPE.bos_token) == (END, END)


def test_saved_and_read_it_is_the_same(tmp_path) -> None:  # type: ignore[no-untyped-def]
    BPE.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = "def größe(x):\n    return '🙂'" + END
    assert again.encode(text) == BPE.encode(text)


def test_a_vocabulary_without_room_for_bytes_is_refused() -> None:
    with pytest.raises(InvalidInput, match="no room for the 256 bytes"):
        byte_bpe(["a"], 256)


@pytest.fixture
def words() -> PreTrainedTokenizerFast:
    return listed(["ab", "cd", " "], r"ab|cd| ")


def test_listed_tokens(words: PreTrainedTokenizerFast) -> None:
    assert words.convert_ids_to_tokens(words.encode("ab cdab" + END)) == ["ab", " ", "cd", "ab", END]
    assert words.decode(words.encode("ab cdab")) == "ab cdab"
    assert words.convert_tokens_to_ids([END, UNKNOWN, "ab"]) == [0, 1, 2]


def test_other_text_is_unknown_and_no_error(words: PreTrainedTokenizerFast) -> None:
    assert words.convert_ids_to_tokens(words.encode("abxyz")) == ["ab", UNKNOWN]


def test_a_token_twice_is_refused() -> None:
    with pytest.raises(InvalidInput, match="twice"):
        listed(["a", "a"], ".")
