"""Auto: the drafter of those who do not want to choose one.

It copies from the text where the text repeats itself (prompt lookup) and fills what is left of a small budget with the
model's own recycled candidates (token recycling); both cost next to nothing, need no second model, and are kept in one
tree. A longer match is worth a longer copy: ``lookup`` tokens for every token of the n-gram that was found. Models that
score only chains get the copy if there is one, else the chain of first candidates.

Lossless: like its two parts it proposes fixed candidates, which are matched with the target's own choices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from unspool.core.branch import Branch
from unspool.core.cards import Card, Kind, settings
from unspool.core.model import Capability
from unspool.core.registry import register
from unspool.core.sockets import Budget, Draft, Drafter, Observation, Setup
from unspool.core.tree import TokenTree
from unspool.speculation.drafting.prompt_lookup import PromptLookup, PromptLookupSettings
from unspool.speculation.drafting.token_recycling import TokenRecycling, TokenRecyclingSettings

_ON_CPU, _ELSEWHERE = 3, 31


@settings
class AutoSettings:
    """The size of the draft follows the device unless it is set.

    On a CPU (measured on two cores, float32) a pass over four tokens costs what one token costs, and sixteen cost 1.8
    times as much. What is best on accelerators was not measured; there a pass is nearly free up to dozens of tokens.
    """

    nodes: Annotated[
        int | None,
        Field(ge=1, le=80, description="draft tokens in all, per step; by default 3 on a CPU, 31 elsewhere"),
    ] = None
    lookup: Annotated[int, Field(ge=0, description="tokens to copy for each token of the n-gram that was found")] = 3


@register(
    Card(
        slug="auto",
        name="Automatic",
        kind=Kind.DRAFTER,
        summary="Copies from the text where it repeats itself, and recycles the model's own candidates elsewhere.",
        lossless=True,
    ),
    AutoSettings,
)
class Auto(Drafter):
    """Prompt lookup and token recycling in one tree."""

    settings: AutoSettings

    def __init__(self, settings: AutoSettings | None = None) -> None:
        super().__init__(settings)
        self._nodes = self.settings.nodes or _ELSEWHERE
        self.lookup = PromptLookup(PromptLookupSettings(tokens=self._nodes))
        self.recycling = TokenRecycling(TokenRecyclingSettings(nodes=self._nodes))
        self.observes_prompt = self.recycling.observes_prompt
        self._chain = False

    def bind(self, setup: Setup) -> None:
        self.lookup.bind(setup)
        self.recycling.bind(setup)
        self._chain = Capability.TREE not in setup.target.capabilities
        if self.settings.nodes is None:
            self._nodes = _ON_CPU if setup.target.device.type == "cpu" else _ELSEWHERE

    def propose(self, branches: Sequence[Branch], budgets: Sequence[Budget]) -> list[Draft]:
        copied, left = [], []
        for branch, budget in zip(branches, budgets, strict=True):
            tokens, size = self.lookup.lookup(branch, budget)
            nodes, _ = budget.of(self._nodes, 0)
            tokens = tokens[: min(self.settings.lookup * size, nodes)]
            copied.append(TokenTree.chain(tokens))
            left.append(Budget(0 if self._chain and tokens else nodes - len(tokens), budget.depth))
        recycled = self.recycling.trees(branches, left)
        return [Draft(TokenTree.merge(pair)) for pair in zip(copied, recycled, strict=True)]

    def observe(self, step: Observation) -> None:
        self.recycling.observe(step)

    def release(self, branch: Branch) -> None:
        super().release(branch)
        self.lookup.release(branch)
        self.recycling.release(branch)
