"""What to try next where a `multi_fidelity.Surrogate` is known: expected improvement at the top rung, and its maximum.

The improvement of f over the best predicted mean at the top rung of all that was seen or is under way. It is sought
among random points, perturbed elites (what is predicted best) and, from the best of those, by a local search of all
dimensions and then uphill along the gradient in the numeric ones.

`Pool` does this once for all trials that are begun while nothing new is heard: each trial begun since is taken for
pending as well, in the manner of GP-BUCB (Desautels, Krause & Burdick 2014): means stay, deviations shrink. So a batch
of 64 costs little more than one, and no two of it are alike.
"""

# Notation: as in `raytuner.models.multi_fidelity`, and
#   V (n, m)   L^-1 K(X, Z) of the points Z of the pool: deviations are s^2 - sum_n V^2

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from dataclasses import dataclass, fields
from typing import Self, cast

import numpy as np
from scipy.linalg import solve_triangular
from scipy.optimize import minimize
from scipy.special import log_ndtr, ndtr

from raytuner.models.gaussian_process import JITTER, Decay, Floats, Matern, Product
from raytuner.models.multi_fidelity import Surrogate
from raytuner.models.parzen import Bools, Ints
from raytuner.space import Space

RANDOM, ELITES, PERTURBED, LOCAL, ROUNDS, NEIGHBOURS = 400, 10, 300, 3, 8, 24
"""Random points; the best predicted, and points around them; starts of the local search, its rounds, points of each."""

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


@dataclass(frozen=True, slots=True)
class Choice:
    """A point of the pool (d,), and what is expected of it: scores at the top rung."""

    point: Floats
    active: Bools
    mean: float
    deviation: float
    log_improvement: float
    best: float  # that it is to improve on


class Pool:
    """Candidates for the trials that are begun while nothing new is heard. ``seen``: keys of points not to propose."""

    def __init__(self, space: Space, surrogate: Surrogate, seen: Set[bytes], rng: np.random.Generator) -> None:
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
        self._fade = process.signal * decay.at(own[len(self._lengths) :], top, process.inputs)[0][0]  # (n,)
        means = self._weighed(surrogate.points, surrogate.active).mean
        self._best = float(means.min())
        found = self._found(rng, np.argsort(means, kind="stable"))
        fresh = np.flatnonzero(~found.tried)
        self._points, self._active, self._mean = found.points[fresh], found.active[fresh], found.mean[fresh]
        self._inputs, self._V, self._reduced = found.inputs[fresh], found.V[:, fresh], found.reduced[fresh]
        self._keys = keys(self._points)
        self._extra: list[_Extra] = []
        self._base = self._reduced, self._best

    # ------------------------------------------------------------------------------------------------ to choose

    def choose(self, begun: Sequence[tuple[Floats, Bools, float]]) -> Choice | None:
        """The best candidate, if trials (point, active, rung) were begun since; None if there is none left."""
        if not len(self._points):
            return None
        own = [(keys(point[None])[0], t) for point, _, t in begun]
        if [extra.key for extra in self._extra] != own[: len(self._extra)]:
            self._extra = []
            self._reduced, self._best = self._base
        for each, (point, active, t) in list(zip(own, begun, strict=True))[len(self._extra) :]:
            self._add(each, point, active, t)
        deviation = self._deviation(self._reduced)
        taken = {extra.key[0] for extra in self._extra}
        free = np.array([own not in taken for own in self._keys], dtype=np.bool_)
        if not free.any():
            return None
        log_improvement = np.where(free, log_expected_improvement(self._mean, deviation, self._best), -math.inf)
        best = int(log_improvement.argmax())
        return Choice(
            self._points[best],
            self._active[best],
            float(self._mean[best]),
            float(deviation[best]),
            float(log_improvement[best]),
            self._best,
        )

    def _add(self, own: tuple[bytes, float], point: Floats, active: Bools, t: float) -> None:
        """A trial that was begun: another row of L, and of V."""
        process, features = self._model.process, self._model.features
        at = features.at(point[None], active[None], np.array([t]), self._model.top)
        top = self._model.at_top(point[None], active[None])
        v = solve_triangular(process.factor, process.covariances(at)[0], lower=True, check_finite=False)  # (n,)
        rest = [float(extra.covariance_to(process.between(extra.at, at), v)) for extra in self._extra]
        row = np.array([])
        for extra, covariance in zip(self._extra, rest, strict=True):
            row = np.append(row, (covariance - (extra.row @ row[: len(extra.row)])) / extra.pivot)
        pivot2 = process.signal + process.noise_at(at) + JITTER - float(v @ v) - float(row @ row)
        pivot = math.sqrt(max(pivot2, 1e-12))
        c = process.between(self._inputs, at)[:, 0] - v @ self._V
        for extra, each in zip(self._extra, row, strict=True):
            c -= each * extra.V
        V = c / pivot
        self._reduced = self._reduced + V * V
        self._extra.append(_Extra(own, at, v, row, pivot, V))
        self._best = min(self._best, float(process.mean(top)[0]))

    # -------------------------------------------------------------------------------------------- the candidates

    def _found(self, rng: np.random.Generator, order: Ints) -> _Weighed:
        """All candidates. ``order``: of the surrogate's points, the best predicted first."""
        elites: dict[bytes, Floats] = {}
        for x, own in zip(self._model.points[order], keys(self._model.points[order]), strict=True):
            elites.setdefault(own, x)
            if len(elites) == ELITES:
                break
        drawn = [rng.random((RANDOM, len(self._space)))]
        for place, elite in enumerate(elites.values()):
            sigma = (0.02, 0.08, 0.25)[place % 3]
            drawn.append(self._around(rng, elite, PERTURBED // len(elites), sigma, 0.5))
        every = [self._weighed(*self._space.snap(np.concatenate(drawn)))]
        score = self._score(every[0])
        starts = np.argsort(-score, kind="stable")[:LOCAL]
        here, here_score, widths = every[0].points[starts].copy(), score[starts].copy(), np.full(len(starts), 0.1)
        for _ in range(ROUNDS):
            near = [self._around(rng, x, NEIGHBOURS, width, 0.3) for x, width in zip(here, widths, strict=True)]
            every.append(self._weighed(*self._space.snap(np.concatenate(near))))
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
        """Log expected improvement, -inf where a point was tried."""
        score = log_expected_improvement(of.mean, self._deviation(of.reduced), self._best)
        return np.where(of.tried, -math.inf, score)

    def _deviation(self, reduced: Floats) -> Floats:
        process = self._model.process
        deviation: Floats = process.scale * np.sqrt(np.maximum(process.signal - reduced, 0.0))
        return deviation

    def _around(self, rng: np.random.Generator, x: Floats, count: int, sigma: float, moves: float) -> Floats:
        """Points (count, d) where each coordinate of ``x`` is perturbed with probability ``moves``, options less."""
        categories = self._space.categories
        shape = (count, len(x))
        moved = rng.random(shape) < np.where(categories > 0, 0.4 * moves, moves)
        x, known = self._model.features.spread(x, self._space.snap(x[None])[1][0])
        step = np.where(categories > 0, rng.random(shape), np.clip(x + sigma * rng.standard_normal(shape), 0.0, 1.0))
        return np.where(known, np.where(moved, step, x), rng.random(shape))  # elsewhere there is nothing to be near to

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
            v = solve_triangular(process.factor, k, lower=True, check_finite=False)
            w = solve_triangular(process.factor, v, lower=True, trans=1, check_finite=False)
            mean = float(process.expected(z)[0]) + process.scale * float(k @ process.alpha)
            deviation = process.scale * math.sqrt(max(process.signal - float(v @ v), 1e-12))
            value = float(log_expected_improvement(np.array([mean]), np.array([deviation]), self._best)[0])
            # d log EI = (-Phi(u) dmean + phi(u) ddeviation) / EI, in logarithms for the far tail
            u = (self._best - mean) / deviation
            of_mean = -math.exp(float(log_ndtr(u)) - value)
            of_deviation = math.exp(-0.5 * u * u - _LOG_SQRT_2_PI - value)
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


@dataclass(frozen=True, slots=True)
class _Extra:
    """A trial begun since: its row of L (``v``: data, ``row``: those begun before, ``pivot``), and of V."""

    key: tuple[bytes, float]
    at: Floats  # (1, D + 2)
    v: Floats  # (n,)
    row: Floats  # one for each extra before it
    pivot: float
    V: Floats  # (m,)

    def covariance_to(self, prior: Floats, v: Floats) -> float:
        """Its posterior covariance, given the data, with one whose v is known."""
        return float(prior[0, 0]) - float(self.v @ v)


def keys(points: Floats) -> list[bytes]:
    """Of each point (d,) of several (m, d) what tells it from others, but for rounding."""
    return [row.tobytes() for row in np.round(points, 6) + 0.0]  # 0.0 and -0.0 are one
