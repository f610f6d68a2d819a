"""Failed or lost: again, or give up? Each kind of failure has an allowance of its own."""

from __future__ import annotations

from dataclasses import dataclass

from raytuner.trial import Failure


@dataclass(frozen=True, slots=True)
class Retries:
    """Allowances per trial.

    ``max_failures``: how often a trial whose code raised starts again from its newest checkpoint (-1: always).
    ``max_losses``: how often in a row, without a lease ended or a checkpoint made in between, a trial whose worker
    was lost starts again; losses are the cluster's fault, but code that kills its process must not do so for ever.
    """

    max_failures: int = 0
    max_losses: int = 3

    def __post_init__(self) -> None:
        if isinstance(self.max_failures, bool) or not isinstance(self.max_failures, int) or self.max_failures < -1:
            raise ValueError(f"max_failures must be an integer, -1 (for ever) or more, got {self.max_failures!r}")
        if isinstance(self.max_losses, bool) or not isinstance(self.max_losses, int) or self.max_losses < 0:
            raise ValueError(f"max_losses must be an integer, 0 or more, got {self.max_losses!r}")

    def again(self, failure: Failure, errors: int, losses: int) -> bool:
        """Whether a trial with so many errors, and losses in a row, this one counted in, runs again."""
        match failure:
            case Failure.ERROR:
                return self.max_failures == -1 or errors <= self.max_failures
            case Failure.LOST:
                return losses <= self.max_losses
            case Failure.NO_METRIC | Failure.NOT_FINITE | Failure.NO_RESOURCES:
                return False
            case Failure.STORAGE:  # no fault of the trial's
                return True
