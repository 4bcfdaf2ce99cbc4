"""Writes tiny GGUF files the way llama.cpp's converter writes large ones.

Names come from the table of the `gguf` package, values are laid out as convert_hf_to_gguf.py does it: neither is taken
from the code under test.
"""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf.quants import quantize

F32 = gguf.GGMLQuantizationType.F32
Q4_1, Q5_0, Q8_0 = (gguf.GGMLQuantizationType[name] for name in ("Q4_1", "Q5_0", "Q8_0"))
ARCHS = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6


def byte_letters() -> list[str]:
    """GPT-2's spelling of the 256 bytes, in the order of the bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def byte_level_vocabulary(pre: str = "smollm") -> dict[str, Any]:
    """Three special tokens, the bytes, and a few merges."""
    merges = ["h e", "Ġ Ġ", "l l", "he ll", "hell o", "Ġ hello", "Ġ 1", "1 2", "ĠĠ Ġ"]
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *byte_letters(), *(m.replace(" ", "") for m in merges)]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [CONTROL] * 3 + [NORMAL] * (len(tokens) - 3),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
    }


def sentencepiece_vocabulary() -> dict[str, Any]:
    """Special tokens, user-defined runs of spaces, bytes, letters, and pieces with scores."""
    special = ["<pad>", "</s>", "<s>", "<unk>"]
    runs = ["  ", "   ", "<tag>"]
    letters = ["▁", *"abcdeé"]
    pieces = ["ab", "▁a", "▁ab", "bc", "abc", "cd", "▁abc", "de", "bcd", "ee"]
    tokens = [*special, *runs, *(f"<0x{byte:02X}>" for byte in range(256)), *letters, *pieces]
    scores = [-1000.0] * 7 + [0.0] * 256 + [-100.0 - i for i in range(len(letters))]
    scores += [-float(i) for i in range(len(pieces))]
    types = [CONTROL] * 3 + [UNKNOWN] + [USER_DEFINED] * 3 + [BYTE] * 256 + [NORMAL] * (len(letters) + len(pieces))
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_space_prefix": False,
    }


def metadata_of(arch: str, config: Any) -> dict[str, Any]:
    """What llama.cpp's converter states of a network."""
    if arch == "gpt2":
        return {
            "gpt2.block_count": config.n_layer,
            "gpt2.context_length": config.n_positions,
            "gpt2.embedding_length": config.n_embd,
            "gpt2.feed_forward_length": config.n_inner,
            "gpt2.attention.head_count": config.n_head,
            "gpt2.attention.layer_norm_epsilon": config.layer_norm_epsilon,
        }
    rope = config.rope_parameters
    stated = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": float(rope.get("full_attention", rope)["rope_theta"]),
    }
    if getattr(config, "head_dim", None):
        stated["attention.key_length"] = stated["attention.value_length"] = config.head_dim
    if arch.startswith("gemma"):
        stated["attention.sliding_window"] = config.sliding_window
    if arch == "gemma2":
        stated["attn_logit_softcapping"] = float(config.attn_logit_softcapping)
        stated["final_logit_softcapping"] = float(config.final_logit_softcapping)
    if arch == "phi3":
        head_dim = config.hidden_size // config.num_attention_heads
        stated["rope.dimension_count"] = int(head_dim * rope["partial_rotary_factor"])
        stated["rope.scaling.original_context_length"] = config.original_max_position_embeddings
        if config.sliding_window:
            stated["attention.sliding_window"] = config.sliding_window
    return {f"{arch}.{key}": value for key, value in stated.items()}


def laid_out(arch: str, config: Any, name: str, values: np.ndarray) -> np.ndarray:
    """A parameter's values as llama.cpp's converter writes them."""
    if arch == "llama" and ("q_proj" in name or "k_proj" in name):
        heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
        halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
        return halves.swapaxes(1, 2).reshape(values.shape)
    if arch.startswith("gemma") and name.endswith("norm.weight"):
        return values + 1
    if arch == "gpt2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
        return values.T
    return values


def tensors_of(arch: str, network: Any, kind: gguf.GGMLQuantizationType = F32) -> dict[str, Any]:
    """Tensor name -> (values or blocks, kind); matrices become blocks of ``kind``."""
    config = network.config
    names = gguf.get_tensor_name_map(ARCHS[arch], config.num_hidden_layers)
    tied = set(network.all_tied_weights_keys) if config.tie_word_embeddings else set()
    tensors = {}
    for name, parameter in network.state_dict().items():
        if name in tied:
            continue
        values = laid_out(arch, config, name, parameter.float().numpy())
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert target is not None, name
        of = kind if values.ndim == 2 and "embd" not in target else F32
        tensors[target] = (quantize(np.ascontiguousarray(values), of) if of != F32 else values, of)
    return tensors


def write(path: Path, arch: str, metadata: dict[str, Any], tensors: dict[str, Any]) -> Path:
    writer = gguf.GGUFWriter(path, arch)
    for key, value in metadata.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        if isinstance(value, list):
            writer.add_array(key, value)
        else:
            add[type(value)](key, value)
    for name, (values, kind) in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(values), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def randomise(network: Any, seed: int = 0) -> Any:
    """All weights random, norms and biases too: an untouched one would hide a mistake."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return network.eval()


def tiny_llama(vocabulary: int, **changes: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    settings: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 50000.0},
        "tie_word_embeddings": True,
    }
    return randomise(LlamaForCausalLM(LlamaConfig(**settings | changes)))


def write_tiny_llama(path: Path, kind: gguf.GGMLQuantizationType = F32, **changes: Any) -> Any:
    """Writes a tiny Llama with the byte-level vocabulary and returns its network."""
    vocabulary = byte_level_vocabulary()
    network = tiny_llama(len(vocabulary["tokenizer.ggml.tokens"]))
    metadata = metadata_of("llama", network.config) | vocabulary | {"general.license": "mit"} | changes
    metadata = {key: value for key, value in metadata.items() if value is not None}
    write(path, "llama", metadata, tensors_of("llama", network, kind))
    return network
