"""A study in an object store, on a real Ray: its actors find their folders, and its driver the record."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import raytuner as tune
from raytuner.record.folder import Folder
from raytuner.record.journal import read
from raytuner.record.storage import Place
from raytuner.schedulers import HyperBandScheduler
from raytuner.searchers import BOHB
from tests.s3 import s3, s3_server  # noqa: F401

pytestmark = pytest.mark.ray


@pytest.mark.usefixtures("local_ray")
def test_bohb_and_hyperband(s3: Place) -> None:  # noqa: F811
    def train(config: dict[str, float]) -> None:
        for step in range(1, 5):
            tune.report({"loss": (config["x"] - 0.3) ** 2 + 1.0 / step, "cwd": str(Path.cwd())})

    def study() -> tune.Tuner:
        return tune.Tuner(
            train,
            param_space={"x": tune.uniform(-1, 1)},
            tune_config=tune.TuneConfig(
                metric="loss",
                mode="min",
                num_samples=8,
                seed=3,
                search_alg=BOHB(),
                scheduler=HyperBandScheduler(max_t=4, reduction_factor=2),
                max_concurrent_trials=2,
            ),
            run_config=tune.RunConfig(name="study", storage_path=str(s3), verbose=0),
        )

    grid = study().fit()
    assert (len(grid), grid.num_terminated) == (8, 8)
    assert all("/.cache/raytuner/" in result.metrics["cwd"] for result in grid)
    shutil.rmtree(Folder(s3 / "study").here.expanduser().parent)  # in the home of this machine's user
    rows = read(s3 / "study").rows
    assert len(study().fit()) == 8
    assert read(s3 / "study").rows == rows
