"""Constraints: what may come next, enforced."""

from unspool.constraints._grammar import DEFAULT_ENGINE, DeadEnd, Grammar, GrammarError
from unspool.constraints._typed import Call, Typed

__all__ = ["DEFAULT_ENGINE", "Call", "DeadEnd", "Grammar", "GrammarError", "Typed"]
