"""OpenVINO GenAI: token by token, and with prompt lookup.

https://github.com/openvinotoolkit/openvino.genai . ``LLMPipeline`` reads the GGUF file itself and keeps its blocks as
compressed weights (a preview of that package, for some architectures). It is given token ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from unspool.evaluation.peers._peer import Peer, PeerAbsent, Watch

PLAIN, LOOKUP = "openvino", "openvino-prompt-lookup"

LOOKUP_TOKENS = 5
"""``num_assistant_tokens`` of the package's prompt lookup sample."""
LOOKUP_NGRAM = 3
"""``max_ngram_size`` of the package's prompt lookup sample."""


class OpenVino(Peer):
    """Greedy ``LLMPipeline.generate`` on the CPU."""

    ways: ClassVar[Mapping[str, str]] = {
        PLAIN: "OpenVINO GenAI, token by token",
        LOOKUP: "OpenVINO GenAI with prompt lookup",
    }
    distribution, module = "openvino-genai", "openvino_genai"
    install = 'pip install "unspool[openvino]"'
    reads_gguf_only = True

    def start(self) -> None:
        import openvino_genai

        file = self.contest.source.gguf
        assert file is not None
        options: dict[str, Any] = {"INFERENCE_NUM_THREADS": self.contest.threads}
        if self.name == LOOKUP:
            options["prompt_lookup"] = True
        try:
            self._pipeline = openvino_genai.LLMPipeline(str(file), "CPU", **options)
        except RuntimeError as error:
            raise PeerAbsent(f"OpenVINO GenAI does not load {file.name}: {_last_line(error)}") from error

    def weights(self) -> str:
        assert self.contest.source.gguf is not None
        return f"read from {self.contest.source.gguf.name} and kept in blocks of its own"

    def settings(self) -> dict[str, Any]:
        if self.name == LOOKUP:
            return {"num_assistant_tokens": LOOKUP_TOKENS, "max_ngram_size": LOOKUP_NGRAM}
        return {}

    def complete(self, prompt: list[int], limit: int, stop_tokens: frozenset[int], watch: Watch) -> None:
        import numpy as np
        import openvino
        import openvino_genai

        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = limit
        config.do_sample = False
        config.stop_token_ids = set(stop_tokens)
        config.ignore_eos = not stop_tokens
        if self.name == LOOKUP:
            config.num_assistant_tokens = LOOKUP_TOKENS
            config.max_ngram_size = LOOKUP_NGRAM
        self._pipeline.generate(openvino.Tensor(np.array([prompt], dtype=np.int64)), config, _streamer(watch))

    def close(self) -> None:
        del self._pipeline


def _streamer(watch: Watch) -> Any:
    """Hands tokens to the watch as the pipeline makes them known."""
    import openvino_genai

    class Pieces(openvino_genai.StreamerBase):
        def write(self, token: int | list[int]) -> Any:
            ended = watch.take([token] if isinstance(token, int) else token)
            status = openvino_genai.StreamingStatus
            return status.STOP if ended else status.RUNNING

        def end(self) -> None:
            pass

    return Pieces()


def _last_line(error: BaseException) -> str:
    return next((line for line in reversed(str(error).strip().splitlines()) if line.strip()), type(error).__name__)
