"""GSM8K: word problems of grade school; the answer's final number counts.

Cobbe et al., Training Verifiers to Solve Math Word Problems, 2021. Asked without solved examples: the question, and the
wish for steps and for the number after ``####`` as the data writes it. The number is read off as
:func:`unspool.evaluation.scoring.final_number` says.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from unspool.core.errors import InvalidInput
from unspool.evaluation.answering import Answer
from unspool.evaluation.scoring import final_number, same_number
from unspool.evaluation.suites import Item, Suite
from unspool.evaluation.suites._data import Hub, field, records

_HUB = Hub("openai/gsm8k", "test", "main")
_PROMPT = "{question}\n\nSolve this step by step. Write the final number on a line of its own, after ####."


class Gsm8k(Suite):
    """See the module."""

    name = "gsm8k"
    summary = "word problems of grade school, exact match of the final number (Cobbe et al., 2021)"
    metrics = ("exact_match", "stated")
    files: ClassVar[tuple[str, ...]] = ("gsm8k.jsonl", "gsm8k_test.jsonl", "gsm8k*.jsonl", "test.jsonl")
    origin = _HUB.path

    def load(self, data: Path | None = None) -> list[Item]:
        items = []
        for number, (where, record) in enumerate(records(self.name, self.files, _HUB, data)):
            question, answer = (field(record, name, str, where) for name in ("question", "answer"))
            if final_number(answer) is None:
                raise InvalidInput(f"{where}: the answer {answer[:60]!r} holds no number")
            items.append(
                Item(
                    f"gsm8k/{number}",
                    "math",
                    (_PROMPT.format(question=question),),
                    max_new_tokens=320,
                    data={"answer": answer},
                )
            )
        return items

    def judge(self, item: Item, answer: Answer) -> dict[str, float]:
        return {
            "exact_match": same_number(answer.text, item.data["answer"]),
            "stated": float("####" in answer.text),
        }

    def reference(self, item: Item) -> str | None:
        return str(item.data["answer"])


SUITE = Gsm8k
