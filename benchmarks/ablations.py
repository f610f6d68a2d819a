"""What each part of BOHB's joint model is worth: the same regret without it, under each scheduler.

    python benchmarks/ablations.py [--quick] [--schedulers hyperband,promotion] [--parts one-rung,mean] [--problems p,q]
                                   [--seeds 5] [--workers 8] [--budget 50] [--rig DIR] [--out FILE]

Parts that are taken away, one at a time:

    one-rung        the model of all rungs: only the highest rung with enough outcomes is modelled, as in BOHB of 2018
    mean            expected improvement: the lowest predicted mean is proposed
    raw             robust values: neither aligned over rungs nor winsorised, only standardised
    blind           fantasies: what is under way is not taken to turn out as predicted
    never-random    the random fraction
    flat            the priors of the process's parameters: nearly maximum likelihood
    even            that noise ends at the top rung: it grows by one law from there down
    densities       the process where more than 250 outcomes are known (see it with a larger --budget)

And what is put in its place:

    log, rank       values: logarithms of the distance from the best, or normal scores of ranks
    better          of the model of all rungs and one of the highest rung alone, the one that ranks that rung's outcomes
                    better, each left out in turn: Hyper-Tune's ensemble (Li et al. 2022), where the winner takes all

And what the user's priors are worth, which none of the others has: `prior`, a default configuration near the optimum
(each coordinate moved by a normal of a tenth of its range; confidence 0.5), and `misled`, one at random.

Problems, clock and regret are those of ``search_quality.py``. Printed: regret after 10, 30 and 100 % of the budget,
and, paired over problems and seeds, how much lower that of the whole is.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, replace
from typing import Any

import search_quality  # sets the number of threads: before NumPy
from _search import SEARCHERS, nested

import numpy as np  # isort: skip
from scipy import stats  # isort: skip

from raytuner.actions import Answer
from raytuner.models.acquisition import ConfidenceBound
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
from raytuner.models.multi_fidelity import Features, Values
from raytuner.models.parzen import Ints
from raytuner.protocols import Searcher
from raytuner.searchers import BOHB
from raytuner.searchers.joint import JointSearcher, last_fit
from raytuner.space import Space
from raytuner.trial import Pending

Data = tuple[Floats, Floats, Ints, float]
"""Inputs, scores, which outcomes they are, and the top rung."""


class OneRung(JointSearcher):
    """Knows of the highest rung with enough outcomes only."""

    def _data(self, count: int) -> Data:
        untils = self._outcomes.untils[:count]
        rungs, counts = np.unique(untils, return_counts=True)
        enough = rungs[counts >= len(self._space) + 3]
        inputs, y, rows, top = super()._data(count)
        kept = untils[rows] == (enough.max() if len(enough) else rungs[counts.argmax()])
        inputs = inputs.copy()
        inputs[:, -2], inputs[:, -1] = top, 0.0  # as if it were the top
        return inputs[kept], standardised(y[kept])[0], rows[kept], top


class Better(JointSearcher):
    """Models all rungs, or the highest alone: whichever agrees more with what was seen there."""

    _chosen: tuple[int, bool] = (-1, False)  # at so many outcomes: whether it is the highest alone

    def _data(self, count: int) -> Data:
        every = super()._data(count)
        alone = self._alone(every)
        return every if alone is None or not self._is_better(last_fit(count)) else alone

    def _alone(self, every: Data) -> Data | None:
        inputs, y, rows, top = every
        untils = self._outcomes.untils[rows]
        found, counts = np.unique(untils, return_counts=True)
        enough = found[counts >= len(self._space) + 3]
        if not len(enough):
            return None
        kept = untils == enough.max()
        at_top = inputs[kept]
        at_top[:, -2], at_top[:, -1] = top, 0.0
        return at_top, standardised(y[kept])[0], rows[kept], top

    def _is_better(self, fitted: int) -> bool:
        if self._chosen[0] != fitted:
            every = super()._data(fitted)
            alone = self._alone(every)
            better = alone is not None and self._agreement(alone, alone[2]) > self._agreement(every, alone[2])
            self._chosen = fitted, better
        return self._chosen[1]

    def _agreement(self, data: Data, rows: Ints) -> float:
        """Kendall's tau of values and what is predicted of them from all others (Rasmussen & Williams, eq. 5.12)."""
        inputs, y, known, _ = data
        kernel, noise = self._features.kernel, self._features.noise
        process = GaussianProcess.fit(kernel, inputs, y, noise)
        predicted = standardised(y)[0] - process.alpha / process.inverse().diagonal()
        at = np.searchsorted(known, rows)
        return float(np.nan_to_num(stats.kendalltau(predicted[at], y[at]).statistic))


class Raw(JointSearcher):
    """Values as they come."""

    def _data(self, count: int) -> Data:
        inputs, _, rows, top = super()._data(count)
        values = self._outcomes.values[rows]
        finite = np.isfinite(values)
        worst = values[finite].max() if finite.any() else 0.0
        return inputs, standardised(np.where(finite, values, worst))[0], rows, top


class Blind(JointSearcher):
    """Does not know what is under way."""

    def ask(self, trial: int, until: int, pending: Any) -> Answer:
        under_way: tuple[Pending, ...] = ()
        return super().ask(trial, until, under_way)


class Early(JointSearcher):
    """Goes over to densities after 250 outcomes, in place of 1,000."""

    def __init__(self, space: Space, *settings: Any, **rest: Any) -> None:
        super().__init__(space, *settings, **rest)
        self._large = 250


class _Featured(JointSearcher):
    """Sees configurations through other features."""

    features: type[Features]

    def __init__(self, space: Space, *settings: Any, **rest: Any) -> None:
        super().__init__(space, *settings, **rest)
        self._features = self.features.of(space)


class _FlatFeatures(Features):
    @property
    def kernel(self) -> Product:
        product = super().kernel
        assert isinstance(product.a, Matern)
        assert isinstance(product.b, Decay)
        return Product(replace(product.a, scale=_wide(product.a.scale)), replace(product.b, rate=_wide(product.b.rate)))

    @property
    def noise(self) -> Noise:
        noise = super().noise
        assert noise.step is not None
        return replace(noise, level=_wide(noise.level), growth=_wide(noise.growth), step=_wide(noise.step))


class Flat(_Featured):
    """Priors ten times as wide, which the bounds of the fit then are, too."""

    features = _FlatFeatures


class _EvenFeatures(Features):
    @property
    def noise(self) -> Noise:
        return replace(super().noise, level=Prior(math.log(1e-3), 1.5), growth=Prior(0.3, 0.5), step=None)


class Even(_Featured):
    """Noise of one law for all rungs."""

    features = _EvenFeatures


def _wide(prior: Prior) -> Prior:
    return Prior(prior.mean, min(4.0, 4 * prior.sd))


@dataclass(frozen=True)
class Without:
    """``search_alg=``: BOHB's joint model without a part."""

    kind: type[JointSearcher] = JointSearcher
    random_fraction: float = 0.05
    mean_only: bool = False
    values: Values = "standard"

    def build(self, space: Space, seed: int) -> Searcher:
        acquisition = ConfidenceBound(1e-9) if self.mean_only else None
        least = max(6, len(space) + 1)
        return self.kind(space, seed, least, self.random_fraction, self.values, acquisition=acquisition)


@dataclass(frozen=True)
class Believing:
    """``search_alg=``: BOHB, and a user who believes that a configuration is good."""

    problem: Any
    near: bool

    def build(self, space: Space, seed: int) -> Searcher:
        rng = np.random.default_rng([seed, 12345])
        believed = space.sample(rng)
        if self.near:
            x, active = space.encode(nested(self.problem.space.params, self.problem.optimum))
            numeric = active & (space.categories == 0)
            believed = space.decode(np.where(numeric, np.clip(x + 0.1 * rng.standard_normal(len(x)), 0, 1), x))
        return BOHB().build(space.given(default_config=believed), seed)


PARTS: dict[str, Any] = {
    "log": Without(values="log"),
    "rank": Without(values="rank"),
    "better": Without(Better),
    "one-rung": Without(OneRung),
    "mean": Without(mean_only=True),
    "raw": Without(Raw),
    "blind": Without(Blind),
    "never-random": Without(random_fraction=0.0),
    "flat": Without(Flat),
    "even": Without(Even),
    "densities": Without(Early),
    "prior": lambda problem: Believing(problem, near=True),
    "misled": lambda problem: Believing(problem, near=False),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="one problem, one seed, two parts, a small budget")
    parser.add_argument("--schedulers", default="hyperband,promotion,asha")
    parser.add_argument("--parts", default=",".join(PARTS))
    search_quality.add_options(parser, seeds=5, workers="8")
    given = parser.parse_args()
    if given.quick:
        given.schedulers, given.parts, given.problems, given.seeds, given.budget = (
            "hyperband",
            "mean",
            "branin",
            1,
            10.0,
        )
    SEARCHERS.update(PARTS)
    for scheduler in given.schedulers.split(","):
        search_quality.compare(given, [f"{name}+{scheduler}" for name in ("bohb", *given.parts.split(","))])


if __name__ == "__main__":
    main()
