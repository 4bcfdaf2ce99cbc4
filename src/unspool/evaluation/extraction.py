"""Programs taken out of answers: chat models put them into fenced blocks between sentences, base models do not."""

from __future__ import annotations

import re
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

_FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})[ \t]*([\w+#.-]*)[^\n`]*$", re.MULTILINE)
PYTHON = frozenset({"", "python", "py", "python3"})


@dataclass(frozen=True)
class Block:
    """What stood between two fences, and the language that the first one named (lower case, ``""`` if none)."""

    language: str
    text: str


def fenced(text: str) -> list[Block]:
    """The fenced blocks of a Markdown text in order; one that is not closed goes on to the end."""
    blocks = []
    at = 0
    while (opened := _FENCE.search(text, at)) is not None:
        mark = opened.group(1)
        closing = re.compile(rf"^[ \t]*{re.escape(mark[0])}{{{len(mark)},}}[ \t]*$", re.MULTILINE)
        closed = closing.search(text, opened.end())
        body = text[opened.end() : closed.start() if closed else len(text)].removeprefix("\n")
        blocks.append(Block(opened.group(2).lower(), body))
        at = closed.end() if closed else len(text)
    return blocks


def program(answer: str, defines: str | None = None, languages: frozenset[str] = PYTHON) -> str:
    """The program in an answer.

    Of the fenced blocks in one of ``languages`` the first that defines ``defines`` is taken, else the first. Without
    such a block the whole answer is the program.
    """
    blocks = [block.text for block in fenced(answer) if block.language in languages]
    if not blocks:
        return answer
    if defines is not None:
        for block in blocks:
            if is_defined(block, defines):
                return block
    return blocks[0]


def is_defined(source: str, name: str) -> bool:
    """Whether Python source defines a function or class, or sets a variable, of this name in its first column."""
    made = rf"^(?:(?:async\s+)?def|class)\s+{re.escape(name)}\b"
    assigned = rf"^{re.escape(name)}\s*(?::[^=\n]+)?=(?!=)"
    return re.search(f"{made}|{assigned}", source, re.MULTILINE) is not None


def cut(text: str, stops: Sequence[str]) -> str:
    """The text up to the first of the stop strings."""
    ends = [at for stop in stops if (at := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text


def completed(prompt: str, answer: str, entry_point: str, stops: Sequence[str] = ()) -> str:
    """A whole program from the beginning of one and what a model made of it.

    A model may go on where ``prompt`` ends (a completion), or write the function anew, in a block or bare; then what
    stands in the prompt before the function (imports, helpers) is put in front.

    Args:
        prompt: source that ends inside the function ``entry_point``.
        answer: of the model.
        stops: where a completion ends; models that go on write tests and other functions below it.
    """
    continues = not fenced(answer) and answer.startswith((" ", "\t"))
    code = cut(answer, stops) if continues else program(answer, entry_point)
    if not continues and is_defined(code, entry_point):
        return preamble(prompt, entry_point) + "\n" + code
    # A completion begins inside the function; tokenizers and chat models may have eaten its indentation.
    body = cut(code, stops)
    tries = (body, "    " + body, textwrap.indent(body, "    "))
    return prompt + next((one for one in tries if _parses(prompt + one)), body)


def preamble(prompt: str, entry_point: str) -> str:
    """What stands before the function in a prompt."""
    found = re.search(rf"^(?:async\s+)?def\s+{re.escape(entry_point)}\b", prompt, re.M)
    return prompt[: found.start()] if found else ""


def _parses(source: str) -> bool:
    # A mere parser would let a `return` outside of the function pass.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            compile(source, "answer", "exec", dont_inherit=True)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
    return True
