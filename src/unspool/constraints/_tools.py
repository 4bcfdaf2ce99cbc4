"""Tools: what a model may call. Read from Python functions, from lists of tools in JSON, and from OpenAPI files."""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unspool.constraints._files import read_text
from unspool.constraints._grammar import GrammarError
from unspool.constraints._schema import prepare
from unspool.constraints._typed import Call, Typed, closed

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.:/-]*")
_METHODS = ("get", "put", "post", "delete", "patch", "head", "options")


@dataclass(frozen=True)
class Tool:
    """One tool.

    Attributes:
        name: by which it is called.
        parameters: JSON schema of an object: its arguments by name, in the order in which they are written.
        description: for people, and for prompts.
        function: what is called; ``None`` where the caller does it.
    """

    name: str
    parameters: Mapping[str, Any] = field(hash=False)
    description: str = ""
    function: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise GrammarError(f"{self.name!r} is no name of a tool: letters, digits and _ . : / - after a letter")

    @classmethod
    def of(cls, given: Tool | Callable[..., Any] | Mapping[str, Any]) -> Tool:
        """A tool; a function; or a tool as JSON describes it.

        JSON is ``{"name", "description", "parameters"}``, as such or within ``{"type": "function", "function": ...}``;
        ``inputSchema`` and ``input_schema`` are read like ``parameters``.

        Raises:
            GrammarError: for anything else, and for functions whose arguments have no JSON.
        """
        if isinstance(given, Tool):
            return given
        if callable(given):
            name = getattr(given, "__name__", "")
            typed = Typed.of(given)
            return cls(name, typed.schema, inspect.getdoc(given) or "", given)
        if isinstance(given, Mapping):
            described = given.get("function", given)
            if isinstance(described, Mapping) and isinstance(described.get("name"), str):
                schema = next(
                    (described[key] for key in ("parameters", "inputSchema", "input_schema") if described.get(key)),
                    {"type": "object", "properties": {}},
                )
                if isinstance(schema, Mapping):
                    return cls(described["name"], closed(dict(schema)), str(described.get("description", "")))
        raise GrammarError(f"a tool is a function, or an object with name and parameters; this is {str(given)[:80]}")

    def prepared(self) -> dict[str, Any]:
        """Its arguments' schema in the words that machines are built from.

        Raises:
            GrammarError: if it cannot be used.
        """
        try:
            schema: dict[str, Any] = json.loads(prepare(dict(self.parameters)).text)
        except GrammarError as error:
            raise GrammarError(f"the arguments of {self.name}: {error}") from error
        return schema

    def call(self, arguments: Mapping[str, Any]) -> Call | None:
        """The call with these arguments, each made what the signature says; ``None`` if there is no function.

        Raises:
            GrammarError: if they do not fit after all.
        """
        if self.function is None:
            return None
        made: Call = Typed.of(self.function).read(json.dumps(arguments))
        return made

    @property
    def signature(self) -> str:
        """How it is called, in one line, for prompts."""
        required = self.parameters.get("required", ())
        shown = [
            f"{name}: {_kind(inner)}" + ("" if name in required else " = ...")
            for name, inner in self.parameters.get("properties", {}).items()
        ]
        return f"{self.name}({', '.join(shown)})"


def _kind(node: Any) -> str:
    if not isinstance(node, Mapping):
        return "any"
    if "enum" in node:
        return "|".join(json.dumps(value) for value in node["enum"][:8])
    kind = node.get("type", node.get("format", "any"))
    return str("|".join(kind) if isinstance(kind, list) else kind)


def tools_of(given: Iterable[Tool | Callable[..., Any] | Mapping[str, Any]]) -> tuple[Tool, ...]:
    """Several tools.

    Raises:
        GrammarError: if there is none, or two have one name.
    """
    found = tuple(Tool.of(one) for one in given)
    if not found:
        raise GrammarError("there is no tool: give at least one function or description")
    names = [tool.name for tool in found]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise GrammarError(f"two tools are called {twice!r}")
    return found


def read_tools(place: str) -> tuple[Tool, ...]:
    """Tools out of a file: ``tools.py:first,second`` (all public functions without names), a JSON list of tools, or an
    OpenAPI document in JSON or YAML.

    Raises:
        GrammarError: with the place, if it cannot be read or holds none.
    """
    file, colon, names = place.rpartition(":")
    if not colon or "/" in names or "\\" in names:
        file, names = place, ""
    path = Path(file)
    if path.suffix == ".py":
        return tools_of(_functions(path, [name.strip() for name in names.split(",") if name.strip()]))
    content = read_text(path, "--tools")
    try:
        described = _yaml(content) if path.suffix in (".yaml", ".yml") else json.loads(content)
    except ValueError as error:
        raise GrammarError(f"it is no JSON: {error}", f"--tools {path}") from error
    try:
        if isinstance(described, Mapping) and ("openapi" in described or "swagger" in described):
            found = openapi_tools(described)
        else:
            listed = described.get("tools", [described]) if isinstance(described, Mapping) else described
            if not isinstance(listed, list):
                raise GrammarError("a list of tools is expected")
            found = tools_of(listed)
    except GrammarError as error:
        raise GrammarError(str(error), f"--tools {path}") from error
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if missing := [name for name in wanted if name not in {tool.name for tool in found}]:
        raise GrammarError(f"there is no tool {missing[0]!r}; there are {_some(found)}", f"--tools {path}")
    return tuple(tool for tool in found if not wanted or tool.name in wanted)


def _some(tools: Sequence[Tool]) -> str:
    return ", ".join(tool.name for tool in tools[:10]) + (", ..." if len(tools) > 10 else "")


def _yaml(content: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(content)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _functions(path: Path, names: list[str]) -> list[Callable[..., Any]]:
    where = f"--tools {path}"
    read_text(path, "--tools")
    described = importlib.util.spec_from_file_location(f"_tools_{path.stem}", path)
    assert described is not None
    assert described.loader is not None
    module = importlib.util.module_from_spec(described)
    # Annotations of dataclasses are looked up in the module by name.
    sys.modules[described.name] = module
    try:
        described.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the user's own program may raise anything
        raise GrammarError(f"it cannot be imported: {type(error).__name__}: {error}", where) from error
    public = {
        name: one
        for name, one in vars(module).items()
        if inspect.isfunction(one) and one.__module__ == described.name and not name.startswith("_")
    }
    if missing := [name for name in names if not callable(vars(module).get(name))]:
        raise GrammarError(f"there is no function {missing[0]!r}; there are {', '.join(public) or 'none'}", where)
    found = [vars(module)[name] for name in names] if names else list(public.values())
    if not found:
        raise GrammarError("there is no public function in it", where)
    return found


def openapi_tools(document: Mapping[str, Any]) -> tuple[Tool, ...]:
    """One tool for each operation of an OpenAPI document (3.x, or Swagger 2): its parameters, and its body as ``body``.

    Raises:
        GrammarError: if there is no operation, or a parameter cannot be read.
    """
    found = []
    for route, item in (document.get("paths") or {}).items():
        shared = item.get("parameters", []) if isinstance(item, Mapping) else []
        for method in _METHODS:
            operation = item.get(method) if isinstance(item, Mapping) else None
            if isinstance(operation, Mapping):
                found.append(_operation(document, route, method, operation, shared))
    return tools_of(found)


def _operation(
    document: Mapping[str, Any], route: str, method: str, operation: Mapping[str, Any], shared: Sequence[Any]
) -> Tool:
    where = f"{method.upper()} {route}"
    name = operation.get("operationId") or re.sub(r"[^A-Za-z0-9]+", "_", f"{method}_{route}").strip("_")
    properties: dict[str, Any] = {}
    required = []
    for parameter in (*shared, *operation.get("parameters", ())):
        parameter = _followed(document, parameter, where)
        if not isinstance(parameter, Mapping) or "name" not in parameter:
            raise GrammarError("a parameter has no name", where)
        inner = parameter.get("schema") or {
            k: parameter[k] for k in ("type", "enum", "format", "items") if k in parameter
        }
        properties[parameter["name"]] = inner
        if parameter.get("required"):
            required.append(parameter["name"])
    body = _followed(document, operation.get("requestBody", {}), where)
    content = body.get("content", {}) if isinstance(body, Mapping) else {}
    schema = next((one.get("schema", {}) for kind, one in content.items() if "json" in kind), None)
    if schema is not None:
        properties["body"] = schema
        if body.get("required"):
            required.append("body")
    definitions = (document.get("components") or {}).get("schemas") or document.get("definitions") or {}
    parameters = _plain({"type": "object", "properties": properties, "required": required, "$defs": definitions})
    description = operation.get("summary") or operation.get("description") or ""
    return Tool(re.sub(r"[^A-Za-z0-9_.:/-]", "_", str(name)), closed(parameters), str(description))


def _followed(document: Mapping[str, Any], node: Any, where: str) -> Any:
    for _ in range(16):
        if not isinstance(node, Mapping) or "$ref" not in node:
            return node
        at: Any = document
        for part in str(node["$ref"]).removeprefix("#/").split("/"):
            at = at.get(part) if isinstance(at, Mapping) else None
        if at is None:
            raise GrammarError(f"{node['$ref']!r} leads to nothing in the document", where)
        node = at
    raise GrammarError("references lead in a circle", where)


def _plain(node: Any) -> Any:
    """A schema of OpenAPI as one of JSON Schema: where components lie, and ``nullable``."""
    if isinstance(node, list):
        return [_plain(one) for one in node]
    if not isinstance(node, Mapping):
        return node
    found = {
        key: _plain(value) for key, value in node.items() if key not in ("nullable", "discriminator", "xml", "example")
    }
    if isinstance(found.get("$ref"), str):
        name = found["$ref"].removeprefix("#/components/schemas/").removeprefix("#/definitions/")
        found["$ref"] = f"#/$defs/{name}"
    if node.get("nullable") is True:
        return {"anyOf": [found, {"type": "null"}]}
    return found
