"""A target and a draft with one tokenizer, trained on the standard library's source.

The tokenizer is byte-level BPE of 1024 tokens. The draft learns from the target's distributions on the same text
(:class:`~unspool.training.objectives.Distillation`), as what a draft is accepted for is its overlap with the target.
Parts: ``target`` and ``draft``, each a folder to load by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field

from unspool.core.cards import settings
from unspool.training import corpora, quality
from unspool.training.loop import Optimisation, train
from unspool.training.networks import llama, rounded, save
from unspool.training.objectives import Batch, Distillation, NextToken
from unspool.training.recipes import Bench, Quality, recipe
from unspool.training.tokenizers import byte_bpe

CONTEXT = 1024
HELD_OUT_WINDOWS = 48


@settings
class StdlibPairSettings:
    """Sizes and lengths of the two trainings."""

    seed: Annotated[int, Field(description="of weights and batches")] = 0
    vocabulary: Annotated[int, Field(ge=257, description="tokens of the tokenizer")] = 1024
    length: Annotated[int, Field(ge=8, le=CONTEXT, description="tokens of a training sequence")] = 512
    batch: Annotated[int, Field(ge=1, description="sequences of a step")] = 4
    layers: Annotated[int, Field(ge=1, description="of the target")] = 4
    hidden: Annotated[int, Field(ge=6, multiple_of=12, description="width of the target")] = 192
    mlp: Annotated[int, Field(ge=1, description="inner width of the target's MLPs")] = 512
    steps: Annotated[int, Field(ge=1, description="of the target")] = 1400
    draft_hidden: Annotated[int, Field(ge=4, multiple_of=8, description="width of the draft")] = 96
    draft_mlp: Annotated[int, Field(ge=1, description="inner width of the draft's MLP")] = 256
    draft_steps: Annotated[int, Field(ge=1, description="of the draft")] = 600
    learning_rate: Annotated[float, Field(gt=0, description="at its peak")] = 3e-3
    minutes: Annotated[float, Field(gt=0, description="limit of time of the target; the draft has a quarter of it")] = (
        13.0
    )


@recipe(
    "stdlib-pair",
    summary="A 1.8M-parameter target and a 0.2M-parameter draft with one tokenizer, for Python source.",
    minutes=14,
    megabytes=4.3,
    settings=StdlibPairSettings,
    data=lambda chosen: corpora.fingerprint(corpora.stdlib()),
)
def RECIPE(chosen: StdlibPairSettings, bench: Bench) -> Quality:
    """Train the tokenizer, the target, then the draft on what the target says."""
    texts = [document.text for document in corpora.stdlib("train")]
    tokenizer = byte_bpe(texts, chosen.vocabulary)
    end: int = tokenizer.eos_token_id
    streams = {}
    for split in corpora.SPLITS:
        documents = (document.text for document in corpora.stdlib(split))
        place = bench.scratch / split
        streams[split] = corpora.pack(documents, tokenizer.encode, end, place, len(tokenizer))
    bench.say(f"{len(streams['train']):,} tokens to train on, {len(streams['held-out']):,} held out")
    held = streams["held-out"].even(HELD_OUT_WINDOWS, chosen.length + 1)

    def batches(seed: int) -> Callable[[int, float], Batch]:
        return corpora.windows(streams["train"], chosen.batch, chosen.length, seed)

    optimisation = Optimisation(steps=chosen.steps, learning_rate=chosen.learning_rate, seconds=60 * chosen.minutes)
    shape: dict[str, Any] = {"vocabulary": len(tokenizer), "context": CONTEXT, "end": end}
    target = llama(
        layers=chosen.layers, hidden=chosen.hidden, mlp=chosen.mlp, heads=6, kv_heads=3, seed=chosen.seed, **shape
    )
    bench.say(f"target: {target.num_parameters():,} parameters")
    learned = train(
        target,
        batches(chosen.seed + 1),
        NextToken(),
        optimisation,
        progress=bench.progress,
        title="target",
        watch=lambda: f"held-out {quality.loss(target, held[:12]):.3f}",
    )
    save(rounded(target), tokenizer, bench.folder / "target")

    draft = llama(
        layers=1,
        hidden=chosen.draft_hidden,
        mlp=chosen.draft_mlp,
        heads=4,
        kv_heads=2,
        seed=chosen.seed + 2,
        **shape,
    )
    bench.say(f"draft: {draft.num_parameters():,} parameters")
    drafted = train(
        draft,
        batches(chosen.seed + 3),
        Distillation(lambda tokens: quality.logits_of(target, tokens)),
        replace(optimisation, steps=chosen.draft_steps, seconds=15 * chosen.minutes),
        progress=bench.progress,
        title="draft",
        watch=lambda: f"agreement {quality.agreement(draft, target, held[:6, :-1])}",
    )
    save(rounded(draft), tokenizer, bench.folder / "draft")
    return {
        "held_out_tokens": held[:, 1:].numel(),
        "target": {"parameters": target.num_parameters(), "held_out_loss": round(quality.loss(target, held), 4)},
        "draft": {"parameters": draft.num_parameters(), "held_out_loss": round(quality.loss(draft, held), 4)},
        "acceptance": quality.agreement(draft, target, held[:, :-1]),
        "training": {"target": learned.as_dict(), "draft": drafted.as_dict()},
    }
