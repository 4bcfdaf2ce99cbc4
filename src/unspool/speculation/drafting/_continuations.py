"""From many continuations of a text to one small tree: a trie with weights, cut to its heaviest nodes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unspool.core.sockets import Draft
from unspool.core.tree import ROOT, TokenTree


def heaviest_tree(rows: NDArray[np.int32], weights: NDArray[np.float64], nodes: int, *, chain: bool = False) -> Draft:
    """The ``nodes`` heaviest nodes of the trie of ``rows``, as fixed candidates.

    A node weighs as much as the rows through it together, hence never more than its parent: the heaviest nodes form a
    tree, the one that best-first growth finds. Of equal ones the shallower, then the one of the smaller token comes
    first.

    Args:
        rows: ``[R, L]`` continuations, negative after their end.
        weights: ``[R]``, at least 0; rows of weight 0 are left out.
        nodes: how many nodes may stay.
        chain: keep one path only, from the top to the heaviest child each time.

    Returns:
        The tree; a node's confidence is its share of its parent's weight.
    """
    used = weights > 0
    rows, weights = rows[used], weights[used]
    if not rows.size or nodes <= 0:
        return Draft.empty()
    order = np.lexsort(rows.T[::-1])
    rows, weights = rows[order], weights[order]
    # In lexicographic order a row makes a new node at every depth from the first where it parts from the row before.
    new = np.ones(rows.shape, dtype=bool)
    np.logical_or.accumulate(rows[1:] != rows[:-1], axis=1, out=new[1:])
    held = rows >= 0
    new &= held
    # Numbered depth by depth; `node[r, d]` is the node of row r at depth d.
    node = (np.cumsum(new.T.ravel()) - 1).reshape(new.T.shape).T
    count = int(new.sum())
    if not count:
        return Draft.empty()
    weight: Any = np.bincount(node[held], weights=np.broadcast_to(weights[:, None], rows.shape)[held], minlength=count)
    tokens = rows.T[new.T]
    above = np.concatenate([np.full((len(rows), 1), ROOT), node[:, :-1]], axis=1)
    parents = above.T[new.T]
    kept = _best_path(parents, weight, nodes) if chain else _heaviest(weight, nodes)
    place = np.full(count + 1, ROOT)
    place[kept] = np.arange(len(kept))
    total = np.where(parents[kept] == ROOT, weights.sum(), weight[parents[kept]])
    return Draft(
        TokenTree(tokens[kept].tolist(), place[parents[kept]].tolist()),
        confidence=(weight[kept] / total).tolist(),
    )


def _heaviest(weight: NDArray[np.float64], nodes: int) -> NDArray[Any]:
    """Indices of the heaviest, ascending; the stable sort prefers the earlier of equal ones, which is the ancestor."""
    return np.sort(np.argsort(-weight, kind="stable")[:nodes])


def _best_path(parents: NDArray[Any], weight: NDArray[np.float64], nodes: int) -> NDArray[Any]:
    path: list[int] = []
    at = ROOT
    while len(path) < nodes:
        children = np.flatnonzero(parents == at)
        if not len(children):
            break
        at = int(children[np.argmax(weight[children])])
        path.append(at)
    return np.array(path, dtype=np.int64)


def padded(paths: list[tuple[int, ...]], length: int) -> NDArray[np.int32]:
    """``[len(paths), length]`` int32: continuations as rows, cut, and ``-1`` after their end."""
    rows = np.full((len(paths), length), -1, dtype=np.int32)
    for row, path in zip(rows, paths, strict=True):
        row[: len(path[:length])] = path[:length]
    return rows
