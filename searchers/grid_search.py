"""Grid search with Ray Tune's semantics: every point of the grid, ``num_samples`` times over.

The grid is the product of all ``grid_search([...])`` of the space; its other domains are drawn anew for each trial.
The searcher never ends: the study starts ``num_samples`` x ``len(space.grid_points)`` trials. Of a grid under
constraints only the feasible points are tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raytuner.actions import Answer, Proposal
from raytuner.space import Space
from raytuner.trial import Observation, Pending


@dataclass(frozen=True, slots=True)
class GridSearch:
    """``search_alg=GridSearch()``: each trial takes the next feasible point; without a grid, random search."""

    def build(self, space: Space, seed: int) -> GridSearcher:
        return GridSearcher(space, seed)


class GridSearcher:
    """The machine of `GridSearch`."""

    def __init__(self, space: Space, seed: int) -> None:
        self._space = space
        self._seed = seed

    def ask(self, trial: int, until: int, pending: Sequence[Pending]) -> Answer:
        rng = np.random.default_rng([self._seed, trial])
        if not self._space.has_grid:
            return Proposal(self._space.sample(rng), {"origin": "random"})
        points = self._space.grid_points
        point = points[trial % len(points)]
        return Proposal(self._space.sample(rng, point), {"origin": "grid", "point": point})

    def tell(self, seen: Observation) -> None:
        """Nothing: the grid is settled beforehand."""

    def recall(self, trial: int, until: int, pending: Sequence[Pending], answer: Answer) -> None:
        """Nothing: an `ask` leaves no trace."""
