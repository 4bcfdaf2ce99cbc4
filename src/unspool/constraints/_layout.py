"""How the JSON of a schema is laid out: white space. Apart from what reads schemas, which takes long to import."""

from __future__ import annotations

from typing import Any, Literal

OPTIONS = "x-guidance"
"""Where a schema says how its texts are laid out (white space), for engines that can choose."""

Layout = Literal["any", "fixed"]

LAYOUTS: dict[str, dict[str, Any]] = {
    "any": {"whitespace_flexible": True},
    "fixed": {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False},
}
