"""The sandbox of a user who is not root: the same promises, by a namespace of users, or by Landlock, or not at all."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from tests.programs.conftest import NAMESPACES, python_for_everyone

from unspool.programs import Facility, Mechanism

SOURCE = Path(__file__).parents[2] / "src"
USER = 54321

SCRIPT = """
import json, os, subprocess, sys
sys.path.insert(0, sys.argv[1])
from unspool.programs import Facility, Limits, Mechanism, Program, Sandbox, judge_python
sandbox = Sandbox(Limits(wall_seconds=2, memory_bytes=200 << 20, processes=10), without=map(Mechanism, sys.argv[2:]))
sentinel = subprocess.Popen(["sleep", "60"])  # of the same user: what a program could kill, if it could
told = {
    "root": os.geteuid() == 0,
    "facilities": sorted(sandbox.facilities),
    "mechanisms": sorted(sandbox.ground.mechanisms),
    "hello": sandbox.run(Program("print('hello')")).stdout,
    "shell": sandbox.run(Program("echo hello", "shell")).stdout,
    "judged": [sandbox.run(judge_python(source, "assert f() == 1")).status for source in
               ("def f(): return 1", "def f(): return 2", "import os; os._exit(0)")],
    "bomb": sandbox.run(Program("import os\\nwhile True:\\n try: os.fork()\\n except OSError: pass")).status,
    "memory": sandbox.run(Program("x = bytearray(10**9)")).status,
    "spoilt": sandbox.run(Program("import os; os.makedirs('d/e'); os.chmod('d', 0); os.chmod('.', 0)")).status,
}
if Facility.NO_SIGNALS in sandbox.facilities:
    told["killing"] = [sandbox.run(Program(f"import os\\nos.kill({victim}, 9)")).status
                       for victim in ("-1", "os.getppid()", sentinel.pid, os.getpid())]
told["sentinel"] = sentinel.poll()
sentinel.kill()
sentinel.wait()
sandbox.close()
told["left"] = os.listdir(os.environ["TMPDIR"])
print(json.dumps(told))
"""


def run(tmp_folder: Path, without: frozenset[Mechanism] = frozenset()) -> dict:
    tmp_folder.chmod(0o1777)
    identity = {"user": USER, "group": USER, "extra_groups": []} if os.geteuid() == 0 else {}
    done = subprocess.run(
        [python_for_everyone(), "-c", SCRIPT, str(SOURCE), *map(str, without)],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "TMPDIR": str(tmp_folder)},
        cwd="/",
        **identity,
    )
    if done.returncode and "ModuleNotFoundError: No module named 'unspool'" in done.stderr:
        pytest.skip("other users cannot read the sources")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def folder(outside: Path) -> Path:
    (outside / "tmp").mkdir()
    return outside / "tmp"


def check(told: dict) -> None:
    assert told["root"] is False
    assert (told["hello"], told["shell"]) == ("hello\n", "hello\n")
    assert told["judged"] == ["passed", "failed", "failed"]
    assert told["bomb"] in ("timeout", "blocked")
    assert (told["memory"], told["spoilt"]) == ("out of memory", "passed")
    assert told["sentinel"] is None
    assert told["left"] == []


def test_with_namespaces(folder: Path) -> None:
    told = run(folder)
    check(told)
    if Mechanism.MOUNT_NAMESPACE not in told["mechanisms"]:
        pytest.skip("users may not make namespaces here")
    assert set(told["facilities"]) >= set(Facility) - {Facility.SYSTEM_CALLS}


def test_without_namespaces(folder: Path) -> None:
    told = run(folder, NAMESPACES)
    check(told)
    assert Facility.FOLDER_LIMIT not in told["facilities"]
    assert Facility.NO_WRITING not in told["facilities"]  # Landlock does not keep an owner from changing rights
    if Mechanism.LANDLOCK in told["mechanisms"]:
        assert Facility.NO_READING in told["facilities"]


def test_without_anything(folder: Path) -> None:
    told = run(folder, frozenset(Mechanism))
    check(told)
    assert not set(told["facilities"]) & {
        Facility.NO_READING,
        Facility.NO_WRITING,
        Facility.NO_SIGNALS,
        Facility.NO_NETWORK,
        Facility.SYSTEM_CALLS,
    }
