"""Guessed sums: what is disturbed, and that the recipe runs."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch

from unspool.models import artefacts
from unspool.models.load import load_model
from unspool.training import recipes
from unspool.training.objectives import Batch
from unspool.training.recipes.chained_sums import make_tokenizer, problems
from unspool.training.recipes.guessed_sums import PastWrongTokens


def batch(rows: int = 400) -> tuple[Batch, int]:
    """Sums as the recipe has them, and the length of their questions."""
    tokenizer = make_tokenizer()
    some = list(islice(problems(seed=0), rows))
    tokens = torch.tensor([tokenizer.encode(problem.text) for problem in some])
    weights = torch.ones(rows, tokens.shape[1] - 1)
    weights[:, : len(some[0].question) - 1] = 0
    return Batch(tokens, weights), len(some[0].question)


def test_a_stretch_behind_the_question_is_disturbed() -> None:
    given, question = batch()
    objective = PastWrongTokens(0.5, 6, torch.Generator().manual_seed(0))
    seen = objective.disturbed(given, len(make_tokenizer()))
    wrong = seen != given.inputs
    assert not wrong[:, :question].any()
    assert int(seen.max()) < len(make_tokenizer())
    places = [row.nonzero().flatten().tolist() for row in wrong]
    touched = [row for row in places if row]
    assert all(row[-1] - row[0] < 6 for row in touched)
    assert max(map(len, touched)) > 3
    begun = {row[0] for row in touched}
    assert min(begun) == question
    assert max(begun) > given.inputs.shape[1] - 5
    assert len(begun) > 30
    assert 0.25 < len(touched) / len(places) < 0.5
    assert not (PastWrongTokens(0.0, 6, torch.Generator()).disturbed(given, 17) != given.inputs).any()


def test_what_is_to_be_predicted_stays_right() -> None:
    given, _ = batch(2)
    tokens = given.tokens.clone()
    PastWrongTokens(1.0, 9, torch.Generator().manual_seed(0)).disturbed(given, 17)
    assert torch.equal(given.tokens, tokens)


def test_the_recipe_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNSPOOL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(artefacts, "zoo_dir", lambda: None)
    small = {"layers": 1, "hidden": 16, "mlp": 16, "batch": 2, "steps": 2, "additions": 2, "measured": 5}
    made = recipes.make("guessed-sums", small)
    assert made.card["quality"]["training"]["steps"] == 2
    assert load_model("guessed-sums", device="cpu", progress=False).vocab_size == len(make_tokenizer())
