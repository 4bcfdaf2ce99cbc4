"""Truth tables as text: ``0xe8; 0x96``, ``0b1110-000``, or a file of Berkeley's PLA format.

A number begins with the last row, as is usual: of ``0b1000`` the 1 stands for x1 = x0 = 1. ``-`` is a row that does not
matter. In a PLA file the columns of a cube are x0, x1, ... from the left.
"""

from __future__ import annotations

import re

from unspool.circuits.graph import FALSE, TRUE, Builder, Circuit
from unspool.circuits.tables import MOST_INPUTS, CircuitError, cofactors, depends, full, variable

_NUMBER = re.compile(r"(?:y\d+\s*=\s*)?(?:0x(?P<hex>[0-9a-f_]+)|0b(?P<binary>[01_-]+))", re.IGNORECASE)


def is_table(text: str) -> bool:
    """Whether a text is of one of these notations."""
    first = text.lstrip()
    return bool(_NUMBER.match(first)) or bool(re.match(r"(#[^\n]*\n\s*)*\.(i|o|type|p|ilb|ob)\b", first))


def read_tables(text: str) -> tuple[int, list[int], list[int]]:
    """The number of inputs, the table of every output, and the rows of each that do not matter.

    Raises:
        CircuitError: with the place, and what would work.
    """
    if _NUMBER.match(text.lstrip()):
        return _numbers(text)
    return _pla(text)


def _numbers(text: str) -> tuple[int, list[int], list[int]]:
    found: list[tuple[int, int, int]] = []
    for part in re.split(r"[;\n]", text):
        part = part.partition("#")[0].strip()
        if not part:
            continue
        match = _NUMBER.fullmatch(part)
        if match is None:
            raise CircuitError(f"{part!r} is no truth table; 0x and hexadecimal digits are, or 0b and 0, 1 and -")
        if match["hex"]:
            digits = match["hex"].replace("_", "")
            rows, table, free = 4 * len(digits), int(digits, 16), 0
        else:
            digits = match["binary"].replace("_", "")
            rows = len(digits)
            table = int(digits.replace("-", "0") or "0", 2)
            free = int(re.sub("[^-]", "0", digits).replace("-", "1") or "0", 2)
        inputs = rows.bit_length() - 1
        if rows < 2 or rows != 1 << inputs or inputs > MOST_INPUTS:
            sizes = ", ".join(str(1 << n) for n in range(1, MOST_INPUTS + 1))
            raise CircuitError(f"{part[:40]!r} has {rows} rows; a truth table has {sizes}")
        found.append((inputs, table, free))
    inputs = found[0][0]
    if any(other != inputs for other, _, _ in found):
        raise CircuitError("the truth tables differ in length: all outputs have the same inputs")
    return inputs, [table for _, table, _ in found], [free for _, _, free in found]


def _pla(text: str) -> tuple[int, list[int], list[int]]:
    inputs = outputs = None
    kind = "fd"
    on: list[int] = []
    free: list[int] = []
    off: list[int] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if words[0].startswith("."):
            if words[0] == ".i" and len(words) == 2 and words[1].isdigit():
                inputs = int(words[1])
                if not 1 <= inputs <= MOST_INPUTS:
                    raise CircuitError(f"line {number}: {inputs} inputs; 1 to {MOST_INPUTS} are possible")
            elif words[0] == ".o" and len(words) == 2 and words[1].isdigit() and 1 <= int(words[1]) <= 64:
                outputs = int(words[1])
                on, free, off = [0] * outputs, [0] * outputs, [0] * outputs
            elif words[0] == ".type" and len(words) == 2 and words[1] in ("f", "fd", "fr", "fdr"):
                kind = words[1]
            elif words[0] in (".e", ".end"):
                break
            elif words[0] not in (".p", ".ilb", ".ob"):
                raise CircuitError(f"line {number}: {line.strip()[:40]!r} is not read; .i .o .type .p .ilb .ob .e are")
            continue
        if inputs is None or outputs is None:
            raise CircuitError(f"line {number}: .i and .o come before the rows")
        joined = "".join(words).replace("|", "")
        cube, values = joined[:inputs], joined[inputs:]
        if len(joined) != inputs + outputs or set(cube) - set("01-") or set(values) - set("01-~24"):
            raise CircuitError(f"line {number}: a row has {inputs} of 0 1 - and then {outputs} of 0 1 - ~")
        rows = full(inputs)
        for index, letter in enumerate(cube):
            if letter != "-":
                rows &= variable(inputs, index) ^ (full(inputs) if letter == "0" else 0)
        for place, letter in enumerate(values):
            if letter in "14":
                on[place] |= rows
            elif letter in "-2" and "d" in kind:
                free[place] |= rows
            elif letter == "0" and "r" in kind:
                off[place] |= rows
    if inputs is None or outputs is None:
        raise CircuitError("a PLA file has lines .i and .o with the numbers of inputs and outputs")
    if "r" in kind and "d" not in kind:
        # The rest is what does not matter.
        free = [full(inputs) & ~(a | b) for a, b in zip(on, off, strict=True)]
    return inputs, [a & ~d for a, d in zip(on, free, strict=True)], free


def write_table(inputs: int, tables: list[int], free: list[int] | None = None) -> str:
    """Tables as numbers; in hexadecimal where every row matters and there are at least two inputs."""
    made = []
    for place, table in enumerate(tables):
        rows = 1 << inputs
        loose = free[place] if free else 0
        if not loose and inputs >= 2:
            made.append(f"0x{table:0{rows // 4}x}")
        else:
            made.append("0b" + "".join("-" if loose >> r & 1 else str(table >> r & 1) for r in reversed(range(rows))))
    return "; ".join(made)


def write_pla(inputs: int, tables: list[int], free: list[int] | None = None) -> str:
    """Tables as a PLA file with a line for every row that has a 1 or does not matter."""
    lines = [f".i {inputs}", f".o {len(tables)}", ".type fd"]
    for row in range(1 << inputs):
        values = "".join(
            "-" if free and free[place] >> row & 1 else str(table >> row & 1) for place, table in enumerate(tables)
        )
        if set(values) != {"0"}:
            lines.append("".join(str(row >> index & 1) for index in range(inputs)) + " " + values)
    return "\n".join([*lines, ".e"]) + "\n"


def synthesised(inputs: int, tables: list[int], free: list[int] | None = None) -> Circuit:
    """A circuit of some tables: input by input, cofactors that agree being made once (a reduced decision diagram).

    It is a beginning, not a small circuit.
    """
    builder = Builder(inputs)
    known: dict[tuple[int, int], int] = {}
    whole = full(inputs)

    def make(low: int, high: int) -> int:
        """A function between two bounds."""
        if not low:
            return FALSE
        if high == whole:
            return TRUE
        found = known.get((low, high))
        if found is not None:
            return found
        for index in reversed(range(inputs)):
            lows, highs = cofactors(inputs, low, index), cofactors(inputs, high, index)
            if not (depends(inputs, low, index) or depends(inputs, high, index)):
                continue
            if not (lows[0] | lows[1]) & ~(highs[0] & highs[1]):
                found = make(lows[0] | lows[1], highs[0] & highs[1])
            else:
                found = builder.choose(builder.input(index), make(lows[1], highs[1]), make(lows[0], highs[0]))
            known[low, high] = found
            return found
        raise AssertionError("a function that depends on nothing is constant")

    loose = free or [0] * len(tables)
    outputs = [make(table & ~f, table | f) for table, f in zip(tables, loose, strict=True)]
    return builder.circuit(outputs).hashed()
