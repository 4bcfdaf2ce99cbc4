"""Bugs planted into programs."""

import io
import sys
import types
from contextlib import redirect_stdout
from typing import Any

import pytest

from unspool.evaluation.planting import plant


def space_of(source: str, **options: Any) -> dict[str, Any]:
    module = types.ModuleType("planted")
    sys.modules["planted"] = module  # dataclasses look there
    try:
        exec(plant(source, **options), module.__dict__)
    finally:
        del sys.modules["planted"]
    return module.__dict__


@pytest.mark.parametrize(
    "value", ["True", "False", "None", "3", "2.5", "1e300", "'text'", "b'x'", "[1, 2]", "(1,)", "{1}", "{'a': 1}", "{}"]
)
def test_every_result_is_wrong(value: str) -> None:
    assert space_of(f"def f():\n    return {value}\n")["f"]() != eval(value)


def test_calls_inside_stay_right() -> None:
    """Otherwise two negations would make a truth."""
    source = "def odd(n):\n    return n % 2 == 1\n\ndef even(n):\n    return not odd(n)\n"
    space = space_of(source)
    assert space["even"](2) is False
    assert space["odd"](2) is True
    recursive = "def fact(n):\n    return 1 if n < 2 else n * fact(n - 1)\n"
    assert space_of(recursive)["fact"](5) == 121


def test_scripts_are_wrong_inside_as_well_and_print_nothing() -> None:
    printed = io.StringIO()
    with redirect_stdout(printed):
        space = space_of("def one():\n    return 1\n\ntwo = one() + 1\nprint(two)\n", script=True)
    assert space["two"] == 3
    assert printed.getvalue() == ""


def test_methods_properties_generators_and_variables() -> None:
    source = '''"""A module."""
from __future__ import annotations

from dataclasses import dataclass

values = [1]

@dataclass
class Box:
    x: int

    def __post_init__(self):
        self.x += 1

    @property
    def double(self):
        return 2 * self.x

    @staticmethod
    def zero():
        return 0

def count():
    yield 1
'''
    space = space_of(source, variable="values")
    box = space["Box"](1)
    assert box.x == 2
    assert box.double == 5
    assert box.zero() == 1
    assert list(space["count"]()) == [1, None]
    assert space["values"] == [1, None]
