"""Hyperband: brackets of synchronous successive halving.

Li et al. 2018, "Hyperband: A Novel Bandit-Based Approach to Hyperparameter Optimization" (JMLR 18), algorithm 1, with
the ceiling form of its table: brackets of 81 34 15 8 5 trials at ``max_t=81, reduction_factor=3``, the one that starts
lowest first, and round again. All levels and sizes are integers (`raytuner.schedulers.rungs`).

- A rung is settled when all its members were heard of: the best ``floor(n / reduction_factor)`` go on, by (value,
  trial), and at least one; the others are stopped. ``n`` counts the rung's members, failed ones (as the worst) too.
- A trial that ended by itself keeps its place in the ranking, does not go on and passes its place to nobody; only
  if no other trial would go on at all does the best that still can.
- Several brackets are open at once, so no slot idles: promoted trials first, those of older brackets before those of
  younger ones, else a new trial, in a new bracket when the others are full.
- When no more trials come, the bracket that was being filled is settled with the members it has.
- Reports may skip rungs: the result counts at every rung it passed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import cycle

from raytuner.actions import Action, Done, Resume, Start, Stop, Wait
from raytuner.schedulers.rungs import Bracket, brackets, check_mode, whole
from raytuner.trial import END, Observation, Why


@dataclass(frozen=True)
class HyperBandScheduler:
    """Give many trials few steps and the best of them more, in brackets that weigh "many" against "more" differently.

    Args:
        time_attr: the metric that measures progress; steps and rungs are in its unit.
        metric, mode: what to rank by, and "min" or "max"; None takes ``TuneConfig``'s.
        max_t: a trial is done at this step.
        reduction_factor: how many times fewer trials go on, and how many times further is the next rung.
        stop_last_trials: False lets the trials that are promoted to ``max_t`` run to their own end.
        grace_period: no rung is lower (not in Ray).
    """

    time_attr: str = "training_iteration"
    metric: str | None = None
    mode: str | None = None
    max_t: int = 81
    reduction_factor: int = 3
    stop_last_trials: bool = True
    grace_period: int = 1

    def __post_init__(self) -> None:
        check_mode(self.mode)
        object.__setattr__(self, "max_t", whole("max_t", self.max_t, 1, END - 1))
        object.__setattr__(self, "reduction_factor", whole("reduction_factor", self.reduction_factor, 2))
        object.__setattr__(self, "grace_period", whole("grace_period", self.grace_period, 1, self.max_t))

    def build(self, seed: int) -> Hyperband:
        """A fresh scheduler; nothing in it is left to chance."""
        table = brackets(self.grace_period, self.max_t, self.reduction_factor)
        if not self.stop_last_trials:
            table = [Bracket(bracket.size, (*bracket.steps[:-1], END)) for bracket in table]
        return Hyperband(table, self.reduction_factor)


@dataclass(frozen=True)
class HyperBandForBOHB(HyperBandScheduler):
    """Ray's name for Hyperband under BOHB; `HyperBandScheduler` here does what BOHB needs, so they are the same."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a member of a rung achieved. ``value`` None: it failed."""

    value: float | None
    level: float


@dataclass(slots=True)
class Halving:
    """One bracket under way. All its members are at the same rung."""

    number: int
    plan: Bracket
    vacant: int  # places that no trial was started for yet
    rung: int = 0
    awaited: set[int] = field(default_factory=set)  # members that run to this rung, or are promoted to it
    heard: dict[int, Result] = field(default_factory=dict)  # the other members

    @property
    def until(self) -> int:
        return self.plan.steps[self.rung]


class Hyperband:
    """The machine behind `HyperBandScheduler`."""

    every_report = False
    forks = False

    def __init__(self, table: list[Bracket], eta: int) -> None:
        self._eta = eta
        self._plans = cycle(table)
        self._started = 0
        self._opened = 0
        self._filling = self._open()
        self._alive: dict[int, Halving] = {}  # the trials that are not over; finished brackets are held by nobody
        self._running: dict[int, int] = {}  # trial to its lease's `until`
        self._ready: list[tuple[int, int, int]] = []  # a heap of promoted trials: (bracket, place, trial)
        self._closed = False

    def next(self) -> Action:
        while self._ready:
            _, _, trial = heappop(self._ready)
            if trial in self._alive:
                self._running[trial] = until = self._alive[trial].until
                return Resume(trial, until)
        if not self._closed:
            return self._start()
        return Wait() if self._alive else Done()

    def judge(self, seen: Observation) -> list[Stop]:
        halving = self._alive.get(seen.trial)
        if halving is None or not (seen.ended or seen.until == self._running.get(seen.trial)):
            return []  # it was said before
        self._running.pop(seen.trial, None)
        # A paused trial that ends keeps the result that it has at its rung.
        halving.heard.setdefault(seen.trial, Result(seen.value, seen.level))
        halving.awaited.discard(seen.trial)
        stops: list[Stop] = []
        why = None
        if seen.value is None:
            why = Why.NO_VALUE
        elif max(seen.until, seen.level) >= halving.plan.steps[-1]:
            why = Why.FULL_BUDGET
        if seen.ended or why is not None:
            del self._alive[seen.trial]
        if why is not None and not seen.ended:
            stops.append(Stop(seen.trial, why))
        return stops + self._settle(halving)

    def close(self, unserved: Sequence[int] = ()) -> list[Stop]:
        self._closed = True
        touched = [self._filling]
        for trial in unserved:
            if trial in self._alive:
                halving = self._alive.pop(trial)
                halving.awaited.remove(trial)
                del self._running[trial]
                touched.append(halving)
        return [stop for halving in touched for stop in self._settle(halving)]

    def reopen(self) -> None:
        if self._closed:
            self._closed = False
            if self._filling.rung or not self._filling.awaited:  # it was settled as it was
                self._filling = self._open()

    def _start(self) -> Start:
        if not self._filling.vacant:
            self._filling = self._open()
        halving = self._filling
        trial = self._started
        self._started += 1
        halving.vacant -= 1
        halving.awaited.add(trial)
        self._alive[trial] = halving
        self._running[trial] = halving.until
        return Start(trial, halving.until)

    def _open(self) -> Halving:
        plan = next(self._plans)
        self._opened += 1
        return Halving(number=self._opened, plan=plan, vacant=plan.size)

    def _settle(self, halving: Halving) -> list[Stop]:
        """Promote and stop, if all members were heard of; and again, if all who go on skipped the next rung."""
        stops: list[Stop] = []
        while not halving.awaited and (self._closed or not halving.vacant):
            ranked = sorted((r.value, trial) for trial, r in halving.heard.items() if r.value is not None)
            places = len(halving.heard) // self._eta
            alive = [trial for _, trial in ranked if trial in self._alive]
            promoted = [trial for _, trial in ranked[:places] if trial in self._alive] or alive[:1]
            if not promoted:
                break
            for trial in alive[len(promoted) :]:  # those who go on are the best of those who can
                del self._alive[trial]
                stops.append(Stop(trial, Why.NOT_PROMOTED))
            self._promote(halving, promoted)
        return stops

    def _promote(self, halving: Halving, promoted: list[int]) -> None:
        """Move a bracket to its next rung, with these members, best first."""
        halving.rung += 1
        results, halving.heard = halving.heard, {}
        for place, trial in enumerate(promoted):
            if results[trial].level >= halving.until:
                halving.heard[trial] = results[trial]
            else:
                halving.awaited.add(trial)
                heappush(self._ready, (halving.number, place, trial))
