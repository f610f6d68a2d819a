"""One run of a training function: how its lease ends, whatever the function does, and that nobody outlives a stop."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from raytuner.checkpoints import Checkpoint, Store
from raytuner.events import Ended, Failed, How
from raytuner.objective import Objective
from raytuner.session import Rules, Runner, report, should_checkpoint
from raytuner.trial import END, Failure, Lease, Reports, Trial

Train = Callable[[Any], Any]


class Desk:
    """A runner with its thread, and what it says."""

    def __init__(self, folder: Path, train: Train, overdue: Callable[[], object] | None = None, **rules: Any) -> None:
        self.store = Store(folder / "study" / "checkpoints")
        settings = Rules(Path(self.store.root), **{"stop": {}, **rules})
        self.runner = Runner(train, settings, {"pid": 1}, overdue=overdue)
        self.steps: list[int] = []
        self.saved: list[int] = []
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while (lease := self.runner.leases.next()) is not None:
            self.runner.run(lease)

    def run(self, until: int = END, attempt: int = 1, **more: Any) -> Ended | Failed:
        """Run a lease of trial 0; how it ended."""
        given = {"checkpoint": None, "donor": 0, "tries": 0, "since": 0.0, "origin": 0, **more}
        self.runner.leases.add([Lease(Trial(0, {}), attempt, until, **given)])
        return self.end()

    def end(self) -> Ended | Failed:
        for _ in range(100):
            for item in self.runner.outbox.take(30):
                if isinstance(item, Reports):
                    self.steps += item.steps
                    self.saved += [step for step, saved in zip(item.steps, item.checkpoints, strict=True) if saved]
                else:
                    return item
        raise AssertionError("the lease does not end")

    def close(self) -> None:
        self.runner.close()
        self._thread.join(30)
        assert not self._thread.is_alive()


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Callable[..., Desk]]:
    desks: list[Desk] = []

    def made(train: Train, **more: Any) -> Desk:
        desks.append(Desk(tmp_path, train, **more))
        return desks[-1]

    yield made
    for each in desks:
        each.close()


def tells_itself_to_end(at: int, runner: Callable[[], Runner]) -> Train:
    """Is told to end during step ``at``, and saves where it is asked to."""

    def train(config: Any) -> None:
        step = 0
        while True:
            step += 1
            if step == at:
                runner().unwind(0, 1, parked=False)
            report({"loss": 1.0})

    return train


@pytest.mark.parametrize(
    ("rules", "until", "how"),
    [({"stop": {"training_iteration": 3}}, END, How.STOPPED), ({}, 3, How.REACHED), ({}, 9, How.UNWOUND)],
)
def test_an_end_that_was_due_anyway_is_not_an_unwinding(
    rules: dict[str, Any], until: int, how: How, desk: Callable[..., Desk]
) -> None:
    """Else a trial that is over would train one more step when the study is resumed."""
    made: list[Desk] = []
    made.append(desk(tells_itself_to_end(3, lambda: made[0].runner), **rules))
    ended = made[0].run(until)
    assert isinstance(ended, Ended)
    assert (ended.how, ended.step, made[0].steps) == (how, 3, [1, 2, 3])


def swallows(config: Any) -> None:
    while True:
        try:
            report({"loss": 1.0})
        except BaseException:
            return


def fails_when_it_ends(config: Any) -> None:
    try:
        while True:
            report({"loss": 1.0})
    finally:
        raise RuntimeError("while it cleaned up")


def returns_a_report(config: Any) -> dict[str, float]:
    try:
        while True:
            report({"loss": 1.0})
    except BaseException:
        return {"loss": 2.0}


@pytest.mark.parametrize("train", [swallows, fails_when_it_ends, returns_a_report])
@pytest.mark.parametrize("asked", [True, False])
def test_what_a_function_does_when_it_is_told_to_end_does_not_count(
    train: Train, asked: bool, desk: Callable[..., Desk]
) -> None:
    """It neither returned nor failed: it was stopped, or unwound and can be resumed."""
    made = desk(train, stop={} if asked else {"training_iteration": 2})
    if asked:
        made.runner.leases.add([Lease(Trial(0, {}), 1, END, None, 0, 0, 0.0, 0)])
        while not made.steps:
            made.steps += [step for item in made.runner.outbox.take(30) for step in item.steps]  # type: ignore[union-attr]
        made.runner.unwind(0, 1, parked=False)
        ended = made.end()
    else:
        ended = made.run()
    assert isinstance(ended, Ended), ended
    assert ended.how is (How.UNWOUND if asked else How.STOPPED)
    assert ended.step == made.steps[-1]


@pytest.mark.parametrize(
    ("rules", "metric"),
    [({"stop": {"training_iteration": 1}}, 1.0), ({"objective": Objective("loss")}, math.nan)],
)
def test_whoever_does_not_return_from_a_stop_is_overdue(
    rules: dict[str, Any], metric: float, desk: Callable[..., Desk]
) -> None:
    called = threading.Event()

    def train(config: Any) -> None:
        try:
            report({"loss": metric})
        finally:
            assert called.wait(30), "nobody missed it"

    made = desk(train, overdue=called.set, grace_s=0.05, **rules)
    last = made.run()
    assert called.is_set()
    assert isinstance(last, Failed) == math.isnan(metric)


def test_whoever_returns_is_not_overdue(desk: Callable[..., Desk]) -> None:
    called = threading.Event()
    made = desk(lambda config: report({"loss": 1.0}), overdue=called.set, grace_s=0.2, stop={"training_iteration": 1})
    for attempt in range(1, 4):
        made.run(attempt=attempt)
    assert not called.wait(0.4)


def saves_when_asked(folder: Path) -> Train:
    (folder / "state").mkdir()
    (folder / "state" / "weights").write_text(json.dumps(1))

    def train(config: Any) -> None:
        while True:
            if should_checkpoint():
                report({"loss": 1.0}, checkpoint=Checkpoint(folder / "state"))
            else:
                report({"loss": 1.0})

    return train


def test_a_last_lease_is_one_more_step_which_is_saved(tmp_path: Path, desk: Callable[..., Desk]) -> None:
    made = desk(saves_when_asked(tmp_path))
    first = made.run(each_report=True)
    assert isinstance(first, Ended)
    assert (first.how, made.steps, made.saved) == (How.REACHED, [1], [])
    last = made.run(attempt=2, each_report=True, last=True)
    assert isinstance(last, Ended)
    assert (last.how, made.steps, made.saved) == (How.UNWOUND, [1, 2], [2])


def test_whoever_has_parked_does_not_hear_that_its_lease_is_to_end(tmp_path: Path, desk: Callable[..., Desk]) -> None:
    """Who asked will hear that it is over, and may have it go on."""
    made = desk(saves_when_asked(tmp_path))
    made.run(until=2)
    made.runner.unwind(0, 1, parked=False)
    ended = made.run(until=3, attempt=2)
    assert made.steps == [1, 2, 3], "it went on where it stood"
    made.runner.unwind(0, 2, parked=True)
    made.run(until=1, attempt=3)
    assert made.steps == [1, 2, 3, 1], "it was there no more"
    assert isinstance(ended, Ended)


def test_another_time_attribute_goes_on_below_the_step_it_was_saved_at(
    tmp_path: Path, desk: Callable[..., Desk]
) -> None:
    def train(config: Any) -> None:
        for half in (5.5, 6.0):
            report({"epoch": half, "loss": 1.0})

    made = desk(train, time_attr="epoch")
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "weights").write_text("1")
    made.store.publish(tmp_path / "state", 0, 10, 1)
    ended = made.run(until=6, checkpoint=10)
    assert isinstance(ended, Ended), ended
    assert (ended.how, ended.step, ended.level) == (How.REACHED, 12, 6.0)


def test_the_traceback_begins_with_the_users_code(desk: Callable[..., Desk]) -> None:
    def train(config: Any) -> None:
        report([1.0])  # type: ignore[arg-type]

    failed = desk(train).run()
    assert isinstance(failed, Failed)
    assert failed.failure is Failure.ERROR
    lines = failed.message.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert "test_session.py" in lines[1]
    assert lines[-1].startswith("TypeError: report() takes a dict of metrics, got list")
