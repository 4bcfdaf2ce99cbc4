"""Programs that judge other programs."""

from __future__ import annotations

from collections.abc import Mapping

from unspool.programs.program import Program


def judge_python(source: str, tests: str, *, files: Mapping[str, str] | None = None, stdin: str = "") -> Program:
    """A program that passes only if `source` and then `tests`, in one file, are executed to the end of the tests.

    Leaving early does not pass, be it by ``sys.exit(0)`` or ``os._exit(0)``, nor does an exit code above 0 after the
    last line. Both run in one process, so this holds against mistakes and tricks of the usual kind, not against code
    that was written to deceive this very judge: such code can find the judge's secret in its own process, or change
    what the tests call.

    Args:
        source: what is judged.
        tests: statements that raise if something is wrong; they see the names of `source`.
        files: other files in the folder.
        stdin: standard input.
    """
    return Program(f"{source}\n\n{tests}\n", files=files or {}, stdin=stdin, must_finish=True)
