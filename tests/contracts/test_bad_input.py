"""What users get wrong is told in their terms: which value it was, and what would work. No traceback of a library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.shapes import CONTEXT, VOCAB, ByteTokenizer, backend, network

from unspool.core.branch import Branch
from unspool.core.errors import Incompatible, InvalidInput, UnknownMethod, UnspoolError, WeightsError
from unspool.core.sockets import Budget, Draft, Drafter, Proposal
from unspool.engine import Engine, load


class Sampled(Drafter):
    proposal = Proposal.WITH_REPLACEMENT

    def draft(self, branch: Branch, budget: Budget) -> Draft:
        return Draft.empty()


@pytest.fixture
def engine() -> Engine:
    return Engine(backend("llama"))


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> Engine:
    lm = backend("llama")
    monkeypatch.setattr(lm, "tokenizer", ByteTokenizer())
    return Engine(lm)


def refused(engine: Engine, error: type[UnspoolError], message: str, prompt: Any = (5, 6, 7), **options: Any) -> None:
    before = engine.model.forwards
    with pytest.raises(error, match=message):
        engine.generate(prompt, **options)
    assert engine.model.forwards == before, "it is told before anything runs"


# -- prompts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", [[], (), ""])
def test_an_empty_prompt(texts: Engine, prompt: Any) -> None:
    refused(texts, InvalidInput, "the prompt is empty; give some text", prompt)


def test_an_empty_prompt_among_others(texts: Engine) -> None:
    refused(texts, InvalidInput, "the prompt is empty; give some text", ["abc", ""])


@pytest.mark.parametrize("length", [CONTEXT, CONTEXT + 50])
def test_a_prompt_longer_than_the_context(engine: Engine, length: int) -> None:
    message = f"the prompt has {length} tokens; tiny-llama has a context of {CONTEXT}.*shorten the prompt"
    refused(engine, InvalidInput, message, [5] * length)


def test_a_prompt_that_just_fits(engine: Engine) -> None:
    output = engine.generate([5] * (CONTEXT - 1), max_new_tokens=9)
    assert (len(output.tokens), output.finish_reason) == (1, "context")


def test_a_source_longer_than_the_encoder() -> None:
    refused(
        Engine(backend("bart")), InvalidInput, "prompt 0 has 49 tokens; the encoder of tiny-bart reads 48", [5] * 49
    )
    output = Engine(backend("bart")).generate([5] * 48, max_new_tokens=3)
    assert len(output.tokens) == 3, "what the encoder reads takes no place from the answer"


@pytest.mark.parametrize("token", [-1, VOCAB, 10**6])
def test_a_token_outside_the_vocabulary(engine: Engine, token: int) -> None:
    refused(engine, InvalidInput, f"the prompt holds token {token}; tiny-llama has tokens 0 to {VOCAB - 1}", [0, token])


@pytest.mark.parametrize("prompt", [[{"content": "no role"}], [5, "mixed"], [3.5], [["nested"]]])
def test_a_prompt_of_another_kind(texts: Engine, prompt: Any) -> None:
    refused(texts, InvalidInput, "a prompt is text, a list of token ids, or messages with 'role' and 'content'", prompt)


def test_text_without_a_tokenizer(engine: Engine) -> None:
    refused(engine, InvalidInput, "tiny-llama has no tokenizer; give token ids", "hello")


def test_messages_without_a_template(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    from unspool.models.tokenizer import TextTokenizer

    plain = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0, "b": 1}, [])))
    tokenizer = TextTokenizer(plain)
    assert not tokenizer.chats
    with pytest.raises(InvalidInput, match="no chat template; give plain text"):
        tokenizer.chat([{"role": "user", "content": "a"}])
    plain.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(InvalidInput, match="chat template refuses these messages: roles must alternate"):
        tokenizer.chat([{"role": "user", "content": "a"}])


# -- limits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, -5])
def test_no_tokens_at_all(engine: Engine, count: int) -> None:
    refused(engine, InvalidInput, f"max_new_tokens is {count}; it must be at least 1", max_new_tokens=count)


def test_deadlines_and_stop_strings(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(engine, InvalidInput, "the deadline is -1 s; it must be above 0", deadline=-1)
    refused(engine, InvalidInput, "stop strings need a tokenizer, and tiny-llama has none: use stop tokens", stop="END")
    monkeypatch.setattr(engine.model, "tokenizer", ByteTokenizer())
    refused(engine, InvalidInput, "a stop string is empty", stop=["END", ""])


# -- methods and settings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "suggestion"),
    [("token-recyling", "token-recycling"), ("promptlookup", "prompt-lookup"), ("auto+greedy-mach", "greedy-match")],
)
def test_an_unknown_method(engine: Engine, method: str, suggestion: str) -> None:
    refused(engine, UnknownMethod, f"did you mean .*{suggestion}", method=method)


def test_an_unknown_method_that_resembles_nothing(engine: Engine) -> None:
    refused(engine, UnknownMethod, "there is no method 'xyzzy'. Known: aded, auto, ", method="xyzzy")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.5}, r"temperature=-0.5: input should be greater than or equal to 0"),
        ({"temperature": "hot"}, r"temperature='hot'"),
        ({"temperature": float("nan")}, r"temperature=nan"),
        ({"top_p": 1.5}, r"top_p=1.5: input should be less than or equal to 1"),
        ({"top_k": -1}, r"top_k=-1"),
        ({"temprature": 0.5}, r"'temprature'.*temperature"),
        ({"nodes": 0}, r"nodes=0"),
        ({"nodes": "lots"}, r"nodes='lots': input should be a valid integer"),
        (
            {"method": "token-recycling+fixed-budget", "nodes": 4},
            r"'nodes' belongs to token-recycling and fixed-budget",
        ),
        ({"method": "prompt-lookup", "settings": {"auto.nodes": 4}}, r"'auto' is not in use; in use: prompt-lookup"),
        (
            {"method": "momentum-decoding", "temperature": 0.7},
            r"'temperature'.*momentum-decoding: k, alpha, resistance",
        ),
        ({"logit_bias": {VOCAB: 1.0}}, rf"token {VOCAB}; the vocabulary has tokens 0 to {VOCAB - 1}"),
    ],
)
def test_settings(engine: Engine, options: dict[str, Any], message: str) -> None:
    refused(engine, InvalidInput, message, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"method": "prompt-lookup+token-recycling"},
            r"prompt-lookup and token-recycling are both a drafter; take one",
        ),
        (
            {"method": [Sampled(), "recursive-rejection"]},
            r"recursive-rejection judges .*Sampled proposes siblings .* with repl",
        ),
        ({"method": "auto+greedy-match", "temperature": 0.7}, r"greedy-match only judges deterministic.*temperature 0"),
        ({"method": "draft-model"}, r"draft-model needs a draft model: pass one as draft="),
        ({"method": "draft-model", "draft": backend("mamba"), "branching": (2,)}, r"tree attention; tiny-mamba"),
        ({"method": "draft-model", "draft": backend("t5")}, r"tiny-t5 has an encoder and tiny-llama has none"),
    ],
)
def test_parts_that_do_not_fit(engine: Engine, options: dict[str, Any], message: str) -> None:
    refused(engine, Incompatible, message, **options)


def test_a_model_without_a_needed_capability() -> None:
    message = (
        r"look-back-decoding needs a model with tree attention; tiny-mamba2 \(RecurrentModel\) has state-space replay"
    )
    refused(Engine(backend("mamba2")), Incompatible, message, method="look-back-decoding")


# -- models -------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    network("llama", torch.float32).save_pretrained(tmp_path)
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0, "b": 1}, []))).save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture(params=["native", "transformers"])
def runtime(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_saved_model_is_read(folder: Path, runtime: str) -> None:
    engine = load(str(folder), device="cpu", backend=runtime, progress=False)
    assert engine.model.vocab_size == VOCAB
    assert engine.generate("ab", max_new_tokens=2).prompt_tokens == [0, 1]
    brain = load(str(folder), dtype="bfloat16", device="cpu", backend=runtime, progress=False).model
    # The native runtime keeps the states between layers in single precision.
    assert getattr(brain, "precision", str(brain.dtype)).removeprefix("torch.") == "bfloat16"


@pytest.mark.parametrize("left", [0, 4, 100, -64])
def test_a_corrupt_weights_file(folder: Path, runtime: str, left: int) -> None:
    weights = folder / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:left])
    with pytest.raises(WeightsError, match=str(folder)):
        load(str(folder), device="cpu", backend=runtime, progress=False)


def test_weights_of_another_shape(folder: Path, runtime: str) -> None:
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"hidden_size": 32', '"hidden_size": 48'))
    with pytest.raises(WeightsError, match=str(folder)):
        load(str(folder), device="cpu", backend=runtime, progress=False)


def test_a_folder_without_weights_or_configuration(folder: Path, runtime: str) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(UnspoolError, match=str(folder)):
        load(str(folder), device="cpu", backend=runtime, progress=False)
    (folder / "config.json").unlink()
    with pytest.raises(UnspoolError, match=str(folder)):
        load(str(folder), device="cpu", backend=runtime, progress=False)


def test_missing_weights_are_not_made_up(folder: Path, runtime: str) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        load(str(folder), device="cpu", backend=runtime, progress=False)


@pytest.mark.parametrize("dtype", ["float8", "int3", ""])
def test_a_dtype_that_does_not_exist(folder: Path, dtype: str) -> None:
    with pytest.raises(InvalidInput, match=rf"dtype is '{dtype}'; it can be auto, float32, bfloat16"):
        load(str(folder), dtype=dtype, device="cpu", progress=False)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "cpux"])
def test_a_device_that_does_not_exist(folder: Path, device: str) -> None:
    with pytest.raises(InvalidInput, match=rf"device '{device}' cannot be used here"):
        load(str(folder), device=device, progress=False)


def test_a_path_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(UnspoolError, match="nowhere"):
        load(str(tmp_path / "nowhere"), device="cpu", progress=False)
