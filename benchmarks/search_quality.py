"""What searchers find for the money: regret over time on problems whose optimum is known, on a virtual clock.

    python benchmarks/search_quality.py [--quick] [--optimisers a,b] [--problems p,q] [--seeds 20] [--workers 1,8]
                                        [--budget 50] [--rig DIR] [--out FILE]

An optimiser is ``SEARCHER+SCHEDULER`` of this project, as in ``--list``. Jobs are those of its own `Study`; each costs
virtual time, and the budget, of all workers together, is so many full evaluations of mean cost. The incumbent is the
best value seen at the highest resource so far; its regret is taken without noise and normalised: 0 at the optimum, 1 at
the median of random configurations.

``--rig``: a folder with a package ``hpoharness``, of whose problems (surrogates of real training runs) and peers the
names may be given too; each peer needs its library in this environment. ``--out``: each run is a line of JSON there,
and runs that are there already are not made again: so peers that cannot live together can be run in turn. ``--known``:
files of runs that were made before; docs/search.jsonl.gz has all that docs/search.md is made of, which took hours.
``--write PART``: puts the tables into that part of docs/search.md; ``--draw``: draws docs/search.svg.

Printed: mean rank and mean regret after 10, 30 and 100 % of the budget, and, paired over problems and seeds, by how
much the first optimiser's regret is lower than each other's, with a 95 % interval (bootstrap over runs).
"""

from __future__ import annotations

import argparse
import copy
import gzip
import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

for _threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_threads, "1")  # before NumPy: one run, one core

import numpy as np  # noqa: E402
import numpy.typing as npt  # noqa: E402
from _common import Rows, markdown, print_rows, write  # noqa: E402
from _problems import PROBLEMS  # noqa: E402
from _search import SCHEDULERS, SEARCHERS, searching, simulate  # noqa: E402
from scipy import stats  # noqa: E402

SHARES = (0.1, 0.3, 1.0)
DOCS = Path(__file__).parent.parent / "docs"
CURVE = tuple(round(0.05 * place, 2) for place in range(1, 21))
PEERS = ("optuna", "hyperopt", "hpbandster", "dehb", "smac", "syne-tune")
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
    own = optimiser.partition("+")[0] in SEARCHERS
    names = ["raytuner"] if own else [name for name in PEERS if name.partition("-")[0] in optimiser]
    found = {}
    for name in names:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def lines(path: Path) -> Sequence[str]:
    """Runs that were made."""
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix == ".gz" else data).decode().splitlines()


def run(
    cells: Sequence[Cell], budget: float, out: Path | None, known: Sequence[Path] = ()
) -> tuple[dict[Cell, Sequence[float]], dict[str, str]]:
    """Regrets after each of `CURVE`, and the libraries that were used with their versions."""
    found: dict[Cell, Sequence[float]] = {}
    libraries: dict[str, str] = {}
    wanted, seeds = ({cell[place] for cell in cells} for place in (1, 2))
    for line in [line for path in (*known, *([out] if out and out.exists() else [])) for line in lines(path)]:
        row = json.loads(line)
        if row["budget"] == budget and row["optimiser"] in wanted and row["seed"] in seeds:
            found[row["problem"], row["optimiser"], row["seed"], row["workers"]] = row["curve"]
            libraries |= row["versions"]
    for place, cell in enumerate(cells):
        if cell in found:
            continue
        name, optimiser, seed, workers = cell
        problem = problem_of(name)
        trace = simulate(problem, optimiser_of(optimiser, problem, seed, workers), budget, workers, seed)
        curve = found[cell] = [round(trace.at(share), 7) for share in CURVE]
        libraries |= versions(optimiser)
        row = dict(zip(("problem", "optimiser", "seed", "workers"), cell, strict=True))
        row |= {"budget": budget, "curve": curve, "evaluations": trace.evaluations, "versions": versions(optimiser)}
        if out:
            with out.open("a") as file:
                file.write(json.dumps(row) + "\n")
        if sys.stderr.isatty():
            print(f"\r{place + 1} of {len(cells)}: {optimiser} on {name}    ", end="", file=sys.stderr)
    return found, libraries


@dataclass(frozen=True)
class Comparison:
    """Runs of several optimisers on the same problems and seeds."""

    workers: int
    optimisers: Sequence[str]
    runs: Sequence[tuple[str, int]]  # problem and seed
    curves: npt.NDArray[np.float64]  # (runs, optimisers, CURVE)

    @classmethod
    def of(
        cls, found: Mapping[Cell, Sequence[float]], problems: Sequence[str], optimisers: Sequence[str], workers: int
    ) -> Self:
        """Of the runs that all optimisers have."""
        seeds = sorted({seed for _, _, seed, of in found if of == workers})
        runs = [
            (problem, seed)
            for problem in problems
            for seed in seeds
            if all((problem, each, seed, workers) in found for each in optimisers)
        ]
        if not runs:
            raise SystemExit(f"no problem and seed has been run with all of {', '.join(optimisers)}")
        curves = np.array([[found[problem, each, seed, workers] for each in optimisers] for problem, seed in runs])
        return cls(workers, optimisers, runs, curves)

    @property
    def title(self) -> str:
        problems = len({problem for problem, _ in self.runs})
        return f"{self.workers} worker{'s' * (self.workers > 1)}, {problems} problems, {len(self.runs)} runs each"

    @property
    def regret(self) -> npt.NDArray[np.float64]:
        """After each of `SHARES`: (runs, optimisers, 3)."""
        return self.curves[:, :, [CURVE.index(share) for share in SHARES]]

    def ranks(self) -> Rows:
        regret = self.regret
        ranks = np.stack([stats.rankdata(regret[:, :, i], axis=1) for i in range(len(SHARES))], axis=2).mean(axis=0)
        rows = [["", *(f"{kind} {share:.0%}" for kind in ("rank", "regret") for share in SHARES)]]
        for row in np.argsort(ranks.mean(axis=1), kind="stable"):
            figures = [
                *(f"{each:.2f}" for each in ranks[row]),
                *(f"{each:.3f}" for each in regret[:, row].mean(axis=0)),
            ]
            rows.append([self.optimisers[row], *figures])
        return rows

    def paired(self) -> Rows:
        """By how much the first optimiser's regret is below each other's, their ratio, and the p of a paired test."""
        rng, regret = np.random.default_rng(0), self.regret
        rows = [["", *(f"after {share:.0%}" for share in SHARES), "ratio at 30%, 100%", "p at 100%"]]
        for row, name in list(enumerate(self.optimisers))[1:]:
            lower = regret[:, 0] - regret[:, row]  # (runs, shares)
            again = lower[rng.integers(len(lower), size=(4000, len(lower)))].mean(axis=1)
            low, high = np.quantile(again, [0.025, 0.975], axis=0)
            ratio = regret[:, 0].mean(axis=0) / regret[:, row].mean(axis=0)
            differ = lower[:, -1].any()
            p = float(stats.wilcoxon(lower[:, -1]).pvalue) if differ else 1.0
            figures = [
                f"{m:+.3f} ({a:+.3f} to {b:+.3f})" for m, a, b in zip(lower.mean(axis=0), low, high, strict=True)
            ]
            rows.append([name, *figures, f"{ratio[1]:.2f}, {ratio[2]:.2f}", f"{p:.2g}"])
        return rows

    def by_problem(self) -> Rows:
        """Regret at the end."""
        names = list(dict.fromkeys(problem for problem, _ in self.runs))
        rows = [["", *names]]
        for row, optimiser in enumerate(self.optimisers):
            means = [
                np.mean([self.curves[i, row, -1] for i, (of, _) in enumerate(self.runs) if of == n]) for n in names
            ]
            rows.append([optimiser, *(f"{mean:.3f}" for mean in means)])
        return rows


def show(
    found: Mapping[Cell, Sequence[float]], problems: Sequence[str], optimisers: Sequence[str], workers: int
) -> Comparison:
    """Print what was found."""
    comparison = Comparison.of(found, problems, optimisers, workers)
    print_rows(comparison.title, comparison.ranks())
    print_rows(f"Regret of {optimisers[0]} less that of, with a 95 % interval; Wilcoxon's p", comparison.paired())
    print_rows("Regret after 100 %", comparison.by_problem())
    return comparison


def draw(path: Path, comparisons: Sequence[Comparison]) -> None:
    """Mean regret over the budget."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "raytuner", "svg.fonttype": "none", "font.size": 9})
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(comparisons), figsize=(5.5 * len(comparisons), 4.2), constrained_layout=True)
    for axis, comparison in zip(np.atleast_1d(axes), comparisons, strict=True):
        for row, name in enumerate(comparison.optimisers):
            ours = name.partition("+")[0] in SEARCHERS
            style = {"linewidth": 2.0} if ours else {"linewidth": 1.0, "linestyle": "--"}
            axis.plot([100 * share for share in CURVE], comparison.curves[:, row].mean(axis=0), label=name, **style)
        axis.set(xlabel="% of the budget", ylabel="mean regret", yscale="log", title=comparison.title)
    np.atleast_1d(axes)[-1].legend(frameon=False, fontsize=7)
    figure.savefig(path, metadata={"Date": None})


def tables(comparisons: Sequence[Comparison], libraries: Mapping[str, str]) -> str:
    """What stands in a part of docs/search.md."""
    parts = []
    for each in comparisons:
        parts.append(f"{each.title}:\n\n{markdown(each.ranks())}")
        parts.append(f"Regret of `{each.optimisers[0]}` less that of:\n\n{markdown(each.paired())}")
        parts.append(f"Regret after all of the budget:\n\n{markdown(each.by_problem())}")
    named = ", ".join(f"{name} {number}" for name, number in sorted(libraries.items()))
    return "\n\n".join([f"With {named}.", *parts])


def add_options(parser: argparse.ArgumentParser, seeds: int, workers: str) -> None:
    """What is run, and where that is kept."""
    parser.add_argument("--problems", default=",".join(PROBLEMS))
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--workers", default=workers)
    parser.add_argument("--budget", type=float, default=50.0)
    parser.add_argument("--rig", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--known", type=Path, nargs="*", default=[])


def compare(given: argparse.Namespace, optimisers: Sequence[str]) -> tuple[list[Comparison], dict[str, str]]:
    """Run what the options say, and print it; with the libraries that were used."""
    if given.rig and str(given.rig) not in sys.path:
        sys.path.insert(0, str(given.rig))
    problems = given.problems.split(",")
    workers = [int(each) for each in given.workers.split(",")]
    cells = [
        (problem, optimiser, seed, of)
        for seed in range(given.seeds)
        for of in workers
        for problem in problems
        for optimiser in optimisers
    ]
    found, libraries = run(cells, given.budget, given.out, given.known)
    return [show(found, problems, optimisers, of) for of in workers], libraries


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="two problems, two seeds, a small budget, one worker")
    parser.add_argument("--list", action="store_true", help="the names of problems, searchers and schedulers")
    parser.add_argument("--optimisers", default=",".join(DEFAULT))
    add_options(parser, seeds=20, workers="1,8")
    parser.add_argument("--write", metavar="PART", help="of docs/search.md")
    parser.add_argument("--draw", action="store_true", help="docs/search.svg")
    given = parser.parse_args()
    if given.list:
        print("problems:", *PROBLEMS, "\nsearchers:", *SEARCHERS, "\nschedulers:", *SCHEDULERS)
        return
    if given.quick:
        given.problems, given.optimisers, given.seeds = "branin,networks", "bohb+hyperband,kde+hyperband,random+full", 2
        given.workers, given.budget = "1", 15.0
    comparisons, libraries = compare(given, given.optimisers.split(","))
    if given.write:
        write(DOCS / "search.md", {given.write: tables(comparisons, libraries)})
    if given.draw:
        draw(DOCS / "search.svg", comparisons)


if __name__ == "__main__":
    main()
