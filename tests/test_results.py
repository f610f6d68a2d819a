"""What a study's folder says about it, without Ray: trials, states, the best one, tables."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from raytuner.actions import Action, Done, Fork, Start, Stop, Wait
from raytuner.checkpoints import Checkpoint, CheckpointConfig, DamagedCheckpoint, Store
from raytuner.driver import Driver
from raytuner.events import Event, Opened
from raytuner.executors.simulate import Simulation, Workload, World
from raytuner.objective import Objective
from raytuner.protocols import Scheduler, SearchAlgorithm
from raytuner.record.folder import Folder, NoStudy
from raytuner.record.journal import Journal
from raytuner.results import Result, ResultGrid, TrialFailed
from raytuner.retry import Retries
from raytuner.schedulers import FIFOScheduler, HyperBandScheduler
from raytuner.searchers import GridSearch, RandomSearch
from raytuner.space import Space, choice, grid_search, uniform
from raytuner.study import Study
from raytuner.trial import Failure, Observation, State, Why

Curve = Callable[[int, int], Mapping[str, Any]]  # trial, step -> metrics


class Interrupted(Exception):
    """The driver's death."""


class Brief(Simulation):
    """Its driver dies after so many turns."""

    turns = 0

    def wait(self, timeout_s: float | None) -> Sequence[Event]:
        self.turns -= 1
        if self.turns == 0:
            raise Interrupted
        return super().wait(timeout_s)


def simulate(
    root: Path,
    curve: Curve,
    *,
    trials: int = 3,
    length: int = 4,
    space: Mapping[str, Any] | None = None,
    searcher: SearchAlgorithm | None = None,
    scheduler: Scheduler | None = None,
    metric: str | None = "loss",
    mode: str | None = "min",
    fails: Callable[[int, int], Failure | None] = lambda trial, step: None,
    keep: int | None = None,
    dies_after: int = 0,
) -> ResultGrid:
    """Run a study in the simulator, on one slot, and look at what is left of it."""
    space = Space({"x": grid_search(list(range(trials)))} if space is None else space)
    searcher = searcher or (GridSearch() if space.has_grid else RandomSearch())
    Folder(root).create({"metric": metric, "mode": mode})
    checkpoints = CheckpointConfig(num_to_keep=keep)
    study = Study(
        Objective(metric, mode or "min"), scheduler or FIFOScheduler().build(0), trials, Retries(0), checkpoints
    )
    workload = Workload(
        curve=lambda trial, step: curve(trial.id, step),
        length=length,
        saves=lambda trial, step: keep is not None,
        fault=lambda trial, step, tries: fails(trial.id, step),
    )
    world = World()
    journal = Journal(root)
    executor = Brief(world, workload, 1)
    executor.turns = dies_after
    try:
        Driver(study, searcher.build(space, 7), journal, world, executor).run(executor)
    except Interrupted:
        pass
    finally:
        journal.close()
    for trial, step in world.checkpoints:
        Path(Store(root / "checkpoints").path(trial, step)).mkdir(parents=True)
    return ResultGrid(root)


def of_table(*values: Sequence[Any]) -> Curve:
    """Row by trial, column by step: the metric ``score``; ``loss`` is the trial's number."""
    return lambda trial, step: {"loss": float(trial), "score": values[trial][step - 1]}


def ids(results: Sequence[Result]) -> list[str]:
    return [result.trial_id for result in results]


# --------------------------------------------------------------------------------------------- a study's trials


def test_a_grid_is_a_sequence(fast_path: Path) -> None:
    grid = simulate(fast_path, lambda trial, step: {"loss": trial / step}, trials=5)
    assert len(grid) == 5
    assert ids(list(grid)) == ["0", "1", "2", "3", "4"]
    assert grid[0].trial_id == "0"
    assert grid[-1].trial_id == "4"
    assert ids(grid[1:3]) == ["1", "2"]
    assert ids(grid[::-2]) == ["4", "2", "0"]
    assert grid[2] in grid
    assert ids(list(reversed(grid))) == ["4", "3", "2", "1", "0"]
    with pytest.raises(IndexError):
        grid[5]
    assert grid.experiment_path == str(fast_path)
    assert repr(grid) == f"ResultGrid({str(fast_path)!r}: 5 trials, 0 failed)"
    assert len(ResultGrid(str(fast_path))) == 5


def test_a_result(fast_path: Path) -> None:
    result = simulate(fast_path, lambda trial, step: {"loss": trial / step, "note": "ok"}, keep=2)[2]
    assert result.config == {"x": 2}
    derived = {"done": True, "checkpoint_dir_name": "000004"}
    assert result.metrics == {"training_iteration": 4, "loss": 0.5, "note": "ok", **derived}
    assert (result.state, result.why) == (State.DONE, Why.RETURNED.value)
    assert result.error is None
    assert result.parent is None
    assert result.path == str(fast_path / "checkpoints" / "000002")
    assert result.checkpoint is not None
    assert result.checkpoint == Checkpoint(Store(fast_path / "checkpoints").path(2, 4))
    kept = [(checkpoint, metrics["loss"]) for checkpoint, metrics in result.best_checkpoints]
    assert kept == [(Checkpoint(Store(fast_path / "checkpoints").path(2, step)), 2 / step) for step in (3, 4)]
    with pytest.raises(DamagedCheckpoint, match=r"MANIFEST\.json: the file is missing$"):
        _ = result.checkpoint.path  # it is verified before anybody gets to its files
    frame = result.metrics_dataframe
    assert frame["loss"].tolist() == [2.0, 1.0, 2 / 3, 0.5]
    assert frame["step"].tolist() == [1, 2, 3, 4]
    assert set(frame["trial"]) == {2}


def test_a_checkpoint_that_is_gone_is_not_shown(fast_path: Path) -> None:
    simulate(fast_path, lambda trial, step: {"loss": 1.0}, keep=2)
    Path(Store(fast_path / "checkpoints").path(0, 4)).rmdir()
    Path(Store(fast_path / "checkpoints").path(1, 3)).rmdir()
    Path(Store(fast_path / "checkpoints").path(1, 4)).rmdir()
    grid = ResultGrid(fast_path)
    assert grid[0].checkpoint is not None
    assert grid[0].checkpoint == Checkpoint(Store(fast_path / "checkpoints").path(0, 3))
    assert grid[1].checkpoint is None
    assert grid[1].best_checkpoints == []


def test_failed_trials(fast_path: Path) -> None:
    grid = simulate(
        fast_path,
        lambda trial, step: {"loss": math.nan if trial == 3 else 1.0},
        trials=5,
        fails=lambda trial, step: {(1, 3): Failure.ERROR, (2, 1): Failure.LOST}.get((trial, step)),
    )
    assert [result.state.value for result in grid] == ["DONE", "FAILED", "FAILED", "FAILED", "DONE"]
    assert (grid.num_errors, grid.num_terminated) == (3, 2)
    assert [str(error) for error in grid.errors] == [
        "made to fail at step 3",
        "made to fail at step 1",
        "metric 'loss' was nan; a finite number is needed",
    ]
    assert all(isinstance(error, TrialFailed) for error in grid.errors)
    assert grid[1].metrics["training_iteration"] == 2, "what it said before it failed"
    assert grid[2].metrics == {}
    assert len(grid[2].metrics_dataframe) == 0
    assert [result.why for result in grid[1:4]] == [Why.ERROR.value, Why.LOST.value, Why.NO_VALUE.value]
    assert repr(grid).endswith("5 trials, 3 failed)")
    assert grid.get_dataframe()["loss"].isna().tolist() == [False, False, True, True, False]


def test_a_study_with_failed_trials_only(fast_path: Path) -> None:
    grid = simulate(fast_path, lambda trial, step: {"loss": 1.0}, fails=lambda trial, step: Failure.ERROR)
    assert (len(grid), grid.num_errors, grid.num_terminated) == (3, 3, 0)
    with pytest.raises(RuntimeError, match="no trial has a finite value of 'loss'; 3 of 3 trials failed"):
        grid.get_best_result()
    frame = grid.get_dataframe()
    assert frame["state"].tolist() == ["FAILED"] * 3
    assert frame["config/x"].tolist() == [0, 1, 2]
    assert len(grid.get_dataframe("loss")) == 3
    assert grid.to_arrow("reports").num_rows == 0


@pytest.mark.parametrize("begun", ["described", "opened", "running"])
def test_a_study_without_trials(begun: str, fast_path: Path) -> None:
    Folder(fast_path).create({"metric": "loss", "mode": "min"})
    if begun != "described":
        journal = Journal(fast_path)
        if begun == "running":
            journal.commit([Opened(1.0, 1), Start(0, 3)], [])
        journal.close()
    grid = ResultGrid(fast_path)
    assert (len(grid), list(grid), grid.errors, grid.num_terminated) == (0, [], [], 0)
    assert repr(grid) == f"ResultGrid({str(fast_path)!r}: 0 trials, 0 failed)"
    assert list(grid.get_dataframe().columns) == ["trial_id", "state", "why", "parent", "member", "logdir"]
    assert len(grid.get_dataframe("loss", "max")) == 0
    assert grid.to_arrow("trials").num_rows == grid.to_arrow("reports").num_rows == 0
    with pytest.raises(RuntimeError, match="no trial has a finite value of 'loss'; 0 of 0 trials failed"):
        grid.get_best_result()


def test_no_study(tmp_path: Path) -> None:
    with pytest.raises(NoStudy, match="there is no study in"):
        ResultGrid(tmp_path)


def test_states_of_a_study_that_is_under_way(fast_path: Path) -> None:
    """Hyperband pauses trials at rungs, resumes some, and drops the others; the driver dies at every turn of that."""
    seen: set[tuple[State, ...]] = set()
    for turns in range(1, 60):
        grid = simulate(
            fast_path / str(turns),
            lambda trial, step: {"loss": trial + 1 / step},
            trials=3,
            scheduler=HyperBandScheduler(max_t=3, reduction_factor=3).build(0),
            dies_after=turns,
        )
        states = tuple(result.state for result in grid)
        assert all((result.why != "") == result.state.over for result in grid)
        assert sum(state is State.RUNNING for state in states) <= 1, "there is one slot"
        seen.add(states)
        if len(states) == 3 and all(state.over for state in states):
            break
    paused, running, done, stopped = State.PAUSED, State.RUNNING, State.DONE, State.STOPPED
    assert {(), (running,), (paused, running), (paused, paused, running)} <= seen
    assert (running, stopped, stopped) in seen, "a resumed trial is not paused"
    assert (done, stopped, stopped) in seen


class ForkOnce:
    """Runs a trial to step 2, then a fork of it to step 4."""

    every_report = False
    forks = True

    def __init__(self) -> None:
        self._ended = 0
        self._given = 0

    def next(self) -> Action:
        if self._given > self._ended:
            return Wait()
        if self._given == 2:
            return Done()
        self._given += 1
        return Start(0, 2) if self._given == 1 else Fork(1, 0, {"x": 0.25}, 4)

    def judge(self, seen: Observation) -> Sequence[Stop]:
        self._ended += 1
        return []

    def close(self, unserved: Sequence[int] = ()) -> Sequence[Stop]:
        return []


def test_a_fork_names_its_source(fast_path: Path) -> None:
    grid = simulate(fast_path, lambda trial, step: {"loss": 1.0}, trials=1, scheduler=ForkOnce())
    assert [result.parent for result in grid] == [None, "0"]
    assert grid[1].config == {"x": 0.25}
    assert grid[1].metrics_dataframe["step"].tolist() == [3, 4]
    assert grid.to_arrow()["parent"].to_pylist() == [None, "0"]
    assert grid.to_arrow()["member"].to_pylist() == ["0", "1"]  # it took nobody's place
    assert grid.to_arrow()["config/x"].to_pylist() == [0.0, 0.25]


# -------------------------------------------------------------------------------------------------- the best one


@pytest.mark.parametrize("seed", range(3))
def test_the_best_over_every_scope(seed: int, fast_path: Path) -> None:
    """Against the definition, on few different whole numbers, so that there are ties: the first trial wins them."""
    chance = random.Random(seed)
    table = [[chance.randint(0, 3) for _ in range(12)] for _ in range(5)]
    grid = simulate(fast_path, of_table(*table), trials=5, length=12)
    for mode, best in (("min", min), ("max", max)):
        scores = {
            "last": [row[-1] for row in table],
            "all": [best(row) for row in table],
            "avg": [sum(row) / 12 for row in table],
            "last-5-avg": [sum(row[-5:]) / 5 for row in table],
            "last-10-avg": [sum(row[-10:]) / 10 for row in table],
        }
        for scope, of in scores.items():
            expected = of.index(best(of))
            assert grid.get_best_result("score", mode, scope).trial_id == str(expected), (mode, scope, of)


def test_short_trials_average_what_they_have(fast_path: Path) -> None:
    grid = simulate(fast_path, of_table([1, 5], [2, 2]), trials=2, length=2)
    for scope in ("avg", "last-5-avg", "last-10-avg"):
        assert grid.get_best_result("score", "min", scope).trial_id == "1"


def test_the_studys_own_metric_and_mode(fast_path: Path) -> None:
    grid = simulate(fast_path / "min", of_table([1] * 4, [5] * 4, [3] * 4))
    assert grid.get_best_result().trial_id == "0"
    assert grid.get_best_result(mode="max").trial_id == "2"
    assert grid.get_best_result("score").trial_id == "0", "another metric, the study's mode"
    grid = simulate(fast_path / "max", of_table([1] * 4, [5] * 4, [3] * 4), metric="score", mode="max")
    assert grid.get_best_result().trial_id == "1"
    assert grid.get_best_result(mode="min").trial_id == "0"


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("rows", "mode", "scope", "filtered", "unfiltered"),
    [
        # A trial that diverged at the end is not the best for what it was before.
        (([0.0, NAN], [2.0, 2.0]), "min", "last", "1", "1"),
        (([9.0, NAN], [2.0, 2.0]), "max", "last", "1", "1"),
        (([0.0, -INF], [2.0, 2.0]), "min", "last", "1", "0"),
        (([0.0, INF], [2.0, 2.0]), "max", "last", "1", "0"),
        (([0.0, NAN], [2.0, 2.0]), "min", "avg", "1", "1"),
        (([0.0, NAN], [2.0, 2.0]), "min", "last-5-avg", "1", "1"),
        (([0.0, -INF], [2.0, 2.0]), "min", "last-10-avg", "1", "0"),
        # Of all its reports it is the finite ones that count.
        (([NAN, 0.0], [2.0, 2.0]), "min", "all", "0", "0"),
        (([0.0, NAN], [2.0, 2.0]), "min", "all", "0", "0"),
        (([3.0, -INF], [2.0, 2.0]), "min", "all", "1", "0"),
        (([3.0, INF], [5.0, 2.0]), "max", "all", "1", "0"),
        (([NAN, NAN], [INF, 2.0]), "min", "last", "1", "1"),
        (([NAN, NAN], [2.0, INF]), "min", "last", None, "1"),
        (([NAN, NAN], [NAN, NAN]), "min", "all", None, "0"),
    ],
)
def test_nan_and_infinity(
    rows: Any, mode: str, scope: str, filtered: str | None, unfiltered: str, fast_path: Path
) -> None:
    grid = simulate(fast_path, of_table(*rows), trials=2, length=2)
    if filtered is None:
        with pytest.raises(RuntimeError, match="no trial has a finite value of 'score'; 0 of 2 trials failed"):
            grid.get_best_result("score", mode, scope)
    else:
        assert grid.get_best_result("score", mode, scope).trial_id == filtered
    assert grid.get_best_result("score", mode, scope, filter_nan_and_inf=False).trial_id == unfiltered


def test_a_metric_that_is_reported_now_and_then(fast_path: Path) -> None:
    """Its last value counts, wherever it stands."""
    grid = simulate(fast_path, lambda trial, step: {"loss": 0.0} | ({"val": trial + step} if step % 3 == 0 else {}))
    assert grid.get_best_result("val", "max").trial_id == "2"
    assert grid.get_dataframe("val", "max")["training_iteration"].tolist() == [3, 3, 3]
    assert "val" not in grid[0].metrics


def test_text_has_no_best(fast_path: Path) -> None:
    grid = simulate(fast_path, of_table(["9", "10"], ["1", "2"]), trials=2, length=2)
    with pytest.raises(RuntimeError, match="no trial has a finite value of 'score'"):
        grid.get_best_result("score")
    assert grid.get_dataframe("score")["state"].tolist() == ["DONE", "DONE"]


def test_what_may_not_be_asked(fast_path: Path) -> None:
    grid = simulate(fast_path / "own", of_table([1] * 4, [5] * 4, [3] * 4))
    with pytest.raises(ValueError) as caught:
        grid.get_best_result("scor")
    assert str(caught.value) == "metric 'scor' was never reported; reported were: loss, score, training_iteration"
    with pytest.raises(ValueError, match="metric 'step' was never reported"):
        grid.get_dataframe("step")
    with pytest.raises(ValueError, match="mode must be 'min' or 'max', got 'best'"):
        grid.get_best_result("score", "best")
    with pytest.raises(ValueError, match="scope must be one of last, all, avg, last-5-avg, last-10-avg, got 'first'"):
        grid.get_best_result(scope="first")
    with pytest.raises(ValueError, match="table must be 'trials', 'reports' or 'decisions', got 'events'"):
        grid.to_arrow("events")
    grid = simulate(fast_path / "none", of_table([1] * 4, [5] * 4, [3] * 4), metric=None, mode=None)
    with pytest.raises(ValueError, match="metric must be named: the study has none of its own"):
        grid.get_best_result()
    with pytest.raises(ValueError, match="mode must be 'min' or 'max' for metric 'score': the study has none"):
        grid.get_best_result("score")
    assert grid.get_best_result("score", "max").trial_id == "1"


# --------------------------------------------------------------------------------------------------------- tables


def test_the_table_of_trials(fast_path: Path) -> None:
    grid = simulate(fast_path, of_table([1, 5, 3, 3], [2, 2, 2, 2], [4, 0, NAN, 3]))
    frame = grid.get_dataframe()
    assert isinstance(frame, pd.DataFrame)
    assert list(frame.columns) == [
        *("trial_id", "training_iteration", "loss", "score", "done", "state", "why", "parent", "member", "logdir"),
        "config/x",
    ]
    assert frame["trial_id"].tolist() == ["0", "1", "2"]
    assert frame["score"].tolist() == [3, 2, 3]
    assert frame["config/x"].tolist() == [0, 1, 2]
    assert frame["logdir"].tolist() == [result.path for result in grid]
    assert grid.to_arrow().to_pandas().equals(frame)
    assert grid.to_arrow().schema.field("parent").type == pa.string()

    best = grid.get_dataframe("score", "max")
    assert best["score"].tolist() == [5, 2, 4]
    assert best["training_iteration"].tolist() == [2, 1, 1], "of equally good reports the first"
    best = grid.get_dataframe("score")
    assert best["score"].tolist() == [1, 2, 0]
    assert best["training_iteration"].tolist() == [1, 1, 2]


def test_reports_without_a_number_are_passed_over_by_the_filter(fast_path: Path) -> None:
    grid = simulate(fast_path, of_table([NAN, 5.0], [2.0, NAN], [NAN, NAN]), length=2)
    for mode in ("min", "max"):
        frame = grid.get_dataframe("score", mode)
        assert frame["score"].tolist()[:2] == [5.0, 2.0]
        assert frame["score"].isna().tolist() == [False, False, True]
        assert frame["config/x"].tolist() == [0, 1, 2]


def test_the_table_of_reports(fast_path: Path) -> None:
    grid = simulate(fast_path, of_table([1, 5], [2, 2]), trials=2, length=2)
    table = grid.to_arrow("reports")
    assert table.column_names[:6] == ["trial", "attempt", "step", "level", "at", "checkpoint"]
    assert table.select(["trial", "step", "score"]).to_pylist() == [
        {"trial": trial, "step": step, "score": score}
        for trial, step, score in ((0, 1, 1), (0, 2, 5), (1, 1, 2), (1, 2, 2))
    ]


def test_configurations_with_conditions(fast_path: Path) -> None:
    space = {
        "lr": uniform(0.0, 1.0),
        "model": {"optimizer": choice([{"name": "sgd", "momentum": uniform(0.0, 0.9)}, {"name": "adam"}])},
        "shape": choice([(1, 2), (3, 4)]),
        "mixed": choice(["auto", 3, None, 2**70]),
        "dtype": "float32",
    }
    grid = simulate(fast_path, lambda trial, step: {"loss": 1.0}, trials=16, space=space)
    frame = grid.get_dataframe()
    names = [name for name in frame.columns if name.startswith("config/")]
    assert set(names) == {
        *("config/lr", "config/model/optimizer/name", "config/model/optimizer/momentum"),
        *("config/shape", "config/mixed", "config/dtype"),
    }
    kinds = set()
    for result, row in zip(grid, grid.to_arrow().to_pylist(), strict=True):
        optimizer = result.config["model"]["optimizer"]
        kinds.add(optimizer["name"])
        assert row["config/model/optimizer/name"] == optimizer["name"]
        assert row["config/model/optimizer/momentum"] == optimizer.get("momentum")
        assert row["config/lr"] == result.config["lr"]
        assert row["config/shape"] == list(result.config["shape"])
        assert isinstance(result.config["shape"], tuple)
        mixed = result.config["mixed"]
        assert row["config/mixed"] == (mixed if mixed is None else str(mixed))
    assert kinds == {"sgd", "adam"}


def test_metrics_with_names_of_ours(fast_path: Path) -> None:
    grid = simulate(fast_path, lambda trial, step: {"loss": 1.0, "step": trial * 10 + step, "trial_id": "mine"})
    assert grid[1].metrics["step"] == 14
    assert grid.get_best_result("step", "max").trial_id == "2"
    assert grid.get_dataframe()["trial_id"].tolist() == ["0", "1", "2"]
    assert grid.get_dataframe("step", "min")["step"].tolist() == [1, 11, 21]
    assert grid.to_arrow("reports")["metric:step"].to_pylist()[:2] == [1, 2]
    assert grid[0].metrics_dataframe["step"].tolist() == [1, 2, 3, 4]


# ------------------------------------------------------------------------------------------------- on the screen


def test_a_result_is_short_on_the_screen(fast_path: Path) -> None:
    automatic = {"time_total_s": 1.0, "hostname": "h" * 50, "pid": 1, "trial_id": "0"}
    grid = simulate(fast_path / "a", lambda trial, step: {"loss": trial / step, **automatic}, keep=2)
    assert repr(grid[2]) == "Result(trial 2, DONE at step 4, metrics={'loss': 0.5}, config={'x': 2})"
    many = {f"metric number {n}": n / 7 for n in range(200)}
    space = {f"parameter {n}": uniform(0, 1) for n in range(200)}
    grid = simulate(fast_path / "b", lambda trial, step: {"loss": 1.0, **many}, trials=1, length=1, space=space)
    assert len(repr(grid[0])) < 400
    assert "'loss': 1.0" in repr(grid[0])
    assert repr(grid[0]).endswith("...})")
    grid = simulate(
        fast_path / "c", lambda trial, step: {"loss": 1.0}, trials=1, fails=lambda trial, step: Failure.ERROR
    )
    assert repr(grid[0]) == "Result(trial 0, FAILED, metrics={}, config={'x': 0})"


# -------------------------------------------------------------------------------------------------- without Ray


def test_reading_needs_neither_ray_nor_torch(fast_path: Path) -> None:
    simulate(fast_path, of_table([1] * 4, [5] * 4, [3] * 4), keep=1)
    code = """
import json, sys
sys.modules["ray"] = sys.modules["torch"] = None
from raytuner import ResultGrid
grid = ResultGrid(sys.argv[1])
best = grid.get_best_result("score", "max")
print(json.dumps([len(grid), best.trial_id, best.metrics, len(best.metrics_dataframe), repr(best.checkpoint),
    len(grid.get_dataframe()), grid.to_arrow("reports").num_rows, repr(grid)]))
"""
    done = subprocess.run([sys.executable, "-c", code, fast_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    grid = ResultGrid(fast_path)
    best = grid[1]
    assert best.checkpoint is not None
    assert json.loads(done.stdout) == [3, "1", best.metrics, 4, repr(best.checkpoint), 3, 12, repr(grid)]
