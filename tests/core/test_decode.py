"""The in-order loop itself, on a table model: events, limits, seeds, searches, what is released."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from tests.models.shapes import backend
from tests.toys import TableCache, TableModel

from unspool.core.branch import Branch, mix_seed
from unspool.core.compose import compose
from unspool.core.decode import Greedy, decode
from unspool.core.errors import InvalidInput
from unspool.core.events import Event, Finished, Prefilled, Probe, Scored, Started, Stepped
from unspool.core.scores import Want
from unspool.core.sockets import (
    Budget,
    CachePolicy,
    Constraint,
    Controller,
    Distribution,
    Draft,
    Drafter,
    LookAhead,
    Move,
    Node,
    Observation,
    Part,
    Sampler,
    Search,
)
from unspool.core.texts import Stop
from unspool.core.tree import TokenTree


class Random(Sampler):
    def distribution(self, node: Node) -> Distribution:
        return Distribution(torch.softmax(node.logits, -1))


class Fixed(Drafter):
    """Always the same tree."""

    def __init__(self, tree: TokenTree) -> None:
        super().__init__()
        self.tree = tree
        self.budgets: list[Budget] = []

    def draft(self, branch: Branch, budget: Budget) -> Draft:
        self.budgets.append(budget)
        return Draft(self.tree)


def of_kind(events: Sequence[Event], kind: type[Any]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def greedy(model: TableModel, prompt: list[int], count: int) -> list[int]:
    text = list(prompt)
    for _ in range(count):
        text.append(int(model.next_logits(text).argmax()))
    return text[len(prompt) :]


@pytest.fixture
def model() -> TableModel:
    return TableModel(vocab_size=8, seed=3)


# -- events -------------------------------------------------------------------------------------------------------


def test_events_tell_the_whole_story(model: TableModel) -> None:
    expected = greedy(model, [1, 2], 5)
    tree = TokenTree([expected[0], expected[1], 0], [-1, 0, -1])
    events = list(decode(model, [[1, 2]], drafter=Fixed(tree), stop=Stop(5), probe=True))
    assert events[0] == Started(0, 2)
    assert isinstance(events[-1], Finished)
    assert events[-1] == Finished(0, "length", tuple(expected))
    steps = of_kind(events, Stepped)
    assert [token for step in steps for token in step.tokens] == expected
    assert steps[0].tokens == tuple(expected[:3])
    assert steps[0].accepted == (0, 1)
    assert steps[0].draft == tree
    assert [step.step for step in steps] == list(range(len(steps)))
    scored = of_kind(events, Scored)
    assert len(scored) == len(steps)
    assert all(s.forwards == 1 and s.draft_forwards == 0 and s.cache_bytes > 0 for s in scored)
    assert all(min(s.draft_seconds, s.score_seconds, s.verify_seconds) >= 0 for s in scored)


def test_probes_are_the_models_probabilities(model: TableModel) -> None:
    tree = TokenTree([1, 2, 3], [-1, 0, -1])
    events = list(decode(model, [[4, 5]], drafter=Fixed(tree), stop=Stop(4), probe=True))
    text = [4, 5]
    for step in of_kind(events, Stepped):
        probe = step.probe
        assert isinstance(probe, Probe)
        for node in range(len(step.draft)):
            path = step.draft.path_tokens(node)
            p = torch.softmax(model.next_logits([*text, *path[:-1]]), -1)[path[-1]]
            assert probe.draft[node] == pytest.approx(float(p), rel=1e-5)
        assert len(probe.tokens) == len(step.tokens)
        for token, p in zip(step.tokens, probe.tokens, strict=True):
            assert p == pytest.approx(float(torch.softmax(model.next_logits(text), -1)[token]), rel=1e-5)
            text.append(token)
    assert of_kind(list(decode(model, [[4, 5]], stop=Stop(2))), Stepped)[0].probe is None


@pytest.mark.parametrize(
    ("length", "chunk", "passes"), [(3, 4, 0), (4, 4, 0), (5, 4, 1), (9, 4, 2), (9, 2, 4), (9, 1, 8)]
)
def test_prompts_enter_in_pieces(model: TableModel, length: int, chunk: int, passes: int) -> None:
    prompt = [i % 7 for i in range(length)]
    widest: list[int] = []
    score = model.score

    def watching(requests: Any, *args: Any) -> Any:
        widest.extend(len(request.tree) for request in requests)
        return score(requests, *args)

    model.score = watching  # type: ignore[method-assign]
    events = list(decode(model, [prompt], stop=Stop(2), chunk=chunk))
    assert events[-1] == Finished(0, "length", tuple(greedy(model, prompt, 2)))
    prefilled = of_kind(events, Prefilled)
    assert len(prefilled) == passes
    assert all(p.forwards == 1 for p in prefilled)
    assert max(widest) <= chunk


def test_ragged_prompts_share_their_passes(model: TableModel) -> None:
    prompts = [[1] * 9, [2, 3], [4, 5, 6, 7, 1]]
    events = list(decode(model, prompts, stop=Stop(3), chunk=4))
    assert len(of_kind(events, Prefilled)) == 2
    done = {event.index: list(event.tokens) for event in of_kind(events, Finished)}
    assert done == {i: greedy(model, prompt, 3) for i, prompt in enumerate(prompts)}


# -- limits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [0, -3])
def test_a_chunk_holds_something(model: TableModel, chunk: int) -> None:
    with pytest.raises(InvalidInput, match=f"chunk is {chunk}; it must be at least 1"):
        list(decode(model, [[1, 2, 3]], chunk=chunk))


@pytest.mark.parametrize(
    ("stop", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"deadline": 0.0}, "deadline is 0.0 s"),
        ({"strings": ("a", "")}, "a stop string is empty"),
    ],
)
def test_limits_that_make_no_sense(stop: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        Stop(**stop)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([[]], "the prompt is empty"),
        ([[1], []], "prompt 1 is empty"),
        ([[0, 8]], "the prompt holds token 8; .* has tokens 0 to 7"),
        ([[0, -1, 8]], "holds token -1"),
        ([[1] * 4096], "the prompt has 4096 tokens; .* has a context of 4096"),
    ],
)
def test_prompts_that_cannot_be_decoded(model: TableModel, prompts: list[list[int]], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        list(decode(model, prompts))
    assert model.forwards == 0


def test_drafts_stay_within_what_is_left(model: TableModel) -> None:
    drafter = Fixed(TokenTree.chain(greedy(model, [1, 2], 8)))
    events = list(decode(model, [[1, 2]], drafter=drafter, stop=Stop(5)))
    assert drafter.budgets == [Budget(depth=4)]
    (step,) = of_kind(events, Stepped)
    assert step.draft.depth == 4
    assert len(step.tokens) == 5
    model.context_length = 6
    events = list(decode(model, [[1, 2]], drafter=drafter, stop=Stop(50)))
    assert events[-1] == Finished(0, "context", tuple(greedy(model, [1, 2], 4)))


def test_controllers_limit_and_choose(model: TableModel) -> None:
    class Careful(Controller):
        def budget(self, branch: Branch) -> Budget:
            return Budget(nodes=3, depth=2)

        def allocate(self, branches: Sequence[Branch], drafts: Sequence[Draft]) -> list[Draft]:
            return [draft if branch.index else Draft.empty() for branch, draft in zip(branches, drafts, strict=True)]

    drafter = Fixed(TokenTree([0, 1, 2, 3, 4], [-1, 0, 1, -1, -1]))
    events = list(decode(model, [[1], [2]], drafter=drafter, controller=Careful(), stop=Stop(9)))
    first = {step.index: step.draft for step in of_kind(events, Stepped) if step.step == 0}
    assert first[0] == TokenTree.empty()
    # Depth first, then the earliest nodes.
    assert first[1] == TokenTree([0, 1, 3], [-1, 0, -1])
    assert all(budget.nodes == 3 and budget.depth <= 2 for budget in drafter.budgets)


def test_a_deadline_ends_a_run(model: TableModel) -> None:
    now = [0.0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unspool.core.decode.time.perf_counter", lambda: now[0])
        tokens = []
        for event in decode(model, [[1, 2]], stop=Stop(1000, deadline=5.0)):
            if isinstance(event, Stepped):
                tokens += event.tokens
                now[0] += 1.0
            last = event
    assert isinstance(last, Finished)
    assert last.reason == "deadline"
    assert last.tokens == tuple(tokens) == tuple(greedy(model, [1, 2], 5))


def test_constraints_hold_under_speculation(model: TableModel) -> None:
    class Even(Constraint):
        def allowed(self, branch: Branch, tokens: list[int]) -> torch.Tensor | None:
            return torch.arange(8) % 2 == len(tokens) % 2

    tree = TokenTree([t for a in range(8) for t in (a, *range(8))], [p for a in range(8) for p in (-1, *[9 * a] * 8)])
    plain = list(decode(model, [[1, 2]], constraint=Even(), stop=Stop(12)))[-1]
    fast = list(decode(model, [[1, 2]], constraint=Even(), drafter=Fixed(tree), stop=Stop(12)))
    assert fast[-1] == plain
    assert all(token % 2 == place % 2 for place, token in enumerate(plain.tokens))
    assert len(of_kind(fast, Stepped)) == 4


# -- chance -------------------------------------------------------------------------------------------------------


def test_seeds_reproduce_runs(model: TableModel) -> None:
    def run(seed: int) -> list[tuple[int, ...]]:
        return [
            e.tokens
            for e in of_kind(list(decode(model, [[1], [1]], sampler=Random(), seed=seed, stop=Stop(20))), Finished)
        ]

    assert run(5) == run(5)
    assert run(5) != run(6)
    assert run(5)[0] != run(5)[1], "every request draws for itself"
    assert run(-1) == run(-1)


def test_seeds_are_spread() -> None:
    seeds = {mix_seed(seed, index, number) for seed in range(20) for index in range(20) for number in range(20)}
    assert len(seeds) == 8000
    assert all(0 <= seed < 2**63 for seed in seeds)


# -- what parts see -----------------------------------------------------------------------------------------------


def test_parts_observe_every_step(model: TableModel) -> None:
    class Watching(Fixed):
        observes_prompt = True

        def __init__(self, tree: TokenTree) -> None:
            super().__init__(tree)
            self.seen: list[tuple[list[int], list[int], list[int], list[int]]] = []
            self.text: list[int] = []
            self.released = 0

        def observe(self, step: Observation) -> None:
            assert step.scores.rows == list(range(len(step.tree))), "every row, as it observes the prompt"
            assert step.branch.cache.length == len(self.text), "the cache is compacted afterwards"
            for node in range(len(step.tree)):
                expected = model.next_logits([*self.text, *step.tree.path_tokens(node)])
                torch.testing.assert_close(step.scores.at(node), expected)
            self.text += [step.tree.token_list[node] for node in step.kept]
            self.seen.append((step.tree.token_list[: step.offset], step.path, step.tokens, step.kept))

        def release(self, branch: Branch) -> None:
            super().release(branch)
            self.released += 1

    right = greedy(model, [1, 2, 3], 9)
    watching = Watching(TokenTree.chain(right[:2]))
    list(decode(model, [[1, 2, 3]], drafter=watching, stop=Stop(4), chunk=2))
    assert watching.seen[0][:3] == ([1, 2], [], [])
    assert watching.seen[1] == ([3], [0, 1], right[:3], [0, 1, 2])
    assert watching.seen[-1][2][-1] == right[3]
    assert watching.released == 1


def test_wants_are_joined() -> None:
    class Deep(Part):
        want = Want(hidden=frozenset({2}))

    lm: Any = backend("llama")
    wants: list[Want] = []
    score = lm.score

    class Look(Drafter):
        want = Want(hidden=frozenset({-1}), attentions=True)

        def draft(self, branch: Branch, budget: Budget) -> Draft:
            return Draft.empty()

        def observe(self, step: Observation) -> None:
            wants.append(Want(frozenset(step.scores.hidden), bool(step.scores.attentions)))

    class Policy(CachePolicy):
        want = Want(hidden=frozenset({2}))

        def shrink(self, branch: Branch) -> None:
            assert branch.cache.length == len(branch.tokens) - 1

    list(decode(lm, [[1, 2, 3]], drafter=Look(), cache_policy=Policy(), stop=Stop(3)))
    assert lm.score == score
    assert set(wants) == {Want(frozenset({2, -1}), True)}
    assert Deep.want | Look.want == Want(frozenset({2, -1}), True)


def test_stopping_to_listen_releases_everything() -> None:
    released: list[TableCache] = []

    class Counted(TableModel):
        def new_caches(self, count: int) -> list[Any]:
            caches = super().new_caches(count)
            for cache in caches:
                cache.release = lambda cache=cache: released.append(cache)  # type: ignore[method-assign, misc]
            return caches

    class Mine(Fixed):
        freed = 0

        def release(self, branch: Branch) -> None:
            super().release(branch)
            self.freed += 1

    drafter = Mine(TokenTree.chain([1]))
    events = decode(Counted(), [[1], [2], [3]], drafter=drafter, stop=Stop(50))
    for event in events:
        if isinstance(event, Stepped):
            break
    events.close()  # type: ignore[attr-defined]
    assert len(released) == 3
    assert drafter.freed == 3


def test_a_failing_part_releases_everything() -> None:
    class Failing(Fixed):
        freed = 0

        def draft(self, branch: Branch, budget: Budget) -> Draft:
            if len(branch.tokens) > 3:
                raise RuntimeError("out of ideas")
            return super().draft(branch, budget)

        def release(self, branch: Branch) -> None:
            self.freed += 1

    drafter = Failing(TokenTree.chain([1]))
    lm: Any = backend("llama")
    with pytest.raises(RuntimeError, match="out of ideas"):
        list(decode(lm, [[1], [2]], drafter=drafter, stop=Stop(50)))
    assert drafter.freed == 2


# -- looking ahead ------------------------------------------------------------------------------------------------


class Farsighted(Sampler):
    """Of the two best tokens the one after which the model is surer."""

    deterministic = True
    looks_ahead = True

    def distribution(self, node: Node) -> Distribution:
        candidates = node.logits.topk(2).indices.tolist()
        after = [node.child_logits(token) for token in candidates]
        if any(logits is None for logits in after):
            raise LookAhead(node, candidates)
        sure = [float(torch.softmax(logits, -1).max()) for logits in after if logits is not None]
        return Distribution.point(candidates[sure.index(max(sure))])


def farsighted(model: TableModel, prompt: list[int], count: int) -> list[int]:
    text = list(prompt)
    for _ in range(count):
        best = model.next_logits(text).topk(2).indices.tolist()
        text.append(max(best, key=lambda t: float(torch.softmax(model.next_logits([*text, t]), -1).max())))
    return text[len(prompt) :]


@pytest.mark.parametrize("tree", [None, TokenTree([0, 1, 2, 3, 4], [-1, 0, 1, -1, -1])])
def test_a_sampler_that_looks_ahead(model: TableModel, tree: TokenTree | None) -> None:
    expected = farsighted(model, [1, 2], 12)
    drafter = None if tree is None else Fixed(tree)
    events = list(decode(model, [[1, 2]], sampler=Farsighted(), drafter=drafter, stop=Stop(12)))
    assert events[-1] == Finished(0, "length", tuple(expected))
    assert len(of_kind(events, Scored)) <= 13, "a look ahead is not wasted"


@pytest.mark.parametrize("stop", [1, 2, 5])
def test_looking_ahead_and_stops(model: TableModel, stop: int) -> None:
    expected = farsighted(model, [1, 2], 12)
    events = list(decode(model, [[1, 2]], sampler=Farsighted(), stop=Stop(12, tokens=frozenset({expected[stop]}))))
    end = expected.index(expected[stop])
    assert events[-1] == Finished(0, "stop-token", tuple(expected[: end + 1]))


# -- searches -----------------------------------------------------------------------------------------------------


class Script(Search):
    """Moves as they are told, and a record of what was there."""

    def __init__(
        self, width: int, moves: dict[int, list[Move]], choose: Callable[[Sequence[Branch]], int] = lambda b: 0
    ) -> None:
        super().__init__()
        self._width = width
        self.moves = moves
        self.choose = choose
        self.step = 0
        self.seen: list[list[tuple[int, list[int]]]] = []

    @property
    def width(self) -> int:
        return self._width

    def advance(self, branches: Sequence[Branch]) -> list[Move] | None:
        self.step += 1
        self.seen.append([(branch.number, branch.generated) for branch in branches])
        return self.moves.get(self.step)

    def select(self, branches: Sequence[Branch]) -> int:
        return self.choose(branches)


@pytest.mark.parametrize("shape", ["table", "llama", "mamba2", "t5"])
def test_a_search_forks_drops_and_rewinds(shape: str) -> None:
    lm: Any = TableModel(vocab_size=8, seed=3) if shape == "table" else backend(shape)
    moves = {2: [Move(0), Move(0), Move(1, keep=1)], 4: [Move(2), Move(0, keep=0)]}
    search = Script(2, moves, choose=lambda b: 1)
    events = list(decode(lm, [[1, 2, 3]], sampler=Random(), search=search, stop=Stop(7), seed=1))
    after_two, after_three = search.seen[1], search.seen[2]
    zero, one = after_two[0][1], after_two[1][1]
    assert [tokens[:2] for _, tokens in after_three[:2]] == [zero, zero], "two copies of the first branch"
    assert after_three[2][1][:1] == one[:1]
    assert len(after_three[2][1]) == 2, "one branch stepped back to one token, and gained one"
    assert {number for number, _ in after_three} == {0, 1, 2}
    before_last, last = search.seen[3], search.seen[4]
    assert last[0][1][:3] == before_last[2][1]
    assert len(last[1][1]) == 1, "a branch that began again"
    (finished,) = of_kind(events, Finished)
    assert finished.branch == last[1][0]
    assert len(finished.tokens) == 7
    # Whatever was forked and rewound, the text of the winner is scored as the model scores it.
    steps = [event for event in of_kind(events, Stepped) if event.branch == finished.branch]
    assert [token for step in steps for token in step.tokens][-7:] == list(finished.tokens)


@pytest.mark.parametrize("shape", ["llama", "gemma3", "mamba2", "bart"])
def test_branches_are_what_a_fresh_run_would_be(shape: str) -> None:
    lm = backend(shape)
    (plain,) = of_kind(list(decode(lm, [[9, 8, 7]], stop=Stop(9))), Finished)
    moves = {
        2: [Move(1), Move(0, keep=1), Move(1, keep=0)],
        3: [Move(2), Move(1)],
        5: [Move(1), Move(1, keep=2), Move(0)],
    }
    for winner in range(3):
        search = Script(2, moves, choose=lambda b, winner=winner: winner)  # type: ignore[misc]
        (finished,) = of_kind(list(decode(lm, [[9, 8, 7]], search=search, stop=Stop(9))), Finished)
        assert finished.tokens == plain.tokens, "greedy branches cannot differ, however they came about"


def test_a_branch_that_is_forked_again_draws_anew(model: TableModel) -> None:
    """A search that tries once more from the same place must not get the same answer for ever."""
    moves = {step: [Move(0, keep=1), Move(0)] if step % 2 else [Move(1)] for step in range(1, 9)}
    search = Script(1, moves)
    list(decode(model, [[1, 2]], sampler=Random(), search=search, stop=Stop(30), seed=4))
    numbers = [number for step in search.seen for number, _ in step]
    fresh = [numbers[0], *(n for step in search.seen for n, _ in step if n)]
    assert len(set(fresh)) == 1 + 4, "every fork has a number of its own"


def test_a_search_over_several_requests(model: TableModel) -> None:
    class Best(Script):
        def __init__(self) -> None:
            super().__init__(3, {}, choose=lambda b: 2)
            self.began: list[int] = []

        def begin(self, request: int, rng: torch.Generator) -> None:
            self.began.append(request)
            assert isinstance(rng, torch.Generator)

    search = Best()
    events = list(decode(model, [[1], [2, 3]], sampler=Random(), search=search, stop=Stop(4)))
    assert search.began == [0, 1]
    assert [(event.index, event.branch) for event in of_kind(events, Finished)] == [(0, 2), (1, 2)]
    first = {event.tokens for event in of_kind(events, Stepped) if event.index == 0}
    assert len(first) > 1, "branches draw for themselves"


def test_a_search_goes_on_behind_the_end() -> None:
    """A finished branch may be taken back; the request ends when the search leaves all finished ones alone."""
    model = TableModel(vocab_size=8, seed=3)
    search = Script(1, {3: [Move(0, keep=1)]})
    events = list(decode(model, [[1, 2]], search=search, stop=Stop(3)))
    assert len(of_kind(events, Scored)) == 5
    assert events[-1] == Finished(0, "length", tuple(greedy(model, [1, 2], 3)))


def test_searches_release_what_they_drop() -> None:
    lm: Any = backend("llama")
    pools = []
    new_caches = lm.new_caches

    def watching(count: int) -> Any:
        caches = new_caches(count)
        pools.append(caches[0].pool)
        return caches

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lm, "new_caches", watching)
        search = Script(4, {2: [Move(1), Move(1)], 4: [Move(0), Move(1), Move(1)]})
        events = decode(lm, [[1, 2, 3], [4, 5]], sampler=Random(), search=search, stop=Stop(12))
        held = []
        for event in events:
            if isinstance(event, Scored):
                held.append(len(pools[0].owners))
    assert held[0] == 8
    assert min(held) < 8
    assert pools[0].owners == []
    assert pools[0].layers == {}


def test_text_of_searches(monkeypatch: pytest.MonkeyPatch) -> None:
    class Letters:
        def encode(self, text: str) -> list[int]:
            return ["abcdefgh".index(letter) for letter in text]

        def decode(self, ids: Sequence[int]) -> str:
            return "".join("abcdefgh"[i] for i in ids)

    model = TableModel(vocab_size=8, seed=3)
    model.tokenizer = Letters()
    expected = Letters().decode(greedy(model, [1, 2], 6))
    events = list(decode(model, [[1, 2]], search=Script(2, {3: [Move(1), Move(1, keep=1)]}), stop=Stop(6)))
    assert all(not step.text for step in of_kind(events, Stepped)), "branches are not streamed"
    assert events[-1].text == expected
    stop = expected[3:5]
    events = list(
        decode(model, [[1, 2]], search=Script(2, {3: [Move(1), Move(1, keep=1)]}), stop=Stop(6, strings=(stop,)))
    )
    assert (events[-1].text, events[-1].reason) == (expected[: expected.index(stop)], "stop-string")


def test_what_compositions_pass_on(model: TableModel) -> None:
    made = compose(model, [Fixed(TokenTree.chain([1])), Greedy()])
    events = list(made.decode([[1, 2]], stop=Stop(3), seed=2, chunk=1, probe=True))
    assert len(of_kind(events, Prefilled)) == 1
    assert of_kind(events, Stepped)[0].probe is not None


def test_the_deadline_is_watched_while_the_prompt_is_read() -> None:
    class Slow(TableModel):
        def score(self, *args: Any, **kwargs: Any) -> Any:
            time.sleep(0.02)
            return super().score(*args, **kwargs)

    model = Slow()
    (finished,) = [
        event
        for event in decode(model, [[1] * 400], chunk=4, stop=Stop(max_new_tokens=5, deadline=0.05))
        if isinstance(event, Finished)
    ]
    assert finished.reason == "deadline"
    assert finished.tokens == ()
    # A hundred passes would read the whole prompt.
    assert model.forwards < 50
