"""Spec-Bench: 480 prompts in thirteen categories, those of MT-Bench with two turns; the yardstick of drafting.

Xia et al., Unlocking Efficiency in Large Language Model Inference: A Comprehensive Survey of Speculative Decoding,
2024.
The categories are MT-Bench's eight, translation (WMT14 de-en), summarization (CNN/Daily Mail), qa (Natural Questions),
math_reasoning (GSM8K) and rag (DPR on Natural Questions). Of the references those are used for scores that the sources
score by: the final number of math_reasoning, the answers of qa and rag, the texts of translation and summarization.
MT-Bench's references are for a judge, of which there is none here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from unspool.evaluation.suites import Item
from unspool.evaluation.suites._data import Hub, anything, field, records
from unspool.evaluation.suites._references import TextSuite

_HUB = Hub(
    "json", "train", files="https://raw.githubusercontent.com/hemingkx/Spec-Bench/main/data/spec_bench/question.jsonl"
)


class SpecBench(TextSuite):
    """See the module."""

    name = "spec-bench"
    summary = (
        "chat in thirteen categories, some with two turns: the yardstick of speculative decoding (Xia et al., 2024)"
    )
    files: ClassVar[tuple[str, ...]] = ("spec_bench.jsonl", "question.jsonl", "spec_bench*.jsonl", "spec-bench*.jsonl")
    origin = "github.com/hemingkx/Spec-Bench"

    def load(self, data: Path | None = None) -> list[Item]:
        items = []
        for where, record in records(self.name, self.files, _HUB, data):
            turns = field(record, "turns", list, where, lambda value: value and all(isinstance(t, str) for t in value))
            category = field(record, "category", str, where)
            items.append(
                Item(
                    str(field(record, "question_id", (int, str), where, anything)),
                    category,
                    tuple(turns),
                    max_new_tokens=1024,
                    data=_judging(category, record.get("reference")),
                )
            )
        return items


def _judging(category: str, reference: Any) -> dict[str, Any]:
    """What of a reference can be judged by rule."""
    if not reference:
        return {}
    first = reference[0]
    if category == "math_reasoning":
        return {"number": first}
    if category in ("translation", "summarization"):
        return {"references": [first]}
    if category in ("qa", "rag"):
        return {"answers": list(first) if isinstance(first, list) else [first]}
    return {}


SUITE = SpecBench
