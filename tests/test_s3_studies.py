"""Whole studies on an S3 server: drivers die at any write, others go on, and decide what would have been decided."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import raytuner as tune
from raytuner import cli
from raytuner.actions import Proposal
from raytuner.events import Proposed
from raytuner.record.journal import read
from raytuner.record.lock import ObjectLock
from raytuner.record.storage import Place
from raytuner.schedulers import AsyncHyperBandScheduler, HyperBandScheduler
from raytuner.searchers import BOHB, RandomSearch
from tests.lives import SPACE, Case, Died, Fate, decisions, live_through
from tests.s3 import KEY, SECRET, objects, s3, s3_server  # noqa: F401
from tests.s3_driver import bowl, study

# ruff: noqa: F811 - fixtures are named like what they are imported as


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where studies in object stores have their local files."""
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def dies(root: Place, searcher: str, write: int, landed: bool) -> bool:
    """Run the study in a process that dies at a write; whether it did."""
    arguments = [str(root), searcher, str(write), "landed" if landed else "lost"]
    return subprocess.run([sys.executable, "-m", "tests.s3_driver", *arguments], timeout=100).returncode == -9


def decided(root: Place) -> list[Any]:
    """All decisions, and who was proposed what and why; a fit of a model may take its own time."""
    return [
        Proposed(0.0, row.trial, Proposal(row.answer.config, {}))
        if isinstance(row, Proposed) and isinstance(row.answer, Proposal)
        else row
        for row in decisions(read(root).rows)
    ]


@pytest.mark.parametrize("searcher", ["random", "bohb"])
def test_a_study_whose_drivers_are_killed_goes_on(searcher: str, s3: Place, home: Path) -> None:
    study(s3 / "alone", searcher).fit()
    root = s3 / "killed"
    assert dies(root, searcher, 6, landed=True)
    assert dies(root, searcher, 5, landed=False)
    grid = study(root, searcher).fit()
    assert decided(root / searcher) == decided(s3 / "alone" / searcher)
    assert len(grid) == 8
    assert grid.num_terminated == 8
    assert {name.split("-")[0] for name in objects(root / searcher / "journal")} == {"000001", "000002", "000003"}
    reports = grid.to_arrow("reports")
    assert reports.num_rows == len(set(zip(*(reports[name].to_pylist() for name in ("trial", "step")), strict=True)))
    for name, raw in objects(s3).items():
        assert KEY.encode() not in raw, name
        assert SECRET.encode() not in raw, name
    assert not [path for path in home.rglob("*") if path.is_file()]


def test_the_public_face_of_a_study_in_an_object_store(s3: Place, home: Path) -> None:
    uri = str(s3 / "random")
    assert not tune.Tuner.can_restore(uri)
    with pytest.raises(ValueError, match="there is no study in s3://"):
        tune.Tuner.restore(uri, bowl)
    first = study(s3, "random").fit()
    assert first.experiment_path == uri
    assert tune.Tuner.can_restore(uri)
    before = objects(s3 / "random" / "journal")
    again = tune.Tuner.restore(uri, bowl, executor="inline").fit()
    assert again.get_dataframe().equals(first.get_dataframe())
    assert again.get_dataframe().equals(tune.ResultGrid(uri).get_dataframe())
    assert objects(s3 / "random" / "journal") == before
    assert tune.History.from_study(uri).rows
    said = CliRunner().invoke(cli.main, ["plan", uri, "--workers", "2", "--json"])
    assert said.exit_code == 0, said.output
    assert json.loads(said.output)
    with pytest.raises(ValueError, match="holds another study"):
        tune.Tuner(
            bowl,
            param_space={"x": tune.uniform(0, 9)},
            run_config=tune.RunConfig(name="random", storage_path=str(s3), verbose=0),
            executor="inline",
        ).fit()


def test_a_second_driver_is_refused(s3: Place) -> None:
    with ObjectLock(s3 / "random"), pytest.raises(tune.StudyInUse, match=r"process \d+ on .*last heard of \d+ s ago"):
        study(s3, "random").fit()


def test_trials_have_folders_on_their_own_machine(s3: Place, home: Path) -> None:
    def train(config: dict[str, float]) -> None:
        Path("notes").write_text("mine")
        print("hello")
        tune.report({"loss": config["x"], "dir": tune.get_context().get_trial_dir(), "cwd": str(Path.cwd())})

    grid = tune.Tuner(
        train,
        param_space={"x": tune.uniform(0, 1)},
        tune_config=tune.TuneConfig(metric="loss", mode="min", num_samples=2),
        run_config=tune.RunConfig(name="mine", storage_path=str(s3), verbose=0, log_to_file=True),
        executor="inline",
    ).fit()
    for result in grid:
        folder = Path(result.metrics["dir"])
        assert str(folder) == result.metrics["cwd"]
        assert folder.parent.parent.name == "mine"
        assert home / ".cache" / "raytuner" in folder.parents
        assert ((folder / "notes").read_text(), (folder / "stdout").read_text()) == ("mine", "hello\n")


# -------------------------------------------------------------------------------------------- many deaths, simulated


@pytest.fixture
def fate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fate]:
    """Every object that is written may be the driver's last, and may be there all the same. The dead write nothing."""
    fate = Fate(random.Random(0))
    write = Place.write

    def mortal(place: Place, data: bytes) -> None:
        if fate.moments is not None and fate.moments <= 0:
            return
        if not fate.passes():
            if fate.rng.random() < 0.5:
                write(place, data)
            raise Died
        write(place, data)

    monkeypatch.setattr(Place, "write", mortal)
    return fate


def check(case: Case, root: Place, fate: Fate, gap: int) -> None:
    expected, _ = live_through(case, root / "alone", fate, gap=None)
    found, checks = live_through(case, root / "dying", fate, gap)
    assert checks.deaths > 1
    assert found == expected


@pytest.mark.usefixtures("few_candidates")
def test_decisions_are_those_of_the_study_left_alone(s3: Place, fate: Fate) -> None:
    check(Case(BOHB(), HyperBandScheduler(max_t=9), SPACE, trials=8, slots=3), s3, fate, gap=8)


@pytest.mark.chaos
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("few_candidates")
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("searcher", "scheduler"),
    [(BOHB(), HyperBandScheduler(max_t=9)), (RandomSearch(), AsyncHyperBandScheduler(max_t=9))],
    ids=["bohb-hyperband", "random-asha"],
)
def test_many_deaths(searcher: Any, scheduler: Any, seed: int, s3: Place, fate: Fate) -> None:
    fate.rng.seed(seed)
    check(Case(searcher, scheduler, SPACE, trials=16, slots=4, seed=seed), s3, fate, gap=30)
