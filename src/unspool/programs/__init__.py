"""Programs as data: model-written code, run where it can do no harm.

>>> from unspool.programs import Program, Sandbox
>>> Sandbox().run(Program("print(6 * 7)")).stdout                                                # doctest: +SKIP
'42\\n'
"""

from __future__ import annotations

from unspool.programs.facilities import Facility
from unspool.programs.ground import Mechanism
from unspool.programs.judging import judge_python
from unspool.programs.languages import Installed, languages
from unspool.programs.program import COMPILING, LanguageMissing, Limits, Outcome, Program, SandboxError, Status
from unspool.programs.sandbox import Sandbox

__all__ = [
    "COMPILING",
    "Facility",
    "Installed",
    "LanguageMissing",
    "Limits",
    "Mechanism",
    "Outcome",
    "Program",
    "Sandbox",
    "SandboxError",
    "Status",
    "judge_python",
    "languages",
]
