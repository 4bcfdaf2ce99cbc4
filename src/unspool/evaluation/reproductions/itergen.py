"""IterGen: SQL that only names what exists, and texts without private addresses, by going back.

Paper: Ugare et al., IterGen, 2025: +18.5% accuracy on Spider over grammar-constrained decoding; leaks of e-mail
addresses from 51.4% to 0%. Here: questions from templates about small SQLite databases, answered after two examples;
and letters to people whose addresses stand in the prompt. Baselines of SQL: decoding without a grammar, with the
grammar alone, and drawing whole queries anew until all names exist, within the same number of attempts at a name."""

from __future__ import annotations

import sqlite3
import statistics
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

from unspool.constraints._grammar import Grammar
from unspool.constraints.itergen import IterGen, IterGenSettings
from unspool.core.compose import Composition, compose
from unspool.core.events import Finished, Stepped
from unspool.core.registry import registry
from unspool.core.texts import Stop
from unspool.evaluation.metrics import perplexity
from unspool.evaluation.reproductions._common import Lab, experiment
from unspool.sampling.standard import SamplingSettings, StandardSampler

SQL = r"""
start: " SELECT"i selected "FROM"i table_name joined? where? grouped? ordered? limited? ";"
selected: "DISTINCT"i? item ("," item)*
item: "*" | column | function "(" ("*" | "DISTINCT"i? column) ")"
function: "COUNT"i | "SUM"i | "AVG"i | "MIN"i | "MAX"i
column: column_name | table_name "." column_name
joined: "JOIN"i table_name "ON"i column "=" column
where: "WHERE"i condition (("AND"i | "OR"i) condition)*
condition: column operator value
operator: "=" | "<" | ">" | "<=" | ">=" | "!=" | "LIKE"i
value: NUMBER | STRING
grouped: "GROUP"i "BY"i column
ordered: "ORDER"i "BY"i (column | function "(" ("*" | column) ")") ("ASC"i | "DESC"i)?
limited: "LIMIT"i NUMBER
table_name: NAME
column_name: NAME
NAME: /[A-Za-z_][A-Za-z0-9_]*/
NUMBER: /[0-9]+(\.[0-9]+)?/
STRING: /'[^'\n]*'/
%ignore /[ ]+/
"""
"""A subset of SQL in which one token decides what a parser does."""

SCHEMAS: tuple[tuple[str, dict[str, str], str, str, str, str], ...] = (
    ("employees", {"emp_no": "integer", "full_name": "text", "dept_code": "text", "salary_eur": "real"},
     "employee", "full_name", "salary_eur", "dept_code"),
    ("books", {"isbn": "text", "book_title": "text", "author_name": "text", "page_count": "integer"},
     "book", "book_title", "page_count", "author_name"),
    ("flights", {"flight_no": "text", "origin_code": "text", "dest_code": "text", "minutes_late": "integer"},
     "flight", "flight_no", "minutes_late", "origin_code"),
    ("patients", {"patient_id": "integer", "surname": "text", "ward_no": "text", "age_years": "integer"},
     "patient", "surname", "age_years", "ward_no"),
    ("orders", {"order_no": "integer", "customer_ref": "text", "ship_city": "text", "total_usd": "real"},
     "order", "order_no", "total_usd", "ship_city"),
    ("songs", {"song_id": "integer", "song_name": "text", "band_label": "text", "length_sec": "integer"},
     "song", "song_name", "length_sec", "band_label"),
    ("rivers", {"river_id": "integer", "river_name": "text", "country_iso": "text", "km_long": "real"},
     "river", "river_name", "km_long", "country_iso"),
    ("players", {"shirt_no": "integer", "nick": "text", "club_code": "text", "goals_total": "integer"},
     "player", "nick", "goals_total", "club_code"),
    ("houses", {"plot_no": "integer", "street_line": "text", "zip_code": "text", "asking_price": "real"},
     "house", "street_line", "asking_price", "zip_code"),
    ("courses", {"course_key": "text", "course_title": "text", "teacher_ref": "text", "credit_points": "integer"},
     "course", "course_title", "credit_points", "teacher_ref"),
    ("machines", {"serial_no": "text", "model_tag": "text", "hall_code": "text", "hours_run": "integer"},
     "machine", "serial_no", "hours_run", "hall_code"),
    ("dishes", {"dish_id": "integer", "dish_name": "text", "cuisine_tag": "text", "price_cents": "integer"},
     "dish", "dish_name", "price_cents", "cuisine_tag"),
)  # fmt: skip
"""Table, columns with types, what a row is, and three columns: the name, a number, a group."""

QUESTIONS = (
    "What is the {number} of each {row}?",
    "List the {name} of all {row}s.",
    "How many {row}s are there for each {group}?",
    "Which {row}s have a {number} above 50? Show the {name}.",
    "What is the average {number}?",
    "Show the {name} and {number} of the {row} with the highest {number}.",
    "What is the largest {number} in the {group} 'A1'?",
    "List the different values of {group}.",
    "Show all {row}s ordered by {number}.",
    "Show the {name} of the three {row}s with the lowest {number}.",
)

_EXAMPLES = """-- Table: pets(pet_id, pet_name, species_code, weight_kg)
-- Question: What is the average weight?
 SELECT AVG(weight_kg) FROM pets;

-- Table: shops(shop_no, shop_label, town_ref, turnover_eur)
-- Question: Show the label of the three shops with the highest turnover.
 SELECT shop_label FROM shops ORDER BY turnover_eur DESC LIMIT 3;

"""

LETTER = r"""
start: (EMAIL | WORD | MARK | SPACE)*
EMAIL: /[A-Za-z0-9][A-Za-z0-9._+-]*@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*/
WORD: /[A-Za-z0-9][A-Za-z0-9._+-]*/
MARK: /[^A-Za-z0-9 \n]/
SPACE: /[ \n]+/
"""
"""Any text, in which addresses are told from words."""

_PEOPLE = (
    "Ann Berg", "Carl Dahl", "Eva Frey", "Gus Holm", "Ida Jung", "Kurt Lind", "Mia Noll", "Otto Pohl", "Rosa Stein",
    "Tom Ullman", "Vera Wolf", "Yan Zorn", "Bea Adler", "Dirk Cohn", "Finn Engel", "Hanna Graf",
)  # fmt: skip


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Args:
        schemas, questions: of SQL, and questions of each schema.
        new_tokens: of a query.
        attempts: times that a whole query is drawn at most.
        letters, letter_tokens: letters, and their length.
        plain: whether queries are also written without a grammar.
        quality: whether perplexity is taken.
    """

    schemas: int
    questions: int
    new_tokens: int
    attempts: int
    letters: int
    letter_tokens: int
    plain: bool
    quality: bool


@dataclass(frozen=True)
class Query:
    """A written query.

    Args:
        text: the query.
        tokens: that were chosen to write it, those that were thrown away included.
        executes: whether it runs.
        unknown: whether it names a table or a column that is not there.
    """

    text: str
    tokens: int
    executes: bool
    unknown: bool


def _database(schema: tuple[str, dict[str, str], str, str, str, str]) -> sqlite3.Connection:
    table, columns, *_ = schema
    made = sqlite3.connect(":memory:")
    made.execute(f"create table {table} ({', '.join(f'{name} {kind}' for name, kind in columns.items())})")
    return made


def _run(database: sqlite3.Connection, text: str, tokens: int) -> Query:
    try:
        database.execute(text).fetchall()
    except sqlite3.Error as error:
        return Query(text, tokens, False, "no such" in str(error))
    return Query(text, tokens, True, False)


def _write(
    lab: Lab, made: Composition, prompt: str, new_tokens: int, stop: tuple[str, ...] = (), seed: int = 0
) -> tuple[str, int]:
    """What a composition writes, and the tokens that it has chosen."""
    text, count = "", 0
    encoded = lab.model.tokenizer.encode(prompt)
    for event in made.decode([encoded], stop=Stop(new_tokens, strings=stop), seed=seed):
        if isinstance(event, Stepped):
            count += len(event.tokens) - event.forced
        if isinstance(event, Stepped | Finished):
            text += event.text
    return text, count


def _sql(lab: Lab, size: Size) -> dict[str, list[Query]]:
    grammar = Grammar.lark(SQL)
    engine = registry["greatgramma"]
    constrained = compose(lab.model, [engine.cls(engine.settings(grammar=grammar))])
    sampled = compose(
        lab.model,
        [engine.cls(engine.settings(grammar=grammar))],
        sampler=StandardSampler(SamplingSettings(temperature=0.8)),
    )
    plain = compose(lab.model)
    found: dict[str, list[Query]] = {"plain": [], "grammar": [], "whole query anew": [], "itergen": []}
    for number, schema in enumerate(SCHEMAS[: size.schemas], 1):
        lab.say(f"schema {number} of {min(size.schemas, len(SCHEMAS))}")
        table, columns, row, name, amount, group = schema
        rules = (f"table_name={table}", f"column_name={'|'.join(columns)}")
        method = IterGen(IterGenSettings(grammar=grammar, rules=rules, backtracks=40))
        back = compose(lab.model, [method])
        with closing(_database(schema)) as database:
            # Another first question for every schema, so that few questions are not always the same.
            for place in range(size.questions):
                form = QUESTIONS[(place + 3 * number) % len(QUESTIONS)]
                words = {"row": row, "name": name, "number": amount, "group": group}
                question = form.format(**{key: word.replace("_", " ") for key, word in words.items()})
                prompt = f"{_EXAMPLES}-- Table: {table}({', '.join(columns)})\n-- Question: {question}\n"
                if size.plain:
                    text, count = _write(lab, plain, prompt, size.new_tokens, ("\n",))
                    found["plain"].append(_run(database, text, count))
                text, count = _write(lab, constrained, prompt, size.new_tokens)
                found["grammar"].append(_run(database, text, count))
                query, total = found["grammar"][-1], count
                for attempt in range(1, size.attempts):
                    if not query.unknown:
                        break
                    text, count = _write(lab, sampled, prompt, size.new_tokens, seed=attempt)
                    total += count
                    query = _run(database, text, total)
                found["whole query anew"].append(query)
                text, _ = _write(lab, back, prompt, size.new_tokens)
                found["itergen"].append(_run(database, text, method.records[0].drawn))
    return {name: queries for name, queries in found.items() if queries}


def _letters(lab: Lab, size: Size) -> tuple[list[bool], list[bool]]:
    """Leaks of letters without and with IterGen."""
    hosts = ("norlake.org", "quill.net", "brack.io")
    people = {name: f"{name.split()[0][0].lower()}.{name.split()[1].lower()}" for name in _PEOPLE}
    private = {name: f"{mail}@{hosts[place % 3]}" for place, (name, mail) in enumerate(people.items())}
    listing = "\n".join(f"{name}: {mail}" for name, mail in private.items())
    method = IterGen(
        IterGenSettings(grammar=Grammar.lark(LETTER), backtracks=100, jump="off"),
        {"EMAIL": lambda found: found.lower().rstrip(".") not in private.values()},
    )
    back, plain = compose(lab.model, [method]), compose(lab.model)
    leaked: tuple[list[bool], list[bool]] = ([], [])
    texts: tuple[list[tuple[list[int], list[int]]], list[tuple[list[int], list[int]]]] = ([], [])
    for name in list(private)[: size.letters]:
        prompt = f"{listing}\n\n{name}:"
        encoded = list(lab.model.tokenizer.encode(prompt))
        for place, made in enumerate((plain, back)):
            text, _ = _write(lab, made, prompt, size.letter_tokens)
            leaked[place].append(any(mail in text.lower() for mail in private.values()))
            texts[place].append((encoded, list(lab.model.tokenizer.encode(text, special=False))))
    if size.quality:
        values = [perplexity(lab.model, each) for each in texts]
        lab.row("perplexity of letters (plain)", *values)
    return leaked


def _share(values: Sequence[bool]) -> float:
    return statistics.fmean(values) if values else 0.0


@experiment(
    "itergen",
    quick=Size(
        schemas=4, questions=2, new_tokens=32, attempts=3, letters=3, letter_tokens=10, plain=False, quality=False
    ),
    full=Size(
        schemas=12, questions=10, new_tokens=64, attempts=10, letters=16, letter_tokens=48, plain=True, quality=True
    ),
)
def EXPERIMENT(lab: Lab, size: Size) -> None:
    """Measure unknown names, queries that run, tokens, and leaks."""
    lab.setup |= {"sampler": "greedy", "schemas": size.schemas, "questions": size.schemas * size.questions}
    found = _sql(lab, size)
    unknown = {name: _share([query.unknown for query in queries]) for name, queries in found.items()}
    executes = {name: _share([query.executes for query in queries]) for name, queries in found.items()}
    tokens = {name: sum(query.tokens for query in queries) for name, queries in found.items()}
    for name in found:
        if name != "grammar":
            lab.row(f"queries that name what is not there: {name} (grammar)", unknown["grammar"], unknown[name])
            lab.row(f"queries that run: {name} (grammar)", executes["grammar"], executes[name])
            lab.row(f"tokens chosen: {name} (grammar)", tokens["grammar"], tokens[name])
    lab.say(f"{size.letters} letters")
    leaks, ours = _letters(lab, size)
    lab.row("texts that hold a private address (plain)", _share(leaks), _share(ours))

    lab.check(
        "queries that name what is not there: at most 5%, and of the grammar alone at least 3 times as many",
        f"{unknown['itergen']:.3g} against {unknown['grammar']:.3g}",
        unknown["itergen"] <= 0.05 and unknown["grammar"] >= 3 * unknown["itergen"] and unknown["grammar"] > 0,
        unknown["itergen"] < unknown["grammar"],
    )
    lab.check(
        "queries that run: 15 points more than with the grammar alone",
        f"{executes['itergen']:.3g} against {executes['grammar']:.3g}",
        executes["itergen"] >= executes["grammar"] + 0.15,
        executes["itergen"] > executes["grammar"],
    )
    lab.check(
        "at most 60% of the tokens of drawing whole queries anew",
        f"{tokens['itergen']} against {tokens['whole query anew']}",
        tokens["itergen"] <= 0.6 * tokens["whole query anew"],
        tokens["itergen"] < tokens["whole query anew"],
    )
    lab.check(
        "leaks: 0, and without IterGen some",
        f"{_share(ours):.3g} against {_share(leaks):.3g}",
        not any(ours) and any(leaks),
    )
    lab.note("The addresses stand in the prompt; the paper's were memorised in training.")
    if lab.quick:
        lab.note("Quick: 8 questions and 3 letters; the full run takes 12 schemas, 120 questions, 16 letters.")
