"""D3: fewer layers the further a text has come, against other ways to run as few.

Paper: Position-Aware Depth Decay Decoding (D3), 2025: 1.5x fewer operations on models of 7B to 70B with less than 1%
loss. Here: SmolLM2-135M on chat and code prompts. First the observation that the method rests on, then four ways to
leave layers out with the same number of layers run: D3, a constant span in the middle, an early exit, and the first
layers left out (SkipDecode). Texts are judged by the whole network: how likely it finds them, and how long they are its
own greedy text. Half of the prompts repeat a list, where every word can be checked.
"""

from __future__ import annotations

import math
import random
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import torch
from torch import Tensor

from unspool.core.branch import Branch
from unspool.core.compose import compose
from unspool.core.sockets import Controller
from unspool.evaluation.reproductions._common import Continuation, Lab, decode_all, experiment
from unspool.evaluation.reproductions._prefixes import read_once, tail_log_probs
from unspool.models.load import load_model
from unspool.speculation.control.d3_depth_decay import (
    DepthDecay,
    DepthDecaySettings,
    depth,
    flexible_layers,
    from_the_centre,
)
from unspool.training.recipes.chained_sums import TRIGGER, problems

_WORDS = (
    "apple river stone candle window garden mirror silver pocket button ladder basket hammer bottle feather anchor "
    "blanket kettle lantern needle orange paper pencil pillow rabbit ribbon saddle shadow spider spoon table ticket "
    "tiger towel tunnel turtle valley violin wagon winter"
)


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Args:
        prompts: chats and lists in all; they are decoded side by side.
        new_tokens: of every text.
        saving: the share of layers run that all ways have to save, on average over a text.
        skip_decode: whether the first layers are tried as well; their texts are of no use.
        curve: further decays for the trade-off.
        redundancy: whether the order by measured redundancy is tried.
        sums: problems for a trained network of four layers; 0 to leave them out.
    """

    prompts: int
    new_tokens: int
    saving: float
    skip_decode: bool
    curve: tuple[float, ...]
    redundancy: bool
    sums: int


def lists(lab: Lab, count: int, length: int) -> list[tuple[list[int], list[str]]]:
    """Prompts that begin to repeat a list once more, and the words that are to follow."""
    rng, words = random.Random(3), _WORDS.split()
    found = []
    for _ in range(count):
        said = rng.sample(words, length)
        # With numbers, by which a small model finds its place again.
        lines = "\n".join(f"{place}. {word}" for place, word in enumerate(said, 1))
        found.append((list(lab.model.tokenizer.encode(f"{lines}\n\n{lines}\n\n1.")), said))
    return found


class Scheduled(Controller):
    """Layers by the place of a token, of a fixed schedule; the prompt runs all.

    Args:
        name: of the way.
        chosen: takes the place of a token (from 1) and gives the layers.
    """

    def __init__(self, name: str, chosen: Callable[[int], Sequence[int]]) -> None:
        super().__init__()
        self.name = name
        self.chosen = chosen

    def layers(self, branch: Branch) -> Sequence[int] | None:
        place = len(branch.tokens) - branch.prompt_length
        return self.chosen(place) if place else None


def decay_for(share: float, total: int, core: int, length: int) -> float:
    """The decay with which a text of ``length`` tokens runs ``share`` of the layers on average, found by bisection."""
    low, high = 0.5, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        mean = statistics.fmean(depth(total, core, middle, place) for place in range(length)) / total
        low, high = (middle, high) if mean < share else (low, middle)
    return high


def ways(total: int, alpha: float, flexible: range, length: int) -> list[Scheduled]:
    """Other ways to leave layers out; over a text of ``length`` tokens each runs as many as D3, up to rounding."""
    core = total - len(flexible)
    depths = [depth(total, core, alpha, place) for place in range(length)]
    mean = statistics.fmean(depths[1:])
    order = from_the_centre(flexible)

    def constant(place: int) -> list[int]:
        # Between two whole numbers: the deeper one first, so that no gap is looked at.
        deeper = round((mean - math.floor(mean)) * (length - 1))
        count = math.floor(mean) + (place <= deeper)
        skipped = set(order[: total - count])
        return [layer for layer in range(total) if layer not in skipped]

    def early(place: int) -> range:
        return range(depths[min(place, length - 1)])

    def skip_decode(place: int) -> list[int]:
        # Falls in a line from all layers to as many as give the mean; the first layer reads the tokens and stays.
        least = max(2 * mean - total, 1)
        count = max(round(total - (total - least) * (place - 1) / max(length - 2, 1)), 1)
        return [0, *range(total - count + 1, total)]

    return [
        Scheduled("a constant span in the middle", constant),
        Scheduled("an early exit, as many layers as D3", early),
        Scheduled("SkipDecode, the first layers in a line", skip_decode),
    ]


@dataclass(frozen=True)
class Outcome:
    """How a way fared: share of layers run, perplexity under the whole network, tokens until the texts part, and the
    share of the words of lists that were copied to their places."""

    share: float
    perplexity: float
    agreed: float
    copied: float


def judged(
    lab: Lab,
    plain: Sequence[Continuation],
    runs: Sequence[Continuation],
    asked: Sequence[list[str]],
    logs: Sequence[Tensor] | None = None,
) -> Outcome:
    """Judge texts by the whole network (by ``logs``, if they are known), and the last of them by their lists."""
    scored = torch.cat([tail_log_probs(lab.model, r.prompt, r.tokens) for r in runs] if logs is None else list(logs))
    agreed = [
        next((at for at, (a, b) in enumerate(zip(one.tokens, other.tokens, strict=False)) if a != b), len(one.tokens))
        for one, other in zip(plain, runs, strict=True)
    ]
    right = []
    for run, words in zip(runs[len(runs) - len(asked) :], asked, strict=True):
        said = re.findall(r"[a-z]+", lab.model.tokenizer.decode(run.tokens))
        right += [place < len(said) and said[place] == word for place, word in enumerate(words)]
    share = layer_share(runs, lab.model.num_layers)
    return Outcome(share, math.exp(-float(scored.double().mean())), statistics.fmean(agreed), statistics.fmean(right))


def layer_share(runs: Sequence[Continuation], total: int) -> float:
    """Layers that were run for a pass, of all; texts side by side share their passes."""
    passes = [(run.statistics.layers, run.statistics.forwards) for run in runs]
    return sum(layers for layers, _ in passes) / (total * sum(forwards for _, forwards in passes))


@experiment(
    "d3-depth-decay",
    quick=Size(prompts=6, new_tokens=56, saving=0.16, skip_decode=False, curve=(), redundancy=False, sums=0),
    full=Size(
        prompts=24,
        new_tokens=160,
        saving=0.16,
        skip_decode=True,
        curve=(0.9995, 0.999, 0.998, 0.995, 0.99),
        redundancy=True,
        sums=100,
    ),
)
def EXPERIMENT(lab: Lab, size: Size) -> None:
    """Measure the premise, four ways at equal depth, the trade-off, and what becomes of lists."""
    source, chats = lab.chats(size.prompts // 2, new_tokens=size.new_tokens)
    # A line with a word is about four tokens.
    copying = lists(lab, size.prompts - len(chats), size.new_tokens // 5)
    prompts = [*chats, *(prompt for prompt, _ in copying)]
    lab.setup |= {"prompts": f"{source}, {len(copying)} lists to copy"}
    with read_once(lab.model, prompts, leave=64 if size.redundancy else 1):
        _compare(lab, size, prompts, [words for _, words in copying])
    if size.sums:
        _sums(lab, size.sums)


def _compare(lab: Lab, size: Size, prompts: Sequence[Sequence[int]], asked: Sequence[list[str]]) -> None:
    """The same prompts in every way."""
    total = lab.model.num_layers
    flexible = flexible_layers(total, DepthDecaySettings().first, DepthDecaySettings().last)
    alpha = decay_for(1 - size.saving, total, total - len(flexible), size.new_tokens)
    lab.setup |= {"layers": total, "flexible": [flexible.start, flexible.stop], "alpha": alpha}

    def texts(controller: Controller | None) -> list[Continuation]:
        made = compose(lab.model, [] if controller is None else [controller])
        # All texts are as long, so that all are as deep.
        return decode_all(
            made, prompts, new_tokens=size.new_tokens, batch=min(len(prompts), 8), stop_tokens=frozenset()
        )

    def decayed(rate: float, order: Literal["centre", "redundancy"] = "centre") -> DepthDecay:
        return DepthDecay(DepthDecaySettings(alpha=rate, order=order))

    lab.say("plain decoding")
    plain = texts(None)
    logs = [tail_log_probs(lab.model, run.prompt, run.tokens) for run in plain]
    # Where a list ends the network has to find something else to say: only chats count.
    _premise(lab, logs[: len(logs) - len(asked)])
    contenders: dict[str, Controller] = {"D3": decayed(alpha)}
    if size.redundancy:
        contenders["D3, most redundant first"] = decayed(alpha, "redundancy")
    contenders |= {
        way.name: way for way in ways(total, alpha, flexible, size.new_tokens)[: 3 if size.skip_decode else 2]
    }
    own = judged(lab, plain, plain, asked, logs)
    found: dict[str, Outcome] = {}
    for name, controller in contenders.items():
        lab.say(name)
        found[name] = judged(lab, plain, texts(controller), asked)
        lab.row(f"layers run, of all: plain against {name}", 1.0, found[name].share)
        lab.row(f"perplexity under the whole network: plain against {name}", own.perplexity, found[name].perplexity)
        lab.row(f"words copied to their places: plain against {name}", own.copied, found[name].copied)
        lab.row(
            f"tokens until the text parts from the plain one, of {size.new_tokens}: {name}", None, found[name].agreed
        )
    mine = found.pop("D3")
    others = {name: outcome for name, outcome in found.items() if not name.startswith("D3")}
    best = min(others, key=lambda name: others[name].perplexity)
    spread = max(abs(outcome.share - mine.share) for outcome in found.values())
    lab.check("all ways run as many layers, within 0.02 of all (largest difference)", spread, spread <= 0.02)
    ratio = mine.perplexity / others[best].perplexity
    lab.check(
        f"perplexity is the lowest of all ways, or tied within 2% (ratio to {best})", ratio, ratio <= 1.02, ratio <= 1.1
    )
    saved = 1 / mine.share
    lab.check("at least 1.15x fewer layers are run", saved, saved >= 1.15, saved > 1)
    lost = own.copied - mine.copied
    most = max(outcome.copied for outcome in others.values())
    lab.check("at most 2 points fewer words are copied than at full depth", lost, lost <= 0.02, mine.copied >= most)
    for rate in size.curve:
        lab.say(f"decay {rate}")
        point = judged(lab, plain, texts(decayed(rate)), asked)
        lab.row(f"decay {rate}: layers run, of all", 1.0, point.share)
        lab.row(f"decay {rate}: perplexity under the whole network", own.perplexity, point.perplexity)
        lab.row(f"decay {rate}: words copied to their places", own.copied, point.copied)
    lab.note(
        "The early exit needs no copied states: depth never rises, so its upper layers miss no token they look at. A "
        f"model of this size has little to spare: D3's text has {mine.perplexity / own.perplexity:.2f} times the "
        "perplexity of the plain one."
    )
    if lab.quick:
        lab.note(f"Quick: {len(prompts)} texts of {size.new_tokens} tokens, without SkipDecode, curve and sums.")


def _premise(lab: Lab, logs: Sequence[Tensor]) -> None:
    """Whether the whole network finds later tokens of its text easier, by the log-probabilities of its texts."""
    quarter = len(logs[0]) // 4
    first, last = (
        math.exp(-float(torch.cat([log[part] for log in logs]).double().mean()))
        for part in (slice(quarter), slice(-quarter, None))
    )
    lab.row("perplexity of the plain text: first quarter against last", first, last)
    lab.check("perplexity of the text falls from the first quarter to the last (ratio)", last / first, last < first)


def _sums(lab: Lab, count: int) -> None:
    """Answers of a network that adds numbers step by step; for the record: it has four layers and none to spare."""
    lab.say(f"{count} sums")
    model = load_model("chained-sums", device=str(lab.model.device), progress=False)
    assert model.tokenizer is not None
    asked = list(islice(problems(seed=5), count))
    prompts = [model.tokenizer.encode(problem.question) for problem in asked]
    longest = max(len(problem.text) - len(problem.question) for problem in asked) + 1

    def right(controllers: list[Controller]) -> tuple[float, float]:
        runs = decode_all(compose(model, controllers), prompts, new_tokens=longest, batch=50)
        said = [model.tokenizer.decode(run.tokens).partition(TRIGGER)[2].strip() for run in runs]
        share = layer_share(runs, model.num_layers)
        return statistics.fmean(a == p.answer for a, p in zip(said, asked, strict=True)), share

    full, _ = right([])
    for alpha in (0.995, 0.98):
        score, share = right([DepthDecay(DepthDecaySettings(alpha=alpha, first=0.25, last=0.25))])
        lab.row(f"right sums of a four-layer network, decay {alpha} ({share:.3f} of the layers)", full, score)
