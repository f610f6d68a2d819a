"""The contract suite catches what it is there for: each broken searcher fails the check that names its defect."""

from __future__ import annotations

import inspect
import random
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest

from raytuner.actions import Answer, Exhausted, Proposal, Wait
from raytuner.protocols import SearchAlgorithm
from raytuner.space import Space
from raytuner.testing import ODD_VALUES, SPACES, SearcherContract
from raytuner.trial import Config, Observation, Pending
from tests.searchers.warm_started import Forgetful


@dataclass(frozen=True)
class Sound:
    """A searcher without a defect, for the others to have one: random, and after three outcomes near the best."""

    def build(self, space: Space, seed: int) -> Sound.Machine:
        return self.Machine(space, seed)

    class Machine:
        def __init__(self, space: Space, seed: int) -> None:
            self.space = space
            self.seed = seed
            self.told: list[tuple[float, Config]] = []

        def ask(self, trial: int, until: int, pending: Sequence[Pending]) -> Answer:
            rng = np.random.default_rng([self.seed, trial])
            if len(self.told) < 3:
                return Proposal(self.space.sample(rng), {"origin": "random"})
            x, _ = self.space.encode(min(self.told, key=lambda pair: pair[0])[1])
            return Proposal(self.space.decode(np.clip(x + rng.normal(0, 0.1, len(x)), 0, 1)), {"origin": "near"})

        def tell(self, seen: Observation) -> None:
            if seen.value is not None and self.space.contains(seen.config):
                self.told.append((seen.value, seen.config))

        def recall(self, trial: int, until: int, pending: Sequence[Pending], answer: Answer) -> None:
            pass


class KeepsAGenerator(Sound):
    class Machine(Sound.Machine):
        def __init__(self, space: Space, seed: int) -> None:
            super().__init__(space, seed)
            self.rng = np.random.default_rng(seed)

        def ask(self, trial: int, until: int, pending: Sequence[Pending]) -> Answer:
            return Proposal(self.space.sample(self.rng))


class KeepsPending(Sound):
    """Not what it was then, but what it is whenever it is looked at."""

    class Machine(Sound.Machine):
        pending: Sequence[Pending] = ()

        def ask(self, trial: int, until: int, pending: Sequence[Pending]) -> Answer:
            kept, self.pending = self.pending, pending
            return super().ask(trial + 1000 * len(kept), until, pending)

        def recall(self, trial: int, until: int, pending: Sequence[Pending], answer: Answer) -> None:
            self.pending = pending


class RemembersInSettings:
    """What one study is told, the next one knows."""

    def __init__(self) -> None:
        self.asked = 0

    def __repr__(self) -> str:
        return "RemembersInSettings()"

    def build(self, space: Space, seed: int) -> Any:
        outer = self

        class Machine(Sound.Machine):
            def ask(self, trial: int, until: int, pending: Sequence[Pending]) -> Answer:
                outer.asked += 1
                return super().ask(trial + outer.asked, until, pending)

        return Machine(space, seed)


class GoesByHashes(Sound):
    class Machine(Sound.Machine):
        def ask(self, trial: int, until: int, pending: Sequence[Pending]) -> Answer:
            return super().ask(hash(repr(trial)) & 0xFFFFFF, until, pending)


class GoesByASet(Sound):
    class Machine(Sound.Machine):
        def ask(self, trial: int, until: int, pending: Sequence[Pending]) -> Answer:
            names = {f"parameter {i}" for i in range(20)}
            return replace(super().ask(trial, until, pending), note={"first": next(iter(names))})


class GoesByTheTime(Sound):
    class Machine(Sound.Machine):
        def ask(self, trial: int, until: int, pending: Sequence[Pending]) -> Answer:
            return super().ask(time.time_ns() & 0xFFFFFFFF, until, pending)


class UsesGlobalChance(Sound):
    class Machine(Sound.Machine):
        def ask(self, trial: int, until: int, pending: Sequence[Pending]) -> Answer:
            return super().ask(random.getrandbits(32), until, pending)


class IsAnyObject:
    """Its repr has its address."""

    def __repr__(self) -> str:
        return object.__repr__(self)

    def build(self, space: Space, seed: int) -> Sound.Machine:
        return Sound.Machine(space, seed)


class IgnoresTheSeed(Sound):
    def build(self, space: Space, seed: int) -> Sound.Machine:
        return super().build(space, 0)


def altered(change: Any) -> type[Sound]:
    """A searcher whose proposals are changed before it gives them."""

    class Altered(Sound):
        class Machine(Sound.Machine):
            def ask(self, trial: int, until: int, pending: Sequence[Pending]) -> Answer:
                answer = super().ask(trial, until, pending)
                assert isinstance(answer, Proposal)
                return change(answer)

    return Altered


class ChangesPending(Sound):
    class Machine(Sound.Machine):
        def ask(self, trial: int, until: int, pending: Sequence[Pending]) -> Answer:
            for each in pending:
                each.config["seen"] = True  # type: ignore[index]
            return super().ask(trial, until, pending)


class ChangesWhatItIsTold(Sound):
    class Machine(Sound.Machine):
        def tell(self, seen: Observation) -> None:
            super().tell(replace(seen, config=dict(seen.config)))
            seen.config["layers"] = 1  # type: ignore[index]


class ChangesItsAnswers(Sound):
    """A note that it goes on writing to."""

    class Machine(Sound.Machine):
        def __init__(self, space: Space, seed: int) -> None:
            super().__init__(space, seed)
            self.asked: list[int] = []

        def ask(self, trial: int, until: int, pending: Sequence[Pending]) -> Answer:
            self.asked.append(trial)
            return Proposal(self.space.sample(np.random.default_rng([self.seed, trial])), {"asked": self.asked})

        def recall(self, trial: int, until: int, pending: Sequence[Pending], answer: Answer) -> None:
            self.asked.append(trial)


class RanksFailures(Sound):
    class Machine(Sound.Machine):
        def tell(self, seen: Observation) -> None:
            self.told.append((float(seen.value), seen.config))  # type: ignore[arg-type]


class DividesByTheSpread(Sound):
    class Machine(Sound.Machine):
        def ask(self, trial: int, until: int, pending: Sequence[Pending]) -> Answer:
            if len(self.told) > 1:
                values = [value for value, _ in self.told]
                _ = 1 / (max(values) - min(values))
            return super().ask(trial, until, pending)


class BelievesAnything(Sound):
    class Machine(Sound.Machine):
        def tell(self, seen: Observation) -> None:
            if seen.value is not None:
                x = seen.config.get("x")
                self.told.append((seen.value, {"x": min(x, 1.0)} if isinstance(x, float) else seen.config))


class AsksForMore(Sound):
    """It waits for outcomes, whether or not any are to come."""

    class Machine(Sound.Machine):
        def ask(self, trial: int, until: int, pending: Sequence[Pending]) -> Answer:
            return Wait() if len(self.told) < 3 else super().ask(trial, until, pending)


class GivesABareConfiguration(Sound):
    class Machine(Sound.Machine):
        def ask(self, trial: int, until: int, pending: Sequence[Pending]) -> Any:
            return self.space.sample(np.random.default_rng([self.seed, trial]))


class HasNothing(Sound):
    class Machine(Sound.Machine):
        def ask(self, trial: int, until: int, pending: Sequence[Pending]) -> Answer:
            return Exhausted()


def outside(proposal: Proposal) -> Proposal:
    return replace(proposal, config={**proposal.config, "layers": 5})


def numpy_scalars(proposal: Proposal) -> Proposal:
    return replace(proposal, config={**proposal.config, "lr": np.float64(0.1)})


def numpy_note(proposal: Proposal) -> Proposal:
    return replace(proposal, note={"scale": np.float32(0.1)})


def tuple_in_note(proposal: Proposal) -> Proposal:
    return replace(proposal, note={"point": (1, 2)})


def nan_in_note(proposal: Proposal) -> Proposal:
    return replace(proposal, note={"mean": float("nan")})


class Waits(Sound):
    """No defect: at most two at a time, and ten in all."""

    class Machine(Sound.Machine):
        def ask(self, trial: int, until: int, pending: Sequence[Pending]) -> Answer:
            if trial >= 10:
                return Exhausted()
            return Wait() if len(pending) >= 2 else super().ask(trial, until, pending)


def contract(algorithm: SearchAlgorithm) -> SearcherContract:
    class Contract(SearcherContract):
        def algorithm(self) -> SearchAlgorithm:
            return algorithm

        def algorithms(self) -> dict[str, SearchAlgorithm]:
            return {"": algorithm}

    return Contract()


PROPOSALS = SearcherContract.test_proposals_are_plain_values_inside_the_space_and_notes_are_json
UNCHANGED = SearcherContract.test_what_it_was_given_and_what_it_gave_stay_as_they_were
ODD = SearcherContract.test_odd_data
REPLAY = SearcherContract.test_replay_equals
OUTSIDE = SearcherContract.test_configurations_from_outside_the_space_are_passed_over


@pytest.mark.parametrize(
    ("broken", "check", "message", "arguments"),
    [
        pytest.param(broken, check, message, arguments, id=getattr(broken, "__name__", None) or message)
        for broken, check, message, *arguments in [
            (lambda: Forgetful(), REPLAY, "put back by recall"),
            (KeepsAGenerator, REPLAY, "resumed after"),
            (KeepsPending, REPLAY, "resumed after"),
            (RemembersInSettings, REPLAY, "resumed after"),
            (GoesByTheTime, REPLAY, "resumed after"),
            (UsesGlobalChance, REPLAY, "resumed after"),
            (IgnoresTheSeed, SearcherContract.test_another_seed_other_proposals, "seed .* makes no difference"),
            (altered(outside), PROPOSALS, "not in the space: .*layers"),
            (altered(numpy_scalars), PROPOSALS, r"config\['lr'\] is .*of type float64, expected a plain"),
            (altered(numpy_note), PROPOSALS, r"note\['scale'\] is .*of type float32"),
            (altered(tuple_in_note), PROPOSALS, "comes back from the journal as"),
            (altered(nan_in_note), PROPOSALS, "is no JSON"),
            (GivesABareConfiguration, PROPOSALS, r"must return Proposal\(...\), Wait\(\) or Exhausted\(\)"),
            (HasNothing, PROPOSALS, "nothing at all"),
            (AsksForMore, PROPOSALS, "Wait for trial 0 with nothing pending"),
            (ChangesPending, UNCHANGED, "changed what is pending"),
            (ChangesWhatItIsTold, UNCHANGED, "tell\\(\\) changed what is not its own"),
            (ChangesItsAnswers, UNCHANGED, "changed later what is not its own"),
            (RanksFailures, ODD, "NoneType", "all failed"),
            (DividesByTheSpread, ODD, "division by zero", "constant"),
            (AsksForMore, ODD, "Wait with nothing pending", "one"),
            (BelievesAnything, OUTSIDE, "made a difference"),
        ]
    ],
)
def test_a_defect_fails_its_check(broken: Any, check: Any, message: str, arguments: list[str]) -> None:
    with pytest.raises((AssertionError, TypeError, ZeroDivisionError), match=f"(?s){message}"):
        run(check, broken(), *arguments)


def run(check: Any, algorithm: SearchAlgorithm, values: str = "one") -> None:
    """One check in the space "mixed"."""
    possible = {"name": "", "place": "mixed", "values": values}
    wanted = list(inspect.signature(check).parameters)[1:]
    check(contract(algorithm), **{name: possible[name] for name in wanted})


class HashContract(SearcherContract):
    spaces: ClassVar = {"mixed": SPACES["mixed"]}
    broken: type[Any] = Sound

    def algorithms(self) -> dict[str, SearchAlgorithm]:
        return {"it": self.broken()}


class ByHashes(HashContract):
    broken = GoesByHashes


class ByASet(HashContract):
    broken = GoesByASet


class ByTheTime(HashContract):
    broken = GoesByTheTime


class AnyObject(HashContract):
    broken = IsAnyObject


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (ByHashes, "two processes differ at answer 0"),
        (ByASet, "does it iterate over a set"),
        (ByTheTime, "two processes differ at answer 0"),
        (AnyObject, "give them a repr that does not"),
    ],
)
def test_what_differs_between_processes_is_caught(found: type[SearcherContract], message: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(message)):
        found().test_same_seed_same_answers_in_another_process()


IN_PROCESSES = SearcherContract.test_same_seed_same_answers_in_another_process
CHECKS = [found for name, found in vars(SearcherContract).items() if name.startswith("test_")]


@pytest.mark.parametrize("sound", [Sound, Waits])
@pytest.mark.parametrize("check", [check for check in CHECKS if check is not IN_PROCESSES])
def test_a_sound_one_passes(sound: type[Sound], check: Any) -> None:
    for values in ODD_VALUES if "values" in inspect.signature(check).parameters else ["one"]:
        run(check, sound(), values)


def test_a_sound_one_passes_in_processes() -> None:
    HashContract().test_same_seed_same_answers_in_another_process()


def test_without_an_algorithm() -> None:
    with pytest.raises(NotImplementedError, match="needs a method algorithm"):
        SearcherContract().algorithms()
