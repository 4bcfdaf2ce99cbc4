"""Circuits in files and texts: what is written is read again, and what is wrong is told with its place."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.circuits.made import circuits

from unspool.circuits import Builder, Circuit, CircuitError, read, read_file
from unspool.circuits.aiger import read_aiger, write_aag, write_aig
from unspool.circuits.expressions import read_expressions, write_expressions
from unspool.circuits.reading import written
from unspool.circuits.tables import cofactors, full, variable, widened
from unspool.circuits.tabular import read_tables, synthesised, write_pla, write_table


@given(circuits())
@settings(max_examples=150, deadline=None)
def test_aiger_round_trips(circuit: Circuit) -> None:
    assert read_aiger(write_aag(circuit)).output_tables() == circuit.output_tables()
    assert read_aiger(write_aig(circuit)).output_tables() == circuit.output_tables()
    sizes = {read_aiger(write(circuit)).size for write in (write_aag, write_aig)}
    assert sizes == {circuit.size}


@given(circuits())
@settings(max_examples=150, deadline=None)
def test_expressions_are_the_same_circuit_again(circuit: Circuit) -> None:
    again = read_expressions(write_expressions(circuit))
    # Inputs at the end that nothing reads leave no trace in an expression.
    tables = [widened(table, again.inputs, circuit.inputs) for table in again.output_tables()]
    assert tables == circuit.output_tables()
    assert again.size == circuit.size


@given(st.data(), st.integers(1, 8), st.integers(1, 3))
@settings(max_examples=80, deadline=None)
def test_tables_round_trip(data: st.DataObject, inputs: int, outputs: int) -> None:
    tables = [data.draw(st.integers(0, full(inputs))) for _ in range(outputs)]
    free = [data.draw(st.integers(0, full(inputs))) for _ in range(outputs)]
    on = [table & ~f for table, f in zip(tables, free, strict=True)]
    for text in (write_table(inputs, on, free), write_pla(inputs, on, free)):
        assert read_tables(text) == (inputs, on, free)
    if inputs > 1:
        assert read_tables(write_table(inputs, tables)) == (inputs, tables, [0] * outputs)
    made = synthesised(inputs, tables, free).output_tables()
    assert all(not (a ^ b) & ~f for a, b, f in zip(made, tables, free, strict=True))


@given(circuits())
@settings(max_examples=60, deadline=None)
def test_tables_are_what_evaluation_gives(circuit: Circuit) -> None:
    tables = circuit.output_tables()
    for row in range(1 << circuit.inputs):
        values = circuit.evaluate([bool(row >> index & 1) for index in range(circuit.inputs)])
        assert values == [bool(table >> row & 1) for table in tables]


def test_variables_and_cofactors() -> None:
    for inputs in (1, 3, 8):
        for index in range(inputs):
            table = variable(inputs, index)
            assert [table >> row & 1 for row in range(1 << inputs)] == [row >> index & 1 for row in range(1 << inputs)]
            assert cofactors(inputs, table, index) == (0, full(inputs))


def test_an_aiger_file_in_any_order_with_symbols() -> None:
    text = "aag 5 2 0 2 3\n2\n4\n10\n7\n10 6 9\n6 2 4\n8 3 5\ni0 a\ni1 b\no0 sum\nc\nwhatever\n"
    circuit = read(text).circuit
    assert circuit.output_tables() == [0b1000 & ~0b0001, 0b0111]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "begins with a line"),
        (b"aag 1 1\n2\n", "five"),
        (b"aag 1 0 1 0 0\n2 3\n", "1 latches"),
        (b"aag 3 1 0 1 1\n2\n6\n6 2 9\n", "which nothing defines"),
        (b"aag 3 1 0 1 1\n2\n4\n6 2 2\n", "output 4 is a literal that nothing defines"),
        (b"aag 3 1 0 1 2\n2\n4\n4 6 2\n6 4 2\n", "read each other"),
        (b"aag 2 1 0 1 1\n2\n4\n4 2\n", "line 4: 2 numbers where a gate should be"),
        (b"aag 2 1 0 1 1\n2\n4\n2 2 2\n", "line 4: 2 is defined twice"),
        (b"aag 2 1 0 1 1\n3\n4\n4 2 2\n", "line 2: 3 cannot be defined"),
        (b"aag 2 1 0 1 1\n2\n4\n4 x 2\n", "'x' is no number"),
        (b"aig 2 1 0 1 1\n4\n\x82", "gate 0: the file ends"),
        (b"aig 2 1 0 1 1\n4\n\x09\x01", "gate 0 reads literals -5"),
        (b"aig 3 1 0 1 1\n4\n\x02\x00", "maximum variable is 3"),
        (b"aag 99999999 1 0 1 99999998\n2\n", "of something"),
    ],
)
def test_broken_aiger_files(data: bytes, message: str) -> None:
    with pytest.raises(CircuitError, match=message):
        read_aiger(data)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "there is no expression"),
        ("y0 = x0 & $", r"line 1, column 11: '\$'"),
        ("y0 = x0 x1", "'x1' stands where an operator should"),
        ("y0 = & x1", "'&' stands where an operand should"),
        ("y0 = (x0 & x1", "is never closed"),
        ("y0 = x0) & x1", r"this \) closes nothing"),
        ("y0 = a & x1", "'a' has no value yet"),
        ("y1 = x0", "without a gap; here: y1"),
        ("y0 = x0; y0 = x1", "y0 has a value already"),
        ("x0 = x1", "x0 has a value already"),
        ("x0\nx1", "each is given a name"),
        ("y0 = ", "ends where an operand should follow"),
        ("x12345", "numbered from x0"),
        ("0x123", "12 rows"),
        ("0b01; 0b0110", "differ in length"),
        ("0b01; zebra", "'zebra' is no truth table"),
        (".i 2\n.o 1\n012 1\n.e", "line 3: a row has"),
        (".o 1\n11 1", "line 2: .i and .o come before"),
        (".i 99\n.o 1", "99 inputs"),
        (".i 2\n.frob\n", "is not read"),
    ],
)
def test_broken_texts(text: str, message: str) -> None:
    with pytest.raises(CircuitError, match=message):
        read(text)


def test_hostile_expressions_end_at_once() -> None:
    deep = "(" * 50_000 + "x0" + ")" * 50_000
    assert read(f"y0 = {deep}").circuit.outputs == (2,)
    assert read("y0 = " + "~" * 100_001 + "x0").circuit.outputs == (3,)
    with pytest.raises(CircuitError, match="200000 can be read"):
        read("x0 & " * 100_000)


def test_operators_bind_as_said() -> None:
    tables = read("y0 = x0 | x1 ^ x2 & ~x0; y1 = NOT x0 * x1 + x2; w = x0 & x1; y2 = !w").circuit.output_tables()
    x0, x1, x2, whole = (*(variable(3, index) for index in range(3)), full(3))
    assert tables == [x0 | (x1 ^ (x2 & (x0 ^ whole))), (x0 ^ whole) & x1 | x2, (x0 & x1) ^ whole]


def test_files(tmp_path: Path) -> None:
    builder = Builder(3)
    circuit = builder.circuit([builder.lxor(builder.input(0), builder.land(builder.input(1), builder.input(2)))])
    for notation in ("aag", "aig", "pla", "expression"):
        path = tmp_path / f"one.{notation}"
        path.write_bytes(written(circuit, notation))
        assert read_file(path).circuit.output_tables() == circuit.output_tables()
    with pytest.raises(CircuitError, match="cannot be read"):
        read_file(tmp_path / "nowhere")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(CircuitError, match="neither binary AIGER nor UTF-8"):
        read_file(tmp_path / "bytes")
    with pytest.raises(CircuitError, match="no notation 'blif'"):
        written(circuit, "blif")


def test_random_bytes_are_refused_or_read() -> None:
    rng = random.Random(0)
    good = written(read("y0 = x0 & (x1 | ~x2) ^ x3").circuit, "aig")
    for _ in range(300):
        data = bytearray(good)
        data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            read_aiger(bytes(data))
        except CircuitError:
            continue
