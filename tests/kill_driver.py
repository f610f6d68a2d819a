"""A sweep to be killed: ``python kill_driver.py <storage> <slots>``; says ``running`` once it drives."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import raytuner as tune
from raytuner.schedulers import HyperBandScheduler
from raytuner.searchers import BOHB


def train(config: dict[str, Any]) -> None:
    """What it says is a function of its configuration and step; it takes a few milliseconds a step."""
    step = 0
    if checkpoint := tune.get_checkpoint():
        step = json.loads(Path(checkpoint.path, "state.json").read_text())["step"]
    optimizer = config["optimizer"]
    while True:
        step += 1
        time.sleep(0.004)
        loss = (config["x"] - 0.3) ** 2 + optimizer.get("momentum", 0.5) / 10 + (1 + config["n"] % 3) / step
        if tune.should_checkpoint():
            with tempfile.TemporaryDirectory() as folder:
                Path(folder, "state.json").write_text(json.dumps({"step": step}))
                tune.report({"loss": loss}, checkpoint=tune.Checkpoint.from_directory(folder))
        else:
            tune.report({"loss": loss})


def main(storage: str, slots: int) -> None:
    tuner = tune.Tuner(
        train,
        param_space={
            "x": tune.uniform(0, 1),
            "n": tune.randint(1, 9),
            "optimizer": tune.choice([{"name": "sgd", "momentum": tune.uniform(0, 0.99)}, {"name": "adam"}]),
        },
        tune_config=tune.TuneConfig(
            metric="loss",
            mode="min",
            num_samples=60,
            search_alg=BOHB(min_points_in_model=4),
            scheduler=HyperBandScheduler(max_t=9),
            max_concurrent_trials=slots,
            seed=11,
        ),
        run_config=tune.RunConfig(
            name="study",
            storage_path=storage,
            checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
            verbose=0,
        ),
    )
    print("running", flush=True)
    tuner.fit()
    print("over", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
