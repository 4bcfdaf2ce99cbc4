"""``builtin-text``: 40 questions of everyday chat, five for each of the eight categories that MT-Bench introduced.

Written for this project and packaged with it, so that a fresh machine can measure at once. There are no references: it
measures speed, repetition and variety.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from unspool.core.errors import InvalidInput
from unspool.evaluation.prompts import load_prompts
from unspool.evaluation.suites import Item
from unspool.evaluation.suites._references import REPETITION, TextSuite


class BuiltinText(TextSuite):
    """See the module."""

    name = "builtin-text"
    summary = "40 chat prompts over eight categories, packaged: speed, repetition and variety"
    metrics: ClassVar[tuple[str, ...]] = (*REPETITION, "distinct-1", "distinct-2", "distinct-3")

    def load(self, data: Path | None = None) -> list[Item]:
        if data is not None:
            raise InvalidInput(
                f"builtin-text is packaged: leave --data {data} out, or name a file of your own as SUITE"
            )
        return [Item(one.id, one.category, one.turns, max_new_tokens=256) for one in load_prompts("builtin-text")]


SUITE = BuiltinText
