"""DuoDecoding: draft model and target at the same time, and who waits for whom.

Paper: Lv et al., 2025: up to 2.61x lower latency than plain decoding with a draft model on the CPU and the target on a
GPU; the first token in 83% of the time of usual speculation. Here: SmolLM2-135M and a draft model of one layer, a
process each, one thread each. What a round gains depends on the text alone and is counted on recorded answers of the
target; times are measured twice, with the processes themselves, and with a virtual clock that charges every round what
its passes cost alone. The second is what two processors with memory of their own would give: here they share it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from unspool.core.compose import Composition, compose
from unspool.core.events import Scored, Stepped
from unspool.core.model import LanguageModel
from unspool.core.texts import Stop
from unspool.evaluation.reproductions._common import (
    Continuation,
    Lab,
    agreement,
    decode_all,
    decode_seconds,
    experiment,
    tokens_per_step,
)
from unspool.evaluation.reproductions._replay import Recorded
from unspool.models.costs import PassCosts, measure
from unspool.models.load import load_model
from unspool.speculation.drafting._worker import InProcess, Reply
from unspool.speculation.drafting.duodecoding import _BUDGETS, DuoDecoding, DuoDecodingSettings
from unspool.training.corpora import stdlib


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Args:
        draft: the draft model.
        prompts, new_tokens: recorded answers on which rounds are counted.
        lengths: draft tokens of the usual speculation that is compared; the best counts.
        timed, timed_tokens: prompts that are decoded with both processes, and how far.
        beside: a folder with another ``target`` and ``draft``, whose rounds are counted too, for a budget of 8; or
            nothing.
        rounds: measurements of a pass; the least counts.
    """

    draft: str
    prompts: int
    new_tokens: int
    lengths: tuple[int, ...]
    timed: int
    timed_tokens: int
    rounds: int
    beside: str


class Watched(DuoDecoding):
    """Keeps what the worker answered."""

    def __init__(self, settings: DuoDecodingSettings) -> None:
        super().__init__(settings)
        self.replies: list[Reply] = []

    def _reply(self, ticket: int) -> Reply | None:
        reply = super()._reply(ticket)
        if reply is not None:
            self.replies.append(reply)
        return reply


@contextmanager
def one_thread() -> Iterator[None]:
    """The target has one core, so that the draft model can have the other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# -- counting -----------------------------------------------------------------------------------------------------


@dataclass
class Replayed:
    """A recorded text, decoded again.

    Attributes:
        tokens, rounds: of all texts.
        seconds: by the virtual clock.
    """

    tokens: int = 0
    rounds: int = 0
    seconds: float = 0.0

    @property
    def gained(self) -> float:
        return self.tokens / self.rounds


def draft_seconds(reply: Reply, costs: PassCosts) -> float:
    """What the passes of a reply cost alone: two of one token, then one of as many tokens as there are sequences."""
    if not reply.drafts or not reply.drafts[0]:
        return 0.0
    width, length = len(reply.drafts[0]), max(map(len, reply.drafts[0]))
    first = min(length, 2) if width == 1 else 2
    return first * costs.of(1) + max(length - (2 if width == 1 else 1), 0) * costs.of(width)


def together(composition: Composition, prompt: list[int], size: Size, target: PassCosts, draft: PassCosts) -> Replayed:
    """Both at work at once: a round costs what the longer of the two takes."""
    made = composition.drafter
    assert isinstance(made, Watched)
    made.replies.clear()
    found, widths = Replayed(), []
    for event in composition.decode([prompt], stop=Stop(size.new_tokens)):
        if isinstance(event, Stepped):
            found.tokens += len(event.tokens)
            widths.append(1 + len(event.draft))
    # Round r scores while the order whose reply comes in round r + 1 is carried out; nobody asks for the last one.
    drafting = [draft_seconds(reply, draft) for reply in made.replies]
    found.rounds = len(widths)
    found.seconds = sum(
        max(target.of(width), drafting[place] if place < len(drafting) else 0.0) for place, width in enumerate(widths)
    )
    return found


def in_turn(composition: Composition, prompt: list[int], size: Size, target: PassCosts, draft: PassCosts) -> Replayed:
    """Usual speculation: a round costs the draft and then the pass that verifies it."""
    found = Replayed()
    for event in composition.decode([prompt], stop=Stop(size.new_tokens)):
        if isinstance(event, Scored):
            found.seconds += event.draft_forwards * draft.of(1)
        elif isinstance(event, Stepped):
            found.tokens += len(event.tokens)
            found.rounds += 1
            found.seconds += target.of(1 + len(event.draft))
    return found


def added(parts: list[Replayed]) -> Replayed:
    """The sum over texts."""
    return Replayed(
        sum(part.tokens for part in parts), sum(part.rounds for part in parts), sum(part.seconds for part in parts)
    )


# -- the experiment -----------------------------------------------------------------------------------------------


@experiment(
    "duodecoding",
    quick=Size(
        draft="smollm2-draft",
        prompts=3,
        new_tokens=32,
        lengths=(1, 2),
        timed=1,
        timed_tokens=20,
        rounds=2,
        beside="",
    ),
    full=Size(
        draft="smollm2-draft",
        prompts=40,
        new_tokens=128,
        lengths=(1, 2, 3, 4, 6, 8),
        timed=50,
        timed_tokens=96,
        rounds=5,
        beside="stdlib-pair",
    ),
    backend="transformers",
)
def EXPERIMENT(lab: Lab, size: Size) -> None:
    """Count rounds, charge them by a virtual clock, and time the processes."""
    target, draft = lab.model, load_model(size.draft, progress=False)
    source, prompts = lab.chats(max(size.prompts, size.timed), new_tokens=max(size.new_tokens, size.timed_tokens))
    lab.setup |= {"draft": draft.name, "prompts": source, "sampler": "greedy", "threads_each": 1}
    counted = prompts[: size.prompts]
    lab.say(f"the target answers {len(counted)} prompts")
    plain = decode_all(compose(target), counted, new_tokens=size.new_tokens, batch=min(len(counted), 8))
    with one_thread():
        lab.say("what a pass costs, one thread")
        target_costs = measure(target, (1, 2, 4, 8), size.rounds)
        draft_costs = measure(draft, (1, 2, 4, 8), size.rounds)
        ratio = target_costs.of(1) / draft_costs.of(1)
        gamma = min(_BUDGETS, key=lambda budget: abs(budget - ratio))
        lab.setup["gamma"] = gamma
        lab.row("seconds of a pass over one token: draft model (target)", target_costs.of(1), draft_costs.of(1))
        best, faster = _count(lab, size, plain, draft, target_costs, draft_costs, gamma)
        ratio = _time(lab, size, prompts[: size.timed], draft, best, gamma)
        if size.beside:
            _beside(lab, size)
    by_time = ratio <= 0.95
    lab.check(
        "a token takes at most 0.95 of the time of the best usual speculation; or, as memory is shared, it is at least "
        "1.15 x as fast by the virtual clock",
        f"{ratio:.3f} by time, {faster:.3f} x by the virtual clock: "
        + ("met by time" if by_time else "met by the virtual clock" if faster >= 1.15 else "missed by both"),
        by_time or faster >= 1.15,
        ratio < 1 or faster > 1,
    )
    lab.note(
        "Two cores that share one memory slow each other down, so there is a virtual clock as well: every round is "
        "charged the longer of what its target pass and its draft passes cost alone, usual speculation their sum."
    )


def _count(
    lab: Lab,
    size: Size,
    plain: list[Continuation],
    draft: LanguageModel,
    target: PassCosts,
    drafting: PassCosts,
    gamma: int,
) -> tuple[int, float]:
    """Rounds and virtual seconds; gives back the best length of usual speculation, and how much faster both are."""
    recorded = Recorded(lab.model, [(one.prompt, one.tokens) for one in plain])
    models = {"draft": draft}
    count = sum(len(one.tokens) for one in plain)
    alone = Replayed(count, count, count * target.of(1))
    duo: dict[int, Replayed] = {}
    for sequences in (8, 1):
        lab.say(f"recorded answers, both at once, at most {sequences} sequences")
        made = Watched(DuoDecodingSettings(gamma=gamma, sequences=sequences, executor="inline"))
        composition = compose(recorded, made, models=models)
        parts = [together(composition, one.prompt, size, target, drafting) for one in plain]
        duo[sequences] = added(parts)
    usual: dict[int, Replayed] = {}
    for length in size.lengths:
        lab.say(f"recorded answers, in turn, {length} draft tokens")
        composition = compose(recorded, "draft-model", settings={"tokens": length}, models=models)
        usual[length] = added([in_turn(composition, one.prompt, size, target, drafting) for one in plain])
    best = min(usual, key=lambda length: usual[length].seconds)

    def speed(of: Replayed) -> float:
        return of.tokens / of.seconds

    lab.row("tokens a round, sequences as many as pay (a single one)", duo[1].gained, duo[8].gained)
    lab.row(
        f"tokens per second by the virtual clock (usual speculation, {best} tokens)", speed(usual[best]), speed(duo[8])
    )
    lab.row("tokens per second by the virtual clock (plain)", speed(alone), speed(duo[8]))
    more = duo[8].gained / duo[1].gained
    lab.check("several sequences gain at least 3% more tokens a round than one", more, more >= 1.03, more > 1)
    return best, speed(duo[8]) / speed(usual[best])


def _beside(lab: Lab, size: Size) -> None:
    """What several sequences gain with another pair of models."""
    target, draft = (load_model(f"{size.beside}/{part}", progress=False) for part in ("target", "draft"))
    prompts = [target.tokenizer.encode(document.text[:200]) for document in stdlib("held-out")][: size.prompts]
    plain = decode_all(compose(target), prompts, new_tokens=size.new_tokens, batch=8, stop_tokens=frozenset())
    recorded = Recorded(target, [(one.prompt, one.tokens) for one in plain])
    gained = {}
    for sequences in (8, 1):
        made = DuoDecoding(DuoDecodingSettings(gamma=8, sequences=sequences, executor="inline"))
        composition = compose(recorded, made, models={"draft": draft})
        runs = [decode_all(composition, [one.prompt], new_tokens=size.new_tokens)[0] for one in plain]
        gained[sequences] = tokens_per_step(runs)
    lab.row(f"tokens a round with {size.beside}, as many sequences as pay (a single one)", gained[1], gained[8])


def _time(lab: Lab, size: Size, prompts: list[list[int]], draft: LanguageModel, length: int, gamma: int) -> float:
    """The processes themselves: identity, waiting, the first token; gives back seconds over those of usual
    speculation."""
    target, models = lab.model, {"draft": draft}
    made = DuoDecoding(DuoDecodingSettings(gamma=gamma, executor="process"))
    compositions = {
        "plain": compose(target),
        "usual": compose(target, "draft-model", settings={"tokens": length}, models=models),
        "duo": compose(target, made, models=models),
    }
    lab.say("starting the process")
    worker = made.start()
    assert isinstance(worker, InProcess)
    worker.wait()
    runs: dict[str, list[Continuation]] = {name: [] for name in compositions}
    try:
        for number, prompt in enumerate(prompts, 1):
            lab.say(f"prompt {number} of {len(prompts)} with processes: plain, in turn, both at once")
            for name, composition in compositions.items():
                runs[name] += decode_all(composition, [prompt], new_tokens=size.timed_tokens)
    finally:
        made.close()
    found = agreement(target, runs["plain"], runs["duo"])
    lab.check("the output is that of plain greedy decoding", str(found), found.identical)
    seconds = {name: decode_seconds(of) for name, of in runs.items()}
    first = {name: sum(one.statistics.first_token_seconds or 0.0 for one in of) for name, of in runs.items()}
    lab.row(
        f"tokens per second, processes (usual speculation, {length} tokens)", 1 / seconds["usual"], 1 / seconds["duo"]
    )
    lab.row("tokens per second, processes (plain)", 1 / seconds["plain"], 1 / seconds["duo"])
    lab.row(
        "tokens per step, processes (usual speculation)", tokens_per_step(runs["usual"]), tokens_per_step(runs["duo"])
    )
    lab.row(
        "seconds to the first token (usual speculation)", first["usual"] / len(prompts), first["duo"] / len(prompts)
    )
    clock = made.clock
    shares = {
        "target": clock.waited / (clock.waited + clock.scoring),
        "draft model": clock.idle / (clock.idle + clock.drafting),
    }
    lab.row("share of the time that the target waits", None, shares["target"])
    lab.row("share of the time that the draft model waits", None, shares["draft model"])
    slower = min(shares, key=lambda name: shares[name])
    lab.check(
        f"the slower of the two ({slower}) waits less than 25% of the time", shares[slower], shares[slower] < 0.25
    )
    lab.check(
        "the first token comes earlier than with usual speculation",
        f"{first['duo'] / len(prompts):.3g} s against {first['usual'] / len(prompts):.3g} s",
        first["duo"] < first["usual"],
    )
    return seconds["duo"] / seconds["usual"]
