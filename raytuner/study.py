"""The study: a state machine that is told what happened and says what it wants. No I/O, no clock, no threads.

`Study.handle` takes an event (`raytuner.events`) and returns commands, in the order in which they are to be carried
out. It asks the scheduler itself, and the searcher through `Ask` and `Tell`, so that a slow searcher can answer later.
The same events in the same order give the same commands: this is how a study resumes, and how it is simulated.

After an `Ask` the call returns: a searcher that answers at once is asked again in the next call, and each proposal
knows of all trials before it; one that answers later does not hold up what the scheduler resumes meanwhile.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import assert_never

from raytuner.actions import Done, Exhausted, Fork, Proposal, Resume, Start, Stop, Wait
from raytuner.allocation import Allocation, LiveTrial, StudyView
from raytuner.events import (
    Ask,
    Checkpointed,
    Command,
    Damaged,
    Drop,
    Ended,
    Event,
    Extended,
    Failed,
    Finish,
    How,
    Loaded,
    Opened,
    Over,
    Proposed,
    Quarantine,
    Reported,
    Retry,
    Run,
    Slots,
    StopAsked,
    Tell,
    Ticked,
    Unwind,
)
from raytuner.ledger import Entry, IllegalChange, Ledger
from raytuner.objective import Objective
from raytuner.protocols import Extensible, Reopening, Scheduler
from raytuner.retention import CheckpointConfig, Kept, Need, Stock, over_the_study, retention, worth
from raytuner.retry import Retries, fingerprint, merged
from raytuner.trial import Config, Failure, Lease, Observation, Slot, State, Trial, Why


class Deadlock(Exception):
    """The scheduler or the searcher waits, and nothing runs that could ever wake it: a defect of theirs."""


_GIVEN_UP = {
    Failure.ERROR: Why.ERROR,
    Failure.OUT_OF_MEMORY: Why.OUT_OF_MEMORY,
    Failure.HOST_OUT_OF_MEMORY: Why.HOST_OUT_OF_MEMORY,
    Failure.HUNG: Why.HUNG,
    Failure.NOT_REPORTABLE: Why.NOT_REPORTABLE,
    Failure.LOST: Why.LOST,
    Failure.NO_METRIC: Why.NO_VALUE,
    Failure.NOT_FINITE: Why.NO_VALUE,
    Failure.NO_RESOURCES: Why.NO_RESOURCES,
}


class Study:
    """The state machine.

    ``trials``: how many `Start`s are served (None: as many as the searcher has configurations for).
    ``fail_fast``: the first failed trial ends the study, resumable. ``each_report``: a lease ends at every report, so
    that whoever drives the study can have a say; short of its rung it goes on at once. ``allocate``: what trials that
    have reported are to reserve, where the executor can give them more or less; then leases end at every report, too.
    """

    def __init__(
        self,
        objective: Objective,
        scheduler: Scheduler,
        trials: int | None,
        retries: Retries,
        checkpoint_config: CheckpointConfig,
        fail_fast: bool = False,
        each_report: bool = False,
        allocate: Allocation | None = None,
    ) -> None:
        self.objective = objective
        self.ledger = Ledger()
        self.finished: Finish | None = None
        self.forked = 0  # forks in the place of another trial: one of the two is over with each
        self.best: tuple[float, int] | None = None  # lowest value at the highest rung seen, and its trial
        self._best_until = 0
        self._scheduler = scheduler
        self._limit = trials
        self._retries = retries
        self._fail_fast = fail_fast
        self._asks_each_report = each_report
        self._allocate = allocate
        self._nodes: Sequence[Slot] | None = None  # of the cluster, where the executor can give trials more or less
        self._retention = retention(checkpoint_config)
        self._checkpoint_config = checkpoint_config
        self.stock = Stock(over_the_study(checkpoint_config))
        self.quarantined: set[tuple[int, int]] = set()  # checkpoints that were damaged, and not published again since
        self._unappraised: dict[int, None] = {}  # trials of whose checkpoints something else may be needed now
        self._slots = 0
        self._next_trial = 0
        self._starts = 0
        self._busy: dict[tuple[int, int], None] = {}  # (trial, attempt) that hold a slot
        self._asked: dict[int, Start] = {}  # starts whose configuration is owed; each keeps a slot
        self._deferred: list[int] = []  # those of them that were answered `Wait`: asked again at the next observation
        self._due: deque[int] = deque()  # running trials whose lease waits for a slot
        # (trial, step) -> how many need it: live forks that start from it, and the trial while others may fork from it
        self._held: Counter[tuple[int, int]] = Counter()
        # Trials that replaced each other, oldest first, without those that have no checkpoint any more: shared by all.
        self._chains: dict[int, list[Entry]] = {}
        self._fared = False  # whether any trial has reported a value
        self._way, self._same = "", 0  # how the last trial failed that did, and how many did before it in a row
        self._stopping: Finish | None = None
        self._saving: set[int] = set()  # trials that make one more step, to save it, while the study ends early
        self._out: list[Command] = []

    # ------------------------------------------------------------------------------------------------ the outside

    def handle(self, event: Event) -> list[Command]:
        """Take note of an event; return what is wanted now. Raises `IllegalChange` or `Deadlock` on a defect."""
        self._out = []
        match event:
            case Opened():
                self._opened(event)
            case Slots():
                self._slots = event.slots
                self._nodes = self._nodes if event.nodes is None else event.nodes
            case Proposed():
                self._proposed(event)
            case Reported():
                self._reported(event)
            case Checkpointed():
                self._checkpointed(event)
            case Ended():
                self._ended(event)
            case Failed():
                self._failed(event)
            case Damaged():
                self._damaged(event)
            case StopAsked():
                self._stop_asked(event.reason, event.for_good)
            case Extended():
                self._extended(event)
            case Loaded() | Ticked():
                pass
            case _:
                assert_never(event)
        self._fill(event.at)
        if not self.finished:
            self._make_room()
        return self._out

    def expects(self, trial: int, attempt: int) -> bool:
        """Whether this attempt holds a slot; what any other attempt says comes too late and does not count."""
        return (trial, attempt) in self._busy

    @property
    def slots(self) -> int:
        """How many leases may run at the same time."""
        return self._slots

    @property
    def every_report(self) -> bool:
        """Whether the scheduler judges each report."""
        return self._scheduler.every_report

    @property
    def checkpoints(self) -> Mapping[int, Mapping[int, float | None]]:
        """The checkpoints that exist: trial -> step -> retention score."""
        return {trial: entry.checkpoints for trial, entry in self.ledger.items() if entry.checkpoints}

    # --------------------------------------------------------------------------------------------- what happened

    def _opened(self, event: Opened) -> None:
        """Whatever ran is dead with the driver that ran it: its leases are given out anew, free of charge; those that
        ran before those that waited, for there may be fewer slots now."""
        known = [*(trial for trial, _ in self._busy), *self._due] if event.in_order else []
        self._slots, self._nodes = 0, None
        self._busy.clear()
        self._saving.clear()
        if self._stopping and not self._stopping.complete:
            self._stopping = None
        if self.finished and not self.finished.complete:
            self.finished = None
        self._due.clear()
        for entry in self.ledger.live.values():
            entry.slot, entry.parked = None, False
        for trial in dict.fromkeys([*known, *self.ledger.live]):
            if trial in self.ledger.live and self.ledger[trial].state is State.RUNNING:
                self._repeat(self.ledger[trial])

    def _proposed(self, event: Proposed) -> None:
        start = self._asked.get(event.trial)
        if start is None or event.trial in self._deferred:
            raise IllegalChange(f"a configuration was proposed for trial {event.trial}, which nobody asked for")
        match event.answer:
            case _ if self._stopping and self._stopping.complete:
                del self._asked[event.trial]  # it comes too late
            case Proposal(config=config):
                del self._asked[event.trial]
                self._begin(start, config)
            case Exhausted():
                del self._asked[event.trial]
                self._limit = self._starts
                self._close([start.trial])
            case Wait():
                self._deferred.append(event.trial)

    def _reported(self, event: Reported) -> None:
        for report in event.reports:
            if not self.expects(event.trial, event.attempt) or self.ledger[event.trial].state.over:
                return
            entry = self.ledger[event.trial]
            reading = self.objective.read(report.metrics)
            entry.heard = Observation(
                entry.trial.id,
                entry.trial.config,
                report.step,
                report.level,
                entry.until,
                reading.value,
                reading.values,
                spent=entry.spent,
                failure=reading.failure,
                running=True,
            )
            if self._judge(entry.heard):
                self._ask_again()

    def _checkpointed(self, event: Checkpointed) -> None:
        if not self.expects(event.trial, event.attempt):
            return
        entry = self.ledger[event.trial]
        if event.step in entry.checkpoints:
            return
        entry.failures.progressed()
        entry.checkpoints[event.step] = score = self._checkpoint_config.score(event.metrics)
        entry.digests[event.step] = event.digest
        self.quarantined.discard((event.trial, event.step))
        if self._checkpoint_config.checkpoint_score_attribute is not None:
            value = worth(score, self._checkpoint_config.checkpoint_score_order)
        else:
            value = worth(self.objective.read(event.metrics).value, "min")
        self.stock.add(event.trial, event.step, value, event.nbytes)
        self._unappraised[event.trial] = None
        self._release(entry)
        self._retain(entry)

    def _ended(self, event: Ended) -> None:
        if not self.expects(event.trial, event.attempt):
            return
        del self._busy[event.trial, event.attempt]
        entry = self.ledger[event.trial]
        entry.spent += event.spent
        if entry.state.over and event.how.parks:
            self._out.append(Unwind(event.trial, event.attempt))  # it did not know
        if entry.state.over:
            return
        if event.how is How.UNWOUND:  # it keeps its lease, and goes on when the study is resumed
            if self._each_report and not event.metrics:
                self._save(entry, event.at)  # its lease never began: it is still parked at its last report
            return
        entry.heard = None
        entry.failures.progressed()
        if event.step >= entry.step and event.metrics:
            entry.step, entry.level, entry.metrics = event.step, event.level, event.metrics
        entry.parked = event.how.parks
        if event.how is How.REACHED and event.level < entry.until:
            if self._stopping is None:
                self._due.appendleft(event.trial)  # it waits where it ran: whoever came first there would drive it out
            else:
                self._save(entry, event.at)
            return
        reading = self.objective.read(entry.metrics)
        if reading.failure is not None:
            if event.how.parks:
                self._out.append(Unwind(event.trial, event.attempt))
            self._over(entry, Why.NO_VALUE, reading.message)
        elif event.how is How.REACHED:
            self._move(entry, State.PAUSED)
            if self._scheduler.forks:
                self._offer(entry)
        else:
            if event.how is How.STOPPED and self._each_report:
                self._out.append(Unwind(event.trial, event.attempt))  # its lease was over: it may be parked
            self._over(entry, Why.RETURNED if event.how is How.RETURNED else Why.STOP_RULE)
        self._note_best(entry, reading.value)
        self._observe(entry, reading.value, reading.values, reading.failure)

    def _save(self, entry: Entry, at: float) -> None:
        """The study ends early and finds a trial parked at a report that it did not save: one more step, which it will,
        unless it was given that before."""
        saved = entry.newest[1] if entry.newest else 0
        if self._stopping and entry.step > saved and entry.trial.id not in self._saving:
            self._saving.add(entry.trial.id)
            self._issue(entry, at, last=True)

    def _failed(self, event: Failed) -> None:
        if not self.expects(event.trial, event.attempt):
            return
        del self._busy[event.trial, event.attempt]
        entry = self.ledger[event.trial]
        entry.spent += event.spent
        if entry.state.over:
            return
        if event.failure is Failure.STORAGE:  # it keeps its lease, and goes on when the study is resumed
            if self._stopping is None:
                self._stop_asked(f"{event.failure.value}: {event.message}")
            return
        entry.tries += 1
        entry.failures.add(event.failure, event.message)
        if event.remedy is not None:
            entry.remedy = merged(entry.remedy, event.remedy)
        if self._retries.again(event.failure, entry.failures, event.remedy is not None):
            entry.since, entry.origin = None, entry.newest[1] if entry.newest else 0
            self._repeat(entry)
        else:
            self._over(entry, _GIVEN_UP[event.failure], event.message)
            self._observe(entry, None, (), event.failure)
            self._suspect_a_bug(event)

    def _suspect_a_bug(self, event: Failed) -> None:
        """End the study early if all its trials so far have failed in the same way."""
        seen, most = fingerprint(event.failure, event.message), self._retries.max_same
        self._same = self._same + 1 if seen == self._way else 1
        self._way = seen
        if most is None or self._fared or self._same < most or self._stopping is not None or self._all_over():
            return
        failed = self.ledger.counts()[State.FAILED]
        if self._same == failed:
            self._stop_asked(f"the first {failed} trials all failed in the same way:\n{event.message}")

    def _extended(self, event: Extended) -> None:
        """The study goes on beyond what was planned, perhaps beyond its end."""
        if event.trials is not None and event.trials < self._starts:
            raise IllegalChange(f"{self._starts} trials were started, and no more than {event.trials} are to be")
        self._limit, self.finished, self._stopping = event.trials, None, None
        if event.max_t is not None:
            if not isinstance(self._scheduler, Extensible):
                raise IllegalChange("the scheduler cannot be given more steps")
            for trial in self._scheduler.extend(event.max_t):
                self.ledger.revive(trial)
                self._unappraised[trial] = None
        if self._limit is None or self._starts < self._limit:
            if not isinstance(self._scheduler, Reopening):
                raise IllegalChange("the scheduler cannot be given more trials")
            self._scheduler.reopen()

    def _damaged(self, event: Damaged) -> None:
        """What a lease was to begin from is not what was published: nobody's fault. The trial goes on from the one
        before, and so does whoever else would begin there."""
        if not self.expects(event.trial, event.attempt):
            return
        del self._busy[event.trial, event.attempt]
        entry = self.ledger[event.trial]
        entry.spent += event.spent
        self._forget(event.source, event.step)
        if not entry.state.over:
            entry.since, entry.origin = None, entry.newest[1] if entry.newest else 0
            self._repeat(entry)

    def _forget(self, trial: int, step: int) -> None:
        """A checkpoint is put aside; those that need it make do with an older one."""
        entry = self.ledger.get(trial)
        if entry is None or step not in entry.checkpoints:
            return
        self._out.append(Quarantine(trial, step))
        self.quarantined.add((trial, step))
        self._remove(entry, step)
        if entry.rung == step:
            del self._held[trial, step]
            entry.rung = max((each for each in entry.checkpoints if each < step), default=None)
            if entry.rung is not None:
                self._held[trial, entry.rung] += 1
        self._fall_back(entry)
        self._held.pop((trial, step), None)
        for each in list(self.ledger.live.values()):
            if each.donor == (trial, step):
                each.donor = None
                self._fall_back(each)

    def _fall_back(self, entry: Entry) -> None:
        """A fork whose checkpoint is gone, and that has none of its own, begins from its source's one before."""
        if entry.state.over or entry.newest is not None or entry.trial.parent is None:
            return
        source = self.ledger[entry.trial.parent]
        step = max((each for each in source.checkpoints if each <= entry.base), default=0)
        if step:
            entry.donor = donor = entry.trial.parent, step
            self._held[donor] += 1
            self._unappraised[entry.trial.parent] = None
        if entry.step == entry.base:  # it said nothing yet
            entry.step, entry.level, entry.metrics = step, 0.0, {}
        if entry.since is None:
            entry.origin = step
        entry.base = step

    def _stop_asked(self, reason: str, for_good: bool = False) -> None:
        self._stopping = Finish(for_good, reason)
        if for_good:
            self._deferred.clear()
            self._due.clear()
            self._end_all(Why.STUDY_STOPPED)
            return
        for trial, attempt in self._busy:
            self._out.append(Unwind(trial, attempt))

    # ------------------------------------------------------------------------------------------ what follows of it

    def _observe(self, entry: Entry, value: float | None, values: tuple[float, ...], failure: Failure | None) -> None:
        """A lease ended: tell the searcher, and let the scheduler judge."""
        seen = Observation(
            entry.trial.id,
            entry.trial.config,
            entry.step,
            entry.level,
            entry.until,
            value,
            values,
            spent=entry.spent,
            failure=failure,
            ended=entry.state.over,
        )
        self._out.append(Tell(seen))
        self._judge(seen)
        self._ask_again()

    def _judge(self, seen: Observation) -> bool:
        """Let the scheduler judge; whether it stopped any trial."""
        stops = self._scheduler.judge(seen)
        for stop in stops:
            self._stop(stop)
        return bool(stops)

    def _ask_again(self) -> None:
        """Something is known or gone that a searcher may have waited for."""
        deferred, self._deferred = self._deferred, []
        self._out += [Ask(trial, self._asked[trial].until, self.ledger.pending()) for trial in deferred]

    def _close(self, unserved: Sequence[int] = ()) -> None:
        stops = self._scheduler.close(unserved)
        for stop in stops:
            self._stop(stop)
        if stops:
            self._ask_again()

    def _stop(self, stop: Stop) -> None:
        entry = self.ledger.get(stop.trial)
        if entry is None or entry.state.over:
            raise IllegalChange(f"the scheduler stops trial {stop.trial}, which is not there to be stopped")
        if stop.trial in self._due:
            self._due.remove(stop.trial)
        self._out.append(Unwind(stop.trial, entry.attempt))
        self._over(entry, stop.why)
        if entry.heard is not None:  # in mid-lease: the searcher did not hear of it at a rung
            rung = max(1, int(entry.heard.level))  # it got no farther: as if that were the rung it had run to
            self._out.append(Tell(replace(entry.heard, until=rung, running=False, ended=True)))

    def _move(self, entry: Entry, state: State) -> None:
        self.ledger.move(entry.trial.id, state)
        self._unappraised[entry.trial.id] = None

    def _over(self, entry: Entry, why: Why, message: str = "") -> None:
        self._move(entry, why.state)
        self._release(entry)
        if entry.rung is not None:
            rung, entry.rung = entry.rung, None
            self._let_go(entry.trial.id, rung)
        self._out.append(Over(entry.trial.id, why.state, why, message))
        self._retain(entry)
        if self._fail_fast and why.state is State.FAILED and why is not Why.NO_SOURCE and self._stopping is None:
            self._stop_asked(f"trial {entry.trial.id} failed and fail_fast is set")

    def _offer(self, entry: Entry) -> None:
        """A trial is at a rung: others may be forked from the checkpoint that it has now, whatever it saves later."""
        before, entry.rung = entry.rung, max(entry.checkpoints, default=None)
        if entry.rung is not None:
            self._held[entry.trial.id, entry.rung] += 1
        if before is not None:
            self._let_go(entry.trial.id, before)

    def _release(self, entry: Entry) -> None:
        """A fork that has a checkpoint of its own, or is over, no longer needs its donor's."""
        if entry.donor is not None:
            donor, entry.donor = entry.donor, None
            self._let_go(*donor)

    def _let_go(self, trial: int, step: int) -> None:
        self._held[trial, step] -= 1
        if not self._held[trial, step]:
            del self._held[trial, step]
            self._unappraised[trial] = None
            self._retain(self.ledger[trial])

    def _retain(self, entry: Entry) -> None:
        """Let go of the checkpoints that retention does not keep: a trial's, with those of the trials it replaced."""
        chain = self._chains.get(entry.trial.id) or [entry]
        if len(chain) == 1 and len(entry.checkpoints) < 2:  # every rule keeps the newest
            return
        every = [(each, step) for each in chain for step in sorted(each.checkpoints)]  # in the order they were made in
        held = [place for place, (each, step) in enumerate(every) if (each.trial.id, step) in self._held]
        kept = self._retention.keep(
            [Kept(place, each.checkpoints[step]) for place, (each, step) in enumerate(every)], held
        )
        for place, (each, step) in enumerate(every):
            if place not in kept:
                self._drop(each, step)
        if len(chain) > 1:
            chain[:] = [each for each in chain if each.checkpoints or not each.state.over]

    def _drop(self, entry: Entry, step: int) -> None:
        self._remove(entry, step)
        self._out.append(Drop(entry.trial.id, step))

    def _remove(self, entry: Entry, step: int) -> None:
        del entry.checkpoints[step], entry.digests[step]
        self.stock.remove(entry.trial.id, step)
        self._unappraised[entry.trial.id] = None  # the one before may be its newest now

    def _make_room(self) -> None:
        """Let go of what the rules over all trials do not keep."""
        self._appraise()
        while (surplus := self.stock.surplus()) is not None:
            self._drop(self.ledger[surplus[0]], surplus[1])
            self._appraise()

    def _appraise(self) -> None:
        for trial in self._unappraised if self.stock.rules else ():
            entry = self.ledger[trial]
            for step in entry.checkpoints:
                self.stock.appraise(trial, step, self._need(entry, step))
        self._unappraised.clear()

    def _need(self, entry: Entry, step: int) -> Need:
        if (entry.trial.id, step) in self._held:
            return Need.TRIAL
        if entry.state.over:
            return Need.NOTHING
        if step < max(entry.checkpoints):
            return Need.SUPERSEDED
        can_begin_anew = entry.state is State.PAUSED and entry.trial.parent is None
        return Need.STEPS if can_begin_anew else Need.TRIAL

    def _note_best(self, entry: Entry, value: float | None) -> None:
        self._fared = self._fared or value is not None
        if value is None or entry.until < self._best_until:
            return
        if self.best is None or entry.until > self._best_until or value < self.best[0]:
            self.best, self._best_until = (value, entry.trial.id), entry.until

    # ----------------------------------------------------------------------------------------------- free slots

    def _fill(self, at: float) -> None:
        """Give free slots to leases that must be repeated, then to what the scheduler wants."""
        if self.finished:
            return
        while self._stopping is None:
            # A configuration that is owed keeps a slot from the scheduler, but not from a lease that can run now: the
            # searcher may wait for its outcome.
            if self._due and self._slots > len(self._busy):
                due = self.ledger[self._due.popleft()]
                if due.newest is None and due.trial.parent is not None:
                    self._strand(due)
                else:
                    self._issue(due, at)
                continue
            room = self._slots > len(self._busy) + len(self._asked)
            if not (room or self._stuck() or self._all_over()):
                break
            match self._scheduler.next():
                case Start() as start:
                    if self._asked and start.config is None and not room:
                        break
                    self._start(start)
                    if start.config is None:
                        return
                case Resume() as resume:
                    self._resume(resume)
                case Fork() as fork:
                    self._fork(fork)
                case Wait():
                    break
                case Done():
                    if not self._busy and not self._asked:
                        self._end_all(Why.SCHEDULER_DONE)
                        self._finish(Finish(True, "every trial is over"))
                    return
        if self._stopping is not None:
            if not self._busy:
                self._finish(self._stopping)
            return
        if self._stuck():
            who = "searcher" if self._asked else "scheduler"
            raise Deadlock(f"the {who} waits, but nothing runs that could wake it")

    def _stuck(self) -> bool:
        """Whether nothing runs and all answers are in: only a trial that goes on can wake a searcher that waits."""
        return self._slots > 0 and not self._busy and len(self._deferred) == len(self._asked)

    def _all_over(self) -> bool:
        """Whether nothing is left to run: the study ends even if its last slot is gone."""
        return self._starts == self._limit and not self._asked and not self.ledger.live

    def _start(self, start: Start) -> None:
        self._number(start.trial)
        if self._limit is not None and self._starts >= self._limit:
            raise IllegalChange(f"the scheduler starts trial {start.trial} after it was told that none will be served")
        self._starts += 1
        self._out.append(start)
        if start.config is None:
            self._asked[start.trial] = start
        else:
            self._begin(start, start.config)
        if self._starts == self._limit:
            self._close()
        if start.config is None:
            self._out.append(Ask(start.trial, start.until, self.ledger.pending()))

    def _begin(self, start: Start, config: Config) -> None:
        self.ledger.open(Trial(start.trial, config), start.until)
        self._due.append(start.trial)

    def _resume(self, resume: Resume) -> None:
        entry = self.ledger.move(resume.trial, State.RUNNING)
        self._unappraised[resume.trial] = None
        if resume.until <= entry.until:
            raise IllegalChange(f"trial {resume.trial} stands at {entry.until} and cannot be resumed to {resume.until}")
        entry.until, entry.since, entry.origin = resume.until, None, entry.step
        self._out.append(resume)
        self._due.append(resume.trial)

    def _fork(self, fork: Fork) -> None:
        self._number(fork.trial)
        if not self._scheduler.forks:
            raise IllegalChange(f"the scheduler forks trial {fork.source}, but says that it never forks")
        source = self.ledger.get(fork.source)
        if source is None:
            raise IllegalChange(f"trial {fork.trial} is forked from trial {fork.source}, which does not exist")
        self._out.append(fork)
        self.forked += fork.replaces is not None
        step = max(source.checkpoints, default=None) if source.state.over else source.rung
        donor = None if step is None else (fork.source, step)
        entry = self.ledger.open(Trial(fork.trial, fork.config, fork.source), fork.until, donor)
        if donor is None:
            message = f"trial {fork.source} had saved nothing by step {source.step}, so nothing can go on from there"
            self._over(entry, Why.NO_SOURCE, message)
            self._observe(entry, None, (), None)
            return
        entry.inherited = source.inherited + source.spent
        if step == source.step:  # until it reports, it stands where its source does
            entry.level, entry.metrics = source.level, source.metrics
        self._held[donor] += 1
        self._unappraised[fork.source] = None
        self._due.append(fork.trial)
        if fork.replaces is not None:
            self._stop(Stop(fork.replaces, Why.REPLACED))
            chain = self._chains.setdefault(fork.replaces, [self.ledger[fork.replaces]])
            chain.append(entry)
            self._chains[fork.trial] = chain
            self._ask_again()

    def _strand(self, entry: Entry) -> None:
        """A fork has nothing to go on from any more: whatever it, or its source, had saved was damaged."""
        self._out.append(Unwind(entry.trial.id, entry.attempt))
        self._over(entry, Why.NO_SOURCE, f"no checkpoint is left that it or trial {entry.trial.parent} had saved")
        self._observe(entry, None, (), Failure.LOST)

    def _number(self, trial: int) -> None:
        if trial != self._next_trial:
            raise IllegalChange(f"the scheduler numbers a new trial {trial}; the next number is {self._next_trial}")
        self._next_trial += 1

    def _repeat(self, entry: Entry) -> None:
        """Give a trial's lease out once more, from its newest checkpoint."""
        newest, entry.parked = entry.newest, False
        self._due.append(entry.trial.id)
        self._out.append(Retry(entry.trial.id, newest[1] if newest else None))

    def _issue(self, entry: Entry, at: float, last: bool = False) -> None:
        donor, checkpoint = entry.newest or (entry.trial.id, None)
        entry.attempt += 1
        if entry.since is None:
            entry.since = at
        save = not last and self._resize(entry)
        self._busy[entry.trial.id, entry.attempt] = None
        self._out.append(
            Run(
                Lease(
                    trial=entry.effective,
                    attempt=entry.attempt,
                    until=entry.until,
                    checkpoint=checkpoint,
                    donor=donor,
                    tries=entry.tries,
                    since=entry.since,
                    origin=entry.origin,
                    spent=entry.inherited + entry.spent,
                    each_report=self._each_report,
                    last=last,
                    digest=self._digest(donor, checkpoint),
                    slot=entry.slot if self._resizes else None,
                    save=save,
                )
            )
        )

    @property
    def _each_report(self) -> bool:
        return self._asks_each_report or self._resizes

    @property
    def _resizes(self) -> bool:
        return self._allocate is not None and self._nodes is not None

    def _resize(self, entry: Entry) -> bool:
        """Let a trial that is about to run reserve what it should; returns whether it must save its next step for that.
        What it reserves is its process's, and another one goes on from a checkpoint: it is not to lose steps."""
        if self._allocate is None or self._nodes is None or not entry.metrics:
            return False
        base = self._allocate.base
        wanted = self._allocate.rule(self._view(base, self._nodes), self._live_trial(entry, base))
        if wanted is None or wanted == (entry.slot or base):
            return False
        if entry.parked and entry.step not in entry.checkpoints:
            return True
        entry.slot = None if wanted == base else wanted
        return False

    def _view(self, base: Slot, nodes: Sequence[Slot]) -> StudyView:
        assert self._allocate is not None
        live = tuple(self._live_trial(entry, base) for _, entry in sorted(self.ledger.live.items()))
        to_come = None if self._limit is None else self._limit - self._starts + len(self._asked)
        return StudyView(live, base, nodes, to_come, self._allocate.most)

    def _live_trial(self, entry: Entry, base: Slot) -> LiveTrial:
        return LiveTrial(
            entry.trial.id,
            entry.trial.config,
            entry.step,
            entry.metrics,
            self.objective.read(entry.metrics).value if entry.metrics else None,
            entry.slot or base,
            entry.state is State.RUNNING,
        )

    def _digest(self, trial: int, step: int | None) -> str:
        return "" if step is None else self.ledger[trial].digests.get(step, "")

    def _end_all(self, why: Why) -> None:
        for entry in list(self.ledger.live.values()):
            self._out.append(Unwind(entry.trial.id, entry.attempt))
            self._over(entry, why)

    def _finish(self, finish: Finish) -> None:
        self._make_room()
        self.finished = finish
        self._out.append(finish)
