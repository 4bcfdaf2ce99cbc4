"""Finds what ``unspool train`` made: small models, tokenizers and data, by the name of their recipe.

An artefact is a folder with a ``card.json``. It lies in the user's cache, one folder for every recipe, version, choice
of settings and state of the data, or in the folder ``zoo`` of a source checkout, where the small ones are committed::

    artefacts/NAME/KEY/     below the cache folder (UNSPOOL_CACHE); KEY is a hash of recipe, settings and data
    zoo/NAME/               at the top of the repository; an installed wheel has none

A part of an artefact is named behind a slash: ``stdlib-pair/target``.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unspool.core.errors import InvalidInput, WeightsError
from unspool.models.storage import cache_dir

CARD = "card.json"
_PACKAGE = Path(__file__).resolve().parents[1]


def zoo_dir() -> Path | None:
    """The repository's folder of committed artefacts; ``None`` where the package does not lie in a checkout."""
    root = _PACKAGE.parents[1]
    return root / "zoo" if (root / "zoo").is_dir() and (root / "pyproject.toml").is_file() else None


def recipe_names() -> list[str]:
    """The names that can be made. Read from the names of files: the recipes themselves stand above this room."""
    folder = _PACKAGE / "training" / "recipes"
    return sorted(file.stem.replace("_", "-") for file in folder.glob("*.py") if not file.stem.startswith("_"))


def is_artefact(name: str) -> bool:
    """Whether a name, or its part before the slash, is that of a recipe."""
    return name.split("/")[0] in recipe_names()


def read_card(folder: Path) -> dict[str, Any]:
    """What ``unspool train`` wrote about an artefact: recipe, version, key, settings, sizes, measured quality.

    Raises:
        WeightsError: if there is no card, or it cannot be read.
    """
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"{folder} is not an artefact, or is damaged: its {CARD} cannot be read ({error})"
        ) from error
    if not isinstance(card, dict) or "recipe" not in card or "version" not in card:
        raise WeightsError(f"{folder} is damaged: its {CARD} names no recipe and version")
    return card


def cached_folder(name: str, key: str) -> Path:
    """Where the cache keeps the artefact of that recipe and key. It need not exist."""
    return cache_dir() / "artefacts" / name / key


def made(name: str) -> Iterator[Path]:
    """Every folder that holds the artefact: those of the cache, the last made first, then the repository's."""
    folders = (cache_dir() / "artefacts" / name).glob(f"[!.]*/{CARD}")
    # A rename keeps the time at which the card was written, so this is the order in which they were made.
    yield from (card.parent for card in sorted(folders, key=lambda card: card.stat().st_mtime_ns, reverse=True))
    zoo = zoo_dir()
    if zoo is not None and (zoo / name / CARD).is_file():
        yield zoo / name


def find(name: str) -> Path:
    """The folder of an artefact or of a part of it.

    Of several, that of the newest version of the recipe; of equal versions the cache's before the repository's, and
    of the cache's the one made last.

    Args:
        name: of a recipe (``stdlib-pair``), or of a part (``stdlib-pair/target``).

    Raises:
        InvalidInput: if there is no such recipe, or the artefact has no such part.
        WeightsError: if it has not been made, with the command that makes it; or if its card is damaged.
    """
    recipe, _, part = name.partition("/")
    known = recipe_names()
    if recipe not in known:
        close = difflib.get_close_matches(recipe, known, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise InvalidInput(f"there is no trained artefact {recipe!r}.{hint} Known: {', '.join(known)}")
    # max keeps the first of equals, which is the order of `made`.
    folder = max(made(recipe), key=lambda place: int(read_card(place)["version"]), default=None)
    if folder is None:
        raise WeightsError(f"{recipe} has not been made on this machine; `unspool train {recipe}` makes it")
    if not part:
        return folder
    place = folder / part
    if not place.is_dir() or folder.resolve() not in place.resolve().parents:
        parts = sorted(child.name for child in folder.iterdir() if child.is_dir())
        raise InvalidInput(f"{recipe} has no part {part!r}; it has {', '.join(parts) or 'none'}")
    return place
