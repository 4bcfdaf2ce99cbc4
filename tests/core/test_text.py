from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.models.shapes import ByteTokenizer

from unspool.core.text import TextStream


class Pieces:
    """Every token is a piece of bytes; ``None`` is a special token, which has no text."""

    def __init__(self, pieces: Sequence[bytes | None]) -> None:
        self.pieces = pieces

    def encode(self, text: str) -> list[int]:
        raise NotImplementedError

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(self.pieces[i] or b"" for i in ids).decode("utf-8", errors="replace")


class Words(Pieces):
    """Like Metaspace: every token is a word with a space before it, and the first space of a text is dropped."""

    def decode(self, ids: Sequence[int]) -> str:
        return super().decode(ids).removeprefix(" ")


class Fallback(Pieces):
    """Like byte fallback: a run of byte tokens that is not valid as a whole is one replacement character a byte."""

    def decode(self, ids: Sequence[int]) -> str:
        data = b"".join(self.pieces[i] or b"" for i in ids)
        try:
            return data.decode()
        except UnicodeDecodeError:
            out, at = "", 0
            while at < len(data):
                if data[at] < 0x80:
                    out, at = out + chr(data[at]), at + 1
                    continue
                end = at
                while end < len(data) and data[end] >= 0x80:
                    end += 1
                try:
                    out += data[at:end].decode()
                except UnicodeDecodeError:
                    out += "\ufffd" * (end - at)
                at = end
            return out


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place for place in places if place <= len(data))})
    return [data[a:b] for a, b in pairwise(edges)]


texts = st.text(alphabet=st.sampled_from("ab é中😀🏳️\u200d🌈\n"), max_size=14)


@given(texts, st.lists(st.integers(0, 60), max_size=40))
def test_pieces_add_up_wherever_characters_are_cut(text: str, places: list[int]) -> None:
    pieces = cut(text.encode(), places)
    stream = TextStream(Pieces(pieces))
    got = [stream.push(token) for token in range(len(pieces))]
    assert "".join(got) + stream.flush() == text == stream.text
    assert not any("\ufffd" in piece for piece in got), "half a character is never shown"


@given(st.lists(st.binary(min_size=1, max_size=5), max_size=12))
def test_pieces_add_up_for_any_bytes(pieces: list[bytes]) -> None:
    tokenizer = Pieces(pieces)
    stream = TextStream(tokenizer)
    got = "".join(stream.push(token) for token in range(len(pieces))) + stream.flush()
    assert got == tokenizer.decode(range(len(pieces)))


@given(texts)
def test_byte_fallback(text: str) -> None:
    pieces = [bytes([byte]) for byte in text.encode()]
    stream = TextStream(Fallback(pieces))
    got = [stream.push(token) for token in range(len(pieces))]
    assert "".join(got) + stream.flush() == text
    assert not any("\ufffd" in piece for piece in got)


@given(st.lists(st.sampled_from([b" the", b" a", b"n", None, b" \xe4\xb8\xad"]), max_size=10))
def test_spaces_that_depend_on_what_came_before(pieces: list[bytes | None]) -> None:
    tokenizer = Words(pieces)
    stream = TextStream(tokenizer)
    got = "".join(stream.push(token) for token in range(len(pieces))) + stream.flush()
    assert got == tokenizer.decode(range(len(pieces)))


def test_a_character_comes_when_it_is_whole() -> None:
    stream = TextStream(Pieces([b"a\xf0", b"\x9f", b"\x98\x80\xe4", b"\xb8", b"\xad", b"\xff", b"!"]))
    assert [stream.push(token) for token in range(7)] == ["a", "", "😀", "", "中", "", "\ufffd!"]


def test_an_end_within_a_character() -> None:
    stream = TextStream(Pieces([b"a", b"\xf0\x9f"]))
    assert stream.push(0) + stream.push(1) == "a"
    assert stream.flush() == "\ufffd"
    assert stream.flush() == ""


# -- stop strings -------------------------------------------------------------------------------------------------


@given(
    st.text(alphabet="ab😀", max_size=16),
    st.lists(st.integers(0, 40), max_size=30),
    st.lists(st.text(alphabet="ab😀", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_stop_strings_cut_exactly(text: str, places: list[int], stops: list[str]) -> None:
    pieces = cut(text.encode(), places)
    stream = TextStream(Pieces(pieces), stops)
    got, shown = [], ""
    for token in range(len(pieces)):
        got.append(stream.push(token))
        shown += got[-1]
        # What is known of the text ends with a whole character.
        known = b"".join(pieces[: token + 1]).decode(errors="ignore")
        assert (stream.stopped is not None) == any(stop in known for stop in stops), "it stops at once, and only then"
        if stream.stopped is not None:
            assert shown == known[: min(at for stop in stops if (at := known.find(stop)) >= 0)]
            break
        assert known.startswith(shown)
    else:
        shown += stream.flush()
        assert shown == text
        assert stream.stopped is None
    assert stream.text == shown
    if stream.stopped is not None:
        assert stream.push(0) == ""


def test_the_beginning_of_a_stop_string_is_held_back() -> None:
    stream = TextStream(Pieces([b"one EN", b"D or E", b"ND two"]), ["END."])
    assert [stream.push(token) for token in range(3)] == ["one ", "END or ", "END two"]
    stream = TextStream(Pieces([b"one EN", b"D", b". more"]), ["END.", "zzz"])
    assert [stream.push(token) for token in range(3)] == ["one ", "", ""]
    assert stream.stopped == "END."
    assert stream.flush() == ""
    assert stream.text == "one "


def test_what_was_held_back_comes_at_the_end() -> None:
    stream = TextStream(Pieces([b"one EN"]), ["END"])
    assert stream.push(0) == "one "
    assert stream.flush() == "EN"
    assert stream.text == "one EN"


def test_a_stop_string_may_end_within_a_token_and_a_character_sequence() -> None:
    stream = TextStream(Pieces([b"x\xf0\x9f", b"\x98\x80y", b"z"]), ["😀y"])
    assert stream.push(0) == "x"
    assert stream.push(1) == ""
    assert stream.stopped == "😀y"


@given(st.lists(st.integers(0, 63), max_size=20))
def test_the_tokenizer_of_the_tiny_models(ids: list[int]) -> None:
    tokenizer = ByteTokenizer()
    stream = TextStream(tokenizer)
    assert "".join(map(stream.push, ids)) + stream.flush() == tokenizer.decode(ids)


@pytest.mark.parametrize("text", ["the cat, and 中文 😀", "é", ""])
def test_round_trip_of_the_tiny_tokenizer(text: str) -> None:
    assert ByteTokenizer().decode(ByteTokenizer().encode(text)) == text
