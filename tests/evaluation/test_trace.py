"""The trace page: what it holds, and that nothing of it can be taken for markup or fetched."""

import html.parser
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.toys import TableModel

from unspool.core.compose import compose
from unspool.core.errors import InvalidInput
from unspool.core.events import Finished, Probe, Scored, Started, Stepped
from unspool.core.texts import Stop
from unspool.core.tree import TokenTree
from unspool.evaluation.trace import TraceRecorder

HOSTILE = [
    "</script>",
    "<!--",
    "<script>alert(1)</script>",
    "\"'",
    "\u2028",
    "&amp;",
    "\\u003c",
    "\udc80",
    "${x}",
    "$data",
]


class Words:
    """A tokenizer of one word a token; the word 0 is special."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)

    def encode(self, text: str) -> list[int]:
        return [self.words.index(text)]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.words[token] for token in ids if token)

    def piece(self, token: int) -> str:
        return self.words[token]


def data_of(page: str) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found is not None
    return json.loads(found.group(1))


def record(model: TableModel, prompts: list[list[int]], method: str = "prompt-lookup", **options: Any) -> TraceRecorder:
    recorder = TraceRecorder(model.tokenizer, prompts, model="table", method=method)
    for event in compose(model, method).decode(prompts, probe=True, **options):
        recorder.update(event, 0.5)
    return recorder


def scored(step: int) -> Scored:
    return Scored(step, 0.001, 0.02, 0.003, 1, 0, 100, ((0, 0),))


def by_hand(words: Sequence[str], tokens: Sequence[int]) -> TraceRecorder:
    """A run of one step, the first token accepted, the others of its draft refused."""
    recorder = TraceRecorder(Words(words), [[1]], model="m", method="x", settings={"note": "<b>"})
    recorder.update(Started(0, 1), 0.0)
    recorder.update(scored(0), 0.1)
    draft = TokenTree(tokens, [-1] * len(tokens))
    probe = Probe(tuple(0.1 for _ in tokens), (0.123456,) * 2)
    recorder.update(Stepped(0, 0, 0, (tokens[0], 0), "", draft, (0,), probe), 0.1)
    recorder.update(Finished(0, "stop-token", (tokens[0], 0)), 0.1)
    return recorder


def test_what_a_run_did_is_all_there() -> None:
    model = TableModel(seed=3, scale=6)
    recorder = record(model, [[0, 1, 2, 3, 0, 1]], stop=Stop(max_new_tokens=20))
    data = data_of(recorder.html())
    tokens = [data["ids"][token] for step in data["steps"] for token in step["t"]]
    text = [0, 1, 2, 3, 0, 1]
    probabilities = [q for step in data["steps"] for q in step["q"]]
    for token, q in zip(tokens, probabilities, strict=True):
        expected = torch.softmax(model.next_logits(text), -1)
        assert token == int(expected.argmax())
        assert q == pytest.approx(float(expected[token]), rel=5e-3)
        text.append(token)
    assert len(tokens) == 20
    assert data["statistics"]["tokens"] == 20
    assert data["answers"] == [{"request": 0, "branch": 0, "reason": "length"}]
    assert any(step["a"] for step in data["steps"])
    for step in data["steps"]:
        assert len(data["shapes"][step["s"]]) == len(step["d"]) == len(step["p"])
        assert [step["d"][node] for node in step["a"]] == step["t"][: len(step["a"])]
        assert 0 <= step["n"] < len(data["rounds"])


def test_shapes_and_pieces_are_stored_once() -> None:
    data = record(TableModel(seed=3, scale=6), [[0, 1, 0, 1]], stop=Stop(max_new_tokens=40)).as_dict()
    assert len({tuple(shape) for shape in data["shapes"]}) == len(data["shapes"]) < len(data["steps"])
    assert len(data["pieces"]) == len(set(data["ids"])) <= 6


def test_batches_are_kept_apart() -> None:
    data = record(TableModel(), [[0, 1], [2, 3, 4]], stop=Stop(max_new_tokens=5)).as_dict()
    for request in (0, 1):
        assert sum(len(step["t"]) for step in data["steps"] if step["r"] == request) == 5
    assert len(data["prompts"]) == len(data["answers"]) == 2


def test_a_search_shows_every_branch() -> None:
    recorder = TraceRecorder(None, [[0]], model="m", method="search")
    for step, branch in enumerate((0, 1, 0)):
        recorder.update(scored(step), 0.1 * step)
        recorder.update(Stepped(0, branch, step, (step,), "", TokenTree.empty(), ()), 0.1 * step)
    recorder.update(Finished(0, "length", (1,), branch=1), 0.3)
    data = recorder.as_dict()
    assert [step["b"] for step in data["steps"]] == [0, 1, 0]
    assert data["answers"][0]["branch"] == 1
    assert "p" not in data["steps"][0]


def test_a_step_that_only_looked_ahead_and_a_run_without_steps() -> None:
    recorder = TraceRecorder(None, [[0]], model="m", method="x")
    assert data_of(recorder.html())["steps"] == []
    recorder.update(scored(0), 0.1)
    recorder.update(Stepped(0, 0, 0, (), "", TokenTree([1, 2], [-1, -1]), ()), 0.1)
    assert data_of(recorder.html())["steps"][0]["t"] == []


def test_special_tokens_have_no_text_and_unfinished_characters_wait() -> None:
    class Bytes(Words):
        def decode(self, ids: Sequence[int]) -> str:
            return b"".join([b"", b"a", b"\xe2", b"\x82", b"\xac"][token] for token in ids).decode(errors="replace")

    recorder = TraceRecorder(Bytes(["<end>", "a", "?", "?", "?"]), [[1]], model="m", method="x")
    recorder.update(scored(0), 0.1)
    recorder.update(Stepped(0, 0, 0, (1, 2, 3, 4, 0), "", TokenTree.empty(), ()), 0.1)
    assert recorder.as_dict()["steps"][0]["x"] == ["a", "", "", "€", None]


@pytest.mark.parametrize("word", HOSTILE)
def test_hostile_text_stays_data(word: str) -> None:
    recorder = by_hand(["<end>", "prompt", word], [2, 2])
    recorder._about["method"] = word
    page = recorder.html()
    page.encode()
    data = data_of(page)
    assert data["pieces"][0] == word
    assert data["steps"][0]["x"] == [word, None]

    elements: list[str] = []

    class Reader(html.parser.HTMLParser):
        def handle_starttag(self, tag: str, attrs: Any) -> None:
            elements.append(tag)

    def parsed(text: str) -> list[str]:
        elements.clear()
        Reader().feed(text)
        return list(elements)

    assert parsed(page) == parsed(by_hand(["<end>", "prompt", "x"], [2, 2]).html())


def test_nothing_can_be_fetched() -> None:
    page = by_hand(["<end>", "a", "b"], [2]).html()
    outside = set(re.findall(r"https?://[^\s\"']+", page)) - {"http://www.w3.org/2000/svg"}
    assert not outside
    assert "default-src 'none'" in page
    assert not re.search(r"<(link|img|iframe|script[^>]+src)", page)


def test_the_policy_allows_the_pages_own_script_and_style() -> None:
    import base64
    import hashlib

    page = by_hand(["<end>", "a", "b"], [2]).html()
    for tag, rule in (("style", "style-src"), ("script", "script-src")):
        content = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.S)
        assert len(content) == 1
        digest = base64.b64encode(hashlib.sha256(content[0].encode()).digest()).decode()
        assert f"{rule} 'sha256-{digest}'" in page
    assert "innerHTML" not in page
    assert "style=" not in page  # the policy would refuse it


def test_probabilities_are_short() -> None:
    assert by_hand(["<end>", "a", "b"], [2]).as_dict()["steps"][0]["q"] == [0.123, 0.123]


def test_a_page_of_many_large_trees_stays_small() -> None:
    recorder = TraceRecorder(None, [[0]], model="m", method="x")
    parents = [-1] * 8 + [node % 8 for node in range(73)]
    for step in range(100):
        draft = TokenTree([(step * 81 + node) % 5000 for node in range(81)], parents)
        recorder.update(scored(step), 0.1 * step)
        recorder.update(Stepped(0, 0, step, (1,), "", draft, (), Probe((0.0123,) * 81, (0.5,))), 0.1 * step)
    assert len(recorder.html()) < 300_000


def test_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = by_hand(["<end>", "a", "b"], [2])
    path = tmp_path / "trace.html"
    assert recorder.write(path) == path
    assert path.read_text(encoding="utf-8") == recorder.html()

    def broken(self: Path, text: str, **_: Any) -> int:
        with self.open("w") as file:
            file.write(text[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", broken)
    with pytest.raises(InvalidInput, match="No space left"):
        recorder.write(path)
    assert path.read_text(encoding="utf-8") == recorder.html()
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot be written"):
        by_hand(["<end>", "a", "b"], [2]).write(tmp_path / "none" / "x.html")
