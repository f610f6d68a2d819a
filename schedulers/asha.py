"""ASHA: asynchronous successive halving, and with ``brackets > 1`` asynchronous Hyperband.

Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning" (arXiv:1810.05934), in the stopping form that
Ray Tune made popular: a trial that reaches a rung is compared with the results seen there so far, and goes on at once
or is stopped for good. Nothing waits for others, and no trial is paused for long, so no checkpoint is needed. The
paper's algorithm 2, which pauses trials at rungs and promotes them later, is in ``asha_promotion.py``; settings, rungs
and brackets are the same.

- Rungs are at ``grace_period * reduction_factor**k`` steps, below ``max_t``; at ``max_t`` a trial is done.
- A trial goes on if fewer than ``n / reduction_factor`` of the ``n`` results at its rung, its own among them, are
  better; of equal results the earlier is the better. So of the first nine at a rung at most three are good enough at
  ``reduction_factor=3``, and the first always is. Ray compares with an interpolated percentile of the earlier results;
  the two can differ only on a result that falls into the gap interpolated over, or equals another.
- Reports may skip rungs: a result counts at the highest rung that it reached. Failed trials count nowhere.
- Bracket ``s`` leaves out the lowest ``s`` rungs, and compares its trials among themselves. A trial's bracket is drawn
  with Ray's odds: e to the power of its number of rungs.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from raytuner.actions import Action, Done, Resume, Start, Stop, Wait
from raytuner.schedulers.asha_promotion import PromotingAsha
from raytuner.schedulers.rungs import check_mode, further, rising, whole
from raytuner.trial import END, Observation, Why


@dataclass(frozen=True)
class AsyncHyperBandScheduler:
    """Stop a trial at a rung unless it is among the best ``1 / reduction_factor`` of those seen there so far.

    Args:
        time_attr: the metric that measures progress; steps and rungs are in its unit.
        metric, mode: what to rank by, and "min" or "max"; None takes ``TuneConfig``'s.
        max_t: a trial is done at this step.
        grace_period: the lowest rung; no trial is stopped before.
        reduction_factor: how many times fewer trials go on, and how many times further is the next rung.
        brackets: with more than one, trials are dealt over brackets that start to compare later and later.
        stop_last_trials: False lets the trials that pass the highest rung run to their own end.
        promotion: True pauses trials at rungs and promotes the best later, instead of stopping the others at once
            (not in Ray). Fewer trials go on, but a trial without checkpoints begins anew each time.
    """

    time_attr: str = "training_iteration"
    metric: str | None = None
    mode: str | None = None
    max_t: int = 100
    grace_period: int = 1
    reduction_factor: int = 4
    brackets: int = 1
    stop_last_trials: bool = True
    promotion: bool = False

    def __post_init__(self) -> None:
        check_mode(self.mode)
        object.__setattr__(self, "max_t", whole("max_t", self.max_t, 1, END - 1))
        object.__setattr__(self, "grace_period", whole("grace_period", self.grace_period, 1, self.max_t))
        object.__setattr__(self, "reduction_factor", whole("reduction_factor", self.reduction_factor, 2))
        object.__setattr__(self, "brackets", whole("brackets", self.brackets, 1))

    def build(self, seed: int) -> Asha | PromotingAsha:
        """A fresh scheduler."""
        *rungs, last = rising(self.grace_period, self.max_t, self.reduction_factor)
        steps = [*rungs, last if self.stop_last_trials else END]
        form = PromotingAsha if self.promotion else Asha
        return form(steps, self.reduction_factor, Deal(self.brackets, len(rungs), seed))


ASHAScheduler = AsyncHyperBandScheduler


class Deal:
    """Which of the brackets each trial is in: drawn by seed and trial alone."""

    def __init__(self, brackets: int, rungs: int, seed: int) -> None:
        self.brackets = brackets
        self._seed = seed
        weights = np.exp([max(rungs - bracket, 0) - rungs for bracket in range(brackets)])  # (brackets,)
        self._odds = weights / weights.sum()

    def bracket(self, trial: int) -> int:
        if self.brackets == 1:
            return 0
        # A stream of its own: searchers draw from [seed, trial], and a bracket must not depend on the config.
        stream = int.from_bytes(b"asha", "big")
        return int(np.random.default_rng([self._seed, stream, trial]).choice(self.brackets, p=self._odds))


class Lease(NamedTuple):
    """Where a trial is on its way to: ``rung`` is an index into the steps."""

    bracket: int
    rung: int


class Asha:
    """The machine behind `AsyncHyperBandScheduler`. ``steps``: the rungs, and at last where a trial is done."""

    every_report = False
    forks = False

    def __init__(self, steps: list[int], eta: int, deal: Deal) -> None:
        self._steps = steps
        self._eta = eta
        self._deal = deal
        # The results at each rung of each bracket, best first; and those of the last that could go on.
        self._results: list[list[list[float]]] = [[[] for _ in steps] for _ in range(deal.brackets)]
        self._done: list[list[tuple[float, int]]] = [[] for _ in range(deal.brackets)]
        self._started = 0
        self._running: dict[int, Lease] = {}
        self._ready: OrderedDict[int, Lease] = OrderedDict()  # passed a rung, and wait to be resumed
        self._closed = False

    def next(self) -> Action:
        if self._ready:
            trial, lease = self._ready.popitem(last=False)
            self._running[trial] = lease
            return Resume(trial, self._steps[lease.rung])
        if not self._closed:
            trial = self._started
            self._started += 1
            bracket = self._deal.bracket(trial)
            self._running[trial] = lease = Lease(bracket, rung=min(bracket, len(self._steps) - 1))
            return Start(trial, self._steps[lease.rung])
        return Wait() if self._running else Done()

    def judge(self, seen: Observation) -> list[Stop]:
        if seen.ended:
            self._ready.pop(seen.trial, None)
        lease = self._running.get(seen.trial)
        if lease is None or not (seen.ended or seen.until == self._steps[lease.rung]):
            return []  # it was said before
        del self._running[seen.trial]
        # Reports may skip rungs: the result counts at the highest one it reached, and the next is the first above.
        following = bisect_right(self._steps, seen.level)
        why = self._verdict(seen, lease, following - 1)
        if seen.ended:
            return []
        if why is not None:
            return [Stop(seen.trial, why)]
        self._ready[seen.trial] = Lease(lease.bracket, following)
        return []

    def close(self, unserved: Sequence[int] = ()) -> list[Stop]:
        self._closed = True
        for trial in unserved:
            self._running.pop(trial, None)
        return []

    def reopen(self) -> None:
        self._closed = False

    def extend(self, max_t: int) -> list[int]:
        """More steps: the last rung becomes one like the others, with the results that it has."""
        top = len(self._steps) - 1
        self._steps = further(self._steps, max_t, self._eta)
        revived = []
        for bracket, results in enumerate(self._results):
            results += [[] for _ in self._steps[len(results) :]]
            for value, trial in sorted(self._done[bracket]):
                if bisect_left(results[top], value) * self._eta < len(results[top]):
                    self._ready[trial] = Lease(bracket, top + 1)
                    revived.append(trial)
            self._done[bracket] = []
        return revived

    def _verdict(self, seen: Observation, lease: Lease, rung: int) -> Why | None:
        """Why the trial must go, or None; takes note of its result."""
        if seen.value is None:
            return Why.NO_VALUE
        if rung < lease.rung:
            return None  # it ended on the way: its last rung has its result already
        results = self._results[lease.bracket][rung]
        better = bisect_right(results, seen.value)
        insort(results, seen.value)
        if rung == len(self._steps) - 1:
            if not seen.ended:
                self._done[lease.bracket].append((seen.value, seen.trial))
            return Why.FULL_BUDGET
        return None if better * self._eta < len(results) else Why.NO_PROMISE
