"""Running a suite: every arm answers every item, interleaved; what is done is written down at once.

Items are the outer loop and arms the inner, in an order that rotates from item to item, so that whatever drifts on the
machine (clock, heat, neighbours) meets all arms alike. Each arm is warmed up once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from unspool.core.errors import InvalidInput, UnspoolError
from unspool.evaluation.answering import Answer, Answerer, ArmSpec, Task, TurnRecord, make_answerer
from unspool.evaluation.journal import Journal
from unspool.evaluation.machine import peak_rss, reset_peak
from unspool.evaluation.suites import Item, Judged, Suite

Key = tuple[str, str, int]
"""Item, arm, sample."""

Make = Callable[[ArmSpec, MutableMapping[Any, Any]], Answerer]

EXECUTORS = ("inprocess", "ray")
"""Names of the executors that :func:`make_executor` makes."""


@dataclass(frozen=True)
class Job:
    """A task for an arm."""

    key: Key
    arm: str
    task: Task


@dataclass(frozen=True)
class Result:
    """What became of a job: an answer, or the reason why there is none.

    Args:
        key: of the job.
        answer: ``None`` if the arm could not answer.
        error: then ``{"type", "message"}``.
        peak_rss_bytes: the most memory that the process held during the answer, if the system tells it.
    """

    key: Key
    answer: Answer | None
    error: Mapping[str, str] | None = None
    peak_rss_bytes: int | None = None


@dataclass(frozen=True)
class Outcome:
    """What a run gave.

    Args:
        rows: judged.
        arms: what the arms say about themselves, by name.
        absent: peers that could not take part, and why.
    """

    rows: list[dict[str, Any]]
    arms: dict[str, dict[str, Any]]
    absent: list[dict[str, str]]


class Executor(Protocol):
    """Where arms stand and jobs are done."""

    absent: list[dict[str, str]]
    """Peers that could not take part: ``{"peer", "install", "reason"}``."""

    def start(self, specs: Sequence[ArmSpec]) -> dict[str, dict[str, Any]]:
        """Make the arms and warm each up once; what each says about itself, by name.

        A peer that turns out not to be there is noted in :attr:`absent` and has no place in what is returned.

        Raises:
            UnspoolError: if another arm cannot be made.
        """
        ...

    def run(self, jobs: Iterable[Job]) -> Iterator[Result]:
        """Do all jobs, each exactly once, and yield what becomes of them, in any order.

        An ``UnspoolError`` of one job is its result; any other exception ends the run.
        """
        ...

    def close(self) -> None: ...


class InProcess:
    """Arms in this process, one job after the other; arms of one model share its weights.

    Args:
        engines: of models that are loaded already, by model; those that are loaded here are put there.
        make: makes an arm from its specification.
    """

    def __init__(self, engines: MutableMapping[Any, Any] | None = None, make: Make = make_answerer) -> None:
        self._make = make
        self._arms: dict[str, Answerer] = {}
        self._engines: MutableMapping[Any, Any] = {} if engines is None else engines
        self.absent: list[dict[str, str]] = []

    def start(self, specs: Sequence[ArmSpec]) -> dict[str, dict[str, Any]]:
        for spec in specs:
            arm = arm_or_absence(spec, self._make, self._engines)
            if isinstance(arm, dict):
                self.absent.append(arm)
            else:
                self._arms[spec.name] = arm
        for arm in self._arms.values():
            arm.warm_up()
        return {name: dict(arm.about) for name, arm in self._arms.items()}

    def run(self, jobs: Iterable[Job]) -> Iterator[Result]:
        for job in jobs:
            yield do(self._arms[job.arm], job)

    def close(self) -> None:
        for arm in self._arms.values():
            arm.close()
        self._arms.clear()


def arm_or_absence(spec: ArmSpec, make: Make, engines: MutableMapping[Any, Any]) -> Answerer | dict[str, str]:
    """The arm, or of a peer that cannot take part the entry of ``absent`` that says why."""
    if spec.kind != "peer":
        return make(spec, engines)
    from unspool.evaluation import peers

    try:
        return make(spec, engines)
    except peers.PeerAbsent as error:
        return peers.absence(spec.method, str(error))


def do(arm: Answerer, job: Job) -> Result:
    """Do one job with its arm, and watch the memory of this process meanwhile."""
    reset_peak()
    try:
        answer = arm.answer(job.task)
    except UnspoolError as error:
        return Result(job.key, None, {"type": type(error).__name__, "message": str(error)})
    # An arm that stands in another process knows the memory of that one.
    elsewhere = getattr(arm, "peak_rss_bytes", None)
    return Result(job.key, answer, peak_rss_bytes=peak_rss() if elsewhere is None else elsewhere)


def make_executor(
    name: str,
    *,
    address: str | None = None,
    replicas: int | None = None,
    engines: MutableMapping[Any, Any] | None = None,
) -> Executor:
    """An executor by name.

    Args:
        name: one of :data:`EXECUTORS`.
        address: of a cluster, for executors that stand on one.
        replicas: how many, for executors that have several.
        engines: see :class:`InProcess`.

    Raises:
        InvalidInput: if there is none of that name, it is not installed, or has no use for an address or replicas.
    """
    if name not in EXECUTORS:
        raise InvalidInput(f"there is no engine {name!r} to run on; there are: {', '.join(EXECUTORS)}")
    if name == "ray":
        from unspool.evaluation.ray_executor import RayExecutor

        return RayExecutor(address, replicas=replicas)
    if address is not None:
        raise InvalidInput(f"--address {address} is for clusters; the engine {name!r} is this process")
    if replicas is not None:
        raise InvalidInput(f"--replicas {replicas} is for --engine ray; the engine {name!r} is this process")
    return InProcess(engines)


def run(
    suite: Suite,
    items: Sequence[Item],
    specs: Sequence[ArmSpec],
    *,
    samples: int = 1,
    seed: int = 0,
    journal: Journal | None = None,
    executor: Executor | None = None,
    ignore_eos: bool = False,
    on_plan: Callable[[int, int], None] | None = None,
    on_row: Callable[[dict[str, Any]], None] | None = None,
    on_judged: Callable[[int], None] | None = None,
) -> Outcome:
    """Have every arm answer every item, judge the answers, and return rows in the order of items, samples and arms.

    Args:
        suite: judges.
        items: to be answered.
        specs: the arms.
        samples: answers to each item.
        seed: of the run; every (item, sample) has a seed made from it, the same for all arms.
        journal: holds what was done before, and is told what is done now. Judging is done again, it is cheap beside.
        executor: where the arms stand; by default in this process.
        ignore_eos: every turn has exactly ``max_new_tokens`` tokens.
        on_plan: told how many jobs there are and how many are already done.
        on_row: told every new row, before it is judged.
        on_judged: told the place of every row that has been judged.

    Raises:
        UnspoolError: if an arm cannot be made. A job that fails does not end the run: its row has an ``error``.
    """
    by_id = {item.id: item for item in items}
    rows: dict[Key, dict[str, Any]] = {} if journal is None else journal.rows()
    about: dict[str, dict[str, Any]] = {} if journal is None else journal.arms
    absent = [] if journal is None else journal.absent
    standing = [spec for spec in specs if not about or spec.name in about]
    if not about or any(job.key not in rows for job in plan(items, standing, samples, seed, ignore_eos)):
        executor = executor if executor is not None else InProcess()
        try:
            about = executor.start(specs)
            absent = list(executor.absent)
            standing = [spec for spec in specs if spec.name in about]
            if journal is not None:
                journal.note_arms(about, absent)
            jobs = plan(items, standing, samples, seed, ignore_eos)
            waiting = [job for job in jobs if job.key not in rows]
            if on_plan is not None:
                on_plan(len(jobs), len(jobs) - len(waiting))
            kinds = {spec.name: spec.kind for spec in standing}
            for result in executor.run(waiting):
                row = _row(suite, by_id[result.key[0]], kinds[result.key[1]], result)
                rows[result.key] = row
                if journal is not None:
                    journal.append(row)
                if on_row is not None:
                    on_row(row)
        finally:
            executor.close()
    ordered = [rows[key] for key in sorted_keys(items, standing, samples)]
    judged = [Judged(by_id[row["item"]], answer_of(row)) for row in ordered]
    for row, scores in zip(ordered, suite.judge_all(judged, on_judged), strict=True):
        row["scores"] = scores
    compare_with_plain(ordered, about)
    return Outcome(ordered, about, absent)


def plan(
    items: Sequence[Item], specs: Sequence[ArmSpec], samples: int, seed: int, ignore_eos: bool = False
) -> list[Job]:
    """All jobs in the order in which they are to be done: items outside, arms inside, their order rotating."""
    arms = [spec.name for spec in specs]
    jobs = []
    for place, item in enumerate(items):
        for sample in range(samples):
            start = (place + sample) % len(arms)
            for arm in [*arms[start:], *arms[:start]]:
                jobs.append(Job((item.id, arm, sample), arm, task_of(item, sample, seed, ignore_eos)))
    return jobs


def task_of(item: Item, sample: int, seed: int, ignore_eos: bool = False) -> Task:
    """The task that one sample of an item is; its seed is made of the run's, the item and the sample."""
    digest = hashlib.sha256(f"{seed}/{item.id}/{sample}".encode()).digest()
    return Task(
        item.id,
        item.turns,
        item.chat,
        item.max_new_tokens,
        item.stop,
        sample,
        int.from_bytes(digest[:4], "big") >> 1,
        ignore_eos,
        tuple(item.data.get("tokens", ())),
        item.data.get("score_from"),
    )


def sorted_keys(items: Sequence[Item], specs: Sequence[ArmSpec], samples: int) -> list[Key]:
    """Keys of all rows in the order of the results: items, samples, arms as they were named."""
    return [(item.id, spec.name, sample) for item in items for sample in range(samples) for spec in specs]


def answer_of(row: Mapping[str, Any]) -> Answer:
    """The answer that a row holds; without turns if there was an error."""
    return Answer(tuple(TurnRecord.from_dict(turn) for turn in row["turns"]))


def compare_with_plain(rows: Iterable[dict[str, Any]], about: Mapping[str, Mapping[str, Any]]) -> None:
    """Give rows of lossless greedy methods the score ``equals_plain``: 1 if every turn has plain decoding's tokens.

    Only where an arm of the run is plain decoding of the same model under greedy.
    """
    kept = list(rows)
    plain = next((name for name, told in about.items() if told.get("plain") and told.get("greedy")), None)
    if plain is None:
        return
    expected = {
        (row["item"], row["sample"]): [list(turn["token_ids"]) for turn in row["turns"]]
        for row in kept
        if row["arm"] == plain and "error" not in row
    }
    for row in kept:
        told = about.get(row["arm"], {})
        key = (row["item"], row["sample"])
        if row["arm"] == plain or not (told.get("lossless") and told.get("greedy")) or key not in expected:
            continue
        if "error" not in row:
            row["scores"]["equals_plain"] = float([list(t["token_ids"]) for t in row["turns"]] == expected[key])


def fingerprint(
    suite: Suite, items: Sequence[Item], specs: Sequence[ArmSpec], *, samples: int, seed: int, ignore_eos: bool
) -> dict[str, Any]:
    """What makes two runs the same run, by name; long things by their hash."""
    return {
        "suite": suite.name,
        "items": digest([asdict(item) for item in items]),
        "number of items": len(items),
        "arms": [spec.name for spec in specs],
        "settings": digest([asdict(spec) for spec in specs]),
        "model": next((spec.model for spec in specs), ""),
        "samples": samples,
        "seed": seed,
        "exact number of tokens": ignore_eos,
    }


def digest(value: Any) -> str:
    """A short name for a long thing that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _row(suite: Suite, item: Item, kind: str, result: Result) -> dict[str, Any]:
    _, arm, sample = result.key
    row: dict[str, Any] = {
        "suite": suite.name,
        "item": item.id,
        "category": item.category,
        "arm": arm,
        "kind": kind,
        "sample": sample,
        "turns": [] if result.answer is None else [turn.as_dict() for turn in result.answer.turns],
        "scores": {},
        "peak_rss_bytes": result.peak_rss_bytes,
    }
    if result.error is not None:
        row["error"] = dict(result.error)
    return row
