"""What the cards of artefacts report: held-out loss, and how well a draft agrees with its target."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from unspool.core.decode import decode
from unspool.core.events import Finished
from unspool.core.model import LanguageModel
from unspool.core.texts import Stop
from unspool.training.objectives import Batch, cross_entropy, layer_states, readout


def answers(model: LanguageModel, prompts: Sequence[str], *, limit: int, batch: int = 50) -> list[str]:
    """What greedy decoding gives to each prompt, in at most ``limit`` tokens; ``batch`` of them go together."""
    assert model.tokenizer is not None
    found: dict[int, str] = {}
    for start in range(0, len(prompts), batch):
        some = [model.tokenizer.encode(prompt) for prompt in prompts[start : start + batch]]
        for event in decode(model, some, stop=Stop(limit)):
            if isinstance(event, Finished):
                found[start + event.index] = model.tokenizer.decode(event.tokens)
    return [found[index] for index in range(len(prompts))]


def logits_of(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Logits [B, T, V] of whole sequences [B, T]."""
    return readout(model, layer_states(model, tokens)[-1])


def _groups(windows: Tensor, size: int = 8) -> Iterator[Tensor]:
    yield from windows.split(size)


@torch.no_grad()
def loss(model: PreTrainedModel, windows: Tensor) -> float:
    """Mean negative log likelihood in nats a token, of windows [N, T + 1]."""
    total = 0.0
    for tokens in _groups(windows):
        batch = Batch(tokens)
        total += float(cross_entropy(logits_of(model, batch.inputs), batch)) * len(tokens)
    return total / len(windows)


@torch.no_grad()
def agreement(draft: PreTrainedModel, target: PreTrainedModel, windows: Tensor) -> dict[str, float]:
    """How often the target would accept a draft's token on text [N, T] that neither wrote.

    Returns:
        ``greedy``: share of positions with the same arg-max; ``sampled``: the mean of sum_x min(p(x), q(x)), which is
        the chance that speculative sampling accepts a token at temperature 1.
    """
    same = overlap = count = 0.0
    for tokens in _groups(windows):
        p, q = logits_of(target, tokens), logits_of(draft, tokens)
        same += float((p.argmax(-1) == q.argmax(-1)).sum())
        overlap += float(torch.minimum(p.softmax(-1), q.softmax(-1)).sum())
        count += tokens.numel()
    return {"greedy": round(same / count, 4), "sampled": round(overlap / count, 4)}


@torch.no_grad()
def layer_agreement(model: PreTrainedModel, windows: Tensor) -> list[float]:
    """For each layer, read out through the final norm and head: the share of arg-maxes that are the last layer's."""
    same: Tensor | None = None
    for tokens in _groups(windows):
        states = layer_states(model, tokens)
        last = readout(model, states[-1]).argmax(-1)
        hits = torch.stack([(readout(model, state).argmax(-1) == last).sum() for state in states]).double()
        same = hits if same is None else same + hits
    assert same is not None
    return [round(value, 4) for value in (same / windows.numel()).tolist()]
