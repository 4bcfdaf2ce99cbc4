"""A draft model: a second, smaller model of the same vocabulary guesses ahead.

It proposes a chain or, with ``branching``, a tree whose first levels have several children a node. Under a sampler
that draws at random the candidates are drawn from the draft model's distributions (siblings with or without
replacement); under a deterministic one they are its most probable tokens.

All branches of a batch are drafted together, one pass of the draft model a level. Its caches follow the text: what
the target accepted stays, the rest is dropped, nothing is read twice.

Papers: Leviathan et al., Fast Inference from Transformers via Speculative Decoding, 2023 (chains); Miao et al.,
SpecInfer, 2023 (siblings with replacement); Yang et al., Multi-Candidate Speculative Decoding, 2024, and Jeon et al.,
Recursive Speculative Decoding, 2024 (without replacement, there RSD-C).

Lossless with the verifier of its kind of draft. How many candidates are drawn where never depends on which tokens they
are, because that would bias what the verifier keeps; so duplicates stay in a draft with replacement.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from unspool.core.branch import Branch
from unspool.core.cards import Card, Kind, settings
from unspool.core.errors import Incompatible, InvalidInput
from unspool.core.model import Cache, Capability, LanguageModel
from unspool.core.registry import register
from unspool.core.scores import Request, Scores
from unspool.core.sockets import Budget, Draft, Drafter, Proposal, Sampler, Setup
from unspool.core.tree import ROOT, TokenTree
from unspool.speculation.drafting._draws import draw_siblings

# The prompt is read in pieces of so many tokens.
_CHUNK = 256
_PROBE = "def f(x):\n    return 'naïve', x + 1  # 2024"


@settings
class DraftModelSettings:
    """A chain of five, unless ``branching`` makes it a tree."""

    model: Annotated[str | None, Field(description="name of the draft model, if none was handed over")] = None
    tokens: Annotated[int, Field(ge=1, description="draft tokens on the longest path")] = 5
    branching: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...],
        Field(description="children of every node, level by level from the top; one each below"),
    ] = ()
    replacement: Annotated[
        bool, Field(description="draw siblings with replacement (SpecInfer) instead of without (RSD)")
    ] = False


_Family = tuple[int, tuple[int, ...]]


class _Memory:
    """What the draft model holds of one branch: committed ``held``, and provisionally the ``scored`` tree behind it."""

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
        common = _common(self.held, text)
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


class _Growth:
    """A draft while it grows, level by level."""

    def __init__(self, memory: _Memory, nodes: int | None, depth: int) -> None:
        self.memory = memory
        self.pending = memory.pending
        self.nodes = nodes
        self.depth = depth
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.q: list[Tensor] = []
        self.q_rows: list[int] = []
        self.frontier = [ROOT]
        self.known = 0

    @property
    def tree(self) -> TokenTree:
        return TokenTree(self.tokens, self.parents)

    @property
    def room(self) -> int | None:
        return None if self.nodes is None else self.nodes - len(self.tokens)

    def request(self) -> Request:
        """The next level's pass: only nodes that the draft model has not seen are computed."""
        tree = self.tree.after(self.pending)
        rows = [len(self.pending) + node for node in self.frontier]
        request = Request(self.memory.cache, tree, rows=rows, known=self.known)
        self.known = len(tree)
        self.memory.scored = tree
        return request

    def draft(self) -> Draft:
        return Draft(self.tree, torch.stack(self.q), self.q_rows) if self.q else Draft(self.tree)


@register(
    Card(
        slug="draft-model",
        name="Draft model",
        kind=Kind.DRAFTER,
        summary="A second, smaller model of the same vocabulary guesses a chain or a tree of tokens.",
        paper="Fast Inference from Transformers via Speculative Decoding, 2023",
        claim="2x to 3x faster than plain decoding with identical output",
        lossless=True,
        models=("draft",),
    ),
    DraftModelSettings,
)
class DraftModel(Drafter):
    """Chains and trees of a second model."""

    settings: DraftModelSettings

    def __init__(self, settings: DraftModelSettings | None = None) -> None:
        super().__init__(settings)
        widths = self.settings.branching
        if len(widths) > self.settings.tokens:
            raise InvalidInput(
                f"draft-model: branching {widths} has {len(widths)} levels, but the draft is only "
                f"tokens={self.settings.tokens} deep: give fewer levels or more tokens"
            )
        self._widths = [*widths, *([1] * (self.settings.tokens - len(widths)))]
        # Under a deterministic sampler the drafts carry no q, and every rule matches those.
        if max(self._widths) == 1:
            self.proposal = Proposal.SAMPLED
        else:
            self.proposal = Proposal.WITH_REPLACEMENT if self.settings.replacement else Proposal.WITHOUT_REPLACEMENT
        self._memories: dict[int, _Memory] = {}

    def bind(self, setup: Setup) -> None:
        self._sampler: Sampler = setup.sampler
        self.model: LanguageModel = setup.model("draft", "draft-model", self.settings.model)
        self._check(setup.target, self.model)
        if max(self._widths) > 1:
            for model in (setup.target, self.model):
                model.require(frozenset({Capability.TREE}), f"draft-model with branching {self.settings.branching}")

    @staticmethod
    def _check(target: LanguageModel, draft: LanguageModel) -> None:
        if target.vocab_size != draft.vocab_size:
            raise Incompatible(
                f"draft-model: {draft.name} has {draft.vocab_size} tokens and {target.name} has {target.vocab_size}; "
                "the two must share one vocabulary"
            )
        if target.tokenizer is not None and draft.tokenizer is not None:
            if list(target.tokenizer.encode(_PROBE)) != list(draft.tokenizer.encode(_PROBE)):
                raise Incompatible(
                    f"draft-model: {draft.name} and {target.name} tokenize differently; "
                    "the two must share one vocabulary"
                )
        for one, other in ((target, draft), (draft, target)):
            if Capability.ENCODER in one.capabilities - other.capabilities:
                raise Incompatible(
                    f"draft-model: {one.name} has an encoder and {other.name} has none; take two of a kind"
                )

    @property
    def other_models(self) -> tuple[LanguageModel, ...]:
        return (self.model,)

    def propose(self, branches: Sequence[Branch], budgets: Sequence[Budget]) -> list[Draft]:
        growths: list[_Growth | None] = []
        useful = [self._depth(branch, budget) for branch, budget in zip(branches, budgets, strict=True)]
        self._recall([branch for branch, depth in zip(branches, useful, strict=True) if depth > 0])
        for branch, budget, depth in zip(branches, budgets, useful, strict=True):
            growths.append(_Growth(self._memories[id(branch)], budget.nodes, depth) if depth > 0 else None)
        growing = [growth for growth in growths if growth is not None]
        for level, width in enumerate(self._widths):
            growing = [g for g in growing if level < g.depth and g.frontier and (g.room is None or g.room > 0)]
            if not growing:
                break
            for growth, scores in zip(growing, self.model.score([g.request() for g in growing]), strict=True):
                self._grow(growth, scores, width)
        return [Draft.empty() if growth is None else growth.draft() for growth in growths]

    def _depth(self, branch: Branch, budget: Budget) -> int:
        """How deep to draft: the draft model must see the whole text and all but the last of its guesses."""
        _, depth = budget.of(0, self.settings.tokens)
        if self.model.context_length is not None:
            depth = min(depth, self.model.context_length - len(branch.tokens) + 1)
        return depth

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
        families: dict[_Family, list[_Memory]] = {}
        for memory in self._memories.values():
            families.setdefault(_family(memory.branch), []).append(memory)
        orphans: dict[_Family, list[Branch]] = {}
        for branch in fresh:
            if _family(branch) not in families:
                orphans.setdefault(_family(branch), []).append(branch)
        if orphans:
            for (family, twins), cache in zip(orphans.items(), self._caches(list(orphans)), strict=True):
                families[family] = [_Memory(twins[0], cache, [])]
                self._memories[id(twins[0])] = families[family][0]
            self._read([families[family][0] for family, twins in orphans.items() if len(twins) > 1], leave=1)
        for branch in fresh:
            if id(branch) not in self._memories:
                relatives = families[_family(branch)]
                near = max(relatives, key=lambda memory: _common(memory.held, branch.tokens))
                twin = _Memory(branch, near.cache.fork(), list(near.held))
                twin.follow()
                self._memories[id(branch)] = twin
                relatives.append(twin)

    def _caches(self, families: list[_Family]) -> list[Cache]:
        if Capability.ENCODER in self.model.capabilities:
            return [cache for cache, _ in self.model.start([source for _, source in families])]
        return self.model.new_caches(len(families))

    def _read(self, memories: list[_Memory], leave: int) -> None:
        """Bring texts into caches, all but at most ``leave`` tokens of each."""
        while long := [memory for memory in memories if len(memory.pending) > leave]:
            pieces = [TokenTree.chain(memory.pending[: min(_CHUNK, len(memory.pending) - 1)]) for memory in long]
            self.model.score([Request(m.cache, piece, rows=[]) for m, piece in zip(long, pieces, strict=True)])
            for memory, piece in zip(long, pieces, strict=True):
                memory.cache.commit(range(len(piece)))
                memory.held += piece.token_list

    def _grow(self, growth: _Growth, scores: Scores, width: int) -> None:
        """Add the children of the frontier."""
        branch, above, growth.frontier = growth.memory.branch, growth.frontier, []
        tree = growth.tree
        for node in above:
            count = width if growth.room is None else min(width, growth.room)
            if count == 0:
                return
            logits = scores.at(len(growth.pending) + node)
            if self._sampler.deterministic:
                drawn = logits.topk(min(count, len(logits))).indices.tolist()
            else:
                q = self._sampler.draft_probs(logits, branch.tokens + tree.path_tokens(node), branch)
                drawn = draw_siblings(q, count, branch.rng, replacement=self.settings.replacement)
                growth.q_rows += [len(growth.q)] * len(drawn)
                growth.q.append(q)
            for place, token in enumerate(drawn):
                # A duplicate is never accepted after its elder was refused, so nothing needs to follow it.
                if token not in drawn[:place]:
                    growth.frontier.append(len(growth.tokens))
                growth.tokens.append(token)
                growth.parents.append(node)

    def release(self, branch: Branch) -> None:
        super().release(branch)
        memory = self._memories.pop(id(branch), None)
        if memory is not None:
            memory.cache.release()


def _family(branch: Branch) -> _Family:
    """Branches of one request share a beginning; what an encoder read is part of the cache."""
    return branch.index, tuple(branch.source)


def _common(a: list[int], b: list[int]) -> int:
    """Length of the longest common beginning."""
    if b[: len(a)] == a:
        return len(a)
    return next((place for place, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
