"""What a study costs on a real Ray, beside Ray Tune, bare actor calls and this disk: ratios from one run.

    python benchmarks/overhead.py [--quick]

Two logical CPUs, a Ray of its own on loopback, training functions that do nothing but report. Ray Tune runs as it
comes (its loggers, FIFO, random search), with ``reuse_actors=True``, which raytuner's actors do by themselves.

(a) Trials of one report. Trials per second from the first report to the last, by the clock of the function that makes
    them, so that starting up is left out; the wall time of ``fit()`` has it.
(b) Reports. Per second from the first report to the last row written to the durable table (a few milliseconds before
    its fsync returns); for Ray Tune, which never calls fsync, to the last report made. Afterwards all rows must be
    in the table.
(c) Between a rung and the next step: how long the report that reaches a rung takes, from its call to its return.
    raytuner writes what was said, asks the scheduler (ASHA; here it resumes always), writes the decision, and lets the
    function go on that waits in its warm actor. In Ray Tune each report waits for its controller; its reports of (b).

What it does not show: checkpoints, several machines, searchers that think (`control_plane.py` has those).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import ray
import ray.tune
from _common import Disk, console, load, middle, number, percent, print_place, table

import raytuner
from raytuner.cluster import local
from raytuner.journal import read
from raytuner.schedulers import ASHAScheduler

CPUS = 2
RUNGS = 6  # of ASHA in (c), at 1, 2, 4, ... steps; a trial is done at 2**RUNGS


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything. ``ray_*``: for Ray Tune."""

    trials: int = 300
    ray_trials: int = 40
    reports: int = 5_000  # of each of two trials
    ray_reports: int = 200
    climbers: int = 30  # trials of (c)
    rounds: int = 3  # of (a) and (b)


QUICK = Sizes(trials=60, ray_trials=20, reports=2_000, ray_reports=60, climbers=10, rounds=1)


def speaker(say: Callable[[Mapping[str, Any]], None], reports: int) -> Callable[[Mapping[str, Any]], None]:
    """A training function that only reports: when it began to, and how long it had to wait in the report before.

    Its loss falls with time, so that ASHA lets everyone go on, unless two reach a rung at the same moment.
    """

    def train(config: Mapping[str, Any]) -> None:
        waited = 0.0
        for _ in range(reports):
            now = time.time()
            begun = time.perf_counter()
            say({"loss": config["x"] - now, "said_at": now, "waited_s": waited})
            waited = time.perf_counter() - begun

    return train


@dataclass(frozen=True, slots=True)
class Run:
    """One study. ``said_at``: of each report; ``waited_s``: in the report before; ``last_at``: when all was done."""

    wall_s: float  # of fit()
    step: np.ndarray
    said_at: np.ndarray
    waited_s: np.ndarray
    last_at: float

    @property
    def from_first_to_last_s(self) -> float:
        return float(self.said_at.max() - self.said_at.min())

    @property
    def trials_per_s(self) -> float:
        return (len(self.said_at) - 1) / self.from_first_to_last_s

    @property
    def around_s(self) -> float:
        """What `fit` takes before the first report and after the last."""
        return self.wall_s - self.from_first_to_last_s

    @property
    def reports_per_s(self) -> float:
        return len(self.said_at) / (self.last_at - float(self.said_at.min()))

    def report_ms(self, share: float, steps: Sequence[int] | None = None) -> float:
        """A quantile of how long reports took: those of certain steps, or all whose successor told."""
        told = self.step > 1 if steps is None else np.isin(self.step - 1, steps)
        return float(1e3 * np.quantile(self.waited_s[told], share))


def run_raytuner(folder: Path, name: str, trials: int, reports: int, most: int = CPUS, asha: bool = False) -> Run:
    """Run a study and read it back from the disk; raises unless every report is there, once.

    ``most``: trials at a time. With ``asha``, ``reports`` is how many a trial makes at most.
    """
    scheduler = ASHAScheduler(max_t=2**RUNGS, grace_period=1, reduction_factor=2) if asha else None
    tuner = raytuner.Tuner(
        speaker(raytuner.report, reports),
        param_space={"x": raytuner.uniform(0.0, 1e-9)},
        tune_config=raytuner.TuneConfig(
            metric="loss", mode="min", num_samples=trials, scheduler=scheduler, max_concurrent_trials=most, seed=0
        ),
        run_config=raytuner.RunConfig(name=name, storage_path=folder, verbose=0),
    )
    begun = time.perf_counter()
    tuner.fit()
    wall_s = time.perf_counter() - begun
    rows = read(folder / name).reports
    seen: dict[int, list[int]] = {trial: [] for trial in range(trials)}
    for trial, step in zip(rows["trial"].to_pylist(), rows["step"].to_pylist(), strict=True):
        seen[trial].append(step)
    for trial, steps in seen.items():
        assert sorted(steps) == list(range(1, len(steps) + 1)), f"reports of trial {trial} are missing, or twice there"
        assert asha or len(steps) == reports, f"trial {trial} made {reports} reports, {len(steps)} are on the disk"
    last_at = max(path.stat().st_mtime for path in (folder / name / "reports").iterdir())
    return Run(wall_s, *(rows[each].to_numpy() for each in ("step", "said_at", "waited_s")), last_at)


def run_ray(folder: Path, name: str, trials: int, reports: int) -> Run:
    """The same with Ray Tune."""
    tuner = ray.tune.Tuner(
        speaker(ray.tune.report, reports),
        param_space={"x": ray.tune.uniform(0.0, 1e-9)},
        tune_config=ray.tune.TuneConfig(metric="loss", mode="min", num_samples=trials, reuse_actors=True),
        run_config=ray.tune.RunConfig(name=name, storage_path=str(folder), verbose=0),
    )
    begun = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):  # it prints a table even so
        results = tuner.fit()
    wall_s = time.perf_counter() - begun
    frames = [result.metrics_dataframe for result in results]
    found = sum(len(frame) for frame in frames)
    assert found == trials * reports, f"Ray Tune knows of {found} of {trials * reports} reports"
    step, said_at, waited_s = (
        np.concatenate([frame[each].to_numpy() for frame in frames])
        for each in ("training_iteration", "said_at", "waited_s")
    )
    return Run(wall_s, step, said_at, waited_s, float(said_at.max()))


class Bare:
    """The floors, measured again between the runs: a busy machine has them change."""

    def __init__(self, folder: Path) -> None:
        self._actor = ray.remote(num_cpus=0)(_Echo).remote()
        self._disk = Disk(folder)
        self._calls_s: list[float] = []
        self.calls: list[float] = []  # per second, one figure of each measurement
        self.fsyncs: list[float] = []

    def measure(self) -> None:
        config = {"x": 0.5}
        ray.get([self._actor.call.remote(config) for _ in range(20)])
        first, begun = len(self._calls_s), time.perf_counter()
        while time.perf_counter() - begun < 0.5:
            called = time.perf_counter()
            ray.get(self._actor.call.remote(config))
            self._calls_s.append(time.perf_counter() - called)
        self.calls.append((len(self._calls_s) - first) / (time.perf_counter() - begun))
        self.fsyncs.append(self._disk.sync_for(0.3))

    def decision_ms(self, share: float) -> float:
        """The least that a durable decision takes: an actor call and two fsyncs, each at this quantile."""
        return float(1e3 * (np.quantile(self._calls_s, share) + 2 * np.quantile(self._disk.took_s, share)))


class _Echo:
    def call(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        return config


def measure(sizes: Sizes, folder: Path) -> None:
    bare = Bare(folder)
    one, ray_one, many, ray_many = ([] for _ in range(4))
    for place in range(sizes.rounds):
        bare.measure()
        one.append(run_raytuner(folder, f"a-{place}", sizes.trials, 1))
        bare.measure()
        ray_one.append(run_ray(folder, f"a-ray-{place}", sizes.ray_trials, 1))
        bare.measure()
        many.append(run_raytuner(folder, f"b-{place}", 2, sizes.reports))
        bare.measure()
        ray_many.append(run_ray(folder, f"b-ray-{place}", 2, sizes.ray_reports))
    bare.measure()
    climbs = {
        most: run_raytuner(folder, f"c-{most}", sizes.climbers, 2**RUNGS, most=most, asha=True) for most in (1, 2)
    }
    bare.measure()

    def row(name: str, ours: Sequence[Run], theirs: Sequence[Run], figure: Callable[[Run], float]) -> None:
        shown.add_row(name, *beside([figure(run) for run in ours], [figure(run) for run in theirs]))

    def walls(ours: Sequence[Run], theirs: Sequence[Run]) -> None:
        """Without a ratio: the numbers of trials and reports differ."""
        shown.add_row("fit(), wall s", *(middle([run.wall_s for run in runs]) for runs in (ours, theirs)), "")

    shown = table("Overhead, on 2 logical CPUs; ratio: raytuner / ray.tune", "", "raytuner", "ray.tune", "ratio")
    shown.add_row("(a) trials of one report", f"{sizes.trials:,} trials", f"{sizes.ray_trials:,} trials", "")
    row("trials/s, first report to last", one, ray_one, lambda run: run.trials_per_s)
    rates = [median([run.trials_per_s for run in runs]) for runs in (one, ray_one)]
    calls, fsyncs = median(bare.calls), median(bare.fsyncs)
    shown.add_row("... of bare sequential actor calls/s", *(percent(rate, calls) for rate in rates), "")
    shown.add_row("... of this disk's fsyncs/s", percent(rates[0], fsyncs), "no fsync", "")
    walls(one, ray_one)
    row("fit() without first report to last, s", one, ray_one, lambda run: run.around_s)
    shown.add_section()
    shown.add_row("(b) reports", f"2 x {sizes.reports:,}", f"2 x {sizes.ray_reports:,}", "")
    row("reports/s", many, ray_many, lambda run: run.reports_per_s)
    rows = f"{len(many[0].step):,}, all", f"{len(ray_many[0].step):,}, no fsync"
    shown.add_row("rows on the disk afterwards", *rows, "")
    walls(many, ray_many)
    row("a report() takes, us, p50", many, ray_many, lambda run: 1e3 * run.report_ms(0.5))
    shown.add_section()
    shown.add_row(
        "(c) from a rung to the next step", f"ASHA, {sizes.climbers} trials", "reports of (b)", "ratio to the floor"
    )
    rungs = [2**rung for rung in range(RUNGS)]
    for most, run in climbs.items():
        for share in (0.5, 0.95):
            ours, floor = run.report_ms(share, rungs), bare.decision_ms(share)
            shown.add_row(
                f"ms, {most} at a time, p{100 * share:.0f}",
                number(ours),
                middle([each.report_ms(share) for each in ray_many]) if most == 2 else "",
                f"{number(ours / floor)} ({number(floor)} ms)",
            )
    console.print(shown)
    console.print(f"Bare sequential actor calls/s: {middle(bare.calls)}. Fsyncs/s of this disk: {middle(bare.fsyncs)}.")
    console.print(
        f"Medians (least to most) of {sizes.rounds} round{'s' * (sizes.rounds > 1)}, and of {len(bare.calls)} "
        "measurements of the bare ones between the runs. Floor of (c): an actor call and two fsyncs, at the same "
        f"quantile. Afterwards: {load()}."
    )


def beside(ours: Sequence[float], theirs: Sequence[float]) -> list[str]:
    """Two figures, each of some rounds, and the ratio of their medians."""
    return [middle(ours), middle(theirs), number(median(ours) / median(theirs))]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer trials and reports")
    parser.add_argument("--folder", type=Path, help="on the disk to be measured (default: that of temporary files)")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    os.environ |= {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    # "local": never one that already runs on this machine.
    local.start(num_cpus=CPUS, logging_level=logging.ERROR)
    try:
        with tempfile.TemporaryDirectory(dir=args.folder, prefix="raytuner-bench-") as name:
            print_place(Path(name), ("raytuner", "ray", "pyarrow", "numpy"))
            measure(QUICK if args.quick else Sizes(), Path(name))
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()
