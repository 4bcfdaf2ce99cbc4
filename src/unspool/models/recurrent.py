"""State-space and hybrid models (Mamba, Mamba-2, Jamba and their kin): chains, without trees.

A recurrent state cannot forget its last tokens. Scoring a draft therefore works on a copy of the state; when only part
of the draft stands, the old state is kept and the accepted tokens are replayed in front of the next pass.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from unspool.core.errors import Incompatible, InvalidInput
from unspool.core.model import Cache, Capability, LanguageModel
from unspool.core.scores import LOGITS, Request, Scores, Want
from unspool.models.tokenizer import TextTokenizer
from unspool.models.transformers_lm import stop_tokens_of

# A longer backlog is run through on its own: replaying it again after every refusal would cost more than one pass.
_LONGEST_BACKLOG = 32


class StateCache(Cache):
    """A recurrent state, and the committed tokens that it has not seen yet.

    Attributes:
        tokens: everything committed.
        state: after the first ``len(tokens) - len(backlog)`` tokens; ``None`` at the start.
    """

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.backlog: list[int] = []
        self.state: DynamicCache | None = None
        self.scratch: list[int] = []
        self.scratch_state: DynamicCache | None = None

    @property
    def length(self) -> int:  # type: ignore[override]
        return len(self.tokens)

    def commit(self, path: Sequence[int]) -> None:
        nodes = list(path)
        if nodes != list(range(len(nodes))) or len(nodes) > len(self.scratch):
            raise InvalidInput(f"nodes {nodes} are not the beginning of the chain of {len(self.scratch)} scored last")
        kept = self.scratch[: len(nodes)]
        if nodes and len(nodes) == len(self.scratch):
            self.state, self.backlog = self.scratch_state, []
        else:
            self.backlog = self.backlog + kept
        self.tokens += kept
        self.scratch, self.scratch_state = [], None

    def fork(self) -> StateCache:
        twin = StateCache()
        twin.tokens, twin.backlog = list(self.tokens), list(self.backlog)
        # States are never changed in place (scoring copies them), so they may be shared.
        twin.state = self.state
        return twin

    def rewind(self, length: int) -> None:
        """Step back; everything before is replayed with the next pass, since a state cannot be undone."""
        self._check_rewind(length)
        if length < len(self.tokens):
            seen = len(self.tokens) - len(self.backlog)
            del self.tokens[length:]
            if length >= seen:
                del self.backlog[length - seen :]
            else:
                self.state, self.backlog = None, list(self.tokens)
        self.scratch, self.scratch_state = [], None

    @property
    def nbytes(self) -> int:
        return sum(_state_bytes(state) for state in (self.state, self.scratch_state) if state is not None)


def _state_bytes(state: DynamicCache) -> int:
    total = 0
    for layer in state.layers:
        held: list[Any] = [getattr(layer, "keys", None), getattr(layer, "values", None)]
        if isinstance(layer, LinearAttentionCacheLayerMixin):
            held += [*layer.conv_states.values(), *layer.recurrent_states.values()]
        total += sum(t.numel() * t.element_size() for t in held if isinstance(t, torch.Tensor))
    return total


class RecurrentModel(LanguageModel):
    """A causal language model with a recurrent state, of transformers.

    Args:
        model: the network; put into evaluation mode.
        tokenizer: its tokenizer, or ``None``.
        name: what to call it in messages.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | TextTokenizer | None = None, name: str = ""
    ) -> None:
        self.model = model.eval()
        self.name = name or str(getattr(model.config, "name_or_path", "")) or type(model).__name__
        self.tokenizer = TextTokenizer(tokenizer) if isinstance(tokenizer, PreTrainedTokenizerBase) else tokenizer
        head = model.get_output_embeddings()
        self.vocab_size = int(head.weight.shape[0] if head is not None else model.config.vocab_size)
        self.context_length = getattr(model.config, "max_position_embeddings", None)
        self.stop_tokens = stop_tokens_of(model)
        self.device, self.dtype = model.device, model.dtype
        self.capabilities = frozenset({Capability.STATE_REPLAY})
        # Pure state-space models call their cache by another name.
        self._cache_argument = (
            "cache_params" if "cache_params" in model.forward.__code__.co_varnames else "past_key_values"
        )
        self.block = True
        self.block = self._continues_in_blocks()
        self.forwards = 0

    def _continues_in_blocks(self) -> bool:
        """Whether several tokens may follow a state in one pass; not every implementation starts its scan from the
        state."""
        tokens = [token % self.vocab_size for token in (3, 5, 7, 11)]
        state, _ = self._run(None, tokens[:2])
        _, together = self._run(copy.deepcopy(state), tokens[2:])
        state, _ = self._run(state, tokens[2:3])
        _, last = self._run(state, tokens[3:])
        # Only rounding may differ, and as much as it does between one pass over the whole text and single steps.
        _, whole = self._run(None, tokens)
        rounding = float((whole[-1] - last[-1]).abs().max()) + torch.finfo(self.dtype).eps * float(last.abs().max())
        return float((together[-1] - last[-1]).abs().max()) <= 4 * rounding

    def new_caches(self, count: int) -> list[Cache]:
        return [StateCache() for _ in range(count)]

    @torch.no_grad()
    def score(
        self, requests: Sequence[Request], want: Want = LOGITS, layers: Sequence[int] | None = None
    ) -> list[Scores]:
        """Score chains, one request after the other: states are not batched."""
        if want != LOGITS or layers is not None:
            raise Incompatible(f"{self.name} is a recurrent model; it gives logits of all layers' output only")
        return [self._score(request) for request in requests]

    def _score(self, request: Request) -> Scores:
        cache, tree, known = request.cache, request.tree, request.known
        assert isinstance(cache, StateCache)
        if not tree.is_chain:
            raise Incompatible(f"{self.name} is a recurrent model; it scores chains, not trees")
        if request.inputs is not None:
            raise Incompatible(f"{self.name} takes tokens, not input embeddings")
        if not known < len(tree) or known > len(cache.scratch):
            raise InvalidInput(
                f"{known} of {len(tree)} nodes are said to be known; the cache holds {len(cache.scratch)}"
            )
        low, high = min(tree.token_list), max(tree.token_list)
        if low < 0 or high >= self.vocab_size:
            raise InvalidInput(f"token {low if low < 0 else high} is outside of the vocabulary of {self.name}")
        if self.context_length is not None and cache.length + len(tree) > self.context_length:
            raise InvalidInput(
                f"{cache.length + len(tree)} positions exceed the context of {self.name}, {self.context_length}"
            )

        if known and known == len(cache.scratch):
            state, ahead = cache.scratch_state, []
        else:
            if len(cache.backlog) > _LONGEST_BACKLOG:
                cache.state, _ = self._run(copy.deepcopy(cache.state), cache.backlog)
                cache.backlog = []
            # A state that saw more than the known nodes is of no use: begin again behind the committed text.
            state, ahead = copy.deepcopy(cache.state), cache.backlog + tree.token_list[:known]
        cache.scratch_state, logits = self._run(state, ahead + tree.token_list[known:])
        cache.scratch = list(tree.token_list)
        rows = list(range(known, len(tree))) if request.rows is None else request.rows
        place = torch.tensor([len(ahead) + row - known for row in rows], dtype=torch.int64)
        return Scores(logits[place.to(logits.device)], rows)

    @torch.no_grad()
    def _run(self, state: DynamicCache | None, tokens: Sequence[int]) -> tuple[DynamicCache, torch.Tensor]:
        """Advance a state (changed in place) through ``tokens``; logits ``[N, V]``."""
        pieces: list[Sequence[int]] = [tokens]
        if state is not None and not self.block:
            pieces = [[token] for token in tokens]
        logits = []
        for piece in pieces:
            if state is None:
                state = DynamicCache(config=self.model.config)
            ids = torch.tensor([list(piece)], dtype=torch.int64, device=self.device)
            out = self.model(input_ids=ids, use_cache=True, **{self._cache_argument: state})
            self.forwards += 1
            logits.append(out.logits[0])
        assert state is not None
        all_logits = torch.cat(logits)
        return state, all_logits if all_logits.dtype in (torch.float32, torch.float64) else all_logits.float()


def is_recurrent(config: Any) -> bool:
    """Whether a configuration describes a network whose layers keep a state besides keys and values."""
    cache = DynamicCache(config=config)
    return any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in cache.layers)
