"""The parameters of a function, as far as they decide which calls are right."""

from __future__ import annotations

import ast
import inspect
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Parameters:
    """The parameters of a function.

    Args:
        positional: names of those that a positional argument can fill, in order; positional-only ones have none.
        keywords: names that can be given by keyword.
        required: what must be given: places of ``positional`` and names of keyword-only parameters.
        extra, extra_keywords: whether ``*args`` and ``**kwargs`` take the rest.
    """

    positional: tuple[str | None, ...]
    keywords: frozenset[str]
    required: frozenset[int | str]
    extra: bool
    extra_keywords: bool

    @classmethod
    def of(cls, signature: Any) -> Parameters:
        """From a signature of jedi's."""
        positional: list[str | None] = []
        keywords: set[str] = set()
        required: set[int | str] = set()
        extra = extra_keywords = False
        kinds = inspect.Parameter
        for parameter in signature.params:
            kind, optional = parameter.kind, _has_default(parameter.to_string())
            if kind == kinds.VAR_POSITIONAL:
                extra = True
            elif kind == kinds.VAR_KEYWORD:
                extra_keywords = True
            elif kind == kinds.KEYWORD_ONLY:
                keywords.add(parameter.name)
                if not optional:
                    required.add(parameter.name)
            else:
                if not optional:
                    required.add(len(positional))
                named = kind == kinds.POSITIONAL_OR_KEYWORD
                positional.append(parameter.name if named else None)
                if named:
                    keywords.add(parameter.name)
        return cls(tuple(positional), frozenset(keywords), frozenset(required), extra, extra_keywords)


def _has_default(parameter: str) -> bool:
    """Whether a parameter as it is written has a default; one that cannot be read passes for having one."""
    try:
        function = ast.parse(f"def f({parameter.lstrip('*')}): ...").body[0]
    except SyntaxError:
        return True
    assert isinstance(function, ast.FunctionDef)
    return bool(function.args.defaults or function.args.kw_defaults)
