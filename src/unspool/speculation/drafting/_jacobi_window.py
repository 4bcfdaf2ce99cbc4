"""The window of lookahead decoding: guesses of the future that every pass refines, and that leave n-grams behind.

Jacobi iteration puts the model's own predictions in the place of guessed tokens until nothing changes. A window keeps
the last ``N - 1`` iterations of ``W`` places side by side, and n-grams are read off it, one token of each iteration.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

import torch

from unspool.core.branch import Branch
from unspool.core.sockets import Observation
from unspool.core.tree import ROOT, TokenTree

_SALT = 0x10_0CA4EAD


class Trie:
    """A tree that grows by paths; what two paths share is stored, and scored, once.

    A node's logits depend on its path alone, so sharing nodes changes no result.
    """

    __slots__ = ("_children", "parents", "tokens")

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self._children: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self.tokens)

    def add(self, token: int, parent: int) -> int:
        """The child of ``parent`` that holds ``token``, made if there is none."""
        node = self._children.get((parent, token))
        if node is None:
            node = self._children[parent, token] = len(self.tokens)
            self.tokens.append(token)
            self.parents.append(parent)
        return node

    def add_path(self, tokens: Iterable[int]) -> None:
        """Add a path from the root."""
        node = ROOT
        for token in tokens:
            node = self.add(token, node)

    def child(self, node: int, token: int) -> int | None:
        """The child of ``node`` that holds ``token``, or ``None``."""
        return self._children.get((node, token))

    @property
    def tree(self) -> TokenTree:
        return TokenTree(self.tokens, self.parents)


class JacobiWindow:
    """``W`` trajectories of ``N - 1`` tokens.

    With the last token of the text at position ``t``, level 0 holds ``W - 1`` guesses at ``t + 1 + j``, each of the
    levels ``1..N-2`` holds ``W`` at ``t + level + i``. As a tree: level 0 is a chain below the text's end; node ``i``
    of level 1 continues node ``i - 1`` of level 0 (the text's end if ``i = 0``); node ``i`` of a further level
    continues node ``i`` of the level before. This tree's depths are the paper's positions, its ancestors the mask.

    At first only level 0 is there, of ``W + N - 3`` tokens; each pass fills a level with the predictions after the
    level before, until all ``N - 1`` are there.

    Args:
        width: columns ``W``.
        size: ``N``, tokens of the n-grams, at least 3.
        fresh: gives a token to guess where nothing better is known.
        stops: tokens that end a text; nothing is guessed behind one, so the window takes a fresh guess in its place.
    """

    __slots__ = ("_fresh", "_size", "_stops", "_width", "ends", "levels")

    def __init__(self, width: int, size: int, fresh: Callable[[], int], stops: Collection[int] = ()) -> None:
        self._width = width
        self._size = size
        self._fresh = fresh
        self._stops = stops
        self.levels: list[list[int]] = [[fresh() for _ in range(width + size - 3)]]
        # Nodes of the last filled level in the tree that was proposed last; empty if the window was not part of it.
        self.ends: list[int] = []

    @property
    def _left(self) -> int:
        """Levels that are still to be filled."""
        return self._size - 1 - len(self.levels)

    def fit(self, nodes: int | None, depth: int | None) -> bool:
        """Take as many columns as a budget allows; whether that is any.

        Columns come back with fresh guesses when the budget does.
        """
        columns = self._width
        if nodes is not None:
            columns = min(columns, (nodes + 1) // len(self.levels) - self._left)
        if depth is not None:
            columns = min(columns, depth - self._size + 3)
        if columns < 1:
            return False
        for level, tokens in enumerate(self.levels):
            count = columns + self._left - (level == 0)
            del tokens[count:]
            tokens += [self._fresh() for _ in range(count - len(tokens))]
        return True

    def __len__(self) -> int:
        """Tokens in the window; what they share with one another counted each time."""
        return sum(map(len, self.levels))

    def hang(self, trie: Trie) -> None:
        """Add the window to a tree below the text's end."""
        nodes = [ROOT]
        for token in self.levels[0]:
            nodes.append(trie.add(token, nodes[-1]))
        if len(self.levels) == 1:
            del nodes[0]
        for tokens in self.levels[1:]:
            nodes = [trie.add(token, parent) for token, parent in zip(tokens, nodes, strict=True)]
        self.ends = nodes

    def advance(self, last: int, predicted: Sequence[int]) -> list[tuple[int, tuple[int, ...]]]:
        """Move on by one place, with the predictions after the last filled level.

        Args:
            last: the token of the text that the window hung on.
            predicted: one token for each of :attr:`ends`.

        Returns:
            The n-grams that are complete now, each as its first token and the others; none while levels are missing.
        """
        self.ends = []
        filled = [self._fresh() if token in self._stops else token for token in predicted]
        first, *others = self.levels
        if self._left:
            # The first entries would lie at the place of the token that this step commits.
            self.levels = [level[1:] for level in self.levels] + [filled[1:] if others else filled]
            return []
        self.levels = [others[0][1:], *others[1:], filled]
        return [(key, tuple(column)) for key, *column in zip([last, *first], *others, predicted, strict=True)]


def predicted(step: Observation, nodes: Sequence[int]) -> list[int]:
    """The target's best token after each of these draft nodes; ``ROOT`` is the end of the committed text."""
    end = step.branch.carry if step.offset == 0 else None
    logits = [end if node == ROOT and end is not None else step.scores.at(step.offset + node) for node in nodes]
    best: list[int] = torch.stack(logits).argmax(dim=-1).tolist()
    return best


def window_for(branch: Branch, width: int, size: int, stops: Collection[int]) -> JacobiWindow:
    """A window over a branch's future whose first guesses are random tokens of its prompt."""
    rng = branch.aside(_SALT)
    text = branch.context[: len(branch.source) + branch.prompt_length]
    return JacobiWindow(width, size, lambda: text[int(torch.randint(len(text), (), generator=rng))], stops)
