"""Circuits under every drafter, sampler and batch: what is finished is right, and what is not is said."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tests.architectures.small import asked, small_model
from tests.contracts.test_distribution import lossless
from tests.models.shapes import backend

from unspool.circuits import CircuitError, read
from unspool.circuits.sequence import AND, EOS, NAND, PAD, Task, circuit_of, problem, task_of
from unspool.circuits.tables import widened
from unspool.constraints.circuit_transformer import CircuitTransformer, CircuitTransformerSettings
from unspool.core.branch import Branch
from unspool.core.cards import Kind
from unspool.core.compose import compose
from unspool.core.errors import Incompatible, InvalidInput
from unspool.core.events import Finished
from unspool.core.sockets import Distribution, Node, Sampler
from unspool.core.texts import Stop
from unspool.engine import Engine
from unspool.evaluation.reproductions.circuit_transformer import proven_equal

PROMPTS = [*asked(3), *asked(2, 4, 2, seed=1)]


class Uniform(Sampler):
    def distribution(self, node: Node) -> Distribution:
        return Distribution(torch.softmax(torch.where(node.logits > -torch.inf, 0.0, -torch.inf), -1))


def run(parts: Any, prompts: Sequence[list[int]] = PROMPTS, seed: int = 0, **options: Any) -> list[Finished]:
    made = compose(small_model(), parts, **options)
    found = {e.index: e for e in made.decode(prompts, stop=Stop(96), seed=seed) if isinstance(e, Finished)}
    return [found[index] for index in range(len(prompts))]


def check(prompt: list[int], end: Finished, task: Task | None = None) -> bool:
    """That a finished output is right, and that it is said to be finished exactly if it is."""
    task = task or task_of(prompt)[1]
    read_back = circuit_of([token for token in end.tokens if token != EOS], task.inputs)
    whole = not read_back.open and len(read_back.circuit.outputs) == len(task.targets)
    assert end.complete == whole
    if whole:
        assert task.done_by(read_back.circuit.output_tables())
        assert end.tokens[-1] == EOS
    else:
        assert "?" in end.text or len(read_back.circuit.outputs) < len(task.targets)
    return whole


def test_what_is_finished_is_right() -> None:
    ends = run(CircuitTransformer())
    for prompt, end in zip(PROMPTS, ends, strict=True):
        check(prompt, end)
    wrong = 0
    for prompt, end in zip(PROMPTS, run([]), strict=True):
        _, task = task_of(prompt)
        made = circuit_of(end.tokens, task.inputs).circuit
        wrong += made.output_tables() != [widened(table, task.inputs, made.inputs) for table in task.targets]
    assert wrong, "without the constraint something is wrong"


@pytest.mark.parametrize("seed", range(4))
def test_random_choices(seed: int) -> None:
    prompts = asked(40, 3, 1, seed=seed + 10)
    whole = [
        check(prompt, end)
        for prompt, end in zip(prompts, run(CircuitTransformer(), prompts, seed, sampler=Uniform()), strict=True)
    ]
    assert 5 < sum(whole) < 40, "some are finished and some are not"


def test_every_drafter_and_batch_gives_the_same() -> None:
    expected = [end.tokens for end in run(CircuitTransformer())]
    assert [run(CircuitTransformer(), [prompt])[0].tokens for prompt in PROMPTS] == expected, "one by one"
    compared = []
    for method in lossless(Kind.DRAFTER):
        if method.card.needs - small_model().capabilities:
            continue
        if "corpus" in str(method.settings.__dataclass_fields__):
            continue  # They read files of prose, which are no circuits.
        models = dict.fromkeys(method.card.models, small_model(1))
        try:
            ends = run([method.card.slug, CircuitTransformer()], models=models)
        except Incompatible as refusal:
            if "encoder" not in str(refusal):
                raise
            continue
        assert [end.tokens for end in ends] == expected, method.card.slug
        compared.append(method.card.slug)
    assert {"auto", "token-recycling", "prompt-lookup", "draft-model"} <= set(compared)


def test_dont_cares() -> None:
    prompt = problem(read("y0 = x0 & x1 & x2").circuit)
    free = CircuitTransformer(CircuitTransformerSettings(dont_cares="~x2 | ~x1"))
    (end,) = run(free, [prompt])
    assert end.tokens == (2, EOS), "x0 does it where it matters, and settles the output"
    assert end.complete
    tokens = small_model().tokenizer.encode("0b1--0")
    (end,) = run(CircuitTransformer(), [tokens])
    check(tokens, end)
    one_each = CircuitTransformer(CircuitTransformerSettings(dont_cares="y0 = x0; y1 = 0"))
    two = problem(read("y0 = x0 ^ x1; y1 = x0 & x1").circuit)
    (end,) = run(one_each, [two])
    check(two, end, Task(2, (0b0110, 0b1000), (0b0101, 0b1111)))


@pytest.mark.parametrize(
    ("text", "message"),
    [("x4", "reads x4; the circuit has 3 inputs"), ("y0 = x0; y1 = x1", "has 2 outputs; the circuit has 1")],
)
def test_dont_cares_that_do_not_fit(text: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        run(CircuitTransformer(CircuitTransformerSettings(dont_cares=text)), PROMPTS[:1])


def test_settings_that_cannot_be() -> None:
    with pytest.raises(CircuitError, match="operand"):
        compose(small_model(), "circuit-transformer", settings={"dont_cares": "x0 &"})
    with pytest.raises(InvalidInput, match="depth=99"):
        compose(small_model(), "circuit-transformer", settings={"depth": 99})
    with pytest.raises(Incompatible, match="circuits, which tiny-llama does not"):
        compose(backend("llama"), "circuit-transformer")


def branch(prompt: list[int], text: Sequence[int] = (), stops: frozenset[int] = frozenset({EOS})) -> Branch:
    made = Branch(0, 0, [PAD, *text], small_model().new_cache(), 0, torch.device("cpu"), prompt)
    made.prompt_length, made.stops = 1, stops
    return made


def test_masks_follow_the_text() -> None:
    part = CircuitTransformer()
    prompt = problem(read("y0 = x0 & x1; y1 = ~x0").circuit)
    at = branch(prompt)

    def allowed(*text: int) -> set[int]:
        return set(part.allowed(at, [PAD, *text]).nonzero().flatten().tolist())

    assert allowed() == {AND, NAND}
    assert allowed(AND) == {2, 4, AND, NAND}
    assert allowed(AND, 2) >= {4}
    assert allowed(AND, 2, 4) == {3}, "a leaf settles the second output"
    assert part.forced(at, [PAD, AND, 2, 4]) == [3, EOS]
    assert allowed(AND, 2, 4, 3) == {EOS}
    assert allowed(2) == {3}, "a wrong draft is not judged here: it was refused a token before"
    assert part.complete(at, [PAD, AND, 2, 4, 3])
    assert not part.complete(at, [PAD, AND, 2, 4])
    assert not part.complete(at, [PAD, 2, 3])
    assert part.reward(at, [PAD, AND, 2, 4, 3, EOS]) == -1
    assert part.reward(at, [PAD, AND, 2, EOS]) == -11
    without = branch(prompt, stops=frozenset())
    assert not part.allowed(without, [PAD, AND, 2, 4, 3]).any()
    assert part.forced(without, [PAD, AND, 2, 4]) == [3]


def test_without_a_stop_token_the_text_is_complete() -> None:
    made = compose(small_model(), CircuitTransformer())
    (prompt,) = [problem(read("y0 = x0 & x1").circuit)]
    (end,) = [e for e in made.decode([prompt], stop=Stop(96, frozenset())) if isinstance(e, Finished)]
    assert end.complete == (end.reason == "complete")


def test_text_in_and_text_out() -> None:
    engine = Engine(small_model())
    out = engine.generate("y0 = x0", method="circuit-transformer")
    assert (out.text, out.complete, out.finish_reason) == ("y0 = x0", True, "stop-token")
    pieces = list(engine.stream("y0 = ~x1; y1 = x0", method="circuit-transformer"))
    assert pieces == ["y0 = ~x1; y1 = x0"], "nothing is known before the end"
    with pytest.raises(CircuitError, match="line 1, column 4"):
        engine.generate("x0 x1")


def test_the_solver_agrees_with_truth_tables() -> None:
    pytest.importorskip("pysat")
    one = read("y0 = x0 & ~x1; y1 = ~(x0 & x2)").circuit
    same = read("y0 = ~(~x0 | x1); y1 = ~x0 | ~x2").circuit
    other = read("y0 = x0 & ~x1; y1 = ~(x0 & x2) & x1").circuit
    assert proven_equal(one, same)
    assert proven_equal(same, one)
    assert not proven_equal(one, other)
