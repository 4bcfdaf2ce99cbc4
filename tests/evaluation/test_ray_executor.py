"""Runs on Ray: the rows of a run in one process, whatever finishes first and whoever dies."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import make_model
from tests.evaluation import ray_arms
from typer.testing import CliRunner

from unspool.cli import app
from unspool.core.errors import Incompatible, InvalidInput
from unspool.evaluation import runs
from unspool.evaluation.answering import Answer, ArmSpec
from unspool.evaluation.journal import Journal
from unspool.evaluation.ray_executor import RayExecutor, ReplicaLost, Standing
from unspool.evaluation.suites import Item, Suite

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason='Ray is not installed: pip install "unspool[ray]"')


class Length(Suite):
    name = "length"
    metrics = ("length",)

    def judge(self, item: Item, answer: Answer) -> dict[str, float]:
        return {"length": float(len(answer.text))}


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of one Ray of two cores, for all tests here that need not start their own."""
    import ray

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=80 * 2**20)
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture
def diary(tmp_path: Path) -> Path:
    folder = tmp_path / "diary"
    folder.mkdir()
    return folder


def items(*names: str) -> list[Item]:
    return [Item(name, "all", (f"question {name}",), max_new_tokens=8) for name in names]


def specs(diary: Path, *names: str, **options: Any) -> list[ArmSpec]:
    return [ArmSpec(name, "m", name, {"folder": str(diary), "threads": 1, **options}) for name in names]


def attempts(diary: Path, item: str, arm: str, sample: int = 0) -> list[int]:
    return [int(line) for line in (diary / f"{item}-{arm}-{sample}").read_text().split()]


def timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without what is measured with a clock or of a process's memory."""
    kept = json.loads(json.dumps(rows))
    for row in kept:
        del row["peak_rss_bytes"]
        for turn in row["turns"]:
            del turn["seconds"], turn["first_token_seconds"]
            for name in [name for name in turn["statistics"] if "second" in name]:
                del turn["statistics"][name]
    return kept


@needs_ray
@pytest.mark.usefixtures("cluster")
class TestReplicas:
    def test_rows_are_those_of_one_process(self, diary: Path) -> None:
        asked = items(*map(str, range(8)), "bad")
        arms = specs(diary, "one", "two", seconds=0.05)
        here = runs.run(Length(), asked, arms, samples=2, executor=runs.InProcess(make=ray_arms.make))
        came: list[tuple[str, str, int]] = []
        executor = RayExecutor(make=ray_arms.make)
        there = runs.run(
            Length(), asked, arms, samples=2, executor=executor,
            on_row=lambda row: came.append((row["item"], row["arm"], row["sample"])),
        )  # fmt: skip
        assert timeless(there.rows) == timeless(here.rows)
        assert sorted(came) == sorted(job.key for job in runs.plan(asked, arms, 2, 0))
        order = [(row["item"], row["arm"], row["sample"]) for row in there.rows]
        assert came != [key for key in order if key in came], "nothing overtook anything: this test shows nothing"
        assert [row["error"]["type"] for row in there.rows if "error" in row] == ["InvalidInput"] * 4
        assert len({standing.process for standing in executor.replicas}) == 2
        assert there.arms["one"] == here.arms["one"] | {"engine": "ray", "replicas": 2, "machines": 1}
        # Both replicas worked, and were closed in the end: the Ray that was there stays.
        done = {pid for path in diary.iterdir() if path.name[0].isdigit() for pid in map(int, path.read_text().split())}
        assert {standing.process for standing in executor.replicas} < done
        assert len((diary / "close").read_text().split()) == 2 + 2 * 2
        assert executor._ray.is_initialized()

    def test_a_killed_replicas_jobs_are_done_again(self, diary: Path, tmp_path: Path) -> None:
        asked = items(*map(str, range(10)))
        arms = specs(diary, "one", seconds=0.3)
        executor = RayExecutor(make=ray_arms.make)
        killed: list[int] = []
        rows: list[tuple[str, str, int]] = []

        def kill(row: dict[str, Any]) -> None:
            rows.append((row["item"], row["arm"], row["sample"]))
            if len(rows) == 2:
                killed.append(executor.replicas[0].process)
                os.kill(killed[0], signal.SIGKILL)

        which = runs.fingerprint(Length(), asked, arms, samples=1, seed=0, ignore_eos=False)
        journal = Journal(tmp_path / "journal.jsonl", which)
        outcome = runs.run(Length(), asked, arms, executor=executor, journal=journal, on_row=kill)
        assert killed
        assert [row["item"] for row in outcome.rows] == [str(n) for n in range(10)]
        assert sorted(rows) == [(str(n), "one", 0) for n in range(10)], "lost or doubled"
        lines = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
        assert sorted(line["row"]["item"] for line in lines if "row" in line) == [str(n) for n in range(10)]
        tried = {item.id: attempts(diary, item.id, "one") for item in asked}
        again = [pids for pids in tried.values() if len(pids) > 1]
        assert len(again) == 1, f"the kill met no job under way: {tried}"
        assert again[0][0] == killed[0]
        assert again[0][1] != killed[0]
        here = runs.run(Length(), asked, arms, executor=runs.InProcess(make=ray_arms.make))
        assert timeless(outcome.rows) == timeless(here.rows)

    def test_a_job_that_kills_its_process_once_is_done(self, diary: Path) -> None:
        outcome = runs.run(
            Length(),
            items("deadly once"),
            specs(diary, "one"),
            executor=RayExecutor(make=ray_arms.make, replicas=1, retries=1),
        )
        assert outcome.rows[0]["turns"][0]["text"].startswith("question deadly once")
        assert len(set(attempts(diary, "deadly once", "one"))) == 2

    def test_a_job_that_kills_every_process_is_named(self, diary: Path, tmp_path: Path) -> None:
        asked, arms = items("1", "2", "deadly"), specs(diary, "one")
        which = runs.fingerprint(Length(), asked, arms, samples=1, seed=0, ignore_eos=False)
        journal = Journal(tmp_path / "journal.jsonl", which)
        executor = RayExecutor(make=ray_arms.make, replicas=1, retries=1)
        with pytest.raises(ReplicaLost, match=r"answered 'deadly' with one died 2 times"):
            runs.run(Length(), asked, arms, executor=executor, journal=journal)
        assert len(attempts(diary, "deadly", "one")) == 2
        journal.close()
        assert set(Journal(tmp_path / "journal.jsonl", which).rows()) == {("1", "one", 0), ("2", "one", 0)}

    def test_arms_that_cannot_be_made(self, diary: Path) -> None:
        executor = RayExecutor(make=ray_arms.make, replicas=1)
        with pytest.raises(InvalidInput, match=r"^there is no such method$"):
            runs.run(Length(), items("1"), specs(diary, "unknown"), executor=executor)
        executor = RayExecutor(make=ray_arms.make, retries=0, replicas=1)
        with pytest.raises(ReplicaLost, match="made the arms died 1 times"):
            runs.run(Length(), items("1"), specs(diary, "fatal"), executor=executor)

    def test_a_mistake_in_the_program_ends_the_run(self, diary: Path) -> None:
        executor = RayExecutor(make=ray_arms.make, replicas=1)
        with pytest.raises(ZeroDivisionError, match="a mistake of ours"):
            runs.run(Length(), items("1", "broken"), specs(diary, "one"), executor=executor)

    def test_a_stopped_run_goes_on(self, diary: Path, tmp_path: Path) -> None:
        asked, arms = items(*map(str, range(6))), specs(diary, "one", seconds=0.1)
        which = runs.fingerprint(Length(), asked, arms, samples=1, seed=0, ignore_eos=False)
        journal = Journal(tmp_path / "journal.jsonl", which)
        rows = []

        def stop(row: dict[str, Any]) -> None:
            rows.append(row)
            if len(rows) == 3:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            runs.run(Length(), asked, arms, executor=RayExecutor(make=ray_arms.make), journal=journal, on_row=stop)
        journal.close()
        journal = Journal(tmp_path / "journal.jsonl", which)
        assert journal.resumed == 3
        plans = []
        outcome = runs.run(
            Length(), asked, arms, executor=RayExecutor(make=ray_arms.make), journal=journal,
            on_plan=lambda *plan: plans.append(plan),
        )  # fmt: skip
        assert plans == [(6, 3)]
        here = runs.run(Length(), asked, arms, executor=runs.InProcess(make=ray_arms.make))
        assert timeless(outcome.rows) == timeless(here.rows)

    def test_methods_of_ours_give_the_same_tokens(self, tmp_path: Path) -> None:
        import torch

        model = str(make_model(tmp_path / "model"))
        arms = [ArmSpec(name, model, name, {"threads": torch.get_num_threads()}) for name in ("plain", "prompt-lookup")]
        asked = items("the quick brown fox", "def reverse(items):", "the lazy dog", "jumps over")
        here = runs.run(Length(), asked, arms)
        there = runs.run(Length(), asked, arms, executor=RayExecutor())
        assert timeless(there.rows) == timeless(here.rows)
        assert all(row["turns"][0]["tokens"] for row in there.rows)
        assert there.arms["plain"]["threads"] == here.arms["plain"]["threads"]

    def test_too_many_replicas(self, diary: Path) -> None:
        executor = RayExecutor(make=ray_arms.make, replicas=3)
        with pytest.raises(InvalidInput, match=r"3 replicas of 1 threads were asked for, and there is room for 2"):
            runs.run(Length(), items("1"), specs(diary, "one"), executor=executor)
        with pytest.raises(InvalidInput, match=r"say --device cuda$"):
            RayExecutor(make=ray_arms.make).start(specs(diary, "one", device="cuda:1"))

    def test_replicas_that_differ(self, diary: Path) -> None:
        executor = RayExecutor(make=ray_arms.make)
        arms = specs(diary, "one")
        executor.replicas = [
            Standing({"one": {"version": version}}, [], f"host{version}", 1) for version in ("0.1", "0.2")
        ]
        with pytest.raises(Incompatible, match=r"version is '0\.1' on host0\.1 and '0\.2' on host0\.2"):
            executor._agreed(arms)


def test_addresses_that_lead_nowhere() -> None:
    from unspool.evaluation.cluster import check_reachable

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(InvalidInput, match=f"--address {nobody} cannot be reached"):
            check_reachable(nobody)
    for address in ("somewhere", "host:port", "ray://host"):
        with pytest.raises(InvalidInput, match="is no address"):
            check_reachable(address)
    check_reachable("auto")


def test_ray_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InvalidInput, match=r'not installed: pip install "unspool\[ray\]"'):
        runs.make_executor("ray")


@needs_ray
def test_replicas_are_rays() -> None:
    assert isinstance(runs.make_executor("ray", replicas=2), RayExecutor)
    with pytest.raises(InvalidInput, match="0 replicas"):
        runs.make_executor("ray", replicas=0)
    with pytest.raises(InvalidInput, match="--replicas 2 is for --engine ray"):
        runs.make_executor("inprocess", replicas=2)


# -- the command line, with a Ray of its own ----------------------------------------------------------------------


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., list[str]]:
    model = make_model(tmp_path / "model")
    questions = tmp_path / "questions.jsonl"
    rows = [{"question_id": n, "turns": [f"the quick fox {n}"], "answer": n} for n in range(60)]
    questions.write_text("\n".join(map(json.dumps, rows)))

    def line(*options: object) -> list[str]:
        start = "from unspool.cli import main; main()"
        common = ["bench", questions, "--model", model, "--methods", "plain", "--threads", 1, "--tokens", 100]
        return [sys.executable, "-c", start, *map(str, [*common, *options])]

    return line


@needs_ray
@pytest.mark.slow
def test_the_command_is_stopped_and_goes_on(command: Callable[..., list[str]], tmp_path: Path) -> None:
    """Ctrl-C in the middle leaves the journal and no process; the same command goes on, here on one process."""
    out = tmp_path / "r.json"
    journal = tmp_path / "r.json.journal.jsonl"
    mark = {**os.environ, "UNSPOOL_TEST_RUN": str(tmp_path)}
    started = subprocess.Popen(
        command("--out", out, "--engine", "ray", "--replicas", 1),
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True, env=mark,
    )  # fmt: skip
    until = time.monotonic() + 120
    while not (journal.exists() and journal.read_text().count('{"row"') >= 3):
        assert started.poll() is None, started.communicate()
        assert time.monotonic() < until, "no answer came"
        time.sleep(0.02)
    os.killpg(started.pid, signal.SIGINT)  # as a terminal does it
    _, told = started.communicate(timeout=60)
    assert started.returncode == 130, told
    assert str(journal) in told
    assert "Traceback" not in told
    done = journal.read_text().count('{"row"')
    assert 3 <= done < 60
    until = time.monotonic() + 20
    while left := processes_of(tmp_path):
        assert time.monotonic() < until, f"left behind: {left}"
        time.sleep(0.2)
    resumed = subprocess.run(command("--out", out), stderr=subprocess.PIPE, text=True, check=True)
    assert f"going on with {done} answers" in resumed.stderr
    results = json.loads(out.read_text())
    assert [row["item"] for row in results["rows"]] == [str(n) for n in range(60)]
    assert not journal.exists()


def processes_of(mark: Path) -> list[str]:
    """Command lines of processes that a test has started, and those that they have."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"UNSPOOL_TEST_RUN={mark}".encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:200])
        except (OSError, PermissionError):
            continue
    return [line for line in found if line]


@needs_ray
@pytest.mark.slow
def test_the_command_joins_a_cluster(command: Callable[..., list[str]], cluster: str, tmp_path: Path) -> None:
    joined, alone = tmp_path / "joined.json", tmp_path / "alone.json"
    # A replica too many is told before anything is loaded, with the cluster's size and not this machine's.
    failed = subprocess.run(
        command("--engine", "ray", "--address", cluster, "--replicas", 1000),
        capture_output=True,
        text=True,
        check=False,
    )
    assert failed.returncode == 2, failed.stderr
    assert "1000 replicas of 1 threads were asked for, and there is room for 2 (machines: 2 cores)" in failed.stderr
    assert "Traceback" not in failed.stderr
    subprocess.run(command("--engine", "ray", "--address", cluster, "--limit", 5, "--out", joined), check=True)
    subprocess.run(command("--limit", 5, "--out", alone), check=True)
    one, other = json.loads(joined.read_text()), json.loads(alone.read_text())
    assert timeless(one["rows"]) == timeless(other["rows"])
    assert (one["arms"]["plain"]["engine"], one["arms"]["plain"]["replicas"]) == ("ray", 2)


@needs_ray
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--address", "127.0.0.1:1"), "--address 127.0.0.1:1 cannot be reached"),
        (("--address", "elsewhere"), "--address elsewhere is no address"),
        (("--replicas", 0), "0 replicas were asked for"),
    ],
)
def test_wrong_input(command: Callable[..., list[str]], options: tuple[object, ...], message: str) -> None:
    failed = CliRunner().invoke(app, [*command("--engine", "ray", *options)[3:]])
    assert failed.exit_code == 2, failed.stderr
    assert message in failed.stderr
