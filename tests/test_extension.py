"""Studies that go on beyond what was planned: more trials, more steps, another stop, another space."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import raytuner as tune
from raytuner.actions import Proposal, Resume
from raytuner.events import Extended, Finish, Over, Proposed
from raytuner.executors.simulate import World
from raytuner.protocols import Extensible, can_reopen
from raytuner.record.journal import extensions, read
from raytuner.schedulers import ASHAScheduler, HyperBandScheduler, PopulationBasedTraining
from raytuner.searchers import BOHB, CMAES, GridSearch, RandomSearch
from raytuner.space import Space, choice, loguniform, randint, uniform
from raytuner.trial import State
from tests.lives import SPACE, Case, Fate, decisions, fate, live_through
from tests.schedulers.test_contract import SETTINGS, any_model
from tests.searchers.test_contract import SEARCHERS_UNDER_TEST

__all__ = ["any_model", "fate"]  # fixtures

OPEN = [name for name, settings in SETTINGS.items() if can_reopen(settings.build(0))]
LONGER = [name for name, settings in SETTINGS.items() if isinstance(settings.build(0), Extensible)]
ELSEWHERE = [name for name, settings in SEARCHERS_UNDER_TEST.items() if not isinstance(settings, GridSearch)]

WIDER = {
    **SPACE,
    "lr": loguniform(1e-6, 1.0),
    "optimizer": choice([{"name": "sgd", "momentum": uniform(0.0, 0.99)}, {"name": "adam"}, {"name": "lamb"}]),
}
NARROWER = {**SPACE, "width": randint(16, 32)}


# ------------------------------------------------------------- an extended study that dies and comes back


def check(case: Case, extended: Case, root: Path, fate: Fate, lives: int = 12) -> list[Any]:
    """Die before and after an extension, over and over: the decisions are those of the study left alone."""
    world = World()
    live_through(case, root / "alone", fate, gap=None, world=world)
    expected, alone = live_through(extended, root / "alone", fate, gap=None, world=world)
    deaths = round_ = 0
    while deaths < lives:
        round_ += 1
        world, gap = World(), alone.leases // 3 + 4
        _, before = live_through(case, root / str(round_), fate, gap, power=round_ % 2 == 0, world=world)
        found, after = live_through(extended, root / str(round_), fate, gap, power=round_ % 2 == 0, world=world)
        assert found == expected
        deaths += before.deaths + after.deaths
    return expected


def begun(rows: list[Any]) -> set[int]:
    return {row.trial for row in rows if isinstance(row, Proposed)}


@pytest.mark.parametrize("scheduler", OPEN)
@pytest.mark.usefixtures("few_candidates")
def test_more_trials(scheduler: str, fast_path: Path, fate: Fate) -> None:
    case = Case(RandomSearch(), SETTINGS[scheduler], SPACE, trials=9)
    found = check(case, replace(case, extension=Extended(1e6, 20, None, False, {})), fast_path, fate)
    assert begun(found) == set(range(20))


@pytest.mark.usefixtures("few_candidates")
def test_more_trials_for_a_model(fast_path: Path, fate: Fate) -> None:
    case = Case(BOHB(min_points_in_model=4), HyperBandScheduler(max_t=9), SPACE, trials=9)
    found = check(case, replace(case, extension=Extended(1e6, 24, None, False, {})), fast_path, fate)
    assert begun(found) == set(range(24))


@pytest.mark.parametrize("scheduler", LONGER)
def test_more_steps(scheduler: str, fast_path: Path, fate: Fate) -> None:
    """The best of those that were done at the last rung go on from there."""
    case = Case(RandomSearch(), SETTINGS[scheduler], SPACE, trials=14)
    top = max(getattr(SETTINGS[scheduler], "max_t", 1), 1)
    found = check(case, replace(case, extension=Extended(1e6, 14, top + 3, False, {})), fast_path, fate)
    first = {row.trial: place for place, row in enumerate(found) if isinstance(row, Over) and row.state is State.DONE}
    again = [row for place, row in enumerate(found) if isinstance(row, Resume) and place > first.get(row.trial, 10**9)]
    assert {row.until for row in again} <= {top + 3}


@pytest.mark.parametrize(
    ("searcher", "space"),
    [
        *((name, "narrower") for name in ELSEWHERE),
        *((name, "wider") for name in ("random", "bohb", "evolution, small")),
    ],
)
@pytest.mark.usefixtures("few_candidates")
def test_another_space(searcher: str, space: str, fast_path: Path, fate: Fate) -> None:
    """The searcher is made anew and told everything again; what it proposes lies in the new space."""
    other: Mapping[str, Any] = WIDER if space == "wider" else NARROWER
    widest = WIDER if space == "wider" else SPACE
    case = Case(SEARCHERS_UNDER_TEST[searcher], HyperBandScheduler(max_t=9), SPACE, trials=8, widest_space=widest)
    extended = replace(case, extension=Extended(1e6, 16, None, True, {}), extended_space=other)
    found = check(case, extended, fast_path, fate, lives=2)
    configs = {row.trial: row.answer.config for row in found if isinstance(row, Proposed)}
    assert all(Space(other).found(config) is not None for trial, config in configs.items() if trial >= 8)


def test_a_study_that_was_never_asked_for_more_steps_is_as_it_was(fast_path: Path, fate: Fate) -> None:
    """What a top rung remembers for the case that it is no longer the top changes nothing."""
    case = Case(RandomSearch(), ASHAScheduler(max_t=9, reduction_factor=3, grace_period=1), SPACE)
    rows, _ = live_through(case, fast_path, fate, gap=None)
    assert any(isinstance(row, Over) and row.state is State.DONE for row in rows)


# ------------------------------------------------------------------------------------------------- the public face


def train(config: dict[str, Any]) -> None:
    step = 0
    if checkpoint := tune.get_checkpoint():
        step = int(Path(checkpoint.path, "step").read_text())
    while step < 81:
        step += 1
        metrics = {"loss": abs(config["x"] - 0.3) + 1 / step}
        if not tune.should_checkpoint():
            tune.report(metrics)
            continue
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "step").write_text(str(step))
            tune.report(metrics, checkpoint=tune.Checkpoint(folder))


SPAN = {"x": tune.uniform(0, 1)}


def tuner(folder: Path, space: Mapping[str, Any] = SPAN, stop: Any = None, **settings: Any) -> tune.Tuner:
    config = {"metric": "loss", "mode": "min", "num_samples": 6, "seed": 3} | settings
    return tune.Tuner(
        train,
        param_space=space,
        tune_config=tune.TuneConfig(**config),
        run_config=tune.RunConfig(name="study", storage_path=folder, verbose=0, stop=stop),
        executor="inline",
    )


def longer(folder: Path, **extension: Any) -> tune.Tuner:
    given = extension.pop("given", {})
    return tune.Tuner.restore(folder / "study", train, extend=tune.Extension(**extension), executor="inline", **given)


def xs(results: Any) -> list[float]:
    return [result.config["x"] for result in results.trials]


def test_more_trials_are_those_of_a_longer_study(tmp_path: Path) -> None:
    tuner(tmp_path / "a", stop={"training_iteration": 2}).fit()
    results = longer(tmp_path / "a", num_samples=10).fit()
    whole = tuner(tmp_path / "b", stop={"training_iteration": 2}, num_samples=10).fit()
    assert xs(results) == xs(whole)
    assert results.num_terminated == 10
    assert [each.trials for each in extensions(tmp_path / "a" / "study")] == [10]


def test_a_study_is_extended_once_however_often_it_is_said(tmp_path: Path) -> None:
    tuner(tmp_path, stop={"training_iteration": 1}).fit()
    extended = longer(tmp_path, num_samples=8)
    extended.fit()
    extended.fit()
    longer(tmp_path, num_samples=8).fit()
    rows = read(tmp_path / "study").rows
    assert sum(isinstance(row, Extended) for row in rows) == 1
    assert sum(isinstance(row, Finish) for row in rows) == 2
    tune.Tuner.restore(tmp_path / "study", train, executor="inline").fit()
    longer(tmp_path, num_samples=9).fit()
    assert [each.trials for each in extensions(tmp_path / "study")] == [8, 9]


def test_a_script_of_the_extended_study_runs_and_the_first_one_is_told(tmp_path: Path) -> None:
    tuner(tmp_path, stop={"training_iteration": 1}).fit()
    with pytest.raises(ValueError, match=r"num_samples: 6 became 8.*raytuner\.Extension"):
        tuner(tmp_path, stop={"training_iteration": 1}, num_samples=8).fit()
    longer(tmp_path, num_samples=8).fit()
    assert len(tuner(tmp_path, stop={"training_iteration": 1}, num_samples=8).fit()) == 8
    with pytest.raises(ValueError, match="num_samples: 8 became 6"):
        tuner(tmp_path, stop={"training_iteration": 1}).fit()


@pytest.mark.parametrize("promotion", [False, True])
def test_more_steps_from_checkpoints(promotion: bool, tmp_path: Path) -> None:
    scheduler = ASHAScheduler(max_t=9, reduction_factor=3, promotion=promotion)
    before = tuner(tmp_path, scheduler=scheduler, num_samples=12).fit()
    done = {result.trial_id for result in before.trials if result.metrics["training_iteration"] == 9}
    after = longer(tmp_path, max_t=27).fit()
    farther = {result.trial_id: result for result in after.trials if result.metrics["training_iteration"] > 9}
    assert farther
    assert farther.keys() <= done
    for result in farther.values():
        assert result.metrics["training_iteration"] == 27
        assert result.state is State.DONE
        assert result.metrics_dataframe["step"].tolist() == list(range(1, 28)), "no step is made twice"
    assert min(before, key=lambda result: result.metrics["loss"]).trial_id in farther, "the best goes on"
    restored = tune.Tuner.restore(tmp_path / "study", train, executor="inline").fit()
    assert [result.metrics for result in restored] == [result.metrics for result in after]


def test_another_stop_holds_for_what_runs_from_then_on(tmp_path: Path) -> None:
    tuner(tmp_path, stop={"training_iteration": 2}).fit()
    results = longer(tmp_path, num_samples=8, stop={"training_iteration": 4}).fit()
    assert [result.metrics["training_iteration"] for result in results] == [2] * 6 + [4] * 2
    with pytest.raises(ValueError, match=r"stop: .*4.* became .*2"):
        tuner(tmp_path, stop={"training_iteration": 2}, num_samples=8).fit()


def test_another_space_and_what_is_known_of_the_old_one(tmp_path: Path) -> None:
    tuner(tmp_path, stop={"training_iteration": 3}, search_alg=BOHB(), num_samples=20).fit()
    results = longer(tmp_path, num_samples=30, param_space={"x": tune.uniform(0.2, 0.5)}).fit()
    later = [result.config["x"] for result in results.trials[20:]]
    assert all(0.2 <= x <= 0.5 for x in later)
    notes = [row for row in read(tmp_path / "study").rows if isinstance(row, Proposed) and row.trial >= 20]
    model = [
        row.answer.note for row in notes if isinstance(row.answer, Proposal) and row.answer.note["origin"] == "model"
    ]
    assert model, "what was learnt in the old space is known in the new one"
    assert model[0]["outcomes"] >= sum(0.2 <= x <= 0.5 for x in xs(results)[:20])
    again = tune.Tuner.restore(tmp_path / "study", train, executor="inline")
    assert again.explain({"x": 0.3}) is not None
    with pytest.raises(ValueError, match="x"):
        again.explain({"x": 0.9})


def test_a_study_that_ended_early_is_extended(tmp_path: Path) -> None:
    def fails(config: dict[str, Any]) -> None:
        raise ZeroDivisionError

    first = tuner(tmp_path, stop={"training_iteration": 1}, num_samples=9)
    first._train = fails
    study = tune.Tuner(
        fails,
        param_space=SPAN,
        tune_config=tune.TuneConfig(metric="loss", mode="min", num_samples=9, seed=3),
        run_config=tune.RunConfig(name="study", storage_path=tmp_path, verbose=0, stop={"training_iteration": 1}),
        executor="inline",
    )
    assert study.fit().num_errors == 5
    results = longer(tmp_path, num_samples=12).fit()
    assert (results.num_errors, results.num_terminated) == (5, 7)


def test_a_grid_is_run_through_once_more(tmp_path: Path) -> None:
    tuner(tmp_path, space={"x": tune.grid_search([0.1, 0.2])}, stop={"training_iteration": 1}, num_samples=1).fit()
    results = longer(tmp_path, num_samples=2).fit()
    assert sorted(xs(results)) == [0.1, 0.1, 0.2, 0.2]


# ----------------------------------------------------------------------------------------------------- at the door


@pytest.mark.parametrize(
    ("study", "extension", "message"),
    [
        ({}, {"num_samples": 5}, "num_samples can only grow: the study has 6, got 5"),
        ({}, {"max_t": 100}, "max_t cannot be extended under FIFOScheduler"),
        (
            {"scheduler": HyperBandScheduler(max_t=9)},
            {"max_t": 27},
            "max_t cannot be extended under HyperBandScheduler",
        ),
        ({"scheduler": ASHAScheduler(max_t=9)}, {"max_t": 4}, "max_t can only grow: the study has 9, got 4"),
        (
            {"scheduler": ASHAScheduler(max_t=9, stop_last_trials=False)},
            {"max_t": 27},
            "max_t cannot be extended under AsyncHyperBandScheduler, only under ASHA with stop_last_trials",
        ),
        ({"space": {"x": tune.grid_search([0.5])}}, {"param_space": {"x": tune.grid_search([0.4])}}, "grid search"),
        ({"points_to_evaluate": [{"x": 0.5}]}, {"param_space": {"x": tune.uniform(0, 2)}}, "points_to_evaluate"),
        (
            {"scheduler": PopulationBasedTraining(perturbation_interval=1, hyperparam_mutations=SPAN)},
            {"num_samples": 8},
            "num_samples cannot be extended under PopulationBasedTraining",
        ),
        (
            {"scheduler": PopulationBasedTraining(perturbation_interval=1, hyperparam_mutations=SPAN)},
            {"param_space": {"x": tune.uniform(0, 2)}},
            "param_space cannot be replaced under PopulationBasedTraining",
        ),
    ],
)
def test_what_a_study_cannot_be_extended_by(
    study: dict[str, Any], extension: dict[str, Any], message: str, tmp_path: Path
) -> None:
    tuner(tmp_path, stop={"training_iteration": 2}, **study).fit()
    before = read(tmp_path / "study").rows
    with pytest.raises(ValueError, match=message):
        longer(tmp_path, **extension)
    assert read(tmp_path / "study").rows == before


@pytest.mark.parametrize(
    ("extension", "message"),
    [
        ({}, "nothing was given"),
        ({"num_samples": 0}, "num_samples must be"),
        ({"num_samples": True}, "num_samples must be"),
        ({"max_t": 1.5}, "max_t must be"),
        ({"stop": {"loss": "low"}}, "stop must hold"),
    ],
)
def test_what_is_no_extension(extension: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tune.Extension(**extension)


def test_cmaes_begins_afresh_in_another_space(tmp_path: Path) -> None:
    """As documented: it learns only from what it proposed itself."""
    pytest.importorskip("cmaes")
    space = {"x": tune.uniform(0, 1), "y": tune.uniform(0, 1)}
    tuner(tmp_path, space=space, stop={"training_iteration": 1}, search_alg=CMAES()).fit()
    results = longer(tmp_path, num_samples=12, param_space={**space, "x": tune.uniform(0, 0.5)}).fit()
    assert all(result.config["x"] <= 0.5 for result in results.trials[6:])


def test_the_extension_is_in_the_record_as_plain_json(tmp_path: Path) -> None:
    tuner(tmp_path, stop={"training_iteration": 1}).fit()
    before = (tmp_path / "study" / "study.json").read_bytes()
    longer(tmp_path, num_samples=7, param_space={"x": tune.uniform(0, 2)}).fit()
    assert (tmp_path / "study" / "study.json").read_bytes() == before
    (extension,) = extensions(tmp_path / "study")
    assert extension.respaced
    assert set(extension.changes) == {"num_samples", "space"}
    assert json.loads(json.dumps(extension.changes)) == extension.changes
    assert decisions(read(tmp_path / "study").rows)
