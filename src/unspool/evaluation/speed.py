"""Speed, drafting and memory of an arm, from its rows: each number as a ratio of two sums over an item's turns.

Sums, not means of rates: a set of prompts takes the time that all of them take. What an arm does not tell (peers count
no forward passes) is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from unspool.evaluation import statistics
from unspool.evaluation.statistics import Estimate

Turn = Mapping[str, Any]
Row = Mapping[str, Any]
Sums = dict[str, tuple[float, float]]
"""By name what is above and what is below the line."""

PAIRED = (
    "tokens_per_second",
    "decode_tokens_per_second",
    "first_token_seconds",
    "forwards_per_token",
    "mean_accepted_length",
)
"""Numbers whose ratios to the baseline are given."""

DEEPEST = 16
"""The last depth for which an acceptance rate is given."""


def sums(turns: Iterable[Turn]) -> Sums:
    """What is above and below the line of every number that these turns give."""
    found: Sums = {}

    def add(name: str, above: float, below: float) -> None:
        before = found.get(name, (0.0, 0.0))
        found[name] = before[0] + above, before[1] + below

    for turn in turns:
        tokens, seconds, first = turn["tokens"], turn["seconds"], turn["first_token_seconds"]
        if not tokens or seconds <= 0:
            continue
        add("tokens_per_second", tokens, seconds)
        if first is not None:
            add("first_token_seconds", first, 1)
            if tokens > 1 and seconds > first:
                add("decode_tokens_per_second", tokens - 1, seconds - first)
        told = turn["statistics"]
        if "target_forwards" in told:
            _add_told(add, told, tokens)
    return found


def _add_told(add: Callable[[str, float, float], None], told: Mapping[str, Any], tokens: int) -> None:
    add("forwards_per_token", told["target_forwards"], tokens)
    steps = sum(told["accepted_by_depth"].values())
    add("mean_accepted_length", told["mean_accepted_length"] * steps, steps)
    drafted = {int(depth): count for depth, count in told["drafted_by_depth"].items()}
    accepted = {int(depth): count for depth, count in told["accepted_by_depth"].items()}
    if reach := max((depth for depth in drafted if depth), default=0):
        add("acceptance_rate", told["accepted_tokens"], sum(depth * count for depth, count in drafted.items()))
        for depth in range(1, min(reach, DEEPEST) + 1):
            stood, tried = (sum(n for d, n in counts.items() if d >= depth) for counts in (accepted, drafted))
            add(f"acceptance_at_{depth}", stood, tried)
    for part in ("prefill", "draft", "score", "verify"):
        add(f"{part}_ms_per_token", 1000 * told[f"{part}_seconds"], tokens)


def per_item(rows: Iterable[Row]) -> dict[str, Sums]:
    """The sums of every item, over its samples and turns; items without any are left out."""
    turns: dict[str, list[Turn]] = {}
    for row in rows:
        turns.setdefault(row["item"], []).extend(row["turns"])
    return {item: found for item, all_turns in turns.items() if (found := sums(all_turns))}


def estimates(rows: Sequence[Row], *, seed: int = 0) -> dict[str, Estimate]:
    """Every number of one arm's rows, with an interval over items; peaks of memory have none."""
    items = per_item(rows)
    found: dict[str, Estimate] = {}
    for name in dict.fromkeys(name for one in items.values() for name in one):
        pairs = [one[name] for one in items.values() if name in one]
        if sum(below for _, below in pairs) > 0:
            found[name] = statistics.ratio([above for above, _ in pairs], [below for _, below in pairs], seed=seed)
    rates = [one["tokens_per_second"] for one in items.values() if "tokens_per_second" in one]
    if rates:
        found["median_tokens_per_second"] = statistics.median(
            [tokens / seconds for tokens, seconds in rates], seed=seed
        )
    for name, peaks in (
        ("peak_rss_bytes", [row.get("peak_rss_bytes") for row in rows if row["turns"] and items]),
        ("peak_cache_bytes", [turn["statistics"].get("peak_cache_bytes") for row in rows for turn in row["turns"]]),
    ):
        if held := [peak for peak in peaks if peak]:
            found[name] = Estimate(float(max(held)), None, None, len(held))
    return found


def ratios(ours: Sequence[Row], theirs: Sequence[Row], *, seed: int = 0) -> dict[str, tuple[Estimate, float]]:
    """Of the items that two arms both answered: ours over theirs, by number, with the median of the items' ratios."""
    first, second = per_item(ours), per_item(theirs)
    found = {}
    for name in PAIRED:
        shared = [item for item in first if name in first[item] and name in second.get(item, {})]
        columns = [[one[item][name][side] for item in shared] for one in (first, second) for side in (0, 1)]
        if shared and all(sum(column) > 0 for column in columns):
            each = [a / b / (c / d) for a, b, c, d in zip(*columns, strict=True) if b and c and d]
            middle = statistics.median(each, seed=seed).value
            found[name] = statistics.paired_ratio(*columns, seed=seed), middle
    return found
