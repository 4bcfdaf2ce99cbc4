"""The command line as a whole: help, completion, what it imports, how it ends."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import unspool
from unspool.cli import _declared, _options
from unspool.core.cards import setting_fields
from unspool.core.registry import registry
from unspool.sampling.standard import SamplingSettings

COMMANDS = ["generate", "chat", "methods", "pull", "reproduce", "demo"]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(unspool.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
MAIN = "from unspool.cli import main; main()"


def process(*arguments: str, program: str = MAIN, **more: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        env=ENVIRONMENT | more.pop("env", {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


def test_version(run: Any) -> None:
    assert run("--version").stdout == f"unspool {unspool.__version__}\n"


def test_help_names_every_command(run: Any) -> None:
    text = run("--help").output
    assert all(command in text for command in COMMANDS)
    assert "130" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples(run: Any, command: str) -> None:
    text = run(command, "--help").output
    assert "Examples" in text
    assert f"unspool {command}" in text


def test_every_sampling_setting_has_a_flag(run: Any) -> None:
    text = run("generate", "--help").output
    for field in setting_fields(SamplingSettings):
        assert "--" + field.name.replace("_", "-") in text


def test_unknown_command_and_option(run: Any) -> None:
    assert "generat" in run("generat", code=2).output
    assert "--temprature" in run("generate", "hi", "--temprature", "1", code=2).output


def test_one_command_imports_no_other() -> None:
    program = (
        "import atexit, sys\nfrom unspool.cli import main\nnames = ('generate', 'bench', 'chat')\n"
        "atexit.register(lambda: print([name for name in names if f'unspool.cli.{name}' in sys.modules]))\nmain()"
    )
    out, err = process("generate", "--help", program=program).communicate(timeout=60)
    assert out.rstrip().endswith("['generate']"), out + err


@pytest.mark.parametrize("code", [0, 3])
def test_it_ends_as_the_interpreter_would(code: int) -> None:
    """Threads are waited for, what was registered for the end is done, and all of it is written."""
    program = (
        "import atexit, threading, time, unspool.cli as c\n"
        "def late():\n    time.sleep(0.3)\n    print('thread')\n"
        f"@c.app.command()\ndef say():\n    threading.Thread(target=late).start()\n    raise SystemExit({code})\n"
        "atexit.register(print, 'exit')\nc.main()"
    )
    started = process("say", program=program)
    out, err = started.communicate(timeout=60)
    assert out.split() == ["thread", "exit"], err
    assert started.returncode == code


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"], ["methods", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    program = (
        "import atexit, sys\nfrom unspool.cli import main\n"
        "atexit.register(lambda: print([m for m in ('torch', 'transformers') if m in sys.modules]))\nmain()"
    )
    out, err = process(*arguments, program=program).communicate(timeout=60)
    assert out.rstrip().endswith("[]"), out + err


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("unspool ge", ["generate"]),
        ("unspool generate --method tok", ["token-recycling"]),
        ("unspool generate --method auto+fixed", ["auto+fixed-budget"]),
        ("unspool generate --model smol", ["smollm2-135m"]),
        ("unspool generate --top", ["--top-k", "--top-p"]),
        ("unspool generate --dtype b", ["bfloat16"]),
        ("unspool methods plai", ["plain"]),
        ("unspool pull gem", ["gemma3-270m"]),
    ],
)
def test_completion(run: Any, words: str, wanted: list[str]) -> None:
    result = run(
        env={"_UNSPOOL_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)},
        prog_name="unspool",
    )
    assert result.stdout.split() == wanted


def test_declarations_are_what_is_registered() -> None:
    assert sorted(_declared.methods()) == sorted((method.card.slug, method.card.name) for method in registry)
    declared = _declared.settings("sampling/standard.py", "SamplingSettings")
    for field, read in zip(setting_fields(SamplingSettings), declared, strict=True):
        assert (field.name, field.help) == (read.name, read.help)
        assert field.default == read.default or (not field.default and read.default is None)
        assert read.type in (field.type, str)


def test_defaults_are_the_engines() -> None:
    import inspect

    from unspool.engine import DEFAULT_METHOD, load
    from unspool.models.load import AUTO, BACKENDS, DTYPES, INTEGERS

    assert _options.DEFAULT_METHOD == DEFAULT_METHOD
    assert inspect.signature(load).parameters["name"].default == _options.DEFAULT_MODEL
    assert set(_options.DTYPES) == {AUTO, *DTYPES, *INTEGERS}
    assert set(_options.BACKENDS) == set(BACKENDS)


def test_a_reader_that_leaves_is_no_error(model: str) -> None:
    child = process("generate", "hello", "--model", model, "-n", "400", "--raw", "--quiet")
    assert child.stdout is not None
    assert child.stderr is not None
    child.stdout.read(1)
    child.stdout.close()
    assert child.wait(timeout=60) == 1
    assert child.stderr.read() == ""
    child.stderr.close()


def test_interrupted_from_the_keyboard(run: Any, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from unspool.models.native.native_lm import NativeModel

    passes = []
    score = NativeModel.score

    def scored(*arguments: Any, **more: Any) -> Any:
        passes.append(1)
        if len(passes) == 10:
            signal.raise_signal(signal.SIGINT)
        return score(*arguments, **more)

    monkeypatch.setattr(NativeModel, "score", scored)
    # A shell starts what runs in the background with this signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        err = run("generate", "hello", "--model", model, "-n", 400, "--method", "plain", code=130).stderr
    finally:
        signal.signal(signal.SIGINT, before)
    assert re.search(r"^9 tokens · .* · interrupted$", err, re.M), err


def test_a_terminal_without_unicode() -> None:
    program = (
        "import unspool.cli as c\nfrom unspool.cli._terminal import stream\n"
        "@c.app.command()\ndef say():\n    stream('caf\\u00e9')\nc.main()"
    )
    out, err = process("say", program=program, env={"PYTHONIOENCODING": "ascii"}).communicate(timeout=60)
    assert out == "caf\\xe9", err


def test_json_is_ascii(run: Any) -> None:
    out = run("generate", "--file", "/nowhere/caf\u00e9", "--json", code=2).stdout
    assert out.isascii()
    assert "/nowhere/caf\u00e9" in json.loads(out)["error"]["message"]
