"""Local normalisation distorts: exactly on a small chain, and as far as it can be measured on a real model.

Paper: Local Normalization Distortion and the Thermodynamic Formalism of Decoding Strategies for Large Language Models,
2025. Three parts. (a) On a chain small enough to enumerate: the identities, and four ways of sampling without the local
normalisation. (b) On the model: the variance of the distortion under top-k and under nucleus sampling that drops as
much, and what top-k gains in likelihood when a particle filter takes the distortion away. (c) The distortion as a
detector of text that was sampled with top-k.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unspool.core.branch import Branch
from unspool.core.compose import compose
from unspool.core.texts import Stop
from unspool.evaluation.metrics import auc, sibling_logits
from unspool.evaluation.reproductions._common import Lab, decode_all, experiment
from unspool.sampling import warp
from unspool.sampling.distortion import (
    Measurement,
    Warp,
    measure,
    objective,
)
from unspool.sampling.enumeration import Chain, enumerate_strings
from unspool.sampling.local_normalization_distortion import DistortionSettings, LocalNormalizationDistortion

VOCABULARY, LENGTH = 4, 5
"""Of the small chain: 1024 strings."""

SEED = 5

PIECE = 20_000
"""Answers that are drawn at a time."""

Text = tuple[list[int], list[float]]
"""Tokens, and the log of the local normaliser at each."""


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Args:
        draws, weighed: answers of each sampler on the small chain, and the texts that each is chosen from.
        prompts, length, texts: of (b): prompts, tokens of a text, texts for each prompt.
        k: of top-k throughout.
        frontier: further values of k that make the curve of quality against entropy.
        filtered, particles: prompts on which the particle filter runs, and its size.
        detected, detected_length: texts of each kind in (c), and their tokens.
    """

    draws: int
    weighed: int
    prompts: int
    length: int
    texts: int
    k: int
    frontier: tuple[int, ...]
    filtered: int
    particles: int
    detected: int
    detected_length: int


@experiment(
    "local-normalization-distortion",
    quick=Size(
        draws=20_000,
        weighed=16,
        prompts=2,
        length=16,
        texts=16,
        k=10,
        frontier=(3,),
        filtered=2,
        particles=32,
        detected=6,
        detected_length=24,
    ),
    full=Size(
        draws=200_000,
        weighed=32,
        prompts=20,
        length=30,
        texts=16,
        k=10,
        frontier=(3, 5, 20, 40),
        filtered=20,
        particles=32,
        detected=20,
        detected_length=100,
    ),
)
def EXPERIMENT(lab: Lab, size: Size) -> None:
    """Measure the three parts."""
    lab.setup |= {"prompts": "docstrings of the standard library", "prompt_tokens": 32, "seed": SEED}
    lab.say("(a) a chain that can be enumerated")
    exact(lab, size.draws, size.weighed)
    lab.say("cutting prompts from docstrings")
    prompts = lab.prose(max(size.prompts, size.detected))
    lab.say(f"(b) local top-k, k={size.k}")
    local = _local(lab, prompts[: size.prompts], size, top_k=size.k)
    _variance(lab, size, prompts[: size.prompts], local)
    _quality(lab, size, prompts[: size.filtered], local[: size.filtered])
    _detector(lab, size, prompts[: size.detected])


# -- (a) ----------------------------------------------------------------------------------------------------------


def chain_logits(text: Sequence[int]) -> Tensor:
    """``[V]`` logits of the small chain after a text: a table by step and last token, flat and peaked ones mixed."""
    rng = torch.Generator().manual_seed(SEED)
    shape = (LENGTH, VOCABULARY + 1)
    table = torch.randn(*shape, VOCABULARY, generator=rng, dtype=torch.float64)
    # What is flat must differ from text to text, or the distortion is one constant and cancels.
    peaked = torch.rand(*shape, 1, generator=rng, dtype=torch.float64) < 0.5
    last = text[-1] if len(text) else VOCABULARY
    return torch.where(peaked, 3.0 * table, 0.2 * table)[len(text), last]


def exact(lab: Lab, draws: int, weighed: int) -> None:
    """The identities on both kinds of sampler, and the four corrections."""
    rng = torch.Generator().manual_seed(SEED)
    kinds: list[tuple[str, Warp, float]] = [
        ("top-k, k=2", lambda logits: warp.top_k(logits, 2), 1.0),
        ("temperature 0.7", lambda logits: warp.temperature(logits, 0.7), 0.7),
    ]
    worst = 0.0
    for _, warped, tau in kinds:
        strings = enumerate_strings(chain_logits, [], LENGTH, warped, tau)
        energy = strings.log_p / tau
        errors = [
            strings.q.sum() - 1,
            # The local sampler is the equilibrium of likelihood and distortion, the global one of likelihood alone.
            (strings.log_q - (energy - strings.log_omega)).abs().max(),
            torch.tensor(objective(strings.q, energy - strings.log_omega)),
            (strings.pi.log() - (energy - strings.log_total)).abs().max(),
            torch.tensor(objective(strings.pi, energy) - strings.log_total),
        ]
        worst = max(worst, *(abs(float(error)) for error in errors))
    lab.row("largest error of the identities on all strings", None, worst)
    lab.check("the identities hold to 1e-12 on every string", worst, worst <= 1e-12)

    for name, warped, tau in kinds:
        chain = Chain.of(chain_logits, [], LENGTH, warped, tau)
        samplers = {
            "importance resampling": chain.importance,
            "independence Metropolis": chain.metropolis,
            "particle filter": chain.smc,
            "suffix Metropolis": chain.suffix_metropolis,
        }
        apart = 0.5 * float((chain.q - chain.pi).abs().sum())
        floor = statistics.fmean(
            _distance(torch.multinomial(chain.pi, draws, replacement=True, generator=rng), chain.pi) for _ in range(5)
        )
        lab.row(f"exact total variation of local {name} to the global distribution (noise floor)", floor, apart)
        for way, sample in samplers.items():
            # In pieces, for the sake of memory.
            answers = [sample(min(PIECE, draws - done), weighed, rng) for done in range(0, draws, PIECE)]
            distance = _distance(torch.cat(answers), chain.pi)
            lab.row(f"total variation to the global distribution, {name}, {way} (noise floor)", floor, distance)
            lab.check(
                f"{way} is within 0.01 of the noise floor ({name})",
                f"{distance:.4f} against {floor:.4f}",
                distance <= floor + 0.01,
                distance < apart,
            )
        lab.check(
            f"local {name} is more than 0.05 away from the global distribution", apart, apart > 0.05, apart > floor
        )


def _distance(strings: Tensor, wanted: Tensor) -> float:
    """Total variation between the frequencies of ``strings`` ``[N]`` and ``wanted`` ``[S]``."""
    counts = torch.bincount(strings, minlength=len(wanted)).double()
    return 0.5 * float((counts / counts.sum() - wanted).abs().sum())


# -- (b) ----------------------------------------------------------------------------------------------------------


class Watched(LocalNormalizationDistortion):
    """The method's own search, which also hands out all the texts that it weighed."""

    def __init__(self, settings: DistortionSettings) -> None:
        super().__init__(settings)
        self.texts: list[Text] = []
        self.weights: list[float] = []

    def select(self, branches: Sequence[Branch]) -> int:
        chosen = super().select(branches)
        self.texts = [(branch.generated, [float(z or 0.0) for z in branch.log_z]) for branch in branches]
        self.weights = self._weights(branches, self._runs[branches[0].index].since).softmax(0).tolist()
        return chosen


def _watch(
    lab: Lab, prompt: list[int], size: Size, algorithm: str, count: int, seed: int, **sampling: object
) -> tuple[list[Text], list[float], float]:
    """Texts of one fixed length after a prompt, their weights, and the estimate of the log of the global normaliser."""
    search = Watched(DistortionSettings(algorithm=algorithm, particles=count))  # type: ignore[arg-type]
    made = compose(lab.model, ["sampling", search], settings={"temperature": 1.0, **sampling})
    for _ in made.decode([prompt], stop=Stop(size.length, frozenset()), seed=seed):
        pass
    return search.texts, search.weights, search.reports[0].log_total


def _local(lab: Lab, prompts: list[list[int]], size: Size, **sampling: object) -> list[list[Text]]:
    """Texts of the local sampler, by prompt."""
    return [
        _watch(lab, prompt, size, "importance", size.texts, seed, **sampling)[0] for seed, prompt in enumerate(prompts)
    ]


def _mean_z(texts: list[list[Text]]) -> float:
    return statistics.fmean(math.exp(z) for group in texts for _, log_z in group for z in log_z)


def _distortion_variance(texts: list[list[Text]]) -> float:
    """Variance of ``D`` between texts of one prompt, over the length; the mean over prompts."""
    return statistics.fmean(
        statistics.variance([-sum(log_z) for _, log_z in group]) / len(group[0][1]) for group in texts
    )


def _variance(lab: Lab, size: Size, prompts: list[list[int]], top_k: list[list[Text]]) -> None:
    """How the distortion varies between texts, under top-k and under a nucleus that keeps as much mass."""
    mean = _mean_z(top_k)

    lab.say("(b) nucleus sampling that keeps as much")
    logits = torch.cat(
        [
            torch.cat(sibling_logits(lab.model, prompt, [tokens for tokens, _ in group[:4]]))
            for prompt, group in zip(prompts, top_k, strict=True)
        ]
    )

    def kept(p: float) -> float:
        return float(warp.log_normaliser(warp.top_p(logits, p), logits).exp().mean())

    low, high = 0.01, 0.999
    for _ in range(20):
        p = (low + high) / 2
        low, high = (p, high) if kept(p) < mean else (low, p)
    nucleus = _local(lab, prompts, size, top_p=p)
    lab.setup["nucleus_p"] = round(p, 4)
    ours, theirs = _distortion_variance(top_k), _distortion_variance(nucleus)
    lab.row(f"mean kept mass, top-k with k={size.k} (nucleus with p={p:.3f})", _mean_z(nucleus), mean)
    lab.row("variance of the distortion per token, top-k (nucleus)", theirs, ours)
    lab.check(
        "the distortion of top-k varies at least 1.5 times as much as that of a nucleus that keeps as much",
        ours / theirs,
        ours >= 1.5 * theirs,
        ours > theirs,
    )


def _measured(lab: Lab, prompt: list[int], texts: Sequence[list[int]], k: int) -> list[Measurement]:
    logits = sibling_logits(lab.model, prompt, texts)
    return [
        measure(rows, torch.tensor(tokens), lambda rows: warp.top_k(rows, k))
        for rows, tokens in zip(logits, texts, strict=True)
    ]


def _quality(lab: Lab, size: Size, prompts: list[list[int]], at_k: list[list[Text]]) -> None:
    """Likelihood and entropy per token of local top-k at several ``k``, and of the particle filter at one."""
    curve: list[tuple[float, float]] = []
    by_prompt: list[float] = []
    for k in sorted({*size.frontier, size.k}):
        lab.say(f"(b) likelihood and entropy of local top-k, k={k}")
        likelihood, entropy = [], []
        groups = at_k if k == size.k else _local(lab, prompts, size, top_k=k)
        for prompt, group in zip(prompts, groups, strict=True):
            found = _measured(lab, prompt, [tokens for tokens, _ in group], k)
            likelihood.append(statistics.fmean(float(one.log_p.mean()) for one in found))
            entropy.append(statistics.fmean(float(one.entropy.mean()) for one in found))
        curve.append((statistics.fmean(entropy), statistics.fmean(likelihood)))
        if k == size.k:
            here, by_prompt = curve[-1], likelihood

    filtered: list[float] = []
    entropies: list[float] = []
    for number, prompt in enumerate(prompts, 1):
        lab.say(f"(b) particle filter, prompt {number} of {len(prompts)}")
        texts, weights, log_total = _watch(lab, prompt, size, "smc", size.particles, number, top_k=size.k)
        found = _measured(lab, prompt, [tokens for tokens, _ in texts], size.k)
        totals = [float(one.log_p.sum()) for one in found]
        mean = sum(weight * total for weight, total in zip(weights, totals, strict=True))
        filtered.append(mean / size.length)
        # Of a text that is drawn in proportion to p(w), -log of its probability is log_total - log p(w).
        entropies.append((log_total - mean) / size.length)
    ours, entropy_now = statistics.fmean(filtered), statistics.fmean(entropies)
    gains = [ours - theirs for ours, theirs in zip(filtered, by_prompt, strict=True)]
    error = statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else 0.0
    matched = interpolate(sorted(curve), entropy_now)
    lab.setup["frontier"] = [[round(x, 4), round(y, 4)] for x, y in sorted(curve)]
    lab.row(f"E[log p] per token, particle filter (local top-k, k={size.k})", here[1], ours)
    lab.row(f"entropy per token in nats, particle filter (local top-k, k={size.k})", here[0], entropy_now)
    lab.row("E[log p] per token at equal entropy, particle filter (local top-k of another k)", matched, ours)
    lab.check(
        f"the particle filter has a higher E[log p] than local top-k at k={size.k}",
        f"{ours:.4g} against {here[1]:.4g} (standard error of the difference {error:.2g})",
        ours > here[1],
    )
    lab.check(
        "at equal entropy its E[log p] is not worse (by more than one standard error)",
        f"{ours:.4g} against {matched:.4g}",
        ours >= matched - error,
    )
    lab.note(
        "The entropy of the particle filter is estimated from its normaliser, (log Z - E[log p]) / T; with few "
        "particles the estimate is a little low, which counts against it in the comparison at equal entropy."
    )


def interpolate(curve: Sequence[tuple[float, float]], x: float) -> float:
    """The value at ``x`` of the line through points sorted by their first number; it goes straight on at the ends."""
    place = next((i for i in range(1, len(curve)) if x <= curve[i][0]), len(curve) - 1)
    (x0, y0), (x1, y1) = curve[place - 1], curve[place]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)


# -- (c) ----------------------------------------------------------------------------------------------------------


def _detector(lab: Lab, size: Size, prompts: list[list[int]]) -> None:
    found: dict[str, list[Measurement]] = {}
    for name, sampling in (("top-k", {"temperature": 1.0, "top_k": size.k}), ("ancestral", {"temperature": 1.0})):
        lab.say(f"(c) {len(prompts)} texts by {name} sampling")
        made = compose(lab.model, "sampling", settings=sampling)
        runs = decode_all(
            made, prompts, new_tokens=size.detected_length, batch=len(prompts), seed=1, stop_tokens=frozenset()
        )
        found[name] = [_measured(lab, run.prompt, [run.tokens], size.k)[0] for run in runs]
    ratio = auc(*([one.log_likelihood_ratio for one in found[name]] for name in ("top-k", "ancestral")))
    # Text that was truncated stays where little is cut away, so its distortion is the smaller one.
    alone = auc(*([-one.distortion for one in found[name]] for name in ("top-k", "ancestral")))
    outside = statistics.fmean(one.outside / size.detected_length for one in found["ancestral"])
    lab.row("AUC of the likelihood ratio, local top-k against ancestral text (chance)", 0.5, ratio)
    lab.row("AUC of the distortion alone (chance)", 0.5, alone)
    lab.row("share of ancestral tokens outside of the top k (of top-k text)", 0.0, outside)
    lab.check(f"AUC >= 0.8 for local top-k (k={size.k}) against ancestral text", ratio, ratio >= 0.8, ratio > 0.5)
    lab.note(
        "The likelihood ratio uses that local top-k never leaves the top k, which settles nearly every text alone; the "
        "row of the distortion alone shows what is left without it."
    )
