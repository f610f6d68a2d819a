"""GPSearch: its settings, that it helps, and what sets it apart from BOHB's model of all rungs."""

from __future__ import annotations

import math
from typing import Any

import pytest
from scipy import stats

from raytuner.actions import Proposal
from raytuner.searchers import GPSearch, RandomSearch, SobolSearch
from raytuner.space import Space, grid_search, uniform
from raytuner.trial import Observation
from tests.searchers.test_bohb import BOWL, ask, best_of, seen


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"acquisition": "pi"}, "acquisition must be 'ei' or 'ucb': got 'pi'"),
        ({"acquisition": "ucb", "beta": 0}, "beta must be positive: got 0"),
        ({"beta": 3.0}, "beta is 3.0, but acquisition='ei' has no use for it"),
        ({"n_initial_points": 0}, "n_initial_points must be None or at least 1: got 0"),
        ({"random_fraction": -0.1}, r"random_fraction must be in \[0, 1\]: got -0.1"),
        ({"values": "raw"}, "values must be .*: got 'raw'"),
    ],
)
def test_settings_out_of_range_are_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GPSearch(**wrong)


def test_a_grid_is_refused() -> None:
    with pytest.raises(ValueError, match=r"grid_search.*choice.*GridSearch"):
        GPSearch().build(Space({"x": grid_search([1, 2])}), 0)


@pytest.mark.parametrize("algorithm", [GPSearch(), GPSearch("ucb")], ids=["ei", "ucb"])
def test_it_beats_random(algorithm: GPSearch) -> None:
    """Paired t-test at 1 % of the log regrets; a searcher no better than random would pass once in 100.

    Over 30 seeds the log ratio was -3.7 +- 2.5 ("ei", it won 90 % of the pairs) and -3.0 +- 1.5 ("ucb", 97 %): were the
    seeds drawn anew, normal theory has twelve of them fail once in 80 and once in 15,000.
    """
    log_ratio = [math.log(best_of(algorithm, seed, 30) / best_of(RandomSearch(), seed, 30)) for seed in range(12)]
    assert stats.ttest_1samp(log_ratio, 0.0, alternative="less").pvalue < 0.01


def test_it_begins_with_a_sobol_sequence() -> None:
    space = Space(BOWL)
    searcher, sobol = GPSearch().build(space, 3), SobolSearch().build(space, 3)
    first = [ask(searcher, trial).config for trial in range(7)]
    assert first == [ask(sobol, trial).config for trial in range(7)]


LINE = Space({"x": uniform(0, 1)})


def test_a_trial_counts_once_with_its_highest_rung() -> None:
    def told(untils: tuple[int, ...]) -> Proposal:
        searcher = GPSearch().build(LINE, 0)
        for trial in range(10):
            for until in untils:
                searcher.tell(seen(trial, {"x": trial / 10}, until, (trial / 10 - 0.37) ** 2))
        return ask(searcher, 100)

    once, often = told((9,)), told((1, 3, 9))
    assert once.note["outcomes"] == 10
    assert once.config["x"] == pytest.approx(often.config["x"], abs=0.02)
    assert float(once.config["x"]) == pytest.approx(0.37, abs=0.1)


def test_a_wide_bound_explores() -> None:
    def next_of(beta: float) -> float:
        searcher = GPSearch("ucb", beta=beta, n_initial_points=2).build(LINE, 0)
        for trial, x in enumerate((0.0, 0.1, 0.2, 0.3)):
            searcher.tell(Observation(trial, {"x": x}, 1, 1.0, 1, (x - 0.15) ** 2))
        return float(ask(searcher, 100).config["x"])

    assert abs(next_of(0.01) - 0.15) < 0.06
    assert next_of(50.0) > 0.5
