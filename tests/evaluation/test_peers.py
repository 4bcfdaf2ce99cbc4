"""Peers: those that are here answer as they are asked to, those that are not say why."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import make_model
from transformers import AutoTokenizer

from unspool.core.errors import Incompatible, InvalidInput
from unspool.engine import Engine
from unspool.engine import load as load_engine
from unspool.evaluation import peers
from unspool.evaluation.answerers import EngineAnswerer, conversation
from unspool.evaluation.answering import Answerer, ArmSpec, Task, make_answerer
from unspool.evaluation.peers import Contest, PeerAbsent, PeerProcess
from unspool.evaluation.peers._peer import Watch
from unspool.models.hub import ModelSource

TRANSFORMERS = ["transformers", "transformers-assisted", "transformers-prompt-lookup"]
OTHERS = ["llama.cpp", "llama.cpp-prompt-lookup", "openvino", "openvino-prompt-lookup", "ctranslate2"]


def task(
    *turns: str, tokens: int = 24, stop: tuple[str, ...] = (), exact: bool = True, chat: bool | None = None
) -> Task:
    return Task("one", turns or ("the quick brown fox",), chat, tokens, stop, 0, 0, exact)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_model(tmp_path_factory.mktemp("peers") / "tiny"))


@pytest.fixture(scope="module")
def draft(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_model(tmp_path_factory.mktemp("peers") / "draft", seed=1))


@pytest.fixture(scope="module")
def engine(model: str) -> Engine:
    return load_engine(model, dtype="float32", backend="transformers", progress=False)


@pytest.fixture(scope="module")
def plain(engine: Engine, model: str) -> EngineAnswerer:
    return EngineAnswerer(engine, ArmSpec("plain", model, "plain"))


@pytest.mark.parametrize("name", TRANSFORMERS)
@pytest.mark.parametrize(
    "asked",
    [
        task(),
        task(tokens=1),
        task("the quick brown fox", "jumps over", tokens=12),
        task("def reverse(items): return", chat=False, tokens=40),
        task("def reverse", "the lazy dog", chat=False, tokens=7),
        task(exact=False),
    ],
    ids=["exact", "one token", "two turns", "no template", "two turns without template", "may end"],
)
def test_transformers_gives_the_tokens_of_plain(
    name: str, asked: Task, model: str, draft: str, plain: EngineAnswerer
) -> None:
    peer = peers.make_here(name, model, 1, draft=draft)
    ours, theirs = plain.answer(asked), peer.answer(asked)
    peer.close()
    assert len(theirs.turns) == len(asked.turns)
    for mine, their in zip(ours.turns, theirs.turns, strict=True):
        assert their.token_ids == mine.token_ids
        assert their.text == mine.text
        assert their.prompt_tokens == mine.prompt_tokens
        assert their.tokens == len(their.token_ids) <= asked.max_new_tokens
        assert their.first_token_seconds is not None
        assert 0 < their.first_token_seconds <= their.seconds
        if asked.ignore_eos:
            assert their.tokens == asked.max_new_tokens
            assert their.finish_reason == "length"


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_stop_strings_and_stop_tokens_end_an_answer(name: str, model: str, draft: str, plain: EngineAnswerer) -> None:
    whole = plain.answer(task(tokens=24)).turns[0]
    stop = whole.text[5:8]
    peer = peers.make_here(name, model, 1, draft=draft)
    asked = task(stop=(stop,), exact=False)
    ours, theirs = plain.answer(asked).turns[0], peer.answer(asked).turns[0]
    assert (theirs.finish_reason, theirs.text) == ("stop-string", ours.text)
    assert theirs.token_ids == ours.token_ids
    # The third token as if it were the end of the text.
    token = whole.token_ids[2]
    peer.contest = dataclasses.replace(peer.contest, stop_tokens=frozenset({token}))
    ended = peer.answer(task(exact=False)).turns[0]
    assert ended.finish_reason == "stop-token"
    assert ended.token_ids == whole.token_ids[: whole.token_ids.index(token) + 1]
    assert peer.answer(task(exact=True)).turns[0].token_ids == whole.token_ids
    peer.close()


@pytest.mark.parametrize("chat", [None, True, False])
def test_prompts_are_those_of_our_own_methods(chat: bool | None, model: str, engine: Engine) -> None:
    peer = peers.make_here("transformers", model, 1)
    said = [
        {"role": "user", "content": "the quick"},
        {"role": "assistant", "content": "brown"},
        {"role": "user", "content": "fox"},
    ]
    assert peer.encode(said, chat) == conversation(engine, said, chat)
    peer.close()


def test_a_peer_is_an_arm(model: str) -> None:
    peer = make_answerer(ArmSpec("transformers", model, "transformers", {"threads": 1}, "peer"))
    assert isinstance(peer, Answerer)
    assert (peer.name, peer.kind) == ("transformers", "peer")
    peer.warm_up()
    about = peer.about
    assert about["version"]
    assert about["weights"] == "float32"
    assert about["threads"] == 1
    peer.close()


# -- in a process of its own ----------------------------------------------------------------------------------------


def test_the_process_says_what_the_peer_says(model: str, plain: EngineAnswerer) -> None:
    peer = peers.make("transformers-prompt-lookup", model, 1)
    try:
        peer.warm_up()
        for asked in (task(), task("the quick brown fox", "jumps", chat=False, tokens=9, stop=("zzz",), exact=False)):
            ours, theirs = plain.answer(asked), peer.answer(asked)
            assert [turn.token_ids for turn in theirs.turns] == [turn.token_ids for turn in ours.turns]
            assert theirs.texts == ours.texts
        assert peer.peak_rss_bytes is None or peer.peak_rss_bytes > 10**7
        with pytest.raises(InvalidInput, match="has room for 512 positions"):
            peer.answer(task(tokens=600))
        assert peer.answer(task(tokens=3)).turns[0].tokens == 3
    finally:
        peer.close()
    assert peer._process.returncode == 0
    with pytest.raises(PeerAbsent, match="the process of transformers-prompt-lookup ended with exit code 0"):
        peer.answer(task())


def test_a_process_that_dies_is_told(model: str) -> None:
    peer = peers.make("transformers", model, 1)
    peer._process.kill()
    with pytest.raises(PeerAbsent, match="the process of transformers was killed by signal 9"):
        peer.answer(task())
    peer.close()


def test_a_peer_that_cannot_start_is_absent(model: str, tmp_path: Path) -> None:
    asked = {"name": "transformers-assisted", "model": model, "threads": 1}
    with pytest.raises(PeerAbsent, match="no draft model was named"):
        PeerProcess("transformers-assisted", asked)
    with pytest.raises(InvalidInput, match="There is no file or folder"):
        PeerProcess("transformers", {"name": "transformers", "model": str(tmp_path / "nothing")})


def test_a_peer_gives_no_probabilities(model: str) -> None:
    peer = peers.make_here("transformers", model, 1)
    with pytest.raises(Incompatible, match="no log-probabilities"):
        peer.answer(dataclasses.replace(task(), tokens=(1, 2, 3), score_from=1))
    peer.close()


def test_what_has_no_room_is_refused(model: str) -> None:
    peer = peers.make_here("transformers", model, 1)
    with pytest.raises(InvalidInput, match="has room for 512 positions"):
        peer.answer(task(tokens=600))
    peer.close()


# -- who is there ---------------------------------------------------------------------------------------------------


def test_all_peers_are_told_with_a_way_to_install_them() -> None:
    told = peers.available()
    assert set(told) == set(peers.names()) == {*TRANSFORMERS, *OTHERS}
    assert told["transformers"] is None
    for name in told:
        assert peers.install_line(name).startswith("pip install" if name != "transformers-assisted" else "--draft")
    assert peers.absence("openvino", "why") == {
        "peer": "openvino",
        "install": 'pip install "unspool[openvino]"',
        "reason": "why",
    }


def test_what_is_not_installed_says_so(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unspool.evaluation.peers._peer.find_spec", lambda name: None)
    told = peers.available()
    assert told["llama.cpp"] == "the package llama-cpp-python is not installed"
    with pytest.raises(PeerAbsent, match=r"not installed.*pip install \"unspool\[ctranslate2\]\""):
        peers.make_here("ctranslate2", model, 1)


def test_peers_of_gguf_files_are_absent_for_other_models(model: str) -> None:
    told = peers.available(model)
    for name in ("llama.cpp", "llama.cpp-prompt-lookup", "openvino", "openvino-prompt-lookup"):
        assert told[name] is not None
    assert told["transformers"] is None
    assert "draft" in str(told["transformers-assisted"])
    assert peers.available(model, draft="x")["transformers-assisted"] is None


def test_unknown_peers() -> None:
    with pytest.raises(InvalidInput, match=r"no peer 'lama.cpp'; did you mean llama.cpp"):
        peers.make_here("lama.cpp", "smollm2-135m", 1)


def test_asking_who_is_there_imports_no_program() -> None:
    import subprocess

    code = (
        "import sys; from unspool.evaluation import peers; peers.available(); "
        "print([m for m in ('torch', 'transformers', 'llama_cpp', 'openvino', 'ctranslate2') if m in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "[]"


def test_a_model_that_a_converter_refuses_makes_its_peer_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ctranslate2")
    from tokenizers import Tokenizer, models
    from transformers import MambaConfig, MambaForCausalLM, PreTrainedTokenizerFast

    monkeypatch.setenv("UNSPOOL_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "mamba"
    config = MambaConfig(vocab_size=8, hidden_size=8, state_size=4, num_hidden_layers=1)
    MambaForCausalLM(config).save_pretrained(folder)
    words = {f"w{n}": n for n in range(8)}
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0"))).save_pretrained(folder)
    with pytest.raises(PeerAbsent, match="converter does not take this model"):
        peers.make_here("ctranslate2", str(folder), 1)
    assert not list((tmp_path / "cache" / "peers").glob("*/model.bin"))


def test_ctranslate2_converts_once_and_gives_plain_tokens(
    model: str, plain: EngineAnswerer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ctranslate2")
    # In eight bits this small network says something else.
    monkeypatch.setattr("unspool.evaluation.peers.ctranslate2.QUANTIZATION", "float32")
    monkeypatch.setenv("UNSPOOL_CACHE", str(tmp_path / "cache"))
    with pytest.raises(PeerAbsent, match="CTranslate2 does not load"):  # the tokenizer has no token for the unknown
        peers.make_here("ctranslate2", model, 1)
    whole = tmp_path / "model"
    shutil.copytree(model, whole)
    named = {"unk_token": "<|system|>", "bos_token": "<|user|>"}
    AutoTokenizer.from_pretrained(model, **named).save_pretrained(whole)
    asked = task("the quick brown fox", "jumps", tokens=12)
    ours = plain.answer(asked)
    made = tmp_path / "cache" / "peers"
    times = []
    for _ in range(2):
        peer = peers.make_here("ctranslate2", str(whole), 1)
        theirs = peer.answer(asked)
        peer.close()
        assert [turn.token_ids for turn in theirs.turns] == [turn.token_ids for turn in ours.turns]
        times.append(sorted((file, file.stat().st_mtime_ns) for file in made.rglob("*")))
    assert times[0] == times[1]
    assert not [path for path in made.iterdir() if path.name.startswith(".")]


# -- with real weights ----------------------------------------------------------------------------------------------


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_programs_with_the_packaged_model(name: str) -> None:
    if (reason := peers.available("smollm2-135m")[name]) is not None:
        pytest.skip(reason)
    peer = peers.make_here(name, "smollm2-135m", 1)
    peer.warm_up()
    exact = peer.answer(task("Tell me about the sea.", "And about the sky?", tokens=20))
    assert [(turn.tokens, turn.finish_reason) for turn in exact.turns] == [(20, "length")] * 2
    assert exact.turns[1].prompt_tokens > exact.turns[0].prompt_tokens + 20
    again = peer.answer(task("Tell me about the sea.", tokens=20))
    assert again.turns[0].token_ids == exact.turns[0].token_ids
    short = peer.answer(task("What is 2+2? Answer briefly.", tokens=60, exact=False)).turns[0]
    assert "4" in short.text
    assert short.finish_reason == "stop-token"
    cut = peer.answer(task("What is 2+2? Answer briefly.", tokens=60, exact=False, stop=("4",))).turns[0]
    assert cut.finish_reason == "stop-string"
    assert "4" not in cut.text
    peer.close()


# -- the watch ------------------------------------------------------------------------------------------------------


class Letters:
    """A tokenizer of letters."""

    chats = False

    def encode(self, text: str, special: bool = True) -> list[int]:
        return [ord(letter) for letter in text]

    def decode(self, ids: Any) -> str:
        return "".join(chr(token) for token in ids)


def watch(stops: tuple[str, ...] = (), stop_tokens: frozenset[int] = frozenset(), limit: int = 10) -> Watch:
    return Watch(Letters(), stops, stop_tokens, limit)  # type: ignore[arg-type]


def test_the_watch_cuts_where_an_answer_ends() -> None:
    seen = watch(limit=3)
    assert not seen.take([])
    assert seen.first is None
    assert not seen.take([65, 66])
    assert seen.first is not None
    assert seen.take([67, 68, 69])
    assert (seen.tokens, seen.reason) == ([65, 66, 67], "length")
    seen = watch(stop_tokens=frozenset({66}))
    assert seen.take([65, 66, 67])
    assert (seen.tokens, seen.reason) == ([65, 66], "stop-token")
    seen = watch(stops=("BC",))
    assert not seen.take([65, 66])
    assert seen.take([67, 68])
    assert (seen.tokens, seen.reason) == ([65, 66, 67], "stop-string")


def test_llama_cpp_reserves_no_more_than_it_says() -> None:
    from unspool.evaluation.peers.llama_cpp import RESERVED, LlamaCpp

    peer = object.__new__(LlamaCpp)
    source = ModelSource("m", "m", "gguf", "m", None, Path("m.gguf"))
    for context, room in ((None, RESERVED), (512, 512), (10**6, RESERVED)):
        peer.contest = Contest(source, 1, frozenset(), context)
        assert peer.room == room


def test_installed_programs_are_found_by_their_modules() -> None:
    for name in OTHERS:
        installed = find_spec(peers._find(name).module) is not None
        assert (peers.available()[name] is None) == installed
