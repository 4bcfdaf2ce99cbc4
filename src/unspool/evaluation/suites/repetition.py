"""``repetition``: open-ended continuation of human text, and whether it loops, varies, and is like what people write.

The beginning of a passage is the prompt (``PROMPT_WORDS`` words, as it is, no chat template); what follows in the
passage is the human text to compare with. Passages are the paragraphs of a text file (``--text FILE``), or, if none is
given, running text from the docstrings of Python's standard library (the first 100 files that have enough of it).

Measures: ``rep-n`` and ``diversity`` of each answer (Su et al., 2022), ``distinct-n`` (Li et al., 2016) and
``self-bleu`` (Zhu et al., 2018) over the set, and, where the model shows hidden states, ``mauve`` and
``frontier_integral`` (see :mod:`unspool.evaluation.frontier` for the estimator). Units are words and marks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from unspool.core.errors import InvalidInput
from unspool.evaluation import scoring
from unspool.evaluation.answering import Answer
from unspool.evaluation.prompts import prose
from unspool.evaluation.suites import Features, Item, Judged, Suite
from unspool.evaluation.suites._data import read_text
from unspool.evaluation.suites._references import REPETITION, repetition, units_of, variety

PROMPT_WORDS, HUMAN_WORDS = 32, 96
STANDARD = 100
"""Passages of the standard library that are taken."""


class Repetition(Suite):
    """See the module."""

    name = "repetition"
    summary = "open-ended continuation of text: rep-n, distinct-n, self-BLEU, and a divergence frontier to human text"
    metrics: ClassVar[tuple[str, ...]] = (
        *(REPETITION[-1:] + REPETITION[:-1]), "distinct-1", "distinct-2", "distinct-3", "self-bleu", "mauve",
        "frontier_integral",
    )  # fmt: skip

    uses_features = True

    def load(self, data: Path | None = None) -> list[Item]:
        if data is not None and data.is_dir():
            raise InvalidInput(f"repetition continues the paragraphs of a text file; {data} is a folder")
        items = []
        for name, words in _passages(data):
            items.append(
                Item(
                    name,
                    "text",
                    (" ".join(words[:PROMPT_WORDS]),),
                    chat=False,
                    max_new_tokens=128,
                    data={"human": " ".join(words[PROMPT_WORDS : PROMPT_WORDS + HUMAN_WORDS])},
                )
            )
        if not items:
            raise InvalidInput(
                f"{data} has no paragraph of {PROMPT_WORDS + HUMAN_WORDS} words; paragraphs are parted by empty lines"
            )
        return items

    def judge(self, item: Item, answer: Answer) -> dict[str, float]:
        return repetition(answer)

    def over_items(
        self, judged: Sequence[Judged], features: Features | None = None
    ) -> dict[str, Callable[[Sequence[int]], float]]:
        found = variety(judged)
        texts = [one.answer.text for one in judged]
        if len(texts) > 1 and any(texts):
            each = scoring.self_bleu(texts)
            found["self-bleu"] = lambda chosen: sum(each[place] for place in chosen) / len(chosen)
        # A divergence between a few texts is noise, whatever the estimator.
        if features is not None and len(judged) >= 8 and all(units_of(one.answer) for one in judged):
            found |= _frontier(judged, features)
        return found

    def reference(self, item: Item) -> str | None:
        return str(item.data["human"])


def _frontier(judged: Sequence[Judged], features: Features) -> dict[str, Callable[[Sequence[int]], float]]:
    from unspool.evaluation.frontier import frontier_integral, histograms, mauve, quantise

    human = features([f"{one.item.turns[0]} {one.item.data['human']}" for one in judged])
    model = features([f"{one.item.turns[0]} {_shortened(one.answer.text)}" for one in judged])
    clusters = quantise(human, model)
    ours, theirs = clusters[: len(human)], clusters[len(human) :]
    return {
        "mauve": lambda chosen: mauve(*histograms(ours[list(chosen)], theirs[list(chosen)])),
        "frontier_integral": lambda chosen: frontier_integral(*histograms(ours[list(chosen)], theirs[list(chosen)])),
    }


def _shortened(text: str) -> str:
    """As long as the human text at most: the last token's state tells the length of a text, too."""
    return " ".join(text.split()[:HUMAN_WORDS])


def _passages(path: Path | None) -> Iterator[tuple[str, list[str]]]:
    """(name, words) of every passage that is long enough for a prompt and a human continuation."""
    enough = PROMPT_WORDS + HUMAN_WORDS
    if path is not None:
        for number, paragraph in enumerate(read_text(path).split("\n\n"), 1):
            if len(words := paragraph.split()) >= enough:
                yield f"{path.name}/{number}", words
        return
    # Paragraphs of docstrings are short; those of one file are read on until there are enough words.
    current, words, given = "", [], 0
    for name, paragraph in prose():
        if name != current:
            current, words = name, []
        if len(words) < enough:
            words = words + paragraph.split()
            if len(words) >= enough:
                yield name, words
                given += 1
                if given == STANDARD:
                    return


SUITE = Repetition
