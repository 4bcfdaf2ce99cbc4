"""What branches write: where a text ends, what of it is told when, and what is known of it at its end."""

from __future__ import annotations

from dataclasses import dataclass, field

from unspool.core.branch import Branch
from unspool.core.errors import InvalidInput
from unspool.core.events import Finished
from unspool.core.model import LanguageModel
from unspool.core.sockets import Constraint, FinishedText, Reading
from unspool.core.text import TextStream, spelled


@dataclass(frozen=True)
class Stop:
    """When a request ends.

    Args:
        max_new_tokens: generated tokens at most, the stop token included.
        tokens: tokens that end the text; ``None`` for the model's own.
        strings: text that ends the text; it is not part of the output.
        deadline: seconds after the start.
    """

    max_new_tokens: int = 256
    tokens: frozenset[int] | None = None
    strings: tuple[str, ...] = field(default=())
    deadline: float | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise InvalidInput(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1")
        if any(not stop for stop in self.strings):
            raise InvalidInput("a stop string is empty; give at least one character")
        if self.deadline is not None and self.deadline <= 0:
            raise InvalidInput(f"the deadline is {self.deadline} s; it must be above 0")


class Texts:
    """The texts of one run.

    Args:
        model: the target; its tokenizer writes them.
        stop: when they end.
        constraint: knows whether one is complete.
        log_probs: whether somebody reads the log-probabilities of tokens.
    """

    def __init__(self, model: LanguageModel, stop: Stop, constraint: Constraint | None, log_probs: bool) -> None:
        self.model = model
        self.stop = stop
        self.stop_tokens = model.stop_tokens if stop.tokens is None else stop.tokens
        self.constraint = constraint
        self.log_probs = log_probs
        self._streams: dict[tuple[int, int], TextStream] = {}

    def begin(self, branch: Branch) -> None:
        """A branch's limits, and its stream of text; what it has written already is in it."""
        branch.limit, branch.stops = self.stop.max_new_tokens, self.stop_tokens
        if self.model.context_length is not None:
            branch.limit = min(branch.limit, self.model.context_length - branch.prompt_length)
        if self.model.tokenizer is not None:
            stream = self._streams[branch.index, branch.number] = TextStream(self.model.tokenizer, self.stop.strings)
            if self.stop.strings:
                for token in branch.generated:
                    stream.push(token)
        elif self.stop.strings:
            raise InvalidInput(f"stop strings need a tokenizer, and {self.model.name} has none: use stop tokens")

    def last_text(self, branch: Branch, *, streaming: bool) -> str:
        """What was held back; of a search, whose branches are not streamed, the whole text of the winner."""
        stream = self._streams.get((branch.index, branch.number))
        if stream is None:
            return ""
        if streaming:
            return stream.flush()
        return self.spelled(branch)[0]

    def spelled(self, branch: Branch) -> tuple[str, list[tuple[int, int]]]:
        """The whole text of a branch, and the characters that each of its tokens writes."""
        generated = branch.generated
        if self.model.tokenizer is None:
            return "", [(0, 0)] * len(generated)
        return spelled(self.model.tokenizer, generated, self.stop_tokens, self.stop.strings)

    def until_stop(self, branch: Branch, tokens: list[int], streaming: bool) -> tuple[str, list[int]]:
        """The tokens up to the first reason to stop, and the text that they release; marks the branch if there is
        one."""
        stream = self._streams.get((branch.index, branch.number))
        count = len(branch.tokens) - branch.prompt_length
        text = ""
        for place, token in enumerate(tokens):
            if token in self.stop_tokens:
                branch.finished = "stop-token"
            else:
                if stream is not None and (streaming or self.stop.strings):
                    text += stream.push(token)
                    if stream.stopped is not None:
                        branch.finished = "stop-string"
                if branch.finished is None and count + place + 1 >= self.stop.max_new_tokens:
                    branch.finished = "length"
                context = self.model.context_length
                if branch.finished is None and context is not None and len(branch.tokens) + place + 1 >= context:
                    branch.finished = "context"
            if branch.finished is not None:
                return text, tokens[: place + 1]
        return text, tokens

    def complete(self, branch: Branch) -> bool | None:
        """Whether the constraint calls the text of a finished branch complete."""
        # What a stop string took away is no longer in the text, but still among the tokens.
        if self.constraint is None or branch.finished == "stop-string":
            return None
        last = branch.finished == "stop-token"
        return self.constraint.complete(branch, branch.tokens[:-1] if last else branch.tokens)

    def output(self, branch: Branch) -> FinishedText:
        """A finished branch, as a reader sees it."""
        assert branch.finished is not None
        text, spans = self.spelled(branch)
        return FinishedText(
            branch.index,
            branch.number,
            tuple(branch.source or branch.tokens[: branch.prompt_length]),
            tuple(branch.generated),
            text,
            tuple(spans),
            self.noted(branch) or (),
            branch.finished,
            self.complete(branch),
        )

    def noted(self, branch: Branch) -> tuple[float, ...] | None:
        """The log-probabilities of all generated tokens; ``None`` if nobody reads them."""
        return tuple(value for value in branch.log_probs if value is not None) if self.log_probs else None

    def outcome(self, winner: Branch, reading: Reading | None, *, streaming: bool) -> Finished:
        """What is told of a finished request."""
        assert winner.finished is not None
        return Finished(
            winner.index,
            winner.finished,
            tuple(winner.generated),
            self.last_text(winner, streaming=streaming),
            winner.number,
            self.complete(winner),
            self.noted(winner),
            reading,
        )
