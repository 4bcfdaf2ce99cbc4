from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.constraints.watched import model, ok

from unspool.constraints._monitors.servers import (
    Offers,
    ServerAttributes,
    ServerEnumMembers,
    ServerInstances,
    installed,
    start,
)
from unspool.constraints.monitor_guided_decoding import MonitorGuidedDecoding, MonitorSettings
from unspool.core.compose import compose
from unspool.core.decode import Greedy
from unspool.core.errors import Incompatible, InvalidInput
from unspool.core.sockets import Setup


def test_a_server_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Incompatible, match="no language server for java is installed: jdtls"):
        compose(model(""), "monitor-guided-decoding", settings={"language": "java"})
    stand_in = tmp_path / "rust-analyzer"
    stand_in.write_text("#!/bin/sh\necho 'not in this toolchain' >&2\nexit 1\n")
    stand_in.chmod(0o755)
    with pytest.raises(Incompatible, match="does not start: not in this toolchain"):
        installed("rust")


class FakeServer:
    """Speaks the part of ``multilspy.SyncLanguageServer`` that is used; offers what a file declares as ``has x``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.buffers: dict[str, str] = {}
        self.seen: list[str] = []

    @contextmanager
    def open_file(self, path: str) -> Iterator[None]:
        self.buffers[path] = (self.root / path).read_text()
        yield
        assert self.buffers.pop(path) == (self.root / path).read_text(), "the insertion was not undone"

    def get_open_file_text(self, path: str) -> str:
        return self.buffers[path]

    def _offset(self, path: str, line: int, column: int) -> int:
        lines = self.buffers[path].split("\n")
        assert column <= len(lines[line])
        return sum(len(row) + 1 for row in lines[:line]) + column

    def insert_text_at_position(self, path: str, line: int, column: int, text: str) -> None:
        at = self._offset(path, line, column)
        self.buffers[path] = self.buffers[path][:at] + text + self.buffers[path][at:]

    def delete_text_between_positions(self, path: str, start: Any, end: Any) -> str:
        first, last = (self._offset(path, at["line"], at["character"]) for at in (start, end))
        text = self.buffers[path]
        self.buffers[path] = text[:first] + text[last:]
        return text[first:last]

    def request_completions(self, path: str, line: int, column: int, allow_incomplete: bool = False) -> Any:
        text = self.buffers[path]
        self.seen.append(text)
        assert text[: self._offset(path, line, column)].endswith((".", "::", "new ", "case "))
        names = re.findall(r"has (\w+)", text)
        # Only where brackets are balanced the server understands all of it.
        if text.count("(") != text.count(")"):
            names = names[:1]
        kinds = {"C": 7, "I": 8, "E": 20}
        return [{"completionText": f"{name}(int x) : String", "kind": kinds.get(name[0], 2)} for name in names] + [
            {"completionText": "return", "kind": 14}
        ]


def test_a_language_server(tmp_path: Path) -> None:
    (tmp_path / "A.java").write_text("class A {}\n")
    server = FakeServer(tmp_path)
    monitor = ServerAttributes("java", Offers(server, str(tmp_path), "A.java"))
    part = MonitorGuidedDecoding(MonitorSettings(language="java", after="\n}\n"), monitors=[monitor])
    lm = model("", longer=[])
    part.bind(Setup(lm, Greedy()))
    text = "// has getName has size$\nclass A { void f() { x(this."
    assert ok(part, lm, text, "getName()")
    assert ok(part, lm, text, "size$;") is False, "the declaration names 'size'"
    assert ok(part, lm, text, "size()")
    assert not ok(part, lm, text, "return")
    assert not ok(part, lm, text, "length")
    assert len(server.seen) == 2
    assert server.seen[0] == text + "\n}\n"
    assert server.seen[1] == text + ")}}\n}\n"


def test_a_real_server(tmp_path: Path) -> None:
    """jedi's own language server, through multilspy, where both are installed."""
    pytest.importorskip("multilspy")
    if shutil.which("jedi-language-server") is None:
        pytest.skip("jedi-language-server is not installed")
    (tmp_path / "shop.py").write_text(
        "class Basket:\n    def add_item(self, name): ...\n    def total_price(self): ...\n"
    )
    (tmp_path / "use.py").write_text("")
    server = start("python", str(tmp_path), "jedi-language-server", 30)
    monitor = ServerAttributes("python", Offers(server, str(tmp_path), "use.py"))
    part = MonitorGuidedDecoding(MonitorSettings(), monitors=[monitor])
    lm = model("", longer=[])
    part.bind(Setup(lm, Greedy()))
    text = "from shop import Basket\nbasket = Basket()\nbasket."
    assert ok(part, lm, text, "add_item(1)")
    assert ok(part, lm, text, "total_price()")
    assert not ok(part, lm, text, "total()")
    assert not ok(part, lm, text, "remove_item")
    assert (tmp_path / "use.py").read_text() == "", "the server's buffer is no file"


def test_rust_paths_trigger_too(tmp_path: Path) -> None:
    (tmp_path / "a.rs").write_text("")
    part = MonitorGuidedDecoding(
        MonitorSettings(language="rust"),
        monitors=[ServerAttributes("rust", Offers(FakeServer(tmp_path), str(tmp_path), "a.rs"))],
    )
    lm = model("", longer=[])
    part.bind(Setup(lm, Greedy()))
    assert ok(part, lm, "// has new\nlet v: Vec<'a> = Vec::", "new()")
    assert not ok(part, lm, "// has new\nlet v = Vec::", "old()")


def test_a_server_needs_a_file_of_the_repository(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"path='B.java' has to name one"):
        Offers(FakeServer(tmp_path), str(tmp_path), "B.java")


def test_what_new_and_case_are_followed_by(tmp_path: Path) -> None:
    (tmp_path / "A.java").write_text("class A {}\n")
    offers = Offers(FakeServer(tmp_path), str(tmp_path), "A.java")
    part = MonitorGuidedDecoding(
        MonitorSettings(language="java"), monitors=[ServerInstances(offers), ServerEnumMembers(offers)]
    )
    lm = model("", longer=[b" Circle", b" Enough", b" size"])
    part.bind(Setup(lm, Greedy()))
    has = "// has size has Circle has Iterable has Enough\n"
    for text, then, good in [
        ("x = new", " Circle()", True),
        ("x = new ", "Iterable()", True),
        ("x = new", " size()", False),
        ("x = new ", "Enough()", False),
        ("x = new ", "Circles()", False),
        ("x = renew", " size", True),
        ("switch (x) { case", " Enough:", True),
        ("switch (x) { case ", "Circle", False),
    ]:
        assert ok(part, lm, has + text, then) == good, (text, then)


def test_monitors_of_a_language() -> None:
    with pytest.raises(InvalidInput, match="no monitor 'instances' for rust; there are: attributes"):
        compose(model(""), "monitor-guided-decoding", settings={"monitors": "instances", "language": "rust"})
