"""DEL: self-speculation that chooses its exit layer and the length of its drafts as the text goes on.

After every round all positions of the round have hidden states after all layers: the lower ones from drafting, the
upper ones from verifying. Read through the last norm and the output head, they tell what every layer would have
drafted (its shadow tokens) at no further pass. Decayed counts of how often a layer agreed with the last one give its
expected acceptance rate ``alpha``, and the next round drafts from the layer ``l`` that promises most tokens for each
layer run,

    TPL(l, d) = (1 + alpha + ... + alpha^d) / (d l + L).

Drafting ends early after a token whose probability lies below the middle between the layer's mean confidence when it
agreed and when it did not (dynamic draft exiting); that token stays in the draft.

Paper: Entezari Zarch et al., DEL: Context-Aware Dynamic Exit Layer for Efficient Self-Speculative Decoding, 2025
(sections 3.1 to 3.4; decay 0.95, at most 18 tokens, 32 prompt tokens for the first estimate).

Lossless: only the verification of the chain decides what stands. Under sampling the early end depends on tokens that
are in the draft and on committed text alone; a token that was drawn is never dropped.

Where the paper is silent: positions behind the first refused token are left out, that position itself counts; under
sampling a layer agrees when both have the same most probable token; if no draft promises more than plain decoding
(``d = 0``), the round drafts nothing and the estimates go on; ``every`` looks at every k-th layer only, since the
output head is a large part of a small model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from unspool.core.branch import Branch
from unspool.core.cards import Card, Kind, settings
from unspool.core.model import Capability
from unspool.core.registry import register
from unspool.core.scores import Want
from unspool.core.sockets import Budget, Draft, Observation, Setup
from unspool.speculation.drafting._early_exit import Chain, EarlyExitDrafter


@settings
class DELSettings:
    """The paper's values."""

    tokens: Annotated[int, Field(ge=1, description="draft tokens a round at most")] = 18
    decay: Annotated[float, Field(gt=0.0, le=1.0, description="weight of a round's counts in the next round")] = 0.95
    start_layer: Annotated[int, Field(ge=1, description="exit of the first round")] = 1
    every: Annotated[int, Field(ge=1, description="look at every k-th layer only")] = 1
    prompt_tokens: Annotated[
        int, Field(ge=0, description="prompt positions behind the first estimate; 0 starts without one")
    ] = 32
    dynamic: Annotated[
        bool, Field(description="end a draft early by its confidence; else it is as long as was promised best")
    ] = True


def tokens_per_layer(alpha: Tensor, layers: Tensor, total: int, longest: int) -> Tensor:
    """``[C, longest + 1]`` expected tokens for each layer run, by exit layer and draft length.

    Args:
        alpha: ``[C]`` acceptance rates; ``nan`` where nothing is known, which gives ``-inf``.
        layers: ``[C]`` how many layers each candidate runs.
        total: layers of the model.
        longest: the longest draft that is looked at.
    """
    lengths = torch.arange(longest + 1, dtype=torch.float64)
    # 1 + alpha + ... + alpha^d as a running sum, which is safe at alpha = 1.
    expected = torch.cumsum(alpha[:, None] ** lengths, dim=1)
    gain = expected / (lengths * layers[:, None] + total)
    return gain.masked_fill(alpha.isnan()[:, None], -torch.inf)


class ShadowStatistics:
    """What the layers would have drafted, in decayed counts; all ``[C]`` float64.

    Attributes:
        matches, mismatches: positions where a layer agreed with the last one, and where not.
        sure_right, sure_wrong: sums of the layer's confidence on either.
    """

    def __init__(self, candidates: int, decay: float) -> None:
        self.decay = decay
        self.matches, self.mismatches, self.sure_right, self.sure_wrong = torch.zeros(
            4, candidates, dtype=torch.float64
        ).unbind()

    def update(self, agree: Tensor, confidence: Tensor) -> None:
        """Count the positions of a round: ``[C, T]`` whether each layer agreed, and how sure it was of its token."""
        right = agree.double()
        for held, new in (
            (self.matches, right),
            (self.mismatches, 1.0 - right),
            (self.sure_right, confidence * right),
            (self.sure_wrong, confidence * (1.0 - right)),
        ):
            held.mul_(self.decay).add_(new.sum(dim=1))

    @property
    def alpha(self) -> Tensor:
        return self.matches / (self.matches + self.mismatches)

    def threshold(self, place: int) -> float:
        """Below it a draft from that layer ends; ``nan`` (never below) until it was right once and wrong once."""
        means = self.sure_right[place] / self.matches[place] + self.sure_wrong[place] / self.mismatches[place]
        return float(means / 2)


class _Memory:
    """What is noted of one branch.

    Attributes:
        place: of the next exit among the candidates.
        length: the draft length that was promised best with it.
        recent: by layer, the hidden states of the prompt's last positions that were read so far.
        chain: the draft that is being verified.
    """

    def __init__(self, statistics: ShadowStatistics, place: int) -> None:
        self.statistics = statistics
        self.place = place
        self.length = 1
        self.begun = False
        self.recent: dict[int, Tensor] = {}
        self.chain: Chain | None = None


@register(
    Card(
        slug="del-dynamic-exit-layer",
        name="DEL, dynamic exit layer",
        kind=Kind.DRAFTER,
        summary="Self-speculation that picks the exit layer and the length of each draft by what every layer would "
        "have guessed so far.",
        paper="DEL: Context-Aware Dynamic Exit Layer for Efficient Self-Speculative Decoding, 2025",
        claim="2.16x to 2.62x over plain decoding with models trained for early exit, ahead of every fixed exit layer "
        "and draft length",
        lossless=True,
        needs=frozenset({Capability.LAYER_RANGES, Capability.HIDDEN_STATES}),
    ),
    DELSettings,
)
class DynamicExitLayer(EarlyExitDrafter):
    """Chains from the layer that promises most.

    Attributes:
        candidates: exits that are looked at, ascending.
        head_rows: rows that went through the output head for shadow tokens, since binding.
        chosen: rounds by (exit layer, draft length), since binding; a round without a draft stands under length 0.
    """

    settings: DELSettings
    candidates: list[int]

    def bind(self, setup: Setup) -> None:
        super().bind(setup)
        self.check_exit(self.settings.every, "every")
        self.check_exit(self.settings.start_layer, "start_layer")
        total = self.target.num_layers
        self.candidates = list(range(self.settings.every, total, self.settings.every))
        self.want = Want(hidden=frozenset([*self.candidates, total]))
        # The first exit is the candidate nearest to the wanted one.
        self._start = min(
            range(len(self.candidates)), key=lambda place: abs(self.candidates[place] - self.settings.start_layer)
        )
        self.head_rows = 0
        self.chosen: dict[tuple[int, int], int] = {}

    def _memory(self, branch: Branch) -> _Memory:
        memory = branch.memo.get(self)
        if memory is None:
            statistics = ShadowStatistics(len(self.candidates), self.settings.decay)
            memory = branch.memo[self] = _Memory(statistics, self._start)
        return memory

    # -- proposing ------------------------------------------------------------------------------------------------

    def propose(self, branches: Sequence[Branch], budgets: Sequence[Budget]) -> list[Draft]:
        chains: list[Chain | None] = []
        for branch, budget in zip(branches, budgets, strict=True):
            memory = self._memory(branch)
            free = self.settings.dynamic and memory.begun and memory.length > 0
            limit = min(budget.of(self.settings.tokens, self.settings.tokens if free else memory.length))
            layer = self.candidates[memory.place]
            chain = None
            if limit > 0 and branch.pending:
                chain = Chain(branch, layer, limit, [k for k in self.candidates if k <= layer])
            memory.chain = chain
            chains.append(chain)
        self.grow([chain for chain in chains if chain is not None])
        for branch, chain in zip(branches, chains, strict=True):
            key = (self.candidates[self._memory(branch).place], len(chain.tokens) if chain is not None else 0)
            self.chosen[key] = self.chosen.get(key, 0) + 1
        return [Draft.empty() if chain is None else chain.draft() for chain in chains]

    def stops(self, chain: Chain) -> bool:
        memory = self._memory(chain.branch)
        if not self.settings.dynamic:
            return False
        return chain.chances[-1] < memory.statistics.threshold(memory.place)

    # -- learning -------------------------------------------------------------------------------------------------

    def observe(self, step: Observation) -> None:
        branch = step.branch
        if branch.finished is not None:
            return
        memory = self._memory(branch)
        if len(branch.tokens) > branch.cache.length + step.offset:
            self._read_prompt(memory, step)
            return
        # Behind the first refused token the context is not the text's, so only the kept path is looked at.
        places = step.kept[max(step.offset - 1, 0) :]
        if not places:
            return
        layers = [*self.candidates, self.target.num_layers]
        states = {layer: self._states(memory, step, layer) for layer in layers}
        final = torch.stack([step.scores.at(place) for place in places]).argmax(dim=-1)
        seen = [states[layer][places] for layer in self.candidates]
        if not memory.begun:
            # The first estimate comes from the end of the prompt; there the last layer's token is to be computed, too.
            before = [self._before(memory, step, states[layer], layer) for layer in layers]
            if len(before[-1]):
                self.head_rows += len(before[-1])
                final = torch.cat([self.target.exit_head(before[-1]).argmax(dim=-1), final])
                seen = [torch.cat([old, new]) for old, new in zip(before[:-1], seen, strict=True)]
            memory.begun, memory.recent = True, {}
        agree, confidence = self._shadows(torch.stack(seen), final)
        memory.statistics.update(agree, confidence)
        memory.chain = None
        self._choose(memory)

    def _states(self, memory: _Memory, step: Observation, layer: int) -> Tensor:
        """``[N, d]`` what left a layer at the nodes of the scored tree."""
        entered = step.draft.entered
        if entered is None or layer > entered.layer:
            return step.scores.hidden[layer]
        assert memory.chain is not None
        return memory.chain.states(layer)

    def _read_prompt(self, memory: _Memory, step: Observation) -> None:
        """Note the end of what was read of the prompt."""
        count = self.settings.prompt_tokens
        for layer in (*self.candidates, self.target.num_layers) if count else ():
            held = memory.recent.get(layer)
            fresh = step.scores.hidden[layer][-count:]
            memory.recent[layer] = torch.cat([held, fresh])[-count:] if held is not None else fresh.clone()

    def _before(self, memory: _Memory, step: Observation, states: Tensor, layer: int) -> Tensor:
        """``[T, d]`` what left a layer at the last positions of the prompt but the very last one."""
        fresh = states[: max(step.offset - 1, 0)]
        held = memory.recent.get(layer)
        whole = fresh if held is None else torch.cat([held, fresh])
        return whole[len(whole) - min(len(whole), max(self.settings.prompt_tokens - 1, 0)) :]

    def _shadows(self, states: Tensor, final: Tensor) -> tuple[Tensor, Tensor]:
        """Whether each layer's token is the last layer's, and its probability, ``[C, T]`` both.

        Args:
            states: ``[C, T, d]`` what left the candidate layers.
            final: ``[T]`` the last layer's tokens.
        """
        count, places, size = states.shape
        self.head_rows += count * places
        logits = self.target.exit_head(states.reshape(count * places, size))
        best = logits.max(dim=-1)
        # softmax at the best token: exp(max - logsumexp), without writing the whole table.
        confidence = (best.values - logits.logsumexp(dim=-1)).exp().double().view(count, places)
        return best.indices.view(count, places) == final, confidence

    def _choose(self, memory: _Memory) -> None:
        layers = torch.tensor(self.candidates, dtype=torch.float64)
        gain = tokens_per_layer(memory.statistics.alpha, layers, self.target.num_layers, self.settings.tokens)
        best = int(gain.argmax())
        place, length = divmod(best, gain.shape[1])
        memory.length = length
        if length > 0:
            memory.place = place
