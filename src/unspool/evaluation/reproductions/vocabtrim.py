"""VocabTrim: a smaller head of the draft model, nearly the same accepted length, and so a better price.

Paper: Goel et al., 2025: 16% more memory-bound speed-up for Llama-3.2-3B-Instruct, 1-5% fewer accepted tokens. Here:
SmolLM2-135M with a draft model of one layer that shares its head of 49,152 rows. Tokens are counted in the target's own
answers to programming tasks, or in raw source text of the same length; the head is cut to several sizes, and what the
target said to other programming tasks (in domain) and to questions (out of domain), answers that neither the draft
model nor the counts have seen, is drafted again with each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from unspool.core.compose import Composition, compose
from unspool.core.model import LanguageModel
from unspool.core.scores import Request
from unspool.core.tree import TokenTree
from unspool.evaluation.prompts import load_prompts, spread
from unspool.evaluation.reproductions._common import (
    Lab,
    agreement,
    decode_all,
    experiment,
    interleaved,
    tokens_per_step,
)
from unspool.evaluation.reproductions._replay import Recorded
from unspool.models.answers import Answer, read_answers
from unspool.models.artefacts import find
from unspool.models.load import load_model
from unspool.models.transformers_lm import TransformersModel
from unspool.models.trimmed_head import TrimmedHead
from unspool.speculation.drafting.vocabtrim import TokenCounts, VocabTrim
from unspool.training.corpora import stdlib

HELD_OUT = 8
"""One of so many answers was kept from the training of the draft model, by its place."""
MOST_LOST = 0.05
"""Share of the accepted length that the chosen size may cost, in domain."""


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Args:
        draft: the draft model.
        answers: the artefact with the target's answers; without one it answers the packaged prompts first.
        texts, new_tokens: recorded answers of either domain, and how much of each is drafted again.
        keeps: sizes of the head; the whole one is always measured.
        tokens: draft tokens a step.
        timed, rounds: real decoding that is timed: tokens of one answer, and how often.
    """

    draft: str
    answers: str | None
    texts: int
    new_tokens: int
    keeps: tuple[int, ...]
    tokens: int
    timed: int
    rounds: int


def body_bytes(model: LanguageModel) -> int:
    """Bytes of the weights that every pass reads, without embeddings and head."""
    assert isinstance(model, TransformersModel)
    apart = {id(model.model.get_input_embeddings().weight), id(model.model.get_output_embeddings().weight)}
    return sum(weight.nbytes for weight in model.model.parameters() if id(weight) not in apart)


def head_bytes(model: LanguageModel) -> int:
    """Bytes of the whole output head."""
    assert isinstance(model, TransformersModel)
    return int(model.model.get_output_embeddings().weight.nbytes)


def memory_bound_speedup(tau: float, cost: float, tokens: int) -> float:
    """MBSU: accepted length over what a step reads, in readings of the target; ``cost`` is the draft model's share."""
    return tau / (cost * tokens + 1)


def _counted(tokens: Tensor, vocab_size: int, path: Path) -> str:
    """A file of counts."""
    counts = TokenCounts()
    counts.bind(vocab_size, "calibration")
    counts.add(tokens)
    counts.save(path)
    return str(path)


def _answers(lab: Lab, size: Size) -> list[Answer]:
    """What the target answers to questions and programming tasks."""
    if size.answers is not None:
        return read_answers(find(size.answers) / "greedy.safetensors")
    asked = [one for source in ("builtin-code", "builtin-text") for one in load_prompts(source)]
    prompts = [lab.engine.encode(one.text) for one in spread(asked, 2 * HELD_OUT * size.texts)]
    runs = decode_all(compose(lab.model), prompts, new_tokens=size.new_tokens, batch=16)
    return [Answer(run.prompt, run.tokens) for run in runs]


def _drafter(composition: Composition) -> VocabTrim:
    assert isinstance(composition.drafter, VocabTrim)
    return composition.drafter


def _raw(model: LanguageModel, count: int) -> Tensor:
    """``[count]`` tokens of source text of the library, a piece of every file in turn."""
    found: list[int] = []
    for document in stdlib("train"):
        found += model.tokenizer.encode(document.text[:3000])
        if len(found) >= count:
            break
    return torch.tensor(found[:count])


def _seconds_a_token(model: LanguageModel, text: Sequence[int]) -> float:
    """Seconds of a pass over one token after a text; the least of several."""
    cache = model.new_cache()
    model.prefill(cache, text, rows=[])
    node = TokenTree.chain([text[-1]])
    seconds = interleaved({"pass": lambda: model.score([Request(cache, node)])}, 12)["pass"]
    cache.release()
    return seconds


@experiment(
    "vocabtrim",
    quick=Size(
        draft="smollm2-draft",
        answers="smollm2-outputs",
        texts=8,
        new_tokens=36,
        keeps=(1024, 4096, 8192),
        tokens=3,
        timed=16,
        rounds=1,
    ),
    full=Size(
        draft="smollm2-draft",
        answers="smollm2-outputs",
        texts=30,
        new_tokens=128,
        keeps=(1024, 2048, 4096, 8192, 16384, 32768),
        tokens=3,
        timed=96,
        rounds=3,
    ),
    backend="transformers",
)
def EXPERIMENT(lab: Lab, size: Size) -> None:
    """Measure accepted length, memory-bound speed-up and time for several sizes and two calibrations."""
    target, draft = lab.model, load_model(size.draft, progress=False)
    decode = target.tokenizer.decode
    answers = _answers(lab, size)
    held, known = answers[::HELD_OUT], [one for place, one in enumerate(answers) if place % HELD_OUT]
    said = torch.tensor([token for one in known if "Python" in decode(one.prompt) for token in one.answer])
    lab.setup |= {"draft": draft.name, "sampler": "greedy", "calibration_tokens": len(said)}
    recorded = Recorded(target, [(one.prompt, one.answer) for one in held])
    asked: dict[str, list[list[int]]] = {"code": [], "questions": []}
    for one in held:
        asked["code" if "Python" in decode(one.prompt) else "questions"].append(one.prompt)
    asked = {domain: prompts[: size.texts] for domain, prompts in asked.items()}
    lab.setup["texts"] = {domain: len(prompts) for domain, prompts in asked.items()}

    whole = draft.vocab_size
    tau: dict[tuple[str, int, str], float] = {}
    cost: dict[int, float] = {}
    always = 0
    with TemporaryDirectory() as folder:
        sources = {
            "answers": _counted(said, whole, Path(folder, "answers.safetensors")),
            "raw text": _counted(_raw(target, len(said)), whole, Path(folder, "raw.safetensors")),
        }
        for keep in (*size.keeps, whole):
            for source, path in sources.items():
                if keep == whole and source != "answers":
                    continue
                lab.say(f"{keep} tokens by {source}")
                settings = {"keep": keep, "calibration": path, "adapt": 0, "tokens": size.tokens}
                made = compose(recorded, "vocabtrim", settings=settings, models={"draft": draft})
                head = _drafter(made).model
                always = len(_drafter(made)._always)
                cost[keep] = (body_bytes(draft) + head.head_bytes) / (body_bytes(target) + head_bytes(target))
                for domain, group in asked.items():
                    if source != "answers" and domain != "code":
                        continue
                    runs = decode_all(made, group, new_tokens=size.new_tokens, batch=len(group))
                    tau[source, keep, domain] = tokens_per_step(runs)
        _report(lab, size, tau, cost, whole, always)
        best = _best(size, tau, cost, whole)
        _timed(lab, size, draft, sources["answers"], best, asked["code"][0])


def _best(size: Size, tau: dict[tuple[str, int, str], float], cost: dict[int, float], whole: int) -> int:
    """The size with the greatest speed-up among those that lose little; the largest if all lose more."""
    full = tau["answers", whole, "code"]
    fitting = [keep for keep in size.keeps if tau["answers", keep, "code"] >= (1 - MOST_LOST) * full]
    return max(
        fitting or [max(size.keeps)],
        key=lambda keep: memory_bound_speedup(tau["answers", keep, "code"], cost[keep], size.tokens),
    )


def _report(
    lab: Lab, size: Size, tau: dict[tuple[str, int, str], float], cost: dict[int, float], whole: int, always: int
) -> None:
    def speedup(keep: int, domain: str) -> float:
        return memory_bound_speedup(tau["answers", keep, domain], cost[keep], size.tokens)

    full = {domain: tau["answers", whole, domain] for domain in ("code", "questions")}
    for keep in size.keeps:
        for domain, place in (("code", "in domain"), ("questions", "out of domain")):
            lab.row(f"tokens per step, {keep} tokens kept, {place} (all)", full[domain], tau["answers", keep, domain])
            lab.row(f"memory-bound speed-up, {keep} tokens kept, {place} (all)", speedup(whole, domain),
                    speedup(keep, domain))  # fmt: skip
        lab.row(f"tokens per step, {keep} tokens kept, in domain: answers counted (raw text counted)",
                tau["raw text", keep, "code"], tau["answers", keep, "code"])  # fmt: skip
    best = _best(size, tau, cost, whole)
    gain = speedup(best, "code") / speedup(whole, "code")
    lost = 1 - tau["answers", best, "code"] / full["code"]
    away = 1 - tau["answers", best, "questions"] / full["questions"]
    lab.check(f"memory-bound speed-up with {best} tokens >= 1.10 x that of the whole head", gain, gain >= 1.1, gain > 1)
    lab.check(f"{best} tokens cost at most 5% of the accepted length in domain", f"{lost:.1%}", lost <= MOST_LOST)
    ours = [tau["answers", keep, "code"] for keep in size.keeps]
    raw = [tau["raw text", keep, "code"] for keep in size.keeps]
    lab.check(
        "counting the target's answers is at least as good as counting raw text, at every size",
        ", ".join(f"{a:.3g} against {b:.3g}" for a, b in zip(ours, raw, strict=True)),
        all(a >= b for a, b in zip(ours, raw, strict=True)),
        sum(ours) >= sum(raw),
    )
    lab.note(
        f"Out of domain (questions in prose, while programming tasks were counted) {best} tokens cost {away:.1%} of "
        f"the accepted length. {always} tokens (stops, controls, single bytes) are kept whatever was counted. The "
        "memory-bound speed-up counts bytes of weights: the draft model's body and its part of the head against the "
        "target's. The draft model of one layer agrees with the target on fewer than a third of its tokens, so what is "
        "compared is the price of the same guesses, not speculation with plain decoding."
    )


def _timed(lab: Lab, size: Size, draft: LanguageModel, calibration: str, best: int, prompt: list[int]) -> None:
    """Identity and tokens a second with the real target."""
    target = lab.model
    made = {
        keep: compose(
            target,
            "vocabtrim",
            settings={"keep": keep, "calibration": calibration, "adapt": 0, "tokens": size.tokens},
            models={"draft": draft},
        )
        for keep in (draft.vocab_size, best)
    }
    lab.say(f"real decoding with {best} tokens and with all")
    runs = {keep: decode_all(of, [prompt], new_tokens=size.timed) for keep, of in made.items()}
    expected = decode_all(compose(target), [prompt], new_tokens=size.timed)
    for keep, name in ((best, f"{best} tokens"), (draft.vocab_size, "the whole head")):
        found = agreement(target, expected, runs[keep])
        lab.check(f"with {name} the output is that of plain greedy decoding", str(found), found.identical)
    seconds = interleaved(
        {str(keep): partial(decode_all, of, [prompt], new_tokens=size.timed) for keep, of in made.items()},
        size.rounds,
    )
    speed = {keep: len(runs[keep][0].tokens) / seconds[str(keep)] for keep in made}
    lab.row(f"tokens per second, {best} tokens kept (all)", speed[draft.vocab_size], speed[best])
    ratio = speed[best] / speed[draft.vocab_size]
    lab.check("tokens per second >= 1.05 x those with the whole head", ratio, ratio >= 1.05, ratio > 1)
    trimmed = TrimmedHead(draft, _drafter(made[best]).model.kept.tolist())
    lab.row(
        f"seconds a draft token, {best} tokens kept (all)",
        _seconds_a_token(draft, prompt),
        _seconds_a_token(trimmed, prompt),
    )
