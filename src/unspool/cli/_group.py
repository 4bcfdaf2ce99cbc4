"""The group of all commands: where errors become messages and exit codes."""

from __future__ import annotations

import errno
import importlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command_from_info

from unspool.cli._terminal import errors
from unspool.core.errors import GrammarError, Incompatible, InvalidInput, UnknownMethod, UnspoolError

WRONG_INPUT, FAILED, INTERRUPTED = 2, 1, 130

# Typer carries its own copy of click or uses the one that is installed: the class that both derive usage errors from.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]


COMMANDS = (
    "generate", "chat", "methods", "eval", "bench", "compare", "pull", "train", "calibrate", "reproduce", "sandbox",
    "demo",
)  # fmt: skip


class _Files(Mapping[str, Any]):
    """The commands by name, each read from its file when it is asked for: a run needs one of them."""

    def __init__(self, made: Mapping[str, Any]) -> None:
        self._made = dict(made)

    def __getitem__(self, name: str) -> Any:
        if name not in self._made:
            if name not in COMMANDS:
                raise KeyError(name)
            alone = typer.Typer()
            importlib.import_module(f"unspool.cli.{name}").add_to(alone)
            info = alone.registered_commands[0]
            self._made[name] = get_command_from_info(info, pretty_exceptions_short=True, rich_markup_mode="rich")
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter([*COMMANDS, *(self._made.keys() - set(COMMANDS))])

    def __len__(self) -> int:
        return len(self._made.keys() | set(COMMANDS))


class Commands(TyperGroup):
    """Tells every error that a user can cause in one message, without a traceback."""

    def __init__(self, *, commands: Mapping[str, Any], **options: Any) -> None:
        super().__init__(commands={}, **options)
        self.commands = _Files(commands)  # type: ignore[assignment]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        options = args[: args.index("--")] if "--" in args else args
        ctx.meta["unspool.json"] = "--json" in options
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except UnspoolError as error:
            self._tell(ctx, type(error).__name__, str(error))
            wrong = isinstance(error, InvalidInput | UnknownMethod | Incompatible | GrammarError)
            raise typer.Exit(WRONG_INPUT if wrong else FAILED) from error
        except UsageError as error:
            if ctx.meta["unspool.json"]:
                _print_json("UsageError", error.format_message())  # type: ignore[attr-defined]
            raise  # typer prints it, with the usage of the command
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise  # the reader has left: typer ends quietly
            self._tell(ctx, type(error).__name__, str(error))
            raise typer.Exit(FAILED) from error
        except KeyboardInterrupt as error:
            errors().print("interrupted", style="dim")
            raise typer.Exit(INTERRUPTED) from error

    @staticmethod
    def _tell(ctx: Any, kind: str, message: str) -> None:
        console = errors()
        console.print("error:", style="bold red", end=" ")
        console.print(message, markup=False, highlight=False, soft_wrap=True)
        if ctx.meta["unspool.json"]:
            _print_json(kind, message)


def _print_json(kind: str, message: str) -> None:
    typer.echo(json.dumps({"error": {"type": kind, "message": message}}))
