"""Momentum decoding: open-ended text that does not loop, at the price of greedy search.

Paper: Lan et al., Momentum Decoding, 2022: quality of contrastive search on continuations of 32 tokens by 128 with
GPT2-XL, about 30% faster. Here: beginnings of 32 tokens from the standard library's docstrings, continued without a
chat template and without an end; greedy, nucleus and contrastive search as baselines.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from unspool.engine import load
from unspool.evaluation.metrics import diversity
from unspool.evaluation.reproductions._common import Lab, decode_all, experiment, forwards_per_token, interleaved
from unspool.evaluation.reproductions._contrastive import contrastive_search
from unspool.evaluation.reproductions._open_ended import endless, judged, quality, tokens_of


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Args:
        prompts, new_tokens, batch: of the comparison of texts.
        longer: tokens to go on with if greedy search does not loop within ``new_tokens``.
        contrastive: whether texts of contrastive search are judged as well (its speed always is).
        timed_tokens, rounds: length of a timed text, and how often each method writes it; the fastest
            counts.
        judge: the model whose perplexity is taken; ``None`` for the writer itself.
    """

    prompts: int
    new_tokens: int
    batch: int
    longer: int | None
    contrastive: bool
    timed_tokens: int
    rounds: int
    judge: str | None


@experiment(
    "momentum-decoding",
    quick=Size(
        prompts=4, new_tokens=72, batch=4, longer=None, contrastive=False, timed_tokens=12, rounds=3, judge=None
    ),
    full=Size(
        prompts=60,
        new_tokens=128,
        batch=12,
        longer=256,
        contrastive=True,
        timed_tokens=64,
        rounds=5,
        judge="gemma3-270m",
    ),
)
def EXPERIMENT(lab: Lab, size: Size) -> None:
    """Measure repetition, coherence, perplexity, passes and time."""
    lab.say("cutting prompts from docstrings")
    prompts = lab.prose(size.prompts)
    lab.setup |= {"prompts": "docstrings of the standard library", "prompt_tokens": 32, "seed": 0}
    stop = lab.model.stop_tokens

    greedy, momentum = endless(lab), endless(lab, "momentum-decoding")
    nucleus = endless(lab, "sampling", temperature=1.0, top_p=0.95)
    new_tokens = size.new_tokens
    while True:
        lab.say(f"greedy search, {new_tokens} tokens")
        plain = decode_all(greedy, prompts, new_tokens=new_tokens, batch=size.batch)
        varied = statistics.fmean(diversity(run.tokens) for run in plain)
        if varied < 0.4 or size.longer is None or new_tokens == size.longer:
            break
        lab.note(f"Greedy search had a diversity of {varied:.2f} after {new_tokens} tokens, so all went on.")
        new_tokens = size.longer
    lab.setup["new_tokens"] = new_tokens

    lab.say("momentum decoding")
    runs = decode_all(momentum, prompts, new_tokens=new_tokens, batch=size.batch)
    lab.say("nucleus sampling")
    sampled = decode_all(nucleus, prompts, new_tokens=new_tokens, batch=size.batch)
    texts = {"momentum": tokens_of(runs), "nucleus": tokens_of(sampled)}
    if size.contrastive:
        lab.say("contrastive search")
        texts["contrastive"] = [
            text
            for first in range(0, len(prompts), size.batch)
            for text in contrastive_search(
                lab.model, prompts[first : first + size.batch], new_tokens=new_tokens, forbidden=stop
            )
        ]
    lab.say("judging the texts")
    judge = (
        load(size.judge, dtype="float32", backend="transformers", progress=False).model
        if size.judge is not None
        else None
    )
    judged_by = lab.model.name if judge is None else judge.name
    texts["greedy"] = tokens_of(plain)
    found = {name: quality(lab, prompts, of) for name, of in texts.items()}
    strangeness = {name: judged(lab, prompts, of, judge) for name, of in texts.items()}
    del judge

    lab.say("timing, batch 1")
    one = [prompts[0]]
    seconds = interleaved(
        {
            "greedy": lambda: decode_all(greedy, one, new_tokens=size.timed_tokens),
            "momentum": lambda: decode_all(momentum, one, new_tokens=size.timed_tokens),
            "contrastive": lambda: contrastive_search(lab.model, one, new_tokens=size.timed_tokens, forbidden=stop),
        },
        size.rounds,
    )
    speed = {name: size.timed_tokens / taken for name, taken in seconds.items()}

    ours = found["momentum"]
    for name, theirs in found.items():
        if name == "momentum":
            continue
        lab.row(f"diversity ({name})", theirs.diversity, ours.diversity)
        lab.row(f"rep-4 ({name})", theirs.rep[4], ours.rep[4])
        lab.row(f"coherence, cosine ({name})", theirs.coherence, ours.coherence)
        lab.row(f"perplexity under {judged_by} ({name})", strangeness[name], strangeness["momentum"])
    passes = forwards_per_token(runs)
    lab.row("target forwards per token (greedy)", forwards_per_token(plain), passes)
    for name in ("greedy", "contrastive"):
        lab.row(f"tokens per second ({name})", speed[name], speed["momentum"])

    theirs = found["greedy"]
    lab.check(
        "greedy search loops: diversity < 0.4",
        theirs.diversity,
        theirs.diversity < 0.4,
        theirs.diversity < ours.diversity,
    )
    lab.check(
        "diversity of momentum decoding > 0.75",
        ours.diversity,
        ours.diversity > 0.75,
        ours.diversity > theirs.diversity,
    )
    lab.check("forwards per token exactly 1", passes, passes == 1)
    to_greedy, to_contrastive = speed["momentum"] / speed["greedy"], speed["momentum"] / speed["contrastive"]
    lab.check("tokens per second >= 0.9 x greedy", to_greedy, to_greedy >= 0.9, to_greedy >= 0.5)
    lab.check("tokens per second >= 1.2 x contrastive", to_contrastive, to_contrastive >= 1.2, to_contrastive > 1)
    lab.check(
        f"perplexity under {judged_by} below that of nucleus sampling",
        f"{strangeness['momentum']:.4g} against {strangeness['nucleus']:.4g}",
        strangeness["momentum"] < strangeness["nucleus"],
    )
    lab.note(
        "Contrastive search scores its candidates as a tree in one pass, which is faster than the batch of copies of "
        "the cache that the paper timed, so the gain in speed is measured against a stronger baseline."
    )
    if size.judge is None:
        lab.note("Quick: the perplexity is the writer's own; the full run asks another model.")
