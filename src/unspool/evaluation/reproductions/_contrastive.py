"""Contrastive search, the baseline that several papers on open-ended text measure themselves against.

Of the ``k`` most probable tokens the one with the largest ``(1 - alpha) p(v) - alpha max_j cos(h_v, h_j)`` is taken,
where ``h_v`` is the final hidden state of the candidate and ``h_j`` that of every token before it: probable, and unlike
what was said. The candidates have to be run through the model before one is chosen; the chosen one's pass serves as the
next step's.

Su et al., A Contrastive Framework for Neural Text Generation, 2022, equation 5. The reference runs the candidates as a
batch over ``k`` copies of the cache; here they are siblings of one tree, which is the same and cheaper.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch.nn.functional import normalize

from unspool.core.model import Capability, LanguageModel
from unspool.core.scores import Request, Want
from unspool.core.tree import ROOT, TokenTree

_FINAL = -1
_NEEDS = frozenset({Capability.TREE, Capability.HIDDEN_STATES})


@torch.no_grad()
def contrastive_search(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    new_tokens: int,
    k: int = 5,
    alpha: float = 0.6,
    forbidden: Collection[int] = (),
) -> list[list[int]]:
    """Continue every prompt by ``new_tokens`` tokens, all of them side by side.

    Args:
        k, alpha: candidates and weight of the penalty; the defaults are the paper's.
        forbidden: tokens that are never taken (those that end a text).

    Raises:
        Incompatible: if the model lacks tree attention or hidden states.
    """
    model.require(_NEEDS, "contrastive search")
    want = Want(frozenset({_FINAL}))
    banned = torch.tensor(sorted(forbidden), dtype=torch.int64)
    caches = model.new_caches(len(prompts))
    texts: list[list[int]] = [[] for _ in prompts]
    try:
        trees = [TokenTree.chain(list(prompt)) for prompt in prompts]
        requests = [Request(cache, tree, rows=[len(tree) - 1]) for cache, tree in zip(caches, trees, strict=True)]
        answers = model.score(requests, want)
        logits = [scores.logits[0] for scores in answers]
        before = [normalize(scores.hidden[_FINAL], dim=-1) for scores in answers]
        for cache, tree in zip(caches, trees, strict=True):
            cache.commit(range(len(tree)))

        for _ in range(new_tokens):
            chances = [
                torch.softmax(row.index_fill(0, banned.to(row.device), -torch.inf), -1).topk(k) for row in logits
            ]
            trees = [TokenTree(top.indices.tolist(), [ROOT] * k) for top in chances]
            answers = model.score([Request(cache, tree) for cache, tree in zip(caches, trees, strict=True)], want)
            for place, (top, scores) in enumerate(zip(chances, answers, strict=True)):
                candidates = normalize(scores.hidden[_FINAL], dim=-1)
                likeness = (candidates @ before[place].T).amax(-1)
                best = int(((1 - alpha) * top.values - alpha * likeness).argmax())
                texts[place].append(trees[place].token_list[best])
                caches[place].commit([best])
                logits[place] = scores.at(best)
                before[place] = torch.cat([before[place], candidates[best : best + 1]])
    finally:
        for cache in caches:
            cache.release()
    return texts
