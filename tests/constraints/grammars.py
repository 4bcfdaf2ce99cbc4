"""Grammars that several tests share."""

from unspool.evaluation.reproductions._languages import JSON as JSON

ARITHMETIC = r"""
start: start ("+" | "-") term | term
term: term ("*" | "/") factor | factor
factor: NUMBER | "(" start ")" | "-" factor
NUMBER: /[0-9]+(\.[0-9]+)?/
%ignore / +/
"""
