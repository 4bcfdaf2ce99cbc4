"""RPG: code that loops in its structure is led out of the loop, and other code is left alone.

Paper: Dong et al., Rethinking Repetition Problems of LLMs in Code Generation, 2025: on CodeRepetEval (prompts that make
models loop) fewer repetitions than penalties, n-gram blocking and sampling, and no loss on HumanEval and MBPP.
Here: three kinds of prompts in Python (chains and lists that invite one more row, functions by signature and docstring,
beginnings of files of the standard library), continued greedily. TR-S is the share of lines with which a block of line
shapes repeats, TR-N the share of repeated 4-grams of tokens.
"""

from __future__ import annotations

import ast
import re
import statistics
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unspool.constraints.rpg_repetition import RPG, RPGSettings, Shapes, repetition
from unspool.core.compose import Composition, compose
from unspool.core.errors import UnspoolError
from unspool.core.sockets import Part
from unspool.evaluation.answering import Answer, TurnRecord
from unspool.evaluation.metrics import perplexity, rep_n
from unspool.evaluation.prompts import spread
from unspool.evaluation.reproductions._common import Continuation, Lab, batches, decode_all, experiment
from unspool.evaluation.suites import Judged, get
from unspool.sampling.standard import SamplingSettings, StandardSampler


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Args:
        prompts: of each of the three kinds.
        new_tokens, batch: of a continuation.
        penalties: whether all baselines are run, or one.
        quality: whether perplexity is taken.
        tasks: tasks of HumanEval (or of ``builtin-code``, where that is not there) whose answers are run.
    """

    prompts: int
    new_tokens: int
    batch: int
    penalties: bool
    quality: bool
    tasks: int


_THINGS = ("day", "month", "color", "planet", "status", "level", "unit", "city", "fruit", "animal", "grade", "token")
_INVITING = (
    "def {0}_name(x):\n" + "".join(f"    if x == {n}:\n        return 'item{n}'\n" for n in range(1, 6)),
    "{1}_BY_CODE = {{\n" + "".join(f"    {n}: 'item{n}',\n" for n in range(1, 7)),
    "class {2}(Enum):\n" + "".join(f"    VALUE_{n} = {n}\n" for n in range(1, 7)),
    "def test_{0}():\n" + "".join(f"    assert {{0}}({n}) == {n * n}\n" for n in range(1, 6)),
    "".join(f"parser.add_argument('--{{0}}{n}', type=int, default={n})\n" for n in range(1, 5)),
)
_DESCRIBED = (
    'def count_{0}s(items):\n    """Return how many of the items are a {0}."""\n',
    'def parse_{0}(text):\n    """Parse a {0} written as text, and raise ValueError if it is none."""\n',
    'def {0}_to_dict({0}):\n    """Return the fields of a {0} as a dictionary."""\n',
    'def print_{0}s({0}s):\n    """Print a table of {0}s, one on each line."""\n',
    'def best_{0}({0}s, key):\n    """Return the {0} with the largest key, or None."""\n',
)


def made_prompts(forms: Sequence[str], count: int, things: Sequence[str] = _THINGS) -> list[str]:
    """Prompts of some forms about some things: with ``{0}`` for the thing, ``{1}`` and ``{2}`` for it in capitals."""
    ways = [(form, thing) for place, thing in enumerate(things) for form in forms[place % len(forms) :]]
    ways += [(form, thing) for place, thing in enumerate(things) for form in forms[: place % len(forms)]]
    return [form.format(thing, thing.upper(), thing.capitalize()) for form, thing in ways[:count]]


def _library(count: int, lines: int = 24) -> list[str]:
    """Beginnings of files, from their first definition on."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for path in sorted(root.glob("*.py"))[::3]:
        source = path.read_text(encoding="utf-8").splitlines(keepends=True)
        first = next((n for n, line in enumerate(source) if line.startswith(("def ", "class "))), None)
        if first is not None and len(source) > first + 2 * lines:
            found.append("".join(source[first : first + lines]))
    return found[:count]


def continued(made: Composition, prompts: list[list[int]], size: Size) -> list[Continuation]:
    """What follows each of the prompts."""
    # Texts of one length side by side: no row of a batch waits for a longer one.
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    runs: dict[int, Continuation] = {}
    for group in batches(order, size.batch):
        done = decode_all(made, [prompts[p] for p in group], new_tokens=size.new_tokens, batch=size.batch)
        runs.update(zip(group, done, strict=True))
    return [runs[place] for place in range(len(prompts))]


@dataclass(frozen=True)
class Report:
    """Shares over continuations.

    Args:
        structural, tokens: TR-S and TR-N.
        ends: that end by themselves.
        parses: that are Python once the last unfinished statement is left out.
    """

    structural: float
    tokens: float
    ends: float
    parses: float


def reported(lab: Lab, shapes: Shapes, texts: Sequence[str], runs: Sequence[Continuation]) -> Report:
    """How continuations of texts repeat, end and parse."""
    decode = lab.model.tokenizer.decode
    structural, parses = [], []
    for prompt, run in zip(texts, runs, strict=True):
        written = decode(run.tokens)
        data = (prompt + written).encode()
        lines = [line.shape for line in shapes.lines(data, len(prompt.encode()))]
        again = [repetition(lines[: place + 1]) is not None for place in range(len(lines))]
        structural.append(statistics.fmean(again) if again else 0.0)
        # Behind a fence comes prose.
        parses.append(_parses(prompt + written.split("```")[0], len(prompt)))
    return Report(
        statistics.fmean(structural),
        statistics.fmean(rep_n(run.tokens, 4) for run in runs),
        statistics.fmean(bool(run.tokens and run.tokens[-1] in lab.model.stop_tokens) for run in runs),
        statistics.fmean(parses),
    )


def _parses(text: str, prompt: int) -> bool:
    """Whether a text is Python up to some line end behind at least half of what was written."""
    least = prompt + (len(text) - prompt) // 2
    end = len(text)
    while end >= least:
        try:
            ast.parse(text[:end])
        except (SyntaxError, ValueError):
            end = text.rfind("\n", 0, end)
            if end < 0:
                return False
        else:
            return True
    return False


_TABLES = (
    "# The numbers from one to ten as words\nNUMBERS = {\n    1: 'one',\n",
    "# The days of the week\nDAYS = {\n    1: 'Monday',\n",
    "# The twelve months\nMONTHS = {\n    1: 'January',\n",
    "# The planets by their distance to the sun\nPLANETS = {\n    1: 'Mercury',\n",
)


def _table_rows(lab: Lab, made: Composition) -> int:
    """Different rows that are written of tables, up to the bracket that closes each."""
    encode, decode = lab.model.tokenizer.encode, lab.model.tokenizer.decode
    runs = decode_all(made, [list(encode(text)) for text in _TABLES], new_tokens=120)
    return sum(len(set(re.findall(r"\d+: '\w+'", decode(run.tokens).split("}")[0]))) for run in runs)


def _repeats(made: Composition, run: Continuation, cut: int) -> bool:
    """Whether the method sees a repetition after ``cut`` tokens of a continuation."""
    part, length = made.constraint, len(run.prompt)
    assert isinstance(part, RPG)
    return bool(part.critical([*run.prompt, *run.tokens[:cut]], length, length))


def _passed(lab: Lab, arms: dict[str, Composition], count: int) -> dict[str, list[float]]:
    """Tasks passed by each arm."""
    try:
        suite = get("humaneval")
        items = spread(suite.load(lab.data), count)
    except UnspoolError as error:
        lab.note(f"HumanEval is not at hand ({type(error).__name__}); the tasks are those of builtin-code.")
        suite = get("builtin-code")
        items = spread(suite.load(), count)
    lab.setup["tasks"] = f"{len(items)} of {suite.name}"
    found: dict[str, list[float]] = {}
    for name, made in arms.items():
        judged = []
        for item in items:
            prompt = lab.engine.encode(item.turns[0], item.chat)
            (run,) = decode_all(made, [prompt], new_tokens=256)
            text = lab.model.tokenizer.decode(run.tokens)
            record = TurnRecord(text, len(run.tokens), len(prompt), "length", 0.0, None)
            judged.append(Judged(item, Answer((record,))))
        found[name] = [score["passed"] for score in suite.judge_all(judged)]
    return found


@experiment(
    "rpg-repetition",
    quick=Size(prompts=3, new_tokens=96, batch=9, penalties=False, quality=False, tasks=0),
    full=Size(prompts=60, new_tokens=256, batch=12, penalties=True, quality=True, tasks=20),
)
def EXPERIMENT(lab: Lab, size: Size) -> None:
    """Measure repetition, ends, what parses, what is left alone, and tasks passed."""
    shapes = Shapes("python")
    encode = lab.model.tokenizer.encode
    kinds = {
        "inviting": made_prompts(_INVITING, size.prompts),
        "described": made_prompts(_DESCRIBED, size.prompts),
        "library": _library(size.prompts),
    }
    texts = [text for group in kinds.values() for text in group]
    prompts = [list(encode(text)) for text in texts]
    lab.setup |= {"prompts": {name: len(group) for name, group in kinds.items()}, "sampler": "greedy"}

    def sampled(**settings: float) -> list[Part]:
        return [StandardSampler(SamplingSettings(**settings))]  # type: ignore[arg-type]

    arms: dict[str, list[Part]] = {"greedy": [], "rpg": [RPG()], "penalty 1.2": sampled(repetition_penalty=1.2)}
    if size.penalties:
        arms |= {
            "rpg, factors on probabilities": [RPG(RPGSettings(factors="probability"))],
            "penalty 1.1": sampled(repetition_penalty=1.1),
            "no repeated 4-gram": sampled(no_repeat_ngram_size=4),
            "top-p 0.95": sampled(temperature=1.0, top_p=0.95),
        }
    made = {name: compose(lab.model, parts) for name, parts in arms.items()}
    runs: dict[str, list[Continuation]] = {}
    reports: dict[str, Report] = {}
    for name, composition in made.items():
        lab.say(f"{len(prompts)} continuations: {name}")
        runs[name] = continued(composition, prompts, size)
        reports[name] = reported(lab, shapes, texts, runs[name])
    greedy, rpg = reports["greedy"], reports["rpg"]
    for name, report in reports.items():
        if name == "greedy":
            continue
        lab.row(f"TR-S, repeated structure: {name} (greedy)", greedy.structural, report.structural)
        lab.row(f"TR-N, repeated 4-grams: {name} (greedy)", greedy.tokens, report.tokens)
        lab.row(f"ends by itself: {name} (greedy)", greedy.ends, report.ends)
        lab.row(f"parses: {name} (greedy)", greedy.parses, report.parses)
    if size.quality:
        for name in ("rpg", "penalty 1.2"):
            values = {
                arm: perplexity(lab.model, [(run.prompt, run.tokens) for run in runs[arm] if run.tokens])
                for arm in ("greedy", name)
            }
            lab.row(f"perplexity: {name} (greedy)", values["greedy"], values[name])

    lab.say("where the outputs part")
    same, calm = [], 0
    for plain, other in zip(runs["greedy"], runs["rpg"], strict=True):
        first = next((cut for cut in range(1, len(plain.tokens)) if _repeats(made["rpg"], plain, cut)), None)
        calm += len(plain.tokens) if first is None else first
        same.append(other.tokens[:first] == plain.tokens[:first])
    lab.row("tokens of a text before anything repeats", None, calm / len(same))
    lab.check(
        "as long as nothing repeats the output is that of greedy decoding",
        f"{sum(same)} of {len(same)} texts",
        all(same),
        None,
    )
    lab.check(
        "TR-S at most 0.6 times greedy",
        f"{rpg.structural:.3g} against {greedy.structural:.3g}",
        rpg.structural <= 0.6 * greedy.structural,
        rpg.structural < greedy.structural,
    )
    lab.check(
        "ends by itself at least 1.5 times as often as greedy",
        f"{rpg.ends:.3g} against {greedy.ends:.3g}",
        rpg.ends >= 1.5 * greedy.ends and rpg.ends > 0,
        rpg.ends > greedy.ends,
    )
    worst = max(report.parses for name, report in reports.items() if name.startswith("penalty"))
    lab.check(
        "parses at least as often as greedy, and more often than with penalties",
        f"{rpg.parses:.3g}; greedy {greedy.parses:.3g}, penalties {worst:.3g}",
        rpg.parses >= greedy.parses and rpg.parses > worst,
        rpg.parses >= greedy.parses,
    )
    if size.tasks:
        lab.say(f"{size.tasks} tasks, greedy and rpg")
        passed = _passed(lab, {name: made[name] for name in ("greedy", "rpg")}, size.tasks)
        before, after = statistics.fmean(passed["greedy"]), statistics.fmean(passed["rpg"])
        lab.row("tasks passed (greedy)", before, after)
        lab.check("no task is lost", f"{after:.3g} against {before:.3g}", after >= before, None)
        lab.say("tables")
        rows = {name: _table_rows(lab, made[name]) for name in ("greedy", "rpg")}
        lab.row("rows of tables that the prompt asks for (greedy)", *map(float, rows.values()))
        lab.check(
            "tables keep 90% of their rows",
            f"{rows['rpg']} of {rows['greedy']}",
            rows["rpg"] >= 0.9 * rows["greedy"],
            None,
        )
    else:
        lab.note("Quick: a few prompts and short texts; the full run takes 60 of each kind, all baselines, and tasks.")
