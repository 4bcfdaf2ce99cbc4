from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.constraints.scripted import STOP, ScriptedModel, texts_written, writing, written

from unspool.constraints.rpg_repetition import RPG, Repetition, RPGSettings, Shapes, repetition
from unspool.core.branch import Branch
from unspool.core.compose import compose
from unspool.core.decode import Greedy
from unspool.core.errors import Incompatible, InvalidInput
from unspool.core.sockets import Budget, Draft, Drafter, Setup
from unspool.core.tree import TokenTree

pytest.importorskip("tree_sitter_python")


@given(st.lists(st.integers(0, 2), max_size=30))
def test_the_smallest_unit_by_definition(items: list[int]) -> None:
    expected = None
    for unit in range(1, len(items) // 2 + 1):
        last = items[-unit:]
        rounds = 0
        while items[-(rounds + 2) * unit : len(items) - (rounds + 1) * unit] == last:
            rounds += 1
        if rounds:
            expected = Repetition(unit, rounds)
            break
    assert repetition(items) == expected


def shapes(language: str, code: str) -> list[tuple[str, ...]]:
    return [line.shape for line in Shapes(language).lines(code.encode(), 0)]


@pytest.mark.parametrize(
    ("language", "line", "other"),
    [
        ("python", "    if x == 1: return 'a'\n", '    if long_name == 22: return "b" \n'),
        ("python", "x = [1, 2, 'a']\n", "y = [f(x)]\n"),
        ("python", "# one\n", "# another one, longer\n"),
        ("javascript", "let x = 'a';\n", 'let y = "bc";\n'),
        ("java", 'String s = "a"; // x\n', 'String name = "bc"; // y z\n'),
        ("c", "x = 'a' + 0x1F;\n", "y = 'b' + 2;\n"),
        ("rust", 'let x = "a";\n', 'let yy = "bb";\n'),
    ],
)
def test_lines_of_one_shape(language: str, line: str, other: str) -> None:
    first, second = shapes(language, line + other)
    assert first == second
    assert len(first) > 1


@pytest.mark.parametrize(
    ("line", "other"),
    [
        ("x = 1\n", "x += 1\n"),
        ("x = 1\n", "x = 'a'\n"),
        ("x = 1\n", "  x = 1\n"),
        ("if x:\n", "while x:\n"),
        ("f(x)\n", "f(x, y)\n"),
    ],
)
def test_lines_of_different_shapes(line: str, other: str) -> None:
    first, second = shapes("python", line)[0], shapes("python", other)[0]
    assert first != second


def test_what_spans_lines_is_one() -> None:
    assert len(shapes("python", 'def f():\n    """One.\n\n    Two.\n    Three.\n    """\n    return 1\n')) == 3
    assert len(shapes("python", "x = [\n    1,\n    2,\n    3,\n]\n")) == 1
    # As long as a list is open its rows are seen.
    assert len(shapes("python", "x = [\n    1,\n    2,\n    3,\n")) == 4


# -- critical tokens --------------------------------------------------------------------------------------------------

LONGER = [b"    ", b"if", b" if", b"   ", b"return", b"\n    ", b"print"]


def part_and_model(**settings: object) -> tuple[RPG, ScriptedModel]:
    lm = ScriptedModel(writing(""), LONGER)
    part = RPG(RPGSettings(**settings))  # type: ignore[arg-type]
    part.bind(Setup(lm, Greedy()))
    return part, lm


def critical(part: RPG, lm: ScriptedModel, prompt: str, output: str) -> dict[bytes, int]:
    tokens = lm.tokenizer.encode(prompt) + lm.tokenizer.encode(output)
    begin = len(lm.tokenizer.encode(prompt))
    return {lm.tokenizer.token_bytes[t] or b"": n for t, n in part.critical(tokens, begin, begin).items()}


def test_the_token_that_starts_another_round() -> None:
    part, lm = part_and_model(content=False)
    chain = "if x == 1: f('a')\nif x == 2: f('bb')\n"
    assert critical(part, lm, "", chain) == {b"if": 1}
    assert critical(part, lm, "", chain + "if y == 3: g('c')\n") == {b"if": 2}
    # In the middle of a line nothing is decided.
    assert critical(part, lm, "", chain + "i") == {}
    # Other structure, nothing repeats.
    assert critical(part, lm, "", chain + "x = 1\n") == {}


def test_units_of_several_lines_begin_at_their_first() -> None:
    part, lm = part_and_model(content=False)
    one = "if x == 1:\n    return 'a'\n"
    two = "if yy == 22:\n    return 'bcd'\n"
    assert critical(part, lm, "", one + two) == {b"if": 1}
    # Half a unit is no unit.
    assert critical(part, lm, "", one + two + "if z == 3:\n") == {}


def test_the_place_in_the_line_has_to_be_the_same() -> None:
    part, lm = part_and_model(content=False)
    lines = "    a = 1\n    b = 2\n"
    # The unit's first token behind the same indentation, and not before it.
    assert critical(part, lm, "def f():\n", lines + "    ") == {b"b": 1}
    assert critical(part, lm, "def f():\n", lines) == {}


def test_the_prompt_does_not_count_as_repeated() -> None:
    part, lm = part_and_model(content=False)
    chain = "if x == 1: f('a')\nif x == 2: f('bb')\n"
    assert critical(part, lm, chain, "") == {}
    assert critical(part, lm, chain, "if x == 3: f('c')\n") == {}
    # A line that the prompt begins is the prompt's.
    assert critical(part, lm, "if x", " == 1: f('a')\nif x == 2: f('bb')\n") == {}


def test_plain_loops_count_tokens() -> None:
    part, lm = part_and_model(structure=False)
    assert critical(part, lm, "x", "abcabc") == {b"a": 1}
    assert critical(part, lm, "x", "abcabcabc") == {b"a": 2}
    assert critical(part, lm, "x", "abcab") == {}
    assert critical(part, lm, "abc", "abc") == {}


def adjusted(part: RPG, lm: ScriptedModel, output: str) -> torch.Tensor:
    tokens = [11, *lm.tokenizer.encode(output)]
    branch = Branch(0, 0, [11], lm.new_cache(), 0, lm.device, [])
    branch.stops = lm.stop_tokens
    return part.adjust(branch, tokens, torch.full((lm.vocab_size,), -3.0, dtype=torch.float64))


def test_probabilities_decay_and_the_end_is_raised() -> None:
    part, lm = part_and_model(factors="probability")
    chain = "if x == 1: f('a')\nif x == 2: f('bb')\nif x == 3: f('c')\n"
    logits = adjusted(part, lm, chain)
    changed = (logits != -3.0).nonzero().flatten().tolist()
    token = lm.tokenizer.encode("if")[0]
    assert sorted(changed) == sorted([STOP, token])
    # -3 is negative: a factor below 1 on it would have raised it.
    assert float(logits[token]) == pytest.approx(-3 + 2 * math.log(0.9))
    assert float(logits[STOP]) == pytest.approx(-3 - 2 * math.log(0.8))


def test_factors_on_logits_are_taken_from_their_mean() -> None:
    part, lm = part_and_model()
    tokens = [11, *lm.tokenizer.encode("if x == 1: f('a')\nif x == 2: f('bb')\nif x == 3: f('c')\n")]
    branch = Branch(0, 0, [11], lm.new_cache(), 0, lm.device, [])
    branch.stops = lm.stop_tokens
    token = lm.tokenizer.encode("if")[0]
    logits = torch.zeros(lm.vocab_size, dtype=torch.float64)
    # One above the mean of 0, one below it.
    logits[token], logits[STOP], logits[7] = 4.0, -3.0, -1.0
    for shift in (0.0, -50.0):
        found = part.adjust(branch, tokens, logits + shift) - shift
        assert float(found[token]) == pytest.approx(4 * 0.9**2)
        assert float(found[STOP]) == pytest.approx(-3 * 0.8**2)
        assert float(found[7]) == -1


def test_only_beginnings_of_statements_raise_the_end() -> None:
    part, lm = part_and_model(factors="probability")
    logits = adjusted(part, lm, "aa = 1\nbb = 22\n")
    assert float(logits[STOP]) == -3
    assert int((logits != -3.0).sum()) == 1


def test_nothing_repeats_nothing_changes() -> None:
    part, lm = part_and_model()
    given_ = torch.zeros(lm.vocab_size)
    branch = Branch(0, 0, [11], lm.new_cache(), 0, lm.device, [])
    assert part.adjust(branch, [11, *lm.tokenizer.encode("x = 1\ny += f(x)\n")], given_) is given_


# -- decoding ---------------------------------------------------------------------------------------------------------


def loop_then_stop(text: str) -> str:
    """Wants to go on with a chain of ifs for ever."""
    rounds = text.count("\n")
    line = f"if x == {rounds}: f('{chr(97 + rounds % 26)}')\n"
    done = text.rsplit("\n", 1)[-1]
    return line[len(done) :] if line.startswith(done) else ""


class Copying(Drafter):
    """Drafts what came after the last line end before."""

    def draft(self, branch: Branch, budget: Budget) -> Draft:
        nodes, depth = budget.of(6, 6)
        tokens = branch.tokens[-min(nodes, depth, len(branch.tokens) - 1) - 8 :][: min(nodes, depth)]
        return Draft(TokenTree.chain(tokens)) if tokens else Draft.empty()


class Tempted(ScriptedModel):
    """At every line end it nearly wants to stop."""

    def next_logits(self, tokens):  # type: ignore[no-untyped-def]
        logits = super().next_logits(tokens)
        if self.tokenizer.decode(tokens).endswith("\n"):
            logits[STOP] = logits.max() - 1.5
        return logits


def test_a_loop_ends_and_batches_and_drafts_change_nothing() -> None:
    lm = Tempted(loop_then_stop, LONGER, noise=0.1)
    plain = written(compose(lm, []), "x = 1\n", new_tokens=300)
    assert plain.count("\n") > 10
    for settings in (RPGSettings(), RPGSettings(factors="probability")):
        text = written(compose(lm, [RPG(settings)]), "x = 1\n", new_tokens=300)
        assert 2 <= text.count("\n") <= 9
        assert plain.startswith(text)
        assert texts_written(compose(lm, [RPG(settings)]), ["x = 1\n", "y\n"], new_tokens=300)[0] == text
        assert written(compose(lm, [RPG(settings), Copying()]), "x = 1\n", new_tokens=300) == text


def test_wrong_settings() -> None:
    lm = ScriptedModel(writing(""))
    with pytest.raises(InvalidInput, match="decay"):
        compose(lm, "rpg-repetition", settings={"decay": 2})
    with pytest.raises(InvalidInput, match="language"):
        compose(lm, "rpg-repetition", settings={"language": "cobol"})


def test_a_missing_grammar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tree_sitter_java", None)
    with pytest.raises(Incompatible, match=r"pip install 'unspool\[tree-sitter\]'"):
        compose(ScriptedModel(writing("")), "rpg-repetition", settings={"language": "java"})
