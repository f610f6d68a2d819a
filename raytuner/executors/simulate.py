"""An executor without a machine: a clock that jumps, and faults on demand.

The study, its searcher, its scheduler, its driver and its journal are the real ones; only the trials are made up. What
a simulated trial says, how long it takes and when it fails are functions of the trial, the step and the number of
failures before, never of chance at run time: a lease that is run again says the same, at the same virtual time.

`World` is what outlives a driver (virtual time, checkpoints, a log of what ran); `Simulation` is one driver's executor
and clock in it. A lease in flight when a driver died goes on in the next one as if nothing had happened to its timing
(`Lease.since`, `Lease.origin`), so that the order in which trials speak is that of the uninterrupted study.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raytuner.events import Ended, Event, Failed, How, Reported, Slots
from raytuner.trial import END, Failure, Lease, Report, Trial

Curve = Callable[[Trial, int], Mapping[str, Any]]
"""The metrics of a trial at a step."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What simulated trials do.

    ``curve``: their metrics. ``seconds``: how long a step takes, more than 0. ``length``: the step after which the
    training function returns. ``saves``: whether a step makes a checkpoint, beside the last of each lease.
    ``fault``: how an attempt at a step, after so many failures and losses of the trial, fails, if it does.
    """

    curve: Curve
    seconds: Callable[[Trial, int], float] = lambda trial, step: 1.0
    length: int = END
    saves: Callable[[Trial, int], bool] = lambda trial, step: False
    saves_at_end: bool = True
    fault: Callable[[Trial, int, int], Failure | None] = lambda trial, step, tries: None


@dataclass(slots=True)
class World:
    """What outlives a driver. It is also the place where checkpoints lie (`raytuner.driver.Shelf`)."""

    now: float = 0.0
    checkpoints: set[tuple[int, int]] = field(default_factory=set)
    leases: list[tuple[Lease, int]] = field(default_factory=list)
    """Every lease that ever ran, with the step it truly started from."""

    def delete(self, trial: int, step: int) -> None:
        self.checkpoints.discard((trial, step))

    def sweep(self, referenced: set[tuple[int, int]]) -> object:
        self.checkpoints &= referenced
        return None

    def sweep_trial(self, trial: int, referenced: set[int]) -> object:
        self.checkpoints = {(t, step) for t, step in self.checkpoints if t != trial or step in referenced}
        return None


@dataclass(slots=True)
class _Running:
    lease: Lease
    step: int
    begun: int
    metrics: Mapping[str, Any] = field(default_factory=dict)


class Simulation:
    """Executor and clock of one driver: ``slots`` workers, of which each runs one lease at a time."""

    def __init__(self, world: World, workload: Workload, slots: int) -> None:
        self._world = world
        self._workload = workload
        self._slots = slots
        self._ready: deque[Event] = deque([Slots(world.now, slots)])
        self._running: dict[tuple[int, int], _Running] = {}
        self._parked: dict[int, int] = {}  # trial -> step, longest parked first
        self._due: list[tuple[float, int, int]] = []  # (time of the next report, trial, attempt)

    def now(self) -> float:
        """Virtual seconds."""
        return self._world.now

    def run(self, lease: Lease) -> None:
        if len(self._running) >= self._slots:
            raise AssertionError(f"lease {lease} was given out, but all {self._slots} slots are taken")
        begun = self._parked.pop(lease.trial.id, None)
        if begun is None:
            begun = lease.checkpoint or 0
            if lease.checkpoint is not None and (lease.donor, lease.checkpoint) not in self._world.checkpoints:
                raise AssertionError(f"the checkpoint that {lease} starts from does not exist")
        while len(self._running) + len(self._parked) >= self._slots:
            self._parked.pop(next(iter(self._parked)))  # its slot is wanted
        self._world.leases.append((lease, begun))
        self._running[lease.trial.id, lease.attempt] = _Running(lease, begun, begun)
        done_before = sum(self._workload.seconds(lease.trial, step) for step in range(lease.origin + 1, begun + 1))
        self._plan(lease, begun + 1, lease.since + done_before)

    def unwind(self, trial: int, attempt: int) -> None:
        self._parked.pop(trial, None)
        running = self._running.pop((trial, attempt), None)
        if running is not None:
            self._ready.append(self._ended(running, How.UNWOUND, self._world.now))

    def wait(self, timeout_s: float | None) -> Sequence[Event]:
        """What happens next: everything at the next instant at which anything does."""
        while not self._ready and self._due:
            self._world.now = max(self._world.now, self._due[0][0])
            at = self._due[0][0]
            while self._due and self._due[0][0] == at:
                _, trial, attempt = heapq.heappop(self._due)
                if (trial, attempt) in self._running:
                    self._step(self._running[trial, attempt], at)
        if not self._ready:
            raise AssertionError("nothing runs, and somebody waits for it")
        events = list(self._ready)
        self._ready.clear()
        return events

    def close(self, at_once: bool = False) -> None:
        """Nothing is held."""

    def _plan(self, lease: Lease, step: int, after: float) -> None:
        seconds = self._workload.seconds(lease.trial, step) if step <= self._workload.length else 0.0
        heapq.heappush(self._due, (after + seconds, lease.trial.id, lease.attempt))

    def _step(self, running: _Running, at: float) -> None:
        """One more step of a lease."""
        lease, load = running.lease, self._workload
        trial, step = lease.trial, running.step + 1
        if step > load.length:
            self._end(running, How.RETURNED, at)
            return
        failure = load.fault(trial, step, lease.tries)
        if failure is not None:
            del self._running[trial.id, lease.attempt]
            message = f"made to fail at step {step}"
            self._ready.append(Failed(at, trial.id, lease.attempt, failure, message, self._spent(running, step)))
            return
        running.step = step
        running.metrics = {"training_iteration": step, **load.curve(trial, step)}
        reached = lease.each_report or step >= lease.until
        saves = load.saves(trial, step) or ((lease.last or step >= lease.until) and load.saves_at_end)
        if saves:
            self._world.checkpoints.add((trial.id, step))
        report = Report(step, float(step), running.metrics, at, checkpoint=saves)
        self._ready.append(Reported(at, trial.id, lease.attempt, (report,)))
        if lease.last and step < lease.until:
            self._end(running, How.UNWOUND, at)
        elif reached:
            self._parked[trial.id] = step
            self._end(running, How.REACHED, at)
        else:
            self._plan(lease, step + 1, at)

    def _end(self, running: _Running, how: How, at: float) -> None:
        del self._running[running.lease.trial.id, running.lease.attempt]
        self._ready.append(self._ended(running, how, at))

    def _ended(self, running: _Running, how: How, at: float) -> Ended:
        lease = running.lease
        spent = self._spent(running, running.step)
        return Ended(at, lease.trial.id, lease.attempt, how, running.step, float(running.step), running.metrics, spent)

    def _spent(self, running: _Running, until: int) -> float:
        """Seconds that a lease took for its steps up to ``until``."""
        return sum(self._workload.seconds(running.lease.trial, step) for step in range(running.begun + 1, until + 1))
