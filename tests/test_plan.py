"""`raytuner.simulate`: figures that can be worked out by hand, faults that do what they say, and the real study inside.

What may be skipped is skipped exactly; a driver's death changes nothing; a forecast decides what a real run decides.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import raytuner as tune
from raytuner import CheckpointConfig, FailureConfig, Faults, Forecast, RunConfig, TuneConfig, simulate
from raytuner.actions import Fork, Resume, Start
from raytuner.curves import Recorded, Shape
from raytuner.driver import Driver
from raytuner.events import Over
from raytuner.executors.simulate import Simulation, Workload, World
from raytuner.plan import Incumbent, duration, settings_of
from raytuner.protocols import SchedulingPolicy
from raytuner.record.journal import Journal, read
from raytuner.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    HyperBandScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
)
from raytuner.searchers import BOHB
from raytuner.space import Space
from raytuner.trial import Trial, Why

SPACE = {
    "lr": tune.loguniform(1e-4, 1.0),
    "width": tune.randint(4, 64),
    "optimizer": tune.choice([{"name": "sgd", "momentum": tune.uniform(0.0, 0.99)}, {"name": "adam"}]),
}
ASHA = ASHAScheduler(max_t=27, reduction_factor=3)


def tuned(scheduler: SchedulingPolicy | None = ASHA, trials: int = 60, **more: Any) -> TuneConfig:
    return TuneConfig(
        **{"metric": "loss", "mode": "min", "num_samples": trials, "scheduler": scheduler, "seed": 3, **more}
    )


def planned(**more: Any) -> Forecast:
    return simulate(SPACE, **{"curve": "power", "workers": 8, "tune_config": tuned(), **more})


def hand(trials: int = 1, steps: int = 10, **more: Any) -> Forecast:
    """Every trial runs to its end, a step a second, with a loss of 1."""
    given = {"curve": lambda config, step: {"loss": 1.0}, "workers": 1, "tune_config": tuned(None, trials)}
    return simulate({"x": tune.uniform(0, 1)}, **{**given, "steps": steps, **more})


# ------------------------------------------------------------------------------------------------- figures by hand


def test_figures_that_can_be_worked_out() -> None:
    found = hand(5, workers=2, seconds_per_step=60.0, gpus_per_trial=0.5, price=3.0)
    assert (found.trials, found.full, found.stopped, found.failed, found.unfinished) == (5, 5, 0, 0, 0)
    assert found.wall_s == 3 * 600
    assert found.busy_s == 5 * 600
    assert found.slot_hours == pytest.approx(5 / 6)
    assert found.gpu_hours == pytest.approx(5 / 12)
    assert found.cost == pytest.approx(5 / 4)
    assert (found.steps, found.repeated, found.checkpoints) == (50, 0, 0)
    assert found.utilisation == pytest.approx(5 / 6)
    assert (found.last_start_s, found.utilisation_until_last_start) == (1200, 1.0)
    assert (found.complete, found.deaths) == (True, 0)
    assert found.incumbents == (Incumbent(600.0, 0, 10, 1.0),)
    assert [type(each) for each in found.decisions[:3]] == [Start, Start, Over]
    assert set(found.configs) == set(range(5))


def test_seconds_may_depend_on_the_configuration() -> None:
    found = hand(3, workers=3, seconds_per_step=lambda config: 1 + config["x"])
    assert found.wall_s == pytest.approx(10 + 10 * max(config["x"] for config in found.configs.values()))
    assert found.busy_s == pytest.approx(30 + 10 * sum(config["x"] for config in found.configs.values()))


def test_checkpoints_that_exist_at_the_same_time() -> None:
    every = RunConfig(checkpoint_config=CheckpointConfig(checkpoint_frequency=3))
    assert hand(2, run_config=every).checkpoints == 6
    last = RunConfig(checkpoint_config=CheckpointConfig(checkpoint_frequency=3, num_to_keep=1))
    assert hand(2, run_config=last).checkpoints == 3, "two are kept, and one is there before its predecessor is gone"
    assert hand(2, run_config=every, saves=False).checkpoints == 0
    assert planned().checkpoints > 60
    assert planned(saves=False).checkpoints == 0


def test_the_incumbent_is_the_best_of_the_highest_rung() -> None:
    found = planned(tune_config=tuned(ASHA, 30), workers=1)
    rungs = [each.step for each in found.incumbents]
    assert rungs == sorted(rungs)
    assert found.best == found.incumbents[-1]
    assert found.best is not None
    assert found.best.step == 27
    shape = Shape("power", Space(SPACE), 27, seed=3)
    assert found.best.value == min(shape.value(config) for config in found.configs.values())
    assert found.incumbent_at(0.5) is None
    assert found.incumbent_at(found.incumbents[1].at_s) == found.incumbents[1]
    assert found.incumbent_at(1e9) == found.best


def test_fewer_trials_at_a_time_than_workers() -> None:
    assert hand(4, workers=4, tune_config=tuned(None, 4, max_concurrent_trials=2)).workers == 2


def test_a_time_budget_ends_it() -> None:
    found = hand(5, workers=2, tune_config=tuned(None, 5, time_budget_s=14.5))
    assert (found.wall_s, found.full, found.unfinished, found.complete) == (14.5, 2, 2, False)
    assert found.busy_s == 29
    assert found.steps == 28
    assert "time budget of 14.5 s" in found.reason


def test_stop_rules_of_both_kinds() -> None:
    curve = {"curve": lambda config, step: {"loss": 1.0, "epoch": 2 * step}}
    for stop in (
        {"training_iteration": 7},
        {"epoch": 13},
        {"time_total_s": 7},
        lambda trial, result: result["loss"] and result["training_iteration"] >= 7,
    ):
        found = hand(3, run_config=RunConfig(stop=stop), **curve)
        assert (found.steps, found.full) == (21, 3)
        assert {each.why for each in found.decisions if isinstance(each, Over)} == {Why.STOP_RULE}


def test_max_is_a_direction_too() -> None:
    most = simulate(SPACE, curve="power", workers=8, tune_config=tuned(ASHA, metric="acc", mode="max"))
    least = planned()
    assert most.decisions == least.decisions
    assert most.best is not None
    assert least.best is not None
    assert most.best.value == 1 - least.best.value


def test_progress_may_be_measured_in_seconds() -> None:
    rule = MedianStoppingRule(grace_period=20.0)  # of time_total_s
    found = planned(tune_config=tuned(rule), seconds_per_step=2.0, steps=27)
    assert found.stopped > 10
    assert found.full + found.stopped == 60
    assert found.steps >= 60 * 10, "nobody is stopped before"
    levels = ASHAScheduler(time_attr="time_total_s", max_t=54, grace_period=2, reduction_factor=3)
    stepwise = ASHAScheduler(max_t=27, grace_period=1, reduction_factor=3)
    same = [planned(tune_config=tuned(each), seconds_per_step=2.0, steps=27) for each in (levels, stepwise)]
    assert [each.steps for each in same] == [same[0].steps] * 2
    assert same[0].best == same[1].best


# ---------------------------------------------------------------------------------------------- nothing is left out

RETRIES = FailureConfig(max_failures=2)
EXACT: Mapping[str, Mapping[str, Any]] = {
    "asha": {},
    "fifo": {"tune_config": tuned(FIFOScheduler()), "steps": 27},
    "hyperband": {"tune_config": tuned(HyperBandScheduler(max_t=27), search_alg=BOHB(min_points_in_model=4))},
    "promotion": {"tune_config": tuned(replace(ASHA, promotion=True)), "saves": False},
    "median": {"tune_config": tuned(MedianStoppingRule(time_attr="training_iteration", grace_period=3)), "steps": 27},
    "pbt": {
        "tune_config": tuned(
            PopulationBasedTraining(
                time_attr="training_iteration",
                perturbation_interval=5,
                hyperparam_mutations={"lr": tune.loguniform(1e-4, 1.0)},
            ),
            trials=12,
        ),
        "steps": 27,
    },
    "levels": {
        "tune_config": tuned(ASHAScheduler(time_attr="time_total_s", max_t=70, reduction_factor=3)),
        "seconds_per_step": lambda config: 1 + config["lr"],
        "steps": 27,
    },
    "uneven": {"seconds_per_step": lambda config: 1 / (3 + config["width"])},
    "diverging": {"curve": "diverging"},
    "budget": {"tune_config": tuned(time_budget_s=13.3)},
    "metric stop": {"run_config": RunConfig(stop={"loss": 0.9, "training_iteration": 20})},
    "own curve": {"curve": lambda config, step: {"loss": config["lr"] / step}},
    "saves": {"run_config": RunConfig(checkpoint_config=CheckpointConfig(num_to_keep=1, checkpoint_frequency=4))},
    "faults": {
        "faults": Faults(trial_failure=0.01, worker_loss=0.01, away_s=7.7, slow_workers=0.3, nan=0.003),
        "run_config": RunConfig(failure_config=RETRIES),
    },
    "patience": {"faults": Faults(nan=0.01), "run_config": RunConfig(failure_config=FailureConfig(on_nan="ignore"))},
    "late": {"faults": Faults(late_reports=0.7, late_s=0.4, trial_failure=0.02)},
    "deaths": {"faults": Faults(driver_deaths=0.2, trial_failure=0.01)},
}


@pytest.mark.parametrize("name", EXACT)
def test_skipping_changes_nothing(name: str) -> None:
    skipped, made = planned(**EXACT[name]), planned(**EXACT[name], skip=False)
    assert skipped == made
    assert len(skipped.decisions) > 20


def test_skipping_skips() -> None:
    asked: list[int] = []

    def curve(config: Mapping[str, Any], step: int) -> Mapping[str, float]:
        asked.append(step)
        return {"loss": 1.0}

    shape = Shape("power", Space(SPACE), 27)
    shape.at = lambda trial, step: curve(trial.config, step)  # type: ignore[method-assign]
    planned(curve=shape)
    assert set(asked) == {1, 3, 9, 27}


# ------------------------------------------------------------------------------------------------------------ faults


def at(step: int, tries: int = 0, trial: int | None = None) -> Callable[[Trial, int, int], bool]:
    return lambda of, now, so_often: now == step and so_often == tries and trial in (None, of.id)


def test_a_step_that_fails() -> None:
    once = Faults(trial_failure=at(5))
    given_up = hand(2, faults=once)
    assert (given_up.failed, given_up.full, given_up.wall_s, given_up.steps) == (2, 0, 10.0, 8)
    again = hand(2, faults=once, run_config=RunConfig(failure_config=RETRIES))
    assert (again.failed, again.full, again.wall_s) == (0, 2, 30.0)
    assert (again.steps, again.repeated) == (28, 8)
    saved = CheckpointConfig(checkpoint_frequency=2)
    cheaper = hand(2, faults=once, run_config=RunConfig(failure_config=RETRIES, checkpoint_config=saved))
    assert (cheaper.wall_s, cheaper.repeated) == (22.0, 0)


def test_a_worker_that_is_lost_is_gone_for_a_while() -> None:
    found = hand(1, faults=Faults(worker_loss=at(5), away_s=100.0))
    assert (found.wall_s, found.busy_s, found.repeated) == (115.0, 15.0, 4)
    assert found.utilisation == 1.0, "a slot that is not there is not idle"
    two = hand(2, workers=2, faults=Faults(worker_loss=at(5, trial=1), away_s=100.0))
    assert (two.wall_s, two.full) == (20.0, 2), "the other one takes it over"
    lost = hand(1, faults=Faults(worker_loss=lambda trial, step, tries: step == 5, away_s=1.0))
    assert (lost.failed, lost.full) == (1, 0)
    assert {each.why for each in lost.decisions if isinstance(each, Over)} == {Why.LOST}


def test_slow_workers() -> None:
    found = hand(2, workers=2, faults=Faults(slow_workers=lambda worker: 3.0 if worker else 1.0))
    assert (found.wall_s, found.busy_s) == (30.0, 40.0)
    share = [hand(200, workers=200, faults=Faults(slow_workers=0.2, slowness=3.0, seed=seed)) for seed in (3, 6)]
    assert [each.wall_s for each in share] == [30.0, 30.0]
    for each in share:
        assert 0.1 < (each.busy_s / 2000 - 1) / 2 < 0.3
    assert share[0].busy_s != share[1].busy_s


def test_nan() -> None:
    found = hand(3, faults=Faults(nan=at(5, trial=1)))
    assert (found.failed, found.full, found.steps) == (1, 2, 25)
    patient = RunConfig(failure_config=FailureConfig(on_nan="ignore"))
    assert hand(3, faults=Faults(nan=at(5, trial=1)), run_config=patient).failed == 0
    assert hand(3, faults=Faults(nan=at(10, trial=1)), run_config=patient).failed == 1


@pytest.mark.parametrize("name", ["asha", "median", "deaths"])
def test_reports_that_come_twice_or_late_change_nothing(name: str) -> None:
    given = dict(EXACT[name])
    faults = replace(given.pop("faults", Faults(trial_failure=0.01)), duplicate_reports=0.3)
    alone = planned(**given, faults=replace(faults, duplicate_reports=0.0))
    assert planned(**given, faults=faults) == alone
    assert planned(**given, faults=replace(faults, late_reports=0.5, late_s=1.3)).decisions == alone.decisions


def untold(forecast: Forecast) -> Forecast:
    """But for what a driver's death costs, in steps and in checkpoints that were swept away."""
    return replace(forecast, deaths=0, steps=0, repeated=0, checkpoints=0)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", ["asha", "fifo", "hyperband", "promotion", "median", "pbt", "uneven", "saves"])
def test_a_driver_that_dies_again_and_again_changes_nothing(name: str, seed: int) -> None:
    given = {**EXACT[name], "saves": True}
    alone = planned(**given)
    found = planned(**given, faults=Faults(driver_deaths=0.2, seed=seed))
    assert found.deaths >= 2
    assert untold(found) == untold(alone)
    assert found.steps - found.repeated == alone.steps


def test_chance_is_a_function_of_its_seed() -> None:
    faults = Faults(trial_failure=0.02, worker_loss=0.01, away_s=20.0)
    one, same, other = (planned(faults=replace(faults, seed=seed)) for seed in (1, 1, 2))
    assert one == same
    assert one.decisions != other.decisions


def test_rates_are_rates() -> None:
    found = hand(2000, steps=10, workers=2000, faults=Faults(trial_failure=0.05))
    assert found.failed / 2000 == pytest.approx(1 - 0.95**10, abs=0.03)


# ----------------------------------------------------------------------------------------- it is the real study


def decisions(root: Path) -> tuple[Any, ...]:
    return tuple(row for row in read(root).rows if isinstance(row, Start | Resume | Fork | Over))


@pytest.mark.parametrize("name", ["asha", "hyperband", "promotion"])
def test_it_decides_what_a_study_with_a_journal_decides(name: str, fast_path: Path) -> None:
    config = planned_config(name)
    tuner = tune.Tuner(lambda config: None, param_space=SPACE, tune_config=config)
    shape = Shape("power", Space(SPACE), 27, seed=3)
    world, journal = World(), Journal(fast_path)
    simulation = Simulation(world, Workload(shape.at, length=27), 8)
    searcher = tuner._searcher.build(tuner._space, 3)
    Driver(tuner._study(3), searcher, journal, world, simulation).run(simulation)
    journal.close()
    found = planned(tune_config=config, curve=shape)
    assert found.decisions == decisions(fast_path)
    assert found.wall_s == world.now
    assert found.steps == read(fast_path).reports.num_rows


def planned_config(name: str) -> TuneConfig:
    config = EXACT[name].get("tune_config", tuned())
    assert isinstance(config, TuneConfig)
    return config


def loss(config: Mapping[str, Any], step: int) -> dict[str, float]:
    return {"loss": abs(math.log10(config["lr"]) + 2) + config["width"] / 64 + 1 / step}


def test_it_decides_what_a_real_run_decides(tmp_path: Path) -> None:
    """One worker after the other: there the order of arrival is the same."""

    def train(config: dict[str, Any]) -> None:
        for step in range(1, 28):
            tune.report(loss(config, step))

    config = planned_config("hyperband")
    run = RunConfig(name="real", storage_path=tmp_path, verbose=0)
    tune.Tuner(train, param_space=SPACE, tune_config=config, run_config=run, executor="inline").fit()
    expected = decisions(tmp_path / "real")
    assert planned(tune_config=config, curve=loss, workers=1, steps=27).decisions == expected
    # And so it is with the curves that were recorded, and with the settings that were.
    recorded = Recorded(tmp_path / "real")
    its_config, its_run, gpus = settings_of(recorded)
    again = simulate(recorded.space, curve=recorded, workers=1, tune_config=its_config, run_config=its_run)
    assert gpus == 0.0
    assert again.decisions == expected
    assert 0 < again.wall_s < 60
    assert again.utilisation == pytest.approx(1.0)


# -------------------------------------------------------------------------------------------------------- as people


def test_a_forecast_shows_itself() -> None:
    found = planned(seconds_per_step=60.0, price=2.0, faults=Faults(driver_deaths=0.1))
    text = str(found)
    for part in (
        "wall time",
        "GPU-hours",
        "cost",
        "to full budget",
        "slots taken",
        "best loss",
        "its config",
        "deaths",
    ):
        assert part in text
    assert repr(found).startswith("Forecast(8 workers, 60 trials: ")
    assert max(map(len, repr(found).splitlines())) < 120
    figures = json.loads(json.dumps(found.to_json()))
    assert figures["wall_s"] == found.wall_s
    assert figures["best"]["config"] == found.configs[found.best.trial]  # type: ignore[union-attr]
    early = hand(5, tune_config=tuned(None, 5, time_budget_s=14.5))
    assert "ended early" in str(early)


def test_without_a_metric_nothing_is_the_best() -> None:
    found = hand(3, tune_config=TuneConfig(num_samples=3))
    assert found.best is None
    assert "best" not in str(found)
    assert found.to_json()["best"] is None


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0.0 s"), (59, "59.0 s"), (90, "1.5 min"), (7200, "2.0 h"), (260000, "3.0 d")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# --------------------------------------------------------------------------------------------------------- the door


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"workers": 0}, "workers must be a whole number of at least 1, got 0"),
        ({"workers": True}, "workers must be a whole number of at least 1, got True"),
        ({"curve": "straight"}, "curve must be one of power, exponential, .*, or a function; got 'straight'"),
        ({"curve": 7}, "curve must be the name of a shape, .* got 7"),
        ({"curve": Shape("power", Space(SPACE), 27, metric="acc")}, r"metric is 'loss' \(min\), but .* 'acc' \(min\)"),
        ({"steps": 0}, "steps must be a whole number of at least 1, got 0"),
        ({"tune_config": tuned(FIFOScheduler())}, "steps must be given: FIFOScheduler does not say"),
        ({"seconds_per_step": 0}, "seconds_per_step must be a number above 0, got 0"),
        ({"seconds_per_step": lambda config: -1.0}, r"seconds_per_step\(config\) must be a number above 0, got -1"),
        ({"gpus_per_trial": -1}, "gpus_per_trial must be a number of at least 0, got -1"),
        ({"price": "much"}, "price must be a number of at least 0, got 'much'"),
        ({"price": 2.0, "gpus_per_trial": 0}, "price is 2.0 for a GPU-hour, but gpus_per_trial is 0"),
        ({"saves": 1}, "saves must be True or False, got 1"),
        ({"faults": {"nan": 0.1}}, "faults must be a raytuner.Faults, got {'nan': 0.1}"),
        (
            {"tune_config": tuned(ASHAScheduler(time_attr="epoch", max_t=27)), "steps": 27},
            "'epoch' is the scheduler's time_attr, but the curve says {'training_iteration': 1",
        ),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        planned(**arguments)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"trial_failure": 1.5}, "trial_failure must be a number from 0 to 1, or a function; got 1.5"),
        ({"worker_loss": True}, "worker_loss must be a number from 0 to 1"),
        ({"driver_deaths": 1}, "driver_deaths must be a number from 0 below 1, or a function; got 1"),
        ({"away_s": 0}, "away_s must be a number above 0, got 0"),
        ({"slowness": -2.0}, "slowness must be a number above 0"),
        ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
    ],
)
def test_wrong_faults(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Faults(**arguments)
