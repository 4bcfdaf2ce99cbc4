"""Small plots as SVG text, for pages that fetch nothing.

Every plot is as wide as :data:`unspool.evaluation.svg.WIDTH` units and scales with its place. Colours are classes, so
that a style sheet decides them for light and dark. Each function returns a whole ``<svg>`` element whose text
alternative holds the numbers; all text is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from unspool.evaluation import svg

_GUTTER = 186
"""Units at the right edge for the labels of lines and points."""


@dataclass(frozen=True)
class Bar:
    """One value with its interval.

    Args:
        label: what it is of.
        value: its length.
        colour: a class of the style sheet.
        low, high: interval, or ``None``.
        note: text behind the value.
    """

    label: str
    value: float
    colour: str
    low: float | None = None
    high: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Stack:
    """One bar of several parts: what it is of, and (name of the part, length) in order."""

    label: str
    parts: tuple[tuple[str, float], ...]
    note: str = ""


@dataclass(frozen=True)
class Point:
    """A place, with intervals along both axes."""

    x: float
    y: float
    x_low: float | None = None
    x_high: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Series:
    """Points that belong together, from left to right."""

    label: str
    colour: str
    points: tuple[Point, ...]


def bars(title: str, items: Sequence[Bar], unit: str, *, limits: Sequence[tuple[str, float]] = ()) -> str:
    """Horizontal bars from zero, each below its label, with intervals as whiskers.

    Args:
        title: for the text alternative.
        items: from top to bottom.
        unit: of the values.
        limits: values that cannot be passed, with their names: lines across, or arrows where they lie far beyond.
    """
    longest = max((item.high if item.high is not None else item.value for item in items), default=0.0)
    inside = [limit for limit in limits if limit[1] <= 1.6 * longest]
    top = max([longest, *(value for _, value in inside)]) or 1.0
    ticks = svg.round_ticks(0.0, top)
    scale = svg.linear(0.0, ticks[-1] if ticks[-1] > top else top, 4, svg.WIDTH - 12)
    row, head = 33, 16 * len(limits)
    bottom = head + row * len(items) + 4
    parts = [svg.axis_x(ticks, scale, head, bottom, unit)]
    for place, (name, value) in enumerate(limits):
        y = 11 + 16 * place
        told = f"{name} {svg.number(value)}"
        if (name, value) in inside:
            x = scale(value)
            fits = x + 5.8 * len(told) < svg.WIDTH
            parts.append(svg.segment("limit", x, y - 9, x, bottom))
            parts.append(svg.text(x + (4 if fits else -4), y, told, "limit", "start" if fits else "end"))
        else:
            parts.append(svg.text(svg.WIDTH - 6, y, f"{told} →", "limit", "end"))
    for place, item in enumerate(items):
        y = head + row * place
        parts.append("<g>" + svg.tip(f"{item.label}: {svg.told(item.value, item.low, item.high)} {unit}"))
        parts.append(svg.text(4, y + 13, item.label, "name"))
        parts.append(svg.text(svg.WIDTH - 6, y + 13, _noted(item.value, item.note), "value", "end"))
        parts.append(svg.rect(f"{item.colour} fill", scale(0), y + 18, scale(item.value) - scale(0), 9, rounded=1.5))
        parts.append(svg.whisker(scale, item.low, item.high, y + 22.5))
        parts.append("</g>")
    words = [
        f"{item.label} {svg.told(item.value, item.low, item.high)}{', ' if item.note else ''}{item.note}"
        for item in items
    ]
    words += [f"{name} {svg.number(value)}" for name, value in limits]
    return svg.picture(f"{title}, {unit}", words, bottom + 30, parts)


def stacks(title: str, items: Sequence[Stack], unit: str, colours: Sequence[tuple[str, str]]) -> str:
    """Horizontal bars made of parts.

    Args:
        title: for the text alternative.
        items: from top to bottom.
        unit: of the lengths.
        colours: (part, class) in the order of the legend.
    """
    of = dict(colours)
    top = max((sum(length for _, length in item.parts) for item in items), default=0.0) or 1.0
    ticks = svg.round_ticks(0.0, top)
    scale = svg.linear(0.0, max(top, ticks[-1]), 4, svg.WIDTH - 12)
    parts, head = _legend([name for name, _ in colours], lambda at, x, y: svg.mark(1, x, y, colours[at][1]))
    row = 33
    bottom = head + row * len(items) + 4
    parts.append(svg.axis_x(ticks, scale, head, bottom, unit))
    for place, item in enumerate(items):
        y = head + row * place
        parts.append(svg.text(4, y + 13, item.label, "name"))
        whole = sum(length for _, length in item.parts)
        parts.append(svg.text(svg.WIDTH - 6, y + 13, _noted(whole, item.note), "value", "end"))
        at = 0.0
        for name, length in item.parts:
            if length > 0:
                shown = f"{item.label}, {name}: {svg.number(length)} {unit}"
                width = scale(at + length) - scale(at)
                parts.append(svg.rect(f"{of[name]} fill", scale(at), y + 18, width, 10, shown))
            at += length
    told = [
        f"{item.label}: " + ", ".join(f"{name} {svg.number(length)}" for name, length in item.parts) for item in items
    ]
    return svg.picture(f"{title}, {unit}", told, bottom + 30, parts)


def dots(title: str, groups: Sequence[tuple[str, Sequence[Bar]]], unit: str) -> str:
    """For every group a line with a dot and an interval for each of its items, on one axis, below a legend."""
    every = [item for _, items in groups for item in items]
    top = max((item.high if item.high is not None else item.value for item in every), default=0.0) or 1.0
    ticks = svg.round_ticks(0.0, top)
    left = 6.4 * max((min(len(name), 20) for name, _ in groups), default=0) + 12
    scale = svg.linear(0.0, max(top, ticks[-1]), left, svg.WIDTH - 12)
    seen: dict[str, tuple[str, int]] = {}
    for item in every:
        seen.setdefault(item.label, (item.colour, len(seen)))
    colours = [colour for colour, _ in seen.values()]
    parts, head = _legend(list(seen), lambda at, x, y: svg.mark(at, x, y, colours[at]))
    step, gap = 8.0, 9.0
    bottom = head + sum(step * len(items) + gap for _, items in groups)
    parts.append(svg.axis_x(ticks, scale, head, bottom, unit))
    at = head
    for place, (name, items) in enumerate(groups):
        height = step * len(items) + gap
        if place % 2 == 0:
            parts.append(svg.rect("band", 0, at, svg.WIDTH, height))
        short = name if len(name) <= 20 else name[:19] + "…"
        parts.append(svg.text(6, at + height / 2 + 4, short, "name"))
        for line, item in enumerate(items):
            y_dot = at + gap / 2 + step * (line + 0.5)
            parts.append("<g>" + svg.tip(f"{name}, {item.label}: {svg.told(item.value, item.low, item.high)} {unit}"))
            parts.append(svg.whisker(scale, item.low, item.high, y_dot, f"{item.colour} line"))
            parts.append(svg.mark(seen[item.label][1], scale(item.value), y_dot, item.colour) + "</g>")
        at += height
    told = [
        f"{name}: " + ", ".join(f"{item.label} {svg.told(item.value, item.low, item.high)}" for item in items)
        for name, items in groups
    ]
    return svg.picture(f"{title}, {unit}", told, bottom + 30, parts)


def lines(
    title: str,
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    *,
    joined: bool = True,
    y_from_zero: bool = True,
    height: int = 250,
    percent_x: bool = False,
    percent_y: bool = False,
) -> str:
    """Lines over an axis, or unjoined points, with labels in the right margin.

    Args:
        title: for the text alternative.
        series: the lines.
        x_label, y_label: what the axes show.
        joined: whether the points of a series are joined.
        y_from_zero: whether the axis begins at zero.
        height: units.
        percent_x, percent_y: whether shares are written as per cent.
    """
    points = [point for line in series for point in line.points]
    if not points:
        return svg.picture(title, ["no points"], 20, [])
    left, top, bottom, right = 40.0, 26.0, height - 40.0, svg.WIDTH - _GUTTER
    x_ticks, x = svg.along([v for p in points for v in (p.x, p.x_low, p.x_high)], left + 6, right - 6, False)
    y_ticks, y = svg.along([v for p in points for v in (p.y, p.low, p.high)], bottom, top, y_from_zero)
    parts = [svg.text(4, 12, y_label, "soft")]
    for tick in y_ticks:
        parts.append(svg.segment("grid", left, y(tick), right, y(tick)))
        parts.append(svg.text(left - 5, y(tick) + 4, svg.tick_name(tick, percent_y), "soft", "end"))
    for tick in x_ticks:
        parts.append(svg.segment("tick", x(tick), bottom, x(tick), bottom + 4))
        parts.append(svg.text(x(tick), bottom + 17, svg.tick_name(tick, percent_x), "soft", "middle"))
    parts.append(svg.text((left + right) / 2, bottom + 34, x_label, "soft", "middle"))
    ends = []
    for place, line in enumerate(series):
        if joined and len(line.points) > 1:
            way = " ".join(f"{svg.unit(x(point.x))},{svg.unit(y(point.y))}" for point in line.points)
            parts.append(f'<polyline class="{line.colour} line" points="{way}"/>')
        for point in line.points:
            parts.append("<g>" + svg.tip(f"{line.label}: {_place(point, percent_x, percent_y)}"))
            if point.low is not None and point.high is not None:
                parts.append(svg.segment(f"{line.colour} thin", x(point.x), y(point.low), x(point.x), y(point.high)))
            if point.x_low is not None and point.x_high is not None:
                parts.append(
                    svg.segment(f"{line.colour} thin", x(point.x_low), y(point.y), x(point.x_high), y(point.y))
                )
            parts.append(svg.mark(place, x(point.x), y(point.y), line.colour) + "</g>")
        if line.points:
            last = line.points[-1]
            ends.append((y(last.y), x(last.x), place, line))
    ends.sort(key=lambda end: end[0])
    for at, (y_end, x_end, place, line) in zip(svg.apart([end[0] for end in ends], top, bottom), ends, strict=True):
        parts.append(svg.segment("leader", x_end + 5, y_end, right + 6, at))
        parts.append(svg.mark(place, right + 14, at, line.colour))
        parts.append(svg.text(right + 22, at + 4, line.label, "name small"))
    told = [
        f"{line.label}: " + "; ".join(_place(point, percent_x, percent_y) for point in line.points) for line in series
    ]
    return svg.picture(f"{title}: {y_label} over {x_label}", told, height, parts)


def forest(title: str, items: Sequence[Bar], *, reference: float = 1.0) -> str:
    """Ratios with their intervals on a logarithmic axis, with a line where nothing differs."""
    values = [v for item in items for v in (item.value, item.low, item.high) if v is not None and v > 0]
    span = max((abs(math.log(v / reference)) for v in values), default=0.1) * 1.08 or 0.1
    bottom = 33.0 * len(items) + 4

    def scale(value: float) -> float:
        return 8 + (math.log(max(value, 1e-9) / reference) / span + 1) / 2 * (svg.WIDTH - 20)

    steps = [0.05, 0.1, 0.2, 0.25, 0.5, 0.67, 0.8, 0.9, 0.95, 1, 1.05, 1.1, 1.25, 1.5, 2, 3, 4, 5, 8, 10, 20]
    shown: list[float] = [1.0]
    for step in sorted(steps, key=lambda s: abs(math.log(s))):
        if abs(math.log(step)) <= span and all(abs(scale(step) - scale(other)) > 42 for other in shown):
            shown.append(step)
    parts = [svg.axis_x(sorted(shown), scale, 0, bottom, "times", [f"{step:g}×" for step in sorted(shown)])]
    parts.append(svg.segment("limit", scale(reference), 0, scale(reference), bottom))
    for place, item in enumerate(items):
        y = 33 * place
        parts.append("<g>" + svg.tip(f"{item.label}: {svg.told(item.value, item.low, item.high)} times"))
        parts.append(svg.text(4, y + 13, item.label, "name"))
        told = f"{item.value:.2f}×" + (
            f" [{item.low:.2f}, {item.high:.2f}]" if item.low is not None and item.high is not None else ""
        )
        parts.append(svg.text(svg.WIDTH - 6, y + 13, told, "value", "end"))
        parts.append(svg.whisker(scale, item.low, item.high, y + 23, f"{item.colour} line"))
        parts.append(svg.mark(0, scale(item.value), y + 23, item.colour) + "</g>")
    return svg.picture(
        title, [f"{item.label} {svg.told(item.value, item.low, item.high)} times" for item in items], bottom + 30, parts
    )


def _legend(names: Sequence[str], draw: Callable[[int, float, float], str]) -> tuple[list[str], float]:
    """Names with their marks in lines from the top; the pieces, and where what follows may begin."""
    parts, x, y = [], 4.0, 11.0
    for place, name in enumerate(names):
        width = 26 + 6.5 * len(name)
        if x > 4 and x + width > svg.WIDTH:
            x, y = 4.0, y + 17
        parts.append(draw(place, x + 5, y - 4) + svg.text(x + 14, y, name, "soft"))
        x += width
    return parts, y + 10


def _noted(value: float, note: str) -> str:
    return f"{svg.number(value)} · {note}" if note else svg.number(value)


def _place(point: Point, percent_x: bool, percent_y: bool) -> str:
    """Where a point lies, in words."""
    interval = ""
    if point.low is not None and point.high is not None:
        interval = f" [{svg.tick_name(point.low, percent_y)}, {svg.tick_name(point.high, percent_y)}]"
    return f"{svg.tick_name(point.x, percent_x)} → {svg.tick_name(point.y, percent_y)}{interval}"
