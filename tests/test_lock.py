"""One driver at a time: who has a study, who is told so, and who finds out that he has lost it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from raytuner.lock import FileLock, StudyInUse

HOLDER = """
import sys
from pathlib import Path
from raytuner.lock import FileLock

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
