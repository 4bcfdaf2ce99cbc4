"""Small models written out: every string with its exact probabilities, and samplers that draw by the hundred thousand.

:func:`enumerate_strings` walks the tree of all continuations and so gives the local distribution ``q`` and the
globally normalised ``pi`` exactly (``distortion`` defines both). :class:`Chain` holds the same tree as tables, for a
fixed length; on it the algorithms of ``local-normalization-distortion`` run for many independent answers at once,
which is what it takes to see that they draw from ``pi``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unspool.sampling.distortion import Warp, effective_sample_size, systematic_resampling
from unspool.sampling.warp import log_normaliser


@dataclass(frozen=True)
class Enumeration:
    """Every string that a local sampler can draw; the tensors are ``[S]``, in float64.

    Args:
        strings: the strings.
        log_p: the model's log-probability.
        log_q: the local sampler's.
        log_omega: ``sum_t log Z_t``.
    """

    strings: list[tuple[int, ...]]
    log_p: Tensor
    log_q: Tensor
    log_omega: Tensor

    @property
    def q(self) -> Tensor:
        """Probabilities under the local sampler."""
        return self.log_q.exp()

    @property
    def pi(self) -> Tensor:
        """Probabilities without the local normalisation."""
        return torch.softmax(self.log_q + self.log_omega, 0)

    @property
    def log_total(self) -> float:
        """``log sum_w prod_t u_t(w_t)``, the global normaliser."""
        return float(torch.logsumexp(self.log_q + self.log_omega, 0))


def enumerate_strings(
    next_logits: Callable[[Sequence[int]], Tensor],
    prompt: Sequence[int],
    length: int,
    warp: Warp,
    temperature: float = 1.0,
    stop_tokens: Collection[int] = (),
) -> Enumeration:
    """Walk the whole tree of continuations of at most ``length`` tokens; ``next_logits`` gives ``[V]`` after a text."""
    leaves: list[tuple[tuple[int, ...], float, float, float]] = []
    level: list[tuple[tuple[int, ...], float, float, float]] = [((), 0.0, 0.0, 0.0)]
    for depth in range(1, length + 1):
        following: list[tuple[tuple[int, ...], float, float, float]] = []
        for string, log_p, log_q, log_omega in level:
            logits = next_logits([*prompt, *string]).double()
            warped = warp(logits)
            log_z = float(log_normaliser(warped, logits, temperature))
            model, local = torch.log_softmax(logits, 0).tolist(), torch.log_softmax(warped, 0).tolist()
            for token, step in enumerate(local):
                if step > -math.inf:
                    grown = ((*string, token), log_p + model[token], log_q + step, log_omega + log_z)
                    (leaves if token in stop_tokens or depth == length else following).append(grown)
        level = following
    columns = [torch.tensor([leaf[i] for leaf in leaves], dtype=torch.float64) for i in (1, 2, 3)]
    return Enumeration([leaf[0] for leaf in leaves], *columns)


@dataclass(frozen=True)
class Chain:
    """A local sampler of strings of ``T`` tokens as tables.

    A text of ``t`` tokens is the number that they spell to base ``V``.

    Args:
        steps: for each ``t``, the distribution of the next token ``[V^t, V]`` after every text.
        log_z: for each ``t``, log of the local normaliser ``[V^t]``.
    """

    steps: list[Tensor]
    log_z: list[Tensor]

    @classmethod
    def of(
        cls,
        next_logits: Callable[[Sequence[int]], Tensor],
        prompt: Sequence[int],
        length: int,
        warp: Warp,
        temperature: float = 1.0,
    ) -> Chain:
        steps, log_z = [], []
        texts: list[list[int]] = [[]]
        for _ in range(length):
            logits = torch.stack([next_logits([*prompt, *text]) for text in texts]).double()
            warped = warp(logits)
            steps.append(torch.softmax(warped, -1))
            log_z.append(log_normaliser(warped, logits, temperature))
            texts = [[*text, token] for text in texts for token in range(logits.shape[-1])]
        return cls(steps, log_z)

    @property
    def vocab_size(self) -> int:
        return self.steps[0].shape[-1]

    def _total(self, rows: list[Tensor]) -> Tensor:
        """``[V^T]`` sums along every string of one number for each text (``[V^t]``) or next token (``[V^t, V]``)."""
        total = rows[0].new_zeros(1)
        for row in rows:
            step = row if row.dim() == 2 else row[:, None].expand(-1, self.vocab_size)
            total = (total[:, None] + step).reshape(-1)
        return total

    @property
    def q(self) -> Tensor:
        """``[V^T]`` probabilities of the local sampler."""
        return self._total([step.log() for step in self.steps]).exp()

    @property
    def log_omega(self) -> Tensor:
        """``[V^T]`` sums of ``log Z``."""
        return self._total(self.log_z)

    @property
    def pi(self) -> Tensor:
        """``[V^T]`` probabilities without the local normalisation."""
        weights = self.q * self.log_omega.exp()
        return weights / weights.sum()

    def extend(self, texts: Tensor, depth: int, rng: torch.Generator) -> Tensor:
        """Each text of ``depth`` tokens, by one token of the local sampler."""
        heights = self.steps[depth].cumsum(-1)[texts]
        token = (heights <= _uniform(texts.shape, rng)[..., None] * heights[..., -1:]).sum(-1)
        return texts * self.vocab_size + token.clamp_max(self.vocab_size - 1)

    def local(self, count: int, rng: torch.Generator) -> Tensor:
        """``[count]`` strings of the local sampler."""
        texts = torch.zeros(count, dtype=torch.int64)
        for depth in range(len(self.steps)):
            texts = self.extend(texts, depth, rng)
        return texts

    def importance(self, count: int, particles: int, rng: torch.Generator) -> Tensor:
        """``[count]`` answers, each drawn by weight from ``particles`` local strings."""
        strings = self.local(count * particles, rng).view(count, particles)
        return _draw(strings, self.log_omega[strings], rng)

    def metropolis(self, count: int, particles: int, rng: torch.Generator) -> Tensor:
        """``[count]`` last states of chains with ``particles - 1`` independent proposals."""
        log_omega, state = self.log_omega, self.local(count, rng)
        for _ in range(particles - 1):
            proposal = self.local(count, rng)
            accept = _uniform(state.shape, rng).log() < log_omega[proposal] - log_omega[state]
            state = torch.where(accept, proposal, state)
        return state

    def suffix_metropolis(self, count: int, particles: int, rng: torch.Generator) -> Tensor:
        """``[count]`` last states of chains with ``particles - 1`` proposals, each rewritten from a random cut."""
        length, log_omega, state = len(self.steps), self.log_omega, self.local(count, rng)
        for _ in range(particles - 1):
            cut = torch.randint(length, (count,), generator=rng)
            proposal = torch.zeros_like(state)
            for depth in range(length):
                kept = state // self.vocab_size ** (length - depth - 1)
                proposal = torch.where(depth < cut, kept, self.extend(proposal, depth, rng))
            # The weights before the cut are those of the shared text and cancel.
            accept = _uniform(state.shape, rng).log() < log_omega[proposal] - log_omega[state]
            state = torch.where(accept, proposal, state)
        return state

    def smc(self, count: int, particles: int, rng: torch.Generator) -> Tensor:
        """``[count]`` answers, each of a particle filter that resamples below an effective size of half its
        particles."""
        texts = torch.zeros(count, particles, dtype=torch.int64)
        weights = torch.zeros(count, particles, dtype=torch.float64)
        for depth, log_z in enumerate(self.log_z):
            weights = weights + log_z[texts]
            texts = self.extend(texts, depth, rng)
            again = effective_sample_size(weights) < particles / 2
            if depth + 1 < len(self.log_z) and bool(again.any()):
                chosen = systematic_resampling(weights[again], _uniform((int(again.sum()),), rng))
                texts[again] = texts[again].gather(-1, chosen)
                weights[again] = 0.0
        return _draw(texts, weights, rng)


def _uniform(shape: Sequence[int], rng: torch.Generator) -> Tensor:
    return torch.rand(tuple(shape), generator=rng, dtype=torch.float64)


def _draw(strings: Tensor, log_weights: Tensor, rng: torch.Generator) -> Tensor:
    """One of each row of ``strings`` ``[N, M]`` by weight."""
    chosen = torch.multinomial(torch.softmax(log_weights, -1), 1, generator=rng)
    return strings.gather(-1, chosen)[:, 0]
