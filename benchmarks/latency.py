"""What a suggestion costs: seconds of one `ask` with so many outcomes known, beside peers in the same run.

    python benchmarks/latency.py [--quick] [--searchers bohb,kde] [--n 100,1000,10000] [--asks 30] [--batch 64]
                                 [--rig DIR --peer LIB=PYTHON ...]

The space has eight dimensions: four floats (two of them on a log scale), two integers, two choices. Outcomes of random
configurations, at one rung as under FIFO and at four rungs as under Hyperband, are told first; then a configuration is
asked for and its outcome told, over and over, so that every `ask` finds something new. ``--batch``: what so many cost,
asked for while nothing new is heard, beside one. One thread.

``--rig``: a folder with ``latency.py``, which does the same to another library (at one rung); ``--peer`` says which,
and the interpreter that has it. May be given several times.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

THREADS = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
for _name, _count in THREADS.items():
    os.environ.setdefault(_name, _count)  # before NumPy

import numpy as np  # noqa: E402
from _common import console, print_place, table  # noqa: E402
from _search import SEARCHERS  # noqa: E402

import raytuner as tune  # noqa: E402
from raytuner.actions import Proposal  # noqa: E402
from raytuner.protocols import Searcher  # noqa: E402
from raytuner.space import Space  # noqa: E402
from raytuner.trial import Config, Observation, Pending  # noqa: E402

SPACE = Space(
    {
        "lr": tune.loguniform(1e-5, 1e-1),
        "weight_decay": tune.loguniform(1e-6, 1e-1),
        "momentum": tune.uniform(0.5, 0.99),
        "dropout": tune.uniform(0.0, 0.7),
        "batch_size": tune.lograndint(16, 513),
        "layers": tune.randint(1, 9),
        "activation": tune.choice(["relu", "tanh", "gelu"]),
        "optimiser": tune.choice(["sgd", "adam", "lamb", "lion"]),
    }
)
BEST = np.array([0.5, 0.4, 0.2, 0.5, 0.6, 0.7, 0.4, 0.3])


class Source:
    """Outcomes of configurations: a bowl with noise."""

    def __init__(self, rungs: tuple[int, ...]) -> None:
        self._rng = np.random.default_rng(0)
        self._rungs = rungs

    def tell(self, searcher: Searcher, trial: int, config: Config | None = None) -> int:
        """A trial's outcomes, of a random configuration if none is given: fewer reach a higher rung. How many."""
        config = SPACE.sample(self._rng) if config is None else config
        value = float(((SPACE.encode(config)[0] - BEST) ** 2).sum()) + 0.05 * self._rng.standard_normal()
        for told, rung in enumerate(self._rungs, start=1):  # noqa: B007
            ends = rung == self._rungs[-1]
            searcher.tell(Observation(trial, config, rung, float(rung), rung, value + 1.0 / rung, ended=ends))
            if self._rng.random() < 2 / 3:
                break
        return told

    def fill(self, searcher: Searcher, outcomes: int) -> int:
        """Tell so many outcomes, or the few more of the last trial; how many trials that were."""
        told = trial = 0
        while told < outcomes:
            told += self.tell(searcher, trial)
            trial += 1
        return trial


def ask(searcher: Searcher, trial: int, pending: tuple[Pending, ...] = ()) -> tuple[Config, float]:
    begun = time.perf_counter()
    answer = searcher.ask(trial, 1, pending)
    took = time.perf_counter() - begun
    assert isinstance(answer, Proposal)
    return answer.config, took


def ours(name: str, n: int, asks: int, rungs: tuple[int, ...]) -> tuple[list[float], float]:
    """Seconds of each ask by the model, and the mean of a tell."""
    searcher, source = SEARCHERS[name].build(SPACE, 0), Source(rungs)
    begun = time.perf_counter()
    trial = source.fill(searcher, n)
    tell = (time.perf_counter() - begun) / n
    took = []
    while len(took) < asks:
        config, seconds = ask(searcher, trial)
        source.tell(searcher, trial, config)
        took.append(seconds)
        trial += 1
    return took, tell


def batch(name: str, n: int, size: int) -> tuple[float, float]:
    """Seconds of one ask, and of ``size`` of them while nothing new is heard."""
    one, many = [], []
    for again in range(5):
        for count, found in ((1, one), (size, many)):
            searcher = SEARCHERS[name].build(SPACE, again)
            trial = Source((1,)).fill(searcher, n)
            ask(searcher, trial)  # parameters are fitted
            Source((1,)).tell(searcher, trial)
            pending: tuple[Pending, ...] = ()
            total = 0.0
            for each in range(trial + 1, trial + 1 + count):
                config, seconds = ask(searcher, each, pending)
                total += seconds
                pending = (*pending, Pending(each, config, 0, 1))
            found.append(total)
    return float(np.median(one)), float(np.median(many))


def peer(rig: Path, library: str, python: str, sizes: list[int], asks: int) -> dict[int, tuple[float, float]]:
    """Of another library: number of outcomes -> median and maximum, in seconds."""
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as out:
        command = [python, "latency.py", "--lib", library, "--n", ",".join(map(str, sizes)), "--k", str(asks)]
        subprocess.run(
            [*command, "--out", out.name],
            cwd=rig,
            env=os.environ | THREADS,
            check=False,
            timeout=1800,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        rows = [json.loads(line) for line in Path(out.name).read_text().splitlines()]
    return {row["n"]: (row["ask_median"], row["ask_max"]) for row in rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="few asks, and no more than 1,000 outcomes")
    parser.add_argument("--searchers", default="bohb,kde")
    parser.add_argument("--n", default="100,1000,10000")
    parser.add_argument("--asks", type=int, default=30)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rig", type=Path)
    parser.add_argument("--peer", action="append", default=[], metavar="LIB=PYTHON")
    given = parser.parse_args()
    if given.quick:
        given.n, given.asks, given.searchers = "100,1000", 5, "bohb"
    sizes = [int(n) for n in given.n.split(",")]
    print_place(Path.cwd(), ["raytuner", "numpy", "scipy"])
    shown = table("Milliseconds of an ask: median, 95th percentile", "", *(f"{n:,} outcomes" for n in sizes), "a tell")
    for name in given.searchers.split(","):
        for label, rungs in (("one rung", (1,)), ("rungs 1, 3, 9, 27", (1, 3, 9, 27))):
            cells, tell = [], 0.0
            for n in sizes:
                took, tell = ours(name, n, given.asks, rungs)
                cells.append(f"{1e3 * np.median(took):.1f}, {1e3 * np.quantile(took, 0.95):.1f}")
            shown.add_row(f"{name}, {label}", *cells, f"{1e3 * tell:.2f}")
    for each in given.peer:
        library, _, python = each.partition("=")
        found = peer(given.rig, library, python, sizes, given.asks)
        cells = [f"{1e3 * found[n][0]:.1f}, max {1e3 * found[n][1]:.1f}" if n in found else "-" for n in sizes]
        shown.add_row(library, *cells, "")
    console.print(shown)
    shown = table(f"Milliseconds of {given.batch} asks while nothing new is heard", "", "one", "all", "ratio")
    for name in given.searchers.split(","):
        for n in sizes[:2]:
            one, many = batch(name, n, given.batch)
            shown.add_row(f"{name}, {n:,} outcomes", f"{1e3 * one:.1f}", f"{1e3 * many:.1f}", f"{many / one:.1f}")
    console.print(shown)


if __name__ == "__main__":
    main()
