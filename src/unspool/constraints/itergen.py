"""IterGen: generation that goes forward and backward by the symbols of a grammar.

The text is parsed as it is written, and a map tells for every symbol of the grammar where it occurs. ``forward`` writes
until a number of occurrences of a symbol are complete, ``view`` shows them, and ``backward`` takes the text back to
where one began. What a grammar cannot say, a program checks between the two: that a column exists, that an address is
not private.

Ugare, Gumaste, Suresh, Singh and Misailovic, IterGen: Iterative (Semantic-aware) Structured LLM Generation with
Backtracking, ICLR 2025 (arXiv 2410.07295).

Two ways to use it. A :class:`Session` is the paper's interface, for programs. As a method it checks conditions by
itself (``--set rules=column_name=sqlite-columns:shop.db``): whenever an occurrence of a symbol is completed that does
not satisfy its condition, the text goes back to where it began and another is drawn; after ``backtracks`` of them in a
text the rest goes unchecked, and is counted.

So that decoding without randomness does not write the same again, every token that was chosen before at a place is made
less likely there, by ``gamma`` for each time (the recurrence penalty). Otherwise the distribution is the grammar's,
token-masked and renormalised, and with no condition the output is that of the grammar engine alone.

Details. It fills two sockets of the loop: as a constraint it masks and applies the penalty, as a search of one branch
it steps back with the loop's ``rewind``, so that the cache follows. Masks come from any engine of the project; symbols
from the LALR(1) parser that ``greatgramma`` has, too. A rule is known to be complete one lexeme later, a lexeme one
byte later, so some of what follows may have been written by then. If an occurrence begins within a token, what the
token holds before it is kept and spelled anew, unless it is white space: then the choice is made again from where the
token began, because a name without the space in front is not what the model would write. Tokens are judged one by one,
so a draft does not change what is visited; only the prompt is not parsed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from unspool.constraints._constraint import GrammarSettings, MatcherConstraint
from unspool.constraints._grammar import EngineName, Grammar
from unspool.constraints._matcher import CompiledGrammar
from unspool.constraints._occurrence_rules import NOTATION, Condition
from unspool.constraints._record import Record
from unspool.constraints._symbols import Span, SymbolReader, Symbols
from unspool.constraints._vocabulary import Vocabulary
from unspool.core.branch import Branch
from unspool.core.cards import Card, Kind, make_settings, settings
from unspool.core.compose import compose
from unspool.core.errors import InvalidInput
from unspool.core.events import Event, Finished, Stepped
from unspool.core.model import LanguageModel
from unspool.core.registry import register, registry
from unspool.core.sockets import Move, Sampler, Search, Setup
from unspool.core.texts import Stop


@settings
class IterGenSettings(GrammarSettings):
    """The grammar has to be in Lark's notation. ``gamma`` is the published code's."""

    rules: Annotated[tuple[str, ...], Field(description=f"conditions on symbols: {NOTATION}")] = ()
    gamma: Annotated[
        float, Field(gt=0, le=1, description="factor on a token's probability for each time it was chosen at a place")
    ] = 0.3
    backtracks: Annotated[int, Field(ge=0, description="times that a text may go back")] = 20
    engine: Annotated[EngineName, Field(description="where masks come from")] = "greatgramma"


@register(
    Card(
        slug="itergen",
        name="IterGen",
        kind=Kind.CONSTRAINT,
        summary="Writes by a grammar, checks what it names as soon as it is written, and goes back where it is wrong.",
        paper="IterGen: Iterative (Semantic-aware) Structured LLM Generation with Backtracking, 2025",
        claim="+18.5% SQL accuracy over grammar-constrained decoding; leaks of e-mail addresses from 51.4% to 0%",
    ),
    IterGenSettings,
)
class IterGen(MatcherConstraint, Search):
    """See the module.

    Args:
        settings: see :class:`IterGenSettings`.
        checks: by symbol, further conditions: called with the text of an occurrence, true if it may stand.

    Attributes:
        records: by request, of the last run. handed: the record of the next text that begins, of a program that steers
        it itself; ``None`` lets the method make
            one and check its conditions.
    """

    settings: IterGenSettings
    lockstep = False

    def __init__(
        self, settings: IterGenSettings | None = None, checks: Mapping[str, Callable[[str], bool]] | None = None
    ) -> None:
        super().__init__(settings)
        self._conditions = [Condition.read(rule) for rule in self.settings.rules]
        self._conditions += [Condition(symbol, holds) for symbol, holds in (checks or {}).items()]
        self.records: dict[int, Record] = {}
        self.handed: Record | None = None

    # -- building -------------------------------------------------------------------------------------------------

    def bind(self, setup: Setup) -> None:
        super().bind(setup)
        self._symbols = Symbols.of(self.grammar)
        for condition in self._conditions:
            self.known(condition.symbol)

    def known(self, symbol: str) -> str:
        """The symbol, if the grammar has it.

        Raises:
            InvalidInput: if it does not.
        """
        if symbol not in self._symbols.names:
            raise InvalidInput(f"the grammar has no symbol {symbol!r}; it has {', '.join(sorted(self._symbols.names))}")
        return symbol

    def compile(self, vocabulary: Vocabulary) -> CompiledGrammar:
        engine = registry[self.settings.engine]
        part = engine.cls(make_settings(engine.settings, {"grammar": self.grammar}, self.settings.engine))
        # The engine's own store: conditions and penalties change nothing about what is compiled.
        compiled: CompiledGrammar = part._compiled(vocabulary)
        return compiled

    def _compiled(self, vocabulary: Vocabulary) -> CompiledGrammar:
        return self.compile(vocabulary)

    # -- as a constraint ------------------------------------------------------------------------------------------

    def adjust(self, branch: Branch, tokens: list[int], logits: Tensor) -> Tensor:
        visits = self._record(branch).visits(tokens[branch.prompt_length :])
        if not visits or self.settings.gamma == 1:
            return logits
        logits = logits.clone()
        places = torch.tensor(list(visits), device=logits.device)
        logits[places] += torch.tensor(list(visits.values())).to(logits) * math.log(self.settings.gamma)
        return logits

    def _record(self, branch: Branch) -> Record:
        key = (self, "record")
        record: Record | None = branch.memo.get(key)
        if record is None:
            record = self.handed or Record(self.vocabulary, branch.stops, self.reader())
            branch.memo[key] = self.records[branch.index] = record
        return record

    def reader(self) -> SymbolReader:
        """A reader at the beginning of a text."""
        return SymbolReader(self._symbols)

    # -- as a search ----------------------------------------------------------------------------------------------

    @property
    def width(self) -> int:
        return 1

    def advance(self, branches: Sequence[Branch]) -> list[Move] | None:
        (branch,) = branches
        record = self._record(branch)
        if record is not self.handed:
            self._check(record, branch.generated)
        written = branch.generated
        if written == record.tokens:
            return None
        keep = next(
            (place for place, (a, b) in enumerate(zip(written, record.tokens, strict=False)) if a != b),
            min(len(written), len(record.tokens)),
        )
        return [Move(0, keep, tuple(record.tokens[keep:]))]

    def _check(self, record: Record, written: Sequence[int]) -> None:
        """Read what was written, up to the first occurrence that breaks a condition; that one is taken back."""
        for token in written[len(record.tokens) :]:
            wrong = [span for span in record.push(token) if not self._holds(record, span)]
            if not wrong:
                continue
            if record.backtracks >= self.settings.backtracks:
                record.unchecked += wrong
                continue
            record.backward(min(wrong, key=lambda span: span.start))
            return

    def _holds(self, record: Record, span: Span) -> bool:
        mine = [condition for condition in self._conditions if condition.symbol == span.symbol]
        return not mine or all(condition.holds(record.reader.texts([span])[0]) for condition in mine)

    def select(self, branches: Sequence[Branch]) -> int:
        return 0


class Session:
    """Generation that a program steers, by the symbols of a grammar.

    Args:
        model: what writes; an engine's ``model``.
        grammar: in Lark's notation, as a :class:`Grammar` or text.
        sampler: greedy if none is given.
        limit: generated tokens at most.
        seed: of the sampler.
        settings: see :class:`IterGenSettings` (``gamma``, ``engine``, ``jump``).

    Raises:
        GrammarError: if the grammar cannot be used.
    """

    def __init__(
        self,
        model: LanguageModel,
        grammar: Grammar | str,
        *,
        sampler: Sampler | None = None,
        limit: int = 256,
        seed: int = 0,
        **settings: Any,
    ) -> None:
        chosen = grammar if isinstance(grammar, Grammar) else Grammar.lark(grammar)
        self._part = IterGen(make_settings(IterGenSettings, {**settings, "grammar": chosen}, "itergen"))
        self._composition = compose(model, [self._part], sampler=sampler)
        self._model = model
        self._stop = Stop(limit)
        self._seed = seed
        self._events: Iterator[Event] | None = None
        self._record: Record | None = None
        self._reason: str | None = None

    def start(self, prompt: str | Sequence[int]) -> None:
        """Begin a text behind a prompt; an earlier one is dropped."""
        tokens = self._model.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        self._events = self._composition.decode([tokens], stop=self._stop, seed=self._seed)
        self._record = Record(self._part.vocabulary, self._model.stop_tokens, self._part.reader())
        self._part.handed = self._record
        self._reason = None

    @property
    def record(self) -> Record:
        """The tokens, their symbols and the trace.

        Raises:
            InvalidInput: before :meth:`start`.
        """
        if self._record is None:
            raise InvalidInput("the session has no text yet: call start(prompt) first")
        return self._record

    @property
    def text(self) -> str:
        """What is written so far."""
        return self.record.reader.data.decode(errors="replace")

    @property
    def finished(self) -> bool:
        """Whether the text has come to its end, or its limit."""
        return self.record.ended or self._reason is not None

    def view(self, symbol: str) -> list[str]:
        """The occurrences of a symbol that are complete, in order.

        Raises:
            InvalidInput: if the grammar has no such symbol.
        """
        reader = self.record.reader
        return reader.texts(reader.occurrences(self._part.known(symbol)))

    def forward(self, stop_symbol: str | None = None, count: int = 1) -> str:
        """Write on, until ``count`` more occurrences of a symbol are complete, or to the end.

        Returns:
            What was written, up to the end of the last of these occurrences; what was written beyond it by then stays
            in the text.
        """
        record = self.record
        wanted = None if stop_symbol is None else len(self.view(stop_symbol)) + count
        begin = len(record.reader.data)
        assert self._events is not None
        while not self.finished:
            event = next(self._events)
            if isinstance(event, Finished):
                self._reason = event.reason
            elif isinstance(event, Stepped):
                for token in event.tokens:
                    record.push(token)
                if len(record.tokens) >= self._stop.max_new_tokens and not record.ended:
                    self._reason = "length"
                if wanted is not None and stop_symbol is not None:
                    found = record.reader.occurrences(stop_symbol)
                    if len(found) >= wanted:
                        return record.reader.data[begin : max(found[wanted - 1].end, begin)].decode(errors="replace")
        return record.reader.data[begin:].decode(errors="replace")

    def backward(self, symbol: str, count: int = 1) -> None:
        """Take the text back to where the last occurrence of a symbol but ``count - 1`` begins.

        Raises:
            InvalidInput: if there are not so many.
        """
        found = self.record.reader.occurrences(self._part.known(symbol))
        if not 1 <= count <= len(found):
            raise InvalidInput(f"there are {len(found)} occurrences of {symbol!r} to go back over; {count} is too many")
        self.record.backward(found[-count])
        self._reason = None
