"""Self-speculation with a fixed exit: the target's lower layers draft a chain, its upper layers verify it.

Layers ``1 .. E`` with the model's own last norm and output head draft ``tokens`` tokens one by one; one pass through
layers ``E + 1 .. L`` over the kept states of layer ``E`` verifies them. Drafter and verifier share weights, keys and
values: there is no second model and no second cache. A round that drafts ``d`` tokens runs ``d E + L`` layers.

Paper: Elhoushi et al., LayerSkip: Enabling Early Exit Inference and Self-Speculative Decoding, 2024 (section 4.3). The
model should have been trained with layer dropout and early-exit losses (its sections 4.1 and 4.2): others seldom agree
with themselves before their last layers.

Lossless: the chain is drawn from the early exit's distribution (its most probable tokens under a deterministic
sampler) and judged as any draft is.

Where the paper leaves it to the model: without ``exit_layer`` the first quarter of the layers drafts, which is layer 8
of the 32 of its 7B model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from unspool.core.branch import Branch
from unspool.core.cards import Card, Kind, settings
from unspool.core.model import Capability
from unspool.core.registry import register
from unspool.core.sockets import Budget, Draft, Setup
from unspool.speculation.drafting._early_exit import Chain, EarlyExitDrafter


@settings
class LayerSkipSettings:
    """One exit and one length for all texts."""

    exit_layer: Annotated[
        int | None, Field(ge=1, description="layers that draft; without it a quarter of the model's")
    ] = None
    tokens: Annotated[int, Field(ge=1, description="draft tokens a round")] = 6


@register(
    Card(
        slug="layer-skip",
        name="LayerSkip self-speculation",
        kind=Kind.DRAFTER,
        summary="The model's own lower layers guess a few tokens, and its upper layers verify them in one pass.",
        paper="LayerSkip: Enabling Early Exit Inference and Self-Speculative Decoding, 2024",
        lossless=True,
        needs=frozenset({Capability.LAYER_RANGES, Capability.HIDDEN_STATES}),
    ),
    LayerSkipSettings,
)
class LayerSkip(EarlyExitDrafter):
    """Chains from a fixed layer.

    Attributes:
        layer: the exit in use; set when a model is bound.
    """

    settings: LayerSkipSettings
    layer: int

    def bind(self, setup: Setup) -> None:
        super().bind(setup)
        chosen = self.settings.exit_layer
        self.layer = max(1, self.target.num_layers // 4) if chosen is None else chosen
        self.check_exit(self.layer, "exit_layer")

    def propose(self, branches: Sequence[Branch], budgets: Sequence[Budget]) -> list[Draft]:
        limits = [min(budget.of(self.settings.tokens, self.settings.tokens)) for budget in budgets]
        chains = [
            Chain(branch, self.layer, limit) if limit > 0 and branch.pending else None
            for branch, limit in zip(branches, limits, strict=True)
        ]
        self.grow([chain for chain in chains if chain is not None])
        return [Draft.empty() if chain is None else chain.draft() for chain in chains]
