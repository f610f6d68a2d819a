"""Bayesian optimisation with a Gaussian process: one value per trial, whatever the scheduler does.

Matern 5/2 with a length scale for each parameter, options of a categorical parameter at equal distances, an inactive
parameter at the same distance from each of its values; parameters of the process by maximum a posteriori
(`raytuner.models.gaussian_process`). The first trials are a scrambled Sobol' sequence; then each is the maximum of the
acquisition, sought from random points and the best known by a local search and along the gradient
(`raytuner.models.acquisition`). Trials under way are taken to turn out as predicted.

It is `raytuner.searchers.BOHB` without the rungs: a trial counts with its value at the highest rung that it was seen
at, aligned to the top. Under schedulers that stop trials early, BOHB knows more. As there, of many outcomes a part is
used, and from 1,000 on kernel densities take the process's place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from raytuner.models.acquisition import ConfidenceBound, Improvement
from raytuner.models.multi_fidelity import Values
from raytuner.protocols import Searcher
from raytuner.searchers.joint import JointSearcher
from raytuner.searchers.sobol import SobolSearch
from raytuner.space import Space


@dataclass(frozen=True, slots=True)
class GPSearch:
    """``search_alg=GPSearch()``.

    acquisition: "ei", the logarithm of expected improvement (Ament et al. 2023), or "ucb", a confidence bound
        (Srinivas et al. 2010).
    beta: of "ucb": how many deviations the bound is away from the mean.
    n_initial_points: trials before the model is asked; None: one more than the space has dimensions, at least 6.
    random_fraction: share of proposals that are random, for ever.
    values: how values are modelled: "standard", "log" or "rank" (`raytuner.models.multi_fidelity`).
    """

    acquisition: Literal["ei", "ucb"] = "ei"
    beta: float = 2.0
    n_initial_points: int | None = None
    random_fraction: float = 0.0
    values: Values = "standard"

    def __post_init__(self) -> None:
        if self.acquisition not in ("ei", "ucb"):
            raise ValueError(f"acquisition must be 'ei' or 'ucb': got {self.acquisition!r}")
        if not 0 < self.beta < math.inf:
            raise ValueError(f"beta must be positive: got {self.beta!r}")
        if self.acquisition == "ei" and self.beta != 2.0:
            raise ValueError(f"beta is {self.beta!r}, but acquisition='ei' has no use for it")
        if self.n_initial_points is not None and self.n_initial_points < 1:
            raise ValueError(f"n_initial_points must be None or at least 1: got {self.n_initial_points!r}")
        if not 0 <= self.random_fraction <= 1:
            raise ValueError(f"random_fraction must be in [0, 1]: got {self.random_fraction!r}")
        if self.values not in ("log", "standard", "rank"):
            raise ValueError(f"values must be 'log', 'standard' or 'rank': got {self.values!r}")

    def build(self, space: Space, seed: int) -> Searcher:
        if space.has_grid:
            raise ValueError("GPSearch() has no use for grid_search(...): write choice(...) there, or use GridSearch()")
        least = max(6, len(space) + 1) if self.n_initial_points is None else self.n_initial_points
        acquisition = Improvement() if self.acquisition == "ei" else ConfidenceBound(self.beta)
        start = SobolSearch().build(space, seed)
        return JointSearcher(
            space, seed, least, self.random_fraction, self.values, acquisition, over_rungs=False, start=start
        )
