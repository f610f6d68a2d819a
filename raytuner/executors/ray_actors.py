"""The real executor: one warm trial actor per slot, on whatever Ray this process is connected to.

A lease is one streaming actor task. Ray reserves what a slot asks for (CPUs, GPUs and fractions of them, memory, custom
resources), sets ``CUDA_VISIBLE_DEVICES`` and notices dead workers and nodes; this file turns that into events. A dead
actor is replaced; its slot is gone until the replacement is up.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from raytuner.actor import Said, TrialActor
from raytuner.events import Ended, Event, Failed, Reported, Slots
from raytuner.session import Rules
from raytuner.trial import Failure, Lease, Report, Slot

_STARTS = 3  # actors in a row that may fail to come up before the study gives up


class NoResources(ValueError):
    """The cluster can never hold a single trial."""


class NoActors(RuntimeError):
    """Trial actors cannot be started."""


@dataclass(eq=False, slots=True)
class _Worker:
    """An actor in a slot: idle, or running a lease; perhaps with a trial parked in it."""

    actor: Any
    up: Any  # the reference that tells when the actor is up
    watch: Any = None  # the reference that tells when it died
    lease: Lease | None = None
    stream: Any = None
    parked: int | None = None


class RayActors:
    """Leases on actors; as many as the cluster holds, at most ``most`` (None: no bound).

    Raises `NoResources` if the cluster, as it is, can never run a trial, naming what falls short.
    """

    def __init__(self, train: Callable[[Any], Any], rules: Rules, slot: Slot, most: int | None) -> None:
        fit = slots_in(ray.cluster_resources(), slot)
        self._rules = ray.put(rules)
        self._train = ray.put(train)
        self._kind = ray.remote(TrialActor).options(**_options(slot))
        self._workers = [self._hire() for _ in range(fit if most is None else min(fit, most))]
        self._up: list[_Worker] = []
        self._failed_starts = 0
        self._ready: deque[Event] = deque()

    def run(self, lease: Lease) -> None:
        worker = self._choose(lease.trial.id)
        worker.lease, worker.parked = lease, None
        worker.stream = worker.actor.run.options(num_returns="streaming").remote(lease)

    def unwind(self, trial: int, attempt: int) -> None:
        for worker in self._up:
            if worker.parked == trial or (worker.lease and worker.lease.trial.id == trial):
                worker.actor.unwind.remote(trial)
                worker.parked = None

    def wait(self, timeout_s: float | None) -> Sequence[Event]:
        waiting = {worker.up: worker for worker in self._workers if worker not in self._up}
        waiting |= {worker.stream if worker.lease else worker.watch: worker for worker in self._up}
        keys = list(waiting)
        ready, _ = ray.wait(keys, num_returns=1, timeout=timeout_s, fetch_local=False)
        if ready and len(keys) > 1:  # whatever else is there by now belongs to the same turn
            ready, _ = ray.wait(keys, num_returns=len(keys), timeout=0, fetch_local=False)
        for key in ready:
            worker = waiting[key]
            if worker.lease:
                self._hear(worker, worker.lease)
            elif key == worker.up:
                self._welcome(worker)
            else:
                self._bury(worker)
        events = list(self._ready)
        self._ready.clear()
        return events

    def close(self) -> None:
        for worker in self._workers:
            ray.kill(worker.actor, no_restart=True)
        self._workers.clear()
        self._up.clear()

    # ----------------------------------------------------------------------------------------------------- actors

    def _hire(self) -> _Worker:
        actor = self._kind.remote(self._train, self._rules)
        return _Worker(actor, actor.ready.remote())

    def _welcome(self, worker: _Worker) -> None:
        """An actor is up, or failed to come up."""
        try:
            ray.get(worker.up)
        except RayError as error:
            self._failed_starts += 1
            if self._failed_starts >= _STARTS:
                raise NoActors(f"{_STARTS} trial actors in a row could not be started; the last: {error}") from error
            self._workers[self._workers.index(worker)] = self._hire()
            return
        self._failed_starts = 0
        worker.watch = worker.actor.watch.remote()
        self._up.append(worker)
        self._ready.append(Slots(time.time(), len(self._up)))

    def _bury(self, worker: _Worker) -> None:
        self._up.remove(worker)
        ray.kill(worker.actor, no_restart=True)
        self._workers[self._workers.index(worker)] = self._hire()
        self._ready.append(Slots(time.time(), len(self._up)))

    def _choose(self, trial: int) -> _Worker:
        """Where a trial's lease goes: to the actor it is parked in, else to an empty one, else to any that is idle."""
        idle = [worker for worker in self._up if worker.lease is None]
        assert idle, "a lease was given out, but no slot is free"
        return min(idle, key=lambda worker: (worker.parked != trial, worker.parked is not None))

    # ------------------------------------------------------------------------------------------------------ leases

    def _hear(self, worker: _Worker, lease: Lease) -> None:
        """Take the next batch of a lease's stream."""
        try:
            batch: list[Said] = ray.get(next(worker.stream))
        except StopIteration:
            worker.lease = worker.stream = None
            self._ready.append(_failed(lease, Failure.LOST, "the actor left without saying how the lease ended"))
            return
        except RayActorError as error:
            worker.lease = worker.stream = None
            self._bury(worker)
            self._ready.append(_failed(lease, Failure.LOST, str(error)))
            return
        except RayError as error:
            worker.lease = worker.stream = None
            self._ready.append(_failed(lease, Failure.ERROR, str(error)))
            return
        trial, attempt = lease.trial.id, lease.attempt
        reports = tuple(said for said in batch if isinstance(said, Report))
        if reports:
            self._ready.append(Reported(reports[-1].at, trial, attempt, reports))
        last = batch[-1]
        if isinstance(last, Ended | Failed):
            self._ready.append(last)
            worker.parked = trial if isinstance(last, Ended) and last.how.parks else None
            worker.lease = worker.stream = None


def slots_in(resources: dict[str, float], slot: Slot) -> int:
    """How many slots fit in a cluster's resources, each kind taken as one pool.

    Raises `NoResources` where none fits.
    """
    want = {"CPU": slot.cpu, "GPU": slot.gpu, "memory": slot.memory_gib * 2**30, **slot.custom}
    want = {name: amount for name, amount in want.items() if amount > 0}
    short = [
        f"{name}: {amount:g} wanted, {resources.get(name, 0):g} there"
        for name, amount in want.items()
        if amount > resources.get(name, 0)
    ]
    if short:
        raise NoResources(f"no trial fits in this cluster; {'; '.join(short)}")
    if not want:
        return max(1, int(resources.get("CPU", 1)))
    return min(int(resources[name] / amount + 1e-9) for name, amount in want.items())


def _options(slot: Slot) -> dict[str, Any]:
    return {
        "num_cpus": slot.cpu,
        "num_gpus": slot.gpu,
        "memory": int(slot.memory_gib * 2**30) or None,
        "resources": dict(slot.custom),
        "max_concurrency": 4,  # unwind() must be heard while run() streams
        "max_restarts": 0,
    }


def _failed(lease: Lease, failure: Failure, message: str) -> Failed:
    return Failed(time.time(), lease.trial.id, lease.attempt, failure, message)
