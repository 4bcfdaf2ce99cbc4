"""In which states an object can be at a place of a function: the protocol's automaton along every way through it.

An abstract interpretation over Python's syntax tree, of the text up to the statement that is being written. The value
is the set of states that are possible, so a call is wrong for certain only if it is in none of them. ``None`` stands
for "nobody knows": the object was not made here.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from unspool.constraints._monitors.protocols import Protocol

_MARK = "__cursor__"
_BRANCH = re.compile(r"\s*(?:elif|else|except|finally|case)\b")


@dataclass(frozen=True)
class State:
    """What is known of the object.

    Attributes:
        states: that are possible; ``None`` if nobody knows.
        shared: whether others can reach it, and may use it at any time.
    """

    states: frozenset[str] | None
    shared: bool = False


class _Reached(Exception):
    """The cursor, with what is known there."""

    def __init__(self, state: State | None) -> None:
        super().__init__()
        self.state = state


def states_at(before: str, line: int, receiver: str, protocol: Protocol) -> frozenset[str] | None:
    """The states in which ``receiver`` can be at the end of a text; ``None`` if nobody knows.

    Args:
        before: the text up to the dot behind the receiver.
        line: where the statement begins that is being written, in characters.
        receiver: a name, or names with dots between them.
    """
    statement = before[line:]
    if _BRANCH.match(statement):
        return None
    indent = statement[: len(statement) - len(statement.lstrip())]
    tree = _parsed(f"{before[:line]}{indent}{_MARK}\n")
    if tree is None:
        return None
    try:
        _Flow(protocol, receiver).block(_scope(tree), State(None))
    except _Reached as reached:
        state = reached.state
    else:
        return None
    if state is None or state.states is None:
        return None
    # What the statement has already called.
    states = state.states
    for method in re.findall(rf"(?<![\w.]){re.escape(receiver)}\s*\.\s*(\w+)\s*\(", statement):
        states = states | protocol.after(states, method)
    return states


def _parsed(text: str) -> ast.Module | None:
    """The tree; blocks of ``try`` that the text ends in get an end."""
    for _ in range(8):
        try:
            return ast.parse(text)
        except SyntaxError as error:
            if "expected 'except' or 'finally' block" not in str(error):
                return None
        except ValueError:
            return None
        lines = text.rstrip("\n").split("\n")
        tries = _open_tries(lines)
        if not tries:
            return None
        # The innermost first: it ends where the text does.
        text = "\n".join([*lines, f"{tries[-1]}finally:", f"{tries[-1]} pass"]) + "\n"
    return None


def _open_tries(lines: Sequence[str]) -> list[str]:
    """The indentations of the ``try`` around the end of a text that have no other branch yet, outermost first."""
    found: list[str] = []
    for row in lines:
        if not row.strip():
            continue
        indent = row[: len(row) - len(row.lstrip())]
        while found and len(indent) < len(found[-1]):
            found.pop()
        if found and len(indent) == len(found[-1]):
            found.pop()
        if re.match(r"\s*try\s*:", row):
            found.append(indent)
    return found


def _scope(tree: ast.Module) -> list[ast.stmt]:
    """The body of the innermost function that the cursor is in, or of the module."""
    body = tree.body
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and any(
            isinstance(inner, ast.Name) and inner.id == _MARK for inner in ast.walk(node)
        ):
            body = node.body  # Walked from the outside in.
    return body


class _Flow:
    """One walk. A state of ``None`` is a place that is not reached."""

    def __init__(self, protocol: Protocol, receiver: str) -> None:
        self._protocol = protocol
        self._receiver = receiver
        self._stopping = True
        # Of the loops around a statement: what leaves them, and what goes on with the next round.
        self._breaks: list[list[State | None]] = []
        self._continues: list[list[State | None]] = []

    # -- values ------------------------------------------------------------------------------------------------------

    def _join(self, *states: State | None) -> State | None:
        known = [state for state in states if state is not None]
        if not known:
            return None
        shared = any(state.shared for state in known)
        if any(state.states is None for state in known):
            return State(None, shared)
        return State(frozenset().union(*(state.states or () for state in known)), shared)

    def _moved(self, state: State, states: frozenset[str]) -> State:
        # A call that is wrong already ends what is known.
        return replace(state, states=states or None)

    def _used(self, state: State) -> State:
        """Others had their turn."""
        if state.states is None or not state.shared:
            return state
        return replace(state, states=self._protocol.reachable(state.states))

    # -- statements --------------------------------------------------------------------------------------------------

    def block(self, body: Sequence[ast.stmt], state: State | None) -> State | None:
        for line in body:
            if isinstance(line, ast.Expr) and isinstance(line.value, ast.Name) and line.value.id == _MARK:
                if self._stopping:
                    raise _Reached(state)
                continue
            state = None if state is None and not self._holds_mark(line) else self._statement(line, state)
        return state

    @staticmethod
    def _holds_mark(line: ast.stmt) -> bool:
        return any(isinstance(node, ast.Name) and node.id == _MARK for node in ast.walk(line))

    def _statement(self, line: ast.stmt, state: State | None) -> State | None:
        if state is None:
            state = State(None)
        if isinstance(line, ast.If):
            state = self._expression(line.test, state)
            return self._join(self.block(line.body, state), self.block(line.orelse, state))
        if isinstance(line, ast.While):
            return self._loop(line.body, line.orelse, self._expression(line.test, state), line.test)
        if isinstance(line, ast.For | ast.AsyncFor):
            state = self._bound(line.target, self._expression(line.iter, state, uses=False), made=False)
            return self._loop(line.body, line.orelse, state, None)
        if isinstance(line, ast.Try | ast.TryStar):
            return self._try(line, state)
        if isinstance(line, ast.With | ast.AsyncWith):
            return self._with(line, state)
        if isinstance(line, ast.Match):
            state = self._expression(line.subject, state)
            return self._join(state, *(self.block(case.body, state) for case in line.cases))
        if isinstance(line, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if any(self._is(node) for node in ast.walk(line)):
                state = self._used(replace(state, shared=True))
            return self.block(line.body, state) if isinstance(line, ast.ClassDef) else state
        if isinstance(line, ast.Return | ast.Raise):
            self._expressions(line, state)
            return None
        if isinstance(line, ast.Break | ast.Continue):
            ways = self._breaks if isinstance(line, ast.Break) else self._continues
            if ways:
                ways[-1].append(state)
            return None
        if isinstance(line, ast.Global | ast.Nonlocal):
            return State(None, shared=True) if self._receiver.split(".")[0] in line.names else state
        if isinstance(line, ast.Delete):
            return State(None) if any(self._is(target) for target in line.targets) else state
        if isinstance(line, ast.Assign | ast.AnnAssign | ast.AugAssign):
            targets = line.targets if isinstance(line, ast.Assign) else [line.target]
            if line.value is None:
                return state
            state = self._expression(line.value, state)
            for target in targets:
                state = self._bound(target, state, made=isinstance(line.value, ast.Call))
            return state
        return self._expressions(line, state)

    def _loop(
        self, body: Sequence[ast.stmt], orelse: Sequence[ast.stmt], state: State, test: ast.expr | None
    ) -> State | None:
        stopping, self._stopping = self._stopping, False
        entry: State = state
        for _ in range(len(self._protocol.states) + 2):
            after, _left = self._round(body, entry)
            joined = self._join(entry, after)
            assert joined is not None
            if test is not None:
                joined = self._join(joined, self._expression(test, joined)) or joined
            if joined == entry:
                break
            entry = joined
        self._stopping = stopping
        after, left = self._round(body, entry)
        return self._join(self.block(orelse, self._join(entry, after)), *left)

    def _round(self, body: Sequence[ast.stmt], state: State) -> tuple[State | None, list[State | None]]:
        """Once through a loop: what goes on with the next round, and what leaves."""
        self._breaks.append([])
        self._continues.append([])
        after = self.block(body, state)
        return self._join(after, *self._continues.pop()), self._breaks.pop()

    def _try(self, line: ast.Try | ast.TryStar, state: State) -> State | None:
        stopping, self._stopping = self._stopping, False
        seen = self._within(line.body, state)
        self._stopping = stopping
        after = self.block(line.orelse, self.block(line.body, state))
        ends = [after, *(self.block(handler.body, seen) for handler in line.handlers)]
        if not line.finalbody:
            return self._join(*ends)
        # Errors that nobody catches pass through as well; what is behind the statement they do not reach.
        stopping, self._stopping = self._stopping, False
        left = self.block(line.finalbody, self._join(*ends))
        self._stopping = stopping
        if stopping:
            self.block(line.finalbody, self._join(*ends, seen))
        return left

    def _within(self, body: Sequence[ast.stmt], state: State | None) -> State | None:
        """What is possible anywhere in a block, where an error may leave it."""
        found = state
        for line in body:
            if not (isinstance(line, ast.Expr) and isinstance(line.value, ast.Name) and line.value.id == _MARK):
                state = self.block([line], state)
                found = self._join(found, state)
        return found

    def _with(self, line: ast.With | ast.AsyncWith, state: State) -> State | None:
        entered = False
        for item in line.items:
            state = self._expression(item.context_expr, state, uses=False)
            if item.optional_vars is not None:
                mine = any(self._is(node) for node in ast.walk(item.optional_vars))
                state = self._bound(item.optional_vars, state, made=isinstance(item.context_expr, ast.Call))
                entered |= mine and isinstance(item.context_expr, ast.Call)
            entered |= self._is(item.context_expr)
        if not entered:
            return self.block(line.body, state)
        if self._protocol.enter is not None and state.states is not None:
            state = replace(state, states=frozenset({self._protocol.enter}))
        after = self.block(line.body, state)
        if after is None or self._protocol.exit is None or after.states is None:
            return after
        return replace(after, states=frozenset({self._protocol.exit}))

    # -- expressions -------------------------------------------------------------------------------------------------

    def _is(self, node: ast.AST) -> bool:
        return isinstance(node, ast.Name | ast.Attribute) and ast.unparse(node) == self._receiver

    def _bound(self, target: ast.expr, state: State, made: bool) -> State:
        """Behind an assignment to a target."""
        if self._is(target):
            return State(frozenset({self._protocol.start})) if made else State(None)
        head = self._receiver.split(".")[0]
        if any(isinstance(node, ast.Name) and node.id == head for node in _stored(target)):
            return State(None)
        return state

    def _expressions(self, line: ast.AST, state: State) -> State:
        for node in ast.iter_child_nodes(line):
            if isinstance(node, ast.expr):
                state = self._expression(node, state)
        return state

    def _expression(self, node: ast.expr, state: State, uses: bool = True) -> State:
        """Behind the evaluation of an expression.

        Args:
            uses: whether the value of it goes where others can reach it.
        """
        if self._is(node):
            return replace(state, shared=state.shared or uses)
        if isinstance(node, ast.Call):
            called = node.func
            own = isinstance(called, ast.Attribute) and self._is(called.value)
            if not own:
                state = self._expression(called, state, uses=False)
            for given in [*node.args, *(keyword.value for keyword in node.keywords)]:
                state = self._expression(given, state)
            if own and state.states is not None:
                assert isinstance(called, ast.Attribute)
                state = self._moved(state, self._protocol.after(state.states, called.attr))
            return self._used(state)
        if isinstance(node, ast.NamedExpr):
            state = self._expression(node.value, state)
            return self._bound(node.target, state, made=isinstance(node.value, ast.Call))
        if isinstance(node, ast.Attribute):
            return self._expression(node.value, state, uses=False)
        if isinstance(node, ast.Compare | ast.UnaryOp | ast.Await | ast.FormattedValue):
            for inner in ast.iter_child_nodes(node):
                if isinstance(inner, ast.expr):
                    state = self._expression(inner, state, uses=isinstance(node, ast.Await))
            return state
        if isinstance(node, ast.BoolOp | ast.IfExp):
            parts = node.values if isinstance(node, ast.BoolOp) else [node.test, node.body, node.orelse]
            for part in parts:
                state = self._join(state, self._expression(part, state)) or state
            return state
        if isinstance(node, ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
            inside = any(self._is(inner) for inner in ast.walk(node))
            return self._used(replace(state, shared=True)) if inside else state
        return self._expressions(node, state)


def _stored(target: ast.expr) -> Iterator[ast.AST]:
    """The names that an assignment to a target binds."""
    return (
        node for node in ast.walk(target) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store | ast.Del)
    )
