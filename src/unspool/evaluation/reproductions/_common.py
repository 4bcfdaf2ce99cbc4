"""What experiments share: the model, prompts with statistics, plain baselines, comparison of outputs, timing."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console

from unspool.core.compose import Composition
from unspool.core.events import Finished
from unspool.core.model import LanguageModel
from unspool.core.registry import registry
from unspool.core.statistics import Statistics
from unspool.core.texts import Stop
from unspool.engine import Engine, load
from unspool.evaluation.metrics import continuation_logits
from unspool.evaluation.prompts import Prompt, find_data, load_prompts, passages, spread
from unspool.evaluation.reproductions._report import Check, Reproduction, Row

TIE = 1e-3
"""Two logits that are nearer than this may change places when the same text is computed in another batch."""


# -- registering and running --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Experiment:
    """One experiment.

    Attributes:
        slug: of the method.
        quick, full: two sizes of it, of a frozen dataclass of its own.
        measure: takes a :class:`Lab` and a size, and fills the lab with rows, checks and notes.
        model: the target's name, where it is not the packaged default.
        backend: that runs it, in single precision; ``transformers`` where the experiment reaches into the network.
    """

    slug: str
    quick: Any
    full: Any
    measure: Callable[[Lab, Any], None]
    model: str | None = None
    backend: str = "auto"


def experiment(
    slug: str, *, quick: Any, full: Any, model: str | None = None, backend: str = "auto"
) -> Callable[[Callable[[Lab, Any], None]], Experiment]:
    """Decorator: makes ``EXPERIMENT`` out of a module's measuring function."""

    def make(measure: Callable[[Lab, Any], None]) -> Experiment:
        if measure.__module__.rpartition(".")[2] != slug.replace("-", "_"):
            raise ValueError(f"the experiment {slug!r} stands in {measure.__module__}; its file must have its name")
        return Experiment(slug, quick, full, measure, model, backend)

    return make


@dataclass
class Lab:
    """Where an experiment is made: what it may use, and what it writes down."""

    engine: Engine
    slug: str
    quick: bool = False
    data: Path | None = None
    console: Console | None = None
    began: float = field(default_factory=time.perf_counter)
    setup: dict[str, Any] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def model(self) -> LanguageModel:
        return self.engine.model

    def row(self, metric: str, baseline: float | None, method: float | None) -> None:
        """Write down a number beside its baseline."""
        self.rows.append(Row(metric, baseline, method))

    def check(self, criterion: str, measured: float | str, met: bool, direction: bool | None = None) -> None:
        """Write down a criterion; without ``direction`` there is no half way to it."""
        text = measured if isinstance(measured, str) else f"{measured:.4g}"
        self.checks.append(Check(criterion, text, bool(met), bool(met if direction is None else direction)))

    def note(self, text: str) -> None:
        self.notes.append(text)

    def say(self, text: str) -> None:
        """Tell what is being done now."""
        if self.console is not None:
            self.console.print(f"[dim]{time.perf_counter() - self.began:6.1f} s[/dim]  {text}", highlight=False)

    # -- prompts --------------------------------------------------------------------------------------------------

    def chats(self, count: int, *, new_tokens: int) -> tuple[str, list[list[int]]]:
        """``count`` chat prompts that leave room for an answer, as token ids, and the name of their source.

        Spec-Bench if the data has it, else the packaged chat and code prompts, half and half.
        """

        def fits(prompt: Prompt) -> bool:
            room = self.model.context_length
            return room is None or len(self.engine.encode(prompt.text)) + new_tokens <= room

        path = find_data("spec_bench.jsonl", self.data)
        if path is not None:
            chosen, source = spread(load_prompts(path), count, fits), path.name
        else:
            text = spread(load_prompts("builtin-text"), (count + 1) // 2, fits)
            chosen, source = (
                text + spread(load_prompts("builtin-code"), count - len(text), fits),
                "builtin-text + builtin-code",
            )
            # Alternate, so that a sample that is cut short has both.
            half = len(text)
            chosen = [chosen[place // 2 + (half if place % 2 else 0)] for place in range(len(chosen))]
        return source, [self.engine.encode(prompt.text) for prompt in chosen]

    def prose(self, count: int, *, length: int = 32, skip: int = 0) -> list[list[int]]:
        """``count`` beginnings of ``length`` tokens for continuation, not put into a chat template."""
        tokenizer = self.model.tokenizer
        return passages(lambda text: list(tokenizer.encode(text)), count, length, skip=skip)


def conduct(
    made: Experiment, size: Any, model: str | Engine, quick: bool, data: Path | None, progress: bool
) -> Reproduction:
    """Run an experiment at a size."""
    console = Console(stderr=True) if progress else None
    began = time.perf_counter()
    engine = load(model, dtype="float32", backend=made.backend, progress=progress) if isinstance(model, str) else model
    lab = Lab(engine, made.slug, quick, data, console, began)
    lab.say(f"{engine.model.name} is loaded")
    with torch.no_grad():
        made.measure(lab, size)
    setup = {
        "model": engine.model.name,
        "dtype": str(engine.model.dtype).removeprefix("torch."),
        "device": str(engine.model.device),
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "quick": quick,
        "size": asdict(size),
        **lab.setup,
        "seconds": round(time.perf_counter() - began, 1),
    }
    claim = registry[made.slug].card.claim
    return Reproduction(made.slug, claim, setup, lab.rows, lab.checks, lab.notes)


# -- decoding -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Continuation:
    """What one prompt gave."""

    prompt: list[int]
    tokens: list[int]
    statistics: Statistics


def decode_all(
    composition: Composition,
    prompts: Sequence[Sequence[int]],
    *,
    new_tokens: int,
    batch: int = 1,
    seed: int = 0,
    stop_tokens: frozenset[int] | None = None,
) -> list[Continuation]:
    """Decode every prompt, ``batch`` of them side by side.

    Statistics of a request count the passes that it took part in; seconds are those of its batch. Every request has
    random numbers of its own, which follow from ``seed``, the batch, and the place in it.

    Args:
        stop_tokens: instead of the model's own; an empty set lets every text grow to ``new_tokens``.
    """
    done: list[Continuation] = []
    for first in range(0, len(prompts), batch):
        group = [list(prompt) for prompt in prompts[first : first + batch]]
        counts = [Statistics() for _ in group]
        tokens: dict[int, list[int]] = {}
        began = time.perf_counter()
        for event in composition.decode(group, stop=Stop(new_tokens, stop_tokens), seed=seed * 1_000_003 + first):
            elapsed = time.perf_counter() - began
            for index, count in enumerate(counts):
                count.update(event, elapsed, index)
            if isinstance(event, Finished):
                tokens[event.index] = list(event.tokens)
        done += [Continuation(group[i], tokens[i], counts[i]) for i in range(len(group))]
    return done


def forwards_per_token(runs: Sequence[Continuation]) -> float:
    """Target passes a token, averaged over prompts."""
    return statistics.fmean(run.statistics.forwards_per_token for run in runs)


def tokens_per_step(runs: Sequence[Continuation]) -> float:
    """Mean accepted length: tokens that one verified step commits, over all steps of all prompts."""
    return sum(len(run.tokens) for run in runs) / sum(run.statistics.steps for run in runs)


def decode_seconds(runs: Sequence[Continuation]) -> float:
    """Seconds a token, the reading of the prompts included; for batches of one."""
    return sum(run.statistics.seconds for run in runs) / sum(len(run.tokens) for run in runs)


# -- comparing ----------------------------------------------------------------------------------------------------


@dataclass
class Agreement:
    """How outputs compare with plain decoding, text by text.

    Attributes:
        equal: texts that are token for token the same.
        ties: texts that part where the two best logits of the plain run are equal up to rounding.
        different: texts that part elsewhere, with the gap of the two best logits there.
    """

    equal: int = 0
    ties: int = 0
    different: list[float] = field(default_factory=list)

    @property
    def identical(self) -> bool:
        return not self.different

    def __str__(self) -> str:
        total = self.equal + self.ties + len(self.different)
        text = f"{self.equal} of {total} texts equal, {self.ties} part at a numerical tie"
        if self.different:
            text += f", {len(self.different)} differ (gaps {', '.join(f'{gap:.2g}' for gap in self.different)})"
        return text


def agreement(model: LanguageModel, plain: Sequence[Continuation], other: Sequence[Continuation]) -> Agreement:
    """Compare texts with those of plain greedy decoding.

    Two passes of different widths round differently. Where a text parts from the plain one, the gap between the plain
    run's two best logits decides: below ``TIE`` it is a numerical tie, which is counted; else it is a difference.
    """
    found = Agreement()
    for expected, got in zip(plain, other, strict=True):
        if expected.tokens == got.tokens:
            found.equal += 1
            continue
        pairs = zip(expected.tokens, got.tokens, strict=False)
        shorter = min(len(expected.tokens), len(got.tokens))
        at = next((place for place, (a, b) in enumerate(pairs) if a != b), shorter)
        if at == shorter:
            # One text ends where the other goes on: no logits can excuse that.
            found.different.append(float("inf"))
            continue
        logits = continuation_logits(model, expected.prompt, expected.tokens[: at + 1])[-1]
        best = logits.topk(2).values
        gap = float(best[0] - best[1])
        if gap < TIE:
            found.ties += 1
        else:
            found.different.append(gap)
    return found


# -- chance ------------------------------------------------------------------------------------------------------


def chi_square_tail(statistic: float, degrees: int) -> float:
    """p-value of Pearson's statistic: the upper tail is a regularised incomplete gamma function."""
    half = torch.tensor([max(degrees, 1) / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


# -- timing -------------------------------------------------------------------------------------------------------


def interleaved(actions: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Least seconds of each action, run in turn ``rounds`` times after one warm-up each.

    The least, because what else runs on a machine only ever adds; in turn, so that it adds to all of them alike.
    """
    times: dict[str, list[float]] = {name: [] for name in actions}
    for turn in range(rounds + 1):
        for name, action in actions.items():
            began = time.perf_counter()
            action()
            if turn:
                times[name].append(time.perf_counter() - began)
    return {name: min(taken) for name, taken in times.items()}


def batches(items: Sequence[Any], size: int) -> Iterator[list[Any]]:
    """Consecutive pieces of at most ``size``."""
    for first in range(0, len(items), size):
        yield list(items[first : first + size])
