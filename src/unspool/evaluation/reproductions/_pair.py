"""A small target with a smaller draft model of the same tokenizer, and text that neither was trained on.

``unspool train stdlib-pair`` makes both from Python's standard library; experiments with a draft model name the target
(``@experiment(..., model=TARGET)``) and take the rest from here. Prompts are pieces of the library's held-out files.
"""

from __future__ import annotations

from unspool.core.compose import Composition, compose
from unspool.core.errors import InvalidInput
from unspool.core.model import LanguageModel
from unspool.core.sockets import Part, Sampler
from unspool.evaluation.reproductions._common import Lab
from unspool.models.load import load_model
from unspool.sampling.standard import SamplingSettings, StandardSampler
from unspool.training.corpora import stdlib

TARGET, DRAFT = "stdlib-pair/target", "stdlib-pair/draft"

# Pieces of one file begin so many characters apart; a token of this code is about three characters.
_STRIDE, _CHARACTERS_A_TOKEN = 3000, 12


class Pair:
    """The lab's model and the draft model that goes with it.

    Args:
        lab: its model is the target.

    Raises:
        WeightsError: if the pair was not trained on this machine.
    """

    def __init__(self, lab: Lab) -> None:
        self.target: LanguageModel = lab.model
        self.draft: LanguageModel = load_model(
            DRAFT, device=str(lab.model.device), backend=lab.engine.backend, progress=False
        )
        lab.setup |= {"draft": self.draft.name, "prompts": "held-out files of Python's standard library"}

    def composed(
        self, method: str | Part | list[str | Part], sampler: Sampler | None = None, **settings: object
    ) -> Composition:
        """A composition with the draft model at hand, greedy unless a sampler is given."""
        return compose(self.target, method, settings=settings, sampler=sampler, models={"draft": self.draft})

    def prompts(self, count: int, *, length: int = 64, skip: int = 0) -> list[list[int]]:
        """:func:`held_out_code` in the target's tokens."""
        return held_out_code(self.target, count, length=length, skip=skip)


def held_out_code(model: LanguageModel, count: int, *, length: int = 64, skip: int = 0) -> list[list[int]]:
    """``count`` pieces of ``length`` tokens of held-out code, none of which overlap; ``skip`` leaves out the first.

    Raises:
        InvalidInput: if there is not so much held-out text.
    """
    texts = [document.text for document in stdlib("held-out")]
    found: list[list[int]] = []
    # One piece of every file, then the next of every file, so that a few prompts are of many kinds of text.
    for start in range(0, max(map(len, texts)), _STRIDE):
        for text in texts:
            piece = text[start : start + min(_STRIDE, length * _CHARACTERS_A_TOKEN)]
            # It begins with a whole line.
            tokens = model.tokenizer.encode(piece[piece.find("\n") + 1 :])[:length]
            if len(tokens) == length:
                found.append(tokens)
        if len(found) >= skip + count:
            return found[skip : skip + count]
    raise InvalidInput(f"the held-out files hold {len(found)} pieces of {length} tokens; asked for {skip + count}")


def sampler(temperature: float, top_p: float = 1.0) -> StandardSampler:
    """The plain sampler."""
    return StandardSampler(SamplingSettings(temperature=temperature, top_p=top_p))
