"""Circuit Transformer: circuits token by token, of which none ever does anything but what it should.

A network reads a circuit and writes a smaller one as trees in preorder. Before every token those are taken out that
contradict the wanted truth table whatever may follow (:mod:`unspool.circuits.cutoff`), so that a finished output equals
its target in every row by construction. What can fail is only to finish: a tree that grows to the limit of depth and
fits no leaf there has nothing left but to end, which is reported (``complete`` false).

Li, Chen, Mishchenko and Yuan, Circuit Transformer: A Transformer That Preserves Logical Equivalence, ICLR 2025.

Rows that do not matter (``dont_cares``, or ``-`` in a truth table) are compared with nothing. Gates that compute the
same are one gate in the text, and what a text costs is the number of its gates (:meth:`CircuitTransformer.reward`); a
search over playouts looks for a small one: ``--method circuit-transformer+mcts --set playouts=32``.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from unspool.circuits.cutoff import Place
from unspool.circuits.reading import read
from unspool.circuits.sequence import EOS, VOCABULARY, Task, circuit_of, task_of
from unspool.circuits.tables import full, widened
from unspool.core.branch import Branch
from unspool.core.cards import Card, Kind, settings
from unspool.core.errors import Incompatible, InvalidInput
from unspool.core.registry import register
from unspool.core.sockets import Constraint, Setup

_STEPS_LEFT = 2
"""Levels below the limit that stay free of gates, as in the published decoder: both operands must still fit."""
_UNFINISHED = 10
"""What a text that is not finished costs beyond the circuit that was given."""
_KNOWN = 4096
"""Places of a text that are remembered at most."""


@settings
class CircuitTransformerSettings:
    """The depth is the paper's at inference."""

    depth: Annotated[int, Field(ge=4, le=32, description="levels of a tree at most, two of which take no gate")] = 16
    dont_cares: Annotated[
        str,
        Field(
            description="where outputs are free: an expression for all of them (x0 & ~x1), one for each (y0 = ...; "
            "y1 = ...), or truth tables (0x81)"
        ),
    ] = ""


class _Track:
    """Where the texts of one branch stand; an answer is a function of the tokens alone."""

    def __init__(self, task: Task, given: int) -> None:
        self.task = task
        self.given = given
        self.places: dict[tuple[int, ...], Place] = {(): Place(task)}

    def at(self, text: tuple[int, ...]) -> Place:
        known = self.places.get(text)
        if known is None:
            start = len(text)
            while text[:start] not in self.places:
                start -= 1
            known = self.places[text[:start]]
            if len(self.places) > _KNOWN:
                self.places = {(): Place(self.task)}
            for end in range(start + 1, len(text) + 1):
                known = known.push(text[end - 1])
                self.places[text[:end]] = known
        return known


@register(
    Card(
        slug="circuit-transformer",
        name="Circuit Transformer",
        kind=Kind.CONSTRAINT,
        summary="Writes logic circuits token by token so that none differs from the circuit that it was given.",
        paper="Circuit Transformer: A Transformer That Preserves Logical Equivalence, 2025",
        claim="8-input circuits are made smaller by next-token prediction without a single violation of equivalence",
    ),
    CircuitTransformerSettings,
)
class CircuitTransformer(Constraint):
    """See the module."""

    settings: CircuitTransformerSettings

    def __init__(self, settings: CircuitTransformerSettings | None = None) -> None:
        super().__init__(settings)
        self._free: tuple[int, list[int]] | None = None
        if text := self.settings.dont_cares.strip():
            asked = read(text)
            self._free = asked.circuit.inputs, asked.circuit.output_tables()
        self._masks: dict[tuple[int, ...], Tensor] = {}

    def bind(self, setup: Setup) -> None:
        if setup.target.vocab_size != VOCABULARY or not hasattr(setup.target.tokenizer, "check"):
            raise Incompatible(
                f"circuit-transformer writes circuits, which {setup.target.name} does not: use a model of circuits "
                "(--model circuits-6, which `unspool train circuits-6` makes)"
            )

    # -- what may follow ------------------------------------------------------------------------------------------

    def allowed(self, branch: Branch, tokens: list[int]) -> Tensor:
        place = self._place(branch, tokens)
        found = place.allowed(self.settings.depth - _STEPS_LEFT)
        if EOS in found:
            found = sorted(branch.stops)
        key = tuple(found)
        mask = self._masks.get(key)
        if mask is None:
            mask = self._masks[key] = torch.zeros(VOCABULARY, dtype=torch.bool)
            mask[found] = True
        return mask

    def forced(self, branch: Branch, tokens: list[int]) -> list[int]:
        found: list[int] = []
        while True:
            mask = self.allowed(branch, tokens + found)
            if int(mask.sum()) != 1:
                return found
            found.append(int(mask.to(torch.uint8).argmax()))
            if found[-1] in branch.stops:
                return found

    def complete(self, branch: Branch, tokens: list[int]) -> bool:
        place = self._place(branch, tokens)
        return place.finished and place.fits and not place.stray

    def reward(self, branch: Branch, tokens: list[int]) -> float:
        """Minus the gates of the circuit; of one that is not finished ten less than of the circuit that was given."""
        track = self._track(branch)
        text = [token for token in tokens[branch.prompt_length :] if token not in branch.stops]
        if not self.complete(branch, tokens[: branch.prompt_length] + text):
            return -float(track.given + _UNFINISHED)
        return -float(len(circuit_of(text, track.task.inputs).circuit.gates))

    # -- places ---------------------------------------------------------------------------------------------------

    def task(self, branch: Branch) -> Task:
        """What is asked of a branch, its rows that do not matter included."""
        return self._track(branch).task

    def _place(self, branch: Branch, tokens: list[int]) -> Place:
        return self._track(branch).at(tuple(tokens[branch.prompt_length :]))

    def _track(self, branch: Branch) -> _Track:
        track: _Track | None = branch.memo.get(self)
        if track is None:
            circuit, task = task_of(branch.source)
            track = branch.memo[self] = _Track(self._freed(task), len(circuit.gates))
        return track

    def _freed(self, task: Task) -> Task:
        """The task with the rows that the settings say do not matter."""
        if self._free is None:
            return task
        inputs, tables = self._free
        if inputs > task.inputs:
            raise InvalidInput(
                f"dont_cares reads x{inputs - 1}; the circuit has {task.inputs} inputs, x0 to x{task.inputs - 1}"
            )
        if len(tables) == 1:
            tables = tables * len(task.targets)
        if len(tables) != len(task.targets):
            raise InvalidInput(
                f"dont_cares has {len(tables)} outputs; the circuit has {len(task.targets)}: give one for each, or one"
            )
        whole = full(task.inputs)
        free = [whole & widened(table, inputs, task.inputs) for table in tables]
        return Task(
            task.inputs, task.targets, tuple(care & ~table for care, table in zip(task.cares, free, strict=True))
        )
