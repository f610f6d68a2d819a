"""The real executor: one warm trial actor per slot, on whatever Ray this process is connected to.

A lease is one streaming actor task. Ray reserves what a slot asks for (CPUs, GPUs and fractions of them, memory, custom
resources), sets ``CUDA_VISIBLE_DEVICES`` and notices dead workers and nodes; this file turns that into events. A dead
actor is replaced; its slot is gone until the replacement is up.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from raytuner.actor import Said, TrialActor
from raytuner.events import Ended, Event, Failed, How, Reported, Slots
from raytuner.session import Rules
from raytuner.trial import Failure, Lease, Report, Slot

_log = logging.getLogger(__name__)
_PATIENCE_S = 10
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
    heard: bool = False  # whether the lease's trial has spoken
    parked: int | None = None
    unwinding: Any = None  # the reference that tells when its parked trial's function has returned


class RayActors:
    """Leases on actors; as many as the cluster holds, at most ``most`` (None: no bound).

    Raises `NoResources` if the cluster, as it is, can never run a trial, naming what falls short.
    """

    def __init__(self, train: Callable[[Any], Any], rules: Rules, slot: Slot, most: int | None) -> None:
        fit = slots_in([node["Resources"] for node in ray.nodes() if node["Alive"]], slot)
        self._slot = slot
        self._rules = ray.put(rules)
        self._train = ray.put(train)
        self._kind = ray.remote(TrialActor).options(**_options(slot))
        self._workers = [self._hire() for _ in range(fit if most is None else min(fit, most))]
        self._up: list[_Worker] = []
        self._moved: list[Lease] = []  # leases whose actor was dead before they began, waiting for another
        self._moves: dict[int, int] = {}  # each trial's last attempt that moved: one moves once
        self._grace_s = rules.grace_s
        self._failed_starts = 0
        self._ready: deque[Event] = deque()

    def run(self, lease: Lease) -> None:
        worker = self._choose(lease.trial.id)
        worker.lease, worker.parked, worker.heard = lease, None, False
        worker.stream = worker.actor.run.options(num_returns="streaming").remote(lease)

    def unwind(self, trial: int, attempt: int) -> None:
        for worker in self._up:
            if worker.parked == trial or (worker.lease and worker.lease.trial.id == trial):
                worker.unwinding = worker.actor.unwind.remote(trial)
                worker.parked = None
        for lease in [lease for lease in self._moved if lease.trial.id == trial]:
            self._moved.remove(lease)
            self._ready.append(Ended(time.time(), trial, lease.attempt, How.UNWOUND, 0, 0.0, {}))

    def wait(self, timeout_s: float | None) -> Sequence[Event]:
        if self._ready:
            timeout_s = 0.0
        waiting = {worker.up: worker for worker in self._workers if worker.watch is None}
        waiting |= {worker.stream if worker.lease else worker.watch: worker for worker in self._up}
        keys = list(waiting)
        ready = self._wait(keys, timeout_s)
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
        """Let functions that were told to end return, for as long as the grace period, and end all actors."""
        if unwinding := [worker.unwinding for worker in self._up if worker.unwinding is not None]:
            ray.wait(unwinding, num_returns=len(unwinding), timeout=self._grace_s, fetch_local=False)
        for worker in self._workers:
            ray.kill(worker.actor, no_restart=True)
        self._workers.clear()
        self._up.clear()

    def _wait(self, keys: list[Any], timeout_s: float | None) -> list[Any]:
        """Wait until the first is there; say so if no trial can be placed for long."""
        while timeout_s is None and not self._up:
            ready, _ = ray.wait(keys, num_returns=1, timeout=_PATIENCE_S, fetch_local=False)
            if ready:
                return list(ready)
            _log.warning(
                "no trial could be placed for %d s: each reserves %s; free in the cluster: %s",
                _PATIENCE_S,
                self._slot,
                {name: amount for name, amount in ray.available_resources().items() if ":" not in name},
            )
        ready, _ = ray.wait(keys, num_returns=1, timeout=timeout_s, fetch_local=False)
        return list(ready)

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
        if self._moved:
            self.run(self._moved.pop(0))
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
        except RayTaskError as error:
            worker.lease = worker.stream = None
            self._ready.append(_failed(lease, Failure.ERROR, str(error)))
            return
        except RayError as error:  # the actor, its node, or what it said and nobody had fetched is gone
            begun = worker.heard or self._moves.get(lease.trial.id) == lease.attempt
            worker.lease = worker.stream = None
            self._bury(worker)
            if begun:
                self._ready.append(_failed(lease, Failure.LOST, str(error)))
            else:  # its actor died before it began, perhaps of the trial that was there before
                self._moves[lease.trial.id] = lease.attempt
                self._moved.append(lease)
            return
        worker.heard = True
        trial, attempt = lease.trial.id, lease.attempt
        reports = tuple(said for said in batch if isinstance(said, Report))
        if reports:
            self._ready.append(Reported(reports[-1].at, trial, attempt, reports))
        last = batch[-1]
        if isinstance(last, Ended | Failed):
            self._ready.append(last)
            worker.parked = trial if isinstance(last, Ended) and last.how.parks else None
            worker.lease = worker.stream = None


def slots_in(nodes: Sequence[Mapping[str, float]], slot: Slot) -> int:
    """How many slots fit on a cluster's nodes, given what each has; a slot lies on one node.

    Raises `NoResources` where none fits, naming what the most a node has falls short of.
    """
    want = {"CPU": slot.cpu, "GPU": slot.gpu, "memory": slot.memory_gib * 2**30, **slot.custom}
    want = {name: amount for name, amount in want.items() if amount > 0} or {"CPU": 1.0}
    fit = sum(min(int(node.get(name, 0) / amount + 1e-9) for name, amount in want.items()) for node in nodes)
    if not fit:
        most = {name: max((node.get(name, 0) for node in nodes), default=0) for name in want}
        short = [f"{name}: {want[name]:g} wanted, {most[name]:g} there" for name in want if want[name] > most[name]]
        raise NoResources(
            f"no trial fits on any node of this cluster; {'; '.join(short) or 'no node has all of it: ' + str(want)}"
        )
    return fit


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
