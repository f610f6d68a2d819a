"""Configurations that the user wants tried first, and outcomes known beforehand, around any searcher.

``TuneConfig(points_to_evaluate=…, evaluated_rewards=…)``, in Ray's names. The first trials that ask get the points
without a known value, in order; then the searcher inside is asked. It is told how they turn out like those of any
trial, and of points with a known value at once, as outcomes at the top rung of trials below 0: these are not run.

What a point lacks is drawn from the space, uniformly, by ``[seed, "given", number of the point]``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raytuner.actions import Answer, Proposal
from raytuner.explanation import Explanation
from raytuner.protocols import SearchAlgorithm, Searcher
from raytuner.space import Space
from raytuner.trial import Config, Observation, Pending

_STREAM = int.from_bytes(b"given", "big")


@dataclass(frozen=True, slots=True)
class Point:
    """``config``: or a part of one, as `Space.partial` returns it. ``value``: known, lower is better; None: to be run.

    ``raw``: the value as the user gave it.
    """

    config: Mapping[str, Any]
    value: float | None = None
    raw: float | None = None


@dataclass(frozen=True, slots=True)
class GivenPoints:
    """Settings: another searcher's, and what comes before it. ``until``: the rung of values that are known."""

    search_alg: SearchAlgorithm
    points: Sequence[Point]
    until: int

    def build(self, space: Space, seed: int) -> GivenPointsSearcher:
        """Raises ValueError, naming the point, where one cannot be made feasible."""
        searcher = self.search_alg.build(space, seed)
        to_run = []
        for number, point in enumerate(self.points):
            try:
                config = space.completed(point.config, np.random.default_rng([seed, _STREAM, number]))
            except ValueError as error:
                raise ValueError(f"points_to_evaluate[{number}]: {error}") from error
            if point.value is None:
                to_run.append(config)
            else:
                searcher.tell(_known(-1 - number, config, point, self.until))
        return GivenPointsSearcher(searcher, to_run)


def _known(trial: int, config: Config, point: Point, until: int) -> Observation:
    values = () if point.raw is None else (point.raw,)
    return Observation(trial, config, until, float(until), until, point.value, values, ended=True)


class GivenPointsSearcher:
    """The machine of `GivenPoints`. ``points``: for the first trials that ask."""

    def __init__(self, searcher: Searcher, points: Sequence[Config]) -> None:
        self._searcher = searcher
        self._points = points
        self._served = 0

    def ask(self, trial: int, until: int, pending: Sequence[Pending]) -> Answer:
        if self._served == len(self._points):
            return self._searcher.ask(trial, until, pending)
        number, self._served = self._served, self._served + 1
        return Proposal(self._points[number], {"origin": "given", "point": number})

    def tell(self, seen: Observation) -> None:
        self._searcher.tell(seen)

    def recall(self, trial: int, until: int, pending: Sequence[Pending], answer: Answer) -> None:
        if self._served == len(self._points):
            self._searcher.recall(trial, until, pending, answer)
        else:
            self._served += 1

    @property
    def explain(self) -> Callable[[Config], Explanation | None]:
        """The searcher's own; AttributeError if it has no model."""
        found: Callable[[Config], Explanation | None] = self._searcher.explain  # type: ignore[attr-defined]
        return found
