"""Four languages that grammar engines are measured on, each with a writer of random texts of it.

JSON, a part of SQL, Python's expressions without words among the operators, and a language like C. In JSON and in the
expressions no keyword could be a name, so that a lexer that reads the longest lexeme and one that asks the parser
define the same texts. In the other two they do not: ``select`` is a name where a parser is asked.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

JSON = r"""
start: value
value: object | array | STRING | NUMBER | "true" | "false" | "null"
object: "{" [pair ("," pair)*] "}"
pair: STRING ":" value
array: "[" [value ("," value)*] "]"
STRING: /"([^"\\\x00-\x1f\x7f]|\\(["\\\/bfnrt]|u[0-9a-fA-F]{4}))*"/
NUMBER: /-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?/
%ignore /[ \t\n\r]+/
"""

EXPRESSIONS = r"""
start: comparison
comparison: comparison COMPARE sum | sum
sum: sum ADD product | product
product: product MUL unary | unary
unary: ("-" | "~") unary | power
power: primary "**" unary | primary
primary: primary "." NAME | primary "(" [arguments] ")" | primary "[" index "]" | atom
index: comparison [":" comparison]
arguments: argument ("," argument)*
argument: NAME "=" comparison | comparison
atom: NAME | NUMBER | STRING | "(" comparison ("," comparison)* ")" | "[" [comparison ("," comparison)*] "]" | braces
braces: "{" [entry ("," entry)*] "}"
entry: comparison ":" comparison
ADD: "+" | "|" | "^" | "&"
MUL: "*" | "/" | "//" | "%" | "@"
COMPARE: "<" | ">" | "==" | "!=" | "<=" | ">="
NAME: /[A-Za-z_][A-Za-z0-9_]*/
NUMBER: /[0-9]+(\.[0-9]+)?/
STRING: /'[^'\\\n]*'/
%ignore / +/
"""

SQL = r"""
start: "SELECT"i ["DISTINCT"i] columns "FROM"i tables [where] [grouped] [order] [limit]
columns: "*" | item ("," item)*
item: expr ["AS"i NAME]
tables: NAME ("JOIN"i NAME "ON"i condition)*
where: "WHERE"i condition
grouped: "GROUP"i "BY"i expr ("," expr)* ["HAVING"i condition]
order: "ORDER"i "BY"i expr ["ASC"i | "DESC"i]
limit: "LIMIT"i INT
condition: condition "OR"i conjunction | conjunction
conjunction: conjunction "AND"i predicate | predicate
predicate: "NOT"i predicate | expr COMPARE expr | expr "IS"i ["NOT"i] "NULL"i | expr "IN"i "(" expr ("," expr)* ")"
expr: expr ADD term | term
term: term MUL atom | atom
atom: INT | STRING | NAME ["." NAME] | NAME "(" [expr ("," expr)*] ")" | "(" expr ")"
ADD: "+" | "-"
MUL: "/" | "%"
COMPARE: "=" | "<>" | "<=" | ">=" | "<" | ">"
NAME: /[a-zA-Z_][a-zA-Z0-9_]*/
INT: /[0-9]+/
STRING: /'[^'\n]*'/
%ignore /[ \t\n]+/
"""

C = r"""
start: function+
function: type NAME "(" [parameter ("," parameter)*] ")" block
parameter: type NAME
type: ("int" | "char" | "float" | "void") "*"*
block: "{" statement* "}"
statement: declaration | NAME "=" expr ";" | call ";" | "return" [expr] ";" | "break" ";" | conditional | loop | block
declaration: type NAME ["=" expr] ";"
conditional: "if" "(" expr ")" block ["else" block]
loop: "while" "(" expr ")" block | "for" "(" NAME "=" expr ";" expr ";" NAME "=" expr ")" block
call: NAME "(" [expr ("," expr)*] ")"
expr: expr "||" both | both
both: both "&&" relation | relation
relation: relation COMPARE sum | sum
sum: sum ADD product | product
product: product MUL unary | unary
unary: PREFIX unary | primary
primary: NAME | call | INT | FLOAT | STRING | "(" expr ")" | NAME "[" expr "]"
COMPARE: "<" | ">" | "==" | "!=" | "<=" | ">="
ADD: "+" | "-"
MUL: "/" | "%"
PREFIX: "!" | "&"
NAME: /[A-Za-z_][A-Za-z0-9_]*/
FLOAT: /[0-9]+\.[0-9]+/
INT: /[0-9]+/
STRING: /"([^"\\\n]|\\[nt"\\])*"/
%ignore /[ \t\n]+/
"""


@dataclass(frozen=True)
class Language:
    """A grammar in Lark's notation.

    Args:
        grammar: the text of it.
        write: a random text.
        plain: whether a lexer of the longest match and one that asks the parser define the same texts.
    """

    grammar: str
    write: Callable[[random.Random], str]
    plain: bool


_NAMES = ("x", "total", "row_count", "name2", "Table", "i", "price", "orders", "customer_id", "tmp")
_WORDS = ("alpha", "Beta", "price", "café", "日本語", 'a \\"quoted\\" word', "line\\nbreak", "x_1", "😀", "url/path")


def _json(rng: random.Random, depth: int = 0) -> str:
    kind = rng.randrange(2) if depth == 0 else rng.randrange(2, 6) if depth > 3 else rng.randrange(6)
    space = rng.choice(("", " "))
    string = '"' + " ".join(rng.choice(_WORDS) for _ in range(rng.randint(0, 4))) + '"'
    inner = [_json(rng, depth + 1) for _ in range(rng.randint(0, 4))] if kind < 2 else []
    match kind:
        case 0:
            return "{" + f",{space}".join(f'"{rng.choice(_NAMES)}":{space}{value}' for value in inner) + "}"
        case 1:
            return "[" + f",{space}".join(inner) + "]"
        case 2:
            return rng.choice(("true", "false", "null"))
        case 3:
            return rng.choice((str(rng.randint(-5000, 5000)), f"{rng.uniform(-10, 10):.3f}", "1e5"))
        case _:
            return string


def _expression(rng: random.Random, depth: int = 0) -> str:
    def more() -> str:
        return _expression(rng, depth + 1)

    match rng.randrange(3) if depth > 3 else rng.randrange(9):
        case 0:
            return rng.choice(_NAMES)
        case 1:
            return str(rng.randint(0, 9999))
        case 2:
            return rng.choice(("'text here'", "''", "3.25", "self.value"))
        case 3 | 4:
            return f"{more()} {rng.choice('+*/%|')} {more()}"
        case 5:
            return f"{rng.choice(_NAMES)}({more()}, key={more()})"
        case 6:
            return f"({more()} <= {more()})"
        case 7:
            return f"[{more()}, {more()}][{more()}:{more()}]"
        case _:
            return "{" + f"'a': {more()}, {more()}: -{rng.choice(_NAMES)}**2" + "}"


def _sql(rng: random.Random) -> str:
    def value(depth: int = 0) -> str:
        name = rng.choice(_NAMES)
        forms = [name, str(rng.randint(0, 99)), "'some text'", f"t.{name}"]
        if depth < 2:
            forms += [f"count({value(depth + 1)})", f"({value(depth + 1)} + {value(depth + 1)})"]
        return rng.choice(forms)

    text = f"SELECT {rng.choice(('', 'DISTINCT '))}{value()}, {value()} AS b FROM {rng.choice(_NAMES)}"
    if rng.random() < 0.4:
        text += f" JOIN {rng.choice(_NAMES)} ON {value()} = {value()}"
    if rng.random() < 0.6:
        text += f" WHERE {value()} <= {value()} AND NOT {value()} IS NULL OR {value()} IN (1, {value()})"
    if rng.random() < 0.4:
        text += f" GROUP BY {value()} HAVING {value()} > 3"
    return text + rng.choice(("", f" ORDER BY {value()} DESC LIMIT 10", " limit 3"))


def _c(rng: random.Random) -> str:
    def expr(depth: int = 0) -> str:
        name = rng.choice(_NAMES)
        forms = [name, str(rng.randint(0, 999)), "2.5", '"text\\n"', f"{name}[{rng.randint(0, 9)}]"]
        if depth < 2:
            forms += [f"({expr(depth + 1)} + {expr(depth + 1)})", f"{name}({expr(depth + 1)}, {expr(depth + 1)})"]
        return rng.choice(forms)

    def statement(depth: int = 0) -> str:
        name = rng.choice(_NAMES)
        forms = [f"{name} = {expr()};", f"int {name} = {expr()};", f"return {expr()};", f"{name}({expr()});"]
        if depth < 2:
            body = f"{{ {statement(depth + 1)} {statement(depth + 1)} }}"
            forms += [f"if ({expr()} <= {expr()}) {body} else {body}", f"while ({expr()} && !{name}) {body}"]
        return rng.choice(forms)

    body = "\n  ".join(statement() for _ in range(rng.randint(1, 4)))
    return f"int {rng.choice(_NAMES)}(int x, char* y) {{\n  {body}\n}}\n"


LANGUAGES = {
    "JSON": Language(JSON, _json, True),
    "expressions": Language(EXPRESSIONS, _expression, True),
    "SQL": Language(SQL, _sql, False),
    "C": Language(C, _c, False),
}
