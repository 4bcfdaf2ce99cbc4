"""The sockets of the in-order loop: what a method is asked, and in which words it answers.

A method subclasses one of :class:`Drafter`, :class:`Controller`, :class:`Verifier`, :class:`Sampler`,
:class:`Constraint`, :class:`CachePolicy`, :class:`Search` or :class:`Reader`, declares a
:class:`~unspool.core.cards.Card` and a class of settings, and is done; the loop does the rest.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from unspool.core.branch import Branch
from unspool.core.cards import Card, NoSettings
from unspool.core.errors import DeadEnd, Incompatible
from unspool.core.learned import Learned
from unspool.core.model import Cache, LanguageModel
from unspool.core.scores import LOGITS, Scores, Want
from unspool.core.tree import ROOT, TokenTree

# -- every part ---------------------------------------------------------------------------------------------------


@dataclass
class Setup:
    """What a part may know of its surroundings when a composition is built.

    Args:
        target: the model whose output is wanted.
        sampler: how its distributions become tokens.
        models: further models by role (``"draft"``).
        load: turns a model's name into a model.
        observes_prompt: whether any part asks for the logits of every position of the prompt.
        constraint: what the text has to satisfy, if anything. Drafts are pruned by the loop; a drafter that has to
            choose among many candidates may ask earlier.
    """

    target: LanguageModel
    sampler: Sampler
    models: Mapping[str, LanguageModel] = field(default_factory=dict)
    load: Callable[[str], LanguageModel] | None = None
    observes_prompt: bool = False
    constraint: Constraint | None = None

    def model(self, role: str, who: str, name: str | None = None) -> LanguageModel:
        """The model of that role; ``name`` is loaded if none was handed over.

        Raises:
            Incompatible: if there is none.
        """
        if role in self.models:
            return self.models[role]
        if name and self.load is not None:
            return self.load(name)
        raise Incompatible(
            f"{who} needs a {role} model: pass one as {role}=... in Python or --{role} MODEL on the command line"
        )


class Part:
    """Base of everything that fills a socket.

    Class attributes:
        card, Settings: set by ``@register``.
        want: what the part reads from the target besides logits.
        observes_prompt: whether :meth:`observe` needs the logits of every position of the prompt.
        reads_log_probs: whether the log-probability of every generated token is to be recorded in the branches.
    """

    card: ClassVar[Card]
    Settings: ClassVar[type] = NoSettings
    want: Want = LOGITS
    observes_prompt: bool = False
    reads_log_probs: bool = False

    def __init__(self, settings: Any = None) -> None:
        self.settings: Any = type(self).Settings() if settings is None else settings

    def bind(self, setup: Setup) -> None:
        """Called once when a composition is built: look at the target, fetch other models.

        Raises:
            Incompatible: if the part cannot work with what it finds.
        """

    def observe(self, step: Observation) -> None:
        """Called for every branch after every scored tree, before the cache is compacted."""

    def release(self, branch: Branch) -> None:
        """Called when a branch ends: free what was held for it."""
        branch.memo.pop(self, None)

    @property
    def other_models(self) -> tuple[LanguageModel, ...]:
        """Models that this part runs; the loop reads their forward counts."""
        return ()

    @property
    def learned(self) -> Mapping[str, Learned]:
        """What the part keeps between requests, by name (its slug, or a name below it)."""
        return {}


@dataclass
class Observation:
    """What one step saw of one branch.

    Args:
        branch: before the new tokens are appended.
        tree: the scored tree: the ``offset`` pending tokens as a chain, then the draft.
        offset: number of pending tokens.
        scores: of ``tree``. During prefill only rows that somebody asked for are there.
        draft: the draft, its nodes numbered from 0 (node ``i`` is node ``offset + i`` of ``tree``).
        path: the accepted draft nodes, from the top.
        tokens: the tokens that are committed: those of ``path``, then the one chosen after them.
    """

    branch: Branch
    tree: TokenTree
    offset: int
    scores: Scores
    draft: Draft
    path: list[int]
    tokens: list[int]

    @property
    def kept(self) -> list[int]:
        """Nodes of ``tree`` that stay in the cache."""
        return [*range(self.offset), *(self.offset + node for node in self.path)]


# -- drafting -----------------------------------------------------------------------------------------------------


class Proposal(StrEnum):
    """How the candidates of a draft were made; it decides which rules judge them without bias."""

    POINT = "fixed candidates"
    SAMPLED = "a sampled chain"
    WITH_REPLACEMENT = "siblings sampled with replacement"
    WITHOUT_REPLACEMENT = "siblings sampled without replacement"
    DECREED = "tokens that stand whatever the target says"
    TARGET_ROOTS = "branches below several of the target's own next tokens"


@dataclass
class Entered:
    """A tree that a drafter has run through the lower layers of the target itself (early exit, self-speculation).

    The target's cache holds those layers' keys and values of the pending tokens and of the draft, provisionally, as the
    last ``score`` of the branch's cache left them; the verifying pass enters at layer ``layer`` and finishes the rest.

    Args:
        layer: the first layer that is still to be run.
        pending: ``[P, d]`` hidden states that enter it, of the branch's pending tokens.
        hidden: ``[N, d]`` the same of the draft's nodes.
    """

    layer: int
    pending: Tensor
    hidden: Tensor

    def select(self, nodes: Sequence[int]) -> Entered:
        if list(nodes) != list(range(len(nodes))):
            # The lower layers' rows lie in the cache in the order of the tree; a gap would shift them.
            raise ValueError("of a draft that has entered the target only leading nodes can be kept")
        return Entered(self.layer, self.pending, self.hidden[: len(nodes)])


@dataclass
class Draft:
    """A proposal.

    Args:
        tree: the guessed continuations of the text so far.
        q: ``[Q, V]`` distributions that nodes were drawn from; ``None`` if they are fixed candidates.
        q_rows: ``[N]`` row of ``q`` that each node was drawn from. Siblings share a row and stand in drawing order.
        confidence: ``[N]`` the drafter's own estimate of the probability of every node's token after its parent; empty
            if it has none.
        entered: how far the target has come with this tree already, or ``None``.
        decreed: whether this chain is meant to stand as it is, of a drafter that proposes :attr:`Proposal.DECREED`.
        origin: ``[N]`` the number that each node had when the draft was made, before nodes were taken out; ``-1`` for
            nodes that the loop has added. Empty while nothing has changed.
    """

    tree: TokenTree
    q: Tensor | None = None
    q_rows: list[int] = field(default_factory=list)
    confidence: list[float] = field(default_factory=list)
    entered: Entered | None = None
    decreed: bool = False
    origin: list[int] = field(default_factory=list)

    @classmethod
    def empty(cls) -> Draft:
        return cls(TokenTree.empty())

    def limited(self, budget: Budget) -> Draft:
        """The part of it that a budget allows; dropped by place in the tree alone, so that no bias can enter."""
        kept = self.tree.kept_by(nodes=budget.nodes, depth=budget.depth)
        return self if len(kept) == len(self.tree) else self.select(kept)

    def select(self, nodes: Sequence[int]) -> Draft:
        """The part of it with these nodes, ascending, each with its parent."""
        return Draft(
            self.tree.select(nodes),
            self.q,
            [self.q_rows[node] for node in nodes] if self.q_rows else [],
            [self.confidence[node] for node in nodes] if self.confidence else [],
            self.entered.select(nodes) if self.entered is not None else None,
            self.decreed,
            [self.origin[node] for node in nodes] if self.origin else list(nodes),
        )

    def made(self, nodes: Iterable[int]) -> list[int]:
        """The numbers that these nodes had when the draft was made; those that were added since are left out."""
        return [at for at in (self.origin[n] if self.origin else n for n in nodes) if at >= 0]


@dataclass(frozen=True)
class Budget:
    """How much may be guessed: nodes in all, and tokens on the longest path. ``None`` leaves it to the drafter."""

    nodes: int | None = None
    depth: int | None = None

    def __and__(self, other: Budget) -> Budget:
        return Budget(_least(self.nodes, other.nodes), _least(self.depth, other.depth))

    def of(self, nodes: int, depth: int) -> tuple[int, int]:
        """A drafter's own (nodes, depth) cut to this budget."""
        return (
            nodes if self.nodes is None else min(nodes, self.nodes),
            depth if self.depth is None else min(depth, self.depth),
        )


def _least(a: int | None, b: int | None) -> int | None:
    return b if a is None else a if b is None else min(a, b)


class Drafter(Part, ABC):
    """What do we guess? Implement :meth:`draft`, or :meth:`propose` where a batch is drafted in one go."""

    proposal: Proposal = Proposal.POINT

    def propose(self, branches: Sequence[Branch], budgets: Sequence[Budget]) -> list[Draft]:
        return [self.draft(branch, budget) for branch, budget in zip(branches, budgets, strict=True)]

    def draft(self, branch: Branch, budget: Budget) -> Draft:
        """A guess at what follows ``branch.tokens``. The loop cuts what exceeds the budget."""
        raise NotImplementedError(f"{type(self).__name__} implements neither draft nor propose")


class Controller(Part):
    """How much do we guess now?

    Attributes:
        chunk: prompt tokens that one pass may read at most; ``None`` leaves it to the caller.
    """

    chunk: int | None = None

    def start(self, model: LanguageModel, prompts: Sequence[Sequence[int]]) -> list[tuple[Cache, list[int]]]:
        """Asked when a run begins, for caches and first tokens; see :meth:`LanguageModel.start`."""
        return model.start(prompts)

    def budget(self, branch: Branch) -> Budget:
        """Asked before drafting."""
        return Budget()

    def allocate(self, branches: Sequence[Branch], drafts: Sequence[Draft]) -> list[Draft]:
        """Asked after drafting: what of the whole batch's drafts is worth verifying."""
        return list(drafts)

    def layers(self, branch: Branch) -> Sequence[int] | None:
        """Asked before scoring: the layers of the target that this branch's pass runs; ``None`` for all.

        Leaving some out changes the output, so that a controller that does is not lossless.
        """
        return None


# -- choosing -----------------------------------------------------------------------------------------------------


def draw(probs: Tensor, rng: torch.Generator) -> int:
    """One token of ``[V]`` probabilities, by inverting their cumulative sum in float64.

    ``torch.multinomial`` does the same with exponential noise for every token, which takes longer.
    """
    cumulative = probs.double().cumsum(0)
    point = torch.rand(1, generator=rng, dtype=torch.float64, device=probs.device) * cumulative[-1]
    # The first place whose sum exceeds the point has a probability above zero. Rounding may put the point at the end.
    token = int(torch.searchsorted(cumulative, point, right=True))
    return min(token, int(probs.nonzero()[-1])) if token >= len(probs) else token


class Distribution:
    """What a sampler makes of logits: a point, or probabilities.

    Args:
        probs: ``[V]`` probabilities that sum to 1, or ``None`` for a point.
        token: the point.
        log_z: log of the normaliser that made ``probs`` out of the model's own probabilities, where the sampler tells.
    """

    __slots__ = ("log_z", "probs", "token")

    def __init__(self, probs: Tensor | None, token: int | None = None, log_z: float | None = None) -> None:
        self.probs = probs
        self.token = token
        self.log_z = log_z

    @classmethod
    def point(cls, token: int) -> Distribution:
        return cls(None, token)

    @classmethod
    def best(cls, logits: Tensor) -> Distribution:
        """The point where ``[V]`` logits are largest; the first of equals."""
        if logits.dtype == torch.float32 and logits.device.type == "cpu":
            # Over the same memory, ten times as fast: torch looks through one row with scalar code.
            return cls(None, int(logits.numpy().argmax()))
        return cls(None, int(logits.argmax()))

    def draw(self, rng: torch.Generator) -> int:
        if self.token is not None:
            return self.token
        assert self.probs is not None
        return draw(self.probs, rng)

    def dense(self, like: Tensor) -> Tensor:
        """``[V]`` probabilities, a point as one-hot, of the width and dtype of ``like``."""
        if self.probs is not None:
            return self.probs
        dense = torch.zeros_like(like)
        dense[self.token] = 1.0
        return dense

    def prob(self, token: int) -> float:
        return float(token == self.token) if self.probs is None else float(self.probs[token])


class LookAhead(Exception):
    """Raised by a sampler that must see what follows some candidates before it can choose.

    The loop keeps what stands so far, scores the candidates as children in the next step, and asks again; the forward
    pass is not wasted, because the chosen candidate's scores are the next step's.
    """

    def __init__(self, node: Node, candidates: Sequence[int]) -> None:
        super().__init__("a sampler asked to look ahead outside of the loop")
        self.node = node.index
        self.candidates = list(candidates)


class Ended(Exception):
    """Raised on the way through a draft where a constrained text is complete, and there is no stop token to say so."""

    def __init__(self, node: int) -> None:
        super().__init__("a constrained text came to its end outside of the loop")
        self.node = node


class Node:
    """A place where a token is about to be chosen.

    Attributes:
        index: node of the draft, ``-1`` for the end of the committed text.
        logits: ``[V]`` the model's logits here, tokens that a constraint forbids at ``-inf``.
    """

    __slots__ = ("_tokens", "branch", "index", "logits", "walk")

    def __init__(
        self, branch: Branch, index: int, logits: Tensor, walk: Walk | None = None, tokens: list[int] | None = None
    ):
        self.branch = branch
        self.index = index
        self.logits = logits
        self.walk = walk
        self._tokens = tokens

    @property
    def tokens(self) -> list[int]:
        """The text up to here: the committed tokens, then those on the draft path. Not to be changed."""
        if self._tokens is None:
            assert self.walk is not None
            self._tokens = (
                self.branch.tokens
                if self.index == ROOT
                else self.branch.tokens + self.walk.draft.tree.path_tokens(self.index)
            )
        return self._tokens

    @property
    def prompt_length(self) -> int:
        return self.branch.prompt_length

    def path_logits(self) -> list[Tensor]:
        """Raw logits of the places above this one that are not committed yet, the committed end first; each ``[V]``."""
        if self.walk is None or self.index == ROOT:
            return []
        return [self.walk.logits(node) for node in (ROOT, *self.walk.draft.tree.path(self.index)[:-1])]

    def child_logits(self, token: int) -> Tensor | None:
        """Raw logits ``[V]`` after ``token``, if the scored tree holds it as a child of this place."""
        child = self.walk.draft.tree.child(self.index, token) if self.walk is not None else None
        return None if child is None else self.walk.logits(child)  # type: ignore[union-attr]


class Sampler(Part, ABC):
    """How does a distribution become a token?

    Attributes:
        deterministic: whether every distribution is a point.
        greedy: whether that point is always :meth:`Distribution.best` of the logits.
        looks_ahead: whether :class:`LookAhead` may be raised.
    """

    deterministic: bool = False
    greedy: bool = False
    looks_ahead: bool = False

    @abstractmethod
    def distribution(self, node: Node) -> Distribution:
        """What to draw from at ``node``.

        Whatever a sampler remembers must be a function of ``node.tokens`` (and of the logits along it), because under
        speculation it is asked about places that may never be committed.
        """

    def draft_probs(self, logits: Tensor, tokens: list[int], branch: Branch) -> Tensor:
        """``[V]`` distribution for a draft model to draw from.

        Any choice is exact; one that follows :meth:`distribution` is accepted most often.
        """
        return torch.softmax(logits.float(), dim=-1)


class Constraint(Part, ABC):
    """What is allowed next? Only :meth:`allowed` has to be written.

    Whatever a constraint says must be a function of the text that it is given (and of ``branch.limit`` and
    ``branch.stops``), because under speculation it is asked about places that may never be committed. Text means
    ``tokens[branch.prompt_length:]``; the prompt is not judged. What is drawn is the model's distribution with the
    forbidden tokens taken out and the rest renormalised, token by token.
    """

    @abstractmethod
    def allowed(self, branch: Branch, tokens: list[int]) -> Tensor | None:
        """``[V]`` bool mask of the tokens that may follow ``tokens``; ``None`` if all may."""

    def permits(self, branch: Branch, tokens: list[int], candidates: Sequence[int]) -> list[bool]:
        """Which of some tokens may follow ``tokens``: what the mask says, for whoever can tell it without one."""
        mask = self.allowed(branch, tokens)
        return [mask is None or bool(mask[token]) for token in candidates]

    def prune(self, branch: Branch, draft: Draft) -> Draft:
        """What of a draft of fixed candidates may stand at all; refused branches are not scored.

        Where a token is forced, no other is worth scoring.
        """
        tree, kept = draft.tree, []
        alive = {ROOT: True}
        children: dict[int, list[int]] = {}
        for node, parent in enumerate(tree.parent_list):
            children.setdefault(parent, []).append(node)
        for node, parent in enumerate(tree.parent_list):
            if node not in alive:  # the first child of its parent
                family = children[parent]
                alive.update(dict.fromkeys(family, False))
                if alive[parent]:
                    text = branch.tokens + tree.path_tokens(parent)
                    tokens = [tree.token_list[child] for child in family]
                    forced = self.forced(branch, text)
                    stands = [t == forced[0] for t in tokens] if forced else self.permits(branch, text, tokens)
                    alive.update(zip(family, stands, strict=True))
            if alive[node]:
                kept.append(node)
            elif draft.entered is not None:
                break  # Of such a draft only leading nodes can be kept.
        return draft if len(kept) == len(tree) else draft.select(kept)

    def forced(self, branch: Branch, tokens: list[int]) -> list[int]:
        """Tokens that follow ``tokens`` without asking the model; empty if it has a choice.

        The rest of an answer must be the answer after its first token: ``forced(t)[1:] == forced(t + forced(t)[:1])``.
        """
        return []

    def adjust(self, branch: Branch, tokens: list[int], logits: Tensor) -> Tensor:
        """``[V]`` logits to go on with, from those that the model gave after ``tokens``; asked before the mask.

        What is given must not be written into.
        """
        return logits

    def complete(self, branch: Branch, tokens: list[int]) -> bool | None:
        """Whether the text may end after ``tokens`` (which hold no stop token); ``None`` if there is no telling."""
        return None

    def reward(self, branch: Branch, tokens: list[int]) -> float | None:
        """How good the text is that ends with ``tokens``, for searches: higher is better. ``None`` if there is no
        telling."""
        return None

    def prepare(self, branch: Branch, draft: Draft) -> None:
        """Called when a draft is about to be scored: what will be asked may be computed while the model runs."""


class ConstrainedSampler(Sampler):
    """A sampler as drafters see it under a constraint: what is drawn for a draft is drawn from what is allowed.

    Verification is exact for whatever a draft was drawn from, so this only saves refusals.
    """

    def __init__(self, sampler: Sampler, constraint: Constraint, vocab_size: int) -> None:
        super().__init__(sampler.settings)
        self.sampler = sampler
        self.constraint = constraint
        self.vocab_size = vocab_size
        self.deterministic = sampler.deterministic
        self.looks_ahead = sampler.looks_ahead

    def distribution(self, node: Node) -> Distribution:
        logits, forced = constrained(self.constraint, node.branch, node.tokens, node.logits)
        if forced is not None:
            return Distribution.point(forced)
        if logits is None:
            return self.sampler.distribution(node)
        return self.sampler.distribution(Node(node.branch, node.index, logits, node.walk, node.tokens))

    def draft_probs(self, logits: Tensor, tokens: list[int], branch: Branch) -> Tensor:
        if len(logits) != self.vocab_size:
            return self.sampler.draft_probs(logits, tokens, branch)  # Tokens of another vocabulary.
        masked, forced = constrained(self.constraint, branch, tokens, logits)
        if forced is not None:
            return Distribution.point(forced).dense(self.sampler.draft_probs(logits, tokens, branch))
        # A draft model that knows only some tokens may know none that is allowed.
        known = masked is not None and bool((masked > -torch.inf).any())
        return self.sampler.draft_probs(masked if masked is not None and known else logits, tokens, branch)


def constrained(
    constraint: Constraint, branch: Branch, tokens: list[int], logits: Tensor
) -> tuple[Tensor | None, int | None]:
    """``[V]`` logits after ``tokens`` as a constraint has them, and the token that it forces, if it does.

    The logits are ``None`` if no token is possible.
    """
    forced = constraint.forced(branch, tokens)
    if forced:
        only = torch.full_like(logits, -torch.inf)
        only[forced[0]] = logits[forced[0]].clamp_min(torch.finfo(logits.dtype).min)
        return only, forced[0]
    logits = constraint.adjust(branch, tokens, logits)
    allowed = constraint.allowed(branch, tokens)
    if allowed is None:
        return logits, None
    if not _any(allowed):
        return None, None
    return _masked(logits, allowed), None


_NEGATIVE_INFINITY = np.float32(-np.inf).view(np.int32)


def _any(allowed: Tensor) -> bool:
    # torch would wake its threads for it.
    return bool(allowed.numpy().any() if allowed.device.type == "cpu" else allowed.any())


def _masked(logits: Tensor, allowed: Tensor) -> Tensor:
    """``[V]`` logits, ``-inf`` where they are not allowed."""
    if logits.dtype != torch.float32 or logits.device.type != "cpu":
        return torch.where(allowed.to(logits.device), logits, -torch.inf)
    # Chosen bit by bit, without a branch a token: several times as fast.
    keep = allowed.numpy().astype(np.int32)
    np.negative(keep, out=keep)
    found = logits.numpy().view(np.int32) & keep
    np.invert(keep, out=keep)
    keep &= _NEGATIVE_INFINITY
    found |= keep
    return torch.from_numpy(found.view(np.float32))


# -- verifying ----------------------------------------------------------------------------------------------------


class Walk:
    """A scored draft, as verifiers walk it: distributions at nodes, computed when first asked for."""

    def __init__(
        self, branch: Branch, draft: Draft, scores: Scores, offset: int, sampler: Sampler, constraint: Constraint | None
    ) -> None:
        self.branch = branch
        self.draft = draft
        self.rng = branch.rng
        self._scores = scores
        self._offset = offset
        self._sampler = sampler
        self._constraint = constraint
        self._distributions: dict[int, Distribution] = {}
        self._forced: dict[int, int] = {}

    @property
    def tree(self) -> TokenTree:
        return self.draft.tree

    def logits(self, node: int) -> Tensor:
        """``[V]`` raw logits after ``node`` of the draft; ``-1`` is the end of the committed text.

        ``-1 - i`` is the place ``i`` tokens before that, as far as it is scored in this step (pending, and asked for by
        a part that observes the prompt).
        """
        if node == ROOT and self._offset == 0:
            assert self.branch.carry is not None
            return self.branch.carry
        return self._scores.at(self._offset + node)

    def constrained_logits(self, node: int) -> Tensor:
        """``[V]`` logits after ``node``, forbidden tokens at ``-inf``."""
        return self._node(node).logits

    def _node(self, node: int) -> Node:
        place = Node(self.branch, node, self.logits(node), self)
        if self._constraint is not None:
            logits, forced = constrained(self._constraint, self.branch, place.tokens, place.logits)
            if logits is None:
                if not self.branch.stops and self._constraint.complete(self.branch, place.tokens):
                    raise Ended(node)
                raise DeadEnd(
                    f"the constraint {_called(self._constraint)} leaves no token after "
                    f"{len(place.tokens) - self.branch.prompt_length} generated ones: "
                    "the model cannot write what it asks for next, or it asks for what is impossible"
                )
            place.logits = logits
            if forced is not None:
                self._forced[node] = forced
        return place

    def distribution(self, node: int) -> Distribution:
        """The sampler's distribution of the token after ``node``; a point where a constraint leaves no choice."""
        known = self._distributions.get(node)
        if known is None:
            known = self._best(node)
        if known is None:
            place = self._node(node)
            forced = self._forced.get(node)
            known = self._sampler.distribution(place) if forced is None else Distribution.point(forced)
        self._distributions[node] = known
        return known

    def _best(self, node: int) -> Distribution | None:
        """The largest logit, where that is what the sampler takes and a constraint permits it; it needs no mask."""
        if self._constraint is None or not self._sampler.greedy:
            return None
        place = Node(self.branch, node, self.logits(node), self)
        if self._constraint.forced(self.branch, place.tokens):
            return None
        logits = self._constraint.adjust(self.branch, place.tokens, place.logits)
        best = Distribution.best(logits)
        assert best.token is not None
        return best if self._constraint.permits(self.branch, place.tokens, [best.token])[0] else None

    def seen(self, node: int) -> Distribution | None:
        """The distribution after ``node`` if the verifier asked for it."""
        return self._distributions.get(node)


def _called(part: Part) -> str:
    return part.card.slug if hasattr(part, "card") else type(part).__name__


@dataclass
class Verdict:
    """What stands: draft nodes from the top, then one more token chosen after them."""

    path: list[int]
    token: int


class Verifier(Part, ABC):
    """Which guesses stand?

    Attributes:
        judges: the kinds of drafts that it judges (without bias, if it is lossless).
        default_for: the kinds that it judges if no other verifier is asked for.
        deterministic_only: whether it is meant for samplers whose distributions are points.
    """

    judges: frozenset[Proposal] = frozenset()
    default_for: frozenset[Proposal] = frozenset()
    deterministic_only: bool = False

    @abstractmethod
    def verify(self, walk: Walk) -> Verdict:
        """Walk the draft from the root. Random numbers come from ``walk.rng``."""


def match_target(walk: Walk) -> Verdict:
    """Draw from the target and look the token up in the tree; go on there, or stop with the token.

    Exact for every tree that was fixed before the draw: the tokens are the target's own draws, the tree only decides
    how many of them one forward pass pays for.
    """
    node = ROOT
    while True:
        token = walk.distribution(node).draw(walk.rng)
        child = walk.tree.child(node, token)
        if child is None:
            return Verdict(walk.tree.path(node), token)
        node = child


# -- keeping and branching ----------------------------------------------------------------------------------------


class CachePolicy(Part, ABC):
    """What do we remember?"""

    @abstractmethod
    def shrink(self, branch: Branch) -> None:
        """Called after every commit. Needs a model with cache editing."""


@dataclass(frozen=True)
class Move:
    """One branch of the next round: a copy of branch ``source``.

    Args:
        source: its number.
        keep: generated tokens that it is cut to; ``None`` leaves it uncut.
        then: tokens that are committed behind them without asking the model; they are pending. A text that a stop
            token among them ends, as the last one, is finished.
    """

    source: int
    keep: int | None = None
    then: tuple[int, ...] = ()


class Search(Part, ABC):
    """Which branches live?

    Attributes:
        lockstep: whether all branches must gain exactly one token a step, which rules out drafting.
    """

    lockstep: bool = True

    @property
    @abstractmethod
    def width(self) -> int:
        """Branches at the start."""

    def begin(self, request: int, rng: torch.Generator) -> None:
        """A request starts; ``rng`` is the search's own source of random numbers for it."""

    @abstractmethod
    def advance(self, branches: Sequence[Branch]) -> list[Move] | None:
        """Asked after every step: the branches of the next round, or ``None`` to leave them as they are.

        When all are finished, ``None`` ends the request.
        """

    @abstractmethod
    def select(self, branches: Sequence[Branch]) -> int:
        """Which finished branch is the answer."""


# -- reading ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FinishedText:
    """A finished text, as readers see it.

    Args:
        index, branch: which request, which of its branches.
        prompt: what the model read, an encoder's text included.
        tokens: generated, a stop token included.
        text: without stop tokens, and without a stop string; empty if the model has no tokenizer.
        spans: for every token the characters ``[start, end)`` of ``text`` that it writes, ``(n, n)`` for none. Tokens
            that write one character together have it in common.
        log_probs: of every token, in nats, under the model's own distribution (temperature 1, nothing masked); empty
            unless the reader :attr:`~Part.reads_log_probs`.
        reason: why it ended; see :class:`~unspool.core.events.Finished`.
        complete: whether a constraint calls it complete.
    """

    index: int
    branch: int
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    text: str
    spans: tuple[tuple[int, int], ...]
    log_probs: tuple[float, ...]
    reason: str
    complete: bool | None = None


@dataclass(frozen=True)
class Reading:
    """What a reader makes of the finished texts of a request.

    Args:
        text: for people.
        data: the same for programs, as JSON can write it.
        choice: the place, in what it was given, of the text that is the answer; ``None`` leaves it to the search.
    """

    text: str
    data: Mapping[str, Any]
    choice: int | None = None


class Reader(Part, ABC):
    """What do we make of a finished output?

    It is asked once a request, when all of its branches have ended; without a search there is one. One that chooses
    among several texts changes the output, and is not lossless; one that only says something about them is.
    """

    @abstractmethod
    def read(self, outputs: Sequence[FinishedText], chosen: int) -> Reading:
        """What is made of them; ``chosen`` is the place of the one that the search would answer with."""
