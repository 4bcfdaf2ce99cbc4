"""ToolDec: calls without errors of syntax, and tools that no prompt names found by the meaning of their names.

Paper: Chen et al., Syntax Error-Free and Generalizable Tool Use for LLMs via Finite-State Decoding, 2023: syntax errors
fall to zero, unseen tools are chosen up to 8 times as often right, in up to half the time. Here: forty Python functions
and requests from templates, after three solved ones; the prompt names 25 of the functions, and every other request is
about one of the 15 that it does not name. Baselines: the same prompt unconstrained, and only names constrained. Every
call that can be read is made.
"""

from __future__ import annotations

import ast
import json
import math
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from unspool.constraints._tools import Tool, tools_of
from unspool.constraints.tooldec import ToolDec, ToolDecSettings
from unspool.core.compose import Composition, compose
from unspool.core.errors import GrammarError
from unspool.evaluation.reproductions._common import Continuation, Lab, decode_all, experiment
from unspool.evaluation.reproductions._tool_suite import SUITE, Request, requests
from unspool.sampling.standard import SamplingSettings, StandardSampler

TRIGGER, END = "<call>", "</call>"

Verdict = Literal["right", "wrong arguments", "wrong tool", "bad arguments", "unknown tool", "unreadable"]
ERRORS: tuple[Verdict, ...] = ("bad arguments", "unknown tool", "unreadable")


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Args:
        requests: half of them about tools that are held out.
        new_tokens: of a call.
        batch: requests side by side.
        names: whether names alone are also constrained.
        retries: times that an unconstrained call that cannot be made is drawn again.
    """

    requests: int
    new_tokens: int
    batch: int
    names: bool
    retries: int


@dataclass(frozen=True)
class Judged:
    """One answer.

    Args:
        verdict: of its first call.
        forwards: passes that it took, those of retries included.
    """

    verdict: Verdict
    forwards: int


def prompt(request: Request) -> str:
    """Names of the tools that are not held out, three solved requests, and this one."""
    named = ", ".join(asked.name for asked in SUITE if not asked.held_out)
    rng = random.Random(41)
    shots = [asked for asked in SUITE if not asked.held_out and asked.name != request.tool]
    solved = []
    for asked in rng.sample(shots, 3):
        made = asked.request(rng)
        arguments = ", ".join(f"{name}={json.dumps(value)}" for name, value in made.arguments.items())
        solved.append(f"Q: {made.text}\nA: {TRIGGER}{made.tool}({arguments}){END}\n")
    return f"Tools: {named}\n\n{''.join(solved)}Q: {request.text}\nA:"


def read_call(text: str, tools: Mapping[str, Tool]) -> tuple[str, dict[str, Any]] | None:
    """The tool and the arguments of a call as Python writes it; ``None`` if it is none.

    Places are given their names, ``true`` and ``false`` are read like ``True`` and ``False``.
    """
    try:
        call = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        return None
    tool = tools.get(call.func.id)
    names = list(tool.parameters.get("properties", {})) if tool is not None else []
    found: dict[str, Any] = {}
    if tool is not None and len(call.args) > len(names):
        return None
    given = [*zip(names, call.args, strict=False), *((keyword.arg, keyword.value) for keyword in call.keywords)]
    for name, node in given:
        if name is None:
            return None
        if isinstance(node, ast.Name) and node.id in ("true", "false", "null"):
            found[name] = {"true": True, "false": False, "null": None}[node.id]
            continue
        try:
            found[name] = ast.literal_eval(node)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            return None
    return call.func.id, found


def judge(text: str, request: Request, tools: Mapping[str, Tool]) -> Verdict:
    """What came of a request.

    Args:
        text: behind the trigger.
    """
    body, end, _ = text.partition(END)
    call = read_call(body, tools) if end else None
    if call is None:
        return "unreadable"
    name, arguments = call
    if name not in tools:
        return "unknown tool"
    try:
        made = tools[name].call(arguments)
    except GrammarError:
        return "bad arguments"
    assert made is not None
    try:
        made()
    except (ValueError, ArithmeticError, IndexError):
        # The types are right and the values make no sense: a mistake of meaning.
        return "wrong arguments" if name == request.tool else "wrong tool"
    if name != request.tool:
        return "wrong tool"
    return "right" if arguments == request.arguments else "wrong arguments"


def _answers(lab: Lab, made: Composition, asked: Sequence[str], size: Size, seed: int = 0) -> list[Continuation]:
    encode = lab.model.tokenizer.encode
    return decode_all(
        made, [list(encode(text)) for text in asked], new_tokens=size.new_tokens, batch=size.batch, seed=seed
    )


def _judged(
    lab: Lab, made: Composition, chosen: Sequence[Request], tools: Mapping[str, Tool], size: Size, free: bool
) -> list[Judged]:
    """Answers to all requests.

    Args:
        free: whether nothing writes the trigger; then it is the end of the prompt.
    """
    texts = [prompt(request) + (f" {TRIGGER}" if free else "") for request in chosen]
    found = []
    for request, run in zip(chosen, _answers(lab, made, texts, size), strict=True):
        text = lab.model.tokenizer.decode(run.tokens)
        # Passes behind the end of the call, up to the maximum, are not counted.
        forwards = run.statistics.forwards
        if free and END in text:
            decode = lab.model.tokenizer.decode
            forwards = next(n for n in range(1, len(run.tokens) + 1) if END in decode(run.tokens[:n]))
        text = text if free else text.partition(TRIGGER)[2]
        found.append(Judged(judge(text, request, tools), forwards))
    return found


def _retried(
    lab: Lab, first: Sequence[Judged], chosen: Sequence[Request], tools: Mapping[str, Tool], size: Size
) -> list[Judged]:
    """Unconstrained calls, those that could not be made drawn again."""
    sampled = compose(lab.model, sampler=StandardSampler(SamplingSettings(temperature=0.7)))
    found = list(first)
    for attempt in range(1, size.retries + 1):
        again = [place for place, one in enumerate(found) if one.verdict in ERRORS]
        if not again:
            break
        texts = [f"{prompt(chosen[place])} {TRIGGER}" for place in again]
        for place, run in zip(again, _answers(lab, sampled, texts, size, seed=attempt), strict=True):
            verdict = judge(lab.model.tokenizer.decode(run.tokens), chosen[place], tools)
            found[place] = Judged(verdict, found[place].forwards + run.statistics.forwards)
    return found


def _share(judged: Sequence[Judged], *verdicts: Verdict) -> float:
    return statistics.fmean(one.verdict in verdicts for one in judged) if judged else 0.0


def _per_right(judged: Sequence[Judged]) -> float:
    """Passes for each right call."""
    right = sum(one.verdict == "right" for one in judged)
    return sum(one.forwards for one in judged) / right if right else math.inf


@experiment(
    "tooldec",
    quick=Size(requests=8, new_tokens=44, batch=8, names=False, retries=0),
    full=Size(requests=200, new_tokens=64, batch=10, names=True, retries=3),
)
def EXPERIMENT(lab: Lab, size: Size) -> None:
    """Measure errors, the choice of tools, and passes."""
    tools = {tool.name: tool for tool in tools_of([asked.function for asked in SUITE])}
    chosen = requests(size.requests)
    lab.setup |= {
        "sampler": "greedy",
        "tools": f"{len(tools)}, {sum(asked.held_out for asked in SUITE)} of them held out",
        "requests": len(chosen),
    }
    settings: dict[str, Any] = {"when": "now", "calls": 1, "trigger": f" {TRIGGER}", "end": END, "result": ""}
    every = tuple(tools.values())
    arms = {
        "unconstrained": compose(lab.model),
        "tooldec": compose(lab.model, [ToolDec(ToolDecSettings(tools=every, close=True, **settings))]),
    }
    if size.names:
        arms["names alone"] = compose(lab.model, [ToolDec(ToolDecSettings(tools=every, arguments=False, **settings))])
    judged: dict[str, list[Judged]] = {}
    for name, made in arms.items():
        lab.say(f"{len(chosen)} requests: {name}")
        judged[name] = _judged(lab, made, chosen, tools, size, free=name == "unconstrained")
    if size.retries:
        lab.say(f"unconstrained, up to {size.retries} times again")
        judged["unconstrained, retried"] = _retried(lab, judged["unconstrained"], chosen, tools, size)

    plain, ours = judged["unconstrained"], judged["tooldec"]
    unseen = [place for place, request in enumerate(chosen) if request.held_out]
    chose: dict[str, float] = {}
    for name, answers in judged.items():
        held_out = [answers[place] for place in unseen]
        chose[name] = _share(held_out, "right", "wrong arguments", "bad arguments")
        if name != "unconstrained":
            told = f"{name} (unconstrained)"
            before = [plain[place] for place in unseen]
            lab.row(f"calls with errors: {told}", _share(plain, *ERRORS), _share(answers, *ERRORS))
            lab.row(f"right calls: {told}", _share(plain, "right"), _share(answers, "right"))
            lab.row(f"right calls of held-out tools: {told}", _share(before, "right"), _share(held_out, "right"))
            lab.row(f"the right tool, held out: {told}", chose["unconstrained"], chose[name])
            rates = (100 / _per_right(each) for each in (plain, answers))
            lab.row(f"right calls, of 100 passes: {told}", *rates)
    kinds = {kind: sum(one.verdict == kind for one in plain) for kind in ERRORS}
    lab.setup["errors of unconstrained calls"] = kinds

    wrong = _share(ours, *ERRORS)
    lab.check(
        "no call has an error, and of the unconstrained ones more than 15% have",
        f"{wrong:.3g} against {_share(plain, *ERRORS):.3g}",
        wrong == 0 and _share(plain, *ERRORS) > 0.15,
        wrong == 0,
    )
    lab.check(
        "held-out tools are chosen right at least 1.5 times as often",
        f"{chose['tooldec']:.3g} against {chose['unconstrained']:.3g}",
        chose["tooldec"] >= 1.5 * chose["unconstrained"] and chose["tooldec"] > 0,
        chose["tooldec"] > chose["unconstrained"],
    )
    lab.check(
        "fewer passes for a right call",
        f"{_per_right(ours):.3g} against {_per_right(plain):.3g}",
        _per_right(ours) < _per_right(plain),
    )
    lab.check(
        "right calls: more than without",
        f"{_share(ours, 'right'):.3g} against {_share(plain, 'right'):.3g}",
        _share(ours, "right") > _share(plain, "right"),
        _share(ours, "right") >= _share(plain, "right"),
    )
    lab.note("Passes behind the end of an unconstrained call are not counted against it.")
    if lab.quick:
        lab.note("Quick: 8 requests; the full run takes 200, names alone, and three retries of what is no call.")
