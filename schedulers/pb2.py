"""PB2: Population Based Training that explores with a bandit's model of what pays off, and when.

Parker-Holder, Nguyen & Roberts 2020, "Provably Efficient Online Hyperparameter Optimization with Population-Based
Bandits" (arXiv:2002.02518), with the categorical parameters of PB2-Mix (Parker-Holder et al. 2021, arXiv:2106.15883).
The population and its exploit step are those of `raytuner.schedulers.pbt`; here is what the model
(`raytuner.models.time_varying_bandit`) is told and asked:

- An observation is one interval of one member: how much its value fell for each unit of ``time_attr``, where it began
  (value, number of the interval), and with which settings. A fork's first interval begins at its source's value.
- A member that takes over another asks for settings at the source's interval and value. What the other members run
  with meanwhile is pending: so the members of one generation do not all try the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from raytuner.schedulers import explore
from raytuner.schedulers.pbt import Member, Plan, Population, check_population
from raytuner.space import Axis, Choice, Domain, Float, Numeric, Space, plain, uniform
from raytuner.trial import Config, Observation

if TYPE_CHECKING:
    from raytuner.models.time_varying_bandit import Point, Step


@dataclass(frozen=True)
class PB2:
    """Population Based Training with fewer members: a Gaussian process chooses what to try next.

    ``num_samples`` is the size of the population. Trials must save where `raytuner.should_checkpoint` says so.

    Args:
        time_attr: the metric that measures progress; intervals are in its unit.
        metric, mode: what to rank by, and "min" or "max"; None takes ``TuneConfig``'s.
        perturbation_interval: from one turn of a member to the next, a whole number.
        hyperparam_bounds: what may change, nested as ``param_space`` is: ``[lowest, highest]``, or a domain:
            `loguniform` searches the logarithm, `choice` categories. Where ``[lowest, highest]`` bounds an integer of
            the configuration, as in Ray, integers are tried. What ``param_space`` lacks is first drawn from here.
        quantile_fraction: the share of members that are taken over, and of those that take over; at most 0.5.
        log_config, require_attrs: as for `PopulationBasedTraining`.
        synch: all members wait for each other at each interval.
        custom_explore_fn: changes the chosen configuration: ``f(config) -> config``.
    """

    time_attr: str = "time_total_s"
    metric: str | None = None
    mode: str | None = None
    perturbation_interval: int = 60
    hyperparam_bounds: Mapping[str, Any] | None = None
    quantile_fraction: float = 0.25
    log_config: bool = True
    require_attrs: bool = True
    synch: bool = False
    custom_explore_fn: Callable[[dict[str, Any]], Mapping[str, Any]] | None = None

    def __post_init__(self) -> None:
        check_population(self)
        explore.check_custom(self.custom_explore_fn)
        if not isinstance(self.hyperparam_bounds, Mapping) or not self.hyperparam_bounds:
            raise ValueError(
                f"hyperparam_bounds={self.hyperparam_bounds!r:.80}: expected a dict such as {{'lr': [1e-4, 1e-1]}}"
            )
        _ = self.mutations

    explores = True

    @property
    def mutations(self) -> Mapping[str, Any]:
        """What may change, as domains."""
        return _domains(self.hyperparam_bounds or {}, "")

    def build(self, seed: int, feasible: explore.Feasible | None = None) -> Population:
        """A fresh scheduler. ``feasible``: whether a configuration may be tried."""
        bandit = Bandit(self.mutations, self.custom_explore_fn, self.perturbation_interval)
        return Population(Plan.of(self), bandit, seed, feasible)

    def to_json(self) -> dict[str, Any]:
        """The settings as they stand in ``study.json``; of a function the name."""
        return {
            **{each.name: getattr(self, each.name) for each in fields(self)},
            "hyperparam_bounds": explore.to_json(self.hyperparam_bounds or {}),
            "custom_explore_fn": explore.name_of(self.custom_explore_fn),
        }

    @classmethod
    def from_json(cls, settings: Mapping[str, Any]) -> Self:
        """What `to_json` wrote down. ValueError if there was a function in it."""
        explore.check_no_code(settings["custom_explore_fn"])
        return cls(**{**settings, "hyperparam_bounds": explore.from_json(settings["hyperparam_bounds"])})


def _domains(bounds: Mapping[str, Any], path: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, raw in bounds.items():
        match raw:
            case Axis() | Choice():
                found[name] = raw
            case Mapping():
                found[name] = _domains(raw, f"{path}{name}/")
            case [float() | int() as low, float() | int() as high] if _bounds(low, high):
                found[name] = uniform(low, high)
            case _:
                raise ValueError(
                    f"hyperparam_bounds: {path + name!r} is {raw!r:.80}; "
                    "expected [lowest, highest], a numeric domain, an ordinal, a choice, or a dict of these"
                )
    return found


def _bounds(low: object, high: object) -> bool:
    numbers = [each for each in (low, high) if isinstance(each, (int, float)) and not isinstance(each, bool)]
    return len(numbers) == 2 and all(map(math.isfinite, numbers)) and numbers[0] < numbers[1]


class Bandit:
    """How PB2 explores. ``domains``: what may change; ``interval``: the unit in which the model counts time."""

    def __init__(
        self,
        domains: Mapping[str, Any],
        custom: Callable[[dict[str, Any]], Mapping[str, Any]] | None,
        interval: int,
    ) -> None:
        from raytuner.models import time_varying_bandit  # it takes SciPy along, which takes its time

        self._model = time_varying_bandit
        self._domains = domains
        self._space = Space(domains)
        self._explorer = explore.Explorer(domains, 0.0, explore.FACTORS, custom)
        self._interval = interval
        self._steps: list[Step] = []
        self._points: dict[int, Point] = {}  # where the other members are, by trial

    def saw(self, member: Member, seen: Observation) -> None:
        point = self._point(seen.config)
        took = seen.level - member.level
        if member.value is not None and seen.value is not None and took > 0 and point is not None:
            gain = (member.value - seen.value) / took
            self._steps.append(self._model.Step(member.level / self._interval, point, member.value, gain))

    def explore(self, source: Member, others: Sequence[Member], rng: np.random.Generator) -> Config:
        assert source.value is not None
        points = {other.trial: self._points.get(other.trial) or self._point(other.config) for other in others}
        self._points = {trial: point for trial, point in points.items() if point is not None}
        pending = list(self._points.values())
        now = self._model.Where(source.level / self._interval, source.value)
        chosen = self._model.suggest(self._space, self._steps, now, pending, source.config, rng)
        config = plain(source.config, "config")
        _put(config, chosen, self._domains)
        return self._explorer.finish(config, rng)

    def _point(self, config: Config) -> Point | None:
        """Where a configuration lies, at the nearest place in the space; None if it lacks something."""
        part = _part(config, self._domains)
        return self._model.Point(*self._space.encode(part)) if self._space.contains(part) else None


def _part(config: Any, domains: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration has of the space."""
    part: dict[str, Any] = {}
    for name, domain in domains.items():
        if not isinstance(config, Mapping) or name not in config:
            continue
        value = config[name]
        if not isinstance(domain, Domain):
            part[name] = _part(value, domain)
        elif isinstance(domain, Numeric) and type(value) in (int, float) and math.isfinite(value):
            part[name] = domain.nearest(value)
        else:
            part[name] = value
    return part


def _put(config: dict[str, Any], chosen: Mapping[str, Any], domains: Mapping[str, Any]) -> None:
    """Put what was chosen into a configuration; a float takes the type of an integer that was there."""
    for name, domain in domains.items():
        if not isinstance(domain, Domain):
            _put(config.setdefault(name, {}), chosen[name], domain)
        elif isinstance(domain, Float) and type(config.get(name)) is int:
            config[name] = int(min(max(round(chosen[name]), math.ceil(domain.lower)), math.floor(domain.upper)))
        else:
            config[name] = chosen[name]
