"""And-inverter graphs: reading and writing, truth tables, and circuits as sequences of tokens."""

from unspool.circuits.graph import Builder, Circuit
from unspool.circuits.reading import Problem, read, read_file
from unspool.circuits.tables import MOST_INPUTS, CircuitError

__all__ = ["MOST_INPUTS", "Builder", "Circuit", "CircuitError", "Problem", "read", "read_file"]
