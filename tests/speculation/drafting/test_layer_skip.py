"""Self-speculation with a fixed exit: what is drafted, what is run, what is kept."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import transformers
from tests.contracts.exact import continuations, fit
from tests.models.shapes import DECODERS, VOCAB, backend, prompts
from tests.speculation.drafting.early_exits import LAYERS, shallow, truncated
from torch import Tensor

from unspool.core.branch import Branch
from unspool.core.compose import compose
from unspool.core.decode import decode
from unspool.core.errors import Incompatible
from unspool.core.events import Finished, Scored, Stepped
from unspool.core.model import Capability, LanguageModel
from unspool.core.scores import Request, Want
from unspool.core.sockets import Budget, Distribution, Draft, Entered, Node, Sampler
from unspool.core.texts import Stop
from unspool.core.tree import TokenTree
from unspool.models.load import wrap
from unspool.speculation.drafting._early_exit import Chain
from unspool.speculation.drafting.layer_skip import LayerSkip, LayerSkipSettings

PROMPT = [1, 3, 0, 2, 4, 3, 0, 1]
REFUSED = 3e-4
SAMPLE = 1200


class Softmax(Sampler):
    """The model's own distribution, a little sharpened."""

    def distribution(self, node: Node) -> Distribution:
        return Distribution(torch.softmax(node.logits / 0.8, dim=-1))

    def draft_probs(self, logits: Tensor, tokens: list[int], branch: Branch) -> Tensor:
        return torch.softmax(logits / 0.8, dim=-1)


def exact(lm: LanguageModel, prompt: Sequence[int], length: int) -> Tensor:
    """``[V] * length`` probabilities of every continuation under ``Softmax``, from one tree with all of them."""
    paths = list(itertools.product(range(lm.vocab_size), repeat=length))
    cache = lm.new_cache()
    lm.prefill(cache, prompt[:-1], rows=[])
    tree = TokenTree.from_paths([(prompt[-1], *path) for path in paths])
    (scores,) = lm.score([Request(cache, tree)])
    probs = torch.softmax(scores.logits / 0.8, dim=-1)
    values = []
    for path in paths:
        node, p = 0, torch.ones((), dtype=torch.float64)
        for token in path:
            p = p * probs[node, token]
            child = tree.child(node, token)
            assert child is not None
            node = child
        values.append(p)
    return torch.stack(values).reshape([lm.vocab_size] * length)


def run(composition: Any, asked: Sequence[Sequence[int]], size: int) -> tuple[list[list[int]], list[Any]]:
    events = list(composition.decode(asked, stop=Stop(size)))
    found = {event.index: list(event.tokens) for event in events if isinstance(event, Finished)}
    return [found[index] for index in range(len(asked))], events


# -- what the models must offer -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [*DECODERS, "bart", "marian"])
def test_the_exit_head_is_what_follows_the_last_layer_that_ran(shape: str) -> None:
    lm: Any = backend(shape)
    (cache, start), *_ = lm.start(prompts(1))
    tree = TokenTree.chain([*start, 5, 6, 7])
    before = lm.forwards
    for layers in range(1, lm.num_layers + 1):
        (scores,) = lm.score([Request(cache, tree)], Want(hidden=frozenset({layers})), range(layers))
        torch.testing.assert_close(lm.exit_head(scores.hidden[layers]), scores.logits)
    assert lm.forwards == before + lm.num_layers, "reading out is no pass"


def test_a_truncated_network_says_the_same() -> None:
    lm = shallow(5)
    for layers in range(1, LAYERS):
        (mine,) = lm.score([Request(lm.new_cache(), TokenTree.chain(PROMPT))], layers=range(layers))
        cut = truncated(lm, layers)
        (other,) = cut.score([Request(cut.new_cache(), TokenTree.chain(PROMPT))])
        torch.testing.assert_close(mine.logits, other.logits)


def test_networks_whose_layers_lean_on_others_have_no_ranges() -> None:
    config = transformers.PhiConfig(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    net: Any = transformers.AutoModelForCausalLM.from_config(config)
    assert Capability.LAYER_RANGES in wrap(net).capabilities
    # As networks do whose upper layers read the keys of a lower one.
    said: list[Tensor] = []
    net.model.register_forward_pre_hook(lambda module, args: said.clear())
    net.model.layers[0].register_forward_hook(lambda module, args, output: said.append(output))
    net.model.layers[1].register_forward_hook(lambda module, args, output: output + said.pop())
    lm = wrap(net, name="leaning")
    assert Capability.LAYER_RANGES not in lm.capabilities
    assert lm.forwards == lm.layers_run == 0
    with pytest.raises(Incompatible, match=r"layer-skip needs a model with layer ranges; leaning"):
        compose(lm, "layer-skip")


# -- drafting -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_drafts_are_the_greedy_text_of_the_truncated_network(layer: int) -> None:
    lm, cut = shallow(5), truncated(shallow(5), layer)
    drafter = LayerSkip(LayerSkipSettings(exit_layer=layer, tokens=4))
    asked = [PROMPT, PROMPT[3:], [2]]
    _, events = run(compose(lm, drafter), asked, 20)
    texts = [list(prompt) for prompt in asked]
    lengths = set()
    for event in events:
        if not isinstance(event, Stepped):
            continue
        room = 20 - (len(texts[event.index]) - len(asked[event.index])) - 1
        assert len(event.draft) == min(4, room)
        if len(event.draft):
            (said,) = [e for e in decode(cut, [texts[event.index]], stop=Stop(len(event.draft))) if type(e) is Finished]
            assert event.draft.token_list == list(said.tokens)
        lengths.add(len(event.accepted))
        texts[event.index] += event.tokens
    assert len(lengths) > 1, "drafts that all fare alike prove little"


def test_layers_run_are_those_of_the_paper() -> None:
    lm = shallow(5)
    _, events = run(compose(lm, "layer-skip", settings={"exit_layer": 2, "tokens": 3}), [PROMPT], 24)
    steps = [(event.draft, scored) for event, scored in zip(stepped(events), rounds(events), strict=True)]
    for draft, scored in steps:
        assert scored.layers == 2 * len(draft) + LAYERS
        assert scored.forwards == (len(draft) + 2 if len(draft) else 1)
    # Of a batch the passes are shared.
    _, events = run(compose(lm, "layer-skip", settings={"exit_layer": 2, "tokens": 3}), [PROMPT, PROMPT[2:]], 4)
    assert rounds(events)[0].layers == 2 * 3 + LAYERS


def stepped(events: Sequence[Any]) -> list[Stepped]:
    return [event for event in events if isinstance(event, Stepped)]


def rounds(events: Sequence[Any]) -> list[Scored]:
    return [event for event in events if isinstance(event, Scored)]


def test_every_draft_stands_if_the_upper_layers_add_nothing() -> None:
    lm = shallow(5, upper=0.0)
    texts, events = run(compose(lm, "layer-skip", settings={"exit_layer": 1, "tokens": 5}), [PROMPT], 24)
    assert all(len(event.accepted) == len(event.draft) for event in stepped(events))
    (plain,), _ = run(compose(lm), [PROMPT], 24)
    assert texts == [plain]


def test_stop_tokens_end_a_draft(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = shallow(5, upper=0.0)
    (plain,), _ = run(compose(lm), [PROMPT], 8)
    monkeypatch.setattr(lm, "stop_tokens", frozenset({plain[2]}))
    (text,), events = run(compose(lm, "layer-skip", settings={"exit_layer": 1, "tokens": 7}), [PROMPT], 20)
    ends = plain.index(plain[2]) + 1
    assert text == plain[:ends]
    assert stepped(events)[0].draft.token_list == plain[:ends]


@pytest.mark.parametrize("nodes", [0, 1, 2])
def test_budgets_cut_the_draft(nodes: int) -> None:
    lm = shallow(5)
    (plain,), _ = run(compose(lm), [PROMPT], 16)
    made = compose(lm, "layer-skip+fixed-budget", settings={"fixed-budget.nodes": nodes, "exit_layer": 2})
    (text,), events = run(made, [PROMPT], 16)
    assert text == plain
    assert max(len(event.draft) for event in stepped(events)) == nodes


class Cutting(LayerSkip):
    """Drafts more than stands in the draft that it hands over, as a controller that cuts would have it."""

    def propose(self, branches: Sequence[Branch], budgets: Sequence[Budget]) -> list[Draft]:
        return [draft.select(range(len(draft.tree) // 2)) for draft in super().propose(branches, budgets)]


def test_a_draft_that_is_cut_after_it_has_entered() -> None:
    lm = shallow(5)
    for size in (1, 6):
        drafter = Cutting(LayerSkipSettings(exit_layer=2, tokens=size))
        texts, events = run(compose(lm, drafter), [PROMPT, PROMPT[:3]], 16)
        assert texts == run(compose(lm), [PROMPT, PROMPT[:3]], 16)[0]
        assert {len(event.draft) for event in stepped(events)} <= {0, 1, 2, 3}
    with pytest.raises(ValueError, match="leading nodes"):
        Entered(1, torch.zeros(1, 2), torch.zeros(3, 2)).select([0, 2])


# -- the distribution ---------------------------------------------------------------------------------------------


class DropsUnlikely(LayerSkip):
    """Takes back a token that it was unsure of: the bias that the stopping rule must not have."""

    def propose(self, branches: Sequence[Branch], budgets: Sequence[Budget]) -> list[Draft]:
        drafts = super().propose(branches, budgets)
        return [
            draft.select(range(next((i for i, c in enumerate(draft.confidence) if c < 0.6), len(draft.tree))))
            for draft in drafts
        ]


class StopsAfterUnlikely(LayerSkip):
    """Keeps a token that it was unsure of and draws no further."""

    def stops(self, chain: Chain) -> bool:
        return chain.chances[-1] < 0.4


@pytest.mark.parametrize(
    ("method", "kept"),
    [(LayerSkip, True), (StopsAfterUnlikely, True), (DropsUnlikely, False)],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_distribution_is_the_targets(method: type[LayerSkip], kept: bool) -> None:
    lm = shallow(5)
    composition = compose(lm, method(LayerSkipSettings(exit_layer=2, tokens=3)), sampler=Softmax())
    tokens = continuations(composition, PROMPT, SAMPLE, 3, seed=1)
    assert (fit(tokens, exact(lm, PROMPT, 3)) > REFUSED) == kept


# -- refusals -----------------------------------------------------------------------------------------------------


def test_exits_outside_of_the_network_are_refused() -> None:
    with pytest.raises(Incompatible, match=r"exit_layer=4 must lie between 1 and 3, since shallow-5 has 4 layers"):
        compose(shallow(5), "layer-skip", settings={"exit_layer": 4})
    drafter = LayerSkip()
    compose(shallow(5), drafter)
    assert drafter.layer == 1
    single = truncated(shallow(5), 1)
    with pytest.raises(Incompatible, match="only 1"):
        compose(single, "layer-skip")
