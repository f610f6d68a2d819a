"""TPE: the configuration to try next, from adaptive Parzen densities of the good outcomes and of the others.

Bergstra, Bardenet, Bengio & Kégl 2011, "Algorithms for Hyper-Parameter Optimization" (NeurIPS 24), section 4, and
Bergstra, Yamins & Cox 2013; multivariate as in Falkner, Klein & Hutter 2018 (arXiv:1807.01774), with the groups and the
numbers of Optuna's ``TPESampler``. The densities are `raytuner.models.adaptive_parzen`.

    while fewer than n_initial_points trials were heard of, or all of them failed: a random configuration
    else, of the n outcomes, one per trial:
        good: the min(ceil(gamma n), 25) best; bad: the others, and what is under way (constant liar: it turns out bad)
        for each group of parameters, a choice before what is inside its branches:
            l, g = densities of the good and of the bad ones in which the group is active
            draw n_ei_candidates from l; the one with the largest log l - log g

A group is a set of parameters that are active together: those outside all branches, and those of each branch. With
``group=False`` conditional parameters are drawn each on its own, with ``multivariate=False`` all are, as in 2011.

A trial counts with its value at the highest rung it reached, and trials are ordered by (highest rung first, value,
trial), failed ones last: as Optuna has it for pruned trials. Older bad ones weigh less (`forgetting`, hyperopt's).

Where the space has a prior, 10 / n log prior is added to the log ratio (πBO's schedule; Hvarfner et al. 2022).

Differences from Optuna: good and bad are told apart over all groups together, as in Bergstra 2011; failures are
outcomes; of more than `MOST_BAD` bad ones a random choice is used, by their weights, so that an ask takes milliseconds
however much was told.

What it does not do: in a small discrete space it may propose the same configuration twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from raytuner.actions import Answer, Proposal
from raytuner.explanation import EVIDENCE, Evidence, Explanation
from raytuner.models.adaptive_parzen import AdaptiveParzen, forgetting
from raytuner.models.parzen import Bools, Floats, Ints
from raytuner.prior import fading
from raytuner.searchers.random_search import at_random
from raytuner.space import Space
from raytuner.trial import Config, Observation, Pending

MOST_GOOD = 25
"""There are no more good ones than these."""

MOST_BAD = 400
"""Of more bad ones a random choice is used."""

_CHOSEN = int.from_bytes(b"bad", "big") << 32


@dataclass(frozen=True, slots=True)
class TPE:
    """``search_alg=TPE()``. Names and defaults are those of Optuna's TPESampler, but for multivariate and group.

    multivariate: one density over all parameters of a group; False: one for each parameter.
    group: where multivariate, the parameters of a branch have a density together; False: each its own.
    n_initial_points: how many outcomes are awaited before the model is asked.
    gamma: the share of outcomes that is good, rounded up; at most 25 are.
    n_ei_candidates: how many candidates are compared for a proposal.
    prior_weight: weight of the prior's kernel, where an outcome's is 1.
    consider_endpoints: where not multivariate, whether the ends of a range widen the outermost kernels.
    """

    multivariate: bool = True
    group: bool = True
    n_initial_points: int = 10
    gamma: float = 0.1
    n_ei_candidates: int = 24
    prior_weight: float = 1.0
    consider_endpoints: bool = False

    def __post_init__(self) -> None:
        for name in ("multivariate", "group", "consider_endpoints"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False: got {getattr(self, name)!r}")
        if self.n_initial_points < 1:
            raise ValueError(f"n_initial_points must be at least 1: got {self.n_initial_points}")
        if not 0 < self.gamma < 1:
            raise ValueError(f"gamma must be between 0 and 1: got {self.gamma}")
        if self.n_ei_candidates < 1:
            raise ValueError(f"n_ei_candidates must be at least 1: got {self.n_ei_candidates}")
        if not 0 < self.prior_weight < math.inf:
            raise ValueError(f"prior_weight must be positive: got {self.prior_weight}")
        if self.consider_endpoints and self.multivariate:
            raise ValueError("consider_endpoints is True, but multivariate=True has no use for it")

    def build(self, space: Space, seed: int) -> TPESearcher:
        if space.has_grid:
            raise ValueError("TPE() has no use for grid_search(...): write choice(...) there, or use GridSearch()")
        return TPESearcher(self, space, seed)


class TPESearcher:
    """The machine of `TPE`."""

    def __init__(self, settings: TPE, space: Space, seed: int) -> None:
        self._settings = settings
        self._space = space
        self._seed = seed
        self._groups = groups(space, settings.multivariate, settings.group)
        self._outcomes = _Outcomes(len(space))
        self._split: tuple[Ints, Ints, Floats] | None = None  # while it is up to date
        self._good: dict[int, AdaptiveParzen] = {}  # by group, likewise

    def ask(self, trial: int, until: int, pending: Sequence[Pending]) -> Answer:
        rng = np.random.default_rng([self._seed, trial])
        outcomes = self._outcomes
        if len(outcomes) < self._settings.n_initial_points or not outcomes.succeeded or not len(self._space):
            return at_random(self._space, rng, len(outcomes))
        if self._split is None:
            self._split = self._new_split()
        liars = self._liars(pending)
        for point, log_ratio in self._best(rng, liars):
            config = self._space.decode(point)
            if self._space.feasible(config):
                good, bad, _ = self._split
                counts = {"outcomes": len(outcomes), "good": len(good), "bad": len(bad), "pending": len(liars[0])}
                return Proposal(config, {"origin": "model", **counts, "log_ratio": log_ratio})
        return at_random(self._space, rng, len(outcomes))

    def tell(self, seen: Observation) -> None:
        value = math.inf if seen.value is None or math.isnan(seen.value) else seen.value
        outcomes = self._outcomes
        if seen.trial not in outcomes.rows:
            if (found := self._space.found(seen.config)) is None:
                return
            outcomes.begin(seen.trial, *found)
        if outcomes.reach(seen.trial, seen.until, value):
            self._split = None
            self._good.clear()

    def recall(self, trial: int, until: int, pending: Sequence[Pending], answer: Answer) -> None:
        """Nothing: an `ask` leaves no trace. Models are functions of what was told; kept ones only save time."""

    def explain(self, config: Config) -> Explanation | None:
        """What the model thinks of a configuration; None while there is no model. Its evidence is the good outcomes
        that are nearest in the unit cube.

        ValueError if the configuration is not in the space.
        """
        point, active = self._space.encode(config)
        outcomes = self._outcomes
        if len(outcomes) < 2 or not outcomes.succeeded or not len(self._space):
            return None
        if self._split is None:
            self._split = self._new_split()
        good, bad, weights = self._split
        ratio = 0.0
        for columns in self._groups:
            if active[columns[0]]:
                parts = ((good, np.ones(len(good))), (bad, weights))
                of_good, of_bad = (self._density(rows, weight, columns, point) for rows, weight in parts)
                ratio += of_good - of_bad
        near = np.exp(-10.0 * ((outcomes.points[good] - point) ** 2).sum(axis=1))
        shares = near / max(float(near.sum()), 1e-300)
        evidence = [
            Evidence(*outcomes.outcome(good[row]), float(shares[row])) for row in np.argsort(-shares)[:EVIDENCE]
        ]
        return Explanation("densities", len(outcomes), outcomes.top, None, None, ratio, tuple(evidence))

    def _density(self, rows: Ints, weights: Floats, columns: Ints, point: Floats) -> float:
        there = self._outcomes.active[rows, columns[0]]
        fitted = self._fit(self._outcomes.points[rows[there]][:, columns], weights[there], columns)
        return float(fitted.log_density(point[None, columns])[0])

    # ----------------------------------------------------------------------------------------------- the model

    def _new_split(self) -> tuple[Ints, Ints, Floats]:
        """Rows of the good ones and of the bad ones that are used, oldest first, and the weights of the latter."""
        n = len(self._outcomes)
        good, bad = split(self._outcomes.order(), self._settings.gamma, self._outcomes.succeeded)
        weights = forgetting(len(bad))
        if len(bad) > MOST_BAD:
            rng = np.random.default_rng([self._seed, _CHOSEN, n])
            used = np.sort(rng.choice(len(bad), size=MOST_BAD, replace=False, p=weights / weights.sum()))
            bad, weights = bad[used], np.full(MOST_BAD, weights.sum() / MOST_BAD)
        return good, bad, weights

    def _liars(self, pending: Sequence[Pending]) -> tuple[Floats, Bools]:
        """Points (k, d) of what is under way and was not heard of yet, and what is active there."""
        configs = [
            each.config
            for each in pending
            if each.step < each.until and each.trial not in self._outcomes.rows and self._space.contains(each.config)
        ]
        return self._space.encode_many(configs)

    def _best(self, rng: np.random.Generator, liars: tuple[Floats, Bools]) -> Iterator[tuple[Floats, float]]:
        """Points (d,) and their log l - log g, the best first: those of the best candidates of each group, ...

        One is enough where there are no constraints. Groups get candidates when they turn out to be active.
        """
        ranked: dict[int, tuple[Floats, Floats]] = {}
        for place in range(self._settings.n_ei_candidates):
            point, total = np.zeros(len(self._space)), 0.0
            for number, columns in enumerate(self._groups):
                if not self._active(columns[0], point):
                    continue
                if number not in ranked:
                    ranked[number] = self._candidates(rng, number, liars)
                drawn, log_ratio = ranked[number]
                point[columns] = drawn[place]
                total += float(log_ratio[place])
            yield point, total
            if not self._space.constraints:
                return

    def _active(self, j: int, point: Floats) -> bool:
        """Whether a parameter is active at a point whose choices before it are settled."""
        condition = self._space.params[j].condition
        while condition is not None:
            of, branch = condition
            if math.floor(point[of] * self._space.categories[of]) != branch:
                return False
            condition = self._space.params[of].condition
        return True

    def _candidates(self, rng: np.random.Generator, number: int, liars: tuple[Floats, Bools]) -> tuple[Floats, Floats]:
        """Candidates (m, d of the group) and their log l - log g (m,), best first."""
        assert self._split is not None
        columns, outcomes = self._groups[number], self._outcomes
        good, bad, weights = self._split
        if number not in self._good:
            rows = good[outcomes.active[good, columns[0]]]
            self._good[number] = self._fit(outcomes.points[rows][:, columns], np.ones(len(rows)), columns)
        density = self._good[number]
        there, under_way = outcomes.active[bad, columns[0]], liars[0][liars[1][:, columns[0]]]
        points = np.concatenate([outcomes.points[bad[there]][:, columns], under_way[:, columns]])
        other = self._fit(points, np.concatenate([weights[there], np.ones(len(under_way))]), columns)

        full = np.zeros((self._settings.n_ei_candidates, len(self._space)))
        full[:, columns] = density.sample(rng, len(full))
        full = snapped(self._space, full, columns)
        drawn = full[:, columns]
        log_ratio = density.log_density(drawn) - other.log_density(drawn)  # log l - log g, (m,)
        if self._space.has_prior:
            active = np.zeros(full.shape, dtype=np.bool_)
            active[:, columns] = True
            log_ratio += fading(len(outcomes)) * self._space.log_prior(full, active)
        order = np.argsort(-log_ratio, kind="stable")
        return drawn[order], log_ratio[order]

    def _fit(self, points: Floats, weights: Floats, columns: Ints) -> AdaptiveParzen:
        return AdaptiveParzen.fit(
            points,
            weights,
            self._space.categories[columns],
            by_neighbours=not self._settings.multivariate,
            prior_weight=self._settings.prior_weight,
            consider_endpoints=self._settings.consider_endpoints,
        )


def groups(space: Space, multivariate: bool, group: bool) -> list[Ints]:
    """The dimensions that have a density together, a choice's before those of what is inside its branches."""
    together: dict[object, list[int]] = {}
    for j, param in enumerate(space.params):
        alone = not multivariate or (param.condition is not None and not group)
        together.setdefault(j if alone else param.condition, []).append(j)
    return [np.array(columns) for columns in together.values()]


def split(order: Ints, gamma: float, succeeded: int) -> tuple[Ints, Ints]:
    """Of outcomes (n,), best first, the good and the bad ones, oldest first. No failed one is good."""
    n_good = min(math.ceil(gamma * len(order)), MOST_GOOD, succeeded)
    return np.sort(order[:n_good]), np.sort(order[n_good:])


def snapped(space: Space, points: Floats, columns: Ints) -> Floats:
    """Points (m, d) where these dimensions, all active, are at values that their parameters can have."""
    X = points.copy()
    for j in columns:
        X[:, j] = space.params[j].domain.snap(X[:, j])
    return X


class _Outcomes:
    """The outcome of each trial at the highest rung that it was heard of, in the order of the trials' first ones."""

    def __init__(self, d: int) -> None:
        self.rows: dict[int, int] = {}  # by trial
        self.points: Floats = np.empty((16, d))
        self.active: Bools = np.empty((16, d), dtype=np.bool_)
        self._trials: Ints = np.empty(16, dtype=np.int64)
        self._untils: Ints = np.empty(16, dtype=np.int64)
        self._values: Floats = np.empty(16)  # inf: failed

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def succeeded(self) -> int:
        """How many did not fail."""
        return int((self._values[: len(self)] < math.inf).sum())

    def begin(self, trial: int, point: Floats, active: Bools) -> None:
        """Make room for a trial, whose outcome must follow."""
        row = len(self)
        if row == len(self._values):
            for name in ("points", "active", "_trials", "_untils", "_values"):
                old = getattr(self, name)
                setattr(self, name, np.concatenate([old, np.empty_like(old)]))
        self.rows[trial] = row
        self.points[row], self.active[row] = point, active
        self._trials[row], self._untils[row] = trial, -1

    def reach(self, trial: int, until: int, value: float) -> bool:
        """Take note of an outcome; whether it is at a higher rung than those before."""
        row = self.rows[trial]
        if until <= self._untils[row]:
            return False
        self._untils[row], self._values[row] = until, value
        return True

    @property
    def top(self) -> int:
        """The highest rung of all."""
        return int(self._untils[: len(self)].max())

    def outcome(self, row: int) -> tuple[int, int, float | None]:
        """Trial, rung and value (None: it failed)."""
        value = float(self._values[row])
        return int(self._trials[row]), int(self._untils[row]), value if math.isfinite(value) else None

    def order(self) -> Ints:
        """Rows (n,), best first."""
        n = len(self)
        failed = self._values[:n] == math.inf
        return np.lexsort((self._trials[:n], self._values[:n], -self._untils[:n], failed))
