"""What a study costs on a real Ray, beside Ray Tune, bare actor calls and this disk: ratios from one run.

    python benchmarks/overhead.py [--quick] [--profile]

Two logical CPUs, a Ray of its own on loopback, training functions that do nothing but report. Ray Tune runs as it
comes (its loggers, FIFO, random search), with ``reuse_actors=True``, which raytuner's actors do by themselves.

(a) Trials of one report. Trials per second from the first report to the last, by the clock of the function that makes
    them, so that starting up is left out; the wall time of ``fit()`` has it.
(b) Four trials that report without pause. Reports per second from the first report to the last row written to the
    durable table (a few milliseconds before its fsync returns); for Ray Tune, which never calls fsync, to the last
    report made. Afterwards all rows must be in the table.
(c) A sweep: 20 trials of up to 27 steps with a checkpoint at each, BOHB with Hyperband, beside Ray's ``TuneBOHB`` with
    ``HyperBandForBOHB``. These need hpbandster and ConfigSpace, and run in an environment of their own
    (`_bohb_ray.py`, ``make peers``); the ratio is of the wall times of ``fit()``, its processes' cold starts included.
    Ray Tune's default is ``reuse_actors=False``: then each start and each resume of a trial waits for a new process.
(d) From a rung to the next step: how long the report that reaches a rung takes, from its call to its return, warm.
    raytuner writes what was said, asks the scheduler (ASHA; here it resumes always), writes the decision, and lets the
    function go on that waits in its warm actor. In Ray Tune each report waits for its controller; its reports of (b).

``bar``: what (a) to (c) are meant to reach. What (c) takes before the first report is the start of processes, which
import Ray, on both sides. With ``--profile``, where the driver's time goes in (a).

What it does not show: several machines, large checkpoints, searchers that think (`control_plane.py` has those).
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import io
import json
import logging
import os
import pstats
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import _toy
import numpy as np
import ray
import ray.tune
from _common import Disk, console, load, middle, number, percent, print_place, table

import raytuner
from raytuner.cluster import local
from raytuner.record.journal import read
from raytuner.schedulers import ASHAScheduler, HyperBandScheduler
from raytuner.searchers import BOHB

CPUS = 2
REPORTERS = 4  # trials of (b), each with half a CPU
TOY_TRIALS, TOY_STEPS = 20, 27  # of (c)
RUNGS = 6  # of ASHA in (d), at 1, 2, 4, ... steps; a trial is done at 2**RUNGS
HERE = Path(__file__).parent
PEERS = HERE.parent / ".venv" / "bench" / "bin" / "python"


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything. ``ray_*``: for Ray Tune."""

    trials: int = 1_000
    ray_trials: int = 300
    reports: int = 25_000  # of each trial of (b)
    ray_reports: int = 1_000
    climbers: int = 30  # trials of (d)
    rounds: int = 3  # of (a) to (c)
    fresh: bool = True  # whether (c) is also run with Ray Tune's default, which takes minutes


QUICK = Sizes(trials=300, ray_trials=60, reports=10_000, ray_reports=100, climbers=10, rounds=1, fresh=False)


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


def run_raytuner(
    folder: Path, name: str, trials: int, reports: int, most: int = CPUS, cpu: float = 1.0, asha: bool = False
) -> Run:
    """Run a study and read it back from the disk; raises unless every report is there, once.

    ``most``: trials at a time, of ``cpu`` each. With ``asha``, ``reports`` is how many a trial makes at most.
    """
    scheduler = ASHAScheduler(max_t=2**RUNGS, grace_period=1, reduction_factor=2) if asha else None
    tuner = raytuner.Tuner(
        raytuner.with_resources(speaker(raytuner.report, reports), {"cpu": cpu}),
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


def run_ray(folder: Path, name: str, trials: int, reports: int, cpu: float = 1.0) -> Run:
    """The same with Ray Tune."""
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(speaker(ray.tune.report, reports), {"cpu": cpu}),
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


@dataclass(frozen=True, slots=True)
class Toy:
    """A sweep of (c): seconds that ``fit()`` takes, those from the first report to the last, and steps trained."""

    wall_s: float
    span_s: float
    steps: int


def toy_raytuner(folder: Path, name: str, seed: int) -> Toy:
    """(c) with raytuner."""
    tuner = raytuner.Tuner(
        _toy.trainer(raytuner, TOY_STEPS),
        param_space=_toy.space(raytuner),
        tune_config=raytuner.TuneConfig(
            metric="loss",
            mode="min",
            num_samples=TOY_TRIALS,
            search_alg=BOHB(model="kde"),
            scheduler=HyperBandScheduler(max_t=TOY_STEPS),
            seed=seed,
        ),
        run_config=raytuner.RunConfig(
            name=name, storage_path=folder, verbose=0, runtime_env={"env_vars": {"PYTHONPATH": str(HERE)}}
        ),
    )
    begun = time.perf_counter()
    results = tuner.fit()
    wall_s = time.perf_counter() - begun
    assert (len(results), results.num_errors) == (TOY_TRIALS, 0)
    assert results.get_best_result().metrics["training_iteration"] == TOY_STEPS
    said_at = results.to_arrow("reports")["said_at"].to_numpy()
    return Toy(wall_s, float(said_at.max() - said_at.min()), len(said_at))


def toy_ray(folder: Path, seed: int, *more: str) -> Toy | None:
    """The same with Ray Tune, in its own environment and on its own Ray; None if that environment is not there."""
    if not PEERS.exists():
        return None
    command = [str(PEERS), str(HERE / "_bohb_ray.py"), "--seed", str(seed), "--folder", str(folder), *more]
    command += ["--trials", str(TOY_TRIALS), "--max-t", str(TOY_STEPS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    found = json.loads(done.stdout)
    assert (found["trials"], found["errors"]) == (TOY_TRIALS, 0), found
    return Toy(found["wall_s"], found["span_s"], found["steps"])


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
    toys: list[Toy] = []
    ray_toys: list[Toy | None] = []
    half = CPUS / REPORTERS
    for place in range(sizes.rounds):
        bare.measure()
        one.append(run_raytuner(folder, f"a-{place}", sizes.trials, 1))
        bare.measure()
        ray_one.append(run_ray(folder, f"a-ray-{place}", sizes.ray_trials, 1))
        bare.measure()
        many.append(run_raytuner(folder, f"b-{place}", REPORTERS, sizes.reports, REPORTERS, half))
        bare.measure()
        ray_many.append(run_ray(folder, f"b-ray-{place}", REPORTERS, sizes.ray_reports, half))
        bare.measure()
        toys.append(toy_raytuner(folder, f"c-{place}", place))
        ray_toys.append(toy_ray(folder, place))
    fresh = toy_ray(folder, 0, "--fresh-actors") if sizes.fresh else None
    bare.measure()
    climbs = {
        most: run_raytuner(folder, f"d-{most}", sizes.climbers, 2**RUNGS, most=most, asha=True) for most in (1, 2)
    }
    bare.measure()
    calls, fsyncs = median(bare.calls), median(bare.fsyncs)

    def row(
        name: str, ours: Sequence[Run], theirs: Sequence[Run], figure: Callable[[Run], float], bar: str = ""
    ) -> None:
        shown.add_row(name, *beside([figure(run) for run in ours], [figure(run) for run in theirs]), bar)

    def walls(ours: Sequence[Run], theirs: Sequence[Run]) -> None:
        """Without a ratio: the numbers of trials and reports differ."""
        shown.add_row("fit(), wall s", *(middle([run.wall_s for run in runs]) for runs in (ours, theirs)), "", "")

    shown = table("Overhead, on 2 logical CPUs; ratio: raytuner / ray.tune", "", "raytuner", "ray.tune", "ratio", "bar")
    shown.add_row("(a) trials of one report", f"{sizes.trials:,} trials", f"{sizes.ray_trials:,} trials", "", "")
    row("trials/s, first report to last", one, ray_one, lambda run: run.trials_per_s, "25")
    rates = [median([run.trials_per_s for run in runs]) for runs in (one, ray_one)]
    shown.add_row("... of bare sequential actor calls/s", *(percent(rate, calls) for rate in rates), "", "30 %")
    shown.add_row("... of this disk's fsyncs/s", percent(rates[0], fsyncs), "no fsync", "", "")
    walls(one, ray_one)
    row("fit() without first report to last, s", one, ray_one, lambda run: run.around_s)
    shown.add_section()
    heads = (f"{REPORTERS} x {reports:,}" for reports in (sizes.reports, sizes.ray_reports))
    shown.add_row("(b) reports", *heads, "", "")
    row("reports/s", many, ray_many, lambda run: run.reports_per_s, "100")
    rows = f"{len(many[0].step):,}, all", f"{len(ray_many[0].step):,}, no fsync"
    shown.add_row("rows on the disk afterwards", *rows, "", "all")
    walls(many, ray_many)
    row("a report() takes, us, p50", many, ray_many, lambda run: 1e3 * run.report_ms(0.5))
    shown.add_section()
    shown.add_row("(c) BOHB with Hyperband", f"{TOY_TRIALS} trials, to {TOY_STEPS}", "the same", "times faster", "")
    for name, theirs in (
        ("", [toy for toy in ray_toys if toy]),
        ("; its default: new actors", [fresh] if fresh else []),
    ):
        for figure, bar in (("fit(), wall s", "15"), ("first report to last, s", "")):
            ours = [toy.wall_s if bar else toy.span_s for toy in toys]
            others = [toy.wall_s if bar else toy.span_s for toy in theirs]
            shown_of = [middle(others), number(median(others) / median(ours))] if others else ["not measured", ""]
            shown.add_row(figure + name, middle(ours), *shown_of, bar)
    both = [middle([toy.steps for toy in of if toy]) if any(of) else "" for of in (toys, ray_toys)]
    shown.add_row("steps trained", *both, "", "")
    shown.add_section()
    shown.add_row(
        "(d) from a rung to the next step", f"ASHA, {sizes.climbers} trials", "reports of (b)", "ratio to the floor", ""
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
                "",
            )
    console.print(shown)
    console.print(f"Bare sequential actor calls/s: {middle(bare.calls)}. Fsyncs/s of this disk: {middle(bare.fsyncs)}.")
    console.print(
        f"Medians (least to most) of {sizes.rounds} round{'s' * (sizes.rounds > 1)}, and of {len(bare.calls)} "
        "measurements of the bare ones between the runs. Floor of (d): an actor call and two fsyncs, at the same "
        f"quantile. Afterwards: {load()}."
    )


def profile(sizes: Sizes, folder: Path) -> None:
    """Where the driver's own time goes in (a); the profiler slows it down by about a half."""
    profiler = cProfile.Profile()
    profiler.enable()
    run = run_raytuner(folder, "profile", sizes.trials, 1)
    profiler.disable()
    out = io.StringIO()
    pstats.Stats(profiler, stream=out).sort_stats("tottime").print_stats(25)
    lines = [line.replace(str(HERE.parent) + "/", "") for line in out.getvalue().splitlines() if line.strip()]
    console.print(f"(a) under the profiler: {number(run.trials_per_s)} trials/s")
    console.print("\n".join(line[:130] for line in lines), markup=False)


def beside(ours: Sequence[float], theirs: Sequence[float]) -> list[str]:
    """Two figures, each of some rounds, and the ratio of their medians."""
    return [middle(ours), middle(theirs), number(median(ours) / median(theirs))]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer trials and reports")
    parser.add_argument("--profile", action="store_true", help="also show where the driver's time goes")
    parser.add_argument("--folder", type=Path, help="on the disk to be measured (default: that of temporary files)")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    os.environ |= {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    # "local": never one that already runs on this machine.
    local.start(num_cpus=CPUS, logging_level=logging.ERROR)
    try:
        with tempfile.TemporaryDirectory(dir=args.folder, prefix="raytuner-bench-") as name:
            print_place(Path(name), ("raytuner", "ray", "pyarrow", "numpy"))
            sizes = QUICK if args.quick else Sizes()
            measure(sizes, Path(name))
            if args.profile:
                profile(sizes, Path(name))
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()
