"""Backends answer what the network itself would say of every path, however the question is put."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import transformers
from tests.models.shapes import (
    CONTEXT,
    DECODERS,
    ENCODER_DECODERS,
    NATIVE,
    RECURRENT,
    SHAPES,
    SHORT_CONTEXT,
    TREES,
    VOCAB,
    backend,
    config,
    network,
    prompts,
)
from torch import Tensor, nn

from unspool.core.errors import Incompatible, InvalidInput
from unspool.core.model import Cache, Capability, LanguageModel
from unspool.core.scores import Request, Scores, Want
from unspool.core.tree import TokenTree
from unspool.models.kv import KVCache
from unspool.models.kv_pass import KVPass
from unspool.models.load import wrap
from unspool.models.seq2seq import Seq2SeqModel
from unspool.models.transformers_lm import TransformersModel

HOOKED = [shape for shape in TREES if shape not in NATIVE]
"""Networks of transformers, in any precision of floats."""

TREE = TokenTree([1, 2, 3, 4, 5, 6, 7, 8, 2], [-1, -1, 0, 0, 1, 2, 5, 6, -1])
# Double precision: what is left is the order of summation.
CLOSE = {"atol": 1e-9, "rtol": 1e-9}
# Transformers' plain attention, which alone gives its weights away, has a softmax of single precision.
CLOSE_EAGER = {"atol": 1e-5, "rtol": 1e-5}
# State-space layers compute in single precision, whatever the weights.
CLOSE_STATES = {"atol": 2e-4, "rtol": 2e-4}


def close(shape: str) -> dict[str, float]:
    return CLOSE_STATES if shape in (*RECURRENT, *NATIVE) else CLOSE


def close_eager(shape: str) -> dict[str, float]:
    return close(shape) if shape in NATIVE else CLOSE_EAGER


@torch.no_grad()
def plain(lm: Any, prompt: Sequence[int], text: Sequence[int]) -> Tensor:
    """``[len(text), V]`` logits after every token of ``text``, by the network's own forward pass without a cache.

    ``text`` of a model with an encoder begins with its start token, and ``prompt`` is what the encoder reads.
    """
    if isinstance(lm, Seq2SeqModel):
        out = lm.model(input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([text]), use_cache=False)
        return out.logits[0]
    ids = torch.tensor([[*prompt, *text]])
    return lm.model(input_ids=ids, use_cache=False).logits[0, len(prompt) :]


def begin(lm: LanguageModel, texts: Sequence[Sequence[int]], chunk: int = 4) -> list[tuple[Cache, list[int]]]:
    """Caches that hold the texts, and what :func:`plain` needs to be told of the decoder's side."""
    started = lm.start(texts)
    for cache, tokens in started:
        lm.prefill(cache, tokens, rows=[], chunk=chunk)
    return [(cache, tokens if isinstance(lm, Seq2SeqModel) else []) for cache, tokens in started]


def check(
    shape: str, lm: LanguageModel, prompt: Sequence[int], before: Sequence[int], tree: TokenTree, scores: Scores
) -> None:
    for node in scores.rows:
        expected = plain(lm, prompt, [*before, *tree.path_tokens(node)])[-1]
        torch.testing.assert_close(scores.at(node).double(), expected.double(), **close(shape))


@pytest.fixture(params=TREES)
def shape(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# -- trees and chains ---------------------------------------------------------------------------------------------


def test_a_tree_scores_as_its_paths(shape: str) -> None:
    lm = backend(shape)
    texts = prompts(3)
    started = begin(lm, texts)
    assert len({cache.length for cache, _ in started}) > 1 or shape in ENCODER_DECODERS
    before = lm.forwards
    all_scores = lm.score([Request(cache, TREE) for cache, _ in started])
    assert lm.forwards == before + 1, "a ragged batch is one forward pass"
    for text, (_, start), scores in zip(texts, started, all_scores, strict=True):
        assert scores.logits.shape == (len(TREE), VOCAB)
        check(shape, lm, text, start, TREE, scores)


def test_trees_of_several_sizes_and_in_any_order(shape: str) -> None:
    lm = backend(shape)
    texts = prompts(3, seed=1)
    started = begin(lm, texts)
    trees = [TokenTree.chain([4]), TREE, TokenTree([9, 9, 8], [-1, -1, 1])]
    order = [2, 0, 1]
    answers = lm.score([Request(started[i][0], trees[i]) for i in order])
    for i, scores in zip(order, answers, strict=True):
        check(shape, lm, texts[i], started[i][1], trees[i], scores)


def test_caches_of_different_pools_in_one_batch(shape: str) -> None:
    lm = backend(shape)
    texts = prompts(2, seed=2)
    started = [begin(lm, [text])[0] for text in texts]
    answers = lm.score([Request(cache, TREE) for cache, _ in started])
    for text, (_, start), scores in zip(texts, started, answers, strict=True):
        check(shape, lm, text, start, TREE, scores)


def test_only_the_wanted_rows(shape: str) -> None:
    lm = backend(shape)
    texts = prompts(2, seed=3)
    started = begin(lm, texts)
    wanted = [[0, 3, 7], []]
    answers = lm.score([Request(cache, TREE, rows=rows) for (cache, _), rows in zip(started, wanted, strict=True)])
    for text, (_, start), rows, scores in zip(texts, started, wanted, answers, strict=True):
        assert scores.rows == rows
        assert scores.logits.shape == (len(rows), VOCAB)
        check(shape, lm, text, start, TREE, scores)
    nothing = lm.score([Request(cache, TREE, rows=[]) for cache, _ in started])
    assert [scores.logits.shape for scores in nothing] == [(0, VOCAB)] * 2


@pytest.mark.parametrize("chunk", [1, 3, 512])
def test_prefill_in_pieces(shape: str, chunk: int) -> None:
    lm = backend(shape)
    if shape in ENCODER_DECODERS:
        text = prompts(1)[0]
        cache, start = lm.start([text])[0]
        tokens = [*start, 5, 6, 7, 8, 9]
        expected = plain(lm, text, tokens)
    else:
        tokens = prompts(1)[0]
        cache = lm.new_cache()
        expected = plain(lm, [], tokens)
    pieces = lm.prefill(cache, tokens, chunk=chunk)
    assert cache.length == len(tokens)
    assert len(pieces) == -(-len(tokens) // chunk)
    torch.testing.assert_close(torch.cat([piece.logits for piece in pieces]).double(), expected, **close(shape))


def test_prefill_rows_are_of_the_whole_text(shape: str) -> None:
    lm = backend(shape)
    text = prompts(1)[0]
    cache, start = lm.start([text])[0]
    tokens = [*start, 5, 6, 7, 8, 9] if shape in ENCODER_DECODERS else text
    pieces = lm.prefill(cache, tokens, rows=[1, 4], chunk=3)
    expected = plain(lm, text if shape in ENCODER_DECODERS else [], tokens)[[1, 4]]
    torch.testing.assert_close(torch.cat([piece.logits for piece in pieces]).double(), expected, **close(shape))


def test_a_committed_path_is_the_text_from_then_on(shape: str) -> None:
    lm = backend(shape)
    texts = prompts(3, seed=4)
    started = begin(lm, texts)
    lm.score([Request(cache, TREE) for cache, _ in started])
    kept = [TREE.path(7), TREE.path(4), []]
    lengths = [cache.length for cache, _ in started]
    for (cache, _), path in zip(started, kept, strict=True):
        cache.commit(path)
    assert [cache.length for cache, _ in started] == [n + len(path) for n, path in zip(lengths, kept, strict=True)]
    following = TokenTree([11, 12, 13], [-1, 0, 0])
    answers = lm.score([Request(cache, following) for cache, _ in started])
    for text, (_, start), path, scores in zip(texts, started, kept, answers, strict=True):
        check(shape, lm, text, [*start, *(TREE.token_list[node] for node in path)], following, scores)


def test_scoring_again_without_a_commit_drops_the_tree(shape: str) -> None:
    lm = backend(shape)
    text = prompts(1)[0]
    cache, start = begin(lm, [text])[0]
    lm.score([Request(cache, TREE)])
    other = TokenTree([20, 21], [-1, -1])
    check(shape, lm, text, start, other, lm.score([Request(cache, other)])[0])


def test_a_tree_that_grows(shape: str) -> None:
    lm = backend(shape)
    texts = prompts(2, seed=5)
    started = begin(lm, texts)
    for known in (0, 3, 4, 8):
        size = {0: 3, 3: 4, 4: 8, 8: 9}[known]
        tree = TREE.select(range(size))
        answers = lm.score([Request(cache, tree, known=known) for cache, _ in started])
        for text, (_, start), scores in zip(texts, started, answers, strict=True):
            assert scores.rows == list(range(known, size))
            check(shape, lm, text, start, tree, scores)
    for cache, _ in started:
        cache.commit(TREE.path(7))
    following = TokenTree.chain([1])
    answers = lm.score([Request(cache, following) for cache, _ in started])
    for text, (_, start), scores in zip(texts, started, answers, strict=True):
        check(shape, lm, text, [*start, *TREE.path_tokens(7)], following, scores)


def test_texts_longer_than_a_window_and_than_the_first_room() -> None:
    lm = backend("mistral")
    rng = torch.Generator().manual_seed(0)
    text = torch.randint(0, VOCAB, (60,), generator=rng).tolist()
    cache, start = begin(lm, [text], chunk=7)[0]
    check("mistral", lm, text, start, TREE, lm.score([Request(cache, TREE)])[0])

    wide = transformers.LlamaConfig(**{**config("llama").to_dict(), "max_position_embeddings": 1024})
    long = TransformersModel(transformers.LlamaForCausalLM(wide).double())
    text = torch.randint(0, VOCAB, (600,), generator=rng).tolist()
    cache = long.new_cache()
    long.prefill(cache, text, rows=[], chunk=100)
    assert isinstance(cache, KVCache)
    room = cache.pool.layers[0][0].shape[2]
    assert room == 1024, "the room grows by doubling: 256, 512, 1024"
    check("llama", long, text, [], TREE, long.score([Request(cache, TREE)])[0])


@pytest.mark.parametrize("shape", RECURRENT)
def test_recurrent_chains(shape: str) -> None:
    lm = backend(shape)
    text = prompts(1)[0]
    cache = lm.new_cache()
    lm.prefill(cache, text, rows=[], chunk=5)
    so_far = list(text)
    for draft, keep in (([7, 8, 9], 1), ([1, 2, 3], 0), ([5], 1), ([4, 4, 4, 4], 2), ([9, 1], 2), ([2], 1)):
        scores = lm.score([Request(cache, TokenTree.chain(draft))])[0]
        torch.testing.assert_close(scores.logits, plain(lm, so_far, draft).to(scores.logits), **CLOSE_STATES)
        cache.commit(range(keep))
        so_far += draft[:keep]
    cache.rewind(3)
    scores = lm.score([Request(cache, TokenTree.chain([1, 2]), rows=[1])])[0]
    torch.testing.assert_close(scores.logits, plain(lm, so_far[:3], [1, 2])[1:].to(scores.logits), **CLOSE_STATES)


@pytest.mark.parametrize("shape", RECURRENT)
def test_recurrent_chains_that_grow(shape: str) -> None:
    lm = backend(shape)
    text = prompts(1)[0]
    cache = lm.new_cache()
    lm.prefill(cache, text, rows=[])
    expected = plain(lm, text, [1, 2, 3, 4, 5])
    for known, size in ((0, 2), (2, 4), (4, 5)):
        scores = lm.score([Request(cache, TokenTree.chain(range(1, size + 1)), known=known)])[0]
        assert scores.rows == list(range(known, size))
        torch.testing.assert_close(scores.logits, expected[known:size].to(scores.logits), **CLOSE_STATES)
    # Another end on the same beginning.
    scores = lm.score([Request(cache, TokenTree.chain([1, 2, 9]), known=2)])[0]
    torch.testing.assert_close(scores.logits, plain(lm, text, [1, 2, 9])[2:].to(scores.logits), **CLOSE_STATES)
    cache.commit([0, 1])
    scores = lm.score([Request(cache, TokenTree.chain([6]))])[0]
    torch.testing.assert_close(scores.logits, plain(lm, text, [1, 2, 6])[2:].to(scores.logits), **CLOSE_STATES)


@pytest.mark.parametrize("shape", RECURRENT)
def test_recurrent_models_refuse_what_they_cannot_do(shape: str) -> None:
    lm = backend(shape)
    assert lm.capabilities == {Capability.STATE_REPLAY}
    cache = lm.new_cache()
    with pytest.raises(Incompatible, match="chains, not trees"):
        lm.score([Request(cache, TREE)])
    with pytest.raises(Incompatible, match="recurrent"):
        lm.score([Request(cache, TokenTree.chain([1]))], Want(hidden=frozenset({-1})))
    with pytest.raises(Incompatible, match="embeddings"):
        lm.score([Request(cache, TokenTree.chain([1]), inputs=torch.zeros(1, 32))])
    with pytest.raises(InvalidInput, match="token 64 is outside"):
        lm.score([Request(cache, TokenTree.chain([VOCAB]))])


@pytest.mark.parametrize("shape", RECURRENT)
def test_recurrent_forwards_are_counted(shape: str) -> None:
    lm: Any = backend(shape)
    cache = lm.new_cache()
    before, calls = lm.forwards, []
    handle = lm.model.register_forward_hook(lambda *_: calls.append(1))
    try:
        lm.prefill(cache, prompts(1)[0])
        lm.score([Request(cache, TokenTree.chain([1, 2, 3]))])
    finally:
        handle.remove()
    assert lm.forwards - before == len(calls) > 0


# -- looking inside -----------------------------------------------------------------------------------------------


@torch.no_grad()
def plain_inside(lm: Any, prompt: Sequence[int], text: Sequence[int]) -> Any:
    """The network's own hidden states of the decoder, one entry a layer and the embedding first."""
    lm.model.set_attn_implementation("eager")
    try:
        if isinstance(lm, Seq2SeqModel):
            out = lm.model(
                input_ids=torch.tensor([prompt]),
                decoder_input_ids=torch.tensor([text]),
                use_cache=False,
                output_hidden_states=True,
                output_attentions=True,
            )
            return out.decoder_hidden_states, out.decoder_attentions
        out = lm.model(
            input_ids=torch.tensor([[*prompt, *text]]),
            use_cache=False,
            output_hidden_states=True,
            output_attentions=True,
        )
        return out.hidden_states, out.attentions
    finally:
        lm.model.set_attn_implementation("sdpa")


def test_hidden_states(shape: str) -> None:
    lm: Any = backend(shape)
    texts = prompts(2, seed=6)
    started = begin(lm, texts)
    last = lm.num_layers
    wanted = frozenset({0, 1, last - 1, -1})
    answers = lm.score([Request(cache, TREE) for cache, _ in started], Want(hidden=wanted))
    for text, (_, start), scores in zip(texts, started, answers, strict=True):
        assert scores.hidden.keys() == wanted
        for node in (0, 4, 7):
            states, _ = plain_inside(lm, text, [*start, *TREE.path_tokens(node)])
            for layer in wanted:
                mine = scores.hidden[layer]
                assert mine.shape == (len(TREE), lm.hidden_size)
                # Transformers' last entry is behind the final norm, as -1 is here.
                torch.testing.assert_close(mine[node].double(), states[layer][0, -1], **close_eager(shape))


def test_the_head_reads_the_last_hidden_state(shape: str) -> None:
    lm = backend(shape)
    cache, _ = begin(lm, prompts(1))[0]
    before = lm.forwards
    scores = lm.score([Request(cache, TREE)], Want(hidden=frozenset({-1})))[0]
    torch.testing.assert_close(lm.head(scores.hidden[-1]), scores.logits, **CLOSE)
    torch.testing.assert_close(lm.head(scores.hidden[-1][:1]), scores.logits[:1], **CLOSE)
    assert lm.forwards == before + 1, "the head alone is no forward pass"


def test_attentions(shape: str) -> None:
    lm: Any = backend(shape)
    texts = prompts(2, seed=7)
    started = begin(lm, texts)
    answers = lm.score([Request(cache, TREE) for cache, _ in started], Want(attentions=True))
    for text, (cache, start), scores in zip(texts, started, answers, strict=True):
        assert len(scores.attentions) == lm.num_layers
        seen = cache.length + len(TREE)
        for layer, weights in enumerate(scores.attentions):
            assert weights.shape == (4, len(TREE), seen)
            torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights.sum(-1)), **CLOSE_EAGER)
            refused = ~TREE.mask
            assert not weights[:, :, cache.length :][:, refused].any(), "only ancestors are attended to"
            for node in (3, 7):
                _, expected = plain_inside(lm, text, [*start, *TREE.path_tokens(node)])
                columns = [*range(cache.length), *(cache.length + n for n in TREE.path(node))]
                torch.testing.assert_close(
                    weights[:, node, columns].double(), expected[layer][0, :, -1], **close_eager(shape)
                )
    for node in range(len(TREE)):
        expected = plain(lm, texts[0], [*started[0][1], *TREE.path_tokens(node)])[-1]
        torch.testing.assert_close(answers[0].at(node).double(), expected, **close_eager(shape))


@pytest.mark.parametrize("shape", HOOKED)
def test_asking_for_the_inside_leaves_nothing_behind(shape: str) -> None:
    lm: Any = backend(shape)
    cache, _ = begin(lm, prompts(1))[0]

    def hooks() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in lm.model.modules())

    before = hooks(), lm.model.config._attn_implementation, [id(layer) for layer in lm.layers]
    some = [0] if Capability.LAYER_RANGES in lm.capabilities else None
    lm.score([Request(cache, TREE)], Want(hidden=frozenset({0, 1, -1}), attentions=True), layers=some)
    with pytest.raises(InvalidInput, match="after layer 9 were wanted"):
        lm.score([Request(cache, TREE)], Want(hidden=frozenset({0, 1, 9, -1})))
    assert (hooks(), lm.model.config._attn_implementation, [id(layer) for layer in lm.layers]) == before


# -- layers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [s for s in TREES if s != "t5"])
def test_two_ranges_of_layers_make_the_whole(shape: str) -> None:
    lm: Any = backend(shape)
    texts = prompts(2, seed=8)
    started = begin(lm, texts)
    chain = TokenTree.chain([1, 2, 3])
    for exit_after in range(1, lm.num_layers):
        low = lm.score(
            [Request(cache, chain, rows=[]) for cache, _ in started],
            Want(hidden=frozenset({exit_after})),
            layers=list(range(exit_after)),
        )
        whole = lm.score(
            [
                Request(cache, chain, inputs=scores.hidden[exit_after])
                for (cache, _), scores in zip(started, low, strict=True)
            ],
            layers=list(range(exit_after, lm.num_layers)),
        )
        for text, (_, start), scores in zip(texts, started, whole, strict=True):
            check(shape, lm, text, start, chain, scores)
    # What the two halves wrote is the cache of the whole.
    for cache, _ in started:
        cache.commit(range(3))
    following = TokenTree.chain([4])
    answers = lm.score([Request(cache, following) for cache, _ in started])
    for text, (_, start), scores in zip(texts, started, answers, strict=True):
        check(shape, lm, text, [*start, 1, 2, 3], following, scores)


@pytest.mark.parametrize("shape", DECODERS)
def test_skipped_layers_are_as_good_as_deleted(shape: str) -> None:
    lm: Any = backend(shape)
    kept = [0, 2]
    smaller = copy.deepcopy(lm.model)
    trunk: Any = smaller.base_model
    name = next(n for n, child in trunk.named_children() if isinstance(child, nn.ModuleList))
    setattr(trunk, name, nn.ModuleList([getattr(trunk, name)[layer] for layer in kept]))
    made = smaller.config
    if getattr(made, "layer_types", None):
        made.layer_types = [made.layer_types[layer] for layer in kept]
    made.num_hidden_layers = len(kept)
    text = prompts(1)[0]
    cache = lm.new_cache()
    for first in range(0, len(text), 5):
        piece = TokenTree.chain(text[first : first + 5])
        lm.score([Request(cache, piece, rows=[])], layers=kept)
        cache.commit(range(len(piece)))
    scores = lm.score([Request(cache, TREE)], layers=kept)[0]
    for node in range(len(TREE)):
        with torch.no_grad():
            out = smaller(input_ids=torch.tensor([[*text, *TREE.path_tokens(node)]]), use_cache=False)
        torch.testing.assert_close(scores.at(node), out.logits[0, -1], **CLOSE)


def test_layers_that_lean_on_the_first_one_have_no_ranges() -> None:
    lm = backend("t5")
    with pytest.raises(Incompatible, match=r"a range of layers needs a model with layer ranges; tiny-t5"):
        lm.score([Request(lm.new_cache(), TokenTree.chain([1]))], layers=[0])


@pytest.mark.parametrize("layers", [[], [2, 1], [0, 3], [-1, 0], [1, 1]])
def test_layers_must_ascend_within_the_network(layers: list[int]) -> None:
    lm = backend("llama")
    with pytest.raises(InvalidInput, match=r"must ascend within 0 to 2"):
        lm.score([Request(lm.new_cache(), TokenTree.chain([1]))], layers=layers)


# -- embeddings ---------------------------------------------------------------------------------------------------


def test_input_embeddings_stand_for_tokens(shape: str) -> None:
    lm: Any = backend(shape)
    texts = prompts(2, seed=9)
    started = begin(lm, texts)
    entering = lm.embed(TREE.tokens)
    assert entering.shape == (len(TREE), lm.hidden_size)
    # One request brings vectors, its neighbour brings tokens.
    requests = [Request(started[0][0], TREE, inputs=entering), Request(started[1][0], TREE)]
    for text, (_, start), scores in zip(texts, started, lm.score(requests), strict=True):
        check(shape, lm, text, start, TREE, scores)
    with pytest.raises(InvalidInput, match="inputs have the shape"):
        lm.score([Request(started[0][0], TREE, inputs=entering[:2])])


# -- limits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("token", [-1, VOCAB])
def test_tokens_outside_the_vocabulary(shape: str, token: int) -> None:
    lm = backend(shape)
    assert lm.vocab_size == VOCAB
    with pytest.raises(InvalidInput, match=rf"token {token} is outside of the vocabulary"):
        lm.score([Request(lm.new_cache(), TokenTree.chain([1, token, 2]))])


@pytest.mark.parametrize("shape", [s for s in SHAPES if s not in ("t5", "mamba", "mamba2")])
def test_the_context_is_a_limit(shape: str) -> None:
    lm = backend(shape)
    limit = SHORT_CONTEXT if shape in ENCODER_DECODERS else CONTEXT
    assert lm.context_length == limit
    cache = lm.new_cache()
    lm.prefill(cache, [1] * (limit - 2), rows=[])
    # A wide tree is no deeper than its longest path.
    if shape not in RECURRENT:
        lm.score([Request(cache, TokenTree([1, 2, 3, 4], [-1, -1, 0, 1]))])
    with pytest.raises(InvalidInput, match=rf"exceed the context of tiny-{shape}, {limit}"):
        lm.score([Request(cache, TokenTree.chain([1, 2, 3]))])
    lm.score([Request(cache, TokenTree.chain([1, 2]))])


@pytest.mark.parametrize("shape", ["t5", "mamba"])
def test_models_without_a_limit(shape: str) -> None:
    assert backend(shape).context_length is None


def test_a_source_longer_than_the_encoder() -> None:
    with pytest.raises(InvalidInput, match=r"prompt 0 has 49 tokens; the encoder of tiny-bart reads 48"):
        backend("bart").start([[5] * 49])


def test_requests_that_make_no_sense(shape: str) -> None:
    lm = backend(shape)
    cache, _ = begin(lm, prompts(1))[0]
    with pytest.raises(InvalidInput, match="one cache stands in two requests"):
        lm.score([Request(cache, TREE), Request(cache, TREE)])
    with pytest.raises(InvalidInput, match="nothing to score"):
        lm.score([Request(cache, TokenTree.empty())])
    with pytest.raises(InvalidInput, match="3 nodes are said to be known; the cache holds 0"):
        lm.score([Request(cache, TREE, known=3)])
    lm.score([Request(cache, TREE)])
    with pytest.raises(InvalidInput, match="node 9 cannot be committed: the last tree had 9 nodes"):
        cache.commit([9])
    with pytest.raises(InvalidInput, match="node -1"):
        cache.commit([-1])
    for length in (-1, cache.length + 1):
        with pytest.raises(InvalidInput, match=f"cannot rewind to {length}"):
            cache.rewind(length)


# -- precision ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.35)])
@pytest.mark.parametrize("shape", HOOKED)
def test_precisions(shape: str, dtype: torch.dtype, tolerance: float) -> None:
    exact, lm = backend(shape), backend(shape, dtype)
    assert lm.dtype == dtype
    text = prompts(1)[0]
    cache, start = begin(lm, [text])[0]
    scores = lm.score([Request(cache, TREE)], Want(hidden=frozenset({-1})))[0]
    assert scores.logits.dtype == torch.float32, "logits are never of half precision"
    assert scores.hidden[-1].dtype == dtype
    assert cache.pool.layers[0][0].dtype == dtype  # type: ignore[attr-defined]
    for node in range(len(TREE)):
        expected = plain(exact, text, [*start, *TREE.path_tokens(node)])[-1]
        # Of values between -5 and 5.
        torch.testing.assert_close(scores.at(node).double(), expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("shape", HOOKED)
def test_double_precision_stays(shape: str) -> None:
    cache, _ = begin(backend(shape), prompts(1))[0]
    assert backend(shape).score([Request(cache, TREE)])[0].logits.dtype == torch.float64


# -- memory -------------------------------------------------------------------------------------------------------


def test_keys_are_written_in_place_and_read_as_a_view() -> None:
    lm: Any = backend("llama")
    cache = lm.new_cache()
    assert isinstance(cache, KVCache)
    lm.prefill(cache, [1, 2, 3], rows=[])
    keys, values = cache.pool.layers[1]
    reader = KVPass([cache], [3], [2])
    rows = torch.ones(1, 2, 2, 8, dtype=torch.float64)
    seen_keys, seen_values = reader.update(rows, 2 * rows, 1)
    assert seen_keys.data_ptr() == keys.data_ptr()
    assert seen_values.data_ptr() == values.data_ptr()
    assert seen_keys.shape == (1, 2, 5, 8)
    assert (keys[0, :, 3:5] == 1).all()
    assert (values[0, :, 3:5] == 2).all()
    held = [tensor.data_ptr() for pair in cache.pool.layers.values() for tensor in pair]
    for _ in range(20):
        lm.score([Request(cache, TREE)])
        cache.commit(TREE.path(4))
    assert [tensor.data_ptr() for pair in cache.pool.layers.values() for tensor in pair] == held


def test_neighbours_of_a_batch_are_read_as_a_view() -> None:
    lm: Any = backend("llama")
    caches = lm.new_caches(3)
    for cache in caches:
        lm.prefill(cache, [1, 2, 3], rows=[])
    keys = caches[0].pool.layers[0][0]
    rows = torch.zeros(2, 2, 1, 8, dtype=torch.float64)
    seen, _ = KVPass(caches[1:], [3, 3], [1, 1]).update(rows, rows, 0)
    assert seen.untyped_storage().data_ptr() == keys.untyped_storage().data_ptr()
    gathered, _ = KVPass([caches[0], caches[2]], [3, 3], [1, 1]).update(rows, rows, 0)
    assert gathered.untyped_storage().data_ptr() != keys.untyped_storage().data_ptr()
    assert (gathered[1] == keys[2, :, :4]).all()


def test_bytes_are_counted_with_their_room() -> None:
    lm: Any = backend("llama")
    one, two = lm.new_caches(2)
    assert one.nbytes == 0
    lm.prefill(one, [1, 2, 3], rows=[])
    # 3 layers, keys and values, 2 heads of 8 doubles, 256 positions of room.
    assert one.nbytes == two.nbytes == 3 * 2 * 2 * 8 * 8 * 256
    held = sum(tensor.numel() * tensor.element_size() for pair in one.pool.layers.values() for tensor in pair)
    assert one.nbytes + two.nbytes == held


def test_released_slots_are_closed_up_and_used_again() -> None:
    lm: Any = backend("llama")
    texts = prompts(4, seed=10)
    caches = lm.new_caches(4)
    for cache, text in zip(caches, texts, strict=True):
        lm.prefill(cache, text, rows=[])
    pool = caches[0].pool
    # The last one is in the middle of a step.
    lm.score([Request(caches[3], TREE)])
    caches[1].release()
    caches[1].release()
    assert sorted(cache.slot for cache in (caches[0], caches[2], caches[3])) == [0, 1, 2]
    caches[3].commit(TREE.path(7))
    following = TokenTree.chain([11])
    answers = lm.score([Request(cache, following) for cache in (caches[0], caches[2], caches[3])])
    check("llama", lm, texts[0], [], following, answers[0])
    check("llama", lm, texts[2], [], following, answers[1])
    check("llama", lm, texts[3], TREE.path_tokens(7), following, answers[2])
    slots = pool.layers[0][0].shape[0]
    twin = caches[0].fork()
    assert pool.layers[0][0].shape[0] == slots, "a fork takes the free slot"
    check("llama", lm, texts[0], [], following, lm.score([Request(twin, following)])[0])
    for cache in (caches[0], caches[2], caches[3], twin):
        cache.release()
    assert not pool.layers
    assert not pool.owners


def test_forks_share_a_beginning_and_go_their_own_way(shape: str) -> None:
    lm = backend(shape)
    text = prompts(1)[0]
    cache, start = begin(lm, [text])[0]
    lm.score([Request(cache, TREE)])
    twin = cache.fork()
    cache.commit(TREE.path(7))
    following = TokenTree([11, 12], [-1, -1])
    one, two = lm.score([Request(cache, following), Request(twin, following)])
    check(shape, lm, text, [*start, *TREE.path_tokens(7)], following, one)
    check(shape, lm, text, start, following, two)
    cache.release()
    check(shape, lm, text, start, following, lm.score([Request(twin, following)])[0])


def test_the_source_is_encoded_once() -> None:
    lm: Any = backend("bart")
    calls = []
    handle = lm.model.get_encoder().register_forward_hook(lambda *_: calls.append(1))
    try:
        started = begin(lm, prompts(2))
        for _ in range(3):
            lm.score([Request(cache, TREE) for cache, _ in started])
            for cache, _ in started:
                cache.commit([1])
    finally:
        handle.remove()
    assert len(calls) == 1
    assert started[0][0].nbytes > sum(t[0].numel() * 8 for pair in started[0][0].pool.layers.values() for t in pair)  # type: ignore[attr-defined]


# -- what cannot be driven ----------------------------------------------------------------------------------------


def test_architectures_without_masks_and_positions_are_refused() -> None:
    bloom = transformers.BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4)
    with pytest.raises(Incompatible, match=r"bloom.* cannot be driven by 4D masks and positions"):
        wrap(transformers.AutoModelForCausalLM.from_config(bloom))
    neo = transformers.GPTNeoConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=4,
        max_position_embeddings=CONTEXT,
    )
    with pytest.raises(Incompatible, match=r"gpt_neo.* scores a tree differently from its paths"):
        wrap(transformers.AutoModelForCausalLM.from_config(neo))


def test_architectures_that_no_test_names_are_proved_when_loaded() -> None:
    phi = transformers.PhiConfig(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    lm = wrap(transformers.AutoModelForCausalLM.from_config(phi).double())
    assert lm.forwards == 0
    text = prompts(1)[0]
    cache, start = begin(lm, [text])[0]
    check("phi", lm, text, start, TREE, lm.score([Request(cache, TREE)])[0])

    pegasus = transformers.PegasusConfig(**{**config("bart").to_dict(), "model_type": "pegasus"})
    lm = wrap(transformers.AutoModelForSeq2SeqLM.from_config(pegasus).double())
    cache, start = begin(lm, [text])[0]
    check("pegasus", lm, text, start, TREE, lm.score([Request(cache, TREE)])[0])


def test_missing_capabilities_name_both_sides() -> None:
    with pytest.raises(
        Incompatible, match=r"eagle needs a model with attentions, hidden states; tiny-mamba \(RecurrentModel\)"
    ):
        backend("mamba").require(frozenset({Capability.HIDDEN_STATES, Capability.ATTENTIONS}), "eagle")
    backend("llama").require(frozenset({Capability.HIDDEN_STATES, Capability.ATTENTIONS}), "eagle")


def test_stop_tokens_come_from_the_generation_config() -> None:
    made = network("llama")
    made.config.eos_token_id = 5
    made.generation_config.eos_token_id = [7, 9]
    assert wrap(made).stop_tokens == {7, 9}
    made.generation_config.eos_token_id = None
    assert wrap(made).stop_tokens == {5}
