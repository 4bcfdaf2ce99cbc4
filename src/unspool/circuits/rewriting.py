"""Smaller circuits by classical means: every four-input cut of every gate is tried as its optimal tree.

The measure is the number of gates of the unrolled trees, since that is how circuits are written to models; gates that
compute the same are shared besides. Mishchenko, Chatterjee and Brayton, DAG-aware AIG rewriting, 2006, is the method of
which this is the case of whole trees: the best tree of a gate is the best over its cuts of an optimal tree of the cut's
function whose leaves are best trees themselves.
"""

from __future__ import annotations

from collections.abc import Sequence

from unspool.circuits.graph import Builder, Circuit
from unspool.circuits.optima import INPUTS, optima
from unspool.circuits.sequence import circuit_of, trees
from unspool.circuits.tables import widened
from unspool.circuits.tabular import synthesised

_CUTS = 10
"""Cuts that are kept of a gate, the ones with fewest gates above their leaves first."""

_VARIABLES = (0xAAAA, 0xCCCC, 0xF0F0, 0xFF00)
_WHOLE = 0xFFFF


def tree_gates(circuit: Circuit) -> int:
    """Gates of the outputs' trees, nothing shared."""
    sizes = circuit.tree_sizes()
    return sum(sizes[literal >> 1] for literal in circuit.outputs)


def shared(circuit: Circuit) -> Circuit:
    """The same with gates that compute the same merged; for up to eight inputs."""
    return circuit_of(trees(circuit), circuit.inputs).circuit


def _stretched(table: int, leaves: Sequence[int], wanted: Sequence[int]) -> int:
    """A table over some leaves as one over more of them, both of sixteen rows."""
    if list(leaves) == list(wanted[: len(leaves)]):
        return table
    place = [wanted.index(leaf) for leaf in leaves]
    made = 0
    for row in range(16):
        source = 0
        for index, at in enumerate(place):
            source |= (row >> at & 1) << index
        made |= (table >> source & 1) << row
    return made


def rewritten(circuit: Circuit) -> Circuit:
    """One pass: the best tree of every gate, by its cuts. For circuits of any number of inputs."""
    best = optima()
    first = circuit.inputs + 1
    cost = [0] * first
    cuts: list[list[tuple[tuple[int, ...], int]]] = [[((), 0)]]
    cuts += [[((node,), _VARIABLES[0])] for node in range(1, first)]
    chosen: dict[int, tuple[tuple[int, ...], int]] = {}
    for place, (left, right) in enumerate(circuit.gates):
        node = first + place
        found: dict[tuple[int, ...], tuple[int, int]] = {}
        for one, table_one in cuts[left >> 1]:
            for other, table_other in cuts[right >> 1]:
                leaves = tuple(sorted({*one, *other}))
                if len(leaves) > INPUTS or leaves in found:
                    continue
                a = _stretched(table_one, one, leaves) ^ (_WHOLE if left & 1 else 0)
                b = _stretched(table_other, other, leaves) ^ (_WHOLE if right & 1 else 0)
                table = a & b
                uses = best.uses(table)
                total = int(best.gates[table]) + sum(
                    count * cost[leaf] for leaf, count in zip(leaves, uses, strict=False)
                )
                found[leaves] = total, table
        ranked = sorted(found.items(), key=lambda item: (item[1][0], len(item[0]), item[0]))
        leaves, (total, table) = ranked[0]
        cost.append(total)
        chosen[node] = leaves, table
        cuts.append([((node,), _VARIABLES[0]), *((cut, value[1]) for cut, value in ranked[:_CUTS])])
    builder = Builder(circuit.inputs)
    literals = {node: 2 * node for node in range(first)}
    for place in range(len(circuit.gates)):
        leaves, table = chosen[first + place]
        literals[first + place] = best.build(builder, table, [literals[leaf] for leaf in leaves])
    made = builder.circuit([literals[literal >> 1] ^ literal & 1 for literal in circuit.outputs])
    return made.hashed()


def reduced(circuit: Circuit) -> Circuit:
    """Rewrite until nothing is gained; up to four inputs the result is optimal as trees.

    For up to eight inputs. It begins both with the circuit as it is and with one made of its truth table, and keeps
    what has fewer gates in its trees.
    """
    if circuit.inputs <= INPUTS:
        best, builder = optima(), Builder(circuit.inputs)
        leaves = [builder.input(index) for index in range(circuit.inputs)]
        tables = [widened(table, circuit.inputs, INPUTS) for table in circuit.output_tables()]
        return builder.circuit([best.build(builder, table, leaves) for table in tables]).hashed()
    found: Circuit | None = None
    for start in (shared(circuit), synthesised(circuit.inputs, circuit.output_tables())):
        while True:
            following = shared(rewritten(start))
            if tree_gates(following) >= tree_gates(start):
                break
            start = following
        if found is None or tree_gates(start) < tree_gates(found):
            found = start
    assert found is not None
    return found
