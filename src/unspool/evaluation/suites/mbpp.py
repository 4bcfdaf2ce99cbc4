"""MBPP: small Python programs from one sentence and three asserts.

Austin et al., Program Synthesis with Large Language Models, 2021; the prompt is that of its section 3.1 without the
solved examples. The tests are part of the prompt: without them a model could not know the function's name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from unspool.evaluation.extraction import cut, program
from unspool.evaluation.suites import Item
from unspool.evaluation.suites._data import Hub, anything, field, records
from unspool.evaluation.suites._programs import CodeSuite

_HUB = Hub("google-research-datasets/mbpp", "test", "full")
_PROMPT = (
    "You are an expert Python programmer, and here is your task: {text} Your code should pass these tests:\n\n{tests}\n"
)
_END = "[DONE]"


class Mbpp(CodeSuite):
    """See the module."""

    name = "mbpp"
    summary = "Python programs from one sentence and three asserts, judged by them (Austin et al., 2021)"
    files: ClassVar[tuple[str, ...]] = ("mbpp.jsonl", "mbpp_test.jsonl", "sanitized-mbpp.json", "mbpp*.jsonl*")
    origin = _HUB.path

    def load(self, data: Path | None = None) -> list[Item]:
        return [self._item(where, record) for where, record in records(self.name, self.files, _HUB, data)]

    def _item(self, where: str, record: dict[str, Any]) -> Item:
        # the sanitized file calls the text "prompt" and the set-up "test_imports"
        text = field(record, "text" if "text" in record else "prompt", str, where)
        tests = field(record, "test_list", list, where)
        setup = record.get("test_setup_code") or "\n".join(record.get("test_imports") or ())
        return Item(
            f"mbpp/{field(record, 'task_id', (str, int), where, anything)}",
            "program",
            (_PROMPT.format(text=text, tests="\n".join(tests)),),
            max_new_tokens=512,
            stop=(_END,),
            data={
                "tests": "\n".join([setup, *tests]) + "\n",
                "reference": record.get("code"),
            },
        )

    def source(self, item: Item, answer: str) -> str:
        return cut(program(answer), item.stop).lstrip().removeprefix("[BEGIN]")

    def tests(self, item: Item) -> str:
        return str(item.data["tests"])

    def reference(self, item: Item) -> str | None:
        code = item.data["reference"]
        return None if code is None else str(code)


SUITE = Mbpp
