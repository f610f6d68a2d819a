"""Nodes of a real Ray cluster die, come, and are told to go: trials go on elsewhere, from their checkpoints, free of
charge."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raytuner.events import Checkpointed, Failed, Slots
from raytuner.trial import Failure
from tests.cluster_host import Host, hosted
from tests.node_sweeps import Sweep, check

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with hosted() as host:
        yield host


@pytest.fixture
def sweep(host: Host, tmp_path: Path) -> Iterator[Sweep]:
    """A study of two trials to come, on a cluster that has a node for each and one to spare."""
    while len(host.nodes) < 3:
        host.add()
    sweep = Sweep(
        tmp_path, host, {"trials": 2, "slots": 2, "how": {"steps": 10, "step_s": 0.05, "gate": str(tmp_path / "gate")}}
    )
    yield sweep
    if sweep.driver is not None and sweep.driver.poll() is None:
        sweep.kill()


def finish(sweep: Sweep) -> None:
    """Until now the trials go on; now they may end."""
    (sweep.folder / "gate").touch()
    sweep.ends(120)
    check(sweep)


def moves(sweep: Sweep) -> list[tuple[Failed, list[dict[str, Any]], list[dict[str, Any]]]]:
    """What was lost, and what each of these trials said before and after."""
    record = sweep.record()
    reports = record.reports.to_pylist()
    found = []
    for row in record.rows:
        if isinstance(row, Failed):
            own = [report for report in reports if report["trial"] == row.trial]
            before = [report for report in own if report["attempt"] == row.attempt]
            found.append((row, before, [report for report in own if report["attempt"] == row.attempt + 1]))
    return found


def test_the_trials_of_a_dead_node_go_on_elsewhere(sweep: Sweep, host: Host) -> None:
    sweep.settings["how"] |= {"saves_every": 1}
    sweep.start()
    trial, _, doomed = sweep.until(lambda: [each for each in sweep.saved() if each[1] >= 9])[0]
    host.kill(doomed)
    sweep.until(lambda: moves(sweep) and moves(sweep)[0][2])
    finish(sweep)
    [(lost, before, after)] = moves(sweep)
    assert (lost.trial, lost.failure) == (trial, Failure.NODE)
    assert {report["node"] for report in before} == {doomed}
    assert doomed not in {report["node"] for report in after}
    assert after[0]["step"] > 5, "it went on from a checkpoint"
    assert after[0]["iterations_since_restore"] <= 2
    slots = [row.slots for row in sweep.rows() if isinstance(row, Slots)]
    assert slots[-2:] == [1, 2], "the spare node takes its place"


@pytest.mark.parametrize("by_size", [False, True])
def test_a_study_uses_nodes_that_come_and_waits_where_none_is_left(by_size: bool, sweep: Sweep, host: Host) -> None:
    """Where all trials reserve the same, and where that is a function of the configuration."""
    host.add()
    for node in host.nodes[:-1]:
        host.kill(node)
    sweep.settings["by_size"] = by_size
    sweep.settings["how"] |= {"saves_every": 1}
    sweep.start()
    sweep.until(sweep.saved)
    second = host.add()
    sweep.until(lambda: second in {node for _, _, node in sweep.saved()})
    for node in list(host.nodes):
        host.kill(node)
    sweep.until(lambda: len(moves(sweep)) == 2)
    if not by_size:
        assert sweep.slots() == 0
    last = host.add(2)
    sweep.until(lambda: all(after for _, _, after in moves(sweep)))
    finish(sweep)
    assert {report["node"] for _, _, after in moves(sweep) for report in after} == {last}
    host.kill(last)  # others count on nodes with room for one


@pytest.mark.parametrize("rule", [False, True])
def test_trials_of_a_node_that_is_to_go_save_and_leave(rule: bool, sweep: Sweep, host: Host) -> None:
    """With a stop rule that is code, they park at each report."""
    sweep.settings |= {"rule": rule}
    sweep.start()

    def speak() -> set[str]:
        reports = sweep.record().reports.to_pylist() if sweep.rows() else []
        return {report["node"] for report in reports if report["step"] >= 3}

    doomed = sorted(sweep.until(lambda: speak()))[0]
    assert not sweep.saved(), "nothing is asked to be saved before the end"
    host.drain(doomed, None)
    sweep.until(lambda: doomed not in host.alive())  # nobody kills it: it ends when it is idle
    sweep.until(lambda: moves(sweep) and moves(sweep)[0][2])
    finish(sweep)
    [(lost, before, after)] = moves(sweep)
    assert lost.failure is Failure.NODE
    saved = [row.step for row in sweep.rows() if isinstance(row, Checkpointed) and row.trial == lost.trial]
    assert saved[0] == before[-1]["step"], "the last step on that node was saved"
    assert after[0]["step"] == saved[0] + 1
    assert after[0]["iterations_since_restore"] == 1, "no step was made twice"
    assert doomed not in {report["node"] for report in after}


def test_what_a_dead_node_says_late_does_not_count(sweep: Sweep, host: Host, tmp_path: Path) -> None:
    """To the cluster the node is dead, since its raylet does not answer; but the trial's process speaks on."""
    log = tmp_path / "log"
    sweep.settings["how"] |= {"log": str(log), "saves_every": 5}
    sweep.start()
    trial, _, doomed = sweep.until(lambda: sweep.saved())[0]
    host.freeze(doomed)
    sweep.until(lambda: moves(sweep) and moves(sweep)[0][2])
    [(lost, before, _)] = moves(sweep)
    assert (lost.trial, lost.failure) == (trial, Failure.NODE)
    pid = before[-1]["pid"]

    def late() -> bool:
        lines = (line.split() for line in log.read_text().splitlines())
        return max(int(step) for own, step in lines if int(own) == pid) > before[-1]["step"] + 20

    sweep.until(late)
    host.kill(doomed)
    (tmp_path / "gate").touch()
    sweep.ends(120)
    [(_, _, after)] = moves(sweep)
    assert {report["pid"] for report in after}.isdisjoint({pid})
    own = [report for report in sweep.record().reports.to_pylist() if report["trial"] == trial]
    assert {report["attempt"] for report in own if report["pid"] == pid} == {lost.attempt}
    assert sorted(report["step"] for report in own) == list(range(1, len(own) + 1))
