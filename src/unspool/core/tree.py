"""Token trees: the one shape of a proposal.

A :class:`TokenTree` hangs off the text that precedes it. Node ``i`` holds ``tokens[i]`` and continues the path of
``parents[i]``; a parent of ``-1`` means that the node continues the text before the tree. Parents come before their
children, so every derived quantity is one pass from left to right.

A prompt is a chain, a plain decoding step is a tree of one node, a draft is any tree. Scoring a tree is one forward
pass under the ancestor mask (tree attention: Miao et al., SpecInfer, 2023, section 4.2).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from unspool.core.errors import InvalidInput

ROOT = -1
"""The parent of the nodes that continue the text before the tree."""


class _Topology:
    """The shape of a tree without its tokens; shared by trees of one template, so that derived values are computed
    once."""

    __slots__ = ("_children", "_depths", "_mask", "parents", "tensor")

    def __init__(self, parents: list[int]) -> None:
        for node, parent in enumerate(parents):
            if not ROOT <= parent < node:
                raise InvalidInput(f"parents[{node}] is {parent}; a parent must come before its child (or be {ROOT})")
        self.parents = parents
        self.tensor = torch.tensor(parents, dtype=torch.int64)
        self._depths: list[int] | None = None
        self._mask: Tensor | None = None
        self._children: list[list[int]] | None = None

    @property
    def depths(self) -> list[int]:
        if self._depths is None:
            depths: list[int] = []
            for parent in self.parents:
                depths.append(0 if parent == ROOT else depths[parent] + 1)
            self._depths = depths
        return self._depths

    @property
    def is_chain(self) -> bool:
        return all(parent == node - 1 for node, parent in enumerate(self.parents))

    @property
    def mask(self) -> Tensor:
        if self._mask is None:
            n = len(self.parents)
            if self.is_chain:
                self._mask = torch.ones(n, n, dtype=torch.bool).tril_()
            else:
                # A row is its parent's and itself. Rows are copied by numpy: at these sizes a loop over rows is
                # faster than tensor operations that wake threads.
                rows = np.zeros((n, n), dtype=np.bool_)
                for node, parent in enumerate(self.parents):
                    if parent != ROOT:
                        rows[node] = rows[parent]
                    rows[node, node] = True
                mask = torch.from_numpy(rows)
                self._mask = mask
        return self._mask

    @property
    def children(self) -> list[list[int]]:
        """Children of every node, in index order; the last entry (index -1) holds the children of the root."""
        if self._children is None:
            children: list[list[int]] = [[] for _ in range(len(self.parents) + 1)]
            for node, parent in enumerate(self.parents):
                children[parent].append(node)
            self._children = children
        return self._children

    def leading(self, count: int) -> _Topology:
        """The shape of the first ``count`` nodes; what is derived is cut out of what is derived here."""
        cut = _Topology.__new__(_Topology)
        cut.parents, cut.tensor = self.parents[:count], self.tensor[:count]
        cut._depths, cut._mask, cut._children = self.depths[:count], self.mask[:count, :count], None
        return cut


class TokenTree:
    """A tree of tokens.

    Args:
        tokens: ``[N]`` token ids.
        parents: ``[N]`` indices, ``parents[i] < i``; ``-1`` for a node that continues the text before the tree.

    Raises:
        InvalidInput: if lengths differ or a parent does not come before its child.
    """

    __slots__ = ("_token_list", "_tokens", "_topology")

    def __init__(self, tokens: Sequence[int] | Tensor, parents: Sequence[int] | Tensor | None = None) -> None:
        self._token_list: list[int] = tokens.tolist() if isinstance(tokens, Tensor) else [int(t) for t in tokens]
        self._tokens: Tensor | None = None
        if parents is None:
            parents = range(-1, len(self._token_list) - 1)
        parent_list: list[int] = parents.tolist() if isinstance(parents, Tensor) else [int(p) for p in parents]
        if len(parent_list) != len(self._token_list):
            raise InvalidInput(f"a tree of {len(self._token_list)} tokens was given {len(parent_list)} parents")
        self._topology = _Topology(parent_list)

    @classmethod
    def chain(cls, tokens: Sequence[int] | Tensor) -> TokenTree:
        """One path: every token continues the one before it."""
        return cls(tokens)

    @classmethod
    def empty(cls) -> TokenTree:
        return _EMPTY

    @classmethod
    def from_paths(cls, paths: Iterable[Sequence[int]]) -> TokenTree:
        """The trie of several continuations: shared prefixes are stored once."""
        tokens: list[int] = []
        parents: list[int] = []
        known: dict[tuple[int, int], int] = {}
        for path in paths:
            node = ROOT
            for token in path:
                child = known.get((node, token))
                if child is None:
                    child = known[node, token] = len(tokens)
                    tokens.append(token)
                    parents.append(node)
                node = child
        return cls(tokens, parents)

    @classmethod
    def merge(cls, trees: Sequence[TokenTree]) -> TokenTree:
        """One trie of several trees; the nodes of ``trees[0]`` keep their order among themselves."""
        if len(trees) == 1:
            return trees[0]
        tokens: list[int] = []
        parents: list[int] = []
        known: dict[tuple[int, int], int] = {}
        for tree in trees:
            place: list[int] = []
            for token, parent in zip(tree.token_list, tree.parent_list, strict=True):
                at = ROOT if parent == ROOT else place[parent]
                node = known.get((at, token))
                if node is None:
                    node = known[at, token] = len(tokens)
                    tokens.append(token)
                    parents.append(at)
                place.append(node)
        return cls(tokens, parents)

    def with_tokens(self, tokens: Sequence[int] | Tensor) -> TokenTree:
        """The same shape with other tokens; depths and masks are shared, not computed again."""
        tree = TokenTree.__new__(TokenTree)
        tree._token_list = tokens.tolist() if isinstance(tokens, Tensor) else [int(t) for t in tokens]
        tree._tokens = None
        if len(tree._token_list) != len(self):
            raise InvalidInput(f"a template of {len(self)} nodes was given {len(tree._token_list)} tokens")
        tree._topology = self._topology
        return tree

    def leading(self, count: int) -> TokenTree:
        """The first ``count`` nodes, which are a tree because parents come first; of a template that is filled level by
        level, its first levels. Depths and masks are slices of this tree's, not computed again."""
        tree = TokenTree.__new__(TokenTree)
        tree._token_list = self._token_list[:count]
        tree._tokens = None
        tree._topology = self._topology.leading(count)
        return tree

    def after(self, prefix: Sequence[int]) -> TokenTree:
        """This tree hung off the end of a chain ``prefix``: nodes ``0..len(prefix)-1`` are the chain."""
        if not prefix:
            return self
        shift = len(prefix)
        parents = list(range(-1, shift - 1))
        parents.extend(shift - 1 if parent == ROOT else parent + shift for parent in self.parent_list)
        return TokenTree([*prefix, *self._token_list], parents)

    # -- what it is made of ---------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._token_list)

    def __bool__(self) -> bool:
        return bool(self._token_list)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, TokenTree)
            and self._token_list == other._token_list
            and self.parent_list == other.parent_list
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"TokenTree(tokens={self._token_list}, parents={self.parent_list})"

    @property
    def tokens(self) -> Tensor:
        """``[N]`` int64 on the CPU."""
        if self._tokens is None:
            self._tokens = torch.tensor(self._token_list, dtype=torch.int64)
        return self._tokens

    @property
    def parents(self) -> Tensor:
        """``[N]`` int64 on the CPU."""
        return self._topology.tensor

    @property
    def token_list(self) -> list[int]:
        return self._token_list

    @property
    def parent_list(self) -> list[int]:
        return self._topology.parents

    # -- derived, cached ------------------------------------------------------------------------------------------

    @property
    def depths(self) -> list[int]:
        """Depth of every node; 0 for a node that continues the text before the tree."""
        return self._topology.depths

    @property
    def depth(self) -> int:
        """Number of tokens on the longest path; 0 for an empty tree."""
        return max(self._topology.depths, default=-1) + 1

    @property
    def is_chain(self) -> bool:
        return self._topology.is_chain

    @property
    def mask(self) -> Tensor:
        """``[N, N]`` bool: ``mask[i, j]`` says that ``j`` is an ancestor of ``i`` or ``i`` itself."""
        return self._topology.mask

    def children(self, node: int = ROOT) -> list[int]:
        """Children of ``node`` in index order (of the root, if ``-1``)."""
        return self._topology.children[node]

    def child(self, node: int, token: int) -> int | None:
        """The child of ``node`` that holds ``token``, or ``None``."""
        for child in self._topology.children[node]:
            if self._token_list[child] == token:
                return child
        return None

    def path(self, node: int) -> list[int]:
        """Nodes from the top of the tree down to ``node``; empty for the root."""
        nodes: list[int] = []
        parents = self._topology.parents
        while node != ROOT:
            nodes.append(node)
            node = parents[node]
        nodes.reverse()
        return nodes

    def path_tokens(self, node: int) -> list[int]:
        return [self._token_list[n] for n in self.path(node)]

    @property
    def leaves(self) -> list[int]:
        return [node for node in range(len(self)) if not self._topology.children[node]]

    @property
    def paths(self) -> list[list[int]]:
        """The root-to-leaf paths, as lists of nodes."""
        return [self.path(leaf) for leaf in self.leaves]

    # -- smaller trees --------------------------------------------------------------------------------------------

    def select(self, nodes: Iterable[int]) -> TokenTree:
        """The subtree of these nodes, in index order.

        Raises:
            InvalidInput: if a node is kept without its parent.
        """
        kept = sorted(set(nodes))
        place = {ROOT: ROOT}
        parents: list[int] = []
        for new, node in enumerate(kept):
            parent = self.parent_list[node]
            if parent not in place:
                raise InvalidInput(f"node {node} cannot be kept without its parent {parent}")
            parents.append(place[parent])
            place[node] = new
        return TokenTree([self._token_list[node] for node in kept], parents)

    def kept_by(
        self, *, nodes: int | None = None, depth: int | None = None, weights: Tensor | None = None
    ) -> list[int]:
        """Nodes that a budget keeps, in index order.

        Args:
            nodes: how many nodes may stay; the heaviest do. A node is never kept without its ancestors: its weight
                counts as the least on its path.
            depth: how many tokens the longest path may have.
            weights: ``[N]`` value of every node (say, the probability of its path); without it earlier nodes are
                worth more.
        """
        keep = [node for node, d in enumerate(self.depths) if depth is None or d < depth]
        if nodes is None or len(keep) <= nodes:
            return keep
        if nodes <= 0:
            return []
        if weights is None:
            # Parents come before children, so the first nodes are closed under ancestors.
            return keep[:nodes]
        value = weights.to(torch.float64).tolist()
        for node, parent in enumerate(self.parent_list):
            if parent != ROOT and value[parent] < value[node]:
                value[node] = value[parent]
        # Ties go to the earlier node, which is the ancestor where the two are on one path.
        return sorted(sorted(keep, key=lambda node: (-value[node], node))[:nodes])

    def prune(self, *, nodes: int | None = None, depth: int | None = None, weights: Tensor | None = None) -> TokenTree:
        """The best subtree within a budget; see :meth:`kept_by`."""
        kept = self.kept_by(nodes=nodes, depth=depth, weights=weights)
        return self if len(kept) == len(self) else self.select(kept)


_EMPTY = TokenTree([])
