"""A second model beside the target: its caches follow the texts, its drafts grow level by level.

Everything that drafts with a model of its own is a :class:`DraftModelDrafter`: bound to the model, checked against
the target's vocabulary, and finds the caches of every branch up to date. A :class:`Growth` is one branch's draft while
it grows; :meth:`DraftModelDrafter.score` runs one pass for all that grow.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from unspool.core.branch import Branch
from unspool.core.errors import Incompatible
from unspool.core.model import Cache, Capability, LanguageModel
from unspool.core.scores import LOGITS, Request, Scores, Want
from unspool.core.sockets import Budget, Draft, Drafter, Sampler, Setup
from unspool.core.tree import ROOT, TokenTree
from unspool.speculation.drafting._draws import draw_siblings

# The prompt is read in pieces of so many tokens.
_CHUNK = 256
_PROBE = "def f(x):\n    return 'naïve', x + 1  # 2024"

_Family = tuple[int, tuple[int, ...]]


class Memory:
    """What the draft model holds of one branch: committed ``held``, and provisionally the ``scored`` tree behind it.

    The scored tree begins with the text's pending tokens (always the last token, at least).
    """

    __slots__ = ("branch", "cache", "held", "scored")

    def __init__(self, branch: Branch, cache: Cache, held: list[int]) -> None:
        self.branch = branch
        self.cache = cache
        self.held = held
        self.scored = TokenTree.empty()

    @property
    def pending(self) -> list[int]:
        """What the cache lacks of the text; always the last token."""
        return self.branch.tokens[len(self.held) :]

    def follow(self) -> None:
        """Commit what the scored tree shares with the text, and step back where the text did."""
        text = self.branch.tokens[:-1]
        common = common_length(self.held, text)
        if common < len(self.held):
            self.cache.rewind(common)
            del self.held[common:]
        elif self.scored:
            path, node = [], ROOT
            for token in text[common:]:
                child = self.scored.child(node, token)
                if child is None:
                    break
                node = child
                path.append(node)
            self.cache.commit(path)
            self.held += text[common : common + len(path)]
        self.scored = TokenTree.empty()


class Growth:
    """A draft while it grows: nodes are only ever appended, so that no pass computes a node twice.

    Attributes:
        tokens, parents: the nodes so far, numbered from 0; a parent of ``ROOT`` continues the text.
        confidence: the draft model's probability of each node's token after its parent.
        q, q_rows: the distributions that nodes were drawn from, where they were drawn (see
            :class:`~unspool.core.sockets.Draft`).
        nodes, depth: the budget; ``nodes`` is ``None`` where there is no limit.
    """

    def __init__(self, memory: Memory, nodes: int | None, depth: int) -> None:
        self.memory = memory
        self.branch = memory.branch
        self.pending = memory.pending
        self.nodes = nodes
        self.depth = depth
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.confidence: list[float] = []
        self.q: list[Tensor] = []
        self.q_rows: list[int] = []
        self._known = 0

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def tree(self) -> TokenTree:
        return TokenTree(self.tokens, self.parents)

    @property
    def room(self) -> int | None:
        return None if self.nodes is None else self.nodes - len(self.tokens)

    def add(self, token: int, parent: int, confidence: float | None = None, row: int | None = None) -> int:
        """Append a node and give back its number."""
        self.tokens.append(token)
        self.parents.append(parent)
        if confidence is not None:
            self.confidence.append(confidence)
        if row is not None:
            self.q_rows.append(row)
        return len(self.tokens) - 1

    def path_tokens(self, node: int) -> list[int]:
        """The draft tokens down to ``node``; none for ``ROOT``."""
        found: list[int] = []
        while node != ROOT:
            found.append(self.tokens[node])
            node = self.parents[node]
        found.reverse()
        return found

    def request(self, nodes: Sequence[int]) -> Request:
        """The pass that computes all nodes that the draft model has not seen, with logits after ``nodes``.

        Args:
            nodes: among those not seen yet, ascending; ``ROOT`` is the end of the text.
        """
        tree = self.tree.after(self.pending)
        request = Request(self.memory.cache, tree, rows=[len(self.pending) + n for n in nodes], known=self._known)
        self._known = len(tree)
        self.memory.scored = tree
        return request

    def draft(self) -> Draft:
        """All nodes, as they stand."""
        return Draft(self.tree, torch.stack(self.q) if self.q else None, self.q_rows, self.confidence)


class DraftModelDrafter(Drafter):
    """Base of drafters that have a model of their own.

    A subclass names the model's role in its card (``models=("draft",)``) and implements ``propose``: :meth:`grow` gives
    a :class:`Growth` for every branch that has room for a draft, :meth:`score` the logits after nodes of them.
    """

    model: LanguageModel

    def __init__(self, settings: Any = None) -> None:
        super().__init__(settings)
        self._memories: dict[int, Memory] = {}

    # -- binding --------------------------------------------------------------------------------------------------

    def bind(self, setup: Setup) -> None:
        self.sampler: Sampler = setup.sampler
        who = self.card.slug
        self.model = self.draft_model(setup)
        self.check_vocabularies(setup.target, self.model, who)

    def draft_model(self, setup: Setup) -> LanguageModel:
        """The model that drafts; a subclass may put something around it."""
        return setup.model("draft", self.card.slug, getattr(self.settings, "model", None))

    @staticmethod
    def check_vocabularies(target: LanguageModel, draft: LanguageModel, who: str) -> None:
        """Raise :class:`Incompatible` unless both models speak of the same tokens."""
        if target.vocab_size != draft.vocab_size:
            raise Incompatible(
                f"{who}: {draft.name} has {draft.vocab_size} tokens and {target.name} has {target.vocab_size}; "
                "the two must share one vocabulary"
            )
        if target.tokenizer is not None and draft.tokenizer is not None:
            # Equal ones need no probe, and may read no such text (circuits, say).
            if target.tokenizer != draft.tokenizer and (
                list(target.tokenizer.encode(_PROBE)) != list(draft.tokenizer.encode(_PROBE))
            ):
                raise Incompatible(
                    f"{who}: {draft.name} and {target.name} tokenize differently; the two must share one vocabulary"
                )
        for one, other in ((target, draft), (draft, target)):
            if Capability.ENCODER in one.capabilities - other.capabilities:
                raise Incompatible(f"{who}: {one.name} has an encoder and {other.name} has none; take two of a kind")

    def require_trees(self, target: LanguageModel, what: str) -> None:
        """Raise :class:`Incompatible` unless both models score trees; ``what`` says who wants that."""
        for model in (target, self.model):
            model.require(frozenset({Capability.TREE}), what)

    @property
    def other_models(self) -> tuple[LanguageModel, ...]:
        return (self.model,)

    # -- growing --------------------------------------------------------------------------------------------------

    def grow(
        self, branches: Sequence[Branch], budgets: Sequence[Budget], nodes: int | None, depth: int
    ) -> list[Growth | None]:
        """An empty draft for every branch, its caches brought up to the text; ``None`` where there is no room.

        Args:
            nodes, depth: the drafter's own limits, cut to each branch's budget and to the draft model's context.
        """
        limits = [self._limit(branch, budget, nodes, depth) for branch, budget in zip(branches, budgets, strict=True)]
        useful = [most != 0 and deep > 0 for most, deep in limits]
        self._recall([branch for branch, use in zip(branches, useful, strict=True) if use])
        return [
            Growth(self._memories[id(branch)], most, deep) if use else None
            for branch, (most, deep), use in zip(branches, limits, useful, strict=True)
        ]

    def score(self, growths: Sequence[Growth], nodes: Iterable[Sequence[int]], want: Want = LOGITS) -> list[Scores]:
        """One pass of the draft model over what it has not seen of these drafts.

        Args:
            growths: at least one.
            nodes: for each, the nodes after which logits are wanted (see :meth:`Growth.request`).

        Returns:
            For each its scores, with logits ``[R, V]`` after those nodes alone.
        """
        return self.model.score([growth.request(wanted) for growth, wanted in zip(growths, nodes, strict=True)], want)

    def add_children(
        self, growth: Growth, node: int, logits: Tensor, count: int, *, replacement: bool = False
    ) -> list[int]:
        """Append candidates for what follows ``node``, whose logits are ``[V]``.

        They are the most probable tokens under a deterministic sampler, else drawn from what it makes of the logits.

        Args:
            count: how many; fewer come if there are fewer tokens to be had.
            replacement: whether a token may be drawn twice.

        Returns:
            The new nodes, in drawing order.
        """
        if self.sampler.deterministic:
            best = torch.softmax(logits.float(), dim=-1).topk(min(count, len(logits)))
            tokens, chances, row = best.indices.tolist(), best.values.tolist(), None
        else:
            branch = growth.branch
            q = self.sampler.draft_probs(logits, branch.tokens + growth.path_tokens(node), branch)
            tokens = draw_siblings(q, count, branch.rng, replacement=replacement)
            chances, row = q[tokens].tolist(), len(growth.q)
            growth.q.append(q)
        return [growth.add(token, node, chance, row) for token, chance in zip(tokens, chances, strict=True)]

    def _limit(self, branch: Branch, budget: Budget, nodes: int | None, depth: int) -> tuple[int | None, int]:
        """Nodes and depth: the draft model must see the whole text and all but the last of its guesses."""
        both = budget & Budget(nodes, depth)
        deep = depth if both.depth is None else both.depth
        if self.model.context_length is not None:
            deep = min(deep, self.model.context_length - len(branch.tokens) + 1)
        return both.nodes, deep

    def _recall(self, branches: list[Branch]) -> None:
        """Bring the caches of these branches up to their texts, but for a last piece.

        A new branch starts from its nearest relative; of several new ones of a request one reads the prompt for all.
        """
        for branch in branches:
            if id(branch) in self._memories:
                self._memories[id(branch)].follow()
        fresh = [branch for branch in branches if id(branch) not in self._memories]
        if fresh:
            self._adopt(fresh)
        self._read([self._memories[id(branch)] for branch in branches], leave=_CHUNK)

    def _adopt(self, fresh: list[Branch]) -> None:
        """Caches for new branches."""
        families: dict[_Family, list[Memory]] = {}
        for memory in self._memories.values():
            families.setdefault(_family(memory.branch), []).append(memory)
        orphans: dict[_Family, list[Branch]] = {}
        for branch in fresh:
            if _family(branch) not in families:
                orphans.setdefault(_family(branch), []).append(branch)
        if orphans:
            for (family, twins), cache in zip(orphans.items(), self._caches(list(orphans)), strict=True):
                families[family] = [Memory(twins[0], cache, [])]
                self._memories[id(twins[0])] = families[family][0]
            self._read([families[family][0] for family, twins in orphans.items() if len(twins) > 1], leave=1)
        for branch in fresh:
            if id(branch) not in self._memories:
                relatives = families[_family(branch)]
                near = max(relatives, key=lambda memory: common_length(memory.held, branch.tokens))
                twin = Memory(branch, near.cache.fork(), list(near.held))
                twin.follow()
                self._memories[id(branch)] = twin
                relatives.append(twin)

    def _caches(self, families: list[_Family]) -> list[Cache]:
        if Capability.ENCODER in self.model.capabilities:
            return [cache for cache, _ in self.model.start([source for _, source in families])]
        return self.model.new_caches(len(families))

    def _read(self, memories: list[Memory], leave: int) -> None:
        """Bring texts into caches, all but at most ``leave`` tokens of each."""
        while long := [memory for memory in memories if len(memory.pending) > leave]:
            pieces = [TokenTree.chain(memory.pending[: min(_CHUNK, len(memory.pending) - 1)]) for memory in long]
            self.model.score([Request(m.cache, piece, rows=[]) for m, piece in zip(long, pieces, strict=True)])
            for memory, piece in zip(long, pieces, strict=True):
                memory.cache.commit(range(len(piece)))
                memory.held += piece.token_list

    def release(self, branch: Branch) -> None:
        super().release(branch)
        memory = self._memories.pop(id(branch), None)
        if memory is not None:
            memory.cache.release()


def _family(branch: Branch) -> _Family:
    """Branches of one request share a beginning; what an encoder read is part of the cache."""
    return branch.index, tuple(branch.source)


def common_length(a: list[int], b: list[int]) -> int:
    """Length of the longest common beginning."""
    if b[: len(a)] == a:
        return len(a)
    return next((place for place, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
