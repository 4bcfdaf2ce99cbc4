"""From a model's files to the native runtime."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from unspool.core.errors import InvalidInput, WeightsError
from unspool.models import gguf
from unspool.models.borrowed import read_borrowed
from unspool.models.hub import resolve
from unspool.models.native import prepared
from unspool.models.native.families import Shape
from unspool.models.native.library import kernels
from unspool.models.native.native_lm import NativeModel
from unspool.models.native.network import Network
from unspool.models.native.weights import PRECISIONS, GGUFWeights, TensorWeights, Weights, folder_weights
from unspool.models.tokenizer import read_tokenizer, stops

AUTO = "auto"


def load_native(name: str, *, dtype: str = AUTO, progress: bool = True) -> NativeModel:
    """Load a model for the native runtime.

    Args:
        name: as for :func:`unspool.models.load.load_model`.
        dtype: of the weights: ``auto`` for what the file holds (the very blocks of a GGUF file), or one of
            ``float32``, ``bfloat16``, ``float16``, ``int8`` and ``int4``.
        progress: whether to show bars.

    Raises:
        InvalidInput: for a name or dtype that does not exist.
        Incompatible: if the runtime does not run its architecture.
        NoCompiler: if the kernels cannot be built here.
        DownloadError, WeightsError: as for :func:`unspool.models.load.load_model`.
    """
    if dtype not in (AUTO, *PRECISIONS):
        raise InvalidInput(f"dtype is {dtype!r}; the native runtime has {', '.join((AUTO, *PRECISIONS))}")
    kernels()
    source = resolve(name, dtype=gguf.BLOCKS if dtype == AUTO else "float32", progress=progress)
    folder = Path(source.path)
    if dtype == AUTO and source.gguf is not None:
        return _from_blocks(name, folder, source.gguf)
    config = _config(folder)
    shape = Shape.of(config)
    precision = _stored(config) if dtype == AUTO else dtype
    borrowed = read_borrowed(folder)
    if borrowed is None:
        weights = folder_weights(folder, precision)
    else:
        # The tokenizer is the base's as well.
        own, folder = folder, Path(resolve(borrowed.base, progress=progress).path)
        weights = TensorWeights(borrowed.state(own, folder), precision)
    network = _network(shape, weights, name, folder)
    stop_tokens = _stops(folder, config)
    return NativeModel(network, read_tokenizer(name, str(folder)), name, stop_tokens=stop_tokens, precision=precision)


def _from_blocks(name: str, folder: Path, path: Path) -> NativeModel:
    """The model in a GGUF file, its blocks as they are; packed once, and read as packed from then on."""
    kept = prepared.place(folder)
    # Both are read by code that leaves Python free, so they take the time of the longer one.
    with ThreadPoolExecutor(1) as beside:
        reading = beside.submit(read_tokenizer, name, str(folder))
        found = prepared.read(kept)
        if found is None:
            config, file = _config(folder), gguf.read(path)
            shape, stop_tokens = Shape.of(config), _stops(folder, config)
            precision = f"{file.tensors['blk.0.ffn_up.weight'].kind} of {path.name}"
            packing = prepared.Packing(GGUFWeights(file))
            network = _network(shape, packing, name, path)
            packing.write(kept, shape, stop_tokens, precision)
        else:
            stop_tokens, precision = found.stop_tokens, found.precision
            network = _network(found.shape, found.weights, name, kept)
        tokenizer = reading.result()
    return NativeModel(network, tokenizer, name, stop_tokens=stop_tokens, precision=precision)


def _network(shape: Shape, weights: Weights, name: str, place: Path) -> Network:
    try:
        return Network(shape, weights)
    except WeightsError as error:
        raise WeightsError(f"{name} cannot be loaded from {place}: {error}") from error


def _config(folder: Path) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(str(folder)).get_text_config(decoder=True)
    except (OSError, ValueError, KeyError) as error:
        raise WeightsError(f"the configuration in {folder} cannot be read: {error}") from error


def _stored(config: Any) -> str:
    """The precision that a configuration states, if it is one of ours."""
    stored = str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")
    return stored if stored in PRECISIONS else "float32"


def _stops(folder: Path, config: Any) -> frozenset[int]:
    """The tokens that end a text, by the generation config first, then the model's."""
    file = folder / "generation_config.json"
    told = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id") if file.is_file() else None
    return stops(told, getattr(config, "eos_token_id", None))
