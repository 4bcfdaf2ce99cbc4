"""What an experiment reports, and how a verdict follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Verdict = Literal["holds", "direction holds", "fails"]


@dataclass(frozen=True)
class Row:
    """One measured number beside its baseline.

    Args:
        metric: what, in which unit, and against which baseline.
        baseline, method: the two values; ``None`` where there is none.
    """

    metric: str
    baseline: float | None
    method: float | None

    @property
    def ratio(self) -> float | None:
        """Method over baseline."""
        if self.baseline is None or self.method is None or self.baseline == 0:
            return None
        return self.method / self.baseline

    def as_dict(self) -> dict[str, Any]:
        return {"metric": self.metric, "baseline": self.baseline, "method": self.method, "ratio": self.ratio}


@dataclass(frozen=True)
class Check:
    """One criterion of the claim.

    Args:
        criterion: what is asked, with its threshold.
        measured: what was found, in words or numbers.
        met: whether it is met as stated.
        direction: whether the effect at least has the right sign; what must be exact has no direction but being met.
    """

    criterion: str
    measured: str
    met: bool
    direction: bool

    def as_dict(self) -> dict[str, Any]:
        return {"criterion": self.criterion, "measured": self.measured, "met": self.met, "direction": self.direction}


def judge(checks: Sequence[Check]) -> Verdict:
    """``holds`` if all criteria are met, ``direction holds`` if all have at least the right sign, else ``fails``.

    An experiment without criteria has shown nothing, so it fails.
    """
    if checks and all(check.met for check in checks):
        return "holds"
    if checks and all(check.met or check.direction for check in checks):
        return "direction holds"
    return "fails"


@dataclass(frozen=True)
class Reproduction:
    """The outcome of one experiment.

    Attributes:
        slug, claim: of the method's card.
        setup: model, machine, sizes, seeds: what is needed to run it again and to read the numbers.
        measured: the numbers.
        checks: the criteria; the verdict follows from them.
        notes: what a reader should know to understand the numbers, deviations from the paper's setting included.
    """

    slug: str
    claim: str
    setup: dict[str, Any]
    measured: list[Row]
    checks: list[Check]
    notes: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> Verdict:
        return judge(self.checks)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return {
            "slug": self.slug,
            "claim": self.claim,
            "setup": self.setup,
            "measured": [row.as_dict() for row in self.measured],
            "verdict": self.verdict,
            "checks": [check.as_dict() for check in self.checks],
            "notes": self.notes,
        }
