from __future__ import annotations

import pytest

from unspool.core.events import Finished, Prefilled, Scored, Started, Stepped
from unspool.core.statistics import Statistics
from unspool.core.tree import TokenTree


def run(index: int | None) -> Statistics:
    counted = Statistics()
    tree = TokenTree([1, 2, 3], [-1, 0, -1])
    events = [
        (0.0, Started(0, 10)),
        (0.0, Started(1, 4)),
        (0.1, Prefilled(0.1, 2)),
        (0.2, Scored(0, 0.01, 0.02, 0.03, 1, 5, 1000, ((0, 0), (1, 0)))),
        (0.2, Stepped(0, 0, 0, (1, 2, 9), "abc", tree, (0, 1))),
        (0.2, Stepped(1, 0, 0, (), "", TokenTree.empty(), ())),
        (0.3, Scored(1, 0.01, 0.02, 0.03, 2, 0, 3000, ((0, 0), (1, 0)))),
        (0.3, Stepped(0, 0, 1, (4,), "d", TokenTree.chain([7, 8]), ())),
        (0.3, Stepped(1, 0, 1, (5,), "e", TokenTree.empty(), ())),
        (0.4, Finished(0, "length", (1, 2, 9, 4))),
        (0.5, Scored(2, 0.01, 0.02, 0.03, 1, 0, 2000, ((1, 0),))),
        (0.5, Stepped(1, 0, 2, (6,), "f", TokenTree.empty(), ())),
        (0.6, Finished(1, "stop-token", (5, 6))),
    ]
    for elapsed, event in events:
        counted.update(event, elapsed, index)
    return counted


def test_a_whole_batch() -> None:
    whole = run(None)
    assert (whole.prompt_tokens, whole.tokens, whole.steps, whole.forwards) == (14, 6, 3, 4)
    assert (whole.prefill_forwards, whole.draft_forwards, whole.peak_cache_bytes) == (2, 5, 3000)
    assert (whole.drafted, whole.accepted, whole.drafted_depth) == (5, 2, 4)
    assert whole.acceptance_rate == pytest.approx(0.5)
    assert whole.first_token_seconds == 0.2
    assert whole.seconds == 0.6
    assert whole.tokens_per_second == pytest.approx(10)
    assert whole.forwards_per_token == pytest.approx(4 / 6)
    assert whole.finish_reasons == {"length": 1, "stop-token": 1}
    assert whole.draft_seconds == pytest.approx(0.03)
    assert whole.score_seconds == pytest.approx(0.06)
    assert whole.verify_seconds == pytest.approx(0.09)


def test_one_request_of_a_batch() -> None:
    first, second = run(0), run(1)
    assert (first.tokens, first.steps, first.forwards, first.prompt_tokens) == (4, 2, 3, 10)
    assert first.accepted_length == pytest.approx(2.0)
    assert first.accepted_by_depth == {2: 1, 0: 1}
    assert (second.tokens, second.steps, second.forwards) == (2, 3, 4)
    assert second.acceptance_rate is None
    assert second.first_token_seconds == 0.3


def test_words_and_data() -> None:
    line = run(0).line()
    assert line.startswith("4 tokens · 10.0 tok/s · 0.75 forwards/token · 2.00 tokens/step · 50% accepted")
    data = run(0).as_dict()
    assert data["target_forwards"] == 3
    assert data["accepted_by_depth"] == {"0": 1, "2": 1}
    assert data["mean_accepted_length"] == 2.0


def test_nothing_happened() -> None:
    empty = Statistics()
    assert (empty.accepted_length, empty.acceptance_rate, empty.forwards_per_token, empty.tokens_per_second) == (
        0,
        None,
        0,
        0,
    )
    assert "0 tokens" in empty.line()
