"""A network that makes circuits smaller: random ones of up to six inputs and two outputs, and what they reduce to.

Targets are optimal trees up to four inputs, and rewritten by optimal four-input trees beyond
(:mod:`unspool.training.circuit_problems`). Tokens that cannot lead to the wanted function are taken out of the loss as
they are out of the decoding, gates excepted, so that the network learns to choose among what is right (Circuit
Transformer, ICLR 2025, section 4).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from unspool.architectures._circuit_network import CircuitNetwork, Shape, need_features, position_features
from unspool.architectures.circuits import CircuitModel, padded, rounded, save
from unspool.circuits.cutoff import Place
from unspool.circuits.sequence import AND, EOS, NAND, PAD, VOCABULARY, circuit_of, task_of
from unspool.circuits.tables import widened
from unspool.constraints.circuit_transformer import CircuitTransformer
from unspool.core.cards import settings
from unspool.core.compose import compose
from unspool.core.events import Finished
from unspool.core.model import LanguageModel
from unspool.core.texts import Stop
from unspool.training.circuit_problems import Pair, held_out, pairs, relabelled, strayed
from unspool.training.loop import Optimisation, train
from unspool.training.objectives import Batch
from unspool.training.recipes import Bench, Quality, recipe

_SHARES = {3: 0.05, 4: 0.5, 5: 0.2, 6: 0.25}
"""How much of the training is on circuits of so many inputs."""
_STRAYED = 0.4
"""How many targets have a detour (:func:`unspool.training.circuit_problems.strayed`)."""
_BUCKETS = 8
"""Batches that are made together, of pairs sorted by length, so that little is padded."""


@settings
class CircuitsSettings:
    """Sizes of the network and of its training."""

    seed: Annotated[int, Field(description="of weights and circuits")] = 0
    inputs: Annotated[int, Field(ge=4, le=6, description="of the circuits at most")] = 6
    layers: Annotated[int, Field(ge=1, description="of the encoder, and of the decoder")] = 3
    hidden: Annotated[int, Field(ge=32, multiple_of=32, description="width")] = 128
    mlp: Annotated[int, Field(ge=1, description="inner width of the MLPs")] = 256
    needs: Annotated[bool, Field(description="tell the decoder what a slot must be; the paper's is not told")] = True
    small: Annotated[int, Field(ge=16, description="circuits of up to four inputs that are made")] = 40000
    large: Annotated[int, Field(ge=16, description="circuits of more inputs; used again with other names")] = 6000
    batch: Annotated[int, Field(ge=1, description="circuits of a step")] = 32
    steps: Annotated[int, Field(ge=1, description="updates of the weights")] = 3000
    learning_rate: Annotated[float, Field(gt=0, description="at its peak")] = 2e-3
    measured: Annotated[int, Field(ge=1, description="held-out circuits that are decoded at the end")] = 300
    minutes: Annotated[float, Field(gt=0, description="limit of time, the making of circuits aside")] = 9.0


@dataclass(frozen=True, kw_only=True)
class CircuitBatch(Batch):
    """Pairs of one batch; ``tokens`` ``[B, T + 1]`` begin with the decoder's start token.

    Attributes:
        source, positions, real: what the encoder reads, as :func:`unspool.architectures.circuits.padded` makes it.
        slots, needs: ``[B, T, ...]`` what the decoder is told of the slots.
        allowed: ``[B, T, V]`` bool, what each prediction may be.
    """

    source: Tensor
    positions: Tensor
    real: Tensor
    slots: Tensor
    needs: Tensor
    allowed: Tensor


def make_batch(some: Sequence[Pair], inputs: int) -> CircuitBatch:
    """Pairs as tensors, for a network of so many inputs."""
    source, positions, real = padded([pair.source for pair in some])
    longest = max(len(pair.target) for pair in some)
    tokens = torch.full((len(some), longest + 1), PAD)
    weights = torch.zeros(len(some), longest)
    allowed = torch.zeros(len(some), longest, VOCABULARY, dtype=torch.bool)
    places: list[Place] = []
    rows: list[tuple[int, int, int]] = []
    for row, pair in enumerate(some):
        tokens[row, 1 : len(pair.target) + 1] = torch.tensor(pair.target)
        weights[row, : len(pair.target)] = 1
        weights[row, pair.astray[0] : pair.astray[1]] = 0
        place = Place(task_of([*pair.source, EOS])[1])
        for at, token in enumerate(pair.target):
            places.append(place)
            if place.finished:
                rows.append((row, at, EOS))
            else:
                rows += [(row, at, one) for one, _ in place.leaves()]
                rows += [(row, at, AND), (row, at, NAND)]
            place = place.push(token)
        places += [place] * (longest - len(pair.target))
    index = torch.tensor(rows)
    allowed[index[:, 0], index[:, 1], index[:, 2]] = True
    shape = (len(some), longest, -1)
    slots, needs = position_features(places).view(shape), need_features(places, inputs).view(shape)
    return CircuitBatch(
        tokens=tokens,
        weights=weights,
        source=source,
        positions=positions,
        real=real,
        slots=slots,
        needs=needs,
        allowed=allowed,
    )


def masked_loss(model: CircuitNetwork, batch: Batch, share: float) -> Tensor:
    """Mean cross-entropy in nats of a token, among what is allowed."""
    assert isinstance(batch, CircuitBatch)
    memory = model.memory(model.encode(batch.source, batch.positions, batch.real))
    length = batch.inputs.shape[1]
    mask = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
    states = model.decode(batch.inputs, batch.slots, batch.needs, mask, memory, batch.real)
    assert batch.weights is not None
    kept = batch.weights > 0
    logits = model.head(states[kept]).masked_fill(~batch.allowed[kept], -torch.inf)
    return functional.cross_entropy(logits, batch.targets[kept])


def batches(found: dict[int, list[Pair]], size: int, inputs: int, seed: int) -> Iterator[CircuitBatch]:
    """Batches without end; pairs of more than four inputs get other names, and none that is held out."""
    rng = random.Random(f"batches {seed}")
    counts = [count for count in _SHARES if found.get(count)]
    weights = [_SHARES[count] for count in counts]
    while True:
        chosen: list[Pair] = []
        while len(chosen) < _BUCKETS * size:
            count = rng.choices(counts, weights)[0]
            pair = rng.choice(found[count])
            if count > 4:
                pair = relabelled(pair, rng)
                if held_out(pair.circuit):
                    continue
            elif rng.random() < _STRAYED:
                pair = strayed(pair, rng)
            chosen.append(pair)
        chosen.sort(key=lambda pair: (len(pair.source), len(pair.target)))
        groups = [chosen[at : at + size] for at in range(0, len(chosen), size)]
        rng.shuffle(groups)
        for group in groups:
            yield make_batch(group, inputs)


def decoded(model: LanguageModel, some: Sequence[Pair], constraint: Any = None, batch: int = 64) -> list[list[int]]:
    """Greedy outputs, the end token left out; under the constraint unless another method is given."""
    composition = compose(model, [constraint or CircuitTransformer()])
    texts: list[list[int]] = []
    for at in range(0, len(some), batch):
        prompts = [[*pair.source, EOS] for pair in some[at : at + batch]]
        found = {
            event.index: [token for token in event.tokens if token != EOS]
            for event in composition.decode(prompts, stop=Stop(model.context_length or 256))
            if isinstance(event, Finished)
        }
        texts += [found[index] for index in range(len(prompts))]
    return texts


def judged(some: Sequence[Pair], texts: Sequence[Sequence[int]]) -> dict[str, float]:
    """Shares of texts that are finished, and of these that are equivalent; gates of finished ones per gate given."""
    finished = right = gates = given = best = 0
    for pair, text in zip(some, texts, strict=True):
        made = circuit_of(text, pair.circuit.inputs)
        if made.open or len(made.circuit.outputs) != len(pair.circuit.outputs):
            continue
        finished += 1
        tables = [widened(t, pair.circuit.inputs, made.circuit.inputs) for t in pair.circuit.output_tables()]
        right += made.circuit.output_tables() == tables
        gates += len(made.circuit.gates)
        given += pair.circuit.size
        best += pair.best_size
    return {
        "finished": round(finished / len(some), 4),
        "equivalent": round(right / max(finished, 1), 4),
        "gates_per_gate_given": round(gates / max(given, 1), 4),
        "gates_per_gate_of_the_target": round(gates / max(best, 1), 4),
    }


@recipe(
    "circuits-6",
    summary="A network of three and three layers that rewrites circuits of up to six inputs into smaller ones.",
    minutes=12,
    megabytes=2.5,
    settings=CircuitsSettings,
)
def RECIPE(chosen: CircuitsSettings, bench: Bench) -> Quality:
    """Make circuits, train on them, and decode held-out ones under the constraint."""
    found: dict[int, list[Pair]] = {}
    for count, share in _SHARES.items():
        if count <= chosen.inputs:
            of = [one for one in _SHARES if (one <= 4) == (count <= 4) and one <= chosen.inputs]
            total = chosen.small if count <= 4 else chosen.large
            wanted = max(16, round(total * share / sum(_SHARES[one] for one in of)))
            source = pairs(seed=chosen.seed, split="train", inputs=(count,), longest=(96, 64))
            found[count] = list(islice(source, wanted))
            if count > 4:
                # Their detours take long to make, so they are made once.
                rng = random.Random(f"detours {chosen.seed}")
                found[count] += [strayed(pair, rng, 64) for pair in found[count][: round(_STRAYED * wanted)]]
            bench.say(f"{wanted} circuits of {count} inputs")
    shape = Shape(chosen.inputs, chosen.layers, chosen.hidden, chosen.mlp, needs=chosen.needs)
    network = CircuitNetwork(shape, chosen.seed)
    count = sum(weight.numel() for weight in network.parameters())
    bench.say(f"{count:,} parameters")
    held = {n: list(islice(pairs(seed=1, inputs=(n,)), chosen.measured)) for n in found}
    model = CircuitModel(network)
    stream = batches(found, chosen.batch, chosen.inputs, chosen.seed)

    def watch() -> str:
        told = judged(held[4][:64], decoded(model, held[4][:64]))
        return f"4 inputs: finished {told['finished']:.2f}, gates {told['gates_per_gate_given']:.2f} of those given"

    learned = train(
        network,
        lambda step, share: next(stream),
        masked_loss,
        Optimisation(
            steps=chosen.steps, learning_rate=chosen.learning_rate, weight_decay=0.01, seconds=60 * chosen.minutes
        ),
        progress=bench.progress,
        title="circuits",
        watch=watch,
    )
    rounded(network)
    save(network, bench.folder)
    return {
        "parameters": count,
        "held_out_circuits": chosen.measured,
        "by_inputs": {str(n): judged(some, decoded(model, some)) for n, some in held.items()},
        "training": learned.as_dict(),
    }
