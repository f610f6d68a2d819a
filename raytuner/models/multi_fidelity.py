"""One Gaussian process over configurations and rungs: every outcome speaks for the top rung.

BOHB models one rung and throws the others away. Here all outcomes train one model, in the manner of multi-task Gaussian
processes (Swersky, Snoek & Adams 2013; Poloczek, Wang & Frazier 2017), with a kernel that is a product,

    k((x, t), (x', t')) = Matern52(x, x') exp(-rate |t - t'|),      t = log_3(until), the number of the rung for eta = 3
    noise of variance v at the top rung and v exp(h + g (t_top - t)) below, g and h mostly positive: a short run says
    less, and often the last step is the one at which noise ends. One law for all rungs would find the top as noisy
    as what is next to it needs, and try the same point again and again

with a length scale for each parameter. Options of a categorical parameter are at equal distances, and an inactive
parameter is at the same distance from each of its values. Parameters by maximum a posteriori (`gaussian_process`),
fitted from scratch at fixed counts of outcomes: they do not depend on where an optimiser last stood.

What is modelled of a value, lower is better, where trials may diverge and rungs differ in scale:

    aligned      a rung is shifted by the median difference of the trials that were seen there and at the next one,
                 shrunk by k / (k + 1) for k such trials
    failed       as the worst value seen
    winsorised   what is worse than the 80th percentile is put there; values stay as they are ("standard"), or ("log")
                 the logarithm of the distance from the best is taken; or ("rank") all are replaced by normal scores

Of more than `MOST_DATA` outcomes the best, the newest of the highest rungs and a random choice of the others are used.
"""

# Notation, here and in the tests:
#   n          outcomes           m   queries          d   dimensions of the space          D   features
#   X (n, d)   points, 0 where inactive        A (n, d)   which coordinates are active
#   t (n,)     rungs              y (n,)   values

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from scipy.special import ndtr, ndtri

from raytuner.models.gaussian_process import (
    Decay,
    Floats,
    GaussianProcess,
    Matern,
    Noise,
    Prior,
    Product,
    standardised,
)
from raytuner.models.parzen import Bools, Ints
from raytuner.space import Space

Values = Literal["log", "standard", "rank"]

MOST_DATA = 260
"""More outcomes than these are not used at a time: a fit takes their number to the third power."""


# --------------------------------------------------------------------------------------------------- what is known


def rungs(untils: Sequence[int] | Ints) -> Floats:
    """Where rungs stand (n,): their numbers if they grow by a factor of three."""
    t: Floats = np.log(np.asarray(untils, dtype=np.float64)) / math.log(3.0)
    return t


class Outcomes:
    """What trials said at their rungs, in the order in which it was heard; one value per trial and rung."""

    def __init__(self, d: int) -> None:
        self._count = 0
        self._points = np.zeros((64, d))
        self._active = np.zeros((64, d), dtype=np.bool_)
        self._untils = np.zeros(64, dtype=np.int64)
        self._values = np.zeros(64)
        self._trials = np.zeros(64, dtype=np.int64)
        self._heard: dict[int, set[int]] = {}  # trial -> rungs

    def __len__(self) -> int:
        return self._count

    @property
    def points(self) -> Floats:
        return self._points[: self._count]  # (n, d)

    @property
    def active(self) -> Bools:
        return self._active[: self._count]  # (n, d)

    @property
    def untils(self) -> Ints:
        return self._untils[: self._count]  # (n,)

    @property
    def values(self) -> Floats:
        return self._values[: self._count]  # (n,), inf: failed

    @property
    def trials(self) -> Ints:
        return self._trials[: self._count]  # (n,)

    def add(self, trial: int, until: int, value: float, point: Floats, active: Bools) -> bool:
        """Take note of an outcome; whether it was new."""
        heard = self._heard.setdefault(trial, set())
        if until in heard:
            return False
        heard.add(until)
        if self._count == len(self._values):
            for name in ("_points", "_active", "_untils", "_values", "_trials"):
                full = getattr(self, name)
                setattr(self, name, np.concatenate([full, np.zeros_like(full)]))
        place, self._count = self._count, self._count + 1
        self._points[place], self._active[place] = point, active
        self._untils[place], self._values[place], self._trials[place] = until, value, trial
        return True

    @property
    def top(self) -> int:
        """The highest rung of all."""
        return int(self.untils.max())

    @property
    def tried(self) -> int:
        """How many trials were heard of."""
        return len(self._heard)

    def has(self, trial: int) -> bool:
        return trial in self._heard


def highest(trials: Ints, untils: Ints) -> Ints:
    """Of each trial the outcome at the highest rung that it was seen at: rows, by trial."""
    order = np.lexsort((-untils, trials))
    rows: Ints = order[np.unique(trials[order], return_index=True)[1]]
    return rows


def aligned(trials: Ints, untils: Ints, values: Floats) -> Floats:
    """Values (n,) of all rungs as if they were of the highest; failed ones, inf, as the worst of the others."""
    finite = np.isfinite(values)
    shifted = np.where(finite, values, values[finite].max(initial=-math.inf) if finite.any() else 0.0)
    rows = [np.flatnonzero(untils == rung) for rung in np.unique(untils)]
    shift = 0.0
    for here, above in reversed(list(itertools.pairwise(rows))):
        _, at, at_above = np.intersect1d(trials[here], trials[above], assume_unique=True, return_indices=True)
        both = finite[here[at]] & finite[above[at_above]]
        differences = values[above[at_above[both]]] - values[here[at[both]]]
        if len(differences):
            shift += float(np.median(differences)) * len(differences) / (len(differences) + 1)
        shifted[here] += shift
    return shifted


def scores(values: Floats, how: Values) -> Floats:
    """Aligned values (n,) as they are modelled."""
    if how == "rank":
        place = np.unique(values, return_inverse=True)[1]
        counts = np.bincount(place)
        ranks = np.cumsum(counts) - (counts + 1) / 2.0  # from 0, those of equal values averaged
        normal: Floats = ndtri((ranks[place] + 0.5) / len(values))
        return normal
    low, middle, high = values.min(), np.median(values), np.quantile(values, 0.8)
    clipped = np.minimum(values, high)
    if how == "log" and high > low:
        scale = float(middle - low) or float(high - low)
        return np.asarray(np.log((clipped - low) / scale + 0.1))
    return standardised(clipped)[0]


def chosen(y: Floats, t: Floats, most: int, rng: np.random.Generator) -> Ints:
    """Which of n outcomes are used (at most ``most``), ascending: 60 % the best, 15 % the newest of the highest rungs,
    and some of the others."""
    n = len(y)
    if n <= most:
        return np.arange(n)
    best = np.argsort(y - 0.3 * (t - t.max()) * y.std(), kind="stable")[: int(0.6 * most)]
    newest = np.lexsort((-np.arange(n), -t))[: int(0.15 * most)]
    sure = np.union1d(best, newest)
    others = np.setdiff1d(np.arange(n), sure)
    return np.sort(np.concatenate([sure, rng.choice(others, most - len(sure), replace=False)]))


def unscored(values: Floats, how: Values) -> Callable[[Floats], Floats]:
    """From scores (m,) back to aligned values (m,), among the ``values`` (n,) that `scores` were taken of."""
    if how == "rank":
        order, place = np.sort(values), np.arange(len(values))
        return lambda score: np.asarray(np.interp(ndtr(score) * len(values) - 0.5, place, order))
    low, middle, high = values.min(), np.median(values), np.quantile(values, 0.8)
    if how == "log" and high > low:
        scale = float(middle - low) or float(high - low)
        return lambda score: np.asarray(low + scale * (np.exp(np.minimum(score, 700.0)) - 0.1))
    _, centre, deviation = standardised(np.minimum(values, high))
    return lambda score: centre + deviation * score


# ------------------------------------------------------------------------------------------------------- the model


@dataclass(frozen=True, slots=True)
class Features:
    """Points of a space as inputs of a kernel: distances are those of the head of this file.

    Parameters of the same name and domain in several branches of a choice are one: what is known of it in one branch
    speaks for the others. ``column``: of each dimension its first feature. Behind all features stand two more: the
    rung, and how far up is the top.
    """

    categories: Ints  # (d,)
    conditional: Bools  # (d,)
    parameter: Ints  # (d,), the number of the parameter that a dimension is
    column: Ints  # (d,)
    groups: tuple[int, ...]  # (D,), the number of the parameter that a feature is of

    @classmethod
    def of(cls, space: Space) -> Self:
        conditional = np.array([param.condition is not None for param in space.params], dtype=np.bool_)
        numbers: dict[object, int] = {}
        for param in space.params:
            numbers.setdefault((param.path, repr(param.domain)), len(numbers))
        parameter = np.array([numbers[param.path, repr(param.domain)] for param in space.params], dtype=np.int64)
        first = np.unique(parameter, return_index=True)[1]
        width = np.where(space.categories > 0, space.categories, 1 + conditional)[first]
        begins = np.concatenate([[0], np.cumsum(width)]).astype(np.int64)
        groups = tuple(np.repeat(np.arange(len(width)), width).tolist())
        return cls(space.categories, conditional, parameter, begins[parameter], groups)

    @property
    def kernel(self) -> Product:
        # Distances grow with the number of parameters, and so do the lengths that tell points apart.
        count = max(self.groups, default=0) + 1
        lengths = Prior(math.log(0.5) + 0.25 * math.log(max(count, 4) / 4.0), 0.9)
        columns = tuple(range(len(self.groups)))
        return Product(Matern(columns, lengths, self.groups), Decay(len(columns), Prior(-math.log(4.0), 1.0)))

    @property
    def noise(self) -> Noise:
        return Noise(Prior(math.log(3e-4), 2.0), len(self.groups) + 1, Prior(0.5, 0.5), Prior(1.0, 1.5))

    def at(self, points: Floats, active: Bools, t: Floats, top: float) -> Floats:
        """Inputs (n, D + 2) of points (n, d) at rungs ``t`` (n,)."""
        inputs = np.zeros((len(points), len(self.groups) + 2))
        numeric = self.categories == 0
        always = numeric & ~self.conditional
        inputs[:, self.column[always]] = points[:, always]
        sometimes = np.flatnonzero(numeric & self.conditional)
        inputs[:, self.column[sometimes]], inputs[:, self.column[sometimes] + 1] = 0.5, 0.35
        for j in sometimes:
            on, column = active[:, j], self.column[j]
            inputs[on, column], inputs[on, column + 1] = points[on, j], 0.0
        chosen = np.flatnonzero(~numeric)
        r = self.categories[chosen]
        option = np.minimum(np.floor(points[:, chosen] * r), r - 1).astype(np.int64)  # (n, c)
        rows, places = np.nonzero(active[:, chosen])
        inputs[rows, self.column[chosen[places]] + option[rows, places]] = math.sqrt(0.5)
        inputs[:, -2], inputs[:, -1] = t, top - t
        return inputs

    def spread(self, x: Floats, active: Bools) -> tuple[Floats, Bools]:
        """A point (d,) with its parameters in all branches that have them, and which dimensions have a value then."""
        filled = x.copy()
        known = np.zeros(len(x), dtype=np.bool_)
        for j in np.flatnonzero(active):
            same = self.parameter == self.parameter[j]
            filled[same], known[same] = x[j], True
        return filled, known


@dataclass(frozen=True, slots=True)
class Surrogate:
    """The posterior of a study's outcomes. Values are scores (see `scores`), lower is better."""

    features: Features
    process: GaussianProcess
    points: Floats  # (n, d), of the outcomes that were used, and of pending trials behind them
    active: Bools  # (n, d)
    top: float
    rows: Ints  # (n,), which outcomes they are; -1: pending

    def at_top(self, points: Floats, active: Bools) -> Floats:
        """Inputs of points (m, d) at the top rung."""
        return self.features.at(points, active, np.full(len(points), self.top), self.top)

    def predict(self, points: Floats, active: Bools) -> tuple[Floats, Floats]:
        """Mean and deviation at the top rung of points (m, d); (m,) each."""
        return self.process.predict(self.at_top(points, active))

    def given(self, points: Floats, active: Bools, t: Floats) -> Surrogate:
        """The same if pending trials at points (q, d) turn out as predicted at their rungs."""
        if not len(points):
            return self
        process = self.process.given(self.features.at(points, active, t, self.top))
        return Surrogate(
            self.features,
            process,
            np.concatenate([self.points, points]),
            np.concatenate([self.active, active]),
            self.top,
            np.concatenate([self.rows, np.full(len(points), -1)]),
        )

    def alike(self, point: Floats, active: Bools) -> Floats:
        """How alike each outcome and that of a point (d,) at the top rung are taken to be: correlations (n,)."""
        k: Floats = self.process.covariances(self.at_top(point[None], active[None]))[0]
        return k / self.process.signal
