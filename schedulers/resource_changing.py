"""Another scheduler decides; what its trials reserve changes while they run: what is left over is shared out.

Ray Tune's names. What a trial reserves never changes what a scheduler decides, so there is no machine here: the machine
is the inner scheduler's, and the study asks the rule (`raytuner.allocation`) each time it gives out a lease.

- A trial starts with what `with_resources` says (its *base*, the same for all), as in Ray. Once it has reported, the
  rule is asked at each of its reports, and when it goes on after a pause, a failure or a driver's death, or as a fork.
- What a trial reserves is its process's. With other resources it goes on in another process, from its checkpoint; so
  it changes only at a step that is saved, and goes on as it is otherwise. `should_checkpoint` is true for the step
  after one at which it could not change. A trial that never saves never changes.
- ``DistributeResources``: of ``n`` trials each gets the base and ``k`` units more, with the largest ``k`` for which all
  have room; the first ones by number get one unit more, as many as then still have room. ``n`` are the live trials,
  paused ones among them, and those still to be started, but no more than ``max_concurrent_trials``: as long as more
  trials are to come than have room, all have their base.
- ``DistributeResourcesToTopJob``: all that ``n`` bases leave goes to the best running trial by (value, number), as many
  units as have room; what it cannot take (a node has no more, ``increase_by_times``) to the next best, and so on.
  Unlike in Ray, who was the best before goes back to its base.
- Either way a trial takes only what is free by then: it grows once others have made room at reports of their own.
- A *unit* is ``increase_by``; else as in Ray one GPU where trials reserve GPUs (of one that reserves a fraction, the
  same fraction), and one CPU where they do not. Sums are over what the nodes have, less ``reserve_resources``; a trial
  lies on one node, and never reserves a broken number of GPUs above one.

It has an effect on Ray only: ``executor="inline"`` and the simulator reserve nothing. No gangs: no ``add_bundles``.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from raytuner.allocation import Allocation, LiveTrial, StudyView, covers, less, packs, plus, total
from raytuner.protocols import Scheduler, SchedulingPolicy
from raytuner.schedulers.explore import Feasible, built
from raytuner.schedulers.fifo import FIFOScheduler
from raytuner.schedulers.rungs import check_mode, whole
from raytuner.spelling import make, spell
from raytuner.trial import Config, Slot, slot_of

Rule = Callable[[StudyView, LiveTrial, dict[str, Any], Any], Slot | Mapping[str, float] | None]
"""``f(view, trial, result, scheduler)``: what a live trial is to reserve, as for `with_resources` (None: what it does
now). ``result``: its last report; ``scheduler``: the `ResourceChangingScheduler`."""


@dataclass(frozen=True)
class DistributeResources:
    """Share out evenly what is left over.

    Args:
        add_bundles: as in Ray's default only False: bundles are the workers of a gang.
        increase_by: the unit in which a trial grows, such as ``{"cpu": 2, "gpu": 1}``.
        increase_by_times: at most so many units of ``increase_by``, which must be given too (-1: no bound).
        reserve_resources: what is never given to growing trials.
    """

    add_bundles: bool = False
    increase_by: Mapping[str, float] | None = None
    increase_by_times: int = -1
    reserve_resources: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        _check(self)

    def __call__(self, view: StudyView, trial: LiveTrial, result: Mapping[str, Any], scheduler: object) -> Slot:
        sizes = _Sizes.of(self, view)
        return sizes.within_reach(trial, sizes.even_share([each.id for each in view.live].index(trial.id)))


@dataclass(frozen=True)
class DistributeResourcesToTopJob:
    """Give all that is left over to the best trial.

    Args:
        add_bundles, increase_by, increase_by_times, reserve_resources: as for `DistributeResources`.
        metric, mode: what to rank by; None takes the study's. One that a report lacks comes last.
    """

    add_bundles: bool = False
    increase_by: Mapping[str, float] | None = None
    increase_by_times: int = -1
    reserve_resources: Mapping[str, float] | None = None
    metric: str | None = None
    mode: str | None = None

    def __post_init__(self) -> None:
        _check(self)
        check_mode(self.mode)
        if (self.metric is None) != (self.mode is None):
            raise ValueError(f"metric={self.metric!r}, mode={self.mode!r}: expected both, or neither: the study's")

    def __call__(self, view: StudyView, trial: LiveTrial, result: Mapping[str, Any], scheduler: object) -> Slot:
        sizes = _Sizes.of(self, view)
        ranked = sorted((self._value(each), each.id) for each in view.live if each.running)
        before = [number for value, number in ranked if value < math.inf]
        if trial.id not in before:
            return view.base
        return sizes.within_reach(trial, sizes.share_after(before.index(trial.id)))

    def _value(self, trial: LiveTrial) -> float:
        """To rank by, lower is better; infinite where there is none."""
        if self.metric is None:
            return math.inf if trial.value is None else trial.value
        value = trial.metrics.get(self.metric)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return math.inf
        return -value if self.mode == "max" else value


RULES: dict[str, Any] = {
    "DistributeResources": DistributeResources,
    "DistributeResourcesToTopJob": DistributeResourcesToTopJob,
}


def _check(rule: Any) -> None:
    """The checks of what both rules share; resources become amounts by their lower-case names."""
    if rule.add_bundles is not False:
        raise ValueError(
            f"add_bundles={rule.add_bundles!r}: expected False; bundles are the workers of a gang, and gangs are not "
            "there yet: a trial grows in one process"
        )
    for name in ("increase_by", "reserve_resources"):
        object.__setattr__(rule, name, _amounts(name, getattr(rule, name)))
    if rule.increase_by is None and rule.increase_by_times != -1:
        raise ValueError(f"increase_by_times={rule.increase_by_times!r}: expected increase_by beside it")
    object.__setattr__(rule, "increase_by_times", max(whole("increase_by_times", rule.increase_by_times, -1), -1))


def _amounts(name: str, given: object) -> dict[str, float] | None:
    if given is None or given == {}:
        return None
    if not isinstance(given, Mapping):
        raise TypeError(f"{name}={given!r:.80}: expected a dict such as {{'cpu': 1}}")
    amounts: dict[str, float] = {}
    for resource, amount in given.items():
        if not isinstance(resource, str):
            raise TypeError(f"{name}={given!r:.80}: expected names such as 'cpu', got {resource!r}")
        if isinstance(amount, bool) or not isinstance(amount, int | float) or not 0 <= amount < math.inf:
            raise ValueError(f"{name}[{resource!r}]={amount!r}: expected a number of at least 0")
        known = resource.lower() if resource.lower() in ("cpu", "gpu", "memory") else resource
        if amount:
            amounts[known] = float(amount)
    if not amounts:
        raise ValueError(f"{name}={given!r:.80}: expected more than 0 of something, or None")
    return amounts


def _slot(amounts: Mapping[str, float] | None) -> Slot:
    """Amounts as a slot: no cpu where none is named."""
    found = {"cpu": 0.0, **(amounts or {})}
    rest = {name: amount for name, amount in found.items() if name not in ("cpu", "gpu", "memory")}
    return Slot(found["cpu"], found.get("gpu", 0.0), found.get("memory", 0.0) / 2**30, rest)


# ------------------------------------------------------------------------------------------------- the shares


@dataclass(frozen=True, slots=True)
class _Sizes:
    """What trials may reserve: the base and so many units more. ``nodes``: what there is to share out."""

    view: StudyView
    nodes: Sequence[Slot]
    unit: Slot
    times: float  # units at most

    @classmethod
    def of(cls, rule: Any, view: StudyView) -> Self:
        nodes = less(view.nodes, _slot(rule.reserve_resources)) if rule.reserve_resources else view.nodes
        times = math.inf if rule.increase_by_times < 1 else rule.increase_by_times
        return cls(view, nodes, _unit(rule.increase_by, view.base), times)

    def even_share(self, place: int) -> int:
        """Units of the trial in this place by number, if all have the same, but for what is left over."""
        seats = self.view.seats
        if not self._may_grow(seats):
            return 0
        seats = int(seats)
        share = self._most([], seats)
        more = next((units for units in range(share + 1, share + 3) if self._is_whole(units)), None)
        if place >= seats or more is None or more > self.times:
            return share
        least, most = 0, seats  # how many may have more: the first do, the second would not
        while least + 1 < most:
            middle = (least + most) // 2
            if packs(self.nodes, [(self._size(more), middle), (self._size(share), seats - middle)]):
                least = middle
            else:
                most = middle
        return more if place < least else share

    def share_after(self, better: int) -> int:
        """Units of a trial, if so many better ones first take all they can and the others have their base."""
        seats = self.view.seats
        if not self._may_grow(seats):
            return 0
        taken: list[tuple[Slot, int]] = []
        share = math.inf
        for place in range(better + 1):
            rest = max(int(seats) - place - 1, 0)
            share = self._most([*taken, (self.view.base, rest)], bound=share)
            if not share:
                return 0
            taken = _grouped([*taken, (self._size(share), 1)])
        return int(share)

    def within_reach(self, trial: LiveTrial, units: int) -> Slot:
        """What a trial may take now of so many units: others may have more than their share, until they next report."""
        held = [(each.slot, 1) for each in self.view.live if each.running and each.id != trial.id]
        if not units or self.view.seats == math.inf:
            return self.view.base
        rest = max(int(self.view.seats) - 1 - len(held), 0)
        others = [*_grouped(held), (self.view.base, rest)]
        return self._size(self._most(others, bound=units))

    def _most(self, others: Sequence[tuple[Slot, int]], count: int = 1, bound: float = math.inf) -> int:
        """The most units, up to a bound, that so many trials can have beside others."""

        def fit(units: int) -> bool:
            return units <= bound and packs(self.nodes, [*others, (self._size(units), count)])

        bound = min(bound, self.times)
        least, most = 0, 1  # so many units fit; so many do not
        if bound < math.inf and fit(int(bound)):
            least, most = int(bound), int(bound) + 1
        while fit(most):
            least, most = most, 2 * most
        while least + 1 < most:
            middle = (least + most) // 2
            least, most = (middle, most) if fit(middle) else (least, middle)
        whole = (units for units in range(least, 0, -1) if self._is_whole(units))
        return next((units for units in whole if units == least or fit(units)), 0)

    def _may_grow(self, seats: float) -> bool:
        """Whether one unit is left beside all bases, by the sums: quickly answered where many trials are to come."""
        if seats == math.inf:
            return False
        return covers(total((node, 1) for node in self.nodes), total([(self.view.base, int(seats)), (self.unit, 1)]))

    def _size(self, units: int) -> Slot:
        return plus(self.view.base, self.unit, units) if units else self.view.base

    def _is_whole(self, units: int) -> bool:
        """Whether so many units do not make a broken number of GPUs above one."""
        gpu = self._size(units).gpu
        return gpu <= 1 or gpu == int(gpu)


def _unit(increase_by: Mapping[str, float] | None, base: Slot) -> Slot:
    if increase_by is not None:
        return _slot(increase_by)
    if base.gpu:
        return Slot(cpu=0.0, gpu=min(base.gpu, 1.0))
    return Slot(cpu=1.0)


def _grouped(slots: Iterable[tuple[Slot, int]]) -> list[tuple[Slot, int]]:
    """The same, each slot once."""
    found: dict[tuple[object, ...], tuple[Slot, int]] = {}
    for slot, count in slots:
        key = slot.cpu, slot.gpu, slot.memory_gib, *sorted(slot.custom.items())
        found[key] = slot, count + found.get(key, (slot, 0))[1]
    return list(found.values())


# ------------------------------------------------------------------------------------------------------ the scheduler


@dataclass(frozen=True)
class ResourceChangingScheduler:
    """Have another scheduler decide, and change what its trials reserve while they run.

    Args:
        base_scheduler: decides which trials run, and how far; None is ``FIFOScheduler()``.
        resources_allocation_function: `DistributeResources`, `DistributeResourcesToTopJob`, or a function
            ``f(view, trial, result, scheduler)`` of a `StudyView`, a `LiveTrial` and its last report, that returns
            what the trial is to reserve (``{"cpu": 4}``, as for `with_resources`) or None: what it does now. It is
            asked often, and again when a study is resumed, so that it must not depend on anything else. What the
            cluster can never give fails the trial. None: nothing changes.
    """

    base_scheduler: SchedulingPolicy | None = None
    resources_allocation_function: Rule | None = DistributeResources()

    def __post_init__(self) -> None:
        object.__setattr__(self, "base_scheduler", _policy(self.base_scheduler))
        _check_rule(self.resources_allocation_function)

    def build(self, seed: int, feasible: Feasible | None = None) -> Scheduler:
        """A fresh scheduler: the one inside."""
        return built(self._base, seed, feasible)

    def allocation(self, slot: Slot | Callable[[Config], Slot], most: int | None, metric: str | None) -> Allocation:
        """What sizes a study's leases, given what `with_resources` and `TuneConfig` say."""
        rule = self.resources_allocation_function
        if not isinstance(slot, Slot):
            raise ValueError(
                "ResourceChangingScheduler needs trials that all reserve the same at first, as in Ray: "
                "with_resources must be given a dict, not a function"
            )
        if isinstance(rule, DistributeResourcesToTopJob) and rule.metric is None and metric is None:
            raise ValueError("metric must be given: DistributeResourcesToTopJob cannot compare trials without one")
        return Allocation(self._wanted, slot, most)

    def _wanted(self, view: StudyView, trial: LiveTrial) -> Slot | None:
        rule = self.resources_allocation_function
        if rule is None:
            return None
        try:
            return _answer(rule(view, trial, dict(trial.metrics), self))
        except Exception as error:
            error.add_note(f"raised by resources_allocation_function {_name(rule)}, asked about trial {trial.id}")
            raise

    @property
    def _base(self) -> SchedulingPolicy:
        assert self.base_scheduler is not None
        return self.base_scheduler

    # What others look for in a scheduler's settings is the base scheduler's.

    @property
    def time_attr(self) -> str:
        found: str = getattr(self._base, "time_attr", "training_iteration")
        return found

    @property
    def metric(self) -> str | None:
        found: str | None = getattr(self._base, "metric", None)
        return found

    @property
    def mode(self) -> str | None:
        found: str | None = getattr(self._base, "mode", None)
        return found

    @property
    def mutations(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = getattr(self._base, "mutations", {})
        return found

    @property
    def explores(self) -> bool:
        return bool(getattr(self._base, "explores", False))

    @property
    def max_t(self) -> int | None:
        found: int | None = getattr(self._base, "max_t", None)
        return found

    @property
    def scheduler(self) -> SchedulingPolicy | None:
        found: SchedulingPolicy | None = getattr(self._base, "scheduler", None)
        return found

    def to_json(self) -> dict[str, Any]:
        """The settings as they stand in ``study.json``; of a function the name."""
        from raytuner.schedulers import SCHEDULERS  # which holds this class

        rule = self.resources_allocation_function
        spelled = None if rule is None else spell(rule, RULES) if type(rule) in RULES.values() else _name(rule)
        return {"base_scheduler": spell(self.base_scheduler, SCHEDULERS), "resources_allocation_function": spelled}

    @classmethod
    def from_json(cls, settings: Mapping[str, Any]) -> Self:
        """What `to_json` wrote down. ValueError if there was a function in it."""
        from raytuner.schedulers import SCHEDULERS  # which holds this class

        rule = settings["resources_allocation_function"]
        if isinstance(rule, str):
            raise ValueError(f"resources_allocation_function is code ({rule})")
        return cls(make(settings["base_scheduler"], SCHEDULERS), None if rule is None else make(rule, RULES))


def _policy(scheduler: Any) -> SchedulingPolicy:
    """The scheduler to put inside."""
    if scheduler is None:
        return FIFOScheduler()
    if isinstance(scheduler, ResourceChangingScheduler):
        raise TypeError("base_scheduler must be a scheduler that decides something, got a ResourceChangingScheduler")
    if isinstance(scheduler, type) or not callable(getattr(scheduler, "build", None)):
        from raytuner.schedulers import SCHEDULERS  # which holds the class above

        ours = ", ".join(f"{name}()" for name in SCHEDULERS if name != ResourceChangingScheduler.__name__)
        raise TypeError(f"base_scheduler must be one of {ours}, or None; got {scheduler!r:.80}")
    policy: SchedulingPolicy = scheduler
    return policy


def _check_rule(rule: Any) -> None:
    if rule is None:
        return
    if isinstance(rule, type) or not callable(rule):
        raise TypeError(
            "resources_allocation_function must be DistributeResources(), DistributeResourcesToTopJob(), a function "
            f"(view, trial, result, scheduler), or None; got {rule!r:.80}"
        )
    try:
        inspect.signature(rule).bind(None, None, None, None)
    except TypeError:
        raise TypeError(
            "resources_allocation_function must take four arguments, (view, trial, result, scheduler); "
            f"{_name(rule)}{inspect.signature(rule)} does not"
        ) from None
    except ValueError:  # some builtins have no signature to look at
        return


def _name(rule: Any) -> str:
    name: str = getattr(rule, "__qualname__", type(rule).__qualname__)
    return name


def _answer(said: object) -> Slot | None:
    """What a user's function returned, checked."""
    match said:
        case None:
            return None
        case Slot():
            return slot_of({"cpu": said.cpu, "gpu": said.gpu, "memory": said.memory_gib * 2**30, **said.custom})
        case Mapping():
            return slot_of(said)
        case _:
            raise TypeError(
                "it must return what the trial is to reserve in one process, a dict such as {'cpu': 2, 'gpu': 1}, or "
                f"None; got {type(said).__name__}: {said!r:.80}"
            )
