"""Random circuits and smaller ones that do the same, as pairs of token sequences.

Most circuits are random gates over random wires; of up to four inputs one in four begins with a random truth table, of
which the circuit is a decision diagram with inputs in random order. Up to four inputs targets are optimal as trees;
beyond, every four-input cut is rewritten by the table of optima until nothing is gained
(:mod:`unspool.circuits.rewriting`). Which functions are held out depends on their truth tables alone.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from unspool.circuits.cutoff import Place
from unspool.circuits.graph import Builder, Circuit
from unspool.circuits.optima import INPUTS, optima
from unspool.circuits.rewriting import reduced, tree_gates
from unspool.circuits.sequence import AND, EOS, NAND, Task, circuit_of, leaf, trees
from unspool.circuits.tables import depends, full, variable, widened
from unspool.circuits.tabular import synthesised
from unspool.training.corpora import Split

_HELD_OUT = 16
"""One set of output functions in so many is kept from training."""


@dataclass(frozen=True)
class Pair:
    """A circuit and a smaller one.

    Args:
        circuit: as it is given.
        source: its trees.
        target: trees of the smaller one, operands in a fixed order.
        astray: the tokens of it, from one place up to another, that a network should not learn; see :func:`strayed`.
    """

    circuit: Circuit
    source: tuple[int, ...]
    target: tuple[int, ...]
    astray: tuple[int, int] = (0, 0)

    @property
    def best_size(self) -> int:
        """Gates of the target, shared."""
        return len(circuit_of(self.target, self.circuit.inputs).circuit.gates)


def held_out(circuit: Circuit) -> bool:
    """Whether a circuit's functions are kept from training."""
    told = f"{circuit.inputs} {circuit.output_tables()}"
    return hashlib.sha256(told.encode()).digest()[0] % _HELD_OUT == 0


def ordered(tokens: Sequence[int]) -> tuple[int, ...]:
    """Trees with the smaller operand of every gate first, by length and then by tokens."""
    stack: list[tuple[int, ...]] = []
    # From the back, every operator finds its operands on the stack.
    for token in reversed(tokens):
        if token >= AND:
            pair = sorted((stack.pop(), stack.pop()), key=lambda tree: (len(tree), tree))
            stack.append((token, *pair[0], *pair[1]))
        else:
            stack.append((token,))
    return tuple(token for tree in reversed(stack) for token in tree)


def random_gates(rng: random.Random, inputs: int, outputs: int, gates: int) -> Circuit:
    """Random gates over random wires; some operands are wires that nothing reads yet, in some circuits more of them."""
    builder = Builder(inputs)
    wires = [builder.input(index) for index in range(inputs)]
    fresh = list(wires)
    rng.shuffle(fresh)
    new = rng.uniform(0.3, 0.7)

    def operand() -> int:
        literal = fresh.pop(0) if fresh and rng.random() < new else rng.choice(wires)
        return literal ^ rng.getrandbits(1)

    while len(builder.gates) < gates:
        a, b = operand(), operand()
        made = builder.lxor(a, b) if rng.random() < 0.15 else builder.land(a, b)
        if made > 1 and made & ~1 not in wires:
            wires.append(made & ~1)
            fresh.append(made & ~1)
    return builder.circuit([literal ^ rng.getrandbits(1) for literal in wires[-outputs:]]).hashed()


def random_tables(rng: random.Random, inputs: int, outputs: int) -> Circuit:
    """Random truth tables, as decision diagrams with the inputs in random order."""
    order = list(range(inputs))
    rng.shuffle(order)
    tables = [rng.getrandbits(1 << inputs) & full(inputs) for _ in range(outputs)]
    made = synthesised(inputs, tables)
    named = [0, *(2 * (order[index] + 1) for index in range(inputs))]
    builder = Builder(inputs)
    for left, right in made.gates:
        named.append(builder.land(named[left >> 1] ^ left & 1, named[right >> 1] ^ right & 1))
    return builder.circuit([named[literal >> 1] ^ literal & 1 for literal in made.outputs]).hashed()


def pairs(
    *,
    seed: int,
    split: Split = "held-out",
    inputs: Sequence[int] = (4,),
    outputs: Sequence[int] = (1, 2),
    longest: tuple[int, int] = (120, 80),
    from_tables: float = 0.25,
) -> Iterator[Pair]:
    """Pairs without end, at random.

    Args:
        seed: equal seeds give equal pairs.
        split: those for training, those held out, or all.
        inputs, outputs: numbers of them, each as often as it stands there.
        longest: tokens of source and target at most.
        from_tables: share of the circuits of up to four inputs that begin with a random truth table.
    """
    rng = random.Random(f"circuits {seed}")
    while True:
        count, wanted = rng.choice(inputs), rng.choice(outputs)
        if count > INPUTS or rng.random() >= from_tables:
            circuit = random_gates(rng, count, wanted, rng.randint(2 * count, 5 * count))
        else:
            circuit = random_tables(rng, count, wanted)
        tables = circuit.output_tables()
        whole = full(count)
        plain = {0, whole, *(variable(count, i) ^ flip for i in range(count) for flip in (0, whole))}
        if len({min(table, table ^ whole) for table in tables}) < wanted or plain.intersection(tables):
            continue
        if not all(any(depends(count, table, index) for table in tables) for index in range(count)):
            continue
        if split != "all" and held_out(circuit) != (split == "held-out"):
            continue
        if 2 * tree_gates(circuit) + wanted > longest[0]:
            continue
        target = reduced(circuit)
        if 2 * tree_gates(target) + wanted > longest[1]:
            continue
        yield Pair(circuit, tuple(trees(circuit)), (*ordered(trees(target)), EOS))


def relabelled(pair: Pair, rng: random.Random) -> Pair:
    """The same pair with its inputs in another order, and some of them complemented."""
    order = list(range(pair.circuit.inputs))
    rng.shuffle(order)
    flips = [rng.getrandbits(1) for _ in order]

    def renamed(token: int) -> int:
        index = (token - 2) // 2
        return leaf(order[index], bool(token & 1 ^ flips[index])) if 2 <= token < AND else token

    source = tuple(renamed(token) for token in pair.source)
    target = tuple(renamed(token) for token in pair.target[:-1])
    if not pair.astray[1]:
        target = ordered(target)
    return Pair(circuit_of(source, pair.circuit.inputs).circuit, source, (*target, EOS), pair.astray)


def strayed(pair: Pair, rng: random.Random, longest: int = 80) -> Pair:
    """The same pair with a detour: some subtree begins with a gate and a left operand at random, as far as they can
    still be right, and its right operand makes the best of it.

    A network that is shown nothing but the best trees does not know how to go on when it has not begun with one.
    """
    inputs, body = pair.circuit.inputs, pair.target[:-1]
    places = [place for place, token in enumerate(body) if token >= AND]
    if not places:
        return pair
    start = rng.choice(places)
    end = _end_of(body, start)
    (table,) = circuit_of(body[start:end], inputs).circuit.output_tables()
    place = Place(Task(inputs, (table,), (full(inputs),)))
    detour: list[int] = []

    def push(token: int) -> None:
        nonlocal place
        detour.append(token)
        place = place.push(token)

    push(rng.choice([AND, NAND]))
    while place.depth > 1 or (place.gate is not None and place.gate.left is None):
        allowed = place.allowed(3)
        leaves, gates = [token for token in allowed if 2 <= token < AND], [token for token in allowed if token >= AND]
        if not leaves and not gates:
            return pair
        push(rng.choice(gates if gates and (not leaves or rng.random() < 0.3) else leaves))
    need = place.needs
    right = _between(inputs, need.one, full(inputs) & ~need.zero)
    target = (*body[:start], *detour, *right, *body[end:], EOS)
    if len(target) > longest:
        return pair
    return Pair(pair.circuit, pair.source, target, (start, start + len(detour)))


def _end_of(tokens: Sequence[int], start: int) -> int:
    """Where the tree ends that begins at ``start``."""
    open_slots, at = 1, start
    while open_slots:
        open_slots += 1 if tokens[at] >= AND else -1
        at += 1
    return at


def _between(inputs: int, low: int, high: int) -> tuple[int, ...]:
    """A small tree of a function between two bounds; up to four inputs a smallest."""
    if inputs > INPUTS:
        made = reduced(synthesised(inputs, [low], [high & ~low]))
        return ordered(trees(made))
    best, every = optima(), np.arange(1 << 16, dtype=np.uint16)
    low, high = widened(low, inputs, INPUTS), widened(high, inputs, INPUTS)
    fits = ((every & np.uint16(low)) == low) & ((every & np.uint16(0xFFFF ^ high)) == 0)
    table = int(every[fits][best.gates[fits].argmin()])
    builder = Builder(inputs)
    literal = best.build(builder, table, [builder.input(index) for index in range(inputs)])
    return ordered(trees(builder.circuit([literal])))


__all__ = ["Pair", "held_out", "ordered", "pairs", "random_gates", "random_tables", "relabelled", "strayed"]
