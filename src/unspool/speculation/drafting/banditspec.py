"""BanditSpec: a bandit chooses, step by step, which drafter to ask, or how much of it to send.

The arms are drafters with their settings. Every step of a text pulls one arm: its draft is verified, and the reward is
the number of tokens that the step committed, in units of the most that the arms could give. ``ucb`` (UCBSpec) is for
texts on which each arm has a steady worth, ``exp3`` (EXP3Spec) for those on which the worth of the arms changes. Arms
of different cost are compared by tokens per second with ``reward=speed``: the measured seconds of a pass over the tree
that was sent, at the arm's own cost.

Every arm observes every step, whoever was asked; those that hold caches catch up when they are asked again.

Paper: Hou et al., BanditSpec: Adaptive Speculative Decoding via Bandit Algorithms, 2025 (UCBSpec, EXP3Spec; the regret
is in rounds until the text ends).

Lossless: which arm is asked depends on earlier steps alone, and each of its drafts is verified exactly.

Where the paper is silent: ``scope=model`` goes on with the statistics of earlier texts, every text beginning with the
weight of ``carry`` rounds of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from unspool.core.branch import Branch
from unspool.core.cards import Card, Kind, settings
from unspool.core.errors import WeightsError
from unspool.core.learned import Learned
from unspool.core.registry import register
from unspool.core.sockets import Budget, Draft, Observation, Setup
from unspool.models.costs import PassCosts, pass_costs
from unspool.speculation.drafting._arms import Arms
from unspool.speculation.drafting._bandits import UCB, Bandit, Exp3

_SALT = 0xBA4D17
# The scale that stands for EXP3's own learning rate.
_UNIT = 0.15


@settings
class BanditSpecSettings:
    """The arms, and how to choose among them."""

    arms: Annotated[
        tuple[str, ...], Field(description="drafters, each as slug or slug:name=value:...; `plain` drafts nothing")
    ] = ("prompt-lookup", "token-recycling:nodes=16", "prompt-lookup:tokens=3", "plain")
    bandit: Annotated[
        Literal["ucb", "exp3"], Field(description="UCBSpec for steady arms, EXP3Spec for changing ones")
    ] = "ucb"
    reward: Annotated[
        Literal["tokens", "speed"], Field(description="what a step is worth: its tokens, or its tokens per second")
    ] = "tokens"
    longest: Annotated[int, Field(ge=1, description="most draft tokens on a path; also the unit of rewards")] = 10
    scale: Annotated[
        float, Field(gt=0, allow_inf_nan=False, description="factor of the confidence radius, or of the learning rate")
    ] = 0.15
    scope: Annotated[
        Literal["text", "model"], Field(description="whether every text begins anew or with what earlier ones taught")
    ] = "text"
    carry: Annotated[int, Field(ge=1, description="rounds that earlier texts count for, with scope=model")] = 20


class ArmRecord(Learned):
    """What the arms have given over all texts.

    Args:
        arms: how many there are.
    """

    kind: ClassVar[str] = "banditspec"

    def __init__(self, arms: int) -> None:
        self.pulls = [0.0] * arms
        self.rewards = [0.0] * arms

    def arrays(self) -> dict[str, Tensor]:
        return {"pulls": torch.tensor(self.pulls), "rewards": torch.tensor(self.rewards)}

    def restore(self, arrays: Mapping[str, Tensor]) -> None:
        pulls, rewards = arrays.get("pulls"), arrays.get("rewards")
        if pulls is None or rewards is None or pulls.shape != (len(self.pulls),) or rewards.shape != pulls.shape:
            raise WeightsError(f"banditspec needs the pulls and rewards of {len(self.pulls)} arms")
        self.pulls, self.rewards = pulls.tolist(), rewards.tolist()

    def clear(self) -> None:
        self.pulls = [0.0] * len(self.pulls)
        self.rewards = [0.0] * len(self.rewards)

    @property
    def nbytes(self) -> int:
        return 16 * len(self.pulls)


class _Text:
    """The bandit of one text, its random numbers, and the pull whose reward is awaited."""

    __slots__ = ("bandit", "chance", "pulled")

    def __init__(self, bandit: Bandit, chance: torch.Generator) -> None:
        self.bandit = bandit
        self.chance = chance
        self.pulled: int | None = None


@register(
    Card(
        slug="banditspec",
        name="BanditSpec",
        kind=Kind.DRAFTER,
        summary="Lets a bandit choose, step by step, which of several drafters guesses.",
        paper="BanditSpec: Adaptive Speculative Decoding via Bandit Algorithms, 2025",
        claim="close to the best drafter of each text without knowing it; on mixed texts better than any fixed one",
        lossless=True,
    ),
    BanditSpecSettings,
)
class BanditSpec(Arms):
    """One of several drafters a step.

    Attributes:
        record: pulls and rewards over all texts.
    """

    settings: BanditSpecSettings

    def __init__(self, settings: BanditSpecSettings | None = None) -> None:
        settings = settings or BanditSpecSettings()
        super().__init__(settings, settings.arms)
        self.record = ArmRecord(len(self.arms))
        self._costs: PassCosts | None = None

    @property
    def learned(self) -> dict[str, Learned]:
        return {"banditspec": self.record, **super().learned}

    def bind(self, setup: Setup) -> None:
        super().bind(setup)
        if self.settings.reward == "speed":
            self._costs = pass_costs(setup.target)

    def pulls(self, branch: Branch) -> list[int]:
        """How often each arm was pulled on this text."""
        return list(self._text(branch).bandit.pulls)

    def propose(self, branches: Sequence[Branch], budgets: Sequence[Budget]) -> list[Draft]:
        asked: dict[int, list[int]] = {}
        for place, branch in enumerate(branches):
            text = self._text(branch)
            text.pulled = text.bandit.choose(text.chance)
            asked.setdefault(text.pulled, []).append(place)
        drafts = [Draft.empty()] * len(branches)
        deepest = Budget(depth=self.settings.longest)
        for arm, places in asked.items():
            limits = [budgets[place] & deepest for place in places]
            proposed = self.arms[arm].propose([branches[place] for place in places], limits)
            for place, limit, draft in zip(places, limits, proposed, strict=True):
                drafts[place] = draft.limited(limit)
        return drafts

    def observe(self, step: Observation) -> None:
        super().observe(step)
        text = self._text(step.branch)
        if text.pulled is None or not step.tokens:
            return
        reward = self._worth(len(step.tokens), len(step.draft.tree))
        text.bandit.learn(text.pulled, reward)
        self.record.pulls[text.pulled] += 1
        self.record.rewards[text.pulled] += reward
        text.pulled = None

    def _worth(self, tokens: int, nodes: int) -> float:
        """The reward of a step within [0, 1]: its tokens (or tokens per second) over the most possible."""
        worth = tokens / (self.settings.longest + 1)
        if self._costs is not None:
            # A pass over one token is the cheapest there is.
            worth /= self._costs.ratio(1 + nodes)
        return min(worth, 1.0)

    def _text(self, branch: Branch) -> _Text:
        text: _Text | None = branch.memo.get(self)
        if text is None:
            arms, scale = len(self.arms), self.settings.scale
            bandit = UCB(arms, scale) if self.settings.bandit == "ucb" else Exp3(arms, scale / _UNIT)
            text = _Text(bandit, branch.aside(_SALT))
            if self.settings.scope == "model":
                self._recall(text.bandit)
            branch.memo[self] = text
        return text

    def _recall(self, bandit: Bandit) -> None:
        """Begin with earlier texts' means, as if each arm had its share of ``carry`` rounds."""
        total = sum(self.record.pulls)
        for arm, (pulls, rewards) in enumerate(zip(self.record.pulls, self.record.rewards, strict=True)):
            if not pulls:
                continue
            share = max(1, round(self.settings.carry * pulls / total))
            if isinstance(bandit, UCB):
                bandit.pulls[arm], bandit.means[arm] = share, rewards / pulls
            elif isinstance(bandit, Exp3):
                # The estimate of a loss over all rounds, not over the arm's own.
                bandit.pulls[arm], bandit.losses[arm] = share, self.settings.carry * (1 - rewards / pulls)
