"""The sides: our engines, and the libraries as their users call them.

A side is given a schema and gives a :class:`Place`, which moves along a text token by token. The libraries are called
with their defaults, except that xgrammar is told ``strict_mode=False``: its default forbids properties that the schema
allows, and JSONSchemaBench judges by the schema.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unspool.constraints._grammar import Grammar
from unspool.constraints._layout import LAYOUTS, OPTIONS
from unspool.constraints._matcher import CompiledGrammar, Matcher
from unspool.constraints._vocabulary import Vocabulary
from unspool.core.errors import UnspoolError
from unspool.core.model import LanguageModel

OURS = ("unspool", "unspool greatgramma", "unspool pre3-dpda", "unspool xgrammar")
PEERS = ("llguidance", "xgrammar", "outlines-core")
SIDES = (*OURS, *PEERS)

_PACKAGES = {
    "unspool xgrammar": ("xgrammar", 'pip install "unspool[xgrammar]"'),
    "llguidance": ("llguidance", "pip install llguidance"),
    "xgrammar": ("xgrammar", 'pip install "unspool[xgrammar]"'),
    "outlines-core": ("outlines_core", "pip install outlines-core"),
    "transformers + llguidance": ("llguidance", "pip install llguidance"),
    "transformers + xgrammar": ("xgrammar", 'pip install "unspool[xgrammar]"'),
    "llama.cpp": ("llama_cpp", 'pip install "unspool[llama-cpp]"'),
}


def absent(side: str) -> dict[str, str] | None:
    """Why a side cannot take part and what helps; ``None`` if it can."""
    if side not in _PACKAGES or find_spec(_PACKAGES[side][0]) is not None:
        return None
    module, install = _PACKAGES[side]
    return {"peer": side, "reason": f"{module} is not installed", "install": install}


def versions(sides: tuple[str, ...]) -> dict[str, str]:
    """Of the packages of these sides."""
    found = {}
    for side in sides:
        name = {"llama_cpp": "llama-cpp-python"}.get(*[_PACKAGES.get(side, ("", ""))[0]] * 2).replace("_", "-")
        if name:
            try:
                found[name] = version(name)
            except PackageNotFoundError:
                continue
    return found


class Refused(Exception):
    """A schema that a side does not take, in its own words."""


class Place(ABC):
    """Where one text stands."""

    @abstractmethod
    def mask(self) -> None:
        """Find out which tokens may follow."""

    @abstractmethod
    def consume(self, token: int) -> bool:
        """Move on; ``False`` if the token may not follow."""

    @abstractmethod
    def ends(self) -> bool:
        """Whether the text may end here."""

    @abstractmethod
    def apply(self, logits: Tensor) -> None:
        """Put ``-inf`` where the mask forbids, into ``[V]`` logits."""


class _Bits(Place):
    """A place whose mask is 32 tokens a number."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.bits = np.zeros((size + 31) // 32, dtype=np.int32)

    def apply(self, logits: Tensor) -> None:
        allowed = np.unpackbits(self.bits.view(np.uint8), count=self.size, bitorder="little").view(np.bool_)
        logits.masked_fill_(~torch.from_numpy(allowed), -torch.inf)


Compiled = Callable[[], Place]


def laid_out(schema: Any) -> Grammar:
    """A schema as our command line takes it: with one space after a comma and a colon."""
    return Grammar.json_schema({**schema, OPTIONS: LAYOUTS["fixed"]} if isinstance(schema, dict) else schema)


class _Ours(Place):
    def __init__(self, matcher: Matcher) -> None:
        self.matcher = matcher

    def mask(self) -> None:
        self.found = self.matcher.mask()

    def consume(self, token: int) -> bool:
        return self.matcher.consume(token)

    def ends(self) -> bool:
        return self.matcher.accepting

    def apply(self, logits: Tensor) -> None:
        logits.masked_fill_(~self.found, -torch.inf)


def _ours(slug: str, model: LanguageModel) -> Callable[[Any], Compiled]:
    vocabulary = Vocabulary.of(model)
    # What is made once for a vocabulary is no part of compiling a schema.
    assert len(vocabulary.trie)

    def made(grammar: Grammar) -> CompiledGrammar:
        match slug:
            case "greatgramma":
                from unspool.constraints.greatgramma import GreatGrammaGrammar

                return GreatGrammaGrammar(vocabulary, grammar)
            case "pre3-dpda":
                from unspool.constraints.pre3_dpda import Pre3Grammar

                return Pre3Grammar(vocabulary, grammar)
            case "xgrammar":
                from unspool.constraints.xgrammar import XGrammarGrammar

                return XGrammarGrammar(vocabulary, grammar)
        from unspool.constraints.llguidance import LLGuidanceGrammar

        return LLGuidanceGrammar(vocabulary, grammar)

    def compile_schema(schema: Any) -> Compiled:
        try:
            compiled = made(laid_out(schema))
        except UnspoolError as error:
            raise Refused(str(error)) from error
        return lambda: _Ours(compiled.matcher())

    compile_schema({"type": "object", "properties": {"warm": {"type": "string"}}})
    return compile_schema


def _llguidance(model: LanguageModel) -> Callable[[Any], Compiled]:
    import llguidance
    import llguidance.hf

    tokenizer = llguidance.hf.from_tokenizer(
        model.tokenizer.hf, n_vocab=model.vocab_size, eos_token=min(model.stop_tokens)
    )

    class At(_Bits):
        def __init__(self, inner: Any) -> None:
            super().__init__(model.vocab_size)
            self.inner = inner

        def mask(self) -> None:
            self.inner.unsafe_compute_mask_ptr(self.bits.ctypes.data, self.bits.nbytes)

        def consume(self, token: int) -> bool:
            return bool(self.inner.try_consume_tokens([token]) == 1)

        def ends(self) -> bool:
            return bool(self.inner.is_accepting())

    def compile_schema(schema: Any) -> Compiled:
        try:
            grammar = llguidance.LLMatcher.grammar_from_json_schema(schema)
        except ValueError as error:
            raise Refused(str(error)) from error

        def start() -> Place:
            matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0)
            if matcher.is_error():
                raise Refused(matcher.get_error())
            return At(matcher)

        start()
        return start

    compile_schema({"type": "object"})
    return compile_schema


def _xgrammar(model: LanguageModel) -> Callable[[Any], Compiled]:
    import xgrammar

    described = xgrammar.TokenizerInfo.from_huggingface(
        model.tokenizer.hf, vocab_size=model.vocab_size, stop_token_ids=sorted(model.stop_tokens)
    )
    compiler = xgrammar.GrammarCompiler(described)

    class At(Place):
        def __init__(self, inner: Any) -> None:
            self.inner = inner
            self.bits = xgrammar.allocate_token_bitmask(1, model.vocab_size)

        def mask(self) -> None:
            self.inner.fill_next_token_bitmask(self.bits)

        def consume(self, token: int) -> bool:
            return bool(self.inner.accept_token(token))

        def ends(self) -> bool:
            return bool(self.inner.is_completed())

        def apply(self, logits: Tensor) -> None:
            xgrammar.apply_token_bitmask_inplace(logits[None], self.bits)

    def compile_schema(schema: Any) -> Compiled:
        try:
            compiled = compiler.compile_json_schema(json.dumps(schema), strict_mode=False)
        except (RuntimeError, ValueError) as error:
            raise Refused(" ".join(str(error).split())) from error
        return lambda: At(xgrammar.GrammarMatcher(compiled))

    compile_schema({"type": "object", "properties": {"warm": {"type": "string"}}})
    return compile_schema


def _outlines(model: LanguageModel) -> Callable[[Any], Compiled]:
    import outlines_core
    from outlines_core.json_schema import build_regex_from_schema

    vocabulary = Vocabulary.of(model)
    stop = min(model.stop_tokens)
    known: dict[bytes, list[int]] = {}
    for token, string in enumerate(vocabulary.tokens):
        if string is not None:
            known.setdefault(string, []).append(token)
    tokens = outlines_core.Vocabulary(stop, known)

    class At(_Bits):
        def __init__(self, guide: Any) -> None:
            super().__init__(model.vocab_size)
            self.guide = guide

        def mask(self) -> None:
            self.guide.write_mask_into(self.bits.ctypes.data, self.bits.size, self.bits.itemsize)

        def consume(self, token: int) -> bool:
            if not self.guide.accepts_tokens([token]):
                return False
            self.guide.advance(token, return_tokens=False)
            return True

        def ends(self) -> bool:
            return bool(self.guide.is_finished())

    def compile_schema(schema: Any) -> Compiled:
        try:
            index = outlines_core.Index(build_regex_from_schema(json.dumps(schema)), tokens)
        except (ValueError, TypeError, RuntimeError) as error:
            raise Refused(" ".join(str(error).split())) from error
        return lambda: At(outlines_core.Guide(index))

    return compile_schema


def side(name: str, model: LanguageModel) -> Callable[[Any], Compiled]:
    """What compiles schemas for a side, made ready for a model's vocabulary.

    Calling it raises :class:`Refused`, and so may calling what it gives.
    """
    match name:
        case "llguidance":
            return _llguidance(model)
        case "xgrammar":
            return _xgrammar(model)
        case "outlines-core":
            return _outlines(model)
    return _ours(name.removeprefix("unspool").strip() or "llguidance", model)
