"""Prompt files, the packaged ones, and prose from the library."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from unspool.core.errors import InvalidInput
from unspool.evaluation.prompts import BUILTIN, Prompt, find_data, load_prompts, passages, prose, spread


@pytest.mark.parametrize("name", BUILTIN)
def test_packaged_prompts(name: str) -> None:
    prompts = load_prompts(name)
    assert len(prompts) == 40
    assert len({prompt.id for prompt in prompts}) == 40
    assert len({prompt.text for prompt in prompts}) == 40
    assert len(set(Counter(prompt.category for prompt in prompts).values())) == 1, "categories are of one size"


def test_the_text_prompts_cover_eight_categories() -> None:
    wanted = {"writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"}
    assert {prompt.category for prompt in load_prompts("builtin-text")} == wanted


def test_a_file_of_spec_bench(tmp_path: Path) -> None:
    rows = [{"question_id": i, "category": "qa", "turns": ["a", "b"], "reference": []} for i in (81, 82)]
    (tmp_path / "spec_bench.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    assert load_prompts(tmp_path / "spec_bench.jsonl") == [
        Prompt("81", "qa", ("a", "b")),
        Prompt("82", "qa", ("a", "b")),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2"),
        ('{"category": "a", "turns": ["x"]}', "'question_id' is missing"),
        ('{"question_id": 1, "category": "a", "turns": []}', "must be a list of texts"),
        ('{"question_id": 1, "category": "a", "turns": "x"}', "must be a list of texts"),
        ('{"question_id": 1, "category": "a", "turns": [""]}', "must be a list of texts"),
        ("[1]", "line 2"),
    ],
)
def test_what_is_no_prompt_is_named_with_its_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"question_id": 0, "category": "a", "turns": ["x"]}\n' + line)
    with pytest.raises(InvalidInput, match=message):
        load_prompts(path)


def test_missing_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="builtin-text, builtin-code"):
        load_prompts("builtin-poems")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(InvalidInput, match="no prompts"):
        load_prompts(tmp_path / "empty.jsonl")


def test_find_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNSPOOL_DATA", raising=False)
    assert find_data("spec_bench.jsonl") is None
    with pytest.raises(InvalidInput, match=r"spec_bench\.jsonl"):
        find_data("spec_bench.jsonl", tmp_path)
    path = tmp_path / "spec_bench.jsonl"
    path.write_text("")
    assert find_data("spec_bench.jsonl", tmp_path) == path
    assert find_data("spec_bench.jsonl", path) == path
    monkeypatch.setenv("UNSPOOL_DATA", str(tmp_path))
    assert find_data("spec_bench.jsonl") == path
    monkeypatch.setenv("UNSPOOL_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(InvalidInput, match="nowhere"):
        find_data("spec_bench.jsonl")


def test_spread_takes_categories_in_turn() -> None:
    prompts = [Prompt(str(i), category, ("x" * i or "y",)) for i, category in enumerate("aaabbc")]
    assert [p.id for p in spread(prompts, 5)] == ["0", "3", "5", "1", "4"]
    assert [p.id for p in spread(prompts, 9)] == ["0", "3", "5", "1", "4", "2"]
    assert [p.id for p in spread(prompts, 3, lambda p: p.id not in "03")] == ["1", "4", "5"]


def test_prose_is_read_from_docstrings_alone(tmp_path: Path) -> None:
    (tmp_path / "b.py").write_text('"""Second\nfile.\n\n>>> no\n\nYes, this."""\nx = "Not a docstring."\n')
    (tmp_path / "a.py").write_text('def f():\n    """First file."""\n')
    (tmp_path / "broken.py").write_text("def")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "c.py").write_text('"""A test."""')
    assert list(prose(tmp_path)) == [("a.py", "First file."), ("b.py", "Second file."), ("b.py", "Yes, this.")]


def test_passages(tmp_path: Path) -> None:
    for name in "dacb":
        (tmp_path / f"{name}.py").write_text(
            f'"""Short.\n\n{name.upper()} {"word " * 30}end.\n\nMore {"words " * 30}"""'
        )

    def encode(text: str) -> list[int]:
        return [ord(letter) for letter in text]

    found = passages(encode, 4, 16, folder=tmp_path)
    assert ["".join(map(chr, tokens)) for tokens in found] == [f"{name} word word word"[:16] for name in "ABCD"]
    assert passages(encode, 2, 16, skip=2, folder=tmp_path) == found[2:]
    with pytest.raises(InvalidInput, match="give 4 passages of 16 tokens; 5 were asked for"):
        passages(encode, 5, 16, folder=tmp_path)


def test_the_running_python_has_prose() -> None:
    name, paragraph = next(prose())
    assert name.endswith(".py")
    assert " " in paragraph
