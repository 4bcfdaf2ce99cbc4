"""Monitor-guided decoding: static analysis of the repository, while the code is being written.

A monitor waits for places where the analysis knows what may come: behind the dot of an attribute, in an import, between
the brackets of a call, behind a class, behind ``case``. There it asks, once, and until the text has moved past the
answer it masks the tokens that contradict it. Several monitors watch one text, and their masks are joined with *and*.

Agrawal, Kanade, Goyal, Lahiri and Rajamani, Monitor-Guided Decoding of Code LMs with Static Analysis of Repository
Context, NeurIPS 2023 (arXiv 2306.10763), section 3. The mask of an answer ``R``: a token may come if it is a beginning
of some name in ``R``, or if a name in ``R`` is a proper beginning of it and the character behind the name is a break
character, one that cannot belong to an identifier.

It changes the output on purpose, and promises as much as the analysis does: with names the analysis does not find,
nothing else can be written where it has an answer, and where it has none nothing is constrained. Plain decoding and
speculation give the same text, because what is allowed is a function of the text alone: the state of a monitor after
any text is read off that text, and the answer at a trigger is asked for once and kept.

Details. The analysis runs in a thread of its own. It begins when a trigger is committed, so it overlaps with the
model's next pass; what it has not answered ``limit`` seconds after it is needed stays unanswered (and is counted). The
analysed file is ``before``, the prompt and the output (or only the output: ``region=output``), and ``after``. It is
given to the analysis as it is and once more with open brackets closed. A token that runs over a trigger, like a space
and the name of a module behind ``import``, is constrained behind the trigger; where a vocabulary has tokens of a dot
and a name, ``merged=split`` forbids them where an attribute may come, so that the dot is a token of its own, ``check``
asks the analysis at every end of an expression instead, and ``allow`` lets them pass. If monitors contradict one
another at a place, none of them masks there (counted too).

The monitors of Python, read by jedi: ``attributes`` that exist, ``imports`` that exist, ``calls`` with arguments that
the function takes, ``instances`` (no abstract class and no protocol is constructed, arguments are the constructor's,
and only exceptions are raised or caught), ``enum-members`` in ``match``, and ``typestate``: methods in the order that
the protocol of an object asks for, a declared automaton (``protocols``: of files, sockets, sqlite3, locks and threads,
or from a TOML file, see ``_monitors/protocols.toml``). Java, Rust and C# are read through language servers, where one
is installed: ``attributes``, what may follow ``new`` (``instances``; Java, C#), and ``enum-members`` of Java.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from unspool.constraints._monitors.background import Analyst
from unspool.constraints._monitors.base import Cursor, Monitor, Names, Question, Trigger
from unspool.constraints._monitors.lexical import LEXICONS, Scan
from unspool.constraints._monitors.names import NameTable
from unspool.constraints._monitors.protocols import PACKAGED, chosen
from unspool.constraints._vocabulary import Vocabulary
from unspool.core.branch import Branch, Portable
from unspool.core.cards import Card, Kind, settings
from unspool.core.errors import Incompatible, InvalidInput
from unspool.core.registry import register
from unspool.core.sockets import Constraint, Draft, Setup

OF_PYTHON = ("attributes", "imports", "calls", "instances", "enum-members", "typestate")
OF_SERVERS = {
    "python": ("attributes",),
    "java": ("attributes", "instances", "enum-members"),
    "rust": ("attributes",),
    "csharp": ("attributes", "instances"),
}


@settings
class MonitorSettings:
    """The paper's monitor is ``attributes``; the others are its extensions (section 6)."""

    monitors: Annotated[
        tuple[str, ...], Field(min_length=1, description="what is watched: " + ", ".join(OF_PYTHON))
    ] = ("attributes",)
    language: Annotated[Literal["python", "java", "rust", "csharp"], Field(description="of the code")] = "python"
    project: Annotated[str | None, Field(description="folder of the repository; by default the current one")] = None
    path: Annotated[str | None, Field(description="the file below the project that the text belongs to")] = None
    before: Annotated[str, Field(description="text of the file before the prompt")] = ""
    after: Annotated[str, Field(description="text of the file behind the output")] = ""
    region: Annotated[
        Literal["all", "output"], Field(description="whether the prompt belongs to the file, or the output alone")
    ] = "all"
    merged: Annotated[
        Literal["split", "check", "allow"], Field(description="tokens that hold a dot and the name behind it")
    ] = "split"
    protocols: Annotated[
        tuple[str, ...], Field(description=f"that typestate keeps: {', '.join(PACKAGED)}, or files that end in .toml")
    ] = PACKAGED
    limit: Annotated[float, Field(gt=0, description="seconds that an analysis may keep decoding waiting")] = 10.0
    server: Annotated[str | None, Field(description="path of the language server, if it is not on PATH")] = None


class _Track(Portable):
    """One branch's text with the lexical state after every token; it moves to other texts by their common prefix."""

    def __init__(self, scan: Scan, data: bytes) -> None:
        self._tokens: list[int] = []
        self._scans = [scan]
        self._ends = [len(data)]
        self._data = bytearray(data)

    def fork(self) -> _Track:
        twin = _Track(self._scans[0], bytes(self._data))
        twin._tokens, twin._scans, twin._ends = list(self._tokens), list(self._scans), list(self._ends)
        return twin

    def move(self, tokens: Sequence[int], vocabulary: Vocabulary) -> Cursor:
        same = len(self._tokens)
        if tokens[:same] != self._tokens:
            limit = min(same, len(tokens))
            same = bisect.bisect_left(range(limit), True, key=lambda n: tokens[: n + 1] != self._tokens[: n + 1])
        del self._tokens[same:], self._scans[same + 1 :], self._ends[same + 1 :]
        del self._data[self._ends[-1] :]
        for token in tokens[same:]:
            string = vocabulary.tokens[token] or b""
            self._tokens.append(token)
            self._data += string
            self._scans.append(self._scans[-1].feed(string))
            self._ends.append(len(self._data))
        return Cursor(bytes(self._data), self._scans[-1])


@dataclass
class Watch:
    """What the monitors of a composition did.

    Attributes:
        masked: places at which a mask was made.
        contradictions: places at which the monitors left no token and were set aside.
    """

    masked: int = 0
    contradictions: int = 0


@register(
    Card(
        slug="monitor-guided-decoding",
        name="Monitor-guided decoding",
        kind=Kind.CONSTRAINT,
        summary="Code that only uses what exists: static analysis tells which names and arguments may come.",
        paper="Monitor-Guided Decoding of Code LMs with Static Analysis of Repository Context, 2023",
        claim="better compilation rate and identifier match at every model size; a 1.1B model passes a 175B one",
    ),
    MonitorSettings,
)
class MonitorGuidedDecoding(Constraint):
    """Masks what contradicts static analysis.

    Args:
        settings: see :class:`MonitorSettings`.
        monitors: instead of those that the settings name: objects of the caller's own.

    Attributes:
        analyst: the thread that analyses; ``analyst.counts`` tells what was asked and how long it took.
        watch: what came of it.
    """

    settings: MonitorSettings

    def __init__(self, settings: MonitorSettings | None = None, monitors: Sequence[Monitor] | None = None) -> None:
        super().__init__(settings)
        self._monitors = tuple(monitors or ())
        self.analyst = Analyst(self.settings.limit)
        self.watch = Watch()
        self._lexicon = LEXICONS[self.settings.language]
        self._before = self.settings.before.encode()
        self._start = Scan(self._lexicon).feed(self._before)

    # -- building -------------------------------------------------------------------------------------------------

    def bind(self, setup: Setup) -> None:
        self._vocabulary = vocabulary = Vocabulary.of(setup.target)
        self._table = NameTable.of(vocabulary)
        self._device = setup.target.device
        # Of the byte-level vocabularies some keep a dot and letters apart, others join them.
        self._holds_names = any(
            string is not None and len(string) > 1 and string[:1] == b"." and self._lexicon.is_word(string[1])
            for string in vocabulary.tokens
        )
        if not self._monitors:
            self._monitors = tuple(self._build())

    def _build(self) -> list[Monitor]:
        asked = self.settings
        own = asked.language == "python" and asked.server is None
        known = OF_PYTHON if own else OF_SERVERS[asked.language]
        if unknown := [name for name in asked.monitors if name not in known]:
            raise InvalidInput(
                f"there is no monitor {unknown[0]!r} for {asked.language}; there are: {', '.join(known)}"
            )
        project = Path(asked.project or ".").resolve()
        if not project.is_dir():
            raise InvalidInput(f"project={asked.project!r} is no folder")
        merged = self._holds_names and asked.merged != "allow"
        made = self._of_python(project, merged) if own else self._of_servers(project, merged)
        return [monitor for name in dict.fromkeys(asked.monitors) for monitor in made[name]()]

    def _of_servers(self, project: Path, merged: bool) -> dict[str, Callable[[], list[Monitor]]]:
        from unspool.constraints._monitors import servers

        asked = self.settings
        server = servers.start(asked.language, str(project), asked.server, asked.limit)
        offers = servers.Offers(server, str(project), asked.path)
        return {
            "attributes": lambda: [servers.ServerAttributes(asked.language, offers, merged)],
            "instances": lambda: [servers.ServerInstances(offers)],
            "enum-members": lambda: [servers.ServerEnumMembers(offers)],
        }

    def _of_python(self, project: Path, merged: bool) -> dict[str, Callable[[], list[Monitor]]]:
        try:
            from unspool.constraints._monitors.calls import PythonCalls
            from unspool.constraints._monitors.instances import (
                PythonConstructible,
                PythonConstructors,
                PythonExceptions,
            )
            from unspool.constraints._monitors.python import (
                Python,
                PythonAttributes,
                PythonEnumMembers,
                PythonImports,
            )
            from unspool.constraints._monitors.typestate import PythonTypestate

            python = Python(self.settings.path, str(project))
        except ImportError as error:
            raise Incompatible(
                f"monitor-guided-decoding reads Python with jedi, which is not installed ({error}): pip install "
                "'unspool[monitors]'"
            ) from error
        return {
            "attributes": lambda: [PythonAttributes(python, merged)],
            "imports": lambda: [PythonImports(python)],
            "calls": lambda: [PythonCalls(python)],
            "instances": lambda: [PythonConstructible(python), PythonExceptions(python), PythonConstructors(python)],
            "enum-members": lambda: [PythonEnumMembers(python)],
            "typestate": lambda: [PythonTypestate(python, chosen(self.settings.protocols), merged)],
        }

    # -- decoding -------------------------------------------------------------------------------------------------

    def allowed(self, branch: Branch, tokens: list[int]) -> Tensor | None:
        cursor = self._cursor(branch, tokens)
        joint: np.ndarray | None = None
        for monitor in self._monitors:
            trigger = monitor.pre(cursor)
            mask = None if trigger is None else self._mask(monitor, cursor, trigger)
            if mask is not None:
                joint = mask if joint is None else joint & mask
        if joint is None:
            return None
        self.watch.masked += 1
        if not joint.any():
            self.watch.contradictions += 1
            return None
        if others := branch.stops - self._vocabulary.stop:
            # Stop tokens of this run's own: they may come where the model's own may.
            joint = joint.copy()
            joint[list(others)] |= bool(joint[list(self._vocabulary.stop)].any())
        return torch.from_numpy(joint).to(self._device)

    def prepare(self, branch: Branch, draft: Draft) -> None:
        """Begin with the analysis while the pass is computed that it will be needed behind."""
        cursor = self._cursor(branch, branch.tokens)
        for monitor in self._monitors:
            trigger = monitor.pre(cursor)
            if trigger is not None and not self._splits(trigger):
                self.analyst.expect(*self._question(monitor, cursor, trigger))

    def _cursor(self, branch: Branch, tokens: list[int]) -> Cursor:
        track = branch.memo.get(self)
        if track is None:
            track = branch.memo[self] = _Track(self._start, self._before)
        kept = tokens if self.settings.region == "all" else tokens[branch.prompt_length :]
        cursor: Cursor = track.move(kept, self._vocabulary)
        return cursor

    def _splits(self, trigger: Trigger) -> bool:
        return trigger.lead == b"." and self.settings.merged == "split"

    def _question(self, monitor: Monitor, cursor: Cursor, trigger: Trigger) -> tuple[Any, Any]:
        """The key of a question, and the work that answers it."""
        before = cursor.data[: trigger.at] + trigger.lead
        # Between a trigger and the cursor no bracket is opened or closed that the cursor is not inside of.
        after, what, closers = self.settings.after, trigger.what, cursor.scan.closers

        def work() -> Any:
            return monitor.analyse(Question(before.decode(errors="replace"), after, closers, what))

        return (monitor, before, what), work

    def _mask(self, monitor: Monitor, cursor: Cursor, trigger: Trigger) -> np.ndarray | None:
        if self._splits(trigger):
            answer: Any = Names(())
        else:
            answer = self.analyst.ask(*self._question(monitor, cursor, trigger))
        if answer is None:
            return None
        since = cursor.data[trigger.at :]
        mask: np.ndarray | None = self._table.remembered(
            (answer, trigger.lead, since), lambda: answer.mask(self._table, self._lexicon, trigger.lead, since)
        )
        return mask
