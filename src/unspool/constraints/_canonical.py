"""Canonical LR(1) tables: every state knows its lookaheads exactly.

More states than LALR(1), for more grammars; and no parser state is entered that the next terminal would not stand in.

Paper: Knuth, On the Translation of Languages from Left to Right, 1965.
"""

from __future__ import annotations

from unspool.constraints._grammar import GrammarError
from unspool.constraints._lr import Augmented, Item, Table, bits, decide, path_to, refuse_conflicts, table
from unspool.constraints._rules import Rules

MOST_STATES = 6_000

Kernel = tuple[tuple[int, int, int], ...]
"""Items with their lookaheads as bits: production, dot, terminals."""


def canonical(rules: Rules, empty: bool = False) -> Table:
    """Canonical LR(1) tables.

    Args:
        empty: whether the empty text belongs to the language though no production says so.

    Raises:
        GrammarError: for conflicts, and for too many states.
    """
    grammar = Augmented(rules)
    start: Kernel = ((0, 0, 1 << grammar.end),)
    known = {start: 0}
    kernels = [start]
    moves: list[dict[int, int]] = []
    ended: list[dict[int, list[int]]] = []
    for kernel in kernels:
        after: dict[int, dict[Item, int]] = {}
        ends: dict[int, list[int]] = {}
        for production, dot, mask in _closed(grammar, kernel):
            right = grammar.right[production]
            if dot < len(right):
                after.setdefault(right[dot], {})[production, dot + 1] = mask
            else:
                for terminal in bits(mask):
                    ends.setdefault(terminal, []).append(production)
        move = {}
        for symbol, items in after.items():
            key = tuple(sorted((production, dot, mask) for (production, dot), mask in items.items()))
            if key not in known:
                if len(kernels) >= MOST_STATES:
                    raise GrammarError(
                        f"the grammar has more than {MOST_STATES} LR(1) states: use fewer or shorter rules, or the "
                        "engine greatgramma, whose tables are smaller"
                    )
                known[key] = len(kernels)
                kernels.append(key)
            move[symbol] = known[key]
        moves.append(move)
        ended.append(ends)
    action, conflicts = decide(grammar, moves, ended)
    if conflicts:
        refuse_conflicts(grammar, conflicts, path_to(conflicts[0].state, moves), "LR(1)")
    if empty:
        action[0][grammar.end] = ~0
    return table(grammar, [tuple((p, dot) for p, dot, _ in kernel) for kernel in kernels], moves, action)


def _closed(grammar: Augmented, kernel: Kernel) -> list[tuple[int, int, int]]:
    """All items of a state."""
    masks: dict[int, int] = {}
    queue: list[int] = []

    def open_up(production: int, dot: int, mask: int) -> None:
        right = grammar.right[production]
        if dot >= len(right) or right[dot] >= 0:
            return
        first, through = grammar.first_of(right[dot + 1 :])
        mask = first | mask if through else first
        n = ~right[dot]
        if masks.get(n, 0) | mask != masks.get(n):
            masks[n] = masks.get(n, 0) | mask
            queue.append(n)

    for item in kernel:
        open_up(*item)
    while queue:
        n = queue.pop()
        for production in grammar.of[n]:
            open_up(production, 0, masks[n])
    return [*kernel, *((production, 0, mask) for n, mask in masks.items() for production in grammar.of[n])]
