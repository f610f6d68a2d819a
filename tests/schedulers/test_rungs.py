"""Levels and bracket tables as data."""

from __future__ import annotations

from itertools import pairwise

import pytest

from raytuner.actions import Done, Resume, Start
from raytuner.protocols import SchedulingPolicy
from raytuner.schedulers import AsyncHyperBandScheduler, HyperBandScheduler
from raytuner.schedulers.rungs import brackets, check_mode, levels, rising, whole
from raytuner.trial import Observation

# (R, eta): the levels, and of each bracket how many trials run to each of its steps.
TABLES = {
    (81, 3): (
        [1, 3, 9, 27, 81],
        [[81, 27, 9, 3, 1], [34, 11, 3, 1], [15, 5, 1], [8, 2], [5]],
    ),
    (243, 3): (
        [1, 3, 9, 27, 81, 243],
        [[243, 81, 27, 9, 3, 1], [98, 32, 10, 3, 1], [41, 13, 4, 1], [18, 6, 2], [9, 3], [6]],
    ),
    (1000, 10): ([1, 10, 100, 1000], [[1000, 100, 10, 1], [134, 13, 1], [20, 2], [4]]),
    (100, 3): (
        [1, 3, 11, 33, 100],
        [[81, 27, 9, 3, 1], [34, 11, 3, 1], [15, 5, 1], [8, 2], [5]],
    ),
    (80, 3): ([2, 8, 26, 80], [[27, 9, 3, 1], [12, 4, 1], [6, 2], [4]]),
    (1, 3): ([1], [[1]]),
    (2, 3): ([2], [[1]]),
}


@pytest.mark.parametrize(("most", "eta"), TABLES)
def test_bracket_table(most: int, eta: int) -> None:
    steps, sizes = TABLES[most, eta]
    assert levels(1, most, eta) == steps
    table = brackets(1, most, eta)
    assert [bracket.sizes(eta) for bracket in table] == sizes
    assert [list(bracket.steps) for bracket in table] == [steps[s:] for s in range(len(steps))]


def test_every_pair_has_its_brackets() -> None:
    for most in range(1, 301):
        for eta in range(2, 11):
            steps = levels(1, most, eta)
            s_max = len(steps) - 1
            assert eta**s_max <= most < eta ** (s_max + 1)  # s_max = floor(log_eta(R)), said in integers
            assert steps[-1] == most
            assert all(low < high for low, high in pairwise(steps))
            table = brackets(1, most, eta)
            assert len(table) == s_max + 1
            for s, bracket in zip(range(s_max, -1, -1), table, strict=True):
                assert (bracket.size - 1) * (s + 1) < (s_max + 1) * eta**s <= bracket.size * (s + 1)
                assert all(size >= 1 for size in bracket.sizes(eta))


def farthest_of_a_study(policy: SchedulingPolicy, trials: int) -> int:
    """The last step of a study in one slot, whose later trials are better; it must end with every trial over."""
    scheduler = policy.build(seed=0)
    over: set[int] = set()
    farthest = 0
    while True:
        match scheduler.next():
            case Start(trial, until) | Resume(trial, until):
                farthest = max(farthest, until)
                stops = [*scheduler.close()] if trial == trials - 1 else []
                seen = Observation(trial, {}, step=until, level=until, until=until, value=-float(trial))
                over.update(stop.trial for stop in [*stops, *scheduler.judge(seen)])
            case Done():
                assert over == set(range(trials))
                return farthest
            case other:
                raise AssertionError(other)


def check_studies(most: int, eta: int) -> None:
    """All of Hyperband's brackets and one trial more."""
    trials = sum(bracket.size for bracket in brackets(1, most, eta)) + 1
    for policy in (
        HyperBandScheduler(max_t=most, reduction_factor=eta),
        AsyncHyperBandScheduler(max_t=most, reduction_factor=eta),
        AsyncHyperBandScheduler(max_t=most, reduction_factor=eta, promotion=True),
    ):
        assert farthest_of_a_study(policy, trials) == most


@pytest.mark.parametrize("eta", range(2, 11))
def test_studies_end(eta: int) -> None:
    """At each power of eta, where rounding would lose a rung, on both sides of it, and in between."""
    powers = [eta**k for k in range(9)]
    for most in sorted({*range(1, 301, 43), *(power + aside for power in powers for aside in (-1, 0, 1))}):
        if 1 <= most <= 300:
            check_studies(most, eta)


@pytest.mark.chaos
@pytest.mark.parametrize("eta", range(2, 11))
def test_all_studies_end(eta: int) -> None:
    for most in range(1, 301):
        check_studies(most, eta)


def test_levels_do_not_go_below_the_least() -> None:
    assert levels(3, 81, 3) == [3, 9, 27, 81]
    assert levels(4, 81, 3) == [9, 27, 81]
    assert levels(81, 81, 3) == [81]


@pytest.mark.parametrize(
    ("least", "most", "eta", "steps"),
    [
        (1, 100, 4, [1, 4, 16, 64, 100]),
        (1, 64, 4, [1, 4, 16, 64]),
        (1, 243, 3, [1, 3, 9, 27, 81, 243]),
        (5, 12, 2, [5, 10, 12]),
        (7, 7, 2, [7]),
    ],
)
def test_rising(least: int, most: int, eta: int, steps: list[int]) -> None:
    assert rising(least, most, eta) == steps


def test_whole_numbers() -> None:
    assert whole("eta", 4.0, 2) == 4
    assert type(whole("eta", 4.0, 2)) is int
    for wrong in (1, 2.5, float("nan"), float("inf"), "3", None):
        with pytest.raises(ValueError, match=r"eta=.*expected a whole number of at least 2"):
            whole("eta", wrong, 2)
    with pytest.raises(ValueError, match="r=9: expected a whole number from 1 to 8"):
        whole("r", 9, 1, 8)


def test_mode() -> None:
    for mode in (None, "min", "max"):
        check_mode(mode)
    with pytest.raises(ValueError, match="mode='best': expected 'min', 'max'"):
        check_mode("best")
