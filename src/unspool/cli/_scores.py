"""Tables of results for people: quality by arm, speed by arm and category."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from unspool.cli import _terminal

_INTERVAL = re.compile(r" \[[^\]]*\]")

Results = Mapping[str, Any]

_SHARES = ("pass@", "exact_match", "valid", "json", "stated", "contains_answer", "f1", "rouge", "rep-", "equals_plain")
_SPEED = (
    ("tokens_per_second", "tokens/s"),
    ("first_token_seconds", "first token"),
    ("peak_cache_bytes", "cache"),
    ("peak_rss_bytes", "memory"),
)
_DRAFTING = (
    ("forwards_per_token", "forwards/token"),
    ("mean_accepted_length", "tokens/step"),
    ("acceptance_rate", "accepted"),
    ("draft_ms_per_token", "draft ms/token"),
    ("score_ms_per_token", "score"),
    ("verify_ms_per_token", "verify"),
)


def lookup(results: Results) -> dict[tuple[str, str | None, str], Mapping[str, Any]]:
    """The summary by arm, category and metric."""
    return {(one["arm"], one["category"], one["metric"]): one for one in results["summary"]}


def show_quality(results: Results, metrics: Sequence[str]) -> None:
    """One row a metric, one column an arm."""
    found = lookup(results)
    arms = list(results["arms"])
    lines = []
    for metric in [*metrics, "equals_plain"]:
        cells = [found.get((arm, None, metric)) for arm in arms]
        if any(cells):
            lines.append([metric, *("" if cell is None else _cell(metric, cell) for cell in cells)])
    if passed := passed_counts(results):
        lines.insert(0, ["passed", *(passed.get(arm, "") for arm in arms)])
    lines.append(["tokens/s", *(_value(found, arm, "tokens_per_second") for arm in arms)])
    _table(["", *arms], [line for line in lines if any(line[1:])])
    headline = next((metric for metric in metrics if any((arm, None, metric) in found for arm in arms)), "")
    _by_category(results, headline, arms)
    tell_rest(results)


def show_speed(results: Results) -> None:
    """One row an arm: speed and memory, then what drafting did, then the speed in every category."""
    found = lookup(results)
    arms = list(results["arms"])
    speed = _columns(found, arms, _SPEED)
    if (baseline := next((one["baseline"] for one in results["paired"]), None)) is not None:
        ratios = {one["arm"]: one for one in results["paired"] if one["metric"] == "tokens_per_second"}
        column = [f"× {baseline}"]
        for arm in arms:
            ratio = ratios.get(arm)
            column.append("1" if arm == baseline else "" if ratio is None else _with_interval(ratio, "ratio", 2))
        speed.insert(1, column)
    for columns in (speed, _columns(found, arms, _DRAFTING)):
        if columns:
            titles, *lines = zip(["", *arms], *columns, strict=True)
            _table(titles, lines)
    _by_category(results, "tokens_per_second", arms)
    if results["roofline"]:
        _tell_limit(results["roofline"])
    _tell_equality(found, arms)
    tell_rest(results)


def _columns(
    found: Mapping[Any, Mapping[str, Any]], arms: Sequence[str], chosen: Sequence[tuple[str, str]]
) -> list[list[str]]:
    """Title and cells of every metric that an arm has."""
    return [
        [title, *(_value(found, arm, metric) for arm in arms)]
        for metric, title in chosen
        if any((arm, None, metric) in found for arm in arms)
    ]


def _tell_equality(found: Mapping[Any, Mapping[str, Any]], arms: Sequence[str]) -> None:
    shares = {arm: one["value"] for arm in arms if (one := found.get((arm, None, "equals_plain")))}
    if equal := [arm for arm, share in shares.items() if share == 1]:
        _say(f"token for token as plain: {', '.join(equal)}")
    for arm, share in shares.items():
        if share < 1:
            _say(f"{arm} differs from plain on {100 * (1 - share):.1f}% of the prompts", "yellow")


def passed_counts(results: Results) -> dict[str, str]:
    """For suites of programs ``passed/answers`` by arm."""
    counts: dict[str, list[float]] = {}
    for row in results["rows"]:
        if "passed" in row["scores"]:
            counts.setdefault(row["arm"], []).append(row["scores"]["passed"])
    return {arm: f"{int(sum(values))}/{len(values)}" for arm, values in counts.items()}


def tell_rest(results: Results) -> None:
    """Answers that failed, peers that are absent, items that were left out."""
    failed: dict[str, list[str]] = {}
    for row in results["rows"]:
        if "error" in row:
            failed.setdefault(row["arm"], []).append(f"{row['item']}: {row['error']['message']}")
    for arm, messages in failed.items():
        _say(f"{arm}: {len(messages)} answers failed ({messages[0][:200]})", "yellow")
    for peer in results["absent"]:
        _say(f"{peer['peer']} is absent: {peer['reason']}. {peer['install']}")
    for note in results["notes"]:
        _say(note)


def _by_category(results: Results, metric: str, arms: Sequence[str]) -> None:
    categories = list(dict.fromkeys(one["category"] for one in results["summary"] if one["category"] is not None))
    found = lookup(results)
    lines = [
        [category, *(_value(found, arm, metric, category) for arm in arms)]
        for category in categories
        if any((arm, category, metric) in found for arm in arms)
    ]
    if lines:
        title = dict(_SPEED).get(metric, metric)
        _table([title, *arms], lines)


def _tell_limit(roofline: Mapping[str, Any]) -> None:
    for form in roofline["forms"]:
        _say(
            f"limit of plain decoding, weights {form['weights']}: {form['tokens_per_second']:.0f} tokens/s "
            f"({form['bytes'] / 1e6:.0f} MB a token at {roofline['bandwidth'] / 1e9:.1f} GB/s)"
        )


def _value(found: Mapping[Any, Any], arm: str, metric: str, category: str | None = None) -> str:
    one = found.get((arm, category, metric))
    return "" if one is None else _cell(metric, one)


def _cell(metric: str, one: Mapping[str, Any]) -> str:
    value = one["value"]
    if value is None:
        return ""
    if metric.endswith("_bytes"):
        return f"{value / 2**20:.0f} MB"
    if metric.endswith("_seconds"):
        return f"{1000 * value:.0f} ms"
    if metric.endswith("_ms_per_token"):
        return f"{value:.1f}"
    if metric == "acceptance_rate":
        return f"{100 * value:.0f}%"
    if metric in ("forwards_per_token", "mean_accepted_length"):
        return f"{value:.2f}"
    if metric.startswith(_SHARES):
        return _with_interval(one, "value", 1, 100, "%")
    return _with_interval(one, "value", 2 if abs(value) < 10 else 1)


def _with_interval(one: Mapping[str, Any], name: str, digits: int, times: float = 1.0, unit: str = "") -> str:
    text = f"{times * one[name]:.{digits}f}{unit}"
    if one["low"] is not None and one["high"] is not None:
        text += f" [{times * one['low']:.{digits}f}, {times * one['high']:.{digits}f}]"
    return text


def _table(titles: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    console = _terminal.output()
    lines = [list(line) for line in lines]
    width = sum(max(len(row[place]) for row in [list(titles), *lines]) + 3 for place in range(len(titles)))
    if width > console.width:  # where there is no room, intervals are left to the results file
        lines = [[_INTERVAL.sub("", cell) for cell in line] for line in lines]
    grid = Table(box=None, padding=(0, 3, 0, 0), header_style="dim")
    for place, title in enumerate(titles):
        grid.add_column(Text(title), justify="left" if not place else "right", no_wrap=True)
    for line in lines:
        grid.add_row(Text(line[0], "cyan"), *(Text(cell) for cell in line[1:]))
    console.print(grid)
    console.print()


def _say(text: str, style: str = "dim") -> None:
    _terminal.output().print(text, style=style, markup=False, soft_wrap=True)
