"""What a study is told (`Event`) and what it wants done (`Command`).

Each event happened at a time ``at``, in seconds since the epoch, read by whoever saw it. A study's whole life is the
sequence of its events; `raytuner.record.journal` writes them down and gives them back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from raytuner.actions import Answer, Fork, Resume, Start
from raytuner.trial import Failure, Lease, Metrics, Observation, Pending, Report, Slot, State, Why

# --------------------------------------------------------------------------------------------------------- events


class How(Enum):
    """How a lease ended without failing."""

    REACHED = "reached"  # a report reached `until`, or was to be the only one; the trial is parked, or can go on
    RETURNED = "returned"  # the user's function returned
    STOPPED = "stopped"  # a report met the run's stop rule
    UNWOUND = "unwound"  # it was told to end

    @property
    def parks(self) -> bool:
        """Whether the trial's function is still there, waiting inside `report`."""
        return self is How.REACHED


@dataclass(frozen=True, slots=True)
class Opened:
    """A driver took the study: the first (epoch 1), or one after its predecessor died. Nothing runs any more.

    ``in_order``: leases are given out anew in the order in which they ran and waited; as records of earlier versions
    were made, in that of the trials' numbers.
    """

    at: float
    epoch: int
    in_order: bool = False


@dataclass(frozen=True, slots=True)
class Slots:
    """So many leases may run at the same time from now on.

    ``nodes``: what each node of the cluster has, where trials may come to reserve something else and that is news.
    """

    at: float
    slots: int
    nodes: Sequence[Slot] | None = None


@dataclass(frozen=True, slots=True)
class Proposed:
    """The searcher answered."""

    at: float
    trial: int
    answer: Answer


@dataclass(frozen=True, slots=True)
class Reported:
    """Reports arrived from a running lease. The study hears it only if its scheduler judges every report."""

    at: float
    trial: int
    attempt: int
    reports: Sequence[Report]


@dataclass(frozen=True, slots=True)
class Checkpointed:
    """A checkpoint of this step is published; ``metrics`` are those of its report, ``digest`` its manifest's hash,
    ``nbytes`` the size of its files."""

    at: float
    trial: int
    attempt: int
    step: int
    metrics: Metrics
    digest: str = ""
    nbytes: int = 0


@dataclass(frozen=True, slots=True)
class Loaded:
    """A lease begins from a checkpoint, of this step of ``source``, that was read and found whole."""

    at: float
    trial: int
    attempt: int
    source: int
    step: int
    digest: str


@dataclass(frozen=True, slots=True)
class Ended:
    """A lease ended. ``metrics`` are those of the last report, empty where none was made since the restart.

    ``spent``: seconds of slot time that this lease took.
    """

    at: float
    trial: int
    attempt: int
    how: How
    step: int
    level: float
    metrics: Metrics
    spent: float = 0.0


@dataclass(frozen=True, slots=True)
class Failed:
    """An attempt failed; ``message`` is the traceback or what is known.

    ``remedy``: what is changed of the trial's configuration from now on; the user's ``on_oom`` said so, as memory was
    short.
    """

    at: float
    trial: int
    attempt: int
    failure: Failure
    message: str
    spent: float = 0.0
    remedy: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Damaged:
    """A lease could not begin, and is over: its checkpoint, of this step of ``source``, is not what was published."""

    at: float
    trial: int
    attempt: int
    source: int
    step: int
    message: str
    spent: float = 0.0


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time passed."""

    at: float


@dataclass(frozen=True, slots=True)
class StopAsked:
    """Somebody asked the study to end early: nothing new starts, and what runs is unwound.

    It stays resumable, unless it is to end ``for_good``: then every trial is over.
    """

    at: float
    reason: str
    for_good: bool = False


@dataclass(frozen=True, slots=True)
class Extended:
    """The user has the study go on beyond what was planned (`raytuner.extension`).

    ``trials``: how many are started, all in all (None: as many as the searcher has configurations for). ``max_t``: the
    scheduler's new last rung, if it has one. ``respaced``: the searcher was made anew, for another space. ``changes``:
    what differs from ``study.json`` from now on.
    """

    at: float
    trials: int | None
    max_t: int | None
    respaced: bool
    changes: Mapping[str, Any]


Event = (
    Opened
    | Slots
    | Proposed
    | Reported
    | Checkpointed
    | Loaded
    | Ended
    | Failed
    | Damaged
    | Ticked
    | StopAsked
    | Extended
)

# ------------------------------------------------------------------------------------------------------- commands


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask the searcher, now; the answer comes back as `Proposed`."""

    trial: int
    until: int
    pending: Sequence[Pending]


@dataclass(frozen=True, slots=True)
class Tell:
    """Tell the searcher."""

    seen: Observation


@dataclass(frozen=True, slots=True)
class Run:
    """Run a lease."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class Unwind:
    """End a trial's code, wherever it runs or is parked."""

    trial: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Over:
    """A trial reached its final state."""

    trial: int
    state: State
    why: Why
    message: str = ""


@dataclass(frozen=True, slots=True)
class Retry:
    """A trial runs again after a failure, a loss or a driver's death, from its newest checkpoint."""

    trial: int
    checkpoint: int | None


@dataclass(frozen=True, slots=True)
class Drop:
    """Delete a checkpoint: nothing refers to it any more."""

    trial: int
    step: int


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Put a damaged checkpoint aside: nothing refers to it any more, but somebody may want to look at it."""

    trial: int
    step: int


@dataclass(frozen=True, slots=True)
class Finish:
    """The study is over; ``complete`` unless it was asked to stop and can be resumed."""

    complete: bool
    reason: str


Decision = Start | Resume | Fork | Over | Retry | Drop | Quarantine | Finish
"""What is journaled of a study's wishes; the rest follows from it."""

Command = Ask | Tell | Run | Unwind | Decision
