"""Stop rules that are code: what they are shown, what becomes of what they say, and how a resumed study reminds them.

`Life` is a driver's life in the simulator with a rule in it; `fate` ends it at any write (`tests.lives`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import raytuner as tune
from raytuner.driver import Driver
from raytuner.events import Ended, Finish, How, Over, StopAsked, Unwind
from raytuner.executors.simulate import Simulation, World
from raytuner.objective import Objective
from raytuner.record.journal import Journal, Row, is_complete, read
from raytuner.retry import Retries
from raytuner.schedulers import AsyncHyperBandScheduler, FIFOScheduler, HyperBandScheduler
from raytuner.searchers import BOHB, RandomSearch
from raytuner.space import Space
from raytuner.stopper import Watch, is_rule
from raytuner.study import Study
from raytuner.trial import Lease, Reports, State, Why
from tests import lives
from tests.lives import SPACE, Case, Died, Fate, decisions, fate
from tests.test_study import Desk, Scripted

__all__ = ["fate"]  # a fixture


def ended(trial: int, step: int, how: How = How.REACHED, **metrics: Any) -> Ended:
    return Ended(1.0, trial, 1, how, step, float(step), metrics or {"loss": 1.0, "training_iteration": step})


class Notes(tune.Stopper):
    """Writes down what it is shown; stops the trials it is told to, and all after so many reports."""

    def __init__(self, *stops: tuple[str, int], after: int | None = None) -> None:
        self.seen: list[tuple[str, int]] = []
        self.stops = stops
        self.after = after

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        self.seen.append((trial_id, result["training_iteration"]))
        return self.seen[-1] in self.stops

    def stop_all(self) -> bool:
        return self.after is not None and len(self.seen) >= self.after


# ---------------------------------------------------------------------------------------------------------- alone


def test_a_function_is_asked_with_the_trial_and_its_report() -> None:
    asked: list[Any] = []
    watch = Watch(lambda trial_id, result: bool(asked.append((trial_id, result))))
    assert watch.consult(ended(7, 1, loss=2.0)) == ended(7, 1, loss=2.0)
    assert asked == [("7", {"loss": 2.0})]
    assert watch.stop_all() is False, "a function ends trials, never the study"


def test_what_a_rule_does_to_a_report_is_its_own() -> None:
    report = ended(0, 1, loss=2.0)
    Watch(lambda trial_id, result: result.clear() or True).consult(report)  # type: ignore[func-returns-value]
    assert report == ended(0, 1, loss=2.0)


@pytest.mark.parametrize(
    ("how", "becomes"),
    [
        (How.REACHED, How.STOPPED),
        (How.UNWOUND, How.STOPPED),  # else it would go on with the next driver, which is not asked again
        (How.RETURNED, How.RETURNED),
        (How.STOPPED, How.STOPPED),
    ],
)
def test_a_trial_that_could_go_on_is_stopped(how: How, becomes: How) -> None:
    assert Watch(lambda trial_id, result: True).consult(ended(0, 3, how)) == ended(0, 3, becomes)
    assert Watch(lambda trial_id, result: False).consult(ended(0, 3, how)) == ended(0, 3, how)


def test_each_report_is_shown_once() -> None:
    rule = Notes(("0", 2))
    watch = Watch(rule)
    watch.consult(ended(0, 1))
    watch.consult(ended(1, 1))
    assert watch.consult(ended(0, 2)).how is How.STOPPED
    assert watch.consult(ended(0, 2)).how is How.REACHED, "set back; it has spoken about this one"
    watch.consult(ended(0, 1))
    watch.consult(Ended(1.0, 0, 1, How.UNWOUND, 3, 3.0, {}))  # it ended before it said anything
    watch.consult(ended(0, 3))
    assert rule.seen == [("0", 1), ("1", 1), ("0", 2), ("0", 3)]


def test_what_is_on_record_is_shown_but_not_asked_about() -> None:
    rule = Notes(("0", 1), ("0", 2), after=2)
    watch = Watch(rule)
    watch.remind(ended(0, 1))
    assert not watch.stop_all()
    assert watch.consult(ended(0, 1)).how is How.REACHED
    watch.remind(ended(0, 2))
    assert watch.stop_all()
    assert rule.seen == [("0", 1), ("0", 2)]


def test_a_rule_that_raises_is_named() -> None:
    class Faulty(tune.Stopper):
        def __repr__(self) -> str:
            return "Faulty()"

        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            return bool(result["accuracy"])

        def stop_all(self) -> bool:
            raise RuntimeError("no idea")

    watch = Watch(Faulty())
    with pytest.raises(KeyError, match="accuracy") as caught:
        watch.consult(ended(4, 9))
    assert caught.value.__notes__ == ["raised by the run's stop rule Faulty(), asked about trial 4 at 9"]
    with pytest.raises(RuntimeError, match="no idea") as other:
        watch.stop_all()
    assert other.value.__notes__ == ["raised by the run's stop rule Faulty(), asked about stop_all()"]


@pytest.mark.parametrize(
    ("stop", "rule"), [({"loss": 1}, False), (None, False), (3, False), (Notes, False), (Notes(), True), (print, True)]
)
def test_what_is_a_rule(stop: Any, rule: bool) -> None:
    assert is_rule(stop) is rule


def test_a_stopper_must_say_both() -> None:
    class Half(tune.Stopper):
        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            return False

    with pytest.raises(TypeError, match=r"abstract method '?stop_all"):
        Half()  # type: ignore[abstract]


def test_a_trial_that_a_rule_stops_is_not_left_parked() -> None:
    """Its function waits inside `report`, with all that it holds, where nobody might want the slot."""
    desk = Desk(Scripted(), trials=1)
    desk.study = Study(
        Objective("loss"),
        FIFOScheduler().build(0),
        1,
        Retries(),
        tune.CheckpointConfig(),
        each_report=True,
    )
    desk.slots(2)
    assert desk.leases[0].each_report
    commands = desk.tell(Watch(lambda trial_id, result: True).consult(ended(0, 1)))
    assert commands[:1] == [Unwind(0, 1)]
    assert Over(0, State.DONE, Why.STOP_RULE) in commands


# ---------------------------------------------------------------------------------------------- in a driver's lives


class Strict(tune.Stopper):
    """What it says depends on all that it has seen: a trial ends when it is far behind the best at its step, and the
    study when this has happened ``most`` times."""

    def __init__(self, most: int | None = None) -> None:
        self.seen: list[tuple[str, int]] = []
        self.best: dict[int, float] = {}
        self.stopped = 0
        self.most = most

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        step, loss = result["training_iteration"], result["loss"]
        self.seen.append((trial_id, step))
        self.best[step] = min(loss, self.best.get(step, loss))
        behind = step in (2, 5, 8) and loss > self.best[step] + 0.1
        self.stopped += behind
        return behind

    def stop_all(self) -> bool:
        return self.most is not None and self.stopped >= self.most


class Life(lives.Life):
    """One driver's life with a stop rule, without `Checks`: these expect a lease to be given out once."""

    def __init__(self, case: Case, root: Path, world: World, fate: Fate, rule: tune.Stopper) -> None:
        self._fate = fate
        self._world = world
        # Little is saved between rungs: much is run again, and must not be shown again.
        load = replace(case.workload(), saves_at_end=False, saves=lambda trial, step: step in (1, 3, 4, 7, 9))
        self._simulation = simulation = Simulation(world, load, case.slots)
        self.leases: list[Lease] = []
        self.study = Study(
            Objective("loss", "min"),
            case.scheduler.build(case.seed),
            case.trials,
            Retries(max_failures=1),
            case.checkpoint_config,
            each_report=True,
        )
        self.journal = Journal(root)
        searcher = case.searcher.build(Space(case.space), case.seed)
        self._driver = Driver(self.study, searcher, self, self, simulation, watch=Watch(rule))

    def finish(self) -> Finish:
        return self._driver.run(self)

    def commit(self, rows: Sequence[Row], reports: Sequence[Reports]) -> None:
        self.journal.commit(rows, reports)

    def run(self, lease: Lease) -> None:
        self._fate.moment()
        self.leases.append(lease)
        self._simulation.run(lease)


def live(case: Case, root: Path, fate: Fate, gap: int | None, make: Callable[[], Strict]) -> tuple[list[Any], Any]:
    """Run a study to its end, with a driver that dies every 1 to ``gap`` moments; its decisions, each driver's rule."""
    world, rules = World(), []
    while True:
        fate.moments = fate.rng.randint(1, gap) if gap else None
        life = None
        rules.append(make())
        try:
            life = Life(case, root, world, fate, rules[-1])
            assert life.finish().complete
        except Died:
            gap = gap + 1 if gap else None
            if life is not None:
                life.journal.close()
            continue
        life.journal.close()
        return decisions(read(root).rows), rules


CASES = [
    Case(RandomSearch(), FIFOScheduler(), SPACE, trials=9, slots=3),
    Case(BOHB(min_points_in_model=4), HyperBandScheduler(max_t=9), SPACE, trials=22, slots=4),
    Case(BOHB(min_points_in_model=4), AsyncHyperBandScheduler(max_t=9), SPACE, trials=20, slots=3),
]


@pytest.mark.parametrize("most", [None, 2], ids=["to its end", "stopped"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: type(case.scheduler).__name__)
def test_a_stateful_rule_sees_each_report_once_a_life_and_decides_the_same(
    case: Case, most: int | None, fast_path: Path, fate: Fate
) -> None:
    expected, [alone] = live(case, fast_path / "alone", fate, None, lambda: Strict(most))
    whys = [row.why for row in expected if isinstance(row, Over)]
    assert Why.STOP_RULE in whys
    assert (Why.STUDY_STOPPED in whys) == (most is not None)
    for seed in range(3):
        fate.rng = random.Random(seed)
        found, rules = live(case, fast_path / f"killed-{seed}", fate, 25, lambda: Strict(most))
        assert len(rules) > 5, "it died"
        for rule in rules:
            assert rule.seen == alone.seen[: len(rule.seen)]
        assert rules[-1].seen == alone.seen
        assert found == expected


def test_stop_all_ends_the_study_for_good(fast_path: Path, fate: Fate) -> None:
    case = CASES[0]
    life = Life(case, fast_path, world := World(), fate, Strict(most=2))
    assert life.finish() == Finish(True, "the run's stop rule ended the study")
    life.journal.close()
    assert not life.study.ledger.live
    assert len(life.study.ledger) < case.trials, "nothing more was started"
    states = {entry.state for entry in life.study.ledger.values()}
    assert State.STOPPED in states
    assert states <= {State.STOPPED, State.DONE}
    [asked] = [row for row in read(fast_path).rows if isinstance(row, StopAsked)]
    assert asked.for_good

    again = Life(case, fast_path, world, fate, Strict(most=2))
    assert is_complete(fast_path)
    assert again.finish() == Finish(True, "the run's stop rule ended the study")
    again.journal.close()
    assert again.leases == []


def test_a_rule_that_raises_ends_the_driver_and_nothing_is_lost(fast_path: Path, fate: Fate) -> None:
    class Breaks(Strict):
        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            if len(self.seen) == 20:
                raise ZeroDivisionError("of the user's")
            return super().__call__(trial_id, result)

    case, world = CASES[0], World()
    life = Life(case, fast_path / "broken", world, fate, Breaks())
    with pytest.raises(ZeroDivisionError) as caught:
        life.finish()
    life.journal.close()
    assert "raised by the run's stop rule" in caught.value.__notes__[0]
    mended = Life(case, fast_path / "broken", world, fate, Strict())
    assert mended.finish().complete
    mended.journal.close()
    expected, _ = live(case, fast_path / "alone", fate, None, Strict)
    assert decisions(read(fast_path / "broken").rows) == expected
