"""A checkpoint that is found damaged costs nobody a failure: it is put aside, and whoever would have begun from it goes
on from an older one. On real files, in this process; the same in the simulator, where drivers die on the way."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import raytuner as tune
from raytuner.actions import Fork, Start, Stop
from raytuner.checkpoints import MANIFEST, Store
from raytuner.events import Damaged, Failed, Loaded, Over, Quarantine, Retry
from raytuner.executors.simulate import Workload
from raytuner.record.journal import read
from raytuner.results import ResultGrid
from raytuner.retention import CheckpointConfig
from raytuner.schedulers import AsyncHyperBandScheduler, HyperBandScheduler, PopulationBasedTraining
from raytuner.searchers import RandomSearch
from raytuner.trial import Failure, State, Why
from tests.lives import SPACE, Case, Fate, fate, live_through
from tests.test_study import Desk, Scripted, of, overs, runs

__all__ = ["fate"]  # a fixture

pytestmark = pytest.mark.timeout(120)

# ------------------------------------------------------------------------------------------------ real files


def flip(path: Path) -> None:
    data = bytearray((path / "state").read_bytes())
    data[0] ^= 1
    (path / "state").write_bytes(data)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "flipped": flip,
    "truncated": lambda path: (path / "state").write_bytes(b""),
    "a file gone": lambda path: (path / "state").unlink(),
    "no manifest": lambda path: (path / MANIFEST).unlink(),
    "all gone": shutil.rmtree,
}


Began = list[tuple[int, str]]
"""Of each time the training function was called: the trial, and what was in the checkpoint that it began from."""


def trains(
    began: Began, damages: Callable[[], Any] = lambda: None, call: int = -1, every: int = 1
) -> Callable[..., Any]:
    """A training function that saves at each ``every``-th step and where it is asked to. Its ``call``-th call damages
    what another one will begin from."""

    def train(config: dict[str, Any]) -> None:
        trial = int(tune.get_context().get_trial_id())
        checkpoint = tune.get_checkpoint()
        state = Path(checkpoint.path, "state").read_text() if checkpoint else "0"
        began.append((trial, state))
        if len(began) - 1 == call:
            damages()
        step = int(state.split()[0])
        while True:
            step += 1
            metrics = {"loss": (trial % 7) / 10 + 1 / step, "lr": config["lr"]}
            if tune.should_checkpoint() or step % every == 0:
                with tempfile.TemporaryDirectory() as folder:
                    Path(folder, "state").write_text(f"{step} by {trial}")
                    tune.report(metrics, checkpoint=tune.Checkpoint(folder))
            else:
                tune.report(metrics)

    return train


def run(
    root: Path, train: Callable[..., Any], scheduler: Any, trials: int, stop: int = 9, keep: int | None = None
) -> ResultGrid:
    return tune.Tuner(
        train,
        param_space={"lr": tune.loguniform(1e-4, 1.0)},
        tune_config=tune.TuneConfig(metric="loss", mode="min", num_samples=trials, scheduler=scheduler, seed=1),
        run_config=tune.RunConfig(
            name=root.name,
            storage_path=root.parent,
            stop={"training_iteration": stop},
            checkpoint_config=CheckpointConfig(num_to_keep=keep),
            verbose=0,
        ),
        executor="inline",
    ).fit()


def values(results: ResultGrid) -> list[tuple[int, float]]:
    return [(result.metrics["training_iteration"], result.metrics["loss"]) for result in results]


def step_of(state: str) -> int:
    return int(state.split()[0])


@pytest.mark.parametrize(("every", "begins_at"), [(1, 3), (9, 1)], ids=["an older one", "none other"])
@pytest.mark.parametrize("kind", DAMAGE)
def test_a_trial_goes_on_from_the_checkpoint_before(
    kind: str, every: int, begins_at: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It may fail not even once, and what it reports is what it would have."""
    scheduler = HyperBandScheduler(max_t=9, reduction_factor=3)
    alone: Began = []
    sound = run(tmp_path / "sound", trains(alone, every=every), scheduler, 9)
    call = next(place for place, (_, state) in enumerate(alone) if step_of(state) == begins_at)
    trial, root = alone[call][0], tmp_path / "study"
    path = Path(Store(root / "checkpoints").path(trial, begins_at))
    began: Began = []
    with caplog.at_level(logging.WARNING):
        train = trains(began, lambda: DAMAGE[kind](path), call - 1, every)
        results = run(root, train, scheduler, 9)
    rows = list(read(root).rows)
    (found,) = [row for row in rows if isinstance(row, Damaged)]
    assert (found.trial, found.source, found.step) == (trial, trial, begins_at)
    assert [row for row in rows if isinstance(row, Quarantine)] == [Quarantine(trial, begins_at)]
    assert [row for row in rows if isinstance(row, Retry)] == [Retry(trial, 2 if every == 1 else None)]
    assert began[call] == (trial, f"2 by {trial}" if every == 1 else "0")
    assert not any(isinstance(row, Failed) for row in rows)
    assert values(results) == values(sound)
    assert not results.errors
    (told,) = [record.getMessage() for record in caplog.records]
    assert told.startswith(f"checkpoint {path} is damaged: ")
    aside = root / "quarantine" / f"{trial:06d}-{begins_at:06d}"
    if kind == "all gone":
        assert not aside.parent.exists()
        assert "There is nothing left of it to look at" in told
    else:
        assert f"It was moved to {aside}" in told
        assert sorted(each.name for each in aside.iterdir()) == sorted(
            {"state", MANIFEST} - {"a file gone": {"state"}, "no manifest": {MANIFEST}}.get(kind, set())
        )
    store = Store(root / "checkpoints")
    for result in results.trials:
        for checkpoint, _ in result.best_checkpoints:
            store.verify(int(result.trial_id), int(Path(checkpoint.path).name))


def test_what_was_put_aside_stays_when_a_driver_sweeps(tmp_path: Path) -> None:
    """Also if its driver died before it could move it: the next does."""
    root, store = tmp_path, Store(tmp_path / "checkpoints")
    for step in (1, 2):
        (tmp_path / "source").mkdir(exist_ok=True)
        (tmp_path / "source" / "state").write_text(str(step))
        store.publish(tmp_path / "source", 7, step, 1)
    assert store.quarantine(7, 1) == str(root / "quarantine" / "000007-000001")
    assert store.quarantine(7, 1) is None
    assert store.sweep(set()) != []
    store.publish(tmp_path / "source", 7, 1, 1)
    assert store.quarantine(7, 1) == str(root / "quarantine" / "000007-000001-2")
    assert store.sweep(set()) == []
    assert sorted(path.name for path in (root / "quarantine").iterdir()) == ["000007-000001", "000007-000001-2"]


# ---------------------------------------------------------------------------------------------------- populations


def population(**settings: Any) -> PopulationBasedTraining:
    return PopulationBasedTraining(
        time_attr="training_iteration",
        perturbation_interval=2,
        quantile_fraction=0.5,
        hyperparam_mutations={"lr": tune.loguniform(1e-4, 1.0)},
        **settings,
    )


@pytest.mark.parametrize("keep", [3, 1], ids=["an older one", "none other"])
@pytest.mark.parametrize("kind", DAMAGE)
def test_a_fork_goes_on_from_its_donors_checkpoint_before(
    kind: str, keep: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """If there is none, it is over, and no failure of anybody's."""
    alone: Began = []
    run(tmp_path / "sound", trains(alone), population(synch=True), 4, keep=keep)
    sound = list(read(tmp_path / "sound").rows)
    first = next(row for row in sound if isinstance(row, Fork) and row.source != row.replaces)
    call = next(place for place, (trial, _) in enumerate(alone) if trial == first.trial)
    step = step_of(alone[call][1])
    root = tmp_path / "study"
    path = Path(Store(root / "checkpoints").path(first.source, step))
    began: Began = []
    with caplog.at_level(logging.WARNING):
        # the last call before, of whoever it was
        results = run(root, trains(began, lambda: DAMAGE[kind](path), call - 1), population(synch=True), 4, keep=keep)
    rows = list(read(root).rows)
    damaged = [row for row in rows if isinstance(row, Damaged)]
    assert (damaged[0].trial, damaged[0].source, damaged[0].step) == (first.trial, first.source, step)
    assert [row for row in rows if isinstance(row, Quarantine)] == [Quarantine(first.source, step)]
    assert not any(isinstance(row, Failed) for row in rows)
    loaded = [row for row in rows if isinstance(row, Loaded) and row.trial == first.trial]
    over = {row.trial: row.why for row in rows if isinstance(row, Over)}
    if keep == 3:
        assert (loaded[0].source, loaded[0].step) == (first.source, step - 1)
        assert began[call] == (first.trial, f"{step - 1} by {first.source}")
        assert over[first.trial] is not Why.NO_SOURCE
    else:
        assert loaded == []
        assert over[first.trial] is Why.NO_SOURCE
    assert (root / "quarantine").exists() == (kind != "all gone")
    assert any(f"checkpoint {path} is damaged" in record.getMessage() for record in caplog.records)
    assert len(results) == 4
    assert all(result.state.over for result in results)
    replayed = run(root, trains([]), population(synch=True), 4, keep=keep)
    assert values(replayed) == values(results)


# ------------------------------------------------------------------------------------------------------ the study


def damage(desk: Desk, trial: int) -> list[Any]:
    """What a trial's lease was to begin from is damaged."""
    lease = desk.leases[trial]
    assert lease.checkpoint is not None
    return desk.tell(Damaged(desk.tick(), trial, lease.attempt, lease.donor, lease.checkpoint, "flipped", spent=0.5))


def test_a_lease_is_given_out_again_and_nothing_is_charged() -> None:
    desk = Desk(Scripted(Start(0, 9), forks=False), trials=1)
    desk.save(0, 3)
    desk.save(0, 6)
    desk.fail(0, Failure.LOST)
    entry = desk.study.ledger[0]
    before = repr(entry.failures), entry.tries
    commands = damage(desk, 0)
    assert commands[:2] == [Quarantine(0, 6), Retry(0, 3)]
    assert runs(commands) == [0]
    assert (desk.leases[0].checkpoint, desk.leases[0].digest, desk.leases[0].origin) == (3, "0/3", 3)
    assert (repr(entry.failures), entry.tries) == before
    assert entry.spent == 1.5
    assert desk.study.quarantined == {(0, 6)}
    assert damage(desk, 0)[:2] == [Quarantine(0, 3), Retry(0, None)]
    assert desk.leases[0].checkpoint is None
    desk.save(0, 3)
    assert desk.study.quarantined == {(0, 6)}, "it is there again"


def test_word_of_damage_counts_once_and_only_from_who_holds_a_slot() -> None:
    desk = Desk(Scripted(Start(0, 9), forks=False), trials=1)
    desk.save(0, 3)
    desk.fail(0, Failure.LOST)
    stale = Damaged(desk.tick(), 0, 1, 0, 3, "flipped")
    assert desk.tell(stale) == []
    assert 3 in desk.study.ledger[0].checkpoints


def test_a_trial_that_is_over_forgets_it_too() -> None:
    desk = Desk(Scripted(Start(0, 9), Start(1, 9), forks=False, judge=lambda seen: []), slots=2, trials=2)
    desk.save(0, 3)
    desk.fail(0, Failure.LOST)
    desk.study._stop(Stop(0, Why.NO_PROMISE))
    commands = damage(desk, 0)
    assert of(Quarantine, commands) == [Quarantine(0, 3)]
    assert not runs(commands)
    assert desk.state(0) is State.STOPPED


def forked(*forks: Fork, saves: tuple[int, ...] = (1, 3)) -> Desk:
    """Trial 0 stands at its rung, 3; forks of it begin there."""
    desk = Desk(Scripted(Start(0, 3), *forks), trials=1, max_failures=1)
    for step in saves:
        desk.save(0, step)
    desk.end(0)
    desk.slots(1 + len(forks))
    return desk


def test_all_forks_of_a_damaged_checkpoint_fall_back() -> None:
    desk = forked(Fork(1, 0, {}, 9), Fork(2, 0, {}, 9), Fork(3, 0, {}, 9))
    assert [desk.leases[fork].checkpoint for fork in (1, 2, 3)] == [3, 3, 3]
    desk.save(2, 5)
    commands = damage(desk, 1)
    assert of(Quarantine, commands) == [Quarantine(0, 3)]
    assert (desk.leases[1].donor, desk.leases[1].checkpoint, desk.leases[1].origin) == (0, 1, 1)
    assert desk.study.ledger[3].donor == (0, 1), "it runs, and began there; but it would not again"
    assert desk.study.ledger[2].donor is None
    assert desk.study._held == {(0, 1): 3}, "two forks, and whoever may be forked from trial 0 at its rung"
    desk.fail(3)
    assert desk.leases[3].checkpoint == 1


def test_a_fork_without_any_is_over() -> None:
    desk = forked(Fork(1, 0, {}, 9, replaces=0), Fork(2, 0, {}, 9), Fork(3, 0, {}, 9), saves=(3,))
    desk.save(3, 5)
    commands = damage(desk, 1)
    assert overs(commands) == [(1, Why.NO_SOURCE)]
    assert desk.scheduler.seen[-1].ended
    assert desk.scheduler.seen[-1].failure is not None, "else it would be taken for one that never began"
    commands = desk.fail(2)
    assert overs(commands) == [(2, Why.NO_SOURCE)], "it must not begin at 0: it would be another training run"


def test_a_fork_that_lost_its_own_goes_back_to_its_donors() -> None:
    desk = forked(Fork(1, 0, {}, 9))
    desk.save(1, 6)
    desk.fail(1)
    assert desk.leases[1].checkpoint == 6
    damage(desk, 1)
    assert (desk.leases[1].donor, desk.leases[1].checkpoint) == (0, 3)


# ---------------------------------------------------------------------------------------------- while drivers die


class Cursed(Case):
    """Every fifth checkpoint is damaged when somebody reads it."""

    def workload(self) -> Workload:
        return replace(super().workload(), damaged=lambda trial, step: (trial * 3 + step) % 5 == 0)


@pytest.mark.parametrize(
    "scheduler",
    [AsyncHyperBandScheduler(max_t=9, promotion=True), HyperBandScheduler(max_t=9), population()],
    ids=["asha promotion", "hyperband", "pbt"],
)
def test_damage_replays(scheduler: Any, fast_path: Path, fate: Fate) -> None:
    """Each driver's record, damage and all, is replayed by the next to the same decisions; every study ends."""
    deaths = found = 0
    for number in range(6):
        root = fast_path / str(number)
        _, checks = live_through(Cursed(RandomSearch(), scheduler, SPACE), root, fate, gap=80, power=number % 2 == 0)
        deaths += checks.deaths
        found += sum(isinstance(row, Damaged) for row in read(root).rows)
    assert deaths >= 30
    assert found >= 10


def test_with_one_slot_damage_changes_no_decision(fast_path: Path, fate: Fate) -> None:
    """It costs steps that are made once more."""
    scheduler = AsyncHyperBandScheduler(max_t=9, promotion=True)
    expected, _ = live_through(Case(RandomSearch(), scheduler, SPACE, slots=1), fast_path / "sound", fate, gap=None)
    found, checks = live_through(Cursed(RandomSearch(), scheduler, SPACE, slots=1), fast_path / "study", fate, gap=100)
    assert found == expected
    assert checks.deaths
    assert any(isinstance(row, Damaged) for row in read(fast_path / "study").rows)
