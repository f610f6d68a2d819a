"""The toy that BOHB and Hyperband tune in the benchmarks: one search space, loss and training function for both sides.

``tune`` is the library that asks, ``raytuner`` or ``ray.tune``: the names used here are the same in both. This imports
neither, for Ray's side runs in an environment of its own (`_bohb_ray.py`).
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_FLOOR = {"relu": 0.0, "tanh": 0.05, "sigmoid": 0.2}


def space(tune: Any) -> dict[str, Any]:
    return {
        "lr": tune.loguniform(1e-4, 1.0),
        "momentum": tune.uniform(0.0, 0.99),
        "units": tune.randint(8, 256),
        "activation": tune.choice(list(_FLOOR)),
    }


def loss(config: Mapping[str, Any], step: int) -> float:
    """A learning curve, without noise: from 1 + its limit down to that limit, both of which depend on the config.

    The limit is least, 0, at lr 0.01, momentum 0.9, 128 units and relu. A config of larger lr and momentum falls faster
    and may end higher, so that an early rung ranks otherwise than the last.
    """
    limit = (
        0.15 * (math.log10(config["lr"]) + 2.0) ** 2
        + 0.3 * (config["momentum"] - 0.9) ** 2
        + 0.05 * math.log2(config["units"] / 128) ** 2
        + _FLOOR[config["activation"]]
    )
    per_step = 0.5 * config["lr"] ** 0.25 / (1.0 - 0.8 * config["momentum"])
    return limit + math.exp(-per_step * step)


def trainer(tune: Any, steps: int) -> Callable[[Mapping[str, Any]], None]:
    """A training function that does nothing but report, ``steps`` times, each time with a checkpoint of one small file.

    What it reports as ``step`` is counted by its checkpoints alone: a trial that goes on from the wrong one is seen.
    """

    def train(config: Mapping[str, Any]) -> None:
        done = 0
        if checkpoint := tune.get_checkpoint():
            with checkpoint.as_directory() as folder:
                done = json.loads(Path(folder, "state.json").read_text())["step"]
        for step in range(done + 1, steps + 1):
            with tempfile.TemporaryDirectory() as folder:
                Path(folder, "state.json").write_text(json.dumps({"step": step}))
                said = {"loss": loss(config, step), "step": step, "said_at": time.time()}
                tune.report(said, checkpoint=tune.Checkpoint.from_directory(folder))

    return train
