"""Which checkpoints to keep. Pure: nothing here deletes anything, and the same checkpoints give the same answer.

- Of one trial, or of one member of a population: `Everything`, `LatestN`, `BestN`, `InUse`, joined by `AnyOf`. A rule
  is asked for the whole of what there is and says what stays.
- Of all trials of a study together: `BestInStudy` and `Quota`, over a `Stock`, which names what must go, one by one.
  What would be lost with a checkpoint is its `Need`, which the study knows.

Scores are numbers of which the higher is better, or the lower if the rule's ``order`` is "min"; NaN is worse than any
number, and no score (None) worst. Of equal ones the later is kept.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from heapq import heapify, heappop, heappush
from typing import Any, Protocol


@dataclass(frozen=True)
class CheckpointConfig:
    """Which checkpoints are kept, and when trials are asked to make one. Ray's names and defaults come first.

    num_to_keep: how many of each trial; None keeps all of them.
    checkpoint_score_attribute: the metric by which the best are kept; None keeps the latest.
    checkpoint_score_order: whether "max" or "min" of it is best.
    checkpoint_frequency: steps between checkpoints that `should_checkpoint` asks for, beside ends of leases; 0: none.
    checkpoint_at_end: whether a class trainable makes one when it ends.

    What Ray has not. Without a checkpoint_score_attribute the best are those by the study's metric:

    num_to_keep_in_study: how many over all trials, the best ones, beside those that live trials go on from; None: all.
    quota_count, quota_bytes: what all checkpoints of the study may amount to at most. Where there are more, the least
        valuable go (`Quota`), down to the best and those without which a trial could not go on.
    checkpoint_interval_s: seconds of a trial's run between checkpoints that `should_checkpoint` asks for; None: none.
    """

    num_to_keep: int | None = None
    checkpoint_score_attribute: str | None = None
    checkpoint_score_order: str = "max"
    checkpoint_frequency: int = 0
    checkpoint_at_end: bool | None = None
    num_to_keep_in_study: int | None = None
    quota_count: int | None = None
    quota_bytes: int | None = None
    checkpoint_interval_s: float | None = None

    def __post_init__(self) -> None:
        attribute: object = self.checkpoint_score_attribute  # objects: users without a type checker come through here
        frequency: object = self.checkpoint_frequency
        interval: object = self.checkpoint_interval_s
        for name in ("num_to_keep", "num_to_keep_in_study", "quota_count", "quota_bytes"):
            most: object = getattr(self, name)
            if most is not None and not (type(most) is int and most >= 1):
                raise ValueError(f"{name} must be None or a whole number from 1 on, not {most!r}")
        if attribute is not None and not (isinstance(attribute, str) and attribute):
            raise ValueError(f"checkpoint_score_attribute must be None or the name of a metric, not {attribute!r}")
        if self.checkpoint_score_order not in ("max", "min"):
            raise ValueError(f"checkpoint_score_order must be 'max' or 'min', not {self.checkpoint_score_order!r}")
        if not (type(frequency) is int and frequency >= 0):
            raise ValueError(f"checkpoint_frequency must be a whole number from 0 on, not {frequency!r}")
        if self.checkpoint_at_end not in (None, True, False):
            raise ValueError(f"checkpoint_at_end must be None, True or False, not {self.checkpoint_at_end!r}")
        number = isinstance(interval, (int, float)) and not isinstance(interval, bool)
        if interval is not None and not (number and 0 < interval < math.inf):  # type: ignore[operator]
            raise ValueError(f"checkpoint_interval_s must be None or a number of seconds above 0, not {interval!r}")

    def score(self, metrics: Mapping[str, Any]) -> float | None:
        """What a checkpoint made with these metrics is ranked by; None if they do not hold it as a number."""
        if self.checkpoint_score_attribute is None:
            return None
        value = metrics.get(self.checkpoint_score_attribute)
        try:
            return None if value is None or isinstance(value, str) else float(value)
        except (TypeError, ValueError):
            return None


# ------------------------------------------------------------------------------------------------- of one trial


@dataclass(frozen=True, slots=True)
class Kept:
    """One checkpoint of a trial, as retention sees it; ``score`` as `CheckpointConfig.score` gives it."""

    step: int
    score: float | None = None


class Retention(Protocol):
    """A rule of what to keep."""

    def keep(self, kept: Sequence[Kept], in_use: Collection[int]) -> set[int]:
        """Steps to keep out of a trial's checkpoints, in any order; ``in_use`` are steps that something needs."""


@dataclass(frozen=True, slots=True)
class Everything:
    """All of them."""

    def keep(self, kept: Sequence[Kept], in_use: Collection[int]) -> set[int]:
        return {one.step for one in kept}


@dataclass(frozen=True, slots=True)
class InUse:
    """Those that something refers to: a paused trial, a restore in flight, a trial that forks from it."""

    def keep(self, kept: Sequence[Kept], in_use: Collection[int]) -> set[int]:
        return {one.step for one in kept if one.step in in_use}


@dataclass(frozen=True, slots=True)
class LatestN:
    """The last ``n``."""

    n: int

    def keep(self, kept: Sequence[Kept], in_use: Collection[int]) -> set[int]:
        return set(sorted(one.step for one in kept)[-self.n :])


@dataclass(frozen=True, slots=True)
class BestN:
    """The ``n`` with the best scores."""

    n: int
    order: str = "max"

    def keep(self, kept: Sequence[Kept], in_use: Collection[int]) -> set[int]:
        return {one.step for one in sorted(kept, key=self._rank)[-self.n :]}

    def _rank(self, one: Kept) -> tuple[int, float, int]:
        return *rank(worth(one.score, self.order)), one.step


@dataclass(frozen=True, slots=True)
class AnyOf:
    """What one of these rules keeps is kept."""

    rules: tuple[Retention, ...]

    def keep(self, kept: Sequence[Kept], in_use: Collection[int]) -> set[int]:
        return set().union(*(rule.keep(kept, in_use) for rule in self.rules))


def retention(config: CheckpointConfig) -> Retention:
    """Ray's rule: the last, or the best, ``num_to_keep``; and always the last one, and what is in use."""
    if config.num_to_keep is None:
        return Everything()
    if config.checkpoint_score_attribute is None:
        return AnyOf((InUse(), LatestN(config.num_to_keep)))
    return AnyOf((InUse(), LatestN(1), BestN(config.num_to_keep, config.checkpoint_score_order)))


def worth(score: float | None, order: str) -> float | None:
    """A score of which the higher is better."""
    return score if score is None or order == "max" else -score


def rank(worth: float | None) -> tuple[int, float]:
    """What to sort by, worst first."""
    if worth is None:
        return 0, 0.0
    return (1, 0.0) if math.isnan(worth) else (2, worth)


# ---------------------------------------------------------------------------------------------- of a whole study


class Need(IntEnum):
    """What would be lost with a checkpoint, the least first."""

    NOTHING = 0  # its trial is over, and nobody starts from it
    SUPERSEDED = 1  # its trial goes on from a newer one
    STEPS = 2  # a trial is paused there: resumed, it would have to train from its beginning once more
    TRIAL = 3  # what runs would go on from it, or a fork begins from it, or goes on from it and has no beginning


@dataclass(frozen=True, slots=True)
class Stored:
    """One checkpoint, as the rules over all trials see it. ``worth``: its score, higher is better; ``made``: its
    number, in the order in which the study heard of them."""

    trial: int
    step: int
    worth: float | None
    nbytes: int
    made: int
    need: Need = Need.TRIAL

    @property
    def place(self) -> tuple[float, ...]:
        """What to sort by: the first goes first."""
        return *rank(self.worth), self.need, self.made


class StudyRule(Protocol):
    """A rule over the checkpoints of all trials."""

    def surplus(self, stock: Stock) -> tuple[int, int] | None:
        """Trial and step of the next that must go; None if all may stay, or none may go."""

    def exceeded(self, stock: Stock) -> bool:
        """Whether there are too many."""


@dataclass(frozen=True, slots=True)
class BestInStudy:
    """Of those that no trial goes on from, the ``n`` best over all trials; the others come on top."""

    n: int

    def surplus(self, stock: Stock) -> tuple[int, int] | None:
        return stock.spare.first() if self.exceeded(stock) else None

    def exceeded(self, stock: Stock) -> bool:
        return len(stock.spare) > self.n


@dataclass(frozen=True, slots=True)
class Quota:
    """At most so many, and so many bytes (None: any), of whatever can be spared.

    First go those that no trial goes on from, but for the ``best`` so many of them, which are what the study is for.
    Then go those of paused trials, which train from their beginning once more if they are resumed. Each time the worst
    goes first, of equal ones that of a trial that is over, and of those the oldest. What runs keeps its newest, what
    forks begin from stays, and so does what a fork goes on from, even if the quota is exceeded then.
    """

    count: int | None = None
    nbytes: int | None = None
    best: int = 1

    def __str__(self) -> str:
        limits = ((self.count, "checkpoints"), (self.nbytes, "bytes"))
        return ", ".join(f"{most:,} {unit}" for most, unit in limits if most is not None)

    def surplus(self, stock: Stock) -> tuple[int, int] | None:
        if not self.exceeded(stock):
            return None
        return stock.spare.first() if len(stock.spare) > self.best else stock.paused.first()

    def exceeded(self, stock: Stock) -> bool:
        too_many = self.count is not None and len(stock) > self.count
        return too_many or (self.nbytes is not None and stock.nbytes > self.nbytes)


def over_the_study(config: CheckpointConfig) -> tuple[StudyRule, ...]:
    """The rules over all trials that a configuration asks for."""
    rules: list[StudyRule] = []
    best = config.num_to_keep_in_study
    if best is not None:
        rules.append(BestInStudy(best))
    if config.quota_count is not None or config.quota_bytes is not None:
        rules.append(Quota(config.quota_count, config.quota_bytes, best or 1))
    return tuple(rules)


class Stock:
    """The checkpoints of a study, and which of them must go by its rules. What is to be deleted is no longer in it,
    whether or not its files are gone yet. ``spare``: those that no trial goes on from; ``paused``: those that paused
    trials do, and could do without."""

    def __init__(self, rules: Sequence[StudyRule]) -> None:
        self.rules = rules
        self.nbytes = 0
        self.spare = Queue()
        self.paused = Queue()
        self._made = 0
        self._stored: dict[tuple[int, int], Stored] = {}

    def __len__(self) -> int:
        return len(self._stored)

    def add(self, trial: int, step: int, worth: float | None, nbytes: int) -> None:
        """A checkpoint is there; until it is appraised it may not go."""
        self.remove(trial, step)
        self._made += 1
        self._stored[trial, step] = Stored(trial, step, worth, nbytes, self._made)
        self.nbytes += nbytes

    def appraise(self, trial: int, step: int, need: Need) -> None:
        """What would be lost with it now."""
        one = self._stored[trial, step]
        if one.need is not need:
            self._stored[trial, step] = one = replace(one, need=need)
            self.spare.put(one, need <= Need.SUPERSEDED)
            self.paused.put(one, need is Need.STEPS)

    def remove(self, trial: int, step: int) -> None:
        """A checkpoint is gone. One that is not there: nothing."""
        one = self._stored.pop((trial, step), None)
        if one is not None:
            self.nbytes -= one.nbytes
            self.spare.put(one, False)
            self.paused.put(one, False)

    def surplus(self) -> tuple[int, int] | None:
        """Trial and step of the next that must go by any rule; None if all may stay, or none may go."""
        return next((found for rule in self.rules if (found := rule.surplus(self)) is not None), None)

    @property
    def exceeded(self) -> StudyRule | None:
        """When there is no surplus any more: the rule that asks for more than can be spared, if there is one."""
        return next((rule for rule in self.rules if rule.exceeded(self)), None)


class Queue:
    """Checkpoints that may go, the first to go first: a heap in which what has changed since is passed over."""

    def __init__(self) -> None:
        self._places: dict[tuple[int, int], tuple[float, ...]] = {}
        self._heap: list[tuple[tuple[float, ...], tuple[int, int]]] = []

    def __len__(self) -> int:
        return len(self._places)

    def put(self, one: Stored, belongs: bool) -> None:
        """Put one in, or take it out."""
        key = one.trial, one.step
        if not belongs:
            self._places.pop(key, None)
            return
        self._places[key] = one.place
        heappush(self._heap, (one.place, key))
        if len(self._heap) > 2 * len(self._places) + 64:
            self._heap = [(place, key) for key, place in self._places.items()]
            heapify(self._heap)

    def first(self) -> tuple[int, int] | None:
        """Trial and step of the first to go."""
        while self._heap:
            place, key = self._heap[0]
            if self._places.get(key) == place:
                return key
            heappop(self._heap)
        return None
