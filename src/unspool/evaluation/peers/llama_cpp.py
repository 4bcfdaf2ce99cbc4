"""llama.cpp through ``llama-cpp-python``: token by token, and with that package's prompt lookup.

https://github.com/abetlen/llama-cpp-python . It reads the GGUF file itself and computes on its blocks as they are.
What it remembers of an earlier prompt is dropped before each request, as it is for all sides.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, ClassVar

from unspool.evaluation.peers._peer import Peer, PeerAbsent, Watch

PLAIN, LOOKUP = "llama.cpp", "llama.cpp-prompt-lookup"

LOOKUP_TOKENS = 2
"""``num_pred_tokens`` that the package's README advises where there is no GPU."""
LOOKUP_NGRAM = 2
"""``max_ngram_size``, the package's default."""
RESERVED = 4096
"""Positions for which memory is reserved when it starts (``n_ctx``), at most."""
BATCH = 512
"""Prompt tokens in one pass, the package's default."""


class LlamaCpp(Peer):
    """Greedy ``Llama.generate``."""

    ways: ClassVar[Mapping[str, str]] = {
        PLAIN: "llama.cpp through llama-cpp-python, token by token",
        LOOKUP: "llama.cpp through llama-cpp-python with LlamaPromptLookupDecoding",
    }
    distribution, module = "llama-cpp-python", "llama_cpp"
    install = 'pip install "unspool[llama-cpp]"'
    reads_gguf_only = True

    def start(self) -> None:
        contest = self.contest
        assert contest.source.gguf is not None
        program = import_module(self.module)
        speculative = import_module(f"{self.module}.llama_speculative")
        lookup = speculative.LlamaPromptLookupDecoding(max_ngram_size=LOOKUP_NGRAM, num_pred_tokens=LOOKUP_TOKENS)
        try:
            self._model = program.Llama(
                str(contest.source.gguf),
                n_ctx=self.room,
                n_batch=BATCH,
                n_threads=contest.threads,
                n_threads_batch=contest.threads,
                # The package keeps logits of all tokens for its lookup, but makes room for them only if told to.
                logits_all=self.name == LOOKUP,
                draft_model=lookup if self.name == LOOKUP else None,
                verbose=False,
            )
        except ValueError as error:
            raise PeerAbsent(f"llama.cpp does not load {contest.source.gguf.name}: {error}") from error

    @property
    def room(self) -> int:
        return min(self.contest.context or RESERVED, RESERVED)

    def weights(self) -> str:
        assert self.contest.source.gguf is not None
        return f"as stored in {self.contest.source.gguf.name}"

    def settings(self) -> dict[str, Any]:
        shared = {"n_ctx": self.room, "n_batch": BATCH}
        if self.name == LOOKUP:
            return {**shared, "num_pred_tokens": LOOKUP_TOKENS, "max_ngram_size": LOOKUP_NGRAM}
        return shared

    def complete(self, prompt: list[int], limit: int, stop_tokens: frozenset[int], watch: Watch) -> None:
        self._model.reset()
        for token in self._model.generate(prompt, temp=0.0, repeat_penalty=1.0):
            if watch.take([token]):
                break

    def close(self) -> None:
        self._model.close()
