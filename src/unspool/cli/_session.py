"""Loading a model and running one request, with everything that a person sees of it."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unspool.cli import _terminal
from unspool.cli._options import Loading
from unspool.core.errors import InvalidInput

if TYPE_CHECKING:
    from unspool.core.compose import Composition
    from unspool.core.events import Event
    from unspool.core.sockets import Reading
    from unspool.core.statistics import Statistics
    from unspool.engine import Engine


def check(method: str, sampling: Mapping[str, Any]) -> None:
    """What can be judged before a model is fetched and loaded.

    Raises:
        UnknownMethod, InvalidInput: as the engine would later.
    """
    from unspool.core.cards import Kind, make_settings
    from unspool.core.registry import registry
    from unspool.sampling.standard import SamplingSettings

    slugs = [slug.strip() for slug in method.split("+") if slug.strip()]
    if not slugs:
        raise InvalidInput(f"--method is {method!r}; give a slug of `unspool methods`")
    if not any(registry[slug].card.kind is Kind.SAMPLER for slug in slugs):
        make_settings(SamplingSettings, sampling, "sampling")


def open_engine(loading: Loading, *, quiet: bool = False) -> Engine:
    """Load a model, with a spinner, or with the bars of the download if it has to be fetched first."""
    with _terminal.working("Starting", quiet=quiet):
        import torch

        from unspool.engine import load
        from unspool.models.hub import is_cached
    if loading.threads is not None:
        torch.set_num_threads(loading.threads)
    fetched = not is_cached(loading.model)
    progress = fetched and not quiet and _terminal.errors().is_terminal
    with _terminal.working(f"Loading {loading.model}", quiet=quiet or fetched):
        return load(
            loading.model, dtype=loading.dtype, device=loading.device, backend=loading.backend, progress=progress
        )


def used_settings(composition: Composition, *, changed_only: bool = False) -> dict[str, dict[str, Any]]:
    """The settings of the parts in use, by slug; with ``changed_only`` those that are not at their defaults."""
    from unspool.core.cards import setting_fields

    used = {}
    for part in composition.parts:
        if hasattr(part, "card") and dataclasses.is_dataclass(part.settings):
            defaults = {field.name: field.default for field in setting_fields(type(part.settings))}
            values = {name: getattr(part.settings, name) for name in defaults}
            used[part.card.slug] = {
                name: _plain(value) for name, value in values.items() if not changed_only or value != defaults[name]
            }
    return used


def _plain(value: Any) -> Any:
    """A setting as JSON can write it: a grammar or a tool by its fields, what has none by its name."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, Sequence | set | frozenset):
        return [_plain(one) for one in value]
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return getattr(value, "__name__", str(value))


@dataclasses.dataclass
class Run:
    """What one request gave, also if it was interrupted."""

    text: str
    tokens: list[int]
    finish_reason: str
    statistics: Statistics
    complete: bool | None = None
    log_probs: list[float] | None = None
    reading: Reading | None = None

    @property
    def interrupted(self) -> bool:
        return self.finish_reason == "interrupted"


def run(
    engine: Engine,
    prompt: list[int],
    method: str,
    watch: Callable[[Event, float], None],
    **options: Any,
) -> Run:
    """Decode one prompt; ``watch`` is given every event with the seconds since the start.

    Ctrl-C ends the run, not the program: what was generated until then is returned.
    """
    from unspool.core.events import Finished, Stepped
    from unspool.core.statistics import Statistics

    statistics = Statistics()
    tokens: list[int] = []
    pieces: list[str] = []
    reason, complete, last = "interrupted", None, None
    began = time.perf_counter()
    try:
        for event in engine.events([prompt], method, **options):
            elapsed = time.perf_counter() - began
            statistics.update(event, elapsed)
            if isinstance(event, Stepped):
                pieces.append(event.text)
                if event.branch == 0:  # of a search only the end tells which branch is the answer
                    tokens.extend(event.tokens)
            elif isinstance(event, Finished):
                pieces.append(event.text)
                tokens, reason, complete, last = list(event.tokens), event.reason, event.complete, event
            watch(event, elapsed)
    except KeyboardInterrupt:
        if reason == "interrupted":
            statistics.update(Finished(0, reason, tuple(tokens)), time.perf_counter() - began)
    log_probs = None if last is None or last.log_probs is None else list(last.log_probs)
    reading = None if last is None else last.reading
    return Run("".join(pieces), tokens, reason, statistics, complete, log_probs, reading)


@contextlib.contextmanager
def learning(composition: Composition, folder: Path | None, *, quiet: bool) -> Iterator[None]:
    """Begin with what the parts have learned before, as ``folder`` has it, and write it back at the end.

    Raises:
        InvalidInput: if the parts learn nothing, or ``folder`` is a file.
        WeightsError, Incompatible: if a file in it cannot be used or written.
    """
    if folder is not None:
        if not composition.learned:
            raise InvalidInput(f"{composition} learns nothing between requests: leave --learned out")
        if folder.exists() and not folder.is_dir():
            raise InvalidInput(f"--learned {folder} is a file; give a folder")
        composition.load_learned(folder)
    yield
    if folder is not None:
        composition.save_learned(folder)
        if not quiet:
            _terminal.errors().print(f"learned: {folder}", style="dim", markup=False, soft_wrap=True)


def write_text(event: Event, elapsed: float) -> None:
    """Stream the text of an event to standard output."""
    if text := getattr(event, "text", ""):
        _terminal.stream(text)


def ignore(event: Event, elapsed: float) -> None:
    """Watch nothing."""
