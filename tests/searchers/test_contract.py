"""What every searcher must do. A new one is a line in `SEARCHERS_UNDER_TEST`.

Run as a module, it prints the life of every searcher in every space as JSON: how another process sees it.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytuner.actions import Proposal
from raytuner.history import History, Row
from raytuner.protocols import SearchAlgorithm, Searcher
from raytuner.searchers import BOHB, SEARCHERS, GridSearch, RandomSearch
from raytuner.space import Space, choice, loguniform, quniform, randint, uniform
from raytuner.trial import Config, Failure, Observation, Pending
from tests.searchers.warm_started import Forgetful, WarmStarted

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
}


def value_of(space: Space, config: Config) -> float:
    """A value to minimise that depends on every parameter."""
    x, _ = space.encode(config)
    return float(((x - 0.3) ** 2).sum())


def old_study() -> History:
    """An old study that searched all of `SPACES`: in each a few of its rows fit."""
    rows = []
    for space in map(Space, SPACES.values()):
        for i in range(6):
            config = space.sample(np.random.default_rng([11, i]))
            value = None if i == 5 else value_of(space, config)
            rows.append(Row(len(rows), 1 + 2 * (i % 2), value, config))
    return History("of all spaces", tuple(rows))


SEARCHERS_UNDER_TEST: dict[str, SearchAlgorithm] = {
    "random": RandomSearch(),
    "grid": GridSearch(),
    "bohb": BOHB(),
    "bohb, warm-started from a history": BOHB(warm_start=[old_study()]),
    "kde": BOHB(model="kde"),
    "kde, early": BOHB(model="kde", min_points_in_model=2, random_fraction=0.1, num_samples=16),
    "warm-started": WarmStarted(),
}

searchers = pytest.mark.parametrize("name", SEARCHERS_UNDER_TEST)
spaces = pytest.mark.parametrize("place", SPACES)


@dataclass(frozen=True)
class Asked:
    """An `ask` and its answer, as a journal would keep it."""

    trial: int
    until: int
    pending: tuple[Pending, ...]
    answer: Proposal


def seen(
    trial: int, config: Config, until: int, value: float | None, failure: Failure | None = None, ended: bool = False
) -> Observation:
    return Observation(
        trial, config, step=until, level=float(until), until=until, value=value, failure=failure, ended=ended
    )


def life(searcher: Searcher, space: Space, trials: int = 24) -> Iterator[Asked | Observation]:
    """What happens to a searcher: asked for each trial, told rungs 1 and 3, two trials late, of failures too."""
    running: list[Pending] = []
    for trial in range(trials + 2):
        if trial < trials:
            pending = tuple(running)
            answer = searcher.ask(trial, 1, pending)
            assert isinstance(answer, Proposal)
            yield Asked(trial, 1, pending, answer)
            running.append(Pending(trial, answer.config, 0, 1))
        if trial >= 2:
            over = running.pop(0)
            for outcome in outcomes(space, over.trial, over.config):
                searcher.tell(outcome)
                yield outcome


def outcomes(space: Space, trial: int, config: Config) -> list[Observation]:
    value = value_of(space, config)
    if trial % 6 == 5:
        return [seen(trial, config, 1, None, Failure.ERROR, ended=True)]
    if trial % 3 == 2:
        return [seen(trial, config, 1, value, ended=True)]
    return [seen(trial, config, 1, value), seen(trial, config, 3, value / 2, ended=True)]


def proposals(events: Iterator[Asked | Observation]) -> list[Proposal]:
    return [event.answer for event in events if isinstance(event, Asked)]


def as_json(found: list[Proposal]) -> Any:
    return json.loads(json.dumps([{"config": p.config, "note": p.note} for p in found], allow_nan=False))


def assert_plain(value: object) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            assert type(key) is str
            assert_plain(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            assert_plain(item)
    else:
        assert type(value) in (bool, int, float, str, type(None)), type(value)


@searchers
@spaces
def test_proposals_are_plain_values_inside_the_space_and_notes_are_json(name: str, place: str) -> None:
    space = Space(SPACES[place])
    found = proposals(life(SEARCHERS_UNDER_TEST[name].build(space, 0), space))
    assert len(found) == 24
    for proposal in found:
        assert space.contains(proposal.config)
        assert_plain(proposal.config)
        assert_plain(proposal.note)
        assert json.loads(json.dumps(proposal.note, allow_nan=False)) == proposal.note


@searchers
@spaces
def test_a_model_is_used_where_there_are_enough_outcomes(name: str, place: str) -> None:
    """Otherwise the other tests of this file say nothing about models."""
    space = Space(SPACES[place])
    notes = [p.note for p in proposals(life(SEARCHERS_UNDER_TEST[name].build(space, 0), space))]
    match SEARCHERS_UNDER_TEST[name]:
        case BOHB(min_points_in_model=None, warm_start=()) if len(space) > 20:
            assert all(note["origin"] == "random" for note in notes)
        case BOHB(model="joint") if len(space) == 0:
            assert all(note["origin"] == "random" for note in notes)
        case BOHB():
            assert any(note["origin"] == "model" for note in notes)
        case WarmStarted() if len(space) > 0:
            assert len({note["log_scale"] for note in notes}) > 5


@searchers
@spaces
def test_replay_equals(name: str, place: str) -> None:
    """A fresh machine that is told the record goes on as the machine that made it."""
    space = Space(SPACES[place])
    algorithm = SEARCHERS_UNDER_TEST[name]
    record = list(life(algorithm.build(space, 7), space))
    for cut in (0, 1, 2, len(record) // 3, len(record) // 2, len(record) - 1, len(record)):
        assert goes_on(algorithm.build(space, 7), record, cut) == [e for e in record[cut:] if isinstance(e, Asked)]


def goes_on(fresh: Searcher, record: list[Asked | Observation], cut: int) -> list[Asked]:
    """What a fresh machine answers after ``cut``, having been handed the record up to there."""
    answers = []
    for position, event in enumerate(record):
        match event:
            case Observation():
                fresh.tell(event)
            case Asked() if position < cut:
                note = json.loads(json.dumps(event.answer.note))
                fresh.recall(event.trial, event.until, event.pending, Proposal(event.answer.config, note))
            case Asked():
                answer = fresh.ask(event.trial, event.until, event.pending)
                assert isinstance(answer, Proposal)
                answers.append(Asked(event.trial, event.until, event.pending, answer))
    return answers


def test_the_replay_test_bites() -> None:
    space = Space(SPACES["mixed"])
    record = list(life(Forgetful().build(space, 7), space))
    cut = len(record) // 2
    expected = [e for e in record[cut:] if isinstance(e, Asked)]
    found = goes_on(Forgetful().build(space, 7), record, cut)
    assert all(a.answer.config != b.answer.config for a, b in zip(found[:5], expected[:5], strict=True))


def test_same_seed_same_proposals_in_another_process() -> None:
    here = lives()
    root = Path(__file__).parents[2]
    for hash_seed in ("1", "2"):
        there = subprocess.run(
            [sys.executable, "-m", "tests.searchers.test_contract"],
            cwd=root,
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            check=True,
            text=True,
        )
        assert json.loads(there.stdout) == here


def lives() -> Any:
    found = {}
    for place, param_space in SPACES.items():
        space = Space(param_space)
        for name, algorithm in SEARCHERS_UNDER_TEST.items():
            found[f"{name} / {place}"] = as_json(proposals(life(algorithm.build(space, 3), space)))
    return found


@searchers
def test_another_seed_other_proposals(name: str) -> None:
    space = Space(SPACES["mixed"])
    one, two = (proposals(life(SEARCHERS_UNDER_TEST[name].build(space, seed), space)) for seed in (0, 1))
    chosen = [(a, b) for a, b in zip(one, two, strict=True) if a.note.get("origin") != "portfolio"]
    assert len(chosen) >= 20
    assert all(a.config != b.config for a, b in chosen)


@searchers
@spaces
@pytest.mark.parametrize(
    "values",
    [
        pytest.param([], id="no data"),
        pytest.param([1.0], id="one"),
        pytest.param([None] * 12, id="all failed"),
        pytest.param([None] * 11 + [1.0], id="all failed but one"),
        pytest.param([2.0] * 12, id="constant"),
        pytest.param([1e300, -1e300, 1e-300] * 4, id="huge"),
        pytest.param([math.nan, math.inf, 0.0, 1.0] * 3, id="not finite"),
    ],
)
@pytest.mark.parametrize("same", [False, True], ids=["different configurations", "one configuration"])
def test_odd_data(name: str, place: str, values: list[float | None], same: bool) -> None:
    space = Space(SPACES[place])
    searcher = SEARCHERS_UNDER_TEST[name].build(space, 0)
    configs = proposals(life(RandomSearch().build(space, 1), space, trials=max(len(values), 1)))
    for trial, value in enumerate(values):
        config = configs[0 if same else trial].config
        for _ in range(2):  # told twice
            searcher.tell(seen(trial, config, 1, value, None if value is not None else Failure.NOT_FINITE))
    for trial in range(100, 104):
        answer = searcher.ask(trial, 1, [])
        assert isinstance(answer, Proposal)
        assert space.contains(answer.config)
        json.dumps(answer.note, allow_nan=False)


@searchers
@given(data=st.data())
def test_whatever_is_told_proposals_stay_inside_the_space(name: str, data: st.DataObject) -> None:
    """Rungs in any order, reports of trials it never proposed, failures, values of any size."""
    space = Space(SPACES["mixed"])
    searcher = SEARCHERS_UNDER_TEST[name].build(space, data.draw(st.integers(0, 2**63 - 1)))
    source = RandomSearch().build(space, 5)
    told = st.tuples(st.integers(0, 30), st.sampled_from([1, 3, 9, 2**53]), st.none() | st.floats(width=32))
    for trial, until, value in data.draw(st.lists(told, max_size=40)):
        searcher.tell(seen(trial, ask(source, trial).config, until, value))
    assert space.contains(ask(searcher, data.draw(st.integers(0, 2**31))).config)


def ask(searcher: Searcher, trial: int) -> Proposal:
    answer = searcher.ask(trial, 1, [])
    assert isinstance(answer, Proposal)
    return answer


@searchers
def test_configurations_from_outside_the_space_are_passed_over(name: str) -> None:
    """A fork's configuration is the scheduler's, and may lie beyond a bound."""
    space = Space(SPACES["one dimension"])
    told, untold = (SEARCHERS_UNDER_TEST[name].build(space, 0) for _ in range(2))
    for trial in range(20):
        for searcher in (told, untold):
            searcher.tell(seen(trial, {"x": trial / 20}, 1, trial / 20))
        told.tell(seen(100 + trial, {"x": 1.5 + trial}, 1, -1.0))
    assert [ask(told, trial) for trial in range(200, 210)] == [ask(untold, trial) for trial in range(200, 210)]


@searchers
def test_settings_are_rebuilt_from_their_name_and_arguments(name: str) -> None:
    settings = SEARCHERS_UNDER_TEST[name]
    kinds = SEARCHERS | {"WarmStarted": WarmStarted}
    arguments = json.loads(json.dumps(asdict(settings)))  # type: ignore[call-overload]
    assert kinds[type(settings).__name__](**arguments) == settings


if __name__ == "__main__":
    print(json.dumps(lives()))
