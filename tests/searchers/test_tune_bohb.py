"""TuneBOHB: Ray's arguments, and that it is BOHB(model="kde")."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import raytuner as tune
from raytuner.searchers import BOHB, TuneBOHB
from raytuner.space import Space
from raytuner.testing import SPACES, life


def test_it_is_the_published_method() -> None:
    space = Space(SPACES["mixed"])
    theirs = TuneBOHB(bohb_config={"min_points_in_model": 3, "random_fraction": 0.1})
    ours = BOHB(model="kde", min_points_in_model=3, random_fraction=0.1)
    assert list(life(theirs.build(space, 1), space)) == list(life(ours.build(space, 1), space))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"space": {"x": 1}}, r"param_space"),
        ({"seed": 3}, r"seed is 3: say TuneConfig\(seed=…\) instead"),
        ({"max_concurrent": 4}, r"max_concurrent is 4: say TuneConfig\(max_concurrent_trials=…\) instead"),
        ({"points_to_evaluate": [{}]}, r"say TuneConfig\(points_to_evaluate=…\) instead"),
        ({"bohb_config": {"eta": 3}}, r"bohb_config has \['eta'\], expected only \['bandwidth_factor'"),
        ({"bohb_config": {"num_samples": 0}}, "num_samples must be at least 1: got 0"),
    ],
)
def test_what_it_does_not_take_is_said(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TuneBOHB(**arguments)


def test_its_metric_is_the_studys(tmp_path: Path) -> None:
    def tuner(**config: Any) -> tune.Tuner:
        return tune.Tuner(
            lambda config: tune.report({"loss": config["x"]}),
            param_space={"x": tune.uniform(0, 1)},
            tune_config=tune.TuneConfig(search_alg=TuneBOHB(metric="loss", mode="min"), num_samples=2, **config),
            run_config=tune.RunConfig(name="s", storage_path=str(tmp_path), verbose=0),
            executor="inline",
        )

    results = tuner().fit()
    assert results.get_best_result().metrics["loss"] == min(result.metrics["loss"] for result in results)
    with pytest.raises(ValueError, match="metric is 'accuracy' in TuneConfig, but 'loss' in TuneBOHB"):
        tuner(metric="accuracy")
