"""What a person sees: plain lines where there is no terminal, a live block where there is one, nothing at verbose 0."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from raytuner import progress
from raytuner.actions import Fork, Proposal, Start
from raytuner.checkpoints import CheckpointConfig
from raytuner.events import (
    Ask,
    Decision,
    Ended,
    Event,
    Failed,
    How,
    Opened,
    Proposed,
    Run,
    Slots,
    StopAsked,
    Tell,
    Unwind,
)
from raytuner.ledger import Entry, Ledger
from raytuner.objective import Objective
from raytuner.progress import Progress
from raytuner.protocols import SchedulingPolicy
from raytuner.retry import Retries
from raytuner.schedulers import FIFOScheduler, HyperBandScheduler
from raytuner.study import Study
from raytuner.trial import Failure, Lease, Reports, Slot, State, Trial

AT = 1_700_000_000.0  # when the studies here begin


def console(width: int = 80, height: int = 24, terminal: bool = True) -> Console:
    return Console(
        file=io.StringIO(), width=width, height=height, force_terminal=terminal, color_system=None, _environ={}
    )


def text_of(shown: Console) -> str:
    assert isinstance(shown.file, io.StringIO)
    return shown.file.getvalue()


def drawings(shown: Console) -> list[str]:
    """Each state of the live block, with the lines that were printed above it at that moment."""
    text = re.sub(r"\x1b\[\?25[hl]", "", text_of(shown))
    return [part for part in re.split(r"\r\x1b\[2K(?:\x1b\[1A\x1b\[2K)*", text) if part.strip()]


def fact(drawing: str, label: str) -> str:
    """What stands behind a label."""
    return next(line for line in drawing.splitlines() if line.startswith(label.ljust(10)))[10:].rstrip()


class Stage:
    """A study whose every event is its test's, a `Progress` that hears of each turn, and the clock of both."""

    def __init__(
        self,
        scheduler: SchedulingPolicy | None = None,
        *,
        trials: int | None = 12,
        slots: int = 3,
        metric: str | None = "loss",
        max_failures: int = 0,
        config: Callable[[int], Mapping[str, Any]] = lambda trial: {"lr": 0.1 / (1 + trial), "width": 8 + trial},
    ) -> None:
        scheduler = (scheduler or FIFOScheduler()).build(0)
        self.study = Study(Objective(metric), scheduler, trials, Retries(max_failures), CheckpointConfig())
        self.trials = trials
        self.slots = slots
        self.config = config
        self.now = 0.0
        self.rows: list[Event | Decision] = []
        self.leases: dict[int, Lease] = {}  # those that run
        self.bar: Progress | None = None

    def shown(self, console: Console, verbose: int = 1, name: str = "study", **options: Any) -> Progress:
        """What listens from now on."""
        self.bar = Progress(name, self.study, self.trials, verbose, console, clock=lambda: self.now, **options)
        return self.bar

    def open(self) -> None:
        self.turn(Opened(AT + self.now, 1), Slots(AT + self.now, self.slots))

    def turn(self, *events: Event, reports: tuple[Reports, ...] = ()) -> None:
        queue, rows = list(events), []
        while queue:
            rows.append(queue.pop(0))
            for command in self.study.handle(rows[-1]):
                match command:
                    case Ask(trial):
                        queue.insert(0, Proposed(AT + self.now, trial, Proposal(self.config(trial))))
                    case Run(lease):
                        self.leases[lease.trial.id] = lease
                    case Unwind() | Tell():
                        pass
                    case _:
                        rows.append(command)
        self.rows += rows
        if self.bar:
            self.bar(self.study, rows, reports)

    def wait(self, seconds: float) -> None:
        """Time goes by."""
        self.now += seconds
        if self.bar:
            self.bar(self.study, (), ())

    def report(self, trial: int, *steps: int, **metrics: Any) -> None:
        n = len(steps)
        columns = {name: value if isinstance(value, list) else [value] * n for name, value in metrics.items()}
        levels = [float(step) for step in steps]
        attempt = self.leases[trial].attempt
        self.turn(reports=(Reports(trial, attempt, list(steps), levels, [AT] * n, [False] * n, columns, {}),))

    def end(self, trial: int, step: int = 1, spent: float = 1.0, how: How = How.RETURNED, **metrics: Any) -> None:
        lease = self.leases.pop(trial)
        metrics = metrics or {"loss": 1.0 / (1 + trial)}
        self.turn(Ended(AT + self.now, trial, lease.attempt, how, step, float(step), metrics, spent))

    def fail(
        self, trial: int, message: str = "Traceback\n  …\nValueError: no", failure: Failure = Failure.ERROR
    ) -> None:
        lease = self.leases.pop(trial)
        self.turn(Failed(AT + self.now, trial, lease.attempt, failure, message, 1.0))

    def play(self, seconds: float = 1.0, until: Callable[[], bool] = lambda: False) -> None:
        """Every lease that runs reaches its end, one after the other, until the study is over or ``until`` says so."""
        while self.study.finished is None and not until():
            self.now += seconds
            lease = next(iter(self.leases.values()))
            how = How.REACHED if lease.until < 2**53 else How.RETURNED
            step = lease.until if how is How.REACHED else 5
            self.report(lease.trial.id, step, loss=1.0 / (1 + lease.trial.id))
            self.end(lease.trial.id, step, seconds, how)


# ------------------------------------------------------------------------------------------------------- plain lines


def played(verbose: int = 1, seconds: float = 6.0, terminal: bool = False, **options: Any) -> str:
    """All that is printed while a study under Hyperband is played."""
    stage, shown = Stage(HyperBandScheduler(max_t=9), slots=5), console(terminal=terminal)
    with stage.shown(shown, verbose, **options):
        stage.open()
        stage.play(seconds)
    return text_of(shown)


def test_plain_lines() -> None:
    lines = played(slot=Slot(cpu=2.0, gpu=0.5)).splitlines()
    assert len(lines) > 10
    assert lines[0] == (
        "study: 0 of 12 over | running 5 | to 1: 5 running | 0.0 trials/s, 10.0 reports/min | 6 s, left: ? | "
        "spent <0.01 slot-h, 0.02 CPU-h, <0.01 GPU-h"
    )
    assert any("running 5" in line and "to 3: " in line and "left: ?" in line for line in lines)
    assert any("done 1 " in line and "left: about " in line for line in lines)
    assert lines[-1].startswith("study: 12 of 12 over | done 2 stopped 10 | ")
    assert "trials/min" in lines[-1]
    assert "best loss 0.0" in lines[-1]
    assert "step 9)" in lines[-1]
    assert "left" not in lines[-1]
    assert ", every trial is over | " in lines[-1]


def test_a_plain_line_every_five_seconds_and_later_every_minute() -> None:
    stage, shown = Stage(), console(terminal=False)
    with stage.shown(shown):
        stage.open()
        for _ in range(1000):
            stage.wait(0.1)
        assert 18 <= len(text_of(shown).splitlines()) <= 20
        stage.now = 10_000.0
        stage.wait(0.0)
        before = len(text_of(shown).splitlines())
        for _ in range(300):
            stage.wait(1.0)
        assert len(text_of(shown).splitlines()) - before == 5


def test_a_plain_line_tells_once_of_a_failed_trial() -> None:
    stage, shown = Stage(), console(terminal=False)
    with stage.shown(shown):
        stage.open()
        stage.fail(0)
        stage.wait(6.0)
        stage.wait(6.0)
    first, second, failed, last = text_of(shown).splitlines()
    assert "failed: trial 0: ValueError: no" in first
    assert "ValueError" not in second
    assert failed == "study: failed: trial 0: ValueError: no"
    assert last.startswith("study: 1 of 12 over | running 3 failed 1")


def test_no_terminal_but_ascii() -> None:
    """Where → and … cannot be written, nothing is drawn, and foreign letters do not end a study."""
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    shown = Console(file=file, width=80, force_terminal=True, color_system=None, _environ={})
    stage = Stage(metric="größe→")
    with stage.shown(shown):
        stage.open()
        stage.end(0, **{"größe→": 2.5})
    file.flush()
    assert b"best gr\\xf6\\xdfe\\u2192 2.5 (trial 0, step 1)" in file.buffer.getvalue()  # type: ignore[attr-defined]
    assert b"\x1b" not in file.buffer.getvalue()  # type: ignore[attr-defined]


# --------------------------------------------------------------------------------------------------------- the block


def test_the_block_at_width_80() -> None:
    stage, shown = Stage(HyperBandScheduler(max_t=9), slots=4, trials=40), console(width=80)
    counts = stage.study.ledger.counts()

    def to(until: int) -> list[int]:
        return [trial for trial, lease in stage.leases.items() if lease.until == until]

    with stage.shown(shown, slot=Slot(cpu=4.0, gpu=0.5), limit_s=lambda: 9000.0):
        stage.open()
        stage.play(200.0, until=lambda: counts[State.DONE] == 1)
        stage.fail(next(iter(stage.leases)))
        stage.play(200.0, until=lambda: bool(to(3) and to(9) and counts[State.PAUSED]))
        stage.report(to(9)[0], 4, 5, loss=[0.5, 0.25])
        stage.wait(30.0)
        block = drawings(shown)[-1]
    assert [line.rstrip() for line in block.splitlines()] == [
        "raytuner  study",
        "trials    ━━━━━━━━━━━━━━━━━─────────────  23 of 40 over",
        "state     running 4   paused 5   done 4   stopped 18   failed 1",
        "time      1 h 57 min, left: about 1 h 27 min",
        "rate      11.8 trials/h, 19.2 reports/h",
        "spent     2.31 slot-h, 9.25 CPU-h, 1.16 GPU-h",
        "rungs     to 3: 3 running, 5 waiting   to 9: 1 running",
        "best      loss 0.0588235 (trial 16, step 9)",
        "          lr=0.005882, width=24",
        "failed    trial 8: ValueError: no",
        "trial  state    step → until       loss  seconds  configuration",
        "   23  running         1 → 3  0.0416667    830.0  lr=0.004167, width=31",
        "   29  running         0 → 3               430.0  lr=0.003333, width=37",
        "   30  running         0 → 3               230.0  lr=0.003226, width=38",
        "   31  running         5 → 9       0.25     30.0  lr=0.003125, width=39",
        "   24  paused              3       0.04    400.0  lr=0.004, width=32",
        "and 4 more live trials",
    ]


def test_rungs_that_do_not_fit_are_said_shorter() -> None:
    said = {}
    for width in (80, 200):
        stage, shown = Stage(HyperBandScheduler(max_t=81), trials=None, slots=2), console(width)
        with stage.shown(shown):
            for state in (State.RUNNING, State.PAUSED):
                for until in (1, 3, 9, 27, 81):
                    trial = len(stage.study.ledger)
                    stage.study.ledger.open(Trial(trial, {}), until)
                    if state is State.PAUSED:
                        stage.study.ledger.move(trial, state)
                    assert stage.bar is not None
                    stage.bar(stage.study, [Start(trial, until)], ())
            stage.wait(1.0)
        said[width] = fact(drawings(shown)[-1], "rungs")
    assert said[80] == "running+waiting to   1: 1+1   3: 1+1   9: 1+1   27: 1+1   81: 1+1"
    assert said[200] == "   ".join(f"to {until}: 1 running, 1 waiting" for until in (1, 3, 9, 27, 81))


def test_a_live_block_until_the_end() -> None:
    stage, shown = Stage(HyperBandScheduler(max_t=9), slots=5), console()
    with stage.shown(shown):
        stage.open()
        stage.play()
    first, *middle, last = drawings(shown)
    assert fact(first, "trials").endswith("0 of 12 over")
    assert any("configuration" in drawing and "to 3: " in drawing for drawing in middle)
    assert fact(last, "trials") == "━" * 30 + "  12 of 12 over"
    assert fact(last, "time").endswith(" s, every trial is over")
    assert "configuration" not in last
    assert "left" not in last
    assert fact(last, "best").startswith("loss 0.0")
    assert text_of(shown).endswith("\x1b[?25h")


@pytest.mark.parametrize(("width", "height"), [(30, 10), (80, 8), (80, 24), (80, 5), (120, 24), (120, 60)])
def test_it_fits(width: int, height: int) -> None:
    stage = Stage(
        HyperBandScheduler(max_t=81),
        trials=200,
        slots=40,
        metric="validation_loss_of_the_second_head_after_smoothing",
        config=lambda trial: {f"parameter_{i}": {"広い": "広" * 50, "list": list(range(1000))} for i in range(20)},
    )
    shown = console(width, height)
    with stage.shown(shown, slot=Slot(gpu=1.0), name="a study with a name that goes on " * 10):
        stage.open()
        stage.fail(0, "long " * 1000)
        for trial in list(stage.leases)[:30]:
            stage.end(trial, how=How.REACHED, validation_loss_of_the_second_head_after_smoothing=1.0)
        stage.wait(1.0)
    assert len(drawings(shown)) == 3
    for drawing in drawings(shown):
        assert max(map(cell_len, drawing.splitlines())) <= width
    live = drawings(shown)[1].splitlines()
    assert len(live) < height
    table = [line for line in live if "→" in line]
    assert len(table) == {60: 11, 24: 6}.get(height, 0)  # the table's head is one of them
    assert all("configuration" in line or "  広い=広" in line for line in table)


def test_four_drawings_a_second_at_most() -> None:
    stage, shown = Stage(trials=None), console()
    with stage.shown(shown):
        stage.open()
        for _ in range(1000):
            stage.now += 0.002
            stage.report(0, 1, loss=1.0)
        assert 8 <= len(drawings(shown)) <= 9


def test_what_is_told_goes_above_the_block() -> None:
    stage, shown = Stage(), console()
    with stage.shown(shown, verbose=2):
        stage.open()
        stage.end(0)
        stage.wait(1.0)
        stage.end(1)
    assert sum(drawing.startswith("trial 0 DONE at step 1, loss 1: ") for drawing in drawings(shown)) == 1
    assert "\ntrial 1 DONE" in "\n" + "\n".join(drawings(shown)[-2:])
    assert drawings(shown)[-1].startswith("raytuner")


def test_last_values_of_live_trials() -> None:
    stage, shown = Stage(), console()
    with stage.shown(shown):
        stage.open()
        stage.report(0, 1, 2, 3, loss=[3.0, 2.5, None], other=7.0)
        stage.report(1, 4, other=7.0)
        stage.wait(1.0)
        rows = {line.split()[0]: line.split() for line in drawings(shown)[-1].splitlines()[-3:]}
        assert rows["0"][1:4] == ["running", "3", "2.5"]
        assert rows["1"][1:4] == ["running", "4", "1.0"]  # no loss: this is seconds
        stage.report(0, 4, other=7.0)  # it keeps the loss it said last
        stage.wait(1.0)
        assert ["0", "running", "4", "2.5"] in [line.split()[:4] for line in drawings(shown)[-1].splitlines()]


def test_nothing_is_kept_of_trials_that_are_over() -> None:
    stage = Stage(HyperBandScheduler(max_t=9), trials=60)
    tally = progress._Tally(stage.study, 0.0)
    stage.bar = lambda study, rows, reports: tally.hear(rows, reports, stage.now)  # type: ignore[assignment]
    stage.open()
    stage.report(0, 1, loss=1.0)
    assert tally.heard == {0: (1.0, 1.0)}
    stage.play()
    assert stage.study.finished is not None
    assert [*tally.heard, *tally.running, *tally.rungs, *tally._places] == []
    late = Reports(0, 1, [2], [2.0], [AT], [False], {"loss": [1.0]}, {})
    tally.hear((), (late,), stage.now)
    assert not tally.heard


def test_rungs_as_they_are() -> None:
    """What is kept up row by row equals what a look at all trials would find, at every turn."""
    stage = Stage(HyperBandScheduler(max_t=27), trials=80, slots=7, max_failures=1)
    tally = progress._Tally(stage.study, 0.0)

    def check(study: Study, rows: Any, reports: Any) -> None:
        tally.hear(rows, reports, stage.now)
        live = [(entry.until, entry.state) for entry in study.ledger.live.values()]
        assert tally.rungs == {place: live.count(place) for place in live}
        assert sorted(tally.running) == [t for t, e in study.ledger.items() if e.state is State.RUNNING]

    stage.bar = check  # type: ignore[assignment]
    stage.open()
    for trial in (2, 2, 3):
        stage.fail(trial)
    stage.play()
    assert stage.study.ledger.counts()[State.FAILED] == 1


def test_waiting_trials_fill_the_table() -> None:
    stage, shown = Stage(HyperBandScheduler(max_t=9), slots=2, trials=None), console()
    with stage.shown(shown):
        stage.open()
        for trial in range(6):
            stage.end(trial, how=How.REACHED)
        stage.wait(1.0)
        lines = [line.split()[:5] for line in drawings(shown)[-1].splitlines()]
    table = lines[next(i for i, line in enumerate(lines) if line[0] == "trial") + 1 :]
    assert [line[1] for line in table[:2]] == ["running", "running"]
    assert table[2][:4] == ["0", "paused", "1", "1"]
    assert table[-1] == ["and", "2", "more", "live", "trials"]
    assert len(table) == 7


def test_a_trial_without_a_slot_is_queued() -> None:
    stage, shown = Stage(slots=2), console()
    stage.open()
    with stage.shown(shown):
        stage.turn(Opened(AT, 2), Slots(AT, 1))
        stage.wait(1.0)
    rows = [line.split()[:2] for line in drawings(shown)[-2].splitlines()[-2:]]
    assert rows == [["0", "running"], ["1", "queued"]]


def test_without_a_metric_or_a_total() -> None:
    stage, shown = Stage(metric=None, trials=None), console()
    with stage.shown(shown):
        stage.open()
        for trial in range(5):
            stage.end(trial)
            stage.wait(1.0)
    live = drawings(shown)[-2]
    assert fact(live, "trials") == "5 over"
    assert fact(live, "time") == "5 s, left: ?"
    assert "best" not in live
    assert "rungs" not in live  # every trial runs to its own end
    assert "trial  state    step → until  seconds  configuration" in live


class Counting(dict[int, Entry]):
    """Live trials that know how many of them were looked at."""

    looks = 0

    def values(self) -> Iterator[Entry]:  # type: ignore[override]
        for value in super().values():
            self.looks += 1
            yield value

    items = keys = __iter__ = None  # type: ignore[assignment]


@pytest.mark.parametrize("terminal", [True, False])
def test_drawing_does_not_look_at_all_trials(terminal: bool) -> None:
    stage, shown = Stage(trials=None, slots=50), console(terminal=terminal)
    ledger = Ledger()
    for trial in range(20_000):
        ledger.open(Trial(trial, {"lr": 0.1}), 27)
        if trial >= 50:
            ledger.move(trial, State.PAUSED)
    stage.study.ledger = ledger
    with stage.shown(shown):
        counting = ledger._live = Counting(ledger._live)
        ledger._entries = None  # type: ignore[assignment]  # whoever looks there looks at all
        stage.wait(10.0)
        stage.wait(10.0)
        assert counting.looks <= 2 * 60
    assert "to 27: 50 running, 19950 waiting" in text_of(shown)
    if terminal:
        assert "and 19992 more" in text_of(shown)


# -------------------------------------------------------------------------------------------- rate, time left, spend


def left(stage: Stage, shown: Console) -> str:
    stage.wait(0.25)
    return fact(drawings(shown)[-1], "time").partition(", left: ")[2]


def test_time_left() -> None:
    stage, shown = Stage(trials=100), console()
    with stage.shown(shown):
        stage.open()
        for trial in range(2):
            stage.now += 9.75
            stage.end(trial)
            assert left(stage, shown) == "?"
        stage.now += 9.75
        stage.end(2)
        assert left(stage, shown) == "about 16 min"  # 97 trials at one in 10 s are 970 s
        for trial in range(3, 90):
            stage.now += 0.75
            stage.end(trial)
            stage.wait(0.25)
        assert left(stage, shown) == "about 10 s"  # at the rate of late, not of the whole
        assert fact(drawings(shown)[-1], "rate").startswith("59.5 trials/min")
        stage.wait(3600.0)
        assert left(stage, shown) == "about 20 min"  # nothing is over for an hour, and the estimate says so
    assert fact(drawings(shown)[-1], "rate").startswith("1.5 trials/min")  # in the end: 90 in an hour


def test_time_left_of_a_small_study_and_at_its_end() -> None:
    stage, shown = Stage(trials=3, slots=1), console()
    with stage.shown(shown):
        stage.open()
        stage.now += 99.75
        stage.end(0)
        assert left(stage, shown) == "?"
        stage.now += 99.75
        stage.end(1)
        assert left(stage, shown) == "about 1 min 40 s"  # two of three are enough to go by
        stage.now += 99.75
        stage.end(2)
        assert left(stage, shown) == "?"


def test_time_left_is_not_guessed_from_trials_stopped_early() -> None:
    stage, shown = Stage(HyperBandScheduler(max_t=9), trials=9), console()
    with stage.shown(shown):
        stage.open()
        stage.play(1.0, until=lambda: stage.study.ledger.counts()[State.STOPPED] == 6)
        assert left(stage, shown) == "?"
        stage.play(1.0, until=lambda: stage.study.ledger.counts()[State.DONE] == 1)
        stage.now += 0.75
    assert "about" not in "".join(drawings(shown)[:-2])


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        (None, "about 16 min"),
        (5000.0, "about 16 min"),
        (130.0, "at most 2 min 10 s (time budget)"),
        (-3.0, "at most 0 s (time budget)"),
    ],
)
def test_time_left_of_a_budget(limit: float | None, said: str) -> None:
    stage, shown = Stage(trials=100), console()
    with stage.shown(shown, limit_s=lambda: limit):
        stage.open()
        assert left(stage, shown) == (
            "?" if limit is None else f"at most {progress._duration(max(limit, 0.0))} (time budget)"
        )
        stage.now = 29.75
        for trial in range(3):
            stage.end(trial)
        assert left(stage, shown) == said


def test_no_time_left_while_the_study_is_stopped() -> None:
    stage, shown = Stage(trials=100), console()
    with stage.shown(shown):
        stage.open()
        for trial in range(3):
            stage.now += 10.0
            stage.end(trial)
        stage.turn(StopAsked(AT + stage.now, "Ctrl-C"))
        stage.wait(1.0)
        assert fact(drawings(shown)[-1], "time") == "31 s, stopping: Ctrl-C"
        for trial in list(stage.leases):
            stage.end(trial, how=How.UNWOUND)
    assert fact(drawings(shown)[-1], "time") == "31 s, ended early: Ctrl-C"


def test_marks_of_a_rate_stay_few() -> None:
    often, seldom = progress._Rate(0.0, 0), progress._Rate(0.0, 0)
    for quarter in range(100_000):
        often.mark(quarter / 4, quarter)
        seldom.mark(quarter / 4, quarter // 4000)
    assert len(often._marks) <= 61
    assert len(seldom._marks) <= 31
    assert often.lately(25_000.0, 100_000) == pytest.approx(4.0, rel=0.01)
    assert seldom.lately(25_000.0, 25) == pytest.approx(0.001, rel=0.01)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.4, "0 s"),
        (59.9, "59 s"),
        (252.0, "4 min 12 s"),
        (3600.0, "1 h"),
        (7500.0, "2 h 5 min"),
        (3 * 86400 + 4 * 3600 + 59.0, "3 d 4 h"),
        (1e12, "over 99 d"),
        (float("inf"), "over 99 d"),
    ],
)
def test_durations(seconds: float, said: str) -> None:
    assert progress._duration(seconds) == said


@pytest.mark.parametrize(
    ("per_s", "said"),
    [
        (1234.5, "1,234.5 trials/s"),
        (1.0, "1.0 trials/s"),
        (0.5, "30.0 trials/min"),
        (0.001, "3.6 trials/h"),
        (0.0, "0.0 trials/s"),
    ],
)
def test_rates(per_s: float, said: str) -> None:
    assert progress._often(per_s, "trials") == said


def test_spend() -> None:
    stage, shown = Stage(slots=2, max_failures=1), console()
    with stage.shown(shown, slot=Slot(cpu=2.0, gpu=0.5)):
        stage.open()
        stage.end(0, spent=7200.0)
        stage.fail(1)  # one second, and it runs again
        stage.wait(3600.0)  # of trials 1 and 2
        assert fact(drawings(shown)[-1], "spent") == "4.00 slot-h, 8.00 CPU-h, 2.00 GPU-h"
        row = next(line for line in drawings(shown)[-1].splitlines() if line.split()[0] == "1")
        assert row.split()[3] == "3601.0"


def test_spend_of_a_study_that_comes_back() -> None:
    """What was spent before counts; the time between the drivers does not, though leases keep when they were begun."""
    stage = Stage(slots=1)
    stage.open()
    stage.end(0, spent=3600.0)
    stage.now = 90_000.0
    shown = console()
    with stage.shown(shown):
        stage.turn(Opened(AT + stage.now, 2), Slots(AT + stage.now, 1))
        stage.wait(1800.0)
        assert fact(drawings(shown)[-1], "spent") == "1.50 slot-h"
        assert fact(drawings(shown)[-1], "trials").endswith("1 of 12 over")
        assert fact(drawings(shown)[-1], "rate").startswith("0.0 trials/s")


# ------------------------------------------------------------------------------------------------ silence, and words


def test_silence() -> None:
    assert played(verbose=0) == ""
    assert played(verbose=0, terminal=True) == ""
    for terminal in (True, False):
        stage, shown = Stage(), console(terminal=terminal)
        with stage.shown(shown, verbose=0):
            stage.open()
            stage.fail(0)
            stage.wait(100.0)
        assert text_of(shown) == ""


def test_each_trials_end() -> None:
    lines = [line for line in played(verbose=2).splitlines() if line.startswith("trial ")]
    assert len(lines) == 12
    assert any(" STOPPED at step " in line and line.endswith("among the best of its rung") for line in lines)
    assert any(" DONE at step 9, loss " in line and line.endswith("last rung") for line in lines)


def test_each_trials_start_and_failures() -> None:
    stage, shown = Stage(max_failures=1, slots=1), console(terminal=False)
    with stage.shown(shown, verbose=3):
        stage.open()
        stage.fail(0)
        stage.fail(0, "Traceback\nKeyError: 'x'\n\n")
    assert text_of(shown).splitlines()[:6] == [
        "trial 0 starts: lr=0.1, width=8",
        "trial 0 failed in attempt 1: ValueError: no",
        "trial 0 runs again from the beginning",
        "trial 0 failed in attempt 2: KeyError: 'x'",
        "trial 0 FAILED at step 0: the training function raised an error: KeyError: 'x'",
        "trial 1 starts: lr=0.05, width=9",
    ]


def test_failed_trials_at_the_end() -> None:
    stage, shown = Stage(), console()
    with stage.shown(shown):
        stage.open()
        for trial in range(7):
            stage.fail(trial, f"Traceback (most recent call last):\n  File …\nValueError: number {trial}")
        stage.wait(1.0)
        assert fact(drawings(shown)[-1], "failed") == "trial 6: ValueError: number 6"
    last = drawings(shown)[-1].splitlines()
    assert [line.rstrip() for line in last[-6:]] == [
        "failed    trial 0: ValueError: number 0",
        *(f"          trial {trial}: ValueError: number {trial}" for trial in range(1, 5)),
        "          and 2 more",
    ]


def test_failures_of_earlier_runs() -> None:
    stage, shown = Stage(), console(terminal=False)
    stage.open()
    stage.fail(0)
    with stage.shown(shown):
        pass
    assert text_of(shown).splitlines()[0] == "study: failed: 1 in earlier runs"


def test_broken_off() -> None:
    stage, shown = Stage(), console()
    with pytest.raises(ZeroDivisionError), stage.shown(shown):
        stage.turn(Opened(1 // 0, 1))
    assert fact(drawings(shown)[-1], "time") == "0 s, broken off by ZeroDivisionError"
    assert text_of(shown).endswith("\x1b[?25h")


HOSTILE = "[red]x[/] :boom:\x1b[2J\x1b]0;title\x07\r\n\x9b5A\u202e"


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("width", [80, 200])
def test_hostile_text(terminal: bool, width: int) -> None:
    config = {HOSTILE: HOSTILE, "nested": {HOSTILE: [HOSTILE, "\ud800"]}, "big": 10**5000, "long": "y" * 10**6}
    stage, shown = Stage(metric=HOSTILE, config=lambda trial: config), console(width, terminal=terminal)
    with stage.shown(shown, verbose=3, name=HOSTILE):
        stage.open()
        stage.report(0, 1, **{HOSTILE: HOSTILE})
        stage.end(0, **{HOSTILE: 1.5})
        stage.fail(1, f"Traceback\n{HOSTILE.replace(chr(10), '')}")
        stage.report(2, 1, **{HOSTILE: HOSTILE})
        stage.wait(10.0)
        stage.turn(StopAsked(AT, HOSTILE))
        stage.wait(10.0)
    text = text_of(shown)
    assert "y" * 61 not in text
    for steering in (r"\x1b\[\?25[hl]", r"\r?\x1b\[2K(?:\x1b\[1A\x1b\[2K)*"):  # rich's own, of the live block
        text = re.sub(steering, "", text) if terminal else text
    assert {c for c in text if not c.isprintable()} == {"\n"}
    assert r"[red]x[/] :boom:\x1b[2J" in text
    assert "stopping: [red]x" in text
    assert r"\u202e" in text


def test_objects_show_as_they_say() -> None:
    class Held:
        def __repr__(self) -> str:
            return "<DataFrame 'data' 3f2a91c0>"

    class Shy:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    config = {
        "data": Held(),
        "shy": Shy(),
        "n": 3,
        "on": True,
        "sizes": [0.123456, 2, None],
        "huge": 10**5000,
    }
    stage, shown = Stage(config=lambda trial: config, slots=1), console(terminal=False)
    with stage.shown(shown, verbose=3):
        stage.open()
    assert text_of(shown).splitlines()[0] == (
        "trial 0 starts: data=<DataFrame 'data' 3f2a91c0>, shy=<Shy>, n=3, on=True, sizes=[0.1235, 2, None], huge=<int>"
    )


def test_nested_configurations() -> None:
    """With all names where there is room, with the last ones in the table."""
    stage, shown = Stage(config=lambda trial: {"optimizer": {"name": "sgd", "args": {"lr": 0.5}}, "n": 1}), console()
    with stage.shown(shown):
        stage.open()
        stage.end(0)
        stage.wait(1.0)
        lines = [line.rstrip() for line in drawings(shown)[-1].splitlines()]
    assert "          optimizer/name=sgd, optimizer/args/lr=0.5, n=1" in lines
    assert lines[-1].endswith("  name=sgd, lr=0.5, n=1")


def test_a_line_has_an_end() -> None:
    config = {f"a_parameter_with_a_long_name_{i}": i for i in range(10_000)}
    stage, shown = Stage(config=lambda trial: config), console(terminal=False)
    with stage.shown(shown, verbose=3) as bar:
        stage.open()
        ledger = stage.study.ledger
        for until in range(1, 101):
            bar(stage.study, [Start(ledger.open(Trial(100 + until, {}), until).trial.id, until)], ())
        stage.wait(6.0)
    lines = text_of(shown).splitlines()
    assert max(map(len, lines)) == 4000
    assert re.findall(r"to (\d+): 1 running", lines[-1]) == [str(until) for until in range(89, 101)]


def test_forks_are_told() -> None:
    stage, shown = Stage(), console(terminal=False)
    with stage.shown(shown, verbose=3) as bar:
        bar(stage.study, [Fork(4, 1, {"lr": 0.5}, 9)], ())
    assert text_of(shown).splitlines()[0] == "trial 4 starts from trial 1: lr=0.5"
