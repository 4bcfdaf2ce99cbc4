"""``unspool generate``: every option, and every way to hold it wrong."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unspool.cli import _session
from unspool.core.registry import registry

from .conftest import CONTEXT

LEGEND = "[accepted draft]  chosen by the model  {refused draft}"


def test_text_goes_to_stdout_and_one_line_of_statistics_to_stderr(run: Any, answer: Any, model: str) -> None:
    result = run("generate", "the quick brown fox", "--model", model, "-n", 24)
    assert result.stdout == answer()["text"] + "\n"
    assert re.fullmatch(r"24 tokens · [\d.]+ tok/s · .*forwards/token · .* MB\n", result.stderr)


def test_json(answer: Any, model: str) -> None:
    data = answer("the quick brown fox", "--seed", 3)
    assert set(data) == {
        *("text", "tokens", "finish_reason", "statistics", "method", "model", "settings", "lossless", "seed"),
    }
    assert data["finish_reason"] == "length"
    assert len(data["tokens"]) == 24 == data["statistics"]["tokens"]
    assert (data["method"], data["model"], data["seed"], data["lossless"]) == ("auto", model, 3, True)
    assert data["settings"]["sampling"]["temperature"] == 0
    assert set(data["settings"]["auto"]) == {"arms", "nodes", "most"}


@pytest.mark.parametrize(
    "method", ["plain", "prompt-lookup", "token-recycling", "auto", "token-recycling+fixed-budget"]
)
def test_lossless_methods_say_the_same(answer: Any, method: str) -> None:
    assert answer("aa bb aa bb", "--method", method)["tokens"] == answer("aa bb aa bb", "--method", "plain")["tokens"]


def test_settings_of_methods(answer: Any) -> None:
    data = answer(
        "hello", "--method", "token-recycling", "--set", "nodes=5", "--set", "nodes=7", "-s", "read_prompt=false"
    )
    assert data["settings"]["token-recycling"] == {"nodes": 7, "read_prompt": False, "update": "all"}
    both = answer("hello", "--method", "token-recycling+fixed-budget", "--set", "token-recycling.nodes=9")
    assert both["settings"]["token-recycling"]["nodes"] == 9


def test_sampling_flags_reach_the_sampler(answer: Any) -> None:
    flags = {
        "temperature": 0.9, "top_k": 40, "top_p": 0.95, "min_p": 0.01, "typical_p": 0.99, "epsilon_cutoff": 1e-5,
        "eta_cutoff": 1e-5, "repetition_penalty": 1.1, "presence_penalty": 0.1, "frequency_penalty": 0.1,
        "no_repeat_ngram": 3,
    }  # fmt: skip
    arguments = [text for name, value in flags.items() for text in ("--" + name.replace("_", "-"), value)]
    data = answer("hello", *arguments, "--logit-bias", "7:-1.5,9:2")
    assert data["settings"]["sampling"] == {**flags, "logit_bias": {"7": -1.5, "9": 2.0}}


def test_seeds(answer: Any) -> None:
    def drawn(seed: int) -> list[int]:
        tokens: list[int] = answer("hello", "--temperature", 2, "--seed", seed)["tokens"]
        return tokens

    assert drawn(1) == drawn(1) != drawn(2)


def test_raw_and_system_and_chat_differ(answer: Any) -> None:
    prompts = [
        answer("hello", *more)["statistics"]["prompt_tokens"] for more in ((), ("--raw",), ("--system", "Be brief."))
    ]
    assert prompts[1] < prompts[0] < prompts[2]


def test_prompt_from_stdin_and_files(run: Any, answer: Any, model: str, tmp_path: Path) -> None:
    def asked(*arguments: Any, **more: Any) -> Any:
        return json.loads(run("generate", *arguments, "--model", model, "--json", "-n", 4, **more).stdout)[
            "statistics"
        ]["prompt_tokens"]

    wanted = asked("two\nlines")
    assert asked("-", input="two\nlines\n") == asked(input="two\nlines\n") == asked(input="two\nlines") == wanted
    file = tmp_path / "prompt.txt"
    file.write_text("two\nlines\n")
    assert asked("--file", file) == wanted
    file.write_text("lines\n")
    assert asked("two", "--file", file) == asked("two\n\nlines")


def test_stop_strings(answer: Any) -> None:
    text = answer()["text"]
    first, second = text[5:8], text[3:5]
    data = answer("the quick brown fox", "--stop", first, "--stop", second)
    assert data["finish_reason"] == "stop-string"
    assert data["text"] == text[: min(text.find(first), text.find(second))]


def test_deadline(answer: Any) -> None:
    data = answer("hello", "-n", 400, "--deadline", 1e-6, "--raw")
    assert data["finish_reason"] == "deadline"
    assert 0 < len(data["tokens"]) < 400


def test_context_end(answer: Any) -> None:
    data = answer("hello", "-n", 2 * CONTEXT)
    assert data["finish_reason"] == "context"


def test_machine_options(answer: Any) -> None:
    assert answer("hello", "--dtype", "float64", "--device", "cpu", "--threads", 1)["tokens"]


def test_draft_model(answer: Any, base_model: str) -> None:
    data = answer("hello", "--method", "draft-model", "--draft", base_model)
    assert data["tokens"] == answer("hello", "--method", "plain")["tokens"]
    assert data["statistics"]["draft_forwards"] > 0


def test_quiet(run: Any, model: str) -> None:
    assert run("generate", "hello", "--model", model, "-n", 4, "--quiet").stderr == ""


# -- drafts and traces -----------------------------------------------------------------------------------------------


def test_show_drafts_without_colours(run: Any, answer: Any, model: str) -> None:
    result = run("generate", "aa bb aa bb", "--model", model, "--method", "token-recycling", "-n", 24, "--show-drafts")
    legend, _, shown = result.stdout.partition("\n\n")
    assert legend.strip() == LEGEND
    assert re.search(r"\[[^\]]+\]", shown)
    assert re.search(r"\{[^}]+\}", shown)
    kept = re.sub(r"\{[^}]*\}", "", shown).replace("[", "").replace("]", "").rstrip("\n")
    text = re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\ufffd", answer("aa bb aa bb")["text"])
    assert kept == re.sub(r"[\[\]]|\{[^}]*\}", "", text)


def test_show_drafts_in_colours(run: Any, model: str) -> None:
    result = run(
        "generate", "aa bb", "--model", model, "--method", "token-recycling", "-n", 24, "--show-drafts", "--quiet",
        env={"FORCE_COLOR": "1", "TERM": "xterm-256color"}, color=True,
    )  # fmt: skip
    assert "\x1b[32m" in result.stdout  # accepted
    assert "\x1b[1;36m" in result.stdout  # chosen
    assert LEGEND not in result.stdout


def test_trace(run: Any, model: str, tmp_path: Path) -> None:
    path = tmp_path / "out.html"
    result = run("generate", "hello </script>", "--model", model, "-n", 12, "--trace", path, "--temperature", "0.5")
    assert f"trace: {path}" in result.stderr
    data = json.loads(re.search(r'id="data">(.*?)</script>', path.read_text(), re.S).group(1))  # type: ignore[union-attr]
    assert data["settings"] == {"temperature": 0.5, "seed": 0}
    assert sum(len(step["t"]) for step in data["steps"]) == 12
    assert all(0 < q <= 1 for step in data["steps"] for q in step["q"])
    assert [path] == list(tmp_path.iterdir())


def test_a_search(run: Any, answer: Any, model: str, tmp_path: Path) -> None:
    arguments = [
        "--method",
        "local-normalization-distortion",
        "--set",
        "particles=4",
        "--temperature",
        1,
        "--top-k",
        10,
    ]
    arguments += ["-n", 8, "--trace", tmp_path / "out.html"]
    data = answer("hello", *arguments)
    assert len(data["tokens"]) == 8
    assert data["text"]
    page = (tmp_path / "out.html").read_text()
    trace = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S).group(1))  # type: ignore[union-attr]
    assert len({step["b"] for step in trace["steps"]}) > 1
    told = run("generate", "hello", "--model", model, *arguments, "--show-drafts", code=2).stderr
    assert "--trace" in told


def test_interrupt_keeps_what_there_is(run: Any, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = _session.write_text
    seen = []

    def impatient(event: Any, elapsed: float) -> None:
        original(event, elapsed)
        seen.append(event)
        if len(seen) == 8:
            raise KeyboardInterrupt

    monkeypatch.setattr(_session, "write_text", impatient)
    path = tmp_path / "out.html"
    result = run("generate", "hello", "--model", model, "-n", 100, "--trace", path, code=130)
    tokens = sum(len(getattr(event, "tokens", ())) for event in seen)
    assert tokens > 0
    assert f"{tokens} tokens · " in result.stderr
    assert "interrupted" in result.stderr
    assert path.is_file()


def test_interrupt_while_loading(run: Any, monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(_session, "open_engine", stopped)
    assert "interrupted" in run("generate", "hello", "--model", model, code=130).stderr


# -- wrong input -------------------------------------------------------------------------------------------------------

BAD: dict[str, tuple[list[str], int, list[str]]] = {
    "empty prompt": ([""], 2, ["prompt is empty"]),
    "prompt too long": (["word " * 2 * CONTEXT], 2, [str(CONTEXT), "shorten"]),
    "negative temperature": (["hi", "--temperature", "-1"], 2, ["temperature", "-1", "greater than or equal to 0"]),
    "top-p of 2": (["hi", "--top-p", "2"], 2, ["top_p", "less than or equal to 1"]),
    "logit bias": (["hi", "--logit-bias", "a:b"], 2, ["logit_bias"]),
    "token outside": (["hi", "--logit-bias", "99999:1"], 2, ["99999"]),
    "unknown method": (["hi", "--method", "token-recicling"], 2, ["token-recicling", "did you mean token-recycling"]),
    "no method": (["hi", "--method", " "], 2, ["unspool methods"]),
    "unknown setting": (["hi", "--method", "token-recycling", "--set", "depth=3"], 2, ["'depth'", "nodes"]),
    "setting without value": (["hi", "--set", "nodes"], 2, ["KEY=VALUE"]),
    "setting of another type": (["hi", "-M", "token-recycling", "--set", "nodes=many"], 2, ["nodes", "integer"]),
    "setting out of range": (["hi", "-M", "token-recycling", "--set", "nodes=0"], 2, ["nodes", "1"]),
    "two drafters": (["hi", "--method", "token-recycling+prompt-lookup"], 2, ["both a drafter"]),
    "missing draft model": (["hi", "--method", "draft-model"], 2, ["--draft"]),
    "no tokens": (["hi", "-n", "0"], 2, ["max_new_tokens", "at least 1"]),
    "empty stop string": (["hi", "--stop", ""], 2, ["stop string is empty"]),
    "deadline in the past": (["hi", "--deadline", "-1"], 2, ["deadline"]),
    "unknown dtype": (["hi", "--dtype", "int3"], 2, ["int3", "float32"]),
    "unknown device": (["hi", "--device", "abacus"], 2, ["abacus"]),
    "missing file": (["--file", "/nowhere/prompt.txt"], 2, ["/nowhere/prompt.txt", "No such file"]),
    "folder as file": (["--file", "/"], 2, ["cannot be read"]),
    "raw and system": (["hi", "--raw", "--system", "x"], 2, ["--raw"]),
    "trace in no folder": (["hi", "--trace", "/nowhere/x.html"], 2, ["/nowhere"]),
    "trace on a folder": (["hi", "--trace", "/"], 2, ["is a folder"]),
}


@pytest.mark.parametrize("name", BAD)
def test_wrong_input(run: Any, model: str, name: str) -> None:
    arguments, code, words = BAD[name]
    result = run("generate", *arguments, "--model", model, "--json", code=code)
    told = json.loads(result.stdout)["error"]
    assert set(told) == {"type", "message"}
    # The console wraps nothing, so the whole message is on stderr too.
    assert told["message"] in result.stderr
    for word in words:
        assert word in told["message"]


def test_wrong_input_without_json_leaves_stdout_empty(run: Any, model: str) -> None:
    result = run("generate", "", "--model", model, code=2)
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")


def test_json_and_show_drafts_exclude_each_other(run: Any, model: str) -> None:
    assert "take one" in run("generate", "hi", "--json", "--show-drafts", "--model", model, code=2).stderr


def test_usage_errors_are_told_as_json_too(run: Any, model: str) -> None:
    result = run("generate", "hi", "--max-new-tokens", "many", "--json", code=2)
    assert json.loads(result.stdout)["error"]["type"] == "UsageError"
    assert run("generate", "hi", "--max-new-tokens", "many", code=2).stdout == ""


def test_a_word_after_dashes_is_no_option(run: Any, model: str) -> None:
    result = run("generate", "--model", model, "-n", 4, "--", "--json")
    assert not result.stdout.startswith("{")


def test_model_without_a_chat_template(run: Any, base_model: str) -> None:
    told = run("generate", "hi", "--model", base_model, "--system", "x", code=2).stderr
    assert "chat template" in told
    run("generate", "hi", "--model", base_model, "-n", 4)


def test_unknown_model(run: Any) -> None:
    assert "smollm2-135m" in run("generate", "hi", "--model", "smolm2-135m", code=2).stderr


def test_binary_file(run: Any, model: str, tmp_path: Path) -> None:
    file = tmp_path / "prompt.bin"
    file.write_bytes(b"\xff\xfe\x00")
    assert "UTF-8" in run("generate", "--file", file, "--model", model, code=2).stderr


def damage(kind: str) -> Callable[[Path], None]:
    def cut(folder: Path) -> None:
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-1000])

    def noise(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"\x7f" * 5000)

    def config(folder: Path) -> None:
        (folder / "config.json").write_text("{")

    def gone(folder: Path) -> None:
        (folder / "model.safetensors").unlink()

    return {"cut": cut, "noise": noise, "config": config, "gone": gone}[kind]


@pytest.mark.parametrize("kind", ["cut", "noise", "config", "gone"])
def test_corrupt_weights(run: Any, model: str, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(model, folder)
    damage(kind)(folder)
    result = run("generate", "hi", "--model", folder, "--json", code=1)
    assert json.loads(result.stdout)["error"]["type"] == "WeightsError"
    assert str(folder) in result.stderr


def test_a_model_without_what_a_method_needs(run: Any, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from unspool.models.native.native_lm import NativeModel

    needy = next(method for method in registry if method.card.needs)
    original = NativeModel.__init__

    def poorer(self: Any, *args: Any, **more: Any) -> None:
        original(self, *args, **more)
        self.capabilities = frozenset()

    monkeypatch.setattr(NativeModel, "__init__", poorer)
    told = run("generate", "hi", "--model", model, "--method", needy.card.slug, "-n", 4, code=2).stderr
    assert needy.card.slug in told
    assert next(iter(needy.card.needs)).value in told


def test_an_unwritable_trace_is_told_after_the_text(
    run: Any, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, *_: Any, **__: Any) -> int:
        raise OSError(28, "No space left on device")

    path = tmp_path / "out.html"
    monkeypatch.setattr(Path, "write_text", full)
    result = run("generate", "hi", "--model", model, "-n", 4, "--trace", path, code=2)
    assert "No space left" in result.stderr
    assert result.stdout.strip()
    assert not list(tmp_path.iterdir())


def test_what_was_learned_outlives_the_process(run: Any, model: str, tmp_path: Path) -> None:
    folder = tmp_path / "learned"
    asked = ("generate", "the quick brown fox", "--model", model, "-n", 20, "--learned", folder)
    assert f"learned: {folder}" in run(*asked).stderr.replace("\n", "")
    assert {path.name for path in folder.iterdir()} == {"auto.safetensors", "token-recycling.safetensors"}
    before = (folder / "auto.safetensors").read_bytes()
    run(*asked, "--json")
    assert (folder / "auto.safetensors").read_bytes() != before, "the second run went on from the first"
    (folder / "auto.safetensors").write_bytes(b"damaged")
    assert "auto.safetensors" in run(*asked, code=1).stderr
    assert (folder / "auto.safetensors").read_bytes() == b"damaged", "nothing is overwritten then"
    assert "learns nothing" in run(*asked, "--method", "prompt-lookup", code=2).stderr
    (tmp_path / "file").write_text("")
    assert "give a folder" in run(*asked[:-1], tmp_path / "file", code=2).stderr
