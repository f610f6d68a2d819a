"""The public face on a real Ray: `Tuner`, its configs, resuming, failures, and what it says to bad input."""

from __future__ import annotations

import json
import multiprocessing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import raytuner as tune
from raytuner.actions import Proposal
from raytuner.ledger import IllegalChange
from raytuner.record.journal import read
from raytuner.schedulers import ASHAScheduler, FIFOScheduler, HyperBandScheduler
from raytuner.searchers import BOHB, GridSearch, RandomSearch
from raytuner.trial import State
from tests.lives import decisions

with_ray = [pytest.mark.ray, pytest.mark.usefixtures("local_ray"), pytest.mark.timeout(180)]


def bowl(config: dict[str, Any]) -> None:
    """A learning curve that ends the lower, the nearer x is to 0.3; it saves where it is told to."""
    step = 0
    if checkpoint := tune.get_checkpoint():
        with checkpoint.as_directory() as folder:
            step = json.loads(Path(folder, "state.json").read_text())["step"]
    while step < 27:
        step += 1
        metrics = {"loss": (config["x"] - 0.3) ** 2 + 1 / step, "nested": {"step": step}}
        if tune.should_checkpoint():
            import tempfile

            with tempfile.TemporaryDirectory() as folder:
                Path(folder, "state.json").write_text(json.dumps({"step": step}))
                tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(folder))
        else:
            tune.report(metrics)


def tuner(folder: Path, train: Any = bowl, space: dict[str, Any] | None = None, **settings: Any) -> tune.Tuner:
    run = {name: settings.pop(name) for name in ("stop", "failure_config", "checkpoint_config") if name in settings}
    config = {"metric": "loss", "mode": "min", "num_samples": 6, "seed": 3, "max_concurrent_trials": 2} | settings
    return tune.Tuner(
        train,
        param_space={"x": tune.uniform(0, 1)} if space is None else space,
        tune_config=tune.TuneConfig(**config),
        run_config=tune.RunConfig(name="study", storage_path=folder, verbose=0, **run),
    )


class TestRuns:
    pytestmark = with_ray

    def test_hyperband_with_bohb(self, tmp_path: Path) -> None:
        results = tuner(
            tmp_path, num_samples=30, search_alg=BOHB(), scheduler=HyperBandScheduler(max_t=9), max_concurrent_trials=3
        ).fit()
        assert len(results) == 30
        assert results.num_errors == 0
        assert results.num_terminated == 30
        best = results.get_best_result()
        assert best.metrics["training_iteration"] == 9
        assert best.state is State.DONE
        assert best.checkpoint is not None
        with best.checkpoint.as_directory() as folder:
            assert json.loads(Path(folder, "state.json").read_text()) == {"step": 9}
        curve = best.metrics_dataframe
        assert list(curve["training_iteration"]) == list(range(1, 10))
        assert list(curve["nested/step"]) == list(range(1, 10))
        frame = results.get_dataframe()
        assert len(frame) == 30
        automatic = {
            *(
                "training_iteration",
                "time_this_iter_s",
                "time_total_s",
                "time_since_restore",
                "timestamp",
                "date",
                "done",
            ),
            *("iterations_since_restore", "trial_id", "hostname", "node_ip", "pid", "checkpoint_dir_name"),
        }
        assert {"config/x", "loss", *automatic} <= set(frame.columns)
        assert best.metrics["done"] is True
        assert best.metrics["checkpoint_dir_name"] == "000009"
        assert results.to_arrow("reports").num_rows >= 30
        # Slots are never idle for want of checkpoints: each trial saved just where its leases ended.
        assert {step for trial in results for _, m in trial.best_checkpoints for step in [m["training_iteration"]]} <= {
            1,
            3,
            9,
        }

    def test_asha_stops_and_goes_on_without_checkpoints(self, tmp_path: Path) -> None:
        def train(config: dict[str, Any]) -> None:
            for step in range(1, 10):
                tune.report({"loss": config["x"] + 1 / step})

        results = tuner(
            tmp_path, train, num_samples=12, scheduler=ASHAScheduler(max_t=9, reduction_factor=3), search_alg=BOHB()
        ).fit()
        steps = [result.metrics["training_iteration"] for result in results]
        assert set(steps) <= {1, 3, 9}
        assert max(steps) == 9
        assert min(steps) < 9
        table = results.to_arrow("reports")
        assert table.num_rows == sum(steps), "nothing was run twice"

    def test_the_grid_times_num_samples(self, tmp_path: Path) -> None:
        def train(config: dict[str, Any]) -> dict[str, Any]:
            return {"loss": config["a"] + config["x"]}

        space = {"a": tune.grid_search([1, 2, 3]), "b": tune.grid_search(["p", "q"]), "x": tune.uniform(0, 1)}
        results = tuner(tmp_path, train, space, num_samples=2).fit()
        assert [(r.config["a"], r.config["b"]) for r in results] == [(a, b) for b in "pq" for a in (1, 2, 3)] * 2
        assert len({r.config["x"] for r in results}) == 12

    def test_a_stop_rule_is_exact(self, tmp_path: Path) -> None:
        results = tuner(tmp_path, stop={"training_iteration": 4}, num_samples=3).fit()
        assert [r.metrics["training_iteration"] for r in results] == [4, 4, 4]
        assert {r.state for r in results} == {State.DONE}
        assert all(r.checkpoint for r in results), "should_checkpoint() knows of the stop rule"

    def test_a_stop_rule_passes_over_what_is_no_number(self, tmp_path: Path) -> None:
        def train(config: dict[str, Any]) -> None:
            for step in range(1, 9):
                tune.report({"loss": 1.0, "score": None if step < 3 else "high" if step < 5 else step})

        results = tuner(tmp_path, train, num_samples=1, stop={"score": 6}).fit()
        assert results.num_errors == 0
        assert results[0].metrics["training_iteration"] == 6

    def test_a_trials_own_folder(self, tmp_path: Path) -> None:
        def train(config: dict[str, Any]) -> None:
            context = tune.get_context()
            Path(context.get_trial_dir(), "notes.txt").write_text(context.get_trial_id())
            tune.report({"loss": 1.0, "study": context.get_experiment_name()})

        results = tuner(tmp_path, train, num_samples=2).fit()
        assert [result.metrics["study"] for result in results] == ["study", "study"]
        notes = [path.read_text() for path in sorted((tmp_path / "study" / "artifacts").glob("*/notes.txt"))]
        assert notes == ["0", "1"]

    def test_a_searcher_may_keep_what_it_gave(self, tmp_path: Path) -> None:
        import numpy as np

        class Reuses:
            config: dict[str, Any]

            def build(self, space: Any, seed: int) -> Any:
                self.config = {}
                return self

            def ask(self, trial: int, until: int, pending: Any) -> Any:
                self.config["x"] = np.float64(trial / 10)
                return Proposal(self.config)

            def tell(self, seen: Any) -> None: ...

            def recall(self, *args: Any) -> None: ...

        results = tuner(tmp_path, search_alg=Reuses(), num_samples=3, stop={"training_iteration": 1}).fit()
        assert [result.config["x"] for result in results] == [0.0, 0.1, 0.2]

    def test_failures_are_results(self, tmp_path: Path) -> None:
        def train(config: dict[str, Any]) -> None:
            if config["x"] < 0.5:
                raise ValueError("too small")
            tune.report({"loss": config["x"]})

        results = tuner(tmp_path, train, num_samples=8).fit()
        failed = [r for r in results if r.error]
        assert 0 < len(failed) < 8
        assert all(r.config["x"] < 0.5 and "too small" in str(r.error) for r in failed)
        assert results.num_errors == len(failed)
        assert results.get_best_result().config["x"] >= 0.5

    def test_a_report_without_the_metric_fails_with_the_names_it_has(self, tmp_path: Path) -> None:
        def train(config: dict[str, Any]) -> None:
            tune.report({"accuracy": 1.0, "lss": 0.1})

        results = tuner(tmp_path, train, num_samples=1).fit()
        assert "no metric 'loss' in the report; the trial reported: accuracy, lss" in str(results[0].error)

    def test_a_retry_starts_from_the_newest_checkpoint(self, tmp_path: Path) -> None:
        mark = tmp_path / "failed once"

        def train(config: dict[str, Any]) -> None:
            import tempfile

            step = 0
            if checkpoint := tune.get_checkpoint():
                step = int(Path(checkpoint.path, "step").read_text())
            while step < 6:
                step += 1
                if step == 5 and not mark.exists():
                    mark.touch()
                    raise RuntimeError("once")
                with tempfile.TemporaryDirectory() as folder:
                    Path(folder, "step").write_text(str(step))
                    tune.report({"loss": 1 / step}, checkpoint=tune.Checkpoint.from_directory(folder))

        results = tuner(
            tmp_path,
            train,
            num_samples=1,
            failure_config=tune.FailureConfig(max_failures=1),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=2),
        ).fit()
        assert results.num_errors == 0
        reports = results.to_arrow("reports")
        assert reports["step"].to_pylist() == [1, 2, 3, 4, 5, 6]
        assert reports["attempt"].to_pylist() == [1, 1, 1, 1, 2, 2]
        assert [m["training_iteration"] for _, m in results[0].best_checkpoints] == [5, 6]

    def test_the_same_script_goes_on_or_shows_what_it_found(self, tmp_path: Path) -> None:
        first = tuner(tmp_path, scheduler=HyperBandScheduler(max_t=3)).fit()
        again = tuner(tmp_path, scheduler=HyperBandScheduler(max_t=3)).fit()
        assert again.to_arrow("reports").equals(first.to_arrow("reports"))

    def test_the_same_seed_on_one_slot_takes_the_same_decisions(self, tmp_path: Path) -> None:
        found = []
        for name in "ab":
            tuner(
                tmp_path / name,
                num_samples=12,
                search_alg=BOHB(),
                scheduler=HyperBandScheduler(max_t=9),
                max_concurrent_trials=1,
            ).fit()
            found.append(decisions(read(tmp_path / name / "study").rows))
        assert found[0] == found[1]

    def test_restore_needs_only_the_folder_and_the_function(self, tmp_path: Path) -> None:
        started = tuner(
            tmp_path, search_alg=BOHB(model="kde", num_samples=8), scheduler=ASHAScheduler(max_t=9), num_samples=7
        )
        started.fit()
        assert tune.Tuner.can_restore(tmp_path / "study")
        restored = tune.Tuner.restore(tmp_path / "study", bowl, run_config=tune.RunConfig(verbose=0))
        assert len(restored.get_results()) == len(restored.fit()) == 7

    def test_an_interrupt_leaves_a_study_that_goes_on(self, tmp_path: Path) -> None:
        def train(config: dict[str, Any]) -> None:
            for step in range(1, 4):
                tune.report({"loss": config["x"] / step})

        class Interrupting(RandomSearch):
            def build(self, space: Any, seed: int) -> Any:
                searcher = super().build(space, seed)
                ask = searcher.ask

                def interrupted(trial: int, *args: Any) -> Any:
                    if trial == 4:
                        raise KeyboardInterrupt
                    return ask(trial, *args)

                searcher.ask = interrupted
                return searcher

        same = {"train": train, "num_samples": 8}
        with pytest.raises(SystemExit, match=r"^130$"):
            tuner(tmp_path, search_alg=Interrupting(), **same).fit()
        # The searcher's class is part of what the study is; here it is meant to be the same.
        what = json.loads((tmp_path / "study" / "study.json").read_text())
        what["search_alg"] = {"name": "RandomSearch", "args": {}}
        del what["sha256"]  # the first versions wrote none
        (tmp_path / "study" / "study.json").write_text(json.dumps(what))
        assert 0 < len(tuner(tmp_path, search_alg=RandomSearch(), **same).get_results()) <= 4
        results = tuner(tmp_path, search_alg=RandomSearch(), **same).fit()
        assert [r.metrics["training_iteration"] for r in results] == [3] * 8

    def test_a_trial_reserves_what_it_asks_for(self, tmp_path: Path) -> None:
        def train(config: dict[str, Any]) -> None:
            import os

            tune.report({"loss": 0.0, "gpus": os.environ["CUDA_VISIBLE_DEVICES"]})

        study = tuner(tmp_path, tune.with_resources(train, {"cpu": 1, "gpu": 2}), num_samples=2)
        assert [r.metrics["gpus"] for r in study.fit()] == ["0,1", "0,1"]

    def test_what_cannot_be_reserved_is_said_at_once(self, tmp_path: Path) -> None:
        study = tuner(tmp_path, tune.with_resources(bowl, {"gpu": 16}))
        with pytest.raises(ValueError, match="no trial fits on any node of this cluster; GPU: 16 wanted, 2 there"):
            study.fit()

    @pytest.mark.parametrize(
        ("said", "message"),
        [
            (3, "report.. takes a dict of metrics, got int: 3"),
            ({"loss": [1, 2]}, "metric 'loss' must be a number, a string or a bool, got list"),
            ({1: 2.0}, "metric names must be strings, got 1"),
        ],
    )
    def test_a_report_that_is_none_names_what_came(self, said: Any, message: str, tmp_path: Path) -> None:
        import re

        def train(config: dict[str, Any]) -> None:
            tune.report(said)

        results = tuner(tmp_path, train, num_samples=1).fit()
        assert re.search(message, str(results[0].error))


class TestAtTheDoor:
    """Errors before anything runs; none of these needs a Ray."""

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"mode": "best"}, "mode must be 'min' or 'max', got 'best'"),
            ({"mode": None}, "mode must be 'min' or 'max' where a metric is given"),
            ({"num_samples": 0}, "num_samples must be a whole number of at least 1"),
            ({"num_samples": 2.5}, "num_samples must be a whole number"),
            ({"max_concurrent_trials": 0}, "max_concurrent_trials must be a whole number of at least 1"),
            ({"seed": -1}, "seed must be a whole number of at least 0"),
            (
                {"search_alg": "bohb"},
                r"search_alg must be one of BOHB\(\), .*GridSearch\(\), RandomSearch\(\), .*or an object",
            ),
            ({"search_alg": BOHB}, "search_alg must be one of"),
            ({"scheduler": 3}, "scheduler must be one of"),
            ({"metric": None, "mode": None, "search_alg": BOHB()}, "metric must be given: BOHB"),
            ({"metric": None, "mode": None, "scheduler": ASHAScheduler()}, "metric must be given: AsyncHyperBand"),
            (
                {"scheduler": ASHAScheduler(metric="accuracy", mode="min")},
                "metric is 'loss' in TuneConfig, but 'accuracy'",
            ),
            ({"stop": {"loss": "low"}}, "stop must hold metric names and numbers"),
            ({"space": {"x": tune.grid_search([1])}, "search_alg": BOHB()}, "grid_search"),
            ({"metric": ["a", "b"]}, "metric must be the name of a reported metric"),
            ({"checkpoint_config": tune.CheckpointConfig(checkpoint_at_end=True)}, "checkpoint_at_end is for class"),
        ],
    )
    def test_wrong_settings(self, settings: dict[str, Any], message: str, tmp_path: Path) -> None:
        with pytest.raises((ValueError, TypeError), match=message):
            tuner(tmp_path, **settings)
        assert not (tmp_path / "study").exists()

    @pytest.mark.parametrize("train", [3, None, lambda: None, lambda a, b: None])
    def test_wrong_trainables(self, train: Any, tmp_path: Path) -> None:
        with pytest.raises(TypeError, match="trainable must"):
            tuner(tmp_path, train)

    def test_classes(self, tmp_path: Path) -> None:
        class Steps(tune.Trainable):
            def step(self) -> dict[str, Any]:
                return {"loss": 1.0}

        at_end = tune.CheckpointConfig(checkpoint_at_end=True)
        assert tuner(tmp_path, Steps, checkpoint_config=at_end)._describe()["trainable"].endswith("Steps")
        with pytest.raises(TypeError, match=r"^trainable dict is a class that lacks step, .*raytuner\.Trainable$"):
            tuner(tmp_path, dict)

    @pytest.mark.parametrize(
        ("resources", "message"),
        [({"cpu": -1}, "must be a number of 0 or more"), ({"gpu": 1.5}, "a fraction of one GPU or a whole number")],
    )
    def test_wrong_resources(self, resources: dict[str, float], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            tune.with_resources(bowl, resources)

    @pytest.mark.parametrize("name", ["", "a/b", "..", "."])
    def test_wrong_names(self, name: str) -> None:
        with pytest.raises(ValueError, match="name must be a plain folder name"):
            tune.RunConfig(name=name)

    def test_configs_that_are_none(self) -> None:
        assert tune.RunConfig(failure_config=None, checkpoint_config=None) == tune.RunConfig()  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"failure_config must be a raytuner\.FailureConfig, got 3"):
            tune.RunConfig(failure_config=3)  # type: ignore[arg-type]

    def test_remote_storage_is_not_there_yet(self) -> None:
        with pytest.raises(ValueError, match="hdfs:// is no storage that raytuner knows"):
            tune.RunConfig(storage_path="hdfs://node/x")
        with pytest.raises(ValueError, match="must hold no credentials"):
            tune.RunConfig(storage_path="s3://key:secret@bucket/x")

    def test_max_failures(self) -> None:
        with pytest.raises(ValueError, match=r"max_failures must be an integer, -1 .* or more, got -2"):
            tune.FailureConfig(max_failures=-2)

    @pytest.mark.parametrize("fail_fast", ["Raise", 1, None])
    def test_fail_fast(self, fail_fast: Any) -> None:
        with pytest.raises(ValueError, match=f"^fail_fast must be True, False or 'raise', got {fail_fast!r}$"):
            tune.FailureConfig(fail_fast=fail_fast)
        assert tune.FailureConfig(fail_fast="raise").fail_fast == "raise"

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"stop": 3}, r"stop must be a dict .*, a function \(trial_id, result\) -> bool, or a Stopper; got 3"),
            ({"stop": tune.Stopper}, r"stop must be a dict .*, or a Stopper; got <class 'raytuner\.stopper\.Stopper'>"),
            ({"stop_grace_s": 0}, "stop_grace_s must be a number of seconds above 0, got 0"),
            ({"runtime_env": "env"}, "runtime_env must be a dict such as {'env_vars': {…}}, got 'env'"),
            ({"verbose": -1}, "verbose must be a whole number of at least 0"),
            ({"log_to_file": 1}, "log_to_file must be True, False, a file's name or a pair of such, got 1"),
            ({"log_to_file": "a/b"}, "log_to_file must be True, False, a file's name or a pair of such, got 'a/b'"),
            ({"log_to_file": ("out",)}, r"log_to_file must be .* got \('out',\)"),
        ],
    )
    def test_how_to_run(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises((ValueError, TypeError), match=message):
            tune.RunConfig(**settings)

    @pytest.mark.parametrize(
        ("log_to_file", "files"),
        [
            (False, (None, None)),
            (True, ("stdout", "stderr")),
            ("log", ("log", "log")),
            (("out", "err"), ("out", "err")),
        ],
    )
    def test_where_to_log(self, log_to_file: Any, files: tuple[str | None, str | None]) -> None:
        assert tune.RunConfig(log_to_file=log_to_file).log_files == files

    def test_time_budgets(self) -> None:
        assert tune.TuneConfig(time_budget_s=timedelta(minutes=2)).budget_s == 120.0
        for budget in (0, -1.0, float("nan"), True, "60", timedelta()):
            with pytest.raises(ValueError, match=r"^time_budget_s must be a number of seconds above 0, got "):
                tune.TuneConfig(time_budget_s=budget)  # type: ignore[arg-type]

    def test_executors(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"^executor must be one of 'ray', 'inline', got 'local'$"):
            tune.Tuner(bowl, executor="local")

    def test_report_outside_a_trial(self) -> None:
        with pytest.raises(RuntimeError, match=r"report\(\) works inside a training function"):
            tune.report({"loss": 1})

    def test_no_study_to_restore(self, tmp_path: Path) -> None:
        assert not tune.Tuner.can_restore(tmp_path)
        with pytest.raises(ValueError, match="there is no study in"):
            tune.Tuner.restore(tmp_path, bowl)


def hold(folder: str, held: Any, done: Any) -> None:
    from raytuner.record.lock import FileLock

    with FileLock(Path(folder)):
        held.set()
        done.wait(60)


def begin(study: tune.Tuner) -> int:
    known = study._known_seed()
    return study._begin() if known is None else known


class TestOneFolder:
    def begin(self, folder: Path, **settings: Any) -> int:
        """What `fit` does before it runs anything; the study's seed."""
        return begin(tuner(folder, **settings))

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"space": {"x": tune.uniform(0, 2)}}, r"x: uniform\(0.*1.*\) became uniform\(0.*2.*\)"),
            ({"metric": "acc"}, "metric: 'loss' became 'acc'"),
            ({"mode": "max"}, "mode: 'min' became 'max'"),
            ({"seed": 4}, "seed: 3 became 4"),
            ({"num_samples": 7}, "num_samples: 6 became 7"),
            ({"scheduler": ASHAScheduler()}, "scheduler: .*FIFOScheduler.* became .*AsyncHyperBandScheduler"),
            ({"search_alg": BOHB()}, "search_alg: .*RandomSearch.* became .*BOHB"),
            ({"stop": {"loss": 0.1}}, "stop: {} became {'loss': 0.1}"),
        ],
    )
    def test_another_study_is_refused_by_name(self, changed: dict[str, Any], message: str, tmp_path: Path) -> None:
        self.begin(tmp_path)
        with pytest.raises(ValueError, match=message):
            self.begin(tmp_path, **changed)
        self.begin(tmp_path, search_alg=RandomSearch(), scheduler=FIFOScheduler(), max_concurrent_trials=4)

    def test_a_drawn_seed_is_kept(self, tmp_path: Path) -> None:
        drawn = self.begin(tmp_path, seed=None)
        assert self.begin(tmp_path, seed=None) == drawn
        assert json.loads((tmp_path / "study" / "study.json").read_text())["seed"] == drawn

    def test_a_second_driver_is_told_who_holds_the_study(self, tmp_path: Path) -> None:
        context = multiprocessing.get_context("spawn")
        held, done = context.Event(), context.Event()
        holder = context.Process(target=hold, args=(str(tmp_path / "study"), held, done))
        holder.start()
        try:
            assert held.wait(60)
            with pytest.raises(tune.StudyInUse, match=f"is being run by process {holder.pid} on "):
                tuner(tmp_path).fit()
        finally:
            done.set()
            holder.join(60)

    def test_settings_survive_the_study_file(self, tmp_path: Path) -> None:
        space = {"x": tune.uniform(0, 1), "o": tune.choice([{"n": "a", "m": tune.randint(1, 5)}, {"n": "b"}])}
        first = tuner(
            tmp_path,
            space=space,
            search_alg=BOHB(model="kde", top_n_percent=20),
            scheduler=HyperBandScheduler(max_t=9),
            seed=5,
            failure_config=tune.FailureConfig(max_failures=3),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=2),
            stop={"loss": 7.0},
        )
        begin(first)
        restored = tune.Tuner.restore(tmp_path / "study", bowl, run_config=tune.RunConfig(verbose=0))
        assert restored._describe() == first._describe()
        assert begin(restored) == 5

    def test_a_users_own_searcher_goes_on(self, tmp_path: Path) -> None:
        class Mine:
            def build(self, space: Any, seed: int) -> Any:
                return RandomSearch().build(space, seed)

        self.begin(tmp_path, search_alg=Mine())
        self.begin(tmp_path, search_alg=Mine())
        with pytest.raises(ValueError, match=r"the search_alg in .*Mine is not raytuner's own"):
            tune.Tuner.restore(tmp_path / "study", bowl)

    def test_a_grid_is_the_default_for_a_grid(self, tmp_path: Path) -> None:
        assert isinstance(tuner(tmp_path, space={"x": tune.grid_search([1, 2])})._searcher, GridSearch)
        assert isinstance(tuner(tmp_path)._searcher, RandomSearch)


def test_a_defect_of_a_scheduler_is_no_users_error() -> None:
    assert not issubclass(IllegalChange, ValueError)
