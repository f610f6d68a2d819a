"""What a person sees: plain lines where there is no terminal, a live block where there is one, nothing at verbose 0."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from raytuner import progress
from raytuner.driver import Driver
from raytuner.executors.simulate import Simulation, World
from raytuner.journal import Journal
from raytuner.progress import Progress
from raytuner.schedulers import HyperBandScheduler
from raytuner.searchers import RandomSearch
from raytuner.space import Space
from tests.lives import SPACE, Case


def shown(root: Path, monkeypatch: pytest.MonkeyPatch, verbose: int = 1, terminal: bool = False) -> str:
    """All that is printed while a study runs, each turn shown."""
    monkeypatch.setattr(progress, "_LINE_EVERY_S", 0.0)
    monkeypatch.setattr(progress, "_DRAW_EVERY_S", 0.0)
    case = Case(RandomSearch(), HyperBandScheduler(max_t=9), SPACE, trials=12)
    console = Console(file=io.StringIO(), width=80, force_terminal=terminal, color_system=None)
    world = World()
    simulation = Simulation(world, case.workload(), case.slots)
    study, journal = case.study(), Journal(root)
    with Progress("study", study, 12, verbose, console) as bar:
        Driver(study, RandomSearch().build(Space(SPACE), 7), journal, world, simulation, [bar]).run(simulation)
    journal.close()
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_plain_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(tmp_path, monkeypatch).splitlines()
    assert len(lines) > 10
    assert lines[0].startswith("study: 0 of 12 over")
    assert "running 5" in lines[2]
    assert lines[-1].startswith("study: 12 of 12 over")
    assert "trials/s" in lines[-1]
    assert "best loss " in lines[-1]
    assert "step 9" in lines[-1]


def test_a_live_block_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(tmp_path, monkeypatch, terminal=True)
    for part in ("raytuner  study", "trials", "12 of 12 over", "rungs", "to 3:", "best", "lr="):
        assert part in text
    assert max(map(len, text.replace("\x1b[2K", "").replace("\x1b[1A", "").splitlines())) <= 80


def test_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(tmp_path, monkeypatch, verbose=0) == ""
    assert shown(tmp_path / "terminal", monkeypatch, verbose=0, terminal=True) == ""


def test_each_trials_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [line for line in shown(tmp_path, monkeypatch, verbose=2).splitlines() if line.startswith("trial ")]
    assert len(lines) == 12
    assert any(" STOPPED at step " in line and line.endswith("among the best of its rung") for line in lines)
    assert any(" DONE at step 9, loss " in line and line.endswith("last rung") for line in lines)
