"""Auto: the drafter of those who do not want to choose one, and the default.

It asks several drafters that cost next to nothing (by default prompt lookup and token recycling), merges what they
propose into one tree, and sends as much of it as pays: the ``n`` nodes with the best chances, for the ``n`` that
maximises the expected tokens per second,

    (1 + sum of the chances of the n nodes) / (measured seconds of a pass over 1 + n tokens).

The chances are the products of acceptance rates along a path. They are learned from the text as it grows: the tokens
that are committed judge every candidate, whether it was sent or not, so all arms are compared at every step and no step
is spent on trying one out (a bandit with full information). The seconds are measured once for a model on a machine and
kept. Where no candidate pays for itself nothing is sent, which is plain decoding.

Lossless: all candidates are fixed before the target is asked, and are matched with its own choices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from unspool.core.branch import Branch
from unspool.core.cards import Card, Kind, settings
from unspool.core.errors import Incompatible
from unspool.core.learned import Learned
from unspool.core.registry import register
from unspool.core.sockets import Budget, Draft, Proposal, Setup
from unspool.core.tree import ROOT, TokenTree
from unspool.models.costs import PassCosts, pass_costs
from unspool.speculation.drafting._acceptance import AcceptanceRates, Judge
from unspool.speculation.drafting._arms import Arms

_FEW = 8


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
        self._asked = min(_FEW, self.settings.most)

    @property
    def learned(self) -> dict[str, Learned]:
        return {"auto": self.rates, **super().learned}

    def bind(self, setup: Setup) -> None:
        super().bind(setup)
        self.rates.bind(setup.target.vocab_size, setup.target.name)
        self.costs = pass_costs(setup.target) if self.settings.nodes is None else None

    def propose(self, branches: Sequence[Branch], budgets: Sequence[Budget]) -> list[Draft]:
        most = Budget(self._asked if self.settings.nodes is None else self.settings.nodes)
        limits = [budget & most for budget in budgets]
        proposed = [arm.propose(branches, limits) for arm in self.arms]
        ranked = []
        for place, (branch, limit) in enumerate(zip(branches, limits, strict=True)):
            drafts = [drafts[place].limited(Budget(depth=limit.depth)) for drafts in proposed]
            ranked.append(self._rank(branch, drafts, limit.nodes or 0))
        sizes = self._sizes([chances for _, chances in ranked])
        self._ask_for(max(sizes, default=0))
        return [
            Draft(tree.select(range(size)), confidence=chances[:size])
            for (tree, chances), size in zip(ranked, sizes, strict=True)
        ]

    def _ask_for(self, sent: int) -> None:
        """Ask for fewer candidates where few are sent: ranking what is thrown away costs time as well."""
        if sent > 0.75 * self._asked:
            self._asked = min(2 * self._asked, self.settings.most)
        else:
            self._asked = max(int(0.97 * self._asked), min(_FEW, self.settings.most))

    # -- chances ---------------------------------------------------------------------------------------------------

    def _rank(self, branch: Branch, drafts: list[Draft], most: int) -> tuple[TokenTree, list[float]]:
        """All candidates of a branch as one tree, in falling order of their chances ``[N]``, and those.

        A node's chance is that of its path, so no node stands before its parent. Models that score only chains get the
        one chain of which the most tokens are expected.
        """
        judge: Judge | None = branch.memo.get(self)
        if judge is None:
            judge = branch.memo[self] = Judge(self.rates)
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
        known: dict[tuple[int, int], int] = {}
        for draft, rates in zip(drafts, lists, strict=True):
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
                elif chance > chances[node]:
                    chances[node] = chance
                places.append(node)
        # A parent's chance may have grown after its child's was set, never the other way round; ties go to the elder.
        order = sorted(range(len(tokens)), key=lambda node: (-chances[node], node))[:most]
        place = {ROOT: ROOT} | {node: new for new, node in enumerate(order)}
        tree = TokenTree([tokens[node] for node in order], [place[parents[node]] for node in order])
        return tree, [chances[node] for node in order]

    def _best_chain(self, drafts: list[Draft], lists: list[list[float]], most: int) -> tuple[TokenTree, list[float]]:
        best: tuple[TokenTree, list[float]] = (TokenTree.empty(), [])
        for draft, rates in zip(drafts, lists, strict=True):
            chances, chance = [], 1.0
            for rate in rates[:most]:
                chance *= rate
                chances.append(chance)
            if sum(chances) > sum(best[1]):
                best = (draft.tree.select(range(len(chances))), chances)
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
            # A tie is left to the smaller draft.
            if speed > best * (1 + 1e-9):
                best, best_size = speed, size
        return [min(best_size, len(of)) for of in chances]
