"""What a study was begun with, and what is said of changes when it goes on."""

from __future__ import annotations

import logging
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import raytuner as tune
from raytuner.record.folder import Folder
from raytuner.record.provenance import changes, code, git, versions

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


def train(config: dict[str, Any]) -> None:
    tune.report({"loss": config["x"]})


def another(config: dict[str, Any]) -> None:
    tune.report({"loss": 2 * config["x"]})


def run_git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=A", "-c", "user.email=a@b.c"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


@needs_git
def test_the_state_of_a_repository(tmp_path: Path) -> None:
    assert git(tmp_path) == {}
    run_git(tmp_path, "init", "--quiet")
    assert git(tmp_path) == {}, "it has no commit"
    (tmp_path / "train.py").write_text("a")
    run_git(tmp_path, "add", "train.py")
    run_git(tmp_path, "commit", "--quiet", "-m", "a")
    clean = git(tmp_path)
    assert clean == {"commit": clean["commit"], "dirty": False}
    assert len(clean["commit"]) == 40
    (tmp_path / "notes").write_text("not tracked")
    assert git(tmp_path) == clean
    (tmp_path / "train.py").write_text("b")
    assert git(tmp_path) == {**clean, "dirty": True}
    assert git(tmp_path / "nowhere") == {}


def test_what_has_no_source_is_no_error() -> None:
    made: dict[str, Any] = {}
    exec("def train(config): pass", made)
    assert code(made["train"]) == {"source": None}
    assert code(train)["source"] != code(another)["source"]


@pytest.mark.parametrize(
    ("now", "said"),
    [
        ({}, []),
        ({"versions": {"python": "3.11.7", "torch": "2.9"}}, ["torch 2.8 is now 2.9"]),
        ({"versions": {"python": "3.11.7"}}, ["torch 2.8 is now not there"]),
        ({"versions": {"python": "3.11.7", "torch": "2.8", "ray": "3"}}, []),
        ({"code": {"source": "b", "commit": "c" * 40, "dirty": False}}, ["the training function's source has changed"]),
        (
            {"code": {"source": "a", "commit": "d" * 40, "dirty": False}},
            [f"git commit {'c' * 12} is now {'d' * 12}"],
        ),
        ({"code": {"source": "a"}}, [f"git commit {'c' * 12} is now unknown", "tracked files are changed now"]),
        ({"code": {"source": "a", "commit": "c" * 40, "dirty": True}}, ["tracked files are changed now"]),
    ],
)
def test_changes(now: dict[str, Any], said: list[str]) -> None:
    then = {
        "versions": {"python": "3.11.7", "torch": "2.8"},
        "code": {"source": "a", "commit": "c" * 40, "dirty": False},
    }
    assert changes(then, {**then, **now}) == said
    assert changes({}, {**then, **now}) == [], "what was not recorded is not missed"


def test_the_versions_of_what_is_here() -> None:
    assert versions()["raytuner"] == tune.__version__
    assert changes({"versions": versions()}, {"versions": versions()}) == []


def sweep(folder: Path, function: Any, trials: int) -> tune.Tuner:
    return tune.Tuner(
        function,
        param_space={"x": tune.uniform(0, 1)},
        tune_config=tune.TuneConfig(metric="loss", mode="min", num_samples=trials, seed=1),
        run_config=tune.RunConfig(name="study", storage_path=folder, verbose=0),
        executor="inline",
    )


def test_a_study_that_goes_on_says_what_changed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sweep(tmp_path, train, 2).fit()
    assert Folder(tmp_path / "study").read()["code"] == code(train)
    longer = tune.Tuner.restore
    with caplog.at_level(logging.WARNING):
        longer(tmp_path / "study", train, extend=tune.Extension(num_samples=3), executor="inline").fit()
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        results = longer(tmp_path / "study", another, extend=tune.Extension(num_samples=4), executor="inline").fit()
    assert "since the study study was begun: the training function's source has changed" in caplog.text
    assert [result.metrics["loss"] / result.config["x"] for result in results] == pytest.approx([1, 1, 1, 2])
