"""How long a user waits for a long study to go on, and what its record takes on the disk; beside Ray Tune.

    python benchmarks/resume.py [--quick]

A study of 10,000 trials under ASHA, made by the real driver, journal and searcher on simulated trials, loses its driver
after 50,000 decisions: starts, resumptions, ends, dropped checkpoints. Then it is resumed by the public door,
``Tuner.restore(…).fit()``, in a process of its own. Timed is what passes between these words and the first lease that
is given out: study.json is read, the record opened, verified and replayed, the searcher is told everything again and
asked for what is new. The executor is a stub: what it takes for processes to start is no matter of resuming.

Ray Tune's study has 1,000 trials, made by Ray Tune, of which one failed; ``ray.tune.Tuner.restore(…, resume_errored=
True).fit()`` is timed until it schedules that trial's actor. Ray itself is up before the clock starts.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raytuner import CheckpointConfig, RunConfig, TuneConfig, Tuner, choice, loguniform, randint, uniform
from raytuner.driver import Driver
from raytuner.events import Event, Slots
from raytuner.executors.simulate import Simulation, Workload, World
from raytuner.journal import Journal, Row
from raytuner.protocols import SearchAlgorithm
from raytuner.schedulers import ASHAScheduler
from raytuner.searchers import BOHB, RandomSearch
from raytuner.trial import Lease, Reports, Trial

SPACE = {
    "lr": loguniform(1e-5, 1.0),
    "width": randint(4, 64),
    "dropout": uniform(0.0, 0.8),
    "batch": choice([32, 64, 128]),
    "optimizer": choice([{"name": "sgd", "momentum": uniform(0.0, 0.99)}, {"name": "adam"}]),
}
SLOTS = 64
STEPS = 64
SEARCHERS: Mapping[str, SearchAlgorithm] = {"random": RandomSearch(), "BOHB": BOHB(random_fraction=0.95)}
GOAL_S = 5.0


class Died(BaseException):
    """The first driver's death."""


class Issued(BaseException):
    """The resumed driver has given out its first lease: it is ``at`` this time."""

    def __init__(self) -> None:
        self.at = time.perf_counter()


# ---------------------------------------------------------------------------------------------------- our study


def train(config: dict[str, Any]) -> None:
    """Never run."""


def curve(trial: Trial, step: int) -> dict[str, Any]:
    return {"loss": abs(trial.config["lr"] - 0.01) + trial.config["dropout"] / 10 + 1.0 / step, "seen": 128 * step}


def seconds(trial: Trial, step: int) -> float:
    return 1.0 + trial.id * 0.6180339887498949 % 1.0


class Hasty(Journal):
    """A journal that does not wait for the disk: how long the record took to be made does not matter here."""

    def _sync(self, tables: Any) -> None: ...


class Counting:
    """A journal whose driver dies once it has recorded so many decisions."""

    def __init__(self, journal: Journal, decisions: int) -> None:
        self._journal = journal
        self._most = decisions
        self.decisions = self.events = self.reports = 0
        self.rows, self.last_steps = journal.rows, journal.last_steps

    def commit(self, rows: Sequence[Row], reports: Sequence[Reports]) -> None:
        if self.decisions >= self._most:
            raise Died
        self._journal.commit(rows, reports)
        events = sum(isinstance(row, Event) for row in rows)
        self.events += events
        self.decisions += len(rows) - events
        self.reports += sum(map(len, reports))


def tuner(root: Path, searcher: SearchAlgorithm, trials: int) -> Tuner:
    return Tuner(
        train,
        param_space=SPACE,
        tune_config=TuneConfig(
            metric="loss",
            mode="min",
            num_samples=trials,
            search_alg=searcher,
            scheduler=ASHAScheduler(max_t=STEPS, reduction_factor=2),
            seed=0,
        ),
        run_config=RunConfig(
            name=root.name,
            storage_path=root.parent,
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            verbose=0,
        ),
    )


def make(root: Path, searcher: SearchAlgorithm, trials: int, decisions: int) -> Counting:
    """A study whose driver died after so many decisions."""
    made = tuner(root, searcher, trials)
    seed = made._begin()
    journal = Hasty(root)
    counting = Counting(journal, decisions)
    world = World()
    simulation = Simulation(world, Workload(curve, seconds, saves=lambda trial, step: step % 3 == 0), SLOTS)
    try:
        Driver(made._study(seed), made._search.build(made._space, seed), counting, world, simulation).run(simulation)
    except Died:
        pass
    finally:
        journal.close()
    return counting


class Stub:
    """An executor that has its slots at once, and gives out no lease."""

    def run(self, lease: Lease) -> None:
        raise Issued

    def unwind(self, trial: int, attempt: int) -> None: ...

    def wait(self, timeout_s: float | None) -> Sequence[Event]:
        return [Slots(time.time(), SLOTS)]

    def close(self, at_once: bool = False) -> None: ...


class Waiting(Tuner):
    """A `Tuner` whose trials' processes need no time."""

    def _executor(self) -> Any:
        return Stub()


def resume(root: Path) -> float:
    """How many seconds pass until something new is done."""
    begun = time.perf_counter()
    try:
        Waiting.restore(root, train, run_config=RunConfig(verbose=0)).fit()
    except Issued as issued:
        return issued.at - begun
    raise AssertionError("nothing was issued")
