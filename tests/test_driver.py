"""The loop: nothing is issued before it is durable, nothing counts twice, every death leaves a record to go on from."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from raytuner.actions import Answer, Exhausted, Fork, Proposal, Resume, Start, Stop, Wait
from raytuner.budget import TimeBudget
from raytuner.checkpoints import CheckpointConfig
from raytuner.driver import Driver, ReplayDiffers
from raytuner.events import (
    Checkpointed,
    Drop,
    Ended,
    Event,
    Failed,
    Finish,
    How,
    Loaded,
    Opened,
    Over,
    Proposed,
    Reported,
    Retry,
    Slots,
    StopAsked,
    Ticked,
)
from raytuner.ledger import IllegalChange
from raytuner.objective import Objective
from raytuner.record.journal import Journal, Row, read
from raytuner.retry import Retries
from raytuner.schedulers import AsyncHyperBandScheduler, HyperBandScheduler
from raytuner.searchers import RandomSearch
from raytuner.study import Study
from raytuner.trial import Failure, Lease, Observation, Pending, Report, Reports, State, Why
from tests.lives import SPACE, Case, Fate, fate, live_through
from tests.test_study import Scripted
from tests.test_study_machine import TOYS

__all__ = ["fate"]  # a fixture


class Bench:
    """Journal, executor, shelf, clock and searcher in one, writing down who was called, in order.

    ``script``: what `wait` returns, call by call; at its end the driver is killed.
    """

    def __init__(self, *script: Sequence[Event], answers: Sequence[Answer] = ()) -> None:
        self.script = deque(script)
        self.answers = deque(answers)
        self.calls: list[Any] = []
        self.leases: list[Lease] = []
        self.record: list[Row] = []
        self.said: list[Reports] = []
        self.asked: list[tuple[int, list[Pending]]] = []
        self.told: list[Observation] = []
        self.recalled: list[int] = []

    # the journal

    def rows(self) -> Iterable[Row]:
        return list(self.record)

    def last_steps(self) -> dict[int, int]:
        return {said.trial: said.steps[-1] for said in self.said}

    def commit(self, rows: Sequence[Row], reports: Sequence[Reports]) -> None:
        self.calls.append(("commit", list(rows)))
        self.record += rows
        self.said += reports

    # the executor

    def run(self, lease: Lease) -> None:
        self.calls.append(("run", lease.trial.id, lease.attempt))
        self.leases.append(lease)

    def unwind(self, trial: int, attempt: int) -> None:
        self.calls.append(("unwind", trial, attempt))

    def wait(self, timeout_s: float | None) -> Sequence[Event]:
        if not self.script:
            raise KeyboardInterrupt
        return self.script.popleft()

    def close(self) -> None:
        raise AssertionError("that is the caller's")

    # the shelf

    def delete(self, trial: int, step: int) -> None:
        self.calls.append(("delete", trial, step))

    def sweep(self, referenced: set[tuple[int, int]]) -> object:
        self.calls.append(("sweep", referenced))
        return None

    def sweep_trial(self, trial: int, referenced: set[int]) -> object:
        self.calls.append(("sweep trial", trial, referenced))
        return None

    def quarantine(self, trial: int, step: int) -> str | None:
        self.calls.append(("quarantine", trial, step))
        return None

    # the clock

    def now(self) -> float:
        return 100.0

    # the searcher

    def ask(self, trial: int, until: int, pending: Sequence[Pending]) -> Answer:
        self.asked.append((trial, list(pending)))
        return self.answers.popleft() if self.answers else Proposal({"x": trial})

    def tell(self, seen: Observation) -> None:
        self.told.append(seen)

    def recall(self, trial: int, until: int, pending: Sequence[Pending], answer: Answer) -> None:
        self.recalled.append(trial)

    # a driver's life

    def live(
        self,
        scheduler: Scripted,
        listeners: Sequence[Callable[..., None]] = (),
        keep: int | None = None,
        trials: int | None = None,
        max_failures: int = 0,
    ) -> Driver:
        study = Study(Objective("loss"), scheduler, trials, Retries(max_failures), CheckpointConfig(num_to_keep=keep))
        return Driver(study, self, self, self, self, listeners)

    def die(self, driver: Driver) -> None:
        with pytest.raises(KeyboardInterrupt):
            driver.run(self)

    def called(self, *names: str) -> list[Any]:
        return [call for call in self.calls if call[0] in names]


def said(trial: int, attempt: int, *steps: int, save: bool = False, loss: float = 1.0) -> Reported:
    """Reports, with a checkpoint each if they ``save``, whose manifest's hash is ``<trial>/<step>``."""
    reports = tuple(
        Report(step, float(step), {"loss": loss}, 50.0 + step, f"{trial}/{step}" if save else "") for step in steps
    )
    return Reported(50.0 + steps[-1], trial, attempt, reports)


def ended(trial: int, attempt: int, step: int, how: How = How.RETURNED, loss: float = 1.0) -> Ended:
    return Ended(50.0 + step, trial, attempt, how, step, float(step), {"loss": loss})


def test_a_life_in_order() -> None:
    bench = Bench(
        [Slots(1.0, 1)],
        [said(0, 1, 1, save=True)],
        [said(0, 1, 2, save=True)],
        [ended(0, 1, 2)],
    )
    finish = bench.live(Scripted(Start(0, 2)), keep=1).run(bench)
    assert finish == Finish(True, "every trial is over")
    opened = Opened(100.0, 1, in_order=True)
    assert bench.calls == [
        ("sweep", set()),
        ("commit", [opened]),
        ("commit", [Slots(1.0, 1), Start(0, 2), Proposed(100.0, 0, Proposal({"x": 0}))]),
        ("run", 0, 1),
        ("commit", [Checkpointed(51.0, 0, 1, 1, {"loss": 1.0}, "0/1")]),
        ("commit", [Checkpointed(52.0, 0, 1, 2, {"loss": 1.0}, "0/2"), Drop(0, 1)]),
        ("delete", 0, 1),
        ("commit", [ended(0, 1, 2), Over(0, State.DONE, Why.RETURNED), finish]),
    ]
    assert [step for said in bench.said for step in said.steps] == [1, 2]


def test_no_command_is_issued_before_its_cause_is_durable() -> None:
    """A journal that cannot write: nothing is run, unwound or deleted, and no listener hears of anything."""
    heard: list[Any] = []
    script = [[Slots(1.0, 2)], [said(0, 1, 1, 2, save=True), ended(1, 1, 1), said(0, 1, 3)]]
    scheduler = Scripted(Start(0, 9), Start(1, 9), judge=lambda seen: [Stop(0, Why.NO_PROMISE)] if seen.ended else [])
    bench = Bench(*script)
    driver = bench.live(scheduler, [lambda *turn: heard.append(turn)], keep=1)
    commit, count = bench.commit, 0

    def fail(rows: Sequence[Row], reports: Sequence[Reports]) -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise OSError("disk full")
        commit(rows, reports)

    bench.commit = fail  # type: ignore[method-assign]
    with pytest.raises(OSError, match="disk full"):
        driver.run(bench)
    assert len(heard) == 2
    assert bench.called("run", "unwind", "delete") == [("run", 0, 1), ("run", 1, 1)]


def test_listeners_hear_of_each_turn_once_it_is_durable() -> None:
    bench = Bench([Slots(1.0, 1)], [said(0, 1, 1, 2)], [ended(0, 1, 2)])
    heard: list[tuple[list[Row], list[Reports]]] = []

    def listen(study: Study, rows: Sequence[Row], reports: Sequence[Reports]) -> None:
        assert bench.record[len(bench.record) - len(rows) :] == list(rows)
        assert bench.said[len(bench.said) - len(reports) :] == list(reports)
        heard.append((list(rows), list(reports)))

    bench.live(Scripted(Start(0, 2)), [listen]).run(bench)
    assert [row for rows, _ in heard for row in rows] == bench.record
    assert [one for _, reports in heard for one in reports] == bench.said
    assert len(heard) == 4


def test_a_step_counts_once() -> None:
    """Reported twice in a life, and again by the next attempt, from before the checkpoint it was set back to."""
    bench = Bench(
        [Slots(1.0, 1)],
        [said(0, 1, 1), said(0, 1, 1, 2, loss=7.0)],
        [Failed(60.0, 0, 1, Failure.ERROR, "boom")],
        [said(0, 2, 1, 2, 3, loss=9.0), said(0, 2, 2, save=True)],
    )
    scheduler = Scripted(Start(0, 9), every_report=True)
    bench.die(bench.live(scheduler, max_failures=1))
    assert [(said.attempt, report.step, report.metrics["loss"]) for said in bench.said for report in said] == [
        (1, 1, 1.0),
        (1, 2, 7.0),
        (2, 3, 9.0),
    ]
    assert [(seen.step, seen.value) for seen in scheduler.seen] == [(1, 1.0), (2, 7.0), (3, 9.0)]
    assert Checkpointed(52.0, 0, 2, 2, {"loss": 1.0}, "0/2") in bench.record  # the checkpoint is news all the same
    reported = [row for row in bench.record if isinstance(row, Reported)]
    assert [[report.step for report in row.reports] for row in reported] == [[1], [2], [3]]
    # the next driver's trials say it all again
    bench.script.extend([[Slots(70.0, 1)], [said(0, 3, 3, 4)]])
    again = Scripted(Start(0, 9), every_report=True)
    bench.die(bench.live(again, max_failures=1))
    assert [step for said in bench.said for step in said.steps] == [1, 2, 3, 4]
    assert [seen.step for seen in again.seen] == [1, 2, 3, 4]


def test_the_record_is_told_that_time_goes_by_where_a_budget_needs_it() -> None:
    class Later(Bench):
        at = 100.0

        def now(self) -> float:
            self.at += 6.0
            return self.at

    bench = Later([Slots(1.0, 1)], [said(0, 1, 1)], [said(0, 1, 2)], [said(0, 1, 3)])
    study = Study(Objective("loss"), Scripted(Start(0, 9)), None, Retries(), CheckpointConfig())
    bench.die(Driver(study, bench, bench, bench, bench, budget=TimeBudget(1e6)))
    assert any(isinstance(row, Ticked) for row in bench.record)
    bench = Later([Slots(1.0, 1)], [said(0, 1, 1)], [said(0, 1, 2)], [said(0, 1, 3)])
    bench.die(bench.live(Scripted(Start(0, 9))))
    assert not any(isinstance(row, Ticked) for row in bench.record)


def test_reports_are_journaled_only_for_schedulers_that_judge_them() -> None:
    bench = Bench([Slots(1.0, 1)], [said(0, 1, 1, 2)])
    bench.die(bench.live(Scripted(Start(0, 9))))
    assert not any(isinstance(row, Reported) for row in bench.record)
    assert list(map(len, bench.said)) == [2]


def test_stale_attempts_are_refused() -> None:
    bench = Bench(
        [Slots(1.0, 1)],
        [Failed(60.0, 0, 1, Failure.LOST, "gone"), said(0, 1, 1, 2, save=True), ended(0, 1, 2), said(5, 1, 1)],
    )
    bench.die(bench.live(Scripted(Start(0, 9))))
    assert bench.record[-2:] == [Failed(60.0, 0, 1, Failure.LOST, "gone"), Retry(0, None)]
    assert bench.said == []
    assert bench.called("run") == [("run", 0, 1), ("run", 0, 2)]


def test_what_a_lease_began_from_is_recorded_unless_it_is_dead() -> None:
    """Before its reports; nothing else follows from it."""
    late, good = Loaded(61.0, 0, 1, 0, 1, "0/1"), Loaded(62.0, 0, 2, 0, 1, "0/1")
    bench = Bench(
        [Slots(1.0, 1)],
        [said(0, 1, 1, save=True), Failed(60.0, 0, 1, Failure.LOST, "gone"), late],
        [good, said(0, 2, 2, save=True)],
    )
    bench.die(bench.live(Scripted(Start(0, 9))))
    assert late not in bench.record
    assert bench.record[-3:] == [Retry(0, 1), good, Checkpointed(52.0, 0, 2, 2, {"loss": 1.0}, "0/2")]
    before = list(bench.record)
    bench.script.append([Slots(2.0, 1)])
    bench.die(bench.live(Scripted(Start(0, 9))))  # it can be replayed
    assert bench.record[: len(before)] == before


def test_what_an_attempt_saved_unheard_is_swept_before_the_next() -> None:
    """Of a fork, too: its own folder, not its donor's."""
    bench = Bench(
        [Slots(1.0, 2)],
        [said(0, 1, 1, save=True)],
        [ended(0, 1, 2, How.REACHED)],
        [Failed(60.0, 1, 1, Failure.LOST, "gone")],
    )
    scheduler = Scripted(Start(0, 2))
    driver = bench.live(scheduler)
    scheduler._judge = lambda seen: scheduler.wishes.extend([Fork(1, 0, {}, 4), Resume(0, 4)]) or []
    bench.die(driver)
    assert bench.called("run", "sweep trial") == [
        ("run", 0, 1),
        ("run", 1, 1),
        ("run", 0, 2),
        ("sweep trial", 1, set()),
        ("run", 1, 2),
    ]


def test_a_driver_goes_on_where_the_last_one_died() -> None:
    bench = Bench([Slots(1.0, 2)], [said(0, 1, 1, save=True)], [ended(1, 1, 3)])
    plan = [Start(0, 9), Start(1, 9), Start(2, 9)]
    bench.die(bench.live(Scripted(*plan)))
    before = list(bench.record)
    bench.calls.clear()
    bench.asked.clear()
    told = bench.told.copy()
    bench.told.clear()
    bench.script.append([Slots(2.0, 2)])
    driver = bench.live(Scripted(*plan))
    assert bench.calls == []  # a replay issues nothing
    assert (bench.recalled, bench.asked, bench.told) == ([0, 1, 2], [], told)
    bench.die(driver)
    assert bench.calls[0] == ("sweep", {(0, 1)})
    assert bench.record[len(before)] == Opened(100.0, 2, in_order=True)
    assert bench.called("run") == [("run", 0, 2), ("run", 2, 2)]
    assert [(lease.checkpoint, lease.digest) for lease in bench.leases[-2:]] == [(1, "0/1"), (None, "")]


def test_owed_answers_are_asked_for_again() -> None:
    """The record ends with a start whose configuration was not written. (This driver writes both or neither.)"""
    bench = Bench([Slots(2.0, 2)])
    bench.record = [Opened(1.0, 1, in_order=True), Slots(1.0, 2), Start(0, 9)]
    bench.die(bench.live(Scripted(Start(0, 9))))
    assert bench.asked == [(0, [])]
    assert bench.recalled == []
    assert bench.record[3:5] == [Opened(100.0, 2, in_order=True), Proposed(100.0, 0, Proposal({"x": 0}))]
    assert bench.called("run") == [("run", 0, 1)]


def test_all_answers_are_recalled_in_their_order() -> None:
    answers = [Proposal({"x": 0}), Wait(), Wait(), Proposal({"x": 1}), Exhausted()]
    bench = Bench([Slots(1.0, 2)], [ended(0, 1, 1, How.REACHED)], [ended(0, 2, 2, How.REACHED)], answers=answers)

    class Late(Scripted):
        """Resumes only what is paused."""

        def next(self) -> Any:
            if self.wishes and isinstance(self.wishes[0], Resume) and len(self.seen) < self.wishes[0].until - 1:
                return Wait()
            return super().next()

    def late() -> Late:
        return Late(Start(0, 1), Start(1, 1), Resume(0, 2), Resume(0, 3), Start(2, 1))

    bench.die(bench.live(late()))
    proposed = [row.answer for row in bench.record if isinstance(row, Proposed)]
    assert proposed == answers[: len(proposed)]
    assert len(proposed) == 4
    bench.recalled.clear()
    bench.asked.clear()
    bench.live(late())
    assert bench.recalled == [row.trial for row in bench.record if isinstance(row, Proposed)]
    assert bench.asked == []


def test_an_error_in_a_users_searcher_leaves_a_record_to_go_on_from() -> None:
    bench = Bench([Slots(1.0, 1)], [said(0, 1, 1), ended(0, 1, 1, How.REACHED)])
    driver = bench.live(Scripted(Start(0, 1), Resume(0, 2)))

    def broken(seen: Observation) -> None:
        raise ZeroDivisionError("in the user's searcher")

    bench.tell = broken  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        driver.run(bench)
    assert bench.said == []  # the whole turn was not
    assert bench.called("run") == [("run", 0, 1)]
    del bench.tell  # type: ignore[method-assign]
    bench.script.extend([[Slots(2.0, 1)], [said(0, 2, 1), ended(0, 2, 1, How.REACHED)], [ended(0, 3, 2)]])
    finish = bench.live(Scripted(Start(0, 1), Resume(0, 2))).run(bench)
    assert finish.complete
    assert [step for said in bench.said for step in said.steps] == [1]


def test_an_error_while_asking_leaves_the_start_undone() -> None:
    bench = Bench([Slots(1.0, 1)])
    driver = bench.live(Scripted(Start(0, 1)))

    def broken(trial: int, until: int, pending: Sequence[Pending]) -> Answer:
        raise ZeroDivisionError

    bench.ask = broken  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        driver.run(bench)
    assert bench.record == [Opened(100.0, 1, in_order=True)]


def test_a_stopped_study_is_gone_on_with_and_a_complete_one_is_not() -> None:
    bench = Bench([Slots(1.0, 1)], [StopAsked(2.0, "Ctrl-C")], [ended(0, 1, 1, How.UNWOUND)])
    assert bench.live(Scripted(Start(0, 9))).run(bench) == Finish(False, "Ctrl-C")
    bench.script.extend([[Slots(3.0, 1)], [ended(0, 2, 5)]])
    assert bench.live(Scripted(Start(0, 9))).run(bench).complete
    record = list(bench.record)
    assert bench.live(Scripted(Start(0, 9))).run(bench).complete
    assert bench.record == record


# ------------------------------------------------------------------------------------------------ replay that differs


def a_record() -> Bench:
    bench = Bench([Slots(1.0, 1)], [ended(0, 1, 2, How.REACHED)])
    bench.die(bench.live(Scripted(Start(0, 2), Resume(0, 4))))
    return bench


@pytest.mark.parametrize(
    ("changed", "event", "was", "now"),
    [
        ([Start(0, 3)], "Slots(at=1.0, slots=1,", "Start(trial=0, until=2,", "Start(trial=0, until=3,"),
        ([Wait()], "Slots(at=1.0, slots=1,", "Start(trial=0, until=2,", "to fail: Deadlock('the scheduler waits"),
        ([Start(0, 2), Resume(0, 9)], "Ended(", "until=4)", "until=9)"),
        ([Start(0, 2), Start(1, 2)], "Ended(", "Resume(trial=0, until=4)", "Start(trial=1, until=2,"),
        (
            [Start(0, 2), Resume(0, 1)],
            "Ended(",
            "Resume(trial=0, until=4)",
            "to fail: IllegalChange(",
        ),
    ],
)
def test_the_message_names_the_event_and_both_decisions(changed: list[Any], event: str, was: str, now: str) -> None:
    with pytest.raises(ReplayDiffers) as caught:
        a_record().live(Scripted(*changed))
    message = str(caught.value)
    assert f"after {event}" in message
    assert was in message.split("recorded was")[1].split("but the study")[0]
    assert now in message.split("now decides")[1]
    assert message.endswith("The space, the settings or the code are not those the study was begun with")


def test_a_decision_too_many_and_one_too_few_are_told() -> None:
    bench = a_record()
    closed = Scripted(Start(0, 2), judge=lambda seen: [Stop(0, Why.NO_PROMISE)])
    with pytest.raises(ReplayDiffers, match=r"recorded was Resume.* now decides Over\(trial=0"):
        bench.live(closed)
    del bench.record[-1]
    with pytest.raises(ReplayDiffers, match=r"recorded was nothing more, but the study now decides Resume\(trial=0"):
        bench.live(Scripted(Start(0, 2), Resume(0, 4)))
    bench = a_record()
    bench.record.append(Resume(0, 5))
    with pytest.raises(
        ReplayDiffers, match=r"recorded was Resume\(.*until=5\), but the study now decides nothing more"
    ):
        bench.live(Scripted(Start(0, 2), Resume(0, 4)))


def test_an_answer_that_the_study_did_not_ask_for_is_told() -> None:
    bench = a_record()
    bench.record.append(Proposed(9.0, 5, Proposal({})))
    with pytest.raises(ReplayDiffers, match=r"after Proposed\(.* trial 5, which nobody asked for") as caught:
        bench.live(Scripted(Start(0, 2), Resume(0, 4)))
    assert isinstance(caught.value.__cause__, IllegalChange)


# ---------------------------------------------------------------------------------------------- with a real journal


@pytest.mark.parametrize("name", TOYS)
def test_forks_and_stops_in_mid_lease_survive_deaths(name: str, fast_path: Path, fate: Fate) -> None:
    """As in `test_replay`, with schedulers that do what no real one does yet."""
    case = Case(RandomSearch(), TOYS[name], {"x": SPACE["lr"]}, trials=12, slots=3)
    expected, alone = live_through(case, fast_path / "alone", fate, gap=None)
    assert any(isinstance(row, Fork) for row in expected) == (name == "toy pbt")
    assert any(isinstance(row, Over) and row.why is Why.NO_PROMISE for row in expected)
    for round_ in range(4):
        gap = alone.leases // 2 + 4
        found, checks = live_through(case, fast_path / str(round_), fate, gap, power=round_ % 2 == 0)
        assert found == expected
        assert checks.deaths > 0


def test_a_fork_without_a_source_is_seen_in_the_journal(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    bench = Bench([Slots(1.0, 1)], [ended(0, 1, 2, How.REACHED)], [ended(0, 2, 4)])
    scheduler = Scripted(Start(0, 2), Fork(1, 0, {"x": 9}, 4), Resume(0, 4))
    study = Study(Objective("loss"), scheduler, None, Retries(), CheckpointConfig())
    Driver(study, bench, journal, bench, bench).run(bench)
    journal.close()
    rows = list(read(tmp_path).rows)
    at = rows.index(Fork(1, 0, {"x": 9}, 4))
    message = "trial 0 had saved nothing by step 2, so nothing can go on from there"
    assert rows[at + 1] == Over(1, State.FAILED, Why.NO_SOURCE, message)


def test_a_driver_says_once_that_forks_find_no_checkpoint(caplog: pytest.LogCaptureFixture) -> None:
    """Not those of the record that it replays: they have been said."""
    plan = [Start(0, 2), Fork(1, 0, {}, 4), Fork(2, 0, {}, 4), Resume(0, 4), Fork(3, 0, {}, 6), Resume(0, 6)]
    bench = Bench([Slots(1.0, 1)], [ended(0, 1, 2, How.REACHED)], [ended(0, 2, 4, How.REACHED)])
    bench.die(bench.live(Scripted(*plan)))
    assert [row.trial for row in bench.record if isinstance(row, Over)] == [1, 2, 3]
    told = [(record.name, record.levelno, record.getMessage()) for record in caplog.records]
    assert told == [
        (
            "raytuner.driver",
            logging.WARNING,
            "trial 1 could not begin as a fork: trial 0 had saved nothing by step 2, so nothing can go on from there. "
            "Report a checkpoint where should_checkpoint() says so. (This is said once.)",
        )
    ]
    caplog.clear()
    plan += [Fork(4, 0, {}, 8), Resume(0, 8)]
    bench.script.append([Slots(2.0, 1)])
    bench.die(bench.live(Scripted(*plan)))
    assert caplog.records == []
    bench.script.extend([[Slots(3.0, 1)], [ended(0, 5, 6, How.REACHED)]])
    bench.die(bench.live(Scripted(*plan)))
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["trial 4 could not begin as a fork"]


@pytest.mark.parametrize("policy", [HyperBandScheduler(max_t=9), AsyncHyperBandScheduler(max_t=9)])
def test_events_fed_to_a_second_driver_give_the_same_record(policy: Any, fast_path: Path, fate: Fate) -> None:
    case = Case(RandomSearch(), policy, SPACE, trials=9, slots=2)
    first, _ = live_through(case, fast_path / "one", fate, gap=None)
    second, _ = live_through(case, fast_path / "two", fate, gap=None)
    assert first == second
    assert list(read(fast_path / "one").rows) == list(read(fast_path / "two").rows)
