"""A trial actor: a warm process that holds one slot and runs leases in it, one at a time.

Leases come in by `take`, one or several; what the user's function says goes out on one stream, `serve`, which lasts as
long as the actor: in batches as large as the driver is slow. Between leases at most one trial is parked here; a lease
for it continues it where it stands, any other unwinds it first.
"""

from __future__ import annotations

import gc
import os
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray

from raytuner.events import Ended, Failed, How
from raytuner.session import Item, Outbox, Rules, Session
from raytuner.trial import Lease
from raytuner.work import Work


class TrialActor:
    """Runs the user's training function. Wrapped by ``ray.remote`` in `raytuner.executors.ray_actors`."""

    def __init__(self, work: Work, rules: Rules) -> None:
        self._run = work.loaded(ray.get)
        self._rules = rules
        self._outbox = Outbox()
        self._leases: deque[Lease] = deque()  # waiting; the first begins when nothing runs
        self._session: Session | None = None  # running or parked
        self._lock = threading.Lock()  # take(), withdraw(), unwind() come on other threads than serve()
        self._swept = True
        self._collected = 0.0  # when the last collection ended, and how long it took
        self._collection_s = 0.0
        self._place = {
            "hostname": socket.gethostname(),
            "node_ip": ray.util.get_node_ip_address(),
            "pid": os.getpid(),
        }

    def ready(self) -> int:
        """Answers once the process is up and the user's code is imported."""
        gc.collect()
        gc.freeze()  # what is there by now stays; collections between trials need not look at it
        return os.getpid()

    def serve(self) -> Iterator[list[Item]]:
        """Run what is taken, and yield what trials say; never ends."""
        while True:
            said = self._outbox.take()
            with self._lock:
                for item in said:
                    if isinstance(item, Ended | Failed):
                        self._over(item)
                if self._leases and not self._dusty():
                    self._begin()
            if said:
                yield said  # before anything that takes time: the driver waits for it
            with self._lock:
                if not self._busy():
                    self._sweep()
                    self._begin()

    def take(self, leases: Sequence[Lease]) -> None:
        """Run these leases, one after the other."""
        with self._lock:
            self._leases += leases
            if not self._busy():
                self._outbox.poke()

    def withdraw(self) -> list[Lease]:
        """Give back the leases that have not begun."""
        with self._lock:
            leases = list(self._leases)
            self._leases.clear()
            return leases

    def unwind(self, trial: int, attempt: int) -> None:
        """End a lease: one that waits or is parked at once, a running one at its next report."""
        with self._lock:
            for lease in self._leases:
                if (lease.trial.id, lease.attempt) == (trial, attempt):
                    self._leases.remove(lease)
                    self._outbox.put(Ended(time.time(), trial, attempt, How.UNWOUND, 0, 0.0, {}))
                    return
            session = self._session
            if session is None or session.lease.trial.id != trial or session.lease.attempt != attempt:
                return
            if session.parked:
                self._clear()
                self._outbox.poke()  # there is something to sweep
            else:
                session.unwind()

    def close(self) -> None:
        """Let go of what is parked here, and of what the user's code keeps between trials."""
        with self._lock:
            self._clear()
            self._run.close()

    def _busy(self) -> bool:
        return self._session is not None and not self._session.parked

    def _over(self, last: Ended | Failed) -> None:
        """A lease ended; a session that is not parked is at its end, too."""
        session = self._session
        if session is not None and not session.parked and session.lease.trial.id == last.trial:
            self._clear()

    def _begin(self) -> None:
        """Begin the next lease, if there is one and nothing runs."""
        if not self._leases or self._busy():
            return
        lease = self._leases.popleft()
        session = self._session
        if session is not None and session.lease.trial.id == lease.trial.id:
            session.proceed(lease)
            return
        if session is not None:
            self._clear()
            self._sweep()
        self._session = Session(self._run, lease, self._rules, self._place, self._outbox)
        self._session.start()

    def _clear(self) -> None:
        """End what is parked here, or has ended. A function that will not end takes the process with it; the driver
        sees a lost worker and starts another."""
        session, self._session = self._session, None
        if session is None:
            return
        session.unwind()
        if not session.gone():
            os._exit(1)
        self._swept = False

    def _dusty(self) -> bool:
        """Whether there is something to sweep away, and it may be done by now."""
        return not self._swept and time.monotonic() - self._collected >= 20 * self._collection_s

    def _sweep(self) -> None:
        """Let go of what a trial left: cycles, but never for more than a twentieth of the time; cached GPU memory."""
        if self._swept:
            return
        if self._dusty():
            begun = time.monotonic()
            gc.collect()
            self._collected = time.monotonic()
            self._collection_s = self._collected - begun
        self._swept = True
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            torch.cuda.empty_cache()
