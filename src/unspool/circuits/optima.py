"""The smallest trees of all functions of up to four inputs, and of those between two bounds.

Trees of ANDs and inverters by number of gates: level by level, every function of ``k`` gates is the AND of one of ``i``
and one of ``k - 1 - i`` gates, complements being free. All 65,536 functions of four inputs are reached with 15 gates
(parity needs them), in a few seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from unspool.circuits.graph import FALSE, TRUE, Builder
from unspool.circuits.tables import variable

INPUTS = 4
_FUNCTIONS = 1 << (1 << INPUTS)
_WHOLE = _FUNCTIONS - 1


@dataclass(frozen=True)
class Optima:
    """For every table of four inputs the least number of gates of a tree, and the operands of its last gate.

    Args:
        gates: ``[65536]`` uint8.
        left, right: ``[65536]`` uint16 tables: the function is ``left AND right`` or its complement, where
            ``inverted`` says so. Leaves have none.
        inverted: ``[65536]`` bool.
    """

    gates: NDArray[np.uint8]
    left: NDArray[np.uint16]
    right: NDArray[np.uint16]
    inverted: NDArray[np.bool_]

    def build(self, builder: Builder, table: int, leaves: list[int]) -> int:
        """Make a smallest tree, each of whose inputs is the literal in ``leaves``; gates that are there are shared."""
        if table in (0, _WHOLE):
            return FALSE if table == 0 else TRUE
        if not self.gates[table]:
            for index, literal in enumerate(leaves):
                if table == _VARIABLES[index]:
                    return literal
                if table == _VARIABLES[index] ^ _WHOLE:
                    return literal ^ 1
        made = builder.land(
            self.build(builder, int(self.left[table]), leaves), self.build(builder, int(self.right[table]), leaves)
        )
        return made ^ int(self.inverted[table])

    def uses(self, table: int) -> tuple[int, ...]:
        """How often the tree of :meth:`build` reads each of the four inputs."""
        return _uses(self, table)


_VARIABLES = tuple(variable(INPUTS, index) for index in range(INPUTS))


@cache
def _uses_of_leaf(table: int) -> tuple[int, ...]:
    return tuple(int(table in (one, one ^ _WHOLE)) for one in _VARIABLES)


def _uses(optima: Optima, table: int) -> tuple[int, ...]:
    known = _USES.get(table)
    if known is None:
        if not optima.gates[table]:
            known = _uses_of_leaf(table)
        else:
            left, right = _uses(optima, int(optima.left[table])), _uses(optima, int(optima.right[table]))
            known = tuple(a + b for a, b in zip(left, right, strict=True))
        _USES[table] = known
    return known


# Of the one table there is; see `optima`.
_USES: dict[int, tuple[int, ...]] = {}


@cache
def optima() -> Optima:
    """The table, made when first asked for."""
    unknown = 255
    gates = np.full(_FUNCTIONS, unknown, dtype=np.uint8)
    left, right = np.zeros(_FUNCTIONS, dtype=np.uint16), np.zeros(_FUNCTIONS, dtype=np.uint16)
    inverted = np.zeros(_FUNCTIONS, dtype=np.bool_)
    # A function and its complement are one, stood for by the one that is 0 in the first row.
    first = np.array(sorted(one if not one & 1 else one ^ _WHOLE for one in _VARIABLES), dtype=np.uint16)
    levels: list[NDArray[np.uint16]] = [first]
    gates[first] = gates[first ^ np.uint16(_WHOLE)] = 0
    gates[[0, _WHOLE]] = 0
    found = INPUTS + 1
    while found < _FUNCTIONS // 2:
        size = len(levels)
        fresh: list[NDArray[np.uint16]] = []
        for small in range((size + 1) // 2):
            one, other = levels[small], levels[size - 1 - small]
            both = np.concatenate([other, other ^ np.uint16(_WHOLE)])
            for a in one:
                for operand in (a, a ^ np.uint16(_WHOLE)):
                    made = both & operand
                    new = gates[made] == unknown
                    if not new.any():
                        continue
                    tables, place = np.unique(made[new], return_index=True)
                    partners = both[new][place]
                    opposite = tables ^ np.uint16(_WHOLE)
                    gates[tables] = gates[opposite] = size
                    left[tables] = left[opposite] = operand
                    right[tables] = right[opposite] = partners
                    inverted[opposite] = True
                    fresh.append(np.where(tables & 1, opposite, tables))
        level = np.unique(np.concatenate(fresh)) if fresh else np.zeros(0, dtype=np.uint16)
        levels.append(level.astype(np.uint16))
        found += len(level)
    return Optima(gates, left, right, inverted)
