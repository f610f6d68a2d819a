"""What to try next where a `multi_fidelity.Surrogate` is known: expected improvement at the top rung, and its maximum.

The improvement of f over the best predicted mean at the top rung of all that was seen or is under way. It is sought
among random points, perturbed elites (what is predicted best) and, from the best of those, by a local search of all
dimensions and then uphill along the gradient in the numeric ones.

`Pool` does this once for all trials that are begun while nothing new is heard: each trial begun since is taken for
pending as well, in the manner of GP-BUCB (Desautels, Krause & Burdick 2014): means stay, deviations shrink. So a batch
of 64 costs little more than one, and no two of it are alike. Which candidate comes next is found as in the lazy greedy
algorithm (Minoux 1978).
"""

# Notation: as in `raytuner.models.multi_fidelity`, and
#   V (n, m)   L^-1 K(X, Z) of the points Z of the pool: deviations are s^2 - sum_n V^2

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from dataclasses import dataclass, fields
from typing import Protocol, Self, cast

import numpy as np
from scipy.linalg import lapack, solve_triangular
from scipy.optimize import minimize
from scipy.special import log_ndtr, ndtr

from raytuner import prior
from raytuner.models.gaussian_process import JITTER, Decay, Floats, Matern, Product
from raytuner.models.multi_fidelity import Surrogate
from raytuner.models.parzen import Bools, Ints
from raytuner.space import Space

RANDOM, ELITES, PERTURBED, LOCAL, ROUNDS, NEIGHBOURS = 200, 10, 200, 3, 5, 16
"""Random points; the best predicted, and points around them; starts of the local search, its rounds, points of each.

Twice as many of all find no more: the largest log expected improvement differs by 0.00 in the mean over 48 states.
"""

GUIDED = 60
"""Feasible points, where the space has constraints, and points of the user's priors, where it has any."""

_LOOKS = 32
"""Candidates of a pool that are looked at anew at first, in a batch."""

_JUMP = 0.01
"""More than an acquisition may rise by where its expressions meet, or by rounding."""

_LOG_SQRT_2_PI = 0.5 * math.log(2.0 * math.pi)


def log_expected_improvement(mean: Floats, deviation: Floats, best: float) -> Floats:
    """log E max(best - f, 0) for normal f (m,); the far tail as in Ament et al. 2023 (arXiv:2310.20708)."""
    deviation = np.maximum(deviation, 1e-12)
    u = (best - mean) / deviation
    # h(u) = u Phi(u) + phi(u) = phi(u) (1 + u Phi(u) / phi(u)), and phi(u) / u^2 (1 - 3 / u^2 + 15 / u^4) far below
    above, below, far = np.maximum(u, -1.0), np.clip(u, -10.0, -1.0), np.minimum(u, -10.0)
    log_h = np.where(
        u > -1.0,
        np.log(above * ndtr(above) + np.exp(-0.5 * above * above - _LOG_SQRT_2_PI)),
        np.where(
            u > -10.0,
            -0.5 * below * below
            - _LOG_SQRT_2_PI
            + np.log1p(below * np.exp(log_ndtr(below) + 0.5 * below * below + _LOG_SQRT_2_PI)),
            -0.5 * far * far - _LOG_SQRT_2_PI - 2.0 * np.log(-far) + np.log1p(-3.0 / far**2 + 15.0 / far**4),
        ),
    )
    result: Floats = log_h + np.log(deviation)
    return result


def _log_h(u: float, log_density: float, log_below: float) -> float:
    """The h of `log_expected_improvement` of one ``u``: arrays of one take ten times as long."""
    if u > -1.0:
        return math.log(u * math.exp(log_below) + math.exp(log_density))
    if u > -10.0:
        return log_density + math.log1p(u * math.exp(log_below - log_density))
    return log_density - 2.0 * math.log(-u) + math.log1p(-3.0 / u**2 + 15.0 / u**4)


class Acquisition(Protocol):
    """What makes a point worth trying: larger is better. It does not rise where deviation or best fall."""

    def at(self, mean: Floats, deviation: Floats, best: float) -> Floats:
        """Of normal predictions (m,), where ``best`` is the lowest mean so far."""

    def slope(self, mean: float, deviation: float, best: float) -> tuple[float, float, float]:
        """The same of one, and its derivatives with respect to mean and deviation."""


@dataclass(frozen=True, slots=True)
class Improvement:
    """The logarithm of the expected improvement over the best."""

    def at(self, mean: Floats, deviation: Floats, best: float) -> Floats:
        return log_expected_improvement(mean, deviation, best)

    def slope(self, mean: float, deviation: float, best: float) -> tuple[float, float, float]:
        u = (best - mean) / deviation
        log_density, log_below = -0.5 * u * u - _LOG_SQRT_2_PI, float(log_ndtr(u))
        value = _log_h(u, log_density, log_below) + math.log(deviation)
        # d log EI = (-Phi(u) dmean + phi(u) ddeviation) / EI, in logarithms for the far tail
        return value, -math.exp(log_below - value), math.exp(log_density - value)


@dataclass(frozen=True, slots=True)
class ConfidenceBound:
    """``beta`` deviations below the mean, as a gain: GP-UCB, Srinivas et al. 2010, for minimisation."""

    beta: float = 2.0

    def at(self, mean: Floats, deviation: Floats, best: float) -> Floats:
        return self.beta * deviation - mean

    def slope(self, mean: float, deviation: float, best: float) -> tuple[float, float, float]:
        return self.beta * deviation - mean, -1.0, self.beta


@dataclass(frozen=True, slots=True)
class UnderWay:
    """A trial that was begun: to which step it runs, which rung that is, its point (d,), and `keys` of that."""

    trial: int
    until: int
    t: float
    point: Floats
    active: Bools
    key: bytes


@dataclass(frozen=True, slots=True)
class Choice:
    """A point of the pool (d,), and what is expected of it: scores at the top rung."""

    point: Floats
    active: Bools
    mean: float
    deviation: float
    acquisition: float
    best: float  # that it is to improve on


class Pool:
    """Candidates for the trials that are begun while nothing new is heard.

    ``seen``: keys of points not to propose. ``known``: how many trials were heard of, by which the user's priors fade.
    """

    def __init__(
        self,
        space: Space,
        surrogate: Surrogate,
        seen: Set[bytes],
        rng: np.random.Generator,
        acquisition: Acquisition | None = None,
        known: int = 0,
    ) -> None:
        self._acquisition = acquisition or Improvement()
        self._known = known
        self._space = space
        self._model = surrogate
        self._seen = seen
        process = surrogate.process
        kernel = cast(Product, process.kernel)
        self._matern, decay = cast(Matern, kernel.a), cast(Decay, kernel.b)
        own = process.theta[1 + len(process.noise.priors) :]
        self._lengths = own[: len(self._matern.priors)]
        # All candidates are at the top rung: how far each datum is from there is the same for all of them.
        top = surrogate.at_top(np.zeros((1, len(space))), np.zeros((1, len(space)), dtype=np.bool_))
        self._inverse = process.inverse()
        self._fade = process.signal * decay.at(own[len(self._lengths) :], top, process.inputs)[0][0]  # (n,)
        means = self._weighed(surrogate.points, surrogate.active).mean
        self._best = float(means.min())
        found = self._found(rng, np.argsort(means, kind="stable"))
        fresh = np.flatnonzero(~found.tried)
        self._points, self._active, self._mean = found.points[fresh], found.active[fresh], found.mean[fresh]
        self._V, self._reduced = found.V[:, fresh], found.reduced[fresh]
        self._fixed = np.concatenate([process.inputs, found.inputs[fresh]])  # (n + m, D + 2)
        self._places: dict[bytes, list[int]] = {}
        for place, own_key in enumerate(keys(self._points)):
            self._places.setdefault(own_key, []).append(place)
        self._free = np.ones(len(fresh), dtype=np.bool_)
        self._believed = self._belief(self._points, self._active)
        self._most = np.full(len(fresh), math.inf)  # what each candidate was worth when it was last looked at
        self._base = self._reduced, self._best
        self._begun = self._nothing_begun()

    # ------------------------------------------------------------------------------------------------ to choose

    def _nothing_begun(self) -> _Begun:
        return _Begun(self._fixed.shape[1], len(self._model.process.inputs), len(self._points))

    def choose(self, begun: Sequence[UnderWay]) -> Choice | None:
        """The best candidate, if these trials were begun since; None if there is none left."""
        if not len(self._points):
            return None
        known = self._begun.keys
        if known != [(each.key, each.t) for each in begun[: len(known)]]:
            self._begun = self._nothing_begun()
            self._reduced, self._best = self._base
            self._free[:] = True
            self._most[:] = math.inf
        for each in begun[len(self._begun.keys) :]:
            self._add(each)
        while self._free.any():
            place = self._worthiest()
            # The user's code is called for few.
            if not self._space.constraints or self._space.feasible(self._space.decode(self._points[place])):
                return Choice(
                    self._points[place],
                    self._active[place],
                    float(self._mean[place]),
                    float(self._deviation(self._reduced[place])),
                    float(self._most[place]),
                    self._best,
                )
            self._free[place] = False  # it stays so until the pool is made anew
        return None

    def _add(self, new: UnderWay) -> None:
        """A trial that was begun: another row of L, and of V."""
        process, features, begun = self._model.process, self._model.features, self._begun
        at = features.at(new.point[None], new.active[None], np.array([new.t]), self._model.top)
        k = process.between(self._fixed, at)[:, 0]  # (n + m,)
        n = len(process.inputs)
        v = _solved(process.factor, k[:n])  # (n,)
        covariance = process.between(begun.at, at)[:, 0] - begun.v @ v
        row = _solved(begun.L, covariance) if len(covariance) else covariance
        pivot2 = process.signal + process.noise_at(at) + JITTER - float(v @ v) - float(row @ row)
        pivot = math.sqrt(max(pivot2, 1e-12))
        V = k[n:] - v @ self._V
        if len(row):
            V -= row @ begun.V
        V /= pivot
        self._reduced = self._reduced + V * V
        begun.add((new.key, new.t), at[0], v, np.append(row, pivot), V)
        places = self._places.get(new.key, [])
        self._free[places] = False
        if places:
            mean = self._mean[places[0]]
        else:
            mean = process.mean(self._model.at_top(new.point[None], new.active[None]))[0]
        self._best = min(self._best, float(mean))

    def _worthiest(self) -> int:
        """The place of the best that is free. No candidate becomes worth more while trials begin: those that were worth
        less than what is found need not be looked at again."""
        most = np.where(self._free, self._most, -math.inf)
        order = np.argsort(-most, kind="stable")
        looked = 0
        while True:
            some = order[looked : 2 * looked or _LOOKS]
            looked += len(some)
            worth = self._acquisition.at(self._mean[some], self._deviation(self._reduced[some]), self._best)
            self._most[some] = worth = worth + self._believed[some]
            most[some] = np.where(self._free[some], worth, -math.inf)
            best = most[order[:looked]].max()
            if looked == len(order) or best > most[order[looked]] + _JUMP:
                return int(np.flatnonzero(self._free & (most == best))[0])

    def _belief(self, points: Floats, active: Bools) -> Floats:
        """What the user's priors add to the acquisition of points (m, d)."""
        return prior.fading(self._known) * self._space.log_prior(points, active)

    # -------------------------------------------------------------------------------------------- the candidates

    def _found(self, rng: np.random.Generator, order: Ints) -> _Weighed:
        """All candidates. ``order``: of the surrogate's points, the best predicted first."""
        elites: dict[bytes, Floats] = {}
        for x, own in zip(self._model.points[order], keys(self._model.points[order]), strict=True):
            elites.setdefault(own, x)
            if len(elites) == ELITES:
                break
        space = self._space
        drawn = [rng.random((RANDOM, len(space)))]
        if space.constraints:  # else there might be none that meets them
            drawn.append(space.encode_many([space.sample(rng) for _ in range(GUIDED)])[0])
        if space.has_prior:
            drawn.append(space.encode_many([space.sample_prior(rng) for _ in range(GUIDED)])[0])
        sigmas = np.resize([0.02, 0.08, 0.25], len(elites))
        drawn.append(self._around(rng, np.array(list(elites.values())), PERTURBED // len(elites), sigmas, 0.5))
        every = [self._weighed(*self._space.snap(np.concatenate(drawn)))]
        score = self._score(every[0])
        starts = np.argsort(-score, kind="stable")[:LOCAL]
        here, here_score, widths = every[0].points[starts].copy(), score[starts].copy(), np.full(len(starts), 0.1)
        for _ in range(ROUNDS):
            near = self._around(rng, here, NEIGHBOURS, widths, 0.3)
            every.append(self._weighed(*self._space.snap(near)))
            score = self._score(every[-1])
            for place in range(len(here)):
                rows = slice(place * NEIGHBOURS, (place + 1) * NEIGHBOURS)
                found = place * NEIGHBOURS + int(score[rows].argmax())
                if score[found] > here_score[place]:
                    here[place], here_score[place] = every[-1].points[found], score[found]
                else:
                    widths[place] *= 0.5
        every.append(self._weighed(*self._space.snap(np.stack([self._uphill(x) for x in here]))))
        return _Weighed.together(every)

    def _weighed(self, points: Floats, active: Bools) -> _Weighed:
        process = self._model.process
        inputs = self._model.at_top(points, active)
        k = self._fade * self._matern.at(self._lengths, inputs, process.inputs)[0]  # (m, n)
        V = solve_triangular(process.factor, k.T, lower=True, check_finite=False)
        mean = process.expected(inputs) + process.scale * (k @ process.alpha)
        tried = np.array([own in self._seen for own in keys(points)], dtype=np.bool_)
        return _Weighed(points, active, inputs, tried, mean, V, np.einsum("nm,nm->m", V, V))

    def _score(self, of: _Weighed) -> Floats:
        """The acquisition, -inf where a point was tried."""
        score = self._acquisition.at(of.mean, self._deviation(of.reduced), self._best)
        score = score + self._belief(of.points, of.active)
        return np.where(of.tried, -math.inf, score)

    def _deviation(self, reduced: Floats) -> Floats:
        process = self._model.process
        deviation: Floats = process.scale * np.sqrt(np.maximum(process.signal - reduced, 0.0))
        return deviation

    def _around(self, rng: np.random.Generator, points: Floats, count: int, sigma: Floats, moves: float) -> Floats:
        """``count`` points around each of (k, d), ``sigma`` (k,) away; (k count, d). Each coordinate is perturbed with
        probability ``moves``, options less."""
        categories = self._space.categories
        filled = [self._model.features.spread(*each) for each in zip(points, self._space.snap(points)[1], strict=True)]
        x, known = (np.repeat(np.array(each), count, axis=0) for each in zip(*filled, strict=True))
        moved = rng.random(x.shape) < np.where(categories > 0, 0.4 * moves, moves)
        near = np.clip(x + np.repeat(sigma, count)[:, None] * rng.standard_normal(x.shape), 0.0, 1.0)
        other = rng.random(x.shape)  # elsewhere there is nothing to be near to
        return np.where(known, np.where(moved, np.where(categories > 0, other, near), x), other)

    def _uphill(self, x: Floats) -> Floats:
        """The point with the numeric coordinates of ``x`` moved to where the improvement is largest nearby."""
        model = self._model
        active = self._space.snap(x[None])[1][0]
        numeric = np.flatnonzero(active & (self._space.categories == 0))
        if not len(numeric):
            return x
        process, columns = model.process, model.features.column[numeric]
        z = model.at_top(x[None], active[None])

        def loss(at: Floats) -> tuple[float, Floats]:
            z[0, columns] = at
            k = self._fade * self._matern.at(self._lengths, z, process.inputs)[0][0]
            slope = self._fade[:, None] * self._matern.slope(self._lengths, z[0], process.inputs)[:, columns]  # (n, q)
            w = self._inverse @ k
            mean = float(process.expected(z)[0]) + process.scale * float(k @ process.alpha)
            deviation = process.scale * math.sqrt(max(process.signal - float(k @ w), 1e-12))
            value, of_mean, of_deviation = self._acquisition.slope(mean, deviation, self._best)
            d_mean = process.scale * (process.alpha @ slope)
            if process.prior is not None:
                d_mean = d_mean + process.prior.slope(z[0], columns)
            d_deviation = -(process.scale**2) * (w @ slope) / deviation
            return -value, -(of_mean * d_mean + of_deviation * d_deviation)

        bounds = [(0.0, 1.0)] * len(numeric)
        found = minimize(loss, x[numeric], jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 25})
        moved = x.copy()
        moved[numeric] = np.clip(found.x, 0.0, 1.0)
        return moved


@dataclass(frozen=True, slots=True)
class _Weighed:
    """Candidates, and what is expected of them."""

    points: Floats  # (m, d)
    active: Bools  # (m, d)
    inputs: Floats  # (m, D + 2), at the top rung
    tried: Bools  # (m,)
    mean: Floats  # (m,)
    V: Floats  # (n, m)
    reduced: Floats  # (m,), sum_n V^2

    @classmethod
    def together(cls, parts: Sequence[Self]) -> Self:
        names = [each.name for each in fields(cls)]
        return cls(*(np.concatenate([getattr(part, name) for part in parts], axis=int(name == "V")) for name in names))


class _Begun:
    """The q trials that were begun since: their rows of L (those of the data, ``v``, and of each other), and of V."""

    def __init__(self, features: int, n: int, m: int) -> None:
        self.keys: list[tuple[bytes, float]] = []
        self._at, self._v, self._V = (np.empty((8, width)) for width in (features, n, m))
        self._L = np.zeros((8, 8))

    @property
    def at(self) -> Floats:
        return self._at[: len(self.keys)]  # (q, D + 2)

    @property
    def v(self) -> Floats:
        return self._v[: len(self.keys)]  # (q, n)

    @property
    def V(self) -> Floats:
        return self._V[: len(self.keys)]  # (q, m)

    @property
    def L(self) -> Floats:
        return self._L[: len(self.keys), : len(self.keys)]

    def add(self, key: tuple[bytes, float], at: Floats, v: Floats, row: Floats, V: Floats) -> None:
        q = len(self.keys)
        if q == len(self._L):
            self._at, self._v, self._V = (np.concatenate([x, np.empty_like(x)]) for x in (self._at, self._v, self._V))
            self._L = np.pad(self._L, (0, q))
        self._at[q], self._v[q], self._V[q], self._L[q, : q + 1] = at, v, V, row
        self.keys.append(key)


def _solved(L: Floats, b: Floats) -> Floats:
    """L^-1 b, of b (n,). As `solve_triangular`, whose checks take longer than this does where n is small."""
    x, failed = lapack.dtrtrs(L, b, lower=1)
    assert failed == 0  # a factor has a positive diagonal
    solved: Floats = x
    return solved


def keys(points: Floats) -> list[bytes]:
    """Of each point (d,) of several (m, d) what tells it from others, but for rounding."""
    return [row.tobytes() for row in np.round(points, 6) + 0.0]  # 0.0 and -0.0 are one
