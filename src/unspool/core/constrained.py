"""Drafts under a constraint: without what it refuses, and with what it forces."""

from __future__ import annotations

from unspool.core.branch import Branch
from unspool.core.sockets import Budget, Constraint, Draft
from unspool.core.tree import TokenTree

_GROWTH = 16
"""Nodes at most by which forced tokens prolong a draft: a longer run is committed by the round that reaches it."""


def pruned(constraint: Constraint | None, branch: Branch, draft: Draft) -> Draft:
    """A draft without what a constraint refuses. Candidates that were drawn at random stay: leaving some out by
    their tokens would bias the choice, and they were drawn from what is allowed."""
    if constraint is None or draft.q is not None or draft.decreed or not draft.tree:
        return draft
    return constraint.prune(branch, draft)


def grown(constraint: Constraint | None, branch: Branch, draft: Draft, budget: Budget) -> Draft:
    """A draft of fixed candidates with the tokens that a constraint forces after its leaves."""
    fixed = draft.q is None and not draft.decreed and draft.entered is None
    if constraint is None or not draft.tree or not fixed:
        return draft
    tokens, parents = list(draft.tree.token_list), list(draft.tree.parent_list)
    room = _GROWTH if budget.nodes is None else min(_GROWTH, budget.nodes - len(tokens))
    for leaf in draft.tree.leaves:
        if room <= 0:
            break
        path = draft.tree.path_tokens(leaf)
        deepest = room if budget.depth is None else min(room, budget.depth - len(path))
        forced = constraint.forced(branch, branch.tokens + path)[: max(deepest, 0)]
        node = leaf
        for token in forced:
            if token in branch.stops:
                break
            tokens.append(token)
            parents.append(node)
            node = len(tokens) - 1
            room -= 1
    added = len(tokens) - len(draft.tree)
    if not added:
        return draft
    return Draft(
        TokenTree(tokens, parents),
        None,
        draft.q_rows + draft.q_rows[:1] * added,
        draft.confidence + [1.0] * added if draft.confidence else [],
        origin=(draft.origin or list(range(len(draft.tree)))) + [-1] * added,
    )
