"""Look-back decoding against a plain reading of its definition, and what its look-ahead costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from tests.sampling.helpers import Ran, RandomTrees, run
from tests.toys import TableModel
from torch import Tensor

from unspool.core.branch import Branch, mix_seed
from unspool.core.compose import compose
from unspool.core.decode import Greedy
from unspool.core.errors import Incompatible
from unspool.core.events import Stepped
from unspool.core.model import Capability
from unspool.core.sockets import Budget, Constraint, Distribution, Draft, LookAhead, Move, Node, Search
from unspool.core.tree import ROOT, TokenTree
from unspool.sampling.look_back_decoding import LookBackDecoding, LookBackSettings, divergences, log_probs


class Reference:
    """The sheet's steps, everything computed anew at each of them."""

    def __init__(self, model: TableModel, made: LookBackSettings, seed: int) -> None:
        self.model, self.made = model, made
        self.rng = torch.Generator().manual_seed(mix_seed(seed, 0, 0))
        self.alarms = 0

    def log_p(self, text: Sequence[int]) -> Tensor:
        return torch.log_softmax(self.model.next_logits(text), -1)

    def kl(self, p: Tensor, q: Tensor) -> float:
        return max(float((p.exp() * (p - q)).sum()), 0.0)

    def step(self, tokens: list[int], m: int) -> int:
        made, n = self.made, len(tokens)
        log_p = self.log_p(tokens)
        prompt = range(max(m - made.prefix, 0) + 1, m + 1)
        earlier = [j for j in range(1, n) if j in prompt or (j > m and j >= n - made.window)]
        nearest = min((self.kl(log_p, self.log_p(tokens[:j])) for j in earlier), default=float("inf"))
        top = log_p.topk(min(made.k, len(log_p))).indices
        if nearest > made.alpha:
            if made.otherwise == "greedy":
                return int(log_p.argmax())
            scores = log_p[top]
        else:
            self.alarms += 1
            if len(top) == 1:
                return int(top[0])
            scores = {
                "probability": log_p[top],
                "uniform": torch.zeros(len(top), dtype=torch.float64),
                "prefix": -torch.tensor(
                    [
                        min(self.kl(self.log_p([*tokens, v]), self.log_p(tokens[:j])) for j in prompt)
                        for v in top.tolist()
                    ],
                    dtype=torch.float64,
                ),
            }[made.coherence]
        probs = torch.zeros_like(log_p)
        probs[top] = torch.softmax(scores, -1)
        return Distribution(probs).draw(self.rng)

    def decode(self, prompt: list[int], length: int) -> list[int]:
        tokens = list(prompt)
        for _ in range(length):
            tokens.append(self.step(tokens, len(prompt)))
        return tokens[len(prompt) :]


SETTINGS = st.fixed_dictionaries(
    {
        "k": st.integers(1, 6),
        "alpha": st.sampled_from([1e-6, 0.05, 0.3, 0.8, 3.0]),
        "otherwise": st.sampled_from(["greedy", "greedy", "topk_sample"]),
        "coherence": st.sampled_from(["prefix", "prefix", "uniform", "probability"]),
        "prefix": st.sampled_from([1, 2, 100]),
        "window": st.sampled_from([1, 3, 100]),
    }
)


@given(SETTINGS, st.integers(0, 999), st.lists(st.integers(0, 5), min_size=1, max_size=7), st.sampled_from([1, 3, 256]))
@examples(max_examples=60)
def test_the_definition_holds(values: dict[str, Any], seed: int, prompt: list[int], chunk: int) -> None:
    """Whatever enters the history in which pass, and whatever was drafted, the draws are the same."""
    model = TableModel(6, seed, scale=0.7)
    made = LookBackSettings(**values)
    expected = Reference(model, made, seed).decode(prompt, 20)
    assert run(model, [prompt], LookBackDecoding(made), 20, seed=seed, chunk=chunk).tokens == [expected]
    drafted = run(model, [prompt], LookBackDecoding(made), 20, seed=seed, chunk=chunk, drafter=RandomTrees(model, seed))
    assert drafted.tokens == [expected]


def test_a_long_prompt_is_read_in_pieces_and_remembered() -> None:
    model = TableModel(9, 2, scale=0.5)
    prompt = torch.randint(9, (700,), generator=torch.Generator().manual_seed(0)).tolist()
    for prefix in (5, 300, 1000):
        made = LookBackSettings(k=4, alpha=0.4, prefix=prefix)
        expected = Reference(model, made, 3).decode(prompt, 4)
        assert run(model, [prompt], LookBackDecoding(made), 4, seed=3).tokens == [expected]


def test_a_batch_is_its_requests() -> None:
    model = TableModel(6, 5, scale=0.7)
    prompts = [[1, 2, 3], [4], [0, 5]]
    sampler = LookBackDecoding(LookBackSettings(alpha=1e-6, k=1))
    together = run(model, prompts, sampler, 25).tokens
    assert together == [run(model, [prompt], sampler, 25).tokens[0] for prompt in prompts]


def stepped(ran: Ran) -> list[Stepped]:
    return [event for event in ran.events if isinstance(event, Stepped)]


def test_looking_ahead_costs_width_and_no_pass() -> None:
    model = TableModel(6, 0, scale=0.7)
    made = LookBackSettings(k=3, alpha=0.2)
    reference = Reference(model, made, 0)
    reference.decode([1, 2], 40)
    assert 5 < reference.alarms < 38
    ran = run(model, [[1, 2]], LookBackDecoding(made), 40)
    # One more if the last token was an alarm: what was seen ahead of it is then not needed.
    assert ran.forwards in (40, 41)
    empty = [event for event in stepped(ran) if not event.tokens]
    looked = [event for event in stepped(ran) if len(event.draft) == 3]
    assert len(looked) == reference.alarms
    assert all(event.accepted for event in looked), "the candidate that was drawn is committed with its scores"
    assert 0 < len(empty) <= reference.alarms


def test_no_alarm_is_greedy_at_the_same_price() -> None:
    class Distant(LookBackDecoding):
        def nearest(self, node: Node) -> float:
            return float("inf")

    model = TableModel(6, 1)
    ran = run(model, [[1, 2, 3]], Distant(), 30)
    assert ran.tokens == run(model, [[1, 2, 3]], Greedy(), 30).tokens
    assert ran.forwards == 30


def test_alarms_on_draft_nodes() -> None:
    """An alarm below the end of the committed text keeps what was accepted and goes on from there."""
    asked: list[int] = []

    class Watching(LookBackDecoding):
        def distribution(self, node: Node) -> Distribution:
            try:
                return super().distribution(node)
            except LookAhead:
                asked.append(node.index)
                raise

    model = TableModel(6, 4, scale=0.7)
    made = LookBackSettings(k=3, alpha=0.1)
    ran = run(model, [[1, 2]], Watching(made), 60, seed=1, drafter=RandomTrees(model, 1))
    assert ran.tokens == [Reference(model, made, 1).decode([1, 2], 60)]
    assert sum(index > ROOT for index in asked) >= 3
    assert ROOT in asked
    assert ran.forwards < 60
    assert any(event.accepted and len(event.tokens) == len(event.accepted) for event in stepped(ran))


def test_candidates_of_a_draft_need_no_step_of_their_own() -> None:
    """Where a draft holds all candidates as children already, the choice falls at once, from the first step on."""

    class Everything(RandomTrees):
        def draft(self, branch: Branch, budget: Budget) -> Draft:
            return Draft(TokenTree(range(4), [ROOT] * 4))

    model = TableModel(4, 3, scale=0.5)
    made = LookBackSettings(k=4, alpha=5.0)
    ran = run(model, [[1, 2, 3]], LookBackDecoding(made), 12, seed=2, drafter=Everything(model))
    assert ran.tokens == [Reference(model, made, 2).decode([1, 2, 3], 12)]


@pytest.mark.parametrize("cut", [1, 2, 3, 7])
def test_stops_at_any_length(cut: int) -> None:
    model = TableModel(6, 4, scale=0.7)
    made = LookBackSettings(k=3, alpha=0.1)
    whole = run(model, [[1, 2]], LookBackDecoding(made), 20, seed=1).tokens[0]
    assert run(model, [[1, 2]], LookBackDecoding(made), cut, seed=1).tokens[0] == whole[:cut]


class Even(Constraint):
    """Allows even tokens."""

    def allowed(self, branch: Branch, tokens: list[int]) -> Tensor:
        return torch.tensor([token % 2 == 0 for token in range(6)])


def test_a_constraint_bounds_the_candidates() -> None:
    model = TableModel(6, 4, scale=0.7)
    made = LookBackSettings(k=5, alpha=1.0)
    tokens = run(model, [[1, 2]], LookBackDecoding(made), 40, constraint=Even()).tokens[0]
    assert all(token % 2 == 0 for token in tokens)
    assert len(set(tokens)) == 3


def test_divergences() -> None:
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 4
    logits[1, 2] = -torch.inf
    logits[3, 0] = -torch.inf
    log_p = log_probs(logits)
    p = torch.softmax(logits, -1)
    out = divergences(log_p, log_p)
    for i in range(5):
        for j in range(5):
            terms = torch.where(p[i] > 0, p[i] * (p[i].log() - p[j].clamp_min(1e-300).log()), 0.0)
            if bool((p[j] > 0)[p[i] > 0].all()):
                assert float(out[i, j]) == pytest.approx(float(terms.sum()), abs=1e-12)
            else:
                assert float(out[i, j]) > 1.0
    assert divergences(log_probs(logits.float()), log_probs(logits.float())).diagonal().max() < 1e-5


def test_memory_is_bounded() -> None:
    model = TableModel(6, 4)
    held: list[int] = []

    class Watching(LookBackDecoding):
        def observe(self, step: Any) -> None:
            super().observe(step)
            rows = step.branch.memo[self]._rows
            held.append(0 if rows is None else len(rows))

    run(model, [[1] * 400], Watching(LookBackSettings(prefix=16, window=20)), 300)
    assert max(held) == 16 + 20 + 1


class Forking(Search):
    """Two branches."""

    lockstep = False
    width = 2  # type: ignore[assignment]

    def advance(self, branches: Sequence[Branch]) -> list[Move] | None:
        return None

    def select(self, branches: Sequence[Branch]) -> int:
        return 0


def test_what_does_not_fit_is_refused() -> None:
    model = TableModel()
    with pytest.raises(Incompatible, match=r"look-back-decoding has seen 0 of 2 places.*forks or rewinds"):
        run(model, [[1, 2, 3]], LookBackDecoding(), 5, search=Forking())
    model.capabilities = frozenset({Capability.CACHE_EDITING})
    with pytest.raises(Incompatible, match="tree attention"):
        compose(model, "look-back-decoding")
