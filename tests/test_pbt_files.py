"""Population Based Training on real files, one checkpoint kept of each trial, while everything dies.

The real study, driver, journal, store, janitor and sessions; trials run in processes (`tests.pbt_driver`) that are
killed at any moment, also in the middle of a system call; the driver dies at any write of its journal; checkpoints are
deleted late and in any order, and what a dead process left may be removed by others meanwhile. No trial may ever miss
the checkpoint that it begins from, or find another in its place.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Listener, wait
from pathlib import Path
from typing import Any

import pytest

import raytuner as tune
from raytuner.actions import Fork, Proposal, Start
from raytuner.checkpoints import TEMPORARY, CheckpointConfig, Janitor, Store
from raytuner.driver import Driver
from raytuner.events import Checkpointed, Ended, Event, Failed, Loaded, Over, Proposed, Reported, Slots
from raytuner.objective import Objective
from raytuner.record.folder import Folder
from raytuner.record.journal import Journal, read
from raytuner.results import ResultGrid
from raytuner.retry import Retries
from raytuner.schedulers import PopulationBasedTraining
from raytuner.searchers import RandomSearch
from raytuner.space import Space, uniform
from raytuner.study import Study
from raytuner.trial import Failure, Lease, Reports, Why
from tests.lives import Died, Fate, fate
from tests.pbt_driver import Entry, Model, Weights, chain, train

__all__ = ["fate"]  # a fixture

HERE = Path(__file__).parent
LR = {"lr": uniform(0.1, 1.0)}


# -------------------------------------------------------------------------------------------------------- the record


@dataclass
class Story:
    """What the record of a population says, and whether it is true."""

    forks: int = 0  # that began
    loads: int = 0
    losses: int = 0
    trials: int = 0
    begun: dict[int, tuple[int, int]] = field(default_factory=dict)  # forks: trial and step that they go on from


def check(root: Path, members: int) -> Story:
    """Whoever began from a checkpoint began from the one that was recorded; all weights went through what they should
    have gone through; nobody failed but by being lost; no configuration is out of bounds."""
    record, story = read(root), Story()
    published: dict[tuple[int, int], str] = {}
    configs: dict[int, Mapping[str, Any]] = {}
    starts = 0
    for row in record.rows:
        match row:
            case Start():
                starts += 1
            case Proposed(trial=trial, answer=Proposal(config=config)) | Fork(trial=trial, config=config):
                configs[trial] = config
            case Checkpointed(trial=trial, step=step, digest=digest):
                assert published.setdefault((trial, step), digest) == digest, "two checkpoints of one step"
            case Loaded(trial=trial, source=source, step=step, digest=digest):
                story.loads += 1
                assert published[source, step] == digest
                if source != trial:
                    assert story.begun.setdefault(trial, (source, step)) == (source, step), "it goes on from two"
            case Failed(failure=failure, message=message):
                story.losses += 1
                assert failure is Failure.LOST, message
            case Over(why=why):
                assert why in (Why.REPLACED, Why.STOP_RULE, Why.NO_SOURCE, Why.RETURNED), row
            case _:
                pass
    story.forks, story.trials = len(story.begun), len(configs)
    assert starts == members
    for config in configs.values():
        assert Space(LR).contains(config)
    chains: dict[tuple[int, int], str] = {}
    columns = (record.reports[name].to_pylist() for name in ("trial", "step", "chain"))
    for trial, step, said in sorted(zip(*columns, strict=True)):
        source, since = story.begun.get(trial, (trial, 0))
        before = chains[source if step == since + 1 else trial, step - 1] if step > 1 else ""
        chains[trial, step] = chain(before, (trial, step, configs[trial]["lr"]))
        assert said == chains[trial, step], f"trial {trial} has other weights at step {step} than it should"
    return story


def listed(store: Store) -> set[tuple[int, int]]:
    """The checkpoints on the disk; there may be nothing else."""
    found = {(int(path.parent.name), int(path.name)) for path in Path(store.root).glob("*/[!.]*")}
    assert not [path for path in Path(store.root).rglob("*") if path.name.startswith(TEMPORARY)]
    return found


# ---------------------------------------------------------------------------------------------------- the processes


class Nursery:
    """Makes processes that run trials."""

    def __init__(self, folder: Path) -> None:
        self._listener = Listener(str(folder / "nursery"), "AF_UNIX")
        (folder / "temporary").mkdir()
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "pbt_driver.py"), str(folder / "nursery")],
            stdin=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(HERE.parent), "TMPDIR": str(folder / "temporary")},
        )

    def hire(self, *arguments: Any) -> tuple[Connection, int]:
        """A connection to a new one, which has these arguments of `tests.pbt_driver.work`, and its number."""
        assert self._process.stdin is not None
        self._process.stdin.write("\t".join(map(str, arguments)) + "\n")
        self._process.stdin.flush()
        connection = self._listener.accept()
        return connection, connection.recv()

    def close(self) -> None:
        with self._process as process:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(30)
        self._listener.close()


@pytest.fixture
def nursery(fast_path: Path) -> Iterator[Nursery]:
    made = Nursery(fast_path)
    yield made
    made.close()


@dataclass(eq=False)
class Worker:
    boss: Connection
    pid: int
    lease: Lease | None = None
    parked: int | None = None


class Workers:
    """An executor: leases in processes that are killed now and then, and replaced."""

    def __init__(self, case: Case, nursery: Nursery, store: Store, chance: random.Random) -> None:
        self.deaths = 0
        self.torn = 0  # of those that died, how many left part of a checkpoint
        self._case = case
        self._nursery = nursery
        self._store = store
        self._chance = chance
        self._waiting: deque[Lease] = deque()
        self._events: list[Event] = []
        self._workers = [self._hire() for _ in range(case.slots)]
        self._say_slots()

    def run(self, lease: Lease) -> None:
        if lease.checkpoint is not None:
            assert os.path.isdir(self._store.path(lease.donor, lease.checkpoint)), f"nothing to begin {lease} from"
            assert lease.digest
        self._waiting.append(lease)

    def unwind(self, trial: int, attempt: int) -> None:
        for worker in self._workers:
            runs = worker.lease is not None and (worker.lease.trial.id, worker.lease.attempt) == (trial, attempt)
            if runs or worker.parked == trial:
                with suppress(OSError):
                    worker.boss.send(("unwind", trial, attempt, not runs))
                worker.parked = None

    def wait(self, timeout_s: float | None) -> Sequence[Event]:
        self._give_out()
        if self._chance.random() < self._case.odds:
            doomed = self._chance.choice(self._workers)
            threading.Timer(self._chance.uniform(0.0, 0.02), kill, [doomed.pid]).start()
        ready = wait([worker.boss for worker in self._workers], 0 if self._events else 30)
        assert ready or self._events, "nobody says anything any more"
        for worker in [worker for worker in self._workers if worker.boss in ready]:
            self._hear(worker)
        events, self._events = self._events, []
        return events

    def close(self, at_once: bool = False) -> None:
        for worker in self._workers:
            kill(worker.pid)
        for worker in self._workers:
            with suppress(EOFError, OSError):
                while True:
                    worker.boss.recv()  # until it is gone
            worker.boss.close()
        self._workers.clear()

    def _hire(self) -> Worker:
        seed, odds = self._chance.getrandbits(32), self._case.odds / 20
        return Worker(*self._nursery.hire(self._store.root, self._case.steps, seed, odds))

    def _give_out(self) -> None:
        free = [worker for worker in self._workers if worker.lease is None]
        while free and self._waiting:
            lease = self._waiting.popleft()
            worker = min(free, key=lambda each: (each.parked != lease.trial.id, each.parked is not None))
            free.remove(worker)
            worker.lease, worker.parked = lease, None
            with suppress(OSError):  # it is dead, and will be heard of
                worker.boss.send(("take", lease))

    def _hear(self, worker: Worker) -> None:
        try:
            said = worker.boss.recv()
        except (EOFError, OSError):
            self._bury(worker)
            return
        for item in said:
            if isinstance(item, Reports):
                self._events.append(Reported(item.at[-1], item.trial, item.attempt, item))
                continue
            self._events.append(item)
            if isinstance(item, Ended | Failed):
                worker.lease = None
                worker.parked = item.trial if isinstance(item, Ended) and item.how.parks else None

    def _bury(self, worker: Worker) -> None:
        self.deaths += 1
        worker.boss.close()
        self._workers.remove(worker)
        self._say_slots()
        if worker.lease is not None:
            trial, attempt = worker.lease.trial.id, worker.lease.attempt
            self.torn += bool(temporaries(self._store, trial))
            if self._chance.random() < 0.5:
                threading.Thread(target=tidy, args=[self._store, trial]).start()
            self._events.append(Failed(time.time(), trial, attempt, Failure.LOST, "it was killed"))
        self._workers.append(self._hire())
        self._say_slots()

    def _say_slots(self) -> None:
        self._events.append(Slots(time.time(), len(self._workers)))


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def tidy(store: Store, trial: int) -> None:
    """Somebody else removes what a dead process left behind, while the driver does."""
    for path in temporaries(store, trial):
        shutil.rmtree(path, ignore_errors=True)


def temporaries(store: Store, trial: int) -> list[Path]:
    return list(Path(store.path(trial, 0)).parent.glob(f"{TEMPORARY}*"))


class LateJanitor(Janitor):
    """Deletes at once, or late and not in the order in which it is told to: then it dies in the middle, as its driver
    does."""

    def __init__(self, store: Store, chance: random.Random) -> None:
        super().__init__(store)
        self._chance = chance
        self._prompt = chance.random() < 0.5
        self._later: list[tuple[int, int]] = []
        self._dead = False

    def delete(self, trial: int, step: int) -> None:
        self._later.append((trial, step))
        if self._prompt or self._chance.random() < 0.2:
            self._flush()

    def close(self) -> None:
        self._flush()
        super().close()

    def die(self) -> None:
        self._dead = not self._prompt
        self._thread.shutdown(cancel_futures=self._dead)

    def _flush(self) -> None:
        self._chance.shuffle(self._later)
        for trial, step in self._later:
            super().delete(trial, step)
        self._later.clear()

    def _remove(self, folder: str, paths: Sequence[str]) -> None:
        if not self._prompt:
            time.sleep(0.002 * len(paths))
        if self._dead:
            for path in paths:
                for file in [each for each in Path(path).rglob("*") if each.is_file()][:1]:
                    file.unlink()
            return
        super()._remove(folder, paths)


# ---------------------------------------------------------------------------------------------------------- the lives


@dataclass(frozen=True)
class Case:
    """A population to live through. ``odds``: how likely somebody is killed at a turn of the loop; ``gap``: moments
    that a driver lives at most (see `tests.lives.Fate`)."""

    scheduler: PopulationBasedTraining
    steps: int
    members: int = 8
    slots: int = 3
    odds: float = 0.01
    gap: int = 3000

    def study(self) -> Study:
        return Study(
            Objective("score", "max"),
            self.scheduler.build(0),
            self.members,
            Retries(max_losses=1000),
            CheckpointConfig(num_to_keep=1),
        )


class Clock:
    def now(self) -> float:
        return time.time()


@dataclass
class Deaths:
    drivers: int = 0
    workers: int = 0
    torn: int = 0


def live(case: Case, root: Path, nursery: Nursery, fate: Fate, chance: random.Random, deaths: Deaths) -> Study | None:
    """One driver's life; None if it does not reach the end."""
    store = Store(Folder(root).checkpoints)
    janitor, study = LateJanitor(store, chance), case.study()
    with ExitStack() as until_its_end:
        try:
            journal = Journal(root)
            until_its_end.callback(journal.close)
            driver = Driver(study, RandomSearch().build(Space(LR), 0), journal, janitor, Clock())
            for trial, entry in study.ledger.items():
                for step in entry.checkpoints:
                    assert store.verify(trial, step) == entry.digests[step], "it is referenced"
            workers = Workers(case, nursery, store, chance)
            until_its_end.callback(workers.close)
            try:
                driver.run(workers)
            finally:
                deaths.workers += workers.deaths
                deaths.torn += workers.torn
        except Died:
            deaths.drivers += 1
            janitor.die()
            time.sleep(chance.uniform(0.0, 0.02))  # the others do not know yet
            return None
        janitor.close()
    return study


def play(case: Case, root: Path, nursery: Nursery, fate: Fate, seed: int = 0) -> Story:
    """Run a population to its end, whoever dies on the way, and see that all is as it should be."""
    Folder(root).create({"metric": "score", "mode": "max"})
    chance, deaths, gap = random.Random(seed), Deaths(), case.gap
    fate.rng.seed(seed)
    fate.moments = chance.randint(1, gap)
    while (study := live(case, root, nursery, fate, chance, deaths)) is None:
        gap += case.gap // 10  # each has more to replay than the one before
        fate.moments = chance.randint(1, gap)
        if chance.random() < 0.5:
            fate.power_fails()
    story = check(root, case.members)
    kept = {(trial, step) for trial, steps in study.checkpoints.items() for step in steps}
    assert listed(Store(Folder(root).checkpoints)) == kept
    check_members(ResultGrid(root), case)
    print(
        f"{story.forks} exploits by {case.members} members, {story.trials} trials, {story.loads} checkpoints loaded; "
        f"killed: {deaths.workers} workers, of which {deaths.torn} left half a checkpoint, {deaths.drivers} drivers"
    )
    assert deaths.workers
    assert deaths.drivers
    return story


def check_members(results: ResultGrid, case: Case) -> None:
    """Each member's weights are there, and went through what the tables say."""
    assert len(results) == case.members
    for result in results:
        assert result.checkpoint is not None
        weights = Weights()
        weights.load(result.checkpoint.path)
        assert [step for _, step, _ in weights.lineage] == list(range(1, case.steps + 1))
        schedule = [(step - 1, {"lr": lr}) for _, step, lr in first_of_each_trial(weights.lineage)]
        assert [(since, dict(config)) for since, config in result.schedule] == schedule


def first_of_each_trial(lineage: Sequence[Entry]) -> list[Entry]:
    return [entry for place, entry in enumerate(lineage) if place == 0 or lineage[place - 1][0] != entry[0]]


def population(**settings: Any) -> PopulationBasedTraining:
    given = {"perturbation_interval": 2, "quantile_fraction": 0.5, **settings}
    return PopulationBasedTraining(time_attr="training_iteration", hyperparam_mutations=LR, **given)


@pytest.mark.parametrize("synch", [False, True], ids=["", "synchronous"])
def test_a_hundred_exploits_while_everything_dies(synch: bool, fast_path: Path, nursery: Nursery, fate: Fate) -> None:
    """Fifty in each of two populations."""
    case = Case(population(synch=synch), steps=42 - 8 * synch, odds=0.05, gap=300)
    assert play(case, fast_path / "study", nursery, fate).forks >= 50


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_a_thousand_exploits_while_everything_dies(tmp_path: Path, nursery: Nursery, fate: Fate) -> None:
    case = Case(population(), steps=500, slots=5, odds=0.015, gap=500)
    assert play(case, tmp_path / "study", nursery, fate).forks >= 1000


def test_what_others_remove_meanwhile_stops_no_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "checkpoints")
    halves = [Path(store.root, "000003", f"{TEMPORARY}{number}") for number in range(2)]
    for half in halves:
        half.mkdir(parents=True)
        (half / "weights").write_text("half")
    rmdir = os.rmdir

    def late(path: str, **kwargs: Any) -> None:
        rmdir(path, **kwargs)
        rmdir(path, **kwargs)

    monkeypatch.setattr(os, "rmdir", late)
    assert store.sweep_trial(3, []) == [str(half) for half in halves]
    assert not any(half.exists() for half in halves)


# ---------------------------------------------------------------------------------------------------------- on Ray


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("trainable", [train, Model], ids=["function", "class"])
def test_on_ray_members_go_on_in_warm_processes_when_one_is_killed(trainable: Any, tmp_path: Path) -> None:
    case = Case(population(), steps=16, members=4)
    results = tune.Tuner(
        tune.with_parameters(trainable, killed=tmp_path / "killed"),
        param_space=LR,
        tune_config=tune.TuneConfig(
            metric="score",
            mode="max",
            num_samples=case.members,
            scheduler=case.scheduler,
            max_concurrent_trials=2,
            seed=0,
        ),
        run_config=tune.RunConfig(
            name="study",
            storage_path=tmp_path,
            stop={"training_iteration": case.steps},
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            verbose=0,
        ),
    ).fit()
    story = check(tmp_path / "study", case.members)
    check_members(results, case)
    listed(Store(tmp_path / "study" / "checkpoints"))
    assert (tmp_path / "killed").exists()
    assert story.losses <= 1, "none if its lease had said nothing"
    assert story.forks >= 4
    reports = results.to_arrow("reports")
    columns = (reports[name].to_pylist() for name in ("said_at", "trial", "step", "pid_seen"))
    firsts: dict[int, tuple[int, int]] = {}  # of each trial: its first step, and where it was made
    warm: list[int] = []  # processes, in the order in which they came
    for _, trial, step, pid in sorted(zip(*columns, strict=True)):
        if trial not in firsts:
            firsts[trial] = step, warm.index(pid) if pid in warm else -1
        if pid not in warm:
            warm.append(pid)
    assert 2 <= len(warm) <= 3, "two, and one in the place of that which was killed, if it came up in time"
    for trial, (_, since) in story.begun.items():
        assert firsts[trial][0] == since + 1
    assert sum(place < 0 for trial, (_, place) in firsts.items() if trial in story.begun) <= 1, "in the new process"
