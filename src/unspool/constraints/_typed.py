"""Types as grammars: what a class, a dataclass or a function's arguments look like as JSON, and the object made of it.

pydantic knows the JSON of every annotation and makes values of it; here its schemas are closed (no other properties
than those that the type has) and laid out the way models write JSON.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

import pydantic
from pydantic.errors import PydanticUserError

from unspool.constraints._grammar import Grammar, GrammarError
from unspool.constraints._layout import LAYOUTS, OPTIONS, Layout


@dataclass(frozen=True)
class Call:
    """A function with arguments that fit its signature.

    Attributes:
        function: what is to be called.
        arguments: by name, each of the type that the signature says.
    """

    function: Callable[..., Any]
    arguments: Mapping[str, Any]

    def __call__(self) -> Any:
        """Call it."""
        return self.function(**self.arguments)

    def __str__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
        return f"{self.function.__name__}({shown})"


@dataclass(frozen=True)
class Typed:
    """A type, the grammar of its values as JSON, and the way back.

    Attributes:
        name: of the type or function.
        schema: of the JSON.
    """

    name: str
    schema: dict[str, Any]
    _read: Callable[[Any], Any]

    @classmethod
    def of(cls, given: Any) -> Typed:
        """The type of a class, an annotation, or a function's arguments.

        Raises:
            GrammarError: if it has no JSON schema, or a function's signature cannot be called by name.
        """
        if isinstance(given, Typed):
            return given
        name = getattr(given, "__name__", None) or str(given)
        try:
            if inspect.isroutine(given):
                arguments = arguments_of(given)
                schema = arguments.model_json_schema(by_alias=True)

                def read(value: Any) -> Any:
                    made = arguments.model_validate(value)
                    names = {field: info.alias or field for field, info in arguments.model_fields.items()}
                    return Call(given, {names[f]: getattr(made, f) for f in names if f in made.model_fields_set})

            else:
                adapter: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(given)
                schema = adapter.json_schema()

                def read(value: Any) -> Any:
                    return adapter.validate_python(value)
        except (PydanticUserError, pydantic.ValidationError, TypeError, AttributeError, NameError) as error:
            told = " ".join(str(error).split())[:200]
            raise GrammarError(f"{name} cannot be written as JSON: {told}") from error
        return cls(name, closed(schema), read)

    @property
    def grammar(self) -> Grammar:
        return self.laid_out("fixed")

    def laid_out(self, layout: Layout) -> Grammar:
        """The grammar with white space as the standard allows it (``any``) or one way only (``fixed``)."""
        return Grammar.json_schema({**self.schema, OPTIONS: LAYOUTS[layout]})

    def read(self, text: str) -> Any:
        """The object that a text stands for.

        Raises:
            GrammarError: if it is not the JSON of such an object; what a type checks beyond its JSON is told so.
        """
        try:
            return self._read(json.loads(text))
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the whole"
            raise GrammarError(f"the text is no {self.name}: {where}: {first['msg']}") from error
        except ValueError as error:
            raise GrammarError(f"the text is no {self.name}: it is not complete JSON ({error})") from error


def arguments_of(function: Callable[..., Any]) -> type[pydantic.BaseModel]:
    """A function's arguments as a model of pydantic; those without an annotation may be anything.

    Raises:
        GrammarError: for parameters without a name, and signatures that cannot be read.
    """
    name = getattr(function, "__name__", str(function))
    try:
        signature = inspect.signature(function)
        hints = get_type_hints(function, include_extras=True)
    except (ValueError, NameError, TypeError) as error:
        raise GrammarError(f"the signature of {name} cannot be read: {error}") from error
    fields: dict[str, Any] = {}
    for parameter in signature.parameters.values():
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL):
            raise GrammarError(f"{name} has the parameter {parameter}, which cannot be given by name")
        if parameter.kind is parameter.VAR_KEYWORD:
            continue
        default = ... if parameter.default is parameter.empty else parameter.default
        # A parameter may have a name that a model of pydantic keeps for itself.
        field: Any = pydantic.Field(default, alias=parameter.name)
        fields[f"p{len(fields)}"] = (hints.get(parameter.name, Any), field)
    config = pydantic.ConfigDict(extra="forbid")
    return pydantic.create_model(f"arguments of {name}", __config__=config, **fields)


def closed(schema: Any) -> Any:
    """A schema whose objects have no properties but those that are listed, and whose sets may repeat an element.

    A set that is read from a list drops what is repeated, so it need not be forbidden.
    """
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {}
    for key, value in schema.items():
        if key == "uniqueItems":
            continue
        if key in ("properties", "$defs", "patternProperties") and isinstance(value, dict):
            found[key] = {name: closed(one) for name, one in value.items()}
        elif key in ("default", "examples", "enum", "const"):
            found[key] = value
        else:
            found[key] = closed(value)
    if "properties" in found and "additionalProperties" not in found:
        found["additionalProperties"] = False  # type: ignore[assignment]
    return found
