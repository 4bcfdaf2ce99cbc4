"""A draft model of another vocabulary: any model drafts for any other.

Three ways across, after what the draft model has read is kept equal to the target's text (re-encoded by windows):

- ``slem`` (string-level exact match): the draft is decoded and encoded again in the target's tokens. Those are fixed
  candidates, which are matched with the target's own choices; probabilities of the draft model are not needed.
- ``tli`` (token-level intersection): the draft model is held to the strings that both vocabularies have,
  ``q'(x) = q(x) / sum of q over them``, and judged by speculative sampling with ``q'`` in the target's vocabulary.
- ``slrs`` (string-level rejection sampling): one token is drawn from ``psi``, the distribution of the *first* target
  token of the draft's string, and judged by speculative sampling. ``psi(t)`` sums over all draft sequences whose string
  begins with ``t``; that is exponential, so it is for vocabularies of a few dozen tokens.

``auto`` takes ``tli`` where the draft model's mass on the common strings is high, and ``slem`` where it is not; it
decides for a whole draft, from the text before it.

Paper: Timor et al., Accelerating LLM Inference with Lossless Speculative Decoding Algorithms for Heterogeneous
Vocabularies, 2025 (algorithms 2 to 4; defaults of the implementation in transformers).

Lossless: fixed candidates are matched, and what is drawn is drawn from the distribution that the verifier is told. A
draft ends after a token of low confidence, which is kept: that forgoes a further guess and drops none.

Where the paper is silent: under a random sampler ``slem`` guesses the most probable tokens, which are accepted more
often than drawn ones (``draw`` draws them); the mass is a moving average over the drafts of a text; after an unfinished
character ``tli`` and ``slrs`` wait for its end. Without two tokenizers tokens are compared by number, and the models
must have equally many.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from unspool.core.branch import Branch
from unspool.core.cards import Card, Kind, settings
from unspool.core.errors import Incompatible
from unspool.core.model import Capability
from unspool.core.registry import register
from unspool.core.sockets import Budget, Draft, Proposal, Setup, draw
from unspool.core.tree import ROOT, TokenTree
from unspool.speculation.drafting._draft_caches import DraftModelDrafter, Growth
from unspool.speculation.drafting._text_alignment import Alignment, SameTokens, plain, spellings

# Weight of the newest draft in the average of the mass on common strings.
_FRESH = 0.2


@settings
class HeterogeneousVocabSettings:
    """The defaults of the implementation in transformers, but for the length of the longest draft (there 20)."""

    model: Annotated[str | None, Field(description="name of the draft model, if none was handed over")] = None
    algorithm: Annotated[
        Literal["auto", "slem", "slrs", "tli"], Field(description="how to get from one vocabulary to the other")
    ] = "auto"
    tokens: Annotated[int, Field(ge=1, description="tokens of the draft model in a draft, at most")] = 10
    confidence: Annotated[
        float, Field(ge=0, le=1, description="a draft ends after a token of which the draft model is less sure")
    ] = 0.4
    look_behind: Annotated[int, Field(ge=1, description="tokens that are encoded again with new ones")] = 10
    mass: Annotated[
        float, Field(ge=0, le=1, description="auto: least mass on the common strings for which tli is chosen")
    ] = 0.9
    draw: Annotated[
        bool, Field(description="slem under a random sampler: draw the draft instead of taking the most probable")
    ] = False
    psi_tokens: Annotated[
        int, Field(ge=1, description="slrs: tokens of the draft model whose string decides on the target's token")
    ] = 3
    psi_sequences: Annotated[int, Field(ge=1, description="slrs: sequences that may be summed over, at most")] = 32768


class _Crossing:
    """A text in both vocabularies, as noted of a branch; ``mass`` is the average on common strings."""

    def __init__(self, alignment: Alignment | SameTokens) -> None:
        self.alignment = alignment
        self.mass: float | None = None


class _Guess:
    """One draft while it grows: ``growth`` in the draft model's tokens, the rest in the target's.

    Attributes:
        algorithm: decided after the first pass.
        tokens, q, confidence: of tli: target tokens, what they were drawn from, and their probabilities.
        limit: target tokens that are of use.
    """

    def __init__(self, branch: Branch, budget: Budget, growth: Growth) -> None:
        self.branch = branch
        self.growth = growth
        self.limit = min(budget.of(sys.maxsize, sys.maxsize))
        self.algorithm = ""
        self.tokens: list[int] = []
        self.q: list[Tensor] = []
        self.confidence: list[float] = []


@register(
    Card(
        slug="heterogeneous-vocab-sd",
        name="Speculation across vocabularies",
        kind=Kind.DRAFTER,
        summary="A draft model with another tokenizer guesses, by strings or by the tokens that both models have.",
        paper="Accelerating LLM Inference with Lossless Speculative Decoding Algorithms for Heterogeneous "
        "Vocabularies, 2025",
        claim="any model drafts for any other, whatever its tokenizer; up to 2.8x faster than plain decoding, lossless",
        lossless=True,
        models=("draft",),
    ),
    HeterogeneousVocabSettings,
)
class HeterogeneousVocab(DraftModelDrafter):
    """Chains of a model with another tokenizer.

    Attributes:
        common: ``[2, I]`` tokens of the strings that both vocabularies have: the draft model's, the target's.
    """

    settings: HeterogeneousVocabSettings

    def __init__(self, settings: HeterogeneousVocabSettings | None = None) -> None:
        super().__init__(settings)
        self.proposal = Proposal.POINT if self.settings.algorithm == "slem" else Proposal.SAMPLED
        # What the draft model has read of each branch: the text in its own tokens.
        self._readings: dict[int, Branch] = {}

    # -- binding --------------------------------------------------------------------------------------------------

    def bind(self, setup: Setup) -> None:
        who, target = self.card.slug, setup.target
        self.sampler = setup.sampler
        self.target = target
        self.model = self.draft_model(setup)
        self._by_number = target.tokenizer is None or self.model.tokenizer is None
        if self._by_number:
            if target.vocab_size != self.model.vocab_size:
                raise Incompatible(
                    f"{who}: {self.model.name} has {self.model.vocab_size} tokens, {target.name} has "
                    f"{target.vocab_size}, and not both have a tokenizer to get from one to the other"
                )
            self.check_vocabularies(target, self.model, who)
            self.common = torch.arange(target.vocab_size).expand(2, -1)
        else:
            for model in (target, self.model):
                if Capability.ENCODER in model.capabilities:
                    raise Incompatible(f"{who}: {model.name} has an encoder; only models without one can be joined")
            ours = spellings(target.tokenizer, target.vocab_size)
            theirs = spellings(self.model.tokenizer, self.model.vocab_size)
            pairs = sorted((theirs[text], ours[text]) for text in theirs.keys() & ours.keys())
            self.common = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T.contiguous()
        if self.settings.algorithm == "tli" and not self.common.shape[1]:
            raise Incompatible(f"{who}: {self.model.name} and {target.name} share no token; take algorithm=slem")
        # Of every token of the target the draft model's; -1 for those outside the intersection.
        self._draft_of = torch.full((target.vocab_size,), -1)
        self._draft_of[self.common[1]] = self.common[0]
        if self.settings.algorithm == "slrs":
            self._first = self._first_tokens(1 if self._by_number else self.settings.psi_tokens)

    def _first_tokens(self, length: int) -> Tensor:
        """``[V_draft ** length]`` first target token of every sequence of the draft model, -1 where it has no text."""
        count = self.model.vocab_size**length
        if not self._by_number and count > self.settings.psi_sequences:
            raise Incompatible(
                f"{self.card.slug}: slrs would sum over {self.model.vocab_size}^{length} = {count} sequences of "
                f"{self.model.name}, more than psi_sequences={self.settings.psi_sequences}: take a draft model with a "
                f"smaller vocabulary, fewer psi_tokens, or algorithm=slem"
            )
        if length > 1:
            self.model.require(frozenset({Capability.TREE}), f"{self.card.slug} with slrs")
        self._psi_length = length
        if self._by_number:
            return torch.arange(count)
        decode = self.model.tokenizer.decode
        found = []
        for sequence in itertools.product(range(self.model.vocab_size), repeat=length):
            first = plain(self.target.tokenizer, decode(sequence))[:1]
            found.append(first[0] if first else -1)
        if max(found) < 0:
            raise Incompatible(f"{self.card.slug}: no text of {self.model.name} has a token of {self.target.name}")
        return torch.tensor(found)

    # -- following the text ---------------------------------------------------------------------------------------

    def _crossing(self, branch: Branch) -> _Crossing:
        known: _Crossing | None = branch.memo.get(self)
        if known is None:
            made = (
                SameTokens()
                if self._by_number
                else Alignment(self.target.tokenizer, self.model.tokenizer, self.settings.look_behind)
            )
            known = branch.memo[self] = _Crossing(made)
        return known

    def _reading(self, branch: Branch) -> Branch:
        """The branch as the draft model sees it."""
        reading = self._readings.get(id(branch))
        if reading is None:
            reading = Branch(
                branch.index, branch.number, [], branch.cache, branch.seed, torch.device("cpu"), branch.source
            )
            self._readings[id(branch)] = reading
        reading.tokens = self._crossing(branch).alignment.follow(branch.tokens)
        return reading

    def release(self, branch: Branch) -> None:
        branch.memo.pop(self, None)
        reading = self._readings.pop(id(branch), None)
        if reading is not None:
            super().release(reading)

    # -- proposing ------------------------------------------------------------------------------------------------

    def propose(self, branches: Sequence[Branch], budgets: Sequence[Budget]) -> list[Draft]:
        algorithm = self.settings.algorithm
        drafts = [Draft.empty() for _ in branches]
        places, readings = [], []
        for place, branch in enumerate(branches):
            reading = self._reading(branch)
            waiting = algorithm in ("tli", "slrs") and self._crossing(branch).alignment.held(branch.tokens)
            # A text without any characters gives the draft model nothing to read.
            if reading.tokens and not waiting:
                places.append(place)
                readings.append(reading)
        if not places:
            return drafts
        length = self._psi_length if algorithm == "slrs" else self.settings.tokens
        growths = self.grow(readings, [Budget()] * len(readings), None, length)
        guesses = {
            place: _Guess(branches[place], budgets[place], growth)
            for place, growth in zip(places, growths, strict=True)
            if growth is not None
        }
        if algorithm == "slrs":
            # With less context left than the sum needs there is no draft.
            guesses = {place: guess for place, guess in guesses.items() if guess.growth.depth == length}
            found = self._string_level_sampling(list(guesses.values()))
        else:
            self._grow_chains(list(guesses.values()))
            found = [self._draft(guess) for guess in guesses.values()]
        for place, draft in zip(guesses, found, strict=True):
            drafts[place] = draft
        return drafts

    def _grow_chains(self, guesses: list[_Guess]) -> None:
        while guesses:
            ends = [len(guess.growth) - 1 if len(guess.growth) else ROOT for guess in guesses]
            scored = self.score([guess.growth for guess in guesses], [[end] for end in ends])
            guesses = [
                guess for guess, scores in zip(guesses, scored, strict=True) if self._lengthen(guess, scores.logits[0])
            ]

    def _lengthen(self, guess: _Guess, logits: Tensor) -> bool:
        """Add one token after ``[V_draft]`` logits; whether the draft goes on after it."""
        if not guess.algorithm:
            guess.algorithm = self._choose(guess.branch, logits)
        step = self._step_in_common if guess.algorithm == "tli" else self._step_in_draft
        confidence = step(guess, logits)
        return confidence >= self.settings.confidence and len(guess.growth) < guess.growth.depth

    def common_mass(self, logits: Tensor) -> float:
        """The draft model's probability of the tokens whose strings the target has, from ``[V_draft]`` logits."""
        return float(torch.softmax(logits.float(), dim=-1)[self.common[0].to(logits.device)].sum())

    def _choose(self, branch: Branch, logits: Tensor) -> str:
        if self.settings.algorithm != "auto":
            return self.settings.algorithm
        crossing = self._crossing(branch)
        mass = self.common_mass(logits)
        crossing.mass = mass if crossing.mass is None else (1 - _FRESH) * crossing.mass + _FRESH * mass
        waiting = crossing.alignment.held(branch.tokens)
        return "tli" if self.common.shape[1] and crossing.mass >= self.settings.mass and not waiting else "slem"

    def _step_in_draft(self, guess: _Guess, logits: Tensor) -> float:
        """slem: the next token in the draft model's own vocabulary."""
        q = torch.softmax(logits.float(), dim=-1)
        token = (
            draw(q.to(guess.branch.rng.device), guess.branch.rng)
            if self.settings.draw and not self.sampler.deterministic
            else int(q.argmax())
        )
        if token in self.model.stop_tokens:
            return -1.0
        guess.growth.add(token, len(guess.growth) - 1)
        return float(q[token])

    def _step_in_common(self, guess: _Guess, logits: Tensor) -> float:
        """tli: the next token among the common strings, drawn in the target's vocabulary."""
        theirs, ours = self.common.to(logits.device)
        own = logits.new_full((self.target.vocab_size,), -torch.inf)
        own[ours] = logits[theirs]
        if self.sampler.deterministic:
            best = torch.softmax(logits[theirs].float(), dim=-1).max(dim=-1)
            token, chance = int(ours[best.indices]), float(best.values)
        else:
            q = self.sampler.draft_probs(own, guess.branch.tokens + guess.tokens, guess.branch)
            if not q.sum() > 0:
                return -1.0  # The sampler allows nothing of what is common.
            token = draw(q, guess.branch.rng)
            chance = float(q[token])
            guess.q.append(q)
        guess.tokens.append(token)
        guess.confidence.append(chance)
        guess.growth.add(int(self._draft_of[token]), len(guess.growth) - 1)
        return chance if len(guess.tokens) < guess.limit else -1.0

    def _draft(self, guess: _Guess) -> Draft:
        """What was guessed, in the target's tokens."""
        if guess.algorithm == "tli":
            q = torch.stack(guess.q) if guess.q else None
            rows = list(range(len(guess.q)))
            return Draft(TokenTree.chain(guess.tokens), q, rows, guess.confidence)
        alignment = self._crossing(guess.branch).alignment
        tokens = alignment.candidates(guess.branch.tokens, guess.growth.tokens)
        return Draft(TokenTree.chain(tokens[: guess.limit]))

    # -- summing over strings -------------------------------------------------------------------------------------

    def first_token_probs(self, growths: list[Growth]) -> list[Tensor]:
        """``[V_target]`` psi of each: how likely the draft's string begins with each token of the target.

        Sequences without any text count for nothing; the others are renormalised.
        """
        size = self.model.vocab_size
        joint = [torch.ones(1, dtype=torch.float64) for _ in growths]
        frontiers: list[list[int]] = [[ROOT] for _ in growths]
        for level in range(self._psi_length):
            scored = self.score(growths, frontiers)
            for place, (growth, scores) in enumerate(zip(growths, scored, strict=True)):
                q = torch.softmax(self._tempered(scores.logits).double().cpu(), dim=-1)
                joint[place] = (joint[place][:, None] * q).reshape(-1)
                if level + 1 < self._psi_length:
                    frontiers[place] = [growth.add(t, node) for node in frontiers[place] for t in range(size)]
        found = []
        for chances in joint:
            known = self._first >= 0
            psi = torch.zeros(self.target.vocab_size, dtype=torch.float64)
            psi.index_add_(0, self._first[known], chances[known])
            found.append(psi / psi.sum())
        return found

    def _tempered(self, logits: Tensor) -> Tensor:
        """A draft that is as bold as the sampler; any other would be exact as well."""
        temperature = getattr(self.sampler.settings, "temperature", 1.0) or 1.0
        return logits.float() / temperature

    def _string_level_sampling(self, guesses: list[_Guess]) -> list[Draft]:
        if not guesses:
            return []
        drafts = []
        for guess, psi in zip(guesses, self.first_token_probs([g.growth for g in guesses]), strict=True):
            rng = guess.branch.rng
            q = psi.to(rng.device)
            if self.sampler.deterministic:
                token = int(q.argmax())
                drafts.append(Draft(TokenTree.chain([token]), confidence=[float(q[token])]))
            else:
                token = draw(q, rng)
                drafts.append(Draft(TokenTree.chain([token]), q[None], [0], [float(q[token])]))
        return drafts
