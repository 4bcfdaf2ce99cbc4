"""Drafting with the lower layers of the target itself (self-speculation).

A chain is drafted by running the target's first layers on the branch's own cache, one token a pass, and reading each
token off the last norm and the output head. The hidden states of the last layer that ran are kept: the verifying pass
enters with them and runs the remaining layers only, so that no layer sees a token twice.

Paper: Elhoushi et al., LayerSkip: Enabling Early Exit Inference and Self-Speculative Decoding, 2024 (section 4.3; the
kept states are its exit query cache).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from unspool.core.branch import Branch
from unspool.core.errors import Incompatible
from unspool.core.model import LanguageModel
from unspool.core.scores import Request, Want
from unspool.core.sockets import Draft, Drafter, Entered, Proposal, Sampler, Setup, draw
from unspool.core.tree import TokenTree


class Chain:
    """One branch's draft while it grows.

    Attributes:
        layer: the exit: layers ``0 .. layer - 1`` are run.
        limit: tokens at most.
        tokens: drafted so far.
        chances: the early exit's probability (softmax of its logits) of each of them.
        closed: whether no further token is drawn.
    """

    def __init__(self, branch: Branch, layer: int, limit: int, keep: Iterable[int] = ()) -> None:
        self.branch = branch
        self.pending = branch.pending
        self.layer = layer
        self.limit = limit
        self.tokens: list[int] = []
        self.chances: list[float] = []
        self.closed = False
        self.q: list[Tensor] = []
        self._confidence: list[float] = []
        self._states: dict[int, list[Tensor]] = {k: [] for k in {layer, *keep}}
        self._known = 0

    @property
    def kept(self) -> frozenset[int]:
        return frozenset(self._states)

    def request(self) -> Request:
        """The pass over what the lower layers have not seen; with logits after the last token unless it is closed."""
        tree = TokenTree.chain(self.pending + self.tokens)
        request = Request(self.branch.cache, tree, rows=[] if self.closed else [len(tree) - 1], known=self._known)
        self._known = len(tree)
        return request

    def take(self, hidden: dict[int, Tensor]) -> None:
        """Keep the hidden states ``[n, d]`` of a pass, by layer."""
        for layer, kept in self._states.items():
            kept.append(hidden[layer])

    def states(self, layer: int) -> Tensor:
        """``[P + N, d]`` what left a layer that was kept: of the pending tokens, then of the draft."""
        return torch.cat(self._states[layer])

    def draw(self, logits: Tensor, sampler: Sampler) -> None:
        """Add a token from ``[V]`` logits."""
        probs = torch.softmax(logits.float(), dim=-1)
        if sampler.deterministic:
            token = int(probs.argmax())
            confidence = float(probs[token])
        else:
            q = sampler.draft_probs(logits, self.branch.tokens + self.tokens, self.branch)
            token = draw(q, self.branch.rng)
            self.q.append(q)
            confidence = float(q[token])
        self.tokens.append(token)
        self.chances.append(float(probs[token]))
        self._confidence.append(confidence)

    def draft(self) -> Draft:
        states = self.states(self.layer)
        offset = len(self.pending)
        return Draft(
            TokenTree.chain(self.tokens),
            torch.stack(self.q) if self.q else None,
            list(range(len(self.q))),
            self._confidence,
            Entered(self.layer, states[:offset], states[offset:]),
        )


class EarlyExitDrafter(Drafter):
    """Base of drafters that run the target's lower layers.

    A subclass implements ``propose`` with :meth:`grow`. The chain is drawn at random where the sampler is, so whether
    it goes on may depend on the tokens that were drawn, never on one that was and is then dropped.
    """

    proposal = Proposal.SAMPLED
    target: LanguageModel
    sampler: Sampler

    def bind(self, setup: Setup) -> None:
        self.target, self.sampler = setup.target, setup.sampler
        if self.target.num_layers < 2:
            raise Incompatible(
                f"{self.card.slug} leaves {self.target.name} before its last layer, and it has only "
                f"{self.target.num_layers}: take a model with at least two"
            )

    def grow(self, chains: Sequence[Chain]) -> None:
        """Fill the chains; one pass a token for all that leave after the same layer."""
        groups: dict[tuple[int, frozenset[int]], list[Chain]] = {}
        for chain in chains:
            groups.setdefault((chain.layer, chain.kept), []).append(chain)
        for (layer, kept), group in groups.items():
            going = group
            while going:
                answers = self.target.score([c.request() for c in going], Want(hidden=kept), range(layer))
                for chain, scores in zip(going, answers, strict=True):
                    chain.take(scores.hidden)
                # A closed chain took part once more: its last token's states are needed by the verifying pass.
                pairs = [(c, scores) for c, scores in zip(going, answers, strict=True) if not c.closed]
                for chain, scores in pairs:
                    chain.draw(scores.logits[-1], self.sampler)
                    chain.closed = (
                        len(chain.tokens) >= chain.limit
                        or chain.tokens[-1] in self.target.stop_tokens
                        or self.stops(chain)
                    )
                going = [chain for chain, _ in pairs]

    def stops(self, chain: Chain) -> bool:
        """Whether nothing more should be drawn after the token drawn last, which stays in the draft."""
        return False

    def check_exit(self, layer: int, name: str) -> None:
        """Raise :class:`Incompatible` unless ``layer`` lies before the last layer."""
        if not 1 <= layer < self.target.num_layers:
            raise Incompatible(
                f"{self.card.slug}: {name}={layer} must lie between 1 and {self.target.num_layers - 1}, since "
                f"{self.target.name} has {self.target.num_layers} layers"
            )
