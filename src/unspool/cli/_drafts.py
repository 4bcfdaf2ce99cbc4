"""``--show-drafts``: where every token came from, as it comes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from unspool.cli import _terminal
from unspool.core.events import Event, Finished, Stepped

if TYPE_CHECKING:
    from rich.console import Console

    from unspool.core.tree import TokenTree

ACCEPTED, CHOSEN, REFUSED = "green", "bold cyan", "dim red strike"
# Without colours the same is said with brackets.
_MARKS = {ACCEPTED: ("[", "]"), CHOSEN: ("", ""), REFUSED: ("{", "}")}
_LONGEST_REFUSED = 12


class DraftPainter:
    """Writes the text token by token: accepted draft tokens, tokens that the model chose, and what was refused.

    Of a refused tree the continuation is shown that the drafter put first after the accepted path, cut to
    ``_LONGEST_REFUSED`` tokens: all of it would be several times the text.

    Args:
        tokenizer: of the model.
        stops: the stop strings of the request.
        console: where to write.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str], console: Console) -> None:
        from unspool.core.text import TextStream

        self._tokenizer = tokenizer
        self._text = TextStream(tokenizer, stops)
        self._console = console
        self._marked = console.no_color or console.color_system is None
        self._tokens: list[int] = []

    def legend(self) -> None:
        for style, words in (
            (ACCEPTED, "accepted draft"), (CHOSEN, "chosen by the model"), (REFUSED, "refused draft"),
        ):  # fmt: skip
            self._put(words, style)
            self._console.print("  ", end="")
        self._console.print("\n")

    def watch(self, event: Event, elapsed: float) -> None:
        if isinstance(event, Stepped):
            for place, token in enumerate(event.tokens):
                self._tokens.append(token)
                own = place >= len(event.accepted)
                if own and self._text.stopped is None:
                    self._refused(event.draft, event.accepted)
                self._put(self._text.push(token), CHOSEN if own else ACCEPTED)
            if not event.tokens:
                self._refused(event.draft, event.accepted)
        elif isinstance(event, Finished):
            self._put(self._text.flush(), CHOSEN)

    def _refused(self, draft: TokenTree, accepted: Sequence[int]) -> None:
        """Show the first continuation below the accepted path, in place of which the last of ``_tokens`` was chosen."""
        refused: list[int] = []
        node = accepted[-1] if accepted else -1
        while len(refused) < _LONGEST_REFUSED and (below := draft.children(node)):
            node = below[0]
            refused.append(draft.token_list[node])
        if refused:
            before = self._tokens[-5:-1]
            text = self._tokenizer.decode([*before, *refused])[len(self._tokenizer.decode(before)) :]
            self._put(text.replace("\n", "\N{RETURN SYMBOL}"), REFUSED)

    def _put(self, text: str, style: str) -> None:
        if not text:
            return
        text = _terminal.harmless(text)
        if self._marked:
            before, after = _MARKS[style]
            text = before + text + after
        # `out` neither wraps nor reads markup, so the text stays as it is.
        self._console.out(text, style=None if self._marked else style, end="", highlight=False)
        self._console.file.flush()
