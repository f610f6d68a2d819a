"""What earlier studies found: each reader on data as its source writes them, and how rows fit another space."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import raytuner as tune
from raytuner.history import MOST_ROWS, History, Row, histories
from raytuner.searchers import BOHB
from raytuner.space import Space, choice, loguniform, quniform, randint, uniform

SPACE = Space(
    {
        "lr": loguniform(1e-4, 1.0),
        "layers": randint(1, 9),
        "optimizer": choice([{"name": "sgd", "momentum": uniform(0.0, 0.99)}, {"name": "adam"}]),
        "epochs": 10,
    }
)


def rows_of(history: History) -> list[tuple[int, int, float | None]]:
    return [(row.trial, row.step, row.value) for row in history.rows]


# ------------------------------------------------------------------------------------------------------ our studies


def train(config: Mapping[str, Any]) -> None:
    for step in range(1, 10):
        if config["x"] > 0.9:
            raise ValueError("too large")
        tune.report({"accuracy": 1.0 - (config["x"] - 0.3) ** 2 - 1.0 / step})


def tuned(folder: Path, name: str, **settings: Any) -> tune.Tuner:
    return tune.Tuner(
        train,
        param_space={"x": uniform(0, 1)},
        tune_config=tune.TuneConfig(metric="accuracy", mode="max", **settings),
        run_config=tune.RunConfig(name=name, storage_path=folder, verbose=0),
        executor="inline",
    )


def test_a_study_is_read_from_its_folder_and_starts_another_one_which_remembers_it(tmp_path: Path) -> None:
    results = tuned(tmp_path, "old", num_samples=12, seed=3).fit()
    old = History.from_study(tmp_path / "old")
    assert old == History.from_study(results)
    assert old.name == "old"
    by_trial = {int(each.trial_id): each for each in results}
    for row in old.rows:
        assert row.config == by_trial[row.trial].config
        failed = row.config["x"] > 0.9
        assert row.value == (None if failed else -(1.0 - (row.config["x"] - 0.3) ** 2 - 1.0 / row.step))
        assert row.step in ((1,) if failed else (1, 3, 9))
    assert len(old.rows) == sum(1 if each.config["x"] > 0.9 else 3 for each in results)

    warm = tuned(tmp_path, "new", num_samples=4, seed=5, search_alg=BOHB(warm_start=[old]))
    assert abs(warm.fit()[0].config["x"] - 0.3) < 0.15, "it begins with what was good"
    what = json.loads((tmp_path / "new" / "study.json").read_text())
    assert BOHB.from_json(what["search_alg"]["args"]) == BOHB(warm_start=[old])
    assert len(tune.Tuner.restore(tmp_path / "new", train, executor="inline").fit()) == 4
    with pytest.raises(ValueError, match="another study: search_alg"):
        tuned(tmp_path, "new", num_samples=4, seed=5, search_alg=BOHB()).fit()


def test_another_metric_may_be_read_and_a_wrong_one_is_named(tmp_path: Path) -> None:
    tuned(tmp_path, "old", num_samples=2, seed=3).fit()
    assert History.from_study(tmp_path / "old", "training_iteration", "max").rows[0].value == -1
    with pytest.raises(ValueError, match="metric 'loss' was never reported"):
        History.from_study(tmp_path / "old", "loss", "min")


# ----------------------------------------------------------------------------------------------------------- tables

TABLE = pd.DataFrame(
    {
        "config/lr": [0.1, 0.01, 0.001],
        "config/layers": [2.0, 3.0, 4.0],
        "config/optimizer/name": ["sgd", "adam", "adam"],
        "config/optimizer/momentum": [0.9, math.nan, math.nan],
        "accuracy": [0.5, 0.75, math.nan],
        "time_total_s": [1.0, 2.0, 3.0],
    }
)


@pytest.mark.parametrize("table", [TABLE, pa.Table.from_pandas(TABLE)], ids=["pandas", "arrow"])
def test_a_table_with_config_columns(table: Any) -> None:
    history = History.from_table(table, "accuracy", "max", name="mine")
    assert rows_of(history) == [(0, 1, -0.5), (1, 1, -0.75), (2, 1, None)]
    assert history.rows[1].config == {"lr": 0.01, "layers": 3.0, "optimizer": {"name": "adam"}}
    fitted = history.fit_to(SPACE)
    assert str(fitted) == ("mine: 3 of 3 rows fit; it knows layers, lr, optimizer, optimizer/momentum"), (
        "whole floats are integers, and epochs, a constant, is passed over"
    )
    expected = {"lr": 0.01, "layers": 3, "optimizer": {"name": "adam"}, "epochs": 10}
    assert np.allclose(fitted.points[1], SPACE.encode(expected)[0])


def test_a_table_with_plain_names_and_a_row_for_each_step() -> None:
    table = pd.DataFrame({"x": [0.1] * 4 + [0.2], "epoch": [1, 2, 3, 9, 1], "loss": [5.0, 4.0, 3.0, 2.0, 6.0]})
    history = History.from_table(table, "loss", step="epoch")
    assert rows_of(history) == [(0, 1, 5.0), (0, 3, 3.0), (0, 9, 2.0), (1, 1, 6.0)]
    assert history.rows[0].config == {"x": 0.1}
    with pytest.raises(ValueError, match="no column 'error'; it has x, epoch, loss"):
        History.from_table(table, "error")


# ----------------------------------------------------------------------------------------------------------- Optuna


class TrialState(Enum):
    RUNNING, COMPLETE, PRUNED, FAIL, WAITING = range(5)


class StudyDirection(Enum):
    NOT_SET, MINIMIZE, MAXIMIZE = range(3)


@dataclass
class FrozenTrial:
    """As much of Optuna's as is read."""

    number: int
    state: TrialState
    value: float | None = None
    params: dict[str, Any] = field(default_factory=dict)
    intermediate_values: dict[int, float] = field(default_factory=dict)


@dataclass
class OptunaStudy:
    trials: list[FrozenTrial]
    directions: list[StudyDirection]
    study_name: str = "no-name"


def test_a_study_of_optuna() -> None:
    study = OptunaStudy(
        [
            FrozenTrial(0, TrialState.COMPLETE, 0.9, {"lr": 0.1, "opt": "sgd", "m": 0.5}, {0: 0.1, 2: 0.5, 8: 0.8}),
            FrozenTrial(1, TrialState.PRUNED, None, {"lr": 0.2, "opt": "adam"}, {0: 0.2, 1: math.nan}),
            FrozenTrial(2, TrialState.PRUNED, None, {"lr": 0.2, "opt": "adam"}),
            FrozenTrial(3, TrialState.FAIL, None, {"lr": 0.3, "opt": "adam"}),
            FrozenTrial(4, TrialState.RUNNING, None, {"lr": 0.4}),
        ],
        [StudyDirection.MAXIMIZE],
    )
    history = History.from_optuna(study)
    assert rows_of(history) == [
        (0, 1, -0.1),
        (0, 3, -0.5),
        (0, 9, -0.9),
        (1, 1, -0.2),
        (1, 2, None),
        (3, 1, None),
    ], "its steps begin at 0, and a complete trial's value is that of the last"
    renamed = history.renamed({"opt": "optimizer/name", "m": "optimizer/momentum"})
    assert renamed.rows[0].config == {"lr": 0.1, "optimizer": {"name": "sgd", "momentum": 0.5}}
    fitted = renamed.fit_to(SPACE)
    assert str(fitted) == "no-name: 6 of 6 rows fit; it knows lr, optimizer, optimizer/momentum; not layers"
    with pytest.raises(ValueError, match="no row has 'lrate'; there are lr, m, opt"):
        history.renamed({"lrate": "lr"})
    with pytest.raises(ValueError, match="has 2 objectives"):
        History.from_optuna(OptunaStudy([], [StudyDirection.MINIMIZE] * 2))


# -------------------------------------------------------------------------------------------------------------- Ray


def ray_trial(root: Path, name: str, config: Any, values: list[float], tail: str = "", failed: bool = False) -> None:
    """A trial's folder as the JSON logger of Ray 2.60 leaves it."""
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "params.json").write_text(json.dumps(config, indent=2, sort_keys=True))
    lines = []
    for step, value in enumerate(values, 1):
        said = {"loss": value, "checkpoint_dir_name": None, "done": step == len(values), "training_iteration": step}
        lines.append(json.dumps({**said, "trial_id": name[-11:], "hostname": "host", "config": config}) + "\n")
    (folder / "result.json").write_text("".join(lines) + tail)
    if failed:
        (folder / "error.txt").write_text("Traceback (most recent call last):")


def test_a_folder_of_ray_tune(tmp_path: Path) -> None:
    root = tmp_path / "train_2026-01-01_00-00-00"
    nested = {"lr": 0.1, "optimizer": {"name": "sgd", "momentum": 0.5}}
    ray_trial(root, "train_a1b2c_00000_0_lr=0.1000", nested, [3.0, 2.0, 1.0])
    ray_trial(root, "train_a1b2c_00001_1_lr=0.2000", {"lr": 0.2}, [4.0, math.nan], tail='{"loss": 0.0, "traini')
    ray_trial(root, "train_a1b2c_00002_2_lr=0.3000", {"lr": 0.3}, [5.0], failed=True)
    ray_trial(root, "train_a1b2c_00003_3_lr=0.4000", {"lr": 0.4}, [])
    (root / "train_a1b2c_00004_4_lr=0.5000").mkdir()
    (root / "experiment_state-2026-01-01_00-00-00.json").write_text("{}")
    history = History.from_ray(root, "loss")
    assert rows_of(history) == [(0, 1, 3.0), (0, 3, 1.0), (1, 1, 4.0), (1, 2, None), (2, 1, None)]
    assert history.rows[0].config == nested
    with pytest.raises(ValueError, match=r"no trial in .* reported 'accuracy'"):
        History.from_ray(tmp_path, "accuracy", "max")


# ------------------------------------------------------------------------------------------------- in another space


def test_rows_of_the_same_space_fit_as_they_are_encoded() -> None:
    configs = [SPACE.sample(np.random.default_rng([1, i])) for i in range(30)]
    fitted = History("own", tuple(Row(i, 1, 0.0, config) for i, config in enumerate(configs))).fit_to(SPACE)
    points, active = SPACE.encode_many(configs)
    assert np.array_equal(fitted.points, points)
    assert np.array_equal(fitted.active, active)
    assert fitted.known.all()


def test_what_does_not_fit_is_dropped_and_counted() -> None:
    configs: list[dict[str, Any]] = [
        {"lr": 0.1, "layers": 3, "optimizer": {"name": "sgd", "momentum": 0.5}, "seed": 1},
        {"lr": 2.0, "layers": 3, "optimizer": {"name": "adam"}},
        {"lr": 0.1, "layers": 3.5, "optimizer": {"name": "lamb"}},
        {"lr": 0.1, "optimizer": {"name": "adam"}},
        {"lr": 0.1, "layers": 3, "optimizer": {"name": "sgd", "momentum": 1.5}},
    ]
    fitted = History("old", tuple(Row(i, 1, 0.0, config) for i, config in enumerate(configs))).fit_to(SPACE)
    assert len(fitted) == 1
    assert dict(fitted.dropped) == {
        "lr is outside loguniform(0.0001, 1.0)": 1,
        "layers is outside randint(1, 9)": 1,
        "optimizer is outside its 2 options": 1,
        "layers is missing": 1,
        "optimizer/momentum is outside uniform(0.0, 0.99)": 1,
    }
    assert str(fitted).startswith("old: 1 of 5 rows fit; it knows layers, lr, optimizer, optimizer/momentum; 1 dropped")


def test_branches_are_told_by_their_constants_or_by_their_names() -> None:
    space = Space(
        {
            "model": choice(
                [
                    {"kind": "tree", "depth": randint(1, 9)},
                    {
                        "kind": "net",
                        "head": choice([{"width": randint(8, 64)}, "linear"]),
                        "drop": quniform(0, 1, 0.25),
                    },
                ]
            )
        }
    )
    configs: list[dict[str, Any]] = [
        {"model": {"kind": "tree", "depth": 3, "extra": 1}},
        {"model": {"kind": "net", "head": {"width": 16}, "drop": 0.25}, "x": 1},
        {"model": {"head": "linear", "drop": 0.5}},
    ]
    fitted = History("old", tuple(Row(i, 1, 0.0, config) for i, config in enumerate(configs))).fit_to(space)
    assert [space.decode(x) for x in fitted.points] == [
        {"model": {"kind": "tree", "depth": 3}},
        {"model": {"kind": "net", "head": {"width": 16}, "drop": 0.25}},
        {"model": {"kind": "net", "head": "linear", "drop": 0.5}},
    ]


def test_a_source_that_fits_nothing_is_refused_at_the_door() -> None:
    history = History("old", (Row(0, 1, 0.0, {"lr": 5.0, "layers": 1}),))
    with pytest.raises(ValueError, match=r"nothing of it fits.*old: 0 of 1 rows fit.*lr is outside loguniform"):
        BOHB(warm_start=[history]).build(SPACE, 0)


# -------------------------------------------------------------------------------------------------------- as a value


def test_a_record_gives_back_the_very_same_history() -> None:
    configs = [{"a": (1, 2.5), "b": math.inf, "c": None, "d": {"e": True}}, {"a": (1, 1), "b": 0.1, "c": "x", "d": {}}]
    history = History("old", (Row(0, 1, 0.1 + 0.2, configs[0]), Row(1, 3, None, configs[1])))
    again = History.from_json(json.loads(json.dumps(history.to_json(), allow_nan=False)))
    assert again == history
    assert type(again.rows[0].config["a"]) is tuple


def test_of_many_rows_the_last_of_each_trial_and_then_the_best_half_and_some_of_the_others_are_kept() -> None:
    rows = [Row(i, step, float(i) / step, {"x": i}) for i in range(150) for step in (1, 3)]
    assert {row.step for row in History("two rungs", tuple(rows)).rows} == {3}
    rows = [Row(i, 1, None if i % 10 == 9 else float(i * 7 % 1000), {"x": i}) for i in range(1000)]
    kept = History("many", tuple(rows)).rows
    assert len(kept) == len({row.trial for row in kept}) == MOST_ROWS
    best = sorted((row for row in rows if row.value is not None), key=lambda row: row.value or 0.0)
    assert {row.trial for row in best[: MOST_ROWS // 2]} < {row.trial for row in kept}
    assert any(row.value is None for row in kept)
    assert History("many", kept).rows == kept


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((), "has no rows"),
        ((Row(0, 0, 1.0, {}),), "step must be a whole number of at least 1, got 0"),
        ((Row(0, 1, math.nan, {}),), "value must be a finite number, or None, got nan"),
    ],
)
def test_wrong_rows_are_named(rows: tuple[Row, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        History("old", rows)


def test_a_warm_start_is_a_list_of_histories_and_kernel_densities_have_no_use_for_it() -> None:
    history = History("old", (Row(0, 1, 0.0, {"x": 1}),))
    with pytest.raises(TypeError, match="warm_start must be a list of History, got History"):
        histories(history)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="in it"):
        BOHB(warm_start=["old"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"warm_start is .* but model='kde' has no use for it"):
        BOHB(model="kde", warm_start=[history])
