"""GreatGramma: tables in seconds, and masks that are as tight and as fast as those of other engines.

Paper: Park et al., Flexible and Efficient Grammar-Constrained Decoding, 2025: tables are ready 17.7 times sooner than
those of earlier exact engines, at their time for a mask. Here: JSON, Python's expressions, a part of SQL and a language
like C, with the vocabulary of SmolLM2. Against the table that runs every token from every state of lexer and parser
(its time is that of a sample, times their number); against sequences of two terminals, which
allow tokens that cannot stand; and against the masks of llguidance and, where it is installed, xgrammar.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unspool.constraints import Grammar
from unspool.constraints._matcher import CompiledGrammar, Matcher
from unspool.constraints._scanned import ScannedMatcher
from unspool.constraints._stack import Frame
from unspool.constraints._vocabulary import Vocabulary
from unspool.constraints.greatgramma import GreatGramma, GreatGrammaGrammar, GreatGrammaSettings
from unspool.constraints.llguidance import LLGuidanceGrammar
from unspool.core.compose import compose
from unspool.evaluation.reproductions._common import Lab, decode_all, experiment
from unspool.evaluation.reproductions._languages import LANGUAGES
from unspool.sampling.standard import SamplingSettings, StandardSampler


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Args:
        texts: of every language, along which masks are taken.
        places: of every language at which every token is tried.
        sample: tokens that are run, each from a pair of states drawn at random, to tell what all of them take.
        generations, new_tokens: of JSON, sampled, and how long each may be.
    """

    texts: int
    places: int
    sample: int
    generations: int
    new_tokens: int


@dataclass
class Measured:
    """What one language gave.

    Attributes:
        seconds: until its tables were ready.
        naive: the same by running every token from every pair of states, from a sample.
        sequences: distinct sequences of terminals, the one that is only tried at their end included.
        entries: pairs of a token and a lexer state.
        masks: seconds of each mask, by engine.
        unequal: places at which the mask is not llguidance's; of ``asked``.
        wrong: tokens in which masks differ from trying every token; at ``tried`` places.
        loose: tokens that sequences of two terminals allow wrongly, at these places.
    """

    seconds: float
    naive: float
    sequences: int
    entries: int
    masks: dict[str, list[float]]
    unequal: int = 0
    asked: int = 0
    wrong: int = 0
    tried: int = 0
    loose: int = 0


def every_token(made: GreatGrammaGrammar, matcher: ScannedMatcher) -> NDArray[np.bool_]:
    """``[V]`` the tokens that may follow, each run from here through the lexer and the parser."""
    state, frame = matcher.place.state, matcher.place.frame
    found = np.zeros(made.vocabulary.size, dtype=bool)
    for token, text in enumerate(made.vocabulary.tokens):
        if text is not None:
            after = made.after(state, frame, text)
            found[token] = after is not None and made.stands(*after)
    found[list(made.vocabulary.stop)] = made.ended(state, frame)
    return found


def two_terminals(made: GreatGrammaGrammar, matcher: ScannedMatcher) -> NDArray[np.bool_]:
    """``[V]`` the tokens of which the first two terminals can follow, as a store of such pairs has them.

    (Ugare et al., SynCode, 2024: masks by lexer state and a sequence of two terminals.)
    """
    state, frame = matcher.place.state, matcher.place.frame
    spanner = made.spanner
    verdicts: dict[int, bool] = {}

    def verdict(row: int) -> bool:
        terminals: list[int] = []
        sequence = int(spanner.row_sequence[row])
        while sequence:
            terminals.insert(0, spanner.terminals[sequence])
            sequence = spanner.parents[sequence]
        at: Frame | None = frame
        for terminal in terminals[:2]:
            if at is not None:
                at = made.shift(at, terminal, made.parser)
        if at is None or len(terminals) >= 2:
            return at is not None
        return made.accepts(at, spanner.profiles[spanner.row_profile[row]])

    tokens, rows = spanner.entries(state)
    for row in np.unique(rows).tolist():
        verdicts[row] = verdict(row)
    found = np.zeros(made.vocabulary.size, dtype=bool)
    found[tokens] = [verdicts[row] for row in rows.tolist()]
    return found


def all_pairs_seconds(made: GreatGrammaGrammar, sample: int) -> float:
    """Seconds to run every token from every pair of a lexer state and a parser state, from ``sample`` of these runs."""
    rng = random.Random(11)
    states, tops = len(made.scanner.delta), made.parser.table.tops
    texts = [text for text in made.vocabulary.tokens if text]
    runs = [(rng.randrange(states), Frame(rng.choice(tops), None), rng.choice(texts)) for _ in range(sample)]
    rows, action, goto, reductions = made.scanner.rows, made.parser.action, made.parser.goto, made.parser.reductions
    skipped = made.scanner.skipped

    def run(state: int, top: int, text: bytes) -> None:
        stack = [top]
        for byte in text:
            step, emits = rows[state]
            emitted, state = emits[byte], step[byte]
            if state < 0:
                return
            while emitted >= 0 and not skipped[emitted]:
                act = action[stack[-1]].get(emitted)
                if act is None:
                    return
                if act >= 0:
                    stack.append(act)
                    break
                count, left = reductions[~act]
                if count >= len(stack):
                    return  # It depends on what lies below.
                del stack[len(stack) - count :]
                stack.append(goto[stack[-1]][left])

    began = time.perf_counter()
    for state, frame, text in runs:
        run(state, frame.state, text)
    return (time.perf_counter() - began) / sample * states * len(tops) * len(texts)


def _engines(vocabulary: Vocabulary, grammar: Grammar) -> dict[str, CompiledGrammar]:
    found: dict[str, CompiledGrammar] = {"llguidance": LLGuidanceGrammar(vocabulary, grammar)}
    if find_spec("xgrammar"):
        from unspool.constraints.xgrammar import XGrammarGrammar

        found["xgrammar"] = XGrammarGrammar(vocabulary, grammar)
    return found


def _timed(action: Callable[[], Any]) -> tuple[Any, float]:
    began = time.perf_counter()
    result = action()
    return result, time.perf_counter() - began


def measure(lab: Lab, vocabulary: Vocabulary, name: str, size: Size) -> Measured:
    """One language."""
    language = LANGUAGES[name]
    grammar = Grammar.lark(language.grammar)
    lab.say(f"{name}: tables")
    made, seconds = _timed(lambda: GreatGrammaGrammar(vocabulary, grammar))
    spanner = made.spanner
    sequences = {
        (sequence, terminal)
        for sequence, profile in zip(spanner.row_sequence.tolist(), spanner.row_profile.tolist(), strict=True)
        for terminal, _ in spanner.profiles[profile]
    }
    found = Measured(
        seconds,
        all_pairs_seconds(made, size.sample),
        len(sequences),
        vocabulary.size * len(made.scanner.delta),
        {"greatgramma": []},
    )
    others = _engines(vocabulary, grammar)
    found.masks |= {other: [] for other in others}
    lab.say(f"{name}: masks along {size.texts} texts")
    rng = random.Random(5)
    places: list[ScannedMatcher] = []
    for _ in range(size.texts):
        tokens = vocabulary.spell(language.write(rng).encode())
        mine: ScannedMatcher = made.matcher()
        theirs: dict[str, Matcher] = {other: engine.matcher() for other, engine in others.items()}
        for token in tokens:
            mask, taken = _timed(mine.mask)
            found.masks["greatgramma"].append(taken)
            for other, matcher in theirs.items():
                beside, taken = _timed(matcher.mask)
                found.masks[other].append(taken)
                if other == "llguidance":
                    found.asked += 1
                    found.unequal += not bool((mask == beside).all())
            places.append(mine.fork())
            for matcher in (mine, *theirs.values()):
                if not matcher.consume(token):
                    raise AssertionError(f"{type(matcher).__name__} refuses a text of {name}")
        if not mine.accepting:
            raise AssertionError(f"a text of {name} is not whole")
    for place in rng.sample(places, min(size.places, len(places))):
        right = every_token(made, place)
        found.wrong += int((place.mask().numpy() != right).sum())
        found.loose += int((two_terminals(made, place) & ~right).sum())
        found.tried += 1
    return found


def _median(values: Sequence[float]) -> float:
    return statistics.median(values)


@experiment(
    "greatgramma",
    quick=Size(texts=2, places=1, sample=20_000, generations=2, new_tokens=16),
    full=Size(texts=60, places=60, sample=400_000, generations=32, new_tokens=96),
)
def EXPERIMENT(lab: Lab, size: Size) -> None:
    """Measure tables, masks, tightness, and generations."""
    vocabulary = Vocabulary.of(lab.model)
    lab.setup |= {"languages": list(LANGUAGES), "vocabulary": vocabulary.size}
    found = {name: measure(lab, vocabulary, name, size) for name in LANGUAGES}
    yardstick = "xgrammar" if "xgrammar" in found["JSON"].masks else "llguidance"
    for name, one in found.items():
        lab.row(f"{name}: seconds until tables are ready (every token from every pair)", one.naive, one.seconds)
        for other in ("llguidance", "xgrammar"):
            if other in one.masks:
                ours, theirs = _median(one.masks["greatgramma"]), _median(one.masks[other])
                lab.row(f"{name}: mask, median, microseconds ({other})", 1e6 * theirs, 1e6 * ours)
        slow = [1e6 * float(np.quantile(one.masks[each], 0.99)) for each in (yardstick, "greatgramma")]
        lab.row(f"{name}: mask, 99th percentile, microseconds ({yardstick})", *slow)
        lab.row(f"{name}: sequences of terminals (tokens times lexer states)", one.entries, one.sequences)
        lab.row(f"{name}: places at which the mask is not llguidance's, of 100", 0.0, 100 * one.unequal / one.asked)
        lab.row(
            f"{name}: tokens allowed wrongly at {one.tried} places (sequences of two terminals)", one.loose, one.wrong
        )

    lab.say(f"{size.generations} sampled generations of JSON")
    sampler = StandardSampler(SamplingSettings(temperature=1.0))
    method = GreatGramma(GreatGrammaSettings(grammar=Grammar.lark(LANGUAGES["JSON"].grammar), close=True))
    prompts = [lab.engine.encode("Describe a city as JSON.")] * size.generations
    runs = decode_all(compose(lab.model, method, sampler=sampler), prompts, new_tokens=size.new_tokens, batch=8, seed=5)
    parsed = sum(_parses(lab.model.tokenizer.decode(run.tokens)) for run in runs)

    largest = max(found.values(), key=lambda one: one.naive)
    faster = largest.naive / largest.seconds
    lab.check(
        "tables of the largest grammar are ready at least 8 times sooner than by every token from every pair",
        f"{faster:,.0f} times",
        faster >= 8,
        faster > 1,
    )
    plain = {name: one for name, one in found.items() if LANGUAGES[name].plain}
    unequal, asked = sum(one.unequal for one in plain.values()), sum(one.asked for one in plain.values())
    lab.check(
        f"masks are llguidance's where both lexers define one language ({', '.join(plain)})",
        f"{unequal} of {asked} places differ",
        unequal == 0,
    )
    wrong, tried = sum(one.wrong for one in found.values()), sum(one.tried for one in found.values())
    lab.check("masks are those of trying every token", f"{wrong} tokens at {tried} places differ", wrong == 0)
    slower = {name: _median(one.masks["greatgramma"]) / _median(one.masks[yardstick]) for name, one in found.items()}
    worst = max(slower.values())
    lab.check(f"the median mask takes at most 3 times {yardstick}'s", f"{worst:.2g} times", worst <= 3, worst <= 10)
    share = max(one.sequences / one.entries for one in found.values())
    lab.check("sequences are fewer than 2% of tokens times lexer states", f"{100 * share:.2g}%", share < 0.02)
    lab.check(f"all of {size.generations} sampled generations parse", f"{parsed} parse", parsed == size.generations)
    lab.note(
        "In SQL and C llguidance takes keywords for names where the parser could take a name; places with such tokens "
        "differ, as the documentation says."
    )
    if lab.quick:
        lab.note("Quick: few texts and places; the full run takes 60 of each for every language.")


def _parses(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
