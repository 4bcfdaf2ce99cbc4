"""Names become weights on this machine: fetched under pip's settings, checked, resumed, kept; or an error that helps.

What is about the transfer uses pip and an index on this machine; what is about all else uses :func:`quick`.
"""

import contextlib
import hashlib
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tests.models import gguf_files as files

from unspool.core.errors import DownloadError, InvalidInput, WeightsError
from unspool.models import hub, packages, storage, wheels
from unspool.models.catalogue import CATALOGUE, PackagedModel, Terms, Wheel

# ---------------------------------------------------------------------------------------------------- a local index


@dataclass
class Index:
    """A package index on this machine that can be told to misbehave."""

    url: str = ""
    contents: dict[str, bytes] = field(default_factory=dict)
    cuts: int = 0
    """How many of the next downloads break off after a third of their bytes."""
    delay: float = 0.0
    ranges: list[str | None] = field(default_factory=list)
    """The Range header of each download of a file, in order."""
    served: list[str] = field(default_factory=list)

    def add(self, wheel: Wheel, content: bytes) -> None:
        self.contents[wheel.filename] = content


@pytest.fixture
def index() -> Iterator[Index]:
    index = Index()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            name = self.path.rstrip("/").rsplit("/", 1)[-1]
            if self.path.startswith("/simple/"):
                stem = name.replace("-", "_") + "-"
                links = [f'<a href="/files/{file}">{file}</a>' for file in index.contents if file.startswith(stem)]
                return self.page("".join(links).encode()) if links else self.send_error(404)
            content, wanted = index.contents[name], self.headers.get("Range")
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
            index.ranges.append(wanted)
            index.served.append(name)
            time.sleep(index.delay)
            self.send_response(206 if wanted else 200)
            if wanted:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("ETag", '"1"')
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            if index.cuts:
                index.cuts -= 1
                self.wfile.write(content[start : start + (len(content) - start) // 3])
                self.close_connection = True
            else:
                self.wfile.write(content[start:])
            return None

        def page(self, content: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    index.url = f"http://127.0.0.1:{server.server_port}/simple/"
    yield index
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index: Index) -> Path:
    """A cache and settings of pip and the hub of its own. Returns the cache."""
    for name in [name for name in os.environ if name.startswith("PIP_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    settings = {"CONFIG_FILE": os.devnull, "INDEX_URL": index.url, "NO_CACHE_DIR": "1", "RETRIES": "0"}
    for name, value in settings.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.setenv("UNSPOOL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))
    return tmp_path / "cache"


@pytest.fixture
def quick(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    """The index's files without pip, for tests that need a wheel but do not care how it came."""

    def download(work: Path, tick: Callable[[], None]) -> tuple[int, str]:
        project, version = (work / "wheel.txt").read_text().split()[0].split("==")
        filename = f"{project.replace('-', '_')}-{version}-py3-none-any.whl"
        if filename not in index.contents:
            return 1, f"ERROR: No matching distribution found for {project}=={version}"
        index.served.append(filename)
        (work / "wheels").mkdir()
        (work / "wheels" / filename).write_bytes(index.contents[filename])
        return 0, ""

    monkeypatch.setattr(wheels, "_pip_download", download)


def build_wheel(path: Path, members: dict[str, bytes]) -> bytes:
    """A wheel with these members and the metadata that pip wants to see."""
    project, version = path.name.split("-")[:2]
    metadata = f"Metadata-Version: 2.1\nName: {project}\nVersion: {version}\nRequires-Dist: never-to-be-fetched\n"
    info = f"{project}-{version}.dist-info"
    members = members | {
        f"{info}/METADATA": metadata.encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path.read_bytes()


@cache
def tiny_gguf(folder: Path) -> bytes:
    files.write_tiny_llama(folder / "tiny.gguf", files.Q8_0)
    return (folder / "tiny.gguf").read_bytes()


@pytest.fixture
def wheel_of(tmp_path: Path, index: Index) -> Callable[..., Wheel]:
    """Builds a wheel, puts it on the index, and describes it."""

    def make(project: str, piece: bytes | None, documents: dict[str, bytes] | None = None) -> Wheel:
        package = project.replace("-", "_")
        members = {f"{package}/data/piece": piece} if piece is not None else {}
        texts = {f"{package}/data/{name}": text for name, text in (documents or {}).items()}
        filename = f"{package}-1.0-py3-none-any.whl"
        content = build_wheel(tmp_path / filename, members | texts)
        wheel = Wheel(
            project=project,
            version="1.0",
            filename=filename,
            sha256=hashlib.sha256(content).hexdigest(),
            size=len(content),
            piece=f"{package}/data/piece" if piece is not None else None,
            documents=tuple(texts),
        )
        index.add(wheel, content)
        return wheel

    return make


def in_catalogue(monkeypatch: pytest.MonkeyPatch, model: PackagedModel) -> PackagedModel:
    monkeypatch.setattr(hub, "CATALOGUE", {**CATALOGUE, model.name: model})
    return model


@pytest.fixture
def tiny(
    wheel_of: Callable[..., Wheel], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> PackagedModel:
    """A model in one wheel."""
    content = tiny_gguf(tmp_path_factory.getbasetemp())
    wheel = wheel_of("tiny-model", content, {"LICENSE": b"do as you like"})
    return in_catalogue(
        monkeypatch,
        PackagedModel(
            name="tiny-1m",
            description="for tests",
            license="MIT",
            gguf="tiny.gguf",
            gguf_sha256=hashlib.sha256(content).hexdigest(),
            gguf_size=len(content),
            parameters=80_000,
            wheels=(wheel,),
            chat=False,
        ),
    )


@pytest.fixture
def tiny_in_parts(
    wheel_of: Callable[..., Wheel], tiny: PackagedModel, tmp_path_factory: pytest.TempPathFactory, monkeypatch: Any
) -> PackagedModel:
    """The same model in two pieces, with terms in a wheel of their own."""
    content = tiny_gguf(tmp_path_factory.getbasetemp())
    parts = (
        wheel_of("parted", None, {"TERMS.html": b"<p>be kind</p>"}),
        wheel_of("parted-part1", content[:100_000]),
        wheel_of("parted-part2", content[100_000:]),
    )
    terms = Terms(name="Kindness Terms", url="https://example.org/terms", text="Be kind.", document="TERMS.html")
    return in_catalogue(monkeypatch, replace(tiny, name="tiny-parts", wheels=parts, terms=terms))


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def only_locks_in(cache: Path) -> bool:
    return all(name.startswith("locks/") for name in files_in(cache))


# -------------------------------------------------------------------------------------------------- packaged models


def test_a_packaged_model_is_fetched_once_and_loads(tiny: PackagedModel, alone: Path, index: Index) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert not hub.is_cached("tiny-1m")
    source = hub.resolve("tiny-1m", progress=False)

    assert (source.kind, source.license, source.origin) == ("packaged", "MIT", "PyPI: tiny-model==1.0")
    assert source.gguf == alone / "packaged" / "tiny-1m" / "tiny.gguf"
    assert hashlib.sha256(source.gguf.read_bytes()).hexdigest() == tiny.gguf_sha256
    assert (source.gguf.parent / "LICENSE").read_bytes() == b"do as you like"
    assert Path(source.path).parent == alone / "converted"
    model = AutoModelForCausalLM.from_pretrained(source.path)
    assert model.num_parameters() > 0
    assert AutoTokenizer.from_pretrained(source.path).decode([3, 4])
    assert not any(name.startswith("downloads/") for name in files_in(alone))

    assert hub.is_cached("tiny-1m")
    assert hub.resolve("tiny-1m", progress=False) == source
    assert hub.pull("tiny-1m", progress=False) == Path(source.path)
    assert index.served == [tiny.wheels[0].filename], "one wheel, once, and none of its dependencies"


@pytest.mark.usefixtures("quick")
def test_a_model_that_is_there_needs_neither_network_nor_torch(
    tiny: PackagedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = hub.pull("tiny-1m", progress=False)
    program = f"""
        import sys
        from dataclasses import replace
        from unspool.models import hub
        from unspool.models.catalogue import CATALOGUE
        model = replace(CATALOGUE["smollm2-135m"], name="tiny-1m", gguf_sha256={tiny.gguf_sha256!r})
        hub.CATALOGUE = {{"tiny-1m": model}}
        assert hub.resolve("tiny-1m").path == {str(path)!r}
        assert "torch" not in sys.modules and "transformers" not in sys.modules
    """
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], check=True, env={**os.environ, "PIP_NO_INDEX": "1"}
    )


def test_a_connection_that_breaks_is_resumed_where_it_broke(tiny: PackagedModel, index: Index) -> None:
    index.cuts = 2
    path = hub.gguf_path("tiny-1m", progress=False)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == tiny.gguf_sha256
    first, second, third = index.ranges
    third_of_it = tiny.wheels[0].size // 3
    assert first is None
    assert second == f"bytes={third_of_it}-"
    assert third is not None
    assert int(third[6:-1]) > third_of_it


def test_a_connection_that_keeps_breaking(tiny: PackagedModel, index: Index, alone: Path) -> None:
    index.cuts = 99
    with pytest.raises(DownloadError, match=r"tiny_model-1\.0-py3-none-any\.whl could not be downloaded: .*broke off"):
        hub.gguf_path("tiny-1m", progress=False)
    assert only_locks_in(alone)


@pytest.mark.usefixtures("quick")
def test_a_download_in_several_wheels_goes_on_where_it_stopped(
    tiny_in_parts: PackagedModel, index: Index, alone: Path
) -> None:
    *_, last = tiny_in_parts.wheels
    kept = index.contents.pop(last.filename)
    with pytest.raises(DownloadError, match=r"parted_part2.* does not find it"):
        hub.gguf_path("tiny-parts", progress=False)
    assert not hub.is_cached("tiny-parts")

    index.contents[last.filename] = kept
    hub.gguf_path("tiny-parts", progress=False)
    assert index.served == [wheel.filename for wheel in tiny_in_parts.wheels], "each wheel once"
    assert not (alone / "downloads" / "tiny-parts").exists()


def test_another_file_under_the_same_name_is_refused(tiny: PackagedModel, index: Index, alone: Path) -> None:
    name = tiny.wheels[0].filename
    content = bytearray(index.contents[name])
    content[100_000] ^= 1
    index.contents[name] = bytes(content)
    wrong = hashlib.sha256(index.contents[name]).hexdigest()
    with pytest.raises(DownloadError, match=f"SHA-256 {wrong} where {tiny.wheels[0].sha256} was expected"):
        hub.gguf_path("tiny-1m", progress=False)
    assert only_locks_in(alone)


@pytest.mark.usefixtures("quick")
def test_a_catalogue_that_is_wrong_about_the_file(
    tiny: PackagedModel, monkeypatch: pytest.MonkeyPatch, alone: Path
) -> None:
    in_catalogue(monkeypatch, replace(tiny, gguf_sha256="0" * 64))
    with pytest.raises(WeightsError, match=f"SHA-256 {tiny.gguf_sha256} where 0000"):
        hub.gguf_path("tiny-1m", progress=False)
    assert not any("packaged" in name for name in files_in(alone))


def test_no_network(tiny: PackagedModel, monkeypatch: pytest.MonkeyPatch, alone: Path) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple/")
    with pytest.raises(DownloadError) as caught:
        hub.resolve("tiny-1m", progress=False)
    told = str(caught.value)
    assert "index cannot be reached (http://127.0.0.1:9/simple/tiny-model/: " in told
    assert "refused" in told
    for way in (str(alone), "UNSPOOL_CACHE", "PIP_FIND_LINKS", "PIP_INDEX_URL", ".gguf", tiny.wheels[0].filename):
        assert way in told
    assert only_locks_in(alone)


def test_a_folder_of_wheels_needs_no_network(
    tiny: PackagedModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, index: Index
) -> None:
    (tmp_path / "wheels").mkdir()
    shutil.copy(tmp_path / tiny.wheels[0].filename, tmp_path / "wheels")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    assert hub.gguf_path("tiny-1m", progress=False).stat().st_size == tiny.gguf_size
    assert index.served == []


def test_settings_of_pip_that_would_disturb_do_not(
    tiny: PackagedModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "more.txt").write_text("never-to-be-fetched\n")
    for name, value in {
        "REQUIREMENT": tmp_path / "more.txt",
        "REQUIRE_VIRTUALENV": 1,
        "QUIET": 3,
        "NO_BINARY": ":all:",
    }.items():
        monkeypatch.setenv(f"PIP_{name}", str(value))
    assert hub.gguf_path("tiny-1m", progress=False).is_file()


def test_without_pip(tiny: PackagedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DownloadError, match=r"pip, which is not installed .*ensurepip"):
        hub.gguf_path("tiny-1m", progress=False)


def test_the_bar_counts_bytes(tiny: PackagedModel, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    index.delay = 0.5
    seen: list[int] = []

    @contextlib.contextmanager
    def bar(title: str, total: int, shown: bool) -> Iterator[Callable[[int], None]]:
        assert (title, total, shown) == ("tiny-1m", tiny.wheels[0].size, True)
        yield seen.append

    monkeypatch.setattr(wheels, "bar", bar)
    hub.gguf_path("tiny-1m", progress=True)
    assert seen == sorted(seen)
    assert len(seen) > 3


# ----------------------------------------------------------------------------------------------------------- terms


@pytest.mark.usefixtures("quick")
def test_terms_are_printed_before_the_weights_are_fetched(
    tiny_in_parts: PackagedModel, index: Index, capsys: pytest.CaptureFixture[str], alone: Path
) -> None:
    index.contents.pop(tiny_in_parts.wheels[1].filename)
    with pytest.raises(DownloadError):
        hub.gguf_path("tiny-parts", progress=False)
    shown = capsys.readouterr()
    full_text = alone / "terms" / "tiny-parts" / "TERMS.html"
    assert full_text.read_bytes() == b"<p>be kind</p>"
    for part in ("Kindness Terms", "https://example.org/terms", "Be kind.", str(full_text)):
        assert part in shown.err
    assert shown.out == ""


@pytest.mark.usefixtures("quick")
def test_terms_that_are_not_accepted(tiny_in_parts: PackagedModel, index: Index) -> None:
    asked: list[str] = []

    def refuse(model: PackagedModel) -> bool:
        asked.append(hub.terms_notice(model))
        assert hub.terms_path(model).is_file()
        return False

    with pytest.raises(DownloadError, match="terms of tiny-parts were not accepted"):
        hub.resolve("tiny-parts", progress=False, accept_terms=refuse)
    assert len(asked) == 1
    assert "Kindness Terms" in asked[0]
    assert index.served == [tiny_in_parts.wheels[0].filename]


@pytest.mark.usefixtures("quick")
def test_terms_are_asked_once(tiny_in_parts: PackagedModel, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[str] = []

    def accept(model: PackagedModel) -> bool:
        asked.append(model.name)
        return True

    hub.gguf_path("tiny-parts", progress=False, accept_terms=accept)
    hub.gguf_path("tiny-parts", progress=False, accept_terms=accept)
    assert asked == ["tiny-parts"]
    assert capsys.readouterr().err == ""
    assert hub.terms_notice(CATALOGUE["smollm2-135m"]) == ""


# ------------------------------------------------------------------------------------------------------- full disks


class Full:
    """Takes the place of what every block of a file passes through."""

    def update(self, block: bytes) -> None:
        raise OSError(28, "No space left on device")


def test_too_little_room_is_told_before_the_first_byte(
    tiny: PackagedModel, index: Index, monkeypatch: pytest.MonkeyPatch, alone: Path
) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda path: usage._replace(free=500_000))
    with pytest.raises(DownloadError, match=r"No room on the disk .* MB are needed, 0 MB are free|1 MB are free"):
        hub.resolve("tiny-1m", progress=False)
    assert index.served == []
    assert only_locks_in(alone)


def test_a_disk_that_fills_up_under_pip(tiny: PackagedModel, monkeypatch: pytest.MonkeyPatch, alone: Path) -> None:
    """pip's own message is what there is to go by."""
    said = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n"
    monkeypatch.setattr(wheels, "_pip_download", lambda work, tick: (1, said))
    with pytest.raises(DownloadError, match=r"No room on the disk for .*downloads.*UNSPOOL_CACHE"):
        hub.gguf_path("tiny-1m", progress=False)
    assert only_locks_in(alone)


@pytest.mark.usefixtures("quick")
def test_a_disk_that_fills_up_while_unpacking(
    tiny: PackagedModel, monkeypatch: pytest.MonkeyPatch, alone: Path
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(packages.hashlib, "sha256", lambda: Full())
        with pytest.raises(DownloadError, match=r"No room on the disk for .*packaged"):
            hub.gguf_path("tiny-1m", progress=False)
    left = [name for name in files_in(alone) if not name.startswith("locks/")]
    assert left == [f"downloads/tiny-1m/{tiny.wheels[0].filename}"], "the finished wheel is kept, and nothing else"
    assert not hub.is_cached("tiny-1m")
    assert hub.gguf_path("tiny-1m", progress=False).is_file()


def test_a_cache_that_cannot_be_written_to(
    tiny: PackagedModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("UNSPOOL_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(DownloadError, match=r"file/cache.* cannot be written to: .*UNSPOOL_CACHE"):
        hub.gguf_path("tiny-1m", progress=False)


# ------------------------------------------------------------------------------------- several processes, killed ones


def child(model: PackagedModel, action: str) -> subprocess.Popen[str]:
    program = f"""
        from unspool.models import hub
        from unspool.models.catalogue import *
        hub.CATALOGUE = {{"tiny-1m": {model!r}}}
        {action}
    """
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True)


def test_two_processes_fetch_a_model_once(tiny: PackagedModel, index: Index) -> None:
    index.delay = 0.5
    both = [child(tiny, "print(hub.gguf_path('tiny-1m', progress=False))") for _ in range(2)]
    first, second = (process.communicate(timeout=60)[0] for process in both)
    assert first == second
    assert Path(first.strip()).stat().st_size == tiny.gguf_size
    assert index.served == [tiny.wheels[0].filename]


def test_what_a_killed_process_leaves_is_not_taken_for_whole(tiny: PackagedModel, index: Index, alone: Path) -> None:
    index.delay = 30
    process = child(tiny, "hub.gguf_path('tiny-1m', progress=False)")
    deadline = time.monotonic() + 30
    while not index.served and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.communicate()
    assert index.served, "the download had not begun"
    assert list((alone / "downloads" / "tiny-1m").glob(".*"))
    assert not hub.is_cached("tiny-1m")

    index.delay = 0
    leftover = alone / "packaged" / ".tiny-1m.0123abcd"
    leftover.mkdir(parents=True)
    assert hub.gguf_path("tiny-1m", progress=False).stat().st_size == tiny.gguf_size
    assert not leftover.exists()
    assert not (alone / "downloads" / "tiny-1m").exists()


def test_an_interrupted_download_stops_pip(tiny: PackagedModel, monkeypatch: pytest.MonkeyPatch, alone: Path) -> None:
    started: list[subprocess.Popen[str]] = []
    real = subprocess.Popen

    def popen(*args: Any, **kwargs: Any) -> subprocess.Popen[str]:
        started.append(real(*args, **kwargs))
        return started[-1]

    @contextlib.contextmanager
    def bar(*_: Any) -> Iterator[Callable[[int], None]]:
        def interrupt(count: int) -> None:
            raise KeyboardInterrupt

        yield interrupt

    monkeypatch.setattr(wheels.subprocess, "Popen", popen)
    monkeypatch.setattr(wheels, "bar", bar)
    with pytest.raises(KeyboardInterrupt):
        hub.gguf_path("tiny-1m", progress=False)
    assert started[0].poll() is not None
    assert only_locks_in(alone)


# ---------------------------------------------------------------------------------------------------- files and folders


@pytest.fixture
def own_gguf(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path / "my model.gguf"
    path.write_bytes(tiny_gguf(tmp_path_factory.getbasetemp()))
    return path


def test_a_gguf_file_is_converted_once(own_gguf: Path, alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub.is_cached(own_gguf)
    source = hub.resolve(own_gguf, progress=False)
    assert (source.kind, source.license, source.gguf) == ("gguf", "mit", own_gguf)
    assert Path(source.path).name.startswith("my-model-")
    monkeypatch.setattr(hub.gguf, "convert", lambda *args, **kwargs: pytest.fail("converted again"))
    assert hub.resolve(str(own_gguf), progress=False) == replace(source, name=str(own_gguf))

    with pytest.raises(pytest.fail.Exception):
        hub.resolve(own_gguf, dtype="bfloat16", progress=False)


def test_another_file_of_the_same_name_is_another_model(own_gguf: Path) -> None:
    first = hub.pull(own_gguf, progress=False)
    state = own_gguf.stat()
    files.write_tiny_llama(own_gguf, files.Q4_1)
    os.utime(own_gguf, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert hub.pull(own_gguf, progress=False) != first


def test_a_copy_of_a_file_is_the_same_model(own_gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    copy = shutil.copy(own_gguf, tmp_path / "elsewhere" / own_gguf.name)
    assert hub.pull(copy, progress=False) == hub.pull(own_gguf, progress=False)


def test_a_damaged_gguf_file(own_gguf: Path, alone: Path) -> None:
    own_gguf.write_bytes(own_gguf.read_bytes()[:-5_000])
    with pytest.raises(WeightsError, match=r"my model\.gguf is cut short"):
        hub.resolve(own_gguf, progress=False)
    assert not (alone / "converted").exists() or not any((alone / "converted").iterdir())


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(WeightsError, match=r"notes\.txt is not a GGUF file"):
        hub.resolve(tmp_path / "notes.txt", progress=False)


def test_a_converted_folder_that_was_damaged_is_made_again(own_gguf: Path) -> None:
    folder = hub.pull(own_gguf, progress=False)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:1000])
    assert hub.pull(own_gguf, progress=False) == folder
    assert (folder / "model.safetensors").read_bytes() == whole


@pytest.fixture
def model_folder(own_gguf: Path, tmp_path: Path) -> Path:
    from unspool.models import gguf

    folder = gguf.convert(own_gguf, tmp_path / "folder")
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# A model\n")
    return folder


def test_a_folder(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = hub.resolve(model_folder, progress=False)
    assert (source.kind, source.path, source.license) == ("folder", str(model_folder), "apache-2.0")
    monkeypatch.chdir(model_folder.parent)
    assert hub.resolve("folder", progress=False).path == str(model_folder)
    assert hub.is_cached("folder")


INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    ("damage", "error", "match"),
    [
        (lambda folder: (folder / "config.json").unlink(), InvalidInput, "no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), WeightsError, r"config\.json .* not readable"),
        (lambda folder: (folder / "model.safetensors").unlink(), WeightsError, "holds no weights"),
        (
            lambda folder: os.truncate(folder / "model.safetensors", 5000),
            WeightsError,
            r"model\.safetensors is damaged or cut short",
        ),
        (
            lambda folder: (folder / "model.safetensors.index.json").write_text(
                '{"weight_map": {"a": "b.safetensors"}}'
            ),
            WeightsError,
            r"lacks b\.safetensors",
        ),
    ],
    ids=["no config", "config", "no weights", "cut short", "missing shard"],
)
def test_a_damaged_folder(damage: Callable[[Path], Any], error: Any, match: str, model_folder: Path) -> None:
    damage(model_folder)
    with pytest.raises(error, match=match) as caught:
        hub.resolve(model_folder, progress=False)
    assert str(model_folder) in str(caught.value)


def test_a_folder_of_gguf_files_names_them(own_gguf: Path) -> None:
    with pytest.raises(InvalidInput, match=r"no config\.json.*my model\.gguf"):
        hub.resolve(own_gguf.parent, progress=False)


# ---------------------------------------------------------------------------------------------------------- other names


def test_a_misspelled_name_is_answered_with_the_right_one() -> None:
    with pytest.raises(InvalidInput, match=r"no model 'smolm2'.*Did you mean smollm2-135m\?.*gemma3-270m"):
        hub.resolve("smolm2")
    with pytest.raises(InvalidInput) as caught:
        hub.resolve("something-else-entirely")
    assert "Did you mean" not in str(caught.value)


@pytest.mark.parametrize("name", ["./none", "~/none", "/no/such/folder", "none.gguf", "a/b/c", "C:\\models\\x"])
def test_a_path_that_is_not_there(name: str) -> None:
    with pytest.raises(InvalidInput, match=r"no file or folder .*What works: .*smollm2-135m"):
        hub.resolve(name)


@pytest.mark.parametrize("name", ["org/model", "org/model@main", "org/model:file.gguf"])
def test_an_id_of_the_hub_without_the_hub(name: str) -> None:
    with pytest.raises(DownloadError, match=r"hub cannot be reached.*HF_HOME.*smollm2-135m") as caught:
        hub.resolve(name, progress=False)
    assert name in str(caught.value)
    assert not hub.is_cached(name)


def test_an_id_that_cannot_be_one() -> None:
    with pytest.raises(InvalidInput, match="not an id of the Hugging Face hub"):
        hub.resolve("a b/-c", progress=False)


def put_in_hub_cache(tmp_path: Path, folder: Path, repository: str) -> Path:
    place = tmp_path / "hf" / f"models--{repository.replace('/', '--')}"
    snapshot = place / "snapshots" / "abc"
    shutil.copytree(folder, snapshot)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("abc")
    return snapshot


def test_an_id_that_is_in_the_hub_cache_needs_no_hub(model_folder: Path, tmp_path: Path) -> None:
    snapshot = put_in_hub_cache(tmp_path, model_folder, "org/model")
    source = hub.resolve("org/model", progress=False)
    assert (source.kind, source.path, source.license) == ("hub", str(snapshot), "apache-2.0")
    assert hub.is_cached("org/model")


def test_a_short_id_that_is_in_the_hub_cache(model_folder: Path, tmp_path: Path) -> None:
    snapshot = put_in_hub_cache(tmp_path, model_folder, "gpt2")
    assert hub.resolve("gpt2", progress=False).path == str(snapshot)


def test_a_gguf_file_of_the_hub(own_gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "repository").mkdir()
    shutil.copy(own_gguf, tmp_path / "repository" / "tiny.gguf")
    put_in_hub_cache(tmp_path, tmp_path / "repository", "org/model")
    source = hub.resolve("org/model:tiny.gguf", progress=False)
    assert (source.kind, source.origin) == ("hub", "https://huggingface.co/org/model")
    assert (Path(source.path) / "config.json").is_file()


def test_a_part_of_a_model_in_the_hub_cache(model_folder: Path, tmp_path: Path) -> None:
    (put_in_hub_cache(tmp_path, model_folder, "org/model") / "model.safetensors").unlink()
    with pytest.raises(DownloadError, match="came without weights"):
        hub.resolve("org/model", progress=False)


def test_an_unknown_dtype_is_told_before_anything_is_fetched(tiny: PackagedModel, index: Index) -> None:
    with pytest.raises(InvalidInput, match="dtype 'fp7'"):
        hub.resolve("tiny-1m", dtype="fp7", progress=False)
    assert index.served == []


# ------------------------------------------------------------------------------------------------------------- removal


@pytest.mark.usefixtures("quick")
def test_removal_frees_everything_of_a_model(tiny: PackagedModel, alone: Path) -> None:
    hub.pull("tiny-1m", progress=False)
    held = sum(path.stat().st_size for path in alone.rglob("*") if path.is_file())
    assert hub.remove("tiny-1m") == held
    assert only_locks_in(alone)
    assert not hub.is_cached("tiny-1m")
    assert hub.remove("tiny-1m") == 0


def test_removal_of_a_gguf_file_keeps_the_file(own_gguf: Path) -> None:
    folder = hub.pull(own_gguf, progress=False)
    assert hub.remove(own_gguf) > 0
    assert not folder.exists()
    assert own_gguf.is_file()


def test_removal_of_what_is_not_ours() -> None:
    with pytest.raises(InvalidInput, match="hf cache rm"):
        hub.remove("org/model")
    with pytest.raises(InvalidInput, match="Did you mean"):
        hub.remove("smollm2")


# -------------------------------------------------------------------------------------------------------- the catalogue


def test_the_cache_is_where_it_is_said_to_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert hub.cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("UNSPOOL_CACHE")
    assert hub.cache_dir().name == "unspool"


@pytest.mark.parametrize("model", CATALOGUE.values(), ids=CATALOGUE)
def test_the_catalogue_is_pinned(model: PackagedModel) -> None:
    assert CATALOGUE[model.name] is model
    checksums = [model.gguf_sha256, *(wheel.sha256 for wheel in model.wheels)]
    assert all(re.fullmatch(r"[0-9a-f]{64}", checksum) for checksum in checksums)
    assert len(set(checksums)) == len(checksums)
    for wheel in model.wheels:
        assert wheel.filename == f"{wheel.project.replace('-', '_')}-{wheel.version}-py3-none-any.whl"
    assert any(wheel.piece for wheel in model.wheels)
    if model.terms is not None:
        assert any(document.endswith("/" + model.terms.document) for document in model.wheels[0].documents)
    assert model.download_size > model.gguf_size * 0.9


@pytest.mark.usefixtures("quick")
def test_package_notes_that_are_not_ours_are_not_trusted(tiny: PackagedModel, alone: Path) -> None:
    path = hub.gguf_path("tiny-1m", progress=False)
    assert packages.is_unpacked(tiny)
    for notes in ("", "[]", json.dumps({"sha256": "0" * 64})):
        (path.parent / "package.json").write_text(notes)
        assert not packages.is_unpacked(tiny)
