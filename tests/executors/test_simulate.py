"""The simulator itself: its clock, what is parked where, its faults, and what a driver's death leaves as it was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from raytuner.checkpoints import CheckpointConfig
from raytuner.events import Ended, Event, Failed, How, Reported, Slots
from raytuner.executors.simulate import Away, Simulation, Workload, World
from raytuner.objective import Objective
from raytuner.retry import Retries
from raytuner.schedulers import AsyncHyperBandScheduler
from raytuner.searchers import RandomSearch
from raytuner.study import Study
from raytuner.trial import END, Failure, Lease, Trial
from tests.test_study_machine import SPACE

LOAD = Workload(curve=lambda trial, step: {"loss": trial.id + step / 10})


def lease(trial: int, until: int, attempt: int = 1, **more: Any) -> Lease:
    given = {"checkpoint": None, "donor": trial, "tries": 0, "since": 0.0, "origin": 0, **more}
    return Lease(Trial(trial, {}), attempt, until, **given)


def opened(slots: int, load: Workload = LOAD, world: World | None = None) -> Simulation:
    simulation = Simulation(world or World(), load, slots)
    assert simulation.wait(None) == [Slots(simulation.now(), slots)]
    return simulation


def until_end(simulation: Simulation, trial: int) -> tuple[list[int], Event]:
    """The steps that a trial reports until its lease is over, and how that is."""
    steps: list[int] = []
    while True:
        for event in simulation.wait(None):
            if isinstance(event, Reported) and event.trial == trial:
                steps += [report.step for report in event.reports]
            elif isinstance(event, Ended | Failed) and event.trial == trial:
                return steps, event


def test_the_clock_jumps_from_report_to_report() -> None:
    simulation = opened(1, replace(LOAD, seconds=lambda trial, step: 10.0 * step))
    simulation.run(lease(0, 3, since=5.0))
    heard = [simulation.wait(None) for _ in range(3)]
    assert [events[0].at for events in heard] == [15.0, 35.0, 65.0]
    assert simulation.now() == 65.0
    assert [len(events) for events in heard] == [1, 1, 2]
    (report,) = heard[2][0].reports
    assert (report.step, report.level, bool(report.checkpoint)) == (3, 3.0, True)
    assert report.metrics == {"training_iteration": 3, "loss": 0.3}
    assert heard[2][1] == Ended(65.0, 0, 1, How.REACHED, 3, 3.0, report.metrics, spent=60.0)


def test_what_happens_at_one_instant_is_heard_together_in_the_order_of_trials() -> None:
    simulation = opened(3, replace(LOAD, seconds=lambda trial, step: 2.0 if trial.id == 1 else 1.0))
    for trial in (2, 1, 0):
        simulation.run(lease(trial, 9))
    assert [event.trial for event in simulation.wait(None)] == [0, 2]
    assert [event.trial for event in simulation.wait(None)] == [0, 1, 2]


def test_more_leases_than_slots_are_a_defect() -> None:
    simulation = opened(1)
    simulation.run(lease(0, 9))
    with pytest.raises(AssertionError, match="all 1 slots are taken"):
        simulation.run(lease(1, 9))


def test_waiting_for_nothing_is_a_defect() -> None:
    simulation = opened(1)
    with pytest.raises(AssertionError, match="nothing runs"):
        simulation.wait(None)
    simulation.run(lease(0, 9))
    simulation.unwind(0, 1)
    simulation.wait(None)
    with pytest.raises(AssertionError, match="nothing runs"):
        simulation.wait(None)


# ---------------------------------------------------------------------------------------------- parked and evicted


def test_a_parked_trial_goes_on_without_a_checkpoint() -> None:
    simulation = opened(1, replace(LOAD, saves_at_end=False))
    simulation.run(lease(0, 2))
    assert until_end(simulation, 0)[0] == [1, 2]
    simulation.run(lease(0, 4, attempt=2, since=2.0, origin=2))
    steps, end = until_end(simulation, 0)
    assert steps == [3, 4]
    assert (end.at, end.spent) == (4.0, 2.0)  # type: ignore[union-attr]


def test_a_slot_parks_one_trial_and_the_longest_parked_goes_first() -> None:
    world = World()
    simulation = opened(2, world=world)
    for trial in (0, 1):
        simulation.run(lease(trial, 1))
    simulation.wait(None)
    simulation.run(lease(2, 1, since=1.0))  # takes the slot where 0 is parked
    simulation.wait(None)
    world.checkpoints.clear()  # so that only a parked trial can go on beyond 0
    simulation.run(lease(1, 2, attempt=2, since=2.0, origin=1))
    simulation.run(lease(0, 2, attempt=2, since=2.0, origin=0))
    assert [begun for _, begun in world.leases] == [0, 0, 0, 1, 0]
    assert simulation.wait(None)


def test_an_evicted_trial_goes_on_from_its_checkpoint() -> None:
    world = World()
    simulation = opened(1, world=world)
    for number, trial in enumerate((0, 1)):
        simulation.run(lease(trial, 2, since=2.0 * number))
        until_end(simulation, trial)
    simulation.run(lease(0, 4, attempt=2, checkpoint=2, since=4.0, origin=2))
    assert until_end(simulation, 0)[0] == [3, 4]
    assert world.leases[-1][1] == 2
    world.delete(1, 2)
    with pytest.raises(AssertionError, match="does not exist"):
        simulation.run(lease(1, 4, attempt=2, checkpoint=2, since=6.0, origin=2))


def test_a_fork_goes_on_from_its_donors_checkpoint() -> None:
    world = World(checkpoints={(0, 5)})
    simulation = opened(1, world=world)
    simulation.run(lease(1, 7, checkpoint=5, donor=0, origin=5, since=3.0))
    steps, end = until_end(simulation, 1)
    assert (steps, end.at) == ([6, 7], 5.0)
    assert world.checkpoints == {(0, 5), (1, 7)}


# --------------------------------------------------------------------------------------------- ends of other kinds


def test_trials_end_by_themselves() -> None:
    simulation = opened(1, replace(LOAD, length=2))
    simulation.run(lease(0, END))
    steps, end = until_end(simulation, 0)
    assert steps == [1, 2]
    assert end == Ended(2.0, 0, 1, How.RETURNED, 2, 2.0, {"training_iteration": 2, "loss": 0.2}, spent=2.0)
    simulation.run(lease(1, 2, since=2.0))
    assert until_end(simulation, 1)[1].how is How.REACHED  # type: ignore[union-attr]
    simulation.run(lease(1, 3, attempt=2, since=4.0, origin=2))
    steps, end = until_end(simulation, 1)
    assert (steps, end) == ([], Ended(4.0, 1, 2, How.RETURNED, 2, 2.0, {}))
    assert simulation.now() == 4.0


def test_a_function_may_return_without_a_word() -> None:
    simulation = opened(1, replace(LOAD, length=0))
    simulation.run(lease(0, END))
    assert until_end(simulation, 0) == ([], Ended(0.0, 0, 1, How.RETURNED, 0, 0.0, {}))


def test_a_running_trial_is_unwound_where_it_stands() -> None:
    simulation = opened(1)
    simulation.run(lease(0, 9))
    simulation.wait(None)
    simulation.unwind(0, 1)
    simulation.run(lease(1, 9, since=1.0))  # its slot is free at once
    assert simulation.wait(None) == [
        Ended(1.0, 0, 1, How.UNWOUND, 1, 1.0, {"training_iteration": 1, "loss": 0.1}, spent=1.0)
    ]
    assert [event.trial for event in simulation.wait(None)] == [1]  # nothing more is heard of 0


def test_a_parked_trial_is_unwound_without_a_word() -> None:
    simulation = opened(1, replace(LOAD, saves_at_end=False))
    simulation.run(lease(0, 1))
    simulation.wait(None)
    simulation.unwind(0, 1)
    simulation.unwind(7, 1)
    simulation.run(lease(0, 2, attempt=2, since=1.0, origin=1))
    assert until_end(simulation, 0)[0] == [1, 2]  # from the beginning


def test_faults_end_an_attempt_and_the_next_goes_on_from_the_checkpoint() -> None:
    def fault(trial: Trial, step: int, tries: int) -> Failure | None:
        return {(4, 0): Failure.LOST, (5, 1): Failure.ERROR}.get((step, tries))

    load = replace(LOAD, fault=fault, saves=lambda trial, step: step % 2 == 1)
    world = World()
    simulation = opened(1, load, world)
    simulation.run(lease(0, 6))
    assert until_end(simulation, 0) == (
        [1, 2, 3],
        Failed(4.0, 0, 1, Failure.LOST, "made to fail at step 4", spent=4.0),
    )
    assert world.checkpoints == {(0, 1), (0, 3)}
    simulation.run(lease(0, 6, attempt=2, checkpoint=3, tries=1, since=4.0, origin=3))
    steps, end = until_end(simulation, 0)
    assert (steps, end.at, end.failure) == ([4], 6.0, Failure.ERROR)  # type: ignore[union-attr]
    simulation.run(lease(0, 6, attempt=3, checkpoint=3, tries=2, since=6.0, origin=3))
    assert until_end(simulation, 0)[0] == [4, 5, 6]
    assert simulation.now() == 9.0
    assert [begun for _, begun in world.leases] == [0, 3, 3]


# --------------------------------------------------------------------------------------------- a driver's death


def seconds(trial: Trial, step: int) -> float:
    return 0.5 + (trial.id + step) % 4


@pytest.mark.parametrize("dies_after", range(1, 9))
def test_a_driver_s_death_changes_no_time(dies_after: int) -> None:
    """`since` and `origin` stay those of the first run, so each step is reported when it would have been."""
    load = replace(LOAD, seconds=seconds, saves=lambda trial, step: step % 3 == 0)

    def times(simulation: Simulation, stop: int | None = None) -> list[tuple[float, int, int]]:
        found: list[tuple[float, int, int]] = []
        ended = 0
        while ended < 2 and (stop is None or len(found) < stop):
            for event in simulation.wait(None):
                if isinstance(event, Reported):
                    found += [(event.at, event.trial, report.step) for report in event.reports]
                ended += isinstance(event, Ended)
        return found

    def leases(attempt: int, world: World) -> list[Lease]:
        newest = {trial: max((step for t, step in world.checkpoints if t == trial), default=None) for trial in (0, 1)}
        return [
            lease(trial, 10, attempt, checkpoint=newest[trial], since=since, origin=0)
            for trial, since in ((0, 0.0), (1, 0.5))
        ]

    def life(world: World, attempt: int, stop: int | None = None) -> list[tuple[float, int, int]]:
        simulation = opened(2, load, world)
        for one in leases(attempt, world):
            simulation.run(one)
        return times(simulation, stop)

    alone = life(World(), 1)
    world = World()
    first = life(world, 1, stop=dies_after)
    second = life(world, 2)
    assert first == alone[: len(first)]
    assert set(second) <= set(alone)  # the steps since the checkpoint are said again, and at the same times
    assert set(first) | set(second) == set(alone)


def test_a_world_keeps_what_is_referenced() -> None:
    world = World(checkpoints={(0, 1), (0, 2), (1, 1), (1, 2)})
    world.sweep_trial(0, {2})
    assert world.checkpoints == {(0, 2), (1, 1), (1, 2)}
    world.delete(1, 1)
    world.delete(1, 1)
    world.sweep({(0, 2), (5, 5)})
    assert world.checkpoints == {(0, 2)}


def test_the_same_study_twice_is_the_same() -> None:
    def live(note: Callable[[Sequence[Event]], None]) -> list[tuple[Lease, int]]:
        from raytuner.driver import Driver

        world = World()
        load = Workload(
            curve=lambda trial, step: {"loss": trial.config["x"] / step},
            seconds=seconds,
            saves=lambda trial, step: step % 2 == 0,
            fault=lambda trial, step, tries: Failure.LOST if trial.id % 3 == step and not tries else None,
        )
        simulation = Simulation(world, load, 3)
        wait = simulation.wait

        def noted(timeout_s: float | None) -> Sequence[Event]:
            events = wait(timeout_s)
            note(events)
            return events

        simulation.wait = noted  # type: ignore[method-assign]
        policy = AsyncHyperBandScheduler(max_t=9, reduction_factor=3)
        study = Study(Objective("loss"), policy.build(3), 12, Retries(), CheckpointConfig(num_to_keep=1))
        Driver(study, RandomSearch().build(SPACE, 3), Unwritten(), world, simulation).run(simulation)
        return world.leases

    first: list[Sequence[Event]] = []
    second: list[Sequence[Event]] = []
    assert live(first.append) == live(second.append)
    assert first == second
    assert len(first) > 20


class Unwritten:
    """A journal that keeps nothing."""

    def rows(self) -> list[Any]:
        return []

    def last_steps(self) -> dict[int, int]:
        return {}

    def commit(self, rows: Sequence[Any], reports: Sequence[Any]) -> None:
        """Nothing."""


# ------------------------------------------------------------------------------------------- what may be passed over


def lived(load: Workload, leases: Sequence[Lease], skip: bool, unwound_after: int | None = None) -> list[Event]:
    """What is heard of leases, reports in the middle aside; all of them are unwound after so many events."""
    simulation = Simulation(World(), load, len(leases), skip=skip)
    simulation.wait(None)
    heard: list[Event] = []
    for one in leases:
        simulation.run(one)
    ended = 0
    while ended < len(leases):
        for event in simulation.wait(None):
            ended += isinstance(event, Ended | Failed)
            if not isinstance(event, Reported) or event.reports[0].checkpoint:
                heard.append(event)
        if unwound_after is not None and len(heard) >= unwound_after:
            for one in leases:
                simulation.unwind(one.trial.id, one.attempt)
    return heard


LOADS = {
    "plain": LOAD,
    "returns": replace(LOAD, length=7),
    "saves": replace(LOAD, saves=lambda trial, step: step % 4 == trial.id),
    "fails": replace(LOAD, fault=lambda trial, step, tries: Failure.ERROR if step == 6 + trial.id else None),
    "stops": replace(LOAD, stops=5),
    "is stopped": replace(
        LOAD, ends=lambda trial, metrics, first: How.STOPPED if metrics["loss"] >= trial.id + 0.5 else None
    ),
    "is refused": replace(
        LOAD, ends=lambda trial, metrics, first: Failure.NOT_FINITE if metrics["loss"] >= 1.3 else None
    ),
    "has levels": replace(LOAD, level=lambda trial, step, metrics: 2.5 * step),
    "slow": replace(LOAD, pace=lambda worker: 1.0 + worker),
}


@pytest.mark.parametrize("unwound_after", [None, 1, 2])
@pytest.mark.parametrize("even", [False, True])
@pytest.mark.parametrize("name", LOADS)
def test_reports_that_change_nothing_can_be_passed_over(name: str, even: bool, unwound_after: int | None) -> None:
    """All else is said at the same times, to the last digit: a third of a second has no exact one."""
    seconds = (lambda trial, step: 1 / (3 + trial.id)) if even else (lambda trial, step: 1 / (3 + step + trial.id))
    load = replace(LOADS[name], seconds=seconds, even=even)
    leases = [lease(0, 9), lease(1, 12), lease(2, 11, since=0.1)]
    made, passed_over = (lived(load, leases, skip, unwound_after) for skip in (False, True))
    assert made == passed_over
    assert len(made) >= 3


def test_what_is_passed_over_is_not_made() -> None:
    asked: list[int] = []

    def curve(trial: Trial, step: int) -> dict[str, float]:
        asked.append(step)
        return {"loss": 0.0}

    lived(replace(LOAD, curve=curve, even=True), [lease(0, 2**40)], skip=True)
    assert asked == [2**40]


# --------------------------------------------------------------------------------------------- workers and messages


def test_a_trial_goes_on_at_the_pace_of_its_worker() -> None:
    simulation = opened(2, replace(LOAD, pace=lambda worker: 1.0 + 2 * worker))
    simulation.run(lease(0, 2))
    simulation.run(lease(1, 2))
    assert until_end(simulation, 0)[1].at == 2.0
    assert until_end(simulation, 1)[1].at == 6.0
    simulation.run(lease(1, 3, attempt=2, since=6.0, origin=2))  # where it is parked, though 0 is free too
    assert until_end(simulation, 1)[1].at == 9.0


def test_a_loss_that_was_not_written_down_takes_no_second_worker() -> None:
    """The trial runs again, and is lost again: with one worker, not with two."""
    load = replace(LOAD, fault=lambda trial, step, tries: Failure.LOST if step == 2 else None, away_s=10.0)
    world = World()
    for attempt in (1, 2):
        world.undo_losses(set())
        simulation = opened(2, load, world)
        simulation.run(lease(0, 20, attempt=attempt))
        assert until_end(simulation, 0)[1].at == 2.0
        assert world.away == {0: Away(12.0, 0, attempt)}
    world.undo_losses({(0, 2)})
    assert Simulation(world, load, 2).wait(None) == [Slots(2.0, 1)]


def test_a_lost_worker_is_away_for_a_while() -> None:
    load = replace(LOAD, fault=lambda trial, step, tries: Failure.LOST if trial.id == step == 1 else None, away_s=10.0)
    world = World()
    simulation = opened(2, load, world)
    simulation.run(lease(0, 20))
    simulation.run(lease(1, 20))
    report, slots, failed = simulation.wait(None)
    assert isinstance(report, Reported)
    assert slots == Slots(1.0, 1), "it is gone before its lease is over: nobody must be given its place"
    assert isinstance(failed, Failed)
    assert failed.failure is Failure.LOST
    with pytest.raises(AssertionError, match="all 1 slots are taken"):
        simulation.run(lease(2, 9))
    assert world.away == {1: Away(11.0, trial=1, attempt=1)}
    after = World(now=4.0, away={1: Away(11.0, 1, 1), 0: Away(3.0, 0, 1)})
    later = Simulation(after, load, 2)  # a driver's death does not bring it back
    assert later.wait(None) == [Slots(4.0, 1)]
    assert later.wait(None) == [Slots(11.0, 2)]
    heard = [event for _ in range(10) for event in simulation.wait(None)]
    assert [event for event in heard if isinstance(event, Slots)] == [Slots(11.0, 2)]
    assert not world.away
    simulation.run(lease(2, 21, since=11.0))
    assert until_end(simulation, 2)[1].at == 32.0


def test_reports_arrive_twice_and_late() -> None:
    load = replace(
        LOAD,
        twice=lambda trial, step, tries: step == 2,
        fault=lambda trial, step, tries: Failure.ERROR if step == 3 else None,
        late=lambda trial, step, tries: True,
        late_s=5.0,
    )
    simulation = opened(2, load)
    simulation.run(lease(0, 9))
    assert len(simulation.wait(None)) == 1
    once, again = simulation.wait(None)
    assert once == again
    assert isinstance(simulation.wait(None)[0], Failed)
    (late,) = simulation.wait(None)
    assert isinstance(late, Reported)
    assert (late.at, late.attempt, late.reports[0].step, late.reports[0].at) == (8.0, 1, 3, 3.0)


def test_somebody_can_wait_for_a_time() -> None:
    simulation = opened(1, replace(LOAD, seconds=lambda trial, step: 10.0))
    simulation.run(lease(0, 9))
    assert simulation.wait(4.0) == []
    assert simulation.now() == 4.0
    assert [event.at for event in simulation.wait(6.0)] == [10.0]


def test_a_world_counts() -> None:
    world = World()
    simulation = opened(2, replace(LOAD, saves=lambda trial, step: step % 2 == 0), world)
    simulation.run(lease(0, 5))
    simulation.run(lease(1, 20))
    until_end(simulation, 0)
    simulation.close()  # the driver died
    assert (world.steps, world.repeated, world.peak) == (10, 0, 5)
    simulation = Simulation(world, LOAD, 2)
    simulation.run(lease(1, 7, attempt=2, checkpoint=4))
    until_end(simulation, 1)
    assert (world.steps, world.repeated, world.highest) == (13, 1, {0: 5, 1: 7})
