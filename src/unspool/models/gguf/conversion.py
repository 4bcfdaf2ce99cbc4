"""From a GGUF file to a Hugging Face folder, whole or not at all."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unspool.core.errors import InvalidInput, WeightsError
from unspool.models.gguf.architectures import ARCHITECTURES, ROPE_FACTORS, Architecture
from unspool.models.gguf.header import GGUFFile, read
from unspool.models.gguf.vocabulary import build_tokenizer, special_tokens
from unspool.models.storage import disk, draft_of, replace_folder

if TYPE_CHECKING:
    import torch

CONVERTER_VERSION = 1
"""Raised whenever :func:`convert` writes something else for the same file, so that cached folders are made anew."""

DTYPES = ("float32", "bfloat16", "float16")
"""The types that weights can be written in. float32 is exact: it is what the formats are defined to unpack to."""

BLOCKS = "blocks"
"""Instead of a type: the weights stay in the file, for a runtime that reads its blocks; all else is written."""

SHARD_BYTES = 4 * 1024**3
"""Weights are written in files of about this size, so that memory never holds more than one of them."""

NOTES = "unspool.json"
"""Beside the weights: what they were made from, by which version, and the sizes of all files."""


def check_dtype(dtype: str) -> None:
    """Raises InvalidInput for a type that weights cannot be written in."""
    if dtype not in (*DTYPES, BLOCKS):
        raise InvalidInput(f"dtype {dtype!r} is not one that weights can be written in: {', '.join(DTYPES)}.")


def is_converted(folder: Path) -> bool:
    """Whether a folder is what this version of :func:`convert` made of a file, with every file as long as it was."""
    try:
        about = json.loads((folder / NOTES).read_text(encoding="utf-8"))
        files: dict[str, int] = about["files"]
        return about["converter_version"] == CONVERTER_VERSION and all(
            (folder / name).stat().st_size == size for name, size in files.items()
        )
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return False


def converted_bytes(file: GGUFFile, dtype: str = "float32") -> int:
    """Bytes of the weights when written in ``dtype``."""
    check_dtype(dtype)
    if dtype == BLOCKS:
        return 0
    return sum(math.prod(info.shape) for info in file.tensors.values()) * (4 if dtype == "float32" else 2)


def convert(
    path: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    dtype: str = "float32",
    source: Mapping[str, Any] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the model of a GGUF file as a Hugging Face folder, whole or not at all.

    The folder is made beside its final place and renamed at the end: a folder of that name is complete. An older folder
    of that name is replaced.

    Args:
        path: the .gguf file.
        folder: the folder to make.
        dtype: one of :data:`DTYPES`; float32 keeps every value. :data:`BLOCKS` writes no weights.
        source: what ``unspool.json`` in the folder says of where the file came from.
        on_progress: called with (bytes of tensors read, bytes of all tensors).

    Raises:
        WeightsError: the file is damaged, of an architecture that is not known, or its tensors do not fit the network.
        InvalidInput: an unknown dtype.
        DownloadError: no room on the disk.
    """
    check_dtype(dtype)
    file = read(path)
    _check_whole_model(file)
    folder = Path(folder)
    work = draft_of(folder)
    with disk(folder):
        work.mkdir(parents=True)
        try:
            _write_model(file, work, dtype, source or {}, on_progress)
            replace_folder(work, folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return folder


def _check_whole_model(file: GGUFFile) -> None:
    parts = file.metadata.get("split.count", 1)
    if parts > 1:
        raise WeightsError(
            f"{file.path} is one of {parts} parts of a model. Join them first: "
            f"llama-gguf-split --merge {file.path.name} whole.gguf"
        )
    kind = file.metadata.get("general.type", "model")
    if kind != "model":
        raise WeightsError(f"{file.path} holds a {kind}, not a model.")
    if file.architecture not in ARCHITECTURES:
        raise WeightsError(
            f"{file.path} is of architecture {file.architecture!r}. GGUF files are read for: "
            f"{', '.join(sorted(ARCHITECTURES))}. A model's original folder or hub id works for any architecture of "
            "transformers."
        )


def _write_model(
    file: GGUFFile, folder: Path, dtype: str, source: Mapping[str, Any], on_progress: Callable[[int, int], None] | None
) -> None:
    from transformers import AutoConfig, GenerationConfig

    architecture = ARCHITECTURES[file.architecture]
    settings = _settings(file, architecture)
    tokenizer = build_tokenizer(file, file.need("context_length"))
    specials = special_tokens(file)
    stops = specials.stops[0] if len(specials.stops) == 1 else (specials.stops or None)
    tokens = {"bos_token_id": specials.bos, "eos_token_id": stops, "pad_token_id": specials.padding}
    try:
        config = AutoConfig.for_model(**settings, **tokens, dtype="float32" if dtype == BLOCKS else dtype)
    except Exception as error:  # transformers checks each class by rules of its own, and raises what it likes
        reason = " ".join(str(error).split())
        raise WeightsError(f"{file.path} states a network that transformers refuses: {reason}") from error
    parameters = _match(file, architecture, config)

    if dtype != BLOCKS:
        _write_weights(file, architecture, parameters, folder, dtype, on_progress)
    config.save_pretrained(folder)
    GenerationConfig(**tokens).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    about = {
        "converter_version": CONVERTER_VERSION,
        "dtype": dtype,
        "name": file.metadata.get("general.name"),
        "license": file.metadata.get("general.license"),
        "tensor_types": sorted({info.kind for info in file.tensors.values()}),
        **source,
    }
    for weights in folder.glob("*.safetensors"):
        weights.chmod((folder / "config.json").stat().st_mode)  # safetensors makes them private; a cache may be shared
    about["files"] = {item.name: item.stat().st_size for item in sorted(folder.iterdir())}
    (folder / NOTES).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def _settings(file: GGUFFile, architecture: Architecture) -> dict[str, Any]:
    """The network that the metadata tells of."""
    try:
        if not 0 < file.need("block_count") <= len(file.tensors):
            raise WeightsError(
                f"{file.path} is damaged: it has {len(file.tensors)} tensors for {file.need('block_count')} blocks."
            )
        return architecture.config(file)
    except (TypeError, ValueError, ArithmeticError, AttributeError) as error:
        # A value of the wrong type or size, in a header that is otherwise well-formed.
        raise WeightsError(f"{file.path} is damaged: its metadata describes no network ({error}).") from error


def _match(file: GGUFFile, architecture: Architecture, config: Any) -> dict[str, str]:
    """Tensor of the file -> parameter of the network, after checking that they fit one to one.

    Sets ``config.architectures``, which the network's class tells.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(config)
    config.architectures = [type(network).__name__]
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    tied = set(getattr(network, "all_tied_weights_keys", None) or {}) if config.tie_word_embeddings else set()

    names = {name: architecture.parameter(name) for name in file.tensors if name not in ROPE_FACTORS}
    if unknown := [name for name, parameter in names.items() if parameter not in wanted]:
        raise WeightsError(
            f"{file.path} holds tensors that a {config.model_type} network has no place for: {_some(unknown)}."
        )
    matched = {name: parameter for name, parameter in names.items() if parameter is not None}
    if missing := sorted(wanted.keys() - set(matched.values()) - tied):
        raise WeightsError(f"{file.path} lacks tensors that a {config.model_type} network needs: {_some(missing)}.")
    for name, parameter in matched.items():
        shape, need = file.tensors[name].shape, wanted[parameter]
        if shape != need and not (architecture.transposed and shape == need[::-1]):
            raise WeightsError(
                f"{file.path} is damaged: tensor {name} has shape {list(shape)}, and {parameter} needs {list(need)}."
            )
    return matched


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _write_weights(
    file: GGUFFile,
    architecture: Architecture,
    parameters: Mapping[str, str],
    folder: Path,
    dtype: str,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    """Dequantise tensor by tensor and write safetensors, in several files when there is more than SHARD_BYTES."""
    import numpy as np
    import torch

    done, total = 0, sum(file.tensors[name].nbytes for name in parameters)
    shard: dict[str, torch.Tensor] = {}
    shards: list[tuple[Path, list[str]]] = []
    size = all_bytes = 0

    def flush() -> None:
        nonlocal shard, size
        target = folder / f"part-{len(shards)}.safetensors"
        _save(shard, target)
        shards.append((target, list(shard)))
        shard, size = {}, 0

    for name, parameter in parameters.items():
        values = architecture.undo(file, name, file.array(name))
        # `array` may be a view of the file, which must not become a tensor that can be written to.
        tensor = torch.from_numpy(np.array(values, np.float32, order="C")).to(getattr(torch, dtype))
        if size and size + tensor.nbytes > SHARD_BYTES:
            flush()
        shard[parameter] = tensor
        size += tensor.nbytes
        all_bytes += tensor.nbytes
        done += file.tensors[name].nbytes
        if on_progress is not None:
            on_progress(done, total)
    flush()
    if len(shards) == 1:
        shards[0][0].rename(folder / "model.safetensors")
        return
    places = {}
    for number, (written, members) in enumerate(shards, start=1):
        final = f"model-{number:05}-of-{len(shards):05}.safetensors"
        written.rename(folder / final)
        places.update(dict.fromkeys(members, final))
    index = {"metadata": {"total_size": all_bytes}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _save(tensors: dict[str, torch.Tensor], target: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(tensors, target, metadata={"format": "pt"})
    except SafetensorError as error:
        # safetensors writes in Rust and tells the system's error in words only.
        if match := re.search(r"os error (\d+)", str(error)):
            raise OSError(int(match.group(1)), os.strerror(int(match.group(1)))) from error
        raise
