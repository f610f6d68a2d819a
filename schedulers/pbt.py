"""Population Based Training: the worse members of a population go on from the weights of the better ones.

Jaderberg et al. 2017, "Population Based Training of Neural Networks" (arXiv:1711.09846), algorithm 1, with Ray Tune's
names. Every ``perturbation_interval`` a member has its turn: ready, exploit, explore.

- **Exploit** by truncation (a member among the worst ``quantile_fraction`` takes over one of the best), or by binary
  tournament (it is compared with one other, and takes that over if it is better). Members are ranked by (value,
  member), by what each said at its last rung; one that was just forked by its source's value.
- **Explore**: `raytuner.schedulers.explore`.
- A trial has one configuration for life: who takes over another is a new trial, forked from the checkpoint with which
  the other was at its last rung, with the explored configuration, in the place of the old one. A *member* is such a
  chain of trials. If the source had saved nothing, that is in the record as a trial without a source, and the member
  goes on as it was until its next turn.
- ``synch=False``: a member has its turn when it comes to a rung, and is compared with what is known of the others by
  then. With fewer slots than members it may wait for one, whoever has come least far first; a source that has run on
  meanwhile is taken over where it is now, and one that is gone, or was itself taken over, not at all.
- ``synch=True``: all live members run to the same rung; then all have their turn at once, forks before the others, so
  that no source has moved on.
- Where configurations have constraints, explore is asked again, 20 times at most, until its answer meets them; else
  the fork goes on with the source's configuration. All a population knows of them is a predicate (`build`).
- A member that ends, by itself or because it failed, leaves the population, and can be taken over no more.

Chance: ``[seed, "pbt", number of the turn]``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from heapq import heappop, heappush
from math import ceil, floor
from typing import Any, Protocol, Self

import numpy as np

from raytuner.actions import Action, Done, Fork, Resume, Start, Stop, Wait
from raytuner.schedulers import explore
from raytuner.schedulers.rungs import check_mode, whole
from raytuner.trial import END, Config, Observation, Why

EXPLOITS = ("truncation", "binary_tournament")

MOST_TRIES = 20


@dataclass(frozen=True)
class PopulationBasedTraining:
    """Train a population side by side; the worse members take over the weights and the settings of the better ones.

    ``num_samples`` is the size of the population. Trials must save where `raytuner.should_checkpoint` says so.

    Args:
        time_attr: the metric that measures progress; intervals are in its unit.
        metric, mode: what to rank by, and "min" or "max"; None takes ``TuneConfig``'s.
        perturbation_interval: from one turn of a member to the next, a whole number.
        burn_in_period: no member has a turn before.
        hyperparam_mutations: what may change, nested as ``param_space`` is: domains, lists of values in order,
            functions that return a value. What ``param_space`` lacks is first drawn from here.
        quantile_fraction: the share of members that are taken over, and of those that take over; at most 0.5.
        resample_probability: how often a value is drawn anew, not perturbed.
        perturbation_factors: what numbers are multiplied by; a dict gives each hyperparameter (``"optimizer/lr"``) its
            own, those not in it have 1.2 and 0.8.
        custom_explore_fn: changes the explored configuration: ``f(config) -> config``.
        log_config, require_attrs: as in Ray by default; the schedule is in the tables, and a report without its
            ``time_attr`` or metric is an error.
        synch: all members wait for each other at each interval.
        exploit: ``"truncation"`` or ``"binary_tournament"`` (not in Ray).
    """

    time_attr: str = "time_total_s"
    metric: str | None = None
    mode: str | None = None
    perturbation_interval: int = 60
    burn_in_period: int = 0
    hyperparam_mutations: Mapping[str, Any] | None = None
    quantile_fraction: float = 0.25
    resample_probability: float = 0.25
    perturbation_factors: explore.Factors | Mapping[str, explore.Factors] = explore.FACTORS
    custom_explore_fn: Callable[[dict[str, Any]], Mapping[str, Any]] | None = None
    log_config: bool = True
    require_attrs: bool = True
    synch: bool = False
    exploit: str = "truncation"

    def __post_init__(self) -> None:
        check_population(self)
        check_share("resample_probability", self.resample_probability, 1)
        if self.exploit not in EXPLOITS:
            raise ValueError(f"exploit={self.exploit!r}: expected one of {', '.join(map(repr, EXPLOITS))}")
        object.__setattr__(self, "perturbation_factors", _checked_factors(self.perturbation_factors))
        explore.check_custom(self.custom_explore_fn)
        if not self.hyperparam_mutations and self.custom_explore_fn is None:
            raise ValueError("hyperparam_mutations or custom_explore_fn must be given: else nothing would ever change")
        if not isinstance(self.hyperparam_mutations or {}, Mapping):
            raise TypeError(f"hyperparam_mutations={self.hyperparam_mutations!r:.80}: expected a dict")
        self._explorer()

    explores = True

    @property
    def mutations(self) -> Mapping[str, Any]:
        """What may change, as `raytuner.schedulers.explore.completed` takes it."""
        return self.hyperparam_mutations or {}

    def build(self, seed: int, feasible: explore.Feasible | None = None) -> Population:
        """A fresh scheduler. ``feasible``: whether a configuration may be tried."""
        return Population(Plan.of(self), _Explorer(self._explorer()), seed, feasible)

    def to_json(self) -> dict[str, Any]:
        """The settings as they stand in ``study.json``; of functions the names."""
        return {
            **{each.name: getattr(self, each.name) for each in fields(self)},
            "hyperparam_mutations": explore.to_json(self.mutations),
            "custom_explore_fn": explore.name_of(self.custom_explore_fn),
        }

    @classmethod
    def from_json(cls, settings: Mapping[str, Any]) -> Self:
        """What `to_json` wrote down. ValueError if there was a function in it."""
        explore.check_no_code(settings["custom_explore_fn"])
        return cls(**{**settings, "hyperparam_mutations": explore.from_json(settings["hyperparam_mutations"])})

    def _explorer(self) -> explore.Explorer:
        return explore.Explorer(
            self.mutations, self.resample_probability, self.perturbation_factors, self.custom_explore_fn
        )


def check_population(settings: Any) -> None:
    """The checks of what all population schedulers' settings share; whole floats become integers."""
    check_mode(settings.mode)
    if not isinstance(settings.time_attr, str) or not settings.time_attr:
        raise ValueError(f"time_attr={settings.time_attr!r}: expected the name of a metric")
    for name, least in (("perturbation_interval", 1), ("burn_in_period", 0)):
        if hasattr(settings, name):
            object.__setattr__(settings, name, whole(name, getattr(settings, name), least, END // 4))
    check_share("quantile_fraction", settings.quantile_fraction, 0.5)
    if not isinstance(settings.synch, bool):
        raise ValueError(f"synch={settings.synch!r}: expected True or False")
    for name in ("log_config", "require_attrs"):
        if getattr(settings, name) is not True:
            raise ValueError(
                f"{name}={getattr(settings, name)!r}: only True is supported; "
                "the tables always hold the schedule, and a report without its metrics is an error"
            )


def check_share(name: str, value: object, most: float) -> None:
    """Refuse what is no number from 0 to ``most``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= most:
        raise ValueError(f"{name}={value!r}: expected a number from 0 to {most}")


def _checked_factors(factors: Any) -> Any:
    if isinstance(factors, Mapping):
        return {name: _factors_of(each, f"{name!r}: ") for name, each in factors.items()}
    return _factors_of(factors)


def _factors_of(factors: Any, whose: str = "") -> explore.Factors:
    if isinstance(factors, (list, tuple)) and factors and all(_is_factor(each) for each in factors):
        return tuple(factors)
    raise ValueError(f"perturbation_factors={whose}{factors!r:.80}: expected numbers above 0, such as (1.2, 0.8)")


def _is_factor(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < float("inf")


# ---------------------------------------------------------------------------------------------------- the machine


@dataclass(slots=True, eq=False)
class Member:
    """A chain of trials, of which the last one lives.

    ``until``: where its lease leads, or led. ``level``, ``value``: at the last rung; of a fork that was at none yet
    those of its source. ``own``: whether it was at a rung. ``source``: the trial it takes over, when it has a slot.
    """

    number: int
    trial: int
    until: int
    level: float = 0.0
    value: float | None = None
    config: Config = field(default_factory=dict)
    own: bool = False
    source: int | None = None


class Explores(Protocol):
    """How a population explores."""

    def saw(self, member: Member, seen: Observation) -> None:
        """A member is at a rung; ``member`` is as it was at the one before."""

    def explore(self, source: Member, others: Sequence[Member], rng: np.random.Generator) -> Config:
        """The configuration of a fork of ``source``. ``others``: all other live members, as they are now."""


@dataclass(frozen=True, slots=True)
class _Explorer:
    """Perturb and resample; nothing is remembered."""

    explorer: explore.Explorer

    def saw(self, member: Member, seen: Observation) -> None:
        pass

    def explore(self, source: Member, others: Sequence[Member], rng: np.random.Generator) -> Config:
        return self.explorer.explore(source.config, rng)


@dataclass(frozen=True, slots=True)
class Plan:
    """When members have their turns, and who takes over whom."""

    first: int
    interval: int
    quantile: float
    tournament: bool
    synch: bool

    @classmethod
    def of(cls, settings: Any) -> Plan:
        interval = settings.perturbation_interval
        return cls(
            first=max(interval, getattr(settings, "burn_in_period", 0)),
            interval=interval,
            quantile=settings.quantile_fraction,
            tournament=getattr(settings, "exploit", "") == "binary_tournament",
            synch=settings.synch,
        )


class Population:
    """The machine behind `PopulationBasedTraining`, and with another way to explore behind PB2."""

    every_report = False
    forks = True

    def __init__(self, plan: Plan, explorer: Explores, seed: int, feasible: explore.Feasible | None = None) -> None:
        self._plan = plan
        self._feasible = feasible
        self._explorer = explorer
        self._seed = seed
        self._started = 0  # members so far
        self._numbered = 0  # trials so far
        self._turns = 0
        self._members: dict[int, Member] = {}  # the live ones, by trial
        self._running: set[int] = set()  # trials that are on their way to a rung
        self._ready: list[tuple[bool, float, int, int]] = []  # a heap of those that want a slot: see `_want_slot`
        self._rung = plan.first  # synch: where all are to meet
        self._awaited: set[int] = set()  # synch: trials that are not there yet, running or not
        self._undo: tuple[int, Member] | None = None  # a fork that may have no source yet, and its member before it
        self._closed = False

    def next(self) -> Action:
        self._undo = None
        if not self._closed:
            return self._start()
        while self._ready:
            *_, trial = heappop(self._ready)
            if trial in self._members and trial not in self._running:
                return self._go_on(self._members[trial])
        return Wait() if self._members else Done()

    def judge(self, seen: Observation) -> list[Stop]:
        member = self._members.get(seen.trial)
        if member is None:
            return []
        if seen.ended:
            self._ended(member, seen)
            return []
        if seen.trial not in self._running or seen.until != member.until:
            return []  # it was said before
        if seen.value is None:
            self._leave(member)
            self._meet()
            return [Stop(seen.trial, Why.NO_VALUE)]
        self._explorer.saw(member, seen)
        member.level, member.value, member.config, member.own = seen.level, seen.value, seen.config, True
        self._running.remove(seen.trial)
        self._awaited.discard(seen.trial)
        if not self._plan.synch:
            self._turn(member, self._ranked())
        self._meet()
        return []

    def close(self, unserved: Sequence[int] = ()) -> list[Stop]:
        self._closed = True
        for trial in unserved:
            if trial in self._members:
                self._leave(self._members[trial])
        self._meet()
        return []

    # ---- who runs

    def _start(self) -> Start:
        member = Member(self._started, self._numbered, self._plan.first)
        self._started += 1
        self._numbered += 1
        self._begin(member)
        self._awaited.add(member.trial)
        return Start(member.trial, member.until)

    def _go_on(self, member: Member) -> Resume | Fork:
        """A member has a slot again."""
        trial, member.source = member.source, None
        if trial is not None and (source := self._members.get(trial)) is not None:
            return self._fork(member, source)
        member.until = self._next_rung(member)
        self._begin(member)
        return Resume(member.trial, member.until)

    def _fork(self, member: Member, source: Member) -> Fork:
        before = replace(member)
        others = [each for each in self._members.values() if each is not member]
        config = self._explored(source, others)
        del self._members[member.trial]
        member.trial, self._numbered = self._numbered, self._numbered + 1
        member.until = self._next_rung(source)
        member.level, member.value, member.config, member.own = source.level, source.value, config, False
        self._begin(member)
        if self._plan.synch:
            self._awaited.remove(before.trial)
            self._awaited.add(member.trial)
        self._undo = member.trial, before
        return Fork(member.trial, source.trial, config, member.until, replaces=before.trial)

    def _explored(self, source: Member, others: Sequence[Member]) -> Config:
        """A feasible configuration for a fork of ``source``: the source's own, if exploring finds none."""
        rng = self._chance()
        for _ in range(MOST_TRIES):
            config = self._explorer.explore(source, others, rng)
            if self._feasible is None or self._feasible(config):
                return config
        return dict(source.config)

    def _begin(self, member: Member) -> None:
        self._members[member.trial] = member
        self._running.add(member.trial)

    def _next_rung(self, member: Member) -> int:
        return self._rung if self._plan.synch else floor(member.level) + self._plan.interval

    def _want_slot(self, member: Member) -> None:
        """Whoever has come least far is first; but of those who met, all who take over another, in that order."""
        first = self._plan.synch and member.source is not None
        heappush(self._ready, (not first, self._turns if first else member.level, member.number, member.trial))

    def _ended(self, member: Member, seen: Observation) -> None:
        self._leave(member)
        if self._undo is not None and self._undo[0] == seen.trial and seen.failure is None and seen.value is None:
            _, before = self._undo  # its source had saved nothing: it goes on as it was
            self._members[before.trial] = before
            if self._plan.synch:
                self._awaited.add(before.trial)
            self._want_slot(before)
        self._meet()

    def _leave(self, member: Member) -> None:
        del self._members[member.trial]
        self._running.discard(member.trial)
        self._awaited.discard(member.trial)

    # ---- who takes over whom

    def _meet(self) -> None:
        """In step with each other: if all are there, all have their turn."""
        if not (self._plan.synch and self._closed and self._members) or self._awaited:
            return
        last = max(member.level for member in self._members.values())
        self._rung += self._plan.interval * max(1, floor(last - self._rung) // self._plan.interval + 1)
        self._awaited = set(self._members)
        ranked = self._ranked()
        for member in reversed(ranked):  # the worst first: whoever is both taken over and takes over is still there
            self._turn(member, ranked)

    def _turn(self, member: Member, ranked: Sequence[Member]) -> None:
        source = self._source(member, ranked, self._chance())
        member.source = None if source is None else source.trial
        self._want_slot(member)

    def _ranked(self) -> list[Member]:
        """The members that have a value, best first."""
        return sorted((each for each in self._members.values() if each.value is not None), key=_rank)

    def _source(self, member: Member, ranked: Sequence[Member], chance: np.random.Generator) -> Member | None:
        """Whom a member is to take over, if anybody."""
        if self._plan.tournament:
            rivals = [each for each in ranked if each is not member and each.own]
            rival = rivals[int(chance.integers(len(rivals)))] if rivals else member
            return rival if _value(rival) < _value(member) else None
        count = quantile_size(len(ranked), self._plan.quantile)
        if not count or member not in ranked[-count:]:
            return None
        sources = [each for each in ranked[:count] if each.own]
        return sources[int(chance.integers(len(sources)))] if sources else None

    def _chance(self) -> np.random.Generator:
        self._turns += 1
        return np.random.default_rng([self._seed, _STREAM, self._turns])


_STREAM = int.from_bytes(b"pbt", "big")


def _rank(member: Member) -> tuple[float, int]:
    return _value(member), member.number


def _value(member: Member) -> float:
    assert member.value is not None
    return member.value


def quantile_size(members: int, fraction: float) -> int:
    """How many of so many members are taken over at most, as in Ray: rounded up, but never more than half."""
    return min(ceil(members * fraction), members // 2)
