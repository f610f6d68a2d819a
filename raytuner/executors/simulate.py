"""An executor without a machine: a clock that jumps, and faults on demand.

The study, its searcher, its scheduler, its driver and its journal are the real ones; only the trials are made up. What
a simulated trial says, how long it takes and when it fails are functions of the trial, the step and the number of
failures before, never of chance at run time: a lease that is run again says the same, at the same virtual time.

`World` is what outlives a driver (virtual time, checkpoints, a log of what ran); `Simulation` is one driver's executor
and clock in it. A lease in flight when a driver died goes on in the next one as if nothing had happened to its timing
(`Lease.since`, `Lease.origin`), so that the order in which trials speak is that of the uninterrupted study.

What costs nothing here, and does on a cluster: starting processes, saving and loading, a driver's death.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any, Literal

from raytuner.events import Damaged, Ended, Event, Failed, How, Loaded, Reported, Slots
from raytuner.trial import END, Failure, Lease, Metrics, Report, Trial

Curve = Callable[[Trial, int], Mapping[str, Any]]
"""The metrics of a trial at a step."""

At = Callable[[Trial, int, int], bool]
"""Whether something happens to a trial at a step, after so many failures and losses."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What simulated trials do, and what is done to them.

    ``curve``: their metrics. ``seconds``: how long a step takes, more than 0. ``even``: all steps of a trial take as
    long as its first, so that nobody need add them up. ``length``: the step after which the training function returns;
    ``stops``: the one at which a stop rule ends it. ``saves``: whether a step makes a checkpoint (None: none does),
    beside the last of each lease. ``fault``: how an attempt at a step, after so many failures and losses of the trial,
    fails, if it does. ``ends``: what a report does to its trial: a stop rule ends it, or it fails; asked for the trial,
    its metrics, and whether they are the first of their lease. ``level``: of a trial, a step and its metrics the value
    of the study's ``time_attr``, which is what leases run to then (None: that is the step).

    ``pace``: how many times longer all takes on a worker; workers are numbered from 0. ``away_s``: how long a worker
    that was lost is gone (0: another takes its place at once). ``twice``: whether a report arrives twice. ``late``:
    whether an attempt that failed or was unwound is heard of once more, ``late_s`` later. ``nbytes``: how large a
    checkpoint of a trial and step is. ``damaged``: whether it is no longer what was published, when somebody reads it.
    """

    curve: Curve
    seconds: Callable[[Trial, int], float] = lambda trial, step: 1.0
    length: int = END
    stops: int = END
    saves: Callable[[Trial, int], bool] | None = None
    saves_at_end: bool = True
    fault: Callable[[Trial, int, int], Failure | None] | None = None
    even: bool = False
    ends: Callable[[Trial, Metrics, bool], Literal[How.STOPPED] | Failure | None] | None = None
    level: Callable[[Trial, int, Metrics], float] | None = None
    pace: Callable[[int], float] = lambda worker: 1.0
    away_s: float = 0.0
    twice: At | None = None
    late: At | None = None
    late_s: float = 60.0
    nbytes: Callable[[Trial, int], int] = lambda trial, step: 1
    damaged: Callable[[int, int], bool] | None = None


@dataclass(frozen=True, slots=True)
class Away:
    """A worker that is lost: until when, and the attempt at a trial that it was lost with."""

    back: float
    trial: int
    attempt: int


@dataclass(slots=True)
class World:
    """What outlives a driver. It is also the place where checkpoints lie (`raytuner.driver.Shelf`)."""

    now: float = 0.0
    checkpoints: set[tuple[int, int]] = field(default_factory=set)
    leases: list[tuple[Lease, int]] = field(default_factory=list)
    """Every lease that ever ran, with the step it truly started from."""
    steps: int = 0
    """How many steps were made."""
    repeated: int = 0
    """How many of them had been made before, by the same trial."""
    _sizes: dict[tuple[int, int], int] = field(default_factory=dict)
    highest: dict[int, int] = field(default_factory=dict)
    """The highest step that each trial has made."""
    peak: int = 0
    """How many checkpoints there were at most at the same time."""
    nbytes: int = 0
    """How large all that are there are."""
    peak_bytes: int = 0
    quarantined: set[tuple[int, int]] = field(default_factory=set)
    away: dict[int, Away] = field(default_factory=dict)
    """Workers that are lost."""

    def undo_losses(self, written: Container[tuple[int, int]]) -> None:
        """Those workers are there that were lost with other attempts (trial, number) than are ``written`` down to have
        failed: such an attempt is made again, and it is then that it loses its worker, one and not two."""
        self.away = {n: each for n, each in self.away.items() if (each.trial, each.attempt) in written}

    def made(self, trial: int, after: int, step: int) -> None:
        """A trial made the steps after one up to another."""
        highest = self.highest.get(trial, 0)
        self.steps += step - after
        self.repeated += max(min(step, highest) - after, 0)
        self.highest[trial] = max(step, highest)

    def save(self, trial: int, step: int, nbytes: int = 1) -> None:
        if (trial, step) not in self.checkpoints:
            self.checkpoints.add((trial, step))
            self._sizes[trial, step] = nbytes
            self.nbytes += nbytes
        self.peak = max(self.peak, len(self.checkpoints))
        self.peak_bytes = max(self.peak_bytes, self.nbytes)

    def delete(self, trial: int, step: int) -> None:
        if (trial, step) in self.checkpoints:
            self.checkpoints.remove((trial, step))
            self.nbytes -= self._sizes.pop((trial, step), 0)

    def sweep(self, referenced: set[tuple[int, int]]) -> object:
        for trial, step in self.checkpoints - referenced:
            self.delete(trial, step)
        return None

    def sweep_trial(self, trial: int, referenced: set[int]) -> object:
        return self.sweep({(t, step) for t, step in self.checkpoints if t != trial or step in referenced})

    def quarantine(self, trial: int, step: int) -> str | None:
        if (trial, step) not in self.checkpoints:
            return None
        self.delete(trial, step)
        self.quarantined.add((trial, step))
        return f"quarantine/{trial}-{step}"


@dataclass(slots=True)
class _Running:
    """A lease under way. Times are counted from ``zero``, the step from which it was first begun."""

    lease: Lease
    worker: int
    begun: int
    zero: int
    pace: float
    step: int  # the last that was made
    after: float = 0.0  # seconds from `zero` to it
    spent: float = 0.0  # seconds from `begun` to it
    metrics: Metrics = field(default_factory=dict)  # of it, if it was made in this lease
    due: int = 0  # the step that is heard of next
    due_after: float = 0.0  # the same of that one
    due_spent: float = 0.0


class Simulation:
    """Executor and clock of one driver: ``slots`` workers, of which each runs one lease at a time.

    ``skip``: reports in the middle of a lease that change nothing are not made. Fit for studies whose scheduler does
    not judge every report; all else is exactly the same.
    """

    def __init__(self, world: World, workload: Workload, slots: int, skip: bool = False) -> None:
        self._world = world
        self._workload = workload
        self._skip = skip
        self._ready: deque[Event] = deque()
        self._running: dict[tuple[int, int], _Running] = {}
        self._parked: dict[int, tuple[int, int]] = {}  # trial -> worker, step; longest parked first
        self._due: list[tuple[float, int, int]] = []  # (time of the next report, trial, attempt)
        self._later: list[tuple[float, int, Callable[[float], None]]] = []  # (time, number, what else happens)
        self._count = count()
        self._heard = -math.inf  # the last instant of which all was told
        world.away = {worker: away for worker, away in world.away.items() if away.back > world.now}
        for worker, away in world.away.items():
            self._plan_later(away.back, partial(self._return, worker))
        self._idle = [worker for worker in range(slots) if worker not in world.away]  # a heap of those with no trial
        self._slots = len(self._idle)
        self._ready.append(Slots(world.now, self._slots))

    def now(self) -> float:
        """Virtual seconds."""
        return self._world.now

    def run(self, lease: Lease) -> None:
        if len(self._running) >= self._slots:
            raise AssertionError(f"lease {lease} was given out, but all {self._slots} slots are taken")
        if self._is_damaged(lease):
            message = f"checkpoint {lease.checkpoint} of trial {lease.donor} is damaged: made to be"
            assert lease.checkpoint is not None
            who = lease.trial.id, lease.attempt, lease.donor, lease.checkpoint
            self._ready.append(Damaged(self._world.now, *who, message))
            return
        worker, begun = self._place(lease)
        self._world.leases.append((lease, begun))
        zero, pace = min(begun, lease.origin), self._workload.pace(worker)
        running = _Running(lease, worker, begun, zero, pace, step=zero)
        running.after = self._times(running, begun)[0]
        running.step, running.spent = begun, 0.0
        self._running[lease.trial.id, lease.attempt] = running
        self._plan(running)

    def unwind(self, trial: int, attempt: int) -> None:
        parked = self._parked.pop(trial, None)
        if parked is not None:
            heapq.heappush(self._idle, parked[0])
        running = self._running.get((trial, attempt))
        if running is not None:
            self._catch_up(running)
            self._end(running, How.UNWOUND, self._world.now)
            self._say_late(running, self._world.now)

    def wait(self, timeout_s: float | None) -> Sequence[Event]:
        """What happens next: everything at the next instant at which anything does. The timeout is virtual, too."""
        deadline = math.inf if timeout_s is None else self._world.now + timeout_s
        while not self._ready:
            at = min((heap[0][0] for heap in (self._due, self._later) if heap), default=None)
            if at is None:
                raise AssertionError("nothing runs, and somebody waits for it")
            if at > deadline:
                self._world.now = self._heard = deadline
                return []
            self._world.now, self._heard = max(self._world.now, at), at
            while self._later and self._later[0][0] == at:
                heapq.heappop(self._later)[2](at)
            while self._due and self._due[0][0] == at:
                _, trial, attempt = heapq.heappop(self._due)
                if (trial, attempt) in self._running:
                    self._step(self._running[trial, attempt], at)
        events = list(self._ready)
        self._ready.clear()
        return events

    def close(self, at_once: bool = False) -> None:
        """Whatever runs is gone; the steps it made were made."""
        for running in self._running.values():
            self._catch_up(running)
        self._running.clear()

    # ------------------------------------------------------------------------------------------- workers, and time

    def _is_damaged(self, lease: Lease) -> bool:
        """Whether a lease would have to begin from a checkpoint that is damaged."""
        damaged = self._workload.damaged
        if damaged is None or lease.checkpoint is None or lease.trial.id in self._parked:
            return False
        return damaged(lease.donor, lease.checkpoint)

    def _place(self, lease: Lease) -> tuple[int, int]:
        """Which worker runs a lease, and from which step: where its trial is parked, else if possible where none is."""
        parked = self._parked.pop(lease.trial.id, None)
        if parked is not None:
            return parked
        if lease.checkpoint is not None and (lease.donor, lease.checkpoint) not in self._world.checkpoints:
            raise AssertionError(f"the checkpoint that {lease} starts from does not exist")
        begun = lease.checkpoint or 0
        if lease.checkpoint is not None:
            digest = f"{lease.donor}/{lease.checkpoint}"
            if lease.digest not in ("", digest):
                raise AssertionError(f"{lease} starts from the checkpoint {digest}")
            loaded = Loaded(self._world.now, lease.trial.id, lease.attempt, lease.donor, lease.checkpoint, digest)
            self._ready.append(loaded)
        if self._idle:
            return heapq.heappop(self._idle), begun
        return self._parked.pop(next(iter(self._parked)))[0], begun  # its slot is wanted

    def _times(self, running: _Running, step: int) -> tuple[float, float]:
        """Seconds to the end of a step, from where the lease was first begun and from where it began now."""
        load, trial = self._workload, running.lease.trial
        if load.even:
            seconds = load.seconds(trial, 1) * running.pace
            return (step - running.zero) * seconds, (step - running.begun) * seconds
        after, spent = running.after, running.spent
        for number in range(running.step + 1, step + 1):
            seconds = load.seconds(trial, number) * running.pace
            after += seconds
            spent += seconds
        return after, spent

    def _plan(self, running: _Running) -> None:
        lease = running.lease
        running.due = self._next(running)
        # To return takes no time.
        running.due_after, running.due_spent = self._times(running, min(running.due, self._workload.length))
        heapq.heappush(self._due, (lease.since + running.due_after, lease.trial.id, lease.attempt))

    def _next(self, running: _Running) -> int:
        """The next step of a lease that anybody hears of."""
        load, lease, step = self._workload, running.lease, running.step + 1
        last = min(END if load.level else lease.until, load.length, load.stops)
        if not self._skip or lease.each_report or lease.last or step >= last:
            return step
        if load.saves is None and load.fault is None and load.ends is None and load.level is None:
            return last
        return next((number for number in range(step, last) if self._is_news(running, number)), last)

    def _is_news(self, running: _Running, step: int) -> bool:
        load, lease = self._workload, running.lease
        if load.fault is not None and load.fault(lease.trial, step, lease.tries):
            return True
        if load.saves is not None and load.saves(lease.trial, step):
            return True
        if load.ends is None and load.level is None:
            return False
        said = self._said(lease.trial, step)
        if load.ends is not None and load.ends(lease.trial, said, step == running.begun + 1):
            return True
        return self._level(lease.trial, step, said) >= lease.until

    def _plan_later(self, at: float, what: Callable[[float], None]) -> None:
        heapq.heappush(self._later, (at, next(self._count), what))

    # ----------------------------------------------------------------------------------------------- what happens

    def _step(self, running: _Running, at: float) -> None:
        """The next step of a lease that is heard of."""
        lease, load, step = running.lease, self._workload, running.due
        trial = lease.trial
        if step > load.length:
            self._end(running, How.RETURNED, at)
            return
        failure = load.fault(trial, step, lease.tries) if load.fault is not None else None
        self._made(running, step if failure is None else step - 1, running.due_after, running.due_spent)
        if failure is not None:
            self._fail(running, failure, f"made to fail at step {step}", at)
            self._say_late(running, at)
            return
        running.metrics = self._said(trial, step)
        level = self._level(trial, step, running.metrics)
        reached = level >= lease.until
        saves = load.saves_at_end and (lease.last or reached or step >= load.stops)
        if saves or (load.saves is not None and load.saves(trial, step)):
            self._world.save(trial.id, step, nbytes := load.nbytes(trial, step))
            saves = True
        else:
            nbytes = 0
        report = Report(step, level, running.metrics, at, f"{trial.id}/{step}" if saves else "", nbytes)
        said = Reported(at, trial.id, lease.attempt, (report,))
        self._ready.append(said)
        if load.twice is not None and load.twice(trial, step, lease.tries):
            self._ready.append(said)
        ends = None if load.ends is None else load.ends(trial, running.metrics, step == running.begun + 1)
        if isinstance(ends, Failure):
            self._fail(running, ends, f"{ends.value}, at step {step}", at)
        elif ends is not None or step >= load.stops:
            self._end(running, How.STOPPED, at)
        elif lease.last and not reached:
            self._end(running, How.UNWOUND, at)
        elif reached or lease.each_report:
            self._end(running, How.REACHED, at)
        else:
            self._plan(running)

    def _said(self, trial: Trial, step: int) -> Metrics:
        return {"training_iteration": step, **self._workload.curve(trial, step)}

    def _level(self, trial: Trial, step: int, said: Metrics) -> float:
        return float(step) if self._workload.level is None else self._workload.level(trial, step, said)

    def _made(self, running: _Running, step: int, after: float, spent: float) -> None:
        self._world.made(running.lease.trial.id, running.step, step)
        running.step, running.after, running.spent = step, after, spent

    def _catch_up(self, running: _Running) -> None:
        """Make the steps that nobody heard of, up to the last instant of which all was told."""
        before = running.step
        while running.step + 1 < running.due:
            after, spent = self._times(running, running.step + 1)
            if running.lease.since + after > self._heard:
                break
            self._made(running, running.step + 1, after, spent)
        if running.step > before:
            running.metrics = self._said(running.lease.trial, running.step)

    def _end(self, running: _Running, how: How, at: float) -> None:
        lease = running.lease
        del self._running[lease.trial.id, lease.attempt]
        if how.parks:
            self._parked[lease.trial.id] = running.worker, running.step
        else:
            heapq.heappush(self._idle, running.worker)
        level = self._level(lease.trial, running.step, running.metrics) if running.metrics else float(running.step)
        ended = Ended(at, lease.trial.id, lease.attempt, how, running.step, level, running.metrics, running.spent)
        self._ready.append(ended)

    def _fail(self, running: _Running, failure: Failure, message: str, at: float) -> None:
        lease = running.lease
        del self._running[lease.trial.id, lease.attempt]
        if failure is Failure.LOST and self._workload.away_s:
            self._lose(running.worker, lease, at)
        else:
            heapq.heappush(self._idle, running.worker)
        self._ready.append(Failed(at, lease.trial.id, lease.attempt, failure, message, running.spent))

    def _lose(self, worker: int, lease: Lease, at: float) -> None:
        """A worker is gone for a while; before its lease is over, or its slot would be given out once more."""
        back = at + self._workload.away_s
        self._world.away[worker] = Away(back, lease.trial.id, lease.attempt)
        self._slots -= 1
        self._ready.append(Slots(at, self._slots))
        self._plan_later(back, partial(self._return, worker))

    def _return(self, worker: int, at: float) -> None:
        del self._world.away[worker]
        heapq.heappush(self._idle, worker)
        self._slots += 1
        self._ready.append(Slots(at, self._slots))

    def _say_late(self, running: _Running, at: float) -> None:
        """An attempt that is dead had one more step under way."""
        lease, load, step = running.lease, self._workload, running.step + 1
        if load.late is not None and load.late(lease.trial, step, lease.tries):
            said = self._said(lease.trial, step)
            report = Report(step, self._level(lease.trial, step, said), said, at)

            def say(late: float) -> None:
                self._ready.append(Reported(late, lease.trial.id, lease.attempt, (report,)))

            self._plan_later(at + load.late_s, say)
