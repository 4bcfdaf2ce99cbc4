"""Arms that are slow, that die, and that tell how often they were asked; made in workers of Ray."""

import os
import signal
import time
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

from unspool.core.errors import InvalidInput
from unspool.evaluation.answering import Answer, Answerer, ArmSpec, Task, TurnRecord


class Diary:
    """Answers with the question and its seed; every attempt leaves a line with the process's id in a folder.

    Items: ``bad`` is refused, ``deadly`` kills the process each time, ``deadly once`` the first time, ``broken`` is a
    mistake in the program.
    """

    kind = "method"

    def __init__(self, spec: ArmSpec) -> None:
        self.name = spec.name
        self.folder = Path(spec.options["folder"])
        self.seconds: float = spec.options.get("seconds", 0.0)
        self.about: Mapping[str, Any] = {"kind": "method", "lossless": True, "greedy": True, "plain": False}

    def warm_up(self) -> None:
        self._note("warm-up")

    def answer(self, task: Task) -> Answer:
        first = not self._note(f"{task.item}-{self.name}-{task.sample}")
        if task.item == "bad":
            raise InvalidInput("the prompt is too long")
        if task.item == "broken":
            raise ZeroDivisionError("a mistake of ours")
        if task.item == "deadly" or (task.item == "deadly once" and first):
            os.kill(os.getpid(), signal.SIGKILL)
        # The first items last longest, so that results come in another order than they are asked for.
        time.sleep(self.seconds * (1 + (int(task.item) % 3 == 0)) if task.item.isdigit() else 0)
        record = TurnRecord(f"{task.turns[0]} {task.seed}", 3, 5, "length", 0.5, 0.1, {}, (1, 2, task.seed))
        return Answer((record,))

    def close(self) -> None:
        self._note("close")

    def _note(self, what: str) -> list[str]:
        """Write down; what was written before."""
        path = self.folder / what
        before = path.read_text().split() if path.exists() else []
        with path.open("a") as file:
            file.write(f"{os.getpid()}\n")
        return before


def make(spec: ArmSpec, engines: MutableMapping[Any, Any]) -> Answerer:
    if spec.method == "unknown":
        raise InvalidInput("there is no such method")
    if spec.method == "fatal":
        os.kill(os.getpid(), signal.SIGKILL)
    return Diary(spec)
