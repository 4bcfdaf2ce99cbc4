"""Batches that are decoded side by side: what every round drafted, kept and cost, row by row."""

from __future__ import annotations

import itertools
import random
import time
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import torch
import transformers
from torch import Tensor

from unspool.core.branch import Branch
from unspool.core.compose import Composition, compose
from unspool.core.events import Scored, Stepped
from unspool.core.model import LanguageModel
from unspool.core.scores import Request
from unspool.core.sockets import Budget, Controller, Part
from unspool.core.texts import Stop
from unspool.core.tree import TokenTree
from unspool.evaluation.reproductions._common import chi_square_tail
from unspool.models.load import wrap
from unspool.sampling.standard import SamplingSettings, StandardSampler


class Uniform(Controller):
    """Every row drafts the same number of tokens."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens

    def budget(self, branch: Branch) -> Budget:
        return Budget(nodes=self.tokens)


def shuffled(prompts: Sequence[Sequence[int]], seed: int = 0) -> list[list[int]]:
    """The same tokens in no order."""
    rng = random.Random(seed)
    return [rng.sample(list(prompt), len(prompt)) for prompt in prompts]


# -- running ------------------------------------------------------------------------------------------------------


@dataclass
class Round:
    """One target pass over a batch.

    Attributes:
        forwards, draft_forwards: passes of the target and of other models.
        drafted, accepted, gained: draft tokens of every live row, how many of them stand, tokens committed; by the
            order of the rows.
        rows: which requests (or branches of one) they are.
    """

    forwards: int
    draft_forwards: int
    rows: list[int] = field(default_factory=list)
    drafted: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    gained: list[int] = field(default_factory=list)


@dataclass
class BatchRun:
    """Everything that one batch said and did.

    Attributes:
        texts: of every row.
        rounds: in order.
    """

    texts: list[list[int]]
    rounds: list[Round]

    @property
    def tokens(self) -> int:
        return sum(sum(each.gained) for each in self.rounds)

    @property
    def drafted(self) -> int:
        return sum(sum(each.drafted) for each in self.rounds)

    @property
    def accepted(self) -> int:
        return sum(sum(each.accepted) for each in self.rounds)

    @property
    def accepted_share(self) -> float:
        """Accepted draft tokens for each one verified."""
        return self.accepted / max(self.drafted, 1)

    @property
    def tokens_per_round(self) -> float:
        return self.tokens / len(self.rounds)


def run_batch(
    composition: Composition,
    prompts: Sequence[Sequence[int]],
    *,
    new_tokens: int,
    rounds: int | None = None,
    seed: int = 0,
    stop_tokens: frozenset[int] | None = frozenset(),
    strings: tuple[str, ...] = (),
) -> BatchRun:
    """Decode all prompts side by side; of a search, over one prompt, all branches are rows.

    Args:
        rounds: leave after so many, as if the batch were always refilled; ``None`` to go on until all rows are done.
        stop_tokens: by default none, so that all texts grow to ``new_tokens``.
        strings: that end a text.
    """
    texts: dict[int, list[int]] = {}
    found: list[Round] = []
    events = composition.decode(prompts, stop=Stop(new_tokens, stop_tokens, strings), seed=seed)
    with closing(events):  # type: ignore[type-var]
        for event in events:
            if isinstance(event, Scored):
                if len(found) == rounds:
                    break
                found.append(Round(event.forwards, event.draft_forwards))
            elif isinstance(event, Stepped):
                # Of a search the request's number is 0, of requests the branch's.
                row = max(event.index, event.branch)
                last = found[-1]
                last.rows.append(row)
                last.drafted.append(len(event.draft))
                last.accepted.append(len(event.accepted))
                last.gained.append(len(event.tokens))
                texts.setdefault(row, []).extend(event.tokens)
    return BatchRun([texts[row] for row in sorted(texts)], found)


# -- what passes cost ---------------------------------------------------------------------------------------------


class Costs:
    """Seconds of a pass over so many rows of so many tokens, measured on a grid and read off between its points.

    A sum of these says what a run costs on this machine without what else the machine did meanwhile.

    Args:
        model: is measured.
        rows, widths: the grid, ascending.
        length: cached tokens of every row.
        repeats: the least of so many counts.
    """

    def __init__(
        self, model: LanguageModel, rows: Sequence[int], widths: Sequence[int], *, length: int, repeats: int = 4
    ) -> None:
        self.rows, self.widths = list(rows), list(widths)
        self.table: list[list[float]] = []
        for count in self.rows:
            caches = model.new_caches(count)
            text = TokenTree.chain([token % model.vocab_size for token in range(length)])
            model.score([Request(cache, text, rows=[]) for cache in caches])
            for cache in caches:
                cache.commit(range(length))
            line = []
            for width in self.widths:
                chain = TokenTree.chain([token % model.vocab_size for token in range(width)])
                best = float("inf")
                for _ in range(repeats):
                    began = time.perf_counter()
                    model.score([Request(cache, chain) for cache in caches])
                    best = min(best, time.perf_counter() - began)
                line.append(best)
            self.table.append(line)
            for cache in caches:
                cache.release()

    def seconds(self, rows: int, width: int) -> float:
        """Of a pass over ``rows`` rows of ``width`` tokens."""
        above, share = _between(self.rows, rows)
        high, part = _between(self.widths, width)

        def line(place: int) -> float:
            row = self.table[place]
            return row[high - 1] * (1 - part) + row[high] * part

        return line(above - 1) * (1 - share) + line(above) * share


def _between(grid: Sequence[int], value: int) -> tuple[int, float]:
    """The upper of the two points to go between, and how far; what is outside goes on in a straight line."""
    upper = min(max(bisect_left(grid, value), 1), len(grid) - 1)
    return upper, (value - grid[upper - 1]) / (grid[upper] - grid[upper - 1])


def run_seconds(run: BatchRun, target: Costs, draft: Costs) -> list[float]:
    """``[R]`` seconds until the end of every round, by the measured cost of its passes."""
    return _until_each(
        target.seconds(len(each.rows), max(each.drafted) + 1)
        + (each.draft_forwards * draft.seconds(len(each.rows), 1) if each.draft_forwards else 0.0)
        for each in run.rounds
    )


def weights_read(run: BatchRun, share: float) -> list[float]:
    """``[R]`` how often the target's weights were read until the end of every round; a pass of the draft model counts
    as ``share`` of it."""
    return _until_each(each.forwards + share * each.draft_forwards for each in run.rounds)


def _until_each(costs: Iterable[float]) -> list[float]:
    return list(itertools.accumulate(costs))


# -- drawn texts against their exact distribution -----------------------------------------------------------------

_VOCABULARY, _PROMPT = 6, [1, 2, 3]


def _toy() -> LanguageModel:
    """A network so small that all its texts of two tokens can be counted."""
    config = transformers.LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = transformers.LlamaForCausalLM(config)
        with torch.no_grad():
            for weight in network.parameters():
                if weight.ndim > 1:
                    weight.copy_(torch.randn(weight.shape) * 0.5)
    return wrap(network.double(), name="toy")


def drawn_fit(methods: Sequence[str | Part], draws: int, batch: int = 500) -> tuple[float, float]:
    """Draw texts of two tokens from a tiny network in batches of equal prompts, its draft model being the network
    itself.

    Returns:
        p-values (chi-square) that the texts have the network's distribution, and that the first tokens of neighbouring
        rows are independent.
    """
    model = _toy()
    cache = model.new_cache()
    model.prefill(cache, _PROMPT[:-1])
    after = TokenTree([_PROMPT[-1], *range(_VOCABULARY)], [-1] + [0] * _VOCABULARY)
    (scores,) = model.score([Request(cache, after)])
    probs = torch.softmax(scores.logits.double(), dim=-1)
    expected = (probs[0][:, None] * probs[1:]).reshape(-1) * draws
    made = compose(
        model,
        methods,
        sampler=StandardSampler(SamplingSettings(temperature=1.0)),
        models={"draft": model},
    )
    counts = torch.zeros(_VOCABULARY**2)
    beside = torch.zeros(_VOCABULARY, _VOCABULARY)
    for first in range(0, draws, batch):
        prompts = [_PROMPT] * min(batch, draws - first)
        # One token more than is looked at: the last of a text has no room for a draft.
        texts = run_batch(made, prompts, new_tokens=3, seed=first).texts
        for text in texts:
            counts[text[0] * _VOCABULARY + text[1]] += 1
        for one, other in zip(texts[0::2], texts[1::2], strict=False):
            beside[one[0], other[0]] += 1
    return _chi_square(counts, expected), _independence(beside)


def _chi_square(observed: Tensor, expected: Tensor) -> float:
    """p-value; cells that expect fewer than five are one cell."""
    large = expected >= 5
    cells = [*observed[large].tolist(), float(observed[~large].sum())]
    wanted = [*expected[large].tolist(), float(expected[~large].sum())]
    if wanted[-1] < 1e-9:
        cells, wanted = cells[:-1], wanted[:-1]
    observed, expected = torch.tensor(cells, dtype=torch.float64), torch.tensor(wanted, dtype=torch.float64)
    return chi_square_tail(float(((observed - expected) ** 2 / expected).sum()), len(observed) - 1)


def _independence(table: Tensor) -> float:
    """p-value that rows and columns of counts ``[R, C]`` have nothing to do with each other (Pearson's chi-square)."""
    counts = table.double()
    counts = counts[counts.sum(dim=1) > 0][:, counts.sum(dim=0) > 0]
    expected = counts.sum(dim=1, keepdim=True) * counts.sum(dim=0, keepdim=True) / counts.sum()
    degrees = (counts.shape[0] - 1) * (counts.shape[1] - 1)
    return chi_square_tail(float(((counts - expected) ** 2 / expected).sum()), degrees)
