"""BOHB's kernel densities against their paper: when there is a model, at which rung, of which outcomes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from raytuner.actions import Proposal
from raytuner.models.parzen import Parzen
from raytuner.protocols import Searcher
from raytuner.searchers import BOHB, RandomSearch
from raytuner.searchers.kde import split
from raytuner.space import Space, choice, loguniform, sample_from, uniform
from raytuner.trial import Config, Failure, Observation

PLANE = {"x": uniform(0, 1), "y": uniform(0, 1)}  # d = 2: N_min is 3, a model needs 5 outcomes


def seen(trial: int, config: Config, until: int, value: float | None) -> Observation:
    failure = Failure.ERROR if value is None else None
    return Observation(trial, config, step=until, level=float(until), until=until, value=value, failure=failure)


def ask(searcher: Searcher, trial: int) -> Proposal:
    answer = searcher.ask(trial, 1, [])
    assert isinstance(answer, Proposal)
    return answer


def tell_random(searcher: Searcher, until: int, trials: range, value: float | None = None) -> None:
    """Outcomes at random places of the plane; the value is x unless one is given."""
    for trial in trials:
        x, y = np.random.default_rng([99, trial]).random(2).tolist()
        searcher.tell(seen(trial, {"x": x, "y": y}, until, x if value is None else value))


@pytest.mark.parametrize(("settings", "enough"), [(BOHB("kde", 0), 5), (BOHB("kde", 0, 8), 10)])
def test_a_model_needs_n_min_plus_two_outcomes_at_one_rung(settings: BOHB, enough: int) -> None:
    searcher = settings.build(Space(PLANE), 0)
    tell_random(searcher, 1, range(enough - 1))
    tell_random(searcher, 3, range(enough - 1))
    assert [ask(searcher, trial).note for trial in range(100, 120)] == [{"origin": "random"}] * 20
    tell_random(searcher, 1, range(enough - 1, enough))
    assert {ask(searcher, trial).note["origin"] for trial in range(100, 120)} == {"model"}


def test_the_highest_rung_with_enough_outcomes_is_modelled() -> None:
    searcher = BOHB("kde", 0).build(Space(PLANE), 0)
    tell_random(searcher, 1, range(10))
    tell_random(searcher, 3, range(5))
    tell_random(searcher, 9, range(4))
    assert ask(searcher, 100).note["rung"] == 3
    tell_random(searcher, 1, range(10, 40))
    assert ask(searcher, 100).note["rung"] == 3
    tell_random(searcher, 9, range(4, 5))
    assert ask(searcher, 100).note["rung"] == 9


def test_a_rung_where_everything_failed_has_no_model() -> None:
    searcher = BOHB("kde", 0).build(Space(PLANE), 0)
    tell_random(searcher, 3, range(10))
    for trial in range(10):
        searcher.tell(seen(trial, {"x": 0.5, "y": 0.5}, 9, None))
    assert ask(searcher, 100).note["rung"] == 3


@pytest.mark.parametrize("fraction", [0.0, 1 / 3, 1.0])
def test_random_fraction(fraction: float) -> None:
    """Binomial test at 1e-4: were the seed drawn anew, one run in 10,000 would fail."""
    searcher = BOHB("kde", fraction, num_samples=1).build(Space(PLANE), 0)
    tell_random(searcher, 1, range(20))
    n = 400
    random = sum(ask(searcher, trial).note["origin"] == "random" for trial in range(100, 100 + n))
    assert stats.binomtest(random, n, fraction).pvalue > 1e-4


@pytest.mark.parametrize(
    ("n", "least", "good", "bad"),
    [
        # Few outcomes: both halves have N_min, and overlap.
        (5, 3, 3, 3),
        (9, 7, 7, 7),
        # N_min good, the rest bad.
        (6, 3, 3, 3),
        (10, 3, 3, 7),
        (20, 3, 3, 17),
        # 15 per cent, rounded down, once that is more than N_min.
        (26, 3, 3, 23),
        (27, 3, 4, 23),
        (100, 3, 15, 85),
        (1000, 9, 150, 850),
    ],
)
def test_split_into_good_and_bad(n: int, least: int, good: int, bad: int) -> None:
    assert split(n, least, 15) == (good, bad)


def test_the_note_says_how_many_were_good_and_bad() -> None:
    searcher = BOHB("kde", 0).build(Space(PLANE), 0)
    for n in (5, 10, 27, 60):
        tell_random(searcher, 1, range(n))
        note = ask(searcher, 1000).note
        assert (note["good"], note["bad"]) == split(n, 3, 15)


def test_log_ratio_is_that_of_the_paper() -> None:
    space = Space({"x": uniform(0, 1), "lr": loguniform(1e-4, 1), "kind": choice(["a", "b", "c"])})
    searcher = BOHB("kde", 0).build(space, 0)
    configs = [ask(RandomSearch().build(space, 1), trial).config for trial in range(40)]
    values = [config["x"] + (config["kind"] == "b") for config in configs]
    for trial, (config, value) in enumerate(zip(configs, values, strict=True)):
        searcher.tell(seen(trial, config, 1, value))
    proposal = ask(searcher, 100)

    points, active = space.encode_many([configs[i] for i in np.argsort(values)])
    good = Parzen.fit(points[:6], active[:6], space.categories)  # 15 per cent of 40
    bad = Parzen.fit(points[6:], active[6:], space.categories)
    x, x_active = space.encode_many([proposal.config])
    expected = good.log_density(x, x_active)[0] - bad.log_density(x, x_active)[0]
    assert proposal.note["log_ratio"] == pytest.approx(expected)
    assert proposal.note["log_ratio"] > 0


def test_proposals_are_where_the_good_ones_are_and_failures_are_worst() -> None:
    """x < 0.3 fails; otherwise smaller is better: the good ones are just above 0.3."""
    searcher = BOHB("kde", 0).build(Space(PLANE), 0)
    for trial in range(100):
        x, y = np.random.default_rng([5, trial]).random(2).tolist()
        searcher.tell(seen(trial, {"x": x, "y": y}, 1, None if x < 0.3 else x))
    found = [ask(searcher, trial).config["x"] for trial in range(100, 150)]
    assert np.mean([0.25 < x < 0.5 for x in found]) > 0.9


def test_a_sample_from_function_is_called_for_the_proposal_only() -> None:
    calls = []

    def twice(config: Any) -> Any:
        calls.append(config)
        return 2 * config["x"]

    space = Space({"x": uniform(0, 1), "y": sample_from(twice)})
    searcher = BOHB("kde", 0).build(space, 0)
    for trial in range(10):
        searcher.tell(seen(trial, space.decode([trial / 10]), 1, float(trial)))
    calls.clear()
    config = ask(searcher, 100).config
    assert config["y"] == 2 * config["x"]
    assert len(calls) == 1


def test_a_branch_that_is_worse_is_left() -> None:
    branches = [{"kind": "bad", "a": uniform(0, 1)}, {"kind": "good", "b": uniform(0, 1), "c": choice([1, 2])}]
    space = Space({"model": choice(branches)})
    searcher = BOHB("kde", 0).build(space, 0)
    for trial in range(40):
        config = ask(RandomSearch().build(space, 1), trial).config
        model = config["model"]
        searcher.tell(seen(trial, config, 1, 10 + model["a"] if model["kind"] == "bad" else model["b"]))
    found = [ask(searcher, trial).config["model"] for trial in range(100, 130)]
    assert all(model["kind"] == "good" for model in found)
    assert np.median([model["b"] for model in found]) < 0.4


def test_the_order_of_arrival_does_not_matter() -> None:
    """Ties and failures among the outcomes."""
    one, two = (BOHB("kde", 0).build(Space(PLANE), 0) for _ in range(2))
    told = []
    for trial in range(30):
        x, y = np.random.default_rng([5, trial]).random(2).tolist()
        told.append(seen(trial, {"x": x, "y": y}, 1, None if trial % 7 == 0 else round(x, 1)))
    for outcome in told:
        one.tell(outcome)
    for outcome in reversed(told):
        two.tell(outcome)
    assert [ask(one, trial) for trial in range(100, 110)] == [ask(two, trial) for trial in range(100, 110)]


def test_models_do_not_depend_on_when_they_were_asked_for() -> None:
    often, once = (BOHB("kde", 0).build(Space(PLANE), 0) for _ in range(2))
    for trial in range(30):
        tell_random(often, 1, range(trial, trial + 1))
        ask(often, 1000 + trial)
    tell_random(once, 1, range(30))
    assert ask(often, 2000) == ask(once, 2000)


def test_the_first_outcome_of_a_trial_at_a_rung_counts() -> None:
    one, two = (BOHB("kde", 0).build(Space(PLANE), 0) for _ in range(2))
    tell_random(one, 1, range(20))
    tell_random(two, 1, range(20))
    tell_random(two, 1, range(20), value=-1.0)
    assert ask(one, 100) == ask(two, 100)


def test_a_prior_pulls_proposals_and_fades() -> None:
    """The good ones lie at both ends: among few outcomes the prior says which end, among many it says little."""
    believed, other = Space({"x": uniform(0, 1, prior=(0.9, 0.8))}), Space({"x": uniform(0, 1)})

    def distance(space: Space, n: int) -> float:
        searcher = BOHB("kde", 0.0).build(space, 0)
        for trial in range(n):
            x = (0.15, 0.85, 0.5)[trial % 3] + 0.05 * ((trial * 0.618) % 1)
            searcher.tell(seen(trial, {"x": x}, 1, float(trial % 3 == 2)))
        return float(np.mean([abs(ask(searcher, trial).config["x"] - 0.9) for trial in range(1000, 1040)]))

    assert distance(believed, 6) < 0.15 < 0.25 < distance(other, 6)
    assert distance(believed, 3000) == pytest.approx(distance(other, 3000), abs=0.05)


def test_half_of_the_first_random_proposals_are_from_the_prior() -> None:
    """Binomial tests at 1e-4."""
    space = Space({"x": uniform(0, 1, prior=(0.9, 0.8))})
    searcher = BOHB("kde", 1.0).build(space, 0)
    n = 400
    first = sum(ask(searcher, trial).note["origin"] == "prior" for trial in range(n))
    assert stats.binomtest(first, n, 0.5).pvalue > 1e-4
    for trial in range(40):
        searcher.tell(seen(trial, {"x": trial / 40}, 1, 1.0))
    later = sum(ask(searcher, trial).note["origin"] == "prior" for trial in range(n))
    assert stats.binomtest(later, n, 0.1).pvalue > 1e-4


def test_the_best_feasible_candidate_is_proposed() -> None:
    """Everything good lies where it is infeasible; what is proposed by the model lies just beside."""
    space = Space({"x": uniform(0, 1)}, [lambda config: config["x"] > 0.4])
    searcher = BOHB("kde", 0.0).build(space, 0)
    for trial in range(30):
        searcher.tell(seen(trial, {"x": trial / 30}, 1, abs(trial / 30 - 0.3)))
    found = [ask(searcher, trial) for trial in range(100, 140)]
    assert all(space.feasible(each.config) for each in found)
    assert sum(each.note["origin"] == "model" for each in found) > 30
