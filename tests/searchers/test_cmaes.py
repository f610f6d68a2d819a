"""CMA-ES: generations out of trials that come and go, what is searched, and that it helps."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from raytuner.actions import Proposal
from raytuner.searchers import CMAES, RandomSearch
from raytuner.searchers.cmaes import CMAESSearcher
from raytuner.space import Space, choice, grid_search, lograndint, loguniform, quniform, randint, randn, uniform
from raytuner.trial import Config
from tests.searchers.test_bohb import ask, best_of, seen

CUBE = Space({f"x{i}": uniform(-1, 2) for i in range(4)})  # population_size is 8


def sphere(config: Config) -> float:
    return float(sum((value - 0.3) ** 2 for value in config.values()))


def run(searcher: CMAESSearcher, trials: range, value: Callable[[Config], float | None] = sphere) -> list[Proposal]:
    """One after the other."""
    found = []
    for trial in trials:
        proposal = ask(searcher, trial)
        searcher.tell(seen(trial, proposal.config, 1, value(proposal.config)))
        found.append(proposal)
    return found


def test_a_grid_is_refused() -> None:
    with pytest.raises(ValueError, match=r"CMAES.*grid_search.*choice.*GridSearch"):
        CMAES().build(Space({"x": grid_search([1, 2])}), 0)


@pytest.mark.parametrize("wrong", [{"population_size": 3}, {"sigma0": 0.0}, {"sigma0": 2.0}, {"sigma0": math.nan}])
def test_settings_out_of_range_are_named(wrong: dict[str, Any]) -> None:
    [(name, value)] = wrong.items()
    with pytest.raises(ValueError, match=f"{name} must be .*got {value!r}"):
        CMAES(**wrong)


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cmaes", None)
    settings = CMAES()  # writing it down needs no library
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'raytuner\[cmaes\]'"):
        settings.build(CUBE, 0)


# --------------------------------------------------------------------------------------------------- generations


def test_a_generation_is_over_when_population_size_members_were_heard_of() -> None:
    found = run(CMAES().build(CUBE, 0), range(40))
    assert [proposal.note["generation"] for proposal in found] == [trial // 8 for trial in range(40)]


def test_more_members_than_population_size_are_of_the_same_distribution_and_late_ones_are_passed_over() -> None:
    searcher, other = CMAES(5).build(CUBE, 0), CMAES(5).build(CUBE, 0)
    for each in (searcher, other):
        configs = [ask(each, trial).config for trial in range(12)]
        for trial in range(5):
            each.tell(seen(trial, configs[trial], 1, sphere(configs[trial])))
    for trial in range(5, 12):
        searcher.tell(seen(trial, configs[trial], 1, -1.0))
    assert ask(searcher, 20).note["generation"] == 1
    assert ask(searcher, 21) == ask(other, 21)


def test_only_outcomes_at_the_same_rung_are_compared() -> None:
    searcher = CMAES(4).build(CUBE, 0)
    for trial in range(6):
        config = ask(searcher, trial).config
        searcher.tell(seen(trial, config, 1 if trial % 2 else 3, 1.0))
    assert ask(searcher, 6).note["generation"] == 0
    searcher.tell(seen(6, CUBE.decode([0.5] * 4), 3, 1.0))
    assert ask(searcher, 7).note["generation"] == 1


def test_the_first_outcome_of_a_member_counts() -> None:
    one, two = CMAES().build(CUBE, 0), CMAES().build(CUBE, 0)
    for trial in range(24):
        config = ask(one, trial).config
        assert ask(two, trial).config == config
        for searcher in (one, two):
            searcher.tell(seen(trial, config, 1, sphere(config)))
        two.tell(seen(trial, config, 3, -sphere(config)))
    assert ask(one, 100) == ask(two, 100)


def test_only_ranks_matter_and_failed_ones_are_the_worst() -> None:
    one, two = CMAES().build(CUBE, 0), CMAES().build(CUBE, 0)
    run(one, range(40), lambda config: None if config["x0"] > 1 else sphere(config))
    run(two, range(40), lambda config: 1e300 if config["x0"] > 1 else 1e10 * sphere(config) ** 3)
    assert ask(one, 100) == ask(two, 100)


def test_where_all_failed_nothing_is_learned() -> None:
    searcher = CMAES().build(CUBE, 0)
    first = searcher._distribution.mean.copy()
    found = run(searcher, range(20), lambda config: None)
    assert found[-1].note["generation"] == 2
    assert (searcher._distribution.mean == first).all()


def test_members_are_drawn_again_when_they_are_recalled() -> None:
    one, two = CMAES().build(CUBE, 3), CMAES().build(CUBE, 3)
    for trial, proposal in enumerate(run(one, range(50))):
        two.recall(trial, 1, [], proposal)
        two.tell(seen(trial, proposal.config, 1, sphere(proposal.config)))
    assert ask(one, 50) == ask(two, 50)


# -------------------------------------------------------------------------------------------------- what is searched


def test_which_parameters_have_a_dimension() -> None:
    space = Space(
        {
            "a": uniform(0, 1),
            "b": loguniform(1e-3, 1),
            "c": randn(),
            "d": randint(0, 10),
            "e": lograndint(1, 10),
            "f": quniform(0, 1, 0.25),
            "g": randint(0, 100_000),
            "h": randint(3, 4),
            "i": choice([1, 2]),
            "j": choice([{"k": uniform(0, 1)}, {}]),
        }
    )
    searcher = CMAES().build(space, 0)
    assert [space.params[j].name for j in searcher._columns] == list("abcdefg")
    assert searcher._steps == pytest.approx([0, 0, 0, 0.1, 0, 0.2, 0])
    found = run(searcher, range(40), lambda config: config["a"])
    assert all(space.contains(proposal.config) for proposal in found)
    assert {proposal.config["i"] for proposal in found} == {1, 2}


@pytest.mark.parametrize(
    "params", [{"x": uniform(0, 1)}, {"a": choice([1, 2]), "b": choice([3, 4])}, {"x": 1}, {"a": randint(0, 1)}]
)
def test_fewer_than_two_dimensions_are_searched_at_random(params: dict[str, Any]) -> None:
    space = Space(params)
    assert ask(CMAES().build(space, 0), 5).config == ask(RandomSearch().build(space, 0), 5).config


def test_proposals_are_feasible() -> None:
    space = Space({"x0": uniform(0, 1), "x1": uniform(0, 1)}, [lambda config: config["x0"] < config["x1"]])
    one, two = CMAES().build(space, 0), CMAES().build(space, 0)
    for trial, proposal in enumerate(run(one, range(60))):
        assert proposal.config["x0"] < proposal.config["x1"]
        two.recall(trial, 1, [], proposal)
        two.tell(seen(trial, proposal.config, 1, sphere(proposal.config)))
    assert ask(one, 60) == ask(two, 60)


# ------------------------------------------------------------------------------------------------ is it any good?


@pytest.mark.parametrize("seed", range(3))
def test_it_converges_on_a_sphere(seed: int) -> None:
    found = run(CMAES().build(CUBE, seed), range(500))
    assert min(sphere(proposal.config) for proposal in found) < 1e-6


def test_integers_are_found_too() -> None:
    space = Space({"x": uniform(0, 1), "y": uniform(0, 1), "n": randint(0, 20)})

    def value(config: Config) -> float:
        return float((config["x"] - 0.3) ** 2 + (config["y"] - 0.6) ** 2 + (config["n"] - 17) ** 2)

    found = run(CMAES().build(space, 0), range(300), value)
    assert min(value(proposal.config) for proposal in found) < 1e-3


def test_what_has_converged_begins_anew_with_twice_the_population() -> None:
    searcher = CMAES(4).build(Space({"x": uniform(0, 1), "y": uniform(0, 1)}), 0)
    found = run(searcher, range(600))
    assert found[-1].note["restarts"] >= 1
    first = next(trial for trial, proposal in enumerate(found) if proposal.note["restarts"])
    assert np.ptp([found[trial].config["x"] for trial in range(first - 4, first)]) < 1e-6
    assert np.ptp([found[trial].config["x"] for trial in range(first, first + 8)]) > 0.05
    assert {proposal.note["generation"] for proposal in found[first : first + 8]} == {found[first].note["generation"]}


def test_cmaes_beats_random() -> None:
    """Paired t-test at 1 % of the log regrets; a searcher no better than random would pass once in 100.

    How often it would fail were the seeds drawn anew, by sets of as many drawn from more seeds: once in 27 (50 seeds;
    it won 94 % of the pairs and had a fifth of random's regret in the geometric mean).
    """
    algorithm = CMAES()
    log_ratio = [math.log(best_of(algorithm, seed, 120) / best_of(RandomSearch(), seed, 120)) for seed in range(12)]
    assert stats.ttest_1samp(log_ratio, 0.0, alternative="less").pvalue < 0.01
