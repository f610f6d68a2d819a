"""Old studies in a new one's model: who is believed, the mean function, and the portfolio."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from raytuner.actions import Proposal
from raytuner.history import History, Row
from raytuner.models.gaussian_process import Floats, GaussianProcess
from raytuner.models.multi_fidelity import Features, scores
from raytuner.models.transfer import Mixed, Source, Weighing, portfolio, weighed
from raytuner.searchers import BOHB
from raytuner.space import Space, choice, uniform
from raytuner.trial import Config, Observation

SPACE = Space({"x": uniform(0, 1), "y": uniform(0, 1), "kind": choice(["a", "b"])})
FEATURES = Features.of(SPACE)
Value = Callable[[Config], float]


def bowl(config: Config) -> float:
    return float((config["x"] - 0.3) ** 2 + 2 * (config["y"] - 0.7) ** 2 + 0.3 * (config["kind"] == "a"))


def near(config: Config) -> float:
    """A similar task on another scale."""
    return float(10 + 50 * ((config["x"] - 0.35) ** 2 + 2 * (config["y"] - 0.65) ** 2 + 0.2 * (config["kind"] == "a")))


def negated(config: Config) -> float:
    return -bowl(config)


def noise(config: Config) -> float:
    return float(np.random.default_rng(int(1e9 * config["x"])).normal())


def drawn(count: int, stream: int = 1) -> list[Config]:
    return [SPACE.sample(np.random.default_rng([stream, i])) for i in range(count)]


def history(value: Value, count: int = 40, space_of: Callable[[Config], Config] = lambda config: config) -> History:
    rows = (Row(i, 1, value(config), space_of(config)) for i, config in enumerate(drawn(count)))
    return History(value.__name__, tuple(rows))


def source(value: Value) -> Source:
    return Source.of(FEATURES, history(value).fit_to(SPACE), "standard")


def inputs(configs: list[Config]) -> Floats:
    points, active = SPACE.encode_many(configs)
    return FEATURES.at(points, active, np.zeros(len(points)), 0.0)


def weights(sources: list[Source], count: int, seed: int = 0) -> Weighing:
    """How sources are weighed after so many outcomes of `bowl`."""
    configs = drawn(count, stream=2)
    X, y = inputs(configs), scores(np.array([bowl(config) for config in configs]), "standard")
    alone = GaussianProcess.fit(FEATURES.kernel, X, y, FEATURES.noise)
    g = np.array([each.at(X) for each in sources])
    return weighed(g, y, alone, np.random.default_rng(seed))


@pytest.mark.parametrize("count", [3, 6, 12, 25])
def test_who_agrees_is_believed_and_who_is_wrong_is_not(count: int) -> None:
    both = [source(near), source(negated)]
    found = weights(both, count)
    prior = found.prior(both)
    assert prior is not None
    assert [each.name for each in prior.sources] == ["near"]
    assert prior.factors[0] > 0.4
    assert weights(both[1:], count).prior(both[1:]) is None


def test_noise_fades() -> None:
    assert np.mean([np.sum(weights([source(noise)], 40, seed).gains) for seed in range(3)]) < 0.2


def test_of_two_alike_each_is_worth_a_part() -> None:
    found = weights([source(near), source(near)], 12)
    factors = found.weights * found.gains
    assert factors[0] == pytest.approx(factors[1])
    single = weights([source(near)], 12)
    assert factors.sum() == pytest.approx(float((single.weights * single.gains)[0]), rel=0.1)


def test_weights_are_those_of_the_seed_and_of_constant_values_nothing() -> None:
    one, other = weights([source(near)], 5, seed=1), weights([source(near)], 5, seed=1)
    assert np.array_equal(one.weights, other.weights)
    X = inputs(drawn(5))
    alone = GaussianProcess.fit(FEATURES.kernel, X, np.zeros(5), FEATURES.noise)
    assert weighed(source(near).at(X)[None], np.zeros(5), alone, np.random.default_rng(0)).prior([source(near)]) is None


def test_the_slope_of_a_mean_is_that_of_its_values() -> None:
    mean = Mixed((source(near), source(negated)), (0.7, 0.2))
    [z] = inputs([{"x": 0.4, "y": 0.2, "kind": "b"}])
    columns = FEATURES.column[SPACE.categories == 0]
    step = 1e-6
    for column, slope in zip(columns, mean.slope(z, columns), strict=True):
        up, down = z.copy(), z.copy()
        up[column] += step
        down[column] -= step
        [high, low] = mean.at(np.array([up, down]))
        assert slope == pytest.approx((high - low) / (2 * step), rel=1e-4)


def test_a_process_with_a_mean_is_the_mean_where_there_are_no_data_and_the_data_where_there_are() -> None:
    configs = drawn(12, stream=2)
    X, y = inputs(configs), np.array([bowl(config) for config in configs])
    mean = Mixed((source(near),), (0.5,))
    theta = np.concatenate([[0.0], [-9.0, 0.0, 0.0], np.full(len(FEATURES.kernel.priors), -3.0)])
    process = GaussianProcess.of(FEATURES.kernel, theta, X, y, FEATURES.noise, mean)
    assert process.predict(X)[0] == pytest.approx(y, abs=1e-2)
    far = inputs([{"x": 0.999, "y": 0.001, "kind": "a"}])
    assert process.mean(far) == pytest.approx(process.centre + mean.at(far), abs=1e-3)
    assert process.given(far).mean(far) == pytest.approx(process.mean(far))


def test_what_a_source_does_not_know_does_not_matter_to_it() -> None:
    old = history(near, space_of=lambda config: {"x": config["x"], "kind": config["kind"]})
    model = Source.of(FEATURES, old.fit_to(SPACE), "standard")
    low, high = inputs([{"x": 0.5, "y": 0.0, "kind": "a"}, {"x": 0.5, "y": 1.0, "kind": "a"}])
    assert model.at(low[None]) == model.at(high[None])
    columns = FEATURES.column[SPACE.categories == 0]
    assert model.slope(low, columns)[0] != 0.0
    assert model.slope(low, columns)[1] == 0.0


# -------------------------------------------------------------------------------------------------------- the portfolio


def test_a_portfolio_is_first_good_on_average_and_then_has_a_good_one_for_each_source() -> None:
    def left(config: Config) -> float:
        return float((config["x"] - 0.1) ** 2)

    def right(config: Config) -> float:
        return float((config["x"] - 0.9) ** 2)

    found = portfolio(SPACE, [history(left), history(right)], 4)
    assert len(found) == 4
    assert all(SPACE.contains(config) for config in found)
    x = [float(config["x"]) for config in found]
    assert 0.3 < x[0] < 0.7
    assert min(x[1:3]) < 0.2
    assert max(x[1:3]) > 0.8
    assert found == portfolio(SPACE, [history(left), history(right)], 4)


def test_of_one_source_it_is_the_best_and_others_apart_from_it() -> None:
    found = portfolio(SPACE, [history(bowl)], 3)
    values = [bowl(config) for config in found]
    assert values[0] < np.quantile([bowl(config) for config in drawn(40)], 0.1)
    points = SPACE.encode_many(found)[0]
    assert min(np.abs(a - b).max() for i, a in enumerate(points) for b in points[:i]) > 0.05
    assert portfolio(SPACE, [], 3) == []


# ------------------------------------------------------------------------------------------------------ in a searcher


def test_a_proposal_says_who_is_believed_and_how_far() -> None:
    searcher = BOHB(warm_start=[history(near), history(negated)], random_fraction=0).build(SPACE, 0)
    for trial, config in enumerate(drawn(6, stream=2)):
        searcher.tell(Observation(trial, config, 1, 1.0, 1, bowl(config)))
    answer = searcher.ask(6, 1, ())
    assert isinstance(answer, Proposal)
    assert set(answer.note["believed"]) == {"near"}
    assert answer.note["believed"]["near"] > 0.4


def found_in(trials: int, seed: int, old: list[History]) -> tuple[float, list[str]]:
    searcher = BOHB(warm_start=old, random_fraction=0).build(SPACE, seed)
    best, origins = np.inf, []
    for trial in range(trials):
        answer = searcher.ask(trial, 1, ())
        assert isinstance(answer, Proposal)
        origins.append(answer.note["origin"])
        best = min(best, bowl(answer.config))
        searcher.tell(Observation(trial, answer.config, 1, 1.0, 1, bowl(answer.config)))
    return best, origins


def test_a_similar_source_saves_trials_and_a_negated_one_is_given_up() -> None:
    cold = [found_in(8, seed, [])[0] for seed in range(5)]
    warm = [found_in(8, seed, [history(near)]) for seed in range(5)]
    assert np.median([best for best, _ in warm]) < np.median(cold) / 3
    assert all(origins[:4] == ["portfolio", "random", "portfolio", "model"] for _, origins in warm)
    wrong = found_in(8, 0, [history(negated)])[1]
    assert wrong == ["portfolio", *["random"] * 5, "model", "model"]
