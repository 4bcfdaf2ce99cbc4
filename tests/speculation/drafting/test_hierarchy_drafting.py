from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.evaluation.small import small_engine
from tests.toys import TableModel

from unspool.core.branch import Branch
from unspool.core.compose import compose
from unspool.core.errors import Incompatible, InvalidInput, WeightsError
from unspool.core.events import Stepped
from unspool.core.model import Capability
from unspool.core.sockets import Budget
from unspool.core.texts import Stop
from unspool.speculation.drafting._ngram_pool import NgramPool
from unspool.speculation.drafting._suffix_array import SuffixArray
from unspool.speculation.drafting.hierarchy_drafting import (
    HierarchyDrafting,
    HierarchyDraftingSettings,
    count_habits,
)

VOCABULARY = 20


def drafter(habits: NgramPool | None = None, corpus: SuffixArray | None = None, **chosen: Any) -> HierarchyDrafting:
    made = HierarchyDrafting(
        HierarchyDraftingSettings(**chosen), habits=habits or NgramPool(), corpus=corpus or SuffixArray()
    )
    compose(TableModel(VOCABULARY), made)
    return made


def branch(tokens: list[int]) -> Branch:
    return Branch(0, 0, tokens, TableModel(VOCABULARY).new_cache(), 0, torch.device("cpu"), [])


def habits() -> NgramPool:
    pool = NgramPool()
    for token in range(10, 14):
        pool.insert(1, (token, 0, 0, 0))
    return pool


CORPUS = SuffixArray.build([[5, 1, 17, 17, 17, 17], [5, 1, 18, 0, 0, 0], [6, 1, 18, 4, 4, 4], [6, 1, 18, 4, 4, 4]], 20)
# 1 was followed by 2 3 4 9, then by 3 4 9 1 ... and lately by 7 7 7 7.
TEXT = [1, 2, 3, 4, 9, 1, 7, 7, 7, 7, 1]


def test_databases_are_asked_in_order_until_there_are_enough() -> None:
    made = drafter(habits(), CORPUS)
    found = made.candidates(branch(TEXT), Budget())
    context = {(7, 7, 7, 7): "context", (2, 3, 4, 9): "context"}
    model = {(token, 0, 0, 0): "model" for token in range(13, 9, -1)}
    assert list(found.items()) == [*context.items(), *model.items(), ((18, 4, 4, 4), "statistics")]
    assert [made.shares[source].queries for source in made.shares] == [1, 1, 1]
    made.settings = HierarchyDraftingSettings(candidates=6)
    assert list(made.candidates(branch(TEXT), Budget())) == [*context, *model]
    made.settings = HierarchyDraftingSettings(candidates=2)
    assert list(made.candidates(branch(TEXT), Budget())) == [*context]
    assert [made.shares[source].queries for source in made.shares] == [3, 2, 1], "the slow ones are not touched"


def test_the_corpus_gives_the_most_frequent_for_every_first_token() -> None:
    made = drafter(corpus=CORPUS, databases=("statistics",))
    assert list(made.candidates(branch([1]), Budget())) == [(18, 4, 4, 4), (17, 17, 17, 17)]
    assert list(made.candidates(branch([5, 1]), Budget())) == [(17, 17, 17, 17), (18, 0, 0, 0)], "a longer match"
    assert list(made.candidates(branch([5, 1, 18]), Budget())) == [(0, 0, 0)], "shorter at the end of a document"


def test_the_context_grows_with_the_text() -> None:
    made = drafter()
    grown = branch([1, 2, 3, 4, 9])
    assert not made.draft(grown, Budget()).tree
    grown.tokens += [1]
    assert made.draft(grown, Budget()).tree.paths == [[0, 1, 2, 3]]
    grown.tokens += [8, 8, 8, 8, 1]
    assert list(made.candidates(grown, Budget())) == [(8, 8, 8, 8), (2, 3, 4, 9)], "the newest first"
    again = branch(list(grown.tokens))
    assert made.candidates(again, Budget()) == made.candidates(grown, Budget())


def test_the_context_keeps_the_last_seven() -> None:
    made = drafter()
    text = [token for turn in range(9) for token in (1, 10 + turn, 2, 2, 2)]
    assert [path[0] for path in made.candidates(branch([*text, 1]), Budget())] == list(range(18, 11, -1))


def test_budgets() -> None:
    made = drafter(habits(), CORPUS)
    for budget in (Budget(nodes=6), Budget(depth=2), Budget(3, 3), Budget(0), Budget(depth=0)):
        tree = made.draft(branch(TEXT), budget).tree
        assert len(tree) <= (6 if budget.nodes is None and budget.depth is None else budget.nodes or 99)
        assert tree.depth <= (99 if budget.depth is None else budget.depth)
    assert len(made.draft(branch(TEXT), Budget(nodes=6)).tree) == 6


def test_a_chain_for_models_without_trees() -> None:
    model = TableModel(VOCABULARY)
    model.capabilities = frozenset({Capability.CACHE_EDITING})
    made = HierarchyDrafting(habits=habits(), corpus=CORPUS)
    compose(model, made)
    assert made.draft(branch(TEXT), Budget()).tree.token_list == [7, 7, 7, 7]


def test_flat_asks_all_in_a_random_order() -> None:
    made = drafter(habits(), CORPUS, flat=True, candidates=2)
    first = [next(iter(made.candidates(branch(TEXT), Budget()).values())) for _ in range(3)]
    assert len(set(first)) == 1, "the branch's own random numbers, which begin anew here"
    walked = branch(TEXT)
    seen = Counter(source for _ in range(40) for source in made.candidates(walked, Budget()).values())
    assert set(seen) == {"context", "model", "statistics"}
    assert len({share.queries for share in made.shares.values()}) == 1


def test_accepted_tokens_are_told_by_source() -> None:
    model = TableModel(VOCABULARY, seed=3, scale=5.0)
    made = HierarchyDrafting(HierarchyDraftingSettings(corpus=None, habits=None))
    events = [e for e in compose(model, made).decode([[1, 2, 3]], stop=Stop(80)) if isinstance(e, Stepped)]
    accepted = sum(len(event.accepted) for event in events)
    assert made.shares["context"].accepted == accepted > 20
    assert made.shares["model"].accepted == made.shares["statistics"].accepted == 0
    assert made.shares["context"].candidates >= len([event for event in events if event.draft])


def test_habits_are_counted_once_an_answer() -> None:
    answers = [[1, 2, 3] * 5, [1, 2, 3, 9], [1, 7, 7], [1, 7, 8], [1, 7, 7], [1, 5, 5]]
    pool = count_habits(answers, ngram=3, most=6, recent=2)
    # (1, 2, 3) and (1, 7, 7) are in two answers each, whatever their number; equals are in the order of their tokens.
    assert pool.get(1) == [(2, 3), (7, 7)]
    assert len(pool) <= 6
    assert count_habits([], ngram=3).keys == []


def test_habits_come_from_a_file(tmp_path: Path) -> None:
    pool = habits()
    pool.bind(VOCABULARY, "a model")
    pool.save(tmp_path / "habits")
    chosen = HierarchyDraftingSettings(habits=str(tmp_path / "habits"), corpus=None)
    made = HierarchyDrafting(chosen)
    compose(TableModel(VOCABULARY), made)
    assert made.habits is not None
    assert made.habits.get(1) == pool.get(1)
    assert made.notes == []
    with pytest.raises(Incompatible, match="21"):
        compose(TableModel(VOCABULARY + 1), HierarchyDrafting(chosen))
    with pytest.raises(WeightsError, match="nowhere"):
        compose(TableModel(VOCABULARY), HierarchyDrafting(HierarchyDraftingSettings(habits=str(tmp_path / "nowhere"))))


def test_what_is_missing_is_said() -> None:
    made = HierarchyDrafting()
    compose(TableModel(VOCABULARY), made)
    assert len(made.notes) == 2
    assert any("no answers" in note for note in made.notes)
    assert any("no tokenizer" in note for note in made.notes)


def test_a_corpus_is_read_and_indexed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNSPOOL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.txt").write_text("the cat sat on the mat")
    lm = small_engine().model
    made = HierarchyDrafting(HierarchyDraftingSettings(corpus=str(tmp_path / "a.txt"), databases=("statistics",)))
    compose(lm, made)
    assert made.notes == []
    text = lm.tokenizer.encode("a cat ")
    mine = Branch(0, 0, text, lm.new_cache(), 0, torch.device("cpu"), [])
    ((candidate, source),) = made.candidates(mine, Budget()).items()
    assert (lm.tokenizer.decode(candidate), source) == ("sat ", "statistics")
    with pytest.raises(InvalidInput, match="does not exist"):
        compose(lm, HierarchyDrafting(HierarchyDraftingSettings(corpus=str(tmp_path / "b.txt"))))
