"""Lookahead decoding: the model guesses its own future in parallel, and what it wrote there comes back as drafts.

One pass does two things. A window of ``W`` columns hangs off the end of the text, guesses of the next places that every
pass replaces with the model's predictions (Jacobi iteration); each pass so writes ``W`` n-grams of ``N`` tokens, which
go into a pool under their first token. And the n-grams that the pool holds under the text's last token, at most ``G``,
hang beside it as the draft. No second model, no data.

Paper: Fu et al., Break the Sequential Dependency of LLM Inference Using Lookahead Decoding, 2024 (section 3; algorithm
2 for greedy, 4 for sampled verification). For models of 7B, 13B and 33B it takes W = G = 15, 10 and 7, and N = 5.

Lossless: n-grams and window are fixed before the target is asked, and are matched with its own choices.

Window and n-grams are one token tree, whose depths and ancestors are the paper's positions and mask (see
``_jacobi_window``). Equal paths are one node, which the paper computes twice. So the first column of the window, which
starts at the text's end, is a draft as well.

Where the paper is silent: the pool outlives the request (``shared``), so that n-grams are verified while the window
still fills; a budget too small for all is shared between both, and the window then has fewer columns; a window that was
not scored whole stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from unspool.core.branch import Branch
from unspool.core.cards import Card, Kind, settings
from unspool.core.learned import Learned
from unspool.core.model import Capability
from unspool.core.registry import register
from unspool.core.sockets import Budget, Draft, Drafter, Observation, Setup
from unspool.core.tree import TokenTree
from unspool.speculation.drafting._jacobi_window import JacobiWindow, Trie, predicted, window_for
from unspool.speculation.drafting._ngram_pool import NgramPool


@settings
class LookaheadDecodingSettings:
    """The paper's for a 7B model on a GPU; a CPU, where every token of a pass costs, wants fewer."""

    window: Annotated[int, Field(ge=1, description="columns of the window (W)")] = 15
    ngram: Annotated[int, Field(ge=3, description="tokens of an n-gram (N)")] = 5
    guesses: Annotated[
        int, Field(ge=1, description="n-grams kept for each first token, and verified in a step (G)")
    ] = 15
    read_prompt: Annotated[bool, Field(description="put the prompt's n-grams into the pool as well")] = False
    shared: Annotated[bool, Field(description="one pool for all requests; otherwise each starts with its own")] = True


class _State:
    """What is kept of a branch: its window and pool, and the tree that was proposed last."""

    __slots__ = ("pool", "tree", "window")

    def __init__(self, window: JacobiWindow, pool: NgramPool) -> None:
        self.window = window
        self.pool = pool
        self.tree = TokenTree.empty()


@register(
    Card(
        slug="lookahead-decoding",
        name="Lookahead decoding",
        kind=Kind.DRAFTER,
        summary="Refines guesses of many future tokens in every pass, and drafts the n-grams that it left there.",
        paper="Break the Sequential Dependency of LLM Inference Using Lookahead Decoding, 2024",
        claim="up to 1.8x faster on one GPU, same output; steps fall linearly in the logarithm of the work per step",
        lossless=True,
        needs=frozenset({Capability.TREE}),
    ),
    LookaheadDecodingSettings,
)
class LookaheadDecoding(Drafter):
    """A Jacobi window and the n-grams it has left behind.

    Attributes:
        pool: the n-grams of all requests, by first token.
    """

    settings: LookaheadDecodingSettings

    def __init__(self, settings: LookaheadDecodingSettings | None = None) -> None:
        super().__init__(settings)
        self.pool = NgramPool(self.settings.guesses)

    def bind(self, setup: Setup) -> None:
        self._stops = setup.target.stop_tokens
        self.pool.bind(setup.target.vocab_size, setup.target.name)

    @property
    def learned(self) -> Mapping[str, Learned]:
        return {"lookahead-decoding": self.pool} if self.settings.shared else {}

    def draft(self, branch: Branch, budget: Budget) -> Draft:
        state = self._state(branch)
        guesses = [guess[: budget.depth] for guess in state.pool.get(branch.tokens[-1])]
        wanted = sum(map(len, guesses))
        window = state.window
        window.ends = []
        left = budget.nodes
        trie = Trie()
        fits = window.fit(None if left is None else left - min(wanted, left // 2), budget.depth)
        if left is not None and fits:
            left -= len(window)
        for guess in guesses:
            trie.add_path(guess if left is None else guess[: max(left - len(trie), 0)])
        if fits:
            window.hang(trie)
        state.tree = trie.tree
        return Draft(state.tree)

    def _state(self, branch: Branch) -> _State:
        state: _State | None = branch.memo.get(self)
        if state is None:
            pool = self.pool if self.settings.shared else NgramPool(self.settings.guesses)
            window = window_for(branch, self.settings.window, self.settings.ngram, self._stops)
            state = branch.memo[self] = _State(window, pool)
            if self.settings.read_prompt:
                pool.insert_text(branch.context, self.settings.ngram - 1)
        return state

    def observe(self, step: Observation) -> None:
        state: _State | None = step.branch.memo.get(self)
        if state is None or not state.window.ends or step.draft.tree != state.tree:
            return
        for key, gram in state.window.advance(step.branch.tokens[-1], predicted(step, state.window.ends)):
            state.pool.insert(key, gram)
