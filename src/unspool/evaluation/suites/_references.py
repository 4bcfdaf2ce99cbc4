"""Suites of free text, some of it with references: each field of an item chooses the measures of its answers.

======================  ==========================================================================================
field of ``Item.data``  measures
======================  ==========================================================================================
``answers``             texts of which one is right: ``contains_answer``, ``f1``
``number``              a text that ends in the right number: ``exact_match``
``references``          texts to be near to: ``rouge1``, ``rouge2``, ``rougeL``, ``chrf``, and over the set ``bleu``
======================  ==========================================================================================

Every answer also gets the measures of repetition.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import ClassVar

from unspool.evaluation import scoring
from unspool.evaluation.answering import Answer
from unspool.evaluation.suites import Features, Item, Judged, Suite

REPETITION = ("rep-2", "rep-3", "rep-4", "diversity")
REFERENCE = ("exact_match", "contains_answer", "f1", "rouge1", "rouge2", "rougeL", "chrf")


class TextSuite(Suite):
    """Judges by what the items bring along."""

    metrics: ClassVar[tuple[str, ...]] = (*REFERENCE, "bleu", *REPETITION, "distinct-1", "distinct-2", "distinct-3")

    def judge(self, item: Item, answer: Answer) -> dict[str, float]:
        return {**near(item, answer.text), **repetition(answer)}

    def over_items(
        self, judged: Sequence[Judged], features: Features | None = None
    ) -> dict[str, Callable[[Sequence[int]], float]]:
        return {**variety(judged), **corpus(judged)}


def near(item: Item, text: str) -> dict[str, float]:
    """Scores against what the item says is right."""
    data = item.data
    scores: dict[str, float] = {}
    if data.get("number") is not None:
        scores["exact_match"] = scoring.same_number(text, data["number"])
    if data.get("answers"):
        scores["contains_answer"] = scoring.contains_answer(text, data["answers"])
        scores["f1"] = scoring.token_f1(text, data["answers"])
    if data.get("references"):
        scores |= scoring.rouge(text, data["references"])
        scores["chrf"] = scoring.sentence_chrf(text, data["references"])
    return scores


def repetition(answer: Answer) -> dict[str, float]:
    """``rep-n`` and ``diversity`` of an answer, over words and marks, all turns together; nothing if there are none."""
    from unspool.evaluation.metrics import diversity, rep_n

    units = units_of(answer)
    if not units:
        return {}
    return {**{f"rep-{n}": rep_n(units, n) for n in (2, 3, 4)}, "diversity": diversity(units)}


class Distinct:
    """``distinct-n`` of a set of texts, given as their units; fast without each of them."""

    def __init__(self, texts: Sequence[Sequence[str]], n: int) -> None:
        self._texts, self._n = texts, n

    def __call__(self, chosen: Sequence[int]) -> float:
        from unspool.evaluation.metrics import distinct_n

        return distinct_n([self._texts[place] for place in chosen], self._n)

    def without(self) -> list[float]:
        from unspool.evaluation.metrics import ngrams

        grams = [ngrams(text, self._n) for text in self._texts]
        holders = Counter(gram for own in grams for gram in set(own))
        total = sum(map(len, grams))
        found = []
        for own in grams:
            alone = sum(holders[gram] == 1 for gram in set(own))
            rest = total - len(own)
            found.append((len(holders) - alone) / rest if rest else 0.0)
        return found


def variety(judged: Sequence[Judged]) -> dict[str, Callable[[Sequence[int]], float]]:
    """``distinct-n`` over a set of answers."""
    units = [units_of(one.answer) for one in judged]
    return {f"distinct-{n}": Distinct(units, n) for n in (1, 2, 3)} if any(units) else {}


def corpus(judged: Sequence[Judged]) -> dict[str, Callable[[Sequence[int]], float]]:
    """BLEU over those answers of a set that have references."""
    references = [one.item.data.get("references") or () for one in judged]
    if not any(references):
        return {}
    return {"bleu": scoring.corpus_bleu([one.answer.text for one in judged], references)}


def units_of(answer: Answer) -> list[str]:
    """Words and marks of all turns, in order."""
    return [word for text in answer.texts for word in scoring.words(text)]
