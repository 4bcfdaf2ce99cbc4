"""A draft model: a second, smaller model of the same vocabulary guesses ahead.

It proposes a chain or, with ``branching``, a tree whose first levels have several children a node. Under a sampler
that draws at random the candidates are drawn from the draft model's distributions (siblings with or without
replacement); under a deterministic one they are its most probable tokens.

All branches of a batch are drafted together, one pass of the draft model a level. Its caches follow the text: what
the target accepted stays, the rest is dropped, nothing is read twice.

Papers: Leviathan et al., Fast Inference from Transformers via Speculative Decoding, 2023 (chains); Miao et al.,
SpecInfer, 2023 (siblings with replacement); Yang et al., Multi-Candidate Speculative Decoding, 2024, and Jeon et al.,
Recursive Speculative Decoding, 2024 (without replacement, there RSD-C).

Lossless with the verifier of its kind of draft. How many candidates are drawn where never depends on which tokens they
are, because that would bias what the verifier keeps; so duplicates stay in a draft with replacement.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field
from torch import Tensor

from unspool.core.branch import Branch
from unspool.core.cards import Card, Kind, settings
from unspool.core.errors import InvalidInput
from unspool.core.registry import register
from unspool.core.sockets import Budget, Draft, Proposal, Setup
from unspool.core.tree import ROOT
from unspool.speculation.drafting._draft_caches import DraftModelDrafter, Growth


@settings
class DraftModelSettings:
    """A chain of five, unless ``branching`` makes it a tree."""

    model: Annotated[str | None, Field(description="name of the draft model, if none was handed over")] = None
    tokens: Annotated[int, Field(ge=1, description="draft tokens on the longest path")] = 5
    branching: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...],
        Field(description="children of every node, level by level from the top; one each below"),
    ] = ()
    replacement: Annotated[
        bool, Field(description="draw siblings with replacement (SpecInfer) instead of without (RSD)")
    ] = False


@register(
    Card(
        slug="draft-model",
        name="Draft model",
        kind=Kind.DRAFTER,
        summary="A second, smaller model of the same vocabulary guesses a chain or a tree of tokens.",
        paper="Fast Inference from Transformers via Speculative Decoding, 2023",
        claim="2x to 3x faster than plain decoding with identical output",
        lossless=True,
        models=("draft",),
    ),
    DraftModelSettings,
)
class DraftModel(DraftModelDrafter):
    """Chains and trees of a second model."""

    settings: DraftModelSettings

    def __init__(self, settings: DraftModelSettings | None = None) -> None:
        super().__init__(settings)
        widths = self.settings.branching
        if len(widths) > self.settings.tokens:
            raise InvalidInput(
                f"draft-model: branching {widths} has {len(widths)} levels, but the draft is only "
                f"tokens={self.settings.tokens} deep: give fewer levels or more tokens"
            )
        self._widths = [*widths, *([1] * (self.settings.tokens - len(widths)))]
        # Under a deterministic sampler the drafts carry no q, and every rule matches those.
        if max(self._widths) == 1:
            self.proposal = Proposal.SAMPLED
        else:
            self.proposal = Proposal.WITH_REPLACEMENT if self.settings.replacement else Proposal.WITHOUT_REPLACEMENT

    def bind(self, setup: Setup) -> None:
        super().bind(setup)
        if max(self._widths) > 1:
            self.require_trees(setup.target, f"draft-model with branching {self.settings.branching}")

    def propose(self, branches: Sequence[Branch], budgets: Sequence[Budget]) -> list[Draft]:
        growths = self.grow(branches, budgets, None, self.settings.tokens)
        growing = [(growth, [ROOT]) for growth in growths if growth is not None]
        for level, width in enumerate(self._widths):
            growing = [
                (growth, frontier)
                for growth, frontier in growing
                if level < growth.depth and frontier and (growth.room is None or growth.room > 0)
            ]
            if not growing:
                break
            scored = self.score([growth for growth, _ in growing], [frontier for _, frontier in growing])
            growing = [
                (growth, self._children(growth, frontier, scores.logits, width))
                for (growth, frontier), scores in zip(growing, scored, strict=True)
            ]
        return [Draft.empty() if growth is None else growth.draft() for growth in growths]

    def _children(self, growth: Growth, frontier: list[int], logits: Tensor, width: int) -> list[int]:
        """Add the children of the frontier, whose logits are ``[R, V]``; gives back the next frontier."""
        below: list[int] = []
        for node, row in zip(frontier, logits, strict=True):
            count = width if growth.room is None else min(width, growth.room)
            if count == 0:
                break
            children = self.add_children(growth, node, row, count, replacement=self.settings.replacement)
            tokens = [growth.tokens[child] for child in children]
            # A duplicate is never accepted after its elder was refused, so nothing needs to follow it.
            below += [child for order, child in enumerate(children) if tokens[order] not in tokens[:order]]
        return below
