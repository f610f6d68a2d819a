"""BOHB's model: the configuration to try next, from kernel densities of the good and the bad ones.

Falkner, Klein & Hutter 2018, "BOHB: Robust and Efficient Hyperparameter Optimization at Scale" (arXiv:1807.01774),
algorithm 2 and equations 2 and 3 (what l and g are, and how many outcomes each has). The other half of BOHB is
`raytuner.schedulers.HyperBandScheduler`; any scheduler does, the searcher only sees which rung an outcome belongs to.

    with probability random_fraction, or while there is no model: a random configuration
    else, at the highest rung b with N_b >= N_min + 2 outcomes:
        N_good = max(N_min, q N_b),  N_bad = max(N_min, N_b - N_good)
        l, g = densities of the N_good best and of the N_bad worst: they overlap while N_b < 2 N_min
        draw num_samples candidates from l, numeric bandwidths times bandwidth_factor; the one with the largest l / g

Where the paper is silent: failures are outcomes, worse than every value, as in hpbandster; a rung where all failed
has no model; ties are broken by trial number, so that a model does not depend on the order of arrival; the first
outcome of a trial at a rung counts, later ones do not; a configuration from outside the space (a fork's, perturbed
beyond a bound) has no place in the cube and is passed over. Differences from hpbandster are stated in
`raytuner.models.parzen`; also, hpbandster cuts the bad ones off where they would overlap with the good ones.

Candidates are compared at the points drawn; integers and quantised floats are rounded afterwards, as in hpbandster.

Not in the paper: where the space has constraints, the best feasible candidate is proposed, and a random configuration
if none is. Where it has priors, (beta / n) log prior is added to log l / g, as in Hvarfner et al. 2022, "piBO:
Augmenting Acquisition Functions with User Beliefs for Bayesian Optimization" (arXiv:2204.11051), eq. 6, beta = 10, n
the outcomes of all rungs; and random configurations come from the prior with probability 1/2 beta / (beta + n), from
the whole space else: so both fade as outcomes come in.

What it does not do: it does not look at what is pending, and in a small discrete space it may propose the same
configuration twice; both as in the paper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from raytuner.actions import Answer, Proposal
from raytuner.explanation import EVIDENCE, Evidence, Explanation
from raytuner.models.parzen import Bools, Floats, Parzen
from raytuner.prior import fading
from raytuner.searchers.random_search import at_random
from raytuner.space import Space
from raytuner.trial import Config, Observation, Pending


class KDESearcher:
    """The machine of ``BOHB(model="kde")``.

    ``least``: N_min. The others: as in `raytuner.searchers.BOHB`.
    """

    def __init__(
        self,
        space: Space,
        seed: int,
        least: int,
        top_n_percent: float,
        num_samples: int,
        random_fraction: float,
        bandwidth_factor: float,
        min_bandwidth: float,
    ) -> None:
        self._space = space
        self._seed = seed
        self._least = least
        self._top_n_percent = top_n_percent
        self._num_samples = num_samples
        self._random_fraction = random_fraction
        self._bandwidth_factor = bandwidth_factor
        self._min_bandwidth = min_bandwidth
        self._rungs: dict[int, _Rung] = {}  # by `until`

    def ask(self, trial: int, until: int, pending: Sequence[Pending]) -> Answer:
        rng = np.random.default_rng([self._seed, trial])
        rung = self._highest_rung()
        if rng.random() < self._random_fraction or rung is None:
            return at_random(self._space, rng, self._told)

        outcomes = self._rungs[rung]
        if outcomes.model is None:
            outcomes.model = self._fit(outcomes)
        good, bad = outcomes.model
        drawn = good.sample(rng, self._num_samples, self._bandwidth_factor)  # (num_samples, d)
        active = self._space.snap(drawn)[1]  # not by decoding: that would call the user's `sample_from` for each
        log_ratio = good.log_density(drawn, active) - bad.log_density(drawn, active)  # log l / g, (num_samples,)
        score = log_ratio
        if self._space.has_prior:
            score = log_ratio + fading(self._told) * self._space.log_prior(drawn, active)
        found = self._best_feasible(drawn, score)
        if found is None:
            return at_random(self._space, rng, self._told)
        best, config = found
        note = {
            "origin": "model",
            "rung": rung,
            "good": len(good.points),
            "bad": len(bad.points),
            "log_ratio": float(log_ratio[best]),
        }
        return Proposal(config, note)

    def explain(self, config: Config) -> Explanation | None:
        """What the model thinks of a configuration; None while there is no model.

        ValueError if the configuration is not in the space.
        """
        point, active = self._space.encode(config)
        until = self._highest_rung()
        if until is None:
            return None
        rung = self._rungs[until]
        if rung.model is None:
            rung.model = self._fit(rung)
        good, bad = rung.model
        kernels = np.exp(good.log_kernels(point[None], active[None])[0])
        shares = kernels / max(float(kernels.sum()), 1e-300)
        trials, values = list(rung.values), list(rung.values.values())
        best = np.lexsort((trials, values))[: len(shares)]
        evidence = [
            Evidence(trials[row], until, values[row] if math.isfinite(values[row]) else None, float(share))
            for share, row in sorted(zip(shares, best, strict=True), key=lambda each: -each[0])[:EVIDENCE]
        ]
        ratio = float((good.log_density(point[None], active[None]) - bad.log_density(point[None], active[None]))[0])
        return Explanation("densities", len(trials), until, None, None, ratio, tuple(evidence))

    def _best_feasible(self, drawn: Floats, score: Floats) -> tuple[int, Config] | None:
        """The candidate of the highest score (m,) that is feasible, and its configuration. Few are decoded: that calls
        the user's functions."""
        for place in np.argsort(-score, kind="stable").tolist():
            config = self._space.decode(drawn[place])
            if self._space.feasible(config):
                return place, config
        return None

    @property
    def _told(self) -> int:
        """How many outcomes there are, of all rungs."""
        return sum(len(rung.values) for rung in self._rungs.values())

    def tell(self, seen: Observation) -> None:
        value = math.inf if seen.value is None or math.isnan(seen.value) else seen.value
        if (found := self._space.found(seen.config)) is not None:
            self._rungs.setdefault(seen.until, _Rung()).add(seen.trial, value, *found)

    def recall(self, trial: int, until: int, pending: Sequence[Pending], answer: Answer) -> None:
        """Nothing: an `ask` leaves no trace. Models are functions of what was told; kept ones only save time."""

    def _highest_rung(self) -> int | None:
        """The rung to model, None while no rung has enough outcomes."""
        enough = [
            until
            for until, rung in self._rungs.items()
            if len(rung.values) >= self._least + 2 and min(rung.values.values()) < math.inf
        ]
        return max(enough, default=None)

    def _fit(self, rung: _Rung) -> tuple[Parzen, Parzen]:
        """The densities l and g of a rung's good and bad outcomes."""
        order = np.lexsort((list(rung.values), list(rung.values.values())))  # best first, by value and then by trial
        n_good, n_bad = split(len(order), self._least, self._top_n_percent)
        shape = (len(order), len(self._space))  # (N_b, d)
        points, active = np.concatenate(rung.points).reshape(shape), np.concatenate(rung.active).reshape(shape)
        good, bad = (
            Parzen.fit(points[rows], active[rows], self._space.categories, self._min_bandwidth)
            for rows in (order[:n_good], order[-n_bad:])
        )
        return good, bad


def split(n: int, least: int, top_n_percent: float) -> tuple[int, int]:
    """How many of ``n`` outcomes are good and how many are bad (N_b,l and N_b,g in the paper), at least ``least``."""
    good = max(least, int(top_n_percent * n // 100))
    return good, max(least, n - good)


@dataclass(slots=True)
class _Rung:
    """The outcomes at one rung, one per trial, and their model while it is up to date."""

    values: dict[int, float] = field(default_factory=dict)  # by trial; inf: failed
    points: list[Floats] = field(default_factory=list)  # each (d,), in the order of `values`
    active: list[Bools] = field(default_factory=list)  # each (d,)
    model: tuple[Parzen, Parzen] | None = None

    def add(self, trial: int, value: float, point: Floats, active: Bools) -> None:
        if trial in self.values:
            return
        self.values[trial] = value
        self.points.append(point)
        self.active.append(active)
        self.model = None
