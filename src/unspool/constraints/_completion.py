"""How a text can still be completed: a shortest way, and whether there is one at all.

A conflict-free parser reads a terminal only if a sequence of terminals exists that completes the text. Whether a *text*
exists is another question, because lexemes cannot be put one behind the other at will: where an identifier
must follow ``SELECT`` and nothing is ignored, no text can be completed. So completions are computed over pairs of
classes (see ``_lexing``): ``ways(symbol)[i][j]`` is a shortest text that a symbol derives between a lexeme of class
``i`` and one that ends in class ``j``.

Completions of a stack follow its items downward: what is left of an item's right side, then what can follow its left
side on the frame where the item began. Frames keep what was found, so a longer text pays for its new frames.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

from unspool.constraints._lexing import Language
from unspool.constraints._lr import Item, Table
from unspool.constraints._stack import Frame

LONGEST = 1 << 16
"""Bytes of a completion beyond which it is not written out."""

Rope = tuple[int, "bytes | Rope", "Rope | None"]
"""A text: its length, and either bytes or two ropes."""
Vector = dict[int, Rope]
"""A shortest text for every class where it can end."""
Matrix = list[Vector]

EMPTY: Rope = (0, b"", None)


def joined(a: Rope, b: Rope) -> Rope:
    return b if not a[0] else a if not b[0] else (a[0] + b[0], a, b)


def written(rope: Rope) -> bytes | None:
    """The text, unless it is too long."""
    if rope[0] > LONGEST:
        return None
    parts: list[bytes] = []
    queue: list[Rope] = [rope]
    while queue:
        _, head, tail = queue.pop()
        if tail is None:
            parts.append(head)  # type: ignore[arg-type]
        else:
            queue += [tail, head]  # type: ignore[list-item]
    return b"".join(parts)


def _through(vector: Vector, matrix: Matrix) -> Vector:
    found: Vector = {}
    for i, head in vector.items():
        for j, tail in matrix[i].items():
            length = head[0] + tail[0]
            if j not in found or length < found[j][0]:
                found[j] = joined(head, tail)
    return found


class Completion:
    """What completes stacks of one parser.

    Attributes:
        classes: their number.
    """

    def __init__(self, language: Language, table: Table) -> None:
        self.language = language
        self.table = table
        self.of_state, self.begins = language.scanner.classes
        self.classes = len(self.begins)
        self._rest: dict[Item, Matrix] = {}
        self._endings: dict[int, list[tuple[int, int, Rope]]] = {}

    # -- texts of symbols -------------------------------------------------------------------------------------------

    @cached_property
    def lexemes(self) -> list[Matrix]:
        """By terminal; ignored lexemes may stand in front."""
        count = self.language.end
        plain: list[Matrix] = [[{} for _ in range(self.classes)] for _ in range(count)]
        labels = self.language.scanner.labels
        for i, first in enumerate(self.begins):
            for state, text in self.language.scanner.shortest(0, first).items():
                terminal, j = labels[state], self.of_state[state]
                if terminal >= 0 and (j not in plain[terminal][i] or len(text) < plain[terminal][i][j][0]):
                    plain[terminal][i][j] = (len(text), text, None)
        skipped = self.language.scanner.skipped
        gap: Matrix = [{i: EMPTY} for i in range(self.classes)]
        while True:
            more = [dict(row) for row in gap]
            for terminal in range(count):
                if skipped[terminal]:
                    # Nothing is ignored at the start of a text (class 0).
                    for i in range(1, self.classes):
                        _least(more[i], _through(gap[i], plain[terminal]))
            if more == gap:
                break
            gap = more
        return [[_through(gap[i], matrix) for i in range(self.classes)] for matrix in plain]

    @cached_property
    def texts(self) -> list[Matrix]:
        """By nonterminal."""
        grammar = self.table.grammar
        found: list[Matrix] = [[{} for _ in range(self.classes)] for _ in grammar.of]
        users: list[set[int]] = [set() for _ in grammar.of]
        for production, right in enumerate(grammar.right):
            for symbol in right:
                if symbol < 0:
                    users[~symbol].add(production)
        queue = list(range(len(grammar.right)))[::-1]
        waiting = set(queue)
        while queue:
            production = queue.pop()
            waiting.discard(production)
            left = grammar.left[production]
            changed = False
            for i in range(self.classes):
                vector: Vector = {i: EMPTY}
                for symbol in grammar.right[production]:
                    vector = _through(vector, self.lexemes[symbol] if symbol >= 0 else found[~symbol])
                    if not vector:
                        break
                changed |= _least(found[left][i], vector)
            if changed:
                for user in users[left] - waiting:
                    waiting.add(user)
                    queue.append(user)
        return found

    def rest(self, item: Item) -> Matrix:
        """Texts of what stands behind the dot of an item."""
        known = self._rest.get(item)
        if known is None:
            production, dot = item
            right = self.table.grammar.right[production]
            if dot == len(right):
                known = [{i: EMPTY} for i in range(self.classes)]
            else:
                head = self.lexemes[right[dot]] if right[dot] >= 0 else self.texts[~right[dot]]
                tail = self.rest((production, dot + 1))
                known = [_through(row, tail) for row in head]
            self._rest[item] = known
        return known

    # -- completions of stacks --------------------------------------------------------------------------------------

    def of_stack(self, frame: Frame) -> Vector:
        """By class of the last lexeme a shortest text that completes the stack; classes without one are left out."""
        found: Vector = {}
        for production, dot in self.table.kernels[frame.state]:
            base = _popped(frame, dot)
            ahead = self._above(base).get(self.table.grammar.left[production], {}) if production else None
            self._add(found, self.rest((production, dot)), ahead)
        return found

    def _add(self, found: Vector, rest: Matrix, ahead: Vector | None) -> bool:
        """Take in what completes ``rest`` and then ``ahead`` (``None``: the text may end there)."""
        changed = False
        for i, row in enumerate(rest):
            for j, text in row.items():
                if ahead is None:
                    whole = text
                elif j in ahead:
                    whole = joined(text, ahead[j])
                else:
                    continue
                if i not in found or whole[0] < found[i][0]:
                    found[i] = whole
                    changed = True
        return changed

    def _above(self, frame: Frame) -> dict[int, Vector]:
        """What completes a text once a nonterminal is read on top of a frame, by nonterminal."""
        missing: list[Frame] = []
        at: Frame | None = frame
        while at is not None and at.ends is None:
            missing.append(at)
            at = at.below
        for lower in reversed(missing):
            lower.ends = self._solved(lower)
        return frame.ends

    def _solved(self, frame: Frame) -> dict[int, Vector]:
        goto = self.table.goto[frame.state]
        kernels, left = self.table.kernels, self.table.grammar.left
        found: dict[int, Vector] = {n: {} for n in goto}
        within: list[tuple[int, Matrix, int]] = []
        for n, target in goto.items():
            for production, dot in kernels[target]:
                rest = self.rest((production, dot))
                if production == 0:
                    self._add(found[n], rest, None)
                elif dot == 1:
                    within.append((n, rest, left[production]))
                else:
                    base = _popped(frame, dot - 1)
                    self._add(found[n], rest, base.ends.get(left[production], {}))
        changed = True
        while changed:
            changed = False
            for n, rest, above in within:
                changed |= self._add(found[n], rest, found.get(above, {}))
        return found

    def endings(self, state: int) -> list[tuple[int, int, Rope]]:
        """How the lexeme that a lexer state stands in can end: terminal, class, and a shortest text that does it."""
        known = self._endings.get(state)
        if known is None:
            labels = self.language.scanner.labels
            best: dict[tuple[int, int], Rope] = {}
            for at, text in self.language.scanner.shortest(state).items():
                key = labels[at], self.of_state[at]
                if key[0] >= 0 and (key not in best or len(text) < best[key][0]):
                    best[key] = (len(text), text, None)
            known = self._endings[state] = [(*key, text) for key, text in best.items()]
        return known

    # -- for all stacks at once -------------------------------------------------------------------------------------

    @cached_property
    def unhindered(self) -> bool:
        """Whether any lexeme can follow any other, if need be behind ignored ones; then every stack can be ended."""
        return all(all(row for row in matrix) for t, matrix in enumerate(self.lexemes) if t in self._used)

    @cached_property
    def _used(self) -> set[int]:
        return {symbol for right in self.table.grammar.right for symbol in right if symbol >= 0}

    @cached_property
    def surely(self) -> list[int]:
        """Of every parser state the classes, as bits, from which every stack with it on top can be completed."""
        return self._settled(every=True)

    @cached_property
    def possibly(self) -> list[int]:
        """The same of some stack with it on top."""
        return self._settled(every=False)

    def _settled(self, every: bool) -> list[int]:
        table = self.table
        full = (1 << self.classes) - 1
        if self.unhindered:
            return [full] * len(table)
        reached = {item: [sum(1 << j for j in row) for row in self.rest(item)] for item in _items(table)}
        found = [0] * len(table)
        parts: list[list[tuple[list[int], list[int] | None]]] = []
        for state, kernel in enumerate(table.kernels):
            here = []
            for production, dot in kernel:
                bases = _backwards(table, state, dot)
                left = table.grammar.left[production]
                # A text ends where the start symbol is complete.
                targets = [table.goto[base][left] for base in bases if left in table.goto[base]] if production else None
                here.append((reached[production, dot], targets))
            parts.append(here)
        users: list[set[int]] = [set() for _ in found]
        for state, here in enumerate(parts):
            for _, targets in here:
                for target in targets or ():
                    users[target].add(state)
        queue = list(range(len(found)))
        waiting = set(queue)
        while queue:
            state = queue.pop()
            waiting.discard(state)
            mask = found[state]
            for rows, targets in parts[state]:
                if targets is None:
                    able = [full]
                else:
                    able = [found[target] for target in targets]
                for i, row in enumerate(rows):
                    ways = [row & bits for bits in able]
                    if ways and (all(ways) if every else any(ways)):
                        mask |= 1 << i
            if mask != found[state]:
                found[state] = mask
                for user in users[state] - waiting:
                    waiting.add(user)
                    queue.append(user)
        return found


def _items(table: Table) -> Iterable[Item]:
    return {item for kernel in table.kernels for item in kernel}


def _backwards(table: Table, state: int, count: int) -> set[int]:
    """The states that lie ``count`` symbols below a state on some stack."""
    found = {state}
    for _ in range(count):
        found = {earlier for at in found for earlier in table.before[at]}
    return found


def _popped(frame: Frame, count: int) -> Frame:
    for _ in range(count):
        frame = frame.below  # type: ignore[assignment]
    return frame


def _least(into: Vector, more: Vector) -> bool:
    """Keep the shorter of each; whether anything changed."""
    changed = False
    for j, text in more.items():
        if j not in into or text[0] < into[j][0]:
            into[j] = text
            changed = True
    return changed
