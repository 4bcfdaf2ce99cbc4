"""Options that several commands share. Flags of the sampler are made from its settings."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from unspool.cli import _declared
from unspool.core.errors import InvalidInput
from unspool.models.catalogue import CATALOGUE

DEFAULT_MODEL: str = next(iter(CATALOGUE))
DEFAULT_METHOD: str = _declared.constant("engine.py", "DEFAULT_METHOD")
DTYPES = ("auto", "float32", "bfloat16", "float16", "float64", "int8", "int4")
BACKENDS = ("auto", "native", "transformers")

SAMPLING, RUNNING, SHOWING = "Sampling", "Model and machine", "Output"


def complete_model(incomplete: str) -> list[tuple[str, str]]:
    return [(name, model.description) for name, model in CATALOGUE.items() if name.startswith(incomplete)]


def complete_method(incomplete: str) -> list[tuple[str, str]]:
    before, plus, last = incomplete.rpartition("+")
    return [(before + plus + slug, name) for slug, name in _declared.methods() if slug.startswith(last)]


def complete_dtype(incomplete: str) -> list[str]:
    return [dtype for dtype in DTYPES if dtype.startswith(incomplete)]


def complete_backend(incomplete: str) -> list[str]:
    return [backend for backend in BACKENDS if backend.startswith(incomplete)]


Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="A packaged model, a Hugging Face id, a folder or a GGUF file.",
        autocompletion=complete_model,
        rich_help_panel=RUNNING,
    ),
]
Method = Annotated[
    str,
    typer.Option(
        "--method", "-M", help="A slug of `unspool methods`; join several with +.", autocompletion=complete_method
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        "-s",
        metavar="KEY=VALUE",
        help="A setting of a method in use; `slug.key=value` if two have it. Repeatable.",
    ),
]
Draft = Annotated[
    str | None,
    typer.Option(
        "--draft",
        help="A second model, for methods that draft with one.",
        autocompletion=complete_model,
        metavar="MODEL",
    ),
]
MaxNewTokens = Annotated[int, typer.Option("--max-new-tokens", "-n", help="Generated tokens at most.")]
Seed = Annotated[int, typer.Option("--seed", help="Equal seeds give equal runs on one machine.")]
System = Annotated[str | None, typer.Option("--system", help="What the model is told before the conversation.")]
Dtype = Annotated[
    str,
    typer.Option(
        "--dtype",
        help=f"Of the weights: {', '.join(DTYPES)}. `auto` takes what the file holds, blocks of 4 bits as they are.",
        autocompletion=complete_dtype,
        rich_help_panel=RUNNING,
    ),
]
Backend = Annotated[
    str,
    typer.Option(
        "--backend",
        help="The native runtime (Llama, Mistral, Qwen 2 and 3, Gemma 3 on a CPU) or transformers (everything); `auto` "
        "takes the first where it can.",
        autocompletion=complete_backend,
        rich_help_panel=RUNNING,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        help="As torch spells it: cpu, cuda, cuda:1, mps. \\[default: a GPU if there is one]",
        rich_help_panel=RUNNING,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", min=1, help="Threads on the CPU. \\[default: torch's choice]", rich_help_panel=RUNNING),
]


@dataclass(frozen=True)
class Loading:
    """Which model, and how it runs."""

    model: Model = DEFAULT_MODEL
    dtype: Dtype = "auto"
    backend: Backend = "auto"
    device: Device = None
    threads: Threads = None


LOADING = Loading()

Learned = Annotated[
    Path | None,
    typer.Option(
        "--learned",
        help="A folder: start from what the method has learned there, and write it back at the end.",
        metavar="FOLDER",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no statistics.", rich_help_panel=SHOWING)]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.", rich_help_panel=SHOWING)]


def spread(
    command: Callable[..., Any], name: str, flags: Sequence[inspect.Parameter], gather: Callable[..., Any]
) -> Callable[..., Any]:
    """Give a command ``flags`` in the place of its parameter ``name``, which receives what ``gather`` makes of them."""
    signature = inspect.signature(command, eval_str=True)
    own = [flag.replace(kind=inspect.Parameter.POSITIONAL_OR_KEYWORD) for flag in flags]

    @functools.wraps(command)
    def wrapper(**values: Any) -> Any:
        return command(**{name: gather(**{flag.name: values.pop(flag.name) for flag in own})}, **values)

    parameters = [one for given in signature.parameters.values() for one in (own if given.name == name else [given])]
    wrapper.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return wrapper


def loading_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of :class:`Loading` in the place of its parameter ``loading``."""
    return spread(command, "loading", [*inspect.signature(Loading, eval_str=True).parameters.values()], Loading)


def sampling_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command one flag for every setting of the sampler; those that were used arrive in its ``**sampling``."""
    signature = inspect.signature(command, eval_str=True)
    own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    flags = []
    for field in _declared.settings("sampling/standard.py", "SamplingSettings"):
        default = "none" if field.default in (None, "") else field.default  # the bracket is escaped: it is no markup
        option = typer.Option(
            "--" + field.name.replace("_", "-"),
            help=f"{field.help[:1].upper()}{field.help[1:]}. \\[default: {default}]",
            rich_help_panel=SAMPLING,
            show_default=False,
        )
        kind: Any = field.type | None
        flags.append(
            inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, option]
            )
        )
    names = {flag.name for flag in flags}

    @functools.wraps(command)
    def wrapper(**values: Any) -> Any:
        return command(**{name: value for name, value in values.items() if name not in names or value is not None})

    wrapper.__signature__ = signature.replace(parameters=[*own, *flags])  # type: ignore[attr-defined]
    return wrapper


def parse_settings(pairs: list[str] | None) -> dict[str, str]:
    """``--set`` options as a mapping; a later one of the same key counts.

    Raises:
        InvalidInput: for one that is not ``key=value``.
    """
    values = {}
    for pair in pairs or ():
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise InvalidInput(f"--set {pair!r} is not of the form KEY=VALUE (as in --set nodes=16)")
        values[key.strip()] = value.strip()
    return values


def _circuit(file: Path) -> str:
    """A binary AIGER file as the text that stands for it."""
    from unspool.circuits import read_file
    from unspool.circuits.reading import written

    return written(read_file(file).circuit, "aag").decode("ascii")


def read_prompt(prompt: str | None, file: Path | None) -> str:
    """The prompt from the argument, a file, or standard input; one line end at the end of the latter two is dropped.

    Raises:
        InvalidInput: if there is none, or a file cannot be read as text.
    """
    if prompt is None and file is None and sys.stdin.isatty():
        raise InvalidInput("there is no prompt: give one as an argument, with --file, or through a pipe")
    parts = []
    if prompt == "-" or (prompt is None and file is None):
        try:
            parts.append(sys.stdin.read().removesuffix("\n"))
        except UnicodeDecodeError as error:
            raise InvalidInput(f"standard input is not text: {error.reason} at byte {error.start}") from error
    elif prompt is not None:
        parts.append(prompt)
    if file is not None and file.suffix == ".aig":
        parts.append(_circuit(file))
    elif file is not None:
        try:
            parts.append(file.read_text(encoding="utf-8").removesuffix("\n"))
        except OSError as error:
            raise InvalidInput(f"--file {file} cannot be read: {error.strerror or error}") from error
        except UnicodeDecodeError as error:
            raise InvalidInput(f"--file {file} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    return "\n\n".join(parts)


def check_place(path: Path, option: str) -> None:
    """Whether a file can be written there, as far as one can tell before the run that makes it.

    Raises:
        InvalidInput: if it is a folder, or in a folder that does not exist.
    """
    if path.is_dir():
        raise InvalidInput(f"{option} {path} is a folder; name a file")
    if not path.parent.is_dir():
        raise InvalidInput(f"{option} {path}: there is no folder {path.parent}")
