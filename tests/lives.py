"""A study that dies and comes back: the real study, driver, journal, searcher and scheduler in the simulator.

`Fate` lets a driver die at a chosen number of *moments* from now. Each write, fsync, truncation and new file of the
journal is a moment, each lease given out, each trial unwound and each checkpoint deleted. A write that is died in may
leave any part of itself; so may, in a power failure, whatever was not yet fsynced.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from raytuner.actions import Fork, Proposal, Resume, Start
from raytuner.checkpoints import CheckpointConfig
from raytuner.driver import Driver
from raytuner.events import Damaged, Ended, Event, Extended, Failed, Over, Proposed
from raytuner.executors.simulate import Simulation, Workload, World
from raytuner.objective import Objective
from raytuner.protocols import SchedulingPolicy, SearchAlgorithm
from raytuner.record import segments
from raytuner.record.durable import sync_folder
from raytuner.record.journal import Journal, Row, extensions, read
from raytuner.retry import Remedies, Retries
from raytuner.space import Space, choice, grid_search, loguniform, randint, uniform
from raytuner.study import Study
from raytuner.trial import Failure, Lease, Reports, Trial

SPACE = {
    "lr": loguniform(1e-4, 1.0),
    "width": randint(4, 64),
    "optimizer": choice([{"name": "sgd", "momentum": uniform(0.0, 0.99)}, {"name": "adam"}]),
}
GRID = {**SPACE, "depth": grid_search([1, 2, 3])}


class Died(BaseException):
    """The driver is dead. No handler of ours may swallow it."""


@dataclass
class Fate:
    """When the driver dies: at the ``moments``-th moment from now (None: never)."""

    rng: random.Random
    moments: int | None = None
    synced: dict[Path, int] = field(default_factory=dict)

    def passes(self) -> bool:
        """Whether the driver lives through this moment."""
        if self.moments is None:
            return True
        self.moments -= 1
        return self.moments > 0

    def moment(self) -> None:
        if not self.passes():
            raise Died

    def power_fails(self) -> None:
        """What was not fsynced may be gone, from any byte on."""
        self.synced = {path: synced for path, synced in self.synced.items() if path.exists()}  # else it was cut off
        for path, synced in list(self.synced.items()):
            size = path.stat().st_size
            if size > synced:
                os.truncate(path, self.rng.randint(synced, size))
                self.synced[path] = path.stat().st_size  # what is left is on the disk


@pytest.fixture
def fate(monkeypatch: pytest.MonkeyPatch) -> Fate:
    """Every write of the journal may be the driver's last."""
    fate = Fate(random.Random(0))
    write, truncate = segments._write, segments.truncate

    def mortal_write(file: int, data: bytes) -> None:
        if not fate.passes():
            write(file, data[: fate.rng.randint(0, len(data))])
            raise Died
        write(file, data)

    def mortal_sync(writer: segments.SegmentWriter) -> None:
        fate.moment()
        fate.synced[writer.path] = writer.path.stat().st_size

    def mortal_folder(path: Path) -> None:
        fate.moment()
        sync_folder(path)

    def mortal_truncate(path: Path, size: int) -> None:
        fate.moment()
        truncate(path, size)
        fate.synced[path] = size

    def mortal_file(path: Path) -> None:
        fate.moment()
        fate.synced[path] = path.stat().st_size

    monkeypatch.setattr(segments, "_write", mortal_write)
    monkeypatch.setattr("raytuner.record.journal.sync_file", mortal_file)
    monkeypatch.setattr(segments.SegmentWriter, "sync", mortal_sync)
    monkeypatch.setattr("raytuner.record.journal.sync_folder", mortal_folder)
    monkeypatch.setattr("raytuner.record.journal.truncate", mortal_truncate)
    return fate


@dataclass(frozen=True)
class Case:
    """A study to live through: everything is a function of ``seed``."""

    searcher: SearchAlgorithm
    scheduler: SchedulingPolicy
    space: Mapping[str, Any]
    trials: int = 24
    slots: int = 5
    seed: int = 7
    checkpoint_config: CheckpointConfig = field(default_factory=lambda: CheckpointConfig(num_to_keep=2))
    remedies: Remedies | None = None
    extension: Extended | None = None  # recorded by the first driver that finds none
    extended_space: Mapping[str, Any] | None = None
    widest_space: Mapping[str, Any] | None = None  # which holds what is proposed before and after

    def study(self) -> Study:
        return Study(
            Objective("loss", "min"),
            self.scheduler.build(self.seed),
            self.trials,
            Retries(max_failures=1),
            self.checkpoint_config,
        )

    def workload(self) -> Workload:
        space = Space(self.widest_space or self.space)

        def curve(trial: Trial, step: int) -> dict[str, Any]:
            chance = random.Random(f"{self.seed} {trial.id} {step}")
            if chance.random() < 0.004:
                return {"loss": float("nan")}
            x, _ = space.encode(trial.config)
            final = float(((x - 0.3) ** 2).sum())
            return {
                "loss": final + 2.0 * (1 + trial.id % 3) / step + 0.05 * chance.gauss(0, 1),
                "noise": chance.random(),
            }

        def fault(trial: Trial, step: int, tries: int) -> Failure | None:
            chance = random.Random(f"fault {self.seed} {trial.id} {step} {tries}").random()
            if chance < 0.024:
                return Failure.ERROR if chance < 0.008 else Failure.LOST if chance < 0.016 else Failure.NODE
            return None

        return Workload(
            curve=curve,
            # Few different durations, so that several trials often speak at the same instant.
            seconds=lambda trial, step: 0.5 + (trial.id * 7 + step) % 4 / 2,
            length=14,
            saves=lambda trial, step: (trial.id + step) % 5 == 0,
            fault=fault,
        )


class Life:
    """One driver's life, from opening the journal to the study's end or the driver's death."""

    def __init__(self, case: Case, root: Path, world: World, fate: Fate, record: Checks) -> None:
        self._fate = fate
        self._checks = record
        self.journal = Journal(root)
        if world.away:
            world.undo_losses({(row.trial, row.attempt) for row in read(root).rows if isinstance(row, Failed)})
        simulation = Simulation(world, case.workload(), case.slots)
        self._simulation = simulation
        self._world = world
        self.study = case.study()
        record.resumed()
        searcher = case.searcher.build(Space(case.extended_space or case.space), case.seed)
        pending = None if extensions(root) else case.extension
        self._driver = Driver(self.study, searcher, self, self, simulation, remedies=case.remedies, extension=pending)

    def run_to_end(self) -> None:
        self._driver.run(self)

    # What the driver needs of a journal, a shelf and an executor: the real ones, each call a moment to die at.

    def rows(self) -> Iterable[Row]:
        return self.journal.rows()

    def last_steps(self) -> dict[int, int]:
        return self.journal.last_steps()

    def commit(self, rows: Sequence[Row], reports: Sequence[Reports]) -> None:
        self.journal.commit(rows, reports)
        self._checks.acknowledged(rows, reports)

    def delete(self, trial: int, step: int) -> None:
        self._fate.moment()
        self._world.delete(trial, step)

    def sweep(self, referenced: set[tuple[int, int]]) -> object:
        missing = referenced - self._world.checkpoints
        assert not missing, f"referenced, but not there: {missing}"
        return self._world.sweep(referenced)

    def sweep_trial(self, trial: int, referenced: set[int]) -> object:
        return self._world.sweep_trial(trial, referenced)

    def quarantine(self, trial: int, step: int) -> str | None:
        self._fate.moment()
        return self._world.quarantine(trial, step)

    def run(self, lease: Lease) -> None:
        self._fate.moment()
        self._checks.leased(lease, self.study)
        self._simulation.run(lease)

    def unwind(self, trial: int, attempt: int) -> None:
        self._fate.moment()
        self._simulation.unwind(trial, attempt)

    def wait(self, timeout_s: float | None) -> Sequence[Event]:
        return self._simulation.wait(timeout_s)

    def close(self) -> None:
        self._simulation.close()


@dataclass
class Checks:
    """What must hold over all lives of a study."""

    deaths: int = 0
    leases: int = 0
    _said: list[Reports] = field(default_factory=list)
    _ended: set[tuple[int, int, int]] = field(default_factory=set)  # (trial, until, tries) of leases that are over
    _running: dict[int, Lease] = field(default_factory=dict)
    _given: set[tuple[int, int, int]] = field(default_factory=set)  # in this life

    def resumed(self) -> None:
        self._given.clear()

    def leased(self, lease: Lease, study: Study) -> None:
        """No finished trial runs again, no lease runs again that is over, none twice in one life."""
        self.leases += 1
        assert not study.ledger[lease.trial.id].state.over
        key = lease.trial.id, lease.until, lease.tries
        assert key not in self._ended, f"{lease} is over, and runs again"
        assert key not in self._given, f"{lease} was given out twice"
        self._given.add(key)
        self._running[lease.trial.id] = lease

    def acknowledged(self, rows: Sequence[Row], reports: Sequence[Reports]) -> None:
        self._said += reports
        for row in rows:
            if isinstance(row, Ended | Failed):
                lease = self._running[row.trial]
                self._ended.add((row.trial, lease.until, lease.tries))
            if isinstance(row, Damaged):  # it runs again, and nobody pays for it
                lease = self._running[row.trial]
                self._given.discard((row.trial, lease.until, lease.tries))

    def at_the_end(self, root: Path, world: World) -> None:
        table = read(root).reports
        written = list(zip(table["trial"].to_pylist(), table["step"].to_pylist(), strict=True))
        assert len(written) == len(set(written)), "a step counts twice"
        reported = table["loss"].to_pylist() if written else []  # what was written may not have been acknowledged
        losses = dict(zip(written, reported, strict=True))
        for said in self._said:
            for report in said:
                assert (said.trial, report.step) in losses, (
                    f"{report} of trial {said.trial} was acknowledged, is missing"
                )
                was, now = report.metrics["loss"], losses[said.trial, report.step]
                assert was == now or (was != was and now != now)


def live_through(
    case: Case, root: Path, fate: Fate, gap: int | None, power: bool = False, world: World | None = None
) -> tuple[list[Any], Checks]:
    """Run a study to its end, dying on the way every 1 to ``gap`` moments (None: never); its decisions."""
    world, checks = world or World(), Checks()
    while True:
        fate.moments = fate.rng.randint(1, gap) if gap else None
        life = None
        try:
            life = Life(case, root, world, fate, checks)
            life.run_to_end()
        except Died:
            checks.deaths += 1
            gap = gap + 1 if gap else None  # so that a study that must first replay its life gets on with it
            if life is not None:
                life.journal.close()
            if power and fate.rng.random() < 0.5:  # else it may fail later, when others have built on what was left
                fate.power_fails()
            continue
        life.journal.close()
        checks.at_the_end(root, world)
        return decisions(read(root).rows), checks


def decisions(rows: Iterable[Row]) -> list[Any]:
    """What was decided, in order, without when and in which driver's life."""
    found: list[Any] = []
    for row in rows:
        match row:
            case Start() | Resume() | Fork() | Over():
                found.append(row)
            case Proposed(answer=Proposal()):
                found.append(replace(row, at=0.0))
            case _:
                pass
    return found
