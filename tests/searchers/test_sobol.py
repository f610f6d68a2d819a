"""Quasi-random search: whose points they are, and how evenly they lie."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import qmc

from raytuner.actions import Proposal
from raytuner.searchers import SobolSearch, sobol
from raytuner.space import Space, choice, grid_search, loguniform, randint, sample_from, uniform

CUBE = {f"x{i}": uniform(0, 1) for i in range(4)}


def ask(searcher: sobol.SobolSearcher, trial: int) -> Proposal:
    answer = searcher.ask(trial, 1, [])
    assert isinstance(answer, Proposal)
    return answer


def points(space: Space, seed: int, n: int) -> np.ndarray:
    searcher = SobolSearch().build(space, seed)
    return space.encode_many([ask(searcher, trial).config for trial in range(n)])[0]


def test_a_grid_is_refused() -> None:
    with pytest.raises(ValueError, match=r"SobolSearch.*grid_search.*GridSearch"):
        SobolSearch().build(Space({"x": grid_search([1, 2])}), 0)


def test_more_dimensions_than_there_are_direction_numbers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qmc.Sobol, "MAXDIM", 3)
    with pytest.raises(ValueError, match="knows 3 dimensions, but the space has 4"):
        SobolSearch().build(Space(CUBE), 0)


@pytest.mark.parametrize("seed", range(3))
def test_discrepancy_is_far_below_that_of_random_points(seed: int) -> None:
    """Of the squared centred L2-discrepancy random points have their expectation, 4.5 times what is asked for here."""
    found = qmc.discrepancy(points(Space(CUBE), seed, 256))
    random = [qmc.discrepancy(np.random.default_rng([seed, i]).random((256, 4))) for i in range(20)]
    assert found < min(random) / 4


@pytest.mark.parametrize("m", [1, 4, 9])
def test_each_part_of_a_range_is_tried_once(m: int) -> None:
    x = points(Space({"a": uniform(-3, 5), "b": loguniform(1e-5, 1)}), 7, 2**m)
    assert (np.sort(np.floor(x * 2**m), axis=0) == np.arange(2**m)[:, None]).all()


def test_each_option_and_integer_has_its_share() -> None:
    searcher = SobolSearch().build(Space({"kind": choice(list("abcd")), "depth": randint(0, 8)}), 1)
    configs = [ask(searcher, trial).config for trial in range(64)]
    assert all(sum(config["kind"] == kind for config in configs) == 16 for kind in "abcd")
    assert all(sum(config["depth"] == depth for config in configs) == 8 for depth in range(8))


def test_points_are_those_of_scipy_in_any_order() -> None:
    """Backwards, across blocks, and with others asked for between."""
    space = Space(CUBE)
    expected = points(space, 5, 600)
    searcher = SobolSearch().build(space, 5)
    for trial in (599, 3, 255, 256, 0, 511, 512, 300):
        assert space.encode(ask(searcher, trial).config)[0] == pytest.approx(expected[trial], abs=1e-12)
    engine = qmc.Sobol(4, seed=np.random.default_rng([5, sobol._SCRAMBLE]))
    assert expected[:512] == pytest.approx(engine.random(512), abs=1e-12)


def test_the_end_of_the_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sobol, "_LAST", 8)
    searcher = SobolSearch().build(Space(CUBE), 0)
    assert ask(searcher, 7).note == {"origin": "sobol", "point": 7}
    assert ask(searcher, 8).note == {"origin": "random"}


def test_sample_from_sees_the_point() -> None:
    searcher = SobolSearch().build(Space({"x": uniform(0, 1), "y": sample_from(lambda config: 2 * config["x"])}), 0)
    config = ask(searcher, 3).config
    assert config["y"] == 2 * config["x"]


def test_constraints_leave_the_feasible_points_in_their_order() -> None:
    half_of = Space(CUBE, [lambda config: config["x0"] < config["x1"]])
    everywhere, half = SobolSearch().build(Space(CUBE), 3), SobolSearch().build(half_of, 3)
    allowed = [c for c in (ask(everywhere, trial).config for trial in range(100)) if c["x0"] < c["x1"]]
    assert [ask(half, trial).config for trial in range(len(allowed))] == allowed
    again = SobolSearch().build(half_of, 3)
    assert ask(again, 20).config == allowed[20]


def test_where_hardly_any_point_is_allowed_trials_are_random(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sobol, "_REFUSED", 50)
    corner = Space(CUBE, [lambda config: config["x0"] > 0.999])
    assert ask(SobolSearch().build(corner, 3), 0).note == {"origin": "random"}
