"""Recall of values by their keys, from a text of many lines: a task where losing the wrong line from a cache shows.

A text is a number of lines ``line ab12: REGISTER 483`` and a question ``ask ab12``, whose answer is what that line
says, ``: REGISTER 483``. A line is four tokens, and key and value are one each. The network is trained on texts that
grow longer while it learns, with several questions behind each, and only the answers count. One of its heads begins as
one that looks at the token before.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from unspool.core.cards import settings
from unspool.training import quality
from unspool.training.loop import Optimisation, train
from unspool.training.networks import llama_of, rounded, save
from unspool.training.objectives import Batch, NextToken
from unspool.training.recipes import Bench, Quality, recipe
from unspool.training.tokenizers import listed

CONTEXT = 1024
LINE_TOKENS = 4
LINE, ASK, BREAK = "line ", "ask ", "\n"
WELL = 0.5
"""A loss of an answer, in nats, at which texts may grow."""
_LETTERS = "abcdefghijkmnopqrstuvwxyz"


def keys(count: int) -> list[str]:
    """The first ``count`` names of lines: two letters and two digits, always the same."""
    rng = random.Random(20)
    found: dict[str, None] = {}
    while len(found) < count:
        found[f"{rng.choice(_LETTERS)}{rng.choice(_LETTERS)}{rng.randrange(100):02}"] = None
    return list(found)


def values(count: int) -> list[str]:
    """``count`` values, with numbers of three digits."""
    return [f": REGISTER {100 + 900 * place // count}" for place in range(count)]


@dataclass(frozen=True)
class Retrieval:
    """A text with one question.

    Attributes:
        prompt: the lines and the question, up to where the answer begins.
        answer: the value that is asked for, as one token.
        lines: how many lines there are.
        place: which of them is asked for, from 0.
    """

    prompt: str
    answer: str
    lines: int
    place: int


@settings
class LineRetrievalSettings:
    """Sizes, and how the texts grow."""

    seed: Annotated[int, Field(description="of weights and texts")] = 0
    keys: Annotated[int, Field(ge=2, le=10000, description="names of lines")] = 400
    values: Annotated[int, Field(ge=2, le=900, description="values of lines")] = 200
    most_lines: Annotated[int, Field(ge=2, le=200, description="of a text at the end of the training")] = 180
    layers: Annotated[int, Field(ge=2, description="of the network")] = 2
    hidden: Annotated[int, Field(ge=32, multiple_of=32, description="width")] = 128
    mlp: Annotated[int, Field(ge=1, description="inner width of the MLPs")] = 256
    tokens: Annotated[int, Field(ge=64, description="of a step, about")] = 1536
    steps: Annotated[int, Field(ge=1, description="updates of the weights")] = 1000
    learning_rate: Annotated[float, Field(gt=0, description="at its peak")] = 3e-3
    minutes: Annotated[float, Field(gt=0, description="limit of time")] = 8.0


def problems(
    count: int, lines: int, *, seed: int = 1, settings: LineRetrievalSettings | None = None
) -> list[Retrieval]:
    """Texts with one question each, for measuring. Training draws from other seeds.

    Args:
        count: how many.
        lines: of each; a line is four tokens.
        seed: equal seeds give equal texts.
        settings: of the artefact, where they are not the defaults.
    """
    chosen = settings or LineRetrievalSettings()
    rng, names, numbers = random.Random(f"ask {seed}"), keys(chosen.keys), values(chosen.values)
    found = []
    for _ in range(count):
        said = [(name, rng.choice(numbers)) for name in rng.sample(names, lines)]
        place = rng.randrange(lines)
        text = "".join(LINE + name + value + BREAK for name, value in said)
        found.append(Retrieval(text + ASK + said[place][0], said[place][1], lines, place))
    return found


def make_tokenizer(chosen: LineRetrievalSettings) -> PreTrainedTokenizerFast:
    """One token a word of the task."""
    words = [LINE, ASK, BREAK, *keys(chosen.keys), *values(chosen.values)]
    return listed(words, r"line |ask |: REGISTER \d{3}|[a-z]{2}\d{2}|\n")


class Curriculum:
    """Texts for training, which grow by a twentieth whenever those of now are answered well.

    Args:
        chosen: sizes of the texts.
        tokenizer: of :func:`make_tokenizer`.
    """

    def __init__(self, chosen: LineRetrievalSettings, tokenizer: PreTrainedTokenizerFast) -> None:
        self.chosen = chosen
        self.most = min(8.0, chosen.most_lines)
        self.recent = math.log(chosen.values)
        self.next_token = NextToken()
        self.rng = torch.Generator().manual_seed(chosen.seed + 1)
        self.ids = {word: tokenizer.convert_tokens_to_ids(word) for word in (LINE, ASK, BREAK)}
        self.names = torch.tensor(tokenizer.convert_tokens_to_ids(keys(chosen.keys)))
        self.numbers = torch.tensor(tokenizer.convert_tokens_to_ids(values(chosen.values)))

    def batch(self, step: int, share: float) -> Batch:
        """Texts of one length, with several questions each; the answers alone count."""
        least, most = min(4, int(self.most)), int(self.most)
        lines = int(torch.randint(least, most + 1, (1,), generator=self.rng))
        asks = min(lines, max(8, lines // 4))
        rows = max(self.chosen.tokens // (LINE_TOKENS * (lines + asks)), 1)
        places = torch.rand(rows, len(self.names), generator=self.rng).argsort(1)[:, :lines]
        said = torch.randint(len(self.numbers), (rows, lines), generator=self.rng)
        asked = torch.rand(rows, lines, generator=self.rng).argsort(1)[:, :asks]
        told = self._text(LINE, places, said)
        tokens = torch.cat([told, self._text(ASK, places.gather(1, asked), said.gather(1, asked))], 1)
        weights = torch.zeros(rows, tokens.shape[1] - 1)
        weights[:, told.shape[1] + 1 :: LINE_TOKENS] = 1
        return Batch(tokens, weights)

    def loss(self, model: PreTrainedModel, batch: Batch, share: float) -> Tensor:
        """The next token's; what it is decides how the texts grow."""
        loss = self.next_token(model, batch, share)
        self.recent = 0.9 * self.recent + 0.1 * float(loss.detach())
        if self.recent < WELL:
            self.most = min(self.most * 1.05, self.chosen.most_lines)
        return loss

    def _text(self, first: str, key: Tensor, value: Tensor) -> Tensor:
        """Lines [B, n * LINE_TOKENS] of keys and values [B, n], given as places in their lists."""
        start, end = torch.full_like(key, self.ids[first]), torch.full_like(key, self.ids[BREAK])
        return torch.stack([start, self.names[key], self.numbers[value], end], -1).flatten(1)


def network(chosen: LineRetrievalSettings, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The network before its training; heads are 32 wide."""
    heads = max(chosen.hidden // 32, 1)
    model = llama_of(chosen, tokenizer, context=CONTEXT, heads=heads)
    look_alike(model, chosen.seed)
    look_back(model)
    return model


@torch.no_grad()
def look_alike(model: PreTrainedModel, seed: int) -> None:
    """Let all heads begin as ones that look at tokens like their own, and copy what they see.

    Queries equal keys, and what a head writes is what it read, in its part of the space. In the manner of Trockman and
    Kolter, Mimetic Initialization of Self-Attention Layers, 2023.
    """
    base: Any = model.base_model
    rng = torch.Generator().manual_seed(seed)
    base.embed_tokens.weight.mul_(4)
    for layer in base.layers:
        attention = layer.self_attn
        for first, second in ((attention.q_proj, attention.k_proj), (attention.v_proj, attention.o_proj)):
            turned = torch.linalg.qr(torch.randn(first.weight.shape, generator=rng)).Q
            first.weight.copy_(turned)
            second.weight.copy_(turned if second is attention.k_proj else turned.T)


@torch.no_grad()
def look_back(model: PreTrainedModel, sharpness: float = 80.0) -> None:
    """Let the first head of the first layer begin as one that looks at the token before.

    That a value knows the key in front of it is half of what recall takes, and the half that is found late by chance.
    One dimension of all embeddings gets the same value, so that queries and keys that read only it are the same
    everywhere; the rotary embedding turns them so that they agree best at a distance of one.

    Args:
        sharpness: how much larger the logit at a distance of one is than on average elsewhere, about.
    """
    base: Any = model.base_model
    attention, config = base.layers[0].self_attn, model.config
    embeddings = base.embed_tokens.weight
    embeddings[:, 0] = 5 * embeddings.std()
    size = attention.head_dim
    theta: float = config.rope_parameters["rope_theta"]
    angles = theta ** -(torch.arange(0, size, 2) / size)
    # What the norm makes of that dimension, and how large a query has to be for that logit, of size / 2 pairs.
    read = float(5 * config.hidden_size**0.5 / (25 + config.hidden_size) ** 0.5)
    length = (sharpness * size**0.5 / (size / 2)) ** 0.5 / read
    attention.q_proj.weight[:size] = 0
    attention.k_proj.weight[:size] = 0
    attention.k_proj.weight[: size // 2, 0] = length
    attention.q_proj.weight[: size // 2, 0] = length * angles.cos()
    attention.q_proj.weight[size // 2 : size, 0] = -length * angles.sin()


@torch.no_grad()
def accuracy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, asked: list[Retrieval]) -> float:
    """Share of the questions whose answer is the arg-max."""
    right = 0
    for start in range(0, len(asked), 10):
        group = asked[start : start + 10]
        tokens = torch.tensor([tokenizer.encode(one.prompt) for one in group])
        best = quality.logits_of(model, tokens)[:, -1].argmax(-1)
        right += sum(tokenizer.decode([token]) == one.answer for token, one in zip(best.tolist(), group, strict=True))
    return right / len(asked)


@recipe(
    "line-retrieval",
    summary="A two-layer network that recalls values by their keys from up to 180 lines (720 tokens).",
    minutes=8,
    megabytes=1.2,
    settings=LineRetrievalSettings,
)
def RECIPE(chosen: LineRetrievalSettings, bench: Bench) -> Quality:
    """Train on texts that grow, and ask for one line in texts of several lengths."""
    tokenizer = make_tokenizer(chosen)
    model = network(chosen, tokenizer)
    lengths = sorted({max(2, chosen.most_lines * part // 6) for part in (1, 2, 3, 4, 5, 6)})

    def watch() -> str:
        return f"up to {curriculum.most:.0f} lines; " + ", ".join(
            f"{lines} lines {accuracy(model, tokenizer, problems(40, lines, seed=2, settings=chosen)):.2f}"
            for lines in (lengths[0], lengths[-1])
        )

    curriculum = Curriculum(chosen, tokenizer)
    learned = train(
        model,
        curriculum.batch,
        curriculum.loss,
        Optimisation(
            steps=chosen.steps, learning_rate=chosen.learning_rate, weight_decay=0.01, seconds=60 * chosen.minutes
        ),
        progress=bench.progress,
        title="recall",
        watch=watch,
    )
    save(rounded(model), tokenizer, bench.folder)
    right = {
        LINE_TOKENS * lines: accuracy(model, tokenizer, problems(200, lines, settings=chosen)) for lines in lengths
    }
    return {
        "parameters": model.num_parameters(),
        "accuracy_by_tokens": {str(tokens): share for tokens, share in right.items()},
        "training": learned.as_dict(),
    }
