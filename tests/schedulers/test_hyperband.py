"""Hyperband's promotions, against the paper's table."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence

import pytest

from raytuner.actions import Done, Resume, Start, Stop, Wait
from raytuner.protocols import Scheduler
from raytuner.schedulers.hyperband import HyperBandScheduler
from raytuner.trial import END, Observation, Why


def seen(
    trial: int, until: int, value: float | None, *, ended: bool = False, level: float | None = None
) -> Observation:
    level = until if level is None else level
    return Observation(trial=trial, config={}, step=int(level), level=level, until=until, value=value, ended=ended)


def start(scheduler: Scheduler, count: int) -> list[Start]:
    actions = [scheduler.next() for _ in range(count)]
    assert all(isinstance(action, Start) for action in actions)
    return actions  # type: ignore[return-value]


def run(policy: HyperBandScheduler, trials: int, value: Callable[[int], float], slots: int = 1) -> dict[int, list[int]]:
    """The targets of each trial's leases, in a study without trouble."""
    scheduler = policy.build(seed=0)
    leases: dict[int, list[int]] = {}
    running: deque[tuple[int, int]] = deque()
    while True:
        action = scheduler.next() if len(running) < slots else Wait()
        match action:
            case Start(trial, until) | Resume(trial, until):
                leases.setdefault(trial, []).append(until)
                running.append((trial, until))
                if len(leases) == trials:
                    scheduler.close()
            case Done():
                return leases
            case _:
                trial, until = running.popleft()
                scheduler.judge(seen(trial, until, value(trial)))


def shuffled(trial: int) -> float:
    return float((trial * 7919 + 13) % 1009)


@pytest.mark.parametrize("slots", [1, 7, 200])
def test_a_round_of_81_3(slots: int) -> None:
    leases = run(HyperBandScheduler(), trials=143, value=shuffled, slots=slots)
    first = 0
    for size, steps in [(81, [1, 3, 9, 27, 81]), (34, [3, 9, 27, 81]), (15, [9, 27, 81]), (8, [27, 81]), (5, [81])]:
        bracket = range(first, first + size)
        by_value = sorted(bracket, key=shuffled)
        for rung, step in enumerate(steps):
            assert [t for t in bracket if step in leases[t]] == sorted(by_value[: size // 3**rung])
        first += size
    assert all(targets == sorted(set(targets)) for targets in leases.values())


def test_brackets_go_round() -> None:
    leases = run(HyperBandScheduler(max_t=9), trials=2 * (9 + 5 + 3), value=shuffled, slots=4)
    firsts = Counter(targets[0] for targets in leases.values())
    assert firsts == {1: 18, 3: 10, 9: 6}


def test_exact_powers_keep_their_rung() -> None:
    """The logarithm of 243 to base 3 is a little less than 5 in floating point."""
    assert run(HyperBandScheduler(max_t=243), trials=243, value=shuffled)[min(range(243), key=shuffled)] == [
        1, 3, 9, 27, 81, 243,
    ]  # fmt: skip


@pytest.mark.parametrize(("trials", "to_the_top"), [(1, 1), (2, 1), (26, 1), (50, 1), (81, 1), (82, 2)])
def test_a_partial_bracket_is_settled_with_what_it_has(trials: int, to_the_top: int) -> None:
    leases = run(HyperBandScheduler(), trials, value=shuffled)
    assert sum(81 in targets for targets in leases.values()) == to_the_top


def test_stops_say_why_and_come_when_the_rung_is_complete() -> None:
    scheduler = HyperBandScheduler(max_t=9).build(seed=0)
    start(scheduler, 9)
    for trial in range(8):
        assert scheduler.judge(seen(trial, 1, float(trial))) == []
    assert scheduler.judge(seen(8, 1, 8.0)) == [Stop(trial, Why.NOT_PROMOTED) for trial in range(3, 9)]
    assert [scheduler.next() for _ in range(4)] == [Resume(0, 3), Resume(1, 3), Resume(2, 3), Start(9, 3)]
    scheduler.judge(seen(0, 3, 5.0))
    scheduler.judge(seen(1, 3, 4.0))
    assert scheduler.judge(seen(2, 3, 4.0)) == [Stop(2, Why.NOT_PROMOTED), Stop(0, Why.NOT_PROMOTED)]  # a tie: 1 < 2
    assert scheduler.next() == Resume(1, 9)
    assert scheduler.judge(seen(1, 9, 1.0)) == [Stop(1, Why.FULL_BUDGET)]


def test_older_brackets_go_first() -> None:
    scheduler = HyperBandScheduler(max_t=9).build(seed=0)
    start(scheduler, 9 + 5 + 3)
    for trial in range(9, 14):
        scheduler.judge(seen(trial, 3, 0.0))
    for trial in range(9):
        scheduler.judge(seen(trial, 1, float(-trial)))
    assert [scheduler.next() for _ in range(5)] == [
        Resume(8, 3), Resume(7, 3), Resume(6, 3), Resume(9, 9), Start(17, 1),
    ]  # fmt: skip


def judged_first_rung(outcomes: Sequence[Observation]) -> tuple[Scheduler, list[Stop]]:
    """The first bracket of R = 9, eta = 3: nine trials, three places."""
    scheduler = HyperBandScheduler(max_t=9).build(seed=0)
    start(scheduler, 9)
    scheduler.close()
    return scheduler, [stop for outcome in outcomes for stop in scheduler.judge(outcome)]


def test_failed_trials_count_as_the_worst() -> None:
    outcomes = [seen(t, 1, None, ended=True) if t < 5 else seen(t, 1, float(t)) for t in range(9)]
    scheduler, stops = judged_first_rung(outcomes)
    assert stops == [Stop(8, Why.NOT_PROMOTED)]
    assert [scheduler.next() for _ in range(4)] == [Resume(5, 3), Resume(6, 3), Resume(7, 3), Wait()]


def test_a_trial_that_ended_passes_its_place_to_nobody() -> None:
    scheduler, stops = judged_first_rung([seen(t, 1, float(t), ended=t == 0) for t in range(9)])
    assert stops == [Stop(t, Why.NOT_PROMOTED) for t in range(3, 9)]
    assert [scheduler.next() for _ in range(3)] == [Resume(1, 3), Resume(2, 3), Wait()]


def test_a_paused_trial_that_ends_keeps_its_result() -> None:
    outcomes = [seen(t, 1, float(t)) for t in range(9)]
    scheduler, stops = judged_first_rung([*outcomes[:8], seen(0, 1, None, ended=True), outcomes[8]])
    assert stops == [Stop(t, Why.NOT_PROMOTED) for t in range(3, 9)]
    assert [scheduler.next() for _ in range(3)] == [Resume(1, 3), Resume(2, 3), Wait()]


def test_a_promoted_trial_that_ends_before_it_runs_leaves_the_others_alone() -> None:
    scheduler, _ = judged_first_rung([seen(t, 1, float(t)) for t in range(9)])
    assert scheduler.judge(seen(0, 1, 0.0, ended=True)) == []
    assert [scheduler.next() for _ in range(3)] == [Resume(1, 3), Resume(2, 3), Wait()]


def test_what_was_said_before_is_not_heard_again() -> None:
    scheduler, _ = judged_first_rung([seen(t, 1, float(t)) for t in range(9)])
    assert scheduler.next() == Resume(0, 3)
    assert scheduler.judge(seen(0, 1, 0.0)) == scheduler.judge(seen(1, 1, 1.0)) == []
    assert [scheduler.next() for _ in range(3)] == [Resume(1, 3), Resume(2, 3), Wait()]


def test_somebody_goes_on_while_somebody_can() -> None:
    scheduler, stops = judged_first_rung([seen(t, 1, float(t), ended=t < 3) for t in range(9)])
    assert stops == [Stop(t, Why.NOT_PROMOTED) for t in range(4, 9)]
    assert [scheduler.next(), scheduler.next()] == [Resume(3, 3), Wait()]


def test_all_failed() -> None:
    scheduler, stops = judged_first_rung([seen(t, 1, None, ended=True) for t in range(9)])
    assert stops == []
    assert scheduler.next() == Done()


def test_a_live_trial_without_a_value_goes_at_once() -> None:
    scheduler, stops = judged_first_rung([seen(0, 1, None)])
    assert stops == [Stop(0, Why.NO_VALUE)]
    assert scheduler.judge(seen(0, 1, None)) == []


def test_a_result_beyond_the_next_rung_counts_there_too() -> None:
    levels = {0: 4.0, 1: 1.0, 2: 3.0}
    scheduler, _ = judged_first_rung([seen(t, 1, float(t), level=levels.get(t, 1.0)) for t in range(9)])
    assert [scheduler.next(), scheduler.next()] == [Resume(1, 3), Wait()]
    assert scheduler.judge(seen(1, 3, 1.0)) == [Stop(1, Why.NOT_PROMOTED), Stop(2, Why.NOT_PROMOTED)]
    assert scheduler.next() == Resume(0, 9)


def test_a_result_at_full_budget_needs_no_further_rung() -> None:
    scheduler = HyperBandScheduler(max_t=9).build(seed=0)
    start(scheduler, 9)
    assert scheduler.judge(seen(0, 1, 5.0, level=9.5)) == [Stop(0, Why.FULL_BUDGET)]


def test_closing_settles_the_bracket_that_was_being_filled() -> None:
    scheduler = HyperBandScheduler(max_t=9).build(seed=0)
    start(scheduler, 4)
    for trial in range(3):
        assert scheduler.judge(seen(trial, 1, float(trial))) == []
    assert scheduler.close(unserved=[3]) == [Stop(1, Why.NOT_PROMOTED), Stop(2, Why.NOT_PROMOTED)]
    assert [scheduler.next(), scheduler.next()] == [Resume(0, 3), Wait()]
    assert scheduler.judge(seen(0, 3, 0.0)) == []
    assert scheduler.next() == Resume(0, 9)


def test_last_trials_may_run_on() -> None:
    scheduler = HyperBandScheduler(max_t=9, stop_last_trials=False).build(seed=0)
    firsts = start(scheduler, 9 + 5 + 3)
    scheduler.close()
    assert [firsts[0], firsts[9], firsts[14]] == [Start(0, 1), Start(9, 3), Start(14, END)]
    for trial in range(9, 14):
        scheduler.judge(seen(trial, 3, float(trial), level=20.0))
    assert scheduler.next() == Resume(9, END)
    assert scheduler.judge(seen(9, END, 0.0, level=50.0, ended=True)) == []
