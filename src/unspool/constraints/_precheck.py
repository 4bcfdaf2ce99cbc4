"""What a parser takes of every row of the token spanner table when only the top of its stack is known."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from unspool.constraints._grammar import GrammarError
from unspool.constraints._scanned import ScannedGrammar
from unspool.constraints._spanner import IGNORED, Profile, Spanner

MOST_STEPS = 12_000_000
"""Steps of the parser."""

REFUSED, TAKEN, OPEN = 0, 1, 2


@dataclass
class Precheck:
    """The table.

    Args:
        place: of every parser state its place among the tops, ``-1`` if it is never on top between two terminals.
        accepted: ``[P, R]`` bool: rows that are taken whatever lies below.
        undecided: of every top the rows that depend on what lies below, ascending.
        of_state: of every lexer state the rows that its tokens have.
    """

    place: list[int]
    accepted: NDArray[np.bool_]
    undecided: list[NDArray[np.int32]]
    of_state: list[NDArray[np.int32]]
    _open: dict[tuple[int, int], NDArray[np.int32]] = field(default_factory=dict)

    def open_rows(self, state: int, top: int) -> NDArray[np.int32]:
        """Rows of a lexer state that depend on what lies below a top."""
        found = self._open.get((state, top))
        if found is None:
            found = np.intersect1d(self.of_state[state], self.undecided[top], assume_unique=True)
            self._open[state, top] = found
        return found

    @property
    def nbytes(self) -> int:
        rows = sum(rows.nbytes for rows in (*self.undecided, *self.of_state, *self._open.values()))
        return self.accepted.nbytes + rows


def precheck(grammar: ScannedGrammar, spanner: Spanner) -> Precheck:
    """Run every row from every parser state that can be on top between two terminals.

    Raises:
        GrammarError: if that takes too many steps.
    """
    return _Check(grammar, spanner).run()


class _Check:
    def __init__(self, grammar: ScannedGrammar, spanner: Spanner) -> None:
        self.grammar = grammar
        self.spanner = spanner
        self.table = grammar.parser.table
        self.steps = 0

    def run(self) -> Precheck:
        tops = self.table.tops
        accepted = np.zeros((len(tops), len(self.spanner.row_sequence)), dtype=bool)
        undecided = []
        for place, top in enumerate(tops):
            unsure: list[int] = []
            self._top(top, accepted[place], unsure)
            undecided.append(np.array(sorted(unsure), dtype=np.int32))
        places = [-1] * len(self.table)
        for place, top in enumerate(tops):
            places[top] = place
        of_state = [np.unique(self.spanner.entries(state)[1]) for state in range(len(self.grammar.scanner.delta))]
        return Precheck(places, accepted, undecided, of_state)

    def _top(self, top: int, accepted: NDArray[np.bool_], unsure: list[int]) -> None:
        queue: list[tuple[int, list[int]]] = [(0, [top])]
        while queue:
            sequence, stack = queue.pop()
            verdicts: dict[int, int] = {}
            for row, profile in self.spanner.rows_of[sequence]:
                if profile not in verdicts:
                    verdicts[profile] = self._profile(stack, self.spanner.profiles[profile])
                if verdicts[profile] == TAKEN:
                    accepted[row] = True
                elif verdicts[profile] == OPEN:
                    unsure.append(row)
            for child in self.spanner.children[sequence]:
                verdict, after = self._shift(stack, self.spanner.terminals[child])
                if self.spanner.terminals[child] == self.grammar.language.gap:
                    verdict = REFUSED if stack == [0] else TAKEN
                if verdict == TAKEN:
                    queue.append((child, after))
                elif verdict == OPEN:
                    self._all_open(child, unsure)

    def _all_open(self, sequence: int, unsure: list[int]) -> None:
        queue = [sequence]
        while queue:
            at = queue.pop()
            unsure.extend(row for row, _ in self.spanner.rows_of[at])
            queue.extend(self.spanner.children[at])

    def _profile(self, stack: list[int], profile: Profile) -> int:
        best = REFUSED
        for terminal, kind in profile:
            if terminal == IGNORED:
                both = {self._goes_on(stack), self._alive(stack[-1], kind)}
                verdict = REFUSED if REFUSED in both else OPEN if OPEN in both else TAKEN
            else:
                verdict, after = self._shift(stack, terminal)
                if verdict == TAKEN and terminal != self.grammar.language.end:
                    verdict = self._alive(after[-1], kind)
            if verdict == TAKEN:
                return TAKEN
            best = max(best, verdict)
        return best

    def _goes_on(self, stack: list[int]) -> int:
        """Whether another lexeme can follow."""
        best = REFUSED
        for terminal in self.table.action[stack[-1]] if stack != [0] else ():
            if terminal != self.grammar.language.end:
                verdict, _ = self._shift(stack, terminal)
                if verdict == TAKEN:
                    return TAKEN
                best = max(best, verdict)
        return best

    def _alive(self, state: int, kind: int) -> int:
        """Whether every stack with a state on top can be completed behind a lexeme of a class, or some, or none."""
        if self.grammar.unhindered or self.grammar.completion.surely[state] >> kind & 1:
            return TAKEN
        return OPEN if self.grammar.completion.possibly[state] >> kind & 1 else REFUSED

    def _shift(self, stack: list[int], terminal: int) -> tuple[int, list[int]]:
        """The known part of the stack after a terminal."""
        table = self.table
        copied = False
        while True:
            self.steps += 1
            if self.steps > MOST_STEPS:
                raise GrammarError(
                    f"the parser's table needs more than {MOST_STEPS // 1_000_000} million steps: join terminals of "
                    "single characters to longer ones, or use the engine llguidance"
                )
            act = table.action[stack[-1]].get(terminal)
            if act is None:
                return REFUSED, stack
            if act >= -1:
                return TAKEN, [*stack, act]
            count, left = table.reductions[~act]
            if count >= len(stack):
                # What lies below the known part decides, unless nothing can lie there.
                return (REFUSED if stack[0] == 0 else OPEN), stack
            if not copied:
                stack, copied = list(stack), True
            if count:
                del stack[-count:]
            stack.append(table.goto[stack[-1]][left])
