"""Learning curves: what simulated trials say. For `raytuner.simulate`, benchmarks and tests.

`Shape` is a curve by name over any space, `Recorded` the curves of a study that was run, `Own` the user's function. All
are pure functions of a trial (its number and configuration) and a step: nothing is drawn at run time.

Notation, for shapes; lower is better, and 1 is what a trial that learned nothing says:

    x       the configuration as a point of the unit cube (`Space.encode`); only active coordinates count
    f       how far x is from an optimum that nobody knows (drawn from the seed): 0 at it, 1 as far as can be
    g       another number from 0 to 1 that x has, its temperament; it changes smoothly with x
    s, T    the step and the full budget; u = s / T

    power        f + (1 - f) (1 + s)^-0.7                    fast, then slow; nobody ever overtakes anybody
    exponential  f + (1 - f) exp(-(5 + 10 g) u)              some are quicker than others: early steps say little
    crossing     f + (1 - f) exp(-(3 + 27 f) u)              the worse the end, the quicker the start
    late         f + (1 - f) / (1 + (u / (0.1 + 0.5 g))^6)   nothing happens for long, then all at once
    noisy        power, and each report is off by a normal deviate of 0.05
    overfit      power + g max(0, u - 0.25)^2                after a quarter of the budget it gets worse again
    diverging    power, but NaN where u > 5 (1 - g)          a fifth of all trials do not come to their end

What is not here: curves that depend on what a trial was before it was forked; a fork has the curve of its own
configuration, from the step at which it begins.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from raytuner.objective import AUTOMATIC
from raytuner.space import Choice, Ordinal, Space, pack, same
from raytuner.trial import Config, Metrics, Trial


class Curve(Protocol):
    """What trials say. ``sound``: whether every value is sure to be a finite number."""

    sound: bool

    def at(self, trial: Trial, step: int) -> Metrics:
        """The metrics of a trial at a step."""


# ------------------------------------------------------------------------------------------------- curves by name


def power(f: float, g: float, s: float, T: float) -> float:
    return f + (1 - f) * math.pow(1 + s, -0.7)


def exponential(f: float, g: float, s: float, T: float) -> float:
    return f + (1 - f) * math.exp(-(5 + 10 * g) * s / T)


def crossing(f: float, g: float, s: float, T: float) -> float:
    return f + (1 - f) * math.exp(-(3 + 27 * f) * s / T)


def late(f: float, g: float, s: float, T: float) -> float:
    return f + (1 - f) / (1 + (s / T / (0.1 + 0.5 * g)) ** 6)


def overfit(f: float, g: float, s: float, T: float) -> float:
    return power(f, g, s, T) + g * max(0.0, s / T - 0.25) ** 2


def diverging(f: float, g: float, s: float, T: float) -> float:
    return math.nan if s / T > 5 * (1 - g) else power(f, g, s, T)


SHAPES: Mapping[str, Callable[[float, float, float, float], float]] = {
    "power": power,
    "exponential": exponential,
    "crossing": crossing,
    "late": late,
    "noisy": power,
    "overfit": overfit,
    "diverging": diverging,
}
"""The formulas at the head of this file: of f, g, s and T."""

_NOISE = {"noisy": 0.05}


class Shape:
    """A curve by name over a space: ``Shape("crossing", space, steps=81)``.

    Args:
        name: one of `SHAPES`.
        steps: the full budget, T.
        metric, mode: what it is called, and whether lower is better; with "max" trials report 1 minus the formula.
        seed: of the optimum, of what matters how much, and of the noise.
        noise: standard deviation of what is added to each report; by default what belongs to the name.
    """

    def __init__(
        self,
        name: str,
        space: Space,
        steps: int,
        *,
        metric: str = "loss",
        mode: str = "min",
        seed: int = 0,
        noise: float | None = None,
    ) -> None:
        if name not in SHAPES:
            raise ValueError(f"curve must be one of {', '.join(SHAPES)}, or a function; got {name!r}")
        if type(steps) is not int or steps < 1:
            raise ValueError(f"steps must be a whole number of at least 1, got {steps!r}")
        if mode not in ("min", "max"):
            raise ValueError(f"mode must be 'min' or 'max', got {mode!r}")
        if noise is not None and not 0 <= noise < math.inf:
            raise ValueError(f"noise must be a number of at least 0, got {noise!r}")
        self.name, self.steps, self.metric, self.mode = name, steps, metric, mode
        self.sound = name != "diverging"
        self._formula = SHAPES[name]
        self._noise = _NOISE.get(name, 0.0) if noise is None else noise
        self._space, self._seed = space, seed
        rng = np.random.default_rng([seed, int.from_bytes(b"curve", "big")])
        self._dims = [_Dimension.drawn(rng, categories) for categories in space.categories.tolist()]
        self._turned = float(rng.random())
        self._placed: dict[int, tuple[Config, float, float]] = {}  # by trial: what it was asked for last

    def at(self, trial: Trial, step: int) -> Metrics:
        known = self._placed.get(trial.id)
        if known is None or known[0] is not trial.config:
            self._placed[trial.id] = known = (trial.config, *self._place(trial.config))
        value = self._formula(known[1], known[2], step, self.steps)
        if self._noise:
            value += self._noise * _NORMAL.inv_cdf(chance(self._seed, trial.id, step))
        return {self.metric: 1 - value if self.mode == "max" else value}

    def value(self, config: Config, step: int | None = None) -> float:
        """What a trial of this configuration would report, were there no noise; at the full budget if no step is given.
        The best possible is about 0, with mode "max" about 1."""
        value = self._formula(*self._place(config), step or self.steps, self.steps)
        return 1 - value if self.mode == "max" else value

    def _place(self, config: Config) -> tuple[float, float]:
        """f and g."""
        x, active = point_of(self._space, config)
        far = weight = 0.0
        turn = self._turned
        for dim, u, on in zip(self._dims, x.tolist(), active.tolist(), strict=True):
            if on:
                far += dim.weight * dim.distance(u) ** 2
                weight += dim.weight
                turn += dim.turns * u
        return math.sqrt(far / weight) if weight else 0.0, abs(2 * (turn % 1.0) - 1)


_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True)
class _Dimension:
    """One coordinate: how much it matters to f, where its best is, and how often g goes up and down along it.

    ``penalties``: of each option of a choice how bad it is; the best one's is 0. Empty for a number.
    """

    weight: float
    best: float
    turns: float
    penalties: tuple[float, ...]

    @classmethod
    def drawn(cls, rng: np.random.Generator, categories: int) -> _Dimension:
        weight, best, turns = float(rng.exponential()), float(rng.uniform(0.15, 0.85)), float(rng.uniform(-2, 2))
        penalties = rng.uniform(0.2, 1.0, size=categories)
        if categories:
            penalties[min(int(best * categories), categories - 1)] = 0.0
        return cls(weight, best, turns, tuple(penalties.tolist()))

    def distance(self, u: float) -> float:
        """From the best, at most 1."""
        if self.penalties:
            return self.penalties[min(int(u * len(self.penalties)), len(self.penalties) - 1)]
        return abs(u - self.best) / max(self.best, 1 - self.best)


def point_of(space: Space, config: Config) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The configuration as a point x (d,) and active (d,); one from outside the space is moved to its edge.

    Such are forks that were perturbed beyond a bound. What is not known of them is inactive.
    """
    try:
        return space.encode(config)
    except ValueError:
        pass
    x, active = np.zeros(space.dim), np.zeros(space.dim, dtype=np.bool_)
    values = space.flat(config)
    for place, param in enumerate(space.params):
        value = values.get(param.name)
        if isinstance(param.domain, Choice):
            same_as = [number for number, option in enumerate(param.domain.options) if same(option, value)]
            if same_as:
                x[place], active[place] = param.domain.coordinate(same_as[0]), True
        elif isinstance(param.domain, Ordinal):
            if param.domain.contains(value):
                x[place], active[place] = param.domain.encode(value), True
        elif isinstance(value, int | float) and not isinstance(value, bool):
            active[place] = True
            with suppress(ValueError):  # the logarithm of what is not positive
                x[place] = min(max(param.domain.encode(value), 0.0), 1.0)
    return x, active


def chance(*words: int) -> float:
    """The number between 0 and 1 that belongs to these integers, everywhere and always.

    NumPy's generators, which all else here draws from, take ten microseconds to make: too long to ask at every step.
    """
    return unit(mixed(0, *words))


def mixed(state: int, *words: int) -> int:
    """Words mixed into a state of 64 bits (splitmix64, Steele et al. 2014)."""
    for word in words:
        state = (state + word + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


def unit(state: int) -> float:
    """A state as a number between 0 and 1; neither is ever reached."""
    return ((state >> 11) + 0.5) * 2.0**-53


_MASK = 2**64 - 1

# ------------------------------------------------------------------------------------------- curves of other kinds


class Own:
    """The user's function ``(config, step) -> metrics``."""

    sound = False

    def __init__(self, curve: Callable[[Config, int], Metrics]) -> None:
        self._curve = curve

    def at(self, trial: Trial, step: int) -> Metrics:
        said = self._curve(trial.config, step)
        if not isinstance(said, Mapping):
            raise TypeError(
                f"curve must return a dict of metrics, got {said!r:.80} for step {step} of {trial.config!r:.80}"
            )
        return said


class Recorded:
    """The curves of a study that was run, from its folder.

    A trial has the curve of a recorded one: of one with the same configuration (the same number, if there are several;
    else the one that got farthest), or the nearest one. Near is meant in the unit cube, where an option that differs,
    or a parameter that only one of the two has, is as far as the whole range of a number.

    Beyond the step at which that trial ended it goes on as the nearest of those that got so far did from there:
    what that trial's numbers changed by is added. Beyond the last step that any trial reached nothing changes. Trials
    that got far were the good ones, so what the others would have come to is, if anything, too good.

    A step takes as long as it took then, beyond a trial's end as long as its steps took on average. Failures are not
    played again.

    Args:
        path: the study's folder; a driver may be writing to it.
        param_space: needed if the study's space holds functions (`sample_from`).

    Raises `raytuner.record.folder.NoStudy` where there is none, ValueError where it has not reported anything.
    """

    sound = False

    def __init__(self, path: str | Path, param_space: Mapping[str, Any] | Space | None = None) -> None:
        from raytuner.record.folder import Folder
        from raytuner.record.journal import read

        folder = Folder(path)
        self.path = folder.root
        what = folder.read()
        if param_space is None:
            with Folder(self.path).interpreted():
                self.space = Space.from_json(what["space"])
        else:
            self.space = param_space if isinstance(param_space, Space) else Space(param_space)
        record = read(self.path)
        configs = _configs(record.rows)
        self._trials = {trial: said for trial, said in _tables(record.reports).items() if trial in configs}
        if not self._trials:
            raise ValueError(f"the study in {self.path} has not reported anything yet: there are no curves in it")
        self._numbers = list(self._trials)
        self._known: dict[str, list[int]] = {}
        for trial in self._numbers:
            self._known.setdefault(_key(configs[trial]), []).append(trial)
        points = [point_of(self.space, configs[trial]) for trial in self._numbers]
        self._x = np.array([x for x, _ in points]).reshape(len(points), self.space.dim)  # (n, d)
        self._active = np.array([active for _, active in points]).reshape(len(points), self.space.dim)  # (n, d)
        self._ends = np.array([self._trials[trial].end for trial in self._numbers])  # (n,)
        self._ladders: dict[int, tuple[Config, list[int], list[_Said]]] = {}
        self.steps = max(said.end for said in self._trials.values())
        """The last step that any trial reached."""

    def __repr__(self) -> str:
        return f"Recorded({str(self.path)!r}: {len(self._trials)} trials, up to step {self.steps})"

    def at(self, trial: Trial, step: int) -> Metrics:
        ends, ladder = self._ladder(trial)
        nearest = ladder[0]
        if step <= nearest.end:
            return nearest.metrics(step)
        farther = ladder[min(bisect_left(ends, step), len(ladder) - 1)]
        return _continued(nearest.metrics(nearest.end), farther.metrics(nearest.end), farther.metrics(step))

    def seconds(self, trial: Trial, step: int) -> float:
        """How long a step takes."""
        return self._ladder(trial)[1][0].took(step)

    def _ladder(self, trial: Trial) -> tuple[list[int], list[_Said]]:
        """The recorded trials whose curves one follows: the nearest, the nearest that got farther than that, and so on;
        and where each ended."""
        known = self._ladders.get(trial.id)
        if known is None or known[0] is not trial.config:
            order = self._by_distance(trial)  # (n,)
            ends = self._ends[order]
            farther = ends > np.concatenate(([0], np.maximum.accumulate(ends)[:-1]))  # than all that are nearer
            ladder = [self._trials[self._numbers[place]] for place in order[farther].tolist()]
            self._ladders[trial.id] = known = (trial.config, [said.end for said in ladder], ladder)
        return known[1], known[2]

    def _by_distance(self, trial: Trial) -> NDArray[np.int64]:
        """The places of the recorded trials, nearest first."""
        x, active = point_of(self.space, trial.config)
        apart = np.where(self.space.categories > 0, self._x != x, np.abs(self._x - x))  # (n, d)
        apart = np.where(self._active == active, apart, 1.0)
        order = np.argsort((apart**2).sum(axis=1), kind="stable")
        same = self._known.get(_key(trial.config), [])
        if same:
            first = trial.id if trial.id in same else max(same, key=lambda number: self._trials[number].end)
            order = np.concatenate(([self._numbers.index(first)], order))
        return order


@dataclass(frozen=True, slots=True)
class _Said:
    """What one trial reported, in the order of steps."""

    steps: Sequence[int]
    columns: Mapping[str, Sequence[Any]]
    seconds: Sequence[float]  # of each report
    mean_s: float

    @property
    def end(self) -> int:
        return self.steps[-1]

    def metrics(self, step: int) -> dict[str, Any]:
        """Its newest report at a step; its first if there was none yet."""
        row = max(bisect_right(self.steps, step) - 1, 0)
        return {name: values[row] for name, values in self.columns.items() if values[row] is not None}

    def took(self, step: int) -> float:
        row = bisect_left(self.steps, step)
        if row < len(self.steps) and self.steps[row] == step:
            return self.seconds[row]
        return self.mean_s


def _continued(last: Mapping[str, Any], then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """What a trial would say now whose last word is known, if it went on as another did since ``then``."""
    said = dict(now)
    for name, value in last.items():
        if _is_number(value) and _is_number(then.get(name)) and _is_number(now.get(name)):
            said[name] = value + (now[name] - then[name])
    return said


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _configs(rows: Sequence[Any]) -> dict[int, Config]:
    from raytuner.actions import Fork, Proposal, Start
    from raytuner.events import Proposed

    configs: dict[int, Config] = {}
    for row in rows:
        match row:
            case Proposed(trial=trial, answer=Proposal(config=config)) | Fork(trial=trial, config=config):
                configs[trial] = config
            case Start(trial=trial, config=config) if config is not None:
                configs[trial] = config
            case _:
                pass
    return configs


def _tables(reports: Any) -> dict[int, _Said]:
    """A table of reports by trial."""
    from raytuner.record.journal import METRIC, REPORTS

    table = reports.sort_by([("trial", "ascending"), ("step", "ascending")])
    names = [name for name in table.column_names if name not in REPORTS.names and name not in AUTOMATIC]
    columns = {name: table[name].to_pylist() for name in names}
    trials, steps = table["trial"].to_pylist(), table["step"].to_pylist()
    attempts, at = table["attempt"].to_pylist(), table["at"].to_pylist()
    told = table["time_this_iter_s"].to_pylist() if "time_this_iter_s" in table.column_names else [None] * len(at)
    took: list[float | None] = []  # None: not known
    for row, trial in enumerate(trials):
        follows = row > 0 and (trials[row - 1], attempts[row - 1]) == (trial, attempts[row])
        seconds = told[row] if told[row] is not None else at[row] - at[row - 1] if follows else None
        took.append(seconds if seconds is not None and 0 < seconds < math.inf else None)
    known = [seconds for seconds in took if seconds is not None]
    mean = sum(known) / len(known) if known else 1.0
    found: dict[int, _Said] = {}
    begin = 0
    while begin < len(trials):
        end = bisect_right(trials, trials[begin])
        own = [seconds for seconds in took[begin:end] if seconds is not None]
        usual = sum(own) / len(own) if own else mean
        found[trials[begin]] = _Said(
            steps[begin:end],
            {name.removeprefix(METRIC): values[begin:end] for name, values in columns.items()},
            [usual if seconds is None else seconds for seconds in took[begin:end]],
            usual,
        )
        begin = end
    return found


def _key(config: Config) -> str:
    return json.dumps(pack(config), sort_keys=True)
