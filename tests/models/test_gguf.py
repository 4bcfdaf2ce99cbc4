"""GGUF files become networks and tokenizers that say the same; damaged ones become errors that say what is wrong."""

import json
import struct
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf.quants import dequantize
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load_file
from tests.models import gguf_files as files

from unspool.core.errors import DownloadError, InvalidInput, WeightsError
from unspool.models import gguf
from unspool.models.gguf import conversion
from unspool.models.gguf.vocabulary import build_tokenizer


@cache
def transformers() -> Any:
    import transformers

    return transformers


def reload(folder: Path) -> Any:
    return transformers().AutoModelForCausalLM.from_pretrained(folder).eval()


def reload_tokenizer(folder: Path) -> Any:
    return transformers().AutoTokenizer.from_pretrained(folder)


def nothing_in(folder: Path) -> bool:
    return not any(folder.iterdir())


# ----------------------------------------------------------------------------------------------------------- networks

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
}


def network_of(arch: str, vocabulary: int, tied: bool) -> Any:
    t = transformers()
    sizes = SIZES | {"vocab_size": vocabulary, "tie_word_embeddings": tied}
    theta = {"rope_type": "default", "rope_theta": 20000.0}
    if arch == "llama":
        return files.tiny_llama(vocabulary, tie_word_embeddings=tied, attention_bias=True)
    if arch == "qwen2":
        return files.randomise(t.Qwen2ForCausalLM(t.Qwen2Config(**sizes, rope_parameters=theta)))
    if arch == "qwen3":
        return files.randomise(t.Qwen3ForCausalLM(t.Qwen3Config(**sizes, head_dim=32, rope_parameters=theta)))
    if arch == "gemma2":
        config = t.Gemma2Config(
            **sizes,
            head_dim=32,
            query_pre_attn_scalar=32,
            sliding_window=8,
            rope_parameters=theta,
            attn_logit_softcapping=3.0,
            final_logit_softcapping=2.0,
        )
        return files.randomise(t.Gemma2ForCausalLM(config))
    if arch == "gemma3":
        rope = {"full_attention": theta, "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}
        config = t.Gemma3TextConfig(
            **sizes | {"num_hidden_layers": 7},
            head_dim=32,
            query_pre_attn_scalar=32,
            sliding_window=8,
            rope_parameters=rope,
        )
        return files.randomise(t.Gemma3ForCausalLM(config))
    if arch == "phi3":
        rope = theta | {"partial_rotary_factor": 0.5}
        special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
        config = t.Phi3Config(
            **sizes, **special, rope_parameters=rope, original_max_position_embeddings=256, sliding_window=9
        )
        return files.randomise(t.Phi3ForCausalLM(config))
    config = t.GPT2Config(
        vocab_size=vocabulary,
        n_embd=64,
        n_inner=96,
        n_layer=2,
        n_head=4,
        n_positions=64,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
    )
    return files.randomise(t.GPT2LMHeadModel(config))


ALWAYS_TIED = {"gemma2"}  # the format has no output matrix for it
CASES = [
    (arch, tied) for arch in sorted(gguf.ARCHITECTURES) for tied in (True, False) if tied or arch not in ALWAYS_TIED
]


@pytest.mark.parametrize(
    ("arch", "tied"), CASES, ids=[f"{arch}-{'tied' if tied else 'untied'}" for arch, tied in CASES]
)
@torch.inference_mode()
def test_a_network_survives_the_way_through_a_file(arch: str, tied: bool, tmp_path: Path) -> None:
    vocabulary = files.byte_level_vocabulary()
    network = network_of(arch, len(vocabulary["tokenizer.ggml.tokens"]), tied)
    metadata = files.metadata_of(arch, network.config) | vocabulary
    path = files.write(tmp_path / "model.gguf", arch, metadata, files.tensors_of(arch, network))

    again = reload(gguf.convert(path, tmp_path / "folder"))

    assert type(again) is type(network)
    ids = torch.arange(3, 43)[None]  # longer than the windows
    torch.testing.assert_close(again(ids).logits, network(ids).logits, rtol=1e-4, atol=1e-4)
    assert again.config.tie_word_embeddings == tied


def test_every_architecture_that_is_read_is_in_the_test_above() -> None:
    built = {type(network_of(arch, 300, True)).__name__ for arch in gguf.ARCHITECTURES}
    assert len(built) == len(gguf.ARCHITECTURES)


@pytest.mark.parametrize("kind", [files.Q4_1, files.Q5_0, files.Q8_0], ids=lambda kind: kind.name)
def test_blocks_become_the_values_that_the_format_defines(kind: Any, tmp_path: Path) -> None:
    network = files.write_tiny_llama(tmp_path / "model.gguf", kind)
    weights = load_file(gguf.convert(tmp_path / "model.gguf", tmp_path / "folder") / "model.safetensors")
    for name, (blocks, of) in files.tensors_of("llama", network, kind).items():
        parameter = gguf.ARCHITECTURES["llama"].parameter(name)
        assert parameter is not None
        values = files.laid_out("llama", network.config, parameter, weights[parameter].numpy())
        np.testing.assert_array_equal(values, dequantize(blocks, of))


def test_bfloat16_is_the_rounded_float32(tmp_path: Path) -> None:
    files.write_tiny_llama(tmp_path / "model.gguf", files.Q8_0)
    exact = load_file(gguf.convert(tmp_path / "model.gguf", tmp_path / "exact") / "model.safetensors")
    short = gguf.convert(tmp_path / "model.gguf", tmp_path / "short", dtype="bfloat16")
    for name, values in load_file(short / "model.safetensors").items():
        assert values.dtype == torch.bfloat16
        torch.testing.assert_close(values, exact[name].to(torch.bfloat16), rtol=0, atol=0)
    assert reload(short).dtype == torch.bfloat16


def test_large_models_are_written_in_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "SHARD_BYTES", 100_000)
    network = files.write_tiny_llama(tmp_path / "model.gguf")
    folder = gguf.convert(tmp_path / "model.gguf", tmp_path / "folder")
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 1
    assert all(shard.stat().st_size < 150_000 for shard in shards)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {shard.name for shard in shards}
    for name, values in reload(folder).state_dict().items():
        torch.testing.assert_close(values, network.state_dict()[name], rtol=0, atol=0)


# ---------------------------------------------------------------------------------------------------------- positions


def frequencies(folder: Path) -> torch.Tensor:
    return reload(folder).model.rotary_emb.inv_freq


def llama_with(tmp_path: Path, tensors: dict[str, Any] | None = None, **metadata: Any) -> Path:
    network = files.write_tiny_llama(tmp_path / "model.gguf", **metadata)
    if tensors:
        stated = files.metadata_of("llama", network.config) | files.byte_level_vocabulary() | metadata
        files.write(tmp_path / "model.gguf", "llama", stated, files.tensors_of("llama", network) | tensors)
    return gguf.convert(tmp_path / "model.gguf", tmp_path / "folder")


BASE = 1 / 50000.0 ** (torch.arange(0, 16, 2) / 16)


def test_the_factors_of_llama_3_become_its_rule(tmp_path: Path) -> None:
    t = transformers()
    rope = {
        "rope_type": "llama3",
        "rope_theta": 50000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    wanted = files.tiny_llama(300, rope_parameters=rope, max_position_embeddings=131072).model.rotary_emb.inv_freq
    factors = (BASE / wanted).numpy().astype(np.float32)
    assert len({round(float(value), 3) for value in factors}) > 2, "the example tells nothing"
    folder = llama_with(tmp_path, {"rope_freqs.weight": (factors, files.F32)})
    assert t.AutoConfig.from_pretrained(folder).rope_parameters["rope_type"] == "llama3"
    torch.testing.assert_close(frequencies(folder), wanted, rtol=1e-4, atol=0)


def test_any_other_factors_are_kept_one_by_one(tmp_path: Path) -> None:
    factors = np.linspace(1, 3, 8, dtype=np.float32)
    folder = llama_with(tmp_path, {"rope_freqs.weight": (factors, files.F32)})
    rotary = reload(folder).model.rotary_emb
    torch.testing.assert_close(rotary.inv_freq, BASE / torch.from_numpy(factors), rtol=1e-5, atol=0)
    assert rotary.attention_scaling == 1.0


def test_linear_scaling(tmp_path: Path) -> None:
    folder = llama_with(tmp_path, **{"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0})
    torch.testing.assert_close(frequencies(folder), BASE / 4, rtol=1e-5, atol=0)


def test_unknown_scaling_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="scaled by 'spiral'"):
        llama_with(tmp_path, **{"llama.rope.scaling.type": "spiral", "llama.rope.scaling.factor": 4.0})


def test_gemma_3_looks_far_in_every_sixth_layer(tmp_path: Path) -> None:
    vocabulary = files.byte_level_vocabulary()
    network = network_of("gemma3", len(vocabulary["tokenizer.ggml.tokens"]), True)
    metadata = files.metadata_of("gemma3", network.config) | vocabulary
    metadata |= {"gemma3.rope.scaling.type": "linear", "gemma3.rope.scaling.factor": 8.0}
    path = files.write(tmp_path / "model.gguf", "gemma3", metadata, files.tensors_of("gemma3", network))
    config = transformers().AutoConfig.from_pretrained(gguf.convert(path, tmp_path / "folder"))
    near, far = "sliding_attention", "full_attention"
    assert config.layer_types == [near] * 5 + [far, near]
    assert config.rope_parameters == {
        far: {"rope_type": "linear", "rope_theta": 20000.0, "factor": 8.0},
        near: {"rope_type": "default", "rope_theta": 10000.0},
    }
    assert config.sliding_window == 8


def test_phi_3_has_factors_for_short_and_long_texts(tmp_path: Path) -> None:
    vocabulary = files.byte_level_vocabulary()
    network = network_of("phi3", len(vocabulary["tokenizer.ggml.tokens"]), False)
    short, long = np.ones(4, np.float32), np.linspace(1, 2, 4, dtype=np.float32)
    tensors = files.tensors_of("phi3", network) | {
        "rope_factors_short.weight": (short, files.F32),
        "rope_factors_long.weight": (long, files.F32),
    }
    metadata = files.metadata_of("phi3", network.config) | vocabulary
    metadata |= {"phi3.rope.scaling.original_context_length": 128}
    path = files.write(tmp_path / "model.gguf", "phi3", metadata, tensors)
    config = transformers().AutoConfig.from_pretrained(gguf.convert(path, tmp_path / "folder"))
    assert config.rope_parameters["rope_type"] == "longrope"
    assert config.rope_parameters["long_factor"] == pytest.approx(long.tolist())
    assert config.rope_parameters["original_max_position_embeddings"] == 128
    assert config.rope_parameters["partial_rotary_factor"] == 0.5


# --------------------------------------------------------------------------------------------------------- tokenizers


def tokenizer_of(tmp_path: Path, vocabulary: dict[str, Any]) -> Any:
    """Built from a file without weights, and read back from disk as a user would."""
    path = files.write(tmp_path / "vocabulary.gguf", "llama", vocabulary, {})
    build_tokenizer(gguf.read(path), 256).save_pretrained(tmp_path / "tokenizer")
    return reload_tokenizer_only(tmp_path / "tokenizer")


def reload_tokenizer_only(folder: Path) -> Any:
    return transformers().PreTrainedTokenizerFast.from_pretrained(folder)


def pieces(tokenizer: Any, text: str) -> list[str]:
    return tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_digits_stand_alone_where_the_file_says_so(tmp_path: Path) -> None:
    """GPT-2's rules would give the last of two spaces to the number, and would not merge them."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    text = "hello  12"
    assert pieces(tokenizer_of(tmp_path / "a", files.byte_level_vocabulary("smollm")), text) == [
        "hello",
        "ĠĠ",
        "1",
        "2",
    ]
    assert pieces(tokenizer_of(tmp_path / "b", files.byte_level_vocabulary("gpt-2")), text) == ["hello", "Ġ", "Ġ1", "2"]


def test_llama_3_takes_whole_words_first(tmp_path: Path) -> None:
    vocabulary = files.byte_level_vocabulary("llama-bpe")
    vocabulary["tokenizer.ggml.tokens"] = [*vocabulary["tokenizer.ggml.tokens"], "abc"]  # no merge makes it
    vocabulary["tokenizer.ggml.token_type"] = [*vocabulary["tokenizer.ggml.token_type"], files.NORMAL]
    assert pieces(tokenizer_of(tmp_path, vocabulary), "abc") == ["abc"]


TEXTS = st.text(st.sampled_from("abcdeé  \n0<>|x漢\u0301🙂tag"), max_size=30)


@cache
def shared_tokenizer(kind: str, folder: Path) -> Any:
    folder.mkdir()
    vocabularies: dict[str, Callable[[], dict[str, Any]]] = {
        "bytes": files.byte_level_vocabulary,
        "sentencepiece": files.sentencepiece_vocabulary,
    }
    return tokenizer_of(folder, vocabularies[kind]())


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXTS)
def test_text_survives_the_round_trip(kind: str, text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    tokenizer = shared_tokenizer(kind, tmp_path_factory.getbasetemp() / f"tokenizer-{kind}")
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text


def sentencepiece(text: str, vocabulary: dict[str, Any]) -> list[int]:
    """The definition: user-defined tokens are whole; then the adjacent pair with the best score is joined; repeat."""
    tokens = vocabulary["tokenizer.ggml.tokens"]
    index = {token: number for number, token in enumerate(tokens)}
    scores = dict(zip(tokens, vocabulary["tokenizer.ggml.scores"], strict=True))
    whole = [t for t, kind in zip(tokens, vocabulary["tokenizer.ggml.token_type"], strict=True) if kind == 4]
    found: list[int] = []
    stretch = ""

    def join(text: str) -> list[int]:
        parts = list(text.replace(" ", "▁"))
        while True:
            pairs = [(scores[a + b], -at) for at, (a, b) in enumerate(pairwise(parts)) if a + b in index]
            if not pairs:
                break
            at = -max(pairs)[1]
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        ids: list[int] = []
        for part in parts:
            ids += [index[part]] if part in index else [index[f"<0x{byte:02X}>"] for byte in part.encode()]
        return ids

    at = 0
    while at < len(text):
        matches = [token for token in whole if text.startswith(token, at)]
        if matches:
            found += [*join(stretch), index[max(matches, key=len)]]
            stretch, at = "", at + len(max(matches, key=len))
        else:
            stretch, at = stretch + text[at], at + 1
    return found + join(stretch)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXTS)
def test_pieces_are_joined_by_score(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    tokenizer = shared_tokenizer("sentencepiece", tmp_path_factory.getbasetemp() / "tokenizer-sentencepiece")
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == sentencepiece(
        text, files.sentencepiece_vocabulary()
    )


def test_special_tokens_are_whole_in_text_and_hidden_in_output(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tmp_path, files.byte_level_vocabulary())
    ids = tokenizer("<|im_start|>hello<|im_end|>", add_special_tokens=False)["input_ids"]
    assert ids[0] == 1
    assert ids[-1] == 2
    assert tokenizer.decode(ids, skip_special_tokens=True) == "hello"
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id) == (
        1,
        2,
        2,
        0,
    )


@pytest.mark.parametrize(
    ("stated", "start", "end"),
    [({}, [2], []), ({"add_bos_token": False}, [], []), ({"add_eos_token": True}, [2], [1])],
    ids=["by default", "without", "both ends"],
)
def test_text_starts_and_ends_as_the_file_says(
    stated: dict[str, bool], start: list[int], end: list[int], tmp_path: Path
) -> None:
    vocabulary = files.sentencepiece_vocabulary() | {f"tokenizer.ggml.{key}": flag for key, flag in stated.items()}
    tokenizer = tokenizer_of(tmp_path, vocabulary)
    bare = tokenizer("abc", add_special_tokens=False)["input_ids"]
    assert tokenizer("abc")["input_ids"] == [*start, *bare, *end]


def test_a_vocabulary_without_special_tokens(tmp_path: Path) -> None:
    named = [f"tokenizer.ggml.{name}_token_id" for name in ("bos", "eos", "unknown", "padding")]
    vocabulary = {key: value for key, value in files.byte_level_vocabulary().items() if key not in named}
    tokenizer = tokenizer_of(tmp_path, vocabulary)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (None, None, None)
    assert tokenizer.decode(tokenizer("hello")["input_ids"]) == "hello"


def test_sentencepiece_with_a_leading_space(tmp_path: Path) -> None:
    vocabulary = files.sentencepiece_vocabulary() | {"tokenizer.ggml.add_space_prefix": True}
    tokenizer = tokenizer_of(tmp_path, vocabulary)
    assert pieces(tokenizer, "abc") == ["▁abc"]
    assert tokenizer.decode(tokenizer("abc", add_special_tokens=False)["input_ids"]) == "abc"


def test_generation_stops_at_the_ends_that_the_file_and_its_template_name(tmp_path: Path) -> None:
    template = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
    files.write_tiny_llama(
        tmp_path / "model.gguf",
        **{"tokenizer.ggml.eos_token_id": 0, "tokenizer.ggml.eot_token_id": 5, "tokenizer.chat_template": template},
    )
    folder = gguf.convert(tmp_path / "model.gguf", tmp_path / "folder")
    assert transformers().GenerationConfig.from_pretrained(folder).eos_token_id == [0, 5, 2]
    tokenizer = reload_tokenizer(folder)
    assert tokenizer.eos_token_id == 0
    shown = tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False)
    assert shown == "<|im_start|>hello<|im_end|>"


# ------------------------------------------------------------------------------------------------------ damaged files


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    files.write_tiny_llama(tmp_path / "model.gguf", files.Q4_1)
    (tmp_path / "out").mkdir()
    return tmp_path / "model.gguf"


def refuse(path: Path, match: str) -> None:
    """Conversion fails with the file's name and the reason, and leaves nothing."""
    out = path.parent / "out"
    out.mkdir(exist_ok=True)
    with pytest.raises(WeightsError, match=match) as caught:
        gguf.convert(path, out / "folder")
    assert str(path) in str(caught.value)
    assert nothing_in(out)


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.001, 0.01, 0.05, 0.1, 0.3, 0.6, 0.999])
def test_a_file_that_is_cut_short(share: float, whole: Path) -> None:
    data = whole.read_bytes()
    whole.write_bytes(data[: int(len(data) * share)])
    refuse(whole, "cut short|not a GGUF file")


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_header_is_read_or_refused_but_nothing_else(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    source = sound_bytes(tmp_path_factory.getbasetemp() / "sound.gguf")
    at = data.draw(st.integers(0, min(len(source), 12_000) - 8))
    patch = data.draw(st.binary(min_size=1, max_size=8))
    path = tmp_path_factory.getbasetemp() / "patched.gguf"
    path.write_bytes(source[:at] + patch + source[at + len(patch) :])
    try:
        file = gguf.read(path)
    except WeightsError as error:
        message = str(error)
    else:
        message = str(path)
        assert all(info.offset + info.nbytes <= len(source) for info in file.tensors.values())
    assert str(path) in message


@cache
def sound_bytes(path: Path) -> bytes:
    files.write_tiny_llama(path)
    return path.read_bytes()


def test_other_files(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    refuse(path, "not a GGUF file")
    path.write_bytes(b"GGUF" + struct.pack("<I", 1) + bytes(100))
    refuse(path, "version 1")
    path.write_bytes(b"GGUF" + struct.pack(">I", 3) + bytes(100))
    refuse(path, "big-endian")
    with pytest.raises(WeightsError, match="No such file"):
        gguf.read(tmp_path / "none.gguf")


def test_a_length_that_cannot_be(whole: Path) -> None:
    data = bytearray(whole.read_bytes())
    struct.pack_into("<Q", data, 24, 2**62)  # the first key's
    whole.write_bytes(data)
    refuse(whole, "the key of metadata value 0")


def test_a_count_that_cannot_be(whole: Path) -> None:
    data = bytearray(whole.read_bytes())
    key = b"tokenizer.ggml.token_type"
    struct.pack_into("<Q", data, data.index(key) + len(key) + 8, 2**62)
    whole.write_bytes(data)
    refuse(whole, f"metadata value {key.decode()} cannot be of size {2**62}")


def test_blocks_that_are_not_numbers(whole: Path) -> None:
    info = gguf.read(whole).tensors["blk.1.ffn_up.weight"]
    data = bytearray(whole.read_bytes())
    data[info.offset : info.offset + 2] = struct.pack("<e", float("nan"))  # the scale of the first block
    whole.write_bytes(data)
    refuse(whole, r"blk\.1\.ffn_up\.weight.*not finite")


def rewritten(tmp_path: Path, tensors: Callable[[dict[str, Any]], Any], **metadata: Any) -> Path:
    network = files.tiny_llama(268)
    written = files.tensors_of("llama", network)
    tensors(written)
    stated = files.metadata_of("llama", network.config) | files.byte_level_vocabulary() | metadata
    stated = {key: value for key, value in stated.items() if value is not None}
    return files.write(tmp_path / "model.gguf", "llama", stated, written)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda tensors: tensors.pop("blk.1.attn_v.weight"), r"lacks .*layers\.1\.self_attn\.v_proj\.weight"),
        (lambda tensors: tensors.pop("token_embd.weight"), "no token embedding"),
        (
            lambda tensors: tensors.update({"blk.0.surplus.weight": tensors["output_norm.weight"]}),
            "no place for: blk.0",
        ),
        (
            lambda tensors: tensors.update({"blk.0.ffn_up.weight": (np.zeros((64, 96), np.float32), files.F32)}),
            r"ffn_up\.weight has shape \[64, 96\].* needs \[96, 64\]",
        ),
        (
            lambda tensors: tensors.update({"rope_freqs.weight": (np.ones(5, np.float32), files.F32)}),
            "rope_freqs.weight has 5 values",
        ),
    ],
    ids=["missing", "no embedding", "left over", "other shape", "factors"],
)
def test_tensors_that_do_not_fit(change: Callable[[dict[str, Any]], Any], match: str, tmp_path: Path) -> None:
    refuse(rewritten(tmp_path, change), match)


@pytest.mark.parametrize(
    ("metadata", "match"),
    [
        ({"llama.block_count": None}, "does not state llama.block_count"),
        ({"llama.block_count": 10**9}, "20 tensors for 1000000000 blocks"),
        ({"llama.embedding_length": "many"}, "transformers refuses.*'many'"),
        ({"llama.attention.head_count": 0, "llama.attention.key_length": None}, "describes no network"),
        ({"llama.attention.head_count": [4, 2]}, "differs from layer to layer"),
        ({"llama.expert_count": 8}, "mixtures of experts"),
        ({"llama.rope.dimension_count": 8}, "8 of 16 dimensions"),
        ({"split.count": 3}, "one of 3 parts"),
        ({"general.type": "adapter"}, "an? adapter, not a model"),
        ({"tokenizer.ggml.pre": "new-rules"}, "'new-rules'.*not known"),
        ({"tokenizer.ggml.model": "bert"}, "kind 'bert'"),
        ({"tokenizer.ggml.tokens": None}, "no vocabulary"),
        ({"tokenizer.ggml.merges": None}, "no list of pairs"),
        ({"tokenizer.ggml.merges": ["no such"]}, "vocabulary and its merges disagree"),
        ({"tokenizer.ggml.token_type": [1, 1]}, "268 tokens, and types for 2"),
        ({"tokenizer.ggml.eos_token_id": 268}, "eos_token_id 268 is outside"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_metadata_that_cannot_be(metadata: dict[str, Any], match: str, tmp_path: Path) -> None:
    refuse(rewritten(tmp_path, lambda tensors: None, **metadata), match)


def test_an_architecture_that_is_not_read(tmp_path: Path) -> None:
    path = files.write(tmp_path / "model.gguf", "rwkv7", {"rwkv7.block_count": 1}, {})
    refuse(path, "architecture 'rwkv7'.*gemma3, gpt2, llama")


# ------------------------------------------------------------------------------------------------------- the folder


def test_the_folder_says_what_it_was_made_from(whole: Path) -> None:
    folder = gguf.convert(whole, whole.parent / "folder", source={"origin": "a test"})
    about = json.loads((folder / "unspool.json").read_text())
    assert about["origin"] == "a test"
    assert about["license"] == "mit"
    assert about["tensor_types"] == ["F32", "Q4_1"]
    assert gguf.is_converted(folder)


def test_a_folder_with_a_short_or_missing_file_is_not_converted(whole: Path) -> None:
    folder = gguf.convert(whole, whole.parent / "folder")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-1])
    assert not gguf.is_converted(folder)
    (folder / "model.safetensors").unlink()
    assert not gguf.is_converted(folder)
    assert not gguf.is_converted(whole.parent / "none")


def test_a_folder_of_an_older_version_is_made_anew(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = gguf.convert(whole, whole.parent / "folder")
    monkeypatch.setattr(conversion, "CONVERTER_VERSION", conversion.CONVERTER_VERSION + 1)
    assert not gguf.is_converted(folder)
    (folder / "stale").write_text("")
    gguf.convert(whole, folder)
    assert gguf.is_converted(folder)
    assert not (folder / "stale").exists()
    assert sorted(item.name for item in folder.parent.iterdir()) == ["folder", "model.gguf", "out"]


def test_progress_ends_with_everything(whole: Path) -> None:
    seen: list[tuple[int, int]] = []
    gguf.convert(whole, whole.parent / "folder", on_progress=lambda done, total: seen.append((done, total)))
    counts = [done for done, _ in seen]
    assert counts == sorted(counts)
    assert seen[-1][0] == seen[-1][1] == sum(info.nbytes for info in gguf.read(whole).tensors.values())


def test_room_is_told_beforehand(whole: Path) -> None:
    header = gguf.read(whole)
    folder = gguf.convert(whole, whole.parent / "folder")
    assert (folder / "model.safetensors").stat().st_size - gguf.converted_bytes(header) < 10_000
    assert gguf.converted_bytes(header, "bfloat16") * 2 == gguf.converted_bytes(header)


def test_unknown_dtype(whole: Path) -> None:
    with pytest.raises(InvalidInput, match=r"'int3'.*float32, bfloat16"):
        gguf.convert(whole, whole.parent / "out" / "folder", dtype="int3")
    assert nothing_in(whole.parent / "out")


def full_disk_in_rust(*args: Any, **kwargs: Any) -> None:
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def full_disk(*args: Any, **kwargs: Any) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("where", "fault"),
    [("safetensors.torch.save_file", full_disk_in_rust), ("pathlib.Path.write_text", full_disk)],
    ids=["weights", "texts"],
)
def test_a_full_disk_leaves_nothing(where: str, fault: Any, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(where, fault)
        with pytest.raises(DownloadError, match=r"No room on the disk for .*folder.*UNSPOOL_CACHE"):
            gguf.convert(whole, whole.parent / "out" / "folder")
    assert nothing_in(whole.parent / "out")


def test_an_interrupted_conversion_leaves_nothing(whole: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gguf.convert(whole, whole.parent / "out" / "folder", on_progress=interrupt)
    assert nothing_in(whole.parent / "out")
