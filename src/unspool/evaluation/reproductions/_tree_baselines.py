"""What draft trees are compared with: trees of a fixed shape, independent chains, and the rule of SpecTr.

And the test that holds a sampled composition to the target's own distribution.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unspool.core.branch import Branch
from unspool.core.compose import Composition
from unspool.core.events import Stepped
from unspool.core.scores import Request
from unspool.core.sockets import Budget, Distribution, Draft, Proposal, Verdict, Verifier, Walk
from unspool.core.texts import Stop
from unspool.core.tree import ROOT, TokenTree
from unspool.evaluation.reproductions._common import (
    Continuation,
    batches,
    chi_square_tail,
    decode_all,
    tokens_per_step,
)
from unspool.evaluation.reproductions._pair import Pair
from unspool.sampling.standard import StandardSampler
from unspool.speculation.drafting._draft_caches import Growth
from unspool.speculation.drafting._draws import draw_siblings
from unspool.speculation.drafting.draft_model import DraftModel, DraftModelSettings
from unspool.speculation.verification._rejection import residual

Ranks = tuple[int, ...]
"""A node of a shape: of each node on its path the how-many-th among its siblings it is."""


# -- measuring ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pace:
    """How fast a composition went.

    Attributes:
        tau: tokens that a step commits.
        error: its standard error, from how the texts differ.
        nodes: draft nodes of a step.
        runs: the texts.
    """

    tau: float
    error: float
    nodes: float
    runs: list[Continuation]

    def above(self, other: Pace, factor: float = 1.0) -> bool:
        """Whether it is at least ``factor`` times as fast."""
        return self.tau >= factor * other.tau

    def not_below(self, other: Pace) -> bool:
        """Whether it is as fast as the other, but for what two standard errors can hide."""
        return self.tau > other.tau - 2 * math.hypot(self.error, other.error)

    def __str__(self) -> str:
        return f"{self.tau:.3f} +- {self.error:.3f}"


def pace(
    composition: Composition, prompts: Sequence[Sequence[int]], new_tokens: int, *, seed: int = 0, batch: int = 24
) -> Pace:
    """Let every text grow to ``new_tokens``."""
    runs = decode_all(composition, prompts, new_tokens=new_tokens, batch=batch, seed=seed, stop_tokens=frozenset())
    steps = [run.statistics.steps for run in runs]
    tau = tokens_per_step(runs)
    spread = math.sqrt(sum((len(run.tokens) - tau * s) ** 2 for run, s in zip(runs, steps, strict=True)))
    return Pace(tau, spread / sum(steps), sum(run.statistics.drafted for run in runs) / sum(steps), runs)


def correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Pearson's; 0 where one of the two never varies."""
    if len(set(first)) < 2 or len(set(second)) < 2:
        return 0.0
    return statistics.correlation(first, second)


# -- drafters -----------------------------------------------------------------------------------------------------


class StaticTree(DraftModel):
    """A tree of one shape at every step, filled by the draft model.

    Args:
        shape: its nodes; every node's elder siblings must be among them if they are drawn.
        point: take the most probable tokens under every sampler, instead of drawing where the sampler draws.
    """

    def __init__(self, shape: Sequence[Ranks], *, point: bool = False) -> None:
        super().__init__(DraftModelSettings(tokens=max(map(len, shape))))
        self.proposal = Proposal.POINT if point else Proposal.WITHOUT_REPLACEMENT
        self._point = point
        self._ranks: dict[Ranks, list[int]] = {}
        for node in sorted(shape):
            self._ranks.setdefault(node[:-1], []).append(node[-1])

    def propose(self, branches: Sequence[Branch], budgets: Sequence[Budget]) -> list[Draft]:
        growths = self.grow(branches, budgets, None, self.settings.tokens)
        growing: list[tuple[Growth, dict[int, Ranks]]] = [
            (growth, {ROOT: ()}) for growth in growths if growth is not None
        ]
        for depth in range(self.settings.tokens):
            growing = [(growth, front) for growth, front in growing if front and depth < growth.depth]
            if not growing:
                break
            scored = self.score([growth for growth, _ in growing], [list(front) for _, front in growing])
            growing = [
                (growth, self._fill(growth, front, scores.logits))
                for (growth, front), scores in zip(growing, scored, strict=True)
            ]
        return [Draft.empty() if growth is None else growth.draft() for growth in growths]

    def _fill(self, growth: Growth, front: dict[int, Ranks], logits: Tensor) -> dict[int, Ranks]:
        """Add the children of the front, and give back those of them that have children in turn."""
        below: dict[int, Ranks] = {}
        for (node, path), row in zip(front.items(), logits, strict=True):
            ranks = self._ranks[path]
            if self._point or self.sampler.deterministic:
                q, place = torch.softmax(row.float(), dim=-1), None
                tokens = q.topk(min(ranks[-1] + 1, len(q))).indices.tolist()
            else:
                q = self.sampler.draft_probs(row, growth.branch.tokens + growth.path_tokens(node), growth.branch)
                tokens = draw_siblings(q, ranks[-1] + 1, growth.branch.rng, replacement=False)
                place = len(growth.q)
                growth.q.append(q)
            for rank in ranks:
                if rank >= len(tokens) or growth.room == 0:
                    break
                child = growth.add(tokens[rank], node, float(q[tokens[rank]]), place)
                if (*path, rank) in self._ranks:
                    below[child] = (*path, rank)
        return below


class IndependentChains(DraftModel):
    """Independent draft chains, kept as one tree (SpecInfer, SpecTr).

    Chains that share a prefix go on from one node, which so gets as many children as chains pass it; of a token that
    several of them draw there, the elder node carries them all on, and the others are leaves.

    Args:
        chains, length: their number, and tokens of each.
    """

    def __init__(self, chains: int, length: int) -> None:
        super().__init__(DraftModelSettings(tokens=length))
        self.proposal = Proposal.WITH_REPLACEMENT
        self._chains = chains

    def propose(self, branches: Sequence[Branch], budgets: Sequence[Budget]) -> list[Draft]:
        growths = self.grow(branches, budgets, None, self.settings.tokens)
        growing: list[tuple[Growth, dict[int, int]]] = [
            (growth, {ROOT: self._chains}) for growth in growths if growth is not None
        ]
        for depth in range(self.settings.tokens):
            growing = [(growth, front) for growth, front in growing if depth < growth.depth]
            if not growing:
                break
            scored = self.score([growth for growth, _ in growing], [list(front) for _, front in growing])
            growing = [
                (growth, self._extend(growth, front, scores.logits))
                for (growth, front), scores in zip(growing, scored, strict=True)
            ]
        return [Draft.empty() if growth is None else growth.draft() for growth in growths]

    def _extend(self, growth: Growth, front: dict[int, int], logits: Tensor) -> dict[int, int]:
        """Let every chain draw its next token; gives back the nodes that carry chains on, and how many."""
        below: dict[int, int] = {}
        for (node, chains), row in zip(front.items(), logits, strict=True):
            q = self.sampler.draft_probs(row, growth.branch.tokens + growth.path_tokens(node), growth.branch)
            drawn = draw_siblings(q, chains, growth.branch.rng, replacement=True)
            often = Counter(drawn)
            for token in drawn:
                child = growth.add(token, node, float(q[token]), len(growth.q))
                if token in often:
                    below[child] = often.pop(token)
            growth.q.append(q)
        return below


# -- shapes -------------------------------------------------------------------------------------------------------


def rank_rates(
    pair: Pair, sampler: StandardSampler | None, prompts: Sequence[Sequence[int]], tokens: int
) -> list[float]:
    """How often the first, second, ... of eight candidates is the one that is accepted, made never to rise."""
    watched = pair.composed("draft-model", sampler, branching=(8,), tokens=1)
    hits, steps = [0] * 8, 0
    for group in batches(prompts, 16):
        for event in watched.decode(group, stop=Stop(tokens, frozenset()), seed=7):
            if isinstance(event, Stepped) and event.draft:
                steps += 1
                if event.accepted:
                    hits[event.accepted[0]] += 1
    return sorted((hit / max(steps, 1) for hit in hits), reverse=True)


def best_shape(rates: Sequence[float], nodes: int) -> list[Ranks]:
    """The shape of that size that is expected to be accepted deepest, if ranks are accepted at these rates everywhere.

    What Sequoia's dynamic programme finds under the same assumption: the nodes with the largest products.
    """
    shape: list[Ranks] = []
    open_nodes: list[tuple[float, Ranks]] = [(rates[rank], (rank,)) for rank in range(len(rates))]
    while len(shape) < nodes:
        value, node = open_nodes.pop(open_nodes.index(max(open_nodes, key=lambda one: (one[0], -len(one[1])))))
        shape.append(node)
        open_nodes += [(value * rate, (*node, rank)) for rank, rate in enumerate(rates)]
    return shape


# -- SpecTr -------------------------------------------------------------------------------------------------------


class KSeq(Verifier):
    """k-SEQ (Sun et al., SpecTr, 2023, algorithm 3): one inflated ratio test for each of ``k`` independent candidates.

    ``x`` stands with probability ``min(1, p(x) / (g q(x)))`` with the smallest ``g`` in ``[1, k]`` that leaves no
    negative residual.
    """

    judges = frozenset({Proposal.WITH_REPLACEMENT})

    def verify(self, walk: Walk) -> Verdict:
        tree, node = walk.tree, ROOT
        while children := tree.children(node):
            assert walk.draft.q is not None
            q = walk.draft.q[walk.draft.q_rows[children[0]]].double()
            q = q / q.sum()
            p = walk.distribution(node).dense(q).double()
            p = p / p.sum()
            count = len(children)
            g = smallest_inflation(p, q, count)
            for child in children:
                token = tree.token_list[child]
                if torch.bernoulli((p[token] / (g * q[token])).clamp_max(1.0), generator=walk.rng):
                    node = child
                    break
            else:
                overlap = torch.minimum(q, p / g)
                beta = overlap.sum()
                rest = residual(p, overlap * (1 - (1 - beta) ** count) / beta) if beta > 0 else p
                return Verdict(tree.path(node), Distribution(rest).draw(walk.rng))
        return Verdict(tree.path(node), walk.distribution(node).draw(walk.rng))


def smallest_inflation(p: Tensor, q: Tensor, count: int) -> float:
    """The smallest ``g`` in ``[1, count]`` with ``1 - (1 - beta(g))^count <= g beta(g)``, by bisection."""

    def valid(g: float) -> bool:
        beta = float(torch.minimum(q, p / g).sum())
        return 1 - (1 - beta) ** count <= g * beta + 1e-12

    low, high = 1.0, float(count)
    if valid(low):
        return low
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if valid(middle) else (middle, high)
    return high


# -- exactness ----------------------------------------------------------------------------------------------------


def exactness(
    pair: Pair,
    composition: Composition,
    sampler: StandardSampler,
    prompt: Sequence[int],
    count: int,
    seed: int,
    new_tokens: int = 3,
) -> float:
    """p-value that the first two of ``new_tokens`` tokens after ``prompt`` have the target's distribution.

    Pearson's chi-square against the exact probabilities of the first token and of the first two; cells that expect
    fewer than five are pooled; the smaller p-value, times two.
    """
    runs = decode_all(
        composition, [prompt] * count, new_tokens=new_tokens, batch=250, seed=seed, stop_tokens=frozenset()
    )
    firsts = Counter(run.tokens[0] for run in runs)
    pairs = Counter((run.tokens[0], run.tokens[1]) for run in runs)

    cache = pair.target.new_cache()
    law = torch.softmax(sampler.warped(pair.target.prefill(cache, prompt, rows=[len(prompt) - 1])[-1].logits), -1)[0]
    common = (law * count >= 5).nonzero()[:, 0].tolist()
    tree = TokenTree(common, [ROOT] * len(common))
    after = torch.softmax(sampler.warped(pair.target.score([Request(cache, tree)])[0].logits), -1)
    cache.release()
    one = {token: float(law[token]) * count for token in common}
    two = {
        (token, second): share
        for row, token in enumerate(common)
        for second, share in enumerate((after[row] * law[token] * count).tolist())
        if share >= 5
    }
    return min(1.0, 2 * min(fit(firsts, one, count), fit(pairs, two, count)))


def fit(seen: Counter, expected: dict, count: int) -> float:
    """p-value of counts against the cells that are expected often; all others are one cell."""
    rest = count - sum(expected.values())
    statistic = sum((seen[cell] - e) ** 2 / e for cell, e in expected.items())
    degrees = len(expected) - 1
    if rest >= 5:
        others = count - sum(seen[cell] for cell in expected)
        statistic += (others - rest) ** 2 / rest
        degrees += 1
    return chi_square_tail(statistic, degrees)
