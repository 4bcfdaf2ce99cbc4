"""How the numbers of a results file are told: label, unit, which way is better, and how two of them are compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SPEED = "tokens_per_second"


@dataclass(frozen=True)
class Measure:
    """A number of rows and summaries.

    Args:
        name: in rows and summaries.
        label: for people.
        unit: for people; empty if it has none.
        better: which way; ``None`` if neither.
        compared: as a ratio or as a difference.
        of_text: whether it says something of the text, and not of how it was made.
    """

    name: str
    label: str
    unit: str = ""
    better: Literal["higher", "lower"] | None = "higher"
    compared: Literal["ratio", "difference"] = "ratio"
    of_text: bool = False


_KNOWN = {
    measure.name: measure
    for measure in (
        Measure(SPEED, "speed", "tokens/s"),
        Measure("median_tokens_per_second", "median speed", "tokens/s"),
        Measure("decode_tokens_per_second", "speed after the first token", "tokens/s"),
        Measure("first_token_seconds", "time to first token", "s", "lower"),
        Measure("forwards_per_token", "target passes a token", "", "lower"),
        Measure("mean_accepted_length", "tokens a step"),
        Measure("acceptance_rate", "drafted tokens that stand", "", "higher", "difference"),
        Measure("peak_cache_bytes", "largest cache", "bytes", "lower"),
        # All arms of a run may stand in one process: what is held for the others counts too.
        Measure("peak_rss_bytes", "most memory of the process", "bytes", None),
    )
}

_PARTS = ("prefill", "draft", "score", "verify")
_LOWER_IS_BETTER = ("perplexity", "bits", "nll", "rep-", "rep_", "self-bleu", "self_bleu", "frontier")
"""Beginnings of the names of scores that are better when they are lower."""


def measure(name: str) -> Measure:
    """How a number of that name is told; one that is not known is a score, and compared by its difference."""
    if name in _KNOWN:
        return _KNOWN[name]
    if name.startswith("acceptance_at_"):
        depth = name.removeprefix("acceptance_at_")
        return Measure(name, f"drafts that stand to depth {depth}", "", "higher", "difference")
    if name.endswith("_ms_per_token") and name.startswith(_PARTS):
        return Measure(name, f"{name.split('_')[0]} time", "ms a token", "lower")
    better: Literal["higher", "lower"] = "lower" if name.startswith(_LOWER_IS_BETTER) else "higher"
    return Measure(name, name.replace("_", " "), "", better, "difference", of_text=True)
