"""Who the median stopping rule stops: against tables, and around other schedulers against its definition by hand."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raytuner.actions import Action, Done, Resume, Start, Stop, Wait
from raytuner.protocols import Scheduler, SchedulingPolicy
from raytuner.schedulers import (
    SCHEDULERS,
    AsyncHyperBandScheduler,
    FIFOScheduler,
    HyperBandScheduler,
    PopulationBasedTraining,
)
from raytuner.schedulers.median_stopping import LevelCurves, MedianStoppingRule, StepCurves
from raytuner.trial import END, Observation, Why

INNER: dict[str, SchedulingPolicy] = {
    "fifo": FIFOScheduler(),
    "hyperband": HyperBandScheduler(max_t=9),
    "asha": AsyncHyperBandScheduler(max_t=9, reduction_factor=3),
    "asha promotion": AsyncHyperBandScheduler(max_t=9, reduction_factor=3, promotion=True),
    "median": MedianStoppingRule(time_attr="training_iteration", grace_period=6, min_samples_required=5),
}


def rule(**settings: Any) -> MedianStoppingRule:
    return MedianStoppingRule(**{"time_attr": "training_iteration", "grace_period": 1, **settings})


def said(
    trial: int,
    step: int,
    value: float | None,
    *,
    level: float | None = None,
    until: int = END,
    running: bool = True,
    ended: bool = False,
) -> Observation:
    level = step if level is None else level
    return Observation(trial, {}, step, level, until, value, running=running, ended=ended)


def started(policy: SchedulingPolicy, trials: int) -> Scheduler:
    scheduler = policy.build(seed=0)
    for trial in range(trials):
        assert isinstance(scheduler.next(), Start), trial
    return scheduler


def tell(scheduler: Scheduler, trial: int, values: Sequence[float], first: int = 1) -> list[Stop]:
    """A running trial reports these, step by step."""
    return [stop for step, value in enumerate(values, first) for stop in scheduler.judge(said(trial, step, value))]


# --------------------------------------------------------------------------------------------------------- the rule


@pytest.mark.parametrize("time_attr", ["training_iteration", "epoch"])
@pytest.mark.parametrize(
    ("others", "own", "stopped_at"),
    [
        ([[1, 1], [2, 2], [3, 3]], [9], 1),
        ([[1, 1], [2, 2], [3, 3]], [2, 2], None),  # strictly worse
        ([[1, 1], [2, 2], [3, 3]], [2, 9, 9], None),  # its best counts; at step 3 there is nobody else
        ([[9, 1], [9, 3], [9, 5]], [9, 6.5], 2),  # their averages count, 5 6 7, not what they say now
        ([[9, 1], [9, 3], [9, 5]], [9, 5.5], None),
        ([[5], [3], [2], [1]], [2.6], 1),  # of four, the middle of the two in the middle: 2.5
        ([[5], [3], [2], [1]], [2.5], None),
        ([[1, 1], [2, 2]], [9, 9], None),  # too few
        ([[1, 1], [2, 2], [3]], [1, 9, 9], None),
    ],
)
def test_who_is_stopped(time_attr: str, others: list[list[float]], own: list[float], stopped_at: int | None) -> None:
    scheduler = started(rule(time_attr=time_attr), len(others) + 1)
    for trial, values in enumerate(others, 1):
        assert tell(scheduler, trial, values) == []
    for step, value in enumerate(own, 1):
        verdict = scheduler.judge(said(0, step, value))
        assert verdict == ([Stop(0, Why.NO_PROMISE)] if step == stopped_at else [])


def test_before_the_grace_period_nothing_counts_but_the_best() -> None:
    scheduler = started(rule(grace_period=3), 5)
    for trial in (1, 2, 3):
        assert tell(scheduler, trial, [100, 100, 4]) == []
    assert tell(scheduler, 0, [500, 500, 4]) == []
    assert tell(scheduler, 4, [500, 3, 500]) == []
    assert tell(scheduler, 0, [9], first=4) == []
    scheduler = started(rule(grace_period=3), 4)
    for trial in (1, 2, 3):
        assert tell(scheduler, trial, [100, 100, 4]) == []
    assert tell(scheduler, 0, [50, 50, 5]) == [Stop(0, Why.NO_PROMISE)]


def test_those_count_who_got_as_far_whatever_became_of_them() -> None:
    scheduler = started(rule(time_attr="time_total_s", grace_period=10), 6)

    def at(trial: int, step: int, seconds: float, value: float | None, **how: bool) -> list[Stop]:
        return list(scheduler.judge(said(trial, step, value, level=seconds, **how)))

    for trial, seconds in [(1, [5, 12.5, 30]), (2, [11, 40]), (3, [12, 29.9])]:
        for step, level in enumerate(seconds, 1):
            assert at(trial, step, level, 1.0) == []
    assert at(1, 3, 30, 1.0, running=False, ended=True) == []
    assert at(0, 1, 12, 5.0) == []  # trial 1 has nothing from 10 to 12: only two others
    assert at(4, 1, 30, 5.0) == []  # trial 3 has got to 29.9 only
    assert at(3, 3, 35, None, running=False, ended=True) == []  # a failure is no report
    assert at(4, 2, 31, 5.0) == []
    assert at(5, 1, 12.5, 5.0) == [Stop(5, Why.NO_PROMISE)]
    assert at(0, 2, 12.6, 5.0) == [Stop(0, Why.NO_PROMISE)]  # among those that got there is now trial 4


def test_a_report_without_a_value_counts_nowhere() -> None:
    scheduler = started(rule(), 4)
    for trial in (1, 2, 3):
        assert tell(scheduler, trial, [2, 2, 2]) == []
    assert scheduler.judge(said(0, 1, None)) == []
    assert scheduler.judge(said(0, 2, 9.0)) == [Stop(0, Why.NO_PROMISE)]


def test_what_is_said_again_changes_nothing() -> None:
    scheduler = started(rule(), 5)
    assert tell(scheduler, 0, [9.0]) == []  # nobody else has got there yet
    for trial in (1, 2, 3):
        assert tell(scheduler, trial, [8.0, 2.0, 2.0]) == []
    for running in (True, False):
        assert scheduler.judge(said(0, 1, 9.0, running=running)) == []
        for trial in (1, 2, 3):
            assert scheduler.judge(said(trial, 3, 2.0, running=running)) == []
    assert tell(scheduler, 4, [8.0, 5.0, 4.0]) == []  # their averages are 8, 5 and 4 still
    assert tell(scheduler, 0, [5.0, 4.25], first=2) == [Stop(0, Why.NO_PROMISE)]


def test_a_level_that_falls_counts_as_the_highest_so_far() -> None:
    scheduler = started(rule(time_attr="time_total_s", grace_period=0), 4)
    for trial in (1, 2, 3):
        assert scheduler.judge(said(trial, 1, 1.0, level=50)) == []
        assert scheduler.judge(said(trial, 2, 3.0, level=48)) == []  # it was set back to a checkpoint
    assert scheduler.judge(said(0, 1, 2.25, level=49)) == []  # nobody has anything up to 49
    assert scheduler.judge(said(0, 2, 2.5, level=50)) == [Stop(0, Why.NO_PROMISE)]  # their averages are 2


@given(
    since=st.integers(0, 4),
    reports=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 3), st.integers(-3, 3).map(float)), max_size=60),
)
@settings(deadline=None)
def test_averages_kept_by_step_are_those_looked_up(since: int, reports: list[tuple[int, int, float]]) -> None:
    by_step, by_level = StepCurves(since), LevelCurves(since)
    steps = dict.fromkeys(range(6), 0)
    for trial, ahead, value in reports:
        steps[trial] += ahead
        by_step.add(trial, steps[trial], value)
        by_level.add(trial, steps[trial], value)
        if steps[trial] >= since:
            assert by_step.others(trial, steps[trial]) == by_level.others(trial, steps[trial])


@pytest.mark.parametrize(("time_attr", "trials"), [("training_iteration", 4_000), ("time_total_s", 400)])
def test_many_trials(time_attr: str, trials: int) -> None:
    """By steps, a look at each other trial in each report would take minutes here."""
    scheduler = started(rule(time_attr=time_attr), trials)
    chance = random.Random(0)
    running = list(range(trials))
    for step in range(1, 26):
        for trial in tuple(running):
            seen = said(trial, step, chance.random(), level=step if time_attr == "training_iteration" else None)
            if scheduler.judge(seen):
                running.remove(trial)
    assert 0 < len(running) < trials


# ------------------------------------------------------------------------------------------------ what is inside it


def test_the_scheduler_inside_decides_who_runs() -> None:
    scheduler = started(rule(scheduler=HyperBandScheduler(max_t=9), min_samples_required=99), 9)
    scheduler.close()
    for trial in range(9):
        assert scheduler.judge(said(trial, 1, float(trial), until=1)) == []
    stops = [stop for t in range(9) for stop in scheduler.judge(said(t, 1, float(t), until=1, running=False))]
    assert stops == [Stop(trial, Why.NOT_PROMOTED) for trial in range(3, 9)]
    assert [scheduler.next() for _ in range(4)] == [Resume(0, 3), Resume(1, 3), Resume(2, 3), Wait()]


def test_a_stop_in_mid_lease_may_settle_a_rung() -> None:
    policy = rule(scheduler=HyperBandScheduler(max_t=9), grace_period=2, min_samples_required=2)
    scheduler = started(policy, 9)
    scheduler.close()
    for trial in range(9):
        scheduler.judge(said(trial, 1, float(trial), until=1, running=False))
    assert [scheduler.next() for _ in range(3)] == [Resume(0, 3), Resume(1, 3), Resume(2, 3)]
    for trial in (0, 1):
        assert tell(scheduler, trial, [0.0, float(trial)], first=2) == []
        assert scheduler.judge(said(trial, 3, float(trial), until=3, running=False)) == []
    assert scheduler.judge(said(2, 2, 1.5, until=3)) == [Stop(2, Why.NO_PROMISE), Stop(1, Why.NOT_PROMOTED)]
    assert scheduler.next() == Resume(0, 9)
    for late in (said(1, 3, 9.0, until=3), said(2, 3, 9.0, until=3), said(2, 3, 9.0, until=3, running=False)):
        assert scheduler.judge(late) == []


def test_closing_is_passed_on() -> None:
    scheduler = started(rule(scheduler=HyperBandScheduler(max_t=9), min_samples_required=1), 3)
    scheduler.judge(said(0, 1, 0.0, until=1, running=False))
    scheduler.judge(said(1, 1, 1.0, until=1, running=False))
    assert scheduler.close(unserved=[2]) == [Stop(1, Why.NOT_PROMOTED)]
    assert scheduler.next() == Resume(0, 3)
    assert tell(scheduler, 0, [0.0], first=2) == []
    assert tell(scheduler, 1, [9.0], first=2) == []  # it is gone


def test_what_comes_too_late_counts_nowhere() -> None:
    scheduler = started(rule(min_samples_required=1), 2)
    assert tell(scheduler, 1, [1.0]) == []
    assert tell(scheduler, 0, [9.0]) == [Stop(0, Why.NO_PROMISE)]
    assert tell(scheduler, 0, [-99.0], first=2) == []
    assert tell(scheduler, 1, [1.0], first=2) == []


def test_the_end_of_a_lease_is_left_to_the_scheduler_inside() -> None:
    scheduler = started(rule(min_samples_required=1, scheduler=HyperBandScheduler(max_t=9)), 2)
    assert scheduler.judge(said(1, 1, 1.0, until=1)) == []
    assert scheduler.judge(said(0, 1, 9.0, until=1, running=False)) == []


def test_one_inside_that_judges_every_report_hears_them_all() -> None:
    inner = rule(grace_period=2, min_samples_required=1)
    scheduler = started(rule(scheduler=inner, grace_period=4), 3)
    assert tell(scheduler, 0, [1.0, 1.0]) == []
    assert tell(scheduler, 1, [2.0, 2.0]) == [Stop(1, Why.NO_PROMISE)]
    assert scheduler.judge(said(1, 3, 2.0)) == []
    assert tell(scheduler, 2, [0.5, 0.5, 0.5, 0.5]) == []


def test_forks_of_the_scheduler_inside_are_announced() -> None:
    population = PopulationBasedTraining(time_attr="training_iteration", hyperparam_mutations={"lr": [1, 2]})
    assert rule(scheduler=population).build(seed=0).forks
    assert not rule().build(seed=0).forks


# ---------------------------------------------------------------------------------------------------- whole studies


@dataclass
class Lease:
    until: int
    step: int
    said: Observation | None = None


class Theatre:
    """Plays a study, report by report, and checks each verdict against the rule by brute force."""

    def __init__(self, policy: MedianStoppingRule, seed: int, trials: int) -> None:
        self.policy = policy
        self.scheduler = policy.build(seed)
        self.trials = trials
        self.reports: dict[int, list[tuple[float, float]]] = {}  # (level, value) of each trial
        self.running: dict[int, Lease] = {}
        self.paused: dict[int, Lease] = {}
        self.over: set[int] = set()
        self.started = 0
        self.done = False
        self.log: list[tuple[Observation | str, Any]] = []

    def ask(self) -> bool:
        """Offer a slot; whether it was taken."""
        action: Action = self.scheduler.next()
        self.log.append(("next", action))
        match action:
            case Start(trial, until):
                assert trial == self.started < self.trials
                self.started += 1
                self.running[trial] = Lease(until, 0)
                self.reports[trial] = []
                if self.started == self.trials:
                    self.log.append(("close", self.scheduler.close()))
                    self.obey(self.log[-1][1])
            case Resume(trial, until):
                lease = self.paused.pop(trial)
                assert until > max(lease.until, lease.step)
                self.running[trial] = replace(lease, until=until)
            case Done():
                assert not self.running
                assert not self.paused, "stranded"
                assert self.over == set(range(self.trials))
                self.done = True
            case _:
                assert self.running, "a deadlock"
                return False
        return not self.done

    def report(self, trial: int, value: float | None, returns: bool) -> None:
        """A running trial makes its next report; its lease may end there, by itself or because it ``returns``."""
        lease = self.running[trial]
        lease.step += 1
        seen = said(trial, lease.step, value, until=lease.until)
        if value is not None:
            self.reports[trial].append((seen.level, value))
        stops = self.judge(seen)
        hopeless = value is not None and self.hopeless(trial, seen.level)
        if isinstance(self.policy.scheduler, MedianStoppingRule):  # which has verdicts of its own
            assert trial in self.over or not hopeless
        else:
            assert stops[:1] == ([Stop(trial, Why.NO_PROMISE)] if hopeless else [])
        if trial in self.over or not (returns or lease.step >= lease.until):
            return
        del self.running[trial]
        lease.said = said(trial, lease.step, value, until=lease.until, running=False, ended=returns)
        if returns:
            self.over.add(trial)
        else:
            self.paused[trial] = lease
        self.judge(lease.said)

    def fail(self, trial: int) -> None:
        lease = self.running.pop(trial)
        self.over.add(trial)
        self.judge(said(trial, lease.step, None, until=lease.until, running=False, ended=True))

    def repeat(self, trial: int) -> None:
        """The last thing that a trial said is said again, as a report and as the end of a lease."""
        lease = (self.paused.get(trial) or self.running[trial]).said
        if lease is not None:
            assert self.judge(lease) == self.judge(replace(lease, running=True)) == []

    def judge(self, seen: Observation) -> list[Stop]:
        stops = list(self.scheduler.judge(seen))
        self.log.append((seen, stops))
        self.obey(stops)
        return stops

    def obey(self, stops: Sequence[Stop]) -> None:
        for stop in stops:
            del (self.running if stop.trial in self.running else self.paused)[stop.trial]
            self.over.add(stop.trial)

    def hopeless(self, trial: int, level: float) -> bool:
        since = self.policy.grace_period
        averages = []
        for other, reports in self.reports.items():
            if other != trial and any(at >= level for at, _ in reports):
                window = [value for at, value in reports if since <= at <= level]
                averages += [fmean(window)] if window else []
        enough = level >= since and len(averages) >= self.policy.min_samples_required
        return enough and min(value for _, value in self.reports[trial]) > median(averages)

    def replay(self, seed: int) -> None:
        again = self.policy.build(seed)
        for call, answer in self.log:
            match call:
                case "next":
                    assert again.next() == answer
                case "close":
                    assert again.close() == answer
                case Observation():
                    assert again.judge(call) == answer


@pytest.mark.timeout(600)  # a failure takes minutes to shrink
@pytest.mark.parametrize("name", INNER)
@pytest.mark.parametrize("time_attr", ["training_iteration", "epoch"])
@given(
    seed=st.integers(0, 2**32),
    slots=st.integers(1, 12),
    trials=st.integers(1, 40),
    grace_period=st.integers(0, 4),
    least=st.integers(1, 4),
    trouble=st.sampled_from([0.0, 0.05, 0.3]),
)
@settings(deadline=None)
def test_studies_keep_to_the_rule(
    name: str, time_attr: str, seed: int, slots: int, trials: int, grace_period: int, least: int, trouble: float
) -> None:
    chance = random.Random(seed)
    inner = INNER[name] if name == "fifo" else replace(INNER[name], time_attr=time_attr)  # type: ignore[type-var]
    policy = rule(time_attr=time_attr, grace_period=grace_period, min_samples_required=least, scheduler=inner)
    theatre = Theatre(policy, seed, trials)
    lengths = [chance.randint(1, 15) for _ in range(trials)]
    while not theatre.done:
        while len(theatre.running) < slots and chance.random() < 0.9 and theatre.ask():
            pass
        if not theatre.running:
            continue
        trial = chance.choice(sorted(theatre.running))
        match chance.randrange(3) if chance.random() < trouble else None:
            case 0:
                theatre.fail(trial)
            case 1:
                theatre.report(trial, None, returns=False)
            case 2:
                theatre.repeat(chance.choice(sorted({**theatre.running, **theatre.paused})))
            case _:
                value = chance.randrange(8) / 4 + trial % 3  # sums of these are exact
                theatre.report(trial, value, returns=theatre.running[trial].step + 1 >= lengths[trial])
    theatre.replay(seed)


# --------------------------------------------------------------------------------------------------------- settings


def test_ray_defaults() -> None:
    policy = MedianStoppingRule()
    assert (policy.time_attr, policy.grace_period, policy.min_samples_required) == ("time_total_s", 60.0, 3)
    assert (policy.min_time_slice, policy.hard_stop, policy.scheduler) == (0, True, FIFOScheduler())
    assert policy.build(seed=0).every_report
    assert MedianStoppingRule(min_samples_required=4.0, grace_period=1) == MedianStoppingRule(  # type: ignore[arg-type]
        min_samples_required=4, grace_period=1.0
    )


@pytest.mark.parametrize("name", INNER)
def test_settings_survive_json(name: str) -> None:
    policy = rule(metric="loss", mode="max", scheduler=INNER[name]) if name == "fifo" else rule(scheduler=INNER[name])
    args = json.loads(json.dumps(policy.to_json()))
    assert SCHEDULERS["MedianStoppingRule"](**args) == policy
    assert args["scheduler"]["name"] == type(INNER[name]).__name__


def test_a_scheduler_by_name() -> None:
    inner = {"name": "ASHAScheduler", "args": {"time_attr": "epoch", "max_t": 9}}
    assert rule(time_attr="epoch", scheduler=inner).scheduler == AsyncHyperBandScheduler(time_attr="epoch", max_t=9)


class Foreign:
    """Somebody's own policy."""

    def build(self, seed: int) -> Scheduler:
        return FIFOScheduler().build(seed)


def test_a_foreign_scheduler_is_named_but_cannot_be_made_again() -> None:
    args = json.loads(json.dumps(rule(scheduler=Foreign()).to_json()))
    assert args["scheduler"] == {"name": f"{__name__}.Foreign", "args": None}
    with pytest.raises(ValueError, match=r"Foreign is not raytuner's own"):
        MedianStoppingRule(**args)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"hard_stop": False}, ValueError, r"hard_stop=False: expected True; a trial cannot be paused in mid-lease.*"),
        ({"hard_stop": False}, ValueError, r"AsyncHyperBandScheduler\(promotion=True\)"),
        ({"min_time_slice": 5}, ValueError, "min_time_slice=5: expected 0"),
        ({"grace_period": -1}, ValueError, "grace_period=-1: expected a number of at least 0"),
        ({"grace_period": math.nan}, ValueError, "grace_period=nan: expected a number"),
        ({"grace_period": "60"}, ValueError, "grace_period='60': expected a number"),
        ({"min_samples_required": 0}, ValueError, "min_samples_required=0: expected a whole number of at least 1"),
        ({"mode": "best"}, ValueError, "mode='best': expected 'min', 'max'"),
        ({"scheduler": FIFOScheduler}, TypeError, r"scheduler must be one of ASHAScheduler\(\), .*, or None; got <cl"),
        ({"scheduler": {"name": "Fifo"}}, TypeError, "scheduler must be one of"),
        ({"scheduler": {"name": "Fifo", "args": {}}}, ValueError, "Fifo is not raytuner's own"),
        (
            {"time_attr": "epoch", "scheduler": HyperBandScheduler()},
            ValueError,
            "time_attr is 'epoch' in MedianStoppingRule, but 'training_iteration' in the scheduler inside it",
        ),
        ({"scheduler": HyperBandScheduler(metric="loss")}, ValueError, "metric is None in .*, but 'loss' in"),
        (
            {"mode": "min", "scheduler": HyperBandScheduler(mode="max")},
            ValueError,
            "mode is 'min' in MedianStoppingRule, but 'max' in",
        ),
    ],
)
def test_wrong_settings_are_named(wrong: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        rule(**wrong)
