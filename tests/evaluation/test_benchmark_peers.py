"""The script of the peers: what it lists, measures, and says of what it cannot do."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
from tests.cli.conftest import make_model

from unspool.evaluation import peers

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "peers" / "run.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_peers", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_lists_all_peers(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["--json"]) == 0
    assert [told["peer"] for told in json.loads(capsys.readouterr().out)] == peers.names()
    assert script.main([]) == 0
    assert "transformers-prompt-lookup" in capsys.readouterr().out


def test_it_measures(script: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model = str(make_model(tmp_path / "tiny"))
    wanted = ["--model", model, "--prompts", "2", "--new-tokens", "5", "--threads", "1", "--json"]
    assert script.main(["transformers", *wanted]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert (told["prompts"], told["tokens"]) == (2, 10)
    assert told["tokens_per_second"] > 0
    assert told["first_token_seconds"] > 0


def test_what_cannot_be_done_is_told(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["nobody"]) == 1
    assert "there is no peer 'nobody'. There are: " in capsys.readouterr().err


def test_the_table_of_the_folder_has_every_peer() -> None:
    table = (SCRIPT.parent / "README.md").read_text(encoding="utf-8")
    for name in peers.names():
        assert f"| `{name}` |" in table
