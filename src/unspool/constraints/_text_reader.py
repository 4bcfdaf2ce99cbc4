"""What recursive descents over a text share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar


class TextReader(ABC):
    """A text, read from left to right.

    Attributes:
        text: the whole of it.
        place: the next character.
    """

    ends_early: ClassVar[str]
    """What is said where a character is wanted and the text is over."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.place = 0

    @abstractmethod
    def wrong(self, what: str) -> Exception:
        """The error for what is wrong here."""

    def peek(self, text: str) -> bool:
        return self.text.startswith(text, self.place)

    def take(self, text: str) -> bool:
        if self.peek(text):
            self.place += len(text)
            return True
        return False

    def next(self) -> str:
        if self.place >= len(self.text):
            raise self.wrong(self.ends_early)
        self.place += 1
        return self.text[self.place - 1]
