"""From names to arms: methods of ours with the settings that are theirs, peers that are there, references."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from unspool.core.errors import InvalidInput
from unspool.evaluation.answering import ArmSpec
from unspool.evaluation.suites import Item, Suite

REFERENCES = ("reference", "planted-bug")
"""Answerers of suites that know right answers: these, and the same with a bug planted into every program."""


def parse(names: str) -> list[str]:
    """Names that are written with commas between them.

    Raises:
        InvalidInput: if there are none, or one occurs twice.
    """
    found = [name.strip() for name in names.split(",") if name.strip()]
    if not found:
        raise InvalidInput(f"{names!r} names no method; give slugs of `unspool methods` with commas between them")
    if twice := sorted({name for name in found if found.count(name) > 1}):
        raise InvalidInput(f"{', '.join(twice)} is named twice")
    return found


def method_specs(
    names: Sequence[str], model: str, *, settings: Mapping[str, Any], sampling: Mapping[str, Any], **options: Any
) -> list[ArmSpec]:
    """Arms of our own methods.

    A setting goes to every method that has it, so that methods can be compared that do not share their settings.

    Args:
        names: slugs, each several joined by ``+``.
        model: what they decode.
        settings: of the methods, by name or ``slug.name``.
        sampling: of the sampler, for methods that bring none of their own.
        options: further ones of :class:`ArmSpec`.

    Raises:
        UnknownMethod: if a slug is not in the registry.
        InvalidInput: if no method has a setting.
    """
    from unspool.core.cards import Kind, setting_fields
    from unspool.core.registry import registry

    specs = []
    used: set[str] = set()
    for name in names:
        slugs = [slug.strip() for slug in name.split("+") if slug.strip()]
        known = {field.name for slug in slugs for field in setting_fields(registry[slug].settings)}
        own = {
            key: value
            for key, value in settings.items()
            if (key.split(".", 1)[0] in slugs if "." in key else key in known)
        }
        used |= own.keys()
        samples_itself = any(registry[slug].card.kind is Kind.SAMPLER for slug in slugs)
        specs.append(
            ArmSpec(
                name,
                model,
                name,
                {**options, "settings": own, "sampling": {} if samples_itself else dict(sampling)},
            )
        )
    if unused := sorted(settings.keys() - used):
        raise InvalidInput(f"--set {unused[0]}: none of {', '.join(names)} has such a setting")
    return specs


def peer_specs(chosen: str, model: str, **options: Any) -> tuple[list[ArmSpec], list[dict[str, str]]]:
    """Arms of peers that are installed and read the model, and the others with the reasons why they are absent.

    Args:
        chosen: ``all``, or names with commas between them.
        model: what they decode.
        options: ``threads``, ``draft``.

    Raises:
        InvalidInput: if there is no such peer.
    """
    from unspool.evaluation import peers

    wanted = peers.names() if chosen == "all" else parse(chosen)
    reasons = peers.available(model, draft=options.get("draft"))
    specs, absent = [], []
    for name in wanted:
        peers.install_line(name)  # tells names that are not known
        reason = reasons[name]
        if reason is None:
            specs.append(ArmSpec(name, model, name, dict(options), "peer"))
        else:
            absent.append(peers.absence(name, reason))
    return specs, absent


def reference_specs(suite: Suite, items: Iterable[Item], names: Sequence[str]) -> list[ArmSpec]:
    """Arms that give the suite's own reference answers.

    Raises:
        InvalidInput: if the suite has none, or cannot plant bugs into them.
    """
    specs = []
    for name in names:
        answers = {item.id: suite.reference(item) if name == REFERENCES[0] else suite.planted(item) for item in items}
        if missing := next((item for item, answer in answers.items() if answer is None), None):
            what = "reference answer" if name == REFERENCES[0] else "program to plant a bug into"
            raise InvalidInput(f"--methods {name}: {suite.name} has no {what} for {missing}")
        specs.append(ArmSpec(name, "", name, {"answers": answers}, "reference"))
    return specs
