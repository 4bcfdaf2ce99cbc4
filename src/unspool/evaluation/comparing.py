"""What changed between two results files, beyond noise.

Items that both files hold are compared in pairs, arm by arm and measure by measure: ratios for speed (their geometric
mean over items), differences for scores. If the files share no items, all items of one stand against all of the other.
Intervals are bootstrapped over items; whether something changed is decided by a randomisation test, corrected for the
number of comparisons (Holm), so that among all of them even one false alarm is unlikely.

Two things the test cannot see, and how they are told: a machine that as a whole was faster or slower on the other day
(so speed is also compared *relative to an arm that both files hold*, whose runs were interleaved with the others and
met the same machine), and a different model, machine or setting (told first).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from unspool.core.errors import InvalidInput
from unspool.evaluation import speed, statistics, suites
from unspool.evaluation.measures import SPEED, Measure, measure
from unspool.evaluation.results import SCHEMA, item_scores
from unspool.evaluation.significance import holm, label_swap, sign_flip

LEVEL = 0.05
"""Chance of even one false alarm among all comparisons."""

_FEWEST = 5
"""Items below which nothing is said to have changed."""

_COMPARED = (SPEED, "first_token_seconds", "forwards_per_token", "mean_accepted_length")
"""Of the numbers of :mod:`~unspool.evaluation.speed` those that are compared; the others follow from them."""

_DRAWS = 2000

_PLACES = ("suite", "model", "unspool", "machine")


@dataclass(frozen=True)
class Difference:
    """A circumstance in which the files differ."""

    what: str
    a: Any
    b: Any


@dataclass(frozen=True)
class Change:
    """One measure of one arm.

    Args:
        arm, metric: what is compared.
        category: of the items; ``None`` for all.
        relative_to: the arm to which speed is taken in proportion, or ``None``.
        compared: ``ratio`` (b over a) or ``difference`` (b less a).
        a, b: means over the items compared.
        value, low, high: the ratio or difference, and its 95% interval.
        n: items on either side; of pairs their number twice.
        paired: whether the same items stand on both sides.
        chance: of such a change if there were none, corrected for the number of comparisons.
        verdict: ``better``, ``worse``, ``changed`` (where neither is better), ``no clear change`` or ``too few items``.
    """

    arm: str
    metric: str
    category: str | None
    relative_to: str | None
    compared: str
    a: float
    b: float
    value: float
    low: float | None
    high: float | None
    n: tuple[int, int]
    paired: bool
    chance: float
    verdict: str


@dataclass(frozen=True)
class Comparison:
    """Everything that can be said of two files.

    Args:
        differences: circumstances that differ; read them first.
        changes: every comparison, in the order of arms and measures.
        only_a, only_b: arms that one file alone holds.
        level: of the family of all comparisons.
    """

    differences: tuple[Difference, ...]
    changes: tuple[Change, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    level: float = LEVEL

    @property
    def regressions(self) -> tuple[Change, ...]:
        """What got worse beyond noise."""
        return tuple(change for change in self.changes if change.verdict == "worse")

    def as_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return {
            "differences": [asdict(difference) for difference in self.differences],
            "changes": [asdict(change) for change in self.changes],
            "only_a": list(self.only_a),
            "only_b": list(self.only_b),
            "level": self.level,
            "comparisons": len(self.changes),
            "regressions": len(self.regressions),
        }


def read(path: Path) -> dict[str, Any]:
    """A results file.

    Raises:
        InvalidInput: if it cannot be read, or is none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise InvalidInput(
            f"{path} is no results file ({error}); `unspool bench SUITE --out FILE` writes one"
        ) from error
    if not isinstance(found, dict) or not {"schema", "rows", "arms"} <= found.keys():
        raise InvalidInput(f"{path} is no results file; `unspool bench SUITE --out FILE` writes one")
    if found["schema"] != SCHEMA:
        raise InvalidInput(f"{path} has the schema {found['schema']!r}; this version reads schema {SCHEMA}")
    return found


def compare(a: Mapping[str, Any], b: Mapping[str, Any], *, categories: bool = False, seed: int = 0) -> Comparison:
    """Compare two results.

    Args:
        a: before.
        b: after.
        categories: also compare within every category. More comparisons make each of them less sharp.
        seed: of the bootstrap and the tests.

    Raises:
        InvalidInput: if they hold no arm in common.
    """
    arms_a, arms_b = list(a["arms"]), list(b["arms"])
    shared = [arm for arm in arms_a if arm in arms_b]
    if not shared:
        raise InvalidInput(
            f"the files have no arm in common: one has {', '.join(arms_a) or 'none'}, "
            f"the other {', '.join(arms_b) or 'none'}"
        )
    found = []
    groups: list[str | None] = [None]
    if categories:
        groups += sorted({row["category"] for row in a["rows"]} & {row["category"] for row in b["rows"]})
    baseline = _baseline(a, shared)
    suite = _suite(a)
    for category in groups:
        kept = [[row for row in side["rows"] if category is None or row["category"] == category] for side in (a, b)]
        of = [{arm: _values(rows, arm, suite) for arm in shared} for rows in kept]
        for arm in shared:
            for name in of[0][arm]:
                if name in of[1][arm]:
                    sides = (of[0][arm][name], of[1][arm][name])
                    found.append(_change(arm, measure(name), category, None, sides, seed))
            if baseline is not None and arm != baseline:
                before, after = (_proportion(side, arm, baseline) for side in of)
                if before and after:
                    found.append(_change(arm, measure(SPEED), category, baseline, (before, after), seed))
    changes = [change for change in found if change is not None]
    corrected = holm([change.chance for change in changes])
    return Comparison(
        differences=tuple(_differences(a, b, shared)),
        changes=tuple(_judged(change, chance) for change, chance in zip(changes, corrected, strict=True)),
        only_a=tuple(arm for arm in arms_a if arm not in arms_b),
        only_b=tuple(arm for arm in arms_b if arm not in arms_a),
    )


def _baseline(results: Mapping[str, Any], shared: Sequence[str]) -> str | None:
    """The arm to which the speed of the others is taken in proportion: plain decoding, or else the first."""
    plain = [arm for arm in shared if results["arms"][arm].get("plain") or arm == "plain"]
    return (plain or list(shared))[0] if len(shared) > 1 else None


def _suite(results: Mapping[str, Any]) -> suites.Suite:
    """The suite of the results, which knows how samples make an item; for the user's own file, that is the mean."""
    return suites.available().get(str(results.get("suite")), suites.Suite)()


def _values(rows: Sequence[Mapping[str, Any]], arm: str, suite: suites.Suite) -> dict[str, dict[str, float]]:
    """Of one arm: by measure and item its value, over turns and samples."""
    own = [row for row in rows if row["arm"] == arm]
    found: dict[str, dict[str, float]] = {}
    for item, sums in speed.per_item(own).items():
        for name in _COMPARED:
            if name in sums and sums[name][1]:
                found.setdefault(name, {})[item] = sums[name][0] / sums[name][1]
    return found | item_scores(suite, own)


def _proportion(side: Mapping[str, Mapping[str, Mapping[str, float]]], arm: str, baseline: str) -> dict[str, float]:
    """Speed of an arm over that of the baseline, item by item."""
    own = side[arm].get(SPEED, {})
    base = side[baseline].get(SPEED, {})
    return {item: own[item] / base[item] for item in own if item in base}


def _change(
    arm: str,
    of: Measure,
    category: str | None,
    relative_to: str | None,
    sides: tuple[Mapping[str, float], Mapping[str, float]],
    seed: int,
) -> Change | None:
    """One comparison with its uncorrected chance; ``None`` if there is nothing to compare."""
    a, b = sides
    items = [item for item in a if item in b]
    paired = bool(items)
    left = [a[item] for item in items] if paired else list(a.values())
    right = [b[item] for item in items] if paired else list(b.values())
    if not left or not right:
        return None
    # Zeros have no logarithm: what can be zero on one side is compared by differences there.
    ratio = of.compared == "ratio" and min(*left, *right, math.inf) > 0
    x, y = (np.log(side) if ratio else np.asarray(side, dtype=np.float64) for side in (left, right))
    if paired:
        told = statistics.mean(y - x, seed=seed)
        value, low, high = told.value, told.low, told.high
        chance = sign_flip((y - x).tolist(), seed=seed)
    else:
        value, low, high = _apart(x, y, seed)
        chance = label_swap(x.tolist(), y.tolist(), seed=seed)
    if ratio:
        value = math.exp(value)
        low, high = (None if end is None else math.exp(end) for end in (low, high))
    return Change(
        arm=arm,
        metric=of.name,
        category=category,
        relative_to=relative_to,
        compared="ratio" if ratio else "difference",
        a=sum(left) / len(left),
        b=sum(right) / len(right),
        value=value,
        low=low,
        high=high,
        n=(len(left), len(right)),
        paired=paired,
        chance=chance,
        verdict="",
    )


def _apart(x: np.ndarray, y: np.ndarray, seed: int) -> tuple[float, float | None, float | None]:
    """The difference of the means of two groups, with its 95% interval."""
    if min(len(x), len(y)) < 2:
        return float(y.mean() - x.mean()), None, None
    rng = np.random.default_rng(seed)
    means = [side[rng.integers(len(side), size=(_DRAWS, len(side)))].mean(1) for side in (x, y)]
    low, high = np.quantile(means[1] - means[0], (0.025, 0.975))
    return float(y.mean() - x.mean()), float(low), float(high)


def _judged(change: Change, chance: float) -> Change:
    """The change with its corrected chance and its verdict."""
    if min(change.n) < _FEWEST:
        verdict = "too few items"
    elif chance >= LEVEL:
        verdict = "no clear change"
    else:
        better = measure(change.metric).better
        rose = change.value > (1 if change.compared == "ratio" else 0)
        verdict = "changed" if better is None else "better" if rose == (better == "higher") else "worse"
    return replace(change, chance=chance, verdict=verdict)


def _differences(a: Mapping[str, Any], b: Mapping[str, Any], shared: Sequence[str]) -> list[Difference]:
    """Circumstances that differ: suite, model, machine, versions, limits, items, and what arms say of themselves."""
    sides = []
    for side in (a, b):
        told = {name: value for place in _PLACES for name, value in _flat(place, side.get(place))}
        told |= dict(_flat("limit", side.get("limit")))
        told["items"] = len({row["item"] for row in side["rows"]})
        for arm in shared:
            told |= dict(_flat(arm, side["arms"][arm]))
        sides.append(told)
    names = dict.fromkeys([*sides[0], *sides[1]])
    return [
        Difference(name, sides[0].get(name), sides[1].get(name))
        for name in names
        if sides[0].get(name) != sides[1].get(name)
    ]


def _flat(name: str, value: Any) -> list[tuple[str, Any]]:
    """Nested values as one list, with the way to each as its name."""
    if isinstance(value, Mapping):
        return [pair for key, inner in value.items() for pair in _flat(f"{name}: {key}", inner)]
    return [(name, value)]
