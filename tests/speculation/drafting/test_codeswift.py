from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.evaluation.small import small_engine
from tests.toys import TableModel

from unspool.core.branch import Branch
from unspool.core.compose import compose
from unspool.core.errors import InvalidInput
from unspool.core.events import Finished, Stepped
from unspool.core.model import Capability, LanguageModel
from unspool.core.sockets import Budget, Draft
from unspool.core.texts import Stop
from unspool.speculation.drafting._suffix_array import SuffixArray
from unspool.speculation.drafting.codeswift import CodeSwift, CodeSwiftSettings

VOCABULARY = 20
# What is near at hand, and common code.
NEAR = SuffixArray.build([[1, 2, 3, 4, 5], [9, 2, 3, 6]], VOCABULARY)
COMMON = SuffixArray.build([[2, 3, 7, 7], [2, 3, 7, 8], [2, 3, 4], [2, 3, 4], [2, 3, 4]], VOCABULARY)


def drafter(repository: SuffixArray | None = None, corpus: SuffixArray | None = None, **chosen: Any) -> CodeSwift:
    made = CodeSwift(
        CodeSwiftSettings(**chosen), repository=repository or SuffixArray(), corpus=corpus or SuffixArray()
    )
    compose(TableModel(VOCABULARY), made)
    return made


def branch(tokens: list[int], lm: LanguageModel | None = None) -> Branch:
    return Branch(0, 0, tokens, (lm or TableModel(VOCABULARY)).new_cache(), 0, torch.device("cpu"), [])


def paths(draft: Draft) -> dict[tuple[int, ...], float]:
    """Every node by its path, with the weight of its path as a share of the whole."""
    found: dict[tuple[int, ...], float] = {}
    for node in range(len(draft.tree)):
        path = tuple(draft.tree.path_tokens(node))
        found[path] = draft.confidence[node] * found.get(path[:-1], 1.0)
    return found


@pytest.mark.parametrize("parallel", [True, False])
def test_occurrences_are_added_up_with_their_weights(parallel: bool) -> None:
    made = drafter(NEAR, COMMON, repository_weight=4, cache=0, parallel=parallel)
    # Near: 4 5 and 6 once each, at weight 4; common: 7 7, 7 8 once and 4 three times. The text itself says nothing.
    found = paths(made.draft(branch([2, 3]), Budget()))
    whole = 2 * 4 + 5
    expected = {(4,): 7, (4, 5): 4, (6,): 4, (7,): 2, (7, 7): 1, (7, 8): 1}
    assert found == pytest.approx({path: weight / whole for path, weight in expected.items()})
    few = made.draft(branch([2, 3]), Budget(nodes=3))
    assert set(paths(few)) == {(4,), (4, 5), (6,)}
    assert made.counts.searched == 2


def test_a_longer_match_weighs_more() -> None:
    made = drafter(NEAR, COMMON, repository_weight=1, match_weight=4, cache=0)
    # 1 2 3 occurs near by; in common code only 2 3 does.
    found = paths(made.draft(branch([1, 2, 3]), Budget()))
    expected = {(4,): 1 + 3 / 4, (4, 5): 1, (7,): 2 / 4, (7, 7): 1 / 4, (7, 8): 1 / 4}
    assert found == pytest.approx({path: weight / (1 + 5 / 4) for path, weight in expected.items()})


def test_the_text_of_the_request_belongs_to_the_repository() -> None:
    made = drafter(cache=0)
    assert made.draft(branch([5, 6, 7, 8, 5, 6]), Budget()).tree.token_list == [7, 8, 5, 6]
    assert not made.draft(branch([5, 6, 7]), Budget()).tree


def test_a_chain_for_models_without_trees() -> None:
    model = TableModel(VOCABULARY)
    model.capabilities = frozenset({Capability.CACHE_EDITING})
    made = CodeSwift(repository=NEAR, corpus=COMMON)
    compose(model, made)
    for _ in range(2):
        tree = made.draft(branch([1, 2, 3, 2, 3]), Budget()).tree
        assert tree.is_chain
        assert tree.token_list[0] == 4


def test_the_cache_answers_what_was_retrieved_before() -> None:
    made = drafter(NEAR, COMMON, cache_context=4)
    text = [0, 0, 2, 3]
    first = made.draft(branch(text), Budget())
    second = made.draft(branch([7, *text]), Budget())
    assert (made.counts.searched, made.counts.cached) == (1, 1)
    assert {tuple(first.tree.path_tokens(n)) for n in first.tree.leaves} == set(made.fetched.get((0, 0, 2, 3)))
    assert set(paths(first)) == set(paths(second))
    made.draft(branch([0, 2, 3]), Budget())
    assert made.counts.searched == 2, "too short a text has no place in the cache"


def test_a_budget_does_not_narrow_what_the_cache_learns() -> None:
    made = drafter(NEAR, COMMON)
    assert len(made.draft(branch([0, 0, 2, 3]), Budget(nodes=2)).tree) == 2
    assert len(made.draft(branch([0, 0, 2, 3]), Budget()).tree) > 2


def decoded(made: CodeSwift, prompt: list[int], size: int = 40) -> tuple[tuple[int, ...], int]:
    model = TableModel(VOCABULARY, seed=5, scale=4.0)
    events = list(compose(model, made).decode([prompt], stop=Stop(size)))
    (text,) = [event.tokens for event in events if isinstance(event, Finished)]
    return text, sum(isinstance(event, Stepped) for event in events)


def test_what_the_model_wrote_is_kept() -> None:
    made = CodeSwift(CodeSwiftSettings(corpus=None, length=5, cache_context=4))
    prompt = [1, 2, 3, 4]
    text, steps = decoded(made, prompt)
    whole = [*prompt, *text]
    for at in range(4, len(whole) - 5):
        # Complete continuations of every four tokens, unless four newer ones have followed them since.
        known = made.verified.get(tuple(whole[at - 4 : at]))
        assert tuple(whole[at : at + 5]) in known or len(known) == 4
    same, again = decoded(made, prompt)
    assert same == text
    assert again < min(steps, 12), "five and one tokens a step"
    before = made.counts.searched
    assert made.counts.cached > 0
    decoded(made, prompt)
    assert made.counts.searched == before, "nothing is searched any more"
    assert set(made.learned) == {"codeswift.verified", "codeswift.fetched"}
    assert not CodeSwift(CodeSwiftSettings(cache=0)).learned


def test_the_cache_is_bounded() -> None:
    made = CodeSwift(CodeSwiftSettings(corpus=None, cache=10))
    decoded(made, [1, 2, 3, 4], 60)
    assert len(made.verified.keys) == 10
    assert len(made.fetched.keys) <= 10


class _White:
    """Tokens 0 to 4 are white space."""

    def encode(self, text: str) -> list[int]:
        return [ord(letter) % VOCABULARY for letter in text]

    def decode(self, ids: Any) -> str:
        return "".join(["\n", "  ", "\t", "\n\n", " "][i] if i < 5 else "x" for i in ids)


def test_after_white_space_retrieval_is_left_out_by_chance() -> None:
    lm = TableModel(VOCABULARY)
    lm.tokenizer = _White()
    made = CodeSwift(CodeSwiftSettings(skip=0.3, cache=0), repository=NEAR, corpus=COMMON)
    compose(lm, made)
    white, other = branch([2, 3]), branch([2, 7])
    drafts = [made.draft(white, Budget()).tree for _ in range(400)]
    skipped = sum(not tree for tree in drafts)
    assert 80 < skipped < 160, "three in ten"
    assert made.counts.skipped == skipped
    for _ in range(20):
        assert made.draft(other, Budget()).tree
    assert made.counts.skipped == skipped
    always = CodeSwift(CodeSwiftSettings(skip=0, cache=0), repository=NEAR, corpus=COMMON)
    compose(lm, always)
    assert all(always.draft(white, Budget()).tree for _ in range(20))


def test_files_are_read_and_some_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNSPOOL_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "repo"
    (root / "docs").mkdir(parents=True)
    (root / "a.py").write_text("def one():\n    return 11\n")
    (root / "b.py").write_text("def two():\n    return 22\n")
    (root / "docs" / "c.md").write_text("def three():\n    return 33\n")
    lm = small_engine().model

    def after(text: str, **chosen: Any) -> set[str]:
        made = CodeSwift(CodeSwiftSettings(corpus=None, length=2, skip=0, **chosen))
        compose(lm, made)
        draft = made.draft(branch(lm.tokenizer.encode(text), lm), Budget())
        return {lm.tokenizer.decode(path) for path in paths(draft) if len(path) == 2}

    assert after("return ", repository=str(root)) == {"11", "22", "33"}
    assert after("return ", repository=str(root), exclude=("docs/*", "b.py")) == {"11"}
    assert after("return ", repository=str(root / "b.py")) == {"22"}
    with pytest.raises(InvalidInput, match="nowhere does not exist"):
        after("return ", repository=str(tmp_path / "nowhere"))


def test_what_is_missing_is_said() -> None:
    made = CodeSwift()
    compose(TableModel(VOCABULARY), made)
    assert "no tokenizer" in made.notes[0]
