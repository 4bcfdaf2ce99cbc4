"""The pieces that plots are made of: marks, axes and text as SVG, and round numbers along an axis."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence

WIDTH = 440
"""Units from the left to the right edge of a plot."""


def number(value: float, digits: int = 3) -> str:
    """As few digits as tell values apart: three significant ones, without an exponent in the usual ranges."""
    if not math.isfinite(value):
        return str(value)
    if value and abs(value) < 1e-3:
        return f"{value:.{digits - 1}e}"
    places = max(0, digits - 1 - (math.floor(math.log10(abs(value))) if value else 0))
    return f"{value:,.{places}f}"


def picture(title: str, told: Sequence[str], height: float, parts: Sequence[str]) -> str:
    """A whole plot; the title and what is told of its parts are its text alternative."""
    label = html.escape(f"{title}. {'. '.join(told)}.", quote=True)
    return f'<svg viewBox="0 0 {WIDTH} {unit(height)}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def unit(value: float) -> str:
    """A length or place, to a tenth."""
    return f"{value:.1f}".removesuffix(".0")


def text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
    """Text at a place, escaped."""
    end = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text class="{kind}" x="{unit(x)}" y="{unit(y)}"{end}>{html.escape(text)}</text>'


def tip(text: str) -> str:
    """What is shown when a pointer rests on the element around it."""
    return f"<title>{html.escape(text)}</title>"


def told(value: float, low: float | None, high: float | None) -> str:
    """A value with its interval, in words."""
    return number(value) if low is None or high is None else f"{number(value)} [{number(low)}, {number(high)}]"


def tick_name(value: float, percent: bool = False) -> str:
    """A value beside an axis."""
    return f"{100 * value:.3g}%" if percent else f"{value:.4g}" if abs(value) < 1e4 else number(value)


def segment(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    """A straight line."""
    return f'<line class="{kind}" x1="{unit(x1)}" y1="{unit(y1)}" x2="{unit(x2)}" y2="{unit(y2)}"/>'


def rect(kind: str, x: float, y: float, width: float, height: float, shown: str = "", *, rounded: float = 0.0) -> str:
    """A filled area; ``shown`` when a pointer rests on it."""
    corner = f' rx="{unit(rounded)}"' if rounded else ""
    place = f'x="{unit(x)}" y="{unit(y)}" width="{unit(max(0.0, width))}" height="{unit(height)}"'
    return f'<rect class="{kind}" {place}{corner}>{tip(shown) if shown else ""}</rect>'


def whisker(
    scale: Callable[[float], float], low: float | None, high: float | None, y: float, kind: str = "whisker"
) -> str:
    """A horizontal interval with its ends; nothing where there is none."""
    if low is None or high is None:
        return ""
    a, b = scale(low), scale(high)
    return (
        f'<path class="{kind}" d="M{unit(a)},{unit(y)}H{unit(b)}M{unit(a)},{unit(y - 3)}v6M{unit(b)},{unit(y - 3)}v6"/>'
    )


def mark(place: int, x: float, y: float, colour: str) -> str:
    """A mark of one of four shapes, so that colour is not all that tells things apart."""
    kind = f'class="{colour} fill mark"'
    shape = place % 4
    if shape == 0:
        return f'<circle {kind} cx="{unit(x)}" cy="{unit(y)}" r="3.6"/>'
    if shape == 1:
        return f'<rect {kind} x="{unit(x - 3.2)}" y="{unit(y - 3.2)}" width="6.4" height="6.4"/>'
    outline = "0,-4.4 4.2,3.2 -4.2,3.2" if shape == 2 else "0,-4.6 4.6,0 0,4.6 -4.6,0"
    moved = " ".join(
        f"{unit(x + float(a))},{unit(y + float(b))}" for a, b in (pair.split(",") for pair in outline.split())
    )
    return f'<polygon {kind} points="{moved}"/>'


def axis_x(
    ticks: Sequence[float],
    scale: Callable[[float], float],
    top: float,
    bottom: float,
    unit: str,
    names: Sequence[str] | None = None,
) -> str:
    """Grid lines with their names below, and the unit below those."""
    parts = []
    for place, tick in enumerate(ticks):
        x = scale(tick)
        parts.append(segment("grid", x, top, x, bottom))
        name = names[place] if names else tick_name(tick, False)
        last = place == len(ticks) - 1 and x > WIDTH - 30
        parts.append(text(x, bottom + 13, name, "soft", "start" if x < 14 else "end" if last else "middle"))
    parts.append(text(WIDTH - 6, bottom + 27, unit, "soft", "end"))
    return "".join(parts)


def linear(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """From values between ``low`` and ``high`` to places between ``start`` and ``end``."""
    width = high - low or 1.0
    return lambda value: start + (value - low) / width * (end - start)


def round_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from ``low`` to at least ``high``, about ``count`` of them."""
    raw = (high - low) / count or 1.0
    unit = 10 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= raw * (1 - 1e-9))
    first = math.floor(low / step + 1e-9)
    return [round(step * at, 12) for at in range(first, math.ceil(high / step - 1e-9) + 1)]


def along(
    values: Sequence[float | None], start: float, end: float, from_zero: bool
) -> tuple[list[float], Callable[[float], float]]:
    """Ticks and scale of an axis that holds all values."""
    known = [value for value in values if value is not None]
    low, high = (0.0 if from_zero else min(known)), max(known)
    if low == high:
        low, high = low - (abs(low) * 0.1 or 0.5), high + (abs(high) * 0.1 or 0.5)
    ticks = round_ticks(low, high, 4)
    return ticks, linear(ticks[0], ticks[-1], start, end)


def apart(wanted: Sequence[float], top: float, bottom: float, room: float = 15) -> list[float]:
    """Places for labels near where they are wanted, in order, none on top of another."""
    placed: list[float] = []
    for y in wanted:
        placed.append(max(y, placed[-1] + room) if placed else max(y, top))
    over = placed[-1] - bottom if placed else 0.0
    for at in reversed(range(len(placed))):
        ceiling = bottom if at == len(placed) - 1 else placed[at + 1] - room
        if over > 0:
            placed[at] = min(placed[at], ceiling)
    return placed
