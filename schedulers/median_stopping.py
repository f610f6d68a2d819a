"""The median stopping rule, around another scheduler: who does worse than half of the others did by then is stopped.

Golovin et al. 2017, "Google Vizier: A Service for Black-Box Optimization" (KDD), section 3.2.2, in Ray Tune's variant.
At each report from ``grace_period`` on, a trial is stopped if the best of all its reports so far is strictly worse than
the median of the other trials' running averages at that time.

- A running average at time ``t`` is the mean of what a trial reported from ``grace_period`` up to ``t``; the paper has
  no grace period. A report counts until the next one comes, nothing is interpolated.
- The others are all that have got as far (their last report is at ``t`` or later) and have an average by then, whether
  they still run, were stopped, or ended: the paper takes only those that have ended. There must be
  ``min_samples_required`` of them. Of an even number the median is the mean of the two in the middle.
- A trial that failed keeps what it had reported before; a report without a usable value counts nowhere, and nobody is
  stopped at it. Ray counts a trial's last report twice when the trial is complete; here each step counts once.
- The scheduler inside decides what runs and how far, and hears of a trial that is stopped here as of one that ended.
  ``time_attr`` may fall when a trial is set back to a checkpoint: it counts as the highest so far.

No pausing in place of stopping (Ray's ``hard_stop=False``, ``min_time_slice``): a trial has its slot for a whole lease.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol, cast

from raytuner.actions import Action, Stop
from raytuner.protocols import Reopening, Scheduler, SchedulingPolicy
from raytuner.schedulers.explore import Feasible, built
from raytuner.schedulers.fifo import FIFOScheduler
from raytuner.schedulers.rungs import check_mode, whole
from raytuner.spelling import make, spell
from raytuner.trial import Observation, Why


@dataclass(frozen=True)
class MedianStoppingRule:
    """Stop a trial whose best value is worse than the median of the others' running averages.

    Args:
        time_attr: the metric that measures progress.
        metric, mode: what to rank by, and "min" or "max"; None takes ``TuneConfig``'s.
        grace_period: no trial is stopped before, and reports from before are in no average; in ``time_attr``'s unit.
        min_samples_required: so many other trials must have got as far.
        min_time_slice, hard_stop: as in Ray only 0 and True are possible.
        scheduler: what decides which trials run, and how far (not in Ray); None is ``FIFOScheduler()``. Also as
            ``{"name": ..., "args": {...}}``, one of raytuner's own.
    """

    time_attr: str = "time_total_s"
    metric: str | None = None
    mode: str | None = None
    grace_period: float = 60.0
    min_samples_required: int = 3
    min_time_slice: int = 0
    hard_stop: bool = True
    scheduler: SchedulingPolicy | None = None

    def __post_init__(self) -> None:
        check_mode(self.mode)
        object.__setattr__(self, "grace_period", _time("grace_period", self.grace_period))
        object.__setattr__(self, "min_samples_required", whole("min_samples_required", self.min_samples_required, 1))
        if self.min_time_slice != 0:
            raise ValueError(
                f"min_time_slice={self.min_time_slice!r}: expected 0; a trial does not give its slot away in mid-lease"
            )
        if not self.hard_stop:
            raise ValueError(
                f"hard_stop={self.hard_stop!r}: expected True; a trial cannot be paused in mid-lease, only at a rung. "
                "To pause trials and promote the best, use AsyncHyperBandScheduler(promotion=True)"
            )
        object.__setattr__(self, "scheduler", _policy(self.scheduler))
        if hasattr(self.scheduler, "resources_allocation_function"):
            raise ValueError("scheduler is a ResourceChangingScheduler, which would change nothing: put this inside it")
        for name in ("time_attr", "metric", "mode"):
            ours, theirs = getattr(self, name), getattr(self.scheduler, name, None)
            if theirs is not None and theirs != ours:
                raise ValueError(f"{name} is {ours!r} in MedianStoppingRule, but {theirs!r} in the scheduler inside it")

    @property
    def explores(self) -> bool:
        """Whether the scheduler inside makes configurations."""
        return bool(getattr(self.scheduler, "explores", False))

    def build(self, seed: int, feasible: Feasible | None = None) -> MedianStopping:
        """A fresh scheduler; the rule itself leaves nothing to chance."""
        assert self.scheduler is not None
        curves = StepCurves if self.time_attr == "training_iteration" else LevelCurves
        inner = built(self.scheduler, seed, feasible)
        return MedianStopping(inner, curves(self.grace_period), self.grace_period, self.min_samples_required)

    def to_json(self) -> dict[str, Any]:
        """The arguments, with the scheduler inside by its name and arguments."""
        from raytuner.schedulers import SCHEDULERS  # which holds this class

        args = {each.name: getattr(self, each.name) for each in fields(self)}
        return {**args, "scheduler": spell(self.scheduler, SCHEDULERS)}


def _time(name: str, value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf:
        return float(value)
    raise ValueError(f"{name}={value!r}: expected a number of at least 0")


def _policy(scheduler: object) -> SchedulingPolicy:
    """The scheduler to put inside, from an object, its spelling or None."""
    from raytuner.schedulers import SCHEDULERS  # which holds the class above

    match scheduler:
        case None:
            return FIFOScheduler()
        case {"name": str(), "args": _}:
            policy: SchedulingPolicy = make(cast(Mapping[str, Any], scheduler), SCHEDULERS)
            return policy
        case _ if callable(getattr(scheduler, "build", None)) and not isinstance(scheduler, type):
            return scheduler  # type: ignore[return-value]
        case _:
            ours = ", ".join(f"{name}()" for name in SCHEDULERS)
            raise TypeError(f"scheduler must be one of {ours}, or None; got {scheduler!r:.80}")


class Curves(Protocol):
    """The running averages of all trials."""

    def add(self, trial: int, level: float, value: float) -> None:
        """A trial reported a value; its levels never fall."""

    def others(self, trial: int, level: float) -> Sequence[float]:
        """The averages, lowest first, that the other trials have at a level which this one has just reported at."""


@dataclass(slots=True)
class Mean:
    """Of the values so far."""

    count: int = 0
    total: float = 0.0

    def add(self, value: float) -> float:
        self.count += 1
        self.total += value
        return self.value

    @property
    def value(self) -> float:
        return self.total / self.count


@dataclass(slots=True)
class Curve:
    """One trial's running average after each of its reports."""

    mean: Mean = field(default_factory=Mean)
    levels: list[float] = field(default_factory=list)
    means: list[float] = field(default_factory=list)


class LevelCurves:
    """Averages where each trial reports at levels of its own: looked up, trial by trial."""

    def __init__(self, since: float) -> None:
        self._since = since
        self._curves: defaultdict[int, Curve] = defaultdict(Curve)

    def add(self, trial: int, level: float, value: float) -> None:
        if level >= self._since:
            curve = self._curves[trial]
            curve.levels.append(level)
            curve.means.append(curve.mean.add(value))

    def others(self, trial: int, level: float) -> Sequence[float]:
        return sorted(
            curve.means[bisect_right(curve.levels, level) - 1]
            for other, curve in self._curves.items()
            if curve.levels[0] <= level <= curve.levels[-1] and other != trial
        )


class StepCurves:
    """Averages where all trials report at the steps 1, 2, 3 …: kept in order for each step, so that none is looked for.

    The same answers as `LevelCurves`, in time that hardly grows with the number of trials.
    """

    def __init__(self, since: float) -> None:
        self._since = since
        self._means: defaultdict[int, Mean] = defaultdict(Mean)  # by trial
        self._steps: dict[int, int] = {}  # the last that each trial has an average for
        self._averages: defaultdict[int, list[float]] = defaultdict(list)  # by step, lowest first

    def add(self, trial: int, level: float, value: float) -> None:
        step = int(level)
        if step < self._since:
            return
        mean = self._means[trial]
        for passed in range(self._steps.get(trial, step) + 1, step):  # it reported no usable value there
            insort(self._averages[passed], mean.value)
        insort(self._averages[step], mean.add(value))
        self._steps[trial] = step

    def others(self, trial: int, level: float) -> Sequence[float]:
        averages = self._averages[int(level)]
        own = bisect_left(averages, self._means[trial].value)
        return averages[:own] + averages[own + 1 :]


@dataclass(slots=True)
class Said:
    """What a trial has said so far."""

    step: int = 0
    level: float = 0.0
    best: float = math.inf


class MedianStopping:
    """The machine behind `MedianStoppingRule`: judges each report, and asks ``inner`` for everything else."""

    every_report = True

    def __init__(self, inner: Scheduler, curves: Curves, grace_period: float, least: int) -> None:
        self.forks = inner.forks
        self.inner = inner
        self._curves = curves
        self._grace_period = grace_period
        self._least = least
        self._said: defaultdict[int, Said] = defaultdict(Said)
        self._over: set[int] = set()

    def next(self) -> Action:
        return self.inner.next()

    def judge(self, seen: Observation) -> list[Stop]:
        if seen.trial in self._over:
            return []
        stops = [] if seen.running and not self.inner.every_report else self._bury(self.inner.judge(seen))
        if seen.ended:
            self._over.add(seen.trial)
        # The end of a lease repeats its last report.
        if self._note(seen) and seen.running and seen.trial not in self._over and self._hopeless(seen.trial):
            stops += self._bury([Stop(seen.trial, Why.NO_PROMISE)])
            stops += self._bury(self.inner.judge(replace(seen, running=False, ended=True)))
        return stops

    def close(self, unserved: Sequence[int] = ()) -> list[Stop]:
        return self._bury(self.inner.close(unserved))

    def reopen(self) -> None:
        assert isinstance(self.inner, Reopening), "whoever extends a study asks before"
        self.inner.reopen()

    def _bury(self, stops: Sequence[Stop]) -> list[Stop]:
        self._over.update(stop.trial for stop in stops)
        return list(stops)

    def _note(self, seen: Observation) -> bool:
        """Take note of a report; whether it is new and can be ranked."""
        said = self._said[seen.trial]
        if seen.value is None or seen.step <= said.step:
            return False
        said.step = seen.step
        said.level = max(said.level, seen.level)
        said.best = min(said.best, seen.value)
        self._curves.add(seen.trial, said.level, seen.value)
        return True

    def _hopeless(self, trial: int) -> bool:
        """Whether the trial's best value is worse than the median."""
        said = self._said[trial]
        if said.level < self._grace_period:
            return False
        others = self._curves.others(trial, said.level)
        n = len(others)
        return n >= self._least and said.best > (others[(n - 1) // 2] + others[n // 2]) / 2
