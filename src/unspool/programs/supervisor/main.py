"""The loop of a supervisor: a job in, a report out, until there are no more."""

from __future__ import annotations

import signal
import sys
from typing import NoReturn

from unspool.programs.supervisor import watch
from unspool.programs.supervisor.frames import read_frame, write_frame
from unspool.programs.supervisor.plan import Job

_JOBS, _REPORTS = 0, 1


def _terminated(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)


def main() -> None:
    """Serve until standard input ends; a job that is running then is stopped and its folder deleted."""
    signal.signal(signal.SIGTERM, _terminated)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started this decides what an interrupt means
    watch.settle()
    while True:
        try:
            report = watch.run(Job.read(read_frame(_JOBS)), _JOBS)
        except EOFError:
            return
        except OSError as error:
            report = {"steps": [], "failed": "", "why": f"{type(error).__name__}: {error}"}
        write_frame(_REPORTS, report)
