"""A conversation: what a model remembers of one turn serves the next.

Requests read their prompts anew; a chat sends all earlier turns with each. A :class:`Conversation` stands where the
model stands, and keeps the cache from request to request: of a prompt only what was not there before is read.
"""

from __future__ import annotations

from collections.abc import Sequence

from unspool.core.errors import InvalidInput
from unspool.core.model import Cache, Capability, LanguageModel
from unspool.models.kv import KVCache
from unspool.models.wrapped import WrappedModel


class Conversation(WrappedModel):
    """A model in one conversation; one request at a time, of one prompt.

    Args:
        model: whose caches are those of :mod:`unspool.models.kv`.

    Attributes:
        reused: tokens of the last prompt that did not have to be read again.

    Raises:
        Incompatible: if the model's caches cannot be kept.
    """

    def __init__(self, model: LanguageModel) -> None:
        model.require(frozenset({Capability.MEMORY_BUDGET}), "a conversation that keeps its cache")
        super().__init__(model)
        self.reused = 0
        self._cache: KVCache | None = None
        self._tokens: list[int] = []

    def start(self, prompts: Sequence[Sequence[int]]) -> list[tuple[Cache, list[int]]]:
        """The kept cache, as far as it holds the beginning of the prompt.

        Raises:
            InvalidInput: for more than one prompt.
        """
        if len(prompts) != 1:
            raise InvalidInput(f"a conversation goes on with one prompt at a time; {len(prompts)} were given")
        prompt = list(prompts[0])
        if self._cache is None:
            (cache,) = self.inner.new_caches(1)
            assert isinstance(cache, KVCache)
            cache.kept = True
            self._cache = cache
        # The last token is always read: its logits decide what comes next.
        most = min(self._cache.length, len(prompt) - 1, len(self._tokens))
        self.reused = next((place for place in range(most) if self._tokens[place] != prompt[place]), most)
        self._cache.rewind(self.reused)
        # The branch's own list: it grows with the text, so that the next turn knows what the cache holds.
        self._tokens = prompt
        return [(self._cache, prompt)]

    def close(self) -> None:
        """Give the memory back; the next request starts anew."""
        if self._cache is not None:
            self._cache.kept = False
            self._cache.release()
        self._cache, self._tokens = None, []
