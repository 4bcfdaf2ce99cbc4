"""Static analysis beside the model's forward pass: one thread, one answer for each question, a limit of time."""

from __future__ import annotations

import logging
import queue
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger(__name__)

_REMEMBERED = 4096
"""Answers that are kept; a text asks about the same few places over and over."""


@dataclass
class Consultation:
    """What was asked, and how it went.

    Attributes:
        asked: questions; each is asked once.
        late: questions that took longer than allowed.
        failed: questions at which the analysis broke.
        seconds: that the analysis took.
        waited: seconds that decoding stood still for it.
    """

    asked: int = 0
    late: int = 0
    failed: int = 0
    seconds: float = 0.0
    waited: float = 0.0


class Analyst:
    """Answers questions in a thread of its own.

    What was not answered in time stays unanswered, also when it is asked again: the answer to a question never
    changes, so that what it decides is a function of the question.

    Args:
        limit: seconds that a question may take from when it is waited for.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.counts = Consultation()
        self._answers: OrderedDict[Hashable, Any] = OrderedDict()
        self._running: dict[Hashable, Future[Any]] = {}
        self._work: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def expect(self, key: Hashable, work: Callable[[], Any]) -> None:
        """Begin with a question that is about to be asked."""
        if key in self._answers or key in self._running:
            return
        if self._thread is None:
            # A daemon: an analysis that hangs must not keep the program from ending.
            self._thread = threading.Thread(target=_serve, args=(self._work,), name="monitors", daemon=True)
            self._thread.start()
            weakref.finalize(self, self._work.put, None)
        self.counts.asked += 1
        future: Future[Any] = Future()
        self._running[key] = future
        self._work.put((work, future))

    def ask(self, key: Hashable, work: Callable[[], Any]) -> Any:
        """The answer; ``None`` if the analysis has none, fails, or takes too long."""
        if key not in self._answers:
            self.expect(key, work)
            self._answers[key] = self._wait(self._running.pop(key))
            while len(self._answers) > _REMEMBERED:
                self._answers.popitem(last=False)
        else:
            self._answers.move_to_end(key)
        return self._answers[key]

    def _wait(self, future: Future[Any]) -> Any:
        began = time.perf_counter()
        try:
            seconds, answer = future.result(timeout=self.limit)
        except TimeoutError:
            if not future.done():
                self.counts.late += 1
                logger.warning("an analysis took longer than %.3g s; nothing is constrained there", self.limit)
                return None
            self.counts.failed += 1
            logger.warning("an analysis failed; nothing is constrained there", exc_info=True)
            return None
        except Exception:
            # Analysers break on code that is half written; the text then goes on without them, and it is told.
            self.counts.failed += 1
            logger.warning("an analysis failed; nothing is constrained there", exc_info=True)
            return None
        finally:
            self.counts.waited += time.perf_counter() - began
        self.counts.seconds += seconds
        return answer


def _serve(work: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None]) -> None:
    while (item := work.get()) is not None:
        job, future = item
        began = time.perf_counter()
        try:
            answer = job()
        except BaseException as error:  # noqa: BLE001 - raised again where the answer is waited for
            future.set_exception(error)
        else:
            future.set_result((time.perf_counter() - began, answer))
        # What was asked about must not live until the next question.
        del item, job, future
