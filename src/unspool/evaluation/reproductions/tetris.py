"""TETRIS: more accepted tokens for the same number of verified ones, from a batch whose rows are not equally hard.

Paper: Wu et al., TETRIS, 2025: higher acceptance and throughput than fixed and dynamic draft lengths on a batch of
chats, at the same capacity. Here: a batch of held-out code, half of it plain, half with its tokens shuffled; the same
capacity for drafts of fixed length, for drafts that stop by a threshold, and for TETRIS. Then what the ranking of the
paper does to drafts that are drawn, which it was not made for.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from unspool.core.branch import Branch
from unspool.core.sockets import Budget, Controller, Draft
from unspool.evaluation.reproductions._batch import BatchRun, Uniform, drawn_fit, run_batch, shuffled
from unspool.evaluation.reproductions._common import Continuation, Lab, agreement, decode_all, experiment
from unspool.evaluation.reproductions._pair import TARGET, Pair, sampler
from unspool.speculation.control.tetris import Tetris, TetrisSettings, node_chances, select
from unspool.speculation.drafting.draft_model import DraftModel, DraftModelSettings

_ENDLESS = 900


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Args:
        rows, rounds, prompt: batch, target passes, tokens of every prompt.
        tokens, extra: capacity for each row, and what is drafted beyond it.
        thresholds: of the drafts that stop by themselves.
        single: rows whose text is compared with that of a run of their own.
        draws: continuations for the test of distributions.
    """

    rows: int
    rounds: int
    prompt: int
    tokens: int
    extra: int
    thresholds: tuple[float, ...]
    single: int
    draws: int


class Threshold(Controller):
    """Every row drafts until it is unsure; what exceeds the batch's capacity is dropped by depth.

    Args:
        tokens, extra: as of TETRIS.
        surest: a token below this ends its draft, and is the last one verified.
    """

    def __init__(self, tokens: int, extra: int, surest: float) -> None:
        super().__init__()
        self.tokens, self.extra, self.surest = tokens, extra, surest

    def budget(self, branch: Branch) -> Budget:
        return Budget(nodes=self.tokens + self.extra)

    def allocate(self, branches: Sequence[Branch], drafts: Sequence[Draft]) -> list[Draft]:
        cut = []
        for draft in drafts:
            chances = node_chances(draft)
            unsure = next((node for node, chance in enumerate(chances) if chance < self.surest), len(chances))
            cut.append(draft.select(range(min(unsure + 1, len(chances)))))
        by_depth = [[-float(node) for node in range(len(draft.tree))] for draft in cut]
        kept = select(by_depth, self.tokens * len(cut))
        return [draft.select(nodes) for draft, nodes in zip(cut, kept, strict=True)]


@experiment(
    "tetris",
    quick=Size(8, 24, 48, 2, 2, (0.05, 0.1, 0.2, 0.4, 0.6), 4, 1500),
    full=Size(16, 100, 64, 2, 2, (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9), 16, 20000),
    model=TARGET,
)
def EXPERIMENT(lab: Lab, size: Size) -> None:
    """Measure acceptance, rounds and identity at equal capacity, the choice against all others, and the bias."""
    pair = Pair(lab)
    prompts = pair.prompts(size.rows, length=size.prompt)
    prompts[1::2] = shuffled(prompts[1::2])
    lab.setup |= {"rows": size.rows, "sampler": "greedy", "capacity": size.tokens * size.rows}

    def run(controller: Controller) -> BatchRun:
        drafter = DraftModel(DraftModelSettings(tokens=size.tokens + size.extra))
        made = pair.composed([drafter, controller])
        # No row ends, as in a server that always finds another request.
        return run_batch(made, prompts, new_tokens=_ENDLESS, rounds=size.rounds)

    lab.say("drafts of fixed length")
    lengths = {tokens: run(Uniform(tokens)) for tokens in range(1, size.tokens + 1)}
    fixed = lengths[size.tokens]
    lab.say("drafts that stop by a threshold")
    stopped = {surest: run(Threshold(size.tokens, size.extra, surest)) for surest in size.thresholds}
    # At equal capacity: those that use it are compared, and of them the best one.
    using = {surest: each for surest, each in stopped.items() if each.drafted >= 0.9 * fixed.drafted}
    threshold = max((using or stopped).values(), key=lambda each: each.tokens_per_round)
    lab.say("TETRIS")
    tetris = run(Tetris(TetrisSettings(tokens=size.tokens, extra=size.extra)))

    lab.row(
        f"accepted for each verified token (fixed length {size.tokens})", fixed.accepted_share, tetris.accepted_share
    )
    lab.row("the same (best threshold)", threshold.accepted_share, tetris.accepted_share)
    best = max(lengths.values(), key=lambda each: each.tokens_per_round)
    lab.row("tokens per target pass (best fixed length)", best.tokens_per_round, tetris.tokens_per_round)
    lab.row("tokens per target pass (best threshold)", threshold.tokens_per_round, tetris.tokens_per_round)
    for name, half in (("plain code", 0), ("shuffled code", 1)):
        shares = [_share(each, half) for each in (fixed, tetris)]
        lab.row(f"accepted for each verified token, {name} (fixed length)", *shares)

    lab.say("texts against single plain runs")
    texts = tetris.texts[: size.single]
    alone = pair.composed("plain")
    plain = [
        decode_all(alone, [prompt], new_tokens=len(text), stop_tokens=frozenset())[0]
        for prompt, text in zip(prompts, texts, strict=False)
    ]
    own = [Continuation(each.prompt, text, each.statistics) for each, text in zip(plain, texts, strict=True)]
    found = agreement(lab.model, plain, own)
    lab.check("every row says what a plain run of its own says", str(found), found.identical)

    gain = tetris.accepted_share / fixed.accepted_share
    lab.check("accepts at least 8% more for each verified token than fixed lengths", gain, gain >= 1.08, gain > 1)
    against = tetris.tokens_per_round / threshold.tokens_per_round
    lab.check(
        "tokens per target pass are not fewer than with the best threshold", against, against >= 1, against >= 0.98
    )
    right = sum(sum(each.drafted) == size.tokens * size.rows for each in tetris.rounds)
    lab.check("every pass verifies exactly its capacity", f"{right} of {size.rounds}", right == size.rounds)
    worst = _against_all_others(random.Random(1))
    lab.check("no other lengths gain more (100 batches of 3 rows x 4 tokens, all lengths tried)", worst, worst < 1e-9)

    lab.say("drafts that are drawn: both rankings against the exact distribution")
    exact, published = (
        drawn_fit(
            [
                DraftModel(DraftModelSettings(tokens=2)),
                Tetris(TetrisSettings(tokens=1, extra=1, ranking=ranking)),
            ],
            size.draws,
        )[0]
        for ranking in ("exact", "published")
    )
    lab.row("p-value of the drawn texts, draft model = target (published ranking)", published, exact)
    lab.check("the exact ranking keeps the distribution (p > 0.001)", exact, exact > 1e-3)
    lab.check("the published ranking of drawn drafts is found to be biased (p < 1e-6)", published, published < 1e-6)
    drawn = [
        run_batch(
            pair.composed(
                [DraftModel(DraftModelSettings(tokens=size.tokens + size.extra)), controller], sampler=sampler(1.0)
            ),
            prompts,
            new_tokens=_ENDLESS,
            rounds=size.rounds,
        )
        for controller in (Uniform(size.tokens), Tetris(TetrisSettings(tokens=size.tokens, extra=size.extra)))
    ]
    lab.row(
        "accepted for each verified token at temperature 1 (fixed length)", *(each.accepted_share for each in drawn)
    )
    lab.note(
        f"The best threshold is one of those that use at least 90% of the capacity; {len(using)} of {len(stopped)} do. "
        "The batch is held-out code, every second row with its tokens shuffled, in place of chats; no row ends; the "
        "models are three orders smaller."
    )


def _share(run: BatchRun, half: int) -> float:
    """Accepted for each verified token, of the rows with an even or an odd number."""
    pairs = [
        (drafted, accepted)
        for each in run.rounds
        for row, drafted, accepted in zip(each.rows, each.drafted, each.accepted, strict=True)
        if row % 2 == half
    ]
    return sum(accepted for _, accepted in pairs) / max(sum(drafted for drafted, _ in pairs), 1)


def _against_all_others(rng: random.Random) -> float:
    """How much more the best of all lengths within the capacity gains than the chosen ones, at most."""
    worst = 0.0
    for _ in range(100):
        chances = [[rng.random() for _ in range(4)] for _ in range(3)]
        values = [[math.prod(row[: n + 1]) for n in range(4)] for row in chances]
        chosen = sum(values[row][node] for row, nodes in enumerate(select(values, 6)) for node in nodes)
        lengths = [(a, b, 6 - a - b) for a in range(5) for b in range(5) if 0 <= 6 - a - b <= 4]
        best = max(sum(sum(row[:n]) for row, n in zip(values, each, strict=True)) for each in lengths)
        worst = max(worst, best - chosen)
    return worst
