"""What is asked and what answers: tasks, answers, and the arms of a run.

Everything here is plain data that can be pickled, so that an arm may stand in this process, in a peer's, or in a worker
on another machine. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from unspool.core.errors import InvalidInput

Kind = Literal["method", "peer", "reference"]


@dataclass(frozen=True)
class Task:
    """One item of a suite to be answered once.

    Args:
        item: id of the item.
        turns: what the user says in turn; each turn is asked with the conversation so far, the answers being the
            arm's own.
        chat: whether turns go through the model's chat template; ``None``: if it has one.
        max_new_tokens: of each turn, at most.
        stop: strings that end a turn and are not part of it.
        sample: which of several answers to the same item.
        seed: of this answer; tasks that differ in item or sample differ in it.
        ignore_eos: end tokens and stop strings do not count: every turn has exactly ``max_new_tokens`` tokens.
        tokens, score_from: instead of turns, token ids of which those from ``score_from`` on are to be given their
            log-probabilities; nothing is generated. (Peers need not know of it.)
    """

    item: str
    turns: tuple[str, ...]
    chat: bool | None
    max_new_tokens: int
    stop: tuple[str, ...]
    sample: int
    seed: int
    ignore_eos: bool = False
    tokens: tuple[int, ...] = ()
    score_from: int | None = None


@dataclass(frozen=True)
class TurnRecord:
    """What one turn gave.

    Args:
        text: without special tokens and without a stop string.
        tokens, prompt_tokens: generated, and read for this turn (with the conversation before it).
        finish_reason: as the engine tells it (``stop-token``, ``stop-string``, ``length``, ``context``), or a peer.
        seconds: from the call to its end.
        first_token_seconds: from the call to the first token; ``None`` if the answerer cannot tell.
        statistics: ``Statistics.as_dict()`` of our own methods, ``{}`` of peers.
        token_ids: generated ids, ``()`` if the answerer does not tell them.
    """

    text: str
    tokens: int
    prompt_tokens: int
    finish_reason: str
    seconds: float
    first_token_seconds: float | None
    statistics: Mapping[str, Any] = field(default_factory=dict)
    token_ids: tuple[int, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain data for a row."""
        return {**asdict(self), "token_ids": list(self.token_ids)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TurnRecord:
        """The record that :meth:`as_dict` described."""
        return cls(**{**values, "token_ids": tuple(values.get("token_ids", ()))})


@dataclass(frozen=True)
class Answer:
    """What an arm said to all turns of a task."""

    turns: tuple[TurnRecord, ...]

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(turn.text for turn in self.turns)

    @property
    def text(self) -> str:
        """What was said first; empty if nothing was."""
        return self.turns[0].text if self.turns else ""


@runtime_checkable
class Answerer(Protocol):
    """An arm of a run: a method of ours, a peer, or a reference.

    Attributes:
        name: the arm's name in rows and tables.
        kind: which of the three.
        about: what a reader must know of it: version, settings, threads; ``lossless`` of a method of ours.
    """

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> Kind: ...

    @property
    def about(self) -> Mapping[str, Any]: ...

    def warm_up(self) -> None:
        """Do once what the first request would otherwise pay for."""
        ...

    def answer(self, task: Task) -> Answer:
        """Answer.

        Raises:
            UnspoolError: if this task cannot be answered (a prompt longer than the context, say).
        """
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class ArmSpec:
    """What an arm is made of, wherever it is made.

    Args:
        name: as in rows and tables.
        model: packaged model, Hugging Face id, folder or file.
        method: slugs joined by ``+``; of a peer its name; of a reference its name.
        options: of a method: ``draft``, ``settings``, ``sampling``, ``dtype``, ``backend``, ``device``, ``threads``; of
            a peer ``threads``, ``draft``; of a reference ``answers``, a text for every item.
        kind: which of the three.
    """

    name: str
    model: str
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    kind: Kind = "method"


def make_answerer(spec: ArmSpec, engines: MutableMapping[Any, Any] | None = None) -> Answerer:
    """Make an arm, loading what it needs.

    Args:
        spec: what it is made of.
        engines: engines loaded before, by model; arms that are given the same mapping share the weights.

    Raises:
        UnspoolError: if the model, the method, its settings or the peer is not to be had.
    """
    if spec.kind == "peer":
        from unspool.evaluation import peers

        return peers.make(spec.method, spec.model, spec.options.get("threads"), draft=spec.options.get("draft"))
    if spec.kind == "reference":
        from unspool.evaluation.answerers import ReferenceAnswerer

        return ReferenceAnswerer(spec)
    if spec.kind == "method":
        from unspool.evaluation.answerers import EngineAnswerer, engine_of

        return EngineAnswerer(engine_of(spec, {} if engines is None else engines), spec)
    raise InvalidInput(f"an arm is a method, a peer or a reference; {spec.name} is {spec.kind!r}")
