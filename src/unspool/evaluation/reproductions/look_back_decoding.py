"""Look-back decoding: the distance to earlier distributions foretells a repetition, and steers away from it.

Paper: Xu et al., Look-back Decoding for Open-Ended Text Generation, 2023: better MAUVE and coherence than nucleus,
typical, eta and contrastive decoding with GPT2-XL and OPT-6.7B. Here: repetition and coherence of continuations of
docstrings against greedy, top-k, nucleus and contrastive search; the premise, measured on greedy texts; and the
ablation that leaves a loop without looking where to.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from unspool.evaluation.metrics import auc, continuation_logits, repeats
from unspool.evaluation.reproductions._common import (
    Continuation,
    Lab,
    batches,
    decode_all,
    experiment,
    forwards_per_token,
)
from unspool.evaluation.reproductions._contrastive import contrastive_search
from unspool.evaluation.reproductions._open_ended import endless, quality, tokens_of
from unspool.sampling.look_back_decoding import LookBackSettings, divergences, log_probs

GRID = (0.5, 0.8, 1.0, 1.2, 1.6)
"""Where the paper looks for ``alpha``, in nats."""


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Args:
        prompts, new_tokens, batch: of the comparison of texts.
        tuning: further prompts on which ``alpha`` is picked from the grid; 0 to take the default.
        premise: greedy texts on which the detector is measured.
        more: whether top-k and contrastive search are compared as well.
    """

    prompts: int
    new_tokens: int
    batch: int
    tuning: int
    premise: int
    more: bool


@experiment(
    "look-back-decoding",
    quick=Size(prompts=4, new_tokens=72, batch=4, tuning=0, premise=4, more=False),
    full=Size(prompts=50, new_tokens=128, batch=10, tuning=10, premise=20, more=True),
)
def EXPERIMENT(lab: Lab, size: Size) -> None:
    """Measure the premise, then repetition, coherence, alarms and passes."""
    lab.say("cutting prompts from docstrings")
    every = lab.prose(size.prompts + size.tuning)
    prompts, tuning = every[: size.prompts], every[size.prompts :]
    lab.setup |= {"prompts": "docstrings of the standard library", "prompt_tokens": 32, "seed": 0}

    alpha = LookBackSettings().alpha
    if tuning:
        alpha = _tuned(lab, tuning, size)
    k = LookBackSettings().k
    lab.setup |= {"alpha": alpha, "k": k}

    texts: dict[str, list[list[int]]] = {}
    runs: dict[str, list[Continuation]] = {}
    made = {
        "greedy": endless(lab),
        "nucleus": endless(lab, "sampling", temperature=1.0, top_p=0.95),
        "look-back": endless(lab, "look-back-decoding", alpha=alpha),
        "uniform": endless(lab, "look-back-decoding", alpha=alpha, coherence="uniform"),
    }
    if size.more:
        made["top-k"] = endless(lab, "sampling", temperature=1.0, top_k=50)
    for name, composition in made.items():
        lab.say(f"{name}: {len(prompts)} texts of {size.new_tokens} tokens")
        runs[name] = decode_all(composition, prompts, new_tokens=size.new_tokens, batch=size.batch)
        texts[name] = tokens_of(runs[name])
    if size.more:
        lab.say("contrastive search")
        texts["contrastive"] = [
            text
            for group in batches(prompts, size.batch)
            for text in contrastive_search(
                lab.model, group, new_tokens=size.new_tokens, forbidden=lab.model.stop_tokens
            )
        ]
    lab.say("judging the texts")
    found = {name: quality(lab, prompts, of) for name, of in texts.items()}
    ours = found["look-back"]
    for name, theirs in found.items():
        if name == "look-back":
            continue
        label = "ablation: uniform draws, no looking ahead" if name == "uniform" else name
        for n in ours.rep:
            lab.row(f"rep-{n} ({label})", theirs.rep[n], ours.rep[n])
        lab.row(f"diversity ({label})", theirs.diversity, ours.diversity)
        lab.row(f"coherence, cosine to the prompt ({label})", theirs.coherence, ours.coherence)
    total = sum(len(run.tokens) for run in runs["look-back"])
    # Every alarm scores its k candidates as a tree; nothing else is drafted.
    alarms = sum(run.statistics.drafted for run in runs["look-back"]) / k / total
    lab.row("share of alarm steps", None, alarms)
    lab.row(
        "target forwards per token (greedy)", forwards_per_token(runs["greedy"]), forwards_per_token(runs["look-back"])
    )

    lab.say("the premise, on greedy texts")
    _premise(lab, runs["greedy"][: size.premise])
    greedy, nucleus, uniform = found["greedy"], found["nucleus"], found["uniform"]
    lab.check(
        "greedy search loops: diversity <= 0.4",
        greedy.diversity,
        greedy.diversity <= 0.4,
        greedy.diversity < ours.diversity,
    )
    lab.check(
        "diversity of look-back decoding >= 0.7",
        ours.diversity,
        ours.diversity >= 0.7,
        ours.diversity > greedy.diversity,
    )
    lab.check(
        "coherence at least that of nucleus sampling",
        f"{ours.coherence:.4g} against {nucleus.coherence:.4g}",
        ours.coherence >= nucleus.coherence,
    )
    lab.check(
        "without looking ahead the text is less coherent",
        f"{uniform.coherence:.4g} against {ours.coherence:.4g}",
        uniform.coherence < ours.coherence,
    )
    lab.note(
        "Coherence is the cosine of mean final hidden states of the writer itself, where the paper takes SimCSE; these "
        "states share a large common direction, so differences are small."
    )
    if not tuning:
        lab.note(f"Quick: alpha is the default, {alpha}; the full run picks it on other prompts from {list(GRID)}.")


def _tuned(lab: Lab, prompts: list[list[int]], size: Size) -> float:
    """The ``alpha`` of the grid whose texts are the most coherent among those with a diversity of at least 0.7; if
    there is none, the most diverse."""
    tried = []
    for alpha in GRID:
        lab.say(f"alpha {alpha} on {len(prompts)} other prompts")
        composition = endless(lab, "look-back-decoding", alpha=alpha)
        texts = tokens_of(decode_all(composition, prompts, new_tokens=size.new_tokens, batch=size.batch))
        found = quality(lab, prompts, texts)
        tried.append((found.diversity >= 0.7, found.coherence if found.diversity >= 0.7 else found.diversity, alpha))
    return max(tried)[2]


def _premise(lab: Lab, texts: Sequence[Continuation]) -> None:
    """What ``KLmin`` tells about the repetitions in greedy texts: its value where a 4-gram begins that the text already
    holds, and how well it tells these places, or those where such a 4-gram is completed, from the others."""
    distance: list[float] = []
    begins: list[bool] = []
    ends: list[bool] = []
    for text in texts:
        tokens = [*text.prompt, *text.tokens]
        # Row i chose token i + 1.
        rows = log_probs(continuation_logits(lab.model, tokens[:1], tokens[1:]))
        apart = divergences(rows, rows)
        earlier = torch.ones_like(apart, dtype=torch.bool).tril(-1)
        nearest = apart.masked_fill(~earlier, torch.inf).amin(-1).tolist()
        repeated = repeats(tokens, 4)
        for place in range(len(text.prompt), len(tokens) - 3):
            distance.append(nearest[place - 1])
            begins.append(repeated[place])
            ends.append(repeated[place - 3])
    if not 0 < sum(begins) < len(begins) or not 0 < sum(ends) < len(ends):
        lab.check("greedy texts hold 4-grams that are repeated and others", f"{sum(begins)} of {len(begins)}", False)
        return

    def parted(labels: list[bool]) -> tuple[list[float], list[float]]:
        pairs = list(zip(distance, labels, strict=True))
        return [d for d, label in pairs if label], [d for d, label in pairs if not label]

    near, far = map(statistics.median, parted(begins))
    foretold, completed = (auc(*([-d for d in side] for side in parted(labels))) for labels in (begins, ends))
    lab.row("median KLmin in nats just before a repeated 4-gram, greedy texts (elsewhere)", far, near)
    lab.row("AUC of KLmin as a detector of a repeated 4-gram that begins (chance)", 0.5, foretold)
    lab.row("AUC of KLmin as a detector of a repeated 4-gram that is completed (chance)", 0.5, completed)
    lab.check(
        "median KLmin before a repeated 4-gram below half of that elsewhere",
        f"{near:.3g} against {far:.3g}",
        near < far / 2,
        near < far,
    )
    lab.check(
        "AUC of KLmin just before a repeated 4-gram as a detector of repetition >= 0.8",
        foretold,
        foretold >= 0.8,
        foretold > 0.5,
    )
