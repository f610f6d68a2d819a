"""Ctrl-C and SIGTERM, as a request first: the study saves what runs and ends resumable. The second leaves at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

_SIGNALS = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


class Interrupts:
    """While this is entered, the first signal is noted in `asked`; the next raises KeyboardInterrupt where it arrives.

    Python handles signals in the main thread only: entered in another, nothing changes.
    """

    def __init__(self) -> None:
        self.asked: str | None = None
        """What asked to stop, if anything did: ``Ctrl-C`` or ``SIGTERM``."""
        self.status = 0
        """The exit status a shell expects of a program that this ended."""
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):  # as under nohup; None: not Python's
                    self._before[number] = signal.signal(number, self._heard)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            if signal.getsignal(number) == self._heard:  # else somebody has another by now, as Ray when it starts
                signal.signal(number, handler)
        self._before.clear()

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if self.asked is not None:
            raise KeyboardInterrupt
        self.asked, self.status = _SIGNALS[signal.Signals(number)], 128 + number
