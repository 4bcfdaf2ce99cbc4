"""The masks of circuits against every completion there is, and sharing against building anew."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.circuits.made import circuits

from unspool.circuits import Circuit, CircuitError
from unspool.circuits.cutoff import Place, leaf_tables
from unspool.circuits.optima import optima
from unspool.circuits.rewriting import reduced, rewritten, tree_gates
from unspool.circuits.sequence import (
    AND,
    EOS,
    NAND,
    PAD,
    Task,
    circuit_of,
    circuit_part,
    problem,
    task_of,
    trees,
    unfinished,
)
from unspool.circuits.sharing import Sharing
from unspool.circuits.tables import full, variable


def open_values(tokens: Sequence[int], inputs: int) -> list[int]:
    """Every function that a beginning of one tree can still become, if any function may stand in an open slot.

    By the definition: slots are filled with all functions of the inputs.
    """
    whole = full(inputs)
    everything = range(whole + 1)

    def values(at: int) -> tuple[set[int], int]:
        if at >= len(tokens):
            return set(everything), at
        token = tokens[at]
        if token < AND:
            return {leaf_tables(inputs)[token - 2]}, at + 1
        left, at = values(at + 1)
        right, at = values(at)
        return {(a & b) ^ (whole if token == NAND else 0) for a in left for b in right}, at

    return sorted(values(0)[0])


def beginnings(inputs: int, length: int) -> Iterator[list[int]]:
    """All beginnings of a tree of so many tokens that are not finished."""
    alphabet = [*range(2, 2 + 2 * inputs), AND, NAND]
    for tokens in itertools.product(alphabet, repeat=length):
        depth = 1
        for token in tokens:
            depth += 1 if token >= AND else -1
            if depth == 0:
                break
        else:
            yield list(tokens)


@pytest.mark.parametrize("length", [0, 1, 2, 3])
def test_a_leaf_is_forbidden_exactly_if_no_completion_is_right(length: int) -> None:
    """Two inputs: every target, every care set, every beginning of up to three tokens, every leaf."""
    inputs = 2
    for tokens in beginnings(inputs, length):
        reach = {leaf: open_values([*tokens, leaf], inputs) for leaf in range(2, 6)}
        for target, care in itertools.product(range(16), repeat=2):
            place = Place(Task(inputs, (target,), (care,)))
            for token in tokens:
                place = place.push(token)
            possible = {leaf for leaf, found in reach.items() if any(not (one ^ target) & care for one in found)}
            assert {leaf for leaf, _ in place.leaves()} == possible, (tokens, target, care)


def test_the_same_for_three_inputs_by_sample() -> None:
    rng = random.Random(1)
    for _ in range(60):
        tokens: list[int] = []
        for _ in range(rng.randint(1, 2)):
            tokens.append(rng.choice([AND, NAND]))
        if rng.random() < 0.6:
            tokens.append(rng.randrange(2, 8))
        if len(tokens) == 1:
            continue
        reach = {leaf: open_values([*tokens, leaf], 3) for leaf in range(2, 8)}
        for _ in range(10):
            target, care = rng.getrandbits(8), rng.choice([255, rng.getrandbits(8)])
            place = Place(Task(3, (target,), (care,)))
            for token in tokens:
                place = place.push(token)
            possible = {leaf for leaf, found in reach.items() if any(not (one ^ target) & care for one in found)}
            assert {leaf for leaf, _ in place.leaves()} == possible


@given(st.data(), st.integers(1, 4), st.integers(1, 3), st.integers(2, 14))
@settings(max_examples=200, deadline=None)
def test_what_is_finished_equals_its_target(data: st.DataObject, inputs: int, outputs: int, deepest: int) -> None:
    """Random choices under the mask; an independent reading of the tokens judges the end."""
    targets = tuple(data.draw(st.integers(0, full(inputs))) for _ in range(outputs))
    cares = tuple(data.draw(st.just(full(inputs)) | st.integers(0, full(inputs))) for _ in range(outputs))
    task = Task(inputs, targets, cares)
    rng = data.draw(st.randoms(use_true_random=False))
    place, tokens = Place(task), []
    while len(tokens) < 400:
        allowed = place.allowed(deepest)
        if allowed == [EOS]:
            break
        tokens.append(rng.choice(allowed))
        place = place.push(tokens[-1])
        assert place.depth <= deepest
    read = circuit_of(tokens, inputs)
    assert read.length == len(tokens)
    assert place.finished == (not read.open and len(read.circuit.outputs) == outputs)
    if place.finished:
        assert place.fits
        assert task.done_by(read.circuit.output_tables())


def test_a_leaf_that_settles_everything_leaves_no_gate() -> None:
    task = Task(2, (variable(2, 1),), (full(2),))
    assert Place(task).allowed(14) == [4]
    assert set(Place(task).push(AND).allowed(14)) == {4, AND, NAND}


def test_the_end_is_all_that_is_left_at_the_limit() -> None:
    parity = Task(2, (0b0110,), (0b1111,))
    place = Place(parity).push(NAND).push(NAND)
    assert set(place.allowed(3)) == {2, 3, 4, 5, AND, NAND}
    # After ~(~(x0 & ~x1) & .) the rest must be 0 where x1 alone is, and no leaf is.
    place = place.push(2).push(5)
    assert set(place.allowed(2)) == {AND, NAND}
    assert place.allowed(1) == [EOS]
    assert not place.finished


def test_strays() -> None:
    task = Task(2, (0b1000,), (0b1111,))
    assert Place(task).push(EOS).stray
    assert Place(task).push(6).stray, "an input that there is not"
    done = Place(task).push(AND).push(2).push(4)
    assert (done.finished, done.fits, done.stray) == (True, True, False)
    assert not done.push(EOS).stray
    assert done.push(AND).stray
    wrong = Place(task).push(2)
    assert (wrong.finished, wrong.fits) == (True, False)
    assert done.push(AND).allowed(14) == []
    assert Place(task).push(PAD).allowed(14) == Place(task).allowed(14)


# -- sequences ----------------------------------------------------------------------------------------------------


@given(circuits())
@settings(max_examples=150, deadline=None)
def test_trees_are_the_circuit(circuit: Circuit) -> None:
    tokens = trees(circuit)
    assert circuit_of(tokens, circuit.inputs).circuit.output_tables() == circuit.output_tables()
    given_circuit, task = task_of(problem(circuit))
    assert circuit_part(problem(circuit)) == tokens
    assert list(task.targets) == given_circuit.output_tables()
    assert unfinished(tokens) == ""


@given(circuits(most_outputs=2), st.data())
@settings(max_examples=60, deadline=None)
def test_dont_cares_travel_with_a_problem(circuit: Circuit, data: st.DataObject) -> None:
    free = data.draw(circuits(most_inputs=circuit.inputs, most_outputs=1))
    free = Circuit(free.inputs, free.gates, free.outputs * len(circuit.outputs))
    _, task = task_of(problem(circuit, free))
    tables = free.output_tables()
    for row in range(1 << task.inputs):
        mine = row & ((1 << free.inputs) - 1)
        for care, table in zip(task.cares, tables, strict=True):
            assert (care >> row & 1) == 1 - (table >> mine & 1)


@pytest.mark.parametrize("tokens", [[], [EOS], [AND, 2, EOS], [2, EOS, 2], [2, EOS, PAD, AND, 2, EOS], [2] * 9 + [EOS]])
def test_what_is_no_problem(tokens: list[int]) -> None:
    with pytest.raises(CircuitError):
        task_of(tokens)


def test_a_circuit_that_is_too_large_as_trees() -> None:
    gates = [(2, 4), (3, 5)]
    for place in range(40):
        gates.append((2 * (3 + place) + 1, 2 * (4 + place) + 1))
    with pytest.raises(CircuitError, match="give its truth table instead"):
        trees(Circuit(2, tuple(gates), (2 * (2 + len(gates)),)))


def test_an_unfinished_tree_in_words() -> None:
    assert unfinished([AND, 2, NAND]) == "(x0 & ~(? & ?))"
    assert unfinished([2, AND]) == "(? & ?)"
    assert circuit_of([AND, 2, NAND]).open == 2


# -- sharing ------------------------------------------------------------------------------------------------------


def built_anew(tokens: Sequence[int], inputs: int) -> int:
    """Gates in use after some trees, by the definition: after every gate all that nothing reaches is thrown away."""
    whole = full(inputs)
    nodes: dict[int, tuple[int, int] | None] = {0: None, **{variable(inputs, i): None for i in range(inputs)}}
    stack: list[list[int]] = []
    outputs: list[int] = []

    def normal(table: int) -> int:
        return table if table in nodes else table ^ whole

    def sweep(held: list[int]) -> None:
        reached, waiting = set(), [normal(table) for table in held]
        while waiting:
            table = waiting.pop()
            gate = nodes[table]
            if gate is not None and table not in reached:
                reached.add(table)
                waiting += [normal(one) for one in gate]
        for table in [table for table, gate in nodes.items() if gate is not None and table not in reached]:
            del nodes[table]

    for token in tokens:
        if token >= AND:
            stack.append([token])
            continue
        value = leaf_tables(inputs)[token - 2]
        while stack and len(stack[-1]) == 2:
            kind, left = stack.pop()
            made = left & value
            if made not in nodes and made ^ whole not in nodes:
                nodes[made] = (left, value)
            value = made ^ (whole if kind == NAND else 0)
            sweep([*outputs, value, *(frame[1] for frame in stack if len(frame) == 2)])
        if stack:
            stack[-1].append(value)
        else:
            outputs.append(value)
    return sum(gate is not None for gate in nodes.values())


@given(circuits(most_inputs=4, most_gates=9))
@settings(max_examples=300, deadline=None)
def test_sharing_counts_as_building_anew(circuit: Circuit) -> None:
    tokens = trees(circuit)
    read = circuit_of(tokens, circuit.inputs).circuit
    assert len(read.gates) == built_anew(tokens, circuit.inputs)
    tables = [min(table, table ^ full(read.inputs)) for table in read.tables()]
    assert len(set(tables)) == len(tables), "no two nodes compute the same"
    assert len(read.gates) <= circuit.size


def test_what_is_merged_is_refunded() -> None:
    sharing = Sharing(3)
    a, b, c = (sharing.input(index) for index in range(3))
    first = sharing.gate(a, b)
    second = sharing.gate(sharing.gate(b, a), c)
    assert sharing.live == 2
    again = sharing.gate(sharing.gate(a, c), b)
    assert again == second
    assert sharing.live == 2, "the gate of a and c is given back"
    sharing.drop(again)
    sharing.drop(second)
    assert sharing.live == 1
    sharing.drop(first)
    assert sharing.live == 0


# -- smaller circuits ---------------------------------------------------------------------------------------------


def test_optima_of_two_and_three_inputs_by_search() -> None:
    """Smallest trees of three inputs by another search: all pairs, until nothing changes."""
    found = dict.fromkeys((*leaf_tables(3), 0, 255), 0)
    changed = True
    while changed:
        changed = False
        for (a, one), (b, two) in itertools.product(list(found.items()), repeat=2):
            for table in (a & b, a & b ^ 255):
                if found.get(table, 99) > one + two + 1:
                    found[table] = one + two + 1
                    changed = True
    assert len(found) == 256
    best = optima()
    assert all(int(best.gates[table | table << 8]) == count for table, count in found.items())


@given(circuits(most_inputs=6, most_gates=14))
@settings(max_examples=60, deadline=None)
def test_reduced_circuits_are_equivalent_and_no_larger(circuit: Circuit) -> None:
    for smaller in (reduced(circuit), rewritten(circuit)):
        assert smaller.output_tables() == circuit.output_tables()
        assert tree_gates(smaller) <= tree_gates(circuit.hashed())
