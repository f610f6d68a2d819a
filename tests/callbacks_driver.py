"""A sweep with callbacks, to be killed: ``python callbacks_driver.py <storage>``; says ``running`` once it drives."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import raytuner as tune
from raytuner.logger import CSVLoggerCallback, JsonLoggerCallback
from raytuner.schedulers import HyperBandScheduler


class Appends(tune.Callback):
    """Writes a line to ``heard`` in the study's folder with each result and each trial's end, in one piece. It takes
    some time, so that it lags; in a driver it hangs in what it hears of the last trial."""

    def on_trial_result(self, trial: Any, result: dict[str, Any], **info: Any) -> None:
        time.sleep(0.002)
        self._append(trial, [trial.trial_id, result["training_iteration"]])

    def on_trial_complete(self, trial: Any, **info: Any) -> None:
        self._append(trial, [trial.trial_id, "over"])

    def _append(self, trial: Any, what: list[Any]) -> None:
        if __name__ == "__main__" and trial.trial_id == "59":
            threading.Event().wait()
        file = os.open(Path(trial.local_experiment_path, "heard"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(file, (json.dumps(what) + "\n").encode())
        os.close(file)


def train(config: dict[str, Any]) -> None:
    for step in range(1, 28):
        time.sleep(0.004)
        tune.report({"loss": config["x"] + 1 / step})


def main(storage: str) -> None:
    tuner = tune.Tuner(
        train,
        param_space={"x": tune.uniform(0, 1)},
        tune_config=tune.TuneConfig(
            metric="loss", mode="min", num_samples=60, scheduler=HyperBandScheduler(max_t=27), seed=1
        ),
        run_config=tune.RunConfig(
            name="study",
            storage_path=storage,
            verbose=0,
            callbacks=[Appends(), CSVLoggerCallback(), JsonLoggerCallback()],
            callback_deadline_s=0.01,  # the rest is left to the next life, and to `raytuner sync`
        ),
        executor="inline",
    )
    print("running", flush=True)
    tuner.fit()
    print("over", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
