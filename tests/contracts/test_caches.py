"""Caches answer as if all were computed anew, whatever the order of score, commit, fork, rewind and release."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from hypothesis import HealthCheck, assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.models.shapes import VOCAB, backend

from unspool.core.model import Cache, LanguageModel
from unspool.core.scores import Request
from unspool.core.tree import TokenTree
from unspool.models.seq2seq import Seq2SeqModel

MOST = 5
"""Sequences that live at a time."""


class Line:
    """One sequence: its cache, and what the cache should be of."""

    def __init__(self, cache: Cache, source: list[int], text: list[int]) -> None:
        self.cache = cache
        self.source = source
        self.text = text
        self.tree = TokenTree.empty()


@st.composite
def trees(draw: st.DrawFn, chains: bool) -> TokenTree:
    size = draw(st.integers(1, 6))
    # Few tokens, so that siblings and repetitions occur.
    tokens = draw(st.lists(st.integers(0, VOCAB - 1) | st.integers(0, 3), min_size=size, max_size=size))
    if chains:
        return TokenTree.chain(tokens)
    return TokenTree(tokens, [draw(st.integers(-1, node - 1)) for node in range(size)])


class Caches(RuleBasedStateMachine):
    shape: str
    chains = False
    close = 1e-9

    def __init__(self) -> None:
        super().__init__()
        self.lm: LanguageModel = backend(self.shape)
        self.lines: list[Line] = []

    # -- the reference --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def afresh(self, line: Line, path: Sequence[int]) -> torch.Tensor:
        """``[V]`` logits after the line's text and ``path``, by the network's own forward pass."""
        lm: Any = self.lm
        if isinstance(lm, Seq2SeqModel):
            text = torch.tensor([[*line.text, *path]])
            out = lm.model(input_ids=torch.tensor([line.source]), decoder_input_ids=text, use_cache=False)
        else:
            out = lm.model(input_ids=torch.tensor([[*line.text, *path]]), use_cache=False)
        return out.logits[0, -1]  # type: ignore[no-any-return]

    def check(self, line: Line, answers: Any) -> None:
        # The last and one other node; every node of every tree would cost much and add little.
        for node in {answers.rows[-1], answers.rows[len(answers.rows) // 2]}:
            expected = self.afresh(line, line.tree.path_tokens(node))
            torch.testing.assert_close(answers.at(node).double(), expected.double(), atol=self.close, rtol=self.close)

    def choose(self, data: st.DataObject) -> Line:
        return self.lines[data.draw(st.integers(0, len(self.lines) - 1), label="line")]

    # -- what may happen ------------------------------------------------------------------------------------------

    @initialize(data=st.data(), count=st.integers(1, 3))
    def start(self, data: st.DataObject, count: int) -> None:
        prompt = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=5)
        texts = [data.draw(prompt) for _ in range(count)]
        for text, (cache, tokens) in zip(texts, self.lm.start(texts), strict=True):
            line = Line(cache, text if isinstance(self.lm, Seq2SeqModel) else [], [])
            self.lines.append(line)
            line.tree = TokenTree.chain(tokens)
            (answers,) = self.lm.score([Request(cache, line.tree)])
            self.check(line, answers)
            cache.commit(range(len(tokens)))
            line.text, line.tree = list(tokens), TokenTree.empty()

    @rule(data=st.data())
    def score(self, data: st.DataObject) -> None:
        """Some of the sequences, in any order, in one pass."""
        chosen = data.draw(st.lists(st.sampled_from(range(len(self.lines))), min_size=1, unique=True), label="lines")
        lines = [self.lines[i] for i in chosen]
        for line in lines:
            line.tree = data.draw(trees(self.chains))
        for line, answers in zip(lines, self.lm.score([Request(each.cache, each.tree) for each in lines]), strict=True):
            self.check(line, answers)

    @rule(data=st.data())
    def grow(self, data: st.DataObject) -> None:
        """Add a level to a tree that was scored, in a pass over the new nodes alone."""
        line = self.choose(data)
        assume(line.tree)
        known = len(line.tree)
        more = data.draw(st.integers(1, 3))
        tokens = data.draw(st.lists(st.integers(0, VOCAB - 1), min_size=more, max_size=more))
        parents = [known + i - 1 if self.chains else data.draw(st.integers(-1, known + i - 1)) for i in range(more)]
        line.tree = TokenTree([*line.tree.token_list, *tokens], [*line.tree.parent_list, *parents])
        (answers,) = self.lm.score([Request(line.cache, line.tree, known=known)])
        assert answers.rows == list(range(known, known + more))
        self.check(line, answers)

    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        line = self.choose(data)
        assume(line.tree)
        path = line.tree.path(data.draw(st.integers(-1, len(line.tree) - 1), label="last node"))
        line.cache.commit(path)
        line.text += [line.tree.token_list[node] for node in path]
        line.tree = TokenTree.empty()

    @precondition(lambda self: len(self.lines) < MOST)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        line = self.choose(data)
        self.lines.append(Line(line.cache.fork(), line.source, list(line.text)))

    @rule(data=st.data())
    def rewind(self, data: st.DataObject) -> None:
        line = self.choose(data)
        length = data.draw(st.integers(0, len(line.text)), label="length")
        line.cache.rewind(length)
        del line.text[length:]
        line.tree = TokenTree.empty()

    @precondition(lambda self: len(self.lines) > 1)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        line = self.choose(data)
        self.lines.remove(line)
        line.cache.release()

    @invariant()
    def lengths(self) -> None:
        for line in self.lines:
            assert line.cache.length == len(line.text)
            assert line.cache.nbytes >= 0

    def teardown(self) -> None:
        for line in self.lines:
            line.cache.release()


def machine(shape: str, *, chains: bool = False, close: float = 1e-9, examples: int = 25) -> Any:
    made = type(f"{shape}Caches", (Caches,), {"shape": shape, "chains": chains, "close": close})
    case = made.TestCase
    case.settings = settings(
        max_examples=examples, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
    )
    return case


TestLlama = machine("llama", examples=25)
TestSlidingWindows = machine("gemma3", examples=12)
TestRelativePositions = machine("t5", examples=12)
TestCrossAttention = machine("bart", examples=12)
TestMamba = machine("mamba", chains=True, close=3e-4, examples=5)
TestMamba2 = machine("mamba2", chains=True, close=3e-4, examples=5)
TestHybrid = machine("jamba", chains=True, close=3e-4, examples=5)
