"""llama.cpp's architectures as networks of transformers: their configuration, and which tensor becomes which parameter.

What llama.cpp's converter (convert_hf_to_gguf.py) did to a tensor on its way into the file is undone here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unspool.core.errors import WeightsError
from unspool.models.gguf.header import GGUFFile, TensorInfo

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Architecture:
    """How one of llama.cpp's architectures reads as a network of transformers.

    ``top`` and ``block`` map names of tensors (a block's without ``blk.N.``) to names of parameters; ``undo`` takes
    back what llama.cpp's converter did to a tensor's values.
    """

    config: Callable[[GGUFFile], dict[str, Any]]
    top: Mapping[str, str]
    block: Mapping[str, str]
    undo: Callable[[GGUFFile, str, np.ndarray[Any, Any]], np.ndarray[Any, Any]] = lambda file, name, values: values
    layers: str = "model.layers."
    transposed: bool = False
    """Whether ``undo`` turns matrices from [out, in] to [in, out]."""

    def parameter(self, name: str) -> str | None:
        """The parameter that a tensor of the file becomes; None when the architecture does not know it."""
        if match := re.fullmatch(r"blk\.(\d+)\.(.+)", name):
            number, leaf = match.groups()
            return f"{self.layers}{number}.{self.block[leaf]}" if leaf in self.block else None
        return self.top.get(name)


ROPE_FACTORS = {"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"}
"""Tensors that belong into the configuration: divisors of the rotary frequencies, [head_dim / 2]."""

_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_PROJECTIONS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_QK_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_GEMMA_NORMS = {
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


def _weights(*tables: Mapping[str, str], biased: bool = False) -> dict[str, str]:
    names = {gguf: name for table in tables for gguf, name in table.items()}
    suffixes = ("weight", "bias") if biased else ("weight",)
    return {f"{gguf}.{suffix}": f"{name}.{suffix}" for gguf, name in names.items() for suffix in suffixes}


def _decoder_config(file: GGUFFile) -> dict[str, Any]:
    """What every decoder states: sizes, norms, rotary positions, special tokens."""
    heads, kv_heads = file.need("attention.head_count"), file.get("attention.head_count_kv")
    if isinstance(heads, list) or isinstance(kv_heads, list):
        raise WeightsError(
            f"{file.path}: a number of attention heads that differs from layer to layer is not supported."
        )
    if file.get("expert_count"):
        raise WeightsError(f"{file.path}: mixtures of experts ({file.get('expert_count')} experts) are not supported.")
    hidden = file.need("embedding_length")
    head_dim = file.get("attention.key_length") or hidden // heads
    if file.get("attention.value_length", head_dim) != head_dim:
        raise WeightsError(f"{file.path}: keys and values of different sizes are not supported.")
    rotary = file.get("rope.dimension_count", head_dim)
    if rotary != head_dim and file.architecture != "phi3":
        raise WeightsError(f"{file.path}: rotary positions on {rotary} of {head_dim} dimensions are not supported.")
    return {
        # The table itself is asked: some files state a vocabulary that is shorter than the padded table.
        "vocab_size": _embedding(file).shape[0],
        "hidden_size": hidden,
        "intermediate_size": file.need("feed_forward_length"),
        "num_hidden_layers": file.need("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads or heads,
        "head_dim": head_dim,
        "max_position_embeddings": file.need("context_length"),
        "rms_norm_eps": file.need("attention.layer_norm_rms_epsilon"),
        # llama.cpp leaves the output matrix out when it is the embedding.
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "rope_parameters": _rope(file, head_dim),
    }


def _embedding(file: GGUFFile) -> TensorInfo:
    info = file.tensors.get("token_embd.weight")
    if info is None:
        raise WeightsError(
            f"{file.path} holds no token embedding (token_embd.weight): it is not a whole language model."
        )
    return info


def _rope(file: GGUFFile, head_dim: int) -> dict[str, Any]:
    """Rotary positions: the base, and how frequencies are stretched for longer contexts."""
    parameters: dict[str, Any] = {"rope_type": "default", "rope_theta": file.get("rope.freq_base", 10000.0)}
    scaling, factor = file.get("rope.scaling.type", "none"), file.get("rope.scaling.factor", 1.0)
    if "rope_freqs.weight" in file.tensors:
        parameters |= _rope_factors(file, head_dim, parameters["rope_theta"])
    elif scaling == "linear" and factor != 1.0:
        parameters |= {"rope_type": "linear", "factor": factor}
    elif scaling == "yarn" and factor != 1.0:
        original = file.need("rope.scaling.original_context_length")
        parameters |= {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    elif scaling not in ("none", "linear", "yarn", "longrope"):
        raise WeightsError(f"{file.path}: rotary positions scaled by {scaling!r} are not supported.")
    return parameters


def _rope_factors(file: GGUFFile, head_dim: int, theta: float) -> dict[str, Any]:
    """Llama 3.1's stretched frequencies, which llama.cpp stores as a tensor of divisors.

    The rule that made them is told by its four numbers where they reproduce the divisors (they are the same in every
    Llama 3.x but for the factor). Any other divisors are given one by one, which says the same.
    """
    import numpy as np

    factors = file.array("rope_freqs.weight").reshape(-1)
    if factors.shape != (head_dim // 2,):
        raise WeightsError(
            f"{file.path}: rope_freqs.weight has {factors.size} values, not half of head_dim {head_dim}."
        )
    factor, low, high, original = float(factors.max()), 1.0, 4.0, 8192
    wavelength = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = np.clip((original / wavelength - low) / (high - low), 0.0, 1.0)
    if np.allclose(factors, 1 / ((1 - smooth) / factor + smooth), rtol=1e-4):
        return {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low,
            "high_freq_factor": high,
            "original_max_position_embeddings": original,
        }
    each = [float(value) for value in factors]
    return {
        "rope_type": "longrope",
        "short_factor": each,
        "long_factor": each,
        "attention_factor": 1.0,
        "original_max_position_embeddings": file.need("context_length"),
    }


def _llama_config(file: GGUFFile) -> dict[str, Any]:
    return {
        "model_type": "llama",
        **_decoder_config(file),
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in file.tensors,
    }


def _unpermute(file: GGUFFile, name: str, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """llama.cpp interleaves the two halves of each head of Llama's queries and keys, [heads * head_dim, hidden]."""
    leaf = name.split(".")[2] if name.startswith("blk.") else ""
    if leaf not in ("attn_q", "attn_k"):
        return values
    heads = file.need("attention.head_count")
    if leaf == "attn_k":
        heads = file.get("attention.head_count_kv") or heads
    return values.reshape(heads, values.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(values.shape)


def _qwen_config(model_type: str) -> Callable[[GGUFFile], dict[str, Any]]:
    def config(file: GGUFFile) -> dict[str, Any]:
        settings = {"model_type": model_type, **_decoder_config(file), "use_sliding_window": False}
        if model_type == "qwen2":  # the class has no head_dim: it always divides
            if settings.pop("head_dim") * settings["num_attention_heads"] != settings["hidden_size"]:
                raise WeightsError(
                    f"{file.path}: heads of another size than hidden / heads are not supported in Qwen 2."
                )
        return settings

    return config


def _gemma_config(file: GGUFFile, model_type: str, largest: int) -> dict[str, Any]:
    settings = _decoder_config(file)
    hidden, heads = settings["hidden_size"], settings["num_attention_heads"]
    # Attention is scaled by 1/sqrt(head_dim), but in the 27B models by the share of a head. The file does not say
    # which: llama.cpp knows those models by their number of layers.
    scalar = hidden // heads if settings["num_hidden_layers"] == largest else settings["head_dim"]
    return {"model_type": model_type, **settings, "query_pre_attn_scalar": scalar}


def _gemma2_config(file: GGUFFile) -> dict[str, Any]:
    return {
        **_gemma_config(file, "gemma2", largest=46),
        "sliding_window": file.get("attention.sliding_window", 4096),
        "attn_logit_softcapping": file.get("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": file.get("final_logit_softcapping", 30.0),
    }


def _gemma3_config(file: GGUFFile) -> dict[str, Any]:
    """Gemma 3: five layers that look back over a window, then one that looks at everything, with a base of its own.

    The pattern and the local base are constants of the architecture (Gemma 3 report, section 2); files of today state
    neither. A scaling of positions applies to the layers that see everything.
    """
    settings = _gemma_config(file, "gemma3_text", largest=62)
    period = file.get("attention.sliding_window_pattern", 6)
    if not isinstance(period, int):
        raise WeightsError(f"{file.path}: a sliding window pattern other than a period is not supported: {period!r}.")
    return {
        **settings,
        "sliding_window": file.need("attention.sliding_window"),
        "layer_types": [
            "full_attention" if (layer + 1) % period == 0 else "sliding_attention"
            for layer in range(settings["num_hidden_layers"])
        ],
        "rope_parameters": {
            "full_attention": settings["rope_parameters"],
            "sliding_attention": {"rope_type": "default", "rope_theta": file.get("rope.freq_base_swa", 10000.0)},
        },
        "final_logit_softcapping": file.get("final_logit_softcapping"),
        "attn_logit_softcapping": file.get("attn_logit_softcapping"),
    }


def _gemma_norms(file: GGUFFile, name: str, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Gemma multiplies by 1 + weight; llama.cpp stores the sum."""
    return values - 1 if name.endswith("norm.weight") else values


def _phi3_config(file: GGUFFile) -> dict[str, Any]:
    settings = _decoder_config(file)
    head_dim = settings.pop("head_dim")
    if head_dim * settings["num_attention_heads"] != settings["hidden_size"]:
        raise WeightsError(f"{file.path}: heads of another size than hidden / heads are not supported in Phi 3.")
    rope = settings["rope_parameters"] | {
        "partial_rotary_factor": file.get("rope.dimension_count", head_dim) / head_dim
    }
    original = file.get("rope.scaling.original_context_length", settings["max_position_embeddings"])
    if "rope_factors_long.weight" in file.tensors:
        rope |= {
            "rope_type": "longrope",
            "long_factor": file.array("rope_factors_long.weight").reshape(-1).tolist(),
            "short_factor": file.array("rope_factors_short.weight").reshape(-1).tolist(),
            "original_max_position_embeddings": original,
        }
        if attention_factor := file.get("rope.scaling.attn_factor"):
            rope["attention_factor"] = attention_factor
    return {
        "model_type": "phi3",
        **settings,
        "rope_parameters": rope,
        "original_max_position_embeddings": original,
        "sliding_window": file.get("attention.sliding_window") or None,
    }


def _gpt2_config(file: GGUFFile) -> dict[str, Any]:
    return {
        "model_type": "gpt2",
        "vocab_size": _embedding(file).shape[0],
        "n_embd": file.need("embedding_length"),
        "n_inner": file.need("feed_forward_length"),
        "n_layer": file.need("block_count"),
        "n_head": file.need("attention.head_count"),
        "n_positions": file.need("context_length"),
        "layer_norm_epsilon": file.need("attention.layer_norm_epsilon"),
        "tie_word_embeddings": "output.weight" not in file.tensors,
    }


def _gpt2_transposes(file: GGUFFile, name: str, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """GPT-2 keeps its matrices as [in, out]; GGUF has [out, in] throughout."""
    return values.T if name.startswith("blk.") and values.ndim == 2 else values


ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture(_llama_config, _TOP, _weights(_PROJECTIONS, _NORMS, biased=True), _unpermute),
    "qwen2": Architecture(_qwen_config("qwen2"), _TOP, _weights(_PROJECTIONS, _NORMS, biased=True)),
    "qwen3": Architecture(_qwen_config("qwen3"), _TOP, _weights(_PROJECTIONS, _NORMS, _QK_NORMS, biased=True)),
    "gemma2": Architecture(_gemma2_config, _TOP, _weights(_PROJECTIONS, _GEMMA_NORMS), _gemma_norms),
    "gemma3": Architecture(_gemma3_config, _TOP, _weights(_PROJECTIONS, _GEMMA_NORMS, _QK_NORMS), _gemma_norms),
    "phi3": Architecture(
        _phi3_config,
        _TOP,
        _weights(
            _NORMS,
            {
                "attn_qkv": "self_attn.qkv_proj",
                "attn_output": "self_attn.o_proj",
                "ffn_up": "mlp.gate_up_proj",
                "ffn_down": "mlp.down_proj",
            },
        ),
    ),
    "gpt2": Architecture(
        _gpt2_config,
        {
            "token_embd.weight": "transformer.wte.weight",
            "position_embd.weight": "transformer.wpe.weight",
            "output_norm.weight": "transformer.ln_f.weight",
            "output_norm.bias": "transformer.ln_f.bias",
            "output.weight": "lm_head.weight",
        },
        _weights(
            {
                "attn_norm": "ln_1",
                "attn_qkv": "attn.c_attn",
                "attn_output": "attn.c_proj",
                "ffn_norm": "ln_2",
                "ffn_up": "mlp.c_fc",
                "ffn_down": "mlp.c_proj",
            },
            biased=True,
        ),
        _gpt2_transposes,
        "transformer.h.",
        transposed=True,
    ),
}
"""llama.cpp's name of an architecture -> how it is read. Mistral, SmolLM2 and TinyLlama files call themselves llama."""
