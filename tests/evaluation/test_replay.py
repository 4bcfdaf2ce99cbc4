from __future__ import annotations

import pytest
from tests.evaluation.small import small_engine

from unspool.core.compose import compose
from unspool.core.errors import InvalidInput
from unspool.core.sockets import Drafter
from unspool.evaluation.reproductions._common import decode_all
from unspool.evaluation.reproductions._replay import Recorded, replay
from unspool.speculation.drafting._suffix_array import SuffixArray
from unspool.speculation.drafting.aded import Aded, AdedSettings
from unspool.speculation.drafting.codeswift import CodeSwift, CodeSwiftSettings
from unspool.speculation.drafting.prompt_lookup import PromptLookup


def drafters(corpus: SuffixArray) -> list[Drafter]:
    return [
        PromptLookup(),
        Aded(AdedSettings(corpus=None, nodes=8)),
        CodeSwift(CodeSwiftSettings(skip=0, nodes=8), repository=SuffixArray(), corpus=corpus),
    ]


@pytest.mark.parametrize("place", range(3))
def test_a_replayed_text_takes_the_steps_of_the_real_one(place: int) -> None:
    lm = small_engine().model
    prompts = [[1, 2, 3], [9, 9, 9], [40, 41, 40, 41]]
    prompts += [[0, *prompt] for prompt in prompts]
    plain = decode_all(compose(lm), prompts, new_tokens=40)
    corpus = SuffixArray.build([run.tokens for run in plain], lm.vocab_size)
    real = decode_all(compose(lm, drafters(corpus)[place]), prompts, new_tokens=40)
    done = replay(lm, drafters(corpus)[place], [(run.prompt, run.tokens) for run in plain])
    assert [run.tokens for run in done.runs] == [run.tokens for run in plain] == [run.tokens for run in real]
    assert [run.statistics.steps for run in done.runs] == [run.statistics.steps for run in real]
    assert place < 2 or done.tau > 2
    assert done.draft_seconds > 0


def test_a_record_says_what_was_recorded() -> None:
    lm = small_engine().model
    texts = [([1, 2], [3, 4, 5]), ([1], [7, 7])]
    recorded = Recorded(lm, texts)
    both = decode_all(compose(recorded), [[1, 2], [1]], new_tokens=5, batch=2)
    end = min(lm.stop_tokens)
    assert [run.tokens for run in both] == [[3, 4, 5, end], [7, 7, end]]
    with pytest.raises(InvalidInput, match="was not recorded"):
        decode_all(compose(recorded), [[2]], new_tokens=5)
    with pytest.raises(InvalidInput, match="are the same"):
        Recorded(lm, [*texts, ([1], [2])])
