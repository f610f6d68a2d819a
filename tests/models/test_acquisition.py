"""Expected improvement, and the pool of candidates in which it is sought."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import integrate, stats

from raytuner.models.acquisition import (
    Acquisition,
    Choice,
    ConfidenceBound,
    Improvement,
    Pool,
    UnderWay,
    keys,
    log_expected_improvement,
)
from raytuner.models.gaussian_process import Floats, GaussianProcess
from raytuner.models.multi_fidelity import Features, Surrogate
from raytuner.models.parzen import Bools
from raytuner.space import Space, choice, randint, uniform

SPACE = Space({"x": uniform(0, 1), "y": uniform(0, 1), "kind": choice(["a", {"m": uniform(0, 1)}])})


@given(st.floats(-3, 3), st.floats(0.01, 3), st.floats(-3, 3))
def test_expected_improvement_is_the_integral(mean: float, deviation: float, best: float) -> None:
    log_ei = log_expected_improvement(np.array([mean]), np.array([deviation]), best)[0]
    if (best - mean) / deviation < -8:
        return
    low = min(best, mean) - 12 * deviation
    expected, _ = integrate.quad(
        lambda f: (best - f) * stats.norm.pdf(f, mean, deviation), low, best, points=[mean] if mean < best else None
    )
    assert math.exp(log_ei) == pytest.approx(expected, rel=1e-4, abs=1e-15)


@given(st.floats(-1e6, 1e6))
def test_it_is_finite_and_falls_with_the_mean_far_from_the_best(best: float) -> None:
    means = np.linspace(-50, 50, 2001)
    found = log_expected_improvement(means, np.ones(2001), best)
    assert np.isfinite(found).all()
    assert (np.diff(found) <= 1e-9 * np.abs(found[1:])).all()


def test_it_is_continuous_where_its_expressions_meet() -> None:
    for u in (-1.0, -10.0):
        below, above = log_expected_improvement(np.array([-u + 1e-9, -u - 1e-9]), np.ones(2), 0.0)
        assert below == pytest.approx(above, abs=2e-3)


# ------------------------------------------------------------------------------------------------------------ the pool


def bowl(X: Floats) -> Floats:
    """Best at x = 0.3, y = 0.6, and in the first option."""
    names = [param.name for param in SPACE.params]
    x, y, kind = (X[:, names.index(name)] for name in ("x", "y", "kind"))
    return np.asarray((x - 0.3) ** 2 + (y - 0.6) ** 2 + (kind > 0.5))


def surrogate(n: int = 30) -> Surrogate:
    features = Features.of(SPACE)
    points, active = SPACE.snap(np.random.default_rng(1).random((n, len(SPACE))))
    inputs = features.at(points, active, np.zeros(n), 0.0)
    return Surrogate(
        features,
        GaussianProcess.fit(features.kernel, inputs, bowl(points), features.noise),
        points,
        active,
        0.0,
        np.arange(n),
    )


MODEL = surrogate()


def pool(model: Surrogate = MODEL, seen: frozenset[bytes] = frozenset(), seed: int = 0) -> Pool:
    return Pool(SPACE, model, seen, np.random.default_rng(seed))


def under_way(point: Floats, active: Bools, t: float) -> UnderWay:
    return UnderWay(0, 1, t, point, active, keys(point[None])[0])


def chosen(of: Pool, begun: list[UnderWay]) -> Choice:
    found = of.choose(begun)
    assert found is not None
    return found


def test_the_best_candidate_beats_a_thousand_random_points() -> None:
    found = chosen(pool(), [])
    X, active = SPACE.snap(np.random.default_rng(5).random((1000, len(SPACE))))
    mean, deviation = MODEL.predict(X, active)
    assert found.acquisition >= log_expected_improvement(mean, deviation, found.best).max()
    assert bowl(found.point[None])[0] < 0.05


def test_what_is_said_of_a_choice_is_what_the_model_says() -> None:
    found = chosen(pool(), [])
    mean, deviation = MODEL.predict(found.point[None], found.active[None])
    assert (found.mean, found.deviation) == (pytest.approx(mean[0]), pytest.approx(deviation[0], rel=1e-6))


def test_trials_begun_since_count_as_if_the_model_had_been_given_them() -> None:
    """The rows added one by one equal the posterior that is made anew; so do the means, which stay."""
    of, begun = pool(), list[UnderWay]()
    for _ in range(6):
        found = chosen(of, begun)
        again = MODEL
        if begun:
            points, active = np.array([each.point for each in begun]), np.array([each.active for each in begun])
            again = MODEL.given(points, active, np.array([each.t for each in begun]))
        mean, deviation = again.predict(found.point[None], found.active[None])
        assert found.mean == pytest.approx(mean[0], abs=1e-8)
        assert found.deviation == pytest.approx(deviation[0], rel=1e-5)
        assert found.best == pytest.approx(again.predict(again.points, again.active)[0].min(), abs=1e-8)
        begun.append(under_way(found.point, found.active, -1.0 if len(begun) % 2 else 0.0))
    assert len({each.key for each in begun}) == 6


def test_an_answer_depends_on_what_is_under_way_and_not_on_what_was_asked_before() -> None:
    of, other = pool(), pool()
    first = chosen(of, [])
    second = chosen(of, [under_way(first.point, first.active, 0.0)])
    corner = SPACE.snap(np.full((1, len(SPACE)), 0.9))[0][0]
    elsewhere = under_way(corner, np.ones(len(SPACE), dtype=np.bool_), 0.0)
    third = chosen(of, [elsewhere])
    assert keys(chosen(other, [elsewhere]).point[None]) == keys(third.point[None])
    assert keys(chosen(of, [under_way(first.point, first.active, 0.0)]).point[None]) == keys(second.point[None])
    assert keys(chosen(of, []).point[None]) == keys(first.point[None])


@pytest.mark.parametrize("acquisition", [Improvement(), ConfidenceBound()])
def test_a_batch_is_that_of_looking_at_all_candidates_each_time(acquisition: Acquisition) -> None:
    """The lazy search passes over candidates that cannot be the best: it finds the same as one that begins anew."""

    def fresh() -> Pool:
        return Pool(SPACE, MODEL, frozenset(), np.random.default_rng(3), acquisition)

    of, begun = fresh(), list[UnderWay]()
    for count in range(60):
        found = chosen(of, begun)
        if count % 7 == 6:
            anew = chosen(fresh(), begun)
            assert keys(anew.point[None]) == keys(found.point[None])
            assert anew.acquisition == found.acquisition
        begun.append(under_way(found.point, found.active, -float(count % 3)))
    assert len({each.key for each in begun}) == 60


def test_what_was_tried_is_not_proposed() -> None:
    first = chosen(pool(), [])
    second = chosen(pool(seen=frozenset(keys(first.point[None]))), [])
    assert keys(second.point[None]) != keys(first.point[None])


def test_a_small_space_runs_out() -> None:
    space = Space({"n": randint(1, 4), "kind": choice(["a", "b"])})
    features = Features.of(space)
    points, active = space.snap(np.random.default_rng(0).random((40, 2)))
    model = Surrogate(
        features,
        GaussianProcess.fit(
            features.kernel, features.at(points, active, np.zeros(40), 0.0), points[:, 0], features.noise
        ),
        points,
        active,
        0.0,
        np.arange(40),
    )
    assert len(set(keys(points))) == 6
    assert Pool(space, model, set(keys(points[:-1])), np.random.default_rng(0)).choose([]) is None


@given(st.floats(-60, 20), st.floats(1e-3, 1e3))
def test_the_slopes_of_the_acquisitions(u: float, deviation: float) -> None:
    """By central differences, and the value is that of many at once. Where expressions meet there is a small jump."""
    assume(min(abs(u + 1.0), abs(u + 10.0)) > 1e-4)
    mean, best = -u * deviation, 0.0
    for acquisition in (Improvement(), ConfidenceBound(1.5)):
        value, of_mean, of_deviation = acquisition.slope(mean, deviation, best)
        assert value == pytest.approx(float(acquisition.at(np.array([mean]), np.array([deviation]), best)[0]), rel=1e-6)
        h = 1e-5 * deviation

        def at(m: float, d: float, of: Acquisition = acquisition) -> float:
            return of.slope(m, d, best)[0]

        assert (at(mean + h, deviation) - at(mean - h, deviation)) / (2 * h) == pytest.approx(
            of_mean, rel=1e-3, abs=1e-9
        )
        steepness = (at(mean, deviation + h) - at(mean, deviation - h)) / (2 * h)
        assert steepness == pytest.approx(of_deviation, rel=1e-3, abs=1e-6 / deviation)
