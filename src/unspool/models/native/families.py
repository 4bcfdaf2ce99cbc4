"""Which networks the runtime runs, and how each differs from Llama.

A new architecture of the family is an entry in :data:`FAMILIES`. What the kernels know: a norm before attention and
before the MLP (and, if wanted, behind each), norms of queries and keys, biases, grouped heads, rotary positions of any
static kind, sliding windows, a gated MLP with SiLU or tanh-GELU, scaled embeddings, soft-capping.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unspool.core.errors import Incompatible

_FULL, _SLIDING = "full_attention", "sliding_attention"
# Frequencies that do not depend on how long the text has become.
_ROPES = {"default", "linear", "llama3", "yarn"}
_LARGEST_HEAD = 512
_ACTIVATIONS = {"silu": 0, "swish": 0, "gelu_pytorch_tanh": 1}


@dataclass(frozen=True)
class Family:
    """How a model type of transformers differs from Llama.

    Args:
        norm_offset: added to the weights of norms when they are read (Gemma multiplies by ``1 + w``).
        sandwich: whether norms stand behind attention and MLP as well, under Gemma's names.
        scaled: whether embeddings are multiplied by the square root of the width.
    """

    norm_offset: float = 0.0
    sandwich: bool = False
    scaled: bool = False

    def norms(self) -> dict[str, str]:
        """The field of a layer for each norm, by its name in the weights."""
        if not self.sandwich:
            return {"input_layernorm": "norm_attention", "post_attention_layernorm": "norm_mlp"}
        return {
            "input_layernorm": "norm_attention",
            "post_attention_layernorm": "norm_after_attention",
            "pre_feedforward_layernorm": "norm_mlp",
            "post_feedforward_layernorm": "norm_after_mlp",
        }


FAMILIES = {
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(),
    "qwen3": Family(),
    "gemma3_text": Family(norm_offset=1.0, sandwich=True, scaled=True),
}


@dataclass(frozen=True)
class Shape:
    """The numbers of a network, from its configuration.

    Args:
        model_type: of transformers, a name in :data:`FAMILIES`.
        windows: of each layer, the positions that a token sees; 0 for all.
        kinds: of each layer, the name of its rotary positions.
        activation: as in ``kernels.cpp``.
        scale: what scores of attention are multiplied by.
        softcap, final_softcap: 0 for none.
        embedding_factor: what embeddings are multiplied by.
        context_length: positions that it was made for, if it says so.
        rotations: of each kind of layer, its ``head_dim / 2`` rotary frequencies and the factor of cosine and sine.
    """

    model_type: str
    vocabulary: int
    hidden: int
    mlp: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    scale: float
    softcap: float
    final_softcap: float
    activation: int
    windows: tuple[int, ...]
    kinds: tuple[str, ...]
    embedding_factor: float
    tied: bool
    context_length: int | None
    rotations: dict[str, tuple[tuple[float, ...], float]]

    @property
    def family(self) -> Family:
        return FAMILIES[self.model_type]

    @classmethod
    def of(cls, config: Any) -> Shape:
        """Read a configuration of transformers.

        Raises:
            Incompatible: if the network is of another family, or has something that the kernels do not know.
        """
        # Takes a second to import, and is not needed where a network is known already.
        from transformers.cache_utils import get_layer_types_and_kwargs

        family = FAMILIES.get(config.model_type)
        if family is None:
            raise Incompatible(
                f"the native runtime runs {', '.join(FAMILIES)}; this network is of the type {config.model_type!r}"
            )
        heads = int(config.num_attention_heads)
        head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
        if head_dim % 8 or head_dim > _LARGEST_HEAD:
            raise Incompatible(
                f"the native runtime needs heads of a multiple of 8 up to {_LARGEST_HEAD}; these are of size {head_dim}"
            )
        activation = getattr(config, "hidden_activation", None) or config.hidden_act
        if activation not in _ACTIVATIONS:
            raise Incompatible(f"the native runtime knows {', '.join(_ACTIVATIONS)}; this network uses {activation!r}")
        kinds = get_layer_types_and_kwargs(config)[0]
        if unknown := set(kinds) - {_FULL, _SLIDING}:
            raise Incompatible(f"the native runtime does not know layers of the kind {min(unknown)!r}")
        scalar = getattr(config, "query_pre_attn_scalar", None) or head_dim
        return cls(
            model_type=config.model_type,
            vocabulary=int(config.vocab_size),
            hidden=int(config.hidden_size),
            mlp=int(config.intermediate_size),
            layers=int(config.num_hidden_layers),
            heads=heads,
            kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
            head_dim=head_dim,
            eps=float(config.rms_norm_eps),
            scale=float(scalar) ** -0.5,
            softcap=float(getattr(config, "attn_logit_softcapping", None) or 0),
            final_softcap=float(getattr(config, "final_logit_softcapping", None) or 0),
            activation=_ACTIVATIONS[activation],
            windows=tuple(int(config.sliding_window) if kind == _SLIDING else 0 for kind in kinds),
            kinds=tuple(kinds),
            embedding_factor=float(config.hidden_size) ** 0.5 if family.scaled else 1.0,
            tied=bool(config.tie_word_embeddings),
            context_length=getattr(config, "max_position_embeddings", None),
            rotations={kind: _rotation(config, kind) for kind in dict.fromkeys(kinds)},
        )

    @classmethod
    def stored(cls, fields: dict[str, Any]) -> Shape:
        """From what :func:`dataclasses.asdict` made of one, by way of JSON."""
        rotations = {kind: (tuple(found), factor) for kind, (found, factor) in fields["rotations"].items()}
        lists = {name: tuple(fields[name]) for name in ("windows", "kinds")}
        return cls(**{**fields, **lists, "rotations": rotations})


def _rotation(config: Any, kind: str) -> tuple[tuple[float, ...], float]:
    frequencies, factor = _frequencies(config, kind)
    return tuple(frequencies.tolist()), factor


def _frequencies(config: Any, kind: str) -> tuple[Tensor, float]:
    """``[head_dim / 2]`` rotary frequencies of a kind of layer, and the factor of cosine and sine.

    Raises:
        Incompatible: if they change with the length of the text, or turn a part of a head only.
    """
    parameters = config.rope_parameters
    by_layer = kind in parameters
    mine = parameters[kind] if by_layer else parameters
    form = mine.get("rope_type", "default")
    if form not in _ROPES or mine.get("partial_rotary_factor", 1.0) != 1.0:
        raise Incompatible(f"the native runtime does not know rotary positions of the type {form!r} as they are here")
    if form == "default":
        size = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
        return 1.0 / (mine["rope_theta"] ** (torch.arange(0, size, 2, dtype=torch.float) / size)), 1.0
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    more = {"layer_type": kind} if by_layer else {}
    found, factor = ROPE_INIT_FUNCTIONS[form](config, torch.device("cpu"), **more)
    return found.float(), float(factor)
