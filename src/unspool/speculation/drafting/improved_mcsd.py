"""Improved multi-candidate speculative decoding: a fork of branches that stops where it is no longer worth it.

A fork has ``width`` branches below the end of the text, each continued by one draft token a level. After every level a
small decision model guesses for each branch whether its last token will be accepted; when none is likely to be, the
draft ends. The ancestor mask is made once for the deepest fork; a shorter one uses its leading block, because levels
follow one another.

In the mode ``relaxed`` the branches begin with the target's own likely tokens after the text, which the last pass has
told for nothing, and the longest branch is kept (see :mod:`unspool.speculation.verification.longest_branch`). That is
the published method, and it changes the output. In the mode ``lossless`` the token that the target chose is the only
one to go on from: the branches are ``width`` different tokens drawn from the draft model after it.

Paper: Lu et al., Improving Multi-candidate Speculative Decoding, 2024 (sections 3.1 to 3.3; width 4, depth 10,
threshold 0.5), on Yang et al., Multi-Candidate Speculative Decoding, 2024.

Lossless (in the mode of that name, with the verifier of siblings without replacement): the decision to stop is made
from places whose tokens are all kept; it forgoes the next level and drops nothing. ``relaxed`` is lossy.

Where the paper is silent: without a decision model (``unspool train mcsd-decision`` makes one for the models of
``stdlib-pair``) the depth is fixed; the decision is made from what the tokens were drawn from, before looking at them;
models that score only chains get a fork of one branch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from unspool.core.branch import Branch
from unspool.core.cards import Card, Kind, settings
from unspool.core.errors import Incompatible
from unspool.core.model import Capability
from unspool.core.registry import register
from unspool.core.scores import LOGITS, Scores, Want
from unspool.core.sockets import Budget, Draft, Node, Observation, Proposal, Setup
from unspool.core.tree import ROOT, TokenTree
from unspool.speculation.drafting._decision import DecisionModel, q_features
from unspool.speculation.drafting._draft_caches import DraftModelDrafter, Growth
from unspool.speculation.drafting._draws import draw_siblings
from unspool.speculation.drafting._sources import source_file
from unspool.speculation.verification._rejection import residual

_FINAL = -1


@settings
class ImprovedMCSDSettings:
    """The paper's, with an output that stays the target's."""

    model: Annotated[str | None, Field(description="name of the draft model, if none was handed over")] = None
    mode: Annotated[
        Literal["lossless", "relaxed"],
        Field(description="relaxed: branches begin with the target's tokens, the longest is kept; changes the output"),
    ] = "lossless"
    width: Annotated[int, Field(ge=1, description="branches")] = 4
    depth: Annotated[int, Field(ge=1, description="tokens of a branch, at most")] = 10
    threshold: Annotated[
        float, Field(ge=0, le=1, description="a draft goes on if some branch is likelier than this to be accepted")
    ] = 0.5
    decision: Annotated[
        str | None,
        Field(
            description="decision model: a safetensors file, or one of an artefact (mcsd-decision/hidden.safetensors); "
            "without one every draft is as deep as it may be"
        ),
    ] = None


@lru_cache(maxsize=64)
def fork(width: int, depth: int) -> TokenTree:
    """A template: token ``depth d, branch j`` is node ``d * width + j``."""
    if depth > 1:
        return TokenTree([0] * (width * depth), [max(node - width, ROOT) for node in range(width * depth)])
    return TokenTree([0] * width, [ROOT] * width)


@lru_cache(maxsize=512)
def sliced_fork(width: int, depth: int, deepest: int) -> TokenTree:
    """The first levels of the deepest fork; its mask is a block of that one's."""
    return fork(width, deepest).leading(width * depth)


class _End:
    """What the target said after the last token of a text, of the mode ``relaxed``.

    Attributes:
        length: of the text.
        logits: ``[V]``.
        q: ``[V]`` what a draft token that was refused there was drawn from, if one was.
    """

    def __init__(self, length: int, logits: Tensor, q: Tensor | None) -> None:
        self.length = length
        self.logits = logits
        self.q = q


class _Fork:
    """One draft while it grows.

    Attributes:
        front: the nodes that the next level continues.
        features: what the decision model reads, of every node that was drafted, ``[F]`` each.
    """

    def __init__(self, growth: Growth, width: int, depth: int) -> None:
        self.growth = growth
        self.width = width if growth.room is None else min(width, growth.room)
        self.depth = min(depth, growth.depth)
        if growth.nodes is not None:
            self.depth = min(self.depth, max(growth.nodes // self.width, 1))
        self.front = [ROOT]
        self.features: dict[int, Tensor] = {}
        self.levels = 0


@register(
    Card(
        slug="improved-mcsd",
        name="Improved multi-candidate speculation",
        kind=Kind.DRAFTER,
        summary="A draft model writes a fork of branches, and stops when a small network thinks that none will stand.",
        paper="Improving Multi-candidate Speculative Decoding, 2024",
        claim="acceptance rate up by at most 164% and text up to 75% faster than with multi-candidate speculation",
        lossless=True,
        models=("draft",),
    ),
    ImprovedMCSDSettings,
)
class ImprovedMCSD(DraftModelDrafter):
    """Forks of a draft model.

    Attributes:
        decision: the decision model, or ``None`` for a fixed depth.
        recorded: if it is a list, features and labels of every draft token are appended, ``([F], chance that the
            target accepts it)``: what a decision model learns from. ``reads`` says which features.
    """

    settings: ImprovedMCSDSettings

    def __init__(self, settings: ImprovedMCSDSettings | None = None) -> None:
        super().__init__(settings)
        relaxed = self.settings.mode == "relaxed"
        self.proposal = Proposal.TARGET_ROOTS if relaxed else Proposal.WITHOUT_REPLACEMENT
        self._relaxed = relaxed
        self.decision: DecisionModel | None = None
        self.recorded: list[tuple[Tensor, float]] | None = None
        self.reads: Literal["hidden", "q"] = "hidden"
        if self.settings.decision is not None:
            self.decision = DecisionModel.load(source_file(self.settings.decision))
            self.reads = self.decision.reads

    def bind(self, setup: Setup) -> None:
        super().bind(setup)
        trees = all(Capability.TREE in model.capabilities for model in (setup.target, self.model))
        self._width = self.settings.width if trees else 1
        if self.decision is not None and self.reads == "hidden":
            self.model.require(frozenset({Capability.HIDDEN_STATES}), "improved-mcsd with a decision model")
            width = getattr(self.model, "hidden_size", None)
            if width is not None and width != self.decision.width:
                raise Incompatible(
                    f"improved-mcsd: the decision model reads {self.decision.width} numbers, the hidden states of "
                    f"{self.model.name} have {width}; it was trained for another draft model"
                )

    # -- proposing ------------------------------------------------------------------------------------------------

    def propose(self, branches: Sequence[Branch], budgets: Sequence[Budget]) -> list[Draft]:
        drafts = [Draft.empty() for _ in branches]
        ends = [self._end(branch) for branch in branches]
        # In the relaxed mode a text without an end is left to the verifier, which asks for one.
        asking = [place for place in range(len(branches)) if ends[place] is not None or not self._relaxed]
        growths = self.grow(
            [branches[place] for place in asking], [budgets[place] for place in asking], None, self.settings.depth
        )
        forks: dict[int, _Fork] = {}
        for place, growth in zip(asking, growths, strict=True):
            end = ends[place]
            if growth is not None:
                forks[place] = _Fork(growth, self._width, self.settings.depth)
                if end is not None:
                    self._plant(forks[place], end)
            elif end is not None:
                # Nobody drafts any more, so the target's choice goes alone.
                drafts[place] = self._alone(branches[place], end)
        self._grow(list(forks.values()))
        for place, made in forks.items():
            drafts[place] = self._draft(made)
            if self.recorded is not None:
                branches[place].memo[self, "features"] = made.features
        return drafts

    def _grow(self, forks: list[_Fork]) -> None:
        want = Want(frozenset({_FINAL})) if self._watching and self.reads == "hidden" else LOGITS
        growing = [one for one in forks if one.levels < one.depth]
        while growing:
            scored = self.score([one.growth for one in growing], [one.front for one in growing], want)
            for one, scores in zip(growing, scored, strict=True):
                self._lengthen(one, scores)
            growing = [one for one in growing if one.levels < one.depth and self._worth_it(one)]

    @property
    def _watching(self) -> bool:
        return self.decision is not None or self.recorded is not None

    def _lengthen(self, one: _Fork, scores: Scores) -> None:
        """One level, from the scores ``[R, V]`` after the front."""
        growth, front = one.growth, one.front
        count = one.width if front == [ROOT] else 1
        read = self._features(growth, scores) if self._watching else None
        one.front = []
        for place, (node, row) in enumerate(zip(front, scores.logits, strict=True)):
            children = self.add_children(growth, node, row, count)
            one.front += children
            if read is not None:
                one.features |= dict.fromkeys(children, read[place])
        one.levels += 1

    def _features(self, growth: Growth, scores: Scores) -> Tensor:
        """``[R, F]`` what the decision model reads of the places that logits were asked for."""
        if self.reads == "q":
            return q_features(scores.logits)
        states = scores.hidden[_FINAL]
        first = len(growth.memory.scored) - len(states)
        return states[[row - first for row in scores.rows]]

    def _worth_it(self, one: _Fork) -> bool:
        """Whether some branch is likely enough to stand so far."""
        if self.decision is None:
            return True
        chances = self.decision(torch.stack([one.features[node] for node in one.front]))
        return bool((chances > self.settings.threshold).any())

    def _draft(self, one: _Fork) -> Draft:
        growth = one.growth
        count = len(one.front)
        # A distribution with fewer tokens than branches makes a narrower fork.
        tree = sliced_fork(count, one.levels, max(self.settings.depth, one.levels)).with_tokens(growth.tokens)
        return Draft(tree, torch.stack(growth.q) if growth.q else None, growth.q_rows, growth.confidence)

    # -- the relaxed mode -----------------------------------------------------------------------------------------

    def _end(self, branch: Branch) -> _End | None:
        end: _End | None = branch.memo.get(self)
        return end if end is not None and end.length == len(branch.tokens) else None

    def _roots(self, branch: Branch, end: _End, count: int) -> tuple[list[int], list[float], Tensor | None]:
        """The target's tokens that branches begin with, their probabilities, and what they were drawn from."""
        law = self.sampler.distribution(Node(branch, ROOT, end.logits, None, branch.tokens))
        if law.token is not None:
            probs = torch.softmax(end.logits.float(), dim=-1)
            ranked = [law.token, *(t for t in probs.topk(min(count, len(probs))).indices.tolist() if t != law.token)]
            return ranked[:count], probs[ranked[:count]].tolist(), None
        p = law.dense(end.logits)
        if end.q is not None:
            p = residual(p.double(), end.q.double())
        tokens = draw_siblings(p, count, branch.rng, replacement=False)
        return tokens, p[tokens].tolist(), p

    def _plant(self, one: _Fork, end: _End) -> None:
        """Begin branches with the target's tokens."""
        growth = one.growth
        tokens, chances, p = self._roots(growth.branch, end, one.width)
        if p is not None:
            growth.q.append(p.float())
        one.front = [
            growth.add(token, ROOT, chance, None if p is None else 0)
            for token, chance in zip(tokens, chances, strict=True)
        ]
        one.levels = 1

    def _alone(self, branch: Branch, end: _End) -> Draft:
        tokens, chances, p = self._roots(branch, end, 1)
        q, rows = (None, []) if p is None else (p.float()[None], [0])
        return Draft(TokenTree.chain(tokens), q, rows, chances)

    # -- looking on -----------------------------------------------------------------------------------------------

    def observe(self, step: Observation) -> None:
        if self.recorded is not None:
            self._record(step, step.branch.memo.pop((self, "features"), {}))
        if not self._relaxed or not step.tokens:
            return
        tree = step.draft.tree
        last = step.path[-1] if step.path else ROOT
        if len(step.tokens) == len(step.path):
            node: int | None = last
        else:
            node = tree.child(last, step.tokens[-1])
        if node is None or node == ROOT:
            return
        below = tree.children(node)
        refused = step.draft.q[step.draft.q_rows[below[0]]] if below and step.draft.q is not None else None
        logits = step.scores.at(step.offset + node).clone()
        step.branch.memo[self] = _End(len(step.branch.tokens) + len(step.tokens), logits, refused)

    def _record(self, step: Observation, features: dict[int, Tensor]) -> None:
        """Label every draft token with the chance that the target accepts it after its parent."""
        assert self.recorded is not None
        tree, draft = step.draft.tree, step.draft
        for node, read in features.items():
            above, token = tree.parent_list[node], tree.token_list[node]
            place = step.offset + above
            if place < 0:
                continue
            logits = step.scores.at(place)
            if draft.q is None:
                chance = float(int(logits.argmax()) == token)
            else:
                p = self.sampler.draft_probs(logits, step.branch.tokens + tree.path_tokens(above), step.branch)
                chance = min(1.0, float(p[token]) / float(draft.q[draft.q_rows[node]][token]))
            self.recorded.append((read.float().clone(), chance))

    def release(self, branch: Branch) -> None:
        branch.memo.pop((self, "features"), None)
        super().release(branch)
