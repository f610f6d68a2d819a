"""What every searcher must do, as tests: for raytuner's own, and for one of yours.

In a test file, for pytest:

    from raytuner.testing import SearcherContract

    class TestMine(SearcherContract):
        def algorithm(self):
            return MySearch(width=0.2)

To test several settings at once, override `algorithms`. Where ``build`` refuses a kind of space on purpose, leave it
out of `spaces`. Any other check that fails is a reason why a study with this searcher may be wrong, or may not resume;
``docs/searchers.md`` has the rules. Hypothesis is used where it is installed.

The checks ask and tell as a study with three slots would. They do not say whether a searcher finds anything.

``python -m raytuner.testing module:class`` prints how the algorithms of a contract live, and what their settings look
like: how another process sees them.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, is_dataclass
from operator import attrgetter
from typing import Any, ClassVar, overload

import numpy as np
import pytest

from raytuner.actions import Answer, Exhausted, Proposal, Wait
from raytuner.protocols import SearchAlgorithm, Searcher
from raytuner.space import Constraint, Space, choice, loguniform, ordinal, quniform, randint, randn, uniform
from raytuner.spelling import make, spell
from raytuner.trial import END, Config, Failure, Observation, Pending

__all__ = ["SPACES", "Asked", "SearcherContract", "life", "proposals"]

SPACES: dict[str, dict[str, Any]] = {
    "one dimension": {"x": uniform(-1, 1)},
    "sixty dimensions": {f"x{i}": uniform(0, i + 1) for i in range(60)},
    "only categoricals": {"a": choice(["p", "q"]), "b": choice([1, 2, 3, None]), "c": choice([True])},
    "all conditional": {
        "model": choice(
            [
                {"kind": "tree", "depth": randint(1, 9)},
                {"kind": "net", "lr": loguniform(1e-5, 1), "head": choice([{"width": randint(8, 64)}, "linear"])},
            ]
        )
    },
    "mixed": {
        "lr": loguniform(1e-5, 1),
        "dropout": quniform(0, 0.5, 0.1),
        "layers": randint(1, 5),
        "optimiser": {"name": choice(["sgd", "adam"]), "decay": loguniform(1e-6, 1e-2)},
        "epochs": 10,
        "data": {"name": "digits"},
    },
    "nothing to tune": {"x": 1, "y": {"z": "constant"}},
    "ordered": {
        "size": ordinal(["tiny", "small", 100, 1000.0]),
        "batch": ordinal([16, 32, 64]),
        "lr": loguniform(1e-5, 1),
    },
    "constrained": {
        "low": uniform(0, 1),
        "high": uniform(0, 1),
        "head": choice([{"width": randint(8, 64)}, "linear"]),
        "layers": randint(1, 9),
    },
    "with priors": {
        "lr": loguniform(1e-5, 1, prior=(1e-3, 0.5)),
        "decay": randn(0, 1, prior=(0.5, 0.7)),
        "layers": randint(1, 9, prior=(2, 0.8)),
        "size": ordinal(["s", "m", "l"], prior=("m", 0.5)),
        "act": choice(["relu", "gelu", "tanh"], prior=("gelu", 0.6)),
        "opt": choice([{"name": "sgd", "momentum": uniform(0, 1, prior=(0.9, 0.9))}, {"name": "adam"}]),
    },
}
"""Values of ``param_space``, by name."""

CONSTRAINTS: dict[str, list[Constraint]] = {
    "constrained": [
        lambda config: config["low"] < config["high"],
        lambda config: config["head"] == "linear" or config["head"]["width"] * config["layers"] < 200,
    ]
}
"""Of those that have any: a third of "constrained" is feasible."""

ODD_VALUES: dict[str, list[float | None]] = {
    "no data": [],
    "one": [1.0],
    "all failed": [None] * 12,
    "all failed but one": [None] * 11 + [1.0],
    "constant": [2.0] * 12,
    "huge": [1e300, -1e300, 1e-300] * 4,
    "not finite": [math.nan, math.inf, 0.0, 1.0] * 3,
}
"""What trials 0, 1, … may come to."""

TELLS, RUNGS = 10_000, (1, 3, 9, 27)


@dataclass(frozen=True)
class Asked:
    """An `ask` and its answer, as a journal would keep it."""

    trial: int
    until: int
    pending: tuple[Pending, ...]
    answer: Answer


class SearcherContract:
    """The tests; see the head of this file."""

    spaces: ClassVar[Mapping[str, Mapping[str, Any]]] = SPACES
    """What it is tested in, by name."""

    typical: ClassVar[str] = "mixed"
    """The space for checks that need one only."""

    def algorithm(self) -> SearchAlgorithm:
        """What a user would write as ``search_alg=``."""
        raise NotImplementedError(f"{type(self).__name__} needs a method algorithm() that returns a search algorithm")

    def algorithms(self) -> Mapping[str, SearchAlgorithm]:
        """All that are to be tested, by any name."""
        found = self.algorithm()
        return {type(found).__name__: found}

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Each test for each of the arguments it has: algorithms, spaces, odd values."""
        if "name" in metafunc.fixturenames:
            metafunc.parametrize("name", list(self.algorithms()))
        if "place" in metafunc.fixturenames:
            metafunc.parametrize("place", list(self.spaces))
        if "values" in metafunc.fixturenames:
            metafunc.parametrize("values", list(ODD_VALUES))

    def build(self, name: str, place: str, seed: int = 0) -> tuple[Searcher, Space]:
        """A fresh searcher, and its space."""
        space = Space(self.spaces[place], CONSTRAINTS.get(place, ()))
        return self.algorithms()[name].build(space, seed), space

    # ------------------------------------------------------------------------------------------- what it answers

    def test_proposals_are_plain_values_inside_the_space_and_notes_are_json(self, name: str, place: str) -> None:
        searcher, space = self.build(name, place)
        assert proposals(life(searcher, space)), "it proposed nothing at all"  # `life` checks each

    def test_what_it_was_given_and_what_it_gave_stay_as_they_were(self, name: str, place: str) -> None:
        """Configurations are dicts, and others have the same ones."""
        searcher, space = self.build(name, place)
        events = [(event, deepcopy(event)) for event in life(searcher, space)]
        for now, before in events:
            assert now == before, f"it changed later what is not its own any more: {before} became {now}"

    def test_odd_data(self, name: str, place: str, values: str) -> None:
        """Configurations that differ, then all the same one."""
        for same in (False, True):
            searcher, space = self.build(name, place)
            configs = samples(space, len(ODD_VALUES[values]))
            for trial, value in enumerate(ODD_VALUES[values]):
                config = configs[0 if same else trial]
                for _ in range(2):  # told twice
                    searcher.tell(seen(trial, config, 1, value, None if value is not None else Failure.NOT_FINITE))
            for trial in range(100, 104):
                check_answer(ask(searcher, trial), space)

    def test_whatever_is_told_proposals_stay_inside_the_space(self, name: str) -> None:
        """Rungs in any order, outcomes of trials it never proposed, failures, values of any size."""
        pytest.importorskip("hypothesis")
        from hypothesis import HealthCheck, given, settings
        from hypothesis import strategies as st

        source = samples(Space(self.spaces[self.typical]), 31)
        told = st.tuples(st.integers(0, 30), st.sampled_from([1, 3, 9, END]), st.none() | st.floats(width=32))

        @settings(deadline=None, suppress_health_check=list(HealthCheck))
        @given(st.integers(0, 2**63 - 1), st.lists(told, max_size=40), st.integers(0, 2**31))
        def check(seed: int, outcomes: list[tuple[int, int, float | None]], trial: int) -> None:
            searcher, space = self.build(name, self.typical, seed)
            for other, until, value in outcomes:
                searcher.tell(seen(other, source[other], until, value))
            check_answer(ask(searcher, trial), space)

        check()

    def test_configurations_from_outside_the_space_are_passed_over(self, name: str) -> None:
        """A fork's configuration is the scheduler's, and may lie beyond a bound."""
        space = Space(SPACES["one dimension"])
        told, untold = (self.algorithms()[name].build(space, 0) for _ in range(2))
        for trial in range(20):
            for searcher in (told, untold):
                searcher.tell(seen(trial, {"x": trial / 20}, 1, trial / 20))
            told.tell(seen(100 + trial, {"x": 1.5 + trial}, 1, -1.0))
        for trial in range(200, 210):
            with_it, without = ask(told, trial), ask(untold, trial)
            check_answer(with_it, space)
            assert with_it == without, (
                "outcomes of configurations that space.contains() denies made a difference; "
                f"it answered {with_it}, without them {without}"
            )

    def test_ten_thousand_tells(self, name: str) -> None:
        """A long study later it still answers."""
        searcher, space = self.build(name, self.typical)
        for trial, config in enumerate(samples(space, TELLS // len(RUNGS))):
            value = value_of(space, config)
            for until in RUNGS:
                searcher.tell(seen(trial, config, until, None if trial % 11 == 10 else value + 1 / until))
        for trial in range(TELLS, TELLS + 3):
            check_answer(ask(searcher, trial), space)

    # ------------------------------------------------------------------------------------ what its answers depend on

    def test_replay_equals(self, name: str, place: str) -> None:
        """A fresh machine that is told the record, and reminded of its answers, goes on as the machine that made it."""
        settings, space = self.algorithms()[name], Space(self.spaces[place])  # one object may serve many studies
        record = list(life(settings.build(space, 7), space))
        for cut in (0, 1, 2, len(record) // 3, len(record) // 2, len(record) - 1, len(record)):
            check_goes_on(settings.build(space, 7), record, cut)

    def test_same_seed_same_answers_in_another_process(self) -> None:
        """Twice, in processes that differ in hash seed, as those before and after a driver's death do."""
        here, there = (self._elsewhere(hash_seed) for hash_seed in ("1", "2"))
        for name, one in here.items():
            other = there[name]
            assert one["settings"] == other["settings"], (
                f"the settings of {name!r} are written into study.json and compared on resume, and look different in "
                f"every process; give them a repr that does not: {one['settings']}, {other['settings']}"
            )
            for place, answers in one["lives"].items():
                for index, (first, second) in enumerate(zip(answers, other["lives"][place], strict=False)):
                    assert first == second, (
                        f"{name!r} in {place!r}: the same seed and the same events, but two processes differ at answer "
                        f"{index}: {first}, {second}; does it iterate over a set, or use hash(), id() or the time?"
                    )

    def test_another_seed_other_proposals(self, name: str) -> None:
        one, two = (proposals(life(*self.build(name, self.typical, seed))) for seed in (0, 1))
        assert [p.config for p in one] != [p.config for p in two], "the seed that build() is given makes no difference"

    def test_settings_are_rebuilt_from_their_arguments(self, name: str) -> None:
        """As ``study.json`` has them of raytuner's own searchers, which are resumed without the script."""
        settings = self.algorithms()[name]
        kinds = {type(settings).__name__: type(settings)}
        try:
            spelled = spell(settings, kinds)
        except TypeError as error:
            pytest.skip(f"a study records the repr of these settings: {error}")
        if not is_dataclass(settings):
            pytest.skip("a study records the repr of settings that are no dataclass")
        rebuilt = make(spelled, kinds)
        assert rebuilt == settings, f"{settings} is recorded as {spelled['args']}, which makes {rebuilt}"

    def _elsewhere(self, hash_seed: str) -> Any:
        """What another process says of all algorithms."""
        cls = type(self)
        done = subprocess.run(
            [sys.executable, "-m", "raytuner.testing", f"{cls.__module__}:{cls.__qualname__}"],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            capture_output=True,
            check=False,
            text=True,
        )
        assert done.returncode == 0, f"{' '.join(done.args)} failed:\n{done.stderr}"
        return json.loads(done.stdout.splitlines()[-1])


# ------------------------------------------------------------------------------------------------ a searcher's life


def life(searcher: Searcher, space: Space, trials: int = 24) -> Iterator[Asked | Observation]:
    """What happens to a searcher: asked for each trial, told rungs 1 and 3, two trials late, of failures too."""
    running: list[Pending] = []
    trial = 0
    while trial < trials or running:
        waits = trial == trials
        if not waits:
            pending = tuple(running)
            before = deepcopy(pending)
            answer = searcher.ask(trial, 1, _View(running))
            assert pending == before, f"ask() changed what is pending, which is not its own: {before} became {pending}"
            yield Asked(trial, 1, pending, answer)
            match answer:
                case Proposal():
                    check_proposal(answer, space)
                    running.append(Pending(trial, answer.config, 0, 1))
                    trial += 1
                case Exhausted():
                    trial = trials
                case Wait():
                    waits = True
                    assert running, f"it answered Wait for trial {trial} with nothing pending: a study would be stuck"
                case _:
                    raise AssertionError(f"ask() must return Proposal(...), Wait() or Exhausted(), not {answer!r}")
        if running and (waits or len(running) > 2):
            over = running.pop(0)
            for outcome in outcomes(space, over.trial, over.config):
                as_told = deepcopy(outcome)
                searcher.tell(outcome)
                assert outcome == as_told, f"tell() changed what is not its own: {as_told} became {outcome}"
                yield outcome


class _View(Sequence[Pending]):
    """As a study has it: what is pending now, whenever it is looked at."""

    def __init__(self, running: list[Pending]) -> None:
        self._running = running

    def __len__(self) -> int:
        return len(self._running)

    @overload
    def __getitem__(self, index: int) -> Pending: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Pending]: ...
    def __getitem__(self, index: int | slice) -> Pending | Sequence[Pending]:
        return tuple(self._running)[index]


def outcomes(space: Space, trial: int, config: Config) -> list[Observation]:
    """What a trial comes to: every sixth fails, others end at rung 1 or at rung 3."""
    if trial % 6 == 5:
        return [seen(trial, config, 1, None, Failure.ERROR, ended=True)]
    value = value_of(space, config)
    if trial % 3 == 2:
        return [seen(trial, config, 1, value, ended=True)]
    return [seen(trial, config, 1, value), seen(trial, config, 3, value / 2, ended=True)]


def value_of(space: Space, config: Config) -> float:
    """A value to minimise that depends on every parameter."""
    x, _ = space.encode(config)
    return float(((x - 0.3) ** 2).sum())


def seen(
    trial: int, config: Config, until: int, value: float | None, failure: Failure | None = None, ended: bool = False
) -> Observation:
    """An outcome at a rung."""
    return Observation(
        trial, config, step=until, level=float(until), until=until, value=value, failure=failure, ended=ended
    )


def proposals(events: Iterable[Asked | Observation]) -> list[Proposal]:
    """Those among the answers of a life."""
    return [event.answer for event in events if isinstance(event, Asked) and isinstance(event.answer, Proposal)]


def samples(space: Space, count: int) -> list[Config]:
    """Configurations that the searcher did not propose."""
    return [space.sample(np.random.default_rng([1, trial])) for trial in range(count)]


def ask(searcher: Searcher, trial: int) -> Answer:
    """Ask with nothing pending."""
    return searcher.ask(trial, 1, ())


# ------------------------------------------------------------------------------------------------------ the checks


def check_answer(answer: Answer, space: Space) -> None:
    """To an ask with nothing pending."""
    match answer:
        case Proposal():
            check_proposal(answer, space)
        case Wait():
            raise AssertionError("it answered Wait with nothing pending: a study would be stuck")
        case Exhausted():
            pass
        case _:
            raise AssertionError(f"ask() must return Proposal(...), Wait() or Exhausted(), not {answer!r}")


def check_proposal(proposal: Proposal, space: Space) -> None:
    """That it can be written down and run."""
    check_plain(proposal.config, "config")
    try:
        space.check(proposal.config)
    except (TypeError, ValueError) as error:
        raise AssertionError(f"it proposed {proposal.config}, which is not in the space: {error}") from None
    assert space.feasible(proposal.config), f"it proposed {proposal.config}, which does not meet the constraints"
    check_plain(proposal.note, "note")
    try:
        back = json.loads(json.dumps(proposal.note, allow_nan=False))
    except ValueError as error:
        raise AssertionError(f"the note {proposal.note} is no JSON: {error}") from None
    assert back == proposal.note, f"the note {proposal.note} comes back from the journal as {back}"


def check_plain(value: object, where: str) -> None:
    """That it is made of plain Python values."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            assert type(key) is str, f"{where} has a key {key!r} of type {type(key).__name__}, expected str"
            check_plain(item, f"{where}[{key!r}]")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            check_plain(item, f"{where}[{index}]")
    else:
        assert type(value) in (bool, int, float, str, type(None)), (
            f"{where} is {value!r} of type {type(value).__name__}, expected a plain bool, int, float, str or None"
        )


def check_goes_on(fresh: Searcher, record: Sequence[Asked | Observation], cut: int) -> None:
    """That a fresh machine, handed the record up to ``cut``, answers from there on as the record says."""
    for position, event in enumerate(record):
        match event:
            case Observation():
                fresh.tell(event)
            case Asked() if position < cut:
                fresh.recall(event.trial, event.until, event.pending, from_journal(event.answer))
            case Asked():
                answer = fresh.ask(event.trial, event.until, event.pending)
                assert answer == event.answer, (
                    f"resumed after {cut} of {len(record)} events, it answered for trial {event.trial} {answer}, "
                    f"uninterrupted {event.answer}; what an ask changes and later ones depend on must be in the note, "
                    "and put back by recall()"
                )


def from_journal(answer: Answer) -> Answer:
    """As it is read back."""
    if isinstance(answer, Proposal):
        return Proposal(deepcopy(answer.config), json.loads(json.dumps(answer.note)))
    return answer


# ------------------------------------------------------------------------------------------------- another process


def main(where: str) -> None:
    """Print the lives of a contract's algorithms in all its spaces, and their settings, as JSON."""
    module, _, cls = where.partition(":")
    contract: SearcherContract = attrgetter(cls)(importlib.import_module(module))()
    found = {}
    for name, settings in contract.algorithms().items():
        lives = {place: life(*contract.build(name, place, seed=3)) for place in contract.spaces}
        found[name] = {
            "settings": spell(settings, {}),
            "lives": {
                place: [as_json(e.answer) for e in lived if isinstance(e, Asked)] for place, lived in lives.items()
            },
        }
    print(json.dumps(found))


def as_json(answer: Answer) -> Any:
    """An answer, for comparison."""
    if isinstance(answer, Proposal):
        return {"config": answer.config, "note": dict(answer.note)}
    return type(answer).__name__


if __name__ == "__main__":
    main(*sys.argv[1:])
