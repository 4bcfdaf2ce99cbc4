"""Which nodes of a program are kept at which threshold: the integer programme, its nested family, and a baseline.

For a threshold ``tau`` a partial program keeps as many nodes as it can such that

- the negative log-probabilities of what is kept sum up to ``-log tau`` at most,
- a node is kept only with the one around it,
- there are at most ``m`` *holes*: removed nodes in a kept one (and the removed root).

A grid of thresholds is solved from the largest down, each with all that the one before has kept, so that nodes only
fall away as ``tau`` rises. Where the next threshold leaves no room for the cheapest node that is missing, there is
nothing to solve.

Two exact solvers give the same number of nodes: a tree knapsack, and the integer programme handed to HiGHS.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from unspool.constraints._code_tree import CodeTree
from unspool.core.errors import Incompatible

Optimiser = Literal["knapsack", "milp", "greedy"]
Kept = NDArray[np.bool_]

MOST = 10.0
"""Negative log-probability that a node has at most, in nats; beyond that it makes no difference."""

_ROUNDING = 1e-9
"""By how much a sum of costs may exceed a budget that it meets in exact arithmetic."""


@dataclass(frozen=True)
class Costs:
    """The variables of the integer programme: the nodes that tokens write, in preorder, and the root.

    A node that no token writes is part of what is around it: it is kept as long as something in it is.

    Args:
        nodes: the number of each in the tree.
        parents: for each the place, among the variables, of the one around it; ``-1`` for the root.
        nll: negative log-probability in nats, in [0, ``MOST``].
        weights: what keeping each is worth: 1, or 0 for a root that no token writes.
    """

    nodes: tuple[int, ...]
    parents: tuple[int, ...]
    nll: tuple[float, ...]
    weights: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.nodes)

    @property
    def total(self) -> int:
        """Nodes that could be kept."""
        return sum(self.weights)

    def sizes(self) -> list[int]:
        """Variables in the subtree of each, itself included."""
        sizes = [1] * len(self)
        for place in range(len(self) - 1, 0, -1):
            sizes[self.parents[place]] += sizes[place]
        return sizes


def weigh(tree: CodeTree, begin: int, spans: Sequence[tuple[int, int]], log_probs: Sequence[float]) -> Costs:
    """The costs of a program's nodes.

    A token counts for every node of whose own characters it writes some, white space and comments aside. So kept nodes
    never cost less than the tokens of their text, as long as no node exceeds ``MOST``.

    Args:
        tree: of the program.
        begin: where the program begins in the output.
        spans: for each token of the output the characters ``[start, end)`` that it writes.
        log_probs: of the tokens, in nats.
    """
    owner, length = tree.owner, len(tree.text)
    nll = [0.0] * len(tree.nodes)
    written = [False] * len(tree.nodes)
    for (start, end), value in zip(spans, log_probs, strict=True):
        first, last = max(start - begin, 0), min(end - begin, length)
        if first >= last:
            continue
        for node in set(owner[first:last].tolist()) - {-1}:
            nll[node] -= value
            written[node] = True
    written[0], root_written = True, written[0]
    chosen = [number for number, is_written in enumerate(written) if is_written]
    place = {number: at for at, number in enumerate(chosen)}
    around = [-1] * len(tree.nodes)  # for each node the nearest variable at or above it
    for number, node in enumerate(tree.nodes):
        around[number] = place[number] if number in place else around[node.parent]
    return Costs(
        tuple(chosen),
        tuple(-1 if number == 0 else around[tree.nodes[number].parent] for number in chosen),
        tuple(min(max(nll[number], 0.0), MOST) for number in chosen),
        tuple(int(root_written) if number == 0 else 1 for number in chosen),
    )


def holes_of(costs: Costs, kept: Sequence[bool] | Kept) -> list[int]:
    """The places of the removed nodes whose surroundings are kept; the root if it is removed."""
    return [at for at, up in enumerate(costs.parents) if not kept[at] and (up < 0 or kept[up])]


def knapsack(costs: Costs, budget: float, holes: int, must: Kept) -> Kept:
    """The largest part within a budget, by dynamic programming over (places in preorder, holes, nodes kept).

    From the last place to the first, ``best[place, h, j]`` is the least cost of keeping ``j`` nodes with ``h`` holes
    among the nodes from that place on whose surroundings are kept: a node is kept and the next place follows, or it is
    removed and the place behind its subtree does. O(n^2 m). Of equal parts the one of least cost is taken.

    Args:
        costs: of the nodes.
        budget: nats that the kept nodes may cost.
        holes: at most.
        must: which nodes have to be kept: a part that keeps within the budget and the holes.
    """
    count, sizes = len(costs), costs.sizes()
    best = np.full((count + 1, holes + 1, costs.total + 1), np.inf)
    best[count, 0, 0] = 0.0
    for at in range(count - 1, -1, -1):
        here = best[at]
        if not must[at]:
            here[1:] = best[at + sizes[at], :-1]
        weight = costs.weights[at]
        held = best[at + 1, :, : costs.total + 1 - weight] + costs.nll[at]
        np.minimum(here[:, weight:], held, out=here[:, weight:])
    least = best[0].min(axis=0)
    found = int(np.flatnonzero(least <= budget + _ROUNDING).max())
    left, open_holes = found, int(best[0, :, found].argmin())
    kept = np.zeros(count, dtype=bool)
    at = 0
    while at < count:
        removed = best[at + sizes[at], open_holes - 1, left] if open_holes and not must[at] else np.inf
        if removed == best[at, open_holes, left]:
            at, open_holes = at + sizes[at], open_holes - 1
        else:
            kept[at] = True
            left -= costs.weights[at]
            at += 1
    return kept


def milp(costs: Costs, budget: float, holes: int, must: Kept) -> Kept:
    """The same as :func:`knapsack` by HiGHS: a variable in {0, 1} for each node.

    The number of holes is linear in them, since a child is kept only with its parent: the root's absence, and for every
    kept node its children that are not kept.

    Raises:
        Incompatible: if scipy is not installed.
    """
    try:
        from scipy.optimize import Bounds, LinearConstraint
        from scipy.optimize import milp as solve
        from scipy.sparse import csr_array
    except ImportError as error:
        raise Incompatible(
            f"the integer programme is solved by scipy, which is not installed ({error}): pip install 'unspool[milp]', "
            "or take optimiser=knapsack, which is as exact"
        ) from error
    count = len(costs)
    below = np.bincount([up for up in costs.parents if up >= 0], minlength=count)
    edges = [(at, up) for at, up in enumerate(costs.parents) if up >= 0]
    closure = csr_array(
        (
            np.tile([1.0, -1.0], len(edges)),
            (np.repeat(np.arange(len(edges)), 2), np.array(edges, dtype=np.int64).reshape(-1)),
        ),
        shape=(len(edges), count),
    )
    rules = [
        LinearConstraint(np.array(costs.nll)[None], ub=budget),
        LinearConstraint((below - 1.0)[None], ub=holes - 1.0),
    ]
    if edges:
        rules.append(LinearConstraint(closure, ub=0.0))
    answer = solve(
        -np.array(costs.weights, dtype=float),
        integrality=np.ones(count),
        bounds=Bounds(must.astype(float), 1),
        constraints=rules,
        options={"mip_rel_gap": 0.0},
    )
    if answer.x is None:
        raise ArithmeticError(f"HiGHS found no solution, though what has to be kept is one: {answer.message}")
    kept: Kept = answer.x > 0.5
    return kept


def greedy(costs: Costs, budget: float, holes: int, start: Kept) -> Kept:
    """The baseline: as long as too much is kept, of ``start`` at first, the subtree of the costliest node goes.

    Only of nodes after whose removal there are at most ``holes`` holes: when all are in use, of those around one.
    """
    kept = start.copy()
    sizes, nll = costs.sizes(), np.array(costs.nll)
    while kept.any() and float(nll[kept].sum()) > budget + _ROUNDING:
        gone = holes_of(costs, kept)
        inside = np.zeros(len(costs), dtype=np.int64)
        for hole in gone:
            up = costs.parents[hole]
            while up >= 0:
                inside[up] += 1
                up = costs.parents[up]
        possible = kept & (len(gone) - inside + 1 <= holes)
        # Of equals the smaller one.
        worst = max(np.flatnonzero(possible).tolist(), key=lambda at: (costs.nll[at], -sizes[at]))
        kept[worst : worst + sizes[worst]] = False
    return kept


def levels(costs: Costs, grid: Sequence[float], holes: int, optimiser: Optimiser = "knapsack") -> NDArray[np.int64]:
    """The nested family over a grid of thresholds.

    What is kept at one of them depends on the larger ones alone.

    Args:
        costs: of the nodes.
        grid: thresholds in (0, 1), ascending.
        holes: at most, at every threshold.
        optimiser: that solves each.

    Returns:
        ``[nodes]`` how many of the thresholds each is kept at: the first so many.
    """
    found = np.zeros(len(costs), dtype=np.int64)
    if optimiser == "greedy":
        # What it removes for one threshold it removes for the next first.
        kept = np.ones(len(costs), dtype=bool)
        for place, tau in enumerate(grid):
            kept = greedy(costs, -math.log(tau), holes, kept)
            found[kept] = place + 1
        return found
    solve = knapsack if optimiser == "knapsack" else milp
    nll, weights = np.array(costs.nll), np.array(costs.weights)
    kept = np.zeros(len(costs), dtype=bool)
    for place in range(len(grid) - 1, -1, -1):
        budget = -math.log(grid[place])
        missing = nll[~kept & (weights > 0)]
        if not missing.size:
            break
        # HiGHS meets its constraints up to 1e-6 only.
        if float(nll[kept].sum() + missing.min()) <= budget + 1e-6:
            larger = solve(costs, budget, holes, kept)
            found[larger & ~kept] = place + 1
            kept = larger
    return found
