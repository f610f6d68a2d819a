"""BOHB with one model of all rungs: the configuration to try next, from a Gaussian process and expected improvement.

Where Falkner, Klein & Hutter 2018 model the highest rung that has enough outcomes by kernel densities, this searcher
has one Gaussian process over configurations and rungs (`raytuner.models.multi_fidelity`), and looks for the largest
expected improvement at the top rung (`raytuner.models.acquisition`).

    the first trials, and with probability random_fraction for ever: a random configuration
    else: of what was not tried yet, the largest expected improvement, given all outcomes and what is under way

What is under way, here and in the order in which it was begun, is taken to turn out as predicted, so that ten free
slots get ten different configurations. All that are asked for while nothing new is heard are chosen from one pool of
candidates, made at the first of them; so an answer is a function of what was told, of what is under way, and of what
was under way at that first one, which a resumed study is told as well (`recall`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import threadpoolctl

from raytuner.actions import Answer, Proposal
from raytuner.history import Fitted
from raytuner.models.acquisition import Pool, keys
from raytuner.models.gaussian_process import Floats, GaussianProcess, likeliest
from raytuner.models.multi_fidelity import (
    MOST_DATA,
    Features,
    Outcomes,
    Surrogate,
    Values,
    aligned,
    chosen,
    rungs,
    scores,
)
from raytuner.models.parzen import Bools
from raytuner.models.transfer import Mixed, Sources
from raytuner.space import Space
from raytuner.trial import Config, Observation, Pending

_POOL = int.from_bytes(b"pool", "big")
_CHOSEN = int.from_bytes(b"data", "big")
_WEIGHED = int.from_bytes(b"old", "big")

FIRST = 3
"""So many trials must have been heard of before old studies are believed."""


@dataclass(frozen=True, slots=True)
class _Begun:
    """A trial that is under way to a rung."""

    trial: int
    until: int
    point: Floats
    active: Bools


class JointSearcher:
    """The machine of ``BOHB(model="joint")``. ``least``: trials that are begun before the model is asked."""

    def __init__(
        self,
        space: Space,
        seed: int,
        least: int,
        random_fraction: float,
        values: Values,
        sources: Sequence[Fitted] = (),
    ) -> None:
        self._space = space
        self._seed = seed
        self._least = least
        self._random_fraction = random_fraction
        self._values = values
        self._features = Features.of(space)
        self._outcomes = Outcomes()
        self._seen: set[bytes] = set()
        self._configs: dict[int, tuple[Floats, Bools] | None] = {}  # of trials that were heard of or asked about
        self._at_first: list[_Begun] | None = (
            None  # what was under way when something was asked first since it was told
        )
        self._first = 0  # the trial that was asked for then
        self._pool: Pool | None = None
        self._old = Sources(space, self._features, sources, values) if sources else None
        self._fit: tuple[int, Floats, Mixed | None] | None = None  # to so many outcomes
        self._blas = threadpoolctl.ThreadpoolController()

    def ask(self, trial: int, until: int, pending: Sequence[Pending]) -> Answer:
        begun = self._note(trial, pending)
        rng = np.random.default_rng([self._seed, trial])
        known = self._outcomes.tried
        under_way = sum(not self._outcomes.has(each.trial) for each in begun)
        early = known + under_way < self._least or known < self._least // 2 + 1
        if rng.random() < self._random_fraction or not len(self._space):
            return self._random(rng)
        if early and not self._believes():
            return self._opening(known + under_way) or self._random(rng)
        with self._blas.limit(limits=1, user_api="blas"):  # last digits depend on the number of threads
            pool = self._pool = self._pool or self._new_pool()
            at_first = {(each.trial, each.until) for each in self._at_first or ()}
            later = [each for each in begun if (each.trial, each.until) not in at_first]
            t = rungs([each.until for each in later]).tolist()
            since = [(each.point, each.active, rung) for each, rung in zip(later, t, strict=True)]
            choice = pool.choose(since)
        if choice is None:
            return self._random(rng)
        note: dict[str, Any] = {
            "origin": "model",
            "outcomes": len(self._outcomes),
            "mean": choice.mean,
            "deviation": choice.deviation,
            "log_improvement": choice.log_improvement,
        }
        if self._fit is not None and (prior := self._fit[2]) is not None:
            note["believed"] = prior.worth
        return Proposal(self._space.decode(choice.point), note)

    def tell(self, seen: Observation) -> None:
        value = math.inf if seen.value is None or math.isnan(seen.value) else seen.value
        found = self._encoded(seen.trial, seen.config)
        if found is None:
            return
        point, active = found
        if self._outcomes.add(seen.trial, seen.until, value, point, active):
            self._seen.update(keys(point[None]))
            self._at_first = self._pool = None

    def recall(self, trial: int, until: int, pending: Sequence[Pending], answer: Answer) -> None:
        self._note(trial, pending)

    def _note(self, trial: int, pending: Sequence[Pending]) -> list[_Begun]:
        """What is under way; it is kept if this is the first that is asked since something was told."""
        begun = []
        for each in pending:
            if each.step < each.until and (found := self._encoded(each.trial, each.config)) is not None:
                begun.append(_Begun(each.trial, each.until, *found))
        if self._at_first is None:
            self._at_first, self._first = begun, trial
        return begun

    def _encoded(self, trial: int, config: Config) -> tuple[Floats, Bools] | None:
        """A trial's point; None if its configuration is from outside the space, as a fork's may be."""
        if trial not in self._configs:
            self._configs[trial] = self._space.encode(config) if self._space.contains(config) else None
        return self._configs[trial]

    def _random(self, rng: np.random.Generator) -> Proposal:
        return Proposal(self._space.sample(rng), {"origin": "random"})

    # --------------------------------------------------------------------------------------------- old studies

    def _believes(self) -> bool:
        """Whether old studies make up for the outcomes that the model still lacks."""
        if self._old is None or self._outcomes.tried < FIRST:
            return False
        with self._blas.limit(limits=1, user_api="blas"):
            return self._fitted(len(self._outcomes))[1] is not None

    def _opening(self, begun: int) -> Proposal | None:
        """What old studies would begin with, as every other trial, while no other was better than these."""
        if self._old is None or self._outcomes.tried >= FIRST or begun % 2:
            return None
        with self._blas.limit(limits=1, user_api="blas"):
            portfolio = self._old.portfolio[begun // 2 : begun // 2 + 1]
            theirs = set(keys(np.array(self._old.portfolio)))
        values: dict[bool, list[float]] = {True: [math.inf], False: [math.inf]}
        for point, value in zip(self._outcomes.points, self._outcomes.values, strict=True):
            values[keys(point[None])[0] in theirs].append(value)
        if not portfolio or (len(values[True]) > 1 and min(values[False]) < min(values[True])):
            return None
        return Proposal(self._space.decode(portfolio[0]), {"origin": "portfolio"})

    # ----------------------------------------------------------------------------------------------- the model

    def _new_pool(self) -> Pool:
        surrogate = self._surrogate()
        begun = self._at_first or []
        surrogate = surrogate.given(
            np.array([each.point for each in begun]).reshape(len(begun), len(self._space)),
            np.array([each.active for each in begun], dtype=np.bool_).reshape(len(begun), len(self._space)),
            rungs([each.until for each in begun]),
        )
        seen = self._seen.union(*(keys(each.point[None]) for each in begun))
        return Pool(self._space, surrogate, seen, np.random.default_rng([self._seed, _POOL, self._first]))

    def _surrogate(self) -> Surrogate:
        """The model of all that was told."""
        count = len(self._outcomes)
        theta, prior = self._fitted(count)
        inputs, y, points, active, top = self._data(count)
        kernel, noise = self._features.kernel, self._features.noise
        process = GaussianProcess.of(kernel, theta, inputs, y, noise, prior)
        return Surrogate(self._features, process, points, active, top)

    def _fitted(self, count: int) -> tuple[Floats, Mixed | None]:
        """The parameters that are in use at ``count`` outcomes, and what old studies say then."""
        fitted = last_fit(count)
        if self._fit is None or self._fit[0] != fitted:
            kernel, noise = self._features.kernel, self._features.noise
            inputs, y, *_ = self._data(fitted)
            theta, prior = likeliest(kernel, inputs, y, noise), None
            if self._old is not None:
                rng = np.random.default_rng([self._seed, _WEIGHED, fitted])
                prior = self._old.prior(GaussianProcess.of(kernel, theta, inputs, y, noise), y, rng)
            if prior is not None:
                theta = likeliest(kernel, inputs, y - prior.at(inputs), noise)
            self._fit = fitted, theta, prior
        return self._fit[1:]

    def _data(self, count: int) -> tuple[Floats, Floats, Floats, Bools, float]:
        """Inputs, scores, points, active and top rung of the first ``count`` outcomes, or of those of them that are
        used."""
        outcomes = self._outcomes
        untils = np.array(outcomes.untils[:count])
        y = scores(aligned(outcomes.trials[:count], untils, np.array(outcomes.values[:count])), self._values)
        t = rungs(outcomes.untils[:count])
        rows = chosen(y, t, MOST_DATA, np.random.default_rng([self._seed, _CHOSEN, count]))
        points = np.array([outcomes.points[row] for row in rows])
        active = np.array([outcomes.active[row] for row in rows])
        top = float(t.max())
        return self._features.at(points, active, t[rows], top), y[rows], points, active, top


def last_fit(count: int) -> int:
    """At how many outcomes the parameters were fitted that are in use at ``count`` of them."""
    fitted = min(count, 4)
    while (after := fitted + max(min(6, fitted // 10), fitted // 25, 1)) <= count:
        fitted = after
    return fitted
