"""CMA-ES: a normal distribution of configurations, moved and shaped by the better half of each generation.

Hansen 2016, "The CMA Evolution Strategy: A Tutorial" (arXiv:1604.00772), with margin for integers (Hamano, Saito,
Nomura & Shirakawa 2022, arXiv:2205.13482), both as in CyberAgent's library ``cmaes``, which Optuna uses too; restarts
with a doubled population where it has converged (IPOP; Auger & Hansen 2005). The distribution is over the numeric
parameters outside all branches, in the unit cube: integers and quantised floats of at most 1000 steps on a linear scale
with margin, others as if they were continuous. All other parameters, categorical and conditional ones, are drawn at
random, as in Optuna. With fewer than two dimensions to search everything is.

Trials come and go one by one, a generation changes as a whole:

    asked:  the trial is drawn from the distribution as it stands, and is a member of the current generation; there may
            be more members than population_size, as many as there are slots
    told:   the first outcome of a member, at its first rung. Once population_size members have one at the same rung,
            they make the next distribution, by rank; failed ones are the worst. Members that are heard of later, or
            that started at another rung, are passed over

So only values at the same rung are compared, and those at higher rungs are not learned from: with Hyperband or ASHA
this is a search at the lowest rungs. Many more slots than population_size waste trials; make it as large.

A member is drawn by its trial's number: what was drawn need not be remembered, and a resumed study draws it again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from raytuner.actions import Answer, Proposal
from raytuner.models.parzen import Floats, Ints
from raytuner.models.threads import one_thread
from raytuner.space import Integer, Param, Quantized, Space
from raytuner.trial import Observation, Pending

_RESTART = int.from_bytes(b"restart", "big")
_ATTEMPTS = 100  # so often is a proposal drawn anew before it is one of `Space.sample`
_MOST_STEPS = 1000  # more are as good as continuous
_CONVERGED = 1e-6  # in a generation that lies so close nothing is left to find; 1 is a parameter's range


@dataclass(frozen=True, slots=True)
class CMAES:
    """``search_alg=CMAES()``; needs ``pip install raytuner[cmaes]``.

    population_size: members that make the next distribution; None: 4 + floor(3 ln d) for d dimensions.
    sigma0: the first standard deviation, where 1 is the width of a parameter's range. The first mean is its middle.
    """

    population_size: int | None = None
    sigma0: float = 0.25

    def __post_init__(self) -> None:
        if self.population_size is not None and self.population_size < 4:
            raise ValueError(f"population_size must be None or at least 4: got {self.population_size}")
        if not 1e-3 <= self.sigma0 <= 1:
            raise ValueError(f"sigma0 must be in [0.001, 1]: got {self.sigma0}")

    def build(self, space: Space, seed: int) -> CMAESSearcher:
        try:
            import cmaes  # noqa: F401
        except ImportError:
            raise ModuleNotFoundError("CMAES() needs the library cmaes: pip install 'raytuner[cmaes]'") from None
        if space.has_grid:
            raise ValueError("CMAES() has no use for grid_search(...): write choice(...) there, or use GridSearch()")
        return CMAESSearcher(space, seed, self.population_size, self.sigma0)


class CMAESSearcher:
    """The machine of `CMAES`."""

    def __init__(self, space: Space, seed: int, population_size: int | None, sigma0: float) -> None:
        self._space = space
        self._seed = seed
        self._sigma0 = sigma0
        self._columns: Ints = np.array([j for j, p in enumerate(space.params) if _searched(p)], dtype=np.int64)
        self._steps = np.array([_step(space.params[j]) for j in self._columns])
        self._size = population_size or 4 + math.floor(3 * math.log(max(len(self._columns), 1)))
        self._restarts = 0
        self._generation = _Generation(0)
        self._distribution: Any = self._fresh() if len(self._columns) >= 2 else None

    def ask(self, trial: int, until: int, pending: Sequence[Pending]) -> Answer:
        rng = np.random.default_rng([self._seed, trial])
        if self._distribution is not None:
            for attempt in range(_ATTEMPTS):
                point, raw = self._draw(rng)
                config = self._space.decode(point)
                if self._space.feasible(config):
                    self._generation.begun[trial] = raw
                    note = {"generation": self._generation.number, "attempt": attempt, "restarts": self._restarts}
                    return Proposal(config, {"origin": "model", **note})
        return Proposal(self._space.sample(rng), {"origin": "random"})

    def tell(self, seen: Observation) -> None:
        raw = self._generation.begun.pop(seen.trial, None)
        if raw is None:
            return
        value = math.inf if seen.value is None or math.isnan(seen.value) else seen.value
        known = self._generation.known.setdefault(seen.until, [])
        known.append((value, seen.trial, raw))
        if len(known) == self._size:
            self._next(known)

    def recall(self, trial: int, until: int, pending: Sequence[Pending], answer: Answer) -> None:
        if isinstance(answer, Proposal) and answer.note.get("origin") == "model":
            rng = np.random.default_rng([self._seed, trial])
            for _ in range(answer.note["attempt"]):
                self._draw(rng)
            self._generation.begun[trial] = self._draw(rng)[1]

    # ---------------------------------------------------------------------------------------- the distribution

    def _draw(self, rng: np.random.Generator) -> tuple[Floats, Floats]:
        """A point (d,) of the space, and where it was drawn in the searched dimensions: (dimensions,)."""
        point = rng.random(len(self._space))
        with one_thread():
            self._distribution.reseed_rng(int(rng.integers(2**32)))
            point[self._columns], raw = self._distribution.ask()
        return point, raw

    def _next(self, known: list[tuple[float, int, Floats]]) -> None:
        """The next generation, from the members of this one."""
        number = self._generation.number + 1
        self._generation = _Generation(number)
        ranked = sorted(known, key=lambda each: each[:2])
        if ranked[0][0] == math.inf:
            return  # nothing can be learned where all failed
        with one_thread(), np.errstate(all="ignore"):
            self._distribution.tell([(raw, float(rank)) for rank, (_, _, raw) in enumerate(ranked)])
            width = np.ptp([raw[self._steps == 0] for _, _, raw in ranked], axis=0)  # of continuous dimensions
            if self._distribution.should_stop() or (len(width) > 0 and width.max() < _CONVERGED):
                self._restarts += 1
                self._size *= 2
                self._distribution = self._fresh()

    def _fresh(self) -> Any:
        """The distribution to begin with: around the middle, after a restart around a random point."""
        from cmaes import CMAwM

        d = len(self._columns)
        mean = np.full(d, 0.5)
        if self._restarts:
            mean = np.random.default_rng([self._seed, _RESTART, self._restarts]).random(d)
        edge = np.where(self._steps > 0, self._steps / 2, 0.0)  # the outermost values are half a step inside
        bounds = np.column_stack([edge, 1.0 - edge])
        return CMAwM(mean=mean, sigma=self._sigma0, bounds=bounds, steps=self._steps, population_size=self._size)


@dataclass(slots=True)
class _Generation:
    """Members drawn from one distribution."""

    number: int
    begun: dict[int, Floats] = field(default_factory=dict)  # by trial: where it was drawn
    known: dict[int, list[tuple[float, int, Floats]]] = field(default_factory=dict)  # by rung: (value, trial, raw)


def _searched(param: Param) -> bool:
    """Whether the distribution has a dimension for it."""
    domain = param.domain
    alone = isinstance(domain, Integer | Quantized) and domain.steps.first == domain.steps.last
    return param.categories == 0 and param.condition is None and not alone


def _step(param: Param) -> float:
    """The distance of a parameter's values in the unit cube, where it is searched with margin; else 0."""
    domain = param.domain
    if not isinstance(domain, Integer | Quantized) or domain.steps.log:
        return 0.0
    count = domain.steps.last - domain.steps.first + 1
    return 1.0 / count if count <= _MOST_STEPS else 0.0
