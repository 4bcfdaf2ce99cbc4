"""What goes between Unspool and a supervisor: 8 bytes of length, little-endian, and that many of JSON."""

from __future__ import annotations

import json
import os
from typing import Any

_LENGTH = 8
_CHUNK = 1 << 20


def read_frame(descriptor: int) -> Any:
    """The next frame, and not a byte beyond it.

    Raises:
        EOFError: if there is none, or only a part of one.
    """
    return json.loads(_exactly(descriptor, int.from_bytes(_exactly(descriptor, _LENGTH), "little")))


def _exactly(descriptor: int, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        chunk = os.read(descriptor, min(_CHUNK, count - len(data)))
        if not chunk:
            raise EOFError
        data += chunk
    return bytes(data)


def write_frame(descriptor: int, value: Any) -> None:
    """Write a frame whole.

    Raises:
        BrokenPipeError: if nobody reads it.
    """
    body = json.dumps(value).encode()
    data = memoryview(len(body).to_bytes(_LENGTH, "little") + body)
    while data:
        data = data[os.write(descriptor, data) :]
