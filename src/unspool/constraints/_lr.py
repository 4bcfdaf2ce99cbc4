"""Tables of shift-reduce parsers: what LALR(1) and canonical LR(1) have in common, and LALR(1) itself.

Sources: DeRemer and Pennello, Efficient Computation of LALR(1) Look-Ahead Sets, 1982; Knuth, On the Translation of
Languages from Left to Right, 1965.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from unspool.constraints._grammar import GrammarError
from unspool.constraints._rules import Rules, nullable, spread

MOST_STATES = 8_000

Item = tuple[int, int]
"""A production and the place of the dot in it."""

Action = dict[int, int]
"""By terminal: a state to shift to (``>= 0``), or ``~production`` to reduce by (``~0`` accepts)."""


class Augmented:
    """A grammar with a new start in front: production 0 derives the start symbol, and ``end`` ends every text."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.end = len(rules.terminals)
        self.start = len(rules.names)
        self.left = [self.start, *(left for left, _ in rules.productions)]
        self.right: list[tuple[int, ...]] = [(~rules.start,), *(right for _, right in rules.productions)]
        self.of: list[list[int]] = [[] for _ in range(len(rules.names) + 1)]
        for production, left in enumerate(self.left):
            self.of[left].append(production)
        self.empty = nullable(rules)

    @cached_property
    def first(self) -> list[int]:
        """Of every nonterminal the terminals that its texts begin with, as bits."""
        found = [0] * len(self.of)
        changed = True
        while changed:
            changed = False
            for left, right in zip(self.left, self.right, strict=True):
                joined = found[left] | self._first_of(right, found)[0]
                if joined != found[left]:
                    found[left] = joined
                    changed = True
        return found

    def first_of(self, symbols: tuple[int, ...]) -> tuple[int, bool]:
        """The terminals that texts of some symbols begin with, as bits, and whether one of them is empty."""
        return self._first_of(symbols, self.first)

    def _first_of(self, symbols: tuple[int, ...], first: list[int]) -> tuple[int, bool]:
        mask = 0
        for symbol in symbols:
            if symbol >= 0:
                return mask | 1 << symbol, False
            mask |= first[~symbol]
            if ~symbol not in self.empty:
                return mask, False
        return mask, True

    def symbol(self, symbol: int) -> str:
        return "the end" if symbol == self.end else self.rules.symbol(symbol)

    def show(self, item: Item) -> str:
        production, dot = item
        return self.rules.show(production - 1, dot) if production else "the whole text"


@dataclass(frozen=True, eq=False)
class Table:
    """A parser.

    Args:
        grammar: with its new start.
        action: of every state what to do by terminal.
        goto: of every state where a nonterminal leads.
        kernels: of every state the items that it was entered with.
        entered: of every state the symbol that leads to it; ``None`` for state 0.
    """

    grammar: Augmented
    action: list[Action]
    goto: list[dict[int, int]]
    kernels: list[tuple[Item, ...]]
    entered: list[int | None]

    def __len__(self) -> int:
        return len(self.action)

    @cached_property
    def before(self) -> list[list[int]]:
        """Of every state those from which one symbol leads to it."""
        found: list[list[int]] = [[] for _ in self.action]
        for state, (action, goto) in enumerate(zip(self.action, self.goto, strict=True)):
            for target in {*goto.values(), *(target for target in action.values() if target >= 0)}:
                found[target].append(state)
        return found

    @cached_property
    def tops(self) -> list[int]:
        """States that are on top of a stack between two terminals: the first, and those that a terminal leads to."""
        return [state for state, symbol in enumerate(self.entered) if symbol is None or symbol >= 0]

    @cached_property
    def reductions(self) -> list[tuple[int, int]]:
        """Of every production the symbols on its right and its left side."""
        return [(len(right), left) for left, right in zip(self.grammar.left, self.grammar.right, strict=True)]


@dataclass(frozen=True)
class Conflict:
    """Two ways to go on with the same terminal."""

    state: int
    terminal: int
    ways: tuple[str, ...]


def refuse_conflicts(grammar: Augmented, conflicts: Sequence[Conflict], path: Sequence[int], what: str) -> None:
    """Say what a parser cannot decide.

    Args:
        path: symbols that lead to the place of the first conflict.
        what: what the grammar is not.

    Raises:
        GrammarError: if there are conflicts.
    """
    if not conflicts:
        return
    first = conflicts[0]
    shown = " ".join(grammar.symbol(symbol) for symbol in path[-8:]) or "(the start)"
    more = f" ({len(conflicts) - 1} more conflicts)" if len(conflicts) > 1 else ""
    raise GrammarError(
        f"the grammar is ambiguous or not {what}: after {'... ' if len(path) > 8 else ''}{shown}, before "
        f"{grammar.symbol(first.terminal)}, a parser cannot decide between {' and '.join(first.ways)}{more}. Rewrite "
        "these rules so that the next terminal decides, or use the engine llguidance, which takes every context-free "
        "grammar"
    )


def path_to(state: int, shifts: Sequence[dict[int, int]]) -> list[int]:
    """A shortest way from the first state to another, as symbols."""
    came: dict[int, tuple[int, int]] = {}
    queue = [0]
    for at in queue:
        for symbol, target in shifts[at].items():
            if target and target not in came:
                came[target] = (at, symbol)
                queue.append(target)
    found = []
    while state:
        state, symbol = came[state]
        found.append(symbol)
    return found[::-1]


def lalr(rules: Rules) -> Table:
    """LALR(1) tables.

    Raises:
        GrammarError: for conflicts, and for too many states.
    """
    grammar = Augmented(rules)
    kernels, moves = _lr0(grammar)
    lookaheads = _lookaheads(grammar, moves)
    ended: list[dict[int, list[int]]] = [{} for _ in moves]
    for (state, production), mask in lookaheads.items():
        for terminal in bits(mask):
            ended[state].setdefault(terminal, []).append(production)
    action, conflicts = decide(grammar, moves, ended)
    if conflicts:
        refuse_conflicts(grammar, conflicts, path_to(conflicts[0].state, moves), "LALR(1)")
    return table(grammar, kernels, moves, action)


def decide(
    grammar: Augmented, moves: Sequence[dict[int, int]], ended: Sequence[dict[int, list[int]]]
) -> tuple[list[Action], list[Conflict]]:
    """Actions from the moves of every state and the productions that end in it before each terminal."""
    action: list[Action] = []
    conflicts: list[Conflict] = []
    for state, (move, ways) in enumerate(zip(moves, ended, strict=True)):
        row = {symbol: target for symbol, target in move.items() if symbol >= 0}
        for terminal, productions in ways.items():
            if terminal in row or len(productions) > 1:
                conflicts.append(_conflict(grammar, state, terminal, terminal in row, productions))
            row.setdefault(terminal, ~productions[0])
        action.append(row)
    return action, conflicts


def _conflict(grammar: Augmented, state: int, terminal: int, shift: bool, productions: list[int]) -> Conflict:
    ways = [f"reading on with {grammar.symbol(terminal)}"] if shift else []
    ways += [f"ending '{grammar.show((p, len(grammar.right[p])))}'" for p in productions]
    return Conflict(state, terminal, tuple(ways))


def table(
    grammar: Augmented, kernels: list[tuple[Item, ...]], moves: Sequence[dict[int, int]], action: list[Action]
) -> Table:
    """A parser from its parts."""
    entered: list[int | None] = [None] * len(moves)
    for move in moves:
        for symbol, target in move.items():
            entered[target] = symbol
    goto = [{~symbol: target for symbol, target in move.items() if symbol < 0} for move in moves]
    return Table(grammar, action, goto, kernels, entered)


def bits(mask: int) -> Iterable[int]:
    """The places of the ones in a number."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def _lr0(grammar: Augmented) -> tuple[list[tuple[Item, ...]], list[dict[int, int]]]:
    """The LR(0) automaton: kernels of its states, and where symbols lead."""
    leftmost: list[set[int]] = [{right[0] for p in of for right in [grammar.right[p]] if right} for of in grammar.of]
    closure: list[list[int]] = []
    for n in range(len(grammar.of)):
        seen, queue = {n}, [n]
        while queue:
            for symbol in leftmost[queue.pop()]:
                if symbol < 0 and ~symbol not in seen:
                    seen.add(~symbol)
                    queue.append(~symbol)
        closure.append(sorted(seen))
    start: tuple[Item, ...] = ((0, 0),)
    known = {start: 0}
    kernels = [start]
    moves: list[dict[int, int]] = []
    for kernel in kernels:
        after: dict[int, list[Item]] = {}
        opened: set[int] = set()
        for production, dot in kernel:
            right = grammar.right[production]
            if dot < len(right):
                after.setdefault(right[dot], []).append((production, dot + 1))
                if right[dot] < 0:
                    opened.update(closure[~right[dot]])
        for n in sorted(opened):
            for production in grammar.of[n]:
                right = grammar.right[production]
                if right:
                    after.setdefault(right[0], []).append((production, 1))
        move = {}
        for symbol, items in after.items():
            key = tuple(sorted(set(items)))
            if key not in known:
                if len(kernels) >= MOST_STATES:
                    raise GrammarError(f"the parser needs more than {MOST_STATES} states: use fewer or shorter rules")
                known[key] = len(kernels)
                kernels.append(key)
            move[symbol] = known[key]
        moves.append(move)
    return kernels, moves


def _lookaheads(grammar: Augmented, moves: list[dict[int, int]]) -> dict[tuple[int, int], int]:
    """Of every state and production that ends in it the terminals before which it does, as bits."""
    places = [(state, ~symbol) for state, move in enumerate(moves) for symbol in move if symbol < 0]
    number = {place: index for index, place in enumerate(places)}
    direct: list[int] = []
    reads: list[list[int]] = []
    for state, n in places:
        target = moves[state][~n]
        mask = sum(1 << symbol for symbol in moves[target] if symbol >= 0)
        if state == 0 and n == grammar.rules.start:
            mask |= 1 << grammar.end
        direct.append(mask)
        reads.append([number[target, ~s] for s in moves[target] if s < 0 and ~s in grammar.empty])
    includes: list[list[int]] = [[] for _ in places]
    back: dict[tuple[int, int], list[int]] = {}
    for index, (state, n) in enumerate(places):
        for production in grammar.of[n]:
            right = grammar.right[production]
            at = state
            for place, symbol in enumerate(right):
                if symbol < 0 and grammar.first_of(right[place + 1 :])[1]:
                    includes[number[at, ~symbol]].append(index)
                at = moves[at][symbol]
            back.setdefault((at, production), []).append(index)
    follow = spread(spread(direct, reads), includes)
    found = {}
    for key, indices in back.items():
        mask = 0
        for index in indices:
            mask |= follow[index]
        found[key] = mask
    # The whole text is ended by its end alone.
    found[moves[0][~grammar.rules.start], 0] = 1 << grammar.end
    return found
