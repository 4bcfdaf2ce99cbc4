"""The visual trace: a page that replays a run, step by step, with every draft tree and every probability.

A :class:`TraceRecorder` reads the events of the loop and writes one HTML file that needs nothing but a browser: its
script and style are inside, and its content-security policy forbids it to fetch anything. Text of the model and of
the user is carried as JSON and enters the page as text, never as markup.

The data of the page (``as_dict``), kept small because a run may hold thousands of draft nodes:

- ``model, method, settings, prompts, statistics, answers``: the run as a whole;
- ``pieces, ids``: the text and the id of every token that occurs, once; steps name tokens by their place here;
- ``shapes``: the distinct parent lists of the draft trees; most methods fill one template again and again;
- ``rounds``: times of the loop's rounds in seconds, ``at`` being the time since the start when the round was over;
- ``steps``: for each request ``r`` and branch ``b`` in round ``n``: shape ``s`` and tokens ``d`` of the draft, with the
  model's probabilities ``p``; accepted nodes ``a``; committed tokens ``t`` with probabilities ``q`` and with the text
  ``x`` that each released (``null`` for a special token, which has none).

A search forks and rewinds its branches between steps without an event for it, so a branch is shown as the steps that
were made under its number.
"""

from __future__ import annotations

import html
import os
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from unspool.core.errors import InvalidInput
from unspool.core.events import Event, Finished, Scored, Stepped
from unspool.core.statistics import Statistics
from unspool.core.text import TextStream
from unspool.evaluation import pages


class TraceRecorder:
    """Collects a run and writes it as a page.

    Args:
        tokenizer: of the model (``decode``, and ``piece`` where there is one); without one token ids are shown.
        prompts: the token ids that the model read, one list a request.
        model, method: as they are to be named on the page.
        settings: what else is to be known of the run, by name.
    """

    def __init__(
        self,
        tokenizer: Any,
        prompts: Sequence[Sequence[int]],
        *,
        model: str,
        method: str,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.statistics = Statistics()
        self._tokenizer = tokenizer
        self._prompts = [list(prompt) for prompt in prompts]
        self._about = {"model": model, "method": method, "settings": dict(settings or {})}
        self._places: dict[int, int] = {}
        self._shapes: dict[tuple[int, ...], int] = {}
        self._rounds: list[dict[str, float]] = []
        self._round_of: dict[int, int] = {}
        self._steps: list[dict[str, Any]] = []
        self._answers: list[dict[str, Any]] = []
        self._texts: dict[tuple[int, int], TextStream] = {}

    def update(self, event: Event, elapsed: float) -> None:
        """Take one event of the loop; ``elapsed`` in seconds since the start."""
        self.statistics.update(event, elapsed)
        if isinstance(event, Scored):
            self._round_of[event.step] = len(self._rounds)
            self._rounds.append(
                {
                    "draft": round(event.draft_seconds, 6),
                    "score": round(event.score_seconds, 6),
                    "verify": round(event.verify_seconds, 6),
                    "at": round(elapsed, 4),
                }
            )
        elif isinstance(event, Stepped):
            self._steps.append(self._step(event))
        elif isinstance(event, Finished):
            self._answers.append({"request": event.index, "branch": event.branch, "reason": event.reason})

    def _step(self, event: Stepped) -> dict[str, Any]:
        shape = self._shapes.setdefault(tuple(event.draft.parent_list), len(self._shapes))
        step: dict[str, Any] = {
            "r": event.index,
            "b": event.branch,
            "n": self._round_of[event.step],
            "s": shape,
            "d": [self._place(token) for token in event.draft.token_list],
            "a": list(event.accepted),
            "t": [self._place(token) for token in event.tokens],
            "x": [self._released(event, token) for token in event.tokens],
        }
        if event.probe is not None:
            step["p"] = [_short(p) for p in event.probe.draft]
            step["q"] = [_short(p) for p in event.probe.tokens]
        return step

    def _place(self, token: int) -> int:
        return self._places.setdefault(token, len(self._places))

    def _piece(self, token: int) -> str:
        if self._tokenizer is None:
            return f"#{token}"
        if hasattr(self._tokenizer, "piece"):
            return str(self._tokenizer.piece(token))
        return str(self._tokenizer.decode([token]))

    def _released(self, event: Stepped, token: int) -> str | None:
        """The text that a token made final; ``None`` if it has none of its own."""
        if self._tokenizer is None:
            return f"{self._piece(token)} "
        line = (event.index, event.branch)
        stream = self._texts.setdefault(line, TextStream(self._tokenizer))
        text = stream.push(token)
        # A token without text is special, unless it is the beginning of a character.
        return text if text or self._tokenizer.decode([token]) else None

    # -- the page ---------------------------------------------------------------------------------------------------

    def as_dict(self) -> dict[str, Any]:
        """The data of the page."""
        from unspool import __version__

        return {
            "unspool": __version__,
            **self._about,
            "prompts": [
                {
                    "text": "".join(self._piece(token) for token in prompt)
                    if self._tokenizer is None
                    else self._tokenizer.decode(prompt),
                    "last": self._piece(prompt[-1]) if prompt else "",
                }
                for prompt in self._prompts
            ],
            "statistics": self.statistics.as_dict(),
            "answers": self._answers,
            "pieces": [self._piece(token) for token in self._places],
            "ids": list(self._places),
            "shapes": [list(shape) for shape in self._shapes],
            "rounds": self._rounds,
            "steps": self._steps,
        }

    def html(self) -> str:
        """The page."""
        templates = files("unspool.evaluation") / "templates"
        page, style, script = (
            (templates / name).read_text(encoding="utf-8") for name in ("trace.html", "trace.css", "trace.js")
        )
        return Template(page).substitute(
            title=pages.encodable(html.escape(f"{self._about['method']} · {self._about['model']} · Unspool trace")),
            style=style,
            style_hash=pages.content_hash(style),
            script=script,
            script_hash=pages.content_hash(script),
            data=pages.embedded(self.as_dict()),
        )

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the page; the file appears whole or not at all.

        Raises:
            InvalidInput: if the file cannot be written there.
        """
        target = Path(path)
        page = self.html()
        draft = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            try:
                draft.write_text(page, encoding="utf-8")
                draft.replace(target)
            finally:
                draft.unlink(missing_ok=True)
        except OSError as error:
            raise InvalidInput(f"the trace cannot be written to {target}: {error.strerror or error}") from error
        return target


def _short(probability: float) -> float:
    """Three digits are more than an eye can use."""
    return float(f"{probability:.3g}")
