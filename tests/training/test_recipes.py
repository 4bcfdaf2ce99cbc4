"""Recipes: how they are run, what their generators make, and that what is committed is what their cards say."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch
from tests.training.small import SmallSettings, small_recipe

from unspool.core.cards import setting_fields
from unspool.core.errors import InvalidInput
from unspool.evaluation.prompts import BUILTIN, load_prompts
from unspool.models import artefacts
from unspool.training import corpora, recipes
from unspool.training.recipes import Bench, Quality, chained_sums, line_retrieval, smollm2_outputs

ZOO = artefacts.zoo_dir()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNSPOOL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(artefacts, "zoo_dir", lambda: None)
    return tmp_path / "cache"


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[recipes.Recipe], None]:
    """Put another recipe in the place of chained-sums."""
    return lambda recipe: monkeypatch.setattr(chained_sums, "RECIPE", recipe)


def files(folder: Path) -> Iterator[str]:
    yield from (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())


def test_made_once_described_and_found(use: Callable[[recipes.Recipe], None], own_cache: Path) -> None:
    use(small_recipe())
    made = recipes.make("chained-sums", {"seed": "7"})
    assert not made.was_there
    assert list(files(made.folder)) == ["card.json", "file.txt"]
    assert artefacts.find("chained-sums") == made.folder
    card = json.loads((made.folder / "card.json").read_text())
    assert (card["recipe"], card["version"], card["seed"]) == ("chained-sums", 1, 7)
    assert (card["settings"], card["quality"]) == ({"seed": 7, "text": "text"}, {"length": 4})
    assert card["files"]["file.txt"] == {"bytes": 6, "sha256": hashlib.sha256(b"text 7").hexdigest()}
    assert recipes.make("chained-sums", {"seed": 7}).was_there
    assert not recipes.make("chained-sums", {"seed": 7}, force=True).was_there
    assert not list(own_cache.rglob("notes"))


def test_settings_data_and_version_make_another(use: Callable[[recipes.Recipe], None]) -> None:
    recipe = small_recipe()
    keys = {
        recipe.key(SmallSettings()),
        recipe.key(SmallSettings(seed=1)),
        small_recipe(version=2).key(SmallSettings()),
    }
    assert len(keys) == 3
    use(recipe)
    first, second = (recipes.make("chained-sums", {"seed": seed}) for seed in (1, 2))
    assert first.folder != second.folder
    assert artefacts.find("chained-sums") == second.folder
    assert recipes.make("chained-sums", {"seed": 1}).was_there


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_training_leaves_nothing(
    use: Callable[[recipes.Recipe], None], own_cache: Path, error: type[BaseException]
) -> None:
    def fill(chosen: SmallSettings, bench: Bench) -> Quality:
        (bench.folder / "half").write_text("half")
        (bench.scratch / "notes").write_text("notes")
        raise error

    use(small_recipe(fill))
    with pytest.raises(error):
        recipes.make("chained-sums")
    assert not [name for name in files(own_cache) if not name.endswith(".lock")]
    assert not list((own_cache / "artefacts" / "chained-sums").iterdir())


def test_a_second_training_that_fails_leaves_the_first(use: Callable[[recipes.Recipe], None]) -> None:
    def fill(chosen: SmallSettings, bench: Bench) -> Quality:
        raise KeyboardInterrupt

    use(small_recipe())
    first = recipes.make("chained-sums")
    use(small_recipe(fill))
    with pytest.raises(KeyboardInterrupt):
        recipes.make("chained-sums", force=True)
    assert (first.folder / "file.txt").read_text() == "text 0"


def test_pieces_outlive_an_interruption(use: Callable[[recipes.Recipe], None], own_cache: Path) -> None:
    def fill(chosen: SmallSettings, bench: Bench) -> Quality:
        piece = bench.pieces / "one"
        if not piece.is_file():
            bench.pieces.mkdir(parents=True)
            piece.write_text("one")
            raise KeyboardInterrupt
        (bench.folder / "all").write_text(piece.read_text())
        return {}

    use(small_recipe(fill))
    with pytest.raises(KeyboardInterrupt):
        recipes.make("chained-sums")
    assert (recipes.make("chained-sums").folder / "all").read_text() == "one"
    assert not list((own_cache / "pieces").iterdir())


def test_another_folder_than_the_cache(use: Callable[[recipes.Recipe], None], tmp_path: Path) -> None:
    use(small_recipe())
    assert recipes.make("chained-sums", into=tmp_path / "out").folder == tmp_path / "out" / "chained-sums"
    assert recipes.make("chained-sums", into=tmp_path / "out").was_there
    assert not recipes.make("chained-sums", {"seed": 1}, into=tmp_path / "out").was_there


def test_wrong_names_and_settings_are_told() -> None:
    with pytest.raises(InvalidInput, match="did you mean stdlib-pair"):
        recipes.get("stdlib-pairs")
    with pytest.raises(InvalidInput, match=r"chained-sums has no setting 'speed'.*steps"):
        recipes.make("chained-sums", {"speed": 1})
    with pytest.raises(InvalidInput, match="steps='many'"):
        recipes.make("chained-sums", {"steps": "many"})


def test_a_recipe_stands_in_the_file_of_its_name() -> None:
    with pytest.raises(ValueError, match="must have its name"):
        recipes.recipe("other", summary="", minutes=1, megabytes=1, settings=SmallSettings)(lambda chosen, bench: {})


def test_every_recipe_says_what_it_is() -> None:
    for found in recipes.recipes():
        assert found.summary.endswith(".")
        assert found.minutes > 0
        assert found.megabytes > 0
        fields = {field.name: field for field in setting_fields(found.settings)}
        assert "seed" in fields
        assert all(field.help for field in fields.values())


# -- what is committed --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", sorted(ZOO.glob("[!.]*/")) if ZOO else [], ids=lambda folder: folder.name)
def test_cards_of_the_zoo_match_their_files(folder: Path) -> None:
    card = artefacts.read_card(folder)
    assert card["recipe"] == folder.name
    assert card["version"] == recipes.get(folder.name).version
    assert sorted([*card["files"], "card.json"]) == list(files(folder))
    for name, told in card["files"].items():
        content = (folder / name).read_bytes()
        assert told == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        assert len(content) <= 4 * 2**20
    assert card["quality"]
    assert {field.name for field in setting_fields(recipes.get(folder.name).settings)} == set(card["settings"])


# -- generators ---------------------------------------------------------------------------------------------------


def test_a_sum_is_spelled_out() -> None:
    problem = chained_sums.Problem((3, 5, 9))
    assert problem.text == "3+5+9=\n03+5=08\n08+9=17\nanswer: 17\n"


def test_sums_are_split_by_themselves() -> None:
    train, held = (list(islice(chained_sums.problems(seed=3, split=split), 200)) for split in ("train", "held-out"))
    assert not set(train) & set(held)
    assert {len(problem.text) for problem in [*train, *held]} == {len(train[0].text)}
    assert held == list(islice(chained_sums.problems(seed=3), 200))
    tokenizer = chained_sums.make_tokenizer()
    assert all(tokenizer.decode(tokenizer.encode(problem.text)) == problem.text for problem in train)


def test_lines_answer_their_question() -> None:
    for asked in line_retrieval.problems(20, 30, seed=5):
        said = dict(line.removeprefix("line ").split(":") for line in asked.prompt.splitlines()[:-1])
        assert len(said) == asked.lines == 30
        key = asked.prompt.rpartition("ask ")[2]
        assert asked.answer == ":" + said[key]
        assert list(said).index(key) == asked.place


@pytest.mark.parametrize("most", [4, 12, 40])
def test_texts_for_training_are_right_and_only_answers_count(most: int) -> None:
    chosen = line_retrieval.LineRetrievalSettings(tokens=400, most_lines=40)
    tokenizer = line_retrieval.make_tokenizer(chosen)
    curriculum = line_retrieval.Curriculum(chosen, tokenizer)
    curriculum.most = most
    batch = curriculum.batch(0, 0.0)
    assert batch.weights is not None
    for row, weights in zip(batch.tokens, batch.weights, strict=True):
        text = tokenizer.decode(row)
        lines = [line for line in text.splitlines() if line.startswith("line ")]
        asks = [line for line in text.splitlines() if line.startswith("ask ")]
        assert {ask.removeprefix("ask ") for ask in asks} <= {line.removeprefix("line ") for line in lines}
        counted = tokenizer.convert_ids_to_tokens(row[1:][weights.bool()].tolist())
        assert counted == [":" + ask.partition(":")[2] for ask in asks]


def test_texts_grow_when_they_are_answered_well(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = line_retrieval.LineRetrievalSettings(tokens=64, most_lines=20)
    curriculum = line_retrieval.Curriculum(chosen, line_retrieval.make_tokenizer(chosen))
    for value, most in ((5.0, 8), (0.1, 20)):
        monkeypatch.setattr(curriculum, "next_token", lambda *_, value=value: torch.tensor(value))
        for _ in range(100):
            batch = curriculum.batch(0, 0.0)
            assert batch.tokens.shape[1] >= 4 * 4
            curriculum.loss(None, batch, 0.0)  # type: ignore[arg-type]
        assert curriculum.most == most


def test_a_head_begins_as_one_that_looks_back() -> None:
    chosen = line_retrieval.LineRetrievalSettings()
    tokenizer = line_retrieval.make_tokenizer(chosen)
    model = line_retrieval.network(chosen, tokenizer)
    model.set_attn_implementation("eager")
    tokens = torch.tensor([tokenizer.encode(line_retrieval.problems(1, 100)[0].prompt)])
    with torch.no_grad():
        heads = model(input_ids=tokens, output_attentions=True).attentions[0][0]
    before = heads.diagonal(-1, dim1=1, dim2=2).mean(1)
    assert before[0] > 0.4
    assert before[1:].max() < 0.1


def test_prompts_are_not_those_of_the_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [corpora.Document(f"{number}", f"Returns item {number} of a list. " * 20) for number in range(200)]
    monkeypatch.setattr(corpora, "docstrings", lambda split, least: iter(documents))
    asked = smollm2_outputs.prompts(240)
    assert len(set(asked)) == 240
    assert asked == smollm2_outputs.prompts(240)
    evaluation = {turn.strip().lower() for name in BUILTIN for prompt in load_prompts(name) for turn in prompt.turns}
    assert not evaluation & {text.strip().lower() for text in asked}


@pytest.mark.parametrize(
    ("slug", "settings"),
    [
        ("chained-sums", {"layers": 1, "hidden": 16, "mlp": 16, "batch": 2, "steps": 2, "additions": 2, "measured": 5}),
        (
            "line-retrieval",
            {"hidden": 64, "mlp": 16, "steps": 2, "tokens": 64, "keys": 20, "values": 5, "most_lines": 6},
        ),
    ],
)
def test_recipes_run(slug: str, settings: dict[str, int]) -> None:
    from unspool.models.load import load_model

    made = recipes.make(slug, settings)
    model = load_model(slug, device="cpu", progress=False)
    assert model.context_length
    weights = torch.nn.utils.parameters_to_vector(model.model.parameters())  # type: ignore[attr-defined]
    assert torch.equal(weights, weights.bfloat16().float())
    assert made.card["quality"]["parameters"] == weights.numel()
    assert made.card["quality"]["training"]["steps"] == 2
