"""``unspool calibrate``: from pairs of prompts and right answers to the file that a method's promise rests on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unspool.cli import _options, _session, _terminal
from unspool.core.errors import InvalidInput

if TYPE_CHECKING:
    from unspool.constraints._pac_calibration import Calibration, Pair
    from unspool.constraints._pac_pairs import Question
    from unspool.engine import Engine

_METHODS = ("pac-code-sets",)

_HELP = """Calibrate a method that promises something about its outputs.

pac-code-sets: a program with holes contains the right one with probability 1 - epsilon. The data is a file of JSON
lines, each with a "reference" (the right program) and a "prompt" (or "messages"), which the model is asked with the
options given here, or with "tokens" and "logprobs" of an output that is there. What is asked later should come from
where these pairs come from, and be decoded with the same options.

[bold]Examples[/bold]

  unspool calibrate pac-code-sets --data pairs.jsonl --output c.json --epsilon 0.2

  unspool calibrate pac-code-sets --data pairs.jsonl --output c.json --language sql -m text-to-sql --raw

  unspool generate "Reverse a list." --method pac-code-sets --set calibration=c.json
"""


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("calibrate", help=_HELP)(_options.sampling_options(_options.loading_options(calibrate)))


def complete_calibrated(incomplete: str) -> list[str]:
    """Methods that can be calibrated."""
    return [slug for slug in _METHODS if slug.startswith(incomplete)]


def calibrate(
    method: Annotated[str, typer.Argument(help="What to calibrate.", autocompletion=complete_calibrated)],
    data: Annotated[Path, typer.Option("--data", metavar="FILE", help="Pairs, one JSON object a line.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Where the calibration goes.")],
    epsilon: Annotated[float, typer.Option("--epsilon", help="The chance of a miss that is accepted.")] = 0.2,
    delta: Annotated[
        float, typer.Option("--delta", help="The chance that the pairs mislead, and misses are more frequent.")
    ] = 0.01,
    holes: Annotated[int, typer.Option("--holes", min=1, help="Holes of a partial program at most.")] = 3,
    language: Annotated[str, typer.Option("--language", help="Of the programs: python or sql.")] = "python",
    optimiser: Annotated[
        str, typer.Option("--optimiser", help="knapsack, milp (the same with HiGHS), greedy (a baseline).")
    ] = "knapsack",
    points: Annotated[int, typer.Option("--points", min=1, max=100_000, help="Thresholds that are tried.")] = 100,
    with_method: Annotated[
        str,
        typer.Option("--method", "-M", help="How outputs are decoded; join several slugs with +."),
    ] = _options.DEFAULT_METHOD,
    setting: _options.Set = None,
    draft: _options.Draft = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the prompts as they are, without the chat template.")
    ] = False,
    max_new_tokens: _options.MaxNewTokens = 256,
    stop: Annotated[
        list[str] | None, typer.Option("--stop", help="A string that ends an output and is not part of it. Repeatable.")
    ] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Prompts side by side.")] = 8,
    seed: _options.Seed = 0,
    loading: _options.Loading = _options.LOADING,
    quiet: _options.Quiet = False,
    as_json: _options.Json = False,
    **sampling: Any,
) -> None:
    """Calibrate a method; see the help text."""
    if method not in _METHODS:
        raise InvalidInput(f"{method!r} cannot be calibrated; what can: {', '.join(_METHODS)}")
    if language not in ("python", "sql"):
        raise InvalidInput(f"--language is {language!r}; it is python or sql")
    if optimiser not in ("knapsack", "milp", "greedy"):
        raise InvalidInput(f"--optimiser is {optimiser!r}; it is knapsack, milp or greedy")
    _options.check_place(output, "--output")
    silent = quiet or as_json
    with _terminal.working("Starting", quiet=silent):
        from unspool.constraints._pac_calibration import Pair, Solver, allowed_misses
        from unspool.constraints._pac_pairs import Question, read_pairs

        pairs = read_pairs(data)
        allowed_misses(len(pairs), epsilon, delta)  # too few pairs are told before anything is decoded
        parts = [slug for slug in (one.strip() for one in with_method.split("+")) if slug != method]
        joined = "+".join(parts or [_options.DEFAULT_METHOD])
        questions = [pair for pair in pairs if isinstance(pair, Question)]
        if questions:
            _session.check(joined, sampling)

    solver = Solver(language, holes, optimiser, points)  # type: ignore[arg-type]
    told_by = ""
    with _bar(silent) as advance:
        if questions:
            engine = _session.open_engine(loading, quiet=silent)
            told_by = engine.model.name
            if engine.model.tokenizer is None:
                raise InvalidInput(
                    f"{loading.model} has no tokenizer; bring the outputs along, as tokens with logprobs"
                )
            options = {
                "max_new_tokens": max_new_tokens,
                "stop": tuple(stop or ()),
                "seed": seed,
                "draft": draft,
                "settings": _options.parse_settings(setting),
                **sampling,
            }
            for pair in _written(engine, questions, joined, raw, batch, options):
                solver.add(pair)
                advance(len(pairs))
        for one in pairs:
            if isinstance(one, Pair):
                solver.add(one)
                advance(len(pairs))
    made = solver.calibrate(epsilon, delta, told_by)
    made.save(output)
    if as_json:
        typer.echo(json.dumps({**made.as_dict(), "path": str(output)}))
    elif not quiet:
        for line in _lines(made, output):
            typer.echo(line)


def _written(
    engine: Engine, questions: list[Question], method: str, raw: bool, batch: int, options: dict[str, Any]
) -> Iterator[Pair]:
    """What the model answers, with its log-probabilities."""
    from unspool.constraints._pac_calibration import Pair
    from unspool.core.events import Finished
    from unspool.core.sockets import Reader, Reading

    class Taker(Reader):
        """Takes the texts as they are."""

        reads_log_probs = True

        def read(self, outputs: Any, chosen: int) -> Reading:
            return Reading("", {"output": outputs[chosen]})

    # One part for all batches, so that what drafters learn stays.
    taker = Taker()
    for first in range(0, len(questions), batch):
        group = questions[first : first + batch]
        prompts = [engine.encode(one.prompt, False if raw and isinstance(one.prompt, str) else None) for one in group]
        found = {}
        # Other random numbers for every batch.
        options = {**options, "seed": options["seed"] + (first > 0)}
        for event in engine.events(prompts, [method, taker], **options):
            if isinstance(event, Finished) and event.reading is not None:
                found[event.index] = event.reading.data["output"]
        for index, one in enumerate(group):
            text = found[index]
            yield Pair(text.text, text.spans, text.log_probs, one.reference)


@contextmanager
def _bar(silent: bool) -> Iterator[Callable[[int], None]]:
    """Within it, a function to be called for every pair, with the number of all."""
    console = _terminal.errors()
    if silent or not console.is_terminal:
        yield lambda total: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task("pairs", total=None, visible=False)
        yield lambda total: bars.update(task, advance=1, total=total, visible=True)


def _lines(made: Calibration, path: Path) -> list[str]:
    """The result for people."""
    left_out = f"; {made.unread} left out, as their reference does not parse" if made.unread else ""
    unparsed = f"; the output of {made.unparsed} does not parse" if made.unparsed else ""
    lines = [f"{path}: {made.pairs} pairs{left_out}{unparsed}"]
    if made.place is None:
        lines.append(
            f"no threshold misses {made.allowed} pairs or fewer: the prediction is a single hole, which is always right"
        )
    else:
        lines.append(
            f"threshold {made.tau:.5g} misses {made.missed} of them ({made.allowed} allowed) and keeps "
            f"{100 * made.kept:.0f}% of the nodes"
        )
    lines.append(
        f"partial programs contain the right one with probability {1 - made.epsilon:g}, confidence {1 - made.delta:g}"
    )
    return lines
