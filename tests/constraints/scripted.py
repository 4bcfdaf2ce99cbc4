"""A model that wants to write a certain text, over a vocabulary of bytes and a few longer tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from tests.toys import ToyModel
from torch import Tensor

from unspool.core.compose import Composition
from unspool.core.events import Finished
from unspool.core.model import Capability
from unspool.core.texts import Stop

STOP = 0
"""The token that ends a text. Token ``1 + b`` is the byte ``b``; longer tokens follow."""


class ByteTokenizer:
    """Greedy longest match over the tokens."""

    def __init__(self, tokens: list[bytes | None]) -> None:
        self.token_bytes = tokens
        self._ids = {string: token for token, string in enumerate(tokens) if string is not None}
        self._longest = max(map(len, self._ids))

    def spell(self, text: str) -> list[int]:
        data, ids = text.encode(), []
        while data:
            size = next(n for n in range(min(self._longest, len(data)), 0, -1) if data[:n] in self._ids)
            ids.append(self._ids[data[:size]])
            data = data[size:]
        return ids

    encode = spell

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(self.token_bytes[token] or b"" for token in ids).decode(errors="replace")


class ScriptedModel(ToyModel):
    """Its logits depend on the text alone.

    Args:
        wish: what it wants to write next, given the text so far, or several such texts, the dearest first; the empty
            string ends the text.
        longer: tokens of several bytes.
        noise: standard deviation of the logits of everything else.
    """

    def __init__(
        self, wish: Callable[[str], str | list[str]], longer: Sequence[bytes] = (), noise: float = 1.0
    ) -> None:
        tokens: list[bytes | None] = [None, *(bytes([byte]) for byte in range(256)), *longer]
        self.name = "scripted"
        self.vocab_size = len(tokens)
        self.context_length = 4096
        self.tokenizer = ByteTokenizer(tokens)
        self.stop_tokens = frozenset({STOP})
        self.capabilities = frozenset({Capability.TREE, Capability.CACHE_EDITING})
        self.device = torch.device("cpu")
        self.dtype = torch.float64
        self._wish = wish
        self._noise = noise

    def next_logits(self, tokens: Sequence[int]) -> Tensor:
        text = self.tokenizer.decode(tokens)
        rng = torch.Generator().manual_seed(hash(tuple(tokens)) % (1 << 31))
        logits = torch.randn(self.vocab_size, generator=rng, dtype=torch.float64) * self._noise
        wishes = self._wish(text)
        for place, wish in enumerate([wishes] if isinstance(wishes, str) else wishes):
            # Later wishes are weaker ones.
            weight = 1 / (1 + place)
            if not wish:
                logits[STOP] += 20 * weight
            for token, string in enumerate(self.tokenizer.token_bytes):
                if string is not None and wish.encode().startswith(string):
                    logits[token] += (10 + 4 * len(string)) * weight
        return logits


def writing(*texts: str) -> Callable[[str], list[str]]:
    """A wish: to go on with the rest of those of ``texts`` that the text so far is a beginning of, or to end."""

    def wish(text: str) -> list[str]:
        return [whole[len(text) :] for whole in texts if whole.startswith(text)] or [""]

    return wish


def written(composition: Composition, prompt: str, *, new_tokens: int = 40, seed: int = 0) -> str:
    """What a composition writes behind a prompt."""
    return texts_written(composition, [prompt], new_tokens=new_tokens, seed=seed)[0]


def texts_written(
    composition: Composition, prompts: Sequence[str], *, new_tokens: int = 40, seed: int = 0
) -> list[str]:
    tokenizer = composition.model.tokenizer
    assert isinstance(tokenizer, ByteTokenizer)
    found = {}
    encoded = [tokenizer.encode(prompt) for prompt in prompts]
    for event in composition.decode(encoded, stop=Stop(new_tokens), seed=seed):
        if isinstance(event, Finished):
            found[event.index] = tokenizer.decode([token for token in event.tokens if token != STOP])
    return [found[place] for place in range(len(prompts))]
