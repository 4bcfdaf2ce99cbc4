"""The network of circuits: an encoder and a decoder over trees written in preorder.

A token's position is its way from the root of its tree, the nearest step first, left or right a level, and which output
the tree is of (Circuit Transformer, ICLR 2025, section 3.1). The decoder is given the way of the slot that is to be
filled. With ``needs`` it is given as well what that slot has to be, row by row: where it must be 1, and where 0. The
paper's network has no such input; in a small one it stands for the arithmetic that many layers would have to learn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from unspool.circuits.cutoff import Place
from unspool.circuits.sequence import MOST_OUTPUTS, VOCABULARY
from unspool.circuits.tables import widened

LEVELS = 32
"""Steps of a way that are told; of a longer one the nearest."""
_BITS = np.array([[1 << level] for level in range(LEVELS)], dtype=np.uint64)[:, 0]

Remember = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Shape:
    """Sizes of a network.

    Args:
        inputs: of the circuits at most; ``2 ** inputs`` rows are told of a slot.
        layers: of the encoder, and as many of the decoder.
        hidden: width; heads are 32 wide.
        mlp: inner width.
        source, context: tokens that the encoder and the decoder read at most.
        needs: whether the decoder is told what a slot has to be.
    """

    inputs: int = 6
    layers: int = 3
    hidden: int = 128
    mlp: int = 512
    source: int = 192
    context: int = 160
    needs: bool = True

    @property
    def heads(self) -> int:
        return self.hidden // 32

    @property
    def features(self) -> int:
        """Numbers that tell a token's position."""
        return 2 * LEVELS + MOST_OUTPUTS

    @property
    def rows(self) -> int:
        """Numbers that tell what a slot has to be."""
        return 2 << self.inputs


def position_features(places: Sequence[Place]) -> Tensor:
    """``[N, 2 * 32 + outputs]`` zeros and ones: the way to each open slot, and the output; zeros where all is done."""
    depth = np.array([0 if place.finished else min(place.depth, LEVELS) for place in places])
    path = np.array([0 if place.finished else place.path & 0xFFFFFFFF for place in places], dtype=np.uint64)
    right = (path[:, None] & _BITS[None]) > 0
    there = np.arange(LEVELS)[None] < depth[:, None]
    made = np.zeros((len(places), 2 * LEVELS + MOST_OUTPUTS), dtype=np.float32)
    made[:, 0 : 2 * LEVELS : 2] = there & ~right
    made[:, 1 : 2 * LEVELS : 2] = there & right
    for row, place in enumerate(places):
        if not place.finished:
            made[row, 2 * LEVELS + min(place.output, MOST_OUTPUTS - 1)] = 1
    return torch.from_numpy(made)


def need_features(places: Sequence[Place], inputs: int) -> Tensor:
    """``[N, 2 * 2 ** inputs]``: 1 in the rows where the slot must be 1, then 1 where it must be 0."""
    size = max(1, (1 << inputs) // 8)
    raw = bytearray()
    for place in places:
        one, zero = (0, 0) if place.finished else place.needs[:2]
        for table in (one, zero):
            raw += widened(table, place.task.inputs, inputs).to_bytes(size, "little")
    bits = np.unpackbits(np.frombuffer(bytes(raw), dtype=np.uint8), bitorder="little")
    return torch.from_numpy(
        bits.reshape(len(places), 2, 8 * size)[:, :, : 1 << inputs].reshape(len(places), -1)
    ).float()


class Attention(nn.Module):
    """Heads 32 wide, without biases."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.query = nn.Linear(shape.hidden, shape.hidden, bias=False)
        self.key = nn.Linear(shape.hidden, shape.hidden, bias=False)
        self.value = nn.Linear(shape.hidden, shape.hidden, bias=False)
        self.out = nn.Linear(shape.hidden, shape.hidden, bias=False)

    def split(self, states: Tensor) -> Tensor:
        return states.view(*states.shape[:2], self.heads, -1).transpose(1, 2)

    def keys(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, H, N, D]`` keys and values of ``[B, N, d]`` states."""
        return self.split(self.key(states)), self.split(self.value(states))

    def forward(self, states: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        seen = functional.scaled_dot_product_attention(self.split(self.query(states)), keys, values, mask)
        made: Tensor = self.out(seen.transpose(1, 2).flatten(2))
        return made


class Layer(nn.Module):
    """A layer of the encoder, or with ``crosses`` of the decoder; norms come first."""

    def __init__(self, shape: Shape, crosses: bool) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(shape.hidden) for _ in range(3 if crosses else 2))
        self.own = Attention(shape)
        self.cross = Attention(shape) if crosses else None
        self.mlp = nn.Sequential(
            nn.Linear(shape.hidden, shape.mlp), nn.GELU(approximate="tanh"), nn.Linear(shape.mlp, shape.hidden)
        )

    def forward(
        self,
        states: Tensor,
        mask: Tensor | None,
        remember: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
        memory: tuple[Tensor, Tensor] | None = None,
        real: Tensor | None = None,
    ) -> Tensor:
        inner = self.norms[0](states)
        keys, values = self.own.keys(inner)
        if remember is not None:
            keys, values = remember(keys, values)
        states = states + self.own(inner, keys, values, mask)
        if self.cross is not None:
            assert memory is not None
            states = states + self.cross(self.norms[1](states), *memory, real)
        made: Tensor = states + self.mlp(self.norms[-1](states))
        return made


class CircuitNetwork(nn.Module):
    """See the module.

    Args:
        shape: its sizes.
        seed: of the weights; equal seeds give equal weights.
    """

    def __init__(self, shape: Shape, seed: int = 0) -> None:
        super().__init__()
        self.shape = shape
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.tokens = nn.Embedding(VOCABULARY, shape.hidden)
            self.places = nn.Linear(shape.features, shape.hidden, bias=False)
            self.slots = nn.Linear(shape.features, shape.hidden, bias=False)
            self.needs = (
                nn.Sequential(
                    nn.Linear(shape.rows, 2 * shape.mlp),
                    nn.GELU(approximate="tanh"),
                    nn.Linear(2 * shape.mlp, shape.mlp),
                    nn.GELU(approximate="tanh"),
                    nn.Linear(shape.mlp, shape.hidden),
                )
                if shape.needs
                else None
            )
            self.encoder = nn.ModuleList(Layer(shape, False) for _ in range(shape.layers))
            self.decoder = nn.ModuleList(Layer(shape, True) for _ in range(shape.layers))
            self.read = nn.LayerNorm(shape.hidden)
            self.norm = nn.LayerNorm(shape.hidden)
            self.head = nn.Linear(shape.hidden, VOCABULARY)
            for name, weight in self.named_parameters():
                if weight.dim() > 1:
                    deep = name.endswith(("out.weight", "mlp.2.weight"))
                    nn.init.normal_(weight, std=weight.shape[1] ** -0.5 * ((2 * shape.layers) ** -0.5 if deep else 1.0))
            nn.init.normal_(self.tokens.weight, std=1.0)
            nn.init.normal_(self.head.weight, std=0.02)

    def encode(self, tokens: Tensor, features: Tensor, real: Tensor) -> Tensor:
        """``[B, S, d]`` states of ``[B, S]`` tokens at positions ``[B, S, F]``; ``real`` ``[B, S]`` are no padding."""
        states = self.tokens(tokens) + self.places(features)
        for layer in self.encoder:
            states = layer(states, real[:, None, None])
        made: Tensor = self.read(states)
        return made

    def memory(self, encoded: Tensor) -> list[tuple[Tensor, Tensor]]:
        """What the decoder's layers attend to: keys and values ``[B, H, S, D]`` of each."""
        crosses = [layer.cross for layer in self.decoder if isinstance(layer, Layer)]
        return [cross.keys(encoded) for cross in crosses if cross is not None]

    def decode(
        self,
        tokens: Tensor,
        features: Tensor,
        needs: Tensor | None,
        mask: Tensor,
        memory: list[tuple[Tensor, Tensor]],
        real: Tensor,
        remember: Remember | None = None,
    ) -> Tensor:
        """``[B, N, d]`` final states.

        Args:
            tokens: ``[B, N]``.
            features: ``[B, N, F]`` of the slot that follows each token.
            needs: ``[B, N, R]`` of the same, if the network is told.
            mask: ``[B, 1, N, E]`` bool, what each token sees.
            memory, real: of the encoder.
            remember: given a layer, keys and values ``[B, H, N, D]``, all that are attended to ``[B, H, E, D]``.
        """
        states = self.tokens(tokens) + self.slots(features)
        if self.needs is not None:
            assert needs is not None
            states = states + self.needs(needs)
        for number, layer in enumerate(self.decoder):
            keep = None if remember is None else (lambda k, v, n=number: remember(n, k, v))
            states = layer(states, mask, keep, memory[number], real[:, None, None])
        made: Tensor = self.norm(states)
        return made
