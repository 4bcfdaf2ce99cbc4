"""Ouroboros: a draft model that writes phrase by phrase, lengthened by phrases that the target has corrected.

The draft model writes ``tokens`` of its own greedy text, and does so by lookahead decoding: a window on the draft
model, and a pool of phrases (n-grams) that it verifies, so that a pass of it gives several tokens. The newest phrases
that the pool holds under the last draft token are then hung behind it, side by side: they cost no pass of the draft
model. After the target's pass its predictions at refused places become phrases themselves; they are what it would have
written after the draft's mistakes. The pool outlives the request.

Paper: Zhao et al., Ouroboros: Generating Longer Drafts Phrase by Phrase for Faster Speculative Decoding, 2024 (section
3). Window, phrases and their number are those of the published code's run of Spec-Bench.

Lossless: the draft model chooses its best tokens and phrases are looked up, all before the target is asked; they are
matched with its own choices.

Where the paper is silent: under a sampler that draws, the draft model still writes its greedy text. Phrases that begin
alike share nodes. If the whole draft stands, what the target says along the phrases is put into the pool in front of
them (the published code overwrites them).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import Field

from unspool.core.branch import Branch
from unspool.core.cards import Card, Kind, settings
from unspool.core.learned import Learned
from unspool.core.model import Capability
from unspool.core.registry import register
from unspool.core.sockets import Budget, Draft, Observation, Setup
from unspool.core.tree import ROOT, TokenTree
from unspool.speculation.drafting._draft_caches import DraftModelDrafter, Growth
from unspool.speculation.drafting._jacobi_window import JacobiWindow, Trie, predicted, window_for
from unspool.speculation.drafting._ngram_pool import NgramPool


@settings
class OuroborosSettings:
    """Those of the published code; a draft model on a CPU wants a smaller window."""

    model: Annotated[str | None, Field(description="name of the draft model, if none was handed over")] = None
    tokens: Annotated[int, Field(ge=1, description="tokens that the draft model writes (gamma)")] = 6
    window: Annotated[int, Field(ge=1, description="columns of the window on the draft model (W)")] = 15
    ngram: Annotated[int, Field(ge=3, description="tokens of a phrase and its first token (N)")] = 5
    guesses: Annotated[int, Field(ge=1, description="phrases kept for each first token (G)")] = 15
    phrases: Annotated[int, Field(ge=0, description="phrases hung behind the draft, side by side (K)")] = 3
    refine: Annotated[bool, Field(description="make phrases of what the target says at refused places")] = True
    shared: Annotated[bool, Field(description="one pool for all requests; otherwise each starts with its own")] = True


class _State:
    """What is kept of a branch: the draft model's window, the pool, and the draft that was proposed last.

    Attributes:
        chain: how many nodes of ``tree``, the first ones, the draft model wrote.
    """

    __slots__ = ("chain", "pool", "tree", "window")

    def __init__(self, window: JacobiWindow, pool: NgramPool) -> None:
        self.window = window
        self.pool = pool
        self.tree = TokenTree.empty()
        self.chain = 0


class _Writing:
    """The draft model's text behind one branch, while it is written.

    Guesses and window are nodes of the growth like the text itself, so that every pass only computes what is new.
    """

    def __init__(self, growth: Growth, state: _State, length: int, context: int | None) -> None:
        self.growth = growth
        self.state = state
        self.length = length
        self.context = None if context is None else context - len(growth.branch.tokens)
        self.text: list[int] = []
        self.end = ROOT
        self.trie = Trie()
        self.base = 0

    @property
    def last(self) -> int:
        """The token that comes next after."""
        return self.text[-1] if self.text else self.growth.branch.tokens[-1]

    def hang(self) -> list[int]:
        """Add guesses and window below the end of the text; gives back the nodes of the pass."""
        self.trie = Trie()
        deepest = None if self.context is None else self.context - len(self.text)
        # The token after a guess must still be wanted.
        wanted = self.length - len(self.text) - 1
        for guess in self.state.pool.get(self.last):
            self.trie.add_path(guess[: wanted if deepest is None else min(wanted, deepest)])
        window = self.state.window
        window.ends = []
        if window.fit(None, deepest):
            window.hang(self.trie)
        self.base = len(self.growth)
        for token, parent in zip(self.trie.tokens, self.trie.parents, strict=True):
            self.growth.add(token, self.end if parent == ROOT else self.base + parent)
        return [self.end, *range(self.base, len(self.growth))]

    def write(self, best: Sequence[int], stops: frozenset[int]) -> None:
        """Go on with the draft model's best tokens after the nodes of the pass."""
        window, last = self.state.window, self.last
        node = ROOT
        while not self.done:
            token = best[node + 1]
            self.text.append(token)
            if token in stops:
                self.length = len(self.text)
            child = self.trie.child(node, token)
            if child is None:
                if not self.done:
                    self.end = self.growth.add(token, self.end if node == ROOT else self.base + node)
                break
            node = child
        if window.ends:
            for key, gram in window.advance(last, [best[end + 1] for end in window.ends]):
                self.state.pool.insert(key, gram)

    @property
    def done(self) -> bool:
        return len(self.text) >= self.length


@register(
    Card(
        slug="ouroboros",
        name="Ouroboros",
        kind=Kind.DRAFTER,
        summary="A draft model writes by lookahead decoding; phrases that the target corrected lengthen its drafts.",
        paper="Ouroboros: Generating Longer Drafts Phrase by Phrase for Faster Speculative Decoding, 2024",
        claim="up to 1.9x over lookahead decoding and 2.8x over speculative decoding, with the same output",
        lossless=True,
        needs=frozenset({Capability.TREE}),
        models=("draft",),
    ),
    OuroborosSettings,
)
class Ouroboros(DraftModelDrafter):
    """The draft model's text, and phrases behind it.

    Attributes:
        pool: the phrases of all requests, by first token.
    """

    settings: OuroborosSettings

    def __init__(self, settings: OuroborosSettings | None = None) -> None:
        super().__init__(settings)
        self.pool = NgramPool(self.settings.guesses)

    def bind(self, setup: Setup) -> None:
        super().bind(setup)
        self.require_trees(setup.target, "ouroboros")
        self.pool.bind(setup.target.vocab_size, setup.target.name)
        self._stops = setup.target.stop_tokens

    @property
    def learned(self) -> Mapping[str, Learned]:
        return {"ouroboros": self.pool} if self.settings.shared else {}

    def propose(self, branches: Sequence[Branch], budgets: Sequence[Budget]) -> list[Draft]:
        growths = self.grow(branches, budgets, None, self.settings.tokens)
        written = [None if growth is None else self._writing(growth) for growth in growths]
        while writing := [one for one in written if one is not None and not one.done]:
            nodes = [one.hang() for one in writing]
            scored = self.score([one.growth for one in writing], nodes)
            for one, scores in zip(writing, scored, strict=True):
                one.write(scores.logits.argmax(dim=-1).tolist(), self._stops)
        return [
            Draft.empty() if one is None else self._lengthened(one, budget)
            for one, budget in zip(written, budgets, strict=True)
        ]

    def _writing(self, growth: Growth) -> _Writing:
        """What the draft model is to write behind a branch."""
        branch = growth.branch
        state: _State | None = branch.memo.get(self)
        if state is None:
            pool = self.pool if self.settings.shared else NgramPool(self.settings.guesses)
            window = window_for(branch, self.settings.window, self.settings.ngram, self._stops)
            state = branch.memo[self] = _State(window, pool)
        length = growth.depth if growth.nodes is None else min(growth.depth, growth.nodes)
        return _Writing(growth, state, length, self.model.context_length)

    def _lengthened(self, written: _Writing, budget: Budget) -> Draft:
        """The draft model's text with phrases behind it, within the budget."""
        state, text, trie = written.state, written.text, Trie()
        trie.add_path(text)
        # Nothing is worth guessing behind the end of a text.
        phrases = [] if text[-1] in self._stops else state.pool.get(text[-1])[: self.settings.phrases]
        for phrase in phrases:
            room = [limit - len(text) for limit in (budget.depth,) if limit is not None]
            if budget.nodes is not None:
                room.append(budget.nodes - len(trie))
            trie.add_path([*text, *phrase[: min(room, default=None)]])
        state.tree, state.chain = trie.tree, len(text)
        return Draft(state.tree)

    def observe(self, step: Observation) -> None:
        state: _State | None = step.branch.memo.get(self)
        if state is None or not self.settings.refine or step.draft.tree != state.tree:
            return
        tree, stood = step.draft.tree, min(len(step.path), state.chain)
        best = predicted(step, range(ROOT, len(tree)))
        # The target's own text after what stands of the chain, along the rest of the chain and each phrase.
        for leaf in reversed(tree.leaves):
            refused = tree.path(leaf)[stood:]
            text = [best[node + 1] for node in (stood - 1, *refused)]
            if stood == state.chain:
                text.insert(0, tree.token_list[stood - 1])
            state.pool.insert_text(text, self.settings.ngram - 1)
