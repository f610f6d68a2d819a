"""How long a study may run. It is told the study's events, and so counts the lives of earlier drivers too."""

from __future__ import annotations

from raytuner.events import Event, Opened

_TICK_S = 30.0


class TimeBudget:
    """``limit_s`` seconds with a driver at work, over all the drivers a study has had.

    A driver's time is that from its `Opened` to its last event; that in between drivers is free. `tick` says when an
    event is due, if nothing else happens: what no event tells of is not counted if the driver dies.
    """

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._earlier_s = 0.0  # of the drivers before this one
        self._opened: float | None = None
        self._last = 0.0

    @property
    def reason(self) -> str:
        """The sentence for whoever asks why the study ended."""
        return f"its time budget of {self.limit_s:g} s is used up (a larger time_budget_s lets it go on)"

    def note(self, event: Event) -> None:
        """Something happened."""
        if isinstance(event, Opened):
            self.died()
            self._opened = self._last = event.at
        else:
            self._last = max(self._last, event.at)

    def died(self) -> None:
        """There are no more events of the driver that was told of last."""
        if self._opened is not None:
            self._earlier_s += self._last - self._opened
            self._opened = None

    def tick(self, now: float) -> bool:
        """Whether it is time for a `Ticked`."""
        return self._opened is not None and now - self._last >= _TICK_S

    def left_s(self, now: float) -> float:
        """Seconds that are left; not below 0."""
        running = 0.0 if self._opened is None else max(now - self._opened, 0.0)
        return max(self.limit_s - self._earlier_s - running, 0.0)
