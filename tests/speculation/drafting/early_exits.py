"""Tiny networks whose lower layers often say what the whole network says, and truncated copies of them."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
import transformers

from unspool.models.load import wrap
from unspool.models.transformers_lm import TransformersModel

LAYERS = 4


@functools.cache
def shallow(vocabulary: int = 5, upper: float = 0.35, seed: int = 3) -> TransformersModel:
    """A Llama of four layers.

    Args:
        vocabulary: few tokens can be enumerated.
        upper: how much the layers above the first add; at 0 every exit is the whole network.
        seed: of the weights.
    """
    config = transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = transformers.LlamaForCausalLM(config)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if weight.ndim == 2:
                weight.copy_(torch.randn(weight.shape, generator=rng) * 1.6 / weight.shape[1] ** 0.5)
            if name.endswith(("o_proj.weight", "down_proj.weight")) and ".layers.0." not in name:
                weight.mul_(upper)
        net.get_input_embeddings().weight.copy_(torch.randn(vocabulary, 16, generator=rng))
    return wrap(net.double().eval(), name=f"shallow-{vocabulary}")  # type: ignore[return-value]


def truncated(lm: TransformersModel, layers: int) -> TransformersModel:
    """A network that ends after its first layers, cut out of ``lm`` in the flesh."""
    net: Any = copy.deepcopy(lm.model)
    net.model.layers = net.model.layers[:layers]
    net.config.num_hidden_layers = layers
    return wrap(net, name=f"{lm.name}-{layers}")  # type: ignore[return-value]
