"""A trial actor: a warm process that holds one slot and runs leases in it, one at a time.

`run` streams what the user's function says, in batches as large as the driver is slow. Between leases at most one
trial is parked here; a lease for it continues it where it stands, any other unwinds it first.
"""

from __future__ import annotations

import gc
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import ray

from raytuner.events import Ended, Failed
from raytuner.session import Rules, Session
from raytuner.trial import Lease, Report

Said = Report | Ended | Failed

_BATCH = 1_000  # items of a batch at most


class TrialActor:
    """Runs the training function ``train(config)``. Wrapped by ``ray.remote`` in `raytuner.executors.ray_actors`."""

    def __init__(self, train: Callable[[Any], Any], rules: Rules) -> None:
        self._train = train
        self._rules = rules
        self._session: Session | None = None
        self._lock = threading.Lock()  # unwind() comes on another thread than run()
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

    def watch(self) -> None:
        """Never answers: the call fails when the process dies, also between leases."""
        threading.Event().wait()

    def run(self, lease: Lease) -> Iterator[list[Said]]:
        """Run a lease; yield what the trial says, ending with how the lease ended."""
        with self._lock:
            session = self._session
            if session is not None and session.parked and session.lease.trial.id == lease.trial.id:
                session.proceed(lease)
            else:
                self._clear()
                session = self._session = Session(self._train, lease, self._rules, self._place)
                session.start()
        while True:
            batch: list[Said] = [session.items.get()]
            while len(batch) < _BATCH and not isinstance(batch[-1], Ended | Failed):
                try:
                    batch.append(session.items.get_nowait())
                except queue.Empty:
                    break
            over, parked = isinstance(batch[-1], Ended | Failed), session.parked
            yield batch
            if over:
                break
        if not parked:  # by now the next lease may be here, and have made room for itself
            with self._lock:
                if self._session is session:
                    self._clear()

    def unwind(self, trial: int) -> None:
        """End a trial: a parked one at once, a running one at its next report."""
        with self._lock:
            session = self._session
            if session is None or session.lease.trial.id != trial:
                return
            if session.parked:
                self._clear()
            else:
                session.unwind()

    def _clear(self) -> None:
        """Make room: end what is parked here, and let go of what it held. A function that will not end takes the
        process with it; the driver sees a lost worker and starts another."""
        session, self._session = self._session, None
        if session is None:
            return
        session.unwind()
        if not session.gone():
            os._exit(1)
        del session
        self._collect()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def _collect(self) -> None:
        """Collect what the trial's function left in cycles, but never for more than a twentieth of the time."""
        begun = time.monotonic()
        if begun - self._collected < 20 * self._collection_s:
            return
        gc.collect()
        self._collected = time.monotonic()
        self._collection_s = self._collected - begun
