"""Prompt lookup: copy what followed the last few tokens when they occurred before.

The last ``n`` tokens (3, then 2, then 1) are looked up in the text so far; the tokens after their latest earlier
occurrence are the draft, a chain. Summaries, edits and code repeat their input, and there it is hard to beat.

The occurrences are kept in a table that grows with the text, so that a step costs the same at any length.

Paper: Saxena, Prompt Lookup Decoding, 2023 (github.com/apoorvumang/prompt-lookup-decoding).

Lossless: the candidates are fixed before the target is asked, and are matched with its own choices.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from unspool.core.branch import Branch
from unspool.core.cards import Card, Kind, settings
from unspool.core.errors import InvalidInput
from unspool.core.registry import register
from unspool.core.sockets import Budget, Draft, Drafter
from unspool.core.tree import TokenTree


@settings
class PromptLookupSettings:
    """The defaults of the published implementation."""

    tokens: Annotated[int, Field(ge=1, description="how many tokens to copy at most")] = 10
    longest: Annotated[int, Field(ge=1, description="n-gram size to look up first; shorter ones follow")] = 3
    shortest: Annotated[int, Field(ge=1, description="n-gram size to look up last")] = 1


class Occurrences:
    """Where the n-grams of a growing text were seen last.

    Args:
        sizes: the n-gram sizes, in the order in which they are tried.
    """

    __slots__ = ("_ends", "_indexed", "sizes")

    def __init__(self, sizes: range) -> None:
        self.sizes = sizes
        # By n-gram, the place of the token after its latest occurrence; keys of different sizes cannot be equal.
        self._ends: dict[tuple[int, ...], int] = {}
        self._indexed = 0

    def find(self, text: list[int]) -> tuple[int, int] | None:
        """Where the continuation of the latest earlier occurrence of the last tokens starts, and how many tokens agree.

        Args:
            text: what was given at the last call, and perhaps more.
        """
        # The n-gram that ends the text is left for the next call: nothing follows it yet.
        for end in range(self._indexed + 1, len(text)):
            for size in self.sizes:
                if size <= end:
                    self._ends[tuple(text[end - size : end])] = end
        self._indexed = max(self._indexed, len(text) - 1)
        for size in self.sizes:
            if size <= len(text):
                start = self._ends.get(tuple(text[-size:]))
                if start is not None:
                    return start, size
        return None


@register(
    Card(
        slug="prompt-lookup",
        name="Prompt lookup",
        kind=Kind.DRAFTER,
        summary="Copies what followed the last few tokens when they occurred earlier in the text.",
        paper="Prompt Lookup Decoding, 2023",
        claim="2x to 4x faster where the output repeats its input (summaries, edits, code), with the same output",
        lossless=True,
    ),
    PromptLookupSettings,
)
class PromptLookup(Drafter):
    """A chain copied from the text."""

    settings: PromptLookupSettings

    def __init__(self, settings: PromptLookupSettings | None = None) -> None:
        super().__init__(settings)
        longest, shortest = self.settings.longest, self.settings.shortest
        if shortest > longest:
            raise InvalidInput(
                f"prompt-lookup has nothing to look up between longest={longest} and shortest={shortest}; "
                f"shortest must be 1 to {longest}"
            )
        self._sizes = range(longest, shortest - 1, -1)

    def draft(self, branch: Branch, budget: Budget) -> Draft:
        tokens, size = self.lookup(branch, budget)
        # The more tokens agreed, the likelier the next one does: the rule of succession, n times out of n + 1.
        return Draft(TokenTree.chain(tokens), confidence=[size / (size + 1)] * len(tokens))

    def lookup(self, branch: Branch, budget: Budget) -> tuple[list[int], int]:
        """The tokens to copy (none if nothing is found), and the size of the n-gram that was found."""
        found: Occurrences | None = branch.memo.get(self)
        if found is None:
            found = branch.memo[self] = Occurrences(self._sizes)
        text = branch.context
        hit = found.find(text)
        if hit is None:
            return [], 0
        start, size = hit
        nodes, depth = budget.of(self.settings.tokens, self.settings.tokens)
        return text[start : start + min(nodes, depth)], size
