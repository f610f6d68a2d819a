"""ASHA in its promotion form: trials are paused at rungs, and go on when they turn out to be among the best.

Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning" (arXiv:1810.05934), algorithm 2. When a slot is
free, the highest rung that has one promotes its best paused trial among the top ``floor(n / eta)`` of its ``n``
results; else a new trial starts. Rungs, brackets and skipped rungs are as in the stopping form (``asha.py``). A paused
trial holds no slot: what has no checkpoint may have to begin anew when it is promoted.

Where the paper is silent, or lets more through:

- Of the ``n`` results of a rung at most ``floor(n / eta)`` are ever promoted. The paper's rule alone promotes more when
  early promotions fall out of the top: at ``eta=3`` seven of nine that come one by one, each better than all before.
- Of equal results at a rung the earlier is the better; of rungs at the same height that of the lower bracket is first.
- A trial that ended at a rung, or while it was paused there, keeps its place in the ranking, does not go on and passes
  its place to nobody. A trial that failed counts at no rung from there on; its promotion stays used.
- At the end, when no more trials come, nothing runs and no rung may promote any more, the best paused trial of the
  highest rung goes on all the same, unless some trial ended well farther on. So a study has a trial that was trained to
  its end, however few there are. Then those that are still paused are stopped.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import TYPE_CHECKING

from raytuner.actions import Action, Done, Resume, Start, Stop, Wait
from raytuner.schedulers.rungs import further
from raytuner.trial import Observation, Why

if TYPE_CHECKING:
    from raytuner.schedulers.asha import Deal


@dataclass(slots=True)
class Rung:
    """One rung of one bracket; ``height`` is its index into the steps. A result's turn: how many came before it."""

    bracket: int
    height: int
    results: list[tuple[float, int]] = field(default_factory=list)  # (value, turn), best first
    paused: list[tuple[float, int, int]] = field(default_factory=list)  # a heap: (value, turn, trial); some have ended
    promoted: int = 0

    def add(self, value: float) -> int:
        """Take note of a result; its turn."""
        turn = len(self.results)
        insort(self.results, (value, turn))
        return turn

    def promotes(self, eta: int) -> bool:
        """Whether the best of the paused trials may go on."""
        places = len(self.results) // eta
        return bool(self.paused) and self.promoted < places and bisect_left(self.results, self.paused[0][:2]) < places


class PromotingAsha:
    """The machine behind `AsyncHyperBandScheduler` with ``promotion``. ``steps``: the rungs, and where a trial is
    done."""

    every_report = False
    forks = False

    def __init__(self, steps: list[int], eta: int, deal: Deal) -> None:
        self._steps = steps
        self._eta = eta
        self._deal = deal
        self._rungs = [[Rung(bracket, height) for height in range(len(steps))] for bracket in range(deal.brackets)]
        self._from_the_top = [rungs[height] for height in reversed(range(len(steps) - 1)) for rungs in self._rungs]
        self._started = 0
        self._running: dict[int, Rung] = {}  # trial to the rung that it is on its way to
        self._done: list[list[tuple[float, int]]] = [
            [] for _ in range(deal.brackets)
        ]  # at the last rung; (value, trial)
        self._revived: deque[tuple[int, Rung]] = deque()  # of these, and the rung that they go on to
        self._paused: set[int] = set()
        self._farthest = 0  # the highest rung that a trial ended well at, or on the way to
        self._closed = False

    def next(self) -> Action:
        if self._revived:
            trial, rung_above = self._revived.popleft()
            return Resume(trial, self._run(trial, rung_above.bracket, rung_above.height))
        rung = self._promoting()
        if rung is not None:
            _, _, trial = heappop(rung.paused)
            rung.promoted += 1
            self._paused.remove(trial)
            return Resume(trial, self._run(trial, rung.bracket, rung.height + 1))
        if not self._closed:
            trial = self._started
            self._started += 1
            bracket = self._deal.bracket(trial)
            return Start(trial, self._run(trial, bracket, min(bracket, len(self._steps) - 1)))
        return Wait() if self._running else Done()

    def reopen(self) -> None:
        self._closed = False

    def extend(self, max_t: int) -> list[int]:
        """More steps: the last rung becomes one like the others, and promotes its best at once, at least one."""
        top = len(self._steps) - 1
        self._steps = further(self._steps, max_t, self._eta)
        heights = range(len(self._steps))
        revived = []
        for bracket, rungs in enumerate(self._rungs):
            rungs += [Rung(bracket, height) for height in heights[len(rungs) :]]
            places = max(1, len(rungs[top].results) // self._eta)
            best = sorted(self._done[bracket])[:places]
            rungs[top].promoted = len(best)
            self._revived += [(trial, rungs[top + 1]) for _, trial in best]
            revived += [trial for _, trial in best]
            self._done[bracket] = []
        self._from_the_top = [rungs[height] for height in reversed(heights[:-1]) for rungs in self._rungs]
        return revived

    def judge(self, seen: Observation) -> list[Stop]:
        if seen.ended and seen.trial in self._paused:
            self._paused.remove(seen.trial)
            return self._settle()
        rung = self._running.get(seen.trial)
        if rung is None or not (seen.ended or seen.until == self._steps[rung.height]):
            return []  # it was said before
        del self._running[seen.trial]
        why = self._arrive(seen, rung)
        stops = [] if why is None or seen.ended else [Stop(seen.trial, why)]
        return stops + self._settle()

    def close(self, unserved: Sequence[int] = ()) -> list[Stop]:
        self._closed = True
        for trial in unserved:
            self._running.pop(trial, None)
        return self._settle()

    def _run(self, trial: int, bracket: int, height: int) -> int:
        self._running[trial] = self._rungs[bracket][height]
        return self._steps[height]

    def _arrive(self, seen: Observation, rung: Rung) -> Why | None:
        """Take note of the end of a lease that was to reach ``rung``; why the trial must go, or None if it pauses."""
        if seen.value is None:
            return Why.NO_VALUE
        # Reports may skip rungs: the result counts at the highest one it reached.
        height = bisect_right(self._steps, seen.level) - 1
        if height < rung.height:  # it ended on the way: its last rung has its result already
            self._farthest = max(self._farthest, height + 1)
            return None
        reached = self._rungs[rung.bracket][height]
        turn = reached.add(seen.value)
        if height == len(self._steps) - 1:
            self._farthest = height
            if not seen.ended:
                self._done[rung.bracket].append((seen.value, seen.trial))
            return Why.FULL_BUDGET
        if seen.ended:
            self._farthest = max(self._farthest, height)
        else:
            heappush(reached.paused, (seen.value, turn, seen.trial))
            self._paused.add(seen.trial)
        return None

    def _promoting(self) -> Rung | None:
        """The rung whose best paused trial goes on, if a slot is free."""
        for rung in self._from_the_top:
            while rung.paused and rung.paused[0][2] not in self._paused:
                heappop(rung.paused)
            if rung.promotes(self._eta):
                return rung
        if self._closed and not self._running and self._paused:
            top = min((rung for rung in self._from_the_top if rung.paused), key=lambda r: (-r.height, r.paused[0]))
            return top if top.height >= self._farthest else None
        return None

    def _settle(self) -> list[Stop]:
        """Stop the paused trials, if none of them will ever go on."""
        if not self._closed or self._running or self._revived or self._promoting() is not None:
            return []
        stops = [Stop(trial, Why.NOT_PROMOTED) for trial in sorted(self._paused)]
        self._paused.clear()
        return stops
