"""Grammars that several tests share."""

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

ARITHMETIC = r"""
start: start ("+" | "-") term | term
term: term ("*" | "/") factor | factor
factor: NUMBER | "(" start ")" | "-" factor
NUMBER: /[0-9]+(\.[0-9]+)?/
%ignore / +/
"""

SQL = r"""
start: "SELECT"i ["DISTINCT"i] columns "FROM"i tables [where] [order] [limit]
columns: "*" | expr ("," expr)*
tables: NAME ("JOIN"i NAME "ON"i condition)*
where: "WHERE"i condition
order: "ORDER"i "BY"i expr ["ASC"i | "DESC"i]
limit: "LIMIT"i INT
condition: condition "OR"i conjunction | conjunction
conjunction: conjunction "AND"i predicate | predicate
predicate: "NOT"i predicate | expr COMPARE expr | expr "IS"i ["NOT"i] "NULL"i
expr: expr ADD term | term
term: term MUL atom | atom
atom: INT | STRING | NAME ["." NAME] | "(" expr ")"
ADD: "+" | "-"
MUL: "/" | "%"
COMPARE: "=" | "<>" | "<=" | ">=" | "<" | ">"
NAME: /[a-zA-Z_][a-zA-Z0-9_]*/
INT: /[0-9]+/
STRING: /'[^'\n]*'/
%ignore /[ \t\n]+/
"""
