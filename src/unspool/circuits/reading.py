"""Circuits out of texts and files, in whichever notation they are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from unspool.circuits.aiger import read_aiger, write_aag, write_aig
from unspool.circuits.expressions import read_expressions, write_expressions
from unspool.circuits.graph import Circuit
from unspool.circuits.tables import MOST_INPUTS, CircuitError
from unspool.circuits.tabular import is_table, read_tables, synthesised, write_pla

MOST_BYTES = 8_000_000


@dataclass(frozen=True)
class Problem:
    """What was read.

    Args:
        circuit: given as such, or made of a truth table.
        free: for every output the rows that do not matter.
    """

    circuit: Circuit
    free: tuple[int, ...]

    @property
    def free_circuit(self) -> Circuit | None:
        """A circuit of the rows that do not matter; ``None`` if all matter."""
        return synthesised(self.circuit.inputs, list(self.free)) if any(self.free) else None


def read(text: str) -> Problem:
    """Read an expression (``y0 = x0 & ~x1``), an AIGER text (``aag ...``), or a truth table (``0xe8``, a PLA text).

    Raises:
        CircuitError: with the place, and what would work.
    """
    if text.lstrip().startswith("aag "):
        circuit = read_aiger(text.lstrip().encode("utf-8"))
    elif is_table(text):
        inputs, tables, free = read_tables(text)
        return Problem(synthesised(inputs, tables, free), tuple(free))
    else:
        circuit = read_expressions(text)
    if not circuit.outputs:
        raise CircuitError("the circuit has no output")
    return Problem(circuit, (0,) * len(circuit.outputs))


def read_file(path: str | Path) -> Problem:
    """Read a file: binary AIGER (``aig``), or a text as :func:`read` takes it.

    Raises:
        CircuitError: if it cannot be read.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MOST_BYTES:
            raise CircuitError(f"{path} is larger than {MOST_BYTES // 1_000_000} MB")
        data = path.read_bytes()
    except OSError as error:
        raise CircuitError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        if data.startswith(b"aig "):
            circuit = read_aiger(data)
            return Problem(circuit, (0,) * len(circuit.outputs))
        return read(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise CircuitError(f"{path} is neither binary AIGER nor UTF-8 text ({error.reason})") from error
    except CircuitError as error:
        raise CircuitError(f"{path}: {error}") from error


def written(circuit: Circuit, notation: str) -> bytes:
    """A circuit as a file: ``aag``, ``aig``, ``pla`` or ``expression``.

    Raises:
        CircuitError: for another notation, or a truth table of too many inputs.
    """
    if notation == "aag":
        return write_aag(circuit)
    if notation == "aig":
        return write_aig(circuit)
    if notation == "pla":
        return write_pla(circuit.inputs, circuit.output_tables()).encode("ascii")
    if notation == "expression":
        return (write_expressions(circuit) + "\n").encode("ascii")
    raise CircuitError(f"there is no notation {notation!r}; there are aag, aig, pla (up to {MOST_INPUTS}), expression")
