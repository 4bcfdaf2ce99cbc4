"""HumanEval: 164 functions to be completed from signature and docstring, each with tests.

Chen et al., Evaluating Large Language Models Trained on Code, 2021. The prompt is the beginning of the function, as it
is, without a chat template; a completion ends where the paper's stop strings say that the function is over.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from unspool.evaluation.extraction import completed
from unspool.evaluation.suites import Item
from unspool.evaluation.suites._data import Hub, anything, field, records
from unspool.evaluation.suites._programs import CodeSuite

STOPS = ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint(", "\n```")
"""Where a function is over (Chen et al., 2021, section 2; a fence for models that write Markdown)."""

_HUB = Hub("openai/openai_humaneval", "test")


class HumanEval(CodeSuite):
    """See the module."""

    name = "humaneval"
    summary = "164 Python functions completed from their docstrings, judged by tests (Chen et al., 2021)"
    files: ClassVar[tuple[str, ...]] = ("humaneval.jsonl", "HumanEval.jsonl", "HumanEval.jsonl.gz", "humaneval*.jsonl*")
    origin = _HUB.path

    def load(self, data: Path | None = None) -> list[Item]:
        items = []
        for where, record in records(self.name, self.files, _HUB, data):
            prompt, entry = (field(record, name, str, where) for name in ("prompt", "entry_point"))
            items.append(
                Item(
                    str(field(record, "task_id", (str, int), where, anything)),
                    "function",
                    (prompt,),
                    chat=False,
                    max_new_tokens=512,
                    stop=STOPS,
                    data={
                        "entry_point": entry,
                        "tests": field(record, "test", str, where) + f"\ncheck({entry})\n",
                        "reference": record.get("canonical_solution"),
                    },
                )
            )
        return items

    def source(self, item: Item, answer: str) -> str:
        return completed(item.turns[0], answer, item.data["entry_point"], item.stop)

    def tests(self, item: Item) -> str:
        return str(item.data["tests"])

    def reference(self, item: Item) -> str | None:
        body = item.data["reference"]
        return None if body is None else item.turns[0] + body


SUITE = HumanEval
