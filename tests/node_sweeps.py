"""Sweeps of `tests/node_driver.py` on a hosted cluster, and what must hold of them whatever died meanwhile."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raytuner.checkpoints import Store
from raytuner.events import Checkpointed, Drop, Ended, Failed, Finish, Opened, Over, Slots
from raytuner.record.journal import Record, read
from raytuner.results import ResultGrid
from raytuner.trial import Failure
from tests.cluster_host import ROOT, Host, environment


@dataclass
class Sweep:
    """A study in a folder, and the driver that runs it, if one does."""

    folder: Path
    host: Host
    settings: dict[str, Any]
    driver: subprocess.Popen[str] | None = None
    errors: list[Path] = field(default_factory=list)
    _opened_before: int = 0

    @property
    def acknowledged(self) -> Path:
        return self.folder / "acknowledged"

    def start(self) -> None:
        """A driver takes the study, or takes it up."""
        self._opened_before = self._opened()
        settings = {**self.settings, "storage": str(self.folder), "acknowledged": str(self.acknowledged)}
        self.errors.append(self.folder / f"errors-{len(self.errors)}")
        with open(self.errors[-1], "w") as errors:
            self.driver = subprocess.Popen(
                [sys.executable, str(ROOT / "tests" / "node_driver.py"), json.dumps(settings)],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**environment(), "RAY_ADDRESS": self.host.address},
            )

    def running(self) -> bool:
        """Whether its driver lives; fails if that ended otherwise than well or by `kill`."""
        assert self.driver is not None
        code = self.driver.poll()
        assert code in (None, 0), f"the driver ended with {code}: {self.complaint()}"
        return code is None

    def kill(self) -> None:
        """The driver dies."""
        assert self.driver is not None
        self.driver.kill()
        self.driver.communicate()

    def ends(self, limit_s: float) -> None:
        """Wait for the study's end."""
        assert self.driver is not None
        try:
            said, _ = self.driver.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"not over within {limit_s} s: {self.complaint()}") from None
        assert self.driver.returncode == 0, self.complaint()
        assert "failed 0" in said.splitlines(), f"{said}{self.complaint()}"

    def complaint(self) -> str:
        """The last of what the driver said of errors, and what failed."""
        failures = [f"{row.at:.2f} {row}" for row in self.rows() if isinstance(row, Failed)]
        return "\n".join([*failures, *(path.read_text()[-3000:] for path in self.errors[-1:])])

    def record(self) -> Record:
        """What is on the disk now."""
        return read(self.folder / "study")

    def rows(self) -> list[Any]:
        """The same, without the reports; nothing where nothing was begun."""
        return list(self.record().rows) if (self.folder / "study" / "journal").exists() else []

    def saved(self) -> list[tuple[int, int, str]]:
        """Trial, step and node of each checkpoint that is there."""
        found = []
        for path in sorted((self.folder / "study" / "checkpoints").glob("*/0*/state.json")):
            try:
                state = json.loads(path.read_text())
            except OSError:
                continue  # it was let go of meanwhile
            found.append((int(path.parts[-3]), state["step"], state["node"]))
        return found

    def until(self, found: Callable[[], Any], limit_s: float = 60.0) -> Any:
        """Wait for something to be seen, while the driver lives; return it."""
        deadline = time.monotonic() + limit_s
        while not (seen := found()):
            assert self.running(), "the study ended before"
            assert time.monotonic() < deadline, f"not seen within {limit_s} s: {self.complaint()}"
            time.sleep(0.05)
        return seen

    def drives(self) -> bool:
        """Whether the last driver that was started has taken the study."""
        return self._opened() > self._opened_before

    def _opened(self) -> int:
        return sum(isinstance(row, Opened) for row in self.rows())

    def slots(self) -> int:
        """How many there are, as the record has it."""
        return next((row.slots for row in reversed(self.rows()) if isinstance(row, Slots)), 0)


def check(sweep: Sweep) -> dict[str, int]:
    """Nothing acknowledged is lost, nothing is there twice, checkpoints are those that are referred to, all trials
    ended, none for what was killed. Returns what was counted."""
    record, results = sweep.record(), ResultGrid(sweep.folder / "study")
    rows = list(record.rows)
    assert len(results) >= sweep.settings["trials"]
    assert results.num_errors == 0
    assert [row.complete for row in rows if isinstance(row, Finish)][-1:] == [True]

    over = [row.trial for row in rows if isinstance(row, Over)]
    assert sorted(over) == list(range(len(results.trials))), "each trial ends once"
    lost = [row for row in rows if isinstance(row, Failed)]
    assert {row.failure for row in lost} <= {Failure.NODE, Failure.LOST}
    ended = [(row.trial, row.attempt) for row in rows if isinstance(row, Ended | Failed)]
    assert max(Counter(ended).values()) == 1, "no attempt ends twice"

    reports = record.reports.to_pylist()
    said = {(row["trial"], row["step"]): row["loss"] for row in reports}
    assert len(said) == len(reports), "a step counts twice"
    for line in sweep.acknowledged.read_text().splitlines():
        trial, step, loss = line.split()
        assert said[int(trial), int(step)] == float(loss), f"acknowledged: {line}"
    for _, group in itertools.groupby(sorted(reports, key=_place), key=lambda row: row["trial"]):
        own = list(group)
        assert [row["step"] for row in own] == list(range(own[0]["step"], own[0]["step"] + len(own))), "one is missing"
        attempts = [row["attempt"] for row in own]
        assert attempts == sorted(attempts), "an attempt was heard after a later one"

    referred: set[tuple[int, int]] = set()
    for row in rows:
        if isinstance(row, Checkpointed):
            referred.add((row.trial, row.step))
        elif isinstance(row, Drop):
            referred.remove((row.trial, row.step))
    store = Store(sweep.folder / "study" / "checkpoints")
    there = {(trial, step) for trial in range(len(over)) for step in store.steps(trial)}
    assert there == referred
    for trial, step in there:
        store.verify(trial, step)
    return {
        "trials": len(over),
        "steps": len(reports),
        "checkpoints": len(there),
        "lost with a node": sum(row.failure is Failure.NODE for row in lost),
        "lost": sum(row.failure is Failure.LOST for row in lost),
    }


def _place(row: dict[str, Any]) -> tuple[int, int]:
    return row["trial"], row["step"]
