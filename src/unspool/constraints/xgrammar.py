"""XGrammar: masks precomputed for every place of a pushdown automaton, and the rest while the model runs.

A grammar becomes an automaton over bytes; which tokens are possible at a place whatever lies below on the stack is
found when it is compiled, so that only few have to be tried at run time. The mask of the next step is computed in a
thread of its own while the forward pass runs (``overlap``), and where one continuation is left it is taken without
asking.

Paper: Dong et al., XGrammar: Flexible and Efficient Structured Generation Engine for Large Language Models, 2024. The
automaton is that of the library ``xgrammar`` (``pip install 'unspool[xgrammar]'``).

A constraint: what comes out is the model's distribution with forbidden tokens masked, renormalised at every token.
Masks differ from tight ones in known places of the library (see the documentation); what it would ignore of a JSON
schema is refused.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from unspool.constraints._constraint import GrammarSettings, MatcherConstraint
from unspool.constraints._ebnf import Ebnf, Unreadable
from unspool.constraints._ending import short_end
from unspool.constraints._finite import finite_schema
from unspool.constraints._grammar import Grammar, GrammarError
from unspool.constraints._matcher import CompiledGrammar, Matcher
from unspool.constraints._schema import prepare
from unspool.constraints._vocabulary import Vocabulary
from unspool.core.cards import Card, Kind, settings
from unspool.core.errors import Incompatible
from unspool.core.registry import register

_WHOLE = "unspool-whole"
_NESTING = 1_000_000
"""Product of nested bounds of repetition up to which the library stays responsive."""
_IGNORED = (
    "not", "oneOf", "if", "then", "else", "uniqueItems", "contains", "minContains", "maxContains", "multipleOf",
    "dependentRequired", "dependentSchemas", "dependencies",
)  # fmt: skip
"""Keywords of JSON Schema that the library reads over, or enforces only in part."""


@settings
class XGrammarSettings(GrammarSettings):
    """See the descriptions."""

    overlap: Annotated[bool, Field(description="compute masks in a thread while the model runs")] = True
    seconds: Annotated[float, Field(gt=0, description="time that a grammar may take to be compiled")] = 30.0


def _library() -> Any:
    try:
        import xgrammar
    except ImportError as error:
        raise Incompatible(
            "the engine xgrammar is not installed: pip install 'unspool[xgrammar]', or take the engine llguidance"
        ) from error
    return xgrammar


def _compiler(vocabulary: Vocabulary) -> Any:
    made = vocabulary.forms.get("xgrammar")
    if made is None:
        library = _library()
        # Without a stop token the library would guess one; of a vocabulary that has none it is one behind the last.
        tokens = [string or b"" for string in vocabulary.tokens] + ([] if vocabulary.stop else [b""])
        stop = sorted(vocabulary.stop) or [vocabulary.size]
        described = library.TokenizerInfo(tokens, library.VocabType.RAW, vocab_size=len(tokens), stop_token_ids=stop)
        made = vocabulary.forms["xgrammar"] = library.GrammarCompiler(described, max_threads=1, cache_enabled=False)
    return made


def read(grammar: Grammar) -> Any:
    """A grammar as the library reads it.

    Raises:
        GrammarError: if it cannot be read, or says what the library does not enforce.
    """
    reader = _library().Grammar
    try:
        match grammar.kind:
            case "json-schema":
                return _schema(reader, json.loads(finite_schema(prepare(grammar.text).text)))
            case "regex":
                return reader.from_regex(grammar.text)
            case "choices":
                return reader.from_ebnf("root ::= " + " | ".join(_literal(text) for text in grammar.alternatives))
            case "gbnf":
                # Where the first rule stands within itself the library loses tokens that close two levels at once.
                return reader.from_ebnf(f"{grammar.text}\n{_WHOLE} ::= root\n", root_rule_name=_WHOLE)
            case _:
                return reader.from_lark(grammar.text)
    except (RuntimeError, ValueError) as error:
        raise GrammarError(f"xgrammar cannot read the {grammar.kind} grammar: {_told(error)}") from error


def _schema(reader: Any, schema: Any) -> Any:
    for where, keyword in _unenforced(schema, "#"):
        raise GrammarError(f"xgrammar does not enforce {keyword!r}: take the engine llguidance", where)
    layout = schema.pop("x-guidance", {}) if isinstance(schema, dict) else {}
    flexible = layout.get("whitespace_flexible", True)
    separators = (layout.get("item_separator", ","), layout.get("key_separator", ":"))
    return reader.from_json_schema(
        json.dumps(schema, ensure_ascii=False),
        any_whitespace=flexible,
        separators=None if flexible else separators,
        strict_mode=False,
    )


def _unenforced(schema: Any, where: str) -> Iterator[tuple[str, str]]:
    """Places of a schema with keywords that would be ignored, each with the keyword."""
    if isinstance(schema, list):
        for place, inner in enumerate(schema):
            yield from _unenforced(inner, f"{where}/{place}")
    if not isinstance(schema, dict):
        return
    for keyword, value in schema.items():
        here = f"{where}/{keyword}"
        if keyword in _IGNORED and value is not False:
            yield where, keyword
        elif keyword in ("properties", "patternProperties", "$defs", "definitions") and isinstance(value, dict):
            for name, inner in value.items():
                yield from _unenforced(inner, f"{here}/{name}")
        elif keyword not in ("enum", "const", "default", "examples", "required"):
            yield from _unenforced(value, here)


def _literal(text: str) -> str:
    return '"' + "".join(c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08x}" for c in text) + '"'


def _told(error: Exception) -> str:
    """The library's message without the place in its source."""
    text = " ".join(str(error).split())
    return text.split(": ", 1)[-1][:400] if ".cc:" in text else text[:400]


class XGrammarMatcher(Matcher):
    """One text's place; see :class:`Matcher`."""

    def __init__(self, vocabulary: Vocabulary, inner: Any) -> None:
        self.vocabulary = vocabulary
        self.inner = inner
        width = vocabulary.size if vocabulary.stop else vocabulary.size + 1
        self._bits = torch.zeros(1, (width + 31) // 32, dtype=torch.int32)

    def mask(self) -> Tensor:
        self.inner.fill_next_token_bitmask(self._bits)
        bits = self._bits.numpy().view(np.uint8)[0]
        allowed = np.unpackbits(bits, count=self.vocabulary.size, bitorder="little").view(np.bool_)
        for token in self.vocabulary.stop:
            allowed[token] = self.accepting
        return torch.from_numpy(allowed)

    def consume(self, token: int) -> bool:
        return self.vocabulary.tokens[token] is not None and bool(self.inner.accept_token(token))

    def rollback(self, count: int) -> None:
        if count:
            self.inner.rollback(count)

    @property
    def accepting(self) -> bool:
        return bool(self.inner.is_completed())

    def forced(self) -> bytes:
        if self.accepting:
            return b""
        try:
            return str(self.inner.find_jump_forward_string()).encode()
        except UnicodeDecodeError:
            # The library gives text, and within a character none can be given.
            return b""

    def shortest_end(self) -> bytes | None:
        """A completion: short, not always the shortest."""
        return short_end(self)

    def fork(self) -> Matcher:
        return XGrammarMatcher(self.vocabulary, self.inner.fork())


class XGrammarGrammar(CompiledGrammar):
    """A grammar compiled by the library.

    Args:
        seconds: that compiling may take.
    """

    def __init__(self, vocabulary: Vocabulary, grammar: Grammar, seconds: float = 30.0) -> None:
        self.vocabulary = vocabulary
        what = f"the {grammar.kind} grammar"

        def compiled() -> Any:
            found = read(grammar)
            try:
                rules = Ebnf(str(found), _WHOLE if grammar.kind == "gbnf" else "root")
            except Unreadable:
                rules = None
            if rules is not None:
                if unending := rules.unending():
                    raise GrammarError(
                        f"no text satisfies {'rule' if len(unending) == 1 else 'rules'} {', '.join(unending[:5])} of "
                        f"{what}: every way leads back to itself"
                    )
                if (nesting := rules.nesting()) > _NESTING:
                    raise GrammarError(
                        f"{what} repeats up to {nesting:.2g} times by repetitions within one another; "
                        f"xgrammar can be used up to {_NESTING:.2g}"
                    )
            return _compiler(vocabulary).compile_grammar(found)

        self.inner = _within(seconds, compiled, what)
        if not self.matcher().mask().any():
            raise GrammarError(f"{what} holds no text that this vocabulary can write")

    def matcher(self) -> Matcher:
        return XGrammarMatcher(self.vocabulary, _library().GrammarMatcher(self.inner))


def _within(seconds: float, work: Callable[[], Any], what: str) -> Any:
    """The result of ``work``, or an error if it takes longer; the library cannot be stopped, so its thread is left."""
    results: list[Any] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001 - it is raised in the caller's thread
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True, name="xgrammar-compile")
    thread.start()
    thread.join(seconds)
    if errors:
        if isinstance(errors[0], RuntimeError):
            raise GrammarError(f"xgrammar cannot compile {what}: {_told(errors[0])}") from errors[0]
        raise errors[0]
    if not results:
        raise GrammarError(f"xgrammar did not compile {what} in {seconds:g} s; simplify it, or raise 'seconds'")
    return results[0]


@register(
    Card(
        slug="xgrammar",
        name="XGrammar",
        kind=Kind.CONSTRAINT,
        summary="A grammar engine with masks precomputed for every place of an automaton; works while the model runs.",
        paper="XGrammar: Flexible and Efficient Structured Generation Engine for Large Language Models, 2024",
        claim="up to 100x less time for a token's mask than earlier engines, and next to no overhead end to end",
    ),
    XGrammarSettings,
)
class XGrammar(MatcherConstraint):
    """See the module."""

    settings: XGrammarSettings

    def compile(self, vocabulary: Vocabulary) -> CompiledGrammar:
        return XGrammarGrammar(vocabulary, self.grammar, self.settings.seconds)

    @property
    def overlaps(self) -> bool:  # type: ignore[override]
        return self.settings.overlap
