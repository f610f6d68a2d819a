"""A Parzen estimator (kernel density) for points of the unit cube: numeric, categorical and inactive coordinates.

The estimator of BOHB (Falkner, Klein & Hutter 2018, arXiv:1807.01774, section 4.1): a mean of product kernels,

    p(x) = 1/n sum_i prod_j k_j(x_j, m_ij)

    numeric:      k(x, m) = phi((x - m) / h) / (h (Phi((1 - m) / h) - Phi(-m / h))), a Gaussian truncated to [0, 1]
    categorical:  k(x, m) = 1 - h if x and m are the same of r options, else h / (r - 1); Aitchison & Aitken 1976
    datum inactive in j:  k = 1 (numeric) or 1 / r (categorical), the uniform density: it says nothing about j
    query inactive in j:  k = 1, which is the kernel integrated (summed) over x_j, as each of them has integral one

So p is a density with respect to Lebesgue measure on the numeric coordinates times counting measure on the categorical
ones, and a query that is inactive in some coordinates gets the exact marginal density of the others.

Bandwidths are the normal reference rule, h_j = 1.06 sigma_j n_j^(-1 / (4 + d)), over the n_j data active in j; for
categoricals over option indices. Where fewer than two data are active, sigma is that of the uniform density.

What differs from hpbandster, which has the rule from statsmodels: its Gaussians are not truncated, so that its
densities lose mass at the edges of the cube; and it gives inactive coordinates of the data random values, so that its
model is not a function of the data. This module does not choose points: that is `raytuner.searchers.kde`.
"""

# Notation, here and in the tests:
#   d          dimensions of the cube            n   data           m   queries or samples
#   X (n, d)   points, each coordinate in [0, 1]; option i of r stands at (i + 0.5) / r
#   A (n, d)   which coordinates are active (bool)
#   r (d,)     number of options, 0 where the coordinate is numeric ("categories")
#   h (d,)     bandwidths

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

LEAST_BANDWIDTH = 1e-9
"""Narrower kernels are refused: far from overflow, and far below what any parameter's range needs."""


@dataclass(frozen=True, slots=True)
class Parzen:
    """A density on the unit cube. Made by `fit`."""

    points: Floats  # (n, d)
    active: Bools  # (n, d)
    categories: Ints  # (d,)
    bandwidth: Floats  # (d,)

    @classmethod
    def fit(cls, points: Floats, active: Bools, categories: Ints, min_bandwidth: float = 1e-3) -> Self:
        """The estimator of ``points`` (n, d), n at least 1; bandwidths are ``min_bandwidth`` or more."""
        if points.ndim != 2 or len(points) == 0 or points.shape != active.shape or points.shape[1:] != categories.shape:
            raise ValueError(
                "points and active must have shape (n, d) with n >= 1, and categories (d,): "
                f"got {points.shape}, {active.shape} and {categories.shape}"
            )
        if not min_bandwidth >= LEAST_BANDWIDTH:
            raise ValueError(f"min_bandwidth must be at least {LEAST_BANDWIDTH}: got {min_bandwidth}")
        return cls(points, active, categories, normal_reference(points, active, categories, min_bandwidth))

    def log_density(self, points: Floats, active: Bools) -> Floats:
        """Log density at ``points`` (m, d), integrated over the coordinates that are not ``active``; (m,)."""
        kernels = self.log_kernels(points, active)
        top = kernels.max(axis=1, keepdims=True)  # (m, 1)
        kernels -= top
        total: Floats = top[:, 0] + np.log(np.exp(kernels, out=kernels).mean(axis=1))
        return total

    def log_kernels(self, points: Floats, active: Bools) -> Floats:
        """The log of each datum's kernel at ``points`` (m, d); (m, n)."""
        kernels = np.zeros((len(points), len(self.points)))  # (m, n), log prod_j k_j
        # No matrix product here: threaded BLAS stalls for 10 ms where trials keep the cores busy, and its last digits
        # depend on their number.
        for j, r in enumerate(self.categories):
            x, m, a, h = points[:, j], self.points[:, j], self.active[:, j], self.bandwidth[j]
            log_k = _log_truncated_normal(x, m, a, h) if r == 0 else _log_aitchison_aitken(x, m, a, r, h)  # (m, n)
            log_k[~active[:, j]] = 0.0
            kernels += log_k
        return kernels

    def sample(self, rng: np.random.Generator, m: int, bandwidth_factor: float = 1.0) -> Floats:
        """Draw (m, d) points from the density with its numeric bandwidths multiplied by ``bandwidth_factor``.

        Options are drawn from their own kernels, as in hpbandster: wider ones would hardly keep what was good.
        """
        chosen = rng.integers(len(self.points), size=m)
        centre, active = self.points[chosen], self.active[chosen]  # (m, d)
        u = rng.random(centre.shape)  # (m, d), one per coordinate: where a datum is inactive, it is the draw
        h = self.bandwidth * bandwidth_factor  # (d,)
        drawn = np.empty_like(u)  # (m, d)
        for j, r in enumerate(self.categories):
            c, a = centre[:, j], active[:, j]  # (m,)
            if r == 0:
                drawn[:, j] = np.where(a, truncated_normal(u[:, j], c, h[j]), u[:, j])
            else:
                option = _aitchison_aitken(u[:, j], options(c, r), r, self.bandwidth[j])
                drawn[:, j] = (np.where(a, option, np.floor(u[:, j] * r)) + 0.5) / r
        return drawn


def normal_reference(points: Floats, active: Bools, categories: Ints, min_bandwidth: float) -> Floats:
    """Bandwidths (d,): 1.06 sigma n^(-1 / (4 + d)) over active data, in [min_bandwidth, (r - 1) / r]."""
    d = points.shape[1]
    r = np.maximum(categories, 1)
    # A numeric coordinate is measured in [0, 1], a categorical one by option index.
    values = np.where(categories > 0, options(points, r), points)  # (n, d)
    n = active.sum(axis=0)  # (d,)
    mean = np.where(active, values, 0.0).sum(axis=0) / np.maximum(n, 1)
    variance = np.where(active, (values - mean) ** 2, 0.0).sum(axis=0) / np.maximum(n, 1)
    uniform = np.where(categories > 0, (r**2 - 1) / 12, 1 / 12)  # variance where there is nothing to estimate it from
    sigma = np.sqrt(np.where(n >= 2, variance, uniform))
    h = np.maximum(1.06 * sigma * np.maximum(n, 1.0) ** (-1.0 / (4 + d)), min_bandwidth)
    bandwidth: Floats = np.where(categories > 0, np.minimum(h, (r - 1) / r), h)
    return bandwidth


def _log_truncated_normal(x: Floats, m: Floats, active: Bools, h: float) -> Floats:
    """Log kernels (m, n) of one numeric coordinate: queries ``x`` (m,), data ``m`` (n,), of which some are active."""
    inside = ndtr((1.0 - m) / h) - ndtr(-m / h)  # the Gaussian's mass in [0, 1]: at least 0.3 for h <= 1
    height = np.where(active, -0.5 * math.log(2.0 * math.pi) - np.log(h * inside), 0.0)  # (n,)
    z = x[:, None] - m
    z *= np.where(active, math.sqrt(0.5) / h, 0.0)
    z *= z
    z -= height
    return np.negative(z, out=z)


def _log_aitchison_aitken(x: Floats, m: Floats, active: Bools, r: int, h: float) -> Floats:
    """Log kernels (m, n) of one categorical coordinate of ``r`` options."""
    same = np.arange(r)[:, None] == options(m, r)  # (r, n)
    probability = np.where(same, 1.0 - h, h / max(r - 1, 1))
    table = np.log(np.where(active, probability, 1.0 / r))
    log_k: Floats = table[options(x, r).astype(np.int64)]
    return log_k


def truncated_normal(u: Floats, m: Floats, h: Floats | float) -> Floats:
    """The quantiles ``u`` (m,) of Gaussians around ``m`` (m,) of bandwidth ``h``, truncated to [0, 1]."""
    low, high = ndtr(-m / h), ndtr((1.0 - m) / h)
    drawn: Floats = np.clip(m + h * ndtri(low + u * (high - low)), 0.0, 1.0)
    return drawn


def _aitchison_aitken(u: Floats, own: Floats, r: int, h: float) -> Floats:
    """Options (m,) from uniform ``u`` (m,): u < 1 - h stays ``own``; the others share the rest of [0, 1) evenly."""
    if r == 1:
        return own
    width = h / (r - 1)  # of one other option's share
    other = np.clip(np.floor((u - (1.0 - h)) / width), 0, r - 2)  # counts the options without `own`
    return np.where(u < 1.0 - h, own, other + (other >= own))


def options(coordinate: Floats, r: Ints | int) -> Floats:
    """The option index that a categorical coordinate stands for, as a float."""
    return np.clip(np.floor(coordinate * r), 0.0, r - 1.0)
