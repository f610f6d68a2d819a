"""What every scheduler keeps to: legal actions, rising targets, nothing stranded, an end, same calls same answers.

`World` plays the study: it does what the scheduler says, checks every answer, and makes trouble on demand.
A new scheduler is one line in `SETTINGS`.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from raytuner.actions import Action, Done, Fork, Resume, Start, Stop, Wait
from raytuner.protocols import Scheduler, SchedulingPolicy
from raytuner.schedulers import (
    PB2,
    SCHEDULERS,
    AsyncHyperBandScheduler,
    FIFOScheduler,
    HyperBandForBOHB,
    HyperBandScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    PopulationBasedTrainingReplay,
    ResourceChangingScheduler,
)
from raytuner.schedulers.rungs import brackets
from raytuner.space import choice, loguniform, uniform
from raytuner.spelling import make, spell
from raytuner.trial import END, Config, Failure, Observation, Why
from tests.conftest import CHAOS_CASES

CONFIG = {"lr": 0.01, "width": 16, "optimizer": {"name": "sgd", "momentum": 0.5}}
MUTATIONS = {  # of a space such as that of `tests.lives`
    "lr": loguniform(1e-4, 1.0),
    "width": [8, 16, 32],
    "optimizer": choice([{"name": "sgd", "momentum": uniform(0, 0.99)}, {"name": "adam"}]),
}

SETTINGS: dict[str, SchedulingPolicy] = {
    "fifo": FIFOScheduler(),
    "asha": AsyncHyperBandScheduler(),
    "asha 2": AsyncHyperBandScheduler(max_t=27, grace_period=2, reduction_factor=2),
    "asha to the end": AsyncHyperBandScheduler(max_t=9, reduction_factor=3, stop_last_trials=False),
    "asha without rungs": AsyncHyperBandScheduler(max_t=5, grace_period=5),
    "asha brackets": AsyncHyperBandScheduler(max_t=27, reduction_factor=3, brackets=3),
    "asha too many brackets": AsyncHyperBandScheduler(max_t=4, reduction_factor=2, brackets=6),
    "asha promotion": AsyncHyperBandScheduler(promotion=True),
    "asha promotion 2": AsyncHyperBandScheduler(max_t=27, grace_period=2, reduction_factor=2, promotion=True),
    "asha promotion brackets": AsyncHyperBandScheduler(max_t=27, reduction_factor=3, brackets=3, promotion=True),
    "asha promotion to the end": AsyncHyperBandScheduler(
        max_t=9, reduction_factor=3, stop_last_trials=False, promotion=True
    ),
    "hyperband": HyperBandScheduler(),
    "hyperband 9": HyperBandForBOHB(max_t=9),
    "hyperband 2": HyperBandScheduler(max_t=10, reduction_factor=2),
    "hyperband to the end": HyperBandScheduler(max_t=9, stop_last_trials=False),
    "hyperband grace": HyperBandScheduler(max_t=27, grace_period=3),
    "hyperband one step": HyperBandScheduler(max_t=1),
    "median": MedianStoppingRule(time_attr="training_iteration", grace_period=3),
    "median hyperband": MedianStoppingRule(
        time_attr="training_iteration",
        grace_period=2,
        min_samples_required=2,
        scheduler=HyperBandScheduler(max_t=27),
    ),
    "pbt": PopulationBasedTraining(perturbation_interval=5, hyperparam_mutations=MUTATIONS),
    "pbt half": PopulationBasedTraining(
        perturbation_interval=3,
        burn_in_period=7,
        quantile_fraction=0.5,
        resample_probability=0.0,
        perturbation_factors={"lr": (0.5, 2.0)},
        hyperparam_mutations=MUTATIONS,
    ),
    "pbt tournament": PopulationBasedTraining(
        perturbation_interval=4, exploit="binary_tournament", hyperparam_mutations=MUTATIONS
    ),
    "pbt synch": PopulationBasedTraining(perturbation_interval=5, synch=True, hyperparam_mutations=MUTATIONS),
    "pbt synch tournament": PopulationBasedTraining(
        perturbation_interval=4, exploit="binary_tournament", synch=True, hyperparam_mutations=MUTATIONS
    ),
    "pb2": PB2(perturbation_interval=4, hyperparam_bounds={"lr": [1e-4, 1.0], "width": choice([8, 16, 32])}),
    "pb2 synch": PB2(perturbation_interval=5, synch=True, hyperparam_bounds={"lr": loguniform(1e-4, 1.0)}),
    "resource changing": ResourceChangingScheduler(),
    "resource changing asha": ResourceChangingScheduler(AsyncHyperBandScheduler(max_t=9, reduction_factor=3)),
    "pbt replay": PopulationBasedTrainingReplay(schedule=[(0, CONFIG), (4, {**CONFIG, "lr": 0.2}), (9, CONFIG)]),
}

LENGTH = 60
"""Where trials end that the scheduler itself would let run for ever."""

NOTHING_WITHOUT = {"PB2", "PopulationBasedTraining", "PopulationBasedTrainingReplay"}
"""Schedulers that must be told something."""

Call = Callable[[Scheduler], Any]


@pytest.fixture(scope="module", autouse=True)
def any_model() -> Iterator[None]:
    """What a model proposes is no matter here, and a Gaussian process at every fork takes its time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("raytuner.models.time_varying_bandit.suggest", lambda space, *rest: space.sample(rest[-1]))
        yield


@dataclass
class Standing:
    """Where a trial is: on its way to ``until``, last seen at ``level``."""

    until: int
    config: Config
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
        self.numbered = 0  # forks are trials too
        self.lacking = 0  # so many of the next forks find no checkpoint
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
            case Start(trial, until, config):
                assert not self.closed
                assert trial == self.numbered
                assert until > 0
                self.started += 1
                self.numbered += 1
                where = self.proposing if config is None else self.running
                where[trial] = Standing(until, CONFIG if config is None else config)
                if self.started == self.trials:
                    self.close()
            case Resume(trial, until):
                standing = self.paused.pop(trial)
                assert until > standing.until
                assert until > standing.level
                self.running[trial] = replace(standing, until=until)
                self.resumed.setdefault(trial, []).append(until)
            case Fork():
                self.fork(action)
            case Wait():
                assert self.running or self.proposing, "a deadlock"
            case Done():
                assert self.closed
                assert not self.running | self.paused | self.proposing, "stranded"
                self.done = True
            case _:
                raise AssertionError(action)
        return action

    def fork(self, fork: Fork) -> None:
        assert self.scheduler.forks
        assert fork.trial == self.numbered
        self.numbered += 1
        source = self.paused.get(fork.source) or self.running[fork.source]
        assert source.said is not None, "it was at no rung"
        assert fork.until > source.said.level
        assert fork.replaces in self.paused
        if self.lacking:
            self.lacking -= 1
            self.over[fork.trial] = Why.NO_SOURCE
            seen = Observation(fork.trial, fork.config, 0, 0.0, fork.until, None, ended=True)
            self._obey(self.call(lambda s: s.judge(seen)))
            return
        self.running[fork.trial] = Standing(fork.until, fork.config, source.said.level, source.said.value)
        del self.paused[fork.replaces]
        self.over[fork.replaces] = Why.REPLACED

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
        if standing.until == END or (self.scheduler.forks and standing.until > LENGTH):
            self.end(trial, value, standing.level + ahead)
        else:
            self._say(trial, standing, standing.until + ahead, value, ended)

    def report(self, trial: int, value: float, part: float = 0.5) -> None:
        """A running trial speaks on its way, which only some schedulers hear of."""
        standing = self.running[trial]
        level = standing.level + part * (min(standing.until, standing.level + LENGTH) - standing.level)
        if self.scheduler.every_report and standing.level < level < standing.until:
            self.running[trial] = replace(standing, level=level, value=value)
            self._hear(self._seen(trial, standing, level, value), running=True)

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
        seen = self._seen(trial, standing, level, value, ended)
        if self.scheduler.every_report and level > standing.level and value is not None and trial in self.running:
            self._hear(replace(seen, ended=False), running=True)  # its last report, before its end
            if trial in self.over:
                return
        self.running.pop(trial, None)
        self.paused.pop(trial, None)
        if ended:
            self.over[trial] = None
        else:
            self.paused[trial] = replace(standing, level=level, value=value, said=seen)
        self._hear(seen)
        if ended:  # word of a trial that is over changes nothing
            assert list(self.call(lambda s: s.judge(seen))) == []

    def _seen(
        self, trial: int, standing: Standing, level: float, value: float | None, ended: bool = False
    ) -> Observation:
        return Observation(
            trial=trial,
            config=standing.config,
            step=int(level),
            level=level,
            until=standing.until,
            value=value,
            failure=Failure.ERROR if value is None else None,
            ended=ended,
        )

    def _hear(self, seen: Observation, running: bool = False) -> None:
        heard = replace(seen, running=running)
        self._obey(self.call(lambda s: s.judge(heard)))

    def _obey(self, stops: Sequence[Stop]) -> None:
        for stop in stops:
            live = self.paused if stop.trial in self.paused else self.running
            del live[stop.trial]
            self.over[stop.trial] = stop.why

    # ---- the end

    def finish(self, value: Callable[[int], float | None] = lambda trial: float(trial % 3)) -> None:
        """Run on without trouble until the scheduler says that it is done."""
        self.lacking = 0
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
        assert self.over.keys() | self.unserved == set(range(self.numbered))
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


def machine(policy: SchedulingPolicy, ran: Counter[str] | None = None) -> type[RuleBasedStateMachine]:
    """A Hypothesis machine that makes every kind of trouble, step by step; good at small counter-examples.

    ``ran`` counts its cases.
    """

    values = st.integers(0, 3).map(float)  # few, so that there are ties

    class Machine(RuleBasedStateMachine):
        @initialize(
            seed=st.integers(0, 2**32),
            slots=st.integers(1, 50),
            trials=st.integers(1, 60),
            least=st.integers(0, 60),
        )
        def begin(self, seed: int, slots: int, trials: int, least: int) -> None:
            self.world = World(policy, seed, slots, trials)
            self.least = least  # configurations that the searcher has for sure
            if ran is not None:
                ran["step by step"] += 1

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

        @precondition(lambda self: self.world.running and self.world.scheduler.every_report)
        @rule(data=st.data(), value=values, part=st.floats(0, 1))
        def report(self, data: st.DataObject, value: float, part: float) -> None:
            self.world.report(data.draw(st.sampled_from(sorted(self.world.running))), value, part)

        @precondition(lambda self: self.world.scheduler.forks)
        @rule(forks=st.integers(0, 3))
        def lack(self, forks: int) -> None:
            self.world.lacking = forks

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
    run_state_machine_as_test(machine(SETTINGS[name]), settings=settings(max_examples=20))


SIZES = {"seed": st.integers(0, 2**32), "slots": st.integers(1, 50), "lazy": st.floats(0, 1)}
TROUBLE = st.sampled_from([0.0, 0.02, 0.3])


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", SETTINGS)
@given(**SIZES, trials=st.integers(1, 300), trouble=TROUBLE)
@settings(deadline=None, max_examples=20)
def test_long_runs(name: str, seed: int, slots: int, trials: int, trouble: float, lazy: float) -> None:
    """Whole studies, large enough to fill brackets several times."""
    run(SETTINGS[name], seed, slots, trials, trouble, lazy)


def run(policy: SchedulingPolicy, seed: int, slots: int, trials: int, trouble: float, lazy: float) -> None:
    """A whole study; ``lazy``: how often a free slot is not offered, ``trouble``: how often something goes wrong."""
    chance = random.Random(seed)
    world = World(policy, seed, slots, trials)
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
            elif world.scheduler.every_report and chance.random() < 0.5:
                world.report(trial, float(chance.randrange(9)))
            else:
                world.reach(trial, float(chance.randrange(9)))
    world.finish()


def disturb(world: World, trial: int, chance: random.Random) -> None:
    """One kind of trouble, mostly for this running trial."""
    match chance.randrange(7):
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
        case 6:
            world.lacking += 1


def whole_runs(policy: SchedulingPolicy, many: settings, ran: Counter[str]) -> None:
    @given(**SIZES, trials=st.integers(1, 60), trouble=TROUBLE)
    @many
    def run_of(**case: Any) -> None:
        ran["whole runs"] += 1
        run(policy, **case)

    run_of()


@pytest.mark.chaos
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("scheduler", sorted({type(policy).__name__ for policy in SETTINGS.values()}))
def test_many_cases(scheduler: str, capsys: pytest.CaptureFixture[str]) -> None:
    """So many cases of each scheduler, over all its settings: a quarter of them step by step, the others whole runs."""
    own = [name for name, policy in SETTINGS.items() if type(policy).__name__ == scheduler]
    each = -(-CHAOS_CASES // (4 * len(own)))
    ran = Counter[str]()
    for name in own:
        policy = SETTINGS[name]
        many = settings(settings.get_profile("chaos"), max_examples=each, deadline=None)
        run_state_machine_as_test(machine(policy, ran), settings=many)
        whole_runs(policy, settings(many, max_examples=3 * each), ran)
    with capsys.disabled():
        print(f" {ran.total():,} cases of {scheduler} in {len(own)} settings: {dict(ran)}", flush=True)
    assert ran.total() >= CHAOS_CASES


@pytest.mark.parametrize("name", SETTINGS)
def test_a_single_trial_runs_to_its_end(name: str) -> None:
    world = World(SETTINGS[name], seed=0, slots=4, trials=1)
    world.finish()
    assert list(world.over.values())[-1] in (None, Why.FULL_BUDGET)
    assert set(list(world.over.values())[:-1]) <= {Why.REPLACED}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_study_without_configurations_ends(name: str) -> None:
    world = World(SETTINGS[name], seed=0, slots=4, trials=100)
    for _ in range(4):
        world.ask()
    asked = [trial for trial in (2, 0, 1, 3) if trial in world.proposing]
    world.exhaust(asked[:2])
    world.exhaust(asked[2:])
    world.finish()
    assert len(world.unserved) == len(asked)


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
    assert make(spell(policy, SCHEDULERS), SCHEDULERS) == policy


@pytest.mark.parametrize("name", sorted(SCHEDULERS.keys() - NOTHING_WITHOUT))
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
