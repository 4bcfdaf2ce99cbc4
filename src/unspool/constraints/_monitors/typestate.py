"""Typestate: of an object only those methods are called that its protocol has in the states in which it can be.

The protocols are declared automata; the states follow from what was called on the object along every way to the
place. Where others can reach the object, only what is wrong whatever they did is kept away; an object that was not made
in the function is left alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from unspool.constraints._monitors.base import Answer, Attributes, Cursor, Question, Trigger, Without
from unspool.constraints._monitors.flow import states_at
from unspool.constraints._monitors.protocols import Protocol
from unspool.constraints._monitors.python import Python

_RECEIVER = re.compile(r"(?<![\w.)\]\"'])([^\W\d]\w*(?:\.[^\W\d]\w*)*)\s*\.$")


class PythonTypestate(Attributes):
    """Calls keep to the protocols of objects.

    Args:
        python: tells what an object is.
        protocols: that are kept.
    """

    slug = "typestate"
    languages = frozenset({"python"})

    def __init__(self, python: Python, protocols: Sequence[Protocol], merged: bool = False) -> None:
        super().__init__(merged=merged)
        self._python = python
        self._protocols = tuple(protocols)

    def pre(self, cursor: Cursor) -> Trigger | None:
        found = super().pre(cursor)
        return None if found is None else replace(found, what=str(cursor.scan.line))

    def analyse(self, question: Question) -> Answer | None:
        receiver = _RECEIVER.search(question.before)
        if receiver is None:
            return None
        with self._python.asked(question) as at:
            kinds = {
                one.full_name for one in at.infer(-1 - len(receiver[0]) + len(receiver[1])) if one.type == "instance"
            }
        mine = [protocol for protocol in self._protocols if protocol.types & kinds]
        if len(mine) != 1 or not kinds <= mine[0].types:
            return None
        line = len(question.before.encode()[: int(question.what)].decode(errors="replace"))
        states = states_at(question.before, line, receiver[1], mine[0])
        if states is None:
            return None
        wrong = mine[0].watched - mine[0].valid(states)
        if not wrong:
            return None
        # jedi does not know all methods of what is written in C: only what is wrong is kept away.
        known = {*self._python.complete(question), *mine[0].watched} - wrong
        return Without(*(tuple(name.encode() for name in sorted(names)) for names in (wrong, known)))
