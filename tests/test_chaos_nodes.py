"""A real Ray on which trial actors, worker nodes and the driver are killed at random while sweeps run: nothing that was
acknowledged is lost, nothing counts twice, every trial ends, and none pays for what was killed.

``CHAOS_SECONDS``: for how long (180). ``CHAOS_SEED``: what is killed, and when; it is printed.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.cluster_host import Host, hosted
from tests.node_sweeps import Sweep, check

SECONDS = float(os.environ.get("CHAOS_SECONDS", "180"))
SCHEDULERS = ("asha", "fifo", "pbt", "hyperband")
TRIALS = 36
NODES = 4  # at most
NOTICE_S = 5.0  # how long a node that is to go is left alive
AFTERWARDS_S = 240.0  # how long the last study may take to end when nothing is killed any more

pytestmark = [pytest.mark.ray, pytest.mark.chaos, pytest.mark.timeout(SECONDS + AFTERWARDS_S + 240)]


@dataclass
class Chaos:
    """What befalls a cluster, until it is time for peace."""

    host: Host
    chance: random.Random
    until: float
    befell: Counter[str] = field(default_factory=Counter)
    leaving: dict[str, float] = field(default_factory=dict)  # nodes that are to go, and when they are killed

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self.until

    def torment(self, sweep: Sweep) -> None:
        """Run a study to its end."""
        sweep.start()
        while sweep.running():
            if self.is_over:
                if not self.host.nodes:
                    self.host.add(2)
                sweep.ends(AFTERWARDS_S)
                return
            self._kill_what_had_notice()
            self._strike(sweep)
            pause = time.monotonic() + self.chance.uniform(0.2, 2.5)
            while time.monotonic() < pause and sweep.running():
                time.sleep(0.05)
        sweep.ends(10.0)

    def _strike(self, sweep: Sweep) -> None:
        """Something befalls the cluster. Of a driver that begins one node is left: where none is, it does not begin."""
        nodes = self.host.nodes
        if len(nodes) == 1 and not sweep.drives():
            nodes = []
        blows = {"actor": 5, "driver": 2, "node added": 3 * (NODES - len(self.host.nodes))}
        if nodes:
            blows |= {"node": 1, "node, with orphans": 1, "node after notice": 1}
        blow = self.chance.choices(list(blows), list(blows.values()))[0]
        actors = self.host.trial_actors()
        if nodes:  # preferably one that is used
            doomed = self.chance.choice([node for node in nodes if node in actors.values()] or nodes)
        match blow:
            case "actor":
                if not actors:
                    return
                with suppress(ProcessLookupError):
                    os.kill(self.chance.choice(sorted(actors)), signal.SIGKILL)
            case "driver":
                sweep.kill()
                if not self.host.nodes:
                    self.host.add()
                sweep.start()
            case "node added":
                self.host.add(self.chance.choice([1, 2]))
            case "node" | "node, with orphans":
                self.host.kill(doomed, orphans=blow != "node")
            case "node after notice":
                self.host.drain(doomed, NOTICE_S)
                self.leaving[doomed] = time.monotonic() + NOTICE_S
        self.befell[blow] += 1

    def _kill_what_had_notice(self) -> None:
        for node, due in list(self.leaving.items()):
            if due <= time.monotonic():
                self.host.kill(node)
                del self.leaving[node]


def test_chaos(tmp_path: Path) -> None:
    seed = int(os.environ.get("CHAOS_SEED", random.SystemRandom().randrange(10**6)))
    print(f"\nCHAOS_SEED={seed} CHAOS_SECONDS={SECONDS:g}")
    with hosted(1, 2) as host:
        chaos = Chaos(host, random.Random(seed), time.monotonic() + SECONDS)
        for number, scheduler in enumerate(itertools.cycle(SCHEDULERS)):
            if chaos.is_over:
                break
            settings = {"trials": TRIALS, "slots": 4, "scheduler": scheduler, "seed": seed}
            how = {"steps": 16, "step_s": 0.08, "saves_every": 3}
            folder = tmp_path / f"{number}-{scheduler}"
            folder.mkdir()
            sweep = Sweep(folder, host, {**settings, "how": how})
            try:
                chaos.torment(sweep)
            finally:
                if sweep.driver is not None and sweep.driver.poll() is None:
                    sweep.kill()
            print(f"{scheduler}: {check(sweep)}; so far {dict(chaos.befell)}", flush=True)
    assert chaos.befell, "nothing was killed"
