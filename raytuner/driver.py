"""The loop: wait, record, handle, issue. All of a study's input and output passes here, and nothing is decided here.

One turn: everything that happened since the last one is handled; its rows are made durable; only then are the commands
they caused carried out (write-ahead). A driver that dies between any two instructions therefore leaves a record from
which the next one goes on: `Driver` replays it through the same study, which must reach the recorded decisions.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Protocol

from raytuner.actions import Answer, Proposal
from raytuner.budget import TimeBudget
from raytuner.events import (
    Ask,
    Checkpointed,
    Command,
    Damaged,
    Decision,
    Drop,
    Ended,
    Event,
    Extended,
    Failed,
    Finish,
    Loaded,
    Opened,
    Over,
    Proposed,
    Quarantine,
    Reported,
    Run,
    StopAsked,
    Tell,
    Ticked,
    Unwind,
)
from raytuner.ledger import IllegalChange
from raytuner.protocols import Clock, Executor, Searcher
from raytuner.record.journal import Row, events_of, uncollected
from raytuner.retry import Remedies
from raytuner.space import plain
from raytuner.stopper import Watch
from raytuner.study import Deadlock, Study
from raytuner.trial import UNDER_WAY, Failure, Reports, Why

_log = logging.getLogger(__name__)


_OF_AN_ATTEMPT = Ended | Failed | Damaged | Checkpointed | Loaded


class ReplayDiffers(Exception):
    """The study's code, space or settings no longer take the decisions that were recorded."""


class Recorder(Protocol):
    """What the driver needs of `raytuner.record.journal.Journal`."""

    def rows(self) -> Iterable[Row]: ...

    def last_steps(self) -> dict[int, int]: ...

    def commit(self, rows: Sequence[Row], reports: Sequence[Reports]) -> None: ...


class Shelf(Protocol):
    """What the driver needs of `raytuner.checkpoints.Store`."""

    def delete(self, trial: int, step: int) -> None: ...

    def sweep(self, referenced: set[tuple[int, int]]) -> object: ...

    def sweep_trial(self, trial: int, referenced: set[int]) -> object: ...

    def quarantine(self, trial: int, step: int) -> str | None: ...


Listener = Callable[[Study, Sequence[Row], Sequence[Reports]], None]
"""Hears of each turn once it is durable."""


class Driver:
    """Runs a study to its end, from wherever its record stands.

    ``extension``: is recorded and handled when it runs; the searcher is that of the space it says.

    Raises `ReplayDiffers` at construction if the study cannot have taken the recorded decisions.
    """

    def __init__(
        self,
        study: Study,
        searcher: Searcher,
        journal: Recorder,
        shelf: Shelf,
        clock: Clock,
        listeners: Sequence[Listener] = (),
        watch: Watch | None = None,
        budget: TimeBudget | None = None,
        remedies: Remedies | None = None,
        extension: Extended | None = None,
    ) -> None:
        self._study = study
        self._remedies = remedies
        self._extension = extension
        self._searcher = searcher
        self._journal = journal
        self._shelf = shelf
        self._clock = clock
        self._listeners = listeners
        self._watch = watch
        self._budget = budget
        self._rows: list[Row] = []
        self._said: list[Reports] = []
        self._outbox: list[Command] = []
        self._owed: dict[int, Ask] = {}
        self._failed: set[int] = set()  # trials whose last attempt failed
        self._stopped: StopAsked | None = None  # what this driver told the study last
        self._warned: set[str] = set()  # what was said, and is said once
        self._damage: dict[tuple[int, int], Damaged] = {}  # checkpoints that were found damaged
        self._epoch = self._replay()
        if budget is not None:
            budget.died()
        self._last_step = journal.last_steps()

    def run(
        self, executor: Executor, tick_s: float | None = None, asked: Callable[[], str | None] = lambda: None
    ) -> Finish:
        """Drive the study until it is over. The caller closes the executor.

        ``asked``: says why the study is to end early, once somebody wants it to; it is looked at every ``tick_s``
        seconds, and the listeners are told that time goes by (None: only when something happens).
        """
        referenced = {(trial, step) for trial, steps in self._study.checkpoints.items() for step in steps}
        for trial, step in sorted(self._study.quarantined):
            self._shelf.quarantine(trial, step)  # the driver before may have died before it could
        self._shelf.sweep(referenced)
        opened: list[Event] = [Opened(self._clock.now(), self._epoch + 1, in_order=True)]
        if self._extension is not None:
            self._turn([*opened, self._extension], executor, owed=list(self._owed.values()))
        elif self._study.finished is None or not self._study.finished.complete:
            self._turn(opened, executor, owed=list(self._owed.values()))
        while self._study.finished is None:
            due = self._stop(asked()) or self._tick()
            self._turn([due] if due else executor.wait(tick_s), executor)
        return self._study.finished

    def _stop(self, asked: str | None) -> StopAsked | None:
        """The request that the study end early, if there is a new reason."""
        now = self._clock.now()
        for_good = self._stopped is not None and self._stopped.for_good
        if self._watch is not None and not for_good and self._watch.stop_all():
            return StopAsked(now, Why.STUDY_STOPPED.value, for_good=True)
        if asked is None and self._budget is not None and not self._budget.left_s(now):
            asked = self._budget.reason
        return StopAsked(now, asked) if asked and self._stopped is None else None

    def _tick(self) -> Ticked | None:
        """An event to tell the record that time goes by, if a budget needs one."""
        now = self._clock.now()
        return Ticked(now) if self._budget is not None and self._budget.tick(now) else None

    # ---------------------------------------------------------------------------------------------------- a turn

    def _turn(self, happened: Sequence[Event], executor: Executor, owed: Sequence[Ask] = ()) -> None:
        queue: deque[Event] = deque(happened)
        queue.extend(self._answer(ask) for ask in owed)
        while queue:
            event = queue.popleft()
            heard = self._take_reports(event) if isinstance(event, Reported) else [event]
            answers = [answer for each in heard for answer in self._handle(each)]
            queue.extendleft(reversed(answers))
        rows, said, outbox = self._rows, self._said, self._outbox
        self._rows, self._said, self._outbox = [], [], []
        if rows or said:
            self._journal.commit(rows, said)
        for command in sorted(outbox, key=lambda command: not isinstance(command, Drop | Quarantine)):
            self._issue(command, executor)  # first what makes room
        self._tidy()
        for listener in self._listeners:
            listener(self._study, rows, said)

    def _handle(self, event: Event) -> list[Event]:
        """Let the study handle an event; return the searcher's answers, if it was asked."""
        if isinstance(event, _OF_AN_ATTEMPT) and not self._study.expects(event.trial, event.attempt):
            return []  # too late: this attempt is dead, and what it says does not count
        if isinstance(event, Failed):
            self._failed.add(event.trial)
            event = self._remedied(event)
        if isinstance(event, Damaged):
            self._damage[event.source, event.step] = event
        if self._watch is not None and isinstance(event, Ended):
            event = self._watch.consult(event)
        if isinstance(event, StopAsked):
            self._stopped = event
        if self._budget is not None:
            self._budget.note(event)
        self._rows.append(event)
        answers: list[Event] = []
        for command in self._study.handle(event):
            match command:
                case Tell(seen):
                    self._searcher.tell(seen)
                case Ask():
                    answers.append(self._answer(command))
                case Run() | Unwind():
                    self._outbox.append(command)
                case _:
                    self._rows.append(command)
                    self._outbox.append(command)
        return answers

    def _remedied(self, failed: Failed) -> Failed:
        """A failure, with what the user would change because of it."""
        if self._remedies is None or failed.failure not in (Failure.OUT_OF_MEMORY, Failure.HOST_OUT_OF_MEMORY):
            return failed
        entry = self._study.ledger[failed.trial]
        return replace(failed, remedy=self._remedies.find(entry.effective.config, failed.message, entry.failures))

    def _answer(self, ask: Ask) -> Proposed:
        answer = self._searcher.ask(ask.trial, ask.until, ask.pending)
        if isinstance(answer, Proposal):  # a copy: the searcher may go on to change what it gave
            answer = Proposal(plain(answer.config, "the searcher's proposal"), plain(answer.note, "its note"))
        return Proposed(self._clock.now(), ask.trial, answer)

    def _take_reports(self, event: Reported) -> list[Event]:
        """Keep the reports that count; return what the study must know of them.

        A step that is reported twice, because a trial was set back to a checkpoint, counts once. Its checkpoint may
        still be news.
        """
        if not self._study.expects(event.trial, event.attempt):
            return []
        reports = event.reports
        if not isinstance(reports, Reports):
            reports = Reports.of(event.trial, event.attempt, reports)
        fresh = reports.after(self._last_step.get(event.trial, 0))
        heard: list[Event] = []
        if any(reports.checkpoints):
            heard += [
                Checkpointed(
                    report.at,
                    event.trial,
                    event.attempt,
                    report.step,
                    report.metrics,
                    report.checkpoint,
                    report.nbytes,
                )
                for report in reports
                if report.checkpoint not in ("", UNDER_WAY)
            ]
        if fresh:
            self._last_step[event.trial] = fresh.steps[-1]
            self._said.append(fresh)
            if self._study.every_report:
                heard.append(replace(event, reports=tuple(fresh)))
        return heard

    def _issue(self, command: Command, executor: Executor) -> None:
        match command:
            case Run(lease):
                if lease.trial.id in self._failed:
                    # The failed attempt may have published a checkpoint that nobody heard of: it never was.
                    self._failed.remove(lease.trial.id)
                    self._shelf.sweep_trial(lease.trial.id, set(self._study.ledger[lease.trial.id].checkpoints))
                executor.run(lease)
            case Unwind(trial, attempt):
                executor.unwind(trial, attempt)
            case Drop(trial, step):
                self._shelf.delete(trial, step)
                entry = self._study.ledger[trial]
                if not entry.state.over and entry.newest is None:
                    self._warn_once(
                        "the quota is so small that trial %d, which is paused, lost its last checkpoint, of step %d: "
                        "if it is resumed it begins anew, and so do others",
                        trial,
                        step,
                    )
            case Quarantine(trial, step):
                moved = self._shelf.quarantine(trial, step)
                found = self._damage.pop((trial, step), None)
                _log.warning(
                    "%s. %s; trial %s goes on from an older one, if there is one, at no charge",
                    found.message if found else f"checkpoint {step} of trial {trial} is damaged",
                    f"It was moved to {moved}" if moved else "There is nothing left of it to look at",
                    found.trial if found else trial,
                )
            case Over(trial, why=Why.NO_SOURCE, message=message):
                self._warn_once(
                    "trial %d could not begin as a fork: %s. Report a checkpoint where should_checkpoint() says so",
                    trial,
                    message,
                )
            case _:
                pass

    def _tidy(self) -> None:
        """Remove what failed attempts of trials that are over had published unheard; say if there is too much."""
        for trial in [trial for trial in self._failed if self._study.ledger[trial].state.over]:
            self._failed.remove(trial)
            self._shelf.sweep_trial(trial, set(self._study.ledger[trial].checkpoints))
        stock = self._study.stock
        if (quota := stock.exceeded) is not None:
            there = f"{len(stock):,} checkpoints of {stock.nbytes:,} bytes"
            self._warn_once(
                "the quota of %s is exceeded: all %s that are left are the best, or live trials need them", quota, there
            )

    def _warn_once(self, message: str, *arguments: object) -> None:
        if message not in self._warned:
            self._warned.add(message)
            _log.warning(message + ". (This is said once.)", *arguments)

    # ------------------------------------------------------------------------------------------------- the replay

    @uncollected()
    def _replay(self) -> int:
        """Put the study and the searcher where the record ends; return its last epoch."""
        epoch = 0
        recorded = list(events_of(self._journal.rows()))
        # The searcher of another space was made anew, and told what had happened, but not what another had answered.
        anew = [place for place, (event, _) in enumerate(recorded) if isinstance(event, Extended) and event.respaced]
        if self._extension is not None and self._extension.respaced:
            anew.append(len(recorded))
        answers: dict[int, deque[Answer]] = {}
        for event, _ in recorded[anew[-1] if anew else 0 :]:
            if isinstance(event, Proposed):
                answers.setdefault(event.trial, deque()).append(event.answer)
        for event, decisions in recorded:
            if isinstance(event, Opened):
                epoch = event.epoch
            if isinstance(event, Proposed):
                self._owed.pop(event.trial, None)
            try:
                taken = self._rehearse(event, answers)
            except (IllegalChange, Deadlock, LookupError, TypeError, ValueError) as error:
                raise ReplayDiffers(_message(event, decisions, f"to fail: {error!r}")) from error
            if taken != decisions:
                raise ReplayDiffers(_difference(event, decisions, taken))
        return epoch

    def _rehearse(self, event: Event, answers: dict[int, deque[Answer]]) -> list[Decision]:
        """Handle a recorded event: the searcher is told and reminded of its recorded answers, nothing is issued."""
        if self._watch is not None and isinstance(event, Ended):
            self._watch.remind(event)
        if self._budget is not None:
            self._budget.note(event)
        taken: list[Decision] = []
        for command in self._study.handle(event):
            match command:
                case Tell(seen):
                    self._searcher.tell(seen)
                case Ask(trial, until, pending) if answers.get(trial):
                    self._searcher.recall(trial, until, pending, answers[trial].popleft())
                case Ask(pending=pending):
                    self._owed[command.trial] = replace(command, pending=tuple(pending))
                case Run() | Unwind():
                    pass
                case _:
                    taken.append(command)
        return taken


def _difference(event: Event, recorded: Sequence[Decision], taken: Sequence[Decision]) -> str:
    for number in range(max(len(recorded), len(taken))):
        was = recorded[number] if number < len(recorded) else "nothing more"
        now = taken[number] if number < len(taken) else "nothing more"
        if was != now:
            return _message(event, was, now)
    raise AssertionError("the decisions are equal")


def _message(event: Event, was: object, now: object) -> str:
    return (
        f"replaying the journal, after {event}: recorded was {was}, but the study now decides {now}. "
        "The space, the settings or the code are not those the study was begun with"
    )
