"""Momentum decoding: greedy search that pays for walking in circles.

Text is a walk on a graph whose nodes are the tokens seen so far, prompt included. A step to a new token is free, so
there the decoder is greedy; a step back to a seen token closes a circuit, and the longer the stretch of text that it
would repeat, the more resistance it meets. Of the ``k`` most probable tokens the one with the largest
``p(v) - alpha * f(c(v))`` is taken, ``c(v)`` being the circuit depth: 0 for a new token, else the size of the longest
n-gram ending in ``v`` that the text already holds. The most probable token pays nothing if it is new and therefore
wins: greedy outside of the graph needs no rule of its own.

Lan, Su, Liu, Huang and Mao, Momentum Decoding: Open-ended Text Generation As Graph Exploration, 2022 (arXiv
2212.02175), section 3. It trades the model's distribution for variety on purpose; it adds no forward pass. If every
candidate is forbidden (an infinite resistance), the most probable unseen token is taken instead.

The n-grams of the committed text are kept with the branch and those of a draft path are added at each node, so the
choice is the same under speculation.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from unspool.core.branch import Branch
from unspool.core.cards import Card, Kind, settings
from unspool.core.registry import register
from unspool.core.sockets import Distribution, Node, Sampler

Gram = tuple[int, ...]


@settings
class MomentumSettings:
    """The defaults are those for GPT2-XL; a softer table is ``1,1,2,3,4``.

    An infinite resistance forbids its depth whatever ``alpha``, so ``0,0,0,inf`` blocks repeated 4-grams.
    """

    k: Annotated[int, Field(ge=1, description="candidates: the k most probable tokens")] = 5
    alpha: Annotated[
        float, Field(ge=0, allow_inf_nan=False, description="price of one unit of resistance, in probability")
    ] = 0.2
    resistance: Annotated[
        tuple[Annotated[float, Field(ge=0)], ...],
        Field(min_length=1, description="resistance at circuit depth 1, 2, ...; its length is the longest n-gram"),
    ] = (1.0, 2.0, 3.0, 4.0, 5.0)


class _Circuits:
    """The n-grams of a text, up to a size. A cache: it follows from the tokens alone."""

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._length = 0
        self._seen: set[Gram] = set()

    def extend(self, tokens: list[int]) -> None:
        """Take in ``tokens``, which begin with those known already."""
        self._seen.update(self._ending(tokens, self._length, len(tokens)))
        self._length = len(tokens)

    def depths(self, tokens: list[int], candidates: list[int]) -> list[int]:
        """Circuit depth of each candidate after ``tokens``, a text that begins with the one known."""
        fresh = set(self._ending(tokens, self._length, len(tokens)))
        tails = [tuple(tokens[len(tokens) - size + 1 :]) for size in range(1, min(self._longest, len(tokens) + 1) + 1)]
        depths = []
        for candidate in candidates:
            depth = 0
            # Where a long n-gram occurs, its shorter endings do, so the first miss is the last.
            for tail in tails:
                gram = (*tail, candidate)
                if gram not in self._seen and gram not in fresh:
                    break
                depth += 1
            depths.append(depth)
        return depths

    def _ending(self, tokens: list[int], first: int, end: int) -> list[Gram]:
        """The n-grams whose last token lies in ``first .. end - 1``."""
        return [
            tuple(tokens[last + 1 - size : last + 1])
            for last in range(first, end)
            for size in range(1, min(self._longest, last + 1) + 1)
        ]


@register(
    Card(
        slug="momentum-decoding",
        name="Momentum decoding",
        kind=Kind.SAMPLER,
        summary="Greedy search that charges a token for the length of the repetition it would close.",
        paper="Momentum Decoding: Open-ended Text Generation As Graph Exploration (2022)",
        claim="open-ended text of the quality of contrastive search, about 30% faster: one forward pass a token and "
        "nothing to look ahead at",
    ),
    MomentumSettings,
)
class MomentumDecoding(Sampler):
    """Cost: one top-k, and ``k * len(resistance)`` look-ups whatever the length of the text.

    Memory: one tuple for every token and n-gram size.
    """

    settings: MomentumSettings
    deterministic = True

    def __init__(self, settings: MomentumSettings | None = None) -> None:
        super().__init__(settings)
        made = self.settings
        self._price = [0.0] + [f if math.isinf(f) else made.alpha * f for f in made.resistance]

    def distribution(self, node: Node) -> Distribution:
        return Distribution.point(self.choose(node.logits, node.tokens, node.branch))

    def draft_probs(self, logits: Tensor, tokens: list[int], branch: Branch) -> Tensor:
        return Distribution.point(self.choose(logits, tokens, branch)).dense(logits.float())

    def choose(self, logits: Tensor, tokens: list[int], branch: Branch) -> int:
        """The token for ``logits`` ``[V]`` after ``tokens``, which begin with those of ``branch``."""
        known = branch.memo.get(self)
        if known is None:
            known = branch.memo[self] = _Circuits(len(self.settings.resistance))
        known.extend(branch.tokens)

        probs = torch.softmax(logits if logits.dtype == torch.float64 else logits.float(), -1)
        top = probs.topk(min(self.settings.k, len(probs)))
        candidates, values = top.indices.tolist(), top.values.tolist()
        depths = known.depths(tokens, candidates)
        # What a constraint forbids has probability 0 and must not win by being new.
        scores = [p - self._price[depth] if p > 0 else -math.inf for p, depth in zip(values, depths, strict=True)]
        best = max(scores)
        if best > -math.inf:
            return int(candidates[scores.index(best)])
        unseen = probs.clone()
        unseen[torch.tensor(tokens, device=probs.device)] = 0
        # If nothing new is possible either, the most probable token is left.
        return int(unseen.argmax()) if bool(unseen.any()) else int(candidates[0])
