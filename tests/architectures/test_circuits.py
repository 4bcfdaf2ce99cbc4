"""The model of circuits: caches, trees and batches as of every model, its tokenizer, and its files."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from tests.architectures.small import asked, small_model

import unspool
from unspool.architectures._circuit_network import LEVELS, CircuitNetwork, Shape, need_features, position_features
from unspool.architectures.circuits import CircuitModel, CircuitTokenizer, load, padded, rounded, save
from unspool.circuits import CircuitError, read
from unspool.circuits.cutoff import Place, place_of
from unspool.circuits.sequence import AND, EOS, NAND, PAD, VOCABULARY, Task, problem, task_of
from unspool.core.errors import Incompatible, InvalidInput, WeightsError
from unspool.core.scores import Request, Want
from unspool.core.tree import TokenTree


@torch.no_grad()
def afresh(lm: CircuitModel, source: list[int], text: list[int]) -> torch.Tensor:
    """``[V]`` logits after a text, as the training computes them: whole, without a cache."""
    _, task = task_of(source)
    tokens, features, real = padded([source[: source.index(EOS)]])
    memory = lm.network.memory(lm.network.encode(tokens, features.to(lm.dtype), real))
    places = [place_of(task, text[: end + 1]) for end in range(len(text))]
    mask = torch.ones(1, 1, len(text), len(text), dtype=torch.bool).tril()
    states = lm.network.decode(
        torch.tensor([text]),
        position_features(places)[None].to(lm.dtype),
        need_features(places, lm.shape.inputs)[None].to(lm.dtype),
        mask,
        memory,
        real,
    )
    logits: torch.Tensor = lm.network.head(states)[0, -1]
    return logits


@pytest.mark.parametrize("seed", range(6))
def test_caches_answer_as_if_all_were_computed_anew(seed: int) -> None:
    """Scores, commits, forks, rewinds and releases in random order, of sequences scored together and apart."""
    lm, rng = small_model(), random.Random(seed)
    sources = asked(3, seed=seed)
    lines = [
        [cache, source, [], TokenTree.empty()] for source, (cache, _) in zip(sources, lm.start(sources), strict=True)
    ]
    for line in lines:
        line[3] = TokenTree.chain([PAD])
    lm.score([Request(line[0], line[3]) for line in lines])
    for line in lines:
        line[0].commit([0])
        line[2], line[3] = [PAD], TokenTree.empty()

    def tree(size: int) -> TokenTree:
        tokens = [rng.choice([rng.randrange(VOCABULARY), AND, NAND]) for _ in range(size)]
        return TokenTree(tokens, [rng.randrange(-1, node) for node in range(size)])

    for _ in range(25):
        line = rng.choice(lines)
        action = rng.choice(["score", "score", "grow", "commit", "commit", "fork", "rewind", "release"])
        if action == "score":
            some = rng.sample(lines, rng.randint(1, len(lines)))
            for one in some:
                one[3] = tree(rng.randint(1, 5))
            answers = lm.score([Request(one[0], one[3]) for one in some])
            for one, scores in zip(some, answers, strict=True):
                node = rng.randrange(len(one[3]))
                expected = afresh(lm, one[1], one[2] + one[3].path_tokens(node))
                torch.testing.assert_close(scores.at(node).double(), expected, atol=1e-5, rtol=1e-5)
        elif action == "grow" and line[3]:
            known = len(line[3])
            more = [rng.randrange(VOCABULARY) for _ in range(2)]
            parents = [rng.randrange(-1, known), rng.randrange(-1, known + 1)]
            line[3] = TokenTree([*line[3].token_list, *more], [*line[3].parent_list, *parents])
            (scores,) = lm.score([Request(line[0], line[3], known=known)])
            assert scores.rows == [known, known + 1]
            expected = afresh(lm, line[1], line[2] + line[3].path_tokens(known + 1))
            torch.testing.assert_close(scores.at(known + 1).double(), expected, atol=1e-5, rtol=1e-5)
        elif action == "commit" and line[3]:
            path = line[3].path(rng.randrange(-1, len(line[3])))
            line[0].commit(path)
            line[2], line[3] = line[2] + [line[3].token_list[node] for node in path], TokenTree.empty()
        elif action == "fork" and len(lines) < 5:
            lines.append([line[0].fork(), line[1], list(line[2]), TokenTree.empty()])
        elif action == "rewind":
            length = rng.randint(0, len(line[2]))
            line[0].rewind(length)
            line[2], line[3] = line[2][:length], TokenTree.empty()
        elif action == "release" and len(lines) > 1:
            lines.remove(line)
            line[0].release()
        assert all(one[0].length == len(one[2]) and one[0].nbytes > 0 for one in lines)


def test_what_the_network_is_told_of_a_slot() -> None:
    _, task = task_of(problem(read("y0 = x0 & x1; y1 = x0 | x1").circuit))
    place = place_of(task, [NAND, 2, AND])
    told = position_features([Place(task), place, place_of(task, [AND, 2, 4])])
    assert told.shape == (3, 2 * LEVELS + 4)
    assert told[0].nonzero().flatten().tolist() == [2 * LEVELS]
    # The nearest step first: left of the AND, which is right of the NAND.
    assert told[1].nonzero().flatten().tolist() == [0, 3, 2 * LEVELS]
    assert told[2].nonzero().flatten().tolist() == [2 * LEVELS + 1]
    needs = need_features([Place(task)], 3)
    # Rows of x2 are there twice: it does not matter.
    assert needs[0].tolist() == [0, 0, 0, 1, 0, 0, 0, 1, 1, 1, 1, 0, 1, 1, 1, 0]


def test_a_network_that_is_not_told() -> None:
    lm = small_model(needs=False)
    (source,) = asked(1)
    ((cache, start),) = lm.start([source])
    (scores,) = lm.score([Request(cache, TokenTree.chain([*start, AND]))])
    assert scores.logits.shape == (2, VOCABULARY)
    assert lm.network.needs is None


def test_what_is_refused() -> None:
    lm = small_model()
    (source,) = asked(1)
    ((cache, start),) = lm.start([source])
    tree = TokenTree.chain(start)
    with pytest.raises(Incompatible, match="logits only"):
        lm.score([Request(cache, tree)], Want(hidden=frozenset({0})))
    with pytest.raises(Incompatible, match="tokens, not"):
        lm.score([Request(cache, tree, inputs=torch.zeros(1, 32))])
    with pytest.raises(InvalidInput, match="outside of the vocabulary"):
        lm.score([Request(cache, TokenTree.chain([VOCABULARY]))])
    with pytest.raises(InvalidInput, match="exceed the context"):
        lm.score([Request(cache, TokenTree.chain([AND] * 97))])
    with pytest.raises(CircuitError, match="no circuit"):
        lm.start([[AND, 2, EOS]])


def test_the_tokenizer() -> None:
    tokenizer = CircuitTokenizer(Shape(4, source=40))
    assert tokenizer.encode("y0 = x0 & ~x1") == [AND, 2, 5, EOS]
    assert tokenizer.encode("aag 3 2 0 1 1\n2\n4\n7\n6 4 2\n") == [NAND, 4, 2, EOS]
    assert task_of(tokenizer.encode("0x8"))[1] == Task(2, (0b1000,), (0b1111,))
    assert task_of(tokenizer.encode("0b1-00"))[1].cares == (0b1011,)
    assert tokenizer.decode([AND, 2, 5]) == "y0 = x0 & ~x1"
    assert tokenizer.decode([AND, 2, NAND, 4, 6, NAND, 4, 6]) == "t0 = x1 & x2; y0 = x0 & ~t0; y1 = ~t0"
    assert tokenizer.decode([PAD, 4, AND, 2]) == "y0 = x1; y1 = (x0 & ?)"
    assert tokenizer.decode([]) == ""
    with pytest.raises(CircuitError, match="made for 4 inputs, x0 to x3"):
        tokenizer.encode("x5")
    with pytest.raises(CircuitError, match="this model reads 40"):
        tokenizer.encode("x0 ^ x1 ^ x2 ^ x3")
    with pytest.raises(CircuitError, match="has 9 inputs"):
        tokenizer.encode("x8")


def test_files(tmp_path: Path) -> None:
    network = CircuitNetwork(Shape(3, 1, 32, 32), 5)
    rounded(network)
    save(network, tmp_path)
    engine = unspool.load(str(tmp_path), progress=False)
    assert isinstance(engine.model, CircuitModel)
    (source,) = asked(1)
    for one, two in zip(network.state_dict().values(), engine.model.network.state_dict().values(), strict=True):
        assert torch.equal(one, two)
    assert engine.generate("y0 = x0 & x1", method="circuit-transformer").complete is not None
    assert engine.model.start([source])
    with pytest.raises(InvalidInput, match="not in float16"):
        load(tmp_path, "tiny", torch.float16, torch.device("cpu"))
    with pytest.raises(InvalidInput, match="dtype is 'int4'"):
        unspool.load(str(tmp_path), dtype="int4", progress=False)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"hidden": 32', '"hidden": 64'))
    with pytest.raises(WeightsError, match="cannot be loaded"):
        unspool.load(str(tmp_path), progress=False)
    (tmp_path / "config.json").write_text(config.replace('"circuits"', '"perpetuum"'))
    with pytest.raises(WeightsError, match="'perpetuum', which is not known"):
        unspool.load(str(tmp_path), progress=False)
