"""How long a user waits for a long study to go on, and what its record takes on the disk; beside Ray Tune.

    python benchmarks/resume.py [--quick]

A study of 10,000 trials under ASHA, made by the real driver, journal and searcher on simulated trials, loses its driver
after 50,000 decisions: starts, resumptions, ends, dropped checkpoints. Then it is resumed by the public door,
``Tuner.restore(…).fit()``, in a process of its own. Timed is what passes between these words and the first lease that
is given out: study.json is read, the record opened, verified and replayed, the searcher is told everything again and
asked for what is new. The executor is a stub: what it takes for processes to start is no matter of resuming.
BOHB proposes at random 19 times out of 20, so that the record is made in minutes; what it must be told is the same.

Ray Tune's study has 1,000 trials of four reports, made by Ray Tune, of which one failed; ``ray.tune.Tuner.restore(…,
resume_errored=True).fit()`` is timed until it schedules that trial's actor. Ray itself is up before the clock starts.

CPU seconds are those of the process: on a busy machine they say more than those that passed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from _common import console, load, middle, number, print_place, table

from raytuner import CheckpointConfig, RunConfig, TuneConfig, Tuner, choice, loguniform, randint, uniform
from raytuner.driver import Driver
from raytuner.events import Event, Slots
from raytuner.executors.simulate import Simulation, Workload, World
from raytuner.protocols import SearchAlgorithm
from raytuner.record.journal import Journal, Row
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


@dataclass(frozen=True)
class Resumed:
    """Seconds until something new is done."""

    wall_s: float
    cpu_s: float


def resume(root: Path) -> Resumed:
    begun, cpu = time.perf_counter(), time.process_time()
    try:
        Waiting.restore(root, train, run_config=RunConfig(verbose=0)).fit()
    except Issued as issued:
        return Resumed(issued.at - begun, time.process_time() - cpu)
    raise AssertionError("nothing was issued")


# ------------------------------------------------------------------------------------------------ Ray Tune's study


def resume_ray(folder: Path, trials: int) -> dict[str, Any]:
    """Make Ray Tune's study, and resume it."""
    import ray
    import ray.tune
    from ray.tune.execution.tune_controller import TuneController

    from raytuner.cluster import local

    failed = folder / "failed"

    def speak(config: dict[str, Any]) -> None:
        if not failed.exists():
            failed.touch()
            raise RuntimeError("one must fail, so that something is left to do")
        for step in range(1, 5):
            ray.tune.report({"loss": config["lr"] + 1 / step, "seen": 128 * step})

    local.start(num_cpus=2, configure_logging=False)
    ray.tune.Tuner(
        ray.tune.with_resources(speak, {"cpu": 1}),
        param_space={"lr": ray.tune.loguniform(1e-5, 1.0), "width": ray.tune.randint(4, 64)},
        tune_config=ray.tune.TuneConfig(
            metric="loss",
            mode="min",
            num_samples=trials,
            scheduler=ray.tune.schedulers.ASHAScheduler(max_t=4, reduction_factor=2),
            reuse_actors=True,
        ),
        run_config=ray.tune.RunConfig(name="study", storage_path=str(folder), verbose=0),
    ).fit()
    issued: list[tuple[float, float]] = []
    schedule = TuneController._schedule_trial_actor

    def noted(self: Any, trial: Any) -> Any:
        issued.append((time.perf_counter(), time.process_time()))
        return schedule(self, trial)

    TuneController._schedule_trial_actor = noted
    begun, cpu = time.perf_counter(), time.process_time()
    restored = ray.tune.Tuner.restore(
        str(folder / "study"), ray.tune.with_resources(speak, {"cpu": 1}), resume_errored=True
    )
    results = restored.fit()
    assert len(results) == trials, len(results)
    ray.shutdown()
    return {"wall_s": issued[0][0] - begun, "cpu_s": issued[0][1] - cpu, "size": size(folder / "study")}


# ---------------------------------------------------------------------------------------------------- the figures


def size(folder: Path) -> int:
    """Bytes in all of a folder's files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def elsewhere(*args: str) -> dict[str, Any]:
    """The rest of this file's answers are made in processes of their own."""
    done = subprocess.run([sys.executable, __file__, *args], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{__file__} {' '.join(args)} ended with {done.returncode}:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(folder: Path, trials: int, decisions: int, ray_trials: int, repeats: int) -> None:
    took = table(
        f"Resuming, of {repeats}: the median; until the first lease is given out",
        *("", "trials", "decisions", "events", "reports", "seconds", "CPU seconds", "MB on disk", "bytes/trial"),
    )
    for name, searcher in SEARCHERS.items():
        root = folder / name
        made = make(root, searcher, trials, decisions)
        bytes_there = size(root)
        runs = []
        for turn in range(repeats):
            copy = folder / f"{name}-{turn}"
            shutil.copytree(root, copy)
            runs.append(elsewhere("--resume", str(copy)))
            shutil.rmtree(copy)
        walls, cpus = ([run[each] for run in runs] for each in ("wall_s", "cpu_s"))
        took.add_row(
            f"raytuner, {name}, ASHA",
            *(f"{each:,}" for each in (trials, made.decisions, made.events, made.reports)),
            *(middle(walls), middle(cpus), number_of_mb(bytes_there), f"{bytes_there / trials:,.0f}"),
        )
    theirs = elsewhere("--ray", str(ray_trials), "--folder", str(folder))
    took.add_row(
        "Ray Tune, random, ASHA",
        *(f"{ray_trials:,}", "", "", f"{4 * ray_trials:,}"),
        *(number(theirs["wall_s"]), number(theirs["cpu_s"])),
        *(number_of_mb(theirs["size"]), f"{theirs['size'] / ray_trials:,.0f}"),
    )
    console.print(took)
    console.print(f"Afterwards: {load()}.")


def number_of_mb(size: int) -> str:
    return f"{size / 1e6:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the trials")
    parser.add_argument("--folder", type=Path, help="on the disk to be measured (default: that of temporary files)")
    parser.add_argument("--resume", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--ray", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.resume is not None:
        print(json.dumps(asdict(resume(args.resume))))
        return
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="raytuner-bench-") as name:
        if args.ray is not None:
            answer = os.fdopen(os.dup(1), "w")
            os.dup2(2, 1)  # Ray Tune prints a table even so
            print(json.dumps(resume_ray(Path(name), args.ray)), file=answer, flush=True)
            return
        print_place(Path(name), ("raytuner", "ray", "pyarrow", "numpy"))
        share = 10 if args.quick else 1
        measure(Path(name), 10_000 // share, 50_000 // share, 1_000 // share, repeats=3)


if __name__ == "__main__":
    main()
