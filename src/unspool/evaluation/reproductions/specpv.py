"""SpecPV: keys and values read for each token, and what partial evidence costs.

Paper: SpecPV: Improving Self-Speculative Decoding for Long-Context Generation via Partial Verification, 2025: up to 6x
over plain decoding with EAGLE-3 drafts on Llama-3.1-8B and Qwen3. Here: SmolLM2-135M goes on with files of Python's
standard library, drafts by prompt lookup. Four ways: plain decoding, full verification, SpecPV, and the same number of
rows without retrieval (sink and a longer window). A network that recalls values from lines of a long text shows whether
what was retrieved serves: after a question about one line, which a full round answers, it is asked about the lines
beside it, in partial rounds only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unspool.caching.specpv import SpecPV, SpecPVSettings
from unspool.core.branch import Branch
from unspool.core.compose import compose
from unspool.core.model import LanguageModel
from unspool.core.sockets import Constraint, Part
from unspool.evaluation.reproductions._common import Continuation, Lab, agreement, decode_all, experiment
from unspool.evaluation.reproductions._prefixes import read_once, tail_log_probs
from unspool.models.load import load_model
from unspool.training.corpora import stdlib
from unspool.training.recipes import line_retrieval

BLOCK, SINK, WINDOW = 16, 2, 4


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Args:
        prompts: files that are continued.
        length: tokens of each that are read.
        new_tokens: generated for each.
        retrieval: blocks that are retrieved.
        partial_tokens: tokens on partial evidence between full rounds.
        reads: the most keys and values read that are asked for, as a share of full verification's.
        identity: tokens of the run in which all rounds are full; at most ``new_tokens``.
        questions: texts of lines; 0 to leave them out.
        lines: of each.
        retrieved: numbers of blocks that are retrieved of them; the last one is judged.
    """

    prompts: int
    length: int
    new_tokens: int
    retrieval: int
    partial_tokens: int
    reads: float
    identity: int
    questions: int
    lines: int
    retrieved: tuple[int, ...]


def long_files(model: LanguageModel, count: int, length: int) -> list[list[int]]:
    """The first ``length`` tokens of ``count`` files, spread over the library."""
    # A token of Python source is never shorter than a character.
    files = [document.text for document in stdlib() if len(document.text) > 8 * length]
    found: list[list[int]] = []
    for text in files[:: max(len(files) // (2 * count), 1)]:
        tokens = list(model.tokenizer.encode(text[: 16 * length]))[:length]
        if len(tokens) == length and len(found) < count:
            found.append(tokens)
    return found


def policy(partial: int, retrieval: int, window: int = WINDOW) -> SpecPV:
    """A policy with the sizes of this experiment."""
    return SpecPV(
        SpecPVSettings(
            partial_tokens=partial,
            block=BLOCK,
            sink_blocks=SINK,
            retrieval_blocks=retrieval,
            window_blocks=window,
        )
    )


@experiment(
    "specpv",
    quick=Size(
        prompts=2,
        length=896,
        new_tokens=40,
        retrieval=8,
        partial_tokens=20,
        reads=0.6,
        identity=24,
        questions=24,
        lines=160,
        retrieved=(8, 16),
    ),
    full=Size(
        prompts=8,
        length=4096,
        new_tokens=160,
        retrieval=16,
        partial_tokens=20,
        reads=0.5,
        identity=160,
        questions=120,
        lines=160,
        retrieved=(8, 16),
    ),
)
def EXPERIMENT(lab: Lab, size: Size) -> None:
    """Measure reads, agreement, perplexity, the limit of full rounds, and answers from retrieved lines."""
    prompts = long_files(lab.model, size.prompts, size.length)
    budget = (SINK + size.retrieval + WINDOW) * BLOCK
    lab.setup |= {"prompts": "files of Python's standard library", "rows read in partial rounds": f"about {budget}"}
    lab.say(f"reading {len(prompts)} x {size.length} tokens")
    with read_once(lab.model, prompts):
        _continue(lab, size, prompts)
    if size.questions:
        _recall(lab, size)
    lab.note("The draft is prompt lookup in place of EAGLE-3: the policy takes any drafter.")
    if lab.quick:
        lab.note(
            f"Quick: {size.prompts} texts of {size.length} tokens, where less can be saved than at the 4096 of the "
            f"full run: reads are held to {size.reads} instead of 0.5."
        )


def _continue(lab: Lab, size: Size, prompts: Sequence[Sequence[int]]) -> None:
    """Continue files in four ways."""

    def run(parts: list[str | Part], tokens: int = size.new_tokens) -> list[Continuation]:
        return decode_all(compose(lab.model, parts), prompts, new_tokens=tokens, stop_tokens=frozenset())

    lookup: list[str | Part] = ["prompt-lookup"]
    mine = policy(size.partial_tokens, size.retrieval)
    blind = policy(size.partial_tokens, 0, WINDOW + size.retrieval)
    texts: dict[str, list[Continuation]] = {}
    for name, parts in {
        "plain decoding": [],
        "full verification": lookup,
        "SpecPV": [*lookup, mine],
        "sink and window": [*lookup, blind],
    }.items():
        lab.say(name)
        texts[name] = run(parts)
    reads = {
        name: sum(r.statistics.kv_read for r in runs) / sum(len(r.tokens) for r in runs) for name, runs in texts.items()
    }
    steps = {
        name: sum(len(r.tokens) for r in runs) / sum(r.statistics.steps for r in runs) for name, runs in texts.items()
    }
    perplexity = {
        name: math.exp(-float(torch.cat([tail_log_probs(lab.model, r.prompt, r.tokens).double() for r in runs]).mean()))
        for name, runs in texts.items()
    }
    parted = {
        name: sum(
            next((at for at, (a, b) in enumerate(zip(p.tokens, r.tokens, strict=True)) if a != b), len(r.tokens))
            for p, r in zip(texts["plain decoding"], runs, strict=True)
        )
        / sum(len(r.tokens) for r in runs)
        for name, runs in texts.items()
    }
    against = "full verification"
    for name in ("plain decoding", "SpecPV", "sink and window"):
        lab.row(f"elements of keys and values read for a token: {against} and {name}", reads[against], reads[name])
    for name in ("SpecPV", "sink and window"):
        lab.row(f"perplexity under the whole cache: {against} and {name}", perplexity[against], perplexity[name])
        lab.row(
            f"share of the text before it parts from plain decoding: {against} and {name}",
            parted[against],
            parted[name],
        )
        lab.row(f"tokens a step: {against} and {name}", steps[against], steps[name])
    share = mine.partial_rounds / (mine.partial_rounds + mine.full_rounds)
    lab.row("share of the rounds that are partial", 0.0, share)

    ratio = reads["SpecPV"] / reads[against]
    lab.check(
        f"reads at most {size.reads} of what full verification reads (ratio)", ratio, ratio <= size.reads, ratio < 1
    )
    ratio = perplexity["SpecPV"] / perplexity[against]
    lab.check("perplexity under the whole cache rises by at most 5% (ratio)", ratio, ratio <= 1.05, ratio <= 1.25)
    same = agreement(lab.model, texts["plain decoding"], texts[against])
    lab.check("full verification gives the text of plain decoding", str(same), same.identical)
    lab.say("all rounds full")
    none = run([*lookup, policy(0, size.retrieval)], size.identity)
    first = [Continuation(r.prompt, r.tokens[: size.identity], r.statistics) for r in texts["plain decoding"]]
    same = agreement(lab.model, first, none)
    lab.check("with no partial round the text is that of plain decoding", str(same), same.identical)


# -- recall -------------------------------------------------------------------------------------------------------


class Asked(Constraint):
    """Puts questions into the text: some places of it are given, the others are free.

    Args:
        scripts: by prompt, a token for every place that is given, ``None`` for those that are free.
        vocabulary: number of tokens.
    """

    def __init__(self, scripts: dict[tuple[int, ...], list[int | None]], vocabulary: int) -> None:
        super().__init__()
        self.scripts = scripts
        self.vocabulary = vocabulary

    def allowed(self, branch: Branch, tokens: list[int]) -> Tensor | None:
        place = len(tokens) - branch.prompt_length
        script = self.scripts[tuple(tokens[: branch.prompt_length])]
        given = script[place] if place < len(script) else None
        if given is None:
            return None
        mask = torch.zeros(self.vocabulary, dtype=torch.bool)
        mask[given] = True
        return mask


def _recall(lab: Lab, size: Size) -> None:
    """Ask about a line, then about the lines of its block, whose answers only retrieved rows can tell."""
    lab.say(f"{size.questions} texts of {size.lines} lines")
    model = load_model("line-retrieval", device=str(lab.model.device), progress=False)
    assert model.tokenizer is not None
    encode = model.tokenizer.encode
    (end,), (ask,) = encode(line_retrieval.BREAK), encode(line_retrieval.ASK)
    per_block = BLOCK // line_retrieval.LINE_TOKENS
    scripts: dict[tuple[int, ...], list[int | None]] = {}
    truth: dict[tuple[int, ...], list[int]] = {}
    for problem in line_retrieval.problems(8 * size.questions, size.lines, seed=7):
        group = problem.place // per_block * per_block
        # Neither in the sink nor in the window of any of the ways.
        if not SINK * per_block <= group < size.lines - (WINDOW + max(size.retrieved) + 2) * per_block:
            continue
        tokens = encode(problem.prompt)
        script: list[int | None] = [None]
        right = []
        for line in range(group, group + per_block):
            if line != problem.place:
                _, key, value, _ = tokens[line * line_retrieval.LINE_TOKENS : (line + 1) * line_retrieval.LINE_TOKENS]
                script += [end, ask, key, None]
                right.append(value)
        scripts[tuple(tokens)], truth[tuple(tokens)] = script, right
        if len(scripts) == size.questions:
            break
    asked = Asked(scripts, model.vocab_size)
    longest = max(map(len, scripts.values()))

    def answers(parts: list[str | Part]) -> tuple[list[bool], float]:
        runs = decode_all(
            compose(model, [asked, *parts]), list(scripts), new_tokens=longest, batch=1, stop_tokens=frozenset()
        )
        right = [
            run.tokens[4 * (place + 1)] == value for run in runs for place, value in enumerate(truth[tuple(run.prompt)])
        ]
        return right, sum(run.statistics.kv_read for run in runs) / sum(len(run.tokens) for run in runs)

    whole, all_read = answers([])
    known = sum(whole)

    def kept(found: list[bool]) -> float:
        return sum(a and b for a, b in zip(whole, found, strict=True)) / max(known, 1)

    share = gap = 0.0
    for blocks in size.retrieved:
        found, some_read = answers([policy(longest, blocks)])
        blind, _ = answers([policy(longest, 0, WINDOW + blocks)])
        share, gap = kept(found), kept(found) - kept(blind)
        name = f"lines beside the one asked for, {blocks} blocks"
        lab.row(f"{name}: right answers, whole cache and SpecPV", known / len(whole), sum(found) / len(whole))
        lab.row(f"{name}: right answers, whole cache and sink and window", known / len(whole), sum(blind) / len(whole))
        lab.row(f"{name}: elements read for a token, whole cache and SpecPV", all_read, some_read)
    lab.check("at least 90% of the whole cache's right answers are kept", share, share >= 0.9, share >= 0.5)
    lab.check("without retrieval clearly fewer are kept (difference)", gap, gap >= 0.2, gap > 0)
