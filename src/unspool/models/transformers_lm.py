"""Decoder-only causal language models of the transformers library, any of them with a key-value cache.

A tree is scored by one forward pass: its nodes are the new tokens, a 4D mask shows each of them the cached text and
its own ancestors, and its position is the cached length plus its depth. Layers with a sliding window get a mask of
their own; the cache keeps full length, so that committing a path is the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import get_layer_types_and_kwargs

from unspool.core.errors import Incompatible, InvalidInput
from unspool.core.model import Cache, Capability
from unspool.core.scores import LOGITS, Request, Scores, Want
from unspool.core.tree import ROOT, TokenTree
from unspool.models.attention import attending, can_be_asked
from unspool.models.checks import check, check_inputs, check_want
from unspool.models.few_rows import FewRowsLinear
from unspool.models.kv import KVCache, KVPool
from unspool.models.kv_pass import KVPass
from unspool.models.memory import Footprint, Ledger
from unspool.models.pooled import PooledModel
from unspool.models.tokenizer import TextTokenizer, stops

_FULL, _SLIDING = "full_attention", "sliding_attention"
_FAR = 1 << 40

# Model types whose trees the tests compare with plain scoring. Others are compared once when they are loaded.
PROVEN = frozenset({"llama", "qwen2", "qwen3", "gemma3_text", "gpt2", "gpt_neox", "mistral", "t5", "bart", "marian"})


class _Skip(nn.Module):
    """Stands where a layer is left out."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        for name in ("attention_type", "layer_type", "layer_idx"):
            if hasattr(layer, name):
                setattr(self, name, getattr(layer, name))

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return hidden_states


class TransformersModel(PooledModel):
    """A causal language model of transformers.

    Args:
        model: the network; put into evaluation mode.
        tokenizer: its tokenizer, or ``None``.
        name: what to call it in messages.

    Raises:
        Incompatible: if its attention cannot be driven by masks and positions (checked once for architectures that
            the tests do not cover).
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | TextTokenizer | None = None, name: str = ""
    ) -> None:
        self.model = model.eval()
        self.config: Any = model.config.get_text_config(decoder=True)
        self.name = name or str(getattr(model.config, "name_or_path", "")) or type(model).__name__
        self.tokenizer = TextTokenizer(tokenizer) if isinstance(tokenizer, PreTrainedTokenizerBase) else tokenizer
        self.vocab_size = self._head_width()
        self.context_length = getattr(self.config, "max_position_embeddings", None)
        self.stop_tokens = stop_tokens_of(model)
        self.device = model.device
        self.dtype = model.dtype
        self.decoder, self.layers = self._find_layers()
        self.windows = self._find_windows()
        self.capabilities = frozenset(
            {
                Capability.TREE,
                Capability.HIDDEN_STATES,
                Capability.ATTENTIONS,
                Capability.LAYER_RANGES,
                Capability.INPUT_EMBEDDINGS,
                Capability.CACHE_EDITING,
            }
        )
        if not model.config.is_encoder_decoder:
            self.capabilities |= {Capability.MEMORY_BUDGET}
            if can_be_asked(model):
                self.capabilities |= {Capability.SPLIT_ATTENTION, Capability.QUERIES}
        if self.config.model_type not in PROVEN:
            self._prove()
            self._prove_ranges()

    # -- what it is ----------------------------------------------------------------------------------------------

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def hidden_size(self) -> int:
        return int(self.config.hidden_size)

    def _head_width(self) -> int:
        head = self.model.get_output_embeddings()
        return int(head.weight.shape[0] if head is not None else self.config.vocab_size)

    def _find_layers(self) -> tuple[nn.Module, nn.ModuleList]:
        """The network below the head, and the list of its layers."""
        count = self.config.num_hidden_layers
        root: nn.Module = self.model.get_decoder() if self.model.config.is_encoder_decoder else self.model.base_model
        for module in root.modules():
            for child in module.children():
                if isinstance(child, nn.ModuleList) and len(child) == count:
                    return module, child
        raise Incompatible(f"{self.name}: no list of {count} layers was found in {type(self.model).__name__}")

    def _find_windows(self) -> dict[str, int | None]:
        """The kinds of attention in the network, and the window of each."""
        kinds = get_layer_types_and_kwargs(self.config)[0]
        windows: dict[str, int | None] = {}
        for kind in dict.fromkeys(kinds):
            if kind == _FULL:
                windows[kind] = None
            elif kind == _SLIDING:
                windows[kind] = int(self.config.sliding_window)
            else:
                raise Incompatible(
                    f"{self.name} has layers of the kind {kind!r} ({self.config.model_type}); "
                    f"trees are scored with {_FULL} and {_SLIDING} layers only"
                )
        return windows

    def _prove(self) -> None:
        """Score a small tree and its paths one by one: an architecture that ignores masks or positions is found out."""
        tokens = [3 % self.vocab_size, 5 % self.vocab_size, 7 % self.vocab_size]
        tree = TokenTree([*tokens, *tokens], [ROOT, 0, 0, 1, 2, ROOT])
        caches = self.new_caches(2)
        try:
            whole = self._prove_scores(caches[0], tree, tokens)
            for node in range(len(tree)):
                alone = self._prove_scores(caches[1], TokenTree.chain(tree.path_tokens(node)), tokens)
                error = float((whole.logits[node] - alone.logits[-1]).abs().max())
                scale = float(alone.logits[-1].abs().max()) + 1e-6
                if not error <= 1e-2 * scale:
                    raise Incompatible(
                        f"{self.name} ({self.config.model_type}) scores a tree differently from its paths "
                        f"(logits differ by {error:.3g} of {scale:.3g}): its attention does not follow masks "
                        f"and positions"
                    )
        except (TypeError, ValueError, RuntimeError, KeyError, IndexError, AttributeError) as error:
            raise Incompatible(
                f"{self.name} ({self.config.model_type}) cannot be driven by 4D masks and positions: "
                f"{type(error).__name__}: {error}"
            ) from error
        finally:
            for cache in caches:
                cache.release()
        self.forwards = self.layers_run = self.kv_read = 0

    def _prove_ranges(self) -> None:
        """Compare two halves of the layers with the whole: where layers lean on others, none runs without them."""
        tree = TokenTree.chain([3 % self.vocab_size, 5 % self.vocab_size, 7 % self.vocab_size])
        middle = self.num_layers // 2
        (cache,) = self.new_caches(1)
        try:
            whole = self.score([Request(cache, tree)])[0].logits
            lower = self.score([Request(cache, tree)], Want(hidden=frozenset({middle})), range(middle))[0]
            upper = [Request(cache, tree, inputs=lower.hidden[middle])]
            halves = self.score(upper, layers=range(middle, self.num_layers))[0].logits
            proven = bool((whole - halves).abs().max() <= 1e-2 * (whole.abs().max() + 1e-6))
        except (TypeError, ValueError, RuntimeError, KeyError, IndexError, AttributeError, InvalidInput):
            proven = False
        finally:
            cache.release()
        if not proven:
            self.capabilities -= {Capability.LAYER_RANGES}
        self.forwards = self.layers_run = self.kv_read = 0

    def _prove_scores(self, cache: Cache, tree: TokenTree, prefix: list[int]) -> Scores:
        cache.rewind(0)
        self.prefill(cache, prefix)
        return self.score([Request(cache, tree)])[0]

    # -- caches --------------------------------------------------------------------------------------------------

    def footprint(self, block: int) -> Footprint:
        """What decoding takes with caches that grow by ``block`` positions."""
        item = torch.empty((), dtype=self.dtype).element_size()
        # The turned product is made for single precision on a CPU.
        turned = isinstance(self.model.get_output_embeddings(), FewRowsLinear) and item == 4
        return Footprint.of(
            self.config,
            vocabulary=self.vocab_size,
            item=item,
            masks=len(self.windows),
            turned=turned and self.device.type == "cpu",
            block=block,
        )

    # -- scoring -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def score(
        self, requests: Sequence[Request], want: Want = LOGITS, layers: Sequence[int] | None = None
    ) -> list[Scores]:
        order = sorted(range(len(requests)), key=lambda i: requests[i].cache.slot)  # type: ignore[attr-defined]
        batch = [requests[i] for i in order]
        caches: list[KVCache] = [request.cache for request in batch]  # type: ignore[misc]
        check(self, batch, caches, layers)
        check_want(self, want)
        counts = [len(request.tree) - request.known for request in batch]
        width = max(counts)
        starts = [cache.held + request.known for cache, request in zip(caches, batch, strict=True)]
        kv = KVPass(caches, starts, counts, [request.tree.depths for request in batch])
        ends = [start + count for start, count in zip(starts, counts, strict=True)]

        ids = torch.zeros(len(batch), width, dtype=torch.int64)
        positions = torch.zeros(len(batch), width, dtype=torch.int64)
        rows: list[list[int]] = []
        for row, (request, cache, count) in enumerate(zip(batch, caches, counts, strict=True)):
            tree, known = request.tree, request.known
            ids[row, :count] = tree.tokens[known:]
            positions[row, :count] = torch.tensor(tree.depths[known:]) + cache.length
            # Padding repeats the last position, which is certain to be within the context.
            positions[row, count:] = positions[row, count - 1]
            rows.append(list(range(known, len(tree))) if request.rows is None else request.rows)
        ledger = caches[0].pool.ledger
        if ledger is not None:
            self._announce(ledger, caches[0].pool, len(batch), width, kv.end, max(len(kept) for kept in rows))
        masks = self._masks(batch, caches, positions, width, kv.end)
        # Rows of the head's input, by request; short ones are padded with row 0 and cut off again.
        most = max(len(r) for r in rows)
        keep = torch.zeros(len(batch), most, dtype=torch.int64)
        for row, (request, wanted) in enumerate(zip(batch, rows, strict=True)):
            keep[row, : len(wanted)] = torch.tensor(wanted, dtype=torch.int64) - request.known

        inputs = None
        if any(request.inputs is not None for request in batch):
            inputs = self._inputs(batch, counts, ids)
        skipped_start = bool(layers) and layers[0] > 0  # type: ignore[index]
        queries: dict[int, Tensor] = {}
        with ExitStack() as stack:
            tapped = stack.enter_context(self._taps(want.hidden))
            if layers is not None:
                stack.enter_context(self._only(layers))
            if inputs is not None and skipped_start:
                stack.enter_context(self._entering(layers[0], inputs))  # type: ignore[index]
                inputs = None
            if want.attentions:
                stack.enter_context(self._eager())
            elif want.split or want.queries:
                true = list(zip(counts, ends, strict=True)) if want.split else None
                stack.enter_context(attending(self.model, true, queries if want.queries else None))
            out = self._forward(ids, inputs, masks, positions, kv, keep, want.attentions)
        if ledger is not None:
            ledger.after_pass()
        self.forwards += 1
        self.layers_run += self.num_layers if layers is None else len(layers)
        self.kv_read += kv.read
        for cache, request in zip(caches, batch, strict=True):
            cache.scored = len(request.tree)

        logits = out.logits if out.logits.dtype in (torch.float32, torch.float64) else out.logits.float()
        answers: dict[int, Scores] = {}
        for row, (place, request, count) in enumerate(zip(order, batch, counts, strict=True)):
            hidden = {layer: states[row, :count] for layer, states in tapped.items()}
            seen = caches[row].held + len(request.tree)
            attentions = tuple(a[row, :, :count, :seen] for a in self._attentions(out)) if want.attentions else ()
            asked = {layer: q[row, :, :count] for layer, q in queries.items()}
            answers[place] = Scores(logits[row, : len(rows[row])], rows[row], hidden, attentions, asked)
        return [answers[place] for place in range(len(requests))]

    def _announce(self, ledger: Ledger, pool: KVPool, rows: int, width: int, end: int, places: int) -> None:
        """Tell the ledger what a pass is about to take, beyond the caches that are there."""
        sizes = self.footprint(pool.block or 1)
        ledger.next_pass()
        pool.grow()
        ledger.before_pass(
            mask=sizes.mask(rows, width, end),
            work=sizes.work(rows, width, end),
            head=sizes.head(rows, width, places),
            logits=sizes.logits(rows, places),
            cache=0 if pool.layers else sizes.cache(len(pool.owners), sizes.room(end)),
        )

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
        """Run the network on ``[B, N]`` tokens; logits ``[B, P, V]`` of the rows in ``keep`` ``[B, P]``."""
        return self.model(
            input_ids=ids.to(self.device) if inputs is None else None,
            inputs_embeds=inputs,
            attention_mask=masks,
            position_ids=positions.to(self.device),
            past_key_values=kv,
            use_cache=True,
            logits_to_keep=keep.to(self.device),
            output_attentions=attentions,
        )

    def _attentions(self, out: Any) -> tuple[Tensor, ...]:
        return tuple(out.attentions)

    def _masks(
        self, batch: Sequence[Request], caches: Sequence[KVCache], positions: Tensor, width: int, end: int
    ) -> Tensor | dict[str, Tensor]:
        """Additive masks ``[B, 1, N, end]``, one for every kind of attention in the network."""
        allowed = torch.zeros(len(batch), width, end, dtype=torch.bool)
        keys = torch.zeros(len(batch), end, dtype=torch.int64)
        for row, (request, cache) in enumerate(zip(batch, caches, strict=True)):
            tree, known, held = request.tree, request.known, cache.held
            count = len(tree) - known
            allowed[row, :count, :held] = True
            allowed[row, :count, held : held + len(tree)] = tree.mask[known:]
            # A padding row must see something, or its softmax would be over nothing.
            allowed[row, count:, 0] = True
            if any(window is not None for window in self.windows.values()):
                keys[row, :held] = torch.arange(held) + cache.dropped
                # Of rows with gaps between them the positions differ from head to head: they lie before every window.
                keys[row, : cache.solid - cache.dropped] = -_FAR
                keys[row, held : held + len(tree)] = torch.tensor(tree.depths) + cache.length
        made = {}
        for kind, window in self.windows.items():
            seen = allowed
            if window is not None:
                seen = allowed & (positions[:, :, None] - keys[:, None, :] < window)
                seen[:, :, 0] |= ~seen.any(dim=-1)
            mask = torch.zeros(len(batch), 1, width, end, dtype=self.dtype)
            mask.masked_fill_(~seen[:, None], torch.finfo(self.dtype).min)
            made[kind] = mask.to(self.device)
        return made if len(made) > 1 else next(iter(made.values()))

    def _inputs(self, batch: Sequence[Request], counts: Sequence[int], ids: Tensor) -> Tensor:
        """``[B, N, d]`` vectors to enter; requests without any give their embeddings."""
        entering = self.embed(ids)
        for row, (request, count) in enumerate(zip(batch, counts, strict=True)):
            if request.inputs is not None:
                check_inputs(request.inputs, count, entering.shape[-1])
                entering[row, :count] = request.inputs.to(entering)
        return entering

    # -- looking inside ------------------------------------------------------------------------------------------

    @contextmanager
    def _taps(self, wanted: frozenset[int]) -> Iterator[dict[int, Tensor]]:
        """Collect hidden states ``[B, N, d]`` on the way: 0 enters the first layer, k leaves the k-th, -1 enters the
        head."""
        tapped: dict[int, Tensor] = {}
        handles = []

        def leaving(layer: int) -> Any:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                tapped[layer] = output[0] if isinstance(output, tuple) else output

            return hook

        def entering(module: nn.Module, args: Any, kwargs: Any) -> None:
            tapped[0] = args[0] if args else kwargs["hidden_states"]

        def final(module: nn.Module, args: Any, output: Any) -> None:
            tapped[-1] = output.last_hidden_state

        for layer in wanted:
            if layer == 0:
                handles.append(self.layers[0].register_forward_pre_hook(entering, with_kwargs=True))
            elif layer == -1:
                handles.append(self.decoder.register_forward_hook(final))
            else:
                handles.append(self.layers[layer - 1].register_forward_hook(leaving(layer)))
        try:
            yield tapped
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def _only(self, kept: Sequence[int]) -> Iterator[None]:
        """Run only these layers."""
        whole = list(self.layers)
        keep = set(kept)
        try:
            for index, layer in enumerate(whole):
                if index not in keep:
                    self.layers[index] = _Skip(layer)
            yield
        finally:
            for index, layer in enumerate(whole):
                self.layers[index] = layer

    @contextmanager
    def _entering(self, layer: int, hidden: Tensor) -> Iterator[None]:
        """Put ``hidden`` ``[B, N, d]`` before a layer, whatever came from below."""

        def hook(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
            if args:
                return (hidden, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": hidden}

        handle = self.layers[layer].register_forward_pre_hook(hook, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def _eager(self) -> Iterator[None]:
        """Fused attention returns no probabilities; the plain one does."""
        before = self.model.config._attn_implementation
        try:
            self.model.set_attn_implementation("eager")
            yield
        finally:
            self.model.set_attn_implementation(before)

    @torch.no_grad()
    def embed(self, tokens: Tensor) -> Tensor:
        embedded: Tensor = self.model.get_input_embeddings()(tokens.to(self.device))
        return embedded

    @torch.no_grad()
    def head(self, hidden: Tensor) -> Tensor:
        """Logits of final hidden states, as the network's own head gives them (with its scaling or soft-capping)."""

        def final(module: nn.Module, args: Any, output: Any) -> Any:
            output.last_hidden_state = hidden[:, None].to(output.last_hidden_state)
            return output

        return self._read_out(lambda: self.decoder.register_forward_hook(final))

    @torch.no_grad()
    def exit_head(self, hidden: Tensor) -> Tensor:
        self.require(frozenset({Capability.LAYER_RANGES}), "an exit before the last layer")

        def leaving(module: nn.Module, args: Any, output: Any) -> Any:
            return hidden[:, None].to(output)

        return self._read_out(lambda: self.layers[-1].register_forward_hook(leaving))

    def _read_out(self, exchange: Callable[[], Any]) -> Tensor:
        """``[N, V]`` logits of a pass of one token, for which a hook puts in ``[N, 1, d]`` states on the way.

        Heads differ (scaling, soft-capping, biases), so the network's own is run. The layers are left out where they
        can be; a network whose layers lean on one another runs them for its one token.
        """
        with ExitStack() as stack:
            if Capability.LAYER_RANGES in self.capabilities:
                stack.enter_context(self._only([]))
            stack.callback(exchange().remove)
            out = self._one_token()
        logits: Tensor = out.logits[:, 0]
        return logits if logits.dtype in (torch.float32, torch.float64) else logits.float()

    def _one_token(self) -> Any:
        """The network's output for any one token."""
        return self.model(input_ids=torch.zeros(1, 1, dtype=torch.int64, device=self.device), use_cache=False)


def stop_tokens_of(model: PreTrainedModel) -> frozenset[int]:
    """The tokens that end a text, by the generation config first, then the model's."""
    told = (getattr(model, "generation_config", None), model.config)
    return stops(*(getattr(config, "eos_token_id", None) for config in told))
