"""Scores of single answers, as the field defines them. Text in, number out; no model.

Libraries that define a measure are used for it (rouge-score, sacrebleu, jsonschema) and imported when it is asked for:
``pip install "unspool[eval]"`` brings them.
"""

from __future__ import annotations

import json
import re
import string
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unspool.core.errors import InvalidInput
from unspool.evaluation.statistics import OfSums

_NUMBER = re.compile(r"-?(?:\d[\d,]*)?\.?\d+")
_STATED = re.compile(r"####\s*\$?\s*(-?[\d,.]*\d)")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WORDS = re.compile(r"\w+|[^\w\s]")


class InvalidSchema(InvalidInput):
    """A JSON schema that no JSON can be judged by."""


def optional(module: str, package: str, what: str) -> Any:
    """A library that only some measures need.

    Raises:
        InvalidInput: if it is not installed, with the line that installs it.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise InvalidInput(f'{what} needs {package}, which is not installed: pip install "unspool[eval]"') from error


# -- right or wrong -----------------------------------------------------------------------------------------------


def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that at least one of ``k`` samples passes, of ``n`` drawn of which ``c`` passed.

    The unbiased estimator ``1 - C(n-c, k) / C(n, k)``, as the product that does not overflow (Chen et al., Evaluating
    Large Language Models Trained on Code, 2021, section 2.1).

    Raises:
        InvalidInput: unless ``0 <= c <= n`` and ``1 <= k <= n``.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise InvalidInput(f"pass@k needs 0 <= c <= n and 1 <= k <= n; got n={n}, c={c}, k={k}")
    if n - c < k:
        return 1.0
    chance = 1.0
    for i in range(n - c + 1, n + 1):
        chance *= 1 - k / i
    return 1 - chance


def final_number(text: str) -> str | None:
    """The number that an answer to a word problem states: after the last ``####``, else the last one in the text.

    (Cobbe et al., Training Verifiers to Solve Math Word Problems, 2021, for the mark; the last number is what later
    work takes of answers without it.) In plain digits, so that ``1,000.0`` and ``1000`` are equal.
    """
    stated = _STATED.findall(text)
    found = stated[-1] if stated else next(iter(reversed(_NUMBER.findall(text))), None)
    if found is None:
        return None
    try:
        number = Decimal(found.replace(",", "").rstrip("."))
    except InvalidOperation:
        return None
    plain = f"{number:f}"
    plain = plain.rstrip("0").rstrip(".") if "." in plain else plain
    return "0" if plain in ("-0", "") else plain


def same_number(text: str, expected: str) -> float:
    """1 if both state the same final number (see :func:`final_number`), else 0."""
    wanted = final_number(expected)
    return float(wanted is not None and final_number(text) == wanted)


def normalised(text: str) -> str:
    """Lower case, without punctuation, articles and superfluous space (Rajpurkar et al., SQuAD, 2016)."""
    kept = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(_ARTICLES.sub(" ", kept).split())


def exact_match(text: str, answers: Sequence[str]) -> float:
    """1 if the normalised text is one of the normalised answers, else 0 (Rajpurkar et al., 2016)."""
    return float(normalised(text) in {normalised(answer) for answer in answers})


def token_f1(text: str, answers: Sequence[str]) -> float:
    """F1 of the words that text and answer share, the best over the answers (Rajpurkar et al., 2016)."""
    return max((_f1(normalised(text).split(), normalised(answer).split()) for answer in answers), default=0.0)


def _f1(said: list[str], wanted: list[str]) -> float:
    if not said or not wanted:
        return float(said == wanted)
    shared = sum((Counter(said) & Counter(wanted)).values())
    return 2 * shared / (len(said) + len(wanted))


def contains_answer(text: str, answers: Sequence[str]) -> float:
    """1 if a normalised answer occurs in the normalised text as whole words, else 0.

    For chat models, which answer in sentences (Mallen et al., When Not to Trust Language Models, 2023, section 3).
    """
    said = f" {normalised(text)} "
    return float(any(f" {found} " in said for answer in answers if (found := normalised(answer))))


# -- nearness to a reference --------------------------------------------------------------------------------------


def rouge(text: str, references: Sequence[str]) -> dict[str, float]:
    """ROUGE-1, -2 and -L, F-measure with stemming, the best over the references (Lin, 2004; rouge-score)."""
    scorer = optional("rouge_score.rouge_scorer", "rouge-score", "ROUGE").RougeScorer(
        ["rouge1", "rouge2", "rougeL"], use_stemmer=True
    )
    scored = [scorer.score(reference, text) for reference in references]
    return {name: max(one[name].fmeasure for one in scored) for name in ("rouge1", "rouge2", "rougeL")}


def corpus_bleu(texts: Sequence[str], references: Sequence[Sequence[str]]) -> OfSums:
    """BLEU of a whole set, 0 to 100 (Papineni et al., 2002; sacrebleu's defaults, Post, 2018), of any of its segments.

    Args:
        texts: one a segment.
        references: for each segment one or several; a segment with none adds nothing.
    """
    bleu = optional("sacrebleu", "sacrebleu", "BLEU").BLEU()
    orders = bleu.max_ngram_order
    columns = []
    for text, given in zip(texts, references, strict=True):
        if given:
            told = bleu.corpus_score([text], [[one] for one in given])
            columns.append([*told.counts, *told.totals, told.sys_len, told.ref_len])
        else:
            columns.append([0] * (2 * orders + 2))

    def of(sums: NDArray[np.float64]) -> float:
        counts = [int(number) for number in sums]
        return float(
            bleu.compute_bleu(
                counts[:orders], counts[orders : 2 * orders], counts[-2], counts[-1], smooth_method="exp"
            ).score
        )

    return OfSums(columns, of)


def sentence_chrf(text: str, references: Sequence[str]) -> float:
    """chrF2 of one segment, 0 to 100 (sacrebleu)."""
    return float(optional("sacrebleu", "sacrebleu", "chrF").sentence_chrf(text, list(references)).score)


# -- repetition and variety ---------------------------------------------------------------------------------------


def words(text: str) -> list[str]:
    """Words and marks: the units of the repetition measures, the same for every model and peer."""
    return _WORDS.findall(text)


def self_bleu(texts: Sequence[str], *, most: int = 50) -> list[float]:
    """BLEU-4 of each text with the others as references, 0 to 100; high where a set says the same again and again.

    Zhu et al., Texygen, 2018. Smoothed exponentially (sacrebleu's default), because short texts share no 4-gram.

    Args:
        texts: of the set; a text alone has no others and gets no number.
        most: of the other texts as references: those that follow it, in a circle. More cost time and raise the number.
    """
    if len(texts) < 2:
        return []
    sacrebleu = optional("sacrebleu", "sacrebleu", "self-BLEU")
    scores = []
    for place, text in enumerate(texts):
        others = [texts[(place + step) % len(texts)] for step in range(1, min(len(texts) - 1, most) + 1)]
        scores.append(float(sacrebleu.sentence_bleu(text, others, smooth_method="exp").score))
    return scores


# -- JSON ---------------------------------------------------------------------------------------------------------


def json_validity(text: str, schema: Any) -> dict[str, float]:
    """``json``: whether an answer parses; ``valid``: whether it also obeys the schema (jsonschema, the draft it names).

    A fenced block is taken out of its fence, as chat models write it. Formats (dates, addresses) are checked.

    Raises:
        InvalidSchema: if the schema is none.
    """
    jsonschema = optional("jsonschema", "jsonschema", "the validity of JSON")
    from unspool.evaluation.extraction import fenced

    blocks = fenced(text)
    try:
        value = json.loads(blocks[0].text if blocks else text)
    except (ValueError, RecursionError):
        return {"valid": 0.0, "json": 0.0}
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    referencing = optional("referencing", "jsonschema", "the validity of JSON")
    try:
        kind.check_schema(schema)
        # An empty registry: a reference to another document is not fetched from a network.
        checker = kind(schema, registry=referencing.Registry(), format_checker=kind.FORMAT_CHECKER)
        return {"valid": float(next(checker.iter_errors(value), None) is None), "json": 1.0}
    except (jsonschema.SchemaError, referencing.exceptions.Unresolvable) as error:
        raise InvalidSchema(f"the schema cannot be judged by: {error}"[:300]) from error
