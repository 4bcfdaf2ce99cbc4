"""JSONSchemaBench: JSON schemas from the wild; an answer is right if it is JSON that obeys the schema.

Geng et al., JSONSchemaBench: A Rigorous Benchmark of Structured Outputs for Language Models, 2025. The prompt is the
benchmark's sentence and the schema, without solved examples; the benchmark puts the sentence into the system's turn,
here it stands before the schema in the user's, since not every model has such a turn. The schema is as it is in the
data: nothing is made stricter. A schema that refers to what is not in it is left out, answers to one that jsonschema
finds invalid are not judged; :attr:`JsonSchemaBench.unusable` names them.

The data is a ``tar.gz`` with a folder for each part (``Github_easy/o1.json``), such a folder unpacked, JSON Lines with
the fields ``json_schema`` and ``unique_id``, or the hub's.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar
from urllib.parse import unquote

from unspool.core.errors import InvalidInput
from unspool.evaluation.answering import Answer
from unspool.evaluation.scoring import InvalidSchema, json_validity, optional
from unspool.evaluation.suites import Item, Suite
from unspool.evaluation.suites._data import Hub, field, find, from_hub, read_records

_HUB = Hub("epfl-dlab/JSONSchemaBench", "test", "default")
_PROMPT = "You need to generate a JSON object that matches the schema below.\n\n{schema}"


class JsonSchemaBench(Suite):
    """See the module.

    Attributes:
        unusable: ids of schemas that cannot be judged by, with the reason.
    """

    name = "jsonschemabench"
    summary = "JSON that has to obey a schema, judged by the jsonschema library (Geng et al., 2025)"
    metrics = ("valid", "json")
    files: ClassVar[tuple[str, ...]] = (
        "jsonschemabench.tar.gz", "jsonschemabench*.tar.gz", "jsonschemabench*.tgz", "jsonschemabench*.jsonl",
        "jsonschemabench",
    )  # fmt: skip
    origin = _HUB.path

    def __init__(self) -> None:
        self.unusable: dict[str, str] = {}

    def load(self, data: Path | None = None) -> list[Item]:
        optional("jsonschema", "jsonschema", self.name)
        self.unusable = {}
        items = []
        for name, category, schema in self._schemas(data):
            if beyond := _beyond(schema):
                self.unusable[name] = f"it refers to {beyond}, which is not in it"
                continue
            items.append(
                Item(
                    name,
                    category,
                    (_PROMPT.format(schema=json.dumps(schema)),),
                    max_new_tokens=512,
                    data={"schema": schema},
                )
            )
        if not items:
            raise InvalidInput(f"there is no usable schema in the data of {self.name}")
        return items

    def judge(self, item: Item, answer: Answer) -> dict[str, float]:
        try:
            return json_validity(answer.text, item.data["schema"])
        except InvalidSchema as error:
            self.unusable[item.id] = str(error)
            return {}

    def notes(self) -> list[str]:
        if not self.unusable:
            return []
        name, reason = next(iter(self.unusable.items()))
        return [f"{len(self.unusable)} schemas cannot be judged by ({name}: {reason[:100]})"]

    def _schemas(self, data: Path | None) -> Iterator[tuple[str, str, Any]]:
        """(id, category, schema) in a fixed order."""
        path = data if data is not None and _unpacked(data) else find(self.name, self.files, data)
        if path is None:
            for row in from_hub(self.name, self.files, _HUB):
                name = str(row["unique_id"])
                yield name, name.split("---")[0], json.loads(row["json_schema"])
        elif path.is_dir():
            for file in sorted(path.glob("**/*.json")):
                yield from _schema(file.relative_to(path).as_posix(), file.read_bytes())
        elif path.name.endswith((".tar.gz", ".tgz", ".tar")):
            yield from _packed(path)
        else:
            for where, row in read_records(path):
                schema = field(row, "json_schema", (str, dict), where)
                name = str(row.get("unique_id", where))
                yield name, name.split("---")[0], json.loads(schema) if isinstance(schema, str) else schema


def _beyond(schema: Any) -> str | None:
    """A reference of a schema to a place that is not in it, or to another document, which nobody fetches."""
    identified = any("$id" in one or "id" in one or "$anchor" in one for one in _objects(schema) if one is not schema)
    for one in _objects(schema):
        target = one.get("$ref")
        if not isinstance(target, str):
            continue
        if not target.startswith("#"):
            if not identified and not target.startswith("http://json-schema.org/draft"):
                return target
        elif target.startswith("#/") and not identified and not _leads(schema, target):
            return target
    return None


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for below in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _objects(below)


def _leads(schema: Any, pointer: str) -> bool:
    """Whether a JSON pointer leads to something."""
    at = schema
    for part in unquote(pointer[2:]).split("/"):
        part = part.replace("~1", "/").replace("~0", "~")
        if isinstance(at, list) and part.isdigit() and int(part) < len(at):
            at = at[int(part)]
        elif isinstance(at, dict) and part in at:
            at = at[part]
        else:
            return False
    return True


def _unpacked(folder: Path) -> bool:
    """Whether a folder holds schemas itself: files of JSON in folders below it."""
    return folder.is_dir() and next(folder.glob("*/*.json"), None) is not None


def _packed(path: Path) -> Iterator[tuple[str, str, Any]]:
    try:
        with tarfile.open(path) as packed:
            members = sorted(
                (member for member in packed if member.isfile() and member.name.endswith(".json")), key=lambda m: m.name
            )
            for member in members:
                file = packed.extractfile(member)
                assert file is not None
                yield from _schema(member.name, file.read())
    except (tarfile.TarError, OSError, EOFError) as error:
        raise InvalidInput(f"{path} cannot be read as a tar file: {error}") from error


def _schema(name: str, content: bytes) -> Iterator[tuple[str, str, Any]]:
    place = PurePosixPath(name)
    if place.name.startswith("."):  # what some systems put beside every file
        return
    try:
        schema = json.loads(content)
    except ValueError as error:
        raise InvalidInput(f"{name} is not JSON: {error}") from error
    yield place.with_suffix("").as_posix(), place.parent.name or "schema", schema


SUITE = JsonSchemaBench
