"""What goes into and comes out of a process that runs trials: leases in (`Leases`), what trials say out (`Outbox`).

Reports are on the path of every training step: what they say is put down as it is, and becomes columns (`Outbox.take`)
in the thread that sends them, a few milliseconds' worth at a time. No Ray here, and nothing that runs.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from raytuner.events import Checkpointed, Damaged, Ended, Failed, Loaded
from raytuner.trial import Lease, Metrics, Reports

_BACKLOG = 10_000  # reports that may wait to be sent before `report` blocks
_BATCH = 5_000  # reports that are sent together at most
_MUCH = 250  # reports that wait for no more
_LINGER_S = 0.05  # how long reports, for which nobody waits, wait for more: so that a driver may have many actors
_ENDS_LINGER_S = 0.004  # and ends that are not urgent: else those who give out leases could not keep up

Item = Reports | Loaded | Checkpointed | Ended | Failed | Damaged
"""What an executor hears."""


class Leases:
    """What is to run in this process, in order. One thread takes: it runs `next`, and its trial, while it is parked,
    waits for `next_of`. Others may add, take away, and tell the one that was taken last to end."""

    def __init__(self) -> None:
        self._waiting: deque[Lease] = deque()
        self._changed = threading.Condition()
        self._taken: tuple[int, int] | None = None  # trial and attempt of the last
        self._unwound = False  # whether that is to end
        self._parked = False  # whether it is over, and its trial waits for the next
        self._closed = False

    def add(self, leases: Iterable[Lease]) -> None:
        with self._changed:
            self._waiting += leases
            self._changed.notify()

    def withdraw(self) -> list[Lease]:
        """Give back all that wait."""
        with self._changed:
            leases = list(self._waiting)
            self._waiting.clear()
            return leases

    def unwind(self, trial: int, attempt: int, parked: bool = False) -> bool:
        """Have a lease end; whether it only waited, and is gone now.

        ``parked``: the lease is over already, and its trial is to go. Otherwise, if the trial has parked meanwhile,
        nothing happens: whoever asks will hear of it, and knows best what is to become of the trial.
        """
        with self._changed:
            for lease in self._waiting:
                if (lease.trial.id, lease.attempt) == (trial, attempt):
                    self._waiting.remove(lease)
                    return True
            if self._taken == (trial, attempt) and self._parked == parked:
                self._unwound = True
                self._changed.notify()
            return False

    def close(self) -> None:
        """Nothing more is run, and what runs is to end."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify()

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def more(self) -> bool:
        """Whether any wait."""
        return bool(self._waiting)

    @property
    def unwound(self) -> bool:
        """Whether the lease that was taken last is to end."""
        return self._unwound or self._closed

    def next(self, timeout_s: float | None = None) -> Lease | None:
        """Wait for the next lease; None when there will be none, or none has come in time."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed, timeout_s)
            return self._take() if self._waiting else None

    def park(self) -> None:
        """The lease that was taken last is over; its trial will ask for the `next_of` it."""
        with self._changed:
            self._parked = True

    def next_of(self, trial: int) -> Lease | None:
        """Wait, with this trial parked, for its next lease; None when it must make room."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self.unwound)
            if self.unwound or self._waiting[0].trial.id != trial:
                return None
            return self._take()

    def _take(self) -> Lease:
        lease = self._waiting.popleft()
        self._taken, self._unwound, self._parked = (lease.trial.id, lease.attempt), lease.last, False
        return lease


class Outbox:
    """What the sessions of this process have said, until it is sent. One thread takes."""

    def __init__(self) -> None:
        self._items: deque[Said | Loaded | Checkpointed | Ended | Failed | Damaged] = deque()
        self._awake = threading.Event()
        self._idle = False  # whether somebody waits for anything at all
        self._urgent = False  # whether there is something that should not wait for more
        self._soon = False  # whether there is something that should not wait for long
        self._room = threading.Condition()
        self._crowded = False
        self._closed = False

    def put(self, item: Loaded | Checkpointed | Ended | Failed | Damaged, urgent: bool = True) -> None:
        """Put down what a lease began from, what it saved or how it ended; ``urgent``: somebody waits for it."""
        self._items.append(item)
        ends = isinstance(item, Ended | Failed | Damaged)
        if urgent:
            self.hurry()
        elif self._idle or (ends and not self._soon):
            self._soon = ends
            self._awake.set()

    def hurry(self) -> None:
        """Let `take` return with what there is, perhaps nothing."""
        self._urgent = True
        self._awake.set()

    def report(self, said: Said) -> None:
        """Put down a report; waits while too many have not been sent."""
        self._items.append(said)
        waiting = len(self._items)
        if self._idle or waiting == _MUCH:
            self._awake.set()
        if waiting >= _BACKLOG:
            with self._room:
                self._crowded = True
                self._room.wait_for(lambda: len(self._items) < _BACKLOG or self._closed)

    def close(self) -> None:
        """Perhaps nobody takes any more: `report` waits for nobody."""
        with self._room:
            self._closed = True
            self._room.notify_all()

    def take(self, timeout_s: float | None = None) -> list[Item]:
        """Wait for something to be said, and a moment longer if it is not urgent; return what is there.

        Whoever makes reports without pause is not woken up for, nor held up by, each of them.
        """
        items = self._items
        if not items and not self._urgent:
            self._awake.clear()
            self._idle = True
            if not items and not self._urgent:
                self._awake.wait(timeout_s)
            self._idle = False
        if not self._soon:
            self._linger(_LINGER_S)
        if self._soon:
            self._linger(_ENDS_LINGER_S)
        waiting = len(items)
        self._urgent, self._soon = waiting > _BATCH, False  # of what is left, nobody knows how urgent it is
        raw = [items.popleft() for _ in range(min(waiting, _BATCH))]
        if self._crowded:
            with self._room:
                self._crowded = False
                self._room.notify_all()
        found: list[Item] = []
        for frame, said in itertools.groupby(raw, _frame_of):
            if frame is not None:
                found.append(columns_of(frame, cast(list[Said], list(said))))
            else:
                found += [item for item in said if isinstance(item, Loaded | Checkpointed | Ended | Failed | Damaged)]
        return found

    def _linger(self, seconds: float) -> None:
        """Wait for more, until there is much, or something that should not wait."""
        soon = self._soon
        self._awake.clear()
        if self._items and not self._urgent and self._soon == soon and len(self._items) < _MUCH:
            self._awake.wait(seconds)


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """What all reports of one lease have in common. ``origin``: the step before the session's first. ``nbytes``: the
    sizes of their checkpoints, by step."""

    lease: Lease
    origin: int
    ran_s: float  # in the session's earlier leases
    place: Mapping[str, Any]
    nbytes: dict[int, int] = field(default_factory=dict)


Said = tuple[Frame, int, float, float, float, float, str, dict[str, Any]]
"""A report as it is put down: frame, step, level, time, seconds since the report before and since the lease began,
the hash of the checkpoint's manifest if there is one, or `UNDER_WAY`, what the user said. A plain tuple, for it is made
at every training step."""


def _frame_of(item: Said | Loaded | Checkpointed | Ended | Failed | Damaged) -> Frame | None:
    return item[0] if isinstance(item, tuple) else None


def columns_of(frame: Frame, said: list[Said]) -> Reports:
    """Reports of one lease as columns, Ray's automatic metrics among them; what the user said by the same name wins."""
    _, steps, levels, at, took, since, checkpoints, flats = (list(column) for column in zip(*said, strict=True))
    lease, ran_s = frame.lease, frame.ran_s
    metrics: dict[str, list[Any]] = {
        "training_iteration": steps,
        "time_this_iter_s": took,
        "time_total_s": [lease.spent + seconds for seconds in since],
        "time_since_restore": [ran_s + seconds for seconds in since],
        "iterations_since_restore": [step - frame.origin for step in steps],
        "timestamp": [int(when) for when in at],
    }
    constants = {"trial_id": str(lease.trial.id), **frame.place}
    names = flats[0].keys()
    if not all(flat.keys() == names for flat in flats):
        names = dict.fromkeys(name for flat in flats for name in flat).keys()
    for name in names:
        values = [flat.get(name) for flat in flats]
        ours = metrics.get(name) or ([constants.pop(name)] * len(values) if name in constants else None)
        if ours is not None:
            values = [value if name in flat else own for value, own, flat in zip(values, ours, flats, strict=True)]
        if name != "training_iteration":
            metrics[name] = values
    sizes = {step: frame.nbytes[step] for step in steps if step in frame.nbytes}
    return Reports(lease.trial.id, lease.attempt, steps, levels, at, checkpoints, metrics, constants, sizes)


def row_of(said: Said) -> Metrics:
    return columns_of(said[0], [said])[0].metrics
