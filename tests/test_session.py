"""One run of a training function: how its lease ends, whatever the function does, and that nobody outlives a stop."""

from __future__ import annotations

import json
import math
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from raytuner.checkpoints import Checkpoint, DamagedCheckpoint, Store
from raytuner.events import Checkpointed, Damaged, Ended, Failed, How, Loaded
from raytuner.mailbox import Item
from raytuner.objective import Objective
from raytuner.session import Rules, Runner, get_checkpoint, report, should_checkpoint
from raytuner.trainable import Trainable, runnable
from raytuner.trial import END, UNDER_WAY, Failure, Lease, Reports, Trial

Train = Callable[[Any], Any]


class Desk:
    """A runner with its thread, and what it says."""

    def __init__(self, folder: Path, train: Train, overdue: Callable[[], object] | None = None, **rules: Any) -> None:
        self.store = Store(folder / "study" / "checkpoints")
        settings = Rules(Path(self.store.root), **{"stop": {}, **rules})
        self.runner = Runner(train, settings, {"pid": 1}, overdue=overdue)
        self.steps: list[int] = []
        self.saved: list[int] = []
        self.digests: dict[int, str] = {}  # step -> what its report said of a checkpoint
        self.heard: list[Item] = []
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while (lease := self.runner.leases.next()) is not None:
            self.runner.run(lease)

    def run(self, until: int = END, attempt: int = 1, **more: Any) -> Ended | Failed | Damaged:
        """Run a lease of trial 0; how it ended."""
        given = {"checkpoint": None, "donor": 0, "tries": 0, "since": 0.0, "origin": 0, **more}
        self.runner.leases.add([Lease(Trial(0, {}), attempt, until, **given)])
        return self.end()

    def end(self) -> Ended | Failed | Damaged:
        for _ in range(100):
            for item in self.runner.outbox.take(30):
                self.heard.append(item)
                if isinstance(item, Reports):
                    self.steps += item.steps
                    self.digests |= zip(item.steps, item.checkpoints, strict=True)
                    self.saved += [step for step, saved in zip(item.steps, item.checkpoints, strict=True) if saved]
                elif isinstance(item, Checkpointed):
                    assert self.digests[item.step] == UNDER_WAY
                    self.digests[item.step] = item.digest
                elif not isinstance(item, Loaded):
                    return item
        raise AssertionError("the lease does not end")

    def publish(self, folder: Path, trial: int, step: int) -> str:
        """A checkpoint to begin from; its manifest's hash."""
        folder.mkdir(exist_ok=True)
        (folder / "weights").write_text(f"{trial} at {step}")
        return self.store.publish(folder, trial, step, 1)

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


def asks(answers: dict[int, bool], levels: Callable[[int], float] = float, naps: float = 0.0) -> Train:
    """Notes which steps were to be saved, and saves none."""

    def train(config: Any) -> None:
        step = 0
        while True:
            step += 1
            time.sleep(naps)
            answers[step] = should_checkpoint()
            report({"loss": 1.0, "epoch": levels(step)})

    return train


def yes(answers: dict[int, bool]) -> list[int]:
    return [step for step, answer in answers.items() if answer]


def test_a_checkpoint_is_wanted_only_where_it_matters(desk: Callable[..., Desk]) -> None:
    """Where a lease ends before its trial does; at the trial's end by a stop rule; every so many steps. A trial that
    runs to its own end, as under FIFO, need save nothing on the way."""
    answers: dict[int, bool] = {}
    made = desk(asks(answers), stop={"training_iteration": 9})
    made.run(until=3)
    made.run(until=6, attempt=2)
    made.run(until=END, attempt=3)
    assert yes(answers) == [3, 6, 9]
    assert len(answers) == 9
    answers.clear()
    desk(asks(answers), stop={"training_iteration": 9}, checkpoint_every=4).run(until=END)
    assert yes(answers) == [4, 8, 9]


def test_another_time_attribute_wants_checkpoints_near_its_rungs_only(desk: Callable[..., Desk]) -> None:
    """As far from them as two of the longest steps so far; before it is known how long they are, at once."""
    answers: dict[int, bool] = {}
    made = desk(asks(answers, lambda step: step / 2), time_attr="epoch", stop={"training_iteration": 30})
    ended = made.run(until=10)
    assert isinstance(ended, Ended)
    assert ended.step == 20
    assert yes(answers) == [1, 2, 19, 20]  # with the second report a step is known to be half an epoch
    made.run(until=END, attempt=2)
    assert yes(answers) == [1, 2, 19, 20, 30]
    answers.clear()
    uneven = desk(asks(answers, lambda step: [0, 1, 2, 5, 6, 7, 8, 9][step]), time_attr="epoch")
    uneven.run(until=9)
    assert yes(answers) == [1, 2, 4, 5, 6, 7]


def test_a_stop_by_the_time_attribute_is_a_rung_like_any(desk: Callable[..., Desk]) -> None:
    answers: dict[int, bool] = {}
    desk(asks(answers), time_attr="epoch", stop={"epoch": 8}).run(until=END)
    assert yes(answers) == [1, 2, 7, 8]


def test_seconds_may_say_when_a_checkpoint_is_due(tmp_path: Path, desk: Callable[..., Desk]) -> None:
    """Since the last one, or since the function began."""
    answers: dict[int, bool] = {}
    desk(asks(answers), checkpoint_interval_s=3600.0, stop={"training_iteration": 50}).run()
    assert yes(answers) == [50]
    answers.clear()
    desk(asks(answers, naps=0.002), checkpoint_interval_s=0.001, stop={"training_iteration": 5}).run()
    assert yes(answers) == [1, 2, 3, 4, 5]
    made = desk(saves_when_asked(tmp_path), checkpoint_interval_s=1e-9, stop={"training_iteration": 4})
    made.run()
    assert made.saved == [1, 2, 3, 4]


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
    made.publish(tmp_path / "state", 0, 10)
    ended = made.run(until=6, checkpoint=10)
    assert isinstance(ended, Ended), ended
    assert (ended.how, ended.step, ended.level) == (How.REACHED, 12, 6.0)


def reports_for_ever(config: Any) -> None:
    while True:
        report({"loss": 1.0})


def test_seconds_may_be_what_rungs_are_measured_in(desk: Callable[..., Desk]) -> None:
    """A lease goes on counting where those before it ended, and a fork where what it continues did."""
    made = desk(reports_for_ever, time_attr="time_total_s", stop={"training_iteration": 3})
    ended = made.run(until=1000)
    assert isinstance(ended, Ended), ended
    assert (ended.how, ended.step) == (How.STOPPED, 3)
    assert 0 < ended.level == ended.metrics["time_total_s"] < 500
    ended = made.run(until=1000, attempt=2, spent=1000.0)
    assert isinstance(ended, Ended), ended
    assert (ended.how, ended.step) == (How.REACHED, 1)
    assert 1000 < ended.level == ended.metrics["time_total_s"] < 1500
    ended = made.run(until=2000, attempt=3, spent=2000.0)  # where it is parked
    assert isinstance(ended, Ended), ended
    assert (ended.how, ended.step) == (How.REACHED, 2)
    assert 2000 < ended.level < 2500


def test_a_fork_counts_its_steps_on_too_where_seconds_are_counted(tmp_path: Path, desk: Callable[..., Desk]) -> None:
    made = desk(reports_for_ever, time_attr="time_total_s")
    made.publish(tmp_path / "state", 7, 10)
    ended = made.run(until=1000, checkpoint=10, donor=7, spent=1000.0)
    assert isinstance(ended, Ended), ended
    assert (ended.how, ended.step) == (How.REACHED, 11)
    assert ended.metrics["time_total_s"] == ended.level


@pytest.mark.parametrize(
    ("time_attr", "reported", "told"),
    [
        ("epoch", {"loss": 1.0}, "the report lacks it; it holds ['loss']"),
        ("epoch", {"loss": 1.0, "epoch": "two"}, "the report holds epoch='two'"),
        ("epoch", {"loss": 1.0, "epoch": True}, "the report holds epoch=True"),
        ("epoch", {"loss": 1.0, "epoch": None}, "the report holds epoch=None"),
        ("date", {"loss": 1.0}, "the report lacks it; it holds ['loss']"),  # Ray's, but not ours
        ("pid", {"loss": 1.0, "pid": "me"}, "the report holds pid='me'"),
        ("trial_id", {"loss": 1.0}, "the report holds trial_id='0'"),
    ],
)
def test_a_time_attribute_that_is_no_number_is_told(
    time_attr: str, reported: dict[str, Any], told: str, desk: Callable[..., Desk]
) -> None:
    made = desk(lambda config: report(reported), time_attr=time_attr)
    failed = made.run()
    assert isinstance(failed, Failed)
    assert failed.failure is Failure.ERROR
    expected = f"ValueError: {time_attr!r} is the scheduler's time_attr and must be a number, but {told}"
    assert failed.message.splitlines()[-1] == expected
    assert made.steps == []


def test_a_time_attribute_that_falls_is_told(desk: Callable[..., Desk]) -> None:
    def train(config: Any) -> None:
        for epoch in (2, 2, 1.5):
            report({"epoch": epoch})

    made = desk(train, time_attr="epoch")
    failed = made.run()
    assert isinstance(failed, Failed)
    assert failed.message.endswith("ValueError: 'epoch', the scheduler's time_attr, must not fall: 2.0, then 1.5\n")
    assert made.steps == [1, 2]


# ----------------------------------------------------------------------------------------- which checkpoint it was


def begins(config: Any) -> None:
    checkpoint = get_checkpoint()
    report({"began": "nowhere" if checkpoint is None else Path(checkpoint.path, "weights").read_text()})


@pytest.mark.parametrize("donor", [0, 7])
@pytest.mark.parametrize("known", [True, False])
def test_a_lease_says_which_checkpoint_it_began_from(
    donor: int, known: bool, tmp_path: Path, desk: Callable[..., Desk]
) -> None:
    """Once, before its first report."""
    made = desk(begins)
    digest = made.publish(tmp_path / "state", donor, 4)
    ended = made.run(attempt=3, checkpoint=4, donor=donor, digest=digest if known else "")
    assert isinstance(ended, Ended), ended
    loaded, reports, last = made.heard
    assert last is ended
    assert isinstance(loaded, Loaded)
    assert (loaded.trial, loaded.attempt, loaded.source, loaded.step, loaded.digest) == (0, 3, donor, 4, digest)
    assert isinstance(reports, Reports)
    assert reports.metrics["began"] == [f"{donor} at 4"]
    assert loaded.at <= reports.at[0]


def test_a_lease_that_begins_from_nothing_or_goes_on_where_it_is_loads_nothing(desk: Callable[..., Desk]) -> None:
    made = desk(reports_for_ever)
    made.run(until=1)
    made.run(until=2, attempt=2, checkpoint=1, digest="whatever it is")
    assert made.steps == [1, 2]
    assert not any(isinstance(item, Loaded) for item in made.heard)


@pytest.mark.parametrize("wrong", ["another", "damaged", "gone"])
def test_a_checkpoint_that_is_not_the_one_that_was_meant_is_refused(
    wrong: str, tmp_path: Path, desk: Callable[..., Desk]
) -> None:
    """The function is not even called, and nobody says that the trial failed."""
    called: list[Any] = []
    made = desk(called.append)
    digest = made.publish(tmp_path / "state", 7, 4)
    path = Path(made.store.path(7, 4))
    if wrong == "another":
        made.store.delete(7, 4)
        (tmp_path / "state" / "more").write_text("of it")
        found = made.publish(tmp_path / "state", 7, 4)
        assert found != digest
        told = f"MANIFEST.json: its hash is {found}, and was {digest}"
    elif wrong == "damaged":
        (path / "weights").write_text("7 at 5")
        told = "weights: its sha256 is "
    else:
        made.store.delete(7, 4)
        told = "there is no such directory"
    found_out = made.run(checkpoint=4, donor=7, digest=digest, attempt=2)
    assert isinstance(found_out, Damaged), found_out
    assert (found_out.trial, found_out.attempt, found_out.source, found_out.step) == (0, 2, 7, 4)
    assert found_out.message.startswith(f"checkpoint {path} is damaged: {told}")
    assert found_out.spent > 0
    assert called == []
    assert made.heard == [found_out]


def test_what_the_function_itself_says_of_its_files_is_its_own_error(tmp_path: Path, desk: Callable[..., Desk]) -> None:
    def train(config: Any) -> None:
        raise DamagedCheckpoint("/somewhere", "weights", "I do not like them")

    made = desk(train)
    failed = made.run(checkpoint=4, digest=made.publish(tmp_path / "state", 0, 4))
    assert isinstance(failed, Failed), failed
    assert failed.failure is Failure.ERROR


def test_reports_carry_the_size_of_their_checkpoint(tmp_path: Path, desk: Callable[..., Desk]) -> None:
    made = desk(saves_when_asked(tmp_path), checkpoint_every=2)
    (tmp_path / "state" / "more").write_bytes(bytes(1000))
    made.run(until=3)
    said = [item for item in made.heard if isinstance(item, Reports)]
    assert [report.nbytes for reports in said for report in reports] == [0, 0, 1001], "step 2 was still under way"
    assert [report.nbytes for report in pickle.loads(pickle.dumps(said[-1])).after(2)] == [1001]
    assert [(item.step, item.nbytes) for item in made.heard if isinstance(item, Checkpointed)] == [(2, 1001)]


class Counts(Trainable):
    """Saves what it is asked to."""

    def setup(self, config: dict[str, Any]) -> None:
        self.steps = 0

    def step(self) -> dict[str, Any]:
        self.steps += 1
        return {"loss": 1.0, "done": self.steps == 5}

    def save_checkpoint(self, folder: str) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_checkpoint(self, checkpoint: Any) -> None:
        self.steps = checkpoint["steps"]


@pytest.mark.parametrize("kind", ["function", "class"])
def test_reports_carry_the_hash_that_the_store_gave(kind: str, tmp_path: Path, desk: Callable[..., Desk]) -> None:
    if kind == "function":
        train = saves_when_asked(tmp_path)
        made = desk(train, checkpoint_every=2, stop={"training_iteration": 5})
    else:
        made = desk(runnable(Counts), checkpoint_every=2, checkpoint_at_end=True)
    made.run(until=3)
    made.run(attempt=2)
    expected = {step: made.store.verify(0, step) if step > 1 else "" for step in range(1, 6)}
    assert made.digests == expected
    # and again, from what is there: the first report of a step counts
    made.digests.clear()
    ended = made.run(attempt=3, checkpoint=3, digest=expected[3])
    assert isinstance(ended, Ended), ended
    assert made.digests == {4: expected[4], 5: expected[5]}


def test_the_traceback_begins_with_the_users_code(desk: Callable[..., Desk]) -> None:
    def train(config: Any) -> None:
        report([1.0])  # type: ignore[arg-type]

    failed = desk(train).run()
    assert isinstance(failed, Failed)
    assert failed.failure is Failure.NOT_REPORTABLE
    lines = failed.message.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert "test_session.py" in lines[1]
    assert lines[-1].startswith("raytuner.session.NotReportable: report() takes a dict of metrics, got list")
