"""Recipes of artefacts, one file a recipe, named after its slug.

A recipe is a function that fills a folder and returns what it measured, with a class of settings, under the decorator
:func:`recipe`. :func:`make` runs it: into a folder of its own, which moves into its place when it is finished and
described by a card, so that an interrupted training leaves nothing.

>>> from unspool.training.recipes import make, recipes
>>> make("stdlib-pair")                                                                           # doctest: +SKIP
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import json
import platform
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers

from unspool.core.cards import make_settings
from unspool.core.errors import InvalidInput
from unspool.models import artefacts
from unspool.models.storage import cache_dir, disk, draft_of, lock, replace_folder, sweep
from unspool.training.progress import Progress

S = TypeVar("S")
Quality = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """Where a recipe works.

    Attributes:
        folder: to be filled with what is kept.
        scratch: for what is not; removed afterwards.
        pieces: for finished pieces of long work: kept when the run is interrupted, so that the next one goes on from
            there. Not made yet.
        progress: bars and messages.
    """

    folder: Path
    scratch: Path
    pieces: Path
    progress: Progress

    def say(self, text: str) -> None:
        self.progress.say(text)


@dataclass(frozen=True)
class Recipe:
    """What everybody may know of a recipe, and how it is run.

    Attributes:
        slug: the name of the artefact.
        summary: one sentence: what is made, and of what.
        version: raised when the recipe changes, so that older artefacts are made anew.
        minutes: about, on one thread of a plain machine.
        megabytes: about, of the finished folder.
        settings: the class of its settings, with a ``seed`` among them.
        data: given the settings, a fingerprint of what the artefact is made of besides them.
        fill: given the settings and a bench, fills its folder and returns the measured quality.
    """

    slug: str
    summary: str
    version: int
    minutes: float
    megabytes: float
    settings: type
    data: Callable[[Any], str]
    fill: Callable[[Any, Bench], Quality]

    def key(self, chosen: Any) -> str:
        """The name of the artefact's folder in the cache: a hash of recipe, settings and data."""
        return _hash([self.slug, self.version, _plain(chosen), self.data(chosen)])[:16]


def recipe(
    slug: str,
    *,
    summary: str,
    minutes: float,
    megabytes: float,
    settings: type[S],
    version: int = 1,
    data: Callable[[S], str] = lambda settings: "",
) -> Callable[[Callable[[S, Bench], Quality]], Recipe]:
    """Decorator: makes ``RECIPE`` out of a module's function. See :class:`Recipe` for the arguments."""

    def make(fill: Callable[[S, Bench], Quality]) -> Recipe:
        if fill.__module__.rpartition(".")[2] != slug.replace("-", "_"):
            raise ValueError(f"the recipe {slug!r} stands in {fill.__module__}; its file must have its name")
        return Recipe(slug, summary, version, minutes, megabytes, settings, data, fill)

    return make


def get(slug: str) -> Recipe:
    """The recipe of that name.

    Raises:
        InvalidInput: with the nearest names, and all of them.
    """
    known = artefacts.recipe_names()
    if slug not in known:
        near = difflib.get_close_matches(slug, known, n=2)
        hint = f"; did you mean {' or '.join(near)}?" if near else "."
        raise InvalidInput(f"there is no recipe {slug!r}{hint} There are: {', '.join(known)}")
    found: Recipe = importlib.import_module(f"{__name__}.{slug.replace('-', '_')}").RECIPE
    return found


def recipes() -> list[Recipe]:
    """All of them, by name."""
    return [get(slug) for slug in artefacts.recipe_names()]


@dataclass(frozen=True)
class Made:
    """An artefact on this machine: its folder, its card, and whether it was there already."""

    folder: Path
    card: dict[str, Any]
    was_there: bool


def make(
    slug: str,
    values: Mapping[str, Any] | None = None,
    *,
    force: bool = False,
    into: Path | None = None,
    progress: Progress | None = None,
) -> Made:
    """Make an artefact, unless the same one lies in the cache.

    Args:
        slug: of the recipe.
        values: settings by name; strings are converted.
        force: make it even so.
        into: a folder in which to put the artefact under its name, instead of the cache.
        progress: where bars and messages go.

    Raises:
        InvalidInput: for an unknown recipe or setting.
        WeightsError: if it needs another artefact that was not made.
        DownloadError: if it needs a model that cannot be fetched, or the disk is full.
    """
    found = get(slug)
    chosen: Any = make_settings(found.settings, values or {}, found.slug)
    show = progress or Progress()
    key = found.key(chosen)
    final = artefacts.cached_folder(slug, key) if into is None else into / slug
    if not force and (final / artefacts.CARD).is_file():
        card = artefacts.read_card(final)
        if card.get("key") == key:
            return Made(final, card, True)
    with lock(f"train-{slug}"), disk(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        sweep(final)
        work, scratch = draft_of(final), draft_of(final)
        pieces = cache_dir() / "pieces" / f"{slug}-{key}"
        work.mkdir()
        scratch.mkdir()
        began = time.perf_counter()
        try:
            quality = found.fill(chosen, Bench(work, scratch, pieces, show))
            card = _card(found, chosen, key, work, quality, time.perf_counter() - began)
            (work / artefacts.CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
            replace_folder(work, final)
            shutil.rmtree(pieces, ignore_errors=True)
        finally:
            shutil.rmtree(work, ignore_errors=True)
            shutil.rmtree(scratch, ignore_errors=True)
    return Made(final, card, False)


def where(found: Recipe) -> Path | None:
    """The folder of an artefact on this machine, or ``None`` if it was not made."""
    return artefacts.find(found.slug) if any(True for _ in artefacts.made(found.slug)) else None


def _card(found: Recipe, chosen: Any, key: str, folder: Path, quality: Quality, seconds: float) -> dict[str, Any]:
    files = {
        file.relative_to(folder).as_posix(): {
            "bytes": file.stat().st_size,
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        }
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    if not files:
        raise ValueError(f"the recipe {found.slug!r} wrote nothing")
    return {
        "recipe": found.slug,
        "version": found.version,
        "key": key,
        "summary": found.summary,
        "seed": getattr(chosen, "seed", None),
        "settings": _plain(chosen),
        "data": found.data(chosen),
        "quality": quality,
        "seconds": round(seconds, 1),
        "files": files,
        "made_with": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "threads": torch.get_num_threads(),
        },
    }


def _plain(chosen: Any) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(asdict(chosen)))
    return plain


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
