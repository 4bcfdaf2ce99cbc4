"""The roofline of decoding: bytes that a token must read, over the bytes that memory gives in a second.

Every token reads each weight and the whole cache once, and computes next to nothing with them: no program can be faster
than memory delivers them (Williams et al., Roofline: An Insightful Visual Performance Model, 2009; Pope et al.,
Efficiently Scaling Transformer Inference, 2022). Speculation passes this limit because one pass commits several tokens:
it is a limit of passes, and of tokens for those that decode token by token.

Weights count as they lie in the file, which is what a program has to read at least without changing the model, and as
our own run holds them.
"""

from __future__ import annotations

import json
import math
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unspool.core.errors import WeightsError

if TYPE_CHECKING:
    from unspool.models.hub import ModelSource

_ARRAY_BYTES = 512 * 2**20
"""Far more than caches of processors hold."""

_SECONDS = 1.0
"""Spent on each way of reading, at least."""

_EMBEDDINGS = {"token_embd", "embed_tokens", "wte", "embed_in"}
_HEADS = {"output", "lm_head", "embed_out"}
"""Names of the tensors in GGUF files and in the networks of transformers, without what is before and behind."""

_SIZES = {"float64": 8.0, "float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "int8": 1.0, "int4": 0.5}


@dataclass(frozen=True)
class Form:
    """One way in which weights are held, and the limit that follows.

    Args:
        weights: in words.
        weight_bytes: read for a token.
        kv_bytes: of the cache, read for a token in the middle of the answers.
        bytes: both.
        tokens_per_second: the limit.
    """

    weights: str
    weight_bytes: int
    kv_bytes: int
    bytes: int
    tokens_per_second: float


def roofline(
    source: ModelSource, threads: int, context: float, *, dtype: str = "auto", bandwidth: float | None = None
) -> dict[str, Any]:
    """The limit for a model on this machine, as plain data.

    Args:
        source: where the weights lie.
        threads: of the CPU.
        context: tokens that a token attends to, on average over a run.
        dtype: of the weights in our own run; ``auto``: as they are stored.
        bandwidth: bytes a second; measured if it is not given.

    Returns:
        ``bandwidth`` (bytes a second), ``threads``, ``context``, and ``forms``: the weights as stored and as loaded.

    Raises:
        WeightsError: if the file of the weights cannot be read.
    """
    if bandwidth is None:
        bandwidth = measure_bandwidth(threads)
    config = json.loads((Path(source.path) / "config.json").read_text(encoding="utf-8"))
    config = config.get("text_config", config)
    elements, stored, name = read_for_a_token(source)
    forms = {f"as stored ({name})": (stored, kv_bytes(config, context, 2))}
    if dtype in _SIZES:
        loaded = int(elements * _SIZES[dtype])
        forms[f"as loaded ({dtype})"] = loaded, kv_bytes(config, context, max(2, int(_SIZES[dtype])))
    return {
        "bandwidth": bandwidth,
        "threads": threads,
        "context": round(context, 1),
        "forms": [
            asdict(Form(weights, held, cache, held + cache, bandwidth / (held + cache)))
            for weights, (held, cache) in forms.items()
        ],
    }


def kv_bytes(config: Mapping[str, Any], context: float, size: int) -> int:
    """Bytes of keys and values that one token attends to.

    Args:
        config: of the network, as transformers names its fields.
        context: tokens attended to.
        size: bytes of an element; 2 is what programs that keep weights in few bits use.
    """
    heads = config.get("num_attention_heads", config.get("n_head", 0))
    width = config.get("hidden_size", config.get("n_embd", 0))
    kept = config.get("num_key_value_heads") or heads
    head = config.get("head_dim") or (width // heads if heads else 0)
    layers = config.get("num_hidden_layers", config.get("n_layer", 0))
    return int(2 * layers * kept * head * context * size)


def read_for_a_token(source: ModelSource) -> tuple[int, int, str]:
    """Weights that a token reads: their number, their bytes in the file, and the format of most of them.

    Of the input embeddings a token reads one row, unless they are the head as well.

    Raises:
        WeightsError: if there is no file of weights whose header can be read.
    """
    tensors = _gguf_tensors(source.gguf) if source.gguf is not None else _safetensors(Path(source.path))
    if not tensors:
        raise WeightsError(f"{source.path} holds no weights whose header can be read (GGUF or safetensors)")
    tied = not any(_module(name) in _HEADS for name in tensors)
    elements = total = 0
    kinds: dict[str, int] = {}
    for name, (shape, held, kind) in tensors.items():
        count = math.prod(shape)
        if _module(name) in _EMBEDDINGS and not tied:
            count, held = count // shape[0], held // shape[0]
        elements += count
        total += held
        kinds[kind] = kinds.get(kind, 0) + held
    return elements, total, max(kinds, key=lambda kind: kinds[kind])


def _module(name: str) -> str:
    """What a tensor belongs to: ``output`` of ``output.weight``, ``attn_output`` of ``blk.0.attn_output.weight``."""
    return name.split(".")[-2] if "." in name else name


def _gguf_tensors(path: Path) -> dict[str, tuple[tuple[int, ...], int, str]]:
    from unspool.models import gguf

    return {name: (info.shape, info.nbytes, info.kind) for name, info in gguf.read(path).tensors.items()}


def _safetensors(folder: Path) -> dict[str, tuple[tuple[int, ...], int, str]]:
    """From the headers alone: the length of a JSON text in 8 bytes, then the text."""
    found: dict[str, tuple[tuple[int, ...], int, str]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        for name, told in header.items():
            if name != "__metadata__":
                begin, end = told["data_offsets"]
                found[name] = (tuple(told["shape"]) or (1,), end - begin, told["dtype"])
    return found


def measure_bandwidth(threads: int, *, size: int = _ARRAY_BYTES, seconds: float = _SECONDS) -> float:
    """Bytes that memory gives in a second, read by ``threads`` threads: the best of several ways and repetitions.

    A sum, a product with a vector (what decoding does) and a maximum over an array that no cache holds. The fastest
    counts, because whatever slows a repetition is not the memory.

    Args:
        threads: of the CPU.
        size: bytes of the array.
        seconds: spent on each way, at least.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        values = torch.ones(size // 4 // 4096, 4096)
        vector = torch.ones(4096)
        ways: list[Callable[[], Any]] = [values.sum, lambda: values @ vector, values.max]
        return values.numel() * 4 / min(_fastest(way, seconds) for way in ways)
    finally:
        torch.set_num_threads(before)


def _fastest(way: Callable[[], Any], seconds: float) -> float:
    way()
    best, spent = math.inf, 0.0
    while spent < seconds:
        began = time.perf_counter()
        way()
        took = time.perf_counter() - began
        best, spent = min(best, took), spent + took
    return best
