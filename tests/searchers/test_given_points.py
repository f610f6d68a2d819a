"""Points that were given come first, whatever the searcher; what is known of others is told to it; a resume agrees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import raytuner as tune
from raytuner.actions import Answer, Proposal
from raytuner.schedulers import AsyncHyperBandScheduler
from raytuner.searchers import BOHB, GridSearch, RandomSearch
from raytuner.searchers.given_points import GivenPoints, Point
from raytuner.space import Space, choice, grid_search, uniform
from raytuner.testing import check_goes_on, life
from raytuner.trial import Observation, Pending
from tests.lives import SPACE, Case, fate
from tests.test_replay import check

__all__ = ["fate"]  # a fixture

PLANE = {"x": uniform(0, 1), "c": choice(["a", {"m": uniform(0, 1)}]), "n": 3}


@dataclass(frozen=True)
class Foreign:
    """A searcher of somebody else's: settings with a `build`."""

    told: list[Observation] = field(default_factory=list)

    def build(self, space: Space, seed: int) -> Foreign:
        return self

    def ask(self, trial: int, until: int, pending: Sequence[Pending]) -> Answer:
        return Proposal({"x": 0.5, "c": "a", "n": 3}, {"origin": "foreign"})

    def tell(self, seen: Observation) -> None:
        self.told.append(seen)

    def recall(self, trial: int, until: int, pending: Sequence[Pending], answer: Answer) -> None: ...


def asked(searcher: Any, trials: Sequence[int]) -> list[Proposal]:
    return [searcher.ask(trial, 1, []) for trial in trials]


def test_points_come_first_in_order() -> None:
    points = [Point({"x": 0.1, "c": "a"}), Point({"c": {"m": 0.3}}), Point({})]
    space = Space(PLANE)
    found = asked(GivenPoints(Foreign(), points, 9).build(space, 1), [0, 1, 2, 3])
    assert [each.note for each in found] == [{"origin": "given", "point": i} for i in range(3)] + [
        {"origin": "foreign"}
    ]
    assert found[0].config == {"x": 0.1, "c": "a", "n": 3}
    assert found[1].config["c"] == {"m": 0.3}
    assert all(space.contains(each.config) for each in found)
    again = asked(GivenPoints(Foreign(), points, 9).build(space, 1), [5, 7, 8])
    assert again == found[:3], "whichever trials ask first"
    other = asked(GivenPoints(Foreign(), points, 9).build(space, 2), [0, 1, 2])
    assert other[0].config == found[0].config
    assert other[1].config["x"] != found[1].config["x"]


def test_known_values_are_told_and_not_run() -> None:
    foreign = Foreign()
    points = [Point({"x": 0.1, "c": "a"}, -2.0, 2.0), Point({"x": 0.2}), Point({"x": 0.3, "c": "a"}, 1.0, -1.0)]
    found = asked(GivenPoints(foreign, points, 9).build(Space(PLANE), 1), [0, 1])
    assert [each.note["origin"] for each in found] == ["given", "foreign"]
    assert [(seen.trial, seen.until, seen.value, seen.values, seen.ended) for seen in foreign.told] == [
        (-1, 9, -2.0, (2.0,), True),
        (-3, 9, 1.0, (-1.0,), True),
    ]
    assert [seen.config["x"] for seen in foreign.told] == [0.1, 0.3]


def test_a_machine_that_is_told_the_record_goes_on() -> None:
    space = Space(SPACE)
    settings = GivenPoints(BOHB(model="kde", min_points_in_model=2), [Point({"lr": 0.1}), Point({"width": 5})], 3)
    record = list(life(settings.build(space, 7), space))
    for cut in range(0, len(record), 5):
        check_goes_on(settings.build(space, 7), record, cut)


def test_an_interrupted_study_takes_the_same_decisions(fast_path: Path, fate: Any) -> None:
    points = [Point({"lr": 0.1}), Point({"width": 5}), Point({"optimizer": {"name": "adam"}})]
    check(Case(GivenPoints(RandomSearch(), points, 9), AsyncHyperBandScheduler(max_t=9), SPACE), fast_path, fate, 30)


@pytest.mark.parametrize("model", ["kde", "joint"])
def test_models_learn_from_known_values(model: Any) -> None:
    space = Space({"x": uniform(0, 1)})
    points = [Point({"x": i / 20}, abs(i / 20 - 0.3), 0.0) for i in range(20)]
    found = asked(GivenPoints(BOHB(model=model, random_fraction=0.0), points, 9).build(space, 0), range(5))
    assert {each.note["origin"] for each in found} == {"model"}
    assert all(abs(each.config["x"] - 0.3) < 0.25 for each in found)


# ---------------------------------------------------------------------------------------------------------- studies


def line(config: dict[str, Any]) -> None:
    tune.report({"loss": config["x"], "score": -config["x"]})


def tuner(folder: Path, space: Any = None, **settings: Any) -> tune.Tuner:
    return tune.Tuner(
        line,
        param_space=space or {"x": uniform(0, 1), "c": choice(["a", "b"])},
        tune_config=tune.TuneConfig(**{"metric": "loss", "mode": "min", "num_samples": 4, "seed": 3} | settings),
        run_config=tune.RunConfig(name="study", storage_path=folder, verbose=0),
        executor="inline",
    )


def test_a_study_begins_with_its_points(tmp_path: Path) -> None:
    points = [{"x": 0.25}, {"x": 0.75, "c": "b"}, {"c": "a"}]
    results = tuner(tmp_path, points_to_evaluate=points, evaluated_rewards=[None, 0.75, None]).fit()
    configs = [result.config for result in results]
    assert len(configs) == 4
    assert configs[0]["x"] == 0.25
    assert configs[1]["c"] == "a"
    again = tune.Tuner.restore(tmp_path / "study", line, executor="inline")
    assert [result.config for result in again.fit()] == configs
    with pytest.raises(ValueError, match=r"points_to_evaluate: .* became \[\]; evaluated_rewards: "):
        tuner(tmp_path).fit()


def test_a_grid_is_run_through_besides(tmp_path: Path) -> None:
    space = {"x": grid_search([0.1, 0.2, 0.3]), "c": choice(["a", "b"])}
    results = tuner(tmp_path, space, num_samples=2, search_alg=GridSearch(), points_to_evaluate=[{"x": 0.2}]).fit()
    assert sorted(result.config["x"] for result in results) == [0.1, 0.1, 0.2, 0.2, 0.2, 0.3, 0.3]
    assert results[0].config["x"] == 0.2


def test_a_simulated_study_begins_with_its_points() -> None:
    forecast = tune.simulate(
        {"x": uniform(0, 1)},
        curve=lambda config, step: {"loss": config["x"] / step},
        workers=2,
        tune_config=tune.TuneConfig(
            metric="loss",
            mode="max",
            num_samples=4,
            scheduler=AsyncHyperBandScheduler(max_t=9),
            points_to_evaluate=[{"x": 0.125}, {"x": 0.5}],
            evaluated_rewards=[None, 1.5],
        ),
    )
    assert forecast.configs[0] == {"x": 0.125}
    assert len(forecast.configs) == 4
    assert forecast.configs[1] != {"x": 0.5}
