"""Parts of the supervisor by themselves, in this process."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from unspool.programs import filters
from unspool.programs.supervisor import folder, frames, tree, users, view
from unspool.programs.supervisor.plan import Job, Plan
from unspool.programs.worker import Supervisor, make_job, make_step


def test_frames() -> None:
    read, write = os.pipe()
    for value in ({"a": [1, None, "ü"]}, [], "x" * 1000):
        frames.write_frame(write, value)
        assert frames.read_frame(read) == value
    os.write(write, b"\x05\0\0\0\0\0\0\0ab")
    os.close(write)
    with pytest.raises(EOFError):
        frames.read_frame(read)
    os.close(read)


def test_jobs_arrive_as_they_were_sent() -> None:
    from unspool.programs.program import Limits

    plan = Plan(frozenset({"seccomp"}), True, own_count=False, filter=b"\x00\xff", names={41: "socket"})
    step = make_step(["/bin/true", "é"], Limits(), environment={"A": "b"}, stdin="in\0", judged=True, flood=2)
    sent = make_job(plan.write(), ["/usr"], {"a/b.py": "x = 1"}, Limits(), [step])
    job = Job.read(json.loads(json.dumps(sent)))
    assert job.plan == plan
    assert (job.readable, job.files) == (("/usr",), {"a/b.py": b"x = 1"})
    assert job.steps[0].argv == ("/bin/true", "é")
    assert (job.steps[0].stdin, job.steps[0].judged, job.steps[0].flood_bytes) == (b"in\0", True, 128 * 1024)


def test_folders_are_deleted_whatever_is_in_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("x")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    inner = Path(folder.make(None))
    here = os.getcwd()
    try:
        os.chdir(inner)
        for _ in range(1500):  # deeper than any path can name
            os.mkdir("deep")
            os.chdir("deep")
        Path("file").write_text("x")
    finally:
        os.chdir(here)
    (inner / "link").symlink_to(kept)
    (inner / "dangling").symlink_to("nowhere")
    os.mkfifo(inner / "fifo")
    (inner / "closed" / "more").mkdir(parents=True)
    (inner / "closed" / "more" / "file").write_text("x")
    (inner / "closed").chmod(0)
    inner.chmod(0)
    folder.remove(str(inner.parent))
    assert list(tmp_path.iterdir()) == [kept]
    assert (kept / "file").read_text() == "x"
    folder.remove(str(inner.parent))


def test_a_link_in_place_of_the_folder_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    outer = Path(folder.make(None)).parent
    target = tmp_path / "target"
    target.mkdir(mode=0o755)
    outer.rename(tmp_path / "elsewhere")
    outer.symlink_to(target)
    folder.remove(str(outer))
    assert not outer.is_symlink()
    assert target.is_dir()
    assert target.stat().st_mode & 0o777 == 0o755


def test_tree_of_processes() -> None:
    source = "import subprocess, sys, time\nif len(sys.argv) > 1:\n    "
    source += "subprocess.Popen([sys.executable, '-c', sys.argv[1]])\nx = bytearray(50 * 2**20)\ntime.sleep(60)"
    parent = subprocess.Popen(
        [sys.executable, "-S", "-c", source, "import time; x = b'1' * 30 * 2**20; time.sleep(60)"]
    )
    try:
        until = time.monotonic() + 10
        while tree.usage([parent.pid, *tree.descendants(parent.pid)]).memory < 82 * 2**20 and time.monotonic() < until:
            time.sleep(0.02)
        below = tree.descendants(parent.pid)
        assert len(below) == 1
        assert parent.pid in tree.descendants(os.getpid())
        used = tree.usage([parent.pid, *below])
        assert 80 * 2**20 < used.memory < 200 * 2**20
        assert tree.shared_memory([parent.pid, *below]) == pytest.approx(used.memory, rel=0.1)
        assert used.cpu > 0
        assert tree.usage([2**22 + 1]).memory == 0
    finally:
        for pid in (*tree.descendants(parent.pid), parent.pid):
            os.kill(pid, 9)
        parent.wait()


def test_paths_below_shown_ones_are_not_shown_twice() -> None:
    assert view._outermost(["/usr", "/usr/lib", "/opt/x/../y", "/usrx", "/"]) == ["/opt/y", "/usr", "/usrx"]


def test_users_of_root_are_nobody_else() -> None:
    import pwd

    chosen = {users.choose() for _ in range(20)}
    assert 0 not in chosen
    assert not chosen & {entry.pw_uid for entry in pwd.getpwall()}


def test_filter_is_a_program() -> None:
    if (reason := filters.missing()) is not None:
        pytest.skip(reason)
    made = filters.compile_filter(listen=True, own_processes=True, own_files=True)
    assert len(made.program) % 8 == 0
    assert {"socket", "ptrace", "unshare", "mount", "bpf"} <= set(made.names.values())
    stricter = filters.compile_filter(listen=False, own_processes=False, own_files=False)
    assert stricter.program != made.program
    assert "kill" in stricter.names.values()


def test_a_supervisor_that_is_given_nonsense_says_so() -> None:
    from unspool.programs import SandboxError

    supervisor = Supervisor()
    with pytest.raises(SandboxError, match=r"ended with code 1: KeyError"):
        supervisor.run({"no": "job"})
    supervisor.stop()


def test_a_supervisor_can_be_stopped_twice() -> None:
    supervisor = Supervisor()
    supervisor.stop()
    supervisor.stop()
