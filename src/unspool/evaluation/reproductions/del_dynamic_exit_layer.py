"""DEL: layers run for each token, against every fixed exit layer and draft length.

Paper: DEL: Context-Aware Dynamic Exit Layer for Efficient Self-Speculative Decoding, 2025: 2.16x to 2.62x on models of
1B to 70B that were trained with the LayerSkip recipe. Here: a twelve-layer network trained with that recipe, three
kinds of text, layers run for each token instead of seconds.

Under greedy verification a fixed pair of exit and length fares by one thing: at which places of the plain text its exit
says what the whole network says. One pass over each text tells that for all exits, so the whole grid is reckoned
exactly; one pair of it is run for comparison.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from unspool.core.compose import compose
from unspool.core.model import LanguageModel
from unspool.core.scores import Request
from unspool.core.tree import TokenTree
from unspool.evaluation.reproductions._common import (
    Agreement,
    Continuation,
    Lab,
    agreement,
    decode_all,
    experiment,
)
from unspool.evaluation.reproductions._pair import held_out_code
from unspool.models.load import load_model
from unspool.speculation.drafting.del_dynamic_exit_layer import DELSettings, DynamicExitLayer
from unspool.training.corpora import docstrings

Pair = tuple[int, int]

LENGTHS = (1, 2, 4, 6, 8, 12)


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Args:
        prompts: of each kind of text.
        length: tokens of a prompt.
        new_tokens: generated for each.
        exits: exit layers of the grid.
        scripted: whether drafts of exactly the promised length are tried.
        sampled_layers: k of the variant that looks at every k-th layer; 0 to leave it out.
        control: prompts on which a model without the recipe is tried; 0 to leave it out.
    """

    prompts: int
    length: int
    new_tokens: int
    exits: tuple[int, ...]
    scripted: bool
    sampled_layers: int
    control: int


def _prose(model: LanguageModel, count: int, length: int) -> list[list[int]]:
    """Beginnings of held-out docstrings."""
    found = []
    for document in docstrings("held-out", least=4 * length):
        tokens = model.tokenizer.encode(document.text)[:length]
        if len(tokens) == length:
            found.append(tokens)
    step = max(len(found) // count, 1)
    return found[::step][:count]


def _tables(model: LanguageModel, count: int, length: int) -> list[list[int]]:
    """Python tables whose lines are alike."""
    rng = random.Random(4)
    forms = [
        "    0x{0:02x}: '{1}',",
        "    ('{1}', {0}),",
        "{2}_{1} = {0}",
        "    '{1}': {0},",
        "        self.assertEqual({1}, {0})",
    ]
    found = []
    for place in range(count):
        form, name = forms[place % len(forms)], rng.choice(["MODE", "FLAG", "TYPE", "CODE"])
        start, step = rng.randrange(40), rng.choice([1, 2, 4])
        words = rng.sample(["open", "read", "write", "close", "seek", "tell", "list", "move", "copy", "name"], 4)
        lines = [form.format(start + step * row, words[row % 4].upper(), name) for row in range(length)]
        found.append(model.tokenizer.encode("TABLE = {\n" + "\n".join(lines))[:length])
    return found


def right_exits(model: LanguageModel, run: Continuation) -> torch.Tensor:
    """``[L - 1, T]`` whether each exit says the text's own token at every generated place."""
    text = [*run.prompt, *run.tokens][:-1]
    rows = list(range(len(run.prompt) - 1, len(text)))
    cache = model.new_cache()
    try:
        said = [
            model.score([Request(cache, TokenTree.chain(text), rows=rows)], layers=range(exit_layer))[0]
            .logits.argmax(dim=-1)
            .tolist()
            for exit_layer in range(1, model.num_layers)
        ]
    finally:
        cache.release()
    return torch.tensor(said) == torch.tensor(run.tokens)


def reckon(right: torch.Tensor, pair: Pair, layers: int) -> int:
    """Layers that a fixed exit and draft length run for a text; ``right`` is ``[L - 1, T]``."""
    exit_layer, longest = pair
    row, total, run, place = right[exit_layer - 1].tolist(), right.shape[1], 0, 0
    while place < total:
        drafted = min(longest, total - place - 1)
        run += drafted * exit_layer + layers
        stands = 0
        while stands < drafted and row[place + stands]:
            stands += 1
        place += stands + 1
    return run


def per_token(runs: Sequence[Continuation]) -> float:
    """Layers run for each token, over all texts."""
    return sum(run.statistics.layers for run in runs) / sum(len(run.tokens) for run in runs)


@experiment(
    "del-dynamic-exit-layer",
    quick=Size(prompts=4, length=64, new_tokens=96, exits=(2, 3, 4, 6, 8), scripted=False, sampled_layers=0, control=0),
    full=Size(prompts=20, length=64, new_tokens=192, exits=(2, 3, 4, 6, 8), scripted=True, sampled_layers=2, control=4),
    model="stdlib-layerskip",
)
def EXPERIMENT(lab: Lab, size: Size) -> None:
    """Measure identity, layers for each token by kind of text, the grid of fixed pairs, ablations, and a control."""
    total = lab.model.num_layers
    domains = {
        "code": held_out_code(lab.model, size.prompts, length=size.length),
        "docstrings": _prose(lab.model, size.prompts, size.length),
        "tables": _tables(lab.model, size.prompts, size.length),
    }
    grid = [(e, d) for e in size.exits if e < total for d in LENGTHS]
    lab.setup |= {"texts": {name: len(prompts) for name, prompts in domains.items()}, "layers": total}

    fixed: dict[str, dict[Pair, float]] = {}
    dynamic: dict[str, float] = {}
    exact: dict[str, float] = {}
    same = Agreement()
    rows = tokens = rounds = 0
    drafter = DynamicExitLayer()
    made = compose(lab.model, drafter)
    scripted = DynamicExitLayer(DELSettings(dynamic=False))
    without = compose(lab.model, scripted)
    plain: dict[str, list[Continuation]] = {}
    for name, prompts in domains.items():
        lab.say(f"{name}: {len(prompts)} texts of {size.new_tokens} tokens")
        plain[name] = decode_all(
            compose(lab.model), prompts, new_tokens=size.new_tokens, batch=size.prompts, stop_tokens=frozenset()
        )
        right = [right_exits(lab.model, run) for run in plain[name]]
        count = sum(len(run.tokens) for run in plain[name])
        fixed[name] = {pair: sum(reckon(r, pair, total) for r in right) / count for pair in grid}
        runs = decode_all(made, prompts, new_tokens=size.new_tokens, stop_tokens=frozenset())
        dynamic[name] = per_token(runs)
        if size.scripted:
            exact[name] = per_token(decode_all(without, prompts, new_tokens=size.new_tokens, stop_tokens=frozenset()))
        found = agreement(lab.model, plain[name], runs)
        same.equal, same.ties = same.equal + found.equal, same.ties + found.ties
        same.different += found.different
        tokens += count
        rounds += sum(run.statistics.steps for run in runs)
    rows = drafter.head_rows

    average = {pair: statistics.fmean(fixed[name][pair] for name in domains) for pair in grid}
    best_pair = min(average, key=lambda pair: average[pair])
    for name in domains:
        pair = min(grid, key=lambda p: fixed[name][p])
        lab.row(
            f"layers for a token, {name}: best fixed pair (exit {pair[0]}, {pair[1]} tokens) against DEL",
            fixed[name][pair],
            dynamic[name],
        )
    mean = statistics.fmean(dynamic.values())
    lab.row(
        f"layers for a token, mean of the kinds: best single pair (exit {best_pair[0]}, {best_pair[1]} tokens) "
        "against DEL",
        average[best_pair],
        mean,
    )
    lab.row("layers for a token, mean of the kinds: plain decoding against DEL", float(total), mean)
    if exact:
        lab.row(
            "layers for a token, mean of the kinds: DEL with drafts of exactly the promised length against DEL",
            statistics.fmean(exact.values()),
            mean,
        )
    if size.sampled_layers:
        lab.say(f"every {size.sampled_layers}th layer only")
        fewer = DynamicExitLayer(DELSettings(every=size.sampled_layers))
        sparse = statistics.fmean(
            per_token(
                decode_all(compose(lab.model, fewer), prompts, new_tokens=size.new_tokens, stop_tokens=frozenset())
            )
            for prompts in domains.values()
        )
        lab.row(
            f"layers for a token, mean of the kinds: DEL at every layer, at every {size.sampled_layers}th", mean, sparse
        )
        lab.row(
            "rows through the head for shadow tokens, for a token: the same two",
            rows / tokens,
            fewer.head_rows / tokens,
        )
    else:
        lab.row("rows through the head for shadow tokens, for a token", None, rows / tokens)
    lab.row("tokens a round", 1.0, tokens / rounds)

    # The reckoning of the grid is held to a run.
    exit_layer, longest = best_pair
    name = next(iter(domains))
    static = compose(lab.model, "layer-skip", settings={"exit_layer": exit_layer, "tokens": longest})
    ran = per_token(decode_all(static, domains[name], new_tokens=size.new_tokens, stop_tokens=frozenset()))
    lab.check(
        f"the fixed pair (exit {exit_layer}, {longest} tokens) runs as many layers as was reckoned, within 1%",
        f"{ran:.4g} against {fixed[name][best_pair]:.4g}",
        abs(ran - fixed[name][best_pair]) <= 0.01 * ran,
    )
    lab.check("every text is that of plain greedy decoding", str(same), same.identical)
    share = mean / total
    lab.check("at most 0.6 of the layers are run for a token", share, share <= 0.6, share < 1)
    worst = max(dynamic[name] / min(fixed[name].values()) for name in domains)
    lab.check(
        "within 5% of the best fixed pair of each kind of text (worst ratio)", worst, worst <= 1.05, worst <= 1.15
    )
    gain = mean / average[best_pair]
    lab.check("fewer layers than the best single fixed pair, over all kinds (ratio)", gain, gain < 1.0, gain <= 1.05)
    gain = mean / statistics.fmean(average.values())
    lab.check("fewer layers than a fixed pair taken blindly from the grid (ratio)", gain, gain < 1.0)
    if size.control:
        _control(lab, size)
    lab.note(
        "Layers are counted as the paper counts them, d E + L a round; the shadow tokens' rows through the head are "
        "apart. Seconds are not compared: at this size a layer costs less than the Python around it."
    )
    lab.note(
        "The early layers of this network of 1.9M parameters agree with its last one far less than those of the "
        "paper's: even the best fixed pair spares a fifth of the layers, so 0.6 is out of reach. DEL weighs exits by "
        "what it has seen of a text; on few short texts it still tries exits out when they end."
    )
    if lab.quick:
        lab.note(f"Quick: {size.prompts} texts of each kind and no control; the full run takes 20 of each.")


def _control(lab: Lab, size: Size) -> None:
    """A model without the recipe: its early layers do not know the last one's answer, so little should be drafted."""
    lab.say("control: SmolLM2 without the recipe")
    model = load_model("smollm2-135m", device=str(lab.model.device), progress=False)
    prompts = [
        model.tokenizer.encode(lab.model.tokenizer.decode(prompt))
        for prompt in held_out_code(lab.model, size.control, length=size.length)
    ]
    drafter = DynamicExitLayer(DELSettings(every=3))
    runs = decode_all(compose(model, drafter), prompts, new_tokens=48, stop_tokens=frozenset())
    drafted = sum(run.statistics.drafted for run in runs) / sum(run.statistics.steps for run in runs)
    share = per_token(runs) / model.num_layers
    lab.row("control without the recipe: layers for a token, of all", 1.0, share)
    lab.row("control without the recipe: tokens drafted a round", None, drafted)
    lab.check("a model without the recipe is left alone: at most 10% more layers than plain", share, share <= 1.1)
