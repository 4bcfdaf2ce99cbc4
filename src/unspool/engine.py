"""The face of the project: a model that one asks for text."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from unspool.constraints import DEFAULT_ENGINE, Grammar, Typed
from unspool.core.cards import Kind, make_settings, setting_fields
from unspool.core.compose import Composition, compose
from unspool.core.errors import InvalidInput
from unspool.core.events import Event, Finished, Stepped
from unspool.core.model import LanguageModel
from unspool.core.registry import registry
from unspool.core.sockets import Constraint, Part, Reading
from unspool.core.statistics import Statistics
from unspool.core.texts import Stop
from unspool.models.load import load_model, wrap
from unspool.sampling.standard import SamplingSettings, StandardSampler

DEFAULT_METHOD = "auto"
KEPT = 128
"""Compositions that an engine keeps: a server meets a new grammar, setting or user with every other request."""

Message = Mapping[str, str]
Prompt = str | Sequence[int] | Sequence[Message]


@dataclass(frozen=True)
class Output:
    """What one request gave.

    Attributes:
        text: without special tokens, and without a stop string.
        tokens: generated, a stop token included.
        finish_reason: ``stop-token``, ``stop-string``, ``length``, ``context``, ``deadline`` or ``complete``.
        statistics: counts and times.
        prompt_tokens: what the model read.
        complete: whether a constraint calls the text complete; ``None`` without one, or if it cannot tell.
        log_probs: of every token under the model's own distribution, in nats; ``None`` unless a method reads them.
        reading: what a reader (``method="pac-code-sets"``, say) makes of the output; ``None`` without one.
    """

    text: str
    tokens: list[int]
    finish_reason: str
    statistics: Statistics
    prompt_tokens: list[int] = field(repr=False, default_factory=list)
    complete: bool | None = None
    log_probs: list[float] | None = field(repr=False, default=None)
    reading: Reading | None = None

    def __str__(self) -> str:
        return self.text


class Engine:
    """A model, and the ways of decoding it.

    Compositions are kept, the last ``KEPT`` that were asked for: what a drafter has learned from one request helps the
    next. :meth:`forget` drops it.

    Args:
        model: a backend, or any model of transformers.
        tokenizer: for a model of transformers.
        loaded: the dtype and backend that it was asked for in; further models are loaded in the same way.
    """

    def __init__(self, model: Any, tokenizer: Any = None, *, loaded: tuple[str, str] | None = None) -> None:
        self.model: LanguageModel = model if isinstance(model, LanguageModel) else wrap(model, tokenizer)
        self._loaded = loaded
        self._compositions: OrderedDict[Any, Composition] = OrderedDict()
        self._others: dict[str, LanguageModel] = {}

    @property
    def backend(self) -> str:
        """The backend that further models are loaded with."""
        return self._loaded[1] if self._loaded else "transformers"

    def __repr__(self) -> str:
        return f"Engine({self.model.name!r})"

    # -- asking ----------------------------------------------------------------------------------------------------

    def generate(
        self, prompt: Prompt | list[str], method: str | Part | Sequence[str | Part] = DEFAULT_METHOD, **options: Any
    ) -> Any:
        """Generate text.

        Args:
            prompt: text, messages (``[{"role": "user", "content": ...}]``), or token ids; a list of texts is a batch.
            method: a slug, several joined by ``+``, or parts made by hand.
            options: as in :meth:`events`.

        Returns:
            An :class:`Output`; for a batch a list of them.
        """
        batch = isinstance(prompt, list) and bool(prompt) and all(isinstance(item, str) for item in prompt)
        prompts: list[Any] = list(prompt) if batch else [prompt]
        began = time.perf_counter()
        encoded = [self.encode(item, options.get("chat")) for item in prompts]
        statistics = [Statistics() for _ in encoded]
        texts = [""] * len(encoded)
        finished: dict[int, Finished] = {}
        for event in self.events(encoded, method, **options):
            elapsed = time.perf_counter() - began
            for index, counted in enumerate(statistics):
                counted.update(event, elapsed, index)
            if isinstance(event, Stepped):
                texts[event.index] += event.text
            elif isinstance(event, Finished):
                texts[event.index] += event.text
                finished[event.index] = event
        outputs = [
            Output(
                texts[i],
                list(end.tokens),
                end.reason,
                statistics[i],
                encoded[i],
                end.complete,
                None if end.log_probs is None else list(end.log_probs),
                end.reading,
            )
            for i, end in sorted(finished.items())
        ]
        return outputs if batch else outputs[0]

    def generate_object(
        self,
        prompt: Prompt | list[str],
        what: Any,
        method: str | Part | Sequence[str | Part] = DEFAULT_METHOD,
        *,
        max_new_tokens: int = 512,
        settings: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """Generate an object of a type.

        >>> lm.generate_object("Name a city and its country.", City)                                 # doctest: +SKIP
        City(name='Paris', country='France')

        Args:
            prompt: as in :meth:`generate`.
            what: a class of pydantic, a dataclass, a ``TypedDict`` or any other annotation; or a function, of which the
                arguments are generated.
            max_new_tokens: at most; the text is brought to an end before.
            settings, options: as in :meth:`events`.

        Returns:
            An object of that type, of a function a :class:`~unspool.constraints.Call` that can be called; for a batch a
            list of them.

        Raises:
            GrammarError: if the type has no JSON, or the text is none of it after all (where a type checks what its
                schema does not say, or the maximum leaves no room for the shortest object).
        """
        typed = Typed.of(what)
        found = self.generate(
            prompt,
            method,
            constraint=typed.grammar,
            max_new_tokens=max_new_tokens,
            settings={"close": True, **(settings or {})},
            **options,
        )
        return [typed.read(one.text) for one in found] if isinstance(found, list) else typed.read(found.text)

    def stream(
        self, prompt: Prompt, method: str | Part | Sequence[str | Part] = DEFAULT_METHOD, **options: Any
    ) -> Iterator[str]:
        """Generate text and yield it in pieces, each final when it comes."""
        encoded = self.encode(prompt, options.get("chat"))
        for event in self.events([encoded], method, **options):
            if isinstance(event, Stepped | Finished) and event.text:
                yield event.text

    def events(
        self,
        prompts: Sequence[Sequence[int]],
        method: str | Part | Sequence[str | Part] = DEFAULT_METHOD,
        *,
        max_new_tokens: int = 256,
        constraint: Grammar | Constraint | None = None,
        stop: str | Sequence[str] = (),
        stop_tokens: Sequence[int] | None = None,
        deadline: float | None = None,
        seed: int = 0,
        chat: bool | None = None,
        draft: str | LanguageModel | None = None,
        settings: Mapping[str, Any] | None = None,
        user: str | None = None,
        chunk: int = 256,
        probe: bool = False,
        **more: Any,
    ) -> Iterator[Event]:
        """Decode prompts of token ids and yield what happens.

        Args:
            prompts: one list of token ids a request.
            method: as in :meth:`generate`.
            max_new_tokens: generated tokens at most.
            constraint: what the text has to be; see :meth:`compose`.
            stop: stop strings.
            stop_tokens: instead of the model's own.
            deadline: seconds.
            seed: equal seeds give equal runs on one machine.
            chat: whether text is put into the model's chat template; by default if it has one. (Read by
                :meth:`encode`.)
            draft: a draft model, or its name, for methods that need one.
            settings: of the methods, by name or ``slug.name``.
            user: whose request it is. What methods learn from the requests of one user is of use to that user alone;
                requests without a user share theirs.
            chunk: prompt tokens that enter in one pass.
            probe: put probabilities into the events.
            more: settings of the sampler (``temperature=0.7``) and of the methods, by name.
        """
        composition = self.compose(method, constraint=constraint, draft=draft, settings=settings, user=user, **more)
        limits = Stop(
            max_new_tokens,
            None if stop_tokens is None else frozenset(stop_tokens),
            (stop,) if isinstance(stop, str) else tuple(stop),
            deadline,
        )
        return composition.decode(prompts, stop=limits, seed=seed, chunk=chunk, probe=probe)

    # -- building --------------------------------------------------------------------------------------------------

    def compose(
        self,
        method: str | Part | Sequence[str | Part] = DEFAULT_METHOD,
        *,
        constraint: Grammar | Constraint | None = None,
        draft: str | LanguageModel | None = None,
        settings: Mapping[str, Any] | None = None,
        user: str | None = None,
        **more: Any,
    ) -> Composition:
        """The composition for a method, settings and user; the same one when asked again soon.

        A grammar is the business of the grammar engine among the methods, or of the default one.

        What it has learned can be written to a folder and read again: ``compose(...).save_learned(folder)``.

        Raises:
            UnknownMethod, InvalidInput, Incompatible: see :func:`unspool.core.compose.compose`.
        """
        methods: list[str | Part] = [method] if isinstance(method, str | Part) else list(method)
        if isinstance(constraint, Constraint):
            methods.append(constraint)
        slugs = [slug.strip() for item in methods if isinstance(item, str) for slug in item.split("+") if slug.strip()]
        if isinstance(constraint, Grammar):
            engines = [slug for slug in slugs if "grammar" in self._settings_of([slug])]
            if not engines:
                methods.append(DEFAULT_ENGINE)
                slugs.append(DEFAULT_ENGINE)
            settings = {**(settings or {}), f"{(engines or [DEFAULT_ENGINE])[0]}.grammar": constraint}
        brings_sampler = any(registry[slug].card.kind is Kind.SAMPLER for slug in slugs) or any(
            isinstance(item, Part) and "distribution" in dir(item) for item in methods
        )
        sampling_names = {f.name for f in setting_fields(SamplingSettings)}
        sampling = {} if brings_sampler else {k: v for k, v in more.items() if k in sampling_names}
        chosen = {**(settings or {}), **{k: v for k, v in more.items() if k not in sampling}}
        if not brings_sampler:
            sampling |= {
                k: chosen.pop(k) for k in list(chosen) if k in sampling_names and k not in self._settings_of(slugs)
            }

            known = self._settings_of(slugs)
            if wrong := [k for k in chosen if "." not in k and k not in known]:
                of_methods = f"; {' + '.join(slugs)}: {', '.join(sorted(known)) or 'none'}" if slugs else ""
                of_sampling = ", ".join(sorted(sampling_names))
                raise InvalidInput(f"there is no setting {wrong[0]!r}. Sampling: {of_sampling}{of_methods}")

        key = (
            tuple(item if isinstance(item, str) else id(item) for item in methods),
            _frozen(sampling),
            _frozen(chosen),
            draft if isinstance(draft, str) else id(draft),
            user,
        )
        made = self._compositions.pop(key, None)
        if made is None:
            sampler = StandardSampler(make_settings(SamplingSettings, sampling, "sampling"))
            models = {} if draft is None else {"draft": self._other(draft) if isinstance(draft, str) else draft}
            made = compose(self.model, methods, settings=chosen, sampler=sampler, models=models, load=self._other)
        self._compositions[key] = made
        while len(self._compositions) > KEPT:
            self._compositions.popitem(last=False)
        return made

    def forget(self, user: str | None = None) -> None:
        """Drop what the methods have learned from earlier requests: of one user, or of everybody."""
        for key in list(self._compositions):
            if user is None or key[-1] == user:
                del self._compositions[key]

    @staticmethod
    def _settings_of(slugs: Sequence[str]) -> set[str]:
        return {f.name for slug in slugs for f in setting_fields(registry[slug].settings)}

    def _other(self, name: str) -> LanguageModel:
        """A further model, loaded once."""
        if name not in self._others:
            dtype, backend = self._loaded or (str(self.model.dtype).removeprefix("torch."), "transformers")
            device = str(self.model.device)
            self._others[name] = load_model(name, dtype=dtype, device=device, backend=backend, progress=False)
        return self._others[name]

    # -- text ------------------------------------------------------------------------------------------------------

    def encode(self, prompt: Prompt, chat: bool | None = None) -> list[int]:
        """Token ids of a prompt.

        Args:
            prompt: text, messages, or token ids (returned as they are).
            chat: put text into the chat template; by default if the model has one.

        Raises:
            InvalidInput: for an empty prompt, or one that needs a tokenizer or template that is not there.
        """
        if not isinstance(prompt, str):
            items = list(prompt)
            if items and all(isinstance(item, int) for item in items):
                return items  # type: ignore[return-value]
            if not items:
                raise InvalidInput("the prompt is empty; give some text")
            if not all(isinstance(item, Mapping) and "role" in item and "content" in item for item in items):
                raise InvalidInput("a prompt is text, a list of token ids, or messages with 'role' and 'content'")
        tokenizer = self.model.tokenizer
        if tokenizer is None:
            raise InvalidInput(f"{self.model.name} has no tokenizer; give token ids")
        if isinstance(prompt, str):
            if not prompt:
                raise InvalidInput("the prompt is empty; give some text")
            if chat is None:
                chat = tokenizer.chats
            if not chat:
                return list(tokenizer.encode(prompt))
            prompt = [{"role": "user", "content": prompt}]
        return list(tokenizer.chat(prompt))


def _frozen(values: Mapping[str, Any]) -> Any:
    return tuple(sorted((name, repr(value)) for name, value in values.items()))


def load(
    name: str = "smollm2-135m",
    *,
    dtype: str = "auto",
    device: str | None = None,
    backend: str = "auto",
    progress: bool = True,
) -> Engine:
    """Load a model by name; see :func:`unspool.models.load.load_model`.

    On a CPU the native runtime is used for what it runs, with the weights as the file holds them;
    ``dtype="float32", backend="transformers"`` is the reference.
    """
    model = load_model(name, dtype=dtype, device=device, backend=backend, progress=progress)
    return Engine(model, loaded=(dtype, backend))
