"""From slugs and settings to parts that fit together, or a refusal that says why."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from unspool.core.cards import Kind, make_settings, setting_fields
from unspool.core.decode import Greedy, decode
from unspool.core.errors import Incompatible, InvalidInput, WeightsError
from unspool.core.events import Event
from unspool.core.learned import Learned
from unspool.core.model import LanguageModel
from unspool.core.registry import Method, registry
from unspool.core.sockets import (
    CachePolicy,
    ConstrainedSampler,
    Constraint,
    Controller,
    Drafter,
    Part,
    Proposal,
    Reader,
    Sampler,
    Search,
    Setup,
    Verifier,
)
from unspool.core.texts import Stop

_SOCKETS: dict[type, str] = {
    Drafter: "drafter",
    Controller: "controller",
    Verifier: "verifier",
    Sampler: "sampler",
    Constraint: "constraint",
    CachePolicy: "cache_policy",
    Search: "search",
    Reader: "reader",
}


@runtime_checkable
class MakesPart(Protocol):
    """What is no part and can be turned into one, as a grammar into a constraint."""

    def part(self) -> Part: ...


@dataclass(frozen=True)
class Composition:
    """Parts that were checked to fit a model and one another. Reusable: what drafters have learned stays with it."""

    model: LanguageModel
    sampler: Sampler
    drafter: Drafter | None = None
    controller: Controller | None = None
    verifier: Verifier | None = None
    constraint: Constraint | None = None
    cache_policy: CachePolicy | None = None
    search: Search | None = None
    reader: Reader | None = None

    @property
    def parts(self) -> list[Part]:
        found = [getattr(self, socket) for socket in _SOCKETS.values()]
        # One part may fill two sockets.
        return list(dict.fromkeys(part for part in found if part is not None))

    @property
    def lossless(self) -> bool:
        """Whether the output is the sampler's own: no part but the sampler may change it."""
        return all(
            part.card.lossless
            for part in self.parts
            if not isinstance(part, Sampler | Constraint) and hasattr(part, "card")
        )

    @property
    def learned(self) -> dict[str, Learned]:
        """What the parts keep between requests, by name."""
        return {name: learned for part in self.parts for name, learned in part.learned.items()}

    def save_learned(self, folder: str | Path) -> None:
        """Write what the parts have learned into a folder, one file each; it is made if need be.

        Raises:
            WeightsError: if it cannot be written.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WeightsError(f"the folder {folder} cannot be made: {error.strerror or error}") from error
        for name, learned in self.learned.items():
            learned.save(folder / f"{name}.safetensors")

    def load_learned(self, folder: str | Path) -> list[str]:
        """Start from what :meth:`save_learned` wrote; parts without a file start afresh.

        Returns:
            The names of those that were found.

        Raises:
            WeightsError: if a file is damaged or holds something else.
            Incompatible: if it is of another vocabulary.
        """
        found = []
        for name, learned in self.learned.items():
            path = Path(folder) / f"{name}.safetensors"
            if path.is_file():
                learned.load(path)
                found.append(name)
        return found

    def __str__(self) -> str:
        named = [part.card.slug for part in self.parts if hasattr(part, "card")]
        return " + ".join(named) or "plain"

    def decode(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        stop: Stop | None = None,
        seed: int = 0,
        chunk: int = 256,
        probe: bool = False,
    ) -> Iterator[Event]:
        """Run the loop; see :func:`unspool.core.decode.decode`."""
        sockets = {socket: getattr(self, socket) for socket in _SOCKETS.values()}
        return decode(self.model, prompts, **sockets, stop=stop, seed=seed, chunk=chunk, probe=probe)


def compose(
    model: LanguageModel,
    methods: str | Part | MakesPart | Iterable[str | Part | MakesPart] = (),
    *,
    settings: Mapping[str, Any] | None = None,
    sampler: Sampler | None = None,
    models: Mapping[str, LanguageModel] | None = None,
    load: Callable[[str], LanguageModel] | None = None,
) -> Composition:
    """Build a composition.

    Args:
        model: the target.
        methods: slugs, or parts made by hand; a string may join several with ``+``. A grammar stands for a constraint
            of the default engine.
        settings: by name; ``slug.name`` where two parts have a setting of the same name.
        sampler: used unless ``methods`` bring one; the default is greedy.
        models: further models by role.
        load: turns a model's name into a model, for methods whose settings name one.

    Raises:
        UnknownMethod: for a slug that is not registered.
        InvalidInput: for a setting that no part has, or a value that it cannot take.
        Incompatible: if two parts want one socket, a part needs what the model or its neighbours do not offer.
    """
    if isinstance(methods, str | Part | MakesPart):
        methods = [methods]
    named: list[str | Part] = []
    for method in methods:
        if isinstance(method, str):
            named.extend(m.strip() for m in method.split("+") if m.strip())
        else:
            named.append(method.part() if isinstance(method, MakesPart) else method)

    entries = [registry[item] if isinstance(item, str) else item for item in named]
    wanted = _share_settings([e for e in entries if isinstance(e, Method)], settings or {})
    filled: dict[str, Part] = {}
    for entry in entries:
        if isinstance(entry, Method):
            if entry.card.kind is Kind.SCHEDULE:
                raise Incompatible(f"{entry.card.slug} schedules a canvas; it cannot drive the in-order loop")
            part: Part = entry.cls(make_settings(entry.settings, wanted[entry.card.slug], entry.card.slug))
        else:
            part = entry
        for socket in _sockets_of(part):
            if socket in filled:
                raise Incompatible(
                    f"{_name(filled[socket])} and {_name(part)} are both a {socket.replace('_', ' ')}; take one of them"
                )
            filled[socket] = part

    filled.setdefault("sampler", sampler or Greedy())
    drafter: Any = filled.get("drafter")
    if "verifier" not in filled and drafter is not None and drafter.proposal is not Proposal.POINT:
        filled["verifier"] = _default_verifier(drafter)
    composition = Composition(model, **filled)  # type: ignore[arg-type]
    _check(composition)
    observes_prompt = any(part.observes_prompt for part in composition.parts)
    handed = composition.sampler
    if composition.constraint is not None:
        handed = ConstrainedSampler(handed, composition.constraint, model.vocab_size)
    setup = Setup(model, handed, models or {}, load, observes_prompt, composition.constraint)
    for part in composition.parts:
        part.bind(setup)
    return composition


def _share_settings(methods: list[Method], settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Give every setting to the method that has it."""
    shared: dict[str, dict[str, Any]] = {method.card.slug: {} for method in methods}
    owners: dict[str, list[str]] = {}
    for method in methods:
        for field in setting_fields(method.settings):
            owners.setdefault(field.name, []).append(method.card.slug)
    for key, value in settings.items():
        slug, dot, name = key.rpartition(".")
        if dot:
            if slug not in shared:
                raise InvalidInput(f"setting {key!r}: {slug!r} is not in use; in use: {', '.join(shared) or 'nothing'}")
            shared[slug][name] = value
            continue
        having = owners.get(name, [])
        if not having:
            valid = [
                f"{method.card.slug}: " + (", ".join(f.name for f in setting_fields(method.settings)) or "none")
                for method in methods
            ]
            raise InvalidInput(f"no method in use has a setting {name!r}. Settings: {'; '.join(valid) or 'none'}")
        if len(having) > 1:
            raise InvalidInput(f"setting {name!r} belongs to {' and '.join(having)}; write {having[0]}.{name}=...")
        shared[having[0]][name] = value
    return shared


def _sockets_of(part: Part) -> list[str]:
    """The sockets that a part fills: one, or two that belong together, as masks and going back."""
    sockets = [socket for kind, socket in _SOCKETS.items() if isinstance(part, kind)]
    if not sockets:
        raise Incompatible(f"{_name(part)} fills no socket of the in-order loop")
    return sockets


def _name(part: Part) -> str:
    return part.card.slug if hasattr(part, "card") else type(part).__name__


def _default_verifier(drafter: Drafter) -> Verifier:
    for method in registry.of_kind(Kind.VERIFIER):
        if drafter.proposal in method.cls.default_for:  # type: ignore[attr-defined]
            verifier: Verifier = method.cls()
            return verifier
    raise Incompatible(f"no verifier judges {drafter.proposal.value}, which {_name(drafter)} proposes")


def _check(made: Composition) -> None:
    for part in made.parts:
        if hasattr(part, "card"):
            made.model.require(part.card.needs, part.card.slug)
    drafter, verifier, sampler, search = made.drafter, made.verifier, made.sampler, made.search
    if drafter is not None and verifier is not None and drafter.proposal not in verifier.judges:
        judges = ", ".join(sorted(p.value for p in verifier.judges))
        raise Incompatible(
            f"{_name(verifier)} judges {judges}; {_name(drafter)} proposes {drafter.proposal.value}, "
            "on which it would be wrong"
        )
    if verifier is not None and verifier.deterministic_only and not sampler.deterministic:
        raise Incompatible(
            f"{_name(verifier)} only judges deterministic choices; {_name(sampler)} draws at random: "
            "use temperature 0 or another verifier"
        )
    if search is not None and search.lockstep and drafter is not None:
        raise Incompatible(
            f"{_name(search)} needs all branches to gain one token a step; {_name(drafter)} lets them gain "
            f"different numbers"
        )
    if search is not None and sampler.looks_ahead and search.lockstep:
        raise Incompatible(
            f"{_name(search)} needs all branches to gain one token a step; {_name(sampler)} spends steps on "
            f"looking ahead"
        )
