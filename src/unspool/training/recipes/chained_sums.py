"""Chained addition with its steps spelled out: a small model that answers by way of a rationale.

A problem is ``3+5+2+9+4+7=`` and a line end; the rationale adds one number a line (``03+5=08``), and the answer
follows as ``answer: 30``. All has a fixed width, one character a token. Which problems are held out
depends on the problem alone.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Annotated

import torch
from pydantic import Field
from transformers import PreTrainedTokenizerFast

from unspool.core.cards import settings
from unspool.core.model import LanguageModel
from unspool.models.load import wrap
from unspool.training import quality
from unspool.training.corpora import Split
from unspool.training.loop import Optimisation, train
from unspool.training.networks import llama_of, rounded, save
from unspool.training.objectives import Batch, NextToken, Objective
from unspool.training.recipes import Bench, Quality, recipe
from unspool.training.tokenizers import END, listed

CONTEXT = 256
TRIGGER = "answer: "
_ALPHABET = "0123456789+=\nanswer: "


@dataclass(frozen=True)
class Problem:
    """Numbers to add, and the texts that go with them."""

    terms: tuple[int, ...]

    @property
    def question(self) -> str:
        """The prompt."""
        return "+".join(map(str, self.terms)) + "=\n"

    @property
    def rationale(self) -> str:
        """One line for each addition."""
        total, lines = self.terms[0], []
        for term in self.terms[1:]:
            lines.append(f"{total:02}+{term}={total + term:02}\n")
            total += term
        return "".join(lines)

    @property
    def answer(self) -> str:
        """What follows :data:`TRIGGER`."""
        return f"{sum(self.terms):02}"

    @property
    def text(self) -> str:
        """All of it, without the end token."""
        return self.question + self.rationale + TRIGGER + self.answer + "\n"

    @property
    def held_out(self) -> bool:
        """Whether it is kept from training: one problem in eight."""
        return hashlib.sha256(self.question.encode()).digest()[0] % 8 == 0


def problems(*, seed: int, split: Split = "held-out", steps: int = 5, digit: int = 9) -> Iterator[Problem]:
    """Problems without end, at random.

    Args:
        seed: equal seeds give equal problems.
        split: those for training, those held out, or all.
        steps: additions of a problem.
        digit: the largest number to add; the smallest is 1.
    """
    rng = random.Random(f"sums {seed}")
    while True:
        problem = Problem(tuple(rng.randint(1, digit) for _ in range(steps + 1)))
        if split == "all" or problem.held_out == (split == "held-out"):
            yield problem


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character."""
    return listed(list(dict.fromkeys(_ALPHABET)), r"[\s\S]")


@settings
class ChainedSumsSettings:
    """Sizes, and how hard the problems are."""

    seed: Annotated[int, Field(description="of weights and problems")] = 0
    additions: Annotated[int, Field(ge=1, le=10, description="of a problem")] = 5
    digit: Annotated[int, Field(ge=1, le=9, description="the largest number to add")] = 9
    layers: Annotated[int, Field(ge=1, description="of the network")] = 4
    hidden: Annotated[int, Field(ge=8, multiple_of=8, description="width")] = 128
    mlp: Annotated[int, Field(ge=1, description="inner width of the MLPs")] = 256
    batch: Annotated[int, Field(ge=1, description="problems of a step")] = 16
    steps: Annotated[int, Field(ge=1, description="updates of the weights")] = 2500
    learning_rate: Annotated[float, Field(gt=0, description="at its peak")] = 2e-3
    measured: Annotated[int, Field(ge=1, description="held-out problems that are asked at the end")] = 400
    minutes: Annotated[float, Field(gt=0, description="limit of time")] = 6.0


def exact_answers(model: LanguageModel, asked: Sequence[Problem]) -> tuple[float, float]:
    """Decode greedily, and compare with the truth.

    Returns:
        The share of problems whose answer is right, and of those that are right to the last character as well.
    """
    said = quality.answers(model, [problem.question for problem in asked], limit=max(len(p.text) for p in asked))
    pairs = list(zip(said, asked, strict=True))
    answers = sum(text.partition(TRIGGER)[2].strip() == problem.answer for text, problem in pairs)
    texts = sum(problem.question + text == problem.text for text, problem in pairs)
    return answers / len(asked), texts / len(asked)


@recipe(
    "chained-sums",
    summary="A four-layer network that adds six numbers step by step, and then says the answer.",
    minutes=6,
    megabytes=1.4,
    settings=ChainedSumsSettings,
)
def RECIPE(chosen: ChainedSumsSettings, bench: Bench) -> Quality:
    """Train on problems that are made on the way; only what follows the question counts."""
    return learn(chosen, bench, NextToken())


def learn(chosen: ChainedSumsSettings, bench: Bench, objective: Objective) -> Quality:
    """Train a network on sums, and measure its answers.

    Args:
        objective: its batches are problems of one length, those predictions weighted 0 that lie in the question.
    """
    tokenizer = make_tokenizer()
    model = llama_of(chosen, tokenizer, context=CONTEXT)
    bench.say(f"{model.num_parameters():,} parameters")
    source = problems(seed=chosen.seed, split="train", steps=chosen.additions, digit=chosen.digit)
    held = list(islice(problems(seed=1, steps=chosen.additions, digit=chosen.digit), chosen.measured))
    scored = wrap(model, tokenizer, "sums")

    def batches(step: int, share: float) -> Batch:
        some = list(islice(source, chosen.batch))
        tokens = torch.tensor([tokenizer.encode(problem.text + END) for problem in some])
        weights = torch.ones(tokens.shape[0], tokens.shape[1] - 1)
        weights[:, : len(some[0].question) - 1] = 0
        return Batch(tokens, weights)

    learned = train(
        model,
        batches,
        objective,
        Optimisation(
            steps=chosen.steps, learning_rate=chosen.learning_rate, weight_decay=0.01, seconds=60 * chosen.minutes
        ),
        progress=bench.progress,
        title="sums",
        watch=lambda: "answers {:.2f}, texts {:.2f}".format(*exact_answers(scored, held[:32])),
    )
    save(rounded(model), tokenizer, bench.folder)
    answers, texts = exact_answers(scored, held)
    return {
        "parameters": model.num_parameters(),
        "held_out_problems": len(held),
        "exact_answers": answers,
        "exact_texts": texts,
        "training": learned.as_dict(),
    }
