"""What grammar engines of our own share: a text as a state of the lexer and a stack of the parser."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unspool.constraints._completion import Completion, Rope, joined, written
from unspool.constraints._grammar import GrammarError
from unspool.constraints._lexing import Language
from unspool.constraints._matcher import CompiledGrammar, Matcher
from unspool.constraints._spanner import IGNORED, Profile, Spanner
from unspool.constraints._stack import Frame, Parser
from unspool.constraints._vocabulary import Vocabulary

MOST_FORCED = 512
"""Bytes of a forced text that are found at a time."""


class MaskStore:
    """Masks that were computed, by what they depend on: the lexer state, and the parser states from the top of the
    stack down as far as they were looked at.

    Args:
        room: bytes; when it is full all are forgotten.
    """

    def __init__(self, room: int = 64 << 20) -> None:
        self.room = room
        self.held = 0
        self.roots: dict[int, dict[int, object]] = {}

    def find(self, state: int, frame: Frame) -> Tensor | None:
        node: object = self.roots.get(state)
        at: Frame | None = frame
        while node is not None:
            if isinstance(node, Tensor):
                return node
            if at is None:
                node = node.get(-1)  # type: ignore[attr-defined]
            else:
                node, at = node.get(at.state), at.below  # type: ignore[attr-defined]
        return None

    def keep(self, state: int, states: Sequence[int], mask: Tensor) -> None:
        """Keep a mask for all stacks that begin, from the top, with ``states``."""
        if self.held + mask.nbytes > self.room:
            # Another text may be reading: it goes on in the old tree.
            self.roots, self.held = {}, 0
        node: dict[int, object] = self.roots.setdefault(state, {})
        for each in states[:-1]:
            node = node.setdefault(each, {})  # type: ignore[assignment]
        node[states[-1]] = mask
        self.held += mask.nbytes


class ScannedGrammar(CompiledGrammar):
    """A language, its parser, and what its tokens do.

    Attributes:
        language: the rules and the lexer.
        parser: the tables, driven.
        completion: how stacks are completed.
        spanner: what every token completes.
        store: masks that were computed.
    """

    def __init__(self, vocabulary: Vocabulary, language: Language, parser: Parser, completion: Completion) -> None:
        self.vocabulary = vocabulary
        self.language = language
        self.scanner = language.scanner
        self.parser = parser
        self.completion = completion
        self.unhindered = completion.unhindered
        self.spanner: Spanner
        self.store = MaskStore()
        start = parser.start()
        if not (self.unhindered or parser.ends(start) or completion.of_stack(start).get(0)):
            raise GrammarError(
                "the grammar holds no text: wherever a text could go on, its lexemes would be read as one longer "
                "lexeme; put something between them, or make the terminals disjoint"
            )

    @abstractmethod
    def compute(self, state: int, frame: Frame) -> tuple[NDArray[np.bool_], int]:
        """``[V]`` the tokens that may follow, and how many frames from the top this depends on."""

    def mask(self, state: int, frame: Frame) -> Tensor:
        """``[V]`` the tokens that may follow."""
        found = self.store.find(state, frame)
        if found is None:
            allowed, depth = self.compute(state, frame)
            found = torch.from_numpy(allowed)
            states = frame.states(depth)
            # A stack that was looked at to its bottom is told from higher ones by its end.
            self.store.keep(state, [*states, -1] if depth > frame.depth + 1 else states, found)
        return found

    @cached_property
    def moves(self) -> list[list[tuple[int, int, bytes, bool]]]:
        """Of every lexer state its distinct steps: next state, emitted terminal, a byte, whether others do the same."""
        found = []
        for state in range(len(self.scanner.delta)):
            step, emits = self.scanner.step[state], self.scanner.emits[state]
            alive = np.flatnonzero(step >= 0)
            groups: dict[tuple[int, int], list[int]] = {}
            for byte in alive.tolist():
                groups.setdefault((int(step[byte]), int(emits[byte])), []).append(byte)
            found.append([(*key, bytes(group[:1]), len(group) > 1) for key, group in groups.items()])
        return found

    # -- questions about one place ----------------------------------------------------------------------------------

    def alive(self, frame: Frame, kind: int, parser: Parser) -> bool:
        """Whether a stack can be completed behind a lexeme of a class."""
        if self.unhindered:
            return True
        if self.completion.surely[frame.state] >> kind & 1:
            return True
        if not self.completion.possibly[frame.state] >> kind & 1:
            return False
        # Completions are read off the whole stack.
        parser.lowest = -1
        return kind in self.completion.of_stack(frame)

    def accepts(self, frame: Frame, profile: Profile, parser: Parser | None = None) -> bool:
        """Whether one of the terminals of a profile can follow a stack, and the text then be completed.

        Args:
            parser: one that notes how far down it looks; ``None`` for the grammar's own.
        """
        parser = parser or self.parser
        for terminal, kind in profile:
            if terminal == IGNORED:
                if frame.depth and self.goes_on(frame, parser) and self.alive(frame, kind, parser):
                    return True
            elif terminal == self.language.end:
                if parser.ends(frame):
                    return True
            else:
                after = parser.shift(frame, terminal)
                if after is not None and self.alive(after, kind, parser):
                    return True
        return False

    def judge(self, frame: Frame, rows: NDArray[np.int32], parser: Parser) -> list[bool]:
        """Whether each of some rows of the spanner table can follow a stack, by running it there.

        Sequences that begin alike are run together.
        """
        spanner = self.spanner
        stacks: dict[int, Frame | None] = {0: frame}

        def stack(sequence: int) -> Frame | None:
            if sequence not in stacks:
                before = stack(spanner.parents[sequence])
                terminal = spanner.terminals[sequence]
                stacks[sequence] = None if before is None else self.shift(before, terminal, parser)
            return stacks[sequence]

        found = []
        for row in rows.tolist():
            at = stack(int(spanner.row_sequence[row]))
            found.append(at is not None and self.accepts(at, spanner.profiles[spanner.row_profile[row]], parser))
        return found

    @cached_property
    def profiles(self) -> list[Profile]:
        """Of every lexer state what its lexeme can become."""
        skipped = self.scanner.skipped
        return [frozenset((IGNORED if skipped[t] else t, c) for t, c in reach) for reach in self.scanner.reach]

    def stands(self, state: int, frame: Frame) -> bool:
        """Whether a text in the middle of a lexeme can be completed."""
        return self.accepts(frame, self.profiles[state])

    def after(self, state: int, frame: Frame, text: bytes) -> tuple[int, Frame] | None:
        """Follow bytes; ``None`` if a lexeme or a terminal is refused. The last lexeme is not judged."""
        rows = self.scanner.rows
        for byte in text:
            step, emits = rows[state]
            emitted = emits[byte]
            state = step[byte]
            if state < 0:
                return None
            if emitted >= 0:
                shifted = self.shift(frame, emitted, self.parser)
                if shifted is None:
                    return None
                frame = shifted
        return state, frame

    def shift(self, frame: Frame, terminal: int, parser: Parser) -> Frame | None:
        """The stack after a lexeme, which may be an ignored one; of such only the place is judged."""
        if terminal < self.language.end and not self.scanner.skipped[terminal]:
            return parser.shift(frame, terminal)
        return frame if frame.depth else None

    def goes_on(self, frame: Frame, parser: Parser) -> bool:
        """Whether another lexeme can follow."""
        end = self.language.end
        return any(
            terminal != end and parser.shift(frame, terminal) is not None for terminal in parser.action[frame.state]
        )

    def ended(self, state: int, frame: Frame) -> bool:
        """Whether the text may end."""
        label = self.scanner.labels[state]
        if state:
            if label < 0:
                return False
            shifted = self.shift(frame, label, self.parser)
            if shifted is None:
                return False
            frame = shifted
        return self.parser.ends(frame)

    def forced(self, state: int, frame: Frame) -> bytes:
        found = b""
        while len(found) < MOST_FORCED and not self.ended(state, frame):
            only: tuple[int, Frame, bytes] | None = None
            for target, emitted, byte, several in self.moves[state]:
                after = frame if emitted < 0 else self.shift(frame, emitted, self.parser)
                if after is None or not self.stands(target, after):
                    continue
                if several or only is not None:
                    return found
                only = target, after, byte
            if only is None:
                return found
            state, frame = only[0], only[1]
            found += only[2]
        return found

    def shortest_end(self, state: int, frame: Frame) -> bytes | None:
        if self.ended(state, frame):
            return b""
        best: Rope | None = None
        if state == 0:
            best = self.completion.of_stack(frame).get(0)
        else:
            for terminal, kind, text in self.completion.endings(state):
                after = self.shift(frame, terminal, self.parser)
                if after is None or (best is not None and best[0] <= text[0]):
                    continue
                rest = self.completion.of_stack(after).get(kind)
                if rest is not None and (best is None or text[0] + rest[0] < best[0]):
                    best = joined(text, rest)
        return None if best is None else written(best)


class _Place:
    """A place in a text; earlier ones hang below."""

    __slots__ = ("before", "frame", "state")

    def __init__(self, state: int, frame: Frame, before: _Place | None) -> None:
        self.state = state
        self.frame = frame
        self.before = before


class ScannedMatcher(Matcher):
    """One text: where its lexer stands, and its stack. Moving back is a step to an earlier place."""

    def __init__(self, grammar: ScannedGrammar, place: _Place | None = None) -> None:
        self.grammar = grammar
        self.vocabulary = grammar.vocabulary
        self.place = place or _Place(0, grammar.parser.start(), None)

    def mask(self) -> Tensor:
        return self.grammar.mask(self.place.state, self.place.frame)

    def consume(self, token: int) -> bool:
        text = self.vocabulary.tokens[token] if 0 <= token < self.vocabulary.size else None
        if text is None:
            return False
        after = self.grammar.after(self.place.state, self.place.frame, text)
        if after is None or not self.grammar.stands(*after):
            return False
        self.place = _Place(*after, self.place)
        return True

    def rollback(self, count: int) -> None:
        place: _Place | None = self.place
        for _ in range(count):
            place = place.before if place is not None else None
        if place is None:
            raise ValueError(f"the text has fewer than {count} tokens")
        self.place = place

    @property
    def accepting(self) -> bool:
        return self.grammar.ended(self.place.state, self.place.frame)

    def forced(self) -> bytes:
        return self.grammar.forced(self.place.state, self.place.frame)

    def shortest_end(self) -> bytes | None:
        return self.grammar.shortest_end(self.place.state, self.place.frame)

    def fork(self) -> ScannedMatcher:
        return type(self)(self.grammar, self.place)

    @property
    def stack(self) -> list[int]:
        """States of the parser from the top down."""
        return self.place.frame.states()
