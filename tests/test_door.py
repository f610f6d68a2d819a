"""Bad input and faults are said clearly, and early: each sentence of this file's tests is what the user reads.

What can be told from the arguments is told by the constructors. What needs the cluster or the study's folder is told by
`Tuner.fit` before an actor starts or a study is begun. What only a trial can show fails that trial. Where no actor is
needed to see it, trials run inline.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import raytuner as tune
from raytuner.cluster import local
from raytuner.schedulers import ASHAScheduler, HyperBandScheduler
from raytuner.searchers import BOHB
from raytuner.space import Space
from raytuner.trial import State


def quadratic(config: dict[str, Any]) -> None:
    tune.report({"loss": (config["x"] - 0.3) ** 2})


def tuner(folder: Path, train: Any = quadratic, executor: str = "inline", **settings: Any) -> tune.Tuner:
    space = settings.pop("space", {"x": tune.uniform(0, 1)})
    failure_config = settings.pop("failure_config", None)
    config = {"metric": "loss", "mode": "min", "num_samples": 3, "seed": 3} | settings
    return tune.Tuner(
        train,
        param_space=space,
        tune_config=tune.TuneConfig(**config),
        run_config=tune.RunConfig(name="study", storage_path=folder, verbose=0, failure_config=failure_config),
        executor=executor,
    )


def refused(error: type[Exception], message: str, act: Callable[[], object]) -> None:
    """Whether something is refused with just this message."""
    with pytest.raises(error) as caught:
        act()
    assert str(caught.value) == message


def not_begun(folder: Path) -> bool:
    """Whether no study was begun in a folder."""
    return not (folder / "study" / "study.json").exists() and not (folder / "study" / "journal").exists()


# --------------------------------------------------------------------------------------------------- metric and mode


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"search_alg": BOHB()}, "metric must be given: BOHB cannot search without one"),
        (
            {"scheduler": HyperBandScheduler()},
            "metric must be given: HyperBandScheduler cannot compare trials without one",
        ),
        (
            {"scheduler": ASHAScheduler()},
            "metric must be given: AsyncHyperBandScheduler cannot compare trials without one",
        ),
    ],
)
def test_a_metric_that_is_missing(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    refused(ValueError, message, lambda: tuner(tmp_path, metric=None, mode=None, **settings))
    assert not_begun(tmp_path)


@pytest.mark.parametrize("metric", [["loss", "time"], "", 3])
def test_a_metric_that_is_no_name(metric: Any) -> None:
    message = f"metric must be the name of a reported metric, got {metric!r}"
    refused(ValueError, message, lambda: tune.TuneConfig(metric=metric, mode="min"))


@pytest.mark.parametrize("mode", ["minimize", "MIN", 1, ["min"]])
def test_a_mode_that_is_neither_min_nor_max(mode: Any) -> None:
    message = f"mode must be 'min' or 'max', got {mode!r}"
    refused(ValueError, message, lambda: tune.TuneConfig(metric="loss", mode=mode))


def test_a_mode_that_is_missing(tmp_path: Path) -> None:
    message = "mode must be 'min' or 'max' where a metric is given ('loss'), got None"
    refused(ValueError, message, lambda: tuner(tmp_path, mode=None))


def test_a_metric_that_contradicts_the_schedulers(tmp_path: Path) -> None:
    message = "metric is 'loss' in TuneConfig, but 'accuracy' in AsyncHyperBandScheduler"
    refused(ValueError, message, lambda: tuner(tmp_path, scheduler=ASHAScheduler(metric="accuracy", mode="min")))


def test_a_metric_that_a_first_report_lacks_fails_that_trial_with_the_names_it_has(tmp_path: Path) -> None:
    went_on = []

    def train(config: dict[str, Any]) -> None:
        if tune.get_context().get_trial_id() == "1":
            tune.report({"accuracy": 0.5, "lss": 0.1, "time": {"load": 3.0}})
            went_on.append(1)
        quadratic(config)

    results = tuner(tmp_path, train).fit()
    assert [result.state for result in results] == [State.DONE, State.FAILED, State.DONE]
    assert results[1].why == "it did not report a usable value of the metric"
    assert str(results[1].error) == ("no metric 'loss' in the report; the trial reported: accuracy, lss, time/load")
    assert not went_on, "it ends with its first report"


def test_a_trial_that_reports_nothing(tmp_path: Path) -> None:
    results = tuner(tmp_path, lambda config: None).fit()
    assert [str(error) for error in results.errors] == [
        "no metric 'loss' in the report; the trial reported: nothing"
    ] * 3


def test_a_metric_that_was_never_reported_is_not_found_in_results(tmp_path: Path) -> None:
    results = tuner(tmp_path).fit()
    with pytest.raises(ValueError, match=r"^metric 'accuracy' was never reported; reported were: loss, "):
        results.get_best_result("accuracy", "max")


# ----------------------------------------------------------------------------------------------------------- domains

LOG = "expected a number above 0 on a log scale (not its logarithm)"


@pytest.mark.parametrize(
    ("domain", "message"),
    [
        (lambda: tune.uniform(1, 1), "uniform: lower is 1.0, expected less than upper, which is 1.0"),
        (lambda: tune.uniform(2, 1), "uniform: lower is 2.0, expected less than upper, which is 1.0"),
        (lambda: tune.randint(5, 5), "randint: lower is 5, expected less than upper, which is 5"),
        (lambda: tune.loguniform(1, 0.1), "loguniform: lower is 1.0, expected less than upper, which is 0.1"),
        (lambda: tune.loguniform(0, 1), f"loguniform: lower is 0.0, {LOG}"),
        (lambda: tune.loguniform(-4, -1), f"loguniform: lower is -4.0, {LOG}"),
        (lambda: tune.qloguniform(0, 1, 0.1), f"qloguniform: lower is 0.0, {LOG}"),
        (lambda: tune.lograndint(0, 5), f"lograndint: lower is 0, {LOG}"),
        (lambda: tune.qlograndint(-1, 5, 2), f"qlograndint: lower is -1, {LOG}"),
        (lambda: tune.choice([]), "choice: categories is empty, expected at least one option"),
        (
            lambda: Space({"model": {"depth": tune.grid_search([])}}),
            "model/depth: grid_search: values is empty, expected at least one option",
        ),
        (lambda: tune.quniform(0, 1, 2), "quniform: q is 2.0, expected at most upper - lower, which is 1.0"),
        (lambda: tune.qloguniform(1, 2, 3), "qloguniform: q is 3.0, expected at most upper - lower, which is 1.0"),
        (lambda: tune.qrandint(0, 5, 10), "qrandint: q is 10, expected at most upper - lower, which is 5"),
        (lambda: tune.qlograndint(1, 4, 8), "qlograndint: q is 8, expected at most upper - lower, which is 3"),
        (lambda: tune.quniform(0, 1, 0), "quniform: q is 0, expected a number above 0"),
        (lambda: tune.randn(0, -1), "randn: sd is -1, expected a number above 0"),
        (lambda: tune.uniform(float("nan"), 1), "uniform: lower is nan, expected a finite number"),
        (lambda: tune.uniform(0, float("inf")), "uniform: upper is inf, expected a finite number"),
    ],
)
def test_a_domain_that_is_empty_or_contradicts_itself(domain: Callable[[], object], message: str) -> None:
    refused(ValueError, message, domain)


def test_a_domain_of_words() -> None:
    refused(TypeError, "uniform: lower is '0' (str), expected a number", lambda: tune.uniform("0", 1))  # type: ignore[arg-type]


@pytest.mark.parametrize("space", [[1, 2], "x", tune.uniform(0, 1)])
def test_a_space_that_is_no_dict(space: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"^param_space is .*, expected a dict of names to domains or constants$"):
        tuner(tmp_path, space=space)


def test_configs_of_another_kind() -> None:
    message = "tune_config must be a raytuner.TuneConfig, got {'metric': 'loss'}"
    refused(TypeError, message, lambda: tune.Tuner(quadratic, tune_config={"metric": "loss"}))  # type: ignore[arg-type]
    refused(
        TypeError,
        "run_config must be a raytuner.RunConfig, got 'out'",
        lambda: tune.Tuner(quadratic, run_config="out"),  # type: ignore[arg-type]
    )


def test_equal_configurations_drawn_twice_are_two_trials(tmp_path: Path) -> None:
    ran = []

    def train(config: dict[str, Any]) -> None:
        ran.append((tune.get_context().get_trial_id(), config["x"]))
        quadratic(config)

    results = tuner(tmp_path, train, space={"x": tune.choice([0.5])}).fit()
    assert ran == [("0", 0.5), ("1", 0.5), ("2", 0.5)]
    assert [result.trial_id for result in results] == ["0", "1", "2"]
    assert [dict(result.config) for result in results] == [{"x": 0.5}] * 3
    assert len(tuner(tmp_path, train, space={"x": tune.choice([0.5])}).fit()) == len(ran) == 3, "also when resumed"


# ------------------------------------------------------------------------------ constraints, defaults, given points

PLANE = {"x": tune.uniform(0, 1), "y": tune.uniform(0, 1)}


def small(config: dict[str, Any]) -> bool:
    return bool(config["x"] + config["y"] < 0.5)


def never(config: dict[str, Any]) -> bool:
    return False


def sum_of(config: dict[str, Any]) -> float:
    return float(config["x"] - config["x"])


def lacks_something(config: dict[str, Any]) -> bool:
    return bool(config["z"] > 0)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"constraints": small}, TypeError, r"constraints is <function small .* expected a list of functions"),
        ({"constraints": [small, "x < y"]}, TypeError, r"constraints\[1\] is 'x < y' \(str\), expected a function"),
        (
            {"constraints": [sum_of]},
            TypeError,
            r"constraint 0 \(sum_of\) said 0.0 \(float\), expected True or False, on \{'x",
        ),
        (
            {"constraints": [small, lacks_something]},
            ValueError,
            r"constraint 1 \(lacks_something\) failed with KeyError\('z'\) on \{'x': 0\.",
        ),
        (
            {"constraints": [small, never]},
            ValueError,
            r"constraints: 0.00% of param_space is feasible \(0 of 2,000 draws\); constraint 0 \(small\) rejects "
            r"1,7\d\d, constraint 1 \(never\) rejects 2\d\d ",
        ),
        (
            {"constraints": [small], "space": {"x": tune.grid_search([1, 2]), "y": 0}},
            ValueError,
            "constraints: none of the 2 points of the grid is feasible",
        ),
        ({"default_config": {"x": 2.0}}, ValueError, r"default_config is not in this space: x is 2.0 \(float\)"),
        ({"default_config": [1]}, TypeError, r"default_config is \[1\] \(list\), expected a dict"),
        (
            {"default_confidence": 1.0},
            ValueError,
            r"default_confidence is 1.0 \(float\), expected a number between 0 and 1",
        ),
        ({"points_to_evaluate": {"x": 1}}, TypeError, "points_to_evaluate must be a list of configurations, got"),
        ({"points_to_evaluate": [3]}, TypeError, r"points_to_evaluate\[0\] must be a configuration, a dict, got 3"),
        ({"points_to_evaluate": [{}, {"x": 2}]}, ValueError, r"points_to_evaluate\[1\] is not in this space: x is 2"),
        ({"points_to_evaluate": [{"z": 2}]}, ValueError, r"points_to_evaluate\[0\] is not in this space: z is unknown"),
        ({"points_to_evaluate": [{}] * 4}, ValueError, "num_samples is 3, but points_to_evaluate has 4 points to run"),
        (
            {"points_to_evaluate": [{"x": 0.5, "y": 0.5}], "constraints": [small]},
            ValueError,
            r"points_to_evaluate\[0\]: it is infeasible: constraint 0 \(small\) is False of \{'x': 0.5, 'y': 0.5\}",
        ),
        ({"evaluated_rewards": [1.0]}, ValueError, "evaluated_rewards has 1 values for 0 points_to_evaluate"),
        (
            {"points_to_evaluate": [{"x": 0.5}], "evaluated_rewards": [1.0]},
            ValueError,
            r"points_to_evaluate\[0\] lacks y; with a value in evaluated_rewards it must be complete",
        ),
        (
            {"points_to_evaluate": [{"x": 0.5, "y": 0.5}], "evaluated_rewards": [float("nan")]},
            ValueError,
            r"evaluated_rewards\[0\] must be a finite number or None, got nan",
        ),
        (
            {"points_to_evaluate": [{"x": 0.5, "y": 0.5}], "evaluated_rewards": [1], "metric": None, "mode": None},
            ValueError,
            "evaluated_rewards are values of a metric: metric must be given",
        ),
    ],
)
def test_constraints_defaults_and_points_that_make_no_sense(
    settings: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=f"^{message}"):
        tuner(tmp_path, **{"space": PLANE} | settings)
    assert not_begun(tmp_path)


def test_constraints_are_part_of_what_a_study_is(tmp_path: Path) -> None:
    results = tuner(tmp_path, space=PLANE, constraints=[small], num_samples=12).fit()
    assert all(small(result.config) for result in results)
    with pytest.raises(ValueError, match=r"constraints: \['small'\] became \[\]"):
        tuner(tmp_path, space=PLANE, num_samples=12).fit()
    folder = tmp_path / "study"
    message = "constraints=… must be given again: the study's are small"
    refused(ValueError, message, lambda: tune.Tuner.restore(folder, quadratic))
    restored = tune.Tuner.restore(folder, quadratic, constraints=[small], executor="inline").fit()
    assert [result.config for result in restored] == [result.config for result in results]


def test_a_record_from_before_there_were_constraints_has_none(tmp_path: Path) -> None:
    tuner(tmp_path, space=PLANE).fit()
    what = json.loads(study_json(tmp_path).read_text())
    for name in ("constraints", "default_config", "points_to_evaluate", "evaluated_rewards"):
        del what[name]
    del what["sha256"]  # the first versions wrote none
    study_json(tmp_path).write_text(json.dumps(what))
    assert len(tuner(tmp_path, space=PLANE).fit()) == 3
    assert len(tune.Tuner.restore(tmp_path / "study", quadratic, executor="inline").fit()) == 3


def test_a_default_is_part_of_what_a_study_is(tmp_path: Path) -> None:
    kde = BOHB(model="kde")
    tuner(tmp_path, space=PLANE, search_alg=kde, default_config={"x": 0.5}, default_confidence=0.9).fit()
    with pytest.raises(ValueError, match=r"default_config: \{'config': \{'x': 0.5\}, 'confidence': 0.9\} became \{"):
        tuner(tmp_path, space=PLANE, search_alg=kde, default_config={"x": 0.5}).fit()
    assert len(tune.Tuner.restore(tmp_path / "study", quadratic, executor="inline").fit()) == 3


def test_only_feasible_points_of_a_grid_are_trials(tmp_path: Path) -> None:
    space = {"x": tune.grid_search([0.1, 0.3, 0.6]), "y": tune.grid_search([0.0, 0.3])}
    results = tuner(tmp_path, space=space, constraints=[small], num_samples=2).fit()
    assert sorted((result.config["x"], result.config["y"]) for result in results) == [
        (0.1, 0.0), (0.1, 0.0), (0.1, 0.3), (0.1, 0.3), (0.3, 0.0), (0.3, 0.0),
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------------- the study's folder


def study_json(folder: Path) -> Path:
    return folder / "study" / "study.json"


def test_a_study_folder_of_another_space(tmp_path: Path) -> None:
    tuner(tmp_path).fit()
    before = study_json(tmp_path).read_text()
    ran: list[int] = []
    other = tuner(tmp_path, lambda config: ran.append(1), space={"x": tune.uniform(0, 2), "y": tune.randint(1, 5)})
    with pytest.raises(ValueError) as caught:
        other.fit()
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}/study holds another study: ")
    assert "x: uniform(0.0, 1.0) became uniform(0.0, 2.0)" in message
    assert "y" in message
    assert ". Give the new study another name, or delete the folder" in message
    assert not ran
    assert study_json(tmp_path).read_text() == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"format": 4, "name": "study"}, " has format 4; this version of raytuner reads formats 1 to 3"),
        ({"name": "study"}, " has format None; this version of raytuner reads formats 1 to 3"),
        ([1, 2], " has format None; this version of raytuner reads formats 1 to 3"),
        ("{", " is damaged: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
    ],
)
def test_a_study_folder_of_another_format(content: Any, message: str, tmp_path: Path) -> None:
    study_json(tmp_path).parent.mkdir()
    study_json(tmp_path).write_text(content if isinstance(content, str) else json.dumps(content))
    ran: list[int] = []
    expected = f"{study_json(tmp_path)}{message}"
    refused(ValueError, expected, tuner(tmp_path, lambda config: ran.append(1)).fit)
    refused(ValueError, expected, lambda: tune.Tuner.restore(tmp_path / "study", quadratic))
    refused(ValueError, expected, lambda: tune.ResultGrid(tmp_path / "study"))
    assert not tune.Tuner.can_restore(tmp_path / "study")
    assert not ran
    assert not (tmp_path / "study" / "journal").exists()


def test_a_folder_without_a_study(tmp_path: Path) -> None:
    message = f"there is no study in {tmp_path}: it holds no study.json"
    refused(ValueError, message, lambda: tune.Tuner.restore(tmp_path, quadratic))


# ------------------------------------------------------------------------------------------------- what cannot be sent


class Model:
    def __init__(self) -> None:
        self.weights = np.zeros(3)
        self.lock = threading.Lock()


class Experiment:
    def __init__(self) -> None:
        self.model = Model()

    def train(self, config: dict[str, Any]) -> None: ...


def closing_over_a_lock() -> Any:
    lock = threading.Lock()

    def train(config: dict[str, Any]) -> None:
        with lock:
            quadratic(config)

    return train


def of_a_class_that_has_one() -> Any:
    class Keeps(tune.Trainable):
        lock = threading.Lock()

        def step(self) -> dict[str, Any]:
            return {"loss": 1.0}

    return Keeps


def of_a_class_that_uses_one() -> Any:
    lock = threading.Lock()

    class Uses(tune.Trainable):
        def step(self) -> dict[str, Any]:
            with lock:
                return {"loss": 1.0}

    return Uses


def with_data(config: dict[str, Any], data: Any) -> None: ...


LOCK = (
    "which is a _thread.lock: cannot pickle '_thread.lock' object. "
    "Make it in the training function, or let the object's __getstate__ leave it out."
)
SENT = "which cannot be sent to another process"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (closing_over_a_lock, f"trainable is a function, {SENT}: the variable lock of trainable, {LOCK}"),
        (
            lambda: Experiment().train,
            f"trainable is a method, {SENT}: trainable.__self__.model.lock, {LOCK}",
        ),
        (of_a_class_that_has_one, f"trainable is a type, {SENT}: trainable.lock, {LOCK}"),
        (of_a_class_that_uses_one, f"trainable is a type, {SENT}: the variable lock of trainable.step, {LOCK}"),
        (
            lambda: tune.with_parameters(with_data, data=Model()),
            f"data is a tests.test_door.Model, {SENT}: data.lock, {LOCK}",
        ),
        (
            lambda: tune.with_resources(tune.with_parameters(with_data, data={"train": [1, Model()]}), {"cpu": 1}),
            f"data is a dict, {SENT}: data['train'][1].lock, {LOCK}",
        ),
    ],
)
def test_a_trainable_that_cannot_be_serialised(
    make: Callable[[], Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "connect", lambda: pytest.fail("it is known before there is a Ray"))
    refused(TypeError, message, tuner(tmp_path, make(), executor="ray").fit)
    assert not_begun(tmp_path)


def test_a_parameter_of_any_name_is_checked(tmp_path: Path) -> None:
    def train(config: dict[str, Any], trainable: Any) -> None: ...

    study = tuner(tmp_path, tune.with_parameters(train, trainable=Model()), executor="ray")
    refused(TypeError, f"trainable is a tests.test_door.Model, {SENT}: trainable.lock, {LOCK}", study.fit)


def test_what_the_object_itself_says_against_it(tmp_path: Path) -> None:
    class Shy:
        def __reduce__(self) -> Any:
            raise RuntimeError("of this there is one only")

    study = tuner(tmp_path, tune.with_parameters(with_data, data=Shy()), executor="ray")
    with pytest.raises(TypeError, match=f"^data is a .*Shy, {SENT}: of this there is one only"):
        study.fit()


def test_inline_nothing_needs_to_be_sent(tmp_path: Path) -> None:
    assert tuner(tmp_path, closing_over_a_lock()).fit().num_errors == 0


# ---------------------------------------------------------------------------------------------------------- Ray Client

CURE = (
    "; raytuner needs a driver on the cluster: submit the script with `ray job submit -- python …`, or run it on the "
    'head node after `ray.init(address="auto")`'
)


@pytest.mark.parametrize("address", ["ray://head:10001", "http://head:8265"])
def test_ray_client_is_refused_by_its_address(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda *args, **kwargs: pytest.fail("it must not connect"))
    message = f"RAY_ADDRESS is {address!r}, the address of a client{CURE}"
    refused(ValueError, message, tuner(tmp_path, executor="ray").fit)
    assert not_begun(tmp_path)


def test_ray_client_is_refused_once_it_is_connected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray
    from ray.util.client import ray as client

    monkeypatch.setattr(client, "is_connected", lambda: True)
    monkeypatch.setattr(ray, "init", lambda *args, **kwargs: pytest.fail("it must not connect"))
    message = f"this process is connected through Ray Client{CURE}"
    refused(ValueError, message, tuner(tmp_path, executor="ray").fit)
    assert not_begun(tmp_path)


# ---------------------------------------------------------------------------------------------- what a cluster can give


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
class TestResources:
    @pytest.mark.parametrize(
        ("resources", "short"),
        [
            ({"gpu": 16}, "GPU: 16 wanted, 2 there"),
            ({"cpu": 5}, "CPU: 5 wanted, 4 there"),
            ({"cpu": 1, "tpu": 1}, "tpu: 1 wanted, 0 there"),
            ({"cpu": 8, "gpu": 3}, "CPU: 8 wanted, 4 there; GPU: 3 wanted, 2 there"),
        ],
    )
    def test_what_the_cluster_can_never_give(self, resources: dict[str, float], short: str, tmp_path: Path) -> None:
        before = actors()
        study = tuner(tmp_path, tune.with_resources(quadratic, resources), executor="ray")
        refused(ValueError, f"no trial fits on any node of this cluster; {short}", study.fit)
        assert not_begun(tmp_path)
        assert actors() == before, "none was started"

    def test_what_it_can_never_give_to_one_configuration_fails_that_trial(self, tmp_path: Path) -> None:
        reserved = tune.with_resources(quadratic, lambda config: {"cpu": 64 if config["x"] == 1 else 1})
        results = tuner(tmp_path, reserved, "ray", space={"x": tune.grid_search([0, 1, 2])}, num_samples=1).fit()
        assert [result.state for result in results] == [State.DONE, State.FAILED, State.DONE]
        assert str(results[1].error) == (
            "the resources of this configuration: NoResources: no trial fits on any node of this cluster; "
            "CPU: 64 wanted, 4 there"
        )


def actors() -> int:
    """How many trial actors there have ever been in this Ray."""
    from ray._private import state

    return sum(actor["ActorClassName"] == "TrialActor" for actor in state.actors().values())


# ------------------------------------------------------------------------------------------------- what trials may say


NOT_REPORTABLE = "raytuner.session.NotReportable: "


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (3, NOT_REPORTABLE + "report() takes a dict of metrics, got int: 3"),
        ([("loss", 1)], NOT_REPORTABLE + "report() takes a dict of metrics, got list: [('loss', 1)]"),
        (None, NOT_REPORTABLE + "report() takes a dict of metrics, got NoneType: None"),
        (
            {"loss": [1, 2]},
            NOT_REPORTABLE + "metric 'loss' must be a number, a string or a bool, got list: [1, 2]",
        ),
        (
            {"loss": np.zeros(2)},
            NOT_REPORTABLE + "metric 'loss' must be a number, a string or a bool, got ndarray: array([0., 0.])",
        ),
        (
            {"loss": 1.0, "time": {"load": {1, 2}}},
            NOT_REPORTABLE + "metric 'time/load' must be a number, a string or a bool, got set: {1, 2}",
        ),
        ({1: 2.0}, NOT_REPORTABLE + "metric names must be strings, got 1"),
    ],
)
def test_a_report_that_is_no_mapping_of_scalars(said: Any, message: str, tmp_path: Path) -> None:
    def train(config: dict[str, Any]) -> None:
        tune.report(said if tune.get_context().get_trial_id() == "0" else {"loss": 1.0})

    results = tuner(tmp_path, train).fit()
    assert [result.state for result in results] == [State.FAILED, State.DONE, State.DONE]
    assert str(results[0].error).splitlines()[-1] == message
    assert 'in train\n    tune.report(said if tune.get_context().get_trial_id() == "0"' in str(results[0].error)
    assert results.to_arrow("reports")["trial"].to_pylist() == [1, 2], "nothing was recorded of it"


def missing() -> Any:
    return tune.Checkpoint.from_directory("no/such/folder")


def a_file() -> Any:
    Path("state").write_text("x")
    return tune.Checkpoint.from_directory("state")


def gone() -> Any:
    Path("gone").mkdir()
    checkpoint = tune.Checkpoint.from_directory("gone")
    Path("gone").rmdir()
    return checkpoint


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (missing, "^ValueError: a Checkpoint is made from an existing directory; 'no/such/folder' is not one$"),
        (a_file, "^ValueError: a Checkpoint is made from an existing directory; 'state' is not one$"),
        (lambda: "folder", r"^TypeError: checkpoint must be a raytuner\.Checkpoint, got str$"),
        (lambda: {"step": 1}, r"^TypeError: checkpoint must be a raytuner\.Checkpoint, got dict$"),
        (gone, "^FileNotFoundError: .*No such file or directory: '.*gone/?'$"),
    ],
)
def test_a_checkpoint_that_is_no_directory(make: Callable[[], Any], message: str, tmp_path: Path) -> None:
    def train(config: dict[str, Any]) -> None:
        tune.report({"loss": 1.0}, checkpoint=make() if tune.get_context().get_trial_id() == "0" else None)

    results = tuner(tmp_path, train).fit()
    assert [result.state for result in results] == [State.FAILED, State.DONE, State.DONE]
    assert re.search(message, str(results[0].error).splitlines()[-1])
    assert results[0].checkpoint is None


# -------------------------------------------------------------------------------------------------------------- faults


def test_a_trial_that_raises_ends_failed_with_its_traceback_and_the_sweep_goes_on(tmp_path: Path) -> None:
    def deep(x: float) -> float:
        return 1 / (x - x)

    def train(config: dict[str, Any]) -> None:
        quadratic(config)
        if tune.get_context().get_trial_id() == "1":
            deep(config["x"])
        quadratic(config)

    results = tuner(tmp_path, train).fit()
    assert [result.state for result in results] == [State.DONE, State.FAILED, State.DONE]
    assert [result.metrics["training_iteration"] for result in results] == [2, 1, 2], "what it had said stays"
    assert results[1].why == "the training function raised an error"
    error = str(results[1].error)
    assert error.startswith("Traceback (most recent call last):\n")
    assert 'in train\n    deep(config["x"])' in error
    assert "in deep\n    return 1 / (x - x)" in error
    assert error.rstrip().endswith("ZeroDivisionError: float division by zero")
    again = tune.ResultGrid(tmp_path / "study")
    assert str(again[1].error) == error, "it is on record"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), "low", True])
def test_a_value_that_cannot_be_ranked_ends_its_trial_at_once(value: Any, tmp_path: Path) -> None:
    went_on = []

    def train(config: dict[str, Any]) -> None:
        trial = tune.get_context().get_trial_id()
        quadratic(config)
        tune.report({"loss": value if trial == "0" else 1.0})
        went_on.append(trial)

    results = tuner(tmp_path, train, failure_config=tune.FailureConfig(max_failures=3)).fit()
    assert [result.state for result in results] == [State.FAILED, State.DONE, State.DONE]
    assert results[0].why == "it did not report a usable value of the metric"
    assert str(results[0].error) == f"metric 'loss' was {value!r}; a finite number is needed"
    assert went_on == ["1", "2"], "nor is it tried again: it would say the same"


def test_nan_may_be_ignored_where_nothing_is_compared(tmp_path: Path) -> None:
    def train(config: dict[str, Any]) -> None:
        nan = float("nan")
        for loss in [nan, 1.0, nan] if tune.get_context().get_trial_id() == "0" else [nan, 1.0]:
            tune.report({"loss": loss})

    results = tuner(tmp_path, train, failure_config=tune.FailureConfig(on_nan="ignore")).fit()
    assert [result.state for result in results] == [State.FAILED, State.DONE, State.DONE]
    assert [result.metrics["training_iteration"] for result in results] == [3, 2, 2]
    assert str(results[0].error) == "metric 'loss' was nan; a finite number is needed"


def test_none_is_what_was_not_reported(tmp_path: Path) -> None:
    results = tuner(tmp_path, lambda config: tune.report({"loss": None, "time": 3.0})).fit()
    assert str(results[0].error) == "no metric 'loss' in the report; the trial reported: time"


def test_policies_that_there_are_not() -> None:
    refused(ValueError, "on_nan must be 'fail' or 'ignore', got 'skip'", lambda: tune.FailureConfig(on_nan="skip"))
    message = "fail_fast must be True, False or 'raise', got 'now'"
    refused(ValueError, message, lambda: tune.FailureConfig(fail_fast="now"))
