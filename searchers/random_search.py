"""Random search: each configuration drawn from the space on its own (Bergstra & Bengio 2012).

Uniformly: as in Ray, ``uniform`` means uniform. It does not look at priors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raytuner.actions import Answer, Proposal
from raytuner.prior import BETA
from raytuner.space import Space
from raytuner.trial import Observation, Pending


@dataclass(frozen=True, slots=True)
class RandomSearch:
    """``search_alg=RandomSearch()``: the configuration of trial i depends on the seed and i, on nothing else."""

    def build(self, space: Space, seed: int) -> RandomSearcher:
        if space.has_grid:
            raise ValueError("RandomSearch() does not try the values of grid_search(...) in turn: use GridSearch()")
        return RandomSearcher(space, seed)


def at_random(space: Space, rng: np.random.Generator, known: int) -> Proposal:
    """A random configuration for a searcher that has a model, and knows of so many outcomes.

    Where the space has priors, from them with probability beta / (beta + n) / 2, from the whole space else.
    """
    if space.has_prior and rng.random() < 0.5 * BETA / (BETA + known):
        return Proposal(space.sample_prior(rng), {"origin": "prior"})
    return Proposal(space.sample(rng), {"origin": "random"})


class RandomSearcher:
    """The machine of `RandomSearch`."""

    def __init__(self, space: Space, seed: int) -> None:
        self._space = space
        self._seed = seed

    def ask(self, trial: int, until: int, pending: Sequence[Pending]) -> Answer:
        rng = np.random.default_rng([self._seed, trial])
        return Proposal(self._space.sample(rng), {"origin": "random"})

    def tell(self, seen: Observation) -> None:
        """Nothing: it does not learn."""

    def recall(self, trial: int, until: int, pending: Sequence[Pending], answer: Answer) -> None:
        """Nothing: an `ask` leaves no trace."""
