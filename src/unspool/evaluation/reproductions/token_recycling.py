"""Token recycling: fewer forward passes a token, the same text, from a matrix of 1.6 MB.

Paper: Luo et al., Turning Trash into Treasure, 2024: about 2x on models of 7B to 33B on a GPU, 2.7 to 2.9 tokens a
step. Here: passes and accepted length on chat and code prompts against plain greedy decoding, a hot against a cold
matrix, and two controls: a matrix of random candidates, and one that learns from accepted tokens only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unspool.core.compose import Composition, compose
from unspool.evaluation.reproductions._common import (
    Continuation,
    Lab,
    agreement,
    decode_all,
    decode_seconds,
    experiment,
    forwards_per_token,
    tokens_per_step,
)
from unspool.speculation.drafting.token_recycling import K, TokenRecycling, TokenRecyclingSettings


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Args:
        prompts, new_tokens: of the main comparison.
        warm, warm_tokens, warm_nodes: earlier requests, answered side by side and not measured, that fill the matrix
            of the hot start; they share no prompt with the measured ones.
        first: prompts on which a cold start is compared with the hot one.
        trees: nodes of the draft trees; the largest is the paper's.
        cold_nodes: nodes of the tree in the comparison of hot and cold.
        control: prompts on which random candidates are tried, for half as many tokens.
        ablation: whether learning from accepted tokens only is tried, on the same prompts as the cold start.
    """

    prompts: int
    new_tokens: int
    warm: int
    warm_tokens: int
    warm_nodes: int
    first: int
    trees: tuple[int, ...]
    cold_nodes: int
    control: int
    ablation: bool


def _recycling(lab: Lab, matrix: Tensor | None = None, **settings: object) -> tuple[Composition, TokenRecycling]:
    """A composition with a matrix of its own: empty, or a copy of one that other requests have filled."""
    drafter = TokenRecycling(TokenRecyclingSettings(**settings))  # type: ignore[arg-type]
    composition = compose(lab.model, drafter)
    if matrix is not None:
        drafter.adjacency.matrix = matrix.clone()
    return composition, drafter


@experiment(
    "token-recycling",
    quick=Size(
        prompts=3,
        new_tokens=40,
        warm=6,
        warm_tokens=32,
        warm_nodes=7,
        first=3,
        trees=(80, 15),
        cold_nodes=15,
        control=1,
        ablation=False,
    ),
    full=Size(
        prompts=40,
        new_tokens=128,
        warm=8,
        warm_tokens=128,
        warm_nodes=80,
        first=5,
        trees=(80, 24, 16),
        cold_nodes=80,
        control=10,
        ablation=True,
    ),
)
def EXPERIMENT(lab: Lab, size: Size) -> None:
    """Measure passes, accepted length, identity, hot and cold starts, controls, and time."""
    source, every = lab.chats(size.prompts + size.warm, new_tokens=size.new_tokens)
    prompts, earlier = every[: size.prompts], every[size.prompts :]
    lab.setup |= {"prompts": source, "count": len(prompts), "sampler": "greedy", "batch": 1}
    biggest = max(size.trees)

    lab.say(f"earlier requests for the hot start: {len(earlier)} prompts")
    before, filled = _recycling(lab, nodes=size.warm_nodes)
    decode_all(before, earlier, new_tokens=size.warm_tokens, batch=len(earlier))

    plain = compose(lab.model)
    made = {nodes: _recycling(lab, filled.adjacency.matrix, nodes=nodes) for nodes in size.trees}
    cold, _ = _recycling(lab, nodes=size.cold_nodes)
    colds: list[Continuation] = []
    runs: dict[int, list[Continuation]] = {nodes: [] for nodes in [0, *size.trees]}
    for number, prompt in enumerate(prompts, 1):
        lab.say(f"prompt {number} of {len(prompts)}: plain, then trees of {', '.join(map(str, size.trees))} nodes")
        # Prompt by prompt in turn, so that a machine that slows down slows all of them.
        runs[0] += decode_all(plain, [prompt], new_tokens=size.new_tokens)
        for nodes, (composition, _) in made.items():
            runs[nodes] += decode_all(composition, [prompt], new_tokens=size.new_tokens)
        if number <= size.first:
            colds += decode_all(cold, [prompt], new_tokens=size.new_tokens)

    baseline = forwards_per_token(runs[0])
    passes = forwards_per_token(runs[biggest])
    lab.row(f"target forwards per token ({biggest} nodes; plain greedy)", baseline, passes)
    for nodes in size.trees:
        lab.row(
            f"tokens per step, {nodes} nodes (plain greedy)", tokens_per_step(runs[0]), tokens_per_step(runs[nodes])
        )
    tau = tokens_per_step(runs[biggest])
    hot, chilled = tokens_per_step(runs[size.cold_nodes][: size.first]), tokens_per_step(colds)
    lab.row(
        f"tokens per step over the first {size.first} prompts, {size.cold_nodes} nodes, hot start (cold start)",
        chilled,
        hot,
    )

    lab.say("control: random candidates")
    rng = torch.Generator().manual_seed(0)
    noise = torch.randint(lab.model.vocab_size, (lab.model.vocab_size, K), generator=rng, dtype=torch.int32)
    control, _ = _recycling(lab, noise, nodes=size.cold_nodes, update="nothing")
    random_tau = tokens_per_step(decode_all(control, prompts[: size.control], new_tokens=size.new_tokens // 4))
    lab.row(
        f"tokens per step, {size.cold_nodes} nodes, a static matrix of random candidates (plain greedy)",
        1.0,
        random_tau,
    )

    if size.ablation:
        lab.say("ablation: learn from accepted tokens only")
        ablated, _ = _recycling(lab, nodes=size.cold_nodes, update="accepted")
        accepted = tokens_per_step(decode_all(ablated, prompts[: size.first], new_tokens=size.new_tokens))
        lab.row("tokens per step, cold start, all scored tokens learned from (accepted ones only)", accepted, chilled)
        lab.check(
            "learning from accepted tokens only lowers tokens per step",
            f"{accepted:.3g} against {chilled:.3g}",
            accepted < chilled,
        )

    matrix = made[biggest][1].adjacency.matrix
    lab.row("bytes of state (vocabulary * 8 * 4)", lab.model.vocab_size * K * 4, matrix.nbytes)
    seconds = {nodes: decode_seconds(of) for nodes, of in runs.items()}
    for nodes in size.trees:
        lab.row(f"tokens per second, {nodes} nodes (plain greedy)", 1 / seconds[0], 1 / seconds[nodes])
    lab.note(
        "Time is reported and not judged: on a CPU a pass over a tree costs several times one over a token, so the "
        "paper's tree of 80 nodes, made for a GPU, need not gain here; smaller trees may."
    )

    for nodes in size.trees:
        found = agreement(lab.model, runs[0], runs[nodes])
        lab.check(f"with {nodes} nodes the output is that of plain greedy decoding", str(found), found.identical)
    lab.check(f"tokens per step with {biggest} nodes >= 1.8", tau, tau >= 1.8, tau > 1)
    lab.check(
        f"target forwards per token with {biggest} nodes < 0.55, averaged over prompts",
        passes,
        passes < 0.55,
        passes < 1,
    )
    lab.check(
        f"a hot start accepts at least 5% more than a cold one over the first {size.first} prompts",
        f"{hot:.3g} against {chilled:.3g}",
        hot >= 1.05 * chilled,
        hot > chilled,
    )
    lab.check("random candidates give at most 1.1 tokens per step", random_tau, random_tau <= 1.1)
    lab.check(
        "the state is vocabulary * 8 * 4 bytes", str(matrix.nbytes), matrix.nbytes == lab.model.vocab_size * K * 4
    )
    if lab.quick:
        lab.note("Quick: a few short texts; the full run takes 40 prompts of 128 tokens.")
