"""What every scheduler keeps to: legal actions, rising targets, nothing stranded, an end, same calls same answers.

`World` plays the study: it does what the scheduler says, checks every answer, and makes trouble on demand.
A new scheduler is one line in `SETTINGS`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from raytuner.actions import Action, Done, Resume, Start, Stop, Wait
from raytuner.protocols import Scheduler, SchedulingPolicy
from raytuner.schedulers import SCHEDULERS, AsyncHyperBandScheduler, FIFOScheduler, HyperBandForBOHB, HyperBandScheduler
from raytuner.schedulers.rungs import brackets
from raytuner.trial import END, Failure, Observation, Why

SETTINGS: dict[str, SchedulingPolicy] = {
    "fifo": FIFOScheduler(),
    "asha": AsyncHyperBandScheduler(),
    "asha 2": AsyncHyperBandScheduler(max_t=27, grace_period=2, reduction_factor=2),
    "asha to the end": AsyncHyperBandScheduler(max_t=9, reduction_factor=3, stop_last_trials=False),
    "asha without rungs": AsyncHyperBandScheduler(max_t=5, grace_period=5),
    "asha brackets": AsyncHyperBandScheduler(max_t=27, reduction_factor=3, brackets=3),
    "asha too many brackets": AsyncHyperBandScheduler(max_t=4, reduction_factor=2, brackets=6),
    "hyperband": HyperBandScheduler(),
    "hyperband 9": HyperBandForBOHB(max_t=9),
    "hyperband 2": HyperBandScheduler(max_t=10, reduction_factor=2),
    "hyperband to the end": HyperBandScheduler(max_t=9, stop_last_trials=False),
    "hyperband grace": HyperBandScheduler(max_t=27, grace_period=3),
    "hyperband one step": HyperBandScheduler(max_t=1),
}

Call = Callable[[Scheduler], Any]


@dataclass
class Standing:
    """Where a trial is: on its way to ``until``, last seen at ``level``."""

    until: int
    level: float = 0.0
    value: float | None = None
    said: Observation | None = None


class World:
    """Does what a scheduler says, and checks that it may be said."""

    def __init__(self, policy: SchedulingPolicy, seed: int, slots: int, trials: int) -> None:
        self.policy = policy
        self.seed = seed
        self.slots = slots
        self.trials = trials
        self.scheduler = policy.build(seed)
        self.started = 0
        self.proposing: dict[int, Standing] = {}  # started, and waits for its configuration
        self.running: dict[int, Standing] = {}
        self.paused: dict[int, Standing] = {}
        self.over: dict[int, Why | None] = {}
        self.unserved: set[int] = set()
        self.closed = False
        self.done = False
        self.resumed: dict[int, list[int]] = {}  # the targets of each trial's Resumes
        self.log: list[tuple[Call, Any]] = []

    # ---- the study's side

    def call(self, call: Call) -> Any:
        answer = call(self.scheduler)
        self.log.append((call, answer))
        return answer

    def free(self) -> bool:
        return not self.done and len(self.running) + len(self.proposing) < self.slots

    def ask(self) -> Action:
        """Offer a free slot."""
        action: Action = self.call(lambda s: s.next())
        match action:
            case Start(trial, until):
                assert not self.closed
                assert trial == self.started
                assert until > 0
                self.started += 1
                self.proposing[trial] = Standing(until)
                if self.started == self.trials:
                    self.close()
            case Resume(trial, until):
                standing = self.paused.pop(trial)
                assert until > standing.until
                assert until > standing.level
                self.running[trial] = Standing(until, standing.level, standing.value, standing.said)
                self.resumed.setdefault(trial, []).append(until)
            case Wait():
                assert self.running or self.proposing, "a deadlock"
            case Done():
                assert self.closed
                assert not self.running | self.paused | self.proposing, "stranded"
                self.done = True
            case _:
                raise AssertionError(action)
        return action

    def serve(self, trial: int) -> None:
        """The searcher proposed a configuration: the trial runs."""
        self.running[trial] = self.proposing.pop(trial)

    def close(self) -> None:
        self.closed = True
        self._obey(self.call(lambda s: s.close()))

    def exhaust(self, unserved: Sequence[int]) -> None:
        """The searcher has no configuration any more, for these trials that wait for one neither."""
        self.closed = True
        self.unserved.update(unserved)
        for trial in unserved:
            del self.proposing[trial]
        self._obey(self.call(lambda s: s.close(unserved)))

    # ---- the trials' side

    def reach(self, trial: int, value: float | None, ahead: float = 0.0, ended: bool = False) -> None:
        """The lease ended at a report, ``ahead`` of its target. A trial that runs for ever returns some time."""
        standing = self.running[trial]
        if standing.until == END:
            self.end(trial, value, standing.level + ahead)
        else:
            self._say(trial, standing, standing.until + ahead, value, ended)

    def end(self, trial: int, value: float | None, level: float) -> None:
        """A running trial is over: it returned, met a stop rule, or failed for good (no value)."""
        self._say(trial, self.running[trial], level, value, ended=True)

    def end_paused(self, trial: int) -> None:
        """A paused trial is over, by somebody else's wish."""
        standing = self.paused[trial]
        self._say(trial, standing, standing.level, standing.value, ended=True)

    def repeat(self, trial: int) -> None:
        """The last thing that a trial said is said again."""
        said = (self.paused.get(trial) or self.running[trial]).said
        if said is not None:
            assert list(self.call(lambda s: s.judge(said))) == []

    def _say(self, trial: int, standing: Standing, level: float, value: float | None, ended: bool) -> None:
        seen = Observation(
            trial=trial,
            config={},
            step=int(level),
            level=level,
            until=standing.until,
            value=value,
            failure=Failure.ERROR if value is None else None,
            ended=ended,
        )
        self.running.pop(trial, None)
        self.paused.pop(trial, None)
        if ended:
            self.over[trial] = None
        else:
            self.paused[trial] = Standing(standing.until, level, value, seen)
        self._obey(self.call(lambda s: s.judge(seen)))
        if ended:  # word of a trial that is over changes nothing
            assert list(self.call(lambda s: s.judge(seen))) == []

    def _obey(self, stops: list[Stop]) -> None:
        for stop in stops:
            live = self.paused if stop.trial in self.paused else self.running
            del live[stop.trial]
            self.over[stop.trial] = stop.why

    # ---- the end

    def finish(self, value: Callable[[int], float | None] = lambda trial: float(trial % 3)) -> None:
        """Run on without trouble until the scheduler says that it is done."""
        for _ in range(40 * (self.trials + 1)):
            while self.free() and not isinstance(self.ask(), Wait):
                pass
            if self.done:
                break
            for trial in tuple(self.proposing):
                self.serve(trial)
            self.reach(next(iter(self.running)), value(next(iter(self.running))))
        self.check()

    def check(self) -> None:
        assert self.done, "the study did not end"
        assert self.closed
        assert self.over.keys() | self.unserved == set(range(self.started))
        assert not self.over.keys() & self.unserved
        assert self.scheduler.next() == Done()
        for targets in self.resumed.values():
            assert all(low < high for low, high in pairwise(targets))
        again = self.policy.build(self.seed)
        for call, answer in self.log:
            assert call(again) == answer
        if isinstance(self.policy, HyperBandScheduler):
            self.check_places(self.policy)

    def check_places(self, policy: HyperBandScheduler) -> None:
        """No rung of a Hyperband bracket promotes more trials than its table says."""
        table = brackets(policy.grace_period, policy.max_t, policy.reduction_factor)
        first = turn = 0
        while first < self.started:
            bracket = table[turn % len(table)]
            members = range(first, first + bracket.size)
            sizes = bracket.sizes(policy.reduction_factor)
            for rung, (step, size) in enumerate(zip(bracket.steps, sizes, strict=True)):
                until = END if rung + 1 == len(sizes) and not policy.stop_last_trials else step
                runs = sum(until in self.resumed.get(trial, ()) for trial in members)
                assert runs <= size, f"{runs} trials of {members} were resumed to {until}, {size} may be"
            first += bracket.size
            turn += 1


def machine(policy: SchedulingPolicy) -> type[RuleBasedStateMachine]:
    """A Hypothesis machine that makes every kind of trouble, step by step; good at small counter-examples."""

    values = st.integers(0, 3).map(float)  # few, so that there are ties

    class Machine(RuleBasedStateMachine):
        @initialize(
            seed=st.integers(0, 2**32), slots=st.integers(1, 50), trials=st.integers(1, 60), least=st.integers(0, 60)
        )
        def begin(self, seed: int, slots: int, trials: int, least: int) -> None:
            self.world = World(policy, seed, slots, trials)
            self.least = least  # configurations that the searcher has for sure

        @precondition(lambda self: self.world.free())
        @rule(times=st.integers(1, 20))
        def ask(self, times: int) -> None:
            while times and self.world.free() and not isinstance(self.world.ask(), Wait):
                times -= 1

        @precondition(lambda self: self.world.proposing)
        @rule(data=st.data(), times=st.integers(1, 20))
        def serve(self, data: st.DataObject, times: int) -> None:
            for _ in range(min(times, len(self.world.proposing))):
                self.world.serve(data.draw(st.sampled_from(sorted(self.world.proposing))))

        @precondition(lambda self: self.world.running)
        @rule(data=st.data(), value=values, ahead=st.sampled_from([0, 0, 0, 0.5, 2, 30]), ended=st.booleans())
        def reach(self, data: st.DataObject, value: float, ahead: float, ended: bool) -> None:
            self.world.reach(data.draw(st.sampled_from(sorted(self.world.running))), value, ahead, ended)

        @precondition(lambda self: self.world.running)
        @rule(seen=st.lists(values, min_size=1, max_size=50))
        def reach_many(self, seen: list[float]) -> None:
            for trial, value in zip(sorted(self.world.running), seen, strict=False):
                self.world.reach(trial, value)

        @precondition(lambda self: self.world.running)
        @rule(data=st.data(), value=st.none() | values, part=st.floats(0, 1))
        def end(self, data: st.DataObject, value: float | None, part: float) -> None:
            trial = data.draw(st.sampled_from(sorted(self.world.running)))
            standing = self.world.running[trial]
            self.world.end(trial, value, standing.level + part * (min(standing.until, 200) - standing.level))

        @precondition(lambda self: self.world.running)
        @rule(data=st.data())
        def no_value(self, data: st.DataObject) -> None:
            self.world.reach(data.draw(st.sampled_from(sorted(self.world.running))), None)

        @precondition(lambda self: self.world.paused)
        @rule(data=st.data())
        def end_paused(self, data: st.DataObject) -> None:
            self.world.end_paused(data.draw(st.sampled_from(sorted(self.world.paused))))

        @precondition(lambda self: self.world.paused or self.world.running)
        @rule(data=st.data())
        def repeat(self, data: st.DataObject) -> None:
            self.world.repeat(data.draw(st.sampled_from(sorted({**self.world.paused, **self.world.running}))))

        @rule(slots=st.integers(0, 50))
        def resize(self, slots: int) -> None:
            self.world.slots = slots

        @precondition(lambda self: self.world.started >= self.least)
        @rule(data=st.data(), count=st.integers(0, 50))
        def exhaust(self, data: st.DataObject, count: int) -> None:
            self.world.exhaust(data.draw(st.permutations(sorted(self.world.proposing)))[:count])

        def teardown(self) -> None:
            if hasattr(self, "world"):
                self.world.slots = max(1, self.world.slots)
                self.world.finish()

    return Machine


@pytest.mark.timeout(600)  # a failure takes minutes to shrink
@pytest.mark.parametrize("name", SETTINGS)
def test_machine(name: str) -> None:
    run_state_machine_as_test(machine(SETTINGS[name]))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", SETTINGS)
@given(
    seed=st.integers(0, 2**32),
    slots=st.integers(1, 50),
    trials=st.integers(1, 300),
    trouble=st.sampled_from([0.0, 0.02, 0.3]),
    lazy=st.floats(0, 1),
)
@settings(deadline=None)
def test_long_runs(name: str, seed: int, slots: int, trials: int, trouble: float, lazy: float) -> None:
    """Whole studies, large enough to fill brackets several times; ``lazy``: how often a free slot is not offered."""
    chance = random.Random(seed)
    world = World(SETTINGS[name], seed, slots, trials)
    patience = 100 * (trials + 1)
    while not world.done and patience:
        patience -= 1
        while world.free() and chance.random() >= lazy and not isinstance(world.ask(), Wait):
            pass
        if world.proposing and chance.random() < 0.7:
            world.serve(chance.choice(sorted(world.proposing)))
        if world.running and chance.random() < 0.7:
            trial = chance.choice(sorted(world.running))
            if chance.random() < trouble:
                disturb(world, trial, chance)
            else:
                world.reach(trial, float(chance.randrange(9)))
    world.finish()


def disturb(world: World, trial: int, chance: random.Random) -> None:
    """One kind of trouble, mostly for this running trial."""
    match chance.randrange(6):
        case 0:
            world.reach(trial, 1.0, ahead=chance.choice([0.5, 3, 100]), ended=chance.random() < 0.3)
        case 1:
            world.end(trial, chance.choice([None, 0.0]), world.running[trial].level)
        case 2:
            world.reach(trial, None)
        case 3:
            world.repeat(trial)
        case 4 if world.paused:
            world.end_paused(chance.choice(sorted(world.paused)))
        case 5 if chance.random() < 0.02:
            world.exhaust(chance.sample(sorted(world.proposing), chance.randint(0, len(world.proposing))))


@pytest.mark.parametrize("name", SETTINGS)
def test_a_single_trial_runs_to_its_end(name: str) -> None:
    world = World(SETTINGS[name], seed=0, slots=4, trials=1)
    world.finish()
    assert world.over in ({0: None}, {0: Why.FULL_BUDGET})


@pytest.mark.parametrize("name", SETTINGS)
def test_a_study_without_configurations_ends(name: str) -> None:
    world = World(SETTINGS[name], seed=0, slots=4, trials=100)
    for _ in range(4):
        world.ask()
    world.exhaust([2, 0])
    world.exhaust([1, 3])
    world.finish()
    assert world.over == {}


@pytest.mark.parametrize("name", SETTINGS)
def test_an_open_scheduler_never_keeps_a_slot_waiting(name: str) -> None:
    world = World(SETTINGS[name], seed=0, slots=1000, trials=1001)
    assert all(isinstance(world.ask(), Start) for _ in range(1000))


@pytest.mark.parametrize("name", ["fifo", "asha", "hyperband"])
def test_many_trials_take_no_longer_each(name: str) -> None:
    """A scan of all trials or brackets in each call would take minutes here."""
    world = World(SETTINGS[name], seed=0, slots=1, trials=20_000)
    world.finish(value=lambda trial: float(hash((trial, 7)) % 10_007))


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_are_rebuilt_by_name(name: str) -> None:
    policy = SETTINGS[name]
    assert SCHEDULERS[type(policy).__name__](**vars(policy)) == policy


@pytest.mark.parametrize("name", SCHEDULERS)
def test_defaults_build(name: str) -> None:
    assert SCHEDULERS[name]().build(0).next() is not None


@pytest.mark.parametrize("cls", [AsyncHyperBandScheduler, HyperBandScheduler, HyperBandForBOHB])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"mode": "minimum"}, "mode='minimum': expected 'min', 'max'"),
        ({"max_t": 0}, "max_t=0: expected a whole number from 1"),
        ({"max_t": 8, "grace_period": 9}, "grace_period=9: expected a whole number from 1 to 8"),
        ({"grace_period": 0}, "grace_period=0: expected"),
        ({"reduction_factor": 1}, "reduction_factor=1: expected a whole number of at least 2"),
        ({"reduction_factor": 2.5}, "reduction_factor=2.5: expected"),
    ],
)
def test_wrong_settings_are_named(cls: type, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cls(**wrong)


def test_whole_floats_become_integers() -> None:
    policy = AsyncHyperBandScheduler(max_t=100.0, reduction_factor=4.0)  # type: ignore[arg-type]
    assert policy == AsyncHyperBandScheduler()
    assert type(policy.max_t) is type(policy.reduction_factor) is int
    with pytest.raises(ValueError, match="brackets=0: expected a whole number of at least 1"):
        AsyncHyperBandScheduler(brackets=0)
