"""Ray Tune's BOHB and Hyperband on the toy of `_toy.py`; prints one line of JSON and nothing else to stdout.

    .venv/bench/bin/python benchmarks/_bohb_ray.py [--trials 20] [--max-t 27] [--folder FOLDER]

The other half of a benchmark, which starts it as a process: ``TuneBOHB`` needs hpbandster and ConfigSpace, which belong
into an environment of their own (`peers.txt`; raytuner is not in it). Ray Tune runs as it comes, on a Ray of its own,
with two logical CPUs, on loopback, but with ``reuse_actors=True``, which is not its default: ``--fresh-actors`` is, and
each start and each resume of a trial then waits for a new process. ``--at-once`` limits the trials as Ray's own example
of BOHB does; by default only the CPUs do.

It ends by itself: with status 0 and the line, or with another, after ``--limit-s`` at the latest; its Ray ends with it.
(Killed by SIGKILL on Linux, it leaves its folder, and perhaps helpers of Ray that end by themselves, minutes later.)

Steps are counted in each trial's progress.csv, and must be 1, 2, 3, ... there. ``rows`` is how many of them Ray Tune's
results know. It may be fewer: when a trial goes on, an older copy of its result.json may overwrite it.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import os
import shutil
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import _toy

# Ray reads the first when it is imported: keep to 127.0.0.1 (see raytuner.cluster.local).
os.environ |= {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}

import numpy as np
import ray
import ray.tune
from ray._private import worker
from ray.tune.schedulers import HyperBandForBOHB
from ray.tune.search import ConcurrencyLimiter
from ray.tune.search.bohb import TuneBOHB

CPUS = 2
PACKAGES = ("ray", "hpbandster", "ConfigSpace", "numpy", "statsmodels")


def run(folder: Path, trials: int, max_t: int, at_once: int, reuse: bool, seed: int) -> dict[str, Any]:
    """Run the study; raises unless every trial went on from its own latest checkpoint."""
    np.random.seed(seed)  # noqa: NPY002 - hpbandster draws from there
    searcher: Any = TuneBOHB(seed=seed)
    if at_once:
        searcher = ConcurrencyLimiter(searcher, max_concurrent=at_once)
    tuner = ray.tune.Tuner(
        _toy.trainer(ray.tune, max_t),
        param_space=_toy.space(ray.tune),
        tune_config=ray.tune.TuneConfig(
            metric="loss",
            mode="min",
            num_samples=trials,
            search_alg=searcher,
            scheduler=HyperBandForBOHB(time_attr="training_iteration", max_t=max_t, reduction_factor=3),
            reuse_actors=reuse,
        ),
        run_config=ray.tune.RunConfig(name="bohb", storage_path=str(folder), verbose=0),
    )
    begun = time.perf_counter()
    results = tuner.fit()
    wall_s = time.perf_counter() - begun
    ends: Counter[int] = Counter()
    said_at: list[float] = []
    for result in results:
        rows = reports(Path(result.path))
        said = [int(row["step"]) for row in rows]
        assert said == list(range(1, len(said) + 1)), f"the trial in {result.path} reported the steps {said}"
        ends[len(said)] += 1
        said_at += [float(row["said_at"]) for row in rows]
    frames = [result.metrics_dataframe for result in results]
    return {
        "wall_s": round(wall_s, 3),
        "span_s": round(max(said_at) - min(said_at), 3),  # from the first report to the last
        "trials": len(results),
        "steps": sum(step * count for step, count in ends.items()),
        "finished": ends[max_t],
        "errors": results.num_errors,
        "ends": dict(sorted(ends.items())),  # how many trials ended at which step
        "rows": sum(len(frame) for frame in frames if frame is not None),
        "loss": results.get_best_result().metrics["loss"],
    }


def reports(trial: Path) -> list[dict[str, str]]:
    """What a trial reported, in the order in which it did."""
    path = trial / "progress.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def versions() -> Mapping[str, str]:
    return {"python": sys.version.split()[0]} | {package: version(package) for package in PACKAGES}


def give_up(folder: str, limit_s: int) -> None:
    """End Ray and this process from another thread: the main one may wait in Ray's C++, which minds no exception."""
    print(f"_bohb_ray.py: not done after {limit_s} s", file=sys.stderr, flush=True)
    if node := worker._global_node:
        node.kill_all_processes(check_alive=False, allow_graceful=True)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(3)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--max-t", type=int, default=27, help="steps of a trial at most (default: %(default)s)")
    parser.add_argument("--at-once", type=int, default=0, help="trials (default: as many as there are CPUs for)")
    parser.add_argument("--fresh-actors", action="store_true", help="Ray Tune's default: reuse_actors=False")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit-s", type=int, default=300, help="give up after this (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="on the disk to be measured (default: that of temporary files)")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Ray Tune prints a table even so
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="raytuner-bench-") as name:
        limit = threading.Timer(args.limit_s, give_up, (name, args.limit_s))
        limit.daemon = True
        limit.start()
        try:
            ray.init(
                "local",  # never one that already runs on this machine
                num_cpus=CPUS,
                include_dashboard=False,
                _node_ip_address="127.0.0.1",
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
            found = run(Path(name).absolute(), args.trials, args.max_t, args.at_once, not args.fresh_actors, args.seed)
        finally:
            ray.shutdown()
            limit.cancel()
    print(json.dumps(found | {"versions": versions()}), file=answer, flush=True)


if __name__ == "__main__":
    main()
