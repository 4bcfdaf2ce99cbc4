"""A thin face over Hugging Face tokenizers: what the loops and the engine need, nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from unspool.core.errors import InvalidInput, WeightsError


def stops(*told: int | Sequence[int] | None) -> frozenset[int]:
    """The tokens that end a text, by the first that says so."""
    eos = next((ids for ids in told if ids is not None), ())
    return frozenset({eos} if isinstance(eos, int) else eos)


def read_tokenizer(name: str, path: str) -> TextTokenizer:
    """The tokenizer in a folder, or of an id, for the model called ``name``.

    Raises:
        WeightsError: if it cannot be loaded.
    """
    from transformers import AutoTokenizer

    try:
        return TextTokenizer(AutoTokenizer.from_pretrained(path))
    except (OSError, ValueError, KeyError) as error:
        told = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise WeightsError(f"the tokenizer of {name} cannot be loaded from {path}: {told}") from error


class TextTokenizer:
    """Text to tokens and back.

    Args:
        hf: any Hugging Face tokenizer.
    """

    def __init__(self, hf: PreTrainedTokenizerBase) -> None:
        self.hf = hf

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Token ids; ``special`` adds what the model expects around a text (a BOS token, say)."""
        return list(self.hf.encode(text, add_special_tokens=special))

    def decode(self, ids: Sequence[int]) -> str:
        """Text without special tokens."""
        return str(self.hf.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def piece(self, token: int) -> str:
        """One token as text, special tokens included; for traces."""
        return str(self.hf.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False))

    @property
    def chats(self) -> bool:
        """Whether the model comes with a chat template."""
        return bool(getattr(self.hf, "chat_template", None))

    def chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Token ids of a conversation, up to where the model's answer begins.

        Raises:
            InvalidInput: if there is no template, or it refuses the messages.
        """
        if not self.chats:
            raise InvalidInput("this model has no chat template; give plain text instead of messages")
        try:
            ids = self.hf.apply_chat_template(
                [dict(message) for message in messages], add_generation_prompt=True, tokenize=True, return_dict=False
            )
        except (jinja2.TemplateError, KeyError, TypeError) as error:
            raise InvalidInput(f"the model's chat template refuses these messages: {error}") from error
        return [int(token) for token in ids]

    def vocab(self) -> dict[str, int]:
        return dict(self.hf.get_vocab())
