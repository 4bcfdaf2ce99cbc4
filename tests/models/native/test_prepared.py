"""A packed network that is kept says what the packed one said; a file that is not whole is made anew."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.models import gguf_files

from unspool.core.scores import Request
from unspool.core.tree import TokenTree
from unspool.models.native import prepared
from unspool.models.native.loading import load_native
from unspool.models.native.native_lm import NativeModel


def answer(lm: NativeModel) -> torch.Tensor:
    (scores,) = lm.score([Request(lm.new_cache(), TokenTree.chain([5, 6, 7, 5]))])
    return scores.logits


def packed_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("packed-*.bin"))


@pytest.mark.parametrize("kind", [gguf_files.Q8_0, gguf_files.Q4_1, gguf_files.F32])
def test_the_second_start_reads_what_the_first_packed(
    kind: object, tmp_path: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tiny.gguf"
    gguf_files.write_tiny_llama(path, kind)
    first = load_native(str(path), progress=False)
    assert len(packed_files(cache_folder)) == 1

    def never(*_: object) -> None:
        raise AssertionError("packed twice")

    monkeypatch.setattr("unspool.models.native.packing.pack", never)
    monkeypatch.setattr(prepared, "pack", never)
    second = load_native(str(path), progress=False)
    assert torch.equal(answer(first), answer(second))
    assert second.network.shape == first.network.shape
    assert (second.stop_tokens, second.precision, second.context_length) == (
        first.stop_tokens,
        first.precision,
        first.context_length,
    )


@pytest.mark.parametrize("damage", ["short", "long", "header", "empty"])
def test_a_file_that_is_not_whole_is_made_anew(damage: str, tmp_path: Path, cache_folder: Path) -> None:
    path = tmp_path / "tiny.gguf"
    gguf_files.write_tiny_llama(path, gguf_files.Q8_0)
    wanted = answer(load_native(str(path), progress=False))
    (kept,) = packed_files(cache_folder)
    whole = kept.read_bytes()
    kept.write_bytes({"short": whole[:-64], "long": whole + b"x", "header": b"{" + whole, "empty": b""}[damage])
    assert torch.equal(answer(load_native(str(path), progress=False)), wanted)
    assert kept.read_bytes() == whole


def test_a_second_start_needs_no_transformers(tmp_path: Path, cache_folder: Path) -> None:
    path = tmp_path / "tiny.gguf"
    gguf_files.write_tiny_llama(path, gguf_files.Q8_0)
    load_native(str(path), progress=False)
    program = (
        "import sys\nfrom unspool.engine import load\n"
        f"engine = load({str(path)!r}, progress=False)\n"
        "engine.generate('hello 12', max_new_tokens=2)\n"
        "print('transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "False", done.stderr
