"""``unspool chat``, through a pipe."""

import json
from typing import Any

import pytest

from .conftest import CONTEXT


def turns(result: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def talk(run: Any, model: str, said: str, *arguments: Any, **more: Any) -> list[dict[str, Any]]:
    return turns(run("chat", "--model", model, "-n", 6, "--json", *arguments, input=said, **more))


def test_every_line_is_a_turn_and_the_history_grows(run: Any, model: str) -> None:
    answers = talk(run, model, "hello\n\nand now?\n")
    assert [set(answer) for answer in answers] == [{"text", "finish_reason", "statistics"}] * 2
    first, second = (answer["statistics"]["prompt_tokens"] for answer in answers)
    assert second > first + len("and now?") / 4


def test_the_same_as_generate(run: Any, model: str, answer: Any) -> None:
    (said,) = talk(run, model, "hello\n")
    assert said["text"] == answer("hello", "-n", 6)["text"]


def test_commands(run: Any, model: str) -> None:
    first, again, told, plain = (
        answer["statistics"]["prompt_tokens"]
        for answer in talk(run, model, "hello\n/reset\nhello\n/system Be brief.\nhello\n/system\nhello\n/quit\nnever\n")
    )
    assert first == again == plain < told


def test_text(run: Any, model: str) -> None:
    result = run("chat", "--model", model, "-n", 6, input="hello\n/stats\nhello\n/help\n/dance\n")
    assert result.stdout.count("\n") >= 2
    assert result.stderr.count(" tok/s") == 1
    assert "/reset" in result.stderr
    assert "/dance is no command" in result.stderr


def test_options(run: Any, model: str) -> None:
    (one,) = talk(
        run, model, "hello\n", "--temperature", 1.5, "--seed", 1, "--method", "prompt-lookup", "--set", "tokens=4"
    )
    (two,) = talk(run, model, "hello\n", "--temperature", 1.5, "--seed", 2, "--system", "x", "--threads", 1)
    assert one["text"] != two["text"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--temperature", "-1"], "temperature"),
        (["--method", "nothing"], "nothing"),
        (["--set", "x=1"], "'x'"),
        (["-n", "0"], "max_new_tokens"),
    ],
)
def test_wrong_options_are_told_before_the_first_turn(run: Any, model: str, arguments: list[str], words: str) -> None:
    result = run("chat", "--model", model, *arguments, input="hello\n", code=2)
    assert words in result.stderr
    assert result.stdout == ""


def test_a_conversation_beyond_the_context(run: Any, model: str) -> None:
    result = run("chat", "--model", model, "--json", input="word " * 2 * CONTEXT + "\n", code=2)
    assert "context" in json.loads(result.stdout)["error"]["message"]


def test_a_model_that_does_not_converse(run: Any, base_model: str) -> None:
    assert "unspool generate" in run("chat", "--model", base_model, input="hello\n", code=2).stderr
