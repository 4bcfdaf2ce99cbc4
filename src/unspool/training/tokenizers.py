"""Tokenizers that are trained or written here, in the format of the tokenizers library."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from unspool.core.errors import InvalidInput

END = "<|end|>"
"""The one special token: it stands between documents, so it is both the beginning and the end of a text."""

UNKNOWN = "<|unknown|>"
"""What a tokenizer of listed tokens makes of all others."""


def byte_bpe(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level byte-pair encoding: every text can be encoded, and decoding gives it back to the last character.

    Args:
        texts: what the merges are learned from.
        vocabulary: number of tokens, the 256 bytes and :data:`END` included.

    Raises:
        InvalidInput: if there is no room for the bytes.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocabulary <= len(alphabet):
        raise InvalidInput(f"a vocabulary of {vocabulary} has no room for the {len(alphabet)} bytes and {END}")
    tokenizer = Tokenizer(models.BPE())
    # Runs of spaces stay whole, so that an indentation is one token.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END], initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _wrapped(tokenizer)


def listed(tokens: Sequence[str], pattern: str) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are written down: for tasks over a small alphabet of characters or words.

    Anything else becomes :data:`UNKNOWN`.

    Args:
        tokens: the vocabulary, without :data:`END` and :data:`UNKNOWN`, which get the numbers 0 and 1.
        pattern: a regular expression whose matches are the tokens of a text, one after the other.
    """
    names = [END, UNKNOWN, *tokens]
    if len(set(names)) != len(names):
        raise InvalidInput("a token is listed twice")
    tokenizer = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return _wrapped(tokenizer)


def _wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, clean_up_tokenization_spaces=False
    )
