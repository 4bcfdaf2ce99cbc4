"""Numbers about texts: repetition, variety, coherence, likelihood.

The measures of repetition see token ids (or words) and nothing else, so they can be checked by hand; those that ask a
model take any :class:`~unspool.core.model.LanguageModel`.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from unspool.core.errors import InvalidInput
from unspool.core.model import Capability, LanguageModel
from unspool.core.scores import LOGITS, Request, Scores, Want
from unspool.core.tree import TokenTree

_FINAL = -1
"""The hidden state that the head reads."""


# -- repetition and variety ---------------------------------------------------------------------------------------


def ngrams(tokens: Sequence[Hashable], n: int) -> list[tuple[Hashable, ...]]:
    """All ``n``-grams in order, repeated ones as often as they occur."""
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def repeats(tokens: Sequence[Hashable], n: int) -> list[bool]:
    """For every ``n``-gram, in order, whether it occurred before (overlapping or not)."""
    seen: set[tuple[Hashable, ...]] = set()
    found = []
    for gram in ngrams(tokens, n):
        found.append(gram in seen)
        seen.add(gram)
    return found


def rep_n(tokens: Sequence[Hashable], n: int) -> float:
    """Share of ``n``-grams that are repetitions: ``1 - unique / total``, between 0 and 1.

    0 for a text that is too short to hold one. (Su et al., A Contrastive Framework for Neural Text Generation, 2022,
    section 5.1, who write it times 100; Welleck et al., 2020, call it seq-rep-n.)
    """
    grams = ngrams(tokens, n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def diversity(tokens: Sequence[Hashable]) -> float:
    """``(1 - rep_2) (1 - rep_3) (1 - rep_4)``: near 1 for a text without repetition, near 0 for one that loops.

    Su et al., 2022, section 5.1.
    """
    return math.prod(1 - rep_n(tokens, n) for n in (2, 3, 4))


def distinct_n(texts: Sequence[Sequence[Hashable]], n: int) -> float:
    """Distinct ``n``-grams over all ``n``-grams of a set of texts; texts that repeat one another lower it.

    0 if no text holds one. (Li et al., A Diversity-Promoting Objective Function for Neural Conversation Models, 2016,
    section 5.2.)
    """
    grams = [gram for text in texts for gram in ngrams(text, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


# -- what a model says --------------------------------------------------------------------------------------------


def _read(
    model: LanguageModel, tokens: Sequence[int], first: int, want: Want, chunk: int
) -> Iterator[tuple[int, Scores]]:
    """Read ``tokens`` in chunks: where each begins, and its scores; logits of rows from ``first`` on only."""
    cache = model.new_cache()
    try:
        for begin in range(0, len(tokens), chunk):
            piece = TokenTree.chain(tokens[begin : begin + chunk])
            rows = [row for row in range(len(piece)) if begin + row >= first]
            yield begin, model.score([Request(cache, piece, rows=rows)], want)[0]
            cache.commit(range(len(piece)))
    finally:
        cache.release()


def _check(prompt: Sequence[int], tokens: Sequence[int]) -> None:
    if not len(prompt) or not len(tokens):
        raise InvalidInput(f"a prompt and a continuation are needed; got {len(prompt)} and {len(tokens)} tokens")


@torch.no_grad()
def continuation_logits(
    model: LanguageModel, prompt: Sequence[int], tokens: Sequence[int], *, chunk: int = 256
) -> Tensor:
    """``[T, V]`` logits from which each of ``tokens`` would be chosen after ``prompt``.

    Raises:
        InvalidInput: if the prompt is empty (nothing precedes the first token) or there are no tokens.
    """
    _check(prompt, tokens)
    read = _read(model, [*prompt, *tokens][:-1], len(prompt) - 1, LOGITS, chunk)
    return torch.cat([scores.logits for _, scores in read if scores.rows])


@torch.no_grad()
def sibling_logits(model: LanguageModel, prompt: Sequence[int], texts: Sequence[Sequence[int]]) -> list[Tensor]:
    """``[T, V]`` logits for each of several continuations of one prompt, all of them from one pass over their trie.

    What they share is read once; memory holds a row of logits for every node of the trie. Needs tree attention.

    Raises:
        InvalidInput: if the prompt or a continuation is empty.
        Incompatible: if the model scores only chains.
    """
    model.require(frozenset({Capability.TREE}), "reading several continuations at once")
    for text in texts:
        _check(prompt, text)
    tree = TokenTree.from_paths([[prompt[-1], *text[:-1]] for text in texts])
    cache = model.new_cache()
    try:
        model.prefill(cache, prompt[:-1], rows=[])
        scores = model.score([Request(cache, tree)])[0]
    finally:
        cache.release()
    found = []
    for text in texts:
        nodes = [0]
        for token in text[:-1]:
            child = tree.child(nodes[-1], token)
            assert child is not None
            nodes.append(child)
        found.append(scores.logits[nodes])
    return found


@torch.no_grad()
def log_probs(model: LanguageModel, prompt: Sequence[int], tokens: Sequence[int], *, chunk: int = 256) -> Tensor:
    """``[T]`` natural-log probabilities of ``tokens`` after ``prompt``; memory holds ``chunk`` rows of logits at most.

    Raises:
        InvalidInput: if either is empty.
    """
    _check(prompt, tokens)
    first = len(prompt) - 1
    found = []
    for begin, scores in _read(model, [*prompt, *tokens][:-1], first, LOGITS, chunk):
        if scores.rows:
            at = begin + scores.rows[0] - first
            said = torch.tensor(tokens[at : at + len(scores.rows)], device=scores.logits.device)
            chosen = scores.logits.gather(-1, said[:, None]).squeeze(-1)
            found.append(chosen - torch.logsumexp(scores.logits, -1))
    return torch.cat(found)


def perplexity(
    model: LanguageModel, texts: Sequence[tuple[Sequence[int], Sequence[int]]], *, chunk: int = 256
) -> float:
    """``exp`` of the mean negative log-probability of a token, over all (prompt, continuation) pairs together.

    Jelinek et al., Perplexity, a measure of the difficulty of speech recognition tasks, 1977. Only the continuations
    count; the prompts are context. The tokens are those of ``model``.
    """
    every = torch.cat([log_probs(model, prompt, tokens, chunk=chunk).double() for prompt, tokens in texts])
    return math.exp(-float(every.mean()))


@torch.no_grad()
def pooled(model: LanguageModel, tokens: Sequence[int], *, chunk: int = 256) -> Tensor:
    """``[d]`` mean of the final hidden states of ``tokens``, read on their own.

    Raises:
        InvalidInput: if there are no tokens.
        Incompatible: if the model shows no hidden states.
    """
    model.require(frozenset({Capability.HIDDEN_STATES}), "the coherence of a text")
    if not len(tokens):
        raise InvalidInput("there are no tokens to pool")
    want = Want(frozenset({_FINAL}))
    hidden = [scores.hidden[_FINAL] for _, scores in _read(model, tokens, len(tokens), want, chunk)]
    return torch.cat(hidden).double().mean(0)


@torch.no_grad()
def last_states(model: LanguageModel, texts: Sequence[Sequence[int]], *, chunk: int = 256) -> np.ndarray:
    """``[n, d]`` final hidden state of the last token of each of ``n`` texts, read on their own.

    Raises:
        InvalidInput: if a text has no tokens.
        Incompatible: if the model shows no hidden states.
    """
    model.require(frozenset({Capability.HIDDEN_STATES}), "features of texts")
    want = Want(frozenset({_FINAL}))
    rows = []
    for tokens in texts:
        if not len(tokens):
            raise InvalidInput("a text without tokens has no last state")
        last = list(_read(model, tokens, len(tokens), want, chunk))[-1][1]
        rows.append(last.hidden[_FINAL][-1].double().cpu().numpy())
    return np.stack(rows)


def coherence(model: LanguageModel, prompt: Sequence[int], tokens: Sequence[int], *, chunk: int = 256) -> float:
    """Cosine of the mean-pooled final hidden states of prompt and continuation, each read on its own: -1 to 1.

    Su et al., A Contrastive Framework for Neural Text Generation, 2022, section 5.1, with the embedding of the model
    at hand in place of SimCSE. The hidden states of a language model share a large common direction, so only
    differences between methods mean something.
    """
    return float(torch.cosine_similarity(pooled(model, prompt, chunk=chunk), pooled(model, tokens, chunk=chunk), dim=0))


# -- telling two sets of scores apart -----------------------------------------------------------------------------


def auc(positive: Sequence[float], negative: Sequence[float]) -> float:
    """Area under the ROC curve: the chance that a positive scores higher than a negative, ties counted half.

    Hanley and McNeil, The meaning and use of the area under a ROC curve, 1982 (the Mann-Whitney statistic).

    Raises:
        InvalidInput: if a side is empty.
    """
    if not len(positive) or not len(negative):
        raise InvalidInput(f"an AUC needs both sides; got {len(positive)} positive and {len(negative)} negative scores")
    above = torch.tensor(list(positive), dtype=torch.float64)[:, None]
    below = torch.tensor(list(negative), dtype=torch.float64)[None, :]
    return float(((above > below).double() + 0.5 * (above == below).double()).mean())
