"""`raytuner sync`, and drivers that are killed (``kill -9``) while their callbacks lag behind: nothing is missing."""

from __future__ import annotations

import csv
import json
import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import raytuner as tune
from raytuner.cli import main
from raytuner.logger import CSVLoggerCallback, TBXLoggerCallback
from raytuner.record.journal import is_complete, read
from raytuner.record.lock import FileLock

ROOT = Path(__file__).parent.parent
KILLS = 4


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["sync", *arguments])


def drive(storage: Path, life_s: float | None) -> bool:
    """Run the sweep for so long (None: to its end) from the moment it drives; whether it reached its end."""
    with subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "callbacks_driver.py"), str(storage)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as driver:
        assert driver.stdout is not None
        assert driver.stderr is not None
        assert driver.stdout.readline() == "running\n", driver.stderr.read()
        killer = threading.Timer(life_s, driver.kill) if life_s is not None else None
        if killer:
            killer.start()
        out, errors = driver.communicate()
        if killer:
            killer.cancel()
        assert driver.returncode in (0, -9), errors
        return out == "over\n"


@pytest.mark.timeout(240)
def test_killed_at_random_moments_and_synced(tmp_path: Path) -> None:
    chance, root = random.Random(5), tmp_path / "study"
    kills = 0
    while not drive(tmp_path, chance.uniform(0.1, 0.5) if kills < KILLS else None):
        kills += 1
    assert kills >= 2, "it was over too soon"
    assert is_complete(root)
    behind = json.loads((root / "callbacks" / "Appends.json").read_text())["turn"]
    done = run(str(root))
    assert done.exit_code == 1, done.output
    assert "Appends: 0 calls; not told everything: __main__:Appends was not given" in done.output
    done = run(str(root), "--callback", "tests.callbacks_driver:Appends")
    assert done.exit_code == 0, done.output
    assert json.loads((root / "callbacks" / "Appends.json").read_text())["turn"] > behind

    table = read(root).reports
    wanted = list(zip(map(str, table["trial"].to_pylist()), table["step"].to_pylist(), strict=True))
    heard = [tuple(json.loads(line)) for line in (root / "heard").read_text().splitlines()]
    told = dict.fromkeys(each for each in heard if each[1] != "over")
    assert list(told) == wanted, "nothing is missing, and the first time is in order"
    assert {each[0] for each in heard if each[1] == "over"} == {trial for trial, _ in wanted}
    print(f"{kills} kills; {len(wanted)} reports, {len(heard) - len(set(heard))} calls made again")
    for trial in {trial for trial, _ in wanted}:
        folder, steps = root / "logs" / f"{int(trial):06d}", [step for each, step in wanted if each == trial]
        with open(folder / "progress.csv", newline="") as file:
            assert [int(row["training_iteration"]) for row in csv.DictReader(file)] == steps
        lines = (folder / "result.json").read_text().splitlines()
        assert [json.loads(line)["training_iteration"] for line in lines] == steps

    again = run(str(root), "--callback", "tests.callbacks_driver:Appends")
    assert again.output == "Appends: 0 calls\n"


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A study of three trials that had a logger."""

    def train(config: dict[str, float]) -> None:
        for step in range(1, 4):
            tune.report({"loss": config["x"] / step})

    tune.Tuner(
        train,
        param_space={"x": tune.uniform(0, 1)},
        tune_config=tune.TuneConfig(metric="loss", mode="min", num_samples=3, seed=1),
        run_config=tune.RunConfig(name="study", storage_path=tmp_path, verbose=0, callbacks=[CSVLoggerCallback()]),
        executor="inline",
    ).fit()
    return tmp_path / "study"


class Printer(tune.Callback):
    """Prints results. ``wants``: what it must be given to be made."""

    def __init__(self, wants: str) -> None:
        self.wants = wants

    def on_trial_complete(self, trial: object, **info: object) -> None:
        print(f"{trial} is over")


printer = Printer("it")


def make_printer() -> Printer:
    return Printer("it")


def test_loggers_are_told_by_name(study: Path) -> None:
    assert run(str(study)).output == "CSVLoggerCallback: 0 calls\n"
    assert run(str(study), "--callback", "JsonLoggerCallback").exit_code == 0
    lines = (study / "logs" / "000002" / "result.json").read_text().splitlines()
    assert [json.loads(line)["training_iteration"] for line in lines] == [1, 2, 3]
    # What a power failure took from a file's end comes back, and nothing twice.
    path = study / "logs" / "000001" / "progress.csv"
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    done = run(str(study), "--from-start")
    assert done.exit_code == 0
    assert path.read_bytes() == whole


@pytest.mark.parametrize("name", ["printer", "make_printer"])
def test_callbacks_that_are_imported(study: Path, name: str) -> None:
    done = run(str(study), "--callback", f"tests.test_sync:{name}", "--callback", "CSVLoggerCallback")
    assert done.exit_code == 0, done.output
    *said, one, other = done.output.splitlines()
    assert sorted(said) == ["train_0 is over", "train_1 is over", "train_2 is over"]
    assert one.startswith("Printer: ")
    assert other == "CSVLoggerCallback: 0 calls"


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (
            "Nonsense",
            "must be MODULE:ATTRIBUTE or one of CSVLoggerCallback, JsonLoggerCallback, TBXLoggerCallback; got",
        ),
        ("nonsense:Printer", "--callback nonsense:Printer: No module named 'nonsense'"),
        ("tests.test_sync:nonsense", "has no attribute 'nonsense'"),
        ("tests.test_sync:Printer", "missing 1 required positional argument: 'wants'"),
        ("tests.test_sync:ROOT", "--callback tests.test_sync:ROOT is no callback"),
    ],
)
def test_what_cannot_be_told(study: Path, callback: str, message: str) -> None:
    done = run(str(study), "--callback", callback)
    assert done.exit_code == 2
    assert message in done.output


def test_a_study_that_runs_and_none(study: Path, tmp_path: Path) -> None:
    with FileLock(study):
        done = run(str(study))
    assert done.exit_code == 2
    assert "is being run by process" in done.output
    assert run(str(tmp_path / "nothing")).exit_code == 2


def test_tensorboard(study: Path) -> None:
    assert run(str(study), "--callback", TBXLoggerCallback.__name__).exit_code == 0
    for number in range(3):
        (file,) = (study / "logs" / f"{number:06d}").glob("events.out.tfevents.*")
        raw = file.read_bytes()
        assert raw.count(b"ray/tune/loss") >= 3
        assert b"_hparams_/experiment" in raw
