"""Ray Tune's BOHB and Hyperband on the toy of `_toy.py`; prints one line of JSON and nothing else to stdout.

    .venv/bench/bin/python benchmarks/bohb_ray.py [--trials 20] [--max-t 27] [--folder FOLDER]

The other half of a benchmark, which starts it as a process: ``TuneBOHB`` needs hpbandster and ConfigSpace, which belong
into an environment of their own (`peers.txt`; raytuner is not in it). Ray Tune runs as it comes, with
``reuse_actors=True``, on a Ray of its own, with two logical CPUs, on loopback. ``--at-once`` limits the trials as Ray's
own example of BOHB does; the default is no limit but the CPUs.

It ends by itself: with status 0 and the line, or with another, after ``--limit-s`` at the latest and a little more for
clearing up; its Ray ends with it, even if it is killed.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

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
from ray.tune.schedulers import HyperBandForBOHB
from ray.tune.search import ConcurrencyLimiter
from ray.tune.search.bohb import TuneBOHB

CPUS = 2
GRACE_S = 30  # for Ray to shut down
PACKAGES = ("ray", "hpbandster", "ConfigSpace", "numpy", "statsmodels")


class TimeLimit(BaseException):
    """Not an ``Exception``: Ray Tune must let it pass."""


def run(folder: Path, trials: int, max_t: int, at_once: int, seed: int) -> dict[str, Any]:
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
            reuse_actors=True,
        ),
        run_config=ray.tune.RunConfig(name="bohb", storage_path=str(folder), verbose=0),
    )
    begun = time.perf_counter()
    results = tuner.fit()
    wall_s = time.perf_counter() - begun
    frames = [result.metrics_dataframe for result in results if result.metrics_dataframe is not None]
    for frame in frames:
        said = frame["step"].tolist()
        assert said == list(range(1, len(said) + 1)), f"a trial reported the steps {said}"
    ends = Counter(len(frame) for frame in frames)
    return {
        "wall_s": round(wall_s, 3),
        "trials": len(results),
        "steps": sum(len(frame) for frame in frames),
        "finished": ends[max_t],
        "errors": results.num_errors,
        "ends": dict(sorted(ends.items())),  # how many trials ended at which step
        "loss": results.get_best_result().metrics["loss"],
    }


def versions() -> Mapping[str, str]:
    return {"python": sys.version.split()[0]} | {package: version(package) for package in PACKAGES}


def give_up(*_: object) -> NoReturn:
    raise TimeLimit


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--max-t", type=int, default=27, help="steps of a trial at most (default: %(default)s)")
    parser.add_argument("--at-once", type=int, default=0, help="trials (default: as many as there are CPUs for)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit-s", type=int, default=300, help="give up after this (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="on the disk to be measured (default: that of temporary files)")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Ray Tune prints a table even so
    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(args.limit_s)
    try:
        with tempfile.TemporaryDirectory(dir=args.folder, prefix="raytuner-bench-") as name:
            ray.init(
                "local",  # never one that already runs on this machine
                num_cpus=CPUS,
                include_dashboard=False,
                _node_ip_address="127.0.0.1",
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
            found = run(Path(name), args.trials, args.max_t, args.at_once, args.seed)
    except TimeLimit:
        sys.exit(f"bohb_ray.py: not done after {args.limit_s} s")
    finally:
        # If Ray does not let go, the kernel ends this process, and with it Ray's.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(GRACE_S)
        ray.shutdown()
    print(json.dumps(found | {"versions": versions()}), file=answer, flush=True)


if __name__ == "__main__":
    main()
