"""Pre^3: LR(1) tables made into a deterministic pushdown automaton, so that a token is one comparison with the stack.

Ahead of time, canonical LR(1) tables (without empty rules) become edges that read one terminal each, all reductions
folded in, conditioned on what the stack begins with; right recursion that says nothing is absorbed, so that
conditions are finite and the stack stays as flat as the text is nested (see ``_pda``). The edges of whole tokens are
composed as well: a token is always taken, never, or if the stack begins with one of a few sequences of states. While
a text is written, masks are these comparisons, for all texts of a batch in one operation.

Paper: Chen et al., Pre^3: Enabling Deterministic Pushdown Automata for Faster Structured LLM Generation, 2025.

A terminal of the paper is a class of characters. Here it may be any lexeme: bytes within it move an automaton and
leave the stack as it is; a grammar whose terminals are single characters is the paper's form. The language, and so
the masks, are those of ``greatgramma``, for more grammars (LR(1) instead of LALR(1)), with larger tables.

Conditions of large grammars are composed for a top of the stack when it is first met. Exact throughout. Where
conditions would have no end or be too many (a right recursion whose laps do say something), the reductions are made
one by one on the real stack; ``describe`` says for how many pairs of a state and a terminal.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unspool.constraints._canonical import canonical
from unspool.constraints._completion import Completion
from unspool.constraints._conditions import Conditions
from unspool.constraints._constraint import GrammarSettings, MatcherConstraint
from unspool.constraints._grammar import Grammar
from unspool.constraints._grammars import rules_of
from unspool.constraints._lexing import scan, spelled_bytes
from unspool.constraints._matcher import CompiledGrammar
from unspool.constraints._pda import PushdownParser
from unspool.constraints._rules import Rules, without_empty
from unspool.constraints._scanned import ScannedGrammar, ScannedMatcher
from unspool.constraints._spanner import span
from unspool.constraints._stack import Frame
from unspool.constraints._vocabulary import Vocabulary
from unspool.core.cards import Card, Kind
from unspool.core.registry import register


class Pre3Grammar(ScannedGrammar):
    """A grammar as a deterministic pushdown automaton.

    Args:
        absorb: whether laps of right recursion are absorbed; without, for comparison.

    Attributes:
        parser: the automaton.
        conditions: what tokens ask of the stack.
    """

    parser: PushdownParser

    def __init__(self, vocabulary: Vocabulary, grammar: Grammar | Rules, absorb: bool = True) -> None:
        language = scan(grammar if isinstance(grammar, Rules) else rules_of(grammar), spelled_bytes(vocabulary))
        rules, empty = without_empty(language.rules)
        parser = PushdownParser(canonical(rules, empty), absorb)
        super().__init__(vocabulary, language, parser, Completion(language, parser.table))
        self.spanner = span(language, vocabulary, not self.unhindered)
        self.conditions = Conditions(self, parser, self.spanner)

    def matcher(self) -> ScannedMatcher:
        return ScannedMatcher(self)

    def compute(self, state: int, frame: Frame) -> tuple[NDArray[np.bool_], int]:
        pops, _, unsettled = self.conditions.of(state, frame.state)
        width = pops.shape[1]
        verdict = self.conditions.verdict(state, frame.states(max(width, 1)))
        depth = max(1, width)
        if len(unsettled):
            parser = self.parser.probe(frame.depth)
            verdict[unsettled] = self.judge(frame, unsettled, parser)
            depth = max(depth, frame.depth - parser.lowest + 1)
        return self._spread(state, verdict), depth

    def _spread(self, state: int, verdict: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """``[V]`` tokens from ``[R]`` rows."""
        allowed = np.zeros(self.vocabulary.size, dtype=bool)
        tokens, rows = self.spanner.entries(state)
        allowed[tokens] = verdict[rows]
        return allowed

    def masks(self, matchers: Sequence[ScannedMatcher]) -> Tensor:
        """``[B, V]`` masks of several texts; their stacks are compared in one operation."""
        places = [matcher.place for matcher in matchers]
        stacks = [place.frame.states() for place in places]
        verdicts = self.conditions.verdicts([(place.state, stack) for place, stack in zip(places, stacks, strict=True)])
        rows = []
        for place, verdict in zip(places, verdicts, strict=True):
            unsettled = self.conditions.of(place.state, place.frame.state)[2]
            if len(unsettled):
                verdict[unsettled] = self.judge(place.frame, unsettled, self.parser)
            rows.append(self._spread(place.state, verdict))
        return torch.from_numpy(np.stack(rows))

    def describe(self) -> dict[str, int]:
        """Numbers about the automaton."""
        edges = self.parser.edges
        return {
            "lexer states": len(self.scanner.delta),
            "parser states": len(self.parser.table),
            "edges": sum(map(len, edges.of.values())),
            "absorbed laps": sum(map(len, self.parser.absorber.laps.values())),
            "pairs with single reductions": len(edges.single),
            "rows": len(self.spanner.row_sequence),
            "tops": len(self.parser.table.tops),
            "tops composed": len(self.conditions.tops),
            "conditions": sum(len(top.rows) for top in self.conditions.tops.values()),
            "rows run on the stack": sum(len(top.unsettled) for top in self.conditions.tops.values()),
            "bytes": self.nbytes,
        }

    @property
    def nbytes(self) -> int:
        """Bytes of the tables, masks that are kept included."""
        return self.spanner.nbytes + self.conditions.nbytes + self.store.held


@register(
    Card(
        slug="pre3-dpda",
        name="Pre^3",
        kind=Kind.CONSTRAINT,
        summary="A grammar engine that compares the top of the stack with conditions computed ahead for whole tokens.",
        paper="Pre^3: Enabling Deterministic Pushdown Automata for Faster Structured LLM Generation, 2025",
        claim="a token takes up to 40% less time and throughput is up to 36% higher than with pushdown automata",
    ),
    GrammarSettings,
)
class Pre3(MatcherConstraint):
    """See the module."""

    def compile(self, vocabulary: Vocabulary) -> CompiledGrammar:
        return Pre3Grammar(vocabulary, self.grammar)
