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
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from raytuner.actions import Answer, Proposal
from raytuner.explanation import EVIDENCE, Evidence, Explanation
from raytuner.history import Fitted
from raytuner.models.acquisition import Acquisition, Improvement, Pool, UnderWay, keys
from raytuner.models.density_ratio import DRAWN, LOOKED_AT, Candidates, DensityRatio
from raytuner.models.gaussian_process import Floats, GaussianProcess, likeliest
from raytuner.models.multi_fidelity import (
    MOST_DATA,
    Features,
    Outcomes,
    Surrogate,
    Values,
    aligned,
    chosen,
    highest,
    rungs,
    scores,
    unscored,
)
from raytuner.models.parzen import Bools, Ints
from raytuner.models.threads import one_thread
from raytuner.models.transfer import Mixed, Sources
from raytuner.prior import fading
from raytuner.protocols import Searcher
from raytuner.searchers.random_search import at_random
from raytuner.space import Space
from raytuner.trial import Config, Observation, Pending

_POOL = int.from_bytes(b"pool", "big")
_CHOSEN = int.from_bytes(b"data", "big")
_DRAWN = int.from_bytes(b"draw", "big")
_WEIGHED = int.from_bytes(b"old", "big")

FIRST = 3
"""So many trials must have been heard of before old studies are believed."""

LARGE = 1000
"""From so many outcomes on, kernel densities take the place of the Gaussian process: see docs/search.md."""


class JointSearcher:
    """The machine of ``BOHB(model="joint")``, and of `raytuner.searchers.GPSearch`.

    ``least``: trials that are begun before the model is asked; ``start`` proposes them, at random if it is None.
    ``over_rungs``: whether each rung is a place of its own; otherwise a trial counts once, with its value at the
    highest rung that it was seen at, aligned.
    """

    def __init__(
        self,
        space: Space,
        seed: int,
        least: int,
        random_fraction: float,
        values: Values,
        acquisition: Acquisition | None = None,
        over_rungs: bool = True,
        start: Searcher | None = None,
        sources: Sequence[Fitted] = (),
    ) -> None:
        self._space = space
        self._seed = seed
        self._least = least
        self._random_fraction = random_fraction
        self._values = values
        self._large = LARGE
        self._acquisition = acquisition or Improvement()
        self._over_rungs = over_rungs
        self._start = start
        self._features = Features.of(space)
        self._outcomes = Outcomes(len(space))
        self._seen: set[bytes] = set()
        self._configs: dict[int, tuple[Floats, Bools, bytes] | None] = {}  # of trials that were heard of or asked about
        self._begun: dict[int, UnderWay] = {}  # by trial, as it was last under way
        self._at_first: list[UnderWay] | None = None  # what was under way at the first `ask` since it was told
        self._first = 0  # the trial that was asked for then
        self._pool: Pool | None = None
        self._unscored: Callable[[Floats], Floats] | None = None  # while nothing new is heard
        self._densities: tuple[int, DensityRatio] | None = None  # of so many outcomes
        self._candidates: tuple[tuple[int, int], Candidates, dict[bytes, list[int]]] | None = None
        self._old = Sources(space, self._features, sources, values) if sources else None
        self._fit: tuple[int, Floats, Mixed | None] | None = None  # to so many outcomes

    def ask(self, trial: int, until: int, pending: Sequence[Pending]) -> Answer:
        begun = self._note(trial, pending)
        rng = np.random.default_rng([self._seed, trial])
        known = self._outcomes.tried
        if early := known < self._least:
            under_way = sum(not self._outcomes.has(each.trial) for each in begun)
            early = known + under_way < self._least or known < self._least // 2 + 1
        if rng.random() < self._random_fraction or not len(self._space):
            return self._random(rng)
        if early and not self._believes():
            return self._opening(known + under_way) or self._started(trial, until, pending, rng)
        if len(self._outcomes) >= self._large:
            return self._by_densities(rng, begun)
        with one_thread():
            pool = self._pool = self._pool or self._new_pool()
            at_first = {(each.trial, each.until) for each in self._at_first or ()}
            later = [each for each in begun if (each.trial, each.until) not in at_first]
            choice = pool.choose(later)
            if choice is None:
                return self._random(rng)
            mean, deviation = self._predicted(choice.mean, choice.deviation)
        note: dict[str, Any] = {
            "origin": "model",
            "surrogate": "process",
            "outcomes": len(self._outcomes),
            "rung": self._outcomes.top,
            "mean": mean,
            "deviation": deviation,
            "acquisition": choice.acquisition,
        }
        if self._fit is not None and (prior := self._fit[2]) is not None:
            note["believed"] = prior.worth
        return Proposal(self._space.decode(choice.point), note)

    def tell(self, seen: Observation) -> None:
        value = math.inf if seen.value is None or math.isnan(seen.value) else seen.value
        found = self._encoded(seen.trial, seen.config)
        if found is None:
            return
        point, active, key = found
        if self._outcomes.add(seen.trial, seen.until, value, point, active):
            self._seen.add(key)
            self._at_first = self._pool = self._unscored = None
        if seen.ended:
            self._begun.pop(seen.trial, None)

    def recall(self, trial: int, until: int, pending: Sequence[Pending], answer: Answer) -> None:
        if len(self._outcomes) < self._large:  # after that what is proposed depends on the number of outcomes only
            self._note(trial, pending)

    def explain(self, config: Config) -> Explanation | None:
        """What the model expects of a configuration at the top rung; None while it knows too little for a model.

        ValueError if the configuration is not in the space.
        """
        point, active = self._space.encode(config)
        count, outcomes = len(self._outcomes), self._outcomes
        if not len(self._space) or outcomes.tried < 2:
            return None
        if count >= self._large:
            count, densities = self._latest_densities()
            rows, weights = densities.evidence(point, active)
            ratio = float(densities.log_ratio(point[None], active[None])[0])
            mean, deviation, acquisition, surrogate = None, None, ratio, "densities"
        else:
            with one_thread():
                model = self._surrogate()
                score, sd = model.predict(point[None], active[None])
                best = float(model.process.mean(model.at_top(model.points, model.active)).min())
                rows, weights = model.rows, model.alike(point, active)
            belief = fading(outcomes.tried) * self._space.log_prior(point[None], active[None])
            acquisition = float((self._acquisition.at(score, sd, best) + belief)[0])
            (mean, deviation), surrogate = self._predicted(float(score[0]), float(sd[0])), "process"
        most = np.argsort(-np.abs(weights), kind="stable")[:EVIDENCE]
        evidence = []
        for row, weight in zip(rows[most], weights[most], strict=True):
            value = float(outcomes.values[row])
            trial, step = int(outcomes.trials[row]), int(outcomes.untils[row])
            evidence.append(Evidence(trial, step, value if math.isfinite(value) else None, float(weight)))
        return Explanation(surrogate, count, outcomes.top, mean, deviation, acquisition, tuple(evidence))

    def _predicted(self, score: float, deviation: float) -> tuple[float | None, float | None]:
        """Mean and deviation, given those of scores, in the unit of what was told; None where they are not finite."""
        outcomes = self._outcomes
        if self._unscored is None:
            values = aligned(outcomes.trials, outcomes.untils, outcomes.values)
            self._unscored = unscored(values, self._values)
        with np.errstate(all="ignore"):
            mean, low, high = self._unscored(np.array([score, score - deviation, score + deviation])).tolist()
        found = mean, (high - low) / 2
        return found if math.isfinite(found[0]) and math.isfinite(found[1]) else (None, None)

    def _note(self, trial: int, pending: Sequence[Pending]) -> list[UnderWay]:
        """What is under way; it is kept if this is the first that is asked since something was told."""
        begun = []
        for each in pending:
            if each.step >= each.until:
                continue
            if (known := self._begun.get(each.trial)) is None or known.until != each.until:
                if (found := self._encoded(each.trial, each.config)) is None:
                    continue
                self._begun[each.trial] = known = UnderWay(each.trial, each.until, self._rungs([each.until])[0], *found)
            begun.append(known)
        if self._at_first is None:
            self._at_first, self._first = begun, trial
        return begun

    def _encoded(self, trial: int, config: Config) -> tuple[Floats, Bools, bytes] | None:
        """A trial's point, and its key; None if its configuration is from outside the space, as a fork's may be."""
        if trial not in self._configs:
            found = self._space.found(config)
            self._configs[trial] = None if found is None else (*found, keys(found[0][None])[0])
        return self._configs[trial]

    def _random(self, rng: np.random.Generator) -> Proposal:
        return at_random(self._space, rng, self._outcomes.tried)

    def _started(self, trial: int, until: int, pending: Sequence[Pending], rng: np.random.Generator) -> Answer:
        """One of the first."""
        return self._random(rng) if self._start is None else self._start.ask(trial, until, pending)

    # ------------------------------------------------------------------------------------------ a large history

    def _by_densities(self, rng: np.random.Generator, begun: Sequence[UnderWay]) -> Proposal:
        count, densities = self._latest_densities()
        under_way = {each.key for each in begun}
        found, places = self._drawn(densities, len(under_way))
        free = np.ones(len(found.points), dtype=np.bool_)
        free[[place for own in under_way for place in places.get(own, ())]] = False
        left = np.flatnonzero(free)
        for place in np.sort(rng.choice(left, min(LOOKED_AT, len(left)), replace=False)).tolist():
            if self._space.feasible(config := self._space.decode(found.points[place])):
                note = {
                    "origin": "model",
                    "surrogate": "densities",
                    "outcomes": count,
                    "rung": self._outcomes.top,
                    "acquisition": float(found.log_ratio[place]),
                }
                return Proposal(config, note)
        return self._random(rng)

    def _drawn(self, densities: DensityRatio, under_way: int) -> tuple[Candidates, dict[bytes, list[int]]]:
        """Candidates that were not tried, the best first, with their places by their keys: the same for all who ask
        while nothing new is heard, but others when half of them may be under way."""
        batch = len(self._outcomes), under_way // (DRAWN // 2)
        if self._candidates is None or self._candidates[0] != batch:
            found = densities.draw(self._space, np.random.default_rng([self._seed, _DRAWN, *batch]))
            own = keys(found.points)
            fresh = [place for place, key in enumerate(own) if key not in self._seen]
            places: dict[bytes, list[int]] = {}
            for place, was in enumerate(fresh):
                places.setdefault(own[was], []).append(place)
            found = Candidates(found.points[fresh], found.active[fresh], found.log_ratio[fresh])
            self._candidates = batch, found, places
        return self._candidates[1:]

    def _latest_densities(self) -> tuple[int, DensityRatio]:
        """Those in use now, and of how many outcomes they are."""
        count = last_densities(len(self._outcomes))
        if self._densities is None or self._densities[0] != count:
            chance = np.random.default_rng([self._seed, _CHOSEN, count])
            self._densities = count, DensityRatio.of(self._outcomes, count, self._space, chance)
        return self._densities

    # --------------------------------------------------------------------------------------------- old studies

    def _believes(self) -> bool:
        """Whether old studies make up for the outcomes that the model still lacks."""
        if self._old is None or self._outcomes.tried < FIRST:
            return False
        with one_thread():
            return self._fitted(len(self._outcomes))[1] is not None

    def _opening(self, begun: int) -> Proposal | None:
        """What old studies would begin with, as every other trial, while no other was better than these."""
        if self._old is None or self._outcomes.tried >= FIRST or begun % 2:
            return None
        with one_thread():
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
            np.array([each.t for each in begun]),
        )
        seen = self._seen.union(each.key for each in begun)
        rng = np.random.default_rng([self._seed, _POOL, self._first])
        return Pool(self._space, surrogate, seen, rng, self._acquisition, self._outcomes.tried)

    def _surrogate(self) -> Surrogate:
        """The model of all that was told."""
        count = len(self._outcomes)
        theta, prior = self._fitted(count)
        inputs, y, rows, top = self._data(count)
        points, active = self._outcomes.points[rows], self._outcomes.active[rows]
        kernel, noise = self._features.kernel, self._features.noise
        process = GaussianProcess.of(kernel, theta, inputs, y, noise, prior)
        return Surrogate(self._features, process, points, active, top, rows)

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

    def _rungs(self, untils: Sequence[int]) -> Floats:
        return rungs(untils) if self._over_rungs else np.zeros(len(untils))

    def _data(self, count: int) -> tuple[Floats, Floats, Ints, float]:
        """Inputs and scores of those of the first ``count`` outcomes that are used, which these are, the top rung."""
        outcomes = self._outcomes
        untils = outcomes.untils[:count]
        y = scores(aligned(outcomes.trials[:count], untils, outcomes.values[:count]), self._values)
        t = rungs(untils) if self._over_rungs else np.zeros(count)
        last = np.arange(count) if self._over_rungs else np.sort(highest(outcomes.trials[:count], untils))
        rows = last[chosen(y[last], t[last], MOST_DATA, np.random.default_rng([self._seed, _CHOSEN, count]))]
        top = float(t.max())
        return self._features.at(outcomes.points[rows], outcomes.active[rows], t[rows], top), y[rows], rows, top


def last_densities(count: int) -> int:
    """Of how many outcomes the densities are that are in use at ``count`` of them: all but 1 % at most."""
    step = 1 << max(0, (count // 100).bit_length() - 1)
    return count - count % step


def last_fit(count: int) -> int:
    """At how many outcomes the parameters were fitted that are in use at ``count`` of them."""
    fitted = min(count, 4)
    while (after := fitted + max(min(6, fitted // 10), fitted // 25, 1)) <= count:
        fitted = after
    return fitted
