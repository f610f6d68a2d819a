"""A study in an object store, in a process that kills itself at a write: ``URI SEARCHER WRITE landed|lost``."""

from __future__ import annotations

import os
import signal
import sys

import raytuner as tune
from raytuner.record.storage import Place
from raytuner.schedulers import HyperBandScheduler
from raytuner.searchers import BOHB, RandomSearch


def bowl(config: dict[str, float]) -> None:
    for step in range(1, 5):
        tune.report({"loss": (config["x"] - 0.3) ** 2 + 1.0 / step})


def study(root: Place | str, searcher: str) -> tune.Tuner:
    model_based = searcher == "bohb"
    return tune.Tuner(
        bowl,
        param_space={"x": tune.uniform(-1, 1)},
        tune_config=tune.TuneConfig(
            metric="loss",
            mode="min",
            num_samples=8,
            seed=3,
            search_alg=BOHB() if model_based else RandomSearch(),
            scheduler=HyperBandScheduler(max_t=4, reduction_factor=2) if model_based else None,
        ),
        run_config=tune.RunConfig(name=searcher, storage_path=str(root), verbose=0),
        executor="inline",
    )


def main(root: str, searcher: str, last: str, landed: str) -> None:
    write, left = Place.write, [int(last)]

    def mortal(place: Place, data: bytes) -> None:
        left[0] -= 1
        if left[0] == 0:
            if landed == "landed":
                write(place, data)
            os.kill(os.getpid(), signal.SIGKILL)
        write(place, data)

    Place.write = mortal  # type: ignore[method-assign]
    study(root, searcher).fit()


if __name__ == "__main__":
    main(*sys.argv[1:])
