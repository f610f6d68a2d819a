"""A trial's working directory and log files: there while its code runs, and only then."""

from __future__ import annotations

import copy
import io
import logging
import os
import pickle
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from raytuner.events import Ended, Failed, How
from raytuner.mailbox import Leases, Outbox
from raytuner.session import Rules, Session, report
from raytuner.surroundings import Surroundings, clear_spares
from raytuner.trial import END, Lease, Trial


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the process stands; the test gives it back."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    return home


@pytest.fixture(autouse=True)
def streams() -> Iterator[None]:
    """Whatever a test does: the streams are the same afterwards, and no file is left open."""
    before, files = (sys.stdout, sys.stderr), open_files()
    yield
    clear_spares()
    assert (sys.stdout, sys.stderr) == before
    assert open_files() == files


def open_files() -> list[str]:
    found = []
    for each in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{each}"))
        except FileNotFoundError:  # the listing's own
            continue
    return sorted(path for path in found if path.startswith("/") and "/proc/" not in path)


# ---------------------------------------------------------------------------------------------- nothing is asked for


def test_nothing_is_touched_where_nothing_is_asked_for(tmp_path: Path, home: Path) -> None:
    around = Surroundings(tmp_path / "trial", False, None, None)
    stdout = sys.stdout
    around.enter()
    assert sys.stdout is stdout
    os.chdir(tmp_path)
    around.leave()
    assert Path.cwd() == tmp_path
    around.forget()
    assert os.listdir(tmp_path) == ["home"]


# ------------------------------------------------------------------------------------------------- working directory


def test_the_folder_is_the_working_directory_while_the_trial_runs(tmp_path: Path, home: Path) -> None:
    around = Surroundings(tmp_path / "artifacts" / "000003", True, None, None)
    assert not (tmp_path / "artifacts").exists()
    around.enter()
    assert Path.cwd() == tmp_path / "artifacts" / "000003"
    Path("model.pt").write_text("weights")
    around.leave()
    assert Path.cwd() == home
    around.enter()
    assert Path("model.pt").read_text() == "weights"
    around.forget()
    assert Path.cwd() == home
    assert (tmp_path / "artifacts" / "000003" / "model.pt").exists()


def test_a_directory_that_the_trial_chose_is_its_own_only(tmp_path: Path, home: Path) -> None:
    around = Surroundings(tmp_path / "trial", True, None, None)
    around.enter()
    os.mkdir("deeper")
    os.chdir("deeper")
    around.leave()
    assert Path.cwd() == home
    around.enter()
    assert Path.cwd() == tmp_path / "trial" / "deeper"
    around.forget()
    assert Path.cwd() == home


def test_a_directory_that_is_gone_is_replaced_by_the_folder(tmp_path: Path, home: Path) -> None:
    around = Surroundings(tmp_path / "trial", True, None, None)
    around.enter()
    os.mkdir("deeper")
    os.chdir("deeper")
    around.leave()
    (tmp_path / "trial" / "deeper").rmdir()
    (tmp_path / "trial").rmdir()
    around.enter()
    assert Path.cwd() == tmp_path / "trial"
    around.forget()


def test_that_the_old_directory_is_gone_is_not_the_trials_fault(tmp_path: Path, home: Path) -> None:
    around = Surroundings(tmp_path / "trial", True, None, None)
    around.enter()
    home.rmdir()
    around.leave()
    around.forget()
    os.chdir(tmp_path)


def test_an_empty_folder_goes(tmp_path: Path, home: Path) -> None:
    around = Surroundings(tmp_path / "trial", True, None, None)
    around.enter()
    assert (tmp_path / "trial").is_dir()
    around.forget()
    clear_spares()
    assert not (tmp_path / "trial").exists()
    (tmp_path / "trial").mkdir()
    around.forget()
    clear_spares()
    assert (tmp_path / "trial").exists()  # this one is not ours any more


def test_an_empty_folder_becomes_the_next_trials(tmp_path: Path, home: Path) -> None:
    for name in ("one", "two"):
        around = Surroundings(tmp_path / name, True, None, None)
        around.enter()
        assert Path.cwd() == tmp_path / name
        assert sorted(os.listdir(tmp_path)) == ["home", name]
        around.forget()
        assert not (tmp_path / name).exists()
    other = Surroundings(tmp_path / "elsewhere" / "three", True, None, None)
    other.enter()
    Path("model.pt").write_text("weights")
    other.forget()
    clear_spares()
    assert sorted(os.listdir(tmp_path)) == ["elsewhere", "home"]
    assert (tmp_path / "elsewhere" / "three" / "model.pt").exists()


def test_a_folder_that_is_kept_cannot_be_anothers(tmp_path: Path, home: Path) -> None:
    """A trial that is over here goes on in another process, whose folder must not be taken for the next one here."""
    first = Surroundings(tmp_path / "one", True, None, None)
    first.enter()
    first.forget()
    elsewhere = tmp_path / "one"
    elsewhere.mkdir()
    (elsewhere / "weights").write_text("of another process")
    second = Surroundings(tmp_path / "two", True, None, None)
    second.enter()
    assert (elsewhere / "weights").exists()
    assert os.listdir(tmp_path / "two") == []
    second.forget()
    clear_spares()


def test_a_folder_in_which_others_may_be_is_left(tmp_path: Path, home: Path) -> None:
    around = Surroundings(tmp_path / "one", True, None, None)
    around.enter()
    around.forget(ours=False)
    assert (tmp_path / "one").is_dir()
    following = Surroundings(tmp_path / "two", True, None, None)
    following.enter()
    assert (tmp_path / "one").is_dir()
    following.forget()
    clear_spares()


def test_an_empty_folder_does_not_take_the_place_of_an_empty_one(tmp_path: Path, home: Path) -> None:
    """Somebody may be in it."""
    (tmp_path / "two").mkdir()
    inode = (tmp_path / "two").stat().st_ino
    for name in ("one", "two"):
        around = Surroundings(tmp_path / name, True, None, None)
        around.enter()
        around.forget()
    assert (tmp_path / "two").stat().st_ino == inode
    clear_spares()


def test_an_empty_folder_does_not_take_the_place_of_a_full_one(tmp_path: Path, home: Path) -> None:
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "model.pt").write_text("weights")
    for name in ("one", "two"):
        around = Surroundings(tmp_path / name, True, None, None)
        around.enter()
        around.forget()
    clear_spares()
    assert sorted(os.listdir(tmp_path)) == ["home", "two"]
    assert os.listdir(tmp_path / "two") == ["model.pt"]


def test_an_empty_folder_that_was_there_before_stays(tmp_path: Path, home: Path) -> None:
    (tmp_path / "trial").mkdir()
    around = Surroundings(tmp_path / "trial", True, None, None)
    around.enter()
    around.forget()
    assert (tmp_path / "trial").is_dir()


def test_forget_without_enter_makes_nothing(tmp_path: Path, home: Path) -> None:
    around = Surroundings(tmp_path / "trial", True, "stdout", "stderr")
    around.leave()
    around.forget()
    assert not (tmp_path / "trial").exists()


def test_enter_twice_is_once(tmp_path: Path, home: Path) -> None:
    around = Surroundings(tmp_path / "trial", True, "stdout", None)
    around.enter()
    around.enter()
    around.leave()
    assert Path.cwd() == home
    around.leave()
    around.forget()


# --------------------------------------------------------------------------------------------------------- log files


def test_what_is_printed_goes_to_the_file_and_where_it_went_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    around = Surroundings(tmp_path / "trial", False, "out.txt", "err.txt")
    around.enter()
    print("loss 1.0")
    print("a warning", file=sys.stderr)
    assert (tmp_path / "trial" / "out.txt").read_text() == "loss 1.0\n"  # at once, line by line
    around.leave()
    print("another trial's")
    around.enter()
    sys.stdout.writelines(["loss", " 0.5\n"])
    around.forget()
    print("the next trial's")
    assert (tmp_path / "trial" / "out.txt").read_text() == "loss 1.0\nloss 0.5\n"
    assert (tmp_path / "trial" / "err.txt").read_text() == "a warning\n"
    said = capsys.readouterr()
    assert said.out == "loss 1.0\nanother trial's\nloss 0.5\nthe next trial's\n"
    assert said.err == "a warning\n"


def test_one_stream_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    around = Surroundings(tmp_path, False, None, "err.txt")
    stdout = sys.stdout
    around.enter()
    assert sys.stdout is stdout
    print("seen", file=sys.stderr)
    around.forget()
    assert os.listdir(tmp_path) == ["err.txt"]


def test_one_file_for_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    around = Surroundings(tmp_path, False, "log", "log")
    around.enter()
    print("one")
    print("two", file=sys.stderr)
    print("three")
    around.forget()
    assert (tmp_path / "log").read_text() == "one\ntwo\nthree\n"


def test_an_earlier_run_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for line in ("one", "two"):
        around = Surroundings(tmp_path, False, "log", None)
        around.enter()
        print(line)
        around.forget()
    assert (tmp_path / "log").read_text() == "one\ntwo\n"


def test_a_line_that_is_not_ended_is_not_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    around = Surroundings(tmp_path, False, "log", None)
    around.enter()
    print("no end", end="")
    sys.stdout.flush()
    assert (tmp_path / "log").read_text() == "no end"
    print(", still none", end="")
    around.leave()
    assert (tmp_path / "log").read_text() == "no end, still none"
    around.forget()


def test_a_handler_that_keeps_the_stream_is_heard_while_the_trial_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    around = Surroundings(tmp_path, False, None, "log")
    around.enter()
    handler = logging.StreamHandler()
    record = logging.LogRecord("train", logging.INFO, __file__, 1, "epoch %d", (1,), None)
    handler.emit(record)
    around.leave()
    handler.emit(record)
    around.enter()
    handler.emit(record)
    around.forget()
    handler.emit(record)
    assert (tmp_path / "log").read_text() == "epoch 1\n" * 2
    assert capsys.readouterr().err == "epoch 1\n" * 4  # without "--- Logging error ---"


def test_a_stream_that_the_trial_chose_is_its_own_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    around = Surroundings(tmp_path, False, "log", None)
    around.enter()
    kept = io.StringIO()
    with redirect_stdout(kept):
        around.leave()
        print("another trial's")
        around.enter()
        print("kept")
    print("copied")
    around.forget()
    assert kept.getvalue() == "kept\n"
    assert (tmp_path / "log").read_text() == "copied\n"
    assert capsys.readouterr().out == "another trial's\ncopied\n"


def test_a_full_disk_costs_the_copy_and_not_the_trial(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opens = os.open  # no link to it, which would not be followed
    full = "/dev/full"
    monkeypatch.setattr(os, "open", lambda path, *rest: opens(full if str(path).endswith("log") else path, *rest))
    around = Surroundings(tmp_path, False, "log", None)
    around.enter()
    print("seen")
    sys.stdout.flush()
    around.forget()
    assert capsys.readouterr().out == "seen\n"


def test_a_file_that_cannot_be_opened_leaves_nothing_open(tmp_path: Path) -> None:
    (tmp_path / "zzz").mkdir()
    around = Surroundings(tmp_path, True, "aaa", "zzz")
    with pytest.raises(IsADirectoryError):
        around.enter()
    around.forget()  # the fixture looks at streams and open files


def test_to_all_else_the_stream_is_the_original(tmp_path: Path) -> None:
    around = Surroundings(tmp_path, False, "log", None)
    original = sys.stdout
    around.enter()
    assert sys.stdout.encoding == original.encoding
    assert sys.stdout.isatty() == original.isatty()
    assert copy.deepcopy(sys.stdout) is sys.stdout
    travels = pickle.dumps(sys.stdout)
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = sys.stdout.no_such_thing  # type: ignore[union-attr]
    around.forget()
    assert pickle.loads(travels) is sys.stdout  # the stream of where it arrives


# ---------------------------------------------------------------------------------------------- around real sessions


def lease(until: int = END, attempt: int = 1) -> Lease:
    return Lease(Trial(5, {}), attempt, until, None, 5, 0, 0.0, 0)


def test_a_session_has_its_surroundings_while_its_code_runs(
    tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "study" / "artifacts" / "000005"

    def train(config: object) -> None:
        print("in", Path.cwd().name)
        report({"loss": 1.0})
        print("again in", Path.cwd().name)
        try:
            report({"loss": 1.0})
        finally:
            Path("last words").write_text("written when it was unwound")

    rules = Rules(tmp_path / "study" / "checkpoints", {}, chdir=True, stdout="log", stderr="log")
    outbox, leases = Outbox(), Leases()
    session = Session(train, lease(until=1), rules, {}, outbox, leases)
    thread = threading.Thread(target=session.run)
    thread.start()
    assert last_of(outbox).how is How.REACHED
    assert Path.cwd() == home
    leases.add([lease(until=2, attempt=2)])
    assert last_of(outbox).how is How.REACHED
    assert Path.cwd() == home
    leases.close()
    thread.join(30)
    assert not thread.is_alive()
    assert Path.cwd() == home
    assert (folder / "log").read_text() == "in 000005\nagain in 000005\n"
    assert (folder / "last words").exists()
    assert not (home / "last words").exists()


def test_a_trial_that_fails_leaves_its_surroundings(
    tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(config: object) -> None:
        raise RuntimeError("no such luck")

    outbox = Outbox()
    rules = Rules(tmp_path / "study" / "checkpoints", {}, chdir=True, stdout="log")
    Session(train, lease(), rules, {}, outbox, Leases()).run()
    (failed,) = outbox.take()
    assert isinstance(failed, Failed)
    assert Path.cwd() == home


def last_of(outbox: Outbox) -> Ended:
    """Wait for the lease's end."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for item in outbox.take(timeout_s=30):
            if isinstance(item, Ended):
                return item
            assert not isinstance(item, Failed), item
    raise TimeoutError("the lease does not end")
