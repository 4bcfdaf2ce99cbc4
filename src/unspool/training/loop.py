"""The training loop: AdamW, a warm-up and a cosine, clipped gradients, one seed.

The same seed, settings and data give the same weights on one machine, unless the limit of time ends a training early.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import nn
from transformers import PreTrainedModel

from unspool.core.cards import settings
from unspool.core.errors import InvalidInput
from unspool.training.objectives import Batch, Objective
from unspool.training.progress import Progress


@settings
class Optimisation:
    """How long and how fast a network learns."""

    steps: Annotated[int, Field(ge=1, description="updates of the weights")] = 1000
    learning_rate: Annotated[float, Field(gt=0, description="of AdamW, at its peak")] = 1e-3
    warmup: Annotated[float, Field(ge=0, lt=1, description="share of the training in which the rate rises")] = 0.04
    final: Annotated[float, Field(ge=0, le=1, description="share of the rate that is left at the end")] = 0.03
    weight_decay: Annotated[float, Field(ge=0, description="of AdamW, on matrices")] = 0.1
    betas: Annotated[tuple[float, float], Field(description="of AdamW")] = (0.9, 0.95)
    clip: Annotated[float, Field(gt=0, description="largest norm of the gradient")] = 1.0
    seconds: Annotated[
        float | None, Field(gt=0, description="limit of time; the cosine then follows the clock, whichever is ahead")
    ] = None


@dataclass(frozen=True)
class Report:
    """What a training took.

    Attributes:
        steps: updates made.
        tokens: predictions that were trained on, weighted or not.
        seconds: of wall clock.
        losses: (step, loss of the training, in nats), a mean of the steps since the entry before.
        cut: whether the limit of time ended it.
    """

    steps: int
    tokens: int
    seconds: float
    losses: list[tuple[int, float]]
    cut: bool

    def as_dict(self) -> dict[str, float | int | bool]:
        """For the artefact's card."""
        last = self.losses[-1][1] if self.losses else math.nan
        return {
            "steps": self.steps,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 1),
            "training_loss": round(last, 4),
            "cut_by_time": self.cut,
        }


def rate(share: float, warmup: float, final: float) -> float:
    """The learning rate as a share of its peak when ``share`` of the training is done."""
    if share < warmup:
        return share / warmup
    gone = min((share - warmup) / (1 - warmup), 1.0)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * gone))


def train(
    model: PreTrainedModel,
    batches: Callable[[int, float], Batch],
    objective: Objective,
    optimisation: Optimisation,
    *,
    progress: Progress | None = None,
    title: str = "training",
    watch: Callable[[], str] | None = None,
    every: int = 50,
) -> Report:
    """Train a network in place; it is in evaluation mode afterwards.

    Args:
        model: parameters that want a gradient are trained, others are left alone.
        batches: given the step and the share of the training that is done, the next batch.
        objective: the loss.
        optimisation: rates and limits.
        progress: where bars and messages go; none by default.
        title: of the bar.
        watch: measured now and then and told beside the bar (a held-out loss, say); eight times a training.
        every: steps between two entries of the losses.

    Raises:
        InvalidInput: if the loss stops being a number, with the step and what to lower.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(
        [
            {"params": [w for w in weights if w.dim() > 1], "weight_decay": optimisation.weight_decay},
            {"params": [w for w in weights if w.dim() <= 1], "weight_decay": 0.0},
        ],
        lr=optimisation.learning_rate,
        betas=optimisation.betas,
        fused=True,
    )
    show = progress or Progress()
    losses: list[tuple[int, float]] = []
    gathered: list[float] = []
    tokens, step, cut = 0, 0, False
    looks = max(optimisation.steps // 8, 1)
    model.train()
    began = time.perf_counter()
    try:
        with show.bar(title, optimisation.steps) as bar:
            while step < optimisation.steps:
                share = step / optimisation.steps
                if optimisation.seconds is not None:
                    share = max(share, (time.perf_counter() - began) / optimisation.seconds)
                    if share >= 1:
                        cut = True
                        break
                for group in optimiser.param_groups:
                    # The first step of a warm-up would otherwise be at rate 0.
                    risen = max(share, 1 / optimisation.steps)
                    group["lr"] = optimisation.learning_rate * rate(risen, optimisation.warmup, optimisation.final)
                batch = batches(step, share)
                loss = objective(model, batch, share)
                value = float(loss.detach())
                if not math.isfinite(value):
                    raise InvalidInput(
                        f"the loss is {value} at step {step}; a learning rate below "
                        f"{optimisation.learning_rate:g} may help"
                    )
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(weights, optimisation.clip)
                optimiser.step()
                step += 1
                tokens += batch.targets.numel()
                gathered.append(value)
                if step % every == 0 or step == optimisation.steps:
                    losses.append((step, sum(gathered) / len(gathered)))
                    gathered.clear()
                if watch is not None and (step % looks == 0 or step == optimisation.steps):
                    model.eval()
                    show.say(f"step {step}, loss {value:.3f}, {watch()}")
                    model.train()
                bar(step, f"loss {value:.3f}")
    finally:
        model.eval()
    if gathered:
        losses.append((step, sum(gathered) / len(gathered)))
    return Report(step, tokens, time.perf_counter() - began, losses, cut)
