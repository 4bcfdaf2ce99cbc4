"""Decision models for improved multi-candidate speculation: will the target accept this draft token?

The draft model of ``stdlib-pair`` writes forks of full depth after pieces of the library, the target judges them, and
every draft token becomes an example: what was seen where it was drawn, and whether it was accepted there (at a
temperature above 0 the probability of that). Two networks learn from the same tokens: ``hidden.safetensors`` reads the
draft model's last hidden state, ``q.safetensors`` the entropy and the ten largest probabilities of its distribution.

Paper: Lu et al., Improving Multi-candidate Speculative Decoding, 2024 (section 3.3; Adam at 1e-3, batches of 50, 10
epochs, the best validation loss counts).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from unspool.core.cards import settings
from unspool.core.compose import compose
from unspool.core.errors import InvalidInput
from unspool.core.model import LanguageModel
from unspool.core.texts import Stop
from unspool.models.artefacts import find, read_card
from unspool.models.load import load_model
from unspool.sampling.standard import SamplingSettings, StandardSampler
from unspool.speculation.drafting._decision import DecisionModel
from unspool.speculation.drafting.improved_mcsd import ImprovedMCSD, ImprovedMCSDSettings
from unspool.training import corpora
from unspool.training.recipes import Bench, Quality, recipe

PAIR = "stdlib-pair"
KINDS: tuple[Literal["hidden", "q"], ...] = ("hidden", "q")


@settings
class McsdDecisionSettings:
    """The paper's training, on fewer prompts."""

    seed: Annotated[int, Field(description="of weights, batches and draws")] = 0
    prompts: Annotated[int, Field(ge=8, description="pieces of the library that are continued")] = 160
    length: Annotated[int, Field(ge=1, description="tokens of each")] = 64
    new_tokens: Annotated[int, Field(ge=2, description="that each is continued by")] = 48
    width: Annotated[int, Field(ge=1, description="branches of a fork")] = 4
    depth: Annotated[int, Field(ge=1, description="tokens of a branch")] = 10
    temperature: Annotated[float, Field(ge=0, description="of the target; 0 takes its best tokens")] = 0.0
    hidden: Annotated[tuple[int, int], Field(description="inner widths of the network on hidden states")] = (512, 256)
    inner: Annotated[int, Field(ge=1, description="inner width of the network on probabilities")] = 44
    examples: Annotated[int, Field(ge=100, description="draft tokens to learn from, at most")] = 40_000
    learning_rate: Annotated[float, Field(gt=0, description="of Adam")] = 1e-3
    batch: Annotated[int, Field(ge=2, description="examples of a step")] = 50
    epochs: Annotated[int, Field(ge=1, description="passes over the examples")] = 10


def record(
    target: LanguageModel,
    draft: LanguageModel,
    prompts: Sequence[Sequence[int]],
    chosen: McsdDecisionSettings,
    reads: Literal["hidden", "q"],
) -> tuple[Tensor, Tensor]:
    """Features ``[N, F]`` and labels ``[N]`` of all draft tokens of a run with forks of full depth."""
    drafter = ImprovedMCSD(ImprovedMCSDSettings(width=chosen.width, depth=chosen.depth))
    drafter.recorded, drafter.reads = [], reads
    sampler = StandardSampler(SamplingSettings(temperature=chosen.temperature))
    composition = compose(target, drafter, sampler=sampler, models={"draft": draft})
    for first in range(0, len(prompts), 16):
        group = [list(prompt) for prompt in prompts[first : first + 16]]
        for _ in composition.decode(group, stop=Stop(chosen.new_tokens, frozenset()), seed=chosen.seed + first):
            pass
    features = torch.stack([read for read, _ in drafter.recorded])
    return features, torch.tensor([label for _, label in drafter.recorded])


def area_under_curve(chances: Tensor, labels: Tensor) -> float:
    """How often an accepted token is given a larger chance than a refused one (labels above a half are accepted)."""
    ranks = chances.double().argsort().argsort().double() + 1
    positive = labels > 0.5
    count, others = int(positive.sum()), int((~positive).sum())
    if not count or not others:
        return float("nan")
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * others))


def learn(
    train: tuple[Tensor, Tensor], valid: tuple[Tensor, Tensor], widths: Sequence[int], chosen: McsdDecisionSettings
) -> tuple[list[tuple[Tensor, Tensor]], float]:
    """Layers of the network with the least validation loss, and that loss.

    Args:
        train, valid: features ``[N, F]`` and labels ``[N]``.
        widths: of the inner layers.
    """
    features, labels = train
    rng = torch.Generator().manual_seed(chosen.seed)
    sizes = [features.shape[1], *widths, 1]
    state = torch.random.get_rng_state()
    torch.manual_seed(chosen.seed)
    linear = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
    torch.random.set_rng_state(state)
    network = nn.Sequential(*[part for one in linear for part in (one, nn.ReLU())][:-1])
    # Features of different scales: the first layer takes them as they are, so its scale is put into the weights.
    mean, spread = features.mean(dim=0), features.std(dim=0).clamp_min(1e-6)
    optimiser = torch.optim.Adam(network.parameters(), lr=chosen.learning_rate)
    best, kept = float("inf"), [layer.weight.detach().clone() for layer in linear]
    offsets = [layer.bias.detach().clone() for layer in linear]

    def outputs(read: Tensor) -> Tensor:
        logits: Tensor = network((read - mean) / spread)[:, 0]
        return logits

    with torch.enable_grad():
        for _ in range(chosen.epochs):
            order = torch.randperm(len(labels), generator=rng)
            for batch in order.split(chosen.batch):
                loss = functional.binary_cross_entropy_with_logits(outputs(features[batch]), labels[batch])
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
            with torch.no_grad():
                held = float(functional.binary_cross_entropy_with_logits(outputs(valid[0]), valid[1]))
            if held < best:
                best = held
                kept = [layer.weight.detach().clone() for layer in linear]
                offsets = [layer.bias.detach().clone() for layer in linear]
    offsets[0] = offsets[0] - kept[0] @ (mean / spread)
    kept[0] = kept[0] / spread
    return list(zip(kept, offsets, strict=True)), best


def balanced(features: Tensor, labels: Tensor, most: int, seed: int) -> tuple[Tensor, Tensor]:
    """As many tokens that are likely to be accepted as others, ``most`` in all at most, drawn evenly."""
    rng = torch.Generator().manual_seed(seed)
    groups = [(labels > 0.5).nonzero()[:, 0], (labels <= 0.5).nonzero()[:, 0]]
    count = min(most // 2, *(len(group) for group in groups))
    if not count:
        raise InvalidInput(f"all {len(labels)} draft tokens went one way: {float(labels.mean()):.0%} were accepted")
    rows = torch.cat([group[torch.randperm(len(group), generator=rng)[:count]] for group in groups])
    return features[rows], labels[rows]


def pieces(model: LanguageModel, split: Literal["train", "held-out"], count: int, length: int) -> list[list[int]]:
    """``count`` pieces of ``length`` tokens from as many files, and further ones of them if there are too few."""
    found: list[list[int]] = []
    texts = [document.text for document in corpora.stdlib(split)]
    for start in range(600, max(map(len, texts)), 4000):
        for text in texts:
            piece = text[start : start + 12 * length]
            tokens = model.tokenizer.encode(piece[piece.find("\n") + 1 :])[:length]
            if len(tokens) == length:
                found.append(tokens)
                if len(found) == count:
                    return found
    return found


@recipe(
    "mcsd-decision",
    summary="Decision models for improved-mcsd with the models of stdlib-pair.",
    minutes=4,
    megabytes=0.8,
    settings=McsdDecisionSettings,
    data=lambda chosen: corpora.fingerprint(corpora.stdlib("train")) + read_card(find(PAIR))["key"],
)
def RECIPE(chosen: McsdDecisionSettings, bench: Bench) -> Quality:
    """Record both kinds of features, and train a network on each."""
    target, draft = (load_model(f"{PAIR}/{part}", device="cpu", progress=False) for part in ("target", "draft"))
    known = pieces(target, "train", chosen.prompts, chosen.length)
    # Other files than those that are learned from, so that the validation is of text that is new.
    held = pieces(target, "held-out", max(chosen.prompts // 8, 2), chosen.length)
    quality: Quality = {"prompts": len(known), "held_out_prompts": len(held)}
    for reads in KINDS:
        bench.say(f"forks of {chosen.width} x {chosen.depth} after {len(known) + len(held)} prompts, {reads}")
        features, labels = record(target, draft, known, chosen, reads)
        train = balanced(features, labels, chosen.examples, chosen.seed)
        valid = record(target, draft, held, chosen, reads)
        widths = chosen.hidden if reads == "hidden" else (chosen.inner,)
        layers, loss = learn(train, valid, widths, chosen)
        model = DecisionModel(reads, layers)
        model.save(bench.folder / f"{reads}.safetensors")
        quality[reads] = {
            "examples": len(train[1]),
            "accepted": round(float(labels.mean()), 4),
            "validation_loss": round(loss, 4),
            "validation_auc": round(area_under_curve(model(valid[0]), valid[1]), 4),
        }
        bench.say(f"{reads}: area under the curve {quality[reads]['validation_auc']:.3f}")
    return quality
