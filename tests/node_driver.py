"""A sweep on a cluster whose nodes come and go: ``python node_driver.py <settings as JSON>``, joining ``RAY_ADDRESS``.

Says ``running`` once it drives, and how many trials failed at the end. What it acknowledged, it writes down.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

import raytuner as tune
from raytuner import schedulers
from raytuner.record import journal
from raytuner.trial import Reports


def train(config: dict[str, Any]) -> None:
    """What it says is a function of configuration and step, but for where it runs."""
    step, how = 0, config["how"]
    if checkpoint := tune.get_checkpoint():
        step = json.loads(Path(checkpoint.path, "state.json").read_text())["step"]
    node = ray.get_runtime_context().get_node_id()
    gate = Path(how["gate"]) if how.get("gate") else None
    while step < how["steps"] or (gate is not None and not gate.exists()):
        step += 1
        time.sleep(how["step_s"])
        if how.get("log"):
            with open(how["log"], "a") as log:
                log.write(f"{os.getpid()} {step}\n")
        said = {"loss": (config["x"] - 0.3) ** 2 + 1 / step, "node": node}
        every = how.get("saves_every")
        if tune.should_checkpoint() or (every and step % every == 0):
            with tempfile.TemporaryDirectory() as folder:
                Path(folder, "state.json").write_text(json.dumps({"step": step, "node": node}))
                tune.report(said, checkpoint=tune.Checkpoint.from_directory(folder))
        else:
            tune.report(said)


def note_what_is_acknowledged(path: str) -> None:
    """Write down each report once it is durable: the driver may be killed at any moment after."""
    file, commit = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), journal.Journal.commit

    def commit_and_tell(self: journal.Journal, rows: Sequence[journal.Row], reports: Sequence[Reports]) -> None:
        commit(self, rows, reports)
        lines = [f"{said.trial} {report.step} {report.metrics['loss']!r}\n" for said in reports for report in said]
        os.write(file, "".join(lines).encode())

    journal.Journal.commit = commit_and_tell  # type: ignore[method-assign]


def scheduler(name: str, steps: int) -> Any:
    match name:
        case "asha":
            return schedulers.ASHAScheduler(max_t=steps, grace_period=3)
        case "hyperband":
            return schedulers.HyperBandScheduler(max_t=steps)
        case "pbt":
            return schedulers.PopulationBasedTraining(
                "training_iteration",
                perturbation_interval=max(1, steps // 4),
                hyperparam_mutations={"x": tune.uniform(0, 1)},
            )
        case _:
            return schedulers.FIFOScheduler()


def main(settings: dict[str, Any]) -> None:
    note_what_is_acknowledged(settings["acknowledged"])
    stop: Any = None
    if settings.get("rule"):  # which ends no trial
        stop = lambda trial, result: False  # noqa: E731
    trainable: Any = tune.with_resources(train, lambda config: {"cpu": 1}) if settings.get("by_size") else train
    tuner = tune.Tuner(
        trainable,
        param_space={"x": tune.uniform(0, 1), "how": settings["how"]},
        tune_config=tune.TuneConfig(
            metric="loss",
            mode="min",
            num_samples=settings["trials"],
            scheduler=scheduler(settings.get("scheduler", "fifo"), settings["how"]["steps"]),
            max_concurrent_trials=settings.get("slots"),
            seed=settings.get("seed", 0),
        ),
        run_config=tune.RunConfig(
            name="study",
            storage_path=settings["storage"],
            stop=stop,
            checkpoint_config=tune.CheckpointConfig(num_to_keep=2),
            failure_config=tune.FailureConfig(max_failures=0),
            verbose=0,
        ),
    )
    print("running", flush=True)
    results = tuner.fit()
    print(f"failed {results.num_errors}", flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
