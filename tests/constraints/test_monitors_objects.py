"""Monitors of objects: what can be constructed and raised, and which calls are valid in which state."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.constraints.watched import model, ok, python

from unspool.constraints._monitors.flow import states_at
from unspool.constraints._monitors.protocols import PACKAGED, chosen, packaged, read
from unspool.core.compose import compose
from unspool.core.errors import InvalidInput

pytest.importorskip("jedi")

# -- instances --------------------------------------------------------------------------------------------------------

DEFINED = """
import abc
import collections.abc
import enum
from dataclasses import KW_ONLY, dataclass, field
from typing import NamedTuple, Protocol
class Shape(abc.ABC):
    @abc.abstractmethod
    def area(self): ...
    @property
    @abc.abstractmethod
    def name(self): ...
class Half(Shape):
    def area(self): return 1
class Circle(Half):
    name = "circle"
class Mixed(Circle, Shape): ...
class Unwatched:
    @abc.abstractmethod
    def area(self): ...
class Sized(Protocol):
    def size(self): ...
class Box(Sized):
    def size(self): return 1
class Row(collections.abc.Sequence):
    def __len__(self): return 0
class Full(Row):
    def __getitem__(self, place): return 1
class Color(enum.Enum):
    RED = 1
class Broken(ValueError): ...
class Pair(NamedTuple):
    left: int
    right: str = ""
@dataclass
class Point:
    x: int
    y: int = 0
    seen: int = field(init=False)
    _: KW_ONLY
    tags: list = field(default_factory=list)
    z: int
@dataclass(frozen=True)
class Deep(Point):
    w: int = field(kw_only=True)
"""


@pytest.mark.parametrize(
    ("then", "good"),
    [
        ("x = Shape(", False),
        ("x = Shape (", False),
        ("x = Shape", True),
        ("x: Shape = Circle(", True),
        ("x = Half(", False),
        ("x = Circle()", True),
        ("x = Mixed()", True),
        ("x = Unwatched()", True),
        ("x = Sized(", False),
        ("x = Box()", True),
        ("x = Row()", True),  # jedi does not find the source of its base: nothing is claimed
        ("x = Full()", True),
        ("x = collections.abc.Sequence", True),
        ("x = Color(1)", True),
        ("class Late(Shape)", True),
        ("x = isinstance(x, Shape)", True),
        ("class Open(Shape):\n    def copy(self):\n        return Open(", True),
        ("class Open(Shape):\n    def copy(self):\n        return Half(", False),
    ],
)
def test_what_can_be_constructed(then: str, good: bool, tmp_path: Path) -> None:
    part, lm = python("instances", tmp_path=tmp_path)
    assert ok(part, lm, DEFINED, then) == good


@pytest.mark.parametrize(
    ("then", "good"),
    [
        ("Pair(1)", True),
        ("Pair(1, right='')", True),
        ("Pair()", False),
        ("Pair(1, '', 2", False),
        ("Point(1, z=2)", True),
        ("Point(1, 2, tags=[], z=2)", True),
        ("Point(1, 2, 3", False),
        ("Point(1)", False),
        ("Point(1, z=2, seen=", False),
        ("Deep(1, z=2, w=3)", True),
        ("Deep(1, z=2)", False),
    ],
)
@pytest.mark.parametrize("monitor", ["instances", "calls"])
def test_arguments_of_constructors(monitor: str, then: str, good: bool, tmp_path: Path) -> None:
    part, lm = python(monitor, tmp_path=tmp_path)
    assert ok(part, lm, DEFINED, then) == good


def test_only_constructors_are_instances(tmp_path: Path) -> None:
    text = "def plain(a, b): ...\n"
    assert ok(*python("instances", tmp_path=tmp_path), text, "plain(1)")
    assert not ok(*python("calls", tmp_path=tmp_path), text, "plain(1)")


@pytest.mark.parametrize(
    ("text", "then", "good"),
    [
        ("raise", " Broken()", True),
        ("raise ", "ValueError('x')", True),
        ("raise", "\n", True),
        ("raise ", "Color.RED", False),
        ("raise", " int", False),
        ("raised", " = int", True),
        ("error = Broken()\nraise ", "error", True),
        ("raise ", "None", False),
        ("try:\n    pass\nexcept", " (ValueError, Broken):", True),
        ("try:\n    pass\nexcept (ValueError, ", "Circle", False),
        ("try:\n    pass\nexcept ", "str", False),
        ("try:\n    pass\nexcept ", "OSError as e:", True),
    ],
)
def test_what_can_be_raised(text: str, then: str, good: bool, tmp_path: Path) -> None:
    part, lm = python("instances", tmp_path=tmp_path)
    assert ok(part, lm, DEFINED + text, then) == good


def test_classes_of_other_files(tmp_path: Path) -> None:
    (tmp_path / "shapes.py").write_text("from abc import ABC, abstractmethod\n" + DEFINED)
    part, lm = python("instances", tmp_path=tmp_path, path="main.py")
    assert not ok(part, lm, "import shapes\n", "x = shapes.Half(")
    assert ok(part, lm, "import shapes\n", "x = shapes.Circle()")
    assert ok(part, lm, "from shapes import Circle, Shape\n", "class Mine(Shape):\n    def a(self): ...\nx = Circle()")
    assert ok(part, lm, "from nowhere import Shape\n", "x = Shape()")


# -- states along the ways through a function -------------------------------------------------------------------------


def states(text: str, name: str = "file", receiver: str = "f") -> set[str] | None:
    """The states of ``f`` at the end of a text."""
    found = states_at(text, text.rfind("\n") + 1, receiver, packaged()[name])
    return None if found is None else set(found)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("f = open('x')\n", {"open"}),
        ("f = open('x')\nf.read()\nf.close()\n", {"closed"}),
        ("f = open('x')\nif a:\n    f.close()\n", {"open", "closed"}),
        ("f = open('x')\nif a:\n    f.close()\n    ", {"closed"}),
        ("f = open('x')\nif a:\n    f.close()\nelse:\n    ", {"open"}),
        ("f = open('x')\nif a:\n    f.close()\n    return\n", {"open"}),
        ("f = open('x')\nfor x in y:\n    ", {"open"}),
        ("f = open('x')\nfor x in y:\n    f.read()\n    f.close()\n", {"open", "closed"}),
        ("f = open('x')\nwhile a:\n    if b:\n        f.close()\n        break\n    ", {"open"}),
        ("f = open('x')\nwhile a:\n    f.close()\n    f = open('x')\n    ", {"open"}),
        ("with open('x') as f:\n    ", {"open"}),
        ("with open('x') as f:\n    pass\n", {"closed"}),
        ("f = open('x')\nwith f:\n    pass\n", {"closed"}),
        ("f = open('x')\ntry:\n    f.read()\nfinally:\n    f.close()\n", {"closed"}),
        ("f = open('x')\ntry:\n    f.close()\nexcept OSError:\n    ", {"open", "closed"}),
        ("f = open('x')\ntry:\n    f.close()\n    ", {"closed"}),
        ("f = open('x')\ntry:\n    try:\n        f.close()\n        ", {"closed"}),
        ("f = open('x')\nf.close()\ng(f)\n", {"closed"}),
        ("f = open('x')\ng(f)\n", {"open", "closed"}),
        ("f = open('x')\nself.f = f\ng()\n", {"open", "closed"}),
        ("f = open('x')\na and f.close()\n", {"open", "closed"}),
        ("f = open('x')\nmatch a:\n    case 1:\n        f.close()\n", {"open", "closed"}),
        ("f = open('x')\nf.close()\nf = open('y')\n", {"open"}),
        ("f = open('x')\nf = other\n", None),
        ("f = open('x')\ndef g():\n    ", None),
        ("def g():\n    f = open('x')\n    f.close()\n    ", {"closed"}),
        ("def g(f):\n    ", None),
        ("f = open('x')\nf.close()\nx = f.name + f.mode\ny = ", {"closed"}),
        ("f = open('x')\nthis is no python\n", None),
        ("f = open('x')\nif a:\n    f.close()\nelif ", None),
        ("f = open('x')\nx = f.close() or ", {"open", "closed"}),
    ],
)
def test_states(text: str, expected: set[str] | None) -> None:
    assert states(text) == expected


def test_states_of_other_protocols() -> None:
    assert states("f = socket()\nf.bind(a)\nf.listen()\nc, _ = f.accept()\n", "socket") == {"listening"}
    assert states("f = Lock()\nwith f:\n    ", "lock") == {"held"}
    assert states("f = Lock()\nwith f:\n    pass\n", "lock") == {"free"}
    assert states("self.f = Thread()\nself.f.start()\n", "thread", "self.f") == {"started"}
    assert states("self.f = Thread()\nself = other\n", "thread", "self.f") is None


@pytest.mark.parametrize(
    ("text", "then", "good"),
    [
        ("f = open('x')\nf.", "read()", True),
        ("f = open('x')\nf.close()\nf.", "read()", False),
        ("f = open('x')\nf.close()\nf.", "close()", True),
        ("f = open('x')\nf.close()\nprint(f.", "name)", True),
        ("with open('x', 'rb') as f:\n    f.", "read()", True),
        ("with open('x', 'rb') as f:\n    pass\nf.", "read()", False),
        ("import socket\ns = socket.socket()\ns.", "accept()", False),
        ("import socket\ns = socket.socket()\ns.", "bind(('', 1))\ns.listen()\ns.accept()", True),
        ("import socket\ns = socket.socket()\ns.", "bind(('', 1))\ns.listen()\ns.sendall(b'')", False),
        ("import socket\ns = socket.socket()\ns.", "settimeout(1)", True),
        ("f = open('x')\nf.close()\nf.", "reconfigure()", True),
        ("f = open('x')\nf.close()\nf.", "writeli", False),
        ("import sqlite3\nc = sqlite3.connect('x').cursor()\nc.", "fetchone()", False),
        ("import sqlite3\nc = sqlite3.connect('x').cursor()\nc.execute('q')\nc.", "fetchone()", True),
        ("import sqlite3\nd = sqlite3.connect('x')\nd.close()\nd.", "execute('q')", False),
        ("import threading\nt = threading.Thread()\nt.", "join()", False),
        ("import threading\nl = threading.Lock()\nl.", "release()", False),
        ("x = []\nx.", "append(1)", True),
    ],
)
def test_typestate(text: str, then: str, good: bool, tmp_path: Path) -> None:
    part, lm = python("typestate", tmp_path=tmp_path)
    assert ok(part, lm, text, then) == good


ORDERS = """
[order]
types = ["shop.Order"]
start = "new"

[order.states]
new = { add = "filled" }
filled = { add = "filled", pay = "paid" }
paid = { ship = "shipped" }
shipped = {}
"""


def test_protocols_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "orders.toml").write_text(ORDERS)
    (tmp_path / "shop.py").write_text(
        "class Order:\n" + "".join(f"    def {name}(self): ...\n" for name in ("add", "pay", "ship", "show"))
    )
    part, lm = python(
        "typestate", "attributes", tmp_path=tmp_path, path="main.py", protocols=(str(tmp_path / "orders.toml"),)
    )
    text = "from shop import Order\no = Order()\no."
    assert ok(part, lm, text, "add()\no.add()\no.show()\no.pay()\no.ship()\no.show()")
    assert not ok(part, lm, text, "pay()")
    assert not ok(part, lm, text, "add()\no.ship()")
    assert not ok(part, lm, text, "add()\no.pay()\no.ship()\no.add()")
    assert not ok(part, lm, text, "nothing()")


def test_packaged_protocols() -> None:
    assert tuple(packaged()) == PACKAGED
    for protocol in packaged().values():
        assert protocol.reachable({protocol.start}) >= protocol.states.keys() - {protocol.start} - {"nowhere"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[a", "is no TOML"),
        ("[a]\nstart = 'x'", "needs types, start and states"),
        ("[a]\ntypes = 'b'\nstart = 'x'\nstates = {x = {}}", "list of full names"),
        ("[a]\ntypes = ['b']\nstart = 'x'\nstates = {x = 1}", "a table of methods for every state"),
        ("[a]\ntypes = ['b']\nstart = 'y'\nstates = {x = {}}", "start leads to the state 'y'"),
        ("[a]\ntypes = ['b']\nstart = 'x'\nstates = {x = {m = 'z'}}", "x.m leads to the state 'z'"),
    ],
)
def test_wrong_protocols(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=message):
        read(text, "p.toml")


def test_protocols_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no protocol 'door'; there are file, socket"):
        chosen(["door"])
    with pytest.raises(InvalidInput, match="cannot be read"):
        compose(
            model(""),
            "monitor-guided-decoding",
            settings={"monitors": "typestate", "protocols": str(tmp_path / "none.toml")},
        )
