"""AIGER files, ASCII (``aag``) and binary (``aig``): Biere, The AIGER And-Inverter Graph format, 2007, and 1.9, 2011.

Combinational circuits only: files with latches, or with properties of the format's version 1.9, are refused.
"""

from __future__ import annotations

from collections.abc import Set

from unspool.circuits.graph import Circuit
from unspool.circuits.tables import CircuitError

MOST_GATES = 1_000_000
_FIELDS = ("maximum variable", "inputs", "latches", "outputs", "gates")


def read_aiger(data: bytes) -> Circuit:
    """The circuit of a file, whichever of the two formats it is in.

    Raises:
        CircuitError: if it is neither, cut short, or not combinational.
    """
    header, newline, rest = data.partition(b"\n")
    words = header.split()
    if not newline or not words or words[0] not in (b"aag", b"aig"):
        raise CircuitError("an AIGER file begins with a line: aag or aig, and five numbers (M I L O A)")
    numbers = _numbers(words[1:], 1)
    if len(numbers) < 5 or len(numbers) > 9:
        raise CircuitError(f"line 1: {len(numbers)} numbers; aag and aig are followed by five (M I L O A)")
    most, inputs, latches, outputs, gates = numbers[:5]
    if latches:
        raise CircuitError(f"line 1: the circuit has {latches} latches; only combinational circuits can be read")
    if any(numbers[5:]):
        raise CircuitError(
            "line 1: the file states properties (bad, constraint, justice, fairness), not only a circuit"
        )
    if max(most, inputs, outputs, gates) > MOST_GATES:
        raise CircuitError(f"line 1: more than {MOST_GATES:,} of something; that is not read")
    if most < inputs + gates or (words[0] == b"aig" and most != inputs + gates):
        raise CircuitError(f"line 1: the maximum variable is {most}, with {inputs} inputs and {gates} gates")
    read = _read_ascii if words[0] == b"aag" else _read_binary
    return read(rest, most, inputs, outputs, gates)


def _numbers(words: list[bytes], line: int) -> list[int]:
    for word in words:
        if not word.isdigit() or len(word) > 9:
            raise CircuitError(f"line {line}: {word.decode('ascii', 'replace')!r} is no number that can stand here")
    return [int(word) for word in words]


class _Lines:
    """The lines after the header, each asked for by what it should hold."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at, self.line = data, 0, 1

    def take(self, count: int, what: str) -> list[int]:
        self.line += 1
        end = self.data.find(b"\n", self.at)
        words = self.data[self.at : len(self.data) if end < 0 else end].split()
        self.at = len(self.data) if end < 0 else end + 1
        numbers = _numbers(words, self.line)
        if len(numbers) != count:
            raise CircuitError(f"line {self.line}: {len(numbers)} numbers where {what} should be ({count})")
        return numbers


def _read_ascii(data: bytes, most: int, inputs: int, outputs: int, gates: int) -> Circuit:
    lines = _Lines(data)
    literals: dict[int, int] = {0: 0}
    for place in range(inputs):
        (literal,) = lines.take(1, "an input")
        _defines(literal, literals.keys(), most, lines.line)
        literals[literal >> 1] = 2 * (place + 1)
    wanted = [lines.take(1, "an output")[0] for _ in range(outputs)]
    asked: dict[int, tuple[int, int]] = {}
    for _ in range(gates):
        literal, left, right = lines.take(3, "a gate")
        _defines(literal, asked.keys() if literal >> 1 in asked else literals.keys(), most, lines.line)
        asked[literal >> 1] = (left, right)
    order = _ordered(asked, literals)
    made: list[tuple[int, int]] = []
    for node in order:
        left, right = asked[node]
        made.append((literals[left >> 1] ^ left & 1, literals[right >> 1] ^ right & 1))
        literals[node] = 2 * (inputs + len(made))
    for literal in wanted:
        if literal >> 1 not in literals:
            raise CircuitError(f"output {literal} is a literal that nothing defines")
    return Circuit(inputs, tuple(made), tuple(literals[literal >> 1] ^ literal & 1 for literal in wanted))


def _defines(literal: int, known: Set[int], most: int, line: int) -> None:
    if literal & 1 or literal < 2 or literal >> 1 > most:
        raise CircuitError(f"line {line}: {literal} cannot be defined; an even number from 2 to {2 * most} can")
    if literal >> 1 in known:
        raise CircuitError(f"line {line}: {literal} is defined twice")


def _ordered(asked: dict[int, tuple[int, int]], known: dict[int, int]) -> list[int]:
    """The gates, each after what it reads: a file may have them in any order."""
    done: dict[int, bool] = {}
    order: list[int] = []
    for first in asked:
        stack = [first]
        while stack:
            node = stack[-1]
            if done.get(node):
                stack.pop()
                continue
            below = [literal >> 1 for literal in asked[node] if literal >> 1 not in known]
            for inner in below:
                if inner not in asked:
                    raise CircuitError(f"the gate of literal {2 * node} reads {2 * inner}, which nothing defines")
            if node in done:
                # Seen before: all below it was visited in between.
                done[node] = True
                order.append(node)
                stack.pop()
                continue
            done[node] = False
            for inner in below:
                if inner in done and not done[inner]:
                    raise CircuitError(f"the gates of literals {2 * node} and {2 * inner} read each other")
                if inner not in done:
                    stack.append(inner)
    return order


def _read_binary(data: bytes, most: int, inputs: int, outputs: int, gates: int) -> Circuit:
    lines = _Lines(data)
    wanted = [lines.take(1, "an output")[0] for _ in range(outputs)]
    at = lines.at
    made: list[tuple[int, int]] = []

    def delta() -> int:
        nonlocal at
        value = shift = 0
        while True:
            if at >= len(data) or shift > 28:
                raise CircuitError(f"gate {len(made)}: the file ends, or is damaged, in the middle of a number")
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    for place in range(gates):
        literal = 2 * (inputs + 1 + place)
        first = literal - delta()
        second = first - delta()
        if not 0 <= second <= first < literal:
            raise CircuitError(f"gate {place} reads literals {first} and {second}, which do not descend from {literal}")
        made.append((first, second))
    for literal in wanted:
        if literal >> 1 > most:
            raise CircuitError(f"output {literal} is a literal that nothing defines")
    return Circuit(inputs, tuple(made), tuple(wanted))


def write_aag(circuit: Circuit) -> bytes:
    """An ASCII file."""
    most = circuit.inputs + len(circuit.gates)
    lines = [f"aag {most} {circuit.inputs} 0 {len(circuit.outputs)} {len(circuit.gates)}"]
    lines += [str(2 * (place + 1)) for place in range(circuit.inputs)]
    lines += [str(literal) for literal in circuit.outputs]
    for place, gate in enumerate(circuit.gates):
        lines.append(f"{2 * (circuit.inputs + 1 + place)} {max(gate)} {min(gate)}")
    return ("\n".join(lines) + "\n").encode("ascii")


def write_aig(circuit: Circuit) -> bytes:
    """A binary file."""
    most = circuit.inputs + len(circuit.gates)
    head = [f"aig {most} {circuit.inputs} 0 {len(circuit.outputs)} {len(circuit.gates)}"]
    head += [str(literal) for literal in circuit.outputs]
    data = bytearray(("\n".join(head) + "\n").encode("ascii"))
    for place, gate in enumerate(circuit.gates):
        literal = 2 * (circuit.inputs + 1 + place)
        for value in (literal - max(gate), max(gate) - min(gate)):
            while value >= 128:
                data.append(value & 127 | 128)
                value >>= 7
            data.append(value)
    return bytes(data)
