"""A twelve-layer network for Python source whose early layers speak through the last one's head.

Trained with :class:`~unspool.training.objectives.LayerSkip`: layer dropout, and the early-exit loss through the shared
norm and head. A draft that stops after a few layers then often says what the whole network says. The tokenizer is that
of ``stdlib-pair``, which is made first.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from transformers import AutoTokenizer

from unspool.core.cards import settings
from unspool.models.artefacts import find, read_card
from unspool.training import corpora, quality
from unspool.training.loop import Optimisation, train
from unspool.training.networks import llama_of, rounded, save
from unspool.training.objectives import LayerSkip
from unspool.training.recipes import Bench, Quality, recipe

CONTEXT = 1024
HELD_OUT_WINDOWS = 48


@settings
class StdlibLayerskipSettings:
    """Sizes, and what the objective is told."""

    seed: Annotated[int, Field(description="of weights, batches and dropout")] = 0
    length: Annotated[int, Field(ge=8, le=CONTEXT, description="tokens of a training sequence")] = 512
    batch: Annotated[int, Field(ge=1, description="sequences of a step")] = 2
    layers: Annotated[int, Field(ge=2, description="of the network")] = 12
    hidden: Annotated[int, Field(ge=8, multiple_of=8, description="width")] = 112
    mlp: Annotated[int, Field(ge=1, description="inner width of the MLPs")] = 304
    dropout: Annotated[float, Field(ge=0, lt=1, description="p_max of the layer dropout")] = 0.2
    rotation: Annotated[int, Field(ge=1, description="steps in which each exit is trained once")] = 4
    exit_scale: Annotated[float, Field(ge=0, description="weight of the early exits' losses")] = 0.3
    steps: Annotated[int, Field(ge=1, description="updates of the weights")] = 1600
    learning_rate: Annotated[float, Field(gt=0, description="at its peak")] = 3e-3
    minutes: Annotated[float, Field(gt=0, description="limit of time")] = 15.0


@recipe(
    "stdlib-layerskip",
    summary="A 1.9M-parameter, 12-layer network for Python source, trained with the LayerSkip recipe.",
    minutes=11,
    megabytes=4.0,
    settings=StdlibLayerskipSettings,
    data=lambda chosen: corpora.fingerprint(corpora.stdlib()) + read_card(find("stdlib-pair"))["key"],
)
def RECIPE(chosen: StdlibLayerskipSettings, bench: Bench) -> Quality:
    """Train the network, and measure how soon its layers agree with the last."""
    tokenizer = AutoTokenizer.from_pretrained(find("stdlib-pair/target"))
    end: int = tokenizer.eos_token_id
    train_text, held_text = (
        corpora.pack(
            (document.text for document in corpora.stdlib(split)),
            tokenizer.encode,
            end,
            bench.scratch / split,
            len(tokenizer),
        )
        for split in corpora.SPLITS
    )
    held = held_text.even(HELD_OUT_WINDOWS, chosen.length + 1)
    model = llama_of(chosen, tokenizer, context=CONTEXT)
    bench.say(f"{model.num_parameters():,} parameters, {len(train_text):,} tokens to train on")
    learned = train(
        model,
        corpora.windows(train_text, chosen.batch, chosen.length, chosen.seed + 1),
        LayerSkip(chosen.dropout, chosen.rotation, chosen.exit_scale, torch.Generator().manual_seed(chosen.seed + 2)),
        Optimisation(steps=chosen.steps, learning_rate=chosen.learning_rate, seconds=60 * chosen.minutes),
        progress=bench.progress,
        title="layers",
        watch=lambda: f"held-out {quality.loss(model, held[:12]):.3f}",
    )
    save(rounded(model), tokenizer, bench.folder)
    return {
        "parameters": model.num_parameters(),
        "held_out_loss": round(quality.loss(model, held), 4),
        "agreement_with_last_layer": quality.layer_agreement(model, held[:, :-1]),
        "training": learned.as_dict(),
    }
