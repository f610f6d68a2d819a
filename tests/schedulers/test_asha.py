"""Who goes on at ASHA's rungs: the stopping form against tables and against Ray's rule, the promotion form against
tables and against the rule by hand."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raytuner.actions import Done, Resume, Start, Stop, Wait
from raytuner.protocols import Scheduler
from raytuner.schedulers.asha import ASHAScheduler, AsyncHyperBandScheduler
from raytuner.schedulers.rungs import rising
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


# ------------------------------------------------------------------------------------------------ the promotion form


def promotion(**settings: Any) -> Scheduler:
    return AsyncHyperBandScheduler(promotion=True, **settings).build(seed=0)


def start(scheduler: Scheduler, count: int) -> None:
    assert [scheduler.next() for _ in range(count)] == [Start(trial, 1) for trial in range(count)]


def leases(policy: AsyncHyperBandScheduler, values: Sequence[float], slots: int = 1) -> dict[int, list[int]]:
    """The targets of each trial's leases, in a study without trouble; a full study does what ended first first."""
    scheduler = policy.build(seed=0)
    targets: dict[int, list[int]] = {}
    running: deque[tuple[int, int]] = deque()
    over: set[int] = set()
    while True:
        match scheduler.next() if len(running) < slots else Wait():
            case Start(trial, until) | Resume(trial, until):
                targets.setdefault(trial, []).append(until)
                running.append((trial, until))
                if len(targets) == len(values):
                    over.update(stop.trial for stop in scheduler.close())
            case Done():
                assert len(over) == len(targets)
                return targets
            case _:
                trial, until = running.popleft()
                over.update(stop.trial for stop in scheduler.judge(seen(trial, until, values[trial])))


def shuffled(count: int) -> list[float]:
    return [float((trial * 7919 + 13) % 10_007) for trial in range(count)]


@pytest.mark.parametrize(
    ("values", "one_by_one", "at_once"),
    [
        ([1, 2, 3, 4, 5, 6, 7, 8, 9], [0, 1, 2], [0, 1, 2]),
        ([9, 8, 7, 6, 5, 4, 3, 2, 1], [2, 5, 8], [8, 7, 6]),  # by the paper's rule alone seven, one by one
        ([5, 5, 5, 5, 5, 5, 5, 5, 5], [0, 1, 2], [0, 1, 2]),  # of equals the earlier is the better
        ([4, 9, 2, 8, 1, 7, 3, 6, 5], [2, 4, 6], [4, 2, 6]),
    ],
)
def test_of_nine_results_three_are_promoted_and_no_more(
    values: list[float], one_by_one: list[int], at_once: list[int]
) -> None:
    for eager, promoted in [(True, one_by_one), (False, at_once)]:
        scheduler = promotion(max_t=1000, reduction_factor=3)
        start(scheduler, 9)
        actions = []
        for trial, value in enumerate(values):
            assert scheduler.judge(seen(trial, 1, value)) == []
            if eager and trial % 3 == 2:
                actions.append(scheduler.next())
        while len(actions) < 3:
            actions.append(scheduler.next())
        assert actions == [Resume(trial, 3) for trial in promoted]
        assert scheduler.next() == Start(9, 1)


@pytest.mark.parametrize("slots", [1, 7, 300])
@pytest.mark.parametrize(
    ("settings", "trials", "counts"),
    [
        ({"max_t": 81, "reduction_factor": 3}, 81, {1: 81, 3: 27, 9: 9, 27: 3, 81: 1}),
        ({"max_t": 100, "reduction_factor": 3}, 250, {1: 250, 3: 83, 9: 27, 27: 9, 81: 3, 100: 1}),
        ({"max_t": 100}, 256, {1: 256, 4: 64, 16: 16, 64: 4, 100: 1}),
        ({"max_t": 64, "grace_period": 4, "reduction_factor": 2}, 100, {4: 100, 8: 50, 16: 25, 32: 12, 64: 6}),
        ({"max_t": 100}, 10, {1: 10, 4: 2, 16: 1, 64: 1, 100: 1}),  # too few: at the end the best goes on all the same
        ({"max_t": 9, "reduction_factor": 3}, 1, {1: 1, 3: 1, 9: 1}),
        ({"max_t": 9, "reduction_factor": 3, "stop_last_trials": False}, 27, {1: 27, 3: 9, END: 3}),
        ({"max_t": 5, "grace_period": 5}, 3, {5: 3}),
    ],
)
def test_how_many_run_to_each_rung(settings: dict[str, Any], trials: int, counts: dict[int, int], slots: int) -> None:
    """When none fails, it is the same whatever the order: each rung ends with floor(n / eta) promotions."""
    values = shuffled(trials)
    targets = leases(AsyncHyperBandScheduler(promotion=True, **settings), values, slots)
    assert Counter(until for trial in targets for until in targets[trial]) == counts
    assert max(counts) in targets[values.index(min(values))]


def test_the_highest_rung_comes_first() -> None:
    scheduler = promotion(max_t=8, reduction_factor=2)
    start(scheduler, 8)
    for trial in range(4):
        scheduler.judge(seen(trial, 1, float(trial)))
    assert [scheduler.next(), scheduler.next()] == [Resume(0, 2), Resume(1, 2)]
    for trial in range(4, 8):
        scheduler.judge(seen(trial, 1, 0.5))
    scheduler.judge(seen(0, 2, 3.0))
    scheduler.judge(seen(1, 2, 2.0))
    assert [scheduler.next() for _ in range(4)] == [Resume(1, 4), Resume(4, 2), Resume(5, 2), Start(8, 1)]


def test_a_paused_trial_waits_until_its_rung_has_grown() -> None:
    scheduler = promotion(reduction_factor=3)
    start(scheduler, 3)
    scheduler.judge(seen(0, 1, 1.0))
    assert scheduler.next() == Start(3, 1)
    scheduler.judge(seen(1, 1, 2.0))
    scheduler.judge(seen(2, 1, 3.0))
    assert scheduler.next() == Resume(0, 3)


def test_a_skipped_rung_has_no_result_in_the_promotion_form() -> None:
    scheduler = promotion(max_t=64, reduction_factor=2)
    start(scheduler, 4)
    scheduler.judge(seen(0, 1, 9.0, level=5.0))  # counts at rung 4
    scheduler.judge(seen(1, 1, 1.0))  # the first at rung 1
    assert scheduler.next() == Start(4, 1)
    scheduler.judge(seen(2, 1, 8.0, level=4.0))  # the second at rung 4
    assert [scheduler.next(), scheduler.next()] == [Resume(2, 8), Start(5, 1)]
    assert scheduler.judge(seen(3, 1, 9.0, level=64.0)) == [Stop(3, Why.FULL_BUDGET)]


def test_failures_count_nowhere_and_their_promotion_stays_used() -> None:
    scheduler = promotion(reduction_factor=2)
    start(scheduler, 6)
    assert scheduler.judge(seen(0, 1, None, ended=True)) == []
    assert scheduler.judge(seen(1, 1, None)) == [Stop(1, Why.NO_VALUE)]
    assert scheduler.judge(seen(2, 1, 0.0, ended=True, level=0.5)) == []  # it ended before the rung
    scheduler.judge(seen(3, 1, 3.0))
    assert scheduler.next() == Start(6, 1)
    scheduler.judge(seen(4, 1, 4.0))
    assert scheduler.next() == Resume(3, 2)
    assert scheduler.judge(seen(3, 2, None, ended=True)) == []
    assert scheduler.next() == Start(7, 1)


@pytest.mark.parametrize("paused", [False, True])
def test_a_trial_that_ended_passes_its_place_to_nobody(paused: bool) -> None:
    scheduler = promotion(reduction_factor=2)
    start(scheduler, 4)
    if paused:
        scheduler.judge(seen(0, 1, 0.0))
    assert scheduler.judge(seen(0, 1, 0.0, ended=True)) == []
    scheduler.judge(seen(1, 1, 1.0))
    assert scheduler.next() == Start(4, 1)  # the one place is trial 0's
    scheduler.judge(seen(2, 1, 2.0))
    scheduler.judge(seen(3, 1, 3.0))
    assert [scheduler.next(), scheduler.next()] == [Resume(1, 2), Start(5, 1)]


def test_at_the_end_the_paused_are_stopped() -> None:
    scheduler = promotion(max_t=4, reduction_factor=2)
    start(scheduler, 4)
    scheduler.close()
    for trial in range(4):
        assert scheduler.judge(seen(trial, 1, float(trial))) == []
    assert [scheduler.next() for _ in range(3)] == [Resume(0, 2), Resume(1, 2), Wait()]
    assert scheduler.judge(seen(0, 2, 0.0)) == scheduler.judge(seen(1, 2, 1.0)) == []
    assert [scheduler.next(), scheduler.next()] == [Resume(0, 4), Wait()]
    assert scheduler.judge(seen(0, 4, 0.0)) == [
        Stop(0, Why.FULL_BUDGET), *(Stop(trial, Why.NOT_PROMOTED) for trial in (1, 2, 3)),
    ]  # fmt: skip
    assert scheduler.next() == Done()


def test_closing_may_be_the_end() -> None:
    scheduler = promotion(max_t=4, reduction_factor=4)
    start(scheduler, 3)
    scheduler.judge(seen(0, 1, 1.0))
    scheduler.judge(seen(1, 1, 0.0, level=4.0))
    assert scheduler.close(unserved=[2]) == [Stop(0, Why.NOT_PROMOTED)]
    assert scheduler.next() == Done()


def test_the_end_yields_a_trial_that_was_trained_to_its_end() -> None:
    """Of three trials none may be promoted at eta = 4; the best go on nevertheless, until one is through."""
    scheduler = promotion(max_t=16)
    start(scheduler, 3)
    scheduler.close()
    for trial in range(3):
        scheduler.judge(seen(trial, 1, float(trial)))
    assert [scheduler.next(), scheduler.next()] == [Resume(0, 4), Wait()]
    assert scheduler.judge(seen(0, 4, 9.0)) == []
    assert [scheduler.next(), scheduler.next()] == [Resume(0, 16), Wait()]  # the best of the highest
    assert scheduler.judge(seen(0, 16, None, ended=True)) == []
    assert [scheduler.next(), scheduler.next()] == [Resume(1, 4), Wait()]
    assert scheduler.judge(seen(1, 4, 0.0, level=3.0, ended=True)) == [Stop(2, Why.NOT_PROMOTED)]  # its own end
    assert scheduler.next() == Done()


def test_who_ended_lower_than_others_are_paused_does_not_end_the_study() -> None:
    scheduler = promotion(max_t=16)
    start(scheduler, 2)
    scheduler.close()
    assert scheduler.judge(seen(0, 1, 5.0)) == []
    assert scheduler.judge(seen(1, 1, 0.0, ended=True)) == []
    assert scheduler.next() == Resume(0, 4)


def test_brackets_promote_their_own() -> None:
    scheduler = AsyncHyperBandScheduler(max_t=27, reduction_factor=3, brackets=2, promotion=True).build(seed=1)
    firsts = [action.until for action in (scheduler.next() for _ in range(40)) if isinstance(action, Start)]
    low, high = ([trial for trial, until in enumerate(firsts) if until == step] for step in (1, 3))
    for trial in low[:3]:
        scheduler.judge(seen(trial, 1, float(trial)))
    assert scheduler.next() == Resume(low[0], 3)
    for trial in high[:2]:
        scheduler.judge(seen(trial, 3, float(trial)))
    scheduler.judge(seen(low[0], 3, 0.0))
    assert isinstance(scheduler.next(), Start)  # one result and two results at rung 3, not three
    scheduler.judge(seen(high[2], 3, -1.0))
    assert scheduler.next() == Resume(high[2], 9)


def test_both_forms_deal_the_same_brackets() -> None:
    forms = [AsyncHyperBandScheduler(brackets=3, promotion=promotes).build(seed=3) for promotes in (False, True)]
    starts = [[scheduler.next() for _ in range(50)] for scheduler in forms]
    assert starts[0] == starts[1]


def test_many_trials_take_no_longer_each() -> None:
    """A scan of all trials in each call would take minutes here."""
    targets = leases(AsyncHyperBandScheduler(promotion=True), shuffled(20_000))
    assert Counter(len(each) for each in targets.values()) == {1: 15_000, 2: 3_750, 3: 938, 4: 234, 5: 78}


class Book:
    """Plays a study with the promotion form, keeps each rung by hand, and checks every action against the rule.

    ``rungs``: the results of each (height, bracket) as (value, turn, trial).
    """

    def __init__(self, policy: AsyncHyperBandScheduler, seed: int, trials: int) -> None:
        self.scheduler = policy.build(seed)
        self.steps = rising(policy.grace_period, policy.max_t, policy.reduction_factor)
        self.eta = policy.reduction_factor
        self.trials = trials
        self.rungs: dict[tuple[int, int], list[tuple[float, int, int]]] = {}
        self.promoted: Counter[tuple[int, int]] = Counter()
        self.bracket: dict[int, int] = {}
        self.running: dict[int, int] = {}  # trial to the height that it runs to
        self.paused: dict[int, tuple[int, int]] = {}  # trial to its rung
        self.through = 0  # the height at which, or on the way to which, a trial ended well
        self.beyond = 0  # promotions past a rung's quota
        self.closed = False

    def expected(self) -> tuple[tuple[int, int], int] | None:
        """The rung that promotes, and the trial."""
        waiting = {
            place: [trial for _, _, trial in sorted(results) if self.paused.get(trial) == place]
            for place, results in sorted(self.rungs.items(), key=lambda item: (-item[0][0], item[0][1]))
        }
        for place, trials in waiting.items():
            quota = len(self.rungs[place]) // self.eta
            top = [trial for _, _, trial in sorted(self.rungs[place])[:quota]]
            if trials and trials[0] in top and self.promoted[place] < quota:
                return place, trials[0]
        if self.closed and not self.running and self.paused:
            top_height = max(height for (height, _), trials in waiting.items() if trials)
            rows = [(row, place) for place in waiting for row in self.rungs[place] if self.paused.get(row[2]) == place]
            (_, _, trial), place = min(each for each in rows if each[1][0] == top_height)
            return (place, trial) if top_height >= self.through else None
        return None

    def ask(self) -> bool:
        """Offer a slot; whether it was taken."""
        wanted = self.expected()
        match self.scheduler.next():
            case Resume(trial, until):
                assert wanted is not None
                place, best = wanted
                assert (trial, until) == (best, self.steps[place[0] + 1])
                self.promoted[place] += 1
                if self.promoted[place] > len(self.rungs[place]) // self.eta:
                    assert self.closed
                    assert not self.running
                    self.beyond += 1
                del self.paused[trial]
                self.running[trial] = place[0] + 1
            case Start(trial, until):
                assert wanted is None
                assert not self.closed
                self.running[trial] = self.bracket[trial] = self.steps.index(until)
                if len(self.bracket) == self.trials:
                    self.close()
            case Wait():
                assert wanted is None
                assert self.closed
                assert self.running
                return False
            case Done():
                assert not self.paused.keys() | self.running.keys()
                return False
        return True

    def say(self, trial: int, value: float | None, ahead: float = 0.0, ended: bool = False) -> None:
        """A running trial's lease ends, at its rung or ``ahead`` of it."""
        height = self.running.pop(trial)
        level = self.steps[height] + ahead
        reached = sum(step <= level for step in self.steps) - 1
        if value is not None:
            if reached >= height and reached < len(self.steps) - 1:
                results = self.rungs.setdefault((reached, self.bracket[trial]), [])
                results.append((value, len(results), trial))
            if ended or reached == len(self.steps) - 1:
                self.through = max(self.through, reached + (reached < height))
            elif reached < len(self.steps) - 1:
                self.paused[trial] = reached, self.bracket[trial]
        stops = self.scheduler.judge(seen(trial, self.steps[height], value, level=level, ended=ended))
        if not ended and (value is None or reached == len(self.steps) - 1):
            assert stops[0] == Stop(trial, Why.NO_VALUE if value is None else Why.FULL_BUDGET)
            stops = stops[1:]
        self.obey(stops)

    def end_paused(self, trial: int) -> None:
        del self.paused[trial]
        self.obey(self.scheduler.judge(seen(trial, 1, None, ended=True)))

    def close(self) -> None:
        self.closed = True
        self.obey(self.scheduler.close())

    def obey(self, stops: Sequence[Stop]) -> None:
        over = self.closed and not self.running and self.expected() is None
        assert list(stops) == ([Stop(trial, Why.NOT_PROMOTED) for trial in sorted(self.paused)] if over else [])
        for stop in stops:
            del self.paused[stop.trial]


@pytest.mark.timeout(600)  # a failure takes minutes to shrink
@given(
    seed=st.integers(0, 2**32),
    slots=st.integers(1, 30),
    trials=st.integers(1, 120),
    eta=st.integers(2, 5),
    brackets=st.integers(1, 3),
    kinds=st.sampled_from([3, 10, 10_000]),  # of values: many ties, some, none
    trouble=st.sampled_from([0.0, 0.0, 0.05, 0.3]),
)
@settings(deadline=None)
def test_at_most_floor_n_over_eta_are_promoted_whatever_the_order(
    seed: int, slots: int, trials: int, eta: int, brackets: int, kinds: int, trouble: float
) -> None:
    chance = random.Random(seed)
    policy = AsyncHyperBandScheduler(max_t=32, reduction_factor=eta, brackets=brackets, promotion=True)
    book = Book(policy, seed, trials)
    while book.running or not book.closed or book.paused:
        while len(book.running) < slots and chance.random() < 0.9 and book.ask():
            pass
        if book.running and chance.random() < 0.9:
            trial = chance.choice(sorted(book.running))
            value = float(chance.randrange(kinds))
            match chance.randrange(4) if chance.random() < trouble else None:
                case 0:
                    book.say(trial, None, ended=chance.random() < 0.5)
                case 1:
                    book.say(trial, value, ahead=chance.choice([0.5, 3, 20]), ended=chance.random() < 0.5)
                case 2:
                    book.say(trial, value, ahead=-0.5, ended=True)
                case 3 if book.paused:
                    book.end_paused(chance.choice(sorted(book.paused)))
                case _:
                    book.say(trial, value)
    assert book.scheduler.next() == Done()
    if not trouble:
        assert book.through == len(book.steps) - 1
        assert book.beyond < len(book.steps)
        assert all(book.promoted[place] >= len(results) // eta for place, results in book.rungs.items()), (
            "a rung has places left"
        )
