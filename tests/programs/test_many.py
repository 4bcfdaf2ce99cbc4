"""Many programs at once: their order, their errors, and what an interrupt leaves."""

import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import pytest
from tests.programs.conftest import NAMESPACES, SMALL, Trial, processes, python_for_everyone, wait_for_none

from unspool.core.errors import InvalidInput
from unspool.programs import Limits, Outcome, Program, Sandbox


def within(seconds: float) -> Limits:
    return dataclasses.replace(SMALL, wall_seconds=seconds)


SOURCE = Path(__file__).parents[2] / "src"


def test_order_does_not_depend_on_who_is_first(whole: Trial) -> None:
    programs = [Program(f"import time\ntime.sleep({0.3 if n == 0 else 0})\nprint({n})") for n in range(12)]
    seen: list[int] = []
    outcomes = whole.sandbox.run_many(programs, workers=4, on_done=lambda place, outcome: seen.append(place))
    assert [outcome.stdout for outcome in outcomes] == [f"{n}\n" for n in range(12)]
    assert sorted(seen) == list(range(12))
    assert seen[0] != 0


def test_parallel_is_sequential(whole: Trial) -> None:
    sources = [
        "print(1)",
        "1 / 0",
        "import os; os._exit(4)",
        "x = bytearray(10**11)",
        "import time; time.sleep(9)",
        "(",
    ]
    programs = [Program(source) for source in sources] * 2
    with Sandbox(within(0.5)) as sandbox:
        one = sandbox.run_many(programs, workers=1)
        three = sandbox.run_many(programs, workers=3)

    def told(outcomes: list[Outcome]) -> list[tuple[object, ...]]:
        return [(o.status, o.exit_code, o.stdout, o.stderr, o.reason) for o in outcomes]

    assert told(one) == told(three)


def test_none(whole: Trial) -> None:
    assert whole.sandbox.run_many([]) == []
    with pytest.raises(InvalidInput, match="workers=0"):
        whole.sandbox.run_many([Program("")], workers=0)


def test_an_error_stops_the_rest(whole: Trial) -> None:
    mark = uuid.uuid4().hex
    sleepers = [Program("import time\ntime.sleep(100)", arguments=(mark,)) for _ in range(4)]
    with Sandbox(within(50)) as sandbox:
        began = time.monotonic()
        with pytest.raises(InvalidInput, match="cobol"):
            sandbox.run_many([*sleepers[:1], Program("", "cobol"), *sleepers], workers=2)
        assert time.monotonic() - began < 20
        assert not processes(mark)
        assert sandbox.run(Program("print('again')")).stdout == "again\n"


def test_error_of_the_callback_stops_the_rest(whole: Trial) -> None:
    def fail(place: int, outcome: object) -> None:
        raise LookupError("mine")

    mark = uuid.uuid4().hex
    with Sandbox(within(50)) as sandbox, pytest.raises(LookupError, match="mine"):
        sandbox.run_many(
            [Program(""), Program("import time\ntime.sleep(100)", arguments=(mark,))], workers=2, on_done=fail
        )
    assert not processes(mark)


FORKING = """
import os, sys
sys.path.insert(0, sys.argv[1])
from unspool.programs import Program, Sandbox
sandbox = Sandbox()
assert sandbox.run(Program("print(1)")).stdout == "1\\n"
child = os.fork()
said = [sandbox.run(Program(f"print({number})")).stdout for number in range(5)]
assert said == [f"{number}\\n" for number in range(5)], said
if child:
    assert os.waitpid(child, 0)[1] == 0
    assert sandbox.run(Program("print(2)")).stdout == "2\\n"
"""


def test_a_forked_process_has_supervisors_of_its_own() -> None:
    subprocess.run([sys.executable, "-c", FORKING, str(SOURCE)], check=True, timeout=60)


HOST = """
import sys
sys.path.insert(0, sys.argv[1])
from unspool.programs import Limits, Mechanism, Program, Sandbox
without = {Mechanism(name) for name in sys.argv[5:]}
sandbox = Sandbox(Limits(wall_seconds=100), without=without, python=sys.argv[4])
source = "import os, time\\nif os.fork() == 0:\\n    os.setsid()\\n    os.fork()\\nopen('f', 'w')\\ntime.sleep(100)"
if sys.argv[3] == "many":
    sandbox.run_many([Program(source, arguments=(sys.argv[2],))] * 4, workers=2)
else:
    sandbox.run(Program(source, arguments=(sys.argv[2],)))
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("call", ["many", "one"])
@pytest.mark.parametrize("namespaces", [True, False])
def test_nothing_is_left_of_a_host_that_ends(how: signal.Signals, call: str, namespaces: bool, tmp_path: Path) -> None:
    mark = "host" + uuid.uuid4().hex
    inner = mark + "-inner"
    tmp_path.chmod(0o755)
    without = [] if namespaces else [str(mechanism) for mechanism in NAMESPACES]
    command = [sys.executable, "-c", HOST, str(SOURCE), inner, call, python_for_everyone(), *without]
    base = tempfile.mkdtemp(prefix="unspool-test-")
    os.chmod(base, 0o711)
    host = subprocess.Popen(command, stderr=subprocess.PIPE, env={**os.environ, "TMPDIR": base}, start_new_session=True)
    try:
        until = time.monotonic() + 30
        # Those of a program: the host itself has the mark in its command line as well.
        while len(processes(inner)) < 4 and host.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
        if host.poll() is not None:
            assert host.stderr is not None
            raise AssertionError(host.stderr.read().decode())
        assert len(processes(inner)) >= 4
        assert bool(os.listdir(base)) == (not namespaces)
        host.send_signal(how)
        host.wait(30)
        assert host.returncode != 0
        assert not wait_for_none(inner)
        until = time.monotonic() + 5
        while os.listdir(base) and time.monotonic() < until:
            time.sleep(0.02)
        assert os.listdir(base) == []
    finally:
        host.kill()
        host.wait()
        assert host.stderr is not None
        host.stderr.close()
        os.rmdir(base)
