"""Suites whose answers are Python programs that tests judge, in the sandbox.

The answer and the tests are files of one program: the answer is run as a module named ``answer``, so that what stands
below ``if __name__ == "__main__"`` is left out, then the tests in its names. The program has to come to its end: an
answer that leaves early does not pass, whatever its exit code. What answer and tests print goes nowhere.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from unspool.evaluation.answering import Answer
from unspool.evaluation.planting import plant
from unspool.evaluation.scoring import pass_at_k
from unspool.evaluation.suites import Item, Judged, Suite

if TYPE_CHECKING:
    from unspool.programs import Program

_DRIVER = """import os, sys, types

sys.stdout = open(os.devnull, "w")
answer = types.ModuleType("answer")
sys.modules["answer"] = answer
for name in ("answer.py", "tests.py"):
    with open(name, encoding="utf-8") as file:
        source = file.read()
    exec(compile(source, name, "exec"), answer.__dict__)
"""


class CodeSuite(Suite):
    """Judges programs by tests; an item's samples become pass@k."""

    metrics: ClassVar[tuple[str, ...]] = ("pass@1", "pass@10", "pass@100")

    _in_force: Sequence[str] = ()
    _missing: Sequence[str] = ()

    @abstractmethod
    def source(self, item: Item, answer: str) -> str:
        """The program that an answer's text is."""

    @abstractmethod
    def tests(self, item: Item) -> str:
        """Statements that fail if the program is wrong; they see its names."""

    def further_files(self, item: Item, answer: str) -> Mapping[str, str]:
        """Further files that the tests read, by name."""
        return {}

    def judge(self, item: Item, answer: Answer) -> dict[str, float]:
        return self.judge_all([Judged(item, answer)])[0]

    def judge_all(
        self, judged: Sequence[Judged], on_done: Callable[[int], None] | None = None
    ) -> list[dict[str, float]]:
        from unspool.programs import Facility, Sandbox, Status

        with Sandbox() as sandbox:
            outcomes = sandbox.run_many(
                [self.program(one.item, one.answer.text) for one in judged],
                on_done=None if on_done is None else lambda place, outcome: on_done(place),
            )
            self._in_force = [facility.value for facility in Facility if facility in sandbox.facilities]
            self._missing = [facility.value for facility in Facility if facility not in sandbox.facilities]
        return [{"passed": float(outcome.status is Status.PASSED)} for outcome in outcomes]

    def program(self, item: Item, answer: str) -> Program:
        """The program that judges an answer: it passes if it comes to its end."""
        from unspool.programs import Program

        files = {
            "answer.py": self.source(item, answer),
            "tests.py": self.tests(item),
            **self.further_files(item, answer),
        }
        # Half characters that a model may write are no Python source.
        files = {name: text.encode("utf-8", "replace").decode() for name, text in files.items()}
        return Program(_DRIVER, files=files, must_finish=True)

    def planted(self, item: Item) -> str | None:
        known = self.reference(item)
        return (
            None if known is None else plant(known, script=self.is_script(item), variable=item.data.get("entry_point"))
        )

    def is_script(self, item: Item) -> bool:
        """Whether answers are run as programs, and not called."""
        return False

    def notes(self) -> list[str]:
        if not self._in_force and not self._missing:
            return []
        told = f"programs were run in a sandbox with: {', '.join(self._in_force) or 'nothing in force'}"
        return [told + (f"; without: {', '.join(self._missing)}" if self._missing else "")]

    def over_samples(self, scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
        n, c = len(scores), sum(score["passed"] > 0 for score in scores)
        return {f"pass@{k}": pass_at_k(n, c, k) for k in (1, 10, 100) if k <= n}
