"""The journal of a run: one line for everything that was done, written at once, so that a stopped run can go on.

The first line says which run it is (its fingerprint); a line ``{"arms": ...}`` follows, then one row a line. A line
that a kill cut off is dropped when the journal is read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unspool.core.errors import InvalidInput

_VERSION = 1


class Journal:
    """Rows of a run on disk.

    Args:
        path: of the journal; made if it is not there.
        fingerprint: which run this is, by name.

    Attributes:
        path: of the file.
        arms, absent: what the arms said about themselves, if an earlier part of the run got that far.
        resumed: rows that were there.

    Raises:
        InvalidInput: if the file is the journal of another run (the message names what differs), is no journal, or
            cannot be read or written.
    """

    def __init__(self, path: Path, fingerprint: Mapping[str, Any]) -> None:
        self.path = path
        self.arms: dict[str, dict[str, Any]] = {}
        self.absent: list[dict[str, str]] = []
        self._rows: dict[tuple[str, str, int], dict[str, Any]] = {}
        head = {"journal": _VERSION, "run": json.loads(json.dumps(dict(fingerprint)))}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            whole = self._read(head) if path.exists() else 0
            self._file = path.open("r+b" if path.exists() else "w+b")
            # What a kill left unfinished goes, the next line begins where the last whole one ends.
            self._file.truncate(whole)
            self._file.seek(whole)
            if not whole:
                self._write(head)
        except OSError as error:
            raise InvalidInput(f"the journal {path} cannot be used: {error.strerror or error}") from error
        self.resumed = len(self._rows)

    def rows(self) -> dict[tuple[str, str, int], dict[str, Any]]:
        """The rows of the journal by (item, arm, sample)."""
        return dict(self._rows)

    def note_arms(self, arms: Mapping[str, Mapping[str, Any]], absent: Sequence[Mapping[str, str]]) -> None:
        """Keep what the arms say about themselves, and which could not take part."""
        self.arms = {name: dict(about) for name, about in arms.items()}
        self.absent = [dict(one) for one in absent]
        self._write({"arms": self.arms, "absent": self.absent})

    def append(self, row: Mapping[str, Any]) -> None:
        """Write down a row; it is on disk when this returns."""
        self._write({"row": dict(row)})

    def close(self) -> None:
        """Leave the journal for a later run."""
        self._file.close()

    def remove(self) -> None:
        """The run is complete and its results are written: the journal has served."""
        self._file.close()
        self.path.unlink(missing_ok=True)

    def _write(self, line: Mapping[str, Any]) -> None:
        try:
            self._file.write(json.dumps(line, ensure_ascii=True).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise InvalidInput(f"the journal {self.path} cannot be written: {error.strerror or error}") from error

    def _read(self, head: Mapping[str, Any]) -> int:
        """Take in the file; the length of its whole lines."""
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        lines = content[:whole].splitlines()
        if not lines:
            if content:
                raise InvalidInput(f"{self.path} is there and is no journal; move it, or name another --out")
            return 0
        try:
            first, *rest = [json.loads(line) for line in lines]
            if first["journal"] != _VERSION:
                raise ValueError(f"version {first['journal']}")
            was = first["run"]
            for line in rest:
                if "arms" in line:
                    self.arms, self.absent = line["arms"], line["absent"]
                else:
                    row = line["row"]
                    self._rows[(row["item"], row["arm"], row["sample"])] = row
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidInput(
                f"{self.path} is there and is no journal ({error}); move it, or name another --out"
            ) from error
        if was != head["run"] and not self._rows:  # that run came to nothing; this one begins its journal anew
            self.arms, self.absent = {}, []
            return 0
        if was != head["run"]:
            differing = sorted(key for key in {*was, *head["run"]} if was.get(key) != head["run"].get(key))
            raise InvalidInput(
                f"{self.path} holds {len(self._rows)} finished answers of another run, which differs in "
                f"{', '.join(differing)}. Give that command to go on with it, --fresh to drop it, or another --out"
            )
        return whole
