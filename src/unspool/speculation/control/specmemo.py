"""SpecMemo: speculation within a budget of bytes.

Before a pass the bytes that it will hold are predicted from the model's shape: keys and values of the text and of the
candidates, masks, logits of the places that can be accepted, and what a layer works with. The tree is the largest that
fits; it shrinks as the text grows, down to plain decoding. Caches grow by small blocks instead of being reserved, the
candidates of every pass are written over those of the last, and a ledger counts all of it and refuses a byte too many,
so that the budget holds whatever the prediction says.

Which candidates are worth their bytes is counted on the first requests: how often the candidate of a rank at a depth
is what comes next. The product along a path is a node's value; nodes are kept by value. Once calibrated, no larger tree
is taken than needed: the smallest whose expected speed-up, ``A(N) T(0) / T(N)`` with ``A`` the expected tokens and
``T`` the measured seconds of a pass, is within 4% of the best, and none at all where the best is below 1.

Paper: SpecMemo: Speculative Decoding is in Your Pocket, 2025. Only its abstract was at hand: the formulas, the block of
32 positions and the order of the choice are a natural reading of it, not the paper's text.

Lossless: nodes are dropped by their place in the tree, a younger sibling before an elder one; what was drawn there is
never looked at.

What it does not count: weights, what the sampler makes of the logits, and what a drafter keeps (the cache of a draft
model, say). What was calibrated is kept from request to request, and can be saved.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal, cast

import torch
from pydantic import ByteSize, Field
from torch import Tensor

from unspool.core.branch import Branch
from unspool.core.cards import Card, Kind, settings
from unspool.core.errors import Incompatible, WeightsError
from unspool.core.learned import Learned
from unspool.core.model import Cache, Capability, LanguageModel
from unspool.core.registry import register
from unspool.core.sockets import Budget, Controller, Draft, Observation, Setup
from unspool.core.tree import ROOT, TokenTree
from unspool.models.costs import PassCosts, pass_costs
from unspool.models.kv import KVCache, KVPool
from unspool.models.memory import BudgetExceeded, Counted, Footprint, Ledger, readable

_DEPTHS, _RANKS = 16, 16
# Before anything is counted: half of the first candidates are right, half as many of the next ones each.
_PRIOR, _PRIOR_WEIGHT = 0.5, 2.0
# Prompts are read in pieces of a power of two; below this nothing is saved.
_LARGEST_CHUNK = 256


@settings
class SpecMemoSettings:
    """Without a budget it only counts, and takes no larger tree than pays."""

    budget: Annotated[
        ByteSize | None,
        Field(description="bytes for caches, masks, logits and layers, as 64MB or 64MiB; none for no limit"),
    ] = None
    block: Annotated[int, Field(ge=1, description="positions by which caches grow")] = 32
    nodes: Annotated[int, Field(ge=0, description="nodes of a draft tree, at most")] = 64
    calibration: Annotated[
        int, Field(ge=0, description="requests on which acceptance is counted and no tree cut that fits")
    ] = 20
    share: Annotated[float, Field(gt=0, le=1, description="of the best expected speed-up that is enough")] = 0.96
    costs: Annotated[
        Literal["measured", "flat"], Field(description="what a wider pass costs: measured once here, or nothing more")
    ] = "measured"


class Places(Learned):
    """How often the candidate of a rank at a depth came true.

    Attributes:
        hits, trials: ``[16, 16]`` by depth and rank, what lies deeper or is of a higher rank in the last ones.
        requests: that were counted.
    """

    kind: ClassVar[str] = "acceptance by place"

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.hits = torch.zeros(_DEPTHS, _RANKS, dtype=torch.int64)
        self.trials = torch.zeros(_DEPTHS, _RANKS, dtype=torch.int64)
        self.requests = 0

    def rates(self) -> Tensor:
        """``[16, 16]`` by depth and rank."""
        prior = _PRIOR ** torch.arange(1, _RANKS + 1, dtype=torch.float64)
        return (self.hits + _PRIOR_WEIGHT * prior) / (self.trials + _PRIOR_WEIGHT)

    def count(self, tree: TokenTree, tokens: Sequence[int]) -> None:
        """Judge the candidates of ``tree`` along what came."""
        children = tree.children()
        for depth, token in enumerate(tokens):
            came = None
            for rank, child in enumerate(children):
                place = min(depth, _DEPTHS - 1), min(rank, _RANKS - 1)
                self.trials[place] += 1
                if came is None and tree.token_list[child] == token:
                    self.hits[place] += 1
                    came = child
            if came is None:
                return
            children = tree.children(came)

    def arrays(self) -> dict[str, Tensor]:
        return {"hits": self.hits, "trials": self.trials, "requests": torch.tensor(self.requests)}

    def restore(self, arrays: Mapping[str, Tensor]) -> None:
        shapes = {name: tuple(array.shape) for name, array in arrays.items()}
        if shapes != {"hits": (_DEPTHS, _RANKS), "trials": (_DEPTHS, _RANKS), "requests": ()}:
            raise WeightsError(f"acceptance by place has hits and trials of {_DEPTHS} x {_RANKS}; found {shapes}")
        self.hits, self.trials = arrays["hits"].to(torch.int64), arrays["trials"].to(torch.int64)
        self.requests = int(arrays["requests"])

    @property
    def nbytes(self) -> int:
        return self.hits.nbytes + self.trials.nbytes


@register(
    Card(
        slug="specmemo",
        name="SpecMemo",
        kind=Kind.CONTROLLER,
        summary="Keeps caches, trees and logits within a budget of bytes; drafts shrink as the text grows.",
        paper="SpecMemo: Speculative Decoding is in Your Pocket, 2025",
        claim="96% of the speed of speculation with 65% less memory for generation",
        lossless=True,
        needs=frozenset({Capability.MEMORY_BUDGET}),
    ),
    SpecMemoSettings,
)
class SpecMemo(Controller):
    """The largest tree that fits and pays.

    Attributes:
        ledger: of the run that began last.
        places: what was calibrated.
    """

    settings: SpecMemoSettings

    def __init__(self, settings: SpecMemoSettings | None = None) -> None:
        super().__init__(settings)
        self.places = Places()
        self.ledger = Ledger(self.settings.budget)
        self._live: dict[int, Branch] = {}
        self._costs: PassCosts | None = None

    @property
    def learned(self) -> Mapping[str, Learned]:
        return {self.card.slug: self.places}

    def bind(self, setup: Setup) -> None:
        self._all_logits = setup.observes_prompt
        self.sizes: Footprint = cast(Counted, setup.target).footprint(self.settings.block)
        if self.settings.costs == "measured" and self.settings.nodes:
            self._costs = pass_costs(setup.target)

    # -- memory ----------------------------------------------------------------------------------------------------

    def start(self, model: LanguageModel, prompts: Sequence[Sequence[int]]) -> list[tuple[Cache, list[int]]]:
        self.chunk = self._chunk(len(prompts), max(map(len, prompts)))
        with cast(Counted, model).counted(Ledger(self.settings.budget), self.settings.block):
            begun = model.start(prompts)
        # Of a conversation that goes on, the cache and its ledger are those of its beginning.
        ledger = _pool(begun[0][0]).ledger
        if ledger is None:
            raise Incompatible(
                f"{self.card.slug}: the conversation began without it, and nobody counted its cache: close it first"
            )
        ledger.limit = self.settings.budget
        self.ledger = ledger
        return begun

    def _chunk(self, rows: int, longest: int) -> int:
        """Prompt tokens for one pass: as many as fit, a power of two.

        Raises:
            BudgetExceeded: if not even one by one they do.
        """
        chunk = _LARGEST_CHUNK
        while not self.fits(longest, rows=rows, width=min(chunk, longest)):
            if chunk == 1:
                needed = self.sizes.peak(rows, longest, 1, 1, self.sizes.room(longest - 1))
                raise BudgetExceeded(
                    f"{self.card.slug}: the budget is {readable(self.settings.budget or 0)}, and {rows} prompts of up "
                    f"to {longest} tokens need {readable(needed)} even without drafts: raise the budget, shorten the "
                    "prompt, or decode fewer prompts side by side"
                )
            chunk //= 2
        return chunk

    def fits(self, tokens: int, *, rows: int = 1, width: int = 1) -> bool:
        """Whether texts of so many tokens can be held, the last ``width`` of them entering in one pass, and decoded
        without drafts; asked before the turn of a conversation."""
        limit = self.settings.budget
        held = self.sizes.room(max(tokens - width, 0))
        places = width if self._all_logits else 1
        return limit is None or self.sizes.peak(rows, tokens, width, places, held) <= limit

    def predicted(self, nodes: int, branches: Sequence[Branch]) -> int:
        """Bytes that the next pass holds at most, if each of these branches brings a tree of ``nodes`` nodes."""
        pool = _pool(branches[0].cache)
        # What a sampler asked to see is a tree that nobody may cut.
        sizes = [len(branch.ahead) if branch.ahead is not None else nodes for branch in branches]
        pending = [len(branch.tokens) - branch.cache.length for branch in branches]
        ends = [len(branch.tokens) + size for branch, size in zip(branches, sizes, strict=True)]
        width = max(new + size for new, size in zip(pending, sizes, strict=True))
        places = width if self._all_logits else 1 + max(sizes)
        return self.sizes.peak(len(pool.owners), max(ends), width, places, pool.room)

    def affordable(self, branches: Sequence[Branch]) -> int:
        """Nodes of the largest tree that each of these branches, which are decoded side by side, may bring."""
        limit: int | None = self.settings.budget
        nodes = self.settings.nodes
        if limit is None or self.predicted(nodes, branches) <= limit:
            return nodes
        # More nodes never take less. Where not even none fit, none is all that can be done; the ledger will say so.
        fitting = bisect.bisect_right(range(nodes), limit, key=lambda count: self.predicted(count, branches))
        return max(fitting - 1, 0)

    # -- trees -----------------------------------------------------------------------------------------------------

    def budget(self, branch: Branch) -> Budget:
        self._live[id(branch)] = branch
        return Budget(nodes=self.affordable(self._beside(branch)))

    def _beside(self, branch: Branch) -> list[Branch]:
        """The live branches whose caches share memory with this one's, itself among them."""
        pool = _pool(branch.cache)
        return [other for other in self._live.values() if other.finished is None and _pool(other.cache) is pool]

    def allocate(self, branches: Sequence[Branch], drafts: Sequence[Draft]) -> list[Draft]:
        rates = self.places.rates().tolist()
        values = [node_values(draft, rates) for draft in drafts]
        for branch, draft in zip(branches, drafts, strict=True):
            branch.memo[self] = len(branch.tokens), draft.tree
        pays = self._worthwhile(values)
        afforded: dict[int, int] = {}
        kept = []
        for branch, draft, value in zip(branches, drafts, values, strict=True):
            pool = id(_pool(branch.cache))
            if pool not in afforded:
                # When they were drafted not all rows had asked; now all are known.
                afforded[pool] = self.affordable(self._beside(branch))
            kept.append(draft.select(_best(value, min(pays, afforded[pool]))))
        return kept

    def _worthwhile(self, values: Sequence[Sequence[float]]) -> int:
        """The smallest tree whose expected speed-up is near the best one."""
        most = max(map(len, values), default=0)
        if self.places.requests < self.settings.calibration or not most:
            return most
        # Expected tokens of a pass over all rows, with N nodes each.
        expected = torch.full((most + 1,), float(len(values)), dtype=torch.float64)
        for row in values:
            best = torch.tensor(sorted(row, reverse=True) + [0.0] * (most - len(row)), dtype=torch.float64)
            expected[1:] += best.cumsum(0)
        rows = len(values)
        prices = [1.0 if self._costs is None else self._costs.of(rows * (1 + n)) for n in range(most + 1)]
        speed = expected / torch.tensor(prices, dtype=torch.float64)
        return int((speed >= self.settings.share * speed.max()).nonzero()[0]) if speed.max() > speed[0] else 0

    # -- calibrating -----------------------------------------------------------------------------------------------

    def observe(self, step: Observation) -> None:
        at, tree = step.branch.memo.get(self, (0, TokenTree.empty()))
        # A row that was not asked in this step still has the tree of an earlier one.
        if at == len(step.branch.tokens) and self.places.requests < self.settings.calibration:
            self.places.count(tree, step.tokens)

    def release(self, branch: Branch) -> None:
        known = self._live.pop(id(branch), None) is not None
        if known and self.places.requests < self.settings.calibration:
            self.places.requests += 1
        super().release(branch)


def node_values(draft: Draft, rates: Sequence[Sequence[float]]) -> list[float]:
    """``[N]`` chance of every node to come true by its place, never above its parent's or an elder sibling's.

    Args:
        rates: by depth and rank.
    """
    tree = draft.tree
    ranks: dict[int, int] = {}
    elder: dict[int, float] = {}
    values: list[float] = []
    for node, (parent, depth) in enumerate(zip(tree.parent_list, tree.depths, strict=True)):
        rank = ranks[parent] = ranks.get(parent, -1) + 1
        above = 1.0 if parent == ROOT else values[parent]
        value = min(above * rates[min(depth, _DEPTHS - 1)][min(rank, _RANKS - 1)], elder.get(parent, 1.0))
        if draft.entered is not None and node:
            # Only leading nodes of such a draft can be kept.
            value = min(value, values[node - 1])
        elder[parent] = value
        values.append(value)
    return values


def _best(values: Sequence[float], count: int) -> list[int]:
    """The ``count`` nodes of the highest values, ascending; of equal ones the earlier, the parent or elder sibling."""
    return sorted(sorted(range(len(values)), key=lambda node: (-values[node], node))[:count])


def _pool(cache: Cache) -> KVPool:
    assert isinstance(cache, KVCache)
    return cache.pool
