"""The vocabulary of a GGUF file as a tokenizer, which gives the same tokens as llama.cpp's for the same text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unspool.core.errors import WeightsError
from unspool.models.gguf.header import GGUFFile

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4

# How text is cut before byte pairs are merged: regular expressions applied one after the other. A file names the rules
# of its vocabulary (tokenizer.ggml.pre); they are the original tokenizers', and llama.cpp keeps the list of names.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LLAMA3 = _ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = _CASED % ("", "") + r"|\p{N}|" + _REST
_GPT4O = _CASED % (f"{_ENDINGS}?", f"{_ENDINGS}?") + r"|\p{N}{1,3}|" + _REST
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+", r"\p{N}")

PRE_TOKENIZERS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion"), (_GPT2,)),
    # Digits stand alone, whatever is before them: the space of " 7" is a piece of its own.
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"), (r"\p{N}", _GPT2)),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "dbrx", "smaug-bpe"), (_LLAMA3,)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez"), (_LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}"),)),
    "tekken": (_TEKKEN,),
    **dict.fromkeys(("gpt-4o", "llama4"), (_GPT4O,)),
    "deepseek-coder": _DEEPSEEK_CODER,
}
_WHOLE_WORDS_FIRST = {"llama-bpe", "llama3", "llama-v3", "falcon3", "tekken"}
"""Vocabularies that take a piece as it is when it is a token, without merging up to it."""
_STARTS_WITH_BOS = {"llama-bpe", "llama3", "llama-v3", "falcon3"}
"""Byte-level vocabularies that start with BOS where the file does not say; sentencepiece's do as well."""

_END_OF_TURN = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<end_of_turn>",
    "<|end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
)


@dataclass(frozen=True)
class SpecialTokens:
    """Special tokens as the file numbers them; ``stops`` ends generation."""

    bos: int | None
    eos: int | None
    unknown: int | None
    padding: int | None
    stops: list[int]


def special_tokens(file: GGUFFile) -> SpecialTokens:
    """The special tokens of a file.

    Raises:
        WeightsError: a number outside the vocabulary.
    """
    tokens: list[str] = file.metadata["tokenizer.ggml.tokens"]

    def known(*names: str) -> int | None:
        for name in names:
            value = file.metadata.get(f"tokenizer.ggml.{name}_token_id")
            if value is not None:
                if not 0 <= value < len(tokens):
                    raise WeightsError(f"{file.path}: {name}_token_id {value} is outside the {len(tokens)} tokens.")
                return int(value)
        return None

    eos = known("eos")
    stops = [token for token in (eos, known("eot"), known("eom")) if token is not None]
    # Some chat models' files give the end of a text as EOS, and the end of a turn only by the template that writes it.
    template = file.metadata.get("tokenizer.chat_template", "")
    types = file.metadata.get("tokenizer.ggml.token_type", [])
    written = {name for name in _END_OF_TURN if name in template}
    stops += [index for index, kind in enumerate(types) if kind == _CONTROL and tokens[index] in written]
    return SpecialTokens(known("bos"), eos, known("unknown"), known("padding"), list(dict.fromkeys(stops)))


def build_tokenizer(file: GGUFFile, context: int) -> PreTrainedTokenizerFast:
    """The tokenizer that the file describes.

    Raises:
        WeightsError: no vocabulary, or rules that are not known here.
    """
    from tokenizers import AddedToken, processors
    from transformers import PreTrainedTokenizerFast

    tokens = file.metadata.get("tokenizer.ggml.tokens")
    model = file.metadata.get("tokenizer.ggml.model")
    if not tokens or not isinstance(tokens, list):
        raise WeightsError(f"{file.path} holds no vocabulary (tokenizer.ggml.tokens).")
    types = file.metadata.get("tokenizer.ggml.token_type") or [_NORMAL] * len(tokens)
    if len(types) != len(tokens) or not all(isinstance(token, str) for token in tokens):
        raise WeightsError(f"{file.path} is damaged: {len(tokens)} tokens, and types for {len(types)}.")
    specials = special_tokens(file)
    if model == "gpt2":
        backend, bos_default = _byte_level(file, tokens)
    elif model == "llama":
        backend, bos_default = _sentencepiece(file, tokens, specials), True
    else:
        raise WeightsError(f"{file.path}: vocabularies of kind {model!r} are not supported, only 'gpt2' and 'llama'.")

    # `normalized=False`: these are matched in the text as it was written, before spaces are respelled.
    added = [
        AddedToken(token, normalized=False, special=kind != _USER_DEFINED)
        for token, kind in zip(tokens, types, strict=True)
        if kind in (_CONTROL, _UNKNOWN, _USER_DEFINED) and token
    ]
    backend.add_tokens([token for token in added if not token.special])
    backend.add_special_tokens([token for token in added if token.special])

    named = {"bos": specials.bos, "eos": specials.eos, "unk": specials.unknown, "pad": specials.padding}
    names = {f"{name}_token": tokens[index] for name, index in named.items() if index is not None}
    add_bos = bool(file.metadata.get("tokenizer.ggml.add_bos_token", bos_default)) and specials.bos is not None
    add_eos = bool(file.metadata.get("tokenizer.ggml.add_eos_token", False)) and specials.eos is not None
    start = [(names["bos_token"], specials.bos)] if add_bos else []
    end = [(names["eos_token"], specials.eos)] if add_eos else []
    if start or end:
        first, second = (
            [*(name for name, _ in start), sequence, *(name for name, _ in end)] for sequence in ("$A", "$B:1")
        )
        backend.post_processor = processors.TemplateProcessing(
            single=first, pair=[*first, *second], special_tokens=list(dict.fromkeys([*start, *end]))
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        add_bos_token=add_bos,
        add_eos_token=add_eos,
        clean_up_tokenization_spaces=False,
        model_max_length=context,
        chat_template=file.metadata.get("tokenizer.chat_template"),
        **names,
    )
    if len(tokenizer) != len(set(tokens)):
        raise WeightsError(
            f"{file.path}: the tokenizer came out with {len(tokenizer):,} tokens; the file has {len(set(tokens)):,}."
        )
    return tokenizer


def _byte_level(file: GGUFFile, tokens: list[str]) -> tuple[Tokenizer, bool]:
    """GPT-2's kind: bytes spelled as letters, pairs merged in the order of the file's list."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    pre = file.metadata.get("tokenizer.ggml.pre", "gpt-2" if file.architecture == "gpt2" else None)
    if pre not in PRE_TOKENIZERS:
        raise WeightsError(
            f"{file.path}: the rules {pre!r} for cutting text (tokenizer.ggml.pre) are not known, and guessed ones "
            f"would make other tokens of the same text. Known: {', '.join(sorted(PRE_TOKENIZERS))}. "
            "The original model's folder loads without them."
        )
    merges = [tuple(merge.split(" ")) for merge in file.metadata.get("tokenizer.ggml.merges", ())]
    if not merges or any(len(merge) != 2 for merge in merges):
        raise WeightsError(f"{file.path} is damaged: it holds no list of pairs to merge (tokenizer.ggml.merges).")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    try:
        bpe = models.BPE(vocabulary, merges, ignore_merges=pre in _WHOLE_WORDS_FIRST)
    except Exception as error:  # the library raises bare Exception for a merge of tokens that are not there
        raise WeightsError(f"{file.path} is damaged: its vocabulary and its merges disagree ({error}).") from error
    backend = Tokenizer(bpe)
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in PRE_TOKENIZERS[pre]]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    backend.decoder = decoders.ByteLevel()
    return backend, pre in _STARTS_WITH_BOS


def _sentencepiece(file: GGUFFile, tokens: list[str], specials: SpecialTokens) -> Tokenizer:
    """Sentencepiece's byte pairs: a space is the letter U+2581, and the best-scored piece of all is made first."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    vocabulary = {token: index for index, token in enumerate(tokens)}
    scores = file.metadata.get("tokenizer.ggml.scores")
    if not scores or len(scores) != len(tokens):
        raise WeightsError(f"{file.path} is damaged: it holds no score for each token (tokenizer.ggml.scores).")
    types = file.metadata.get("tokenizer.ggml.token_type") or [_NORMAL] * len(tokens)
    normal = sorted(
        (index for index, kind in enumerate(types) if kind == _NORMAL and len(tokens[index]) > 1),
        key=lambda index: -scores[index],  # stable: the earlier token wins a tie, as in sentencepiece
    )
    merges = [pair for index in normal for pair in _pairs(tokens[index], vocabulary)]
    unknown = tokens[specials.unknown] if specials.unknown is not None else None
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    prefix = bool(file.metadata.get("tokenizer.ggml.add_space_prefix", True))
    spelled: list[Any] = [normalizers.Replace(" ", "▁")]
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), *spelled] if prefix else spelled)
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return backend


def _pairs(token: str, vocabulary: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """The pairs of tokens that make up a token."""
    cuts = [(token[:at], token[at:]) for at in range(1, len(token))]
    pairs = [pair for pair in cuts if pair[0] in vocabulary and pair[1] in vocabulary]
    return iter(sorted(pairs, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]])))
