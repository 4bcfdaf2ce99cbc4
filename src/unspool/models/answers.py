"""What a model answered, recorded: pairs of token ids in a small file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from unspool.core.errors import WeightsError
from unspool.models.storage import write_whole


@dataclass(frozen=True)
class Answer:
    """Token ids of a prompt, and of what a model answered (a stop token included)."""

    prompt: list[int]
    answer: list[int]


def write_answers(answers: Iterable[Answer], path: Path) -> None:
    """Keep answers as three int32 arrays: ``tokens`` (all texts, prompt and answer), ``offsets`` [N + 1] of the texts
    in it, ``prompts`` [N], the length of each text's prompt."""
    whole = list(answers)
    texts = [answer.prompt + answer.answer for answer in whole]
    arrays = {
        "tokens": np.array([token for text in texts for token in text], np.int32),
        "offsets": np.cumsum([0, *map(len, texts)], dtype=np.int32),
        "prompts": np.array([len(answer.prompt) for answer in whole], np.int32),
    }
    write_whole(path, safetensors.numpy.save(arrays))


def read_answers(path: Path) -> list[Answer]:
    """What :func:`write_answers` wrote.

    Raises:
        WeightsError: if the file is not there, or damaged.
    """
    try:
        arrays = safetensors.numpy.load_file(path)
        tokens, offsets, prompts = (arrays[name].tolist() for name in ("tokens", "offsets", "prompts"))
    except (OSError, KeyError, safetensors.SafetensorError) as error:
        raise WeightsError(f"{path} holds no answers of a model, or is damaged: {error}") from error
    return [
        Answer(tokens[start : start + length], tokens[start + length : end])
        for start, end, length in zip(offsets[:-1], offsets[1:], prompts, strict=True)
    ]
