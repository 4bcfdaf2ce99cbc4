"""Peers alone on a few prompts: tokens a second, and time to the first token.

    python benchmarks/peers/run.py
    python benchmarks/peers/run.py llama.cpp --threads 2
    python benchmarks/peers/run.py openvino openvino-prompt-lookup --prompts 8 --new-tokens 128 --json

Without a name it tells which peers are here. Several peers answer every prompt in turn, in an order that rotates, each
in a process of its own. Exactly so many tokens are generated as asked for, greedily; the first prompt is a warm-up.
``unspool bench SUITE --peers`` does the same beside our own methods, with intervals and a report.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import track

from unspool.core.errors import UnspoolError
from unspool.evaluation import peers
from unspool.evaluation.answering import Task, TurnRecord
from unspool.evaluation.prompts import load_prompts, spread


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="PEER", help="without one: which there are")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--draft", help="a draft model, for transformers-assisted")
    parser.add_argument("--source", default="builtin-text", help="packaged prompts, or a file of them")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    try:
        if not options.names:
            return _list(options.json)
        results = measure(options)
    except UnspoolError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps(results, indent=2))
        return 0
    for told in results:
        print(f"{told['peer']} {told['about']['version']}: {told['about']['weights']}")
        print(
            f"  {told['tokens_per_second']:.1f} tokens/s, {told['decode_tokens_per_second']:.1f} after the first token"
        )
        print(f"  first token after {1000 * told['first_token_seconds']:.0f} ms")
    return 0


def _list(as_json: bool) -> int:
    told = peers.available()
    if as_json:
        print(
            json.dumps(
                [{"peer": name, "reason": why, "install": peers.install_line(name)} for name, why in told.items()]
            )
        )
        return 0
    for name, why in told.items():
        print(f"{name:28s} {'here' if why is None else f'{why}: {peers.install_line(name)}'}")
    return 0


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Medians over prompts, one entry a peer.

    Raises:
        UnspoolError: if a peer cannot take part.
    """
    prompts = spread(load_prompts(options.source), options.prompts + 1)
    made: list[peers.PeerProcess] = []
    turns: dict[str, list[TurnRecord]] = {name: [] for name in options.names}
    try:
        for name in options.names:
            made.append(peers.make(name, options.model, options.threads, draft=options.draft))
        for peer in made:
            peer.warm_up()
        order = list(made)
        for place, prompt in enumerate(track(prompts, "answers", console=Console(stderr=True), transient=True)):
            task = Task(prompt.id, (prompt.text,), None, options.new_tokens, (), 0, 0, ignore_eos=True)
            for peer in order:
                answer = peer.answer(task)
                if place:
                    turns[peer.name] += answer.turns
            order.append(order.pop(0))
        return [_told(peer, turns[peer.name]) for peer in made]
    finally:
        for peer in made:
            peer.close()


def _told(peer: peers.PeerProcess, turns: Sequence[TurnRecord]) -> dict[str, Any]:
    firsts = [turn.first_token_seconds or 0.0 for turn in turns]
    after = [(t.tokens - 1) / (t.seconds - first) for t, first in zip(turns, firsts, strict=True) if t.tokens > 1]
    return {
        "peer": peer.name,
        "about": dict(peer.about),
        "prompts": len(turns),
        "tokens": sum(turn.tokens for turn in turns),
        "tokens_per_second": statistics.median(turn.tokens / turn.seconds for turn in turns),
        "decode_tokens_per_second": statistics.median(after) if after else 0.0,
        "first_token_seconds": statistics.median(firsts),
        "peak_rss_bytes": peer.peak_rss_bytes,
    }


if __name__ == "__main__":
    sys.exit(main())
