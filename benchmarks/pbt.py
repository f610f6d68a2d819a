"""What a population costs on a real Ray: reports per second beside Ray Tune's PBT, and one exploit, piece by piece.

    python benchmarks/pbt.py [--quick] [--folder DIR]

Four members on two logical CPUs, so that two always wait; a Ray of its own on loopback; trials that do nothing but
save and report. A turn every five steps.

(a) Throughput. A checkpoint of a few bytes at every step, of which one is kept (``num_to_keep=1``); reports per second
    from the first report to the last. Ray Tune runs the same classes and functions with ``reuse_actors=True``, which
    raytuner's actors do by themselves, its default loggers, and keeps all checkpoints: with ``num_to_keep=1`` or 2 it
    was seen to delete those that others were to start from. It brings nothing to disk; raytuner each checkpoint and
    each decision. Its default is ``reuse_actors=False``.
(b) One exploit in a warm process, from the report with which a member comes to a rung to the first step of the fork
    that comes next in its process: a fork is a new trial in an old process. By the clocks of the functions and the
    journal, in four pieces:

    published   the rung's checkpoint is copied, hashed and on the disk (of a class: first saved by its own code)
    decided     the driver hears of it, decides, writes that down durably; the lease comes; who was parked there is gone
    verified    the donor's checkpoint is read and hashed, as is promised of each one that a trial starts from
    restored    the trial's own code reads it, and is at its first step

    Beside it, what a plain copy with fsync of such a file takes here, and to read and hash it, in the same run.
    Large checkpoints are made at rungs only, and every member has its turn at every step: half of them are replaced.

``bar``: what (a) is meant to reach. What it does not show: several machines, steps that take time.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import logging
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import ray
import ray.tune
from _common import console, load, number, percent, print_place, table
from ray.tune.schedulers import PopulationBasedTraining as RaysPopulationBasedTraining

import raytuner
from raytuner.actions import Fork, Resume
from raytuner.cluster import local
from raytuner.events import Ended, Loaded
from raytuner.record.journal import Row, read
from raytuner.schedulers import PopulationBasedTraining

CPUS, MEMBERS, INTERVAL = 2, 4, 5
MIB = 2**20
PIECES = ("published", "decided", "verified", "restored")


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything. ``ray_*``: for Ray Tune; ``fresh_steps``: with new actors, which takes long (0: not)."""

    kinds: tuple[str, ...] = ("function", "class")
    steps: int = 500
    ray_steps: int = 50
    ray_rounds: int = 2
    fresh_steps: int = 10
    large_mib: int = 100
    large_steps: int = 7
    large_kinds: tuple[str, ...] = ("function", "class")


QUICK = Sizes(("class",), steps=100, ray_rounds=1, fresh_steps=0, large_steps=4, large_kinds=("function",))


# -------------------------------------------------------------------------------------------------------- the trials


class State:
    """What is trained: a sum of learning rates. Of two members the one with the better rates so far is better, however
    far they are, so that at each rung somebody is worst."""

    def __init__(self) -> None:
        self.step, self.sum, self.ballast = 0, 0.0, b""

    def train(self, lr: float, began_at: float) -> dict[str, Any]:
        self.step += 1
        self.sum += lr
        said = {"score": self.sum / self.step, "lr": lr, "pid_seen": os.getpid()}
        return {**said, "began_at": began_at, "said_at": time.time()}

    def save(self, folder: str) -> None:
        Path(folder, "state.json").write_text(json.dumps({"step": self.step, "sum": self.sum}))
        if self.ballast:
            Path(folder, "ballast").write_bytes(self.ballast)

    def load(self, folder: str) -> None:
        found = json.loads(Path(folder, "state.json").read_text())
        self.step, self.sum = found["step"], found["sum"]
        if Path(folder, "ballast").exists():
            self.ballast = Path(folder, "ballast").read_bytes()


def ballast(mib: int) -> bytes:
    return os.urandom(MIB) * mib


def function(tune: Any, steps: int, mib: int = 0) -> Callable[[Mapping[str, Any]], None]:
    """A training function for one library or the other; large checkpoints are made where they are asked for."""

    def train(config: Mapping[str, Any]) -> None:
        state = State()
        if checkpoint := tune.get_checkpoint():
            with checkpoint.as_directory() as folder:
                state.load(folder)
        else:
            state.ballast = ballast(mib)
        while state.step < steps:
            said = state.train(config["lr"], time.time())
            if mib and not tune.should_checkpoint():
                tune.report(said)
                continue
            with tempfile.TemporaryDirectory() as folder:
                state.save(folder)
                said["said_at"] = time.time()
                tune.report(said, checkpoint=tune.Checkpoint.from_directory(folder))

    return train


def class_(tune: Any, steps: int, mib: int = 0) -> type:
    """The same as a class, whose instances serve one trial after the other."""

    class Model(tune.Trainable):  # type: ignore[misc]
        def setup(self, config: dict[str, Any]) -> None:
            self.reset_config(config)
            self.state.ballast = ballast(mib)

        def step(self) -> dict[str, Any]:
            return {**self.state.train(self.lr, time.time()), "done": self.state.step >= steps}

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            self.state.save(checkpoint_dir)

        def load_checkpoint(self, checkpoint: Any) -> None:
            self.state.load(checkpoint)

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.state, self.lr = State(), new_config["lr"]
            return True

    return Model


KINDS: Mapping[str, Callable[..., Any]] = {"function": function, "class": class_}


# ---------------------------------------------------------------------------------------------------------- the runs


@dataclass(frozen=True, slots=True)
class Run:
    """One population. ``reports``: rows of trial, attempt (Ray: 0), step, lr, process, began_at, said_at, in the order
    in which they were made. ``exploits``: seconds, of each piece and ``all``."""

    reports: Sequence[Sequence[Any]]
    exploits: Mapping[str, Sequence[float]]
    resumed: int = 0
    parked: int = 0  # of those, how many went on where they stood

    @property
    def reports_per_s(self) -> float:
        return (len(self.reports) - 1) / (self.reports[-1][6] - self.reports[0][6])

    @property
    def processes(self) -> int:
        return len({row[4] for row in self.reports})


COLUMNS = ("lr", "pid_seen", "began_at", "said_at")


def run_raytuner(folder: Path, name: str, kind: str, steps: int, mib: int = 0) -> Run:
    """Run a population and read it back from the disk."""
    lr = {"lr": raytuner.uniform(0.0, 1.0)}
    scheduler = PopulationBasedTraining(
        time_attr="training_iteration",
        perturbation_interval=1 if mib else INTERVAL,
        quantile_fraction=0.5 if mib else 0.25,
        hyperparam_mutations=lr,
    )
    keep = raytuner.CheckpointConfig(num_to_keep=1, checkpoint_frequency=0 if mib else 1)
    results = raytuner.Tuner(
        KINDS[kind](raytuner, steps, mib),
        param_space=lr,
        tune_config=raytuner.TuneConfig(
            metric="score", mode="max", num_samples=MEMBERS, scheduler=scheduler, max_concurrent_trials=CPUS, seed=0
        ),
        run_config=raytuner.RunConfig(name=name, storage_path=folder, verbose=0, checkpoint_config=keep),
    ).fit()
    assert (len(results), results.num_errors) == (MEMBERS, 0)
    assert [result.metrics["training_iteration"] for result in results] == [steps] * MEMBERS
    record = read(folder / name)
    columns = [record.reports[each].to_pylist() for each in ("trial", "attempt", "step", *COLUMNS)]
    begun = {
        (trial, attempt, step): at - since
        for trial, attempt, step, at, since in zip(
            *columns[:3], *(record.reports[each].to_pylist() for each in ("at", "time_since_restore")), strict=True
        )
    }
    reports = sorted(zip(*columns, strict=True), key=lambda row: row[6])
    shutil.rmtree(folder / name)
    resumed = {(row.trial, number) for row, number in _attempts(record.rows) if isinstance(row, Resume)}
    loaded = {(row.trial, row.attempt) for row in record.rows if isinstance(row, Loaded)}
    return Run(reports, _pieces(record.rows, reports, begun), len(resumed), len(resumed - loaded))


def _attempts(rows: Sequence[Row]) -> Sequence[tuple[Row, int]]:
    """Leases in the order in which they were given out, with their numbers; no process is lost here."""
    seen: dict[int, int] = {}
    found = []
    for row in rows:
        if isinstance(row, Resume | Fork):
            seen[row.trial] = seen.get(row.trial, 0 if isinstance(row, Fork) else 1) + 1
            found.append((row, seen[row.trial]))
    return found


def _pieces(
    rows: Sequence[Row], reports: Sequence[Sequence[Any]], begun: Mapping[tuple[int, int, int], float]
) -> Mapping[str, Sequence[float]]:
    """What each exploit took. ``begun``: by trial, attempt and step of a report, when its session began."""
    ended = {(row.trial, row.attempt): row.at for row in rows if isinstance(row, Ended)}
    loaded = {(row.trial, row.attempt): row.at for row in rows if isinstance(row, Loaded)}
    forks = {row.trial for row in rows if isinstance(row, Fork)}
    took: dict[str, list[float]] = {piece: [] for piece in (*PIECES, "all")}
    for before, after in _in_turn(reports):
        if after[0] in forks and after[1] == 1 and before[0] != after[0]:
            at = [before[6], ended[before[0], before[1]], begun[after[0], 1, after[2]], loaded[after[0], 1], after[5]]
            for piece, start, end in zip((*PIECES, "all"), [*at[:4], at[0]], [*at[1:], at[4]], strict=True):
                took[piece].append(end - start)
    return took


def _in_turn(reports: Sequence[Sequence[Any]]) -> Sequence[tuple[Sequence[Any], Sequence[Any]]]:
    """Each report with the one before it in the same process."""
    last: dict[int, Sequence[Any]] = {}
    found = []
    for row in reports:
        if row[4] in last:
            found.append((last[row[4]], row))
        last[row[4]] = row
    return found


def run_ray(folder: Path, name: str, kind: str, steps: int, reuse: bool = True) -> Run:
    """The same with Ray Tune. An exploit there: a trial goes on with another learning rate."""
    lr = {"lr": ray.tune.uniform(0.0, 1.0)}
    frequency = 1 if kind == "class" else 0  # of functions it says that they decide
    tuner = ray.tune.Tuner(
        KINDS[kind](ray.tune, steps),
        param_space=lr,
        tune_config=ray.tune.TuneConfig(
            metric="score",
            mode="max",
            num_samples=MEMBERS,
            scheduler=RaysPopulationBasedTraining(
                time_attr="training_iteration", perturbation_interval=INTERVAL, hyperparam_mutations=lr
            ),
            max_concurrent_trials=CPUS,
            reuse_actors=reuse,
        ),
        run_config=ray.tune.RunConfig(
            name=name,
            storage_path=str(folder),
            verbose=0,
            checkpoint_config=ray.tune.CheckpointConfig(checkpoint_frequency=frequency),
        ),
    )
    with contextlib.redirect_stdout(io.StringIO()):  # it prints a table even so
        results = tuner.fit()
    assert results.num_errors == 0
    rows: list[Sequence[Any]] = []
    for trial, result in enumerate(results):
        columns = [result.metrics_dataframe[each] for each in ("training_iteration", *COLUMNS)]
        rows += [(trial, 0, *row) for row in zip(*columns, strict=True)]
    rows.sort(key=lambda row: row[6])
    shutil.rmtree(folder / name)
    rates: dict[int, float] = {}
    exploits = []
    for before, after in _in_turn(rows):
        if rates.get(after[0], after[3]) != after[3]:
            exploits.append(after[5] - before[6])
        rates[before[0]], rates[after[0]] = before[3], after[3]
    return Run(rows, {"all": exploits})


@dataclass(slots=True)
class Plain:
    """What the file system takes for a file of so many bytes, measured between the runs: a busy one changes."""

    folder: Path
    size: int
    copied_s: list[float] = field(default_factory=list)
    read_s: list[float] = field(default_factory=list)

    def measure(self, times: int) -> None:
        source, target = self.folder / "plain", self.folder / "copy"
        source.write_bytes(os.urandom(min(self.size, MIB)) * max(1, self.size // MIB))
        for _ in range(times):
            begun = time.perf_counter()
            shutil.copy(source, target)
            descriptor = os.open(target, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
            self.copied_s.append(time.perf_counter() - begun)
            begun = time.perf_counter()
            with open(source, "rb") as file:
                hashlib.file_digest(file, "sha256")
            self.read_s.append(time.perf_counter() - begun)
            target.unlink()
        source.unlink()


# --------------------------------------------------------------------------------------------------------- the tables


def measure(sizes: Sizes, folder: Path) -> None:
    small, large = Plain(folder, 100), Plain(folder, sizes.large_mib * MIB)
    ours: dict[str, Run] = {}
    rays: dict[str, list[Run]] = {kind: [] for kind in sizes.kinds}
    for place, kind in enumerate(sizes.kinds):
        small.measure(50)
        ours[kind] = run_raytuner(folder, f"a-{kind}", kind, sizes.steps)
        small.measure(50)
        for again in range(sizes.ray_rounds):
            rays[kind].append(run_ray(folder, f"a-ray-{place}-{again}", kind, sizes.ray_steps))
    fresh = run_ray(folder, "a-ray-fresh", "class", sizes.fresh_steps, reuse=False) if sizes.fresh_steps else None
    heavy: dict[str, Run] = {}
    for kind in sizes.large_kinds:
        large.measure(3)
        heavy[kind] = run_raytuner(folder, f"b-{kind}", kind, sizes.large_steps, sizes.large_mib)
    large.measure(3)
    print_throughput(sizes, ours, rays, fresh)
    exploits = {f"{kind}, tiny": (ours[kind], small) for kind in sizes.kinds}
    exploits |= {f"{kind}, {sizes.large_mib} MiB": (heavy[kind], large) for kind in heavy}
    best = {kind: min(runs, key=lambda run: np.median(run.exploits["all"] or [np.inf])) for kind, runs in rays.items()}
    print_exploits(exploits, {f"{kind}, tiny": run for kind, run in best.items()})


def print_throughput(
    sizes: Sizes, ours: Mapping[str, Run], rays: Mapping[str, Sequence[Run]], fresh: Run | None
) -> None:
    title = f"(a) {MEMBERS} members on {CPUS} CPUs, a checkpoint at each step; reports/s, first to last"
    shown = table(title, "", "raytuner", "ray.tune", "ratio", "bar")

    def row(name: str, our: float, their: float, bar: str = "") -> None:
        shown.add_row(name, number(our), number(their), number(our / their), bar)

    shown.add_row("steps of each member", f"{sizes.steps}", f"{sizes.ray_steps}", "", "")
    best = {kind: max(runs, key=lambda run: run.reports_per_s) for kind, runs in rays.items()}
    for kind, run in ours.items():
        row(kind, run.reports_per_s, best[kind].reports_per_s)
    fastest, rays_fastest = (max(run.reports_per_s for run in of.values()) for of in (ours, best))
    row("whichever is faster", fastest, rays_fastest, "20")
    if fresh is not None:
        row(f"Ray's default: new actors, {sizes.fresh_steps} steps", ours["class"].reports_per_s, fresh.reports_per_s)
    processes = (", ".join(f"{run.processes}" for run in of.values()) for of in (ours, best))
    shown.add_row("processes", *processes, "", "")
    console.print(shown)
    found = ", ".join(f"{run.parked} of {run.resumed} ({kind})" for kind, run in ours.items())
    console.print(
        f"Resumptions that found their trial parked: {found}; the others began from a checkpoint, as forks do: "
        f"{MEMBERS - CPUS} members always wait for a slot, and who has come least far is next. "
        f"Ray Tune: the best of {sizes.ray_rounds}. Afterwards: {load()}."
    )


def print_exploits(runs: Mapping[str, tuple[Run, Plain]], rays: Mapping[str, Run]) -> None:
    """``rays``: of those of the same names."""
    names = {piece: piece for piece in PIECES} | {"all": "rung's report to fork's first step"}
    shown = table("(b) One exploit in a warm process, ms: p50 (p95)", "", *runs)
    shown.add_row("how many", *(f"{len(run.exploits['all'])}" for run, _ in runs.values()))
    for piece, name in names.items():
        shown.add_row(name, *(quantiles(run.exploits[piece]) for run, _ in runs.values()))
    shown.add_row(
        "ray.tune, the same", *(quantiles(rays[name].exploits["all"]) if name in rays else "" for name in runs)
    )
    shown.add_row("processes that ran all of it", *(f"{run.processes}" for run, _ in runs.values()))
    shown.add_section()
    shown.add_row("plain copy and fsync", *(quantiles(plain.copied_s) for _, plain in runs.values()))
    shown.add_row("plain read and sha256", *(quantiles(plain.read_s) for _, plain in runs.values()))
    console.print(shown)
    for name, (run, _) in runs.items():
        sums = {piece: sum(run.exploits[piece]) for piece in PIECES}
        most = max(sums, key=lambda piece: sums[piece])
        shares = ", ".join(f"{piece} {percent(took, sum(sums.values()))}" for piece, took in sums.items())
        console.print(f"{name}: what takes longest is until it is {most} ({shares}).")


def quantiles(seconds: Sequence[float]) -> str:
    """The median and the 95th percentile, in milliseconds."""
    return f"{number(1e3 * median(seconds))} ({number(1e3 * float(np.quantile(seconds, 0.95)))})" if seconds else "none"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps")
    parser.add_argument("--folder", type=Path, help="on the disk to be measured (default: that of temporary files)")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    os.environ |= {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    local.start(num_cpus=CPUS, logging_level=logging.ERROR)
    try:
        with tempfile.TemporaryDirectory(dir=args.folder, prefix="raytuner-bench-") as name:
            print_place(Path(name), ("raytuner", "ray", "pyarrow", "numpy"))
            measure(QUICK if args.quick else Sizes(), Path(name))
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()
