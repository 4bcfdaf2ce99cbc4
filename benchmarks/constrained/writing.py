"""Ways of writing a text under a schema, each as its users have it; a host is a process that offers some of them.

``native``: our runtime. Plain decoding without a constraint; our default engine with its loop; and, for the libraries,
the loop that their documentation shows: a forward pass, the mask onto the logits, the likeliest token. That loop is
bare, so it is faster than what frameworks do with them. ``transformers``: ``generate`` with a logits processor, in
single precision. ``llama.cpp``: its own sampler with the grammar that the package makes of the schema.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from constrained.engines import Compiled, Place, Refused, laid_out, side
from unspool.core.errors import UnspoolError
from unspool.core.events import Finished, Stepped
from unspool.core.model import LanguageModel
from unspool.core.scores import Request
from unspool.core.texts import Stop
from unspool.core.tree import TokenTree
from unspool.engine import Engine

HOSTS: dict[str, tuple[str, ...]] = {
    "native": (
        "unconstrained",
        "unspool token by token",
        "unspool jumping",
        "unspool",
        "unspool greatgramma",
        "unspool pre3-dpda",
        "unspool xgrammar",
        "llguidance",
        "xgrammar",
        "outlines-core",
    ),
    "transformers": ("transformers + llguidance", "transformers + xgrammar"),
    "llama.cpp": ("llama.cpp",),
}
"""The ways of every host. ``unspool`` is the default: ``auto``, jumping forward, closing before the maximum."""


@dataclass(frozen=True)
class Written:
    """One text.

    Args:
        tokens: the stop token included.
        compile_seconds: of the schema; no part of ``seconds``.
        first_seconds, seconds: from the prompt to the first token, and to the last.
        finished: whether the text came to its end before the maximum.
        forced: tokens that were committed without asking the model.
        forwards: passes behind the prompt; 0 where they are not told.
    """

    tokens: list[int]
    compile_seconds: float
    first_seconds: float
    seconds: float
    finished: bool
    forced: int = 0
    forwards: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


Way = Callable[[Any, list[int], int], Written]
"""Writes for a schema behind a prompt, so many tokens at most; raises :class:`Refused`."""


class Native:
    """Our runtime."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.engine = Engine(model)
        self._sides: dict[str, Callable[[Any], Compiled]] = {}
        self._count = 0

    def way(self, name: str) -> Way:
        """One of the ways of this host."""
        if name.startswith("unspool") or name == "unconstrained":
            return lambda schema, prompt, limit: self._ours(name, schema, prompt, limit)
        if name not in self._sides:
            self._sides[name] = side(name, self.model)
        compile_schema = self._sides[name]
        return lambda schema, prompt, limit: self._bare(compile_schema, schema, prompt, limit)

    def _ours(self, name: str, schema: Any, prompt: list[int], limit: int) -> Written:
        if name == "unconstrained":
            return self._decoded(0.0, "plain", {}, prompt, Stop(limit, frozenset()))
        method, settings = "plain", {"jump": "off"}
        if name == "unspool jumping":
            settings = {}
        elif name != "unspool token by token":
            settings = {"close": True}
            method = name.removeprefix("unspool").strip() or "auto"
        # Another text of the same schema: nothing that was compiled before is found again.
        self._count += 1
        own = {"$comment": f"{self._count}", **schema} if isinstance(schema, dict) else schema
        began = time.perf_counter()
        try:
            options = {"constraint": laid_out(own), **settings}
            self.engine.compose(method, **options)
        except UnspoolError as error:
            raise Refused(str(error)) from error
        return self._decoded(time.perf_counter() - began, method, options, prompt, Stop(limit))

    def _decoded(
        self, compiling: float, method: str, options: dict[str, Any], prompt: list[int], stop: Stop
    ) -> Written:
        made = self.engine.compose(method, **options)
        forced, first, forwards = 0, 0.0, self.model.forwards
        began = time.perf_counter()
        end: Finished | None = None
        for event in made.decode([prompt], stop=stop):
            if isinstance(event, Stepped):
                forced += event.forced
                first = first or time.perf_counter() - began
            elif isinstance(event, Finished):
                end = event
        seconds = time.perf_counter() - began
        self.engine.forget()
        assert end is not None
        finished = bool(end.complete) if end.complete is not None else end.reason == "stop-token"
        passes = self.model.forwards - forwards
        return Written(list(end.tokens), compiling, first, seconds, finished, forced, passes)

    @torch.no_grad()
    def _bare(self, compile_schema: Callable[[Any], Compiled], schema: Any, prompt: list[int], limit: int) -> Written:
        model = self.model
        began = time.perf_counter()
        place: Place = compile_schema(schema)()
        compiling = time.perf_counter() - began
        tokens: list[int] = []
        forwards, first = model.forwards, 0.0
        began = time.perf_counter()
        cache = model.new_cache()
        try:
            logits = model.prefill(cache, prompt, rows=[len(prompt) - 1], chunk=256)[-1].logits[-1]
            while True:
                place.mask()
                place.apply(logits)
                token = int(logits.numpy().argmax())
                tokens.append(token)
                first = first or time.perf_counter() - began
                if token in model.stop_tokens or len(tokens) == limit:
                    break
                if not place.consume(token):
                    raise Refused("the mask allowed a token that is then refused")
                (scores,) = model.score([Request(cache, TokenTree.chain([token]))])
                cache.commit([0])
                logits = scores.logits[-1]
        finally:
            cache.release()
        seconds = time.perf_counter() - began
        ended = tokens[-1] in model.stop_tokens or (place.consume(tokens[-1]) and place.ends())
        return Written(tokens, compiling, first, seconds, ended, 0, model.forwards - forwards)


class Transformers:
    """``generate`` with a logits processor."""

    def __init__(self, model: LanguageModel, path: str) -> None:
        from transformers import AutoModelForCausalLM

        self.model = model
        self.network: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        self._sides: dict[str, Callable[[Any], Compiled]] = {}

    def way(self, name: str) -> Way:
        """One of the ways of this host."""
        library = name.rpartition(" ")[2]
        if library not in self._sides:
            self._sides[library] = side(library, self.model)
        return lambda schema, prompt, limit: self._generated(library, schema, prompt, limit)

    def _generated(self, library: str, schema: Any, prompt: list[int], limit: int) -> Written:
        from transformers import LogitsProcessor, LogitsProcessorList

        stops = self.model.stop_tokens
        began = time.perf_counter()
        place = self._sides[library](schema)()
        compiling = time.perf_counter() - began
        times: list[float] = []

        class Masked(LogitsProcessor):  # type: ignore[misc]
            def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
                if times:
                    place.consume(int(input_ids[0, -1]))
                place.mask()
                place.apply(scores[0])
                times.append(time.perf_counter())
                return scores

        ids = torch.tensor([prompt])
        began = time.perf_counter()
        with torch.no_grad():
            found = self.network.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                num_beams=1,
                max_new_tokens=limit,
                pad_token_id=min(stops),
                eos_token_id=sorted(stops),
                logits_processor=LogitsProcessorList([Masked()]),
            )
        seconds = time.perf_counter() - began
        tokens = found[0, len(prompt) :].tolist()
        ended = tokens[-1] in stops or (place.consume(tokens[-1]) and place.ends())
        return Written(tokens, compiling, times[0] - began, seconds, ended)


class LlamaCpp:
    """The package's own grammar."""

    def __init__(self, model: LanguageModel, path: str, room: int, threads: int) -> None:
        from llama_cpp import Llama

        self.model = model
        self.inner = Llama(path, n_ctx=room, n_batch=512, n_threads=threads, n_threads_batch=threads, verbose=False)

    def way(self, name: str) -> Way:
        """The way of this host."""
        assert name == "llama.cpp"
        return self._generated

    def _generated(self, schema: Any, prompt: list[int], limit: int) -> Written:
        import json

        from llama_cpp import LlamaGrammar

        began = time.perf_counter()
        try:
            grammar = LlamaGrammar.from_json_schema(json.dumps(schema), verbose=False)
        except Exception as error:
            raise Refused(f"{type(error).__name__}: {error}") from error
        compiling = time.perf_counter() - began
        tokens: list[int] = []
        first = 0.0
        self.inner.reset()
        began = time.perf_counter()
        try:
            for token in self.inner.generate(prompt, temp=0.0, repeat_penalty=1.0, grammar=grammar):
                tokens.append(int(token))
                first = first or time.perf_counter() - began
                if token in self.model.stop_tokens or len(tokens) == limit:
                    break
        except (RuntimeError, ValueError) as error:
            raise Refused(f"{type(error).__name__}: {error}") from error
        ended = bool(tokens) and tokens[-1] in self.model.stop_tokens
        return Written(tokens, compiling, first, time.perf_counter() - began, ended)
