"""Prompt lookup finds the latest earlier occurrence, and finds it again after every commit."""

from __future__ import annotations

import random

import pytest
import torch
from tests.toys import TableCache, TableModel

from unspool.core.branch import Branch
from unspool.core.compose import compose
from unspool.core.errors import InvalidInput
from unspool.core.events import Stepped
from unspool.core.sockets import Budget
from unspool.core.texts import Stop
from unspool.speculation.drafting.prompt_lookup import PromptLookup, PromptLookupSettings


def branch(tokens: list[int], source: list[int] | None = None) -> Branch:
    return Branch(0, 0, tokens, TableCache(), 0, torch.device("cpu"), source or [])


def scan(text: list[int], longest: int, shortest: int, tokens: int) -> list[int]:
    """The definition, without a table."""
    for size in range(longest, shortest - 1, -1):
        for end in range(len(text) - 1, size - 1, -1):
            if text[end - size : end] == text[len(text) - size :]:
                return text[end : end + tokens]
    return []


def draft(drafter: PromptLookup, of: Branch, budget: Budget | None = None) -> list[int]:
    tree = drafter.draft(of, budget or Budget()).tree
    assert tree.is_chain
    return tree.token_list


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ([5, 6, 7, 8, 9, 5, 6, 7], [8, 9, 5, 6, 7]),
        ([1, 2, 3, 4, 9, 2, 3, 5, 8, 2, 3], [5, 8, 2, 3]),  # the later of two
        ([7, 1, 2, 8, 3, 2, 9, 1, 2], [8, 3, 2, 9, 1, 2]),  # two tokens agree with an earlier place than one does
        ([1, 2, 3, 4], []),
        ([1], []),
        ([4, 4], [4]),
        ([4, 4, 4, 4], [4]),
    ],
)
def test_what_is_copied(text: list[int], expected: list[int]) -> None:
    assert draft(PromptLookup(), branch(text)) == expected


def test_ten_tokens_at_most_and_no_more_than_the_budget() -> None:
    text = [99, *range(30), 99]
    assert draft(PromptLookup(), branch(text)) == list(range(10))
    assert draft(PromptLookup(), branch(text), Budget(nodes=4)) == [0, 1, 2, 3]
    assert draft(PromptLookup(), branch(text), Budget(depth=2)) == [0, 1]


@pytest.mark.parametrize("seed", range(5))
def test_the_table_says_what_a_scan_says(seed: int) -> None:
    rng = random.Random(seed)
    settings = PromptLookupSettings(tokens=6, longest=rng.randint(2, 4), shortest=rng.randint(1, 2))
    drafter = PromptLookup(settings)
    growing = branch([rng.randrange(4) for _ in range(3)])
    for _ in range(120):
        assert draft(drafter, growing) == scan(growing.tokens, settings.longest, settings.shortest, settings.tokens)
        growing.tokens += [rng.randrange(4) for _ in range(rng.randint(0, 5))]


def test_a_rewound_branch_forgets_what_was_taken_back() -> None:
    drafter = PromptLookup()
    twice = branch([1, 2, 3])
    twice.tokens += [4, 1, 2]
    assert draft(drafter, twice) == [3, 4, 1, 2]
    twice.rewind(0)
    twice.tokens += [9, 1]
    assert draft(drafter, twice) == [2, 3, 9, 1]


def test_the_encoder_text_is_copied_from() -> None:
    assert draft(PromptLookup(), branch([2], source=[7, 1, 2, 5, 6])) == [5, 6, 2]


def test_copies_are_accepted_where_the_text_repeats() -> None:
    model = TableModel(6, seed=3, scale=3.0)
    # Greedy text of a table over two tokens runs into a cycle, which is then copied.
    events = list(compose(model, "prompt-lookup").decode([[1, 2]], stop=Stop(max_new_tokens=100)))
    steps = [event for event in events if isinstance(event, Stepped)]
    assert len(steps) < 50
    assert events[-1].tokens == [*compose(model).decode([[1, 2]], stop=Stop(max_new_tokens=100))][-1].tokens


def test_sizes_that_leave_nothing_to_look_up_are_refused() -> None:
    with pytest.raises(InvalidInput, match="shortest=4"):
        compose(TableModel(), "prompt-lookup", settings={"longest": 3, "shortest": 4})
