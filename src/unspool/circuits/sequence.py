"""Circuits as sequences of tokens: every output unrolled to a tree, written in preorder.

Tokens: 0 pads, and begins a decoder's text; 1 ends; ``2 + 2i`` is ``x_i`` and ``3 + 2i`` its complement, for eight
inputs; 18 is AND and 19 NAND, each followed by its left and then its right operand.

What a model is asked is a *problem*: the trees of a circuit, token 1, and if there are don't-cares token 0 and as many
trees again, each 1 where that output is free, and token 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unspool.circuits.graph import FALSE, Circuit
from unspool.circuits.sharing import Sharing
from unspool.circuits.tables import MOST_INPUTS, CircuitError, full

PAD, EOS = 0, 1
AND, NAND = 2 + 2 * MOST_INPUTS, 3 + 2 * MOST_INPUTS
VOCABULARY = NAND + 1
MOST_OUTPUTS = 4
LONGEST = 4096
"""Tokens of a problem at most: trees grow exponentially with the depth of a circuit."""


def leaf(index: int, inverted: bool = False) -> int:
    """The token of ``x_index`` or its complement."""
    return 2 + 2 * index + inverted


def trees(circuit: Circuit) -> list[int]:
    """The outputs as trees in preorder, one behind the other; a constant is ``x0 AND NOT x0``.

    Raises:
        CircuitError: if that is longer than :data:`LONGEST`, or the circuit has more than eight inputs.
    """
    if circuit.inputs > MOST_INPUTS:
        raise CircuitError(f"the circuit has {circuit.inputs} inputs; tokens name {MOST_INPUTS} (x0 to x7)")
    sizes = circuit.tree_sizes()
    length = sum(2 * sizes[literal >> 1] + 1 for literal in circuit.outputs)
    if length > LONGEST:
        raise CircuitError(
            f"without sharing the circuit has {length} nodes, more than {LONGEST}: give its truth table instead"
        )
    tokens: list[int] = []
    stack = list(reversed(circuit.outputs))
    while stack:
        literal = stack.pop()
        node, inverted = literal >> 1, literal & 1
        gate = circuit.node(node)
        if gate is not None:
            tokens.append(AND + inverted)
            stack += [gate[1], gate[0]]
        elif node:
            tokens.append(leaf(node - 1, bool(inverted)))
        else:
            tokens += [AND if literal == FALSE else NAND, leaf(0), leaf(0, True)]
    return tokens


@dataclass(frozen=True)
class Read:
    """What tokens stand for.

    Args:
        circuit: the finished outputs, gates shared.
        open: slots of the tree that is not finished; 0 if none is.
        length: tokens that belong to it.
    """

    circuit: Circuit
    open: int
    length: int


def circuit_of(tokens: Sequence[int], inputs: int = 0) -> Read:
    """The circuit of some trees, up to the first token that is none of a tree.

    Args:
        tokens: in preorder.
        inputs: of the circuit at least; it has those that occur.
    """
    sharing = Sharing(max([inputs, *((token - 2) // 2 + 1 for token in circuit_part(tokens) if token < AND)]))
    outputs: list[int] = []
    stack: list[tuple[bool, int | None]] = []
    length = 0
    for token in tokens:
        if token < 2:
            break
        length += 1
        if token >= AND:
            stack.append((token == NAND, None))
            continue
        literal = sharing.input((token - 2) // 2) ^ token & 1
        while stack:
            inverted, left = stack.pop()
            if left is None:
                stack.append((inverted, literal))
                break
            literal = sharing.gate(left, literal) ^ inverted
        else:
            outputs.append(literal)
    slots = sum(2 if left is None else 1 for _, left in stack) - max(len(stack) - 1, 0)
    for _, left in stack:
        if left is not None:
            sharing.drop(left)
    return Read(sharing.circuit(outputs), slots, length)


def unfinished(tokens: Sequence[int]) -> str:
    """The last tree of some tokens in words, ``?`` in its open slots; empty if all are finished."""
    depth, start = 0, 0
    for place, token in enumerate(tokens):
        depth = (depth or 1) + (1 if token >= AND else -1)
        if depth == 0:
            start = place + 1
    if not depth:
        return ""
    # From the back, every operator finds its operands on the stack.
    stack: list[str] = ["?"] * depth
    for token in reversed(tokens[start:]):
        if token >= AND:
            left, right = stack.pop(), stack.pop()
            stack.append(f"{'~' if token == NAND else ''}({left} & {right})")
        else:
            stack.append(f"{'~' if token & 1 else ''}x{(token - 2) // 2}")
    return stack[0]


@dataclass(frozen=True)
class Task:
    """What a circuit has to do.

    Args:
        inputs: how many.
        targets: for every output its table.
        cares: for every output the rows that matter.
    """

    inputs: int
    targets: tuple[int, ...]
    cares: tuple[int, ...]

    def done_by(self, tables: Sequence[int]) -> bool:
        """Whether outputs of these tables do it."""
        pairs = zip(self.targets, self.cares, tables, strict=True) if len(tables) == len(self.targets) else ()
        return len(tables) == len(self.targets) and all(not (want ^ got) & care for want, care, got in pairs)


def problem(circuit: Circuit, free: Circuit | None = None) -> list[int]:
    """The tokens of a problem.

    Args:
        circuit: that is to be made smaller.
        free: with as many outputs, 1 where an output of the other does not matter.
    """
    tokens = [*trees(circuit), EOS]
    if free is not None and any(literal != FALSE for literal in free.outputs):
        if len(free.outputs) != len(circuit.outputs):
            raise CircuitError(f"{len(free.outputs)} don't-cares were given for {len(circuit.outputs)} outputs")
        tokens += [PAD, *trees(free), EOS]
    return tokens


def circuit_part(tokens: Sequence[int]) -> list[int]:
    """The trees of a problem's circuit."""
    end = next((place for place, token in enumerate(tokens) if token < 2), len(tokens))
    return list(tokens[:end])


def task_of(tokens: Sequence[int]) -> tuple[Circuit, Task]:
    """The circuit of a problem, and what it does.

    Raises:
        CircuitError: if the tokens are no problem.
    """
    first = circuit_part(tokens)
    rest = list(tokens[len(first) :])
    second: list[int] = []
    if rest[:2] == [EOS, PAD]:
        second = circuit_part(rest[2:])
        rest = [EOS, *rest[2 + len(second) :][1:]]
    if rest not in ([EOS], []) or not first:
        raise CircuitError("these tokens are no circuit: trees in preorder and the end token are")
    inputs = max((token - 2) // 2 + 1 for token in first + second if token < AND)
    parts = [circuit_of(part, inputs) for part in (first, second)]
    if any(part.open for part in parts):
        raise CircuitError("these tokens are no circuit: the last tree is not finished")
    circuit, free = parts[0].circuit, parts[1].circuit
    if len(circuit.outputs) > MOST_OUTPUTS:
        raise CircuitError(f"the circuit has {len(circuit.outputs)} outputs; {MOST_OUTPUTS} are possible")
    if second and len(free.outputs) != len(circuit.outputs):
        raise CircuitError(f"{len(free.outputs)} don't-cares were given for {len(circuit.outputs)} outputs")
    whole = full(inputs)
    cares = [whole ^ table for table in free.output_tables()] if second else [whole] * len(circuit.outputs)
    return circuit, Task(inputs, tuple(circuit.output_tables()), tuple(cares))
