"""Parts of the benchmark of constraints; ``benchmarks/constraints.py`` is the program."""
