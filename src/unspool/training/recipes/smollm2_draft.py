"""A one-layer draft for SmolLM2-135M that shares the target's embeddings and head.

Only the layer and the norm behind it are learned and stored; the embeddings, tied to the head, are read from the base
model when the draft is loaded. It learns from the target's own answers (``smollm2-outputs``, made first) and from
docstrings and source of the standard library. Most of the price of a step would be the head, so in training
it is cut to the most frequent tokens and a few others drawn anew for each step, which keep the rest of the vocabulary
from being forgotten. What is measured is measured with the whole head.
"""

from __future__ import annotations

from collections import Counter
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM, PreTrainedModel

from unspool.core.cards import settings
from unspool.models.answers import Answer, read_answers
from unspool.models.artefacts import find, read_card
from unspool.models.borrowed import Borrowed
from unspool.models.load import load_model
from unspool.models.transformers_lm import TransformersModel
from unspool.training import corpora, quality
from unspool.training.corpora import TokenStream
from unspool.training.loop import Optimisation, train
from unspool.training.networks import llama, rounded, save
from unspool.training.objectives import Batch, layer_states
from unspool.training.recipes import Bench, Quality, recipe

BASE = "smollm2-135m"
SHARED = ("model.embed_tokens.weight",)


@settings
class Smollm2DraftSettings:
    """Sizes, and what a batch is made of."""

    seed: Annotated[int, Field(description="of weights and batches")] = 0
    mlp: Annotated[int, Field(ge=1, description="inner width of the MLP")] = 512
    head: Annotated[int, Field(ge=1, description="most frequent tokens that are in the head in training")] = 4096
    others: Annotated[int, Field(ge=0, description="further tokens in it, drawn for each step")] = 512
    length: Annotated[int, Field(ge=8, description="tokens of a training sequence")] = 128
    batch: Annotated[int, Field(ge=2, description="sequences of a step; half of them answers")] = 8
    steps: Annotated[int, Field(ge=1, description="updates of the weights")] = 700
    learning_rate: Annotated[float, Field(gt=0, description="at its peak")] = 1e-3
    documents: Annotated[int, Field(ge=1, description="source files that are read beside the docstrings")] = 120
    minutes: Annotated[float, Field(gt=0, description="limit of time")] = 10.0


class CutHead:
    """Next token, with the softmax over some rows of the head.

    Args:
        frequent: [n] int64, tokens that are always among them.
        others: how many more are drawn for each step.
        vocabulary: number of tokens.
        rng: draws them.
    """

    def __init__(self, frequent: Tensor, others: int, vocabulary: int, rng: torch.Generator) -> None:
        self.frequent, self.others, self.vocabulary, self.rng = frequent, others, vocabulary, rng

    def __call__(self, model: PreTrainedModel, batch: Batch, share: float) -> Tensor:
        drawn = torch.randint(self.vocabulary, (self.others,), generator=self.rng)
        rows = torch.cat([self.frequent, drawn]).unique()
        place = torch.full((self.vocabulary,), -1).index_copy(0, rows, torch.arange(len(rows)))
        head = model.get_output_embeddings()
        state = model.base_model.norm(layer_states(model, batch.inputs)[-1])
        logits = functional.linear(state, head.weight[rows].detach())
        targets = place[batch.targets]  # -1 where the head has no row for it: not counted
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)


@torch.no_grad()
def greedy_agreement(model: PreTrainedModel, answers: list[Answer]) -> float:
    """Share of the tokens of greedy answers that are the arg-max of ``model`` as well, given the text before them."""
    same = count = 0
    for one in answers:
        tokens = torch.tensor([one.prompt + one.answer])
        best = quality.logits_of(model, tokens[:, :-1])
        same += int((best[0, len(one.prompt) - 1 :].argmax(-1) == tokens[0, len(one.prompt) :]).sum())
        count += len(one.answer)
    return same / count


@recipe(
    "smollm2-draft",
    summary="A one-layer draft for SmolLM2-135M that shares its embeddings and head.",
    minutes=9,
    megabytes=3.5,
    settings=Smollm2DraftSettings,
    data=lambda chosen: corpora.fingerprint(corpora.stdlib("train")) + read_card(find("smollm2-outputs"))["key"],
)
def RECIPE(chosen: Smollm2DraftSettings, bench: Bench) -> Quality:
    """Train the layer, and compare its choices with the target's on answers that it has not seen."""
    base = load_model(BASE, device="cpu", progress=False)
    assert isinstance(base, TransformersModel)
    assert base.tokenizer is not None
    hf, end = base.tokenizer.hf, base.config.eos_token_id
    draft = _untrained(base, chosen)
    answers = read_answers(find("smollm2-outputs") / "greedy.safetensors")
    held, known = answers[::8], [one for place, one in enumerate(answers) if place % 8]
    said = [one.prompt + one.answer for one in known]

    def encode(text: str) -> list[int]:
        return list(hf.encode(text, add_special_tokens=False))

    files = sorted(corpora.stdlib("train"), key=lambda document: corpora.fingerprint([document]))[: chosen.documents]
    texts = [document.text for document in (*corpora.docstrings("train", least=200), *files)]
    library = corpora.pack(texts, encode, end, bench.scratch / "library", base.vocab_size)
    spoken = corpora.pack_tokens(said, end, bench.scratch / "answers", base.vocab_size)
    bench.say(
        f"{len(spoken):,} tokens of answers, {len(library):,} of the library, {draft.num_parameters():,} parameters"
    )
    frequent = _frequent([spoken, library], chosen.head)
    rng = torch.Generator().manual_seed(chosen.seed + 1)

    def batches(step: int, share: float) -> Batch:
        half = chosen.batch // 2
        some = [stream.random(half, chosen.length + 1, rng) for stream in (spoken, library)]
        return Batch(torch.cat(some))

    learned = train(
        draft,
        batches,
        CutHead(frequent, chosen.others, base.vocab_size, torch.Generator().manual_seed(chosen.seed + 2)),
        Optimisation(steps=chosen.steps, learning_rate=chosen.learning_rate, seconds=60 * chosen.minutes),
        progress=bench.progress,
        title="draft",
        watch=lambda: f"agreement {greedy_agreement(draft, held[:10]):.3f}",
    )
    rounded(draft.model.layers)
    rounded(draft.model.norm)
    save(draft, None, bench.folder, without=SHARED)
    Borrowed(BASE, SHARED).write(bench.folder)
    own = sum(weight.numel() for weight in draft.parameters() if weight.requires_grad)
    return {
        "parameters_of_its_own": own,
        "held_out_answers": len(held),
        "greedy_agreement": round(greedy_agreement(draft, held), 4),
        "head_in_training": len(frequent) + chosen.others,
        "training": learned.as_dict(),
    }


def _untrained(base: TransformersModel, chosen: Smollm2DraftSettings) -> LlamaForCausalLM:
    """One layer of the base's shape between the base's embeddings, which stay as they are, and its norm."""
    config = base.config
    draft = llama(
        vocabulary=base.vocab_size,
        layers=1,
        hidden=config.hidden_size,
        mlp=chosen.mlp,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        context=config.max_position_embeddings,
        end=config.eos_token_id,
        seed=chosen.seed,
        rope_theta=config.rope_parameters["rope_theta"],
    )
    draft.config.bos_token_id = config.bos_token_id
    with torch.no_grad():
        draft.model.embed_tokens.weight.copy_(base.model.get_input_embeddings().weight)
        draft.model.norm.weight.copy_(base.model.base_model.norm.weight)
    draft.model.embed_tokens.weight.requires_grad_(False)
    return draft


def _frequent(streams: list[TokenStream], count: int) -> Tensor:
    """The most frequent tokens of the streams, each of which counts alike; [n] int64, n at most ``count``."""
    shares: Counter[int] = Counter()
    for stream in streams:
        for token, times in Counter(stream.tokens.tolist()).items():
            shares[token] += times / len(stream)  # type: ignore[assignment]
    return torch.tensor(sorted(token for token, _ in shares.most_common(count)))
