"""Checkpoints that are published while the trial goes on: never less safe than if it had waited."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raytuner.checkpoints import Checkpoint, Staged, Store
from raytuner.events import Checkpointed, Ended, Failed, How
from raytuner.objective import Objective
from raytuner.session import get_checkpoint, report
from raytuner.trainable import Trainable, runnable
from raytuner.trial import Failure, Reports
from raytuner.uploads import MOST, Uploads
from tests.test_session import Desk, desk

__all__ = ["desk"]  # a fixture


class Gate:
    """Holds publications up until it is opened, and notes what is taken and published."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails: Callable[[Staged], bool] = lambda staged: False) -> None:
        self.opened = threading.Event()
        self.said: list[tuple[str, int]] = []
        self.staged = threading.Semaphore(0)
        stage, publish = Store.stage, Store.publish_staged

        def taken(store: Store, source: Any, trial: int, step: int, attempt: int) -> Staged:
            found = stage(store, source, trial, step, attempt)
            self.said.append(("taken", step))
            self.staged.release()
            return found

        def published(store: Store, staged: Staged) -> str:
            assert self.opened.wait(60)
            if fails(staged):
                raise OSError(errno.EIO, os.strerror(errno.EIO), staged.path)
            digest = publish(store, staged)
            self.said.append(("published", staged.step))
            return digest

        monkeypatch.setattr(Store, "stage", taken)
        monkeypatch.setattr(Store, "publish_staged", published)


def state(folder: Path, step: int) -> Checkpoint:
    """The same folder and file each time: whoever takes them must have done so when `report` returns."""
    folder.mkdir(exist_ok=True)
    (folder / "inner").mkdir(exist_ok=True)
    (folder / "inner" / "weights").write_text(f"of step {step}")
    (folder / f"only {step}").write_text("")
    return Checkpoint(folder)


def content(store: Store, step: int) -> str:
    checkpoint = store.load(0, step)
    assert Path(checkpoint.path, f"only {step}").exists()
    return Path(checkpoint.path, "inner", "weights").read_text()


def saved(made: Desk) -> list[Checkpointed]:
    return [item for item in made.heard if isinstance(item, Checkpointed)]


@pytest.mark.parametrize("then", ["removes", "overwrites"])
def test_the_trial_goes_on_before_its_checkpoint_is_published(
    then: str, tmp_path: Path, desk: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    published: list[list[int]] = []

    def train(config: Any) -> None:
        for step in range(1, 6):
            report({"loss": float(step)}, checkpoint=state(tmp_path / "mine", step))
            if then == "removes":
                shutil.rmtree(tmp_path / "mine")
            else:
                for file in (tmp_path / "mine").rglob("*"):
                    if file.is_file():
                        file.write_text("something else")
                (tmp_path / "mine" / f"only {step}").unlink()
            published.append(made.store.steps(0))
            if step == MOST:
                gate.opened.set()

    made = desk(train)
    ended = made.run()
    assert isinstance(ended, Ended), ended
    assert published[:MOST] == [[]] * MOST, "nothing was published while it went on"
    assert made.store.steps(0) == [1, 2, 3, 4, 5]
    assert [content(made.store, step) for step in range(1, 6)] == [f"of step {step}" for step in range(1, 6)]
    assert made.steps == [1, 2, 3, 4, 5]
    told = saved(made)
    assert [(item.step, item.metrics["loss"]) for item in told] == [(step, float(step)) for step in range(1, 6)]
    assert [item.digest for item in told] == [made.store.verify(0, step) for step in range(1, 6)]
    assert made.heard[-1] is ended
    reports = [number for number, item in enumerate(made.heard) if isinstance(item, Reports)]
    assert reports[0] < made.heard.index(told[0])
    assert not any(name.startswith(".tmp-") for name in os.listdir(Path(made.store.root, "000000")))


def test_no_more_than_so_many_wait(tmp_path: Path, desk: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)

    def train(config: Any) -> None:
        for step in range(1, 9):
            report({"loss": 1.0}, checkpoint=state(tmp_path / "mine", step))

    opener = threading.Thread(target=lambda: [gate.staged.acquire() for _ in range(MOST)] and gate.opened.set())
    opener.start()
    made = desk(train)
    made.run()
    opener.join()
    waiting, most = 0, 0
    for what, _ in gate.said:
        waiting += 1 if what == "taken" else -1
        most = max(most, waiting)
    assert most == MOST
    assert [step for what, step in gate.said if what == "published"] == list(range(1, 9))


@pytest.mark.parametrize("end", ["parks", "returns", "stops", "fails", "parks unsaved"])
def test_the_end_of_a_lease_waits_for_its_checkpoints(
    end: str, tmp_path: Path, desk: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)

    def train(config: Any) -> None:
        report({"loss": 1.0}, checkpoint=state(tmp_path / "mine", 1))
        report({"loss": 1.0}, checkpoint=state(tmp_path / "mine", 2))
        threading.Timer(0.2, gate.opened.set).start()
        if end == "fails":
            raise ValueError("on purpose")
        if end == "returns":
            return
        if end == "parks unsaved":
            report({"loss": 1.0})
        report({"loss": 1.0}, checkpoint=state(tmp_path / "mine", 3))

    made = desk(train, stop={"training_iteration": 3} if end == "stops" else {})
    ended = made.run(until=3 if end.startswith("parks") else 10)
    assert isinstance(ended, Failed if end == "fails" else Ended)
    kept = [1, 2, 3] if end in ("parks", "stops") else [1, 2]
    assert made.store.steps(0) == kept
    assert [item.step for item in saved(made)] == [1, 2]
    assert made.saved == kept
    assert made.digests == {step: made.store.verify(0, step) if step in kept else "" for step in made.steps}
    assert made.heard[-1] is ended


def test_get_checkpoint_waits_for_the_newest(
    tmp_path: Path, desk: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    found: list[str] = []

    def train(config: Any) -> None:
        assert get_checkpoint() is None
        for step in (1, 2):
            report({"loss": 1.0}, checkpoint=state(tmp_path / "mine", step))
            threading.Timer(0.1, gate.opened.set).start()
            checkpoint = get_checkpoint()
            assert checkpoint is not None
            found.append(Path(checkpoint.path, "inner", "weights").read_text())
            assert get_checkpoint() == checkpoint

    ended = desk(train).run()
    assert isinstance(ended, Ended), ended
    assert found == ["of step 1", "of step 2"]


def test_who_returns_in_time_is_not_killed_for_what_is_still_published(
    tmp_path: Path, desk: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    overdue = threading.Event()

    def train(config: Any) -> None:
        report({"loss": 1.0}, checkpoint=state(tmp_path / "mine", 1))
        threading.Timer(0.6, gate.opened.set).start()
        report({"loss": float("nan")})  # ends it at once

    made = desk(train, grace_s=0.2, overdue=overdue.set, objective=Objective("loss"))
    failed = made.run()
    assert isinstance(failed, Failed)
    assert failed.failure is Failure.NOT_FINITE
    assert [item.step for item in saved(made)] == [1]
    assert not overdue.is_set()


@pytest.mark.parametrize("then", ["reports", "reports a checkpoint", "returns", "asks", "parks", "fails"])
def test_an_upload_that_fails_ends_the_trial_for_no_fault_of_its_own(
    then: str, tmp_path: Path, desk: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint before it was published and told; what was to come after it is not."""
    gate = Gate(monkeypatch, lambda staged: staged.step >= 2)
    gate.opened.set()

    def train(config: Any) -> None:
        for step in (1, 2, 3):
            report({"loss": 1.0}, checkpoint=state(tmp_path / "mine", step))
        match then:
            case "returns":
                return
            case "asks":
                get_checkpoint()
            case "fails":
                raise ValueError("on purpose")
            case "reports a checkpoint":
                report({"loss": 1.0}, checkpoint=state(tmp_path / "mine", 4))
        for _ in range(10):
            report({"loss": 1.0})

    made = desk(train, patience_s=0.2)
    failed = made.run(until=5 if then in ("parks", "reports") else 100)
    assert isinstance(failed, Failed), failed
    assert made.store.steps(0) == [1]
    assert [item.step for item in saved(made)] == [1]
    if then == "fails":
        assert failed.failure is Failure.ERROR, "it has its own reason"
        return
    assert failed.failure is Failure.STORAGE
    assert failed.message.startswith(f"{made.store.path(0, 2)}: [Errno 5] Input/output error")


def test_after_a_failed_upload_the_next_lease_starts_afresh(
    tmp_path: Path, desk: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = [True]
    gate = Gate(monkeypatch, lambda staged: broken[0])
    gate.opened.set()

    def train(config: Any) -> None:
        for step in (1, 2, 3):
            report({"loss": 1.0}, checkpoint=state(tmp_path / "mine", step))

    made = desk(train, patience_s=0.2)
    failed = made.run()
    assert isinstance(failed, Failed)
    broken[0] = False
    ended = made.run(attempt=2)
    assert isinstance(ended, Ended), ended
    assert made.store.steps(0) == [1, 2, 3]
    assert not any(name.startswith(".tmp-") for name in os.listdir(Path(made.store.root, "000000")))


def test_an_upload_is_tried_again(tmp_path: Path, desk: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch) -> None:
    """After a failure at each of its steps."""
    calls = [0]
    real: dict[str, Any] = {name: getattr(os, name) for name in ("fsync", "rename", "open")}

    def flaky(name: str) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            if threading.current_thread().name.startswith("raytuner-upload"):
                calls[0] += 1
                if calls[0] in (1, 4, 9, 15, 25, 40):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real[name](*args, **more)

        return call

    def train(config: Any) -> None:
        for step in (1, 2, 3):
            report({"loss": 1.0}, checkpoint=state(tmp_path / "mine", step))

    made = desk(train)
    with monkeypatch.context() as patch:
        patch.setattr("raytuner.record.patience._FIRST_S", 0.001)
        patch.setattr("raytuner.record.patience._LONGEST_S", 0.001)
        patch.setattr("raytuner.checkpoints._WORTH_A_THREAD_S", 1e9)  # all in this one thread
        for name in real:
            patch.setattr(os, name, flaky(name))
        ended = made.run()
    assert calls[0] > 40
    assert isinstance(ended, Ended), ended
    assert [content(made.store, step) for step in (1, 2, 3)] == ["of step 1", "of step 2", "of step 3"]


class Counts(Trainable):
    def setup(self, config: dict[str, Any]) -> None:
        self.steps = 0

    def step(self) -> dict[str, Any]:
        self.steps += 1
        return {"loss": 1.0, "done": self.steps == 5}

    def save_checkpoint(self, folder: str) -> None:
        Path(folder, "steps").write_text(str(self.steps))


def test_a_class_goes_on_too(tmp_path: Path, desk: Callable[..., Desk]) -> None:
    made = desk(runnable(Counts), checkpoint_every=2, checkpoint_at_end=True)
    ended = made.run()
    assert isinstance(ended, Ended), ended
    assert (ended.how, made.store.steps(0)) == (How.RETURNED, [2, 4, 5])
    assert [item.step for item in saved(made)] == [2, 4]
    assert Path(made.store.load(0, 4).path, "steps").read_text() == "4"


def test_a_step_that_was_saved_before_keeps_its_checkpoint(tmp_path: Path, desk: Callable[..., Desk]) -> None:
    made = desk(lambda config: report({"loss": 1.0}, checkpoint=state(tmp_path / "mine", 1)))
    digest = made.publish(tmp_path / "state", 0, 1)
    made.run()
    assert made.digests == {1: digest}


def test_links_are_refused_before_anything_is_reported(tmp_path: Path, desk: Callable[..., Desk]) -> None:
    def train(config: Any) -> None:
        checkpoint = state(tmp_path / "mine", 1)
        (tmp_path / "mine" / "link").symlink_to("/etc/passwd")
        report({"loss": 1.0}, checkpoint=checkpoint)

    made = desk(train)
    failed = made.run()
    assert isinstance(failed, Failed)
    assert failed.failure is Failure.ERROR
    assert "a symbolic link" in failed.message.splitlines()[-1]
    assert made.steps == []
    assert not any(name.startswith(".tmp-") for name in os.listdir(Path(made.store.root, "000000")))


# ------------------------------------------------------------------------------------------------ taking files


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "empty").mkdir(parents=True)
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "nothing").write_bytes(b"")
    (folder / "deep" / "er" / "large").write_bytes(os.urandom(3_000_001))
    return folder


@pytest.mark.parametrize("cannot", [None, errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS])
def test_what_was_staged_is_published_as_if_at_once(
    cannot: int | None, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the system cannot copy by itself."""

    def copies_not(*args: Any) -> int:
        assert cannot is not None
        raise OSError(cannot, os.strerror(cannot))

    if cannot is not None:
        monkeypatch.setattr(os, "copy_file_range", copies_not)
    at_once, later = Store(tmp_path / "one"), Store(tmp_path / "other")
    digest = at_once.publish(source, 3, 5, 1)
    staged = later.stage(source, 3, 5, 1)
    assert later.steps(3) == []
    assert later.publish_staged(staged) == digest == later.verify(3, 5)
    assert sorted(os.listdir(Path(later.root, "000003"))) == ["000005"]


def test_staging_a_published_checkpoint_leaves_its_manifest_behind(source: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "one")
    store.publish(source, 3, 5, 1)
    assert store.publish_staged(store.stage(store.path(3, 5), 3, 6, 1)) == store.verify(3, 6)


def test_another_attempt_that_was_first_wins(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "one")
    staged = store.stage(source, 3, 5, 1)
    rename = os.rename

    def late(old: str, new: str) -> None:
        monkeypatch.setattr(os, "rename", rename)
        (source / "more").write_text("of it")
        store.publish(source, 3, 5, 2)
        rename(old, new)

    monkeypatch.setattr(os, "rename", late)
    assert store.publish_staged(staged) == store.verify(3, 5)
    assert Path(store.path(3, 5), "more").exists()


def test_a_folder_that_cannot_be_taken_leaves_nothing(source: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "one")
    (source / "pipe").parent.mkdir(exist_ok=True)
    os.mkfifo(source / "pipe")
    with pytest.raises(ValueError, match="a special file"):
        store.stage(source, 3, 5, 1)
    assert os.listdir(Path(store.root, "000003")) == []


# --------------------------------------------------------------------------------------------------- the queue


def test_after_one_that_fails_none_is_published_until_that_is_known() -> None:
    uploads, done = Uploads(), []

    def fails() -> None:
        raise OSError("no")

    uploads.put(lambda: done.append(1))
    uploads.put(fails)
    uploads.put(lambda: done.append(3))
    with pytest.raises(OSError, match="no"):
        uploads.wait()
    assert done == [1]
    uploads.wait()
    uploads.put(lambda: done.append(4))
    uploads.wait()
    assert done == [1, 4]
