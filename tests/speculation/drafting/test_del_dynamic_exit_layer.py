"""DEL: what it counts, what it chooses, when it stops; against a second reckoning from the finished text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tests.contracts.exact import continuations, fit
from tests.speculation.drafting.early_exits import LAYERS, shallow
from tests.speculation.drafting.test_layer_skip import PROMPT, REFUSED, Softmax, exact, rounds, run, stepped
from torch import Tensor

from unspool.core.compose import compose
from unspool.core.errors import Incompatible
from unspool.core.events import Stepped
from unspool.core.scores import Request, Want
from unspool.core.texts import Stop
from unspool.core.tree import TokenTree
from unspool.models.transformers_lm import TransformersModel
from unspool.speculation.drafting.del_dynamic_exit_layer import (
    DELSettings,
    DynamicExitLayer,
    ShadowStatistics,
    tokens_per_layer,
)

LONG = [(7 * place + place * place // 3) % 11 for place in range(45)]


class Watched(DynamicExitLayer):
    """Writes down the counts after every round."""

    def __init__(self, settings: DELSettings | None = None) -> None:
        super().__init__(settings)
        self.history: list[list[Tensor]] = []
        self.choices: list[tuple[int, int]] = []

    def _choose(self, memory: Any) -> None:
        held = memory.statistics
        self.history.append([t.clone() for t in (held.matches, held.mismatches, held.sure_right, held.sure_wrong)])
        super()._choose(memory)
        self.choices.append((self.candidates[memory.place], memory.length))


def predictions(lm: TransformersModel, text: Sequence[int]) -> tuple[Tensor, Tensor]:
    """``[L, T]`` most probable next tokens after every layer at every position, and their probabilities."""
    layers = range(1, lm.num_layers + 1)
    tree = TokenTree.chain(list(text))
    cache = lm.new_cache()
    rows = [lm.score([Request(cache, tree)], layers=range(layer))[0].logits for layer in layers]
    best = torch.stack([torch.softmax(row, dim=-1) for row in rows]).max(dim=-1)
    return best.indices, best.values


def reckon(
    lm: TransformersModel, prompt: list[int], events: Sequence[Any], decay: float, seed: int, layers: list[int]
) -> list[list[Tensor]]:
    """The counts after every round, from the finished text and from what was accepted when."""
    steps = [event for event in events if isinstance(event, Stepped)]
    text = prompt + [token for event in steps for token in event.tokens]
    tokens, sure = predictions(lm, text)
    place = [layer - 1 for layer in layers]
    agree, sure = (tokens[place] == tokens[-1]).double(), sure[place]
    held = [torch.zeros(len(layers), dtype=torch.float64) for _ in range(4)]
    end, history = len(prompt) - 1, []
    for number, step in enumerate(steps[:-1]):
        first = max(0, end - seed + 1) if number == 0 and seed else end
        a, c = agree[:, first : end + len(step.accepted) + 1], sure[:, first : end + len(step.accepted) + 1]
        for t, new in zip(held, (a, 1 - a, a * c, (1 - a) * c), strict=True):
            t.mul_(decay).add_(new.sum(dim=1))
        history.append([t.clone() for t in held])
        end += len(step.tokens)
    return history


@pytest.mark.parametrize(
    ("settings", "chunk"),
    [
        (DELSettings(), 256),
        (DELSettings(), 7),
        (DELSettings(), 44),
        (DELSettings(every=2, decay=0.8, prompt_tokens=5), 3),
        (DELSettings(prompt_tokens=0, dynamic=False, tokens=4), 16),
        (DELSettings(start_layer=3, tokens=2), 256),
    ],
)
def test_counts_are_those_of_the_finished_text(settings: DELSettings, chunk: int) -> None:
    lm, drafter = shallow(11), Watched(settings)
    made = compose(lm, drafter)
    events = list(made.decode([LONG], stop=Stop(40), chunk=chunk))
    expected = reckon(lm, LONG, events, settings.decay, settings.prompt_tokens, drafter.candidates)
    assert len(drafter.history) == len(expected) > 8
    for mine, right in zip(drafter.history, expected, strict=True):
        for held, wanted in zip(mine, right, strict=True):
            torch.testing.assert_close(held, wanted)
    assert len({len(event.accepted) for event in stepped(events)}) > 1
    # Every choice is the best by brute force.
    for (matches, mismatches, *_), (layer, length) in zip(drafter.history, drafter.choices, strict=True):
        promise = brute(matches / (matches + mismatches), drafter.candidates, settings.tokens)
        best = max(promise.values())
        if length:
            assert promise[layer, length] == pytest.approx(best)
        else:
            assert best == pytest.approx(1 / LAYERS)


def brute(alpha: Tensor, layers: Sequence[int], longest: int) -> dict[tuple[int, int], float]:
    return {
        (layer, d): sum(float(alpha[place]) ** k for k in range(d + 1)) / (d * layer + LAYERS)
        for place, layer in enumerate(layers)
        for d in range(longest + 1)
    }


def test_tokens_per_layer() -> None:
    alpha = torch.tensor([0.0, 0.37, 1.0, math.nan], dtype=torch.float64)
    layers = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    gain = tokens_per_layer(alpha, layers, 12, 17)
    assert gain.shape == (4, 18)
    for row, layer in enumerate(layers[:3].tolist()):
        for d in range(18):
            expected = sum(float(alpha[row]) ** k for k in range(d + 1)) / (d * layer + 12)
            assert float(gain[row, d]) == pytest.approx(expected)
    assert bool((gain[3] == -torch.inf).all())
    assert float(gain[2, 17]) == pytest.approx(18 / (17 * 3 + 12)), "alpha = 1 divides by nothing"


def test_threshold_is_the_middle_of_two_means() -> None:
    held = ShadowStatistics(2, 0.5)
    assert math.isnan(held.threshold(0)), "without data nothing is below it"
    held.update(torch.tensor([[True, True], [True, False]]), torch.tensor([[0.9, 0.7], [0.6, 0.2]]).double())
    assert math.isnan(held.threshold(0)), "never wrong yet"
    assert held.threshold(1) == pytest.approx((0.6 + 0.2) / 2)
    held.update(torch.tensor([[False], [True]]), torch.tensor([[0.3], [0.8]]).double())
    assert held.threshold(0) == pytest.approx((0.8 + 0.3) / 2)
    assert held.threshold(1) == pytest.approx(((0.5 * 0.6 + 0.8) / 1.5 + 0.2) / 2)
    torch.testing.assert_close(held.alpha, torch.tensor([1.0 / 2.0, 1.5 / 2.0], dtype=torch.float64))


class Confident(Watched):
    """Also writes down every chain with the threshold that it was held against."""

    def grow(self, chains: Any) -> None:
        super().grow(chains)
        for chain in chains:
            memory = self._memory(chain.branch)
            self.chains.append((list(chain.chances), memory.statistics.threshold(memory.place), chain.limit))

    chains: list[tuple[list[float], float, int]]


def test_drafts_end_after_the_first_unlikely_token() -> None:
    drafter = Confident(DELSettings(tokens=6))
    drafter.chains = []
    run(compose(shallow(11), drafter), [LONG, LONG[3:]], 40)
    ended = 0
    for chances, threshold, limit in drafter.chains:
        below = [place for place, chance in enumerate(chances) if chance < threshold]
        assert below in ([], [len(chances) - 1])
        if not below:
            assert len(chances) == limit
        ended += bool(below) and len(chances) < limit
    assert ended > 3
    assert max(len(chances) for chances, _, _ in drafter.chains) > 1


def test_without_dynamic_exits_drafts_are_as_long_as_promised() -> None:
    drafter = Watched(DELSettings(dynamic=False, tokens=5))
    _, events = run(compose(shallow(11), drafter), [LONG], 40)
    lengths = [len(event.draft) for event in stepped(events)]
    assert lengths[0] == 1, "the first round only looks"
    left = [39]
    for event in stepped(events):
        left.append(left[-1] - len(event.tokens))
    assert lengths[1:] == [min(d, room) for (_, d), room in zip(drafter.choices, left[1:], strict=False)]
    assert len(set(lengths)) > 1


def test_layers_run_are_those_of_the_paper() -> None:
    drafter = Watched()
    _, events = run(compose(shallow(11), drafter), [LONG], 40)
    exits = [1, *(layer for layer, _ in drafter.choices)]
    for layer, event, scored in zip(exits, stepped(events), rounds(events), strict=True):
        assert scored.layers == layer * len(event.draft) + LAYERS
    rows = sum(len(event.accepted) + 1 for event in stepped(events)[:-1])
    # Three candidates; the first estimate reads 31 more positions, at the last layer as well.
    assert drafter.head_rows == 3 * rows + 31 * 4


def test_a_model_that_disagrees_with_itself_is_left_alone() -> None:
    drafter = Watched()
    _, events = run(compose(shallow(64, upper=1.5), drafter), [LONG], 30)
    late = stepped(events)[8:]
    assert sum(len(event.draft) for event in late) <= len(late) // 4
    assert {key[1] for key in drafter.chosen} >= {0}
    every = shallow(64, upper=0.0)
    drafter = Watched()
    _, events = run(compose(every, drafter), [LONG], 60)
    assert set(drafter.choices) == {(1, 18)}, "one that always agrees drafts as much as it may from the first layer"
    assert len(stepped(events)) <= 2 + math.ceil(58 / 19)


def test_branches_keep_counts_of_their_own() -> None:
    together = Watched()
    texts, _ = run(compose(shallow(11), together), [LONG, LONG[9:30], [3]], 24)
    for prompt, text in zip([LONG, LONG[9:30], [3]], texts, strict=True):
        alone = Watched()
        assert run(compose(shallow(11), alone), [prompt], 24)[0] == [text]
        for counts in alone.history:
            assert any(all(map(torch.allclose, counts, other)) for other in together.history)


def test_the_distribution_is_the_targets() -> None:
    lm = shallow(5)
    composition = compose(lm, DynamicExitLayer(DELSettings(tokens=3, prompt_tokens=4)), sampler=Softmax())
    tokens = continuations(composition, PROMPT, 800, 3, seed=1)
    assert fit(tokens, exact(lm, PROMPT, 3)) > REFUSED


def test_settings_that_name_no_layer_are_refused() -> None:
    for name in ("every", "start_layer"):
        with pytest.raises(Incompatible, match=f"{name}=4 must lie between 1 and 3"):
            compose(shallow(5), "del-dynamic-exit-layer", settings={name: 4})


def test_every_second_layer() -> None:
    drafter = DynamicExitLayer(DELSettings(every=2, start_layer=1))
    compose(shallow(5), drafter)
    assert drafter.candidates == [2]
    assert drafter.want == Want(hidden=frozenset({2, LAYERS}))
