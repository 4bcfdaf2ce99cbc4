"""The plain sampler: temperature, truncations and penalties, applied as the paper of each defines it.

The warpers act in the order of transformers' ``generate``: logit bias, repetition penalty, presence and frequency
penalties (which transformers lacks), no-repeat n-gram; then, unless the temperature is 0, temperature, top-k, top-p,
min-p, typical, epsilon, eta. Temperature 0 takes the most probable token (the first of equals) after the penalties; the
truncations have no say in it.

What counts as text: the repetition penalty and the n-gram rule look at the prompt and the output, as in transformers;
the presence and frequency penalties look at the output only, as OpenAI defines them. Under speculation a node's text
includes the draft path down to it, so penalties are right at places that are not committed yet.

Every distribution carries the log of its local normaliser, relative to the softmax of the model's raw logits: the
mass that truncation and a constraint kept, ``log sum_v p(v)^(1/temperature)`` for a temperature (see ``distortion``).
Penalties enter as factors: with ``d_v`` what they add to a logit, the unnormalised weights are
``(p(v) exp(d_v))^(1/temperature)``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from unspool.core.branch import Branch
from unspool.core.cards import Card, Kind, settings
from unspool.core.registry import register
from unspool.core.sockets import Distribution, Node, Sampler, Setup
from unspool.sampling import warp


def _not_tiny(temperature: float) -> float:
    if 0 < temperature < 1e-4:
        raise ValueError("a temperature below 0.0001 drowns in rounding; use 0")
    return temperature


@settings
class SamplingSettings:
    """Everything off by default: greedy."""

    temperature: Annotated[
        float,
        Field(ge=0, allow_inf_nan=False, description="0 takes the most probable token; 1 is the model's own spread"),
        AfterValidator(_not_tiny),
    ] = 0.0
    top_k: Annotated[int, Field(ge=0, description="keep the k most probable tokens; 0 for all")] = 0
    top_p: Annotated[float, Field(gt=0, le=1, description="keep the most probable tokens up to this mass")] = 1.0
    min_p: Annotated[float, Field(ge=0, le=1, description="keep tokens of at least this share of the top one")] = 0.0
    typical_p: Annotated[float, Field(gt=0, le=1, description="keep the most typical tokens up to this mass")] = 1.0
    epsilon_cutoff: Annotated[float, Field(ge=0, lt=1, description="drop tokens less probable than this")] = 0.0
    eta_cutoff: Annotated[float, Field(ge=0, lt=1, description="the same, lowered where the entropy is high")] = 0.0
    repetition_penalty: Annotated[
        float, Field(gt=0, allow_inf_nan=False, description="above 1, tokens of prompt and output become less likely")
    ] = 1.0
    presence_penalty: Annotated[
        float, Field(allow_inf_nan=False, description="subtracted from the logits of tokens in the output")
    ] = 0.0
    frequency_penalty: Annotated[
        float, Field(allow_inf_nan=False, description="subtracted for every occurrence in the output")
    ] = 0.0
    no_repeat_ngram: Annotated[int, Field(ge=0, description="forbid repeating n-grams of this size; 0 for off")] = 0
    logit_bias: Annotated[
        dict[int, Annotated[float, Field(allow_inf_nan=False)]], Field(description="added to logits, as token:value")
    ] = dataclasses.field(default_factory=dict)


class _Text:
    """The committed tokens of a branch as a tensor that grows with them. A cache: it follows from the tokens alone."""

    def __init__(self, device: torch.device) -> None:
        self._buffer = torch.empty(256, dtype=torch.int64, device=device)
        self._length = 0

    def read(self, tokens: list[int], committed: int) -> Tensor:
        """``[T]``; the first ``committed`` of ``tokens`` will never change."""
        if committed > self._length:
            if committed > len(self._buffer):
                grown = self._buffer.new_empty(2 * committed)
                grown[: self._length] = self._buffer[: self._length]
                self._buffer = grown
            self._buffer[self._length : committed] = torch.tensor(tokens[self._length : committed])
            self._length = committed
        text = self._buffer[:committed]
        if len(tokens) == committed:
            return text
        return torch.cat([text, torch.tensor(tokens[committed:], dtype=torch.int64, device=text.device)])


@register(
    Card(
        slug="sampling",
        name="Sampling",
        kind=Kind.SAMPLER,
        summary="Draws from the model: temperature, top-k, top-p, min-p, typical, cut-offs and penalties.",
        lossless=True,
    ),
    SamplingSettings,
)
class StandardSampler(Sampler):
    """See the module. Cost: a few passes over the vocabulary; only an argmax if everything is off."""

    settings: SamplingSettings

    def __init__(self, settings: SamplingSettings | None = None) -> None:
        super().__init__(settings)
        made = self.settings
        self.deterministic = made.temperature == 0
        self._reads_text = bool(
            made.repetition_penalty != 1 or made.presence_penalty or made.frequency_penalty or made.no_repeat_ngram
        )
        self._adjusts = self._reads_text or bool(made.logit_bias)
        self.greedy = self.deterministic and not self._adjusts
        # Each with the value at which it changes nothing.
        truncations: list[tuple[Callable[[Tensor, Any], Tensor], float, float]] = [
            (warp.top_k, made.top_k, 0),
            (warp.top_p, made.top_p, 1),
            (warp.min_p, made.min_p, 0),
            (warp.typical, made.typical_p, 1),
            (warp.epsilon_cutoff, made.epsilon_cutoff, 0),
            (warp.eta_cutoff, made.eta_cutoff, 0),
        ]
        self._truncations = [(warper, value) for warper, value, off in truncations if value != off]

    def bind(self, setup: Setup) -> None:
        if self.settings.logit_bias:
            # Says which token is wrong before anything runs.
            warp.logit_bias(torch.zeros(setup.target.vocab_size), self.settings.logit_bias)

    def distribution(self, node: Node) -> Distribution:
        logits = node.logits
        if self._adjusts:
            logits = self.penalised(logits, node.tokens if self._reads_text else [], node.branch)
        if self.deterministic:
            return Distribution.best(logits)
        warped, tokens = self._shortlist(logits)
        own = warp.working(node.logits if node.walk is None else node.walk.logits(node.index))
        log_z = float(warp.log_normaliser(warped, own, self.settings.temperature))
        return Distribution(_spread(warped, tokens, len(own)), log_z=log_z)

    def draft_probs(self, logits: Tensor, tokens: list[int], branch: Branch) -> Tensor:
        if self._adjusts:
            logits = self.penalised(logits, tokens if self._reads_text else [], branch)
        if self.deterministic:
            logits = warp.working(logits)
            return Distribution.best(logits).dense(logits)
        return _spread(*self._shortlist(logits), len(logits))

    def penalised(self, logits: Tensor, tokens: list[int], branch: Branch) -> Tensor:
        """``[V]`` logits after bias and penalties, where ``tokens`` (those of ``branch`` first) is the text so far."""
        made = self.settings
        logits = warp.working(logits)
        if made.logit_bias:
            logits = warp.logit_bias(logits, made.logit_bias)
        if not self._reads_text:
            return logits
        known = branch.memo.get(self)
        if known is None:
            known = branch.memo[self] = _Text(logits.device)
        text = known.read(tokens, len(branch.tokens))
        output = text[branch.prompt_length :]
        if made.repetition_penalty != 1:
            logits = warp.repetition_penalty(logits, text, made.repetition_penalty)
        if made.presence_penalty:
            logits = warp.presence_penalty(logits, output, made.presence_penalty)
        if made.frequency_penalty:
            logits = warp.frequency_penalty(logits, output, made.frequency_penalty)
        if made.no_repeat_ngram:
            logits = warp.no_repeat_ngram(logits, text, made.no_repeat_ngram)
        return logits

    def warped(self, logits: Tensor) -> Tensor:
        """``[..., V]`` logits after temperature (which must not be 0) and truncations."""
        logits = self._tempered(logits)
        for warper, value in self._truncations:
            logits = warper(logits, value)
        return logits

    def _tempered(self, logits: Tensor) -> Tensor:
        logits = warp.working(logits)
        made = self.settings.temperature
        return logits if made == 1 else warp.temperature(logits, made)

    def _shortlist(self, logits: Tensor) -> tuple[Tensor, Tensor | None]:
        """:meth:`warped` of ``[V]`` logits without the dropped tokens: ``[K]`` logits and tokens (``None`` for all).

        The first truncation leaves so few that what follows costs next to nothing.
        """
        logits, tokens = self._tempered(logits), None
        for warper, value in self._truncations:
            logits = warper(logits, value)
            if tokens is None:
                tokens = (logits > -torch.inf).nonzero()[:, 0]
                logits = logits[tokens]
        return logits, tokens


def _spread(logits: Tensor, tokens: Tensor | None, size: int) -> Tensor:
    """``[V]`` probabilities from the logits of a shortlist."""
    probs = torch.softmax(logits, -1)
    return probs if tokens is None else probs.new_zeros(size).index_copy_(0, tokens, probs)
