"""The command line: what is printed, and that wrong input is answered by a sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import raytuner as tune
from raytuner.cli import main
from raytuner.schedulers import HyperBandScheduler


def train(config: dict[str, Any]) -> None:
    for step in range(1, 10):
        tune.report({"loss": config["x"] + 1 / step})


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A recorded study of 22 trials."""
    folder = tmp_path_factory.mktemp("studies")
    tune.Tuner(
        tune.with_resources(train, {"cpu": 1}),
        param_space={"x": tune.uniform(0, 1)},
        tune_config=tune.TuneConfig(
            metric="loss", mode="min", num_samples=22, scheduler=HyperBandScheduler(max_t=9), seed=1
        ),
        run_config=tune.RunConfig(name="first", storage_path=folder, verbose=0),
        executor="inline",
    ).fit()
    return str(folder / "first")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def forecasts(*arguments: str) -> list[dict[str, Any]]:
    done = run("plan", *arguments, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.output)
    assert isinstance(found, list)
    return found


def test_a_plan(study: str) -> None:
    done = run("plan", study, "--workers", "4", "--seconds-per-step", "60")
    assert done.exit_code == 0, done.output
    rows = dict(line.split("  ", 1) for line in done.output.splitlines())
    assert rows["workers"].strip() == "4"
    assert rows["trials"].strip() == "22"
    assert rows["wall time"].strip().endswith("min")
    assert "'x'" in rows["its config"]
    assert "GPU-hours" not in rows, "its trials had none"


def test_several_beside_each_other(study: str) -> None:
    done = run("plan", study, "--workers", "1", "--workers", "16", "--workers", "1024", "--gpus-per-trial", "2")
    assert done.exit_code == 0, done.output
    header, *rows = [line.split("  ") for line in done.output.splitlines() if line.strip()]
    assert [cell.strip() for cell in header if cell.strip()] == ["workers", "1", "16", "1,024"]
    assert {row[0].strip() for row in rows} >= {"wall time", "GPU-hours", "trials", "best loss"}
    assert max(map(len, done.output.splitlines())) <= 80


def test_what_is_not_changed_is_as_recorded(study: str) -> None:
    (alone,) = forecasts(study, "--workers", "1")
    recorded = tune.ResultGrid(study)
    best = recorded.get_best_result()
    assert alone["trials"] == len(recorded)
    assert alone["best"]["config"] == best.config
    assert alone["best"]["value"] == best.metrics["loss"]
    assert alone["gpu_hours"] == 0
    assert alone["cost"] is None


def test_what_can_be_changed(study: str) -> None:
    base = (study, "--workers", "8", "--seconds-per-step", "1")
    (more,) = forecasts(*base, "--num-samples", "100", "--gpus-per-trial", "0.5", "--price", "36")
    assert more["trials"] == 100
    assert more["gpu_hours"] == pytest.approx(more["busy_s"] / 7200)
    assert more["cost"] == pytest.approx(more["busy_s"] / 200)
    (fifo,) = forecasts(*base, "--scheduler", "FIFOScheduler")
    assert (fifo["full"], fifo["steps"]) == (22, 22 * 9)
    (longer,) = forecasts(*base, "--scheduler", "FIFOScheduler", "--steps", "20")
    assert longer["steps"] == 22 * 20
    (asha,) = forecasts(*base, "--scheduler", "ASHAScheduler", "--set", "reduction_factor=3")
    assert asha["full"] < fifo["full"]
    assert asha["best"]["step"] == 9, "max_t is the last recorded step, unless it is set"
    (short,) = forecasts(*base, "--set", "max_t=3", "--set", "stop_last_trials=true")
    assert short["best"]["step"] == 3
    assert forecasts(*base, "--seed", "5") != forecasts(*base, "--seed", "6")


def test_faults(study: str) -> None:
    base = (study, "--workers", "8", "--seconds-per-step", "1")
    (faulty,) = forecasts(*base, "--fault", "trial_failure=0.05", "--fault", "driver_deaths=0.1", "--fault", "seed=2")
    assert faulty["failed"] > 0
    assert faulty["deaths"] > 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--workers", "0"), "Invalid value for '--workers': 0 is not in the range x>=1"),
        ((), "Missing option '--workers'"),
        (
            ("--workers", "2", "--scheduler", "Asha"),
            "--scheduler must be one of ASHAScheduler, AsyncHyperBandScheduler",
        ),
        (("--workers", "2", "--set", "eta=3"), "--set eta=…: HyperBandScheduler has time_attr, metric, mode, max_t"),
        (("--workers", "2", "--set", "max_t"), "--set must be KEY=VALUE, got 'max_t'"),
        (("--workers", "2", "--set", "max_t=lots"), "max_t='lots': expected a whole number"),
        (
            ("--workers", "2", "--scheduler", "FIFOScheduler", "--set", "a=1"),
            "--set a=…: FIFOScheduler has no settings",
        ),
        (("--workers", "2", "--num-samples", "0"), "num_samples must be a whole number of at least 1 (or -1), got 0"),
        (("--workers", "2", "--price", "3"), "price is 3.0 for a GPU-hour, but gpus_per_trial is 0"),
        (("--workers", "2", "--seconds-per-step", "-1"), "seconds_per_step must be a number above 0, got -1.0"),
        (("--workers", "2", "--fault", "fire=1"), "--fault fire=…: Faults has trial_failure, worker_loss"),
        (("--workers", "2", "--fault", "nan=2"), "nan must be a number from 0 to 1, or a function; got 2"),
    ],
)
def test_wrong_input_is_answered_by_a_sentence(study: str, arguments: tuple[str, ...], sentence: str) -> None:
    done = run("plan", study, *arguments)
    assert done.exit_code == 2
    assert sentence in done.output
    assert "Traceback" not in done.output


def test_there_must_be_a_study(tmp_path: Path) -> None:
    done = run("plan", str(tmp_path), "--workers", "2")
    assert (done.exit_code, done.output) == (
        2,
        f"Error: there is no study in {tmp_path}: it holds no study.json\n",
    )


def test_help_has_examples() -> None:
    assert "plan" in run("--help").output
    done = run("plan", "-h")
    assert done.exit_code == 0
    assert "raytuner plan results/first --workers 16 --workers 64" in done.output
    assert tune.__version__ in run("--version").output


def test_it_can_be_run_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "raytuner", "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "Usage:" in done.stdout


def test_help_loads_nothing_heavy() -> None:
    code = "import sys, raytuner.cli\nprint([name for name in ('ray', 'pyarrow', 'numpy') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
