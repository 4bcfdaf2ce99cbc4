"""Sides and hosts in processes of their own, so that what hangs or takes all memory can be ended.

The program starts itself with ``--serve``; one JSON object a line goes in, one comes out.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from constrained.engines import Refused, side
from constrained.writing import HOSTS, LlamaCpp, Native, Transformers
from unspool.core.errors import InvalidInput, UnspoolError
from unspool.models.hub import resolve
from unspool.models.load import load_model

_READY = 180.0
"""Seconds that a process is given to start."""
_MEMORY = 10 << 30
"""Bytes of address space that a process may have."""


class Process:
    """The other side of :func:`serve`.

    Args:
        name: of a side (its masks are measured) or a host (it writes).
        options: of the command line that this process shares.
        program: the file to start.
    """

    def __init__(self, name: str, options: Any, program: Path) -> None:
        self.name = name
        self._command = [
            sys.executable, str(program), "--serve", name, "--model", options.model, "--threads", str(options.threads),
        ]  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = b""
        self._fault: str | None = None

    def ask(self, asked: dict[str, Any], seconds: float) -> dict[str, Any]:
        """An answer; ``{"error": ...}`` if it takes longer, or the process ends. It is started anew then, unless it
        has never come to answer."""
        if self._process is None and self._fault is None:
            self._start()
        if self._fault is not None:
            return {"error": self._fault}
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(asked).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return {"error": self._ended()}
        answer = self._line(seconds)
        return {"error": self._ended()} if answer is None else json.loads(answer)

    def _start(self) -> None:
        environment = {"TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false", **os.environ}
        self._buffer = b""
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True
        )
        if self._line(_READY) is None:
            # Its reasons are on standard error.
            self._fault = f"it does not start: {self._ended()}"

    def _line(self, seconds: float) -> bytes | None:
        """The next line; ``None`` if it does not come in time."""
        assert self._process is not None
        assert self._process.stdout is not None
        until = time.monotonic() + seconds
        file = self._process.stdout.fileno()
        while b"\n" not in self._buffer:
            left = until - time.monotonic()
            if left <= 0 or not select.select([file], [], [], left)[0]:
                return None
            if not (read := os.read(file, 1 << 20)):
                return None
            self._buffer += read
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _ended(self) -> str:
        """End the process, and say how it came to that."""
        process, self._process = self._process, None
        if process is None:
            return "it is not there"
        code = process.poll()
        process.kill()
        process.wait()
        if code is None:
            return "time-out"
        return f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}"

    def close(self) -> None:
        """End it."""
        if self._process is not None:
            self._ended()


def serve(name: str, model_name: str, threads: int) -> None:
    """Answer until the input ends."""
    # Ctrl-C is the other side's business.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    torch.set_num_threads(threads)
    model = load_model(model_name, dtype="auto", backend="auto", progress=False)
    if name in HOSTS:
        source = resolve(model_name, progress=False)
        host: Any = Native(model)
        if name == "transformers":
            host = Transformers(model, str(source.path))
        elif name == "llama.cpp":
            if source.gguf is None:
                raise InvalidInput(f"llama.cpp is given the GGUF file itself, and {model_name} does not come from one")
            host = LlamaCpp(model, str(source.gguf), 4096, threads)

        def answer(asked: dict[str, Any]) -> dict[str, Any]:
            written = host.way(asked["way"])(asked["schema"], asked["prompt"], asked["limit"])
            found: dict[str, Any] = written.as_dict()
            return found

    else:
        compile_schema = side(name, model)

        def answer(asked: dict[str, Any]) -> dict[str, Any]:
            return _checked(compile_schema, **asked)

    print(json.dumps({"ready": name}), file=answers, flush=True)
    for line in sys.stdin:
        try:
            said = answer(json.loads(line))
        except Refused as error:
            said = {"refused": str(error)[:300]}
        except UnspoolError as error:
            # It was taken, and given up in the middle of a text.
            said = {"error": str(error)[:300]}
        except MemoryError:
            said = {"error": "out of memory"}
        print(json.dumps(said), file=answers, flush=True)


def _checked(
    compile_schema: Any, schema: Any, walked: list[list[int]], valid: list[list[int]], invalid: list[list[int]]
) -> dict[str, Any]:
    """Compile a schema; times of masks along texts; whether texts are taken.

    Args:
        walked: texts of tokens along which masks are timed.
        valid, invalid: texts to be judged.
    """
    clock = time.perf_counter
    began = clock()
    start = compile_schema(schema)
    place = start()
    compiled = clock() - began
    place.mask()
    found: dict[str, Any] = {"compile": compiled, "first_mask": clock() - began}
    masks, steps = [], []
    for text in walked:
        place = start()
        for token in text:
            t0 = clock()
            place.mask()
            t1 = clock()
            taken = place.consume(token)
            masks.append(t1 - t0)
            steps.append(clock() - t0)
            if not taken:
                break
    # Tenths of microseconds: there are very many of them.
    found["masks"] = [round(1e6 * each, 1) for each in masks]
    found["steps"] = [round(1e6 * each, 1) for each in steps]
    for name, texts in (("valid", valid), ("invalid", invalid)):
        found[name] = [_takes(start(), text) for text in texts]
    return found


def _takes(place: Any, text: list[int]) -> bool:
    return all(place.consume(token) for token in text) and bool(place.ends())
