"""Searches over playouts: the best of what was written, at no more texts than asked for, against exhaustive search."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, ClassVar

import pytest
import torch
from tests.architectures.small import asked, small_model
from tests.contracts.exact import FastTable
from torch import Tensor

from unspool.circuits.sequence import EOS, circuit_of, task_of
from unspool.constraints.circuit_transformer import CircuitTransformer
from unspool.core.branch import Branch
from unspool.core.compose import compose
from unspool.core.errors import Incompatible, InvalidInput
from unspool.core.events import Finished, Stepped
from unspool.core.sockets import Constraint
from unspool.core.texts import Stop
from unspool.search._playouts import Node
from unspool.search.mcts import MCTS, MCTSSettings

END = 4
LENGTH = 4
MODEL = FastTable(5, seed=3, scale=1.0)


class Worth(Constraint):
    """Texts of up to four tokens and an end; each has a worth that has nothing to do with its probability."""

    FOLLOWS: ClassVar[dict[int | None, list[int]]] = {0: [1], 1: [0, 2, 3, END], 2: [0, 1, 3], 3: [1, 2, END]}

    def __init__(self, forces: bool = False) -> None:
        super().__init__()
        self.forces = forces
        self.rated = 0

    def follows(self, text: Sequence[int]) -> list[int]:
        if len(text) == LENGTH:
            return [END]
        return self.FOLLOWS[text[-1]] if text else [0, 1, 2, 3]

    def allowed(self, branch: Branch, tokens: list[int]) -> Tensor:
        mask = torch.zeros(5, dtype=torch.bool)
        mask[self.follows(tokens[branch.prompt_length :])] = True
        return mask

    def forced(self, branch: Branch, tokens: list[int]) -> list[int]:
        text, found = tokens[branch.prompt_length :], []
        while self.forces and (not found or found[-1] != END) and len(only := self.follows([*text, *found])) == 1:
            found += only
        return found

    def complete(self, branch: Branch, tokens: list[int]) -> bool:
        return END in self.follows(tokens[branch.prompt_length :])

    @staticmethod
    def worth(text: Sequence[int]) -> float:
        return float(torch.randn(1, generator=torch.Generator().manual_seed(hash(tuple(text)) % 10_007)))

    def reward(self, branch: Branch, tokens: list[int]) -> float:
        self.rated += 1
        return self.worth([token for token in tokens[branch.prompt_length :] if token != END])

    def everything(self) -> dict[tuple[int, ...], float]:
        """All whole texts."""
        found = {}
        for size in range(1, LENGTH + 1):
            for text in itertools.product(range(4), repeat=size):
                if all(text[place] in self.follows(text[:place]) for place in range(size)) and END in self.follows(
                    text
                ):
                    found[text] = self.worth(text)
        return found


def run(
    prompts: Sequence[list[int]], constraint: Worth | None = None, **settings: Any
) -> tuple[list[Any], MCTS, Worth]:
    constraint, search = constraint or Worth(), MCTS(MCTSSettings(**settings))
    made = compose(MODEL, [constraint, search])
    events = list(made.decode(prompts, stop=Stop(20, frozenset({END}))))
    found = {event.index: event for event in events if isinstance(event, Finished)}
    return [found[index] for index in range(len(prompts))], search, constraint


def plain(prompt: list[int]) -> tuple[int, ...]:
    made = compose(MODEL, Worth())
    (end,) = [e for e in made.decode([prompt], stop=Stop(20, frozenset({END}))) if isinstance(e, Finished)]
    return end.tokens


@pytest.mark.parametrize("forces", [False, True])
@pytest.mark.parametrize("parallel", [1, 3, 8])
@pytest.mark.parametrize("backup", ["mean", "best"])
def test_given_time_it_finds_the_best_there_is(parallel: int, backup: str, forces: bool) -> None:
    (end,), search, constraint = run([[2]], Worth(forces), playouts=2000, parallel=parallel, backup=backup)
    everything = constraint.everything()
    assert end.tokens[:-1] == max(everything, key=everything.__getitem__)
    assert end.reason == "stop-token"
    record = search.records[0]
    assert record.root.closed, "it stops when nothing is left"
    assert record.playouts <= len(everything), "no text is written twice"
    assert record.best == max(everything.values())


@pytest.mark.parametrize("playouts", [1, 2, 5, 9, 20])
@pytest.mark.parametrize("parallel", [1, 4])
def test_no_more_texts_than_asked_for_and_never_worse_than_plain(playouts: int, parallel: int) -> None:
    for prompt in ([0], [1, 2], [3]):
        (end,), search, constraint = run([prompt], playouts=playouts, parallel=parallel)
        record = search.records[0]
        assert record.playouts == min(playouts, record.playouts)
        assert constraint.rated == record.playouts
        assert record.first == Worth.worth(plain(prompt)[:-1])
        assert record.best == Worth.worth(end.tokens[:-1]) >= record.first
        if playouts == 1:
            assert end.tokens == plain(prompt)
        elif not record.root.closed:
            assert record.playouts == playouts


def test_more_playouts_are_never_worse() -> None:
    best = [run([[1]], playouts=count, parallel=1)[1].records[0].best for count in (1, 2, 4, 8, 16, 64)]
    assert best == sorted(best)
    assert best[-1] > best[0]


def test_requests_of_a_batch_do_not_meet() -> None:
    prompts = [[0], [1, 2], [3], [2, 2]]
    together, search, _ = run(prompts, playouts=7, parallel=3)
    assert [run([prompt], playouts=7, parallel=3)[0][0].tokens for prompt in prompts] == [e.tokens for e in together]
    assert [search.records[index].playouts for index in range(4)] == [7] * 4


def test_a_child_on_its_parents_text_costs_nothing() -> None:
    _, search, _ = run([[1]], playouts=12, parallel=1)
    record = search.records[0]
    assert record.shared > 0

    def texts(node: Node) -> list[tuple[int, ...]]:
        below = [text for child in (node.children or {}).values() for text in texts(child)]
        return ([node.playout[0]] if node.playout else []) + below

    assert len(set(texts(record.root))) == record.playouts
    assert record.root.visits == record.playouts + record.shared


def test_visits_and_values_add_up() -> None:
    _, search, _ = run([[0, 1]], playouts=25, parallel=4)

    def check(node: Node) -> tuple[int, float]:
        own = (1, node.playout[1]) if node.playout else (0, 0.0)
        below = [check(child) for child in (node.children or {}).values()]
        visits, total = own[0] + sum(v for v, _ in below), own[1] + sum(t for _, t in below)
        assert (node.visits, node.waiting) == (visits, 0)
        assert node.total == pytest.approx(total)
        if node.children:
            assert sum(child.prior for child in node.children.values()) == pytest.approx(1, abs=1e-5)
        return visits, total

    check(search.records[0].root)


def test_priors_are_the_masked_distribution() -> None:
    _, search, constraint = run([[2]], playouts=30)
    expanded = [node for node in _nodes(search.records[0].root) if node.children]
    assert len(expanded) > 3
    for node in expanded:
        mask = torch.tensor([token in constraint.follows(node.text) for token in range(5)])
        expected = torch.softmax(MODEL.next_logits([2, *node.text]).masked_fill(~mask, -torch.inf), -1)
        told = {token: child.prior for token, child in (node.children or {}).items()}
        wanted = {token: float(expected[token]) for token in constraint.follows(node.text)}
        assert told == pytest.approx(wanted, abs=1e-6)
        assert list(told) == sorted(told, key=lambda token: -wanted[token])


def test_breadth_leaves_the_unlikely_out() -> None:
    _, search, _ = run([[2]], playouts=50, breadth=2)
    assert all(len(node.children or {}) <= 2 for node in _nodes(search.records[0].root))


def _nodes(node: Node) -> list[Node]:
    return [node, *(one for child in (node.children or {}).values() for one in _nodes(child))]


def test_committing_searches_again_behind_every_token() -> None:
    (end,), search, _ = run([[1]], playouts=4, parallel=2, commit=True)
    record = search.records[0]
    assert record.playouts > 4
    assert record.root.text, "the root went down"
    assert record.best == Worth.worth(end.tokens[:-1]) >= record.first


def test_a_deadline_ends_it_with_what_there_is() -> None:
    search = MCTS(MCTSSettings(playouts=10**6, parallel=2))
    made = compose(small_model(), [CircuitTransformer(), search])
    (prompt,) = asked(1, 4, 2, seed=5)
    (end,) = [e for e in made.decode([prompt], stop=Stop(90, deadline=1.0)) if isinstance(e, Finished)]
    if end.complete:
        made_circuit = circuit_of(end.tokens[:-1], task_of(prompt)[1].inputs).circuit
        assert task_of(prompt)[1].done_by(made_circuit.output_tables())


def test_texts_of_a_search_are_told_at_the_end() -> None:
    made = compose(MODEL, [Worth(), MCTS(MCTSSettings(playouts=6))])
    events = list(made.decode([[1]], stop=Stop(20, frozenset({END}))))
    assert len({event.branch for event in events if isinstance(event, Stepped)}) > 1


def test_circuits_get_smaller() -> None:
    prompts = asked(6, 3, 1, seed=2)
    gates = []
    for parts in ([CircuitTransformer()], [CircuitTransformer(), MCTS(MCTSSettings(playouts=24))]):
        made = compose(small_model(), parts)
        ends = {e.index: e for e in made.decode(prompts, stop=Stop(96)) if isinstance(e, Finished)}
        gates.append([])
        for index, prompt in enumerate(prompts):
            task = task_of(prompt)[1]
            body = [token for token in ends[index].tokens if token != EOS]
            assert not ends[index].complete or task.done_by(circuit_of(body, task.inputs).circuit.output_tables())
            gates[-1].append(len(circuit_of(body, task.inputs).circuit.gates) if ends[index].complete else 99)
    assert all(after <= before for before, after in zip(*gates, strict=True))
    assert sum(gates[1]) < sum(gates[0])


def test_what_does_not_fit() -> None:
    class Silent(Worth):
        reward = Constraint.reward

    with pytest.raises(Incompatible, match="how good one is"):
        compose(MODEL, [Silent(), "mcts"])
    with pytest.raises(Incompatible, match="how good one is"):
        compose(MODEL, "mcts")
    with pytest.raises(InvalidInput, match="playouts=0"):
        compose(MODEL, [Worth(), "mcts"], settings={"playouts": 0})
