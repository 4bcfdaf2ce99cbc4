"""Recursive speculative decoding: trees without replacement against independent chains, and the rule that judges them.

Paper: Jeon et al., 2024: RSD beats SpecInfer and SpecTr at equal draft length, and mostly at equal numbers of tokens
that the target reads, with Llama 2 and OPT; RSD-S is best. Here: the two models of ``stdlib-pair`` on held-out source,
at the paper's low temperature, where independent chains repeat themselves, and in the full run at temperature 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from unspool.core.events import Stepped
from unspool.core.sockets import Distribution
from unspool.core.texts import Stop
from unspool.core.tree import TokenTree
from unspool.evaluation.reproductions._common import Lab, chi_square_tail, experiment
from unspool.evaluation.reproductions._pair import TARGET, Pair, sampler
from unspool.evaluation.reproductions._tree_baselines import IndependentChains, KSeq, Pace, exactness, pace
from unspool.sampling.standard import StandardSampler
from unspool.speculation.drafting._draws import draw_siblings
from unspool.speculation.drafting.recursive_speculative_decoding import (
    RecursiveSpeculativeDecoding,
    RecursiveSpeculativeDecodingSettings,
)
from unspool.speculation.verification._rejection import try_siblings

SLUG = "recursive-speculative-decoding"

# Longer chains are no better: hardly any is accepted that far.
_LONGEST_CHAIN = 14


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Args:
        prompts, length, new_tokens: texts that every composition continues.
        temperatures: of the sampler.
        budgets: for numbers of nodes the shapes, width and depth, that all methods try; the best of each counts.
        depth, width, branching: of the comparison at equal depth.
        draws: continuations, and trials at one node, by which exactness is judged.
        k_seq: whether the rule of SpecTr is tried at every budget as well, or at equal depth only.
    """

    prompts: int
    length: int
    new_tokens: int
    temperatures: tuple[float, ...]
    budgets: dict[int, tuple[tuple[int, int], ...]]
    depth: int
    width: int
    branching: tuple[int, ...]
    draws: int
    k_seq: bool


@experiment(
    SLUG,
    quick=Size(
        prompts=24,
        length=32,
        new_tokens=24,
        temperatures=(0.3,),
        budgets={6: ((2, 3),), 10: ((2, 5),), 14: ((2, 7),), 21: ((3, 7),), 30: ((5, 6),)},
        depth=3,
        width=5,
        branching=(2, 2, 2),
        draws=700,
        k_seq=False,
    ),
    full=Size(
        prompts=64,
        length=64,
        new_tokens=48,
        temperatures=(0.3, 1.0),
        budgets={
            6: ((2, 3), (3, 2)),
            10: ((2, 5), (5, 2)),
            14: ((2, 7), (7, 2)),
            21: ((3, 7), (7, 3)),
            30: ((5, 6), (6, 5)),
        },
        depth=3,
        width=5,
        branching=(2, 2, 2),
        draws=4000,
        k_seq=True,
    ),
    model=TARGET,
)
def EXPERIMENT(lab: Lab, size: Size) -> None:
    """Measure tokens a step at equal depth and at equal size, repeated siblings, and exactness."""
    pair = Pair(lab)
    prompts = pair.prompts(size.prompts, length=size.length)
    lab.setup |= {"texts": len(prompts), "new tokens": size.new_tokens, "temperatures": size.temperatures}
    for temperature in size.temperatures:
        drawing = sampler(temperature)
        _equal_depth(lab, pair, size, drawing, prompts)
        _equal_nodes(lab, pair, size, drawing, prompts)
    _exact(lab, pair, size, sampler(max(size.temperatures)), pair.prompts(1, length=16)[0])
    _one_node(lab, size.draws)
    lab.note(
        f"Chains are at most {_LONGEST_CHAIN} tokens long, because longer ones gain nothing. Independent chains are "
        "counted with their repeated tokens, as in the paper. Differences of a few per cent drown in the noise of the "
        "quick run; a criterion's direction counts as right if it is missed by less than two standard errors."
    )


def _equal_depth(lab: Lab, pair: Pair, size: Size, drawing: StandardSampler, prompts: list[list[int]]) -> None:
    t = drawing.settings.temperature
    lab.say(f"temperature {t:g}: trees of depth {size.depth}")
    chains = IndependentChains(size.width, size.depth)
    found = {
        "RSD-S": pace(pair.composed(SLUG, drawing, width=size.width, depth=size.depth), prompts, size.new_tokens),
        "RSD-C": pace(
            pair.composed(SLUG, drawing, variant="constant", branching=size.branching), prompts, size.new_tokens
        ),
        "SpecInfer": pace(pair.composed([chains], drawing), prompts, size.new_tokens),
        "SpecTr": pace(pair.composed([chains, KSeq()], drawing), prompts, size.new_tokens),
        "chain": pace(pair.composed("draft-model", drawing, tokens=size.depth), prompts, size.new_tokens),
    }
    for name, pacing in found.items():
        if name != "RSD-S":
            lab.row(f"tokens per step, T={t:g}, depth {size.depth}, RSD-S ({name})", pacing.tau, found["RSD-S"].tau)
    stochastic, constant = found["RSD-S"], found["RSD-C"]
    lab.check(
        f"T={t:g}, equal depth: tokens per step of RSD-S >= 0.99 of RSD-C's",
        f"{stochastic} against {constant}",
        stochastic.above(constant, 0.99),
        stochastic.not_below(constant),
    )
    best = max((found["SpecInfer"], found["SpecTr"]), key=lambda one: one.tau)
    lab.check(
        f"T={t:g}, equal depth: RSD-C accepts at least what independent chains do",
        f"{constant} against {best}, with {constant.nodes:.1f} and {best.nodes:.1f} nodes",
        constant.above(best),
        constant.not_below(best),
    )


def _equal_nodes(lab: Lab, pair: Pair, size: Size, drawing: StandardSampler, prompts: list[list[int]]) -> None:
    t = drawing.settings.temperature
    wins, gains, within = 0, [], 0
    for nodes, shapes in size.budgets.items():
        lab.say(f"temperature {t:g}: {nodes} nodes")
        mine: list[Pace] = []
        others: dict[str, list[Pace]] = {"SpecInfer": [], "SpecTr": []}
        for width, depth in shapes:
            mine.append(pace(pair.composed(SLUG, drawing, width=width, depth=depth), prompts, size.new_tokens))
            chains = IndependentChains(width, depth)
            others["SpecInfer"].append(pace(pair.composed([chains], drawing), prompts, size.new_tokens))
            if size.k_seq:
                others["SpecTr"].append(pace(pair.composed([chains, KSeq()], drawing), prompts, size.new_tokens))
        chain = pair.composed("draft-model", drawing, tokens=min(nodes, _LONGEST_CHAIN))
        others["chain"] = [pace(chain, prompts, size.new_tokens)]
        best = max(mine, key=lambda one: one.tau)
        rival_name, rival = max(
            ((name, one) for name, every in others.items() for one in every), key=lambda named: named[1].tau
        )
        lab.row(f"tokens per step, T={t:g}, {nodes} nodes, RSD-S (best baseline)", rival.tau, best.tau)
        lab.say(f"  RSD-S {best}; {rival_name} {rival}")
        wins += best.above(rival)
        within += best.not_below(rival)
        gains.append(best.tau / rival.tau)
    most = len(size.budgets)
    lab.check(
        f"T={t:g}: at equal nodes RSD-S is at least as good as the best baseline in {most - 1} of {most} budgets",
        f"{wins} of {most}; ratios {', '.join(f'{gain:.3f}' for gain in gains)}",
        wins >= most - 1,
        within >= most - 1,
    )


def _exact(lab: Lab, pair: Pair, size: Size, drawing: StandardSampler, prompt: list[int]) -> None:
    lab.say("exactness")
    repeated: dict[str, int] = {}
    for name, made in {
        "RSD-S": pair.composed(SLUG, drawing, width=size.width, depth=size.depth),
        "RSD-C": pair.composed(SLUG, drawing, variant="constant", branching=size.branching),
    }.items():
        p = exactness(pair, made, drawing, prompt, size.draws, seed=1)
        lab.check(f"{name}: the first two tokens are the target's (p > 0.005)", f"p = {p:.3g}", p > 0.005)
    parts = {
        "RSD-S": RecursiveSpeculativeDecoding(RecursiveSpeculativeDecodingSettings(width=size.width, depth=size.depth)),
        "independent chains": IndependentChains(size.width, size.depth),
    }
    cold = sampler(min(size.temperatures))
    for name, part in parts.items():
        made = pair.composed([part], cold)
        trees = [
            event.draft for event in made.decode([prompt] * 16, stop=Stop(24), seed=2) if isinstance(event, Stepped)
        ]
        repeated[name] = sum(map(_repeats, trees))
        lab.setup[f"draft trees of {name}"] = len(trees)
    lab.row("repeated siblings (in independent chains)", repeated["independent chains"], repeated["RSD-S"])
    lab.check(
        "siblings are repeated in independent chains and never here",
        f"{repeated['independent chains']} and {repeated['RSD-S']}",
        repeated["RSD-S"] == 0 < repeated["independent chains"],
    )


def _repeats(tree: TokenTree) -> int:
    pairs = list(zip(tree.parent_list, tree.token_list, strict=True))
    return len(pairs) - len(set(pairs))


def _one_node(lab: Lab, draws: int) -> None:
    """The rule at one node, drawn: two tokens of two, and what happens if refused tokens stay in ``q``."""
    rng = torch.Generator().manual_seed(0)
    refused = 0
    for _ in range(draws):
        p, q = (torch.rand(2, 2, generator=rng, dtype=torch.float64) * 6).softmax(-1)
        both = draw_siblings(q, 2, rng, replacement=False)
        refused += try_siblings(p, q, both, rng, replacement=False)[0] is None
    lab.check("of two tokens both drawn, one is always accepted", f"{refused} refused of {draws}", refused == 0)
    p = torch.full((5,), 0.2, dtype=torch.float64)
    q = torch.tensor([0.02, 0.03, 0.05, 0.1, 0.8], dtype=torch.float64)
    right, wrong = (_law(p, q, 4 * draws, replacement, rng) for replacement in (False, True))
    lab.check(
        "a test of one node passes the rule (p > 0.001) and finds refused tokens that stay in q (p < 0.001)",
        f"p = {right:.3g} and {wrong:.3g}",
        right > 1e-3 > wrong,
    )


def _law(p: torch.Tensor, q: torch.Tensor, draws: int, replacement: bool, rng: torch.Generator) -> float:
    """p-value that what three siblings drawn without replacement emit is ``p``, judged with or without ``q[x] = 0``."""
    seen = torch.zeros_like(p)
    for _ in range(draws):
        siblings = draw_siblings(q, 3, rng, replacement=False)
        place, rest = try_siblings(p, q, siblings, rng, replacement=replacement)
        seen[Distribution(rest).draw(rng) if place is None else siblings[place]] += 1
    return chi_square_tail(float(((seen - p * draws) ** 2 / (p * draws)).sum()), len(p) - 1)
