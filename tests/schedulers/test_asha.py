"""Who goes on at ASHA's rungs, against tables and against Ray's rule."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raytuner.actions import Done, Resume, Start, Stop, Wait
from raytuner.protocols import Scheduler
from raytuner.schedulers.asha import ASHAScheduler, AsyncHyperBandScheduler
from raytuner.trial import END, Observation, Why


def seen(
    trial: int, until: int, value: float | None, *, ended: bool = False, level: float | None = None
) -> Observation:
    level = until if level is None else level
    return Observation(trial=trial, config={}, step=int(level), level=level, until=until, value=value, ended=ended)


def goes_on(scheduler: Scheduler, observation: Observation) -> bool:
    match scheduler.judge(observation):
        case []:
            return True
        case [Stop(trial, Why.NO_PROMISE)]:
            assert trial == observation.trial
            return False
        case other:
            raise AssertionError(other)


def first_rung(values: list[float], eta: int) -> list[bool]:
    """Which of trials that reach the first rung one after another go on."""
    scheduler = AsyncHyperBandScheduler(max_t=1000, reduction_factor=eta).build(seed=0)
    verdicts = []
    for trial, value in enumerate(values):
        assert scheduler.next() == Start(trial, 1)
        verdicts.append(goes_on(scheduler, seen(trial, 1, value)))
        if verdicts[-1]:
            assert scheduler.next() == Resume(trial, eta)
    return verdicts


@pytest.mark.parametrize(
    ("eta", "values", "on"),
    [
        (3, [9, 8, 7, 6, 5, 4, 3, 2, 1], "111111111"),  # each is the best so far
        (3, [1, 2, 3, 4, 5, 6, 7, 8, 9], "100000000"),
        (3, [5, 5, 5, 5], "1000"),  # of equals the earlier is the better
        (3, [1, 9, 9, 2, 9, 9, 3], "1001001"),  # the 4th of 4 may be second, the 7th of 7 third
        (4, [1, 9, 9, 9, 2, 3], "100010"),
        (2, [3, 4, 3.5, 1, 2, 9], "101110"),
        (10, [2, 3, 1, 4], "1010"),
    ],
)
def test_who_goes_on(eta: int, values: list[float], on: str) -> None:
    assert first_rung(values, eta) == [mark == "1" for mark in on]


@given(values=st.lists(st.integers(0, 30).map(float), max_size=40), eta=st.integers(2, 6))
@settings(deadline=None)
def test_by_counting(values: list[float], eta: int) -> None:
    for n, (value, on) in enumerate(zip(values, first_rung(values, eta), strict=True), start=1):
        rank = 1 + sum(other <= value for other in values[: n - 1])
        assert on == (rank <= -(-n // eta))


@given(values=st.lists(st.integers(-1000, 1000).map(float), unique=True, max_size=40), eta=st.integers(2, 6))
@settings(deadline=None)
def test_ray_may_differ_only_in_the_gap_it_interpolates_over(values: list[float], eta: int) -> None:
    for n, (value, on) in enumerate(zip(values, first_rung(values, eta), strict=True)):
        before = -np.array(values[:n])  # Ray's higher is better
        if n == 0:
            assert on
            continue
        rays = -value >= np.nanpercentile(before, (1 - 1 / eta) * 100)
        if on != rays:
            low, high = (np.nanpercentile(before, (1 - 1 / eta) * 100, method=m) for m in ("lower", "higher"))
            assert low <= -value <= high


def test_rungs_up_to_max_t() -> None:
    scheduler = ASHAScheduler(max_t=100, grace_period=2, reduction_factor=4).build(seed=0)
    scheduler_says = [scheduler.next()]
    for until in (2, 8, 32):
        assert scheduler.judge(seen(0, until, 1.0)) == []
        scheduler_says.append(scheduler.next())
    assert scheduler_says == [Start(0, 2), Resume(0, 8), Resume(0, 32), Resume(0, 100)]
    assert scheduler.judge(seen(0, 100, 1.0)) == [Stop(0, Why.FULL_BUDGET)]


def test_the_same_trial_goes_on_before_another_starts() -> None:
    scheduler = ASHAScheduler().build(seed=0)
    assert [scheduler.next(), scheduler.next()] == [Start(0, 1), Start(1, 1)]
    scheduler.judge(seen(1, 1, 1.0))
    scheduler.judge(seen(0, 1, 0.0))
    assert [scheduler.next() for _ in range(3)] == [Resume(1, 4), Resume(0, 4), Start(2, 1)]


def test_each_rung_compares_its_own_results() -> None:
    scheduler = ASHAScheduler(max_t=9, reduction_factor=3).build(seed=0)
    for trial, value in enumerate([3.0, 2.0, 1.0]):
        scheduler.next()
        assert goes_on(scheduler, seen(trial, 1, value))
        scheduler.next()
    assert [goes_on(scheduler, seen(trial, 3, float(trial))) for trial in range(3)] == [True, False, False]


def test_a_skipped_rung_hears_nothing() -> None:
    scheduler = ASHAScheduler(max_t=64).build(seed=0)
    for _ in range(3):
        scheduler.next()
    assert goes_on(scheduler, seen(0, 1, 1.0, level=5.0))  # counts at rung 4
    assert scheduler.next() == Resume(0, 16)
    assert goes_on(scheduler, seen(1, 1, 2.0))  # the first at rung 1
    assert not goes_on(scheduler, seen(2, 1, 3.0, level=4.0))  # the second at rung 4


def test_failures_count_nowhere() -> None:
    scheduler = ASHAScheduler().build(seed=0)
    for _ in range(4):
        scheduler.next()
    assert scheduler.judge(seen(0, 1, None, ended=True)) == []
    assert scheduler.judge(seen(1, 1, None)) == [Stop(1, Why.NO_VALUE)]
    assert scheduler.judge(seen(2, 1, 0.0, ended=True, level=0.5)) == []  # it ended before the rung
    assert goes_on(scheduler, seen(3, 1, 9.0))


def test_a_trial_that_ended_at_a_rung_counts_there() -> None:
    scheduler = ASHAScheduler().build(seed=0)
    scheduler.next()
    scheduler.next()
    assert scheduler.judge(seen(0, 1, 0.0, ended=True)) == []
    assert not goes_on(scheduler, seen(1, 1, 1.0))


def test_the_end() -> None:
    scheduler = ASHAScheduler(stop_last_trials=False, max_t=2, grace_period=2).build(seed=0)
    assert [scheduler.next(), scheduler.next()] == [Start(0, END), Start(1, END)]
    scheduler.close(unserved=[1])
    assert scheduler.next() == Wait()
    assert scheduler.judge(seen(0, END, 1.0, ended=True, level=7.0)) == []
    assert scheduler.next() == Done()


def test_brackets_by_rays_odds_and_each_by_itself() -> None:
    scheduler = AsyncHyperBandScheduler(max_t=27, reduction_factor=3, brackets=3).build(seed=1)
    firsts = [scheduler.next() for _ in range(4000)]
    untils = [action.until for action in firsts if isinstance(action, Start)]
    share = Counter(untils)
    # Three, two and one rungs: 1 : 1/e : 1/e^2. Four standard deviations of 4000 draws are below 0.031.
    assert [share[step] / 4000 for step in (1, 3, 9)] == pytest.approx([0.665, 0.245, 0.090], abs=0.031)
    low = untils.index(1)
    high = untils.index(3)
    assert goes_on(scheduler, seen(low, 1, 0.0))
    assert scheduler.next() == Resume(low, 3)
    assert goes_on(scheduler, seen(low, 3, 0.0))
    assert goes_on(scheduler, seen(high, 3, 9.0))  # the first at rung 3 of its bracket


def test_brackets_depend_on_seed_and_trial_alone() -> None:
    policy = AsyncHyperBandScheduler(brackets=3)
    one, same, other = (policy.build(seed) for seed in (1, 1, 2))
    starts = [[scheduler.next() for _ in range(50)] for scheduler in (one, same, other)]
    assert starts[0] == starts[1] != starts[2]
