"""Method cards and settings: what a method is, declared where it is written."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, TypeVar, Union, cast, dataclass_transform, get_args, get_origin, get_type_hints

import pydantic
from pydantic.dataclasses import dataclass as validated_dataclass

from unspool.core.errors import InvalidInput
from unspool.core.model import Capability

T = TypeVar("T")


class Kind(StrEnum):
    """The socket that a method fills."""

    DRAFTER = "drafter"
    CONTROLLER = "controller"
    VERIFIER = "verifier"
    SAMPLER = "sampler"
    CONSTRAINT = "constraint"
    CACHE_POLICY = "cache policy"
    SEARCH = "search"
    READER = "reader"
    SCHEDULE = "schedule"


@dataclass(frozen=True)
class Card:
    """What everybody may know of a method: the command line, the docs' table and the contract tests read it here.

    Args:
        slug: the name users type.
        name: the name in prose.
        kind: the socket it fills.
        summary: one sentence in plain words.
        paper: title and year of the source; empty for a baseline that is common knowledge.
        claim: the paper's claim that ``unspool reproduce`` tests; empty where there is none.
        lossless: whether the output is exactly that of the model under the chosen sampler. A sampler is lossless in
            this sense only if it is the plain one; those that change the distribution on purpose are not.
        needs: capabilities a model must have.
        models: roles of further models that the method needs (``"draft"``).
    """

    slug: str
    name: str
    kind: Kind
    summary: str
    paper: str = ""
    claim: str = ""
    lossless: bool = False
    needs: frozenset[Capability] = frozenset()
    models: tuple[str, ...] = ()


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, pydantic.Field))
def settings(cls: type[T]) -> type[T]:
    """Make a frozen dataclass whose values are checked when it is made.

    Ranges and help texts are written once, as ``Annotated[int, pydantic.Field(ge=1, description="...")]``; the command
    line and the server read them from there.
    """
    config = pydantic.ConfigDict(extra="forbid", arbitrary_types_allowed=True)
    return cast(type[T], validated_dataclass(frozen=True, config=config)(cls))


@settings
class NoSettings:
    """For methods with nothing to set."""


@dataclass(frozen=True)
class SettingField:
    """One setting as users see it."""

    name: str
    type: Any
    default: Any
    help: str

    @property
    def type_name(self) -> str:
        return _type_name(self.type)


def setting_fields(cls: type) -> list[SettingField]:
    """The fields of a settings class, with types, defaults and help texts."""
    hints = get_type_hints(cls, include_extras=True)
    fields = []
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        metadata = getattr(hint, "__metadata__", ())
        help_text = next((m.description for m in metadata if getattr(m, "description", None)), "")
        bare = get_args(hint)[0] if metadata else hint
        default = field.default if field.default is not dataclasses.MISSING else None
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        fields.append(SettingField(field.name, bare, default, help_text))
    return fields


def make_settings(cls: type[T], values: Mapping[str, Any], owner: str) -> T:
    """Settings from names and values; strings (from a command line) are converted to the declared types.

    Raises:
        InvalidInput: for an unknown name or a value of the wrong type or range, with what would be valid.
    """
    fields = {field.name: field for field in setting_fields(cls)}
    for name in values:
        if name not in fields:
            valid = ", ".join(f"{f.name} ({f.type_name}, default {f.default!r})" for f in fields.values())
            raise InvalidInput(f"{owner} has no setting {name!r}; it has {valid or 'none'}")
    converted = {
        name: _from_text(value, fields[name].type) if isinstance(value, str) else value
        for name, value in values.items()
    }
    try:
        return cls(**converted)
    except pydantic.ValidationError as error:
        problems = []
        for item in error.errors():
            name = str(item["loc"][0]) if item["loc"] else ""
            hint = f" ({fields[name].type_name}, default {fields[name].default!r})" if name in fields else ""
            problems.append(f"{name}={item['input']!r}: {item['msg'].lower()}{hint}")
        raise InvalidInput(f"{owner} cannot use " + "; ".join(problems)) from None


def _from_text(text: str, hint: Any) -> Any:
    """A command-line string as something pydantic can judge: only what pydantic does not read itself."""
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if type(None) in options and text.strip().lower() in ("none", "null", ""):
        return None
    for option in options:
        if get_origin(option) in (tuple, list, set, frozenset) or option in (tuple, list, set, frozenset):
            return [part.strip() for part in text.strip("()[]").split(",") if part.strip()]
        if get_origin(option) is dict:
            pairs = (part.split(":", 1) for part in text.strip("{}").split(",") if part.strip())
            return {pair[0].strip(): pair[-1].strip() for pair in pairs}
    return text


def _type_name(hint: Any) -> str:
    if hint is type(None):
        return "none"
    if get_origin(hint) is Literal:
        return " | ".join(repr(value) for value in get_args(hint))
    if get_origin(hint) in (Union, types.UnionType):
        return " | ".join(_type_name(option) for option in get_args(hint))
    if get_origin(hint) is not None:
        inner = ", ".join("..." if option is Ellipsis else _type_name(option) for option in get_args(hint))
        return f"{get_origin(hint).__name__}[{inner}]"
    return getattr(hint, "__name__", str(hint))
