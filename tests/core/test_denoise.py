from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from unspool.core.canvas import Canvas, CanvasModel, CanvasScores
from unspool.core.cards import Card, Kind
from unspool.core.denoise import Edit, Edited, Filled, Schedule, denoise
from unspool.core.errors import Incompatible, InvalidInput
from unspool.core.events import Scored, Started
from unspool.core.model import Capability
from unspool.core.scores import LOGITS, Want

MASK = 9


class Counting(CanvasModel):
    """Wants ``position + number of closed neighbours`` at every position, and is surest where neighbours are closed."""

    def __init__(self) -> None:
        self.name, self.vocab_size, self.context_length, self.mask_token = "counting", 10, None, MASK
        self.tokenizer, self.capabilities, self.device = None, frozenset(), torch.device("cpu")

    def score(self, canvases: Sequence[Canvas], want: Want = LOGITS) -> list[CanvasScores]:
        self.forwards += 1
        answers = []
        for canvas in canvases:
            closed = torch.nn.functional.pad((~canvas.masked).long(), (1, 1))
            beside = closed[:-2] + closed[2:]
            logits = torch.zeros(len(canvas), self.vocab_size)
            logits[torch.arange(len(canvas)), (torch.arange(len(canvas)) + beside) % 9] = 1.0 + beside
            answers.append(CanvasScores(logits))
        return answers


class Surest(Schedule):
    """The open position with the largest logit; a draw among equals."""

    def commit(
        self, canvas: Canvas, proposals: Sequence[Canvas], scores: Sequence[CanvasScores], rng: torch.Generator
    ) -> Edit:
        best = scores[0].logits.max(-1)
        value = best.values.masked_fill(~canvas.masked, -1)
        equal = (value == value.max()).nonzero().flatten()
        chosen = equal[torch.randint(len(equal), (1,), generator=rng)]
        return Edit(chosen, best.indices[chosen])


def test_a_canvas() -> None:
    canvas = Canvas.after([1, 2], 3, MASK)
    assert (len(canvas), canvas.fixed, canvas.open.tolist()) == (5, 2, [2, 3, 4])
    twin = canvas.copy()
    canvas.write(torch.tensor([3]), torch.tensor([7]))
    assert canvas.tokens.tolist() == [1, 2, MASK, 7, MASK]
    assert canvas.open.tolist() == [2, 4]
    assert twin.open.tolist() == [2, 3, 4], "a copy of its own"
    canvas.remask(torch.tensor([3]), MASK)
    assert canvas.open.tolist() == [2, 3, 4]
    canvas.insert(3, 2, MASK)
    assert (len(canvas), canvas.open.tolist()) == (7, [2, 3, 4, 5, 6])
    canvas.insert(7, 1, MASK)
    assert len(canvas) == 8


@pytest.mark.parametrize("position", [-1, 0, 1, 5])
def test_a_canvas_guards_its_prompt(position: int) -> None:
    canvas = Canvas.after([1, 2], 3, MASK)
    with pytest.raises(InvalidInput, match=r"do not all lie in 2 to 4"):
        canvas.write(torch.tensor([3, position]), torch.tensor([7, 7]))
    with pytest.raises(InvalidInput, match=r"do not all lie in 2 to 4"):
        canvas.remask(torch.tensor([position]), MASK)
    if position != 5:
        with pytest.raises(InvalidInput, match=rf"cannot insert at {position}: allowed are 2 to 5"):
            canvas.insert(position, 1, MASK)
    assert canvas.tokens.tolist() == [1, 2, MASK, MASK, MASK]


def test_an_empty_canvas_is_refused() -> None:
    with pytest.raises(InvalidInput, match="length 0 has nothing to fill"):
        Canvas.after([1], 0, MASK)


def test_a_batch_is_filled() -> None:
    model = Counting()
    canvases = [Canvas.after([1, 2], 3, MASK), Canvas.after([1], 1, MASK)]
    events = list(denoise(model, canvases, Surest()))
    assert events[:2] == [Started(0, 2), Started(1, 1)]
    # Beside the prompt it is surest, so it writes from left to right.
    assert [e.positions for e in events if isinstance(e, Edited) and e.index == 0] == [(2,), (3,), (4,)]
    filled = {e.index: e for e in events if isinstance(e, Filled)}
    assert filled[0] == Filled(0, "steps", (3, 4, 5))
    assert filled[1] == Filled(1, "steps", (2,))
    scored = [e for e in events if isinstance(e, Scored)]
    assert [e.forwards for e in scored] == [1, 1, 1], "a batch is scored together"
    assert [len(e.branches) for e in scored] == [2, 1, 1]
    assert model.forwards == 3


def test_seeds_reproduce_runs() -> None:
    class Anywhere(Surest):
        def commit(self, canvas: Canvas, proposals: Any, scores: Any, rng: torch.Generator) -> Edit:
            place = canvas.open[torch.randint(len(canvas.open), (1,), generator=rng)]
            return Edit(place, scores[0].logits[place].argmax(-1))

    def order(seed: int) -> list[tuple[int, ...]]:
        canvases = [Canvas.after([1], 12, MASK), Canvas.after([1], 12, MASK)]
        return [e.positions for e in denoise(Counting(), canvases, Anywhere(), seed=seed) if isinstance(e, Edited)]

    assert order(1) == order(1)
    assert order(1) != order(2)
    assert order(1)[0::2] != order(1)[1::2], "every canvas draws for itself"


def test_drafts_remasking_inserting_and_an_early_end() -> None:
    class Restless(Schedule):
        def __init__(self) -> None:
            super().__init__()
            self.step = 0

        def propose(self, canvas: Canvas) -> list[Canvas]:
            future = canvas.copy()
            future.write(canvas.open[:1], torch.tensor([5]))
            return [canvas, future]

        def commit(self, canvas: Canvas, proposals: Any, scores: Any, rng: torch.Generator) -> Edit:
            assert len(proposals) == len(scores) == 2
            self.step += 1
            nowhere = torch.empty(0, dtype=torch.int64)
            match self.step:
                case 1:
                    return Edit(torch.tensor([1, 2]), torch.tensor([4, 5]))
                case 2:
                    return Edit(nowhere, nowhere, remask=torch.tensor([1]))
                case 3:
                    return Edit(torch.tensor([3]), torch.tensor([6]), insert=((1, 2), (4, 1)))
            return Edit(nowhere, nowhere, done=True)

    canvas = Canvas.after([1], 3, MASK)
    events = list(denoise(Counting(), [canvas], Restless()))
    edited = [e for e in events if isinstance(e, Edited)]
    assert [(e.open, e.remasked, e.proposals) for e in edited] == [(1, (), 2), (2, (1,), 2), (4, (), 2), (4, (), 2)]
    assert canvas.tokens.tolist() == [1, MASK, MASK, MASK, 5, 6, MASK]
    assert events[-1] == Filled(0, "steps", (5, 6))


def test_limits() -> None:
    canvas = Canvas.after([1], 5, MASK)
    events = list(denoise(Counting(), [canvas], Surest(), max_steps=2))
    assert isinstance(events[-1], Filled)
    assert (events[-1].reason, len(events[-1].tokens)) == ("max-steps", 2)
    events = list(denoise(Counting(), [Canvas.after([1], 5, MASK)], Surest(), deadline=1e-9))
    assert isinstance(events[-1], Filled)
    assert (events[-1].reason, len(events[-1].tokens)) == ("deadline", 1)


def test_nothing_open_is_done_at_once() -> None:
    canvas = Canvas(torch.tensor([1, 2, 3]), torch.zeros(3, dtype=torch.bool), 1)
    model = Counting()
    assert list(denoise(model, [canvas], Surest())) == [Started(0, 1), Filled(0, "steps", (2, 3))]
    assert model.forwards == 0


def test_a_step_that_does_nothing_is_refused() -> None:
    class Idle(Schedule):
        def commit(self, canvas: Canvas, proposals: Any, scores: Any, rng: torch.Generator) -> Edit:
            nowhere = torch.empty(0, dtype=torch.int64)
            return Edit(nowhere, nowhere)

    with pytest.raises(InvalidInput, match="changed nothing in a step"):
        list(denoise(Counting(), [Canvas.after([1], 2, MASK)], Idle()))


def test_missing_capabilities() -> None:
    class Demanding(Surest):
        card = Card("demanding", "Demanding", Kind.SCHEDULE, "A test.", needs=frozenset({Capability.HIDDEN_STATES}))

    with pytest.raises(Incompatible, match="demanding needs hidden states; counting"):
        list(denoise(Counting(), [Canvas.after([1], 2, MASK)], Demanding()))
