"""A report becomes one number to rank by, or a failure that says why not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from raytuner.objective import AUTOMATIC, Objective, Reading
from raytuner.trial import Failure


@pytest.mark.parametrize(
    ("mode", "raw", "value"),
    [
        ("min", 2.5, 2.5),
        ("max", 2.5, -2.5),
        ("min", -3, -3.0),
        ("max", -3, 3.0),
        ("max", 0, 0.0),
        ("min", 1e300, 1e300),
    ],
)
def test_lower_is_better(mode: str, raw: float, value: float) -> None:
    reading = Objective("acc", mode).read({"acc": raw, "other": math.nan})
    assert reading == Reading(value, (float(raw),))
    assert type(reading.value) is float
    assert type(reading.values[0]) is float


@pytest.mark.parametrize(
    "raw", [math.nan, math.inf, -math.inf, True, "0.5", None, [0.5], pytest.param(10**400, id="huge")]
)
@pytest.mark.parametrize("mode", ["min", "max"])
def test_what_is_no_finite_number_fails(raw: Any, mode: str) -> None:
    reading = Objective("loss", mode).read({"loss": raw})
    assert reading.failure is Failure.NOT_FINITE
    assert reading.value is None
    assert reading.message.startswith("metric 'loss' was ")
    assert reading.message.endswith("; a finite number is needed")
    assert repr(raw) in reading.message


@pytest.mark.parametrize(
    ("metrics", "names"),
    [
        ({}, "nothing"),
        (dict.fromkeys(AUTOMATIC, 1), "nothing"),
        ({"val/loss": 1.0, "acc": 2.0, "pid": 3}, "acc, val/loss"),
        ({"Loss": 1.0}, "Loss"),
    ],
)
def test_a_missing_metric_is_told_what_there_is(metrics: dict[str, Any], names: str) -> None:
    reading = Objective("loss").read(metrics)
    assert reading.failure is Failure.NO_METRIC
    assert reading.message == f"no metric 'loss' in the report; the trial reported: {names}"


def test_without_a_metric_all_are_equal() -> None:
    assert Objective(None).read({}) == Objective(None).read({"loss": math.nan}) == Reading(0.0)


def test_an_automatic_metric_can_be_the_objective() -> None:
    assert Objective("time_total_s").read({"time_total_s": 3.0}).value == 3.0


def test_numpy_floats_are_numbers() -> None:
    reading = Objective("loss").read({"loss": np.float64(0.5)})
    assert reading == Reading(0.5, (0.5,))
    assert type(reading.value) is float


@pytest.mark.parametrize(("mode", "better"), [("min", [True, False, False]), ("max", [False, False, True])])
def test_better(mode: str, better: list[bool]) -> None:
    objective = Objective("loss", mode)
    assert [objective.better(raw, 2.0) for raw in (1.0, 2.0, 3.0)] == better


@pytest.mark.parametrize("mode", ["minimum", "MAX", "", None])
def test_wrong_modes(mode: Any) -> None:
    with pytest.raises(ValueError, match=f"mode must be 'min' or 'max', got {mode!r}"):
        Objective("loss", mode)


@pytest.mark.parametrize("metric", ["", 3, ["loss"]])
def test_wrong_metrics(metric: Any) -> None:
    with pytest.raises(ValueError, match="metric must be the name of a reported metric, got"):
        Objective(metric)
