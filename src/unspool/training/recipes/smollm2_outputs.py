"""SmolLM2's own answers to a few hundred prompts, as token files: what a model is likely to say.

The prompts are made from templates over topics, programming tasks and docstrings of the standard library; none of them
is among the prompts that evaluation asks. ``greedy.safetensors`` holds the answers of greedy decoding,
``sampled.safetensors`` answers at temperature 1 to some of the prompts; both are read by
:func:`unspool.models.answers.read_answers`.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from unspool.core.cards import settings
from unspool.core.decode import Greedy, decode
from unspool.core.events import Finished
from unspool.core.model import LanguageModel
from unspool.core.sockets import Sampler
from unspool.core.texts import Stop
from unspool.models.answers import Answer, read_answers, write_answers
from unspool.models.catalogue import CATALOGUE
from unspool.models.load import load_model
from unspool.sampling.standard import SamplingSettings, StandardSampler
from unspool.training import corpora
from unspool.training.recipes import Bench, Quality, recipe

BASE = "smollm2-135m"

_QUESTIONS = (
    "What is {}? Explain it in simple words.",
    "Give me five interesting facts about {}.",
    "Write a short paragraph about {} for a school newspaper.",
    "Why is {} important? Name three reasons.",
    "How would you introduce {} to someone who has never heard of it?",
    "Write a short dialogue between two friends about {}.",
)
_TOPICS = (
    "photosynthesis", "the Roman Empire", "bicycle repair", "volcanoes", "the water cycle", "jazz music", "beekeeping",
    "the human heart", "sailing boats", "chess openings", "the moon landing", "bread baking", "whales", "the internet",
    "earthquakes", "solar panels", "public libraries", "the Silk Road", "coral reefs", "gardening in winter",
    "the periodic table", "football", "mountain climbing", "ancient Egypt", "tea", "dreams", "electric cars",
    "glaciers", "the French Revolution", "oil painting", "recycling", "the immune system", "bridges", "penguins",
    "inflation",
)  # fmt: skip
_REQUESTS = (
    "Write a Python function that {}.",
    "Show me how to write a program in Python that {}. Add comments.",
    "I need a small Python helper that {}. Include an example of its use.",
)
_TASKS = (
    "computes the factorial of a number", "reverses the words of a sentence", "checks whether a year is a leap year",
    "finds the longest word in a list", "removes duplicates from a list and keeps the order",
    "sorts a dictionary by value",
    "counts the vowels of a string", "converts a decimal number to binary", "computes the Fibonacci sequence",
    "rotates a list by k places", "checks whether two strings are anagrams", "sums the digits of an integer",
    "reads a JSON file and prints its keys", "validates an email address", "computes the median of a list",
    "generates a random password", "finds all files with a given extension", "multiplies two matrices",
    "computes compound interest", "implements bubble sort", "measures how long a function takes",
    "splits a text into sentences", "capitalises every word of a title", "finds the intersection of two sets",
    "draws a triangle of stars", "parses a date in the form YYYY-MM-DD", "keeps a running average of numbers",
    "replaces tabs by spaces in a file", "zips two lists into a dictionary", "computes the distance of two strings",
)  # fmt: skip
_DOCUMENTED = (
    "Summarise this documentation in one or two sentences:\n\n{}",
    "Explain to a beginner what this part of a documentation means:\n\n{}",
)


@settings
class Smollm2OutputsSettings:
    """How many, how long."""

    seed: Annotated[int, Field(description="of the order of the prompts, and of the sampled answers")] = 0
    prompts: Annotated[int, Field(ge=2, description="answered greedily")] = 240
    sampled: Annotated[int, Field(ge=2, description="of these, answered at temperature 1 as well")] = 64
    new_tokens: Annotated[int, Field(ge=1, description="of an answer, at most")] = 96
    batch: Annotated[int, Field(ge=1, description="answered at the same time")] = 16


def prompts(count: int, seed: int = 0) -> list[str]:
    """Questions, requests for code and documentation to summarise, a third each, in a mixed order.

    Every topic, task and docstring occurs with different templates, so that a longer list begins with the shorter one.
    """
    rng = random.Random(seed)

    def mixed(templates: tuple[str, ...], subjects: list[str]) -> Iterator[str]:
        for turn in range(len(templates)):
            rng.shuffle(subjects)
            for place, subject in enumerate(subjects):
                yield templates[(place + turn) % len(templates)].format(subject)

    documents = [d.text for d in corpora.docstrings("train", least=200)]
    rng.shuffle(documents)
    kinds = [
        mixed(_QUESTIONS, list(_TOPICS)),
        mixed(_REQUESTS, list(_TASKS)),
        mixed(_DOCUMENTED, [text[:400].rsplit(None, 1)[0] for text in documents[: max(count, 1)]]),
    ]
    found: dict[str, None] = {}
    while len(found) < count and kinds:
        for kind in list(kinds):
            text = next(kind, None)
            if text is None:
                kinds.remove(kind)
            elif len(found) < count:
                found[text] = None
    return list(found)


@recipe(
    "smollm2-outputs",
    summary="Answers of SmolLM2-135M to 240 prompts of its own, greedy and sampled, as token files.",
    minutes=12,
    megabytes=0.3,
    settings=Smollm2OutputsSettings,
    data=lambda chosen: hashlib.sha256(
        json.dumps([CATALOGUE[BASE].gguf_sha256, prompts(chosen.prompts, chosen.seed)]).encode()
    ).hexdigest(),
)
def RECIPE(chosen: Smollm2OutputsSettings, bench: Bench) -> Quality:
    """Ask in batches; finished batches are kept, so that an interrupted run goes on where it stopped."""
    model = load_model(BASE, device="cpu", progress=False)
    assert model.tokenizer is not None
    asked = [model.tokenizer.chat([{"role": "user", "content": text}]) for text in prompts(chosen.prompts, chosen.seed)]
    quality: Quality = {}
    for name, some in (("greedy", asked), ("sampled", asked[: chosen.sampled])):
        answers: list[Answer] = []
        for number, start in enumerate(range(0, len(some), chosen.batch)):
            piece = bench.pieces / f"{name}-{number}.safetensors"
            if not piece.is_file():
                sampler: Sampler = Greedy()
                if name == "sampled":
                    sampler = StandardSampler(SamplingSettings(temperature=1.0))
                group = some[start : start + chosen.batch]
                write_answers(_ask(model, group, chosen.new_tokens, sampler, chosen.seed + number), piece)
            answers += read_answers(piece)
            bench.say(f"{name}: {len(answers)} of {len(some)} prompts answered")
        write_answers(answers, bench.folder / f"{name}.safetensors")
        quality[name] = {
            "answers": len(answers),
            "prompt_tokens": sum(len(answer.prompt) for answer in answers),
            "answer_tokens": sum(len(answer.answer) for answer in answers),
            "ended_by_themselves": sum(answer.answer[-1] in model.stop_tokens for answer in answers),
        }
    return quality


def _ask(
    model: LanguageModel, asked: list[list[int]], new_tokens: int, sampler: Sampler, seed: int
) -> Iterator[Answer]:
    """The answers to a batch, in the order of the prompts."""
    done: dict[int, Finished] = {}
    for event in decode(model, asked, sampler=sampler, stop=Stop(new_tokens), seed=seed):
        if isinstance(event, Finished):
            done[event.index] = event
    yield from (Answer(asked[index], list(done[index].tokens)) for index in range(len(asked)))
