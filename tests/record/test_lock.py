"""One driver at a time: who has a study, who is told so, and who finds out that he has lost it."""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest

from raytuner.events import Opened, Ticked
from raytuner.record import segments
from raytuner.record.folder import NoStudy
from raytuner.record.journal import Journal, Row, read
from raytuner.record.lock import FileLock, Mount, StudyInUse, StudyTaken, mount_of
from raytuner.record.segments import DamagedSegment
from tests.record.test_journal import files, reopened, said, write

HOLDER = """
import sys
from pathlib import Path
from raytuner.record.lock import FileLock

lock = FileLock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.readline()
lock.release()
print("released", flush=True)
sys.stdin.readline()
"""


@contextmanager
def holder(root: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process, which has the lock."""
    pipe: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(root)], **pipe) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_is_told_who_runs_the_study(tmp_path: Path) -> None:
    root = tmp_path / "study"
    with holder(root) as process:
        with pytest.raises(StudyInUse) as caught:
            FileLock(root)
        message = str(caught.value)
        assert message.startswith(f"the study in {root} is being run by process {process.pid} on ")
        assert f" on {socket.gethostname()}, since 2" in message
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "released\n"
        FileLock(root).release()


def test_a_dead_holders_place_is_free(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        with FileLock(tmp_path):
            said = json.loads((tmp_path / "lock").read_text())
            assert (said["pid"], said["host"]) == (os.getpid(), socket.gethostname())


def test_one_process_has_one_lock_too(tmp_path: Path) -> None:
    with FileLock(tmp_path):
        with pytest.raises(StudyInUse, match=rf"by process {os.getpid()} on "):
            FileLock(tmp_path)
        with pytest.raises(StudyInUse):  # the refused one has not freed it
            FileLock(tmp_path)
    with FileLock(tmp_path), FileLock(tmp_path.parent / "another"):
        pass


def test_an_error_frees_the_study(tmp_path: Path) -> None:
    with pytest.raises(KeyError), FileLock(tmp_path):
        raise KeyError
    FileLock(tmp_path).release()


def test_many_want_it_and_one_gets_it(tmp_path: Path) -> None:
    got: list[FileLock] = []
    refused: list[StudyInUse] = []

    def want() -> None:
        try:
            got.append(FileLock(tmp_path))
        except StudyInUse as error:
            refused.append(error)

    threads = [threading.Thread(target=want) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(got), len(refused)) == (1, 7)
    got[0].release()


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", '{"pid": 1}', "null"])
def test_a_holder_who_has_not_signed_yet(text: str, tmp_path: Path) -> None:
    with FileLock(tmp_path):
        (tmp_path / "lock").write_text(text)
        with pytest.raises(StudyInUse, match=r"is being run by another process$"):
            FileLock(tmp_path)


def test_a_refusal_says_when_the_holder_was_last_heard_of(tmp_path: Path) -> None:
    with FileLock(tmp_path, beat_s=3600):
        then = time.time() - 400
        os.utime(tmp_path / "lock", (then, then))
        with pytest.raises(StudyInUse, match=r"last heard of 40\d s ago"):
            FileLock(tmp_path)


def test_the_heart_beats(tmp_path: Path) -> None:
    with FileLock(tmp_path, beat_s=0.01):
        os.utime(tmp_path / "lock", (0, 0))
        while (tmp_path / "lock").stat().st_mtime == 0:
            time.sleep(0.01)


# ------------------------------------------------------------------------------------- a driver that lost its lock


def test_a_lock_that_was_removed_is_lost(tmp_path: Path) -> None:
    with FileLock(tmp_path) as zombie:
        zombie.check()
        (tmp_path / "lock").unlink()
        with pytest.raises(StudyTaken, match="its file 'lock' was removed"):
            zombie.check()
        with FileLock(tmp_path) as holder:
            holder.check()
            with pytest.raises(StudyTaken, match=rf"was taken over by process {os.getpid()} on .*, since 2"):
                zombie.check()


def test_a_driver_without_its_lock_writes_nothing(fast_path: Path) -> None:
    with FileLock(fast_path) as lock:
        zombie = Journal(fast_path, lock)
        zombie.commit([Opened(1.0, 1)], [])
        (fast_path / "lock").unlink()
        before = files(fast_path / "journal")
        with pytest.raises(StudyTaken):
            zombie.commit([Ticked(2.0)], [])
        assert files(fast_path / "journal") == before
        zombie.close()


def test_what_a_driver_wrote_while_it_lost_its_lock_is_not_acknowledged(
    fast_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped between the look at the lock and the write, as long as it takes another one to begin."""
    write = segments._write
    others: list[Journal] = []

    def stopped(file: int, data: bytes) -> None:
        monkeypatch.setattr(segments, "_write", write)
        (fast_path / "lock").unlink()
        others.append(Journal(fast_path, FileLock(fast_path)))
        others[0].commit([Opened(2.0, 2)], [])
        write(file, data)

    with FileLock(fast_path) as lock:
        zombie = Journal(fast_path, lock)
        zombie.commit([Opened(1.0, 1)], [])
        monkeypatch.setattr(segments, "_write", stopped)
        with pytest.raises(StudyTaken):
            zombie.commit([Ticked(3.0)], [said(0, 1, loss=1.0)])
    assert list(read(fast_path).rows) == [Opened(1.0, 1), Opened(2.0, 2)]
    others[0].commit([Ticked(4.0)], [])
    assert list(read(fast_path).rows) == [Opened(1.0, 1), Opened(2.0, 2), Ticked(4.0)] == reopened(fast_path)


@pytest.mark.parametrize("seed", range(60))
def test_rows_of_an_older_epoch_do_not_count(seed: int, fast_path: Path) -> None:
    """Drivers that know nothing of each other write at the same time: the newest one's rows count from where it began,
    also where an older one dies in the middle of a write."""
    rng = random.Random(seed)
    alive = [Journal(fast_path)]
    expected: list[Row] = []
    reported: list[int] = []
    numbers = itertools.count()
    for _ in range(rng.randint(8, 30)):
        if rng.random() < 0.2 and len(alive) < 4:
            alive.append(Journal(fast_path))
            assert list(alive[-1].rows()) == expected
            opened = Opened(float(next(numbers)), len(alive))
            alive[-1].commit([opened], [])
            expected.append(opened)
            continue
        who, number = rng.choice(alive), next(numbers)
        rows = [Ticked(float(number))] if rng.random() < 0.7 else []
        reports = [said(0, number + 1, **{rng.choice("ab"): 1.0})] if not rows or rng.random() < 0.5 else []
        if who is not alive[-1] and rng.random() < 0.3:
            tear(fast_path, rng, who)
        with suppress(FileExistsError):  # a zombie that would begin a file which is there
            who.commit(rows, reports)
            if who is alive[-1]:
                expected += rows
                reported += [number + 1] * len(reports)
        found = read(fast_path)
        assert list(found.rows) == expected
        assert found.reports["step"].to_pylist() == reported
    assert reopened(fast_path) == expected


def tear(root: Path, rng: random.Random, zombie: Journal) -> None:
    """Half a message at the end of the file that a zombie appends to; it never comes to write the other half."""
    writer = zombie._events._writer
    newest = sorted((root / "journal").glob("*.arrow"))[-1]
    if writer is not None and writer.path != newest:
        with open(writer.path, "ab") as file:
            file.write(rng.randbytes(rng.randint(1, 200)))
        zombie.commit = lambda rows, reports: None  # type: ignore[method-assign]


def test_a_missing_tail_of_an_older_epoch_is_damage(fast_path: Path) -> None:
    write(fast_path, ([Opened(1.0, 1)], []), ([Ticked(2.0)], []))
    write(fast_path, ([Opened(3.0, 2)], []))
    path = fast_path / "journal" / "000000.arrow"
    os.truncate(path, path.stat().st_size - 10)
    with pytest.raises(DamagedSegment, match=r"000000\.arrow is damaged at byte"):
        read(fast_path)
    with pytest.raises(DamagedSegment, match=r"000000\.arrow is damaged at byte"):
        Journal(fast_path)


def test_what_an_older_version_appended_counts(fast_path: Path) -> None:
    write(fast_path, ([Opened(1.0, 1)], []))
    old = Journal(fast_path)
    old._events.epoch = old._reports.epoch = None
    old.commit([Opened(2.0, 2)], [])
    old.close()
    write(fast_path, ([Opened(3.0, 3)], []))
    assert list(read(fast_path).rows) == [Opened(1.0, 1), Opened(2.0, 2), Opened(3.0, 3)]


ZOMBIE = """
import sys
from pathlib import Path
from raytuner.events import Opened, Ticked
from raytuner.record.folder import NoStudy
from raytuner.record.journal import Journal
from raytuner.record.lock import FileLock, StudyTaken

root = Path(sys.argv[1])
with FileLock(root) as lock:
    journal = Journal(root, lock)
    journal.commit([Opened(1.0, 1)], [])
    print("held", flush=True)
    sys.stdin.readline()
    try:
        journal.commit([Ticked(2.0)], [])
    except StudyTaken as error:
        print(error, flush=True)
"""


def test_a_process_that_was_stopped_and_wakes_up_is_refused(fast_path: Path) -> None:
    pipe: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", ZOMBIE, str(fast_path)], **pipe) as zombie:
        try:
            assert zombie.stdout is not None
            assert zombie.stdin is not None
            assert zombie.stdout.readline() == "held\n"
            zombie.send_signal(signal.SIGSTOP)
            with pytest.raises(StudyInUse, match=f"process {zombie.pid} on "):  # stopped is not dead
                FileLock(fast_path)
            (fast_path / "lock").unlink()
            with FileLock(fast_path) as lock:
                journal = Journal(fast_path, lock)
                journal.commit([Opened(3.0, 2)], [])
                zombie.send_signal(signal.SIGCONT)
                zombie.stdin.write("\n")
                zombie.stdin.flush()
                assert f"was taken over by process {os.getpid()} on " in zombie.stdout.readline()
                journal.commit([Ticked(4.0)], [])
                journal.close()
        finally:
            zombie.kill()
    assert list(read(fast_path).rows) == [Opened(1.0, 1), Opened(3.0, 2), Ticked(4.0)]


# ---------------------------------------------------------------------------------- file systems of several hosts

MOUNTS = r"""
22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
30 22 0:40 / /mnt/nfs rw - nfs4 server:/x rw,vers=4.2,local_lock=none
31 30 0:41 / /mnt/nfs/deeper rw - nfs server:/y rw,vers=3,nolock,local_lock=all
32 22 0:42 / /mnt/with\040blank rw - lustre mds:/x rw,flock
33 22 0:43 / /mnt/bucket rw - fuse.s3fs s3fs rw
34 22 0:44 / /mnt/ssh rw - fuse.sshfs host: rw
35 22 0:45 / /mnt/ssh rw - tmpfs over rw
"""


@pytest.mark.parametrize(
    ("path", "kind", "shared", "refused"),
    [
        ("/home/me", "ext4", False, ""),
        ("/mnt/nfs/study", "nfs4", True, ""),
        ("/mnt/nfs/deeper/study", "nfs", True, "mounted with local_lock=all, nolock, without common locks"),
        ("/mnt/nfsomething", "ext4", False, ""),
        ("/mnt/with blank", "lustre", True, ""),
        ("/mnt/bucket/x", "fuse.s3fs", True, "an object store that poses as a file system"),
        ("/mnt/ssh/x", "tmpfs", False, ""),
    ],
)
def test_mounts(path: str, kind: str, shared: bool, refused: str, tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(MOUNTS)
    mount = mount_of(Path(path), table)
    assert (mount.kind, mount.shared) == (kind, shared)
    with pytest.raises(ValueError, match=refused) if refused else nullcontext():
        mount.must_lock(Path(path))


def test_where_nothing_is_known_of_mounts(tmp_path: Path) -> None:
    assert not mount_of(tmp_path, tmp_path / "none").shared


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Mount:
    """As if the test's folder were on a file system of several hosts."""
    mount = Mount("nfs4", "/mnt/nfs", frozenset({"rw"}))
    monkeypatch.setattr("raytuner.record.lock.mount_of", lambda path: mount)
    return mount


@pytest.mark.usefixtures("network")
def test_a_lock_that_holds_is_taken_on_a_network_file_system(tmp_path: Path) -> None:
    with FileLock(tmp_path), pytest.raises(StudyInUse):
        FileLock(tmp_path)
    FileLock(tmp_path).release()


@pytest.mark.usefixtures("network")
def test_a_lock_that_two_processes_get_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raytuner.record.lock.fcntl.flock", lambda file, how: None)
    with pytest.raises(ValueError, match="the nfs4 file system at /mnt/nfs gives the same lock to two processes"):
        FileLock(tmp_path)


def test_a_file_system_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(file: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("raytuner.record.lock.fcntl.flock", none)
    with pytest.raises(ValueError, match="gives no locks"):
        FileLock(tmp_path)


@pytest.mark.usefixtures("network")
@pytest.mark.parametrize("dead", [False, True])
def test_a_holder_on_another_host_is_believed_while_its_heart_beats(dead: bool, tmp_path: Path) -> None:
    there = {"host": "another-host", "pid": 7, "since": "2026-01-01 00:00:00"}
    (tmp_path / "lock").write_text(json.dumps(there))
    if dead:
        os.utime(tmp_path / "lock", (time.time() - 31, time.time() - 31))
        FileLock(tmp_path).release()
    else:
        with pytest.raises(StudyInUse, match=r"process 7 on another-host.*its place is free 30 s after"):
            FileLock(tmp_path)


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("keep")
    (tmp_path / "lock").symlink_to(tmp_path / "mine")
    with pytest.raises(NoStudy, match="lock is a symbolic link, which is not followed"):
        FileLock(tmp_path)
    assert (tmp_path / "mine").read_text() == "keep"
