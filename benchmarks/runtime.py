"""What a pass of the native runtime costs, beside llama.cpp and transformers on the same model, in one interleaved run.

    python benchmarks/runtime.py                       # passes over 1 to 64 tokens behind 512, and a prompt of 512
    python benchmarks/runtime.py --kernels             # our products beside PyTorch's own, matrix by matrix
    python benchmarks/runtime.py --quality            # what fewer bits change: perplexity, the same next token
    python benchmarks/runtime.py --agreement builtin-code,humaneval,gsm8k --data PATH   # the same on suites
    python benchmarks/runtime.py --memory --start      # peak memory at a context of 2,048; time to the first token

Every side is given the same tokens and the same number of threads, and gives logits for all tokens of a pass, as
verifying a draft needs them. The sides take turns, and the median of each counts. The last column is the least time in
which memory can deliver the weights and the cache, by the bandwidth measured before.

llama.cpp takes part if `llama-cpp-python` is installed. Whole answers are compared by `unspool bench SUITE --peers`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from unspool.core.errors import UnspoolError
from unspool.core.scores import Request
from unspool.core.tree import TokenTree
from unspool.evaluation.roofline import measure_bandwidth, roofline
from unspool.models.hub import resolve
from unspool.models.load import load_model
from unspool.models.native.native_lm import NativeModel
from unspool.models.native.packing import Matrix, from_floats

WIDTHS = (1, 2, 4, 8, 16, 32, 64)
CONTEXT = 512
LONG_CONTEXT = 2048
PEER = "llama.cpp"


class Ours:
    """A model of ours, with ``context`` tokens in its cache."""

    def __init__(self, model: Any, tokens: list[int]) -> None:
        self.model, self.tokens = model, tokens
        self.cache = model.new_cache()
        model.prefill(self.cache, tokens, rows=[])

    def step(self, width: int) -> None:
        self.model.score([Request(self.cache, TokenTree.chain(self.tokens[:width]))])

    def prefill(self) -> None:
        self.cache.rewind(0)
        self.model.prefill(self.cache, self.tokens, rows=[len(self.tokens) - 1])


class LlamaCpp:
    """The same through llama-cpp-python, with logits for all tokens of a pass."""

    def __init__(self, path: Path, tokens: list[int], threads: int) -> None:
        from llama_cpp import Llama

        self.tokens = tokens
        room = len(tokens) + max(WIDTHS)
        self.model = Llama(
            str(path),
            n_ctx=room,
            n_batch=512,
            n_threads=threads,
            n_threads_batch=threads,
            logits_all=True,
            verbose=False,
        )
        self.model.eval(tokens)

    def step(self, width: int) -> None:
        # `eval` forgets what lies behind `n_tokens` before it goes on.
        self.model.n_tokens = len(self.tokens)
        self.model.eval(self.tokens[:width])

    def prefill(self) -> None:
        self.model.n_tokens = 0
        self.model.eval(self.tokens)


def passes(options: argparse.Namespace) -> dict[str, Any]:
    """Median seconds of every pass of every side."""
    source = resolve(options.model, dtype="blocks", progress=False)
    tokens = _tokens(options.context)
    sides: dict[str, Any] = {}
    for dtype in options.dtypes:
        name = "native" if dtype == "auto" else f"native {dtype}"
        sides[name] = Ours(load_model(options.model, dtype=dtype, backend="native", progress=False), tokens)
    if options.transformers:
        sides["transformers float32"] = Ours(load_model(options.model, progress=False), tokens)
    if options.compiled:
        model = load_model(options.model, progress=False)
        for layer in model.layers:
            # Attention writes to a cache that a compiled graph would have to be made anew for, layer by layer.
            for name, part in layer.named_children():
                if "attn" not in name:
                    part.compile(dynamic=True)
        sides["transformers, compiled"] = Ours(model, tokens)
    if source.gguf is not None and find_spec("llama_cpp"):
        sides[PEER] = LlamaCpp(source.gguf, tokens, options.threads)
    actions: dict[tuple[str, str], Callable[[], None]] = {}
    for width in WIDTHS:
        for name, side in sides.items():
            actions[str(width), name] = lambda side=side, width=width: side.step(width)  # type: ignore[misc]
    times: dict[tuple[str, str], list[float]] = {key: [] for key in actions}
    for turn in range(options.rounds + 1):
        for key, action in actions.items():
            began = time.perf_counter()
            action()
            if turn:
                times[key].append(time.perf_counter() - began)
    for _ in range(3):
        for name, side in sides.items():
            began = time.perf_counter()
            side.prefill()
            times.setdefault(("prompt", name), []).append(time.perf_counter() - began)
    bandwidth = measure_bandwidth(options.threads)
    limit = roofline(source, options.threads, options.context, bandwidth=bandwidth)["forms"][0]["bytes"] / bandwidth
    medians: dict[str, dict[str, float]] = {}
    for (width, name), taken in times.items():
        medians.setdefault(width, {})[name] = statistics.median(taken)
    return {"context": options.context, "limit": limit, "bandwidth": bandwidth, "seconds": medians}


def kernels(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Our products beside PyTorch's operators of the same precision, for the largest matrix of a layer."""
    from unspool.models.native.library import kernels as library

    model = load_model(options.model, dtype="float32", backend="native", progress=False)
    assert isinstance(model, NativeModel)
    n, k = model.network.shape.mlp, model.network.shape.hidden
    weight = torch.randn(n, k)
    group = 32
    int4 = torch.ops.aten._convert_weight_to_int4pack_for_cpu(torch.randint(0, 16, (n, k), dtype=torch.int32), 1)
    scales = torch.rand(k // group, n, 2, dtype=torch.bfloat16)
    int8, rows = torch.randint(-127, 128, (n, k), dtype=torch.int8), torch.rand(n, dtype=torch.bfloat16)
    brain = weight.bfloat16()
    ours = {precision: Matrix(from_floats(weight, precision)) for precision in ("int4", "int8", "bfloat16", "float32")}
    found = []
    for width in WIDTHS:
        x = torch.randn(width, k)
        half = x.bfloat16()
        theirs: dict[str, Callable[[], Any]] = {
            "int4": lambda half=half: torch.ops.aten._weight_int4pack_mm_for_cpu(half, int4, group, scales),  # type: ignore[misc]
            "int8": lambda half=half: torch.ops.aten._weight_int8pack_mm(half, int8, rows),  # type: ignore[misc]
            "bfloat16": lambda half=half: half @ brain.T,  # type: ignore[misc]
            "float32": lambda x=x: x @ weight.T,  # type: ignore[misc]
        }
        buffers = (torch.empty(width, k), torch.empty(width, k, dtype=torch.int8), *torch.empty(2, width, k // group))
        out = torch.empty(width, n)
        for precision, matrix in ours.items():
            where = [buffer.data_ptr() for buffer in (*buffers, out)]

            def product(matrix: Matrix = matrix, x: torch.Tensor = x, where: list[int] = where) -> None:
                library().product(matrix.address, x.data_ptr(), None, 0.0, len(x), *where, options.threads)

            mine, other = _least([product, theirs[precision]])
            found.append({"tokens": width, "precision": precision, "ours": mine, "torch": other})
    return found


def _least(actions: Sequence[Callable[[], Any]], rounds: int = 40) -> list[float]:
    """Least seconds of each, taking turns."""
    best = [float("inf")] * len(actions)
    for turn in range(rounds + 5):
        for place, action in enumerate(actions):
            began = time.perf_counter()
            action()
            if turn >= 5:
                best[place] = min(best[place], time.perf_counter() - began)
    return best


PRECISIONS = ("float32", "bfloat16", "int8", "int4", "auto")


def quality(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Perplexity on prose of the standard library's docstrings, and how often the likeliest token is that of float32.

    The last row, ``auto``, is what the file holds. Its weights are the ones that the others start from.
    """
    from unspool.evaluation.prompts import passages

    found: list[dict[str, Any]] = []
    reference: list[torch.Tensor] = []
    for precision in PRECISIONS:
        model = load_model(options.model, dtype=precision, backend="native", progress=False)
        tokenizer = model.tokenizer
        texts = passages(lambda text, t=tokenizer: t.encode(text), options.passages, 64)  # type: ignore[misc]
        loss, count, same, divergence = 0.0, 0, 0, 0.0
        for place, text in enumerate(texts):
            cache = model.new_cache()
            (scores,) = model.score([Request(cache, TokenTree.chain(text))])
            cache.release()
            told = scores.logits[:-1].log_softmax(-1)
            if precision == PRECISIONS[0]:
                reference.append(told)
            exact = reference[place]
            loss -= float(told.gather(1, torch.tensor(text[1:])[:, None]).sum())
            same += int((told.argmax(-1) == exact.argmax(-1)).sum())
            divergence += float((exact.exp() * (exact - told)).sum())
            count += len(told)
        assert isinstance(model, NativeModel)
        found.append(
            {
                "precision": precision if precision != "auto" else model.precision,
                "bytes": model.network.nbytes,
                "perplexity": math.exp(loss / count),
                "same": same / count,
                "divergence": divergence / count,
                "tokens": count,
            }
        )
    return found


def agreement(options: argparse.Namespace) -> list[dict[str, Any]]:
    """On the right answers of suites, how often the likeliest token is that of float32; and on answers of the model's
    own, how many tokens come before the first that is another."""
    from unspool.core.decode import decode
    from unspool.core.events import Finished
    from unspool.core.texts import Stop
    from unspool.evaluation import suites
    from unspool.evaluation.prompts import spread

    asked: dict[str, list[tuple[str, str]]] = {}
    for name in options.agreement.split(","):
        suite = suites.get(name.strip())
        packaged = suite.name.startswith("builtin-")
        items = spread(suite.load(None if packaged else options.data), options.items)
        pairs = [(item.turns[0], suite.reference(item)) for item in items]
        asked[suite.name] = [
            (prompt, answer[len(prompt) :] if answer.startswith(prompt) else "\n" + answer)
            for prompt, answer in pairs
            if answer is not None
        ]
    found: list[dict[str, Any]] = []
    exact: dict[tuple[str, int], tuple[torch.Tensor, list[int]]] = {}
    stop = Stop(max_new_tokens=options.new_tokens, tokens=frozenset())
    for precision in PRECISIONS:
        model = load_model(options.model, dtype=precision, backend="native", progress=False)
        assert isinstance(model, NativeModel)
        encode = model.tokenizer.encode
        for name, pairs in asked.items():
            same = count = before = 0
            for place, (prompt, answer) in enumerate(pairs):
                head = encode(prompt)
                text = head + encode(answer, special=False)
                cache = model.new_cache()
                (scores,) = model.score(
                    [Request(cache, TokenTree.chain(text), rows=list(range(len(head) - 1, len(text))))]
                )
                cache.release()
                best = scores.logits.argmax(-1)
                said = next(list(e.tokens) for e in decode(model, [head], stop=stop) if isinstance(e, Finished))
                wanted = exact.setdefault((name, place), (best, said))
                same += int((best == wanted[0]).sum())
                count += len(best)
                alike = (a == b for a, b in zip(said, wanted[1], strict=True))
                before += next((i for i, equal in enumerate(alike) if not equal), len(said))
            found.append(
                {
                    "suite": name,
                    "precision": precision if precision != "auto" else model.precision,
                    "items": len(pairs),
                    "tokens": count,
                    "same": same / count,
                    "before_first_difference": before / len(pairs),
                }
            )
    return found


# -- in processes of their own --------------------------------------------------------------------------------------


def memory(options: argparse.Namespace) -> dict[str, int]:
    """Peak resident bytes of a process that reads a long prompt and writes eight tokens."""
    source = resolve(options.model, dtype="blocks", progress=False)
    sides = ["native", *([PEER] if source.gguf is not None and find_spec("llama_cpp") else [])]
    return {side: int(_ask(options, ["--peak-of", side])["peak"]) for side in sides}


def peak_of(side: str, options: argparse.Namespace) -> dict[str, int]:
    """In a process of its own: run one side and say what it took."""
    tokens = _tokens(LONG_CONTEXT - 16)
    if side == PEER:
        from llama_cpp import Llama

        path = resolve(options.model, dtype="blocks", progress=False).gguf
        peer = Llama(str(path), n_ctx=LONG_CONTEXT, n_threads=options.threads, verbose=False)
        peer.eval(tokens)
        for token in tokens[:8]:
            peer.eval([token])
    else:
        model = load_model(options.model, dtype="auto", backend="native", progress=False)
        cache = model.new_cache()
        model.prefill(cache, tokens, rows=[], chunk=256)
        for token in tokens[:8]:
            model.score([Request(cache, TokenTree.chain([token]))])
            cache.commit([0])
    return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def start(options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of `unspool generate` from the start of the process to its end, for one token; the first run warms up.

    Beside it, in turn, those of a process that imports PyTorch and does nothing else.
    """
    python = [sys.executable]
    ours = [*python, "-m", "unspool", "generate", "Hello", "--max-new-tokens", "1", "--quiet", "--model", options.model]
    commands = {"unspool generate": ours, "import torch": [*python, "-c", "import torch"]}
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(6):
        for name, command in commands.items():
            began = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            taken[name].append(time.perf_counter() - began)
    return {name: seconds[1:] for name, seconds in taken.items()}


def _ask(options: argparse.Namespace, more: list[str]) -> dict[str, Any]:
    command = [sys.executable, __file__, "--model", options.model, "--threads", str(options.threads), *more]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def _tokens(count: int) -> list[int]:
    return torch.randint(100, 20000, (count,), generator=torch.Generator().manual_seed(0)).tolist()


# -- showing --------------------------------------------------------------------------------------------------------


def show(told: dict[str, Any]) -> None:
    """Print tables in Markdown."""
    if "passes" in told:
        measured = told["passes"]
        names = list(next(iter(measured["seconds"].values())))
        peer = PEER in names
        heads = [*names, *(f"{name} / {PEER}" for name in names if peer and name != PEER), "limit of memory"]
        print(f"Milliseconds of a pass behind {measured['context']} tokens, {told['threads']} threads\n")
        print("| tokens | " + " | ".join(heads) + " |")
        print("| --- |" + " --- |" * len(heads))
        for width, taken in measured["seconds"].items():
            cells = [f"{1e3 * taken[name]:.1f}" for name in names]
            cells += [f"{taken[name] / taken[PEER]:.2f}" for name in names if peer and name != PEER]
            cells.append("" if width == "prompt" else f"{1e3 * measured['limit']:.1f}")
            print(f"| {width} | " + " | ".join(cells) + " |")
        print(f"\nMemory delivers {measured['bandwidth'] / 1e9:.1f} GB/s.\n")
    if "kernels" in told:
        print("Microseconds of a product with the widest matrix of a layer, and PyTorch's operator of that precision\n")
        print("| tokens | precision | ours | PyTorch | ratio |\n| --- | --- | --- | --- | --- |")
        for row in told["kernels"]:
            ours, theirs = 1e6 * row["ours"], 1e6 * row["torch"]
            print(f"| {row['tokens']} | {row['precision']} | {ours:.0f} | {theirs:.0f} | {ours / theirs:.2f} |")
        print()
    if "quality" in told:
        print(f"{told['quality'][0]['tokens']:,} tokens of prose, read by the native runtime in each precision\n")
        print("| weights | MB | perplexity | likeliest token as in float32 | divergence from float32, nats a token |")
        print("| --- | --- | --- | --- | --- |")
        for row in told["quality"]:
            size, share = f"{row['bytes'] / 1e6:.0f}", f"{100 * row['same']:.1f}%"
            cells = (row["precision"], size, f"{row['perplexity']:.2f}", share, f"{row['divergence']:.4f}")
            print("| " + " | ".join(cells) + " |")
        print()
    if "agreement" in told:
        print(
            "| suite | weights | likeliest token of right answers as in float32 | own tokens before the first other |"
        )
        print("| --- | --- | --- | --- |")
        for row in told["agreement"]:
            share = f"{100 * row['same']:.1f}% of {row['tokens']:,}"
            print(f"| {row['suite']} | {row['precision']} | {share} | {row['before_first_difference']:.0f} |")
        print()
    if "memory" in told:
        print(f"Peak memory of a process at a context of {LONG_CONTEXT}: ", end="")
        print(", ".join(f"{side} {size / 1e6:.0f} MB" for side, size in told["memory"].items()))
    if "start" in told:
        print("Seconds from the start of a process to its end, by turns:")
        for name, taken in told["start"].items():
            print(f"  {name:<18} " + ", ".join(f"{seconds:.2f}" for seconds in taken))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtypes", nargs="+", default=["auto"], help="of the native side: auto, int8, float32, ...")
    parser.add_argument("--transformers", action="store_true", help="beside transformers in single precision, too")
    parser.add_argument("--compiled", action="store_true", help="beside it with norms and MLPs compiled")
    parser.add_argument("--context", type=int, default=CONTEXT)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--kernels", action="store_true", help="measure products alone")
    parser.add_argument("--quality", action="store_true", help="measure what fewer bits change")
    parser.add_argument("--passages", type=int, default=64, help="texts of 64 tokens for --quality")
    parser.add_argument("--agreement", metavar="SUITES", help="measure the same on suites, with commas between")
    parser.add_argument("--data", type=Path, default=None, help="of these suites, where it is not packaged")
    parser.add_argument("--items", type=int, default=20, help="of each suite")
    parser.add_argument("--new-tokens", type=int, default=64, help="of the model's own answers")
    parser.add_argument("--memory", action="store_true", help="measure peak memory")
    parser.add_argument("--start", action="store_true", help="measure the time to the first token of a new process")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    try:
        if options.peak_of:
            print(json.dumps(peak_of(options.peak_of, options)))
            return 0
        told: dict[str, Any] = {"threads": options.threads, "model": options.model}
        further = (
            ("kernels", kernels), ("quality", quality), ("agreement", agreement), ("memory", memory), ("start", start),
        )  # fmt: skip
        if not any(getattr(options, name) for name, _ in further):
            told["passes"] = passes(options)
        for name, measure in further:
            if getattr(options, name):
                told[name] = measure(options)
    except UnspoolError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(told, indent=2))
    else:
        show(told)
    return 0


if __name__ == "__main__":
    sys.exit(main())
