"""Where prompts come from: those packaged here, the user's own files, and prose that every Python brings along.

A prompt file is JSON Lines, one object a line, with the fields of Spec-Bench:

- ``question_id``: a number or a string, unique in the file;
- ``category``: a word;
- ``turns``: a list of texts, what the user says in turn. Only the first is asked by most experiments.

Further fields are ignored. ``text.jsonl`` (40 questions of everyday chat, five for each of the eight categories that
MT-Bench introduced) and ``code.jsonl`` (40 small programming tasks) are packaged; both were written for this project.
"""

from __future__ import annotations

import ast
import json
import os
import re
import sysconfig
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Protocol, TypeVar

from unspool.core.errors import InvalidInput

BUILTIN = {"builtin-text": "text.jsonl", "builtin-code": "code.jsonl"}

DATA_VARIABLE = "UNSPOOL_DATA"


@dataclass(frozen=True)
class Prompt:
    """One conversation to start: see the module for the fields."""

    id: str
    category: str
    turns: tuple[str, ...]

    @property
    def text(self) -> str:
        """What is asked first."""
        return self.turns[0]


def load_prompts(source: str | Path) -> list[Prompt]:
    """Prompts of a packaged set (``builtin-text``, ``builtin-code``) or of a file.

    Raises:
        InvalidInput: if there is no such set or file, or a line is not a prompt (named with its number).
    """
    if isinstance(source, str) and source in BUILTIN:
        return _parse((resources.files(__package__) / "data" / BUILTIN[source]).read_text(encoding="utf-8"), source)
    path = Path(source)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(
            f"prompts cannot be read from {source}: {error}; give a JSON Lines file, or one of {', '.join(BUILTIN)}"
        ) from error
    return _parse(text, str(path))


def _parse(text: str, source: str) -> list[Prompt]:
    prompts: list[Prompt] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            turns = entry["turns"]
            prompt = Prompt(str(entry["question_id"]), str(entry["category"]), tuple(turns))
            if not turns or isinstance(turns, str) or not all(isinstance(turn, str) and turn for turn in turns):
                raise ValueError("'turns' must be a list of texts that are not empty")
        except (ValueError, KeyError, TypeError) as error:
            what = f"the field {error} is missing" if isinstance(error, KeyError) else str(error)
            raise InvalidInput(
                f"{source}, line {number}: {what}; a line is an object with question_id, category and turns"
            ) from error
        prompts.append(prompt)
    if not prompts:
        raise InvalidInput(f"{source} holds no prompts")
    return prompts


def find_data(filename: str, data: Path | None = None) -> Path | None:
    """A file of the user's data folder, or ``None`` if no folder was named.

    Args:
        filename: what is looked for (``spec_bench.jsonl``).
        data: a folder, or the file itself; by default what the environment variable ``UNSPOOL_DATA`` names.

    Raises:
        InvalidInput: if a place was named and the file is not there.
    """
    named = data if data is not None else (Path(os.environ[DATA_VARIABLE]) if os.environ.get(DATA_VARIABLE) else None)
    if named is None:
        return None
    path = named / filename if named.is_dir() else named
    if not path.is_file():
        raise InvalidInput(f"{named} is no {filename}, nor a folder that holds one (from --data or ${DATA_VARIABLE})")
    return path


class Categorised(Protocol):
    """Anything with a category."""

    @property
    def category(self) -> str: ...


P = TypeVar("P", bound=Categorised)


def spread(prompts: Sequence[P], count: int, fits: Callable[[P], bool] = lambda prompt: True) -> list[P]:
    """``count`` prompts (or all, if fewer) taken from the categories in turn, each in the order of the file.

    Args:
        fits: prompts for which it is false are passed over.
    """
    queues: dict[str, list[P]] = defaultdict(list)
    for prompt in prompts:
        queues[prompt.category].append(prompt)
    waiting = [iter(queue) for queue in queues.values()]
    chosen: list[P] = []
    while waiting and len(chosen) < count:
        for queue in list(waiting):
            taken = next((prompt for prompt in queue if fits(prompt)), None)
            if taken is None:
                waiting.remove(queue)
            elif len(chosen) < count:
                chosen.append(taken)
    return chosen


# -- prose --------------------------------------------------------------------------------------------------------

_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_NOT_LIBRARY = {"test", "tests", "idle_test", "lib2to3", "site-packages", "dist-packages"}
# A paragraph with these is code, a table or a list, not prose.
_NOT_PROSE = re.compile(r">>>|::|^\s*[-*+=~|#@]|\s{3,}|[{}<>\\|_]|\.\.\.|\(\)|--")


def _sources(root: Path) -> Iterator[Path]:
    """The library's files, those of a folder by name before those of its folders, found as they are asked for."""
    for folder, below, files in os.walk(root):
        below[:] = sorted(set(below) - _NOT_LIBRARY)
        yield from (Path(folder, name) for name in sorted(files) if name.endswith(".py"))


def prose(folder: Path | None = None) -> Iterator[tuple[str, str]]:
    """Paragraphs of running text from the docstrings of the standard library, as (file, paragraph), in a fixed order.

    The docstrings of modules, classes and functions are read from the source, nothing is imported. A paragraph is
    joined into one line; what looks like code, a list or a table is left out, and so are the tests and what is
    installed beside the library.

    Args:
        folder: where to look; by default the running Python's standard library.
    """
    root = folder if folder is not None else Path(sysconfig.get_paths()["stdlib"])
    for path in _sources(root):
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            # Some files of the library are broken on purpose.
            continue
        for node in ast.walk(tree):
            text = ast.get_docstring(node) if isinstance(node, _DOCUMENTED) else None
            for paragraph in (text or "").split("\n\n"):
                joined = " ".join(line.strip() for line in paragraph.splitlines()).strip()
                if joined and joined[0].isupper() and not _NOT_PROSE.search(joined):
                    yield path.relative_to(root).as_posix(), joined


def passages(
    encode: Callable[[str], list[int]], count: int, length: int = 32, *, skip: int = 0, folder: Path | None = None
) -> list[list[int]]:
    """The first ``length`` tokens of each of ``count`` paragraphs of prose: beginnings for open-ended continuation.

    Of every file of the library the first paragraph is taken that goes on for at least 8 tokens more, so that a passage
    ends inside of running text. The choice depends on nothing but the library.

    Args:
        encode: text to token ids.
        count: how many.
        length: tokens of each.
        skip: leave out so many first; passages for tuning and for measuring are kept apart by it.
        folder: as in :func:`prose`.

    Raises:
        InvalidInput: if the library has fewer.
    """
    found: list[list[int]] = []
    taken = ""
    for name, paragraph in prose(folder):
        # A token is hardly ever shorter than two characters on average, so most paragraphs need not be encoded.
        if name == taken or len(paragraph) < 2 * length:
            continue
        tokens = encode(paragraph)
        if len(tokens) >= length + 8:
            taken = name
            found.append(tokens[:length])
        if len(found) == skip + count:
            return found[skip:]
    raise InvalidInput(
        f"the standard library's docstrings give {len(found)} passages of {length} tokens; "
        f"{skip + count} were asked for"
    )
