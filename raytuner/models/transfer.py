"""What old studies say of a new one: a mean function for its model, and what to try first.

Each source has a Gaussian process of its own, of the same features and kernel as the target's
(`raytuner.models.multi_fidelity`), fitted once; of it only the mean g at the source's top rung is used, in units of the
deviation of the source's scores. The target's f is, in the manner of Vizier's stacked residual models (Golovin et al.
2017, section 3.4),

    f(x) = sum_s w_s b_s g_s(x) + c + a Gaussian process of mean 0

    b     gains, in the target's unit for one of the source's: the regression of y on all g_s under the target's
          covariance (R&W section 2.7), with a normal prior of mean 1 / S and deviation 1 for each, and none below 0
    w_s   trust in the agreement of ranks: 2 p - 1, where p is the share of bootstrap draws of the target's outcomes in
          which g_s orders more than half of the pairs rightly; 0 if p is below a half, as by chance

and all w are 0 where the process alone is clearly better: if it is at ordering the pairs, by leave-one-out predictions
(R&W eq. 5.12), in more than 1 - `LEAST_HELP` of the draws. So a source that is no help fades as data come: it is given
no weight, or the process, which has seen the target, makes up for it; where all w are 0 the model is the one without
sources. Weights by ranking loss over draws are the idea of RGPE (Feurer, Letham & Bakshy 2018, arXiv:1802.02219); there
predictions are averaged, so that what was seen is not interpolated, here they are a prior.

The start portfolio is greedy (Wistuba, Schilling & Schmidt-Thieme 2015; Auto-sklearn 2.0, Feurer et al. 2022, section
3.1): see `portfolio_points`.
"""

# Notation: as in `raytuner.models.multi_fidelity`, and
#   S   sources        c   candidates        B   draws
#   g (S, n)   what sources predict for the target's outcomes

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self, cast

import numpy as np
from scipy.linalg import cho_solve, solve_triangular
from scipy.optimize import nnls

from raytuner.history import Fitted, History
from raytuner.models.gaussian_process import Decay, Floats, GaussianProcess, Matern, Product, standardised
from raytuner.models.multi_fidelity import Features, Values, aligned, rungs, scores
from raytuner.models.parzen import Bools, Ints
from raytuner.space import Space
from raytuner.trial import Config

DRAWS = 200
"""Bootstrap draws of which the weights are shares."""

LEAST_HELP = 0.25
"""Sources are not used if the process is better without them in more than all but this share of the draws."""

PORTFOLIO = 3
"""How many points of the sources a searcher begins with, at most."""

LEAST_FACTOR = 0.02
"""Sources of a smaller w b are left out: each costs time."""

APART = 0.1
"""Root mean square distance of coordinates below which two points of a portfolio are taken for the same."""


@dataclass(frozen=True, slots=True)
class Source:
    """What a source predicts. ``unknown``: columns of parameters that it has no value of, at what they are for it."""

    name: str
    matern: Matern
    lengths: Floats
    inputs: Floats  # (n, D + 2)
    alpha: Floats  # (n,), the signal, and how far each datum is from the top rung, multiplied in
    centre: float
    unknown: Ints

    @classmethod
    def of(cls, features: Features, fitted: Fitted, values: Values) -> Self:
        """``fitted`` must have rows."""
        y = standardised(scores(aligned(np.array(fitted.trials), fitted.steps, fitted.values), values))[0]
        t = rungs(fitted.steps.tolist())
        inputs = features.at(fitted.points, fitted.active, t, float(t.max()))
        process = GaussianProcess.fit(features.kernel, inputs, y, features.noise)
        kernel = cast(Product, process.kernel)
        matern, decay = cast(Matern, kernel.a), cast(Decay, kernel.b)
        own = process.theta[1 + len(process.noise.priors) :]
        top = inputs[t.argmax()][None]
        fade = process.signal * decay.at(own[len(matern.priors) :], top, inputs)[0][0]
        groups = np.array(features.groups, dtype=np.int64)
        known = np.unique(features.parameter[fitted.known])
        unknown = np.flatnonzero(~np.isin(groups, known))
        lengths = own[: len(matern.priors)]
        return cls(fitted.name, matern, lengths, inputs, process.scale * fade * process.alpha, process.centre, unknown)

    def at(self, inputs: Floats) -> Floats:
        """g at inputs (m, D + 2), whatever rung they are of; (m,)."""
        Z = inputs
        if len(self.unknown):
            Z = inputs.copy()
            Z[:, self.unknown] = self.inputs[0, self.unknown]
        g: Floats = self.centre + self.matern.at(self.lengths, Z, self.inputs)[0] @ self.alpha
        return g

    def slope(self, z: Floats, columns: Ints) -> Floats:
        """The derivatives of g at one input (D + 2,) with respect to some columns (q,); (q,)."""
        z = z.copy()
        z[self.unknown] = self.inputs[0, self.unknown]
        slope: Floats = self.alpha @ self.matern.slope(self.lengths, z, self.inputs)
        slope[self.unknown] = 0.0
        return slope[columns]


@dataclass(frozen=True, slots=True)
class Mixed:
    """A mean function: the weighed sum of sources."""

    sources: tuple[Source, ...]
    factors: tuple[float, ...]  # w_s b_s, in the target's unit

    @property
    def worth(self) -> dict[str, float]:
        """The factors by the sources' names, summed where some have the same."""
        found: dict[str, float] = {}
        for source, factor in zip(self.sources, self.factors, strict=True):
            found[source.name] = found.get(source.name, 0.0) + factor
        return found

    def at(self, inputs: Floats) -> Floats:
        total = np.zeros(len(inputs))
        for source, factor in zip(self.sources, self.factors, strict=True):
            total += factor * source.at(inputs)
        return total

    def slope(self, z: Floats, columns: Ints) -> Floats:
        total = np.zeros(len(columns))
        for source, factor in zip(self.sources, self.factors, strict=True):
            total += factor * source.slope(z, columns)
        return total


@dataclass(frozen=True, slots=True)
class Weighing:
    """How far sources are believed, and what they are worth: w (S,) from 0 to 1, and b (S,), at least 0."""

    weights: Floats
    gains: Floats

    def prior(self, sources: Sequence[Source]) -> Mixed | None:
        """The mean function that these make; None if no source is believed."""
        factors = self.weights * self.gains
        used = [s for s in range(len(sources)) if factors[s] >= LEAST_FACTOR]
        return Mixed(tuple(sources[s] for s in used), tuple(factors[used].tolist())) if used else None


def weighed(g: Floats, targets: Floats, alone: GaussianProcess, rng: np.random.Generator) -> Weighing:
    """Weigh sources by what they predicted, g (S, n), for ``targets`` (n,), whose posterior without them is given."""
    count, n = g.shape
    y = (targets - alone.centre) / alone.scale
    centred = g - g.mean(axis=1, keepdims=True)
    gains = _gains(centred, y, alone.factor)
    draws = rng.multinomial(n, np.full(n, 1.0 / n), size=DRAWS).astype(np.float64)  # (B, n)
    pairs = _counted(draws, y[:, None] != y)
    draws, pairs = draws[pairs > 0.0], pairs[pairs > 0.0]
    if not len(draws):  # all values are equal
        return Weighing(np.zeros(count), alone.scale * gains)
    agree = np.array([np.mean(_counted(draws, _wrong(each, y)) < 0.5 * pairs) for each in g])
    weights = np.maximum(2.0 * agree - 1.0, 0.0)
    K_inverse = cho_solve((alone.factor, True), np.eye(n), check_finite=False)
    with_them, without = (
        _counted(draws, _wrong(y - (K_inverse @ (y - m)) / K_inverse.diagonal(), y))
        for m in ((weights * gains) @ centred, np.zeros(n))
    )
    if np.mean(with_them <= without) < LEAST_HELP:
        weights = np.zeros(count)
    return Weighing(weights, alone.scale * gains)


def _gains(g: Floats, y: Floats, L: Floats) -> Floats:
    """b (S,): the least of (y - b g)^T K^-1 (y - b g) + |b - 1/S|^2 for b at least 0."""
    count = len(g)
    white = solve_triangular(L, np.column_stack([g.T, y]), lower=True, check_finite=False)
    A = np.concatenate([white[:, :-1], np.eye(count)])
    b: Floats = nnls(A, np.append(white[:, -1], np.full(count, 1.0 / count)))[0]
    return b


def _wrong(predicted: Floats, y: Floats) -> Floats:
    """Which pairs (n, n) are ordered wrongly; ties of what is predicted count half, those of y not."""
    order = np.sign(predicted[:, None] - predicted) * np.sign(y[:, None] - y)
    return np.where(y[:, None] != y, (1.0 - order) / 2.0, 0.0)


def _counted(counts: Floats, pairs: Floats | Bools) -> Floats:
    """How many of the marked pairs (n, n) there are in each draw (B, n); (B,)."""
    return np.asarray(np.einsum("bn,nm,bm->b", counts, pairs.astype(np.float64), counts, optimize=True))


# ------------------------------------------------------------------------------------------------ what to try first


def portfolio(space: Space, sources: Sequence[History], size: int) -> list[Config]:
    """Configurations to begin with, the most useful first: at most ``size``, fewer if the sources hold fewer.

    See `portfolio_points`. What a source says nothing of is in the middle of its range.
    """
    features = Features.of(space)
    fitted = [found for found in (each.fit_to(space) for each in sources) if len(found)]
    models = [Source.of(features, each, "standard") for each in fitted]
    return [space.decode(x) for x in portfolio_points(space, features, fitted, models, size)]


def portfolio_points(
    space: Space, features: Features, fitted: Sequence[Fitted], models: Sequence[Source], size: int
) -> list[Floats]:
    """Points (d,) for the start: greedy, so that for each source there is a good one early.

    Candidates are each source's best points. What a source predicts for one is scaled to 0 for its best candidate and 1
    for its worst; the next point is the one that lowers most the mean over sources of the least of these so far, of
    equal ones the best on average. When none lowers it, a new round begins among those that are at least `APART` from
    all chosen.
    """
    if not models or not len(space):
        return []
    found = []
    for each in fitted:
        order = np.lexsort((each.values, -each.steps))  # of the highest rung the best, then of the next
        points = np.where(each.active | each.known, each.points, 0.5)
        found.append(points[order[np.isfinite(each.values[order])]][: 4 * size + 8])
    points = space.snap(np.concatenate(found))[0]
    if space.constraints:
        points = points[[space.feasible(space.decode(x)) for x in points]]
    if not len(points):
        return []
    active = space.snap(points)[1]
    inputs = features.at(points, active, np.zeros(len(points)), 0.0)
    g = np.array([model.at(inputs) for model in models])  # (S, c)
    low, high = g.min(axis=1, keepdims=True), g.max(axis=1, keepdims=True)
    scaled = (g - low) / np.where(high > low, high - low, 1.0)
    free = np.ones(len(points), dtype=np.bool_)
    best = np.full(len(models), math.inf)
    chosen: list[Floats] = []
    while len(chosen) < size and free.any():
        reached = np.minimum(scaled, best[:, None]).mean(axis=0)  # (c,)
        if np.isfinite(best).all() and reached[free].min() >= best.mean() - 1e-12:
            best[:] = math.inf
            continue
        place = int(np.lexsort((scaled.mean(axis=0), np.where(free, reached, math.inf)))[0])
        chosen.append(points[place])
        best = np.minimum(best, scaled[:, place])
        apart = np.sqrt(np.mean((points - points[place]) ** 2, axis=1))
        free &= apart >= APART
    return chosen


class Sources:
    """The old studies of a searcher: their models, made when first asked for."""

    def __init__(self, space: Space, features: Features, fitted: Sequence[Fitted], values: Values) -> None:
        self._space = space
        self._features = features
        self._fitted = fitted
        self._values = values

    @cached_property
    def models(self) -> list[Source]:
        return [Source.of(self._features, each, self._values) for each in self._fitted]

    @cached_property
    def portfolio(self) -> list[Floats]:
        """The points (d,) to begin with."""
        return portfolio_points(self._space, self._features, self._fitted, self.models, PORTFOLIO)

    def prior(self, alone: GaussianProcess, targets: Floats, rng: np.random.Generator) -> Mixed | None:
        """What they say of a target whose posterior without them is ``alone``; None if none is believed."""
        g = np.array([model.at(alone.inputs) for model in self.models])
        return weighed(g, targets, alone, rng).prior(self.models)
