"""The small types every other module speaks in, and the table of legal state changes.

Nothing here acts. A `Trial` is what was asked for, a `Report` is what it said, an `Observation` is the same as
searchers and schedulers see it (one number, lower is better).

Units: a *step* is Ray's ``training_iteration``, an integer from 1. ``until`` and rungs are steps, or, when the study
has another ``time_attr``, values of that metric. Times are seconds.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Self, overload

Config = Mapping[str, Any]
"""Names to plain Python values, nested as the user nested them in ``param_space``."""

Metrics = Mapping[str, Any]
"""What a trial reported at one step: names to scalars, nested names joined by ``/``."""

END = 2**53
"""An ``until`` that no trial reaches: the lease runs until the user's function ends by itself."""


class State(Enum):
    """Where a trial is."""

    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    DONE = "DONE"
    STOPPED = "STOPPED"
    FAILED = "FAILED"

    __hash__ = object.__hash__  # there is one of each: no need to hash its name, at every change of a state

    @property
    def over(self) -> bool:
        """Whether no trial leaves this state."""
        return not LEGAL[self]


LEGAL: Mapping[State | None, frozenset[State]] = {
    None: frozenset({State.RUNNING}),
    State.RUNNING: frozenset({State.PAUSED, State.DONE, State.STOPPED, State.FAILED}),
    State.PAUSED: frozenset({State.RUNNING, State.DONE, State.STOPPED}),
    State.DONE: frozenset(),
    State.STOPPED: frozenset(),
    State.FAILED: frozenset(),
}
"""The states a trial may go to from each state; ``None`` is a trial that does not exist yet."""


class Why(Enum):
    """Why a trial is over. The value is the sentence shown to the user."""

    RETURNED = "the training function returned"
    STOP_RULE = "the run's stop rule was met"
    FULL_BUDGET = "it reached the scheduler's last rung"
    NOT_PROMOTED = "it was not among the best of its rung"
    NO_PROMISE = "it did worse than its rung's cutoff"
    REPLACED = "a fork of a better trial took its place"
    SCHEDULER_DONE = "the scheduler ended without resuming it"
    ERROR = "the training function raised an error"
    OUT_OF_MEMORY = "the accelerator's memory was too small for it"
    HOST_OUT_OF_MEMORY = "the machine's memory was too small for it"
    HUNG = "it reported nothing for too long"
    NOT_REPORTABLE = "it reported a value that no table can hold"
    LOST = "its worker was lost too often without progress"
    NO_VALUE = "it did not report a usable value of the metric"
    NO_SOURCE = "the trial it was to continue from has no checkpoint"
    NO_RESOURCES = "what it was to reserve cannot be had"
    STUDY_STOPPED = "the run's stop rule ended the study"

    @property
    def state(self) -> State:
        """The state a trial that is over for this reason is in."""
        if self in (Why.RETURNED, Why.STOP_RULE, Why.FULL_BUDGET):
            return State.DONE
        if self in (Why.NOT_PROMOTED, Why.NO_PROMISE, Why.REPLACED, Why.SCHEDULER_DONE, Why.STUDY_STOPPED):
            return State.STOPPED
        return State.FAILED


class Failure(Enum):
    """What kind of failure ended an attempt; each has its own allowance in `raytuner.retry`."""

    ERROR = "the training function raised an error"
    OUT_OF_MEMORY = "the accelerator's memory was too small"
    HOST_OUT_OF_MEMORY = "the machine's memory was too small"
    HUNG = "nothing was reported for too long"
    NOT_REPORTABLE = "a reported value is of a kind that no table can hold"
    LOST = "the worker was lost"
    NODE = "the node was lost, or is to go"
    NO_METRIC = "a report did not hold the metric"
    NOT_FINITE = "the metric was not a finite number"
    NO_RESOURCES = "what it was to reserve cannot be had"
    STORAGE = "the storage failed"


@dataclass(frozen=True, slots=True)
class Trial:
    """What was asked for: one configuration for life. A fork is a new trial whose ``parent`` is its source."""

    id: int
    config: Config
    parent: int | None = None


UNDER_WAY = "under way"
"""In the place of a manifest's hash: the checkpoint is being published; `raytuner.events.Checkpointed` says when it is
there."""


@dataclass(frozen=True, slots=True)
class Report:
    """One thing a trial said: one row of the reports table.

    ``metrics`` holds plain scalars, Ray's automatic metrics among them. ``level`` is the value of the study's
    ``time_attr`` (equal to ``step`` unless the user chose another). ``checkpoint`` is the hash of the manifest of the
    checkpoint of this step, if one was published before the report was made; `UNDER_WAY` if it was not yet; else "".
    ``nbytes``: its files' size.
    """

    step: int
    level: float
    metrics: Metrics
    at: float
    checkpoint: str = ""
    nbytes: int = 0


class Reports(Sequence[Report]):
    """What one lease of a trial said, in the order of steps, as columns: that is how it travels and is written.

    ``steps``, ``levels``, ``at``, ``checkpoints``: as in `Report`, a list each, all of one length. ``metrics``: a list
    for each metric, None where it was not reported. ``constants``: metrics that are the same in all of these reports.
    ``nbytes``: the checkpoints' sizes by step, where there are any.
    """

    __slots__ = ("at", "attempt", "checkpoints", "constants", "levels", "metrics", "nbytes", "steps", "trial")

    def __init__(
        self,
        trial: int,
        attempt: int,
        steps: list[int],
        levels: list[float],
        at: list[float],
        checkpoints: list[str],
        metrics: dict[str, list[Any]],
        constants: dict[str, Any],
        nbytes: dict[int, int] | None = None,
    ) -> None:
        self.trial = trial
        self.attempt = attempt
        self.steps = steps
        self.levels = levels
        self.at = at
        self.checkpoints = checkpoints
        self.metrics = metrics
        self.constants = constants
        self.nbytes = nbytes or {}

    @classmethod
    def of(cls, trial: int, attempt: int, reports: Sequence[Report]) -> Self:
        """The same as columns."""
        names = dict.fromkeys(name for report in reports for name in report.metrics)
        return cls(
            trial,
            attempt,
            [report.step for report in reports],
            [report.level for report in reports],
            [report.at for report in reports],
            [report.checkpoint for report in reports],
            {name: [report.metrics.get(name) for report in reports] for name in names},
            {},
            {report.step: report.nbytes for report in reports if report.nbytes},
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), tuple(getattr(self, name) for name in _COLUMNS)

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[Report]:
        return (self[place] for place in range(len(self.steps)))

    @overload
    def __getitem__(self, index: int) -> Report: ...
    @overload
    def __getitem__(self, index: slice) -> Reports: ...
    def __getitem__(self, index: int | slice) -> Report | Reports:
        if isinstance(index, slice):
            return Reports(
                self.trial,
                self.attempt,
                self.steps[index],
                self.levels[index],
                self.at[index],
                self.checkpoints[index],
                {name: values[index] for name, values in self.metrics.items()},
                self.constants,
                self.nbytes,
            )
        metrics = {name: values[index] for name, values in self.metrics.items() if values[index] is not None}
        return Report(
            self.steps[index],
            self.levels[index],
            {**self.constants, **metrics},
            self.at[index],
            self.checkpoints[index],
            self.nbytes.get(self.steps[index], 0),
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Reports):
            return NotImplemented
        return (self.trial, self.attempt, list(self)) == (other.trial, other.attempt, list(other))

    __hash__ = None  # type: ignore[assignment]  # it is made of lists

    def __repr__(self) -> str:
        return f"Reports(trial {self.trial}, attempt {self.attempt}, {list(self)!r})"

    def after(self, step: int) -> Reports:
        """Those beyond a step."""
        if self.steps and self.steps[0] > step:
            return self
        return self[bisect_right(self.steps, step) :]


_COLUMNS = ("trial", "attempt", "steps", "levels", "at", "checkpoints", "metrics", "constants", "nbytes")


@dataclass(frozen=True, slots=True)
class Observation:
    """A rung's outcome as searchers and schedulers see it.

    ``value`` is the scalar to rank by, lower is better; None where there is none (the trial failed). ``values`` are
    the raw objectives, as the user reported them. ``until`` is the rung: the target of the lease that ended; ``step``
    and ``level`` are where the trial truly stood (reports may skip a rung). ``running``: this is a report in the middle
    of a lease, which goes on; only schedulers that judge every report see such. ``ended``: the trial will not run
    again.
    """

    trial: int
    config: Config
    step: int
    level: float
    until: int
    value: float | None
    values: tuple[float, ...] = ()
    feasibility: tuple[float, ...] = ()
    spent: float = 0.0
    failure: Failure | None = None
    running: bool = False
    ended: bool = False


@dataclass(frozen=True, slots=True)
class Pending:
    """A trial that runs or waits at a rung: its last known step, and the rung it is on its way to."""

    trial: int
    config: Config
    step: int
    until: int


@dataclass(frozen=True, slots=True)
class Lease:
    """One run of a trial towards ``until``: what an executor is asked to do.

    ``attempt`` numbers the leases of a trial as they are given out, from 1; rows of an older attempt are refused.
    ``tries`` counts failures and losses so far. ``checkpoint`` is the step whose checkpoint to start from when the
    trial is not parked where it runs (None: from the beginning); ``donor`` is the trial it belongs to.
    ``digest`` is the hash of its manifest, if that is known: what is loaded must have it.
    ``since`` and ``origin`` are the time at which, and the step from which, this run was first begun: a driver that
    died and came back leaves both as they were. ``spent``: seconds of slot time in earlier leases, of a fork also
    those of the trials whose training it continues. ``each_report``:
    the lease ends at the next report, whether or not that reaches ``until``. ``last``: the trial makes one more step,
    which is to be saved, and its function ends. ``slot``: what it reserves (None: what the study's trials do).
    ``save``: the next step is to be saved, for the trial is to reserve something else from there.
    """

    trial: Trial
    attempt: int
    until: int
    checkpoint: int | None
    donor: int
    tries: int
    since: float
    origin: int
    spent: float = 0.0
    each_report: bool = False
    last: bool = False
    digest: str = ""
    slot: Slot | None = None
    save: bool = False


@dataclass(frozen=True, slots=True)
class Slot:
    """What one trial reserves. ``custom`` names Ray's custom resources."""

    cpu: float = 1.0
    gpu: float = 0.0
    memory_gib: float = 0.0
    custom: Mapping[str, float] = field(default_factory=dict)


def slot_of(resources: Mapping[str, float]) -> Slot:
    """What a dict such as ``{"cpu": 2, "gpu": 0.5}`` reserves; one cpu if it does not say how many."""
    known = {"cpu": 1.0, "gpu": 0.0, "memory": 0.0}
    custom: dict[str, float] = {}
    for name, amount in resources.items():
        if not isinstance(name, str):
            raise TypeError(f"resources must have names such as 'cpu' and 'gpu', got {name!r}")
        if isinstance(amount, bool) or not isinstance(amount, (int, float)) or not amount >= 0:
            raise ValueError(f"resources[{name!r}] must be a number of 0 or more, got {amount!r}")
        if name.lower() in known:
            known[name.lower()] = float(amount)
        else:
            custom[name] = float(amount)
    if known["gpu"] > 1 and known["gpu"] != int(known["gpu"]):
        raise ValueError(f"resources['gpu'] must be a fraction of one GPU or a whole number, got {known['gpu']!r}")
    return Slot(known["cpu"], known["gpu"], known["memory"] / 2**30, custom)
