"""The suites: their items, where data comes from, and how answers are judged."""

import gzip
import io
import json
import math
import sys
import tarfile
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unspool.core.errors import InvalidInput
from unspool.evaluation import suites
from unspool.evaluation.answering import Answer, TurnRecord
from unspool.evaluation.prompts import load_prompts
from unspool.evaluation.suites import Item, Judged, Suite, _data
from unspool.evaluation.suites.perplexity import Perplexity


def said(*texts: str, **statistics: Any) -> Answer:
    return Answer(tuple(TurnRecord(text, len(text.split()), 1, "stop-token", 1.0, 0.1, statistics) for text in texts))


def lines(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")
    return path


HUMANEVAL = [
    {
        "task_id": "HumanEval/0",
        "prompt": 'from typing import List\n\n\ndef total(xs: List[int]) -> int:\n    """ Sum. """\n',
        "entry_point": "total",
        "canonical_solution": "    return sum(xs)\n",
        "test": "\n\ndef check(candidate):\n    assert candidate([1, 2]) == 3\n    assert candidate([]) == 0\n",
    },
    {
        "task_id": "HumanEval/1",
        "prompt": 'def even(n):\n    """ Whether n is even. """\n',
        "entry_point": "even",
        "canonical_solution": "    return n % 2 == 0\n",
        "test": "def check(candidate):\n    assert candidate(2)\n    assert not candidate(3)\n",
    },
]
MBPP = [
    {
        "task_id": 11,
        "text": "Write a function to double a number.",
        "code": "def double(n):\r\n  return 2 * n",
        "test_setup_code": "",
        "test_list": ["assert double(2) == 4", "assert double(-1) == -2"],
        "challenge_test_list": ["assert double(0) == 1"],
    }
]


@pytest.fixture(autouse=True)
def no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNSPOOL_DATA", raising=False)


def test_the_list_of_suites() -> None:
    names = list(suites.available())
    assert names == sorted(names)
    assert {
        "builtin-code", "builtin-text", "file", "gsm8k", "humaneval", "jsonschemabench", "mbpp", "perplexity",
        "repetition", "spec-bench",
    } <= set(names)  # fmt: skip
    for name in names:
        suite = suites.get(name)
        assert suite.name == name
        assert suite.summary
        assert suite.metrics
    with pytest.raises(InvalidInput, match=r"no suite 'humanevil'; there are .*humaneval"):
        suites.get("humanevil")


# -- where data comes from ----------------------------------------------------------------------------------------


def test_a_file_a_folder_and_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = lines(tmp_path / "humaneval.jsonl", *HUMANEVAL)
    suite = suites.get("humaneval")
    assert [item.id for item in suite.load(path)] == ["HumanEval/0", "HumanEval/1"]
    assert suite.load(tmp_path) == suite.load(path)
    monkeypatch.setenv("UNSPOOL_DATA", str(tmp_path))
    assert suite.load() == suite.load(path)
    packed = tmp_path / "packed" / "HumanEval.jsonl.gz"
    packed.parent.mkdir()
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert suite.load(packed.parent) == suite.load(path)


def test_data_that_is_nowhere_names_all_three_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)  # not installed
    with pytest.raises(InvalidInput, match=r"--data PATH.*UNSPOOL_DATA.*datasets library.*unspool\[datasets\]"):
        suites.get("gsm8k").load()
    monkeypatch.setenv("UNSPOOL_DATA", str(tmp_path))  # a folder that lacks it
    with pytest.raises(InvalidInput, match="no data for gsm8k"):
        suites.get("gsm8k").load()
    with pytest.raises(InvalidInput, match="holds none of"):
        suites.get("gsm8k").load(tmp_path)
    with pytest.raises(InvalidInput, match="no such file or folder"):
        suites.get("gsm8k").load(tmp_path / "nothing")


def test_two_files_that_fit_are_not_chosen_between(tmp_path: Path) -> None:
    for name in ("gsm8k_a.jsonl", "gsm8k_b.jsonl"):
        lines(tmp_path / name, {"question": "?", "answer": "#### 1"})
    with pytest.raises(InvalidInput, match=r"gsm8k_a\.jsonl, gsm8k_b\.jsonl"):
        suites.get("gsm8k").load(tmp_path)
    assert len(suites.get("gsm8k").load(tmp_path / "gsm8k_a.jsonl")) == 1


def test_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(path: str, name: str | None, **options: Any) -> list[dict[str, Any]]:
        asked.append((path, name, options))
        return HUMANEVAL

    fake = types.ModuleType("datasets")
    fake.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", fake)
    assert len(suites.get("humaneval").load()) == 2
    assert asked == [("openai/openai_humaneval", None, {"split": "test"})]

    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route to the hub")

    fake.load_dataset = unreachable  # type: ignore[attr-defined]
    with pytest.raises(InvalidInput, match=r"--data PATH.*ConnectionError: no route to the hub"):
        suites.get("humaneval").load()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"question": "?", "answer": "#### 1"}\nnot json\n', "line 2 is not JSON"),
        ('{"question": "?"}\n', "line 1: the field 'answer' is missing"),
        ('{"question": "?", "answer": "no number"}\n', "holds no number"),
        ('{"question": "?", "answer": 7}\n', "'answer' is '7'"),
        ("[1, 2]\n", "an object is expected"),
        ("\n", "is empty"),
        ("\xff", "cannot be read"),
    ],
)
def test_broken_files_are_told_with_the_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "gsm8k.jsonl"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(InvalidInput, match=message):
        suites.get("gsm8k").load(path)


def test_line_separators_inside_strings_do_not_end_a_line(tmp_path: Path) -> None:
    path = tmp_path / "gsm8k.jsonl"
    path.write_text('{"question": "one\u2028two\x85", "answer": "#### 1"}\n', encoding="utf-8")
    assert "one\u2028two" in suites.get("gsm8k").load(path)[0].turns[0]


# -- programs -----------------------------------------------------------------------------------------------------


def judge(suite: Suite, items: Sequence[Item], texts: Sequence[str]) -> list[float]:
    done: list[int] = []
    answers = [Judged(item, said(text)) for item, text in zip(items, texts, strict=True)]
    scores = suite.judge_all(answers, done.append)
    assert sorted(done) == list(range(len(items)))
    return [score["passed"] for score in scores]


def test_humaneval(tmp_path: Path) -> None:
    suite = suites.get("humaneval")
    items = suite.load(lines(tmp_path / "humaneval.jsonl", *HUMANEVAL))
    assert [suite.reference(item) for item in items][1] == HUMANEVAL[1]["prompt"] + HUMANEVAL[1]["canonical_solution"]
    assert judge(suite, items, [suite.reference(item) or "" for item in items]) == [1, 1]
    assert judge(suite, items, [suite.planted(item) or "" for item in items]) == [0, 0]
    assert judge(suite, items, ["    return sum(xs)\n", "    return n % 2 == 1\n"]) == [1, 0]
    assert judge(suite, items, ["```python\ndef total(xs: List[int]):\n    return sum(xs)\n```", ""]) == [1, 0]


def test_leaving_early_does_not_pass(tmp_path: Path) -> None:
    suite = suites.get("humaneval")
    items = suite.load(lines(tmp_path / "humaneval.jsonl", *HUMANEVAL))
    tricks = ["def total(xs):\n    pass\nimport sys\nsys.exit(0)\n", "def even(n):\n    pass\nimport os\nos._exit(0)\n"]
    assert judge(suite, items, tricks) == [0, 0]


def test_mbpp(tmp_path: Path) -> None:
    suite = suites.get("mbpp")
    (item,) = suite.load(lines(tmp_path / "mbpp.jsonl", *MBPP))
    assert "double a number" in item.turns[0]
    assert "assert double(2) == 4" in item.turns[0]
    answers = [
        suite.reference(item) or "",
        suite.planted(item) or "",
        "[BEGIN]\ndef double(n):\n  return n*2\n[DONE] x",
    ]
    assert judge(suite, [item] * 3, answers) == [1, 0, 1]


def test_the_packaged_tasks_pass_with_their_solutions_and_fail_with_a_bug() -> None:
    suite = suites.get("builtin-code")
    items = suite.load()
    assert len(items) == 40
    assert [item.turns for item in items] == [prompt.turns for prompt in load_prompts("builtin-code")]
    fenced = [f"Here it is:\n\n```python\n{suite.reference(item)}```\nDone." for item in items]
    right = judge(suite, items, fenced)
    assert [item.id for item, one in zip(items, right, strict=True) if not one] == []
    wrong = judge(suite, items, [suite.planted(item) or "" for item in items])
    assert [item.id for item, one in zip(items, wrong, strict=True) if one] == []


def test_pass_at_k_of_samples() -> None:
    suite = suites.get("humaneval")
    scores = suite.over_samples([{"passed": 1.0}] * 3 + [{"passed": 0.0}] * 9)
    assert scores == {"pass@1": pytest.approx(0.25), "pass@10": 1.0}


# -- texts --------------------------------------------------------------------------------------------------------


def test_gsm8k(tmp_path: Path) -> None:
    suite = suites.get("gsm8k")
    (item,) = suite.load(lines(tmp_path / "gsm8k.jsonl", {"question": "How many?", "answer": "2 * 3 = 6\n#### 6"}))
    assert item.turns[0].startswith("How many?")
    assert suite.judge(item, said("So 2 * 3 is\n#### 6")) == {"exact_match": 1, "stated": 1}
    assert suite.judge(item, said("So it is 6.")) == {"exact_match": 1, "stated": 0}
    assert suite.judge(item, said("So it is 7.")) == {"exact_match": 0, "stated": 0}
    assert suite.judge(item, Answer(())) == {"exact_match": 0, "stated": 0}


def test_spec_bench_is_judged_by_category(tmp_path: Path) -> None:
    rows = [
        {"question_id": 1, "category": "math_reasoning", "turns": ["?"], "reference": ["#### 4"]},
        {"question_id": 2, "category": "qa", "turns": ["?"], "reference": [["London", "in London"]]},
        {"question_id": 3, "category": "translation", "turns": ["?"], "reference": ["the cat sat on the mat"]},
        {"question_id": 4, "category": "writing", "turns": ["one", "two"], "reference": ["for a judge"]},
        {"question_id": 5, "category": "qa", "turns": ["?"]},
    ]
    suite = suites.get("spec-bench")
    items = suite.load(lines(tmp_path / "spec_bench.jsonl", *rows))
    assert items[3].turns == ("one", "two")
    texts = ["It is 4.", "It was held in London.", "the cat sat on the mat", "a b a b a b", "x"]
    scores = suite.judge_all([Judged(item, said(text)) for item, text in zip(items, texts, strict=True)])
    assert scores[0]["exact_match"] == 1
    assert scores[1]["contains_answer"] == 1
    assert scores[1]["f1"] == pytest.approx(4 / 7)
    assert scores[2]["rougeL"] == 1
    assert set(scores[3]) == {"rep-2", "rep-3", "rep-4", "diversity"}
    assert scores[3]["rep-2"] == pytest.approx(3 / 5)
    sets = suite.over_items([Judged(item, said(text)) for item, text in zip(items, texts, strict=True)])
    assert sets["bleu"](range(5)) == pytest.approx(100)
    assert sets["distinct-1"]([3]) == pytest.approx(2 / 6)
    for measure in sets.values():  # the fast way is the way
        each = [measure([other for other in range(5) if other != place]) for place in range(5)]
        assert measure.without() == pytest.approx(each)  # type: ignore[attr-defined]


def packed(path: Path, files: dict[str, str]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content.encode())
            tar.addfile(info, io.BytesIO(content.encode()))
    return path


def test_jsonschemabench(tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"n": {"$ref": "#/definitions/count"}}, "required": ["n"],
              "definitions": {"count": {"type": "integer"}}}  # fmt: skip
    path = packed(
        tmp_path / "jsonschemabench_x.tar.gz",
        {
            "Github_easy/o1.json": json.dumps(schema),
            "Github_easy/._o1.json": "junk of a file system",
            "Glaiveai2K/a.json": '{"type": "array"}',
            "Glaiveai2K/far.json": '{"$ref": "https://example.org/x.json"}',
            "Glaiveai2K/lost.json": '{"$ref": "#/definitions/none"}',
            "Glaiveai2K/wrong.json": '{"type": "nothing"}',
        },
    )
    suite = suites.get("jsonschemabench")
    items = suite.load(tmp_path)
    assert [(item.id, item.category) for item in items] == [
        ("Github_easy/o1", "Github_easy"), ("Glaiveai2K/a", "Glaiveai2K"), ("Glaiveai2K/wrong", "Glaiveai2K"),
    ]  # fmt: skip
    assert json.dumps(schema) in items[0].turns[0]
    assert suite.judge(items[0], said('{"n": 1}')) == {"valid": 1, "json": 1}
    assert suite.judge(items[0], said('{"n": "1"}')) == {"valid": 0, "json": 1}
    assert suite.judge(items[2], said("{}")) == {}
    assert "3 schemas cannot be judged by" in suite.notes()[0]

    folder = tmp_path / "unpacked"
    with tarfile.open(path) as tar:
        tar.extractall(folder, filter="data")
    assert suite.load(folder) == items
    (tmp_path / "broken.tar.gz").write_bytes(path.read_bytes()[:200])
    with pytest.raises(InvalidInput, match="cannot be read as a tar file"):
        suite.load(tmp_path / "broken.tar.gz")
    rows = lines(tmp_path / "rows.jsonl", {"unique_id": "Github_easy---o1", "json_schema": json.dumps(schema)})
    (row,) = suite.load(rows)
    assert (row.category, row.data["schema"]) == ("Github_easy", schema)


def test_repetition_continues_human_text(tmp_path: Path) -> None:
    words = [f"word{n}" for n in range(140)]
    path = tmp_path / "book.txt"
    path.write_text("Short.\n\n" + "\n".join(words) + "\n\nEnd.")
    suite = suites.get("repetition")
    (item,) = suite.load(path)
    assert item.turns[0].split() == words[:32]
    assert item.data["human"].split() == words[32:128]
    assert item.chat is False
    (tmp_path / "short.txt").write_text("Too short.")
    with pytest.raises(InvalidInput, match="no paragraph of 128 words"):
        suite.load(tmp_path / "short.txt")


def test_repetition_tells_looping_from_human_text() -> None:
    rng = np.random.default_rng(0)
    suite = suites.get("repetition")
    items = [Item(str(n), "text", ("p",), data={"human": f"h{n}"}) for n in range(24)]
    human = [" ".join(f"w{word}" for word in rng.integers(0, 500, 60)) for _ in items]
    loops = ["again and again and again and again"] * 24

    def features(texts: Sequence[str]) -> np.ndarray:
        """Human texts and varied ones lie together, looping ones elsewhere."""
        return rng.normal([[4.0 if "again" in text else 0.0] * 6 for text in texts], 1.0)

    found = {}
    for name, texts in (("human", human), ("loops", loops)):
        judged = [Judged(item, said(text)) for item, text in zip(items, texts, strict=True)]
        sets = {metric: of(range(24)) for metric, of in suite.over_items(judged, features).items()}
        found[name] = {**suite.judge(items[0], judged[0].answer), **sets}
    assert found["loops"]["rep-2"] > 0.5 > found["human"]["rep-2"]
    assert found["loops"]["diversity"] < 0.2 < found["human"]["diversity"]
    assert found["loops"]["self-bleu"] > 99 > 50 > found["human"]["self-bleu"]
    assert found["loops"]["distinct-2"] < 0.05 < found["human"]["distinct-2"]
    assert found["loops"]["mauve"] < 0.3 < 0.7 < found["human"]["mauve"]
    assert found["loops"]["frontier_integral"] > found["human"]["frontier_integral"]
    assert "mauve" not in suite.over_items(judged)


# -- perplexity ---------------------------------------------------------------------------------------------------


class Letters:
    """A tokenizer of single characters."""

    def encode(self, text: str, special: bool = True) -> list[int]:
        return [ord(letter) for letter in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))


@pytest.mark.parametrize(("window", "stride"), [(8, 3), (8, 7), (5, 1), (100, 50), (2, 1)])
def test_every_token_but_the_first_counts_once(tmp_path: Path, window: int, stride: int) -> None:
    path = tmp_path / "a.txt"
    path.write_text("héllo wörld, " * 3, encoding="utf-8")
    suite = Perplexity(window, stride)
    (whole,) = suite.load_texts([path])
    windows = suite.windows([whole], Letters())
    text = whole.data["text"]
    counted = [token for one in windows for token in one.data["tokens"][one.data["score_from"] :]]
    assert "".join(map(chr, counted)) == text[1:]
    assert sum(one.data["bytes"] for one in windows) == len(text[1:].encode())
    for one in windows[1:]:
        assert 1 <= one.data["score_from"] <= window
        assert one.data["score_from"] == window - stride
        assert len(one.data["tokens"]) <= window


def test_perplexity_is_that_of_all_tokens_together() -> None:
    suite = Perplexity()
    items = [Item(f"a#{n}", "a", (), data={"bytes": size}) for n, size in enumerate((20, 5))]
    turns = [TurnRecord("", tokens, 1, "scored", 1.0, None, {"nll": nll}) for tokens, nll in ((10, 20.0), (2, 1.0))]
    judged = [Judged(item, Answer((turn,))) for item, turn in zip(items, turns, strict=True)]
    sets = suite.over_items(judged)
    assert sets["perplexity"]([0, 1]) == pytest.approx(math.exp(21 / 12))
    assert sets["bits_per_byte"]([0, 1]) == pytest.approx(21 / math.log(2) / 25)


@pytest.mark.parametrize(("window", "stride"), [(1, 1), (8, 0), (8, 8)])
def test_windows_that_cannot_be(window: int, stride: int) -> None:
    with pytest.raises(InvalidInput, match=r"--(window|stride) is"):
        Perplexity(window, stride)


def test_a_text_that_is_too_short(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("x")
    suite = Perplexity()
    with pytest.raises(InvalidInput, match="1 tokens"):
        suite.windows(suite.load(tmp_path / "one.txt"), Letters())
    (tmp_path / "none.txt").write_text("")
    with pytest.raises(InvalidInput, match="is empty"):
        suite.load(tmp_path / "none.txt")


# -- files of one's own -------------------------------------------------------------------------------------------


def test_the_fields_of_a_file_choose_the_measures(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "mine.jsonl",
        {"question_id": 1, "category": "code", "turns": ["Write f"], "tests": ["assert f(1) == 2"], "entry_point": "f"},
        {"question_id": 2, "turns": ["1 + 1?"], "answer": 2},
        {"question_id": 3, "turns": ["Capital of France?"], "answer": ["Paris"], "max_new_tokens": 8, "stop": "\n"},
        {"question_id": 4, "turns": ["Translate"], "reference": "the cat sat", "chat": False},
        {"question_id": 5, "turns": ["JSON"], "schema": {"type": "object"}},
        {"question_id": 6, "turns": ["a", "b"], "note": "ignored"},
    )
    suite = suites.get(str(path))
    items = suite.load()
    assert items == suites.get("file").load(path)
    assert (items[2].max_new_tokens, items[2].stop, items[3].chat) == (8, ("\n",), False)
    texts = ["```\ndef f(x):\n    return x + 1\n```", "It is 2.", "It is Paris.", "the cat sat", "{}", "hm hm hm hm"]
    scores = suite.judge_all([Judged(item, said(text)) for item, text in zip(items, texts, strict=True)])
    assert scores[0]["passed"] == 1
    assert scores[1]["exact_match"] == 1
    assert scores[2]["contains_answer"] == 1
    assert scores[3]["rouge1"] == 1
    assert scores[4]["valid"] == 1
    assert set(scores[5]) == {"rep-2", "rep-3", "rep-4", "diversity"}
    assert "programs were run in a sandbox with: " in suite.notes()[0]
    assert suite.over_samples([scores[0], {**scores[0], "passed": 0.0}])["pass@1"] == 0.5


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question_id": 1}, "'turns' is missing"),
        ({"question_id": 1, "turns": []}, "'turns'"),
        ({"turns": ["a"]}, "'question_id' is missing"),
        ({"question_id": 1, "turns": ["a"], "tests": [1]}, "'tests' must be"),
        ({"question_id": 1, "turns": ["a"], "chat": "yes"}, "'chat'"),
        ({"question_id": 1, "turns": ["a"], "max_new_tokens": 0}, "'max_new_tokens'"),
        ({"question_id": 1, "turns": ["a"], "schema": "object"}, "'schema'"),
    ],
)
def test_lines_that_are_no_questions(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        suites.get(str(lines(tmp_path / "mine.jsonl", row))).load()


def test_ids_occur_once(tmp_path: Path) -> None:
    path = lines(tmp_path / "mine.jsonl", *[{"question_id": 1, "turns": ["a"]}] * 2)
    with pytest.raises(InvalidInput, match="'1' occurs twice"):
        suites.get(str(path)).load()


def test_records_of_a_json_file(tmp_path: Path) -> None:
    path = tmp_path / "all.json"
    path.write_text(json.dumps([{"a": 1}, {"a": 2}]))
    assert [row for _, row in _data.read_records(path)] == [{"a": 1}, {"a": 2}]
