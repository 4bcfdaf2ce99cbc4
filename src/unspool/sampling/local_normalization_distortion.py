"""Sampling without local normalisation: top-k, nucleus or temperature as one distribution over whole texts.

A local sampler divides by the kept mass ``Z_t`` at every step and so prefers texts that pass through flat
distributions (``distortion`` has the arithmetic). This search keeps the sampler's support and temperature and drops
the division: a text ``w`` comes with probability in proportion to ``p(w)`` if every token is allowed, to
``p(w)^(1/temperature)`` for a temperature. It runs several texts under the composed sampler, weighs them by
``omega = prod_t Z_t``, and answers with one:

- ``smc``: ``M`` particles side by side; where the effective sample size of the weights since the last resampling
  falls below ``resample_below * M``, they are resampled systematically. A finished text keeps its weight (its further
  ``Z`` are 1) and stays in the draw. The answer is drawn by the final weights.
- ``importance``: the same without resampling.
- ``metropolis``: ``M`` independent texts as the proposals of a chain; a proposal replaces the state with probability
  ``min(1, omega' / omega)``. The last state is the answer.
- ``suffix-metropolis``: one after another, ``M - 1`` times: cut the state at a random token, write the rest anew,
  accept with ``min(1, omega'(after the cut) / omega(after the cut) * length / length')``; the lengths are the chances
  of that cut in the one text and in the other, and cancel at fixed length.

All are exact as ``M`` grows; at finite ``M`` the answer lies between the local sampler (``M = 1``) and the global
one. Texts end at a stop or at the maximum length, and the distribution is over what ends so; a deadline cuts short,
and what stands then is weighed as it stands. ``log Z`` is relative to the model's raw distribution, so a constraint
is corrected too: with one, the target is the model's distribution conditioned on it, not the locally masked one.

Local Normalization Distortion and the Thermodynamic Formalism of Decoding Strategies for Large Language Models, 2025
(arXiv 2503.21929); the algorithms are the textbook ones (Robert and Casella, Monte Carlo Statistical Methods,
chapters 3, 7 and 14). Cost: ``M`` texts, in one batch but for ``suffix-metropolis``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from unspool.core.branch import Branch
from unspool.core.cards import Card, Kind, settings
from unspool.core.errors import Incompatible
from unspool.core.registry import register
from unspool.core.sockets import Move, Search, Setup
from unspool.sampling.distortion import effective_sample_size, systematic_resampling


@settings
class DistortionSettings:
    """How the texts are drawn and corrected."""

    algorithm: Annotated[
        Literal["smc", "importance", "metropolis", "suffix-metropolis"], Field(description="how texts are corrected")
    ] = "smc"
    particles: Annotated[int, Field(ge=1, description="texts drawn for one answer")] = 32
    resample_below: Annotated[
        float, Field(ge=0, le=1, description="smc: resample where fewer than this share of the particles still count")
    ] = 0.5


@dataclass
class Report:
    """What the correction of one request went through.

    Attributes:
        effective: effective sample size after each step (``smc``) or at the end (``importance``).
        resampled: tokens after which particles were resampled.
        proposed, accepted: proposals of a chain.
        log_total: estimate of ``log sum_w prod_t u_t(w_t)`` (``smc`` and ``importance``; unbiased before the
        logarithm).
    """

    effective: list[float] = field(default_factory=list)
    resampled: list[int] = field(default_factory=list)
    proposed: int = 0
    accepted: int = 0
    log_total: float = 0.0


@dataclass
class _Run:
    rng: torch.Generator
    report: Report = field(default_factory=Report)
    since: int = 0
    cut: int = 0

    def uniform(self) -> Tensor:
        return torch.rand((), generator=self.rng, device=self.rng.device, dtype=torch.float64).cpu()


@register(
    Card(
        slug="local-normalization-distortion",
        name="Sampling without local normalisation",
        kind=Kind.SEARCH,
        summary="Draws whole texts from top-k, nucleus or temperature as one global distribution, by weighing several.",
        paper="Local Normalization Distortion and the Thermodynamic Formalism of Decoding Strategies for Large "
        "Language Models (2025)",
        claim="normalising at every step distorts the distribution over texts, more for top-k than for nucleus "
        "sampling; without it top-k gains quality at equal diversity",
    ),
    DistortionSettings,
)
class LocalNormalizationDistortion(Search):
    """See the module. ``reports`` holds, by request, what the last run went through."""

    settings: DistortionSettings

    def __init__(self, settings: DistortionSettings | None = None) -> None:
        super().__init__(settings)
        # Resampling compares weights of equally long texts; the others look at finished texts only, drafts welcome.
        self.lockstep = self.settings.algorithm == "smc"
        self._runs: dict[int, _Run] = {}

    def bind(self, setup: Setup) -> None:
        if setup.sampler.deterministic:
            raise Incompatible(
                "local-normalization-distortion corrects a sampler that draws at random, and the one in use takes the "
                "most probable token: add sampling with a temperature above 0 (and, say, top_k=10)"
            )

    @property
    def width(self) -> int:
        return 1 if self.settings.algorithm == "suffix-metropolis" else self.settings.particles

    @property
    def reports(self) -> dict[int, Report]:
        return {request: run.report for request, run in self._runs.items()}

    def begin(self, request: int, rng: torch.Generator) -> None:
        self._runs[request] = _Run(rng)

    def advance(self, branches: Sequence[Branch]) -> list[Move] | None:
        run = self._runs[branches[0].index]
        if self.settings.algorithm == "smc":
            return self._resample(run, branches)
        if self.settings.algorithm == "suffix-metropolis":
            return self._propose(run, branches)
        return None

    def select(self, branches: Sequence[Branch]) -> int:
        run = self._runs[branches[0].index]
        if self.settings.algorithm == "suffix-metropolis":
            return 0
        weights = self._weights(branches, run.since)
        if self.settings.algorithm == "metropolis":
            state = 0
            for proposal in range(1, len(branches)):
                if self._accept(run, float(weights[proposal] - weights[state])):
                    state = proposal
            return state
        run.report.effective.append(float(effective_sample_size(weights)))
        run.report.log_total += float(torch.logsumexp(weights, 0)) - math.log(len(branches))
        return int((torch.softmax(weights, 0).cumsum(0) <= run.uniform()).sum().clamp_max(len(branches) - 1))

    # -- particles ------------------------------------------------------------------------------------------------

    def _resample(self, run: _Run, branches: Sequence[Branch]) -> list[Move] | None:
        if all(branch.finished is not None for branch in branches):
            return None
        weights = self._weights(branches, run.since)
        effective = float(effective_sample_size(weights))
        run.report.effective.append(effective)
        if effective >= len(branches) * self.settings.resample_below:
            return None
        # Equal weights from here on. The unfinished are all of one length; the finished got nothing since they ended.
        run.since = max(len(branch.log_z) for branch in branches)
        run.report.resampled.append(run.since)
        run.report.log_total += float(torch.logsumexp(weights, 0)) - math.log(len(branches))
        return [Move(source) for source in systematic_resampling(weights, run.uniform()).tolist()]

    # -- the chain ------------------------------------------------------------------------------------------------

    def _propose(self, run: _Run, branches: Sequence[Branch]) -> list[Move] | None:
        """Branch 0 is the state, branch 1 the proposal; the first state is an ordinary draw."""
        if any(branch.finished is None for branch in branches):
            return None
        state = 0
        if len(branches) == 2:
            state_weight, weight = self._weights(branches, run.cut).tolist()
            lengths = math.log(len(branches[0].log_z) / len(branches[1].log_z))
            state = int(self._accept(run, weight - state_weight + lengths))
        if run.report.proposed + 1 >= self.settings.particles:
            return None if state == 0 else [Move(state)]
        run.cut = int(run.uniform() * len(branches[state].log_z))
        return [Move(state), Move(state, keep=run.cut)]

    def _accept(self, run: _Run, log_ratio: float) -> bool:
        accepted = float(run.uniform()) < math.exp(min(log_ratio, 0.0))
        run.report.proposed += 1
        run.report.accepted += accepted
        return accepted

    def _weights(self, branches: Sequence[Branch], since: int) -> Tensor:
        """``[M]`` sums of ``log Z`` over the generated tokens from number ``since`` on."""
        sums = []
        for branch in branches:
            kept = branch.log_z[since:]
            known = [log_z for log_z in kept if log_z is not None]
            if len(known) < len(kept):
                raise Incompatible(
                    "local-normalization-distortion needs to know what the sampler normalised by, and the one in use "
                    "does not tell: use it with sampling"
                )
            sums.append(math.fsum(known))
        return torch.tensor(sums, dtype=torch.float64)
