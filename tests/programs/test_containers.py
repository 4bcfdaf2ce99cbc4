"""Roots that are none: of a container that may not make namespaces, and of a namespace of users."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.programs.conftest import python_for_everyone

from unspool.programs import Facility, Mechanism, filters

SOURCE = Path(__file__).parents[2] / "src"

# What container engines refuse by default, as far as it matters here.
REFUSE = """
import errno, pyseccomp
made = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
for name in ("unshare", "setns", "mount", "umount2", "pivot_root", "clone3"):
    made.add_rule(pyseccomp.ERRNO(errno.ENOSYS if name == "clone3" else errno.EPERM), name)
made.load()
"""
SCRIPT = """
import json, sys
sys.path.insert(0, sys.argv[1])
from unspool.programs import Limits, Program, Sandbox, judge_python
with Sandbox(Limits(wall_seconds=2), python=sys.argv[2]) as sandbox:
    print(json.dumps({
        "facilities": sorted(sandbox.facilities),
        "mechanisms": sorted(sandbox.ground.mechanisms),
        "absent": {str(name): why for name, why in sandbox.ground.absent.items()},
        "hello": sandbox.run(Program("print('hello')")).stdout,
        "judged": sandbox.run(judge_python("import os; os._exit(0)", "")).status,
        "bomb": sandbox.run(Program("import os\\nwhile True:\\n try: os.fork()\\n except OSError: pass")).status,
        "secret": sandbox.run(Program("print(open('/etc/shadow').read())")).stdout,
    }))
"""


def run(code: str, before: tuple[str, ...] = ()) -> dict:
    command = [*before, sys.executable, "-c", code, str(SOURCE), python_for_everyone()]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_container_without_namespaces() -> None:
    if os.geteuid() != 0 or filters.missing() is not None:
        pytest.skip("needs root, and pyseccomp to act like a container")
    told = run(REFUSE + SCRIPT)
    assert not {name for name in told["mechanisms"] if name.endswith("namespace")}
    assert "Operation not permitted" in told["absent"][Mechanism.MOUNT_NAMESPACE]
    assert (told["hello"], told["judged"], told["secret"]) == ("hello\n", "failed", "")
    assert told["bomb"] in ("timeout", "blocked")
    assert {Mechanism.OWN_USER, Mechanism.SECCOMP} <= set(told["mechanisms"])
    assert {Facility.NO_PRIVILEGES, Facility.PROCESS_LIMIT, Facility.NO_NETWORK} <= set(told["facilities"])
    assert Facility.FOLDER_LIMIT not in told["facilities"]
    if Mechanism.LANDLOCK in told["mechanisms"]:
        assert {Facility.NO_READING, Facility.NO_WRITING} <= set(told["facilities"])


def test_root_of_a_namespace_of_users() -> None:
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-Ur", "true"], capture_output=True).returncode:
        pytest.skip("users may not make namespaces here")
    told = run(SCRIPT, (unshare, "-Ur", "--mount", "--pid", "--fork", "--mount-proc"))
    assert "user numbers are known" in told["absent"][Mechanism.OWN_USER]
    assert (told["hello"], told["judged"], told["secret"]) == ("hello\n", "failed", "")
    assert set(told["facilities"]) >= set(Facility) - {Facility.SYSTEM_CALLS}
