"""What to try next where very much is known: kernel densities of the good and of the others, over all rungs.

The tree-structured Parzen estimator in its multivariate form (Bergstra et al. 2011, section 4; Falkner, Klein & Hutter
2018, equation 2): the candidate, drawn from the density of the good, with the largest ratio of that density to the
density of the others. As a `multi_fidelity.Surrogate` it is of all rungs: each configuration counts once, with its
value at the highest rung that it reached, aligned to the top rung.

    good     a tenth, `LEAST_GOOD` or more and `MOST_GOOD` or fewer, by aligned value; what was seen farther below the
             top must be better by 0.3 deviations for each rung
    others   a random choice of `MOST_OTHERS` of the rest: for a ratio that is enough, and its cost does not grow
"""

# Notation: as in `raytuner.models.multi_fidelity`.

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from raytuner.models.multi_fidelity import Outcomes, aligned, highest, rungs, scores
from raytuner.models.parzen import Bools, Floats, Ints, Parzen
from raytuner.space import Space

LEAST_GOOD, MOST_GOOD, MOST_OTHERS = 8, 48, 160

DRAWN, LOOKED_AT, WIDER = 384, 48, 1.5
"""Candidates that are drawn at a time; of how many of them a proposal is the best; how much wider than the model they
are drawn. To draw 384 takes four times as long as 48, and does for a batch of 192."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """Points that were drawn, the largest ratio first."""

    points: Floats  # (m, d)
    active: Bools  # (m, d)
    log_ratio: Floats  # (m,)


@dataclass(frozen=True, slots=True)
class DensityRatio:
    """The two densities."""

    good: Parzen
    others: Parzen
    rows: Ints  # which outcomes the good are

    @classmethod
    def of(cls, outcomes: Outcomes, count: int, space: Space, rng: np.random.Generator) -> Self:
        """The model of the first ``count`` outcomes, at least two configurations."""
        trials, untils = outcomes.trials[:count], outcomes.untils[:count]
        y = scores(aligned(trials, untils, outcomes.values[:count]), "standard")
        t = rungs(untils)
        best_known = highest(trials, untils)
        y = y[best_known] + 0.3 * (t.max() - t[best_known])
        ranked = best_known[np.argsort(y, kind="stable")]
        n_good = min(max(LEAST_GOOD, len(ranked) // 10), MOST_GOOD, len(ranked) - 1)
        rest = ranked[n_good:]
        if len(rest) > MOST_OTHERS:
            rest = np.sort(rng.choice(rest, MOST_OTHERS, replace=False))
        return cls(_density(outcomes, ranked[:n_good], space), _density(outcomes, rest, space), ranked[:n_good])

    def draw(self, space: Space, rng: np.random.Generator) -> Candidates:
        """Candidates for a batch of proposals."""
        points, active = space.snap(self.good.sample(rng, DRAWN, WIDER))
        log_ratio = self.log_ratio(points, active)
        best = np.argsort(-log_ratio, kind="stable")
        return Candidates(points[best], active[best], log_ratio[best])

    def log_ratio(self, points: Floats, active: Bools) -> Floats:
        """Log of the densities' ratio at points (m, d); (m,)."""
        ratio: Floats = self.good.log_density(points, active) - self.others.log_density(points, active)
        return ratio

    def evidence(self, point: Floats, active: Bools) -> tuple[Ints, Floats]:
        """The good outcomes, and the share of each in their density at a point (d,)."""
        kernels = np.exp(self.good.log_kernels(point[None], active[None])[0])
        return self.rows, kernels / max(float(kernels.sum()), 1e-300)


def _density(outcomes: Outcomes, rows: Ints, space: Space) -> Parzen:
    return Parzen.fit(outcomes.points[rows], outcomes.active[rows], space.categories, 0.01)
