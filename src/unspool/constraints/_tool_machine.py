"""The machine that a text with calls of tools goes through: text, a tool's name, its arguments, the end, a result,
text.

All of it works on bytes, so that tokens may begin and end anywhere. The names form one automaton, every tool's
arguments
another one, which is built when its name has been written for the first time: hundreds of tools cost nothing
beforehand.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unspool.constraints._arguments import Arguments
from unspool.constraints._automaton import automaton
from unspool.constraints._grammar import GrammarError
from unspool.constraints._matcher import CompiledGrammar, Matcher
from unspool.constraints._schema.expressions import ANY, Expression, chars, literal, outside, repeat, sequence
from unspool.constraints._tools import Tool
from unspool.constraints._vocabulary import Vocabulary

DEAD = -1
_MASKS = 1024


@dataclass(frozen=True)
class Style:
    """How calls are written.

    Args:
        trigger: what begins a call.
        open, key, separator, close: around the arguments, before a value (with ``{}`` for the name), between two.
        end: behind the call.
    """

    trigger: str
    open: str
    key: str
    separator: str
    close: str
    end: str


@dataclass(frozen=True)
class Called:
    """One call that was written.

    Attributes:
        tool: its name.
        arguments: as they were written.
        result: what the function gave, or the message of what it raised; ``None`` if nothing was called.
        failed: whether it raised.
    """

    tool: str
    arguments: dict[str, Any]
    result: Any = None
    failed: bool = False

    @property
    def key(self) -> str:
        return f"{self.tool} {json.dumps(self.arguments, sort_keys=True)}"

    def as_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return {"tool": self.tool, "arguments": self.arguments, "result": _shown(self.result), "failed": self.failed}


class _Levels:
    """The nodes of a vocabulary's trie by depth, each with its parent: a whole level is stepped at once."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        trie = vocabulary.trie
        depth = trie.depth.astype(np.int64)
        parent = np.full(len(trie), -1, dtype=np.int64)
        last = np.zeros(int(depth.max(initial=0)) + 1, dtype=np.int64)
        for node, level in enumerate(depth.tolist()):
            last[level] = node
            if level > 1:
                parent[node] = last[level - 1]
        self.levels = [np.flatnonzero(depth == level) for level in range(1, int(depth.max(initial=0)) + 1)]
        self.parent = parent
        self.byte = trie.byte.astype(np.int64)
        self.node_of_id = np.repeat(np.arange(len(trie)), np.diff(trie.first))
        self.ids = trie.ids.astype(np.int64)

    @classmethod
    def of(cls, vocabulary: Vocabulary) -> _Levels:
        made: _Levels | None = vocabulary.forms.get("levels")
        if made is None:
            made = vocabulary.forms["levels"] = cls(vocabulary)
        return made


class ToolMachine(CompiledGrammar):
    """The automata of a set of tools over a vocabulary.

    Args:
        at_once: whether a call has to begin the text.
        most: calls after which the text ends; 0 for any number.
        checked: whether arguments are restricted; without it only names are, and a call ends with ``end``.
        result: what is written behind a call whose tool has a function, with ``{}`` for what it gave.

    Attributes:
        answers: calls that were made, by tool and arguments, the last ones.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        tools: Sequence[Tool],
        style: Style,
        *,
        at_once: bool = False,
        most: int = 0,
        checked: bool = True,
        result: str = "",
    ) -> None:
        self.vocabulary = vocabulary
        self.tools = {tool.name: tool for tool in tools}
        self.style = style
        self.at_once, self.most, self.checked = at_once, most, checked
        self.result = result
        self.answers: OrderedDict[str, Called] = OrderedDict()
        self.trigger = style.trigger.encode()
        self.failure = _prefix_function(self.trigger)
        self.spelled = np.zeros(256, dtype=bool)
        for string in vocabulary.by_bytes:
            if len(string) == 1:
                self.spelled[string[0]] = True
        self._masks: OrderedDict[Any, Tensor] = OrderedDict()
        names = automaton([literal(name + style.open) for name in self.tools], self.spelled)
        # One row more stands for the dead state, so that indexing needs no cases.
        self.delta = np.vstack([names.delta, np.full((1, 256), DEAD, dtype=np.int32)])[:-1]
        self.finals: list[bool] = [False] * len(self.delta)
        ordered = list(self.tools)
        self._entries = {state: ordered[min(final)] for state, final in enumerate(names.finals) if final}
        if len(self._entries) < len(ordered):
            lost = set(ordered) - set(self._entries.values())
            raise GrammarError(f"the vocabulary cannot write the name {sorted(lost)[0]!r}")

    # -- states of a call ----------------------------------------------------------------------------------------------

    def settled(self, state: int) -> int:
        """The state itself; at the end of a name the beginning of the tool's arguments, which are built if need be."""
        name = self._entries.pop(state, None)
        if name is None:
            return state
        style = self.style
        tail = literal(style.close + style.end)
        if self.checked:
            whole = sequence((Arguments(self.tools[name].prepared(), name).members(style.key, style.separator), tail))
        else:
            whole = _anything_until(style.close + style.end)
        built = automaton([whole], self.spelled)
        offset = len(self.delta)
        moved = np.where(built.delta >= 0, built.delta + offset, DEAD).astype(np.int32)
        # The end of the name is the beginning of the arguments: it gets its edges.
        self.delta = np.vstack([self.delta, moved])
        self.delta[state] = moved[0]
        self.finals += [bool(final) for final in built.finals]
        if self.delta[state].max() < 0:
            raise GrammarError(f"the vocabulary cannot write any call of {name}")
        return state

    def step(self, state: int, byte: int) -> int:
        return int(self.delta[self.settled(state), byte])

    def walk(self, starts: NDArray[np.int64]) -> NDArray[np.int64]:
        """``[N]`` the state at every node of the trie, for a walk that begins in a state or, level by level, in
        ``starts``."""
        levels = _Levels.of(self.vocabulary)
        states = starts
        for level in levels.levels:
            parents = levels.parent[level]
            before = np.where(parents >= 0, states[parents], states[-1])
            for entry in set(before[before >= 0].tolist()) & self._entries.keys():
                self.settled(entry)
            inside = before >= 0
            found = np.full(len(level), DEAD, dtype=np.int64)
            found[inside] = self.delta[before[inside], levels.byte[level][inside]]
            states[level] = found
        return states

    def call_mask(self, state: int) -> Tensor:
        """``[V]`` tokens that stay within a call, its end included."""
        state = self.settled(state)
        known = self._masks.get(state)
        if known is None:
            levels = _Levels.of(self.vocabulary)
            states = np.full(len(levels.byte) + 1, DEAD, dtype=np.int64)
            states[-1] = state
            reached = self.walk(states)
            known = self._keep(state, levels.ids[reached[levels.node_of_id] >= 0])
        else:
            self._masks.move_to_end(state)
        return known

    def text_mask(self, matched: int) -> Tensor:
        """``[V]`` tokens that may follow free text of which ``matched`` bytes could begin the trigger: all but those
        that go on behind it. Stop tokens are allowed."""
        key = ("text", matched)
        known = self._masks.get(key)
        if known is None:
            levels = _Levels.of(self.vocabulary)
            size = len(self.trigger)
            table = np.array(
                [[_advanced(self.trigger, self.failure, m, b) for b in range(256)] for m in range(size)]
                + [[DEAD] * 256],
                dtype=np.int64,
            )
            states = np.full(len(levels.byte) + 1, DEAD, dtype=np.int64)
            states[-1] = matched
            for level in levels.levels:
                parents = levels.parent[level]
                before = np.where(parents >= 0, states[parents], states[-1])
                states[level] = np.where(before >= 0, table[before, levels.byte[level]], DEAD)
            known = self._keep(key, levels.ids[states[levels.node_of_id] >= 0])
            known[list(self.vocabulary.stop)] = True
        return known

    def _keep(self, key: Any, ids: NDArray[np.int64]) -> Tensor:
        mask = torch.zeros(self.vocabulary.size, dtype=torch.bool)
        mask[torch.from_numpy(ids)] = True
        self._masks[key] = mask
        if len(self._masks) > _MASKS:
            self._masks.popitem(last=False)
        return mask

    def forced(self, state: int) -> bytes:
        """What must follow within a call."""
        found = bytearray()
        while not self.finals[state] and len(found) < 1024:
            ways = np.flatnonzero(self.delta[self.settled(state)] >= 0)
            if len(ways) != 1:
                break
            found.append(int(ways[0]))
            state = self.step(state, int(ways[0]))
        return bytes(found)

    def shortest(self, state: int) -> bytes | None:
        """A shortest rest of a call."""
        seen, level = {state}, [(state, b"")]
        while level:
            following = []
            for at, text in level:
                if self.finals[at]:
                    return text
                row = self.delta[self.settled(at)]
                for target in dict.fromkeys(row[row >= 0].tolist()):
                    if target not in seen:
                        seen.add(target)
                        following.append((target, text + bytes([int(np.flatnonzero(row == target)[0])])))
            level = following
        return None

    def read(self, call: bytes) -> Called:
        """A call that was written whole, from the name to the end."""
        style = self.style
        text = call.decode("utf-8", errors="replace")
        text = text.removesuffix(style.end).removesuffix(style.close)
        name = max((n for n in self.tools if text.startswith(n + style.open)), key=len, default="")
        rest = text[len(name) + len(style.open) :]
        return Called(name, _parsed(rest, list(self.tools[name].parameters.get("properties", {})), style))

    def run(self, call: Called) -> tuple[Called, str]:
        """Make a call, if the tool has a function; and what is to be written behind it."""
        try:
            made = self.tools[call.tool].call(call.arguments)
            if made is None:
                return self._note(call), ""
            value, failed = made(), False
        except Exception as error:  # noqa: BLE001 - whatever the user's function raises is the call's result
            value, failed = f"{type(error).__name__}: {error}", True
        call = self._note(Called(call.tool, call.arguments, value, failed))
        return call, self.result.replace("{}", ("error: " if failed else "") + _shown(value))

    def _note(self, call: Called) -> Called:
        self.answers[call.key] = call
        self.answers.move_to_end(call.key)
        if len(self.answers) > _MASKS:
            self.answers.popitem(last=False)
        return call

    def calls_in(self, text: str) -> list[Called]:
        """The calls that stand whole in a text, with the results of those that were made here."""
        style, found, place = self.style, [], 0
        while (begin := text.find(style.trigger, place)) >= 0:
            begin += len(style.trigger)
            place = begin
            end = self._end(text[begin:].encode())
            if end is not None:
                call = self.read(text[begin:].encode()[:end])
                found.append(self.answers.get(call.key, call))
                place = begin + len(text[begin:].encode()[:end].decode())
        return found

    def _end(self, text: bytes) -> int | None:
        """Bytes of the call that a text begins with."""
        state = 0
        for place, byte in enumerate(text):
            state = self.step(state, byte)
            if state == DEAD:
                return None
            if self.finals[state]:
                return place + 1
        return None

    def matcher(self) -> Matcher:
        return ToolMatcher(self)


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        return str(value)


def _parsed(text: str, names: Sequence[str], style: Style) -> dict[str, Any]:
    """Arguments as they were written, by name.

    Raises:
        GrammarError: if they were not restricted, and are none.
    """
    reader = json.JSONDecoder()
    found: dict[str, Any] = {}
    place = 0
    while place < len(text):
        name = next((n for n in names if n not in found and text.startswith(style.key.replace("{}", n), place)), None)
        if name is None:
            raise GrammarError(f"the arguments {text!r} cannot be read behind character {place}")
        place += len(style.key.replace("{}", name))
        try:
            found[name], place = reader.raw_decode(text, place)
        except json.JSONDecodeError as error:
            raise GrammarError(f"the value of {name} in {text!r} is no JSON: {error.msg}") from error
        if text.startswith(style.separator, place):
            place += len(style.separator)
    return found


def _anything_until(end: str) -> Expression:
    """Any one line, then the end: for calls whose arguments are not restricted."""
    line = repeat(chars(outside(((10, 10),))))
    holds = sequence((ANY, literal(end), ANY))
    return sequence((line & ~holds, literal(end)))


def _prefix_function(text: bytes) -> list[int]:
    table = [0] * len(text)
    for place in range(1, len(text)):
        k = table[place - 1]
        while k and text[place] != text[k]:
            k = table[k - 1]
        table[place] = k + (text[place] == text[k])
    return table


def _advanced(text: bytes, failure: list[int], matched: int, byte: int) -> int:
    """Bytes of the trigger that are at the end of the text after one more byte (Knuth, Morris and Pratt)."""
    if matched == len(text):
        matched = failure[-1]
    while matched and text[matched] != byte:
        matched = failure[matched - 1]
    return matched + (text[matched] == byte)


@dataclass(frozen=True)
class _Place:
    """Where a text stands.

    Attributes:
        mode: ``text``, ``call``, ``told`` (bytes that are given, ``state`` of them written) or ``over``.
        state: of the trigger in ``text``, of the automaton in ``call``.
        written: of the call so far; in ``told`` what is to be written.
        calls: made so far.
        after: where ``told`` leads to.
    """

    mode: str
    state: int = 0
    written: bytes = b""
    calls: int = 0
    after: str = "text"


class ToolMatcher(Matcher):
    """One text's place; see :class:`~unspool.constraints._matcher.Matcher`."""

    def __init__(
        self,
        machine: ToolMachine,
        places: list[_Place] | None = None,
        answers: dict[tuple[int, bytes], str] | None = None,
    ) -> None:
        self.machine = machine
        self.vocabulary = machine.vocabulary
        first = _Place("told", 0, machine.trigger, 0, "call") if machine.at_once else _Place("text")
        self.places = places or [first]
        # A call is made once for its place in the text, also if the text goes back over it and comes again.
        self._answers: dict[tuple[int, bytes], str] = {} if answers is None else answers

    @property
    def place(self) -> _Place:
        """Where the text stands; at the end of a call what comes of it has been found out."""
        place = self.places[-1]
        if place.mode == "call" and self.machine.finals[place.state]:
            place = self.places[-1] = self._answered(place)
        return place

    @property
    def awaits(self) -> bool:
        """Whether a call has just been completed, and nothing has been done about it."""
        place = self.places[-1]
        return place.mode == "call" and self.machine.finals[place.state]

    def _answered(self, place: _Place) -> _Place:
        calls = place.calls + 1
        over = bool(self.machine.most) and calls >= self.machine.most
        key = (len(self.places), place.written)
        if key not in self._answers:
            self._answers[key] = self.machine.run(self.machine.read(place.written))[1]
        told = self._writable(self._answers[key].encode())
        after = "over" if over else "text"
        return _Place("told", 0, told, calls, after) if told else _Place(after, 0, b"", calls)

    def _writable(self, text: bytes) -> bytes:
        """The text, with question marks for what the vocabulary cannot write."""
        spelled = self.machine.spelled
        return bytes(byte if spelled[byte] else 0x3F for byte in text)

    def mask(self) -> Tensor:
        place = self.place
        if place.mode == "text":
            return self.machine.text_mask(place.state)
        if place.mode == "call":
            return self.machine.call_mask(place.state)
        mask = torch.zeros(self.vocabulary.size, dtype=torch.bool)
        if place.mode == "over":
            mask[list(self.vocabulary.stop)] = True
            return mask
        rest = place.written[place.state :]
        for end in range(1, min(len(rest), self.vocabulary.longest) + 1):
            for token in self._tokens(rest[:end]):
                mask[token] = True
        return mask

    def _tokens(self, string: bytes) -> list[int]:
        made = self.vocabulary.forms.get("all by bytes")
        if made is None:
            made = {}
            for token, known in enumerate(self.vocabulary.tokens):
                if known is not None:
                    made.setdefault(known, []).append(token)
            self.vocabulary.forms["all by bytes"] = made
        return made.get(string, [])

    def consume(self, token: int) -> bool:
        string = self.vocabulary.tokens[token]
        if string is None:
            return False
        place: _Place | None = self.place
        for number, byte in enumerate(string):
            place = self._stepped(place, byte, last=number == len(string) - 1)  # type: ignore[arg-type]
            if place is None:
                return False
        assert place is not None
        self.places.append(place)
        return True

    def _stepped(self, place: _Place, byte: int, last: bool) -> _Place | None:
        machine = self.machine
        if place.mode == "text":
            matched = _advanced(machine.trigger, machine.failure, place.state, byte)
            if matched < len(machine.trigger):
                return _Place("text", matched, b"", place.calls)
            # Tokens end with the trigger, so that what follows is a choice of its own.
            return _Place("call", 0, b"", place.calls) if last else None
        if place.mode == "call":
            if machine.finals[place.state]:
                return None
            state = machine.step(place.state, byte)
            return None if state == DEAD else _Place("call", state, place.written + bytes([byte]), place.calls)
        if place.mode == "over" or place.written[place.state] != byte:
            return None
        if place.state + 1 < len(place.written):
            return _Place("told", place.state + 1, place.written, place.calls, place.after)
        return (_Place("call" if place.after == "call" else place.after, 0, b"", place.calls)) if last else None

    def rollback(self, count: int) -> None:
        if count:
            del self.places[-count:]

    @property
    def accepting(self) -> bool:
        return self.place.mode in ("text", "over")

    @property
    def exhausted(self) -> bool:
        # Asked about texts that are only tried: a call that has just been completed is not made for that.
        return not self.awaits and self.place.mode == "over"

    def forced(self) -> bytes:
        place = self.place
        if place.mode == "told":
            return place.written[place.state :]
        return self.machine.forced(place.state) if place.mode == "call" else b""

    def shortest_end(self) -> bytes | None:
        place = self.place
        if place.mode == "told":
            return place.written[place.state :] if place.after != "call" else None
        if place.mode == "call":
            return self.machine.shortest(place.state)
        return b""

    def fork(self) -> Matcher:
        return ToolMatcher(self.machine, list(self.places), dict(self._answers))
