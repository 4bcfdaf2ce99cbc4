"""PAC prediction sets for code: a program with holes that contains the right one with a chosen probability.

A finished program is read as a tree, each node of which costs what its tokens cost: their negative log-probabilities
under the model. The largest part of the tree that has at most ``m`` holes and a probability of at least ``tau`` is
kept, and stands for all programs that one gets by filling the holes. ``tau`` comes from a calibration: it is the
smallest (the one that keeps most) at which so few of ``n`` calibration programs are missed that a miss is rarer than
``epsilon``, with confidence ``1 - delta`` over the choice of those programs. That holds for any model, as long as what
is asked later comes from where the calibration pairs came from; a bad model only gets larger holes, a confidently wrong
one a single hole.

Khakhar, Mell and Bastani, PAC Prediction Sets for Large Language Models of Code, ICML 2023. ``unspool calibrate
pac-code-sets`` makes the calibration; without one the method keeps what has a probability of at least ``tau``, and says
that this promises nothing.

It is no mask: it reads the output when it is finished, and changes nothing, so that it is lossless. The
log-probabilities are those of the model's own distribution (temperature 1, nothing masked), whatever sampler,
constraint or drafter there is beside it. The published optimiser is z3, over the same programme; here it is a tree
knapsack, or HiGHS. A true program counts as contained if it is got by filling each hole with what stands in its place,
which is stricter than the published test.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from unspool.constraints._code_tree import CodeTree, Language
from unspool.constraints._pac_calibration import Calibration, Program, thresholds
from unspool.constraints._pac_family import Optimiser, holes_of, levels
from unspool.core.cards import Card, Kind, settings
from unspool.core.errors import InvalidInput
from unspool.core.registry import register
from unspool.core.sockets import FinishedText, Reader, Reading, Setup

DEFAULT_TAU = 0.5
DEFAULT_HOLES = 3


@settings
class PACSettings:
    """A calibration brings its own language, holes, optimiser and threshold."""

    calibration: Annotated[
        str | None, Field(description="a file of `unspool calibrate pac-code-sets`; without one nothing is promised")
    ] = None
    tau: Annotated[
        float | None,
        Field(
            gt=0, lt=1, description=f"without a calibration: probability of what is kept; {DEFAULT_TAU} if not given"
        ),
    ] = None
    language: Annotated[Language | None, Field(description="of the programs; python if not given")] = None
    holes: Annotated[
        int | None, Field(ge=1, le=1000, description=f"of a partial program at most; {DEFAULT_HOLES} if not given")
    ] = None
    optimiser: Annotated[
        Optimiser | None,
        Field(
            description="knapsack and milp (HiGHS, needs scipy) are exact, greedy is a baseline; knapsack if not given"
        ),
    ] = None
    mark: Annotated[str, Field(min_length=1, description="what is printed for a hole")] = "??"


@dataclass(frozen=True)
class Hole:
    """A part of an output that is left open: characters ``[start, end)``, what stood there, and its kind of node."""

    start: int
    end: int
    text: str
    kind: str


@dataclass(frozen=True)
class PartialProgram:
    """A program with holes.

    Args:
        program: the whole one, as the model wrote it.
        begin: where it begins in the output.
        holes: from left to right, in characters of the output.
        nodes, kept: of the program, and of its part that is kept.
    """

    program: str
    begin: int
    holes: tuple[Hole, ...]
    nodes: int
    kept: int

    def show(self, mark: str = "??") -> str:
        """The program with a mark in the place of each hole."""
        pieces, at = [], 0
        for hole in self.holes:
            pieces += [self.program[at : hole.start - self.begin], mark]
            at = hole.end - self.begin
        return "".join([*pieces, self.program[at:]])

    @property
    def intervals(self) -> list[tuple[int, int]]:
        """The characters of the output that are kept."""
        edges = [self.begin, *(edge for hole in self.holes for edge in (hole.start, hole.end))]
        edges.append(self.begin + len(self.program))
        return [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b]

    @classmethod
    def single_hole(cls, text: str, begin: int = 0, nodes: int = 0) -> PartialProgram:
        """Nothing is kept."""
        return cls(text, begin, (Hole(begin, begin + len(text), text, "program"),), nodes, 0)

    @classmethod
    def cut(cls, program: Program, kept: Sequence[bool]) -> PartialProgram:
        """The part with the variables that are kept.

        Args:
            program: of the model.
            kept: for each variable of its costs.
        """
        tree, costs = program.tree, program.costs
        if not kept[0]:
            return cls.single_hole(tree.text, program.begin, costs.total)
        inside = _kept_nodes(tree, [node for node, stays in zip(costs.nodes, kept, strict=True) if stays])
        found = []
        for at in holes_of(costs, kept):
            number = costs.nodes[at]
            # What no token writes by itself goes with what is in it.
            while (up := tree.nodes[number].parent) not in inside:
                number = up
            found.append(number)
        holes = tuple(
            Hole(program.begin + node.start, program.begin + node.end, tree.text[node.start : node.end], node.kind)
            for node in (tree.nodes[number] for number in sorted(set(found)))
        )
        total = sum(weight for weight, stays in zip(costs.weights, kept, strict=True) if stays)
        return cls(tree.text, program.begin, holes, costs.total, total)


def _kept_nodes(tree: CodeTree, kept: Sequence[int]) -> set[int]:
    """These nodes and all around them."""
    inside = {-1}
    for number in kept:
        while number not in inside:
            inside.add(number)
            number = tree.nodes[number].parent
    return inside


@register(
    Card(
        slug="pac-code-sets",
        name="PAC prediction sets for code",
        kind=Kind.READER,
        summary="Cuts holes into a finished program, so that what is left is right with a calibrated probability.",
        paper="PAC Prediction Sets for Large Language Models of Code, 2023",
        claim="partial programs contain the right one with a chosen probability, for any model, and are compact",
        lossless=True,
    ),
    PACSettings,
)
class PACCodeSets(Reader):
    """Says which part of a program to trust."""

    reads_log_probs = True
    settings: PACSettings

    def __init__(self, settings: PACSettings | None = None, calibration: Calibration | None = None) -> None:
        super().__init__(settings)
        chosen = self.settings
        if chosen.calibration is not None and calibration is None:
            calibration = Calibration.load(Path(chosen.calibration))
        if calibration is not None:
            for name in ("tau", "language", "holes", "optimiser"):
                given, theirs = getattr(chosen, name), getattr(calibration, name)
                if given is not None and given != theirs:
                    raise InvalidInput(
                        f"{name} is {given!r}, and the calibration was made with {theirs!r}: leave it out, "
                        "or calibrate anew"
                    )
        self.calibration = calibration
        self.language: Language = calibration.language if calibration else chosen.language or "python"
        self._holes = calibration.holes if calibration else chosen.holes or DEFAULT_HOLES
        self._optimiser: Optimiser = calibration.optimiser if calibration else chosen.optimiser or "knapsack"
        if calibration is None:
            self._grid = [chosen.tau or DEFAULT_TAU]
        else:
            # What is kept at a threshold depends on the larger ones. If none is good enough: the single hole.
            self._grid = [] if calibration.place is None else thresholds(calibration.points)[calibration.place :]
        self._other_model = ""

    def bind(self, setup: Setup) -> None:
        made_for = self.calibration.model if self.calibration else ""
        self._other_model = made_for if made_for not in ("", setup.target.name) else ""
        self._no_text = "" if setup.target.tokenizer is not None else f"{setup.target.name} has no tokenizer"

    def partial(self, text: str, spans: Sequence[tuple[int, int]], log_probs: Sequence[float]) -> PartialProgram | None:
        """The partial program in an output; ``None`` if it holds none that parses.

        Args:
            text: of the output.
            spans: for each token the characters ``[start, end)`` that it writes.
            log_probs: of the tokens, in nats.
        """
        program = Program.of(self.language, text, spans, log_probs)
        if program is None:
            return None
        if not self._grid:
            return PartialProgram.single_hole(program.tree.text, program.begin, program.costs.total)
        level = levels(program.costs, self._grid, self._holes, self._optimiser)
        return PartialProgram.cut(program, [bool(one) for one in level > 0])

    def read(self, outputs: Sequence[FinishedText], chosen: int) -> Reading:
        output = outputs[chosen]
        found = self.partial(output.text, output.spans, output.log_probs)
        note = ""
        if found is None:
            note = self._no_text or f"the output does not parse as {self.language}"
            found = PartialProgram.single_hole(output.text)
        promise, promised = self._promise()
        data: dict[str, Any] = {
            "partial_program": found.show(self.settings.mark),
            "kept": [list(interval) for interval in found.intervals],
            "holes": [
                {"start": hole.start, "end": hole.end, "text": hole.text, "kind": hole.kind} for hole in found.holes
            ],
            "nodes": found.nodes,
            "kept_nodes": found.kept,
            "tau": self._grid[0] if self._grid else None,
            "coverage": 1 - self.calibration.epsilon if self.calibration and promised else None,
            "confidence": 1 - self.calibration.delta if self.calibration and promised else None,
            "guarantee": promised,
            "note": "; ".join(part for part in (note, promise) if part),
        }
        count = f"{len(found.holes)} hole{'' if len(found.holes) == 1 else 's'}"
        line = f"kept {found.kept} of {found.nodes} nodes, {count}; {data['note']}"
        return Reading(f"{data['partial_program']}\n{line}", data)

    def _promise(self) -> tuple[str, bool]:
        made = self.calibration
        if made is None:
            return f"no guarantee: the threshold {self._grid[0]:g} is not calibrated", False
        if self._other_model:
            return f"no guarantee: calibrated for {self._other_model}", False
        promise = f"contains the right program with probability {1 - made.epsilon:g} (confidence {1 - made.delta:g})"
        return promise + ("" if self._grid else "; no threshold was good enough to keep anything"), True
