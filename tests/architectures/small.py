"""A network of circuits that was not trained, and circuits to ask it for."""

from __future__ import annotations

import functools
import random

import torch

from unspool.architectures._circuit_network import CircuitNetwork, Shape
from unspool.architectures.circuits import CircuitModel
from unspool.circuits.sequence import EOS, problem
from unspool.training.circuit_problems import random_gates


@functools.cache
def small_model(seed: int = 0, inputs: int = 4, *, double: bool = True, needs: bool = True) -> CircuitModel:
    """Two layers, 32 wide; shared, so tests leave it as it is. In double precision nothing depends on the batch."""
    network = CircuitNetwork(Shape(inputs, 2, 32, 32, source=96, context=96, needs=needs), seed)
    # The head begins near zero; without this every choice would be a tie.
    with torch.no_grad():
        network.head.weight.mul_(40)
    return CircuitModel(network.double() if double else network, f"small-circuits-{seed}")


def asked(count: int, inputs: int = 3, outputs: int = 1, seed: int = 0) -> list[list[int]]:
    """Prompts: random circuits that fit into the small model."""
    rng, found = random.Random(seed), []
    while len(found) < count:
        tokens = problem(random_gates(rng, inputs, outputs, 6))
        if len(tokens) <= 60 and tokens.count(EOS) == 1:
            found.append(tokens)
    return found
