"""Early answer: decreed chains stand, all others are matched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.contracts.exact import outcomes, walk
from torch import Tensor

from unspool.core.branch import Branch
from unspool.core.sockets import Constraint, Proposal, Verdict, Walk
from unspool.core.tree import TokenTree
from unspool.speculation.verification.early_answer import EarlyAnswer

P = torch.tensor([[0.5, 0.2, 0.3], [0.1, 0.6, 0.3], [0.0, 1.0, 0.0], [0.25, 0.25, 0.5]], dtype=torch.float64)
CHAIN = TokenTree.chain([2, 0, 1])


class No(Constraint):
    """Forbids one token."""

    def __init__(self, token: int) -> None:
        super().__init__()
        self.token = token

    def allowed(self, branch: Branch, tokens: list[int]) -> Tensor | None:
        mask = torch.ones(3, dtype=torch.bool)
        mask[self.token] = False
        return mask


def verdicts(place: Walk) -> dict[Any, float]:
    """Every (path, token) with its probability."""

    def judge() -> tuple[tuple[int, ...], int]:
        verdict: Verdict = EarlyAnswer().verify(place)
        return tuple(verdict.path), verdict.token

    return outcomes(judge)


def test_a_decree_stands_and_the_target_goes_on() -> None:
    place = walk(CHAIN, P, None, [])
    place.draft.decreed = True
    assert verdicts(place) == pytest.approx({((0, 1, 2), 0): 0.25, ((0, 1, 2), 1): 0.25, ((0, 1, 2), 2): 0.5})


def test_an_empty_decree_is_a_plain_step() -> None:
    place = walk(TokenTree.empty(), P[:1], None, [])
    place.draft.decreed = True
    assert verdicts(place) == pytest.approx({((), 0): 0.5, ((), 1): 0.2, ((), 2): 0.3})


def test_other_drafts_are_matched() -> None:
    found = verdicts(walk(CHAIN, P, None, []))
    assert found[(), 0] == pytest.approx(0.5)
    assert found[(0,), 1] == pytest.approx(0.3 * 0.6)
    assert found[(0, 1, 2), 2] == pytest.approx(0.3 * 0.1 * 1.0 * 0.5)


@pytest.mark.parametrize(("forbidden", "stands"), [(2, ()), (0, (0,)), (1, (0, 1))])
def test_a_constraint_ends_a_decree(forbidden: int, stands: tuple[int, ...]) -> None:
    place = walk(CHAIN, torch.full((4, 3), 1 / 3, dtype=torch.float64), None, [])
    place.draft.decreed = True
    place._constraint = No(forbidden)
    assert {path for path, _ in verdicts(place)} == {stands}


def test_what_it_judges() -> None:
    assert EarlyAnswer.judges == {Proposal.DECREED, Proposal.POINT}
    assert EarlyAnswer.default_for == {Proposal.DECREED}
    assert not EarlyAnswer.card.lossless
