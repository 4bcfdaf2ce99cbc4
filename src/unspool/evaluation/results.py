"""The results file: rows, what they amount to, and everything that a reader needs to believe them.

Schema 1 is described in the documentation, page "Measuring".
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from unspool.core.errors import InvalidInput
from unspool.evaluation import speed, statistics
from unspool.evaluation.runs import answer_of
from unspool.evaluation.statistics import Estimate
from unspool.evaluation.suites import Features, Item, Judged, Suite

SCHEMA = 1

_RANGES = {
    "distinct": (0.0, 1.0), "mauve": (0.0, 1.0), "frontier": (0.0, 1.0), "bleu": (0.0, 100.0),
    "self-bleu": (0.0, 100.0), "perplexity": (1.0, math.inf),
}  # fmt: skip
"""What a number of a whole set can be, by the beginning of its name; others are not negative."""

Row = Mapping[str, Any]
Told = Callable[[str], None]


def summarise(
    suite: Suite, items: Sequence[Item], rows: Sequence[Row], *, features: Features | None = None, seed: int = 0
) -> list[dict[str, Any]]:
    """Every metric of every arm: over all items (``category`` is ``None``), and by category where there are several.

    Args:
        suite: says how samples become items and items a set.
        items: of the run.
        rows: judged.
        features: see :meth:`~unspool.evaluation.suites.Suite.over_items`; used over all items only.
        seed: of the intervals.
    """
    categories: list[str | None] = [None, *dict.fromkeys(item.category for item in items)]
    if len(categories) == 2:
        categories = [None]
    found = []
    for arm in arms_of(rows):
        for category in categories:
            own = [row for row in rows if row["arm"] == arm and category in (None, row["category"])]
            estimates = {
                **quality(suite, own, seed=seed),
                **of_set(suite, items, own, None if category is not None else features),
                **speed.estimates(own, seed=seed),
            }
            for metric, estimate in estimates.items():
                found.append({"arm": arm, "category": category, "metric": metric, **_told(estimate)})
    return found


def arms_of(rows: Sequence[Row]) -> list[str]:
    """The arms in the order in which they first occur."""
    return list(dict.fromkeys(row["arm"] for row in rows))


def item_scores(suite: Suite, rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Of one arm's rows: by metric and item the score of the item, its samples taken together."""
    scores: dict[str, list[Mapping[str, float]]] = {}
    for row in rows:
        if row["scores"]:
            scores.setdefault(row["item"], []).append(row["scores"])
    found: dict[str, dict[str, float]] = {}
    for item, samples in scores.items():
        merged = dict(suite.over_samples(samples))
        equal = [sample["equals_plain"] for sample in samples if "equals_plain" in sample]
        if equal:
            merged["equals_plain"] = sum(equal) / len(equal)
        for metric, value in merged.items():
            found.setdefault(metric, {})[item] = value
    return found


def quality(suite: Suite, rows: Sequence[Row], *, seed: int = 0) -> dict[str, Estimate]:
    """Means over items of one arm's scores, in the suite's order of metrics."""
    scores = item_scores(suite, rows)
    return {metric: statistics.mean(list(scores[metric].values()), seed=seed) for metric in _ordered(suite, scores)}


def of_set(suite: Suite, items: Sequence[Item], rows: Sequence[Row], features: Features | None) -> dict[str, Estimate]:
    """Metrics of the whole set of one arm's answers; of several samples of an item the first stands for it."""
    by_id = {item.id: item for item in items}
    judged = [Judged(by_id[row["item"]], answer_of(row)) for row in rows if not row["sample"] and "error" not in row]
    if not judged:
        return {}
    measures = suite.over_items(judged, features)
    found = {}
    for name in _ordered(suite, measures):
        lowest, highest = next((ends for start, ends in _RANGES.items() if name.startswith(start)), (0.0, math.inf))
        found[name] = statistics.jackknife(measures[name], len(judged), lowest=lowest, highest=highest)
    return found


def compare_arms(suite: Suite, rows: Sequence[Row], baseline: str, *, seed: int = 0) -> list[dict[str, Any]]:
    """Every other arm against the baseline, over the items that both answered.

    Speed as a ratio of the two arms' ratios of sums, scores as the mean of the items' differences.
    """
    base = [row for row in rows if row["arm"] == baseline]
    base_scores = item_scores(suite, base)
    found = []
    for arm in arms_of(rows):
        if arm == baseline:
            continue
        own = [row for row in rows if row["arm"] == arm]
        for metric, (estimate, middle) in speed.ratios(own, base, seed=seed).items():
            told = _told(estimate)
            found.append(
                {
                    "arm": arm, "baseline": baseline, "metric": metric, "ratio": told.pop("value"),
                    "median_ratio": _finite(middle), **told,
                }
            )  # fmt: skip
        scores = item_scores(suite, own)
        for metric in _ordered(suite, scores):
            shared = [item for item in scores[metric] if item in base_scores.get(metric, {})]
            if shared:
                told = _told(
                    statistics.paired_difference(
                        [scores[metric][item] for item in shared],
                        [base_scores[metric][item] for item in shared],
                        seed=seed,
                    )
                )
                found.append(
                    {"arm": arm, "baseline": baseline, "metric": metric, "difference": told.pop("value"), **told}
                )
    return found


def _ordered(suite: Suite, metrics: Mapping[str, Any]) -> list[str]:
    """The suite's own first, in its order."""
    return [
        *(name for name in suite.metrics if name in metrics),
        *(name for name in metrics if name not in suite.metrics),
    ]


def _told(estimate: Estimate) -> dict[str, Any]:
    return {
        "value": _finite(estimate.value),
        "low": _finite(estimate.low),
        "high": _finite(estimate.high),
        "n": estimate.n,
    }


def _finite(value: float | None) -> float | None:
    """JSON has neither infinities nor NaN."""
    return None if value is None or not math.isfinite(value) else value


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises:
        InvalidInput: if it cannot be written there.
    """
    from unspool.models.storage import write_whole

    try:
        write_whole(path, text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise InvalidInput(f"{path} cannot be written: {error.strerror or error}") from error


def dumps(results: Mapping[str, Any]) -> str:
    """The results file's text: readable in the large, one row a line."""
    head = {key: value for key, value in results.items() if key != "rows"}
    text = json.dumps(head, indent=1, ensure_ascii=False, allow_nan=False)
    rows = ",\n".join("  " + json.dumps(row, ensure_ascii=False, allow_nan=False) for row in results["rows"])
    return text[: text.rindex("\n")] + ',\n "rows": [\n' + rows + "\n ]\n}\n"
