"""What trials come to reserve: the rules against tables and laws, the study by its events and over its drivers' deaths,
and one sweep on a real Ray, where trials grow as others end."""

from __future__ import annotations

import json
import logging
import math
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import raytuner as tune
from raytuner.actions import Fork, Resume, Start
from raytuner.allocation import LiveTrial, StudyView, covers, less, packs, total
from raytuner.driver import Driver
from raytuner.events import Ended, Event, Failed, How, Opened, Slots, StopAsked
from raytuner.executors import ray_actors
from raytuner.executors.ray_actors import RayActors
from raytuner.executors.simulate import Simulation, World
from raytuner.objective import Objective
from raytuner.record.journal import Journal, Row, read
from raytuner.retry import Retries
from raytuner.schedulers import (
    SCHEDULERS,
    AsyncHyperBandScheduler,
    DistributeResources,
    DistributeResourcesToTopJob,
    FIFOScheduler,
    HyperBandScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    ResourceChangingScheduler,
)
from raytuner.searchers import BOHB, RandomSearch
from raytuner.session import Rules
from raytuner.space import Space
from raytuner.spelling import make, spell
from raytuner.study import Study
from raytuner.trial import END, Failure, Lease, Reports, Slot, State, Trial
from raytuner.work import Work
from tests import lives
from tests.lives import SPACE, Case, Died, Fate, decisions, fate
from tests.test_study import Desk, Scripted, runs

__all__ = ["fate"]  # a fixture

RULES: dict[str, Any] = {
    "even": DistributeResources(),
    "even by 2": DistributeResources(increase_by={"CPU": 2}),
    "even but 1": DistributeResources(reserve_resources={"cpu": 1}),
    "even, twice": DistributeResources(increase_by={"cpu": 1, "gpu": 1}, increase_by_times=2),
    "top": DistributeResourcesToTopJob(),
    "top, twice": DistributeResourcesToTopJob(increase_by={"cpu": 1}, increase_by_times=2),
    "top by accuracy": DistributeResourcesToTopJob(metric="accuracy", mode="max", reserve_resources={"cpu": 1}),
}


def live(
    number: int, slot: Slot | None = None, value: float | None = 1.0, running: bool = True, **metrics: Any
) -> LiveTrial:
    return LiveTrial(number, {}, 1, {"training_iteration": 1, **metrics}, value, slot or Slot(), running)


def view(
    trials: Sequence[LiveTrial],
    nodes: Sequence[Slot] = (Slot(cpu=8),),
    base: Slot | None = None,
    to_come: int | None = 0,
    most: int | None = None,
) -> StudyView:
    return StudyView(tuple(trials), base or Slot(), tuple(nodes), to_come, most)


def ask(rule: Any, seen: StudyView, number: int) -> Slot:
    trial = next(each for each in seen.live if each.id == number)
    said = rule(seen, trial, dict(trial.metrics), None)
    assert isinstance(said, Slot)
    return said


def settle(rule: Any, seen: StudyView) -> list[Slot]:
    """What the running trials have once each was asked as often as it likes."""
    for _ in range(4):
        for trial in seen.live:
            if trial.running:
                slot = ask(rule, seen, trial.id)
                seen = replace(
                    seen, live=tuple(replace(each, slot=slot) if each.id == trial.id else each for each in seen.live)
                )
    return [trial.slot for trial in seen.live if trial.running]


# -------------------------------------------------------------------------------------------------------- what fits


@pytest.mark.parametrize(
    ("nodes", "slots", "fit"),
    [
        ([Slot(cpu=4)], [(Slot(cpu=2), 2)], True),
        ([Slot(cpu=4)], [(Slot(cpu=2), 2), (Slot(cpu=1), 1)], False),
        ([Slot(cpu=4)], [(Slot(cpu=0), 4)], True),  # who reserves nothing counts as one CPU
        ([Slot(cpu=4)], [(Slot(cpu=0), 5)], False),
        ([Slot(cpu=0.3)], [(Slot(cpu=0.1), 3)], True),
        ([Slot(cpu=4), Slot(cpu=4)], [(Slot(cpu=3), 2), (Slot(cpu=1), 2)], True),
        ([Slot(cpu=4), Slot(cpu=4)], [(Slot(cpu=3), 2), (Slot(cpu=2), 1)], False),  # 8 are there, but on two nodes
        ([Slot(cpu=4), Slot(cpu=4)], [(Slot(cpu=5), 1)], False),
        ([Slot(cpu=8, gpu=2)], [(Slot(gpu=0.6), 3)], False),  # a fraction lies on one GPU
        ([Slot(cpu=8, gpu=2)], [(Slot(gpu=0.5), 4)], True),
        ([Slot(cpu=8, gpu=2)], [(Slot(gpu=0.5), 3), (Slot(gpu=1), 1)], False),
        ([Slot(cpu=8, gpu=2)], [(Slot(gpu=0.5), 2), (Slot(gpu=1), 1)], True),
        ([Slot(cpu=8, gpu=3)], [(Slot(gpu=0.6), 2), (Slot(gpu=0.4), 2), (Slot(gpu=1), 1)], True),
        ([Slot(cpu=8, custom={"tpu": 2})], [(Slot(custom={"tpu": 1}), 2)], True),
        ([Slot(cpu=8, custom={"tpu": 2})], [(Slot(custom={"tpu": 1}), 3)], False),
        ([Slot(cpu=8)], [(Slot(custom={"tpu": 1}), 1)], False),
        ([Slot(cpu=8, memory_gib=4)], [(Slot(memory_gib=2), 2)], True),
        ([Slot(cpu=8, memory_gib=4)], [(Slot(memory_gib=2), 3)], False),
    ],
)
def test_whether_slots_pack(nodes: list[Slot], slots: list[tuple[Slot, int]], fit: bool) -> None:
    assert packs(nodes, slots) is fit
    assert covers(total((node, 1) for node in nodes), total(slots)) or not fit


def test_what_is_kept_back_is_of_the_last_nodes() -> None:
    nodes = [Slot(cpu=4, gpu=1), Slot(cpu=4, custom={"tpu": 2})]
    assert less(nodes, Slot(cpu=5, custom={"tpu": 1})) == [Slot(cpu=3, gpu=1), Slot(cpu=0, custom={"tpu": 1.0})]
    assert less(nodes, Slot(cpu=50)) == [Slot(cpu=0, gpu=1), Slot(cpu=0, custom={"tpu": 2})]


# -------------------------------------------------------------------------------------------------------- the rules


@pytest.mark.parametrize(
    ("cpus", "trials", "more", "sizes"),
    [
        (8, 1, {}, [8]),
        (8, 2, {}, [4, 4]),
        (8, 3, {}, [3, 3, 2]),
        (8, 8, {}, [1] * 8),
        (8, 12, {}, [1] * 12),
        (8, 3, {"to_come": 1}, [2, 2, 2]),
        (8, 3, {"to_come": 100}, [1, 1, 1]),
        (8, 3, {"to_come": None}, [1, 1, 1]),  # nobody knows how many come
        (8, 3, {"to_come": None, "most": 4}, [2, 2, 2]),
        (8, 3, {"to_come": 100, "most": 3}, [3, 3, 2]),
        (8, 2, {"base": Slot(cpu=3)}, [4, 4]),
        (8, 3, {"base": Slot(cpu=3)}, [3, 3, 3]),  # one of them waits
    ],
)
def test_cpus_are_shared_out_evenly(cpus: int, trials: int, more: dict[str, Any], sizes: list[int]) -> None:
    base = more.get("base", Slot())
    seen = view([live(number, base) for number in range(trials)], [Slot(cpu=cpus)], **more)
    assert [slot.cpu for slot in settle(DistributeResources(), seen)] == sizes


@pytest.mark.parametrize(
    ("settings", "base", "node", "trials", "sizes"),
    [
        # As in Ray one GPU at a time where trials have GPUs; then the CPUs stay as they are.
        ({}, Slot(gpu=1), Slot(cpu=8, gpu=4), 2, [Slot(gpu=2)] * 2),
        ({}, Slot(gpu=0.5), Slot(cpu=8, gpu=2), 2, [Slot(gpu=1)] * 2),
        ({}, Slot(gpu=0.5), Slot(cpu=8, gpu=2), 1, [Slot(gpu=2)]),
        ({}, Slot(gpu=0.4), Slot(cpu=8, gpu=2), 1, [Slot(gpu=2)]),
        ({}, Slot(gpu=0.4), Slot(cpu=8, gpu=1), 1, [Slot(gpu=0.8)]),  # 1.2 is no number of GPUs
        ({"increase_by": {"CPU": 2}}, Slot(), Slot(cpu=7), 2, [Slot(3)] * 2),
        ({"increase_by": {"cpu": 2}}, Slot(), Slot(cpu=8), 2, [Slot(5), Slot(3)]),
        ({"increase_by": {"cpu": 2, "gpu": 1}}, Slot(gpu=1), Slot(cpu=16, gpu=4), 1, [Slot(7, 4)]),
        ({"increase_by": {"cpu": 1}, "increase_by_times": 2}, Slot(), Slot(cpu=8), 2, [Slot(3)] * 2),
        ({"increase_by": {"memory": 2**30}}, Slot(), Slot(cpu=8, memory_gib=4), 2, [Slot(memory_gib=2)] * 2),
        ({"increase_by": {"tpu": 1}}, Slot(), Slot(cpu=8, custom={"tpu": 2}), 2, [Slot(custom={"tpu": 1})] * 2),
        ({"reserve_resources": {"CPU": 2}}, Slot(), Slot(cpu=8), 2, [Slot(3)] * 2),
        ({"reserve_resources": {"CPU": 20}}, Slot(), Slot(cpu=8), 2, [Slot()] * 2),
    ],
)
def test_units(settings: dict[str, Any], base: Slot, node: Slot, trials: int, sizes: list[Slot]) -> None:
    seen = view([live(number, base) for number in range(trials)], [node], base)
    found = settle(DistributeResources(**settings), seen)
    assert found == sizes


@pytest.mark.parametrize(
    ("trials", "sizes"), [(1, [8]), (2, [8, 8]), (3, [5, 4, 4]), (4, [4] * 4), (5, [3, 3, 3, 3, 2])]
)
def test_a_trial_lies_on_one_node(trials: int, sizes: list[int]) -> None:
    seen = view([live(number) for number in range(trials)], [Slot(cpu=8), Slot(cpu=8)])
    assert [slot.cpu for slot in settle(DistributeResources(), seen)] == sizes


def test_paused_trials_keep_their_share() -> None:
    seen = view([live(0), live(1, running=False), live(2)], [Slot(cpu=6)])
    assert [slot.cpu for slot in settle(DistributeResources(), seen)] == [2, 2]
    assert [slot.cpu for slot in settle(DistributeResourcesToTopJob(), seen)] == [4, 1]


@pytest.mark.parametrize(
    ("values", "settings", "sizes"),
    [
        ([3.0, 1.0, 2.0], {}, [1, 6, 1]),
        ([1.0, 1.0, 2.0], {}, [6, 1, 1]),  # a tie: the first
        ([None, 1.0, None], {}, [1, 6, 1]),
        ([None, None, None], {}, [1, 1, 1]),
        ([3.0, 1.0, 2.0], {"increase_by": {"cpu": 1}, "increase_by_times": 3}, [1, 4, 3]),
        ([3.0, 1.0, 2.0], {"increase_by": {"cpu": 2}}, [1, 5, 1]),
        ([3.0, 1.0, 2.0], {"metric": "acc", "mode": "max"}, [1, 1, 6]),
        ([3.0, 1.0, 2.0], {"metric": "acc", "mode": "min"}, [6, 1, 1]),
        ([3.0, 1.0, 2.0], {"metric": "nothing", "mode": "min"}, [1, 1, 1]),
        ([3.0, 1.0, 2.0], {"reserve_resources": {"cpu": 3}}, [1, 3, 1]),
    ],
)
def test_all_that_is_left_goes_to_the_best(
    values: list[float | None], settings: dict[str, Any], sizes: list[int]
) -> None:
    seen = view([live(number, value=value, acc=number) for number, value in enumerate(values)])
    assert [slot.cpu for slot in settle(DistributeResourcesToTopJob(**settings), seen)] == sizes


def test_what_the_best_cannot_take_goes_to_the_next() -> None:
    seen = view([live(0, value=2.0), live(1, value=1.0), live(2, value=3.0)], [Slot(cpu=8), Slot(cpu=4)])
    assert [slot.cpu for slot in settle(DistributeResourcesToTopJob(), seen)] == [3, 8, 1]


def test_who_grows_waits_until_others_have_made_room() -> None:
    """The new best takes what is free, and all of it once the old one has reported."""
    trials = [live(0, Slot(6), value=2.0), live(1, value=1.0), live(2, value=3.0)]
    rule = DistributeResourcesToTopJob()
    assert ask(rule, view(trials), 1) == Slot()
    assert ask(rule, view(trials, [Slot(cpu=10)]), 1) == Slot(3)
    assert ask(rule, view(trials), 0) == Slot()
    trials[0] = live(0, value=2.0)
    assert ask(rule, view(trials), 1) == Slot(6)


def test_the_view_adds_up() -> None:
    seen = view([live(0), live(1)], [Slot(cpu=4, gpu=1), Slot(cpu=8, custom={"tpu": 1})], to_come=3)
    assert seen.cluster == Slot(cpu=12, gpu=1, custom={"tpu": 1})
    assert seen.seats == 5
    assert replace(seen, most=4).seats == 4
    assert replace(seen, to_come=None).seats == math.inf


@settings(max_examples=150)
@given(data=st.data(), name=st.sampled_from(sorted(RULES)))
def test_never_more_than_there_is_and_never_less_than_the_base(name: str, data: st.DataObject) -> None:
    """Trials come, go, pause, report in any order: who is given more never drives what runs out of the cluster."""
    rule, draw = RULES[name], data.draw
    base = Slot(draw(st.sampled_from([1, 2])), draw(st.sampled_from([0, 1])))
    nodes = draw(st.lists(st.builds(Slot, st.integers(2, 9), st.integers(1, 4)), min_size=1, max_size=3))
    places = next(n for n in range(200) if not packs(nodes, [(base, n + 1)]))
    to_come, most = draw(st.integers(0, 12)), draw(st.none() | st.integers(1, 6))
    trials: dict[int, LiveTrial] = {}

    def fit() -> bool:
        return packs(nodes, [(each.slot, 1) for each in trials.values() if each.running])

    for number in range(30):
        running = [each for each in trials.values() if each.running]
        match draw(st.integers(0, 5)):
            case 0 if to_come and len(running) < min(places, most or places):
                to_come -= 1
                trials[number] = live(number, base, value=None)
                assert fit(), "who starts finds room: it was kept free"
            case 1 if running:
                del trials[draw(st.sampled_from(running)).id]
            case 2 if running and name != "top":
                paused = draw(st.sampled_from(running))
                trials[paused.id] = replace(paused, running=False, slot=base)
            case _ if running:
                asked = draw(st.sampled_from(running))
                value = draw(st.sampled_from([None, 0.0, 1.0, 2.0]))
                trials[asked.id] = asked = live(asked.id, asked.slot, value, accuracy=value)
                slot = ask(rule, view(list(trials.values()), nodes, base, to_come, most), asked.id)
                assert covers(slot, base)
                trials[asked.id] = replace(asked, slot=slot)
                assert fit()
                assert any(packs([node], [(slot, 1)]) for node in nodes)


# ----------------------------------------------------------------------------------------------------- the settings


def test_ray_defaults() -> None:
    scheduler = ResourceChangingScheduler()
    assert scheduler.base_scheduler == FIFOScheduler()
    assert scheduler.resources_allocation_function == DistributeResources()
    assert (scheduler.time_attr, scheduler.metric, scheduler.mode) == ("training_iteration", None, None)
    assert type(scheduler.build(0)) is type(FIFOScheduler().build(0))
    assert DistributeResources(increase_by={}) == DistributeResources(add_bundles=False, increase_by=None)
    assert DistributeResources(increase_by={"CPU": 1, "GPU": 0}).increase_by == {"cpu": 1.0}


def test_what_others_look_for_is_the_base_schedulers() -> None:
    asha = ResourceChangingScheduler(AsyncHyperBandScheduler(time_attr="epoch", metric="loss", mode="min", max_t=9))
    assert (asha.time_attr, asha.metric, asha.mode, asha.max_t) == ("epoch", "loss", "min", 9)
    assert asha.mutations == {}
    pbt = PopulationBasedTraining(perturbation_interval=2, hyperparam_mutations={"lr": tune.uniform(0, 1)})
    assert ResourceChangingScheduler(pbt).mutations == pbt.mutations
    assert ResourceChangingScheduler(pbt).build(0).forks
    inner = HyperBandScheduler(max_t=9)
    median = MedianStoppingRule(time_attr="training_iteration", scheduler=inner)
    assert ResourceChangingScheduler(median).scheduler == inner


def whole(view: StudyView, trial: LiveTrial, result: dict[str, Any], scheduler: Any) -> Any:
    """A user's own: everything for the first trial."""
    return view.cluster if trial.id == view.live[0].id else {"cpu": 1}


@pytest.mark.parametrize("name", RULES)
def test_settings_survive_json(name: str) -> None:
    for base in (
        None,
        HyperBandScheduler(max_t=9),
        MedianStoppingRule(scheduler=HyperBandScheduler(time_attr="time_total_s")),
    ):
        scheduler = ResourceChangingScheduler(base, RULES[name])
        spelled = json.loads(json.dumps(spell(scheduler, SCHEDULERS)))
        assert make(spelled, SCHEDULERS) == scheduler
    without = ResourceChangingScheduler(resources_allocation_function=None)
    assert make(spell(without, SCHEDULERS), SCHEDULERS) == without


def test_of_a_function_the_name_is_recorded() -> None:
    spelled = spell(ResourceChangingScheduler(resources_allocation_function=whole), SCHEDULERS)
    assert spelled["args"] == {
        "base_scheduler": {"name": "FIFOScheduler", "args": {}},
        "resources_allocation_function": "whole",
    }
    with pytest.raises(ValueError, match=r"^resources_allocation_function is code \(whole\)$"):
        make(spelled, SCHEDULERS)


@pytest.mark.parametrize("rule", [DistributeResources, DistributeResourcesToTopJob])
@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"add_bundles": True}, ValueError, "add_bundles=True: expected False; bundles are the workers of a gang, and"),
        ({"increase_by": {"cpu": -1}}, ValueError, r"increase_by\['cpu'\]=-1: expected a number of at least 0"),
        ({"increase_by": {"cpu": math.inf}}, ValueError, r"increase_by\['cpu'\]=inf: expected a number"),
        ({"increase_by": {"cpu": 0}}, ValueError, r"increase_by={'cpu': 0}: expected more than 0 of something"),
        ({"increase_by": 2}, TypeError, r"increase_by=2: expected a dict such as {'cpu': 1}"),
        ({"reserve_resources": {1: 2}}, TypeError, "reserve_resources={1: 2}: expected names such as 'cpu', got 1"),
        ({"increase_by_times": 3}, ValueError, "increase_by_times=3: expected increase_by beside it"),
        (
            {"increase_by": {"cpu": 1}, "increase_by_times": 1.5},
            ValueError,
            "increase_by_times=1.5: expected a whole number of at least -1",
        ),
    ],
)
def test_wrong_rules_are_named(rule: type, wrong: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        rule(**wrong)


@pytest.mark.parametrize(
    ("make_it", "error", "message"),
    [
        (
            lambda: DistributeResourcesToTopJob(metric="loss"),
            ValueError,
            "metric='loss', mode=None: expected both, or neither: the study's",
        ),
        (lambda: DistributeResourcesToTopJob(metric="loss", mode="best"), ValueError, "mode='best': expected 'min', "),
        (
            lambda: ResourceChangingScheduler(FIFOScheduler),  # type: ignore[arg-type]
            TypeError,
            r"base_scheduler must be one of ASHAScheduler\(\), .*, or None; got <class",
        ),
        (
            lambda: ResourceChangingScheduler(ResourceChangingScheduler()),
            TypeError,
            "base_scheduler must be a scheduler that decides something, got a ResourceChangingScheduler",
        ),
        (
            lambda: ResourceChangingScheduler(None, DistributeResources),  # type: ignore[arg-type]
            TypeError,
            r"resources_allocation_function must be DistributeResources\(\), .*; got <class",
        ),
        (
            lambda: ResourceChangingScheduler(None, {"cpu": 2}),  # type: ignore[arg-type]
            TypeError,
            r"resources_allocation_function must be .* got {'cpu': 2}",
        ),
        (
            lambda: ResourceChangingScheduler(None, lambda trial: {"cpu": 2}),  # type: ignore[arg-type, misc]
            TypeError,
            r"must take four arguments, \(view, trial, result, scheduler\); .*<lambda>\(trial\) does not",
        ),
    ],
)
def test_wrong_settings_are_named(make_it: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make_it()


# --------------------------------------------------------------------------------------------------------- the door


def never(config: dict[str, Any]) -> None:
    raise AssertionError("no trial runs")


def tuner(folder: Path, scheduler: Any, train: Any = never, executor: str = "ray", **more: Any) -> tune.Tuner:
    run = {name: more.pop(name) for name in ("checkpoint_config",) if name in more}
    space = more.pop("space", {"x": tune.grid_search([0, 1])})
    given = {"metric": "loss", "mode": "min", "seed": 1, "scheduler": scheduler, **more}
    return tune.Tuner(
        train,
        param_space=space,
        tune_config=tune.TuneConfig(**given),
        run_config=tune.RunConfig(name="study", storage_path=folder, verbose=0, **run),
        executor=executor,
    )


@pytest.mark.parametrize(
    ("scheduler", "more", "message"),
    [
        (
            ResourceChangingScheduler(AsyncHyperBandScheduler()),
            {"metric": None, "mode": None},
            "metric must be given: AsyncHyperBandScheduler cannot compare trials without one",
        ),
        (
            ResourceChangingScheduler(None, DistributeResourcesToTopJob()),
            {"metric": None, "mode": None},
            "metric must be given: DistributeResourcesToTopJob cannot compare trials without one",
        ),
        (
            ResourceChangingScheduler(AsyncHyperBandScheduler(metric="acc", mode="max")),
            {},
            "metric is 'loss' in TuneConfig, but 'acc' in AsyncHyperBandScheduler",
        ),
        (
            ResourceChangingScheduler(),
            {"train": tune.with_resources(never, lambda config: {"cpu": 1})},
            "ResourceChangingScheduler needs trials that all reserve the same at first, as in Ray: with_resources must "
            "be given a dict, not a function",
        ),
    ],
)
def test_what_does_not_go_together(scheduler: Any, more: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        tuner(tmp_path, scheduler, **more)
    assert str(caught.value) == message


def test_without_a_metric_where_nothing_needs_one(tmp_path: Path) -> None:
    tuner(tmp_path, ResourceChangingScheduler(), metric=None, mode=None)
    top = DistributeResourcesToTopJob(metric="acc", mode="max")
    tuner(tmp_path, ResourceChangingScheduler(None, top), metric=None, mode=None)


def test_a_population_is_completed_from_its_mutations(tmp_path: Path) -> None:
    pbt = PopulationBasedTraining(perturbation_interval=2, hyperparam_mutations={"lr": tune.uniform(0, 1)})
    made = tuner(tmp_path, ResourceChangingScheduler(pbt), space={})
    assert "lr" in made._space.to_json()


def counts(config: dict[str, Any]) -> None:
    for step in range(1, 4):
        tune.report({"loss": float(step), "cpus": tune.get_context().get_trial_resources()["cpu"]})


def test_inline_it_has_no_effect_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        results = tuner(tmp_path, ResourceChangingScheduler(), counts, "inline").fit()
    assert [(result.state, result.metrics["cpus"]) for result in results] == [(State.DONE, 1.0)] * 2
    assert "reserve nothing: ResourceChangingScheduler has no effect" in caplog.text


def test_a_study_with_a_function_is_restored_with_it(tmp_path: Path) -> None:
    given = ResourceChangingScheduler(None, whole)
    tuner(tmp_path, given, counts, "inline").fit()
    with pytest.raises(ValueError, match=r"tune_config must be given again, for the scheduler in .*\(whole\)"):
        tune.Tuner.restore(tmp_path / "study", counts)
    assert len(tuner(tmp_path, given, counts, "inline").fit()) == 2, "the same again"
    with pytest.raises(ValueError, match=r"scheduler: .*'whole'.* became .*'DistributeResources'"):
        tuner(tmp_path, ResourceChangingScheduler(), counts, "inline").fit()


def test_the_simulator_ignores_it() -> None:
    plans = [
        tune.simulate(
            {"x": tune.uniform(0, 1)},
            curve="power",
            workers=3,
            tune_config=tune.TuneConfig(metric="loss", mode="min", num_samples=9, scheduler=scheduler),
        )
        for scheduler in (AsyncHyperBandScheduler(max_t=9), ResourceChangingScheduler(AsyncHyperBandScheduler(max_t=9)))
    ]
    assert plans[0].decisions == plans[1].decisions
    assert plans[0].wall_s == plans[1].wall_s


# -------------------------------------------------------------------------------------------------------- the study

NODES = (Slot(cpu=4),)


class Office(Desk):
    """A desk whose executor can give trials more; of each trial's last lease what it reserves."""

    def __init__(self, *wishes: Any, rule: Any = None, nodes: Sequence[Slot] | None = NODES, **more: Any) -> None:
        super().__init__(Scripted(*wishes), slots=0, **more)
        scheduler = ResourceChangingScheduler(None, rule or DistributeResources())
        self.study._allocate = scheduler.allocation(Slot(), None, "loss")
        self.opening += self.tell(Slots(self.tick(), 4, nodes))

    def step(self, trial: int, step: int, save: bool = True, loss: float = 1.0) -> Lease:
        """A trial's next report, and the lease that follows."""
        if save:
            self.save(trial, step)
        self.end(trial, step=step, loss=loss)
        return self.leases[trial]

    def cpus(self, *trials: int) -> list[float | None]:
        return [slot.cpu if (slot := self.leases[trial].slot) else None for trial in trials]


def test_trials_start_with_their_base_and_grow_where_they_are_saved() -> None:
    office = Office(Start(0, END), Start(1, END), trials=2)
    assert runs(office.opening) == [0, 1]
    assert office.cpus(0, 1) == [None, None]
    assert office.leases[0].each_report
    lease = office.step(0, 1, save=False)
    assert (lease.slot, lease.save, lease.checkpoint) == (None, True, None), "it goes on as it is, and is to save"
    lease = office.step(0, 2)
    assert (lease.slot, lease.save, lease.checkpoint) == (Slot(2), False, 2)
    assert office.cpus(1) == [None], "that one has not reported yet"
    assert office.step(1, 1).slot == Slot(2)
    assert office.study.ledger[1].slot == Slot(2)
    assert office.step(0, 3, save=False) == replace(
        lease, attempt=4, checkpoint=2, spent=6.0, digest=lease.digest, slot=Slot(2)
    )


def test_who_is_left_takes_what_the_others_had() -> None:
    office = Office(Start(0, END), Start(1, END), Start(2, 2), trials=3)
    assert office.step(0, 1).slot == Slot(2)
    assert office.step(1, 1).slot is None, "the first has the fourth"
    office.end(2, How.RETURNED, step=1)
    assert office.step(0, 2).slot == Slot(2)
    assert office.step(1, 2).slot == Slot(2)
    office.end(0, How.RETURNED, step=3)
    assert office.step(1, 3, save=False).slot == Slot(2)
    assert office.step(1, 4).slot == Slot(4)


def test_nobody_grows_while_others_are_to_come() -> None:
    office = Office(*(Start(number, END) for number in range(4)), trials=7)
    assert office.step(0, 1).slot is None
    assert not office.leases[0].save
    office.scheduler.wishes.extend(Start(number, END) for number in (4, 5, 6))
    for number in (0, 1, 2):
        assert runs(office.end(number, How.RETURNED, step=2)) == [number + 4]
    assert office.step(3, 1).slot is None
    office.end(4, How.RETURNED, step=1)
    office.end(5, How.RETURNED, step=1)
    assert office.step(3, 2).slot == Slot(2)


def test_a_resumed_trial_may_have_another_size() -> None:
    office = Office(Start(0, 2), Start(1, END), trials=2)
    assert office.step(0, 1).slot == Slot(2)
    office.end(1, How.RETURNED, step=1)
    office.save(0, 2)
    office.scheduler.wishes.append(Resume(0, 4))
    office.end(0, step=2)
    assert office.leases[0].until == 4
    assert office.leases[0].slot == Slot(4)


def test_a_retry_may_have_another_size_and_none_is_lost_to_it() -> None:
    """It starts from its checkpoint, or from nothing, whatever it stood at."""
    office = Office(Start(0, END), Start(1, END), trials=2, max_failures=9)
    office.step(0, 1, save=False)
    office.fail(0, Failure.LOST)
    assert (office.leases[0].slot, office.leases[0].checkpoint) == (Slot(2), None)
    office.end(0, step=1)
    assert not office.leases[0].save, "it has what it should have"


def test_a_fork_starts_with_its_share() -> None:
    office = Office(Start(0, 2), Start(1, END), trials=2)
    office.step(0, 1)
    office.save(0, 2)
    office.scheduler.wishes.append(Fork(2, 0, {"x": 9}, 4, replaces=0))
    office.end(0, step=2)
    assert office.leases[2].slot == Slot(2)
    assert (office.leases[2].donor, office.leases[2].checkpoint) == (0, 2)


def test_after_a_drivers_death_all_is_given_out_anew() -> None:
    office = Office(Start(0, END), Start(1, END), trials=2)
    for trial in (0, 1):
        assert office.step(trial, 1).slot == Slot(2)
    office.tell(Opened(office.tick(), 2))
    assert office.study.ledger[0].slot is None
    office.tell(Slots(office.tick(), 4))
    assert office.cpus(0, 1) == [None, None], "this executor can give no more"
    assert not office.leases[0].each_report
    office.tell(Opened(office.tick(), 3))
    office.tell(Slots(office.tick(), 4, (Slot(cpu=8),)))
    assert office.cpus(0, 1) == [4, 4], "nobody is parked, and the cluster is another"


def test_without_an_executor_that_can_nothing_changes() -> None:
    office = Office(Start(0, END), trials=1, nodes=None)
    assert not office.leases[0].each_report
    office.save(0, 1)
    office.end(0, How.RETURNED, step=1)
    assert office.leases[0].slot is None


def test_the_size_stays_where_the_study_ends_early() -> None:
    office = Office(Start(0, END), Start(1, END), trials=2)
    office.tell(StopAsked(office.tick(), "Ctrl-C"))
    office.end(0, step=1)
    assert office.leases[0].last
    assert not office.leases[0].save


def test_a_function_of_the_users() -> None:
    asked: list[Any] = []

    def rule(view: StudyView, trial: LiveTrial, result: dict[str, Any], scheduler: Any) -> Any:
        asked.append((trial.id, trial.value, trial.step, result["loss"], view.to_come, [each.id for each in view.live]))
        assert isinstance(scheduler, ResourceChangingScheduler)
        return {1.0: None, 2.0: {"cpu": 3}, 3.0: Slot(2), 4.0: {"cpu": 1}, 5.0: {"cpu": 0.5}}[result["loss"]]

    office = Office(Start(0, END), Start(1, END), rule=rule, trials=3)
    assert asked == []
    assert [office.step(0, step, loss=float(step)).slot for step in range(1, 6)] == [
        None,
        Slot(3),
        Slot(2),
        None,
        Slot(0.5),
    ]
    assert asked[:2] == [(0, 1.0, 1, 1.0, 1, [0, 1]), (0, 2.0, 2, 2.0, 1, [0, 1])]


@pytest.mark.parametrize(
    ("said", "error", "message"),
    [
        ({"cpu": -1}, ValueError, r"resources\['cpu'\] must be a number of 0 or more"),
        (Slot(gpu=1.5), ValueError, "a fraction of one GPU or a whole number"),
        ([1], TypeError, "it must return what the trial is to reserve in one process, a dict such as .*; got list"),
    ],
)
def test_a_function_that_returns_what_it_must_not(said: Any, error: type[Exception], message: str) -> None:
    office = Office(Start(0, END), rule=lambda view, trial, result, scheduler: said, trials=1)
    with pytest.raises(error, match=message) as caught:
        office.step(0, 1)
    assert "raised by resources_allocation_function" in caught.value.__notes__[0]
    assert "asked about trial 0" in caught.value.__notes__[0]


# ------------------------------------------------------------------------------------------------ the driver's lives


class Life(lives.Life):
    """One driver's life on a simulator that says what there is; notes what each trial reserves."""

    def __init__(self, case: Case, root: Path, world: World, fate: Fate, rule: Any, books: Books) -> None:
        self._fate, self._world, self._books = fate, world, books
        load = replace(case.workload(), saves=lambda trial, step: step in (1, 3, 4, 7, 9))
        self._simulation = simulation = Simulation(world, load, case.slots)
        scheduler = ResourceChangingScheduler(case.scheduler, rule)
        self.study = Study(
            Objective("loss", "min"),
            scheduler.build(case.seed),
            case.trials,
            Retries(max_failures=1),
            case.checkpoint_config,
            allocate=scheduler.allocation(Slot(), None, "loss"),
        )
        self.journal = Journal(root)
        searcher = case.searcher.build(Space(case.space), case.seed)
        self._driver = Driver(self.study, searcher, self, self, simulation)
        books.reopened(self.study)

    def wait(self, timeout_s: float | None) -> Sequence[Event]:
        return [
            replace(event, nodes=(Slot(cpu=4), Slot(cpu=3))) if isinstance(event, Slots) else event
            for event in self._simulation.wait(timeout_s)
        ]

    def commit(self, rows: Sequence[Row], reports: Sequence[Reports]) -> None:
        self._books.turn(self.study)
        self.journal.commit(rows, reports)

    def run(self, lease: Lease) -> None:
        self._fate.moment()
        self._books.lease(lease, self.study)
        self._simulation.run(lease)


class Books:
    """What must hold in all lives: sizes are in the cluster, change only at saved steps, and follow from the record."""

    def __init__(self) -> None:
        self.sizes: set[float] = set()
        self.moves = 0
        self._reserved: list[dict[int, Slot | None]] = [{}, {}]  # after the last turns: the last may not be on record
        self._last: dict[int, Lease] = {}  # of this life

    def turn(self, study: Study) -> None:
        self._reserved = [self._reserved[1], self._now(study)]

    def reopened(self, study: Study) -> None:
        """A study that was replayed has given its trials what it had given them."""
        now = self._now(study)
        assert now in self._reserved
        self._reserved = [now, now]
        self._last.clear()

    def lease(self, lease: Lease, study: Study) -> None:
        slot = lease.slot or Slot()
        self.sizes.add(slot.cpu)
        before = self._last.get(lease.trial.id)
        if before is not None and slot != (before.slot or Slot()):
            self.moves += 1
            entry = study.ledger[lease.trial.id]
            assert lease.checkpoint == entry.step or lease.tries > before.tries
        self._last[lease.trial.id] = lease
        running = [entry for entry in study.ledger.live.values() if entry.state is State.RUNNING]
        assert packs((Slot(cpu=4), Slot(cpu=3)), [(entry.slot or Slot(), 1) for entry in running])
        assert slot.cpu >= 1

    @staticmethod
    def _now(study: Study) -> dict[int, Slot | None]:
        return {trial: entry.slot for trial, entry in study.ledger.live.items()}


def live_through(case: Case, root: Path, fate: Fate, gap: int | None, rule: Any) -> tuple[list[Any], Books, int]:
    world, books, deaths = World(), Books(), 0
    while True:
        fate.moments = fate.rng.randint(1, gap) if gap else None
        life = None
        try:
            life = Life(case, root, world, fate, rule, books)
            life.run_to_end()
        except Died:
            deaths += 1
            gap = gap + 1 if gap else None
            if life is not None:
                life.journal.close()
            continue
        life.journal.close()
        return decisions(read(root).rows), books, deaths


@pytest.mark.parametrize("rule", ["even", "top"])
@pytest.mark.parametrize(
    "case",
    [
        Case(RandomSearch(), FIFOScheduler(), SPACE, trials=6, slots=4),
        Case(BOHB(min_points_in_model=4), AsyncHyperBandScheduler(max_t=9), SPACE, trials=16, slots=4),
    ],
    ids=lambda case: type(case.scheduler).__name__,
)
def test_over_a_drivers_deaths_decisions_and_sizes_are_the_same(
    case: Case, rule: str, fast_path: Path, fate: Fate
) -> None:
    """What trials reserve changes no decision; and a study that is replayed knows what each has."""
    plain, _, _ = live_through(case, fast_path / "plain", fate, None, None)
    expected, alone, _ = live_through(case, fast_path / "alone", fate, None, RULES[rule])
    assert expected == plain
    assert alone.moves >= 3
    assert {1.0, 4.0} <= alone.sizes
    fate.rng = random.Random(rule)
    found, _, deaths = live_through(case, fast_path / "killed", fate, 40, RULES[rule])
    assert deaths > 5
    assert found == expected


# ------------------------------------------------------------------------------------------------------- the journal


@pytest.mark.parametrize(
    "nodes",
    [
        None,
        (),
        (Slot(cpu=4), Slot(cpu=0.5, gpu=2, memory_gib=0.1 + 0.2, custom={"tpu": 1.0, "$tuple": 2.0})),
    ],
)
def test_what_there_is_is_on_record(nodes: Any, tmp_path: Path) -> None:
    rows: list[Row] = [Slots(1.0, 4, nodes), Slots(2.0, 3)]
    journal = Journal(tmp_path)
    journal.commit(rows, [])
    journal.close()
    assert repr(read(tmp_path).rows) == repr(rows)


# ----------------------------------------------------------------------------------------------------------- on Ray


def grows(config: dict[str, Any]) -> None:
    """Saves where it is told to, and ends after its length; the last trial ends once it has the whole cluster."""
    folder, trial, step = Path(config["folder"]), tune.get_context().get_trial_id(), 0
    if checkpoint := tune.get_checkpoint():
        step = json.loads(Path(checkpoint.path, "step").read_text())
    left = 2
    while step < config["length"]:
        step += 1
        with open(folder / f"begun-{trial}", "a") as file:
            file.write(f"{step}\n")
        cpus = tune.get_context().get_trial_resources()["cpu"]
        time.sleep(0.01)
        said = {"loss": 1 / step, "cpus": cpus, "process": os.getpid()}
        if cpus == 4.0:
            left -= 1
        if tune.should_checkpoint():
            saved = folder / f"saved-{trial}"
            saved.mkdir(exist_ok=True)
            (saved / "step").write_text(json.dumps(step))
            tune.report(said, checkpoint=tune.Checkpoint.from_directory(saved))
        else:
            tune.report(said)
        if not left:
            return


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
@pytest.mark.timeout(180)
def test_trials_take_over_what_others_give_back(tmp_path: Path) -> None:
    """Four trials on four CPUs; two end at once, another after some steps; the last goes on with all four CPUs."""
    lengths = [2, 2, 5, 10**9]
    results = tuner(
        tmp_path,
        ResourceChangingScheduler(),
        tune.with_resources(grows, {"cpu": 1}),
        space={"folder": str(tmp_path), "length": tune.grid_search(lengths)},
    ).fit()
    assert [result.state for result in results] == [State.DONE] * 4
    reports = results.to_arrow("reports").to_pandas()
    for trial in range(4):
        said = reports[reports["trial"] == trial].sort_values("step")
        steps = said["step"].tolist()
        assert steps == list(range(1, len(steps) + 1)), "none is missing, none counts twice"
        begun = [int(line) for line in (tmp_path / f"begun-{trial}").read_text().split()]
        assert begun == steps, "none was trained twice"
        cpus, processes = said["cpus"].tolist(), said["process"].tolist()
        assert cpus[0] == 1.0
        assert cpus == sorted(cpus)
        for before in range(len(steps) - 1):
            same = processes[before] == processes[before + 1]
            assert same == (cpus[before] == cpus[before + 1]), (
                "another size is another process, and the other way round"
            )
    assert cpus[-2:] == [4.0, 4.0]
    assert cpus.count(4.0) == 2


def two(config: dict[str, Any]) -> None:
    saved = Path(config["folder"])
    step = json.loads((Path(checkpoint.path) / "step").read_text()) if (checkpoint := tune.get_checkpoint()) else 0
    while True:
        step += 1
        (saved / "step").write_text(json.dumps(step))
        tune.report(
            {"step": step, "cpus": tune.get_context().get_trial_resources()["cpu"]},
            checkpoint=tune.Checkpoint.from_directory(saved),
        )


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
@pytest.mark.timeout(180)
def test_what_cannot_be_had_now_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else holds a part of the cluster: a trial that was given all of it goes on with what it had at first."""
    import ray

    class Other:
        def ready(self) -> None:
            pass

    (tmp_path / "state").mkdir()
    other: Any = ray.remote(num_cpus=2)(Other).remote()
    ray.get(other.ready.remote())
    executor = RayActors(Work(two), Rules(tmp_path / "checkpoints", {}), Slot(), 1, resizes=True)
    first = Lease(
        Trial(0, {"folder": str(tmp_path / "state")}), 1, END, None, 0, tries=0, since=0.0, origin=0, each_report=True
    )
    try:
        seen = executor.wait(None)
        assert isinstance(seen[0], Slots)
        assert seen[0].nodes is not None
        assert [(node.cpu, node.gpu, dict(node.custom)) for node in seen[0].nodes] == [(4.0, 2.0, {})]
        said = []
        for lease in (
            first,
            replace(first, attempt=2, checkpoint=1, slot=Slot(2)),
            replace(first, attempt=3, checkpoint=2, slot=Slot(4)),
            replace(first, attempt=4, checkpoint=3, slot=Slot(4)),
        ):
            if lease.attempt == 3:
                monkeypatch.setattr(ray_actors, "_SCATTERED_S", 0.5)
            executor.run(lease)
            ended: list[Ended] = []
            while not ended:
                ended = [event for event in executor.wait(1.0) if isinstance(event, Ended | Failed)]  # type: ignore[misc]
            assert isinstance(ended[0], Ended)
            said.append((ended[0].step, ended[0].metrics["cpus"]))
        assert said == [(1, 1.0), (2, 2.0), (3, 1.0), (4, 1.0)]
        executor._modest.clear()
        executor.run(replace(first, attempt=5, checkpoint=4, slot=Slot(5)))
        failed = next(event for event in executor.wait(1.0) if isinstance(event, Failed))
        assert failed.failure is Failure.NO_RESOURCES
        assert failed.message.startswith(
            "the resources which the scheduler gave this trial: NoResources: no trial fits"
        )
        assert failed.message.endswith("CPU: 5 wanted, 4 there")
    finally:
        executor.close()
        ray.kill(other)
