"""What a checkpoint costs the step that makes it: published before `report` returns, or beside the steps that follow.

    python benchmarks/checkpoints.py [--quick] [--folder DIR]

One trial, in this process, makes a checkpoint of one file at every step; between them it waits as a function waits for
its GPU. Both ways are run by turns, a few rounds each, through the same session that trial actors use; only how many
checkpoints may be under way differs: none, or `raytuner.uploads.MOST`. By the training function's clock:

report: how long the call of `report` takes, the median. What is left beside is the copy of the files, which the user
    may change when `report` returns.
step: a step with its report, on average, the last of which waits until everything is published: what it costs the
    trial in the end. ``bar``: the step without any checkpoint.

What it does not show: what the thread takes from the cores, where training needs all of them; object stores.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

from _common import console, load, middle, number, print_place, table

from raytuner.checkpoints import Checkpoint
from raytuner.events import Ended, Failed
from raytuner.session import Rules, Runner, report
from raytuner.trial import END, Lease, Trial
from raytuner.uploads import MOST


@dataclass
class Times:
    """Of one way: seconds of each call of `report`, and of a step in each round."""

    report_s: list[float] = field(default_factory=list)
    step_s: list[float] = field(default_factory=list)


def run(folder: Path, size: int, steps: int, step_s: float, most: int, times: Times) -> None:
    """One trial of so many steps, each saved."""
    weights = os.urandom(size)
    mine = folder / "mine"
    mine.mkdir()

    def train(config: Any) -> None:
        for _ in range(steps):
            time.sleep(step_s)
            (mine / "weights").write_bytes(weights)
            begun = time.perf_counter()
            report({"loss": 1.0}, checkpoint=Checkpoint(mine))
            times.report_s.append(time.perf_counter() - begun)

    runner = Runner(train, Rules(folder / "study" / "checkpoints", {}), {})
    runner.uploads.most = most
    begun = time.perf_counter()
    runner.leases.add([Lease(Trial(0, {}), 1, END, None, 0, 0, 0.0, 0)])
    thread = threading.Thread(target=serve, args=[runner])
    thread.start()
    ends: list[Ended | Failed] = []
    while not ends:
        ends = [item for item in runner.outbox.take(60) if isinstance(item, Ended | Failed)]
    thread.join()
    assert isinstance(ends[0], Ended), ends
    times.step_s.append((time.perf_counter() - begun) / steps)


def serve(runner: Runner) -> None:
    """Run one lease."""
    if (lease := runner.leases.next()) is not None:
        runner.run(lease)


def measure(folder: Path, sizes: Mapping[int, float], rounds: int, steps: int) -> None:
    shown = table(
        f"a checkpoint at every step; {load()}",
        *("size", "bar, ms", "report waits, ms", "report, ms", "step waits, ms", "step, ms", "times faster"),
    )
    names = (folder / str(number) for number in count())
    for size, step_s in sizes.items():
        waits, goes_on = Times(), Times()
        for _ in range(rounds):
            for most, times in ((0, waits), (MOST, goes_on)):
                where = next(names)
                where.mkdir()
                run(where, size, steps, step_s, most, times)
                shutil.rmtree(where)
        shown.add_row(
            f"{number(size / 2**20)} MiB",
            number(1000 * step_s),
            *(number(1000 * median(times.report_s)) for times in (waits, goes_on)),
            *(middle([1000 * each for each in times.step_s]) for times in (waits, goes_on)),
            number(median(waits.step_s) / median(goes_on.step_s)),
        )
    console.print(shown)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps and rounds")
    parser.add_argument("--folder", type=Path, help="on the disk to be measured (default: that of temporary files)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="raytuner-bench-") as name:
        print_place(Path(name), ("raytuner",))
        rounds, steps = (2, 4) if args.quick else (5, 8)
        measure(Path(name), {2**14: 0.1, 2**20: 0.1, 10 * 2**20: 0.25, 100 * 2**20: 2.0}, rounds, steps)


if __name__ == "__main__":
    main()
