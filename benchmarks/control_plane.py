"""What raytuner's own code costs, without Ray: study, driver and journal on the simulator.

    python benchmarks/control_plane.py [--quick] [--profile]

Trials are made up and take no time: what the simulator itself takes is measured and left out. Every trial speaks at an
instant of its own, so that each report is a turn of the driver's loop with its own fsyncs: the worst case. On a real
cluster several trials are heard in one turn.

Printed are, for random search and BOHB under ASHA and Hyperband:

1. decisions, events and reports per second with the journal on the disk and with a journal that keeps nothing, beside
   this disk's fsyncs per second, of which one is measured after each turn;
2. what a commit costs, beside pyarrow writing the same batches with the same fsyncs and nothing else: the same turns
   once more, written by both in alternation;
3. how fast a study that is over reopens, beside pyarrow reading the same batches; how many bytes it takes.

``--profile`` prints where the time goes instead.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa
from _common import Disk, console, load, number, percent, print_place, table

from raytuner.checkpoints import CheckpointConfig
from raytuner.driver import Driver, Recorder
from raytuner.events import Event
from raytuner.executors.simulate import Simulation, Workload, World
from raytuner.objective import Objective
from raytuner.protocols import SchedulingPolicy, SearchAlgorithm
from raytuner.record.journal import Journal, Row
from raytuner.record.segments import read_segment
from raytuner.retry import Retries
from raytuner.schedulers import ASHAScheduler, HyperBandScheduler
from raytuner.searchers import BOHB, RandomSearch
from raytuner.space import Space, choice, loguniform, randint, uniform
from raytuner.study import Study
from raytuner.trial import Lease, Reports, Trial

SPACE = {
    "lr": loguniform(1e-5, 1.0),
    "width": randint(4, 64),
    "dropout": uniform(0.0, 0.8),
    "batch": choice([32, 64, 128]),
    "optimizer": choice([{"name": "sgd", "momentum": uniform(0.0, 0.99)}, {"name": "adam"}]),
}
SLOTS = 16
STEPS = 81
CASES: Mapping[str, tuple[SearchAlgorithm, SchedulingPolicy]] = {
    "random, ASHA": (RandomSearch(), ASHAScheduler(max_t=STEPS, reduction_factor=3)),
    "random, Hyperband": (RandomSearch(), HyperBandScheduler(max_t=STEPS)),
    "BOHB, ASHA": (BOHB(model="kde"), ASHAScheduler(max_t=STEPS, reduction_factor=3)),
    "BOHB, Hyperband": (BOHB(model="kde"), HyperBandScheduler(max_t=STEPS)),
}


def curve(trial: Trial, step: int) -> dict[str, Any]:
    """Two metrics that a model can learn something from."""
    return {"loss": abs(trial.config["lr"] - 0.01) + trial.config["dropout"] / 10 + 1.0 / step, "seen": 128 * step}


def seconds(trial: Trial, step: int) -> float:
    """Virtual ones; no two trials are equally fast."""
    return 1.0 + trial.id * 0.6180339887498949 % 1.0


# ------------------------------------------------------------------------------------------------------- the parts


class Outside:
    """The simulator and the place of its checkpoints, with a stopwatch: what they take is no cost of raytuner's."""

    def __init__(self, slots: int) -> None:
        self._world = World()
        self._simulation = Simulation(self._world, Workload(curve, seconds), slots)
        self.wall_s = 0.0

    def _timed(self, call: Any, *args: Any) -> Any:
        begun = time.perf_counter()
        try:
            return call(*args)
        finally:
            self.wall_s += time.perf_counter() - begun

    def run(self, lease: Lease) -> None:
        self._timed(self._simulation.run, lease)

    def unwind(self, trial: int, attempt: int) -> None:
        self._timed(self._simulation.unwind, trial, attempt)

    def wait(self, timeout_s: float | None) -> Sequence[Event]:
        return self._timed(self._simulation.wait, timeout_s)

    def delete(self, trial: int, step: int) -> None:
        self._timed(self._world.delete, trial, step)

    def sweep(self, referenced: set[tuple[int, int]]) -> object:
        return self._timed(self._world.sweep, referenced)

    def sweep_trial(self, trial: int, referenced: set[int]) -> object:
        return self._timed(self._world.sweep_trial, trial, referenced)

    def quarantine(self, trial: int, step: int) -> str | None:
        return self._timed(self._world.quarantine, trial, step)

    def now(self) -> float:
        return self._simulation.now()

    def close(self) -> None:
        self._simulation.close()


class Nothing:
    """A journal that keeps nothing."""

    def rows(self) -> Iterable[Row]:
        return ()

    def last_steps(self) -> dict[int, int]:
        return {}

    def commit(self, rows: Sequence[Row], reports: Sequence[Reports]) -> None:
        pass


class Counting:
    """A journal, and what went into it. With a ``disk``, a bare fsync of it after each turn."""

    def __init__(self, journal: Recorder, disk: Disk | None = None) -> None:
        self._journal = journal
        self._disk = disk
        self.rows, self.last_steps = journal.rows, journal.last_steps
        self.turns: list[tuple[Sequence[Row], Sequence[Reports]]] = []
        self.commits_s = self.disk_s = 0.0

    def commit(self, rows: Sequence[Row], reports: Sequence[Reports]) -> None:
        begun = time.perf_counter()
        self._journal.commit(rows, reports)
        self.commits_s += time.perf_counter() - begun
        if rows or reports:
            self.turns.append((rows, reports))
            self.disk_s += self._disk.sync() if self._disk else 0.0

    @property
    def events(self) -> int:
        return sum(isinstance(row, Event) for rows, _ in self.turns for row in rows)

    @property
    def decisions(self) -> int:
        return sum(not isinstance(row, Event) for rows, _ in self.turns for row in rows)

    @property
    def reports(self) -> int:
        return sum(len(reports) for _, reports in self.turns)

    @property
    def fsyncs(self) -> int:
        """One for each of the two tables that a turn writes to."""
        return sum(bool(rows) + bool(reports) for rows, reports in self.turns)


@dataclass(frozen=True)
class Life:
    """A study from its start to its end. ``wall_s``: without the simulator and bare fsyncs."""

    wall_s: float
    journal: Counting


def driver(case: str, trials: int, journal: Recorder, outside: Outside) -> tuple[Study, Driver]:
    searcher, scheduler = CASES[case]
    study = Study(Objective("loss"), scheduler.build(0), trials, Retries(0), CheckpointConfig(num_to_keep=1))
    return study, Driver(study, searcher.build(Space(SPACE), 0), journal, outside, outside)


def live(case: str, trials: int, journal: Recorder, disk: Disk | None = None) -> Life:
    outside, counting = Outside(SLOTS), Counting(journal, disk)
    study, machine = driver(case, trials, counting, outside)
    begun = time.perf_counter()
    finish = machine.run(outside)
    took = time.perf_counter() - begun
    assert finish.complete, finish
    assert len(study.ledger) == trials, len(study.ledger)
    return Life(took - outside.wall_s - counting.disk_s, counting)


# ------------------------------------------------------------------------------------------------ bare pyarrow


class Bare:
    """The batches of a study's folder, written once more to as many files, by pyarrow alone."""

    def __init__(self, root: Path, folder: Path) -> None:
        folder.mkdir()
        self._turns: dict[int, list[tuple[str, pa.RecordBatch]]] = {}
        self._files: dict[str, Any] = {}
        self._writers: dict[str, Any] = {}
        for path in [*sorted((root / "reports").glob("*.arrow")), *sorted((root / "journal").glob("*.arrow"))]:
            name = f"{path.parent.name}-{path.name}"
            turns, _ = read_segment(path, last=True)
            self._files[name] = open(folder / name, "wb")  # noqa: SIM115
            self._writers[name] = pa.ipc.new_stream(self._files[name], turns[0].batch.schema)
            for turn in turns:
                self._turns.setdefault(turn.number, []).append((name, turn.batch))

    def commit(self, turn: int) -> None:
        """Write a turn's batches; as `Journal.commit` does, all of them before the first fsync."""
        for name, batch in self._turns[turn]:
            self._writers[name].write_batch(batch)
            self._files[name].flush()
        for name, _ in self._turns[turn]:
            os.fsync(self._files[name].fileno())

    def close(self) -> None:
        for name, file in self._files.items():
            self._writers[name].close()
            file.close()


@dataclass(frozen=True)
class Cost:
    """Of one turn: the median of wall milliseconds, the mean of CPU microseconds."""

    wall_ms: float
    cpu_us: float


def in_turns(*writers: Callable[[int], None], turns: int) -> list[Cost]:
    """Let each writer commit turn after turn, one after the other: what the disk does meanwhile hits all alike."""
    walls_s: list[list[float]] = [[] for _ in writers]
    cpus_s = [0.0 for _ in writers]
    for turn in range(turns):
        for place, commit in enumerate(writers):
            wall, cpu = time.perf_counter(), time.process_time()
            commit(turn)
            cpus_s[place] += time.process_time() - cpu
            walls_s[place].append(time.perf_counter() - wall)
    return [Cost(1e3 * median(wall), 1e6 * cpu / turns) for wall, cpu in zip(walls_s, cpus_s, strict=True)]


def read_bare(folder: Path) -> float:
    """Read what `Bare` wrote, as tables and as Python values; seconds."""
    begun = time.perf_counter()
    for path in folder.iterdir():
        with pa.memory_map(str(path)) as file:
            pa.ipc.open_stream(file).read_all().to_pylist()
    return time.perf_counter() - begun


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.arrow"))


# ---------------------------------------------------------------------------------------------------- the figures


def measure(trials: int, folder: Path) -> None:
    rates = table(
        f"1. Control plane: {trials} trials, up to {STEPS} steps, {SLOTS} slots; without the simulator's own time",
        *("", "journal", "decisions/s", "events/s", "reports/s", "ms/turn", "fsyncs/s", "bare fsyncs/s", "of bare"),
    )
    costs = table(
        "2. Commits: a durable turn (median) and its CPU time (mean), beside bare pyarrow with the same fsyncs",
        *("", "turns", "share of time", "ms", "bare ms", "times bare", "CPU us", "bare CPU us", "times bare"),
    )
    reopened = table(
        "3. Reopening a study that is over, and its size",
        *("", "rows", "open ms", "replay ms", "rows/s", "bare rows/s", "of bare"),
        *("journal B/trial", "reports B/row"),
    )
    live("BOHB, Hyperband", 30, Nothing())  # imports, caches
    for place, case in enumerate(CASES):
        root, bare_folder, bare_disk = folder / f"{place}", folder / f"{place}-bare", Disk(folder)
        journal = Journal(root)
        disk = live(case, trials, journal, bare_disk)
        journal.close()
        bare_fsyncs = len(bare_disk.took_s) / sum(bare_disk.took_s)
        rates.add_row(case, "on disk", *_rates(disk), *_beside(disk.journal.fsyncs / disk.wall_s, bare_fsyncs))
        rates.add_row("", "nothing", *_rates(live(case, trials, Nothing())))
        costs.add_row(case, *_costs(disk, root, bare_folder))
        reopened.add_row(case, *_reopened(case, trials, disk.journal, root, bare_folder))
    for each in (rates, costs, reopened):
        console.print(each)
    console.print(
        "Decisions: starts, resumes, ends, dropped checkpoints. Events: what the study was told and recorded. A turn: "
        "one round of the driver's loop, here for one trial's report. Rows: of both tables. Bare reading: neither "
        f"checksums nor repair. Afterwards: {load()}.",
    )


def _rates(life: Life) -> list[str]:
    did = life.journal
    per_s = [number(count / life.wall_s) for count in (did.decisions, did.events, did.reports)]
    return [*per_s, f"{1e3 * life.wall_s / len(did.turns):.2f}"]


def _beside(ours: float, bare: float) -> list[str]:
    return [number(ours), number(bare), percent(ours, bare)]


def _costs(life: Life, root: Path, bare_folder: Path) -> list[str]:
    turns = life.journal.turns
    journal, bare = Journal(root.with_name(f"{root.name}-again")), Bare(root, bare_folder)
    ours, floor = in_turns(lambda turn: journal.commit(*turns[turn]), bare.commit, turns=len(turns))
    journal.close()
    bare.close()
    return [
        f"{len(turns):,}",
        percent(life.journal.commits_s, life.wall_s),
        *(f"{ours.wall_ms:.2f}", f"{floor.wall_ms:.2f}", f"{ours.wall_ms / floor.wall_ms:.2f}"),
        *(number(ours.cpu_us), number(floor.cpu_us), f"{ours.cpu_us / floor.cpu_us:.2f}"),
    ]


def _reopened(case: str, trials: int, did: Counting, root: Path, bare_folder: Path) -> list[str]:
    begun = time.perf_counter()
    journal = Journal(root)
    opened = time.perf_counter()
    study, _ = driver(case, trials, journal, Outside(SLOTS))
    replayed = time.perf_counter()
    journal.close()
    assert study.finished is not None
    assert study.finished.complete
    rows = did.events + did.decisions + did.reports
    return [
        f"{rows:,}",
        *(number(1e3 * (opened - begun)), number(1e3 * (replayed - opened))),
        *_beside(rows / (replayed - begun), rows / read_bare(bare_folder)),
        *(number(size(root / "journal") / trials), number(size(root / "reports") / did.reports)),
    ]


def profile(trials: int, folder: Path) -> None:
    for name in ("nothing", "on disk"):
        journal: Recorder = Journal(folder / "profiled") if name == "on disk" else Nothing()
        profiler = cProfile.Profile()
        profiler.enable()
        life = live("BOHB, Hyperband", trials, journal)
        profiler.disable()
        turns = len(life.journal.turns)
        console.print(f"BOHB, Hyperband, {trials} trials, {turns:,} turns, journal: {name}, profiled", style="bold")
        for order in ("tottime", "cumtime"):
            pstats.Stats(profiler).sort_stats(order).print_stats(30)
    profiler = cProfile.Profile()
    profiler.enable()
    journal = Journal(folder / "profiled")
    driver("BOHB, Hyperband", trials, journal, Outside(SLOTS))
    profiler.disable()
    console.print("Reopened, profiled", style="bold")
    pstats.Stats(profiler).sort_stats("tottime").print_stats(30)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer trials")
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    parser.add_argument("--folder", type=Path, help="on the disk to be measured (default: that of temporary files)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="raytuner-bench-") as name:
        print_place(Path(name), ("raytuner", "pyarrow", "numpy"))
        (profile if args.profile else measure)(40 if args.quick else 120, Path(name))


if __name__ == "__main__":
    main()
