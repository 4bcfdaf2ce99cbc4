"""SpecPV: which rounds read what, which blocks are chosen, and that full rounds put the whole cache right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tests.models.shapes import VOCAB, backend
from tests.models.test_partial import forward
from torch import Tensor

from unspool.caching.specpv import SpecPV, SpecPVSettings, Summaries, block_scores
from unspool.core.compose import compose
from unspool.core.errors import Incompatible
from unspool.core.events import Finished, Scored, Stepped
from unspool.core.sockets import Drafter, Move, Search
from unspool.core.texts import Stop
from unspool.core.tree import TokenTree
from unspool.models.partial import PartialCache
from unspool.speculation.drafting.prompt_lookup import PromptLookup

SMALL = {"block": 4, "sink_blocks": 1, "retrieval_blocks": 2, "window_blocks": 2}
"""Of a text of 60 tokens, 4 + 8 + (8 to 11) are read."""


def text(length: int, seed: int = 0) -> list[int]:
    rng = torch.Generator().manual_seed(seed)
    piece = torch.randint(3, VOCAB, (length // 3 + 1,), generator=rng).tolist()
    return (piece * 3)[:length]


LONG = text(60)


def run(made: Any, asked: Sequence[Sequence[int]], size: int, chunk: int = 16) -> tuple[list[list[int]], list[Any]]:
    events = list(made.decode(asked, stop=Stop(size), chunk=chunk))
    found = {event.index: list(event.tokens) for event in events if isinstance(event, Finished)}
    return [found[index] for index in range(len(asked))], events


class Watched(SpecPV):
    """Writes down what is read after every commit: tokens of the text, rows of the cache, tokens in the whole."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(SpecPVSettings(**{**SMALL, **settings}))
        self.seen: list[tuple[bool, int, int, int]] = []
        self.caches: list[PartialCache] = []

    def shrink(self, branch: Any) -> None:
        super().shrink(branch)
        cache = branch.cache
        self.seen.append((cache.partial, len(branch.tokens), cache.held, cache.whole.length))
        self.caches.append(cache)


# -- the choice of blocks -----------------------------------------------------------------------------------------


def test_block_scores() -> None:
    rng = torch.Generator().manual_seed(1)
    queries = torch.randn(6, 5, 4, generator=rng)
    keys = torch.randn(2, 7, 3, 4, generator=rng)
    found = block_scores(queries, keys.amin(2), keys.amax(2))
    assert found.shape == (2, 7)
    for head in range(2):
        for block in range(7):
            low, high = keys[head, block].amin(0), keys[head, block].amax(0)
            means = [
                torch.stack([torch.maximum(q @ low, q @ high) for q in queries[3 * head + place]]).mean()
                for place in range(3)
            ]
            torch.testing.assert_close(found[head, block], torch.stack(means).mean())


def test_summaries_grow_with_the_text() -> None:
    lm: Any = backend("llama")
    cache = lm.new_cache()
    grown = Summaries(4, 4)
    for first, blocks in ((0, 2), (20, 2), (24, 5), (40, 12)):
        lm.prefill(cache, LONG[first : {0: 20, 20: 24, 24: 40, 40: 60}[first]], rows=[])
        grown.extend(cache, blocks)
    for layer in range(lm.num_layers):
        keys = cache.rows(layer)[0]
        for block in range(12):
            rows = keys[:, 4 + 4 * block : 8 + 4 * block]
            assert torch.equal(grown.least[layer][:, block], rows.amin(1))
            assert torch.equal(grown.most[layer][:, block], rows.amax(1))
        assert grown.least[layer].shape[1] == 12


def reference(lm: Any, prompt: Sequence[int], size: int, period: int, chunk: int, retrieve: int = 2) -> list[int]:
    """Greedy text by the paper's rules, every pass computed from rows that are kept in lists; no drafts."""
    said, whole, part = list(prompt), empty(lm), None
    entered, started = 0, False
    while len(said) < len(prompt) + size:
        if part is None:
            while len(said) - entered > chunk and not started:
                take = min(chunk, len(said) - entered - 1)
                _, _, whole = step(lm, said[entered : entered + take], entered, whole)
                entered += take
            logits, queries, whole = step(lm, said[entered:], entered, whole)
            if not started:
                queries = {layer: asked[:, -1:] for layer, asked in queries.items()}
            entered, started = len(said), True
            blocks = (entered - 4 - 8) // 4
            if period and blocks > retrieve:
                solid = 4 + 4 * blocks
                part, reach = {}, entered
                for layer, (keys, values) in whole.items():
                    index = []
                    for head in range(len(keys)):
                        group = len(queries[layer]) // len(keys)
                        asked = queries[layer][group * head : group * (head + 1)].flatten(0, 1)
                        scores = []
                        for block in range(blocks):
                            rows = keys[head, 4 + 4 * block : 8 + 4 * block]
                            scores.append(torch.maximum(asked @ rows.amin(0), asked @ rows.amax(0)).mean())
                        best = sorted(torch.stack(scores).topk(retrieve).indices.tolist()) if retrieve else []
                        found = [4 + 4 * block + place for block in best for place in range(4)]
                        index.append([*range(4), *found, *range(solid, entered)])
                    part[layer] = tuple(
                        torch.stack([t[head, rows] for head, rows in enumerate(index)]) for t in (keys, values)
                    )
        else:
            logits, _, part = step(lm, said[reach:], reach, part)
            reach = len(said)
        said.append(int(logits[-1].argmax()))
        if part is not None and len(said) - entered > period:
            part = None
    return said[len(prompt) :]


def empty(lm: Any) -> dict[int, tuple[Tensor, Tensor]]:
    nothing = torch.zeros(lm.config.num_key_value_heads, 0, 8, dtype=torch.float64)
    return dict.fromkeys(range(lm.num_layers), (nothing, nothing))


def step(lm: Any, tokens: list[int], position: int, held: Any) -> tuple[Tensor, dict[int, Tensor], Any]:
    tree = TokenTree.chain(tokens)
    grown: dict[int, tuple[Tensor, Tensor]] = {}
    logits, queries = forward(lm, tree, position, held, grown)
    return logits, queries, grown


@pytest.mark.parametrize(("period", "retrieve"), [(0, 2), (1, 2), (4, 2), (9, 3), (5, 0), (3, 40)])
def test_the_text_is_that_of_a_second_computation(period: int, retrieve: int) -> None:
    lm = backend("llama")
    policy = Watched(partial_tokens=period, retrieval_blocks=retrieve)
    (said,), _ = run(compose(lm, policy), [LONG], 30)
    with torch.no_grad():
        assert said == reference(lm, LONG, 30, period, 16, retrieve)
    (plain,), _ = run(compose(lm), [LONG], 30)
    assert (said == plain) == (period == 0 or retrieve == 40), "a text that does not change proves little"


# -- which rounds read what ---------------------------------------------------------------------------------------


def test_rounds_without_drafts() -> None:
    policy = Watched(partial_tokens=3)
    made = compose(backend("llama"), policy)
    _, events = run(made, [LONG], 10)
    # Full, then partial until more than three tokens wait for a full round, which reads four of them again.
    assert [partial for partial, *_ in policy.seen] == [True, True, True, False, True, True, True, False, True]
    assert [whole for *_, whole in policy.seen] == [60, 60, 60, 60, 64, 64, 64, 64, 68]
    held = [4 + 8 + 8, *(20 + n for n in (1, 2)), 60, 4 + 8 + 8, 21, 22, 64, 20]
    assert [rows for _, _, rows, _ in policy.seen] == held
    assert (policy.full_rounds, policy.partial_rounds) == (3, 7)
    size = 2 * 2 * 8 * 3
    read = [event.kv_read // size for event in events if isinstance(event, Scored)]
    assert read == [60, 21, 22, 23, 64, 21, 22, 23, 68, 21], "rows before the pass and its own"


def test_a_window_ends_where_blocks_begin() -> None:
    policy = Watched(partial_tokens=1)
    run(compose(backend("llama"), policy), [LONG], 9)
    for partial, _, held, whole in policy.seen:
        if partial:
            assert held == 4 + 8 + 8 + (whole - 12) % 4
    short = Watched(partial_tokens=4, retrieval_blocks=13)
    run(compose(backend("llama"), short), [LONG], 6)
    assert {partial for partial, *_ in short.seen} == {False}, "13 blocks lie behind the sink and before the window"


@pytest.mark.parametrize("shape", ["llama", "gpt2", "gemma3", "qwen3", "gpt-neox", "mistral"])
def test_without_partial_rounds_it_is_plain_decoding(shape: str) -> None:
    lm = backend(shape)
    asked = [LONG, LONG[:23], text(41, seed=2)]
    plain, _ = run(compose(lm), asked, 20)
    for drafter in ([], ["token-recycling"]):
        policy = Watched(partial_tokens=0)
        assert run(compose(lm, [*drafter, policy]), asked, 20)[0] == plain
        assert policy.partial_rounds == 0
        assert policy.full_rounds > 0


@pytest.mark.parametrize("shape", ["llama", "gpt2", "gemma3", "mistral"])
@pytest.mark.parametrize("drafter", [[], ["token-recycling"]])
def test_full_rounds_put_the_whole_cache_right(shape: str, drafter: list[str]) -> None:
    lm: Any = backend(shape)
    policy = Watched(partial_tokens=6)
    kept: list[list[tuple[int, list[Tensor]]]] = []
    shrink = policy.shrink

    def watch(branch: Any) -> None:
        shrink(branch)
        whole = branch.cache.whole
        kept.append([(whole.length, [t.clone() for k in range(lm.num_layers) for t in whole.rows(k)])])

    policy.shrink = watch  # type: ignore[method-assign]
    (said,), _ = run(compose(lm, [*drafter, policy]), [LONG], 24)
    fresh = lm.new_cache()
    lm.prefill(fresh, LONG + said, rows=[])
    true = [t for k in range(lm.num_layers) for t in fresh.rows(k)]
    assert policy.partial_rounds > policy.full_rounds > 2
    for (length, rows), *_ in kept:
        for mine, right in zip(rows, true, strict=True):
            torch.testing.assert_close(mine, right[:, :length])


@pytest.mark.parametrize("shape", ["llama", "gemma3"])
def test_batches_are_as_good_as_one_by_one(shape: str) -> None:
    lm = backend(shape)
    asked = [LONG, LONG[:9], text(41, seed=2), text(57, seed=3)]

    def drafter() -> Drafter:
        return PromptLookup()

    together, events = run(compose(lm, [drafter(), Watched(partial_tokens=5)]), asked, 20)
    for prompt, said in zip(asked, together, strict=True):
        assert run(compose(lm, [drafter(), Watched(partial_tokens=5)]), [prompt], 20)[0] == [said]
    assert any(event.accepted for event in events if isinstance(event, Stepped))


def test_everything_is_released() -> None:
    policy = Watched(partial_tokens=5)
    run(compose(backend("llama"), policy), [LONG, LONG[:50]], 12)
    pools = {id(pool): pool for cache in policy.caches for pool in (cache.whole.pool, cache.part.pool)}  # type: ignore[union-attr]
    assert not any(pool.owners or pool.layers for pool in pools.values())


class StepsBack(Search):
    """Goes on with two branches and steps back now and then, further each time."""

    width = 1

    def __init__(self) -> None:
        super().__init__()
        self.rounds = 0

    def advance(self, branches: Sequence[Any]) -> list[Move] | None:
        self.rounds += 1
        return {4: [Move(0), Move(0, 2)], 7: [Move(1), Move(0, 6)], 9: [Move(0, 1)]}.get(self.rounds)

    def select(self, branches: Sequence[Any]) -> int:
        return 0


def test_branches_that_fork_and_step_back() -> None:
    """With all blocks chosen the text is the model's own, whatever the branches do."""
    lm = backend("llama")
    (plain,), _ = run(compose(lm), [LONG], 16)
    for period in (0, 4):
        policy = Watched(partial_tokens=period, retrieval_blocks=60)
        assert run(compose(lm, [policy, StepsBack()]), [LONG], 16)[0] == [plain]
    policy = Watched(partial_tokens=4)
    (said,), _ = run(compose(lm, [policy, StepsBack()]), [LONG], 16)
    assert len(said) == 16
    assert policy.partial_rounds > 4


# -- refusals -----------------------------------------------------------------------------------------------------


def test_refusals() -> None:
    for shape in ("bart", "mamba"):
        with pytest.raises(Incompatible, match=r"specpv needs a model with .*attention queries"):
            compose(backend(shape), "specpv")
    for other in ("layer-skip", "d3-depth-decay"):
        settings = {"alpha": 0.5, "first": 0.3, "last": 0.3} if other.startswith("d3") else {}
        made = compose(backend("llama"), f"specpv+{other}", settings={**settings, "partial_tokens": 0})
        with pytest.raises(Incompatible, match="by the queries of all 3 layers"):
            run(made, [LONG], 9)
    assert not compose(backend("llama"), "specpv").lossless
