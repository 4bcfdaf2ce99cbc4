from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from unspool.core.errors import Incompatible, WeightsError
from unspool.core.learned import Learned


class Counts(Learned):
    kind: ClassVar[str] = "counts"

    def __init__(self) -> None:
        self.counts = torch.zeros(3)

    def arrays(self) -> dict[str, Tensor]:
        return {"counts": self.counts}

    def restore(self, arrays: Mapping[str, Tensor]) -> None:
        if "counts" not in arrays:
            raise WeightsError("no counts")
        self.counts = arrays["counts"]

    def clear(self) -> None:
        self.counts.zero_()

    @property
    def nbytes(self) -> int:
        return self.counts.nbytes


def counted(*values: float) -> Counts:
    counts = Counts()
    counts.counts = torch.tensor(values)
    return counts


def test_a_file_gives_back_what_was_written(tmp_path: Path) -> None:
    one = counted(1, 2, 3)
    one.bind(7, "a model")
    one.save(tmp_path / "counts")
    assert [path.name for path in tmp_path.iterdir()] == ["counts"]
    other = Counts()
    other.load(tmp_path / "counts")
    assert torch.equal(other.counts, one.counts)
    assert other.vocab_size == 7
    with pytest.raises(Incompatible, match=r"vocabulary of 7 tokens, another has 8"):
        other.bind(8, "another")


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    counts = counted(1, 2, 3)
    with pytest.raises(WeightsError, match="none"):
        counts.load(tmp_path / "none")
    bad = tmp_path / "bad"
    bad.write_bytes(b"not a file of tensors")
    with pytest.raises(WeightsError, match="does not hold what counts has learned"):
        counts.load(bad)
    save_file({"counts": torch.zeros(3)}, bad)
    with pytest.raises(WeightsError, match="something else; counts is needed"):
        counts.load(bad)
    save_file({"other": torch.zeros(3)}, bad, {"unspool": "counts"})
    with pytest.raises(WeightsError, match="no counts"):
        counts.load(bad)
    counts.bind(5, "a model")
    save_file({"counts": torch.zeros(3)}, bad, {"unspool": "counts", "vocab_size": "6"})
    with pytest.raises(Incompatible, match="vocabulary of 6 tokens; the model has 5"):
        counts.load(bad)
    assert torch.equal(counts.counts, torch.tensor([1.0, 2.0, 3.0])), "nothing changed"


def test_nothing_is_half_written(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(WeightsError, match="cannot be written"):
        counted(1).save(tmp_path / "folder")
    with pytest.raises(WeightsError, match="cannot be written"):
        counted(1).save(tmp_path / "missing" / "counts")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
