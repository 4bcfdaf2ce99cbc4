"""The smallest honest experiment for the claim behind each method, run on the machine at hand.

One file a method, named after its slug. An experiment measures, says which of its criteria are met, and the verdict
follows from those alone: ``holds`` if every criterion is met as stated, ``direction holds`` if some are missed but all
effects have the right sign, else ``fails``.

>>> from unspool.evaluation.reproductions import available, run
>>> available()                                                                                  # doctest: +SKIP
>>> run("token-recycling", quick=True).verdict                                                   # doctest: +SKIP
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unspool.core.errors import UnknownMethod
from unspool.evaluation.reproductions._report import Check, Reproduction, Row

if TYPE_CHECKING:
    from unspool.engine import Engine

__all__ = ["Check", "Reproduction", "Row", "available", "run", "table"]

DEFAULT_MODEL = "smollm2-135m"


def available() -> list[str]:
    """The slugs that have an experiment: one for each file of this folder."""
    return sorted(
        module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")
    )


def run(
    slug: str,
    *,
    quick: bool = False,
    model: str | Engine | None = None,
    data: Path | None = None,
    progress: bool = True,
) -> Reproduction:
    """Run the experiment of a method.

    Args:
        slug: one of :func:`available`.
        quick: a smaller sample of everything, within a minute on two cores.
        model: the target by name, or one that is loaded already; the default is the experiment's own, which is the
            packaged SmolLM2-135M unless it says otherwise.
        data: a folder (or file) with Spec-Bench for the experiments that can use it; else the environment variable
            ``UNSPOOL_DATA``; without either the packaged prompts are asked.
        progress: tell on standard error what is being done.

    Raises:
        UnknownMethod: if the slug has no experiment.
        InvalidInput: if the data is not where it was said to be.
    """
    known = available()
    if slug not in known:
        near = difflib.get_close_matches(slug, known, n=2)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise UnknownMethod(f"there is no experiment for {slug!r}{hint} There are: {', '.join(known)}")
    from unspool.evaluation.reproductions import _common

    module = importlib.import_module(f"{__name__}.{slug.replace('-', '_')}")
    made: _common.Experiment = module.EXPERIMENT
    target = model or made.model or DEFAULT_MODEL
    return _common.conduct(made, made.quick if quick else made.full, target, quick, data, progress)


def table(results: Sequence[Reproduction]) -> str:
    """Results as a table in Markdown, for the documentation."""
    lines = [
        "| method | measured | plain or baseline | method | ratio | verdict |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for result in results:
        for place, row in enumerate(result.measured):
            head, verdict = (f"`{result.slug}`", result.verdict) if place == 0 else ("", "")
            cells = [head, row.metric, _cell(row.baseline), _cell(row.method), _cell(row.ratio), verdict]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value == int(value) and abs(value) >= 1000 else f"{value:.4g}"
