"""A searcher whose fit depends on where its optimiser last stood, and one that forgets it: for tests of the engine.

`WarmStarted` learns a length scale by a few descent steps per `ask`, from the scale the previous `ask` ended at; it
proposes a normal step of that scale away from the best configuration. The scale is in the proposal's note and is
restored by `recall`, so that a resumed study takes the decisions of an uninterrupted one.

`Forgetful` is the same but for `recall`, which does nothing: a replay test that lets it pass tests nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from raytuner.actions import Answer, Proposal
from raytuner.space import Space
from raytuner.trial import Observation, Pending

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class WarmStarted:
    """Settings: how many descent steps each `ask` takes."""

    steps: int = 2

    def build(self, space: Space, seed: int) -> WarmStartedSearcher:
        return WarmStartedSearcher(self, space, seed)


@dataclass(frozen=True, slots=True)
class Forgetful:
    """Settings of the broken variant."""

    steps: int = 2

    def build(self, space: Space, seed: int) -> ForgetfulSearcher:
        return ForgetfulSearcher(WarmStarted(self.steps).build(space, seed))


class WarmStartedSearcher:
    """The machine of `WarmStarted`."""

    def __init__(self, settings: WarmStarted, space: Space, seed: int) -> None:
        self._settings = settings
        self._space = space
        self._seed = seed
        self._points: list[Floats] = []  # each (d,)
        self._values: list[float] = []
        self._log_scale = -1.0  # the state that an `ask` changes and later ones depend on

    def ask(self, trial: int, until: int, pending: Sequence[Pending]) -> Answer:
        rng = np.random.default_rng([self._seed, trial])
        if len(self._values) < 3:
            return Proposal(self._space.sample(rng), {"log_scale": self._log_scale})
        points, values = np.array(self._points), np.array(self._values)  # (n, d), (n,)
        # The most recent outcomes only: an ask stays cheap in a test that replays a study hundreds of times.
        self._log_scale = descend(self._log_scale, points[-20:], values[-20:], self._settings.steps)
        x = points[values.argmin()] + math.exp(self._log_scale) * rng.standard_normal(len(self._space))
        config = self._space.decode(1.0 - abs(1.0 - x % 2.0))  # reflected
        if not self._space.feasible(config):
            config = self._space.sample(rng)
        return Proposal(config, {"log_scale": self._log_scale})

    def tell(self, seen: Observation) -> None:
        if seen.value is not None and math.isfinite(seen.value) and self._space.contains(seen.config):
            self._points.append(self._space.encode(seen.config)[0])
            self._values.append(seen.value)

    def recall(self, trial: int, until: int, pending: Sequence[Pending], answer: Answer) -> None:
        if isinstance(answer, Proposal):
            self._log_scale = answer.note["log_scale"]


class ForgetfulSearcher:
    """The machine of `Forgetful`."""

    def __init__(self, inner: WarmStartedSearcher) -> None:
        self._inner = inner

    def ask(self, trial: int, until: int, pending: Sequence[Pending]) -> Answer:
        return self._inner.ask(trial, until, pending)

    def tell(self, seen: Observation) -> None:
        self._inner.tell(seen)

    def recall(self, trial: int, until: int, pending: Sequence[Pending], answer: Answer) -> None:
        """Nothing, which is the defect."""


def descend(log_scale: float, points: Floats, values: Floats, steps: int) -> float:
    """The log length scale after some descent steps, too few to forget where they began."""
    ranks = values.argsort(kind="stable").argsort()  # values may be of any size
    scores = (ranks - ranks.mean()) / ranks.std()
    for _ in range(steps):
        slope = (error(log_scale + 0.01, points, scores) - error(log_scale - 0.01, points, scores)) / 0.02
        log_scale = min(max(log_scale - 0.1 * math.tanh(slope), -4.0), 1.0)
    return log_scale


def error(log_scale: float, points: Floats, scores: Floats) -> float:
    """Mean squared leave-one-out error of kernel regression (Nadaraya-Watson)."""
    squared = ((points[:, None, :] - points[None, :, :]) ** 2).sum(axis=2)  # (n, n)
    np.fill_diagonal(squared, np.inf)
    nearest = squared.min(axis=1, keepdims=True)  # (n, 1), taken off so that the weights do not all underflow
    weights = np.exp((nearest - squared) / (2.0 * math.exp(2.0 * log_scale)))
    predicted = weights @ scores / weights.sum(axis=1)
    return float(((predicted - scores) ** 2).mean())
