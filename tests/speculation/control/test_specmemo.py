"""SpecMemo: no byte beyond the budget, trees that shrink with the text, nodes by measured value, the same text."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
import torch
from tests.contracts.exact import RandomDrafts
from tests.models.shapes import VOCAB, backend, prompts

from unspool.core.branch import Branch
from unspool.core.compose import Composition, compose
from unspool.core.errors import Incompatible, InvalidInput, WeightsError
from unspool.core.events import Event, Finished, Stepped
from unspool.core.sockets import Budget, Draft, Drafter, Proposal
from unspool.core.texts import Stop
from unspool.core.tree import TokenTree
from unspool.models.conversation import Conversation
from unspool.models.memory import BudgetExceeded
from unspool.speculation.control.specmemo import Places, SpecMemo, SpecMemoSettings, node_values

SHAPE = TokenTree([0] * 15, [-1, -1, -1, 0, 0, 1, 3, 3, 4, 6, 6, 9, 11, 12, 13])  # 15 nodes, 9 levels


class Bushy(Drafter):
    """A tree of many nodes, of tokens that come from a rule."""

    def draft(self, branch: Branch, budget: Budget) -> Draft:
        return Draft(SHAPE.with_tokens([(branch.tokens[-1] * 7 + node * 5) % VOCAB for node in range(15)]))


class Right(Drafter):
    """What plain decoding will say, as a chain, with a wrong elder sibling beside every token."""

    def __init__(self, text: list[int], depth: int = 6) -> None:
        super().__init__()
        self.text, self.depth = text, depth

    def draft(self, branch: Branch, budget: Budget) -> Draft:
        said = len(branch.tokens) - branch.prompt_length
        tokens, parents, node = [], [], -1
        for token in self.text[said : said + self.depth]:
            tokens += [(token + 1) % VOCAB, token]
            parents += [node, node]
            node = len(tokens) - 1
        return Draft(TokenTree(tokens, parents))


def run(made: Composition, asked: list[list[int]], tokens: int) -> tuple[dict[int, list[int]], list[Event]]:
    events = list(made.decode(asked, stop=Stop(tokens)))
    return {e.index: list(e.tokens) for e in events if isinstance(e, Finished)}, events


def budgeted(drafter: Any, budget: int | str | None, shape: str = "llama", **more: Any) -> Composition:
    values = {"budget": budget, "block": 8, "nodes": 15, "costs": "flat", **more}
    return compose(backend(shape), [drafter, SpecMemo(SpecMemoSettings(**values))])


def memo(made: Composition) -> SpecMemo:
    assert isinstance(made.controller, SpecMemo)
    return made.controller


def plain(asked: list[list[int]], tokens: int, shape: str = "llama") -> dict[int, list[int]]:
    return {index: run(compose(backend(shape)), [prompt], tokens)[0][0] for index, prompt in enumerate(asked)}


def needed(length: int, rows: int = 1, shape: str = "llama") -> int:
    """Bytes that plain decoding of texts of that length needs."""
    lm: Any = backend(shape)
    sizes = lm.footprint(8)
    return max(sizes.peak(rows, end, 1, 1, sizes.room(end - 1)) for end in range(1, length + 1))


@pytest.mark.parametrize("shape", ["llama", "gemma3", "gpt2"])
@pytest.mark.parametrize("room", [1.0, 1.1, 1.4])
def test_the_budget_holds_and_the_text_is_the_same(room: float, shape: str) -> None:
    asked = prompts(1)
    budget = int(room * needed(14 + 60, shape=shape))
    made = budgeted(Bushy(), budget, shape)
    texts, events = run(made, asked, 60)
    assert texts == plain(asked, 60, shape)
    assert memo(made).ledger.peak <= budget
    # The ledger would have refused more: that nothing was refused says that the prediction held.
    sizes = [len(e.draft) for e in events if isinstance(e, Stepped)]
    assert sizes[0] > 0
    if room == 1.0:
        # What the last block has left is all that there is at the end.
        assert sum(sizes[-5:]) < sum(sizes[:5]) / 2
    # It shrinks smoothly: by single nodes, not from all to none.
    assert len({*sizes[:-1]}) > 3


@pytest.mark.parametrize("shape", ["llama", "gemma3"])
def test_a_batch_keeps_to_one_budget(shape: str) -> None:
    asked = prompts(4)
    budget = int(1.15 * needed(14 + 30, rows=4, shape=shape))
    made = budgeted(Bushy(), budget, shape)
    texts, events = run(made, asked, 30)
    assert texts == plain(asked, 30, shape)
    assert memo(made).ledger.peak <= budget
    steps = [e for e in events if isinstance(e, Stepped)]
    assert any(e.draft for e in steps)
    # Rows have trees of one size, but for the last tokens of a text.
    for _, group in itertools.groupby(steps, key=lambda e: e.step):
        assert len({len(e.draft) for e in group if e.draft.depth < 8 and len(e.draft) > 8}) <= 1


def test_the_largest_tree_that_fits_is_taken() -> None:
    lm: Any = backend("llama")
    made = budgeted(Bushy(), int(1.2 * needed(80)), calibration=1000)
    control = memo(made)
    allowed: list[tuple[int, int, int]] = []
    ask = control.affordable

    def spied(branches: list[Branch]) -> int:
        nodes = ask(branches)
        allowed.append((nodes, control.predicted(nodes, branches), control.predicted(nodes + 1, branches)))
        return nodes

    control.affordable = spied  # type: ignore[assignment, method-assign]
    run(made, prompts(1), 60)
    limit = control.settings.budget
    assert limit is not None
    for nodes, fits, more in allowed:
        assert fits <= limit
        assert nodes == 15 or more > limit
    assert len({nodes for nodes, _, _ in allowed}) > 4
    assert lm.cache_block is None
    assert lm.ledger is None


def test_what_cannot_fit_is_said_before_anything_is_read() -> None:
    lm = backend("llama")
    before = lm.forwards
    with pytest.raises(BudgetExceeded, match=r"prompts of up to 14 tokens need \d.*raise the budget"):
        run(budgeted(Bushy(), needed(14) // 2), prompts(1), 5)
    assert lm.forwards == before
    # A text that outgrows the budget ends with an error, not with more memory.
    made = budgeted(Bushy(), needed(30))
    with pytest.raises(BudgetExceeded):
        run(made, prompts(1), 60)
    assert memo(made).ledger.peak <= needed(30)


def test_prompts_are_read_in_pieces_that_fit() -> None:
    lm = backend("llama")
    asked = [[(3 * place) % VOCAB for place in range(100)]]
    made = budgeted(Bushy(), needed(104))
    before = lm.forwards
    texts, _ = run(made, asked, 4)
    assert texts == plain(asked, 4)
    chunk = memo(made).chunk
    assert chunk is not None
    assert chunk < 64
    assert not memo(made).fits(100, width=2 * chunk)
    assert lm.forwards - before >= 100 // chunk


def test_budgets_are_written_as_people_write_them() -> None:
    assert SpecMemoSettings(budget="64MB").budget == 64_000_000  # type: ignore[arg-type]
    assert SpecMemoSettings(budget="64MiB").budget == 64 * 2**20  # type: ignore[arg-type]
    made = compose(backend("llama"), "prompt-lookup+specmemo", settings={"budget": "1.5 GB", "costs": "flat"})
    assert memo(made).settings.budget == 1_500_000_000
    with pytest.raises(InvalidInput, match="budget"):
        compose(backend("llama"), "specmemo", settings={"budget": "much"})
    with pytest.raises(Incompatible, match="memory budget"):
        compose(backend("mamba2"), "specmemo")


# -- which nodes ----------------------------------------------------------------------------------------------------


def test_places_are_judged_by_what_came() -> None:
    places = Places()
    tree = TokenTree([5, 6, 7, 8, 9, 8], [-1, -1, 1, 1, 0, 4])
    places.count(tree, [6, 8, 3])
    assert places.trials[0, :3].tolist() == [1, 1, 0]
    assert places.hits[0, :3].tolist() == [0, 1, 0]
    assert places.trials[1, :3].tolist() == [1, 1, 0]
    assert places.hits[1, :3].tolist() == [0, 1, 0]
    assert int(places.trials[2:].sum()) == 0
    places.count(tree, [1, 8])
    assert places.trials[0, :3].tolist() == [2, 2, 0]
    assert int(places.trials[1:].sum()) == 2
    rates = places.rates()
    assert rates[0, 1] == pytest.approx((1 + 2 * 0.25) / (2 + 2))


def test_the_nodes_of_the_highest_value_are_kept() -> None:
    rng = random.Random(2)
    for _ in range(40):
        parents = [-1] + [rng.randrange(-1, node) for node in range(1, 8)]
        draft = Draft(TokenTree(list(range(8)), parents))
        # Elder siblings are better here, so that the best set is closed under them by itself.
        rates = [sorted((rng.random() for _ in range(16)), reverse=True) for _ in range(16)]
        values = node_values(draft, rates)
        rank = [parents[:node].count(parent) for node, parent in enumerate(parents)]
        for node, value in enumerate(values):
            expected = 1.0
            for at in draft.tree.path(node):
                expected *= rates[draft.tree.depths[at]][rank[at]]
            assert value == pytest.approx(expected)
        # Greedy by value is the best closed set of any size.
        for count in range(1, 8):
            best = max(
                sum(values[n] for n in nodes)
                for nodes in itertools.combinations(range(8), count)
                if all(parents[n] == -1 or parents[n] in nodes for n in nodes)
            )
            assert sum(sorted(values, reverse=True)[:count]) == pytest.approx(best)


def test_an_elder_sibling_is_never_dropped_before_a_younger_one() -> None:
    """Of siblings that were drawn one after the other a later one means nothing without the earlier ones."""
    draft = Draft(TokenTree([1, 2, 3, 4], [-1, -1, 1, 0]))
    rates = [[0.1, 0.9] + [0.0] * 14, [0.8] * 16] + [[0.0] * 16] * 14
    assert node_values(draft, rates) == pytest.approx([0.1, 0.1, 0.08, 0.08])


@pytest.mark.parametrize("proposal", [Proposal.SAMPLED, Proposal.WITH_REPLACEMENT, Proposal.WITHOUT_REPLACEMENT])
def test_what_is_dropped_never_depends_on_what_was_drawn(proposal: Proposal) -> None:
    lm = backend("llama")
    control = SpecMemo(SpecMemoSettings(costs="flat", calibration=0, nodes=6, share=0.9))
    compose(lm, [control])
    kept = set()
    for seed in range(30):
        branch = Branch(0, 0, [3, 4], lm.new_cache(), seed, torch.device("cpu"), [])
        drafter = RandomDrafts(proposal, 9, seed=4)
        draft = drafter.draft(branch, Budget())
        (cut,) = control.allocate([branch], [draft])
        kept.add((tuple(draft.tree.parent_list), tuple(cut.tree.parent_list), tuple(cut.q_rows)))
    assert len(kept) == len({shape for shape, _, _ in kept}), "equal shapes were cut differently"


def test_after_calibration_no_larger_tree_is_taken_than_pays() -> None:
    asked = prompts(1)
    text = plain(asked, 60)[0]
    made = budgeted(Right(text), None, calibration=2)
    control = memo(made)
    sizes: list[list[int]] = []
    for _ in range(3):
        texts, events = run(made, asked, 40)
        assert texts[0] == text[:40]
        sizes.append([len(e.draft) for e in events if isinstance(e, Stepped)])
    assert control.places.requests == 2
    # The first of two siblings is always wrong, the second right: to take one is to take both, all the way down.
    assert control.places.rates()[0, 0] < 0.3
    assert control.places.rates()[0, 1] > 0.8
    assert max(sizes[0]) == max(sizes[1]) == 12

    # Where a wider pass is dear, or nothing is ever right, plain decoding is what is left.
    wrong = [(token + 1) % VOCAB for token in text]
    hopeless = budgeted(Right(wrong), None, calibration=1, share=1.0)
    dear = budgeted(Right(text), None, calibration=1)
    memo(dear)._costs = type("Dear", (), {"of": staticmethod(lambda tokens: float(tokens**2))})()  # type: ignore[assignment]
    for drafts, cheap in ((dear, False), (hopeless, True)):
        run(drafts, asked, 40)
        texts, events = run(drafts, asked, 40)
        assert texts[0] == text[:40]
        after = [len(e.draft) for e in events if isinstance(e, Stepped)]
        assert (max(after) <= 12) if cheap else (max(after) == 0)


def test_calibration_is_kept_saved_and_stopped(tmp_path: Any) -> None:
    asked = prompts(3)
    made = budgeted(Bushy(), None, calibration=2)
    run(made, asked, 10)
    places = memo(made).places
    assert places.requests == 2
    trials = int(places.trials.sum())
    assert trials > 0
    run(made, asked, 10)
    assert int(places.trials.sum()) == trials
    places.save(tmp_path / "places")
    other = Places()
    other.load(tmp_path / "places")
    assert other.requests == 2
    assert torch.equal(other.trials, places.trials)
    with pytest.raises(WeightsError, match="16 x 16"):
        other.restore({"hits": torch.zeros(3, 3), "trials": torch.zeros(3, 3), "requests": torch.tensor(1)})
    other.clear()
    assert other.requests == 0
    assert dict(memo(made).learned) == {"specmemo": places}


def test_a_conversation_shrinks_its_drafts_and_drops_nothing_that_fits() -> None:
    lm = backend("llama")
    talk = Conversation(lm)
    control = SpecMemo(SpecMemoSettings(budget=int(1.02 * needed(100)), block=8, nodes=15, costs="flat"))  # type: ignore[arg-type]
    made = compose(talk, [Bushy(), control])
    text: list[int] = []
    largest = []
    for turn in range(6):
        text = [*text, 7 + turn, 20, 21]
        assert control.fits(len(text) + 12)
        texts, events = run(made, [text], 12)
        assert texts == plain([text], 12)
        largest.append(max(len(e.draft) for e in events if isinstance(e, Stepped)))
        text += texts[0]
    assert largest[0] == 15
    assert largest == sorted(largest, reverse=True)
    assert largest[-1] < 15
    assert control.ledger.peak <= (control.settings.budget or 0)
    assert not control.fits(len(text) + 200)
    assert talk.reused > 60
