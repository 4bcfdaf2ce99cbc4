"""Experiments: how verdicts come about, what is reported, and every experiment end to end on a tiny model."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tests.evaluation.small import small_engine
from tests.toys import TableModel

from unspool.core.compose import compose
from unspool.core.errors import InvalidInput, UnknownMethod
from unspool.core.registry import registry
from unspool.core.statistics import Statistics
from unspool.engine import Engine
from unspool.evaluation.reproductions import Check, Reproduction, Row, available, run, table
from unspool.evaluation.reproductions import _common as common
from unspool.evaluation.reproductions._common import Continuation, Lab, agreement, conduct, decode_all, experiment
from unspool.evaluation.reproductions._contrastive import contrastive_search
from unspool.evaluation.reproductions._open_ended import endless
from unspool.evaluation.reproductions._report import judge
from unspool.evaluation.reproductions.local_normalization_distortion import interpolate


@pytest.fixture(scope="module")
def engine() -> Engine:
    return small_engine()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def module(slug: str) -> ModuleType:
    return importlib.import_module(f"unspool.evaluation.reproductions.{slug.replace('-', '_')}")


# -- verdicts and reports -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("checks", "verdict"),
    [
        ([(True, True), (True, True)], "holds"),
        ([(True, True), (False, True)], "direction holds"),
        ([(True, True), (False, False)], "fails"),
        ([(False, True), (False, False)], "fails"),
        ([(False, True)], "direction holds"),
        ([], "fails"),
    ],
)
def test_the_verdict_follows_from_the_criteria(checks: list[tuple[bool, bool]], verdict: str) -> None:
    assert judge([Check("c", "m", met, direction) for met, direction in checks]) == verdict


def test_a_criterion_without_direction_is_met_or_fails(engine: Engine) -> None:
    lab = Lab(engine, "token-recycling")
    lab.check("exact", 0.5, False)
    lab.check("half way", 0.5, False, True)
    lab.check("met", "yes", True)
    assert [(check.met, check.direction) for check in lab.checks] == [(False, False), (False, True), (True, True)]
    assert [check.measured for check in lab.checks] == ["0.5", "0.5", "yes"]


def test_rows() -> None:
    assert Row("a", 2.0, 3.0).as_dict() == {"metric": "a", "baseline": 2.0, "method": 3.0, "ratio": 1.5}
    assert Row("a", None, 3.0).ratio is None
    assert Row("a", 0.0, 3.0).ratio is None
    assert Row("a", 2.0, None).ratio is None


def test_the_table_of_results() -> None:
    rows = [Row("passes", 1.0, 0.5), Row("bytes", None, 1572864.0)]
    made = Reproduction("x", "claim", {}, rows, [Check("c", "m", True, True)])
    assert table([made]).splitlines()[2:] == [
        "| `x` | passes | 1 | 0.5 | 0.5 | holds |",
        "|  | bytes |  | 1,572,864 |  |  |",
    ]


def test_every_experiment_has_a_method_and_a_file_of_its_name() -> None:
    assert {"token-recycling", "momentum-decoding", "look-back-decoding", "local-normalization-distortion"} <= set(
        available()
    )
    for slug in available():
        made = module(slug).EXPERIMENT
        assert made.slug == slug
        assert registry[slug].card.claim, "an experiment tests the claim of a card"
        assert type(made.quick) is type(made.full)


def test_an_experiment_under_another_name_is_refused() -> None:
    with pytest.raises(ValueError, match="must have its name"):
        experiment("something-else", quick=None, full=None)(lambda lab, size: None)


def test_an_unknown_slug() -> None:
    with pytest.raises(UnknownMethod, match="did you mean token-recycling"):
        run("token-recyclin")


# -- the bench ----------------------------------------------------------------------------------------------------


def continuation(prompt: list[int], tokens: list[int]) -> Continuation:
    return Continuation(prompt, tokens, Statistics())


def test_agreement_tells_ties_from_differences() -> None:
    model = TableModel(5, seed=1)
    plain = decode_all(compose(model), [[0], [1], [2], [3]], new_tokens=6)
    first, second, third, fourth = (list(one.tokens) for one in plain)

    def other(tokens: list[int], at: int) -> list[int]:
        return [*tokens[:at], (tokens[at] + 1) % 5, *tokens[at + 1 :]]

    logits = model.next_logits([1, *second[:2]])
    best = logits.topk(2).values
    logits[second[2]] -= float(best[0] - best[1]) - 5e-4
    changed = [[*first], other(second, 2), other(third, 0), fourth[:4]]
    runs = [continuation(one.prompt, tokens) for one, tokens in zip(plain, changed, strict=True)]
    found = agreement(model, plain, runs)
    assert (found.equal, found.ties, len(found.different)) == (1, 1, 2)
    assert not found.identical
    assert found.different[0] > 1e-3
    assert found.different[1] == float("inf"), "a text that ends early is different"
    assert str(found).startswith("1 of 4 texts equal, 1 part at a numerical tie, 2 differ")
    assert agreement(model, plain, plain).identical


def test_decoding_side_by_side_counts_as_alone(engine: Engine) -> None:
    prompts = [[1, 2, 3], [40, 41], [9, 9, 9, 9]]
    alone = decode_all(compose(engine.model), prompts, new_tokens=5, stop_tokens=frozenset())
    beside = decode_all(compose(engine.model), prompts, new_tokens=5, batch=2, stop_tokens=frozenset())
    assert [one.tokens for one in alone] == [one.tokens for one in beside]
    assert common.forwards_per_token(alone) == common.forwards_per_token(beside) == 1
    assert common.tokens_per_step(alone) == 1
    assert common.decode_seconds(alone) > 0


def test_seeds_make_runs(engine: Engine) -> None:
    made = compose(engine.model, "sampling", settings={"temperature": 1.0})
    prompts = [[1, 2, 3]] * 4

    def texts(seed: int) -> list[list[int]]:
        # No stop tokens: short texts may be equal by chance.
        never: frozenset[int] = frozenset()
        runs = decode_all(made, prompts, new_tokens=8, batch=2, seed=seed, stop_tokens=never)
        return [one.tokens for one in runs]

    assert texts(0) == texts(0)
    assert len({tuple(text) for text in texts(0) + texts(1)}) == 8, "equal prompts have random numbers of their own"


def test_endless_text_has_no_stop_token(engine: Engine) -> None:
    ending = engine.model.stop_tokens
    head = engine.model.model.get_output_embeddings()  # type: ignore[attr-defined]
    before = head.weight.data.clone()
    try:
        # Half of all choices would end the text.
        head.weight.data[sorted(ending)] *= 50
        lab = Lab(engine, "x")
        prompts = [[place, 7] for place in range(8)]
        free = decode_all(compose(engine.model), prompts, new_tokens=12)
        assert any(len(one.tokens) < 12 for one in free)
        for made in (endless(lab), endless(lab, "momentum-decoding"), endless(lab, "sampling", temperature=1.0)):
            texts = decode_all(made, prompts, new_tokens=12)
            assert all(len(one.tokens) == 12 and not ending & set(one.tokens) for one in texts)
    finally:
        head.weight.data = before


def test_interleaved_takes_turns_and_drops_the_first() -> None:
    calls: list[str] = []
    times = common.interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert calls == ["a", "b"] * 4
    assert set(times) == {"a", "b"}


def test_chats_alternate_and_can_be_spec_bench(engine: Engine, tmp_path: Path) -> None:
    lab = Lab(engine, "x")
    source, prompts = lab.chats(5, new_tokens=8)
    assert source == "builtin-text + builtin-code"
    assert len(prompts) == 5
    decode = engine.model.tokenizer.decode
    assert "Python" in decode(prompts[1])
    rows = [
        {"question_id": i, "category": "qa", "turns": ["long" * 900 if i == 0 else f"number {i}"]} for i in range(4)
    ]
    path = tmp_path / "spec_bench.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    source, prompts = dataclasses.replace(lab, data=tmp_path).chats(2, new_tokens=8)
    assert source == "spec_bench.jsonl"
    assert [decode(prompt).strip() for prompt in prompts] == ["number 1", "number 2"], (
        "what exceeds the context is left out"
    )
    with pytest.raises(InvalidInput, match="nowhere"):
        dataclasses.replace(lab, data=tmp_path / "nowhere").chats(2, new_tokens=8)


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
def test_contrastive_search_without_a_cache(engine: Engine, alpha: float) -> None:
    """Equation 5 of the paper, with every text read from its start each time."""
    network = engine.model.model  # type: ignore[attr-defined]
    prompts, k, stop = [[5, 80, 33, 7], [100, 3]], 4, sorted(engine.model.stop_tokens)
    expected = []
    for prompt in prompts:
        tokens = list(prompt)
        for _ in range(6):
            with torch.no_grad():
                probs = network(torch.tensor([tokens])).logits[0, -1]
                probs[stop] = -torch.inf
                top = probs.softmax(-1).topk(k)
                scores = []
                for p, token in zip(top.values.tolist(), top.indices.tolist(), strict=True):
                    out = network(torch.tensor([[*tokens, token]]), output_hidden_states=True)
                    hidden = out.hidden_states[-1][0]
                    likeness = torch.cosine_similarity(hidden[-1:], hidden[:-1]).max()
                    scores.append((1 - alpha) * p - alpha * float(likeness))
            tokens.append(int(top.indices[scores.index(max(scores))]))
        expected.append(tokens[len(prompt) :])
    got = contrastive_search(engine.model, prompts, new_tokens=6, k=k, alpha=alpha, forbidden=stop)
    assert got == expected


def test_interpolate() -> None:
    curve = [(0.0, 0.0), (1.0, 2.0), (2.0, 3.0)]
    assert [interpolate(curve, x) for x in (0.5, 1.5, 3.0, -1.0)] == [1.0, 2.5, 4.0, -2.0]


# -- every experiment, end to end ---------------------------------------------------------------------------------

# Experiments with a draft model of the target's vocabulary run on a pair of models that lies in the repository.
PAIRED = {"vocabtrim": "stdlib-pair/target", "duodecoding": "stdlib-pair/target"}

SMALL: dict[str, dict[str, object]] = {
    "heterogeneous-vocab-sd": {
        "code": 2,
        "new_tokens": 6,
        "other_tokens": 4,
        "drafter": "stdlib-pair/draft",
        "pair": "stdlib-pair/draft",
        "pair_tokens": 4,
        "contexts": 3,
        "draws": 200,
    },
    "vocabtrim": {
        "draft": "stdlib-pair/draft",
        "answers": None,
        "texts": 2,
        "new_tokens": 6,
        "keeps": (300, 400),
        "timed": 4,
    },
    "duodecoding": {
        "draft": "stdlib-pair/draft",
        "prompts": 2,
        "new_tokens": 8,
        "timed_tokens": 6,
        "beside": "stdlib-pair",
    },
    "improved-mcsd": {"prompts": 2, "new_tokens": 8, "batch": 2, "width": 2, "depth": 3, "draws": 40},
    "del-dynamic-exit-layer": {
        "prompts": 2,
        "length": 24,
        "new_tokens": 12,
        "exits": (1, 2),
        "scripted": True,
        "sampled_layers": 1,
        "control": 0,
    },
    "d3-depth-decay": {
        "prompts": 4,
        "new_tokens": 12,
        "skip_decode": True,
        "curve": (0.9,),
        "redundancy": True,
        "sums": 0,
    },
    "hierarchy-drafting": {
        "prompts": 2,
        "new_tokens": 12,
        "decoded": 1,
        "candidates": 2,
        "corpus": 60_000,
        "answers": 3,
    },
    "aded": {
        "prompts": 2,
        "new_tokens": 12,
        "decoded": 2,
        "nodes": 6,
        "stream": 6,
        "stream_tokens": 12,
        "block": 2,
        "corpus": 60_000,
        "answers": 6,
    },
    "codeswift": {
        "packages": ("json",),
        "written": 1,
        "oracle": 2,
        "context": 80,
        "new_tokens": 12,
        "nodes": 6,
        "common": 60_000,
    },
    "recursive-speculative-decoding": {
        "prompts": 4,
        "new_tokens": 10,
        "budgets": {6: ((2, 3), (3, 2)), 10: ((2, 5),)},
        "draws": 60,
        "k_seq": True,
    },
    "opt-tree": {
        "prompts": 4,
        "new_tokens": 12,
        "calibration": 2,
        "temperatures": (1.0, 0.5),
        "nodes": (6, 9),
        "main": 6,
        "deltas": (0.0, 0.9),
        "sweep": 2,
    },
    "specexec": {
        "prompts": 4,
        "new_tokens": 12,
        "nodes": (8, 40),
        "chains": ((2, 4), (5, 8)),
        "chain": (4,),
        "greedy": (8,),
        "draws": 60,
        "offloaded": 2,
        "offloaded_nodes": 10,
    },
    "dyspec": {
        "prompts": 4,
        "new_tokens": 12,
        "calibration": 2,
        "nodes": 6,
        "temperatures": (0.0, 0.6),
        "exponents": (0.5,),
        "single": 2,
        "draws": 60,
    },
    "specpv": {"prompts": 1, "length": 500, "new_tokens": 12, "identity": 8, "questions": 0},
    "token-recycling": {
        "prompts": 3,
        "new_tokens": 8,
        "warm": 2,
        "warm_tokens": 6,
        "first": 2,
        "trees": (20, 6),
        "cold_nodes": 6,
        "control": 1,
        "ablation": True,
    },
    "greatgramma": {"texts": 1, "places": 1, "sample": 2000, "generations": 2, "new_tokens": 12},
    "pre3-dpda": {"strings": 100, "documents": 3, "checked": 10, "batch": 8, "rounds": 1, "new_tokens": 4},
    "tooldec": {"requests": 2, "new_tokens": 24, "batch": 2, "names": True, "retries": 1},
    "xgrammar": {"documents": 2, "walked": 4, "generations": 2, "new_tokens": 16, "rounds": 1, "timed": 6},
    "pac-code-sets": {"questions": 160, "splits": 10, "programmes": 5},
    "momentum-decoding": {
        "prompts": 3,
        "new_tokens": 12,
        "batch": 2,
        "longer": 16,
        "contrastive": True,
        "timed_tokens": 4,
        "rounds": 1,
        "judge": None,
    },
    "look-back-decoding": {"prompts": 3, "new_tokens": 24, "batch": 2, "tuning": 1, "premise": 3, "more": True},
    "local-normalization-distortion": {
        "draws": 2000,
        "weighed": 8,
        "prompts": 2,
        "length": 5,
        "texts": 3,
        "frontier": (3, 20),
        "filtered": 2,
        "particles": 4,
        "detected": 3,
        "detected_length": 8,
    },
}


# Those without a smaller size run at their quick one.
EXPERIMENTS = [slug if slug in SMALL else pytest.param(slug, marks=pytest.mark.slow) for slug in available()]


@pytest.mark.parametrize("slug", EXPERIMENTS)
def test_an_experiment_end_to_end(engine: Engine, slug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNSPOOL_DATA", raising=False)
    if slug == "xgrammar":
        pytest.importorskip("xgrammar")
    made = module(slug).EXPERIMENT
    size = dataclasses.replace(made.quick, **SMALL.get(slug, {}))
    target = PAIRED.get(slug) or made.model or engine
    result = conduct(made, size, target, quick=True, data=None, progress=False)
    told = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert list(told)[:5] == ["slug", "claim", "setup", "measured", "verdict"]
    assert told["slug"] == slug
    assert told["claim"] == registry[slug].card.claim
    assert told["setup"]["model"] == (target if isinstance(target, str) else "small")
    assert told["verdict"] in ("holds", "direction holds", "fails")
    assert told["verdict"] == judge(result.checks)
    for row in told["measured"]:
        assert set(row) == {"metric", "baseline", "method", "ratio"}
        assert row["method"] is not None
    assert len({row["metric"] for row in told["measured"]}) == len(told["measured"])
    assert len(told["checks"]) >= 4
    assert table([result]).count("\n") == 2 + len(told["measured"])


def test_recycling_is_exact_and_random_candidates_are_worthless(engine: Engine) -> None:
    made = module("token-recycling").EXPERIMENT
    size = dataclasses.replace(made.quick, **SMALL["token-recycling"])
    result = conduct(made, size, engine, quick=True, data=None, progress=False)
    checks = {check.criterion: check for check in result.checks}
    same = [check for criterion, check in checks.items() if criterion.endswith("that of plain greedy decoding")]
    assert len(same) == 2
    assert all(check.met for check in same)
    assert checks["the state is vocabulary * 8 * 4 bytes"].met


def test_the_premise_sees_a_loop(engine: Engine) -> None:
    """In a text that goes round, the distributions come back with the 4-grams."""
    loop = [65, 66, 67, 68, 69, 70, 71, 72, 73, 74]
    fresh = list(range(100, 130))
    lab = Lab(engine, "look-back-decoding")
    module("look-back-decoding")._premise(lab, [continuation([1, 2, 3, 4], fresh + loop * 4)])
    assert {row.metric.split(" (")[0] for row in lab.rows} >= {
        "AUC of KLmin as a detector of a repeated 4-gram that begins"
    }
    nothing = Lab(engine, "look-back-decoding")
    module("look-back-decoding")._premise(nothing, [continuation([1, 2, 3, 4], fresh)])
    assert not nothing.rows
    assert judge(nothing.checks) == "fails"


def test_the_exact_part_does_not_depend_on_the_model(engine: Engine) -> None:
    lab = Lab(engine, "local-normalization-distortion")
    module("local-normalization-distortion").exact(lab, 20_000, 24)
    assert len(lab.checks) == 11
    assert judge(lab.checks) == "holds", [check for check in lab.checks if not check.met]


@pytest.mark.slow
@pytest.mark.model
def test_token_recycling_holds_on_the_default_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNSPOOL_DATA", raising=False)
    result = run("token-recycling", quick=True, progress=False)
    assert result.verdict == "holds", [check for check in result.checks if not check.met]
