"""Writes the golden studies of this version's format: ``python -m tests.golden.make``. Run once per format, ever.

The files are made by the real driver, journal and checkpoint store, on simulated trials: a Hyperband sweep (``study``)
in which one trial fails, another loses its worker and goes on, checkpoints are dropped, a metric appears late, and
whose driver dies half-way and is followed by another; the same of a population (from format 2 on), whose trials are
forked from each other. Beside them lies a journal with one row of every kind (``rows``).

Refuses to touch a folder that is there: a new format adds a folder, and the old ones are read for ever.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import raytuner as tune
from raytuner.actions import Exhausted, Fork, Proposal, Resume, Start, Wait
from raytuner.checkpoints import CheckpointConfig, Store
from raytuner.driver import Driver
from raytuner.events import (
    Checkpointed,
    Damaged,
    Drop,
    Ended,
    Event,
    Extended,
    Failed,
    Finish,
    How,
    Loaded,
    Opened,
    Over,
    Proposed,
    Quarantine,
    Reported,
    Retry,
    Slots,
    StopAsked,
    Ticked,
)
from raytuner.executors.simulate import Simulation, Workload, World
from raytuner.record.folder import FORMAT, Folder
from raytuner.record.journal import Journal, Row
from raytuner.schedulers import HyperBandScheduler, PopulationBasedTraining
from raytuner.trial import END, Failure, Lease, Report, Slot, State, Trial, Why
from tests.test_golden import GOLDEN, publish, seen

SPACE = {
    "lr": tune.loguniform(1e-4, 1e-1),
    "model": {"width": tune.randint(8, 64), "shape": tune.choice([(1, 2), (3, 4)])},
    "optimizer": tune.choice([{"name": "sgd", "momentum": tune.uniform(0.0, 0.99)}, {"name": "adam"}]),
    "dataset": "naïve 学",
}
SEED = 7


class Interrupted(Exception):
    """The first driver's death."""


class Mortal(Simulation):
    """Its driver dies at the first ``wait`` after so many seconds. What trials save and begin from is in a store."""

    def __init__(self, world: World, workload: Workload, store: Store, dies_at: float) -> None:
        super().__init__(world, workload, 3)
        self._store = store
        self._dies_at = dies_at

    def run(self, lease: Lease) -> None:
        if lease.checkpoint is not None:
            assert self._store.verify(lease.donor, lease.checkpoint) == lease.digest
        super().run(replace(lease, digest=""))

    def wait(self, timeout_s: float | None) -> Sequence[Event]:
        if self.now() >= self._dies_at:
            raise Interrupted
        return [self._as_stored(event) for event in super().wait(timeout_s)]

    def _as_stored(self, event: Event) -> Event:
        if isinstance(event, Loaded):
            return replace(event, digest=self._store.verify(event.source, event.step))
        if isinstance(event, Reported):
            return replace(event, reports=[self._published(event.trial, report) for report in event.reports])
        return event

    def _published(self, trial: int, report: Report) -> Report:
        if not report.checkpoint:
            return report
        digest = publish(self._store, trial, report.step)
        return replace(report, checkpoint=digest, nbytes=self._store.nbytes(trial, report.step))


def train(config: dict[str, Any]) -> None:
    """Never run: the trials are simulated."""


def curve(trial: Trial, step: int) -> dict[str, Any]:
    return {
        "loss": trial.config["lr"] + (trial.id % 3 + 1) / step,
        "epoch": step,
        "better": step % 2 == 0,
        "note": f"trial {trial.id}, naïve",
        "ratio": math.inf if step == 1 else step if step == 2 else step / 2,
    } | ({"val/accuracy": 1 - 1 / step} if step >= 3 else {})


def fault(trial: Trial, step: int, tries: int) -> Failure | None:
    return {(1, 1, 0): Failure.ERROR, (3, 2, 0): Failure.LOST}.get((trial.id, step, tries))


def sweep(root: Path) -> tune.Tuner:
    return tune.Tuner(
        train,
        param_space=SPACE,
        tune_config=tune.TuneConfig(
            metric="loss", mode="min", num_samples=9, scheduler=HyperBandScheduler(max_t=9), seed=SEED
        ),
        run_config=settings(root),
    )


def population(root: Path) -> tune.Tuner:
    mutations = {"lr": tune.loguniform(1e-4, 1e-1), "batch": [16, 32, 64]}
    policy = PopulationBasedTraining(
        time_attr="training_iteration", perturbation_interval=2, hyperparam_mutations=mutations, quantile_fraction=0.5
    )
    return tune.Tuner(
        train,
        param_space=SPACE,
        tune_config=tune.TuneConfig(metric="loss", mode="min", num_samples=4, scheduler=policy, seed=SEED),
        run_config=settings(root),
    )


def settings(root: Path) -> tune.RunConfig:
    return tune.RunConfig(name=root.name, storage_path=root.parent, checkpoint_config=CheckpointConfig(num_to_keep=1))


def make_study(root: Path, tuner: tune.Tuner) -> None:
    Folder(root).create({**tuner._describe(), "seed": SEED})
    workload = Workload(
        curve,
        seconds=lambda trial, step: 1.0 + trial.id / 8,
        length=9,
        fault=fault,
        saves=lambda trial, step: True,
    )
    world = World(now=1_700_000_000.0)
    store = Store(root / "checkpoints")
    for dies_at in (world.now + 8, math.inf):
        executor = Mortal(world, workload, store, dies_at)
        searcher = tuner._searcher.build(tuner._space, SEED)
        journal = Journal(root)
        try:
            Driver(tuner._study(SEED), searcher, journal, world, executor).run(executor)
        except Interrupted:
            pass
        finally:
            journal.close()
    store.sweep(world.checkpoints)


def make_rows(root: Path) -> None:
    """One row of every kind, with values that are hard to keep."""
    config = {
        "lr": 0.1,
        "shape": (1, (2, [3])),
        "none": None,
        "nan": math.nan,
        "inf": -math.inf,
        "big": 2**70,
        "$tuple": [1],
        "学": {"$float": "no"},
    }
    report = Report(3, 2.5, {"loss": math.nan, "flag": True}, 8.0, checkpoint="e3b0c442" * 8, nbytes=2**40)
    rows: list[Row] = [
        Opened(1.0, 1),
        Slots(2.0, 4),
        Slots(2.0, 4, (Slot(16.0, 8.0, 120.5, {"tpu": 0.5}), Slot(4.0))),
        Start(0, 9),
        Start(1, 9, config),
        Start(2, 9, {}),
        Proposed(3.0, 0, Proposal(config, {"from": "prior", "scale": [0.1, math.inf]})),
        Proposed(4.0, 1, Wait()),
        Proposed(5.0, 1, Exhausted()),
        Reported(6.0, 0, 1, (report, replace(report, step=4, checkpoint="", nbytes=0))),
        Checkpointed(7.0, 0, 1, 3, {"loss": 0.1 + 0.2}, "e3b0c442" * 8, 2**40),
        Loaded(7.5, 0, 2, 0, 3, "e3b0c442" * 8),
        Drop(0, 3),
        Damaged(7.75, 3, 1, 0, 3, "checkpoint …/000003 is damaged: weights: its size is 1 bytes, and was 2", 0.25),
        Quarantine(0, 3),
        *(Ended(8.0, 0, 1, how, 9, 9.0, {"loss": -math.inf, "n": 2**60 + 1}, 4.5) for how in How),
        *(Failed(9.0, 0, 2, failure, "Traceback …\n  naïve", 0.5) for failure in Failure),
        Retry(0, 3),
        Retry(0, None),
        Resume(0, END),
        Fork(3, 0, config, 27),
        Fork(4, 0, config, 27, replaces=0),
        Ticked(10.0),
        Failed(9.5, 0, 3, Failure.OUT_OF_MEMORY, "CUDA out of memory", 0.5, {"net": {"batch": 32}}),
        StopAsked(11.0, "Ctrl-C"),
        Extended(11.5, 40, 27, True, {"num_samples": 40, "space": {"x": {"$uniform": [0.0, 1.0]}}}),
        Extended(11.75, None, None, False, {"num_samples": -1}),
        *(Over(0, why.state, why, "so it is") for why in Why),
        *(Over(1, state, Why.RETURNED) for state in State),
        Finish(False, "Ctrl-C"),
        Finish(True, "every trial is over"),
    ]
    journal = Journal(root)
    for start in range(0, len(rows), 7):
        journal.commit(rows[start : start + 7], [])
    journal.close()


def main() -> None:
    folder = GOLDEN / f"format_{FORMAT}"
    folder.mkdir()  # FileExistsError: it is there, and stays as it is
    for name, made in (("study", sweep), ("population", population)):
        make_study(folder / name, made(folder / name))
    make_rows(folder / "rows")
    text = json.dumps(seen(folder), indent=1, ensure_ascii=False)
    (folder / "expected.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
