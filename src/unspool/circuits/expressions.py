"""Circuits as Boolean expressions: ``y0 = x0 & ~(x1 | x2) ^ x3; y1 = x0``.

Inputs are x0, x1, ...; outputs are y0, y1, ... . Operators, the tightest first: ``~`` (also ``!``, ``not``), ``&``
(``*``, ``and``), ``^`` (``xor``), ``|`` (``+``, ``or``); 0 and 1 are constants. Other names are wires: they are
given a value before they are used. Assignments are separated by ``;`` or line ends; ``#`` begins a comment. A lone
expression is y0.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from unspool.circuits.graph import FALSE, TRUE, Builder, Circuit
from unspool.circuits.tables import CircuitError

MOST_CHARACTERS = 200_000
_TOKEN = re.compile(r"\s*(?:(?P<name>[A-Za-z_]\w*)|(?P<constant>[01])(?!\w)|(?P<sign>[~!&*^|+()=]))")
_WORDS = {"not": "~", "and": "&", "xor": "^", "or": "|"}
_SIGNS = {"!": "~", "*": "&", "+": "|"}
_TIGHTNESS = {"|": 1, "^": 2, "&": 3, "~": 4}
_INPUT, _OUTPUT = re.compile(r"x(\d+)"), re.compile(r"y(\d+)")


@dataclass(frozen=True)
class _Word:
    text: str
    kind: str
    column: int


def _words(line: str, number: int) -> list[_Word]:
    found, at = [], 0
    end = len(line.rstrip())
    while at < end:
        match = _TOKEN.match(line, at)
        if match is None:
            column = at + len(line[at:]) - len(line[at:].lstrip()) + 1
            raise CircuitError(
                f"line {number}, column {column}: {line[column - 1]!r} is no part of an expression; "
                "it is made of x0 to x7, 0, 1, ~ & ^ | and parentheses"
            )
        kind = str(match.lastgroup)
        text = match.group(kind)
        if kind == "name" and text.lower() in _WORDS:
            kind, text = "sign", _WORDS[text.lower()]
        found.append(_Word(_SIGNS.get(text, text), kind, match.start(kind) + 1))
        at = match.end()
    return found


class _Reader:
    def __init__(self, inputs: int) -> None:
        self.builder = Builder(inputs)
        self.names: dict[str, int] = {}

    def operand(self, word: _Word, number: int) -> int:
        if word.kind == "constant":
            return TRUE if word.text == "1" else FALSE
        if word.text in self.names:
            return self.names[word.text]
        match = _INPUT.fullmatch(word.text)
        if match is None:
            raise CircuitError(
                f"line {number}, column {word.column}: {word.text!r} has no value yet; inputs are called x0, x1, ..., "
                "and a wire is given its value before it is used (t = x0 & x1; y0 = t | x2)"
            )
        return self.builder.input(int(match[1]))

    def value(self, words: list[_Word], number: int) -> int:
        """The literal of an expression, by two stacks, so that no nesting is too deep."""
        values: list[int] = []
        signs: list[_Word] = []
        wants = True

        def apply() -> None:
            sign = signs.pop()
            if sign.text == "~":
                values[-1] ^= 1
                return
            right, left = values.pop(), values.pop()
            make = {"&": self.builder.land, "^": self.builder.lxor, "|": self.builder.lor}[sign.text]
            values.append(make(left, right))

        for word in words:
            opens = word.text in ("(", "~") or word.kind != "sign"
            if opens != wants or word.text == "=":
                what = "an operand" if wants else "an operator"
                raise CircuitError(f"line {number}, column {word.column}: {word.text!r} stands where {what} should")
            if word.text == "(" or word.text == "~":
                signs.append(word)
            elif word.kind != "sign":
                values.append(self.operand(word, number))
                wants = False
            elif word.text == ")":
                while signs and signs[-1].text != "(":
                    apply()
                if not signs:
                    raise CircuitError(f"line {number}, column {word.column}: this ) closes nothing")
                signs.pop()
            else:
                while signs and signs[-1].text != "(" and _TIGHTNESS[signs[-1].text] >= _TIGHTNESS[word.text]:
                    apply()
                signs.append(word)
                wants = True
        if wants:
            raise CircuitError(f"line {number}: the expression ends where an operand should follow")
        while signs:
            if signs[-1].text == "(":
                raise CircuitError(f"line {number}, column {signs[-1].column}: this ( is never closed")
            apply()
        return values[0]


def read_expressions(text: str) -> Circuit:
    """The circuit of one or several assignments.

    Raises:
        CircuitError: with line and column.
    """
    if len(text) > MOST_CHARACTERS:
        raise CircuitError(f"the expressions have {len(text)} characters; {MOST_CHARACTERS} can be read")
    statements: list[tuple[int, list[_Word]]] = []
    for number, line in enumerate(text.splitlines(), 1):
        for part in line.partition("#")[0].split(";"):
            if words := _words(part, number):
                statements.append((number, words))
    if not statements:
        raise CircuitError("there is no expression: write y0 = x0 & ~(x1 | x2), for example")
    named = [int(m[1]) for _, words in statements for word in words if (m := _INPUT.fullmatch(word.text))]
    if max(named, default=0) >= 1000:
        raise CircuitError(f"input x{max(named)}: inputs are numbered from x0")
    reader = _Reader(max(named, default=-1) + 1)
    outputs: dict[int, int] = {}
    for number, words in statements:
        assigns = len(words) > 1 and words[1].text == "="
        name = words[0].text if assigns else "y0"
        if assigns and words[0].kind != "name":
            raise CircuitError(f"line {number}: {name!r} is no name that can be given a value")
        if not assigns and len(statements) > 1:
            raise CircuitError(f"line {number}: with several expressions each is given a name: y0 = ...; y1 = ...")
        if _INPUT.fullmatch(name) or name in reader.names:
            raise CircuitError(f"line {number}: {name} has a value already")
        value = reader.value(words[2:] if assigns else words, number)
        reader.names[name] = value
        if match := _OUTPUT.fullmatch(name):
            outputs[int(match[1])] = value
    if sorted(outputs) != list(range(len(outputs))) or not outputs:
        found = ", ".join(f"y{place}" for place in sorted(outputs)) or "none"
        raise CircuitError(f"outputs are called y0, y1, ... without a gap; here: {found}")
    return reader.builder.circuit([outputs[place] for place in range(len(outputs))])


def write_expressions(circuit: Circuit) -> str:
    """A circuit in this notation; a gate that is used more than once becomes a wire t0, t1, ...

    Read again it is the same circuit, gate for gate.
    """
    uses: dict[int, int] = {}
    for gate in circuit.gates:
        for literal in gate:
            uses[literal >> 1] = uses.get(literal >> 1, 0) + 1
    for literal in circuit.outputs:
        uses[literal >> 1] = uses.get(literal >> 1, 0) + 1
    # Of every node, as text and complement, and how tightly each is bound.
    texts: dict[int, tuple[str, int]] = {0: ("0", 9), 1: ("1", 9)}
    statements: list[str] = []
    wires = 0

    def word(literal: int, within: int) -> str:
        text, tightness = texts[literal]
        return f"({text})" if tightness < within else text

    for node in range(1, circuit.inputs + 1):
        texts[2 * node], texts[2 * node + 1] = (f"x{node - 1}", 9), (f"~x{node - 1}", 4)
    for place, (left, right) in enumerate(circuit.gates):
        literal = 2 * (circuit.inputs + 1 + place)
        made = f"{word(left, 3)} & {word(right, 4)}"
        if uses.get(literal >> 1, 0) > 1:
            name = f"t{wires}"
            wires += 1
            statements.append(f"{name} = {made}")
            texts[literal], texts[literal + 1] = (name, 9), (f"~{name}", 4)
        else:
            texts[literal] = (made, 3)
            texts[literal + 1] = (f"{word(left ^ 1, 1)} | {word(right ^ 1, 2)}", 1)
    statements += [f"y{place} = {word(literal, 0)}" for place, literal in enumerate(circuit.outputs)]
    return "; ".join(statements)
