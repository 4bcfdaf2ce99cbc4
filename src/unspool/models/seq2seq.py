"""Models with an encoder (T5, BART, Marian, Pegasus and their kin): the same loop over the decoder.

The encoder reads the prompt once; what it says is held by the cache, with the keys and values that the decoder's
cross-attention makes of it. The decoder's own tokens begin with its start token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel, PreTrainedTokenizerBase

from unspool.core.errors import Incompatible, InvalidInput
from unspool.core.model import Cache, Capability
from unspool.models.kv import KVCache, KVPool
from unspool.models.kv_pass import KVPass
from unspool.models.tokenizer import TextTokenizer
from unspool.models.transformers_lm import TransformersModel


class SourceCache(KVCache):
    """A decoder's cache with what the encoder read.

    Attributes:
        states: ``[S, d]`` last hidden states of the encoder.
    """

    states: Tensor

    def fork(self) -> SourceCache:
        twin = self.pool.fork(self)
        assert isinstance(twin, SourceCache)
        twin.states = self.states
        return twin

    @property
    def nbytes(self) -> int:
        return super().nbytes + self.states.numel() * self.states.element_size()


class SourcePool(KVPool):
    """Also remembers the cross-attention's keys and values of the batch that was scored last.

    Attributes:
        cross: which sources they belong to, the keys and values, and the ``[B, S]`` mask of real source positions.
    """

    def __init__(self) -> None:
        super().__init__()
        self.cross: tuple[list[Tensor], DynamicCache, Tensor, Tensor] | None = None

    def claim(self) -> SourceCache:
        cache = SourceCache(self, len(self.owners))
        self.owners.append(cache)
        return cache

    def release(self, cache: KVCache) -> None:
        super().release(cache)
        if not self.owners:
            self.cross = None

    @property
    def slot_bytes(self) -> int:
        crossing = 0
        if self.cross is not None:
            crossing = sum(
                layer.keys.numel() * layer.keys.element_size() * 2
                for layer in self.cross[1].layers
                if layer.is_initialized
            ) // max(len(self.cross[0]), 1)
        return super().slot_bytes + crossing


class Seq2SeqModel(TransformersModel):
    """A sequence-to-sequence model of transformers; prompts go to the encoder.

    Args:
        model: the network.
        tokenizer: its tokenizer, or ``None``.
        name: what to call it in messages.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | TextTokenizer | None = None, name: str = ""
    ) -> None:
        config = model.config
        generation = getattr(model, "generation_config", None)
        start = getattr(generation, "decoder_start_token_id", None)
        start = getattr(config, "decoder_start_token_id", None) if start is None else start
        if start is None:
            raise Incompatible(f"{name or type(model).__name__} names no decoder_start_token_id in its configuration")
        forced = getattr(generation, "forced_bos_token_id", None)
        self.start_tokens = [int(start)] + ([int(forced)] if forced is not None else [])
        # T5 has relative positions and no limit; the others name theirs.
        self.source_length: int | None = getattr(config, "max_position_embeddings", None)
        super().__init__(model, tokenizer, name)
        self.context_length = self.source_length
        self.capabilities |= {Capability.ENCODER}
        if not hasattr(self.decoder, "embed_positions"):
            # The first layer hands its relative position bias to all others, so none runs without it.
            self.capabilities -= {Capability.LAYER_RANGES}

    @property
    def hidden_size(self) -> int:
        return int(self.config.d_model)

    def new_caches(self, count: int) -> list[Cache]:
        """Caches without a source: an encoder that read nothing but its end-of-text token."""
        return [cache for cache, _ in self.start([[min(self.stop_tokens, default=0)]] * count)]

    @torch.no_grad()
    def start(self, prompts: Sequence[Sequence[int]]) -> list[tuple[Cache, list[int]]]:
        for index, prompt in enumerate(prompts):
            if self.source_length is not None and len(prompt) > self.source_length:
                raise InvalidInput(
                    f"prompt {index} has {len(prompt)} tokens; the encoder of {self.name} reads {self.source_length}"
                )
        longest = max(len(prompt) for prompt in prompts)
        ids = torch.zeros(len(prompts), longest, dtype=torch.int64)
        real = torch.zeros(len(prompts), longest, dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = torch.tensor(list(prompt))
            real[row, : len(prompt)] = 1
        read = self.model.get_encoder()(input_ids=ids.to(self.device), attention_mask=real.to(self.device))
        pool = SourcePool()
        started: list[tuple[Cache, list[int]]] = []
        for states, prompt in zip(read.last_hidden_state, prompts, strict=True):
            cache = pool.claim()
            cache.states = states[: len(prompt)].clone()
            started.append((cache, list(self.start_tokens)))
        return started

    def _forward(
        self,
        ids: Tensor,
        inputs: Tensor | None,
        masks: Tensor | dict[str, Tensor],
        positions: Tensor,
        kv: KVPass,
        keep: Tensor,
        attentions: bool,
    ) -> Any:
        cross, states, real = self._cross(kv)
        with self._positions(positions.to(self.device), kv):
            out = self.model(
                encoder_outputs=(states,),
                attention_mask=real,
                decoder_input_ids=ids.to(self.device) if inputs is None else None,
                decoder_inputs_embeds=inputs,
                decoder_attention_mask=masks,
                past_key_values=EncoderDecoderCache(kv, cross),
                use_cache=True,
                output_attentions=attentions,
            )
        # These heads know no rows to keep.
        rows = keep.to(self.device)
        out.logits = out.logits.gather(1, rows[:, :, None].expand(-1, -1, out.logits.shape[-1]))
        return out

    def _attentions(self, out: Any) -> tuple[Tensor, ...]:
        return tuple(out.decoder_attentions)

    def _cross(self, kv: KVPass) -> tuple[DynamicCache, Tensor, Tensor]:
        """Keys and values of the cross-attention for this batch; made again only when the batch changes."""
        caches: list[SourceCache] = kv.caches  # type: ignore[assignment]
        pool = caches[0].pool
        assert isinstance(pool, SourcePool)
        sources = [cache.states for cache in caches]
        known = pool.cross[0] if pool.cross is not None else []
        if (
            pool.cross is None
            or len(known) != len(sources)
            or any(a is not b for a, b in zip(known, sources, strict=True))
        ):
            states = nn.utils.rnn.pad_sequence(sources, batch_first=True)
            real = torch.zeros(states.shape[:2], dtype=torch.int64, device=states.device)
            for row, cache in enumerate(caches):
                real[row, : len(cache.states)] = 1
            pool.cross = (sources, DynamicCache(), states, real)
        return pool.cross[1:]

    @contextmanager
    def _positions(self, positions: Tensor, kv: KVPass) -> Iterator[None]:
        """Give the nodes of a tree their own positions: these decoders would count them one after the other."""
        embedding = getattr(self.decoder, "embed_positions", None)
        if embedding is not None:
            # BART's tables begin with two rows that are no positions.
            rows = positions + getattr(embedding, "offset", 0)
            try:
                embedding.forward = lambda *args, **kwargs: nn.functional.embedding(rows, embedding.weight)
                yield
            finally:
                del embedding.forward
            return

        biased: list[Any] = [m for m in self.decoder.modules() if getattr(m, "has_relative_attention_bias", False)]
        keys = self._key_positions(positions, kv)

        def compute_bias(attention: Any, query_length: int, key_length: int, **kwargs: Any) -> Tensor:
            relative = keys[:, None, :] - positions[:, :, None]
            buckets = attention._relative_position_bucket(
                relative,
                bidirectional=False,
                num_buckets=attention.relative_attention_num_buckets,
                max_distance=attention.relative_attention_max_distance,
            )
            bias: Tensor = attention.relative_attention_bias(buckets)
            return bias.permute(0, 3, 1, 2)

        try:
            for module in biased:
                module.compute_bias = MethodType(compute_bias, module)
            yield
        finally:
            for module in biased:
                del module.compute_bias

    def _key_positions(self, positions: Tensor, kv: KVPass) -> Tensor:
        """``[B, end]`` position of every key: the cached ones in order, then the nodes' own."""
        keys = torch.arange(kv.end).repeat(len(kv.caches), 1)
        for row, (cache, depths) in enumerate(zip(kv.caches, kv.depths, strict=True)):
            keys[row, cache.length : cache.length + len(depths)] = torch.tensor(depths) + cache.length
        return keys.to(positions.device)

    def _one_token(self) -> Any:
        nothing = torch.zeros(1, 1, self.hidden_size, dtype=self.dtype, device=self.device)
        token = torch.zeros(1, 1, dtype=torch.int64, device=self.device)
        return self.model(encoder_outputs=(nothing,), decoder_input_ids=token, use_cache=False)
