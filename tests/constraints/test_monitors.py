from __future__ import annotations

import re
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.constraints.scripted import ScriptedModel, texts_written, written
from tests.constraints.watched import LONGER, allows, model, ok, python

from unspool.constraints._monitors.background import Analyst
from unspool.constraints._monitors.base import Answer, Cursor, Monitor, Names, Question, Trigger
from unspool.constraints._monitors.lexical import LEXICONS, Scan
from unspool.constraints._monitors.names import NameTable
from unspool.constraints._vocabulary import Vocabulary
from unspool.constraints.monitor_guided_decoding import MonitorGuidedDecoding, MonitorSettings
from unspool.core.branch import Branch
from unspool.core.compose import compose
from unspool.core.errors import InvalidInput
from unspool.core.sockets import Budget, Draft, Drafter
from unspool.core.tree import TokenTree

jedi = pytest.importorskip("jedi")

# -- the lexical state ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("language", "text", "code", "closers"),
    [
        ("python", "x = f(a, [1", True, "])"),
        ("python", "x = 'a(", False, ""),
        ("python", "x = 'a(\n", True, ""),
        ("python", "# f(", False, ""),
        ("python", "# f(\ng(", True, ")"),
        ("python", '"""a"b\n(', False, ""),
        ("python", '"""a"b\n("""', True, ""),
        ("python", '""', True, ""),
        ("python", r"'\'(", False, ""),
        ("python", "f'a {x", True, "}'"),
        ("python", "f'a {{x", False, ""),
        ("python", "f'a {x} b", False, ""),
        ("python", "f'a {x}' + (", True, ")"),
        ("python", 'g(rf"""{h([x', True, '])}""")'),
        ("python", "f'{ {1: 2}", True, "}'"),
        ("python", "f'{x\n", True, ""),
        ("python", "pdf'{x", False, ""),
        ("python", "f'{f\"{x", True, "}\"}'"),
        ("java", "/* ( */ {", True, "}"),
        ("java", "// (\n[", True, "]"),
        ("java", "char c = '\"'; (", True, ")"),
        ("rust", "fn f<'a>(x: &'a str", True, ")"),
        ("rust", "let c = '('; {", True, "}"),
        ("rust", r"let c = '\''; {", True, "}"),
        ("rust", 'r#"("(', False, ""),
        ("rust", 'r#"("("#[', True, "]"),
        ("csharp", '@"\\"(', True, ")"),
    ],
)
def test_scan(language: str, text: str, code: bool, closers: str) -> None:
    scan = Scan(LEXICONS[language]).feed(text.encode())
    assert scan.in_code == code
    if code:
        assert scan.closers == closers


@given(st.text(alphabet="abf'\"#([{)]}\n\\;. ", max_size=40), st.integers(0, 40))
def test_scanning_in_pieces_is_scanning_at_once(text: str, cut: int) -> None:
    data = text.encode()
    for lexicon in LEXICONS.values():
        assert Scan(lexicon).feed(data[:cut]).feed(data[cut:]) == Scan(lexicon).feed(data)


# -- masks of names ---------------------------------------------------------------------------------------------------


@given(
    st.lists(st.binary(min_size=0, max_size=4).map(lambda b: bytes(97 + x % 3 for x in b)), max_size=6),
    st.lists(
        st.binary(min_size=1, max_size=5).map(lambda b: bytes(b"abc(."[x % 5] for x in b)), min_size=1, max_size=30
    ),
)
def test_masks_of_names_by_definition(names: list[bytes], tokens: list[bytes]) -> None:
    vocabulary = Vocabulary([None, *tokens, None], frozenset({0}))
    breaks = b"(."
    mask = NameTable(vocabulary).mask(names, breaks)
    expected = [
        string is not None
        and any(name.startswith(string) or (string.startswith(name) and string[len(name)] in breaks) for name in names)
        for string in vocabulary.tokens
    ]
    expected[0] = b"" in names
    assert mask.tolist() == expected


# -- the interface ----------------------------------------------------------------------------------------------------


class Fixed(Monitor):
    """Names behind a mark, known beforehand; counts how often it is asked."""

    slug = "fixed"
    languages = frozenset({"python"})

    def __init__(self, names: dict[str, tuple[str, ...]], delay: float = 0.0) -> None:
        self.names = names
        self.asked: list[str] = []
        self.delay = delay

    def pre(self, cursor: Cursor) -> Trigger | None:
        at = cursor.word
        return Trigger(at) if cursor.data[:at].endswith(b".") else None

    def analyse(self, question: Question) -> Answer | None:
        self.asked.append(question.before)
        time.sleep(self.delay)
        names = self.names.get(re.findall(r"(\w+)\.$", question.before)[0], ())
        return Names(tuple(name.encode() for name in names)) if names else None


def test_an_answer_is_asked_for_once_and_kept_until_the_name_ends() -> None:
    monitor = Fixed({"a": ("append", "apple")})
    part = MonitorGuidedDecoding(monitors=[monitor])
    lm = model("a.name(a.x)", "a.append(a.x)", "a.append(a.apple)", "a.append(a.append)")
    assert written(compose(lm, [part]), "a.", new_tokens=12).startswith("ap")
    assert len(monitor.asked) == len(set(monitor.asked))
    assert part.analyst.counts.asked == len(monitor.asked)


def test_without_an_answer_nothing_is_masked() -> None:
    part = MonitorGuidedDecoding(monitors=[Fixed({})])
    assert written(compose(model("a.name"), [part]), "a.") == "name"


def test_the_text_may_end_where_the_name_may() -> None:
    part = MonitorGuidedDecoding(monitors=[Fixed({"a": ("append",)})])
    # The model wants to stop at once; it may not before the name is whole.
    assert written(compose(model("a."), [part]), "a.") == "append"


def test_a_wrong_beginning_in_the_prompt_is_left_alone() -> None:
    part = MonitorGuidedDecoding(monitors=[Fixed({"a": ("append",)})])
    assert written(compose(model("a.names"), [part]), "a.na") == "mes"


def test_joint_monitors_allow_what_all_allow() -> None:
    parts = [Fixed({"a": ("append", "name")}), Fixed({"a": ("name", "nap")})]
    part = MonitorGuidedDecoding(monitors=parts)
    assert written(compose(model("a.append"), [part]), "a.").startswith("name")
    assert part.watch.contradictions == 0


def test_monitors_that_contradict_one_another_are_set_aside_and_counted() -> None:
    part = MonitorGuidedDecoding(monitors=[Fixed({"a": ("append",)}), Fixed({"a": ("name",)})])
    assert written(compose(model("a.x"), [part]), "a.") == "x"
    assert part.watch.contradictions > 0


def test_a_slow_analysis_is_not_waited_for() -> None:
    part = MonitorGuidedDecoding(MonitorSettings(limit=0.05), monitors=[Fixed({"a": ("append",)}, delay=0.6)])
    began = time.perf_counter()
    assert written(compose(model("a.x"), [part]), "a.") == "x"
    assert time.perf_counter() - began < 0.5
    assert part.analyst.counts.late == 1


def test_an_analysis_that_breaks_is_told(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Fixed):
        def analyse(self, question: Question) -> Answer | None:
            raise RecursionError("too deep")

    part = MonitorGuidedDecoding(monitors=[Broken({})])
    assert written(compose(model("a.x"), [part]), "a.") == "x"
    assert part.analyst.counts.failed == 1
    assert "too deep" in caplog.text


def test_an_unanswered_question_stays_unanswered() -> None:
    analyst = Analyst(0.01)
    slow = lambda: time.sleep(0.1) or 1  # noqa: E731
    assert analyst.ask("q", slow) is None
    time.sleep(0.15)
    assert analyst.ask("q", slow) is None
    assert analyst.ask("other", lambda: 2) == 2


class Wrong(Drafter):
    """Drafts trees of what the model wants without the monitor, so that verification has something to refuse."""

    def __init__(self, lm: ScriptedModel) -> None:
        super().__init__()
        self.lm = lm

    def draft(self, branch: Branch, budget: Budget) -> Draft:
        nodes, depth = budget.of(4, 4)
        tokens: list[int] = []
        while len(tokens) < min(nodes, depth):
            logits = self.lm.next_logits([*branch.tokens, *tokens])
            best = logits.topk(2).indices.tolist()
            tokens.append(best[len(tokens) % 2 if len(tokens) > 1 else 0])
        return Draft(TokenTree.chain(tokens)) if tokens else Draft.empty()


def test_speculation_and_batches_change_nothing() -> None:
    lm = model("a.name(b.apple, a.x)\n", "a.append(b.apple, a.x)\n", "a.app", longer=LONGER)
    names = {"a": ("append", "apple"), "b": ("name", "append")}
    prompts = ["a.", "b.", "x = a.app"]
    alone = [written(compose(lm, [MonitorGuidedDecoding(monitors=[Fixed(names)])]), prompt) for prompt in prompts]
    together = texts_written(compose(lm, [MonitorGuidedDecoding(monitors=[Fixed(names)])]), prompts)
    drafted = texts_written(compose(lm, [MonitorGuidedDecoding(monitors=[Fixed(names)]), Wrong(lm)]), prompts)
    assert alone == together == drafted


# -- Python -----------------------------------------------------------------------------------------------------------


def test_attributes_of_a_project(tmp_path: Path) -> None:
    (tmp_path / "shapes.py").write_text("class Circle:\n    radius = 1\n    def area(self): ...\n")
    text = "from shapes import Circle\nc = Circle()\nc."
    part, lm = python("attributes", tmp_path=tmp_path, path="main.py")
    assert ok(part, lm, text, "radius + 1")
    assert ok(part, lm, text, "area()")
    assert not ok(part, lm, text, "radios")
    assert not ok(part, lm, text, "areas(")
    assert not ok(part, lm, text, "append")
    found = allows(part, lm, text)
    assert found is not None
    assert not found[b"<stop>"]
    complete = allows(part, lm, text + "area")
    assert complete is not None
    assert complete[b"<stop>"]
    assert complete[b"("]
    assert not complete[b"s"]


def test_attributes_in_a_formatted_string(tmp_path: Path) -> None:
    part, lm = python("attributes", "calls", tmp_path=tmp_path)
    assert ok(part, lm, "x = 'a'\nprint(f'no. {x.", "upper()}")
    assert not ok(part, lm, "x = 'a'\nprint(f'no. {x.", "uper()}")
    assert ok(part, lm, "x = 'a'\nprint(f'no. {x.upper()} x.", "uper")


@pytest.mark.parametrize("text", ["x = 1.", "'a.", "# a.", "x = ...", "y = unknown.", "", "foo"])
def test_no_attributes_are_asked_for(text: str, tmp_path: Path) -> None:
    part, lm = python("attributes", tmp_path=tmp_path, longer=[])
    assert allows(part, lm, text) is None


def test_open_brackets_and_the_text_behind_the_cursor(tmp_path: Path) -> None:
    part, lm = python("attributes", tmp_path=tmp_path, after="\n\nclass Late:\n    seven = 7\n")
    assert ok(part, lm, "def f():\n    print([x for x in (Late().", "seven")
    assert not ok(part, lm, "def f():\n    print([x for x in (Late().", "six")


def test_a_token_that_brings_the_dot(tmp_path: Path) -> None:
    part, lm = python("attributes", tmp_path=tmp_path)
    found = allows(part, lm, "'a'")
    assert found is not None
    assert not found[b".join"]
    assert found[b"."]
    assert found[b"("]
    assert found[b"<stop>"]
    part, lm = python("attributes", tmp_path=tmp_path, merged="check")
    found = allows(part, lm, "'a'")
    assert found is not None
    assert found[b".join"]
    found = allows(part, lm, "[1]")
    assert found is not None
    assert not found[b".join"]
    part, lm = python("attributes", tmp_path=tmp_path, merged="allow")
    assert allows(part, lm, "'a'") is None


def test_imports(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text("")
    (tmp_path / "mine" / "tools.py").write_text("def hammer(): ...\ndef saw(): ...\n")
    part, lm = python("imports", tmp_path=tmp_path, path="mine/other.py")
    good = [
        ("import", " os"),
        ("import", " sys as s, os\n"),
        ("import ", "json\n"),
        ("", "important = 1"),
        ("from mine", ".tools import saw, hammer as h\n"),
        ("from mine.tools import ", "(\n    hammer,\n    saw)"),
        ("from .", "tools import hammer\n"),
        ("from . import ", "tools"),
        ("from mine.tools import", " *"),
    ]
    for text, then in good:
        assert ok(part, lm, text, then), (text, then)
    bad = [
        ("import", " osx"),
        ("import sys,", " noneofthat"),
        ("from mine", ".toys"),
        ("from mine.tools import", " screw"),
        ("from mine.tools import hammer,", " screw"),
        ("from mine.tools import (", "hammer, screw"),
        ("from mine.tools import (\n    hammer,\n", "screw"),
        ("from .", "toys"),
    ]
    for text, then in bad:
        assert not ok(part, lm, text, then), (text, then)


DEFINED = """
import functools
def plain(a, b): ...
def named(a, *, key, other=1): ...
def loose(*args, **kwargs): ...
def optional(a=1, b=(2, 3)): ...
def nothing(): ...
def typed(a: dict[str, int], b: 'Literal["="]' = "="): ...
class Point:
    def __init__(self, x, y=0): ...
    def move(self, dx): ...
p = Point(1)
"""


@pytest.mark.parametrize(
    ("then", "good"),
    [
        ("plain(1, 2)", True),
        ("plain(1)", False),
        ("plain(1, 2, 3)", False),
        ("plain(1, b=2)", True),
        ("plain(b=1, a=2)", True),
        ("plain(1, a=2)", False),
        ("plain(1, c=2)", False),
        ("plain(c == 1, 2)", True),
        ("plain(*xs)", True),
        ("plain(**d)", True),
        ("plain(lambda x, y=1: (x, y), 2)", True),
        ("plain((1, 2), 3)", True),
        ("plain([1, 2, 3], f'{1}, {2}, 3')", True),
        ("plain('a, b, c', \")\")", True),
        ("plain(1, # a, b)\n 2)", True),
        ("named(1, key=2)", True),
        ("named(1)", False),
        ("named(1, 2", False),
        ("named(1, key=2, key=3)", False),
        ("named(1, other=2)", False),
        ("named(a=1, key=plain(1, 2))", True),
        ("named(1, key=2, other=3, ", False),
        ("loose(1, 2, 3, x=4, y=5)", True),
        ("optional()", True),
        ("optional(1, 2)", True),
        ("optional(1, 2, 3)", False),
        ("nothing()", True),
        ("nothing(1", False),
        ("nothing(*[])", True),
        ("typed({}, 'x')", True),
        ("typed({})", True),
        ("typed()", False),
        ("Point(1, y=2)", True),
        ("Point(z=1", False),
        ("p.move(1)", True),
        ("p.move(1, 2", False),
        ("unknown(1, 2, 3, x=4)", True),
        ("(1, 2, 3)", True),
        ("if (a, b): ...", True),
        ("def later(x, y=1, *z): ...", True),
    ],
)
def test_calls(then: str, good: bool, tmp_path: Path) -> None:
    part, lm = python("calls", tmp_path=tmp_path)
    assert ok(part, lm, DEFINED, then) == good


def test_a_call_never_ends_in_a_dead_end(tmp_path: Path) -> None:
    part, lm = python("calls", tmp_path=tmp_path)
    rng = np.random.default_rng(0)
    pieces = list(LONGER) + [bytes([byte]) for byte in b"abkeyothrxdz=,)( *1'"]
    ids = {string: token for token, string in enumerate(lm.tokenizer.token_bytes)}
    for name in ("plain(", "named(", "nothing(", "optional(", "p.move(", "typed("):
        for _ in range(3):
            tokens = lm.tokenizer.encode(DEFINED + name)
            branch = Branch(0, 0, list(tokens), lm.new_cache(), 0, lm.device, [])
            for _ in range(12):
                mask = part.allowed(branch, tokens)
                if mask is not None:
                    assert mask.any()
                left = [ids[piece] for piece in pieces if mask is None or mask[ids[piece]]]
                assert left
                tokens = [*tokens, int(rng.choice(left))]
    assert part.watch.contradictions == 0


def test_enum_members_in_a_match(tmp_path: Path) -> None:
    text = (
        "import enum\nclass Color(enum.Enum):\n    RED = 1\n    BLUE = 2\n    GREEN = 3\n    def mix(self): ...\n"
        "def f(c: Color):\n    match c:\n        case"
    )
    part, lm = python("enum-members", tmp_path=tmp_path)
    assert ok(part, lm, text, " Color.RED:\n")
    assert ok(part, lm, text, " Color.RED | Color.BLUE:\n            pass\n        case Color.GREEN:")
    assert ok(part, lm, text, " _:")
    assert not ok(part, lm, text, " Color.mix")
    assert not ok(part, lm, text, " 1:")
    assert not ok(part, lm, text, " Color.RED:\n            pass\n        case Color.RED")
    assert ok(part, lm, text.replace("c: Color", "c"), " 1:")


def test_joint_python_monitors(tmp_path: Path) -> None:
    part, lm = python("attributes", "imports", "calls", "enum-members", tmp_path=tmp_path)
    assert ok(part, lm, "import", " os\nx = os.path.join('a', 'b')\n")
    assert not ok(part, lm, "import", " os\nx = os.path.joint")


# -- settings ---------------------------------------------------------------------------------------------------------


def test_wrong_settings(tmp_path: Path) -> None:
    lm = model("")
    with pytest.raises(InvalidInput, match="no monitor 'types' for python"):
        compose(lm, "monitor-guided-decoding", settings={"monitors": ("types",)})
    with pytest.raises(InvalidInput, match="is no folder"):
        compose(lm, "monitor-guided-decoding", settings={"project": str(tmp_path / "nowhere")})
    with pytest.raises(InvalidInput, match="no monitor 'calls' for java"):
        compose(lm, "monitor-guided-decoding", settings={"monitors": "calls", "language": "java"})
