"""Programs that try to get out: to files, sockets, processes, privileges."""

import socket
import subprocess
from pathlib import Path

import pytest
from tests.programs.conftest import Trial

from unspool.programs import Facility, Mechanism, Status


def test_reading_outside(trial: Trial, outside: Path) -> None:
    trial.needs(Facility.NO_READING)
    targets = [outside / "secret.txt", "/etc/shadow", "/etc/machine-id", Path(__file__), Path.home() / ".profile"]
    for target in targets:
        outcome = trial.run(f"print(open({str(target)!r}).read())")
        assert outcome.status in (Status.FAILED, Status.BLOCKED), target
        assert outcome.stdout == ""


def test_reading_outside_through_a_link(trial: Trial, outside: Path) -> None:
    trial.needs(Facility.NO_READING)
    target = str(outside / "secret.txt")
    outcome = trial.run(f"import os\nos.symlink({target!r}, 'link')\nprint(open('link').read())")
    assert not outcome.passed
    assert outcome.stdout == ""


def test_writing_outside(trial: Trial, outside: Path) -> None:
    trial.needs(Facility.NO_WRITING)
    outcome = trial.run(f"open({str(outside / 'written')!r}, 'w').write('x')")
    assert outcome.status in (Status.FAILED, Status.BLOCKED)
    outcome = trial.run(f"open({str(outside / 'secret.txt')!r}, 'a').write('x')")
    assert not outcome.passed
    for call in ("os.unlink", "os.rmdir"):
        assert not trial.run(f"import os\n{call}({str(outside / 'secret.txt')!r})").passed
    assert [path.name for path in outside.iterdir()] == ["secret.txt"]
    assert (outside / "secret.txt").read_text() == "the secret of the outside"


@pytest.mark.parametrize("place", ["/x", "/usr/x", "/etc/x", "/dev/x", "/var/tmp/x", "/dev/shm/../x"])
def test_writing_into_the_system(trial: Trial, place: str) -> None:
    trial.needs(Facility.NO_WRITING)
    assert not trial.run(f"open({place!r}, 'w')").passed
    assert not Path(place).exists()


def test_writing_into_the_interpreter(trial: Trial) -> None:
    trial.needs(Facility.NO_WRITING)
    outcome = trial.run("import os\nopen(os.path.join(os.path.dirname(os.__file__), 'planted.py'), 'w')")
    assert outcome.status is Status.BLOCKED


@pytest.mark.parametrize("kind", ["tcp", "tcp6", "udp", "unix", "abstract"])
def test_sockets(trial: Trial, outside: Path, kind: str) -> None:
    trial.needs(Facility.NO_NETWORK)
    family = {"tcp": socket.AF_INET, "udp": socket.AF_INET, "tcp6": socket.AF_INET6}.get(kind, socket.AF_UNIX)
    way = socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM
    with socket.socket(family, way) as listener:
        if kind == "tcp6" and not socket.has_dualstack_ipv6():
            pytest.skip("no IPv6 here")
        path = {"unix": str(outside / "socket"), "abstract": f"\0{outside}"}.get(kind)
        listener.bind(path or (("::1" if kind == "tcp6" else "127.0.0.1"), 0))
        if kind == "unix":
            (outside / "socket").chmod(0o777)
        if way == socket.SOCK_STREAM:
            listener.listen()
        address = path or listener.getsockname()[:2]
        code = f"import socket\ns = socket.socket({int(family)}, {int(way)})\ns.settimeout(1)\ns.connect({address!r})\n"
        outcome = trial.run(code + "s.send(b'hello')\nprint('sent')")
        assert outcome.stdout == ""
        assert outcome.status in (Status.FAILED, Status.BLOCKED)
        listener.settimeout(0.1)
        with pytest.raises(TimeoutError):
            listener.recv(10) if kind == "udp" else listener.accept()


def test_what_was_refused_is_told(whole: Trial) -> None:
    if Mechanism.SECCOMP_LISTENER not in whole.sandbox.ground.mechanisms:
        pytest.skip("no listener of system calls here")
    outcome = whole.run("import socket\nsocket.socket(socket.AF_INET)")
    assert outcome.status is Status.BLOCKED
    assert outcome.refused == ("socket (AF_INET)",)
    assert "socket (AF_INET)" in outcome.reason
    outcome = whole.run("import socket\ntry:\n    socket.socket()\nexcept OSError:\n    print('never mind')")
    assert (outcome.status, outcome.refused) == (Status.PASSED, ("socket (AF_INET)",))


@pytest.mark.parametrize("victim", ["os.getppid()", "-1", "1", "0", "-os.getpid()"])
@pytest.mark.parametrize("number", [9, 15, 19, 2])
def test_killing_around(trial: Trial, victim: str, number: int) -> None:
    trial.needs(Facility.NO_SIGNALS)
    sentinel = subprocess.Popen(["sleep", "60"])
    try:
        outcome = trial.run(f"import os\nos.kill({victim}, {number})\nprint('alive')", wall_seconds=0.7)
        assert sentinel.poll() is None
        assert outcome.status in Status
        assert trial.run("print('next')").stdout == "next\n"
    finally:
        sentinel.kill()
        sentinel.wait()


def test_killing_every_number(trial: Trial) -> None:
    trial.needs(Facility.NO_SIGNALS)
    with subprocess.Popen(["sleep", "60"]) as sentinel:
        try:
            pid = sentinel.pid
            numbers = f"[n for n in range(2, {pid + 50}) if n != os.getpid()]"
            source = (
                f"import os\nfor n in {numbers}:\n    try:\n        os.kill(n, 9)\n    except OSError:\n        pass"
            )
            trial.run(source, wall_seconds=5)
            assert sentinel.poll() is None
        finally:
            sentinel.kill()


@pytest.mark.parametrize(
    "call",
    [
        "libc.unshare(0x10000000)",
        "libc.unshare(0x00020000)",
        "libc.mount(b'none', b'/tmp', b'tmpfs', 0, b'')",
        "libc.ptrace(16, os.getppid(), 0, 0)",
        "libc.syscall(101, 16, os.getppid(), 0, 0)",
        "libc.chroot(b'.')",
        "libc.setuid(0)",
        "libc.sethostname(b'x', 1)",
        "libc.reboot(0)",
    ],
)
def test_privileges(trial: Trial, call: str) -> None:
    trial.needs(Facility.NO_PRIVILEGES)
    outcome = trial.run(f"import ctypes, os\nlibc = ctypes.CDLL(None)\nprint({call})")
    assert outcome.stdout == "-1\n"


def test_setuid_programs_give_nothing(trial: Trial) -> None:
    trial.needs(Facility.NO_PRIVILEGES)
    source = "import subprocess\nprint(subprocess.run(['su', '-c', 'id'], capture_output=True, input=b'').returncode)"
    assert trial.run(source).stdout not in ("0\n", "")


@pytest.mark.parametrize("name", ["environ", "mem", "maps", "fd/0"])
def test_looking_into_the_keeper(trial: Trial, name: str) -> None:
    trial.needs(Facility.NO_PRIVILEGES)
    outcome = trial.run(f"import os\nprint(len(open(f'/proc/{{os.getppid()}}/{name}', 'rb').read(10)))")
    assert not outcome.passed
    assert outcome.stdout == ""


def test_environment_is_its_own(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", "of the user")
    outcome = trial.run("import os\nprint(sorted(os.environ))")
    assert "A_TOKEN" not in outcome.stdout
    assert "HOME" in outcome.stdout


def test_no_descriptor_is_left_open(trial: Trial) -> None:
    source = """
import os
for number in range(3, 256):
    try:
        print(number, os.fstat(number))
    except OSError:
        pass
"""
    outcome = trial.run(source)
    assert (outcome.status, outcome.stdout) == (Status.PASSED, "")
