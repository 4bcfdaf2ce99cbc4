"""Several answers to one prompt, side by side, within a time: the best by mean log-probability, and all of them.

The prompt is read once; its cache is copied for every answer. Answers go their own ways from there, each as fast as
its drafts stand. Measures: *pass@first*, whether the answer with the highest mean log-probability is right; *pass@all*,
whether any is (Qian et al., BASS, 2024, section 4).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from unspool.core.branch import Branch
from unspool.core.compose import Composition
from unspool.core.errors import Incompatible
from unspool.core.sockets import Move, Observation, Search
from unspool.core.texts import Stop
from unspool.core.tree import ROOT


@dataclass(frozen=True)
class Sample:
    """One answer.

    Args:
        tokens: generated, a stop token included.
        log_prob: of all of them, under the model itself, in nats.
        reason: why it ended; ``deadline`` if it is not complete.
    """

    tokens: tuple[int, ...]
    log_prob: float
    reason: str

    @property
    def mean_log_prob(self) -> float:
        return self.log_prob / max(len(self.tokens), 1)

    @property
    def complete(self) -> bool:
        return self.reason != "deadline"


class SideBySide(Search):
    """Branches of one prompt that know nothing of one another.

    Args:
        width: how many.

    Attributes:
        samples: of the request that ended last, in the order of the branches.
    """

    lockstep = False

    def __init__(self, width: int) -> None:
        super().__init__()
        self._width = width
        self.samples: list[Sample] = []

    @property
    def width(self) -> int:
        return self._width

    def observe(self, step: Observation) -> None:
        if not step.tokens:
            return
        at = [ROOT, *step.path][: len(step.tokens)]
        rows = [
            step.branch.carry if step.offset + node < 0 else step.scores.at(step.offset + node)  # nothing was pending
            for node in at
        ]
        logs = torch.log_softmax(torch.stack(rows).float(), dim=-1)  # type: ignore[arg-type]
        gained = float(logs[torch.arange(len(at)), step.tokens].sum())
        step.branch.memo[self] = step.branch.memo.get(self, 0.0) + gained

    def advance(self, branches: Sequence[Branch]) -> list[Move] | None:
        return None

    def select(self, branches: Sequence[Branch]) -> int:
        self.samples = [
            Sample(tuple(branch.generated), branch.memo.get(self, 0.0), branch.finished or "") for branch in branches
        ]
        return max(range(len(branches)), key=lambda place: _merit(self.samples[place]))


def _merit(sample: Sample) -> tuple[bool, float]:
    return sample.complete, sample.mean_log_prob


def draw_samples(
    composition: Composition, prompt: Sequence[int], count: int, *, stop: Stop | None = None, seed: int = 0
) -> list[Sample]:
    """``count`` answers to a prompt, the best first: complete ones before others, then by mean log-probability.

    Args:
        composition: drafter, controller, verifier and sampler to decode with.
        prompt: token ids.
        stop: limits of every answer; its ``deadline`` (seconds) is that of all together.

    Raises:
        Incompatible: if the composition has a search of its own.
        InvalidInput: see :func:`unspool.core.decode.decode`.
    """
    if composition.search is not None:
        raise Incompatible(
            f"samples are drawn side by side, and {composition} brings a search of its own: leave it out"
        )
    search = SideBySide(count)
    for _ in replace(composition, search=search).decode([prompt], stop=stop, seed=seed):
        pass
    return ranked(search.samples)


def ranked(samples: Sequence[Sample]) -> list[Sample]:
    """The best first: complete ones before others, then by mean log-probability."""
    return sorted(samples, key=_merit, reverse=True)


def passes(samples: Sequence[Sample], right: Callable[[Sample], bool]) -> tuple[bool, bool]:
    """(pass@first, pass@all) of answers in the order of :func:`draw_samples`; only complete answers can be right."""
    verdicts = [sample.complete and right(sample) for sample in samples]
    return verdicts[0], any(verdicts)
