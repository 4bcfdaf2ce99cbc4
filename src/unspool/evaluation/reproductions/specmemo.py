"""SpecMemo: a chat that keeps its speed in half of the memory, and goes on where a fixed reservation cannot begin.

Paper: SpecMemo: Speculative Decoding is in Your Pocket, 2025: 96% of the throughput of speculation on MT-Bench with 65%
less memory for generation, on one 24 GB GPU. Here: a chat of several turns with token recycling as the tree drafter,
its cache kept from turn to turn. Against: plain decoding, and a reservation of the longest text and the largest tree
from the start. All bytes are those of generation, without the weights.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from unspool.core.compose import Composition, compose
from unspool.core.events import Finished, Stepped
from unspool.core.scores import Request
from unspool.core.statistics import Statistics
from unspool.core.texts import Stop
from unspool.core.tree import TokenTree
from unspool.evaluation.allocations import allocated
from unspool.evaluation.reproductions._common import Continuation, Lab, agreement, decode_all, experiment
from unspool.models.conversation import Conversation
from unspool.models.memory import BudgetExceeded, Footprint, Ledger
from unspool.speculation.control.specmemo import SpecMemo, SpecMemoSettings
from unspool.speculation.drafting.token_recycling import TokenRecycling, TokenRecyclingSettings

_QUESTIONS = (
    "Give me a list of five fruits.",
    "Give me a list of five vegetables.",
    "Which of the five fruits are red? Give me a list.",
    "Which of the five vegetables are green? Give me a list.",
    "Write one sentence about the first of the five fruits.",
    "Write one sentence about the first of the five vegetables.",
    "Give me the list of five fruits again, in reverse.",
    "Give me the list of five vegetables again, in reverse.",
)


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Args:
        turns, reply: questions of the chat, tokens of every answer at most.
        reserved: positions that the fixed reservation holds from the start.
        nodes: of the largest tree.
        settings: numbers of nodes at which the prediction is compared with what is allocated.
        length: tokens of the text there.
        rows, row_tokens: of the batch.
        forget: whether a budget is tried in which the first turns do not fit.
    """

    turns: int
    reply: int
    reserved: int
    nodes: int
    settings: tuple[int, ...]
    length: int
    rows: int
    row_tokens: int
    forget: bool


@dataclass
class Chat:
    """What a chat said and held.

    Attributes:
        runs: of every turn.
        peak: bytes of the fullest moment.
        sizes: by turn, the nodes of its trees.
        dropped: turns that did not fit.
    """

    runs: list[Continuation] = field(default_factory=list)
    peak: int = 0
    sizes: list[list[int]] = field(default_factory=list)
    dropped: int = 0

    @property
    def tokens_per_pass(self) -> float:
        return sum(len(run.tokens) for run in self.runs) / sum(run.statistics.forwards for run in self.runs)


def _chat(lab: Lab, size: Size, control: SpecMemo | None) -> Chat:
    """Ask all questions one after the other; plain decoding without a controller."""
    talk = Conversation(lab.model)
    parts: list[Any] = [] if control is None else [TokenRecycling(TokenRecyclingSettings(nodes=size.nodes)), control]
    made = compose(talk, parts)
    chat, messages = Chat(), []
    try:
        for question in _QUESTIONS[: size.turns]:
            messages.append({"role": "user", "content": question})
            prompt = lab.engine.encode(messages)
            while control is not None and len(messages) > 1 and not control.fits(len(prompt) + size.reply):
                # The oldest question and its answer.
                del messages[:2]
                chat.dropped += 1
                prompt = lab.engine.encode(messages)
            run, sizes = _turn(made, prompt, size.reply)
            chat.runs.append(run)
            chat.sizes.append(sizes)
            tokenizer = lab.model.tokenizer
            answer = tokenizer.decode([token for token in run.tokens if token not in lab.model.stop_tokens])
            messages.append({"role": "assistant", "content": answer})
    finally:
        if control is not None:
            chat.peak = control.ledger.peak
        talk.close()
    return chat


def _turn(made: Composition, prompt: list[int], reply: int) -> tuple[Continuation, list[int]]:
    statistics, sizes = Statistics(), []
    tokens: tuple[int, ...] = ()
    for event in made.decode([prompt], stop=Stop(reply)):
        statistics.update(event, 0.0, None)
        if isinstance(event, Stepped):
            sizes.append(len(event.draft))
        elif isinstance(event, Finished):
            tokens = event.tokens
    return Continuation(prompt, list(tokens), statistics), sizes


def _control(size: Size, budget: int | None, block: int = 32) -> SpecMemo:
    """Without calibration: the tree is the largest that fits, so that memory alone decides."""
    return SpecMemo(
        SpecMemoSettings(budget=budget, block=block, nodes=size.nodes, calibration=10**6, costs="flat")  # type: ignore[arg-type]
    )


@experiment(
    "specmemo",
    quick=Size(3, 14, 2048, 16, (0, 4, 8, 12, 16), 36, 4, 8, False),
    full=Size(8, 64, 2048, 64, (0, 8, 16, 32, 64), 400, 4, 48, True),
    backend="transformers",
)
def EXPERIMENT(lab: Lab, size: Size) -> None:
    """Measure bytes, passes and identity of a chat under budgets, the prediction, and a batch."""
    model: Any = lab.model
    lab.setup |= {"drafter": "token-recycling", "turns": size.turns, "sampler": "greedy"}

    lab.say("plain decoding")
    plain = _chat(lab, size, None)
    lab.say(f"a reservation of {size.reserved} positions and {size.nodes} nodes")
    static = _chat(lab, size, _control(size, None, block=size.reserved))
    half = static.peak // 2
    lab.say("SpecMemo in half of that")
    memo = _chat(lab, size, _control(size, half))

    sizes: Footprint = model.footprint(32)
    longest = max(len(run.prompt) for run in plain.runs) + size.reply
    # What plain decoding of the longest turn needs, and room for a few candidates.
    tight = int(1.3 * sizes.peak(1, longest, 1, 1, sizes.room(longest - 1)))
    lab.say("a budget in which plain decoding fits with little to spare")
    small = _chat(lab, size, _control(size, tight))
    try:
        _chat(lab, size, _control(size, tight, block=size.reserved))
        refused = "it began"
    except BudgetExceeded as error:
        refused = str(error)

    megabyte = 2**20
    lab.row("MB at the peak, largest tree that fits (reservation)", static.peak / megabyte, memo.peak / megabyte)
    lab.row("tokens per target pass (reservation)", static.tokens_per_pass, memo.tokens_per_pass)
    lab.row("tokens per target pass (plain)", plain.tokens_per_pass, memo.tokens_per_pass)
    lab.row(
        "MB at the peak in 1.3 times what plain decoding needs (the budget)", tight / megabyte, small.peak / megabyte
    )
    lab.row("tokens per target pass there (reservation, unlimited)", static.tokens_per_pass, small.tokens_per_pass)
    for turn, (all_of, few) in enumerate(zip(static.sizes, small.sizes, strict=True), 1):
        lab.row(f"nodes a tree there, turn {turn} (reservation)", _mean(all_of), _mean(few))

    for name, chat in (("reservation", static), ("half of it", memo), ("small budget", small)):
        found = agreement(lab.model, plain.runs, chat.runs)
        lab.check(f"{name}: all turns say what plain decoding says", str(found), found.identical)
    less = 1 - memo.peak / static.peak
    lab.check("at least 50% less memory at the peak than the reservation", less, less >= 0.5, less > 0)
    kept = memo.tokens_per_pass / static.tokens_per_pass
    lab.check("with at least 95% of its tokens per pass", kept, kept >= 0.95, kept >= 0.9)
    lab.check("in 1.3 times what plain decoding needs, the reservation cannot begin", refused, refused != "it began")
    gained = small.tokens_per_pass
    lab.check("and there are at least 1.2 tokens per pass", gained, gained >= 1.2, gained > 1)
    lab.check(
        "the counted peak stays within both budgets",
        f"{memo.peak} of {half}, {small.peak} of {tight} bytes",
        memo.peak <= half and small.peak <= tight,
    )

    _prediction(lab, size, model)
    _batch(lab, size, model)
    if size.forget:
        lab.say("a budget in which the first turns do not fit")
        third = int(sizes.peak(1, longest // 2, 1, 1, sizes.room(longest // 2)))
        forgetful = _chat(lab, size, _control(size, third))
        lab.row("turns dropped in half of the memory of plain decoding", 0, forgetful.dropped)
        lab.check(
            "the oldest turns are dropped, and the budget holds",
            f"{forgetful.dropped} dropped, {forgetful.peak} of {third} bytes",
            forgetful.dropped > 0 and forgetful.peak <= third,
        )
    lab.note(
        "Of the paper only the abstract was at hand; the memory model is a natural reading of it. Bytes are those of "
        "caches, masks, logits and the layers' work, without the weights (as in the paper's 65%). The "
        f"reservation is for {size.reserved} positions, a quarter of the model's context."
    )
    if lab.quick:
        lab.note(f"Quick: {size.turns} turns of {size.reply} tokens and trees of {size.nodes} nodes.")


def _mean(values: list[int]) -> float:
    return sum(values) / max(len(values), 1)


def _prediction(lab: Lab, size: Size, model: Any) -> None:
    """Bytes of one pass behind a text: predicted, counted, and really allocated."""
    worst = worst_real = 0.0
    for nodes in size.settings:
        lab.say(f"predicted and allocated bytes, {nodes} nodes")
        ledger = Ledger()
        with model.counted(ledger, 32):
            (cache,) = model.new_caches(1)
        prompt = (lab.engine.encode("Count to a thousand.") * size.length)[: size.length]
        tree = TokenTree.chain(prompt[: nodes + 1])

        def run(cache: Any = cache, prompt: list[int] = prompt, tree: TokenTree = tree) -> None:
            model.prefill(cache, prompt, rows=[], chunk=32)
            model.score([Request(cache, tree)])

        real = allocated(run)
        sizes: Footprint = model.footprint(32)
        read = max(
            sizes.peak(1, end, width, 0, sizes.room(end - width))
            for end, width in [
                (min(first + 32, size.length), min(32, size.length - first)) for first in range(0, size.length, 32)
            ]
        )
        end = size.length + nodes + 1
        predicted = max(read, sizes.peak(1, end, nodes + 1, nodes + 1, sizes.room(size.length)))
        worst = max(worst, abs(predicted / ledger.peak - 1))
        worst_real = max(worst_real, abs(predicted / real - 1))
        lab.row(f"MB at the peak with {nodes} nodes, predicted (allocated)", real / 2**20, predicted / 2**20)
        cache.release()
    lab.check(
        f"the prediction is within 10% of what is counted, at {len(size.settings)} sizes of tree", worst, worst <= 0.1
    )
    lab.check("and within 10% of what torch really allocates", worst_real, worst_real <= 0.1)


def _batch(lab: Lab, size: Size, model: Any) -> None:
    lab.say(f"a batch of {size.rows} rows and as many single runs")
    prompts = [lab.engine.encode(question) for question in _QUESTIONS[: size.rows]]
    plain = decode_all(compose(model), prompts, new_tokens=size.row_tokens)
    sizes: Footprint = model.footprint(32)
    longest = max(map(len, prompts)) + size.row_tokens
    budget = int(1.3 * sizes.peak(size.rows, longest, 1, 1, sizes.room(longest)))
    control = _control(size, budget)
    drafter = TokenRecycling(TokenRecyclingSettings(nodes=size.nodes))
    rows = decode_all(compose(model, [drafter, control]), prompts, new_tokens=size.row_tokens, batch=size.rows)
    found = agreement(model, plain, rows)
    drafted = sum(run.statistics.drafted for run in rows)
    lab.check(
        f"a batch of {size.rows} rows within one budget says what single runs say",
        f"{found}; {drafted} nodes drafted; {control.ledger.peak} of {budget} bytes",
        found.identical and drafted > 0 and control.ledger.peak <= budget,
    )
