"""Stop rules that are code: a function ``(trial_id, result) -> bool``, or a `Stopper`, ours or Ray's.

Such a rule sees every report before its trial goes on, in the driver, with the user's own object: so it may remember
what other trials said. Its verdicts are part of the record. On resume it is shown the recorded reports again, in their
order, so that what it remembers is what it remembered; what it answers then is ignored, for its verdicts are known.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeGuard

from raytuner.events import Ended, How

StopRule = Callable[[str, dict[str, Any]], bool]
"""What `stop=` may be besides a dict: called with the trial's id and its report."""


class Stopper(ABC):
    """A stop rule with a memory; the same shape as ``ray.tune.Stopper``, whose subclasses are taken as well."""

    @abstractmethod
    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Whether a trial ends with this report."""

    @abstractmethod
    def stop_all(self) -> bool:
        """Whether the whole study ends now."""


class Watch:
    """Consults a stop rule about each report; each is shown to it once, so that the rule must have seen none before."""

    def __init__(self, rule: StopRule) -> None:
        self._rule = rule
        self._stop_all: Callable[[], bool] = getattr(rule, "stop_all", lambda: False)
        self._steps: dict[int, int] = {}  # the last that was shown, of each trial

    def consult(self, ended: Ended) -> Ended:
        """The end of a lease as it is once the rule has spoken: a trial that could go on, now or when the study is
        resumed, may be told to stop."""
        stops = self._show(ended)
        return replace(ended, how=How.STOPPED) if stops and ended.how in (How.REACHED, How.UNWOUND) else ended

    def remind(self, ended: Ended) -> None:
        """Show the rule a report that is on record."""
        self._show(ended)

    def stop_all(self) -> bool:
        """Whether the rule ends the whole study."""
        return bool(self._asked(self._stop_all, "stop_all()"))

    def _show(self, ended: Ended) -> bool:
        if ended.step <= self._steps.get(ended.trial, 0) or not ended.metrics:
            return False  # it has seen it: the trial was set back, or only returned
        self._steps[ended.trial] = ended.step
        result = dict(ended.metrics)
        return bool(self._asked(lambda: self._rule(str(ended.trial), result), f"trial {ended.trial} at {ended.step}"))

    def _asked(self, ask: Callable[[], bool], about: str) -> bool:
        try:
            return ask()
        except Exception as error:
            error.add_note(f"raised by the run's stop rule {self._rule!r:.80}, asked about {about}")
            raise


def is_rule(stop: object) -> TypeGuard[StopRule]:
    """Whether this is a stop rule that is code."""
    return callable(stop) and not isinstance(stop, type | Mapping)
