"""``builtin-code``: 40 small tasks in Python, each with tests and a solution.

Written for this project and packaged with it. Four categories of ten: functions, classes, repairs of given code, and
scripts. A line of the file has, besides the fields of a prompt:

- ``entry_point``: the name that the tests use, if they use one;
- ``script``: whether the answer is a program of its own, which tests run with ``run(*arguments, stdin="")`` in a new
  process; that gives what it printed, and ``numbers(text)`` the numbers in it;
- ``tests``: statements that fail if the answer is wrong;
- ``reference``: a solution that passes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from unspool.core.errors import InvalidInput
from unspool.evaluation.extraction import program
from unspool.evaluation.suites import Item
from unspool.evaluation.suites._programs import CodeSuite

_SCRIPT = """import re, subprocess, sys

def run(*arguments, stdin=""):
    done = subprocess.run(
        [sys.executable, "script.py", *arguments], input=stdin, capture_output=True, text=True, timeout=8
    )
    assert done.returncode == 0, done.stderr
    return done.stdout

def numbers(text):
    return [float(number) for number in re.findall(r"-?\\d+(?:\\.\\d+)?", text)]

"""


class BuiltinCode(CodeSuite):
    """See the module."""

    name = "builtin-code"
    summary = "40 Python tasks (functions, classes, repairs, scripts), packaged, judged by tests"

    def load(self, data: Path | None = None) -> list[Item]:
        if data is not None:
            raise InvalidInput("builtin-code is packaged: leave --data out, or name a file of your own as SUITE")
        text = (resources.files("unspool.evaluation") / "data" / "code.jsonl").read_text(encoding="utf-8")
        rows = [json.loads(line) for line in text.split("\n") if line]
        return [
            Item(
                row["question_id"],
                row["category"],
                tuple(row["turns"]),
                max_new_tokens=512,
                data={name: row[name] for name in ("entry_point", "script", "tests", "reference")},
            )
            for row in rows
        ]

    def source(self, item: Item, answer: str) -> str:
        return "" if self.is_script(item) else program(answer, item.data["entry_point"])

    def tests(self, item: Item) -> str:
        return (_SCRIPT if self.is_script(item) else "") + str(item.data["tests"])

    def further_files(self, item: Item, answer: str) -> Mapping[str, str]:
        return {"script.py": program(answer)} if self.is_script(item) else {}

    def is_script(self, item: Item) -> bool:
        return bool(item.data["script"])

    def reference(self, item: Item) -> str | None:
        return str(item.data["reference"])


SUITE = BuiltinCode
