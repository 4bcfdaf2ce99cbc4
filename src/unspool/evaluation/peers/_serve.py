"""The other side of :mod:`unspool.evaluation.peers._process`: one peer in a process of its own, asked through pipes.

``python -m unspool.evaluation.peers._serve '{"name": ..., "model": ...}'`` reads one JSON object a line from standard
input and answers each with one; it ends with its input.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any, TextIO

from unspool.core.errors import UnspoolError
from unspool.evaluation import machine, peers
from unspool.evaluation.answering import Task


def main() -> None:
    """Start the peer, say so, and answer until the input ends."""
    # Ctrl-C reaches the whole group of processes; when this one ends is for the other side to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What a program writes to standard output would be taken for an answer.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        peer = peers.make_here(**json.loads(sys.argv[1]))
    except UnspoolError as error:
        _say(answers, {"error": {"type": type(error).__name__, "message": str(error)}})
        return
    _say(answers, {"about": dict(peer.about)})
    try:
        for line in sys.stdin:
            _say(answers, _do(peer, json.loads(line)))
    finally:
        peer.close()


def _do(peer: peers.Peer, asked: dict[str, Any]) -> dict[str, Any]:
    machine.reset_peak()
    try:
        if asked["do"] == "warm_up":
            peer.warm_up()
            return {"about": dict(peer.about)}
        told = asked["task"]
        lists = {name: tuple(told[name]) for name in ("turns", "stop", "tokens")}
        answer = peer.answer(Task(**{**told, **lists}))
    except UnspoolError as error:
        return {"error": {"type": type(error).__name__, "message": str(error)}}
    return {"turns": [turn.as_dict() for turn in answer.turns], "peak_rss_bytes": machine.peak_rss()}


def _say(answers: TextIO, said: dict[str, Any]) -> None:
    print(json.dumps(said), file=answers, flush=True)


if __name__ == "__main__":
    main()
