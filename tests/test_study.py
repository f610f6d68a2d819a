"""The study's state machine, by toy schedulers and searchers that do what no real one does yet."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from raytuner.actions import Action, Answer, Done, Exhausted, Fork, Proposal, Resume, Start, Stop, Wait
from raytuner.checkpoints import CheckpointConfig
from raytuner.events import (
    Ask,
    Checkpointed,
    Command,
    Drop,
    Ended,
    Event,
    Failed,
    Finish,
    How,
    Opened,
    Over,
    Proposed,
    Reported,
    Retry,
    Run,
    Slots,
    StopAsked,
    Tell,
    Ticked,
    Unwind,
)
from raytuner.ledger import IllegalChange
from raytuner.objective import Objective
from raytuner.retry import Retries
from raytuner.study import Deadlock, Study
from raytuner.trial import END, Failure, Lease, Observation, Report, State, Why

Judge = Callable[[Observation], Sequence[Stop]]


class Scripted:
    """A scheduler that wants what its test wrote down, and after that waits while any of its trials is live."""

    def __init__(
        self,
        *wishes: Action,
        judge: Judge = lambda seen: [],
        every_report: bool = False,
        forks: bool = True,
    ) -> None:
        self.wishes = deque(wishes)
        self.every_report = every_report
        self.forks = forks
        self.seen: list[Observation] = []
        self.closed: list[Sequence[int]] = []
        self.closing: list[Stop] = []  # who must go when it is closed
        self.live: set[int] = set()
        self._judge = judge

    def next(self) -> Action:
        if not self.wishes:
            return Wait() if self.live else Done()
        wish = self.wishes.popleft()
        if isinstance(wish, Start | Fork | Resume):
            self.live.add(wish.trial)
        return wish

    def judge(self, seen: Observation) -> Sequence[Stop]:
        self.seen.append(seen)
        if seen.ended:
            self.live.discard(seen.trial)
        stops = self._judge(seen)
        self.live.difference_update(stop.trial for stop in stops)
        return stops

    def close(self, unserved: Sequence[int] = ()) -> Sequence[Stop]:
        self.closed.append(tuple(unserved))
        self.live.difference_update([*unserved, *(stop.trial for stop in self.closing)])
        closing, self.closing = self.closing, []
        return closing


class Desk:
    """Sits between a study and its test: numbers attempts, answers for the searcher, keeps what was issued.

    ``answer``: what the searcher says; None leaves the study without an answer. Each call returns all commands,
    those that followed from the searcher's answers among them, but for the `Ask`s that were answered.
    """

    def __init__(
        self,
        scheduler: Scripted,
        *,
        slots: int = 1,
        trials: int | None = None,
        max_failures: int = 0,
        keep: CheckpointConfig | None = None,
        objective: Objective | None = None,
        fail_fast: bool = False,
        each_report: bool = False,
        answer: Callable[[Ask, Sequence[Observation]], Answer | None] = lambda ask, told: Proposal({"x": ask.trial}),
    ) -> None:
        self.scheduler = scheduler
        self.study = Study(
            objective or Objective("loss"),
            scheduler,
            trials,
            Retries(max_failures, max_losses=2),
            keep or CheckpointConfig(),
            fail_fast,
            each_report,
        )
        self.now = 0.0
        self.answer = answer
        self.leases: dict[int, Lease] = {}  # each trial's last
        self.told: list[Observation] = []
        self.opening = [*self.tell(Opened(self.tick(), 1)), *self.slots(slots)]

    def tick(self) -> float:
        self.now += 1.0
        return self.now

    def tell(self, event: Event) -> list[Command]:
        found: list[Command] = []
        events = deque([event])
        while events:
            for command in self.study.handle(events.popleft()):
                match command:
                    case Ask():
                        answer = self.answer(command, self.told)
                        if answer is not None:
                            events.append(Proposed(self.now, command.trial, answer))
                            continue
                    case Run(lease):
                        self.leases[lease.trial.id] = lease
                    case Tell(seen):
                        self.told.append(seen)
                found.append(command)
        return found

    def slots(self, slots: int) -> list[Command]:
        return self.tell(Slots(self.tick(), slots))

    def report(self, trial: int, *steps: int, loss: float = 1.0) -> list[Command]:
        reports = tuple(Report(step, float(step), {"loss": loss}, self.now) for step in steps)
        return self.tell(Reported(self.tick(), trial, self.leases[trial].attempt, reports))

    def save(self, trial: int, step: int, attempt: int | None = None, **metrics: Any) -> list[Command]:
        """A checkpoint whose manifest's hash is ``<trial>/<step>``."""
        attempt = attempt or self.leases[trial].attempt
        return self.tell(Checkpointed(self.tick(), trial, attempt, step, metrics, f"{trial}/{step}"))

    def end(
        self,
        trial: int,
        how: How = How.REACHED,
        step: int | None = None,
        loss: float = 1.0,
        metrics: Mapping[str, Any] | None = None,
    ) -> list[Command]:
        lease = self.leases[trial]
        step = lease.until if step is None else step
        metrics = {"loss": loss} if metrics is None else metrics
        return self.tell(Ended(self.tick(), trial, lease.attempt, how, step, float(step), metrics, spent=2.0))

    def fail(self, trial: int, failure: Failure = Failure.ERROR) -> list[Command]:
        return self.tell(Failed(self.tick(), trial, self.leases[trial].attempt, failure, "boom", spent=1.0))

    def state(self, trial: int) -> State:
        return self.study.ledger[trial].state


def runs(commands: Sequence[Command]) -> list[int]:
    return [command.lease.trial.id for command in commands if isinstance(command, Run)]


def overs(commands: Sequence[Command]) -> list[tuple[int, Why]]:
    return [(command.trial, command.why) for command in commands if isinstance(command, Over)]


def of(kind: type, commands: Sequence[Command]) -> list[Any]:
    return [command for command in commands if isinstance(command, kind)]


# ---------------------------------------------------------------------------------------- Start, Resume, Wait, Done


def test_a_trial_is_asked_for_started_resumed_and_ends() -> None:
    desk = Desk(Scripted(Start(0, 1)), trials=1, answer=lambda ask, told: None)
    assert desk.opening == [Start(0, 1), Ask(0, 1, desk.opening[1].pending)]  # type: ignore[union-attr]
    assert desk.scheduler.closed == [()]  # one trial was wanted
    assert runs(desk.tell(Proposed(5.0, 0, Proposal({"x": 3})))) == [0]
    lease = desk.leases[0]
    assert (lease.trial.config, lease.attempt, lease.until, lease.checkpoint, lease.since) == ({"x": 3}, 1, 1, None, 5)
    desk.scheduler.wishes.append(Resume(0, 3))
    commands = desk.end(0, loss=7.0)
    assert commands == [Tell(desk.told[0]), Resume(0, 3), Run(desk.leases[0])]
    assert desk.told == [Observation(0, {"x": 3}, 1, 1.0, 1, 7.0, (7.0,), spent=2.0)]
    lease = desk.leases[0]
    assert (lease.attempt, lease.until, lease.origin, lease.since, lease.spent) == (2, 3, 1, desk.now, 2.0)
    commands = desk.end(0, How.RETURNED, step=2)
    assert overs(commands) == [(0, Why.RETURNED)]
    assert commands[-1] == Finish(True, "every trial is over")
    assert desk.told[-1].ended
    assert desk.told[-1].until == 3
    assert desk.study.ledger[0].spent == 4.0


def test_done_waits_for_what_runs_and_ends_what_is_paused() -> None:
    desk = Desk(Scripted(Start(0, 1), Start(1, 1)), slots=2)
    desk.scheduler.live.clear()  # from now on it says Done
    assert desk.end(0) == [Tell(desk.told[0])]
    commands = desk.end(1)
    assert overs(commands) == [(0, Why.SCHEDULER_DONE), (1, Why.SCHEDULER_DONE)]
    assert of(Unwind, commands) == [Unwind(0, 1), Unwind(1, 1)]  # they are parked somewhere
    assert commands[-1] == Finish(True, "every trial is over")
    assert desk.tell(Ticked(99.0)) == []


def test_a_scheduler_that_waits_for_nothing_is_a_deadlock() -> None:
    desk = Desk(Scripted(Start(0, 1)))
    with pytest.raises(Deadlock, match="the scheduler waits, but nothing runs"):
        desk.end(0)


def test_pending_shows_what_runs_and_what_waits() -> None:
    seen: list[list[tuple[int, int, int]]] = []

    def answer(ask: Ask, told: Sequence[Observation]) -> Answer:
        seen.append([(one.trial, one.step, one.until) for one in ask.pending])
        assert len(ask.pending) == len(seen[-1])
        assert ask.pending[:1] == list(ask.pending)[:1]
        return Proposal({})

    desk = Desk(Scripted(Start(0, 4), Start(1, 2)), slots=2, answer=answer)
    desk.scheduler.wishes.append(Start(2, 8))
    desk.end(0)
    assert seen == [[], [(0, 0, 4)], [(0, 4, 4), (1, 0, 2)]]


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ([Start(1, 1)], "numbers a new trial 1; the next number is 0"),
        ([Start(0, 1), Start(0, 1)], "numbers a new trial 0; the next number is 1"),
        ([Resume(0, 1)], "there is no trial 0"),
        ([Start(0, 2), Resume(0, 4)], "trial 0 is RUNNING and cannot become RUNNING"),
        ([Start(0, 1), Start(1, 1), Start(2, 1)], "starts trial 2 after it was told that none will be served"),
        ([Fork(0, 7, {}, 3)], "trial 0 is forked from trial 7, which does not exist"),
        ([Start(0, 2), Fork(2, 0, {}, 3)], "numbers a new trial 2; the next number is 1"),
    ],
)
def test_illegal_wishes(wishes: list[Action], message: str) -> None:
    with pytest.raises(IllegalChange, match=message):
        Desk(Scripted(*wishes), slots=4, trials=2)


@pytest.mark.parametrize("until", [1, 2])
def test_a_trial_is_resumed_only_to_beyond_its_rung(until: int) -> None:
    desk = Desk(Scripted(Start(0, 2)))
    desk.scheduler.wishes.append(Resume(0, until))
    with pytest.raises(IllegalChange, match=f"trial 0 stands at 2 and cannot be resumed to {until}"):
        desk.end(0)


def test_a_trial_that_is_over_is_not_resumed() -> None:
    desk = Desk(Scripted(Start(0, 2)))
    desk.scheduler.wishes.append(Resume(0, 4))
    with pytest.raises(IllegalChange, match="trial 0 is DONE and cannot become RUNNING"):
        desk.end(0, How.RETURNED)


# ------------------------------------------------------------------------------------------------------------ Fork


def forking(*more: Action, **options: Any) -> Desk:
    """Trial 0 has a checkpoint of step 2 and is at rung 2; a slot is free for a fork of it."""
    desk = Desk(Scripted(Start(0, 2)), keep=CheckpointConfig(num_to_keep=1), **options)
    desk.save(0, 2)
    desk.scheduler.wishes.extend([Fork(1, 0, {"x": 9}, 4), *more])
    return desk


def test_a_fork_starts_from_its_sources_checkpoint() -> None:
    desk = forking(trials=1)
    commands = desk.end(0)
    assert commands[1:] == [Fork(1, 0, {"x": 9}, 4), Run(desk.leases[1])]  # nobody was asked for a configuration
    lease = desk.leases[1]
    assert (lease.checkpoint, lease.donor, lease.origin, lease.until) == (2, 0, 2, 4)
    assert (lease.trial.config, lease.trial.parent) == ({"x": 9}, 0)
    desk.scheduler.wishes.extend([Fork(2, 1, {"x": 8}, 6), Fork(3, 0, {"x": 7}, 6)])
    commands = desk.end(1, step=4)
    assert overs(commands) == [(2, Why.NO_SOURCE)]  # of a fork without a checkpoint of its own
    assert runs(commands) == [3]
    assert (desk.leases[3].checkpoint, desk.leases[3].donor, desk.leases[3].trial.parent) == (2, 0, 0)
    assert desk.scheduler.closed == [()]  # `trials` counts starts: forks go on after the last


def test_a_donors_checkpoint_is_held_until_the_fork_has_its_own() -> None:
    desk = forking(Resume(0, 4), Resume(0, 8), slots=2)
    desk.end(0)
    assert desk.save(0, 3) == []  # 3 is kept as the latest, 2 for the fork
    assert desk.save(0, 4) == [Drop(0, 3)]
    assert of(Drop, desk.end(0)) == []  # other forks would start from 4
    desk.fail(1, Failure.LOST)
    assert (desk.leases[1].attempt, desk.leases[1].checkpoint, desk.leases[1].donor) == (2, 2, 0)
    assert desk.save(1, 3) == [Drop(0, 2)]
    assert desk.study.checkpoints == {0: {4: None}, 1: {3: None}}
    desk.fail(1, Failure.LOST)
    assert (desk.leases[1].checkpoint, desk.leases[1].donor) == (3, 1)


@pytest.mark.parametrize("how", ["failed", "returned", "stopped"])
def test_a_donors_checkpoint_is_held_until_the_fork_is_over(how: str) -> None:
    desk = forking(Resume(0, 4), Resume(0, 8), slots=2)
    desk.end(0)
    desk.save(0, 4)
    assert of(Drop, desk.end(0)) == []
    if how == "failed":
        commands = desk.fail(1)
    elif how == "returned":
        commands = desk.end(1, How.RETURNED, step=3)
    else:
        desk.scheduler._judge = lambda seen: [Stop(1, Why.NO_PROMISE)]
        commands = desk.end(0)
    assert of(Drop, commands) == [Drop(0, 2)]
    assert desk.study.checkpoints == {0: {4: None}}


def test_a_checkpoint_is_held_by_each_of_its_forks_and_by_those_of_a_trial_that_is_over() -> None:
    desk = forking(Fork(2, 0, {}, 4), slots=2)
    assert runs(desk.end(0, How.RETURNED)) == [1, 2]
    desk.tell(Opened(desk.tick(), 2))
    desk.slots(2)  # a driver's death holds on to it too
    assert [desk.leases[trial].checkpoint for trial in (1, 2)] == [2, 2]
    assert of(Drop, desk.save(1, 3)) == []
    assert of(Drop, desk.save(2, 3)) == []  # it is trial 0's last
    assert desk.study.checkpoints[0] == {2: None}


def test_a_fork_of_a_trial_without_a_checkpoint_fails_and_is_judged() -> None:
    desk = Desk(Scripted(Start(0, 2)))
    desk.scheduler.wishes.extend([Fork(1, 0, {"x": 9}, 4), Resume(0, 4)])
    commands = desk.end(0)
    assert commands[1] == Fork(1, 0, {"x": 9}, 4)
    message = "trial 0 had saved nothing by step 2, so nothing can go on from there"
    assert commands[2] == Over(1, State.FAILED, Why.NO_SOURCE, message)
    assert desk.state(1) is State.FAILED
    assert desk.scheduler.seen[-1] == desk.told[-1] == Observation(1, {"x": 9}, 0, 0.0, 4, None, ended=True)
    assert runs(commands) == [0]  # the slot goes to the next


def test_a_fork_starts_from_what_its_source_was_judged_by() -> None:
    """A source that has run on since has a newer checkpoint; the older one was kept for this."""
    desk = forking(Resume(0, 6), slots=3)
    desk.end(0)  # fork 1 begins; the source goes on
    assert of(Drop, desk.save(0, 4)) == []
    assert of(Drop, desk.save(1, 3)) == []  # the fork has its own, but another may come
    desk.scheduler.wishes.append(Fork(2, 0, {"x": 8}, 4))
    desk.slots(3)
    assert (desk.leases[2].checkpoint, desk.leases[2].donor, desk.leases[2].spent) == (2, 0, desk.leases[0].spent)
    assert of(Drop, desk.end(0, step=6)) == []
    assert desk.save(2, 3) == [Drop(0, 2)]
    assert desk.study.checkpoints[0] == {4: None}


def test_what_a_running_trial_saved_before_its_first_rung_is_no_source() -> None:
    """It has not been judged by that. Of a trial that is over, the newest is."""
    desk = Desk(Scripted(Start(0, 4), Start(1, 4)), slots=3)
    desk.save(0, 2)
    desk.save(0, 3)
    desk.scheduler.wishes.append(Fork(2, 0, {}, 8))
    assert overs(desk.slots(3)) == [(2, Why.NO_SOURCE)]
    desk.scheduler.wishes.append(Fork(3, 0, {}, 8))
    assert runs(desk.end(0, How.RETURNED, step=3)) == [3]
    assert (desk.leases[3].checkpoint, desk.leases[3].donor) == (3, 0)


def test_a_checkpoint_is_held_for_forks_until_the_next_rung() -> None:
    desk = Desk(Scripted(Start(0, 2)), keep=CheckpointConfig(num_to_keep=1))
    desk.scheduler.wishes.append(Resume(0, 4))
    desk.save(0, 2)
    assert of(Drop, desk.end(0)) == []
    assert desk.save(0, 3) == []
    desk.tell(Opened(desk.tick(), 2))
    desk.slots(1)
    assert (desk.leases[0].checkpoint, desk.leases[0].attempt) == (3, 3)  # the trial itself goes on from its newest
    assert desk.save(0, 4) == [Drop(0, 3)]  # a driver's death changes nothing: 2 is held
    desk.scheduler.wishes.append(Resume(0, 6))
    assert of(Drop, desk.end(0)) == [Drop(0, 2)]
    assert desk.save(0, 5) == []
    assert of(Drop, desk.end(0, How.RETURNED, step=5)) == [Drop(0, 4)]
    assert desk.study.checkpoints == {0: {5: None}}


def test_a_rung_without_a_checkpoint_goes_by_the_one_before() -> None:
    desk = Desk(Scripted(Start(0, 2)), keep=CheckpointConfig(num_to_keep=1))
    desk.scheduler.wishes.extend([Resume(0, 4), Resume(0, 6)])
    desk.save(0, 2)
    desk.end(0)
    assert of(Drop, desk.end(0)) == []
    assert desk.save(0, 5) == []
    desk.scheduler.wishes.append(Fork(1, 0, {}, 6))
    desk.slots(2)
    assert (desk.leases[1].checkpoint, desk.leases[1].donor) == (2, 0)


@pytest.mark.parametrize("how", ["stopped", "failed", "at the end"])
def test_a_checkpoint_is_not_held_for_forks_of_what_is_over(how: str) -> None:
    """Its newest is there for that."""
    desk = Desk(Scripted(Start(0, 2), Start(1, 9)), keep=CheckpointConfig(num_to_keep=1), slots=2)
    desk.scheduler.wishes.append(Resume(0, 4))
    desk.save(0, 2)
    desk.end(0)
    desk.save(0, 3)
    if how == "stopped":
        desk.scheduler._judge = lambda seen: [Stop(0, Why.NO_PROMISE)]
        commands = desk.end(1, How.RETURNED)
    elif how == "failed":
        commands = desk.fail(0)
    else:
        commands = desk.tell(StopAsked(desk.tick(), "enough", for_good=True))
    assert of(Drop, commands) == [Drop(0, 2)]
    assert desk.study.checkpoints == {0: {3: None}}


def test_nothing_is_held_for_a_scheduler_that_never_forks() -> None:
    desk = Desk(Scripted(Start(0, 2), forks=False), keep=CheckpointConfig(num_to_keep=1))
    desk.scheduler.wishes.append(Resume(0, 4))
    desk.save(0, 2)
    desk.end(0)
    assert desk.save(0, 3) == [Drop(0, 2)]
    desk.scheduler.wishes.append(Fork(1, 0, {}, 4))
    with pytest.raises(IllegalChange, match="forks trial 0, but says that it never forks"):
        desk.end(0)


def test_a_lease_names_the_checkpoint_that_is_meant() -> None:
    """The hash of its manifest, of a trial's own and of a donor's; also when a driver has died."""
    desk = forking(Resume(0, 4), Start(2, 4), slots=3, max_failures=9)
    assert desk.leases[0].digest == ""
    desk.end(0)
    desk.save(0, 3)

    def found() -> dict[int, tuple[int, int | None, str]]:
        return {trial: (lease.donor, lease.checkpoint, lease.digest) for trial, lease in desk.leases.items()}

    assert found() == {0: (0, 2, "0/2"), 1: (0, 2, "0/2"), 2: (2, None, "")}
    for trial in range(3):
        desk.fail(trial)
    expected = {0: (0, 3, "0/3"), 1: (0, 2, "0/2"), 2: (2, None, "")}
    assert found() == expected
    for epoch in (2, 3):
        desk.tell(Opened(desk.tick(), epoch))
        assert runs(desk.slots(3)) == [0, 1, 2]
        assert found() == expected
    desk.save(1, 3)
    desk.fail(1)
    assert desk.leases[1].digest == "1/3"


def test_a_checkpoint_of_which_no_hash_is_known_is_taken_as_it_is() -> None:
    """Of format 1's records."""
    desk = Desk(Scripted(Start(0, 9)), max_failures=1)
    desk.tell(Checkpointed(desk.tick(), 0, 1, 3, {}))
    desk.fail(0)
    assert (desk.leases[0].checkpoint, desk.leases[0].digest) == (3, "")


def test_a_fork_goes_on_with_the_time_that_was_spent_on_what_it_continues() -> None:
    desk = forking(slots=1)
    desk.end(0)
    assert desk.leases[1].spent == 2.0
    desk.save(1, 4)
    desk.scheduler.wishes.extend([Fork(2, 1, {}, 6), Resume(1, 6)])
    desk.end(1)
    assert desk.leases[2].spent == 4.0
    desk.end(2)
    assert desk.leases[1].spent == 4.0
    assert [seen.spent for seen in desk.told] == [2.0, 2.0, 2.0]  # what each cost itself


def test_a_fork_that_returns_at_once_stands_by_what_its_source_said() -> None:
    """With the source's own weights. Those of an earlier step are none that the source's value speaks of."""
    desk = forking(Resume(0, 8))
    desk.end(0, loss=3.0)
    assert overs(desk.end(1, How.RETURNED, step=2, metrics={})) == [(1, Why.RETURNED)]
    assert (desk.told[-1].value, desk.told[-1].step, desk.told[-1].level) == (3.0, 2, 2.0)
    desk = forking(Resume(0, 8))
    desk.end(0, step=5, loss=3.0)
    assert overs(desk.end(1, How.RETURNED, step=2, metrics={})) == [(1, Why.NO_VALUE)]


@pytest.mark.parametrize("paused", [False, True])
def test_a_fork_replaces_a_trial(paused: bool) -> None:
    """The trial is stopped right behind the fork; a running one keeps its slot until its code is gone."""
    desk = Desk(Scripted(Start(0, 2), Start(1, 2)), slots=2, keep=CheckpointConfig(num_to_keep=1))
    desk.save(0, 2)
    fork = Fork(2, 0, {"x": 9}, 4, replaces=1)
    if paused:
        desk.end(0)
        desk.scheduler.wishes.extend([fork, Resume(0, 4)])
        commands = desk.end(1)
    else:
        desk.scheduler.wishes.extend([fork, Resume(0, 4)])
        commands = desk.end(0)
    assert commands[1:5] == [fork, Unwind(1, 1), Over(1, State.STOPPED, Why.REPLACED), Run(desk.leases[2])]
    assert runs(commands) == ([2, 0] if paused else [2])
    assert desk.study.expects(1, 1) == (not paused)
    if not paused:
        assert runs(desk.end(1, How.UNWOUND, step=1)) == [0]
    assert len(desk.told) == 1 + paused
    assert desk.study.ledger[2].trial.parent == 0  # not the one it replaces


def test_a_fork_may_replace_its_own_source() -> None:
    """Whose checkpoint stays until the fork has its own."""
    desk = forking()
    desk.scheduler.wishes.clear()
    desk.scheduler.wishes.append(Fork(1, 0, {}, 4, replaces=0))
    desk.end(0)
    assert desk.state(0) is State.STOPPED
    assert (desk.leases[1].checkpoint, desk.leases[1].donor, desk.leases[1].digest) == (2, 0, "0/2")
    assert desk.study.checkpoints == {0: {2: None}}


def test_a_searcher_that_waits_is_asked_again_when_a_trial_is_replaced() -> None:
    """The replaced trial's last report is its last word, as that of any trial that is stopped in mid-lease."""
    desk = Desk(
        Scripted(Start(0, 2), Start(1, 9), Start(2, 9), every_report=True),
        slots=3,
        answer=lambda ask, told: Wait() if ask.trial == 2 and len(told) < 2 else Proposal({}),
    )
    desk.save(0, 2)
    desk.report(1, 5)
    desk.end(0)
    desk.slots(2)
    desk.scheduler.wishes.append(Fork(3, 0, {}, 4, replaces=1))
    assert runs(desk.slots(4)) == [3, 2]
    assert [(seen.trial, seen.until, seen.ended) for seen in desk.told] == [(0, 2, False), (1, 5, True)]


@pytest.mark.parametrize("replaced", [2, 7])
def test_a_fork_replaces_only_what_is_there(replaced: int) -> None:
    desk = forking(slots=2)
    desk.scheduler.wishes.clear()
    desk.scheduler.wishes.extend([Start(1, 2), Start(2, 2)])
    desk.slots(3)
    desk.end(2, How.RETURNED)
    desk.scheduler.wishes.append(Fork(3, 0, {}, 4, replaces=replaced))
    with pytest.raises(IllegalChange, match=rf"stops trial {replaced}, which is not there to be stopped"):
        desk.end(0)


def test_a_fork_without_a_source_replaces_nobody_and_fails_nothing() -> None:
    desk = Desk(Scripted(Start(0, 2), Start(1, 2)), slots=2, fail_fast=True)
    desk.end(0)
    desk.scheduler.wishes.extend([Fork(2, 0, {"x": 9}, 4, replaces=1), Resume(1, 4)])
    commands = desk.end(1)
    assert overs(commands) == [(2, Why.NO_SOURCE)]
    assert runs(commands) == [1]
    assert desk.study.finished is None


# ------------------------------------------------------------------------------------- starts with a configuration


def test_a_member_keeps_as_many_checkpoints_as_a_trial() -> None:
    """Those of replaced trials count among the last of whoever took their place."""
    desk = Desk(Scripted(Start(0, 2), Start(1, 2)), slots=2, keep=CheckpointConfig(num_to_keep=1))
    desk.save(0, 2)
    desk.save(1, 2)
    desk.scheduler.wishes.append(Fork(2, 0, {"x": 9}, 4, replaces=1))
    desk.end(0)
    desk.end(1)
    assert desk.study.checkpoints == {0: {2: None}, 1: {2: None}}, "the fork has none of its own yet"
    assert desk.save(2, 3) == [Drop(1, 2)]
    desk.scheduler.wishes.extend([Fork(3, 0, {"x": 8}, 6, replaces=2)])
    desk.save(2, 4)
    desk.end(2, step=4)
    assert of(Drop, desk.save(3, 5)) == [Drop(2, 4)]
    assert desk.study.checkpoints == {0: {2: None}, 3: {5: None}}


def test_a_trial_may_be_given_its_configuration() -> None:
    """Nobody is asked, several start at once, and each counts as a start."""
    desk = Desk(Scripted(Start(0, 2, {"x": 5}), Start(1, 2, {"x": 6})), slots=2, trials=2)
    assert desk.opening == [
        Start(0, 2, {"x": 5}),
        Run(desk.leases[0]),
        Start(1, 2, {"x": 6}),
        Run(desk.leases[1]),
    ]
    assert [lease.trial.config for lease in desk.leases.values()] == [{"x": 5}, {"x": 6}]
    assert [(lease.attempt, lease.until, lease.checkpoint) for lease in desk.leases.values()] == [(1, 2, None)] * 2
    assert desk.scheduler.closed == [()]
    desk.scheduler.wishes.append(Start(2, 2, {"x": 7}))
    with pytest.raises(IllegalChange, match="starts trial 2 after it was told that none will be served"):
        desk.end(0)


def test_given_and_proposed_configurations_may_be_mixed() -> None:
    answers: dict[int, Answer] = {0: Proposal({"x": "proposed"}), 2: Exhausted()}
    desk = Desk(
        Scripted(Start(0, 9), Start(1, 9, {"x": "given"}), Start(2, 9)),
        slots=3,
        answer=lambda ask, told: answers[ask.trial],
    )
    assert [lease.trial.config["x"] for lease in desk.leases.values()] == ["proposed", "given"]
    assert desk.scheduler.closed == [(2,)]


def test_a_waiting_searchers_slot_goes_to_a_trial_with_a_configuration() -> None:
    """Its outcome may be what the searcher waits for."""
    desk = Desk(
        Scripted(Start(0, 1), Start(1, 1)),
        slots=2,
        answer=lambda ask, told: Wait() if ask.trial and len(told) < 2 else Proposal({}),
    )
    desk.slots(1)
    desk.scheduler.wishes.append(Start(2, 1, {"x": 5}))
    assert runs(desk.end(0, How.RETURNED)) == [2]
    assert runs(desk.end(2, How.RETURNED)) == [1]


def test_a_given_configuration_outlives_the_driver() -> None:
    desk = Desk(Scripted(Start(0, 2, {"x": 5})), slots=1)
    assert desk.tell(Opened(desk.tick(), 2)) == [Retry(0, None)]
    desk.slots(1)
    assert (desk.leases[0].trial.config, desk.leases[0].attempt) == ({"x": 5}, 2)


def test_a_failure_in_a_scheduler_that_is_closed_ends_the_study_at_once() -> None:
    """In one turn: a lease is given out, then the last start closes the scheduler, which has a trial fail."""
    desk = Desk(Scripted(Start(0, 2), Start(1, 2)), slots=2, trials=3, fail_fast=True)
    desk.end(1)
    desk.scheduler.closing = [Stop(0, Why.NO_VALUE)]
    desk.scheduler.wishes.extend([Resume(1, 4), Start(2, 2, {})])
    commands = desk.slots(4)
    assert runs(commands) == [1]
    assert Unwind(1, 2) in commands
    assert desk.end(0, How.UNWOUND, step=1) == []
    assert desk.end(1, How.UNWOUND, step=2) == [Finish(False, "trial 0 failed and fail_fast is set")]
    desk.tell(Opened(desk.tick(), 2))
    assert runs(desk.slots(2)) == [1, 2]


# ------------------------------------------------------------------------------------------------------------ Stop


def test_a_running_trial_is_stopped_in_mid_lease() -> None:
    """The slot is free only when its code is gone; what it still says does not count."""

    def judge(seen: Observation) -> list[Stop]:
        return [Stop(0, Why.NO_PROMISE)] if seen.trial == 0 and seen.step == 2 else []

    desk = Desk(Scripted(Start(0, END), Start(1, END), judge=judge, every_report=True), slots=1)
    assert desk.report(0, 1, loss=5.0) == []
    commands = desk.report(0, 2, 3, loss=4.0)
    assert commands[:2] == [Unwind(0, 1), Over(0, State.STOPPED, Why.NO_PROMISE)]
    assert runs(commands) == []
    assert desk.told == [Observation(0, {"x": 0}, 2, 2.0, 2, 4.0, (4.0,), ended=True)]
    assert [seen.step for seen in desk.scheduler.seen] == [1, 2]  # the third of the batch came too late
    assert desk.report(0, 4) == []
    assert desk.save(0, 4) == []
    assert len(desk.scheduler.seen) == 2
    assert runs(desk.end(0, How.UNWOUND, step=4)) == [1]
    assert len(desk.told) == 1
    assert desk.study.ledger[0].spent == 2.0


@pytest.mark.parametrize("event", ["reached", "returned", "failed", "lost"])
def test_a_stopped_trial_may_end_otherwise_before_it_hears(event: str) -> None:
    desk = Desk(
        Scripted(Start(0, 9), Start(1, 9), judge=lambda seen: [Stop(seen.trial, Why.NO_PROMISE)], every_report=True)
    )
    desk.report(0, 2)
    match event:
        case "reached":
            commands = desk.end(0)
        case "returned":
            commands = desk.end(0, How.RETURNED)
        case "failed":
            commands = desk.fail(0)
        case "lost":
            commands = desk.fail(0, Failure.LOST)
    assert runs(commands) == [1]
    assert desk.state(0) is State.STOPPED
    assert overs(commands) == []


def test_a_paused_trial_is_stopped() -> None:
    scheduler = Scripted(*(Start(trial, 1) for trial in range(3)))
    desk = Desk(scheduler, slots=3)
    assert overs(desk.end(0)) == []
    scheduler._judge = lambda seen: [Stop(0, Why.NOT_PROMOTED)]
    commands = desk.end(1)
    assert commands == [Tell(desk.told[1]), Unwind(0, 1), Over(0, State.STOPPED, Why.NOT_PROMOTED)]


def test_a_trial_that_waits_for_a_repeat_is_stopped() -> None:
    """Its worker was lost with its slot; it never gets another."""
    desk = Desk(Scripted(Start(0, 9), Start(1, 9), judge=lambda seen: [Stop(0, Why.NO_PROMISE)]), slots=2)
    desk.slots(1)
    assert runs(desk.fail(0, Failure.LOST)) == []
    commands = desk.end(1, How.RETURNED)
    assert overs(commands) == [(1, Why.RETURNED), (0, Why.NO_PROMISE)]
    assert runs(commands) == []
    assert desk.study.finished == Finish(True, "every trial is over")


@pytest.mark.parametrize("stops", [[5], [0, 0], [1]])
def test_what_is_not_there_cannot_be_stopped(stops: list[int]) -> None:
    """Unknown; stopped twice; still without a configuration."""
    desk = Desk(
        Scripted(Start(0, 1), Start(1, 1), judge=lambda seen: [Stop(trial, Why.NO_PROMISE) for trial in stops]),
        slots=2,
        answer=lambda ask, told: None if ask.trial else Proposal({}),
    )
    with pytest.raises(IllegalChange, match=rf"stops trial {stops[0]}, which is not there to be stopped"):
        desk.end(0)


def test_a_trial_that_ended_is_not_stopped_again() -> None:
    desk = Desk(Scripted(Start(0, 1), judge=lambda seen: [Stop(0, Why.NO_PROMISE)]))
    with pytest.raises(IllegalChange, match="stops trial 0"):
        desk.end(0, How.RETURNED)


# -------------------------------------------------------------------------------------------------------- searchers


def test_a_searcher_that_waits_is_asked_again_after_each_observation() -> None:
    asked: list[int] = []

    def answer(ask: Ask, told: Sequence[Observation]) -> Answer:
        asked.append(ask.trial)
        return Wait() if ask.trial and len(told) < 2 else Proposal({})

    scheduler = Scripted(Start(0, 1), Start(1, 1), Start(2, 1))
    desk = Desk(scheduler, slots=3, answer=answer)
    assert asked == [0, 1, 2]
    scheduler.wishes.append(Resume(0, 2))
    assert runs(desk.end(0)) == [0]  # the two that wait keep their slots, and no more
    assert asked == [0, 1, 2, 1, 2]
    assert runs(desk.end(0, How.RETURNED)) == [1, 2]
    assert asked == [0, 1, 2, 1, 2, 1, 2]
    desk.end(1, How.RETURNED)
    assert desk.end(2, How.RETURNED)[-1] == Finish(True, "every trial is over")


def test_a_searcher_that_waits_for_nothing_is_a_deadlock() -> None:
    with pytest.raises(Deadlock, match="the searcher waits, but nothing runs"):
        Desk(Scripted(Start(0, 1)), answer=lambda ask, told: Wait())


def test_a_searcher_that_waits_for_ever_is_a_deadlock_when_all_has_been_heard() -> None:
    desk = Desk(
        Scripted(Start(0, 1), Start(1, 1)), slots=2, answer=lambda ask, told: Wait() if ask.trial else Proposal({})
    )
    with pytest.raises(Deadlock, match="the searcher waits"):
        desk.end(0, How.RETURNED)


def test_a_waiting_searchers_slot_goes_to_a_lost_trial() -> None:
    """The cluster shrinks to one slot: the searcher waits for the trial, so the trial must not wait for its slot."""
    desk = Desk(
        Scripted(Start(0, 1), Start(1, 1)),
        slots=2,
        answer=lambda ask, told: Proposal({}) if not ask.trial or told else Wait(),
    )
    desk.slots(1)
    commands = desk.fail(0, Failure.LOST)
    assert runs(commands) == [0]
    assert runs(desk.end(0, How.RETURNED)) == [1]


def test_a_waiting_searchers_slot_goes_to_a_paused_trial() -> None:
    """The same with a trial that the scheduler resumes; a new trial would not wake the searcher."""

    def answer(ask: Ask, told: Sequence[Observation]) -> Answer:
        return Proposal({}) if not ask.trial or len(told) > 1 else Wait()

    desk = Desk(Scripted(Start(0, 1), Start(1, 1)), slots=2, answer=answer)
    desk.slots(1)
    desk.scheduler.wishes.append(Resume(0, 2))
    assert runs(desk.end(0)) == [0]
    assert runs(desk.end(0)) == [1]

    desk = Desk(Scripted(Start(0, 1), Start(1, 1)), slots=2, answer=answer)
    desk.slots(1)
    desk.scheduler.wishes.append(Start(2, 2))
    with pytest.raises(Deadlock, match="the searcher waits"):
        desk.end(0)


def test_a_searcher_that_waits_is_asked_again_when_a_trial_is_stopped() -> None:
    """Stopped in mid-lease, the trial says nothing at a rung: its last report is its last word to the searcher."""
    desk = Desk(
        Scripted(Start(0, 9), Start(1, 9), judge=lambda seen: [Stop(0, Why.NO_PROMISE)], every_report=True),
        slots=2,
        answer=lambda ask, told: Proposal({}) if not ask.trial or told else Wait(),
    )
    assert runs(desk.report(0, 3)) == [1]


def test_an_exhausted_searcher_ends_the_study() -> None:
    scheduler = Scripted(Start(0, 1), Start(1, 1))
    desk = Desk(scheduler, slots=2, trials=10, answer=lambda ask, told: Exhausted() if ask.trial else Proposal({}))
    assert scheduler.closed == [(1,)]
    assert 1 not in desk.study.ledger
    assert desk.end(0, How.RETURNED)[-1] == Finish(True, "every trial is over")


def test_a_searcher_without_any_configuration_ends_the_study() -> None:
    desk = Desk(Scripted(Start(0, 1)), answer=lambda ask, told: Exhausted())
    assert desk.study.finished == Finish(True, "every trial is over")
    assert desk.opening == [Start(0, 1), desk.study.finished]


def test_the_last_trial_may_go_unserved() -> None:
    """The scheduler was closed when it started its last trial; it is closed again with the trials' numbers."""
    scheduler = Scripted(Start(0, 1), Start(1, 1))
    desk = Desk(scheduler, slots=2, trials=2, answer=lambda ask, told: None)
    desk.tell(Ticked(desk.tick()))
    assert desk.tell(Proposed(desk.tick(), 1, Exhausted())) == []
    assert desk.tell(Proposed(desk.tick(), 0, Exhausted())) == [Finish(True, "every trial is over")]
    assert scheduler.closed == [(), (1,), (0,)]


def test_a_scheduler_that_is_closed_says_who_must_go() -> None:
    """Trial 0 is paused, 1's configuration deferred, and there is none for 2: 0 is stopped, 1 is asked for again."""
    asked: list[int] = []

    def answer(ask: Ask, told: Sequence[Observation]) -> Answer | None:
        asked.append(ask.trial)
        return [Proposal({}), Wait() if len(asked) < 5 else Proposal({}), None, Proposal({})][ask.trial]

    desk = Desk(Scripted(Start(0, 1), Start(1, 1), Start(2, 1)), slots=3, answer=answer)
    desk.scheduler.wishes.append(Start(3, 9))
    desk.end(0)
    assert asked == [0, 1, 2, 1, 3]
    asked.clear()
    desk.scheduler.closing = [Stop(0, Why.NOT_PROMOTED)]
    commands = desk.tell(Proposed(desk.tick(), 2, Exhausted()))
    assert overs(commands) == [(0, Why.NOT_PROMOTED)]
    assert asked == [1]


def test_nothing_is_started_after_exhaustion() -> None:
    with pytest.raises(IllegalChange, match="starts trial 1 after it was told that none will be served"):
        Desk(Scripted(Start(0, 1), Start(1, 1)), slots=1, answer=lambda ask, told: Exhausted())


def test_slow_answers_hold_up_nothing_but_their_slots() -> None:
    desk = Desk(
        Scripted(Start(0, 1), Start(1, 1)), slots=3, answer=lambda ask, told: None if ask.trial == 1 else Proposal({})
    )
    desk.scheduler.wishes.extend([Resume(0, 2), Start(2, 1), Start(3, 1)])
    commands = desk.end(0)
    assert runs(commands) == [0, 2]  # one slot each for 0, 2, and for 1's configuration
    assert desk.end(0, How.RETURNED)[-1] != Finish(True, "every trial is over")
    assert runs(desk.tell(Proposed(desk.tick(), 1, Proposal({"x": "late"})))) == [1]
    assert desk.leases[1].since == desk.now
    assert desk.leases[1].trial.config == {"x": "late"}


def test_a_slow_answer_that_finds_its_slot_gone_waits() -> None:
    desk = Desk(Scripted(Start(0, 1)), answer=lambda ask, told: None)
    desk.slots(0)
    assert runs(desk.tell(Proposed(desk.tick(), 0, Proposal({})))) == []
    assert runs(desk.slots(1)) == [0]


@pytest.mark.parametrize("answer", [Proposal({}), Wait(), Exhausted()])
def test_an_answer_that_nobody_asked_for_is_refused(answer: Answer) -> None:
    """Never asked for; given already; and while the study is to ask again."""
    desk = Desk(
        Scripted(Start(0, 1), Start(1, 1)), slots=2, answer=lambda ask, told: Wait() if ask.trial else Proposal({})
    )
    for trial in (7, 0, 1):
        with pytest.raises(IllegalChange, match=f"proposed for trial {trial}, which nobody asked for"):
            desk.tell(Proposed(desk.tick(), trial, answer))


# ------------------------------------------------------------------------------------------------------------ slots


def test_slots_come_and_go() -> None:
    desk = Desk(Scripted(*(Start(trial, 1) for trial in range(8))), slots=0)
    assert desk.opening == []
    assert runs(desk.slots(3)) == [0, 1, 2]
    assert desk.slots(0) == []
    assert desk.end(0, How.RETURNED) == [Over(0, State.DONE, Why.RETURNED), Tell(desk.told[-1])]
    assert runs(desk.slots(1)) == []  # two still run
    assert runs(desk.end(1, How.RETURNED)) == []
    assert runs(desk.end(2, How.RETURNED)) == [3]
    assert runs(desk.slots(5)) == [4, 5, 6, 7]


def test_a_study_without_slots_is_no_deadlock() -> None:
    desk = Desk(Scripted(Start(0, 1)))
    desk.slots(0)
    assert desk.fail(0, Failure.LOST) == [Retry(0, None)]
    assert desk.tell(Ticked(desk.tick())) == []


def test_the_last_slot_may_go_with_the_last_trial() -> None:
    desk = Desk(Scripted(Start(0, 1)), trials=1)
    desk.slots(0)
    assert desk.end(0, How.RETURNED)[-1] == Finish(True, "every trial is over")


# --------------------------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize("allowed", [0, 2, -1])
def test_errors_are_retried_as_often_as_allowed(allowed: int) -> None:
    desk = Desk(Scripted(Start(0, 9)), max_failures=allowed)
    for failures in range(1, 8):
        if failures % 2:
            desk.save(0, failures)
        newest = failures - 1 + failures % 2
        commands = desk.fail(0)
        if allowed != -1 and failures > allowed:
            assert commands[0] == Over(0, State.FAILED, Why.ERROR, "boom")
            assert desk.told[-1].failure is Failure.ERROR
            assert desk.told[-1].value is None
            assert desk.told[-1].ended
            assert desk.study.finished == Finish(True, "every trial is over")
            return
        assert commands == [Retry(0, newest), Run(desk.leases[0])]
        lease = desk.leases[0]
        assert (lease.attempt, lease.tries, lease.checkpoint, lease.origin) == (failures + 1, failures, newest, newest)
        assert (lease.since, lease.spent) == (desk.now, failures)
    assert allowed == -1


def test_losses_are_free_but_bounded_without_progress() -> None:
    desk = Desk(Scripted(Start(0, 9)), max_failures=0)  # two losses in a row are allowed
    for step in (1, 2, 3):
        for _ in range(2):
            assert runs(desk.fail(0, Failure.LOST)) == [0]
        desk.save(0, step)
    desk.scheduler.wishes.append(Resume(0, 20))
    desk.fail(0, Failure.LOST)
    desk.fail(0, Failure.LOST)
    desk.end(0)  # progress, too
    desk.fail(0, Failure.LOST)
    desk.fail(0, Failure.LOST)
    assert desk.leases[0].tries == 10
    assert desk.save(0, 3) == []  # known already: no progress
    commands = desk.fail(0, Failure.LOST)
    assert commands[0] == Over(0, State.FAILED, Why.LOST, "boom")
    assert desk.told[-1].failure is Failure.LOST


def test_a_lost_trial_goes_before_new_ones() -> None:
    desk = Desk(Scripted(Start(0, 9), Start(1, 9)))
    assert runs(desk.fail(0, Failure.LOST)) == [0]


@pytest.mark.parametrize("failure", [Failure.NO_METRIC, Failure.NOT_FINITE])
def test_an_executor_may_see_a_bad_value_first(failure: Failure) -> None:
    desk = Desk(Scripted(Start(0, 9)), max_failures=-1)
    assert overs(desk.fail(0, failure)) == [(0, Why.NO_VALUE)]


@pytest.mark.parametrize(
    ("metrics", "message", "failure"),
    [
        ({"loss": math.nan}, "metric 'loss' was nan; a finite number is needed", Failure.NOT_FINITE),
        ({"loss": -math.inf}, "metric 'loss' was -inf; a finite number is needed", Failure.NOT_FINITE),
        ({"loss": "low"}, "metric 'loss' was 'low'; a finite number is needed", Failure.NOT_FINITE),
        (
            {"error": 0.1, "acc": 0.9, "training_iteration": 2},
            "no metric 'loss' in the report; the trial reported: acc, error",
            Failure.NO_METRIC,
        ),
    ],
)
@pytest.mark.parametrize("how", [How.REACHED, How.RETURNED, How.STOPPED])
def test_a_trial_without_a_usable_value_fails(
    metrics: dict[str, Any], message: str, failure: Failure, how: How
) -> None:
    desk = Desk(Scripted(Start(0, 2)), max_failures=-1)
    commands = desk.end(0, how, metrics=metrics)
    assert Over(0, State.FAILED, Why.NO_VALUE, message) in commands
    assert (Unwind(0, 1) in commands) == how.parks  # its code does not wait for ever
    assert desk.told[-1] == Observation(0, {"x": 0}, 2, 2.0, 2, None, spent=2.0, failure=failure, ended=True)
    assert desk.study.best is None


def test_a_function_that_returns_without_a_report_fails() -> None:
    desk = Desk(Scripted(Start(0, END)))
    commands = desk.end(0, How.RETURNED, step=0, metrics={})
    message = "no metric 'loss' in the report; the trial reported: nothing"
    assert Over(0, State.FAILED, Why.NO_VALUE, message) in commands
    desk = Desk(Scripted(Start(0, END)), objective=Objective(None))
    assert overs(desk.end(0, How.RETURNED, step=0, metrics={})) == [(0, Why.RETURNED)]


def test_a_resumed_function_that_returns_at_once_stands_by_what_it_said() -> None:
    desk = Desk(Scripted(Start(0, 2)))
    desk.scheduler.wishes.append(Resume(0, 4))
    desk.end(0, loss=3.0)
    assert overs(desk.end(0, How.RETURNED, step=0, metrics={})) == [(0, Why.RETURNED)]
    assert (desk.told[-1].value, desk.told[-1].step, desk.told[-1].until) == (3.0, 2, 4)


def test_the_larger_is_the_better() -> None:
    desk = Desk(Scripted(Start(0, 1), Start(1, 1)), objective=Objective("loss", "max"))
    desk.end(0, How.RETURNED, loss=5.0)
    desk.end(1, How.RETURNED, loss=4.0)
    assert [(seen.value, seen.values) for seen in desk.told] == [(-5.0, (5.0,)), (-4.0, (4.0,))]
    assert desk.study.best == (-5.0, 0)


def test_the_best_is_sought_at_the_highest_rung() -> None:
    desk = Desk(Scripted(*(Start(trial, 1) for trial in range(4))), slots=4)
    desk.end(0, loss=3.0)
    desk.end(1, loss=2.0)
    assert desk.study.best == (2.0, 1)
    desk.scheduler.wishes.append(Resume(0, 2))
    desk.end(2, How.RETURNED, loss=9.0)
    desk.end(0, loss=2.5)
    assert desk.study.best == (2.5, 0)


@pytest.mark.parametrize("event", ["error", "NaN", "stop"])
def test_fail_fast_ends_the_study_resumable(event: str) -> None:
    desk = Desk(Scripted(Start(0, 9), Start(1, 9), Start(2, 9)), slots=2, fail_fast=True)
    match event:
        case "error":
            commands = desk.fail(0)
        case "NaN":
            commands = desk.end(0, How.RETURNED, loss=math.nan)
        case "stop":
            desk.scheduler._judge = lambda seen: [Stop(0, Why.NO_VALUE)]
            desk.scheduler.every_report = True
            commands = desk.report(0, 1, loss=math.nan)
            assert desk.end(0, How.UNWOUND, step=1) == []
    assert Unwind(1, 1) in commands
    assert runs(commands) == []
    assert desk.end(1, How.UNWOUND, step=3) == [Finish(False, "trial 0 failed and fail_fast is set")]
    desk.tell(Opened(desk.tick(), 2))
    assert runs(desk.slots(2)) == [1, 2]


# ----------------------------------------------------------------------------------------- leases of one report each


def test_a_lease_of_one_report_is_followed_by_the_next_where_it_is_parked() -> None:
    """Nobody judges it before its rung, and no other lease that waits comes between."""
    desk = Desk(Scripted(Start(0, 3), Start(1, 3)), slots=2, each_report=True)
    desk.slots(1)
    assert runs(desk.fail(1, Failure.LOST)) == []  # trial 1 waits for a slot
    for step in (1, 2):
        commands = desk.end(0, step=step)
        assert commands == [Run(desk.leases[0])]
        lease = desk.leases[0]
        assert (lease.attempt, lease.until, lease.origin, lease.each_report, lease.last) == (
            step + 1,
            3,
            0,
            True,
            False,
        )
    assert desk.told == []
    assert runs(desk.end(0, step=3)) == [1]
    assert [(seen.step, seen.spent) for seen in desk.told] == [(3, 6.0)]
    assert desk.state(0) is State.PAUSED


def test_who_parked_unsaved_while_the_study_ends_early_makes_one_more_step_to_save_it() -> None:
    desk = Desk(Scripted(*(Start(trial, END) for trial in range(3))), slots=3, each_report=True)
    desk.tell(StopAsked(desk.tick(), "Ctrl-C"))
    desk.save(1, 5)
    assert desk.end(1, step=5) == []  # it is saved
    commands = desk.end(0, step=4)
    assert commands == [Run(desk.leases[0])]
    assert (desk.leases[0].last, desk.leases[0].attempt) == (True, 2)
    assert desk.end(2, How.UNWOUND, step=7) == []  # it saved what it could
    desk.save(0, 5)
    assert desk.end(0, How.UNWOUND, step=5) == [Finish(False, "Ctrl-C")]
    assert desk.tell(Opened(desk.tick(), 2)) == [Retry(0, 5), Retry(1, 5), Retry(2, None)]
    assert runs(desk.slots(3)) == [0, 1, 2]
    assert not desk.leases[0].last


def test_who_was_to_go_on_and_did_not_yet_makes_that_step_too() -> None:
    """Its lease was out, but had not begun when it was taken back."""
    desk = Desk(Scripted(Start(0, END), Start(1, END)), slots=2, each_report=True)
    assert runs(desk.end(0, step=1)) == [0]
    desk.tell(StopAsked(desk.tick(), "Ctrl-C"))
    assert desk.end(1, How.UNWOUND, step=0, metrics={}) == []  # it never ran at all
    assert runs(desk.end(0, How.UNWOUND, step=0, metrics={})) == [0]
    assert (desk.leases[0].last, desk.leases[0].attempt) == (True, 3)
    assert desk.end(0, How.UNWOUND, step=2) == [Finish(False, "Ctrl-C")]


def test_a_fork_that_was_to_begin_has_nothing_to_save() -> None:
    """Its source's checkpoint is there. Once it has said something itself, it has."""
    desk = forking(slots=1, each_report=True)
    assert runs(desk.end(0)) == [1]
    desk.tell(StopAsked(desk.tick(), "Ctrl-C"))
    assert desk.end(1, How.UNWOUND, step=0, metrics={}) == [Finish(False, "Ctrl-C")]
    desk.tell(Opened(desk.tick(), 2))
    desk.slots(1)
    assert runs(desk.end(1, step=3)) == [1]
    desk.tell(StopAsked(desk.tick(), "Ctrl-C"))
    assert runs(desk.end(1, How.UNWOUND, step=0, metrics={})) == [1]
    assert desk.leases[1].last


def test_one_more_step_is_one() -> None:
    desk = Desk(Scripted(Start(0, END)), each_report=True)
    desk.tell(StopAsked(desk.tick(), "Ctrl-C"))
    assert runs(desk.end(0, step=4)) == [0]
    assert desk.end(0, step=5) == [Finish(False, "Ctrl-C")]


def test_a_trial_that_is_over_and_did_not_know_is_unwound_where_it_parked() -> None:
    desk = Desk(
        Scripted(Start(0, 9), Start(1, 9), judge=lambda seen: [Stop(seen.trial, Why.NO_PROMISE)], every_report=True)
    )
    desk.report(0, 2)
    assert desk.end(0)[0] == Unwind(0, 1)


def test_a_study_that_ends_for_good_leaves_no_trial() -> None:
    desk = Desk(Scripted(*(Start(trial, 9) for trial in range(4))), slots=3)
    desk.end(0)
    commands = desk.tell(StopAsked(desk.tick(), "enough", for_good=True))
    assert [command.trial for command in of(Unwind, commands)] == [0, 1, 2, 3]
    assert overs(commands) == [(trial, Why.STUDY_STOPPED) for trial in range(4)]
    assert desk.tell(Opened(desk.tick(), 2)) == [Finish(True, "enough")]  # its driver died; that changes nothing


# ------------------------------------------------------------------------------------------------- stop and reopen


def test_a_study_that_was_asked_to_stop_goes_on_with_the_same_leases() -> None:
    desk = Desk(Scripted(*(Start(trial, 9) for trial in range(4))), slots=3, trials=4)
    desk.save(1, 3)
    before = dict(desk.leases)
    assert desk.tell(StopAsked(desk.tick(), "Ctrl-C")) == [Unwind(0, 1), Unwind(1, 1), Unwind(2, 1)]
    assert desk.tell(StopAsked(desk.tick(), "again")) == [Unwind(0, 1), Unwind(1, 1), Unwind(2, 1)]
    assert desk.end(0, How.UNWOUND, step=2) == []
    assert [type(command) for command in desk.end(1)] == [Tell]  # it was quicker, and is paused
    assert desk.end(2, How.UNWOUND, step=1) == [Finish(False, "again")]
    assert desk.slots(8) == []
    desk.scheduler.wishes.append(Resume(1, 27))
    assert desk.tell(Opened(desk.tick(), 2)) == [Retry(0, None), Retry(2, None)]
    assert desk.study.finished is None
    commands = desk.slots(4)
    assert runs(commands) == [0, 2, 3, 1]
    for trial in (0, 2):
        lease, was = desk.leases[trial], before[trial]
        assert (lease.attempt, lease.until, lease.since, lease.origin) == (2, was.until, was.since, was.origin)
        assert lease.spent == 2.0
    assert (desk.leases[1].until, desk.leases[1].checkpoint, desk.leases[1].origin) == (27, 3, 9)


def test_what_is_owed_when_the_study_stops_is_served_when_it_goes_on() -> None:
    desk = Desk(Scripted(Start(0, 9), Start(1, 9)), slots=2, answer=lambda ask, told: None)
    assert of(Start, desk.tell(Ticked(desk.tick()))) == [Start(1, 9)]
    assert desk.tell(StopAsked(desk.tick(), "Ctrl-C")) == [Finish(False, "Ctrl-C")]
    assert desk.tell(Proposed(desk.tick(), 0, Proposal({}))) == []  # too late for this driver
    assert desk.tell(Opened(desk.tick(), 2)) == [Retry(0, None)]
    assert desk.tell(Proposed(desk.tick(), 1, Proposal({}))) == []
    assert runs(desk.slots(2)) == [0, 1]


def test_a_failure_while_stopping_counts_and_runs_again_later() -> None:
    desk = Desk(Scripted(Start(0, 9)), max_failures=1)
    desk.tell(StopAsked(desk.tick(), "Ctrl-C"))
    assert desk.fail(0) == [Retry(0, None), Finish(False, "Ctrl-C")]
    desk.tell(Opened(desk.tick(), 2))
    assert runs(desk.slots(1)) == [0]
    assert desk.leases[0].tries == 1


def test_a_dead_drivers_leases_are_given_out_anew_free_of_charge() -> None:
    desk = Desk(Scripted(Start(0, 9), Start(1, 9), Start(2, 2)), slots=3)
    desk.save(0, 4)
    desk.end(2)
    before = dict(desk.leases)
    for epoch in range(2, 9):
        assert desk.tell(Opened(desk.tick(), epoch)) == [Retry(0, 4), Retry(1, None)]
        assert runs(desk.slots(3)) == [0, 1]
    for trial in (0, 1):
        lease, was = desk.leases[trial], before[trial]
        assert (lease.attempt, lease.tries, lease.since, lease.origin) == (8, 0, was.since, was.origin)
    assert desk.leases[0].checkpoint == 4
    assert desk.state(2) is State.PAUSED


def test_a_stopped_trial_dies_with_its_driver() -> None:
    scheduler = Scripted(Start(0, 9), Start(1, 9), judge=lambda seen: [Stop(0, Why.NO_PROMISE)], every_report=True)
    desk = Desk(scheduler)
    desk.report(0, 1)
    assert desk.tell(Opened(desk.tick(), 2)) == []
    assert runs(desk.slots(1)) == [1]


def test_all_is_over_when_a_stopped_study_is_opened() -> None:
    """Stop was asked for, and the last trial ended instead of unwinding: nothing is left, and no slot is needed."""
    desk = Desk(Scripted(Start(0, 9)), trials=1)
    desk.tell(StopAsked(desk.tick(), "Ctrl-C"))
    assert desk.end(0, How.RETURNED)[-1] == Finish(False, "Ctrl-C")
    assert desk.tell(Opened(desk.tick(), 2)) == [Finish(True, "every trial is over")]


# ------------------------------------------------------------------------------------------------- late, and twice


def test_events_of_stale_attempts_are_ignored() -> None:
    desk = Desk(Scripted(Start(0, 9), every_report=True), max_failures=5)
    desk.fail(0)
    assert not desk.study.expects(0, 1)
    assert desk.study.expects(0, 2)
    stale: list[Event] = [
        Reported(9.0, 0, 1, (Report(5, 5.0, {"loss": 0.0}, 9.0),)),
        Checkpointed(9.0, 0, 1, 5, {}),
        Ended(9.0, 0, 1, How.RETURNED, 5, 5.0, {"loss": 0.0}),
        Failed(9.0, 0, 1, Failure.ERROR, "boom"),
        Ended(9.0, 0, 3, How.RETURNED, 5, 5.0, {"loss": 0.0}),
        Ended(9.0, 8, 1, How.RETURNED, 5, 5.0, {"loss": 0.0}),
    ]
    for event in stale:
        assert desk.tell(event) == []
    assert desk.scheduler.seen == []
    assert desk.study.checkpoints == {}
    assert desk.study.expects(0, 2)


def test_an_end_counts_once() -> None:
    desk = Desk(Scripted(Start(0, 1), Start(1, 1), Start(2, 1)), slots=3)
    desk.end(0)
    assert desk.end(0) == []
    assert desk.fail(0) == []
    assert desk.state(0) is State.PAUSED
    assert len(desk.told) == 1
    desk.fail(1)
    spent = desk.study.ledger[1].spent
    assert desk.study.finished is None
    assert desk.fail(1) == []
    assert desk.end(1) == []
    assert desk.study.ledger[1].spent == spent


def test_a_checkpoint_counts_once() -> None:
    desk = Desk(Scripted(Start(0, 9)), keep=CheckpointConfig(num_to_keep=1))
    desk.save(0, 1)
    assert desk.save(0, 1) == []
    assert desk.save(0, 2) == [Drop(0, 1)]
    assert desk.study.checkpoints == {0: {2: None}}


# -------------------------------------------------------------------------------------------------------- retention


def test_the_latest_checkpoints_are_kept() -> None:
    desk = Desk(Scripted(Start(0, 9)), keep=CheckpointConfig(num_to_keep=2))
    assert [desk.save(0, step) for step in range(1, 5)] == [[], [], [Drop(0, 1)], [Drop(0, 2)]]
    desk.end(0, How.RETURNED)
    assert desk.study.checkpoints == {0: {3: None, 4: None}}


def test_the_best_checkpoints_and_the_last_are_kept() -> None:
    keep = CheckpointConfig(num_to_keep=1, checkpoint_score_attribute="acc")
    desk = Desk(Scripted(Start(0, 9)), keep=keep, max_failures=1)
    assert desk.save(0, 1, acc=0.9) == []
    assert desk.save(0, 2, acc=0.5) == []
    assert desk.save(0, 3, acc=math.nan) == [Drop(0, 2)]
    assert desk.save(0, 4) == [Drop(0, 3)]
    assert desk.save(0, 5, acc=0.95) == [Drop(0, 1), Drop(0, 4)]
    desk.save(0, 6, acc=0.2)
    desk.fail(0)
    assert desk.leases[0].checkpoint == 6  # to go on from the newest, not from the best
    assert desk.study.checkpoints == {0: {5: 0.95, 6: 0.2}}


def test_all_checkpoints_are_kept_where_nobody_says_otherwise() -> None:
    desk = Desk(Scripted(Start(0, END)))
    for step in range(1, 30):
        assert desk.save(0, step) == []
    assert len(desk.study.checkpoints[0]) == 29
