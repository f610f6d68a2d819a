"""Laws of the Parzen estimator. Letters are those of the notation block in `raytuner.models.parzen`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from raytuner.models.parzen import Bools, Floats, Ints, Parzen, normal_reference

ARBITRARY = st.integers(0, 2**32 - 1)


def data(seed: int, n: int, categories: list[int], share_active: float = 1.0) -> tuple[Floats, Bools, Ints]:
    """Random data as a space encodes them: option i of r at (i + 0.5) / r, inactive coordinates 0."""
    rng = np.random.default_rng(seed)
    r = np.array(categories, dtype=np.int64)
    u = rng.random((n, len(r)))
    points = np.where(r > 0, (np.floor(u * r) + 0.5) / np.maximum(r, 1), u)
    active = rng.random((n, len(r))) < share_active
    return np.where(active, points, 0.0), active, r


def nodes(r: int, panels: int = 40) -> tuple[Floats, Floats]:
    """Points and weights that integrate over one coordinate: Gauss-Legendre in panels, or a sum over options."""
    if r > 0:
        return (np.arange(r) + 0.5) / r, np.ones(r)
    x, w = np.polynomial.legendre.leggauss(6)
    starts = np.arange(panels) / panels
    return ((starts[:, None] + (x + 1) / 2 / panels).ravel(), np.tile(w / 2 / panels, panels))


def all_active(points: Floats) -> Bools:
    return np.ones(points.shape, dtype=bool)


models = st.builds(
    lambda seed, n, r, share, h: Parzen.fit(*data(seed, n, r, share), min_bandwidth=h),
    ARBITRARY,
    st.integers(1, 6),
    st.lists(st.sampled_from([0, 0, 1, 2, 5]), min_size=1, max_size=2),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.sampled_from([0.02, 0.1, 1.0]),
)


@given(models)
def test_densities_integrate_to_one(model: Parzen) -> None:
    axes = [nodes(int(r)) for r in model.categories]
    points = np.stack([x.ravel() for x in np.meshgrid(*[x for x, _ in axes], indexing="ij")], axis=1)
    weights = np.prod([w.ravel() for w in np.meshgrid(*[w for _, w in axes], indexing="ij")], axis=0)
    total = weights @ np.exp(model.log_density(points, all_active(points)))
    assert total == pytest.approx(1.0, abs=1e-5)


@given(models, st.floats(0, 1), st.floats(0, 1))
def test_a_query_inactive_in_a_coordinate_gets_the_marginal_density_of_the_others(
    model: Parzen, here: float, ignored: float
) -> None:
    x, w = nodes(int(model.categories[-1]))
    points = np.full((len(x), len(model.categories)), here)
    points[:, -1] = x
    integrated = w @ np.exp(model.log_density(points, all_active(points)))

    query = np.full((1, len(model.categories)), here)
    query[:, -1] = ignored  # its value must not matter
    active = all_active(query)
    active[:, -1] = False
    assert np.exp(model.log_density(query, active)[0]) == pytest.approx(integrated, rel=1e-5)


@pytest.mark.parametrize("edge", [0.0, 0.5, 1.0])
def test_narrow_kernels_at_the_edges_of_the_cube_keep_their_mass(edge: float) -> None:
    points = np.full((2, 1), edge)
    model = Parzen.fit(points, all_active(points), np.array([0]), min_bandwidth=1e-3)
    assert model.bandwidth[0] == 1e-3
    x, w = nodes(0, panels=400)
    assert w @ np.exp(model.log_density(x[:, None], all_active(x[:, None]))) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("min_bandwidth", [1e-3, 1e-2, 0.3])
def test_log_density_equals_scipys_kernels_far_in_the_tails(min_bandwidth: float) -> None:
    points, active, r = data(5, 7, [0, 3, 0, 2, 0], share_active=0.8)
    points[:, [0, 2]] = np.where(active[:, [0, 2]], [1e-9, 1.0], 0.0)  # constant: bandwidth is the least
    model = Parzen.fit(points, active, r, min_bandwidth)
    assert model.bandwidth[0] == model.bandwidth[2] == min_bandwidth

    x, x_active, _ = data(6, 50, r.tolist(), share_active=0.8)
    x[0, [0, 2]] = 1.0, 0.0  # the farthest point from the data: -1e6 at h = 1e-3
    x_active[0] = True
    expected = [by_scipy(model, *row) for row in zip(x, x_active, strict=True)]
    assert min(expected) < -1e5 or min_bandwidth > 1e-3
    np.testing.assert_allclose(model.log_density(x, x_active), expected, rtol=1e-9, atol=1e-9)


def by_scipy(model: Parzen, x: Floats, active: Bools) -> float:
    """The log density at one point, kernel by kernel."""
    kernels = []
    for i in range(len(model.points)):
        total = 0.0
        for j, (r, h) in enumerate(zip(model.categories.tolist(), model.bandwidth.tolist(), strict=True)):
            m = float(model.points[i, j])
            if not active[j]:
                continue
            if not model.active[i, j]:
                total -= math.log(r) if r else 0.0
            elif r == 0:
                total += float(stats.truncnorm.logpdf(x[j], -m / h, (1 - m) / h, loc=m, scale=h))
            else:
                total += math.log(1 - h if int(x[j] * r) == int(m * r) else h / (r - 1))
        kernels.append(total)
    return float(np.logaddexp.reduce(kernels)) - math.log(len(kernels))


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_numeric_samples_follow_the_density(factor: float) -> None:
    """Kolmogorov-Smirnov at 1e-4, 2 tests: were the seeds drawn anew, one run in 5,000 would fail."""
    points, active, r = data(1, 12, [0], share_active=0.8)
    model = Parzen.fit(points, active, r)
    drawn = model.sample(np.random.default_rng(2), 20_000, factor)[:, 0]
    assert stats.kstest(drawn, lambda x: numeric_distribution(model, factor, x)).pvalue > 1e-4


def numeric_distribution(model: Parzen, factor: float, x: Any) -> Any:
    """P(X <= x) of a 1-d numeric model: the mean over its data of SciPy's truncated normals, or uniforms."""
    h = model.bandwidth[0] * factor
    parts = [
        stats.truncnorm.cdf(x, -m / h, (1 - m) / h, loc=m, scale=h) if active else x
        for m, active in zip(model.points[:, 0], model.active[:, 0], strict=True)
    ]
    return np.mean(parts, axis=0)


@pytest.mark.parametrize("categories", [[3], [0, 4], [2, 5, 1], [0, 0, 3]])
def test_mixed_samples_follow_the_density(categories: list[int]) -> None:
    """Chi-squared over cells at 1e-4, 4 tests: were the seeds drawn anew, one run in 2,500 would fail."""
    model = Parzen.fit(*data(3, 9, categories, share_active=0.7))
    cells = 4  # of a numeric coordinate
    sizes = [r or cells for r in categories]
    axes = [nodes(r) for r in categories]
    points = np.stack([x.ravel() for x in np.meshgrid(*[x for x, _ in axes], indexing="ij")], axis=1)
    weights = np.prod([w.ravel() for w in np.meshgrid(*[w for _, w in axes], indexing="ij")], axis=0)

    m = 20_000
    density = weights * np.exp(model.log_density(points, all_active(points)))
    expected = np.bincount(cell_of(points, sizes), density, math.prod(sizes)) * m
    drawn = model.sample(np.random.default_rng(4), m)
    observed = np.bincount(cell_of(drawn, sizes), minlength=math.prod(sizes))
    assert stats.chisquare(observed, expected * m / expected.sum()).pvalue > 1e-4


def cell_of(points: Floats, sizes: list[int]) -> Ints:
    """Which cell of a grid of ``sizes`` each point is in; (m,)."""
    index = np.minimum((points * sizes).astype(np.int64), np.array(sizes) - 1)
    cell: Ints = np.ravel_multi_index(tuple(index.T), sizes)
    return cell


@given(models, ARBITRARY, st.sampled_from([0.5, 1.0, 3.0, 100.0]))
def test_samples_are_points_of_the_cube(model: Parzen, seed: int, factor: float) -> None:
    drawn = model.sample(np.random.default_rng(seed), 50, factor)
    assert drawn.shape == (50, len(model.categories))
    assert ((drawn >= 0) & (drawn <= 1)).all()
    for j, r in enumerate(model.categories):
        if r > 0:
            np.testing.assert_allclose(drawn[:, j] * r % 1, 0.5)
    assert np.isfinite(model.log_density(drawn, all_active(drawn))).all()


def test_bandwidths_are_the_normal_reference_rule_over_active_data() -> None:
    points, active, r = data(8, 30, [0, 4, 0], share_active=0.5)
    h = normal_reference(points, active, r, min_bandwidth=1e-3)
    for j in (0, 2):
        x = points[active[:, j], j]
        assert h[j] == pytest.approx(1.06 * x.std() * len(x) ** (-1 / 7))
    option = np.floor(points[active[:, 1], 1] * 4)
    assert h[1] == pytest.approx(min(1.06 * option.std() * len(option) ** (-1 / 7), 3 / 4))


@pytest.mark.parametrize(
    ("case", "points", "active", "categories", "expected"),
    [
        ("all equal, numeric", [[0.3]] * 5, [[True]] * 5, [0], 1e-3),
        ("all equal, categorical", [[0.25]] * 5, [[True]] * 5, [2], 1e-3),
        ("a single option", [[0.5]] * 5, [[True]] * 5, [1], 0.0),
        ("the widest", [[0.25], [0.75]] * 5, [[True]] * 10, [2], 1.06 * 0.5 * 10 ** (-1 / 5)),
        ("clipped where the kernel is uniform", [[0.05], [0.95]] * 5, [[True]] * 10, [10], 0.9),
        ("one datum: as if uniform", [[0.3]], [[True]], [0], 1.06 / math.sqrt(12)),
        ("one active datum of three", [[0.3], [0.0], [0.0]], [[True], [False], [False]], [0], 1.06 / math.sqrt(12)),
        ("none active", [[0.0]] * 3, [[False]] * 3, [0], 1.06 / math.sqrt(12)),
    ],
)
def test_bandwidths_of_scarce_data(case: str, points: Any, active: Any, categories: Any, expected: float) -> None:
    h = normal_reference(np.array(points), np.array(active), np.array(categories), min_bandwidth=1e-3)
    assert h == pytest.approx([expected]), case


def test_data_that_are_never_active_say_nothing() -> None:
    points = np.zeros((4, 2))
    model = Parzen.fit(points, np.zeros((4, 2), dtype=bool), np.array([0, 5]))
    x, _, _ = data(0, 20, [0, 5])
    np.testing.assert_allclose(model.log_density(x, all_active(x)), math.log(1 / 5))


def test_no_dimensions_at_all() -> None:
    empty = np.empty((3, 0))
    model = Parzen.fit(empty, all_active(empty), np.empty(0, dtype=np.int64))
    assert model.log_density(empty, all_active(empty)).tolist() == [0.0, 0.0, 0.0]
    assert model.sample(np.random.default_rng(0), 5).shape == (5, 0)


def test_sixty_dimensions_stay_finite() -> None:
    points, active, r = data(0, 61, [0] * 40 + [3] * 20, share_active=0.9)
    model = Parzen.fit(points, active, r)
    x, x_active, _ = data(1, 100, r.tolist())
    assert np.isfinite(model.log_density(x, x_active)).all()


@pytest.mark.parametrize(
    ("shapes", "min_bandwidth", "message"),
    [
        (((0, 2), (0, 2), (2,)), 1e-3, "n >= 1"),
        (((3, 2), (3, 1), (2,)), 1e-3, r"\(3, 2\), \(3, 1\)"),
        (((3, 2), (3, 2), (3,)), 1e-3, r"and \(3,\)"),
        (((3, 2), (3, 2), (2,)), 0.0, "min_bandwidth must be at least 1e-09: got 0.0"),
        (((3, 2), (3, 2), (2,)), math.nan, "min_bandwidth .* got nan"),
    ],
)
def test_what_fit_refuses(shapes: Any, min_bandwidth: float, message: str) -> None:
    points, active, categories = (np.zeros(s, dtype=t) for s, t in zip(shapes, (float, bool, np.int64), strict=True))
    with pytest.raises(ValueError, match=message):
        Parzen.fit(points, active, categories, min_bandwidth)
