"""Whether a draft is worth going on with: a small network that guesses if a draft token will be accepted.

It reads either the draft model's last hidden state, of the place that the token was drawn at, or how sure the draft
model is there (the entropy of its distribution and its ten largest probabilities).

Paper: Lu et al., Improving Multi-candidate Speculative Decoding, 2024 (section 3.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from unspool.core.errors import WeightsError

Reads = Literal["hidden", "q"]
Q_FEATURES = 11
_LARGEST = Q_FEATURES - 1


def q_features(logits: Tensor) -> Tensor:
    """``[N, 11]`` entropy (nats) and the ten largest probabilities of ``[N, V]`` logits; zeros if there are fewer."""
    logs = torch.log_softmax(logits.float(), dim=-1)
    probs = logs.exp()
    entropy = -(probs * logs.clamp_min(-1e4)).sum(dim=-1, keepdim=True)
    largest = probs.topk(min(_LARGEST, probs.shape[-1]), dim=-1).values
    return functional.pad(torch.cat([entropy, largest], dim=-1), (0, _LARGEST - largest.shape[-1]))


class DecisionModel:
    """Linear layers with ReLU between them and a sigmoid at the end.

    Args:
        reads: what it is given.
        layers: weights ``[out, in]`` and offsets ``[out]``; the last has one output.
    """

    def __init__(self, reads: Reads, layers: Sequence[tuple[Tensor, Tensor]]) -> None:
        self.reads: Reads = reads
        self.layers = list(layers)

    @property
    def width(self) -> int:
        """Numbers that it is given."""
        return int(self.layers[0][0].shape[1])

    @torch.no_grad()
    def __call__(self, features: Tensor) -> Tensor:
        """``[N]`` chances of being accepted, from ``[N, F]`` features."""
        state = features.to(self.layers[0][0])
        for place, (weight, offset) in enumerate(self.layers):
            state = functional.linear(state, weight, offset)
            if place + 1 < len(self.layers):
                state = torch.relu(state)
        return torch.sigmoid(state[:, 0])

    def save(self, path: Path) -> None:
        """Write it to a safetensors file."""
        arrays = {}
        for place, (weight, offset) in enumerate(self.layers):
            arrays[f"{place}.weight"], arrays[f"{place}.bias"] = weight.contiguous(), offset.contiguous()
        save_file(arrays, path, {"unspool": "mcsd-decision", "reads": self.reads})

    @classmethod
    def load(cls, path: Path) -> DecisionModel:
        """Read what :meth:`save` wrote.

        Raises:
            WeightsError: if the file is missing, damaged, or holds something else.
        """
        try:
            with safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        except (OSError, SafetensorError) as error:
            raise WeightsError(f"{path} holds no decision model: {error}") from error
        reads = metadata.get("reads")
        if metadata.get("unspool") != "mcsd-decision" or reads not in ("hidden", "q"):
            raise WeightsError(f"{path} holds {metadata.get('unspool') or 'something else'}; mcsd-decision is needed")
        layers = [(arrays[f"{place}.weight"], arrays[f"{place}.bias"]) for place in range(len(arrays) // 2)]
        return cls(reads, layers)
