"""ADED: a tree search in a table of tri-grams that learns, against a chain, a full tree, and a table that does not.

Paper: Liu et al., Adaptive Draft-Verification for Efficient Large Language Model Decoding, 2025: up to 2.5x, about 20%
more accepted than by retrieval. Here: the whole on the model against plain decoding; other ways of reading the same
table, and other ways of learning, replayed on what the model wrote.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unspool.core.branch import Branch
from unspool.core.compose import compose
from unspool.core.sockets import Budget, Draft
from unspool.core.tree import ROOT, TokenTree
from unspool.evaluation.reproductions._common import (
    Continuation,
    Lab,
    agreement,
    decode_all,
    experiment,
    forwards_per_token,
    interleaved,
    tokens_per_step,
)
from unspool.evaluation.reproductions._replay import Text, answers_of, replay
from unspool.speculation.drafting._corpora import STANDARD_LIBRARY, encode_all, read_texts
from unspool.speculation.drafting._trigrams import TrigramTable
from unspool.speculation.drafting.aded import Aded, AdedSettings


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Args:
        prompts, new_tokens: of the main comparison.
        decoded: prompts of it on which ADED is run on the model, too.
        nodes: of the draft trees.
        stream: recorded answers that are replayed one after the other to see what learning gives.
        stream_tokens: tokens of each.
        block: answers that the curve of learning takes together.
        corpus: bytes of the corpus.
        answers: asked for, where none are recorded.
    """

    prompts: int
    new_tokens: int
    decoded: int
    nodes: int
    stream: int
    stream_tokens: int
    block: int
    corpus: int
    answers: int


class Chain(Aded):
    """The baseline: the likeliest continuation, then the likeliest after that."""

    def draft(self, branch: Branch, budget: Budget) -> Draft:
        nodes, depth = budget.of(self.settings.nodes, self.settings.depth)
        return Draft(TokenTree.chain(_likeliest(self.table, branch.tokens, min(nodes, depth))))


def _likeliest(table: TrigramTable | None, tokens: Sequence[int], length: int) -> list[int]:
    assert table is not None
    text = list(tokens[-2:])
    for _ in range(length):
        row = table.row(text[-2], text[-1]) if len(text) > 1 else None
        if row is None:
            break
        text.append(row[0][0])
    return text[len(tokens[-2:]) :]


class Breadth(Aded):
    """The baseline: a full tree, the two likeliest continuations of every node, level by level, until it is full."""

    def draft(self, branch: Branch, budget: Budget) -> Draft:
        assert self.table is not None
        nodes, depth = budget.of(self.settings.nodes, self.settings.depth)
        tokens: list[int] = []
        parents: list[int] = []
        level: list[tuple[int, int, int]] = [(ROOT, *branch.tokens[-2:])] if len(branch.tokens) > 1 else []  # type: ignore[list-item]
        for _ in range(depth):
            following = []
            for place, first, second in level:
                row = self.table.row(first, second)
                for token in row[0][:2] if row is not None else []:
                    if len(tokens) < nodes:
                        following.append((len(tokens), second, token))
                        tokens.append(token)
                        parents.append(place)
            level = following
        return Draft(TokenTree(tokens, parents))


def _rank_correlation(values: Sequence[float]) -> float:
    """Spearman's correlation of values with their places; equal values share the mean of their ranks."""
    array = np.asarray(values)
    ranks = [(array < value).sum() + ((array == value).sum() - 1) / 2 for value in array]
    return float(np.corrcoef(np.arange(len(array)), ranks)[0, 1]) if len(set(values)) > 1 else 0.0


def _blocks(runs: Sequence[Continuation], size: int) -> list[float]:
    return [tokens_per_step(runs[first : first + size]) for first in range(0, len(runs) - size + 1, size)]


@experiment(
    "aded",
    quick=Size(
        prompts=8,
        new_tokens=40,
        decoded=3,
        nodes=16,
        stream=60,
        stream_tokens=40,
        block=10,
        corpus=2_000_000,
        answers=8,
    ),
    full=Size(
        prompts=40,
        new_tokens=96,
        decoded=40,
        nodes=16,
        stream=100,
        stream_tokens=96,
        block=10,
        corpus=16_000_000,
        answers=60,
    ),
)
def EXPERIMENT(lab: Lab, size: Size) -> None:
    """Measure identity and time on the model; search, budget and learning on its text."""
    model = lab.model
    where, answers = answers_of(lab, size.answers, new_tokens=size.new_tokens)
    lab.say("counting the corpus")
    texts = read_texts(STANDARD_LIBRARY, lab.slug, total_bytes=size.corpus)
    counted = TrigramTable.build(encode_all(model.tokenizer, texts.documents, "corpus"), model.vocab_size)
    base = AdedSettings(nodes=size.nodes)

    def table(own: bool = True, corpus: bool = True) -> TrigramTable:
        made = TrigramTable()
        made.bind(model.vocab_size, model.name)
        if corpus:
            made.restore(counted.arrays())
        if own:
            for _, answer in answers:
                made.learn(answer, base.weight)
        return made

    source, prompts = lab.chats(size.prompts, new_tokens=size.new_tokens)
    lab.setup |= {
        "prompts": source,
        "count": len(prompts),
        "table": f"{len(counted)} pairs of the corpus, {where}",
        "sampler": "greedy",
    }
    lab.say(f"{len(prompts)} prompts, plain; {size.decoded} with ADED")
    batch = min(len(prompts), 8)
    plain = decode_all(compose(model), prompts, new_tokens=size.new_tokens, batch=batch)
    whole = Aded(base, table=table())
    drafted = decode_all(compose(model, whole), prompts[: size.decoded], new_tokens=size.new_tokens, batch=4)
    written: list[Text] = [(run.prompt, run.tokens) for run in plain]

    lab.say("replaying other ways of reading the table")
    frozen = AdedSettings(nodes=size.nodes, adapt=False)
    searched = replay(model, Aded(frozen, table=table()), written)
    chain = replay(model, Chain(frozen, table=table()), written)
    breadth = replay(model, Breadth(frozen, table=table()), written)
    learning = replay(model, Aded(base, table=table()), written)
    lab.row("tokens per step (chain from the same table, neither learns)", chain.tau, searched.tau)
    lab.row("tokens per step (full tree of as many nodes, neither learns)", breadth.tau, searched.tau)
    lab.row("tokens per step, learning (without learning)", searched.tau, learning.tau)
    lab.row(
        "target forwards per token (plain greedy)",
        forwards_per_token(plain[: size.decoded]),
        forwards_per_token(drafted),
    )

    lab.say("replaying a stream of answers: what learning gives")
    stream: list[Text] = [(prompt, answer[: size.stream_tokens]) for prompt, answer in answers[: size.stream]]
    adaptive = replay(model, Aded(base, table=table(own=False)), stream).runs
    static = replay(model, Aded(frozen, table=table(own=False)), stream).runs
    empty = replay(model, Aded(base, table=table(own=False, corpus=False)), stream).runs
    third = max(len(stream) // 3, 1)
    late, late_static = tokens_per_step(adaptive[-third:]), tokens_per_step(static[-third:])
    block = min(size.block, max(len(stream) // 3, 1))
    curve = _blocks(empty, block)
    slope = _rank_correlation(curve)
    lab.row(f"tokens per step, last {third} of {len(stream)} answers, learning (frozen)", late_static, late)
    lab.row("tokens per step from an empty table: last block (first block)", curve[0], curve[-1])

    lab.say("timing a draft and a pass")
    composition = compose(model, whole)
    assert composition.drafter is whole
    pending = model.new_cache()
    model.prefill(pending, prompts[0])
    branch = Branch(0, 0, list(prompts[0]), pending, 0, model.device, [])
    places = [plain[0].tokens[:end] for end in range(1, len(plain[0].tokens), 4)]

    def draft() -> None:
        for place in places:
            branch.tokens = [*prompts[0], *place]
            whole.draft(branch, Budget())

    def forward() -> None:
        model.prefill(pending, plain[0].tokens[:1])
        pending.rewind(len(prompts[0]))

    seconds = interleaved({"draft": draft, "forward": forward}, rounds=5)
    part = seconds["draft"] / len(places) / seconds["forward"]
    lab.row(
        "milliseconds of a draft (of a pass over one token)", 1e3 * seconds["forward"], 1e3 * part * seconds["forward"]
    )
    lab.row("megabytes of the table", None, whole.table.nbytes / 1e6 if whole.table is not None else None)

    found = agreement(model, plain[: size.decoded], drafted)
    lab.check("the output is that of plain greedy decoding", str(found), found.identical)
    lab.check(
        "tokens per step at least 0.1 above a chain from the same table",
        f"{searched.tau:.3f} against {chain.tau:.3f}",
        searched.tau >= chain.tau + 0.1,
        searched.tau > chain.tau,
    )
    lab.check(
        "tokens per step at least those of a full tree of as many nodes",
        f"{searched.tau:.3f} against {breadth.tau:.3f}",
        searched.tau >= breadth.tau,
    )
    lab.check(
        "learning accepts at least 5% more than a frozen table over the last third of the answers",
        f"{late:.3f} against {late_static:.3f}",
        late >= 1.05 * late_static,
        late > late_static,
    )
    lab.check(
        f"from an empty table tokens per step rise (rank correlation > 0.5 over blocks of {block} answers)",
        f"{slope:.2f} ({', '.join(f'{value:.2f}' for value in curve)})",
        slope > 0.5,
        slope > 0,
    )
    lab.check("a draft takes less than 15% of a pass over one token", f"{part:.1%}", part < 0.15, part < 0.5)
    lab.note(
        f"Trees of {size.nodes} nodes from {base.simulations} walks. The stream of answers begins with a table of the "
        "corpus alone, or with none."
    )
    if lab.quick:
        lab.note(f"Quick: few and short texts, and a corpus cut to {size.corpus / 1e6:.1f} MB so that counting fits.")
