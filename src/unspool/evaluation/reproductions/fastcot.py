"""Fast chain-of-thought: right answers from rationales that are cut short while their end is still a guess.

Paper: Zhang et al., Fast Chain-of-Thought, 2023: about 20% less time on chain-of-thought tasks with a negligible drop
of accuracy, whatever the window. Models of the size at hand do not reason, so a small one that was trained to add six
numbers line by line, and to read on past wrong tokens, stands for them: answers against target passes, for rationales
cut after so many passes, with the guesses of the window behind them and without. SmolLM2-135M shows what Jacobi
decoding alone saves on ordinary text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from unspool.core.compose import compose
from unspool.evaluation.prompts import load_prompts, spread
from unspool.evaluation.reproductions._common import (
    Continuation,
    Lab,
    agreement,
    decode_all,
    experiment,
    tokens_per_step,
)
from unspool.models.load import load_model
from unspool.training.recipes.chained_sums import TRIGGER, Problem, problems

MIDDLE = (0.35, 0.5)
"""Budgets, as shares of the full cost, at which guesses are compared with none."""


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Args:
        problems: held-out sums, side by side.
        windows: approximate tokens.
        budgets: passes of the rationale, as shares of what the full one takes plainly.
        prompts, new_tokens: of the packaged model, for the passes that Jacobi decoding saves on ordinary text.
    """

    problems: int
    windows: tuple[int, ...]
    budgets: tuple[float, ...]
    prompts: int
    new_tokens: int


class Class:
    """Problems that are asked under different settings.

    Args:
        lab: its model adds.
        asked: the problems.
    """

    def __init__(self, lab: Lab, asked: Sequence[Problem]) -> None:
        self.lab = lab
        self.asked = asked
        self.prompts = [lab.model.tokenizer.encode(problem.question) for problem in asked]
        self.limit = max(len(problem.text) for problem in asked) + 8

    def runs(self, window: int | None = None, iterations: int | None = None) -> list[Continuation]:
        """Answers; plain ones without a window."""
        settings = {} if window is None else {"window": window, "iterations": iterations, "trigger": TRIGGER}
        made = compose(self.lab.model, () if window is None else "fastcot", settings=settings)
        return decode_all(made, self.prompts, new_tokens=self.limit, batch=len(self.prompts))

    def accuracy(self, runs: Sequence[Continuation]) -> float:
        """The share of right answers."""
        said = [self.lab.model.tokenizer.decode(run.tokens).partition(TRIGGER)[2] for run in runs]
        right = (text.split("\n")[0].strip() == problem.answer for text, problem in zip(said, self.asked, strict=True))
        return sum(right) / len(runs)


def _passes(runs: Sequence[Continuation]) -> float:
    """Target passes of a problem, on average."""
    return sum(run.statistics.steps for run in runs) / len(runs)


@experiment(
    "fastcot",
    quick=Size(32, (4, 8, 16), (0.2, 0.35, 0.5, 0.8), 2, 32),
    full=Size(200, (4, 8, 16), (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9), 20, 96),
    model="guessed-sums",
)
def EXPERIMENT(lab: Lab, size: Size) -> None:
    """Measure the exact part, answers against passes, and Jacobi decoding of ordinary text."""
    group = Class(lab, list(islice(problems(seed=2), size.problems)))
    lab.setup |= {"problems": size.problems, "sampler": "greedy", "batch": size.problems}
    lab.say("full rationales")
    plain = group.runs()
    full, cost = group.accuracy(plain), _passes(plain)
    lab.row("share of right answers, full rationale (1 is all)", 1.0, full)
    lab.check("the model answers at least 95% with the full rationale", full, full >= 0.95)
    for window in size.windows:
        lab.say(f"uncut, {window} places")
        runs = group.runs(window)
        lab.row(f"target passes of a full rationale, {window} places (plain)", cost, _passes(runs))
        found = agreement(lab.model, plain, runs)
        lab.check(f"uncut, with {window} places, the text is plain decoding's", str(found), found.identical)

    curves: dict[int, dict[int, float]] = {window: {} for window in (0, *size.windows)}
    exact = 0
    budgets = [max(round(share * cost), 1) for share in size.budgets]
    for passes in budgets:
        for window, curve in curves.items():
            lab.say(f"cut after {passes} passes, {window} places")
            runs = group.runs(window, passes)
            curve[passes] = group.accuracy(runs)
            # Each pass gives one exact token at least.
            exact += sum(run.tokens[:passes] == whole.tokens[:passes] for run, whole in zip(runs, plain, strict=True))
            if window:
                lab.row(
                    f"share of right answers, cut after {passes} of {cost:.0f} passes, {window} places (no guesses)",
                    curves[0][passes],
                    curve[passes],
                )
    count = len(budgets) * len(curves) * size.problems
    lab.check(
        "of a cut rationale as many tokens as passes are plain decoding's", f"{exact} of {count} texts", exact == count
    )
    _judge(lab, size, curves, full, cost)
    _unprepared(lab, group, max(size.windows), cost)
    lab.say("ordinary text")
    _ordinary(lab, size)
    lab.note(
        "The sums prove the mechanism, not the paper's numbers: the layout of their rationale is fixed, so that it is "
        "guessed far ahead. Large models read on past wrong tokens by themselves; a network of this size does only if "
        "it was trained with some, and the row of the other network shows what becomes of the method without that."
    )
    lab.note(
        "A window has to reach the end of the rationale from where the passes have come. At the least budgets only the "
        "wide ones do, so that there the choice of the window matters, as it does not above."
    )
    if lab.quick:
        lab.note("Quick: fewer problems and budgets; the full run asks 200.")


def _judge(lab: Lab, size: Size, curves: dict[int, dict[int, float]], full: float, cost: float) -> None:
    """Hold the curves of accuracy against passes to the criteria."""
    guessing = {window: curve for window, curve in curves.items() if window}
    enough = {
        window: min((passes for passes, right in curve.items() if right >= 0.98 * full), default=None)
        for window, curve in guessing.items()
    }
    cheapest = min((passes for passes in enough.values() if passes is not None), default=None)
    best = max(max(curve.values()) for curve in guessing.values())
    lab.check(
        "at some budget of at most 80% of the passes at least 98% of the full accuracy",
        f"best {best:.3g} of {full:.3g}" if cheapest is None else f"{cheapest} of {cost:.0f} passes",
        cheapest is not None and cheapest <= 0.8 * cost,
        best > max(right for passes, right in curves[0].items() if passes <= 0.8 * cost),
    )
    middle = sorted(curves[0], key=lambda passes: min(abs(passes - share * cost) for share in MIDDLE))[: len(MIDDLE)]
    gains = [curve[passes] - curves[0][passes] for curve in guessing.values() for passes in middle]
    lab.check(
        f"guesses are worth at least 5 points at {', '.join(map(str, sorted(middle)))} passes, with every window",
        f"least gain {100 * min(gains):.3g} points",
        min(gains) >= 0.05,
        min(gains) > 0,
    )
    spreads = [max(found) - min(found) for found in zip(*(curve.values() for curve in guessing.values()), strict=True)]
    lab.check(
        f"windows of {', '.join(map(str, guessing))} places differ by less than 5 points at every budget",
        f"largest difference {100 * max(spreads):.3g} points",
        max(spreads) < 0.05,
        min(spreads) < 0.05,
    )


def _unprepared(lab: Lab, group: Class, window: int, cost: float) -> None:
    """The same problems for a network that has only seen right texts; nothing is asked of it."""
    lab.say("a network that has only seen right texts")
    other = load_model("chained-sums", device=str(lab.model.device), progress=False)
    runs = decode_all(
        compose(other, "fastcot", settings={"window": window}),
        group.prompts,
        new_tokens=group.limit,
        batch=len(group.prompts),
    )
    lab.row(f"target passes of a full rationale, {window} places, {other.name} (plain)", cost, _passes(runs))


def _ordinary(lab: Lab, size: Size) -> None:
    """What Jacobi decoding saves where the text is not laid out in advance; nothing is asked of it."""
    model = load_model("smollm2-135m", device=str(lab.model.device), progress=False)
    chosen = spread(load_prompts("builtin-text"), size.prompts)
    prompts = [model.tokenizer.chat([{"role": "user", "content": prompt.text}]) for prompt in chosen]
    plain, jacobi = (
        decode_all(compose(model, methods), prompts, new_tokens=size.new_tokens, batch=len(prompts))
        for methods in ((), "fastcot")
    )
    lab.row("tokens per step on chats, SmolLM2-135M, uncut (plain)", tokens_per_step(plain), tokens_per_step(jacobi))
    found = agreement(model, plain, jacobi)
    lab.check("on chats, SmolLM2-135M, the text is plain decoding's", str(found), found.identical)
