from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.constraints.scripted import ByteTokenizer, ScriptedModel, texts_written, writing, written

from unspool.constraints._grammar import Grammar, GrammarError
from unspool.constraints._occurrence_rules import Condition
from unspool.constraints._symbols import SymbolReader, Symbols
from unspool.constraints.itergen import IterGen, IterGenSettings, Session
from unspool.core.branch import Branch
from unspool.core.compose import compose
from unspool.core.errors import InvalidInput
from unspool.core.scores import Request
from unspool.core.sockets import Budget, Draft, Drafter
from unspool.core.tree import TokenTree

SQL = r"""
start: "SELECT" columns "FROM" table_name where?
columns: "*" | column_name ("," column_name)*
where: "WHERE" column_name "=" NUMBER
column_name: NAME
table_name: NAME
NAME: /[a-z_]+/
NUMBER: /[0-9]+/
%ignore /[ \n]+/
"""
LONGER = [
    b"SELECT",
    b"FROM",
    b"WHERE",
    b" FROM",
    b" WHERE",
    b" name",
    b" na",
    b"me",
    b" age",
    b", ",
    b" (",
    b"(n",
    b" id",
]


def reader(grammar: str = SQL) -> SymbolReader:
    return SymbolReader(Symbols.of(Grammar.lark(grammar)))


# -- symbols ----------------------------------------------------------------------------------------------------------


def test_symbols_are_known_one_lexeme_later() -> None:
    found = reader()
    found.push(b"SELECT na")
    assert found.occurrences("NAME") == []
    found.push(b"me,")
    assert found.texts(found.occurrences("NAME")) == ["name"]
    assert found.occurrences("column_name") == []
    found.push(b" age FROM")
    assert found.texts(found.occurrences("column_name")) == ["name"]
    found.push(b" people")
    assert found.texts(found.occurrences("column_name")) == ["name", "age"]
    assert found.texts(found.occurrences("columns")) == ["name, age"]
    found.finish()
    assert found.texts(found.occurrences("table_name")) == ["people"]
    assert found.texts(found.occurrences("start")) == ["SELECT name, age FROM people"]


def test_what_is_not_in_the_grammar_is_refused_and_changes_nothing() -> None:
    found = reader()
    found.push(b"SELECT name ")
    before = (bytes(found.data), list(found.spans))
    for piece in (b"!", b"name name", b"WHERE x"):
        with pytest.raises(GrammarError, match="leaves the grammar"):
            found.push(piece)
        assert (bytes(found.data), list(found.spans)) == before
    with pytest.raises(GrammarError, match="not complete"):
        found.finish()
    found.push(b"FROM t")
    found.finish()


@given(st.lists(st.integers(1, 6), min_size=1, max_size=20), st.data())
@settings(max_examples=60, deadline=None)
def test_going_forward_and_back_is_reading_from_scratch(cuts: list[int], data: st.DataObject) -> None:
    whole = b"SELECT name, age,id FROM people WHERE age = 42"
    pieces, at = [], 0
    for cut in cuts:
        pieces.append(whole[at : at + cut])
        at += cut
    found, place = reader(), 0
    for _ in range(12):
        if place and data.draw(st.booleans()):
            back = data.draw(st.integers(1, place))
            found.back(back)
            place -= back
        elif place < len(pieces):
            found.push(pieces[place])
            place += 1
        fresh = reader()
        fresh.push(b"".join(pieces[:place]))
        assert found.data == fresh.data
        assert found.spans == fresh.spans


def test_only_grammars_with_symbols() -> None:
    with pytest.raises(GrammarError, match="this one is regex"):
        Symbols.of(Grammar.regex("a"))


# -- conditions -------------------------------------------------------------------------------------------------------


def database(path: Path) -> str:
    with sqlite3.connect(path) as made:
        made.execute("create table people (id integer, name text, Age integer)")
        made.execute("create table pets (owner integer, kind text)")
    return str(path)


def test_conditions(tmp_path: Path) -> None:
    listed = tmp_path / "private.txt"
    listed.write_text("a@b.c\n\nd@e.f\n")
    path = database(tmp_path / "x.db")
    for text, good, bad in [
        ("s=a|b c", "b c", "c"),
        ("s=/[0-9]+/", "42", "42a"),
        ("s=!/[0-9]+/", "a", "1"),
        (f"s=@{listed}", "a@b.c", "x@y.z"),
        (f"s=!@{listed}", "x@y.z", "d@e.f"),
        (f"s=sqlite-tables:{path}", "PETS", "name"),
        (f"s=sqlite-columns:{path}", '"age"', "people"),
        ("s=python:keyword:iskeyword", "if", "fi"),
    ]:
        condition = Condition.read(text)
        assert condition.symbol == "s"
        assert condition.holds(good), text
        assert not condition.holds(bad), text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing", "is no condition"),
        ("=a", "is no condition"),
        ("s=", "is no condition"),
        ("s=/(/", "cannot be read"),
        ("s=@/nowhere/x", "cannot be read"),
        ("s=sqlite-tables:/nowhere.db", "no database"),
        ("s=python:nomodule:f", "no function 'f'"),
        ("s=python:keyword:nothing", "no function 'nothing'"),
    ],
)
def test_wrong_conditions(text: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        Condition.read(text)


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    path.write_text("no database at all, just text that is long enough to be looked at by the library" * 20)
    with pytest.raises(InvalidInput, match="cannot be read as a SQLite"):
        Condition.read(f"s=sqlite-tables:{path}")


# -- the method -------------------------------------------------------------------------------------------------------


def model(*texts: str) -> ScriptedModel:
    return ScriptedModel(writing(*texts), LONGER)


def part(*rules: str, **more: object) -> IterGen:
    return IterGen(IterGenSettings(grammar=Grammar.lark(SQL), rules=rules, **more))  # type: ignore[arg-type]


def test_without_conditions_it_is_the_grammar_engine() -> None:
    lm = model("> SELECT name, size FROM people")
    for engine in ("greatgramma", "llguidance"):
        text = written(compose(lm, [part(engine=engine)]), "> ")
        assert text == written(compose(lm, engine, settings={"grammar": Grammar.lark(SQL)}), "> ")
        assert text.startswith("SELECT name, size FROM people")


def test_a_wrong_name_is_taken_back() -> None:
    # The first wish is refused; with the penalty others become possible.
    lm = model("> SELECT size FROM people", "> SELECT name FROM people", "> SELECT age FROM people")
    method = part("column_name=name|age", gamma=0.001)
    text = written(compose(lm, [method]), "> ", new_tokens=60)
    assert text in ("SELECT name FROM people", "SELECT age FROM people")
    record = method.records[0]
    assert record.backtracks >= 1
    assert not record.unchecked
    assert record.drawn > len(record.tokens)
    assert lm.tokenizer.decode(record.tokens) == text


def test_the_last_name_is_checked_when_the_text_ends() -> None:
    lm = model("> SELECT * FROM nowhere", "> SELECT * FROM people")
    method = part("table_name=people", gamma=1e-6, backtracks=60)
    assert written(compose(lm, [method]), "> ", new_tokens=80) == "SELECT * FROM people"
    assert method.records[0].backtracks >= 1


def test_backtracks_are_limited_and_the_rest_is_counted() -> None:
    lm = model("> SELECT size FROM people")
    method = part("column_name=name", gamma=1.0, backtracks=3)
    assert written(compose(lm, [method]), "> ") == "SELECT size FROM people"
    record = method.records[0]
    assert record.backtracks == 3
    assert [span.symbol for span in record.unchecked] == ["column_name"]


class Guess(Drafter):
    """Drafts what the model would write without a condition."""

    def draft(self, branch: Branch, budget: Budget) -> Draft:
        nodes, depth = budget.of(4, 4)
        tokens: list[int] = []
        while len(tokens) < min(nodes, depth):
            tokens.append(int(self.lm.next_logits([*branch.tokens, *tokens]).argmax()))
        return Draft(TokenTree.chain(tokens)) if tokens else Draft.empty()

    def __init__(self, lm: ScriptedModel) -> None:
        super().__init__()
        self.lm = lm


def test_drafts_and_batches_change_nothing() -> None:
    lm = model("> SELECT size, name FROM people", "> SELECT name FROM people", "> SELECT age FROM pets", "? SELECT x")
    rules = ("column_name=name|age", "table_name=pets")
    plain = part(*rules, gamma=0.001)
    alone = [written(compose(lm, [plain]), prompt, new_tokens=50) for prompt in ("> ", "? ")]
    # The second prompt was the last.
    assert plain.records[0].backtracks >= 1
    assert texts_written(compose(lm, [part(*rules, gamma=0.001)]), ["> ", "? "], new_tokens=50) == alone
    drafted = part(*rules, gamma=0.001)
    assert [written(compose(lm, [drafted, Guess(lm)]), prompt, new_tokens=50) for prompt in ("> ", "? ")] == alone
    assert drafted.records[0].backtracks == plain.records[0].backtracks


def test_an_unknown_symbol() -> None:
    with pytest.raises(InvalidInput, match=r"no symbol 'column'; it has .*column_name"):
        compose(model(""), [part("column=x")])


# -- sessions ---------------------------------------------------------------------------------------------------------


def test_a_session() -> None:
    lm = model("> SELECT name, age FROM people WHERE age = 7")
    session = Session(lm, SQL, jump="off")
    with pytest.raises(InvalidInput, match="call start"):
        session.view("NAME")
    session.start("> ")
    assert session.forward("column_name") == "SELECT name"
    assert session.view("column_name") == ["name"]
    assert not session.finished
    session.forward()
    assert session.finished
    assert session.text == "SELECT name, age FROM people WHERE age = 7"
    assert session.view("column_name") == ["name", "age", "age"]
    session.backward("where")
    assert session.text == "SELECT name, age FROM people"
    assert not session.finished
    assert session.view("column_name") == ["name", "age"]
    session.backward("column_name", 2)
    assert session.text == "SELECT"
    with pytest.raises(InvalidInput, match="there are 0 occurrences"):
        session.backward("table_name")
    with pytest.raises(InvalidInput, match="no symbol"):
        session.forward("nothing")
    session.start("> ")
    assert session.text == ""


def test_what_a_token_holds_before_an_occurrence_is_kept() -> None:
    grammar = 'start: "f" "(" NAME ")"\nNAME: /[a-z]+/\n'
    lm = ScriptedModel(writing("> f(name)"), [b"f(n", b"ame"])
    session = Session(lm, grammar, jump="off", gamma=1.0)
    session.start("> ")
    session.forward()
    assert session.text == "f(name)"
    session.backward("NAME")
    assert session.text == "f("
    session.forward()
    assert session.text == "f(name)"
    assert session.record.backtracks == 1


def test_the_penalty_counts_visits() -> None:
    lm = model("> SELECT name FROM people", "> SELECT age FROM people")
    session = Session(lm, SQL, jump="off", gamma=1.0)
    session.start("> ")
    for _ in range(3):
        session.forward("NAME")
        session.backward("NAME")
    visits = session.record.visits(session.record.tokens)
    assert set(visits.values()) == {3}


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(["NAME", "column_name", "table_name", "NUMBER"])), max_size=8))
@settings(max_examples=25, deadline=None)
def test_cache_and_symbols_after_random_walks(walk: list[tuple[bool, str]]) -> None:
    lm = model("> SELECT name, age FROM people WHERE age = 7", "> SELECT id FROM pets")
    session = Session(lm, SQL, jump="off", gamma=0.5)
    session.start("> ")
    for forward, symbol in walk:
        if forward and not session.finished:
            session.forward(symbol)
        elif session.view(symbol):
            session.backward(symbol)
    fresh = reader()
    fresh.push(session.text.encode())
    ours = list(session.record.reader.spans)
    if not session.record.ended:
        assert ours == fresh.spans
    tokens = session.record.tokens
    assert isinstance(lm.tokenizer, ByteTokenizer)
    assert lm.tokenizer.decode([token for token in tokens if token]) == session.text


def test_the_cache_follows() -> None:
    """The logits that a session goes on with after going back are those of a text read anew."""
    lm = model("> SELECT name, age FROM people", "> SELECT id FROM pets")
    seen = []

    class Watching(ScriptedModel):
        def score(self, requests, want=None, layers=None):  # type: ignore[no-untyped-def]
            for request in requests:
                seen.append([*request.cache.tokens, *request.tree.token_list])
            return super().score(requests, want, layers)

    watched = Watching(writing("> SELECT name, age FROM people", "> SELECT id FROM pets"), LONGER)
    session = Session(watched, SQL, jump="off", gamma=0.01)
    session.start("> ")
    session.forward("table_name")
    session.backward("columns")
    session.forward("NAME")
    prompt = lm.tokenizer.encode("> ")
    assert seen[-1] == [*prompt, *session.record.tokens[: len(seen[-1]) - len(prompt)]]
    (scores,) = watched.score([Request(watched.new_cache(), TokenTree.chain(seen[-1]))])
    assert scores.logits.shape[-1] == watched.vocab_size
