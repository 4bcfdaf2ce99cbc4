"""Log-probabilities of tokens are the model's own under every drafter, in batches, on every kind of model."""

from __future__ import annotations

import pytest
import torch
from tests.contracts.test_greedy import DRAFTERS, KINDS_OF_CACHE, RECURRENT, batch, built, quick, related, slug
from tests.core.test_readers import Taker
from tests.models.shapes import backend

from unspool.core.compose import compose
from unspool.core.decode import decode
from unspool.core.events import Finished
from unspool.core.model import LanguageModel
from unspool.core.registry import Method
from unspool.core.scores import Request
from unspool.core.texts import Stop
from unspool.core.tree import TokenTree


def by_hand(lm: LanguageModel, prompt: list[int], tokens: tuple[int, ...]) -> torch.Tensor:
    """``[T]`` from one pass over the whole text, without the loop."""
    ((cache, begun),) = lm.start([prompt])
    (scores,) = lm.score([Request(cache, TokenTree.chain([*begun, *tokens[:-1]]))])
    logs = torch.log_softmax(scores.logits.double(), -1)[-len(tokens) :]
    return logs.gather(1, torch.tensor(tokens)[:, None])[:, 0]


@pytest.mark.parametrize("shape", [*KINDS_OF_CACHE, "native-llama"])
@pytest.mark.parametrize("method", DRAFTERS, ids=slug)
def test_under_every_drafter(method: Method, shape: str) -> None:
    if built(method.card.slug, shape) is None:
        return
    lm = backend(shape)
    asked, expected = batch(shape, quick(shape))
    size = 8 if shape in RECURRENT else 16
    made = compose(lm, [method.card.slug, Taker()], models=related(method.card.slug, shape))
    close = 3e-3 if shape in RECURRENT or shape.startswith("native") else 1e-6
    for _ in range(2):
        for event in made.decode(asked, stop=Stop(size)):
            if isinstance(event, Finished):
                assert list(event.tokens) == expected[event.index][:size]
                assert event.log_probs is not None
                told = torch.tensor(event.log_probs, dtype=torch.float64)
                own = by_hand(lm, asked[event.index], event.tokens)
                torch.testing.assert_close(told, own, atol=close, rtol=close)


def test_they_cost_no_pass_without_a_constraint() -> None:
    lm = backend("llama")
    asked, _ = batch("llama")
    before = lm.forwards
    list(decode(lm, asked, stop=Stop(9)))
    plain = lm.forwards - before
    list(decode(lm, asked, reader=Taker(), stop=Stop(9)))
    assert lm.forwards - before == 2 * plain
