"""From calibration pairs to a threshold: what a partial program misses, how many misses are allowed, and the file.

The bound is that of PAC prediction sets (Park et al., 2020): if the chance of a miss were above ``epsilon``, then as
few misses as are allowed here among ``n`` independent pairs would be seen with a chance of ``delta`` at most.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unspool.constraints._code_tree import CodeTree, Language, find_program
from unspool.constraints._pac_family import Costs, Optimiser, levels, weigh
from unspool.core.errors import InvalidInput
from unspool.models.storage import write_whole

FORMAT = "unspool pac-code-sets"
VERSION = 1


def thresholds(points: int) -> list[float]:
    """The grid: so many, evenly from 1e-5 to 1 - 1e-5."""
    return [float(tau) for tau in np.linspace(1e-5, 1 - 1e-5, points)]


# -- one pair -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Program:
    """A program that a model wrote.

    Args:
        begin: where it begins in the output.
        tree: of it.
        costs: of its nodes.
    """

    begin: int
    tree: CodeTree
    costs: Costs

    @classmethod
    def of(
        cls, language: Language, text: str, spans: Sequence[tuple[int, int]], log_probs: Sequence[float]
    ) -> Program | None:
        """The program in an output; ``None`` if there is none that parses."""
        found = find_program(language, text)
        if found is None:
            return None
        begin, tree = found
        return cls(begin, tree, weigh(tree, begin, spans, log_probs))


def right(tree: CodeTree, truth: CodeTree) -> list[bool]:
    """For each node whether it, and all around it, stands in the true program at the same place and says the same.

    Places are counted among the children of a node, so that a partial program of right nodes becomes the true one if
    each of its holes is filled with what stands there. (The published test asks less: that each kept node is found
    among the children, wherever.)
    """
    found = [False] * len(tree.nodes)
    stack = [(0, 0)]
    while stack:
        ours, theirs = stack.pop()
        if tree.labels[ours] != truth.labels[theirs]:
            continue  # Labels of nodes with different numbers of children differ in length.
        found[ours] = True
        stack.extend(zip(tree.nodes[ours].children, truth.nodes[theirs].children, strict=True))
    return found


@dataclass(frozen=True)
class Family:
    """One pair, solved: all that calibration and measuring need of it.

    Args:
        misses: at how many thresholds, the first ones, the partial program misses the true one.
        kept: nodes that are kept at each threshold.
        nodes: of the program.
    """

    misses: int
    kept: tuple[int, ...]
    nodes: int


def solve(
    program: Program | None, truth: CodeTree, grid: Sequence[float], holes: int, optimiser: Optimiser = "knapsack"
) -> Family:
    """Solve a pair for every threshold. What does not parse is a single hole, which misses nothing.

    A node that no token writes is kept with what is in it, so that only variables can be wrong: a wrong node without a
    token makes all in it wrong.
    """
    if program is None:
        return Family(0, (0,) * len(grid), 0)
    costs = program.costs
    level = levels(costs, grid, holes, optimiser)
    fits = right(program.tree, truth)
    wrong = [int(level[at]) for at, node in enumerate(costs.nodes) if not fits[node]]
    weights = np.array(costs.weights)
    kept = ((level[:, None] > np.arange(len(grid))) * weights[:, None]).sum(axis=0)
    return Family(max(wrong, default=0), tuple(kept.tolist()), costs.total)


# -- the bound ----------------------------------------------------------------------------------------------------


def needed(epsilon: float, delta: float) -> int:
    """The least number of pairs that can show a coverage of ``1 - epsilon`` with confidence ``1 - delta``: the least
    ``n`` with ``(1 - epsilon)^n <= delta``."""
    count = max(math.ceil(math.log(delta) / math.log1p(-epsilon)) - 1, 1)
    while count * math.log1p(-epsilon) > math.log(delta):
        count += 1
    return count


def allowed_misses(count: int, epsilon: float, delta: float) -> int:
    """How many of ``count`` pairs may be missed: the largest ``k`` with
    ``sum_{h <= k} C(n, h) epsilon^h (1 - epsilon)^(n - h) <= delta``, summed in logs.

    Raises:
        InvalidInput: if there are too few pairs for any; it names how many are needed.
    """
    if not (0 < epsilon < 1 and 0 < delta < 1):
        raise InvalidInput(f"epsilon is {epsilon:g} and delta {delta:g}; both must lie between 0 and 1")
    total, most = -math.inf, -1
    for misses in range(count + 1):
        term = (
            math.lgamma(count + 1)
            - math.lgamma(misses + 1)
            - math.lgamma(count - misses + 1)
            + misses * math.log(epsilon)
            + (count - misses) * math.log1p(-epsilon)
        )
        total = float(np.logaddexp(total, term))
        if total > math.log(delta):
            break
        most = misses
    if most < 0:
        raise InvalidInput(
            f"{count} calibration pairs are too few for epsilon {epsilon:g} and delta {delta:g}: at least "
            f"{needed(epsilon, delta)} are needed; or take a larger epsilon or delta"
        )
    return most


def choose(misses: NDArray[np.int64], points: int, allowed: int) -> int | None:
    """The place of the smallest threshold that misses few enough pairs, as do all larger ones.

    Args:
        misses: ``[n]`` of :class:`Family`.
        points: of the grid.
        allowed: of :func:`allowed_misses`.

    Returns:
        ``None`` if no threshold does: then the prediction is the single hole.
    """
    missed = (misses[:, None] > np.arange(points)).sum(axis=0)
    good = np.logical_and.accumulate((missed <= allowed)[::-1])[::-1]
    return int(good.argmax()) if good.any() else None


# -- the result ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Calibration:
    """A threshold with what it promises, as it is kept in a file.

    Args:
        language: of the programs.
        epsilon: the chance of a miss that is accepted.
        delta: the chance, over the choice of the calibration pairs, that there are more misses than that.
        holes: of a partial program at most.
        optimiser: that solves the programmes; the threshold is only good for the same.
        points: of the grid of thresholds.
        place: of the threshold in the grid; ``None`` if none was good enough, so that the prediction is one hole.
        pairs: that were used.
        missed: of them at the threshold.
        allowed: misses that the bound allows.
        kept: share of the pairs' nodes that the threshold keeps.
        unread: pairs that were left out because their reference does not parse.
        unparsed: pairs among those used whose output does not parse; they are single holes.
        model: that wrote the outputs; empty if the data brought them along.
    """

    language: Language
    epsilon: float
    delta: float
    holes: int
    optimiser: Optimiser
    points: int
    place: int | None
    pairs: int
    missed: int
    allowed: int
    kept: float
    unread: int = 0
    unparsed: int = 0
    model: str = ""

    @property
    def tau(self) -> float | None:
        """The threshold."""
        return None if self.place is None else thresholds(self.points)[self.place]

    def as_dict(self) -> dict[str, Any]:
        return {"format": FORMAT, "version": VERSION, "tau": self.tau, **asdict(self)}

    def save(self, path: Path) -> None:
        """Write it, whole or not at all.

        Raises:
            InvalidInput: if it cannot be written.
        """
        try:
            write_whole(path, (json.dumps(self.as_dict(), indent=2) + "\n").encode())
        except OSError as error:
            raise InvalidInput(f"the calibration cannot be written to {path}: {error.strerror or error}") from error

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read it.

        Raises:
            InvalidInput: if it cannot be read, or is no calibration.
        """
        what = f"the calibration {path}"
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InvalidInput(f"{what} cannot be read: {error.strerror or error}") from error
        except ValueError as error:
            raise InvalidInput(f"{what} is not JSON: {error}") from error
        if not isinstance(told, Mapping) or told.get("format") != FORMAT:
            raise InvalidInput(f"{what} is none: `unspool calibrate pac-code-sets` makes one")
        if told.get("version") != VERSION:
            raise InvalidInput(f"{what} has version {told.get('version')!r}; {VERSION} is read: calibrate again")
        return cls._checked({key: told.get(key) for key in cls.__dataclass_fields__}, what)

    @classmethod
    def _checked(cls, told: dict[str, Any], what: str) -> Calibration:
        def number(key: str, low: float, high: float, whole: bool) -> bool:
            value = told[key]
            right_type = isinstance(value, int) if whole else isinstance(value, int | float)
            return right_type and not isinstance(value, bool) and low <= value <= high

        most = float("inf")
        good = {
            "language": told["language"] in ("python", "sql"),
            "optimiser": told["optimiser"] in ("knapsack", "milp", "greedy"),
            "model": isinstance(told["model"], str),
            "points": number("points", 1, 100_000, True),
            "holes": number("holes", 1, 1000, True),
            **{key: number(key, 0, 1, False) for key in ("epsilon", "delta", "kept")},
            **{key: number(key, 0, most, True) for key in ("pairs", "missed", "allowed", "unread", "unparsed")},
        }
        good["place"] = told["place"] is None or (good["points"] and number("place", 0, told["points"] - 1, True))
        if wrong := [key for key, is_good in good.items() if not is_good]:
            raise InvalidInput(f"{what} is damaged: {wrong[0]} is {told[wrong[0]]!r}; calibrate again")
        return cls(**told)


@dataclass(frozen=True)
class Pair:
    """An output with its tokens, and what it should have been.

    Args:
        text: of the output.
        spans: for each token the characters ``[start, end)`` that it writes.
        log_probs: of the tokens, in nats.
        reference: the true program.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    log_probs: tuple[float, ...]
    reference: str


class Solver:
    """Reads pairs and solves them, one after the other; then :meth:`calibrate` has all it needs.

    Args:
        language: of the programs.
        holes: of a partial program at most.
        optimiser: of the integer programmes.
        points: of the grid.
    """

    def __init__(self, language: Language, holes: int, optimiser: Optimiser = "knapsack", points: int = 100) -> None:
        self.language, self.holes, self.optimiser, self.points = language, holes, optimiser, points
        self.families: list[Family] = []
        self.unread = self.unparsed = 0
        self._grid = thresholds(points)

    def add(self, pair: Pair) -> Family | None:
        """Solve a pair; ``None``, and it is counted, if its reference does not parse."""
        found = find_program(self.language, pair.reference)
        if found is None:
            self.unread += 1
            return None
        truth = found[1]
        program = Program.of(self.language, pair.text, pair.spans, pair.log_probs)
        self.unparsed += program is None
        family = solve(program, truth, self._grid, self.holes, self.optimiser)
        self.families.append(family)
        return family

    def calibrate(self, epsilon: float, delta: float, model: str = "") -> Calibration:
        """The threshold.

        Raises:
            InvalidInput: if there are too few pairs.
        """
        try:
            allowed = allowed_misses(len(self.families), epsilon, delta)
        except InvalidInput as error:
            left_out = f" ({self.unread} more have a reference that does not parse)" if self.unread else ""
            raise InvalidInput(f"{error}{left_out}") from error
        misses = np.array([family.misses for family in self.families], dtype=np.int64)
        place = choose(misses, self.points, allowed)
        nodes = sum(family.nodes for family in self.families)
        kept = 0 if place is None else sum(family.kept[place] for family in self.families)
        return Calibration(
            self.language,
            epsilon,
            delta,
            self.holes,
            self.optimiser,
            self.points,
            place,
            len(self.families),
            0 if place is None else int((misses > place).sum()),
            allowed,
            kept / nodes if nodes else 0.0,
            self.unread,
            self.unparsed,
            model,
        )
