"""Any grammar that engines of our own take, as rules over lexemes."""

from __future__ import annotations

from unspool.constraints._grammar import Grammar, GrammarError
from unspool.constraints._lark_reader import read_lark
from unspool.constraints._regex import literal_expression, read_regex
from unspool.constraints._rules import Rules, Terminal
from unspool.constraints._schema.expressions import Expression, either


def rules_of(grammar: Grammar) -> Rules:
    """A grammar as rules over lexemes.

    Raises:
        GrammarError: if it cannot be read, or is of a notation that is not taken.
    """
    match grammar.kind:
        case "lark":
            return read_lark(grammar.text)
        case "regex":
            return _single(read_regex(grammar.text, lazy=True))
        case "choices":
            return _single(either(literal_expression(text) for text in grammar.alternatives))
        case "json-schema":
            # Imported here: it is the larger part, and most grammars do without.
            from unspool.constraints._schema_rules import read_schema

            return read_schema(grammar.text)
        case _:
            raise GrammarError(
                f"{grammar.kind} grammars are taken by the engines llguidance and xgrammar; this one takes lark, "
                "json-schema, regex and choices"
            )


def _single(expression: Expression) -> Rules:
    """A language without nesting: one lexeme is the whole text."""
    return Rules((Terminal("the text", expression),), frozenset(), ("text",), ((0, (0,)),), 0, by_priority=True)
