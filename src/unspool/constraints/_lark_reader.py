"""Reads grammars in Lark's notation (parsed by lark) as rules over lexemes.

Where terminals overlap, Lark's own order holds: a higher priority first, then literals before patterns. What is ignored
may stand between any two lexemes. Rules with many optional parts are multiplied out; how far is looked at before it
is done.
"""

from __future__ import annotations

import re
from typing import Any

from lark import Tree
from lark.exceptions import GrammarError as LarkGrammarError
from lark.exceptions import LarkError, UnexpectedInput
from lark.lexer import PatternStr
from lark.load_grammar import Grammar as LarkGrammar
from lark.load_grammar import load_grammar

from unspool.constraints._grammar import GrammarError
from unspool.constraints._regex import literal_expression, read_regex
from unspool.constraints._rules import Rules, Terminal

MOST_ALTERNATIVES = 5_000
MOST_CHARACTERS = 300_000
_LIBRARIES = ("common", "unicode", "python", "lark")
_INLINE_REPEATS = 50


def read_lark(text: str) -> Rules:
    """A grammar in Lark's notation; its start is ``start``.

    Raises:
        GrammarError: with the line and column, or the rule.
    """
    text = re.sub(r"(?m)^%llguidance\s*\{[^\n]*\}[ \t]*$", "", text)
    _check_imports(text)
    try:
        _check_terminals(text)
        loaded, _ = load_grammar(text, "the grammar", [], False)
        _check_size(loaded)
        declared = {name for name, (tree, _) in loaded.term_defs if tree is None}
        terminals, productions, ignored = loaded.compile(["start"], ())
    except UnexpectedInput as error:
        raise GrammarError(
            f"this is no Lark grammar: {str(error).splitlines()[0]}", f"line {error.line}, column {error.column}"
        ) from error
    except (LarkError, LarkGrammarError, AssertionError, ValueError, OSError) as error:
        raise GrammarError(f"the Lark grammar cannot be read: {' '.join(str(error).split())[:300]}") from error
    except RecursionError as error:
        raise GrammarError("the Lark grammar is nested too deeply") from error
    if not any(rule.origin.name == "start" for rule in productions):
        raise GrammarError("the Lark grammar has no rule 'start'")
    missing = declared & {s.name for rule in productions for s in rule.expansion if s.is_term}
    if missing:
        raise GrammarError(
            f"the terminal {min(missing)} is declared without a pattern, so nothing can be written for it"
        )
    numbers = {terminal.name: place for place, terminal in enumerate(terminals)}
    names = list(dict.fromkeys(str(rule.origin.name) for rule in productions))
    number = {name: place for place, name in enumerate(names)}
    for rule in productions:
        for symbol in rule.expansion:
            if not symbol.is_term and symbol.name not in number:
                raise GrammarError(f"the rule {rule.origin.name} uses {symbol.name}, which is defined nowhere")
    return Rules(
        tuple(_terminal(terminal) for terminal in terminals),
        frozenset(numbers[name] for name in ignored),
        tuple(names),
        tuple(
            (
                number[str(rule.origin.name)],
                tuple(numbers[s.name] if s.is_term else ~number[str(s.name)] for s in rule.expansion),
            )
            for rule in productions
        ),
        number["start"],
        by_priority=True,
    )


def _terminal(given: Any) -> Terminal:
    pattern = given.pattern
    if isinstance(pattern, PatternStr):
        expression = literal_expression(pattern.value, "i" in pattern.flags)
        return Terminal(f'"{pattern.value}"', expression, True, given.priority)
    expression = read_regex(pattern.to_regexp(), f"the terminal {given.name}")
    return Terminal(str(given.name), expression, False, given.priority)


def _check_imports(text: str) -> None:
    """Only lark's own libraries: a grammar is text from anywhere, and must not read files."""
    for match in re.finditer(r"(?m)^\s*%import\s+(\S+)", text):
        if match[1].split(".")[0] not in _LIBRARIES:
            line = text.count("\n", 0, match.start(1)) + 1
            raise GrammarError(
                f"%import {match[1]}: only lark's own libraries can be imported ({', '.join(_LIBRARIES)}); write the "
                "rules into the grammar",
                f"line {line}",
            )


def _check_size(grammar: LarkGrammar) -> None:
    total = 0
    for name, _, tree, _ in grammar.rule_defs:
        count = _alternatives(tree)
        total += count
        if total > MOST_ALTERNATIVES:
            raise GrammarError(
                f"the rule {name} unfolds into {count} alternatives; up to {MOST_ALTERNATIVES} are taken in all: give "
                "its optional and repeated parts rules of their own"
            )


def _alternatives(tree: Any) -> int:
    """How many alternatives without options lark makes of a part of a rule."""
    if not isinstance(tree, Tree):
        return 1
    if tree.data == "expansions":
        return sum(map(_alternatives, tree.children))
    if tree.data in ("expansion", "alias", "value"):
        product = 1
        for child in tree.children:
            product = min(product * _alternatives(child), 1 << 40)
        return product
    if tree.data == "maybe":
        return _alternatives(tree.children[0]) + 1
    if tree.data == "expr":
        inner, op = _alternatives(tree.children[0]), str(tree.children[1])
        if op == "~":
            low, high = int(str(tree.children[2])), int(str(tree.children[-1]))
            if max(low, high) > MOST_ALTERNATIVES:
                raise GrammarError(f"a rule is repeated {max(low, high)} times; up to {MOST_ALTERNATIVES} are taken")
            if high >= _INLINE_REPEATS:
                return inner + high
            return min(sum(min(inner**count, 1 << 40) for count in range(low, high + 1)), 1 << 40)
        # Repeats become a rule of their own with twice the alternatives.
        return inner + 1 if op == "?" else 2 if inner == 1 else min(2 * inner, 1 << 40)
    return 1


def _check_terminals(text: str) -> None:
    """Terminals are put into one another as text, which can double with every step: their length is counted before."""
    bare = re.sub(r'//[^\n]*|"(?:\\.|[^"\\\n])*"|/(?:\\.|[^/\\\n])+/', lambda match: "'" * len(match[0]), text)
    heads = list(re.finditer(r"(?m)^[ \t]*[?!]*([_a-zA-Z]\w*)(?:\{[^}\n]*\})?(?:\.-?\d+)?[ \t]*:", bare))
    ends = [*(head.start() for head in heads[1:]), len(bare)]
    bodies = {head[1]: bare[head.end() : end] for head, end in zip(heads, ends, strict=True) if head[1].isupper()}
    sizes: dict[str, int] = {}

    def size(name: str, above: tuple[str, ...]) -> int:
        if name in above or name not in bodies:
            # What is imported is short, and a terminal within itself is for lark to refuse.
            return 100
        if name not in sizes:
            inner = re.findall(r"\b_*[A-Z][_A-Z0-9]*\b", bodies[name])
            sizes[name] = len(bodies[name]) + sum(size(other, (*above, name)) for other in inner)
        return sizes[name]

    for name in bodies:
        if size(name, ()) > MOST_CHARACTERS:
            raise GrammarError(
                f"the terminal {name} unfolds into more than {MOST_CHARACTERS} characters: make it shorter"
            )
