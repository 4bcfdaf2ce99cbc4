"""A suite of the user's own: a JSON Lines file.

One object a line, with the fields of Spec-Bench, and fields that say how an answer is judged:

===================  ==================================================================================================
field                meaning
===================  ==================================================================================================
``question_id``      number or text, unique in the file
``category``         a word; summaries are made over each (``all`` if left out)
``turns``            list of texts, what the user says in turn
``tests``            statements, or a list of them, that fail if the answer, a Python program, is wrong: ``pass@k``
``entry_point``      with ``tests``: the name that the program must define; chooses among several blocks of code
``answer``           a number (or a text that ends in ``#### number``): ``exact_match`` of the final number; a text or a
                     list of texts: ``contains_answer``, ``f1``
``reference``        a text or a list of texts: ``rouge1``, ``rouge2``, ``rougeL``, ``chrf``, and ``bleu`` over the set
``schema``           a JSON schema: ``valid``, ``json``
``max_new_tokens``   of each turn (256)
``stop``             strings that end a turn
``chat``             ``true``, ``false``; left out: through the chat template if the model has one
===================  ==================================================================================================

Several of ``tests``, ``answer``, ``reference`` and ``schema`` may stand in one line; the first turn's answer is judged.
Further fields are ignored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from unspool.core.errors import InvalidInput
from unspool.evaluation import scoring
from unspool.evaluation.answering import Answer
from unspool.evaluation.extraction import program
from unspool.evaluation.suites import Item, Judged
from unspool.evaluation.suites._data import anything, field, read_records
from unspool.evaluation.suites._programs import CodeSuite
from unspool.evaluation.suites._references import TextSuite

_A_NUMBER = re.compile(r"\s*-?\$?[\d,]*\.?\d+\s*%?\s*")


class FileSuite(TextSuite):
    """See the module.

    Args:
        path: of the file; by default what ``--data`` names.
    """

    name = "file"
    summary = "a JSON Lines file of your own (its path is the SUITE); its fields choose the measures"
    metrics: ClassVar[tuple[str, ...]] = ("pass@1", "pass@10", "pass@100", "valid", "json", *TextSuite.metrics)

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._programs = _Programs()

    def load(self, data: Path | None = None) -> list[Item]:
        path = self._path or data
        if path is None:
            raise InvalidInput("the suite 'file' needs a file: give its path as SUITE, or --data PATH")
        if not path.is_file():
            raise InvalidInput(f"{path}: there is no such file")
        items = [_item(where, record) for where, record in read_records(path)]
        seen: set[str] = set()
        for item in items:
            if item.id in seen:
                raise InvalidInput(f"{path}: the question_id {item.id!r} occurs twice")
            seen.add(item.id)
        return items

    def judge(self, item: Item, answer: Answer) -> dict[str, float]:
        scores = super().judge(item, answer)
        if item.data.get("schema") is not None:
            scores |= scoring.json_validity(answer.text, item.data["schema"])
        return scores

    def judge_all(
        self, judged: Sequence[Judged], on_done: Callable[[int], None] | None = None
    ) -> list[dict[str, float]]:
        coded = [place for place, one in enumerate(judged) if one.item.data.get("tests")]
        others = [place for place in range(len(judged)) if place not in set(coded)]
        scores = [self.judge(one.item, one.answer) for one in judged]
        for place in others if on_done is not None else ():
            assert on_done is not None
            on_done(place)
        if coded:
            told = None if on_done is None else lambda place: on_done(coded[place])
            for place, passed in zip(coded, self._programs.judge_all([judged[p] for p in coded], told), strict=True):
                scores[place] |= passed
        return scores

    def notes(self) -> list[str]:
        return self._programs.notes()

    def over_samples(self, scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
        found = super().over_samples(scores)
        if found.pop("passed", None) is not None:
            found |= self._programs.over_samples(scores)
        return found


class _Programs(CodeSuite):
    name = "file"
    summary = ""

    def source(self, item: Item, answer: str) -> str:
        return program(answer, item.data.get("entry_point"))

    def tests(self, item: Item) -> str:
        return str(item.data["tests"])


def _item(where: str, record: dict[str, Any]) -> Item:
    turns = field(record, "turns", list, where, lambda value: value and all(isinstance(t, str) and t for t in value))
    stop = _texts(record, "stop", where)
    most = record.get("max_new_tokens", 256)
    if not isinstance(most, int) or most < 1:
        raise InvalidInput(f"{where}: 'max_new_tokens' is {most!r}; it must be a whole number from 1 on")
    chat = record.get("chat")
    if not (chat is None or isinstance(chat, bool)):
        raise InvalidInput(f"{where}: 'chat' is {chat!r}; it must be true or false")
    schema = record.get("schema")
    if schema is not None and not isinstance(schema, dict | bool):
        raise InvalidInput(f"{where}: 'schema' must be an object")
    data: dict[str, Any] = {"entry_point": record.get("entry_point"), "schema": schema}
    if tests := _texts(record, "tests", where):
        data["tests"] = "\n".join(tests) + "\n"
    if references := _texts(record, "reference", where):
        data["references"] = list(references)
    data |= _answer(record, where)
    return Item(
        str(field(record, "question_id", (str, int), where, anything)),
        str(record.get("category", "all")),
        tuple(turns),
        chat,
        most,
        stop,
        data,
    )


def _answer(record: Mapping[str, Any], where: str) -> dict[str, Any]:
    answer = record.get("answer")
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        return {"number": str(answer)}
    if isinstance(answer, str) and (_A_NUMBER.fullmatch(answer) or "####" in answer):
        return {"number": answer}
    texts = _texts(record, "answer", where)
    return {"answers": list(texts)} if texts else {}


def _texts(record: Mapping[str, Any], name: str, where: str) -> tuple[str, ...]:
    """A field that is a text, a list of texts, or not there."""
    value = record.get(name)
    if value is None:
        return ()
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not values or not all(isinstance(one, str) and one for one in values):
        raise InvalidInput(f"{where}: {name!r} must be a text or a list of texts, none of them empty")
    return tuple(values)


SUITE = FileSuite
