"""DuoDecoding: the draft model writes on while the target reads what it wrote before.

Usual speculation takes turns, so each model waits for the other. Here the drafts of a round are those that were written
during the last one. While the target scores the unverified tail, the draft model already drafts after it: ``k``
sequences of ``gamma / k`` tokens, the ``i``-th beginning with the ``i``-th best token. If the whole tail stands and the
target's own next token begins one of them, its rest is the next tail; if not, what was drafted is thrown away and the
next round has no tail. The budget ``gamma`` is the number of draft tokens that take as long as a pass of the target, so
that both end together; ``k`` grows with the draft model's doubt (see :func:`._worker.sequence_count`).

Paper: Lv et al., DuoDecoding: Hardware-aware Heterogeneous Speculative Decoding with Dynamic Multi-Sequence Drafting,
2025 (section 3; gamma 12, 16 or 24, at most 8 sequences).

Lossless: tails are fixed before the target is asked, and are matched with its own choices. The paper's check of first
tokens is this match: the target's token is looked up among those that sequences begin with.

Where the paper is silent: with random samplers the target's token is drawn once and looked up; drafts are the draft
model's most probable tokens whatever the sampler. ``gamma`` follows the times of the last rounds instead of a profile
made before, rounded to a number with many divisors. Models that score only chains draft one sequence.

Where the draft model runs: a thread shares the interpreter with the target's Python code, so on a CPU the draft model
gets a process, bound to a core of its own; a draft model on a GPU gets a thread; a tiny one, or one that is the target
itself, runs in line, where nothing overlaps. Give the target one thread less than there are cores. Processes are
started with the first request and live until the drafter is closed, dropped, or the program ends; while one starts,
decoding goes on without drafts.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from pydantic import Field

from unspool.core.branch import Branch
from unspool.core.cards import Card, Kind, settings
from unspool.core.errors import Incompatible
from unspool.core.model import LanguageModel
from unspool.core.registry import register
from unspool.core.sockets import Budget, Draft, Drafter, Observation, Setup
from unspool.core.tree import TokenTree
from unspool.speculation.drafting._draft_caches import DraftModelDrafter, common_length
from unspool.speculation.drafting._worker import (
    DraftWorkerError,
    Executor,
    Guess,
    InLine,
    InProcess,
    InThread,
    Order,
    Reply,
    Text,
    spare_core,
)

# Numbers with many divisors, so that any number of sequences fits nearly.
_BUDGETS = (1, 2, 4, 6, 8, 12, 16, 24)
# Weight of the newest round in the average times.
_FRESH = 0.25
# Smaller networks take less time than it takes to talk to a process.
_TINY = 1_000_000


@settings
class DuoDecodingSettings:
    """The paper's, with a budget that is measured."""

    model: Annotated[str | None, Field(description="name of the draft model, if none was handed over")] = None
    gamma: Annotated[
        int | None, Field(ge=1, description="draft tokens a round, all sequences together; by default what time allows")
    ] = None
    sequences: Annotated[int, Field(ge=1, description="sequences a round, at most; 1 for a single chain")] = 8
    executor: Annotated[
        Literal["auto", "inline", "thread", "process"], Field(description="where the draft model runs")
    ] = "auto"
    device: Annotated[str | None, Field(description="where the worker puts the draft model (cuda, cpu)")] = None
    threads: Annotated[int, Field(ge=1, description="of a process that drafts")] = 1
    pin: Annotated[bool, Field(description="bind that process to one core, where the system can")] = True
    timeout: Annotated[float, Field(gt=0, description="seconds that the drafts of one round may take")] = 120.0


class _Line:
    """One branch's tail and what is being drafted after it.

    Attributes:
        base: tokens of the text before the tail.
        tail: proposed in the last round.
        ticket: of the order for what follows the tail; ``None`` if nothing is awaited.
        sequences: drafted after the tail.
        rounds: orders so far.
    """

    def __init__(self) -> None:
        self.base = 0
        self.tail: list[Guess] = []
        self.ticket: int | None = None
        self.place = 0
        self.sequences: list[list[Guess]] = []
        self.rounds = 0

    def following(self, tokens: list[int]) -> list[Guess]:
        """What was drafted after ``tokens``, the text as it stands now; nothing if it went another way."""
        new = tokens[self.base :]
        tail = [token for token, _ in self.tail]
        if len(new) <= len(tail):
            if tail[: len(new)] != new:
                return []
            return self.tail[len(new) :] + (self.sequences[0] if self.sequences else [])
        if new[: len(tail)] != tail:
            return []
        rest = new[len(tail) :]
        for sequence in self.sequences:
            if [token for token, _ in sequence[: len(rest)]] == rest:
                return sequence[len(rest) :]
        return []


@dataclass
class Clock:
    """Who waited for whom, over all rounds so far. Seconds.

    Attributes:
        waited: the target for drafts.
        scoring: the target and the loop, between handing drafts over and asking for the next.
        drafting: the draft model; ``idle`` it waited for an order, from its second one on.
    """

    waited: float = 0.0
    scoring: float = 0.0
    drafting: float = 0.0
    idle: float = 0.0
    rounds: int = 0


@dataclass
class _Pace:
    """Average seconds of a target pass and of a draft token."""

    target: float | None = None
    draft: float | None = None
    clock: Clock = field(default_factory=Clock)

    def budget(self) -> int:
        """Draft tokens that take as long as a target pass."""
        if self.target is None or not self.draft:
            return 4
        return min(_BUDGETS, key=lambda size: abs(size - self.target / self.draft))  # type: ignore[operator]


def _average(old: float | None, new: float) -> float:
    return new if old is None else (1 - _FRESH) * old + _FRESH * new


@register(
    Card(
        slug="duodecoding",
        name="DuoDecoding",
        kind=Kind.DRAFTER,
        summary="The draft model writes the next guesses while the target is still checking the last ones.",
        paper="DuoDecoding: Hardware-aware Heterogeneous Speculative Decoding with Dynamic Multi-Sequence Drafting, "
        "2025",
        claim="up to 2.61x lower latency, and the first token in 83% of the time of usual speculation",
        lossless=True,
        models=("draft",),
    ),
    DuoDecodingSettings,
)
class DuoDecoding(Drafter):
    """Tails from a draft model that runs at the same time.

    Attributes:
        model: the draft model; a copy of it is at work.
        clock: who waited for whom.
    """

    settings: DuoDecodingSettings

    def __init__(self, settings: DuoDecodingSettings | None = None) -> None:
        super().__init__(settings)
        self._executor: Executor | None = None
        self._tickets = itertools.count()
        # By branch: its key at the worker, and the text that the worker has.
        self._keys: dict[int, int] = {}
        self._sent: dict[int, list[int]] = {}
        self._released: list[int] = []
        self._numbers = itertools.count()
        self._pace = _Pace()
        # When the last drafts were handed over, whether the pass after that was timed, a request's first order.
        self._handed: float | None = None
        self._timed = False
        self._opening = -1

    # -- binding --------------------------------------------------------------------------------------------------

    def bind(self, setup: Setup) -> None:
        who = self.card.slug
        self.model: LanguageModel = setup.model("draft", who, self.settings.model)
        DraftModelDrafter.check_vocabularies(setup.target, self.model, who)
        self.executor_kind = self._choose(setup.target)
        if self.executor_kind == "thread" and self._shares_network(setup.target):
            raise Incompatible(
                f"{who}: {self.model.name} is the target itself, and one network cannot run twice at the same time; "
                "take executor=process or another draft model"
            )

    def _shares_network(self, target: LanguageModel) -> bool:
        first, second = (getattr(model, "model", model) for model in (target, self.model))
        return first is second

    def _choose(self, target: LanguageModel) -> str:
        if self.settings.executor != "auto":
            return self.settings.executor
        from unspool.models.transformers_lm import TransformersModel

        if not isinstance(self.model, TransformersModel) or self._shares_network(target) or (os.cpu_count() or 1) < 2:
            return "inline"
        if torch.device(self.settings.device or self.model.device).type != "cpu":
            return "thread"
        return "process" if self.model.model.num_parameters() >= _TINY else "inline"

    def start(self) -> Executor:
        """The worker; made when it is first needed. Call it to have it ready before the first request."""
        if self._executor is None:
            made, device, timeout = self.settings, self.settings.device, self.settings.timeout
            if self.executor_kind == "inline":
                self._executor = InLine(self.model, device)
            elif self.executor_kind == "thread":
                self._executor = InThread(self.model, device, timeout)
            else:
                core = spare_core() if made.pin else None
                self._executor = InProcess(self.model, device, timeout, made.threads, core)
        return self._executor

    def close(self) -> None:
        """End the worker; the next request starts another."""
        if self._executor is not None:
            self._executor.close()
        self._executor = None
        self._keys.clear()
        self._sent.clear()
        self._released.clear()

    @property
    def other_models(self) -> tuple[LanguageModel, ...]:
        return (self.model,)

    @property
    def clock(self) -> Clock:
        return self._pace.clock

    # -- proposing ------------------------------------------------------------------------------------------------

    def propose(self, branches: Sequence[Branch], budgets: Sequence[Budget]) -> list[Draft]:
        now = time.perf_counter()
        if self._handed is not None:
            self.clock.scoring += now - self._handed
        lines = [self._line(branch) for branch in branches]
        self._collect(lines)
        self.clock.waited += time.perf_counter() - now
        self.clock.rounds += 1

        drafts: list[Draft] = []
        texts: list[Text] = []
        ticket = next(self._tickets)
        for branch, line, budget in zip(branches, lines, budgets, strict=True):
            if line.ticket is not None:
                # The worker is still starting: nothing is drafted, and nothing more is ordered.
                drafts.append(Draft.empty())
                continue
            tail = line.following(branch.tokens)
            tail = tail[: min(budget.of(len(tail), len(tail)))]
            tokens = [token for token, _ in tail]
            drafts.append(Draft(TokenTree.chain(tokens), confidence=[chance for _, chance in tail]))
            line.base, line.tail, line.sequences = len(branch.tokens), tail, []
            line.ticket, line.place = ticket, len(texts)
            texts.append(self._text(branch, tokens, line.rounds == 0))
            line.rounds += 1
        if texts:
            if self._handed is None:
                self._opening = ticket
            self._order(Order(ticket, texts, self.settings.sequences, self._released))
            self._released = []
        self._handed, self._timed = time.perf_counter(), False
        return drafts

    def _line(self, branch: Branch) -> _Line:
        known: _Line | None = branch.memo.get(self)
        if known is None:
            known = branch.memo[self] = _Line()
        return known

    def _text(self, branch: Branch, tail: list[int], first: bool) -> Text:
        key = self._keys.get(id(branch))
        if key is None:
            key = self._keys[id(branch)] = next(self._numbers)
        text = branch.tokens + tail
        sent = self._sent.get(key, [])
        keep = common_length(sent, text)
        self._sent[key] = text
        # At first a single token each, so that the target's first one is not waited for.
        most = 1 if first else self.settings.gamma or self._pace.budget()
        return Text(key, branch.index, branch.source, keep, text[keep:], most)

    def _order(self, order: Order) -> None:
        self.start().submit(order)

    def _collect(self, lines: list[_Line]) -> None:
        replies: dict[int, Reply | None] = {}
        for line in lines:
            if line.ticket is None:
                continue
            if line.ticket not in replies:
                replies[line.ticket] = self._reply(line.ticket)
            reply = replies[line.ticket]
            if reply is not None:
                line.sequences, line.ticket = reply.drafts[line.place], None

    def _reply(self, ticket: int) -> Reply | None:
        if self._executor is None:
            return Reply(ticket)  # It was closed in between.
        try:
            reply = self._executor.collect(ticket)
        except DraftWorkerError:
            # The next request starts another one.
            self.close()
            raise
        if reply is not None:
            self.model.forwards += reply.forwards
            self.clock.drafting += reply.seconds
            # Before the first order of a request there was nothing to do.
            self.clock.idle += reply.idle if ticket != self._opening else 0.0
            if reply.passes:
                self._pace.draft = _average(self._pace.draft, reply.seconds / reply.passes)
        return reply

    # -- the other side -------------------------------------------------------------------------------------------

    def observe(self, step: Observation) -> None:
        # The first branch after the pass tells how long it took; passes that read a prompt tell nothing.
        if self._handed is not None and not self._timed and step.offset == 1:
            self._timed = True
            self._pace.target = _average(self._pace.target, time.perf_counter() - self._handed)

    def release(self, branch: Branch) -> None:
        super().release(branch)
        key = self._keys.pop(id(branch), None)
        if key is not None:
            self._sent.pop(key, None)
            self._released.append(key)
        if not self._keys and self._executor is not None:
            # Nobody is left: the worker forgets what it holds now, not with the next order.
            self._executor.submit(Order(next(self._tickets), [], 1, self._released))
            self._released = []
            self._handed = None
