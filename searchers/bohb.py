"""BOHB: a model that says what to try next, for schedulers that try many configurations a little.

Two models, one name, as the published method's half that searches: ``model="joint"``, a Gaussian process over
configurations and rungs (`raytuner.searchers.joint`), and ``model="kde"``, the kernel densities of Falkner, Klein &
Hutter 2018 (`raytuner.searchers.kde`). The other half is `raytuner.schedulers.HyperBandScheduler`; any scheduler does,
a searcher only sees which rung an outcome belongs to.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

from raytuner.history import History, fitting, histories
from raytuner.models.multi_fidelity import Values
from raytuner.models.parzen import LEAST_BANDWIDTH
from raytuner.protocols import Searcher
from raytuner.searchers.joint import JointSearcher
from raytuner.searchers.kde import KDESearcher
from raytuner.space import Space


@dataclass(frozen=True, slots=True)
class BOHB:
    """``search_alg=BOHB()``. Names and defaults of ``model="kde"`` are those of hpbandster and of Ray Tune's TuneBOHB.

    model: "joint" or "kde".
    random_fraction: share of proposals that are random, for ever; None: 0.05, with "kde" 1/3.
    min_points_in_model: how much is tried before the model is asked. None: with "joint" one more than the space has
        dimensions, at least 6; with "kde" that is N_min, one more than the space has dimensions.
    values: of "joint", how values are modelled: "standard", "log" or "rank" (`raytuner.models.multi_fidelity`).
    top_n_percent: of "kde": q, the share of outcomes that is good.
    num_samples: of "kde": how many candidates are compared for a proposal.
    bandwidth_factor: of "kde": how much wider than the model its candidates are drawn.
    min_bandwidth: of "kde": the least width of a kernel, where 1 is the width of a parameter's range.
    warm_start: of "joint": earlier studies, to begin from and to model with (`raytuner.history`, and
        `raytuner.models.transfer`). Of each at least one row must fit the space.
    """

    model: Literal["joint", "kde"] = "joint"
    random_fraction: float | None = None
    min_points_in_model: int | None = None
    values: Values = "standard"
    top_n_percent: float = 15
    num_samples: int = 64
    bandwidth_factor: float = 3
    min_bandwidth: float = 1e-3
    warm_start: Sequence[History] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "warm_start", histories(self.warm_start))
        if self.model not in ("joint", "kde"):
            raise ValueError(f"model must be 'joint' or 'kde': got {self.model!r}")
        if self.values not in ("log", "standard", "rank"):
            raise ValueError(f"values must be 'log', 'standard' or 'rank': got {self.values!r}")
        if self.min_points_in_model is not None and self.min_points_in_model < 1:
            raise ValueError(f"min_points_in_model must be None or at least 1: got {self.min_points_in_model}")
        if not 0 < self.top_n_percent < 100:
            raise ValueError(f"top_n_percent must be between 0 and 100: got {self.top_n_percent}")
        if self.num_samples < 1:
            raise ValueError(f"num_samples must be at least 1: got {self.num_samples}")
        if self.random_fraction is not None and not 0 <= self.random_fraction <= 1:
            raise ValueError(f"random_fraction must be in [0, 1]: got {self.random_fraction}")
        if not 0 < self.bandwidth_factor < math.inf:
            raise ValueError(f"bandwidth_factor must be positive: got {self.bandwidth_factor}")
        if not LEAST_BANDWIDTH <= self.min_bandwidth <= 1:
            raise ValueError(f"min_bandwidth must be in [{LEAST_BANDWIDTH}, 1]: got {self.min_bandwidth}")
        kde = {"top_n_percent": 15, "num_samples": 64, "bandwidth_factor": 3, "min_bandwidth": 1e-3}
        others = kde if self.model == "joint" else {"values": "standard", "warm_start": ()}
        for name, default in others.items():
            if getattr(self, name) != default:
                raise ValueError(f"{name} is {getattr(self, name)!r}, but model={self.model!r} has no use for it")

    def to_json(self) -> Any:
        """For a record."""
        args = {each.name: getattr(self, each.name) for each in fields(self)}
        return {**args, "warm_start": [each.to_json() for each in self.warm_start]}

    @classmethod
    def from_json(cls, args: Mapping[str, Any]) -> Self:
        """Of a record; one that names no model is from before there were two, and means "kde"."""
        return cls(**{"model": "kde", **args})

    def build(self, space: Space, seed: int) -> Searcher:
        if space.has_grid:
            raise ValueError("BOHB() has no use for grid_search(...): write choice(...) there, or use GridSearch()")
        least = self.min_points_in_model
        if self.model == "joint":
            fraction = 0.05 if self.random_fraction is None else self.random_fraction
            least = max(6, len(space) + 1) if least is None else least
            return JointSearcher(space, seed, least, fraction, self.values, sources=fitting(self.warm_start, space))
        return KDESearcher(
            space,
            seed,
            least=len(space) + 1 if least is None else least,
            top_n_percent=self.top_n_percent,
            num_samples=self.num_samples,
            random_fraction=1 / 3 if self.random_fraction is None else self.random_fraction,
            bandwidth_factor=self.bandwidth_factor,
            min_bandwidth=self.min_bandwidth,
        )
