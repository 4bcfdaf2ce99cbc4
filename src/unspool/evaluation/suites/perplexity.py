"""``perplexity``: how surprised a model is by a text, per token and per byte.

The text is tokenised as a whole and read in windows of ``window`` tokens that move by ``stride``; of each window those
tokens count that no earlier window has counted, so every token but the first has at least ``window - stride`` tokens
before it where the text has them. A smaller stride gives more context and costs more passes.

``perplexity`` is ``exp`` of the mean negative log-probability of a token and depends on the tokenizer;
``bits_per_byte`` is the sum in bits over the bytes of the text, and compares models with different ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from unspool.core.errors import InvalidInput
from unspool.evaluation.answering import Answer
from unspool.evaluation.statistics import OfSums
from unspool.evaluation.suites import Features, Item, Judged, Suite
from unspool.evaluation.suites._data import Hub, find, from_hub, read_text

if TYPE_CHECKING:
    from unspool.core.model import Tokenizer

_HUB = Hub("Salesforce/wikitext", "test", "wikitext-2-raw-v1")


class Perplexity(Suite):
    """See the module.

    Args:
        window: tokens that the model sees at once.
        stride: tokens by which the window moves, fewer than ``window``.

    Raises:
        InvalidInput: if they do not fit.
    """

    name = "perplexity"
    summary = "perplexity and bits per byte of any text (--text FILE), in windows with a stated stride"
    kind: ClassVar[Literal["generate", "score"]] = "score"
    metrics = ("perplexity", "bits_per_byte")
    files: ClassVar[tuple[str, ...]] = ("wikitext*.txt", "*.txt")
    origin = _HUB.path

    def __init__(self, window: int = 1024, stride: int = 512) -> None:
        if window < 2:
            raise InvalidInput(f"--window is {window}; a window holds at least 2 tokens")
        if not 1 <= stride < window:
            raise InvalidInput(f"--stride is {stride}; it must be from 1 to {window - 1}, less than the window")
        self.window, self.stride = window, stride

    def load(self, data: Path | None = None) -> list[Item]:
        """One item a file, with its text; :meth:`windows` cuts them."""
        path = find(self.name, self.files, data)
        if path is None:
            rows = from_hub(self.name, self.files, _HUB)
            return [_whole(_HUB.path, "".join(str(row["text"]) for row in rows))]
        return [_whole(path.name, read_text(path))]

    def load_texts(self, paths: Sequence[Path]) -> list[Item]:
        """One item for each of several files."""
        return [_whole(path.name, read_text(path)) for path in paths]

    def windows(self, items: Sequence[Item], tokenizer: Tokenizer) -> list[Item]:
        """The items in windows of tokens.

        Raises:
            InvalidInput: if a text has fewer than two tokens.
        """
        cut = []
        for item in items:
            tokens = tokenizer.encode(item.data["text"])
            if len(tokens) < 2:
                raise InvalidInput(f"{item.id} has {len(tokens)} tokens; a perplexity needs two at least")
            counted = 1  # nothing precedes the first token
            for begin in range(0, len(tokens), self.stride):
                end = min(begin + self.window, len(tokens))
                if end > counted:
                    whole, before = (tokenizer.decode(tokens[begin:to]) for to in (end, counted))
                    cut.append(
                        Item(
                            f"{item.id}#{counted}",
                            item.category,
                            (),
                            max_new_tokens=0,
                            data={
                                "tokens": tokens[begin:end],
                                "score_from": counted - begin,
                                "bytes": len(whole.encode()) - len(before.encode()),
                            },
                        )
                    )
                counted = max(counted, end)
                if end == len(tokens):
                    break
        return cut

    def judge(self, item: Item, answer: Answer) -> dict[str, float]:
        if not answer.turns:
            return {}
        turn = answer.turns[0]
        return {"nll": turn.statistics["nll"], "tokens": turn.tokens, "bytes": item.data["bytes"]}

    def over_samples(self, scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
        return {}  # the perplexity of a set is not the mean of its windows'

    def over_items(
        self, judged: Sequence[Judged], features: Features | None = None
    ) -> dict[str, Callable[[Sequence[int]], float]]:
        scores = [self.judge(one.item, one.answer) for one in judged]
        if not all(scores):
            return {}

        sums = [[score["nll"], score["tokens"], score["bytes"]] for score in scores]
        return {
            "perplexity": OfSums(sums, lambda total: math.exp(total[0] / total[1])),
            "bits_per_byte": OfSums(sums, lambda total: total[0] / math.log(2) / max(total[2], 1)),
        }


def _whole(name: str, text: str) -> Item:
    if not text:
        raise InvalidInput(f"{name} is empty; a perplexity needs some text")
    return Item(name, name, (), max_new_tokens=0, data={"text": text})


SUITE = Perplexity
