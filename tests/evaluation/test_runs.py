"""Runs: their order, their journal, their resumption, and what becomes of failures."""

import json
import pickle
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

import pytest
from tests.evaluation.small import small_engine

from unspool.core.errors import InvalidInput
from unspool.engine import Engine
from unspool.evaluation import runs
from unspool.evaluation.answerers import EngineAnswerer
from unspool.evaluation.answering import Answer, Answerer, ArmSpec, Task, TurnRecord
from unspool.evaluation.journal import Journal
from unspool.evaluation.suites import Item, Suite


class Length(Suite):
    name = "length"
    metrics = ("length",)

    def judge(self, item: Item, answer: Answer) -> dict[str, float]:
        return {"length": float(len(answer.text))}


class Echo:
    """Says its name and the question; refuses ``bad``; counts what it did."""

    kind = "method"

    def __init__(self, name: str, log: list[tuple[str, ...]]) -> None:
        self.name = name
        self.log = log
        self.about: Mapping[str, Any] = {"kind": "method", "lossless": True, "greedy": True, "plain": name == "plain"}

    def warm_up(self) -> None:
        self.log.append(("warm", self.name))

    def answer(self, task: Task) -> Answer:
        self.log.append((self.name, task.item, str(task.sample)))
        if task.item == "stop":
            raise KeyboardInterrupt
        if task.item == "bad" and self.name != "plain":
            raise InvalidInput("the prompt is too long")
        ids = (1, 2, 3) if self.name != "other" else (1, 2, 4)
        return Answer((TurnRecord(f"{self.name}:{task.turns[0]}", 3, 5, "length", 0.5, 0.1, {}, ids),))

    def close(self) -> None:
        self.log.append(("close", self.name))


def echoes(log: list[tuple[str, ...]]) -> runs.InProcess:
    def make(spec: ArmSpec, engines: MutableMapping[Any, Any]) -> Answerer:
        return Echo(spec.name, log)

    return runs.InProcess(make=make)


def items(*names: str) -> list[Item]:
    return [Item(name, "all", (f"question {name}",)) for name in names]


SPECS = [ArmSpec(name, "m", name) for name in ("plain", "same", "other")]


def test_arms_are_interleaved_in_rotating_order_and_warmed_up_once() -> None:
    log: list[tuple[str, ...]] = []
    outcome = runs.run(Length(), items("a", "b", "c", "d"), SPECS, executor=echoes(log))
    assert log[:3] == [("warm", "plain"), ("warm", "same"), ("warm", "other")]
    assert log[-3:] == [("close", "plain"), ("close", "same"), ("close", "other")]
    order = [name for name, item, _ in log[3:-3]]
    assert order == ["plain", "same", "other", "same", "other", "plain", "other", "plain", "same", *order[:3]]
    assert [(row["item"], row["arm"]) for row in outcome.rows[:4]] == [
        ("a", "plain"), ("a", "same"), ("a", "other"), ("b", "plain"),
    ]  # fmt: skip
    assert outcome.rows[0]["scores"] == {"length": len("plain:question a")}


def test_equality_with_plain() -> None:
    rows = runs.run(Length(), items("a"), SPECS, executor=echoes([])).rows
    assert [row["scores"].get("equals_plain") for row in rows] == [None, 1.0, 0.0]


def test_an_answer_that_fails_is_a_row_and_scored_as_nothing() -> None:
    rows = runs.run(Length(), items("a", "bad"), SPECS, executor=echoes([])).rows
    failed = [row for row in rows if "error" in row]
    assert [(row["item"], row["arm"]) for row in failed] == [("bad", "same"), ("bad", "other")]
    assert failed[0]["error"] == {"type": "InvalidInput", "message": "the prompt is too long"}
    assert failed[0]["turns"] == []
    assert failed[0]["scores"] == {"length": 0.0}


def test_seeds_differ_by_item_and_sample_and_are_the_same_for_all_arms() -> None:
    jobs = runs.plan(items("a", "b"), SPECS, 2, 0)
    seeds = {job.key: job.task.seed for job in jobs}
    assert len(set(seeds.values())) == 4
    assert seeds["a", "plain", 1] == seeds["a", "other", 1]
    assert {job.task.seed for job in runs.plan(items("a", "b"), SPECS, 2, 1)}.isdisjoint(seeds.values())


def fingerprint(*names: str, **changes: Any) -> dict[str, Any]:
    options: dict[str, Any] = {"samples": 1, "seed": 0, "ignore_eos": False, **changes}
    return runs.fingerprint(Length(), items(*names), SPECS, **options)


def test_a_stopped_run_goes_on_where_it_stood(tmp_path: Path) -> None:
    path = tmp_path / "out.json.journal.jsonl"
    whole = runs.run(Length(), items("a", "b", "c"), SPECS, executor=echoes([])).rows
    which = fingerprint("a", "b", "c")

    log: list[tuple[str, ...]] = []
    journal = Journal(path, which)

    def stop(row: dict[str, Any]) -> None:
        if (row["item"], row["arm"]) == ("b", "other"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runs.run(Length(), items("a", "b", "c"), SPECS, executor=echoes(log), journal=journal, on_row=stop)
    journal.close()
    assert ("close", "plain") in log
    # a kill in the middle of a line
    with path.open("a") as file:
        file.write('{"row": {"item": "b", "arm": "pl')

    log = []
    plans = []
    journal = Journal(path, which)
    assert journal.resumed == 5
    outcome = runs.run(
        Length(), items("a", "b", "c"), SPECS, executor=echoes(log), journal=journal,
        on_plan=lambda *plan: plans.append(plan),
    )  # fmt: skip
    assert plans == [(9, 5)]
    assert [entry[:2] for entry in log[3:-3]] == [("plain", "b"), ("other", "c"), ("plain", "c"), ("same", "c")]
    strip = [{key: value for key, value in row.items() if key != "peak_rss_bytes"} for row in outcome.rows]
    assert strip == [{key: value for key, value in row.items() if key != "peak_rss_bytes"} for row in whole]

    journal.close()
    log = []
    outcome = runs.run(Length(), items("a", "b", "c"), SPECS, executor=echoes(log), journal=Journal(path, which))
    assert log == []  # all is done: nothing is made, nothing is asked
    assert list(outcome.arms) == ["plain", "same", "other"]
    assert len(outcome.rows) == 9


def test_the_journal_of_another_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path, fingerprint("a"))
    journal.append({"item": "a", "arm": "plain", "sample": 0})
    journal.close()
    with pytest.raises(InvalidInput, match="1 finished answers of another run, which differs in items, "):
        Journal(path, fingerprint("a", "b"))
    with pytest.raises(InvalidInput, match="seed"):
        Journal(path, fingerprint("a", seed=1))
    assert Journal(path, fingerprint("a")).resumed == 1


def test_a_journal_without_rows_stands_in_nobodys_way(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path, fingerprint("a"))
    journal.note_arms({"plain": {}}, [])
    journal.close()
    again = Journal(path, fingerprint("b"))
    assert (again.resumed, again.arms) == (0, {})
    again.append({"item": "b", "arm": "plain", "sample": 0})
    again.close()
    assert Journal(path, fingerprint("b")).resumed == 1


@pytest.mark.parametrize("content", ["something else\n", '{"a": 1}\n', "no line end", '{"journal": 99, "run": {}}\n'])
def test_what_is_no_journal_is_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "notes.txt"
    path.write_text(content)
    with pytest.raises(InvalidInput, match="is no journal"):
        Journal(path, fingerprint("a"))
    assert path.read_text() == content


def test_rows_are_on_disk_at_once(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path, fingerprint("a"))
    journal.append({"item": "a", "arm": "plain", "sample": 0, "text": "\ud800\u2028é"})
    lines = path.read_bytes().split(b"\n")
    assert len(lines) == 3
    assert json.loads(lines[1])["row"]["text"] == "\ud800\u2028é"
    journal.remove()
    assert not path.exists()


def test_a_peer_that_is_not_there_is_noted_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from unspool.evaluation import peers

    def make(spec: ArmSpec, engines: MutableMapping[Any, Any]) -> Answerer:
        if spec.kind == "peer":
            raise peers.PeerAbsent("it does not read this model")
        return Echo(spec.name, [])

    name = peers.names()[0]
    specs = [*SPECS, ArmSpec(name, "m", name, kind="peer")]
    outcome = runs.run(Length(), items("a"), specs, executor=runs.InProcess(make=make))
    assert [row["arm"] for row in outcome.rows] == ["plain", "same", "other"]
    assert outcome.absent == [peers.absence(name, "it does not read this model")]


def test_jobs_and_arms_can_be_sent_elsewhere() -> None:
    spec = ArmSpec("plain", "m", "plain", {"settings": {"a": 1}})
    job = runs.plan(items("a"), [spec], 1, 0)[0]
    assert pickle.loads(pickle.dumps((spec, job))) == (spec, job)  # noqa: S301 - our own bytes
    result = runs.Result(job.key, Answer((TurnRecord("t", 1, 1, "length", 1.0, None),)))
    assert pickle.loads(pickle.dumps(result)) == result  # noqa: S301 - our own bytes


def test_engines_by_name() -> None:
    assert isinstance(runs.make_executor("inprocess"), runs.InProcess)
    with pytest.raises(InvalidInput, match="no engine 'abacus'"):
        runs.make_executor("abacus")
    with pytest.raises(InvalidInput, match="--address"):
        runs.make_executor("inprocess", address="auto")


# -- methods of ours ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine() -> Engine:
    return small_engine()


def task(*turns: str, **changes: Any) -> Task:
    values: dict[str, Any] = {"chat": None, "max_new_tokens": 12, "stop": (), "sample": 0, "seed": 0, **changes}
    return Task("item", tuple(turns), **values)


def test_turns_are_asked_after_the_models_own_answers(engine: Engine) -> None:
    arm = EngineAnswerer(engine, ArmSpec("plain", "small", "plain"))
    arm.warm_up()
    first, second = arm.answer(task("one", "two")).turns
    alone = engine.generate("one", "plain", max_new_tokens=12)
    assert first.text == alone.text
    assert list(first.token_ids) == alone.tokens
    talk = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": first.text},
        {"role": "user", "content": "two"},
    ]
    assert list(second.token_ids) == engine.generate(talk, "plain", max_new_tokens=12).tokens
    assert second.prompt_tokens == len(engine.encode(talk))
    assert first.statistics["target_forwards"] == first.tokens


def test_raw_turns_have_no_template(engine: Engine) -> None:
    arm = EngineAnswerer(engine, ArmSpec("plain", "small", "plain"))
    first, second = arm.answer(task("one", "two", chat=False)).turns
    assert first.prompt_tokens == 3
    assert second.prompt_tokens == len(engine.encode(f"one\n\n{first.text}\n\ntwo", chat=False))


def test_an_exact_number_of_tokens(engine: Engine) -> None:
    arm = EngineAnswerer(engine, ArmSpec("plain", "small", "plain"))
    (free,) = arm.answer(task("one")).turns
    assert free.finish_reason == "stop-token"
    assert free.tokens < 12
    (stopped,) = arm.answer(task("one", stop=(free.text[:1],))).turns
    assert (stopped.text, stopped.finish_reason) == ("", "stop-string")
    (exact,) = arm.answer(task("one", stop=(free.text[:1],), ignore_eos=True)).turns
    assert (exact.tokens, exact.finish_reason) == (12, "length")
    assert exact.token_ids[: free.tokens] == free.token_ids


def test_a_lossless_method_equals_plain_in_a_run(engine: Engine) -> None:
    def make(spec: ArmSpec, engines: MutableMapping[Any, Any]) -> Answerer:
        return EngineAnswerer(engine, spec)

    specs = [ArmSpec(name, "small", name) for name in ("token-recycling", "plain")]
    outcome = runs.run(Length(), items("a", "b"), specs, executor=runs.InProcess(make=make))
    scores = [row["scores"].get("equals_plain") for row in outcome.rows]
    assert scores == [1.0, None, 1.0, None]
    assert outcome.arms["token-recycling"]["lossless"]
    assert outcome.arms["plain"]["plain"]
    assert all(row["peak_rss_bytes"] is None or row["peak_rss_bytes"] > 2**20 for row in outcome.rows)


def test_probabilities_of_a_text(engine: Engine) -> None:
    from unspool.evaluation.metrics import log_probs

    tokens = tuple(engine.encode("the quick brown fox", chat=False))
    arm = EngineAnswerer(engine, ArmSpec("plain", "small", "plain"))
    (turn,) = arm.answer(task(tokens=tokens, score_from=4)).turns
    assert turn.tokens == len(tokens) - 4
    assert turn.statistics["nll"] == pytest.approx(-float(log_probs(engine.model, tokens[:4], tokens[4:]).sum()))


def test_a_prompt_beyond_the_context_is_an_error_of_its_row(engine: Engine) -> None:
    def make(spec: ArmSpec, engines: MutableMapping[Any, Any]) -> Answerer:
        return EngineAnswerer(engine, spec)

    long = [Item("long", "all", ("x" * 3000,), max_new_tokens=4), Item("short", "all", ("x",), max_new_tokens=4)]
    rows = runs.run(Length(), long, [ArmSpec("plain", "small", "plain")], executor=runs.InProcess(make=make)).rows
    assert rows[0]["error"]["type"] == "InvalidInput"
    assert "error" not in rows[1]
