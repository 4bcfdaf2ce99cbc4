"""The state of one line of text while it is decoded."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from unspool.core.model import Cache
from unspool.core.tree import TokenTree


class Portable(ABC):
    """A note about a branch that stays right when the branch is forked or rewound, because it checks the text anew."""

    @abstractmethod
    def fork(self) -> Portable:
        """The note for a branch that goes its own way from here."""


class Branch:
    """One line of text: what was committed, what the model remembers of it, and what the methods noted about it.

    Without a search every request has one branch; a search may keep several.

    Attributes:
        index: which request.
        number: which branch of the request.
        tokens: everything committed, the prompt first (of a model with an encoder: its start token first).
        prompt_length: how many of ``tokens`` were there at the start.
        source: what the encoder read; empty for decoder-only models.
        cache: holds ``tokens[:cache.length]``; the rest is pending and enters with the next step.
        carry: ``[V]`` logits after the last token, when nothing is pending (see
            :class:`~unspool.core.sockets.LookAhead`).
        ahead: the tree that a sampler asked to see before it chooses, or ``None``.
        log_z: for every generated token, the log of the mass that the sampler's truncation or temperature kept
            (``sum_t log Z_t`` is the local normalisation); ``None`` where the sampler does not tell.
        log_probs: for every generated token its log-probability under the model's own distribution, in nats; empty
            unless a part reads them. The last ones are ``None`` while they are pending and were not asked for.
        memo: notes of the methods, by method; dropped when the branch is forked or rewound, unless :class:`Portable`.
        limit: generated tokens at most, a stop token included.
        stops: tokens that end the text.
        rng: the branch's own random numbers.
    """

    __slots__ = (
        "ahead",
        "cache",
        "carry",
        "finished",
        "index",
        "limit",
        "log_probs",
        "log_z",
        "memo",
        "number",
        "prompt_length",
        "rng",
        "seed",
        "source",
        "stops",
        "tokens",
    )

    def __init__(
        self,
        index: int,
        number: int,
        prompt: list[int],
        cache: Cache,
        seed: int,
        device: torch.device,
        source: list[int],
    ) -> None:
        self.index = index
        self.number = number
        self.tokens = prompt
        self.prompt_length = len(prompt)
        self.source = source
        self.cache = cache
        self.carry: Tensor | None = None
        self.ahead: TokenTree | None = None
        self.log_z: list[float | None] = []
        self.log_probs: list[float | None] = []
        self.memo: dict[Any, Any] = {}
        self.finished: str | None = None
        self.limit = sys.maxsize
        self.stops: frozenset[int] = frozenset()
        self.seed = seed
        self.rng = torch.Generator(device=device)
        self.rng.manual_seed(mix_seed(seed, index, number))

    @property
    def generated(self) -> list[int]:
        return self.tokens[self.prompt_length :]

    @property
    def pending(self) -> list[int]:
        """Committed tokens that the cache does not hold yet."""
        return self.tokens[self.cache.length :]

    @property
    def context(self) -> list[int]:
        """Everything that a drafter may copy from: the encoder's text, then the decoder's."""
        return self.source + self.tokens if self.source else self.tokens

    def aside(self, salt: int, device: torch.device | None = None) -> torch.Generator:
        """A new source of random numbers for what chooses no token: the branch's own are left as they are, so that a
        seed gives the text that it gives without the method.

        Args:
            salt: a number that tells the methods apart.
            device: of the source; the CPU if none is given.
        """
        source = torch.Generator(device=device or torch.device("cpu"))
        source.manual_seed(self.rng.initial_seed() ^ salt)
        return source

    def fork(self, number: int) -> Branch:
        """A copy that goes its own way, with its own random numbers and none of the notes but portable ones."""
        twin = Branch(self.index, number, list(self.tokens), self.cache.fork(), self.seed, self.rng.device, self.source)
        twin.prompt_length = self.prompt_length
        twin.carry, twin.ahead = self.carry, self.ahead
        twin.log_z = list(self.log_z)
        twin.log_probs = list(self.log_probs)
        twin.finished = self.finished
        twin.limit, twin.stops = self.limit, self.stops
        twin.memo = {part: note.fork() for part, note in self.memo.items() if isinstance(note, Portable)}
        return twin

    def rewind(self, generated: int) -> None:
        """Step back to the first ``generated`` tokens after the prompt; the last kept token becomes pending."""
        length = self.prompt_length + generated
        del self.tokens[length:]
        del self.log_z[generated:]
        del self.log_probs[generated:]
        # The last token must be scored again: its logits are what the next choice is made from.
        self.cache.rewind(min(self.cache.length, length - 1))
        self.carry = self.ahead = self.finished = None
        self.memo = {part: note for part, note in self.memo.items() if isinstance(note, Portable)}


def mix_seed(seed: int, index: int, number: int) -> int:
    """Distinct 63-bit seeds for every (seed, request, branch): splitmix64 finaliser (Steele et al., 2014)."""
    mask = (1 << 64) - 1
    value = seed & mask
    for part in (index, number):
        value = (value + 0x9E3779B97F4A7C15 * (part + 1)) & mask
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
        value ^= value >> 31
    return value >> 1
