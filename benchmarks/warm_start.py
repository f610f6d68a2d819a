"""What old studies are worth to a new one: how many trials a warm start saves, and what a misleading one costs.

    python benchmarks/warm_start.py [--quick] [--seeds 20] [--trials 30] [--tasks a,b] [--starts similar,negated]
                                    [--rig DIR] [--out FILE]

A task is tuned trial by trial, each at full resource, by `BOHB()` from nothing and from old studies of 50 trials each.
Tasks are formulas of `_problems.py`; those similar to one have each number shifted by a normal deviate of 0.05 of its
range, and another scale. With ``--rig``, a folder with a package ``hpoharness``, they are LCBench's data sets; similar
to one are those whose values of 300 random configurations have a rank correlation of at least 0.6 with its own.

    cold        no old study
    similar     one of a similar task
    three       three of similar tasks
    partial     one of a similar task that did not record one of the parameters
    negated     one of the same task whose values were negated: its best is the worst there is
    shuffled    one of the same task whose values were shuffled
    mixed       one of a similar task and one negated

The level is the median over seeds of what the cold study found in ``--trials`` trials. Printed: how many trials it
takes to reach it (at most twice ``--trials`` are made), median and quartiles over seeds; and how much worse than the
cold study of the same seed the best value is after half and all of the trials, in units of the way from the median of
the first six trials to the level.

``--out``: each run is a line of JSON there, and runs that are there already are not made again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

for _threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_threads, "1")  # before NumPy: one run, one core

import numpy as np  # noqa: E402
from _common import console, table  # noqa: E402
from _problems import PROBLEMS  # noqa: E402
from _search import flat, space_of  # noqa: E402
from scipy import stats  # noqa: E402

from raytuner.actions import Proposal  # noqa: E402
from raytuner.history import History, Row  # noqa: E402
from raytuner.searchers import BOHB  # noqa: E402
from raytuner.space import Space  # noqa: E402
from raytuner.trial import Config, Observation  # noqa: E402

FORMULAS = ("hartmann6-clean", "branin", "networks", "countingones-4+4")
LCBENCH = ("167168", "189906", "34539", "126025")
STARTS = ("cold", "similar", "three", "partial", "negated", "shuffled", "mixed")
OLD = 50


@dataclass(frozen=True)
class Task:
    """``value``: to minimise."""

    name: str
    space: Space
    value: Callable[[Config], float]


def study(task: Task, seed: int, trials: int, old: Sequence[History] = (), level: float = -math.inf) -> Any:
    """Values in the order of trials, the configurations, and the seconds that asking took; once there are ``trials``
    it ends where a value reaches the level, at the latest after twice as many."""
    searcher = BOHB(warm_start=old).build(task.space, seed)
    values: list[float] = []
    configs: list[Config] = []
    took = 0.0
    while len(values) < trials or (level > -math.inf and min(values) > level and len(values) < 2 * trials):
        begun = time.perf_counter()
        answer = searcher.ask(len(values), 1, ())
        took += time.perf_counter() - begun
        assert isinstance(answer, Proposal)
        value = task.value(answer.config)
        searcher.tell(Observation(len(values), answer.config, 1, 1.0, 1, value))
        values.append(value)
        configs.append(answer.config)
    return values, configs, took


# ------------------------------------------------------------------------------------------------------- the tasks


def formula(name: str, shift: int = 0) -> Task:
    """A problem, or (``shift`` above 0) one that is similar to it."""
    problem = PROBLEMS[name]
    space = space_of(problem.space.params)
    rng = np.random.default_rng([shift, len(name)])
    by = 0.05 * rng.standard_normal(len(space)) * (space.categories == 0) * (shift > 0)
    scale = math.exp(rng.normal()) if shift else 1.0

    def value(config: Config) -> float:
        x, active = space.encode(config)
        moved = space.decode(np.where(active, np.clip(x + by, 0.0, 1.0), x)) if shift else config
        return scale * problem.true(problem.space.prune(flat(moved)))

    return Task(f"{name}~{shift}" if shift else name, space, value)


def lcbench(name: str) -> Task:
    from hpoharness.problems import get_problem

    problem = get_problem(f"lcbench-{name}")
    space = space_of(problem.space.params)
    return Task(name, space, lambda config: float(problem.true(problem.space.prune(flat(config)))))


@dataclass(frozen=True)
class Tasks:
    """Targets by name, and tasks that are similar to one, others for another seed."""

    names: Sequence[str]
    all_of_rig: tuple[str, ...] = ()
    """Its data sets; none: the tasks are made of formulas."""

    @property
    def rig(self) -> bool:
        return bool(self.all_of_rig)

    def target(self, name: str) -> Task:
        return _task(name, 0, self.rig)

    def similar(self, name: str, seed: int) -> list[Task]:
        if self.rig:
            others = _alike(name, self.all_of_rig, 0.6)
            drawn = np.random.default_rng([seed, 7]).permutation(len(others))[:3]
            return [_task(others[i], 0, True) for i in drawn]
        return [_task(name, 1 + 3 * seed + i, False) for i in range(3)]


@cache
def _task(name: str, shift: int, rig: bool) -> Task:
    return lcbench(name) if rig else formula(name, shift)


@cache
def _alike(name: str, names: tuple[str, ...], least: float) -> list[str]:
    """The other data sets whose values of 300 random configurations have a rank correlation of at least so much."""
    space = _task(name, 0, True).space
    configs = [space.sample(np.random.default_rng([9, i])) for i in range(300)]
    values = {each: [_task(each, 0, True).value(config) for config in configs] for each in names}
    return [each for each in names if each != name and stats.spearmanr(values[name], values[each])[0] >= least]


def tasks_of_rig(rig: Path) -> tuple[str, ...]:
    """The names of its data sets."""
    encoding = json.loads((rig / "data" / "lcbench" / "encoding.json").read_text())
    return tuple(name for name in encoding["OpenML_task_id"] if name.isdigit())


# --------------------------------------------------------------------------------------------------- the old studies


@cache
def _old(task: Task, seed: int) -> History:
    values, configs, _ = study(task, 1000 + seed, OLD)
    rows = (Row(i, 1, v, c) for i, (v, c) in enumerate(zip(values, configs, strict=True)))
    return History(task.name, tuple(rows))


def old_studies(start: str, tasks: Tasks, name: str, seed: int) -> list[History]:
    similar = tasks.similar(name, seed)
    match start:
        case "cold":
            return []
        case "similar":
            return [_old(similar[0], seed)]
        case "three":
            return [_old(each, seed) for each in similar]
        case "partial":
            old = _old(similar[0], seed)
            lost = min(old.rows[0].config)
            rows = (replace(row, config={k: v for k, v in row.config.items() if k != lost}) for row in old.rows)
            return [replace(old, rows=tuple(rows))]
        case "negated":
            return [_turned(tasks.target(name), seed)]
        case "shuffled":
            old = _old(tasks.target(name), seed)
            order = np.random.default_rng(seed).permutation(len(old.rows))
            rows = (replace(row, value=old.rows[i].value) for row, i in zip(old.rows, order, strict=True))
            return [replace(old, rows=tuple(rows))]
        case "mixed":
            return [_old(similar[0], seed), _turned(tasks.target(name), seed)]
    raise ValueError(f"a start must be one of {', '.join(STARTS)}; got {start!r}")


def _turned(task: Task, seed: int) -> History:
    """The study of one who looked for the worst."""
    return _old(_negative(task), seed)


@cache
def _negative(task: Task) -> Task:
    return Task(f"{task.name}, negated", task.space, lambda config: -task.value(config))


# --------------------------------------------------------------------------------------------------------- to measure

Cell = tuple[str, str, int]  # task, start, seed


def run(tasks: Tasks, starts: Sequence[str], seeds: int, trials: int, out: Path | None) -> dict[Cell, Any]:
    found: dict[Cell, Any] = {}
    for line in out.read_text().splitlines() if out and out.exists() else ():
        row = json.loads(line)
        if row["trials"] == trials:
            found[row["task"], row["start"], row["seed"]] = row
    for name in tasks.names:
        task, level = tasks.target(name), -math.inf
        for start in starts:
            for seed in range(seeds):
                if (name, start, seed) in found:
                    continue
                most = 2 * trials if start == "cold" else trials
                values, _, took = study(task, seed, most, old_studies(start, tasks, name, seed), level)
                row = {"task": name, "start": start, "seed": seed, "trials": trials, "values": values}
                row["ask_s"] = took / len(values)
                found[name, start, seed] = row
                if out:
                    with out.open("a") as file:
                        file.write(json.dumps(row) + "\n")
            if start == "cold":
                level = level_of(found, name, seeds, trials)
    return found


def level_of(found: dict[Cell, Any], name: str, seeds: int, trials: int) -> float:
    return float(np.median([min(found[name, "cold", seed]["values"][:trials]) for seed in range(seeds)]))


def show(found: dict[Cell, Any], tasks: Tasks, starts: Sequence[str], seeds: int, trials: int) -> None:
    shown = table(
        f"Trials until what a cold study finds in {trials} is reached: median of {seeds} seeds (quartiles)",
        "",
        *tasks.names,
        "all",
        "ms per ask",
    )
    paired = table(
        "Best value less the cold study's of the same seed (1: from a random one to the level)",
        "",
        f"after {trials // 2}",
        f"after {trials}",
    )
    for start in starts:
        cells, every, ms = [], [], []
        lower: list[list[float]] = [[], []]
        for name in tasks.names:
            level = level_of(found, name, seeds, trials)
            first = firsts(found, name, start, seeds, level, trials)
            cells.append(f"{np.median(first):.0f} ({np.quantile(first, 0.25):.0f} to {np.quantile(first, 0.75):.0f})")
            every += first
            ms += [1e3 * found[name, start, seed]["ask_s"] for seed in range(seeds)]
            for seed in range(seeds):
                cold, own = (found[name, each, seed]["values"] for each in ("cold", start))
                unit = float(np.median(cold[:6])) - level
                for place, after in enumerate((trials // 2, trials)):
                    lower[place].append((min(own[:after]) - min(cold[:after])) / unit)
        shown.add_row(start, *cells, f"{np.median(every):.1f}", f"{np.median(ms):.0f}")
        paired.add_row(start, *(f"{np.mean(each):+.3f} (median {np.median(each):+.3f})" for each in lower))
    console.print(shown)
    console.print(paired)


def firsts(found: dict[Cell, Any], name: str, start: str, seeds: int, level: float, trials: int) -> list[float]:
    """For each seed the number of the first trial that reached the level; of one that never did one more than could
    be made."""
    first = []
    for seed in range(seeds):
        values = found[name, start, seed]["values"]
        reached = [place + 1 for place, value in enumerate(values) if value <= level]
        first.append(float(reached[0] if reached else 2 * trials + 1))
    return first


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="one task, three seeds, fewer trials")
    parser.add_argument("--tasks")
    parser.add_argument("--starts", default=",".join(STARTS))
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--rig", type=Path)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.rig:
        sys.path.insert(0, str(given.rig))
    if given.quick:
        given.tasks, given.starts, given.seeds, given.trials = "branin", "cold,similar,negated", 3, 16
    names = given.tasks.split(",") if given.tasks else LCBENCH if given.rig else FORMULAS
    tasks, starts = Tasks(names, tasks_of_rig(given.rig) if given.rig else ()), given.starts.split(",")
    if starts[0] != "cold":
        starts = ["cold", *starts]
    found = run(tasks, starts, given.seeds, given.trials, given.out)
    show(found, tasks, starts, given.seeds, given.trials)


if __name__ == "__main__":
    main()
