"""Population Based Training: its machine by hand, whole studies in the simulator, and the paper's own toy problem."""

from __future__ import annotations

import inspect
import json
import random
import warnings
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import raytuner as tune
from raytuner.actions import Action, Done, Fork, Proposal, Resume, Start, Stop, Wait
from raytuner.checkpoints import CheckpointConfig
from raytuner.driver import Driver
from raytuner.events import Ended, How, Over
from raytuner.executors.simulate import Simulation, Workload, World
from raytuner.objective import Objective
from raytuner.protocols import SchedulingPolicy
from raytuner.record.journal import Row
from raytuner.retry import Retries
from raytuner.schedulers import (
    PB2,
    FIFOScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    PopulationBasedTrainingReplay,
    ResourceChangingScheduler,
)
from raytuner.schedulers.pbt import quantile_size
from raytuner.searchers import RandomSearch
from raytuner.space import Space, choice, loguniform, uniform
from raytuner.study import Study
from raytuner.trial import Config, Failure, Lease, Observation, Pending, Reports, State, Trial, Why
from tests.lives import SPACE, Case, fate, live_through
from tests.test_replay import check

__all__ = ["fate"]  # a fixture


def pbt(**settings: Any) -> PopulationBasedTraining:
    """A turn every 4 steps; what is explored is doubled, so that it is seen."""
    usual = {
        "time_attr": "training_iteration",
        "perturbation_interval": 4,
        "resample_probability": 0.0,
        "perturbation_factors": (2.0,),
        "hyperparam_mutations": {"x": uniform(0.0, 1e9)},
    }
    return PopulationBasedTraining(**{**usual, **settings})


class Crowd:
    """A population, and where its trials are. The configuration of member m is ``{"x": m + 1}``."""

    def __init__(self, members: int, seed: int = 0, close: bool = True, **settings: Any) -> None:
        self.machine = pbt(**settings).build(seed)
        self.until: dict[int, int] = {}  # of the trials that are not over
        self.configs: dict[int, Config] = {}
        for trial in range(members):
            assert isinstance(self.next(), Start)
            self.configs[trial] = {"x": float(trial + 1)}
        if close:
            assert self.machine.close() == []

    def next(self) -> Action:
        """Offer a slot."""
        action = self.machine.next()
        match action:
            case Start(trial, until) | Resume(trial, until):
                self.until[trial] = until
            case Fork(trial, _, config, until, replaces):
                assert replaces is not None
                self.until[trial], self.configs[trial] = until, config
                self._replaced = replaces, self.until.pop(replaces)
        return action

    def all(self) -> list[Action]:
        """Offer slots until there is nothing to do with them."""
        actions = []
        while not isinstance(action := self.next(), Wait | Done):
            actions.append(action)
        return actions

    def say(self, trial: int, value: float, level: float | None = None) -> None:
        """A trial is at the end of its lease."""
        assert self.machine.judge(self.seen(trial, value, level)) == []

    def end(self, trial: int, value: float | None = None, failure: Failure | None = Failure.ERROR) -> None:
        """A trial is over."""
        assert self.machine.judge(replace(self.seen(trial, value), failure=failure, ended=True)) == []
        del self.until[trial]

    def lacks_source(self, fork: Action) -> None:
        """The fork that was just given out found no checkpoint."""
        assert isinstance(fork, Fork)
        self.end(fork.trial, failure=None)
        trial, until = self._replaced
        self.until[trial] = until

    def seen(self, trial: int, value: float | None, level: float | None = None) -> Observation:
        until = self.until[trial]
        level = until if level is None else level
        return Observation(trial, self.configs[trial], int(level), level, until, value)


def takeovers(actions: Iterable[Action]) -> list[tuple[int | None, int]]:
    """Who takes over whom."""
    return [(action.replaces, action.source) for action in actions if isinstance(action, Fork)]


# ---------------------------------------------------------------------------------------------------- truncation


@pytest.mark.parametrize(
    ("members", "fraction", "expected"),
    [
        *((0, 0.25, 0), (1, 0.25, 0), (1, 0.5, 0), (2, 0.25, 1), (3, 0.25, 1), (4, 0.25, 1), (5, 0.25, 2)),
        *((8, 0.25, 2), (9, 0.25, 3), (2, 0.5, 1), (3, 0.5, 1), (4, 0.5, 2), (5, 0.5, 2), (10, 0.1, 1), (11, 0.1, 2)),
        *((30, 0.1, 3), (7, 0.3, 3), (100, 0.2, 20), (100, 0.0, 0), (100, 0.001, 1)),
    ],
)
def test_how_many_are_taken_over(members: int, fraction: float, expected: int) -> None:
    assert quantile_size(members, fraction) == expected


@pytest.mark.parametrize(
    ("values", "fraction", "expected"),
    [
        # The values in the order in which members come to their first rung; each is compared with those before it.
        ([3, 1, 2, 0], 0.25, []),  # the worst, 0, was the first and had nobody to be compared with
        ([1, 2], 0.25, [(1, 0)]),
        ([2, 1], 0.25, []),
        ([1, 2, 0], 0.25, [(1, 0)]),
        ([0, 1, 2, 3], 0.25, [(1, 0), (2, 0), (3, 0)]),  # each is the worst so far
        ([0, 3, 1, 2], 0.25, [(1, 0)]),
        ([0, 3, 1, 2], 0.5, [(1, 0), (3, {0, 2})]),
        ([1, 0, 2, 3, 4], 0.25, [(2, 1), (3, 1), (4, {0, 1})]),
        ([1, 1], 0.25, [(1, 0)]),  # of equals the later one is the worse
        ([1, 1, 1, 1], 0.25, [(1, 0), (2, 0), (3, 0)]),
        ([0, 3, 1, 2], 0.0, []),
        ([5], 0.5, []),
    ],
)
def test_who_takes_over_whom(values: Sequence[float], fraction: float, expected: list[Any]) -> None:
    found: list[set[tuple[int | None, int]]] = []
    for seed in range(20):
        crowd = Crowd(len(values), seed, quantile_fraction=fraction)
        for trial, value in enumerate(values):
            crowd.say(trial, value)
        found += [set(takeovers(crowd.all()))]
    wanted = {(replaced, source) for replaced, of in expected for source in (of if isinstance(of, set) else {of})}
    assert set.union(*found) == wanted
    assert all(len(each) == len(expected) for each in found)


def test_a_fork_is_a_new_trial_in_the_place_of_the_old_one() -> None:
    crowd = Crowd(2)
    crowd.say(1, 0.0)
    crowd.say(0, 1.0)
    assert crowd.next() == Fork(2, 1, {"x": 4.0}, 8, replaces=0)  # twice the 2.0 of its source
    assert crowd.next() == Resume(1, 8)
    assert crowd.next() == Wait()
    crowd.say(1, 5.0)
    crowd.say(2, 6.0)
    assert crowd.next() == Fork(3, 1, {"x": 4.0}, 12, replaces=2)
    assert crowd.next() == Resume(1, 12)


def test_a_fork_that_was_at_no_rung_is_taken_over_by_nobody() -> None:
    """It is at the top by its source's value; its checkpoint would be its source's, which has moved on since."""
    for exploit in ("truncation", "binary_tournament"):
        for seed in range(20):
            crowd = Crowd(3, seed, quantile_fraction=0.5, exploit=exploit)
            crowd.say(0, 0.0)
            crowd.say(1, 1.0)
            fork = next(each for each in crowd.all() if isinstance(each, Fork))
            crowd.end(0)  # the source is gone: the fork has the best value now
            crowd.say(2, 7.0)
            assert takeovers(crowd.all()) == []
            crowd.say(fork.trial, 5.0)
            crowd.say(2, 7.0)
            assert takeovers(crowd.all()) == [(2, fork.trial)]


def test_members_that_are_over_are_not_compared_with() -> None:
    crowd = Crowd(3)
    crowd.say(0, 0.0)
    crowd.say(1, 1.0)
    assert takeovers(crowd.all()) == [(1, 0)]
    crowd.end(0, 0.0, None)
    crowd.end(3)
    crowd.say(2, 9.0)
    assert crowd.all() == [Resume(2, 8)]
    crowd.end(2)
    assert crowd.next() == Done()


# ---------------------------------------------------------------------------------------------------- tournament


def test_a_tournament_has_one_rival() -> None:
    """Any other member that was at a rung, each as likely; it is taken over if it is better."""
    rivals: Counter[Any] = Counter()
    for seed in range(300):
        crowd = Crowd(5, seed, exploit="binary_tournament")
        for trial, value in enumerate([4.0, 0.0, 2.0]):
            crowd.say(trial, value)
            crowd.machine._ready.clear()  # they do not move
        crowd.say(3, 3.0)
        rivals[tuple(takeovers(crowd.all()))] += 1
    assert rivals.keys() == {(), ((3, 1),), ((3, 2),)}
    assert all(70 < count < 130 for count in rivals.values()), "a third each: the one in the lead wins nothing"


def test_a_tournament_among_equals_changes_nothing() -> None:
    for seed in range(20):
        crowd = Crowd(4, seed, exploit="binary_tournament")
        for trial in range(4):
            crowd.say(trial, 1.0)
        assert takeovers(crowd.all()) == []


def test_the_best_is_never_taken_over() -> None:
    for exploit in ("truncation", "binary_tournament"):
        for synch in (False, True):
            for seed in range(20):
                crowd = Crowd(6, seed, exploit=exploit, synch=synch, quantile_fraction=0.5)
                for trial, value in enumerate([3, 0, 5, 1, 4, 2]):
                    crowd.say(trial, value)
                assert 1 not in {replaced for replaced, _ in takeovers(crowd.all())}


# ------------------------------------------------------------------------------------------------------ the turns


@pytest.mark.parametrize("synch", [False, True])
@pytest.mark.parametrize(
    ("interval", "burn_in", "rungs"),
    [(4, 0, [4, 8, 12, 16]), (4, 3, [4, 8, 12]), (4, 10, [10, 14, 18]), (1, 0, [1, 2, 3]), (3, 3, [3, 6, 9])],
)
def test_when_members_have_their_turns(interval: int, burn_in: int, rungs: Sequence[int], synch: bool) -> None:
    crowd = Crowd(2, perturbation_interval=interval, burn_in_period=burn_in, synch=synch, quantile_fraction=0.0)
    for rung in rungs:
        assert set(crowd.until.values()) == {rung}
        crowd.say(0, 1.0)
        crowd.say(1, 2.0)
        crowd.all()


@pytest.mark.parametrize(("level", "until"), [(4.0, 8), (4.9, 8), (5.0, 9), (7.99, 11), (8.0, 12), (100.5, 104)])
def test_a_member_that_skipped_a_rung_has_the_next_turn_an_interval_later(level: float, until: int) -> None:
    crowd = Crowd(1)
    crowd.say(0, 1.0, level)
    assert crowd.next() == Resume(0, until)


def test_word_that_comes_twice_is_no_turn() -> None:
    crowd = Crowd(2)
    seen = crowd.seen(0, 1.0)
    crowd.say(0, 1.0)
    assert crowd.machine.judge(seen) == []
    assert crowd.all() == [Resume(0, 8)]
    assert crowd.machine.judge(seen) == []
    assert crowd.all() == []
    assert crowd.machine.judge(replace(seen, trial=99)) == []


def test_a_report_without_a_value_is_the_end() -> None:
    crowd = Crowd(2, synch=True)
    crowd.say(0, 1.0)
    assert crowd.machine.judge(crowd.seen(1, None)) == [Stop(1, Why.NO_VALUE)]
    assert crowd.all() == [Resume(0, 8)]


# ------------------------------------------------------------------------------------- fewer slots than members


def test_who_has_come_least_far_is_next() -> None:
    crowd = Crowd(4, quantile_fraction=0.0)
    for trial, level in [(2, 30.0), (1, 4.0), (3, 9.5), (0, 4.5)]:
        crowd.say(trial, 1.0, level)
    assert crowd.next() == Resume(1, 8)
    crowd.say(1, 1.0)  # at 8: farther than 0, but not than 3
    assert crowd.next() == Resume(0, 8)
    assert [action.trial for action in crowd.all() if isinstance(action, Resume)] == [1, 3, 2]


@pytest.mark.parametrize("synch", [False, True])
@pytest.mark.parametrize("slots", [1, 2, 3, 5, 8])
def test_no_member_is_left_behind(slots: int, synch: bool) -> None:
    """With leases that take as long as each other, members are never farther apart than one interval and the lease
    that runs, however few slots there are."""
    chance = random.Random(slots)
    crowd = Crowd(0, close=False, synch=synch)
    leases: deque[tuple[int, int]] = deque()  # trial, member
    members: dict[int, int] = {}  # trial -> member
    levels = dict.fromkeys(range(8), 0.0)
    for _ in range(400):
        while len(leases) < slots and not isinstance(action := crowd.next(), Wait):
            match action:
                case Start(trial):
                    members[trial] = trial
                    crowd.configs[trial] = {"x": 1.0}
                    if trial == 7:
                        crowd.machine.close()
                case Fork(trial, _, _, _, replaces):
                    assert replaces is not None
                    members[trial] = members.pop(replaces)
            leases.append((action.trial, members[action.trial]))  # type: ignore[union-attr]
        trial, member = leases.popleft()
        levels[member] = crowd.until[trial]
        crowd.say(trial, chance.random())
        assert max(levels.values()) - min(levels.values()) <= 2 * 4
    assert min(levels.values()) > 150


def test_a_source_that_has_run_on_is_taken_over_where_it_is_now() -> None:
    crowd = Crowd(2)
    crowd.say(0, 0.0)
    assert crowd.next() == Resume(0, 8)
    crowd.say(1, 9.0)  # it is to take over trial 0, and waits for a slot
    crowd.say(0, 1.0)
    assert crowd.next() == Fork(2, 0, {"x": 2.0}, 12, replaces=1), "from where trial 0 was at 8"


def test_a_source_that_is_gone_is_taken_over_by_nobody() -> None:
    crowd = Crowd(2)
    crowd.say(0, 0.0)
    crowd.say(1, 9.0)
    assert crowd.next() == Resume(0, 8)
    crowd.end(0)
    assert crowd.next() == Resume(1, 8)


@pytest.mark.parametrize("again", [False, True], ids=["on its way", "at its next rung"])
def test_a_source_that_was_itself_taken_over_is_taken_over_by_nobody(again: bool) -> None:
    """What it is now is not what was better."""
    crowd = Crowd(3, quantile_fraction=0.25)
    crowd.say(0, 0.0)
    assert crowd.next() == Resume(0, 8)
    crowd.say(1, 9.0, 40.0)  # to take over 0; it has come far, and waits for long
    crowd.say(2, 1.0, 4.5)
    crowd.say(0, 10.0, 8.0)  # to take over 2
    assert crowd.next() == Resume(2, 8)
    assert crowd.next() == Fork(3, 2, {"x": 6.0}, 8, replaces=0)
    if again:
        crowd.say(3, 8.5)
        assert crowd.next() == Resume(3, 12)
    assert crowd.next() == Resume(1, 44)


# --------------------------------------------------------------------------------------------- no source to fork


def test_a_member_whose_source_saved_nothing_goes_on_as_it_was() -> None:
    crowd = Crowd(3)
    crowd.say(0, 0.0)
    crowd.say(1, 9.0)
    assert crowd.next() == Resume(0, 8)
    fork = crowd.next()
    assert fork == Fork(3, 0, {"x": 2.0}, 8, replaces=1)
    crowd.lacks_source(fork)
    assert crowd.next() == Resume(1, 8)
    crowd.say(1, 9.0)  # at its next turn it tries again
    fork = crowd.next()
    assert fork == Fork(4, 0, {"x": 2.0}, 8, replaces=1), "the source is still on its way to 8"
    crowd.say(4, 9.0)
    assert takeovers([crowd.next()]) == [(4, 0)]


def test_a_member_whose_source_saved_nothing_may_be_taken_over_itself() -> None:
    found = set()
    for seed in range(20):
        crowd = Crowd(4, seed, quantile_fraction=0.5)
        for trial in range(4):
            crowd.say(trial, float(trial))
        assert crowd.next() == Resume(0, 8)
        fork = crowd.next()
        assert takeovers([fork]) == [(1, 0)]
        crowd.lacks_source(fork)
        assert crowd.next() == Resume(1, 8)
        found.update(takeovers(crowd.all()))
    assert found == {(2, 0), (3, 0), (3, 1)}


def test_in_step_a_member_whose_source_saved_nothing_is_waited_for() -> None:
    crowd = Crowd(4, synch=True)
    for trial, value in enumerate([0.0, 1.0, 2.0, 3.0]):
        crowd.say(trial, value)
    fork = crowd.next()
    assert takeovers([fork]) == [(3, 0)]
    crowd.lacks_source(fork)
    assert crowd.all() == [Resume(0, 8), Resume(1, 8), Resume(2, 8), Resume(3, 8)]
    for trial in (0, 1, 2):
        crowd.say(trial, float(trial))
        assert crowd.next() == Wait()
    crowd.say(3, 3.0)
    assert takeovers(crowd.all()) == [(3, 0)]


def test_a_fork_that_fails_by_itself_is_the_end_of_its_member() -> None:
    for failure, value in ((Failure.ERROR, None), (None, 0.5)):
        crowd = Crowd(2)
        crowd.say(0, 0.0)
        crowd.say(1, 9.0)
        assert crowd.next() == Resume(0, 8)
        assert takeovers([crowd.next()]) == [(1, 0)]
        crowd.end(2, value, failure)  # at once: there was no slot in between
        assert crowd.all() == []
        crowd.end(0, 0.0, None)
        assert crowd.next() == Done()


# ------------------------------------------------------------------------------------------------------ in step


def test_in_step_all_meet_before_any_goes_on() -> None:
    crowd = Crowd(8, synch=True)
    for trial, value in enumerate([3, 7, 1, 0, 5, 6, 4, 2]):
        assert crowd.next() == Wait()
        crowd.say(trial, value)
    actions = crowd.all()
    forks, others = actions[:2], actions[2:]
    assert [replaced for replaced, _ in takeovers(forks)] == [1, 5], "the worst first"
    assert {source for _, source in takeovers(forks)} <= {3, 2}
    assert others == [Resume(trial, 8) for trial in (0, 2, 3, 4, 6, 7)], "then the others, in order"
    assert [each.until for each in forks if isinstance(each, Fork)] == [8, 8]


def test_in_step_nobody_is_a_source_that_has_moved_on() -> None:
    """In a tournament one may be taken over and take over: whoever takes it over goes first."""
    chained = 0
    for seed in range(60):
        crowd = Crowd(6, seed, synch=True, exploit="binary_tournament")
        for trial, value in enumerate([3, 0, 5, 1, 4, 2]):
            crowd.say(trial, value)
        gone: set[int] = set()
        pairs = takeovers(crowd.all())
        for replaced, source in pairs:
            assert source not in gone
            assert replaced is not None
            gone.add(replaced)
        chained += bool({replaced for replaced, _ in pairs} & {source for _, source in pairs})
    assert chained > 20


@pytest.mark.parametrize(
    ("levels", "rung"),
    [([4, 4, 4], 8), ([4, 5, 7.9], 8), ([4, 8, 4], 12), ([4, 8.5, 4], 12), ([4, 19, 12], 20), ([4, 20, 4], 24)],
)
def test_in_step_all_meet_beyond_who_has_come_farthest(levels: Sequence[float], rung: int) -> None:
    crowd = Crowd(3, synch=True, quantile_fraction=0.5)
    for trial, level in enumerate(levels):
        crowd.say(trial, float(trial), level)
    actions = crowd.all()
    assert takeovers(actions) == [(2, 0)]
    assert {action.until for action in actions if isinstance(action, Fork | Resume)} == {rung}


@pytest.mark.parametrize("how", ["fails", "returns", "ends at its rung"])
def test_in_step_a_member_that_ends_is_not_waited_for(how: str) -> None:
    crowd = Crowd(3, synch=True)
    crowd.say(0, 2.0)
    crowd.say(1, 1.0)
    assert crowd.next() == Wait()
    crowd.end(2, None if how == "fails" else 0.0, Failure.ERROR if how == "fails" else None)
    assert takeovers(crowd.all()) == [(0, 1)]


def test_in_step_a_member_that_ends_while_it_waits() -> None:
    """By somebody else's wish; whoever was to take it over goes on as it was."""
    crowd = Crowd(3, synch=True)
    crowd.say(0, 2.0)
    crowd.end(0)
    crowd.say(1, 0.0)
    crowd.say(2, 1.0)
    crowd.end(1)
    assert crowd.all() == [Resume(2, 8)]
    crowd.end(2)
    assert crowd.next() == Done()


def test_in_step_all_may_end() -> None:
    crowd = Crowd(3, synch=True)
    for trial in range(3):
        assert crowd.next() == Wait()
        crowd.end(trial)
    assert crowd.next() == Done()


def test_in_step_with_one_slot() -> None:
    crowd = Crowd(0, close=False, synch=True)
    for trial in range(4):
        assert crowd.next() == Start(trial, 4), "those that are yet to start do so first"
        crowd.configs[trial] = {"x": 1.0}
        crowd.say(trial, float(trial))
    crowd.machine.close()
    for rung in (8, 12, 16):
        first = crowd.next()
        assert isinstance(first, Fork)
        assert first.until == rung
        crowd.say(first.trial, 9.0)
        for trial in range(3):
            assert crowd.next() == Resume(trial, rung)
            crowd.say(trial, float(trial))


def test_in_step_nobody_meets_before_all_have_started() -> None:
    crowd = Crowd(2, close=False, synch=True)
    crowd.say(0, 0.0)
    crowd.say(1, 1.0)
    assert crowd.next() == Start(2, 4)
    crowd.configs[2] = {"x": 1.0}
    crowd.machine.close()
    assert crowd.next() == Wait()
    crowd.say(2, 2.0)
    assert takeovers(crowd.all()) == [(2, 0)]


# ---------------------------------------------------------------------------------------------- numbers, and the end


@pytest.mark.parametrize("synch", [False, True])
def test_members_that_were_not_served_are_gone(synch: bool) -> None:
    crowd = Crowd(4, close=False, synch=synch)
    crowd.say(0, 0.0)
    crowd.say(1, 1.0)
    assert crowd.machine.close([2]) == []
    assert crowd.machine.close([3]) == []
    assert crowd.machine.close([3, 77]) == [], "once more"
    assert takeovers(crowd.all()) == [(1, 0)]
    assert not {2, 3} & {trial for trial in crowd.until if trial < 2}

    crowd = Crowd(2, close=False, synch=synch)
    crowd.machine.close([0, 1])
    assert crowd.next() == Done()


def test_trials_are_numbered_as_they_come() -> None:
    crowd = Crowd(6, quantile_fraction=0.5)
    numbers = list(range(6))
    chance = random.Random(0)
    for _ in range(60):
        trial = chance.choice(sorted(crowd.until))
        crowd.say(trial, chance.random())
        numbers += [action.trial for action in crowd.all() if isinstance(action, Fork)]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) > 20
    assert len(crowd.until) == 6


def test_chance_is_the_seeds() -> None:
    def life(seed: int) -> list[Action]:
        crowd = Crowd(6, seed, quantile_fraction=0.5, resample_probability=0.5)
        chance = random.Random(0)
        actions = []
        for _ in range(30):
            crowd.say(chance.choice(sorted(crowd.until)), chance.random())
            actions += crowd.all()
        return actions

    assert life(1) == life(1)
    assert life(1) != life(2)


# ------------------------------------------------------------------------------------------------- at the door


@pytest.mark.parametrize(
    ("wrong", "kind", "message"),
    [
        ({"mode": "best"}, ValueError, "mode='best': expected 'min', 'max', or None"),
        ({"time_attr": ""}, ValueError, "time_attr='': expected the name of a metric"),
        ({"time_attr": None}, ValueError, "time_attr=None: expected the name of a metric"),
        ({"perturbation_interval": 0}, ValueError, "perturbation_interval=0: expected a whole number from 1"),
        ({"perturbation_interval": 1.5}, ValueError, "perturbation_interval=1.5: expected a whole number from 1"),
        ({"perturbation_interval": "5"}, ValueError, "perturbation_interval='5': expected a whole number"),
        ({"burn_in_period": -1}, ValueError, "burn_in_period=-1: expected a whole number from 0"),
        ({"burn_in_period": float("nan")}, ValueError, "burn_in_period=nan: expected a whole number"),
        ({"quantile_fraction": 0.6}, ValueError, "quantile_fraction=0.6: expected a number from 0 to 0.5"),
        ({"quantile_fraction": -0.1}, ValueError, "quantile_fraction=-0.1: expected a number from 0 to 0.5"),
        ({"quantile_fraction": float("nan")}, ValueError, "quantile_fraction=nan: expected a number from 0 to 0.5"),
        ({"quantile_fraction": "some"}, ValueError, "quantile_fraction='some': expected a number from 0 to 0.5"),
        ({"quantile_fraction": True}, ValueError, "quantile_fraction=True: expected a number"),
        ({"resample_probability": 1.1}, ValueError, "resample_probability=1.1: expected a number from 0 to 1"),
        ({"resample_probability": None}, ValueError, "resample_probability=None: expected a number from 0 to 1"),
        ({"resample_probability": True}, ValueError, "resample_probability=True: expected a number from 0 to 1"),
        ({"perturbation_factors": ()}, ValueError, r"perturbation_factors=\(\): expected numbers above 0"),
        ({"perturbation_factors": (1.2, 0.0)}, ValueError, "expected numbers above 0, such as"),
        ({"perturbation_factors": (float("nan"),)}, ValueError, r"perturbation_factors=\(nan,\): expected numbers"),
        ({"perturbation_factors": (float("inf"),)}, ValueError, "expected numbers above 0, such as"),
        ({"perturbation_factors": 1.2}, ValueError, "perturbation_factors=1.2: expected numbers above 0"),
        ({"perturbation_factors": "12"}, ValueError, "perturbation_factors='12': expected numbers above 0"),
        ({"perturbation_factors": {"x": 1.2}}, ValueError, "perturbation_factors='x': 1.2: expected numbers above 0"),
        ({"perturbation_factors": {"x": {"x": (1.2,)}}}, ValueError, "perturbation_factors='x': .* expected numbers"),
        ({"perturbation_factors": {"y": (1.2,)}}, ValueError, "perturbation_factors: 'y' is no number of hyperparam"),
        ({"custom_explore_fn": 3}, TypeError, "custom_explore_fn=3: expected a function of a configuration"),
        ({"hyperparam_mutations": None}, ValueError, "hyperparam_mutations or custom_explore_fn must be given"),
        ({"hyperparam_mutations": {}}, ValueError, "hyperparam_mutations or custom_explore_fn must be given"),
        ({"hyperparam_mutations": [1, 2]}, TypeError, r"hyperparam_mutations=\[1, 2\]: expected a dict"),
        ({"hyperparam_mutations": {"lr": 3}}, TypeError, "hyperparam_mutations: 'lr' is 3; expected a domain"),
        ({"log_config": False}, ValueError, "log_config=False: only True is supported"),
        ({"require_attrs": False}, ValueError, "require_attrs=False: only True is supported"),
        ({"synch": 1}, ValueError, "synch=1: expected True or False"),
        ({"exploit": "best"}, ValueError, "exploit='best': expected one of 'truncation', 'binary_tournament'"),
    ],
)
def test_wrong_settings_are_named(wrong: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        pbt(**wrong)


def test_settings_as_rays_users_write_them() -> None:
    policy = pbt(perturbation_interval=5.0, burn_in_period=2.0, perturbation_factors=[1.5, 0.5], quantile_fraction=0)
    assert (policy.perturbation_interval, policy.burn_in_period) == (5, 2)
    assert type(policy.perturbation_interval) is type(policy.burn_in_period) is int
    assert policy.perturbation_factors == (1.5, 0.5)
    assert PopulationBasedTraining(custom_explore_fn=dict).mutations == {}


def test_code_in_the_settings_cannot_be_read_back() -> None:
    def custom(config: dict[str, Any]) -> dict[str, Any]:
        return config

    policy = pbt(custom_explore_fn=custom)
    described = json.loads(json.dumps(policy.to_json()))
    assert described["custom_explore_fn"] == "test_code_in_the_settings_cannot_be_read_back.<locals>.custom"
    with pytest.raises(ValueError, match=r"custom_explore_fn is code \(test_code_.*custom\)"):
        PopulationBasedTraining.from_json(described)
    policy = pbt(hyperparam_mutations={"x": uniform(0, 1), "n": {"y": random.random}})
    with pytest.raises(ValueError, match="sample_from"):
        PopulationBasedTraining.from_json(json.loads(json.dumps(policy.to_json())))
    policy = pbt(hyperparam_mutations={"x": loguniform(1e-3, 1), "n": {"y": [1, (2, 3)]}})
    assert PopulationBasedTraining.from_json(json.loads(json.dumps(policy.to_json()))) == policy


def test_as_in_ray(tmp_path: Path) -> None:
    """Names, defaults, how many are taken over, and what a policy file says: against Ray itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.tune import schedulers as rays

    for ours, theirs in (
        (PopulationBasedTraining, rays.PopulationBasedTraining),
        (PopulationBasedTrainingReplay, rays.PopulationBasedTrainingReplay),
    ):
        own = {each.name: each for each in fields(ours)}
        for name, parameter in list(inspect.signature(theirs.__init__).parameters.items())[1:]:
            assert name in own, f"{ours.__name__} lacks {name}"
            if parameter.default is not inspect.Parameter.empty:
                assert own[name].default == parameter.default, name

    for members in range(41):
        for fraction in (0.0, 0.1, 0.2, 0.25, 0.3, 0.5):
            trials = [SimpleNamespace(is_finished=lambda: False, number=number) for number in range(members)]
            states = dict(zip(map(id, trials), range(members), strict=True))
            standing = SimpleNamespace(_quantile_fraction=fraction, _trial_state=_ById(trials, states))
            lower, upper = rays.PopulationBasedTraining._quantiles(standing)
            assert len(lower) == len(upper) == quantile_size(members, fraction)

    rows = [
        ["0@a", "1@a", 6, 4, {"lr": 0.1}, {"lr": 0.2}],  # it was overwritten by what follows
        ["2", "1", 4, 4, {"lr": 0.3}, {"lr": 0.36}],
        ["0", "2", 8, 9, {"lr": 0.36}, {"lr": 0.4}],
    ]
    path = tmp_path / "pbt_policy_00000.txt"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    theirs = rays.PopulationBasedTrainingReplay(str(path))
    ours = PopulationBasedTrainingReplay(path)
    assert ours.schedule == ((0, theirs.config), *theirs._policy)
    assert ours.schedule == ((0, {"lr": 0.3}), (4, {"lr": 0.36}), (9, {"lr": 0.4}))


class _ById(dict[Any, Any]):
    """Ray's dict of trials and their states, for trials that have no hash."""

    def __init__(self, trials: Sequence[Any], scores: Mapping[int, float]) -> None:
        self._trials, self._scores = trials, scores

    def items(self) -> Any:
        return [(trial, self[trial]) for trial in self._trials]

    def __getitem__(self, trial: Any) -> Any:
        return SimpleNamespace(last_score=self._scores[id(trial)])


# ------------------------------------------------------------------------------------------------ whole studies


INSIDE = {"x": uniform(0.0, 1.0)}


@dataclass
class Record:
    """A study's rows, in memory."""

    kept: list[Row] = field(default_factory=list)

    def rows(self) -> list[Row]:
        return []

    def last_steps(self) -> dict[int, int]:
        return {}

    def commit(self, rows: Sequence[Row], reports: Sequence[Reports]) -> None:
        self.kept += rows


def run(
    policy: SchedulingPolicy,
    workload: Workload,
    *,
    members: int = 8,
    slots: int = 3,
    seed: int = 0,
    keep: int | None = 1,
) -> tuple[Study, list[Row], World]:
    """A whole study in the simulator, which refuses a lease that begins from a checkpoint that is not there."""
    world, record = World(), Record()
    study = Study(Objective("loss"), policy.build(seed), members, Retries(1), CheckpointConfig(num_to_keep=keep))
    simulation = Simulation(world, workload, slots)
    searcher = RandomSearch().build(Space(INSIDE), seed)
    finish = Driver(study, searcher, record, world, simulation).run(simulation)
    assert finish.complete
    return study, record.kept, world


def bowl(**settings: Any) -> Workload:
    """The nearer x is to 0.5 and the longer it trains the better; members take different times for a step."""

    def curve(trial: Trial, step: int) -> dict[str, Any]:
        return {"loss": (trial.config["x"] - 0.5) ** 2 + 1 / step}

    return Workload(curve=curve, seconds=lambda trial, step: 1.0 + (trial.id * 5 + step) % 7 / 7, length=24, **settings)


VARIANTS = {
    "truncation": {},
    "half": {"quantile_fraction": 0.5},
    "tournament": {"exploit": "binary_tournament"},
    "synch": {"synch": True},
    "synch half": {"synch": True, "quantile_fraction": 0.5},
    "synch tournament": {"synch": True, "exploit": "binary_tournament"},
}


@pytest.mark.parametrize("slots", [1, 3, 8])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_fork_begins_where_its_source_was_judged(variant: str, slots: int) -> None:
    """Only the newest checkpoint of each trial is kept, and it saves where its leases end: what a fork begins from is
    there all the same, and it is that of its source's last rung."""
    study, rows, world = run(pbt(**VARIANTS[variant], hyperparam_mutations=INSIDE), bowl(), slots=slots)
    first: dict[int, Lease] = {}
    for lease, begun in world.leases:
        first.setdefault(lease.trial.id, lease)
        assert begun == (lease.checkpoint or 0) or lease.attempt > 1
    rungs: dict[int, int] = {}
    replaced: set[int] = set()
    meetings = []
    for row in rows:
        match row:
            case Ended(trial=trial, how=How.REACHED, step=step):
                rungs[trial] = step
            case Fork(trial, source, config, until, replaces):
                lease = first[trial]
                assert (lease.donor, lease.checkpoint) == (source, rungs[source])
                assert source not in replaced
                assert lease.trial == Trial(trial, config, source)
                assert replaces is not None
                replaced.add(replaces)
                meetings.append((until, rungs[source]))
    assert len(meetings) >= 4, "members fork"
    assert all(
        entry.state is (State.STOPPED if trial in replaced else State.DONE) for trial, entry in study.ledger.items()
    )
    assert len(study.ledger) - len(replaced) == 8, "each member has one trial that came to the end"
    assert len(world.checkpoints) == 8, "one of each member"
    if "synch" in variant:
        assert {until - rung for until, rung in meetings} == {4}, "all forks of a generation begin where all met"


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_trial_that_never_saves_is_never_a_source(variant: str) -> None:
    """Members go on as they were; each attempt to take one over is in the record."""
    policy = pbt(**VARIANTS[variant], hyperparam_mutations=INSIDE)
    _, rows, world = run(policy, bowl(saves_at_end=False))
    forks = [row.trial for row in rows if isinstance(row, Fork)]
    over = {row.trial: row.why for row in rows if isinstance(row, Over)}
    assert len(forks) >= 4
    assert {over[trial] for trial in forks} == {Why.NO_SOURCE}
    assert {over[trial] for trial in over.keys() - set(forks)} == {Why.RETURNED}
    assert len(over) - len(forks) == 8
    assert not world.checkpoints


def test_intervals_of_another_measure_of_progress() -> None:
    """A step takes 2.5 of them: members have a turn at the first report at or beyond each tenth."""
    policy = pbt(time_attr="samples", perturbation_interval=10, quantile_fraction=0.5, hyperparam_mutations=INSIDE)
    _, rows, world = run(policy, bowl(level=lambda trial, step, metrics: 2.5 * step))
    began = {lease.trial.id: lease.checkpoint for lease, _ in reversed(world.leases)}
    forks = [row for row in rows if isinstance(row, Fork)]
    assert {(began[fork.trial], fork.until) for fork in forks} <= {
        (step, 5 * step // 2 + 10) for step in range(4, 25, 4)
    }
    assert len({began[fork.trial] for fork in forks}) >= 3


def test_explored_configurations_lead_somewhere() -> None:
    """The population gathers where it is good: what members end with is nearer to it than what they began with."""
    better = 0
    for seed in range(10):
        study, _, _ = run(pbt(hyperparam_mutations=INSIDE, perturbation_factors=(1.2, 0.8)), bowl(), seed=seed)
        last = [abs(e.trial.config["x"] - 0.5) for e in study.ledger.values() if e.state is State.DONE]
        first = [abs(study.ledger[trial].trial.config["x"] - 0.5) for trial in range(8)]
        better += sum(last) < sum(first)
    assert better == 10


# ----------------------------------------------------------------------------- drivers that die in mid-generation


BUSY = {"perturbation_interval": 2, "quantile_fraction": 0.5, "hyperparam_mutations": SPACE}


@pytest.mark.parametrize("slots", [2, 5])
@pytest.mark.parametrize(
    "settings",
    [{}, {"exploit": "binary_tournament"}, {"synch": True}, {"synch": True, "exploit": "binary_tournament"}],
    ids=["async", "tournament", "synch", "synch tournament"],
)
def test_an_interrupted_population_takes_the_same_decisions(
    settings: dict[str, Any], slots: int, fast_path: Path, fate: Any
) -> None:
    """As in `test_replay`; here members have seven turns each, and half of them fork."""
    policy = PopulationBasedTraining(time_attr="training_iteration", **{**BUSY, **settings})
    case = Case(RandomSearch(), policy, SPACE, trials=8, slots=slots, checkpoint_config=CheckpointConfig(num_to_keep=1))
    found, _ = live_through(case, fast_path / "look", fate, gap=None)
    assert sum(isinstance(row, Fork) for row in found) >= 10
    check(case, fast_path, fate, 30)


@pytest.mark.parametrize("synch", [False, True])
def test_an_interrupted_population_that_saves_seldom(synch: bool, fast_path: Path, fate: Any) -> None:
    """Some sources have no checkpoint, some an older one. With one slot the order is fixed all the same."""

    class Seldom(Case):
        def workload(self) -> Workload:
            return replace(super().workload(), saves_at_end=False)

    policy = PopulationBasedTraining(time_attr="training_iteration", synch=synch, **BUSY)
    case = Seldom(RandomSearch(), policy, SPACE, trials=6, slots=1)
    found, _ = live_through(case, fast_path / "look", fate, gap=None)
    over = Counter(row.why for row in found if isinstance(row, Over))
    assert min(over[Why.NO_SOURCE], over[Why.REPLACED]) >= 2
    check(case, fast_path, fate, 30)


# ----------------------------------------------------------------------------------------------- the paper's toy


@dataclass
class Pair:
    """The two configurations of a grid of the paper's; they are the ones that its population starts with."""

    def ask(self, trial: int, until: int, pending: Sequence[Pending]) -> Proposal:
        return Proposal({"h0": 1.0 - trial, "h1": 0.0 + trial})

    def tell(self, seen: Observation) -> None: ...

    def recall(self, *recorded: Any) -> None: ...


STEPS, RATE, BEGIN = 200, 0.02, (0.9, 0.9)


class Ascent(Simulation):
    """Section 4.3: each step is one of gradient ascent on the surrogate 1.2 - (h0 θ0² + h1 θ1²); what it is judged by
    is Q(θ) = 1.2 - (θ0² + θ1²). A fork goes on from its source's θ."""

    def __init__(self, world: World) -> None:
        self.weights: dict[tuple[int, int], tuple[float, float]] = {}
        super().__init__(world, Workload(curve=self._curve, length=STEPS), slots=2)

    def run(self, lease: Lease) -> None:
        if lease.checkpoint is not None:
            self.weights[lease.trial.id, lease.checkpoint] = self.weights[lease.donor, lease.checkpoint]
        super().run(lease)

    def _curve(self, trial: Trial, step: int) -> dict[str, Any]:
        here = trial.id, step
        if here not in self.weights:
            before = self.weights.get((trial.id, step - 1), BEGIN)
            h = trial.config["h0"], trial.config["h1"]
            self.weights[here] = tuple(x - RATE * 2 * each * x for x, each in zip(before, h, strict=True))  # type: ignore[assignment]
        return {"Q": 1.2 - sum(x * x for x in self.weights[here])}


def climb(policy: SchedulingPolicy, seed: int) -> float:
    """The best Q after the last step."""
    world = World()
    ascent = Ascent(world)
    study = Study(Objective("Q", "max"), policy.build(seed), 2, Retries(), CheckpointConfig(num_to_keep=1))
    Driver(study, Pair(), Record(), world, ascent).run(ascent)
    return max(1.2 - sum(x * x for x in at) for (_, step), at in ascent.weights.items() if step == STEPS)


@pytest.mark.parametrize("synch", [False, True])
def test_the_papers_toy(synch: bool) -> None:
    """A grid leaves one of the weights where it began, PBT comes to the top (Jaderberg et al. 2017, figure 2).

    A population of two, with a turn every 2 of 200 steps; all else, probabilities and factors, are the defaults. Chosen
    on other seeds, 1000 to 1199, and confirmed on 5000 to 5399: there 400 of 400 came to 1.19, with and without synch.
    (Every 4 steps without synch, 195 of 200 do. In a tournament these two would for ever be equals.)
    """
    assert climb(FIFOScheduler(), 0) < 0.5
    policy = PopulationBasedTraining(
        time_attr="training_iteration",
        perturbation_interval=2,
        hyperparam_mutations={"h0": uniform(0.0, 1.0), "h1": uniform(0.0, 1.0)},
        synch=synch,
    )
    reached = [climb(policy, seed) for seed in range(20)]
    assert min(reached) >= 1.19, sorted(reached)[:3]


@pytest.mark.parametrize("scheduler", ["pbt", "pb2", "median", "resources"])
def test_forks_meet_the_constraints(scheduler: str) -> None:
    domains = {"x": uniform(0.0, 1.0), "y": uniform(0.0, 1.0)}
    settings: dict[str, Any] = {"time_attr": "training_iteration", "perturbation_interval": 3}
    population: Any = PopulationBasedTraining(**settings, hyperparam_mutations=domains)
    match scheduler:
        case "pb2":
            population = PB2(**settings, hyperparam_bounds=domains)
        case "median":
            population = MedianStoppingRule("training_iteration", grace_period=100, scheduler=population)
        case "resources":
            population = ResourceChangingScheduler(population)
    forecast = tune.simulate(
        domains,
        curve=lambda config, step: {"loss": config["x"] / step},
        workers=3,
        steps=30,
        tune_config=tune.TuneConfig(
            metric="loss",
            mode="min",
            num_samples=5,
            scheduler=population,
            constraints=[lambda c: c["x"] + c["y"] < 0.7],
        ),
    )
    assert len(forecast.configs) > 8
    assert all(config["x"] + config["y"] < 0.7 for config in forecast.configs.values())


def test_a_fork_that_finds_nothing_feasible_keeps_its_sources_configuration() -> None:
    forecast = tune.simulate(
        {"x": choice([0.25, 0.5, 0.75])},
        curve=lambda config, step: {"loss": config["x"] / step},
        workers=4,
        steps=30,
        tune_config=tune.TuneConfig(
            metric="loss",
            mode="min",
            num_samples=4,
            scheduler=pbt(hyperparam_mutations={"x": uniform(0.0, 1.0)}, perturbation_factors=(1.1,)),
            constraints=[lambda c: c["x"] in (0.25, 0.5, 0.75)],
        ),
    )
    assert len(forecast.configs) > 4
    assert {config["x"] for config in forecast.configs.values()} <= {0.25, 0.5, 0.75}
