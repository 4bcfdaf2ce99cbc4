"""``unspool eval`` and ``unspool bench`` with a tiny model."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from unspool.evaluation import roofline, runs


@pytest.fixture(autouse=True)
def known_bandwidth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring it takes seconds, and is tested where it is made."""
    monkeypatch.setattr(roofline, "measure_bandwidth", lambda threads: 1e10)


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    rows = [
        {"question_id": n, "category": "even" if n % 2 == 0 else "odd", "turns": [f"the quick fox {n}"], "answer": n}
        for n in range(6)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_the_list_of_suites(run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = run("eval").stdout
    assert "builtin-code" in text
    assert "packaged" in text
    assert run("bench").stdout == text
    (tmp_path / "humaneval.jsonl").write_text("{}")
    monkeypatch.setenv("UNSPOOL_DATA", str(tmp_path))
    rows = {row["suite"]: row for row in json.loads(run("eval", "--json").stdout)}
    assert rows["humaneval"]["data"] == str(tmp_path / "humaneval.jsonl")
    assert rows["mbpp"]["data"] is None
    assert rows["builtin-text"]["data"] == "packaged"


def test_methods_are_measured_side_by_side(run: Any, model: str, questions: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    arguments = ("bench", questions, "--model", model, "--methods", "token-recycling,plain", "--tokens", 12)
    shown = run(*arguments, "--limit", 4, "--out", out).stdout
    results = json.loads(out.read_text())
    assert results["schema"] == 1
    assert list(results["arms"]) == ["token-recycling", "plain"]
    assert [(row["item"], row["arm"]) for row in results["rows"]] == [
        (item, arm) for item in ("0", "1", "2", "3") for arm in ("token-recycling", "plain")
    ]
    assert all(turn["tokens"] == 12 for row in results["rows"] for turn in row["turns"])
    assert all(row["scores"]["equals_plain"] == 1 for row in results["rows"] if row["arm"] != "plain")
    summary = {(one["arm"], one["category"], one["metric"]): one["value"] for one in results["summary"]}
    assert summary["plain", None, "forwards_per_token"] == 1
    assert summary["token-recycling", None, "forwards_per_token"] <= 1
    assert summary["plain", "odd", "tokens_per_second"] > 0
    ratio = next(one for one in results["paired"] if one["metric"] == "forwards_per_token")
    assert ratio["baseline"] == "plain"
    assert ratio["n"] == 4
    assert results["machine"]["cores"] >= 1
    assert {"torch", "transformers", "python", "cpu", "memory", "os", "threads"} <= set(results["machine"])
    assert "token for token as plain: token-recycling" in shown
    assert "× plain" in shown
    assert not list(tmp_path.glob("*.journal.jsonl"))


def test_quality_of_answers(run: Any, model: str, questions: Path) -> None:
    results = json.loads(run("eval", questions, "--model", model, "--method", "plain", "-n", 8, "--json").stdout)
    metrics = {one["metric"] for one in results["summary"]}
    assert {"exact_match", "rep-2", "distinct-1", "tokens_per_second"} <= metrics
    shown = run("eval", questions, "--model", model, "--method", "plain", "-n", 8).stdout
    assert "exact_match" in shown
    assert "odd" in shown


def test_samples_want_a_temperature(run: Any, model: str) -> None:
    arguments = ("eval", "builtin-code", "--model", model, "--methods", "plain", "--limit", 2, "-n", 4, "--samples", 2)
    assert "--temperature" in run(*arguments, code=2).stderr
    results = json.loads(run(*arguments, "--temperature", 1.0, "--json").stdout)
    assert [row["sample"] for row in results["rows"]] == [0, 1, 0, 1]
    texts = [row["turns"][0]["token_ids"] for row in results["rows"]]
    assert texts[0] != texts[1]
    pass_at_1 = [one for one in results["summary"] if one["metric"] == "pass@1" and one["category"] is None]
    assert [(one["value"], one["n"]) for one in pass_at_1] == [(0.0, 2)]


def test_reference_answers_and_planted_bugs(run: Any) -> None:
    shown = run("eval", "builtin-code", "--methods", "reference,planted-bug", "--limit", 6).stdout
    assert "6/6" in shown
    assert "0/6" in shown
    assert "tokens/s" not in shown
    assert "no reference answer" in run("eval", "builtin-text", "--methods", "reference", code=2).stderr


def test_perplexity(run: Any, model: str, tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 20)
    arguments = ("eval", "perplexity", "--text", text, "--model", model, "--json", "--window")
    results = json.loads(run(*arguments, 64, "--stride", 16).stdout)
    summary = {one["metric"]: one for one in results["summary"]}
    assert summary["perplexity"]["value"] > 1
    assert summary["perplexity"]["low"] < summary["perplexity"]["value"] < summary["perplexity"]["high"]
    assert results["limit"]["stride"] == 16
    # The whole text in one window, by the metric itself.
    from unspool import load
    from unspool.evaluation.metrics import perplexity

    engine = load(model, progress=False)
    tokens = engine.encode(text.read_text(), chat=False)
    whole = json.loads(run(*arguments, len(tokens), "--stride", 1).stdout)
    expected = perplexity(engine.model, [(tokens[:1], tokens[1:])])
    assert next(o["value"] for o in whole["summary"] if o["metric"] == "perplexity") == pytest.approx(
        expected, rel=1e-4
    )
    assert len(whole["rows"]) == 1


def test_continuations_are_compared_with_human_text(run: Any, model: str, tmp_path: Path) -> None:
    text = tmp_path / "book.txt"
    paragraph = "the quick brown fox jumps over the lazy dog and then rests " * 11
    text.write_text("\n\n".join(f"{n} {paragraph}" for n in range(9)))
    results = json.loads(run("eval", "repetition", "--text", text, "--model", model, "-n", 12, "--json").stdout)
    summary = {one["metric"]: one["value"] for one in results["summary"]}
    assert {"rep-2", "distinct-2", "self-bleu", "mauve", "frontier_integral"} <= set(summary)
    assert 0 <= summary["mauve"] <= 1


def test_a_stopped_run_goes_on(
    run: Any, model: str, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "r.json"
    arguments = ("bench", questions, "--model", model, "--methods", "plain", "--tokens", 4, "--out", out)
    done = 0
    real = runs.do

    def interrupted(*given: Any) -> Any:
        nonlocal done
        done += 1
        if done == 4:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(runs, "do", interrupted)
    stopped = run(*arguments, code=130)
    journal = tmp_path / "r.json.journal.jsonl"
    assert str(journal) in stopped.stderr
    assert not out.exists()
    other = run(*arguments[:-4], "--tokens", 5, "--out", out, code=2)
    assert "3 finished answers of another run" in other.stderr
    resumed = run(*arguments)
    assert "going on with 3 answers" in resumed.stderr
    assert done == 4 + 3
    assert len(json.loads(out.read_text())["rows"]) == 6
    assert not journal.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("eval", "humanevil"), "there is no suite"),
        (("eval", "humaneval"), "--data PATH"),
        (("eval", "builtin-text", "--limit", 0), "--limit is 0"),
        (("eval", "builtin-text", "--method", "plain", "--methods", "auto"), "not both"),
        (("eval", "builtin-text", "--methods", ","), "names no method"),
        (("eval", "builtin-text", "--methods", "plain,plain"), "named twice"),
        (("eval", "builtin-text", "--methods", "nothing-like-it"), "nothing-like-it"),
        (("eval", "builtin-text", "--methods", "plain", "--set", "nodes=3"), "none of plain has such a setting"),
        (("eval", "builtin-text", "--text", "x"), "--text is for"),
        (("eval", "builtin-text", "--out", "/no/such/folder/r.json"), "there is no folder"),
        (("eval", "builtin-text", "--engine", "abacus"), "no engine 'abacus'"),
        (("eval", "perplexity", "--text", __file__, "--methods", "plain"), "name no methods"),
        (("bench", "perplexity", "--data", __file__), "name no methods"),
        (("bench", "builtin-text", "--tokens", 3, "-n", 3), "take one"),
        (("bench", "builtin-text", "--batches", "1,0"), "--batches is '1,0'"),
        (("bench", "builtin-text", "--limit", 2, "--batches", "1,4"), "there are 2"),
        (("bench", "builtin-text", "--batches", "1,2", "--engine", "ray"), "--batches is measured in this process"),
        (("bench", "builtin-text", "--peers", "abacus"), "no peer 'abacus'"),
        (("bench", "builtin-text", "--peers", "--temperature", 1), "--peers decode greedily"),
        (("eval", "perplexity", "--text", "/no/such/file.txt"), "cannot be read"),
    ],
)
def test_wrong_input(
    run: Any, model: str, arguments: tuple[Any, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("UNSPOOL_DATA", raising=False)
    monkeypatch.setitem(sys.modules, "datasets", None)
    failed = run(*arguments, "--model", model, "--json", code=2)
    assert message in failed.stderr
    assert json.loads(failed.stdout)["error"]["message"]


def test_batches_are_measured_afterwards(run: Any, model: str, questions: Path) -> None:
    arguments = ("bench", questions, "--model", model, "--methods", "token-recycling,plain", "--tokens", 5)
    results = json.loads(run(*arguments, "--limit", 4, "--batches", "4,1,2", "--json").stdout)
    found = [(row["arm"], row["batch"], row["tokens"]) for row in results["batches"]]
    wanted = [
        (arm, size, 5 * size)
        for arm in ("token-recycling", "plain")
        for size, times in ((1, 4), (2, 2), (4, 1))
        for _ in range(times)
    ]
    assert sorted(found) == sorted(wanted)
    assert all(row["seconds"] > 0 for row in results["batches"])


def test_a_report_is_written(run: Any, model: str, questions: Path, tmp_path: Path) -> None:
    page = tmp_path / "r.html"
    run("bench", questions, "--model", model, "--limit", 2, "--tokens", 4, "--report", page)
    assert "<html" in page.read_text()


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from unspool.cli import app\n"
        "for command in ('eval', 'bench'):\n"
        "    assert CliRunner().invoke(app, [command, '--help']).exit_code == 0\n"
        "assert CliRunner().invoke(app, ['eval']).exit_code == 0\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
