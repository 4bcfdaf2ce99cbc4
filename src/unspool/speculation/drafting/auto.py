"""Auto: the drafter of those who do not want to choose one, and the default.

It asks several drafters that cost next to nothing (by default prompt lookup and token recycling), merges what they
propose into one tree, and sends as much of it as pays: the ``n`` nodes with the best chances, for the ``n`` that
maximises the expected tokens per second,

    (1 + sum of the chances of the n nodes) / (measured seconds of a pass over 1 + n tokens).

The chances are the products of acceptance rates along a path. They are learned from the text as it grows: the tokens
that are committed judge every candidate, whether it was sent or not, so all arms are compared at every step and no step
is spent on trying one out (a bandit with full information). The seconds are measured once for a model on a machine and
kept. Where no candidate pays for itself nothing is sent, which is plain decoding.

Asking costs time as well. Every drafter has an account on every text, in seconds: what it saved, less what its
candidates and its own work took. One whose account is empty sleeps for some steps, longer each time, and is tried
again.

Lossless: all candidates are fixed before the target is asked, and are matched with its own choices.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from unspool.core.branch import Branch
from unspool.core.cards import Card, Kind, settings
from unspool.core.errors import Incompatible
from unspool.core.learned import Learned
from unspool.core.registry import register
from unspool.core.sockets import Budget, Constraint, Draft, Observation, Proposal, Setup
from unspool.core.tree import ROOT, TokenTree
from unspool.models.costs import PassCosts, pass_costs
from unspool.speculation.drafting._acceptance import AcceptanceRates, Judge
from unspool.speculation.drafting._arms import Arms

_FEW = 8
# Of accounts, in passes over one token: what an arm may lose before it sleeps, and in a later trial; of naps, in steps.
_CREDIT, _TRIAL = 1.0, 0.25
_SHORT, _LONG = 8, 64
# What a draft has to promise over none.
_MARGIN = 1.03


@settings
class AutoSettings:
    """What to ask, and how much to send at most."""

    arms: Annotated[
        tuple[str, ...],
        Field(description="the drafters that are asked, as slug or slug:name=value:...; all of fixed candidates"),
    ] = ("prompt-lookup:longest=5:tokens=16", "token-recycling:nodes=31:read_prompt=false")
    nodes: Annotated[
        int | None,
        Field(ge=1, description="draft tokens in all, per step; by default what pays by the measured costs of a pass"),
    ] = None
    most: Annotated[int, Field(ge=1, description="draft tokens in all, per step, that are ever considered")] = 48


@dataclass(frozen=True)
class _Ranked:
    """A tree of candidates, their chances ``[N]``, and which arm named each of them first."""

    tree: TokenTree
    chances: list[float]
    arms: list[int]


class _Worth:
    """One arm's account on one text, in units of a pass over one token.

    Attributes:
        awake: whether it is asked.
    """

    __slots__ = ("_balance", "_left", "_nap", "_pass", "awake")

    def __init__(self, seconds: float | None) -> None:
        self._pass = seconds
        self._balance = _CREDIT
        self._nap = _SHORT
        self._left = 0
        self.awake = True

    def spend(self, seconds: float) -> None:
        if self._pass is not None:
            self._balance -= seconds / self._pass

    def step(self, gain: float) -> None:
        """A step is over in which it gained so many passes, less what its candidates cost."""
        if not self.awake:
            self._left -= 1
            self.awake = self._left <= 0
            return
        self._balance = min(self._balance + gain, 2 * _CREDIT)
        if self._balance >= _CREDIT:
            self._nap = _SHORT
        elif self._balance < 0:
            self.awake, self._left, self._balance = False, self._nap, _TRIAL
            self._nap = min(2 * self._nap, _LONG)


class _Text:
    """What is kept of one text.

    Attributes:
        judge: of the candidates.
        worth: of every arm.
        sent: the arm of every candidate that was sent.
    """

    __slots__ = ("judge", "sent", "worth")

    def __init__(self, judge: Judge, arms: int, costs: PassCosts | None) -> None:
        self.judge = judge
        self.worth = [_Worth(None if costs is None else costs.of(1)) for _ in range(arms)]
        self.sent: list[int] = []

    def settle(self, path: Sequence[int], costs: PassCosts) -> None:
        """Book what the candidates on ``path`` saved, and what all of them cost."""
        gains = [0.0] * len(self.worth)
        if self.sent:
            price = (costs.ratio(1 + len(self.sent)) - 1) / len(self.sent)
            for arm in self.sent:
                gains[arm] -= price
            for node in path:
                gains[self.sent[node]] += 1
            self.sent = []
        for worth, gain in zip(self.worth, gains, strict=True):
            worth.step(gain)


@register(
    Card(
        slug="auto",
        name="Automatic",
        kind=Kind.DRAFTER,
        summary="Mixes drafters that cost nothing, and sends as much of their guesses as pays on this machine.",
        lossless=True,
    ),
    AutoSettings,
)
class Auto(Arms):
    """Several drafters in one tree, cut to what pays.

    Attributes:
        rates: how often candidates of each class come true, over all texts.
        costs: measured seconds of a pass; ``None`` while ``nodes`` is set.
    """

    settings: AutoSettings

    def __init__(self, settings: AutoSettings | None = None) -> None:
        settings = settings or AutoSettings()
        super().__init__(settings, settings.arms)
        if self.proposal is not Proposal.POINT:
            raise Incompatible(
                f"auto compares candidates that are fixed; {', '.join(self.names)} propose {self.proposal.value}"
            )
        self.rates = AcceptanceRates(len(self.arms))
        self.costs: PassCosts | None = None
        self._constraint: Constraint | None = None
        self._asked = min(_FEW, self.settings.most)

    @property
    def learned(self) -> dict[str, Learned]:
        return {"auto": self.rates, **super().learned}

    def bind(self, setup: Setup) -> None:
        super().bind(setup)
        self.rates.bind(setup.target.vocab_size, setup.target.name)
        self._constraint = setup.constraint
        self.costs = pass_costs(setup.target) if self.settings.nodes is None else None

    def propose(self, branches: Sequence[Branch], budgets: Sequence[Budget]) -> list[Draft]:
        most = Budget(self._asked if self.settings.nodes is None else self.settings.nodes)
        limits = [budget & most for budget in budgets]
        texts = [self._text(branch) for branch in branches]
        drafts: list[list[Draft]] = [[Draft.empty()] * len(self.arms) for _ in branches]
        for arm in range(len(self.arms)):
            asked = [place for place, text in enumerate(texts) if text.worth[arm].awake]
            if not asked:
                continue
            began = time.perf_counter()
            found = self.arms[arm].propose([branches[i] for i in asked], [limits[i] for i in asked])
            spent = (time.perf_counter() - began) / len(asked)
            for place, draft in zip(asked, found, strict=True):
                if self._constraint is not None:
                    # What is refused must not take the place of what may stand.
                    draft = self._constraint.prune(branches[place], draft)
                drafts[place][arm] = draft.limited(Budget(depth=limits[place].depth))
                texts[place].worth[arm].spend(spent)
        ranked = []
        for branch, text, of, limit in zip(branches, texts, drafts, limits, strict=True):
            began = time.perf_counter()
            ranked.append(self._rank(branch, text, of, limit.nodes or 0))
            awake = [worth for worth in text.worth if worth.awake]
            for worth in awake:
                worth.spend((time.perf_counter() - began) / len(awake))
        sizes = self._sizes([one.chances for one in ranked])
        self._ask_for(max(sizes, default=0))
        answers = []
        for text, one, size in zip(texts, ranked, sizes, strict=True):
            text.sent = one.arms[:size]
            answers.append(Draft(one.tree.select(range(size)), confidence=one.chances[:size]))
        return answers

    def observe(self, step: Observation) -> None:
        text = self._text(step.branch)
        for arm, worth in zip(self.arms, text.worth, strict=True):
            if worth.awake:
                began = time.perf_counter()
                arm.observe(step)
                worth.spend(time.perf_counter() - began)
        if self.costs is not None:
            text.settle(step.draft.made(step.path), self.costs)

    def _text(self, branch: Branch) -> _Text:
        text: _Text | None = branch.memo.get(self)
        if text is None:
            text = branch.memo[self] = _Text(Judge(self.rates), len(self.arms), self.costs)
        return text

    def _ask_for(self, sent: int) -> None:
        """Ask for fewer candidates where few are sent: ranking what is thrown away costs time as well."""
        if sent > 0.75 * self._asked:
            self._asked = min(2 * self._asked, self.settings.most)
        else:
            self._asked = max(int(0.97 * self._asked), min(_FEW, self.settings.most))

    # -- chances ---------------------------------------------------------------------------------------------------

    def _rank(self, branch: Branch, text: _Text, drafts: list[Draft], most: int) -> _Ranked:
        """All candidates of a branch as one tree, in falling order of their chances.

        A node's chance is that of its path, so no node stands before its parent. Models that score only chains get the
        one chain of which the most tokens are expected.
        """
        if not any(draft.tree for draft in drafts):
            return _Ranked(TokenTree.empty(), [], [])
        judge = text.judge
        judge.read(branch.tokens)
        lists: list[list[float]] = []
        for arm, draft in enumerate(drafts):
            classes = self.rates.classes(arm, draft)
            judge.remember(len(branch.tokens), draft.tree, classes)
            lists.append(judge.rates(classes))
        if self.chains_only:
            return self._best_chain(drafts, lists, most)

        # The trie of all trees; a node that several propose has the best of its chances.
        tokens: list[int] = []
        parents: list[int] = []
        chances: list[float] = []
        named: list[int] = []
        known: dict[tuple[int, int], int] = {}
        for arm, (draft, rates) in enumerate(zip(drafts, lists, strict=True)):
            places: list[int] = []
            for token, parent, rate in zip(draft.tree.token_list, draft.tree.parent_list, rates, strict=True):
                above = ROOT if parent == ROOT else places[parent]
                chance = rate * (chances[above] if above != ROOT else 1.0)
                node = known.get((above, token))
                if node is None:
                    node = known[above, token] = len(tokens)
                    tokens.append(token)
                    parents.append(above)
                    chances.append(chance)
                    named.append(arm)
                elif chance > chances[node]:
                    chances[node] = chance
                places.append(node)
        # A parent's chance may have grown after its child's was set, never the other way round; ties go to the elder.
        order = sorted(range(len(tokens)), key=lambda node: (-chances[node], node))[:most]
        place = {ROOT: ROOT} | {node: new for new, node in enumerate(order)}
        tree = TokenTree([tokens[node] for node in order], [place[parents[node]] for node in order])
        return _Ranked(tree, [chances[node] for node in order], [named[node] for node in order])

    def _best_chain(self, drafts: list[Draft], lists: list[list[float]], most: int) -> _Ranked:
        best = _Ranked(TokenTree.empty(), [], [])
        for arm, (draft, rates) in enumerate(zip(drafts, lists, strict=True)):
            chances, chance = [], 1.0
            for rate in rates[:most]:
                chance *= rate
                chances.append(chance)
            if sum(chances) > sum(best.chances):
                best = _Ranked(draft.tree.select(range(len(chances))), chances, [arm] * len(chances))
        return best

    # -- sizes -----------------------------------------------------------------------------------------------------

    def _sizes(self, chances: list[list[float]]) -> list[int]:
        """How many of its candidates each branch sends.

        A batch is padded to its longest row, so a pass costs what as many rows of that length cost; what fits below
        that length is sent.
        """
        if self.costs is None:
            return [len(of) for of in chances]
        best, best_size = 0.0, 0
        expected = float(len(chances))
        for size in range(max(map(len, chances), default=0) + 1):
            if size:
                expected += sum(of[size - 1] for of in chances if len(of) >= size)
            speed = expected / self.costs.of(len(chances) * (1 + size))
            # What a draft costs beyond its pass is not in the table; and a tie is left to the smaller draft.
            if speed > best * (_MARGIN if best_size == 0 else 1 + 1e-9):
                best, best_size = speed, size
        return [min(best_size, len(of)) for of in chances]
