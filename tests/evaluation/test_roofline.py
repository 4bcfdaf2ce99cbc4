"""The roofline: bytes counted from headers, a bandwidth that was measured."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from unspool.core.errors import WeightsError
from unspool.evaluation.roofline import kv_bytes, measure_bandwidth, read_for_a_token, roofline
from unspool.models.hub import ModelSource

CONFIG = {"hidden_size": 8, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 3}


def source(folder: Path, *, tied: bool, dtype: torch.dtype = torch.float32) -> ModelSource:
    folder.mkdir()
    tensors = {
        "model.embed_tokens.weight": torch.zeros(16, 8),
        "model.layers.0.self_attn.o_proj.weight": torch.zeros(8, 8),
        "model.norm.weight": torch.zeros(8),
    }
    if not tied:
        tensors["lm_head.weight"] = torch.zeros(16, 8)
    save_file({name: tensor.to(dtype) for name, tensor in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return ModelSource("m", str(folder), "folder", "m", None)


def test_tied_embeddings_are_read_whole_and_others_by_the_row(tmp_path: Path) -> None:
    assert read_for_a_token(source(tmp_path / "tied", tied=True)) == (200, 800, "F32")
    assert read_for_a_token(source(tmp_path / "own", tied=False)) == (72 + 128 + 8, 4 * (72 + 128 + 8), "F32")
    half = source(tmp_path / "half", tied=True, dtype=torch.bfloat16)
    assert read_for_a_token(half) == (200, 400, "BF16")


def test_keys_and_values() -> None:
    # 2 (keys and values) * 3 layers * 2 heads * 2 wide * 10 tokens * 2 bytes
    assert kv_bytes(CONFIG, 10, 2) == 480
    assert kv_bytes({**CONFIG, "head_dim": 4}, 10, 2) == 960
    assert kv_bytes({"n_embd": 8, "n_head": 2, "n_layer": 1}, 10, 4) == 2 * 8 * 10 * 4


def test_the_limit_is_bandwidth_over_bytes(tmp_path: Path) -> None:
    told = roofline(source(tmp_path / "m", tied=True, dtype=torch.bfloat16), 1, 10, dtype="float32", bandwidth=1e6)
    stored, loaded = told["forms"]
    assert stored["weights"] == "as stored (BF16)"
    assert (stored["weight_bytes"], stored["kv_bytes"], stored["bytes"]) == (400, 480, 880)
    assert stored["tokens_per_second"] == pytest.approx(1e6 / 880)
    assert (loaded["weight_bytes"], loaded["kv_bytes"]) == (800, 960)
    assert len(roofline(source(tmp_path / "n", tied=True), 1, 10, bandwidth=1e6)["forms"]) == 1
    assert json.loads(json.dumps(told)) == told


def test_a_folder_without_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(WeightsError, match="no weights"):
        read_for_a_token(ModelSource("m", str(tmp_path), "folder", "m", None))


def test_bandwidth_is_measured_and_threads_come_back() -> None:
    before = torch.get_num_threads()
    found = measure_bandwidth(1, size=32 * 2**20, seconds=0.02)
    assert 1e8 < found < 1e13
    assert torch.get_num_threads() == before


@pytest.mark.model
def test_the_packaged_model_reads_its_file() -> None:
    from unspool.models.hub import resolve

    found = resolve("smollm2-135m", progress=False)
    elements, stored, kind = read_for_a_token(found)
    # SmolLM2's head is its embeddings, so a token reads all there is, the norms included.
    assert elements == 134_515_008
    assert kind == "Q4_1"
    assert found.gguf is not None
    assert 0.95 * found.gguf.stat().st_size < stored < found.gguf.stat().st_size
