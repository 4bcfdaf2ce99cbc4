"""The machine that a text with calls of tools goes through: text, a tool's name, its arguments, the end, a result,
text.

All of it works on bytes, so that tokens may begin and end anywhere. The names form one automaton, every tool's
arguments another one, which is built when its name has been written for the first time: hundreds of tools cost nothing
beforehand.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unspool.constraints._arguments import Arguments
from unspool.constraints._automaton import DEAD, automaton
from unspool.constraints._grammar import GrammarError
from unspool.constraints._matcher import CompiledGrammar, Matcher
from unspool.constraints._schema.expressions import literal, sequence
from unspool.constraints._tool_calls import Called, Style, anything_until, parsed, shown
from unspool.constraints._tool_matcher import ToolMatcher
from unspool.constraints._tools import Tool
from unspool.constraints._trie_levels import Levels
from unspool.constraints._vocabulary import Vocabulary

_MASKS = 1024


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
        self.spelled[list(vocabulary.by_byte)] = True
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

    def advanced(self, matched: int, byte: int) -> int:
        """Bytes of the trigger that are at the end of a text after one more byte (Knuth, Morris and Pratt)."""
        text, failure = self.trigger, self.failure
        if matched == len(text):
            matched = failure[-1]
        while matched and text[matched] != byte:
            matched = failure[matched - 1]
        return matched + (text[matched] == byte)

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
            whole = anything_until(style.close + style.end)
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
        levels = Levels.of(self.vocabulary)
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
            levels = Levels.of(self.vocabulary)
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
            levels = Levels.of(self.vocabulary)
            size = len(self.trigger)
            table = np.array(
                [[self.advanced(m, b) for b in range(256)] for m in range(size)] + [[DEAD] * 256],
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
        return Called(name, parsed(rest, list(self.tools[name].parameters.get("properties", {})), style))

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
        return call, self.result.replace("{}", ("error: " if failed else "") + shown(value))

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


def _prefix_function(text: bytes) -> list[int]:
    table = [0] * len(text)
    for place in range(1, len(text)):
        k = table[place - 1]
        while k and text[place] != text[k]:
            k = table[k - 1]
        table[place] = k + (text[place] == text[k])
    return table
