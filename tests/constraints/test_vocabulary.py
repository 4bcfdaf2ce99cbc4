"""Vocabularies as bytes: three families of tokenizers, made here of a few lines, and the real ones where they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.toys import TableModel
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from unspool.constraints._vocabulary import Trie, Vocabulary, byte_level_table
from unspool.core.errors import Incompatible
from unspool.core.model import LanguageModel
from unspool.models.tokenizer import TextTokenizer

LINES = [
    "the quick brown fox jumps over the lazy dog",
    '{"name": "Bob", "age": 33, "tags": ["a", "b"]}',
    "café naïve 日本語 emoji 😀😀 déjà vu",
    "def f(x):\n    return x + 1\n",
] * 20
PADDING = 7


def model_of(tokenizer: Tokenizer | None, **special: str) -> LanguageModel:
    """A model with more rows than its tokenizer has tokens."""
    size = tokenizer.get_vocab_size(with_added_tokens=True) if tokenizer is not None else 10
    lm = TableModel(vocab_size=3)
    lm.vocab_size = size + PADDING
    if tokenizer is not None:
        hf = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
        lm.tokenizer = TextTokenizer(hf)
        lm.stop_tokens = frozenset({hf.eos_token_id}) if hf.eos_token_id is not None else frozenset()
    return lm


def byte_level() -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(
        LINES,
        trainers.BpeTrainer(
            vocab_size=400, special_tokens=["<end>", "<pad>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        ),
    )
    made.add_tokens(["<html>", " \n\n"])
    return made


def sentencepiece() -> Tokenizer:
    pieces = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    merges = []
    for word in ["\u2581 t", "h e", "\u2581t he", "o v", "ov e", "r \u2581"]:
        for piece in [*word.split(" "), word.replace(" ", "")]:
            for character in piece:
                pieces.setdefault(character, len(pieces))
            pieces.setdefault(piece, len(pieces))
        if " " in word:
            merges.append(tuple(word.split(" ")))
    for character in "abcdefghijklmnopqrstuvwxyz\u2581":
        pieces.setdefault(character, len(pieces))
    made = Tokenizer(models.BPE(pieces, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    return made


def wordpiece(cleanup: bool) -> Tokenizer:
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece(prefix="##", cleanup=cleanup)
    made.train_from_iterator(LINES, trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]", "[SEP]"]))
    return made


@pytest.fixture(scope="module")
def byte_bpe() -> Vocabulary:
    return Vocabulary.of(model_of(byte_level(), eos_token="<end>", pad_token="<pad>"))


@pytest.fixture(scope="module")
def pieces() -> Vocabulary:
    return Vocabulary.of(model_of(sentencepiece(), eos_token="</s>", bos_token="<s>", unk_token="<unk>"))


# -- what tokens write --------------------------------------------------------------------------------------------


def test_the_table_of_gpt2_is_the_librarys() -> None:
    table = byte_level_table()
    assert sorted(table) == sorted(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(table.values()) == list(range(256))


def test_byte_level(byte_bpe: Vocabulary) -> None:
    assert {bytes([byte]) for byte in range(256)} <= byte_bpe.by_bytes.keys()
    assert b" the" in byte_bpe.by_bytes
    # Added tokens write their text as it is.
    assert {b"<html>", b" \n\n"} <= byte_bpe.by_bytes.keys()
    assert b"<end>" not in byte_bpe.by_bytes
    assert b"<pad>" not in byte_bpe.by_bytes


def test_padding_and_special_tokens_write_nothing(byte_bpe: Vocabulary, pieces: Vocabulary) -> None:
    for vocabulary in (byte_bpe, pieces):
        assert len(vocabulary.tokens) == vocabulary.size
        assert vocabulary.tokens[-PADDING:] == (None,) * PADDING
        assert all(vocabulary.tokens[token] is None for token in vocabulary.stop)
        assert len(vocabulary.stop) == 1
        assert all(token != b"" for token in vocabulary.tokens)


@pytest.mark.parametrize("text", [*dict.fromkeys(LINES), "", "unseen Ω≈ç√", "\x00\x1f\x7f"])
def test_what_is_encoded_is_what_is_written(byte_bpe: Vocabulary, pieces: Vocabulary, text: str) -> None:
    for vocabulary, tokenizer in ((byte_bpe, byte_level()), (pieces, sentencepiece())):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        # A space that the tokenizer itself puts before a text is written like any other.
        assert vocabulary.bytes_of(ids).removeprefix(b" " if vocabulary is pieces else b"") == text.encode()


def test_sentencepiece(pieces: Vocabulary) -> None:
    assert pieces.tokens[pieces.by_bytes[b" the"]] == b" the"
    assert pieces.by_bytes[b"\xe6"] == 3 + 0xE6
    assert b"<unk>" not in pieces.by_bytes
    # The letter a has a piece and a byte of its own.
    assert sum(string == b"a" for string in pieces.tokens) == 2


@pytest.mark.parametrize("cleanup", [False, True])
def test_wordpiece_writes_what_its_decoder_decodes(cleanup: bool) -> None:
    tokenizer = wordpiece(cleanup)
    vocabulary = Vocabulary.of(model_of(tokenizer, eos_token="[SEP]", unk_token="[UNK]"))
    assert vocabulary.heads is not None
    for line in set(LINES):
        ids = [i for i in tokenizer.encode(line, add_special_tokens=False).ids if vocabulary.tokens[i] is not None]
        written = (vocabulary.heads[ids[0]] or b"") + vocabulary.bytes_of(ids[1:])
        assert written.decode() == tokenizer.decode(ids)
    wide = vocabulary.with_heads
    word = tokenizer.token_to_id("the")
    assert (wide.tokens[word], wide.tokens[vocabulary.size + word]) == (b" the", b"the")
    assert wide.stop == vocabulary.stop


def test_a_vocabulary_is_read_once() -> None:
    lm = model_of(byte_level(), eos_token="<end>")
    assert Vocabulary.of(lm) is Vocabulary.of(lm)


def test_models_that_cannot_be_read_are_refused() -> None:
    with pytest.raises(Incompatible, match="has none"):
        Vocabulary.of(model_of(None))
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    with pytest.raises(Incompatible, match="neither byte-level BPE"):
        Vocabulary.of(model_of(words))


def test_a_tokenizer_may_say_itself_what_its_tokens_write() -> None:
    lm = model_of(None)
    lm.tokenizer = type("Own", (), {"token_bytes": [b"a", None, b"bc"]})()
    vocabulary = Vocabulary.of(lm)
    assert vocabulary.tokens[:3] == (b"a", None, b"bc")
    assert vocabulary.spell(b"abca") == [0, 2, 0]


# -- spelling -----------------------------------------------------------------------------------------------------


@given(st.binary(max_size=24))
def test_any_bytes_are_spelled(byte_bpe: Vocabulary, pieces: Vocabulary, data: bytes) -> None:
    for vocabulary in (byte_bpe, pieces):
        assert vocabulary.bytes_of(vocabulary.spell(data)) == data


@given(st.text(max_size=24), st.integers(0, 4), st.integers(0, 4))
def test_text_that_is_cut_within_a_character(
    byte_bpe: Vocabulary, pieces: Vocabulary, text: str, front: int, back: int
) -> None:
    data = text.encode()
    data = data[front : len(data) - back]
    for vocabulary in (byte_bpe, pieces):
        assert vocabulary.bytes_of(vocabulary.spell(data)) == data


def test_the_spelling_is_the_tokenizers_own(byte_bpe: Vocabulary) -> None:
    for line in set(LINES):
        assert byte_bpe.spell(line.encode()) == byte_level().encode(line).ids


def test_text_of_a_special_token_is_spelled_as_text(byte_bpe: Vocabulary, pieces: Vocabulary) -> None:
    for vocabulary, text in ((byte_bpe, b"a <end> b"), (pieces, b"a </s> b")):
        assert not set(vocabulary.spell(text)) & vocabulary.stop
        assert vocabulary.bytes_of(vocabulary.spell(text)) == text


def test_sentencepiece_spells_no_space_that_is_not_there(pieces: Vocabulary) -> None:
    assert pieces.tokens[pieces.spell(b"the")[0]] != b" the"
    assert pieces.tokens[pieces.spell(b" the")[0]] == b" the"


def test_what_cannot_be_written_ends_the_spelling() -> None:
    vocabulary = Vocabulary([b"a", b"ab", b"c"])
    assert vocabulary.spell(b"abca") == [1, 2, 0]
    assert vocabulary.spell(b"abxc") == [1]
    assert vocabulary.spell(b"x") == []


# -- the tree -----------------------------------------------------------------------------------------------------


@given(st.lists(st.one_of(st.none(), st.binary(max_size=4)), max_size=40))
def test_the_tree_holds_every_token_once(tokens: list[bytes | None]) -> None:
    trie = Trie.of(tokens)
    found: dict[int, bytes] = {}
    path = bytearray()
    for node in range(len(trie)):
        assert 1 <= trie.depth[node] <= len(path) + 1, "a node stands behind its parent"
        del path[trie.depth[node] - 1 :]
        path.append(trie.byte[node])
        for token in trie.ids[trie.first[node] : trie.first[node + 1]]:
            assert int(token) not in found
            found[int(token)] = bytes(path)
        inside = trie.depth[node + 1 : node + trie.size[node]]
        assert (inside > trie.depth[node]).all()
        behind = node + int(trie.size[node])
        assert behind == len(trie) or trie.depth[behind] <= trie.depth[node]
    assert found == {token: string for token, string in enumerate(tokens) if string}


def test_a_walk_that_skips_visits_what_agrees(byte_bpe: Vocabulary) -> None:
    """The walk of the sheet: tokens that begin with "the" or are a beginning of it, by skipping subtrees."""
    trie, word, node, allowed = byte_bpe.trie, b"the", 0, set()
    prefix = bytearray()
    while node < len(trie):
        del prefix[trie.depth[node] - 1 :]
        prefix.append(trie.byte[node])
        if word.startswith(prefix) or prefix.startswith(word):
            allowed.update(trie.ids[trie.first[node] : trie.first[node + 1]].tolist())
            node += 1
        else:
            node += int(trie.size[node])
    expected = {t for t, s in enumerate(byte_bpe.tokens) if s and (word.startswith(s) or s.startswith(word))}
    assert allowed == expected
    assert expected


# -- real ones ----------------------------------------------------------------------------------------------------


def real(name: str) -> LanguageModel:
    folders = sorted(Path.home().glob(f".cache/unspool/converted/{name}-*/tokenizer.json"))
    if not folders:
        pytest.skip(f"{name} is not in the cache")
    hf = PreTrainedTokenizerFast.from_pretrained(folders[0].parent)
    lm = TableModel(vocab_size=3)
    lm.tokenizer, lm.vocab_size = TextTokenizer(hf), len(hf) + 64
    lm.stop_tokens, lm.name, lm.device = frozenset({hf.eos_token_id}), name, torch.device("cpu")
    return lm


@pytest.mark.model
def test_smollm2() -> None:
    vocabulary = Vocabulary.of(real("smollm2-135m"))
    strings = [string for string in vocabulary.tokens if string is not None]
    assert (len(strings), sum(map(len, strings)), len(vocabulary.trie)) == (49135, 332150, 100297)
    single = {string[0] for string in strings if len(string) == 1}
    missing = set(range(256)) - single
    assert missing == {0x04, 0x06, 0x13, 0x14, 0x16, 0x1D, 0xC0, 0xC1, 0xF1, 0xF2, *range(0xF5, 0x100)}


@pytest.mark.slow
def test_gemma3() -> None:
    lm = real("gemma3-270m")
    vocabulary = Vocabulary.of(lm)
    assert vocabulary.by_bytes[b"\n\n"]
    assert {bytes([byte]) for byte in range(256)} <= vocabulary.by_bytes.keys()
    for text in ("Hello, world!\n\n  def f(x):", "日本語 😀", "a\u2581b"):
        ids = lm.tokenizer.encode(text, special=False)
        assert vocabulary.bytes_of(ids).replace(b"\xe2\x96\x81", b" ") == text.encode().replace(b"\xe2\x96\x81", b" ")
        assert vocabulary.spell(text.encode()) == ids or "\u2581" in text
    assert np.diff(vocabulary.trie.first).sum() == sum(string is not None for string in vocabulary.tokens)
