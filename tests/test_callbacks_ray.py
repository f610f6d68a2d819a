"""Callbacks beside a driver on a real Ray, with trials in several processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import raytuner as tune
from raytuner.logger import CSVLoggerCallback
from raytuner.schedulers import ASHAScheduler
from tests.test_callbacks import Heard, Listener, check_all

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray"), pytest.mark.timeout(120)]


def train(config: dict[str, Any]) -> None:
    for step in range(1, 10):
        tune.report({"loss": config["x"] + 1 / step})


def test_everything_once_and_in_order(tmp_path: Path) -> None:
    listener = Listener()
    results = tune.Tuner(
        train,
        param_space={"x": tune.uniform(0, 1)},
        tune_config=tune.TuneConfig(
            metric="loss", mode="min", num_samples=40, scheduler=ASHAScheduler(max_t=9, reduction_factor=3), seed=1
        ),
        run_config=tune.RunConfig(
            name="study",
            storage_path=tmp_path,
            verbose=0,
            callbacks=[listener, CSVLoggerCallback()],
            callback_deadline_s=60,
        ),
    ).fit()
    check_all(listener, tmp_path / "study")
    assert listener.heard[-1] == Heard("on_experiment_end")
    for result in results:
        lines = Path(tmp_path / "study" / "logs" / f"{int(result.trial_id):06d}", "progress.csv").read_text()
        assert len(lines.splitlines()) == 1 + result.metrics["training_iteration"]
