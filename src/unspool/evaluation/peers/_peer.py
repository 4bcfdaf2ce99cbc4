"""What every peer shares: prompts, stop conditions, the stopwatch, and the words for its absence.

A peer is given the token ids that our own methods are given, made by the same tokenizer and chat template, and gives
token ids back. The stopwatch runs from the moment the ids are handed over to the moment the last new id is known; what
a peer remembers of an earlier request is dropped before.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar

from unspool.core.errors import Incompatible, InvalidInput, UnspoolError
from unspool.evaluation.answering import Answer, Kind, Task, TurnRecord

if TYPE_CHECKING:
    from unspool.models.hub import ModelSource
    from unspool.models.tokenizer import TextTokenizer


class PeerAbsent(UnspoolError):
    """A peer that cannot take part: it is not installed, or does not read this model. The run goes on without it."""


@dataclass(frozen=True)
class Contest:
    """What all sides are given.

    Args:
        source: where the weights lie, as :func:`unspool.models.hub.resolve` found them.
        threads: of the CPU.
        stop_tokens: at which our own methods end an answer.
        context: positions that the model was trained for, if it says so.
        dtype: of the weights where they are not read as they are stored.
        draft: a draft model for assisted generation, by name.
    """

    source: ModelSource
    threads: int
    stop_tokens: frozenset[int]
    context: int | None = None
    dtype: str = "float32"
    draft: str | None = None


class Watch:
    """Sees the tokens of one turn as they come: when the first came, and whether a stop string is complete.

    Args:
        tokenizer: that turns ids into text; used only if there are stop strings.
        stops: the stop strings.
        stop_tokens: ids that end the answer.
        limit: new tokens at most.
    """

    def __init__(self, tokenizer: TextTokenizer, stops: Sequence[str], stop_tokens: frozenset[int], limit: int) -> None:
        from unspool.core.text import TextStream

        self.tokens: list[int] = []
        self.reason: str | None = None
        self._stream = TextStream(tokenizer, stops) if stops else None
        self._stop_tokens = stop_tokens
        self._limit = limit
        self._began = time.perf_counter()
        self.first: float | None = None

    def take(self, tokens: Sequence[int]) -> bool:
        """Take new tokens; whether the answer is complete. What comes after its end is not taken."""
        if self.first is None and len(tokens):
            self.first = time.perf_counter() - self._began
        for token in tokens:
            if self.reason is not None:
                break
            self.tokens.append(int(token))
            if token in self._stop_tokens:
                self.reason = "stop-token"
            elif self._completes_a_stop(int(token)):
                self.reason = "stop-string"
            elif len(self.tokens) >= self._limit:
                self.reason = "length"
        return self.reason is not None

    def _completes_a_stop(self, token: int) -> bool:
        if self._stream is None:
            return False
        self._stream.push(token)
        return self._stream.stopped is not None

    @property
    def elapsed(self) -> float:
        """Seconds since the turn began."""
        return time.perf_counter() - self._began


class Peer(ABC):
    """Another program that answers; one file a program, one class, one or several ways of running it.

    Class attributes:
        ways: by the name of the arm, what it does, in a few words.
        distribution, module: what has to be installed, and what is imported.
        install: the line that installs it.
        reads_gguf_only: whether it needs the GGUF file itself.
    """

    kind: Kind = "peer"
    ways: ClassVar[Mapping[str, str]]
    distribution: ClassVar[str]
    module: ClassVar[str]
    install: ClassVar[str]
    reads_gguf_only: ClassVar[bool] = False

    def __init__(self, name: str, contest: Contest) -> None:
        self.name = name
        self.contest = contest
        self.tokenizer = _tokenizer(contest.source)
        self.start()

    # -- whether it can take part ------------------------------------------------------------------------------------

    @classmethod
    def absent(cls, name: str, contest: Contest | None = None) -> str | None:
        """Why it cannot take part, as far as can be told without starting it; ``None`` if it can."""
        if find_spec(cls.module) is None:
            return f"the package {cls.distribution} is not installed"
        if contest is not None and cls.reads_gguf_only and contest.source.gguf is None:
            return f"it is given the GGUF file itself, and {contest.source.name} does not come from one"
        return None

    @classmethod
    def remedy(cls, name: str) -> str:
        """What to do so that an absent one can take part."""
        return cls.install

    @classmethod
    def version(cls) -> str:
        """Of the installed package."""
        try:
            return version(cls.distribution)
        except PackageNotFoundError:
            return "unknown"

    # -- what a peer fills in ----------------------------------------------------------------------------------------

    @abstractmethod
    def start(self) -> None:
        """Load the model.

        Raises:
            PeerAbsent: if it does not read this model.
        """

    @property
    def room(self) -> int | None:
        """Positions that a request may fill; ``None`` if there is no limit that is known."""
        return self.contest.context

    @abstractmethod
    def weights(self) -> str:
        """In which form it holds the weights, for people."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What else decides its speed, as it was set."""

    @abstractmethod
    def complete(self, prompt: list[int], limit: int, stop_tokens: frozenset[int], watch: Watch) -> None:
        """Continue a prompt greedily until ``watch.take`` says that the answer is complete.

        Args:
            prompt: token ids; nothing that is remembered of an earlier prompt may be used.
            limit: new tokens at most.
            stop_tokens: ids that end the answer; empty if it is to go on to the limit.
            watch: to be given all new tokens, as soon as the program lets them be known.
        """

    def close(self) -> None:
        """Give the memory back."""

    # -- the answerer ------------------------------------------------------------------------------------------------

    @property
    def about(self) -> Mapping[str, Any]:
        """Version, form of the weights, settings."""
        return {
            "kind": self.kind,
            "what": self.ways[self.name],
            "package": self.distribution,
            "version": self.version(),
            "weights": self.weights(),
            "threads": self.contest.threads,
            "greedy": True,
            "settings": self.settings(),
        }

    def warm_up(self) -> None:
        """One short answer, so that what is done once is done before the stopwatch runs."""
        prompt = self.tokenizer.encode("One, two, three, four, five, six, seven, eight, nine")
        self.complete(prompt, 8, frozenset(), Watch(self.tokenizer, (), frozenset(), 8))

    def answer(self, task: Task) -> Answer:
        """Answer all turns of a task, each after the conversation so far; every turn reads all of it anew.

        Raises:
            Incompatible: for a task that asks for probabilities.
            InvalidInput: for a prompt without room.
        """
        if task.score_from is not None:
            raise Incompatible(f"{self.name} is asked to generate only; it gives no log-probabilities of a text")
        said: list[dict[str, str]] = []
        records: list[TurnRecord] = []
        for turn in task.turns:
            said.append({"role": "user", "content": turn})
            records.append(self._turn(self.encode(said, task.chat), task))
            said.append({"role": "assistant", "content": records[-1].text})
        return Answer(turns=tuple(records))

    def encode(self, said: Sequence[Mapping[str, str]], chat: bool | None) -> list[int]:
        """Token ids of a conversation, the same that our own methods are given (``answerers.conversation``)."""
        if self.tokenizer.chats if chat is None else chat:
            return self.tokenizer.chat(said)
        return self.tokenizer.encode("\n\n".join(one["content"] for one in said))

    def _turn(self, prompt: list[int], task: Task) -> TurnRecord:
        if not prompt:
            raise InvalidInput("the prompt is empty")
        if self.room is not None and len(prompt) + task.max_new_tokens > self.room:
            raise InvalidInput(
                f"{self.name} has room for {self.room} positions; {task.item} asks for {len(prompt)} of prompt and "
                f"{task.max_new_tokens} new tokens"
            )
        stop_tokens = frozenset() if task.ignore_eos else self.contest.stop_tokens
        stops = () if task.ignore_eos else task.stop
        watch = Watch(self.tokenizer, stops, stop_tokens, task.max_new_tokens)
        self.complete(prompt, task.max_new_tokens, stop_tokens, watch)
        seconds = watch.elapsed
        return TurnRecord(
            text=self._text(watch.tokens, stops),
            tokens=len(watch.tokens),
            prompt_tokens=len(prompt),
            # A program that ends by itself was told to at the stop tokens alone.
            finish_reason=watch.reason or "stop-token",
            seconds=seconds,
            first_token_seconds=watch.first,
            statistics={},
            token_ids=tuple(watch.tokens),
        )

    def _text(self, tokens: Sequence[int], stops: Sequence[str]) -> str:
        from unspool.core.text import TextStream

        stream = TextStream(self.tokenizer, stops)
        for token in tokens:
            stream.push(token)
        stream.flush()
        return stream.text


def _tokenizer(source: ModelSource) -> TextTokenizer:
    from transformers import AutoTokenizer

    from unspool.models.tokenizer import TextTokenizer

    return TextTokenizer(AutoTokenizer.from_pretrained(source.path))
