"""What the joint model makes of outcomes and of points. Letters: `raytuner.models.multi_fidelity`."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from raytuner.models.gaussian_process import Floats, GaussianProcess
from raytuner.models.multi_fidelity import (
    Features,
    Outcomes,
    Surrogate,
    Values,
    aligned,
    chosen,
    rungs,
    scores,
)
from raytuner.space import Space, choice, loguniform, randint, uniform

INF = math.inf
BRANCHES = Space(
    {
        "net": choice(
            [{"kind": "a", "lr": uniform(0, 1)}, {"kind": "b", "lr": uniform(0, 1), "m": uniform(0, 1)}, "c"]
        ),
        "z": uniform(0, 1),
    }
)


# ------------------------------------------------------------------------------------------------------- of outcomes


def test_rungs_that_grow_threefold_are_one_apart() -> None:
    assert rungs([1, 3, 27]).tolist() == pytest.approx([0, 1, 3])


def test_a_rung_is_shifted_by_the_median_difference_shrunk_where_few_were_seen_at_both() -> None:
    #  trial:            0    1    2    0    1    2    3
    values = np.array([5.0, 6.0, 9.0, 1.0, 2.0, 7.0, 4.0])
    found = aligned(np.array([0, 1, 2, 0, 1, 2, 3]), np.array([1, 1, 1, 3, 3, 3, 3]), values)
    shift = -4.0 * 3 / 4
    assert found.tolist() == pytest.approx([5 + shift, 6 + shift, 9 + shift, 1, 2, 7, 4])


def test_shifts_add_up_over_rungs_and_failures_are_as_the_worst() -> None:
    trials, untils = np.array([0, 0, 0, 1, 2]), np.array([1, 3, 9, 1, 3])
    found = aligned(trials, untils, np.array([5.0, 3.0, 2.0, INF, INF]))
    low, middle = -2.0 / 2 - 1.0 / 2, -1.0 / 2
    assert found.tolist() == pytest.approx([5 + low, 3 + middle, 2, 5 + low, 5 + middle])


def test_all_failed() -> None:
    assert aligned(np.array([0, 1]), np.array([1, 3]), np.array([INF, INF])).tolist() == [0, 0]


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=40), st.sampled_from(["log", "standard", "rank"]))
def test_scores_keep_the_order_of_all_but_the_worst(values: list[float], how: Values) -> None:
    y = np.array(values)
    found = scores(y, how)
    assert np.isfinite(found).all()
    order = np.argsort(y, kind="stable")
    assert (np.diff(found[order]) >= -1e-9).all()
    if how != "rank":
        high = np.quantile(y, 0.8)
        assert (found[y >= high] == found.max()).all()


def test_normal_scores_of_ties_are_equal_and_symmetric() -> None:
    found = scores(np.array([3.0, 1.0, 1.0, 3.0, 2.0]), "rank")
    assert found[1] == found[2]
    assert -found[1] == pytest.approx(found[0])
    assert found[3] == found[0]
    assert found[4] == pytest.approx(0.0)


def test_an_outcome_counts_once_per_trial_and_rung() -> None:
    outcomes, x, on = Outcomes(2), np.zeros(2), np.ones(2, dtype=np.bool_)
    assert [outcomes.add(0, 1, 5.0, x, on), outcomes.add(0, 1, 6.0, x, on), outcomes.add(0, 3, 4.0, x, on)] == [1, 0, 1]
    assert (outcomes.values.tolist(), len(outcomes), outcomes.tried) == ([5.0, 4.0], 2, 1)
    assert outcomes.has(0)
    assert not outcomes.has(1)


@given(st.integers(1, 400), st.integers(0, 2**32 - 1))
def test_what_is_used_of_many_outcomes(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    y, t = rng.normal(size=n), rng.integers(0, 4, n).astype(float)
    rows = chosen(y, t, 100, np.random.default_rng(0))
    assert len(rows) == min(n, 100)
    assert (np.diff(rows) > 0).all()
    highest = np.flatnonzero(t == t.max())
    assert set(highest[-15:]) <= set(rows) or n <= 100 or len(highest) < 15
    assert int(np.argmin(y - 0.3 * (t - t.max()) * y.std())) in rows


# --------------------------------------------------------------------------------------------------------- of points


def distance(space: Space, one: object, other: object) -> float:
    X, active = space.encode_many([one, other])  # type: ignore[list-item]
    inputs = Features.of(space).at(X, active, np.zeros(2), 0.0)
    return float(np.linalg.norm(inputs[0] - inputs[1]))


def test_options_are_at_equal_distances_and_numbers_at_their_own() -> None:
    space = Space({"a": choice([1, 2, 3]), "b": uniform(0, 1)})
    assert [distance(space, {"a": 1, "b": 0.5}, {"a": a, "b": 0.5}) for a in (1, 2, 3)] == pytest.approx([0, 1, 1])
    assert distance(space, {"a": 1, "b": 0.2}, {"a": 1, "b": 0.7}) == pytest.approx(0.5)


def test_a_parameter_of_the_same_name_in_two_branches_is_one() -> None:
    features = Features.of(BRANCHES)
    names = [param.name for param in BRANCHES.params]
    shared = [j for j, name in enumerate(names) if name == "net/lr"]
    assert len(shared) == 2
    assert features.parameter[shared[0]] == features.parameter[shared[1]]
    same, other = (
        distance(
            BRANCHES, {"net": {"kind": "a", "lr": 0.2}, "z": 0}, {"net": {"kind": "b", "lr": lr, "m": 0.5}, "z": 0}
        )
        for lr in (0.2, 0.9)
    )
    assert other**2 - same**2 == pytest.approx(0.49)


def test_an_inactive_parameter_is_as_far_from_each_of_its_values() -> None:
    space = Space({"a": choice([{"m": uniform(0, 1)}, "none"])})
    near, far = (distance(space, {"a": "none"}, {"a": {"m": m}}) for m in (0.5, 0.0))
    assert 1 < near < far < 1.2


def test_a_point_in_all_branches_that_have_its_parameters() -> None:
    features = Features.of(BRANCHES)
    X, active = BRANCHES.encode_many([{"net": {"kind": "b", "lr": 0.3, "m": 0.6}, "z": 0.1}])
    filled, known = features.spread(X[0], active[0])
    assert filled[features.parameter == features.parameter[[p.name for p in BRANCHES.params].index("net/lr")]] == (
        pytest.approx([0.3, 0.3])
    )
    assert known.all()


# ---------------------------------------------------------------------------------------------------------- the model


def fitted(space: Space, points: Floats, active: np.ndarray, t: Floats, y: Floats, top: float) -> Surrogate:
    features = Features.of(space)
    process = GaussianProcess.fit(features.kernel, features.at(points, active, t, top), y, features.noise)
    return Surrogate(features, process, points, active, top, np.arange(len(points)))


def test_low_rungs_speak_for_the_top() -> None:
    """Nobody was seen at the top but three, whose places say nothing: the others tell where it is good."""
    space = Space({"x": uniform(0, 1), "n": randint(1, 9), "lr": loguniform(1e-4, 1)})
    rng = np.random.default_rng(0)
    points, active = space.snap(rng.random((40, 3)))
    t = np.where(np.arange(40) < 37, 0.0, 2.0)
    y = (points[:, 0] - 0.3) ** 2 + 0.1 * points[:, 1]
    points[37:, :] = points[0]
    y[37:] = y[0]
    model = fitted(space, points, active, t, y, 2.0)
    queries, on = space.snap(rng.random((200, 3)))
    mean, deviation = model.predict(queries, on)
    assert stats.spearmanr(mean, (queries[:, 0] - 0.3) ** 2 + 0.1 * queries[:, 1]).statistic > 0.9
    assert (deviation > 0).all()


def test_what_is_pending_is_taken_to_turn_out_as_predicted() -> None:
    space = Space({"x": uniform(0, 1)})
    points, active = space.snap(np.linspace(0, 1, 6)[:, None])
    model = fitted(space, points, active, np.zeros(6), np.sin(5 * points[:, 0]), 1.0)
    at, on = np.array([[0.33]]), np.array([[True]])
    given_it = model.given(at, on, np.array([1.0]))
    assert given_it.predict(at, on)[0] == pytest.approx(model.predict(at, on)[0])
    assert given_it.predict(at, on)[1] < 0.5 * model.predict(at, on)[1]
    assert model.given(np.empty((0, 1)), np.empty((0, 1), dtype=np.bool_), np.empty(0)) is model
