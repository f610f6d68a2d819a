"""The model of PB2: the settings with which a population member should go on, from how much settings improved so far.

Parker-Holder, Nguyen & Roberts 2020, "Provably Efficient Online Hyperparameter Optimization with Population-Based
Bandits" (arXiv:2002.02518), algorithm 1, *explore*; for categorical parameters its extension PB2-Mix, Parker-Holder,
Nguyen, Desai & Roberts 2021 (arXiv:2106.15883). Here are pure functions; who is replaced by whom, and when, is the
business of `raytuner.schedulers`.

    while there are fewer than LEAST steps: a random configuration. Else
    1. each categorical parameter, a choice before what is inside its branches:
           draw an option from TV.EXP3.M's probabilities, computed anew from all steps (`probabilities`)
    2. the numbers that are active then, given the options:
           x = argmax mu(x) + sqrt(beta) sigma(x)                                             time-varying GP-UCB
           beta = c1 + max(0, log(c2 n)),  c1 = 0.2,  c2 = 0.4,  n steps

mu and sigma are of a Gaussian process over (time, level, settings), at the present time and at the level of the donor,
whose weights the member has now: both are a fixed context, as in the authors' code and in Ray. The level is the metric
before the step. What others run meanwhile, and were just given, counts as seen for sigma but not for mu (GP-BUCB). The
kernel is a product, (1 - eps)^(|t - t'| / 2) times a mixture as in CoCaBO of a Matern kernel over level and numbers and
an overlap kernel over options (`raytuner.models.gaussian_process`).

Where the papers are silent or we differ:

- beta: the paper writes log(c2 t), t the iteration; n is what the authors' code and Ray have. With t a small population
  takes the noise of its first rounds for a signal: in `tests`, of 30 runs after an optimum that moves, the worst gained
  0.08 with t and 0.62 with n, at random it would be 0.20. sigma is a deviation, as in the paper; their code and Ray
  multiply by the variance. Theirs is a squared exponential with one length scale for everything.
- Time is counted in intervals, so eps is a forgetting per interval whatever the length of the run; Ray scales time to
  [0, 1], where eps <= 0.5 forgets at most 29 %. The level is replaced by its quantile among the steps', which is
  bounded whatever the metric; Ray scales to [0, 1] by the extremes.
- Improvements count relative to what was typical at their time (`relative`); in the paper as they are. A loss improves
  much at first and little later: then the model sees only when a step was, and not what it did.
- Then they are standardised by median and quartiles and clipped to +-2 (`bounded`); Ray's clip comes after mean and
  deviation, so that one run that diverges makes all others equal.
- TV.EXP3.M: see `probabilities`.
- A parameter of a branch that is not chosen stands at the middle of its range, a choice has an option more for this. So
  two points which both lack it are equal there, and what was in its coordinate does not matter.
- Integers and quantised floats are compared at the values they decode to.
- The newest `NEWEST` steps count (Ray: 1,000); the kernel's parameters are fitted to the newest `FITTED` of them.

Deterministic, given the arguments and the state of ``rng``; LAPACK's last digits depend on its threads, so numbers are
rounded to 1e-4 of their range, within which these mostly vanish.
"""

# Notation, here and in the tests:
#   d        dimensions of the space      n   steps      m   queries or candidates      r   options of a parameter
#   x (d,)   a point of the unit cube, as `Space` encodes it; X (n, d)      A (n, d)   which coordinates are active
#   inputs   of the process, (n, 2 + d): time in intervals; level in [0, 1]; settings, an option by number, -1: inactive

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

from raytuner.held import Held
from raytuner.models.gaussian_process import (
    Decay,
    Floats,
    GaussianProcess,
    Kernel,
    Matern,
    Mix,
    Overlap,
    Prior,
    Product,
    likeliest,
)
from raytuner.models.threads import one_thread
from raytuner.space import Choice, Function, Numeric, Ordinal, Space, plain, same
from raytuner.trial import Config

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

LEAST = 3
"""Fewer steps than this are no model."""

NEWEST = 500
FITTED = 100
"""How many steps count, and to how many the kernel's parameters are fitted: what bounds the time of an answer."""

CLIP = 2.0
"""The largest improvement, in robust standard deviations."""

EXPLORATION = 0.2
"""gamma of EXP3: the share of draws that are uniform over the options."""

FORGETTING = 0.05
"""alpha of EXP3.S: the share of weight that is spread over all options after each round."""

RATE = Prior(math.log(0.05), 1.0)
"""Of time: -log(1 - eps) / 2 per interval; eps is 0.1 where the data say nothing, the value Ray starts from."""


@dataclass(frozen=True, slots=True)
class Point:
    """Settings in the unit cube. Made by `encode`."""

    x: Floats  # (d,)
    active: Bools  # (d,)


@dataclass(frozen=True, slots=True)
class Step:
    """What one member did from one of its turns to the next.

    ``time``: when, in perturbation intervals; steps whose times round to the same integer are one round.
    ``previous``: the value before the step, lower is better. ``gain``: improvement per interval, previous - new.
    """

    time: float
    point: Point
    previous: float
    gain: float


@dataclass(frozen=True, slots=True)
class Where:
    """Where the member stands that is to go on: the time, as in `Step`, and the value of the weights it has now."""

    time: float
    value: float


def suggest(
    space: Space, seen: Sequence[Step], now: Where, pending: Sequence[Point], base: Config, rng: np.random.Generator
) -> dict[str, Any]:
    """The next configuration of a member: of what is in ``space`` only.

    ``pending``: what other members run, and what was chosen for them in this round. ``base``: the donor's
    configuration, near which candidates are looked for too; more may be in it than in the space. Steps whose values are
    not finite are passed over.
    """
    _check(space, seen, pending, now)
    finite = [step for step in seen if math.isfinite(step.gain) and math.isfinite(step.previous)]
    steps = sorted(finite, key=lambda step: step.time)[-NEWEST:]
    if len(steps) < LEAST:
        return space.sample(rng)
    past = _Past.of(space, steps)
    x, active = _options(space, past, rng)
    if (active & (space.categories == 0)).any():
        with one_thread():
            x = _numbers(space, past, now, pending, Point(x, active), encode(space, base), rng)
    return space.decode(x)


# ----------------------------------------------------------------------------------------------- what is known so far


@dataclass(frozen=True, slots=True)
class _Past:
    """Steps as arrays, oldest first."""

    times: Floats  # (n,)
    rounds: Ints  # (n,)
    levels: Floats  # (n,), the previous values
    gains: Floats  # (n,), `relative` and `bounded`
    settings: Floats  # (n, d), as in `_settings`

    @classmethod
    def of(cls, space: Space, steps: Sequence[Step]) -> _Past:
        times = np.array([step.time for step in steps])
        rounds = np.rint(times).astype(np.int64)
        members = round(len(steps) / len(np.unique(rounds)))
        return cls(
            times=times,
            rounds=rounds,
            levels=np.array([step.previous for step in steps]),
            gains=bounded(relative(np.array([step.gain for step in steps]), max(members, 4))),
            settings=_settings(space, *_stacked(space, [step.point for step in steps])),
        )

    def quantile(self, values: Floats) -> Floats:
        """Where ``values`` (m,) are among the levels, in [0, 1]."""
        levels = np.sort(self.levels)
        below, up_to = (np.searchsorted(levels, values, side=side) for side in ("left", "right"))
        return (below + up_to) / (2.0 * len(levels))


def relative(gains: Floats, neighbours: int) -> Floats:
    """Improvements (n,), oldest first, in units of the ninth decile of sizes around each: so many before and after.

    Not the median, which is noise where most settings do nothing.
    """
    sizes = np.abs(gains) / max(float(np.abs(gains).max()), sys.float_info.min)
    n, width = len(gains), min(len(gains), 2 * neighbours + 1)
    around = np.lib.stride_tricks.sliding_window_view(sizes, width)  # (n + 1 - width, width)
    decile = np.quantile(around, 0.9, axis=1)
    typical = np.where(decile > 0.0, decile, around.mean(axis=1))  # hardly any changed at all
    first = np.clip(np.arange(n) - neighbours, 0, n - width)
    ratio: Floats = np.sign(gains) * sizes / np.maximum(typical[first], 1e-100)
    return ratio


def bounded(gains: Floats) -> Floats:
    """Improvements (n,) about their median, in robust standard deviations, clipped to +-`CLIP`. Constant ones: 0."""
    largest = np.abs(gains).max()
    if largest == 0.0:
        return np.zeros(len(gains))
    gains = gains / largest
    low, high = np.quantile(gains, [0.25, 0.75], method="nearest")  # of four, both are of the middle two
    deviation = (high - low) / 1.349  # of a normal distribution with these quartiles
    if deviation <= 1e-12 * max(abs(low), abs(high)):  # half of them are equal
        deviation = gains.std()
        if deviation < 1e-12:
            return np.zeros(len(gains))
    z: Floats = np.clip((gains - np.median(gains)) / deviation, -CLIP, CLIP)
    return z


def _settings(space: Space, X: Floats, A: Bools) -> Floats:
    """Points as the process sees them (n, d): options by number, what is inactive at -1 or in the middle."""
    r = space.categories
    options = np.minimum(np.floor(X * r), r - 1.0)
    seen: Floats = np.where(r > 0, np.where(A, options, -1.0), np.where(A, X, 0.5))
    return seen


def _stacked(space: Space, points: Sequence[Point]) -> tuple[Floats, Bools]:
    """X and A (n, d) of n points."""
    shape = (len(points), space.dim)
    X, A = [point.x for point in points], [point.active for point in points]
    return np.array(X, dtype=np.float64).reshape(shape), np.array(A, dtype=np.bool_).reshape(shape)


# ------------------------------------------------------------------------------------------- categorical parameters


def _options(space: Space, past: _Past, rng: np.random.Generator) -> tuple[Floats, Bools]:
    """A point (d,) with an option drawn for each choice that is active, and what is active with these options."""
    x, active = np.zeros(space.dim), np.zeros(space.dim, dtype=np.bool_)
    drawn: dict[int, int] = {}
    for j, param in enumerate(space.params):
        if param.condition is not None and drawn.get(param.condition[0]) != param.condition[1]:
            continue
        active[j] = True
        if isinstance(param.domain, Choice):
            tried = past.settings[:, j] >= 0.0
            p = probabilities(
                past.settings[tried, j].astype(np.int64), past.rounds[tried], past.gains[tried], param.categories
            )
            drawn[j] = min(int(np.searchsorted(p.cumsum(), rng.random(), side="right")), param.categories - 1)
            x[j] = param.domain.coordinate(drawn[j])
    return x, active


def probabilities(options: Ints, rounds: Ints, gains: Floats, r: int) -> Floats:
    """How likely each of ``r`` options should be drawn next (r,), by TV.EXP3.M from all draws so far, (n,) each.

    TV.EXP3.M is EXP3.M of Uchiya et al. 2010, which plays B options at once, with the forgetting of EXP3.S of Auer et
    al. 2002. A round of B members with gains g_b in [0, 1] gives

        p_c = (1 - gamma) w_c + gamma / r                                       w: weights, summing to 1
        G_c = sum over members b with option c of (g_b - mean g) / (B p_c)
        w_c <- (1 - alpha) w_c exp(B G_c / r) / sum + alpha / r

    Ours differs from the paper, for a population that has tens of rounds of few members, of which most keep what they
    have and good ones are copied: gains are about the round's mean, or what is frequent would grow by its frequency
    and what is early by being early; the learning rate is 1 and not gamma, which adapts too late; gamma and
    alpha are constants, as the number of rounds to come is not known; members share options, so each draw is
    independent, and the cap with which EXP3.M draws B different ones (DepRound) is not needed, as in the authors'
    code where B >= r.
    """
    unit = (gains / CLIP + 1.0) / 2.0
    w = np.full(r, 1.0 / r)
    for each in np.unique(rounds):
        c, g = options[rounds == each], unit[rounds == each]  # (B,)
        p = (1.0 - EXPLORATION) * w + EXPLORATION / r
        exponent = np.bincount(c, weights=g - g.mean(), minlength=r) / (p * r)
        w = w * np.exp(exponent - exponent.max())
        w = (1.0 - FORGETTING) * w / w.sum() + FORGETTING / r
    return (1.0 - EXPLORATION) * w + EXPLORATION / r


# ------------------------------------------------------------------------------------------------------------ numbers

UNIFORM, NEAR = 400, 100
"""Candidates: so many drawn from the cube, and so many around the donor's settings."""

REFINED = 3
"""How many of the best candidates are improved by climbing."""

WIDTH = 0.1
"""Standard deviation of the candidates around the donor's settings, where 1 is a parameter's range."""


def _numbers(
    space: Space,
    past: _Past,
    now: Where,
    pending: Sequence[Point],
    chosen: Point,
    base: Point,
    rng: np.random.Generator,
) -> Floats:
    """The point (d,) with the options of ``chosen`` and the numbers of the largest upper confidence bound."""
    free = np.flatnonzero(chosen.active & (space.categories == 0))  # (k,)
    bound = _Bound.of(space, past, now, pending, chosen)

    X = np.tile(chosen.x, (UNIFORM + NEAR, 1))  # (m, d)
    u, z = rng.random((UNIFORM, len(free))), rng.normal(size=(NEAR, len(free)))
    donor = np.where(base.active, base.x, 0.5)[free]
    X[:, free] = np.concatenate([u, np.clip(donor + WIDTH * z, 0.0, 1.0)])
    X = _settled(space, X, free)
    order = np.argsort(-bound.at(X), kind="stable")
    best = X[order[:REFINED]]
    climbed = _settled(space, np.array([_climb(bound, x, free) for x in best]), free)
    finalists = np.concatenate([best, climbed])
    winner: Floats = finalists[int(bound.at(finalists).argmax())]
    return winner


@dataclass(frozen=True, slots=True)
class _Bound:
    """The upper confidence bound mu + sqrt(beta) sigma, at one time, one level and one set of options."""

    space: Space
    process: GaussianProcess
    width: float
    time: float
    level: float
    active: Bools  # (d,)

    @classmethod
    def of(cls, space: Space, past: _Past, now: Where, pending: Sequence[Point], chosen: Point) -> _Bound:
        kernel = _kernel(space)
        inputs = np.column_stack([past.times, past.quantile(past.levels), past.settings])
        theta = likeliest(kernel, inputs[-FITTED:], past.gains[-FITTED:])
        process = GaussianProcess.of(kernel, theta, inputs, past.gains)
        level = float(past.quantile(np.array([now.value]))[0])
        if pending:
            context = np.tile([now.time, level], (len(pending), 1))
            process = process.given(np.column_stack([context, _settings(space, *_stacked(space, pending))]))
        beta = 0.2 + max(0.0, math.log(0.4 * len(past.times)))
        return cls(space, process, math.sqrt(beta), now.time, level, chosen.active)

    def at(self, X: Floats) -> Floats:
        """Of points (m, d); (m,)."""
        context = np.tile([self.time, self.level], (len(X), 1))
        inputs = np.column_stack([context, _settings(self.space, X, self.active)])
        mean, deviation = self.process.predict(inputs)
        return mean + self.width * deviation


def _kernel(space: Space) -> Kernel:
    numbers = tuple(2 + j for j in np.flatnonzero(space.categories == 0).tolist())
    options = tuple(2 + j for j in np.flatnonzero(space.categories > 0).tolist())
    matern = Matern((1, *numbers))
    return Product(Decay(0, RATE), Mix(matern, Overlap(options)) if options else matern)


def _climb(bound: _Bound, x: Floats, free: Ints) -> Floats:
    """A local maximum of the bound uphill from x (d,), by its ``free`` coordinates; central differences."""
    h = 1e-4
    steps = np.concatenate([np.zeros((1, len(free))), h * np.eye(len(free)), -h * np.eye(len(free))])  # (1 + 2k, k)

    def depth(z: Floats) -> tuple[float, Floats]:
        X = np.tile(x, (len(steps), 1))
        X[:, free] = z + steps
        values = -bound.at(X)
        forward, backward = values[1:].reshape(2, -1)
        return float(values[0]), (forward - backward) / (2.0 * h)

    cube = [(0.0, 1.0)] * len(free)
    found = minimize(depth, x[free], jac=True, method="L-BFGS-B", bounds=cube, options={"maxiter": 15})
    top = x.copy()
    top[free] = found.x
    return top


def _settled(space: Space, X: Floats, free: Ints) -> Floats:
    """Points (m, d) moved to where the values that they decode to are encoded."""
    X = X.copy()
    for j in free.tolist():
        X[:, j] = space.params[j].domain.snap(X[:, j].round(4))
    return X


# ----------------------------------------------------------------------------------------------------------- encoding


def encode(space: Space, config: Config) -> Point:
    """The point of a configuration that may come from elsewhere.

    As `Space.encode`, but numbers beyond their bounds count as the nearest value of their domain, and what the space
    does not know is passed over. A parameter that is missing, or whose value has no place, is not active.
    """
    x, active = np.zeros(space.dim), np.zeros(space.dim, dtype=np.bool_)
    found: dict[int, int] = {}
    for j, param in enumerate(space.params):
        if param.condition is not None and found.get(param.condition[0]) != param.condition[1]:
            continue
        value = _inside(config, param.path)
        if isinstance(param.domain, Choice):
            fits = [
                i
                for exact in (True, False)
                for i, o in enumerate(param.domain.options)
                if _fits(space, o, value, exact)
            ]
            if fits:
                found[j] = fits[0]
                x[j], active[j] = param.domain.coordinate(fits[0]), True
        elif isinstance(param.domain, Ordinal):
            if param.domain.contains(value):
                x[j], active[j] = param.domain.encode(value), True
        elif isinstance(param.domain, Numeric) and _is_number(value):
            x[j], active[j] = _coordinate(param.domain, value), True
    return Point(x, active)


def _coordinate(domain: Numeric, value: float) -> float:
    """Of the value of a domain that is nearest to a number."""
    within = min(max(value, domain.decode(0.0)), domain.decode(1.0))
    return min(max(domain.encode(domain.nearest(within)), 0.0), 1.0)


def _inside(value: Any, path: tuple[str, ...]) -> Any:
    """What stands at a path of a configuration; `_NOTHING` if nothing does."""
    for key in path:
        if isinstance(value, Mapping):
            value = value.get(key, _NOTHING)
        elif isinstance(value, list | tuple) and key.isdecimal() and int(key) < len(value):
            value = value[int(key)]
        else:
            return _NOTHING
    return value


def _fits(space: Space, option: Any, value: Any, exact: bool) -> bool:
    """Whether a value may be one of an option of a choice; ``exact``: with all numbers within their bounds."""
    match option:
        case Numeric():
            return option.contains(value) if exact else _is_number(value)
        case Ordinal():
            return option.contains(value)
        case Choice():
            return any(_fits(space, each, value, exact) for each in option.options)
        case Function():
            return value is not _NOTHING
        case Mapping():
            return (
                isinstance(value, Mapping)
                and value.keys() == option.keys()
                and all(_fits(space, option[key], value[key], exact) for key in option)
            )
        case list() | tuple():
            return (
                type(value) is type(option)
                and len(value) == len(option)
                and all(_fits(space, *pair, exact) for pair in zip(option, value, strict=True))
            )
    if isinstance(value, Held):
        return any(each is option and token.digest == value.digest for token, each in space.objects.items())
    return same(plain(option, "", lambda *_: _NOTHING), value)


_NOTHING = object()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _check(space: Space, seen: Sequence[Step], pending: Sequence[Point], now: Where) -> None:
    for point in [*(step.point for step in seen), *pending]:
        if point.x.shape != (space.dim,) or point.active.shape != (space.dim,):
            raise ValueError(
                f"points of seen and pending must have shape ({space.dim},), as the space has: "
                f"got {point.x.shape} and {point.active.shape}"
            )
    if not (math.isfinite(now.time) and math.isfinite(now.value)):
        raise ValueError(f"now must hold finite numbers: got {now}")
    for step in seen:
        if not math.isfinite(step.time):
            raise ValueError(f"the time of a step must be a finite number: got {step.time}")
