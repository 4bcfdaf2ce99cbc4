"""What the model itself thought of the tokens that a text consists of.

Recorded is the log-probability of every generated token under the model's own distribution: temperature 1, no sampler,
nothing masked, whatever it was that chose the token. A chosen token has it from the pass that chose it. What a
constraint forced stood before the model was asked, and has it from the pass in which the token before it enters.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unspool.core.branch import Branch
from unspool.core.scores import Scores


def log_prob(logits: Tensor, token: int) -> float:
    """Of ``token`` under ``[V]`` logits, in nats."""
    exact = logits.double()
    return float(exact[token] - torch.logsumexp(exact, dim=0))


def unnoted(branch: Branch) -> int:
    """How many tokens at the end of the text have no log-probability yet."""
    count = 0
    for value in reversed(branch.log_probs):
        if value is not None:
            break
        count += 1
    return count


def note_pending(branch: Branch, count: int, scores: Scores) -> None:
    """Fill in what a pass tells about tokens that were committed before it; to be called before its nodes are.

    Args:
        count: how many of the pending tokens, the first ones, it read.
        scores: of a tree that begins with them as a chain.
    """
    length = len(branch.tokens)
    for place in range(length - unnoted(branch), length):
        before = place - 1 - branch.cache.length
        if before >= count:
            break
        logits = branch.carry if before < 0 else scores.at(before)
        assert logits is not None
        branch.log_probs[place - branch.prompt_length] = log_prob(logits, branch.tokens[place])
