"""Where one text stands in a language: what every grammar engine answers.

An engine is two classes. A :class:`CompiledGrammar` is a grammar brought together with a vocabulary; it never changes
and is shared by all texts. A :class:`Matcher` is one text's place in it.

Masks are *tight*: a token is allowed exactly if the text with it can still be completed. All engines therefore
give the same mask for the same text.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from unspool.constraints._vocabulary import Vocabulary


class Matcher(ABC):
    """Where one text stands in a language. It moves with the text, forward and back.

    Attributes:
        vocabulary: what the tokens write.
    """

    vocabulary: Vocabulary

    @abstractmethod
    def mask(self) -> Tensor:
        """``[V]`` bool on the CPU: the tokens that may follow, stop tokens among them exactly if the text may end here.

        It may be shared, and must not be changed.
        """

    @abstractmethod
    def consume(self, token: int) -> bool:
        """Move on by a token that is no stop token. If it may not follow, ``False``, and nothing has changed."""

    @abstractmethod
    def rollback(self, count: int) -> None:
        """Move back by so many tokens."""

    @property
    @abstractmethod
    def accepting(self) -> bool:
        """Whether the text may end here."""

    @abstractmethod
    def fork(self) -> Matcher:
        """A copy that goes its own way."""

    @property
    def exhausted(self) -> bool:
        """Whether the text may end here and cannot go on."""
        if not self.accepting:
            return False
        mask = self.mask()
        return int(mask.sum()) == sum(bool(mask[token]) for token in self.vocabulary.stop)

    def forced(self) -> bytes:
        """The text that must come next; empty if there is a choice, or the text may end here.

        It need not be all of it, and it may end within a character.
        """
        return b""

    def shortest_end(self) -> bytes | None:
        """A shortest text that completes this one, empty if it is complete; ``None`` if the engine cannot tell."""
        return b"" if self.accepting else None


class CompiledGrammar(ABC):
    """A grammar made ready for a vocabulary. Immutable; texts and threads share it."""

    @abstractmethod
    def matcher(self) -> Matcher:
        """A matcher at the beginning of a text."""


class FromStart(Matcher):
    """A matcher over a vocabulary whose first token of a text writes something else than later ones.

    Args:
        inner: over the wide vocabulary, in which token ``V + i`` writes what token ``i`` writes at the start.
    """

    def __init__(self, inner: Matcher, vocabulary: Vocabulary, count: int = 0) -> None:
        self.inner = inner
        self.vocabulary = vocabulary
        self.count = count

    def mask(self) -> Tensor:
        size = self.vocabulary.size
        wide = self.inner.mask()
        if self.count:
            return wide[:size]
        mask = wide[size:].clone()
        stop = list(self.vocabulary.stop)
        mask[stop] = wide[stop]
        return mask

    def consume(self, token: int) -> bool:
        stands = self.inner.consume(token if self.count else token + self.vocabulary.size)
        self.count += stands
        return stands

    def rollback(self, count: int) -> None:
        self.inner.rollback(count)
        self.count -= count

    @property
    def accepting(self) -> bool:
        return self.inner.accepting

    @property
    def exhausted(self) -> bool:
        return self.inner.exhausted

    def forced(self) -> bytes:
        return self.inner.forced()

    def shortest_end(self) -> bytes | None:
        # At the start its spelling is another one.
        return self.inner.shortest_end() if self.count else None

    def fork(self) -> Matcher:
        return FromStart(self.inner.fork(), self.vocabulary, self.count)
