"""The study under any legal order of events: real schedulers, and a toy that stops others in mid-lease.

`World` plays driver, executor and searcher at their worst: slots come and go, leases end, fail, are lost and unwound in
any order, answers are late, word comes twice, drivers die, somebody presses Ctrl-C. It keeps books of its own, and
compares them with the study's after each event.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from raytuner.actions import Action, Answer, Done, Exhausted, Fork, Resume, Start, Stop, Wait
from raytuner.events import (
    Ask,
    Checkpointed,
    Damaged,
    Drop,
    Ended,
    Event,
    Failed,
    Finish,
    How,
    Opened,
    Over,
    Proposed,
    Quarantine,
    Reported,
    Run,
    Slots,
    StopAsked,
    Tell,
    Ticked,
    Unwind,
)
from raytuner.objective import Objective
from raytuner.protocols import Scheduler, SchedulingPolicy
from raytuner.retention import CheckpointConfig
from raytuner.retry import Retries
from raytuner.schedulers import MedianStoppingRule, PopulationBasedTraining
from raytuner.searchers import RandomSearch
from raytuner.space import Space, uniform
from raytuner.study import Study
from raytuner.trial import END, LEGAL, Failure, Lease, Observation, Report, State, Why
from tests.schedulers.test_contract import SETTINGS, any_model

__all__ = ["any_model"]  # a fixture


@dataclass(frozen=True)
class ToyMedian:
    """Stop a running trial at any report that is worse than the median of its step, and another running one with it,
    which no real scheduler does yet."""

    def build(self, seed: int) -> ToyMedianScheduler:
        return ToyMedianScheduler()


class ToyMedianScheduler:
    """The machine of `ToyMedian`."""

    every_report = True
    forks = False

    def __init__(self) -> None:
        self._started = 0
        self._live: dict[int, None] = {}
        self._heard: dict[int, None] = {}  # live, with at least one report
        self._values: dict[int, list[float]] = {}
        self._closed = False

    def next(self) -> Action:
        if not self._closed:
            self._live[self._started] = None
            self._started += 1
            return Start(self._started - 1, END)
        return Wait() if self._live else Done()

    def judge(self, seen: Observation) -> list[Stop]:
        if seen.ended:
            self._live.pop(seen.trial, None)
            self._heard.pop(seen.trial, None)
            return []
        if seen.trial not in self._live:
            return []
        self._heard[seen.trial] = None
        if seen.value is None:
            return self._stop(seen.trial, Why.NO_VALUE)
        values = self._values.setdefault(seen.step, [])
        values.append(seen.value)
        if seen.value <= sorted(values)[len(values) // 2]:
            return []
        stops = self._stop(seen.trial, Why.NO_PROMISE)
        if self._heard and seen.step % 3 == 0:
            stops += self._stop(next(iter(self._heard)), Why.NO_PROMISE)
        return stops

    def _stop(self, trial: int, why: Why) -> list[Stop]:
        del self._live[trial], self._heard[trial]
        return [Stop(trial, why)]

    def close(self, unserved: Sequence[int] = ()) -> Sequence[Stop]:
        self._closed = True
        for trial in unserved:
            self._live.pop(trial, None)
        return []


TOYS: dict[str, SchedulingPolicy] = {"toy median": ToyMedian()}
SPACE = Space({"x": uniform(0.0, 1.0)})


def busy_pbt(**settings: Any) -> PopulationBasedTraining:
    """Members have many turns, and half of them fork."""
    return PopulationBasedTraining(
        time_attr="training_iteration",
        hyperparam_mutations={"x": uniform(0.0, 1.0)},
        quantile_fraction=0.5,
        perturbation_interval=2,
        **settings,
    )


POPULATIONS: dict[str, SchedulingPolicy] = {
    "busy pbt": busy_pbt(),
    "busy pbt tournament": busy_pbt(exploit="binary_tournament"),
    "busy pbt synch": busy_pbt(synch=True),
    "busy pbt median": MedianStoppingRule(
        time_attr="training_iteration", grace_period=3, min_samples_required=2, scheduler=busy_pbt()
    ),
}
POLICIES = {**SETTINGS, **TOYS, **POPULATIONS}

KEEP = [
    *[CheckpointConfig(num_to_keep=keep) for keep in (None, 1, 2)],
    *[CheckpointConfig(num_to_keep=keep, quota_count=2) for keep in (None, 1)],
    CheckpointConfig(quota_bytes=40),
    CheckpointConfig(num_to_keep=2, num_to_keep_in_study=2),
    CheckpointConfig(num_to_keep_in_study=1, quota_count=6, checkpoint_score_attribute="loss"),
]

LENGTH = 16
"""Where trials end that a population would let run for ever."""


@dataclass(frozen=True)
class Settings:
    """What a study is built with."""

    policy: SchedulingPolicy
    trials: int
    max_failures: int
    keep: CheckpointConfig
    fail_fast: bool

    def scheduler(self) -> Scheduler:
        return self.policy.build(0)

    def study(self) -> Study:
        return Study(
            Objective("loss"),
            self.scheduler(),
            self.trials,
            Retries(self.max_failures, max_losses=2),
            self.keep,
            self.fail_fast,
        )


class World:
    """Tells a study what happens, does what it wants, and keeps the books."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.study = settings.study()
        self.searcher = RandomSearch().build(SPACE, 0)
        self.epoch = 0
        self.at = 0.0
        self.slots = 0
        self.asked: dict[int, Ask] = {}
        self.deferred: set[int] = set()  # answered `Wait`
        self.running: dict[int, Lease] = {}
        self.stands: dict[int, int] = {}  # running and parked trials: at which step their code is
        self.unwinding: set[int] = set()
        self.states: dict[int, State] = {}
        self.checkpoints: dict[tuple[int, int], int] = {}  # their sizes
        self.reported: dict[int, int] = {}  # the highest step that the study heard of, of each trial
        self.targets: dict[int, int] = {}
        self.aside: set[tuple[int, int | None]] = set()
        self.rungs: dict[int, tuple[int, int] | None] = {}  # trials that were at one: what others may begin from
        self.donors: dict[int, tuple[int, int] | None] = {}  # forks: what they begin from
        self.begun: dict[int, tuple[int, int]] = {}  # their sources, and the step that these were taken over at
        self.reasons: dict[int, Why] = {}
        self.numbers = 0
        self.finish: Finish | None = None
        self.past: list[Event] = []  # what may come twice
        self.log: list[tuple[Event, list[Any]]] = []
        self.open()

    # ---- what the study wants

    def tell(self, event: Event) -> list[Any]:
        match event:
            case Opened():
                self.running.clear()
                self.stands.clear()
                self.unwinding.clear()
                self.slots, self.finish = 0, None
            case Slots(slots=slots):
                self.slots = slots
            case Proposed(trial=trial, answer=answer):
                ask = self.asked.pop(trial)
                if isinstance(answer, Wait):
                    self.deferred.add(trial)
                elif not isinstance(answer, Exhausted):
                    self.change(trial, State.RUNNING)
                    self.targets[trial] = ask.until
            case Ended(trial=trial, how=how):
                del self.running[trial]
                self.unwinding.discard(trial)
                if not how.parks:
                    self.stands.pop(trial, None)
            case Failed(trial=trial) | Damaged(trial=trial):
                del self.running[trial], self.stands[trial]
                self.unwinding.discard(trial)
            case Checkpointed(trial=trial, step=step, nbytes=nbytes):
                self.checkpoints[trial, step] = nbytes
        if isinstance(event, Ended) and event.how is How.REACHED and self.states[event.trial] is State.RUNNING:
            self.states[event.trial] = State.PAUSED  # unless it is over at once
            self.rungs[event.trial] = self.newest(event.trial)
        return self.react(event)

    def react(self, event: Event) -> list[Any]:
        """Have the study handle an event, and do what it wants."""
        commands = [snapshot(command) for command in self.study.handle(event)]
        for command in commands:
            self.obey(command, event)
        for command in commands:
            if isinstance(command, Fork):
                self.check_fork(command)
        self.log.append((event, commands))
        self.check()
        return commands

    def obey(self, command: Any, event: Event) -> None:
        match command:
            case Ask(trial):
                assert trial not in self.asked
                assert trial not in self.states
                self.deferred.discard(trial)
                self.asked[trial] = command
            case Start(trial) | Fork(trial):
                assert trial == self.numbers
                self.numbers += 1
                if isinstance(command, Fork):
                    over = self.states[command.source].over
                    self.donors[trial] = self.newest(command.source) if over else self.rungs[command.source]
                    self.begun[trial] = command.source, donor[1] if (donor := self.donors[trial]) else 0
                if command.config is not None:  # else it is the searcher's to propose
                    self.change(trial, State.RUNNING)
                    self.targets[trial] = command.until
            case Resume(trial, until):
                self.change(trial, State.RUNNING)
                assert until > self.targets[trial]
                self.targets[trial] = until
            case Over(trial, state, why):
                assert state is why.state
                if self.states[trial] is State.PAUSED and state is State.FAILED:
                    assert isinstance(event, Ended)  # its own report was of no use
                    self.states[trial] = State.RUNNING
                self.change(trial, state)
                self.reasons[trial] = why
            case Run(lease):
                self.lease(lease)
            case Unwind(trial):
                if trial in self.running:
                    self.unwinding.add(trial)
                else:
                    self.stands.pop(trial, None)
            case Quarantine(trial, step):
                assert isinstance(event, Damaged)
                assert (trial, step) == (event.source, event.step)
                self.put_aside(trial, step)
            case Drop(trial, step):
                del self.checkpoints[trial, step]
                for lease in self.running.values():
                    if lease.trial.id not in self.unwinding and self.states[lease.trial.id] is State.RUNNING:
                        self.check_source(lease)
            case Finish():
                assert self.finish is None
                assert not self.running
                self.finish = command
            case Tell(seen):
                assert seen.ended or not self.states[seen.trial].over
                self.searcher.tell(seen)

    def lease(self, lease: Lease) -> None:
        trial = lease.trial.id
        assert trial not in self.running, "two leases of one trial"
        assert len(self.running) < self.slots, "more leases than slots"
        assert self.finish is None
        assert self.states[trial] is State.RUNNING
        assert lease.until == self.targets[trial]
        self.check_source(lease)
        if trial not in self.stands:
            self.stands[trial] = lease.checkpoint or 0
        self.running[trial] = lease

    def check_source(self, lease: Lease) -> None:
        """What a lease would start from, were it lost now, must be there."""
        began = lease.donor, lease.checkpoint
        if self.newest(lease.trial.id) is None and lease.checkpoint is not None and began not in self.aside:
            assert (lease.donor, lease.checkpoint) in self.checkpoints
            assert (lease.donor, lease.checkpoint) == self.donors[lease.trial.id]
        newest = self.study.ledger[lease.trial.id].newest
        assert newest is None or newest in self.checkpoints

    def put_aside(self, trial: int, step: int) -> None:
        """A checkpoint is no longer there; those that would have begun from it begin from an older one."""
        del self.checkpoints[trial, step]
        self.aside.add((trial, step))
        older = max((each for each in self.checkpoints if each[0] == trial and each[1] < step), default=None)
        if self.rungs.get(trial) == (trial, step):
            self.rungs[trial] = older
        for fork, (source, begun) in self.begun.items():
            if not self.states[fork].over and self.newest(fork) is None:
                left = [each for each in self.checkpoints if each[0] == source and each[1] <= begun]
                self.donors[fork] = donor = max(left, default=None)
                self.begun[fork] = source, donor[1] if donor else 0

    def newest(self, trial: int) -> tuple[int, int] | None:
        """A trial's newest checkpoint of its own."""
        return max((each for each in self.checkpoints if each[0] == trial), default=None)

    def check_fork(self, fork: Fork) -> None:
        """It takes its place if there is something to begin from, and only then."""
        begins = self.donors[fork.trial] is not None
        assert SPACE.contains(fork.config) or self.settings.policy not in POPULATIONS.values()
        assert (self.reasons.get(fork.trial) is Why.NO_SOURCE) == (not begins)
        assert (self.reasons.get(fork.replaces) is Why.REPLACED) == begins

    def change(self, trial: int, state: State) -> None:
        assert state in LEGAL[self.states.get(trial)]
        self.states[trial] = state

    def check(self) -> None:
        """The study's books are ours."""
        ledger = self.study.ledger
        assert {trial: entry.state for trial, entry in ledger.items()} == self.states
        assert set(ledger.live) == {trial for trial, state in self.states.items() if not state.over}
        assert dict(ledger.counts()) == {state: list(self.states.values()).count(state) for state in State}
        assert [one.trial for one in ledger.pending()] == list(ledger.live)
        known = {(trial, step) for trial, steps in self.study.checkpoints.items() for step in steps}
        assert known == self.checkpoints.keys()
        self.check_rules()
        for trial, entry in ledger.items():
            assert self.study.expects(trial, entry.attempt) == (trial in self.running)
            assert not (entry.state.over and entry.donor)
            assert entry.donor is None or entry.donor in self.checkpoints
            if self.study._scheduler.forks and not entry.state.over:
                assert self.rungs.get(trial) in (None, *self.checkpoints), "others may begin from it"
        assert self.study.finished == self.finish

    def check_rules(self) -> None:
        """The rules over all trials hold, as far as what is needed allows."""
        keep, stock = self.settings.keep, self.study.stock
        assert (len(stock), stock.nbytes) == (len(self.checkpoints), sum(self.checkpoints.values()))
        needed, paused = set(), set()
        for trial, entry in self.study.ledger.live.items():
            newest = self.newest(trial)
            if newest is not None:
                can_begin_anew = entry.state is State.PAUSED and entry.trial.parent is None
                (paused if can_begin_anew else needed).add(newest)
            if self.study._scheduler.forks and (rung := self.rungs.get(trial)) is not None:
                needed.add(rung)
            if entry.donor is not None:
                needed.add(entry.donor)
        spare = self.checkpoints.keys() - needed
        count, nbytes = len(self.checkpoints), sum(self.checkpoints.values())
        over = (keep.quota_count or math.inf) < count or (keep.quota_bytes or math.inf) < nbytes
        assert not (over and spare & paused)
        assert not over or len(spare) <= (keep.num_to_keep_in_study or 1), "the best"
        assert (stock.exceeded is None) == (not over)
        if keep.num_to_keep_in_study is not None:
            assert len(spare - paused) <= keep.num_to_keep_in_study

    # ---- what happens

    def tick(self) -> float:
        self.at += 1.0
        return self.at

    def open(self) -> None:
        self.epoch += 1
        self.tell(Opened(self.tick(), self.epoch))

    def serve(self, trial: int, kind: str = "config") -> None:
        ask = self.asked[trial]
        answer: Answer = self.searcher.ask(trial, ask.until, ask.pending)
        if kind == "exhausted":
            answer = Exhausted()
        elif kind == "wait" and self.running.keys() - self.unwinding:  # else it would wait for nothing
            answer = Wait()
        self.tell(Proposed(self.tick(), trial, answer))

    def say(self, trial: int, steps: int, loss: Any, save: bool) -> None:
        """Some reports of a running trial, the last perhaps with a checkpoint: what a driver makes of them."""
        lease, begun = self.running[trial], self.stands[trial]
        self.stands[trial] = last = begun + steps
        at, metrics = self.tick(), metrics_of(last, loss)
        if save:
            self.hear(Checkpointed(at, trial, lease.attempt, last, metrics, nbytes=10 + trial))
        fresh = range(max(begun, self.reported.get(trial, 0)) + 1, last + 1)
        if fresh and self.study.every_report:
            self.reported[trial] = last
            reports = tuple(Report(step, float(step), metrics, at) for step in fresh)
            self.hear(Reported(at, trial, lease.attempt, reports))

    def end(self, trial: int, how: How, loss: Any = 1.0) -> None:
        lease, step = self.running[trial], self.stands[trial]
        said = how is How.REACHED or step > (lease.checkpoint or 0)
        metrics = metrics_of(step, loss) if said else {}
        self.hear(Ended(self.tick(), trial, lease.attempt, how, step, float(step), metrics, spent=1.0))

    def reach(self, trial: int, loss: Any, ahead: int, save: bool) -> None:
        lease = self.running[trial]
        if lease.until == END or (self.study._scheduler.forks and lease.until > LENGTH):
            self.end(trial, How.RETURNED, loss)
            return
        self.say(trial, max(1, lease.until - self.stands[trial]) + ahead, loss, save)
        self.end(trial, How.REACHED, loss)

    def fail(self, trial: int, failure: Failure) -> None:
        self.hear(Failed(self.tick(), trial, self.running[trial].attempt, failure, "boom", spent=1.0))

    def find_damage(self, trial: int) -> None:
        """A lease was to begin from a checkpoint, and cannot."""
        lease = self.running[trial]
        assert lease.checkpoint is not None
        self.hear(Damaged(self.tick(), trial, lease.attempt, lease.donor, lease.checkpoint, "flipped", spent=0.5))

    def hear(self, event: Reported | Checkpointed | Ended | Failed | Damaged) -> None:
        self.past.append(event)
        self.tell(event)

    def hear_again(self, event: Event) -> None:
        """Word of an attempt that is over: nothing follows from it but what any event brings, a slot is filled that was
        free. (A driver would not even pass it on.)"""
        assert isinstance(event, Reported | Checkpointed | Ended | Failed | Damaged)
        if event.attempt == self.study.ledger[event.trial].attempt and event.trial in self.running:
            return
        anyway = [snapshot(command) for command in self.replay().handle(Ticked(event.at))]
        assert self.react(event) == anyway

    # ---- the end

    def run_to_end(self) -> None:
        """Everything goes well from now on."""
        if self.finish is not None and not self.finish.complete:
            self.open()
        for _ in range(400 + 200 * self.settings.trials):
            if self.finish is not None:
                if self.finish.complete:
                    break
                self.open()
            elif not self.slots:
                self.tell(Slots(self.tick(), 2))
            elif self.unwinding:
                self.end(min(self.unwinding), How.UNWOUND)
            elif self.asked:
                self.serve(min(self.asked))
            else:
                assert self.running, "stranded"
                self.reach(min(self.running), float(min(self.running) % 3), 0, save=True)
        assert self.finish is not None, "the study does not end"
        assert self.finish.complete
        assert all(state.over for state in self.states.values())
        assert not self.running
        assert not self.asked
        assert not self.deferred
        assert not self.study.ledger.live

    def replay(self) -> Study:
        """The same events, the same commands; another study that stands where this one does."""
        study = self.settings.study()
        for event, commands in self.log:
            assert [snapshot(command) for command in study.handle(event)] == commands
        assert study.finished == self.study.finished
        assert study.best == self.study.best
        return study


def metrics_of(step: int, loss: Any) -> dict[str, Any]:
    return {"training_iteration": step, **({} if loss is None else {"loss": loss})}


def snapshot(command: Any) -> Any:
    """An `Ask` holds a view of the ledger, which moves on."""
    return replace(command, pending=tuple(command.pending)) if isinstance(command, Ask) else command


def machine(name: str) -> type[RuleBasedStateMachine]:
    """A Hypothesis machine that makes every kind of trouble."""
    policy = POLICIES[name]
    losses = st.sampled_from([0.0, 1.0, 1.0, 2.0, 3.0, 4.0, math.nan, None])

    class Machine(RuleBasedStateMachine):
        @initialize(
            trials=st.integers(1, 8 if name in POPULATIONS else 30),
            max_failures=st.sampled_from([0, 2, -1]),
            keep=st.sampled_from(KEEP),
            fail_fast=st.sampled_from([False, False, False, True]),
            slots=st.integers(1, 8),
        )
        def begin(self, trials: int, max_failures: int, keep: CheckpointConfig, fail_fast: bool, slots: int) -> None:
            self.world = World(Settings(policy, trials, max_failures, keep, fail_fast))
            self.world.tell(Slots(self.world.tick(), slots))

        def pick(self, data: st.DataObject, among: Any) -> int:
            trial: int = data.draw(st.sampled_from(sorted(among)))
            return trial

        @precondition(lambda self: self.world.asked)
        @rule(
            data=st.data(),
            times=st.integers(1, 12),
            kind=st.sampled_from(["config", "config", "config", "config", "wait", "wait", "exhausted"]),
        )
        def serve(self, data: st.DataObject, times: int, kind: str) -> None:
            for _ in range(times):
                if self.world.asked:
                    self.world.serve(self.pick(data, self.world.asked), kind)

        @precondition(lambda self: self.world.running)
        @rule(data=st.data(), steps=st.integers(1, 3), loss=losses, save=st.booleans())
        def say(self, data: st.DataObject, steps: int, loss: Any, save: bool) -> None:
            trial = self.pick(data, self.world.running)
            if self.world.stands[trial] + steps < self.world.running[trial].until:
                self.world.say(trial, steps, loss, save)

        @precondition(lambda self: self.world.running)
        @rule(data=st.data(), loss=losses, ahead=st.sampled_from([0, 0, 0, 1, 20]), save=st.booleans())
        def reach(self, data: st.DataObject, loss: Any, ahead: int, save: bool) -> None:
            self.world.reach(self.pick(data, self.world.running), loss, ahead, save)

        @precondition(lambda self: self.world.running)
        @rule(loss=st.lists(losses, min_size=1, max_size=12), saves=st.just([True] * 12) | st.lists(st.booleans()))
        def reach_all(self, loss: list[Any], saves: list[bool]) -> None:
            for trial, value, save in zip(sorted(self.world.running), loss, saves, strict=False):
                if trial in self.world.running:
                    self.world.reach(trial, value, 0, save)

        @precondition(lambda self: self.world.running)
        @rule(data=st.data(), how=st.sampled_from([How.RETURNED, How.STOPPED]), loss=losses)
        def end(self, data: st.DataObject, how: How, loss: Any) -> None:
            self.world.end(self.pick(data, self.world.running), how, loss)

        @precondition(lambda self: self.world.unwinding)
        @rule(data=st.data())
        def unwound(self, data: st.DataObject) -> None:
            self.world.end(self.pick(data, self.world.unwinding), How.UNWOUND)

        @precondition(lambda self: self.world.running)
        @rule(data=st.data(), failure=st.sampled_from(Failure))
        def fail(self, data: st.DataObject, failure: Failure) -> None:
            self.world.fail(self.pick(data, self.world.running), failure)

        @precondition(lambda self: any(lease.checkpoint for lease in self.world.running.values()))
        @rule(data=st.data())
        def find_damage(self, data: st.DataObject) -> None:
            running = self.world.running
            self.world.find_damage(self.pick(data, [trial for trial in running if running[trial].checkpoint]))

        @rule(data=st.data(), slots=st.integers(0, 12))
        def trouble(self, data: st.DataObject, slots: int) -> None:
            """What may happen at any time; in one rule, for else little else would happen."""
            world = self.world
            kinds: dict[str, Callable[[], Any]] = {}
            if world.finish is None:
                kinds["resize"] = lambda: world.tell(Slots(world.tick(), slots))
                kinds["stop"] = lambda: world.tell(StopAsked(world.tick(), "Ctrl-C"))
            if world.finish is None or not world.finish.complete:
                kinds["die"] = self.die
            if world.past:
                kinds["hear again"] = lambda: world.hear_again(data.draw(st.sampled_from(world.past)))
            if parked := world.stands.keys() - world.running.keys():
                kinds["evict"] = lambda: world.stands.pop(self.pick(data, parked))
            if world.finish is None or world.finish.complete:
                kinds["tick"] = lambda: world.tell(Ticked(world.tick()))
            kinds[data.draw(st.sampled_from(list(kinds)))]()

        def die(self) -> None:
            slots = self.world.slots
            self.world.open()
            self.world.tell(Slots(self.world.tick(), slots))

        def teardown(self) -> None:
            if hasattr(self, "world"):
                self.world.run_to_end()
                self.world.replay()

    return Machine


@pytest.mark.timeout(600)  # a failure takes minutes to shrink
@pytest.mark.parametrize("name", POLICIES)
def test_machine(name: str) -> None:
    run_state_machine_as_test(machine(name), settings=settings(stateful_step_count=30))


def move(world: World, chance: random.Random, saves: float) -> None:
    """Something that may happen, mostly that a trial gets on; ``saves``: how often with a checkpoint."""
    if world.finish is not None:
        world.open()
    if not world.slots:
        world.tell(Slots(world.tick(), chance.randint(1, 6)))
    while world.asked and chance.random() < 0.9:
        world.serve(chance.choice(sorted(world.asked)))
    if not world.running:
        return
    trial = chance.choice(sorted(world.running))
    loss = float(chance.randrange(9))
    match chance.randrange(60):
        case 0:
            world.tell(Slots(world.tick(), chance.randint(0, 8)))
        case 1:
            world.open()
        case 2:
            world.tell(StopAsked(world.tick(), "Ctrl-C"))
        case 3:
            world.fail(trial, chance.choice(list(Failure)))
        case 4:
            world.end(trial, chance.choice([How.RETURNED, How.STOPPED]), loss)
        case 8 | 9 if world.running[trial].checkpoint:
            world.find_damage(trial)
        case 5 if world.past:
            world.hear_again(chance.choice(world.past))
        case 6 if world.stands[trial] + 1 < world.running[trial].until:
            world.say(trial, 1, loss, chance.random() < saves)
        case 7:
            world.reach(trial, chance.choice([math.nan, None, loss]), chance.choice([0, 3]), chance.random() < saves)
        case _ if world.unwinding and chance.random() < 0.5:
            world.end(chance.choice(sorted(world.unwinding)), How.UNWOUND)
        case _:
            world.reach(trial, loss, 0, chance.random() < saves)


@pytest.mark.parametrize("name", POLICIES)
def test_long_lives(name: str) -> None:
    """With less trouble in each: populations come to fork only when all have started."""
    found: Counter[Why] = Counter()
    aside = dropped = 0
    for seed in range(40):
        chance = random.Random(seed)
        keep = chance.choice(KEEP)
        world = World(Settings(POLICIES[name], chance.randint(1, 8), chance.choice([0, 2, -1]), keep, fail_fast=False))
        for _ in range(150):
            if world.finish is None or not world.finish.complete:
                move(world, chance, saves=[1.0, 0.5][seed % 2])
        found.update(world.reasons.values())
        wanted = [command for _, commands in world.log for command in commands]
        aside += sum(isinstance(command, Quarantine) for command in wanted)
        dropped += sum(isinstance(command, Drop) for command in wanted)
        world.run_to_end()
        world.replay()
    if name in POPULATIONS:
        assert min(aside, dropped) >= 10
        assert min(found[why] for why in (Why.REPLACED, Why.NO_SOURCE, Why.RETURNED)) >= 10
