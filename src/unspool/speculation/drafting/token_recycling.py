"""Token recycling: what the target said about tokens that were thrown away drafts the next ones.

A matrix holds, for every token of the vocabulary, the ``K`` tokens that the target found most probable after it when it
was last an input. A fixed, unbalanced tree is filled from it, one gather a level: the child of rank ``r`` of a node is
entry ``r`` of its token's row. All nodes of the forward pass that verifies the tree, accepted or not, then refresh
their rows; that is the recycling, and it costs no extra pass. The matrix is kept from request to request.

Paper: Luo et al., Turning Trash into Treasure: Accelerating Inference of Large Language Models with Token Recycling,
2024 (section 3; tree of 80 nodes, ``K = 8``).

Lossless: the tree is fixed before the target is asked, and is matched with its own choices.

Where the paper is silent: rows that were never written propose nothing; if a token is met several times in a pass, the
later node's row stands and the accepted path comes last; ``nodes`` below 80 keeps the nodes that were accepted most
often (measured once with SmolLM2-135M, see ``TEMPLATE``); models that score only chains get the path of first ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Annotated, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from unspool.core.branch import Branch
from unspool.core.cards import Card, Kind, settings
from unspool.core.errors import WeightsError
from unspool.core.learned import Learned
from unspool.core.model import Capability
from unspool.core.registry import register
from unspool.core.sockets import Budget, Draft, Drafter, Observation, Setup
from unspool.core.tree import ROOT, TokenTree
from unspool.speculation.drafting._top import top_tokens

Integers = npt.NDArray[np.int64]

K = 8
"""Candidates a row."""

UNKNOWN = -1
"""Fills rows that were never written."""

# The 80 paths of ranks of the paper's tree (8, 21, 25, 15, 8 and 3 on its six levels), most often accepted first.
# The order is that of the accepted nodes in 360 steps of SmolLM2-135M on 16 Spec-Bench prompts, each count plus what a
# product of the rates of its ranks expects, so that rare paths are ordered as well.
TEMPLATE = (
    "0 00 1 000 2 01 10 02 0000 4 5 3 7 100 00000 020 010 20 6 70 40 03 30 001 50 05 11 0200 002 06 07 1000 12 "
    "200 000000 400 005 050 21 300 060 60 0100 0001 0010 04 0002 003 030 2000 110 22 006 007 070 011 00100 012 "
    "021 31 0003 3000 0020 500 0004 101 10000 00001 00010 01000 13 004 040 00002 00020 0030 0011 000001 000100 "
    "0040"
)


@settings
class TokenRecyclingSettings:
    """The paper's tree; 16 to 24 nodes are cheaper to verify on a CPU."""

    nodes: Annotated[int, Field(ge=1, le=80, description="nodes of the draft tree")] = 80
    read_prompt: Annotated[
        bool, Field(description="also learn from the prompt; its logits are then computed for every position")
    ] = True
    update: Annotated[
        Literal["all", "accepted", "nothing"],
        Field(description="which scored nodes refresh the matrix; less than all is there for comparison"),
    ] = "all"


class _Cut:
    """A part of the template, ready to be filled.

    Attributes:
        tree: its shape.
        levels: of every level the columns that it fills (column 0 is the token before the tree), the columns of their
            parents, and their ranks.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        ordered = sorted(paths, key=lambda path: (len(path), path))
        place = {path: node for node, path in enumerate(ordered)}
        parents = [place[path[:-1]] if len(path) > 1 else ROOT for path in ordered]
        self.tree = TokenTree([0] * len(ordered), parents)
        self.levels: list[tuple[int, int, Integers, Integers]] = []
        for depth in range(1, max(map(len, ordered), default=0) + 1):
            nodes = [node for node, path in enumerate(ordered) if len(path) == depth]
            above = np.array([parents[node] + 1 for node in nodes])
            ranks = np.array([int(ordered[node][-1]) for node in nodes])
            self.levels.append((nodes[0] + 1, nodes[-1] + 2, above, ranks))


@cache
def template(nodes: int, depth: int, chain: bool) -> _Cut:
    """The ``nodes`` most often accepted paths of at most ``depth`` ranks; of first ranks alone if ``chain``."""
    paths = [path for path in TEMPLATE.split() if len(path) <= depth and not (chain and path.strip("0"))]
    return _Cut(paths[:nodes])


class Adjacency(Learned):
    """The matrix of candidates.

    Attributes:
        matrix: ``[V, K]`` int32, the candidates after every token, most probable first; ``-1`` where nothing is known.
            Without rows until a vocabulary is bound.
    """

    kind: ClassVar[str] = "token-recycling"

    def __init__(self) -> None:
        self.matrix: Tensor = torch.empty(0, K, dtype=torch.int32)

    def bind(self, vocab_size: int, who: str) -> None:
        super().bind(vocab_size, who)
        if not len(self.matrix):
            self.matrix = torch.full((vocab_size, K), UNKNOWN, dtype=torch.int32)

    def arrays(self) -> dict[str, Tensor]:
        return {"matrix": self.matrix}

    def restore(self, arrays: Mapping[str, Tensor]) -> None:
        matrix = arrays.get("matrix")
        if matrix is None or matrix.dtype != torch.int32 or matrix.ndim != 2 or matrix.shape[1] != K:
            found = "none" if matrix is None else f"a {tuple(matrix.shape)} matrix of {matrix.dtype}"
            raise WeightsError(f"token-recycling needs a (V, {K}) matrix of int32 and found {found}")
        if self.vocab_size is not None and len(matrix) != self.vocab_size:
            raise WeightsError(f"the matrix has {len(matrix)} rows; the vocabulary has {self.vocab_size} tokens")
        if len(matrix):
            low, high = matrix.aminmax()
            if low < UNKNOWN or high >= len(matrix):
                raise WeightsError(f"the matrix holds tokens {int(low)} to {int(high)}; its vocabulary: {len(matrix)}")
        self.matrix = matrix

    def clear(self) -> None:
        self.matrix.fill_(UNKNOWN)

    @property
    def nbytes(self) -> int:
        return self.matrix.nbytes


@register(
    Card(
        slug="token-recycling",
        name="Token recycling",
        kind=Kind.DRAFTER,
        summary="Drafts a tree from the candidates that the model itself named after each token when it last read it.",
        paper="Turning Trash into Treasure: Accelerating Inference of Large Language Models with Token Recycling, 2024",
        claim="about 2x faster without training and with less than 2 MB of state; 2.7 to 2.9 tokens a step",
        lossless=True,
    ),
    TokenRecyclingSettings,
)
class TokenRecycling(Drafter):
    """A tree read off the matrix of the model's own candidates.

    Attributes:
        adjacency: the matrix; shared by all branches and requests of a composition, and by whoever is given it.
    """

    settings: TokenRecyclingSettings

    def __init__(self, settings: TokenRecyclingSettings | None = None) -> None:
        super().__init__(settings)
        self.observes_prompt = self.settings.read_prompt and self.settings.update != "nothing"
        self.adjacency = Adjacency()
        self._chain = False

    @property
    def learned(self) -> dict[str, Learned]:
        return {"token-recycling": self.adjacency}

    def bind(self, setup: Setup) -> None:
        self.adjacency.bind(setup.target.vocab_size, setup.target.name)
        self._chain = Capability.TREE not in setup.target.capabilities

    # -- proposing ------------------------------------------------------------------------------------------------

    def propose(self, branches: Sequence[Branch], budgets: Sequence[Budget]) -> list[Draft]:
        return [Draft(tree) for tree in self.trees(branches, budgets)]

    def trees(self, branches: Sequence[Branch], budgets: Sequence[Budget]) -> list[TokenTree]:
        """A tree for every branch; branches with equal budgets are filled together."""
        groups: dict[tuple[int, int], list[int]] = {}
        for place, budget in enumerate(budgets):
            groups.setdefault(budget.of(self.settings.nodes, 6), []).append(place)
        trees = [TokenTree.empty()] * len(branches)
        for (nodes, depth), places in groups.items():
            cut = template(nodes, depth, self._chain)
            roots = np.array([branches[place].tokens[-1] for place in places])
            for place, tokens in zip(places, self._fill(cut, roots).tolist(), strict=True):
                tree = cut.tree.with_tokens(tokens)
                if UNKNOWN in tokens:
                    # Below an unknown node all are unknown, so the others are closed under parents.
                    tree = tree.select(node for node, token in enumerate(tokens) if token != UNKNOWN)
                trees[place] = tree
        return trees

    def _fill(self, cut: _Cut, roots: Integers) -> Integers:
        """``[B, N]`` tokens of the template after each of ``roots`` ``[B]``."""
        # numpy reads the same memory; at these sizes a tensor operation is mostly its call.
        matrix = self.adjacency.matrix.numpy()
        tokens = np.empty((len(roots), len(cut.tree) + 1), dtype=np.int64)
        tokens[:, 0] = roots
        for first, last, above, ranks in cut.levels:
            parents = tokens[:, above]
            found = matrix[parents, ranks]
            # The row before the first is the last one, so what stood below an unknown token is no answer.
            found[parents == UNKNOWN] = UNKNOWN
            tokens[:, first:last] = found
        return tokens[:, 1:]

    # -- learning -------------------------------------------------------------------------------------------------

    def observe(self, step: Observation) -> None:
        rows = step.scores.rows
        if not rows or self.settings.update == "nothing":
            return
        place = {node: row for row, node in enumerate(rows)}
        kept = [node for node in step.kept if node in place]
        nodes = kept if self.settings.update == "accepted" else [*rows, *kept]
        # Later entries replace earlier ones of the same token; a scatter with duplicates would leave the order open.
        latest = {step.tree.token_list[node]: place[node] for node in nodes}
        logits = step.scores.logits
        best = top_tokens(logits, K)[list(latest.values())]
        matrix = self.adjacency.matrix
        matrix[list(latest), : best.shape[1]] = best.to(matrix)
