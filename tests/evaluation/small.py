"""A model with a tokenizer that is made in a moment: bytes, a chat template, and a random tiny Llama."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from unspool.engine import Engine
from unspool.models.load import wrap

TEMPLATE = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"


def small_engine(seed: int = 0) -> Engine:
    """256 bytes and an end token; two layers in double precision, so that no two logits tie by rounding."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytewise = Tokenizer(
        models.BPE(vocab={**{letter: i for i, letter in enumerate(alphabet)}, "<end>": 256}, merges=[])
    )
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bytewise.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytewise, eos_token="<end>")
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.3,
        eos_token_id=256,
        bos_token_id=None,
    )
    return Engine(wrap(LlamaForCausalLM(config).double(), tokenizer, "small"))
