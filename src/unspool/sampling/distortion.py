"""The arithmetic of local normalisation: what it adds to a text, and how to draw without it.

A sampler that makes weights ``u_t(v)`` out of the model's probabilities (a truncation: ``p(v)`` inside of the allowed
set; a temperature: ``p(v)^(1/temperature)``) and divides them by their sum ``Z_t`` at every step draws the string
``w`` with ``q(w) = prod_t u_t(w_t) / Z_t``. Its *distortion* is ``D(w) = -sum_t log Z_t``: strings through flat
steps, where little mass is kept, are boosted by the division, although nothing asked for them. Without the division
one has the globally normalised ``pi(w)``, in proportion to ``prod_t u_t(w_t) = q(w) omega(w)`` with
``omega(w) = prod_t Z_t``: whatever draws from ``q`` and knows ``omega`` can be corrected.

Local Normalization Distortion and the Thermodynamic Formalism of Decoding Strategies for Large Language Models, 2025
(arXiv 2503.21929). Strings end at a stop token or at a maximum length; both ends are leaves of one tree, and sums run
over its leaves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from unspool.sampling.warp import log_normaliser, working

Warp = Callable[[Tensor], Tensor]
"""Model logits ``[..., V]`` to the logits that are sampled from (``-inf`` for dropped tokens), temperature included."""


# -- measuring a text ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measurement:
    """One text under a supposed sampler, token by token; every tensor is ``[T]``.

    Args:
        log_p: the model's log-probability of each token.
        log_q: the sampler's; ``-inf`` for a token that it would not have drawn.
        log_z: log of the local normaliser at each token.
        entropy: of the sampler's distribution at each token, in nats.
    """

    log_p: Tensor
    log_q: Tensor
    log_z: Tensor
    entropy: Tensor

    @property
    def distortion(self) -> float:
        """``D(w)``, the log of the factor by which normalising every step weighs this text up."""
        return -float(self.log_z.sum())

    @property
    def outside(self) -> int:
        """Tokens that the sampler would not have drawn."""
        return int((self.log_q == -torch.inf).sum())

    @property
    def log_likelihood_ratio(self) -> float:
        """``log q(w) - log p(w)``: the best test of 'drawn by this sampler' against 'drawn from the model'."""
        return float((self.log_q - self.log_p).sum())

    def features(self) -> dict[str, float]:
        """Features for telling locally truncated text, each comparable between lengths."""
        length = max(len(self.log_z), 1)
        return {
            "outside": self.outside / length,
            "distortion": self.distortion / length,
            "distortion_variance": float(self.log_z.var(correction=0)) if len(self.log_z) else 0.0,
            "log_p": float(self.log_p.sum()) / length,
            "entropy": float(self.entropy.sum()) / length,
        }


def measure(logits: Tensor, tokens: Tensor, warp: Warp, temperature: float = 1.0) -> Measurement:
    """Measure ``tokens`` (``[T]``), each drawn after the model said ``logits`` (``[T, V]``).

    ``temperature`` is that of ``warp``.
    """
    logits = working(logits)
    warped = warp(logits)
    local = torch.log_softmax(warped, -1)

    def chosen(of: Tensor) -> Tensor:
        return of.gather(-1, tokens.to(of.device)[..., None]).squeeze(-1)

    return Measurement(
        chosen(torch.log_softmax(logits, -1)),
        chosen(local),
        log_normaliser(warped, logits, temperature),
        torch.special.entr(local.exp()).sum(-1),
    )


def objective(mu: Tensor, log_r: Tensor) -> float:
    """``H(mu) + E_mu[log r]`` over finitely many strings (both ``[S]``).

    Among all distributions ``r / sum r`` alone maximises it, with the value ``log sum r``.
    """
    return float(torch.special.entr(mu).sum() + (mu * log_r.masked_fill(mu == 0, 0)).sum())


# -- weighted strings ---------------------------------------------------------------------------------------------


def effective_sample_size(log_weights: Tensor) -> Tensor:
    """``[...]``: ``(sum w)^2 / sum w^2`` of the weights ``[..., M]``, between 1 and ``M``."""
    return torch.exp(2 * torch.logsumexp(log_weights, -1) - torch.logsumexp(2 * log_weights, -1))


def systematic_resampling(log_weights: Tensor, uniform: Tensor) -> Tensor:
    """``[..., M]`` ascending indices; index ``i`` comes up ``floor`` or ``ceil`` of ``M * w_i`` times, on average
    ``M * w_i``.

    Kitagawa, Monte Carlo Filter and Smoother, 1996, appendix: one uniform number for all ``M`` places.

    Args:
        log_weights: ``[..., M]``, not normalised.
        uniform: ``[...]`` in ``[0, 1)``.
    """
    count = log_weights.shape[-1]
    heights = torch.softmax(log_weights.double(), -1).cumsum(-1)
    places = (torch.arange(count, device=log_weights.device) + uniform.double()[..., None]) / count
    # Scaled, so that rounding leaves no place above the last height.
    return torch.searchsorted(heights / heights[..., -1:], places.contiguous(), right=True).clamp_max(count - 1)
