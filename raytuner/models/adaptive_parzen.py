"""The adaptive Parzen estimator of TPE: a weighted mixture of product kernels, one a datum and one for the prior.

Bergstra, Bardenet, Bengio & Kégl 2011 (NeurIPS 24, section 4) and Bergstra, Yamins & Cox 2013 (ICML), with product
kernels over several coordinates as Falkner, Klein & Hutter 2018 have them; numbers where the papers are silent are
those of hyperopt and Optuna:

    p(x) = sum_i w_i prod_j k_ij(x_j),   i = 1 … n the data, n + 1 the prior

    numeric:      a Gaussian around the datum truncated to [0, 1]; the prior is one around 1/2 of width 1
    categorical:  1 + e on the datum's option and e on the r - 1 others, over 1 + r e;  e = prior_weight / (n + 1);
                  the prior is uniform

    width, by neighbours:   the larger distance to the next datum on either side, where the prior's centre counts as one
                            and the ends of [0, 1] stand in beyond the outermost (`consider_endpoints`) or do not
    width, by Scott's rule: 0.2 n^(-1 / (4 + d)) for all
    either way at least 1 / min(100, n + 2) ("magic clip") and at most 1

Integers and quantised floats are numeric coordinates at the middle of their steps; Optuna integrates over the step.
Other than `raytuner.models.parzen` it has a prior, weights and a width for each datum, and no inactive coordinates.
"""

# Notation, here and in the tests: d, n, m, X (n, d), r (d,) as in `raytuner.models.parzen`; c (n + 1, d) centres,
# h (n + 1, d) widths, w (n + 1,) weights of kernels, the prior last.

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from scipy.special import ndtr

from raytuner.models.parzen import Floats, Ints, options, truncated_normal

_SCOTT = 0.2  # Optuna's: by Scott's rule it would be sigma, 0.29 where data are uniform


@dataclass(frozen=True, slots=True)
class AdaptiveParzen:
    """A density on the unit cube. Made by `fit`."""

    centre: Floats  # (n + 1, d); of a categorical coordinate the option, -1 for the prior
    width: Floats  # (n + 1, d); of a categorical coordinate e
    log_weight: Floats  # (n + 1,)
    categories: Ints  # (d,)

    @classmethod
    def fit(
        cls,
        points: Floats,
        weights: Floats,
        categories: Ints,
        *,
        by_neighbours: bool,
        prior_weight: float = 1.0,
        consider_endpoints: bool = False,
    ) -> Self:
        """The estimator of ``points`` (n, d) with ``weights`` (n,), n at least 0; all weights are positive."""
        n, d = points.shape
        centre, width = np.empty((n + 1, d)), np.empty((n + 1, d))
        for j, r in enumerate(categories):
            if r > 0:
                centre[:n, j], centre[n, j] = options(points[:, j], r), -1.0
                width[:, j] = prior_weight / (n + 1)
                continue
            x = points[:, j]
            h = neighbour_distances(x, consider_endpoints) if by_neighbours else _SCOTT * max(n, 1) ** (-1 / (4 + d))
            centre[:n, j], centre[n, j] = x, 0.5
            width[:n, j], width[n, j] = np.clip(h, 1 / min(100, n + 2), 1.0), 1.0
        w = np.append(weights, prior_weight)
        return cls(centre, width, np.log(w / w.sum()), categories)

    def log_density(self, points: Floats) -> Floats:
        """Log density (m,) at ``points`` (m, d)."""
        # No matrix product here: the last digits of threaded BLAS depend on the number of threads.
        kernels = np.zeros((len(points), len(self.log_weight)))  # (m, n + 1), log w_i prod_j k_ij
        height = self.log_weight.copy()  # (n + 1,), of what does not depend on the points
        for j, r in enumerate(self.categories):
            x, c, h = points[:, j], self.centre[:, j], self.width[:, j]
            if r > 0:
                same = options(x, r)[:, None] == c  # never the prior's
                kernels += same * np.log1p(1.0 / h)
                height += np.where(c < 0, -math.log(r), np.log(h) - np.log1p(r * h))
            else:
                inside = ndtr((1.0 - c) / h) - ndtr(-c / h)  # the Gaussian's mass in [0, 1]: at least 0.3 for h <= 1
                z = x[:, None] - c
                z *= math.sqrt(0.5) / h
                z *= z
                kernels -= z
                height -= np.log(h * inside * math.sqrt(2.0 * math.pi))
        kernels += height
        top = kernels.max(axis=1, keepdims=True)  # (m, 1)
        kernels -= top
        total: Floats = top[:, 0] + np.log(np.exp(kernels, out=kernels).sum(axis=1))
        return total

    def sample(self, rng: np.random.Generator, m: int) -> Floats:
        """Draw (m, d) points from the density; categorical coordinates are in the middle of their option."""
        weight = np.exp(self.log_weight)
        chosen = rng.choice(len(weight), size=m, p=weight / weight.sum())
        u = rng.random((m, len(self.categories)))
        drawn = np.empty_like(u)
        for j, r in enumerate(self.categories):
            c, h = self.centre[chosen, j], self.width[chosen, j]  # (m,)
            if r > 0:
                own = np.where(c < 0, 0.0, 1.0 / (1.0 + r * h))  # u below that: the datum's option; else any
                rest = np.clip((u[:, j] - own) / (1.0 - own), 0.0, None)
                drawn[:, j] = (np.where(u[:, j] < own, c, np.minimum(np.floor(rest * r), r - 1)) + 0.5) / r
            else:
                drawn[:, j] = truncated_normal(u[:, j], c, h)
        return drawn


def neighbour_distances(x: Floats, consider_endpoints: bool) -> Floats:
    """For each datum (n,) of one coordinate the larger distance to its two neighbours, the prior's centre among them.

    What is outermost has a neighbour at 0 or 1 if ``consider_endpoints``, else only the one on its other side.
    """
    with_prior = np.append(x, 0.5)
    order = with_prior.argsort(kind="stable")
    gaps = np.diff(with_prior[order], prepend=0.0, append=1.0)  # (n + 2,)
    if not consider_endpoints and len(x):
        gaps[0] = gaps[-1] = 0.0
    distances = np.empty(len(with_prior))
    distances[order] = np.maximum(gaps[:-1], gaps[1:])
    return distances[:-1]


def forgetting(n: int, full: int = 25) -> Floats:
    """Weights (n,) of data, oldest first: the newest ``full`` have 1, those of the others rise to it from 1/n.

    Hyperopt's linear forgetting.
    """
    if n <= full:
        return np.ones(n)
    return np.concatenate([np.linspace(1.0 / n, 1.0, n - full), np.ones(full)])
