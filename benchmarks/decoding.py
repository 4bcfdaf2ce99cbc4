"""How fast the methods decode on this machine, next to plain decoding in the same run.

    python benchmarks/decoding.py --model smollm2-135m --methods plain,prompt-lookup,token-recycling,auto --prompts 8
    python benchmarks/decoding.py --draft smollm2-draft --methods plain,opt-tree:nodes=8 --markdown
    python benchmarks/decoding.py --costs

Every prompt is answered by all methods in turn before the next one comes, so that a machine that gets slower or faster
meets all of them alike; the order rotates. One prompt is answered first and not counted. Settings go behind a colon:
``token-recycling:nodes=16``. Greedy, batch 1. What drafters learn is kept from prompt to prompt, as it is for a user.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from unspool.core.errors import InvalidInput, UnspoolError
from unspool.core.registry import registry
from unspool.engine import Engine, load
from unspool.evaluation.reproductions._common import Continuation, Lab, agreement, decode_all
from unspool.models.costs import measure as costs
from unspool.speculation.drafting._arms import parse_arm

WIDTHS = (1, 2, 4, 8, 16, 24, 32, 64, 81)


@dataclass(frozen=True)
class Result:
    """One method: medians over prompts, and their ratios to the first method.

    Args:
        method: as it was asked for.
        tokens_per_second, ratio: median over prompts, and the median of the prompts' ratios to the first method.
        decoding_ratio: the same without the reading of the prompt.
        forwards_per_token: mean over prompts.
        tokens_per_step: over all steps.
        first_token_seconds: median.
        draft_share: share of the time that was spent on drafting.
        agreement: how the texts compare with those of the first method.
    """

    method: str
    tokens_per_second: float
    ratio: float
    decoding_ratio: float
    forwards_per_token: float
    tokens_per_step: float
    first_token_seconds: float
    draft_share: float
    agreement: str


def parse_method(text: str) -> tuple[str, dict[str, Any]]:
    """``slug:name=value:name=value`` to a slug and settings; ``plain`` is the loop without a drafter."""
    slug, values = parse_arm(text)
    settings: dict[str, Any] = {}
    for name, value in values.items():
        try:
            settings[name] = json.loads(value)
        except json.JSONDecodeError:
            settings[name] = value
    return slug, settings


def measure(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    methods: Sequence[str],
    new_tokens: int,
    draft: str | None = None,
) -> list[Result]:
    """Answer every prompt but the first, which is for warming up, by every method; ``draft`` is for those that ask."""
    made = {}
    for text in methods:
        slug, settings = parse_method(text)
        asks = any(registry[part.strip()].card.models for part in slug.split("+"))
        made[text] = engine.compose(slug, settings=settings, draft=draft if asks else None)
    runs: dict[str, list[Continuation]] = {text: [] for text in methods}
    order = list(methods)
    for number, prompt in enumerate(prompts):
        for text in order:
            got = decode_all(made[text], [list(prompt)], new_tokens=new_tokens)
            if number:
                runs[text] += got
        order.append(order.pop(0))

    first = runs[methods[0]]
    results = []
    for text, of in runs.items():
        counts = [run.statistics for run in of]
        paired = list(zip(of, first, strict=True))
        results.append(
            Result(
                method=text,
                tokens_per_second=statistics.median(count.tokens_per_second for count in counts),
                ratio=statistics.median(
                    a.statistics.tokens_per_second / b.statistics.tokens_per_second for a, b in paired
                ),
                decoding_ratio=statistics.median(_decoding_rate(a) / _decoding_rate(b) for a, b in paired),
                forwards_per_token=statistics.fmean(count.forwards_per_token for count in counts),
                tokens_per_step=sum(count.tokens for count in counts) / sum(count.steps for count in counts),
                first_token_seconds=statistics.median(count.first_token_seconds or 0.0 for count in counts),
                draft_share=sum(count.draft_seconds for count in counts) / sum(count.seconds for count in counts),
                agreement=str(agreement(engine.model, first, of)),
            )
        )
    return results


def _decoding_rate(run: Continuation) -> float:
    """Tokens per second after the first step, which also reads the prompt; of one token that is the whole run."""
    count = run.statistics
    spent = count.seconds - (count.first_token_seconds or 0.0)
    return (count.tokens - 1) / spent if count.tokens > 1 and spent > 0 else count.tokens_per_second


def _plain_table(results: Sequence[Result]) -> list[str]:
    head = f"{'method':34s} {'tok/s':>7s} {'ratio':>6s} {'fwd/tok':>8s} {'tok/step':>8s} {'drafting':>8s}  output"
    return [head] + [
        f"{r.method:34s} {r.tokens_per_second:7.1f} {r.ratio:6.2f} {r.forwards_per_token:8.3f} "
        f"{r.tokens_per_step:8.2f} {100 * r.draft_share:7.1f}%  {r.agreement}"
        for r in results
    ]


def _markdown(results: Sequence[Result], told: dict[str, Any]) -> list[str]:
    how = f"{told['model']}, {told['dtype']}, {told['threads']} threads on {told['machine']}"
    what = f"{told['count']} prompts of {told['prompts']}, {told['new_tokens']} new tokens, greedy, batch 1"
    lines = [
        f"{how}; {what}; medians over prompts, in one run.",
        "",
        "| method | tokens/s | against plain | target forwards a token | tokens a step | time spent on drafting |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    return lines + [
        f"| `{r.method}` | {r.tokens_per_second:.1f} | {r.ratio:.2f} | {r.forwards_per_token:.2f} | "
        f"{r.tokens_per_step:.2f} | {100 * r.draft_share:.0f}% |"
        for r in results
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="a packaged model, a folder, a GGUF file, or a hub id")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--methods", default="plain,prompt-lookup,token-recycling:nodes=16,auto", help="by commas")
    parser.add_argument("--prompts", type=int, default=8, help="how many are counted")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=None, help="of torch; the default is one for each core")
    parser.add_argument("--data", type=Path, default=None, help="a folder (or file) with spec_bench.jsonl")
    parser.add_argument("--draft", default=None, help="a draft model, for the methods that need one")
    parser.add_argument("--markdown", action="store_true", help="print a table for documents")
    parser.add_argument("--costs", action="store_true", help="time passes over k tokens instead")
    parser.add_argument("--widths", default=",".join(map(str, WIDTHS)), help="with --costs: the values of k")
    parser.add_argument("--context", type=int, default=256, help="with --costs: cached tokens")
    parser.add_argument("--rounds", type=int, default=10, help="with --costs")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)

    try:
        if min(options.prompts, options.new_tokens, options.rounds, options.context) < 1:
            raise InvalidInput("--prompts, --new-tokens, --rounds and --context must be at least 1")
        torch.set_num_threads(options.threads or os.cpu_count() or 1)
        engine = load(options.model, dtype=options.dtype, backend=options.backend, progress=sys.stderr.isatty())
        told: dict[str, Any] = {
            "model": options.model,
            "dtype": options.dtype,
            "backend": type(engine.model).__name__,
            "threads": torch.get_num_threads(),
            "cpus": os.cpu_count(),
            "machine": platform.machine(),
            "torch": torch.__version__,
        }
        if options.costs:
            widths = [int(width) for width in options.widths.split(",")]
            table = costs(engine.model, widths, options.rounds, options.context)
            seconds = dict(zip(table.widths, table.seconds, strict=True))
            told |= {"context": options.context, "rounds": options.rounds}
            told["seconds"] = {str(width): taken for width, taken in seconds.items()}
            lines = ["tokens  milliseconds  against one"]
            alone = seconds[widths[0]]
            lines += [f"{width:6d}  {1000 * taken:12.1f}  {taken / alone:11.2f}" for width, taken in seconds.items()]
        else:
            methods = [method.strip() for method in options.methods.split(",") if method.strip()]
            lab = Lab(engine, "benchmark", data=options.data)
            source, prompts = lab.chats(options.prompts + 1, new_tokens=options.new_tokens)
            results = measure(engine, prompts, methods, options.new_tokens, options.draft)
            told |= {"prompts": source, "count": len(prompts) - 1, "new_tokens": options.new_tokens}
            told["results"] = [asdict(result) for result in results]
            lines = _markdown(results, told) if options.markdown else _plain_table(results)
    except (UnspoolError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(told, indent=2) if options.json else "\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
