"""Monitors of other languages through a language server: the names that it offers behind a dot, ``new`` or ``case``.

The server keeps the file in memory, with the text so far inserted; nothing is written to the repository. It is asked
through ``multilspy``, which is imported only here, and only servers that are installed are started: nothing is fetched.
"""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
import weakref
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, ClassVar, Protocol

from unspool.constraints._monitors.base import Answer, Attributes, Cursor, Monitor, Names, Question, Trigger
from unspool.core.errors import Incompatible, InvalidInput

logger = logging.getLogger(__name__)

PROGRAMS = {"java": "jdtls", "rust": "rust-analyzer", "csharp": "OmniSharp", "python": "jedi-language-server"}
"""The program of each language's server, as it is called when installed."""

_LEADS = {"rust": (b".", b"::")}
# Of ``CompletionItemKind`` in the language server protocol.
_KEYWORD = 14
_CONSTRUCTED = frozenset({4, 7, 8, 22})  # constructors, classes, interfaces (an anonymous class may follow), structures
_ENUM_MEMBER = frozenset({20})


class Server(Protocol):
    """What is asked of a server: the part of ``multilspy.SyncLanguageServer`` that is used here."""

    def open_file(self, relative_file_path: str) -> AbstractContextManager[None]: ...

    def get_open_file_text(self, relative_file_path: str) -> str: ...

    def insert_text_at_position(
        self, relative_file_path: str, line: int, column: int, text_to_be_inserted: str
    ) -> Any: ...

    def delete_text_between_positions(self, relative_file_path: str, start: Any, end: Any) -> str: ...

    def request_completions(
        self, file_path: str, line: int, column: int, allow_incomplete: bool = False
    ) -> list[dict[str, Any]]: ...


def installed(language: str, program: str | None = None) -> str:
    """The path of a language's server.

    Raises:
        Incompatible: if it is not installed, or does not start.
    """
    name = program or PROGRAMS[language]
    found = shutil.which(name)
    if found is None:
        raise Incompatible(
            f"no language server for {language} is installed: {name} is not on the path. Install it, or set "
            "server=/path/to/it"
        )
    # A stand-in of a tool manager is on the path also where the server itself was never installed.
    try:
        answer = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Incompatible(f"the language server for {language} at {found} does not start: {error}") from error
    if answer.returncode:
        told = next(iter((answer.stderr or answer.stdout).strip().splitlines()), f"exit code {answer.returncode}")
        raise Incompatible(f"the language server for {language} at {found} does not start: {told}")
    return found


def start(language: str, project: str, program: str | None, limit: float) -> Server:
    """Start a language's server on a repository; it ends with the object.

    Raises:
        Incompatible: if ``multilspy`` or the server is not installed, or it does not come up.
    """
    path = installed(language, program)
    try:
        from multilspy import SyncLanguageServer
        from multilspy.multilspy_config import Language, MultilspyConfig
        from multilspy.multilspy_logger import MultilspyLogger
    except ImportError as error:
        raise Incompatible(
            f"language servers are asked through multilspy, which is not installed ({error}): pip install "
            "'unspool[language-servers]'"
        ) from error
    config = MultilspyConfig(Language(language), server_binary=path)
    server = SyncLanguageServer.create(config, MultilspyLogger(), project, timeout=max(int(limit), 1))
    stack = ExitStack()
    try:
        stack.enter_context(server.start_server())
    except Exception as error:
        raise Incompatible(f"the language server for {language} at {path} does not come up: {error}") from error
    weakref.finalize(server, stack.close)
    started: Server = server
    return started


class Offers:
    """What a language server offers at a place of a file that is being written.

    Args:
        server: a running server.
        project: the repository that it was started on.
        path: the file in it that the text belongs to; it has to exist.

    Raises:
        InvalidInput: if there is no such file.
    """

    def __init__(self, server: Server, project: str, path: str | None) -> None:
        if path is None or not (Path(project) / path).is_file():
            raise InvalidInput(
                f"a language server knows files of its repository: path={path!r} has to name one below {project}"
            )
        self._server = server
        self._path = path

    def names(self, question: Question, kinds: frozenset[int] | None = None) -> Answer | None:
        """The names at a trigger: of some kinds, or all but keywords."""
        line, column = question.position
        names: set[bytes] = set()
        with self._server.open_file(self._path):
            original = self._server.get_open_file_text(self._path)
            try:
                for after in question.variants():
                    self._replace(question.before + after)
                    for item in self._server.request_completions(self._path, line, column, allow_incomplete=True):
                        # What is shown may go on: "push(...)", "name : String".
                        name = re.match(r"[^\W\d][\w$]*", item.get("completionText", ""))
                        kind = item.get("kind")
                        if name is not None and (kind != _KEYWORD if kinds is None else kind in kinds):
                            names.add(name[0].encode())
            finally:
                self._replace(original)
        return Names(tuple(sorted(names))) if names else None

    def _replace(self, text: str) -> None:
        """Make the server's buffer hold this text, by its last part that differs."""
        now = self._server.get_open_file_text(self._path)
        same = next((place for place, (a, b) in enumerate(zip(now, text, strict=False)) if a != b), None)
        keep = min(len(now), len(text)) if same is None else same
        if keep < len(now):
            self._server.delete_text_between_positions(self._path, _position(now, keep), _position(now, len(now)))
        if keep < len(text):
            place = _position(text, keep)
            self._server.insert_text_at_position(self._path, place["line"], place["character"], text[keep:])


def _position(text: str, offset: int) -> dict[str, int]:
    line = text.count("\n", 0, offset)
    return {"line": line, "character": offset - (text.rfind("\n", 0, offset) + 1)}


class ServerAttributes(Attributes):
    """The names behind a dot (in Rust behind ``::`` too) are those that a language server offers."""

    slug = "attributes"
    languages = frozenset(PROGRAMS)

    def __init__(self, language: str, offers: Offers, merged: bool = False) -> None:
        super().__init__(_LEADS.get(language, (b".",)), merged)
        self._offers = offers

    def analyse(self, question: Question) -> Answer | None:
        return self._offers.names(question)


class ServerNames(Monitor):
    """Behind a keyword a name of some kinds comes."""

    keyword: ClassVar[str]
    kinds: ClassVar[frozenset[int]]

    def __init__(self, offers: Offers) -> None:
        self._offers = offers

    def pre(self, cursor: Cursor) -> Trigger | None:
        if not cursor.scan.in_code:
            return None
        text = cursor.tail()
        if re.search(rf"(?<![\w$.]){self.keyword}$", text):
            return Trigger(len(cursor.data), lead=b" ")
        return Trigger(cursor.word) if re.search(rf"(?<![\w$.]){self.keyword}\s+[\w$]*$", text) else None

    def analyse(self, question: Question) -> Answer | None:
        return self._offers.names(question, self.kinds)


class ServerInstances(ServerNames):
    """Behind ``new`` a class comes that can be constructed there."""

    slug = "instances"
    languages = frozenset({"java", "csharp"})
    keyword = "new"
    kinds = _CONSTRUCTED


class ServerEnumMembers(ServerNames):
    """Behind ``case``, in a switch over an enum, one of its members comes."""

    slug = "enum-members"
    languages = frozenset({"java"})
    keyword = "case"
    kinds = _ENUM_MEMBER
