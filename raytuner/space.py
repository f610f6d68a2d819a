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
- `choice` and `grid_search`: option i of n at (i + 1/2) / n. A grid is a categorical dimension for models and tables;
  `Space.sample` walks it when it is given the number of the grid point.

Sampling is decoding uniform coordinates, so that there is one source of truth. `sample_from` functions are evaluated
after everything else and are no dimension: `encode` ignores their values, `decode` calls them again.

Objects that are no plain values (datasets, functions, instances) may stand where a constant or an option stands. In
configurations and descriptions a token stands for each (`raytuner.held`), a plain value like any other: so a
configuration can be written down, and is compared by what the objects are. `Space.objects` has the objects.

Not here: constraints and priors over spaces, and Ray's own domain objects.
"""

from __future__ import annotations

import inspect
import json
import math
import random
import sys
import warnings
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cache
from statistics import NormalDist
from typing import Any, NoReturn, Protocol, TypeGuard

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raytuner.held import Held, hold, supply

# ------------------------------------------------------------------------------------- the constructors, as Ray's

_NOT_GIVEN = object()


def uniform(lower: float, upper: float) -> Float:
    """A float from ``lower`` to ``upper``."""
    return Float(*_bounds("uniform", lower, upper), log=False)


def quniform(lower: float, upper: float, q: float) -> Quantized:
    """A float from ``lower`` to ``upper``, both included, that is a multiple of ``q``; so must the bounds be."""
    return _quantized("quniform", lower, upper, q, log=False)


def loguniform(lower: float, upper: float, base: object = _NOT_GIVEN) -> Float:
    """A float from ``lower`` to ``upper``, uniform in its logarithm. ``base`` is ignored, as in Ray."""
    _ignore_base("loguniform", base)
    return Float(*_bounds("loguniform", lower, upper, log=True), log=True)


def qloguniform(lower: float, upper: float, q: float, base: object = _NOT_GIVEN) -> Quantized:
    """A multiple of ``q`` from ``lower`` to ``upper``, both included, uniform in its logarithm."""
    _ignore_base("qloguniform", base)
    return _quantized("qloguniform", lower, upper, q, log=True)


def randn(mean: float = 0.0, sd: float = 1.0) -> Normal:
    """A normally distributed float."""
    return Normal(_number("randn", "mean", mean), _positive("randn", "sd", sd))


def qrandn(mean: float, sd: float, q: float) -> QuantizedNormal:
    """A normally distributed float, rounded to the nearest multiple of ``q``."""
    mean, sd, q = _number("qrandn", "mean", mean), _positive("qrandn", "sd", sd), _positive("qrandn", "q", q)
    if q < 1e-6 * sd or (abs(mean) + 6 * sd) / q > _MOST_STEPS:
        raise ValueError(f"qrandn: q is {q!r}, too fine for mean {mean!r} and sd {sd!r} to matter; use randn")
    return QuantizedNormal(mean, sd, q)


def randint(lower: int, upper: int) -> Integer:
    """An integer from ``lower`` to ``upper - 1``."""
    return _integer("randint", lower, upper, 1, log=False)


def qrandint(lower: int, upper: int, q: int = 1) -> Integer:
    """A multiple of ``q`` from ``lower`` to ``upper``, both included; with ``q=1``, as in Ray, ``upper`` is not."""
    return _integer("qrandint", lower, upper, q, log=False)


def lograndint(lower: int, upper: int, base: object = _NOT_GIVEN) -> Integer:
    """An integer from ``lower`` to ``upper - 1``, uniform in its logarithm."""
    _ignore_base("lograndint", base)
    return _integer("lograndint", lower, upper, 1, log=True)


def qlograndint(lower: int, upper: int, q: int, base: object = _NOT_GIVEN) -> Integer:
    """A multiple of ``q`` from ``lower`` to ``upper``, uniform in its logarithm; with ``q=1`` without ``upper``."""
    _ignore_base("qlograndint", base)
    return _integer("qlograndint", lower, upper, q, log=True)


def choice(categories: Sequence[Any]) -> Choice:
    """One of ``categories``: plain values, objects, domains, dicts with domains again (conditional parameters).

    Plain values are kept as given, a tuple stays a tuple, and told apart by type: 1, 1.0 and True are three options.
    An option given twice has twice the mass.
    """
    return Choice(_options("choice", "categories", categories))


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
    domain: Numeric | Choice
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
    second or two.
    """

    def __init__(self, param_space: Mapping[str, Any]) -> None:
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

    def __len__(self) -> int:
        return self.dim

    @property
    def has_grid(self) -> bool:
        """Whether there is a `grid_search`."""
        return bool(self._grids)

    # ------------------------------------------------------------------------------------------------- to draw

    def sample(self, rng: np.random.Generator, grid: int | None = None) -> dict[str, Any]:
        """Draw a configuration, of plain values. ``grid``: at this grid point (None: a random one, if there is any)."""
        x = rng.random(self.dim).tolist()
        if grid is not None:
            for node, option in zip(self._grids, self._grid_options(grid), strict=True):
                x[node.index] = node.choice.coordinate(option)
        config, later = self._build(x)
        if later:
            _call(config, later, self.objects, seed=int(rng.integers(2**32)))
        return config

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
        X, active = self.encode_many([config])
        return X[0], active[0]

    def encode_many(self, configs: Sequence[Mapping[str, Any]]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Several configurations: X (n, d) and active (n, d)."""
        X = [[0.0] * self.dim for _ in configs]
        active = [[False] * self.dim for _ in configs]
        for config, row, on in zip(configs, X, active, strict=True):
            self.check(config)
            self._root.fill(config, row, on)
        shape = (len(configs), self.dim)
        return np.array(X, dtype=np.float64).reshape(shape), np.array(active, dtype=np.bool_).reshape(shape)

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


# ------------------------------------------------------------------------------------------- the kinds of domain


class Domain(ABC):
    """What may stand in a ``param_space`` in place of a value."""

    @abstractmethod
    def place(self, plan: _Plan, path: tuple[str, ...], condition: tuple[int, int] | None, name: str) -> _Node:
        """Take a place in a space. ``name`` is as in `_Plan.node`."""


class Numeric(Domain):
    """A domain of numbers with one coordinate."""

    categories = 0

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

    def describe(self) -> str:
        """As one would write it: ``uniform(0.0, 1.0)``."""
        name, arguments = self.call()
        return f"{name}({', '.join(map(repr, arguments))})"

    def place(self, plan: _Plan, path: tuple[str, ...], condition: tuple[int, int] | None, name: str) -> _Node:
        return _Leaf(plan.add(Param(path, self, condition)), self)


@dataclass(frozen=True, slots=True)
class Float(Numeric):
    """A float from ``lower`` to ``upper``."""

    lower: float
    upper: float
    log: bool

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
class Choice(Domain):
    """One of several options, by chance or (``grid``) each in turn."""

    options: tuple[Any, ...]
    grid: bool = False

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
        return _Call("/".join(path), self)


# ------------------------------------------------------------------- the tree: a space's domains in their places


class _Node(Protocol):
    def build(self, x: list[float], later: _Later) -> Any:
        """The value at the coordinates x (d,); `sample_from`s stand for themselves and are noted in ``later``."""

    def fill(self, value: Any, x: list[float], active: list[bool]) -> None:
        """Write the coordinates of a value of this node into x (d,) and active (d,)."""

    def problems(self, value: Any, name: str) -> list[str]:
        """Why the value is none of this node's; empty if it is."""

    def to_json(self) -> Any:
        """Its description in plain JSON."""


class _Plan:
    """What is gathered while a space is flattened."""

    def __init__(self) -> None:
        self.params: list[Param] = []
        self.grids: list[_Options] = []
        self.spread: list[tuple[str, ...]] = []  # paths of the lists that hold domains
        self.objects: dict[Held, Any] = {}

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

    def problems(self, value: Any, name: str) -> list[str]:
        return [] if same(value, self.value) else [f"{name} is {_show(value)}, expected {self.value!r}"]

    def to_json(self) -> Any:
        return pack(self.value)


@dataclass(frozen=True, slots=True)
class _Leaf:
    """A number."""

    index: int
    domain: Numeric

    def build(self, x: list[float], later: _Later) -> Any:
        return self.domain.decode(x[self.index])

    def fill(self, value: Any, x: list[float], active: list[bool]) -> None:
        x[self.index] = min(max(self.domain.encode(value), 0.0), 1.0)
        active[self.index] = True

    def problems(self, value: Any, name: str) -> list[str]:
        if self.domain.contains(value):
            return []
        return [f"{name} is {_show(value)}, expected a value of {self.domain.describe()}"]

    def to_json(self) -> Any:
        name, arguments = self.domain.call()
        return {f"${name}": list(arguments)}


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
            node.fill(value[key], x, active)

    def problems(self, value: Any, name: str) -> list[str]:
        if not isinstance(value, Mapping):
            return [f"{name or 'config'} is {_show(value)}, expected a dict with {sorted(self.nodes)}"]
        prefix = f"{name}/" if name else ""
        problems = []
        for key, node in self.nodes.items():
            if key in value:
                problems += node.problems(value[key], prefix + key)
            else:
                problems.append(f"{prefix}{key} is missing")
        if len(value) > len(self.nodes) or problems:
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

    def problems(self, value: Any, name: str) -> list[str]:
        if type(value) is not self.type or len(value) != len(self.nodes):
            return [f"{name} is {_show(value)}, expected a {self.type.__name__} of {len(self.nodes)}"]
        pairs = enumerate(zip(value, self.nodes, strict=True))
        return [problem for i, (item, node) in pairs for problem in node.problems(item, f"{name}/{i}")]

    def to_json(self) -> Any:
        items = [node.to_json() for node in self.nodes]
        return {"$tuple": items} if self.type is tuple else items


@dataclass(frozen=True, slots=True)
class _Options:
    """A choice or a grid. A value belongs to the first option that has it."""

    index: int
    name: str
    choice: Choice
    nodes: tuple[_Node, ...]

    def build(self, x: list[float], later: _Later) -> Any:
        return self.nodes[self.choice.option(x[self.index])].build(x, later)

    def fill(self, value: Any, x: list[float], active: list[bool]) -> None:
        option = next(i for i, node in enumerate(self.nodes) if not node.problems(value, ""))
        x[self.index] = self.choice.coordinate(option)
        active[self.index] = True
        self.nodes[option].fill(value, x, active)

    def problems(self, value: Any, name: str) -> list[str]:
        found = []
        for node in self.nodes:
            problems = node.problems(value, name)
            if not problems:
                return []
            found.append(problems)
        counts = [len(problems) for problems in found]
        if counts.count(min(counts)) == 1:  # so there is one that it was probably meant to be
            nearest = counts.index(min(counts))
            return [f"{name} fits none of its options, the nearest is number {nearest}: {'; '.join(found[nearest])}"]
        return [f"{name} is {_show(value)}, expected one of {_text([node.to_json() for node in self.nodes])}"]

    def to_json(self) -> Any:
        return {"$grid_search" if self.choice.grid else "$choice": [node.to_json() for node in self.nodes]}


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

    def problems(self, value: Any, name: str) -> list[str]:
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
        case "float":
            return float(body)
        case "tuple":
            return tuple(unpack(item) for item in body)
        case "list":
            return [unpack(item) for item in body]
        case "dict":
            return {key: unpack(item) for key, item in body.items()}
        case "held":
            return Held(*body)
        case "value":
            return body
        case "choice":
            return choice([unpack(item) for item in body])
        case "grid_search":
            return grid_search([unpack(item) for item in body])
        case "sample_from":
            raise ValueError(f"sample_from({body}) cannot be read back from a description; give param_space again")
    return _NUMERIC[tag](*body)


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
_TAGS = {*_NUMERIC, "choice", "grid_search", "sample_from", "float", "tuple", "dict", "held"}


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
        case "choice" | "grid_search":
            return f"{tag}([{', '.join(map(_text, body))}])"
        case "sample_from":
            return f"sample_from({body})"
        case "held":
            return repr(Held(*body))
    return f"{tag}({', '.join(map(repr, body))})"


def _lines(packed: Any, name: str) -> Iterator[tuple[str, str]]:
    """The names and texts of a description's parameters and constants; branch i of a choice is ``name[i]``."""
    tag, body = _tag(packed)
    if tag == "dict" and (body or not name):
        for key in body:
            yield from _lines(body[key], f"{name}/{key}" if name else key)
    elif tag == "choice" and any(_tag(option)[0] == "dict" for option in body):
        yield name, f"choice of {len(body)}"
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
