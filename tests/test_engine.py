from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.shapes import ByteTokenizer, backend, network, prompts

import unspool
from unspool.core.errors import InvalidInput, WeightsError
from unspool.core.events import Finished, Prefilled, Scored, Stepped
from unspool.engine import Engine, Output


class Chatting(ByteTokenizer):
    def __init__(self) -> None:
        super().__init__()
        self.chats = True

    def chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        return [*self.encode("\n".join(f"{m['role'][0]}, {m['content']}" for m in messages)), 28]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    lm = backend("llama")
    monkeypatch.setattr(lm, "tokenizer", ByteTokenizer())
    return Engine(lm)


def test_an_output(engine: Engine) -> None:
    output = engine.generate("the cat and the ", max_new_tokens=12)
    assert isinstance(output, Output)
    assert output.prompt_tokens == engine.model.tokenizer.encode("the cat and the ")
    assert len(output.tokens) == 12
    assert output.text == str(output) == engine.model.tokenizer.decode(output.tokens)
    assert output.finish_reason == "length"
    counted = output.statistics
    assert (counted.tokens, counted.prompt_tokens) == (12, len(output.prompt_tokens))
    assert 0 < counted.forwards <= 12
    assert counted.seconds > 0
    assert counted.first_token_seconds is not None
    assert counted.first_token_seconds <= counted.seconds


@pytest.mark.parametrize("method", ["plain", "auto", "prompt-lookup", "token-recycling"])
def test_methods_agree(engine: Engine, method: str) -> None:
    asked = "the cat and the cat"
    assert (
        engine.generate(asked, method, max_new_tokens=20).tokens
        == engine.generate(asked, "plain", max_new_tokens=20).tokens
    )


def test_a_stream_is_the_text_in_pieces(engine: Engine) -> None:
    whole = engine.generate("the cat", max_new_tokens=30)
    pieces = list(engine.stream("the cat", max_new_tokens=30))
    assert "".join(pieces) == whole.text
    assert all(pieces)
    assert len(pieces) > 1


def test_stop_strings_and_tokens(engine: Engine) -> None:
    whole = engine.generate("the cat", max_new_tokens=30)
    stop = whole.text[5:7]
    cut = engine.generate("the cat", max_new_tokens=30, stop=stop)
    assert (cut.text, cut.finish_reason) == (whole.text[: whole.text.index(stop)], "stop-string")
    assert "".join(engine.stream("the cat", max_new_tokens=30, stop=[stop])) == cut.text
    token = whole.tokens[4]
    cut = engine.generate("the cat", max_new_tokens=30, stop_tokens=[token])
    assert cut.tokens == whole.tokens[: whole.tokens.index(token) + 1]
    assert cut.text == engine.model.tokenizer.decode(cut.tokens[:-1]), "the stop token is no text"


def test_a_batch(engine: Engine) -> None:
    asked = ["the cat", "and x and x and", "ß"]
    outputs = engine.generate(asked, max_new_tokens=10)
    assert [o.tokens for o in outputs] == [engine.generate(a, max_new_tokens=10).tokens for a in asked]
    assert [o.statistics.tokens for o in outputs] == [10] * 3
    assert (
        engine.generate(["the cat"], max_new_tokens=3)[0].tokens == engine.generate("the cat", max_new_tokens=3).tokens
    )


def test_token_ids_and_messages(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = engine.model.tokenizer.encode("the cat")
    assert engine.generate(ids, max_new_tokens=5).tokens == engine.generate("the cat", max_new_tokens=5).tokens
    monkeypatch.setattr(engine.model, "tokenizer", Chatting())
    assert engine.encode("the cat") == Chatting().chat([{"role": "user", "content": "the cat"}])
    assert engine.encode("the cat", chat=False) == ids
    assert engine.encode([{"role": "system", "content": "x"}]) == Chatting().chat([{"role": "system", "content": "x"}])
    assert engine.generate("the cat", chat=False, max_new_tokens=2).prompt_tokens == ids


def test_seeds_and_sampling(engine: Engine) -> None:
    def run(**options: Any) -> list[int]:
        return engine.generate("the cat", max_new_tokens=25, temperature=1.0, **options).tokens

    assert run(seed=1) == run(seed=1)
    assert run(seed=1) != run(seed=2)
    # Fixed candidates are matched with the sampler's own draws.
    assert run(seed=1, method="plain") == run(seed=1, method="auto")
    assert (
        engine.generate("the cat", max_new_tokens=25, temperature=0.0).tokens
        == engine.generate("the cat", max_new_tokens=25).tokens
    )
    greedy = engine.generate("the cat", max_new_tokens=25).tokens
    assert engine.generate("the cat", max_new_tokens=25, no_repeat_ngram=1).tokens != greedy
    assert engine.generate("the cat", max_new_tokens=25, settings={"no_repeat_ngram": "1"}).tokens != greedy


def test_compositions_are_kept(engine: Engine) -> None:
    one = engine.compose("auto", temperature=0.5, nodes=8)
    assert engine.compose("auto", nodes=8, temperature=0.5) is one
    assert engine.compose("auto", nodes=9, temperature=0.5) is not one
    assert engine.compose("auto", temperature=0.6, nodes=8) is not one
    assert engine.compose("auto", settings={"nodes": 8}, temperature=0.5) is one
    drafter: Any = engine.compose("token-recycling").drafter
    engine.generate("the cat and the cat", "token-recycling", max_new_tokens=20)
    assert (drafter.adjacency.matrix >= 0).any(), "what was learned stays"
    engine.forget()
    fresh: Any = engine.compose("token-recycling").drafter
    assert not (fresh.adjacency.matrix >= 0).any()


def test_compositions_are_kept_in_number(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unspool.engine.KEPT", 3)
    first = engine.compose("plain", user="0")
    for user in ("1", "2", "3"):
        engine.compose("plain", user="0")
        last = engine.compose("plain", user=user)
    assert len(engine._compositions) == 3
    assert engine.compose("plain", user="0") is first, "what was asked for again stays"
    assert engine.compose("plain", user="3") is last
    before = engine.compose("plain", user="2")
    engine.compose("plain", user="4")
    engine.compose("plain", user="5")
    assert len(engine._compositions) == 3
    assert engine.compose("plain", user="2") is before
    assert engine.compose("plain", user="0") is not first


def test_samplers_of_methods(engine: Engine) -> None:
    made = engine.compose("auto+momentum-decoding", alpha=0.5)
    assert made.sampler.settings.alpha == 0.5
    made = engine.compose("sampling", temperature=0.7)
    assert made.sampler.settings.temperature == 0.7
    with pytest.raises(InvalidInput, match="temperature"):
        engine.compose("momentum-decoding", temperature=0.7)


def test_a_draft_model(engine: Engine) -> None:
    plain = engine.generate("the cat", "plain", max_new_tokens=20)
    output = engine.generate("the cat", "draft-model", draft=backend("llama", noise=0.1), max_new_tokens=20, tokens=3)
    assert output.tokens == plain.tokens
    assert output.statistics.draft_forwards > 0
    assert output.statistics.forwards < plain.statistics.forwards
    itself = engine.generate("the cat", "draft-model", draft=engine.model, max_new_tokens=20, tokens=3)
    assert itself.tokens == plain.tokens
    assert itself.statistics.draft_forwards == 0, "what the target does is counted once"


def test_events(engine: Engine) -> None:
    asked = prompts(2)
    events = list(engine.events(asked, "auto", max_new_tokens=6, chunk=4, probe=True))
    assert sum(isinstance(event, Finished) for event in events) == 2
    assert any(isinstance(event, Prefilled) for event in events)
    assert any(isinstance(event, Scored) for event in events)
    assert all(event.probe is not None for event in events if isinstance(event, Stepped))


def test_transformers_models_are_wrapped() -> None:
    engine = Engine(network("gpt2"))
    assert (
        engine.generate([3, 4, 5], max_new_tokens=4).tokens
        == Engine(backend("gpt2")).generate([3, 4, 5], max_new_tokens=4).tokens
    )
    assert repr(engine) == f"Engine({engine.model.name!r})"


def test_a_model_with_an_encoder() -> None:
    engine = Engine(backend("t5"))
    lm: Any = engine.model
    output = engine.generate([9, 8, 7, 6], max_new_tokens=8)
    with torch.no_grad():
        expected = lm.model.generate(torch.tensor([[9, 8, 7, 6]]), max_new_tokens=8, do_sample=False)
    assert output.tokens == expected[0, 1:].tolist()
    assert output.statistics.prompt_tokens == 4


def test_the_public_face() -> None:
    assert unspool.Engine is Engine
    assert unspool.Output is Output
    assert "auto" in unspool.methods
    assert issubclass(InvalidInput, unspool.UnspoolError)
    assert callable(unspool.load)
    assert callable(unspool.compose)
    assert callable(unspool.as_custom_generate)
    assert unspool.__version__
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = unspool.nonsense


def test_users_keep_what_they_learned_apart(engine: Engine) -> None:
    def known(user: str | None) -> int:
        learned: Any = engine.compose("token-recycling", user=user).learned["token-recycling"]
        return int((learned.matrix >= 0).sum())

    engine.forget()
    engine.generate("the cat and the cat", "token-recycling", max_new_tokens=20, user="ann")
    assert known("ann") > 0
    assert known("bob") == known(None) == 0
    engine.generate("the cat and the cat", "token-recycling", max_new_tokens=20)
    assert known(None) > 0
    engine.forget("ann")
    assert known("ann") == 0
    assert known(None) > 0


def test_what_was_learned_is_written_and_read(engine: Engine, tmp_path: Path) -> None:
    engine.forget()
    engine.generate("the cat and the cat", max_new_tokens=20)
    made = engine.compose("auto")
    made.save_learned(tmp_path / "new" / "folder")
    assert {path.name for path in (tmp_path / "new" / "folder").iterdir()} == {
        "auto.safetensors",
        "token-recycling.safetensors",
    }
    engine.forget()
    fresh = engine.compose("auto")
    matrix: Any = fresh.learned["token-recycling"]
    assert not (matrix.matrix >= 0).any()
    assert fresh.load_learned(tmp_path / "nowhere") == []
    assert set(fresh.load_learned(tmp_path / "new" / "folder")) == {"auto", "token-recycling"}
    assert (matrix.matrix >= 0).any()
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightsError, match="cannot be made"):
        fresh.save_learned(tmp_path / "file" / "below")
