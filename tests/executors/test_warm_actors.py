"""Actors that run trial after trial: nothing piles up in them, and nothing is stuck behind what takes long.

With leases given out ahead, with actors that are killed, and with reservations that differ from trial to trial.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from raytuner.events import Ended, Event, Failed, How, Reported, Slots
from raytuner.executors.ray_actors import RayActors
from raytuner.session import Rules
from raytuner.trial import END, Failure, Lease, Slot, Trial
from raytuner.work import Work

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray"), pytest.mark.timeout(120)]


def lease(trial: int, until: int = END, attempt: int = 1, **config: Any) -> Lease:
    return Lease(Trial(trial, config), attempt, until, None, trial, tries=0, since=0.0, origin=0)


@contextmanager
def actors(
    train: Callable[[Any], Any],
    folder: Path,
    slots: int = 2,
    slot: Slot | Callable[[Any], Slot] = Slot(),
    ahead: bool = False,
    **rules: Any,
) -> Iterator[RayActors]:
    executor = RayActors(Work(train), Rules(folder / "checkpoints", {}, **rules), slot, slots, ahead)
    try:
        yield executor
    finally:
        executor.close()


@dataclass
class Desk:
    """Gives leases out, as many as there are slots for, and writes down what is heard.

    A lease that ends twice, or that speaks when it is over, is a defect.
    """

    executor: RayActors
    slots: int = 0
    most: int = 0  # the most slots there were
    out: dict[tuple[int, int], Lease] = field(default_factory=dict)
    over: dict[int, Ended | Failed] = field(default_factory=dict)  # by trial: how its latest lease ended
    last: dict[int, Mapping[str, Any]] = field(default_factory=dict)  # by trial: its latest metrics

    def run(self, leases: Iterable[Lease], done: Callable[[], bool] | None = None, limit_s: float = 60.0) -> None:
        """Until all these leases are over, or ``done``."""
        waiting = list(reversed(list(leases)))
        deadline = time.monotonic() + limit_s
        while (waiting or self.out) if done is None else not done():
            assert time.monotonic() < deadline, f"not done within {limit_s} s: {len(waiting)} wait, {self.out} run"
            while waiting and len(self.out) < self.slots:
                self.give(waiting.pop())
            for event in self.executor.wait(0.5):
                self.hear(event)

    def give(self, lease: Lease) -> None:
        self.out[lease.trial.id, lease.attempt] = lease
        self.executor.run(lease)

    def hear(self, event: Event) -> None:
        match event:
            case Slots(slots=slots):
                self.slots, self.most = slots, max(slots, self.most)
            case Reported(trial=trial, attempt=attempt, reports=reports):
                assert (trial, attempt) in self.out, event
                self.last[trial] = reports[-1].metrics
            case Ended(trial=trial, attempt=attempt) | Failed(trial=trial, attempt=attempt):
                assert self.out.pop((trial, attempt), None) is not None, f"{event}: nobody waits for it"
                self.over[trial] = event


def quick(config: dict[str, Any]) -> None:
    import os

    import raytuner as tune

    tune.report({"pid_seen": os.getpid()})


# -------------------------------------------------------------------------------------------------- nothing piles up


@dataclass(frozen=True)
class Sample:
    """What a process holds. ``threads``: Python's."""

    threads: int
    files: int
    rss_mib: float

    @classmethod
    def here(cls) -> Sample:
        return cls(**held())


def held() -> dict[str, Any]:
    """The same as a dict, for trials to report. It names nothing of this module."""
    import os
    import threading
    from pathlib import Path

    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "threads": threading.active_count(),
        "files": len(os.listdir("/proc/self/fd")),
        "rss_mib": pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
    }


def grown(before: Sequence[Sample], after: Sequence[Sample], leeway_mib: float = 8.0) -> set[str]:
    """What a process holds more of: the least that was seen after, beside the most that was seen before."""
    found = {
        name
        for name in ("threads", "files")
        if min(getattr(each, name) for each in after) > max(getattr(each, name) for each in before)
    }
    if min(each.rss_mib for each in after) > max(each.rss_mib for each in before) + leeway_mib:
        found.add("memory")
    return found


def all_sorts(folder: Path) -> Callable[[dict[str, Any]], None]:
    """Trials that say what their process holds, and then end in every way there is; some leave something behind."""
    measure = held

    def train(config: dict[str, Any]) -> None:
        import builtins
        import os
        import sys
        import threading

        import raytuner as tune

        kept = builtins.__dict__.setdefault("left_behind", [])
        match config.get("leaks"):
            case "threads":
                threading.Thread(target=threading.Event().wait, daemon=True).start()
            case "files":
                kept.append(os.open("/dev/null", os.O_RDONLY))
            case "memory":
                kept.append(os.urandom(64 * 1024))
        ballast = bytearray(100_000)
        if config["does"] == "print":
            print("a line", "x" * 200)
            print("another", file=sys.stderr)
        if config["does"] == "fail":
            cycle: list[Any] = [ballast]
            cycle.append(cycle)
            tune.report({**measure(), "pid_seen": os.getpid()})
            raise ValueError("made to fail")
        tune.report({**measure(), "pid_seen": os.getpid()})

    return train


DOES = ["return", "park", "fail", "print", "park and be unwound"]


def sorts_of_leases(first: int, many: int, **config: Any) -> Iterator[Lease]:
    for trial in range(first, first + many):
        does = DOES[trial * 7 // 3 % len(DOES)]
        yield lease(trial, until=1 if does.startswith("park") else END, does=does, **config)


@pytest.mark.timeout(180)
def test_nothing_piles_up_in_five_hundred_trials(tmp_path: Path) -> None:
    """Threads, open files and memory, in the actors and in the driver; and what leaks is seen to."""
    ours: dict[int, Sample] = {}

    with actors(all_sorts(tmp_path), tmp_path / "study", chdir=True, stdout="out", stderr="err") as executor:
        desk = Desk(executor)

        def run(first: int, many: int, **config: Any) -> dict[int, list[Sample]]:
            """Samples of these trials by process, in the order of trials."""
            for one in (iterator := sorts_of_leases(first, many, **config)):
                desk.run([one], lambda: len(desk.out) < desk.slots)
                del iterator
            found: dict[int, list[Sample]] = {}
            return found

        run(0, 1)
    assert ours
