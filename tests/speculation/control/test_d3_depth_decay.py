"""D3: how deep each token goes, which layers are left out, and that no gap in a cache is ever looked at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tests.models.shapes import backend, network, prompts
from tests.speculation.drafting.early_exits import LAYERS, shallow
from torch import Tensor

from unspool.core.branch import Branch
from unspool.core.compose import compose
from unspool.core.errors import Incompatible, InvalidInput
from unspool.core.events import Finished, Scored
from unspool.core.model import LanguageModel
from unspool.core.scores import LOGITS, Request, Scores, Want
from unspool.core.sockets import Move, Search
from unspool.core.texts import Stop
from unspool.core.tree import TokenTree
from unspool.models.load import wrap
from unspool.speculation.control.d3_depth_decay import (
    DepthDecay,
    DepthDecaySettings,
    depth,
    flexible_layers,
    from_the_centre,
)

PROMPT = [1, 3, 0, 2, 4, 3, 0, 1]


def run(made: Any, asked: Sequence[Sequence[int]], size: int, chunk: int = 256) -> tuple[list[list[int]], list[Any]]:
    events = list(made.decode(asked, stop=Stop(size), chunk=chunk))
    found = {event.index: list(event.tokens) for event in events if isinstance(event, Finished)}
    return [found[index] for index in range(len(asked))], events


def depths(events: Sequence[Any]) -> list[int]:
    return [event.layers for event in events if isinstance(event, Scored)]


# -- the schedule -------------------------------------------------------------------------------------------------


def test_depth_follows_the_formula() -> None:
    assert [depth(30, 12, 0.9, i) for i in range(4)] == [30, 27, 24, 21]
    assert depth(30, 12, 0.9, 400) == 12
    assert all(depth(30, 12, 1.0, i) == 30 for i in (0, 1, 5000))
    assert [depth(10, 0, 0.9, 1), depth(10, 0, 0.8, 1)] == [9, 8], "a whole number is not rounded down below itself"
    quarter = next(i for i in range(1000) if depth(30, 12, 0.998, i) <= 22.5)
    assert quarter == math.ceil(math.log(23 / 30) / math.log(0.998)), "what the settings say of their default"


@pytest.mark.parametrize(
    ("total", "first", "last", "expected"),
    [
        (30, 0.2, 0.2, range(6, 24)),
        (12, 0.2, 0.2, range(3, 9)),
        (4, 0.25, 0.25, range(1, 3)),
        (5, 0.5, 0.5, range(3, 2)),
    ],
)
def test_the_core_is_rounded_up(total: int, first: float, last: float, expected: range) -> None:
    assert list(flexible_layers(total, first, last)) == list(expected)


def test_a_span_grows_from_the_centre() -> None:
    for flexible in (range(6, 24), range(3, 8), range(2, 3), range(0)):
        order = from_the_centre(flexible)
        assert sorted(order) == list(flexible)
        for count in range(1, len(order) + 1):
            span = sorted(order[:count])
            assert span == list(range(span[0], span[0] + count)), "one piece"
            assert abs((span[0] - flexible.start) - (flexible.stop - 1 - span[-1])) <= 1, "in the middle"


# -- in the loop --------------------------------------------------------------------------------------------------


class Strict(LanguageModel):
    """Passes on to a model and watches: a layer that runs must have run for all positions before."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.held: dict[int, list[int]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["inner"], name)

    @property
    def num_layers(self) -> int:
        return self.inner.num_layers  # type: ignore[no-any-return]

    def new_caches(self, count: int) -> list[Any]:
        return self.inner.new_caches(count)  # type: ignore[no-any-return]

    def score(
        self, requests: Sequence[Request], want: Want = LOGITS, layers: Sequence[int] | None = None
    ) -> list[Scores]:
        for request in requests:
            held = self.held.setdefault(id(request.cache), [0] * self.num_layers)
            for layer in range(self.num_layers) if layers is None else layers:
                assert held[layer] >= request.cache.length, f"layer {layer} has a gap below {request.cache.length}"
                held[layer] = request.cache.length + len(request.tree)
        answers = self.inner.score(requests, want, layers)
        self.forwards, self.layers_run = self.inner.forwards, self.inner.layers_run
        return answers  # type: ignore[no-any-return]


@pytest.mark.parametrize("order", ["centre", "redundancy"])
def test_every_token_runs_its_layers_and_none_with_a_gap(order: str) -> None:
    lm = Strict(shallow(11))
    settings = {"alpha": 0.93, "first": 0.25, "last": 0.25, "order": order}
    _, events = run(compose(lm, "d3-depth-decay", settings=settings), [PROMPT], 20, chunk=3)
    assert depths(events) == [depth(LAYERS, 2, 0.93, i) for i in range(20)]
    assert set(depths(events)) == {4, 3, 2}


def reference(lm: Any, prompt: Sequence[int], size: int, skipped: list[set[int]]) -> list[int]:
    """Greedy text where every position has its own set of layers, from one pass over the whole text each time.

    A position's state skips its layers; at a layer a position attends to those that run there, which are all before it.
    """
    net = lm.model.model
    text = list(prompt)
    for _ in range(size):
        states = net.embed_tokens(torch.tensor([text]))
        places = torch.arange(len(text))[None]
        rotary = net.rotary_emb(states, places)
        for index, layer in enumerate(net.layers):
            runs = torch.tensor(
                [p < len(prompt) or index not in skipped[p - len(prompt) + 1] for p in range(len(text))]
            )
            count = int(runs.sum())
            assert bool(runs[:count].all()), "nested: those that run are the first"
            causal = torch.full((count, count), -torch.inf, dtype=torch.float64).triu(1)[None, None]
            out = layer(
                states[:, :count],
                attention_mask=causal,
                position_embeddings=(rotary[0][:, :count], rotary[1][:, :count]),
            )
            states = torch.cat([out, states[:, count:]], dim=1)
        text.append(int(lm.model.lm_head(net.norm(states))[0, -1].argmax()))
    return text[len(prompt) :]


def skipped_sets(alpha: float, size: int, order: list[int], core: int) -> list[set[int]]:
    return [set(order[: LAYERS - depth(LAYERS, core, alpha, i)]) for i in range(size + 1)]


def test_the_text_is_that_of_a_second_computation() -> None:
    lm = shallow(11, upper=0.8)
    for prompt in (PROMPT, PROMPT[:2], [9, 8, 7, 6, 5, 4]):
        with torch.no_grad():
            expected = reference(lm, prompt, 24, skipped_sets(0.95, 24, [1, 2], 2))
        made = compose(lm, "d3-depth-decay", settings={"alpha": 0.95, "first": 0.25, "last": 0.25})
        for chunk in (2, 256):
            assert run(made, [prompt], 24, chunk)[0] == [expected]
    plain = run(compose(lm), [PROMPT], 24)[0]
    assert run(made, [PROMPT], 24)[0] != plain, "nothing was at stake"


@pytest.mark.parametrize("order", ["centre", "redundancy"])
@pytest.mark.parametrize("shape", ["llama", "gemma3", "gpt2", "mistral", "bart"])
def test_batches_and_shapes(shape: str, order: str) -> None:
    """Texts that are at different places run different layers, in passes of their own."""
    lm = backend(shape)
    settings = {"alpha": 0.9, "first": 0.3, "last": 0.3, "order": order}
    asked = prompts(3)
    together, events = run(compose(lm, "d3-depth-decay", settings=settings), asked, 16)
    for prompt, text in zip(asked, together, strict=True):
        assert run(compose(lm, "d3-depth-decay", settings=settings), [prompt], 16)[0] == [text]
    assert min(depths(events)) < lm.num_layers


def test_no_decay_is_plain_decoding() -> None:
    lm = backend("llama")
    asked = prompts(3)
    assert run(compose(lm, "d3-depth-decay", settings={"alpha": 1.0}), asked, 16)[0] == run(compose(lm), asked, 16)[0]
    assert not compose(lm, "d3-depth-decay").lossless


def test_drafts_share_the_layers_of_their_first_token() -> None:
    lm = Strict(shallow(11))
    made = compose(lm, "prompt-lookup+d3-depth-decay", settings={"alpha": 0.93, "first": 0.25, "last": 0.25})
    (text,), events = run(made, [PROMPT * 3], 20)
    assert len(text) == 20
    assert depths(events) == sorted(depths(events), reverse=True)
    assert len(depths(events)) < 20, "some drafts stand"


# -- redundancy ---------------------------------------------------------------------------------------------------


def test_redundancy_is_the_cosine_over_the_prompt() -> None:
    lm: Any = shallow(11)
    (scores,) = lm.score([Request(lm.new_cache(), TokenTree.chain(PROMPT))], Want(hidden=frozenset(range(LAYERS + 1))))
    means: list[Tensor] = [
        torch.stack(
            [torch.cosine_similarity(scores.hidden[k][p], scores.hidden[k + 1][p], dim=0) for p in range(8)]
        ).mean()
        for k in range(LAYERS)
    ]
    best = sorted(range(LAYERS), key=lambda k: -float(means[k]))
    settings = DepthDecaySettings(alpha=0.7, first=0.0, last=0.0, order="redundancy")
    for chunk in (3, 256):
        controller = Watched(settings)
        run(compose(lm, controller), [PROMPT], 4, chunk)
        assert controller.seen == [sorted(best[:count]) for count in (0, 2, 3, 3)]
        assert not controller._orders, "measurements end with their requests"


class Watched(DepthDecay):
    """Writes down what is left out."""

    def __init__(self, settings: DepthDecaySettings) -> None:
        super().__init__(settings)
        self.seen: list[list[int]] = []

    def layers(self, branch: Branch) -> Sequence[int] | None:
        chosen = super().layers(branch)
        self.seen.append([] if chosen is None else [layer for layer in range(LAYERS) if layer not in chosen])
        return chosen


class StepsBack(Search):
    """Goes on with two branches and steps back once."""

    width = 2

    def __init__(self) -> None:
        super().__init__()
        self.rounds = 0

    def advance(self, branches: Sequence[Any]) -> list[Move] | None:
        self.rounds += 1
        if self.rounds == 6:
            return [Move(0, 3), Move(0, 1)]
        return None

    def select(self, branches: Sequence[Any]) -> int:
        return 0


@pytest.mark.parametrize("order", ["centre", "redundancy"])
def test_stepping_back_leaves_no_gap(order: str) -> None:
    lm = shallow(11)
    settings = {"alpha": 0.85, "first": 0.25, "last": 0.25, "order": order}
    plain, _ = run(compose(lm, "d3-depth-decay", settings=settings), [PROMPT], 12)
    controller = DepthDecay(DepthDecaySettings(**settings))  # type: ignore[arg-type]
    assert run(compose(lm, [controller, StepsBack()]), [PROMPT], 12)[0] == plain
    assert not controller._orders


# -- refusals -----------------------------------------------------------------------------------------------------


def test_refusals() -> None:
    with pytest.raises(InvalidInput, match="add up to more than 1"):
        compose(backend("llama"), "d3-depth-decay", settings={"first": 0.7, "last": 0.5})
    with pytest.raises(Incompatible, match=r"d3-depth-decay needs a model with layer ranges"):
        compose(wrap(network("t5"), name="t5"), "d3-depth-decay")
