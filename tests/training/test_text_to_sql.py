"""Text to SQL: the questions, their vagueness, and a training in miniature."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

from unspool.constraints._code_tree import parse
from unspool.models import artefacts
from unspool.models.load import load_model
from unspool.training import recipes
from unspool.training.recipes.text_to_sql import TABLES, Question, exact_match, make_tokenizer, questions


def some(count: int = 400, **more: object) -> list[Question]:
    return list(islice(questions(seed=5, **more), count))  # type: ignore[arg-type]


def test_questions_are_sql_and_are_spelled() -> None:
    tokenizer = make_tokenizer()
    for one in some():
        assert parse("sql", one.sql) is not None, one.sql
        ids = tokenizer.encode(one.prompt + one.sql)
        assert tokenizer.unk_token_id not in ids
        assert 1 not in ids
        assert tokenizer.decode(ids) == one.prompt + one.sql


def test_splits_and_seeds() -> None:
    held, train = some(split="held-out"), some(split="train")
    assert not {one.text for one in held} & {one.text for one in train}
    assert held == some(split="held-out")
    assert len({one.text for one in held}) > 200


def test_vague_words_mean_several_things() -> None:
    tables = {table.name: table for table in TABLES}
    meant: dict[str, set[str]] = {}
    for one in some(20_000, split="all"):
        meant.setdefault(one.text, set()).add(one.sql)
    assert meant["list films"] == {"SELECT title FROM films", "SELECT * FROM films"}
    assert meant["the average size of cities"] == {"SELECT AVG(population) FROM cities", "SELECT AVG(area) FROM cities"}
    assert all(len(sqls) == 1 for text, sqls in meant.items() if not any(w in text for w in ("list", "from", *(
        word for table in tables.values() for word, _, _ in table.vague
    ))))  # fmt: skip
    sure: dict[str, set[str]] = {}
    for one in some(5000, split="all", vague=0.0):
        sure.setdefault(one.text, set()).add(one.sql)
    assert all(len(sqls) == 1 for sqls in sure.values())


def test_a_training_in_miniature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNSPOOL_CACHE", str(tmp_path))
    made = recipes.make("text-to-sql", {"steps": 2, "batch": 4, "layers": 1, "hidden": 32, "mlp": 32, "measured": 3})
    assert made.card["quality"]["training"]["steps"] == 2
    model = load_model("text-to-sql", progress=False)
    assert exact_match(model, some(2)) in (0.0, 0.5, 1.0)


def test_the_committed_model_is_right_about_two_times_out_of_three() -> None:
    zoo = artefacts.zoo_dir()
    assert zoo is not None
    card = artefacts.read_card(zoo / "text-to-sql")
    assert 0.6 <= card["quality"]["exact_match"] <= 0.7
    model = load_model(str(zoo / "text-to-sql"), backend="transformers", dtype="float32", progress=False)
    assert exact_match(model, some(60)) > 0.45
