"""Arms that answer in this process: methods of ours on an engine, and references that know the answers."""

from __future__ import annotations

import time
from collections.abc import Mapping, MutableMapping
from typing import Any

from unspool.core.errors import InvalidInput
from unspool.core.events import Finished, Stepped
from unspool.core.statistics import Statistics
from unspool.engine import Engine, load
from unspool.evaluation.answering import Answer, ArmSpec, Kind, Task, TurnRecord

PLAIN = "plain"
_WARM_UP = "The sun rose over the harbour, and the first boats went out."


def engine_of(spec: ArmSpec, engines: MutableMapping[Any, Any]) -> Engine:
    """The engine of an arm's model, loaded once for all arms that agree in model, type and device."""
    names = ("dtype", "backend", "device")
    options = {name: spec.options[name] for name in names if spec.options.get(name) is not None}
    key = (spec.model, *sorted(options.items()))
    if key not in engines:
        import torch

        if (threads := spec.options.get("threads")) is not None:
            torch.set_num_threads(threads)
        engines[key] = load(spec.model, progress=False, **options)
    found: Engine = engines[key]
    return found


def decode_options(spec: ArmSpec) -> dict[str, Any]:
    """What an arm of ours hands to the engine with every request."""
    options = spec.options
    return {
        "draft": options.get("draft"),
        "settings": dict(options.get("settings") or {}),
        **(options.get("sampling") or {}),
    }


class EngineAnswerer:
    """A method of ours.

    What it learns from one task helps it in the next, as in use; of lossless methods it changes the speed alone.

    Args:
        engine: the model.
        spec: method and options (``draft``, ``settings`` by name, ``sampling`` by name).

    Raises:
        UnspoolError: if the method cannot be composed with the model and the settings.
    """

    kind: Kind = "method"

    def __init__(self, engine: Engine, spec: ArmSpec) -> None:
        from unspool import __version__

        self.name = spec.name
        self._engine = engine
        self._method = spec.method
        options = spec.options
        self._options = decode_options(spec)
        composition = engine.compose(self._method, **self._options)
        model = engine.model
        import torch

        self.about: dict[str, Any] = {
            "kind": self.kind,
            "method": self._method,
            "version": __version__,
            "model": model.name,
            "dtype": str(model.dtype).removeprefix("torch."),
            "weights": options.get("dtype", "auto"),
            "backend": type(model).__name__,
            "device": str(model.device),
            "threads": torch.get_num_threads(),
            "draft": options.get("draft"),
            "settings": dict(self._options["settings"]),
            "sampling": dict(options.get("sampling") or {}),
            "lossless": composition.lossless,
            "greedy": composition.sampler.deterministic,
            "plain": self._method == PLAIN,
        }

    def warm_up(self) -> None:
        """Decode a few tokens, then forget what was learned from them."""
        prompt = self._engine.encode(_WARM_UP, chat=False)
        for _ in self._engine.events([prompt], self._method, max_new_tokens=8, stop_tokens=(), **self._options):
            pass
        composition = self._engine.compose(self._method, **self._options)
        for learned in composition.learned.values():
            learned.clear()

    def answer(self, task: Task) -> Answer:
        if task.score_from is not None:
            return Answer((self._score(task),))
        said: list[dict[str, str]] = []
        records = []
        for turn in task.turns:
            said.append({"role": "user", "content": turn})
            prompt = conversation(self._engine, said, task.chat)
            records.append(self._turn(prompt, task))
            said.append({"role": "assistant", "content": records[-1].text})
        return Answer(tuple(records))

    def _turn(self, prompt: list[int], task: Task) -> TurnRecord:
        statistics = Statistics()
        text: list[str] = []
        last: Finished | None = None
        began = time.perf_counter()
        for event in self._engine.events(
            [prompt],
            self._method,
            max_new_tokens=task.max_new_tokens,
            stop=() if task.ignore_eos else task.stop,
            stop_tokens=() if task.ignore_eos else None,
            seed=task.seed,
            **self._options,
        ):
            statistics.update(event, time.perf_counter() - began)
            if isinstance(event, Stepped | Finished):
                text.append(event.text)
            if isinstance(event, Finished):
                last = event
        assert last is not None
        return TurnRecord(
            text="".join(text),
            tokens=statistics.tokens,
            prompt_tokens=statistics.prompt_tokens,
            finish_reason=last.reason,
            seconds=statistics.seconds,
            first_token_seconds=statistics.first_token_seconds,
            statistics=statistics.as_dict(),
            token_ids=tuple(last.tokens),
        )

    def _score(self, task: Task) -> TurnRecord:
        from unspool.evaluation.metrics import log_probs

        start = task.score_from
        assert start is not None
        began = time.perf_counter()
        found = log_probs(self._engine.model, task.tokens[:start], task.tokens[start:])
        total = -float(found.double().sum())
        return TurnRecord("", len(found), start, "scored", time.perf_counter() - began, None, {"nll": total})

    def close(self) -> None:
        """The engine may serve other arms and stays."""


def conversation(engine: Engine, said: list[dict[str, str]], chat: bool | None) -> list[int]:
    """Token ids of a conversation up to where the next answer begins.

    Without a chat template a first turn is the text itself; later ones follow the answers after an empty line.
    """
    tokenizer = engine.model.tokenizer
    if chat is None:
        chat = bool(getattr(tokenizer, "chats", False))
    if chat:
        return engine.encode(said)
    return engine.encode("\n\n".join(one["content"] for one in said), chat=False)


class ReferenceAnswerer:
    """Gives the answers that it was made with: to check suites and judges, not models.

    Args:
        spec: ``options["answers"]`` has a text for every item.

    Raises:
        InvalidInput: if there are none.
    """

    kind: Kind = "reference"

    def __init__(self, spec: ArmSpec) -> None:
        self.name = spec.name
        self._answers: Mapping[str, str] = spec.options.get("answers") or {}
        if not self._answers:
            raise InvalidInput(f"{spec.name} needs a suite that has reference answers")
        self.about: Mapping[str, Any] = {"kind": self.kind, "method": spec.method, "lossless": False}

    def warm_up(self) -> None:
        """There is nothing to warm up."""

    def answer(self, task: Task) -> Answer:
        if task.item not in self._answers:
            raise InvalidInput(f"{self.name} has no answer to {task.item}")
        text = self._answers[task.item]
        return Answer((TurnRecord(text, 0, 0, "reference", 0.0, None),))

    def close(self) -> None:
        """Nothing is held."""
