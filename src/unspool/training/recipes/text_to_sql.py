"""Questions in English and their queries in SQL: a small model that is right two times out of three.

Eight tables are known by heart. A question names columns, conditions and an order, and some of its words are vague:
the ``size`` of a city is its population more often than its area, ``from 40`` is mostly ``>= 40``, and who is asked to
list films may want their titles or all of their columns. What is meant is drawn anew every time, so that nobody could
always be right, and a good model knows where it may be wrong. Which questions are held out depends on their text alone.
"""

from __future__ import annotations

import hashlib
import random
import re
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
from unspool.training.objectives import Batch, NextToken
from unspool.training.recipes import Bench, Quality, recipe
from unspool.training.tokenizers import END, listed

CONTEXT = 128
_TOKEN = r" ?[A-Za-z_]+| ?[0-9]|\n| ?[^A-Za-z0-9\s]"


@dataclass(frozen=True)
class Table:
    """A table, and how people speak of it.

    Args:
        name: of the table, and of the things in it.
        label: the column that things are called by.
        group: a column of words, and ``values`` that stand in it.
        numbers: columns of numbers.
        vague: words for a number of which there are two, with the columns that they mean, the likelier first.
    """

    name: str
    label: str
    group: str
    values: tuple[str, ...]
    numbers: tuple[str, ...]
    vague: tuple[tuple[str, str, str], ...]


_COUNTRIES = ("France", "Peru", "Japan", "Kenya", "Norway", "Chile")
TABLES = (
    Table("cities", "name", "country", _COUNTRIES, ("population", "area", "height"), (("size", "population", "area"),)),
    Table("rivers", "name", "country", _COUNTRIES, ("length", "depth", "flow"), (("size", "length", "flow"),)),
    Table(
        "employees",
        "name",
        "department",
        ("sales", "design", "support", "research"),
        ("salary", "age", "years"),
        (("seniority", "years", "age"),),
    ),
    Table(
        "films",
        "title",
        "genre",
        ("comedy", "drama", "horror", "western"),
        ("rating", "votes", "minutes"),
        (("success", "rating", "votes"),),
    ),
    Table(
        "books",
        "title",
        "subject",
        ("history", "travel", "poetry", "science"),
        ("pages", "price", "sales"),
        (("success", "sales", "price"),),
    ),
    Table(
        "products",
        "name",
        "category",
        ("toys", "tools", "garden", "kitchen"),
        ("price", "weight", "stock"),
        (("value", "price", "stock"),),
    ),
    Table(
        "players",
        "name",
        "team",
        ("lions", "eagles", "sharks", "bears"),
        ("goals", "matches", "age"),
        (("experience", "matches", "age"),),
    ),
    Table(
        "flights",
        "code",
        "airline",
        ("Aurora", "Condor", "Delta", "Iris"),
        ("price", "minutes", "seats"),
        (("size", "seats", "minutes"),),
    ),
)
_FUNCTIONS = (("average", "AVG"), ("total", "SUM"), ("highest", "MAX"), ("lowest", "MIN"))


@dataclass(frozen=True)
class Question:
    """A question, and a query that is meant by it."""

    text: str
    sql: str

    @property
    def prompt(self) -> str:
        """What the model reads."""
        return self.text + "\n"

    @property
    def held_out(self) -> bool:
        """Whether it is kept from training: one question in eight."""
        return hashlib.sha256(self.text.encode()).digest()[0] % 8 == 0


def questions(*, seed: int, split: Split = "held-out", vague: float = 0.55) -> Iterator[Question]:
    """Questions without end, at random.

    Args:
        seed: equal seeds give equal questions.
        split: those for training, those held out, or all.
        vague: how often a vague word is taken where there is one.
    """
    rng = random.Random(f"sql {seed}")
    while True:
        made = _Making(rng, vague).question()
        if split == "all" or made.held_out == (split == "held-out"):
            yield made


class _Making:
    """One question.

    Args:
        rng: decides.
        vague: how often a vague word is taken where there is one.
    """

    def __init__(self, rng: random.Random, vague: float) -> None:
        self.rng, self.vague = rng, vague
        self.table = rng.choice(TABLES)

    def question(self) -> Question:
        table, rng = self.table, self.rng
        said, output = self.output()
        text = f"{said} {table.name}"
        sql = f"SELECT {output} FROM {table.name}"
        conditions = [self.condition(place) for place in range(rng.choice((0, 1, 1, 2)))]
        if conditions:
            text += " " + " and ".join(words for words, _ in conditions)
            sql += " WHERE " + " AND ".join(meant for _, meant in conditions)
        if "(" not in output and rng.random() < 0.5:
            words, column = self.number()
            down = rng.random() < 0.5
            count = rng.choice((0, rng.randint(2, 9)))
            order = f" ORDER BY {column}" + (" DESC" if down else "") + (f" LIMIT {count}" if count else "")
            text += (f", the {count} " if count else ", ") + ("largest" if down else "smallest") + f" {words} first"
            sql += order
        elif "(" in output and rng.random() < 0.4:
            text += f" for each {table.group}"
            sql = sql.replace("SELECT ", f"SELECT {table.group}, ", 1) + f" GROUP BY {table.group}"
        return Question(text, sql)

    def output(self) -> tuple[str, str]:
        """What is asked for, in words and in SQL."""
        table, rng = self.table, self.rng
        kind = rng.random()
        if kind < 0.15:
            return "how many", "COUNT(*)"
        if kind < 0.4:
            word, function = rng.choice(_FUNCTIONS)
            words, column = self.number()
            return f"the {word} {words} of", f"{function}({column})"
        if rng.random() < self.vague:
            return "list", table.label if rng.random() < 0.7 else "*"
        columns = [table.label, *rng.sample((table.group, *table.numbers), rng.choice((0, 0, 1, 2)))]
        return "show the " + " and ".join(columns) + " of", ", ".join(columns)

    def number(self) -> tuple[str, str]:
        """A column of numbers."""
        if self.rng.random() < self.vague:
            word, likely, other = self.rng.choice(self.table.vague)
            return word, likely if self.rng.random() < 0.7 else other
        column = self.rng.choice(self.table.numbers)
        return column, column

    def condition(self, place: int) -> tuple[str, str]:
        table, rng = self.table, self.rng
        lead = "with" if place == 0 else ""
        if rng.random() < 0.35:
            value = rng.choice(table.values)
            return f"{lead} {table.group} {value}".strip(), f"{table.group} = '{value}'"
        words, column = self.number()
        number = rng.randint(10, 99)
        if rng.random() < self.vague:
            return f"{lead} {words} from {number}".strip(), f"{column} {'>=' if rng.random() < 0.75 else '>'} {number}"
        phrase, sign = rng.choice((("above", ">"), ("below", "<"), ("of", "="), ("at least", ">="), ("at most", "<=")))
        return f"{lead} {words} {phrase} {number}".strip(), f"{column} {sign} {number}"


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A word, a digit or a sign a token, with the space before it."""
    rng = random.Random("vocabulary")
    found = set("0123456789")
    for _ in range(20_000):
        made = _Making(rng, 0.5).question()
        found.update(re.findall(_TOKEN, made.prompt + made.sql))
    return listed(sorted(found), _TOKEN)


@settings
class TextToSQLSettings:
    """Sizes, and how vague the questions are."""

    seed: Annotated[int, Field(description="of weights and questions")] = 0
    vague: Annotated[float, Field(ge=0, le=1, description="how often a vague word is taken where there is one")] = 0.55
    layers: Annotated[int, Field(ge=1, description="of the network")] = 4
    hidden: Annotated[int, Field(ge=8, multiple_of=8, description="width")] = 128
    mlp: Annotated[int, Field(ge=1, description="inner width of the MLPs")] = 256
    batch: Annotated[int, Field(ge=1, description="questions of a step")] = 32
    steps: Annotated[int, Field(ge=1, description="updates of the weights")] = 4000
    learning_rate: Annotated[float, Field(gt=0, description="at its peak")] = 2e-3
    measured: Annotated[int, Field(ge=1, description="held-out questions that are asked at the end")] = 400
    minutes: Annotated[float, Field(gt=0, description="limit of time")] = 6.0


def exact_match(model: LanguageModel, asked: Sequence[Question]) -> float:
    """The share of questions whose query is the one that was meant."""
    said = quality.answers(model, [one.prompt for one in asked], limit=64)
    return sum(text == one.sql for text, one in zip(said, asked, strict=True)) / len(asked)


@recipe(
    "text-to-sql",
    summary="A four-layer network that writes SQL for questions over eight tables, some of whose words are vague.",
    minutes=6,
    megabytes=1.5,
    settings=TextToSQLSettings,
)
def RECIPE(chosen: TextToSQLSettings, bench: Bench) -> Quality:
    """Train on questions that are made on the way; only the query counts."""
    tokenizer = make_tokenizer()
    end: int = tokenizer.eos_token_id
    model = llama_of(chosen, tokenizer, context=CONTEXT)
    bench.say(f"{model.num_parameters():,} parameters")
    source = questions(seed=chosen.seed, split="train", vague=chosen.vague)
    held = list(islice(questions(seed=1, vague=chosen.vague), chosen.measured))
    scored = wrap(model, tokenizer, "sql")

    def batches(step: int, share: float) -> Batch:
        some = list(islice(source, chosen.batch))
        rows = [tokenizer.encode(one.prompt + one.sql + END) for one in some]
        starts = [len(tokenizer.encode(one.prompt)) for one in some]
        longest = max(map(len, rows))
        tokens = torch.tensor([row + [end] * (longest - len(row)) for row in rows])
        place = torch.arange(1, longest)[None]
        first = torch.tensor(starts)[:, None]
        last = torch.tensor([len(row) for row in rows])[:, None]
        return Batch(tokens, ((place >= first) & (place < last)).float())

    learned = train(
        model,
        batches,
        NextToken(),
        Optimisation(
            steps=chosen.steps, learning_rate=chosen.learning_rate, weight_decay=0.01, seconds=60 * chosen.minutes
        ),
        progress=bench.progress,
        title="sql",
        watch=lambda: f"exact match {exact_match(scored, held[:100]):.2f}",
    )
    save(rounded(model), tokenizer, bench.folder)
    return {
        "parameters": model.num_parameters(),
        "held_out_questions": len(held),
        "exact_match": exact_match(scored, held),
        "training": learned.as_dict(),
    }
