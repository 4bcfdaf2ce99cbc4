"""What every backend refuses to score, said in one place."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from unspool.core.errors import InvalidInput
from unspool.core.model import Capability, LanguageModel
from unspool.core.scores import Request, Want
from unspool.models.kv import KVCache


def check(
    model: LanguageModel, batch: Sequence[Request], caches: Sequence[KVCache], layers: Sequence[int] | None
) -> None:
    """Refuse what no backend can score.

    Raises:
        InvalidInput: a cache twice, a tree with nothing new, a token outside of the vocabulary, a context exceeded, or
            layers that do not ascend.
        Incompatible: a range of layers of a model that has none.
    """
    if len({id(cache) for cache in caches}) < len(caches):
        raise InvalidInput("one cache stands in two requests of a batch; fork it")
    for request, cache in zip(batch, caches, strict=True):
        tree = request.tree
        if not request.known < len(tree):
            raise InvalidInput(f"nothing to score: {request.known} of {len(tree)} nodes are known already")
        if request.known > cache.scored:
            raise InvalidInput(f"{request.known} nodes are said to be known; the cache holds {cache.scored}")
        low, high = min(tree.token_list), max(tree.token_list)
        if low < 0 or high >= model.vocab_size:
            wrong = low if low < 0 else high
            raise InvalidInput(
                f"token {wrong} is outside of the vocabulary of {model.name} (0 to {model.vocab_size - 1})"
            )
        if model.context_length is not None and cache.length + tree.depth > model.context_length:
            raise InvalidInput(
                f"{cache.length} cached and {tree.depth} new positions exceed the context of {model.name}, "
                f"{model.context_length}"
            )
    if layers is not None:
        model.require(frozenset({Capability.LAYER_RANGES}), "a range of layers")
    if layers is not None and (
        not layers or list(layers) != sorted(set(layers)) or layers[0] < 0 or layers[-1] >= model.num_layers
    ):
        raise InvalidInput(f"layers {list(layers)} must ascend within 0 to {model.num_layers - 1}")


def check_want(model: LanguageModel, want: Want) -> None:
    """Refuse to be asked for what cannot be told.

    Raises:
        Incompatible: split attention or queries of a model without.
        InvalidInput: attention probabilities together with one of them, or states behind a layer that there is not.
    """
    if want.split:
        model.require(frozenset({Capability.SPLIT_ATTENTION}), "split attention")
    if want.queries:
        model.require(frozenset({Capability.QUERIES}), "a look at the queries")
    if want.attentions and (want.split or want.queries):
        raise InvalidInput("attention probabilities are only there in one call for all rows: not with split or queries")
    if wrong := [layer for layer in want.hidden if not -1 <= layer <= model.num_layers]:
        raise InvalidInput(
            f"hidden states after layer {wrong[0]} were wanted; {model.name} has {model.num_layers} layers"
        )


def check_inputs(inputs: Tensor, count: int, width: int) -> None:
    """Refuse vectors to enter that are not ``[count, width]``."""
    if inputs.shape != (count, width):
        raise InvalidInput(f"inputs have the shape {tuple(inputs.shape)}; {(count, width)} are needed")
