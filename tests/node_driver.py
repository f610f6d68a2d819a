"""A sweep with two slots on a cluster of three nodes, of which one dies: ``python node_driver.py <storage>``."""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

import raytuner as tune


def train(config: dict[str, Any]) -> None:
    step = 0
    if checkpoint := tune.get_checkpoint():
        step = int(Path(checkpoint.path, "step").read_text())
    while step < 30:
        step += 1
        time.sleep(0.03)
        with tempfile.TemporaryDirectory() as folder:
            node = ray.get_runtime_context().get_node_id()
            Path(folder, "step").write_text(str(step))
            Path(folder, "node").write_text(node)
            tune.report({"loss": config["x"] / step, "node": node}, checkpoint=tune.Checkpoint.from_directory(folder))


def main(storage: str) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(3)]
    ray.init(address=cluster.address, log_to_driver=False)

    def fail_over() -> None:
        while not (begun := sorted(Path(storage, "study", "checkpoints").glob("*/000005/node"))):
            time.sleep(0.01)
        doomed = next(node for node in nodes if node.node_id == begun[0].read_text())
        print(f"dies {doomed.node_id}", flush=True)
        cluster.remove_node(doomed, allow_graceful=False)

    threading.Thread(target=fail_over, daemon=True).start()
    results = tune.Tuner(
        train,
        param_space={"x": tune.uniform(0, 1)},
        tune_config=tune.TuneConfig(metric="loss", mode="min", num_samples=8, max_concurrent_trials=2, seed=0),
        run_config=tune.RunConfig(name="study", storage_path=storage, verbose=0),
    ).fit()
    print(f"failed {results.num_errors}", flush=True)
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1])
