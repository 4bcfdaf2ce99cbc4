"""The plots of a report: from summaries and rows to pictures, each with a title and what it shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from unspool.evaluation import charts, statistics
from unspool.evaluation.charts import Bar, Point, Series, Stack
from unspool.evaluation.measures import SPEED, Measure, measure

_COLOURS = 8
"""Colours that the style sheet has for methods, and as many for peers."""

_PARTS = (("prompt", "t-0"), ("draft", "t-1"), ("score", "t-2"), ("verify", "t-3"), ("rest", "t-4"))
_BINS = 5
_FEWEST = 3
"""Items in a bin of the plots of scaling."""


@dataclass(frozen=True)
class Figure:
    """A picture on the page.

    Args:
        title: above it.
        caption: what it shows, and what it does not.
        svg: the picture.
    """

    title: str
    caption: str
    svg: str


class Results:
    """A results file, looked up by arm, category and metric.

    Args:
        data: as :mod:`unspool.evaluation.results` describes it.
    """

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.data = data
        self.rows: Sequence[Mapping[str, Any]] = data["rows"]
        self._summary = {(e["arm"], e["category"], e["metric"]): e for e in data.get("summary", [])}
        self._paired = {(e["arm"], e["metric"]): e for e in data.get("paired", [])}

    def entry(self, arm: str, metric: str, category: str | None = None) -> Mapping[str, Any] | None:
        """Of the summary, if it has a value."""
        found = self._summary.get((arm, category, metric))
        return found if found is not None and found["value"] is not None else None

    def paired(self, arm: str, metric: str) -> Mapping[str, Any] | None:
        """The comparison of an arm with the baseline."""
        return self._paired.get((arm, metric))

    @cached_property
    def kinds(self) -> dict[str, str]:
        """The arms in the order of the file, each a ``method``, a ``peer`` or a ``reference``."""
        of_rows = {row["arm"]: row.get("kind", "method") for row in self.rows}
        return {arm: told.get("kind") or of_rows.get(arm, "method") for arm, told in self.data["arms"].items()}

    @cached_property
    def baseline(self) -> str | None:
        """The arm with which the others are compared."""
        named = next((entry["baseline"] for entry in self.data.get("paired", [])), None)
        plain = next((arm for arm, told in self.data["arms"].items() if told.get("plain")), None)
        return named or plain

    @cached_property
    def colours(self) -> dict[str, str]:
        """A class for every arm: cool colours for methods, warm ones for peers, grey for the baseline."""
        counts = {"method": 0, "peer": 0, "reference": 0}
        found = {}
        for arm, kind in self.kinds.items():
            if arm == self.baseline:
                found[arm] = "c-base"
            else:
                found[arm] = f"c-{'p' if kind == 'peer' else 'm'}{counts[kind] % _COLOURS}"
                counts[kind] += 1
        return found

    @cached_property
    def categories(self) -> list[str]:
        """Of the summary, in its order."""
        return list(dict.fromkeys(category for _, category, _ in self._summary if category is not None))

    @cached_property
    def scores(self) -> list[Measure]:
        """Measures of the texts, the headline first; whether a text equals plain decoding's comes last."""
        names = dict.fromkeys(metric for _, category, metric in self._summary if category is None)
        found = [measure(name) for name in names if measure(name).of_text]
        return sorted(found, key=lambda one: one.name == "equals_plain")

    def ranked(self, metric: str) -> list[str]:
        """The arms that have a metric, the best first."""
        lower = measure(metric).better == "lower"
        having = [(entry["value"], arm) for arm in self.kinds if (entry := self.entry(arm, metric)) is not None]
        return [arm for _, arm in sorted(having, key=lambda pair: pair[0], reverse=not lower)]


def figures(results: Results) -> list[Figure]:
    """All plots that the results have numbers for."""
    made: list[Callable[[Results], Figure | None]] = [
        _speed,
        _against_baseline,
        _by_category,
        _time_split,
        _acceptance,
        _accepted_length,
        _quality,
        _first_token,
        _by_context,
        _by_batch,
        _cache,
        _memory,
    ]
    return [figure for make in made if (figure := make(results)) is not None]


# -- bars ---------------------------------------------------------------------------------------------------------


def _bars(results: Results, metric: str, scale: float = 1.0, note: Callable[[str], str] = lambda arm: "") -> list[Bar]:
    found = []
    for arm in results.ranked(metric):
        entry = results.entry(arm, metric)
        assert entry is not None
        low, high = (None if entry[end] is None else entry[end] * scale for end in ("low", "high"))
        found.append(Bar(arm, entry["value"] * scale, results.colours[arm], low, high, note(arm)))
    return found


def _speed(results: Results) -> Figure | None:
    def note(arm: str) -> str:
        paired = results.paired(arm, SPEED)
        return "" if paired is None or paired.get("ratio") is None else f"{paired['ratio']:.2f}× {paired['baseline']}"

    bars = _bars(results, SPEED, note=note)
    if not bars:
        return None
    roofline = results.data.get("roofline") or {"forms": []}
    limits = [(f"memory limit, {form['weights']}:", form["tokens_per_second"]) for form in roofline["forms"]]
    caption = "All tokens over all seconds, reading the prompt included; whiskers: 95% interval over prompts."
    if limits:
        caption += (
            " Memory limits what can be decoded token by token: bytes read for a token over the measured bandwidth. "
            "Several tokens from one pass may go beyond."
        )
    return Figure("Speed", caption, charts.bars("Speed by arm", bars, "tokens/s", limits=limits))


def _against_baseline(results: Results) -> Figure | None:
    bars = []
    for arm in results.ranked(SPEED):
        paired = results.paired(arm, SPEED)
        if paired is not None and paired.get("ratio"):
            bars.append(Bar(arm, paired["ratio"], results.colours[arm], paired["low"], paired["high"]))
    if not bars:
        return None
    return Figure(
        f"Against {results.baseline}",
        "Ratio of speeds over the prompts that both answered, in the same run, with its 95% interval. An interval that "
        "crosses the line could be noise.",
        charts.forest(f"Speed against {results.baseline}", bars),
    )


def _by_category(results: Results) -> Figure | None:
    groups = []
    for category in results.categories:
        bars = []
        for arm in results.kinds:
            entry = results.entry(arm, SPEED, category)
            if entry is not None:
                bars.append(Bar(arm, entry["value"], results.colours[arm], entry["low"], entry["high"]))
        if bars:
            groups.append((category, bars))
    if not groups:
        return None
    return Figure(
        "Speed by category",
        "Every dot is an arm; whiskers are 95% intervals over the prompts of the category.",
        charts.dots("Speed by category", groups, "tokens/s"),
    )


def _time_split(results: Results) -> Figure | None:
    stacks = []
    for arm in results.ranked(SPEED):
        entries = [results.entry(arm, f"{part}_ms_per_token") for part in ("prefill", "draft", "score", "verify")]
        total = results.entry(arm, SPEED)
        if total is None or not total["value"] or not any(entry is not None for entry in entries):
            continue
        spent = [0.0 if entry is None else entry["value"] for entry in entries]
        rest = max(0.0, 1000 / total["value"] - sum(spent))
        stacks.append(Stack(arm, tuple(zip((name for name, _ in _PARTS), (*spent, rest), strict=True))))
    if not stacks:
        return None
    return Figure(
        "Where the time goes",
        "For each token: reading the prompt, drafting, passes of the model, choosing what stands, and the loop around. "
        "Peers do not tell.",
        charts.stacks("Time for a token", stacks, "ms for a token", _PARTS),
    )


def _accepted_length(results: Results) -> Figure | None:
    bars = [bar for bar in _bars(results, "mean_accepted_length") if results.entry(bar.label, "acceptance_rate")]
    if not bars:
        return None
    return Figure(
        "Tokens a step",
        "Mean number of tokens that one verified step commits: accepted draft tokens and the one after them.",
        charts.bars("Tokens a step", bars, "tokens a step"),
    )


def _first_token(results: Results) -> Figure | None:
    bars = _bars(results, "first_token_seconds", 1000)
    if not bars:
        return None
    return Figure(
        "Time to first token",
        "From the prompt's token ids to the first new token, on average; short is good.",
        charts.bars("Time to first token", bars, "ms"),
    )


def _cache(results: Results) -> Figure | None:
    bars = _bars(results, "peak_cache_bytes", 2**-20)
    if not bars:
        return None
    return Figure(
        "Largest cache",
        "The most that keys and values took in any turn. Peers do not tell.",
        charts.bars("Largest cache", bars, "MB"),
    )


def _memory(results: Results) -> Figure | None:
    bars = _bars(results, "peak_rss_bytes", 2**-20)
    if not bars:
        return None
    return Figure(
        "Peak memory",
        "The most memory that the process of an arm held while it answered. Every peer has a process of its own; our "
        "methods share one, so only differences between them belong to them.",
        charts.bars("Peak memory of the process", bars, "MB"),
    )


# -- lines --------------------------------------------------------------------------------------------------------


def _acceptance(results: Results) -> Figure | None:
    series = []
    for arm in results.kinds:
        points = []
        depth = 1
        while (entry := results.entry(arm, f"acceptance_at_{depth}")) is not None:
            points.append(Point(depth, entry["value"], low=entry["low"], high=entry["high"]))
            depth += 1
        if points:
            series.append(Series(arm, results.colours[arm], tuple(points)))
    if not series:
        return None
    return Figure(
        "Acceptance by depth",
        "Of the drafts that reach a depth, the share whose first tokens stand up to there.",
        charts.lines("Acceptance by depth", series, "depth of the draft", "share that stands", percent_y=True),
    )


def _quality(results: Results) -> Figure | None:
    if not results.scores:
        return None
    score = results.scores[0]
    series = []
    for arm in results.kinds:
        x, y = results.entry(arm, score.name), results.entry(arm, SPEED)
        if x is not None and y is not None:
            point = Point(x["value"], y["value"], x["low"], x["high"], y["low"], y["high"])
            series.append(Series(arm, results.colours[arm], (point,)))
    if len(series) < 2:
        return None
    way = "left" if score.better == "lower" else "right"
    return Figure(
        "Speed against quality",
        f"Up is faster, {way} is better ({score.label}). Lossless methods stand above one another.",
        charts.lines(
            "Speed against quality", series, score.label, "tokens/s", joined=False, height=260 + 8 * len(series)
        ),
    )


def _by_context(results: Results) -> Figure | None:
    every = sorted(turn["prompt_tokens"] for row in results.rows for turn in row["turns"] if turn["prompt_tokens"])
    if len(set(every)) < 2 * _FEWEST or every[-1] < 2 * every[0]:
        return None
    edges = sorted({every[len(every) * cut // _BINS] for cut in range(1, _BINS)})

    def bin_of(turn: Mapping[str, Any]) -> int:
        return sum(turn["prompt_tokens"] >= edge for edge in edges)

    series = _scaling(results, bin_of, lambda turn: turn["prompt_tokens"])
    if not series:
        return None
    return Figure(
        "Scaling with context",
        "Speed over the length of the prompt (with the conversation before it): turns in groups of like length, "
        "with 95% intervals.",
        charts.lines("Scaling with context", series, "prompt tokens", "tokens/s"),
    )


def _by_batch(results: Results) -> Figure | None:
    rows = results.data.get("batches") or []
    sizes = sorted({row["batch"] for row in rows})
    if len(sizes) < 2:
        return None
    series = []
    for arm in results.kinds:
        points = []
        for size in sizes:
            own = [row for row in rows if row["arm"] == arm and row["batch"] == size]
            if own and (seconds := sum(row["seconds"] for row in own)) > 0:
                points.append(Point(size, sum(row["tokens"] for row in own) / seconds))
        if len(points) > 1:
            series.append(Series(arm, results.colours[arm], tuple(points)))
    if not series:
        return None
    return Figure(
        "Scaling with batch",
        "Tokens of all requests together over the number of requests that were decoded together; the same prompts at "
        "every size.",
        charts.lines("Scaling with batch", series, "requests together", "tokens/s"),
    )


def _scaling(
    results: Results,
    group: Callable[[Mapping[str, Any]], int],
    place: Callable[[Mapping[str, Any]], float],
) -> list[Series]:
    """Speed in every group of turns, at the mean place of its members."""
    series = []
    for arm in results.kinds:
        found: dict[int, list[tuple[float, float, float]]] = {}
        for row in results.rows:
            if row["arm"] == arm:
                for turn in row["turns"]:
                    if turn["tokens"] and turn["seconds"] > 0:
                        found.setdefault(group(turn), []).append((place(turn), turn["tokens"], turn["seconds"]))
        points = []
        for members in (found[key] for key in sorted(found)):
            if len(members) >= _FEWEST:
                at, tokens, seconds = zip(*members, strict=True)
                speed = statistics.ratio(tokens, seconds)
                points.append(Point(sum(at) / len(at), speed.value, low=speed.low, high=speed.high))
        if len(points) > 1:
            series.append(Series(arm, results.colours[arm], tuple(points)))
    return series
