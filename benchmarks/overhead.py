"""What the tree machinery costs beside the network: drafting, masks, verification, compaction, by share of the forward.

    python benchmarks/overhead.py --method token-recycling:nodes=64
    python benchmarks/overhead.py --method token-recycling:nodes=64 --profile

Time inside of the network (embedding to logits) is the forward; all else of a decoding step is counted as overhead.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from decoding import parse_method

from unspool.core.errors import UnspoolError
from unspool.core.events import Scored, Stepped
from unspool.core.texts import Stop
from unspool.engine import load
from unspool.models.native.native_lm import NativeModel

PROMPT = "Write a Python function that merges two sorted lists into one sorted list, and explain how it works."


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--method", default="token-recycling:nodes=64")
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=None, help="of torch; the default is one for each core")
    parser.add_argument("--profile", action="store_true", help="also list the functions that take the most time")
    parser.add_argument("--markdown", action="store_true", help="print a table for documents")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    try:
        torch.set_num_threads(options.threads or os.cpu_count() or 1)
        engine = load(options.model, dtype=options.dtype, backend=options.backend, progress=sys.stderr.isatty())
        slug, settings = parse_method(options.method)
        composition = engine.compose(slug, settings=settings)
    except (UnspoolError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2

    model: Any = engine.model
    inside = [0.0]

    def timed(network: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **more: Any) -> Any:
            began = time.perf_counter()
            out = network(*args, **more)
            inside[0] += time.perf_counter() - began
            return out

        return run

    prompt = engine.encode(PROMPT)
    list(composition.decode([prompt], stop=Stop(max_new_tokens=16)))
    if isinstance(model, NativeModel):
        inner: Any = model.network
        inner.embed, inner.run, inner.logits = timed(inner.embed), timed(inner.run), timed(inner.logits)
    else:
        model._forward = timed(model._forward)
    profiler = cProfile.Profile()
    steps = nodes = 0
    draft = score = verify = forward = 0.0
    began = None
    if options.profile:
        profiler.enable()
    for event in composition.decode([prompt], stop=Stop(options.new_tokens, frozenset())):
        if isinstance(event, Scored):
            if began is None:
                # The first step also reads the prompt.
                began, inside[0] = time.perf_counter(), 0.0
                continue
            steps, forward = steps + 1, inside[0]
            draft, score, verify = (
                draft + event.draft_seconds,
                score + event.score_seconds,
                verify + event.verify_seconds,
            )
        elif isinstance(event, Stepped) and began is not None:
            nodes += len(event.draft)
    assert began is not None
    whole = time.perf_counter() - began
    profiler.disable()
    vars(model).pop("_forward", None)

    told: dict[str, Any] = {
        "method": options.method,
        "threads": torch.get_num_threads(),
        "steps": steps,
        "nodes_per_step": nodes / (steps + 1),
        "forward_ms": 1000 * forward / steps,
        "draft_ms": 1000 * draft / steps,
        "masks_and_requests_ms": 1000 * (score - forward) / steps,
        "verify_and_compact_ms": 1000 * verify / steps,
        "rest_ms": 1000 * (whole - draft - score - verify) / steps,
        "overhead": (whole - forward) / forward,
    }
    if options.json:
        print(json.dumps(told, indent=2))
    elif options.markdown:
        print(f"{options.model}, {torch.get_num_threads()} threads, {steps} steps of `{options.method}`:\n")
        print("| " + " | ".join(name.replace("_", " ") for name in list(told)[3:]) + " |")
        print("| " + " | ".join("---" for _ in list(told)[3:]) + " |")
        cells = [f"{value:.1f}" for name, value in list(told.items())[3:-1]] + [f"{100 * told['overhead']:.1f}%"]
        print("| " + " | ".join(cells) + " |")
    else:
        for name, value in told.items():
            print(f"{name:24s} {value:.3f}" if isinstance(value, float) else f"{name:24s} {value}")
    if options.profile:
        pstats.Stats(profiler, stream=sys.stderr if options.json else sys.stdout).sort_stats("tottime").print_stats(25)
    return 0


if __name__ == "__main__":
    sys.exit(main())
