"""Monitor-guided decoding: names that exist, from static analysis, in a model that does not see the repository.

Paper: Agrawal et al., Monitor-Guided Decoding of Code LMs with Static Analysis of Repository Context, 2023: better
compilation rate and identifier match on dereferences in Java for models of 350M to 175B. Here: Python, and a
repository that no model has seen, this project's own. Attribute expressions are cut behind the dot, where jedi knows 3
to 200 names and the true one is among them; the model sees the end of the file up to there and writes the rest of the
statement. Python compiles nearly anything, so a statement is said to compile if it parses and a compiler of a typed
language would take it: jedi finds every name in it defined, and every attribute where it knows those that there are.
Baselines: plain greedy decoding, and the same with the names listed in a comment in front.
"""

from __future__ import annotations

import ast
import keyword
import logging
import random
import re
import statistics
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import unspool
from unspool.constraints._monitors.base import Question
from unspool.constraints._monitors.python import Python
from unspool.constraints.monitor_guided_decoding import MonitorGuidedDecoding, MonitorSettings
from unspool.core.compose import compose
from unspool.core.events import Finished
from unspool.core.sockets import Part
from unspool.core.texts import Stop
from unspool.evaluation.reproductions._common import Lab, experiment

_LARGEST = 24_000
"""Bytes of a file up to which it is taken: jedi reads the whole file for every question."""

_JOINT = ("attributes", "imports", "calls", "instances", "enum-members", "typestate")


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Args:
        points: places that are completed.
        files: files that they come from at most.
        new_tokens: of a completion.
        context: tokens of the file before the dot that the model sees.
        listed: whether the names are also tried as a comment.
        joint: whether all monitors together are tried as well.
    """

    points: int
    files: int
    new_tokens: int
    context: int
    listed: bool
    joint: bool


@dataclass(frozen=True)
class Point:
    """A place behind a dot.

    Args:
        before: the file up to it, the dot included.
        truth: the name that stands there.
        names: what jedi knows.
        path, project: where the file is.
    """

    before: str
    truth: str
    names: frozenset[str]
    path: str
    project: str

    @property
    def statement(self) -> str:
        """The statement that is to be completed, so far."""
        return self.before[self.before.rfind("\n") + 1 :]


@dataclass
class Asked:
    """What jedi was asked while points were looked for.

    Attributes:
        answered: places where it knows at least one name.
        missing: of these, places where the true name is not among them.
        unanswered: places where it knows none.
    """

    answered: int = 0
    missing: int = 0
    unanswered: int = 0


def _dots(source: str) -> list[tuple[int, str]]:
    """Offsets behind the dots of attribute expressions that stand on one line, with the names there."""
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Attribute) or node.end_lineno is None or node.lineno != node.end_lineno:
            continue
        row = source[starts[node.lineno - 1] : starts[node.lineno]]
        assert node.end_col_offset is not None
        end = len(row.encode()[: node.end_col_offset].decode())
        if row[:end].endswith(f".{node.attr}"):
            found.append((starts[node.lineno - 1] + end - len(node.attr), node.attr))
    return found


def _points(size: Size, asked: Asked) -> Iterator[Point]:
    """Places in this project's sources, in an order that depends on nothing else.

    Files that import torch are left out: jedi takes minutes to read it.
    """
    package = Path(unspool.__file__).parent
    root = package.parent
    rng = random.Random(0)
    files = [path for path in sorted(package.rglob("*.py")) if 2_000 < path.stat().st_size < _LARGEST]
    files = [path for path in files if not re.search(r"^\s*(?:import|from) torch\b", path.read_text("utf-8"), re.M)]
    rng.shuffle(files)
    each = -(-size.points // size.files)
    for path in files:
        source = path.read_text(encoding="utf-8")
        dots = _dots(source)
        python = Python(str(path), str(root))
        rng.shuffle(dots)
        taken = 0
        for offset, truth in dots[: 3 * each]:
            before = source[:offset]
            names = frozenset(python.complete(Question(before, "", "", "")))
            asked.unanswered += not names
            asked.answered += bool(names)
            asked.missing += bool(names) and truth not in names
            if truth in names and 3 <= len(names) <= 200 and taken < each:
                taken += 1
                yield Point(before, truth, names, str(path), str(root))


def _framed(line: str) -> str | None:
    """A statement with what it needs around it to be Python by itself; ``None`` if nothing helps."""
    line = line.strip()
    if line.endswith(":"):
        line += " pass"
    if line.startswith(("elif ", "else")):
        line = f"if x: pass\n{line}"
    elif line.startswith(("except ", "except:", "finally")):
        line = f"try: pass\n{line}"
    elif line.startswith("@"):
        line += "\ndef f(): pass"
    elif line.startswith("case "):
        line = f"match x:\n    {line}"
    framed = "async def f():\n  while x:\n" + textwrap.indent(line, "    ")
    try:
        ast.parse(framed)
    except (SyntaxError, ValueError):
        return None
    return framed


def _whole(point: Point, written: str) -> bool:
    """Whether the completed statement is Python by itself."""
    return _framed(point.statement + written) is not None


_STRING = re.compile(r"""(['"])(?:\\.|(?!\1).)*\1""")
_BOUND = re.compile(r"\s*(?:=(?!=)|:=)|\s+in\b")


def _exists(point: Point, written: str) -> bool:
    """Whether what was written names only what there is, as far as jedi can tell."""
    python = Python(point.path, point.project)
    text = _STRING.sub(lambda found: " " * len(found[0]), written.split("#")[0])
    own = set(re.findall(r"\b(?:for|as|lambda)\s+(\w+)", text))
    for found in re.finditer(r"[^\W\d]\w*", text):
        word, before = found[0], point.before + text[: found.start()]
        if before.rstrip().endswith("."):
            names = point.names if not found.start() else python.complete(Question(before, "", "", ""))
            if names and word not in names:
                return False
        elif not (keyword.iskeyword(word) or word in own or _BOUND.match(text[found.end() :])):
            # The name of a keyword argument, a comprehension's own, or it has to be known.
            if word not in python.complete(Question(before, "", "", "")):
                return False
    return True


@dataclass(frozen=True)
class Outcome:
    """What one way of decoding wrote at one point.

    Args:
        name: the first identifier.
        matches, exists, whole: whether it is the true one, whether jedi knows it, whether the statement parses.
        compiles: whether, besides, all that the statement names exists.
    """

    name: str
    matches: bool
    exists: bool
    whole: bool
    compiles: bool


def _complete(lab: Lab, point: Point, parts: Sequence[Part], size: Size, front: str = "") -> Outcome:
    tokenizer = lab.model.tokenizer
    room = size.context - len(tokenizer.encode(front))
    prompt = tokenizer.encode(front) + tokenizer.encode(point.before)[-room:]
    text = ""
    made = compose(lab.model, list(parts))
    for event in made.decode([prompt], stop=Stop(size.new_tokens, strings=("\n",))):
        text += getattr(event, "text", "")
        if isinstance(event, Finished) and event.reason == "length":
            # What was cut off by the limit must not count as broken: up to the last whole argument it may parse.
            text = text if _whole(point, text) else _closed(point, text)
    name = re.match(r"[^\W\d]\w*", text)
    found = name[0] if name else ""
    whole = _whole(point, text)
    return Outcome(found, found == point.truth, found in point.names, whole, whole and _exists(point, text))


def _closed(point: Point, text: str) -> str:
    """A text that ran into the limit, with its open brackets closed."""
    for closers in (")", "))", "]", "})", "')", '")', "'", '"', ")]"):
        if _whole(point, text + closers):
            return text + closers
    return text


def _share(values: Sequence[bool]) -> float:
    return statistics.fmean(values)


@experiment(
    "monitor-guided-decoding",
    quick=Size(points=12, files=4, new_tokens=8, context=80, listed=False, joint=False),
    full=Size(points=300, files=60, new_tokens=24, context=384, listed=True, joint=True),
)
def EXPERIMENT(lab: Lab, size: Size) -> None:
    """Measure invalid attributes, identifier match, what compiles, and the analysis' time and losses."""
    logging.getLogger("jedi").setLevel(logging.ERROR)
    lab.setup |= {"repository": "unspool", "sampler": "greedy", "batch": 1}
    asked = Asked()
    plain: list[Outcome] = []
    guided: list[Outcome] = []
    listed: list[Outcome] = []
    joint: list[Outcome] = []
    questions, analysis, waited = 0, 0.0, 0.0
    points = _points(size, asked)
    for number in range(1, size.points + 1):
        point = next(points, None)
        if point is None:
            lab.note(f"The repository gave {number - 1} points.")
            break
        if number % 8 == 1:
            lab.say(f"point {number} of {size.points}")
        plain.append(_complete(lab, point, [], size))
        # The model sees the end of the file, the analysis all of it.
        seen = lab.model.tokenizer.encode(point.before)
        hidden = lab.model.tokenizer.decode(seen[: -size.context]) if len(seen) > size.context else ""
        part = MonitorGuidedDecoding(MonitorSettings(before=hidden, path=point.path, project=point.project))
        guided.append(_complete(lab, point, [part], size))
        questions += part.analyst.counts.asked
        analysis += part.analyst.counts.seconds
        waited += part.analyst.counts.waited
        if size.joint:
            every = MonitorSettings(monitors=_JOINT, before=hidden, path=point.path, project=point.project)
            joint.append(_complete(lab, point, [MonitorGuidedDecoding(every)], size))
        if size.listed:
            front = f"# names: {', '.join(sorted(point.names)[:40])}\n"
            listed.append(_complete(lab, point, [], size, front))

    invalid = 1 - _share([o.exists for o in plain]), 1 - _share([o.exists for o in guided])
    match = _share([o.matches for o in plain]), _share([o.matches for o in guided])
    whole = _share([o.whole for o in plain]), _share([o.whole for o in guided])
    lab.row("invalid attributes (plain)", *invalid)
    lab.row("identifier match (plain)", *match)
    compiles = _share([o.compiles for o in plain]), _share([o.compiles for o in guided])
    lab.row("statements that parse (plain)", *whole)
    lab.row("statements that compile (plain)", *compiles)
    if joint:
        lab.row("invalid attributes, all monitors (plain)", invalid[0], 1 - _share([o.exists for o in joint]))
        lab.row("identifier match, all monitors (plain)", match[0], _share([o.matches for o in joint]))
        lab.row("statements that compile, all monitors (plain)", compiles[0], _share([o.compiles for o in joint]))
    if listed:
        lab.row(
            "invalid attributes, names listed in the prompt (plain)", invalid[0], 1 - _share([o.exists for o in listed])
        )
        lab.row("identifier match, names listed in the prompt (plain)", match[0], _share([o.matches for o in listed]))
        lab.row("statements that compile, names listed (plain)", compiles[0], _share([o.compiles for o in listed]))
    lab.row("places where jedi has names but not the true one", None, asked.missing / max(asked.answered, 1))
    lab.row("places where jedi has no names", None, asked.unanswered / max(asked.answered + asked.unanswered, 1))
    lab.row("analysis, milliseconds a question", None, 1000 * analysis / max(questions, 1))
    lab.row("decoding stood still for it, milliseconds a question", None, 1000 * waited / max(questions, 1))

    lab.check("invalid attributes at constrained points: 0%", invalid[1], invalid[1] == 0, invalid[1] < invalid[0])
    lab.check("plain decoding writes at least 25% invalid ones", invalid[0], invalid[0] >= 0.25, invalid[0] > 0)
    lab.check(
        "identifier match at least 1.3 times plain",
        f"{match[1]:.3g} against {match[0]:.3g}",
        match[1] >= 1.3 * match[0] and match[1] > 0,
        match[1] > match[0],
    )
    found = f"{compiles[1]:.3g} against {compiles[0]:.3g}"
    lab.check("more statements compile than with plain decoding", found, compiles[1] > compiles[0], None)
    lab.note("Only the Python monitor is measured: a server of Java, C# or Rust has to be installed for the others.")
    lab.note("Where jedi has names but not the true one the monitor loses: it lets nothing else be written.")
    if lab.quick:
        lab.note(
            "Quick: few points and short statements; the full run takes 300, and lists the names in a comment too."
        )
