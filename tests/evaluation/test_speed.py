"""Speed and what it is compared by, from rows made by hand."""

from typing import Any

import pytest

from unspool.evaluation import results, speed
from unspool.evaluation.suites import Item, Suite


def turn(tokens: int, seconds: float, first: float | None = None, **told: Any) -> dict[str, Any]:
    statistics = {}
    if told:
        statistics = {
            "target_forwards": 0, "mean_accepted_length": 1.0, "accepted_by_depth": {}, "drafted_by_depth": {},
            "accepted_tokens": 0, "prefill_seconds": 0.0, "draft_seconds": 0.0, "score_seconds": 0.0,
            "verify_seconds": 0.0, "peak_cache_bytes": 0, **told,
        }  # fmt: skip
    return {
        "text": "", "tokens": tokens, "prompt_tokens": 1, "finish_reason": "length", "seconds": seconds,
        "first_token_seconds": first, "statistics": statistics, "token_ids": [],
    }  # fmt: skip


def row(item: str, arm: str, *turns: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"item": item, "arm": arm, "category": "c", "sample": 0, "turns": list(turns), "scores": {}, **more}


def test_rates_are_ratios_of_sums_over_turns() -> None:
    rows = [
        row("a", "x", turn(10, 1.0, 0.5), turn(30, 1.0, 0.25), peak_rss_bytes=5),
        row("b", "x", turn(60, 8.0, 0.25), peak_rss_bytes=9),
    ]
    found = speed.estimates(rows)
    assert found["tokens_per_second"].value == pytest.approx(100 / 10)
    assert found["decode_tokens_per_second"].value == pytest.approx((9 + 29 + 59) / 9)
    assert found["first_token_seconds"].value == pytest.approx(1 / 3)
    assert found["median_tokens_per_second"].value == pytest.approx((20 + 7.5) / 2)
    assert found["peak_rss_bytes"].value == 9
    assert "forwards_per_token" not in found  # nobody told


def test_drafting() -> None:
    """Ten steps: five draft two tokens of which none, one, one, two, two stand; five draft nothing."""
    told = turn(
        16, 2.0, target_forwards=10, mean_accepted_length=1.6, accepted_by_depth={"0": 6, "1": 2, "2": 2},
        drafted_by_depth={"0": 5, "2": 5}, accepted_tokens=6, draft_seconds=0.4, score_seconds=1.2, verify_seconds=0.08,
        peak_cache_bytes=7,
    )  # fmt: skip
    found = {name: estimate.value for name, estimate in speed.estimates([row("a", "x", told)]).items()}
    assert found["forwards_per_token"] == pytest.approx(10 / 16)
    assert found["mean_accepted_length"] == pytest.approx(1.6)
    assert found["acceptance_rate"] == pytest.approx(6 / 10)
    assert found["acceptance_at_1"] == pytest.approx(4 / 5)
    assert found["acceptance_at_2"] == pytest.approx(2 / 5)
    assert "acceptance_at_3" not in found
    assert found["draft_ms_per_token"] == pytest.approx(25)
    assert found["score_ms_per_token"] == pytest.approx(75)
    assert found["verify_ms_per_token"] == pytest.approx(5)
    assert found["peak_cache_bytes"] == 7


def test_arms_are_compared_on_the_items_that_both_answered() -> None:
    rows = [
        row("a", "plain", turn(10, 1.0)), row("b", "plain", turn(10, 4.0)), row("c", "plain", turn(10, 100.0)),
        row("a", "fast", turn(10, 0.5)), row("b", "fast", turn(10, 2.0)),
        row("c", "fast", error={"type": "InvalidInput", "message": "too long"}),
    ]  # fmt: skip
    (found,) = results.compare_arms(Suite(), rows, "plain")
    assert found["metric"] == "tokens_per_second"
    assert found["ratio"] == pytest.approx(2)
    assert found["median_ratio"] == pytest.approx(2)
    assert found["n"] == 2
    assert found["low"] == pytest.approx(2)


class Scored(Suite):
    name = "scored"
    metrics = ("right",)


def test_scores_are_summed_up_by_arm_and_category() -> None:
    items = [Item(name, category, ("q",)) for name, category in (("a", "x"), ("b", "x"), ("c", "y"))]
    rows = []
    for item in items:
        for arm, right in (("plain", item.id != "c"), ("other", item.id == "a")):
            rows.append(
                row(item.id, arm, turn(5, 1.0)) | {"category": item.category, "scores": {"right": float(right)}}
            )
    summary = results.summarise(Scored(), items, rows)
    right = {(s["arm"], s["category"]): (s["value"], s["n"]) for s in summary if s["metric"] == "right"}
    assert right == {
        ("plain", None): (pytest.approx(2 / 3), 3), ("plain", "x"): (1.0, 2), ("plain", "y"): (0.0, 1),
        ("other", None): (pytest.approx(1 / 3), 3), ("other", "x"): (0.5, 2), ("other", "y"): (0.0, 1),
    }  # fmt: skip
    (difference,) = [one for one in results.compare_arms(Scored(), rows, "plain") if one["metric"] == "right"]
    assert difference["difference"] == pytest.approx(-1 / 3)
    assert difference["low"] <= -1 / 3 <= difference["high"]


def test_samples_of_an_item_count_as_one() -> None:
    items = [Item("a", "x", ("q",)), Item("b", "x", ("q",))]
    rows = [
        row(item, "plain", turn(5, 1.0)) | {"sample": sample, "scores": {"right": float(right)}}
        for item, rights in (("a", (1, 1, 1, 0)), ("b", (0, 0, 0, 0)))
        for sample, right in enumerate(rights)
    ]
    (right,) = [one for one in results.summarise(Scored(), items, rows) if one["metric"] == "right"]
    assert (right["value"], right["n"]) == (0.375, 2)


def test_the_file_is_json_with_one_row_a_line(tmp_path: Any) -> None:
    import json

    whole = {"schema": 1, "rows": [row("a", "x", turn(1, 1.0)), row("b", "x")], "summary": []}
    text = results.dumps(whole)
    assert json.loads(text) == whole
    assert sum('"item"' in line for line in text.splitlines()) == 2
    results.write(tmp_path / "r.json", text)
    assert (tmp_path / "r.json").read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]
