"""Truth tables of up to eight inputs, packed into the bits of one number.

Bit ``r`` of a table is the value in row ``r``, and bit ``i`` of ``r`` is the value of input ``x_i`` there. A table is a
Python integer: an operation on 256 rows is one instruction of four machine words, where a numpy array of four words
costs ten times as much in overhead. What works on many tables at once takes them as numpy words (:func:`words`).
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from unspool.core.errors import InvalidInput

MOST_INPUTS = 8


class CircuitError(InvalidInput):
    """A circuit that cannot be read, or not be used here: what is wrong, where, and what would work."""


@cache
def full(inputs: int) -> int:
    """The table that is 1 everywhere: one bit for each of the ``2 ** inputs`` rows."""
    return (1 << (1 << inputs)) - 1


@cache
def variable(inputs: int, index: int) -> int:
    """The table of ``x_index`` among ``inputs`` inputs."""
    run = 1 << index
    pattern = ((1 << run) - 1) << run
    width = 2 * run
    while width < 1 << inputs:
        pattern |= pattern << width
        width *= 2
    return pattern


def cofactors(inputs: int, table: int, index: int) -> tuple[int, int]:
    """The tables with ``x_index`` at 0 and at 1, both as tables of all inputs."""
    run, high = 1 << index, variable(inputs, index)
    one, zero = table & high, table & ~high
    return zero | zero << run, one | one >> run


def depends(inputs: int, table: int, index: int) -> bool:
    """Whether the value of ``x_index`` matters."""
    zero, one = cofactors(inputs, table, index)
    return zero != one


def widened(table: int, inputs: int, wanted: int) -> int:
    """The same function of more inputs, which do not matter."""
    for width in range(inputs, wanted):
        table |= table << (1 << width)
    return table


def bits(table: int, rows: int) -> NDArray[np.uint8]:
    """``[rows]`` values, 0 or 1."""
    raw = np.frombuffer(table.to_bytes(max(rows, 8) // 8, "little"), dtype=np.uint8)
    return np.unpackbits(raw, count=rows, bitorder="little")


def words(tables: list[int], inputs: int) -> NDArray[np.uint64]:
    """``[N, W]`` the tables in words of 64 rows, the lowest rows first."""
    size = max(8, (1 << inputs) // 8)
    raw = b"".join(table.to_bytes(size, "little") for table in tables)
    return np.frombuffer(raw, dtype="<u8").reshape(len(tables), size // 8)


def check_inputs(inputs: int) -> None:
    """Refuse circuits whose truth table is too long.

    Raises:
        CircuitError: for more than eight inputs.
    """
    if inputs > MOST_INPUTS:
        raise CircuitError(f"the circuit has {inputs} inputs; truth tables are made for up to {MOST_INPUTS}")
