"""The shapes of the small networks, and how they are written."""

from __future__ import annotations

import copy
from collections.abc import Collection
from pathlib import Path
from typing import Any, Protocol

import safetensors.torch
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase


def llama(
    *,
    vocabulary: int,
    layers: int,
    hidden: int,
    mlp: int,
    heads: int,
    kv_heads: int,
    context: int,
    end: int,
    seed: int,
    tied: bool = True,
    rope_theta: float = 10000.0,
) -> LlamaForCausalLM:
    """A Llama of random weights, scaled as GPT-2's: the matrices that write to the residual stream shrink with depth.

    Args:
        end: the token that begins and ends a text.
        seed: equal seeds give equal weights.
    """
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=hidden // heads,
        max_position_embeddings=context,
        tie_word_embeddings=tied,
        bos_token_id=end,
        eos_token_id=end,
        rope_parameters={"rope_type": "default", "rope_theta": rope_theta},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.div_((2 * layers) ** 0.5)
    return model


class Sizes(Protocol):
    """What the settings of a recipe say of its network."""

    @property
    def layers(self) -> int: ...
    @property
    def hidden(self) -> int: ...
    @property
    def mlp(self) -> int: ...
    @property
    def seed(self) -> int: ...


def llama_of(chosen: Sizes, tokenizer: PreTrainedTokenizerBase, *, context: int, heads: int = 4) -> LlamaForCausalLM:
    """:func:`llama` in the sizes that settings name, for a tokenizer whose texts end with its end token."""
    return llama(
        vocabulary=len(tokenizer),
        layers=chosen.layers,
        hidden=chosen.hidden,
        mlp=chosen.mlp,
        heads=heads,
        kv_heads=heads,
        context=context,
        end=tokenizer.eos_token_id,
        seed=chosen.seed,
    )


def save(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, folder: Path, without: Collection[str] = ()
) -> None:
    """Write a network in bf16, and its tokenizer, as ``from_pretrained`` reads them. The network is not changed.

    Args:
        without: names of tensors that are left out, as they are read from elsewhere (:mod:`unspool.models.borrowed`).
    """
    left_out = {*without, "lm_head.weight"} if model.config.tie_word_embeddings else set(without)
    kept = {
        name: weight.detach().to(torch.bfloat16).contiguous()
        for name, weight in model.state_dict().items()
        if name not in left_out
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(safetensors.torch.save(kept, {"format": "pt"}))
    config = copy.deepcopy(model.config)
    config.architectures, config.dtype = [type(model).__name__], torch.bfloat16
    config.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def rounded(module: nn.Module) -> Any:
    """Round weights in place to bf16, as :func:`save` writes them: what is measured afterwards is what is saved."""
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(weight.to(torch.bfloat16))
    return module
