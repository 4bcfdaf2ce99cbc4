"""Constraints on JSONSchemaBench: our engines beside llguidance, xgrammar, Outlines, transformers and llama.cpp.

    python benchmarks/constraints.py --data PATH --limit 100                       # everything
    python benchmarks/constraints.py --data PATH --sections compile,mask,instances --limit 1000
    python benchmarks/constraints.py --data PATH --sections speed --writes 30 --out speed.json
    python benchmarks/constraints.py --table results.json                          # a finished run once more

Sections: ``compile`` (which schemas are taken, and how long that takes), ``mask`` (the time of a mask along texts that
satisfy the schema), ``instances`` (texts that satisfy it and are refused, texts that do not and are taken), ``output``
(what the model writes under each side, judged by jsonschema), ``speed`` (a token with and without a constraint; whole
answers beside peers, taking turns). The data holds schemas alone: texts are made, and jsonschema says what they are.

Every side stands in a process of its own; one that takes longer than ``--seconds`` for a schema is ended, and a schema
that ended it is told as a time-out. What is finished is in a journal beside ``--out``: the same command goes on where
one was stopped. Compile seconds are from the schema to where the first mask can be asked for; of texts, seconds
include it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from constrained.engines import SIDES, absent, versions
from constrained.instances import instances
from constrained.process import Process, serve
from constrained.tables import show
from constrained.writing import HOSTS
from rich.console import Console
from rich.progress import track

from unspool.core.errors import InvalidInput, UnspoolError
from unspool.evaluation.journal import Journal
from unspool.evaluation.prompts import spread
from unspool.evaluation.scoring import InvalidSchema, json_validity
from unspool.evaluation.suites import Item, get
from unspool.models.hub import resolve
from unspool.models.storage import write_whole
from unspool.models.tokenizer import TextTokenizer, read_tokenizer

SECTIONS = ("compile", "mask", "instances", "output", "speed")
OUTPUT = (
    "unspool", "unspool greatgramma", "unspool pre3-dpda", "unspool xgrammar", "llguidance", "xgrammar",
    "outlines-core",
)  # fmt: skip
SPEED = (
    "unspool", "unspool jumping", "llguidance", "xgrammar", "transformers + llguidance", "transformers + xgrammar",
    "llama.cpp",
)  # fmt: skip
_EVERY = tuple(dict.fromkeys((*SIDES, *SPEED)))
_RESERVE = 60.0
"""Seconds that a text may take beside compiling."""


def chosen(options: argparse.Namespace) -> list[Item]:
    """Schemas of the suite, drawn at random, as many of each part as of the others."""
    items = get("jsonschemabench").load(options.data)
    random.Random(options.seed).shuffle(items)
    return spread(items, options.limit or len(items))


def host_of(way: str) -> str:
    """The host that offers a way of writing."""
    return next(host for host, ways in HOSTS.items() if way in ways)


class Run:
    """One run: its processes, its journal, and how rows come about."""

    def __init__(self, options: argparse.Namespace, journal: Journal, console: Console) -> None:
        self.options = options
        self.journal = journal
        self.console = console
        self.rows = journal.rows()
        source = resolve(options.model, progress=False)
        self.tokenizer: TextTokenizer = read_tokenizer(options.model, str(source.path))
        self._processes: dict[str, Process] = {}

    def process(self, name: str) -> Process:
        """The process of a side or host."""
        if name not in self._processes:
            self._processes[name] = Process(name, self.options, Path(__file__))
        return self._processes[name]

    def close(self, *names: str) -> None:
        """End processes: these, or all."""
        for name in names or list(self._processes):
            if name in self._processes:
                self._processes.pop(name).close()

    def done(self, item: Item, arm: str) -> bool:
        return (item.id, arm, 0) in self.rows

    def note(self, item: Item, arm: str, told: Mapping[str, Any]) -> None:
        """Write down a row."""
        row = {"item": item.id, "arm": arm, "sample": 0, "category": item.category, **told}
        self.rows[item.id, arm, 0] = row
        self.journal.append(row)

    def bar(self, items: Sequence[Item], what: str) -> Iterator[Item]:
        """Items with a bar of progress."""
        yield from track(items, what, console=self.console, disable=not self.console.is_terminal, transient=True)

    def prompt(self, item: Item) -> list[int]:
        return self.tokenizer.chat([{"role": "user", "content": item.turns[0]}])

    def write(self, way: str, item: Item, prompt: list[int], limit: int) -> dict[str, Any]:
        """A text, and whether it is what the schema says."""
        asked = {"way": way, "schema": item.data["schema"], "prompt": prompt, "limit": limit}
        told = self.process(host_of(way)).ask(asked, self.options.seconds + _RESERVE)
        if "tokens" in told and way != "unconstrained":
            text = self.tokenizer.decode(told["tokens"])
            try:
                told |= {"text": text, **json_validity(text, item.data["schema"])}
            except InvalidSchema as error:
                told |= {"text": text, "unjudged": str(error)}
        return told


def engines(run: Run, items: Sequence[Item], sides: Sequence[str]) -> None:
    """Sections ``compile``, ``mask`` and ``instances``, side by side on each schema."""
    wanted = run.options.sections
    texts: dict[str, dict[str, Any]] = {}

    def made(item: Item) -> dict[str, Any]:
        if item.id not in texts:
            valid, invalid = [], []
            if "mask" in wanted or "instances" in wanted:
                valid, invalid = instances(item.data["schema"], run.options.texts, run.options.seed)
            encode = run.tokenizer.encode
            lists = [[list(encode(text, special=False)) for text in each] for each in (valid, invalid)]
            texts[item.id] = {
                "schema": item.data["schema"],
                "walked": lists[0] if "mask" in wanted else [],
                "valid": lists[0] if "instances" in wanted else [],
                "invalid": lists[1] if "instances" in wanted else [],
            }
            run.note(item, "texts", {"valid": valid, "invalid": invalid}) if not run.done(item, "texts") else None
        return texts[item.id]

    try:
        # Schema by schema: what a busy machine does it does to all sides alike.
        for item in run.bar(items, "masks"):
            for name in sides:
                if not run.done(item, f"engines/{name}"):
                    run.note(item, f"engines/{name}", run.process(name).ask(made(item), run.options.seconds))
            texts.pop(item.id, None)
    finally:
        run.close(*sides)


def _fitting(run: Run, items: Sequence[Item], count: int) -> list[Item]:
    """Items whose schema is short enough for the context."""
    return [item for item in items if len(run.prompt(item)) + run.options.new_tokens <= 1024][:count]


def output(run: Run, items: Sequence[Item], ways: Sequence[str]) -> None:
    """Section ``output``."""
    for item in run.bar(_fitting(run, items, run.options.writes), "texts"):
        prompt = run.prompt(item)
        for way in ways:
            if not run.done(item, f"output/{way}"):
                run.note(item, f"output/{way}", run.write(way, item, prompt, run.options.new_tokens))


def speed(run: Run, items: Sequence[Item], ways: Sequence[str]) -> None:
    """Section ``speed``: all ways take turns on each schema, in an order that rotates."""
    limit = run.options.new_tokens
    fitting = _fitting(run, items, run.options.writes)
    waiting = [item for item in fitting if not run.done(item, f"speed/{ways[-1]}")]
    order = list(ways)
    if waiting:
        for way in ("unconstrained", "unspool token by token", *ways):  # what is done once is done before
            run.write(way, waiting[0], run.prompt(waiting[0]), 8)
    for item in run.bar(waiting, "speed"):
        prompt = run.prompt(item)
        found: dict[str, dict[str, Any]] = {}
        pair: list[list[float]] = []
        prompts: list[float] = []
        length = 0
        for turn in range(run.options.rounds):
            # Which of the two goes first takes turns, from the second time on: then the length is known.
            free = run.write("unconstrained", item, prompt, length) if turn % 2 else None
            constrained = run.write("unspool token by token", item, prompt, limit)
            length = len(constrained.get("tokens", ()))
            if length < 8:
                break  # refused, or too short for the time of a token to mean anything
            free = free or run.write("unconstrained", item, prompt, length)
            seconds = [
                (told["seconds"] - told["first_seconds"]) / (len(told["tokens"]) - 1) for told in (free, constrained)
            ]
            pair.append(seconds)
            prompts.append(free["first_seconds"])
        if pair:
            found["pair"] = {"token_seconds": pair, "prompt_seconds": min(prompts)}
        for way in order:
            found[way] = run.write(way, item, prompt, limit)
        order.append(order.pop(0))
        # All at once and the last way last: an item that was broken off is measured anew.
        for name in sorted(found, key=lambda name: name == ways[-1]):
            run.note(item, f"speed/{name}", found[name])


def measure(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """All sections that were asked for; gives what :func:`constrained.tables.show` shows."""
    every = {
        "engines": [side for side in SIDES if options.sides is None or side in options.sides],
        "output": [way for way in OUTPUT if options.sides is None or way in options.sides],
        "speed": [way for way in SPEED if options.sides is None or way in options.sides],
    }
    missing = {side: why for sides in every.values() for side in sides if (why := absent(side)) is not None}
    sides = {name: [side for side in each if side not in missing] for name, each in every.items()}
    items = chosen(options)
    fingerprint = {
        "model": options.model, "sections": list(options.sections), "limit": options.limit, "seed": options.seed,
        "writes": options.writes, "texts": options.texts, "new_tokens": options.new_tokens, "rounds": options.rounds,
        "seconds": options.seconds, "threads": options.threads, "sides": sides,
    }  # fmt: skip
    journal = Journal(options.out.with_name(f"{options.out.name}.journal.jsonl"), fingerprint)
    if journal.resumed:
        console.print(f"{journal.resumed} rows are there from before")
    run = Run(options, journal, console)
    parts: tuple[tuple[bool, str, Callable[..., None]], ...] = (
        (bool({"compile", "mask", "instances"} & set(options.sections)), "engines", engines),
        ("output" in options.sections, "output", output),
        ("speed" in options.sections, "speed", speed),
    )
    try:
        for wanted, name, part in parts:
            if wanted and sides[name]:
                part(run, items, sides[name])
    finally:
        run.close()
        journal.close()
    told = {
        **fingerprint,
        "absent": list(missing.values()),
        "versions": versions(tuple(dict.fromkeys(side for each in sides.values() for side in each))),
        "schemas": len(items),
        "rows": [run.rows[key] for key in sorted(run.rows)],
    }
    write_whole(options.out, json.dumps(told, ensure_ascii=False).encode())
    journal.remove()
    return told


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=None, help="of JSONSchemaBench; by default $UNSPOOL_DATA")
    parser.add_argument("--sections", default=",".join(SECTIONS), help="by commas; the default is all of them")
    parser.add_argument("--limit", type=int, default=None, help="schemas; by default all")
    parser.add_argument("--writes", type=int, default=40, help="of these, for output and speed")
    parser.add_argument("--texts", type=int, default=3, help="that satisfy a schema, and as many that do not")
    parser.add_argument("--new-tokens", type=int, default=192, help="of a text that is written, at most")
    parser.add_argument("--rounds", type=int, default=3, help="of the comparison with and without a constraint")
    parser.add_argument("--seconds", type=float, default=30.0, help="for a schema and a side, at most")
    parser.add_argument("--seed", type=int, default=0, help="of which schemas are taken, and of the texts")
    parser.add_argument("--sides", default=None, help=f"only these, by commas: {', '.join(_EVERY)}")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path("constraints.json"), help="where results are written")
    parser.add_argument("--fresh", action="store_true", help="drop what an earlier run has left in the journal")
    parser.add_argument("--table", type=Path, default=None, metavar="RESULTS", help="only show a finished run")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON instead of tables")
    parser.add_argument("--serve", default=None, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.sections = tuple(name.strip() for name in options.sections.split(",") if name.strip())
    options.sides = None if options.sides is None else {name.strip() for name in options.sides.split(",")}
    if wrong := [name for name in options.sections if name not in SECTIONS]:
        raise InvalidInput(f"there is no section {wrong[0]!r}; there are {', '.join(SECTIONS)}")
    if wrong := sorted((options.sides or set()) - {*_EVERY}):
        raise InvalidInput(f"there is no side {wrong[0]!r}; there are {', '.join(_EVERY)}")
    for name in ("limit", "writes", "texts", "new_tokens", "rounds", "threads"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise InvalidInput(f"--{name.replace('_', '-')} must be at least 1")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    try:
        options = _options(arguments)
        if options.serve is not None:
            serve(options.serve, options.model, options.threads)
            return 0
        if options.table is not None:
            try:
                told = json.loads(options.table.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise InvalidInput(f"{options.table} holds no results: {error}") from error
        else:
            if options.fresh:
                options.out.with_name(f"{options.out.name}.journal.jsonl").unlink(missing_ok=True)
            told = measure(options, Console(stderr=True))
    except UnspoolError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    show(told, as_json=options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
