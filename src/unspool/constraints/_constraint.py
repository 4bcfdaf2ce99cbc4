"""The base of all constraints that walk a :class:`~unspool.constraints._matcher.Matcher`: grammars, tools, languages.

It keeps one matcher for each branch and moves it to whatever text is asked about, forward by tokens and back by their
number, so that every answer is a function of the text alone. What was computed at a place stays there while the place
can still be asked about: the nodes of a draft are visited when it is pruned, and again when it is verified.

**Jumping forward.** Where the grammar leaves one continuation, the model is not asked. With ``jump=token`` only where a
single token is allowed, which changes nothing about the distribution. With ``jump=text`` wherever a single *text* can
follow: it is written with the tokens that the tokenizer writes it with, up to the last one, which might be written
together with what the model says next. Other splits of the same text are no longer drawn then.

**Closing.** With ``close`` a text is led to an end that the grammar accepts before its maximum: near it, a short
completion is written as soon as it would just fit. Where few tokens are allowed, those that would make it too long are
left out.
"""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from unspool.constraints._grammar import Grammar
from unspool.constraints._matcher import CompiledGrammar, FromStart, Matcher
from unspool.constraints._track import HORIZON, Track
from unspool.constraints._vocabulary import Vocabulary
from unspool.core.branch import Branch
from unspool.core.cards import settings
from unspool.core.errors import Incompatible
from unspool.core.sockets import Constraint, Draft, Setup
from unspool.core.tree import ROOT

_COMPILED = 64
"""Compiled grammars that a vocabulary keeps."""
_FORCED_BYTES = 256
"""Of a longer forced text only so much is spelled at a time; its tokens come in several pieces then."""
_MARGIN = 4
"""Tokens that a completion has to spare when it is begun."""
_GROWTH = 8
"""Tokens by which a completion grows with every token at most, as far as closing a text reckons with."""
_AHEAD = 16
"""Nodes of a draft whose masks are computed while the model runs."""
_TRIED = 4
"""Tokens up to which each is tried instead of asking for a mask."""
_FEW = 48
"""Allowed tokens up to which each is tried before it is allowed, when a text is to be closed."""


@settings
class GrammarSettings:
    """What every grammar engine can be told."""

    grammar: Annotated[
        Grammar | str | None, Field(description="the grammar; in text its notation goes first, as in 'regex:[0-9]+'")
    ] = None
    jump: Annotated[
        Literal["off", "token", "text"],
        Field(description="write what must follow without asking the model: never, single tokens, or any text"),
    ] = "text"
    close: Annotated[
        bool, Field(description="bring a text to an end that the grammar accepts before its maximum is reached")
    ] = False


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "unspool-masks")


class MatcherConstraint(Constraint):
    """Base of constraints that walk a matcher. A subclass implements :meth:`compile`.

    Attributes:
        vocabulary: of the target, once bound.
        compiled: the grammar, once bound.
        overlaps: whether masks are computed in a thread of their own while the model runs.
    """

    settings: GrammarSettings
    overlaps: bool = False
    vocabulary: Vocabulary
    compiled: CompiledGrammar

    @abstractmethod
    def compile(self, vocabulary: Vocabulary) -> CompiledGrammar:
        """The grammar made ready for a vocabulary.

        Raises:
            GrammarError: if it cannot be used.
        """

    def bind(self, setup: Setup) -> None:
        self.vocabulary = Vocabulary.of(setup.target)
        self.compiled = self._compiled(self.vocabulary if self.vocabulary.heads is None else self.vocabulary.with_heads)

    @property
    def grammar(self) -> Grammar:
        """The grammar of the settings.

        Raises:
            Incompatible: if there is none.
        """
        given = self.settings.grammar
        if given is None:
            raise Incompatible(
                f"{self.card.slug} got no grammar: pass constraint=Grammar.json_schema(...) (or lark, gbnf, regex, "
                "choices) in Python, or --set grammar='regex:[0-9]+' on the command line"
            )
        return Grammar.of(given)

    def _compiled(self, vocabulary: Vocabulary) -> CompiledGrammar:
        """What :meth:`compile` gives, once for every grammar and vocabulary."""
        how = [(field.name, getattr(self.settings, field.name)) for field in fields(self.settings)]
        key = (type(self), *((name, value) for name, value in how if name not in ("jump", "close")))
        try:
            hash(key)
        except TypeError:
            return self.compile(vocabulary)
        known: OrderedDict[Any, CompiledGrammar] = vocabulary.forms.setdefault("compiled", OrderedDict())
        if key in known:
            known.move_to_end(key)
        else:
            known[key] = self.compile(vocabulary)
            if len(known) > _COMPILED:
                known.popitem(last=False)
        return known[key]

    def matcher(self) -> Matcher:
        """A matcher at the beginning of a text."""
        matcher = self.compiled.matcher()
        return matcher if self.vocabulary.heads is None else FromStart(matcher, self.vocabulary)

    # -- what the loop asks -----------------------------------------------------------------------------------------

    def allowed(self, branch: Branch, tokens: list[int]) -> Tensor | None:
        track, stands = self._at(branch, tokens)
        if stands is None:
            return None
        if not stands:
            return torch.zeros(self.vocabulary.size, dtype=torch.bool)
        return self._mask(track, branch, tokens)

    def permits(self, branch: Branch, tokens: list[int], candidates: Sequence[int]) -> list[bool]:
        left = branch.limit - (len(tokens) - branch.prompt_length)
        track, stands = self._at(branch, tokens)
        masked = bool(stands) and track.places[-1].mask is not None
        closing = self.settings.close and left <= HORIZON
        if not stands or masked or closing or len(candidates) > _TRIED:
            return super().permits(branch, tokens, candidates)
        # To move on is cheaper than a mask, and the text most often goes on there.
        found: list[bool] = []
        for token in candidates:
            if found:
                self._at(branch, tokens)
            if token in branch.stops:
                found.append(track.matcher.accepting)
            else:
                found.append(token not in self.vocabulary.stop and track.step(token))
        return found

    def forced(self, branch: Branch, tokens: list[int]) -> list[int]:
        if self.settings.jump == "off":
            return []
        text = tokens
        found: list[int] = []
        while len(text) - branch.prompt_length < branch.limit:
            if found and not self._may_run_on(branch, tokens, text):
                break
            token = self._next(branch, text)
            if token is None:
                break
            found.append(token)
            if token in branch.stops:
                break
            text = [*text, token]
        return found

    def _may_run_on(self, branch: Branch, tokens: list[int], text: list[int]) -> bool:
        """Whether what is forced after ``tokens`` may go on behind ``text``, as far as it has come."""
        return True

    def complete(self, branch: Branch, tokens: list[int]) -> bool | None:
        track, stands = self._at(branch, tokens)
        return bool(stands) and track.matcher.accepting

    def prepare(self, branch: Branch, draft: Draft) -> None:
        if not self.overlaps:
            return
        track = self.track(branch)
        track.join()
        nodes = [ROOT] if draft.q is not None else [ROOT, *range(min(len(draft.tree), _AHEAD))]
        texts = [branch.tokens + draft.tree.path_tokens(node) for node in nodes]
        track.filling = _threads().submit(self._fill, track, branch, texts)

    def _fill(self, track: Track, branch: Branch, texts: list[list[int]]) -> None:
        """Compute the masks after these texts, unless what follows is forced."""
        for text in texts:
            if track.seek(text[branch.prompt_length :], branch.stops):
                place = track.places[-1]
                if not place.known or place.forced is None:
                    self._mask(track, branch, text)

    # -- places -----------------------------------------------------------------------------------------------------

    def track(self, branch: Branch) -> Track:
        """The branch's matcher and what goes with it."""
        track: Track | None = branch.memo.get(self)
        if track is None:
            track = branch.memo[self] = Track(self.matcher(), [])
        return track

    def _at(self, branch: Branch, tokens: list[int]) -> tuple[Track, bool | None]:
        track = self.track(branch)
        track.join()
        stands = track.seek(tokens[branch.prompt_length :], branch.stops)
        generated = len(branch.tokens) - branch.prompt_length
        if generated != track.committed:
            track.settle(min(generated, len(track.fed)))
        return track, stands

    def _mask(self, track: Track, branch: Branch, tokens: list[int]) -> Tensor:
        """``[V]`` at a place that stands."""
        place = track.places[-1]
        if place.mask is None:
            mask = track.matcher.mask()
            if branch.stops != self.vocabulary.stop:
                mask = mask.clone()
                mask[list(self.vocabulary.stop)] = False
                mask[list(branch.stops)] = track.matcher.accepting
            if self.settings.close:
                mask = self._closable(track, branch, tokens, mask)
            place.mask = mask
        return place.mask

    # -- jumping forward --------------------------------------------------------------------------------------------

    def _next(self, branch: Branch, tokens: list[int]) -> int | None:
        """The token that must follow, or ``None``."""
        track, stands = self._at(branch, tokens)
        if not stands:
            return None
        place = track.places[-1]
        if not place.known:
            place.forced = self._only(track, branch, tokens)
            place.known = True
        return place.forced

    def _only(self, track: Track, branch: Branch, tokens: list[int]) -> int | None:
        if self.settings.close and (plan := self._plan(track, branch, tokens)) is not None:
            return plan[0] if plan else None
        if self.settings.jump == "token":
            return self._single(self._mask(track, branch, tokens))
        matcher = track.matcher
        text = matcher.forced()[:_FORCED_BYTES]
        if not text:
            return min(branch.stops) if branch.stops and matcher.exhausted else None
        if self.vocabulary.heads is None or track.fed:
            spelled = self.vocabulary.spell(text)
            if len(spelled) > 1:
                return spelled[0]
            if spelled and len(text) < _FORCED_BYTES and matcher.consume(spelled[0]):
                last = self.vocabulary.tokens[spelled[0]] == text and matcher.exhausted
                matcher.rollback(1)
                if last:
                    return spelled[0]
        return self._single(self._mask(track, branch, tokens))

    @staticmethod
    def _single(mask: Tensor) -> int | None:
        return int(mask.to(torch.uint8).argmax()) if int(mask.sum()) == 1 else None

    # -- closing ----------------------------------------------------------------------------------------------------

    def _ending(self, matcher: Matcher, branch: Branch) -> list[int] | None:
        """A short completion in tokens, the stop token included; ``None`` if none is known."""
        end = matcher.shortest_end()
        if end is None:
            return None
        tokens = self.vocabulary.spell(end)
        if self.vocabulary.bytes_of(tokens) != end:
            return None
        return [*tokens, *([min(branch.stops)] if branch.stops else [])]

    def _plan(self, track: Track, branch: Branch, tokens: list[int]) -> list[int] | None:
        """The rest of the text, if it is being closed; ``None`` while the model writes."""
        left = branch.limit - (len(tokens) - branch.prompt_length)
        place = track.places[-1]
        above = track.places[-2] if len(track.places) > 1 else None
        if above and above.plan and above.plan[0] == track.fed[-1]:
            place.plan = above.plan[1:]
        elif place.plan is None and left <= min(place.due, above.due if above else HORIZON):
            end = self._ending(track.matcher, branch)
            spare = left - len(end) if end is not None else _GROWTH
            if end is not None and 0 <= spare <= _MARGIN:
                place.plan = end
            place.due = left - max(1, (spare - _MARGIN) // (1 + _GROWTH))
        elif above:
            place.due = min(place.due, above.due)
        return place.plan

    def _closable(self, track: Track, branch: Branch, tokens: list[int], mask: Tensor) -> Tensor:
        """Those tokens of ``[V]`` after which the text can still be closed, as far as that is looked into."""
        plan = self._plan(track, branch, tokens)
        if plan is not None:
            mask = torch.zeros_like(mask)
            mask[plan[:1]] = True
            return mask
        left = branch.limit - (len(tokens) - branch.prompt_length)
        if left > HORIZON or not 1 < int(mask.sum()) <= _FEW:
            return mask
        fitting = mask.clone()
        for token in mask.nonzero().flatten().tolist():
            if token in branch.stops:
                continue
            if track.matcher.consume(token):
                end = self._ending(track.matcher, branch)
                track.matcher.rollback(1)
                fitting[token] = end is not None and len(end) < left
        return fitting if fitting.any() else mask
