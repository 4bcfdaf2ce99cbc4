"""Programs that try to take everything: processes, memory, files, output, time."""

import threading
import time
from dataclasses import replace

import pytest
from tests.programs.conftest import SMALL, Trial, processes

from unspool.programs import Facility, Mechanism, Program, Status


@pytest.mark.parametrize("getting_away", ["", "os.setsid()", "os.setpgid(0, 0)"])
def test_fork_bomb(trial: Trial, getting_away: str) -> None:
    trial.needs(Facility.PROCESS_LIMIT)
    source = f"import os\nwhile True:\n    try:\n        if os.fork() == 0:\n            {getting_away}\n"
    source += "            pass\n    except OSError:\n        pass\n"
    mark, most = "bomb-of-forks", 0
    done = threading.Event()

    def look() -> None:
        nonlocal most
        while not done.is_set():
            most = max(most, len(processes(mark)))
            time.sleep(0.01)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        outcome = trial.sandbox.run(Program(source, arguments=(mark,)), replace(SMALL, wall_seconds=1.0))
    finally:
        done.set()
        watcher.join()
    assert outcome.status in (Status.TIMEOUT, Status.BLOCKED)
    assert not processes(mark)
    assert 0 < most <= (4 * SMALL.processes if Mechanism.USER_NAMESPACE in trial.sandbox.ground.mechanisms else 1000)


def test_threads_bomb(trial: Trial) -> None:
    trial.needs(Facility.PROCESS_LIMIT)
    start = "threading.Thread(target=time.sleep, args=(30,), daemon=True).start()"
    outcome = trial.run(f"import threading, time\nfor _ in range(500):\n    {start}")
    assert outcome.status is Status.BLOCKED
    assert "threads" in outcome.reason


def test_memory_at_once(trial: Trial) -> None:
    outcome = trial.run("x = bytearray(10**10)")
    assert outcome.status is Status.OUT_OF_MEMORY
    assert "256 MiB" in outcome.reason


def test_memory_bit_by_bit(trial: Trial) -> None:
    outcome = trial.run("x = []\nwhile True:\n    x.append(bytes(10**6))", wall_seconds=10)
    assert outcome.status is Status.OUT_OF_MEMORY
    assert outcome.peak_bytes < 2 * SMALL.memory_bytes


def test_memory_swallowed_error(trial: Trial) -> None:
    source = "x = []\nwhile True:\n    try:\n        x.append(bytes(10**6))\n    except MemoryError:\n        pass"
    assert trial.run(source, wall_seconds=1).status is Status.TIMEOUT


@pytest.mark.parametrize("kind", ["bytearray(60 * 2**20)", "mmap.mmap(-1, 60 * 2**20)"])
def test_memory_of_many_processes(trial: Trial, kind: str) -> None:
    source = f"""
import mmap, os, time
for _ in range(8):
    if os.fork() == 0:
        block = {kind}
        for place in range(0, len(block), 4096):
            block[place] = 1
        time.sleep(30)
time.sleep(30)
"""
    outcome = trial.run(source, wall_seconds=10)
    assert outcome.status is Status.OUT_OF_MEMORY
    assert outcome.seconds < 8


def test_forks_share_their_memory(trial: Trial) -> None:
    """Pages that children have in common with their parent are not counted once for each."""
    source = """
import os
block = bytearray(os.urandom(1)) * (100 * 2**20)
children = []
for _ in range(6):
    pid = os.fork()
    if pid == 0:
        import time; time.sleep(0.5); os._exit(0)
    children.append(pid)
print([os.waitpid(pid, 0)[1] for pid in children])
"""
    assert trial.run(source, wall_seconds=10).stdout == "[0, 0, 0, 0, 0, 0]\n"


def test_memory_files(trial: Trial) -> None:
    trial.needs(Facility.SYSTEM_CALLS)
    outcome = trial.run("import os\nprint(os.memfd_create('x'))")
    assert "Function not implemented" in outcome.stderr


@pytest.mark.parametrize("stream", [1, 2])
def test_infinite_output(trial: Trial, stream: int) -> None:
    outcome = trial.run(f"import os\nwhile True:\n    os.write({stream}, b'x' * 5000)", output_bytes=10_000)
    assert outcome.truncated
    assert outcome.status in (Status.BLOCKED, Status.TIMEOUT)
    text = outcome.stdout if stream == 1 else outcome.stderr
    assert text == "x" * 10_000


def test_much_output_passes_cut(trial: Trial) -> None:
    outcome = trial.run("print('y' * 100_000)", output_bytes=1000)
    assert (outcome.status, outcome.truncated, len(outcome.stdout)) == (Status.PASSED, True, 1000)


@pytest.mark.parametrize("writing", ["file.write(b'x' * 2**26)", "file.truncate(2**40)"])
def test_huge_file(trial: Trial, writing: str) -> None:
    outcome = trial.run(f"with open('big', 'wb') as file:\n    {writing}")
    assert outcome.status is Status.BLOCKED
    assert "too large" in outcome.reason


@pytest.mark.parametrize(
    "filling",
    [
        "open(f'f{n}', 'w').close()",
        "os.mkdir(f'd{n}')",
        "os.symlink('/', f'l{n}')",
        "open(f'b{n}', 'wb').write(bytes(2**19))",
    ],
)
def test_full_folder(trial: Trial, filling: str) -> None:
    trial.needs(Facility.FOLDER_LIMIT)
    outcome = trial.run(
        f"import os\nfor n in range(10**6):\n    {filling}", folder_files=500, folder_bytes=1 << 23, wall_seconds=10
    )
    assert outcome.status is Status.BLOCKED
    assert "full" in outcome.reason


def test_zombies(trial: Trial) -> None:
    trial.needs(Facility.PROCESS_LIMIT)
    outcome = trial.run("import os\nfor _ in range(1000):\n    if os.fork() == 0:\n        os._exit(0)")
    assert outcome.status is Status.BLOCKED
    assert "processes" in outcome.reason


def test_processor_time_of_many(trial: Trial) -> None:
    source = "import os\nfor _ in range(3):\n    os.fork()\nwhile True:\n    pass"
    outcome = trial.run(source, wall_seconds=20, cpu_seconds=1)
    assert outcome.status is Status.TIMEOUT
    assert "processor time" in outcome.reason
    assert outcome.cpu_seconds < 4


def test_limits_cannot_be_raised(trial: Trial) -> None:
    source = """
import resource
for limit in (resource.RLIMIT_DATA, resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC, resource.RLIMIT_CPU):
    try:
        resource.setrlimit(limit, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        print("raised", limit)
    except (ValueError, PermissionError):
        pass
"""
    outcome = trial.run(source)
    assert (outcome.status, outcome.stdout) == (Status.PASSED, "")
