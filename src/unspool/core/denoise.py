"""The any-order loop: propose canvases, score them, commit an edit."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unspool.core.branch import mix_seed
from unspool.core.canvas import Canvas, CanvasModel, CanvasScores
from unspool.core.errors import Incompatible, InvalidInput
from unspool.core.events import Scored, Started
from unspool.core.sockets import Part


@dataclass
class Edit:
    """What one step does to a canvas.

    Args:
        positions, tokens: ``[K]`` each: write these tokens there.
        remask: ``[R]`` positions to open again, or ``None``.
        insert: (position, count) pairs of masked positions to make, by positions of the canvas before the edit.
        done: end here, even if positions are still open (they are left out of the answer).
    """

    positions: Tensor
    tokens: Tensor
    remask: Tensor | None = None
    insert: tuple[tuple[int, int], ...] = ()
    done: bool = False


class Schedule(Part):
    """Which positions now? The one socket of the any-order loop that every method fills."""

    def begin(self, canvas: Canvas) -> None:
        """A new canvas starts."""

    def propose(self, canvas: Canvas) -> list[Canvas]:
        """The canvases to score in this step: the canvas itself, or drafts of its future beside it."""
        return [canvas]

    @abstractmethod
    def commit(
        self, canvas: Canvas, proposals: Sequence[Canvas], scores: Sequence[CanvasScores], rng: torch.Generator
    ) -> Edit:
        """What to write, given the scores of the proposals. Must write, remask, insert or end: a step that does
        nothing is refused."""


@dataclass(frozen=True)
class Edited:
    """One step of one canvas: where was written what, and how many positions are still open."""

    index: int
    step: int
    positions: tuple[int, ...]
    tokens: tuple[int, ...]
    remasked: tuple[int, ...]
    open: int
    proposals: int


@dataclass(frozen=True)
class Filled:
    """A canvas is done: ``steps``, ``max-steps`` or ``deadline``. Tokens without the fixed part and without open
    positions."""

    index: int
    reason: str
    tokens: tuple[int, ...]


CanvasEvent = Started | Scored | Edited | Filled


@torch.no_grad()
def denoise(
    model: CanvasModel,
    canvases: Sequence[Canvas],
    schedule: Schedule,
    *,
    max_steps: int | None = None,
    deadline: float | None = None,
    seed: int = 0,
) -> Iterator[CanvasEvent]:
    """Fill a batch of canvases in the order that ``schedule`` chooses.

    Args:
        model: scores canvases.
        canvases: filled in place.
        schedule: proposes and commits.
        max_steps: rounds at most; ``None`` for no limit (a schedule that never closes a position would not end).
        deadline: seconds after the start.
        seed: equal seeds give equal runs on one machine.

    Raises:
        Incompatible: if the model lacks a capability that the schedule needs.
        InvalidInput: if an edit changes nothing, or touches positions that it may not.
    """
    if hasattr(schedule, "card") and (missing := schedule.card.needs - model.capabilities):
        raise Incompatible(f"{schedule.card.slug} needs {', '.join(sorted(missing))}; {model.name} has it not")
    clock = time.perf_counter
    began = clock()
    rngs = []
    for index, canvas in enumerate(canvases):
        rng = torch.Generator(device=model.device)
        rng.manual_seed(mix_seed(seed, index, 0))
        rngs.append(rng)
        schedule.begin(canvas)
        yield Started(index, canvas.fixed)

    live = [index for index, canvas in enumerate(canvases) if bool(canvas.masked.any())]
    for index in set(range(len(canvases))) - set(live):
        yield _filled(index, canvases[index], "steps")
    step = 0
    while live:
        t0, forwards = clock(), model.forwards
        proposals = [schedule.propose(canvases[index]) for index in live]
        t1 = clock()
        flat = model.score([canvas for group in proposals for canvas in group], schedule.want)
        t2 = clock()
        edited: list[Edited] = []
        ended: list[Filled] = []
        at = 0
        for index, group in zip(list(live), proposals, strict=True):
            canvas, scores = canvases[index], flat[at : at + len(group)]
            at += len(group)
            edit = schedule.commit(canvas, group, scores, rngs[index])
            _apply(canvas, edit, model.mask_token)
            edited.append(
                Edited(
                    index,
                    step,
                    tuple(edit.positions.tolist()),
                    tuple(edit.tokens.tolist()),
                    tuple(edit.remask.tolist()) if edit.remask is not None else (),
                    int(canvas.masked.sum()),
                    len(group),
                )
            )
            late = deadline is not None and clock() - began >= deadline
            spent = max_steps is not None and step + 1 >= max_steps
            if edit.done or not bool(canvas.masked.any()):
                ended.append(_filled(index, canvas, "steps"))
            elif late or spent:
                ended.append(_filled(index, canvas, "deadline" if late else "max-steps"))
        yield Scored(
            step, t1 - t0, t2 - t1, clock() - t2, model.forwards - forwards, 0, 0, tuple((index, 0) for index in live)
        )
        yield from edited
        yield from ended
        gone = {filled.index for filled in ended}
        live = [index for index in live if index not in gone]
        step += 1


def _apply(canvas: Canvas, edit: Edit, mask_token: int) -> None:
    opens = edit.remask is not None and bool(edit.remask.numel())
    if not (edit.positions.numel() or opens or edit.insert or edit.done):
        raise InvalidInput("a schedule changed nothing in a step, so the loop would never end")
    if edit.positions.numel():
        canvas.write(edit.positions, edit.tokens)
    if edit.remask is not None and opens:
        canvas.remask(edit.remask, mask_token)
    for position, count in sorted(edit.insert, reverse=True):
        canvas.insert(position, count, mask_token)


def _filled(index: int, canvas: Canvas, reason: str) -> Filled:
    kept = canvas.tokens[canvas.fixed :][~canvas.masked[canvas.fixed :]]
    return Filled(index, reason, tuple(kept.tolist()))
