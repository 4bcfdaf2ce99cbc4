"""What a network is trained for: the next token, every layer's next token (LayerSkip), a teacher's distribution.

An objective is called with the network, a batch and the share of the training that is done, and returns a scalar loss.
Networks are Llama-shaped causal models of transformers; their layers are run here one by one, without masks or
caches, as whole sequences need neither.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Batch:
    """Sequences of one length.

    Attributes:
        tokens: [B, T + 1] int64; every token but the first is to be predicted.
        weights: [B, T] float, how much each prediction counts; ``None`` for all alike.
        hidden: [B, T + 1, D] float, states that came with the tokens, for networks that are given some; else ``None``.
    """

    tokens: Tensor
    weights: Tensor | None = None
    hidden: Tensor | None = None

    @property
    def inputs(self) -> Tensor:
        return self.tokens[:, :-1]

    @property
    def targets(self) -> Tensor:
        return self.tokens[:, 1:]


class Objective(Protocol):
    """A loss; see the module."""

    def __call__(self, model: PreTrainedModel, batch: Batch, share: float) -> Tensor: ...


def layer_states(
    model: PreTrainedModel, tokens: Tensor, kept: Sequence[Tensor | None] = (), upto: int | None = None
) -> list[Tensor]:
    """Every layer's output for whole sequences, before the final norm.

    Args:
        model: a Llama-shaped causal model.
        tokens: [B, T] int64.
        kept: for each layer the rows of the batch that pass through it, [n] int64; the others go around it. ``None``
            (or no entry) for all of them.
        upto: run only so many layers.

    Returns:
        One [B, T, D] a layer.
    """
    base: Any = model.base_model
    state = base.embed_tokens(tokens)
    rotary = base.rotary_emb(state, position_ids=torch.arange(tokens.shape[1], device=tokens.device)[None])
    states = []
    for number, layer in enumerate(base.layers[:upto]):
        rows = kept[number] if number < len(kept) else None
        if rows is None:
            state = layer(state, attention_mask=None, position_embeddings=rotary)
        elif len(rows):
            passed = layer(state[rows], attention_mask=None, position_embeddings=rotary)
            state = state.index_copy(0, rows, passed)
        states.append(state)
    return states


def readout(model: PreTrainedModel, state: Tensor) -> Tensor:
    """Logits [..., V] of a layer's output [..., D] through the model's own final norm and head."""
    base: Any = model.base_model
    head = model.get_output_embeddings()
    assert isinstance(head, nn.Linear)
    return head(base.norm(state))


def cross_entropy(logits: Tensor, batch: Batch) -> Tensor:
    """Mean negative log likelihood of the targets in nats, weighted if the batch says so."""
    losses = functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="none")
    if batch.weights is None:
        return losses.mean()
    weights = batch.weights.flatten()
    return (losses * weights).sum() / weights.sum().clamp_min(1e-9)


class NextToken:
    """Predict each token from those before it."""

    def __call__(self, model: PreTrainedModel, batch: Batch, share: float) -> Tensor:
        state = layer_states(model, batch.inputs)[-1]
        if batch.weights is None:
            return cross_entropy(readout(model, state), batch)
        # Where only some predictions count, the head need not read the others.
        rows, places = batch.weights.nonzero(as_tuple=True)
        losses = functional.cross_entropy(
            readout(model, state[rows, places]), batch.targets[rows, places], reduction="none"
        )
        weights = batch.weights[rows, places]
        return (losses * weights).sum() / weights.sum()


class LayerSkip:
    """Layer dropout, and an early-exit loss through the one shared norm and head.

    Layer l of L (counted from 0) is left out of a sequence with probability p_max (exp(l ln 2 / (L - 1)) - 1). In step
    t the last layer and the layers l with l mod R = t mod R predict the next token; their losses are weighted by e(l),
    which is proportional to 1 + ... + l below the last layer, and for the last is L - 1 more than one layer below; the
    weights of the layers in use are divided by their sum.

    Paper: Elhoushi et al., LayerSkip: Enabling Early Exit Inference and Self-Speculative Decoding, 2024 (section 4.1).

    Args:
        dropout: p_max.
        rotation: R, the number of steps in which each exit is used once.
        scale: factor of the weights of all layers but the last.
        rng: decides which sequences skip which layers.
    """

    def __init__(self, dropout: float, rotation: int, scale: float, rng: torch.Generator) -> None:
        self.dropout, self.rotation, self.scale, self.rng = dropout, rotation, scale, rng
        self.step = 0

    @staticmethod
    def rates(layers: int, dropout: float) -> list[float]:
        """The share of sequences that skip each layer."""
        return [dropout * (math.exp(l * math.log(2) / max(layers - 1, 1)) - 1) for l in range(layers)]  # noqa: E741

    @staticmethod
    def weights(layers: int, scale: float) -> list[float]:
        """e(l) for each layer, before they are divided by their sum."""
        last = layers - 1
        below = [scale * sum(range(number + 1)) for number in range(last)]
        return [*below, last + (below[-1] if below else 0.0)]

    def exits(self, layers: int, step: int) -> list[int]:
        """The layers whose loss counts in a step."""
        chosen = [number for number in range(layers - 1) if number % self.rotation == step % self.rotation]
        return [*chosen, layers - 1]

    def __call__(self, model: PreTrainedModel, batch: Batch, share: float) -> Tensor:
        base: Any = model.base_model
        layers, rows = len(base.layers), batch.tokens.shape[0]
        kept: list[Tensor | None] = []
        for rate in self.rates(layers, self.dropout):
            stays = torch.rand(rows, generator=self.rng) >= rate
            kept.append(None if bool(stays.all()) else stays.nonzero()[:, 0])
        states = layer_states(model, batch.inputs, kept)
        exits, weights = self.exits(layers, self.step), self.weights(layers, self.scale)
        self.step += 1
        total = sum(weights[number] for number in exits)
        losses = [
            weights[number] / total * cross_entropy(readout(model, states[number]), batch)
            for number in exits
            if weights[number] > 0
        ]
        return torch.stack(losses).sum()


class Distillation:
    """Match a teacher's distribution: the Kullback-Leibler divergence KL(teacher || student), and the next token.

    What a draft is accepted for is the overlap with the teacher, so the teacher's whole distribution is the target.

    Paper: Hinton et al., Distilling the Knowledge in a Neural Network, 2015.

    Args:
        teacher: called with tokens [B, T], returns logits [B, T, V] of the student's vocabulary; without gradients.
        share: how much of the loss is the divergence; the rest is the next token of the data.
    """

    def __init__(self, teacher: Callable[[Tensor], Tensor], share: float = 1.0) -> None:
        self.teacher, self.share = teacher, share

    def __call__(self, model: PreTrainedModel, batch: Batch, share: float) -> Tensor:
        logits = readout(model, layer_states(model, batch.inputs)[-1])
        with torch.no_grad():
            wanted = torch.log_softmax(self.teacher(batch.inputs), -1)
        loss = self.share * divergence(wanted, torch.log_softmax(logits, -1), batch.weights)
        return loss if self.share == 1 else loss + (1 - self.share) * cross_entropy(logits, batch)


def divergence(wanted: Tensor, given: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean KL(wanted || given) over positions, in nats, of log probabilities [B, T, V]."""
    each = functional.kl_div(given, wanted, reduction="none", log_target=True).sum(-1)
    return each.mean() if weights is None else (each * weights).sum() / weights.sum().clamp_min(1e-9)
