"""Fast chain-of-thought: Jacobi iteration against its definition, and the rationale that is cut short."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tests.toys import TableCache, TableModel

from unspool.core.branch import Branch
from unspool.core.compose import Composition, compose
from unspool.core.errors import Incompatible, InvalidInput
from unspool.core.events import Finished, Stepped
from unspool.core.scores import Request
from unspool.core.sockets import Budget, Draft, Observation, Proposal
from unspool.core.texts import Stop
from unspool.core.tree import TokenTree
from unspool.speculation.drafting.fastcot import FastCoT
from unspool.speculation.verification.early_answer import EarlyAnswer


class Letters:
    """A letter a token."""

    def encode(self, text: str, special: bool = True) -> list[int]:
        return [0] * special + ["abcdefghijkl".index(letter) for letter in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join("abcdefghijkl"[i] for i in ids)


def table(tokenizer: Any = None) -> TableModel:
    model = TableModel(12, seed=1, scale=1.5)
    # Token 11 is never chosen: a trigger of its own.
    model.table[..., 11] = -1e9
    model.tokenizer = tokenizer
    return model


TARGET = table()
TALKING = table(Letters())
PROMPTS = [[1, 2], [3], [4, 5, 6, 7], [1, 2, 3]]


def made(model: TableModel = TARGET, **settings: Any) -> tuple[FastCoT, Composition]:
    composition = compose(model, "fastcot", settings=settings)
    assert isinstance(composition.drafter, FastCoT)
    return composition.drafter, composition


def branch(tokens: list[int]) -> Branch:
    return Branch(0, 0, list(tokens), TableCache(), 0, torch.device("cpu"), [])


def best(tokens: list[int]) -> int:
    return int(TARGET.next_logits(tokens).argmax())


def run(composition: Composition, prompts: list[list[int]], length: int = 40, **more: Any) -> list[Any]:
    return list(composition.decode(prompts, stop=Stop(max_new_tokens=length), **more))


def texts(events: list[Any]) -> list[list[int]]:
    found = {event.index: list(event.tokens) for event in events if isinstance(event, Finished)}
    return [found[index] for index in sorted(found)]


def drafts(events: list[Any]) -> list[list[int]]:
    return [event.draft.token_list for event in events if isinstance(event, Stepped)]


def advance(drafter: FastCoT, text: Branch, accept: int, budget: Budget | None = None) -> Draft:
    """One round of the loop by hand, which commits ``accept`` draft tokens and the target's next."""
    draft = drafter.propose([text], [budget or Budget()])[0]
    tree = draft.tree.after(text.tokens)
    scores = TARGET.score([Request(TARGET.new_cache(), tree)])[0]
    tokens = draft.tree.token_list[:accept]
    tokens = [*tokens, best(text.tokens + tokens)]
    drafter.observe(Observation(text, tree, len(text.tokens), scores, draft, list(range(accept)), tokens))
    text.tokens += tokens
    return draft


# -- Jacobi iteration ---------------------------------------------------------------------------------------------


def test_first_guesses_copy_the_prompt_or_are_the_fill() -> None:
    drafter, _ = made(window=5)
    assert drafter.propose([branch([4, 7, 9])], [Budget()])[0].tree == TokenTree.chain([4, 7, 9, 4, 7])
    drafter, _ = made(window=3, fill=8)
    assert drafter.propose([branch([4, 7, 9])], [Budget()])[0].tree == TokenTree.chain([8, 8, 8])


@pytest.mark.parametrize("accept", [0, 1, 3, 6])
def test_every_place_is_predicted_from_the_guesses_before_it(accept: int) -> None:
    drafter, _ = made(window=6)
    text = branch([4, 7, 9])
    for _ in range(3):
        before = list(text.tokens)
        guesses = advance(drafter, text, accept).tree.token_list
        predicted = [best(before + guesses[:place]) for place in range(7)]
        proposed = drafter.propose([text], [Budget()])[0].tree.token_list
        # The committed places are dropped; fresh guesses go on copying where the text will be.
        fresh = [text.tokens[(place) % 3] for place in range(len(before) + 7, len(text.tokens) + 6)]
        assert proposed == predicted[accept + 1 :] + fresh


def test_the_window_shrinks_with_the_budget_and_keeps_what_it_had() -> None:
    drafter, _ = made(window=6)
    text = branch([4, 7, 9])
    advance(drafter, text, 0)
    whole = drafter.propose([text], [Budget()])[0].tree.token_list
    assert drafter.propose([text], [Budget(depth=2)])[0].tree.token_list == whole[:2]
    assert drafter.propose([text], [Budget(nodes=4, depth=9)])[0].tree.token_list == whole[:4]
    before = list(text.tokens)
    advance(drafter, text, 0, Budget(depth=2))
    predicted = [best(before + whole[:place]) for place in range(3)]
    # Places that were not read keep their guess; the last was fresh, and was never read at all.
    assert drafter.propose([text], [Budget()])[0].tree.token_list[:4] == [*predicted[1:], *whole[3:5]]


@pytest.mark.parametrize("foreign", [TokenTree([8]), TokenTree([8, 9], [-1, -1])])
def test_a_tree_that_is_not_its_own_only_moves_the_guesses_on(foreign: TokenTree) -> None:
    drafter, _ = made(window=6)
    text = branch([4, 7, 9])
    advance(drafter, text, 0)
    buffer = list(text.memo[drafter].buffer)
    assert buffer[0] != 8
    tree = foreign.after(text.tokens)
    scores = TARGET.score([Request(TARGET.new_cache(), tree)])[0]
    drafter.observe(Observation(text, tree, len(text.tokens), scores, Draft(foreign), [], [8]))
    assert text.memo[drafter].buffer == buffer[1:]


def test_a_fixed_point_is_accepted_whole() -> None:
    _, composition = made(window=8)
    plain = texts(run(compose(TARGET), [[1, 2]]))[0]
    events = run(composition, [[1, 2]])
    assert texts(events) == [plain]
    for event in [event for event in events if isinstance(event, Stepped)]:
        drafted, kept = event.draft.token_list, list(event.tokens)
        expected = next((n for n, (a, b) in enumerate(zip(drafted, kept, strict=False)) if a != b), len(drafted))
        assert len(event.accepted) == min(expected, len(kept))


@pytest.mark.parametrize("window", [0, 1, 4, 16])
def test_the_text_is_plain_decodings(window: int) -> None:
    _, composition = made(window=window)
    plain = run(compose(TARGET), PROMPTS)
    events = run(composition, PROMPTS)
    assert composition.lossless
    assert texts(events) == texts(plain)
    saved = len(drafts(plain)) - len(drafts(events))
    assert (saved == 0) if window == 0 else (saved > 0)
    assert texts(run(made(window=window)[1], [[5, 6]], 1)) == texts(run(compose(TARGET), [[5, 6]], 1))


def test_a_sampled_text_is_the_plain_ones_draw_for_draw() -> None:
    plain = texts(run(compose(TARGET, "sampling"), [[1, 2], [3]], seed=4))
    assert texts(run(compose(TARGET, "fastcot+sampling"), [[1, 2], [3]], seed=4)) == plain


# -- the early answer ---------------------------------------------------------------------------------------------


def cut(passes: int, window: int, prompt: list[int], trigger: str = "lal", length: int = 40, **more: Any) -> list[int]:
    _, composition = made(TALKING, iterations=passes, window=window, trigger=trigger, **more)
    assert not composition.lossless
    assert isinstance(composition.verifier, EarlyAnswer)
    return texts(run(composition, [prompt], length))[0]


def jacobi(prompt: list[int], window: int, passes: int) -> tuple[list[int], list[int]]:
    """Exact tokens after so many passes, and the approximate ones behind them; by the definition."""
    exact: list[int] = []
    guesses = [prompt[place % len(prompt)] for place in range(window)]
    for _ in range(passes):
        predicted = [best(prompt + exact + guesses[:place]) for place in range(window + 1)]
        right = 0
        while right < window and guesses[right] == predicted[right]:
            right += 1
        exact += predicted[: right + 1]
        guesses = predicted[right + 1 :]
        approximate = list(guesses)
        start = len(prompt) + len(exact)
        guesses += [prompt[place % len(prompt)] for place in range(start + len(guesses), start + window)]
    return exact, approximate


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("window", [0, 3, 8])
@pytest.mark.parametrize("passes", [1, 2, 5])
def test_exact_then_approximate_then_trigger_then_the_target(prompt: list[int], window: int, passes: int) -> None:
    trigger = [11, 0, 11]
    exact, approximate = jacobi(prompt, window, passes)
    text = cut(passes, window, prompt)
    expected = exact + approximate + trigger
    while len(expected) < 40:
        expected.append(best(prompt + expected))
    assert text == expected
    assert exact == texts(run(compose(TARGET), [prompt]))[0][: len(exact)]


def test_what_the_answer_costs() -> None:
    _, composition = made(TALKING, iterations=4, window=6, trigger="lal")
    events = run(composition, [[1, 2]])
    exact, approximate = jacobi([1, 2], 6, 4)
    # Four passes, one that reads what is decreed and gives the first token of the answer, one for each of the others.
    assert len(drafts(events)) == 4 + 40 - len(exact) - len(approximate) - 3
    assert drafts(events)[4] == [*approximate, 11, 0, 11]
    assert not any(drafts(events)[5:])


def state_of(drafter: FastCoT, text: Branch, buffer: list[int], passes: int = 9) -> None:
    drafter.propose([text], [Budget()])
    state = text.memo[drafter]
    state.buffer, state.passes = buffer, passes


@pytest.mark.parametrize(
    ("generated", "buffer", "budget", "expected"),
    [
        ([5], [6, 7], Budget(), [6, 7, 11, 0, 11]),
        ([5], [6, 2, 7], Budget(), [6, 11, 0, 11]),  # 2 ends a text
        ([5], [6, 11, 0, 11, 4], Budget(), [6, 11, 0, 11]),
        ([5, 11], [0, 11, 4], Budget(), [0, 11]),
        ([5, 11], [], Budget(), [0, 11]),
        ([5], [6, 11], Budget(), [6, 11, 0, 11]),
        ([5], [6, 7], Budget(depth=4), [6, 11, 0, 11]),
        ([5], [6, 7], Budget(nodes=3), [11, 0, 11]),
        ([5], [6, 11, 0, 11], Budget(depth=3), [11, 0, 11]),
        ([5], [11, 0, 6], Budget(depth=3), [11, 0, 11]),
        ([5, 11, 0, 11, 3], [6], Budget(), []),
    ],
)
def test_what_is_decreed(generated: list[int], buffer: list[int], budget: Budget, expected: list[int]) -> None:
    model = table(Letters())
    model.stop_tokens = frozenset({2})
    drafter, _ = made(model, iterations=9, trigger="lal")
    text = branch([1, 3])
    text.tokens += generated
    state_of(drafter, text, buffer)
    draft = drafter.propose([text], [budget])[0]
    assert draft.tree.token_list == expected
    assert draft.decreed == bool(expected)
    assert draft.limited(budget) is draft


def test_no_room_for_the_trigger_leaves_ordinary_drafts() -> None:
    drafter, _ = made(TALKING, iterations=9, trigger="lal")
    text = branch([1, 2])
    state_of(drafter, text, [6, 7])
    draft = drafter.propose([text], [Budget(depth=2)])[0]
    assert (draft.tree.token_list, draft.decreed) == ([6, 7], False)
    plain = texts(run(compose(TARGET), [[1, 2]], 3))
    assert texts(run(made(TALKING, iterations=1, trigger="lal")[1], [[1, 2]], 3)) == plain


def test_a_glimpse_of_the_trigger_is_enough_if_wanted() -> None:
    for glimpse in (False, True):
        drafter, _ = made(TALKING, iterations=9, trigger="lal", glimpse=glimpse)
        text = branch([1, 2])
        state_of(drafter, text, [6, 11, 0, 11, 4], passes=3)
        assert drafter.propose([text], [Budget()])[0].decreed == glimpse


def test_a_decree_that_was_cut_is_completed() -> None:
    drafter, _ = made(TALKING, iterations=1, trigger="lal")
    text = branch([1, 2])
    state_of(drafter, text, [6, 7])
    draft = drafter.propose([text], [Budget()])[0]
    part, tree = Draft(draft.tree.select(range(3)), decreed=True), draft.tree.select(range(3)).after([1, 2])
    scores = TARGET.score([Request(TARGET.new_cache(), tree)])[0]
    drafter.observe(Observation(text, tree, 2, scores, part, [0, 1, 2], [6, 7, 11, 5]))
    text.tokens += [6, 7, 11, 5]
    assert drafter.propose([text], [Budget()])[0].tree.token_list == [11, 0, 11]


def test_batches_sampling_and_other_verifiers() -> None:
    _, composition = made(TALKING, iterations=3, window=4, trigger="lal")
    together = texts(run(composition, PROMPTS))
    assert together == [texts(run(composition, [prompt]))[0] for prompt in PROMPTS]
    composition = compose(TALKING, "fastcot+sampling", settings={"iterations": 3, "trigger": "lal"})
    sampled = texts(run(composition, PROMPTS, seed=1))
    assert all("lal" in Letters().decode(text) for text in sampled)
    # A verifier that asks the target takes the decree for a guess like any other.
    composition = compose(TALKING, "fastcot+target-match", settings={"iterations": 3, "trigger": "lal"})
    assert composition.lossless
    assert texts(run(composition, PROMPTS)) == texts(run(compose(TARGET), PROMPTS))


def test_what_is_refused() -> None:
    with pytest.raises(Incompatible, match="tokenizer"):
        made(TARGET, iterations=3)
    with pytest.raises(InvalidInput, match="give some words"):
        made(TALKING, iterations=3, trigger="")
    with pytest.raises(InvalidInput, match="fill is token 12"):
        made(fill=12)
    with pytest.raises(Incompatible, match="speculative-sampling judges"):
        compose(TALKING, "fastcot+speculative-sampling", settings={"iterations": 3, "trigger": "lal"})


def test_the_kind_of_proposal_follows_the_settings() -> None:
    assert made()[0].proposal is Proposal.POINT
    assert made(TALKING, iterations=2, trigger="lal")[0].proposal is Proposal.DECREED
