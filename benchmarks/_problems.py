"""Problems whose optimum is known by formula, to measure search on: of several fidelities, minimised.

A problem has an integer resource r from ``rungs[0]`` to ``R``:

    evaluate(config, r, seed)   what is observed at r; noise is a function of all three
    cost(config, r)             of a run from scratch to r; where ``resumable``, going on from r1 costs the difference
    true(config)                at R, without noise
    optimum                     the configuration where `true` is least
    norm_regret(value)          0 at the optimum, 1 at the median of random configurations

Configurations are flat dicts; a parameter with a ``parent`` is there only if that has one of the values ``when``.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Param:
    """``kind``: "float", "int" (both bounds belong to it) or "cat"."""

    name: str
    kind: str
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    choices: tuple[Any, ...] = ()
    parent: str | None = None
    when: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Params:
    """A space: parents stand before their children."""

    params: Sequence[Param]

    def prune(self, config: Config) -> dict[str, Any]:
        """Without what is inactive."""
        found: dict[str, Any] = {}
        for param in self.params:
            if param.parent is None or found.get(param.parent) in param.when:
                found[param.name] = config[param.name]
        return found

    def key(self, config: Config) -> tuple[Any, ...]:
        return tuple(sorted(config.items()))

    def sample(self, rng: np.random.Generator) -> dict[str, Any]:
        return self.prune({param.name: _draw(param, rng) for param in self.params})


def _draw(param: Param, rng: np.random.Generator) -> Any:
    if param.kind == "cat":
        return param.choices[rng.integers(len(param.choices))]
    if param.kind == "int":
        return int(rng.integers(int(param.low), int(param.high) + 1))
    low, high = (math.log(param.low), math.log(param.high)) if param.log else (param.low, param.high)
    value = low + rng.random() * (high - low)
    return math.exp(value) if param.log else value


def _noise(*of: Any) -> np.random.Generator:
    digest = hashlib.blake2b(repr(of).encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


class Problem(ABC):
    """See the head of this file."""

    name: str
    space: Params
    R: int
    rungs: list[int]
    best: float
    optimum: Config
    eta = 3
    resumable = False

    @abstractmethod
    def evaluate(self, config: Config, r: int, seed: int) -> float: ...

    @abstractmethod
    def cost(self, config: Config, r: int) -> float: ...

    @abstractmethod
    def true(self, config: Config) -> float: ...

    def __post_init__(self) -> None:
        rng = np.random.default_rng(0)
        drawn = [self.space.sample(rng) for _ in range(2000)]
        self.median = float(np.median([self.true(config) for config in drawn]))
        self.mean_cost = float(np.mean([self.cost(config, self.R) for config in drawn]))

    def norm_regret(self, value: float) -> float:
        return (value - self.best) / (self.median - self.best)


@dataclass
class CountingOnes(Problem):
    """Falkner, Klein & Hutter 2018, section 5.1: binary options, and means of r draws with a probability each."""

    options: int = 8
    numbers: int = 8
    R: int = 729
    resumable: bool = True
    name: str = field(init=False)

    def __post_init__(self) -> None:
        self.name = f"countingones-{self.options}+{self.numbers}"
        self.rungs, self.best = [9, 27, 81, 243, 729], -float(self.options + self.numbers)
        self.space = Params(
            [Param(f"c{i}", "cat", choices=(0, 1)) for i in range(self.options)]
            + [Param(f"x{i}", "float") for i in range(self.numbers)]
        )
        self.optimum = {param.name: 1 if param.kind == "cat" else 1.0 for param in self.space.params}
        super().__post_init__()

    def evaluate(self, config: Config, r: int, seed: int) -> float:
        drawn = _noise(self.space.key(config), seed).random((self.R, self.numbers))[:r]
        x = np.array([config[f"x{i}"] for i in range(self.numbers)])
        return -float(sum(config[f"c{i}"] for i in range(self.options)) + (drawn < x).mean(axis=0).sum())

    def cost(self, config: Config, r: int) -> float:
        return r / self.R

    def true(self, config: Config) -> float:
        return -float(sum(config.values()))


_A = np.array(
    [[10, 3, 17, 3.5, 1.7, 8], [0.05, 10, 17, 0.1, 8, 14], [3, 3.5, 1.7, 10, 17, 8], [17, 8, 0.05, 10, 0.1, 14]]
)
_P = 1e-4 * np.array(
    [
        [1312, 1696, 5569, 124, 8283, 5886],
        [2329, 4135, 8307, 3736, 1004, 9991],
        [2348, 1451, 3522, 2883, 3047, 6650],
        [4047, 8828, 8732, 5743, 1091, 381],
    ]
)


@dataclass
class Hartmann(Problem):
    """Hartmann's function of six numbers; at fidelity s = log_R r its weights are off by bias (1 - s), and noise of one
    sign is added: the form of mf-prior-bench (Mallik et al. 2023)."""

    bias: float = 1.0
    noise: float = 0.1
    label: str = "clean"
    R: int = 81
    name: str = field(init=False)

    def __post_init__(self) -> None:
        self.name = f"hartmann6-{self.label}"
        self.rungs, self.best = [3, 9, 27, 81], -3.32237
        self.space = Params([Param(f"x{i}", "float") for i in range(6)])
        best = (0.20169, 0.150011, 0.476874, 0.275332, 0.311652, 0.6573)
        self.optimum = {f"x{i}": x for i, x in enumerate(best)}
        super().__post_init__()

    def _value(self, config: Config, s: float) -> float:
        x = np.array([config[f"x{i}"] for i in range(6)])
        weights = np.array([1.0, 1.2, 3.0, 3.2]) - self.bias * (1 - s)
        return -float(weights @ np.exp(-(_A * (x - _P) ** 2).sum(axis=1)))

    def evaluate(self, config: Config, r: int, seed: int) -> float:
        s = math.log(r) / math.log(self.R)
        return self._value(config, s) + self.noise * (1 - s) * abs(_noise(self.space.key(config), r, seed).normal())

    def cost(self, config: Config, r: int) -> float:
        return 0.05 + 0.95 * (r / self.R) ** 2

    def true(self, config: Config) -> float:
        return self._value(config, 1.0)


@dataclass
class Branin(Problem):
    """Branin's function, its coefficients drifting with the fidelity (Kandasamy et al. 2017)."""

    R: int = 27
    name: str = "branin"

    def __post_init__(self) -> None:
        self.rungs, self.best = [1, 3, 9, 27], 0.397887
        self.space = Params([Param("x", "float", -5.0, 10.0), Param("y", "float", 0.0, 15.0)])
        self.optimum = {"x": math.pi, "y": 2.275}
        super().__post_init__()

    def evaluate(self, config: Config, r: int, seed: int) -> float:
        off = 1 - r / self.R
        x, y = config["x"], config["y"]
        b, c = 5.1 / (4 * math.pi**2) - 0.01 * off, 5 / math.pi - 0.1 * off
        t = 1 / (8 * math.pi) + 0.05 * off
        return float((y - b * x * x + c * x - 6) ** 2 + 10 * (1 - t) * math.cos(x) + 10)

    def cost(self, config: Config, r: int) -> float:
        return 0.05 + 0.95 * (r / self.R) ** 1.5

    def true(self, config: Config) -> float:
        return self.evaluate(config, self.R, 0)


@dataclass
class Networks(Problem):
    """A made-up network, conditional and mixed: learning curves that fall as a power of r to a floor.

    Steps with a high learning rate are good early and worse late, so curves cross; an optimiser of its own choice has
    parameters of its own. Floors are quadratic around an optimum in each parameter, so the best is known: 0.1.
    """

    R: int = 81
    resumable: bool = True
    name: str = "networks"

    def __post_init__(self) -> None:
        self.rungs, self.best = [3, 9, 27, 81], 0.1
        self.space = Params(
            [
                Param("lr", "float", 1e-5, 1.0, log=True),
                Param("layers", "int", 1, 8),
                Param("width", "int", 16, 1024, log=True),
                Param("dropout", "float", 0.0, 0.7),
                Param("optimiser", "cat", choices=("sgd", "adam", "lamb")),
                Param("momentum", "float", 0.0, 1.0, parent="optimiser", when=("sgd",)),
                Param("beta", "float", 0.5, 1.0, parent="optimiser", when=("adam", "lamb")),
            ]
        )
        self.optimum = {
            "lr": 10**-2.5,
            "layers": 5,
            "width": 256,
            "dropout": 0.2,
            "optimiser": "adam",
            "beta": 0.95,
        }
        super().__post_init__()

    def _floor(self, config: Config) -> float:
        lr = (math.log10(config["lr"]) + 2.5) / 5
        width = math.log2(config["width"] / 16) / 6
        own = config["momentum"] - 0.9 if config["optimiser"] == "sgd" else config["beta"] - 0.95
        far = 4 * lr**2 + (config["layers"] - 5) ** 2 / 49 + (width - 2 / 3) ** 2 + (config["dropout"] - 0.2) ** 2
        return 0.1 + far + own**2 + {"sgd": 0.03, "adam": 0.0, "lamb": 0.05}[config["optimiser"]]

    def evaluate(self, config: Config, r: int, seed: int) -> float:
        speed = 0.3 + 0.25 * (math.log10(config["lr"]) + 5)
        value = self._floor(config) + 2.0 * r**-speed - 2.0 * self.R**-speed
        return value + 0.01 * float(_noise(self.space.key(config), r, seed).normal()) * (1 - r / self.R)

    def cost(self, config: Config, r: int) -> float:
        return (0.3 + 0.1 * config["layers"] * config["width"] / 512) * r / self.R

    def true(self, config: Config) -> float:
        return self._floor(config)


@dataclass
class Diverging(Networks):
    """The same on a scale with a heavy tail, exp(6 value), and with learning rates at which training diverges to
    anything between a million and a billion. Regret is that of the other scale."""

    name: str = "networks-diverging"

    def _diverges(self, config: Config) -> bool:
        return bool(config["lr"] > 0.1)

    def evaluate(self, config: Config, r: int, seed: int) -> float:
        if self._diverges(config):
            return float(10.0 ** _noise(self.space.key(config), r, seed).uniform(6.0, 9.0))
        return math.exp(6.0 * super().evaluate(config, r, seed))

    def true(self, config: Config) -> float:
        return 1e6 if self._diverges(config) else math.exp(6.0 * self._floor(config))

    def norm_regret(self, value: float) -> float:
        return (math.log(value) / 6.0 - self.best) / (math.log(self.median) / 6.0 - self.best)


PROBLEMS: Mapping[str, Problem] = {
    problem.name: problem
    for problem in (
        CountingOnes(),
        CountingOnes(4, 4),
        Hartmann(),
        Hartmann(2.5, 2.0, "good"),
        Hartmann(3.5, 4.0, "bad"),
        Branin(),
        Networks(),
        Diverging(),
    )
}
