"""A model that says what was recorded: drafters are compared on a text without a network being run.

What a drafter is worth under greedy decoding depends on the text alone, as long as it looks at nothing but text. So a
text that the real model wrote once (or that people wrote) can be decoded again with any number of drafters and
settings, and the tokens a step are those of the real run.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from unspool.core.branch import Branch
from unspool.core.compose import compose
from unspool.core.errors import InvalidInput
from unspool.core.model import Cache, Capability, LanguageModel
from unspool.core.scores import LOGITS, Request, Scores, Want
from unspool.core.sockets import Budget, Draft, Drafter, Observation, Setup
from unspool.core.tree import ROOT
from unspool.evaluation.reproductions._common import Continuation, Lab, decode_all, tokens_per_step
from unspool.speculation.drafting._corpora import own_answers

Text = tuple[Sequence[int], Sequence[int]]
"""A prompt and its continuation, token ids."""


class _Position(Cache):
    """How far a text has come; ``text`` is the prompt with its continuation."""

    def __init__(self, text: list[int]) -> None:
        self.text = text
        self.length = 0

    def commit(self, path: Sequence[int]) -> None:
        self.length += len(path)

    def fork(self) -> _Position:
        twin = _Position(self.text)
        twin.length = self.length
        return twin

    def rewind(self, length: int) -> None:
        self._check_rewind(length)
        self.length = length

    @property
    def nbytes(self) -> int:
        return 0


class Recorded(LanguageModel):
    """Continues every recorded prompt with its recorded continuation, then with the first stop token (or token 0).

    Drafters that learn from logits learn nothing here: those of a node off the recorded text are all equal.

    Args:
        like: whose vocabulary, tokenizer and stop tokens it has.
        texts: pairs of a prompt and its continuation; prompts differ from one another.
    """

    def __init__(self, like: LanguageModel, texts: Sequence[Text]) -> None:
        self.name = f"recorded-{like.name}"
        self.vocab_size = like.vocab_size
        self.context_length = None
        self.tokenizer = like.tokenizer
        self.stop_tokens = like.stop_tokens
        self.capabilities = frozenset({Capability.TREE, Capability.CACHE_EDITING})
        self.device = torch.device("cpu")
        self.dtype = torch.float32
        self._texts = {tuple(prompt): [*prompt, *continuation] for prompt, continuation in texts}
        if len(self._texts) < len(texts):
            raise InvalidInput("two of the recorded prompts are the same")
        self._end = min(like.stop_tokens, default=0)
        self._logits = torch.zeros(0, self.vocab_size)
        self._marks: list[tuple[int, int]] = []

    def new_caches(self, count: int) -> list[Cache]:
        return [_Position([]) for _ in range(count)]

    def start(self, prompts: Sequence[Sequence[int]]) -> list[tuple[Cache, list[int]]]:
        unknown = [prompt for prompt in prompts if tuple(prompt) not in self._texts]
        if unknown:
            raise InvalidInput(f"a prompt of {len(unknown[0])} tokens was not recorded")
        return [(_Position(self._texts[tuple(prompt)]), list(prompt)) for prompt in prompts]

    def score(
        self, requests: Sequence[Request], want: Want = LOGITS, layers: Sequence[int] | None = None
    ) -> list[Scores]:
        self.forwards += 1
        # One table for all passes, wiped where it was written: nobody keeps logits beyond a step.
        for mark in self._marks:
            self._logits[mark] = 0.0
        self._marks.clear()
        most = sum(len(request.tree) for request in requests)
        if len(self._logits) < most:
            self._logits = torch.zeros(most, self.vocab_size)
        answers, used = [], 0
        for request in requests:
            cache, tree = request.cache, request.tree
            assert isinstance(cache, _Position)
            rows = list(range(request.known, len(tree))) if request.rows is None else list(request.rows)
            depths, parents = tree.depths, tree.parent_list
            said: list[bool] = []
            place = {node: used + row for row, node in enumerate(rows)}
            for node, token in enumerate(tree.token_list):
                at = cache.length + depths[node]
                on_path = parents[node] == ROOT or said[parents[node]]
                said.append(on_path and at < len(cache.text) and cache.text[at] == token)
                if said[node] and node in place:
                    following = cache.text[at + 1] if at + 1 < len(cache.text) else self._end
                    self._logits[place[node], following] = 1.0
                    self._marks.append((place[node], following))
            answers.append(Scores(self._logits[used : used + len(rows)], rows))
            used += len(rows)
        return answers


# -- using it -----------------------------------------------------------------------------------------------------


class _Watched(Drafter):
    """A drafter, and the processor seconds of its drafts."""

    def __init__(self, inner: Drafter) -> None:
        super().__init__()
        self.inner = inner
        self.proposal = inner.proposal
        self.want = inner.want
        self.observes_prompt = inner.observes_prompt
        self.seconds: list[float] = []

    def bind(self, setup: Setup) -> None:
        self.inner.bind(setup)

    def propose(self, branches: Sequence[Branch], budgets: Sequence[Budget]) -> list[Draft]:
        # Not the clock on the wall: what else runs on the machine does not count.
        began = time.thread_time()
        drafts = self.inner.propose(branches, budgets)
        self.seconds.append((time.thread_time() - began) / max(len(branches), 1))
        return drafts

    def observe(self, step: Observation) -> None:
        self.inner.observe(step)

    def release(self, branch: Branch) -> None:
        self.inner.release(branch)


@dataclass(frozen=True)
class Replay:
    """What a drafter was worth on recorded texts.

    Args:
        runs: one for every text.
        draft_seconds: processor time of a draft, the mean.
    """

    runs: list[Continuation]
    draft_seconds: float

    @property
    def tau(self) -> float:
        """Tokens per step."""
        return tokens_per_step(self.runs)


def replay(like: LanguageModel, drafter: Drafter, texts: Sequence[Text]) -> Replay:
    """Decode recorded texts greedily, one after the other, to the end of each recording."""
    recorded = Recorded(like, texts)
    watched = _Watched(drafter)
    composition = compose(recorded, watched)
    runs = []
    for prompt, continuation in texts:
        runs += decode_all(composition, [prompt], new_tokens=len(continuation), stop_tokens=frozenset())
        if runs[-1].tokens != list(continuation):
            raise AssertionError("a replayed text is not the recorded one")
    return Replay(runs, sum(watched.seconds) / max(len(watched.seconds), 1))


def answers_of(lab: Lab, count: int, *, new_tokens: int) -> tuple[str, list[Text]]:
    """What the model answered to prompts that are not measured, and where that is from.

    The recorded answers, if there are any; else it is asked now, ``count`` of the packaged prompts' last ones.
    """
    found = own_answers(lab.model)
    if found:
        return f"{len(found)} recorded answers", list(found)
    lab.say(f"no answers of {lab.model.name} are recorded: {count} prompts are asked first")
    _, prompts = lab.chats(80, new_tokens=new_tokens)
    runs = decode_all(compose(lab.model), prompts[-count:], new_tokens=new_tokens, batch=count)
    return f"{count} answers given now", [(run.prompt, run.tokens) for run in runs]
