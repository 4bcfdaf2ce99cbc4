"""Under transformers' own ``generate``: what comes out is what ``generate`` alone gives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from scipy.stats import chi2_contingency
from tests.models.shapes import ENCODER_DECODERS, NATIVE, RECURRENT, ROUNDED, SHAPES, network, prompts
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList
from transformers.generation import BaseStreamer

import unspool
from unspool.core.errors import InvalidInput
from unspool.core.registry import registry
from unspool.core.sockets import Drafter

HOOKED = [shape for shape in SHAPES if shape not in (*NATIVE, *ROUNDED)]
"""Networks of transformers."""
PAD = 0


@pytest.fixture(scope="module")
def networks() -> dict[str, Any]:
    return {shape: network(shape) for shape in HOOKED}


def inputs(count: int = 3, *, right: bool = False) -> dict[str, torch.Tensor]:
    """Ragged prompts, padded on the left as decoders need it, or on the right as encoders do."""
    rows = prompts(count)
    longest = max(map(len, rows))
    ids = torch.full((count, longest), PAD)
    mask = torch.zeros(count, longest, dtype=torch.int64)
    for row, tokens in enumerate(rows):
        place = slice(len(tokens)) if right else slice(longest - len(tokens), None)
        ids[row, place] = torch.tensor(tokens)
        mask[row, place] = 1
    return {"input_ids": ids, "attention_mask": mask}


def both(model: Any, method: str = "auto", batch: int = 3, **options: Any) -> tuple[Any, Any]:
    asked = inputs(batch, right=model.config.is_encoder_decoder)
    options = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": PAD, **options}
    expected = model.generate(**asked, **options)
    mine = model.generate(**asked, **options, custom_generate=unspool.as_custom_generate(method))
    return mine, expected


@pytest.mark.parametrize("method", ["token-recycling", "prompt-lookup"])
@pytest.mark.parametrize("shape", [s for s in HOOKED if s not in RECURRENT])
def test_greedy(networks: dict[str, Any], shape: str, method: str) -> None:
    for batch in (1, 3):
        mine, expected = both(networks[shape], method, batch)
        assert mine.tolist() == expected.tolist()


@pytest.mark.parametrize("shape", RECURRENT)
def test_recurrent_models(networks: dict[str, Any], shape: str) -> None:
    mine, expected = both(networks[shape], "prompt-lookup", batch=1, max_new_tokens=10)
    assert mine.tolist() == expected.tolist()


class Push(LogitsProcessor):
    """Favours a token that depends on how much text there is, padding included."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.clone()
        scores[:, input_ids.shape[1] % 7 + 10] += 2.0
        return scores


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.5},
        {"no_repeat_ngram_size": 2},
        {"min_new_tokens": 15, "eos_token_id": [11, 21, 36, 44, 60]},
        {"min_length": 18, "eos_token_id": [11, 21, 36, 44, 60]},
        {"eos_token_id": [11, 44]},
        {"bad_words_ids": [[60], [61]]},
        {"suppress_tokens": [60, 11]},
        {"forced_eos_token_id": 5},
        {"logits_processor": LogitsProcessorList([Push()])},
        {"prefix_allowed_tokens_fn": lambda row, text: [10 + row, 20 + row, 30 + len(text) % 9]},
        {"max_length": 17, "max_new_tokens": None},
    ],
    ids=lambda options: next(iter(options)),
)
@pytest.mark.parametrize("shape", ["llama", "gpt2", "t5"])
def test_settings_of_transformers(networks: dict[str, Any], shape: str, options: dict[str, Any]) -> None:
    mine, expected = both(networks[shape], **options)
    assert mine.tolist() == expected.tolist()


def test_stop_tokens_pad_the_rest(networks: dict[str, Any]) -> None:
    text = both(networks["llama"])[1][:, -20:]
    mine, expected = both(networks["llama"], eos_token_id=int(text[1, 4]))
    assert mine.tolist() == expected.tolist()
    assert (expected[1, -3:] == PAD).all(), "one row ended before the others"


class After(StoppingCriteria):
    def __init__(self, token: int) -> None:
        self.token = token

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return input_ids[:, -1] == self.token


@pytest.mark.parametrize("place", [0, 3, 9])
def test_stopping_criteria(networks: dict[str, Any], place: int) -> None:
    text = both(networks["llama"], batch=1)[1][0, -20:].tolist()
    criteria = StoppingCriteriaList([After(text[place])])
    mine, expected = both(networks["llama"], "auto", 1, stopping_criteria=criteria)
    assert mine.tolist() == expected.tolist()
    assert mine.shape[1] == inputs(1)["input_ids"].shape[1] + text.index(text[place]) + 1


class Listening(BaseStreamer):
    def __init__(self) -> None:
        self.heard: list[list[int]] = []
        self.ended = 0

    def put(self, value: torch.Tensor) -> None:
        self.heard.append(value.flatten().tolist())

    def end(self) -> None:
        self.ended += 1


def test_a_streamer(networks: dict[str, Any]) -> None:
    theirs, mine = Listening(), Listening()
    asked = inputs(1)
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": PAD}
    networks["llama"].generate(**asked, **options, streamer=theirs)
    networks["llama"].generate(**asked, **options, custom_generate=unspool.as_custom_generate("auto", streamer=mine))
    assert mine.heard == theirs.heard
    assert mine.ended == theirs.ended == 1


def test_return_dict(networks: dict[str, Any]) -> None:
    mine, expected = both(networks["llama"], return_dict_in_generate=True)
    assert type(mine) is type(expected)
    assert mine.sequences.tolist() == expected.sequences.tolist()
    assert mine["sequences"] is mine.sequences


def test_a_draft_model_and_settings(networks: dict[str, Any]) -> None:
    asked, model = inputs(), networks["llama"]
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": PAD}
    made = unspool.as_custom_generate("draft-model", draft=network("llama", noise=0.2), tokens=3)
    assert (
        model.generate(**asked, **options, custom_generate=made).tolist() == model.generate(**asked, **options).tolist()
    )
    with pytest.raises(InvalidInput, match="tokens"):
        model.generate(**asked, **options, custom_generate=unspool.as_custom_generate("prompt-lookup", tokens=0))


def test_what_was_learned_is_kept(networks: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Drafter] = []
    cls: Any = registry["token-recycling"].cls
    before = cls.__init__
    monkeypatch.setattr(cls, "__init__", lambda self, *args: (made.append(self), before(self, *args))[1])
    function = unspool.as_custom_generate("token-recycling")
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": PAD, "custom_generate": function}
    for _ in range(3):
        networks["llama"].generate(**inputs(), **options)
    assert len(made) == 1
    networks["gpt2"].generate(**inputs(), **options)
    assert len(made) == 2, "every model has a matrix of its own"


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("auto", {"num_beams": 3}, "num_beams is 3; set it to 1"),
        (
            "momentum-decoding",
            {"repetition_penalty": 1.2},
            "momentum-decoding brings a sampler of its own.*RepetitionPenalty",
        ),
    ],
)
def test_what_cannot_be_combined(networks: dict[str, Any], method: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        networks["llama"].generate(
            **inputs(),
            **options,
            max_new_tokens=3,
            pad_token_id=PAD,
            custom_generate=unspool.as_custom_generate(method),
        )


def test_a_sampler_of_a_method_alone(networks: dict[str, Any]) -> None:
    asked = inputs(1)
    function = unspool.as_custom_generate("auto+momentum-decoding")
    mine = networks["llama"].generate(
        **asked, max_new_tokens=12, do_sample=False, pad_token_id=PAD, custom_generate=function
    )
    expected = unspool.Engine(networks["llama"]).generate(
        asked["input_ids"][0].tolist(), "momentum-decoding", max_new_tokens=12
    )
    assert mine[0, -12:].tolist() == expected.tokens


# -- sampling -----------------------------------------------------------------------------------------------------


@pytest.fixture
def chance() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(20)
        yield


SAMPLING = {
    "max_new_tokens": 2,
    "do_sample": True,
    "temperature": 0.7,
    "top_k": 4,
    "top_p": 0.95,
    "repetition_penalty": 1.1,
    "pad_token_id": PAD,
}


@pytest.mark.usefixtures("chance")
def test_sampled_output_has_the_same_distribution(networks: dict[str, Any]) -> None:
    """Pairs of tokens after one prompt, of transformers' own sampling and of ours with a draft model."""
    model, prompt = networks["llama"], torch.tensor([[5, 6, 7, 5, 6]])
    drawn = 600
    mask = torch.ones(drawn, prompt.shape[1], dtype=torch.int64)
    asked = {
        "input_ids": prompt.expand(drawn, -1),
        "attention_mask": mask,
        "generation_config": GenerationConfig(**SAMPLING),
    }
    function = unspool.as_custom_generate("draft-model", draft=network("llama", noise=0.4), tokens=2)
    counts: dict[tuple[int, ...], list[int]] = {}
    for source, options in enumerate(({}, {"custom_generate": function})):
        for pair in model.generate(**asked, **options)[:, -2:].tolist():
            counts.setdefault(tuple(pair), [0, 0])[source] += 1
    common = [pair for pair in counts.values() if sum(pair) >= 10]
    rare = [sum(column) for column in zip(*(pair for pair in counts.values() if sum(pair) < 10), strict=True)]
    table = [*common, *([rare] if sum(rare) >= 10 else [])]
    assert len(table) > 4
    assert chi2_contingency(torch.tensor(table).T.numpy()).pvalue > 1e-3


@pytest.mark.usefixtures("chance")
def test_sampling_follows_the_global_seed(networks: dict[str, Any]) -> None:
    function = unspool.as_custom_generate("auto")

    def run(seed: int, **options: Any) -> list[list[int]]:
        torch.manual_seed(seed)
        settings = {**SAMPLING, "max_new_tokens": 12, **options}
        return networks["llama"].generate(**inputs(2), **settings, custom_generate=function).tolist()  # type: ignore[no-any-return]

    assert run(1) == run(1)
    assert run(1) != run(2)
    several = run(1, num_return_sequences=3)
    assert len(several) == 6
    assert several[0] != several[1]


def test_several_greedy_sequences_are_refused(networks: dict[str, Any]) -> None:
    # Transformers refuses these itself; so does the function, for whoever calls it.
    with pytest.raises(ValueError, match=r"num_return_sequences|several return sequences"):
        networks["llama"].generate(
            **inputs(), do_sample=False, num_return_sequences=2, custom_generate=unspool.as_custom_generate("auto")
        )


def test_encoders_are_among_the_shapes() -> None:
    assert set(ENCODER_DECODERS) <= set(SHAPES)
