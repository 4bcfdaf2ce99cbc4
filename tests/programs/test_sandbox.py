"""What a sandbox gives its programs, what it tells of them, and what it refuses to do."""

import dataclasses
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.programs.conftest import NAMESPACES, SMALL, Trial, python_for_everyone

from unspool.core.errors import InvalidInput, UnspoolError
from unspool.programs import (
    Facility,
    Limits,
    Mechanism,
    Outcome,
    Program,
    Sandbox,
    SandboxError,
    Status,
    filters,
    judge_python,
)


def test_outcome(trial: Trial) -> None:
    outcome = trial.sandbox.run(
        Program(
            "import sys\nprint(input(), sys.argv[1:])\nprint('e', file=sys.stderr)", stdin="in\n", arguments=("-x", "")
        )
    )
    assert outcome.passed
    assert (outcome.exit_code, outcome.stdout, outcome.stderr) == (0, "in ['-x', '']\n", "e\n")
    assert (outcome.phase, outcome.reason, outcome.refused, outcome.truncated) == ("run", "", (), False)
    assert 0 < outcome.seconds < 5
    assert 0 < outcome.cpu_seconds < 5
    assert outcome.peak_bytes > 2**20


def test_failing(trial: Trial) -> None:
    outcome = trial.run("import sys\nsys.exit(7)")
    assert (outcome.status, outcome.exit_code, outcome.reason) == (Status.FAILED, 7, "it ended with exit code 7")
    outcome = trial.run("import os\nos.abort()")
    assert (outcome.status, outcome.exit_code, outcome.reason) == (Status.FAILED, -6, "it was ended by SIGABRT")
    outcome = trial.run("def f(:\n")
    assert (outcome.status, outcome.exit_code) == (Status.FAILED, 1)
    assert "SyntaxError" in outcome.stderr


def test_traceback_begins_in_the_program(trial: Trial) -> None:
    outcome = trial.run("def f():\n    raise ValueError('no')\n\nf()\n")
    lines = outcome.stderr.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[1].endswith('/main.py", line 4, in <module>')
    assert lines[-1] == "ValueError: no"


def test_it_is_the_main_module(trial: Trial) -> None:
    source = """
import dataclasses, inspect, pickle, sys
@dataclasses.dataclass
class Point:
    x: int
if __name__ == "__main__":
    print(pickle.loads(pickle.dumps(Point(3))), inspect.getsource(Point).count("x: int"), sys.argv[0] == __file__)
"""
    assert trial.sandbox.run(Program(source)).stdout == "Point(x=3) 1 True\n"


def test_files_can_be_read_and_imported(trial: Trial) -> None:
    files = {"helper.py": "def twice(x):\n    return 2 * x\n", "data/in.txt": "zwölf", "package/__init__.py": "y = 5"}
    source = "import helper, package\nprint(helper.twice(4), package.y, open('data/in.txt', encoding='utf-8').read())"
    assert trial.sandbox.run(Program(source, files=files)).stdout == "8 5 zwölf\n"


def test_folder_can_be_written_and_is_empty_again(trial: Trial) -> None:
    trial.run("open('left', 'w').write('x')")
    assert trial.run("import os\nprint(os.listdir('.'))").stdout == "['main.py']\n"


def test_children_and_temporary_files_work(trial: Trial) -> None:
    source = """
import multiprocessing, subprocess, sys, tempfile
with tempfile.NamedTemporaryFile() as file:
    print(subprocess.run(["sh", "-c", "echo $((6 * 7))"], capture_output=True, text=True).stdout, end="")
with multiprocessing.get_context("fork").Pool(2) as pool:
    print(pool.map(abs, [-1, -2, -3]))
"""
    trial.needs(Facility.NO_READING)
    if Mechanism.MOUNT_NAMESPACE not in trial.sandbox.ground.mechanisms:
        pytest.skip("semaphores lie in /dev/shm, outside of the folder")
    assert trial.run(source, processes=20).stdout == "42\n[1, 2, 3]\n"


def test_site_packages_can_be_imported(whole: Trial) -> None:
    assert whole.sandbox.run(Program("import numpy\nprint(numpy.arange(3).sum())")).stdout == "3\n"


def test_output_that_is_no_text(trial: Trial) -> None:
    assert trial.run("import os\nos.write(1, b'a\\xffb')").stdout == "a�b"
    outcome = trial.run("print('ä' * 100)", output_bytes=11)
    assert outcome.stdout == "äääää�"


def test_source_with_half_a_character(trial: Trial) -> None:
    assert trial.run("x = '\udc80'\nprint(len(x))").stdout == "1\n"


def test_large_input(trial: Trial) -> None:
    outcome = trial.sandbox.run(Program("import sys\nprint(len(sys.stdin.read()))", stdin="x" * 3_000_000))
    assert outcome.stdout == "3000000\n"


def test_judged(trial: Trial) -> None:
    good = "def add(a, b):\n    return a + b"
    assert trial.sandbox.run(judge_python(good, "assert add(1, 2) == 3")).passed
    bad = trial.sandbox.run(judge_python(good.replace("+", "-"), "assert add(1, 2) == 3"))
    assert bad.status is Status.FAILED
    assert "AssertionError" in bad.stderr
    closing = "import os\nos.close(0)\nos.close(1)\nos.close(2)"
    assert trial.sandbox.run(judge_python(closing, "assert True")).passed
    early = trial.sandbox.run(judge_python("exit()", "assert False"))
    assert early.reason == "it ended with exit code 0, but not at its last line"
    assert trial.sandbox.run(judge_python("while True: pass", "")).status in Status


def test_judged_arguments_do_not_show_the_channel(trial: Trial) -> None:
    program = dataclasses.replace(judge_python("import sys\nprint(sys.argv[1:])", ""), arguments=("a",))
    assert trial.sandbox.run(program).stdout == "['a']\n"


def test_success_marker(trial: Trial) -> None:
    def run(source: str) -> Outcome:
        return trial.sandbox.run(Program(source, success_marker="done-7f3a"))

    assert run("print('x')\nprint('done-7f3a')").stdout == "x\n"
    assert run("print('done-7f3a')").passed
    for source in ("print('x')", "", "print('done-7f3a')\nprint('more')", "print('not done-7f3a')"):
        assert run(source).status is Status.FAILED
    assert not run("print('done-7f3a')\nraise SystemExit(1)").passed


@pytest.mark.parametrize(
    "make",
    [
        lambda: Limits(wall_seconds=0),
        lambda: Limits(memory_bytes=-1),
        lambda: Limits(cpu_seconds=float("inf")),
        lambda: Program("", files={"../x": ""}),
        lambda: Program("", files={"/etc/x": ""}),
        lambda: Program("", files={"a//b": ""}),
        lambda: Program("", "c", must_finish=True),
        lambda: Program("", success_marker=" x"),
        lambda: Program("", arguments=("a\0b",)),
    ],
)
def test_wrong_input(make: Callable[[], object]) -> None:
    with pytest.raises(InvalidInput):
        make()


def test_wrong_programs(whole: Trial) -> None:
    with pytest.raises(InvalidInput, match=r"no language 'cobol'; there are python, shell"):
        whole.sandbox.run(Program("", "cobol"))
    with pytest.raises(InvalidInput, match=r"main\.py"):
        whole.sandbox.run(Program("", files={"main.py": ""}))


def test_wrong_interpreter(tmp_path: Path) -> None:
    with pytest.raises(SandboxError, match="does not work"):
        Sandbox(python=tmp_path / "python")
    with pytest.raises(SandboxError, match="no Python interpreter"):
        Sandbox(python="/bin/echo")


def test_another_interpreter() -> None:
    with Sandbox(python=python_for_everyone()) as sandbox:
        assert sandbox.run(Program("import sys\nprint(sys.executable)")).stdout.strip() == python_for_everyone()


def test_what_is_required_must_be_there() -> None:
    with pytest.raises(SandboxError, match="cannot promise: no network"):
        Sandbox(require={Facility.NO_NETWORK}, without=set(Mechanism), python=python_for_everyone())
    with pytest.raises(UnspoolError):
        Sandbox(require=[Facility.FOLDER_LIMIT], without=NAMESPACES, python=python_for_everyone())


def test_what_a_machine_can_give_is_in_force(whole: Trial) -> None:
    """Tests of attacks are skipped where a facility is missing; here none goes missing unnoticed."""
    command = ["unshare", "--mount", "--pid", "--net", "--ipc", "--uts", "--fork", "--mount-proc"]
    command += [] if os.geteuid() == 0 else ["--map-current-user"]
    if shutil.which("unshare") is None or subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("no namespaces here")
    without_filter = {Facility.SYSTEM_CALLS} if filters.missing() else set()
    assert whole.sandbox.facilities == set(Facility) - without_filter


def test_what_landlock_can_give_is_in_force(without_namespaces: Trial) -> None:
    if os.geteuid() != 0 or Mechanism.LANDLOCK not in without_namespaces.sandbox.ground.mechanisms:
        pytest.skip("needs root and Landlock")
    missing = {Facility.FOLDER_LIMIT}
    if filters.missing():
        missing |= {Facility.SYSTEM_CALLS, Facility.NO_NETWORK}
    assert without_namespaces.sandbox.facilities == set(Facility) - missing


def test_nothing_is_claimed_that_is_not_there() -> None:
    """Without any mechanism, what is left is what limits and the supervisor do."""
    with Sandbox(without=set(Mechanism), python=python_for_everyone()) as sandbox:
        assert sandbox.facilities <= {Facility.RESOURCE_LIMITS, Facility.PROCESS_LIMIT, Facility.WHOLE_TREE}
        assert Facility.RESOURCE_LIMITS in sandbox.facilities
        assert "NOT in force here:\n  no network" in sandbox.describe()
        assert sandbox.run(Program("print(1)")).stdout == "1\n"


def test_description(whole: Trial) -> None:
    text = whole.sandbox.describe()
    for facility in Facility:
        assert str(facility) in text
    for mechanism in Mechanism:
        assert mechanism.value in text


def test_each_mechanism_can_be_missing() -> None:
    for mechanism in Mechanism:
        python = python_for_everyone()
        with Sandbox(SMALL, without={mechanism}, python=python) as sandbox:
            assert mechanism not in sandbox.ground.mechanisms
            assert sandbox.ground.absent[mechanism]
            assert sandbox.run(Program("print('here')")).stdout == "here\n", mechanism


def test_threads_may_share_it(whole: Trial) -> None:
    found: dict[int, str] = {}

    def run(number: int) -> None:
        found[number] = whole.sandbox.run(Program(f"print({number})")).stdout

    threads = [threading.Thread(target=run, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: f"{number}\n" for number in range(6)}


def test_importing_is_light() -> None:
    code = "import sys, unspool.programs; print('torch' in sys.modules, 'numpy' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False False\n"
