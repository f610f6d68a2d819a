"""What every searcher must do (`raytuner.testing`). A new one is a line in `SEARCHERS_UNDER_TEST`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from raytuner.history import History, Row
from raytuner.protocols import SearchAlgorithm
from raytuner.searchers import (
    BOHB,
    CMAES,
    SEARCHERS,
    TPE,
    DifferentialEvolution,
    GPSearch,
    GridSearch,
    RandomSearch,
    SobolSearch,
)
from raytuner.space import Space
from raytuner.spelling import make, spell
from raytuner.testing import SPACES, SearcherContract, life, proposals, value_of
from tests.searchers.warm_started import WarmStarted

__all__ = ["SEARCHERS_UNDER_TEST", "SPACES"]


def old_study() -> History:
    """An old study that searched all of `SPACES`: in each a few of its rows fit."""
    rows = []
    for space in map(Space, SPACES.values()):
        for i in range(6):
            config = space.sample(np.random.default_rng([11, i]))
            value = None if i == 5 else value_of(space, config)
            rows.append(Row(len(rows), 1 + 2 * (i % 2), value, config))
    return History("of all spaces", tuple(rows))


SEARCHERS_UNDER_TEST: dict[str, SearchAlgorithm] = {
    "random": RandomSearch(),
    "grid": GridSearch(),
    "sobol": SobolSearch(),
    "bohb": BOHB(),
    "bohb, warm-started from a history": BOHB(warm_start=[old_study()]),
    "kde": BOHB(model="kde"),
    "kde, early": BOHB(model="kde", min_points_in_model=2, random_fraction=0.1, num_samples=16),
    "tpe": TPE(),
    "tpe, univariate": TPE(multivariate=False, n_initial_points=16, n_ei_candidates=8),
    "evolution": DifferentialEvolution(),
    "evolution, small": DifferentialEvolution(population_size=5, crossover_prob=0.9),
    "cmaes": CMAES(),
    "warm-started": WarmStarted(),
    "gp": GPSearch("ucb", n_initial_points=4),
}


@pytest.mark.usefixtures("few_candidates")
class TestSearchers(SearcherContract):
    def algorithms(self) -> Mapping[str, SearchAlgorithm]:
        return SEARCHERS_UNDER_TEST

    def test_another_seed_other_proposals(self, name: str) -> None:
        """Not one is the same."""
        one, two = (proposals(life(*self.build(name, self.typical, seed))) for seed in (0, 1))
        chosen = [(a, b) for a, b in zip(one, two, strict=True) if a.note.get("origin") != "portfolio"]
        assert len(chosen) >= 20
        assert all(a.config != b.config for a, b in chosen)

    def test_a_full_life_has_its_proposals(self, name: str, place: str) -> None:
        """None of ours waits or has no more, as foreign ones may."""
        assert len(proposals(life(*self.build(name, place)))) == 24

    def test_a_model_is_used_where_there_are_enough_outcomes(self, name: str, place: str) -> None:
        """Otherwise the other tests of this file say nothing about models."""
        searcher, space = self.build(name, place)
        notes = [p.note for p in proposals(life(searcher, space))]
        match SEARCHERS_UNDER_TEST[name]:
            case BOHB(min_points_in_model=None, warm_start=()) if len(space) > 20:
                assert all(note["origin"] == "random" for note in notes)
            case BOHB(model="joint") if len(space) == 0:
                assert all(note["origin"] == "random" for note in notes)
            case GPSearch(n_initial_points=None) if len(space) > 20:
                assert all(note["origin"] == "sobol" for note in notes)
            case TPE() | GPSearch() if len(space) == 0:
                assert all(note["origin"] == "random" for note in notes)
            case DifferentialEvolution(population_size=size):
                evolved = len(space) > 0 and (size is not None or len(space) < 12)
                assert any(note["origin"] == "evolution" for note in notes) == evolved
            case CMAES():
                numeric = sum(not param.categories and param.condition is None for param in space.params)
                assert {note["origin"] for note in notes} == {"model" if numeric >= 2 else "random"}
                assert numeric < 2 or max(note.get("generation", 0) for note in notes) >= 1
            case BOHB() | TPE() | GPSearch():
                assert any(note["origin"] == "model" for note in notes)
            case SobolSearch() if len(space) > 0:
                points = [note["point"] for note in notes]
                assert points == (sorted(set(points)) if space.constraints else list(range(24)))
            case WarmStarted() if len(space) > 0:
                assert len({note["log_scale"] for note in notes}) > 5


@pytest.mark.parametrize("name", SEARCHERS_UNDER_TEST)
def test_settings_are_rebuilt_from_their_name_and_arguments(name: str) -> None:
    settings = SEARCHERS_UNDER_TEST[name]
    kinds = SEARCHERS | {"WarmStarted": WarmStarted}
    assert make(spell(settings, kinds), kinds) == settings
