"""The languages that programs can be written in, each through its real compiler or interpreter."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from unspool.core.errors import InvalidInput
from unspool.programs.ground import SYSTEM
from unspool.programs.program import MIB, LanguageMissing, SandboxError

_PATH = "/usr/local/bin:/usr/bin:/bin"
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
ENVIRONMENT: Mapping[str, str] = {
    "PATH": _PATH,
    "LANG": "C.UTF-8",
    **dict.fromkeys(_ONE_THREAD, "1"),  # threads count against the limit of processes
}

# Executed instead of the main file: gives it the imports of its own folder, which `-I` takes away, tracebacks that
# begin in it, and, if it is judged, hands the secret over when the last line is done. Nothing of the driver stays in
# reach by name; whoever goes looking for it finds it.
_DRIVER = """
def _run():
    import os, sys
    here = os.getcwd()
    sys.path.insert(0, here)
    path = os.path.join(here, "main.py")
    judged = sys.argv[1] == "judged"
    ends = [int(word) for word in sys.argv[-2:]] if judged else []
    sys.argv = [path, *(sys.argv[2:-2] if judged else sys.argv[2:])]
    read, write = os.read, os.write
    main = sys.modules["__main__"].__dict__
    main.pop("_run")
    main["__file__"] = path
    def trimmed(kind, value, trace, show=sys.excepthook):
        while trace is not None and trace.tb_frame.f_code.co_filename == "<string>":
            trace = trace.tb_next
        show(kind, value.with_traceback(trace), trace)
    sys.excepthook = trimmed
    with open(path, "rb") as file:
        code = compile(file.read(), path, "exec")
    exec(code, main)
    if judged:
        write(ends[1], read(ends[0], 1024))
_run()
"""


_HOME = os.path.expanduser("~")  # or "~" where that is not known, which is no path of anything


@dataclass(frozen=True)
class Language:
    """How programs of a language are made and run. ``{name}`` stands for the path of a tool.

    Attributes:
        tools: programs that it takes; of alternatives, separated by ``|``, the first that is there.
        install: what to install, for the message.
        compiling, running: command lines, in the folder of the program; `compiling` is empty for interpreters.
        reserves: the runtime reserves far more addresses than it uses, so that they cannot be limited.
        complaints: what the runtime says on standard error when memory is refused.
    """

    name: str
    file: str
    tools: tuple[str, ...]
    install: str
    running: tuple[str, ...]
    compiling: tuple[str, ...] = ()
    reserves: bool = False
    complaints: tuple[str, ...] = ()


_LANGUAGES = {
    language.name: language
    for language in (
        Language(
            "python",
            "main.py",
            (),
            "Python",
            ("{python}", "-I", "-B", "-c", _DRIVER, "{mode}"),
            complaints=("MemoryError",),
        ),
        Language(
            "shell",
            "main.sh",
            ("bash|sh",),
            "bash",
            ("{bash}", "main.sh"),
            complaints=("Cannot allocate memory", "xmalloc: cannot allocate", "memory exhausted"),
        ),
        Language(
            "c",
            "main.c",
            ("cc|gcc|clang",),
            "a C compiler (Debian and Ubuntu: apt install gcc libc6-dev; Fedora: dnf install gcc)",
            ("./main",),
            ("{cc}", "-std=gnu17", "-O1", "-w", "-o", "main", "main.c", "-lm", "-pthread"),
            complaints=("Cannot allocate memory",),
        ),
        Language(
            "rust",
            "main.rs",
            ("rustc", "cc|gcc|clang"),
            "Rust and a linker (https://rustup.rs, or apt install rustc; and gcc)",
            ("./main",),
            ("{rustc}", "--edition", "2021", "-C", "opt-level=1", "-A", "warnings", "-o", "main", "main.rs"),
            complaints=("memory allocation of",),
        ),
        Language(
            "javascript",
            "main.js",
            ("node|nodejs",),
            "Node.js (https://nodejs.org, or apt install nodejs)",
            ("{node}", "--max-old-space-size={megabytes}", "main.js"),
            reserves=True,
            complaints=("JavaScript heap out of memory", "Array buffer allocation failed", "Allocation failed"),
        ),
        Language(
            "verilog",
            "main.v",
            ("iverilog", "vvp"),
            "Icarus Verilog (Debian and Ubuntu: apt install iverilog)",
            ("{vvp}", "-n", "main.vvp"),
            ("{iverilog}", "-g2012", "-o", "main.vvp", "main.v"),
        ),
    )
}


@dataclass(frozen=True)
class Installed:
    """Whether a language can be used here.

    Attributes:
        commands: where its tools lie; empty if one is missing.
        install: what to install in order to use it.
    """

    commands: tuple[str, ...]
    install: str

    def __bool__(self) -> bool:
        return bool(self.commands)


@dataclass(frozen=True)
class Toolchain:
    """A language as it is installed here.

    Attributes:
        readable: absolute paths that its programs (and compilers) have to be able to read.
    """

    language: Language
    paths: Mapping[str, str]
    readable: tuple[str, ...]

    def compiling(self) -> list[str]:
        """The command line of the compiler, or an empty one."""
        return [word.format(**self.paths) for word in self.language.compiling]

    def running(self, arguments: tuple[str, ...], *, judged: bool, memory_bytes: int) -> list[str]:
        """The command line of the program."""
        values = {**self.paths, "mode": "judged" if judged else "plain", "megabytes": str(max(16, memory_bytes // MIB))}
        return [word if word is _DRIVER else word.format(**values) for word in self.language.running] + [*arguments]


def languages(python: str | None = None) -> dict[str, Installed]:
    """Every language, and where its tools are."""
    found = {}
    for name, language in _LANGUAGES.items():
        if name == "python":
            found[name] = Installed((python or sys.executable,), language.install)
        else:
            tools = _find(language)
            found[name] = Installed(() if None in tools.values() else tuple(map(str, tools.values())), language.install)
    return found


def _find(language: Language) -> dict[str, str | None]:
    return {
        names.partition("|")[0]: next(filter(None, (shutil.which(name) for name in names.split("|"))), None)
        for names in language.tools
    }


def toolchain(name: str, python: str) -> Toolchain:
    """The tools of a language.

    Raises:
        InvalidInput: for a language that nobody knows here.
        LanguageMissing: if it is not installed.
    """
    if name not in _LANGUAGES:
        raise InvalidInput(f"there is no language {name!r}; there are {', '.join(_LANGUAGES)}")
    return python_at(python).toolchain() if name == "python" else _installed(name, os.environ.get("PATH", ""))


@functools.lru_cache(maxsize=64)
def _installed(name: str, path: str) -> Toolchain:
    language = _LANGUAGES[name]
    tools = _find(language)
    missing = [tool for tool, place in tools.items() if place is None]
    if missing:
        raise LanguageMissing(
            f"{name} programs need {' and '.join(missing)}, not found here: install {language.install}"
        )
    places = {tool: str(Path(place).parent.resolve() / Path(place).name) for tool, place in tools.items() if place}
    extra: list[str] = []
    if "rustc" in places:
        # Of rustup, the command is a stub that looks for the compiler in the user's home.
        root = _ask([places["rustc"], "--print", "sysroot"])
        places["rustc"] = f"{root}/bin/rustc"
        extra.append(root)
    for place in places.values():
        extra += _surroundings(place)
    return Toolchain(language, places, tuple(dict.fromkeys([*SYSTEM, *extra])))


def _ask(command: list[str]) -> str:
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        raise SandboxError(f"{command[0]} is there and does not work: {said.strip()}") from error
    return run.stdout.strip()


def _surroundings(executable: str) -> list[str]:
    """What a tool beyond the system's folders has to see: the links that lead to it, and where it was installed."""
    found: list[str] = []
    place = executable
    for _ in range(40):  # as many links as the kernel follows
        place = str(Path(place).parent.resolve() / Path(place).name)
        if _is_system(place):
            return found
        if not os.path.islink(place):
            break
        found.append(place)
        place = os.path.join(os.path.dirname(place), os.readlink(place))
    folder = Path(place).parent
    prefix = folder.parent if folder.name == "bin" else folder
    # The home folder itself, or the root, is nobody's prefix: then the tool is shown alone.
    shown = folder if prefix in (Path(_HOME), Path("/")) else prefix
    found.append(place if shown in (Path(_HOME), Path("/")) else str(shown))
    return found


def _is_system(path: str) -> bool:
    return any(path.startswith(folder + "/") for folder in SYSTEM)


@dataclass(frozen=True)
class Interpreter:
    """A Python to run programs with, and what it has to read."""

    executable: str
    readable: tuple[str, ...]

    def toolchain(self) -> Toolchain:
        """As the language python."""
        return Toolchain(_LANGUAGES["python"], {"python": self.executable}, self.readable)


@functools.lru_cache(maxsize=16)
def python_at(executable: str) -> Interpreter:
    """An interpreter with its standard library and its site-packages, as it says itself where they are.

    Raises:
        SandboxError: if it is none.
    """
    if executable == sys.executable:
        told = [sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix]
    else:
        code = (
            "import json, sys; "
            "print(json.dumps([sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix, sys.executable]))"
        )
        try:
            *told, executable = json.loads(_ask([executable, "-I", "-c", code]))
        except (ValueError, TypeError) as error:
            raise SandboxError(f"{executable} is no Python interpreter") from error
    prefixes = [path for path in dict.fromkeys(told) if path not in ("/", _HOME) and not _is_system(path)]
    return Interpreter(executable, tuple(dict.fromkeys([*SYSTEM, *prefixes, *_surroundings(executable)])))
