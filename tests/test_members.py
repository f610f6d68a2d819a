"""A population's members: how results, tables and a replay show them; on studies that ran, without Ray.

Trials run inline, one after another in this process, so that the same seed gives the same study to the last digit.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import raytuner as tune
from raytuner.events import Over
from raytuner.record.journal import read
from raytuner.results import Result, ResultGrid, TrialFailed
from raytuner.schedulers import PopulationBasedTraining, PopulationBasedTrainingReplay
from raytuner.trial import State, Why
from tests.lives import decisions

LENGTH, INTERVAL, MEMBERS = 12, 3, 6


def descend(config: Mapping[str, Any], saves: Callable[[int], bool] = lambda step: True) -> None:
    """Walk w towards 0 at the pace of ``lr``, which is best small and smaller; deterministic, and saved where asked."""
    step, w = 0, 1.0
    if checkpoint := tune.get_checkpoint():
        with checkpoint.as_directory() as folder:
            state = json.loads(Path(folder, "state.json").read_text())
        step, w = state["step"], state["w"]
    while step < LENGTH:
        step += 1
        w -= config["lr"] * w * (1 + 0.1 * config["width"] % 0.7)
        metrics = {"loss": w * w + 0.01 * config["lr"] / step, "lr": config["lr"]}
        if tune.should_checkpoint() and saves(step):
            with tempfile.TemporaryDirectory() as folder:
                Path(folder, "state.json").write_text(json.dumps({"step": step, "w": w}))
                tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(folder))
        else:
            tune.report(metrics)


def pbt(**settings: Any) -> PopulationBasedTraining:
    usual = {
        "time_attr": "training_iteration",
        "perturbation_interval": INTERVAL,
        "quantile_fraction": 0.5,
        "hyperparam_mutations": {"lr": tune.loguniform(1e-4, 1.5), "width": [1, 2, 4, 8]},
    }
    return PopulationBasedTraining(**{**usual, **settings})


def tuner(folder: Path, train: Any = descend, scheduler: Any = None, space: Any = None, **settings: Any) -> tune.Tuner:
    usual = {"metric": "loss", "mode": "min", "num_samples": MEMBERS, "seed": 3}
    run = {name: settings.pop(name) for name in ("failure_config", "checkpoint_config") if name in settings}
    return tune.Tuner(
        train,
        param_space={"lr": tune.loguniform(1e-3, 1e-1)} if space is None else space,
        tune_config=tune.TuneConfig(**{**usual, **settings}, scheduler=scheduler or pbt()),
        run_config=tune.RunConfig(name="study", storage_path=folder, verbose=0, **run),
        executor="inline",
    )


@pytest.fixture(scope="module")
def shelf() -> Iterator[Path]:
    """A folder for the module, in memory where there is one."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def grid(shelf: Path) -> ResultGrid:
    """A study in which members took over others."""
    return tuner(shelf, scheduler=pbt(synch=True)).fit()


def lineage(grid: ResultGrid, trial: str) -> list[tuple[str, int]]:
    """A trial and those it got its weights from, the first of them first, each with the step at which it began: read
    off the tables."""
    parents = dict(zip(*(grid.to_arrow()[name].to_pylist() for name in ("trial_id", "parent")), strict=True))
    reports = grid.to_arrow("reports").to_pylist()
    found = []
    at: str | None = trial
    while at is not None:
        found.append((at, min(row["step"] for row in reports if str(row["trial"]) == at) - 1))
        at = parents[at]
    return found[::-1]


def curve(grid: ResultGrid, trial: str) -> dict[int, float]:
    """What was said on the way to a trial's weights, step by step."""
    losses = {(str(row["trial"]), row["step"]): row["loss"] for row in grid.to_arrow("reports").to_pylist()}
    line = lineage(grid, trial)
    ends = [*(begun for _, begun in line[1:]), LENGTH]
    return {
        step: losses[at, step]
        for (at, begun), end in zip(line, ends, strict=True)
        for step in range(begun + 1, end + 1)
    }


# -------------------------------------------------------------------------------------------- members and trials


def test_there_are_as_many_results_as_samples(grid: ResultGrid) -> None:
    assert len(grid) == len(list(grid)) == MEMBERS
    assert [result.member for result in grid] == [str(number) for number in range(MEMBERS)]
    assert (grid.num_errors, grid.num_terminated) == (0, MEMBERS)
    assert {result.state for result in grid} == {State.DONE}
    assert {result.why for result in grid} == {Why.RETURNED.value}
    assert {result.metrics["training_iteration"] for result in grid} == {LENGTH}
    assert repr(grid).endswith(f": {MEMBERS} trials, 0 failed)")


def test_all_trials_are_there_too(grid: ResultGrid) -> None:
    assert [result.trial_id for result in grid.trials] == [str(number) for number in range(len(grid.trials))]
    assert len(grid.trials) > MEMBERS + 6, "members were taken over"
    replaced = [result for result in grid.trials if result.why == Why.REPLACED.value]
    assert len(replaced) == len(grid.trials) - MEMBERS
    assert {result.state for result in replaced} == {State.STOPPED}
    assert all(result.error is None for result in grid.trials)


def test_chains(grid: ResultGrid) -> None:
    """A member is a chain of trials, each in the place of the one before; every trial is in one of them."""
    chained = [trial for result in grid for trial in result.chain]
    assert Counter(chained) == Counter(result.trial_id for result in grid.trials)
    by_trial = {result.trial_id: result for result in grid.trials}
    for result in grid:
        assert result.chain[0] == result.member
        assert result.chain[-1] == result.trial_id
        assert by_trial[result.chain[0]].parent is None
        for length, trial in enumerate(result.chain, start=1):
            assert by_trial[trial].member == result.member
            assert by_trial[trial].chain == result.chain[:length]
            assert (by_trial[trial].parent is None) == (length == 1)
            assert (by_trial[trial].why == Why.REPLACED.value) == (length < len(result.chain))
            assert by_trial[trial].parent != trial
    assert any(by_trial[result.trial_id].parent not in result.chain for result in grid), "of another member"


def test_schedules(grid: ResultGrid) -> None:
    """From which step on with which configuration, as the tables have it."""
    configs = {result.trial_id: result.config for result in grid.trials}
    reported = {str(row["trial"]) for row in grid.to_arrow("reports").to_pylist()}
    lengths = set()
    for result in grid.trials:
        if result.trial_id in reported:
            assert result.schedule == tuple((begun, configs[trial]) for trial, begun in lineage(grid, result.trial_id))
        lengths.add(len(result.schedule))
        assert result.schedule[0][0] == 0
        assert result.schedule[-1][1] == result.config
        assert all(step % INTERVAL == 0 for step, _ in result.schedule)
    assert {1, 2, 3} <= lengths


def test_a_members_reports(grid: ResultGrid) -> None:
    for result in grid:
        frame = result.metrics_dataframe
        assert [str(trial) for trial in dict.fromkeys(frame["trial"])] == [
            trial for trial in result.chain if trial in set(map(str, frame["trial"]))
        ]
        assert frame.sort_values(["trial", "step"]).index.tolist() == frame.index.tolist()
        assert list(frame["lr"]) == [grid.trials[trial].config["lr"] for trial in frame["trial"]]
    assert sum(len(result.metrics_dataframe) for result in grid) == grid.to_arrow("reports").num_rows


def test_the_tables_name_members_and_parents(grid: ResultGrid) -> None:
    table = grid.to_arrow("trials")
    assert table.schema.field("parent").type == table.schema.field("member").type == pa.string()
    assert table["trial_id"].to_pylist() == [result.trial_id for result in grid.trials]
    assert table["parent"].to_pylist() == [result.parent for result in grid.trials]
    assert table["member"].to_pylist() == [result.member for result in grid.trials]
    assert table["config/lr"].to_pylist() == [result.config["lr"] for result in grid.trials]
    frame = grid.get_dataframe()
    assert frame["trial_id"].tolist() == [result.trial_id for result in grid]
    assert frame["member"].tolist() == [str(number) for number in range(MEMBERS)]
    assert frame["loss"].tolist() == [result.metrics["loss"] for result in grid]


def test_a_fork_that_only_returned_stands_as_its_source_stood(grid: ResultGrid) -> None:
    """The last turn is at the last step: who takes over another then has nothing more to do."""
    reported = {str(row["trial"]) for row in grid.to_arrow("reports").to_pylist()}
    silent = [result for result in grid if result.trial_id not in reported]
    assert silent, "no member took over another at the end"
    by_trial = {result.trial_id: result for result in grid.trials}
    for result in silent:
        assert result.parent is not None
        source = by_trial[result.parent]
        assert result.state is State.DONE
        assert result.metrics["loss"] == source.metrics["loss"] != by_trial[result.chain[-2]].metrics["loss"]
        assert result.metrics["training_iteration"] == LENGTH
        assert result.schedule == (*source.schedule, (LENGTH, result.config))
        assert result.checkpoint is None
        assert source.checkpoint is not None, "there the weights are"
        assert LENGTH not in set(result.metrics_dataframe["step"]) or len(result.chain) > 1


# ------------------------------------------------------------------------------------------------ the best of all


def test_the_best_member(grid: ResultGrid) -> None:
    """By what a member's last trial said last, or the best that any of its trials ever said."""
    reports = grid.to_arrow("reports").to_pylist()
    last = {str(row["trial"]): row["loss"] for row in reports}  # in the order of steps
    assert grid.get_best_result().trial_id == min(
        (result.trial_id for result in grid if result.trial_id in last), key=last.__getitem__
    )
    assert grid.get_best_result().metrics["loss"] == min(result.metrics["loss"] for result in grid)
    best = min(reports, key=lambda row: row["loss"])
    assert grid.get_best_result(scope="all").trial_id == str(best["trial"])
    worst = max(reports, key=lambda row: (row["loss"], -row["trial"]))
    found = grid.get_best_result(mode="max", scope="all")
    assert found.trial_id == str(worst["trial"])
    assert found in grid.trials
    assert found not in list(grid), "a trial that was taken over"


# ---------------------------------------------------------------------------------------------- no source to fork


@pytest.fixture(scope="module")
def lacking(shelf: Path) -> ResultGrid:
    """A study in which trials 1 and 4 never save; so nobody can go on from them."""

    def train(config: Mapping[str, Any]) -> None:
        descend(config, lambda step: tune.get_context().get_trial_id() not in ("1", "4"))

    return tuner(shelf / "lacking", train).fit()


def test_a_fork_without_a_source_is_nobody(lacking: ResultGrid) -> None:
    lost = [result for result in lacking.trials if result.why == Why.NO_SOURCE.value]
    assert lost
    for result in lost:
        assert result.parent in ("1", "4")
        assert result.state is State.FAILED
        assert isinstance(result.error, TrialFailed)
        assert str(result.error).startswith(f"trial {result.parent} had saved nothing by step ")
        assert result.member == ""
        assert result.chain == (result.trial_id,)
        assert result.metrics == {}
        assert len(result.metrics_dataframe) == 0
        assert result.schedule == ()
        assert result.checkpoint is None
        assert all(result.trial_id not in member.chain for member in lacking)
    table = lacking.to_arrow()
    members = dict(zip(table["trial_id"].to_pylist(), table["member"].to_pylist(), strict=True))
    assert {members[result.trial_id] for result in lost} == {None}
    assert set(members.values()) - {None} == {str(number) for number in range(MEMBERS)}


def test_a_fork_without_a_source_counts_nowhere(lacking: ResultGrid) -> None:
    assert len(lacking) == MEMBERS
    assert (lacking.num_errors, lacking.errors, lacking.num_terminated) == (0, [], MEMBERS)
    assert {result.state for result in lacking} == {State.DONE}
    assert lacking.get_best_result().state is State.DONE


# -------------------------------------------------------------------------------------------------- a replay of it


def test_the_winners_schedule_can_be_followed_again(grid: ResultGrid, fast_path: Path) -> None:
    """From the study's folder: the same configurations from the same steps on, and what is said at each step is the
    same to the last digit."""
    best = grid.get_best_result()
    assert len(best.schedule) > 2
    replay = PopulationBasedTrainingReplay(policy_file=grid.experiment_path)
    assert replay.schedule == best.schedule
    again = tuner(fast_path, scheduler=replay, space={}, num_samples=1).fit()
    assert len(again) == 1
    assert again[0].schedule == best.schedule
    assert [result.config for result in again.trials] == [config for _, config in best.schedule]
    assert again[0].chain == tuple(map(str, range(len(best.schedule))))
    frame = again[0].metrics_dataframe
    assert dict(zip(frame["step"], frame["loss"], strict=True)) == curve(grid, best.trial_id)
    assert again[0].metrics["loss"] == best.metrics["loss"]
    assert again[0].state is State.DONE


def test_any_trials_schedule_can_be_followed(grid: ResultGrid, fast_path: Path) -> None:
    """Also twice, beside each other; without a metric; and as it was handed over by hand."""
    chosen = max((each for each in grid.trials if len(each.schedule) > 1), key=lambda each: each.metrics["loss"])
    replay = PopulationBasedTrainingReplay(policy_file=grid.experiment_path, trial=int(chosen.trial_id))
    assert replay == PopulationBasedTrainingReplay(schedule=chosen.schedule)
    again = tuner(fast_path, scheduler=replay, space={}, num_samples=2, metric=None, mode=None).fit()
    assert [result.schedule for result in again] == [chosen.schedule] * 2
    assert len(again.trials) == 2 * len(chosen.schedule)
    with pytest.raises(ValueError, match=r"trial='77': the study in .* has no such trial; it has \d+"):
        PopulationBasedTrainingReplay(policy_file=grid.experiment_path, trial="77")


def test_a_replay_of_what_does_not_save_ends_where_it_is(fast_path: Path) -> None:
    """The next configuration cannot go on from there, and to begin anew with it would be another schedule."""

    def train(config: Mapping[str, Any]) -> None:
        descend(config, lambda step: step == 3)

    schedule = [(0, {"lr": 0.1, "width": 1}), (3, {"lr": 0.2, "width": 1}), (6, {"lr": 0.3, "width": 1})]
    again = tuner(fast_path, train, PopulationBasedTrainingReplay(schedule=schedule), {}, num_samples=2).fit()
    assert len(again) == 2
    for result in again:
        assert len(result.chain) == 2, "it came to step 6 with the second configuration"
        assert result.state is State.STOPPED
        assert result.why == Why.SCHEDULER_DONE.value
        assert result.metrics["training_iteration"] == 6
    lost = [result for result in again.trials if result.why == Why.NO_SOURCE.value]
    assert [result.config["lr"] for result in lost] == [0.3, 0.3]
    assert len(again.trials) == 6


# -------------------------------------------------------------------------------------------- to go on with a study


class Interrupted:
    """Ctrl-C at the n-th report from now; once."""

    def __init__(self, reports: int) -> None:
        self.left = reports

    def saves(self, step: int) -> bool:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return True


@pytest.mark.parametrize("synch", [False, True])
@pytest.mark.parametrize("reports", [1, 9, 14, 20])
def test_a_restored_population_goes_on_as_if_nothing_had_been(reports: int, synch: bool, fast_path: Path) -> None:
    """The mutations are read from the study's folder; what follows is what would have followed."""
    whole = tuner(fast_path / "whole", scheduler=pbt(synch=synch)).fit()
    interrupted = Interrupted(reports)

    def train(config: Mapping[str, Any]) -> None:
        descend(config, interrupted.saves)

    with pytest.raises(SystemExit):
        tuner(fast_path / "cut", train, pbt(synch=synch)).fit()
    cut = fast_path / "cut" / "study"
    assert not all(result.state.over for result in ResultGrid(cut))
    restored = tune.Tuner.restore(cut, train, run_config=tune.RunConfig(verbose=0), executor="inline").fit()
    assert decisions(read(cut).rows) == decisions(read(fast_path / "whole" / "study").rows)
    assert [told(result) for result in restored.trials] == [told(result) for result in whole.trials]
    curves = [grid.to_arrow("reports").select(["trial", "step", "loss"]).to_pylist() for grid in (restored, whole)]
    assert curves[0] == curves[1]


def told(result: Result) -> Any:
    return result.trial_id, result.config, result.state, result.why, result.chain, result.schedule


def test_the_same_script_with_other_mutations_is_another_study(fast_path: Path) -> None:
    tuner(fast_path).fit()
    assert len(tuner(fast_path).fit()) == MEMBERS, "the same one is over, and read"
    for other in (
        pbt(hyperparam_mutations={"lr": tune.loguniform(1e-4, 1.0), "width": [1, 2, 4, 8]}),
        pbt(hyperparam_mutations={"lr": tune.loguniform(1e-4, 1.5), "width": [8, 4, 2, 1]}),
        pbt(perturbation_factors=(1.5, 0.5)),
        pbt(synch=True),
    ):
        space = {"lr": tune.loguniform(1e-3, 1e-1), "width": tune.choice([1, 2, 4, 8])}
        with pytest.raises(ValueError, match=r"holds another study: scheduler: \{.*\} became \{.*\}\. Give the new"):
            tuner(fast_path, scheduler=other, space=space).fit()


def test_a_function_among_the_mutations_must_be_given_again(fast_path: Path) -> None:
    def draw() -> float:
        return 0.05

    scheduler = pbt(hyperparam_mutations={"lr": draw, "width": [1, 2]})
    space = {"lr": tune.loguniform(1e-3, 1e-1)}
    interrupted = Interrupted(9)
    with pytest.raises(SystemExit):
        tuner(fast_path, lambda config: descend(config, interrupted.saves), scheduler, space).fit()
    path = fast_path / "study"
    with pytest.raises(ValueError, match=r"tune_config must be given again.* scheduler.*sample_from\(.*draw"):
        tune.Tuner.restore(path, descend, executor="inline")
    custom = tuner(fast_path / "custom", scheduler=pbt(custom_explore_fn=dict))
    custom._folder.create({**custom._describe(), "seed": 1})
    with pytest.raises(ValueError, match=r"tune_config must be given again.* scheduler.*custom_explore_fn"):
        tune.Tuner.restore(fast_path / "custom" / "study", descend, executor="inline")
    config = tune.TuneConfig(metric="loss", mode="min", num_samples=MEMBERS, seed=3, scheduler=scheduler)
    quiet = tune.RunConfig(verbose=0)
    results = tune.Tuner.restore(path, descend, tune_config=config, run_config=quiet, executor="inline").fit()
    assert len(results) == MEMBERS
    assert {result.state for result in results} == {State.DONE}


def test_what_the_space_lacks_is_drawn_from_the_mutations(grid: ResultGrid) -> None:
    """``width`` is only among the mutations."""
    first = [result.config["width"] for result in grid.trials[:MEMBERS]]
    assert set(first) <= {1, 2, 4, 8}
    assert len(set(first)) > 1


def test_the_record_has_each_fork_and_whom_it_replaced(grid: ResultGrid) -> None:
    rows = read(Path(grid.experiment_path)).rows
    over = {row.trial: row.why for row in rows if isinstance(row, Over)}
    for result in grid.trials[MEMBERS:]:
        assert over[int(result.chain[-2])] is Why.REPLACED
