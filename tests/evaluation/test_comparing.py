"""Comparing two results files: what has changed is found, noise is not."""

import json
import math

import pytest
from tests.evaluation.made_results import SPEEDS, made

from unspool.core.errors import InvalidInput
from unspool.evaluation.comparing import Change, Comparison, compare
from unspool.evaluation.significance import holm, label_swap, sign_flip


def find(found: Comparison, arm: str, metric: str = "tokens_per_second", relative: str | None = None) -> Change:
    (change,) = [c for c in found.changes if (c.arm, c.metric, c.relative_to) == (arm, metric, relative)]
    return change


def test_a_planted_slow_down_is_found_and_nothing_else() -> None:
    before = made(seed=1, count=40)
    after = made({**SPEEDS, "auto": 0.9 * SPEEDS["auto"]}, seed=2, count=40)
    found = compare(before, after)
    for relative in (None, "plain"):
        change = find(found, "auto", relative=relative)
        assert change.verdict == "worse"
        assert change.paired
        assert change.n == (40, 40)
        assert change.low is not None
        assert change.high is not None
        assert change.low < 0.9 < change.high
        assert change.value == pytest.approx(0.9, abs=0.03)
    assert {change.arm for change in found.regressions} == {"auto"}
    assert not found.differences


@pytest.mark.parametrize("seed", range(4))
def test_noise_is_no_change(seed: int) -> None:
    found = compare(made(seed=10 + seed, count=30), made(seed=20 + seed, count=30))
    assert found.changes
    assert {change.verdict for change in found.changes} == {"no clear change"}


def test_a_machine_that_is_slower_on_the_whole_is_seen_and_the_proportion_is_not() -> None:
    found = compare(made(seed=1), made({arm: 0.8 * speed for arm, speed in SPEEDS.items()}, seed=2))
    assert find(found, "auto").verdict == "worse"
    assert find(found, "auto", relative="plain").verdict == "no clear change"


def test_the_same_file_twice() -> None:
    same = made()
    found = compare(same, same)
    assert {change.verdict for change in found.changes} == {"no clear change"}
    assert {change.value for change in found.changes if change.compared == "ratio"} == {1.0}
    assert {change.chance for change in found.changes} == {1.0}


def test_scores_are_compared_by_their_difference() -> None:
    before, after = made(seed=1), made(seed=2)
    for row in after["rows"]:
        row["scores"]["rouge-1"] += 0.1
    change = find(compare(before, after), "plain", "rouge-1")
    assert (change.compared, change.verdict) == ("difference", "better")
    assert change.value == pytest.approx(0.1, abs=0.01)


def test_other_items_are_compared_as_groups() -> None:
    before, after = made(seed=1, count=40), made({**SPEEDS, "auto": 4 * SPEEDS["auto"]}, seed=2, count=40)
    for row in after["rows"]:
        row["item"] = "other " + row["item"]
    change = find(compare(before, after), "auto")
    assert not change.paired
    assert change.verdict == "better"
    assert change.low is not None
    assert change.high is not None
    assert change.low < 4 < change.high


def test_few_items_say_nothing() -> None:
    found = compare(made(count=4), made({arm: speed / 2 for arm, speed in SPEEDS.items()}, count=4))
    assert {change.verdict for change in found.changes} == {"too few items"}


def test_within_categories() -> None:
    before, after = made(seed=1, count=60), made(seed=2, count=60)
    for row in after["rows"]:
        if row["category"] == "coding" and row["arm"] == "auto":
            row["turns"][0]["seconds"] *= 2
    worse = {(change.arm, change.category) for change in compare(before, after, categories=True).regressions}
    assert ("auto", "coding") in worse
    assert ("auto", "writing") not in worse


def test_other_circumstances_are_told() -> None:
    before, after = made(), made({"plain": 18.0, "new": 20.0})
    after["machine"]["cpu"] = "Another"
    after["arms"]["plain"] = {**after["arms"]["plain"], "settings": {"x": 1}}
    found = compare(before, after)
    told = {one.what: (one.a, one.b) for one in found.differences}
    assert told["machine: cpu"] == ("Made Processor", "Another")
    assert told["plain: settings: x"] == (None, 1)
    assert "auto" in found.only_a
    assert found.only_b == ("new",)


def test_files_without_a_common_arm() -> None:
    with pytest.raises(InvalidInput, match="no arm in common"):
        compare(made({"plain": 18.0}), made({"auto": 18.0}))


def test_errors_count_for_nothing() -> None:
    before, after = made(seed=1), made(seed=2)
    broken = after["rows"][0]
    broken.update(turns=[], scores={}, error={"type": "E", "message": "m"})
    change = find(compare(before, after), broken["arm"])
    assert change.n == (23, 23)


# -- the tests behind it ------------------------------------------------------------------------------------------


def test_sign_flips_of_few_pairs_are_all_tried() -> None:
    assert sign_flip([1.0, 1.0, 1.0, 1.0, 1.0]) == pytest.approx(2 / 32)
    assert sign_flip([1.0, -1.0]) == 1.0
    assert sign_flip([]) == sign_flip([0.0, 0.0]) == 1.0


def test_sign_flips_of_many_pairs_are_drawn() -> None:
    assert sign_flip([1.0] * 40) == pytest.approx(1 / 20_001)
    balanced = [(-1) ** n * 1.0 for n in range(40)]
    assert sign_flip(balanced) == 1.0
    assert sign_flip([0.5] * 20 + [-0.4] * 20, seed=1) == sign_flip([0.5] * 20 + [-0.4] * 20, seed=1)


def test_labels_of_few_are_all_tried() -> None:
    assert label_swap([1.0, 2.0], [11.0, 12.0]) == pytest.approx(2 / math.comb(4, 2))
    assert label_swap([1.0, 1.0], [1.0, 1.0]) == label_swap([], [1.0]) == 1.0
    assert label_swap(list(range(30)), list(range(100, 130))) == pytest.approx(1 / 20_001)


def test_chances_of_nothing_are_spread_evenly() -> None:
    import random

    rng = random.Random(0)
    chances = [sign_flip([rng.gauss(0, 1) for _ in range(10)]) for _ in range(300)]
    assert sum(chance < 0.05 for chance in chances) / 300 == pytest.approx(0.05, abs=0.035)
    assert sum(chance < 0.5 for chance in chances) / 300 == pytest.approx(0.5, abs=0.09)


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.5]) == [1.0, 1.0]
    assert holm([]) == []


def test_comparison_is_plain_data() -> None:
    told = json.loads(json.dumps(compare(made(), made(seed=3)).as_dict()))
    assert told["comparisons"] == len(told["changes"])
    assert told["regressions"] == 0
