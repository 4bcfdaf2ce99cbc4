"""Lookahead decoding: fewer steps for more work in each, with no draft model and no data.

Paper: Fu et al., Break the Sequential Dependency of LLM Inference Using Lookahead Decoding, 2024: up to 1.8x on one
GPU; the steps fall linearly in the logarithm of the tokens of a step. Here: tokens a step on code prompts against plain
decoding; on a small model of Python source a grid of windows against the width of a step, Jacobi decoding, and a
sampled run against plain decoding's, draw for draw. Every request starts with an empty pool, as in the paper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from unspool.core.compose import compose
from unspool.core.model import LanguageModel
from unspool.evaluation.prompts import load_prompts, spread
from unspool.evaluation.reproductions._common import (
    Continuation,
    Lab,
    agreement,
    decode_all,
    experiment,
    forwards_per_token,
    tokens_per_step,
)
from unspool.evaluation.reproductions._pair import TARGET, held_out_code, sampler
from unspool.models.load import load_model

Setting = tuple[int, int, int]
"""(W, N, G)."""

JUDGED: Setting = (7, 5, 7)
NOISE = 0.05
"""Of tokens a step, relative: what a wider window may lose on a few texts."""


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Args:
        prompts, new_tokens: code prompts to the packaged model, side by side.
        settings: (W, N, G) tried on them.
        pieces, piece_tokens: continuations of held-out source by the small model, side by side.
        grid: (W, N, G) tried on those, from the narrowest to the widest.
        drawn: of those pieces, how many are continued at temperature 1 as well.
    """

    prompts: int
    new_tokens: int
    settings: tuple[Setting, ...]
    pieces: int
    piece_tokens: int
    grid: tuple[Setting, ...]
    drawn: int


_GRID: tuple[Setting, ...] = ((3, 3, 3), (5, 4, 5), (7, 5, 7), (10, 5, 10), (15, 5, 15))


def _run(
    model: LanguageModel, prompts: Sequence[list[int]], new_tokens: int, setting: Setting | None
) -> list[Continuation]:
    """Greedy texts, side by side; plain ones without a setting."""
    if setting is None:
        made = compose(model)
    else:
        window, ngram, guesses = setting
        wanted = {"window": window, "ngram": ngram, "guesses": guesses, "shared": False}
        made = compose(model, "lookahead-decoding", settings=wanted)
    return decode_all(made, prompts, new_tokens=new_tokens, batch=len(prompts))


def _inputs(runs: Sequence[Continuation]) -> float:
    """Tokens that a step reads, on average."""
    steps = sum(run.statistics.steps for run in runs)
    return 1 + sum(run.statistics.drafted for run in runs) / steps


def _rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's; equal values share the mean of their ranks."""
    ranks = [[sum(other < value for other in of) + (of.count(value) - 1) / 2 for value in of] for of in (a, b)]
    return float(torch.corrcoef(torch.tensor(ranks, dtype=torch.float64))[0, 1])


@experiment(
    "lookahead-decoding",
    quick=Size(3, 40, ((3, 3, 3), JUDGED), 6, 56, _GRID, 3),
    full=Size(30, 128, _GRID, 40, 128, _GRID, 20),
)
def EXPERIMENT(lab: Lab, size: Size) -> None:
    """Measure steps and identity, the grid, and a sampled run."""
    _on_prompts(lab, size)
    lab.say("the small model of Python source")
    small = load_model(TARGET, device=str(lab.model.device), dtype="float64", progress=False)
    lab.setup |= {"small model": small.name, "sampler": "greedy", "pool": "of the request"}
    _on_source(lab, size, small)
    lab.note(
        "Time is not judged: the method pays with tokens in each pass, which a GPU has to spare and two cores do not. "
        "At (7, 5, 7) a pass reads about thirty tokens and costs a CPU two to three passes of one token. A gain below "
        "that is a loss of time; only small windows can be expected to break even."
    )
    lab.note("Not reproduced: the split of the branches over several GPUs.")
    if lab.quick:
        lab.note("Quick: a few short texts; the full run takes the whole grid on 30 prompts of 128 tokens.")


def _on_prompts(lab: Lab, size: Size) -> None:
    chosen = spread(load_prompts("builtin-code"), size.prompts)
    prompts = [lab.engine.encode(prompt.text) for prompt in chosen]
    lab.setup |= {"prompts": "builtin-code", "count": len(prompts)}
    lab.say(f"{len(prompts)} code prompts: plain")
    plain = _run(lab.model, prompts, size.new_tokens, None)
    for setting in size.settings:
        lab.say(f"{len(prompts)} code prompts: (W, N, G) = {setting}")
        runs = _run(lab.model, prompts, size.new_tokens, setting)
        tau = tokens_per_step(runs)
        lab.row(f"tokens per step, {lab.model.name}, (W, N, G) = {setting} (plain)", tokens_per_step(plain), tau)
        lab.row(f"tokens read per step, {lab.model.name}, (W, N, G) = {setting} (plain)", 1.0, _inputs(runs))
        found = agreement(lab.model, plain, runs)
        lab.check(f"with {setting} the output is that of plain greedy decoding", str(found), found.identical)
        if setting == JUDGED:
            passes = forwards_per_token(runs)
            lab.row(f"target forwards per token, {setting} (plain)", forwards_per_token(plain), passes)
            lab.check(f"tokens per step at {setting} > 1.3 without the prompt in the pool", tau, tau > 1.3, tau > 1)


def _on_source(lab: Lab, size: Size, small: LanguageModel) -> None:
    pieces = held_out_code(small, size.pieces)
    plain = _run(small, pieces, size.piece_tokens, None)
    taus: list[float] = []
    inputs: list[float] = []
    equal = True
    for setting in size.grid:
        lab.say(f"{len(pieces)} pieces of source: (W, N, G) = {setting}")
        runs = _run(small, pieces, size.piece_tokens, setting)
        taus.append(tokens_per_step(runs))
        inputs.append(_inputs(runs))
        equal &= all(run.tokens == expected.tokens for run, expected in zip(runs, plain, strict=True))
        lab.row(f"tokens per step, {small.name}, (W, N, G) = {setting} (plain)", tokens_per_step(plain), taus[-1])
        lab.row(f"tokens read per step, {small.name}, (W, N, G) = {setting} (plain)", 1.0, inputs[-1])
    lab.say("Jacobi decoding with the widest window")
    widest = max(window for window, _, _ in size.grid)
    jacobi_parts = compose(small, "fastcot", settings={"window": widest})
    jacobi = tokens_per_step(decode_all(jacobi_parts, pieces, new_tokens=size.piece_tokens, batch=len(pieces)))
    lab.row(f"tokens per step, {small.name}, {size.grid[-1]} (Jacobi decoding, {widest} places)", jacobi, taus[-1])

    lab.check(
        f"in double precision all {len(pieces)} texts of every setting are those of plain greedy decoding",
        "equal" if equal else "different",
        equal,
    )
    drops = [before - after for before, after in pairwise(taus)]
    worst = max(drops)
    lab.check(
        f"tokens per step do not fall with wider windows (but for {NOISE:.0%})",
        f"largest fall {max(worst, 0.0):.3g} of {max(taus):.3g}",
        worst <= NOISE * max(taus),
        taus[-1] > taus[0],
    )
    rank = _rank_correlation(taus, [math.log(count) for count in inputs])
    lab.check("rank correlation of tokens per step and log(tokens read per step) >= 0.8", rank, rank >= 0.8, rank > 0)
    lab.check("more tokens per step than Jacobi decoding", f"{taus[-1]:.3g} against {jacobi:.3g}", taus[-1] > jacobi)

    lab.say("a sampled run, draw for draw")
    window, ngram, guesses = JUDGED
    wanted = {"window": window, "ngram": ngram, "guesses": guesses}
    drawn = [
        decode_all(
            compose(small, methods, settings=wanted if methods else {}, sampler=sampler(1.0)),
            pieces[: size.drawn],
            new_tokens=size.piece_tokens,
            seed=1,
        )
        for methods in ("", "lookahead-decoding")
    ]
    same = sum(a.tokens == b.tokens for a, b in zip(*drawn, strict=True))
    lab.row("tokens per step at temperature 1 (plain)", tokens_per_step(drawn[0]), tokens_per_step(drawn[1]))
    lab.check(
        "at temperature 1 every text is plain decoding's, draw for draw", f"{same} of {size.drawn}", same == size.drawn
    )
