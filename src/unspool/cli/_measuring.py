"""What ``eval`` and ``bench`` share: a run from its options to its results, and what a person sees of it."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from unspool.cli import _options, _terminal
from unspool.core.errors import InvalidInput

if TYPE_CHECKING:
    from unspool.evaluation.answering import ArmSpec
    from unspool.evaluation.journal import Journal
    from unspool.evaluation.runs import Outcome
    from unspool.evaluation.suites import Features, Item, Suite


@dataclasses.dataclass
class Wish:
    """What the command line asks for.

    Args:
        suite, data, texts, limit, window, stride, raw: what is asked.
        methods, peers: who is asked; without methods the default, or of a suite that asks no method nobody.
        loading and others: how.
        samples, seed, max_new_tokens, exact: how much.
        out, report, as_json, quiet, fresh: what becomes of it.
        engine, address, replicas: where it runs.
        batches: sizes of batches that are measured besides.
        roofline: whether the machine's limit is measured.
    """

    suite: str
    data: Path | None = None
    texts: Sequence[Path] = ()
    limit: int | None = None
    window: int = 1024
    stride: int = 512
    raw: bool = False
    methods: Sequence[str] = ()
    peers: str | None = None
    loading: _options.Loading = _options.LOADING
    draft: str | None = None
    settings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    sampling: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    samples: int = 1
    seed: int = 0
    max_new_tokens: int | None = None
    exact: bool = False
    out: Path | None = None
    report: Path | None = None
    as_json: bool = False
    quiet: bool = False
    fresh: bool = False
    engine: str = "inprocess"
    address: str | None = None
    replicas: int | None = None
    roofline: bool = False
    batches: Sequence[int] = ()

    @property
    def silent(self) -> bool:
        return self.quiet or self.as_json


def check(wish: Wish) -> None:
    """What can be judged before anything is loaded.

    Raises:
        InvalidInput: if it cannot be done.
    """
    for path, option in ((wish.out, "--out"), (wish.report, "--report")):
        if path is not None:
            _options.check_place(path, option)
    if wish.limit is not None and wish.limit < 1:
        raise InvalidInput(f"--limit is {wish.limit}; give the number of items, from 1 on")
    if wish.samples < 1:
        raise InvalidInput(f"--samples is {wish.samples}; give the number of answers to each item, from 1 on")
    if wish.max_new_tokens is not None and wish.max_new_tokens < 1:
        raise InvalidInput(f"{wish.max_new_tokens} new tokens were asked for; there must be 1 at least")
    if wish.samples > 1 and not wish.sampling.get("temperature"):
        raise InvalidInput(
            f"--samples {wish.samples} without a temperature gives {wish.samples} times the same answer: add "
            "--temperature 0.8, say"
        )


def load_items(wish: Wish, suite: Suite) -> list[Item]:
    """The items that are asked, spread over the categories if there is a limit.

    Raises:
        InvalidInput: if the data is not to be had, or does not fit the suite.
    """
    from unspool.evaluation.prompts import spread
    from unspool.evaluation.suites.perplexity import Perplexity

    if wish.texts and isinstance(suite, Perplexity):
        items = suite.load_texts(wish.texts)
    elif wish.texts:
        if suite.name != "repetition" or len(wish.texts) > 1:
            raise InvalidInput(f"--text is for perplexity (any number of files) and repetition (one), not {suite.name}")
        items = suite.load(wish.texts[0])
    else:
        items = suite.load(wish.data)
    if wish.limit is not None and suite.kind == "generate":
        items = spread(items, wish.limit)
    changes: dict[str, Any] = {}
    if wish.raw:
        changes["chat"] = False
    if wish.max_new_tokens is not None and suite.kind == "generate":
        changes["max_new_tokens"] = wish.max_new_tokens
    return [dataclasses.replace(item, **changes) for item in items] if changes else items


def choose_arms(wish: Wish, suite: Suite, items: Sequence[Item]) -> tuple[list[ArmSpec], list[dict[str, str]]]:
    """The arms, and the peers that cannot take part.

    Raises:
        UnspoolError: if a method, a setting or a peer is not known, or the suite has no reference answers.
    """
    from unspool.evaluation import arms

    running = dataclasses.asdict(wish.loading)
    model = running.pop("model")
    if suite.kind == "score":
        if wish.methods or wish.peers:
            raise InvalidInput(f"{suite.name} asks the model for probabilities and nobody for answers: name no methods")
        (plain,) = arms.method_specs(["plain"], model, settings={}, sampling={}, **running)
        return [dataclasses.replace(plain, name="model")], []
    names = wish.methods or [_options.DEFAULT_METHOD]
    ours = [name for name in names if name not in arms.REFERENCES]
    references = [name for name in names if name in arms.REFERENCES]
    specs = arms.method_specs(ours, model, settings=wish.settings, sampling=wish.sampling, draft=wish.draft, **running)
    known = arms.reference_specs(suite, items, references)
    order = {name: place for place, name in enumerate(names)}
    specs = sorted([*specs, *known], key=lambda spec: order.get(spec.name, 0))
    absent: list[dict[str, str]] = []
    if wish.peers is not None:
        if wish.sampling.get("temperature"):
            raise InvalidInput("--peers decode greedily, as the comparison of speed is made: leave --temperature out")
        beside, absent = arms.peer_specs(wish.peers, model, threads=wish.loading.threads, draft=wish.draft)
        specs += beside
    if not specs:
        raise InvalidInput("there is nobody to answer: name a method, or a peer that is installed")
    return specs, absent


def journal_of(wish: Wish, suite: Suite, items: Sequence[Item], specs: Sequence[ArmSpec]) -> Journal:
    """The journal of this run: beside the output, or in the cache folder if nothing is written.

    Raises:
        InvalidInput: if another run's journal is in its place.
    """
    from unspool import __version__
    from unspool.evaluation.journal import Journal
    from unspool.evaluation.runs import digest, fingerprint

    which = fingerprint(suite, items, specs, samples=wish.samples, seed=wish.seed, ignore_eos=wish.exact)
    which["unspool"] = __version__
    beside = wish.out or wish.report
    if beside is not None:
        path = beside.with_name(beside.name + ".journal.jsonl")
    else:
        from unspool.models.storage import cache_dir

        path = cache_dir() / "runs" / f"{suite.name}-{digest(which)}.journal.jsonl"
    if wish.fresh:
        path.unlink(missing_ok=True)
    return Journal(path, which)


def measure(wish: Wish) -> tuple[dict[str, Any], Suite]:
    """Do it: the results, as the results file has them.

    Raises:
        UnspoolError: if something that was asked for is not to be had.
        typer.Exit: with 130, after Ctrl-C; the journal is left.
    """
    check(wish)
    with _terminal.working("Starting", quiet=wish.silent):
        from unspool.evaluation import batches, runs, suites
        from unspool.evaluation.suites.perplexity import Perplexity

        suite: Suite = Perplexity(wish.window, wish.stride) if wish.suite == Perplexity.name else suites.get(wish.suite)
        items = load_items(wish, suite)
        specs, absent = choose_arms(wish, suite, items)
        if wish.batches:
            batches.check(wish.batches, items, specs)
            if wish.engine != "inprocess":
                raise InvalidInput(f"--batches is measured in this process: leave --engine {wish.engine} out")
        if len({item.id for item in items}) < len(items):
            raise InvalidInput(f"the data of {suite.name} has several items of one id")
        engines: dict[Any, Any] = {}
        executor = runs.make_executor(wish.engine, address=wish.address, replicas=wish.replicas, engines=engines)
        _fetch(wish, specs)
    if isinstance(suite, Perplexity):
        items = _windows(wish, suite, items, specs[0], engines)
    journal = journal_of(wish, suite, items, specs)
    if journal.resumed and not wish.silent:
        _say(f"going on with {journal.resumed} answers of an earlier run ({journal.path}); --fresh drops them")
    started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    try:
        with _progress(wish) as bars:
            outcome = runs.run(
                suite,
                items,
                specs,
                samples=wish.samples,
                seed=wish.seed,
                journal=journal,
                executor=executor,
                ignore_eos=wish.exact,
                on_plan=bars.plan,
                on_row=bars.row,
                on_judged=bars.judged,
            )
            together = (
                batches.measure(
                    wish.batches, items, specs, engines, seed=wish.seed, exact=wish.exact, on_batch=bars.batch
                )
                if wish.batches
                else []
            )
        results = _results(wish, suite, items, outcome, engines, specs, absent, started)
        if together:
            results["batches"] = together
    except KeyboardInterrupt as error:
        journal.close()
        _say(f"stopped. Give the same command again to go on; what is done lies in {journal.path}")
        raise typer.Exit(130) from error
    _write(wish, results)
    journal.remove()
    return results, suite


def _fetch(wish: Wish, specs: Sequence[ArmSpec]) -> None:
    """Have the models on disk before progress is shown; downloads show their own."""
    if any(spec.model for spec in specs):
        from unspool.models.hub import resolve

        for name in filter(None, (wish.loading.model, wish.draft)):
            resolve(name, progress=not wish.silent and _terminal.errors().is_terminal)


def _windows(wish: Wish, suite: Any, items: Sequence[Item], spec: ArmSpec, engines: dict[Any, Any]) -> list[Item]:
    from unspool.evaluation.answerers import engine_of

    with _terminal.working(f"Loading {wish.loading.model}", quiet=wish.silent):
        engine = engine_of(spec, engines)
        if engine.model.tokenizer is None:
            raise InvalidInput(f"{wish.loading.model} has no tokenizer, so there are no tokens to count")
        windows: list[Item] = suite.windows(items, engine.model.tokenizer)
    return windows if wish.limit is None else windows[: wish.limit]


def _results(
    wish: Wish,
    suite: Suite,
    items: Sequence[Item],
    outcome: Outcome,
    engines: dict[Any, Any],
    specs: Sequence[ArmSpec],
    absent: list[dict[str, str]],
    started: str,
) -> dict[str, Any]:
    from unspool import __version__
    from unspool.evaluation import machine, results

    with _terminal.working("Summing up", quiet=wish.silent):
        features = _features(specs, engines) if suite.uses_features and len(items) > 1 else None
        names = list(outcome.arms)
        baseline = "plain" if "plain" in names else names[0]
        return {
            "schema": results.SCHEMA,
            "command": ["unspool", *sys.argv[1:]],
            "unspool": __version__,
            "machine": machine.describe(),
            "suite": suite.name if wish.suite == suite.name else wish.suite,
            "model": wish.loading.model,
            "started": started,
            "arms": outcome.arms,
            "limit": {
                "items": len(items),
                "samples": wish.samples,
                "seed": wish.seed,
                "max_new_tokens": wish.max_new_tokens,
                "exact": wish.exact,
                **({"window": wish.window, "stride": wish.stride} if suite.kind == "score" else {}),
            },
            "notes": suite.notes(),
            "summary": results.summarise(suite, items, outcome.rows, features=features, seed=wish.seed),
            "paired": results.compare_arms(suite, outcome.rows, baseline, seed=wish.seed) if len(names) > 1 else [],
            "roofline": _roofline(wish, outcome.rows),
            "absent": [*absent, *outcome.absent],
            "rows": outcome.rows,
        }


def _features(specs: Sequence[ArmSpec], engines: dict[Any, Any]) -> Features | None:
    """Features of texts: the last token's hidden state under the model at hand."""
    spec = next((spec for spec in specs if spec.kind == "method"), None)
    if spec is None:
        return None
    from unspool.core.model import Capability
    from unspool.evaluation.answerers import engine_of
    from unspool.evaluation.metrics import last_states

    engine = engine_of(spec, engines)
    if Capability.HIDDEN_STATES not in engine.model.capabilities:
        return None
    return lambda texts: last_states(engine.model, [engine.encode(text, chat=False) for text in texts])


def _roofline(wish: Wish, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The machine's limit, for texts as long as those of this run are half-way through their answers."""
    turns = [turn for row in rows for turn in row["turns"] if turn["tokens"]]
    if not wish.roofline or not turns:
        return None
    import torch

    from unspool.evaluation.roofline import roofline
    from unspool.models.hub import resolve

    context = sum(turn["prompt_tokens"] + turn["tokens"] / 2 for turn in turns) / len(turns)
    threads = wish.loading.threads or torch.get_num_threads()
    return roofline(resolve(wish.loading.model, progress=False), threads, context, dtype=wish.loading.dtype)


def _write(wish: Wish, results: Mapping[str, Any]) -> None:
    from unspool.evaluation import results as files

    if wish.out is not None:
        files.write(wish.out, files.dumps(results))
    if wish.report is not None:
        from unspool.evaluation.report import html

        files.write(wish.report, html(results))
    if not wish.silent:
        for path in filter(None, (wish.out, wish.report)):
            _say(f"written: {path}")


def _say(text: str) -> None:
    _terminal.errors().print(text, style="dim", markup=False, soft_wrap=True)


# -- progress -----------------------------------------------------------------------------------------------------


class _Bars:
    """Bars for answers, judging and batches; nothing where standard error is not a terminal."""

    def __init__(self, progress: Any) -> None:
        self._progress = progress
        self._answers: Any = None
        self._judging: Any = None
        self._together: Any = None
        self._rows = 0

    def plan(self, jobs: int, done: int) -> None:
        self._rows = jobs
        if self._progress is not None:
            # An estimate from answers that an earlier run gave would promise too much: only the rest is shown.
            self._answers = self._progress.add_task("answers", total=jobs - done)

    def row(self, row: Mapping[str, Any]) -> None:
        if self._progress is not None:
            self._progress.update(self._answers, advance=1, description=f"{row['arm']} · {row['item']}"[:48])

    def judged(self, place: int) -> None:
        if self._progress is not None:
            if self._judging is None:
                self._judging = self._progress.add_task("judging", total=self._rows or None)
            self._progress.update(self._judging, advance=1)

    def batch(self, arm: str, size: int) -> None:
        if self._progress is not None:
            if self._together is None:
                self._together = self._progress.add_task("batches", total=None)
            self._progress.update(self._together, advance=1, description=f"{arm} · {size} together")


@contextmanager
def _progress(wish: Wish) -> Iterator[_Bars]:
    console = _terminal.errors()
    if wish.silent or not console.is_terminal:
        yield _Bars(None)
        return
    from rich import progress

    with progress.Progress(
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TextColumn("left"),
        progress.TimeRemainingColumn(),
        console=console,
        transient=True,
    ) as bars:
        yield _Bars(bars)
