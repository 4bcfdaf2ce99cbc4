"""A model around a model: everything is the inner one's unless a subclass says otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from unspool.core.model import Cache, LanguageModel
from unspool.core.scores import LOGITS, Request, Scores, Want


class WrappedModel(LanguageModel):
    """Base of models that change a part of another's behaviour.

    Attributes:
        inner: the model inside. Its counts of passes are those of the wrapped model.
    """

    inner: LanguageModel

    def __init__(self, model: LanguageModel) -> None:
        self.inner = model

    def __getattr__(self, name: str) -> Any:
        # What is private to the inner model may be about just that which is changed here.
        if name.startswith("_") or name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.inner.name

    @property
    def forwards(self) -> int:
        return self.inner.forwards

    @forwards.setter
    def forwards(self, count: int) -> None:
        self.inner.forwards = count

    @property
    def layers_run(self) -> int:
        return self.inner.layers_run

    @layers_run.setter
    def layers_run(self, count: int) -> None:
        self.inner.layers_run = count

    @property
    def kv_read(self) -> int:
        return self.inner.kv_read

    @kv_read.setter
    def kv_read(self, count: int) -> None:
        self.inner.kv_read = count

    @property
    def num_layers(self) -> int:
        return self.inner.num_layers

    def new_caches(self, count: int) -> list[Cache]:
        return self.inner.new_caches(count)

    def start(self, prompts: Sequence[Sequence[int]]) -> list[tuple[Cache, list[int]]]:
        return self.inner.start(prompts)

    def score(
        self, requests: Sequence[Request], want: Want = LOGITS, layers: Sequence[int] | None = None
    ) -> list[Scores]:
        return self.inner.score(requests, want, layers)

    def embed(self, tokens: Tensor) -> Tensor:
        return self.inner.embed(tokens)

    def head(self, hidden: Tensor) -> Tensor:
        return self.inner.head(hidden)

    def exit_head(self, hidden: Tensor) -> Tensor:
        return self.inner.exit_head(hidden)
