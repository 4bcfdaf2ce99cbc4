"""``unspool chat``: a conversation in the terminal."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import Any

import typer

from unspool.cli import _constraints, _options, _session, _terminal
from unspool.core.errors import InvalidInput, UnspoolError

_HELP = """Talk to a model.

At the prompt: /reset starts over, /system TEXT tells the model what to be, /stats switches the statistics, /help lists
these, /quit (or Ctrl-D) leaves; Ctrl-C stops an answer. In a pipe every line is a turn, and with --json every answer is
one JSON object on a line.

[bold]Examples[/bold]

  unspool chat

  unspool chat --temperature 0.7 --system "You answer in one sentence."

  printf 'Hello!\\nWhat did I just say?\\n' | unspool chat --json
"""

_COMMANDS = "/reset  start over\n/system TEXT  what the model is told first\n/stats  statistics on or off\n/quit  leave"


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("chat", help=_HELP)(_options.sampling_options(_options.loading_options(_constraints.options(chat))))


def chat(
    system: _options.System = None,
    method: _options.Method = _options.DEFAULT_METHOD,
    setting: _options.Set = None,
    draft: _options.Draft = None,
    learned: _options.Learned = None,
    constraint: Any = None,
    max_new_tokens: _options.MaxNewTokens = 512,
    seed: _options.Seed = 0,
    loading: _options.Loading = _options.LOADING,
    quiet: _options.Quiet = False,
    as_json: _options.Json = False,
    **sampling: Any,
) -> None:
    """Talk to a model; see the help text."""
    settings = _options.parse_settings(setting)
    with _terminal.working("Starting", quiet=quiet or as_json):
        from unspool.core.texts import Stop

        _session.check(method, sampling)
        Stop(max_new_tokens)
        asked = _constraints.asked(method, **constraint)
        method, settings = asked.method, {**settings, **asked.options.pop("settings", {})}
    engine = _session.open_engine(loading, quiet=quiet or as_json)
    if not getattr(engine.model.tokenizer, "chats", False):
        raise InvalidInput(
            f"{loading.model} has no chat template: it continues texts (unspool generate), it does not converse"
        )
    options: dict[str, Any] = {"draft": draft, "settings": settings, "seed": seed, "max_new_tokens": max_new_tokens}
    options |= asked.options
    composition = engine.compose(method, draft=draft, settings=settings, **asked.options, **sampling)

    console = _terminal.errors()
    person = sys.stdin.isatty()
    if person and not quiet:
        console.print(f"{loading.model}, {method}. /help lists the commands, Ctrl-D leaves.", style="dim", markup=False)
    history: list[dict[str, str]] = _opening(system)
    statistics = not quiet and not as_json
    with _session.learning(composition, learned, quiet=quiet or as_json):
        for line in _lines(person):
            if line.startswith("/"):
                word, _, rest = line.partition(" ")
                if word in ("/quit", "/exit"):
                    break
                if word == "/reset":
                    history = [message for message in history if message["role"] == "system"]
                elif word == "/system":
                    history = _opening(rest.strip() or None)
                elif word == "/stats":
                    statistics = not statistics
                else:
                    console.print(_COMMANDS if word == "/help" else f"{word} is no command\n{_COMMANDS}", markup=False)
                continue
            history.append({"role": "user", "content": line})
            try:
                result = _session.run(
                    engine,
                    engine.encode(history),
                    method,
                    _session.ignore if as_json else _session.write_text,
                    **options,
                    **sampling,
                )
            except UnspoolError as error:
                if not person:
                    raise
                history.pop()
                console.print(f"{error}", style="red", markup=False)
                console.print("/reset starts a new conversation.", style="dim")
                continue
            history.append({"role": "assistant", "content": result.text})
            if as_json:
                answer = {
                    "text": result.text,
                    "finish_reason": result.finish_reason,
                    "statistics": result.statistics.as_dict(),
                    **asked.described(result.text, result.complete),
                }
                typer.echo(json.dumps(answer))
            elif not result.text.endswith("\n"):
                typer.echo()
            if statistics:
                console.print(result.statistics.line(), style="dim", markup=False, soft_wrap=True)
            if result.interrupted and not person:
                raise typer.Exit(130)


def _opening(system: str | None) -> list[dict[str, str]]:
    return [] if system is None else [{"role": "system", "content": system}]


def _lines(person: bool) -> Iterator[str]:
    """What is typed or piped in, line by line, without empty lines."""
    if not person:
        for line in sys.stdin:
            if line.strip():
                yield line.rstrip("\n")
        return
    # Editing and history for `input`; on Windows the console has its own.
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401
    while True:
        try:
            line = input("\n> ")
        except EOFError:
            typer.echo()
            return
        if line.strip():
            yield line.strip()
