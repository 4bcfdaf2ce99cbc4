"""llguidance: the default grammar engine, a kept library.

An Earley parser over lexemes, with lexers that are built while they run: nothing is computed ahead, so a schema is
ready in milliseconds, and masks take some ten microseconds.

Its own rule for forced text (only the first token of the canonical spelling is allowed) is undone in masks, so that
they are tight like any other engine's: whether to jump is the setting ``jump`` of all of them.
"""

from __future__ import annotations

from bisect import bisect_left

import numpy as np
import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from llguidance.gbnf_to_lark import GbnfToLarkError, any_to_lark
from numpy.typing import NDArray
from torch import Tensor

from unspool.constraints._constraint import GrammarSettings, MatcherConstraint
from unspool.constraints._ending import short_end
from unspool.constraints._finite import check_lark, finite_schema
from unspool.constraints._grammar import Grammar, GrammarError
from unspool.constraints._matcher import CompiledGrammar, Matcher
from unspool.constraints._schema import prepare
from unspool.constraints._vocabulary import Vocabulary
from unspool.core.cards import Card, Kind
from unspool.core.registry import register

# Ten times the library's own limits on lexers: a pattern that counts words up to a hundred needs a tenth of a second a
# mask, and was given up in the middle of a text. What is hostile still ends after a second or two.
_LIMITS = LLParserLimits(initial_lexer_fuel=10_000_000, step_lexer_fuel=2_000_000, verbose_errors=False)


class _Spelling:
    """A vocabulary as the library asks for it."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.tokens = [string or b"" for string in vocabulary.tokens]
        self.special_token_ids = [token for token, string in enumerate(vocabulary.tokens) if string is None]
        # The library cannot do without an end; of a vocabulary that has none it is one behind the last token.
        self.stop = sorted(vocabulary.stop) or [vocabulary.size]
        if not vocabulary.stop:
            self.tokens.append(b"")
            self.special_token_ids.append(vocabulary.size)
        self.eos_token_id = self.stop[0]
        self.bos_token_id = None

    def __call__(self, text: bytes) -> list[int]:
        return self.vocabulary.spell(text)


def _width(vocabulary: Vocabulary) -> int:
    """Tokens of the vocabulary as the library has it."""
    return vocabulary.size if vocabulary.stop else vocabulary.size + 1


def _tokenizer(vocabulary: Vocabulary) -> LLTokenizer:
    made = vocabulary.forms.get("llguidance")
    if made is None:
        spelling = _Spelling(vocabulary)
        made = LLTokenizer(TokenizerWrapper(spelling), n_vocab=len(spelling.tokens), eos_token=spelling.stop)
        vocabulary.forms["llguidance"] = made
    return made


def source(grammar: Grammar) -> str:
    """A grammar in the library's own notation.

    Raises:
        GrammarError: if it cannot be read.
    """
    match grammar.kind:
        case "json-schema":
            return LLMatcher.grammar_from_json_schema(finite_schema(prepare(grammar.text).text))
        case "regex":
            return LLMatcher.grammar_from_regex(grammar.text)
        case "choices":
            # Any text between quotes of JSON is a literal of Lark's.
            alternatives = " | ".join(_literal(text) for text in grammar.alternatives)
            return LLMatcher.grammar_from_lark(f"start: {alternatives}")
        case "gbnf":
            try:
                text = any_to_lark(grammar.text)
            except GbnfToLarkError as error:
                raise GrammarError(f"the GBNF grammar cannot be read: {error}") from error
            except RecursionError as error:
                raise GrammarError("the GBNF grammar is nested too deeply") from error
        case _:
            text = grammar.text
    check_lark(text)
    return LLMatcher.grammar_from_lark(text)


def _literal(text: str) -> str:
    escaped = "".join(
        c if c.isprintable() and c not in '"\\' else f"\\u{ord(c):04x}" if ord(c) < 0x10000 else c for c in text
    )
    return f'"{escaped}"'


class LLGuidanceMatcher(Matcher):
    """One text's place; see :class:`Matcher`."""

    def __init__(self, vocabulary: Vocabulary, inner: LLMatcher) -> None:
        self.vocabulary = vocabulary
        self.inner = inner
        self._bits = np.zeros((_width(vocabulary) + 31) // 32, dtype=np.int32)

    def mask(self) -> Tensor:
        size = self.vocabulary.size
        # On a copy: what a mask leaves behind in the library's parser is not taken back by a rollback, and now and then
        # a later mask comes out wrong (seen in release 1.9.1). Copying takes microseconds.
        asked = self.inner.deep_copy()
        asked.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        _check(asked)
        allowed = np.unpackbits(self._bits.view(np.uint8), count=size, bitorder="little").view(np.bool_)
        accepting = self.accepting
        for token in self.vocabulary.stop:
            allowed[token] = accepting
        forced = b"" if accepting else self.inner.compute_ff_bytes()
        if forced:
            self._widen(allowed, forced)
        return torch.from_numpy(allowed)

    def _widen(self, allowed: NDArray[np.bool_], forced: bytes) -> None:
        """Allow every token that agrees with the forced text, not only the first of its canonical spelling."""
        strings, tokens = _by_string(self.vocabulary)
        for end in range(1, min(len(forced), self.vocabulary.longest) + 1):
            place = bisect_left(strings, forced[:end])
            while place < len(strings) and strings[place] == forced[:end]:
                allowed[tokens[place]] = True
                place += 1
        if len(forced) < self.vocabulary.longest:
            self._widen_beyond(allowed, forced)

    def _widen_beyond(self, allowed: NDArray[np.bool_], forced: bytes) -> None:
        """Allow every token that goes on behind the forced text.

        Strings are tried byte by byte, in order: where one is refused, so are all that begin like it up to there. A
        single space may be all that is forced, and half of a vocabulary begins with one.
        """
        strings, tokens = _by_string(self.vocabulary)
        single = self.vocabulary.by_byte
        place = bisect_left(strings, forced + b"\0")
        while place < len(strings) and strings[place].startswith(forced):
            string = strings[place]
            spelled = [single[byte] for byte in string if byte in single]
            if len(spelled) < len(string):
                allowed[tokens[place]] = self.inner.validate_tokens([tokens[place]]) == 1
                place += 1
                continue
            valid = self.inner.validate_tokens(spelled)
            if valid == len(string):
                allowed[tokens[place]] = True
                place += 1
            else:
                refused = string[: valid + 1]
                place = bisect_left(strings, refused + b"\xff" * self.vocabulary.longest, place + 1)

    def consume(self, token: int) -> bool:
        if self.vocabulary.tokens[token] is None:
            return False
        done = self.inner.try_consume_tokens([token]) == 1
        _check(self.inner)
        return done

    def rollback(self, count: int) -> None:
        if count:
            self.inner.rollback(count)
            _check(self.inner)

    @property
    def accepting(self) -> bool:
        return bool(self.inner.is_accepting())

    @property
    def exhausted(self) -> bool:
        return self.accepting and bool(self.inner.is_stopped())

    def forced(self) -> bytes:
        return b"" if self.accepting else bytes(self.inner.compute_ff_bytes())

    def shortest_end(self) -> bytes | None:
        """A completion: short, not always the shortest."""
        return short_end(self)

    def fork(self) -> Matcher:
        return LLGuidanceMatcher(self.vocabulary, self.inner.deep_copy())


def _check(matcher: LLMatcher) -> None:
    if matcher.is_error():
        raise GrammarError(f"llguidance gave up on the grammar: {_first_lines(matcher.get_error())}")


def _by_string(vocabulary: Vocabulary) -> tuple[list[bytes], list[int]]:
    """The tokens in the order of their strings."""
    made = vocabulary.forms.get("by string")
    if made is None:
        pairs = sorted((string, token) for token, string in enumerate(vocabulary.tokens) if string)
        made = vocabulary.forms["by string"] = ([string for string, _ in pairs], [token for _, token in pairs])
    return made


def _first_lines(text: str) -> str:
    return " ".join(text.split("<state>")[0].split())[:400]


class LLGuidanceGrammar(CompiledGrammar):
    """A grammar as the library has it; matchers are copies of the one that it was checked with."""

    def __init__(self, vocabulary: Vocabulary, grammar: Grammar) -> None:
        self.vocabulary = vocabulary
        self._start = LLMatcher(_tokenizer(vocabulary), source(grammar), log_level=0, limits=_LIMITS)
        if self._start.is_error():
            raise GrammarError(f"the {grammar.kind} grammar cannot be used: {_first_lines(self._start.get_error())}")
        matcher = self.matcher()
        if not matcher.accepting and not matcher.mask().any():
            raise GrammarError(f"the {grammar.kind} grammar holds no text that this vocabulary can write")

    def matcher(self) -> Matcher:
        return LLGuidanceMatcher(self.vocabulary, self._start.deep_copy())


@register(
    Card(
        slug="llguidance",
        name="llguidance",
        kind=Kind.CONSTRAINT,
        summary="The default grammar engine, a library: JSON schemas, Lark, GBNF, regular expressions, choices.",
    ),
    GrammarSettings,
)
class LLGuidance(MatcherConstraint):
    """See the module."""

    def compile(self, vocabulary: Vocabulary) -> CompiledGrammar:
        return LLGuidanceGrammar(vocabulary, self.grammar)
