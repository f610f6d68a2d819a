"""A node of a real Ray cluster dies: its trials go on elsewhere, from their checkpoints, free of charge."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from raytuner.events import Failed
from raytuner.journal import read
from raytuner.results import ResultGrid
from raytuner.trial import Failure
from tests.test_kill import ROOT, environment


@pytest.fixture
def own_ray() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.mark.ray
@pytest.mark.timeout(180)
def test_the_trials_of_a_dead_node_go_on_elsewhere(tmp_path: Path, own_ray: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "node_driver.py"), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=150,
        # Without the switch Ray's cluster utility listens on every network of the machine; without a folder of its own
        # it announces itself there as the cluster to join. Sockets lie in that folder: its name must be short.
        env={**environment(), "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_TMPDIR": str(own_ray)},
    )
    said = dict(line.split() for line in done.stdout.splitlines() if line.count(" ") == 1)
    assert said.get("failed") == "0", done.stderr

    record = read(tmp_path / "study")
    lost = [row for row in record.rows if isinstance(row, Failed)]
    assert [row.failure for row in lost] == [Failure.LOST]

    reports = ResultGrid(tmp_path / "study").to_arrow("reports").to_pylist()
    assert sorted((row["trial"], row["step"]) for row in reports) == [(t, s) for t in range(8) for s in range(1, 31)]
    moved = [row for row in reports if row["trial"] == lost[0].trial]
    nodes = {attempt: {row["node"] for row in moved if row["attempt"] == attempt} for attempt in (1, 2)}
    assert nodes[1] == {said["dies"]}
    assert said["dies"] not in nodes[2]
    later = [row for row in moved if row["attempt"] == 2]
    assert min(row["step"] for row in later) > 5, "it went on from a checkpoint"
    assert min(later, key=lambda row: row["step"])["iterations_since_restore"] <= 2
