"""What scores tokens: the interface of models and of their caches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Protocol

import torch
from torch import Tensor

from unspool.core.errors import Incompatible, InvalidInput
from unspool.core.scores import LOGITS, Request, Scores, Want
from unspool.core.tree import TokenTree


class Capability(StrEnum):
    """What a model can do beyond scoring a chain; methods ask for these on their cards."""

    TREE = "tree attention"
    HIDDEN_STATES = "hidden states"
    ATTENTIONS = "attentions"
    LAYER_RANGES = "layer ranges"
    INPUT_EMBEDDINGS = "input embeddings"
    CACHE_EDITING = "cache editing"
    STATE_REPLAY = "state-space replay"
    ENCODER = "an encoder"
    SPLIT_ATTENTION = "attention row by row"
    MEMORY_BUDGET = "a memory budget"
    QUERIES = "attention queries"


class Tokenizer(Protocol):
    """The little that the loops and methods need of a tokenizer."""

    def encode(self, text: str, /, special: bool = True) -> list[int]:
        """Token ids; ``special`` adds what the model expects around a text (a BOS token, say)."""
        ...

    def decode(self, ids: Sequence[int], /) -> str: ...


class Cache(ABC):
    """What a model remembers of one sequence.

    A ``score`` leaves the nodes of its tree in the cache provisionally; the next call of :meth:`commit` keeps one path
    of them. Scoring again without a commit (and without ``known``) drops them.
    """

    length: int
    """Number of committed positions."""

    @abstractmethod
    def commit(self, path: Sequence[int]) -> None:
        """Keep these nodes of the tree scored last, in order from the root, and forget the others.

        Raises:
            InvalidInput: if ``path`` names a node that was not scored.
        """

    @abstractmethod
    def fork(self) -> Cache:
        """A branch that shares the committed prefix and may go its own way."""

    @abstractmethod
    def rewind(self, length: int) -> None:
        """Step back to the first ``length`` positions.

        Raises:
            InvalidInput: if ``length`` is negative or beyond the committed length.
        """

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes held for this sequence, room for growth included."""

    def release(self) -> None:
        """Give the memory back; the cache must not be used afterwards."""

    def _check_rewind(self, length: int) -> None:
        if not 0 <= length <= self.length:
            raise InvalidInput(f"cannot rewind to {length}: the cache holds {self.length} positions")


class LanguageModel(ABC):
    """A model that scores trees of tokens, one forward pass for a ragged batch.

    Attributes:
        name: what the user called it.
        vocab_size: width ``V`` of the logits.
        context_length: positions the model was made for, or ``None`` where there is no limit.
        tokenizer: text to tokens and back, or ``None``.
        stop_tokens: tokens that end a text.
        capabilities: see :class:`Capability`.
        num_layers: layers that :attr:`Capability.LAYER_RANGES` tells apart; 0 for a model without.
        forwards: passes through the network since loading, of any number of tokens.
        layers_run: layers that those passes ran through; 0 for a model without layers.
        kv_read: elements of cached keys and values, their own among them, that those passes attended to; 0 for a model
            without.
    """

    name: str
    vocab_size: int
    context_length: int | None
    tokenizer: Any
    stop_tokens: frozenset[int]
    capabilities: frozenset[Capability]
    device: torch.device
    dtype: torch.dtype
    forwards: int = 0
    layers_run: int = 0
    kv_read: int = 0

    @property
    def num_layers(self) -> int:
        return 0

    @abstractmethod
    def new_caches(self, count: int) -> list[Cache]:
        """Empty caches of ``count`` sequences that will mostly be scored together."""

    def new_cache(self) -> Cache:
        return self.new_caches(1)[0]

    @abstractmethod
    def score(
        self, requests: Sequence[Request], want: Want = LOGITS, layers: Sequence[int] | None = None
    ) -> list[Scores]:
        """One forward pass over a ragged batch of (cache, tree).

        Args:
            requests: at most one for a cache.
            want: what to return besides logits.
            layers: ascending indices of the layers to run, the others being skipped; ``None`` for all. Needs
                :attr:`Capability.LAYER_RANGES`.

        Raises:
            Incompatible: if the model lacks what is asked for.
            InvalidInput: if a token is outside the vocabulary or the context is exceeded.
        """

    def start(self, prompts: Sequence[Sequence[int]]) -> list[tuple[Cache, list[int]]]:
        """A cache for every prompt and the tokens with which decoding starts.

        A decoder starts with the prompt itself; a model with an encoder reads the prompt there and starts with its
        start token.
        """
        return [(cache, list(prompt)) for cache, prompt in zip(self.new_caches(len(prompts)), prompts, strict=True)]

    def prefill(
        self,
        cache: Cache,
        tokens: Sequence[int],
        *,
        rows: list[int] | None = None,
        want: Want = LOGITS,
        chunk: int = 512,
    ) -> list[Scores]:
        """Score and commit ``tokens`` in pieces of at most ``chunk``; ``rows`` as in :class:`Request`, of the whole."""
        scores: list[Scores] = []
        for first in range(0, len(tokens), chunk):
            piece = TokenTree.chain(tokens[first : first + chunk])
            mine = None if rows is None else [row - first for row in rows if first <= row < first + len(piece)]
            scores.extend(self.score([Request(cache, piece, rows=mine)], want))
            cache.commit(range(len(piece)))
        return scores

    def require(self, needs: frozenset[Capability], who: str) -> None:
        """Raise :class:`Incompatible`, naming both sides, unless the model has everything in ``needs``."""
        missing = sorted(need.value for need in needs - self.capabilities)
        if missing:
            have = ", ".join(sorted(c.value for c in self.capabilities)) or "none of the optional ones"
            raise Incompatible(
                f"{who} needs a model with {', '.join(missing)}; {self.name} ({type(self).__name__}) has {have}"
            )

    def embed(self, tokens: Tensor) -> Tensor:
        """``[N]`` token ids to ``[N, d]`` input embeddings. Needs :attr:`Capability.INPUT_EMBEDDINGS`."""
        raise Incompatible(f"{self.name} gives no access to its input embeddings")

    def head(self, hidden: Tensor) -> Tensor:
        """``[N, d]`` final hidden states to ``[N, V]`` logits. Needs :attr:`Capability.HIDDEN_STATES`."""
        raise Incompatible(f"{self.name} gives no access to its output head")

    def exit_head(self, hidden: Tensor) -> Tensor:
        """``[N, d]`` hidden states that leave any layer to ``[N, V]`` logits, by the last norm and the output head.

        No layer is run, and nothing is counted as a pass. Needs :attr:`Capability.LAYER_RANGES`.
        """
        raise Incompatible(f"{self.name} gives no access to an exit before its last layer")
