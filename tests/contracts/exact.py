"""Tools to hold a decoder to an exact distribution: a fast toy, test drafters, enumerated choices, a test of fit."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from unittest import mock

import torch
from scipy import stats
from tests.toys import TableCache, TableModel
from torch import Tensor

from unspool.core.branch import Branch
from unspool.core.compose import Composition
from unspool.core.events import Finished
from unspool.core.scores import LOGITS, Request, Scores, Want
from unspool.core.sockets import Budget, Distribution, Draft, Drafter, Node, Proposal, Sampler, Verdict, Walk
from unspool.core.texts import Stop
from unspool.core.tree import ROOT, TokenTree


class FastTable(TableModel):
    """The table model, with one look-up for a whole batch; thousands of equal prompts run side by side."""

    def score(
        self, requests: Sequence[Request], want: Want = LOGITS, layers: Sequence[int] | None = None
    ) -> list[Scores]:
        self.forwards += 1
        before, last, counts = [], [], []
        for request in requests:
            cache, tree = request.cache, request.tree
            assert isinstance(cache, TableCache)
            assert cache.scratch[: request.known] == tree.token_list[: request.known]
            cache.scratch = list(tree.token_list)
            rows = list(range(request.known, len(tree))) if request.rows is None else request.rows
            root = cache.tokens[-1] if cache.tokens else self.vocab_size
            for node in rows:
                parent = tree.parent_list[node]
                before.append(root if parent == ROOT else tree.token_list[parent])
                last.append(tree.token_list[node])
            counts.append(rows)
        logits = self.table[torch.tensor(before, dtype=torch.int64), torch.tensor(last, dtype=torch.int64)]
        parts = logits.split([len(rows) for rows in counts])
        return [Scores(part, rows) for part, rows in zip(parts, counts, strict=True)]


class Softmax(Sampler):
    """The model's own distribution; with ``top`` only its most probable tokens, so that some have no probability."""

    def __init__(self, top: int | None = None) -> None:
        super().__init__()
        self.top = top

    def probs(self, logits: Tensor) -> Tensor:
        if self.top is not None:
            logits = logits.masked_fill(logits < logits.topk(self.top).values[-1], -torch.inf)
        return torch.softmax(logits, dim=-1)

    def distribution(self, node: Node) -> Distribution:
        return Distribution(self.probs(node.logits))

    def draft_probs(self, logits: Tensor, tokens: list[int], branch: Branch) -> Tensor:
        return self.probs(logits)

    def exact(self, model: TableModel, prompt: Sequence[int], length: int) -> Tensor:
        """``[V] * length`` probabilities of every continuation."""
        probs, paths = torch.ones(1, dtype=torch.float64), [list(prompt)]
        for _ in range(length):
            each = [self.probs(model.next_logits(path).double()) for path in paths]
            probs = torch.cat([p * row for p, row in zip(probs, each, strict=True)])
            paths = [[*path, token] for path in paths for token in range(model.vocab_size)]
        return probs.reshape([model.vocab_size] * length)


class RandomDrafts(Drafter):
    """Trees of random shapes, of the wanted kind. Shapes never depend on the tokens that are drawn for them.

    Distributions come from a table that has nothing to do with the target and holds zeros.
    """

    def __init__(
        self, proposal: Proposal, vocab_size: int, *, seed: int = 0, deepest: int = 4, widest: int = 4
    ) -> None:
        super().__init__()
        self.proposal = proposal
        self.vocab_size = vocab_size
        self.shapes = random.Random(seed)
        self.deepest = deepest
        self.widest = widest
        rng = torch.Generator().manual_seed(seed)
        table = torch.randn(vocab_size, vocab_size, generator=rng) * 1.5
        table[torch.rand(vocab_size, vocab_size, generator=rng) < 0.2] = -torch.inf
        table[:, 0] = table[:, 0].clamp_min(-1.0)
        self.table = torch.softmax(table, dim=-1)

    def draft(self, branch: Branch, budget: Budget) -> Draft:
        _, depth = budget.of(0, self.shapes.randint(0, self.deepest))
        if self.proposal is Proposal.POINT:
            count = self.shapes.randint(0, 6)
            paths = [[self.shapes.randrange(self.vocab_size) for _ in range(depth)] for _ in range(count)]
            return Draft(TokenTree.from_paths(paths))
        tokens: list[int] = []
        parents: list[int] = []
        q: list[Tensor] = []
        rows: list[int] = []
        level = [ROOT]
        for _ in range(depth):
            below = []
            for node in level:
                width = 1 if self.proposal is Proposal.SAMPLED else self.shapes.randint(1, self.widest)
                p = self.table[branch.tokens[-1] if node == ROOT else tokens[node]]
                replacement = self.proposal is Proposal.WITH_REPLACEMENT
                width = width if replacement else min(width, int((p > 0).sum()))
                for token in torch.multinomial(p, width, replacement=replacement, generator=branch.rng).tolist():
                    below.append(len(tokens))
                    tokens.append(token)
                    parents.append(node)
                    rows.append(len(q))
                q.append(p)
            level = below[:4]
        return Draft(TokenTree(tokens, parents), torch.stack(q), rows) if q else Draft.empty()


def continuations(composition: Composition, prompt: Sequence[int], count: int, length: int, seed: int) -> Tensor:
    """``[count, length]`` tokens that follow ``prompt``, from one batch of equal prompts."""
    events = composition.decode([list(prompt)] * count, stop=Stop(max_new_tokens=length), seed=seed)
    found = {event.index: event.tokens for event in events if isinstance(event, Finished)}
    return torch.tensor([found[index] for index in range(count)])


def fit(tokens: Tensor, exact: Tensor) -> float:
    """p-value that ``tokens`` ``[N, L]`` were drawn from ``exact`` ``[V] * L``.

    Pearson's chi-square of the first token, of the first two, and so on, since a bias of one token shows best among few
    cells; the smallest p-value, times the number of tests. Cells that expect fewer than five are pooled.
    """
    count, length = tokens.shape
    worst = 1.0
    for size in range(1, length + 1):
        expected = exact.reshape(exact.shape[0] ** size, -1).sum(dim=1) * count
        cells = torch.zeros(count, dtype=torch.int64)
        for place in range(size):
            cells = cells * exact.shape[0] + tokens[:, place]
        observed = torch.bincount(cells, minlength=len(expected)).double()
        if bool((observed[expected == 0] > 0).any()):
            return 0.0
        large = expected >= 5
        kept = [(float(o), float(e)) for o, e in zip(observed[large], expected[large], strict=True)]
        rest = float(expected[~large].sum())
        if rest >= 5:
            kept.append((float(observed[~large].sum()), rest))
        statistic = sum((o - e) ** 2 / e for o, e in kept)
        # What is left out (an almost empty pool) is not constrained, so the total is one more degree of freedom then.
        degrees = len(kept) - (1 if rest >= 5 or rest == 0 else 0)
        worst = min(worst, float(stats.chi2.sf(statistic, max(degrees, 1))))
    return min(1.0, worst * length)


# -- all outcomes of a rule ---------------------------------------------------------------------------------------


class _Choices:
    """Replays a list of decisions and then takes the first of every further one."""

    def __init__(self, script: list[int]) -> None:
        self.script = script
        self.options: list[int] = []
        self.probability = 1.0

    def decide(self, weights: list[float]) -> int:
        """An outcome among those that have a weight."""
        outcomes = [outcome for outcome, weight in enumerate(weights) if weight > 0]
        place = len(self.options)
        taken = self.script[place] if place < len(self.script) else 0
        if place == len(self.script):
            self.script.append(0)
        self.options.append(len(outcomes))
        self.probability *= weights[outcomes[taken]] / sum(weights)
        return outcomes[taken]


@contextmanager
def _deciding(choices: _Choices) -> Iterator[None]:
    def bernoulli(probability: Tensor, *, generator: torch.Generator) -> Tensor:
        p = float(probability)
        return torch.tensor(float(choices.decide([1.0 - p, p])))

    def draw(probs: Tensor, rng: torch.Generator) -> int:
        return choices.decide(probs.tolist())

    def forbidden(*args: object, **kwargs: object) -> Tensor:
        raise AssertionError("only torch.bernoulli and Distribution.draw can be enumerated")

    with (
        mock.patch("torch.bernoulli", bernoulli),
        mock.patch("unspool.core.sockets.draw", draw),
        mock.patch("torch.multinomial", forbidden),
        mock.patch("torch.rand", forbidden),
        mock.patch("torch.rand_like", forbidden),
    ):
        yield


def outcomes(run: Callable[[], object]) -> dict[object, float]:
    """Every result of ``run`` with its probability, over all random decisions that it makes."""
    totals: dict[object, float] = defaultdict(float)
    script: list[int] = []
    while True:
        choices = _Choices(script)
        with _deciding(choices):
            result = run()
        totals[result] += choices.probability
        # The next script in lexicographic order.
        script = script[: len(choices.options)]
        while script and script[-1] + 1 >= choices.options[len(script) - 1]:
            script.pop()
        if not script:
            return dict(totals)
        script[-1] += 1


class Given(Sampler):
    """Draws from distributions that are given, whatever the logits are: ``[N + 1, V]``, row ``node + 1``."""

    def __init__(self, probs: Tensor) -> None:
        super().__init__()
        self.given = probs

    def distribution(self, node: Node) -> Distribution:
        return Distribution(self.given[node.index + 1])


def walk(tree: TokenTree, p: Tensor, q: Tensor | None, rows: list[int], sampler: Sampler | None = None) -> Walk:
    """A walk over ``tree`` whose target distributions are ``p`` ``[N + 1, V]``, the root's first."""
    model = FastTable(p.shape[-1])
    branch = Branch(0, 0, [0], model.new_cache(), 0, torch.device("cpu"), [])
    scores = Scores(p.log(), list(range(len(tree) + 1)))
    return Walk(branch, Draft(tree, q, rows), scores, 1, sampler or Given(p), None)


def emitted(tree: TokenTree, verdict: Verdict) -> tuple[int, ...]:
    """The tokens of a verdict."""
    return (*(tree.token_list[node] for node in verdict.path), verdict.token)
