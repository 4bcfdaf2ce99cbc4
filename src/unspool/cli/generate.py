"""``unspool generate``: one prompt, one answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from unspool.cli import _constraints, _options, _session, _terminal
from unspool.core.errors import InvalidInput

_HELP = """Answer a prompt.

The text goes to standard output as it comes; one line of statistics follows on standard error.

[bold]Examples[/bold]

  unspool generate "Write a Python function that reverses a list."

  unspool generate "Tell me a story." --temperature 0.8 --top-p 0.95 --seed 7

  unspool generate "def fibonacci(n):" --raw --method token-recycling --set nodes=24 --show-drafts

  git diff | unspool generate - --system "Summarise this change." --max-new-tokens 80

  unspool generate "Explain this file." --file setup.py --trace trace.html

  unspool generate "What is 2 + 2?" --json | jq .statistics.forwards_per_token

  unspool generate "Describe a city." --json-schema city.json

  unspool generate "Is water wet?" --choices yes,no,maybe

  unspool generate "What is 3 plus 4?" --tools tools.py:add,multiply

  unspool generate "Reverse a list in Python." --method pac-code-sets --set tau=0.8
"""


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("generate", help=_HELP, no_args_is_help=False)(
        _options.sampling_options(_options.loading_options(_constraints.options(generate)))
    )


def generate(
    prompt: Annotated[
        str | None, typer.Argument(help="The prompt; - reads it from standard input, as does leaving it out in a pipe.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="Read the prompt from a file; after PROMPT, if both are given.")
    ] = None,
    system: _options.System = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the prompt as it is, without the chat template.")
    ] = False,
    method: _options.Method = _options.DEFAULT_METHOD,
    setting: _options.Set = None,
    draft: _options.Draft = None,
    learned: _options.Learned = None,
    constraint: Any = None,
    max_new_tokens: _options.MaxNewTokens = 256,
    stop: Annotated[
        list[str] | None, typer.Option("--stop", help="A string that ends the text and is not part of it. Repeatable.")
    ] = None,
    deadline: Annotated[float | None, typer.Option("--deadline", help="Seconds after which to stop.")] = None,
    seed: _options.Seed = 0,
    loading: _options.Loading = _options.LOADING,
    show_drafts: Annotated[
        bool,
        typer.Option(
            "--show-drafts",
            help="Colour accepted draft tokens, tokens chosen by the model, and refused ones, as they come.",
            rich_help_panel=_options.SHOWING,
        ),
    ] = False,
    trace: Annotated[
        Path | None,
        typer.Option(
            "--trace", help="Write a page that replays the run.", metavar="FILE.html", rich_help_panel=_options.SHOWING
        ),
    ] = None,
    quiet: _options.Quiet = False,
    as_json: _options.Json = False,
    **sampling: Any,
) -> None:
    """Answer a prompt; see the help text."""
    if show_drafts and as_json:
        raise InvalidInput("--show-drafts writes coloured text and --json an object: take one of them")
    if raw and system is not None:
        raise InvalidInput(
            "--system is part of a conversation, and --raw leaves the chat template out: take one of them"
        )
    if trace is not None:
        _options.check_place(trace, "--trace")
    text = _options.read_prompt(prompt, file)
    if not text:
        raise InvalidInput("the prompt is empty; give some text")
    settings = _options.parse_settings(setting)
    quiet_progress = quiet or as_json
    with _terminal.working("Starting", quiet=quiet_progress):
        from unspool.core.texts import Stop

        _session.check(method, sampling)
        Stop(max_new_tokens, None, tuple(stop or ()), deadline)
        asked = _constraints.asked(method, **constraint)
        method, settings = asked.method, {**settings, **asked.options.pop("settings", {})}

    engine = _session.open_engine(loading, quiet=quiet_progress)
    composition = engine.compose(method, draft=draft, settings=settings, **asked.options, **sampling)
    if show_drafts and composition.search is not None:
        raise InvalidInput(f"{method} searches along several texts at once, which no stream can show: use --trace")
    messages = [{"role": "user", "content": text}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    encoded = engine.encode(text, chat=False) if raw else engine.encode(messages if system is not None else text)

    watchers: list[Any] = []
    recorder = None
    if trace is not None:
        from unspool.evaluation.trace import TraceRecorder

        changed = _session.used_settings(composition, changed_only=True)
        recorder = TraceRecorder(
            engine.model.tokenizer,
            [encoded],
            model=loading.model,
            method=method,
            settings={name: value for part in changed.values() for name, value in part.items()} | {"seed": seed},
        )
        watchers.append(recorder.update)
    if show_drafts:
        from unspool.cli._drafts import DraftPainter

        painter = DraftPainter(engine.model.tokenizer, stop or (), _terminal.output())
        if not quiet:
            painter.legend()
        watchers.append(painter.watch)
    elif not as_json:
        watchers.append(_session.write_text)

    def watch(event: Any, elapsed: float) -> None:
        for watcher in watchers:
            watcher(event, elapsed)

    with _session.learning(composition, learned, quiet=quiet_progress):
        result = _session.run(
            engine,
            encoded,
            method,
            watch,
            max_new_tokens=max_new_tokens,
            stop=tuple(stop or ()),
            deadline=deadline,
            seed=seed,
            draft=draft,
            settings=settings,
            probe=recorder is not None,
            **asked.options,
            **sampling,
        )
    if as_json:
        answer = {
            "text": result.text,
            "tokens": result.tokens,
            "finish_reason": result.finish_reason,
            "statistics": result.statistics.as_dict(),
            "method": method,
            "model": loading.model,
            "settings": _session.used_settings(composition),
            "lossless": composition.lossless,
            "seed": seed,
            **asked.described(result.text, result.complete),
        }
        if composition.constraint is not None:
            answer.setdefault("complete", result.complete)
        if result.log_probs is not None:
            answer["log_probs"] = result.log_probs
        if result.reading is not None:
            answer["reading"] = dict(result.reading.data)
        typer.echo(json.dumps(answer))
    else:
        if not result.text.endswith("\n"):
            typer.echo()
        if result.reading is not None:
            typer.echo("\n" + _terminal.shown(result.reading.text))
    if not quiet and not as_json:
        line = result.statistics.line() + (" · interrupted" if result.interrupted else "")
        line += " · not complete" if result.complete is False else ""
        _terminal.errors().print(line, style="dim", markup=False, soft_wrap=True)
        for note in asked.notes:
            _terminal.errors().print(f"left out: {note}", style="dim", markup=False, soft_wrap=True)
    if recorder is not None and trace is not None:
        recorder.write(trace)
        if not quiet:
            _terminal.errors().print(f"trace: {trace}", style="dim", markup=False, soft_wrap=True)
    if result.interrupted:
        raise typer.Exit(130)
