"""VocabTrim: which tokens are kept, what is drafted with them, and what is counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.contracts.exact import FastTable, Softmax, continuations, fit
from tests.models.shapes import ByteTokenizer, backend, prompts
from tests.toys import TableCache, TableModel

from unspool.core.branch import Branch
from unspool.core.compose import Composition, compose
from unspool.core.errors import Incompatible, InvalidInput, WeightsError
from unspool.core.events import Finished, Stepped
from unspool.core.sockets import Budget, Draft
from unspool.core.texts import Stop
from unspool.models.trimmed_head import TrimmedHead
from unspool.speculation.drafting.vocabtrim import TokenCounts, VocabTrim, calibration_tokens, indispensable

TARGET = FastTable(6, seed=1, scale=1.2)
DRAFT = FastTable(6, seed=2, scale=1.2, mix=TARGET, blend=0.6)


def made(sampler: Any = None, target: Any = TARGET, draft: Any = DRAFT, **settings: Any) -> Composition:
    return compose(target, "vocabtrim", settings=settings, sampler=sampler, models={"draft": draft})


def drafter(composition: Composition) -> VocabTrim:
    assert isinstance(composition.drafter, VocabTrim)
    return composition.drafter


def one(composition: Composition, tokens: list[int]) -> Draft:
    branch = Branch(0, 0, tokens, TableCache(), 0, torch.device("cpu"), [])
    return drafter(composition).propose([branch], [Budget()])[0]


def counts_file(folder: Path, counts: list[int]) -> str:
    saved = TokenCounts()
    saved.bind(len(counts), "test")
    saved.counts = torch.tensor(counts)
    saved.save(folder / "counts.safetensors")
    return str(folder / "counts.safetensors")


# -- what is kept -------------------------------------------------------------------------------------------------


def test_the_most_frequent_tokens_are_kept() -> None:
    counts = TokenCounts()
    counts.bind(8, "test")
    counts.add([5, 5, 5, 2, 2, 7, 7, 1])
    assert counts.counts.tolist() == [0, 1, 2, 0, 0, 3, 0, 2]
    assert counts.most_frequent(1) == [5]
    assert counts.most_frequent(3) == [2, 5, 7]
    assert counts.most_frequent(5) == [0, 1, 2, 5, 7], "of equals the lower number"
    assert counts.most_frequent(3, always=[6, 0]) == [0, 5, 6]
    assert counts.most_frequent(1, always=[6, 0]) == [0, 6], "those always, even beyond the number"
    assert counts.most_frequent(8, always=[6]) == list(range(8))


def test_stops_and_bytes_are_always_kept() -> None:
    model, other = TableModel(64), TableModel(64)
    assert indispensable(model, other) == []
    model.stop_tokens, other.stop_tokens = frozenset({63}), frozenset({62})
    model.tokenizer = ByteTokenizer()
    kept = indispensable(model, other)
    assert {62, 63} <= set(kept)
    assert set(kept) - {62, 63} == set(range(30)), "the single letters; the test's other bytes are parts of characters"


def test_without_calibration_the_first_tokens_are_kept() -> None:
    assert drafter(made(keep=2)).model.kept.tolist() == [0, 1]
    assert drafter(made()).model.kept.tolist() == [0, 1], "a quarter of six, rounded up"


def test_calibration_by_counts_and_tokens_and_text(tmp_path: Path) -> None:
    path = counts_file(tmp_path, [0, 0, 9, 1, 5, 1])
    assert drafter(made(keep=3, calibration=path)).model.kept.tolist() == [2, 3, 4]

    tokens = torch.tensor([0, 0, 0, 4, 4, 1, 0, 0, 5, 5], dtype=torch.int32)
    save_file({"tokens": tokens}, tmp_path / "tokens.safetensors")
    assert calibration_tokens(str(tmp_path / "tokens.safetensors"), TARGET).tolist() == tokens.tolist()
    texts = {"offsets": torch.tensor([0, 6, 10], dtype=torch.int32), "prompts": torch.tensor([3, 2], dtype=torch.int32)}
    save_file({"tokens": tokens, **texts}, tmp_path / "answers.safetensors")
    answers = str(tmp_path / "answers.safetensors")
    assert calibration_tokens(answers, TARGET).tolist() == [4, 4, 1, 5, 5], "prompts are not counted"
    assert drafter(made(keep=2, calibration=answers)).model.kept.tolist() == [4, 5]

    model = TableModel(64)
    model.tokenizer = ByteTokenizer()
    (tmp_path / "text.txt").write_text("the thethe")
    the = model.tokenizer.encode("the")[0]
    assert calibration_tokens(str(tmp_path / "text.txt"), model).tolist().count(the) == 3


def test_what_cannot_be_counted_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot be read"):
        made(calibration=str(tmp_path / "nothing.safetensors"))
    (tmp_path / "broken.safetensors").write_text("no")
    with pytest.raises(InvalidInput, match="no safetensors"):
        made(calibration=str(tmp_path / "broken.safetensors"))
    (tmp_path / "text.txt").write_text("a")
    with pytest.raises(InvalidInput, match="no tokenizer"):
        made(calibration=str(tmp_path / "text.txt"))
    save_file({"tokens": torch.tensor([6])}, tmp_path / "foreign.safetensors")
    with pytest.raises(InvalidInput, match="does not have"):
        made(calibration=str(tmp_path / "foreign.safetensors"))
    with pytest.raises(Incompatible, match="vocabulary of 3"):
        made(calibration=counts_file(tmp_path, [1, 2, 3]))
    with pytest.raises(Incompatible, match="only 6 tokens"):
        made(keep=7)


# -- what is drafted ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("branching", [(), (3, 2)])
@pytest.mark.parametrize("sampler", [None, Softmax()], ids=["greedy", "sampled"])
def test_only_kept_tokens_are_drafted(sampler: Any, branching: tuple[int, ...], tmp_path: Path) -> None:
    path = counts_file(tmp_path, [0, 3, 0, 2, 0, 1])
    composition = made(sampler, keep=3, calibration=path, branching=branching, adapt=0)
    for start in range(6):
        draft = one(composition, [start, 1])
        assert set(draft.tree.token_list) <= {1, 3, 5}
        for node in range(len(draft.tree)):
            above = draft.tree.parent_list[node]
            logits = DRAFT.next_logits([start, 1, *draft.tree.path_tokens(above)])[[1, 3, 5]]
            if sampler is None:
                ranked = logits.argsort(descending=True).tolist()
                siblings = [draft.tree.token_list[child] for child in draft.tree.children(above)]
                assert siblings == [[1, 3, 5][place] for place in ranked[: len(siblings)]]
            else:
                assert draft.q is not None
                q = draft.q[draft.q_rows[node]]
                assert torch.allclose(q[[1, 3, 5]].double(), torch.softmax(logits, -1))
                assert not q[[0, 2, 4]].any()


@pytest.mark.parametrize("settings", [{"keep": 2}, {"keep": 3, "adapt": 5}, {"keep": 3, "branching": (2, 2)}])
def test_the_distribution_is_the_targets(settings: dict[str, Any]) -> None:
    sampler = Softmax()
    tokens = continuations(made(sampler, **settings), [1, 3, 0], 1500, 2, seed=4)
    assert fit(tokens, sampler.exact(TARGET, [1, 3, 0], 2)) > 1e-3


@pytest.mark.parametrize("shape", ["llama", "gemma3", "t5", "mamba2"])
def test_networks_give_the_greedy_text_and_only_kept_tokens(shape: str) -> None:
    target, draft = backend(shape), backend(shape, noise=0.1)
    composition = compose(target, "vocabtrim", settings={"keep": 40, "adapt": 0}, models={"draft": draft})
    assert isinstance(drafter(composition).model, TrimmedHead)
    asked, stop = prompts(2), Stop(16)
    events = list(composition.decode(asked, stop=stop))
    plain = [event.tokens for event in compose(target).decode(asked, stop=stop) if isinstance(event, Finished)]
    assert [event.tokens for event in events if isinstance(event, Finished)] == plain
    steps = [event for event in events if isinstance(event, Stepped)]
    assert max(token for step in steps for token in step.draft.token_list) < 40
    assert sum(len(step.accepted) for step in steps) > 0


# -- what is counted ----------------------------------------------------------------------------------------------


def test_what_the_target_says_is_counted_and_kept_in_the_end() -> None:
    composition = made(keep=3, adapt=16)
    tokens: list[int] = []
    for event in composition.decode([[1, 2, 3]], stop=Stop(60)):
        tokens += event.tokens if isinstance(event, Stepped) else ()
    part = drafter(composition)
    assert part.counts.counts.tolist() == torch.bincount(torch.tensor(tokens), minlength=6).tolist()
    one(composition, [1])
    assert part.model.kept.tolist() == part.counts.most_frequent(3) != [0, 1, 2]


def test_without_adapting_the_calibration_stays(tmp_path: Path) -> None:
    composition = made(keep=2, adapt=0, calibration=counts_file(tmp_path, [1, 0, 0, 0, 0, 1]))
    list(composition.decode([[1, 2, 3]], stop=Stop(60)))
    assert drafter(composition).model.kept.tolist() == [0, 5]


def test_counts_are_saved_and_loaded(tmp_path: Path) -> None:
    first = made(keep=2, adapt=0)
    list(first.decode([[1, 2, 3]], stop=Stop(40)))
    first.save_learned(tmp_path)
    second = made(keep=2, adapt=0)
    assert second.load_learned(tmp_path) == ["vocabtrim"]
    one(second, [1])
    counts = drafter(first).counts
    assert drafter(second).model.kept.tolist() == counts.most_frequent(2)
    assert counts.nbytes == 6 * 8
    with pytest.raises(WeightsError, match="needs counts"):
        counts.restore({"counts": torch.tensor([-1] * 6)})
    drafter(second).counts.clear()
    one(second, [1])
    assert drafter(second).model.kept.tolist() == [0, 1]
