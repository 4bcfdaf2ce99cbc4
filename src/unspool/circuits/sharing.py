"""Gates that compute the same are one gate, found while a circuit is built.

When a gate is finished its table and the table's complement are looked up among the gates that are in use. If one of
them is there it takes the new gate's place, and whatever only the new gate used is given back, recursively. The number
of gates in use is what a text costs (Circuit Transformer, 2025, section 3.3: every gate costs 1, and what is merged is
refunded).
"""

from __future__ import annotations

from collections.abc import Sequence

from unspool.circuits.graph import Circuit
from unspool.circuits.tables import full, variable


class Sharing:
    """A circuit that is built from the leaves upwards.

    Args:
        inputs: up to eight.

    Attributes:
        live: gates in use.
    """

    def __init__(self, inputs: int) -> None:
        self.inputs = inputs
        self._whole = full(inputs)
        # Of every node: its table, the literals of a gate, and how many use it.
        self._tables = [0, *(variable(inputs, index) for index in range(inputs))]
        self._gates: list[tuple[int, int] | None] = [None] * (inputs + 1)
        self._uses = [0] * (inputs + 1)
        self._by_table = {table: node for node, table in enumerate(self._tables)}
        self.live = 0

    def input(self, index: int) -> int:
        """The literal of an input."""
        return 2 * (index + 1)

    def table(self, literal: int) -> int:
        """Of a literal."""
        return self._tables[literal >> 1] ^ (self._whole if literal & 1 else 0)

    def gate(self, left: int, right: int) -> int:
        """The literal of ``left AND right``, both of which are used up; whoever has the result uses it."""
        table = self.table(left) & self.table(right)
        node, inverted = self._by_table.get(table), 0
        if node is None:
            node, inverted = self._by_table.get(table ^ self._whole), 1
        if node is not None:
            # Taken before the operands are given back: it may be one of them.
            self._uses[node] += 1
            self.drop(left)
            self.drop(right)
            return 2 * node + inverted
        node = len(self._tables)
        self._tables.append(table)
        self._gates.append((left, right))
        self._uses.append(1)
        self._by_table[table] = node
        self.live += 1
        return 2 * node

    def drop(self, literal: int) -> None:
        """Somebody does not use a literal any more; gates that nobody uses are gone."""
        waiting = [literal >> 1]
        while waiting:
            node = waiting.pop()
            gate = self._gates[node]
            if gate is None:
                continue
            self._uses[node] -= 1
            if not self._uses[node]:
                del self._by_table[self._tables[node]]
                self.live -= 1
                waiting += [gate[0] >> 1, gate[1] >> 1]

    def circuit(self, outputs: Sequence[int]) -> Circuit:
        """The gates in use, and some literals as outputs."""
        place = {node: node for node in range(self.inputs + 1)}
        gates: list[tuple[int, int]] = []
        for node, gate in enumerate(self._gates):
            if gate is not None and self._uses[node]:
                place[node] = self.inputs + 1 + len(gates)
                gates.append((2 * place[gate[0] >> 1] + (gate[0] & 1), 2 * place[gate[1] >> 1] + (gate[1] & 1)))
        return Circuit(self.inputs, tuple(gates), tuple(2 * place[literal >> 1] + (literal & 1) for literal in outputs))
