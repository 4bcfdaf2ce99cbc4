"""Tiny random networks of every supported shape, with fixed seeds and logits that are far from flat."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from unspool.core.model import LanguageModel
from unspool.models.load import wrap
from unspool.models.native.families import Shape
from unspool.models.native.native_lm import NativeModel
from unspool.models.native.network import Network
from unspool.models.native.weights import PRECISIONS, TensorWeights

VOCAB = 64
CONTEXT = 128
SHORT_CONTEXT = 48
"""Of the decoders of models with an encoder, whose texts begin at nothing."""

_BASE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
_GATED: dict[str, Any] = {**_BASE, "num_key_value_heads": 2, "intermediate_size": 64}
_SEQ2SEQ: dict[str, Any] = {
    "vocab_size": VOCAB,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": SHORT_CONTEXT,
    "bos_token_id": None,
    "eos_token_id": None,
    "forced_eos_token_id": None,
    "decoder_start_token_id": 2,
    "pad_token_id": 1,
}

DECODERS = ("llama", "qwen2", "qwen3", "gemma3", "gpt2", "gpt-neox", "mistral")
ENCODER_DECODERS = ("t5", "bart", "marian")
RECURRENT = ("mamba", "mamba2", "jamba")
NATIVE = ("native-llama", "native-gemma3")
"""Shapes of the native runtime, in single precision."""
TREES = (*DECODERS, *ENCODER_DECODERS, *NATIVE)
"""Shapes whose backend scores trees."""
ROUNDED = ("native-int4",)
"""Whose own plain decoding is the yardstick: weights and states are rounded."""
SHAPES = (*TREES, *RECURRENT, *ROUNDED)


def config(shape: str) -> Any:
    """The configuration of a shape. Sliding windows are of 5 tokens, so that short texts are longer."""
    match shape:
        case "llama":
            return transformers.LlamaConfig(**_GATED)
        case "qwen2":
            return transformers.Qwen2Config(**_GATED)
        case "qwen3":
            return transformers.Qwen3Config(**_GATED, head_dim=8)
        case "gemma3":
            kinds = ["sliding_attention", "full_attention", "sliding_attention"]
            return transformers.Gemma3TextConfig(
                **{**_GATED, "num_key_value_heads": 1}, head_dim=16, sliding_window=5, layer_types=kinds
            )
        case "gpt2":
            return transformers.GPT2Config(
                vocab_size=VOCAB,
                n_embd=32,
                n_layer=3,
                n_head=4,
                n_positions=CONTEXT,
                bos_token_id=None,
                eos_token_id=None,
                tie_word_embeddings=False,
            )
        case "gpt-neox":
            return transformers.GPTNeoXConfig(**_BASE, intermediate_size=64)
        case "mistral":
            return transformers.MistralConfig(**_GATED, sliding_window=5)
        case "mamba":
            return transformers.MambaConfig(
                vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, state_size=8, **_nothing_special()
            )
        case "mamba2":
            return transformers.Mamba2Config(
                vocab_size=VOCAB,
                hidden_size=32,
                num_hidden_layers=2,
                state_size=8,
                num_heads=8,
                head_dim=8,
                n_groups=1,
                chunk_size=8,
                **_nothing_special(),
            )
        case "jamba":
            return transformers.JambaConfig(
                **{**_GATED, "num_hidden_layers": 2}, num_experts=2, attn_layer_period=2, attn_layer_offset=1
            )
        case "t5":
            return transformers.T5Config(
                vocab_size=VOCAB,
                d_model=32,
                d_kv=8,
                d_ff=64,
                num_layers=2,
                num_heads=4,
                # Few buckets and a short distance: positions far apart share one, as in long texts.
                relative_attention_num_buckets=8,
                relative_attention_max_distance=16,
                decoder_start_token_id=0,
                eos_token_id=None,
                tie_word_embeddings=False,
            )
        case "bart":
            return transformers.BartConfig(**_SEQ2SEQ)
        case "marian":
            return transformers.MarianConfig(**_SEQ2SEQ)
    raise ValueError(f"no shape {shape!r}")


def _nothing_special() -> dict[str, Any]:
    return {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None, "tie_word_embeddings": False}


def network(shape: str, dtype: torch.dtype = torch.float64, *, noise: float = 0.0, seed: int = 0) -> PreTrainedModel:
    """A network of its own (not shared between callers).

    Args:
        shape: one of :data:`SHAPES`.
        dtype: of the weights.
        noise: relative size of a disturbance of the weights, which makes a related draft model.
        seed: of the weights; that of the disturbance is another.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = config(shape)
        torch_state = torch.random.get_rng_state()
        torch.manual_seed(1234 + seed)
        auto = transformers.AutoModelForSeq2SeqLM if made.is_encoder_decoder else transformers.AutoModelForCausalLM
        # The fused mixture of experts knows no double precision.
        more = {"experts_implementation": "eager"} if shape == "jamba" else {}
        model = auto.from_config(made, **more)
        torch.random.set_rng_state(torch_state)
    if made.is_encoder_decoder:
        # A head tied to the embeddings would repeat the last token for ever.
        head = model.get_output_embeddings()
        head.weight = nn.Parameter(torch.empty_like(head.weight))
    _liven(model, torch.Generator().manual_seed(99 + seed), 1.0)
    if noise:
        _liven(model, torch.Generator().manual_seed(7 + seed), noise)
    return model.to(dtype).eval()


@torch.no_grad()
def _liven(model: nn.Module, rng: torch.Generator, share: float) -> None:
    """Draw the matrices again with gains near 1, so that attention is sharp and logits differ; with a ``share`` below 1
    only mix such a draw in."""
    for name, weight in model.named_parameters():
        if "A_log" in name or "norm" in name or "ln_" in name or "dt" in name or name.endswith(".D"):
            continue
        if weight.ndim < 2:
            gain = 0.1  # biases
        elif "relative_attention_bias" in name:
            gain = 3.0
        elif any(part in name for part in ("embed", "wte", "wpe", "shared")):
            gain = 1.0
        else:
            # What the source says is the same at all places: with full weight it would drown the text.
            crossing = "encoder_attn" in name or "EncDecAttention" in name
            gain = (0.7 if crossing else 1.6) / weight[0].numel() ** 0.5
        fresh = torch.randn(weight.shape, generator=rng) * gain
        weight.copy_(fresh if share == 1.0 else weight + share * fresh)


@functools.cache
def backend(shape: str, dtype: torch.dtype = torch.float64, noise: float = 0.0, tokenizer: Any = None) -> LanguageModel:
    """The backend of a shape; shared, so tests must leave it as they found it."""
    lm = native(shape, noise=noise) if shape.startswith("native-") else wrap(network(shape, dtype, noise=noise))
    lm.name = f"tiny-{shape}"
    lm.tokenizer = tokenizer
    return lm


def native(shape: str, *, noise: float = 0.0) -> NativeModel:
    """A shape of the native runtime; ``model`` is the network in double precision that it is made from.

    Args:
        shape: ``native-`` and a shape of :data:`DECODERS`, or the precision of a Llama's weights.
        noise: as in :func:`network`.
    """
    what = shape.removeprefix("native-")
    precision, inner = (what, "llama") if what in PRECISIONS else ("float32", what)
    whole = network(inner, torch.float64, noise=noise)
    tensors = {name: tensor.float() for name, tensor in whole.state_dict().items()}
    made = Network(Shape.of(whole.config), TensorWeights(tensors, precision), half_cache=False)
    lm = NativeModel(made, precision=precision)
    lm.model = whole  # type: ignore[attr-defined]
    return lm


def prompts(count: int = 3, seed: int = 0, longest: int = 14) -> list[list[int]]:
    """Ragged prompts: some repeat themselves, so that drafters have something to copy."""
    rng = torch.Generator().manual_seed(1000 + seed)
    made = []
    for row in range(count):
        length = int(torch.randint(2, longest + 1, (), generator=rng)) if row else longest
        tokens = torch.randint(3, VOCAB, (length,), generator=rng).tolist()
        made.append((tokens[: length // 2 + 1] * 2)[:length] if row % 2 else tokens)
    return made


class ByteTokenizer:
    """Token ids to bytes to text. Some tokens are parts of characters, one has two ends of characters in it."""

    PIECES: Sequence[bytes] = (
        *(bytes([letter]) for letter in b"abcdefghijklmnopqrstuvwxyz .,\n"),
        *(
            word.encode()
            for word in ("the", " and", "tion", "STOP", "ST", "OP", " x", "é", "ß", "中", "文", "中文", "😀")
        ),
        b"\xf0\x9f",
        b"\x98\x80",
        b"\xf0",
        b"\x9f\x98",
        b"\x80",
        b"\x98\x80\xf0\x9f",
        b"\xc3",
        b"\xa9",
        b"\xe4\xb8",
        b"\xad",
        b"\x80\xf0\x9f\x98",
    )

    def __init__(self) -> None:
        self.pieces = [*self.PIECES, *(f"<{n}>".encode() for n in range(VOCAB - len(self.PIECES)))]
        self.chats = False

    def encode(self, text: str, special: bool = True) -> list[int]:
        """The longest piece first; what no piece begins with is left out."""
        data, ids = text.encode(), []
        while data:
            fitting = [i for i, piece in enumerate(self.pieces) if data.startswith(piece)]
            best = max(fitting, key=lambda i: len(self.pieces[i]), default=None)
            if best is not None:
                ids.append(best)
            data = data[1 if best is None else len(self.pieces[best]) :]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(self.pieces[i] for i in ids).decode("utf-8", errors="replace")
