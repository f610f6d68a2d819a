"""Ray's grid semantics: the grid x num_samples, other domains drawn anew for each trial."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from raytuner.actions import Proposal
from raytuner.protocols import Searcher
from raytuner.searchers import GridSearch, RandomSearch
from raytuner.space import Space, choice, grid_search, uniform

GRID: dict[str, Any] = {
    "batch": grid_search([16, 32]),
    "optimiser": {"name": grid_search(["sgd", "adam", "lion"])},
    "lr": uniform(0, 1),
    "epochs": 5,
}


def ask(searcher: Searcher, trial: int) -> Proposal:
    answer = searcher.ask(trial, 1, [])
    assert isinstance(answer, Proposal)
    return answer


def test_every_point_of_the_grid_comes_num_samples_times() -> None:
    space = Space(GRID)
    searcher = GridSearch().build(space, 0)
    num_samples = 4
    configs = [ask(searcher, trial).config for trial in range(num_samples * space.grid_size)]
    points = Counter((config["batch"], config["optimiser"]["name"]) for config in configs)
    assert points == {(b, o): num_samples for b in (16, 32) for o in ("sgd", "adam", "lion")}
    assert len({config["lr"] for config in configs}) == len(configs)
    assert all(space.contains(config) and config["epochs"] == 5 for config in configs)


def test_a_round_is_complete_before_the_next_begins() -> None:
    searcher = GridSearch().build(Space(GRID), 0)
    points = [ask(searcher, trial).note for trial in range(8)]
    assert points == [{"origin": "grid", "point": point} for point in (0, 1, 2, 3, 4, 5, 0, 1)]


def test_a_trial_gets_its_point_whatever_was_asked_before() -> None:
    space = Space(GRID)
    forwards, backwards = GridSearch().build(space, 3), GridSearch().build(space, 3)
    trials = range(10)
    found = {trial: ask(backwards, trial) for trial in reversed(trials)}
    assert [ask(forwards, trial) for trial in trials] == [found[trial] for trial in trials]


def test_without_a_grid_it_is_random_search() -> None:
    space = Space({"lr": uniform(0, 1), "name": choice(["a", "b"])})
    grid, random = GridSearch().build(space, 2), RandomSearch().build(space, 2)
    assert [ask(grid, trial) for trial in range(10)] == [ask(random, trial) for trial in range(10)]


def test_random_search_refuses_a_grid() -> None:
    with pytest.raises(ValueError, match=r"RandomSearch\(\).*use GridSearch\(\)"):
        RandomSearch().build(Space(GRID), 0)
