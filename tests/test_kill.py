"""``kill -9`` of the driver of a real sweep on a real Ray, at random moments: nothing is lost, decisions are equal.

One slot: the order of arrival is fixed, so that the decisions of a sweep killed 20 times must be those of one left
alone. Several slots: the order is the machine's; what was decided must be what the record gives when it is replayed.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from raytuner.record.journal import read
from raytuner.results import ResultGrid
from tests.lives import decisions

pytestmark = [pytest.mark.ray, pytest.mark.timeout(420)]

KILLS = 20
ROOT = Path(__file__).parent.parent

HEAD = """
import sys
from raytuner.cluster import local
print(local.start(num_cpus=3), flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A Ray that outlives the drivers, on loopback, in a process of its own."""
    head = subprocess.Popen(
        [sys.executable, "-c", HEAD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment(),
    )
    assert head.stdin is not None
    assert head.stdout is not None
    with head:
        found = head.stdout.readline().strip()
        assert found.startswith("127.0.0.1:"), f"the head printed {found!r}"
        yield found
        head.stdin.close()
        head.wait(60)


def environment() -> dict[str, str]:
    """Of heads and drivers. Ray makes a token for a head, but those who join by address must say that they use it."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "RAY_AUTH_MODE": "token"}


def drive(storage: Path, slots: int, address: str, life_s: float | None) -> bool:
    """Run the sweep for so long (None: to its end) from the moment it drives; whether it reached its end."""
    command = [sys.executable, str(ROOT / "tests" / "kill_driver.py"), str(storage), str(slots)]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**environment(), "RAY_ADDRESS": address},
    ) as driver:
        assert driver.stdout is not None
        assert driver.stderr is not None
        began = driver.stdout.readline()
        assert began == "running\n", driver.stderr.read()
        killer = threading.Timer(life_s, driver.kill) if life_s is not None else None
        if killer:
            killer.start()
        out, errors = driver.communicate()
        if killer:
            killer.cancel()
        assert driver.returncode in (0, -9), errors
        assert (out == "over\n") == (driver.returncode == 0), errors
        return driver.returncode == 0


def killed(storage: Path, slots: int, address: str, kills: int, chance: random.Random) -> int:
    """Run the sweep to its end, killing its driver on the way; how often it was killed."""
    done = 0
    while not drive(storage, slots, address, chance.uniform(0.0, 1.6) if done < kills else None):
        done += 1
    return done


def check(storage: Path) -> None:
    """Nothing missing, nothing twice, no checkpoint referenced that is not there, none there that is not referenced."""
    results = ResultGrid(storage / "study")
    assert len(results) == 60
    assert results.num_errors == 0
    steps = results.to_arrow("reports")
    seen = sorted(zip(steps["trial"].to_pylist(), steps["step"].to_pylist(), strict=True))
    assert len(seen) == len(set(seen))
    for result in results:
        last = result.metrics["training_iteration"]
        assert [step for trial, step in seen if trial == int(result.trial_id)] == list(range(1, last + 1))
        assert [metrics["training_iteration"] for _, metrics in result.best_checkpoints] == [last]
        assert [path.name for path in Path(result.path).iterdir()] == [f"{last:06d}"]


def test_one_slot_takes_the_decisions_it_would_have_taken(tmp_path: Path, address: str) -> None:
    assert drive(tmp_path / "alone", 1, address, None)
    expected = decisions(read(tmp_path / "alone" / "study").rows)
    check(tmp_path / "alone")
    chance, kills, sweep = random.Random(5), 0, 0
    while kills < KILLS:
        sweep += 1
        storage = tmp_path / f"killed-{sweep}"
        kills += killed(storage, 1, address, KILLS - kills, chance)
        check(storage)
        assert decisions(read(storage / "study").rows) == expected
    print(f"{kills} kills in {sweep} sweeps of {len(expected)} decisions each")


def test_several_slots_replay_as_recorded(tmp_path: Path, address: str) -> None:
    killed(tmp_path, 3, address, 4, random.Random(6))
    check(tmp_path)
    before = decisions(read(tmp_path / "study").rows)
    # A finished study is replayed when it is opened, and that fails if a decision is not the recorded one.
    assert drive(tmp_path, 3, address, None)
    assert decisions(read(tmp_path / "study").rows) == before
