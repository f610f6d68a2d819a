"""A trial actor: a warm process that holds one slot and runs leases in it, one at a time.

Leases come in by `take`, one or several; what the user's function says goes out on one stream, `serve`, which lasts as
long as the actor, in batches. One thread runs all trials: a trial that reached its rung is parked there, goes on if its
next lease comes, and is unwound if another's does.
"""

from __future__ import annotations

import gc
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence

import ray

from raytuner.mailbox import Item
from raytuner.session import Rules, Runner
from raytuner.surroundings import clear_spares
from raytuner.trial import Lease
from raytuner.work import Work

_FRAMES = 60  # of a stack that are shown
_ORPHAN_S = 1.0  # how often an actor looks whether its node's raylet is there
_QUIET_S = 0.02  # an actor that has nothing to do for so long sweeps


class TrialActor:
    """Runs the user's training function. Wrapped by ``ray.remote`` in `raytuner.executors.ray_actors`."""

    def __init__(self, work: Work, rules: Rules) -> None:
        self._run = work.loaded(ray.get)
        self._grace_s = rules.grace_s
        place: dict[str, str | int] = {
            "hostname": socket.gethostname(),
            "node_ip": ray.util.get_node_ip_address(),
            "pid": os.getpid(),
        }
        self._runner = Runner(self._run, rules, place, overdue=_leave)
        self._thread = threading.Thread(target=self._work, name="trials", daemon=True)
        self._closed = False

    def ready(self) -> str:
        """Answers once the process is up and the user's code is imported: on which node."""
        gc.collect()
        gc.freeze()  # what is there by now stays; collections between trials need not look at it
        self._thread.start()
        threading.Thread(target=_leave_with, args=(os.getppid(),), name="orphan", daemon=True).start()
        node: str = ray.get_runtime_context().get_node_id()
        return node

    def serve(self) -> Iterator[list[Item]]:
        """Yield what trials say; ends after `close`: a process does not end while a task runs in it."""
        while not self._closed:
            if said := self._runner.outbox.take():
                yield said

    def take(self, leases: Sequence[Lease]) -> None:
        """Run these leases, one after the other."""
        self._runner.leases.add(leases)

    def withdraw(self) -> list[Lease]:
        """Give back the leases that have not begun."""
        return self._runner.leases.withdraw()

    def unwind(self, trial: int, attempt: int, parked: bool) -> None:
        """End a lease: one that waits or is ``parked`` at once, a running one at its next report."""
        self._runner.unwind(trial, attempt, parked)

    def stack(self) -> str:
        """Where the trial stands that runs here: as a traceback, the call that it is in last."""
        frame = sys._current_frames().get(self._thread.ident or 0)
        return "".join(traceback.format_stack(frame)[-_FRAMES:])

    def close(self) -> None:
        """Let go of what is parked here, and of what the user's code keeps between trials."""
        self._runner.close()
        self._thread.join(self._grace_s)
        self._closed = True
        self._runner.outbox.hurry()

    def _work(self) -> None:
        """Run what is taken, until it is over with this actor."""
        runner, sweeper = self._runner, _Sweeper()
        try:
            while not runner.leases.closed:
                lease = runner.leases.next(_QUIET_S if sweeper.has_work else None)
                if lease is None or sweeper.is_due:
                    sweeper.sweep()
                if lease is not None:
                    runner.run(lease)
                    sweeper.has_work = True
            self._run.close()
            clear_spares()
        except BaseException:  # a defect of ours: as a lost worker it is seen, as a thread that is gone it is not
            traceback.print_exc()
            os._exit(1)


def _leave() -> None:
    """A function that will not end takes its process with it; the driver sees a lost worker and starts another."""
    os._exit(1)


def _leave_with(parent: int) -> None:
    """End this process soon after the raylet that made it: to the cluster it is dead with its node, and its trial runs
    elsewhere; but it may live on for as long as it asks nothing of Ray (20 s were seen on Ray 2.60)."""
    while os.getppid() == parent:
        time.sleep(_ORPHAN_S)
    os._exit(1)


class _Sweeper:
    """Lets go of what trials left: reference cycles, but never for more than a twentieth of the time; cached GPU
    memory."""

    def __init__(self) -> None:
        self.has_work = False
        self._ended = 0.0  # the last collection, and how long it took
        self._took_s = 0.0

    @property
    def is_due(self) -> bool:
        return self.has_work and time.monotonic() - self._ended >= 20 * self._took_s

    def sweep(self) -> None:
        begun = time.monotonic()
        gc.collect()
        self._ended = time.monotonic()
        self._took_s = self._ended - begun
        self.has_work = False
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            torch.cuda.empty_cache()
