"""``unspool sandbox``: what holds model-written programs here, and a way to run one."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unspool.cli import _options, _terminal
from unspool.core.errors import InvalidInput

if TYPE_CHECKING:
    from unspool.programs import Outcome, Sandbox

_HELP = """Run a program in the sandbox; without a file, tell what is in force on this machine.

Programs that models write are run without a network, without sight of your files, and within limits, as far as this
machine allows. Each promise that is told was tried by a program that attacks it. Exit code 1 if the program does not
pass.

[bold]Examples[/bold]

  unspool sandbox

  unspool sandbox --json | jq .facilities

  unspool sandbox answer.py --seconds 5 --memory 256

  unspool sandbox answer.c --require "no network" --require "no reading outside"

  echo 'print(6 * 7)' | unspool sandbox - --language python
"""

_SUFFIXES = {
    ".py": "python",
    ".sh": "shell",
    ".bash": "shell",
    ".c": "c",
    ".rs": "rust",
    ".js": "javascript",
    ".mjs": "javascript",
    ".v": "verilog",
    ".sv": "verilog",
}


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("sandbox", help=_HELP)(sandbox)


def complete_language(incomplete: str) -> list[str]:
    """Languages that begin like this."""
    return [name for name in dict.fromkeys(_SUFFIXES.values()) if name.startswith(incomplete)]


def sandbox(
    file: Annotated[Path | None, typer.Argument(help="A program to run; - reads it from standard input.")] = None,
    language: Annotated[
        str | None,
        typer.Option(
            "--language", help="What it is written in. \\[default: by its suffix]", autocompletion=complete_language
        ),
    ] = None,
    seconds: Annotated[float, typer.Option("--seconds", help="Time limit, on the clock and of the processor.")] = 10.0,
    memory: Annotated[int, typer.Option("--memory", help="Memory limit in MiB.")] = 1024,
    require: Annotated[
        list[str] | None,
        typer.Option("--require", metavar="FACILITY", help="Refuse to run where it is not in force. Repeatable."),
    ] = None,
    stdin: Annotated[
        Path | None,
        typer.Option(
            "--input", metavar="FILE", help="Its standard input; - passes on what comes in. \\[default: nothing]"
        ),
    ] = None,
    as_json: _options.Json = False,
) -> None:
    """Run a program or describe the sandbox; see the help text."""
    from unspool.programs import Facility, Limits, Sandbox

    known = {str(facility): facility for facility in Facility}
    for name in require or ():
        if name not in known:
            raise InvalidInput(f"--require {name!r}: there is no such facility; there are {', '.join(known)}")
    limits = Limits(wall_seconds=seconds, cpu_seconds=seconds, memory_bytes=memory << 20)
    with Sandbox(limits, require=[known[name] for name in require or ()]) as made:
        if file is None:
            if language is not None or stdin is not None:
                raise InvalidInput("--language and --input need a program to run")
            _describe(made, as_json)
        else:
            _run(made, file, language, stdin, as_json)


def _describe(made: Sandbox, as_json: bool) -> None:
    from unspool.programs import Facility, languages

    found = languages()
    if as_json:
        about = {
            "facilities": {str(facility): facility in made.facilities for facility in Facility},
            "mechanisms": sorted(map(str, made.ground.mechanisms)),
            "absent": {str(mechanism): reason for mechanism, reason in made.ground.absent.items()},
            "languages": {
                name: {"commands": list(tools.commands), "install": tools.install} for name, tools in found.items()
            },
        }
        typer.echo(json.dumps(about, indent=2))
        return
    typer.echo(made.describe())
    typer.echo("Languages:")
    for name, tools in found.items():
        typer.echo(f"  {name}: " + (", ".join(tools.commands) if tools else f"not installed; install {tools.install}"))


def _run(made: Sandbox, file: Path, language: str | None, stdin: Path | None, as_json: bool) -> None:
    from unspool.programs import Program

    if language is None:
        language = _SUFFIXES.get(file.suffix)
        if language is None:
            raise InvalidInput(f"{file}: its suffix does not tell the language; use --language")
    outcome = made.run(Program(_read(file), language, stdin="" if stdin is None else _read(stdin)))
    _tell(outcome, as_json)
    if not outcome.passed:
        raise typer.Exit(1)


def _read(file: Path) -> str:
    try:
        return sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidInput(f"{file} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{file} is not UTF-8 text: {error.reason} at byte {error.start}") from error


def _tell(outcome: Outcome, as_json: bool) -> None:
    if as_json:
        data: dict[str, Any] = {**dataclasses.asdict(outcome), "refused": list(outcome.refused)}
        typer.echo(json.dumps(data))
        return
    if outcome.stdout:
        _terminal.stream(outcome.stdout)
    if outcome.stderr:
        sys.stderr.write(_terminal.harmless(outcome.stderr) if sys.stderr.isatty() else outcome.stderr)
    told = f"{outcome.status}{': ' if outcome.reason else ''}{outcome.reason}"
    cut = "; its output was cut" if outcome.truncated else ""
    _terminal.errors().print(f"{told} ({outcome.seconds:.2f} s{cut})", style="dim", markup=False, soft_wrap=True)
