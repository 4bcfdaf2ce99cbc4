"""Bandits: which of several arms to pull next, from what the pulls have given so far.

Arms are numbered from 0 and give rewards within [0, 1]. Used by drafters that choose among others; by itself a few
floats an arm, so that one is kept for every text.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch


class Bandit(ABC):
    """Chooses among ``arms``.

    Attributes:
        pulls: ``[K]`` how often each was pulled.
    """

    def __init__(self, arms: int) -> None:
        self.pulls = [0] * arms

    @property
    def rounds(self) -> int:
        return sum(self.pulls)

    @abstractmethod
    def choose(self, rng: torch.Generator) -> int:
        """The arm to pull next."""

    @abstractmethod
    def learn(self, arm: int, reward: float) -> None:
        """The pull of ``arm`` gave ``reward``, within [0, 1]."""


class UCB(Bandit):
    """UCBSpec: the arm whose mean reward may be the highest, given what is known (BanditSpec, algorithm 2).

    Every arm is pulled once; then the arm of the largest ``mean + radius``, with the self-normalised radius

        scale * sqrt((1 + n) / n^2 * (1 + 2 ln(K t^2 sqrt(1 + n))))

    for an arm of ``n`` pulls after ``t`` rounds. Rewards within [0, 1] are sub-Gaussian with ``scale`` 1/2.
    """

    def __init__(self, arms: int, scale: float = 0.5) -> None:
        super().__init__(arms)
        self.scale = scale
        self.means = [0.0] * arms

    def choose(self, rng: torch.Generator) -> int:
        for arm, pulls in enumerate(self.pulls):
            if pulls == 0:
                return arm
        t, arms = self.rounds + 1, len(self.pulls)

        def bound(arm: int) -> float:
            n = self.pulls[arm]
            radius = math.sqrt((1 + n) / n**2 * (1 + 2 * math.log(arms * t**2 * math.sqrt(1 + n))))
            return self.means[arm] + self.scale * radius

        return max(range(arms), key=bound)

    def learn(self, arm: int, reward: float) -> None:
        self.pulls[arm] += 1
        self.means[arm] += (reward - self.means[arm]) / self.pulls[arm]


class Exp3(Bandit):
    """EXP3Spec: exponential weights on estimated losses, for rewards that an adversary may choose (algorithm 3).

    An arm is drawn with probability proportional to ``exp(-eta * loss)``; its loss grows by ``(1 - reward) / P(arm)``,
    so that every arm's estimate is unbiased. ``eta = scale * sqrt(ln K / (t K))`` needs no horizon.
    """

    def __init__(self, arms: int, scale: float = 1.0) -> None:
        super().__init__(arms)
        self.scale = scale
        self.losses = [0.0] * arms
        self._drawn: dict[int, float] = {}

    def chances(self) -> list[float]:
        """``[K]`` probabilities of the next draw."""
        arms = len(self.losses)
        eta = self.scale * math.sqrt(math.log(max(arms, 2)) / ((self.rounds + 1) * arms))
        least = min(self.losses)
        weights = [math.exp(-eta * (loss - least)) for loss in self.losses]
        total = sum(weights)
        return [weight / total for weight in weights]

    def choose(self, rng: torch.Generator) -> int:
        chances = self.chances()
        arm = _draw(chances, rng)
        self._drawn[arm] = chances[arm]
        return arm

    def learn(self, arm: int, reward: float) -> None:
        self.pulls[arm] += 1
        self.losses[arm] += (1.0 - reward) / self._drawn[arm]


def _draw(chances: Sequence[float], rng: torch.Generator) -> int:
    point = float(torch.rand((), generator=rng, dtype=torch.float64, device=rng.device))
    for arm, chance in enumerate(chances):
        point -= chance
        if point < 0:
            return arm
    return len(chances) - 1
