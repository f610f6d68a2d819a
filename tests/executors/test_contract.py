"""What every executor keeps to: the simulator, the one in this process, and the one on a real Ray.

A scenario is played against each of them, with trials that do the same in all three; so is a whole study, which must
take the same decisions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import pytest

from raytuner.checkpoints import CheckpointConfig, Store
from raytuner.driver import Driver, Shelf
from raytuner.events import Damaged, Ended, Event, Failed, Finish, How, Loaded, Over, Reported, Slots
from raytuner.executors.inline import Inline
from raytuner.executors.simulate import Simulation, Workload, World
from raytuner.objective import Objective
from raytuner.protocols import Executor
from raytuner.record.journal import Journal, read
from raytuner.retry import Retries
from raytuner.schedulers import HyperBandScheduler
from raytuner.searchers import BOHB
from raytuner.session import Rules
from raytuner.space import Space, loguniform, randint
from raytuner.study import Study
from raytuner.trial import END, Failure, Lease, Report, Slot, Trial, Why
from raytuner.work import Work
from tests.lives import decisions

pytestmark = pytest.mark.timeout(120)

Loss = Callable[[int, Mapping[str, Any], int], float]
"""Of a trial, its configuration and a step."""


@dataclass(frozen=True)
class Behaviour:
    """What trials do. ``length``: the step after which they return. ``saves``: whether they make a checkpoint where
    they are asked to. ``fails_at``: trials that raise an error, and the step that they do not reach. ``damaged``: the
    trials and steps whose checkpoints a scenario damages."""

    length: int = END
    saves: bool = True
    fails_at: Mapping[int, int] = field(default_factory=dict)
    damaged: Collection[tuple[int, int]] = ()
    loss: Loss = lambda trial, config, step: 10.0 * trial + 1 / step

    def workload(self) -> Workload:
        """The same for the simulator."""
        return Workload(
            curve=lambda trial, step: {"loss": self.loss(trial.id, trial.config, step)},
            length=self.length,
            saves_at_end=self.saves,
            fault=lambda trial, step, tries: Failure.ERROR if self.fails_at.get(trial.id) == step else None,
            damaged=lambda trial, step: (trial, step) in self.damaged,
        )

    def train(self) -> Callable[[Any], None]:
        """The same as a training function. It names nothing of this module, which no actor need import then."""
        length, saves, fails_at, loss = self.length, self.saves, dict(self.fails_at), self.loss

        def train(config: dict[str, Any]) -> None:
            import tempfile
            from pathlib import Path

            import raytuner as tune

            trial = int(tune.get_context().get_trial_id())
            checkpoint = tune.get_checkpoint()
            step = int(Path(checkpoint.path, "step").read_text()) if checkpoint else 0
            while step < length:
                step += 1
                if fails_at.get(trial) == step:
                    raise ValueError(f"made to fail at step {step}")
                metrics = {"loss": loss(trial, config, step)}
                if saves and tune.should_checkpoint():
                    with tempfile.TemporaryDirectory() as folder:
                        Path(folder, "step").write_text(str(step))
                        tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(folder))
                else:
                    tune.report(metrics)

        return train


class Stage:
    """An executor, and the bookkeeping that scenarios share."""

    def __init__(self, executor: Executor, shelf: Shelf, clock: Callable[[], float]) -> None:
        self.executor = executor
        self.shelf = shelf
        self.now = clock
        self._attempts: dict[int, Any] = {}

    def opened(self) -> Stage:
        """Wait for the one slot."""
        (slots,) = self.until(lambda event: True)
        assert slots == Slots(slots.at, 1)
        return self

    def run(self, trial: int, until: int, after: int = 0, checkpoint: int | None = None, each: bool = False) -> Lease:
        """Give out a trial's next lease; ``after``: the step that it reached before."""
        attempt = next(self._attempts.setdefault(trial, count(1)))
        now = self.now()
        given = Lease(Trial(trial, {}), attempt, until, checkpoint, trial, 0, now, after, each_report=each)
        self.executor.run(given)
        return given

    def damage(self, trial: int, step: int) -> None:
        """Change a published checkpoint; in the simulator its behaviour does."""
        if isinstance(self.shelf, Store):
            Path(self.shelf.path(trial, step), "step").write_text("7")

    def until(self, found: Callable[[Event], bool], limit_s: float = 60.0) -> list[Event]:
        """Events up to the first that is looked for. Nothing may come after it that would be passed over."""
        events: list[Event] = []
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            for event in (heard := self.executor.wait(1.0)):
                events.append(event)
                if found(event):
                    assert event is heard[-1], f"not looked at: {heard}"
                    return events
        raise AssertionError(f"not seen within {limit_s} s; seen: {events}")

    def to_end(self, lease: Lease) -> tuple[list[Report], Ended | Failed]:
        """What a lease says, and how it ends; nobody else may say anything."""
        events = self.until(lambda event: isinstance(event, Ended | Failed))
        last = events[-1]
        assert isinstance(last, Ended | Failed)
        assert {type(event) for event in events[:-1]} <= {Loaded, Reported}
        said = [event for event in events if isinstance(event, Loaded | Reported | Ended | Failed)]
        who = {(event.trial, event.attempt) for event in said}
        assert who == {(lease.trial.id, lease.attempt)}
        return [report for event in events if isinstance(event, Reported) for report in event.reports], last


def steps(reports: Sequence[Report]) -> list[int]:
    return [report.step for report in reports]


Scenario = Callable[[Stage], Any]


class Play(Protocol):
    """Plays a scenario against an executor with one slot; returns what the scenario does."""

    def __call__(self, scenario: Scenario, behaviour: Behaviour = ..., **rules: Any) -> Any: ...


def on_simulation(folder: Path, scenario: Scenario, behaviour: Behaviour, **rules: Any) -> Any:
    world = World()
    simulation = Simulation(world, behaviour.workload(), 1)
    return scenario(Stage(simulation, world, simulation.now))


def on_inline(folder: Path, scenario: Scenario, behaviour: Behaviour, **rules: Any) -> Any:
    checkpoints = folder / "checkpoints"
    inline = Inline(Work(behaviour.train()), Rules(checkpoints, {}, **rules))
    return inline.serve(lambda: scenario(Stage(inline, Store(checkpoints), time.time)))


def on_ray(folder: Path, scenario: Scenario, behaviour: Behaviour, **rules: Any) -> Any:
    from raytuner.executors.ray_actors import RayActors

    checkpoints = folder / "checkpoints"
    actors = RayActors(Work(behaviour.train()), Rules(checkpoints, {}, **rules), Slot(), 1)
    try:
        return scenario(Stage(actors, Store(checkpoints), time.time))
    finally:
        actors.close()


EXECUTORS: Mapping[str, Callable[..., Any]] = {"simulation": on_simulation, "inline": on_inline, "ray": on_ray}
NAMES = ["simulation", "inline", pytest.param("ray", marks=pytest.mark.ray)]
REAL = NAMES[1:]


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    if found == "ray":
        request.getfixturevalue("local_ray")
    return found


@pytest.fixture
def play(name: str, tmp_path: Path) -> Play:
    def played(scenario: Scenario, behaviour: Behaviour = Behaviour(), **rules: Any) -> Any:
        return EXECUTORS[name](tmp_path, scenario, behaviour, **rules)

    return played


# ------------------------------------------------------------------------------------------- a lease and the next


def test_a_lease_reports_every_step_and_ends_where_it_should(play: Play) -> None:
    def scenario(stage: Stage) -> None:
        stage.opened()
        began = stage.now()
        reports, last = stage.to_end(stage.run(4, until=3))
        assert steps(reports) == [1, 2, 3]
        assert [report.level for report in reports] == [1.0, 2.0, 3.0]
        assert [report.metrics["loss"] for report in reports] == [41.0, 40.5, 40 + 1 / 3]
        assert [report.metrics["training_iteration"] for report in reports] == [1, 2, 3]
        assert [bool(report.checkpoint) for report in reports] == [False, False, True]
        assert last == Ended(last.at, 4, 1, How.REACHED, 3, 3.0, reports[-1].metrics, last.spent)
        times = [began, *(report.at for report in reports), last.at]
        assert times == sorted(times)
        assert 0 < last.spent <= last.at - began + 1e-3

    play(scenario)


def test_the_next_lease_of_a_parked_trial_goes_on(play: Play) -> None:
    """Without a checkpoint: it is still there. What it says is of the new attempt."""

    def scenario(stage: Stage) -> None:
        stage.opened()
        heard = []
        for after, until in ((0, 2), (2, 3), (3, 7)):
            reports, last = stage.to_end(stage.run(0, until, after))
            assert (last.how, last.step, last.level) == (How.REACHED, until, float(until))
            heard += steps(reports)
        assert heard == [1, 2, 3, 4, 5, 6, 7]
        assert last.attempt == 3

    play(scenario, Behaviour(saves=False))


def test_a_trial_that_had_to_make_room_starts_from_its_checkpoint(play: Play) -> None:
    def scenario(stage: Stage) -> None:
        stage.opened()
        stage.to_end(stage.run(0, until=2))
        reports, _ = stage.to_end(stage.run(1, until=3))
        assert steps(reports) == [1, 2, 3]
        reports, last = stage.to_end(stage.run(0, until=5, after=2, checkpoint=2))
        assert steps(reports) == [3, 4, 5]
        assert (last.how, last.step, last.level) == (How.REACHED, 5, 5.0)
        assert last.metrics["loss"] == 0.2

    play(scenario)


def test_a_trial_that_had_to_make_room_and_has_no_checkpoint_starts_again(play: Play) -> None:
    def scenario(stage: Stage) -> None:
        stage.opened()
        stage.to_end(stage.run(0, until=2))
        stage.to_end(stage.run(1, until=3))
        reports, last = stage.to_end(stage.run(0, until=4))
        assert steps(reports) == [1, 2, 3, 4]
        assert (last.step, last.attempt) == (4, 2)

    play(scenario, Behaviour(saves=False))


def test_a_damaged_checkpoint_is_told_and_the_slot_is_free_again(play: Play) -> None:
    """The lease is over; it neither began nor failed."""

    def scenario(stage: Stage) -> None:
        stage.opened()
        stage.to_end(stage.run(0, until=2))
        stage.to_end(stage.run(1, until=3))
        stage.damage(0, 2)
        stage.run(0, until=5, after=2, checkpoint=2)
        (found,) = stage.until(lambda event: True)
        assert isinstance(found, Damaged)
        assert (found.trial, found.attempt, found.source, found.step) == (0, 2, 0, 2)
        assert "damaged" in found.message
        reports, last = stage.to_end(stage.run(0, until=5))
        assert (steps(reports), last.attempt) == ([1, 2, 3, 4, 5], 3)
        assert isinstance(last, Ended)
        reports, last = stage.to_end(stage.run(1, until=4, after=3, checkpoint=3))
        assert (steps(reports), last.step) == ([4], 4)

    play(scenario, Behaviour(damaged={(0, 2)}))


def test_a_parked_trial_does_not_need_its_checkpoint(play: Play) -> None:
    """Its lease names one, in case it had to make room."""

    def scenario(stage: Stage) -> None:
        stage.opened()
        stage.to_end(stage.run(0, until=2))
        lease = stage.run(0, until=4, after=2, checkpoint=2)
        reports, last = stage.to_end(lease)
        assert steps(reports) == [3, 4]
        assert last.metrics["loss"] == 0.25

    play(scenario)


def test_a_lease_may_end_at_every_report(play: Play) -> None:
    def scenario(stage: Stage) -> None:
        stage.opened()
        for step in (1, 2, 3):
            reports, last = stage.to_end(stage.run(0, until=3, after=step - 1, each=True))
            assert steps(reports) == [step]
            assert (last.how, last.step, last.level) == (How.REACHED, step, float(step))
            assert (last.level < 3) == (step < 3)
        reports, last = stage.to_end(stage.run(0, until=6, after=3))  # and the next one may be as long as any
        assert (steps(reports), last.how) == ([4, 5, 6], How.REACHED)

    play(scenario)


# -------------------------------------------------------------------------------------------- ends of other kinds


def test_the_function_s_return_is_told(play: Play) -> None:
    def scenario(stage: Stage) -> None:
        stage.opened()
        reports, last = stage.to_end(stage.run(0, until=END))
        assert steps(reports) == [1, 2, 3]
        assert last == Ended(last.at, 0, 1, How.RETURNED, 3, 3.0, reports[-1].metrics, last.spent)
        reports, last = stage.to_end(stage.run(1, until=2))
        assert last.how is How.REACHED
        reports, last = stage.to_end(stage.run(1, until=9, after=2))  # from where it is parked
        assert (steps(reports), last.how, last.step) == ([3], How.RETURNED, 3)
        stage.to_end(stage.run(2, until=3))
        reports, last = stage.to_end(stage.run(2, until=9, after=3))  # without a further word
        assert (steps(reports), last.how, last.step, last.level) == ([], How.RETURNED, 3, 3.0)

    play(scenario, Behaviour(length=3))


def test_a_function_may_return_without_a_word(play: Play) -> None:
    def scenario(stage: Stage) -> None:
        stage.opened()
        reports, last = stage.to_end(stage.run(0, until=END))
        assert (reports, last.how, last.step, last.metrics) == ([], How.RETURNED, 0, {})

    play(scenario, Behaviour(length=0))


def test_an_error_is_told_and_the_slot_is_free_again(play: Play) -> None:
    def scenario(stage: Stage) -> None:
        stage.opened()
        for attempt in (1, 2):
            reports, last = stage.to_end(stage.run(0, until=5))
            assert steps(reports) == [1, 2]
            assert isinstance(last, Failed)
            assert (last.failure, last.attempt) == (Failure.ERROR, attempt)
            assert "made to fail at step 3" in last.message
            assert last.spent > 0
        reports, last = stage.to_end(stage.run(1, until=5))
        assert (steps(reports), last.how) == ([1, 2, 3, 4, 5], How.REACHED)
        stage.to_end(stage.run(2, until=1))
        reports, last = stage.to_end(stage.run(2, until=5, after=1))  # from where it is parked
        assert steps(reports) == [2, 3]
        assert isinstance(last, Failed)
        assert last.attempt == 2

    play(scenario, Behaviour(fails_at={0: 3, 2: 4}))


# ---------------------------------------------------------------------------------------------------- unwinding


def test_a_running_lease_is_unwound(play: Play) -> None:
    """The function would report for ever."""

    def scenario(stage: Stage) -> None:
        stage.opened()
        lease = stage.run(0, until=END)
        stage.until(lambda event: isinstance(event, Reported))
        stage.executor.unwind(0, 1)
        reports, last = stage.to_end(lease)
        assert (last.how, last.attempt) == (How.UNWOUND, 1)
        assert last.step >= 1
        if reports:
            assert last.step == reports[-1].step
        assert last.metrics["training_iteration"] == last.step
        reports, last = stage.to_end(stage.run(1, until=2))
        assert (steps(reports), last.how) == ([1, 2], How.REACHED)

    play(scenario)


def test_a_lease_is_unwound_as_soon_as_it_is_given_out(play: Play) -> None:
    """Whether or not it had begun; over and over, since it may be told at any moment of its beginning."""

    def scenario(stage: Stage) -> None:
        stage.opened()
        began = time.monotonic()
        for trial in range(60):
            lease = stage.run(trial, until=END)
            spin(trial * 1e-5)
            stage.executor.unwind(trial, 1)
            _, last = stage.to_end(lease)
            assert last.how is How.UNWOUND
        assert time.monotonic() - began < 30, "none had to be ended with its process"

    play(scenario, Behaviour(saves=False), grace_s=40.0)


def spin(seconds: float) -> None:
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


def test_parked_and_unknown_trials_are_unwound_without_a_word(play: Play) -> None:
    def scenario(stage: Stage) -> None:
        stage.opened()
        stage.executor.unwind(7, 1)
        stage.to_end(stage.run(0, until=2))
        stage.executor.unwind(0, 1)
        stage.executor.unwind(0, 1)
        stage.executor.unwind(7, 1)
        reports, last = stage.to_end(stage.run(1, until=2))
        assert (steps(reports), last.how) == ([1, 2], How.REACHED)
        stage.executor.unwind(0, 1)  # no longer there; the one that is stays
        reports, last = stage.to_end(stage.run(1, until=3, after=2))
        assert (steps(reports), last.how) == ([3], How.REACHED)
        reports, last = stage.to_end(stage.run(0, until=3))
        assert (steps(reports), last.how, last.attempt) == ([1, 2, 3], How.REACHED, 2), "it was gone"

    play(scenario, Behaviour(saves=False))


def test_a_trial_that_is_unwound_where_it_is_parked_starts_again(play: Play) -> None:
    """Its next lease, if there is one, finds nothing that is about to end. Over and over, as above."""

    def scenario(stage: Stage) -> None:
        stage.opened()
        for trial in range(40):
            stage.to_end(stage.run(trial, until=1))
            stage.executor.unwind(trial, 1)
            reports, last = stage.to_end(stage.run(trial, until=2))
            assert (steps(reports), last.how) == ([1, 2], How.REACHED)

    play(scenario, Behaviour(saves=False))


# ------------------------------------------------------------------------------------------------ waiting, closing


@pytest.mark.parametrize("name", REAL, indirect=True)
def test_nothing_to_say_is_said_in_time(play: Play) -> None:
    def scenario(stage: Stage) -> None:
        stage.opened()
        for timeout_s in (0.0, 0.1):
            began = time.monotonic()
            assert list(stage.executor.wait(timeout_s)) == []
            assert timeout_s * 0.9 <= time.monotonic() - began < timeout_s + 5
        stage.to_end(stage.run(0, until=1))
        assert list(stage.executor.wait(0.1)) == [], "a parked trial has nothing to say either"

    play(scenario)


def test_closing_twice_does_no_harm(play: Play) -> None:
    def scenario(stage: Stage) -> None:
        stage.opened()
        stage.to_end(stage.run(0, until=1))
        stage.executor.close()
        stage.executor.close()

    play(scenario)


# -------------------------------------------------------------------------------------------------- a whole study


def live(stage: Stage, folder: Path, trials: int) -> list[Any]:
    """A study's decisions, without the tracebacks of its errors."""
    space = Space({"lr": loguniform(1e-4, 1.0), "width": randint(4, 64)})
    study = Study(
        Objective("loss"),
        HyperBandScheduler(max_t=9).build(5),
        trials,
        Retries(max_failures=1),
        CheckpointConfig(num_to_keep=1),
    )
    journal = Journal(folder)

    class Clock:
        now = staticmethod(stage.now)

    finish = Driver(study, BOHB().build(space, 5), journal, stage.shelf, Clock(), ()).run(stage.executor)
    journal.close()
    assert finish == Finish(True, "every trial is over")
    return [replace(row, message="") if isinstance(row, Over) else row for row in decisions(read(folder).rows)]


@pytest.mark.parametrize("name", REAL, indirect=True)
def test_a_study_takes_the_same_decisions_wherever_it_runs(name: str, tmp_path: Path, fast_path: Path) -> None:
    """BOHB and Hyperband, with one slot, on each executor as in the simulator: the order of arrival is the same."""

    def loss(trial: int, config: Mapping[str, Any], step: int) -> float:
        import math

        return abs(math.log10(config["lr"]) + 2) + config["width"] / 64 + (1 + trial % 3) / step

    behaviour = Behaviour(fails_at=dict.fromkeys(range(3, 60, 5), 2), loss=loss)

    def lived(where: str) -> list[Any]:
        folder = fast_path / where
        return EXECUTORS[where](folder, lambda stage: live(stage, folder, 60), behaviour)

    expected = lived("simulation")
    reasons = {row.why for row in expected if isinstance(row, Over)}
    assert reasons == {Why.NOT_PROMOTED, Why.FULL_BUDGET, Why.ERROR}, "there is something to decide"
    assert lived(name) == expected
