"""A search algorithm of your own: one file, which works in any study and is tested by raytuner's contract suite.

    python examples/my_searcher.py

It is a (1+1) evolution strategy with the one-fifth rule: a normal step away from the best configuration so far, longer
after a success and shorter after a failure. It learns at the end of every lease, at whichever rung that is. What the
parts mean is in docs/searchers.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import raytuner as tune
from raytuner.actions import Answer, Proposal
from raytuner.space import Space
from raytuner.trial import Config, Observation, Pending


@dataclass(frozen=True)
class OnePlusOne:
    """Settings: what a user writes. ``step``: the first length of a step, where 1 is the width of a range."""

    step: float = 0.3

    def build(self, space: Space, seed: int) -> OnePlusOneSearcher:
        return OnePlusOneSearcher(self.step, space, seed)


class OnePlusOneSearcher:
    """The machine that one study asks and tells."""

    def __init__(self, step: float, space: Space, seed: int) -> None:
        self.step, self.space, self.seed = step, space, seed
        self.best: tuple[int, float, Config] | None = None  # rung, value, configuration

    def ask(self, trial: int, until: int, pending: Sequence[Pending]) -> Answer:
        rng = np.random.default_rng([self.seed, trial])
        if self.best is None:
            return Proposal(self.space.sample(rng), {"origin": "random"})
        x, _ = self.space.encode(self.best[2])  # a point of the unit cube
        for _ in range(100):
            moved = x + self.step * rng.standard_normal(len(x))
            config = self.space.decode(np.clip(moved, 0, 1))
            if self.space.feasible(config):  # the study may have constraints; `sample` knows of them
                return Proposal(config, {"origin": "step", "length": self.step})
        return Proposal(self.space.sample(rng), {"origin": "random"})

    def tell(self, seen: Observation) -> None:
        if not self.space.contains(seen.config):
            return
        value = math.inf if seen.value is None or math.isnan(seen.value) else seen.value
        # Values of different rungs do not compare: the best is the best of the highest rung.
        if self.best is None or (-seen.until, value) < (-self.best[0], self.best[1]):
            self.best = seen.until, value, seen.config
            self.step = min(self.step * 1.5, 1.0)
        elif seen.until == self.best[0]:
            self.step = max(self.step * 1.5**-0.25, 1e-3)

    def recall(self, trial: int, until: int, pending: Sequence[Pending], answer: Answer) -> None:
        """Nothing: an `ask` changes nothing, and what `tell` learned is told again."""


def train(config: dict[str, Any]) -> None:
    """A bowl that is left a little less wrong by every step."""
    loss = (config["x"] - 0.3) ** 2 + (math.log10(config["lr"]) + 2) ** 2
    for step in range(1, 10):
        tune.report({"loss": loss + 1 / step})


def main(storage: str = "results", executor: str = "ray") -> tune.ResultGrid:
    return tune.Tuner(
        train,
        param_space={"x": tune.uniform(-1, 1), "lr": tune.loguniform(1e-5, 1)},
        tune_config=tune.TuneConfig(metric="loss", mode="min", num_samples=40, search_alg=OnePlusOne(), seed=0),
        run_config=tune.RunConfig(name="my_searcher", storage_path=storage, verbose=0),
        executor=executor,
    ).fit()


if __name__ == "__main__":
    print(main().get_best_result())
