"""Plain decoding as a drafter among others."""

from __future__ import annotations

from tests.toys import TableModel

from unspool.core.compose import compose
from unspool.core.events import Scored, Stepped
from unspool.core.texts import Stop


def test_one_pass_a_token() -> None:
    model = TableModel()
    events = list(compose(model, "plain").decode([[1, 2, 3]], stop=Stop(max_new_tokens=7)))
    assert sum(isinstance(event, Scored) for event in events) == 7
    assert all(len(event.tokens) == 1 and not event.draft for event in events if isinstance(event, Stepped))
    assert events[-1].tokens == [*compose(model).decode([[1, 2, 3]], stop=Stop(max_new_tokens=7))][-1].tokens
