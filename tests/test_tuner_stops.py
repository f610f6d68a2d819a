"""How trials and studies end, on a real Ray: stop rules, budgets, failures, grace; and what a trial finds around it.

Where what matters happens in the driver, and not in actors, trials run inline.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import raytuner as tune
from raytuner.events import Over, StopAsked
from raytuner.record.journal import read
from raytuner.results import ResultGrid, TrialFailed
from raytuner.schedulers import HyperBandScheduler
from raytuner.searchers import BOHB
from raytuner.trial import State, Why

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray"), pytest.mark.timeout(180)]

RUN = ("stop", "failure_config", "checkpoint_config", "log_to_file", "runtime_env", "stop_grace_s")


def tuner(folder: Path, train: Any, executor: str = "ray", **settings: Any) -> tune.Tuner:
    run = {name: settings.pop(name) for name in RUN if name in settings}
    space = settings.pop("space", {"x": tune.uniform(0, 1)})
    config = {"metric": "loss", "mode": "min", "num_samples": 2, "seed": 3, "max_concurrent_trials": 2} | settings
    return tune.Tuner(
        train,
        param_space=space,
        tune_config=tune.TuneConfig(**config),
        run_config=tune.RunConfig(name="study", storage_path=folder, verbose=0, **run),
        executor=executor,
    )


def counting(
    folder: Path, length: int = 9, at_each_step: Callable[[], object] = lambda: None
) -> Callable[[dict[str, Any]], None]:
    """A training function that saves where it is told to, and writes down each step that it begins."""

    def train(config: dict[str, Any]) -> None:
        trial, step = tune.get_context().get_trial_id(), 0
        if checkpoint := tune.get_checkpoint():
            step = json.loads(Path(checkpoint.path, "state").read_text())
        while step < length:
            step += 1
            with open(folder / f"begun-{trial}", "a") as file:
                file.write(f"{step}\n")
            at_each_step()
            metrics = {"loss": config.get("x", 1.0) + 1 / step}
            if not tune.should_checkpoint():
                tune.report(metrics)
                continue
            with tempfile.TemporaryDirectory() as saved:
                Path(saved, "state").write_text(json.dumps(step))
                tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(saved))

    return train


def begun(folder: Path, trial: int) -> list[int]:
    path = folder / f"begun-{trial}"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def lengths(results: ResultGrid) -> list[int]:
    return [result.metrics["training_iteration"] for result in results]


@pytest.fixture
def time_flies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A file whose existence makes it an hour later, to the driver."""
    later = tmp_path / "later"
    monkeypatch.setattr("raytuner.tuner._Clock.now", lambda self: time.time() + 3600 * later.exists())
    return later


# ------------------------------------------------------------------------------------------------- rules about trials


def test_a_dict_ends_a_trial_where_its_report_is_made(tmp_path: Path) -> None:
    results = tuner(tmp_path, counting(tmp_path), stop={"training_iteration": 3}).fit()
    assert lengths(results) == [3, 3]
    assert begun(tmp_path, 0) == begun(tmp_path, 1) == [1, 2, 3], "no trial came to begin another step"
    assert {result.why for result in results} == {Why.STOP_RULE.value}


def test_a_function_ends_a_trial_before_it_goes_on(tmp_path: Path) -> None:
    asked: list[tuple[str, int]] = []

    def stop(trial_id: str, result: dict[str, Any]) -> bool:
        asked.append((trial_id, result["training_iteration"]))  # in this process
        return bool(result["training_iteration"] == 2 + int(trial_id))

    results = tuner(tmp_path, counting(tmp_path), stop=stop, num_samples=3).fit()
    assert lengths(results) == [2, 3, 4]
    assert [begun(tmp_path, trial) for trial in range(3)] == [[1, 2], [1, 2, 3], [1, 2, 3, 4]]
    assert sorted(asked) == [(str(trial), step) for trial in range(3) for step in range(1, 3 + trial)]
    assert {result.state for result in results} == {State.DONE}


def test_a_trial_that_a_rule_ends_lets_go_at_once(tmp_path: Path) -> None:
    """Its actor is wanted by nobody else."""
    let_go = tmp_path / "let-go"

    def train(config: dict[str, Any]) -> None:
        try:
            tune.report({"loss": 1.0})
            deadline = time.monotonic() + 30
            while not let_go.exists():
                assert time.monotonic() < deadline, "the other is still parked"
                time.sleep(0.01)
            tune.report({"loss": 1.0})
        finally:
            if tune.get_context().get_trial_id() == "0":
                let_go.touch()

    results = tuner(tmp_path, train, stop=lambda trial_id, result: trial_id == "0").fit()
    assert results.num_errors == 0
    assert lengths(results) == [1, 2]


class Enough(tune.Stopper):
    """Ends trial 0 at step 3 and, after that, the study at so many reports of all trials together."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.seen: list[tuple[str, int]] = []

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        self.seen.append((trial_id, result["training_iteration"]))
        return trial_id == "0" and result["training_iteration"] == 3

    def stop_all(self) -> bool:
        return len(self.seen) >= self.most and ("0", 3) in self.seen


def test_a_stopper_ends_the_study_for_good(tmp_path: Path) -> None:
    rule = Enough(12)
    results = tuner(tmp_path, counting(tmp_path, length=1000), stop=rule, num_samples=50).fit()
    assert lengths(results)[0] == 3
    assert results[0].why == Why.STOP_RULE.value
    assert {result.state for result in results[1:]} == {State.STOPPED}
    assert {result.why for result in results[1:]} == {Why.STUDY_STOPPED.value}
    assert len(results) <= 4, "nothing more was started"
    assert len(rule.seen) == len(set(rule.seen))
    [asked] = [row for row in read(tmp_path / "study").rows if isinstance(row, StopAsked)]
    assert asked.for_good
    before = [begun(tmp_path, trial) for trial in range(4)]
    again = tuner(tmp_path, counting(tmp_path, length=1000), stop=Enough(12), num_samples=50).fit()
    assert [result.state for result in again] == [result.state for result in results]
    assert [begun(tmp_path, trial) for trial in range(4)] == before, "and nothing runs again"


def test_a_study_that_ended_early_reminds_its_stopper(tmp_path: Path, time_flies: Path) -> None:
    def train(config: dict[str, Any]) -> None:
        counting(tmp_path, length=4)(config)
        if not time_flies.exists():
            time_flies.touch()
            while True:  # until the time is up
                tune.report({"loss": 1.0})
                time.sleep(0.01)

    first, second = Enough(10**6), Enough(10**6)
    same: dict[str, Any] = {"num_samples": 3, "max_concurrent_trials": 1}
    tuner(tmp_path, train, stop=first, time_budget_s=60, **same).fit()
    assert ("1", 4) in first.seen
    results = tuner(tmp_path, train, stop=second, time_budget_s=10000, **same).fit()
    assert second.seen[: len(first.seen)] == first.seen
    assert second.seen[len(first.seen) :]
    assert {result.state for result in results} == {State.DONE}


def test_a_rule_that_raises_ends_fit_with_its_error(tmp_path: Path) -> None:
    def stop(trial_id: str, result: dict[str, Any]) -> bool:
        return bool(result["accuracy"] > 0.9)

    with pytest.raises(KeyError, match="accuracy") as caught:
        tuner(tmp_path, counting(tmp_path), "inline", stop=stop).fit()
    [note] = caught.value.__notes__
    assert note.startswith("raised by the run's stop rule <function test_a_rule_that_raises_ends_fit_with_its_error")
    assert note.endswith("asked about trial 0 at 1")


def test_a_trial_that_a_rule_has_seen_is_shown_as_running(tmp_path: Path) -> None:
    def stop(trial_id: str, result: dict[str, Any]) -> bool:
        if result["training_iteration"] == 3:
            raise RuntimeError("here")
        return False

    study = tuner(tmp_path, counting(tmp_path), "inline", stop=stop)
    with pytest.raises(RuntimeError, match="here"):
        study.fit()
    assert [result.state for result in study.get_results()] == [State.RUNNING]


class TestRaysOwn:
    """Ray's stoppers, as they are."""

    def test_combined_and_maximum_iteration(self, tmp_path: Path) -> None:
        from ray.tune.stopper import CombinedStopper, FunctionStopper, MaximumIterationStopper

        second = FunctionStopper(lambda trial_id, result: trial_id == "1" and result["training_iteration"] >= 2)
        stop = CombinedStopper(MaximumIterationStopper(4), second)
        assert lengths(tuner(tmp_path, counting(tmp_path), stop=stop).fit()) == [4, 2]
        assert begun(tmp_path, 0) == [1, 2, 3, 4]

    def test_trial_plateau(self, tmp_path: Path) -> None:
        from ray.tune.stopper import TrialPlateauStopper

        def train(config: dict[str, Any]) -> None:
            flat = 3 if tune.get_context().get_trial_id() == "0" else 6
            for step in range(1, 20):
                tune.report({"loss": 1.0 / min(step, flat)})

        stop = TrialPlateauStopper("loss", std=0.001, num_results=3, grace_period=3)
        assert lengths(tuner(tmp_path, train, "inline", stop=stop).fit()) == [5, 8]

    def test_experiment_plateau(self, tmp_path: Path) -> None:
        from ray.tune.stopper import ExperimentPlateauStopper

        stop = ExperimentPlateauStopper("loss", std=0.001, top=3, mode="min", patience=2)
        results = tuner(
            tmp_path, lambda config: {"loss": 1.0}, "inline", space={"x": tune.uniform(0, 1)}, stop=stop, num_samples=90
        ).fit()
        assert 3 < len(results) < 10
        assert read(tmp_path / "study").rows[-1].reason == Why.STUDY_STOPPED.value  # type: ignore[union-attr]


# ------------------------------------------------------------------------------------------------------------- budgets


def test_a_time_budget_ends_the_study_and_a_larger_one_goes_on(tmp_path: Path, time_flies: Path) -> None:
    def at_each_step() -> None:
        if min(len(begun(tmp_path, trial)) for trial in (0, 1)) >= 5:
            time_flies.touch()
        time.sleep(0.005)

    train = counting(tmp_path, length=10**6, at_each_step=at_each_step)
    results = tuner(tmp_path, train, num_samples=3, time_budget_s=60).fit()
    assert [result.state for result in results] == [State.RUNNING, State.RUNNING]
    assert [row.reason for row in read(tmp_path / "study").rows if isinstance(row, StopAsked)] == [
        "its time budget of 60 s is used up (a larger time_budget_s lets it go on)"
    ]
    stood = lengths(results)
    for trial, result in enumerate(results):
        assert result.checkpoint is not None
        assert Path(result.checkpoint.path, "state").read_text() == str(stood[trial])
        assert begun(tmp_path, trial) == list(range(1, stood[trial] + 1))

    again = tuner(tmp_path, train, num_samples=3, time_budget_s=60).fit()
    assert lengths(again) == stood, "it has had its time"

    train = counting(tmp_path, length=max(stood) + 3)
    more = tune.TuneConfig(metric="loss", mode="min", num_samples=3, max_concurrent_trials=2, time_budget_s=10000)
    run = tune.RunConfig(verbose=0)
    results = tune.Tuner.restore(tmp_path / "study", train, tune_config=more, run_config=run).fit()
    assert [result.state for result in results] == [State.DONE] * 3
    for trial in range(3):
        assert begun(tmp_path, trial) == list(range(1, max(stood) + 4)), "no step is done twice"


def test_what_does_not_end_in_time_is_killed(tmp_path: Path, time_flies: Path) -> None:
    """Told to end in the middle of a step that takes minutes; what it had said stays."""

    def train(config: dict[str, Any]) -> None:
        counting(tmp_path, length=2)(config)
        if not time_flies.exists():
            time_flies.touch()
            time.sleep(100)

    begun_at = time.monotonic()
    same: dict[str, Any] = {"num_samples": 1, "stop_grace_s": 0.5}
    results = tuner(tmp_path, train, time_budget_s=60, **same).fit()
    assert time.monotonic() - begun_at < 40
    assert [result.state for result in results] == [State.RUNNING]
    assert lengths(results) == [2]
    results = tuner(tmp_path, train, time_budget_s=10000, **same).fit()
    assert [result.state for result in results] == [State.DONE]


def test_what_does_not_return_from_a_stop_is_killed(tmp_path: Path) -> None:
    """The study does not wait for it; its actor is replaced for the next trial."""

    def train(config: dict[str, Any]) -> None:
        try:
            counting(tmp_path)(config)
        except BaseException:
            if tune.get_context().get_trial_id() == "0":
                time.sleep(100)
            raise

    begun_at = time.monotonic()
    results = tuner(
        tmp_path,
        train,
        stop=lambda trial_id, result: result["training_iteration"] == 2,
        stop_grace_s=0.5,
        num_samples=3,
        max_concurrent_trials=1,
    ).fit()
    assert time.monotonic() - begun_at < 40
    assert lengths(results) == [2, 2, 2]
    assert {result.why for result in results} == {Why.STOP_RULE.value}


# ------------------------------------------------------------------------------------------------------------ failures


def test_fail_fast_ends_the_study_which_can_be_resumed(tmp_path: Path) -> None:
    same: dict[str, Any] = {
        "space": {"x": tune.grid_search([0, 1, 2])},
        "num_samples": 1,
        "failure_config": tune.FailureConfig(fail_fast=True),
    }
    slow = counting(tmp_path, length=10**6)

    def train(config: dict[str, Any]) -> None:
        if config["x"] == 1:
            while not begun(tmp_path, 0):
                time.sleep(0.01)
            raise RuntimeError("x is 1")
        slow(config)

    results = tuner(tmp_path, train, **same).fit()
    assert [result.state for result in results] == [State.RUNNING, State.FAILED]
    assert "RuntimeError: x is 1" in str(results[1].error)
    asked = read(tmp_path / "study").rows[-1]
    assert asked.reason == "trial 1 failed and fail_fast is set"  # type: ignore[union-attr]
    stood = results[0].metrics["training_iteration"]
    assert begun(tmp_path, 0) == list(range(1, stood + 1))

    results = tuner(tmp_path, counting(tmp_path, length=stood + 5), **same).fit()
    assert [result.state for result in results] == [State.DONE, State.FAILED, State.DONE]
    assert begun(tmp_path, 0) == list(range(1, stood + 6)), "no step is done twice"


def test_fail_fast_may_raise(tmp_path: Path) -> None:
    def train(config: dict[str, Any]) -> None:
        if config["x"] == 1:
            raise RuntimeError("x is 1")
        tune.report({"loss": 1.0})

    study = tuner(
        tmp_path,
        train,
        "inline",
        space={"x": tune.grid_search([0, 1, 2])},
        num_samples=1,
        failure_config=tune.FailureConfig(fail_fast="raise"),
    )
    with pytest.raises(TrialFailed, match=r"(?s)^Traceback .* in train\n.*RuntimeError: x is 1"):
        study.fit()
    assert [result.state for result in study.get_results()] == [State.DONE, State.FAILED]
    assert [result.state for result in study.fit()] == [State.DONE, State.FAILED, State.DONE]


def test_a_trial_that_fails_too_often_fails(tmp_path: Path) -> None:
    """Each time it goes on from its last checkpoint, that of step 2, and raises in step 4."""

    def train(config: dict[str, Any]) -> None:
        def at_each_step() -> None:
            if config["x"] == 1 and begun(tmp_path, 1)[-1] == 4:
                raise RuntimeError("step 4")

        counting(tmp_path, length=5, at_each_step=at_each_step)(config)

    results = tuner(
        tmp_path,
        train,
        space={"x": tune.grid_search([0, 1])},
        num_samples=1,
        failure_config=tune.FailureConfig(max_failures=2),
        checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=2),
    ).fit()
    assert [result.state for result in results] == [State.DONE, State.FAILED]
    assert begun(tmp_path, 1) == [1, 2, 3, 4, 3, 4, 3, 4]
    assert lengths(results) == [5, 3]
    assert str(results[1].error).rstrip().endswith("RuntimeError: step 4")
    over = [row for row in read(tmp_path / "study").rows if isinstance(row, Over)]
    assert len(over) == 2


@pytest.mark.parametrize(
    ("on_nan", "states", "steps"),
    [("fail", [State.FAILED, State.DONE], [1, 3]), ("ignore", [State.DONE, State.DONE], [3, 3])],
)
def test_nan_ends_a_trial_by_policy(on_nan: str, states: list[State], steps: list[int], tmp_path: Path) -> None:
    def train(config: dict[str, Any]) -> None:
        for loss in (config["first"], 2.0, 1.0):
            tune.report({"loss": loss})

    results = tuner(
        tmp_path,
        train,
        space={"first": tune.grid_search([float("nan"), 3.0])},
        num_samples=1,
        failure_config=tune.FailureConfig(on_nan=on_nan),
    ).fit()
    assert [result.state for result in results] == states
    assert lengths(results) == steps
    if on_nan == "fail":
        assert str(results[0].error) == "metric 'loss' was nan; a finite number is needed"


# ------------------------------------------------------------------------------------------- what a trial finds there


def test_a_working_directory_logs_and_environment_of_its_own(tmp_path: Path) -> None:
    def train(config: dict[str, Any]) -> None:
        import sys

        trial = tune.get_context().get_trial_id()
        print(f"hello from {trial}")
        print(f"oh, {trial}", file=sys.stderr)
        Path("notes.txt").write_text(trial)
        tune.report({"loss": 1.0, "cwd": os.getcwd(), "said": os.environ.get("RAYTUNER_TEST", "nothing")})

    environment = {"env_vars": {"RAYTUNER_TEST": "forty-two"}}
    results = tuner(tmp_path, train, log_to_file=True, runtime_env=environment).fit()
    for trial, result in enumerate(results):
        folder = tmp_path / "study" / "artifacts" / f"{trial:06d}"
        assert result.metrics["cwd"] == str(folder)
        assert result.metrics["said"] == "forty-two"
        assert (folder / "notes.txt").read_text() == str(trial)
        assert (folder / "stdout").read_text() == f"hello from {trial}\n"
        assert (folder / "stderr").read_text() == f"oh, {trial}\n"


def test_it_may_stay_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def train(config: dict[str, Any]) -> None:
        print("hello")
        tune.report({"loss": 1.0, "cwd": os.getcwd()})

    results = tuner(tmp_path, train, "inline", chdir_to_trial_dir=False, log_to_file=("out", "errors")).fit()
    assert [result.metrics["cwd"] for result in results] == [str(tmp_path)] * 2
    assert (tmp_path / "study" / "artifacts" / "000001" / "out").read_text() == "hello\n"


def test_parameters_travel_to_functions(tmp_path: Path) -> None:
    def train(config: dict[str, Any], data: Any, *, scale: float) -> dict[str, Any]:
        return {"loss": float(data.sum()) * scale, "writeable": data.flags.writeable}

    bound = tune.with_parameters(tune.with_resources(train, {"cpu": 1}), data=np.arange(100_000), scale=2.0)
    results = tuner(tmp_path, bound).fit()
    assert [result.metrics["loss"] for result in results] == [9999900000.0] * 2


class Descent(tune.Trainable):
    """Goes down by its rate; what it reports tells whether it was mixed up with another trial."""

    built = 0

    def setup(self, config: dict[str, Any], start: float = 0.0) -> None:
        type(self).built += 1
        self.rate, self.value = config["rate"], start

    def step(self) -> dict[str, Any]:
        self.value -= self.rate
        return {"loss": self.value, "built": type(self).built, "stood": self.iteration}

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        return {"value": self.value}

    def load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.value = checkpoint["value"]

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.rate, self.value = new_config["rate"], 100.0
        return True


def test_a_class_under_hyperband_is_built_once_a_process(tmp_path: Path) -> None:
    results = tuner(
        tmp_path,
        tune.with_parameters(Descent, start=100.0),
        space={"rate": tune.uniform(1, 2)},
        scheduler=HyperBandScheduler(max_t=9),
        num_samples=22,
    ).fit()
    assert results.num_errors == 0
    assert set(lengths(results)) == {1, 3, 9}
    reports = results.to_arrow("reports").to_pylist()
    rates = {int(result.trial_id): result.config["rate"] for result in results}
    for row in reports:
        assert row["loss"] == pytest.approx(100.0 - row["step"] * rates[row["trial"]])
        assert row["stood"] == row["step"] - 1
    assert {row["built"] for row in reports} == {1}, "all others were reset from it"
    assert len({row["pid"] for row in reports}) <= 2, "a second worker may come too late to be of use"


# ------------------------------------------------------------------------------------------------ inline, end to end


def test_inline(tmp_path: Path) -> None:
    def train(config: dict[str, Any]) -> None:
        pids.add(os.getpid())
        counting(tmp_path)(config)

    pids: set[int] = set()
    same: dict[str, Any] = {"search_alg": BOHB(), "scheduler": HyperBandScheduler(max_t=9), "num_samples": 22}
    results = tuner(tmp_path, train, "inline", **same).fit()
    assert pids == {os.getpid()}
    assert results.num_terminated == len(results) == 22
    assert set(lengths(results)) == {1, 3, 9}
    best = results.get_best_result()
    assert best.checkpoint is not None
    assert Path(best.checkpoint.path, "state").read_text() == "9"
    for trial, length in enumerate(lengths(results)):
        assert begun(tmp_path, trial) == list(range(1, length + 1)), "what made room went on from its checkpoint"
    again = tuner(tmp_path, train, "inline", **same).fit()
    assert again.to_arrow("reports").equals(results.to_arrow("reports"))


def test_inline_and_ray_take_the_same_decisions_on_one_slot(tmp_path: Path) -> None:
    from tests.lives import decisions

    same: dict[str, Any] = {"search_alg": BOHB(), "scheduler": HyperBandScheduler(max_t=3), "num_samples": 8}
    found = []
    for executor in ("inline", "ray"):
        (tmp_path / executor).mkdir()
        train = counting(tmp_path / executor)
        tuner(tmp_path / executor, train, executor, max_concurrent_trials=1, **same).fit()
        found.append(decisions(read(tmp_path / executor / "study").rows))
    assert found[0] == found[1]


# ------------------------------------------------------------------------------------------------------------- objects


class Scale:
    def __init__(self, by: float) -> None:
        self.by = by

    def __call__(self, value: float) -> float:
        return self.by * value


def test_objects_in_the_space_are_supplied_again(tmp_path: Path, time_flies: Path) -> None:
    def train(config: dict[str, Any]) -> None:
        for _ in range(3):
            tune.report({"loss": config["scale"](float(config["data"].sum()))})
        if not time_flies.exists():
            time_flies.touch()
            while True:
                tune.report({"loss": 1.0})
                time.sleep(0.01)

    def space(by: float) -> Mapping[str, Any]:
        return {"data": np.arange(4), "scale": tune.grid_search([Scale(1.0), Scale(by), Scale(3.0)])}

    same: dict[str, Any] = {"num_samples": 1, "max_concurrent_trials": 1}
    results = tuner(tmp_path, train, space=space(2.0), time_budget_s=60, **same).fit()
    assert [result.state for result in results] == [State.RUNNING]
    with pytest.raises(ValueError, match=r"holds another study: .*scale"):
        tuner(tmp_path, train, space=space(2.5), time_budget_s=10000, **same).fit()
    results = tuner(tmp_path, train, space=space(2.0), time_budget_s=10000, **same).fit()
    assert [result.state for result in results] == [State.DONE] * 3
    assert [result.metrics["loss"] for result in results][1:] == [12.0, 18.0]


def test_objects_that_are_not_supplied_are_asked_for(tmp_path: Path) -> None:
    space = {
        "data": np.arange(4),
        "model": tune.choice([{"activation": np.tanh}, {"$held": ["no", "object", "here"]}]),
        "x": tune.uniform(0, 1),
    }
    results = tuner(tmp_path, counting(tmp_path, length=1), "inline", space=space).fit()
    assert results.num_errors == 0
    with pytest.raises(ValueError) as caught:
        tune.Tuner.restore(tmp_path / "study", counting(tmp_path))
    assert str(caught.value) == (
        "param_space must be given again: the study's holds objects, at data, model[0]/activation"
    )
    assert len(tune.Tuner.restore(tmp_path / "study", counting(tmp_path), param_space=space).get_results()) == 2


@pytest.fixture(autouse=True)
def nothing_is_left(local_ray: None) -> Iterator[None]:
    """Every sweep gives back what it reserved."""
    import ray

    yield
    deadline = time.monotonic() + 20
    while ray.available_resources().get("CPU") != ray.cluster_resources().get("CPU"):
        assert time.monotonic() < deadline, "an actor was left behind"
        time.sleep(0.05)


@pytest.mark.parametrize("at_report", range(11, 19))
def test_an_early_end_saves_also_under_a_rule_that_is_code(at_report: int, tmp_path: Path) -> None:
    """Its trials are parked at each report, some of them just when the end is asked for."""
    seen: list[str] = []

    def rule(trial_id: str, result: dict[str, Any]) -> bool:
        seen.append(trial_id)
        if len(seen) == at_report:
            signal.raise_signal(signal.SIGTERM)
        return False

    study = tuner(tmp_path, counting(tmp_path, length=10**6), stop=rule, num_samples=4)
    with pytest.raises(SystemExit) as left:
        study.fit()
    assert left.value.code == 143
    results = study.get_results()
    reports = results.to_arrow("reports").to_pandas()
    assert len(reports) >= at_report
    for result in results:
        said = reports[reports["trial"] == int(result.trial_id)]["step"]
        if len(said):
            assert result.checkpoint is not None, f"trial {result.trial_id} reported {said.max()} steps and saved none"
            assert json.loads(Path(result.checkpoint.path, "state").read_text()) == said.max()


def test_resources_that_cannot_be_had_end_a_trial_at_once(tmp_path: Path) -> None:
    def wants(config: Mapping[str, Any]) -> dict[str, float]:
        return {"cpu": 64 if config["x"] > 0.5 else 1}

    results = tuner(
        tmp_path,
        tune.with_resources(counting(tmp_path, 2), wants),
        space={"x": tune.grid_search([0.0, 1.0])},
        num_samples=1,
        failure_config=tune.FailureConfig(max_failures=-1),
    ).fit()
    assert [result.state for result in results] == [State.DONE, State.FAILED]
    assert results[1].why == Why.NO_RESOURCES.value
    assert "no trial fits on any node of this cluster; CPU: 64 wanted, 4 there" in str(results[1].error)
