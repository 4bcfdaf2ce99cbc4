"""Random circuits for hypothesis."""

from __future__ import annotations

from hypothesis import strategies as st

from unspool.circuits import Circuit


@st.composite
def circuits(draw: st.DrawFn, most_inputs: int = 5, most_gates: int = 10, most_outputs: int = 3) -> Circuit:
    """Any circuit: gates may be constant, be there twice, or lead nowhere."""
    inputs = draw(st.integers(1, most_inputs))
    gates = []
    for place in range(draw(st.integers(0, most_gates))):
        literal = st.integers(0, 2 * (inputs + 1 + place) - 1)
        gates.append((draw(literal), draw(literal)))
    output = st.integers(0, 2 * (inputs + 1 + len(gates)) - 1)
    outputs = draw(st.lists(output, min_size=1, max_size=most_outputs))
    return Circuit(inputs, tuple(gates), tuple(outputs))
