"""Many replicas on one machine or many: jobs are done by actors of Ray.

Each replica is one actor that makes every arm and does one job at a time. Ray starts the actors, restarts one whose
process dies and gives it its job again; its pool hands the next job to whichever is free. What a job answers depends on
its task alone, so a run here gives the rows of a run in one process, whichever replica did which. (A lossless method
that learns across requests learns in every replica by itself: the tokens are the same, the counts of its passes vary.)
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from unspool.core.errors import Incompatible, InvalidInput, UnspoolError
from unspool.evaluation.answering import Answerer, ArmSpec, make_answerer
from unspool.evaluation.cluster import HERE, check_reachable, places, share
from unspool.evaluation.runs import Job, Key, Make, Result, arm_or_absence, do

RETRIES = 3
"""How often a job is given again after the process that did it has died."""

INSTALL = 'pip install "unspool[ray]"'
LOCAL = "local"

_QUIET_SECONDS = 60.0
"""After so long without a result, see whether there still is a machine for every replica."""
_CLOSE_SECONDS = 10.0
_STORE_BYTES = 100 * 2**20
"""Of a local Ray's object store: jobs and results are small, and Ray's default is a third of the memory."""


class ReplicaLost(UnspoolError):
    """A replica's process died again and again, or there is no machine left for it."""


@dataclass(frozen=True)
class Standing:
    """What a replica says of itself when its arms are made.

    Args:
        about: of every arm, by name.
        absent: peers that could not take part.
        machine: where it stands.
        process: its id there.
    """

    about: dict[str, dict[str, Any]]
    absent: list[dict[str, str]]
    machine: str
    process: int


class Replica:
    """All arms in one worker of Ray; they share the weights.

    Arms are made when they are first needed and not when the actor is, so that an error reaches the run as what it is,
    and a restarted process makes them again before it goes on.

    Args:
        specs: of the arms.
        threads: of torch.
        make: makes an arm from its specification.
    """

    def __init__(self, specs: Sequence[ArmSpec], threads: int, make: Make) -> None:
        self._specs = specs
        self._threads = threads
        self._make = make
        self._arms: dict[str, Answerer] | None = None
        self._absent: list[dict[str, str]] = []

    def stand(self) -> Standing:
        """Make the arms and warm them up."""
        about = {name: dict(arm.about) for name, arm in self._standing().items()}
        return Standing(about, self._absent, socket.gethostname(), os.getpid())

    def do(self, job: Job) -> Result:
        """Do one job."""
        arms = self._standing()
        if job.arm not in arms:
            raise ReplicaLost(f"a replica was started again and {job.arm} cannot take part there any more")
        return do(arms[job.arm], job)

    def close(self) -> None:
        """Close the arms."""
        for arm in (self._arms or {}).values():
            arm.close()
        self._arms = None

    def _standing(self) -> dict[str, Answerer]:
        if self._arms is None:
            import torch

            torch.set_num_threads(self._threads)
            arms: dict[str, Answerer] = {}
            absent: list[dict[str, str]] = []
            engines: MutableMapping[Any, Any] = {}
            for spec in self._specs:
                arm = arm_or_absence(spec, self._make, engines)
                if isinstance(arm, dict):
                    absent.append(arm)
                else:
                    arms[spec.name] = arm
            for arm in arms.values():
                arm.warm_up()
            self._arms, self._absent = arms, absent
        return self._arms


class RayExecutor:
    """Jobs on replicas that Ray keeps.

    A Ray that this process has started or joined already is used, and left as it was.

    Args:
        address: of a cluster, as Ray takes it (``host:6379``, ``auto``, ``ray://host:10001``); by default a Ray of its
            own on this machine, which ends with the run.
        replicas: how many; by default as many as there are cores for with the arms' number of threads. If the arms
            leave the threads open, as many as the cores allow for so many replicas, at most this process's own.
        retries: how often a job is given again after the process that did it has died.
        make: makes an arm from its specification; pickled.

    Attributes:
        replicas: what each said when it began.

    Raises:
        InvalidInput: if Ray is not installed, nothing listens at the address, or there would be no replica.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        replicas: int | None = None,
        retries: int = RETRIES,
        make: Make = make_answerer,
    ) -> None:
        if replicas is not None and replicas < 1:
            raise InvalidInput(f"{replicas} replicas were asked for; there must be 1 at least")
        self._ray = _ray()
        if address not in (None, LOCAL):
            check_reachable(str(address))
        self._address = address
        self._wanted = replicas
        self._retries = retries
        self._make = make
        self._actors: list[Any] = []
        self._owner = False
        self._idle = True
        self._logs: str | None = None
        self._threads = self._gpus = 0
        self.replicas: list[Standing] = []
        self.absent: list[dict[str, str]] = []

    def start(self, specs: Sequence[ArmSpec]) -> dict[str, dict[str, Any]]:
        """See :class:`~unspool.evaluation.runs.Executor`.

        Raises:
            InvalidInput: if the address cannot be reached, or there are not enough cores or cards.
            Incompatible: if the replicas' machines have different versions of what takes part.
            ReplicaLost: if a replica's process died again and again while it made the arms.
        """
        self._gpus = _gpus(specs)
        self._connect()
        count, self._threads = share(self._machines(), self._wanted, _asked_threads(specs), _own_threads(), self._gpus)
        kind = self._ray.remote(
            num_cpus=self._threads,
            num_gpus=self._gpus,
            max_restarts=-1,
            max_task_retries=self._retries,
            scheduling_strategy="SPREAD",
        )(Replica)
        self._actors = [kind.remote(list(specs), self._threads, self._make) for _ in range(count)]
        errors = self._ray.exceptions
        self._idle = False
        try:
            self.replicas = self._ray.get([actor.stand.remote() for actor in self._actors])
        except errors.RayTaskError as error:
            raise error.cause from error
        except errors.RayError as error:
            raise self._lost("made the arms", error) from error
        self._idle = True
        return self._agreed(specs)

    def run(self, jobs: Iterable[Job]) -> Iterator[Result]:
        """See :class:`~unspool.evaluation.runs.Executor`.

        Raises:
            ReplicaLost: if the process that did a job died ``retries + 1`` times, or a machine is gone and the others
                have no room for its replicas.
        """
        from ray.util.actor_pool import ActorPool

        errors = self._ray.exceptions
        sent: dict[Key, Any] = {}

        def send(actor: Any, job: Job) -> Any:
            sent[job.key] = actor.do.remote(job)
            return sent[job.key]

        pool = ActorPool(self._actors)
        self._idle = False
        for job in jobs:
            pool.submit(send, job)
        while pool.has_next():
            try:
                result: Result = pool.get_next_unordered(timeout=_QUIET_SECONDS)
            except TimeoutError:
                self._check_room()
                continue
            except errors.RayTaskError as error:
                raise error.cause from error
            except errors.RayError as error:
                item, arm, sample = self._fatal(sent)
                which = f"answered {item!r} with {arm}" + (f" (sample {sample})" if sample else "")
                raise self._lost(which, error) from error
            del sent[result.key]
            yield result
        self._idle = True

    def close(self) -> None:
        """End the replicas, and the local Ray if there is one."""
        if not self._ray.is_initialized():
            return
        if self._idle and self._actors:
            # What is killed in the middle of an answer cannot be closed; peers end with the process that asks them.
            closing = [actor.close.remote() for actor in self._actors]
            self._ray.wait(closing, num_returns=len(closing), timeout=_CLOSE_SECONDS)
        for actor in self._actors:
            self._ray.kill(actor)
        self._actors = []
        if self._owner:
            self._owner = False
            self._ray.shutdown()

    def _connect(self) -> None:
        if self._ray.is_initialized():
            joined = self._ray.get_runtime_context().gcs_address
            if self._address not in (None, LOCAL, HERE, joined):
                raise InvalidInput(f"this process has joined the Ray at {joined} already, not {self._address}")
            return
        common = {"log_to_driver": False, "logging_level": "ERROR"}
        # Ray would report statistics of use to its makers, and advise programmers; both are settings of its own.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        self._owner = True
        if self._address in (None, LOCAL):
            context = self._ray.init(address=LOCAL, include_dashboard=False, object_store_memory=_STORE_BYTES, **common)
        else:
            try:
                context = self._ray.init(address=self._address, **common)
            except (ConnectionError, TimeoutError, RuntimeError, ValueError, ImportError) as error:
                self._owner = False
                raise InvalidInput(f"--address {self._address}: Ray cannot join it: {_first_line(error)}") from error
        folder = getattr(context, "address_info", {}).get("session_dir")
        self._logs = None if folder is None else os.path.join(folder, "logs")

    def _machines(self) -> list[tuple[int, int]]:
        """Cores and cards of every machine that is alive."""
        told = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        return [(int(has.get("CPU", 0)), int(has.get("GPU", 0))) for has in told]

    def _check_room(self) -> None:
        room = places(self._machines(), self._threads, self._gpus)
        if room < len(self._actors):
            raise ReplicaLost(
                f"a machine is gone: there is room for {room} of {len(self._actors)} replicas of {self._threads} "
                "threads. Give the same command again to go on with those"
            )

    def _fatal(self, sent: Mapping[Key, Any]) -> Key:
        """Of the jobs under way the one that was given up."""
        for key, reference in sent.items():
            if self._ray.wait([reference], timeout=0)[0]:
                try:
                    self._ray.get(reference)
                except self._ray.exceptions.RayTaskError:
                    continue
                except self._ray.exceptions.RayError:
                    return key
        raise AssertionError("Ray gave up a job that nobody gave it")

    def _lost(self, what: str, error: Exception) -> ReplicaLost:
        where = "" if self._logs is None else f" Ray's logs lie in {self._logs}."
        return ReplicaLost(
            f"the process that {what} died {self._retries + 1} times, for want of memory perhaps. What is finished is "
            f"kept, and the same command goes on from there.{where} Ray says: {_summary(error)}"
        )

    def _agreed(self, specs: Sequence[ArmSpec]) -> dict[str, dict[str, Any]]:
        """What the arms say about themselves, if all replicas say the same; a peer that one lacks is absent."""
        for standing in self.replicas:
            known = {entry["peer"] for entry in self.absent}
            self.absent += [entry for entry in standing.absent if entry["peer"] not in known]
        machines = len({standing.machine for standing in self.replicas})
        place = {"engine": "ray", "replicas": len(self.replicas), "machines": machines}
        first, *others = self.replicas
        agreed = {}
        for spec in specs:
            if any(spec.name not in standing.about for standing in self.replicas):
                continue
            mine = _identity(spec, first.about[spec.name])
            for other in others:
                theirs = _identity(spec, other.about[spec.name])
                if differing := sorted(key for key in {*mine, *theirs} if mine.get(key) != theirs.get(key)):
                    key = differing[0]
                    raise Incompatible(
                        f"the replicas of {spec.name} differ in {', '.join(differing)}: {key} is {mine.get(key)!r} on "
                        f"{first.machine} and {theirs.get(key)!r} on {other.machine}; install the same on all machines"
                    )
            agreed[spec.name] = {**first.about[spec.name], **place}
        return agreed


def _ray() -> ModuleType:
    try:
        import ray
    except ImportError as error:
        raise InvalidInput(f"--engine ray needs Ray, which is not installed: {INSTALL}") from error
    import ray.exceptions

    module: ModuleType = ray
    return module


def _own_threads() -> int:
    import torch

    return torch.get_num_threads()


def _asked_threads(specs: Sequence[ArmSpec]) -> int | None:
    return max((spec.options["threads"] for spec in specs if spec.options.get("threads")), default=None)


def _gpus(specs: Sequence[ArmSpec]) -> int:
    """Cards that a replica needs.

    Raises:
        InvalidInput: if a certain card is asked for.
    """
    devices = {str(spec.options["device"]) for spec in specs if spec.options.get("device")}
    for device in devices:
        if ":" in device:
            raise InvalidInput(
                f"--device {device}: Ray gives every replica a card of its own; say --device {device.split(':')[0]}"
            )
    return int("cuda" in devices)


def _identity(spec: ArmSpec, about: Mapping[str, Any]) -> dict[str, Any]:
    """What must be the same of an arm everywhere: all of a method, the version of a peer (which tells paths too)."""
    return {"version": about.get("version")} if spec.kind == "peer" else dict(about)


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _summary(error: Exception) -> str:
    """What Ray says of a death, in one line without its list of ids."""
    lines = [line.strip() for line in str(error).splitlines()]
    return " ".join(line for line in lines if line and not line.startswith(("class_name:", "actor_id:", "namespace:")))
