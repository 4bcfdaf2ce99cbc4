"""DuoDecoding: what is drafted while the target works, what becomes of it, and where it runs."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import time
from typing import Any

import pytest
import torch
from tests.contracts.exact import FastTable, Softmax
from tests.models.shapes import backend, prompts
from tests.speculation.drafting.test_draft_model import Wandering
from tests.toys import TableModel

from unspool.core.branch import Branch
from unspool.core.compose import Composition, compose
from unspool.core.errors import Incompatible, InvalidInput
from unspool.core.events import Finished, Scored, Stepped
from unspool.core.texts import Stop
from unspool.speculation.drafting import duodecoding
from unspool.speculation.drafting._worker import (
    DraftWorkerError,
    InLine,
    InProcess,
    InThread,
    Order,
    Reply,
    Scribe,
    Text,
    _Sequences,
    sequence_count,
)
from unspool.speculation.drafting.duodecoding import DuoDecoding, _Line

TARGET = FastTable(7, seed=1, scale=2.0)
DRAFT = FastTable(7, seed=2, scale=2.0, mix=TARGET, blend=0.8)
PROMPTS = [[1, 2, 3], [4], [5, 6] * 10]


def made(sampler: Any = None, draft: Any = DRAFT, target: Any = TARGET, **settings: Any) -> Composition:
    return compose(target, "duodecoding", settings=settings, sampler=sampler, models={"draft": draft})


def drafter(composition: Composition) -> DuoDecoding:
    assert isinstance(composition.drafter, DuoDecoding)
    return composition.drafter


def run(composition: Composition, asked: list[list[int]] = PROMPTS, length: int = 40, seed: int = 0) -> list[Any]:
    return list(composition.decode(asked, stop=Stop(max_new_tokens=length), seed=seed))


def texts(events: list[Any]) -> dict[int, tuple[int, ...]]:
    return {event.index: event.tokens for event in events if isinstance(event, Finished)}


PLAIN = texts(run(compose(TARGET)))


# -- how many sequences -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "pair", "most", "count"),
    [
        ([0.9, 0.05, 0.03], 0.8, 12, 1),
        ([0.4, 0.3, 0.2, 0.05], 0.1, 12, 3),
        ([0.4, 0.3, 0.2, 0.05], 0.01, 12, 4),
        ([0.4, 0.3, 0.2, 0.05], 0.25, 12, 2),
        ([0.4, 0.1, 0.3], 0.2, 12, 1),  # counted until the first failure
        ([0.2] * 5, 0.05, 12, 4),  # 5 is no divisor of 12
        ([0.2] * 8, 0.05, 16, 8),
        ([0.2] * 8, 0.05, 1, 1),
        ([0.2] * 3, 0.05, 4, 2),
        ([0.2] * 8, 0.05, 4, 2),  # each gets two tokens at least
        ([0.2] * 8, 0.05, 2, 1),
        ([0.2] * 8, 0.05, 12, 6),
        ([1.0], 1.0, 6, 1),
    ],
)
def test_a_runner_up_is_worth_a_sequence_if_it_is_likelier_than_a_second_token(
    first: list[float], pair: float, most: int, count: int
) -> None:
    assert sequence_count(first, pair, most) == count


def by_hand(text: list[int], gamma: int, most: int) -> list[list[int]]:
    """The sequences, one pass after another over the table."""
    p = torch.softmax(DRAFT.next_logits(text).float(), -1)
    top = p.topk(min(most, 7))
    first = top.indices.tolist()
    pair = float(top.values[0] * torch.softmax(DRAFT.next_logits([*text, first[0]]).float(), -1).max())
    count = sequence_count(top.values.tolist(), pair, gamma)
    found = []
    for token in first[:count]:
        sequence = [token]
        while len(sequence) < gamma // count:
            sequence.append(int(DRAFT.next_logits([*text, *sequence]).argmax()))
        found.append(sequence)
    return found


@pytest.mark.parametrize("gamma", [1, 2, 6, 12])
@pytest.mark.parametrize("most", [1, 3, 8])
def test_sequences_begin_with_the_best_tokens_and_go_on_greedily(gamma: int, most: int) -> None:
    sequences = _Sequences(DRAFT)
    asked = [list(text) for text in itertools.product(range(7), repeat=2)]
    branches = [Branch(n, 0, text, None, 0, torch.device("cpu"), []) for n, text in enumerate(asked)]  # type: ignore[arg-type]
    found, passes = sequences.write(branches, [gamma] * len(asked), most)
    counts = set()
    for text, written in zip(asked, found, strict=True):
        assert [[token for token, _ in sequence] for sequence in written] == by_hand(text, gamma, most)
        counts.add(len(written))
        for sequence in written:
            path = list(text)
            for token, chance in sequence:
                assert chance == pytest.approx(float(torch.softmax(DRAFT.next_logits(path), -1)[token]), abs=1e-6)
                path.append(token)
    assert passes <= gamma + 1
    if most == 8 and gamma == 12:
        assert len(counts) > 2


def test_models_that_score_only_chains_write_one_sequence() -> None:
    chains = FastTable(7, seed=2)
    chains.capabilities = frozenset()
    scribe = Scribe(chains)
    reply = scribe.carry_out(Order(0, [Text(0, 0, [], 0, [1, 2], 12)], 8))
    assert [len(sequence) for sequence in reply.drafts[0]] == [12]


# -- what becomes of it -------------------------------------------------------------------------------------------


def test_what_follows_a_text() -> None:
    line = _Line()
    line.base, line.tail = 2, [(5, 0.5), (6, 0.5)]
    line.sequences = [[(1, 0.4), (2, 0.9)], [(3, 0.3), (4, 0.9)]]
    text = [9, 9]
    assert line.following([*text, 5, 6, 1]) == [(2, 0.9)]
    assert line.following([*text, 5, 6, 3]) == [(4, 0.9)]
    assert line.following([*text, 5, 6, 7]) == []
    assert line.following([*text, 5, 7]) == []
    assert line.following([*text, 5]) == [(6, 0.5), (1, 0.4), (2, 0.9)], "the tail stands as far as it was judged"
    assert line.following(text) == [(5, 0.5), (6, 0.5), (1, 0.4), (2, 0.9)]
    assert line.following([*text, 5, 6, 3, 4]) == []


def reference(prompt: list[int], length: int, gamma: int, most: int) -> list[int]:
    """Tokens a round of the published machine of two modes, for a greedy target."""
    text = list(prompt)
    tail: list[int] = []
    gained: list[int] = []
    budget = 1
    while sum(gained) < length:
        # Both work at once: the target on the tail, the draft model on what comes after it.
        sequences = by_hand(text + tail, budget, most)
        path = list(text)
        for token in tail:
            if int(TARGET.next_logits(path).argmax()) != token:
                break
            path.append(token)
        whole = len(path) == len(text) + len(tail)
        own = int(TARGET.next_logits(path).argmax())
        gained.append(len(path) + 1 - len(text))
        text = [*path, own]
        chosen = next((s for s in sequences if s[0] == own), None) if whole else None
        tail = chosen[1:] if chosen is not None else []
        budget = gamma
    return gained


@pytest.mark.parametrize(("gamma", "most"), [(4, 1), (6, 8), (12, 8)])
def test_rounds_are_those_of_the_published_machine(gamma: int, most: int) -> None:
    composition = made(gamma=gamma, sequences=most)
    longest = 0
    for prompt in PROMPTS:
        steps = [event for event in run(composition, [prompt], 60) if isinstance(event, Stepped)]
        gained = [len(step.tokens) for step in steps]
        wanted = reference(prompt, 60, gamma, most)
        assert gained[:-1] == wanted[: len(gained) - 1]
        longest = max(longest, *gained)
        assert not steps[0].draft, "the first token is not waited for"
    assert longest > 2


@pytest.mark.parametrize("settings", [{"gamma": 6}, {"gamma": 4, "executor": "thread"}, {}])
def test_the_text_is_plain_decodings(settings: dict[str, Any]) -> None:
    composition = made(**settings)
    for _ in range(2):
        assert texts(run(composition)) == PLAIN
    # Fixed candidates are matched with the target's own draws.
    drawn = texts(run(made(Softmax(), **settings), seed=3))
    assert drawn == texts(run(compose(TARGET, sampler=Softmax()), seed=3))
    drafter(composition).close()


@pytest.mark.parametrize("shape", ["llama", "gemma3", "t5", "mamba2"])
def test_networks_draft_in_a_thread(shape: str) -> None:
    target, draft = backend(shape), backend(shape, noise=0.02)
    asked = prompts(2)
    composition = compose(target, "duodecoding", settings={"executor": "thread", "gamma": 4}, models={"draft": draft})
    events = run(composition, asked, 16)
    assert texts(events) == texts(run(compose(target), asked, 16))
    assert sum(len(event.accepted) for event in events if isinstance(event, Stepped)) > 0
    drafter(composition).close()


def test_passes_are_counted_once() -> None:
    composition = made(gamma=6)
    before = DRAFT.forwards
    events = run(composition)
    counted = sum(event.draft_forwards for event in events if isinstance(event, Scored))
    assert counted == DRAFT.forwards - before > 0


def test_the_budget_follows_the_times() -> None:
    composition = made()
    pace = drafter(composition)._pace
    assert pace.budget() == 4
    for target, draft, gamma in ((0.1, 0.01, 8), (0.1, 0.2, 1), (0.1, 0.001, 24), (0.15, 0.01, 16)):
        pace.target, pace.draft = target, draft
        assert pace.budget() == gamma
    run(composition)
    assert drafter(composition).clock.rounds > 0
    assert drafter(composition).clock.drafting > 0


@pytest.mark.parametrize("executor", ["inline", "thread"])
def test_branches_that_fork_and_rewind(executor: str) -> None:
    drafting = DuoDecoding(DuoDecoding.Settings(gamma=6, executor=executor))
    composition = compose(TARGET, [drafting, Wandering()], sampler=Softmax(), models={"draft": DRAFT})
    for seed in range(3):
        run(composition, [[1, 2, 3] * 20, [4, 5]], 60, seed)
    worker: Any = drafting._executor
    if executor == "thread":
        worker._pool.submit(int).result()
    assert not worker._scribe._texts
    assert not drafting._keys
    assert not drafting._sent
    drafting.close()


# -- where it runs ------------------------------------------------------------------------------------------------


def test_the_executor_is_chosen_by_the_model() -> None:
    assert drafter(made()).executor_kind == "inline"
    tiny = backend("llama", noise=0.1)
    chosen = compose(backend("llama"), "duodecoding", models={"draft": tiny}).drafter
    assert chosen.executor_kind == "inline"  # type: ignore[union-attr]
    itself = compose(backend("llama"), "duodecoding", models={"draft": backend("llama")}).drafter
    assert itself.executor_kind == "inline"  # type: ignore[union-attr]
    with pytest.raises(Incompatible, match="cannot run twice"):
        made(draft=TARGET, executor="thread")


def test_a_large_model_gets_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duodecoding, "_TINY", 1000)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    models = {"draft": backend("llama", noise=0.1)}
    large = compose(backend("llama"), "duodecoding", models=models).drafter
    assert large.executor_kind == "process"  # type: ignore[union-attr]
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert compose(backend("llama"), "duodecoding", models=models).drafter.executor_kind == "inline"  # type: ignore[union-attr]


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(Incompatible, match="only models of transformers"):
        Scribe(DRAFT, "cpu")
    with pytest.raises(InvalidInput, match="cannot be used here"):
        Scribe(backend("llama", noise=0.1), "cuda:77")


ORDER = Order(0, [Text(0, 0, [], 0, [1, 2, 3], 6), Text(1, 1, [], 0, [4], 6)], 8)


def settled(reply: Reply | None) -> Any:
    assert reply is not None
    return reply.drafts, reply.passes, reply.forwards


@pytest.mark.timeout(120)
def test_a_process_drafts_the_same_and_its_end_is_told() -> None:
    """One process for all that is asked of one: starting it takes seconds."""
    worker = InProcess(DRAFT, None, 60.0, core=min(os.sched_getaffinity(0)))
    beside = InLine(DRAFT, None)
    beside.submit(ORDER)
    worker.submit(ORDER)
    assert worker.collect(0) is None, "nobody waits while it starts"
    worker.wait()
    worker.submit(ORDER)
    assert settled(worker.collect(0)) == settled(beside.collect(0))
    # The text goes on, one ends.
    further = Order(1, [Text(1, 1, [], 1, [3, 2], 4)], 8, [0])
    for one in (worker, beside):
        one.submit(further)
    assert settled(worker.collect(1)) == settled(beside.collect(1))

    # What goes wrong there is raised here, and it lives on.
    worker.submit(Order(2, [Text(2, 2, [], 0, [99], 4)], 8))
    with pytest.raises(DraftWorkerError, match="IndexError"):
        worker.collect(2)
    worker.submit(ORDER)
    assert worker.collect(0) is not None

    # A drafter that loses it says so, and starts another with the next request.
    composition = made(executor="process", gamma=4)
    part = drafter(composition)
    part._executor = worker
    assert texts(run(composition)) == PLAIN
    events = composition.decode(PROMPTS, stop=Stop(40))
    for event in events:
        if isinstance(event, Stepped) and event.step > 1:
            break
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(DraftWorkerError, match="has gone, with exit code -9"):
        list(events)
    assert part._executor is None


def test_a_worker_that_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scribe, "carry_out", lambda self, order: time.sleep(0.5))
    worker = InThread(DRAFT, None, 0.05)
    worker.submit(ORDER)
    with pytest.raises(DraftWorkerError, match=r"did not answer within 0.05 s"):
        worker.collect(0)
    worker.close()


def test_an_error_in_a_thread_is_raised() -> None:
    worker = InThread(DRAFT, None, 10.0)
    worker.submit(Order(0, [Text(0, 0, [], 0, [99], 4)], 8))
    with pytest.raises(IndexError):
        worker.collect(0)
    worker.close()


class Unsendable(TableModel):
    def __reduce__(self) -> Any:
        raise TypeError("made of glass")


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_processes_end_with_their_owners() -> None:
    worker = InProcess(DRAFT, None, 60.0)
    worker.wait()
    process = worker._process
    del worker
    gc.collect()
    assert process.poll() is not None

    glass = InProcess(Unsendable(7), None, 60.0)
    with pytest.raises(DraftWorkerError, match="made of glass"):
        glass.wait()


def test_another_vocabulary_is_refused() -> None:
    with pytest.raises(Incompatible, match="must share one vocabulary"):
        made(draft=TableModel(8))
