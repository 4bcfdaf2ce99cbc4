"""Does the default find out what is best for a text? ``auto`` beside its rivals, category by category.

    python benchmarks/auto.py --data PATH/TO/spec_bench --prompts 4 --new-tokens 128

Every prompt is answered by all methods in turn, in an order that rotates, and by the plain one before and after the
others: its seconds are the mean of both, so that a machine that becomes slower or faster favours nobody. What methods
learn is kept from prompt to prompt, across categories, as it is for a user. Seconds are summed by category, the reading
of the prompt included. For every category: the total of the best single method in hindsight, and of ``auto``; at the
end against plain decoding.
Greedy, batch 1. Settings go behind a colon: ``token-recycling:nodes=16``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from decoding import parse_method
from rich.progress import track

from unspool.core.errors import InvalidInput, UnspoolError
from unspool.engine import load
from unspool.evaluation.prompts import Prompt, find_data, load_prompts, spread
from unspool.evaluation.reproductions._common import decode_all

METHODS = (
    "plain",
    "prompt-lookup",
    "prompt-lookup:tokens=3",
    "token-recycling:nodes=3",
    "token-recycling:nodes=16",
    "token-recycling:nodes=80",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument(
        "--methods", default=",".join(METHODS), help="the rivals, by commas; the first is the plain one"
    )
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--auto", default="auto", help="what is compared with them")
    parser.add_argument("--prompts", type=int, default=4, help="of every category")
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=None, help="of torch; the default is one for each core")
    parser.add_argument("--data", type=Path, default=None, help="a folder (or file) with spec_bench.jsonl")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    try:
        if min(options.prompts, options.new_tokens) < 1:
            raise InvalidInput("--prompts and --new-tokens must be at least 1")
        torch.set_num_threads(options.threads or os.cpu_count() or 1)
        engine = load(options.model, dtype=options.dtype, backend=options.backend, progress=sys.stderr.isatty())
        path = find_data("spec_bench.jsonl", options.data)
        prompts = load_prompts(path if path is not None else "builtin-text")
        rivals = [name.strip() for name in options.methods.split(",") if name.strip()]
        names = [*rivals, options.auto]
        made = {}
        for name in names:
            slug, settings = parse_method(name)
            made[name] = engine.compose(slug, settings=settings)

        def fits(prompt: Prompt) -> bool:
            room = engine.model.context_length
            return room is None or len(engine.encode(prompt.text)) + options.new_tokens <= room

        groups: dict[str, list[Prompt]] = defaultdict(list)
        for prompt in prompts:
            groups[prompt.category].append(prompt)
        asked = [(group, p) for group, every in groups.items() for p in spread(every, options.prompts, fits)]
        decode_all(made[rivals[0]], [engine.encode(asked[0][1].text)], new_tokens=8)

        seconds: dict[str, dict[str, float]] = {group: dict.fromkeys(names, 0.0) for group in groups}
        passes: dict[str, float] = dict.fromkeys(names, 0.0)
        different = 0
        order = names[1:]
        bar = track(asked, description="prompts", disable=not sys.stderr.isatty())
        for group, prompt in bar:
            texts = {}
            for name in [rivals[0], *order, rivals[0]]:
                (run,) = decode_all(made[name], [engine.encode(prompt.text)], new_tokens=options.new_tokens)
                share = 0.5 if name == rivals[0] else 1.0
                seconds[group][name] += share * run.statistics.seconds
                passes[name] += share * run.statistics.forwards_per_token / len(asked)
                texts[name] = run.tokens
            different += sum(text != texts[rivals[0]] for text in texts.values())
            order.append(order.pop(0))
    except (UnspoolError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2

    auto, plain = options.auto, rivals[0]
    rows = []
    for group, of in seconds.items():
        best = min(rivals, key=lambda name: of[name])
        rows.append({"category": group, "best": best, "to_best": of[auto] / of[best], "to_plain": of[auto] / of[plain]})
    total = {name: sum(of[name] for of in seconds.values()) for name in names}
    hindsight = sum(min(of[name] for name in rivals) for of in seconds.values())
    summary = {
        "to_best_of_each_category": total[auto] / hindsight,
        "to_best_single": total[auto] / min(total[name] for name in rivals),
        "to_plain": total[auto] / total[plain],
        "worst_to_plain": max(row["to_plain"] for row in rows),
        "texts_that_differ_from_plain": different,
        "seconds": total,
        "forwards_per_token": passes,
        "threads": torch.get_num_threads(),
    }
    if options.json:
        print(json.dumps({"categories": rows, **summary}, indent=2))
        return 0
    print(f"{'category':20s} {'auto / best':>11s} {'auto / plain':>12s}  best single method")
    for row in rows:
        print(f"{row['category']:20s} {row['to_best']:11.3f} {row['to_plain']:12.3f}  {row['best']}")
    print(f"{'all':20s} {summary['to_best_of_each_category']:11.3f} {summary['to_plain']:12.3f}")
    for name in names:
        print(f"  {name:34s} {total[name]:8.1f} s   {passes[name]:.3f} forwards/token")
    print(f"texts that differ from plain: {different}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
