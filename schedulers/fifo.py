"""No early stopping: every trial runs to its own end, in the order of the trials' numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raytuner.actions import Action, Done, Start, Stop, Wait
from raytuner.trial import END, Observation


@dataclass(frozen=True)
class FIFOScheduler:
    """Run every trial to its end."""

    def build(self, seed: int) -> Fifo:
        """A fresh scheduler; nothing in it is left to chance."""
        return Fifo()


class Fifo:
    """The machine behind `FIFOScheduler`."""

    every_report = False
    forks = False

    def __init__(self) -> None:
        self._started = 0
        self._running: set[int] = set()
        self._closed = False

    def next(self) -> Action:
        if not self._closed:
            trial = self._started
            self._started += 1
            self._running.add(trial)
            return Start(trial, END)
        return Wait() if self._running else Done()

    def judge(self, seen: Observation) -> list[Stop]:
        if seen.ended:
            self._running.discard(seen.trial)
        return []

    def close(self, unserved: Sequence[int] = ()) -> list[Stop]:
        self._closed = True
        self._running.difference_update(unserved)
        return []

    def reopen(self) -> None:
        self._closed = False
