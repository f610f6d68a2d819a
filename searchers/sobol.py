"""Quasi-random search: the points of a scrambled Sobol' sequence, which leave no large gaps.

Sobol' 1967 with the direction numbers of Joe & Kuo 2008, scrambled by a random linear matrix and a digital shift
(Matoušek 1998), all as in `scipy.stats.qmc`. The first 2^m trials fill the unit cube more evenly than random ones, in
each coordinate too: each of 2^m equal parts of a parameter's range is tried once. So sizes that are powers of two are
the best ones.

Not here: it does not learn. The coordinates of parameters that are inactive in a configuration are spent on nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raytuner.actions import Answer, Proposal
from raytuner.models.parzen import Floats
from raytuner.space import Space
from raytuner.trial import Observation, Pending

_SCRAMBLE = int.from_bytes(b"sobol", "big")
_BLOCK = 256  # points drawn at a time; a power of two
_LAST = 2**20  # no further: a resumed study walks there point by point
_REFUSED = 10_000  # so many infeasible points in a row, and the others are taken to be so too


@dataclass(frozen=True, slots=True)
class SobolSearch:
    """``search_alg=SobolSearch()``: trial i is point i of the scrambled sequence that belongs to the seed.

    Where the space has constraints, trial i is the i-th point that meets them. Trials beyond point 2^20 are random.
    """

    def build(self, space: Space, seed: int) -> SobolSearcher:
        from scipy.stats import qmc  # here, as it takes half a second

        if space.has_grid:
            raise ValueError("SobolSearch() does not try the values of grid_search(...) in turn: use GridSearch()")
        if len(space) > qmc.Sobol.MAXDIM:
            raise ValueError(
                f"SobolSearch() knows {qmc.Sobol.MAXDIM} dimensions, but the space has {len(space)}: use RandomSearch()"
            )
        return SobolSearcher(space, seed)


class SobolSearcher:
    """The machine of `SobolSearch`."""

    def __init__(self, space: Space, seed: int) -> None:
        self._space = space
        self._seed = seed
        self._engine: Any = None  # stands behind `_block`
        self._number = -1  # of the block
        self._block: Floats = np.empty((0, len(space)))
        self._feasible: list[int] = []  # the first feasible points, where there are constraints
        self._tested = 0  # points

    def ask(self, trial: int, until: int, pending: Sequence[Pending]) -> Answer:
        index = self._index(trial) if len(self._space) else None
        if index is None:
            return Proposal(self._space.sample(np.random.default_rng([self._seed, trial])), {"origin": "random"})
        return Proposal(self._space.decode(self._point(index)), {"origin": "sobol", "point": index})

    def tell(self, seen: Observation) -> None:
        """Nothing: it does not learn."""

    def recall(self, trial: int, until: int, pending: Sequence[Pending], answer: Answer) -> None:
        """Nothing: an `ask` leaves no trace but points kept to save time."""

    def _index(self, trial: int) -> int | None:
        """Which point is a trial's; None if it has none."""
        if not self._space.constraints:
            return trial if trial < _LAST else None
        while len(self._feasible) <= trial:
            newest = self._feasible[-1] if self._feasible else -1
            if self._tested == _LAST or self._tested - newest > _REFUSED:
                return None
            if self._space.feasible(self._space.decode(self._point(self._tested))):
                self._feasible.append(self._tested)
            self._tested += 1
        return self._feasible[trial]

    def _point(self, index: int) -> Floats:
        """A point (d,) of the sequence."""
        number, place = divmod(index, _BLOCK)
        if number != self._number:
            if self._engine is None:
                from scipy.stats import qmc

                # `seed` is also what versions before 1.15 call it
                self._engine = qmc.Sobol(len(self._space), seed=np.random.default_rng([self._seed, _SCRAMBLE]))
            elif number < self._number:
                self._engine.reset()
            if skipped := number * _BLOCK - self._engine.num_generated:
                self._engine.fast_forward(skipped)
            self._number, self._block = number, self._engine.random(_BLOCK)
        point: Floats = self._block[place]
        return point
