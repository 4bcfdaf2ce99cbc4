"""A draft model that works while the target does: in a process of its own, in a thread, or in line.

An :class:`Order` says what to draft after; an :class:`Executor` takes it and gives the :class:`Reply` when it is asked.
All executors give the same drafts. A process is started as a fresh interpreter that reads the model and then orders
from its standard input, so it needs nothing of the program that started it, and ends when that does.

What the draft model writes is several sequences at once (Lv et al., DuoDecoding, 2025, section 3.3): the best first
token's chain, and those of the runners-up for as long as each is likelier than the first chain's second token.
"""

from __future__ import annotations

import contextlib
import copy
import os
import pickle
import queue
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import weakref
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as Late
from dataclasses import dataclass, field
from typing import IO, Any, cast

import torch
from torch import Tensor

from unspool.core.branch import Branch
from unspool.core.errors import Incompatible, InvalidInput, UnspoolError
from unspool.core.model import Cache, Capability, LanguageModel
from unspool.core.sockets import Budget
from unspool.core.tree import ROOT
from unspool.speculation.drafting._draft_caches import DraftModelDrafter, Growth

Guess = tuple[int, float]
"""A token, and the draft model's probability of it."""

# More new tokens than this are a prompt that is read.
_PROMPT = 32
# How long a process may take to end by itself.
_GOODBYE = 2.0


class DraftWorkerError(UnspoolError):
    """The worker that drafts has failed, has gone, or does not answer."""


@dataclass(frozen=True)
class Text:
    """One text of an order; only what is new of it travels.

    Args:
        key: of the text, the same in all orders.
        index, source: of its branch.
        keep: tokens of the last order's text that stay.
        new: tokens after those.
        most: tokens of all sequences together (the budget gamma).
    """

    key: int
    index: int
    source: list[int]
    keep: int
    new: list[int]
    most: int


@dataclass(frozen=True)
class Order:
    """Draft at most ``sequences`` sequences after every text; forget the texts in ``released`` first."""

    ticket: int
    texts: list[Text]
    sequences: int
    released: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Reply:
    """What was drafted.

    Args:
        drafts: for every text its sequences, the best first token's first.
        passes: of the draft model that grew the drafts; 0 if they had to read a prompt as well.
        forwards: of the draft model in all.
        seconds: that they took.
        idle: seconds that the worker had waited for this order.
        error: what went wrong, or nothing.
    """

    ticket: int
    drafts: list[list[list[Guess]]] = field(default_factory=list)
    passes: int = 0
    forwards: int = 0
    seconds: float = 0.0
    idle: float = 0.0
    error: str = ""


# -- drafting -----------------------------------------------------------------------------------------------------


class _Plan:
    """One text's draft while it grows.

    Attributes:
        most: tokens in all; ``length`` those of each sequence, known after the second pass.
        first: the best first tokens.
        sequences: nodes of each.
    """

    def __init__(self, growth: Growth, most: int) -> None:
        self.growth = growth
        self.most = most
        self.length = 1
        self.first: list[Guess] = []
        self.sequences: list[list[int]] = []

    def begin(self, logits: Tensor, widest: int) -> None:
        """Note the best first tokens from ``[V]`` logits, and take the best."""
        self.first = best(logits, widest)
        self._start(*self.first[0])

    def _start(self, token: int, chance: float) -> None:
        self.sequences.append([self.growth.add(token, ROOT, chance)])

    def spread(self, logits: Tensor) -> None:
        """Decide on the number of sequences from the logits ``[V]`` after the best first token."""
        second, chance = best(logits, 1)[0]
        count = sequence_count([p for _, p in self.first], self.first[0][1] * chance, self.most)
        self.length = min(self.most // count, self.growth.depth)
        for token, p in self.first[1:count]:
            self._start(token, p)
        if self.length > 1:
            self._append(0, second, chance)

    def _append(self, place: int, token: int, chance: float) -> None:
        sequence = self.sequences[place]
        sequence.append(self.growth.add(token, sequence[-1], chance))

    def ends(self) -> dict[int, int]:
        """Nodes after which a token is wanted, ascending, with the place of their sequence."""
        short = {s[-1]: place for place, s in enumerate(self.sequences) if len(s) < self.length}
        return dict(sorted(short.items()))

    def grow(self, logits: Tensor) -> None:
        """One token for every sequence in :meth:`ends`, from ``[R, V]`` logits."""
        for row, place in zip(logits, self.ends().values(), strict=True):
            self._append(place, *best(row, 1)[0])

    def written(self) -> list[list[Guess]]:
        tokens, chances = self.growth.tokens, self.growth.confidence
        return [[(tokens[node], chances[node]) for node in sequence] for sequence in self.sequences]


def best(logits: Tensor, count: int) -> list[Guess]:
    """The most probable tokens of ``[V]`` logits."""
    top = torch.softmax(logits.float(), dim=-1).topk(min(count, len(logits)))
    return list(zip(top.indices.tolist(), top.values.tolist(), strict=True))


def sequence_count(first: Sequence[float], pair: float, most: int) -> int:
    """How many sequences are worth drafting.

    Args:
        first: probabilities of the best first tokens, falling.
        pair: probability of the best first token and the best one after it.
        most: tokens in all.

    Returns:
        One, and one for each runner-up in turn that is likelier than the pair; rounded down to a divisor of ``most``
        that leaves each at least two tokens, because a single one is checked by the target's own and leaves no tail.
    """
    count = 1
    while count < len(first) and first[count] > pair:
        count += 1
    return max(number for number in range(1, count + 1) if number == 1 or (most % number == 0 and most >= 2 * number))


class _Sequences(DraftModelDrafter):
    """Grows the sequences of a batch, one pass a level."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    def write(self, texts: Sequence[Branch], mosts: Sequence[int], widest: int) -> tuple[list[list[list[Guess]]], int]:
        """Sequences for every text (none where there is no room), and the number of passes."""
        growths = self.grow(texts, [Budget()] * len(texts), None, max(mosts))
        plans = [
            _Plan(growth, most) if growth is not None else None for growth, most in zip(growths, mosts, strict=True)
        ]
        going = [plan for plan in plans if plan is not None]
        passes = 0
        for plan, logits in self._scored(going, [[ROOT]] * len(going)):
            plan.begin(logits[0], widest)
        passes += bool(going)
        going = [plan for plan in going if plan.most > 1 and plan.growth.depth > 1]
        for plan, logits in self._scored(going, [plan.sequences[0] for plan in going]):
            plan.spread(logits[0])
        passes += bool(going)
        while going := [plan for plan in going if plan.ends()]:
            for plan, logits in self._scored(going, [list(plan.ends()) for plan in going]):
                plan.grow(logits)
            passes += 1
        return [plan.written() if plan is not None else [] for plan in plans], passes

    def _scored(self, plans: list[_Plan], nodes: list[list[int]]) -> list[tuple[_Plan, Tensor]]:
        if not plans:
            return []
        found = self.score([plan.growth for plan in plans], nodes)
        return [(plan, scores.logits) for plan, scores in zip(plans, found, strict=True)]


class Scribe:
    """Carries out orders with a model of its own.

    Args:
        model: the draft model.
        device: where it is put; ``None`` leaves it where it is.
    """

    def __init__(self, model: LanguageModel, device: str | None = None) -> None:
        if device is not None:
            _place(model, device)
        self.model = model
        self._sequences = _Sequences(model)
        self._texts: dict[int, Branch] = {}
        self._ready = time.perf_counter()

    @torch.no_grad()
    def carry_out(self, order: Order) -> Reply:
        began, before = time.perf_counter(), self.model.forwards
        for key in order.released:
            text = self._texts.pop(key, None)
            if text is not None:
                self._sequences.release(text)
        branches = [self._text(text) for text in order.texts]
        widest = order.sequences if Capability.TREE in self.model.capabilities else 1
        drafts: list[list[list[Guess]]] = []
        passes = 0
        if branches:
            drafts, passes = self._sequences.write(branches, [text.most for text in order.texts], widest)
            if max(len(text.new) for text in order.texts) > _PROMPT:
                passes = 0
        end = time.perf_counter()
        idle, self._ready = began - self._ready, end
        return Reply(order.ticket, drafts, passes, self.model.forwards - before, end - began, idle)

    def _text(self, text: Text) -> Branch:
        known = self._texts.get(text.key)
        if known is None:
            # Only its text and its family are looked at.
            nothing = cast(Cache, None)
            known = Branch(text.index, text.key, [], nothing, 0, torch.device("cpu"), list(text.source))
            self._texts[text.key] = known
        known.tokens = known.tokens[: text.keep] + text.new
        return known


def _place(model: LanguageModel, device: str) -> None:
    from unspool.models.transformers_lm import TransformersModel

    if not isinstance(model, TransformersModel):
        raise Incompatible(f"{model.name} cannot be moved to {device!r}: only models of transformers can")
    try:
        model.model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise InvalidInput(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}") from error
    model.device = torch.device(device)


# -- executors ----------------------------------------------------------------------------------------------------


class Executor(ABC):
    """Takes orders, one after the other, and has their replies.

    Attributes:
        ready: whether an answer can be waited for; ``False`` while a process starts.
    """

    ready: bool = True

    @abstractmethod
    def submit(self, order: Order) -> None:
        """Hand over an order. Does not wait."""

    @abstractmethod
    def collect(self, ticket: int) -> Reply | None:
        """The reply to an order; ``None`` if it cannot be expected yet.

        Raises:
            DraftWorkerError: if drafting failed, the worker is gone, or it does not answer in time.
        """

    def close(self) -> None:
        """End the worker; what it holds is given back."""


def _checked(reply: Reply) -> Reply:
    if reply.error:
        raise DraftWorkerError(f"the draft worker failed:\n{reply.error}")
    return reply


class InLine(Executor):
    """Carries out an order when it is handed over."""

    def __init__(self, model: LanguageModel, device: str | None) -> None:
        self._scribe = Scribe(copy.copy(model), device)
        self._replies: dict[int, Reply] = {}

    def submit(self, order: Order) -> None:
        reply = self._scribe.carry_out(order)
        if order.texts:
            self._replies[order.ticket] = reply

    def collect(self, ticket: int) -> Reply | None:
        return self._replies.pop(ticket, None)


class InThread(Executor):
    """Carries out orders in a thread: of use where the passes run elsewhere (on a GPU) or release the interpreter."""

    def __init__(self, model: LanguageModel, device: str | None, timeout: float) -> None:
        # A copy has a count of passes of its own; the weights are shared.
        self._scribe = Scribe(copy.copy(model), device)
        self._pool = ThreadPoolExecutor(1, "unspool-draft")
        self._futures: dict[int, Future[Reply]] = {}
        self._timeout = timeout

    def submit(self, order: Order) -> None:
        self._futures[order.ticket] = self._pool.submit(self._scribe.carry_out, order)

    def collect(self, ticket: int) -> Reply | None:
        future = self._futures.pop(ticket)
        # Orders are carried out in turn, so earlier ones that nobody collected are done as well.
        self._futures = {other: waiting for other, waiting in self._futures.items() if other > ticket}
        try:
            return future.result(self._timeout)
        except Late:
            raise DraftWorkerError(f"the draft worker (a thread) did not answer within {self._timeout:g} s") from None

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


class InProcess(Executor):
    """Carries out orders in a process of its own.

    Args:
        model: the draft model; a copy travels.
        device: where the process puts it.
        timeout: seconds that an answer may take.
        threads: of the process.
        core: the processor that it is bound to, or ``None``.
    """

    def __init__(
        self, model: LanguageModel, device: str | None, timeout: float, threads: int = 1, core: int | None = None
    ) -> None:
        self.ready = False
        self._timeout = timeout
        self._replies: dict[int, Reply] = {}
        self._inbox: queue.SimpleQueue[Reply | None] = queue.SimpleQueue()
        self._outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        # What goes wrong there is told here.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            # The classes of the model must be found there as well.
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        }
        program = f"from {__name__} import serve; serve()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._finish = weakref.finalize(self, _end, self._process, self._outbox)
        self._outbox.put((threads, core, device))
        self._outbox.put(model)
        # Neither thread holds the executor, so that it is collected when nobody needs it.
        for work in ((_send, self._process.stdin, self._outbox), (_receive, self._process.stdout, self._inbox)):
            threading.Thread(target=work[0], args=work[1:], daemon=True, name="unspool-draft").start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def submit(self, order: Order) -> None:
        self._outbox.put(order)

    def collect(self, ticket: int) -> Reply | None:
        until = time.monotonic() + self._timeout
        while ticket not in self._replies:
            # While the process starts, decoding goes on without drafts.
            wait = max(until - time.monotonic(), 0.0) if self.ready else 0.0
            try:
                reply = self._inbox.get(timeout=wait) if wait else self._inbox.get_nowait()
            except queue.Empty:
                if not self.ready:
                    return None
                self.close()
                raise DraftWorkerError(
                    f"the draft worker (process {self.pid}) did not answer within {self._timeout:g} s"
                    f"{self._last_words()}"
                ) from None
            if reply is None:
                self.close()
                raise DraftWorkerError(
                    f"the draft worker (process {self.pid}) has gone, with exit code {self._process.poll()}"
                    f"{self._last_words()}"
                )
            self.ready = True
            self._replies[reply.ticket] = reply
        reply = self._replies.pop(ticket)
        self._replies = {other: waiting for other, waiting in self._replies.items() if other > ticket}
        return _checked(reply)

    def wait(self) -> None:
        """Wait until the process has its model; for measurements that must not begin earlier.

        Raises:
            DraftWorkerError: see :meth:`collect`.
        """
        self.ready = True
        self.submit(Order(-1, [], 1))
        self.collect(-1)

    def _last_words(self) -> str:
        try:
            self._errors.seek(0)
            words = self._errors.read().decode("utf-8", "replace").strip()
        except ValueError:
            return ""
        return f":\n{words[-2000:]}" if words else ""

    def close(self) -> None:
        self._finish()


def _end(process: subprocess.Popen[bytes], outbox: queue.SimpleQueue[Any]) -> None:
    """Ask a process to end, and end it."""
    outbox.put(None)
    try:
        process.wait(_GOODBYE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _send(pipe: IO[bytes], outbox: queue.SimpleQueue[Any]) -> None:
    """Write what is in the outbox, until there is ``None`` or nobody reads any more."""
    try:
        while (item := outbox.get()) is not None:
            try:
                data = pickle.dumps(item, protocol=pickle.HIGHEST_PROTOCOL)
            except (pickle.PicklingError, TypeError, AttributeError) as error:
                data = pickle.dumps(f"{type(item).__name__} cannot be sent to a process ({error}); use executor=thread")
            pipe.write(data)
            pipe.flush()
    except OSError:
        pass  # It has gone; the reader of its answers finds out.
    finally:
        with contextlib.suppress(OSError):
            pipe.close()


def _receive(pipe: IO[bytes], inbox: queue.SimpleQueue[Reply | None]) -> None:
    """Collect replies until there are no more, then say so."""
    try:
        while True:
            inbox.put(pickle.load(pipe))  # noqa: S301 - from the process that was started here
    except (EOFError, OSError, pickle.UnpicklingError):
        inbox.put(None)


def serve() -> None:
    """The process: read settings, the model, then orders, and answer each."""
    source = sys.stdin.buffer
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    # Nothing else may be written where the answers are.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        threads, core, device = pickle.load(source)  # noqa: S301 - from the program that started this one
        torch.set_num_threads(threads)
        if core is not None:
            os.sched_setaffinity(0, {core})
        model = pickle.load(source)  # noqa: S301
        if isinstance(model, str):
            sys.exit(model)
        scribe = Scribe(model, device)
        while True:
            order = pickle.load(source)  # noqa: S301
            try:
                reply = scribe.carry_out(order)
            except Exception:  # noqa: BLE001
                # Whatever it is, it is told and raised where the answer is waited for.
                reply = Reply(order.ticket, error=traceback.format_exc())
            pickle.dump(reply, answers, protocol=pickle.HIGHEST_PROTOCOL)
            answers.flush()
    except (EOFError, BrokenPipeError):
        return  # The program that started this one has no more orders.


def spare_core() -> int | None:
    """A processor to bind a worker to: the last of several that this process may use; ``None`` if it cannot be
    bound."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    cores = sorted(os.sched_getaffinity(0))
    return cores[-1] if len(cores) > 1 else None
