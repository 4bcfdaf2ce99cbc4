"""Texts under monitors: what may follow them."""

from __future__ import annotations

from typing import Any

from tests.constraints.scripted import STOP, ScriptedModel, writing

from unspool.constraints.monitor_guided_decoding import MonitorGuidedDecoding, MonitorSettings
from unspool.core.branch import Branch
from unspool.core.decode import Greedy
from unspool.core.sockets import Setup

LONGER = [b"name", b"ap", b"app", b"append", b"append(", b" os", b" sys", b".join", b"==", b"))", b"\n    ", b", "]


def model(*texts: str, longer: list[bytes] = LONGER) -> ScriptedModel:
    return ScriptedModel(writing(*texts), longer)


def allows(part: MonitorGuidedDecoding, lm: ScriptedModel, text: str) -> dict[bytes, bool] | None:
    """What is allowed behind a text, by the bytes of the tokens."""
    tokens = lm.tokenizer.encode(text)
    branch = Branch(0, 0, list(tokens), lm.new_cache(), 0, lm.device, [])
    mask = part.allowed(branch, tokens)
    if mask is None:
        return None
    found = {string: bool(ok) for string, ok in zip(lm.tokenizer.token_bytes, mask, strict=True) if string is not None}
    return found | {b"<stop>": bool(mask[STOP])}


def python(*monitors: str, tmp_path: Any, longer: list[bytes] | None = None, **more: Any) -> tuple[Any, ScriptedModel]:
    lm = model("", longer=LONGER if longer is None else longer)
    part = MonitorGuidedDecoding(MonitorSettings(monitors=monitors, project=str(tmp_path), **more))
    part.bind(Setup(lm, Greedy()))
    return part, lm


def ok(part: Any, lm: ScriptedModel, text: str, then: str) -> bool:
    """Whether ``then`` may follow, token by token."""
    tokens = lm.tokenizer.encode(text)
    branch = Branch(0, 0, list(tokens), lm.new_cache(), 0, lm.device, [])
    for token in lm.tokenizer.encode(then):
        mask = part.allowed(branch, tokens)
        if mask is not None and not mask[token]:
            return False
        tokens = [*tokens, token]
    return True
