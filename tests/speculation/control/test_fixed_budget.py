"""Drafts stay within a fixed budget."""

from __future__ import annotations

import pytest
from tests.contracts.exact import RandomDrafts
from tests.toys import TableModel

from unspool.core.compose import compose
from unspool.core.errors import InvalidInput
from unspool.core.events import Finished, Stepped
from unspool.core.sockets import Proposal
from unspool.core.texts import Stop


@pytest.mark.parametrize(("nodes", "depth"), [(3, None), (None, 2), (4, 1), (0, None), (None, None)])
def test_drafts_stay_within_the_budget(nodes: int | None, depth: int | None) -> None:
    model = TableModel()
    drafter = RandomDrafts(Proposal.POINT, model.vocab_size)
    made = compose(model, [drafter, "fixed-budget"], settings={"nodes": nodes, "depth": depth})
    events = list(made.decode([[1, 2]], stop=Stop(max_new_tokens=60)))
    drafts = [event.draft for event in events if isinstance(event, Stepped)]
    # The drafter would go further: where there is a limit it is reached.
    assert nodes is None or max(len(draft) for draft in drafts) == nodes
    assert depth is None or max(draft.depth for draft in drafts) == depth
    assert all(len(draft) <= (99 if nodes is None else nodes) for draft in drafts)
    assert all(draft.depth <= (99 if depth is None else depth) for draft in drafts)
    plain = [*compose(model).decode([[1, 2]], stop=Stop(max_new_tokens=60))][-1]
    assert isinstance(events[-1], Finished)
    assert events[-1].tokens == plain.tokens


def test_a_negative_budget_is_refused() -> None:
    with pytest.raises(InvalidInput, match="nodes"):
        compose(TableModel(), ["prompt-lookup", "fixed-budget"], settings={"nodes": -1})
