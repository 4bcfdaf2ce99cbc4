"""Files that a setting names: by their path, or as part of a trained artefact."""

from __future__ import annotations

from pathlib import Path

from unspool.models.artefacts import find, is_artefact


def source_file(source: str) -> Path:
    """The file of a path, or of ``NAME/FILE`` in an artefact. It need not exist.

    Raises:
        WeightsError: if the artefact was not made on this machine.
    """
    path = Path(source)
    if not path.exists() and is_artefact(source):
        recipe, _, rest = source.partition("/")
        return find(recipe) / rest
    return path
