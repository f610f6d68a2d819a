"""The densities of a large history: who is good, what a configuration counts for, where proposals fall."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytuner.models.density_ratio import LEAST_GOOD, MOST_GOOD, MOST_OTHERS, DensityRatio
from raytuner.models.multi_fidelity import Outcomes, highest
from raytuner.space import Space, choice, uniform

SPACE = Space({"x": uniform(0, 1), "y": uniform(0, 1), "kind": choice(["a", "b", "c"])})


def outcomes_of(n: int, seed: int = 0, untils: tuple[int, ...] = (1,)) -> Outcomes:
    rng = np.random.default_rng(seed)
    outcomes = Outcomes(len(SPACE))
    points, active = SPACE.snap(rng.random((n, len(SPACE))))
    for trial in range(n):
        kind, x, y = points[trial]  # in the order of names
        value = (x - 0.3) ** 2 + (y - 0.7) ** 2 + (kind > 1 / 3)
        for until in untils:
            outcomes.add(trial, until, value + 10.0 / until, points[trial], active[trial])
    return outcomes


def model(outcomes: Outcomes) -> DensityRatio:
    return DensityRatio.of(outcomes, len(outcomes), SPACE, np.random.default_rng(0))


def test_candidates_are_near_the_good_and_the_best_comes_first() -> None:
    found = model(outcomes_of(3000)).draw(SPACE, np.random.default_rng(1))
    assert (np.diff(found.log_ratio) <= 0).all()
    best = SPACE.decode(found.points[0])
    assert best["kind"] == "a"
    assert math.hypot(best["x"] - 0.3, best["y"] - 0.7) < 0.15
    assert SPACE.snap(found.points)[0] == pytest.approx(found.points)


def test_a_trial_counts_once_with_its_highest_rung() -> None:
    once, often = model(outcomes_of(400, untils=(9,))), model(outcomes_of(400, untils=(1, 3, 9)))
    assert np.sort(often.good.points, axis=0) == pytest.approx(np.sort(once.good.points, axis=0))
    assert len(often.good.points) + len(often.others.points) == min(400, 40 + MOST_OTHERS)


def test_what_was_seen_farther_below_the_top_must_be_better() -> None:
    """Two groups of the same values 0 to 19, aligned; one is seen at the top. Two rungs are 0.6 deviations: 3.1."""
    outcomes, rng = Outcomes(len(SPACE)), np.random.default_rng(0)
    points, active = SPACE.snap(rng.random((40, len(SPACE))))
    for trial in range(40):
        for until in (1, 9) if trial < 20 else (1,):
            outcomes.add(trial, until, float(trial % 20), points[trial], active[trial])
    found = DensityRatio.of(outcomes, len(outcomes), SPACE, rng)
    assert {int(outcomes.trials[row]) for row in found.rows} == {0, 1, 2, 3, 4, 5, 20, 21}


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from([1, 3, 9])), min_size=1, max_size=40, unique=True))
def test_highest_is_one_row_per_trial_at_its_largest_rung(seen: list[tuple[int, int]]) -> None:
    trials, untils = (np.array(each) for each in zip(*seen, strict=True))
    rows = highest(trials, untils)
    assert trials[rows].tolist() == sorted({trial for trial, _ in seen})
    assert all(untils[row] == max(until for trial, until in seen if trial == trials[row]) for row in rows)


@pytest.mark.parametrize("n", [2, 9, 100, 5000])
def test_how_many_are_good_and_others(n: int) -> None:
    found = model(outcomes_of(n))
    n_good = len(found.good.points)
    assert n_good == min(max(LEAST_GOOD, n // 10), MOST_GOOD, n - 1)
    assert len(found.others.points) == min(n - n_good, MOST_OTHERS)


def test_all_failed_is_a_model_too() -> None:
    outcomes = Outcomes(len(SPACE))
    points, active = SPACE.snap(np.random.default_rng(0).random((20, len(SPACE))))
    for trial in range(20):
        outcomes.add(trial, 1, math.inf, points[trial], active[trial])
    found = model(outcomes).draw(SPACE, np.random.default_rng(0))
    assert np.isfinite(found.log_ratio).all()
