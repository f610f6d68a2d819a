"""How trials fail, seen from outside: what runs again, with what, and what ends the whole study."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import raytuner as tune
from raytuner.events import Failed, Retry
from raytuner.record.journal import read
from raytuner.results import ResultGrid
from raytuner.searchers import BOHB
from raytuner.trial import Failure, State


class OutOfMemoryError(RuntimeError):
    """By the name that PyTorch gives it."""


def sweep(folder: Path, train: Any, trials: int = 6, executor: str = "inline", **failures: Any) -> tune.Tuner:
    return tune.Tuner(
        train,
        param_space={"x": tune.uniform(0, 1), "net": {"batch": tune.choice([64])}},
        tune_config=tune.TuneConfig(metric="loss", mode="min", num_samples=trials, seed=3, max_concurrent_trials=1),
        run_config=tune.RunConfig(
            name="study", storage_path=folder, verbose=0, failure_config=tune.FailureConfig(**failures)
        ),
        executor=executor,
    )


def failures(folder: Path) -> list[Failed]:
    return [row for row in read(folder / "study").rows if isinstance(row, Failed)]


# ------------------------------------------------------------------------------------------------------- memory


def fits(most: int) -> Callable[[dict[str, Any]], None]:
    """A trial that saves each step, and at the third has room for so large a batch."""

    def train(config: dict[str, Any]) -> None:
        step = 0
        if checkpoint := tune.get_checkpoint():
            step = int(Path(checkpoint.path, "step").read_text())
        while step < 5:
            step += 1
            if step == 3 and config["net"]["batch"] > most:
                raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            with tempfile.TemporaryDirectory() as folder:
                Path(folder, "step").write_text(str(step))
                tune.report({"loss": config["x"], "batch": config["net"]["batch"]}, checkpoint=tune.Checkpoint(folder))

    return train


def halve(config: dict[str, Any], error: str, times: int) -> dict[str, Any]:
    assert "CUDA out of memory" in error
    return {"net": {"batch": max(1, config["net"]["batch"] // 2)}}


def test_a_remedy_lets_a_trial_go_on_from_its_checkpoint(tmp_path: Path) -> None:
    results = sweep(tmp_path, fits(16), trials=2, on_oom=halve).fit()
    assert not results.errors
    for result in results:
        assert result.config["net"] == {"batch": 64}, "as it was proposed"
        assert result.remedy == {"net": {"batch": 16}}
        assert result.metrics["batch"] == 16
        assert result.metrics_dataframe["batch"].tolist() == [64, 64, 16, 16, 16]
    assert [row.remedy for row in failures(tmp_path)] == [{"net": {"batch": 32}}, {"net": {"batch": 16}}] * 2
    assert {row.failure for row in failures(tmp_path)} == {Failure.OUT_OF_MEMORY}
    assert results.get_dataframe()["remedy/net/batch"].tolist() == [16, 16]


def test_a_remedy_that_does_not_help_ends_the_trial(tmp_path: Path) -> None:
    results = sweep(tmp_path, fits(0), trials=1, on_oom=halve, max_failures=0).fit()
    assert [result.why for result in results] == ["the accelerator's memory was too small for it"]
    assert results[0].remedy == {"net": {"batch": 1}}
    assert "Tried to allocate" in str(results.errors[0])


def test_without_a_remedy_it_is_an_error_like_others(tmp_path: Path) -> None:
    results = sweep(tmp_path, fits(0), trials=1, max_failures=1).fit()
    assert results.num_errors == 1
    assert len(failures(tmp_path)) == 2


def test_remedies_are_remembered_and_asked_for_once(tmp_path: Path) -> None:
    """A resumed study replays what was answered, and its trials run with that."""
    room = tmp_path / "room"
    room.write_text("0")
    asked: list[int] = []

    def train(config: dict[str, Any]) -> None:
        if config["net"]["batch"] > int(room.read_text()):
            raise MemoryError
        tune.report({"loss": config["x"], "batch": config["net"]["batch"]})

    def on_oom(config: dict[str, Any], error: str, times: int) -> dict[str, Any] | None:
        asked.append(times)
        if len(asked) == 2:
            room.write_text("16")
            raise KeyboardInterrupt  # the driver dies
        return {"net": {"batch": config["net"]["batch"] // 2}}

    with pytest.raises((SystemExit, KeyboardInterrupt)):
        sweep(tmp_path, train, trials=2, on_oom=on_oom).fit()
    assert asked == [0, 1]
    results = sweep(tmp_path, train, trials=2, on_oom=on_oom).fit()
    assert [result.metrics["batch"] for result in results] == [16, 16]
    assert [row.remedy for row in failures(tmp_path)] == [{"net": {"batch": 32}}, {"net": {"batch": 16}}] * 2
    with pytest.raises(ValueError, match="on_oom"):
        tune.Tuner.restore(tmp_path / "study", train, executor="inline")


def test_a_model_keeps_away_from_where_memory_is_short(tmp_path: Path) -> None:
    """Trials without room are told to the searcher as failed; what it proposes then is elsewhere."""

    def train(config: dict[str, Any]) -> None:
        if config["size"] > 0.5:
            raise OutOfMemoryError("CUDA out of memory")
        tune.report({"loss": 1 - config["size"] + config["x"]})

    tuner = tune.Tuner(
        train,
        param_space={"x": tune.uniform(0, 1), "size": tune.uniform(0, 1)},
        tune_config=tune.TuneConfig(metric="loss", mode="min", num_samples=30, seed=1, search_alg=BOHB()),
        run_config=tune.RunConfig(
            name="s", storage_path=tmp_path, verbose=0, failure_config=tune.FailureConfig(max_same_failures=None)
        ),
        executor="inline",
    )
    sizes = [result.config["size"] > 0.5 for result in tuner.fit()]
    assert sum(sizes[:10]) >= 3, "by chance half of them"
    assert sum(sizes[-10:]) <= 3


# ------------------------------------------------------------------------------------------------- users' errors


def test_the_same_traceback_three_times_ends_a_trial(tmp_path: Path) -> None:
    def train(config: dict[str, Any]) -> None:
        raise ValueError(f"no good at {time.time()}")

    results = sweep(tmp_path, train, trials=1, max_failures=-1).fit()
    assert results.num_errors == 1
    assert len(failures(tmp_path)) == 3


def test_progress_between_makes_an_error_another_one(tmp_path: Path) -> None:
    def train(config: dict[str, Any]) -> None:
        step = 0
        if checkpoint := tune.get_checkpoint():
            step = int(Path(checkpoint.path, "step").read_text())
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "step").write_text(str(step + 1))
            tune.report({"loss": 1.0}, checkpoint=tune.Checkpoint(folder))
        if step < 9:
            raise ConnectionError("the data are away")

    results = sweep(tmp_path, train, trials=1, max_failures=-1).fit()
    assert results.num_errors == 0
    assert len(failures(tmp_path)) == 9


def test_what_no_table_holds_is_not_tried_again(tmp_path: Path) -> None:
    def train(config: dict[str, Any]) -> None:
        tune.report({"loss": 1.0, "model": object()})

    results = sweep(tmp_path, train, trials=1, max_failures=-1).fit()
    assert [result.why for result in results] == ["it reported a value that no table can hold"]
    assert "metric 'model' must be a number" in str(results.errors[0])
    assert len(failures(tmp_path)) == 1


# -------------------------------------------------------------------------------------------------- a common bug


def broken(folder: Path) -> Callable[[dict[str, Any]], None]:
    """A training function with a bug, until the file "mended" is there."""

    def train(config: dict[str, Any]) -> None:
        if not (folder / "mended").exists():
            raise ZeroDivisionError(f"at {config['x']}")
        tune.report({"loss": config["x"]})

    return train


def test_a_bug_stops_the_sweep_early_and_it_goes_on_when_mended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tuner = sweep(tmp_path, broken(tmp_path), trials=20)
    object.__setattr__(tuner._run, "verbose", 1)
    results = tuner.fit()
    assert results.num_errors == 5
    shown = capsys.readouterr().out
    assert "the first 5 trials all failed in the same way" in shown
    assert "ZeroDivisionError: at 0." in shown
    assert "Nothing that was recorded is lost. To go on:" in shown
    results = sweep(tmp_path, broken(tmp_path), trials=20).fit()
    assert results.num_errors == 6, "one more shows that it is still there"
    (tmp_path / "mended").touch()
    results = sweep(tmp_path, broken(tmp_path), trials=20).fit()
    assert (results.num_errors, results.num_terminated) == (6, 14)


def test_a_bug_may_burn_the_budget_if_that_is_wanted(tmp_path: Path) -> None:
    results = sweep(tmp_path, broken(tmp_path), trials=8, max_same_failures=None).fit()
    assert results.num_errors == len(results) == 8


def test_a_sweep_of_few_trials_that_all_fail_is_complete(tmp_path: Path) -> None:
    assert sweep(tmp_path, broken(tmp_path), trials=5).fit().num_errors == 5
    (tmp_path / "mended").touch()
    assert sweep(tmp_path, broken(tmp_path), trials=5).fit().num_errors == 5, "it is over: nothing is run"


@pytest.mark.parametrize("other", ["another error", "a value"])
def test_trials_that_fail_in_other_ways_or_not_at_all_are_no_bug(other: str, tmp_path: Path) -> None:
    begun: list[float] = []

    def train(config: dict[str, Any]) -> None:
        begun.append(config["x"])
        if len(begun) == 3 and other == "another error":
            raise KeyError("lr")
        if len(begun) == 3:
            tune.report({"loss": 1.0})
            return
        raise ZeroDivisionError

    results = sweep(tmp_path, train, trials=12, max_same_failures=4).fit()
    assert len(results) == 12


def test_a_study_from_before_there_was_that_rule_has_none(tmp_path: Path) -> None:
    sweep(tmp_path, broken(tmp_path), trials=8, max_same_failures=3).fit()
    record = tmp_path / "study" / "study.json"
    what = json.loads(record.read_text())
    for name in ("heartbeat_timeout_s", "max_same_failures", "on_oom"):
        del what["failure_config"][name]
    what.pop("sha256", None)
    for folder in ("journal", "reports"):
        for file in (tmp_path / "study" / folder).iterdir():
            file.unlink()
    record.write_text(json.dumps(what))
    assert sweep(tmp_path, broken(tmp_path), trials=8).fit().num_errors == 8


# ------------------------------------------------------------------------------------------------------- on Ray


def hangs(config: dict[str, Any]) -> None:
    """Saves its first step, and hangs in the second, for ever or until it is run again."""
    if checkpoint := tune.get_checkpoint():
        if config["x"] == 2:
            wait_for_ever()
        tune.report({"loss": float(Path(checkpoint.path, "x").read_text())})
        return
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "x").write_text(str(config["x"]))
        tune.report({"loss": 9.0}, checkpoint=tune.Checkpoint(folder))
    wait_for_ever()


def wait_for_ever() -> None:
    while True:
        time.sleep(1)


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
@pytest.mark.timeout(120)
def test_a_trial_that_hangs_says_where_and_runs_again(tmp_path: Path) -> None:
    results = tune.Tuner(
        hangs,
        param_space={"x": tune.grid_search([0, 1, 2])},
        tune_config=tune.TuneConfig(metric="loss", mode="min", max_concurrent_trials=2),
        run_config=tune.RunConfig(
            name="study",
            storage_path=tmp_path,
            verbose=0,
            failure_config=tune.FailureConfig(heartbeat_timeout_s=2.0, max_failures=0),
        ),
    ).fit()
    assert [result.state for result in results] == [State.DONE, State.DONE, State.FAILED]
    assert [result.metrics["loss"] for result in results] == [0.0, 1.0, 9.0]
    found = failures(tmp_path)
    assert {row.failure for row in found} == {Failure.HUNG}
    assert sorted(row.trial for row in found) == [0, 1, 2, 2]
    for row in found:
        assert "nothing was reported for 2 s" in row.message
        assert "in wait_for_ever" in row.message, "where it stood"
    retries = [row for row in read(tmp_path / "study").rows if isinstance(row, Retry)]
    assert {row.checkpoint for row in retries} == {1}


def holds_on(config: dict[str, Any]) -> None:
    """A trial that does not let other threads of its process speak, as a library may."""
    import ctypes

    tune.report({"loss": 1.0})
    ctypes.PyDLL(None).sleep(600)  # with the interpreter's lock held


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
@pytest.mark.timeout(120)
def test_a_process_that_does_not_answer_is_ended_too(tmp_path: Path) -> None:
    results = sweep(tmp_path, holds_on, trials=1, executor="ray", heartbeat_timeout_s=1.0).fit()
    assert results.num_errors == 1
    assert {row.failure for row in failures(tmp_path)} == {Failure.HUNG}
    assert all("did not say within" in row.message for row in failures(tmp_path))


def memory() -> tuple[int, int]:
    """Bytes that this machine has, and that are free."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    except OSError:
        return 1, 0
    total, available = (int(lines[name].split()[0]) * 2**10 for name in ("MemTotal", "MemAvailable"))
    return total, available


GREEDY = """
    import sys
    import time
    import raytuner as tune

    def train(config):
        tune.report({"loss": 1.0})
        held = bytearray(b"x") * int(config["gib"] * 2**30)
        time.sleep(3)
        tune.report({"loss": float(len(held) / 2**30)})

    tune.Tuner(
        train,
        param_space={"gib": 3.0},
        tune_config=tune.TuneConfig(metric="loss", mode="min", num_samples=1, max_concurrent_trials=1),
        run_config=tune.RunConfig(
            name="study",
            storage_path=sys.argv[1],
            verbose=0,
            failure_config=tune.FailureConfig(on_oom=lambda config, error, times: {"gib": 0.25} if times else None),
        ),
    ).fit()
"""


@pytest.mark.ray
@pytest.mark.timeout(180)
def test_what_ray_ends_for_want_of_memory_is_told_from_other_losses(tmp_path: Path) -> None:
    """With Ray's memory monitor at a threshold that the trial goes beyond: it runs again, as a lost one would, and then
    with what ``on_oom`` makes of it."""
    total, available = memory()
    if available < 5 * 2**30:
        pytest.skip("needs 5 GiB of free memory")
    script = tmp_path / "greedy.py"
    script.write_text(textwrap.dedent(GREEDY))
    threshold = (total - available + 1.5 * 2**30) / total
    monitor = {"RAY_memory_usage_threshold": f"{threshold:.4f}", "RAY_memory_monitor_refresh_ms": "100"}
    subprocess.run([sys.executable, str(script), str(tmp_path)], env=os.environ | monitor, check=True, timeout=150)
    assert [(row.failure, row.remedy) for row in failures(tmp_path)] == [
        (Failure.HOST_OUT_OF_MEMORY, None),
        (Failure.HOST_OUT_OF_MEMORY, {"gib": 0.25}),
    ]
    assert "running low on memory" in failures(tmp_path)[0].message
    (result,) = ResultGrid(tmp_path / "study")
    assert result.metrics["loss"] == 0.25


# -------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("heartbeat_timeout_s", 0, "heartbeat_timeout_s must be a number of seconds above 0"),
        ("heartbeat_timeout_s", "1", "heartbeat_timeout_s must be a number of seconds above 0"),
        ("max_same_failures", 0, "max_same_failures must be an integer, 1 or more, or None"),
        ("on_oom", 3, "on_oom must be a function"),
    ],
)
def test_bad_settings(name: str, wrong: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        tune.FailureConfig(**{name: wrong})
