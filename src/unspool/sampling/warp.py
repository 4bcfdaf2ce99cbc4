"""What samplers do to logits: pure functions on ``[..., V]``, every row on its own.

Forbidden tokens get ``-inf``. No function forbids everything: a row that had a finite logit keeps at least one; each
docstring says which. Truncations keep tokens of equal probability together, so the result does not depend on the order
of the vocabulary, and they renormalise nothing: probabilities are read off the softmax of the logits as they arrive.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from unspool.core.errors import InvalidInput

# Mass-based truncation mostly needs a few hundred tokens; finding them is an order of magnitude cheaper than a sort.
_LEADING = 512


def working(logits: Tensor) -> Tensor:
    """``logits`` in a precision that sums over a vocabulary can be trusted in (half precisions become float32)."""
    return logits if logits.dtype in (torch.float32, torch.float64) else logits.float()


def log_normaliser(warped: Tensor, logits: Tensor, temperature: float = 1.0) -> Tensor:
    """``[...]`` log of what local sampling divides by: ``log sum_v u(v)``, where ``softmax(warped) = u / sum_v u``.

    For a truncation to ``A`` it is ``log sum_{v in A} p(v)``; for a temperature ``log sum_v p(v)^(1/temperature)``
    (over ``A`` if both); ``p = softmax(logits)`` is the model's own distribution.

    Args:
        warped: ``[..., V]`` what is sampled from, the division by ``temperature`` included.
        logits: ``[..., V]`` the model's.
    """
    return _log_sum_exp(warped) - _log_sum_exp(logits) / temperature


def _log_sum_exp(logits: Tensor) -> Tensor:
    # Log-softmax is one fused pass, logsumexp of torch several; the largest entry tells what was subtracted.
    return logits.amax(-1) - torch.log_softmax(logits, -1).amax(-1)


# -- penalties: functions of the text -----------------------------------------------------------------------------


def logit_bias(logits: Tensor, bias: Mapping[int, float]) -> Tensor:
    """Add ``bias[v]`` to the logit of ``v`` (as the ``logit_bias`` of OpenAI's completions). Keeps every token.

    Raises:
        InvalidInput: for a token outside of the vocabulary.
    """
    size = logits.shape[-1]
    if (wrong := next((token for token in bias if not 0 <= token < size), None)) is not None:
        raise InvalidInput(f"logit_bias names token {wrong}; the vocabulary has tokens 0 to {size - 1}")
    out = logits.clone()
    out[..., list(bias)] += torch.tensor(list(bias.values()), dtype=logits.dtype, device=logits.device)
    return out


def repetition_penalty(logits: Tensor, tokens: Tensor, penalty: float) -> Tensor:
    """Make every token of ``tokens`` (``[..., T]``) less likely: a positive logit is divided by ``penalty``, a
    negative one multiplied. Keeps every token.

    Keskar et al., CTRL, 2019, section 4.1, which divides whatever the sign; dividing a negative logit would reward the
    repetition, hence the split that all libraries make.
    """
    seen = logits.gather(-1, tokens)
    return logits.scatter(-1, tokens, torch.where(seen < 0, seen * penalty, seen / penalty))


def presence_penalty(logits: Tensor, tokens: Tensor, penalty: float) -> Tensor:
    """Subtract ``penalty`` once from every token that occurs in ``tokens`` (``[..., T]``). Keeps every token.

    OpenAI's ``mu[j] - float(c[j] > 0) * alpha_presence``, with ``c[j]`` counted over ``tokens``.
    """
    return logits.scatter(-1, tokens, logits.gather(-1, tokens) - penalty)


def frequency_penalty(logits: Tensor, tokens: Tensor, penalty: float) -> Tensor:
    """Subtract ``penalty`` for every occurrence in ``tokens`` (``[..., T]``). Keeps every token.

    OpenAI's ``mu[j] - c[j] * alpha_frequency``, with ``c[j]`` counted over ``tokens``.
    """
    return logits.scatter_add(-1, tokens, torch.full_like(tokens, -penalty, dtype=logits.dtype))


def no_repeat_ngram(logits: Tensor, tokens: Tensor, size: int) -> Tensor:
    """Forbid the tokens that would complete an n-gram of ``size`` that ``tokens`` (``[..., T]``) already holds.

    Paulus et al., A Deep Reinforced Model for Abstractive Summarization, 2017, section 2.5. Where that would forbid
    everything, the row is left as it is.
    """
    length = tokens.shape[-1]
    if length < size:
        return logits
    grams = tokens.unfold(-1, size, 1)
    ending = tokens[..., None, length - size + 1 :]
    repeats = (grams[..., :-1] == ending).all(-1)
    # The least of the logit and of what its occurrences say: an n-gram that does not repeat has no say.
    verdicts = torch.where(repeats, -torch.inf, torch.inf).to(logits.dtype)
    out = logits.scatter_reduce(-1, grams[..., -1], verdicts, "amin")
    alive = out.amax(-1, keepdim=True) > -torch.inf
    return out if bool(alive.all()) else torch.where(alive, out, logits)


# -- temperature and truncations: functions of the distribution ---------------------------------------------------


def temperature(logits: Tensor, value: float) -> Tensor:
    """``p^(1/value)``, renormalised by the softmax (Ackley et al., 1985). Keeps every token. ``value`` is above 0."""
    return logits / value


def top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the ``k`` most probable tokens (Fan et al., Hierarchical Neural Story Generation, 2018), and what equals the
    last of them; at least the most probable one."""
    if k >= logits.shape[-1]:
        return logits
    return logits.masked_fill(logits < logits.topk(k).values[..., -1:], -torch.inf)


def top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the smallest set of most probable tokens whose mass reaches ``p``: the nucleus (Holtzman et al., The Curious
    Case of Neural Text Degeneration, 2020, section 3.1, equation 2); at least the most probable one."""
    if p >= 1:
        return logits
    order = -logits
    return logits.masked_fill(order > _reaching(order, torch.softmax(logits, -1), p), -torch.inf)


def min_p(logits: Tensor, share: float) -> Tensor:
    """Keep tokens with at least ``share`` times the largest probability (Nguyen et al., Turning Up the Heat, 2024,
    section 3); at least the most probable one."""
    if share <= 0:
        return logits
    return logits.masked_fill(logits < logits.amax(-1, keepdim=True) + math.log(share), -torch.inf)


def typical(logits: Tensor, mass: float) -> Tensor:
    """Keep the tokens whose surprise ``-log p`` is nearest to the entropy, until their mass reaches ``mass`` (Meister
    et al., Locally Typical Sampling, 2022); at least the nearest one, which need not be the most probable."""
    if mass >= 1:
        return logits
    log_p = torch.log_softmax(logits, -1)
    p = log_p.exp()
    strangeness = (torch.special.entr(p).sum(-1, keepdim=True) + log_p).abs()
    return logits.masked_fill(strangeness > _reaching(strangeness, p, mass), -torch.inf)


def epsilon_cutoff(logits: Tensor, epsilon: float) -> Tensor:
    """Keep tokens with a probability of at least ``epsilon`` (Hewitt et al., Truncation Sampling as Language Model
    Desmoothing, 2022, epsilon-sampling); at least the most probable one."""
    return _at_least(logits, torch.softmax(logits, -1), epsilon)


def eta_cutoff(logits: Tensor, epsilon: float) -> Tensor:
    """Keep tokens with a probability of at least ``min(epsilon, sqrt(epsilon) * exp(-H))``, ``H`` the entropy (Hewitt
    et al., 2022, eta-sampling with their ``alpha = sqrt(epsilon)``); at least the most probable one."""
    p = torch.softmax(logits, -1)
    entropy = torch.special.entr(p).sum(-1, keepdim=True)
    return _at_least(logits, p, (math.sqrt(epsilon) * torch.exp(-entropy)).clamp_max(epsilon))


def _at_least(logits: Tensor, p: Tensor, bound: Tensor | float) -> Tensor:
    return logits.masked_fill((p < bound) & (logits < logits.amax(-1, keepdim=True)), -torch.inf)


def _reaching(order: Tensor, p: Tensor, mass: float) -> Tensor:
    """``[..., 1]`` value of ``order`` at which tokens, taken by ascending ``order``, first have a mass of ``mass``."""
    size = order.shape[-1]
    for count in (min(_LEADING, size), size):
        if count < size:
            values, tokens = order.topk(count, largest=False)
        else:
            values, tokens = order.sort()
        total = p.gather(-1, tokens).cumsum(-1)
        if bool((total[..., -1] >= mass).all()):
            break
    # Rounding may leave the whole vocabulary just short of the mass: then everything is kept.
    last = (total < mass).sum(-1, keepdim=True).clamp_max(count - 1)
    return values.gather(-1, last)
