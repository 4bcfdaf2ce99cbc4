"""CodeSwift: retrieval for code, from the repository and from common code, and only where it is likely to help.

Two corpora are searched at once for the longest suffix of the text that occurs in them: the files of the repository at
hand (what is being written repeats their names and idioms) and a large collection of common code. What followed there
becomes one trie with weights, of which the heaviest nodes are the draft. After white space almost anything can follow
in code, so there retrieval is left out now and then. And before the corpora a cache is asked, which knows what was
retrieved after the same tokens before and what the model then preferred to write.

Paper: Zhao et al., CodeSwift: Accelerating LLM Inference for Efficient Code Generation, 2025 (section 3; later called
FastCoder).

Lossless: the candidates are fixed before the target is asked, and are matched with its own choices. Whether retrieval
is left out depends on the last committed token and on chance, not on what will be drafted.

Where the paper is silent: the text of the request itself counts as part of the repository; a store in which a longer
suffix was found weighs more (``match_weight`` for each token more); the cache is asked by the last three tokens and,
where it knows them, takes the place of the search; what the model wrote is kept for all places of its text.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from unspool.core.branch import Branch
from unspool.core.cards import Card, Kind, settings
from unspool.core.learned import Learned
from unspool.core.model import Capability
from unspool.core.registry import register
from unspool.core.sockets import Budget, Draft, Drafter, Observation, Setup
from unspool.core.tree import ROOT
from unspool.speculation.drafting._continuations import heaviest_tree, padded
from unspool.speculation.drafting._corpora import SOURCE_CODE, STANDARD_LIBRARY, index, read_texts
from unspool.speculation.drafting._ngram_pool import Key, NgramPool
from unspool.speculation.drafting._suffix_array import LONGEST, Hits, SuffixArray

_SALT = 0xC0DE5
_RETRIEVED_PATHS, _VERIFIED_PATHS = 16, 4
"""Continuations that the cache keeps for a context: of what was retrieved, and of what the model wrote."""


@settings
class CodeSwiftSettings:
    """A tree as large as REST's; 16 to 24 nodes are cheaper to verify on a CPU."""

    repository: Annotated[
        str | None, Field(description="the code at hand: a folder or a file; none leaves the text of the request alone")
    ] = None
    corpus: Annotated[
        str | None,
        Field(description="common code: a folder or a file, 'stdlib' for Python's standard library, or none"),
    ] = STANDARD_LIBRARY
    exclude: Annotated[
        tuple[str, ...], Field(description="patterns of files of the repository to leave out, as 'docs/*'")
    ] = ()
    corpus_megabytes: Annotated[int, Field(ge=1, description="of each corpus; what exceeds it is left out")] = 16
    nodes: Annotated[int, Field(ge=1, description="nodes of the draft tree")] = 64
    length: Annotated[int, Field(ge=1, description="tokens of a continuation")] = 10
    longest: Annotated[int, Field(ge=1, le=LONGEST, description="tokens of the suffix that is looked up first")] = 16
    shortest: Annotated[int, Field(ge=1, le=LONGEST, description="tokens of the suffix that is looked up last")] = 1
    retrieved: Annotated[int, Field(ge=1, description="places of each corpus to look at")] = 512
    repository_weight: Annotated[
        float, Field(gt=0, description="what an occurrence in the repository counts; in common code it counts 1")
    ] = 4.0
    match_weight: Annotated[
        float, Field(ge=1, description="factor of an occurrence for every token that its suffix is longer")
    ] = 4.0
    skip: Annotated[
        float, Field(ge=0, le=1, description="probability of not retrieving after white space; 0 always retrieves")
    ] = 0.5
    cache: Annotated[int, Field(ge=0, description="contexts that the cache knows; 0 for none")] = 4096
    cache_context: Annotated[int, Field(ge=1, le=LONGEST, description="last tokens by which the cache is asked")] = 3
    parallel: Annotated[bool, Field(description="search the two corpora in two threads")] = True


@dataclass
class Counts:
    """What was done how often.

    Attributes:
        steps: drafts that were asked for.
        skipped: after white space, without retrieval.
        cached: answered by the cache.
        searched: answered by searching the corpora.
    """

    steps: int = 0
    skipped: int = 0
    cached: int = 0
    searched: int = 0


@dataclass(frozen=True)
class _Request:
    """What is noted about a branch: the text that its request began with, indexed once, and chance."""

    text: SuffixArray
    chance: torch.Generator


@register(
    Card(
        slug="codeswift",
        name="CodeSwift",
        kind=Kind.DRAFTER,
        summary="Copies from the repository at hand and from common code what followed the last few tokens there.",
        paper="CodeSwift: Accelerating LLM Inference for Efficient Code Generation, 2025",
        claim="up to 2.53x faster at completing code in a repository, 2.54x alone; up to 88% ahead of earlier methods",
        lossless=True,
    ),
    CodeSwiftSettings,
)
class CodeSwift(Drafter):
    """A tree of what followed in two corpora.

    Args:
        repository, corpus: indexed already, in place of what the settings name.

    Attributes:
        verified, fetched: the cache: what the model wrote, and what was retrieved, after the same tokens. Kept
            from request to request. The corpora are not: they are what the settings say when a composition is built.
        counts: what was done how often.
        notes: in words, what is missing.
    """

    settings: CodeSwiftSettings

    def __init__(
        self,
        settings: CodeSwiftSettings | None = None,
        *,
        repository: SuffixArray | None = None,
        corpus: SuffixArray | None = None,
    ) -> None:
        super().__init__(settings)
        self.repository = repository
        self.corpus = corpus
        keys = max(self.settings.cache, 1)
        self.verified = NgramPool(_VERIFIED_PATHS, keys, self.settings.cache_context)
        self.fetched = NgramPool(_RETRIEVED_PATHS, keys, self.settings.cache_context)
        self.counts = Counts()
        self.notes: list[str] = []
        self._near = self.settings.repository_weight
        self._vocabulary = 0
        self._chain = False
        self._text_of: Callable[[list[int]], str] | None = None
        self._white: dict[int, bool] = {}
        self._thread: ThreadPoolExecutor | None = None

    @property
    def learned(self) -> dict[str, Learned]:
        if not self.settings.cache:
            return {}
        return {"codeswift.verified": self.verified, "codeswift.fetched": self.fetched}

    def bind(self, setup: Setup) -> None:
        target, chosen = setup.target, self.settings
        self._vocabulary = target.vocab_size
        self._chain = Capability.TREE not in target.capabilities
        self._text_of = target.tokenizer.decode if target.tokenizer is not None else None
        self._white = {}
        self.notes = []
        if target.tokenizer is None and (chosen.repository or chosen.corpus):
            self.notes.append(f"{target.name} has no tokenizer to read files with: only the text itself is searched")
        if self.repository is None:
            self.repository = self._indexed(chosen.repository, setup, chosen.exclude)
        if self.corpus is None:
            self.corpus = self._indexed(chosen.corpus, setup)
        for learned in (self.repository, self.corpus, self.verified, self.fetched):
            learned.bind(target.vocab_size, target.name)

    def _indexed(self, place: str | None, setup: Setup, exclude: tuple[str, ...] = ()) -> SuffixArray:
        target, who = setup.target, "codeswift"
        if place is None or target.tokenizer is None:
            return SuffixArray()
        total = self.settings.corpus_megabytes * 1_000_000
        texts = read_texts(place, who, endings=SOURCE_CODE, exclude=exclude, total_bytes=total)
        return index(texts, target.tokenizer, target.vocab_size, who, SuffixArray)

    # -- proposing ------------------------------------------------------------------------------------------------

    def draft(self, branch: Branch, budget: Budget) -> Draft:
        nodes, length = budget.of(self.settings.nodes, self.settings.length)
        tokens = branch.tokens
        self.counts.steps += 1
        if self.settings.skip and self._is_white(tokens[-1]):
            if float(torch.rand((), generator=self._noted(branch).chance)) < self.settings.skip:
                self.counts.skipped += 1
                return Draft.empty()
        key = self.verified.key_of(tokens) if self.settings.cache else None
        if key is not None:
            written, fetched = self.verified.get(key), self.fetched.get(key)
            if written or fetched:
                self.counts.cached += 1
                # What the model wrote itself counts like the repository against what was only retrieved; of each the
                # first outweighs all that follow.
                weights = np.concatenate(
                    [factor * 0.5 ** np.arange(len(of)) for of, factor in ((written, self._near), (fetched, 1.0))]
                )
                return heaviest_tree(padded(written + fetched, length), weights, nodes, chain=self._chain)
        self.counts.searched += 1
        rows, weights = self._search(branch)
        draft = heaviest_tree(rows, weights, self.settings.nodes)
        if key is not None:
            self._keep(key, draft)
        if self._chain or nodes < self.settings.nodes or length < self.settings.length:
            return heaviest_tree(rows[:, :length], weights, nodes, chain=self._chain)
        return draft

    def _keep(self, key: Key, draft: Draft) -> None:
        """Cache the heaviest paths of a tree, the heaviest of all as the newest."""
        # Of every node the shares of the nodes on its path, which rank it as best-first growth would.
        shares: list[tuple[float, ...]] = []
        for parent, confidence in zip(draft.tree.parent_list, draft.confidence, strict=True):
            above = () if parent == ROOT else shares[parent]
            shares.append((*above, confidence * (above[-1] if above else 1.0)))
        leaves = sorted(draft.tree.leaves, key=lambda leaf: shares[leaf], reverse=True)[:_RETRIEVED_PATHS]
        for leaf in reversed(leaves):
            self.fetched.insert(key, tuple(draft.tree.path_tokens(leaf)))

    def _search(self, branch: Branch) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """``[R, length]`` continuations from the text of the request, the repository and common code, and their
        weights ``[R]``."""
        assert self.repository is not None
        assert self.corpus is not None
        tokens, text = branch.tokens[-LONGEST:], self._request(branch)
        if self.settings.parallel and len(self.corpus) and len(self.repository):
            if self._thread is None:
                self._thread = ThreadPoolExecutor(1, "codeswift")
            common = self._thread.submit(self._retrieve, self.corpus, tokens)
            near = [self._retrieve(self.repository, tokens), self._retrieve(text, tokens)]
            found = [*near, common.result()]
        else:
            found = [self._retrieve(store, tokens) for store in (self.repository, self._request(branch), self.corpus)]
        longest = max(hits.matched for hits in found)
        rows = np.concatenate([hits.rows for hits in found])
        each = [
            np.full(len(hits.rows), hits.weight * factor * self.settings.match_weight ** (hits.matched - longest))
            for hits, factor in zip(found, (self._near, self._near, 1.0), strict=True)
        ]
        return rows, np.concatenate(each)

    def _retrieve(self, store: SuffixArray, tokens: list[int]) -> Hits:
        chosen = self.settings
        return store.retrieve(tokens, chosen.length, chosen.retrieved, chosen.longest, chosen.shortest)

    def _request(self, branch: Branch) -> SuffixArray:
        """The text that the request began with."""
        return self._noted(branch).text

    def _noted(self, branch: Branch) -> _Request:
        known: _Request | None = branch.memo.get(self)
        if known is None:
            # After a fork or a step back this is done again, with what had been written by then.
            text = SuffixArray.build([branch.context], self._vocabulary)
            known = branch.memo[self] = _Request(text, branch.aside(_SALT))
        return known

    def _is_white(self, token: int) -> bool:
        known = self._white.get(token)
        if known is None:
            text = self._text_of([token]) if self._text_of is not None else ""
            known = self._white[token] = bool(text) and not text.strip()
        return known

    # -- learning -------------------------------------------------------------------------------------------------

    def observe(self, step: Observation) -> None:
        before = step.branch.tokens
        key = self.verified.key_of(before)
        if not self.settings.cache or not step.tokens or key is None:
            return
        length, new = self.settings.length, len(step.tokens)
        self.verified.insert(key, tuple(step.tokens[:length]))
        # What is written now completes the continuations of earlier places.
        text = [*before[-(self.settings.cache_context + length) :], *step.tokens]
        self.verified.insert_text(text, length, len(text) - new)
