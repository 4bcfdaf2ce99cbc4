"""A tree of beginnings of texts, each judged by the text that the model writes from there: the base of searches.

A node is a beginning. Its value is found by a *playout*: the loop writes the rest, as it writes any text, and the end
is rated. Several nodes are played out side by side, in one batch. What the model said on the way is kept, so that a
node is expanded at no pass: every token of a playout has left the distribution of its place behind. A child that
continues its parent's own playout has the same playout, and costs nothing either (Zhang et al., Planning with Large
Language Models for Code Generation, 2023, section 4.2, has both as caches).

A search says how a child is picked (:meth:`PlayoutSearch.pick`) and how good a text is (:meth:`PlayoutSearch.rate`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import torch
from pydantic import Field

from unspool.core.branch import Branch
from unspool.core.cards import settings
from unspool.core.sockets import Constraint, Move, Observation, Search, Setup, constrained
from unspool.core.tree import ROOT

_IDLE = 64
"""Children in a row that cost no playout, before a round of selections ends."""


@settings
class PlayoutSettings:
    """How long a search looks, and how wide."""

    playouts: Annotated[int, Field(ge=1, description="texts that are written at most, the plain one among them")] = 32
    parallel: Annotated[int, Field(ge=1, description="texts that are written side by side")] = 8
    breadth: Annotated[
        int | None, Field(ge=1, description="most probable tokens that are considered at a place; none for all")
    ] = None
    commit: Annotated[
        bool, Field(description="keep the most visited token after every search, and search again behind it")
    ] = False


class Node:
    """A beginning of a text.

    Attributes:
        text: generated tokens.
        prior: the probability of its last token, of those that were considered.
        visits, total, best: how often a value came by, the sum of these values, and the highest.
        waiting: playouts below it that are under way.
        playout: the text that was written from here, and its value; ``None`` before.
        children: by token, in the order of their priors; ``None`` before it is expanded.
        closed: whether nothing below it is left to try.
    """

    __slots__ = ("best", "children", "closed", "parent", "playout", "prior", "text", "total", "visits", "waiting")

    def __init__(self, text: tuple[int, ...], prior: float, parent: Node | None) -> None:
        self.text = text
        self.prior = prior
        self.parent = parent
        self.visits = 0
        self.total = 0.0
        self.best = -float("inf")
        self.waiting = 0
        self.playout: tuple[tuple[int, ...], float] | None = None
        self.children: dict[int, Node] | None = None
        self.closed = False

    @property
    def mean(self) -> float:
        """Of the values that came by."""
        return self.total / self.visits if self.visits else 0.0

    def above(self) -> Iterator[Node]:
        """The node itself and all on the way to the root."""
        node: Node | None = self
        while node is not None:
            yield node
            node = node.parent


@dataclass
class Record:
    """What the search of one request has done.

    Attributes:
        playouts: texts that were written.
        shared: values that were known from a text written before.
        first, best: the value of the plain text, and of the answer.
        root: the node from which is searched now.
    """

    playouts: int = 0
    shared: int = 0
    first: float = -float("inf")
    best: float = -float("inf")
    root: Node = field(default_factory=lambda: Node((), 1.0, None))
    _priors: dict[tuple[int, ...], list[tuple[int, float]]] = field(default_factory=dict)
    _leaves: list[Node | None] = field(default_factory=list)
    _best_at: int = 0
    _since_root: int = 0


class PlayoutSearch(Search):
    """See the module. What is looked for is the finished text with the highest rating; of equals the first.

    Attributes:
        records: by request, of the last run.
    """

    settings: PlayoutSettings
    lockstep = False

    def __init__(self, settings: PlayoutSettings | None = None) -> None:
        super().__init__(settings)
        self.records: dict[int, Record] = {}
        self.constraint: Constraint | None = None

    def bind(self, setup: Setup) -> None:
        self.constraint = setup.constraint

    # -- what a search decides ------------------------------------------------------------------------------------

    @abstractmethod
    def rate(self, branch: Branch) -> float:
        """How good a finished text is; higher is better."""

    @abstractmethod
    def pick(self, node: Node, children: Sequence[Node]) -> Node:
        """The child to go on with, of those that are not closed; some may never have been visited."""

    # -- the socket -----------------------------------------------------------------------------------------------

    @property
    def width(self) -> int:
        return 1

    def begin(self, request: int, rng: torch.Generator) -> None:
        record = self.records[request] = Record()
        record._leaves = [record.root]

    def observe(self, step: Observation) -> None:
        """Keep the distributions of the places that a text came by."""
        record = self.records.get(step.branch.index)
        if record is None or not step.tokens:
            return
        tokens = list(step.branch.tokens)
        for node, token in zip([ROOT, *step.path], step.tokens, strict=False):
            key = tuple(tokens[step.branch.prompt_length :])
            if key not in record._priors:
                logits = step.branch.carry if node == ROOT and not step.offset else step.scores.at(step.offset + node)
                assert logits is not None
                record._priors[key] = self._prior(step.branch, list(tokens), logits)
            tokens.append(token)

    def _prior(self, branch: Branch, tokens: list[int], logits: torch.Tensor) -> list[tuple[int, float]]:
        masked: torch.Tensor | None = logits
        if self.constraint is not None:
            masked, _ = constrained(self.constraint, branch, tokens, logits)
        if masked is None:
            return []
        count = int((masked > -torch.inf).sum())
        if self.settings.breadth is not None:
            count = min(count, self.settings.breadth)
        top = masked.float().topk(count)
        return list(zip(top.indices.tolist(), torch.softmax(top.values, -1).tolist(), strict=True))

    def advance(self, branches: Sequence[Branch]) -> list[Move] | None:
        if any(branch.finished is None for branch in branches):
            return None
        record = self.records[branches[0].index]
        for place, (branch, leaf) in enumerate(zip(branches, record._leaves, strict=True)):
            if leaf is not None:
                self._played(record, place, leaf, branch)
        chosen = self._choose(record, branches[0].stops)
        if not chosen:
            return None
        moves = [self._move(node, branches) for node in chosen]
        # The best text stays as it is; last, so that it is copied for the others and not for itself.
        record._leaves = [*chosen, None]
        moves.append(Move(record._best_at))
        record._best_at = len(chosen)
        return moves

    def select(self, branches: Sequence[Branch]) -> int:
        record = self.records[branches[0].index]
        if all(leaf is None or leaf.playout is not None for leaf in record._leaves):
            return record._best_at
        # The deadline came while texts were being written: they are rated as they are.
        rated = [self.rate(branch) for branch in branches]
        return max(range(len(branches)), key=lambda place: (rated[place], place == record._best_at))

    @staticmethod
    def _move(node: Node, branches: Sequence[Branch]) -> Move:
        """From the text that has most in common with it."""
        common = []
        for branch in branches:
            pairs = enumerate(zip(branch.generated, node.text, strict=False))
            shorter = min(len(branch.generated), len(node.text))
            common.append(next((place for place, (a, b) in pairs if a != b), shorter))
        source = max(range(len(branches)), key=common.__getitem__)
        return Move(source, common[source], node.text[common[source] :])

    # -- the tree -------------------------------------------------------------------------------------------------

    def _played(self, record: Record, place: int, leaf: Node, branch: Branch) -> None:
        """A text is finished: its value goes up to the root."""
        value = self.rate(branch)
        for node in leaf.above():
            node.waiting = max(node.waiting - 1, 0)
        record.playouts += 1
        record._since_root += 1
        if record.playouts == 1:
            record.first = value
        if value > record.best:
            record.best, record._best_at = value, place
        self._valued(leaf, tuple(branch.generated), value)

    @staticmethod
    def _valued(leaf: Node, text: tuple[int, ...], value: float) -> None:
        leaf.playout = text, value
        for node in leaf.above():
            node.visits += 1
            node.total += value
            node.best = max(node.best, value)
        if len(text) <= len(leaf.text):
            PlayoutSearch._close(leaf)

    @staticmethod
    def _close(leaf: Node) -> None:
        leaf.closed = True
        for node in leaf.above():
            if node is not leaf:
                assert node.children is not None
                node.closed = all(child.closed for child in node.children.values())
            if not node.closed:
                return

    def _choose(self, record: Record, stops: frozenset[int]) -> list[Node]:
        """The next nodes to play out; none if the search is over."""
        chosen: list[Node] = []
        idle = 0
        while len(chosen) < self.settings.parallel and idle < _IDLE:
            if record._since_root + len(chosen) >= self.settings.playouts or record.root.closed:
                if chosen or not self.settings.commit or not self._step_down(record, stops):
                    break
                continue
            leaf = self._descend(record)
            if leaf is None:
                break
            parent = leaf.parent
            known = parent.playout if parent is not None else None
            if known is not None and known[0][: len(leaf.text)] == leaf.text:
                record.shared += 1
                idle += 1
                self._valued(leaf, *known)
                continue
            idle = 0
            for node in leaf.above():
                node.waiting += 1
            chosen.append(leaf)
        return chosen

    @staticmethod
    def _step_down(record: Record, stops: frozenset[int]) -> bool:
        """Keep the most visited token; false at the end of a text."""
        children = record.root.children
        if not children:
            return False
        record.root = max(children.values(), key=lambda child: (child.visits, child.best, child.prior))
        record._since_root = 0
        return record.root.visits > 0 and record.root.text[-1] not in stops

    def _descend(self, record: Record) -> Node | None:
        """A node that was never visited; ``None`` if there is none that is not under way."""
        node = record.root
        while True:
            if node.children is None:
                if not self._expand(record, node):
                    return None
            assert node.children is not None
            free = [child for child in node.children.values() if not child.closed and not self._under_way(child)]
            if not free:
                return None
            child = self.pick(node, free)
            if not child.visits:
                return child
            node = child

    @staticmethod
    def _under_way(node: Node) -> bool:
        return node.waiting > 0 and not node.visits

    @staticmethod
    def _expand(record: Record, node: Node) -> bool:
        """Give a node its children; false if it has none."""
        if node.playout is None:
            return False
        text, _ = node.playout
        prior = record._priors.get(node.text)
        if prior is None:
            # Nobody asked the model here: the token was forced.
            prior = [(text[len(node.text)], 1.0)] if len(text) > len(node.text) else []
        node.children = {token: Node((*node.text, token), share, node) for token, share in prior}
        if not node.children:
            PlayoutSearch._close(node)
        return bool(node.children)
