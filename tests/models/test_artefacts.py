"""How artefacts are found by name, and models that borrow tensors."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from unspool.core.errors import InvalidInput, WeightsError
from unspool.models import artefacts, load
from unspool.models.borrowed import Borrowed
from unspool.models.hub import ModelSource, is_cached, resolve
from unspool.models.load import load_model

NAME = "stdlib-pair"


@pytest.fixture(autouse=True)
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNSPOOL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(artefacts, "zoo_dir", lambda: tmp_path / "zoo")
    return tmp_path / "zoo"


def put(folder: Path, version: int = 1, time: int = 1000) -> Path:
    (folder / "target").mkdir(parents=True)
    card = folder / artefacts.CARD
    card.write_text(json.dumps({"recipe": NAME, "version": version}))
    os.utime(card, (time, time))
    return folder


def test_recipes_are_known_without_being_imported() -> None:
    assert NAME in artefacts.recipe_names()
    assert artefacts.is_artefact(f"{NAME}/target")
    assert not artefacts.is_artefact("organisation/model")


def test_what_was_not_made_names_the_command() -> None:
    with pytest.raises(WeightsError, match=r"stdlib-pair has not been made.*`unspool train stdlib-pair`"):
        artefacts.find(f"{NAME}/target")
    with pytest.raises(WeightsError, match="unspool train stdlib-pair"):
        load_model(f"{NAME}/target", device="cpu")
    assert not is_cached(NAME)


def test_unknown_names_are_told_with_the_nearest() -> None:
    with pytest.raises(InvalidInput, match=r"no trained artefact 'stdlib-pear'\. Did you mean stdlib-pair\?"):
        artefacts.find("stdlib-pear")


def test_the_cache_goes_before_the_zoo_and_the_last_before_others(zoo: Path) -> None:
    committed = put(zoo / NAME)
    assert artefacts.find(NAME) == committed
    old, new = put(artefacts.cached_folder(NAME, "b"), time=10), put(artefacts.cached_folder(NAME, "a"), time=20)
    assert list(artefacts.made(NAME)) == [new, old, committed]
    assert artefacts.find(NAME) == new
    assert artefacts.find(f"{NAME}/target") == new / "target"
    assert is_cached(f"{NAME}/target")


def test_a_newer_recipe_goes_before_all(zoo: Path) -> None:
    put(artefacts.cached_folder(NAME, "a"), version=1)
    newer = put(zoo / NAME, version=2)
    assert artefacts.find(NAME) == newer


def test_work_in_progress_is_not_found() -> None:
    put(artefacts.cached_folder(NAME, ".a.1234"))
    with pytest.raises(WeightsError, match="unspool train"):
        artefacts.find(NAME)


@pytest.mark.parametrize("part", ["nothing", "../../..", "target/../.."])
def test_unknown_parts_are_told(zoo: Path, part: str) -> None:
    put(zoo / NAME)
    with pytest.raises(InvalidInput, match=r"has no part .*; it has target"):
        artefacts.find(f"{NAME}/{part}")


@pytest.mark.parametrize("text", ["", "[]", '{"recipe": "stdlib-pair"}'])
def test_a_damaged_card_is_told(zoo: Path, text: str) -> None:
    (put(zoo / NAME) / artefacts.CARD).write_text(text)
    with pytest.raises(WeightsError, match=r"card\.json"):
        artefacts.find(NAME)


def test_an_artefact_that_is_no_model_says_which_parts_are(zoo: Path) -> None:
    (put(zoo / NAME) / "target" / "config.json").write_text("{}")
    with pytest.raises(InvalidInput, match="parts that are: stdlib-pair/target"):
        resolve(NAME)


def test_the_zoo_lies_in_the_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    root = Path(__file__).parents[2]
    assert artefacts.zoo_dir() == (root / "zoo" if (root / "zoo").is_dir() else None)
    monkeypatch.setattr(artefacts, "_PACKAGE", tmp_path / "lib" / "site-packages" / "unspool")
    (tmp_path / "lib" / "zoo").mkdir(parents=True)
    assert artefacts.zoo_dir() is None


def test_borrowed_tensors_come_from_the_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from unspool.training.networks import llama, save
    from unspool.training.tokenizers import byte_bpe

    def network(layers: int, seed: int):  # type: ignore[no-untyped-def]
        return llama(
            vocabulary=300, layers=layers, hidden=16, mlp=16, heads=2, kv_heads=1, context=64, end=0, seed=seed
        )

    base, draft, shared = tmp_path / "base", tmp_path / "draft", ("model.embed_tokens.weight",)
    save(network(2, 1), byte_bpe(["text"], 300), base)
    save(network(1, 2), None, draft, without=shared)
    Borrowed("base-model", shared).write(draft)
    original = load.resolve

    def found(name: str, **options: object) -> ModelSource:
        return original(base if name == "base-model" else name)

    monkeypatch.setattr(load, "resolve", found)
    model, whole = (load_model(str(place), device="cpu", progress=False) for place in (draft, base))
    embeddings = [one.model.get_input_embeddings().weight for one in (model, whole)]  # type: ignore[attr-defined]
    assert torch.equal(*embeddings)
    assert model.num_layers == 1
    assert model.tokenizer is not None
    assert model.tokenizer.encode("text") == whole.tokenizer.encode("text")  # type: ignore[union-attr]

    Borrowed("base-model", ("model.layers.7.weight",)).write(draft)
    with pytest.raises(WeightsError, match=r"lack model\.layers\.7\.weight"):
        load_model(str(draft), device="cpu")
    (draft / "unspool.json").write_text('{"shared": 3}')
    with pytest.raises(WeightsError, match="is damaged"):
        load_model(str(draft), device="cpu")
