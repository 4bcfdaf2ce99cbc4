"""ADED: a table of tri-grams stands in for the model, a Monte Carlo tree search reads it, and the model corrects it.

The table says how often every token followed every pair of tokens. From the last two tokens of the text simulated
continuations walk down through it, each step to the continuation with the best score: what earlier walks through it
were worth, plus what the table promises and few walks have tried (PUCT). The places that were visited most are the
draft. After verification the table learns what the model really said, so that it grows towards the model.

Paper: Liu et al., Adaptive Draft-Verification for Efficient Large Language Model Decoding, 2025 (sections 3.1 to 3.3).

Lossless: the candidates follow from the table alone, which is fixed before the target is asked, and are matched with
the target's own choices.

Where the paper is silent: unknown pairs fall back on their second token; a walk is worth the product of its
probabilities; MuZero's constants weigh trying against knowing; a tri-gram that the model said counts ``weight`` times
one of the corpus. 64 walks find trees as good as more do, in a fraction of a forward pass. Learning from the model's
refused predictions as well (``predictions``) is off unless asked for.
"""

from __future__ import annotations

from math import log, sqrt
from typing import Annotated

import torch
from pydantic import Field

from unspool.core.branch import Branch
from unspool.core.cards import Card, Kind, settings
from unspool.core.learned import Learned
from unspool.core.model import Capability
from unspool.core.registry import register
from unspool.core.sockets import Budget, Draft, Drafter, Observation, Setup
from unspool.core.tree import ROOT, TokenTree
from unspool.speculation.drafting._corpora import STANDARD_LIBRARY, index, own_answers, read_texts
from unspool.speculation.drafting._trigrams import WIDTH, TrigramTable


@settings
class AdedSettings:
    """Depth and size as of trees of retrieval; 16 to 32 nodes are cheaper to verify on a CPU."""

    nodes: Annotated[int, Field(ge=1, description="nodes of the draft tree")] = 64
    depth: Annotated[int, Field(ge=1, description="tokens of the longest path")] = 6
    simulations: Annotated[int, Field(ge=1, description="walks of a search")] = 64
    c1: Annotated[float, Field(ge=0, description="weight of the untried")] = 1.25
    c2: Annotated[float, Field(gt=0, description="walks after which the untried gains weight")] = 19_652
    corpus: Annotated[
        str | None,
        Field(description="what to count first: a file or a folder of text, 'stdlib' for Python's, or none"),
    ] = STANDARD_LIBRARY
    answers: Annotated[
        bool, Field(description="also count the packaged model's own answers, where they are at hand")
    ] = True
    corpus_megabytes: Annotated[int, Field(ge=1, description="of the corpus; what exceeds it is left out")] = 16
    pairs: Annotated[int, Field(ge=1, description="pairs of tokens that the table counts in the corpus")] = 1_000_000
    learned_pairs: Annotated[int, Field(ge=1, description="pairs that it learns about")] = 100_000
    adapt: Annotated[bool, Field(description="learn from what the model says; off is there for comparison")] = True
    weight: Annotated[float, Field(gt=0, description="what a tri-gram of the model counts")] = 16.0
    predictions: Annotated[
        int, Field(ge=0, le=WIDTH, description="best predictions of every verified node to learn in parts, too")
    ] = 0


class Search:
    """The places that the walks of one search have visited.

    Attributes:
        tokens, parents: of every place; a parent of ``-1`` is the end of the text.
        visits: walks that came through it.
        probability: of its path, by the table.
        priors: of its token after its parent, by the table.
    """

    def __init__(
        self, table: TrigramTable, first: int, second: int, depth: int, simulations: int, c1: float, c2: float
    ) -> None:
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.visits: list[int] = []
        self.probability: list[float] = []
        self.priors: list[float] = []
        # Of every place, the end of the text at -1: what may follow and how probable it is, and the places that stand
        # for the first of it. One that nobody has visited scores `prior * bonus`, so only the first of them can win.
        rows: dict[int, tuple[list[int], list[float]]] = {ROOT: _normalised(table, first, second)}
        children: dict[int, list[int]] = {ROOT: []}
        worth: list[float] = []
        tokens, visits, priors, probability = self.tokens, self.visits, self.priors, self.probability
        for walk in range(simulations):
            place, before, last, count = ROOT, first, second, walk
            path: list[int] = []
            while len(path) < depth:
                row = rows.get(place)
                if row is None:
                    row = rows[place] = _normalised(table, before, last)
                    children[place] = []
                ids, probabilities = row
                if not ids:
                    break
                visited = children[place]
                bonus = sqrt(count) * (c1 + log((count + c2 + 1) / c2))
                best, score = ROOT, -1.0
                for child in visited:
                    n = visits[child]
                    value = worth[child] / n + priors[child] * bonus / (1 + n)
                    if value > score:
                        best, score = child, value
                fresh = len(visited)
                if fresh < len(ids) and probabilities[fresh] * bonus > score:
                    best = len(tokens)
                    tokens.append(ids[fresh])
                    self.parents.append(place)
                    visits.append(0)
                    worth.append(0.0)
                    priors.append(probabilities[fresh])
                    probability.append((1.0 if place == ROOT else probability[place]) * probabilities[fresh])
                    visited.append(best)
                before, last = last, tokens[best]
                place, count = best, visits[best]
                path.append(best)
            if not path:
                break
            reward = probability[place]
            for place in path:
                visits[place] += 1
                worth[place] += reward

    def best(self, nodes: int, *, chain: bool = False) -> Draft:
        """The most visited places; of equally visited ones the more probable, then the one visited first."""
        ranked = sorted(range(len(self.tokens)), key=lambda at: (-self.visits[at], -self.probability[at], at))
        if chain:
            path: list[int] = []
            for place in ranked:
                # The ranks put every place behind its parent, so the first child met is the best one.
                if self.parents[place] == (path[-1] if path else ROOT):
                    path.append(place)
            ranked = path
        kept = sorted(ranked[:nodes])
        number = {place: node for node, place in enumerate(kept)}
        number[ROOT] = ROOT
        tree = TokenTree([self.tokens[place] for place in kept], [number[self.parents[place]] for place in kept])
        return Draft(tree, confidence=[self.priors[place] for place in kept])


def _normalised(table: TrigramTable, first: int, second: int) -> tuple[list[int], list[float]]:
    row = table.row(first, second)
    if row is None:
        return [], []
    ids, counts = row
    total = sum(counts)
    return ids, [count / total for count in counts]


@register(
    Card(
        slug="aded",
        name="ADED",
        kind=Kind.DRAFTER,
        summary="Searches a table of tri-grams, which learns from the model while it is used, for the likeliest tree.",
        paper="Adaptive Draft-Verification for Efficient Large Language Model Decoding, 2025",
        claim="up to 2.5x faster without training; accepts about 20% more than drafting by retrieval",
        lossless=True,
    ),
    AdedSettings,
)
class Aded(Drafter):
    """The most visited places of a tree search in a table of tri-grams.

    Args:
        table: in place of what the settings name. Shared by all branches and requests.
    """

    settings: AdedSettings

    def __init__(self, settings: AdedSettings | None = None, *, table: TrigramTable | None = None) -> None:
        super().__init__(settings)
        self.table = table
        self.notes: list[str] = []
        self._chain = False

    @property
    def learned(self) -> dict[str, Learned]:
        return {} if self.table is None else {"aded": self.table}

    def bind(self, setup: Setup) -> None:
        target = setup.target
        self._chain = Capability.TREE not in target.capabilities
        self.notes = []
        if self.table is None:
            self.table = self._counted(setup)
        self.table.bind(target.vocab_size, target.name)

    def _counted(self, setup: Setup) -> TrigramTable:
        """The table to begin with."""
        target, chosen = setup.target, self.settings
        table = TrigramTable(chosen.pairs, chosen.learned_pairs)
        table.bind(target.vocab_size, target.name)
        if chosen.corpus is not None and target.tokenizer is None:
            self.notes.append(f"{target.name} has no tokenizer to read a corpus with: the table begins empty")
        elif chosen.corpus is not None:
            texts = read_texts(chosen.corpus, "aded", total_bytes=chosen.corpus_megabytes * 1_000_000)
            table.restore(index(texts, target.tokenizer, target.vocab_size, "aded", TrigramTable).arrays())
        if chosen.answers:
            for _, answer in own_answers(target):
                table.learn(answer, chosen.weight)
        return table

    def draft(self, branch: Branch, budget: Budget) -> Draft:
        assert self.table is not None
        chosen, tokens = self.settings, branch.tokens
        nodes, depth = budget.of(chosen.nodes, chosen.depth)
        # A text of one token has no pair; the table then falls back on that token.
        first = tokens[-2] if len(tokens) > 1 else tokens[-1]
        search = Search(self.table, first, tokens[-1], depth, chosen.simulations, chosen.c1, chosen.c2)
        return search.best(nodes, chain=self._chain)

    def observe(self, step: Observation) -> None:
        if not self.settings.adapt or not step.tokens:
            return
        assert self.table is not None
        before = step.branch.tokens[-2:]
        self.table.learn([*before, *step.tokens], self.settings.weight, start=len(before))
        if self.settings.predictions:
            self._learn_predictions(step)

    def _learn_predictions(self, step: Observation) -> None:
        """Count the best predictions after every verified node, each as often as it is probable."""
        assert self.table is not None
        tree, text = step.tree, step.branch.tokens
        nodes = [node for node in step.scores.rows if node >= step.offset - 1]
        probs = torch.softmax(torch.stack([step.scores.at(node) for node in nodes]).float(), dim=-1)
        best = probs.topk(min(self.settings.predictions, probs.shape[-1]), dim=-1)
        for node, tokens, parts in zip(nodes, best.indices.tolist(), best.values.tolist(), strict=True):
            above = tree.parent_list[node]
            if above == ROOT and len(text) == step.offset:
                continue  # the first token of all has none before it
            # The pending tokens are the end of the committed text; what is before them lies in the cache.
            before = tree.token_list[above] if above != ROOT else text[-step.offset - 1]
            for token, part in zip(tokens, parts, strict=True):
                if part > 0:
                    self.table.add(before, tree.token_list[node], token, part * self.settings.weight)
