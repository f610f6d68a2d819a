"""Explore: a population member's next configuration, from the one it takes over (perturb and resample).

Jaderberg et al. 2017, "Population Based Training of Neural Networks" (arXiv:1711.09846), section 4.1.1, with the rules
that Ray Tune made popular, per kind of hyperparameter:

    numeric domain          resampled with probability ``resample_probability``, else multiplied by one of the factors;
                            then the nearest value of the domain. A stepped domain moves by one step at least
    list, ordinal           resampled, else moved to a neighbour; at an end of the list it may stay
    choice (unordered)      resampled, else kept; what is inside the branch that is kept is explored in turn
    function                called, else, if the value is a number, multiplied; the domain is whatever it returns
    dict                    each of its entries. One that the configuration lacks, as in another branch, is passed over

A custom function is called last, with the outcome; what it returns is brought back into the domains as well.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard

import numpy as np

from raytuner.protocols import Scheduler, SchedulingPolicy
from raytuner.space import Choice, Function, Numeric, Ordinal, Space, choice, plain, same, sample_from, seeded, unpack
from raytuner.trial import Config

Factors = Sequence[float]
"""What a number may be multiplied by, each as likely as the others."""


class Kind(Protocol):
    """How one hyperparameter is explored."""

    def explore(self, value: Any, chance: Chance) -> Any:
        """Another value, of its domain."""

    def settle(self, value: Any) -> Any:
        """The nearest value of its domain; ValueError if there is none."""


@dataclass(frozen=True, slots=True)
class Chance:
    """Where chance comes from in one exploration, and how likely what is."""

    rng: np.random.Generator
    resample_probability: float

    def resamples(self) -> bool:
        return bool(self.rng.random() < self.resample_probability)

    def one_of(self, values: Sequence[Any]) -> Any:
        return values[int(self.rng.integers(len(values)))]


class Explorer:
    """Explores configurations. ``mutations``: the kinds of what may change, nested as the configuration is.

    Raises ValueError or TypeError, naming the hyperparameter, for what cannot be explored.
    """

    def __init__(
        self,
        mutations: Mapping[str, Any],
        resample_probability: float,
        factors: Factors | Mapping[str, Factors],
        custom: Callable[[dict[str, Any]], Mapping[str, Any]] | None,
    ) -> None:
        unused = {} if isinstance(factors, Sequence) else dict(factors)
        self._kinds = Fields(dict(_kinds(mutations, "", factors, unused)))
        if unused:
            raise ValueError(
                f"perturbation_factors: {', '.join(map(repr, unused))} is no number of hyperparam_mutations"
            )
        self._resample_probability = resample_probability
        self._custom = custom

    def explore(self, config: Config, rng: np.random.Generator) -> Config:
        """The next configuration, from that of the source."""
        explored: dict[str, Any] = self._kinds.explore(plain(config, "config"), Chance(rng, self._resample_probability))
        return self.finish(explored, rng)

    def finish(self, explored: dict[str, Any], rng: np.random.Generator) -> Config:
        """What the custom function makes of an explored configuration, if there is one."""
        if self._custom is None:
            return explored
        with seeded(int(rng.integers(2**32))):
            returned = self._custom(explored)
        if not isinstance(returned, Mapping):
            raise TypeError(f"custom_explore_fn must return the configuration, a dict; it returned {returned!r:.80}")
        settled: dict[str, Any] = self._kinds.settle(plain(returned, "what custom_explore_fn returned"))
        return settled


# ------------------------------------------------------------------------------------------------------- the kinds


@dataclass(frozen=True, slots=True)
class Fields:
    """A dict, or what is left of it in a branch."""

    kinds: Mapping[str, Kind]

    def explore(self, value: Any, chance: Chance) -> Any:
        return self._each(value, lambda kind, inner: kind.explore(inner, chance))

    def settle(self, value: Any) -> Any:
        return self._each(value, lambda kind, inner: kind.settle(inner))

    def _each(self, value: Any, change: Callable[[Kind, Any], Any]) -> Any:
        if not isinstance(value, Mapping):
            return value  # another branch
        return {name: change(self.kinds[name], each) if name in self.kinds else each for name, each in value.items()}


@dataclass(frozen=True, slots=True)
class Number:
    """A number of a domain."""

    name: str
    domain: Numeric
    factors: Factors

    def explore(self, value: Any, chance: Chance) -> float:
        if chance.resamples() or not _is_number(value):  # param_space may have another choice than the mutations
            return self.domain.sample(chance.rng)
        was, factor = self.settle(value), chance.one_of(self.factors)
        target = was * factor
        if not math.isfinite(target):
            return was
        moved = self.domain.nearest(target)
        if moved == was and factor != 1 and (step := getattr(self.domain, "q", 0.0)):
            moved = self.domain.nearest(was + math.copysign(step, target - was if was else factor - 1))
        return moved

    def settle(self, value: Any) -> float:
        if not _is_number(value):
            raise ValueError(f"{self.name} is {value!r:.80}, expected a number of {self.domain.describe()}")
        return self.domain.nearest(value)


def _is_number(value: Any) -> TypeGuard[float]:
    """Whether it is a finite number, and an int not too large to be a float."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


@dataclass(frozen=True, slots=True)
class Ladder:
    """One of a list of values, in order."""

    name: str
    values: Sequence[Any]

    def explore(self, value: Any, chance: Chance) -> Any:
        place = self._place(value)
        if chance.resamples() or place is None:
            return plain(chance.one_of(self.values), self.name)
        return plain(self.values[min(max(place + chance.one_of((-1, 1)), 0), len(self.values) - 1)], self.name)

    def settle(self, value: Any) -> Any:
        if self._place(value) is None:
            raise ValueError(f"{self.name} is {value!r:.80}, expected one of {list(self.values)!r:.200}")
        return value

    def _place(self, value: Any) -> int | None:
        return next((place for place, each in enumerate(self.values) if same(value, each)), None)


@dataclass(frozen=True, slots=True)
class Pick:
    """One of a choice's options. ``branches``: for each a space that holds it under ``_HERE``, and how to explore it
    where there is something to explore."""

    name: str
    space: Space
    branches: Sequence[tuple[Space, Kind | None]]

    def explore(self, value: Any, chance: Chance) -> Any:
        branch = self._branch(value)
        if chance.resamples() or branch is None:
            return self.space.sample(chance.rng)[_HERE]
        return value if branch[1] is None else branch[1].explore(value, chance)

    def settle(self, value: Any) -> Any:
        if self._branch(value) is not None:
            return value
        for _, kind in self.branches:  # a number beyond its bounds inside one
            if kind is not None and self._branch(settled := kind.settle(value)) is not None:
                return settled
        raise ValueError(f"{self.name} is {value!r:.80}, expected one of {self.space}")

    def _branch(self, value: Any) -> tuple[Space, Kind | None] | None:
        return next((branch for branch in self.branches if branch[0].contains({_HERE: value})), None)


@dataclass(frozen=True, slots=True)
class Drawn:
    """What a function returns."""

    name: str
    space: Space
    factors: Factors

    def explore(self, value: Any, chance: Chance) -> Any:
        if chance.resamples() or not _is_number(value):
            return self._draw(chance.rng)
        moved = value * chance.one_of(self.factors)
        if not math.isfinite(moved):
            return value
        return round(moved) if isinstance(value, int) else float(moved)

    def _draw(self, rng: np.random.Generator) -> Any:
        try:
            return self.space.sample(rng)[_HERE]
        except ValueError as error:
            raise ValueError(f"hyperparam_mutations: the function of {self.name!r} failed: {error}") from error

    def settle(self, value: Any) -> Any:
        return value


_HERE = "value"


def _kinds(
    mutations: Mapping[str, Any], path: str, factors: Factors | Mapping[str, Factors], unused: dict[str, Factors]
) -> Iterator[tuple[str, Kind]]:
    for name, raw in mutations.items():
        where = f"{path}{name}"
        kind = _kind(raw, where, factors, unused)
        if kind is None:
            raise TypeError(
                f"hyperparam_mutations: {where!r} is {raw!r:.80}; expected a domain such as uniform(0, 1), "
                "a list of values in order, a function, or a dict of these"
            )
        yield name, kind


def _kind(
    raw: Any, where: str, factors: Factors | Mapping[str, Factors], unused: dict[str, Factors], inside: bool = False
) -> Kind | None:
    """How to explore what stands at a path; None for a constant. ``inside``: of a choice, where lists are constants."""
    match raw:
        case Numeric():
            return Number(where, raw, _factors(where, factors, unused))
        case Ordinal(options):
            return Ladder(where, options)
        case Choice():
            space = Space({_HERE: choice(raw.options)})
            if space.objects:  # their tokens name the place in `param_space`, which may have others
                raise TypeError(
                    f"hyperparam_mutations: {where!r} holds {next(iter(space.objects.values()))!r:.80}; expected plain "
                    "values and domains: give objects names, and look them up in the training function"
                )
            branches = [
                (Space({_HERE: option}), _kind(option, where, factors, unused, inside=True)) for option in raw.options
            ]
            return Pick(where, space, branches)
        case Mapping() if inside:
            kinds = {name: _kind(each, f"{where}/{name}", factors, unused, True) for name, each in raw.items()}
            found = {name: kind for name, kind in kinds.items() if kind is not None}
            return Fields(found) if found else None
        case Mapping():
            return Fields(dict(_kinds(raw, f"{where}/", factors, unused)))
        case list() | tuple() if not inside:
            if not raw:
                raise ValueError(f"hyperparam_mutations: {where!r} is an empty list")
            return Ladder(where, plain(list(raw), where))
        case Function():
            return Drawn(where, Space({_HERE: raw}), _factors(where, factors, unused))
        case _ if callable(raw) and not inside:
            return Drawn(where, Space({_HERE: sample_from(raw)}), _factors(where, factors, unused))
    return None


def _factors(where: str, factors: Factors | Mapping[str, Factors], unused: dict[str, Factors]) -> Factors:
    if not isinstance(factors, Mapping):
        return factors
    unused.pop(where, None)
    return factors.get(where, FACTORS)


FACTORS = (1.2, 0.8)

Feasible = Callable[[Config], bool]
"""Whether a configuration may be tried: all that a scheduler knows of a space."""


def built(policy: SchedulingPolicy, seed: int, feasible: Feasible | None) -> Scheduler:
    """A fresh scheduler; one that makes configurations of its own (``explores``) is told which are feasible."""
    if feasible is None or not getattr(policy, "explores", False):
        return policy.build(seed)
    build: Callable[..., Scheduler] = policy.build
    return build(seed, feasible)


def as_space(mutations: Mapping[str, Any]) -> dict[str, Any]:
    """Mutations as a ``param_space``: a list is a choice, a function is sampled from."""
    space: dict[str, Any] = {}
    for name, raw in mutations.items():
        match raw:
            case Mapping():
                space[name] = as_space(raw)
            case list() | tuple():
                space[name] = choice(list(raw))
            case Function():
                space[name] = raw
            case _ if callable(raw):
                space[name] = sample_from(raw)
            case _:
                space[name] = raw
    return space


def completed(param_space: Mapping[str, Any], mutations: Mapping[str, Any]) -> dict[str, Any]:
    """A ``param_space`` with what only the mutations name: as in Ray, that is first drawn from there."""
    whole = dict(param_space)
    for name, raw in as_space(mutations).items():
        if name not in whole:
            whole[name] = raw
        elif isinstance(raw, Mapping) and isinstance(whole[name], Mapping) and set(whole[name]) != {"grid_search"}:
            whole[name] = completed(whole[name], raw)
    return whole


def to_json(mutations: Mapping[str, Any]) -> Any:
    """Mutations in plain JSON, as `Space.to_json`; of functions only the names."""
    return Space(_described(mutations)).to_json()


def _described(mutations: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _described(raw)
        if isinstance(raw, Mapping)
        else sample_from(raw)
        if callable(raw) and not isinstance(raw, Function)
        else raw
        for name, raw in mutations.items()
    }


def from_json(description: Any) -> Mapping[str, Any]:
    """What `to_json` described. ValueError if there was a function in it."""
    found: Mapping[str, Any] = unpack(description)
    return found


def check_custom(function: object) -> None:
    """Refuse a custom function that is none."""
    if function is not None and not callable(function):
        raise TypeError(f"custom_explore_fn={function!r:.80}: expected a function of a configuration")


def name_of(function: object) -> str | None:
    """What is recorded of a custom function."""
    return None if function is None else getattr(function, "__qualname__", type(function).__qualname__)


def check_no_code(recorded: str | None) -> None:
    """Refuse to read back settings with a custom function."""
    if recorded is not None:
        raise ValueError(f"custom_explore_fn is code ({recorded})")
