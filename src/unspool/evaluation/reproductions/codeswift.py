"""CodeSwift: retrieval from the repository and from common code, with timing and a cache, against plain REST.

Paper: Zhao et al., CodeSwift, 2025: 2.53x in a repository, up to 88% better than earlier methods. Here: bodies of
functions of the standard library's packages; a package is the repository, the rest of the library is common code. The
text that the model writes is compared with plain decoding's; what the parts are worth is found by replaying that text,
and once more on the bodies that people wrote, which says what retrieval can do apart from a small model's taste.
"""

from __future__ import annotations

import ast
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from unspool.core.compose import compose
from unspool.core.model import LanguageModel
from unspool.core.sockets import Drafter
from unspool.evaluation.reproductions._common import (
    Continuation,
    Lab,
    agreement,
    decode_all,
    experiment,
    tokens_per_step,
)
from unspool.evaluation.reproductions._replay import Replay, Text, replay
from unspool.speculation.drafting._corpora import STANDARD_LIBRARY, encode_all, read_texts
from unspool.speculation.drafting._suffix_array import SuffixArray
from unspool.speculation.drafting.codeswift import CodeSwift, CodeSwiftSettings, Counts
from unspool.speculation.drafting.prompt_lookup import PromptLookup


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Args:
        packages: whose functions are completed.
        written: functions of each package that the model completes.
        oracle: functions of each package whose own text is replayed.
        context: tokens of a file before the function's body that are read.
        new_tokens: of a completion.
        nodes: of the draft trees.
        common: bytes of common code.
    """

    packages: tuple[str, ...]
    written: int
    oracle: int
    context: int
    new_tokens: int
    nodes: int
    common: int


@dataclass(frozen=True)
class Case:
    """A function of a package: the file up to its body, and the body with what follows, token ids."""

    package: str
    file: str
    prompt: list[int]
    body: list[int]


class Rest(CodeSwift):
    """REST: common code alone, always asked, nothing remembered, and the request's own text not looked at."""

    def _request(self, branch: Any) -> SuffixArray:
        return SuffixArray()


def functions(source: str, least: int = 8) -> list[int]:
    """Lines before the bodies of the functions that have at least so many lines."""
    return [
        node.body[0].lineno - 1
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.body[0].lineno >= least
        and node.body[0].lineno > node.lineno
    ]


def cases(lab: Lab, size: Size, package: str, files: dict[str, str]) -> list[Case]:
    """One function of each of as many files as are wanted, chosen by a fixed seed."""
    rng = random.Random(package)
    names = sorted(files)
    rng.shuffle(names)
    found: list[Case] = []
    for name in names:
        lines = functions(files[name])
        if not lines:
            continue
        line = rng.choice(lines)
        text = files[name].splitlines(keepends=True)
        prompt, body = encode_all(lab.model.tokenizer, ["".join(text[:line]), "".join(text[line:])])
        if len(prompt) >= 64 and len(body) >= size.new_tokens:
            found.append(Case(package, name, prompt[-size.context :], body[: size.new_tokens]))
        if len(found) == max(size.oracle, size.written):
            break
    return found


class Bench:
    """The corpora, and drafters over them.

    Attributes:
        repositories: by package, the package without the files of its cases.
        common: the rest of the library.
    """

    def __init__(self, lab: Lab, size: Size) -> None:
        self.lab, self.size = lab, size
        library = read_texts(STANDARD_LIBRARY, lab.slug)
        within: dict[str, dict[str, str]] = {package: {} for package in size.packages}
        rest: list[str] = []
        for name, text in zip(library.names, library.documents, strict=True):
            package = name.split("/")[0]
            if package in within:
                within[package][name] = text
            else:
                rest.append(text)
        random.Random(0).shuffle(rest)
        total, kept = 0, []
        for text in rest:
            total += len(text)
            if total > size.common:
                break
            kept.append(text)
        model = lab.model
        self.common = SuffixArray.build(encode_all(model.tokenizer, kept, "common code"), model.vocab_size)
        self.cases: dict[str, list[Case]] = {}
        self.repositories: dict[str, SuffixArray] = {}
        for package, files in within.items():
            self.cases[package] = cases(lab, size, package, files)
            used = {case.file for case in self.cases[package]}
            others = [text for name, text in files.items() if name not in used]
            self.repositories[package] = SuffixArray.build(encode_all(model.tokenizer, others), model.vocab_size)

    def drafter(self, package: str, *, repository: bool = True, corpus: bool = True, **chosen: Any) -> CodeSwift:
        settings = CodeSwiftSettings(nodes=self.size.nodes, **chosen)
        near = self.repositories[package] if repository else SuffixArray()
        return CodeSwift(settings, repository=near, corpus=self.common if corpus else SuffixArray())

    def rest(self) -> Rest:
        settings = CodeSwiftSettings(nodes=self.size.nodes, skip=0, cache=0)
        return Rest(settings, repository=SuffixArray(), corpus=self.common)


def _share(drafter: Drafter, earlier: Drafter | None) -> None:
    """Go on with the cache of an earlier package."""
    if isinstance(drafter, CodeSwift) and isinstance(earlier, CodeSwift):
        drafter.verified, drafter.fetched, drafter.counts = earlier.verified, earlier.fetched, earlier.counts


@dataclass
class Outcome:
    """A variant over all packages; ``second`` counts only the second half of the texts of each."""

    runs: list[Continuation]
    counts: Counts
    second: Counts

    @property
    def tau(self) -> float:
        return tokens_per_step(self.runs)


def _over_packages(model: LanguageModel, texts: dict[str, Sequence[Text]], make: Any) -> Outcome:
    """Replay the texts of every package with a drafter of its own repository and a common cache."""
    runs: list[Continuation] = []
    before: Drafter | None = None
    second = Counts()
    for package, of in texts.items():
        drafter = make(package)
        _share(drafter, before)
        half = (len(of) + 1) // 2
        for part, some in enumerate((of[:half], of[half:])):
            started = Counts(**vars(drafter.counts)) if isinstance(drafter, CodeSwift) else Counts()
            if some:
                done: Replay = replay(model, drafter, some)
                runs += done.runs
            if part and isinstance(drafter, CodeSwift):
                for name, value in vars(drafter.counts).items():
                    setattr(second, name, getattr(second, name) + value - getattr(started, name))
        before = drafter
    return Outcome(runs, before.counts if isinstance(before, CodeSwift) else Counts(), second)


@experiment(
    "codeswift",
    quick=Size(
        packages=("asyncio",), written=4, oracle=8, context=192, new_tokens=40, nodes=16, common=2_500_000
    ),
    full=Size(
        packages=("asyncio", "email", "unittest", "xml", "multiprocessing"),
        written=8,
        oracle=20,
        context=768,
        new_tokens=96,
        nodes=24,
        common=16_000_000,
    ),
)  # fmt: skip
def EXPERIMENT(lab: Lab, size: Size) -> None:
    """Measure identity on the model, then tokens per step of the whole and without each of its parts."""
    lab.say("reading the standard library")
    bench = Bench(lab, size)
    every = [case for of in bench.cases.values() for case in of]
    lab.setup |= {
        "prompts": f"functions of {', '.join(size.packages)}",
        "count": sum(min(size.written, len(of)) for of in bench.cases.values()),
        "true texts": len(every),
        "common tokens": len(bench.common),
        "repository tokens": sum(map(len, bench.repositories.values())),
        "sampler": "greedy",
    }

    plain = compose(lab.model)
    expected: dict[str, list[Continuation]] = {}
    drafted: list[Continuation] = []
    before: CodeSwift | None = None
    for package, of in bench.cases.items():
        lab.say(f"{package}: {len(of[: size.written])} functions, plain and with CodeSwift")
        prompts = [case.prompt for case in of[: size.written]]
        expected[package] = decode_all(plain, prompts, new_tokens=size.new_tokens, batch=len(prompts))
        drafter = bench.drafter(package)
        _share(drafter, before)
        drafted += decode_all(compose(lab.model, drafter), prompts, new_tokens=size.new_tokens, batch=len(prompts))
        before = drafter

    written: dict[str, Sequence[Text]] = {
        package: [(run.prompt, run.tokens) for run in of] for package, of in expected.items()
    }
    true: dict[str, Sequence[Text]] = {
        package: [(case.prompt, case.body) for case in of] for package, of in bench.cases.items()
    }
    variants: dict[str, Any] = {
        "CodeSwift": bench.drafter,
        "prompt lookup": lambda package: PromptLookup(),
        "REST on common code": lambda package: bench.rest(),
        "common code only, with timing and cache": lambda package: bench.drafter(package, repository=False),
        "repository only, with timing and cache": lambda package: bench.drafter(package, corpus=False),
        "retrieval after white space as well": lambda package: bench.drafter(package, skip=0.0),
        "never retrieval after white space": lambda package: bench.drafter(package, skip=1.0),
        "without the cache": lambda package: bench.drafter(package, cache=0),
    }
    outcomes: dict[str, dict[str, Outcome]] = {}
    for kind, texts in (("written by the model", written), ("written by people", true)):
        lab.say(f"replaying what was {kind}")
        outcomes[kind] = {name: _over_packages(lab.model, texts, make) for name, make in variants.items()}
        rest = outcomes[kind]["REST on common code"].tau
        for name, outcome in outcomes[kind].items():
            if name != "REST on common code":
                lab.row(f"tokens per step, code {kind}: {name} (REST on common code)", rest, outcome.tau)
    by_model, by_people = outcomes.values()
    whole, always = by_people["CodeSwift"], by_people["retrieval after white space as well"]
    calls = {name: _calls_per_step(by_people[name].counts) for name in variants if name != "prompt lookup"}
    for name in ("CodeSwift", "never retrieval after white space", "without the cache"):
        lab.row(
            f"searches of the corpora per draft, code written by people: {name} (after white space as well)",
            calls["retrieval after white space as well"],
            calls[name],
        )
    answered = _cached_share(by_model["CodeSwift"].second)
    lab.row(
        "share of queries that the cache answers, second half of the functions, code written by the model (by people)",
        _cached_share(whole.second),
        answered,
    )

    found = agreement(lab.model, [run for of in expected.values() for run in of], drafted)
    lab.check("the output is that of plain greedy decoding", str(found), found.identical)
    for kind, variant in outcomes.items():
        tau, rest, lookup = (variant[name].tau for name in ("CodeSwift", "REST on common code", "prompt lookup"))
        lab.check(
            f"tokens per step >= 1.10 times those of REST on common code, on code {kind}",
            f"{tau:.3f} against {rest:.3f}",
            tau >= 1.10 * rest,
            tau > rest,
        )
        lab.check(f"more than prompt lookup, on code {kind}", f"{tau:.3f} against {lookup:.3f}", tau > lookup)
    alone = by_people["common code only, with timing and cache"].tau
    lab.check(
        "the repository adds at least 5% to common code",
        f"{whole.tau:.3f} against {alone:.3f}",
        whole.tau >= 1.05 * alone,
        whole.tau > alone,
    )
    fewer = 1 - calls["CodeSwift"] / calls["retrieval after white space as well"]
    lost = 1 - whole.tau / always.tau
    lab.check(
        "leaving retrieval out after white space saves at least 15% of the searches and costs less than 3% of the "
        "tokens per step",
        f"{fewer:.1%} saved, {lost:.1%} lost",
        fewer >= 0.15 and lost < 0.03,
        fewer > lost,
    )
    lab.check(
        "the cache answers at least 20% of the queries of the second half, on code written by the model",
        f"{answered:.1%}",
        answered >= 0.20,
        answered > 0,
    )
    with_cache, without = by_model["CodeSwift"].tau, by_model["without the cache"].tau
    lab.check(
        "the cache does no harm, on code written by the model",
        f"{with_cache:.3f} tokens per step with it, {without:.3f} without",
        with_cache >= without,
        with_cache >= 0.98 * without,
    )
    lab.note(
        f"Trees of {size.nodes} nodes, which a CPU verifies in about twice the time of one token; REST's have 64. "
        "The parts but the cache are judged on the bodies that people wrote, of which there are more."
    )
    lab.note(
        "Where a search is left out is decided by the last committed token; with this tokenizer one step in ten begins "
        "after white space, so that hardly more than a tenth of the searches can be saved, whatever the probability."
    )
    if lab.quick:
        lab.note(f"Quick: one package, and common code cut to {size.common / 1e6:.1f} MB so that indexing fits.")


def _cached_share(counts: Counts) -> float:
    return counts.cached / max(counts.cached + counts.searched, 1)


def _calls_per_step(counts: Counts) -> float:
    return counts.searched / max(counts.steps, 1)
