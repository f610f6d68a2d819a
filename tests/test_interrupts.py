"""Ctrl-C and SIGTERM: alone, and typed into a terminal in which a sweep runs on a real Ray.

The terminal is a pseudo-terminal with a session of its own: what is typed reaches the whole foreground process group,
Ray's processes too, as from a keyboard.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import shlex
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from raytuner.events import Ended, Finish, How, StopAsked
from raytuner.interrupts import Interrupts
from raytuner.record.folder import Folder
from raytuner.record.journal import read
from raytuner.results import ResultGrid
from raytuner.trial import State

ROOT = Path(__file__).parent.parent

# ---------------------------------------------------------------------------------------------------------- alone


@pytest.fixture(autouse=True)
def in_the_foreground() -> Iterator[None]:
    """Whoever starts the tests from a script, in the background, has them ignore Ctrl-C."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("number", "asked", "status"), [(signal.SIGINT, "Ctrl-C", 130), (signal.SIGTERM, "SIGTERM", 143)]
)
def test_the_first_is_noted_and_the_second_raises(number: signal.Signals, asked: str, status: int) -> None:
    with Interrupts() as interrupts:
        assert (interrupts.asked, interrupts.status) == (None, 0)
        signal.raise_signal(number)
        assert (interrupts.asked, interrupts.status) == (asked, status)
        for second in (number, signal.SIGINT, signal.SIGTERM):
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(second)
        assert (interrupts.asked, interrupts.status) == (asked, status), "that which came first"


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


def test_the_handlers_are_put_back() -> None:
    before = handlers()
    with Interrupts():
        assert handlers() != before
    assert handlers() == before
    with pytest.raises(ZeroDivisionError), Interrupts():
        _ = 1 / 0
    assert handlers() == before


def test_a_handler_that_came_later_stays() -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        with Interrupts():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.fixture
def ignored() -> Iterator[None]:
    """SIGINT is ignored, as in what a shell runs in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ignored")
def test_what_was_ignored_stays_ignored() -> None:
    with Interrupts() as interrupts:
        signal.raise_signal(signal.SIGINT)
        assert interrupts.asked is None
        signal.raise_signal(signal.SIGTERM)
        assert interrupts.asked == "SIGTERM"


def test_in_another_thread_nothing_changes() -> None:
    before, seen = handlers(), []

    def enter() -> None:
        with Interrupts() as interrupts:
            seen.append((handlers() == before, interrupts.asked))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [(True, None)]
    assert handlers() == before


# ---------------------------------------------------------------------------------------------------- in a terminal

SCRIPT = '''
"""Three trials of {steps} steps; each step that is begun is written down."""

import tempfile
import time
from pathlib import Path

import raytuner as tune

HERE = Path(__file__).parent


def hurry() -> bool:
    return (HERE / "hurry").exists()


def train(config):
    trial, step = tune.get_context().get_trial_id(), 0
    if checkpoint := tune.get_checkpoint():
        step = int(Path(checkpoint.path, "step").read_text())
    while step < {steps}:
        step += 1
        with open(HERE / f"begun-{{trial}}", "a") as file:
            file.write(f"{{step}}\\n")
        begun = time.monotonic()
        while not hurry() and time.monotonic() - begun < {step_s}:
            time.sleep(0.01)
        metrics = {{"loss": config["x"] / step}}
        if not tune.should_checkpoint():
            tune.report(metrics)
            continue
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "step").write_text(str(step))
            tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(folder))


tune.Tuner(
    train,
    param_space={{"x": tune.uniform(0, 1)}},
    tune_config=tune.TuneConfig(metric="loss", mode="min", num_samples=3, max_concurrent_trials=2, seed=1),
    run_config=tune.RunConfig(name="study", storage_path=HERE, stop_grace_s=60.0),
).fit()
print("the script goes on")
'''
TAKES_THE_TERMINAL = """
import fcntl, os, signal, sys, termios
for number in (signal.SIGINT, signal.SIGTERM):  # as a shell does for what it runs in the foreground
    signal.signal(number, signal.SIG_DFL)
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""


class Terminal:
    """A terminal in which a command runs in the foreground; at the end, whatever is left in it is killed."""

    def __init__(self, command: str, folder: Path) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 160, 0, 0))
        venv = Path(sys.executable).parent
        self._process = subprocess.Popen(
            [sys.executable, "-c", TAKES_THE_TERMINAL, *shlex.split(command)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=folder,
            start_new_session=True,
            env={
                **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
                "PATH": f"{venv}:{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
                "TERM": "xterm",
            },
        )
        os.close(slave)
        self.shown = ""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(30)
        os.close(self._master)

    def until(self, seen: Callable[[], bool], limit_s: float = 60.0) -> None:
        """Show what is printed, until something is seen."""
        deadline = time.monotonic() + limit_s
        while not seen():
            assert time.monotonic() < deadline, f"not within {limit_s} s; on the terminal:\n{self.shown}"
            assert self._process.poll() is None or seen(), f"it left; on the terminal:\n{self.shown}"
            self._show(0.02)

    def type_ctrl_c(self) -> None:
        os.write(self._master, b"\x03")

    def catches_sigterm(self) -> bool:
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        caught = re.search(r"SigCgt:\s*([0-9a-f]+)", status)
        return caught is not None and bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)

    def terminate(self) -> None:
        self._process.terminate()

    def left(self, limit_s: float) -> tuple[int, float]:
        """Wait until the command has left; its exit status, and how long it took."""
        begun = time.monotonic()
        while (status := self._process.poll()) is None:
            took = time.monotonic() - begun
            assert took < limit_s, f"still there after {took:.1f} s; on the terminal:\n{self.shown}"
            self._show(0.02)
        while self._show(0.0):
            pass
        return status, time.monotonic() - begun

    def _show(self, timeout_s: float) -> bool:
        if not select.select([self._master], [], [], timeout_s)[0]:
            return False
        try:
            said = os.read(self._master, 65536)
        except OSError:  # all have closed it
            time.sleep(timeout_s)
            return False
        self.shown += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said.decode(errors="replace")).replace("\r", "")
        return bool(said)


def begun(folder: Path, trial: int) -> list[int]:
    """The steps that a trial began, in all its lives."""
    path = folder / f"begun-{trial}"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def way_to_go_on(shown: str) -> str:
    said = (
        r"Nothing that was recorded is lost\. To go on:\n  (python .*)\n"
        r"or, from Python:\n  Tuner\.restore\('.*/study', train\)\.fit\(\)"
    )
    found = re.search(said, shown)
    assert found, shown
    return found[1]


def finish(command: str, folder: Path) -> None:
    """Run the command that was printed; it must bring every trial to its end."""
    (folder / "hurry").touch()
    with Terminal(command, folder) as terminal:
        assert terminal.left(90)[0] == 0, terminal.shown
    assert "the script goes on" in terminal.shown
    results = ResultGrid(folder / "study")
    assert [result.state for result in results] == [State.DONE] * 3, terminal.shown
    steps = results.to_arrow("reports").select(["trial", "step"]).to_pylist()
    last = results[0].metrics["training_iteration"]
    said = [(row["trial"], row["step"]) for row in steps]
    assert sorted(said) == [(trial, step) for trial in range(3) for step in range(1, last + 1)]
    assert read(folder / "study").rows[-1] == Finish(True, "every trial is over")


def check_interrupted(folder: Path, reason: str) -> dict[int, int]:
    """What a sweep left that saved before it ended: a record that can be read, and a checkpoint of each last step."""
    assert Folder(folder / "study").read()["name"] == "study"
    results = ResultGrid(folder / "study")
    assert [result.state for result in results] == [State.RUNNING] * 2
    rows = read(folder / "study").rows
    assert [row.reason for row in rows if isinstance(row, StopAsked)] == [reason]
    assert [row.how for row in rows if isinstance(row, Ended)] == [How.UNWOUND] * 2
    assert rows[-1] == Finish(False, reason)
    last = {int(result.trial_id): result.metrics["training_iteration"] for result in results}
    for trial, step in last.items():
        assert begun(folder, trial) == list(range(1, step + 1))
        checkpoint = results[trial].checkpoint
        assert checkpoint is not None
        assert Path(checkpoint.path, "step").read_text() == str(step)
    return last


@pytest.fixture
def script(tmp_path: Path) -> Callable[[int, float], Path]:
    def write(steps: int, step_s: float) -> Path:
        (tmp_path / "sweep.py").write_text(SCRIPT.format(steps=steps, step_s=step_s))
        return tmp_path

    return write


@pytest.mark.ray
@pytest.mark.timeout(180)
def test_ctrl_c_while_ray_starts(script: Callable[[int, float], Path]) -> None:
    folder = script(200, 0.05)
    with Terminal("python sweep.py", folder) as terminal:
        terminal.until(terminal.catches_sigterm)  # as it does not before `fit`; Ray's start takes seconds
        terminal.type_ctrl_c()
        status, took_s = terminal.left(45)
    assert status == 130, terminal.shown
    assert took_s < 25
    assert "Ctrl-C before any trial ran." in terminal.shown
    assert "Traceback" not in terminal.shown
    assert not (folder / "study" / "study.json").exists()
    assert not begun(folder, 0)


@pytest.mark.ray
@pytest.mark.timeout(180)
def test_ctrl_c_once_saves_and_the_printed_command_goes_on(script: Callable[[int, float], Path]) -> None:
    folder = script(200, 0.05)
    with Terminal("python sweep.py", folder) as terminal:
        terminal.until(lambda: len(begun(folder, 0)) > 3 and len(begun(folder, 1)) > 3)
        terminal.type_ctrl_c()
        status, took_s = terminal.left(45)
    assert status == 130, terminal.shown
    assert took_s < 25, "a step takes 0.05 s; the grace period is a minute"
    assert "The study ended early: Ctrl-C." in terminal.shown
    assert "Traceback" not in terminal.shown
    assert "the script goes on" not in terminal.shown
    check_interrupted(folder, "Ctrl-C")
    finish(way_to_go_on(terminal.shown), folder)
    for trial in range(3):
        assert begun(folder, trial) == list(range(1, 201)), "no step is done twice"


@pytest.mark.ray
@pytest.mark.timeout(180)
def test_ctrl_c_twice_leaves_at_once(script: Callable[[int, float], Path]) -> None:
    folder = script(3, 50.0)
    with Terminal("python sweep.py", folder) as terminal:
        terminal.until(lambda: begun(folder, 0) == begun(folder, 1) == [1])
        terminal.type_ctrl_c()
        terminal.until(lambda: "stopping: Ctrl-C" in terminal.shown)  # the study waits for the steps to end
        terminal.type_ctrl_c()
        status, took_s = terminal.left(45)
    assert status == 130, terminal.shown
    assert took_s < 25, "the grace period is a minute, a step takes almost as long"
    assert "Left at once. Nothing that was recorded is lost." in terminal.shown
    assert "Traceback" not in terminal.shown
    assert len(ResultGrid(folder / "study")) == 2
    finish(way_to_go_on(terminal.shown), folder)


@pytest.mark.ray
@pytest.mark.timeout(180)
def test_sigterm_saves_like_ctrl_c(script: Callable[[int, float], Path]) -> None:
    folder = script(200, 0.05)
    with Terminal("python sweep.py", folder) as terminal:
        terminal.until(lambda: bool(begun(folder, 0) and begun(folder, 1)))
        terminal.terminate()
        status, took_s = terminal.left(45)
    assert status == 143, terminal.shown
    assert took_s < 25
    assert "The study ended early: SIGTERM." in terminal.shown
    check_interrupted(folder, "SIGTERM")
    assert way_to_go_on(terminal.shown) == "python sweep.py"
