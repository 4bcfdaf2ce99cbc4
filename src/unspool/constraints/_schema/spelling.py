"""Sets of strings written as patterns: part by part, or from the states of their automaton where there is an
intersection or a complement in them."""

from __future__ import annotations

from unspool.constraints._schema.expressions import (
    LAST,
    MOST_STATES,
    NOTHING,
    SPACES,
    Expression,
    Ranges,
    TooComplex,
    classes,
    derivative,
    outside,
    ranges,
)


def pattern_of(e: Expression) -> str:
    """A pattern, anchored at both ends, for the same strings; without assertions, so that every engine reads it.

    Raises:
        TooComplex: if it would grow too long.
    """
    text = _spelled(e)
    return f"^{_grouped(_eliminated(*_minimal(*_automaton(e))) if text is None else text)}$"


def _spelled(e: Expression) -> str | None:
    """The pattern part by part; ``None`` if an intersection or a complement is in it."""
    if e.op == "chars":
        return _class(e.chars)
    if e.op in ("and", "not"):
        return None
    parts = [_spelled(part) for part in e.parts]
    if None in parts:
        return None
    texts = [str(part) for part in parts]
    if e.op == "seq":
        return "".join(map(_grouped, texts))
    if e.op == "alt":
        empty = "" in texts
        joined = "|".join(text for text in texts if text)
        return _atom(joined) + "?" if empty else joined
    if e.op == "rep":
        counts = {(0, None): "*", (1, None): "+", (0, 1): "?"}
        upper = "" if e.high is None else e.high
        return _atom(texts[0]) + counts.get(
            (e.low, e.high), f"{{{e.low},{upper}}}" if e.low != e.high else f"{{{e.low}}}"
        )
    return "" if e.op == "eps" else "[^\\s\\S]"


def _automaton(e: Expression) -> tuple[list[dict[int, Ranges]], list[bool]]:
    """States numbered from the start 0: characters by target, and whether a string may end there; no dead states."""
    numbers, states, targets = {e: 0}, [e], []
    for at in states:
        edges: dict[int, list[tuple[int, int]]] = {}
        for piece in classes(at):
            after = derivative(at, piece[0][0])
            if after == NOTHING:
                continue
            if after not in numbers:
                numbers[after] = len(states)
                states.append(after)
                if len(states) > MOST_STATES:
                    raise TooComplex
            edges.setdefault(numbers[after], []).extend(piece)
        targets.append({to: ranges(pieces) for to, pieces in edges.items()})
    final = [state.nullable for state in states]
    alive = {place for place, end in enumerate(final) if end}
    while True:
        more = {place for place, edges_ in enumerate(targets) if alive & edges_.keys()} | alive
        if more == alive:
            break
        alive = more
    return [{to: on for to, on in edges_.items() if to in alive} for edges_ in targets], final


def _minimal(edges: list[dict[int, Ranges]], final: list[bool]) -> tuple[list[dict[int, Ranges]], list[bool]]:
    """The same with equivalent states made one (Moore's refinement)."""
    block = [int(end) for end in final]
    while True:
        described = []
        for place, out in enumerate(edges):
            by_block: dict[int, list[tuple[int, int]]] = {}
            for to, on in out.items():
                by_block.setdefault(block[to], []).extend(on)
            described.append((block[place], tuple(sorted((to, ranges(on)) for to, on in by_block.items()))))
        numbers: dict[object, int] = {}
        refined = [numbers.setdefault(what, len(numbers)) for what in described]
        if len(numbers) == len(set(block)):
            break
        block = refined
    first: dict[int, int] = {}
    for place, number in enumerate(refined):
        first.setdefault(number, place)
    merged = []
    for number in range(len(first)):
        out_: dict[int, list[tuple[int, int]]] = {}
        for to, on in edges[first[number]].items():
            out_.setdefault(refined[to], []).extend(on)
        merged.append({to: ranges(on) for to, on in out_.items()})
    return merged, [final[first[number]] for number in range(len(first))]


_LONGEST = 200_000


def _eliminated(edges: list[dict[int, Ranges]], final: list[bool]) -> str | None:
    """A pattern by taking states out one after the other; ``None`` if there is no string."""
    count = len(edges)
    start, end = count, count + 1
    out: dict[int, dict[int, str]] = {
        place: {to: _class(on) for to, on in edges[place].items()} for place in range(count)
    }
    out[start], out[end] = {0: ""}, {}
    for place in range(count):
        if final[place]:
            out[place][end] = ""
    into: dict[int, set[int]] = {place: set() for place in out}
    for source, targets in out.items():
        for to in targets:
            into[to].add(source)
    remaining = set(range(count))
    while remaining:
        # The state with the fewest paths through it leaves the shortest pattern behind.
        place = min(remaining, key=lambda p: (len(into[p] - {p}) * len(out[p].keys() - {p}), p))
        remaining.discard(place)
        loop = out[place].pop(place, None)
        into[place].discard(place)
        around = "" if loop in (None, "") else _atom(str(loop)) + "*"
        for source in into[place]:
            lead = out[source].pop(place)
            for to, follow in out[place].items():
                path = _grouped(lead) + around + _grouped(follow)
                known = out[source].get(to)
                out[source][to] = path if known is None else _union(known, path)
                into[to].add(source)
                if len(path) > _LONGEST:
                    raise TooComplex
        for to in out[place]:
            into[to].discard(place)
        del out[place]
    return out[start].get(end)


def _union(a: str, b: str) -> str:
    if a == b:
        return a
    if not a or not b:
        return _atom(a or b) + "?"
    return f"{a}|{b}"


def _grouped(pattern: str | None) -> str:
    """Ready to stand in a sequence."""
    if pattern is None:
        return "[^\\s\\S]"
    return f"(?:{pattern})" if _splits(pattern) else pattern


def _atom(pattern: str) -> str:
    """Ready to be repeated."""
    single = len(pattern) == 1 or (len(pattern) == 2 and pattern[0] == "\\") or _bracketed(pattern)
    return pattern if single else f"(?:{pattern})"


def _bracketed(pattern: str) -> bool:
    """Whether it is one class or one group."""
    if pattern[:1] == "[":
        return _end_of(pattern) == len(pattern)
    return pattern[:1] == "(" and _end_of(pattern) == len(pattern)


def _end_of(pattern: str) -> int:
    depth, place, inside = 0, 0, False
    while place < len(pattern):
        c = pattern[place]
        if c == "\\":
            place += 2
            continue
        if inside:
            inside = c != "]"
        elif c == "[":
            inside = True
        elif c == "(":
            depth += 1
        elif c == ")":
            depth -= 1
        place += 1
        if depth == 0 and not inside:
            return place
    return place


def _splits(pattern: str) -> bool:
    """Whether a bar stands outside of all groups."""
    place = 0
    while place < len(pattern):
        if pattern[place] == "|":
            return True
        if pattern[place] in "([":
            place += _end_of(pattern[place:])
        else:
            place += 2 if pattern[place] == "\\" else 1
    return False


_NAMED = {SPACES: "\\s", outside(SPACES): "\\S"}
_ESCAPED = {0x0A: "\\n", 0x0D: "\\r", 0x09: "\\t", 0x0C: "\\f", 0x0B: "\\v"}


def _class(given: Ranges) -> str:
    if given == ((0, LAST),):
        return "[\\s\\S]"
    if given in _NAMED:
        return _NAMED[given]
    if len(given) == 1 and given[0][0] == given[0][1]:
        return _escaped(given[0][0], "\\^$.|?*+()[]{}/-")
    negative = given[-1][1] == LAST
    shown = outside(given) if negative else given
    body = "".join(
        _escaped(low, "\\^[]-") + (("-" if high > low + 1 else "") + _escaped(high, "\\^[]-") if high > low else "")
        for low, high in shown
    )
    return f"[{'^' if negative else ''}{body}]"


def _escaped(point: int, special: str) -> str:
    if point in _ESCAPED:
        return _ESCAPED[point]
    if point < 0x20 or 0x7F <= point <= 0xA0 or chr(point).isspace() or 0xD800 <= point < 0xE000:
        return f"\\u{point:04x}"
    return ("\\" if chr(point) in special else "") + chr(point)
