"""The sandbox: programs in, outcomes out."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from types import TracebackType
from typing import Any

from unspool.core.errors import InvalidInput
from unspool.programs import facilities as facility_room
from unspool.programs.facilities import Facility
from unspool.programs.ground import Ground, Mechanism, explore
from unspool.programs.languages import ENVIRONMENT, Toolchain, python_at, toolchain
from unspool.programs.program import COMPILING, DEFAULT, FLOOD, Limits, Outcome, Program, SandboxError
from unspool.programs.verdicts import judge
from unspool.programs.worker import Supervisor, make_job, make_step

_SLACK_OF_ADDRESSES = 1 << 30  # programs map files and reserve stacks beyond the memory that they use


class Sandbox:
    """Runs programs that nobody trusts. Threads may share one.

    Every program gets processes, a folder and, where the machine allows it, a view of the file system, a network and a
    user of its own; all of them are gone when `run` returns. `describe` says what is in force here.

    Args:
        limits: of the programs.
        require: facilities without which nothing shall be run.
        python: the interpreter of programs in Python; the running one by default.
        compiling: limits of compilers; their folder has the program's limits.
        without: mechanisms to leave alone, to see what is left where they are missing.

    Raises:
        SandboxError: if a required facility is not in force, or programs cannot be run here at all.
    """

    def __init__(
        self,
        limits: Limits = DEFAULT,
        *,
        require: Iterable[Facility] = frozenset(),
        python: str | os.PathLike[str] | None = None,
        compiling: Limits = COMPILING,
        without: Iterable[Mechanism] = frozenset(),
    ) -> None:
        self.limits, self.compiling = limits, compiling
        self._without = frozenset(without)
        self._python = python_at(sys.executable if python is None else os.fspath(python)).executable
        self._ground = explore(self._without)
        self._idle: list[Supervisor] = []
        self._busy: dict[Supervisor, threading.Event] = {}  # each with what says that its call is to be given up
        self._lock = threading.Lock()
        self._process = os.getpid()
        wanted = frozenset(require)
        if wanted and (missing := wanted - self.facilities):
            raise SandboxError(
                f"this sandbox cannot promise: {', '.join(sorted(missing))}. "
                "`unspool sandbox` tells what is in force on this machine, and why"
            )

    @property
    def facilities(self) -> frozenset[Facility]:
        """What is in force here, found by trying to get around it (about a tenth of a second, the first time)."""
        return facility_room.in_force(self._without, self._python)

    @property
    def ground(self) -> Ground:
        """What the sandbox is made of here, and what it has to do without."""
        return self._ground

    def describe(self) -> str:
        """What is in force, what is not, and why, in lines for people to read."""
        return facility_room.describe(self.facilities, self._ground)

    def run(self, program: Program, limits: Limits | None = None) -> Outcome:
        """Compile (if the language needs it) and run a program.

        Raises:
            InvalidInput: for a language that does not exist.
            LanguageMissing: for one that is not installed.
            SandboxError: if the sandbox fails, as opposed to the program.
        """
        return self._run(program, limits or self.limits, threading.Event())

    def _run(self, program: Program, limits: Limits, given_up: threading.Event) -> Outcome:
        tools = toolchain(program.language, self._python)
        job, phases, bounds = self._job(program, limits, tools)
        with self._supervisor(given_up) as supervisor:
            report = supervisor.run(job)
        if "unstartable" in report:
            if phases[len(report["steps"]) - 1] != "run" or report["unstartable"] != "./main":
                raise SandboxError(self._unstartable(report))
        elif "why" in report or not report["steps"]:
            raise SandboxError(f"the sandbox failed: {report.get('why', 'it ended before the program began')}")
        return judge(report["steps"], bounds, phases, tools.language, program)

    def run_many(
        self,
        programs: Iterable[Program],
        *,
        workers: int | None = None,
        on_done: Callable[[int, Outcome], None] | None = None,
    ) -> list[Outcome]:
        """Run programs side by side.

        Args:
            workers: how many at a time; as many as this process has processors by default.
            on_done: called in this thread with the place of a program and its outcome, in the order of finishing.

        Returns:
            the outcomes in the order of the programs. An error, or an interrupt, stops all of them, and is raised when
            nothing of them is left.

        Raises:
            As `run`.
        """
        waiting = list(programs)
        count = len(os.sched_getaffinity(0)) if workers is None else workers
        if count < 1:
            raise InvalidInput(f"workers={count}: at least one is needed")
        outcomes: dict[int, Outcome] = {}
        given_up = threading.Event()
        with ThreadPoolExecutor(min(count, max(1, len(waiting))), thread_name_prefix="sandbox") as pool:
            places = {
                pool.submit(self._run, program, self.limits, given_up): place for place, program in enumerate(waiting)
            }
            try:
                for done in as_completed(places):
                    outcomes[places[done]] = done.result()
                    if on_done is not None:
                        on_done(places[done], outcomes[places[done]])
            except BaseException:
                for future in places:
                    future.cancel()
                self._give_up(given_up)
                raise
        return [outcomes[place] for place in range(len(waiting))]

    def close(self) -> None:
        """End the supervisors that wait for work, and whatever runs. The sandbox can be used again afterwards."""
        with self._lock:
            idle, self._idle = self._idle, []
            calls = set(self._busy.values())
        for supervisor in idle:
            supervisor.stop()
        for given_up in calls:
            self._give_up(given_up)

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _give_up(self, call: threading.Event) -> None:
        """Stop what a call runs now, and let it run nothing more."""
        with self._lock:
            call.set()
            busy = [supervisor for supervisor, given_up in self._busy.items() if given_up is call]
        for supervisor in busy:
            supervisor.stop()

    @contextlib.contextmanager
    def _supervisor(self, given_up: threading.Event) -> Iterator[Supervisor]:
        """One that nobody else uses. It is kept for the next program unless something went wrong."""
        with self._lock:
            if self._process != os.getpid():  # after a fork the supervisors are the parent's
                self._process, self._idle, self._busy = os.getpid(), [], {}
            supervisor = self._idle.pop() if self._idle else None
        supervisor = supervisor or Supervisor()
        try:
            with self._lock:
                self._busy[supervisor] = given_up
                if given_up.is_set():
                    raise SandboxError("the call was given up before this program began")
            yield supervisor
        except BaseException:
            with self._lock:
                self._busy.pop(supervisor, None)
            supervisor.stop()
            raise
        with self._lock:
            self._busy.pop(supervisor, None)
            self._idle.append(supervisor)

    def _job(
        self, program: Program, limits: Limits, tools: Toolchain
    ) -> tuple[Mapping[str, Any], list[str], list[Limits]]:
        """What to tell the supervisor, and what each step is and may use."""
        steps, phases, bounds = [], [], []
        if command := tools.compiling():
            steps.append(make_step(command, self.compiling, environment=ENVIRONMENT, flood=FLOOD))
            phases.append("compile")
            bounds.append(self.compiling)
        reserve = 0 if tools.language.reserves else limits.memory_bytes + _SLACK_OF_ADDRESSES
        command = tools.running(program.arguments, judged=program.must_finish, memory_bytes=limits.memory_bytes)
        steps.append(
            make_step(
                command,
                limits,
                environment=ENVIRONMENT,
                stdin=program.stdin,
                judged=program.must_finish,
                address_space=reserve,
                flood=FLOOD,
            )
        )
        phases.append("run")
        bounds.append(limits)
        if tools.language.file in program.files:
            raise InvalidInput(f"files[{tools.language.file!r}] is the name of the main file: put it into source")
        files = {**program.files, tools.language.file: program.source}
        return make_job(self._ground.plan.write(), tools.readable, files, limits, steps), phases, bounds

    def _unstartable(self, report: Mapping[str, Any]) -> str:
        message = f"{report['unstartable']} cannot be started: {report['why']}"
        if Mechanism.OWN_USER in self._ground.mechanisms and Mechanism.MOUNT_NAMESPACE not in self._ground.mechanisms:
            message += (
                ". Programs run as an unprivileged user here, and without a mount namespace such a user has to be able "
                "to read the interpreter or compiler where it lies: choose another one (Sandbox(python=...))"
            )
        return message
