"""The report: one page with what a run measured, that needs nothing but a browser.

Plots come from :mod:`unspool.evaluation.figures`, tables are made by the template, which escapes all text. The rows by
prompt travel as JSON and enter the page as text, never as markup; the content-security policy lets the page fetch
nothing. What would make the page larger than :data:`MOST_BYTES` is shortened, and the page says so.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from unspool.evaluation import pages, speed
from unspool.evaluation.figures import Results, figures
from unspool.evaluation.measures import SPEED, measure
from unspool.evaluation.svg import number

if TYPE_CHECKING:
    from jinja2 import Template

MOST_BYTES = 1_300_000
"""Of the page."""

_LONGEST_TEXT, _SHORTEST_TEXT = 2000, 40
"""Characters of a text, and to what they are cut before rows are left out."""

_ENVELOPE = 200
"""Bytes for the names of the parts of the data."""


def html(results: Mapping[str, Any]) -> str:
    """The page.

    Args:
        results: as a results file holds them.

    Returns:
        A whole HTML document.
    """
    found = Results(results)
    templates = files("unspool.evaluation") / "templates"
    style, script = ((templates / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    told = {
        "title": f"{results.get('suite', '')} · {results.get('model', '')} · Unspool report",
        "suite": results.get("suite", ""),
        "model": results.get("model", ""),
        "started": results.get("started", ""),
        "facts": _facts(found),
        "figures": figures(found),
        "arms": _arms(found),
        "baseline": found.baseline,
        "scores": _scores(found),
        "settings": _settings(found),
        "notes": results.get("notes") or [],
        "absent": results.get("absent") or [],
        "roofline": _roofline(results.get("roofline")),
        "machine": _pairs(results.get("machine") or {}),
        "limits": _pairs(results.get("limit") or {}),
        "version": results.get("unspool", ""),
        "command": shlex.join(str(word) for word in results.get("command") or []),
        "style": style,
        "style_hash": pages.content_hash(style),
        "script": script,
        "script_hash": pages.content_hash(script),
    }
    without_rows = pages.encodable(_template().render(told, data=""))
    rows = rows_table(found, MOST_BYTES - len(without_rows.encode("utf-8")))
    return pages.encodable(_template().render(told, data=pages.embedded(rows)))


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined

    source = (files("unspool.evaluation") / "templates" / "report.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(source)


# -- rows by prompt -----------------------------------------------------------------------------------------------


def rows_table(results: Results, room: int) -> dict[str, Any]:
    """The rows of the page's table, as small as they have to be.

    Args:
        results: of the run.
        room: bytes.

    Returns:
        ``columns`` (name and kind of each), ``rows`` (a list of cells each), ``texts`` (of each row, per turn),
        ``left_out`` (rows for which there was no room), ``shortened`` (whether texts were).
    """
    scores = list(dict.fromkeys(name for row in results.rows for name in row.get("scores", {})))
    columns = [("item", "text"), ("category", "text"), ("arm", "text"), ("sample", "number")]
    columns += [
        ("tokens/s", "number"),
        ("first token, ms", "number"),
        ("tokens", "number"),
        ("tokens a step", "number"),
    ]
    columns += [("prompt tokens", "number"), ("ended by", "text")]
    columns += [(measure(name).label, "number") for name in scores]
    room -= _size(columns) + _ENVELOPE
    rows = [_row(row, scores) for row in results.rows]
    whole = [_texts(row) for row in results.rows]
    lengths = [len(text) for turns in whole for text in turns]
    left = room - _size(rows)
    longest = _LONGEST_TEXT
    # Characters are counted first: that is quick, and no text takes fewer bytes than it has characters.
    while longest > _SHORTEST_TEXT and sum(min(length, longest) for length in lengths) > left:
        longest //= 2
    texts = _cut(whole, longest)
    while longest > _SHORTEST_TEXT and _size(texts) > left:
        longest //= 2
        texts = _cut(whole, longest)
    kept, used = 0, 0
    while kept < len(rows) and (used := used + _size([rows[kept], texts[kept]])) <= room:
        kept += 1
    return {
        "columns": columns,
        "rows": rows[:kept],
        "texts": texts[:kept],
        "left_out": len(rows) - kept,
        "shortened": texts[:kept] != whole[:kept],
    }


def _row(row: Mapping[str, Any], scores: Sequence[str]) -> list[Any]:
    turns = row["turns"]
    found = {name: above / below for name, (above, below) in speed.sums(turns).items() if below}
    first = found.get("first_token_seconds")
    ended = "error" if "error" in row else ", ".join(dict.fromkeys(turn["finish_reason"] for turn in turns))
    return [
        row["item"],
        row["category"],
        row["arm"],
        row["sample"],
        _short(found.get(SPEED)),
        _short(None if first is None else 1000 * first),
        sum(turn["tokens"] for turn in turns),
        _short(found.get("mean_accepted_length")),
        max((turn["prompt_tokens"] for turn in turns), default=0),
        ended,
        *(_short(row.get("scores", {}).get(name)) for name in scores),
    ]


def _texts(row: Mapping[str, Any]) -> list[str]:
    if "error" in row:
        return [f"{row['error'].get('type', 'error')}: {row['error'].get('message', '')}"]
    return [turn["text"] for turn in row["turns"]]


def _cut(texts: Sequence[Sequence[str]], longest: int) -> list[list[str]]:
    return [[text if len(text) <= longest else text[: longest - 1] + "…" for text in turns] for turns in texts]


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def _size(data: Any) -> int:
    return len(pages.embedded(data).encode("utf-8"))


# -- tables -------------------------------------------------------------------------------------------------------


def _facts(results: Results) -> list[tuple[str, str]]:
    """What a reader wants to know first."""
    items = len({row["item"] for row in results.rows})
    tokens = sum(turn["tokens"] for row in results.rows for turn in row["turns"])
    errors = sum("error" in row for row in results.rows)
    facts = [("prompts", f"{items:,}"), ("arms", f"{len(results.kinds)}"), ("tokens generated", f"{tokens:,}")]
    if ranked := results.ranked(SPEED):
        best = results.entry(ranked[0], SPEED)
        assert best is not None
        paired = results.paired(ranked[0], SPEED)
        against = f", {paired['ratio']:.2f}× {paired['baseline']}" if paired and paired.get("ratio") else ""
        facts.append(("fastest", f"{ranked[0]} · {number(best['value'])} tokens/s{against}"))
    equal = [entry["value"] for arm in results.kinds if (entry := results.entry(arm, "equals_plain")) is not None]
    if equal:
        facts.append(("lossless methods equal to plain", f"{100 * min(equal):.4g}% of the prompts at least"))
    if errors:
        facts.append(("rows with an error", f"{errors:,}"))
    return facts


def _arms(results: Results) -> list[dict[str, Any]]:
    """One line an arm: the numbers that most readers look for."""
    ranked = results.ranked(SPEED)
    lines = []
    for arm in [*ranked, *(arm for arm in results.kinds if arm not in ranked)]:
        paired = results.paired(arm, SPEED)
        lines.append(
            {
                "name": arm,
                "colour": results.colours[arm],
                "kind": results.kinds[arm],
                "speed": _cell(results.entry(arm, SPEED)),
                "against": _cell(None if paired is None else {**paired, "value": paired.get("ratio")}, "×"),
                "first": _cell(results.entry(arm, "first_token_seconds"), " ms", 1000),
                "step": _cell(results.entry(arm, "mean_accepted_length")),
                "passes": _cell(results.entry(arm, "forwards_per_token")),
                "equal": _cell(results.entry(arm, "equals_plain"), "%", 100, interval=False),
            }
        )
    return lines


def _scores(results: Results) -> dict[str, Any] | None:
    """Quality: an arm a line, a measure a column."""
    measures = [one for one in results.scores if one.name != "equals_plain"]
    if not measures:
        return None
    ways = {"higher": "↑", "lower": "↓", None: ""}
    lines = [
        (arm, results.colours[arm], [_cell(results.entry(arm, one.name)) for one in measures])
        for arm in results.kinds
        if any(results.entry(arm, one.name) is not None for one in measures)
    ]
    return {"names": [f"{one.label} {ways[one.better]}" for one in measures], "lines": lines}


def _cell(
    entry: Mapping[str, Any] | None, unit: str = "", scale: float = 1.0, *, interval: bool = True
) -> tuple[str, str] | None:
    """A value and its interval as text."""
    if entry is None or entry["value"] is None:
        return None
    low, high = entry.get("low"), entry.get("high")
    told = ""
    if interval and low is not None and high is not None:
        told = f"{number(low * scale)} – {number(high * scale)}"
    return number(entry["value"] * scale) + unit, told


def _settings(results: Results) -> list[dict[str, Any]]:
    """What every arm says of itself."""
    known = ("kind", "version", "threads")
    lines = []
    for arm, told in results.data["arms"].items():
        rest = {key: value for key, value in told.items() if key not in known and value not in (None, {}, [], "")}
        package = told.get("package", "unspool" if results.kinds[arm] == "method" else "")
        lines.append(
            {
                "name": arm,
                "kind": results.kinds[arm],
                "version": f"{package} {told.get('version', '')}".strip(),
                "threads": told.get("threads", ""),
                "rest": _pairs({key: value for key, value in rest.items() if key != "package"}),
            }
        )
    return lines


def _roofline(told: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if not told:
        return None
    return {
        "bandwidth": f"{told['bandwidth'] / 1e9:.1f} GB/s with {told['threads']} threads",
        "context": f"{told['context']:g} tokens",
        "forms": [
            (
                form["weights"],
                f"{form['weight_bytes'] / 1e6:,.1f} MB",
                f"{form['kv_bytes'] / 1e6:,.2f} MB",
                f"{form['tokens_per_second']:,.1f} tokens/s",
            )
            for form in told["forms"]
        ],
    }


def _pairs(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values as text."""
    found = []
    for key, value in values.items():
        if value is None:
            continue
        if key == "memory" and isinstance(value, int):
            text = f"{value / 2**30:.1f} GiB"
        elif isinstance(value, Mapping):
            text = ", ".join(f"{name} = {_told(inner)}" for name, inner in value.items())
        else:
            text = _told(value)
        found.append((key.replace("_", " "), text))
    return found


def _told(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
