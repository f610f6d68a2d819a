"""How long a study may run: summed over the lives of its drivers; and what becomes of one that has had its time."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from raytuner.budget import TimeBudget
from raytuner.driver import Driver
from raytuner.events import Event, Finish, How, Opened, Over, Slots, StopAsked, Ticked
from raytuner.executors.simulate import World
from raytuner.record.journal import Row, read
from raytuner.schedulers import AsyncHyperBandScheduler, HyperBandScheduler
from raytuner.searchers import BOHB, RandomSearch
from raytuner.space import Space
from raytuner.trial import Reports, State
from tests import lives
from tests.lives import SPACE, Case, Checks, Died, Fate, decisions, fate

__all__ = ["fate"]  # a fixture

# ---------------------------------------------------------------------------------------------------- the arithmetic


def budget(limit_s: float, *events: Event) -> TimeBudget:
    found = TimeBudget(limit_s)
    for event in events:
        found.note(event)
    return found


def test_time_runs_while_a_driver_does() -> None:
    assert budget(60.0).left_s(1e9) == 60.0
    running = budget(60.0, Opened(100.0, 1))
    assert running.left_s(100.0) == 60.0
    assert running.left_s(130.0) == 30.0
    assert running.left_s(160.0) == 0.0
    assert running.left_s(1e9) == 0.0, "never below"


def test_a_drivers_death_does_not_start_it_anew_and_the_time_between_drivers_is_free() -> None:
    lives = [Opened(100.0, 1), Slots(101.0, 2), Ticked(110.0), Opened(1000.0, 2), Ticked(1005.0), Opened(2000.0, 3)]
    assert budget(60.0, *lives).left_s(2000.0) == 60.0 - 10.0 - 5.0
    assert budget(60.0, *lives).left_s(2007.0) == 60.0 - 10.0 - 5.0 - 7.0
    assert budget(60.0, *lives, Ticked(2040.0), Opened(2050.0, 4)).left_s(2060.0) == 0.0


def test_a_tick_is_due_when_nothing_was_heard_for_long() -> None:
    """Reports are no events: without ticks a driver's death would forget the hours in which a trial only reported."""
    found = budget(3600.0, Opened(100.0, 1))
    assert not found.tick(129.0)
    assert found.tick(130.0)
    found.note(Ticked(130.0))
    assert not found.tick(131.0)
    assert not TimeBudget(3600.0).tick(1e9), "no driver is at work"


def test_what_is_past_between_drivers_is_not_running() -> None:
    found = budget(60.0, Opened(100.0, 1), Ticked(110.0))
    found.died()
    assert found.left_s(5000.0) == 50.0
    found.note(Opened(5000.0, 2))
    assert found.left_s(5010.0) == 40.0


def test_a_driver_that_did_nothing_costs_nothing() -> None:
    assert budget(60.0, Opened(100.0, 1), Opened(500.0, 2), Opened(900.0, 3)).left_s(900.0) == 60.0


def test_clocks_that_differ_never_give_time_back() -> None:
    """Events are dated by whoever saw them: an actor's clock may be behind the driver's, or be set back."""
    behind = [Opened(100.0, 1), Ticked(130.0), Ticked(90.0), Opened(200.0, 2)]
    assert budget(60.0, *behind).left_s(200.0) == 30.0
    assert budget(60.0, Opened(100.0, 1)).left_s(50.0) == 60.0


@pytest.mark.parametrize(("limit_s", "shown"), [(60, "60 s"), (2.5, "2.5 s"), (86400.0, "86400 s")])
def test_the_reason_says_what_to_do(limit_s: float, shown: str) -> None:
    assert TimeBudget(limit_s).reason == (
        f"its time budget of {shown} is used up (a larger time_budget_s lets it go on)"
    )


# ------------------------------------------------------------------------------------------------ in drivers' lives


class Life(lives.Life):
    """One driver's life with a budget."""

    def __init__(self, case: Case, root: Path, world: World, fate: Fate, record: Checks, limit_s: float) -> None:
        super().__init__(case, root, world, fate, record)
        self.study = case.study()
        searcher = case.searcher.build(Space(case.space), case.seed)
        self._driver = Driver(self.study, searcher, self, self, self._simulation, budget=TimeBudget(limit_s))

    def finish(self) -> Finish:
        try:
            return self._driver.run(self)
        finally:
            self.journal.close()


class Unwinding(Checks):
    """A lease that was unwound is not over: it is given out again."""

    def acknowledged(self, rows: Sequence[Row], reports: Sequence[Reports]) -> None:
        super().acknowledged([row for row in rows if getattr(row, "how", None) is not How.UNWOUND], reports)


CASES = [
    Case(BOHB(min_points_in_model=4), HyperBandScheduler(max_t=9), SPACE, trials=22, slots=4),
    Case(RandomSearch(), AsyncHyperBandScheduler(max_t=9), SPACE, trials=14, slots=3),
]
both = pytest.mark.parametrize("case", CASES, ids=lambda case: type(case.scheduler).__name__)


def alone(case: Case, root: Path, fate: Fate) -> tuple[list[Any], float]:
    """The decisions of a study that has all the time it wants, and how long it took."""
    world = World()
    assert Life(case, root, world, fate, Unwinding(), 1e9).finish().complete
    return decisions(read(root).rows), world.now


def lived_s(root: Path) -> float:
    """Seconds with a driver at work, as the record has them."""
    total, opened, last = 0.0, 0.0, 0.0
    for row in read(root).rows:
        if isinstance(row, Opened):
            total, opened = total + last - opened, row.at
        last = getattr(row, "at", last)
    return total + last - opened


@both
def test_a_larger_budget_goes_on_to_the_same_decisions(case: Case, fast_path: Path, fate: Fate) -> None:
    expected, whole_s = alone(case, fast_path / "alone", fate)
    root, world, checks = fast_path / "limited", World(), Unwinding()
    for part in (0.2, 0.5, 0.8):
        limit_s = part * whole_s
        life = Life(case, root, world, fate, checks, limit_s)
        finish = life.finish()
        assert finish == Finish(False, TimeBudget(limit_s).reason)
        assert limit_s <= world.now <= limit_s + 2.0, "a step takes two seconds at most"
        assert [entry for entry in life.study.ledger.values() if entry.state is State.RUNNING], "they can go on"
        assert decisions(read(root).rows) == expected[: len(decisions(read(root).rows))]
    assert Life(case, root, world, fate, checks, 2 * whole_s).finish().complete
    assert decisions(read(root).rows) == expected
    checks.at_the_end(root, world)


@both
def test_a_budget_that_is_used_up_starts_nothing(case: Case, fast_path: Path, fate: Fate) -> None:
    world, checks = World(), Unwinding()
    assert not Life(case, fast_path, world, fate, checks, 7.0).finish().complete
    leases, now = checks.leases, world.now
    again = Life(case, fast_path, world, fate, checks, 7.0)
    assert again.finish() == Finish(False, TimeBudget(7.0).reason)
    assert (checks.leases, world.now) == (leases, now)
    assert not [row for row in read(fast_path).rows if isinstance(row, StopAsked) and row.for_good]


@both
def test_a_driver_that_dies_again_and_again_has_one_budget(case: Case, fast_path: Path, fate: Fate) -> None:
    expected, whole_s = alone(case, fast_path / "alone", fate)
    limit_s = whole_s / 2
    for seed in range(3):
        fate.rng = random.Random(seed)
        root, world, checks = fast_path / f"killed-{seed}", World(), Unwinding()
        deaths = live(case, root, world, fate, checks, limit_s, gap=30)
        assert deaths > 5
        # What was not written before a death is not counted; each time, that is an instant at most.
        assert limit_s <= lived_s(root) + deaths * 2.0
        assert lived_s(root) <= limit_s + 2.0
        fate.moments = None
        assert Life(case, root, world, fate, checks, 2 * whole_s).finish().complete
        assert decisions(read(root).rows) == expected
        assert any(isinstance(row, Over) for row in expected)


def live(case: Case, root: Path, world: World, fate: Fate, checks: Checks, limit_s: float, gap: int) -> int:
    """Run a study until its time is over, with a driver that dies every 1 to ``gap`` moments; how often it died."""
    deaths = 0
    while True:
        fate.moments = fate.rng.randint(1, gap + deaths)
        try:
            life = Life(case, root, world, fate, checks, limit_s)
            assert life.finish() == Finish(False, TimeBudget(limit_s).reason)
        except Died:
            deaths += 1
            continue
        return deaths
