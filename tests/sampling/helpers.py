"""What the tests of this room share: a drafter of random trees, and one way to run the loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tests.toys import TableModel

from unspool.core.branch import Branch
from unspool.core.compose import Composition
from unspool.core.events import Event, Finished, Scored
from unspool.core.sockets import Budget, Draft, Drafter, Node, Sampler
from unspool.core.texts import Stop
from unspool.core.tree import TokenTree


class RandomTrees(Drafter):
    """Random tries; half of their tokens are the model's most probable ones, so that much is accepted."""

    def __init__(self, model: TableModel, seed: int = 0, paths: int = 4, depth: int = 4) -> None:
        super().__init__()
        self.model, self.paths, self.depth = model, paths, depth
        self.rng = torch.Generator().manual_seed(seed)

    def draft(self, branch: Branch, budget: Budget) -> Draft:
        def number(high: int) -> int:
            return int(torch.randint(high, (), generator=self.rng))

        grown = []
        for _ in range(number(self.paths + 1)):
            path: list[int] = []
            for _ in range(1 + number(self.depth)):
                best = int(self.model.next_logits(branch.tokens + path).argmax())
                path.append(best if number(2) else number(self.model.vocab_size))
            grown.append(path)
        return Draft(TokenTree.from_paths(grown))


@dataclass
class Ran:
    """What a run of the loop gave."""

    tokens: list[list[int]]
    events: list[Event]

    @property
    def forwards(self) -> int:
        return sum(event.forwards for event in self.events if isinstance(event, Scored))


def run(
    model: TableModel,
    prompts: Sequence[Sequence[int]],
    sampler: Sampler,
    length: int,
    *,
    seed: int = 0,
    stop_tokens: frozenset[int] = frozenset(),
    **parts: Any,
) -> Ran:
    """Decode and collect; ``parts`` are further sockets, ``chunk`` the loop's own."""
    chunk = parts.pop("chunk", 256)
    made = Composition(model, sampler, **parts)
    events = list(made.decode(prompts, stop=Stop(length, tokens=stop_tokens), seed=seed, chunk=chunk))
    finished = {event.index: list(event.tokens) for event in events if isinstance(event, Finished)}
    return Ran([finished[index] for index in range(len(prompts))], events)


def node(
    model: TableModel, tokens: list[int], logits: torch.Tensor | None = None, prompt_length: int | None = None
) -> Node:
    """A place at the end of ``tokens``, outside of the loop."""
    branch = Branch(0, 0, list(tokens), model.new_cache(), 0, model.device, [])
    branch.prompt_length = len(tokens) if prompt_length is None else prompt_length
    return Node(branch, -1, model.next_logits(tokens) if logits is None else logits, None, list(tokens))
