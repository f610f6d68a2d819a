"""An exact Gaussian process for a few hundred data: kernels, their parameters by maximum a posteriori, the posterior.

Rasmussen & Williams 2006, "Gaussian Processes for Machine Learning": algorithm 2.1 (posterior and log marginal
likelihood) and equation 5.9 (its gradient). With targets standardised to mean 0 and deviation 1,

    y_i = f(x_i) + e_i,   f ~ GP(0, s^2 k),   e_i ~ N(0, v), or growing along a column of the inputs

Kernels k are correlations, k(x, x) = 1, and each reads its own columns of the inputs:

    Matern    exp(-sqrt(5) r) (1 + sqrt(5) r + 5/3 r^2),  r^2 = sum_j (x_j - z_j)^2 / l_j^2       eq. 4.17, with ARD
    Decay     (1 - eps)^(|t - t'| / 2): forgets.  Bogunovic, Scarlett & Cevher 2016 (arXiv:1601.06650)
    Overlap   share of columns in which the two are equal.  CoCaBO: Ru et al. 2020 (arXiv:1906.08878)
    Product   a b
    Mix       (1 - w) (a + b) / 2 + w a b, the mixture of CoCaBO

Every parameter has a normal prior on a logarithmic scale (w: logistic), whose mean is where the fit starts. So one
datum is enough for a fit, there is one start and no chance, and a parameter about which the data say nothing stays
where it was.

What it does not do: choose points (see the models and searchers that use it), or approximate; a fit takes O(n^3).
Unlike in `raytuner.models.parzen`, LAPACK cannot be avoided here: searchers call it under `raytuner.models.threads`.
"""

# Notation, here and in the tests:
#   n          data         m   queries        D   columns of inputs      p, q   parameters of a kernel, of the noise
#   X (n, D)   inputs of data    Z (m, D)   queries   y (n,)   targets
#   theta (p,) a kernel's parameters, on the scale of their priors
#   K (n, n)   covariance of the targets, noise included        L (n, n)   its lower Cholesky factor
#   alpha (n,) K^-1 y            G (m, n)   derivative of a scalar with respect to each entry of a kernel's matrix

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt
from scipy.linalg import LinAlgError, cholesky, lapack, solve_triangular
from scipy.optimize import minimize

Floats = npt.NDArray[np.float64]

Pull = Callable[[Floats], Floats]
"""From G (m, n) to the derivative of the same scalar with respect to theta (p,)."""


@dataclass(frozen=True, slots=True)
class Prior:
    """A normal density of one parameter. The parameter stays within 3 ``sd`` of ``mean``."""

    mean: float
    sd: float


# ------------------------------------------------------------------------------------------------------- the kernels


class Kernel(Protocol):
    """A correlation of inputs."""

    @property
    def priors(self) -> tuple[Prior, ...]:
        """Of its parameters; p of them."""

    def at(self, theta: Floats, Z: Floats, X: Floats) -> tuple[Floats, Pull]:
        """The correlations (m, n) of ``Z`` (m, D) and ``X`` (n, D), and the way back to the parameters."""


@dataclass(frozen=True, slots=True)
class Matern:
    """Matern 5/2 with a length scale l_j for each of ``columns``; theta is log l. No columns: 1 everywhere.

    ``groups``: the number of each column's length scale, from 0, where columns share one (those of a categorical).
    """

    columns: tuple[int, ...]
    scale: Prior = Prior(math.log(0.5), 1.0)
    groups: tuple[int, ...] | None = None

    @property
    def priors(self) -> tuple[Prior, ...]:
        return (self.scale,) * (len(self.columns) if self.groups is None else max(self.groups, default=-1) + 1)

    def at(self, theta: Floats, Z: Floats, X: Floats) -> tuple[Floats, Pull]:
        lengths = np.exp(theta if self.groups is None else theta[list(self.groups)])
        a, b = (points[:, self.columns] / lengths for points in (Z, X))  # (m, c), (n, c)
        a2, b2 = a * a, b * b
        # |a - b|^2 by a matrix product: the kernel is flat in r^2 where cancellation would hurt.
        r = a @ b.T  # (m, n); memory is what takes the time here, hence in place
        r *= -2.0
        r += a2.sum(axis=1)[:, None]
        r += b2.sum(axis=1)
        np.sqrt(np.maximum(r, 0.0, out=r), out=r)
        r *= math.sqrt(5.0)
        decay = np.exp(-r)
        k = (1.0 + r * (1.0 + r / 3.0)) * decay

        def pull(G: Floats) -> Floats:
            # dk / dr^2 = -5/6 (1 + sqrt(5) r) exp(-sqrt(5) r), and dr^2 / d log l_j = -2 (a_j - b_j)^2
            F = G * (1.0 + r) * decay
            slopes: Floats = F.sum(axis=1) @ a2 + F.sum(axis=0) @ b2 - 2.0 * (a * (F @ b)).sum(axis=0)
            if self.groups is not None:
                slopes = np.asarray(np.bincount(self.groups, slopes, len(theta)), dtype=np.float64)
            return (5.0 / 3.0) * slopes

        return k, pull

    def slope(self, theta: Floats, z: Floats, X: Floats) -> Floats:
        """The derivatives of the correlations of one query ``z`` (D,) with respect to its columns (c,); (n, c)."""
        lengths = np.exp(theta if self.groups is None else theta[list(self.groups)])
        apart = (z[list(self.columns)] - X[:, self.columns]) / lengths  # (n, c)
        r = math.sqrt(5.0) * np.sqrt(np.einsum("nc,nc->n", apart, apart))
        slope: Floats = (-5.0 / 3.0) * ((1.0 + r) * np.exp(-r))[:, None] * apart / lengths
        return slope


@dataclass(frozen=True, slots=True)
class Decay:
    """(1 - eps)^(|t - t'| / 2) of one column, which is exp(-rate |t - t'|); theta is log rate."""

    column: int
    rate: Prior

    @property
    def priors(self) -> tuple[Prior, ...]:
        return (self.rate,)

    def at(self, theta: Floats, Z: Floats, X: Floats) -> tuple[Floats, Pull]:
        exponent = -np.exp(theta[0]) * np.abs(Z[:, self.column, None] - X[:, self.column])
        k = np.exp(exponent)
        return k, lambda G: np.array([(G * k * exponent).sum()])


@dataclass(frozen=True, slots=True)
class Overlap:
    """The share of ``columns``, at least one, in which two inputs are equal. It has no parameters."""

    columns: tuple[int, ...]

    @property
    def priors(self) -> tuple[Prior, ...]:
        return ()

    def at(self, theta: Floats, Z: Floats, X: Floats) -> tuple[Floats, Pull]:
        k = np.zeros((len(Z), len(X)))
        for j in self.columns:
            k += Z[:, j, None] == X[:, j]
        return k / len(self.columns), lambda G: np.empty(0)


@dataclass(frozen=True, slots=True)
class Product:
    """Two inputs are alike if they are in both respects. theta: that of ``a``, that of ``b``."""

    a: Kernel
    b: Kernel

    @property
    def priors(self) -> tuple[Prior, ...]:
        return (*self.a.priors, *self.b.priors)

    def at(self, theta: Floats, Z: Floats, X: Floats) -> tuple[Floats, Pull]:
        p = len(self.a.priors)
        (a, pull_a), (b, pull_b) = self.a.at(theta[:p], Z, X), self.b.at(theta[p:], Z, X)
        return a * b, lambda G: np.concatenate([pull_a(G * b), pull_b(G * a)])


@dataclass(frozen=True, slots=True)
class Mix:
    """Between alike in any respect (w = 0) and in both (w = 1). theta: of ``a``, of ``b``, and log w / (1 - w)."""

    a: Kernel
    b: Kernel
    weight: Prior = Prior(0.0, 1.0)

    @property
    def priors(self) -> tuple[Prior, ...]:
        return (*self.a.priors, *self.b.priors, self.weight)

    def at(self, theta: Floats, Z: Floats, X: Floats) -> tuple[Floats, Pull]:
        p = len(self.a.priors)
        (a, pull_a), (b, pull_b) = self.a.at(theta[:p], Z, X), self.b.at(theta[p:-1], Z, X)
        w = 1.0 / (1.0 + math.exp(-theta[-1]))
        either, both = (a + b) / 2.0, a * b

        def pull(G: Floats) -> Floats:
            of_a, of_b = G * ((1.0 - w) / 2.0 + w * b), G * ((1.0 - w) / 2.0 + w * a)
            return np.concatenate([pull_a(of_a), pull_b(of_b), [w * (1.0 - w) * (G * (both - either)).sum()]])

        return (1.0 - w) * either + w * both, pull


# ------------------------------------------------------------------------------------------------------- the process


class MeanFunction(Protocol):
    """What is expected of f before any data, in the targets' unit."""

    def at(self, inputs: Floats) -> Floats:
        """At ``inputs`` (m, D); (m,)."""

    def slope(self, z: Floats, columns: npt.NDArray[np.int64]) -> Floats:
        """Its derivatives at one input ``z`` (D,) with respect to some ``columns`` (q,); (q,)."""


VARIANCE = Prior(0.0, 1.0)
"""log s^2, where targets have variance 1."""

NOISE = Prior(math.log(1e-2), 2.0)
"""log v: from 2.5e-5 to 4."""


@dataclass(frozen=True, slots=True)
class Noise:
    """Of variance v; or, where u, 0 or more, is one ``column`` of the inputs, v exp(g u), and h more of the logarithm
    wherever u is not 0. theta: log v, g, h.

    ``growth``: of g. ``step``: of h (None: it is 0).
    """

    level: Prior = NOISE
    column: int | None = None
    growth: Prior = Prior(0.3, 0.5)
    step: Prior | None = None

    @property
    def priors(self) -> tuple[Prior, ...]:
        if self.column is None:
            return (self.level,)
        return (self.level, self.growth) if self.step is None else (self.level, self.growth, self.step)

    def at(self, theta: Floats, X: Floats) -> tuple[Floats, Floats]:
        """The variances (n,), and the derivatives (q, n) of their logarithms with respect to theta (q,)."""
        ones = np.ones(len(X))
        if self.column is None:
            return ones * math.exp(theta[0]), ones[None]
        u = X[:, self.column]
        slopes = np.stack([ones, u] if self.step is None else [ones, u, u > 0.0])
        return np.exp(theta @ slopes), slopes


HOMOSCEDASTIC = Noise()


@dataclass(frozen=True, slots=True)
class GaussianProcess:
    """A posterior. Made by `fit` or `of`.

    ``theta``: log s^2, the noise's, then the kernel's. ``centre``, ``scale``: what the targets were standardised by.
    ``prior``: f is what this says plus a process of mean 0 (R&W section 2.7); None: nothing is expected.
    """

    kernel: Kernel
    theta: Floats  # (1 + q + p,)
    inputs: Floats  # X (n, D)
    factor: Floats  # L (n, n)
    alpha: Floats  # (n,)
    centre: float
    scale: float
    noise: Noise = HOMOSCEDASTIC
    prior: MeanFunction | None = None

    @classmethod
    def fit(cls, kernel: Kernel, inputs: Floats, targets: Floats, noise: Noise = HOMOSCEDASTIC) -> Self:
        """The posterior of ``targets`` (n,) at ``inputs`` (n, D), n at least 1, with the likeliest parameters."""
        return cls.of(kernel, likeliest(kernel, inputs, targets, noise), inputs, targets, noise)

    @classmethod
    def of(
        cls,
        kernel: Kernel,
        theta: Floats,
        inputs: Floats,
        targets: Floats,
        noise: Noise = HOMOSCEDASTIC,
        prior: MeanFunction | None = None,
    ) -> Self:
        """The posterior with given parameters."""
        _check(kernel, noise, theta, inputs, targets)
        y, centre, scale = standardised(targets if prior is None else targets - prior.at(inputs))
        L = _factor(_covariance(kernel, noise, theta, inputs)[0])
        return cls(kernel, theta, inputs, L, _solved(L, y), centre, scale, noise, prior)

    @property
    def signal(self) -> float:
        """s^2, the variance of f where nothing is known; like all below, of standardised targets."""
        return math.exp(self.theta[0])

    def noise_at(self, inputs: Floats) -> float:
        """The variance of the noise at one input (1, D)."""
        return float(self.noise.at(self.theta[1 : 1 + len(self.noise.priors)], inputs)[0][0])

    def between(self, queries: Floats, others: Floats) -> Floats:
        """Covariances (m, n) of f at ``queries`` (m, D) with f at ``others`` (n, D), before any data."""
        own = self.theta[1 + len(self.noise.priors) :]
        return self.signal * self.kernel.at(own, queries, others)[0]

    def covariances(self, queries: Floats) -> Floats:
        """The same with f at the data."""
        return self.between(queries, self.inputs)

    def mean(self, queries: Floats) -> Floats:
        """Mean of f at ``queries`` (m, D); (m,), in the targets' unit."""
        return self.expected(queries) + self.scale * (self.covariances(queries) @ self.alpha)

    def expected(self, queries: Floats) -> Floats:
        """Mean of f at ``queries`` (m, D) that no datum is near; (m,)."""
        constant = np.full(len(queries), self.centre)
        return constant if self.prior is None else constant + self.prior.at(queries)

    def predict(self, queries: Floats) -> tuple[Floats, Floats]:
        """Mean and standard deviation of f, without noise, at ``queries`` (m, D); (m,) each, in the targets' unit."""
        _check_queries(queries, self.inputs.shape[1])
        k = self.covariances(queries)  # (m, n)
        v = solve_triangular(self.factor, k.T, lower=True, check_finite=False)  # (n, m)
        variance = np.maximum(self.signal - np.einsum("nm,nm->m", v, v), 0.0)  # below 0 by rounding only
        return self.expected(queries) + self.scale * (k @ self.alpha), self.scale * np.sqrt(variance)

    def inverse(self) -> Floats:
        """K^-1 (n, n): where many single queries are made, products with it take less than solving does."""
        twice = _inverse(self.factor)
        both: Floats = 0.5 * (twice + twice.T)
        return both

    def given(self, pending: Floats) -> Self:
        """The same after data at ``pending`` (q, D) that turn out as predicted: the mean stays, deviations shrink.

        The hallucinated updates of GP-BUCB, Desautels, Krause & Burdick 2014 (JMLR 15).
        """
        _check_queries(pending, self.inputs.shape[1])
        inputs = np.concatenate([self.inputs, pending])
        L = _factor(_covariance(self.kernel, self.noise, self.theta, inputs)[0])
        # Targets as predicted, K_qn alpha, are what (alpha, 0) solves the enlarged system for.
        alpha = np.concatenate([self.alpha, np.zeros(len(pending))])
        return type(self)(self.kernel, self.theta, inputs, L, alpha, self.centre, self.scale, self.noise, self.prior)


def likeliest(kernel: Kernel, inputs: Floats, targets: Floats, noise: Noise = HOMOSCEDASTIC) -> Floats:
    """The parameters (1 + q + p,) at the maximum of marginal likelihood times prior, from the prior's means uphill."""
    priors = (VARIANCE, *noise.priors, *kernel.priors)
    mean, sd = np.array([prior.mean for prior in priors]), np.array([prior.sd for prior in priors])
    _check(kernel, noise, mean, inputs, targets)
    y, _, _ = standardised(targets)

    def loss(theta: Floats) -> tuple[float, Floats]:
        value, slope = log_likelihood(kernel, theta, inputs, y, noise)
        z = (theta - mean) / sd
        return 0.5 * float(z @ z) - value, z / sd - slope

    bounds = list(zip(mean - 3.0 * sd, mean + 3.0 * sd, strict=True))
    options = {"maxiter": MOST_ITERATIONS, "ftol": 5e-5, "gtol": 1e-2}  # a hundredth of a nat is enough
    found: Floats = minimize(loss, mean, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
    return found


MOST_ITERATIONS = 30
"""Of a fit. They bound its time; from the prior's means it mostly takes 10 to 20."""


def log_likelihood(
    kernel: Kernel, theta: Floats, inputs: Floats, y: Floats, noise: Noise = HOMOSCEDASTIC
) -> tuple[float, Floats]:
    """Log marginal likelihood of standardised targets ``y`` (n,), and its derivative with respect to theta."""
    K, pull = _covariance(kernel, noise, theta, inputs)
    L = _factor(K)
    alpha = _solved(L, y)
    value = -0.5 * float(y @ alpha) - float(np.log(L.diagonal()).sum()) - 0.5 * len(y) * math.log(2.0 * math.pi)
    G = 0.5 * (np.outer(alpha, alpha) - _inverse(L))  # d value / dK, from eq. 5.9
    v, slopes = noise.at(theta[1 : 1 + len(noise.priors)], inputs)
    own = G.diagonal() * v
    signal = (G * K).sum() - own.sum() - JITTER * G.trace()
    return value, np.concatenate([[signal], slopes @ own, pull(math.exp(theta[0]) * G)])


JITTER = 1e-8
"""Added to the diagonal, where the variance of the targets is 1: keeps duplicates solvable."""


def standardised(targets: Floats) -> tuple[Floats, float, float]:
    """Targets (n,) with mean 0 and deviation 1, that mean and that deviation. Constant ones: 0, and deviation 1."""
    largest = float(np.abs(targets).max())
    if largest == 0.0:
        return np.zeros(len(targets)), 0.0, 1.0
    y = targets / largest  # squares of what comes in may be too large for a float
    centre = float(y.mean())
    y = y - centre
    deviation = float(np.sqrt(np.mean(y * y)))
    if deviation < 1e-12:  # rounding
        return np.zeros(len(targets)), centre * largest, 1.0
    return y / deviation, centre * largest, deviation * largest


def _covariance(kernel: Kernel, noise: Noise, theta: Floats, inputs: Floats) -> tuple[Floats, Pull]:
    """K (n, n), and the kernel's way back from a derivative with respect to its correlations."""
    split = 1 + len(noise.priors)
    k, pull = kernel.at(theta[split:], inputs, inputs)
    K = math.exp(theta[0]) * k
    K[np.diag_indices_from(K)] += noise.at(theta[1:split], inputs)[0] + JITTER
    return K, pull


def _factor(K: Floats) -> Floats:
    """The lower Cholesky factor (n, n)."""
    jitter = JITTER
    while True:
        try:
            L: Floats = cholesky(K, lower=True, check_finite=False)
            return L
        except LinAlgError:  # not positive by rounding: only for thousands of duplicates
            jitter *= 10.0
            K = K + jitter * np.eye(len(K))


def _solved(L: Floats, y: Floats) -> Floats:
    """(L L^T)^-1 y (n,)."""
    half = solve_triangular(L, y, lower=True, check_finite=False)
    alpha: Floats = solve_triangular(L, half, lower=True, trans=1, check_finite=False)
    return alpha


def _inverse(L: Floats) -> Floats:
    """(L L^T)^-1 (n, n) to be summed over: an entry below the diagonal stands for both, those above it are 0."""
    lower, failed = lapack.dpotri(L, lower=1)
    assert failed == 0  # a factor has a positive diagonal
    inverse: Floats = 2.0 * lower
    inverse[np.diag_indices_from(inverse)] -= lower.diagonal()
    return inverse


def _check(kernel: Kernel, noise: Noise, theta: Floats, inputs: Floats, targets: Floats) -> None:
    if inputs.ndim != 2 or len(inputs) == 0 or targets.shape != inputs.shape[:1]:
        raise ValueError(
            f"inputs must have shape (n, D) with n >= 1, and targets (n,): got {inputs.shape} and {targets.shape}"
        )
    parameters = 1 + len(noise.priors) + len(kernel.priors)
    if theta.shape != (parameters,):
        raise ValueError(f"theta must have shape ({parameters},), signal and noise first: got {theta.shape}")
    if not (np.isfinite(inputs).all() and np.isfinite(targets).all()):
        raise ValueError("inputs and targets must be finite numbers")


def _check_queries(queries: Floats, columns: int) -> None:
    if queries.ndim != 2 or queries.shape[1] != columns:
        raise ValueError(f"queries must have shape (m, {columns}), as the inputs have: got {queries.shape}")
