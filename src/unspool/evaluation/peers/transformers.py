"""``generate`` of transformers: token by token, assisted by a draft model, and with prompt lookup.

https://huggingface.co/docs/transformers/generation_strategies . The network is the one that ``from_pretrained`` makes,
with the weights that our loader unpacked from the GGUF file: the same numbers, in the type of our own run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from unspool.evaluation.peers._peer import Contest, Peer, PeerAbsent, Watch

PLAIN, ASSISTED, LOOKUP = "transformers", "transformers-assisted", "transformers-prompt-lookup"

LOOKUP_TOKENS = 10
"""``prompt_lookup_num_tokens`` of the documentation of the method's author (apoorvumang/prompt-lookup-decoding)."""


class Transformers(Peer):
    """Greedy ``generate`` of a causal language model."""

    ways: ClassVar[Mapping[str, str]] = {
        PLAIN: "generate of transformers, token by token",
        ASSISTED: "generate of transformers with a draft model (assistant_model)",
        LOOKUP: "generate of transformers with prompt lookup (prompt_lookup_num_tokens)",
    }
    distribution = module = "transformers"
    install = "pip install unspool"

    @classmethod
    def absent(cls, name: str, contest: Contest | None = None) -> str | None:
        if (reason := super().absent(name, contest)) is not None:
            return reason
        if name == ASSISTED and contest is not None and contest.draft is None:
            return "no draft model was named"
        return None

    @classmethod
    def remedy(cls, name: str) -> str:
        return "--draft MODEL; `unspool train smollm2-draft` makes one" if name == ASSISTED else cls.install

    def start(self) -> None:
        from transformers import AutoModelForCausalLM

        from unspool.models.load import DTYPES, load_model, quiet_bars

        self._dtype = DTYPES[self.contest.dtype]
        path = self.contest.source.path
        try:
            with quiet_bars(False):
                self._model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=self._dtype).eval()
        except ValueError as error:
            raise PeerAbsent(f"transformers has no causal language model for it: {error}") from error
        self._more: dict[str, Any] = {}
        if self.name == LOOKUP:
            self._more["prompt_lookup_num_tokens"] = LOOKUP_TOKENS
        if self.name == ASSISTED:
            if self.contest.draft is None:
                raise PeerAbsent(str(self.absent(self.name, self.contest)))
            draft: Any = load_model(self.contest.draft, dtype=self.contest.dtype, device="cpu", progress=False)
            self._more["assistant_model"] = draft.model
            if draft.tokenizer is not None and draft.tokenizer.vocab() != self.tokenizer.vocab():
                self._more["tokenizer"] = self.tokenizer.hf
                self._more["assistant_tokenizer"] = draft.tokenizer.hf

    def weights(self) -> str:
        kind = str(self._dtype).removeprefix("torch.")
        if self.contest.source.gguf is not None:
            return f"{kind}, unpacked from {self.contest.source.gguf.name} by Unspool's loader"
        return kind

    def settings(self) -> dict[str, Any]:
        if self.name == LOOKUP:
            return {"prompt_lookup_num_tokens": LOOKUP_TOKENS}
        if self.name == ASSISTED:
            from transformers import GenerationConfig

            config = self._more["assistant_model"].generation_config
            defaults = GenerationConfig()._get_default_generation_params()
            names = ("num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold")
            chosen = {name: getattr(config, name, None) for name in names}
            return {
                "assistant_model": self.contest.draft,
                **{name: defaults[name] if value is None else value for name, value in chosen.items()},
            }
        return {}

    def complete(self, prompt: list[int], limit: int, stop_tokens: frozenset[int], watch: Watch) -> None:
        import torch

        torch.set_num_threads(self.contest.threads)
        ids = torch.tensor([prompt])
        self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            num_beams=1,
            max_new_tokens=limit,
            # A token to fill up with is never used in a batch of one, but asked for.
            pad_token_id=min(stop_tokens, default=0),
            eos_token_id=sorted(stop_tokens) or None,
            stopping_criteria=_ended(watch, len(prompt)),
            **self._more,
        )

    def close(self) -> None:
        del self._model
        self._more = {}


def _ended(watch: Watch, prompt: int) -> Any:
    """What hands the tokens of every pass to the watch, and ends ``generate`` when it says so.

    Args:
        watch: of this turn.
        prompt: length of the prompt.
    """
    import torch
    from transformers import StoppingCriteria, StoppingCriteriaList

    class Ended(StoppingCriteria):
        seen = prompt

        def __call__(self, input_ids: torch.Tensor, scores: Any, **more: Any) -> torch.Tensor:
            new = input_ids[0, self.seen :].tolist()
            self.seen += len(new)
            return torch.full((input_ids.shape[0],), watch.take(new), dtype=torch.bool, device=input_ids.device)

    return StoppingCriteriaList([Ended()])
