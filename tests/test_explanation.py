"""`explain` and the table of decisions: that they say what the model says, in the metric's unit, of a study on disk."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import raytuner as tune
from raytuner.explanation import Explanation
from raytuner.protocols import SearchAlgorithm
from raytuner.searchers import BOHB, TPE, GPSearch, RandomSearch, TuneBOHB
from raytuner.searchers import joint as joint_searcher
from raytuner.space import Space, choice, uniform
from raytuner.trial import Observation

SPACE = {"x": uniform(0, 1), "kind": choice(["a", "b"])}


def value(config: dict[str, Any]) -> float:
    return 5.0 + (config["x"] - 0.3) ** 2 + (config["kind"] == "b")


def told(algorithm: SearchAlgorithm, trials: int = 30, untils: tuple[int, ...] = (1, 3), sign: float = 1.0) -> Any:
    space = Space(SPACE)
    searcher, rng = algorithm.build(space, 0), np.random.default_rng(0)
    for trial in range(trials):
        config = space.sample(rng)
        for until in untils[: 1 + (trial % 2 == 0)]:
            searcher.tell(Observation(trial, config, until, float(until), until, value(config) + 1 / until))
    return searcher


@pytest.mark.parametrize("algorithm", [BOHB(), BOHB(values="log"), BOHB(values="rank"), GPSearch()])
def test_a_process_predicts_the_value_at_the_top_rung(algorithm: SearchAlgorithm) -> None:
    searcher = told(algorithm)
    for config in ({"x": 0.35, "kind": "a"}, {"x": 0.2, "kind": "a"}):
        found = searcher.explain(config)
        assert (found.surrogate, found.step) == ("process", 3)
        assert found.mean == pytest.approx(value(config) + 1 / 3, abs=0.1)
        assert 0 <= found.deviation < 0.2
    near, far = (searcher.explain({"x": x, "kind": kind}) for x, kind in ((0.31, "a"), (0.9, "b")))
    assert near.acquisition > far.acquisition


def test_its_evidence_is_what_is_near() -> None:
    found = told(BOHB()).explain({"x": 0.35, "kind": "a"})
    rng = np.random.default_rng(0)
    configs = [Space(SPACE).sample(rng) for _ in range(30)]
    most = found.evidence[0]
    assert configs[most.trial]["kind"] == "a"
    assert abs(configs[most.trial]["x"] - 0.35) < 0.3
    assert most.value == value(configs[most.trial]) + 1 / most.step
    weights = [each.weight for each in found.evidence]
    assert weights == sorted(weights, reverse=True)
    assert 0 < weights[-1] < weights[0] <= 1


@pytest.mark.parametrize("algorithm", [BOHB("kde"), TuneBOHB(), TPE()])
def test_densities_prefer_what_is_good(algorithm: SearchAlgorithm) -> None:
    searcher = told(algorithm)
    near, far = (searcher.explain({"x": x, "kind": kind}) for x, kind in ((0.31, "a"), (0.9, "b")))
    assert near.surrogate == "densities"
    assert near.mean is near.deviation is None
    assert near.acquisition > far.acquisition
    assert sum(each.weight for each in near.evidence) == pytest.approx(1.0)


def test_a_large_history_is_explained_by_densities(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joint_searcher, "LARGE", 60)
    searcher = told(BOHB(), trials=60)
    near, far = (searcher.explain({"x": x, "kind": kind}) for x, kind in ((0.31, "a"), (0.9, "b")))
    assert (near.surrogate, near.step) == ("densities", 3)
    assert near.acquisition > far.acquisition


@pytest.mark.parametrize("algorithm", [BOHB(), BOHB("kde"), TPE(), GPSearch()])
def test_nothing_is_known_at_first_and_a_configuration_must_be_in_the_space(algorithm: SearchAlgorithm) -> None:
    searcher = algorithm.build(Space(SPACE), 0)
    assert searcher.explain({"x": 0.5, "kind": "a"}) is None  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="not in this space: x"):
        searcher.explain({"x": 1.5, "kind": "a"})  # type: ignore[attr-defined]


def test_an_explanation_changes_no_answer() -> None:
    plain, asked = told(BOHB()), told(BOHB())
    asked.explain({"x": 0.5, "kind": "a"})
    assert plain.ask(100, 1, ()) == asked.ask(100, 1, ())


# ------------------------------------------------------------------------------------------------- of a study on disk


def train(config: dict[str, Any]) -> None:
    tune.report({"score": -value(config)})


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tune.Tuner:
    tuner = tune.Tuner(
        train,
        param_space=SPACE,
        tune_config=tune.TuneConfig(metric="score", mode="max", num_samples=14, search_alg=BOHB(), seed=1),
        run_config=tune.RunConfig(name="s", storage_path=str(tmp_path_factory.mktemp("explained")), verbose=0),
        executor="inline",
    )
    tuner.fit()
    return tuner


def test_a_tuner_explains_in_the_metrics_unit(study: tune.Tuner) -> None:
    found = study.explain({"x": 0.3, "kind": "a"})
    assert isinstance(found, Explanation)
    assert found.mean == pytest.approx(-5.0, abs=0.3)
    assert found.deviation is not None
    assert all(each.value is not None and each.value <= -5.0 for each in found.evidence)


def test_the_table_of_decisions(study: tune.Tuner) -> None:
    table = study.get_results().to_arrow("decisions")
    frame = table.to_pandas()
    assert frame["trial_id"].tolist() == [str(trial) for trial in range(14)]
    assert {"random", "model"} == set(frame["origin"])
    of_model = frame[frame["origin"] == "model"]
    assert (of_model["surrogate"] == "process").all()
    assert of_model["mean"].between(-7, -4.5).all()
    assert (of_model["deviation"] >= 0).all()
    assert frame[frame["origin"] == "random"]["mean"].isna().all()
    notes = [json.loads(note) for note in frame["note"]]
    assert all(math.isfinite(note["acquisition"]) for note in notes if note["origin"] == "model")
    assert all(set(json.loads(config)) == {"x", "kind"} for config in frame["config"])


def test_without_a_study_or_a_model_it_says_so(tmp_path: Path) -> None:
    def tuner(algorithm: SearchAlgorithm) -> tune.Tuner:
        return tune.Tuner(
            train,
            param_space=SPACE,
            tune_config=tune.TuneConfig(metric="score", mode="max", search_alg=algorithm, seed=1),
            run_config=tune.RunConfig(name="s", storage_path=str(tmp_path), verbose=0),
            executor="inline",
        )

    with pytest.raises(ValueError, match="there is no study in"):
        tuner(BOHB()).explain({"x": 0.5, "kind": "a"})
    tuner(RandomSearch()).fit()
    with pytest.raises(TypeError, match="RandomSearch has no model"):
        tuner(RandomSearch()).explain({"x": 0.5, "kind": "a"})
