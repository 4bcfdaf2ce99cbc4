"""What the experiments on open-ended text share: texts without an end, and how good they are."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unspool.core.branch import Branch
from unspool.core.compose import Composition, compose
from unspool.core.model import LanguageModel
from unspool.core.sockets import Constraint, Part, Setup
from unspool.evaluation.metrics import coherence, diversity, perplexity, rep_n
from unspool.evaluation.reproductions._common import Continuation, Lab


class Endless(Constraint):
    """The model's stop tokens are not allowed: every text grows to the length that was asked for."""

    def bind(self, setup: Setup) -> None:
        self._allowed = torch.ones(setup.target.vocab_size, dtype=torch.bool, device=setup.target.device)
        self._allowed[sorted(setup.target.stop_tokens)] = False

    def allowed(self, branch: Branch, tokens: list[int]) -> Tensor:
        return self._allowed


def endless(lab: Lab, *methods: str | Part, **settings: object) -> Composition:
    """The composition of some methods that never ends a text."""
    return compose(lab.model, [Endless(), *methods], settings=settings)


@dataclass(frozen=True)
class Quality:
    """Means over texts; every measure is one of :mod:`unspool.evaluation.metrics`."""

    rep: dict[int, float]
    diversity: float
    coherence: float


def quality(lab: Lab, prompts: Sequence[Sequence[int]], texts: Sequence[Sequence[int]]) -> Quality:
    """Measure continuations: repetition by size of n-gram, diversity, coherence with the prompt."""
    mean = statistics.fmean
    return Quality(
        {n: mean(rep_n(text, n) for text in texts) for n in (2, 3, 4)},
        mean(diversity(text) for text in texts),
        mean(coherence(lab.model, prompt, text) for prompt, text in zip(prompts, texts, strict=True)),
    )


def judged(
    lab: Lab, prompts: Sequence[Sequence[int]], texts: Sequence[Sequence[int]], judge: LanguageModel | None = None
) -> float:
    """Perplexity of continuations under another model, in its own tokens; by default under the writer itself."""
    if judge is None:
        return perplexity(lab.model, list(zip(prompts, texts, strict=True)))
    write, read = lab.model.tokenizer, judge.tokenizer
    return perplexity(
        judge,
        [
            (read.encode(write.decode(prompt)), read.encode(write.decode(text), special=False))
            for prompt, text in zip(prompts, texts, strict=True)
        ],
    )


def tokens_of(runs: Sequence[Continuation]) -> list[list[int]]:
    return [run.tokens for run in runs]
