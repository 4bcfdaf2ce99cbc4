"""Look-back decoding: notice a repetition before it happens, and leave towards what stays on topic.

Let ``p_t`` be the next-token distribution at a place and ``KLmin = min_j KL(p_t || p_j)`` its distance to the nearest
earlier place of the text. While ``KLmin > alpha`` nothing repeats and the most probable token is taken. Otherwise the
text is about to go where it has been: the ``k`` most probable tokens are tried one step ahead, ``D(v)`` is the
distance of the distribution after ``v`` to the nearest place of the prompt, and the token is drawn from
``softmax(-D)``.

Xu, Zhou, Celikyilmaz and Ma, Look-back Decoding for Open-Ended Text Generation, EMNLP 2023 (arXiv 2305.13477),
section 4. It changes the model's distribution on purpose. The forward pass that looks ahead is the next step's own,
over ``k`` tokens instead of one, so an alarm costs width and no further pass.

Details. A place is "after ``j`` tokens", ``j >= 1``; those after 1 to ``m`` tokens of a prompt of ``m`` are the
prompt's. A node sees the places strictly above it, draft path included, so the choice is the same under speculation.
Distances are between the model's own distributions; candidates are what a constraint allows. Log-probabilities are
cut at -10,000. With the greedy branch every place without an alarm is a point; ``otherwise="topk_sample"`` draws
there from the ``k`` most probable tokens. ``coherence="uniform"`` or ``"probability"`` are the ablation that draws
among the candidates without looking ahead.

Memory: one row of ``V`` float32 for each place, ``V * 4 * (prefix + window)`` bytes at most for each branch: 126 MB
for a vocabulary of 49152 and the defaults, which hold the paper's prompts (32 tokens) and outputs (256) whole. Of a
longer prompt the last ``prefix`` places are kept, of a longer output the last ``window``. Time: one product with that
matrix a step.

A branch that was forked or rewound has lost its rows; a search that does either is refused when it happens.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from unspool.core.branch import Branch
from unspool.core.cards import Card, Kind, settings
from unspool.core.errors import Incompatible
from unspool.core.model import Capability
from unspool.core.registry import register
from unspool.core.sockets import Distribution, LookAhead, Node, Observation, Sampler
from unspool.core.tree import ROOT

_FLOOR = -1e4


@settings
class LookBackSettings:
    """The paper tunes ``k`` among 5, 8 and 10 and ``alpha`` in about 0.5 to 1.6 nats."""

    k: Annotated[int, Field(ge=1, description="candidates on an alarm")] = 8
    alpha: Annotated[float, Field(gt=0, description="alarm at this distance or nearer, in nats")] = 1.0
    otherwise: Annotated[
        Literal["greedy", "topk_sample"], Field(description="without an alarm: the top token, or a draw from the top k")
    ] = "greedy"
    coherence: Annotated[
        Literal["prefix", "uniform", "probability"],
        Field(description="on an alarm: draw by the distance to the prompt, or without looking ahead"),
    ] = "prefix"
    prefix: Annotated[int, Field(ge=1, description="places of the prompt to remember")] = 128
    window: Annotated[int, Field(ge=1, description="places of the output to remember")] = 512


def log_probs(logits: Tensor) -> Tensor:
    """``[..., V]`` log-softmax, at least single precision, cut at -10,000 so that 0 times it is 0."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return torch.log_softmax(logits, -1).clamp_min(_FLOOR)


def divergences(log_p: Tensor, log_q: Tensor) -> Tensor:
    """``KL(p || q_j)`` in nats for every row: ``log_p`` ``[..., V]``, ``log_q`` ``[T, V]``, result ``[..., T]``."""
    p = log_p.exp()
    # Rounding must not make it negative: equal distributions are at distance 0.
    return ((p * log_p).sum(-1, keepdim=True) - p @ log_q.T).clamp_min(0)


class _Places:
    """Log-probabilities at the places of a text that were scored, numbered from 0: place ``i`` is after ``i + 1``
    tokens.

    The last ``prefix`` places of the prompt stand first, then a ring of later ones: ``window``, and one more for the
    place that is being decided at.
    """

    def __init__(self, prompt_length: int, prefix: int, window: int) -> None:
        self._begin = max(prompt_length - prefix, 0)
        self._prompt = prompt_length
        self._window = window
        self._rows: Tensor | None = None
        self.count = 0

    def _slot(self, place: int) -> int:
        later = place - self._prompt
        return place - self._begin if later < 0 else self._prompt - self._begin + later % (self._window + 1)

    def append(self, logits: Tensor) -> None:
        """The next place: ``[V]`` raw logits."""
        place, self.count = self.count, self.count + 1
        if place < self._begin:
            return
        row, slot = log_probs(logits), self._slot(place)
        if self._rows is None or slot >= len(self._rows):
            most = self._prompt - self._begin + self._window + 1
            grown = row.new_empty(min(max(2 * slot, 64), most), len(row))
            if self._rows is not None:
                grown[: len(self._rows)] = self._rows
            self._rows = grown
        self._rows[slot] = row

    def nearest(self, log_p: Tensor, at: int) -> float:
        """Least divergence of ``log_p`` (``[V]``), the distribution at place ``at``, from the places that it looks
        back on: those of the prompt and the last ``window``, all below ``at``; infinite if there is none."""
        if self._rows is None:
            return float("inf")
        distance = divergences(log_p, self._rows[: self.count - self._begin])
        oldest = max(self._prompt, self.count - self._window - 1)
        for place in (*range(at, self.count), *range(oldest, min(at - self._window, self.count))):
            distance[self._slot(place)] = torch.inf
        return float(distance.min())

    def to_prompt(self, log_p: Tensor) -> Tensor:
        """``[...]`` least divergence of ``log_p`` (``[..., V]``) from the places of the prompt."""
        assert self._rows is not None
        return divergences(log_p, self._rows[: self._prompt - self._begin]).amin(-1)


@register(
    Card(
        slug="look-back-decoding",
        name="Look-back decoding",
        kind=Kind.SAMPLER,
        summary="Greedy until a distribution resembles an earlier one; then draws what keeps close to the prompt.",
        paper="Look-back Decoding for Open-Ended Text Generation (2023)",
        claim="more fluent and coherent continuations than nucleus, typical, eta and contrastive decoding, without a "
        "second model or hidden states",
        needs=frozenset({Capability.TREE}),
    ),
    LookBackSettings,
)
class LookBackDecoding(Sampler):
    """See the module."""

    settings: LookBackSettings
    observes_prompt = True

    def __init__(self, settings: LookBackSettings | None = None) -> None:
        super().__init__(settings)
        self.looks_ahead = self.settings.coherence == "prefix"

    def observe(self, step: Observation) -> None:
        places = self._places(step.branch)
        first = step.branch.cache.length
        for place, node in enumerate(step.kept, first):
            # Pending places may have been taken in already, when a choice depended on them.
            if place >= places.count:
                places.append(step.scores.at(node))

    def distribution(self, node: Node) -> Distribution:
        made = self.settings
        top = node.logits.topk(min(made.k, len(node.logits)))
        allowed = int((top.values > -torch.inf).sum())
        candidates, values = top.indices[:allowed], top.values[:allowed]
        if self.nearest(node) > made.alpha:
            if made.otherwise == "greedy":
                return Distribution.best(node.logits)
            return _spread(node.logits, candidates, values)
        if made.coherence != "prefix":
            return _spread(node.logits, candidates, values if made.coherence == "probability" else values * 0)
        tokens = candidates.tolist()
        if len(tokens) == 1:
            return Distribution.point(tokens[0])
        ahead = [logits for token in tokens if (logits := node.child_logits(token)) is not None]
        if len(ahead) < len(tokens):
            raise LookAhead(node, tokens)
        return _spread(node.logits, candidates, -self._passed(node).to_prompt(log_probs(torch.stack(ahead))))

    def nearest(self, node: Node) -> float:
        """``KLmin`` at ``node``; infinite where nothing is above it."""
        log_p = log_probs(node.logits if node.walk is None else node.walk.logits(node.index))
        least = self._passed(node).nearest(log_p, len(node.tokens) - 1)
        # The first of these, the end of the committed text, is among the places already.
        above = node.path_logits()[1:][-self.settings.window :]
        return min(least, float(divergences(log_p, log_probs(torch.stack(above))).min())) if above else least

    def draft_probs(self, logits: Tensor, tokens: list[int], branch: Branch) -> Tensor:
        if self.settings.otherwise == "greedy":
            return Distribution.best(logits).dense(log_probs(logits))
        top = logits.topk(min(self.settings.k, len(logits)))
        return _spread(logits, top.indices, top.values).dense(logits)

    def _places(self, branch: Branch) -> _Places:
        places = branch.memo.get(self)
        if places is None:
            places = branch.memo[self] = _Places(branch.prompt_length, self.settings.prefix, self.settings.window)
        if places.count < branch.cache.length:
            raise Incompatible(
                f"look-back-decoding has seen {places.count} of {branch.cache.length} places of this branch: it must "
                "watch a text from its start, which a search that forks or rewinds prevents; use another sampler"
            )
        return places

    def _passed(self, node: Node) -> _Places:
        """The places of the branch, those included that are scored in this step but lie in the committed text."""
        places = self._places(node.branch)
        end = len(node.branch.tokens) - 1
        while places.count <= end:
            assert node.walk is not None
            # Pending tokens are scored in front of the draft, so their places count backwards from the root's.
            places.append(node.walk.logits(ROOT - (end - places.count)))
        return places


def _spread(like: Tensor, tokens: Tensor, scores: Tensor) -> Distribution:
    """The distribution over ``tokens`` (``[K]``) in proportion to ``exp(scores)``; the width is that of ``like``."""
    chances = torch.softmax(scores if scores.dtype == torch.float64 else scores.float(), -1)
    probs = chances.new_zeros(len(like))
    probs[tokens] = chances
    return Distribution(probs)
