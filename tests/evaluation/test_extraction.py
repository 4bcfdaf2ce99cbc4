"""Programs in answers."""

import pytest

from unspool.evaluation.extraction import completed, cut, fenced, is_defined, program

PROMPT = 'from typing import List\n\n\ndef total(xs: List[int]) -> int:\n    """ The sum. """\n'


def value_of(source: str) -> int:
    space: dict[str, object] = {}
    exec(source, space)
    return space["total"]([1, 2, 3])  # type: ignore[operator]


def test_blocks() -> None:
    text = "See:\n```python\na = 1\n```\nand\n~~~js\nb\n~~~\nand\n````\n```\nc\n```\n````\n```py\nopen"
    assert [(block.language, block.text) for block in fenced(text)] == [
        ("python", "a = 1\n"),
        ("js", "b\n"),
        ("", "```\nc\n```\n"),
        ("py", "open"),
    ]
    assert fenced("no block ``` here") == []


def test_the_block_that_defines_the_name_is_taken() -> None:
    answer = "First:\n```python\nprint('example')\n```\nThen:\n```python\ndef total(xs):\n    return sum(xs)\n```"
    assert "def total" in program(answer, "total")
    assert "example" in program(answer)
    assert program("def total(xs): ...") == "def total(xs): ..."
    assert program("```bash\npip install x\n```") == "```bash\npip install x\n```"


@pytest.mark.parametrize("source", ["def f(x):", "class f:", "f = 1", "f: int = 1", "async  def f():"])
def test_definitions(source: str) -> None:
    assert is_defined(source, "f")
    assert not is_defined("    " + source, "f")
    assert not is_defined(source, "g")
    assert not is_defined("f == 1", "f")


@pytest.mark.parametrize(
    "answer",
    [
        "    return sum(xs)\n",
        "return sum(xs)",  # indentation eaten
        "t = 0\nfor x in xs:\n    t += x\nreturn t",  # all of it
        "    return sum(xs)\n\ndef total(xs):\n    return None\n",  # goes on with something else
        "```python\ndef total(xs: List[int]) -> int:\n    return sum(xs)\n```",  # needs the import of the prompt
        "Here you are:\n```\n    return sum(xs)\n```",
        "def total(xs: List[int]):\n    return sum(xs)\n",
    ],
)
def test_completions_and_whole_functions(answer: str) -> None:
    assert value_of(completed(PROMPT, answer, "total", ("\ndef ",))) == 6


def test_helpers_of_the_prompt_are_kept_for_whole_functions() -> None:
    prompt = "def one():\n    return 1\n\n\ndef total(xs):\n"
    assert value_of(completed(prompt, "```python\ndef total(xs):\n    return 5 + one()\n```", "total")) == 6


def test_cut() -> None:
    assert cut("a\nclass B\ndef c", ("\ndef ", "\nclass ")) == "a"
    assert cut("a", ("\ndef ",)) == "a"
