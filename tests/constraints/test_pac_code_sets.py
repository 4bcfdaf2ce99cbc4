"""PAC prediction sets: exact solvers against all sets, the nested family, the bound, coverage, and what is printed."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.evaluation.small import small_engine

from unspool.constraints import _pac_calibration as calibration
from unspool.constraints._code_tree import CodeTree, parse
from unspool.constraints._pac_calibration import Calibration, Pair, Program, Solver, right, thresholds
from unspool.constraints._pac_family import MOST, Costs, greedy, holes_of, knapsack, levels, milp, weigh
from unspool.constraints._pac_pairs import read_pairs
from unspool.constraints.pac_code_sets import PACCodeSets, PACSettings, PartialProgram
from unspool.core.errors import InvalidInput
from unspool.core.sockets import FinishedText


def by_letters(
    text: str, costs: dict[str, float], otherwise: float = 0.01
) -> tuple[list[tuple[int, int]], list[float]]:
    """A token a character; the letters of some cost more."""
    return [(place, place + 1) for place in range(len(text))], [-costs.get(char, otherwise) for char in text]


def python(text: str) -> CodeTree:
    tree = parse("python", text)
    assert tree is not None
    return tree


@st.composite
def trees(draw: st.DrawFn, most: int = 11) -> Costs:
    """Random costs; some are equal, so that there are ties."""
    count = draw(st.integers(1, most))
    parents = [-1] + [draw(st.integers(0, at - 1)) for at in range(1, count)]
    # The places are put into preorder.
    below: list[list[int]] = [[] for _ in range(count)]
    for at, up in enumerate(parents):
        if up >= 0:
            below[up].append(at)
    order, stack = [], [0]
    while stack:
        order.append(at := stack.pop())
        stack.extend(reversed(below[at]))
    place = {at: number for number, at in enumerate(order)}
    cost = st.sampled_from([0.0, 0.5, 1.0, 2.0, MOST]) | st.floats(0, MOST)
    return Costs(
        tuple(range(count)),
        tuple(-1 if parents[at] < 0 else place[parents[at]] for at in order),
        tuple(draw(cost) for _ in range(count)),
        (draw(st.sampled_from([0, 1])), *[1] * (count - 1)),
    )


def allowed(costs: Costs, kept: Sequence[bool], budget: float, holes: int, slack: float = 1e-9) -> bool:
    closed = all(not stays or up < 0 or kept[up] for stays, up in zip(kept, costs.parents, strict=True))
    spent = math.fsum(cost for cost, stays in zip(costs.nll, kept, strict=True) if stays)
    return closed and spent <= budget + slack and len(holes_of(costs, kept)) <= holes


def worth(costs: Costs, kept: Sequence[bool]) -> int:
    return sum(weight for weight, stays in zip(costs.weights, kept, strict=True) if stays)


def best(costs: Costs, budget: float, holes: int, must: Sequence[bool], slack: float = 1e-9) -> int:
    """By looking at all sets."""
    return max(
        worth(costs, kept)
        for kept in itertools.product((False, True), repeat=len(costs))
        if allowed(costs, kept, budget, holes, slack) and all(k or not m for k, m in zip(kept, must, strict=True))
    )


# -- the integer programme ----------------------------------------------------------------------------------------


@given(trees(), st.floats(0, 25), st.integers(1, 4))
def test_both_solvers_find_the_optimum(costs: Costs, budget: float, holes: int) -> None:
    nothing, all_of_it = np.zeros(len(costs), dtype=bool), np.ones(len(costs), dtype=bool)
    expected = best(costs, budget, holes, nothing.tolist())
    found = knapsack(costs, budget, holes, nothing)
    assert allowed(costs, found, budget, holes)
    assert worth(costs, found) == expected
    integer = milp(costs, budget, holes, nothing)
    assert allowed(costs, integer, budget, holes, 1e-5)
    # HiGHS meets a budget up to 1e-6 only.
    assert expected <= worth(costs, integer) <= best(costs, budget, holes, nothing.tolist(), 1e-5)
    baseline = greedy(costs, budget, holes, all_of_it)
    assert allowed(costs, baseline, budget, holes)
    assert worth(costs, baseline) <= expected


@given(trees(9), st.integers(1, 4), st.data())
def test_families_are_nested_and_each_is_the_best_around_the_one_before(
    costs: Costs, holes: int, data: st.DataObject
) -> None:
    grid = sorted(data.draw(st.lists(st.floats(1e-6, 1 - 1e-6), min_size=1, max_size=8, unique=True)))
    level = levels(costs, grid, holes)
    before = np.zeros(len(costs), dtype=bool)
    for place in range(len(grid) - 1, -1, -1):
        kept = level > place
        assert allowed(costs, kept.tolist(), -math.log(grid[place]), holes)
        assert not (before & ~kept).any()
        assert worth(costs, kept.tolist()) == best(costs, -math.log(grid[place]), holes, before.tolist())
        assert (kept == (levels(costs, grid[place:], holes) > 0)).all()
        before = kept
    below = levels(costs, grid, holes, "greedy")
    for place, tau in enumerate(grid):
        assert allowed(costs, (below > place).tolist(), -math.log(tau), holes)
    last = len(grid) - 1
    assert worth(costs, (level > last).tolist()) >= worth(costs, (below > last).tolist())
    whole = levels(costs, grid, holes, "milp")
    for place, tau in enumerate(grid):
        assert allowed(costs, (whole > place).tolist(), -math.log(tau), holes, 1e-5)
    assert worth(costs, (whole > last).tolist()) >= worth(costs, (level > last).tolist())


@given(trees(), st.floats(0, 25))
def test_more_holes_keep_no_less(costs: Costs, budget: float) -> None:
    nothing = np.zeros(len(costs), dtype=bool)
    kept = [worth(costs, knapsack(costs, budget, holes, nothing).tolist()) for holes in range(1, 6)]
    assert kept == sorted(kept)


# -- costs of nodes -----------------------------------------------------------------------------------------------


def test_tokens_count_for_the_nodes_that_they_write() -> None:
    tree = python("ab + (c)")
    tokens = ["ab", " +", " (c", ")"]
    spans = [(0, 2), (2, 4), (4, 7), (7, 8)]
    costs = weigh(tree, 0, spans, [-1.0, -2.0, -4.0, -8.0])
    assert len(tokens) == len(spans)
    found = {
        tree.nodes[node].kind + str(tree.nodes[node].start): nll
        for node, nll in zip(costs.nodes, costs.nll, strict=True)
    }
    # White space is nobody's; the bracket and the name share a token, which counts for both.
    assert found == {"Module0": 0.0, "BinOp0": MOST, "Name0": 1.0, "Name6": 4.0}
    assert costs.weights == (0, 1, 1, 1)
    assert costs.parents == (-1, 0, 1, 1)
    moved = weigh(tree, 3, [(0, 3), *((a + 3, b + 3) for a, b in spans)], [-9.0, -1.0, -2.0, -4.0, -8.0])
    assert moved == costs, "what stands before the program does not count"


def test_a_node_costs_between_nothing_and_the_most() -> None:
    tree = python("a")
    assert weigh(tree, 0, [(0, 1)], [-50.0]).nll[1] == MOST
    assert weigh(tree, 0, [(0, 1)], [1e-9]).nll[1] == 0.0


# -- what is contained --------------------------------------------------------------------------------------------


def contains(partial: str, truth: str, removed: Sequence[str]) -> bool:
    """Whether a program without these parts contains another."""
    tree = python(partial)
    fits = right(tree, python(truth))
    gone = {number for number, node in enumerate(tree.nodes) if tree.text[node.start : node.end] in removed}
    for number, node in enumerate(tree.nodes):
        if node.parent in gone:
            gone.add(number)
    return all(fits[number] for number in range(len(tree.nodes)) if number not in gone)


@pytest.mark.parametrize(
    ("partial", "truth", "removed", "expected"),
    [
        ("a + b", "a + b", [], True),
        ("a + b", "a  +  b  # really", [], True),
        ("a + b", "a - b", [], False),
        ("a + b", "a + c", [], False),
        ("a + b", "a + c", ["b"], True),
        ("a + b", "a + f(c)[1]", ["b"], True),
        ("a + b", "b + a", ["b"], False),
        ("f(a, b)", "f(a, b, c)", ["b"], False),
        ("f(a, g(b))", "f(a, [x])", ["g(b)"], True),
        ("f(a, g(b))", "f(a, [x])", ["b"], False),
        ("x = 1\ny = 2", "x = 1", [], False),
        ("x = 1\ny = 2", "x = 1\nz = 3", ["y = 2"], True),
        ("'a  b'", "'a b'", [], False),
        ("if a:\n    b", "if a:\n        b", [], True),
    ],
)
def test_what_a_partial_program_contains(partial: str, truth: str, removed: list[str], expected: bool) -> None:
    assert contains(partial, truth, removed) == expected


def test_a_pair_is_missed_until_all_that_is_wrong_is_gone() -> None:
    text = "f(a, b, c)"
    spans, values = by_letters(text, {"b": 1.0, "c": 3.0})
    program = Program.of("python", text, spans, values)
    assert program is not None
    grid = thresholds(100)
    family = calibration.solve(program, python("f(a, x, c)"), grid, 2)
    # "c" goes first, then "b": as long as both fit, which is up to exp(-4), and "b" alone up to exp(-1), about.
    total = sum(-value for value in values if value < -0.5)
    level = levels(program.costs, grid, 2)
    at = [program.tree.nodes[node].start for node in program.costs.nodes].index(5)
    assert family.misses == level[at]
    assert grid[family.misses - 1] <= math.exp(-1.0) < math.exp(-total + 3.0) * 1.5
    assert list(family.kept) == sorted(family.kept, reverse=True)
    assert calibration.solve(program, python(text), grid, 2).misses == 0
    assert calibration.solve(None, python(text), grid, 2) == calibration.Family(0, (0,) * 100, 0)
    other = calibration.solve(program, python("g(a, b, c)"), grid, 2)
    assert other.misses == level[1:3].max(), "nothing less than the whole call is wrong"


# -- the bound ----------------------------------------------------------------------------------------------------


def tail(count: int, misses: int, epsilon: Fraction) -> Fraction:
    return sum(
        (math.comb(count, h) * epsilon**h * (1 - epsilon) ** (count - h) for h in range(misses + 1)), Fraction(0)
    )


@given(st.integers(1, 200), st.sampled_from([0.05, 0.1, 0.2, 0.3, 0.5]), st.sampled_from([0.3, 0.1, 0.05, 0.01, 1e-4]))
def test_the_bound_is_the_exact_sum(count: int, epsilon: float, delta: float) -> None:
    exact, limit = Fraction(epsilon), Fraction(delta)
    if tail(count, 0, exact) > limit:
        with pytest.raises(InvalidInput, match=f"at least {calibration.needed(epsilon, delta)} are needed"):
            calibration.allowed_misses(count, epsilon, delta)
        assert count < calibration.needed(epsilon, delta)
        return
    found = calibration.allowed_misses(count, epsilon, delta)
    assert tail(count, found, exact) <= limit < tail(count, found + 1, exact)
    assert count >= calibration.needed(epsilon, delta)


def test_how_many_pairs_are_needed() -> None:
    assert calibration.needed(0.1, 0.01) == 44
    assert calibration.allowed_misses(44, 0.1, 0.01) == 0
    assert calibration.needed(0.5, 0.5) == 1
    assert calibration.allowed_misses(100_000, 0.2, 0.01) == pytest.approx(20_000 - 2.33 * math.sqrt(16_000), abs=5)


@pytest.mark.parametrize(("epsilon", "delta"), [(0, 0.1), (1, 0.1), (0.1, 0), (0.1, 1.5), (-1, 0.1)])
def test_chances_lie_between_nothing_and_certainty(epsilon: float, delta: float) -> None:
    with pytest.raises(InvalidInput, match="between 0 and 1"):
        calibration.allowed_misses(100, epsilon, delta)


def test_the_smallest_threshold_that_is_good_enough() -> None:
    misses = np.array([0, 0, 1, 3, 5])
    assert calibration.choose(misses, 5, 0) is None
    assert calibration.choose(misses, 6, 0) == 5
    assert calibration.choose(misses, 5, 1) == 3
    assert calibration.choose(misses, 5, 3) == 0
    assert calibration.choose(misses, 5, 2) == 1


@pytest.mark.parametrize("kind", ["informed", "blind", "sure"])
def test_coverage(kind: str) -> None:
    """Over many draws of calibration pairs the coverage falls below 1 - epsilon about as rarely as delta says."""
    rng = np.random.default_rng(3)
    epsilon, delta, count, draws, points = 0.2, 0.05, 60, 2000, 50
    # A world of programs: how many thresholds miss each.
    world = {
        "informed": np.where(rng.random(5000) < 0.6, 0, rng.integers(1, points, 5000)),
        "blind": rng.integers(0, points + 1, 5000),
        "sure": np.where(rng.random(5000) < 0.5, 0, points),
    }[kind]
    allowed_misses = calibration.allowed_misses(count, epsilon, delta)
    failed = holes = 0
    for _ in range(draws):
        place = calibration.choose(rng.choice(world, count), points, allowed_misses)
        holes += place is None
        failed += place is not None and (world > place).mean() > epsilon
    assert failed / draws <= delta + 3 * math.sqrt(delta * (1 - delta) / draws)
    assert (holes == draws) == (kind == "sure")
    if kind == "informed":
        assert failed > 0, "a bound that never fails is too careful"


# -- calibrations -------------------------------------------------------------------------------------------------


def pair(text: str, reference: str, costs: dict[str, float]) -> Pair:
    spans, values = by_letters(text, costs)
    return Pair(text, tuple(spans), tuple(values), reference)


def solver(count: int = 40) -> Solver:
    made = Solver("python", holes=2)
    for number in range(count):
        # One in four is wrong, and costs more where it is.
        made.add(pair("f(a, b)", "f(a, x)" if number % 4 == 0 else "f(a, b)", {"b": 2.0 if number % 4 == 0 else 0.05}))
    return made


def test_calibrate_and_keep(tmp_path: Path) -> None:
    made = solver()
    assert made.add(pair("f(a, b)", "not a program", {})) is None
    made.add(pair("no program", "f(a, b)", {}))
    found = made.calibrate(0.2, 0.01, "a model")
    assert (found.pairs, found.unread, found.unparsed, found.model) == (41, 1, 1, "a model")
    assert found.tau is not None
    assert found.missed <= found.allowed == calibration.allowed_misses(41, 0.2, 0.01)
    assert 0 < found.kept < 1
    path = tmp_path / "deep" / "c.json"
    found.save(path)
    assert Calibration.load(path) == found
    assert [file.name for file in path.parent.iterdir()] == ["c.json"]
    assert json.loads(path.read_text())["tau"] == found.tau


def test_too_few_pairs_are_told_with_what_was_left_out() -> None:
    made = solver(20)
    made.add(pair("f(a, b)", "not a program", {}))
    with pytest.raises(
        InvalidInput, match=r"20 calibration pairs are too few .* at least 44 .*\(1 more have a reference"
    ):
        made.calibrate(0.1, 0.01)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "is none: `unspool calibrate pac-code-sets` makes one"),
        ({"version": 2}, "has version 2; 1 is read"),
        ({"points": 0}, "points is 0"),
        ({"place": 100}, "place is 100"),
        ({"epsilon": "much"}, "epsilon is 'much'"),
        ({"language": "cobol"}, "language is 'cobol'"),
        ({"holes": True}, "holes is True"),
        ({"model": None}, "model is None"),
    ],
)
def test_damaged_calibrations(change: dict[str, object], message: str, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps({**solver().calibrate(0.2, 0.01).as_dict(), **change}))
    with pytest.raises(InvalidInput, match=message):
        Calibration.load(path)


def test_calibrations_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot be read"):
        Calibration.load(tmp_path / "nowhere.json")
    (tmp_path / "c.json").write_text("{")
    with pytest.raises(InvalidInput, match="is not JSON"):
        Calibration.load(tmp_path / "c.json")
    with pytest.raises(InvalidInput, match="cannot be written"):
        solver().calibrate(0.2, 0.01).save(tmp_path / "c.json" / "below.json")


# -- the method ---------------------------------------------------------------------------------------------------


def finished(text: str, costs: dict[str, float]) -> FinishedText:
    spans, values = by_letters(text, costs)
    return FinishedText(0, 0, (1,), tuple(range(len(text))), text, tuple(spans), tuple(values), "stop-token")


class Setting:
    """A target, as far as the method looks at it."""

    def __init__(self, name: str = "m", tokenizer: object = "there") -> None:
        self.target = self
        self.name, self.tokenizer = name, tokenizer


def read(method: PACCodeSets, text: str, costs: dict[str, float], setting: Setting | None = None):  # type: ignore[no-untyped-def]
    method.bind(setting or Setting())  # type: ignore[arg-type]
    return method.read([finished(text, costs)], 0)


def test_holes_are_cut_where_the_model_was_unsure() -> None:
    text = "def f(a):\n    return a + q\n"
    found = read(PACCodeSets(PACSettings(tau=0.5)), text, {"q": 3.0})
    assert found.data["partial_program"] == "def f(a):\n    return a + ??"
    assert found.data["holes"] == [{"start": 25, "end": 26, "text": "q", "kind": "Name"}]
    assert found.data["kept"] == [[0, 25]]
    assert found.data["nodes"] - found.data["kept_nodes"] == 1
    assert (found.data["guarantee"], found.data["coverage"], found.data["tau"]) == (False, None, 0.5)
    assert "no guarantee: the threshold 0.5 is not calibrated" in found.text
    assert found.choice is None
    json.dumps(found.data)


def test_a_threshold_near_nothing_keeps_all_and_one_near_certainty_nothing() -> None:
    text = "f(a, b)"
    assert read(PACCodeSets(PACSettings(tau=1e-4)), text, {}).data["partial_program"] == text
    nothing = read(PACCodeSets(PACSettings(tau=0.9999, mark="…")), text, {})
    assert nothing.data["partial_program"] == "…"
    assert nothing.data["kept"] == []
    assert nothing.data["kept_nodes"] == 0


def test_holes_are_no_more_than_allowed() -> None:
    text = "f(a, b, c, d)"
    costs = dict.fromkeys("abc", 2.0)
    for holes, expected in ((3, "f(??, ??, ??, d)"), (4, "f(??, ??, ??, d)"), (2, "??"), (1, "??")):
        found = read(PACCodeSets(PACSettings(tau=0.5, holes=holes)), text, costs)
        assert found.data["partial_program"] == expected


def test_what_does_not_parse_is_one_hole() -> None:
    found = read(PACCodeSets(), "no program here", {})
    assert found.data["partial_program"] == "??"
    assert "does not parse as python" in found.data["note"]
    silent = read(PACCodeSets(), "", {}, Setting(tokenizer=None))
    assert "m has no tokenizer" in silent.data["note"]


def test_a_program_among_words() -> None:
    text = "Sure:\n```python\nf(q)\n```\n"
    found = read(PACCodeSets(PACSettings(tau=0.3)), text, {"q": 4.0, "S": 9.0})
    assert found.data["partial_program"] == "f(??)"
    assert found.data["holes"][0]["start"] == text.index("q")
    assert found.data["kept"] == [[16, 18], [19, 20]]


def test_calibrated(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    made = solver().calibrate(0.2, 0.01, "m")
    made.save(path)
    method = PACCodeSets(PACSettings(calibration=str(path)))
    found = read(method, "f(a, b)", {"b": 2.0})
    assert found.data["partial_program"] == "f(a, ??)"
    assert (found.data["coverage"], found.data["confidence"], found.data["guarantee"]) == (0.8, 0.99, True)
    assert found.data["tau"] == made.tau
    assert "contains the right program with probability 0.8 (confidence 0.99)" in found.text
    assert read(method, "f(a, b)", {"b": 0.05}).data["partial_program"] == "f(a, b)"
    other = read(method, "f(a, b)", {}, Setting("another"))
    assert (other.data["guarantee"], other.data["coverage"]) == (False, None)
    assert "no guarantee: calibrated for m" in other.data["note"]


def test_without_a_threshold_that_is_good_enough_all_is_one_hole() -> None:
    made = Solver("python", holes=2)
    for _ in range(40):
        made.add(pair("f(a, b)", "g(a, b)", dict.fromkeys("f(a, b)", 0.0)))
    found = made.calibrate(0.2, 0.01)
    assert (found.place, found.tau, found.kept, found.missed) == (None, None, 0.0, 0)
    told = read(PACCodeSets(calibration=found), "f(a, b)", {}).data
    assert (told["partial_program"], told["guarantee"], told["tau"]) == ("??", True, None)


@pytest.mark.parametrize(("name", "value"), [("tau", 0.5), ("language", "sql"), ("holes", 4), ("optimiser", "greedy")])
def test_settings_against_the_calibration(name: str, value: object) -> None:
    made = solver().calibrate(0.2, 0.01)
    with pytest.raises(InvalidInput, match=f"{name} is .*leave it out, or calibrate anew"):
        PACCodeSets(PACSettings(**{name: value}), made)  # type: ignore[arg-type]
    PACCodeSets(PACSettings(**{name: getattr(made, name)}), made)


@given(st.lists(st.floats(0, 3), min_size=30, max_size=30), st.floats(0.01, 0.99), st.integers(1, 3))
def test_what_is_printed_is_what_is_kept(values: list[float], tau: float, holes: int) -> None:
    text = "for x in f(y, [z, 1]):  # é\n    é.g(x)"
    spans = [(place, place + 1) for place in range(len(text))]
    log_probs = [-values[place % 30] / 10 for place in range(len(text))]
    method = PACCodeSets(PACSettings(tau=tau, holes=holes))
    found = method.partial(text, spans, log_probs)
    assert isinstance(found, PartialProgram)
    assert found.show("\0").count("\0") == len(found.holes) <= holes
    kept = "".join(text[start:end] for start, end in found.intervals)
    assert kept == found.show("")
    pieces = found.show("\0").split("\0")
    whole = "".join(itertools.chain(*zip(pieces, [*(hole.text for hole in found.holes), ""], strict=True)))
    assert whole == text


def test_in_an_engine() -> None:
    """An output of a tiny model, plainly, under speculation and in a batch: one reading, and the text is the same."""
    engine = small_engine()
    plain = engine.generate("a", "plain", max_new_tokens=16)
    read = engine.generate("a", "pac-code-sets", max_new_tokens=16)
    assert read.text == plain.text
    assert read.log_probs is not None
    assert len(read.log_probs) == len(read.tokens)
    assert engine.compose("auto+pac-code-sets").lossless
    drafted = engine.generate("a", "token-recycling+pac-code-sets", max_new_tokens=16)
    both = engine.generate(["a", "bcd"], "prompt-lookup+pac-code-sets", max_new_tokens=16)
    assert read.reading is not None
    assert drafted.reading == both[0].reading == read.reading
    assert drafted.log_probs == pytest.approx(read.log_probs, abs=1e-9)
    assert both[0].log_probs == pytest.approx(read.log_probs, abs=1e-9)


# -- pairs out of files -------------------------------------------------------------------------------------------


def lines(tmp_path: Path, *rows: object) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_pairs(tmp_path: Path) -> None:
    path = lines(
        tmp_path,
        {"prompt": "Add.", "reference": "a + b"},
        "",
        {"messages": [{"role": "user", "content": "Add."}], "reference": "a + b"},
        {"tokens": ["a", " +", " é"], "logprobs": [-1, -0.5, 0], "reference": "a + b"},
    )
    first, second, third = read_pairs(path)
    assert (first.prompt, first.reference) == ("Add.", "a + b")  # type: ignore[union-attr]
    assert second.prompt == [{"role": "user", "content": "Add."}]  # type: ignore[union-attr]
    assert third == Pair("a + é", ((0, 1), (1, 3), (3, 5)), (-1.0, -0.5, 0.0), "a + b")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "line 1 is not JSON"),
        ([], 'line 1 has no text "reference"'),
        ({"prompt": "a"}, 'line 1 has no text "reference"'),
        ({"reference": "a"}, 'neither a "prompt"'),
        ({"reference": "a", "prompt": ""}, 'neither a "prompt"'),
        ({"reference": "a", "tokens": "ab", "logprobs": []}, '"tokens" is no list'),
        ({"reference": "a", "tokens": ["a"]}, '"logprobs" is no list of 1 numbers'),
        ({"reference": "a", "tokens": ["a"], "logprobs": [0.5]}, '"logprobs" is no list of 1 numbers of at most 0'),
        ("", "holds no pairs"),
    ],
)
def test_lines_that_are_no_pairs(row: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=message):
        read_pairs(lines(tmp_path, row))
