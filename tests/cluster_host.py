"""A Ray cluster of several nodes on this machine, on loopback, whose nodes come, go and die on demand; it outlives the
drivers that use it.

`Host` is what tests hold. It talks to a process (this file, run as a script) by lines of JSON: Ray's cluster utility
takes over signals and settings of the process it runs in, and tests have a Ray of their own.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
_ANSWER_S = 60.0


def environment() -> dict[str, str]:
    """Of hosts and drivers. Ray makes a token for a head, but those who join by address must say that they use it."""
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "RAY_AUTH_MODE": "token",
        # Without it Ray's cluster utility listens on every network of the machine.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }


class Host:
    """A cluster with a head on which nothing runs, and the nodes that were added."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.address: str = self._ask("address")
        self.nodes: list[str] = []

    def add(self, cpus: int = 1) -> str:
        """A new node."""
        node: str = self._ask("add", cpus)
        self.nodes.append(node)
        return node

    def kill(self, node: str, orphans: bool = False) -> None:
        """All processes of a node die at once; with ``orphans`` only those that are Ray's own."""
        self._ask("kill", node, orphans)
        self.nodes = [each for each in self.nodes if each != node]

    def freeze(self, node: str) -> None:
        """Ray's own process on a node does not answer any more; the others go on."""
        self._ask("freeze", node)

    def drain(self, node: str, seconds: float | None) -> None:
        """Announce that a node is to go, as whoever preempts it does."""
        self._ask("drain", node, seconds)
        self.nodes.remove(node)

    def alive(self) -> list[str]:
        """The nodes that Ray takes to be alive, the head among them."""
        found: list[str] = self._ask("alive")
        return found

    def trial_actors(self) -> dict[int, str]:
        """The processes of trial actors, and on which node each is."""
        return {int(pid): node for pid, node in self._ask("actors").items()}

    def _ask(self, *command: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if command != ("address",):
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
        deadline = time.monotonic() + _ANSWER_S
        while select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
            line = self._process.stdout.readline()
            assert line, f"the host of the cluster died over {command}"
            if line.startswith("> "):  # Ray says things, too
                return json.loads(line[2:])
        raise TimeoutError(f"the host of the cluster did not answer {command} within {_ANSWER_S:g} s")


@contextmanager
def hosted(*cpus: int) -> Iterator[Host]:
    """A cluster with nodes of so many CPUs, while the context lasts."""
    # Sockets lie in that folder: its name must be short. In one of its own it is not announced as the one to join.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            bufsize=1,
            env={**environment(), "RAY_TMPDIR": folder},
            start_new_session=True,
        )
        with process:
            try:
                host = Host(process)
                for each in cpus:
                    host.add(each)
                yield host
            finally:
                assert process.stdin is not None
                process.stdin.close()
                try:
                    process.wait(60)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                _end_all(folder)


def _end_all(folder: str) -> None:
    """End what is left of a cluster: it names its folder."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
                if f"{folder}/".encode() in words or f"RAY_TMPDIR={folder}\0".encode() in words:
                    os.kill(int(entry.name), signal.SIGKILL)
            except (OSError, ProcessLookupError):
                continue


# ----------------------------------------------------------------------------------------------------- in the process


def _children(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _family(pid: int) -> list[int]:
    return [pid] + [member for child in _children(pid) for member in _family(child)]


def main() -> None:
    import ray
    from ray.cluster_utils import Cluster
    from ray.core.generated import autoscaler_pb2

    # Otherwise a dead node is found to be one after some 15 s.
    config = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000, "health_check_timeout_ms": 3000}
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 0,
            "include_dashboard": False,
            "_system_config": {**config, "health_check_failure_threshold": 4},
        },
    )
    gcs = ray._raylet.GcsClient(address=cluster.address)
    nodes: dict[str, Any] = {}

    def answer(what: Any) -> None:
        print(f"> {json.dumps(what)}", flush=True)

    def raylet(node: Any) -> int:
        pid: int = node.all_processes["raylet"][0].process.pid
        return pid

    answer(cluster.address)
    for line in sys.stdin:
        match json.loads(line):
            case ["add", cpus]:
                node = cluster.add_node(num_cpus=cpus)
                nodes[node.node_id] = node
                answer(node.node_id)
            case ["kill", name, orphans]:
                node = nodes.pop(name)
                for how in (signal.SIGSTOP, signal.SIGKILL):  # none of them is to tell that another died
                    for pid in _family(raylet(node)) if not orphans else []:
                        with suppress(ProcessLookupError):
                            os.kill(pid, how)
                cluster.remove_node(node, allow_graceful=False)
                answer("killed")
            case ["freeze", name]:
                os.kill(raylet(nodes[name]), signal.SIGSTOP)
                answer("frozen")
            case ["drain", name, seconds]:
                reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
                deadline = 0 if seconds is None else int((time.time() + seconds) * 1000)
                accepted, why = gcs.drain_node(name, reason, "preempted by a test", deadline)
                assert accepted, why
                answer("drained")
            case ["alive"]:
                table = cluster.global_state.node_table()
                answer([node["NodeID"] for node in table if node["Alive"]])
            case ["actors"]:
                found = {}
                for name, node in nodes.items():
                    for pid in _family(raylet(node)):
                        try:
                            title = Path(f"/proc/{pid}/cmdline").read_text()
                        except OSError:
                            continue
                        if title.startswith("ray::TrialActor"):
                            found[pid] = name
                answer(found)
    cluster.shutdown()


if __name__ == "__main__":
    main()
