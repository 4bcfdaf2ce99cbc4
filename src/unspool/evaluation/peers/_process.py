"""A peer in a process of its own.

Programs that share a process share more than memory: thread pools of several copies of OpenMP count one another's
threads, stop spinning when they find more of them than processors, and then sleep at every barrier. One program can
halve the speed of another by being loaded. So every peer has its own process, which does nothing while others are
measured, and the stopwatch runs in there. What it holds in memory is its own as well.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from unspool.core import errors
from unspool.core.errors import UnspoolError
from unspool.evaluation.answering import Answer, Kind, Task, TurnRecord
from unspool.evaluation.peers._peer import PeerAbsent

_PATIENCE = 10.0
"""Seconds that a process is given to end by itself."""


class PeerProcess:
    """Stands for a peer that answers in another process.

    Args:
        name: of the arm.
        asked: the arguments of :func:`unspool.evaluation.peers.make_here`.

    Attributes:
        peak_rss_bytes: the most memory that its process held during the last answer, if the system tells it.

    Raises:
        PeerAbsent: if it does not read this model, or its process ends.
    """

    kind: Kind = "peer"

    def __init__(self, name: str, asked: Mapping[str, Any]) -> None:
        self.name = name
        self.peak_rss_bytes: int | None = None
        command = [sys.executable, "-m", "unspool.evaluation.peers._serve", json.dumps(asked)]
        # Advice for programmers that transformers prints.
        environment = {"TRANSFORMERS_VERBOSITY": "error", **os.environ}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8", env=environment
        )
        try:
            self.about: Mapping[str, Any] = self._hear()["about"]
        except BaseException:
            self.close()
            raise

    def warm_up(self) -> None:
        """One short answer."""
        self.about = self._ask({"do": "warm_up"})["about"]

    def answer(self, task: Task) -> Answer:
        """As the peer does.

        Raises:
            UnspoolError: what it raises; PeerAbsent if its process ends.
        """
        said = self._ask({"do": "answer", "task": asdict(task)})
        self.peak_rss_bytes = said["peak_rss_bytes"]
        return Answer(tuple(TurnRecord.from_dict(turn) for turn in said["turns"]))

    def close(self) -> None:
        """End its process."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None and not pipe.closed:
                try:
                    pipe.close()
                except BrokenPipeError:
                    # It ended before it had read everything.
                    continue
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _ask(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            print(json.dumps(asked), file=self._process.stdin, flush=True)
        except (BrokenPipeError, ValueError) as error:
            raise self._ended() from error
        return self._hear()

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._ended()
        said: dict[str, Any] = json.loads(line)
        if "error" in said:
            kind = getattr(errors, said["error"]["type"], PeerAbsent)
            raise (kind if issubclass(kind, UnspoolError) else PeerAbsent)(said["error"]["message"])
        return said

    def _ended(self) -> PeerAbsent:
        try:
            code = self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            return PeerAbsent(f"the process of {self.name} does not answer any more")
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return PeerAbsent(f"the process of {self.name} {how}; what it wrote to standard error says more")
