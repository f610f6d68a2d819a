"""Laws of the Gaussian process. Letters are those of the notation block in `raytuner.models.gaussian_process`."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from raytuner.models.gaussian_process import (
    JITTER,
    NOISE,
    VARIANCE,
    Decay,
    Floats,
    GaussianProcess,
    Kernel,
    Matern,
    Mix,
    Noise,
    Overlap,
    Prior,
    Product,
    likeliest,
    log_likelihood,
    standardised,
)

RATE = Prior(math.log(0.05), 1.0)
KERNELS: dict[str, Kernel] = {  # of the columns time, two numbers, two options
    "numbers": Matern((1, 2)),
    "options": Overlap((3, 4)),
    "time": Decay(0, RATE),
    "no columns": Matern(()),
    "groups": Matern((1, 2, 3), groups=(0, 1, 1)),
    "both": Product(Matern((1, 2)), Overlap((3,))),
    "mixed": Mix(Matern((1, 2)), Overlap((3, 4))),
    "everything": Product(Decay(0, RATE), Mix(Product(Matern((1,)), Matern((2,))), Overlap((3, 4)))),
}
kernels = st.sampled_from(list(KERNELS.values()))
seeds = st.integers(0, 2**32 - 1)


def inputs(seed: int, n: int) -> Floats:
    """Random rows of (time, number, number, option of 2, option of 3)."""
    rng = np.random.default_rng(seed)
    return np.column_stack([rng.integers(0, 20, n), rng.random((n, 2)), rng.integers(0, 2, n), rng.integers(0, 3, n)])


def parameters(seed: int, kernel: Kernel, noise: float | None = None) -> Floats:
    """A draw from the priors, or with the noise's variance given."""
    rng = np.random.default_rng([seed, 1])
    theta = np.array([rng.normal(prior.mean, prior.sd / 2) for prior in (VARIANCE, NOISE, *kernel.priors)])
    if noise is not None:
        theta[1] = math.log(noise)
    return theta


def targets(seed: int, n: int) -> Floats:
    return np.random.default_rng([seed, 2]).normal(3.0, 5.0, n)


# ------------------------------------------------------------------------------------------------------------ kernels


@given(kernels, seeds, st.integers(1, 12))
def test_kernels_are_correlations(kernel: Kernel, seed: int, n: int) -> None:
    X = inputs(seed, n)
    k, _ = kernel.at(parameters(seed, kernel)[2:], X, X)
    np.testing.assert_allclose(k, k.T, atol=1e-14)
    np.testing.assert_allclose(k.diagonal(), 1.0, rtol=1e-7)
    assert (np.abs(k) <= 1.0 + 1e-7).all()
    assert np.linalg.eigvalsh(k).min() > -1e-7


def test_matern_equals_its_formula_and_decay_that_of_the_paper() -> None:
    X, Z = inputs(0, 6), inputs(1, 4)
    k, _ = Matern((1, 2)).at(np.log([0.3, 2.0]), Z, X)
    r = np.sqrt((((Z[:, None, 1:3] - X[None, :, 1:3]) / [0.3, 2.0]) ** 2).sum(axis=-1))
    np.testing.assert_allclose(k, (1 + math.sqrt(5) * r + 5 / 3 * r**2) * np.exp(-math.sqrt(5) * r), rtol=1e-10)

    eps = 0.1
    decay, _ = Decay(0, RATE).at(np.log([-math.log(1 - eps) / 2]), Z, X)
    np.testing.assert_allclose(decay, (1 - eps) ** (np.abs(Z[:, None, 0] - X[None, :, 0]) / 2), rtol=1e-12)


@pytest.mark.parametrize(
    ("x", "z", "weight", "expected"),
    [
        ((0.5, 1, 2), (0.5, 1, 2), 0.3, 1.0),
        ((0.5, 1, 2), (0.5, 1, 0), 0.0, (1 + 1 / 2) / 2),
        ((0.5, 1, 2), (0.5, 1, 0), 1.0, 1 / 2),
        ((0.5, 1, 2), (0.5, 0, 0), 0.0, 1 / 2),
        ((0.5, 1, 2), (0.5, 0, 0), 1.0, 0.0),
        ((0.5, 1, 2), (0.5, 0, 0), 0.5, 1 / 4),
    ],
)
def test_mixtures_of_numbers_and_options(x: Any, z: Any, weight: float, expected: float) -> None:
    logit = math.log(weight / (1 - weight)) if 0 < weight < 1 else 40.0 * (2 * weight - 1)
    kernel = Mix(Matern((0,)), Overlap((1, 2)))
    k, _ = kernel.at(np.array([0.0, logit]), np.array([x], dtype=float), np.array([z], dtype=float))
    assert k[0, 0] == pytest.approx(expected)


# ------------------------------------------------------------------------------------------------------ the likelihood


@given(kernels, seeds, st.integers(1, 8))
def test_the_likelihood_is_that_of_a_normal_density(kernel: Kernel, seed: int, n: int) -> None:
    X, y, theta = inputs(seed, n), standardised(targets(seed, n))[0], parameters(seed, kernel)
    s2, v = np.exp(theta[:2])
    K = s2 * kernel.at(theta[2:], X, X)[0] + (v + JITTER) * np.eye(n)
    expected = stats.multivariate_normal.logpdf(y, np.zeros(n), K)
    assert log_likelihood(kernel, theta, X, y)[0] == pytest.approx(expected, rel=1e-6, abs=1e-6)


@given(kernels, seeds, st.integers(1, 12))
def test_its_derivative_equals_finite_differences(kernel: Kernel, seed: int, n: int) -> None:
    X, y, theta = inputs(seed, n), standardised(targets(seed, n))[0], parameters(seed, kernel, noise=1e-2)
    _, slope = log_likelihood(kernel, theta, X, y)
    h = 1e-5
    for i, each in enumerate(np.eye(len(theta))):
        above, below = (log_likelihood(kernel, theta + sign * h * each, X, y)[0] for sign in (1, -1))
        assert slope[i] == pytest.approx((above - below) / (2 * h), rel=1e-4, abs=1e-4)


GROWING = Noise(Prior(math.log(1e-2), 1.0), 0, Prior(0.1, 0.05))


STEPPING = replace(GROWING, step=Prior(0.5, 1.0))


@given(kernels, seeds, st.integers(1, 10), st.sampled_from([GROWING, STEPPING]))
def test_noise_that_grows_along_a_column(kernel: Kernel, seed: int, n: int, noise: Noise) -> None:
    """The likelihood, and its derivative."""
    X, y = inputs(seed, n), standardised(targets(seed, n))[0]
    X[::2, 0] = 0.0
    steps = [0.7] if noise.step else []
    theta = np.concatenate([[0.1, math.log(0.02), 0.15], steps, parameters(seed, kernel)[2:]])
    K = math.exp(0.1) * kernel.at(theta[3 + len(steps) :], X, X)[0]
    K += np.diag(0.02 * np.exp(0.15 * X[:, 0] + sum(steps) * (X[:, 0] > 0)) + JITTER)
    value, slope = log_likelihood(kernel, theta, X, y, noise)
    assert value == pytest.approx(stats.multivariate_normal.logpdf(y, np.zeros(n), K), rel=1e-6, abs=1e-6)
    h = 1e-5
    for i, each in enumerate(np.eye(len(theta))):
        above, below = (log_likelihood(kernel, theta + sign * h * each, X, y, noise)[0] for sign in (1, -1))
        assert slope[i] == pytest.approx((above - below) / (2 * h), rel=1e-4, abs=1e-4)


def test_a_fit_finds_that_noise_grows() -> None:
    X = inputs(7, 200)
    deviation = 0.05 * np.exp(0.5 * 0.25 * X[:, 0])
    y = np.sin(6 * X[:, 1]) + deviation * np.random.default_rng(4).normal(size=200)
    theta = likeliest(Matern((1, 2)), X, y, Noise(column=0, growth=Prior(0.0, 0.5)))
    assert theta[2] == pytest.approx(0.25, abs=0.05)


def test_a_fit_finds_that_noise_ends() -> None:
    """Half of the data have none, where u is 0; a law without a step takes them for noisy."""
    X = inputs(7, 120)
    X[:, 0] = np.arange(120) % 2
    y = np.sin(6 * X[:, 1]) + X[:, 0] * 0.5 * np.random.default_rng(4).normal(size=120)
    level = Prior(math.log(3e-4), 2.0)
    stepping, even = (
        likeliest(Matern((1, 2)), X, y, Noise(level, 0, Prior(0.5, 0.5), step)) for step in (Prior(1.0, 1.5), None)
    )
    assert stepping[1] < math.log(3e-3) < even[1]
    assert stepping[1] + stepping[2] + stepping[3] == pytest.approx(math.log(0.25 / y.var()), abs=0.6)


@given(seeds, st.integers(1, 8), st.sampled_from([KERNELS["numbers"], KERNELS["groups"]]))
def test_the_slope_along_a_query_equals_finite_differences(seed: int, n: int, kernel: Matern) -> None:
    X, z = inputs(seed, n), inputs(seed + 1, 1)[0] + 0.01
    theta, h = parameters(seed, kernel)[2:], 1e-6
    slope = kernel.slope(theta, z, X)
    for i, column in enumerate(kernel.columns):
        step = h * (np.arange(len(z)) == column)
        above, below = (kernel.at(theta, (z + sign * step)[None], X)[0][0] for sign in (1, -1))
        np.testing.assert_allclose(slope[:, i], (above - below) / (2 * h), rtol=1e-4, atol=1e-4)


def test_a_fit_climbs_and_finds_which_number_matters() -> None:
    X = inputs(3, 60)
    y = np.sin(6 * X[:, 1]) + 0.05 * np.random.default_rng(4).normal(size=60)
    kernel = KERNELS["mixed"]
    start = np.array([prior.mean for prior in (VARIANCE, NOISE, *kernel.priors)])
    theta = likeliest(kernel, X, y)
    z = standardised(y)[0]
    assert log_likelihood(kernel, theta, X, z)[0] > log_likelihood(kernel, start, X, z)[0] + 10
    matters, does_not = theta[2:4]
    assert does_not > matters + 1
    assert theta[1] < math.log(0.05), "noise, where targets have variance 1"


def test_a_fit_is_repeatable_and_leaves_what_the_data_say_nothing_about_at_its_prior() -> None:
    X, y = inputs(5, 30), targets(5, 30)
    X[:, 2] = 0.7
    theta = likeliest(Matern((1, 2)), X, y)
    np.testing.assert_array_equal(theta, likeliest(Matern((1, 2)), X.copy(), y.copy()))
    assert theta[-1] == pytest.approx(Matern((1, 2)).scale.mean, abs=1e-3)


# ------------------------------------------------------------------------------------------------------- the posterior


@given(kernels, seeds, st.integers(1, 10))
def test_the_posterior_equals_the_textbook(kernel: Kernel, seed: int, n: int) -> None:
    X, Z, y, theta = inputs(seed, n), inputs(seed + 1, 7), targets(seed, n), parameters(seed, kernel, noise=1e-2)
    mean, deviation = GaussianProcess.of(kernel, theta, X, y).predict(Z)

    z, centre, scale = standardised(y)
    s2, v = np.exp(theta[:2])
    K = s2 * kernel.at(theta[2:], X, X)[0] + (v + JITTER) * np.eye(n)
    k = s2 * kernel.at(theta[2:], Z, X)[0]
    np.testing.assert_allclose(mean, centre + scale * k @ np.linalg.solve(K, z), rtol=1e-6, atol=1e-6)
    variance = s2 - np.einsum("mn,nm->m", k, np.linalg.solve(K, k.T))
    np.testing.assert_allclose(deviation**2, scale**2 * variance, rtol=1e-5, atol=1e-6)


@given(seeds, st.integers(2, 12))
def test_without_noise_it_goes_through_the_data(seed: int, n: int) -> None:
    X, kernel = inputs(seed, n), Matern((1, 2))
    X[:, 1] = np.random.default_rng(seed).permutation(n) / n  # apart
    y = targets(seed, n)
    mean, deviation = GaussianProcess.of(kernel, np.log([1.0, 1e-9, 0.2, 0.2]), X, y).predict(X)
    np.testing.assert_allclose(mean, y, atol=1e-2)
    assert (deviation < 1e-2 * y.std()).all()


def test_far_from_the_data_it_knows_what_it_knew_before() -> None:
    X, y = inputs(6, 20), targets(6, 20)
    posterior = GaussianProcess.of(Matern((1, 2)), np.log([0.7, 1e-2, 0.1, 0.1]), X, y)
    mean, deviation = posterior.predict(np.array([[0.0, 9.0, -9.0, 0.0, 0.0]]))
    assert mean[0] == pytest.approx(y.mean())
    assert deviation[0] == pytest.approx(math.sqrt(0.7) * y.std())


@given(kernels, seeds, st.integers(1, 20))
def test_the_order_of_the_data_does_not_matter(kernel: Kernel, seed: int, n: int) -> None:
    X, y, Z = inputs(seed, n), targets(seed, n), inputs(seed + 1, 5)
    order = np.random.default_rng(seed).permutation(n)
    theta = parameters(seed, kernel, noise=1e-2)
    one, other = (GaussianProcess.of(kernel, theta, X[rows], y[rows]).predict(Z) for rows in (slice(None), order))
    np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


@given(seeds, st.integers(1, 15), st.floats(-1e3, 1e3), st.sampled_from([1e-6, 0.1, 1.0, 7.0, 1e9]))
def test_another_unit_of_the_targets_is_another_unit_of_the_predictions(
    seed: int, n: int, shift: float, factor: float
) -> None:
    X, y, Z, kernel = inputs(seed, n), targets(seed, n), inputs(seed + 1, 5), Matern((1, 2))
    theta = parameters(seed, kernel, noise=1e-2)
    mean, deviation = GaussianProcess.of(kernel, theta, X, y).predict(Z)
    shifted, scaled = GaussianProcess.of(kernel, theta, X, factor * (shift + y)).predict(Z)
    if n > 1:  # one datum has no unit
        np.testing.assert_allclose(scaled, factor * deviation, rtol=1e-6)
    np.testing.assert_allclose(shifted, factor * (shift + mean), rtol=1e-6, atol=1e-6 * factor)


def test_old_data_count_less() -> None:
    kernel = Product(Decay(0, RATE), Matern((1,)))
    theta = np.log([1.0, 1e-2, 0.1, 0.3])
    X, y = np.array([[0.0, 0.5], [9.0, 0.5]]), np.array([1.0, -1.0])  # the same point, long ago and lately
    posterior = GaussianProcess.of(kernel, theta, X, y)
    assert posterior.predict(np.array([[10.0, 0.5]]))[0][0] < -0.5
    assert posterior.predict(np.array([[0.0, 0.5]]))[0][0] > 0.5
    later = np.column_stack([np.linspace(9, 60, 10), np.full(10, 0.5)])
    mean, deviation = posterior.predict(later)
    assert (np.diff(mean) > 0).all(), "forgets"
    assert (np.diff(deviation) > 0).all()
    assert deviation[-1] == pytest.approx(y.std(), rel=1e-2)


@given(kernels, seeds, st.integers(1, 12), st.integers(0, 4))
def test_pending_points_leave_the_mean_and_shrink_deviations(kernel: Kernel, seed: int, n: int, q: int) -> None:
    X, y, Z, P = inputs(seed, n), targets(seed, n), inputs(seed + 1, 9), inputs(seed + 2, q)
    theta = parameters(seed, kernel, noise=1e-2)
    before = GaussianProcess.of(kernel, theta, X, y)
    after = before.given(P)
    mean, deviation = before.predict(Z)
    same, less = after.predict(Z)
    np.testing.assert_allclose(same, mean, rtol=1e-9)
    assert (less <= deviation + 1e-6 * before.scale).all()

    as_predicted = GaussianProcess.of(kernel, theta, np.concatenate([X, P]), np.concatenate([y, before.predict(P)[0]]))
    truly = as_predicted.predict(Z)[1] * before.scale / as_predicted.scale  # deviations depend on targets by scale only
    np.testing.assert_allclose(less, truly, rtol=1e-6, atol=1e-9)


# ---------------------------------------------------------------------------------------------------------- what hurts

magnitudes = st.sampled_from([0.0, 1e-300, 1e-9, 1.0, 1e9, 1e300])


@given(
    kernels,
    seeds,
    st.integers(1, 25),
    st.sampled_from(["normal", "constant", "one outlier", "two values"]),
    magnitudes,
    st.booleans(),
)
def test_whatever_the_data_predictions_are_numbers(
    kernel: Kernel, seed: int, n: int, kind: str, magnitude: float, duplicates: bool
) -> None:
    X = inputs(seed, n)
    if duplicates:
        X = np.repeat(X[:1], n, axis=0)
    y = {
        "normal": targets(seed, n),
        "constant": np.ones(n),
        "one outlier": np.where(np.arange(n) == 0, -1e6, targets(seed, n) / 1e6),
        "two values": np.arange(n) % 2.0,
    }[kind] * (magnitude / 1e6 if kind == "one outlier" else magnitude)
    posterior = GaussianProcess.fit(kernel, X, y).given(inputs(seed + 1, 3))
    mean, deviation = posterior.predict(np.concatenate([X, inputs(seed + 2, 5)]))
    assert np.isfinite(mean).all()
    assert np.isfinite(deviation).all()
    assert (deviation >= 0).all()


def test_thousands_of_duplicates_without_noise() -> None:
    X = np.full((1500, 5), 0.5)
    posterior = GaussianProcess.of(Matern((1, 2)), np.log([20.0, 1e-30, 1.0, 1.0]), X, np.ones(1500))
    assert np.isfinite(posterior.predict(X[:3])).all()


def test_one_datum() -> None:
    posterior = GaussianProcess.fit(Matern((0,)), np.array([[0.5]]), np.array([7.0]))
    mean, deviation = posterior.predict(np.array([[0.5], [0.0]]))
    assert mean == pytest.approx([7.0, 7.0])
    assert 0 < deviation[0] < deviation[1]


def test_no_queries() -> None:
    mean, deviation = GaussianProcess.fit(Matern((0,)), np.array([[0.5]]), np.array([7.0])).predict(np.empty((0, 1)))
    assert mean.shape == deviation.shape == (0,)


@pytest.mark.parametrize(
    ("X", "y", "message"),
    [
        (np.zeros((0, 2)), np.zeros(0), "n >= 1"),
        (np.zeros(3), np.zeros(3), r"got \(3,\) and \(3,\)"),
        (np.zeros((3, 2)), np.zeros(2), r"got \(3, 2\) and \(2,\)"),
        (np.zeros((3, 2)), np.zeros((3, 1)), r"got \(3, 2\) and \(3, 1\)"),
        (np.full((3, 2), math.nan), np.zeros(3), "finite"),
        (np.zeros((3, 2)), np.array([0.0, math.inf, 1.0]), "finite"),
    ],
)
def test_what_fit_refuses(X: Floats, y: Floats, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GaussianProcess.fit(Matern((0, 1)), X, y)


def test_what_else_is_refused() -> None:
    kernel, X, y = Matern((0, 1)), np.random.default_rng(0).random((3, 2)), np.arange(3.0)
    with pytest.raises(ValueError, match=r"theta must have shape \(4,\)"):
        GaussianProcess.of(kernel, np.zeros(3), X, y)
    posterior = GaussianProcess.fit(kernel, X, y)
    for call in (posterior.predict, posterior.given):
        with pytest.raises(ValueError, match=r"queries must have shape \(m, 2\)"):
            call(np.zeros((4, 3)))
