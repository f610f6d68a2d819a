"""What searchers find for the money: regret over time on problems whose optimum is known, on a virtual clock.

    python benchmarks/search_quality.py [--quick] [--optimisers a,b] [--problems p,q] [--seeds 20] [--workers 1,8]
                                        [--budget 50] [--rig DIR] [--out FILE]

An optimiser is ``SEARCHER+SCHEDULER`` of this project, as in ``--list``. Jobs are those of its own `Study`; each costs
virtual time, and the budget, of all workers together, is so many full evaluations of mean cost. The incumbent is the
best value seen at the highest resource so far; its regret is taken without noise and normalised: 0 at the optimum, 1 at
the median of random configurations.

``--rig``: a folder with a package ``hpoharness``, of whose problems (surrogates of real training runs) and peers the
names may be given too; each peer needs its library in this environment. ``--out``: each run is a line of JSON there,
and runs that are there already are not made again: so peers that cannot live together can be run in turn.

Printed: mean rank and mean regret after 10, 30 and 100 % of the budget, and, paired over problems and seeds, by how
much the first optimiser's regret is lower than each other's, with a 95 % interval (bootstrap over runs).
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

for _threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_threads, "1")  # before NumPy: one run, one core

import numpy as np  # noqa: E402
from _common import console, table  # noqa: E402
from _problems import PROBLEMS  # noqa: E402
from _search import SCHEDULERS, SEARCHERS, searching, simulate  # noqa: E402
from scipy import stats  # noqa: E402

SHARES = (0.1, 0.3, 1.0)
CURVE = tuple(round(0.05 * place, 2) for place in range(1, 21))
PEERS = ("optuna", "hyperopt", "hpbandster", "dehb", "smac", "syne-tune", "ConfigSpace")
DEFAULT = ("bohb+hyperband", "bohb+promotion", "bohb+asha", "kde+hyperband", "random+hyperband", "random+full")

Cell = tuple[str, str, int, int]  # problem, optimiser, seed, workers


@cache
def problem_of(name: str) -> Any:
    if name in PROBLEMS:
        return PROBLEMS[name]
    from hpoharness.problems import get_problem

    problem = get_problem(name)
    problem.load_refs()
    return problem


def optimiser_of(name: str, problem: Any, seed: int, workers: int) -> Any:
    if name.partition("+")[0] in SEARCHERS:
        return searching(name, problem, seed, workers)
    from hpoharness.adapters import REGISTRY

    return REGISTRY[name](_theirs(problem), seed, workers)


def _theirs(problem: Any) -> Any:
    """A problem with its space in the rig's type, which peers' adapters ask more of."""
    if problem.name not in PROBLEMS:
        return problem
    from hpoharness.space import Param, Space

    theirs = copy.copy(problem)
    theirs.space = Space([Param(**asdict(param)) for param in problem.space.params])
    theirs.r_min = problem.rungs[0]
    return theirs


def versions(optimiser: str) -> dict[str, str]:
    """Of the libraries that an optimiser may be of, as far as this environment has them."""
    names = ("raytuner",) if optimiser.partition("+")[0] in SEARCHERS else PEERS
    found = {}
    for name in names:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def run(cells: Sequence[Cell], budget: float, out: Path | None) -> dict[Cell, Sequence[float]]:
    """Regrets after each of `SHARES`."""
    found: dict[Cell, Sequence[float]] = {}
    for line in out.read_text().splitlines() if out and out.exists() else ():
        row = json.loads(line)
        if row["budget"] == budget:
            cell = row["problem"], row["optimiser"], row["seed"], row["workers"]
            found[cell] = [row["curve"][CURVE.index(share)] for share in SHARES]
    for place, cell in enumerate(cells):
        if cell in found:
            continue
        name, optimiser, seed, workers = cell
        problem = problem_of(name)
        trace = simulate(problem, optimiser_of(optimiser, problem, seed, workers), budget, workers, seed)
        curve = [trace.at(share) for share in CURVE]
        found[cell] = [curve[CURVE.index(share)] for share in SHARES]
        row = dict(zip(("problem", "optimiser", "seed", "workers"), cell, strict=True))
        row |= {"budget": budget, "curve": curve, "evaluations": trace.evaluations, "versions": versions(optimiser)}
        if out:
            with out.open("a") as file:
                file.write(json.dumps(row) + "\n")
        if sys.stderr.isatty():
            print(f"\r{place + 1} of {len(cells)}: {optimiser} on {name}    ", end="", file=sys.stderr)
    return found


def show(found: dict[Cell, Sequence[float]], problems: Sequence[str], optimisers: Sequence[str], workers: int) -> None:
    seeds = sorted({seed for _, _, seed, of in found if of == workers})
    runs = [
        (problem, seed)
        for problem in problems
        for seed in seeds
        if all((problem, each, seed, workers) in found for each in optimisers)
    ]
    regret = np.array([[found[problem, each, seed, workers] for each in optimisers] for problem, seed in runs])
    ranks = np.stack([stats.rankdata(regret[:, :, share], axis=1) for share in range(len(SHARES))], axis=2).mean(axis=0)
    title = f"{workers} worker{'s' * (workers > 1)}: {len(problems)} problems, {len(runs)} runs each"
    heads = [f"{kind} {share:.0%}" for kind in ("rank", "regret") for share in SHARES]
    shown = table(title, "", *heads)
    for row in np.argsort(ranks[:, -1], kind="stable"):
        shown.add_row(
            optimisers[row],
            *(f"{each:.2f}" for each in ranks[row]),
            *(f"{each:.3f}" for each in regret[:, row].mean(0)),
        )
    console.print(shown)
    paired = table(f"Regret of {optimisers[0]} less that of", "", *(f"after {share:.0%}" for share in SHARES))
    rng = np.random.default_rng(0)
    for row, name in list(enumerate(optimisers))[1:]:
        lower = regret[:, 0] - regret[:, row]  # (runs, shares)
        again = lower[rng.integers(len(runs), size=(4000, len(runs)))].mean(axis=1)
        low, high = np.quantile(again, [0.025, 0.975], axis=0)
        paired.add_row(
            name, *(f"{m:+.3f} ({a:+.3f} to {b:+.3f})" for m, a, b in zip(lower.mean(axis=0), low, high, strict=True))
        )
    console.print(paired)
    each = table(f"Regret after {SHARES[-1]:.0%}, {workers} worker{'s' * (workers > 1)}", "", *optimisers)
    for problem in problems:
        rows = [place for place, (of, _) in enumerate(runs) if of == problem]
        each.add_row(problem, *(f"{value:.3f}" for value in regret[rows, :, -1].mean(axis=0)))
    console.print(each)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="two problems, two seeds, a small budget, one worker")
    parser.add_argument("--list", action="store_true", help="the names of problems, searchers and schedulers")
    parser.add_argument("--optimisers", default=",".join(DEFAULT))
    parser.add_argument("--problems", default=",".join(PROBLEMS))
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--workers", default="1,8")
    parser.add_argument("--budget", type=float, default=50.0)
    parser.add_argument("--rig", type=Path)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.list:
        print("problems:", *PROBLEMS, "\nsearchers:", *SEARCHERS, "\nschedulers:", *SCHEDULERS)
        return
    if given.rig:
        sys.path.insert(0, str(given.rig))
    if given.quick:
        given.problems, given.optimisers, given.seeds = "branin,networks", "bohb+hyperband,kde+hyperband,random+full", 2
        given.workers, given.budget = "1", 15.0
    problems, optimisers = given.problems.split(","), given.optimisers.split(",")
    workers = [int(each) for each in given.workers.split(",")]
    cells = [
        (problem, optimiser, seed, of)
        for seed in range(given.seeds)
        for of in workers
        for problem in problems
        for optimiser in optimisers
    ]
    found = run(cells, given.budget, given.out)
    for of in workers:
        show(found, problems, optimisers, of)


if __name__ == "__main__":
    main()
