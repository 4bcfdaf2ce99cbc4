"""Speculation across vocabularies: the same text with a draft model of another tokenizer, and fewer target passes.

Paper: Timor et al., 2025: any model drafts for any other; up to 2.8x (string-level exact match, ``slem``) and about
1.7x (token-level intersection, ``tli``) on GPUs. Here: SmolLM2-135M is drafted for by a small model of Python source
with 1024 tokens of its own; Gemma-3-270M and SmolLM2-135M draft for each other, for identity alone (they cost alike).
The third algorithm (``slrs``) sums over all strings, so its target is a bigram model over pieces of at most three
letters and its draft model a bigram model of letters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unspool.core.branch import Branch
from unspool.core.compose import Composition, compose
from unspool.core.errors import InvalidInput
from unspool.core.events import Finished
from unspool.core.model import Cache, Capability, LanguageModel
from unspool.core.scores import LOGITS, Request, Scores, Want
from unspool.core.sockets import Budget
from unspool.core.texts import Stop
from unspool.evaluation.prompts import prose
from unspool.evaluation.reproductions._common import (
    Continuation,
    Lab,
    agreement,
    decode_all,
    experiment,
    forwards_per_token,
    tokens_per_step,
)
from unspool.evaluation.reproductions._tree_baselines import fit
from unspool.models.load import load_model
from unspool.sampling.standard import SamplingSettings, StandardSampler
from unspool.speculation.drafting.heterogeneous_vocab_sd import HeterogeneousVocab, HeterogeneousVocabSettings
from unspool.training.corpora import stdlib

# Letters of several bytes, runs of spaces, and what tokenizers merge across lines.
AWKWARD = (
    "def größe(naïve, café):\n        # 中文测试 😀😀 — “quoted”\n                return {'ß':    1,\n\n\n\n",
    "| Straße   | Zürich      |\n| -------- | ----------- |\n| 東京 🗼   |   ¡mañana!  |\n|          |",
)


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Args:
        code, new_tokens: prompts of held-out code, and how long they are continued.
        prose, awkward: further prompts that are compared with plain decoding.
        other_tokens: how long the latter are continued.
        drafter: the small draft model of another tokenizer.
        pair: a model that drafts for the target and is drafted for by it, on ``pair_prompts`` for ``pair_tokens``.
        contexts: of the bigram models, at which acceptance is computed.
        draws: continuations of two tokens by which sampling is judged.
    """

    code: int
    new_tokens: int
    prose: int
    awkward: int
    other_tokens: int
    drafter: str
    pair: str
    pair_prompts: int
    pair_tokens: int
    contexts: int
    draws: int


# -- two models that can be summed over ---------------------------------------------------------------------------


class _Pieces:
    """Tokens are strings; the longest that fits comes first."""

    def __init__(self, pieces: Sequence[str]) -> None:
        self.pieces = list(pieces)
        self._number = {piece: number for number, piece in enumerate(self.pieces)}
        self._longest = max(map(len, self.pieces))

    def encode(self, text: str, special: bool = True) -> list[int]:
        ids, at = [], 0
        while at < len(text):
            size = next(size for size in range(self._longest, 0, -1) if text[at : at + size] in self._number)
            ids.append(self._number[text[at : at + size]])
            at += size
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.pieces[i] for i in ids)


class _BigramCache(Cache):
    def __init__(self, tokens: Sequence[int] = ()) -> None:
        self.tokens = list(tokens)
        self.scratch: list[int] = []

    @property
    def length(self) -> int:  # type: ignore[override]
        return len(self.tokens)

    def commit(self, path: Sequence[int]) -> None:
        self.tokens += [self.scratch[node] for node in path]
        self.scratch = []

    def fork(self) -> _BigramCache:
        return _BigramCache(self.tokens)

    def rewind(self, length: int) -> None:
        self._check_rewind(length)
        del self.tokens[length:]
        self.scratch = []

    @property
    def nbytes(self) -> int:
        return 8 * len(self.tokens)


class _Bigrams(LanguageModel):
    """``p(b | a)`` as counted in a text, half a count added to all.

    Args:
        pieces: the tokens.
        text: what is counted.
    """

    def __init__(self, pieces: Sequence[str], text: str) -> None:
        self.tokenizer = _Pieces(pieces)
        size = len(pieces)
        counts = torch.full((size, size), 0.5, dtype=torch.float64)
        ids = torch.tensor(self.tokenizer.encode(text))
        counts.index_put_((ids[:-1], ids[1:]), torch.ones(len(ids) - 1, dtype=torch.float64), accumulate=True)
        self.logits = (counts / counts.sum(dim=-1, keepdim=True)).log()
        self.name = f"bigrams of {size} pieces"
        self.vocab_size = size
        self.context_length = None
        self.stop_tokens = frozenset()
        self.capabilities = frozenset({Capability.TREE})
        self.device, self.dtype = torch.device("cpu"), torch.float64

    def new_caches(self, count: int) -> list[Cache]:
        return [_BigramCache() for _ in range(count)]

    def score(
        self, requests: Sequence[Request], want: Want = LOGITS, layers: Sequence[int] | None = None
    ) -> list[Scores]:
        self.forwards += 1
        answers = []
        for request in requests:
            request.cache.scratch = list(request.tree.token_list)  # type: ignore[attr-defined]
            rows = range(request.known, len(request.tree)) if request.rows is None else request.rows
            last = torch.tensor([request.tree.token_list[row] for row in rows], dtype=torch.int64)
            answers.append(Scores(self.logits[last], list(rows)))
        return answers


def bigram_pair(text: str, pieces: int = 200) -> tuple[_Bigrams, _Bigrams]:
    """A target over the commonest strings of at most three letters, and a draft model over letters."""
    letters = sorted(set(text))
    counts: Counter[str] = Counter()
    for size in (2, 3):
        counts.update(text[at : at + size] for at in range(len(text) - size + 1))
    common = [piece for piece, _ in counts.most_common(pieces - len(letters))]
    return _Bigrams([*letters, *common], text), _Bigrams(letters, text)


def _letters(characters: int) -> str:
    """Prose of the library in lower-case letters and spaces."""
    found, length = [], 0
    for _, paragraph in prose():
        kept = "".join(letter if letter.isalpha() and letter.isascii() else " " for letter in paragraph.lower())
        found.append(" ".join(kept.split()))
        length += len(found[-1]) + 1
        if length >= characters:
            break
    return " ".join(found)


def _drafter(composition: Composition) -> HeterogeneousVocab:
    assert isinstance(composition.drafter, HeterogeneousVocab)
    return composition.drafter


def _summed(lab: Lab, size: Size) -> None:
    """Acceptance of slrs and slem where psi can be summed, and samples of all three."""
    text = _letters(60_000)
    target, draft = bigram_pair(text)
    sampler = StandardSampler(SamplingSettings(temperature=1.0))

    def composed(algorithm: str, **settings: object) -> Composition:
        chosen = {"algorithm": algorithm, **settings}
        return compose(target, "heterogeneous-vocab-sd", settings=chosen, sampler=sampler, models={"draft": draft})

    drafter = _drafter(composed("slrs", psi_tokens=3))
    rates = []
    start = torch.randint(len(text) - 40, (size.contexts,), generator=torch.Generator().manual_seed(0)).tolist()
    for at in start:
        context = target.tokenizer.encode(text[at : at + 24])
        p = target.logits[context[-1]].exp()
        psi = _psi(drafter, context)
        rates.append((float((p * psi).sum()), float(torch.minimum(p, psi).sum())))
    slem, slrs = (sum(rate) / len(rates) for rate in zip(*rates, strict=True))
    lab.row("acceptance of a first target token, bigram models: slrs (slem with a drawn string)", slem, slrs)
    lab.check(
        "slrs accepts at least as much as slem, at every context",
        f"{slrs:.3f} against {slem:.3f}",
        all(b >= a - 1e-12 for a, b in rates),
        slrs >= slem,
    )

    # Two tokens after a fixed beginning: a distribution that can be written down.
    prompt = target.tokenizer.encode("the ")
    p = target.logits[prompt[-1]].exp()
    both = p[:, None] * target.logits.exp()
    count = size.draws
    one = {token: float(p[token]) * count for token in (p * count >= 5).nonzero()[:, 0].tolist()}
    two = {(a, b): float(both[a, b]) * count for a, b in (both * count >= 5).nonzero().tolist()}
    limit = 0.01 / 3
    for algorithm, settings in (("slem", {"draw": True}), ("tli", {}), ("slrs", {"psi_tokens": 2})):
        drawn = _pairs(composed(algorithm, **settings), prompt, count)
        value = min(1.0, 2 * min(fit(Counter(a for a, _ in drawn), one, count), fit(Counter(drawn), two, count)))
        lab.row(f"p-value that {count} samples of two tokens are the target's, {algorithm} (limit)", limit, value)
        lab.check(f"{algorithm}: samples have the target's distribution (p > {limit:.4f})", value, value > limit)


def _psi(drafter: HeterogeneousVocab, context: list[int]) -> Tensor:
    """``[V]`` psi after a text."""
    branch = Branch(0, 0, context, _BigramCache(), 0, torch.device("cpu"), [])
    (draft,) = drafter.propose([branch], [Budget()])
    drafter.release(branch)
    assert draft.q is not None
    return draft.q[0]


def _pairs(composition: Composition, prompt: list[int], count: int) -> list[tuple[int, ...]]:
    """``count`` pairs of tokens after equal prompts."""
    events = composition.decode([prompt] * count, stop=Stop(2), seed=3)
    return [tuple(event.tokens) for event in events if isinstance(event, Finished)]


# -- models with tokenizers ---------------------------------------------------------------------------------------


def _pieces_of_code(model: LanguageModel, count: int, characters: int = 200) -> list[list[int]]:
    """Beginnings of functions in files that the draft model was not trained on."""
    found: list[list[int]] = []
    for document in stdlib("held-out"):
        at = document.text.find("\ndef ", 1500)
        piece = document.text[at + 1 : at + 1 + characters] if at > 0 else ""
        if len(piece) == characters:
            found.append(model.tokenizer.encode(piece))
        if len(found) == count:
            return found
    raise InvalidInput(f"the standard library holds {len(found)} pieces of held-out code; asked for {count}")


def _mass(composition: Composition, draft: LanguageModel, texts: Sequence[str]) -> float:
    """The draft model's mean probability of common strings over texts."""
    masses = []
    for text in texts:
        cache = draft.new_cache()
        for scores in draft.prefill(cache, draft.tokenizer.encode(text)):
            masses += [_drafter(composition).common_mass(row) for row in scores.logits]
        cache.release()
    return sum(masses) / len(masses)


@experiment(
    "heterogeneous-vocab-sd",
    quick=Size(
        code=3,
        new_tokens=24,
        prose=1,
        awkward=1,
        other_tokens=10,
        drafter="stdlib-pair/target",
        pair="gemma3-270m",
        pair_prompts=1,
        pair_tokens=8,
        contexts=40,
        draws=1500,
    ),
    full=Size(
        code=50,
        new_tokens=64,
        prose=50,
        awkward=2,
        other_tokens=64,
        drafter="stdlib-pair/target",
        pair="gemma3-270m",
        pair_prompts=10,
        pair_tokens=48,
        contexts=400,
        draws=20_000,
    ),
)
def EXPERIMENT(lab: Lab, size: Size) -> None:
    """Measure passes, accepted length and identity, the intersection, and the sums."""
    draft = load_model(size.drafter, progress=False)
    code = _pieces_of_code(lab.model, size.code)
    others = lab.prose(size.prose) + [lab.model.tokenizer.encode(text) for text in AWKWARD[: size.awkward]]
    lab.setup |= {"draft": draft.name, "prompts": "held-out code of the standard library", "sampler": "greedy"}

    plain = compose(lab.model)
    made = {
        algorithm: compose(
            lab.model, "heterogeneous-vocab-sd", settings={"algorithm": algorithm}, models={"draft": draft}
        )
        for algorithm in ("slem", "tli")
    }
    runs: dict[str, list[Continuation]] = {name: [] for name in ("plain", *made)}
    for number, prompt in enumerate(code, 1):
        lab.say(f"code, prompt {number} of {len(code)}: plain, slem, tli")
        for name, composition in {"plain": plain, **made}.items():
            runs[name] += decode_all(composition, [prompt], new_tokens=size.new_tokens)
    lab.say(f"{len(others)} prompts of prose and of awkward characters")
    more = {
        name: decode_all(composition, others, new_tokens=size.other_tokens, batch=max(len(others), 1))
        for name, composition in {"plain": plain, **made}.items()
    }
    for name in made:
        tau = tokens_per_step(runs[name])
        lab.row(
            f"target forwards per token on code, {name} (plain greedy)",
            forwards_per_token(runs["plain"]),
            forwards_per_token(runs[name]),
        )
        lab.row(f"tokens per step on code, {name} (plain greedy)", 1.0, tau)
        found = agreement(lab.model, runs["plain"] + more["plain"], runs[name] + more[name])
        lab.check(f"{name}: the output is that of plain greedy decoding", str(found), found.identical)
        if name == "slem":
            lab.check("slem: tokens per step on code >= 1.8", tau, tau >= 1.8, tau > 1)
        else:
            lab.check("tli: tokens per step on code > 1", tau, tau > 1)
    drafter = _drafter(made["tli"])
    lab.row(
        "strings that both vocabularies have, of the target's", None, drafter.common.shape[1] / lab.model.vocab_size
    )
    texts = [lab.model.tokenizer.decode(prompt) for prompt in code]
    lab.row("the draft model's probability of common strings, on code", None, _mass(made["tli"], draft, texts))

    _both_ways(lab, size, code)
    lab.say("bigram models: psi summed, samples of all three")
    _summed(lab, size)
    defaults = HeterogeneousVocabSettings()
    lab.note(
        f"Drafts of at most {defaults.tokens} tokens that end below a confidence of {defaults.confidence}. The 2.8x of "
        "the paper are wall-clock on GPUs with targets far larger than their draft models; here passes and accepted "
        "length are judged, and the pair of SmolLM2 and Gemma 3, which cost alike, is judged by identity alone."
    )


def _both_ways(lab: Lab, size: Size, code: Sequence[list[int]]) -> None:
    """The target and another model with a foreign tokenizer draft for each other."""
    other = load_model(size.pair, progress=False)
    texts = [lab.model.tokenizer.decode(prompt)[:80] for prompt in code[: size.pair_prompts]] + [AWKWARD[0]]
    for target, draft in ((lab.model, other), (other, lab.model)):
        lab.say(f"{draft.name} drafts for {target.name}")
        prompts = [target.tokenizer.encode(text) for text in texts[: size.pair_prompts + 1]]
        expected = decode_all(compose(target), prompts, new_tokens=size.pair_tokens, batch=len(prompts))
        for algorithm in ("slem", "tli"):
            settings = {"algorithm": algorithm, "tokens": 5}
            made = compose(target, "heterogeneous-vocab-sd", settings=settings, models={"draft": draft})
            got = decode_all(made, prompts, new_tokens=size.pair_tokens, batch=len(prompts))
            found = agreement(target, expected, got)
            lab.row(f"tokens per step, {algorithm}, {draft.name} drafts for {target.name}", 1.0, tokens_per_step(got))
            lab.check(
                f"{algorithm}: with {draft.name} as its draft model {target.name} gives plain greedy's text",
                str(found),
                found.identical,
            )
