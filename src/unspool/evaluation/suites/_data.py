"""Where the data of a suite comes from: a path, a folder named once for all, or a hub."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unspool.core.errors import InvalidInput
from unspool.evaluation.prompts import DATA_VARIABLE

Record = dict[str, Any]


@dataclass(frozen=True)
class Hub:
    """A data set as the ``datasets`` library names it.

    Args:
        path: of the data set, or ``json`` for files.
        name: of its configuration.
        split: which part.
        files: addresses, where ``path`` is ``json``.
    """

    path: str
    split: str
    name: str | None = None
    files: str | None = None


def find(suite: str, names: Sequence[str], data: Path | None) -> Path | None:
    """The file (or folder) that holds a suite's data, or ``None`` if no place was named or ``UNSPOOL_DATA`` lacks it.

    Args:
        suite: its name, for messages.
        names: what the file may be called, patterns allowed, in order of preference.
        data: what the user named: the file itself, or a folder that holds it.

    Raises:
        InvalidInput: if ``data`` is not there or holds nothing that fits, or several files fit one pattern.
    """
    if data is not None:
        if data.is_file():
            return data
        if not data.is_dir():
            raise InvalidInput(f"--data {data}: there is no such file or folder")
        if (found := _in(suite, names, data)) is None:
            raise InvalidInput(f"--data {data} holds none of {', '.join(names)}, which {suite} reads")
        return found
    folder = os.environ.get(DATA_VARIABLE)
    if not folder:
        return None
    if not Path(folder).is_dir():
        raise InvalidInput(f"{DATA_VARIABLE} is {folder}, which is no folder")
    return _in(suite, names, Path(folder))


def _in(suite: str, names: Sequence[str], folder: Path) -> Path | None:
    for name in names:
        fitting = sorted(folder.glob(name))
        if len(fitting) > 1:
            raise InvalidInput(
                f"several files in {folder} could be {suite}: {', '.join(p.name for p in fitting)}; name one: --data"
            )
        if fitting:
            return fitting[0]
    return None


def there(suite: str, names: Sequence[str]) -> str | None:
    """Where the data of a suite lies that needs no hub, for lists; ``None`` if nowhere, or it is unclear where."""
    try:
        found = find(suite, names, None)
    except InvalidInput:
        return None
    return None if found is None else str(found)


def records(suite: str, names: Sequence[str], hub: Hub, data: Path | None) -> Iterator[tuple[str, Record]]:
    """The records of a data set, each with where it stands (file and line), for messages.

    Raises:
        InvalidInput: if the data is not to be had, naming all three ways to have it; or a line is no JSON object.
    """
    path = find(suite, names, data)
    if path is not None:
        yield from read_records(path)
        return
    yield from ((f"{hub.path}[{number}]", row) for number, row in enumerate(from_hub(suite, names, hub)))


def from_hub(suite: str, names: Sequence[str], hub: Hub) -> list[Record]:
    """All rows of a data set through the ``datasets`` library.

    Raises:
        InvalidInput: if the library is not installed or cannot have it; names the other two ways as well.
    """
    ways = (
        f"no data for {suite}. Three ways to have it: --data PATH (a file, or a folder with {' or '.join(names[:2])}); "
        f"the environment variable {DATA_VARIABLE} (such a folder); or the datasets library where a hub is reachable "
        '(pip install "unspool[datasets]")'
    )
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise InvalidInput(f"{ways}. That library is not installed here.") from error
    options: dict[str, Any] = {"split": hub.split}
    if hub.files is not None:
        options["data_files"] = {hub.split: hub.files}
    try:
        return [dict(row) for row in datasets.load_dataset(hub.path, hub.name, **options)]
    except Exception as error:
        raise InvalidInput(f"{ways}. That library says: {type(error).__name__}: {str(error)[:300]}") from error


def read_text(path: Path) -> str:
    """A text file, gzip allowed.

    Raises:
        InvalidInput: if it cannot be read as UTF-8 text.
    """
    try:
        raw = path.read_bytes()
        return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} cannot be read as text: {error}") from error


def read_records(path: Path) -> Iterator[tuple[str, Record]]:
    """The objects of a JSON Lines file, or of a JSON file that holds a list of them.

    Raises:
        InvalidInput: if it cannot be read, or a line is no JSON object (named with its number).
    """
    text = read_text(path)
    if path.name.removesuffix(".gz").endswith(".json"):
        try:
            whole = json.loads(text)
        except ValueError as error:
            raise InvalidInput(f"{path} is not JSON: {error}") from error
        rows = whole if isinstance(whole, list) else [whole]
        numbered = [(f"{path}, entry {number}", row) for number, row in enumerate(rows, 1)]
    else:
        numbered = []
        # not splitlines(): U+2028 and its like may stand inside a JSON string
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                try:
                    numbered.append((f"{path}, line {number}", json.loads(line)))
                except ValueError as error:
                    raise InvalidInput(f"{path}, line {number} is not JSON: {error}") from error
    if not numbered:
        raise InvalidInput(f"{path} is empty")
    for where, row in numbered:
        if not isinstance(row, dict):
            raise InvalidInput(f"{where}: an object is expected, not {type(row).__name__}")
        yield where, row


def field(
    record: Record, name: str, kind: type | tuple[type, ...], where: str, check: Callable[[Any], bool] = bool
) -> Any:
    """A field that must be there.

    Raises:
        InvalidInput: if it is missing, of another type, or empty.
    """
    if name not in record:
        raise InvalidInput(f"{where}: the field {name!r} is missing; there are {', '.join(sorted(record)) or 'none'}")
    value = record[name]
    if not isinstance(value, kind) or not check(value):
        raise InvalidInput(f"{where}: {name!r} is {str(value)[:60]!r}, which cannot be used")
    return value


def anything(value: Any) -> bool:
    """Also empty values will do."""
    return True
