"""Storage that is full, closed or away: tried again, then named; nothing acknowledged is lost, no trial is to blame."""

from __future__ import annotations

import errno
import os
import random
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import raytuner as tune
from raytuner.checkpoints import Checkpoint, Janitor, Staged, Store
from raytuner.events import Ended, Failed, How, Opened, Retry, Slots, StopAsked, Ticked
from raytuner.executors.simulate import Workload, World
from raytuner.record import segments
from raytuner.record.durable import sync_folder
from raytuner.record.journal import Journal, read
from raytuner.record.patience import Patience, PatientJournal, StorageError, is_outage
from raytuner.record.segments import SegmentWriter
from raytuner.results import ResultGrid
from raytuner.schedulers import AsyncHyperBandScheduler, HyperBandScheduler, PopulationBasedTraining
from raytuner.searchers import BOHB, RandomSearch
from raytuner.session import get_checkpoint, report
from raytuner.trial import Failure, Report, Reports, Trial
from tests.lives import SPACE, Case, Checks, Fate, Life, decisions, live_through
from tests.test_session import Desk, desk

__all__ = ["desk"]  # a fixture


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def patience(most_s: float | Callable[[], float] = 30.0) -> tuple[Patience, Time]:
    time = Time()
    return Patience(most_s, time, time.sleep), time


def full(path: object = None) -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# ---------------------------------------------------------------------------------------------------- patience


def test_what_succeeds_at_last_has_succeeded() -> None:
    patient, clock = patience()
    tried: list[float] = []

    def act() -> str:
        tried.append(clock.now)
        if clock.now < 12:
            raise full()
        return "done"

    assert patient.through(act, "/there") == "done"
    pauses = [after - before for before, after in pairwise(tried)]
    assert pauses[:6] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2])
    assert max(pauses) <= 5.0 + 1e-9


def test_patience_ends_with_the_path_and_the_error() -> None:
    patient, clock = patience(30.0)

    def act() -> None:
        raise full()

    with pytest.raises(StorageError, match=r"^/there: \[Errno 28\] No space left on device \(tried again for 3\d s\)$"):
        patient.through(act, "/there")
    assert 30 <= clock.now < 31
    with pytest.raises(StorageError):  # it is away: the next does not wait as long again
        patient.through(act, "/there")
    assert clock.now < 31
    assert patient.through(lambda: 1, "/there") == 1
    with pytest.raises(StorageError):  # another time
        patient.through(act, "/there")
    assert clock.now >= 60


def test_patience_may_end_early() -> None:
    left = 30.0
    patient, clock = patience(lambda: left if clock.now < 3 else 1.0)

    def act() -> None:
        raise full()

    with pytest.raises(StorageError):
        patient.through(act, "/there")
    assert 3 <= clock.now < 3.5


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        *((OSError(number, ""), True) for number in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EROFS)),
        *((OSError(number, ""), True) for number in (errno.EACCES, errno.ETIMEDOUT, errno.EFBIG, errno.ECONNREFUSED)),
        (OSError("When uploading part for key 'a' in bucket 'b': AWS Error NETWORK_CONNECTION"), True),
        *((OSError(number, ""), False) for number in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)),
        (FileNotFoundError("no such object"), False),
    ],
)
def test_what_is_an_outage(error: OSError, expected: bool) -> None:
    assert is_outage(error) is expected


def test_what_is_none_is_not_tried_again() -> None:
    patient, clock = patience()

    def act() -> None:
        raise FileNotFoundError(errno.ENOENT, "gone")

    with pytest.raises(FileNotFoundError):
        patient.through(act, "/there")
    assert clock.now == 0


# ---------------------------------------------------------------------------------------------------- the journal

TURNS: list[tuple[list[Any], list[Reports]]] = [
    ([Opened(1.0, 1), Slots(1.0, 2)], []),
    ([Ticked(2.0)], [Reports.of(0, 1, [Report(1, 1.0, {"loss": 0.5}, 2.0)])]),
    ([], [Reports.of(1, 1, [Report(1, 1.0, {"loss": 0.25}, 2.5)])]),
    ([Ticked(3.0)], [Reports.of(0, 1, [Report(2, 2.0, {"loss": 0.5, "late": 1}, 3.0)])]),  # a new segment
    ([StopAsked(4.0, "enough")], []),
]


class Storm:
    """Makes chosen writes, fsyncs, new files and truncations of the journal fail; a write leaves a part of itself."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails: Callable[[int], bool]) -> None:
        self.calls = 0
        self._fails = fails
        self._rng = random.Random(0)
        write, truncate, sync, fsync = segments._write, segments.truncate, SegmentWriter.sync, os.fsync

        def written(file: int, data: bytes) -> None:
            if self._due():
                write(file, data[: self._rng.randint(0, len(data))])
                raise full()
            write(file, data)

        def synced(writer: SegmentWriter) -> None:
            self._may(OSError(errno.EIO, "Input/output error"))
            sync(writer)

        def folder(path: Path) -> None:
            self._may(OSError(errno.ESTALE, "Stale file handle"))
            sync_folder(path)

        def truncated(path: Path, size: int) -> None:
            self._may(PermissionError(errno.EACCES, "Permission denied"))
            truncate(path, size)

        monkeypatch.setattr(segments, "_write", written)
        monkeypatch.setattr(SegmentWriter, "sync", synced)
        monkeypatch.setattr("raytuner.record.journal.sync_folder", folder)
        monkeypatch.setattr("raytuner.record.journal.truncate", truncated)
        assert fsync is os.fsync

    def _due(self) -> bool:
        self.calls += 1
        return self._fails(self.calls)

    def _may(self, error: OSError) -> None:
        if self._due():
            raise error


def contents(root: Path) -> tuple[Any, Any]:
    record = read(root)
    return list(record.rows), record.reports.to_pydict()


def write_all(root: Path, patient: Patience) -> None:
    journal = Journal(root)
    recorder = PatientJournal(journal, patient, root)
    try:
        for rows, reports in TURNS:
            recorder.commit(rows, reports)
    finally:
        journal.close()


def test_a_turn_that_fails_at_any_moment_is_written_again(fast_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        calm = Storm(patch, lambda call: False)
        write_all(fast_path / "calm", patience()[0])
    expected = contents(fast_path / "calm")
    assert calm.calls > 15
    for at in range(1, calm.calls + 1):
        for length in (1, 3):
            root = fast_path / f"{at} {length}"
            with monkeypatch.context() as patch:
                Storm(patch, lambda call, at=at, length=length: at <= call < at + length)  # type: ignore[misc]
                write_all(root, patience()[0])
            assert contents(root) == expected, (at, length)
            assert contents(root) == expected
            Journal(root).close()  # there is nothing to repair


def test_a_turn_that_cannot_be_written_leaves_what_was_acknowledged(
    fast_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        Storm(patch, lambda call: call > 14)
        with pytest.raises(StorageError, match=rf"^{fast_path}: \[Errno \d+\] .* \(tried again for 3\d s\)$"):
            write_all(fast_path, patience(30)[0])
    record = read(fast_path)
    journal = Journal(fast_path)
    turns = journal.turn
    assert 1 < turns < len(TURNS)
    assert list(record.rows) == [row for rows, _ in TURNS[:turns] for row in rows]
    recorder = PatientJournal(journal, patience()[0], fast_path)
    for rows, reports in TURNS[turns:]:
        recorder.commit(rows, reports)
    journal.close()
    assert list(read(fast_path).rows) == [row for rows, _ in TURNS for row in rows]


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """No file of this process may grow beyond that: writes fail with EFBIG, for anybody."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_real_write_that_fails_half_way(fast_path: Path) -> None:
    """The system writes as much as fits, and refuses the rest; the turn then goes to another file."""
    journal = Journal(fast_path)
    patient, clock = patience()
    recorder = PatientJournal(journal, patient, fast_path / "journal")
    with file_size_limit(20_000):
        for number in range(100):
            recorder.commit([Ticked(float(number))], [])
    journal.close()
    assert clock.now > 0
    segments = sorted((fast_path / "journal").iterdir())
    assert len(segments) > 3
    assert all(10_000 < segment.stat().st_size <= 20_000 for segment in segments[:-1])
    assert list(read(fast_path).rows) == [Ticked(float(number)) for number in range(100)]


# ------------------------------------------------------------------------------------- whole studies, simulated


CASES = {
    "random": Case(RandomSearch(), HyperBandScheduler(max_t=9), SPACE, trials=16),
    "bohb": Case(BOHB(), AsyncHyperBandScheduler(max_t=9), SPACE, trials=14),
    "pbt": Case(
        RandomSearch(),
        PopulationBasedTraining(perturbation_interval=3, hyperparam_mutations={"lr": SPACE["lr"]}),
        SPACE,
        trials=6,
        slots=3,
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("few_candidates")
def test_a_study_in_a_storm_takes_the_same_decisions(
    name: str, fast_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal fails at any moment, for a moment or for good; what could not be written has caused nothing."""
    case = CASES[name]
    expected, _ = live_through(case, fast_path / "alone", Fate(random.Random(0)), gap=None)
    outages = tries = 0
    for round_ in range(4):
        rng, root = random.Random(f"{name} {round_}"), fast_path / str(round_)
        world, checks, away = World(), Checks(), [0]

        def fails(call: int, rng: random.Random = rng, away: list[int] = away) -> bool:
            if not away[0] and rng.random() < 0.06:
                away[0] = rng.choice([1, 2, 5, 1000])
            away[0] -= 1 if (failed := away[0] > 0) else 0
            return failed

        with monkeypatch.context() as patch:
            Storm(patch, fails)
            while True:
                tries += 1
                journal = None
                try:
                    life = Life(case, root, world, Fate(random.Random(0)), checks)
                    journal = life.journal
                    life.journal = PatientJournal(journal, patience(30)[0], root)  # type: ignore[assignment]
                    life.run_to_end()
                except (StorageError, OSError):
                    outages += 1
                    away[0] = 0  # whoever resumes it found the storage well
                    continue
                finally:
                    if journal is not None:
                        journal.close()
                break
        assert decisions(read(root).rows) == expected
        checks.at_the_end(root, world)
    assert outages > 10
    assert tries > outages


@dataclass(frozen=True)
class Unsaveable(Case):
    """A case in which some checkpoints cannot be published at first; no two trials speak at the same instant."""

    struck: set[tuple[int, int]] = field(default_factory=set)
    strikes: bool = True

    def workload(self) -> Workload:
        load = super().workload()
        assert load.fault is not None
        fault = load.fault

        def strikes(trial: Trial, step: int, tries: int) -> Failure | None:
            due = random.Random(f"storage {self.seed} {trial.id} {step}").random() < 0.04
            if self.strikes and due and (trial.id, step) not in self.struck:
                self.struck.add((trial.id, step))
                return Failure.STORAGE
            return fault(trial, step, tries)

        seconds = lambda trial, step: 0.5 + random.Random(f"{trial.id} {step}").random()  # noqa: E731
        return replace(load, fault=strikes, seconds=seconds)


class Lenient(Checks):
    """A lease that the storage ended is not over."""

    def acknowledged(self, rows: Any, reports: Any) -> None:
        super().acknowledged(
            [
                row
                for row in rows
                if not (isinstance(row, Failed) and row.failure is Failure.STORAGE)
                and not (isinstance(row, Ended) and row.how is How.UNWOUND)
            ],
            reports,
        )


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("few_candidates")
def test_checkpoints_that_cannot_be_published_pause_the_study_and_cost_nothing(name: str, fast_path: Path) -> None:
    base = CASES[name]
    given = (base.searcher, base.scheduler, base.space, base.trials, base.slots)
    expected, _ = live_through(Unsaveable(*given, strikes=False), fast_path / "alone", Fate(random.Random(0)), None)
    case, world, checks, lives = Unsaveable(*given), World(), Lenient(), 0
    while True:
        lives += 1
        life = Life(case, fast_path / "hit", world, Fate(random.Random(0)), checks)
        life.run_to_end()
        life.journal.close()
        finished = life.study.finished
        assert finished is not None
        if finished.complete:
            break
        assert finished.reason.startswith("the storage failed: made to fail at step")
    assert lives > 2
    assert decisions(read(fast_path / "hit").rows) == expected
    checks.at_the_end(fast_path / "hit", world)


def test_a_failed_storage_is_charged_to_nobody(fast_path: Path) -> None:
    case = replace(Unsaveable(RandomSearch(), HyperBandScheduler(max_t=9), SPACE), slots=1)
    life = Life(case, fast_path, World(), Fate(random.Random(0)), Lenient())
    life.run_to_end()
    life.journal.close()
    failed = [row for row in read(fast_path).rows if isinstance(row, Failed)]
    assert failed[-1].failure is Failure.STORAGE
    entry = life.study.ledger[failed[-1].trial]
    before = [row for row in failed[:-1] if row.trial == failed[-1].trial]
    assert (entry.tries, entry.failures.total.total()) == (len(before), len(before))
    assert not any(isinstance(row, Retry) for row in list(read(fast_path).rows)[-2:])


# ---------------------------------------------------------------------------------------------- a trial's process


def saves(folder: Path, steps: int = 4) -> Callable[[Any], None]:
    def train(config: Any) -> None:
        begun = get_checkpoint()
        first = 1 if begun is None else int(Path(begun.path, "step").read_text()) + 1
        for step in range(first, steps + 1):
            folder.mkdir(exist_ok=True)
            (folder / "step").write_text(str(step))
            report({"loss": 1.0}, checkpoint=Checkpoint(folder))

    return train


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EIO, errno.ESTALE])
def test_a_checkpoint_is_published_once_the_storage_answers(
    number: int, tmp_path: Path, desk: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, left = os.rename, [2]

    def flaky(source: str, target: str) -> None:
        if "checkpoints" in str(target) and left[0] > 0:
            left[0] -= 1
            raise OSError(number, os.strerror(number), source, None, target)
        rename(source, target)

    monkeypatch.setattr(os, "rename", flaky)
    made = desk(saves(tmp_path / "mine"))
    ended = made.run()
    assert isinstance(ended, Ended), ended
    assert (ended.how, left[0]) == (How.RETURNED, 0)
    assert made.store.steps(0) == [1, 2, 3, 4]


@pytest.mark.parametrize("swallows", [False, True])
def test_a_checkpoint_that_cannot_be_published_is_no_error_of_the_trials(
    swallows: bool, tmp_path: Path, desk: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what was said before stands."""
    train = saves(tmp_path / "mine")

    def catches_all(config: Any) -> None:
        try:
            train(config)
        except Exception:
            raise AssertionError("it is no business of the user's code") from None

    fsync, allowed = os.fsync, [True]
    publish = Store.publish_staged

    def third_is_too_much(store: Store, staged: Staged) -> str:
        allowed[0] = staged.step < 3
        return publish(store, staged)

    def full_disk(descriptor: int) -> None:
        if not allowed[0]:
            raise full()
        fsync(descriptor)

    monkeypatch.setattr(Store, "publish_staged", third_is_too_much)
    monkeypatch.setattr(os, "fsync", full_disk)
    made = desk(catches_all if swallows else train, patience_s=0.3)
    failed = made.run()
    assert isinstance(failed, Failed)
    assert failed.failure is Failure.STORAGE
    path = made.store.path(0, 3)
    assert failed.message.startswith(f"{path}: [Errno 28] No space left on device (tried again for")
    assert made.store.steps(0) == [1, 2]
    allowed[0] = True
    monkeypatch.setattr(Store, "publish_staged", publish)
    ended = made.run(attempt=2, checkpoint=2)
    assert isinstance(ended, Ended), ended
    assert made.store.steps(0) == [1, 2, 3, 4]


def test_a_checkpoint_that_cannot_be_read_is_no_error_of_the_trials(
    tmp_path: Path, desk: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = desk(saves(tmp_path / "mine"), patience_s=0.3)
    digest = made.publish(tmp_path / "state", 0, 2)

    def away(store: Store, trial: int, step: int) -> str:
        raise OSError(errno.EIO, os.strerror(errno.EIO), store.path(trial, step))

    with monkeypatch.context() as patch:
        patch.setattr(Store, "verify", away)
        failed = made.run(checkpoint=2, digest=digest)
    assert isinstance(failed, Failed)
    assert failed.failure is Failure.STORAGE
    assert failed.message.startswith(f"{made.store.path(0, 2)}: [Errno 5] Input/output error: ")


def test_files_of_the_users_that_cannot_be_read_are_an_error_of_the_trials(
    tmp_path: Path, desk: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = os.open

    def closed(path: Any, *args: Any, **more: Any) -> int:
        if str(path).startswith(str(tmp_path / "mine")):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *args, **more)

    monkeypatch.setattr(os, "open", closed)
    failed = desk(saves(tmp_path / "mine"), patience_s=30).run()
    assert isinstance(failed, Failed)
    assert failed.failure is Failure.ERROR
    assert failed.message.splitlines()[-1].startswith("PermissionError")


def test_who_waits_for_the_storage_and_is_told_to_end_does_not_wait_for_ever(
    tmp_path: Path, desk: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Desk] = []

    def away(*args: Any) -> str:
        made[0].runner.unwind(0, 1, parked=False)
        raise full()

    monkeypatch.setattr(Store, "stage", away)
    made.append(desk(saves(tmp_path / "mine"), patience_s=1000, grace_s=1.0))
    failed = made[0].run()
    assert isinstance(failed, Failed)
    assert failed.failure is Failure.STORAGE


# ------------------------------------------------------------------------------------------------- the janitor


def test_the_janitor_tries_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "checkpoints")
    (tmp_path / "state").mkdir()
    for step in (1, 2, 3):
        store.publish(tmp_path / "state", 0, step, 1)
    rename, left = os.rename, [3]

    def flaky(source: str, target: str) -> None:
        left[0] -= 1
        if left[0] >= 0:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), source)
        rename(source, target)

    monkeypatch.setattr(os, "rename", flaky)
    janitor = Janitor(store, patience()[0])
    janitor.delete(0, 1)
    janitor.sweep({(0, 2)})
    janitor.close()
    assert store.steps(0) == [2]


def test_what_the_janitor_cannot_remove_is_left_to_the_next_sweep_which_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(tmp_path / "checkpoints")
    (tmp_path / "state").mkdir()
    store.publish(tmp_path / "state", 0, 1, 1)

    def closed(source: str, target: str) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), source)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", closed)
        janitor = Janitor(store, patience()[0])
        janitor.delete(0, 1)
        with pytest.raises(StorageError, match=f"^{store.root}: .*Read-only file system"):
            janitor.sweep(set())
        janitor.close()
    assert "a checkpoint could not be removed, and is left to the next sweep" in caplog.text
    assert store.steps(0) == [1]
    store.sweep(set())
    assert store.steps(0) == []


# ------------------------------------------------------------------------------------------------ whole studies


SCRIPT = '''
"""A study in the folder that it is given; whoever runs it again goes on. Checkpoints of the given size."""
import sys
from pathlib import Path
import raytuner as tune

folder, size, patience_s = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
scratch = Path(sys.argv[4])

def train(config):
    begun = tune.get_checkpoint()
    first = 1 if begun is None else int(Path(begun.path, "step").read_text()) + 1
    for step in range(first, 7):
        (scratch / "step").write_text(str(step))
        if not (scratch / "weights").exists():
            (scratch / "weights").write_bytes(bytes(size))
        tune.report({"loss": config["x"] / step}, checkpoint=tune.Checkpoint(scratch))

tuner = tune.Tuner(
    train,
    param_space={"x": tune.uniform(0, 1)},
    tune_config=tune.TuneConfig(metric="loss", mode="min", num_samples=3, seed=1, chdir_to_trial_dir=False),
    run_config=tune.RunConfig(
        name="study", storage_path=folder, storage_patience_s=patience_s,
        checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
    ),
    executor="inline",
)
try:
    print("complete", len(tuner.fit()))
except tune.StorageError as error:
    print("StorageError", error)
'''


def run_script(folder: Path, scratch: Path, size: int, patience_s: float) -> str:
    scratch.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), str(size), str(patience_s), str(scratch)],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two MiB, where one may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, timeout=30
        )
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if mounted.returncode:
        pytest.skip("this user may not mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True, timeout=30)


@pytest.mark.timeout(240)
def test_a_full_disk_pauses_the_study_which_goes_on_when_there_is_room(small_disk: Path, tmp_path: Path) -> None:
    """A real one: the journal lies on it, too."""
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(1_300_000))
    said = run_script(small_disk, tmp_path / "scratch", 300_000, 0.5)
    assert "StorageError" in said, said
    assert f"{small_disk}/study/" in said.splitlines()[-1]
    assert "No space left on device" in said.splitlines()[-1]
    assert "Nothing that was recorded is lost. To go on:" in said
    before = list(read(small_disk / "study").rows)
    ballast.unlink()
    said = run_script(small_disk, tmp_path / "scratch", 300_000, 0.5)
    assert said.splitlines()[-1] == "complete 3", said
    record = read(small_disk / "study")
    assert list(record.rows)[: len(before)] == before
    assert {row.failure for row in record.rows if isinstance(row, Failed)} <= {Failure.STORAGE}
    results = ResultGrid(small_disk / "study")
    assert results.num_errors == 0
    written = list(zip(record.reports["trial"].to_pylist(), record.reports["step"].to_pylist(), strict=True))
    assert sorted(written) == [(trial, step) for trial in range(3) for step in range(1, 7)]


@pytest.mark.timeout(240)
def test_checkpoints_that_are_too_large_pause_the_study(tmp_path: Path) -> None:
    """For anybody, on any system: no file may grow beyond a limit, and the journal's stay below it."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (scratch / "weights").write_bytes(bytes(200_000))
    with file_size_limit(100_000):  # what this process starts has it, too
        said = run_script(tmp_path, scratch, 200_000, 0.5)
    assert re.search(r"^StorageError .*/000000/000001: \[Errno 27\] File too large", said, re.MULTILINE), said
    said = run_script(tmp_path, scratch, 200_000, 0.5)
    assert said.splitlines()[-1] == "complete 3", said
    assert ResultGrid(tmp_path / "study").num_errors == 0


def test_the_patience_of_a_study_is_a_number_of_seconds() -> None:
    with pytest.raises(ValueError, match="storage_patience_s must be a number of seconds above 0, got -1"):
        tune.RunConfig(storage_patience_s=-1)
    assert tune.RunConfig().storage_patience_s == 30.0
