"""TPE's density: a density, and the one that its papers and Optuna have."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import integrate, stats

from raytuner.models.adaptive_parzen import AdaptiveParzen, forgetting, neighbour_distances

NUMERIC, OPTIONS = 0, 3


def fitted(n: int, categories: list[int], by_neighbours: bool, **settings: Any) -> AdaptiveParzen:
    r = np.array(categories)
    points = np.random.default_rng([n, len(r)]).random((n, len(r)))
    points = np.where(r > 0, (np.floor(points * r) + 0.5) / np.maximum(r, 1), points)
    return AdaptiveParzen.fit(points, forgetting(n), r, by_neighbours=by_neighbours, **settings)


def truncated(c: float, h: float) -> Any:
    return stats.truncnorm(-c / h, (1 - c) / h, c, h)


@pytest.mark.parametrize("n", [0, 1, 2, 30])
@pytest.mark.parametrize("by_neighbours", [False, True])
@pytest.mark.parametrize("prior_weight", [1e-3, 1.0, 5.0])
def test_it_integrates_to_one(n: int, by_neighbours: bool, prior_weight: float) -> None:
    density = fitted(n, [NUMERIC, OPTIONS], by_neighbours, prior_weight=prior_weight)
    x = (np.arange(4000) + 0.5) / 4000
    total = sum(
        np.exp(density.log_density(np.column_stack([x, np.full(4000, (k + 0.5) / 3)]))).mean() for k in range(3)
    )
    assert total == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("by_neighbours", [False, True])
def test_it_is_the_mixture_that_it_says(by_neighbours: bool) -> None:
    """Term by term with SciPy's truncated normal."""
    density = fitted(30, [NUMERIC, OPTIONS, NUMERIC], by_neighbours)
    queries = np.random.default_rng(1).random((5, 3))
    queries[:, 1] = (np.arange(5) % 3 + 0.5) / 3
    weights = np.append(forgetting(30), 1.0)
    e = 1.0 / 31
    for query, found in zip(queries, density.log_density(queries), strict=True):
        total = 0.0
        for i, w in enumerate(weights / weights.sum()):
            c, h = density.centre[i], density.width[i]
            same = c[1] == np.floor(query[1] * 3)
            option = 1 / 3 if i == 30 else (same + e) / (1 + 3 * e)
            total += w * truncated(c[0], h[0]).pdf(query[0]) * option * truncated(c[2], h[2]).pdf(query[2])
        assert found == pytest.approx(np.log(total))


@pytest.mark.parametrize("by_neighbours", [False, True])
def test_samples_are_drawn_from_it(by_neighbours: bool) -> None:
    """Kolmogorov-Smirnov and chi-squared at 1e-4: were the seed drawn anew, it would fail twice in 10,000."""
    density = fitted(12, [NUMERIC, OPTIONS], by_neighbours)
    drawn = density.sample(np.random.default_rng(0), 2000)
    assert ((drawn >= 0) & (drawn <= 1)).all()
    weight = np.exp(density.log_weight)
    parts = [truncated(c, h) for c, h in zip(density.centre[:, 0], density.width[:, 0], strict=True)]

    def cdf(x: Any) -> Any:
        return sum(w * part.cdf(x) for w, part in zip(weight, parts, strict=True))

    assert stats.kstest(drawn[:, 0], cdf).pvalue > 1e-4
    probability = [
        integrate.quad(lambda x, k=k: np.exp(density.log_density(np.array([[x, (k + 0.5) / 3]]))[0]), 0, 1, limit=200)[
            0
        ]
        for k in range(3)
    ]
    counts = np.bincount(np.floor(drawn[:, 1] * 3).astype(int), minlength=3)
    assert stats.chisquare(counts, 2000 * np.array(probability) / sum(probability)).pvalue > 1e-4


@pytest.mark.parametrize(
    ("x", "consider_endpoints", "expected"),
    [
        ([0.1], False, [0.4]),
        ([0.1], True, [0.4]),
        ([0.45], False, [0.05]),
        ([0.45], True, [0.45]),
        ([0.2, 0.9, 0.6], False, [0.3, 0.3, 0.3]),
        ([0.4, 0.9, 0.6], False, [0.1, 0.3, 0.3]),
        ([0.4, 0.9, 0.6], True, [0.4, 0.3, 0.3]),
        ([0.7, 0.7], False, [0.2, 0.0]),
        ([], False, []),
    ],
)
def test_distances_to_neighbours(x: list[float], consider_endpoints: bool, expected: list[float]) -> None:
    """The prior's centre, 0.5, is a neighbour."""
    assert neighbour_distances(np.array(x), consider_endpoints) == pytest.approx(expected)


def test_widths() -> None:
    assert fitted(8, [0, 0], by_neighbours=False).width[:-1] == pytest.approx(0.2 * 8 ** (-1 / 6))
    wide = fitted(8, [0], by_neighbours=True).width[:-1]
    assert wide.min() == pytest.approx(1 / 10), "the clip"
    assert fitted(400, [0], by_neighbours=True).width.min() == pytest.approx(1 / 100)


def test_forgetting() -> None:
    assert forgetting(25).tolist() == [1.0] * 25
    assert forgetting(26).tolist() == [1 / 26] + [1.0] * 25
    assert forgetting(28) == pytest.approx([1 / 28, 29 / 56, 1.0] + [1.0] * 25)
