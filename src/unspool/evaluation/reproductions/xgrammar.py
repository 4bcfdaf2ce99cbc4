"""XGrammar: masks in microseconds, hidden behind the model's own pass, and JSON that always parses.

Paper: Dong et al., XGrammar, 2024: up to 100x less time for a token's mask than earlier engines, and next to no
overhead end to end where masks are computed while the model runs. Here: the library's masks on documents of JSON, with
the vocabulary of SmolLM2, against one walk over the vocabulary's tree for each mask; the same masks by llguidance; what
a mask costs beside a forward pass, with and without overlap; and generations, each of which is parsed.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unspool.constraints import Grammar
from unspool.constraints._constraint import GrammarSettings
from unspool.constraints._vocabulary import Vocabulary
from unspool.constraints.llguidance import LLGuidance, LLGuidanceGrammar
from unspool.constraints.xgrammar import XGrammar, XGrammarGrammar, XGrammarSettings
from unspool.core.compose import compose
from unspool.evaluation.reproductions._common import (
    Continuation,
    Lab,
    decode_all,
    experiment,
    forwards_per_token,
    interleaved,
)
from unspool.evaluation.reproductions._json_walk import GRAMMAR, START, State, Walker, read
from unspool.sampling.standard import SamplingSettings, StandardSampler

JSON = Grammar.gbnf(GRAMMAR)
PERSON = Grammar.json_schema(
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 30},
            "occupation": {"enum": ["teacher", "engineer", "physician", "musician"]},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
            "languages": {"type": "array", "items": {"enum": ["English", "French", "German"]}, "maxItems": 3},
        },
        "required": ["name", "occupation", "age", "languages"],
        "additionalProperties": False,
        "x-guidance": {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False},
    }
)


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Args:
        documents: made at random, whose places are the states of the comparison with llguidance.
        walked: of these places, those at which the tree is walked as well.
        generations, new_tokens: sampled under the grammar of JSON, and how long each may be.
        rounds, timed: of the comparison of overlap, and its tokens.
    """

    documents: int
    walked: int
    generations: int
    new_tokens: int
    rounds: int
    timed: int


def document(rng: random.Random, depth: int = 0) -> Any:
    """A value of JSON; at the top an object."""
    kind = 0 if depth == 0 else rng.randrange(2, 8) if depth > 3 else rng.randrange(8)
    match kind:
        case 0:
            return {_words(rng, 1): document(rng, depth + 1) for _ in range(rng.randint(1, 4))}
        case 1:
            return [document(rng, depth + 1) for _ in range(rng.randint(0, 4))]
        case 2:
            return rng.choice([True, False, None])
        case 3:
            return rng.randint(-5000, 5000)
        case 4:
            return round(rng.uniform(-10, 10), rng.randint(1, 6))
        case _:
            return _words(rng, rng.randint(0, 6))


def _words(rng: random.Random, count: int) -> str:
    words = (
        "alpha",
        "Beta",
        "price",
        "café",
        "日本語",
        'a "quoted" word',
        "line\nbreak",
        "x_1",
        "😀",
        "the",
        "of",
        "url/path",
    )
    return " ".join(rng.choice(words) for _ in range(count))


def places(vocabulary: Vocabulary, documents: int) -> list[list[int]]:
    """For each document its tokens; written with and without spaces and line breaks, characters escaped or not."""
    rng = random.Random(17)
    found = []
    for number in range(documents):
        text = json.dumps(
            document(rng), ensure_ascii=number % 3 == 0, indent=[None, 2][number % 2] if number % 4 else None
        )
        found.append(vocabulary.spell(text.encode()))
    return found


def timed(action: Callable[[], Any]) -> tuple[Any, float]:
    """What an action gives, and the seconds that it took."""
    began = time.perf_counter()
    result = action()
    return result, time.perf_counter() - began


def percentile(seconds: Sequence[float], share: float) -> float:
    """The time that this share of all stays below."""
    return float(np.quantile(np.array(seconds), share))


@dataclass
class Masks:
    """What the engines said at the places of the documents."""

    seconds: list[float]
    others: list[float]
    unequal: int
    places: list[tuple[NDArray[np.bool_], State]]


def compare(vocabulary: Vocabulary, documents: list[list[int]]) -> Masks:
    """Both libraries along the documents, and the automaton's states there."""
    ours, theirs = XGrammarGrammar(vocabulary, JSON), LLGuidanceGrammar(vocabulary, JSON)
    found = Masks([], [], 0, [])
    for tokens in documents:
        mine, other = ours.matcher(), theirs.matcher()
        state: State | None = START
        for token in [*tokens, None]:
            mask, seconds = timed(mine.mask)
            beside, more = timed(other.mask)
            found.seconds.append(seconds)
            found.others.append(more)
            found.unequal += not bool((mask == beside).all())
            assert state is not None, "the automaton refuses a document of JSON"
            found.places.append((mask.numpy(), state))
            if token is None:
                break
            if not mine.consume(token) or not other.consume(token):
                raise AssertionError("an engine refuses a document of JSON")
            state = read(state, vocabulary.tokens[token] or b"")
    return found


@experiment(
    "xgrammar",
    quick=Size(documents=12, walked=30, generations=8, new_tokens=40, rounds=2, timed=16),
    full=Size(documents=60, walked=300, generations=50, new_tokens=96, rounds=8, timed=96),
)
def EXPERIMENT(lab: Lab, size: Size) -> None:
    """Measure masks against a walk, agreement, overlap, and generations."""
    vocabulary = Vocabulary.of(lab.model)
    lab.setup |= {"grammar": "JSON (RFC 8259), an object at the top", "vocabulary": vocabulary.size}

    lab.say(f"masks along {size.documents} documents, by xgrammar and llguidance")
    _, compiling = timed(lambda: XGrammarGrammar(vocabulary, JSON))
    _, beside = timed(lambda: LLGuidanceGrammar(vocabulary, JSON))
    found = compare(vocabulary, places(vocabulary, size.documents))
    chosen = random.Random(3).sample(found.places, min(size.walked, len(found.places)))
    lab.say(f"the same masks by a walk over the vocabulary's tree, at {len(chosen)} of {len(found.places)} places")
    walker = Walker(vocabulary)
    walked, missed, extra = [], 0, 0
    for mask, state in chosen:
        right, seconds = timed(lambda state=state: walker.mask(state))  # type: ignore[misc]
        walked.append(seconds)
        missed += int((right & ~mask).any())
        extra += int((mask & ~right).any())
    median, slow = statistics.median(found.seconds), percentile(found.seconds, 0.99)
    lab.row("mask, median, microseconds (a walk in Python)", 1e6 * statistics.median(walked), 1e6 * median)
    lab.row("mask, 99th percentile, microseconds (a walk in Python)", 1e6 * percentile(walked, 0.99), 1e6 * slow)
    lab.row("mask, median, microseconds (llguidance)", 1e6 * statistics.median(found.others), 1e6 * median)
    lab.row("compiling the grammar, milliseconds (llguidance)", 1e3 * beside, 1e3 * compiling)
    lab.row("places at which the mask differs from llguidance's, of 100", 0.0, 100 * found.unequal / len(found.places))

    overlap(lab, size, median)
    parsed = generations(lab, size)

    speed_up = statistics.median(walked) / median
    lab.check("the median mask takes at most 1/20 of an uncached walk in Python", f"1/{speed_up:.0f}", speed_up >= 20)
    lab.check(
        f"masks are those of the walk at all of {len(chosen)} places",
        f"{missed} places lack tokens, {extra} have too many",
        missed == extra == 0,
        extra == 0,
    )
    lab.check(
        "masks are llguidance's", f"{found.unequal} of {len(found.places)} places differ", found.unequal == 0, True
    )
    lab.check(f"all of {size.generations} sampled generations parse", f"{parsed} parse", parsed == size.generations)
    if lab.quick:
        lab.note("Quick: few documents, places and generations; the full run samples 50 generations.")


def overlap(lab: Lab, size: Size, mask: float) -> None:
    """What constraining costs beside a forward pass, with masks computed while the model runs and after it."""
    prompt = lab.engine.encode("Describe a city as JSON.")
    made = {
        "unconstrained": compose(lab.model),
        "overlap": compose(lab.model, XGrammar(XGrammarSettings(JSON, jump="off", overlap=True))),
        "no overlap": compose(lab.model, XGrammar(XGrammarSettings(JSON, jump="off", overlap=False))),
        "llguidance": compose(lab.model, LLGuidance(GrammarSettings(JSON, jump="off"))),
    }
    lab.say("time of a token, unconstrained and constrained, in turn")
    seconds: dict[str, list[float]] = {name: [] for name in made}

    def run(name: str) -> None:
        for one in decode_all(made[name], [prompt], new_tokens=size.timed, stop_tokens=None):
            count = one.statistics
            seconds[name].append((count.score_seconds + count.verify_seconds) / count.steps)

    interleaved({name: partial(run, name) for name in made}, size.rounds)
    # The first round warms up.
    each = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    plain = each["unconstrained"]
    for name in ("overlap", "no overlap", "llguidance"):
        lab.row(f"a step, milliseconds, {name} (unconstrained)", 1e3 * plain, 1e3 * each[name])
    lab.row("a mask's share of a step, percent, not overlapped (claim: next to none)", 0.0, 100 * mask / plain)
    lab.check("a mask takes less than 10% of a forward pass", f"{100 * mask / plain:.2g}%", mask < 0.1 * plain)
    lab.note(
        "Without a GPU overlap is shown with a thread on the processor that runs the model as well: it hides a mask "
        "only where a core is free. Differences of whole steps are within a busy machine's noise and not judged."
    )


def generations(lab: Lab, size: Size) -> int:
    """Sample texts of JSON, each led to its end, and count those that parse; then a schema with and without jumps."""
    lab.say(f"{size.generations} sampled generations of at most {size.new_tokens} tokens")
    sampler = StandardSampler(SamplingSettings(temperature=1.0))
    settings = XGrammarSettings(JSON, close=True)
    prompts = [lab.engine.encode("Describe a city as JSON.")] * size.generations
    runs = decode_all(
        compose(lab.model, XGrammar(settings), sampler=sampler), prompts, new_tokens=size.new_tokens, batch=8, seed=5
    )
    parsed = sum(_parses(lab, run) for run in runs)

    lab.say("a schema, with and without jumps")
    asked = [lab.engine.encode("Describe a person named Ada as JSON.")]
    jumped = {
        jump: decode_all(compose(lab.model, XGrammar(XGrammarSettings(PERSON, jump=jump))), asked, new_tokens=64)
        for jump in ("off", "text")
    }
    lab.row(
        "passes a token under a schema, jumping forward (without)",
        forwards_per_token(jumped["off"]),
        forwards_per_token(jumped["text"]),
    )
    lab.check(
        "jumping forward takes fewer passes a token",
        f"{forwards_per_token(jumped['text']):.3g} against {forwards_per_token(jumped['off']):.3g}",
        forwards_per_token(jumped["text"]) < forwards_per_token(jumped["off"]),
    )
    return parsed


def _parses(lab: Lab, run: Continuation) -> bool:
    try:
        json.loads(lab.model.tokenizer.decode(run.tokens))
    except ValueError:
        return False
    return True
