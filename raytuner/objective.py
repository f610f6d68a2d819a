"""What a study optimises: a report's metrics become one number, lower is better.

The sign flips here and nowhere else. So does the policy for values that cannot be ranked: a report without the metric
and a value that is not a finite number both end the trial as failed (searchers are told; nothing is retried, for the
same code would say the same again).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from raytuner.trial import Failure, Metrics


@dataclass(frozen=True, slots=True)
class Reading:
    """A report seen through an objective: a value to rank by, or a failure and a sentence about it."""

    value: float | None
    values: tuple[float, ...] = ()
    failure: Failure | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class Objective:
    """The metric to optimise, and in which direction (``mode``: ``"min"`` or ``"max"``).

    Without a metric every value is 0.0: fit for searchers and schedulers that rank nothing. A value that cannot be
    ranked ends a trial at once; if ``patient``, only where it must be ranked, at the end of a lease.
    """

    metric: str | None
    mode: str = "min"
    patient: bool = False

    def __post_init__(self) -> None:
        if self.metric is not None and (not isinstance(self.metric, str) or not self.metric):
            raise ValueError(f"metric must be the name of a reported metric, got {self.metric!r}")
        if self.mode not in ("min", "max"):
            raise ValueError(f"mode must be 'min' or 'max', got {self.mode!r}")

    def read(self, metrics: Metrics) -> Reading:
        """Find the value to rank by in a report."""
        if self.metric is None:
            return Reading(0.0)
        if self.metric not in metrics:
            names = ", ".join(sorted(name for name in metrics if name not in AUTOMATIC)) or "nothing"
            return Reading(
                None, (), Failure.NO_METRIC, f"no metric {self.metric!r} in the report; the trial reported: {names}"
            )
        raw = metrics[self.metric]
        value = _finite(raw)
        if value is None:
            return Reading(
                None, (), Failure.NOT_FINITE, f"metric {self.metric!r} was {raw!r}; a finite number is needed"
            )
        return Reading(-value if self.mode == "max" else value, (value,))

    def better(self, raw: float, than: float) -> bool:
        """Whether one raw value of the metric beats another."""
        return raw > than if self.mode == "max" else raw < than


def _finite(raw: object) -> float | None:
    """A reported value as a float, None if it is no finite number."""
    if isinstance(raw, bool) or not isinstance(raw, (int, float)):
        return None
    try:
        value = float(raw)
    except OverflowError:  # a whole number that no float holds
        return None
    return value if math.isfinite(value) else None


AUTOMATIC = (
    "training_iteration",
    "time_this_iter_s",
    "time_total_s",
    "time_since_restore",
    "iterations_since_restore",
    "timestamp",
    "date",
    "done",
    "checkpoint_dir_name",
    "trial_id",
    "hostname",
    "node_ip",
    "pid",
)
"""The metrics that are added to each report, as Ray does."""
