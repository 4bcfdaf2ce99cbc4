"""Programs that try to stay, to pretend, and to leave something behind."""

from pathlib import Path

import pytest
from tests.programs.conftest import Trial

from unspool.programs import Status, judge_python

# -- staying ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "before",
    [
        "",
        "import os; os.close(1); os.close(2); os.close(0)",
        "import signal\nfor n in set(signal.Signals) - {9, 19}: signal.signal(n, signal.SIG_IGN)",
        "import os; os.setpgid(0, 0) if os.getpid() != os.getpgid(0) else None",
    ],
)
def test_sleeping(trial: Trial, before: str) -> None:
    outcome = trial.run(f"{before}\nimport time\ntime.sleep(1000)", wall_seconds=0.4)
    assert outcome.status is Status.TIMEOUT
    assert outcome.exit_code is None
    assert 0.4 <= outcome.seconds < 5


def test_stopping_itself(trial: Trial) -> None:
    assert trial.run("import os\nos.kill(os.getpid(), 19)", wall_seconds=0.4).status is Status.TIMEOUT


@pytest.mark.parametrize("end", ["pass", "time.sleep(1000)"])
def test_daemon(trial: Trial, end: str) -> None:
    source = f"""
import os, signal, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        while True:
            time.sleep(1)
    os._exit(0)
os.wait()
print("away")
{end}
"""
    outcome = trial.run(source, wall_seconds=0.6)
    assert outcome.status is (Status.PASSED if end == "pass" else Status.TIMEOUT)


def test_closed_output_passes(trial: Trial) -> None:
    outcome = trial.run("import os\nprint('said', flush=True)\nos.close(1)\nos.close(2)\nos._exit(0)")
    assert (outcome.status, outcome.stdout) == (Status.PASSED, "said\n")


# -- pretending -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "leaving",
    [
        "import os; os._exit(0)",
        "import sys; sys.exit(0)",
        "raise SystemExit",
        "import os\nif os.fork():\n    os._exit(0)\nos._exit(0)",
        "import atexit, os\natexit.register(os._exit, 0)\nraise ValueError",
        "import os, sys\nsys.excepthook = lambda *a: os._exit(0)\nassert False",
        "import threading, os\nthreading.Thread(target=os._exit, args=(0,)).start()\nimport time; time.sleep(5)",
        "import os\nos.execv('/bin/true', ['true'])",
    ],
)
def test_leaving_early_is_no_success(trial: Trial, leaving: str) -> None:
    outcome = trial.sandbox.run(judge_python(leaving, "assert 1 == 2"))
    assert outcome.status is Status.FAILED
    assert not outcome.passed


def test_exit_code_after_the_last_line_counts(trial: Trial) -> None:
    outcome = trial.sandbox.run(judge_python("import atexit, os\natexit.register(os._exit, 3)", "assert True"))
    assert (outcome.status, outcome.exit_code) == (Status.FAILED, 3)


# -- spoiling the folder ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spoiling",
    [
        "import shutil; shutil.rmtree(os.getcwd(), ignore_errors=True)",
        "os.mkdir('d'); open('d/f', 'w'); os.chmod('d', 0); os.chmod('.', 0)",
        "for n in range(3000): os.mkdir('deep'); os.chdir('deep')",
        "os.symlink('.', 'loop'); os.symlink('loop', 'loop2'); os.symlink('/etc', 'etc')",
        "os.mkfifo('fifo'); import socket; socket.socketpair()",
        "open(b'\\xff\\xfe', 'w'); open(' ', 'w'); open('-rf', 'w'); open('a' * 255, 'w')",
        "here = os.getcwd(); os.chdir('/'); os.rename(here, here + '-gone'); os.symlink('/etc', here)",
    ],
)
def test_spoiling_the_folder(trial: Trial, spoiling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = trial.run(f"import os\nprint('ready', flush=True)\n{spoiling}", wall_seconds=10)
    assert outcome.stdout == "ready\n"
    assert "rename" in spoiling or outcome.status is Status.PASSED, outcome


def test_links_are_not_followed_on_deletion(trial: Trial, outside: Path) -> None:
    outcome = trial.run(f"import os\nos.symlink({str(outside)!r}, 'out')\nos.symlink({str(outside)!r}, 'd')")
    assert outcome.passed
    assert (outside / "secret.txt").exists()
