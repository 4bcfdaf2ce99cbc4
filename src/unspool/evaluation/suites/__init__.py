"""What is measured: one file a suite, and the list of them.

A suite loads items, says how they are asked, and judges what came back. It knows nothing of methods, peers or clocks.
Nothing here imports torch.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from unspool.core.errors import InvalidInput
from unspool.evaluation.answering import Answer


@dataclass(frozen=True)
class Item:
    """One question of a suite.

    Args:
        id: unique in the suite.
        category: a word; summaries are made over each.
        turns: what the user says in turn.
        chat: whether turns go through the chat template; ``None``: if the model has one.
        max_new_tokens: of each turn, at most.
        stop: strings that end a turn.
        data: what judging needs; JSON-able.
    """

    id: str
    category: str
    turns: tuple[str, ...]
    chat: bool | None = None
    max_new_tokens: int = 256
    stop: tuple[str, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)


Features = Callable[[Sequence[str]], Any]
"""``[n, d]`` numpy features of ``n`` texts."""


@dataclass(frozen=True)
class Judged:
    """An answer and the item it is to, for judging."""

    item: Item
    answer: Answer


class Suite:
    """Items and how answers to them are judged.

    Class attributes:
        name, summary: for lists; the summary says what is asked and where it comes from.
        kind: ``generate`` (arms answer), or ``score`` (the model gives probabilities to a text).
        metrics: names; the first is the headline, and so on in the order in which tables show them.
        files: names (patterns) of the files in a data folder, in order of preference; none for packaged suites.
        origin: where the data can be had, for messages.
        uses_features: whether :meth:`over_items` has use for features of texts.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    kind: ClassVar[Literal["generate", "score"]] = "generate"
    metrics: ClassVar[tuple[str, ...]] = ()
    files: ClassVar[tuple[str, ...]] = ()
    origin: ClassVar[str] = ""
    uses_features: ClassVar[bool] = False

    def load(self, data: Path | None = None) -> list[Item]:
        """The items, in the order of the file.

        Args:
            data: a file or folder; by default the folder that ``UNSPOOL_DATA`` names, then the ``datasets`` library.

        Raises:
            InvalidInput: if there is no data, or it is not what the suite expects.
        """
        raise NotImplementedError

    def judge(self, item: Item, answer: Answer) -> dict[str, float]:
        """Scores of one answer, by metric; an answer without turns (it failed) is judged as empty text."""
        return {}

    def judge_all(
        self, judged: Sequence[Judged], on_done: Callable[[int], None] | None = None
    ) -> list[dict[str, float]]:
        """Scores of many answers, in their order; ``on_done`` is told the place of each when it is done."""
        scores = []
        for place, one in enumerate(judged):
            scores.append(self.judge(one.item, one.answer))
            if on_done is not None:
                on_done(place)
        return scores

    def over_samples(self, scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """Scores of an item from those of its samples: by default the mean of each metric."""
        names = dict.fromkeys(name for score in scores for name in score)
        return {
            name: sum(values) / len(values)
            for name in names
            if (values := [score[name] for score in scores if name in score])
        }

    def over_items(
        self, judged: Sequence[Judged], features: Features | None = None
    ) -> dict[str, Callable[[Sequence[int]], float]]:
        """Metrics of a whole set of answers (of one arm), as functions of which of them are taken.

        Args:
            judged: the answers.
            features: for metrics that compare meanings; without it they are left out.
        """
        return {}

    def planted(self, item: Item) -> str | None:
        """An answer that is wrong in a way that only judging shows, if the suite can make one."""
        return None

    def notes(self) -> list[str]:
        """What a reader must know of the items that were loaded."""
        return []

    def reference(self, item: Item) -> str | None:
        """An answer that is right, if the suite has one."""
        return None


def available() -> dict[str, type[Suite]]:
    """Every suite, by name, in alphabetical order: each file of this folder that does not begin with ``_`` is one."""
    found: dict[str, type[Suite]] = {}
    for module in pkgutil.iter_modules(__path__):
        if not module.name.startswith("_"):
            suite = importlib.import_module(f"{__name__}.{module.name}").SUITE
            found[suite.name] = suite
    return dict(sorted(found.items()))


def get(name: str) -> Suite:
    """A suite by name, or one of a file of the user's own (a path to a JSON Lines file).

    Raises:
        InvalidInput: if there is none.
    """
    suites = available()
    if name in suites:
        return suites[name]()
    path = Path(name)
    if path.suffix == ".jsonl" or path.is_file():
        return suites["file"](path)  # type: ignore[call-arg]
    raise InvalidInput(
        f"there is no suite {name!r}; there are {', '.join(suites)}, and any JSON Lines file by its path"
    )
