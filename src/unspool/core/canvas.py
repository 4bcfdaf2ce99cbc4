"""The state of the any-order loop: a row of positions, some of them still masked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from unspool.core.errors import InvalidInput
from unspool.core.model import Capability
from unspool.core.scores import LOGITS, Want


@dataclass
class Canvas:
    """Positions to fill, in any order.

    Args:
        tokens: ``[N]`` int64; at masked positions the model's mask token.
        masked: ``[N]`` bool, the positions that are still open.
        fixed: number of leading positions that may never change (the prompt).
    """

    tokens: Tensor
    masked: Tensor
    fixed: int = 0

    @classmethod
    def after(cls, prompt: Sequence[int], length: int, mask_token: int) -> Canvas:
        """A prompt followed by ``length`` masked positions."""
        if length < 1:
            raise InvalidInput(f"a canvas of length {length} has nothing to fill; give at least 1")
        tokens = torch.tensor([*prompt, *([mask_token] * length)], dtype=torch.int64)
        masked = torch.zeros(len(tokens), dtype=torch.bool)
        masked[len(prompt) :] = True
        return cls(tokens, masked, len(prompt))

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def open(self) -> Tensor:
        """``[M]`` indices of the masked positions, ascending."""
        return self.masked.nonzero(as_tuple=True)[0]

    def copy(self) -> Canvas:
        return Canvas(self.tokens.clone(), self.masked.clone(), self.fixed)

    def write(self, positions: Tensor, tokens: Tensor) -> None:
        """Put ``tokens`` at ``positions`` (both ``[K]``) and close them.

        Raises:
            InvalidInput: for a position outside the canvas or inside its fixed part.
        """
        self._check(positions)
        self.tokens[positions] = tokens.to(self.tokens)
        self.masked[positions] = False

    def remask(self, positions: Tensor, mask_token: int) -> None:
        """Open ``positions`` (``[K]``) again."""
        self._check(positions)
        self.tokens[positions] = mask_token
        self.masked[positions] = True

    def insert(self, position: int, count: int, mask_token: int) -> None:
        """Make room for ``count`` masked positions before ``position``."""
        if not self.fixed <= position <= len(self):
            raise InvalidInput(f"cannot insert at {position}: allowed are {self.fixed} to {len(self)}")
        new = torch.full((count,), mask_token, dtype=torch.int64)
        self.tokens = torch.cat([self.tokens[:position], new, self.tokens[position:]])
        self.masked = torch.cat([self.masked[:position], torch.ones(count, dtype=torch.bool), self.masked[position:]])

    def _check(self, positions: Tensor) -> None:
        if positions.numel() and not (self.fixed <= int(positions.min()) and int(positions.max()) < len(self)):
            raise InvalidInput(
                f"positions {positions.tolist()} do not all lie in {self.fixed} to {len(self) - 1}, where "
                f"writing is allowed"
            )


@dataclass
class CanvasScores:
    """Logits ``[N, V]`` of every position of one canvas, and what else was wanted (see :class:`Want`)."""

    logits: Tensor
    hidden: dict[int, Tensor] = field(default_factory=dict)
    attentions: tuple[Tensor, ...] = ()


class CanvasModel(ABC):
    """A model that scores canvases: masked diffusion, infilling, image tokens.

    Attributes:
        mask_token: the token that stands for an open position.
        forwards: passes through the network since loading.
    """

    name: str
    vocab_size: int
    context_length: int | None
    mask_token: int
    tokenizer: Any
    capabilities: frozenset[Capability]
    device: torch.device
    forwards: int = 0

    @abstractmethod
    def score(self, canvases: Sequence[Canvas], want: Want = LOGITS) -> list[CanvasScores]:
        """One forward pass over a ragged batch of canvases."""
