"""JSON Schema brought into the form that engines enforce exactly, or refused with the path and the keyword.

A schema says what holds of a value in any logic; an engine follows a text from left to right. In between, four steps:
``nodes`` reads every draft into one vocabulary of keywords and finds what references lead to; ``cells`` is a union of
simple conditions, which ``keywords`` makes of what a schema says; ``algebra`` computes with unions (and, not, exactly
one: with ``joining``, ``leaving_out`` and ``members``); ``writing`` gives the simplest schema of the same meaning that
only uses what engines enforce, with ``cases`` where that takes several. Sets of strings are ``expressions``, read by
``patterns`` and written by ``spelling``.
"""

from unspool.constraints._schema.writing import Prepared, prepare

__all__ = ["Prepared", "prepare"]
