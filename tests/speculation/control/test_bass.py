"""BASS: the rule of the length, one length for the batch, rows that do not wait, attention in two ways."""

from __future__ import annotations

import itertools
import random
from math import ceil

import pytest
import torch
from scipy import stats
from tests.contracts.exact import FastTable, Softmax, continuations, fit
from tests.models.shapes import backend, prompts
from torch import Tensor

from unspool.core.compose import compose
from unspool.core.errors import Incompatible
from unspool.core.events import Event, Finished, Scored, Stepped
from unspool.core.texts import Stop
from unspool.speculation.control.bass import Bass, BassSettings

SAMPLED = FastTable(5, seed=11, scale=1.2)
RELATED = FastTable(5, seed=12, scale=1.2, mix=SAMPLED, blend=0.7)


def paper(lengths: list[int], accepted: list[list[int]]) -> list[int]:
    """Algorithm 1, written down once more: the length of every step from what each step's rows accepted."""
    length, misses, found = 7, 0, []
    for rows in accepted:
        found.append(length)
        if max(rows) == length:
            length, misses = min(length + 2, 32), 0
        else:
            length = max([1, *rows, length - ceil(length / 10) - misses])
            misses = 1
    return found


def test_the_length_follows_the_rule() -> None:
    rng = random.Random(1)
    for _ in range(50):
        bass, accepted, found = Bass(), [], []
        for _ in range(40):
            full = rng.random() < 0.5
            rows = [rng.randint(0, bass.length) for _ in range(3)] + ([bass.length] if full else [])
            found.append(bass.length)
            accepted.append(rows)
            bass.length, bass._missed = bass.following([(bass.length, x) for x in rows])
        assert found == paper(found, accepted)
    assert grown(BassSettings())[-1] == 32


def grown(settings: BassSettings) -> list[int]:
    """Lengths while everything is accepted."""
    bass, lengths = Bass(settings), []
    for _ in range(30):
        lengths.append(bass.length)
        bass.length, bass._missed = bass.following([(bass.length, bass.length)])
    return lengths


def test_the_constants_are_settings() -> None:
    assert grown(BassSettings(start=1, increment=3, limit=8)) == [1, 4, 7] + [8] * 27
    assert grown(BassSettings(start=9, limit=4)) == [4] * 30
    bass = Bass(BassSettings(modulus=2))
    assert bass.following([(8, 0), (8, 1)]) == (4, True)
    bass._missed = True
    assert bass.following([(8, 0), (8, 1)]) == (3, True)
    assert bass.following([(8, 6), (3, 3)]) == (6, True)
    # A row that used up its own, shorter draft is not the deepest one.
    assert bass.following([(3, 3), (2, 0)]) == (5, False)


def run(method: str, asked: list[list[int]], tokens: int = 30, **settings: object) -> list[Event]:
    models = {"draft": backend("llama", noise=0.15)}
    settings = {"draft-model.tokens": 32, **settings} if "draft-model" in method else settings
    return list(compose(backend("llama"), method, settings=settings, models=models).decode(asked, stop=Stop(tokens)))


def texts(events: list[Event]) -> dict[int, tuple[int, ...]]:
    return {event.index: event.tokens for event in events if isinstance(event, Finished)}


@pytest.mark.parametrize("attention", ["pad", "split"])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_rows_say_what_single_plain_runs_say(size: int, attention: str) -> None:
    asked = prompts(size)
    plain = {index: texts(run("plain", [prompt]))[0] for index, prompt in enumerate(asked)}
    events = run("draft-model+bass", asked, attention=attention)
    assert texts(events) == plain
    steps = [event for event in events if isinstance(event, Stepped)]
    assert sum(isinstance(event, Scored) for event in events) < 30
    # No row waits for another: in one step they gain different numbers of tokens.
    gains = [{len(e.tokens) for e in group} for _, group in itertools.groupby(steps, key=lambda e: e.step)]
    assert size == 1 or any(len(gain) > 1 for gain in gains)


def test_all_rows_of_a_step_draft_the_length_that_the_steps_before_ask_for() -> None:
    events = run("draft-model+bass", prompts(4), tokens=60)
    steps = [event for event in events if isinstance(event, Stepped)]
    length, misses, seen, said = 7, 0, [], dict.fromkeys(range(4), 0)
    for _, group in itertools.groupby(steps, key=lambda e: e.step):
        rows = list(group)
        # Near its end a text has less room than the length.
        assert [e.draft.depth for e in rows] == [min(length, 60 - said[e.index] - 1) for e in rows]
        seen.append(length)
        drafted = [e for e in rows if e.draft]
        for e in rows:
            said[e.index] += len(e.tokens)
        if drafted:
            deepest, most = max(e.draft.depth for e in drafted), max(len(e.accepted) for e in drafted)
            if most == deepest:
                length, misses = min(deepest + 2, 32), 0
            else:
                length, misses = max(1, most, deepest - ceil(deepest / 10) - misses), 1
    assert len(set(seen)) > 3


def test_the_next_batch_starts_anew() -> None:
    models = {"draft": backend("llama", noise=0.15)}
    made = compose(backend("llama"), "draft-model+bass", settings={"draft-model.tokens": 32}, models=models)
    first, second = (list(made.decode(prompts(2), stop=Stop(20))) for _ in range(2))
    assert [e.draft for e in first if isinstance(e, Stepped)] == [e.draft for e in second if isinstance(e, Stepped)]
    # Also after a consumer has left in the middle.
    events = made.decode(prompts(2), stop=Stop(20))
    for event in events:
        if isinstance(event, Scored) and event.step == 2:
            break
    events.close()  # type: ignore[attr-defined]
    assert made.controller.length == 7  # type: ignore[union-attr]


@pytest.mark.parametrize("attention", ["pad", "split"])
def test_split_is_asked_of_the_model(attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = backend("llama")
    seen = []
    score = lm.score

    def spied(requests: object, want: object = None, layers: object = None) -> object:
        seen.append(want.split)  # type: ignore[union-attr]
        return score(requests, want, layers)  # type: ignore[arg-type]

    monkeypatch.setattr(lm, "score", spied)
    run("prompt-lookup+bass", prompts(2), attention=attention)
    assert set(seen) == {attention == "split"}


def test_a_model_without_split_attention_is_refused() -> None:
    with pytest.raises(Incompatible, match="attention=split"):
        compose(backend("t5"), "prompt-lookup+bass", settings={"attention": "split"})
    compose(backend("t5"), "prompt-lookup+bass")


def pairs_of_rows(tokens: Tensor, vocabulary: int) -> float:
    """p-value that the first tokens of neighbouring rows are independent."""
    table = torch.zeros(vocabulary, vocabulary)
    for a, b in zip(tokens[0::2, 0].tolist(), tokens[1::2, 0].tolist(), strict=True):
        table[a, b] += 1
    return float(stats.chi2_contingency(table.numpy()).pvalue)


def test_rows_draw_from_the_target_independently() -> None:
    sampler = Softmax()
    made = compose(
        SAMPLED, "draft-model+bass", settings={"start": 2, "limit": 3}, sampler=sampler, models={"draft": RELATED}
    )
    tokens = continuations(made, [1, 3], 2400, 3, seed=3)
    assert fit(tokens, sampler.exact(SAMPLED, [1, 3], 3)) > 3e-4
    assert pairs_of_rows(tokens, 5) > 3e-4
    # The test can tell: rows that copy their neighbour now and then are found.
    copied = tokens.clone()
    copied[1::10] = copied[0::10]
    assert pairs_of_rows(copied, 5) < 3e-4
