"""The sums of ``chained-sums`` for a network that reads on past wrong tokens, as large models do by themselves.

Jacobi decoding lets a network read its own guesses, most of which are wrong at first. A small network that has only
seen right texts is lost behind the first wrong token. So here a stretch of the text that enters is disturbed, at random
places and at a random rate, and what is to be predicted stays right: the network learns to find its place by what is
still right, and to add up again what is not.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from unspool.core.cards import settings
from unspool.training.objectives import Batch, cross_entropy, layer_states, readout
from unspool.training.recipes import Bench, Quality, recipe
from unspool.training.recipes.chained_sums import ChainedSumsSettings, learn


@settings
class GuessedSumsSettings(ChainedSumsSettings):
    """Those of ``chained-sums``, and how much is disturbed."""

    wrong: Annotated[float, Field(ge=0, le=1, description="share of the texts with a disturbed stretch")] = 0.5
    longest: Annotated[int, Field(ge=1, description="tokens of a disturbed stretch, at most")] = 16


class PastWrongTokens:
    """Predict each token from those before it, some of which have been replaced by others.

    A stretch begins at any place that is to be predicted, is 1 to ``longest`` tokens long, and each of its tokens is
    replaced with a probability that is drawn for the text.

    Args:
        share: of the texts that are disturbed.
        longest: stretch.
        rng: decides where, how much, and what by.
    """

    def __init__(self, share: float, longest: int, rng: torch.Generator) -> None:
        self.share, self.longest, self.rng = share, longest, rng

    def disturbed(self, batch: Batch, vocabulary: int) -> Tensor:
        """``[B, T]`` what enters."""
        tokens = batch.inputs
        rows, length = tokens.shape
        assert batch.weights is not None
        # The last token of the question predicts the first that counts; from there on tokens may be wrong.
        first = batch.weights.argmax(dim=1, keepdim=True) + 1

        def draw(columns: int) -> Tensor:
            return torch.rand(rows, columns, generator=self.rng)

        begin = first + (draw(1) * (length - first)).long()
        end = begin + 1 + (draw(1) * self.longest).long()
        place = torch.arange(length)
        chosen = (place >= begin) & (place < end) & (draw(length) < draw(1)) & (draw(1) < self.share)
        others = torch.randint(vocabulary, (rows, length), generator=self.rng)
        return torch.where(chosen, others, tokens)

    def __call__(self, model: PreTrainedModel, batch: Batch, share: float) -> Tensor:
        states = layer_states(model, self.disturbed(batch, model.config.vocab_size))
        return cross_entropy(readout(model, states[-1]), batch)


@recipe(
    "guessed-sums",
    summary="The network of chained-sums, trained to read on past wrong tokens.",
    minutes=6,
    megabytes=1.4,
    settings=GuessedSumsSettings,
)
def RECIPE(chosen: GuessedSumsSettings, bench: Bench) -> Quality:
    """Train on the same problems with disturbed texts."""
    rng = torch.Generator().manual_seed(chosen.seed)
    return learn(chosen, bench, PastWrongTokens(chosen.wrong, chosen.longest, rng))
