"""What each scheduler costs and what it finds, and how far more workers carry ASHA: the real machines, simulated.

    python benchmarks/schedulers.py [--quick] [--write] [--profile]

No Ray, and nothing here depends on how fast this machine is: every figure is a function of the seeds. Trials are made
up (`raytuner.curves`); a step takes 45 to 75 virtual seconds, depending on the configuration and on nothing that
matters to its quality. Starting, saving and loading take no time. The searcher is random search: with one seed every
scheduler, on however many workers, is given the same configurations.

(a) For each shape of curve, number of workers and scheduler: slot-hours spent, hours until the study is over, and
    regret: how much worse the trial it ends with would be at its full budget, without noise, than the best of all its
    configurations. 0 is perfect; a configuration drawn at random has 0.4 to 0.7.
(b) ASHA: how much of the slots' time is taken while there are trials to start, and how long it takes to have trained
    the best of all configurations to its end. The latter cannot be less than that one trial takes: beside it stands
    what one would expect if that were all that caps it, (time on one worker) / W + one trial.

``--write`` puts the tables into docs/schedulers.md and draws docs/schedulers.svg. ``--profile`` shows where the time of
one simulation goes instead.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from _common import Rows, console, markdown, print_place, print_rows, table, write

from raytuner import TuneConfig, choice, loguniform, randint, simulate, uniform
from raytuner.curves import SHAPES, Shape, chance
from raytuner.plan import Forecast
from raytuner.protocols import SchedulingPolicy
from raytuner.schedulers import ASHAScheduler, FIFOScheduler, HyperBandScheduler, MedianStoppingRule
from raytuner.space import Space

SPACE = Space(
    {
        "lr": loguniform(1e-5, 1.0),
        "width": randint(4, 64),
        "dropout": uniform(0.0, 0.8),
        "batch": choice([32, 64, 128]),
        "optimizer": choice([{"name": "sgd", "momentum": uniform(0.0, 0.99)}, {"name": "adam"}]),
    }
)
STEPS = 81
ETA = 3
SCHEDULERS: Mapping[str, SchedulingPolicy] = {
    "FIFO": FIFOScheduler(),
    "median stopping": MedianStoppingRule(time_attr="training_iteration", grace_period=3),
    "Hyperband": HyperBandScheduler(max_t=STEPS, reduction_factor=ETA),
    "ASHA, stopping": ASHAScheduler(max_t=STEPS, reduction_factor=ETA),
    "ASHA, promotion": ASHAScheduler(max_t=STEPS, reduction_factor=ETA, promotion=True),
}
STOPPING = "ASHA, stopping"
DOCS = Path(__file__).parent.parent / "docs"


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything. ``many``: trials of (b)."""

    trials: int = 2048
    workers: tuple[int, ...] = (1, 16, 256, 1024)
    shapes: tuple[str, ...] = tuple(SHAPES)
    seeds: int = 2
    many: int = 16384
    climb: tuple[int, ...] = (1, 16, 64, 256, 1024)
    climbs: int = 3


QUICK = Sizes(
    trials=256,
    workers=(1, 16, 256),
    shapes=("power", "crossing", "noisy"),
    seeds=1,
    many=2048,
    climb=(1, 64, 1024),
    climbs=1,
)


# --------------------------------------------------------------------------------------------------------- one study


def seconds(config: Mapping[str, Any]) -> float:
    """How long a step takes."""
    return 45.0 + 30.0 * chance(int(config["lr"] * 1e12))


def study(shape: str, scheduler: str, workers: int, seed: int, trials: int) -> tuple[Forecast, Shape]:
    curve = Shape(shape, SPACE, STEPS, seed=seed)
    config = TuneConfig(
        metric="loss", mode="min", num_samples=trials, scheduler=SCHEDULERS[scheduler], search_alg=None, seed=seed
    )
    return simulate(SPACE, curve=curve, workers=workers, tune_config=config, seconds_per_step=seconds), curve


@dataclass(frozen=True, slots=True)
class Cost:
    """What a study of (a) took and found."""

    slot_hours: float
    wall_hours: float
    regret: float


def compare(cell: tuple[str, str, int, int], trials: int) -> Cost:
    """One study of (a): shape, scheduler, workers, seed."""
    found, curve = study(*cell, trials)
    assert found.best is not None
    finals = {trial: curve.value(config) for trial, config in found.configs.items()}
    best = min(value for value in finals.values() if value == value)
    return Cost(found.slot_hours, found.wall_s / 3600, finals[found.best.trial] - best)


@dataclass(frozen=True, slots=True)
class Climb:
    """What a study of (b) took: seconds until its best configuration was trained to its end, and until it was over."""

    target_s: float
    trial_s: float  # what that one takes by itself
    wall_s: float
    utilisation: float


def climb(cell: tuple[str, int, int], trials: int) -> Climb:
    """One study of (b): scheduler, workers, seed."""
    scheduler, workers, seed = cell
    found, curve = study("power", scheduler, workers, seed, trials)
    best = min(found.configs, key=lambda trial: curve.value(found.configs[trial]))
    (at_s,) = [each.at_s for each in found.incumbents if each.trial == best and each.step == STEPS]
    trial_s = STEPS * seconds(found.configs[best])
    return Climb(at_s, trial_s, found.wall_s, found.utilisation_until_last_start)


# ------------------------------------------------------------------------------------------------------------ (a)


def run_comparison(sizes: Sizes, pool: ProcessPoolExecutor) -> dict[tuple[str, str, int], Cost]:
    """The mean over seeds, by shape, scheduler and workers."""
    cells = [
        (shape, scheduler, workers, seed)
        for shape in sizes.shapes
        for scheduler in SCHEDULERS
        for workers in sizes.workers
        for seed in range(sizes.seeds)
    ]
    costs = dict(zip(cells, pool.map(partial(compare, trials=sizes.trials), cells), strict=True))

    def over_seeds(*cell: Any) -> Cost:
        of = [costs[(*cell, seed)] for seed in range(sizes.seeds)]
        return Cost(*(mean(getattr(each, name) for each in of) for name in ("slot_hours", "wall_hours", "regret")))

    return {cell[:3]: over_seeds(*cell[:3]) for cell in cells}


def print_comparison(sizes: Sizes, costs: Mapping[tuple[str, str, int], Cost]) -> None:
    for shape in sizes.shapes:
        columns = [name for workers in sizes.workers for name in (f"W={workers:,}: slot-h", "hours", "regret")]
        made = table(f"{shape}: {sizes.trials:,} trials of {STEPS} steps on W workers", "", *columns)
        for scheduler in SCHEDULERS:
            cells = []
            for workers in sizes.workers:
                cost = costs[shape, scheduler, workers]
                cells += [f"{cost.slot_hours:,.0f}", f"{cost.wall_hours:,.1f}", f"{cost.regret:.3f}"]
            made.add_row(scheduler, *cells)
        console.print(made)


def summaries(sizes: Sizes, costs: Mapping[tuple[str, str, int], Cost]) -> Iterator[tuple[str, Rows]]:
    """The three tables of docs/schedulers.md: titles, and rows of which the first is the header."""
    few, many = sizes.workers[1], sizes.workers[-1]

    def by_shape(cell: Callable[[str, str, int], str]) -> Rows:
        rows = [["", *sizes.shapes]]
        for scheduler in SCHEDULERS:
            pairs = [[cell(shape, scheduler, workers) for workers in (few, many)] for shape in sizes.shapes]
            rows.append([scheduler, *(" / ".join(pair) for pair in pairs)])
        return rows

    regret = by_shape(lambda *cell: f"{costs[cell].regret:.3f}")
    yield f"What is found: regret, on {few} / {many:,} workers", regret
    share = by_shape(lambda *cell: f"{costs[cell].slot_hours / costs[cell[0], 'FIFO', cell[2]].slot_hours:.1%}")
    yield f"What it costs: slot-hours as a share of FIFO's, on {few} / {many:,} workers", share
    hours = [["", *(f"{workers:,}" for workers in sizes.workers)]]
    for scheduler in SCHEDULERS:
        of = [mean(costs[shape, scheduler, workers].wall_hours for shape in sizes.shapes) for workers in sizes.workers]
        hours.append([scheduler, *(f"{each:,.1f}" for each in of)])
    yield "How long it takes: hours, mean over the shapes, by workers", hours


# ------------------------------------------------------------------------------------------------------------ (b)


def run_climbs(sizes: Sizes, pool: ProcessPoolExecutor) -> dict[int, list[Climb]]:
    """ASHA's by workers, one for each seed."""
    cells = [(STOPPING, workers, seed) for workers in sizes.climb for seed in range(sizes.climbs)]
    found = dict(zip(cells, pool.map(partial(climb, trials=sizes.many), cells), strict=True))
    return {workers: [found[STOPPING, workers, seed] for seed in range(sizes.climbs)] for workers in sizes.climb}


def climb_rows(climbs: Mapping[int, Sequence[Climb]]) -> Rows:
    """Time to the target against workers; means over seeds."""
    alone = mean(each.target_s for each in climbs[1])
    whole = mean(each.wall_s for each in climbs[1])
    trial = mean(each.trial_s for each in climbs[1])
    header = ["workers", "hours to the best", "speed-up", "efficiency", "capped by one trial"]
    rows = [[*header, "hours in all", "efficiency", "slots taken until the last start"]]
    for workers, of in climbs.items():
        target, wall = mean(each.target_s for each in of), mean(each.wall_s for each in of)
        rows.append(
            [
                f"{workers:,}",
                f"{target / 3600:,.2f}",
                f"{alone / target:,.1f}",
                f"{alone / target / workers:.0%}",
                f"{alone / (alone / workers + (trial if workers > 1 else 0)) / workers:.0%}",
                f"{wall / 3600:,.2f}",
                f"{whole / wall / workers:.0%}",
                f"{min(each.utilisation for each in of):.2%}",
            ]
        )
    return rows


def climb_notes(sizes: Sizes, climbs: Mapping[int, Sequence[Climb]]) -> list[str]:
    trial = mean(each.trial_s for each in climbs[1])
    notes = [
        f"{sizes.many:,} configurations, mean of {sizes.climbs} seeds. The best one takes {trial / 3600:.2f} h by "
        "itself, on however many workers."
    ]
    for workers, of in climbs.items():
        if workers == 1024:
            taken = min(each.utilisation for each in of)
            notes.append(f"Slots taken until the last start on 1,024 workers: {taken:.2%} (bar: 99.5 %).")
        if workers == 64:
            alone, target = (mean(each.target_s for each in climbs[number]) for number in (1, 64))
            notes.append(f"Parallel efficiency on 64 workers: {alone / target / 64:.0%} (bar: 70 %).")
    return notes


# ------------------------------------------------------------------------------------------------------- to the docs


def draw(
    path: Path, sizes: Sizes, costs: Mapping[tuple[str, str, int], Cost], climbs: Mapping[int, Sequence[Climb]]
) -> None:
    """Cost against regret, and time to the best against workers."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "raytuner", "svg.fonttype": "none", "font.size": 9})
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), constrained_layout=True)
    many = sizes.workers[-1]
    for scheduler, marker in zip(SCHEDULERS, "sDo^v", strict=True):
        of = [costs[shape, scheduler, many] for shape in sizes.shapes]
        left.scatter(
            [each.slot_hours for each in of], [each.regret for each in of], label=scheduler, marker=marker, s=28
        )
    left.set(
        xscale="log", xlabel="slot-hours", ylabel="regret", title=f"{many:,} workers: a point for each shape of curve"
    )
    left.xaxis.set_minor_formatter("")
    left.legend(frameon=False)
    workers = list(climbs)
    target = [mean(each.target_s for each in climbs[number]) / 3600 for number in workers]
    trial = mean(each.trial_s for each in climbs[1]) / 3600
    right.plot(workers, target, "o-", label="ASHA, stopping")
    right.plot(workers, [target[0] / number for number in workers], "--", color="grey", label="ideal")
    right.axhline(trial, color="black", linewidth=0.8, label="one trial")
    right.set(xscale="log", yscale="log", xlabel="workers", ylabel="hours", title="Until the best is found and trained")
    right.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})


# -------------------------------------------------------------------------------------------------------------- all


def profile(sizes: Sizes) -> None:
    profiler = cProfile.Profile()
    with profiler:
        study("power", STOPPING, 1024, 0, sizes.trials)
    pstats.Stats(profiler).sort_stats("tottime").print_stats(25)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="smaller: less than a minute")
    parser.add_argument("--write", action="store_true", help="write docs/schedulers.md and docs/schedulers.svg")
    parser.add_argument("--profile", action="store_true", help="where the time of one simulation goes")
    asked = parser.parse_args()
    sizes = QUICK if asked.quick else Sizes()
    if asked.profile:
        profile(sizes)
        return
    print_place(DOCS, ["raytuner", "numpy"])
    begun = time.perf_counter()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with ProcessPoolExecutor(cores) as pool:
        costs = run_comparison(sizes, pool)
        print_comparison(sizes, costs)
        parts = {}
        for name, (title, rows) in zip(("regret", "cost", "time"), summaries(sizes, costs), strict=True):
            print_rows(title, rows)
            parts[name] = (
                f"{title}; {sizes.trials:,} trials of {STEPS} steps, mean of {sizes.seeds} seeds:\n\n{markdown(rows)}"
            )
        climbs = run_climbs(sizes, pool)
    rows, notes = climb_rows(climbs), climb_notes(sizes, climbs)
    print_rows("ASHA (stopping): until the best of all configurations is found and trained, and until all are", rows)
    console.print("\n".join(notes))
    console.print(f"took {time.perf_counter() - begun:.0f} s")
    if asked.write:
        parts["workers"] = "\n".join(notes) + "\n\n" + markdown(rows)
        write(DOCS / "schedulers.md", parts)
        draw(DOCS / "schedulers.svg", sizes, costs, climbs)


if __name__ == "__main__":
    main()
