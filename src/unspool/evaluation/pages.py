"""What pages that need nothing but a browser share: content-security policies, and data that stays data."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any


def content_hash(text: str) -> str:
    """What a content-security policy calls this inline script or style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def embedded(data: Any) -> str:
    """JSON that no HTML parser takes for anything else: neither the end of its element nor the start of another."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return encodable(text)


def encodable(text: str) -> str:
    """Lone surrogates (halves of characters) as escapes, which JSON reads: they cannot be written as UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
