"""Pre^3: LR(1) tables as a deterministic pushdown automaton, whose masks are comparisons with the top of a stack.

Paper: Chen et al., Pre^3: Enabling Deterministic Pushdown Automata for Faster Structured LLM Generation, 2025: a token
takes up to 40% less time than with pushdown automata, throughput is up to 36% higher. Here: acceptance on JSON whose
terminals are single characters (the paper's form), on brackets, and on a list, against the LR(1) driver; masks on JSON
whose strings and numbers are lexemes, with the vocabulary of SmolLM2, against those of llguidance and, where it is
installed, xgrammar; tokens that depend on the stack against an automaton that explores all stacks.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np

from unspool.constraints import Grammar
from unspool.constraints._canonical import canonical
from unspool.constraints._conditions import ANY
from unspool.constraints._constraint import GrammarSettings
from unspool.constraints._lark_reader import read_lark
from unspool.constraints._matcher import CompiledGrammar, Matcher
from unspool.constraints._pda import PushdownParser
from unspool.constraints._rules import trimmed, without_empty
from unspool.constraints._scanned import ScannedMatcher
from unspool.constraints._spanner import IGNORED
from unspool.constraints._stack import Parser
from unspool.constraints._vocabulary import Vocabulary
from unspool.constraints.greatgramma import GreatGramma, GreatGrammaSettings
from unspool.constraints.llguidance import LLGuidanceGrammar
from unspool.constraints.pre3_dpda import Pre3, Pre3Grammar
from unspool.core.compose import compose
from unspool.core.sockets import Part
from unspool.evaluation.reproductions._common import Lab, decode_all, experiment, interleaved
from unspool.evaluation.reproductions._languages import LANGUAGES
from unspool.evaluation.reproductions._nondeterministic import Explorer, Stack, Writer

CHARACTERS = r"""
start: "{" "}" | "{" members "}"
members: pair | pair "," members
pair: string ":" value
value: start | "[" "]" | "[" elements "]" | string | number | word
elements: value | value "," elements
word: "t" "r" "u" "e" | "f" "a" "l" "s" "e" | "n" "u" "l" "l"
string: "\"" "\"" | "\"" characters "\""
characters: character | character characters
character: OTHER | "/" | letter | digit | "-" | "+" | "." | "{" | "}" | "[" | "]" | "," | ":" | "\\" escaped
letter: hex_letter | "t" | "r" | "u" | "s" | "n" | "l"
hex_letter: "a" | "b" | "e" | "f" | "E" | HEX
digit: "0" | DIGIT
escaped: "\"" | "\\" | "/" | "b" | "f" | "n" | "r" | "t" | "u" hex hex hex hex
hex: digit | hex_letter
number: whole | "-" whole
whole: integer | integer "." digits | integer power | integer "." digits power
integer: "0" | DIGIT | DIGIT digits
digits: digit | digit digits
power: ("e" | "E") digits | ("e" | "E") ("-" | "+") digits
OTHER: /[^"\\\/\x00-\x1f\x7f0-9a-fA-Ftrusnl{}\[\],:.+\-]/
HEX: /[cdABCDF]/
DIGIT: /[1-9]/
"""
"""JSON, objects without white space, by characters.

Classes of characters are disjoint, as the paper asks; ``E`` stands in numbers, too.
"""

LEXEMES = r"""
start: value
value: object | array | STRING | NUMBER | "true" | "false" | "null"
object: "{" "}" | "{" members "}"
members: pair | pair "," members
pair: STRING ":" value
array: "[" "]" | "[" elements "]"
elements: value | value "," elements
STRING: /"([^"\\\x00-\x1f\x7f]|\\(["\\\/bfnrt]|u[0-9a-fA-F]{4}))*"/
NUMBER: /-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?/
"""
"""JSON without white space, by lexemes."""

BRACKETS = """
start: group | group start
group: "(" ")" | "(" start ")" | "[" "]" | "[" start "]" | "{" "}" | "{" start "}"
"""
LIST = """
start: "[" items "]"
items: ITEM | ITEM "," items
ITEM: "a" | "b"
"""
GRAMMARS = {"JSON": CHARACTERS, "brackets": BRACKETS, "list": LIST}
ELEMENTS = 1000


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Args:
        strings: of every grammar, half of them with mistakes.
        documents: of JSON, along which masks are taken.
        checked: places at which tokens that ask for the stack are judged in both ways.
        batch: texts whose stacks are compared at once.
        rounds: of the timed comparisons.
        new_tokens: of texts that are generated side by side, in batches of 8; 0 for none.
    """

    strings: int
    documents: int
    checked: int
    batch: int
    rounds: int
    new_tokens: int


def parsers(text: str, absorb: bool = True) -> tuple[Parser, PushdownParser]:
    """The LR(1) driver of a grammar, and its automaton."""
    table = canonical(*without_empty(trimmed(read_lark(text))))
    return Parser(table), PushdownParser(table, absorb)


@dataclass
class Acceptance:
    """How the automaton compares with the LR(1) driver.

    Attributes:
        strings, valid: that were read, and those of them that belong to the language.
        unequal: that one takes and the other does not.
        several: steps at which more than one edge fits.
    """

    strings: int = 0
    valid: int = 0
    unequal: int = 0
    several: int = 0


def acceptance(text: str, strings: int) -> Acceptance:
    """Read random strings with both, half of them with mistakes."""
    driver, automaton = parsers(text)
    rules = driver.table.grammar.rules
    writer, rng, found = Writer(rules), random.Random(1), Acceptance()
    terminals = len(rules.terminals)
    for number in range(strings):
        string = writer.sentence(rng, rng.randint(3, 12))[:200]
        for _ in range(rng.randint(1, 2) if number % 2 else 0):
            place = rng.randrange(len(string))
            string[place : place + rng.randint(0, 1)] = rng.choice(([], [rng.randrange(terminals)]))
        a, b = driver.start(), automaton.start()
        equal = True
        for terminal in string:
            edges = automaton.edges.of.get((b.state, terminal), ())
            if len(edges) > 1:
                found.several += sum(tuple(b.states(len(edge.pop))) == edge.pop for edge in edges) > 1
            left, right = driver.shift(a, terminal), automaton.shift(b, terminal)
            equal = (left is None) == (right is None)
            if left is None or right is None:
                break
            a, b = left, right
        else:
            equal = driver.ends(a) == automaton.ends(b)
            found.valid += driver.ends(a)
        found.strings += 1
        found.unequal += not equal
    return found


def depth(absorb: bool, elements: int) -> int:
    """Of the stack, behind so many elements of a list by right recursion."""
    _, automaton = parsers(LIST, absorb)
    names = [terminal.name for terminal in automaton.table.grammar.rules.terminals]
    opening, comma, item = (names.index(name) for name in ('"["', '","', "ITEM"))
    stack = automaton.follow(automaton.start(), [opening, *[item, comma] * elements])
    if stack is None:
        raise AssertionError("the automaton refuses a list")
    return stack.depth


# -- masks --------------------------------------------------------------------------------------------------------


@dataclass
class Walked:
    """What was found along documents of JSON.

    Attributes:
        places: of which the matchers are kept.
        stacks: at each of them those of the automaton that explores.
        seconds: of each mask, by engine.
        unequal: places at which the mask is another, by engine.
    """

    places: list[ScannedMatcher]
    stacks: list[frozenset[Stack]]
    seconds: dict[str, list[float]]
    unequal: dict[str, int]


def walk(vocabulary: Vocabulary, made: Pre3Grammar, documents: int) -> Walked:
    """Masks of all engines along random documents."""
    grammar = Grammar.lark(LEXEMES)
    others: dict[str, CompiledGrammar] = {"llguidance": LLGuidanceGrammar(vocabulary, grammar)}
    if find_spec("xgrammar"):
        from unspool.constraints.xgrammar import XGrammarGrammar

        others["xgrammar"] = XGrammarGrammar(vocabulary, grammar)
    found = Walked([], [], {name: [] for name in ("pre3-dpda", *others)}, dict.fromkeys(others, 0))
    rules = made.parser.table.grammar.rules
    explorer, rng = Explorer(rules), random.Random(7)
    for _ in range(documents):
        value = json.loads(LANGUAGES["JSON"].write(rng))
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        mine: ScannedMatcher = made.matcher()
        theirs: dict[str, Matcher] = {name: engine.matcher() for name, engine in others.items()}
        stacks, state = explorer.start(), 0
        for token in vocabulary.spell(text.encode()):
            mask, seconds = _timed(mine.mask)
            found.seconds["pre3-dpda"].append(seconds)
            for name, matcher in theirs.items():
                beside, seconds = _timed(matcher.mask)
                found.seconds[name].append(seconds)
                found.unequal[name] += not bool((mask == beside).all())
            found.places.append(mine.fork())
            found.stacks.append(stacks)
            for byte in vocabulary.tokens[token] or b"":
                step, emits = made.scanner.rows[state]
                if emits[byte] >= 0:
                    stacks = explorer.shift(stacks, emits[byte])
                state = step[byte]
            for matcher in (mine, *theirs.values()):
                if not matcher.consume(token):
                    raise AssertionError(f"{type(matcher).__name__} refuses {text!r}")
    return found


def _timed(action: Callable[[], Any]) -> tuple[Any, float]:
    began = time.perf_counter()
    result = action()
    return result, time.perf_counter() - began


def conditional(made: Pre3Grammar, place: ScannedMatcher) -> list[int]:
    """Rows that ask what lies below the top of the stack."""
    return sorted(set(made.conditions.of(place.place.state, place.place.frame.state)[1].tolist()))


def explored(made: Pre3Grammar, explorer: Explorer, stacks: frozenset[Stack], rows: Sequence[int]) -> list[bool]:
    """Whether each row can follow, by exploring all stacks; rows that begin alike are run together."""
    spanner = made.spanner
    known: dict[int, frozenset[Stack]] = {0: stacks}

    def after(sequence: int) -> frozenset[Stack]:
        if sequence not in known:
            before = after(spanner.parents[sequence])
            known[sequence] = explorer.shift(before, spanner.terminals[sequence]) if before else before
        return known[sequence]

    found = []
    for row in rows:
        here = after(int(spanner.row_sequence[row]))
        profile = spanner.profiles[spanner.row_profile[row]]
        tops = {stack[0] if stack is not None else made.language.end for stack in here}
        found.append(any(terminal in tops for terminal, _ in profile if terminal != IGNORED))
    return found


def compared(made: Pre3Grammar, place: ScannedMatcher, rows: Sequence[int]) -> list[bool]:
    """The same by comparing the top of the stack with conditions."""
    verdict = made.conditions.verdict(place.place.state, place.place.frame.states())
    return verdict[rows].tolist()


def by_loop(made: Pre3Grammar, places: Sequence[tuple[int, Sequence[int]]]) -> list[dict[int, bool]]:
    """Conditions of many texts, one after the other."""
    found = []
    for state, stack in places:
        pops, rows, _ = made.conditions.of(state, stack[0])
        told: dict[int, bool] = {}
        for pop, row in zip(pops.tolist(), rows.tolist(), strict=True):
            met = all(asked == ANY or (at < len(stack) and asked == stack[at]) for at, asked in enumerate(pop))
            told[row] = told.get(row, False) or met
        found.append(told)
    return found


def _checks_of_the_stack(lab: Lab, made: Pre3Grammar, walked: Walked, size: Size) -> tuple[float, float, int]:
    """How much faster conditions are than exploring, and a batch than a loop; and verdicts that differ."""
    explorer = Explorer(made.parser.table.grammar.rules)
    asking = [place for place in range(len(walked.places)) if conditional(made, walked.places[place])]
    if not asking:
        raise AssertionError("at no place does a token depend on the stack")
    chosen = random.Random(3).sample(asking, min(size.checked, len(asking)))
    wrong = 0
    times: dict[str, list[float]] = {"exploring": [], "conditions": []}
    for number in chosen:
        place = walked.places[number]
        rows = conditional(made, place)
        slow, seconds = _timed(partial(explored, made, explorer, walked.stacks[number], rows))
        times["exploring"].append(seconds)
        fast, seconds = _timed(partial(compared, made, place, rows))
        times["conditions"].append(seconds)
        wrong += sum(a != b for a, b in zip(slow, fast, strict=True))
    one, other = (statistics.median(times[name]) for name in ("conditions", "exploring"))
    lab.row("tokens that ask for the stack, median, microseconds (exploring all stacks)", 1e6 * other, 1e6 * one)
    lab.setup["places that ask for the stack"] = f"{len(asking)} of {len(walked.places)}"

    picked = [walked.places[number] for number in random.Random(4).choices(asking, k=size.batch)]
    texts = [(each.place.state, each.place.frame.states()) for each in picked]
    told = by_loop(made, texts)
    verdicts = made.conditions.verdicts(texts)
    accepted = [made.conditions.top(stack[0]).accepted for _, stack in texts]
    wrong += sum(int((made.conditions.verdict(*text) != row).sum()) for text, row in zip(texts, verdicts, strict=True))
    for text, rows_of in enumerate(told):
        wrong += sum(bool(verdicts[text, row]) != (met or accepted[text][row]) for row, met in rows_of.items())
    taken = interleaved(
        {
            "batch": lambda: made.conditions.verdicts(texts),
            "one by one": lambda: [made.conditions.verdict(*text) for text in texts],
            "loop": lambda: by_loop(made, texts),
        },
        size.rounds,
    )
    lab.row(f"{size.batch} texts at once, microseconds (a loop)", 1e6 * taken["loop"], 1e6 * taken["batch"])
    lab.row(
        f"{size.batch} texts at once, microseconds (each by itself)", 1e6 * taken["one by one"], 1e6 * taken["batch"]
    )
    return other / one, taken["loop"] / taken["batch"], wrong


def _end_to_end(lab: Lab, new_tokens: int) -> None:
    """Time of a token in batches of 8, under this engine and others."""
    lab.say("texts side by side, under each engine")
    grammar = Grammar.lark(LEXEMES)
    arms: dict[str, list[Part]] = {
        "unconstrained": [],
        "pre3-dpda": [Pre3(GrammarSettings(grammar=grammar, jump="off"))],
        "greatgramma": [GreatGramma(GreatGrammaSettings(grammar=grammar, jump="off"))],
    }
    if find_spec("xgrammar"):
        from unspool.constraints.xgrammar import XGrammar, XGrammarSettings

        arms["xgrammar"] = [XGrammar(XGrammarSettings(grammar=grammar, jump="off"))]
    made = {name: compose(lab.model, parts) for name, parts in arms.items()}
    prompts = [lab.engine.encode(f"Describe city number {number} as JSON.") for number in range(8)]
    seconds: dict[str, list[float]] = {name: [] for name in made}

    def run(name: str) -> None:
        stop_tokens: frozenset[int] | None = frozenset() if name == "unconstrained" else None
        runs = decode_all(made[name], prompts, new_tokens=new_tokens, batch=8, stop_tokens=stop_tokens)
        longest = max(runs, key=lambda one: one.statistics.steps).statistics
        seconds[name].append((longest.score_seconds + longest.verify_seconds) / longest.steps)

    interleaved({name: partial(run, name) for name in made}, 2)
    each = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    for name in each:
        if name != "pre3-dpda":
            lab.row(f"a step of 8 texts, milliseconds ({name})", 1e3 * each[name], 1e3 * each["pre3-dpda"])


@experiment(
    "pre3-dpda",
    quick=Size(strings=2000, documents=12, checked=100, batch=64, rounds=5, new_tokens=0),
    full=Size(strings=10_000, documents=120, checked=2000, batch=64, rounds=30, new_tokens=96),
)
def EXPERIMENT(lab: Lab, size: Size) -> None:
    """Measure acceptance, masks, the stack of a list, and the time of what depends on the stack."""
    vocabulary = Vocabulary.of(lab.model)
    lab.setup |= {"grammars": list(GRAMMARS), "vocabulary": vocabulary.size}
    lab.say(f"{size.strings} strings of each grammar, by the automaton and the LR(1) driver")
    read = {name: acceptance(text, size.strings) for name, text in GRAMMARS.items()}
    for name, one in read.items():
        lab.row(f"{name}: strings that the automaton takes and the driver does not, or the other way", 0, one.unequal)
    flat = [depth(True, count) for count in (2, ELEMENTS)]
    grown = [depth(False, count) for count in (2, ELEMENTS)]
    lab.row(f"stack behind {ELEMENTS:,} elements (nothing absorbed)", grown[1], flat[1])

    lab.say("tables of JSON")
    made, seconds = _timed(lambda: Pre3Grammar(vocabulary, Grammar.lark(LEXEMES)))
    lab.row("seconds until tables are ready", None, seconds)
    lab.say(f"masks along {size.documents} documents")
    walked = walk(vocabulary, made, size.documents)
    count = len(walked.places)
    for name in walked.unequal:
        lab.row(f"places at which the mask is not {name}'s, of 100", 0.0, 100 * walked.unequal[name] / count)
        lab.row(
            f"mask, median, microseconds ({name})",
            *(1e6 * statistics.median(walked.seconds[each]) for each in (name, "pre3-dpda")),
        )
        lab.row(
            f"mask, 99th percentile, microseconds ({name})",
            *(1e6 * float(np.quantile(walked.seconds[each], 0.99)) for each in (name, "pre3-dpda")),
        )
    lab.say("tokens that ask for the stack")
    faster, batched, wrong = _checks_of_the_stack(lab, made, walked, size)
    lab.setup["automaton"] = made.describe()
    if size.new_tokens:
        _end_to_end(lab, size.new_tokens)
        lab.note("A step of several texts is told and not judged: on a processor the network takes nearly all of it.")

    total = {what: sum(getattr(one, what) for one in read.values()) for what in ("strings", "valid", "unequal")}
    lab.check(
        "the automaton takes what the LR(1) driver takes",
        f"{total['unequal']} of {total['strings']} strings differ, {total['valid']} are valid",
        total["unequal"] == 0 and 0 < total["valid"] < total["strings"],
    )
    several = sum(one.several for one in read.values())
    lab.check("never does more than one edge fit", f"{several} times", several == 0)
    unequal = sum(walked.unequal.values())
    lab.check(f"masks are those of {' and '.join(walked.unequal)}", f"{unequal} places of {count} differ", unequal == 0)
    lab.check(
        f"the stack is as deep behind {ELEMENTS:,} elements as behind 2, and grows where nothing is absorbed",
        f"{flat[1]} and {flat[0]}; {grown[1]} and {grown[0]}",
        flat[0] == flat[1] and grown[1] > grown[0] + ELEMENTS,
    )
    lab.check("verdicts on tokens that ask for the stack are those of exploring", f"{wrong} differ", wrong == 0)
    lab.check(
        "tokens that ask for the stack take at most half the time of exploring",
        f"1/{faster:.1f}",
        faster >= 2,
        faster > 1,
    )
    lab.check(f"{size.batch} texts at once take at most 1/5 of a loop", f"1/{batched:.1f}", batched >= 5, batched > 1)
    if lab.quick:
        lab.note("Quick: fewer strings and documents, and no texts side by side; the full run takes 10,000 strings.")
