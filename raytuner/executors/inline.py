"""The executor for a debugger: trials run in this process, in the thread that calls `serve`, one at a time.

Breakpoints, ``pdb`` and profilers work as in any script, and what the user's function raises can be looked at where it
happens. The driver's loop runs in a thread beside it. All else is as in a trial actor: a trial that reached its rung is
parked inside `report`, goes on there if its next lease comes next, and is unwound if another's does.

What it does not do: reserve resources, run in parallel, or end a function that does not return when it is told to.
"""

from __future__ import annotations

import bdb
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from raytuner.events import Ended, Event, Reported, Slots
from raytuner.session import Rules, Runner
from raytuner.surroundings import clear_spares
from raytuner.trial import Lease, Reports
from raytuner.work import Work

_T = TypeVar("_T")


class Left(Exception):
    """The thread that ran the trials is gone: there is nobody left to run any."""


class Inline:
    """Leases in this process. `serve` runs them; the other methods are the driver's, in its own thread."""

    def __init__(self, work: Work, rules: Rules) -> None:
        self._run = work.loaded()
        place: dict[str, str | int] = {"hostname": socket.gethostname(), "node_ip": "127.0.0.1", "pid": os.getpid()}
        self._runner = Runner(self._run, rules, place, leaves=(KeyboardInterrupt, bdb.BdbQuit))
        self._begun = False
        self._left = False
        self._parked: int | None = None  # as far as the driver knows

    def serve(self, drive: Callable[[], _T]) -> _T:
        """Call ``drive``, which uses this executor, in another thread, and run here what it gives out.

        Returns what it returns, raises what it raises. Ctrl-C and leaving the debugger end both.
        """
        outcome: list[_T] = []
        errors: list[BaseException] = []

        def driver() -> None:
            try:
                outcome.append(drive())
            except BaseException as error:
                errors.append(error)
            finally:
                self._runner.close()

        thread = threading.Thread(target=driver, name="raytuner-driver", daemon=True)
        thread.start()
        try:
            self._serve()
        except BaseException:
            self._left = True
            self._runner.outbox.hurry()
            thread.join()
            raise
        thread.join()
        if errors:
            raise errors[0]
        return outcome[0]

    def run(self, lease: Lease) -> None:
        self._parked = None
        self._runner.leases.add([lease])

    def unwind(self, trial: int, attempt: int) -> None:
        self._runner.unwind(trial, attempt, parked=self._parked == trial)

    def wait(self, timeout_s: float | None) -> Sequence[Event]:
        if not self._begun:
            self._begun = True
            return [Slots(time.time(), 1)]
        said = self._runner.outbox.take(timeout_s)
        if self._left:
            raise Left
        events: list[Event] = []
        for item in said:
            if isinstance(item, Reports):
                events.append(Reported(item.at[-1], item.trial, item.attempt, item))
            else:
                self._parked = item.trial if isinstance(item, Ended) and item.how.parks else None
                events.append(item)
        return events

    def close(self, at_once: bool = False) -> None:
        """The thread that serves ends what is parked, and closes the user's code, when the driver returns."""

    def _serve(self) -> None:
        try:
            while (lease := self._runner.leases.next()) is not None:
                self._runner.run(lease)
        finally:
            self._run.close()
            clear_spares()
