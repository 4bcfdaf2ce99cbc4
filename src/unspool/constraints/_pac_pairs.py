"""Calibration pairs out of a file of JSON lines: prompts that are to be answered, or outputs that are there."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unspool.constraints._files import read_text
from unspool.constraints._pac_calibration import Pair
from unspool.core.errors import InvalidInput


@dataclass(frozen=True)
class Question:
    """A prompt that the model has to answer, as text or as messages, and the true program."""

    prompt: str | list[dict[str, Any]]
    reference: str


def read_pairs(path: Path, option: str = "--data") -> list[Question | Pair]:
    """The pairs of a file. A line is an object with ``reference`` and either

    - ``prompt`` (text) or ``messages``, which the model is asked; or
    - ``tokens`` (their texts, which make up the output) and ``logprobs`` (of each, in nats).

    Raises:
        InvalidInput: if it cannot be read, holds nothing, or a line is none of these; it names the line.
    """
    found: list[Question | Pair] = []
    for number, line in enumerate(read_text(path, option).splitlines(), 1):
        if not line.strip():
            continue
        where = f"{option} {path}, line {number}"
        try:
            told = json.loads(line)
        except ValueError as error:
            raise InvalidInput(f"{where} is not JSON: {error}") from error
        if not isinstance(told, dict) or not isinstance(told.get("reference"), str):
            raise InvalidInput(f'{where} has no text "reference", the program that should have been written')
        found.append(_written(told, where) if "tokens" in told else _asked(told, where))
    if not found:
        raise InvalidInput(f"{option} {path} holds no pairs")
    return found


def _asked(told: dict[str, Any], where: str) -> Question:
    prompt, messages = told.get("prompt"), told.get("messages")
    if isinstance(prompt, str) and prompt:
        return Question(prompt, told["reference"])
    if isinstance(messages, list) and messages:
        return Question(messages, told["reference"])
    raise InvalidInput(f'{where} has neither a "prompt" nor "messages", nor "tokens" with "logprobs"')


def _written(told: dict[str, Any], where: str) -> Pair:
    tokens, values = told["tokens"], told.get("logprobs")
    if not (isinstance(tokens, list) and all(isinstance(token, str) for token in tokens)):
        raise InvalidInput(f'{where}: "tokens" is no list of texts')
    numbers = isinstance(values, list) and all(
        isinstance(value, int | float) and not isinstance(value, bool) and value <= 0 for value in values
    )
    if not isinstance(values, list) or not numbers or len(values) != len(tokens):
        raise InvalidInput(f'{where}: "logprobs" is no list of {len(tokens)} numbers of at most 0, one for each token')
    spans, at = [], 0
    for token in tokens:
        spans.append((at, at + len(token)))
        at += len(token)
    return Pair("".join(tokens), tuple(spans), tuple(map(float, values)), told["reference"])
