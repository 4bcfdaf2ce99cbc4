"""How often a candidate turns out to be what comes next: learned from the text as it grows.

Every candidate is of a class: who proposed it, how sure the proposer was, how deep it stands, the how-many-th of its
siblings it is. The text that is committed later says of every candidate whose parent came true whether it came true as
well, whether it was sent to the model or not; so all classes are judged all the time and nothing has to be tried out
at a price.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from unspool.core.errors import WeightsError
from unspool.core.learned import Learned
from unspool.core.sockets import Draft
from unspool.core.tree import ROOT, TokenTree

# Classes: of every arm so many steps of confidence (the last for candidates without), depths and sibling ranks.
_SURE, _DEPTHS, _RANKS = 11, 8, 8
# A class that was never judged counts as this many judgements of its prior; on one text, of the rate over all texts.
_PRIOR_WEIGHT, _SHARED_WEIGHT = 4.0, 12.0
# Older judgements fade, so that rates over all texts follow the texts; they count as at most 1 / (1 - fade).
_FADE = 0.998


class AcceptanceRates(Learned):
    """Judgements by class, over all texts.

    Args:
        arms: how many proposers there are.
    """

    kind: ClassVar[str] = "acceptance rates"

    def __init__(self, arms: int) -> None:
        self.arms = arms
        size = arms * _SURE * _DEPTHS * _RANKS
        self.hits = [0.0] * size
        self.trials = [0.0] * size

    def classes(self, arm: int, draft: Draft) -> list[int]:
        """The class of every node."""
        ranks: dict[int, int] = {}
        found = []
        for node, (parent, depth) in enumerate(zip(draft.tree.parent_list, draft.tree.depths, strict=True)):
            rank = ranks.get(parent, 0)
            ranks[parent] = rank + 1
            sure = int(10 * min(max(draft.confidence[node], 0.0), 0.999)) if draft.confidence else _SURE - 1
            deep = min(depth, _DEPTHS - 1)
            found.append(((arm * _SURE + sure) * _DEPTHS + deep) * _RANKS + min(rank, _RANKS - 1))
        return found

    def rate(self, of: int, own: tuple[float, float] = (0.0, 0.0)) -> float:
        """How often candidates of class ``of`` come true.

        Args:
            own: hits and trials on the text at hand, which count more than those elsewhere.
        """
        trials = self.trials[of]
        shared = (self.hits[of] + _PRIOR_WEIGHT * _prior(of)) / (trials + _PRIOR_WEIGHT)
        return (own[0] + _SHARED_WEIGHT * shared) / (own[1] + _SHARED_WEIGHT)

    def judge(self, of: int, true: bool) -> None:
        self.hits[of] = self.hits[of] * _FADE + true
        self.trials[of] = self.trials[of] * _FADE + 1.0

    def arrays(self) -> dict[str, Tensor]:
        return {"hits": torch.tensor(self.hits), "trials": torch.tensor(self.trials)}

    def restore(self, arrays: Mapping[str, Tensor]) -> None:
        hits, trials = arrays.get("hits"), arrays.get("trials")
        size = len(self.hits)
        if hits is None or trials is None or hits.shape != (size,) or trials.shape != (size,):
            raise WeightsError(f"acceptance rates of {self.arms} arms need {size} hits and {size} trials")
        self.hits, self.trials = hits.tolist(), trials.tolist()

    def clear(self) -> None:
        self.hits = [0.0] * len(self.hits)
        self.trials = [0.0] * len(self.trials)

    @property
    def nbytes(self) -> int:
        return 8 * (len(self.hits) + len(self.trials))


def _prior(of: int) -> float:
    """Before anything is known: what the proposer says of itself, or less for every further sibling."""
    rank = of % _RANKS
    sure = of // (_RANKS * _DEPTHS) % _SURE
    return (sure + 0.5) / 10 * 0.5 / (rank + 1) if sure < _SURE - 1 else 0.2 / (rank + 1) ** 1.5


class _Guess:
    """Candidates of one proposer at one place of the text, as far as they are not judged yet."""

    __slots__ = ("at", "classes", "node", "tree")

    def __init__(self, at: int, tree: TokenTree, classes: list[int]) -> None:
        self.at = at
        self.tree = tree
        self.classes = classes
        self.node = ROOT


class Judge:
    """Judges the candidates of one text as it grows; kept in a branch's memo."""

    __slots__ = ("_guesses", "_own", "_rates")

    def __init__(self, rates: AcceptanceRates) -> None:
        self._rates = rates
        self._guesses: list[_Guess] = []
        self._own: dict[int, tuple[float, float]] = {}

    def rates(self, classes: Sequence[int]) -> list[float]:
        """``[N]``: how often candidates of these classes come true on this text."""
        own, rate = self._own, self._rates.rate
        return [rate(of, own.get(of, (0.0, 0.0))) for of in classes]

    def remember(self, at: int, tree: TokenTree, classes: list[int]) -> None:
        """Candidates for the tokens from place ``at`` of the text on."""
        if tree:
            self._guesses.append(_Guess(at, tree, classes))

    def read(self, text: Sequence[int]) -> None:
        """Judge whatever the text has grown to say something about."""
        open_guesses = []
        for guess in self._guesses:
            node: int | None = guess.node
            while node is not None and guess.at < len(text):
                node = self._judge(guess, node, text[guess.at])
                guess.at += 1
            if node is not None and guess.tree.children(node):
                guess.node = node
                open_guesses.append(guess)
        self._guesses = open_guesses

    def _judge(self, guess: _Guess, node: int, token: int) -> int | None:
        """Judge the children of ``node`` by the token that came; gives back the one that came true."""
        came = None
        for child in guess.tree.children(node):
            of = guess.classes[child]
            true = guess.tree.token_list[child] == token
            if true:
                came = child
            self._rates.judge(of, true)
            hits, trials = self._own.get(of, (0.0, 0.0))
            self._own[of] = (hits + true, trials + 1.0)
        return came
