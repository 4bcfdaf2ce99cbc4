"""Several drafters in one: what mixtures and bandits have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from unspool.core.branch import Branch
from unspool.core.cards import Kind, make_settings
from unspool.core.errors import Incompatible, InvalidInput
from unspool.core.learned import Learned
from unspool.core.model import Capability, LanguageModel
from unspool.core.registry import registry
from unspool.core.scores import LOGITS, Want
from unspool.core.sockets import Drafter, Observation, Proposal, Setup


def parse_arm(text: str) -> tuple[str, dict[str, str]]:
    """``slug:name=value:name=value`` to a slug and its settings.

    Raises:
        InvalidInput: if a piece is not of that form.
    """
    slug, *pairs = text.strip().split(":")
    values: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise InvalidInput(f"arm {text!r}: {pair!r} is no setting; write slug:name=value")
        values[name.strip()] = value.strip()
    return slug.strip(), values


class Arms(Drafter):
    """A drafter that asks others. Whatever they observe, keep or run is passed on.

    Attributes:
        arms: the others, in the order in which they were named.
        names: how they were named.
    """

    def __init__(self, settings: Any, arms: Sequence[str]) -> None:
        super().__init__(settings)
        who = self.card.slug
        if not arms:
            raise InvalidInput(f"{who}: there are no arms; name at least one drafter")
        self.names = [arm.strip() for arm in arms]
        self.arms: list[Drafter] = []
        for name in self.names:
            slug, values = parse_arm(name)
            method = registry[slug]
            made: Any = method.cls
            if method.card.kind is not Kind.DRAFTER or issubclass(made, Arms):
                raise InvalidInput(f"{who}: arm {slug!r} is not a drafter of its own; name one, such as prompt-lookup")
            self.arms.append(made(make_settings(method.settings, values, slug)))
        kinds = {arm.proposal for arm in self.arms} - {Proposal.POINT}
        if len(kinds) > 1:
            raise Incompatible(
                f"{who}: its arms propose {' and '.join(sorted(kind.value for kind in kinds))}; one rule has to judge "
                "all of them"
            )
        self.proposal = kinds.pop() if kinds else Proposal.POINT
        self.want: Want = LOGITS
        for arm in self.arms:
            self.want = self.want | arm.want
        self.observes_prompt = any(arm.observes_prompt for arm in self.arms)

    def bind(self, setup: Setup) -> None:
        for arm in self.arms:
            setup.target.require(arm.card.needs, f"{self.card.slug} with {arm.card.slug}")
            if not arm.card.lossless:
                raise Incompatible(f"{self.card.slug}: arm {arm.card.slug} changes the output; arms must be lossless")
            arm.bind(setup)
        self.chains_only = Capability.TREE not in setup.target.capabilities

    def observe(self, step: Observation) -> None:
        for arm in self.arms:
            arm.observe(step)

    def release(self, branch: Branch) -> None:
        super().release(branch)
        for arm in self.arms:
            arm.release(branch)

    @property
    def other_models(self) -> tuple[LanguageModel, ...]:
        return tuple(model for arm in self.arms for model in arm.other_models)

    @property
    def learned(self) -> dict[str, Learned]:
        kept: dict[str, Learned] = {}
        for arm in self.arms:
            for name, learned in arm.learned.items():
                kept[name if name not in kept else f"{name}-{len(kept)}"] = learned
        return kept
