"""A quota over all checkpoints of a study: in the simulator with a thousand trials, and on real files.

It is never exceeded by more than the checkpoints in flight: those that were published and not heard of yet, at most one
for each slot here, since trials save where their leases end, or every so often.
"""

from __future__ import annotations

import logging
import os
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

import raytuner as tune
from raytuner.actions import Fork, Resume, Start
from raytuner.checkpoints import Janitor, Store
from raytuner.driver import Driver
from raytuner.events import Checkpointed, Drop, Extended, How, Over
from raytuner.executors.simulate import Simulation, Workload, World
from raytuner.objective import Objective
from raytuner.protocols import SchedulingPolicy
from raytuner.record.journal import Journal, read
from raytuner.record.patience import Patience
from raytuner.retention import CheckpointConfig, Need
from raytuner.retry import Retries
from raytuner.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    HyperBandScheduler,
    PopulationBasedTraining,
)
from raytuner.searchers import RandomSearch
from raytuner.space import Space, loguniform
from raytuner.study import Study
from raytuner.trial import Failure, State, Trial, Why
from tests.lives import SPACE, Case, decisions, fate, live_through
from tests.test_study import Desk, Scripted, of, runs

__all__ = ["fate"]  # a fixture

LR = {"lr": loguniform(1e-4, 1.0)}
MIB = 1 << 20


# -------------------------------------------------------------------------------------------- in the simulator


def population(**settings: Any) -> PopulationBasedTraining:
    given = {"perturbation_interval": 2, "quantile_fraction": 0.25, "hyperparam_mutations": LR, **settings}
    return PopulationBasedTraining(time_attr="training_iteration", **given)


def loss(trial: Trial, step: int) -> dict[str, Any]:
    return {"loss": (trial.id * 7919 % 1000) / 1000 + 1 / step}


def size(trial: Trial, step: int) -> int:
    return (1 + trial.id % 4) * MIB


def fault(trial: Trial, step: int, tries: int) -> Failure | None:
    """Every tenth trial loses its worker once, every twentieth fails once."""
    if tries == 0 and step == 1 + trial.id % 9:
        return Failure.LOST if trial.id % 10 == 3 else Failure.ERROR if trial.id % 20 == 4 else None
    return None


@dataclass
class Watched(World):
    """What is there beyond what the study knows of."""

    study: Study | None = None
    in_flight: int = 0

    def save(self, trial: int, step: int, nbytes: int = 1) -> None:
        super().save(trial, step, nbytes)
        assert self.study is not None
        self.in_flight = max(self.in_flight, len(self.checkpoints) - len(self.study.stock))


def live(
    root: Path, scheduler: SchedulingPolicy, keep: CheckpointConfig, trials: int, slots: int, load: Workload
) -> tuple[Study, Watched]:
    """A study from beginning to end."""
    study = Study(Objective("loss"), scheduler.build(0), trials, Retries(max_failures=1), keep)
    world, journal = Watched(study=study), Journal(root)
    simulation = Simulation(world, load, slots, skip=True)
    Driver(study, RandomSearch().build(Space(LR), 0), journal, world, simulation).run(simulation)
    journal.close()
    return study, world


MANY = {
    "fifo": FIFOScheduler(),
    "asha": AsyncHyperBandScheduler(max_t=9),
    "asha promotion": AsyncHyperBandScheduler(max_t=9, promotion=True),
    "hyperband": HyperBandScheduler(max_t=9),
}
SLOTS = 16


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("unit", "saves_often"), [("count", False), ("bytes", True)], ids=["count", "bytes, saved at every step"]
)
@pytest.mark.parametrize("name", MANY)
def test_a_thousand_trials_keep_within_their_quota(name: str, unit: str, saves_often: bool, fast_path: Path) -> None:
    """Though most of them are paused at the same time where a scheduler pauses."""
    quota = {"count": {"quota_count": 40}, "bytes": {"quota_bytes": 100 * MIB}}[unit]
    load = Workload(
        loss,
        seconds=lambda trial, step: 1.0 + trial.id % 5 / 4,
        length=9,
        stops=9,
        fault=fault,
        nbytes=size,
        saves=(lambda trial, step: True) if saves_often else None,
    )
    study, world = live(fast_path, MANY[name], CheckpointConfig(num_to_keep=2, **quota), 1000, SLOTS, load)
    there = f"at most {world.peak} checkpoints, {world.peak_bytes / MIB} MiB"
    print(f"{there}, {world.in_flight} of them in flight; at the end {len(study.stock)}")
    assert study.finished is not None
    assert study.finished.complete
    assert len(study.ledger) == 1000
    assert world.in_flight <= SLOTS
    if unit == "count":
        assert 40 <= world.peak <= 40 + SLOTS
    else:
        assert 96 * MIB <= world.peak_bytes <= (100 + 4 * SLOTS) * MIB
    assert {(trial, step) for trial, steps in study.checkpoints.items() for step in steps} == world.checkpoints
    assert (len(study.stock), study.stock.nbytes) == (len(world.checkpoints), world.nbytes)
    best = study.best
    assert best is not None
    assert study.ledger[best[1]].checkpoints, "what it was all for"
    kept = min(study.ledger[trial].metrics["loss"] for trial, _ in world.checkpoints)
    assert kept == min(entry.metrics["loss"] for entry in study.ledger.values() if entry.step == 9)
    rows = read(fast_path).rows
    sizes = {(row.trial, row.step): row.nbytes for row in rows if isinstance(row, Checkpointed)}
    assert sizes == {(trial, step): (1 + trial % 4) * MIB for trial, step in sizes}
    assert sum(isinstance(row, Drop) for row in rows) > 900


@pytest.mark.timeout(120)
@pytest.mark.parametrize("synch", [False, True], ids=["", "synchronous"])
def test_a_population_keeps_within_its_quota(synch: bool, fast_path: Path) -> None:
    """20 members, 8 at a time; each needs its newest, and what others may be forked from."""
    load = Workload(loss, seconds=lambda trial, step: 1.0 + trial.id % 5 / 4, length=60, stops=60, fault=fault)
    keep = CheckpointConfig(quota_count=45)
    study, world = live(fast_path, population(synch=synch), keep, 20, 8, load)
    assert study.finished is not None
    assert study.finished.complete
    assert study.forked > 50
    assert not [row for row in read(fast_path).rows if isinstance(row, Over) and row.why is Why.NO_SOURCE]
    assert 45 <= world.peak <= 45 + 8
    assert len(world.checkpoints) == 45


@pytest.mark.parametrize(
    "scheduler",
    [AsyncHyperBandScheduler(max_t=9, promotion=True), HyperBandScheduler(max_t=9)],
    ids=["asha", "hyperband"],
)
def test_a_quota_costs_steps_and_changes_no_decision(scheduler: SchedulingPolicy, fast_path: Path) -> None:
    """With one slot the order of arrival is fixed. Paused trials that lost their checkpoints train once more."""
    load = Workload(loss, length=9, stops=9)
    rich = live(fast_path / "rich", scheduler, CheckpointConfig(), 60, 1, load)
    poor = live(fast_path / "poor", scheduler, CheckpointConfig(quota_count=3), 60, 1, load)
    assert decisions(read(fast_path / "poor").rows) == decisions(read(fast_path / "rich").rows)
    assert rich[1].repeated == 0 < poor[1].repeated
    assert poor[1].peak <= 4 < rich[1].peak


@pytest.mark.parametrize(
    "keep",
    [CheckpointConfig(quota_count=9), CheckpointConfig(num_to_keep=2, quota_bytes=9, num_to_keep_in_study=3)],
    ids=["count", "bytes, best"],
)
@pytest.mark.parametrize("scheduler", [HyperBandScheduler(max_t=9), population()], ids=["hyperband", "pbt"])
@pytest.mark.timeout(120)
def test_an_interrupted_study_within_a_quota_takes_decisions_that_replay(
    scheduler: SchedulingPolicy, keep: CheckpointConfig, fast_path: Path, fate: Any
) -> None:
    """What is dropped follows from the events: each of a hundred drivers replays those before it."""
    case = Case(RandomSearch(), scheduler, SPACE | LR, trials=12, slots=3, checkpoint_config=keep)
    deaths = 0
    for number in range(8):
        _, checks = live_through(case, fast_path / str(number), fate, gap=60, power=number % 2 == 0)
        deaths += checks.deaths
        assert any(isinstance(row, Drop) for row in read(fast_path / str(number)).rows)
    assert deaths >= 40


# --------------------------------------------------------------------------------------------------- the study


def needs(study: Study) -> dict[tuple[int, int], Need]:
    return {key: one.need for key, one in study.stock._stored.items()}


def drops(commands: Any) -> list[tuple[int, int]]:
    return [(drop.trial, drop.step) for drop in of(Drop, commands)]


def quota(count: int) -> CheckpointConfig:
    return CheckpointConfig(quota_count=count)


def test_what_nobody_goes_on_from_goes_first_and_the_worst_of_it() -> None:
    scheduler = Scripted(*[Start(trial, 9) for trial in range(4)], forks=False)
    desk = Desk(scheduler, slots=4, trials=4, keep=quota(5))
    for trial in range(4):
        desk.save(trial, 1, loss=1.0 + trial)
    desk.end(0)  # paused
    desk.end(1)
    desk.end(2, How.RETURNED)
    desk.save(3, 2, loss=0.0)
    assert needs(desk.study) == {
        (0, 1): Need.STEPS,
        (1, 1): Need.STEPS,
        (2, 1): Need.NOTHING,
        (3, 1): Need.SUPERSEDED,
        (3, 2): Need.TRIAL,
    }
    assert drops(desk.save(3, 3, loss=0.0)) == [(3, 1)], "the worst of those that nobody goes on from"
    assert drops(desk.save(3, 4, loss=9.0)) == [(2, 1)]
    assert drops(desk.save(3, 5, loss=0.0)) == [(3, 4)]
    assert drops(desk.save(3, 6, loss=0.0)) == [(3, 2)], "the older of equals"
    assert drops(desk.save(3, 7, loss=0.0)) == [(3, 3)]
    assert set(needs(desk.study)) == {(0, 1), (1, 1), (3, 5), (3, 6), (3, 7)}


def test_who_is_paused_loses_its_checkpoint_before_the_best_does() -> None:
    scheduler = Scripted(*[Start(trial, 9) for trial in range(4)], forks=False)
    desk = Desk(scheduler, slots=4, trials=4, keep=quota(3))
    for trial in range(3):
        desk.save(trial, 1, loss=1.0 + trial)
    desk.slots(0)  # else whoever is paused would be missed
    desk.end(0, How.RETURNED)
    desk.end(1)
    desk.end(2)
    assert drops(desk.save(3, 2, loss=0.0)) == [(2, 1)]
    assert drops(desk.save(3, 3, loss=9.0)) == [(0, 1)], "what nobody goes on from, if it is not the best of such"
    assert drops(desk.save(3, 4, loss=9.0)) == [(3, 3)]
    desk.end(3)
    assert needs(desk.study) == {(1, 1): Need.STEPS, (3, 2): Need.SUPERSEDED, (3, 4): Need.STEPS}


def test_what_runs_keeps_its_newest_even_if_the_quota_is_exceeded() -> None:
    scheduler = Scripted(*[Start(trial, 9) for trial in range(3)], Resume(0, 27), forks=False)
    desk = Desk(scheduler, slots=3, trials=3, keep=quota(2))
    assert drops([each for trial in range(3) for each in desk.save(trial, 5, loss=trial)]) == []
    assert desk.study.stock.exceeded is not None
    assert drops(desk.save(1, 6, loss=0.0)) == [], "the best of those that nobody goes on from"
    assert drops(desk.save(0, 6, loss=3.0)) == [(1, 5)]
    assert desk.study.stock.exceeded is not None
    desk.slots(0)
    assert drops(desk.end(1, loss=7.0)) == [(1, 6)], "it is paused"
    assert drops(desk.end(2, How.RETURNED)) == [(2, 5)]
    assert desk.study.stock.exceeded is None


def test_a_paused_trial_that_lost_its_checkpoint_begins_anew() -> None:
    scheduler = Scripted(Start(0, 3), Start(1, 3), Start(2, 3), forks=False)
    desk = Desk(scheduler, slots=3, trials=3, keep=quota(2))
    desk.slots(0)
    for trial in range(3):
        desk.save(trial, 3, loss=9.0 - trial)
        desk.end(trial)
    assert desk.study.ledger[0].state is State.PAUSED
    assert dict(desk.study.checkpoints) == {1: {3: None}, 2: {3: None}}, "the worst is gone"
    scheduler.wishes += [Resume(0, 9), Resume(1, 9)]
    assert runs(desk.slots(2)) == [0, 1]
    assert [desk.leases[trial].checkpoint for trial in (0, 1)] == [None, 3]


def test_what_is_resumed_at_once_is_not_given_up() -> None:
    """Stopping schedulers go on with a trial where it is parked."""
    scheduler = Scripted(Start(0, 3), Resume(0, 9), forks=False)
    desk = Desk(scheduler, trials=1, keep=quota(1))
    desk.save(0, 3, loss=1.0)
    assert drops(desk.end(0)) == []
    assert drops(desk.save(0, 4, loss=1.0)) == []
    assert drops(desk.save(0, 5, loss=1.0)) == [(0, 3)]


def test_forks_of_one_donor_share_its_checkpoint_which_counts_once_and_is_held() -> None:
    scheduler = Scripted(Start(0, 3), *[Fork(fork, 0, {"x": fork}, 9) for fork in range(1, 5)])
    desk = Desk(scheduler, trials=1, keep=quota(1))
    desk.save(0, 3, loss=1.0)
    desk.end(0)
    desk.slots(4)
    assert {(desk.leases[fork].donor, desk.leases[fork].checkpoint) for fork in range(1, 5)} == {(0, 3)}
    assert len(desk.study.stock) == 1
    assert needs(desk.study) == {(0, 3): Need.TRIAL}
    assert drops(desk.save(1, 6, loss=1.0)) == [], "three still begin from it"


def test_the_newest_of_a_fork_is_never_given_up_for_it_has_no_beginning() -> None:
    scheduler = Scripted(Start(0, 3), Fork(1, 0, {}, 9, replaces=0))
    desk = Desk(scheduler, trials=1, keep=quota(1))
    desk.save(0, 3, loss=1.0)
    desk.end(0)
    assert drops(desk.save(1, 6, loss=1.0)) == []
    assert needs(desk.study) == {(0, 3): Need.NOTHING, (1, 6): Need.TRIAL}
    desk.slots(0)
    desk.end(1)
    assert desk.state(1) is State.PAUSED
    assert needs(desk.study) == {(0, 3): Need.NOTHING, (1, 6): Need.TRIAL}


def test_the_best_of_the_study_are_kept() -> None:
    keep = CheckpointConfig(num_to_keep_in_study=2, checkpoint_score_attribute="accuracy")
    scheduler = Scripted(*[Start(trial, 9) for trial in range(5)], forks=False)
    desk = Desk(scheduler, trials=5, keep=keep)
    for trial, accuracy in enumerate([0.5, 0.9, 0.1, 0.7, 0.6]):
        desk.save(trial, 4, accuracy=0.0)
        desk.save(trial, 5, accuracy=accuracy)
        desk.end(trial, How.RETURNED)
    assert dict(desk.study.checkpoints) == {1: {5: 0.9}, 3: {5: 0.7}}
    assert desk.study.stock.exceeded is None


def test_the_study_s_metric_ranks_where_no_other_is_named() -> None:
    for mode, best in (("min", 1), ("max", 2)):
        scheduler = Scripted(*[Start(trial, 9) for trial in range(3)], forks=False)
        desk = Desk(scheduler, trials=3, keep=quota(1), objective=Objective("loss", mode))
        for trial, value in enumerate([2.0, 1.0, 3.0]):
            desk.save(trial, 5, loss=value)
            desk.end(trial, How.RETURNED)
        assert list(desk.study.checkpoints) == [best]


class Longer(Scripted):
    """Trial 0 goes on when there are more steps."""

    def extend(self, max_t: int) -> list[int]:
        self.live.add(0)
        return [0]


def test_a_trial_that_goes_on_after_its_end_needs_its_checkpoint_again() -> None:
    desk = Desk(Longer(Start(0, 9), Start(1, 9), forks=False), slots=2, trials=2, keep=quota(2))
    for trial in (0, 1):
        desk.save(trial, 9, loss=1.0)
        desk.end(trial, How.RETURNED)
    assert needs(desk.study) == {(0, 9): Need.NOTHING, (1, 9): Need.NOTHING}
    desk.slots(0)
    desk.tell(Extended(desk.tick(), 2, 27, False, {}))
    assert needs(desk.study) == {(0, 9): Need.STEPS, (1, 9): Need.NOTHING}


def test_what_is_dropped_last_comes_before_the_end() -> None:
    """A complete record ends with its end."""
    scheduler = Scripted(Start(0, 3), Start(1, 3), forks=False)
    desk = Desk(scheduler, trials=2, slots=2, keep=CheckpointConfig(num_to_keep_in_study=1))
    desk.slots(0)
    for trial in (0, 1):
        desk.save(trial, 3, loss=1.0)
        desk.end(trial)
    scheduler.live.clear()
    last = desk.slots(1)
    assert [type(command).__name__ for command in last if isinstance(command, Over | Drop)] == ["Over", "Over", "Drop"]
    assert type(last[-1]).__name__ == "Finish"


def test_it_is_said_once_that_a_quota_is_too_small(fast_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load = Workload(loss, length=9, stops=9, saves=lambda trial, step: True)
    with caplog.at_level(logging.WARNING):
        live(fast_path / "runs", FIFOScheduler(), CheckpointConfig(quota_count=2, num_to_keep=1), 12, 4, load)
    (said,) = [record.getMessage() for record in caplog.records]
    assert said == (
        "the quota of 2 checkpoints is exceeded: all 4 checkpoints of 4 bytes that are left are the best, or live "
        "trials need them. "
        "(This is said once.)"
    )
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        live(fast_path / "paused", HyperBandScheduler(max_t=9), CheckpointConfig(quota_count=2), 12, 1, load)
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("the quota is so small that trial "), said


def test_what_a_trial_that_is_over_published_unheard_is_gone(fast_path: Path) -> None:
    """It died of what it did after it had published: nobody heard of that, and nobody would ever run it again."""
    world = Watched()

    def dies(trial: Trial, step: int, tries: int) -> Failure | None:
        if step < 3:
            return None
        world.checkpoints.add((trial.id, 99))
        return Failure.ERROR

    study = Study(Objective("loss"), FIFOScheduler().build(0), 4, Retries(max_failures=1), CheckpointConfig())
    world.study = study
    simulation = Simulation(world, Workload(loss, fault=dies, saves=lambda trial, step: True), 2)
    journal = Journal(fast_path)
    Driver(study, RandomSearch().build(Space(LR), 0), journal, world, simulation).run(simulation)
    journal.close()
    assert {entry.state for entry in study.ledger.values()} == {State.FAILED}
    assert world.checkpoints == {(trial, step) for trial in range(4) for step in (1, 2)}


def test_with_a_quota_deletion_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that nothing doomed lies there while others publish."""
    store = Store(tmp_path / "checkpoints")
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "weights").write_text("1")
    for step in (1, 2):
        store.publish(tmp_path / "state", 0, step, 1)
    assert store.nbytes(0, 1) == 1
    begun, goes_on = threading.Event(), threading.Event()
    hide = store.hide

    def late(trial: int, step: int) -> str | None:
        begun.set()
        assert goes_on.wait(30)
        return hide(trial, step)

    monkeypatch.setattr(store, "hide", late)
    janitor = Janitor(store, prompt=True)
    deleting = threading.Thread(target=janitor.delete, args=(0, 1))
    deleting.start()
    assert begun.wait(30)
    assert deleting.is_alive()
    goes_on.set()
    deleting.join(30)
    assert os.listdir(tmp_path / "checkpoints" / "000000") == ["000002"]
    goes_on.clear()
    patient = Janitor(store)
    patient.delete(0, 2)  # returns at once
    assert store.steps(0) == [2]
    goes_on.set()
    patient.close()
    janitor.close()
    assert store.steps(0) == []


def test_studies_know_whether_they_have_a_quota(tmp_path: Path) -> None:
    """Those recorded before there were any are as they were; another quota is another study."""
    what = {
        name: value
        for name, value in asdict(CheckpointConfig(num_to_keep=2)).items()
        if name not in ("num_to_keep_in_study", "quota_count", "quota_bytes", "checkpoint_interval_s")
    }

    def tuner(**keep: Any) -> tune.Tuner:
        run = tune.RunConfig(name="study", storage_path=tmp_path, checkpoint_config=CheckpointConfig(**keep), verbose=0)
        return tune.Tuner(trains_nothing, param_space=LR, run_config=run, executor="inline")

    first = tuner(num_to_keep=2)
    first._folder.create({**first._describe(), "checkpoint_config": what, "seed": 3})
    assert tuner(num_to_keep=2)._known_seed() == 3
    with pytest.raises(ValueError, match=r"checkpoint_config: .*'quota_count': None.* became .*'quota_count': 5"):
        tuner(num_to_keep=2, quota_count=5)._known_seed()
    restored = tune.Tuner.restore(tmp_path / "study", trains_nothing, executor="inline")
    assert restored._run.checkpoint_config == CheckpointConfig(num_to_keep=2)
    assert restored._janitor(Patience(1.0))._prompt is False
    assert tuner(quota_bytes=5)._janitor(Patience(1.0))._prompt is True


def trains_nothing(config: Any) -> None:
    tune.report({"loss": 1.0})
