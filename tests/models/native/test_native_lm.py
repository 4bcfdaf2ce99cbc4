"""The native runtime says what transformers says, and says it bit for bit the same however it is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
import transformers
from tests.models import gguf_files
from tests.models.shapes import VOCAB, config, native, network, prompts

from unspool.core.errors import Incompatible, InvalidInput, WeightsError
from unspool.core.model import Cache
from unspool.core.scores import Request, Want
from unspool.core.tree import TokenTree
from unspool.models.load import load_model
from unspool.models.native import library
from unspool.models.native.families import FAMILIES, Shape
from unspool.models.native.library import NoCompiler
from unspool.models.native.loading import load_native
from unspool.models.native.native_lm import NativeModel
from unspool.models.native.network import Network
from unspool.models.native.weights import TensorWeights
from unspool.models.transformers_lm import TransformersModel

TREE = TokenTree([1, 2, 3, 4, 5, 6, 7, 8, 2], [-1, -1, 0, 0, 1, 2, 5, 6, -1])


def made(whole: Any, precision: str = "float32", *, half_cache: bool | None = None) -> NativeModel:
    tensors = {name: tensor.float() for name, tensor in whole.state_dict().items()}
    return NativeModel(Network(Shape.of(whole.config), TensorWeights(tensors, precision), half_cache=half_cache))


def filled(lm: NativeModel, prompt: list[int]) -> Cache:
    cache = lm.new_cache()
    lm.prefill(cache, prompt, rows=[])
    return cache


# -- against transformers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["llama", "mistral", "qwen2", "qwen3", "gemma3"])
def test_every_family(shape: str) -> None:
    lm: Any = native(f"native-{shape}")
    text = prompts(1)[0]
    (scores,) = lm.score([Request(lm.new_cache(), TokenTree.chain(text))])
    with torch.no_grad():
        expected = lm.model(torch.tensor([text])).logits[0]
    torch.testing.assert_close(scores.logits.double(), expected, rtol=1e-4, atol=1e-4)


def test_every_family_is_in_the_test_above() -> None:
    shapes = {config(shape).model_type for shape in ("llama", "mistral", "qwen2", "qwen3", "gemma3")}
    assert set(FAMILIES) == shapes


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 2.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_stretched_positions(rope: dict[str, Any]) -> None:
    settings = config("llama").to_dict() | {"rope_parameters": {"rope_theta": 10000.0, **rope}}
    torch.manual_seed(0)
    whole = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings)).eval()
    text = torch.randint(3, VOCAB, (100,)).tolist()
    lm = made(whole)
    (scores,) = lm.score([Request(lm.new_cache(), TokenTree.chain(text))])
    with torch.no_grad():
        torch.testing.assert_close(scores.logits, whole(torch.tensor([text])).logits[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"rope_parameters": {"rope_theta": 1e4, "rope_type": "dynamic", "factor": 2.0}}, "'dynamic'"),
        ({"hidden_act": "relu"}, "'relu'"),
        ({"head_dim": 12}, "heads of a multiple of 8"),
    ],
)
def test_what_the_kernels_do_not_know_is_refused(changes: dict[str, Any], match: str) -> None:
    whole = transformers.LlamaForCausalLM(transformers.LlamaConfig(**(config("llama").to_dict() | changes)))
    with pytest.raises(Incompatible, match=match):
        made(whole)


def test_another_architecture_is_refused() -> None:
    with pytest.raises(Incompatible, match="'gpt2'"):
        made(network("gpt2"))


def test_weights_that_do_not_fit() -> None:
    whole = network("llama", torch.float32)
    tensors = whole.state_dict()
    without = {name: tensor for name, tensor in tensors.items() if name != "model.norm.weight"}
    with pytest.raises(WeightsError, match=r"lack model\.norm\.weight"):
        Network(Shape.of(whole.config), TensorWeights(without, "float32"))
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(3, 32)
    with pytest.raises(WeightsError, match=r"\[3, 32\]"):
        Network(Shape.of(whole.config), TensorWeights(tensors, "float32"))


# -- bit for bit --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("half_cache", [False, True])
@pytest.mark.parametrize(
    ("shape", "precision"), [("llama", "float32"), ("llama", "int4"), ("gemma3", "int8"), ("mistral", "bfloat16")]
)
def test_a_tree_says_what_its_paths_say_alone(shape: str, precision: str, half_cache: bool) -> None:
    lm = made(network(shape, torch.float32), precision, half_cache=half_cache)
    texts = prompts(3)
    together = lm.score([Request(filled(lm, text), TREE) for text in texts])
    for text, scores in zip(texts, together, strict=True):
        for node in range(len(TREE)):
            cache = filled(lm, text)
            for token in TREE.path_tokens(node):
                (alone,) = lm.score([Request(cache, TokenTree.chain([token]))])
                cache.commit([0])
            assert torch.equal(alone.logits[0], scores.at(node))


def test_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = made(network("gemma3", torch.float32), "int8")
    text = prompts(1)[0]
    found = []
    for threads in (1, 2, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=threads: count)
        found.append(lm.score([Request(filled(lm, text), TREE)], Want(hidden=frozenset({-1})))[0])
    assert torch.equal(found[0].logits, found[1].logits)
    assert torch.equal(found[0].logits, found[2].logits)
    assert torch.equal(found[0].hidden[-1], found[2].hidden[-1])


def test_pieces_of_a_prompt_change_nothing() -> None:
    lm = made(network("llama", torch.float32), "int4", half_cache=True)
    text = prompts(1)[0]
    answers = []
    for chunk in (1, 5, 64):
        cache = lm.new_cache()
        lm.prefill(cache, text, rows=[], chunk=chunk)
        answers.append(lm.score([Request(cache, TREE)])[0].logits)
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])


def test_a_cache_in_half_precision_is_half_as_large_and_nearly_the_same() -> None:
    whole = network("llama", torch.float32)
    text = prompts(1)[0]
    exact, half = (made(whole, half_cache=half) for half in (False, True))
    first, second = filled(exact, text), filled(half, text)
    assert second.nbytes * 2 == first.nbytes
    a, b = (lm.score([Request(cache, TREE)])[0].logits for lm, cache in ((exact, first), (half, second)))
    assert 0 < float((a - b).abs().max()) < 0.02 * float(a.abs().max())


# -- files --------------------------------------------------------------------------------------------------------


@pytest.fixture
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; the kernels are those that are loaded already."""
    library.kernels()
    monkeypatch.setenv("UNSPOOL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(library.FOLDER_VARIABLE, raising=False)
    return tmp_path / "cache"


@pytest.mark.parametrize("kind", [gguf_files.F32, gguf_files.Q4_1, gguf_files.Q8_0])
def test_a_gguf_file_is_read_without_unpacking_it(
    kind: gguf.GGMLQuantizationType, tmp_path: Path, cache_folder: Path
) -> None:
    path = tmp_path / "tiny.gguf"
    gguf_files.write_tiny_llama(path, kind)
    lm = load_native(str(path), progress=False)
    assert not list(cache_folder.rglob("*.safetensors"))
    assert lm.precision == f"{kind.name} of tiny.gguf"
    assert lm.stop_tokens == {2}
    reference = load_model(str(path), progress=False)
    text = lm.tokenizer.encode("hello 12 hello")
    assert text == reference.tokenizer.encode("hello 12 hello")
    answers = [m.score([Request(m.new_cache(), TokenTree.chain(text))])[0].logits for m in (lm, reference)]
    # With blocks the states are rounded to 8 bits as well.
    tolerance = 1e-4 if kind == gguf_files.F32 else 0.03 * float(answers[1].abs().max())
    torch.testing.assert_close(answers[0], answers[1], rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16", "int8", "int4"])
def test_a_folder(dtype: str, tmp_path: Path, cache_folder: Path) -> None:
    path = tmp_path / "tiny.gguf"
    gguf_files.write_tiny_llama(path)
    folder = Path(load_model(str(path), progress=False).model.config.name_or_path)  # type: ignore[attr-defined]
    lm = load_native(str(folder), dtype=dtype, progress=False)
    assert lm.precision == ("float32" if dtype == "auto" else dtype)
    (scores,) = lm.score([Request(lm.new_cache(), TokenTree.chain([5, 6, 7]))])
    assert scores.logits.isfinite().all()


# -- forks --------------------------------------------------------------------------------------------------------


def says(lm: NativeModel, cache: Cache, tokens: list[int]) -> torch.Tensor:
    (scores,) = lm.score([Request(cache, TokenTree.chain(tokens))])
    cache.commit(range(len(tokens)))
    return scores.logits


def test_forks_share_their_rows_until_somebody_writes_there() -> None:
    lm = made(network("llama"))
    first = filled(lm, [1, 2, 3, 4, 5])
    twin = first.fork()
    assert (twin.lender, twin.shared) == (first, 5)
    own = [keys[twin.slot, :, :5] for keys, _ in twin.pool.layers.values()]
    assert all(not rows.any() for rows in own)
    grandchild_of: list[Cache] = []
    wanted = {}
    for cache, tokens in ((first, [6, 7]), (twin, [8, 9])):
        wanted[id(cache)] = says(lm, cache, tokens)
    grandchild_of.append(twin.fork())
    assert (grandchild_of[0].lender, grandchild_of[0].shared) == (first, 5)
    assert torch.equal(wanted[id(first)], says(lm, filled(lm, [1, 2, 3, 4, 5]), [6, 7]))
    assert torch.equal(wanted[id(twin)], says(lm, filled(lm, [1, 2, 3, 4, 5]), [8, 9]))
    # The lender goes back and writes other rows: the borrowers keep theirs.
    first.rewind(2)
    assert (twin.shared, grandchild_of[0].shared) == (2, 2)
    assert torch.equal(says(lm, first, [4, 4, 4]), says(lm, filled(lm, [1, 2]), [4, 4, 4]))
    wanted_next = says(lm, filled(lm, [1, 2, 3, 4, 5, 8, 9]), [3])
    assert torch.equal(says(lm, twin, [3]), wanted_next)
    # The lender ends: one of the borrowers inherits its slot, and lends to the other.
    slot = first.slot
    first.release()
    heirs = [cache for cache in (twin, grandchild_of[0]) if cache.slot == slot]
    assert len(heirs) == 1
    assert heirs[0].lender is None
    assert torch.equal(says(lm, grandchild_of[0], [3]), wanted_next)
    assert torch.equal(says(lm, twin, [1]), says(lm, filled(lm, [1, 2, 3, 4, 5, 8, 9, 3]), [1]))
    twin.release()
    assert torch.equal(says(lm, grandchild_of[0], [1]), says(lm, filled(lm, [1, 2, 3, 4, 5, 8, 9, 3]), [1]))


def test_a_fork_of_a_selection_is_a_copy() -> None:
    lm = made(network("llama"))
    cache = filled(lm, [1, 2, 3, 4, 5])
    twin = cache.fork()
    rows = torch.tensor([[0, 2, 4]] * lm.network.shape.kv_heads)
    before = [[t.clone() for t in twin.rows(layer)] for layer in range(lm.num_layers)]
    cache.select(dict.fromkeys(range(lm.num_layers), rows), 4)
    assert twin.lender is None
    for layer, held in enumerate(before):
        assert all(torch.equal(a, b) for a, b in zip(held, twin.rows(layer), strict=True))
    third = cache.fork()
    assert third.lender is None
    assert torch.equal(says(lm, third, [7]), says(lm, cache, [7]))


# -- which backend ------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path: Path, cache_folder: Path) -> str:
    path = tmp_path / "tiny.gguf"
    gguf_files.write_tiny_llama(path, gguf_files.Q8_0)
    return str(path)


def test_auto_takes_the_runtime_for_what_it_runs(tiny: str, tmp_path: Path) -> None:
    assert isinstance(load_model(tiny, dtype="auto", backend="auto", progress=False), NativeModel)
    assert isinstance(load_model(tiny, dtype="auto", backend="transformers", progress=False), TransformersModel)
    network("gpt2").save_pretrained(tmp_path / "gpt2")
    with pytest.raises(Incompatible, match="'gpt2'"):
        load_model(str(tmp_path / "gpt2"), backend="native", progress=False)


def test_without_a_compiler_transformers_takes_over_and_says_so(
    tiny: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> None:
        raise NoCompiler("there is no C++ compiler")

    monkeypatch.setattr("unspool.models.native.loading.kernels", refuse)
    assert isinstance(load_model(tiny, dtype="auto", backend="auto", progress=False), TransformersModel)
    assert "there is no C++ compiler" in capsys.readouterr().err
    with pytest.raises(NoCompiler):
        load_model(tiny, dtype="auto", backend="native", progress=False)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"backend": "fast"}, "backend is 'fast'"),
        ({"dtype": "int3"}, "dtype is 'int3'"),
        ({"dtype": "int4", "backend": "transformers"}, "the native runtime has"),
        ({"dtype": "float64", "backend": "native"}, "dtype is 'float64'"),
    ],
)
def test_what_does_not_exist(options: dict[str, str], match: str, tiny: str) -> None:
    with pytest.raises(InvalidInput, match=match):
        load_model(tiny, progress=False, **options)  # type: ignore[arg-type]


def test_a_compiler_that_is_not_there(monkeypatch: pytest.MonkeyPatch, cache_folder: Path) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(NoCompiler, match="'no-such-compiler' that CXX names is not there"):
        library._built()


def test_a_compiler_that_fails(monkeypatch: pytest.MonkeyPatch, cache_folder: Path) -> None:
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(NoCompiler, match="cannot build the native kernels"):
        library._built()
    assert not list(cache_folder.glob("native/*"))


# -- memory -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [None, 8])
def test_kernels_are_told_where_the_cache_lies_now(block: int | None) -> None:
    """Tensors are exchanged when a pool grows, shrinks or forks, also between two passes."""
    lm = made(network("llama", torch.float32))
    lm.cache_block = block
    first = filled(lm, prompts(1)[0])
    pool: Any = first.pool  # type: ignore[attr-defined]

    def told() -> list[int]:
        return list(pool.addresses(lm.num_layers, lm.row))

    def true() -> list[int]:
        return [tensor.data_ptr() for layer in range(lm.num_layers) for tensor in pool.layers[layer]]

    assert told() == true()
    for _ in range(4):
        forks = [first.fork() for _ in range(3)]
        for fork in forks[1:]:
            fork.release()
        assert told() == true()
        forks[0].release()
        pool.reserve(2 * pool.layers[0][0].shape[2])
        assert told() == true()
        assert pool.layers[0][0].shape[0] >= len(pool.owners)
