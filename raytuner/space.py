"""Search spaces: Ray Tune's domains, and `Space`, the only encoding of configurations.

A space is a nested dict of domains and constants. A `choice` may have dicts with domains as options: what is inside
such a branch is a parameter only while the branch is chosen ("active"), to any depth. `Space` flattens this once
into ``d`` dimensions, one per domain (a choice is a dimension of its own), and maps configurations to points of the
unit cube and back:

    d       number of dimensions, in the order of the sorted keys, a choice before its branches
    x       (d,) float64 in [0, 1]; 0 where inactive
    active  (d,) bool

The order of the keys in ``param_space`` does not matter to chance or to equality; a configuration keeps the user's.

One coordinate per dimension:

- floats: linear, or linear in the logarithm; the bounds belong to the domain.
- stepped domains (integers, quantised floats) are the multiples k·q of their quantum; each owns the coordinates from
  k - 1/2 to k + 1/2, on a log scale in the logarithm. So in a linear domain uniform coordinates give every value equal
  mass. Ray's `quniform` gives its two edges half of it, and Ray's log-integers own k to k + 1.
- normal: the cumulative probability, clipped to [1e-8, 1 - 1e-8], which is ±5.6 standard deviations: such a value is
  drawn at the edge instead, and a configuration from beyond it is encoded there.
- `ordinal`: option i of n at (i + 1/2) / n, a number for models (``categories`` is 0).
- `choice` and `grid_search`: option i of n at (i + 1/2) / n. A grid is a categorical dimension for models and tables;
  `Space.sample` walks it when it is given the number of the grid point.

Sampling is decoding uniform coordinates, so that there is one source of truth. `sample_from` functions are evaluated
after everything else and are no dimension: `encode` ignores their values, `decode` calls them again.

Objects that are no plain values (datasets, functions, instances) may stand where a constant or an option stands. In
configurations and descriptions a token stands for each (`raytuner.held`), a plain value like any other: so a
configuration can be written down, and is compared by what the objects are. `Space.objects` has the objects.

A space may have constraints, predicates over configurations: then `Space.sample` draws until all hold, and what is
decoded must be asked about with `Space.feasible`. It may have priors (`raytuner.prior`), for `Space.log_prior` and
`Space.sample_prior`; `Space.sample` knows nothing of them, as ``uniform`` means uniform.

Not here: Ray's own domain objects.
"""

from __future__ import annotations

import copy
import inspect
import json
import math
import random
import re
import sys
import warnings
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import cache, cached_property
from statistics import NormalDist
from typing import Any, NoReturn, Protocol, Self, TypeGuard, TypeVar, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raytuner.held import Held, hold, supply
from raytuner.prior import Belief, Bump, Mass, Prior

# ------------------------------------------------------------------------------------- the constructors, as Ray's

_NOT_GIVEN = object()

Believed = tuple[Any, float] | None
"""``prior=``: (the value thought best, a confidence between 0 and 1), as `raytuner.prior` says; None: nothing."""


def uniform(lower: float, upper: float, *, prior: Believed = None) -> Float:
    """A float from ``lower`` to ``upper``."""
    return _believed("uniform", Float(*_bounds("uniform", lower, upper), log=False), prior)


def quniform(lower: float, upper: float, q: float, *, prior: Believed = None) -> Quantized:
    """A float from ``lower`` to ``upper``, both included, that is a multiple of ``q``; so must the bounds be."""
    return _believed("quniform", _quantized("quniform", lower, upper, q, log=False), prior)


def loguniform(lower: float, upper: float, base: object = _NOT_GIVEN, *, prior: Believed = None) -> Float:
    """A float from ``lower`` to ``upper``, uniform in its logarithm. ``base`` is ignored, as in Ray."""
    _ignore_base("loguniform", base)
    return _believed("loguniform", Float(*_bounds("loguniform", lower, upper, log=True), log=True), prior)


def qloguniform(
    lower: float, upper: float, q: float, base: object = _NOT_GIVEN, *, prior: Believed = None
) -> Quantized:
    """A multiple of ``q`` from ``lower`` to ``upper``, both included, uniform in its logarithm."""
    _ignore_base("qloguniform", base)
    return _believed("qloguniform", _quantized("qloguniform", lower, upper, q, log=True), prior)


def randn(mean: float = 0.0, sd: float = 1.0, *, prior: Believed = None) -> Normal:
    """A normally distributed float."""
    return _believed("randn", Normal(_number("randn", "mean", mean), _positive("randn", "sd", sd)), prior)


def qrandn(mean: float, sd: float, q: float, *, prior: Believed = None) -> QuantizedNormal:
    """A normally distributed float, rounded to the nearest multiple of ``q``."""
    mean, sd, q = _number("qrandn", "mean", mean), _positive("qrandn", "sd", sd), _positive("qrandn", "q", q)
    if q < 1e-6 * sd or (abs(mean) + 6 * sd) / q > _MOST_STEPS:
        raise ValueError(f"qrandn: q is {q!r}, too fine for mean {mean!r} and sd {sd!r} to matter; use randn")
    return _believed("qrandn", QuantizedNormal(mean, sd, q), prior)


def randint(lower: int, upper: int, *, prior: Believed = None) -> Integer:
    """An integer from ``lower`` to ``upper - 1``."""
    return _believed("randint", _integer("randint", lower, upper, 1, log=False), prior)


def qrandint(lower: int, upper: int, q: int = 1, *, prior: Believed = None) -> Integer:
    """A multiple of ``q`` from ``lower`` to ``upper``, both included; with ``q=1``, as in Ray, ``upper`` is not."""
    return _believed("qrandint", _integer("qrandint", lower, upper, q, log=False), prior)


def lograndint(lower: int, upper: int, base: object = _NOT_GIVEN, *, prior: Believed = None) -> Integer:
    """An integer from ``lower`` to ``upper - 1``, uniform in its logarithm."""
    _ignore_base("lograndint", base)
    return _believed("lograndint", _integer("lograndint", lower, upper, 1, log=True), prior)


def qlograndint(lower: int, upper: int, q: int, base: object = _NOT_GIVEN, *, prior: Believed = None) -> Integer:
    """A multiple of ``q`` from ``lower`` to ``upper``, uniform in its logarithm; with ``q=1`` without ``upper``."""
    _ignore_base("qlograndint", base)
    return _believed("qlograndint", _integer("qlograndint", lower, upper, q, log=True), prior)


def choice(categories: Sequence[Any], *, prior: Believed = None) -> Choice:
    """One of ``categories``: plain values, objects, domains, dicts with domains again (conditional parameters).

    Plain values are kept as given, a tuple stays a tuple, and told apart by type: 1, 1.0 and True are three options.
    An option given twice has twice the mass. A prior's centre is one of the options that are no dict with domains.
    """
    options = _options("choice", "categories", categories)
    if prior is None:
        return Choice(options)
    centre, confidence = _pair("choice", prior)
    for number, option in enumerate(options):
        if option is centre or (not _holds_domain(option) and same(_bare(option), _bare(centre))):
            return Choice(options, prior=Prior(number, confidence))
    raise ValueError(f"choice: prior's centre is {_show(centre)}, expected one of the options {_shown(options)}")


def ordinal(categories: Sequence[Any], *, prior: Believed = None) -> Ordinal:
    """One of ``categories``, plain values in an order that means something: models see equal steps.

    Options are told apart by type, as those of `choice`, and each is given once.
    """
    options = tuple(plain(each, f"ordinal: option {i}") for i, each in _numbered("ordinal", categories))
    for i, option in enumerate(options):
        if any(same(option, other) for other in options[:i]):
            raise ValueError(f"ordinal: option {i} is {_show(option)}, which is there already; expected each one once")
    return _believed("ordinal", Ordinal(options), prior)


def grid_search(values: Iterable[Any]) -> dict[str, Iterable[Any]]:
    """Each of ``values`` in turn, times all other grids, times ``num_samples``: Ray's literal, known to `Space`."""
    return {"grid_search": values}


def sample_from(func: Callable[..., Any]) -> Function:
    """What ``func(config)`` answers, which sees what was sampled so far; or ``func()``.

    Called after all domains are sampled, in key order. It sees objects, but must answer plain values. As in Ray,
    ``config["lr"]``, ``config.lr`` and the older form ``spec.config.lr`` work. Global generators (``random``,
    ``np.random``) are seeded around the call.
    """
    if not callable(func):
        raise TypeError(f"sample_from: func is {_show(func)}, expected a function of config")
    try:
        signature = inspect.signature(func)
    except ValueError:  # some built-in functions do not know their signature
        raise TypeError(f"sample_from: the signature of {func!r} is unknown; wrap it in a lambda") from None
    for arguments in ((None,), ()):
        try:
            signature.bind(*arguments)
        except TypeError:
            continue
        return Function(func, takes_config=bool(arguments))
    raise TypeError(f"sample_from: func is {func!r}, expected a function of one argument (config) or none")


# ------------------------------------------------------------------------------------------------------ the space


@dataclass(frozen=True, slots=True)
class Param:
    """One dimension of a space: where it stands, what it is, and when it is active.

    ``condition`` is None or (number of a choice's dimension, number of the option it must have). The choice has a
    condition of its own. Two branches may have a parameter of the same path.
    """

    path: tuple[str, ...]
    domain: Axis | Choice
    condition: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        """The path joined by ``/``, as in tables."""
        return "/".join(self.path)

    @property
    def categories(self) -> int:
        """The number of options, 0 for a numeric dimension."""
        return self.domain.categories


class Space:
    """What may be searched: a flattened ``param_space``. Immutable; the head of this file says how it encodes.

    ``objects``: those that tokens in configurations stand for. They are read once, here: an array of 1 GB takes a
    second or two. ``constraints``: predicates over configurations, which see them as the training function does, with
    the objects; asked in order, up to the first that says False. ``default_config``: what is thought best, or a part of
    it: a prior of confidence ``default_confidence`` for each of its parameters that has none of its own.

    Description and equality are those of ``param_space``: constraints are code, and the default stands beside.
    """

    def __init__(
        self,
        param_space: Mapping[str, Any],
        constraints: Sequence[Constraint] = (),
        default_config: Mapping[str, Any] | None = None,
        default_confidence: float = 0.5,
    ) -> None:
        if not isinstance(param_space, Mapping):
            raise TypeError(f"param_space is {_show(param_space)}, expected a dict of names to domains or constants")
        plan = _Plan()
        self._root = _Fields.of(param_space, plan, (), None, "")
        self.objects: Mapping[Held, Any] = plan.objects
        self._grids = tuple(plan.grids)
        self._spread = frozenset(plan.spread)
        self._canonical = json.dumps(self._root.to_json(), sort_keys=True)
        self.params: tuple[Param, ...] = tuple(plan.params)
        self.dim = len(self.params)
        self.categories: NDArray[np.int64] = np.array([p.categories for p in self.params], dtype=np.int64)  # (d,)
        self.categories.flags.writeable = False
        self.grid_size = math.prod(len(grid.nodes) for grid in self._grids)
        self._draws_functions = plan.functions
        self.constraints = checked_constraints(constraints)
        self._set_default(default_config, default_confidence)

    def given(
        self,
        constraints: Sequence[Constraint] = (),
        default_config: Mapping[str, Any] | None = None,
        default_confidence: float = 0.5,
    ) -> Self:
        """This space with further constraints, and with another default if one is given."""
        _confidence("default_confidence", default_confidence)
        other = copy.copy(self)
        other.__dict__.pop("grid_points", None)
        other.constraints = (*self.constraints, *checked_constraints(constraints))
        if default_config is not None:
            other._set_default(default_config, default_confidence)
        return other

    def _set_default(self, default_config: Mapping[str, Any] | None, confidence: float) -> None:
        confidence = _confidence("default_confidence", confidence)
        self.default: Prior | None = None
        self._beliefs: list[Belief | None] = [param.domain.belief() for param in self.params]  # (d,)
        if default_config is None:
            return
        config = self.partial(default_config, "default_config")
        self.default = Prior(config, confidence)
        x, known = [0.0] * self.dim, [False] * self.dim
        self._root.fill(config, x, known)
        for j, param in enumerate(self.params):
            if known[j] and self._beliefs[j] is None:
                self._beliefs[j] = param.domain.belief_at(x[j], confidence)

    def __len__(self) -> int:
        return self.dim

    @property
    def has_grid(self) -> bool:
        """Whether there is a `grid_search`."""
        return bool(self._grids)

    @property
    def has_prior(self) -> bool:
        """Whether anything is believed of any parameter."""
        return any(belief is not None for belief in self._beliefs)

    # ------------------------------------------------------------------------------------------------- to draw

    def sample(self, rng: np.random.Generator, grid: int | None = None) -> dict[str, Any]:
        """Draw a feasible configuration, of plain values: uniformly, whatever the priors.

        ``grid``: at this grid point (None: a random one, if there is any). ValueError if none of 100,000 is feasible.
        """
        at = [] if grid is None else list(zip(self._grids, self._grid_options(grid), strict=True))

        def draw() -> dict[str, Any]:
            x = rng.random(self.dim).tolist()
            for node, option in at:
                x[node.index] = node.choice.coordinate(option)
            return self._decoded(x, rng)

        return self._first_feasible(draw, "" if grid is None else f" at point {grid} of the grid")

    def sample_prior(self, rng: np.random.Generator) -> dict[str, Any]:
        """Draw a feasible configuration from the prior; where 1,000 draws bring none, as `sample` does."""
        for _ in range(_MOST_PRIOR_DRAWS if self.has_prior else 0):
            x = rng.random(self.dim).tolist()
            config = self._decoded(
                [u if belief is None else belief.quantile(u) for u, belief in zip(x, self._beliefs, strict=True)], rng
            )
            if self.feasible(config):
                return config
        return self.sample(rng)

    def log_prior(self, points: NDArray[np.float64], active: NDArray[np.bool_]) -> NDArray[np.float64]:
        """The prior's log density at points (m, d), relative to uniform, of what is active (m, d); (m,).

        The constraints do not enter: it is a density over the whole cube.
        """
        total = np.zeros(len(points))
        for j, belief in enumerate(self._beliefs):
            if belief is not None:
                total += np.where(active[:, j], belief.log_density(points[:, j]), 0.0)
        return total

    def partial(self, config: Mapping[str, Any], name: str) -> dict[str, Any]:
        """A configuration, or a part of one, in plain values, with tokens for its objects. ``name``: for messages.

        ValueError if it is no part of this space.
        """
        if not isinstance(config, Mapping):
            raise TypeError(f"{name} is {_show(config)}, expected a dict of names to values")
        part = plain(config, "", self._token)
        problems = self._root.problems(part, "", partial=True)
        if problems:
            raise ValueError(f"{name} is not in this space: {'; '.join(problems)}")
        return cast(dict[str, Any], part)

    def completed(self, part: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """A feasible configuration with just these values; what they lack is drawn, and constants are put in.

        ``part``: as `partial` returns it. ValueError if it cannot be made feasible.
        """

        def draw() -> dict[str, Any]:
            x = rng.random(self.dim).tolist()
            self._root.fill(part, x, [False] * self.dim)
            config, later = self._build(x)
            _put(config, part)
            later = [(holder, key) for holder, key in later if type(holder[key]) is _Call]
            if later:
                _call(config, later, self.objects, seed=int(rng.integers(2**32)))
            return config

        return self._first_feasible(draw, f" with {part!r:.200}", once=not self._lacking(part))

    def lacking(self, part: Mapping[str, Any]) -> list[str]:
        """The names of the parameters that a part of a configuration leaves to chance."""
        return [self.params[j].name for j in self._lacking(part)]

    def _lacking(self, part: Mapping[str, Any]) -> list[int]:
        x, known = [0.0] * self.dim, [False] * self.dim
        self._root.fill(part, x, known)
        return [j for j, param in enumerate(self.params) if not known[j] and self._is_chosen(param, x, known)]

    def _is_chosen(self, param: Param, x: list[float], known: list[bool]) -> bool:
        """Whether a parameter stands in no branch, or in the one that is known to be chosen."""
        if param.condition is None:
            return True
        of, branch = param.condition
        return known[of] and math.floor(x[of] * self.categories[of]) == branch

    def _token(self, value: Any, name: str) -> Held:
        """What stands for an object of this space; the place in the configuration says which, of several like it."""
        alike = [token for token, known in self.objects.items() if known is value]
        if not alike:
            own = hold(value, name.lstrip("/"))
            alike = [token for token in self.objects if (token.kind, token.digest) == (own.kind, own.digest)]
        if not alike:
            raise ValueError(f"{name.lstrip('/')} is {_show(value)}, which is none of the objects of param_space")
        return next((token for token in alike if _unbranched(token.name) == name.lstrip("/")), alike[0])

    def _decoded(self, x: list[float], rng: np.random.Generator) -> dict[str, Any]:
        config, later = self._build(x)
        if later:
            _call(config, later, self.objects, seed=int(rng.integers(2**32)))
        return config

    def _first_feasible(self, draw: Callable[[], dict[str, Any]], where: str, once: bool = False) -> dict[str, Any]:
        most = 1 if once and not self._draws_functions else _MOST_DRAWS
        for _ in range(most):
            config = draw()
            if self.feasible(config):
                return config
        if most == 1:
            raise ValueError(
                f"it is infeasible: {self._reason(config)} is False of {supply(config, self.objects)!r:.400}"
            )
        names = ", ".join(code_name(each) for each in self.constraints)
        raise ValueError(f"of {most:,} draws{where} none is feasible; constraints: {names}")

    # --------------------------------------------------------------------------------------------- constraints

    def feasible(self, config: Mapping[str, Any]) -> bool:
        """Whether all constraints hold of a configuration. An error of one is a ValueError that names it."""
        return self._broken(config) is None

    def feasibility(self) -> float:
        """The share of uniform draws that is feasible: measured, on the same 2,000 draws in every process."""
        return self._survey()[0] / _SURVEY

    def check_feasible(self) -> None:
        """ValueError if (almost) nothing is feasible: fewer than 1 in 1,000 of 2,000 draws, or no point of the grid."""
        if not self.constraints:
            return
        if self.has_grid:
            if not self.grid_points:
                raise ValueError(f"constraints: none of the {self.grid_size} points of the grid is feasible")
            return
        found, broken = self._survey()
        if found < _SURVEY // 1000:
            rejected = ", ".join(f"{self._named(i)} rejects {count:,}" for i, count in sorted(broken.items()))
            raise ValueError(
                f"constraints: {found / _SURVEY:.2%} of param_space is feasible ({found} of {_SURVEY:,} draws); "
                f"{rejected} (each counted for the first that says False). Narrow param_space, or write it such that "
                "less is infeasible"
            )

    @cached_property
    def grid_points(self) -> Sequence[int]:
        """The numbers of the grid's points that are feasible: of 2,000 draws of what else is in the space one is."""
        if not self.constraints:
            return range(self.grid_size)
        settled = len(self._grids) == self.dim and not self._draws_functions
        return [point for point in range(self.grid_size) if self._has_feasible(point, 1 if settled else _SURVEY)]

    def _has_feasible(self, point: int, draws: int) -> bool:
        free, rng = self._free(), np.random.default_rng([_SEED, point])
        return any(self.feasible(free.sample(rng, point)) for _ in range(draws))

    def _survey(self) -> tuple[int, Counter[int]]:
        """How many draws are feasible, and how many the constraints reject, by number."""
        free, rng = self._free(), np.random.default_rng(_SEED)
        broken = Counter(self._broken(free.sample(rng)) for _ in range(_SURVEY))
        return broken.pop(None, 0), cast("Counter[int]", broken)

    def _free(self) -> Self:
        """The space without its constraints."""
        other = copy.copy(self)
        other.constraints = ()
        return other

    def _broken(self, config: Mapping[str, Any]) -> int | None:
        """The number of the first constraint that does not hold; None if all do."""
        for number, constraint in enumerate(self.constraints):
            seen = supply(dict(config), self.objects)
            try:
                holds = constraint(seen)
            except Exception as error:
                raise ValueError(f"{self._named(number)} failed with {error!r} on {seen!r:.400}") from error
            if not isinstance(holds, bool | np.bool_):
                raise TypeError(f"{self._named(number)} said {_show(holds)}, expected True or False, on {seen!r:.400}")
            if not holds:
                return number
        return None

    def _reason(self, config: Mapping[str, Any]) -> str:
        number = self._broken(config)
        assert number is not None
        return self._named(number)

    def _named(self, number: int) -> str:
        return f"constraint {number} ({code_name(self.constraints[number])})"

    # ------------------------------------------------------------------------------------------------ the grid

    def grid_point(self, index: int) -> dict[str, Any]:
        """The values of the grid's parameters at one of its ``grid_size`` points: the first name varies fastest."""
        options = self._grid_options(index)
        return {grid.name: grid.nodes[option].build([], []) for grid, option in zip(self._grids, options, strict=True)}

    def _grid_options(self, index: int) -> list[int]:
        if not 0 <= index < self.grid_size:
            raise ValueError(f"grid is {index!r}, expected a number from 0 to {self.grid_size - 1}")
        options = []
        for grid in self._grids:  # in the order of the sorted paths, as in Ray's variant generator
            index, option = divmod(index, len(grid.nodes))
            options.append(option)
        return options

    # ----------------------------------------------------------------------------------------- the unit cube

    def encode(self, config: Mapping[str, Any]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """The configuration as a point of the unit cube: x (d,) and active (d,). ValueError if it is not in here."""
        point = self.found(config)
        if point is None:
            self.check(config)
        assert point is not None  # else it was refused
        return point

    def found(self, config: Mapping[str, Any]) -> tuple[NDArray[np.float64], NDArray[np.bool_]] | None:
        """As `encode`, but None if the configuration is not in here."""
        if not self.contains(config):
            return None
        x, active = [0.0] * self.dim, [False] * self.dim
        self._root.fill(config, x, active)
        return np.array(x, dtype=np.float64), np.array(active, dtype=np.bool_)

    def encode_many(self, configs: Sequence[Mapping[str, Any]]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Several configurations: X (n, d) and active (n, d)."""
        X, active = np.zeros((len(configs), self.dim)), np.zeros((len(configs), self.dim), dtype=np.bool_)
        for row, config in enumerate(configs):
            X[row], active[row] = self.encode(config)
        return X, active

    def decode(self, x: ArrayLike) -> dict[str, Any]:
        """The configuration at a point (d,), which is clipped to the cube; inactive coordinates do not matter."""
        point = np.asarray(x, dtype=np.float64)
        if point.shape != (self.dim,):
            raise ValueError(f"x has shape {point.shape}, expected ({self.dim},): {[p.name for p in self.params]}")
        if np.isnan(point).any():
            raise ValueError(f"x is nan at {[p.name for p, u in zip(self.params, point, strict=True) if np.isnan(u)]}")
        config, later = self._build(np.clip(point, 0.0, 1.0).tolist())
        if later:
            # From what is known and not from x, whose inactive coordinates must not matter.
            seed = zlib.crc32(json.dumps(pack(_SoFar(config)), sort_keys=True).encode())
            _call(config, later, self.objects, seed)
        return config

    def snap(self, points: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Where configurations decoded at points (m, d) would be encoded, and what is active there; (m, d) each.

        The same as `encode_many` of `decode` but for rounding, for all at once, and no `sample_from` is called.
        """
        X = np.clip(points, 0.0, 1.0)
        active = np.ones(X.shape, dtype=np.bool_)
        for j, param in enumerate(self.params):  # a choice comes before what is inside its branches
            X[:, j] = param.domain.snap(X[:, j])
            if param.condition is not None:
                of, branch = param.condition
                active[:, j] = active[:, of] & (np.floor(X[:, of] * self.categories[of]) == branch)
        X[~active] = 0.0
        return X, active

    def _build(self, x: list[float]) -> tuple[dict[str, Any], _Later]:
        later: _Later = []
        return self._root.build(x, later), later

    # ------------------------------------------------------------------------------------------- membership

    def contains(self, config: Mapping[str, Any]) -> bool:
        """Whether a configuration of plain values is in this space, with all its constants and nothing else."""
        return not self._root.problems(config, "")

    def check(self, config: Mapping[str, Any]) -> None:
        """ValueError that names the parameters which are wrong, if the configuration is not in this space."""
        problems = self._root.problems(config, "")
        if problems:
            raise ValueError(f"not in this space: {'; '.join(problems)}")

    def flat(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The configuration by parameter: names joined by ``/``, for tables. A list with domains is spread, too."""
        return dict(self._flat(config, ()))

    def _flat(self, value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                yield from self._flat(inner, (*path, key))
        elif path in self._spread and isinstance(value, list | tuple):
            for i, inner in enumerate(value):
                yield from self._flat(inner, (*path, str(i)))
        else:
            yield "/".join(path), value

    # ------------------------------------------------------------------------------------------ description

    def to_json(self) -> Any:
        """The space in plain JSON, enough to build it again; of a `sample_from` function only the name."""
        return self._root.to_json()

    @classmethod
    def from_json(cls, description: Any) -> Space:
        """The space that `to_json` described. ValueError if it has a `sample_from`.

        Of objects there are the tokens only. To run such a space, ``param_space`` must be given again.
        """
        return cls(unpack(description))

    def lines(self) -> dict[str, str]:
        """Each parameter and constant by name, as one would write it: ``{"lr": "loguniform(1e-05, 0.1)", …}``."""
        return dict(_lines(self._root.to_json(), ""))

    def differences(self, other: Space) -> list[str]:
        """What one must know to go from this space to the other: sentences, none if they are equal."""
        old, new = self.lines(), other.lines()
        sentences = []
        for name in sorted(old.keys() | new.keys()):
            if name not in new:
                sentences.append(f"{name}: {old[name]} is gone")
            elif name not in old:
                sentences.append(f"{name}: {new[name]} is new")
            elif old[name] != new[name]:
                sentences.append(f"{name}: {old[name]} became {new[name]}")
        return sentences

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Space) and self._canonical == other._canonical

    def __hash__(self) -> int:
        return hash(self._canonical)

    def __repr__(self) -> str:
        return f"Space({_text(self._root.to_json())})"


_MOST_DRAWS = 100_000  # at a feasibility of 1 in 1,000 all of them are infeasible once in 1e43 times
_MOST_PRIOR_DRAWS = 1_000
_SURVEY = 2_000
_SEED = int.from_bytes(b"feasible", "big")

Constraint = Callable[[dict[str, Any]], bool]


def checked_constraints(constraints: Any) -> tuple[Constraint, ...]:
    """Constraints, if they are a list of functions."""
    if isinstance(constraints, str | Mapping) or not isinstance(constraints, Iterable):
        raise TypeError(f"constraints is {_show(constraints)}, expected a list of functions of a configuration")
    found = tuple(constraints)
    for number, each in enumerate(found):
        if not callable(each):
            raise TypeError(f"constraints[{number}] is {_show(each)}, expected a function of a configuration")
    return found


def code_name(function: object) -> str:
    """What is recorded of a function, in a script the same as where that is imported."""
    name: str = getattr(function, "__qualname__", type(function).__qualname__)
    return name


def _put(config: Any, part: Any) -> Any:
    """A configuration with a part of it replaced, in the same dicts."""
    if isinstance(config, dict) and isinstance(part, Mapping):
        for key, value in part.items():
            config[key] = _put(config.get(key), value)
        return config
    if isinstance(config, list | tuple) and type(config) is type(part) and len(config) == len(part):
        return type(config)([_put(old, new) for old, new in zip(config, part, strict=True)])
    return plain(part, "")


def _unbranched(name: str) -> str:
    """Where an object stands in configurations: its name without the numbers of options."""
    return re.sub(r"\[\d+\]", "", name)


# ------------------------------------------------------------------------------------------- the kinds of domain


class Domain(ABC):
    """What may stand in a ``param_space`` in place of a value."""

    @abstractmethod
    def place(self, plan: _Plan, path: tuple[str, ...], condition: tuple[int, int] | None, name: str) -> _Node:
        """Take a place in a space. ``name`` is as in `_Plan.node`."""


class Axis(Domain):
    """A domain whose values have an order, and one coordinate: to models it is a number."""

    categories = 0
    prior: Prior | None

    @abstractmethod
    def decode(self, u: float) -> Any:
        """The value at a coordinate in [0, 1]."""

    @abstractmethod
    def encode(self, value: Any) -> float:
        """The coordinate of a value of this domain."""

    @abstractmethod
    def snap(self, u: NDArray[np.float64]) -> NDArray[np.float64]:
        """The coordinates (m,) of the values at coordinates ``u`` (m,) of [0, 1]."""

    @abstractmethod
    def contains(self, value: object) -> bool:
        """Whether it is a value of this domain."""

    @abstractmethod
    def to_json(self) -> Any:
        """The domain in plain JSON."""

    def describe(self) -> str:
        """As one would write it: ``uniform(0.0, 1.0)``."""
        return _text(self.to_json())

    def belief(self) -> Belief | None:
        """The prior over the coordinate; None if there is none."""
        return None if self.prior is None else self.belief_at(self.encode(self.prior.centre), self.prior.confidence)

    def belief_at(self, coordinate: float, confidence: float) -> Belief:
        """A prior around a coordinate."""
        return Bump.of(coordinate, confidence)

    def place(self, plan: _Plan, path: tuple[str, ...], condition: tuple[int, int] | None, name: str) -> _Node:
        return _Leaf(plan.add(Param(path, self, condition)), self)


class Numeric(Axis):
    """A domain of numbers with one coordinate."""

    @abstractmethod
    def decode(self, u: float) -> float:
        """The value at a coordinate in [0, 1]: a plain float or int."""

    @abstractmethod
    def encode(self, value: float) -> float:
        """The coordinate of a value of this domain; stepped domains decode it to exactly the value."""

    def snap(self, u: NDArray[np.float64]) -> NDArray[np.float64]:
        """The coordinates (m,) of the values at coordinates ``u`` (m,) of [0, 1]."""
        return u

    @abstractmethod
    def contains(self, value: object) -> bool:
        """Whether it is a plain number of this domain. A float domain takes an int, an integer domain no float."""

    @abstractmethod
    def nearest(self, value: float) -> float:
        """The value of this domain that is nearest to a finite number; a plain float or int."""

    @abstractmethod
    def call(self) -> tuple[str, tuple[float, ...]]:
        """The constructor that makes this domain, and its arguments."""

    def sample(self, rng: np.random.Generator) -> float:
        """Draw a value."""
        return self.decode(rng.random())

    def to_json(self) -> Any:
        """The domain in plain JSON."""
        name, arguments = self.call()
        return _with_prior({f"${name}": list(arguments)}, self.prior)


@dataclass(frozen=True, slots=True)
class Float(Numeric):
    """A float from ``lower`` to ``upper``."""

    lower: float
    upper: float
    log: bool
    prior: Prior | None = field(default=None, repr=False)

    def decode(self, u: float) -> float:
        if self.log:
            value = math.exp((1 - u) * math.log(self.lower) + u * math.log(self.upper))
        else:
            value = (1 - u) * self.lower + u * self.upper
        return min(max(value, self.lower), self.upper)  # rounding may lead a little outside

    def encode(self, value: float) -> float:
        if self.log:
            low, high = math.log(self.lower), math.log(self.upper)
            return (math.log(value) - low) / (high - low)
        return (value - self.lower) / (self.upper - self.lower)

    def contains(self, value: object) -> bool:
        return _is_number(value) and self.lower <= value <= self.upper

    def nearest(self, value: float) -> float:
        return float(min(max(value, self.lower), self.upper))

    def call(self) -> tuple[str, tuple[float, ...]]:
        return "loguniform" if self.log else "uniform", (self.lower, self.upper)


@dataclass(frozen=True, slots=True)
class Steps:
    """The integers from ``first`` to ``last`` on [0, 1], linear or logarithmic: half a step wider on both sides."""

    first: int
    last: int
    log: bool

    def decode(self, u: float) -> int:
        if self.log:
            low, high = math.log(self.first - 0.5), math.log(self.last + 0.5)
            k = math.floor(math.exp((1 - u) * low + u * high) + 0.5)
        else:
            k = self.first + math.floor(u * (self.last - self.first + 1))
        return min(max(k, self.first), self.last)

    def nearest(self, k: float) -> int:
        return min(max(math.floor(k + 0.5), self.first), self.last)

    def encode(self, k: int) -> float:
        if self.log:
            low, high = math.log(self.first - 0.5), math.log(self.last + 0.5)
            return (math.log(k) - low) / (high - low)
        return (k - self.first + 0.5) / (self.last - self.first + 1)

    def snap(self, u: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.log:
            low, high = math.log(self.first - 0.5), math.log(self.last + 0.5)
            k = np.clip(np.floor(np.exp((1 - u) * low + u * high) + 0.5), self.first, self.last)
            snapped: NDArray[np.float64] = (np.log(k) - low) / (high - low)
            return snapped
        count = self.last - self.first + 1
        return (np.minimum(np.floor(u * count), count - 1) + 0.5) / count


@dataclass(frozen=True, slots=True)
class Integer(Numeric):
    """A multiple of ``q`` from ``lower`` to ``upper``, which is included unless q is 1."""

    lower: int
    upper: int
    q: int
    steps: Steps
    prior: Prior | None = field(default=None, repr=False)

    def decode(self, u: float) -> int:
        return self.steps.decode(u) * self.q

    def encode(self, value: float) -> float:
        return self.steps.encode(int(value) // self.q)

    def snap(self, u: NDArray[np.float64]) -> NDArray[np.float64]:
        return self.steps.snap(u)

    def contains(self, value: object) -> bool:
        if type(value) is not int:
            return False
        k, rest = divmod(value, self.q)
        return rest == 0 and self.steps.first <= k <= self.steps.last

    def nearest(self, value: float) -> int:
        return self.steps.nearest(value / self.q) * self.q

    def call(self) -> tuple[str, tuple[float, ...]]:
        name = "lograndint" if self.steps.log else "randint"
        if self.q == 1:
            return name, (self.lower, self.upper)
        return f"q{name}", (self.lower, self.upper, self.q)


@dataclass(frozen=True, slots=True)
class Quantized(Numeric):
    """A float that is a multiple of ``q``, from ``lower`` to ``upper``."""

    lower: float
    upper: float
    q: float
    steps: Steps
    prior: Prior | None = field(default=None, repr=False)

    def decode(self, u: float) -> float:
        return _multiple(self.steps.decode(u), self.q)

    def encode(self, value: float) -> float:
        return self.steps.encode(_nearest(value, self.q))

    def snap(self, u: NDArray[np.float64]) -> NDArray[np.float64]:
        return self.steps.snap(u)

    def contains(self, value: object) -> bool:
        return _is_multiple(value, self.q) and self.steps.first <= _nearest(value, self.q) <= self.steps.last

    def nearest(self, value: float) -> float:
        return _multiple(self.steps.nearest(value / self.q), self.q)

    def call(self) -> tuple[str, tuple[float, ...]]:
        return "qloguniform" if self.steps.log else "quniform", (self.lower, self.upper, self.q)


_STANDARD = NormalDist()
_LEAST_MASS = 1e-8  # the farthest out where a coordinate still tells values apart to nine digits


@dataclass(frozen=True, slots=True)
class Normal(Numeric):
    """A normally distributed float."""

    mean: float
    sd: float
    prior: Prior | None = field(default=None, repr=False)

    def decode(self, u: float) -> float:
        return self.mean + self.sd * _STANDARD.inv_cdf(min(max(u, _LEAST_MASS), 1 - _LEAST_MASS))

    def encode(self, value: float) -> float:
        mass = 0.5 * math.erfc((self.mean - value) / (self.sd * math.sqrt(2)))
        return min(max(mass, _LEAST_MASS), 1 - _LEAST_MASS)

    def snap(self, u: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.clip(u, _LEAST_MASS, 1 - _LEAST_MASS)

    def contains(self, value: object) -> bool:
        return _is_number(value)

    def nearest(self, value: float) -> float:
        return float(value)

    def call(self) -> tuple[str, tuple[float, ...]]:
        return "randn", (self.mean, self.sd)


@dataclass(frozen=True, slots=True)
class QuantizedNormal(Numeric):
    """A normally distributed float, rounded to a multiple of ``q``."""

    mean: float
    sd: float
    q: float
    prior: Prior | None = field(default=None, repr=False)

    def decode(self, u: float) -> float:
        return _multiple(_nearest(Normal(self.mean, self.sd).decode(u), self.q), self.q)

    def encode(self, value: float) -> float:
        return Normal(self.mean, self.sd).encode(value)

    def snap(self, u: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.array([self.encode(self.decode(each)) for each in u.tolist()])

    def contains(self, value: object) -> bool:
        return _is_multiple(value, self.q)

    def nearest(self, value: float) -> float:
        return _multiple(_nearest(value, self.q), self.q)

    def call(self) -> tuple[str, tuple[float, ...]]:
        return "qrandn", (self.mean, self.sd, self.q)


@dataclass(frozen=True, slots=True)
class Ordinal(Axis):
    """One of several plain options in order: to models a number of equal steps."""

    options: tuple[Any, ...]
    prior: Prior | None = field(default=None, repr=False)

    def decode(self, u: float) -> Any:
        """The option at a coordinate in [0, 1]."""
        return plain(self.options[min(int(u * len(self.options)), len(self.options) - 1)], "")

    def encode(self, value: Any) -> float:
        """The coordinate of an option."""
        place = self.place_of(value)
        if place is None:
            raise ValueError(f"{_show(value)} is none of {_shown(self.options)}")
        return (place + 0.5) / len(self.options)

    def snap(self, u: NDArray[np.float64]) -> NDArray[np.float64]:
        """The coordinates (m,) of the options at coordinates ``u`` (m,) of [0, 1]."""
        n = len(self.options)
        return (np.minimum(np.floor(u * n), n - 1) + 0.5) / n

    def contains(self, value: Any) -> bool:
        """Whether it is one of the options."""
        return self.place_of(value) is not None

    def place_of(self, value: Any) -> int | None:
        """The number of an option; None if it is none."""
        return next((place for place, option in enumerate(self.options) if same(option, value)), None)

    def to_json(self) -> Any:
        """The domain in plain JSON."""
        return _with_prior({"$ordinal": [pack(option) for option in self.options]}, self.prior)


@dataclass(frozen=True, slots=True)
class Choice(Domain):
    """One of several options, by chance or (``grid``) each in turn. ``prior``: its centre is an option's number."""

    options: tuple[Any, ...]
    grid: bool = False
    prior: Prior | None = field(default=None, repr=False)

    @property
    def categories(self) -> int:
        return len(self.options)

    def option(self, u: float) -> int:
        """The number of the option at a coordinate."""
        return min(int(u * len(self.options)), len(self.options) - 1)

    def coordinate(self, option: int) -> float:
        """The middle of an option's coordinates."""
        return (option + 0.5) / len(self.options)

    def snap(self, u: NDArray[np.float64]) -> NDArray[np.float64]:
        """The coordinates (m,) of the options at coordinates ``u`` (m,) of [0, 1]."""
        r = len(self.options)
        return (np.minimum(np.floor(u * r), r - 1) + 0.5) / r

    def belief(self) -> Belief | None:
        """The prior over the options; None if there is none."""
        return None if self.prior is None else Mass(self.categories, self.prior.centre, self.prior.confidence)

    def belief_at(self, coordinate: float, confidence: float) -> Belief:
        """A prior for the option at a coordinate."""
        return Mass(self.categories, self.option(coordinate), confidence)

    def place(self, plan: _Plan, path: tuple[str, ...], condition: tuple[int, int] | None, name: str) -> _Node:
        where = "/".join(path)
        if self.grid and condition is not None:
            raise ValueError(f"{where}: grid_search inside an option of a choice; use choice there, or move it out")
        index = plan.add(Param(path, self, condition))
        nodes = []
        for i, option in enumerate(self.options):
            if isinstance(option, Function):
                raise ValueError(f"{where}: option {i} is a sample_from; put it into a dict, under a name")
            if self.grid and _holds_domain(option):
                raise ValueError(f"{where}: grid_search value {i} holds a domain; expected plain values, or use choice")
            nodes.append(plan.node(option, path, (index, i), f"{name}[{i}]"))
        node = _Options(index, where, self, tuple(nodes))
        if self.grid:
            plan.grids.append(node)
        return node


@dataclass(frozen=True, slots=True)
class Function(Domain):
    """A function of what was sampled so far, or of nothing."""

    func: Callable[..., Any]
    takes_config: bool

    def place(self, plan: _Plan, path: tuple[str, ...], condition: tuple[int, int] | None, name: str) -> _Node:
        plan.functions = True
        return _Call("/".join(path), self)


# ------------------------------------------------------------------- the tree: a space's domains in their places


class _Node(Protocol):
    def build(self, x: list[float], later: _Later) -> Any:
        """The value at the coordinates x (d,); `sample_from`s stand for themselves and are noted in ``later``."""

    def fill(self, value: Any, x: list[float], active: list[bool]) -> None:
        """Write the coordinates of a value of this node, or of a part of one, into x (d,) and active (d,)."""

    def problems(self, value: Any, name: str, partial: bool = False) -> list[str]:
        """Why the value is none of this node's; empty if it is. ``partial``: its dicts may lack names."""

    def to_json(self) -> Any:
        """Its description in plain JSON."""


class _Plan:
    """What is gathered while a space is flattened."""

    def __init__(self) -> None:
        self.params: list[Param] = []
        self.grids: list[_Options] = []
        self.spread: list[tuple[str, ...]] = []  # paths of the lists that hold domains
        self.objects: dict[Held, Any] = {}
        self.functions = False

    def add(self, param: Param) -> int:
        self.params.append(param)
        return len(self.params) - 1

    def node(self, raw: Any, path: tuple[str, ...], condition: tuple[int, int] | None, name: str) -> _Node:
        """What stands at a path of ``param_space``. ``name`` tells it from what stands at this path in another branch:
        branch i of a choice is ``name[i]``."""
        if _is_grid(raw):
            raw = Choice(_options(f"{name}: grid_search", "values", raw["grid_search"]), grid=True)
        if isinstance(raw, Domain):
            return raw.place(self, path, condition, name)
        if isinstance(raw, Mapping):
            return _Fields.of(raw, self, path, condition, name)
        if isinstance(raw, list | tuple) and _holds_domain(raw):
            return _Items.of(raw, self, path, condition, name)
        return _Fixed(plain(raw, name, self.hold))

    def hold(self, value: Any, name: str) -> Held:
        """Keep an object; what stands for it."""
        if any(kind.__module__.startswith("ray.tune.search") for kind in type(value).__mro__):
            raise TypeError(
                f"{name} is {_show(value)}, a domain of Ray's own; "
                "use the function of the same name that raytuner has, such as raytuner.uniform"
            )
        token = hold(value, name)
        while token in self.objects:  # a key may look like a branch: "a[0]"
            token = replace(token, name=f"{token.name}'")
        self.objects[token] = value
        return token


@dataclass(frozen=True, slots=True)
class _Fixed:
    """A constant."""

    value: Any

    def build(self, x: list[float], later: _Later) -> Any:
        # A copy: what a trial does to its configuration must not reach the next one.
        return plain(self.value, "") if isinstance(self.value, list | tuple | dict) else self.value

    def fill(self, value: Any, x: list[float], active: list[bool]) -> None:
        pass

    def problems(self, value: Any, name: str, partial: bool = False) -> list[str]:
        return [] if same(value, self.value) else [f"{name} is {_show(value)}, expected {self.value!r}"]

    def to_json(self) -> Any:
        return pack(self.value)


@dataclass(frozen=True, slots=True)
class _Leaf:
    """A number, or an option of several in order."""

    index: int
    domain: Axis

    def build(self, x: list[float], later: _Later) -> Any:
        return self.domain.decode(x[self.index])

    def fill(self, value: Any, x: list[float], active: list[bool]) -> None:
        x[self.index] = min(max(self.domain.encode(value), 0.0), 1.0)
        active[self.index] = True

    def problems(self, value: Any, name: str, partial: bool = False) -> list[str]:
        if self.domain.contains(value):
            return []
        return [f"{name} is {_show(value)}, expected a value of {self.domain.describe()}"]

    def to_json(self) -> Any:
        return self.domain.to_json()


@dataclass(frozen=True, slots=True)
class _Fields:
    """A dict."""

    nodes: Mapping[str, _Node]

    @classmethod
    def of(
        cls, raw: Mapping[Any, Any], plan: _Plan, path: tuple[str, ...], condition: tuple[int, int] | None, name: str
    ) -> _Fields:
        for key in raw:
            _check_key(key, "/".join(path))
        nodes = {}
        for key in sorted(raw):
            nodes[key] = plan.node(raw[key], (*path, key), condition, f"{name}/{key}" if name else key)
        return cls({key: nodes[key] for key in raw})

    def build(self, x: list[float], later: _Later) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, node in self.nodes.items():
            values[key] = value = node.build(x, later)
            if type(value) is _Call:
                later.append((values, key))
        return values

    def fill(self, value: Any, x: list[float], active: list[bool]) -> None:
        for key, node in self.nodes.items():
            if key in value:
                node.fill(value[key], x, active)

    def problems(self, value: Any, name: str, partial: bool = False) -> list[str]:
        if not isinstance(value, Mapping):
            return [f"{name or 'config'} is {_show(value)}, expected a dict with {sorted(self.nodes)}"]
        prefix = f"{name}/" if name else ""
        problems = []
        for key, node in self.nodes.items():
            if key in value:
                problems += node.problems(value[key], prefix + key, partial)
            elif not partial:
                problems.append(f"{prefix}{key} is missing")
        if len(value) > len(self.nodes) or problems or partial:
            extra = sorted(value.keys() - self.nodes.keys(), key=str)
            problems += [f"{prefix}{key} is unknown, expected only {sorted(self.nodes)}" for key in extra]
        return problems

    def to_json(self) -> Any:
        return _escaped({key: self.nodes[key].to_json() for key in sorted(self.nodes)})


@dataclass(frozen=True, slots=True)
class _Items:
    """A list or tuple that holds domains, as Ray allows; one without is a constant."""

    nodes: tuple[_Node, ...]
    type: type[list[Any]] | type[tuple[Any, ...]]

    @classmethod
    def of(
        cls, raw: Sequence[Any], plan: _Plan, path: tuple[str, ...], condition: tuple[int, int] | None, name: str
    ) -> _Items:
        if any(isinstance(item, Function) for item in raw):
            raise ValueError(f"{'/'.join(path)}: sample_from inside a list; put it into a dict, under a name")
        plan.spread.append(path)
        nodes = [plan.node(item, (*path, str(i)), condition, f"{name}/{i}") for i, item in enumerate(raw)]
        return cls(tuple(nodes), tuple if isinstance(raw, tuple) else list)

    def build(self, x: list[float], later: _Later) -> Any:
        return self.type([node.build(x, later) for node in self.nodes])

    def fill(self, value: Any, x: list[float], active: list[bool]) -> None:
        for item, node in zip(value, self.nodes, strict=True):
            node.fill(item, x, active)

    def problems(self, value: Any, name: str, partial: bool = False) -> list[str]:
        if type(value) is not self.type or len(value) != len(self.nodes):
            return [f"{name} is {_show(value)}, expected a {self.type.__name__} of {len(self.nodes)}"]
        pairs = enumerate(zip(value, self.nodes, strict=True))
        return [problem for i, (item, node) in pairs for problem in node.problems(item, f"{name}/{i}", partial)]

    def to_json(self) -> Any:
        items = [node.to_json() for node in self.nodes]
        return {"$tuple": items} if self.type is tuple else items


@dataclass(frozen=True, slots=True)
class _Options:
    """A choice or a grid. A value belongs to the first option that has it; a part of one to the first that may."""

    index: int
    name: str
    choice: Choice
    nodes: tuple[_Node, ...]

    def build(self, x: list[float], later: _Later) -> Any:
        return self.nodes[self.choice.option(x[self.index])].build(x, later)

    def fill(self, value: Any, x: list[float], active: list[bool]) -> None:
        option = next(
            i for part in (False, True) for i, node in enumerate(self.nodes) if not node.problems(value, "", part)
        )
        x[self.index] = self.choice.coordinate(option)
        active[self.index] = True
        self.nodes[option].fill(value, x, active)

    def problems(self, value: Any, name: str, partial: bool = False) -> list[str]:
        found = []
        for node in self.nodes:
            problems = node.problems(value, name, partial)
            if not problems:
                return []
            found.append(problems)
        counts = [len(problems) for problems in found]
        if counts.count(min(counts)) == 1:  # so there is one that it was probably meant to be
            nearest = counts.index(min(counts))
            return [f"{name} fits none of its options, the nearest is number {nearest}: {'; '.join(found[nearest])}"]
        return [f"{name} is {_show(value)}, expected one of {_text([node.to_json() for node in self.nodes])}"]

    def to_json(self) -> Any:
        options = {"$grid_search" if self.choice.grid else "$choice": [node.to_json() for node in self.nodes]}
        return _with_prior(options, self.choice.prior)


@dataclass(frozen=True, slots=True)
class _Call:
    """A `sample_from`, which stands for its own value until it is called."""

    name: str
    function: Function

    def build(self, x: list[float], later: _Later) -> Any:
        return self

    def value(self, config: dict[str, Any], objects: Mapping[Held, Any]) -> Any:
        so_far = _SoFar(supply(config, objects))
        try:
            value = self.function.func(so_far) if self.function.takes_config else self.function.func()
        except Exception as error:
            raise ValueError(f"{self.name}: its sample_from function failed with {error!r}") from error
        return plain(value, self.name)

    def fill(self, value: Any, x: list[float], active: list[bool]) -> None:
        pass

    def problems(self, value: Any, name: str, partial: bool = False) -> list[str]:
        return []  # whatever the function may have answered

    def to_json(self) -> Any:
        return {"$sample_from": getattr(self.function.func, "__qualname__", type(self.function.func).__qualname__)}


# ------------------------------------------------------------------------------------------------- sample_from

_Later = list[tuple[dict[str, Any], str]]
"""The `sample_from`s of a configuration in key order: the dict each stands in, and its key there."""


def _call(config: dict[str, Any], later: _Later, objects: Mapping[Held, Any], seed: int) -> None:
    """Put the functions' values in their places."""
    with seeded(seed):
        for holder, key in later:
            holder[key] = holder[key].value(config, objects)


class _SoFar(dict[str, Any]):
    """A configuration as far as it is known: also by attribute, and under Ray's older name ``spec.config``."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__({key: _known(value) for key, value in config.items() if type(value) is not _Call})

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(*error.args) from None

    def __missing__(self, key: str) -> Any:
        if key == "config":
            return self
        raise KeyError(f"{key!r} is not sampled yet; known are {sorted(self)}, sample_from are called in key order")


def _known(value: Any) -> Any:
    if isinstance(value, dict):
        return _SoFar(value)
    if type(value) in (list, tuple):
        return type(value)([_known(item) for item in value])
    return value


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Let the global generators, which Ray's users draw from in `sample_from`, start from a seed; put them back."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002


# ------------------------------------------------------------------------------------------------ plain values


def _refuse(value: Any, name: str) -> NoReturn:
    raise TypeError(
        f"{name} is {_show(value)}, expected None, bool, int, float, str, or lists, tuples and dicts of these. "
        "Compute the object in the training function, or put it into choice([...]) in param_space."
    )


def plain(value: Any, name: str, other: Callable[[Any, str], Any] = _refuse) -> Any:
    """A copy of the value in plain Python types; ``name`` is where it stands, for messages.

    This is the one place that says what a configuration may hold: tokens of objects are plain, the objects are not.
    Of what is not plain, ``other`` says what is to stand in its place, or refuses it.
    """
    if value is None or type(value) in (bool, int, float, str, Held):
        return value
    if isinstance(value, np.generic) and type(value.item()) in (bool, int, float, str):
        return value.item()
    if type(value) in (list, tuple):
        return type(value)([plain(item, f"{name}[{i}]", other) for i, item in enumerate(value)])
    if isinstance(value, Mapping):
        for key in value:
            _check_key(key, name)
        return {key: plain(item, f"{name}/{key}", other) for key, item in value.items()}
    return other(value, name)


def same(a: Any, b: Any) -> bool:
    """Whether two plain values are equal in value and type: 1, 1.0 and True differ; nan equals nan."""
    if type(a) is not type(b):
        return False
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return bool(a == b or (a != a and b != b))


def pack(value: Any) -> Any:
    """A plain value in strict JSON, from which `unpack` makes exactly it: tuples, nan and inf survive."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": repr(value)}
    if isinstance(value, tuple):
        return {"$tuple": [pack(item) for item in value]}
    if isinstance(value, list):
        return [pack(item) for item in value]
    if isinstance(value, dict):
        return _escaped({key: pack(item) for key, item in value.items()})
    if isinstance(value, Held):
        return {"$held": [value.name, value.kind, value.digest]}
    return value


def unpack(packed: Any) -> Any:
    """What `pack` packed; also a space's ``param_space`` from its description."""
    tag, body = _tag(packed)
    match tag:
        case "choice":
            return choice([unpack(item) for item in body])
        case "ordinal":
            return ordinal([unpack(item) for item in body])
        case "prior":
            described, centre, confidence = body
            return replace(unpack(described), prior=Prior(unpack(centre), confidence))
        case "grid_search":
            return grid_search([unpack(item) for item in body])
        case "sample_from":
            raise ValueError(f"sample_from({body}) cannot be read back from a description; give param_space again")
    return _NUMERIC[tag](*body) if tag in _NUMERIC else _unpacked(tag, body, unpack)


def unpack_value(packed: Any) -> Any:
    """What `pack` packed; ValueError where anything else is in it: a domain is no value."""
    return _unpacked(*_tag(packed), unpack_value)


def _unpacked(tag: str, body: Any, inner: Callable[[Any], Any]) -> Any:
    match tag:
        case "value":
            return body
        case "dict":
            return {key: inner(item) for key, item in body.items()}
        case "list":
            return [inner(item) for item in body]
        case "tuple":
            return tuple(inner(item) for item in body)
        case "float":
            return float(body)
        case "held":
            return Held(*body)
    raise ValueError(f"'${tag}' is no plain value")


def _tag(packed: Any) -> tuple[str, Any]:
    """What kind of thing a piece of a description is, and what it holds."""
    if isinstance(packed, list):
        return "list", packed
    if not isinstance(packed, dict):
        return "value", packed
    if len(packed) == 1:
        (key,) = packed
        if key.startswith("$"):
            if key[1:] not in _TAGS:
                raise ValueError(f"{key!r} is no kind of domain; this version knows {sorted(_TAGS)}")
            return key[1:], packed[key]
    return "dict", packed


def _escaped(fields: dict[str, Any]) -> dict[str, Any]:
    """A user's dict that looks like one of our tags, as something that cannot be mistaken for one."""
    return {"$dict": fields} if len(fields) == 1 and next(iter(fields)).startswith("$") else fields


_NUMERIC: Mapping[str, Callable[..., Numeric]] = {
    "uniform": uniform,
    "quniform": quniform,
    "loguniform": loguniform,
    "qloguniform": qloguniform,
    "randn": randn,
    "qrandn": qrandn,
    "randint": randint,
    "qrandint": qrandint,
    "lograndint": lograndint,
    "qlograndint": qlograndint,
}
_TAGS = {*_NUMERIC, "ordinal", "choice", "prior", "grid_search", "sample_from", "float", "tuple", "dict", "held"}


def _with_prior(described: dict[str, Any], prior: Prior | None) -> dict[str, Any]:
    """A description of a domain and of the prior over it."""
    return described if prior is None else {"$prior": [described, pack(prior.centre), prior.confidence]}


def _text(packed: Any) -> str:
    """A piece of a description as one would write it in Python."""
    tag, body = _tag(packed)
    match tag:
        case "value":
            return repr(body)
        case "float":
            return str(body)
        case "list":
            return f"[{', '.join(map(_text, body))}]"
        case "tuple":
            return f"({', '.join(map(_text, body))}{',' * (len(body) == 1)})"
        case "dict":
            return "{" + ", ".join(f"{key!r}: {_text(item)}" for key, item in body.items()) + "}"
        case "prior":
            described, centre, confidence = body
            kind, options = _tag(described)
            centre = _text(options[centre] if kind == "choice" else centre)
            return f"{_text(described)[:-1]}, prior=({centre}, {confidence!r}))"
        case "choice" | "ordinal" | "grid_search":
            return f"{tag}([{', '.join(map(_text, body))}])"
        case "sample_from":
            return f"sample_from({body})"
        case "held":
            return repr(Held(*body))
    return f"{tag}({', '.join(map(repr, body))})"


def _lines(packed: Any, name: str) -> Iterator[tuple[str, str]]:
    """The names and texts of a description's parameters and constants; branch i of a choice is ``name[i]``."""
    tag, body = _tag(packed)
    prior = ""
    if tag == "prior":
        prior = f", prior={tuple(body[1:])!r}"
        tag, body = _tag(body[0])
    if tag == "dict" and (body or not name):
        for key in body:
            yield from _lines(body[key], f"{name}/{key}" if name else key)
    elif tag == "choice" and any(_tag(option)[0] == "dict" for option in body):
        yield name, f"choice of {len(body)}{prior}"
        for i, option in enumerate(body):
            yield from _lines(option, f"{name}[{i}]")
    else:
        yield name, _text(packed)


# ------------------------------------------------------------------------------------------ arithmetic of quanta


def _is_number(value: object) -> TypeGuard[float]:
    """Whether it is a plain finite number, and an int not too large to be a float."""
    return type(value) in (float, int) and abs(value) <= sys.float_info.max  # type: ignore[arg-type]


def _multiple(k: int, q: float) -> float:
    """k·q as the decimal one would write: 3 * 0.1 is 0.3."""
    return round(k * q, _decimals(q))


@cache
def _decimals(q: float) -> int:
    exponent = Decimal(repr(q)).as_tuple().exponent
    assert isinstance(exponent, int)  # q is finite
    return max(-exponent, 0)


def _nearest(value: float, q: float) -> int:
    return math.floor(value / q + 0.5)


def _is_multiple(value: object, q: float) -> TypeGuard[float]:
    """Whether it is a plain number and a multiple of q, up to rounding: tables of others hold 0.30000000000000004."""
    if not _is_number(value) or abs(value / q) > _MOST_STEPS:
        return False
    return math.isclose(value, _multiple(_nearest(value, q), q), rel_tol=1e-12, abs_tol=1e-9 * q)


# -------------------------------------------------------------------------------------------------- at the door

_MOST_STEPS = 2**50  # a float64 coordinate cannot tell more values apart
_MOST_LOG_STEPS = 2**40


def _integer(call: str, lower: Any, upper: Any, q: Any, log: bool) -> Integer:
    low, high, quantum = _whole(call, "lower", lower), _whole(call, "upper", upper), _whole(call, "q", q)
    _check_bounds(call, low, high, log)
    _check_quantum(call, low, high, quantum)
    first, last = -(-low // quantum), high // quantum - (quantum == 1)
    return Integer(low, high, quantum, _steps(call, first, last, log))


def _quantized(call: str, lower: Any, upper: Any, q: Any, log: bool) -> Quantized:
    low, high = _bounds(call, lower, upper, log)
    quantum = _positive(call, "q", q)
    _check_quantum(call, low, high, quantum)
    if max(abs(low), abs(high)) / quantum > _MOST_STEPS:
        raise _too_many_steps(call, _MOST_STEPS)
    for argument, bound in (("lower", low), ("upper", high)):
        if not _is_multiple(bound, quantum):
            nearest = _multiple(_nearest(bound, quantum), quantum)
            raise ValueError(
                f"{call}: {argument} is {bound!r}, expected a multiple of q={quantum!r}, such as {nearest!r}"
            )
    first, last = _nearest(low, quantum), _nearest(high, quantum)
    steps = _steps(call, first, last, log)
    return Quantized(_multiple(first, quantum), _multiple(last, quantum), quantum, steps)


def _steps(call: str, first: int, last: int, log: bool) -> Steps:
    most = _MOST_LOG_STEPS if log else _MOST_STEPS
    if (last if log else last - first) >= most:
        raise _too_many_steps(call, most)
    return Steps(first, last, log)


def _too_many_steps(call: str, most: int) -> ValueError:
    return ValueError(f"{call}: more than 2**{most.bit_length() - 1} steps, expected fewer; use a larger q or a float")


def _bounds(call: str, lower: Any, upper: Any, log: bool = False) -> tuple[float, float]:
    low, high = _number(call, "lower", lower), _number(call, "upper", upper)
    _check_bounds(call, low, high, log)
    return low, high


def _check_bounds(call: str, lower: float, upper: float, log: bool) -> None:
    if log and lower <= 0:
        raise ValueError(f"{call}: lower is {lower!r}, expected a number above 0 on a log scale (not its logarithm)")
    if lower >= upper or (log and math.log(lower) == math.log(upper)):
        raise ValueError(f"{call}: lower is {lower!r}, expected less than upper, which is {upper!r}")
    if not math.isfinite(upper - lower):
        raise ValueError(f"{call}: from lower {lower!r} to upper {upper!r} is farther than a float can say")


def _check_quantum(call: str, lower: float, upper: float, q: float) -> None:
    if q <= 0:
        raise ValueError(f"{call}: q is {q!r}, expected a number above 0")
    if q > (upper - lower) * (1 + 1e-9):  # 0.1 is more than 0.4 - 0.3
        raise ValueError(f"{call}: q is {q!r}, expected at most upper - lower, which is {upper - lower!r}")


def _number(call: str, argument: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{call}: {argument} is {_show(value)}, expected a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{call}: {argument} is {value!r}, expected a finite number")
    return number


def _positive(call: str, argument: str, value: Any) -> float:
    number = _number(call, argument, value)
    if number <= 0:
        raise ValueError(f"{call}: {argument} is {value!r}, expected a number above 0")
    return number


def _whole(call: str, argument: str, value: Any) -> int:
    """An integer; 1e4 is one, as in Ray."""
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return int(value)
    number = _number(call, argument, value)
    if not number.is_integer():
        raise ValueError(f"{call}: {argument} is {value!r}, expected a whole number")
    return int(number)


def _options(call: str, argument: str, values: Any) -> tuple[Any, ...]:
    # A set has another order in another process; a str or dict is rarely meant as its characters or keys.
    if isinstance(values, str | bytes | Mapping | set | frozenset) or not isinstance(values, Iterable):
        raise TypeError(f"{call}: {argument} is {_show(values)}, expected a list of options")
    options = tuple(values)
    if not options:
        raise ValueError(f"{call}: {argument} is empty, expected at least one option")
    return options


_D = TypeVar("_D", bound="Axis")


def _numbered(call: str, categories: Any) -> Iterable[tuple[int, Any]]:
    return enumerate(_options(call, "categories", categories))


def _believed(call: str, domain: _D, prior: Believed) -> _D:
    """The domain with a prior, if there is one."""
    if prior is None:
        return domain
    given, confidence = _pair(call, prior)
    centre = _bare(given)
    if not domain.contains(centre):
        raise ValueError(f"{call}: prior's centre is {_show(given)}, expected a value of {domain.describe()}")
    found: _D = replace(cast(Any, domain), prior=Prior(centre, confidence))
    return found


def _pair(call: str, prior: Any) -> tuple[Any, float]:
    if not isinstance(prior, tuple | list) or len(prior) != 2:
        raise TypeError(f"{call}: prior is {_show(prior)}, expected a pair: (the value thought best, confidence)")
    return prior[0], _confidence(f"{call}: prior's confidence", prior[1])


def _confidence(what: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not 0 < value < 1:
        raise ValueError(f"{what} is {_show(value)}, expected a number between 0 and 1, without these")
    return float(value)


def _bare(value: Any) -> Any:
    """A plain value; in place of anything else what is `same` as nothing."""
    return plain(value, "", lambda *_: object())


def _shown(options: Sequence[Any]) -> str:
    text = repr(list(options))
    return text if len(text) <= 200 else f"{text[:197]}..."


def _ignore_base(call: str, base: object) -> None:
    if base is not _NOT_GIVEN:
        warnings.warn(f"{call}: base has no effect and is deprecated, as in Ray", DeprecationWarning, stacklevel=3)


def _check_key(key: Any, name: str) -> None:
    where = f"{name}: key" if name else "key"
    if not isinstance(key, str):
        raise TypeError(f"{where} {key!r} is of type {type(key).__name__}, expected str")
    if not key or "/" in key:
        raise ValueError(f"{where} {key!r}, expected a name without '/', which joins the names of nested parameters")


def _is_grid(raw: Any) -> bool:
    return isinstance(raw, Mapping) and len(raw) == 1 and "grid_search" in raw


def _holds_domain(raw: Any) -> bool:
    if isinstance(raw, Mapping):
        return _is_grid(raw) or any(map(_holds_domain, raw.values()))
    if isinstance(raw, list | tuple):
        return any(map(_holds_domain, raw))
    return isinstance(raw, Domain)


def _show(value: Any) -> str:
    """A value and its type, short."""
    text = repr(value)
    kind = type(value)
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return f"{text if len(text) <= 80 else text[:77] + '...'} ({name})"
