"""And-inverter graphs: gates with two inputs, AND alone, and inverters on the wires.

A wire is a *literal* as in AIGER files: ``2 * v`` is the value of node ``v``, ``2 * v + 1`` its complement. Node 0 is
the constant 0 (so that literal 1 is the constant 1), nodes 1 to ``inputs`` are the inputs, and then come the gates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unspool.circuits.tables import CircuitError, check_inputs, full, variable

FALSE, TRUE = 0, 1


@dataclass(frozen=True)
class Circuit:
    """A combinational circuit.

    Args:
        inputs: how many.
        gates: the two literals of every AND gate, each of a node before it.
        outputs: literals.

    Raises:
        CircuitError: if a gate reads what is not there yet, or an output what is not there.
    """

    inputs: int
    gates: tuple[tuple[int, int], ...]
    outputs: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.inputs < 0:
            raise CircuitError(f"a circuit cannot have {self.inputs} inputs")
        for place, gate in enumerate(self.gates):
            limit = 2 * (self.inputs + 1 + place)
            for literal in gate:
                if not 0 <= literal < limit:
                    raise CircuitError(f"gate {place} reads literal {literal}; before it there are 0 to {limit - 1}")
        limit = 2 * (self.inputs + 1 + len(self.gates))
        for place, literal in enumerate(self.outputs):
            if not 0 <= literal < limit:
                raise CircuitError(f"output y{place} is literal {literal}; there are 0 to {limit - 1}")

    def node(self, variable: int) -> tuple[int, int] | None:
        """The literals of a gate; ``None`` for an input or the constant."""
        return self.gates[variable - self.inputs - 1] if variable > self.inputs else None

    def tables(self) -> list[int]:
        """The truth table of every node.

        Raises:
            CircuitError: for more than eight inputs.
        """
        check_inputs(self.inputs)
        whole = full(self.inputs)
        found = [0, *(variable(self.inputs, index) for index in range(self.inputs))]
        for left, right in self.gates:
            a, b = found[left >> 1], found[right >> 1]
            found.append((a ^ whole if left & 1 else a) & (b ^ whole if right & 1 else b))
        return found

    def output_tables(self) -> list[int]:
        """The truth table of every output."""
        found, whole = self.tables(), full(self.inputs)
        return [found[literal >> 1] ^ (whole if literal & 1 else 0) for literal in self.outputs]

    def evaluate(self, row: Sequence[bool]) -> list[bool]:
        """The outputs for one value of every input; for circuits of any number of inputs."""
        if len(row) != self.inputs:
            raise CircuitError(f"{len(row)} values were given for {self.inputs} inputs")
        values = [False, *row]
        for left, right in self.gates:
            values.append((values[left >> 1] ^ bool(left & 1)) and (values[right >> 1] ^ bool(right & 1)))
        return [values[literal >> 1] ^ bool(literal & 1) for literal in self.outputs]

    def hashed(self) -> Circuit:
        """The same without gates that are there twice, are constant, or lead to no output (structural hashing)."""
        needed = self._needed()
        builder = Builder(self.inputs)
        place = list(range(self.inputs + 1)) + [0] * len(self.gates)
        literals = [2 * node for node in place]
        for index, (left, right) in enumerate(self.gates):
            node = self.inputs + 1 + index
            if node in needed:
                literals[node] = builder.land(literals[left >> 1] ^ left & 1, literals[right >> 1] ^ right & 1)
        made = builder.circuit([literals[literal >> 1] ^ literal & 1 for literal in self.outputs])
        # Folding may have cut off gates that were needed before.
        kept = made._needed()
        return made if len(kept) == len(made.gates) else made.hashed()

    def _needed(self) -> set[int]:
        """The gates that lead to an output."""
        found: set[int] = set()
        open_nodes = [literal >> 1 for literal in self.outputs]
        while open_nodes:
            node = open_nodes.pop()
            gate = self.node(node)
            if gate is not None and node not in found:
                found.add(node)
                open_nodes += [gate[0] >> 1, gate[1] >> 1]
        return found

    @property
    def size(self) -> int:
        """Gates, after structural hashing."""
        return len(self.hashed().gates)

    def tree_sizes(self) -> list[int]:
        """For every node the number of gates of the tree that it unrolls to."""
        found = [0] * (self.inputs + 1)
        for left, right in self.gates:
            found.append(1 + found[left >> 1] + found[right >> 1])
        return found


class Builder:
    """Makes a circuit gate by gate; gates that are there are used again, constants fold away.

    Args:
        inputs: how many.
    """

    def __init__(self, inputs: int) -> None:
        self.inputs = inputs
        self.gates: list[tuple[int, int]] = []
        self._known: dict[tuple[int, int], int] = {}

    def input(self, index: int) -> int:
        """The literal of ``x_index``."""
        return 2 * (index + 1)

    def land(self, a: int, b: int) -> int:
        """The literal of ``a AND b``."""
        if a > b:
            a, b = b, a
        if a == FALSE or a == b ^ 1:
            return FALSE
        if a in (TRUE, b):
            return b
        found = self._known.get((a, b))
        if found is None:
            self.gates.append((a, b))
            found = self._known[a, b] = 2 * (self.inputs + len(self.gates))
        return found

    def lor(self, a: int, b: int) -> int:
        """The literal of ``a OR b``."""
        return self.land(a ^ 1, b ^ 1) ^ 1

    def lxor(self, a: int, b: int) -> int:
        """The literal of ``a XOR b``, three gates."""
        return self.lor(self.land(a, b ^ 1), self.land(a ^ 1, b))

    def choose(self, condition: int, then: int, other: int) -> int:
        """The literal of ``then`` where ``condition``, else ``other``."""
        if then == other:
            return then
        if then == other ^ 1:
            return self.lxor(condition, other)
        return self.lor(self.land(condition, then), self.land(condition ^ 1, other))

    def circuit(self, outputs: Sequence[int]) -> Circuit:
        """What was made so far."""
        return Circuit(self.inputs, tuple(self.gates), tuple(outputs))
