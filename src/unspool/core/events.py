"""What the loops tell while they run. Statistics, streams, traces and servers all read these."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from unspool.core.tree import TokenTree

if TYPE_CHECKING:
    from unspool.core.sockets import Reading


@dataclass(frozen=True)
class Started:
    """A request was accepted: number of prompt tokens (of the encoder's too, where there is one)."""

    index: int
    prompt_tokens: int


@dataclass(frozen=True)
class Prefilled:
    """Text was read in passes that chose no token: the prompts, or at the end what was forced. Times in seconds."""

    seconds: float
    forwards: int


@dataclass(frozen=True)
class Scored:
    """One round of the loop, over all live branches: drafting, one target pass, verification. Times in seconds.

    ``layers`` counts the layers that those of ``forwards`` ran through, ``kv_read`` the elements of keys and values
    that they attended to (0 if the model cannot tell).
    """

    step: int
    draft_seconds: float
    score_seconds: float
    verify_seconds: float
    forwards: int
    draft_forwards: int
    cache_bytes: int
    branches: tuple[tuple[int, int], ...]
    layers: int = 0
    kv_read: int = 0


@dataclass(frozen=True)
class Probe:
    """The model's own probabilities (softmax of its logits) along one step, for traces.

    Args:
        draft: of every draft node, given its parent's text.
        tokens: of every committed token.
    """

    draft: tuple[float, ...]
    tokens: tuple[float, ...]


@dataclass(frozen=True)
class Stepped:
    """What one round gave one branch.

    Args:
        index, branch: which request, which of its branches.
        step: number of the round.
        tokens: committed in this round, in order; empty if the sampler asked to look ahead first.
        forced: how many of them, the last ones, a constraint left no choice about, so that the model was not asked. A
            text that begins with such tokens has an event of them alone before its first round.
        text: text that became final (empty if the model has no tokenizer).
        draft: what was proposed.
        accepted: the nodes of it that stand, from the top.
        probe: probabilities, if asked for.
    """

    index: int
    branch: int
    step: int
    tokens: tuple[int, ...]
    text: str
    draft: TokenTree
    accepted: tuple[int, ...]
    probe: Probe | None = None
    forced: int = 0


@dataclass(frozen=True)
class Finished:
    """A request is done.

    Args:
        reason: ``stop-token``, ``stop-string``, ``length``, ``context``, ``deadline``, or ``complete`` if a constraint
            allows nothing more and there is no stop token to say so.
        tokens: everything generated, a stop token included.
        text: text that was held back until now.
        branch: which branch is the answer.
        complete: whether a constraint calls the text complete; ``None`` without a constraint, or if it cannot tell.
        log_probs: of every token, under the model's own distribution, in nats; ``None`` unless a part reads them.
        reading: what the reader makes of the request's texts; ``None`` without one.
    """

    index: int
    reason: str
    tokens: tuple[int, ...] = field(repr=False)
    text: str = ""
    branch: int = 0
    complete: bool | None = None
    log_probs: tuple[float, ...] | None = field(default=None, repr=False)
    reading: Reading | None = None


Event = Started | Prefilled | Scored | Stepped | Finished
