"""A thin face over Hugging Face tokenizers: what the loops and the engine need, nothing else.

Transformers takes a second to import, and has nothing to add to a tokenizer that its file describes whole; such a one
is run by the tokenizers library alone.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import jinja2.ext
import jinja2.sandbox

from unspool.core.errors import InvalidInput, WeightsError

if TYPE_CHECKING:
    import tokenizers
    from transformers import PreTrainedTokenizerBase

# Classes of transformers that run a tokenizer.json as it is, and the settings that change nothing of that.
_WHOLE = {"TokenizersBackend", "PreTrainedTokenizerFast"}
_NAMED = {"bos_token", "eos_token", "unk_token", "pad_token"}
_HARMLESS = {
    *_NAMED, "backend", "tokenizer_class", "chat_template", "clean_up_tokenization_spaces", "is_local",
    "local_files_only", "model_input_names", "model_max_length", "padding_side",
}  # fmt: skip


def stops(*told: int | Sequence[int] | None) -> frozenset[int]:
    """The tokens that end a text, by the first that says so."""
    eos = next((ids for ids in told if ids is not None), ())
    return frozenset({eos} if isinstance(eos, int) else eos)


def read_tokenizer(name: str, path: str) -> TextTokenizer:
    """The tokenizer in a folder, or of an id, for the model called ``name``.

    Raises:
        WeightsError: if it cannot be loaded.
    """
    whole = FileTokenizer.of(name, Path(path))
    return whole if whole is not None else TextTokenizer(_from_transformers(name, path))


def _from_transformers(name: str, path: str) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path)
        return found
    except (OSError, ValueError, KeyError) as error:
        told = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise WeightsError(f"the tokenizer of {name} cannot be loaded from {path}: {told}") from error


class TextTokenizer:
    """Text to tokens and back.

    Args:
        hf: any Hugging Face tokenizer.
    """

    def __init__(self, hf: PreTrainedTokenizerBase) -> None:
        self._hf = hf

    @property
    def hf(self) -> PreTrainedTokenizerBase:
        """The tokenizer of transformers, for what this face does not offer."""
        return self._hf

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
            return self._chat([dict(message) for message in messages])
        except (jinja2.TemplateError, KeyError, TypeError) as error:
            raise InvalidInput(f"the model's chat template refuses these messages: {error}") from error

    def _chat(self, messages: list[dict[str, Any]]) -> list[int]:
        ids = self.hf.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
        return [int(token) for token in ids]

    def vocab(self) -> dict[str, int]:
        return dict(self.hf.get_vocab())

    @property
    def backend(self) -> tokenizers.Tokenizer | None:
        """The tokenizer of the tokenizers library that does the work, if one does."""
        return getattr(self.hf, "backend_tokenizer", None)

    @property
    def special_ids(self) -> frozenset[int]:
        """Tokens with a role of their own (begin, end, padding, unknown)."""
        return frozenset(self.hf.all_special_ids)


class FileTokenizer(TextTokenizer):
    """A tokenizer that its files describe whole, run without transformers; see :meth:`of`.

    Args:
        name: of the model.
        folder: where the files lie.
        named: special tokens by the names that templates know.
        template: of chats, or ``None``.
    """

    def __init__(self, name: str, folder: Path, named: Mapping[str, str], template: str | None) -> None:
        import tokenizers

        self._name = name
        self._folder = folder
        self._named = named
        self._template = template
        self._backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._backend.no_truncation()
        self._backend.no_padding()

    @classmethod
    def of(cls, name: str, folder: Path) -> FileTokenizer | None:
        """The tokenizer in a folder; ``None`` if transformers would do more than to run its file."""
        file, settings = folder / "tokenizer.json", folder / "tokenizer_config.json"
        template = folder / "chat_template.jinja"
        if not (file.is_file() and settings.is_file()):
            return None
        try:
            told = json.loads(settings.read_text(encoding="utf-8"))
            found = template.read_text(encoding="utf-8") if template.is_file() else told.get("chat_template")
        except (OSError, ValueError):
            return None
        named = {key: told[key] for key in _NAMED if told.get(key) is not None}
        texts = [*named.values(), *([] if found is None else [found])]
        plain = told.get("tokenizer_class") in _WHOLE and told.keys() <= _HARMLESS
        # Templates that mark what the assistant said need an extension of transformers.
        if not plain or not all(isinstance(text, str) for text in texts) or (found and "generation %}" in found):
            return None
        try:
            return cls(name, folder, named, found)
        except Exception as error:  # the library raises nothing narrower
            raise WeightsError(f"the tokenizer of {name} cannot be loaded from {file}: {error}") from error

    @cached_property
    def hf(self) -> PreTrainedTokenizerBase:
        return _from_transformers(self._name, str(self._folder))

    def encode(self, text: str, special: bool = True) -> list[int]:
        return list(self._backend.encode(text, add_special_tokens=special).ids)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._backend.decode(list(ids), skip_special_tokens=True))

    def piece(self, token: int) -> str:
        return str(self._backend.decode([token], skip_special_tokens=False))

    @property
    def chats(self) -> bool:
        return bool(self._template)

    def _chat(self, messages: list[dict[str, Any]]) -> list[int]:
        if not all(key in ("role", "content") and isinstance(m[key], str) for m in messages for key in m):
            # Calls of tools, thoughts, pictures: transformers brings such messages into shape first.
            return super()._chat(messages)
        text = self._compiled.render(
            messages=messages, tools=None, documents=None, add_generation_prompt=True, **self._named
        )
        return self.encode(text, special=False)

    @cached_property
    def _compiled(self) -> jinja2.Template:
        """The template, with what the templates of Hugging Face models may count on."""

        def refuse(message: str) -> None:
            raise jinja2.TemplateError(message)

        def as_json(value: Any, ensure_ascii: bool = False, **more: Any) -> str:
            return json.dumps(value, ensure_ascii=ensure_ascii, **more)

        world = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
        )
        world.filters["tojson"] = as_json
        world.globals["raise_exception"] = refuse
        world.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
        return world.from_string(self._template or "")

    def vocab(self) -> dict[str, int]:
        return dict(self._backend.get_vocab(with_added_tokens=True))

    @property
    def backend(self) -> tokenizers.Tokenizer:
        return self._backend

    @property
    def special_ids(self) -> frozenset[int]:
        found = (self._backend.token_to_id(text) for text in self._named.values())
        return frozenset(token for token in found if token is not None)
