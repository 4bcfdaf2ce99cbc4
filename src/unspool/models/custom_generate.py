"""Unspool's methods under transformers' own ``generate``.

>>> hf_model.generate(**inputs, custom_generate=unspool.as_custom_generate("token-recycling"))   # doctest: +SKIP

Everything that the user has set there keeps its meaning: logits processors and warpers become the sampler, so that
speculation is exact with respect to them; stopping criteria are asked after every token; streamers are fed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation import BaseStreamer, GenerateDecoderOnlyOutput, GenerateEncoderDecoderOutput

from unspool.core.branch import Branch
from unspool.core.compose import compose
from unspool.core.errors import InvalidInput
from unspool.core.events import Finished, Stepped
from unspool.core.model import LanguageModel
from unspool.core.sockets import Distribution, Node, Part, Sampler
from unspool.core.texts import Stop
from unspool.models.load import wrap
from unspool.models.seq2seq import Seq2SeqModel


class ProcessorSampler(Sampler):
    """Transformers' logits processors as a sampler.

    Args:
        processors: applied to the logits, given the text so far; warpers included.
        sample: draw, or take the most probable token.
        rows: ``[B, L]`` what the user gave, padding included: processors count from its end.
    """

    def __init__(self, processors: LogitsProcessorList, sample: bool, rows: Tensor) -> None:
        super().__init__()
        self.processors = processors
        self.deterministic = not sample
        self.rows = rows

    def _processed(self, tokens: list[int], logits: Tensor, branch: Branch) -> Tensor:
        generated = torch.tensor(tokens[branch.prompt_length :], dtype=torch.int64, device=logits.device)
        ids = torch.cat([self.rows[branch.index].to(logits.device), generated])
        # Some processors hold something for every row of the batch: the text stands in all rows, one answer is taken.
        count = len(self.rows)
        processed: Tensor = self.processors(ids.expand(count, -1), logits.float().expand(count, -1).clone())
        return processed[branch.index]

    def distribution(self, node: Node) -> Distribution:
        scores = self._processed(node.tokens, node.logits, node.branch)
        if self.deterministic:
            return Distribution.best(scores)
        return Distribution(torch.softmax(scores, dim=-1))

    def draft_probs(self, logits: Tensor, tokens: list[int], branch: Branch) -> Tensor:
        return torch.softmax(self._processed(tokens, logits, branch), dim=-1)


def as_custom_generate(
    method: str = "auto",
    *,
    draft: LanguageModel | PreTrainedModel | None = None,
    streamer: BaseStreamer | None = None,
    **settings: Any,
) -> Callable[..., Any]:
    """A function for the ``custom_generate`` argument of transformers' ``generate``.

    Args:
        method: a slug, or several joined by ``+``.
        draft: a draft model, for methods that need one.
        streamer: is given the prompt and every token. To be set here: transformers does not hand the ``streamer``
            argument of ``generate`` on to functions.
        settings: of the methods.

    What a drafter learns is kept from call to call, for every model that the returned function is used with.
    """
    built: dict[int, tuple[PreTrainedModel, LanguageModel, list[Part]]] = {}
    second = wrap(draft) if isinstance(draft, PreTrainedModel) else draft
    models = {} if second is None else {"draft": second}

    def generate(
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        synced_gpus: bool = False,
        inputs_tensor: Tensor | None = None,
        **model_kwargs: Any,
    ) -> Any:
        if (generation_config.num_beams or 1) > 1:
            raise InvalidInput(
                f"num_beams is {generation_config.num_beams}; set it to 1: {method} decides what is explored"
            )
        if (generation_config.num_return_sequences or 1) > 1 and not generation_config.do_sample:
            raise InvalidInput("several return sequences need do_sample=True; greedy ones would all be the same")
        # The model is kept with what was built for it, so that its id is not given to another.
        _, target, kept = built[id(model)] if id(model) in built else (model, wrap(model), [])
        if isinstance(target, Seq2SeqModel):
            # What the encoder is to read comes beside the decoder's first tokens; a forced one counts among these.
            assert inputs_tensor is not None
            copies = len(input_ids) // len(inputs_tensor)
            prompts = _prompts(inputs_tensor.repeat_interleave(copies, dim=0), model_kwargs)
            input_ids = input_ids.new_tensor([target.start_tokens] * len(prompts))
        else:
            prompts = _prompts(input_ids, model_kwargs)
        sampler = ProcessorSampler(logits_processor, bool(generation_config.do_sample), input_ids)
        parts = compose(target, kept or method, settings={} if kept else settings, sampler=sampler, models=models)
        built[id(model)] = (model, target, [part for part in parts.parts if part is not sampler])
        if parts.sampler is not sampler and len(logits_processor):
            raise InvalidInput(
                f"{method} brings a sampler of its own, which knows nothing of the logits processors in use: "
                f"{', '.join(type(processor).__name__ for processor in logits_processor)}; leave one of the two out"
            )
        limit = generation_config.max_length - input_ids.shape[1]
        seed = int(torch.randint(2**62, ())) if generation_config.do_sample else 0
        # Stopping criteria decide; of the loop's own reasons only the length counts.
        stop = Stop(max_new_tokens=max(limit, 1), tokens=_eos(generation_config))
        generated: list[list[int]] = [[] for _ in prompts]
        ended = [False] * len(prompts)
        if streamer is not None:
            streamer.put(input_ids.cpu())
        for event in parts.decode(prompts, stop=stop, seed=seed):
            if isinstance(event, Stepped):
                row = event.index
                for token in event.tokens:
                    if ended[row]:
                        break
                    generated[row].append(token)
                    if streamer is not None:
                        streamer.put(torch.tensor([token]))
                    text = torch.tensor([[*input_ids[row].tolist(), *generated[row]]], device=input_ids.device)
                    ended[row] = bool(stopping_criteria(text, None).all())
            elif isinstance(event, Finished):
                ended[event.index] = True
            if all(ended):
                break
        if streamer is not None:
            streamer.end()
        sequences = _padded(input_ids, generated, generation_config)
        if not generation_config.return_dict_in_generate:
            return sequences
        kind = GenerateEncoderDecoderOutput if model.config.is_encoder_decoder else GenerateDecoderOnlyOutput
        return kind(sequences=sequences)

    return generate


def _prompts(input_ids: Tensor, kwargs: dict[str, Any]) -> list[list[int]]:
    """The rows of ``[B, N]`` without padding."""
    mask = kwargs.get("attention_mask")
    if mask is None:
        return [row.tolist() for row in input_ids]
    return [row[real.bool()].tolist() for row, real in zip(input_ids, mask, strict=True)]


def _eos(config: GenerationConfig) -> frozenset[int]:
    eos = config.eos_token_id
    if eos is None:
        return frozenset()
    return frozenset(eos) if isinstance(eos, list | tuple) else frozenset({int(eos)})


def _padded(input_ids: Tensor, generated: list[list[int]], config: GenerationConfig) -> Tensor:
    """Prompt and answer side by side, ``[B, longest]``, answers padded at the end as transformers does."""
    longest = max(len(row) for row in generated)
    pad = config.pad_token_id
    if pad is None:
        pad = next(iter(sorted(_eos(config))), 0)
    out = input_ids.new_full((len(generated), longest), int(pad))
    for row, tokens in enumerate(generated):
        out[row, : len(tokens)] = torch.tensor(tokens, dtype=out.dtype, device=out.device)
    return torch.cat([input_ids, out], dim=1)
