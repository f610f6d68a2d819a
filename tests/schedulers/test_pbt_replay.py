"""Following a schedule again: the machine by hand, what it is read from, and what it refuses.

Replays of whole studies are in `tests.test_members`; that Ray reads the same from its files is in `test_pbt`.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raytuner.actions import Action, Done, Fork, Start, Stop, Wait
from raytuner.schedulers import PopulationBasedTrainingReplay
from raytuner.schedulers.pbt_replay import Replay
from raytuner.trial import END, Failure, Observation, Why

A, B, C = {"lr": 0.1}, {"lr": 0.2}, {"lr": 0.3}
SCHEDULE = [(0, A), (4, B), (9, C)]


def replayed(schedule: Any = SCHEDULE) -> Replay:
    return PopulationBasedTrainingReplay(schedule=schedule).build(0)


def at(trial: int, until: int, level: float | None = None, **more: Any) -> Observation:
    level = until if level is None else level
    return Observation(trial, {}, int(level), level, until, **{"value": 1.0, **more})


def all_of(machine: Replay) -> list[Action]:
    """Offer slots until there is nothing to do with them."""
    actions = []
    while not isinstance(action := machine.next(), Wait | Done):
        actions.append(action)
    return actions


def test_each_change_is_a_fork_of_the_trial_before() -> None:
    machine = replayed()
    assert machine.next() == Start(0, 4, A), "the searcher is not asked"
    machine.close()
    assert machine.next() == Wait()
    assert machine.judge(at(0, 4)) == []
    assert machine.next() == Fork(1, 0, B, 9, replaces=0)
    assert machine.judge(at(1, 9)) == []
    assert machine.next() == Fork(2, 1, C, END, replaces=1)
    assert machine.next() == Wait()
    assert machine.judge(replace(at(2, END, 12.0), ended=True)) == []
    assert machine.next() == Done()


def test_several_follow_it_beside_each_other() -> None:
    machine = replayed()
    assert [machine.next() for _ in range(3)] == [Start(trial, 4, A) for trial in range(3)]
    machine.judge(at(1, 4))
    assert machine.next() == Fork(3, 1, B, 9, replaces=1), "who has begun goes on first"
    machine.close()
    machine.judge(at(2, 4))
    machine.judge(at(0, 4))
    machine.judge(at(3, 9))
    assert all_of(machine) == [
        Fork(4, 2, B, 9, replaces=2),
        Fork(5, 0, B, 9, replaces=0),
        Fork(6, 3, C, END, replaces=3),
    ]


def test_a_schedule_of_one_configuration() -> None:
    machine = replayed([(0, A)])
    assert machine.next() == Start(0, END, A)
    machine.close()
    machine.judge(replace(at(0, END, 7.0), ended=True))
    assert machine.next() == Done()


@pytest.mark.parametrize(
    ("level", "expected"),
    [(4.0, Fork(1, 0, B, 9, 0)), (8.9, Fork(1, 0, B, 9, 0)), (9.0, Fork(1, 0, C, END, 0)), (20, Fork(1, 0, C, END, 0))],
)
def test_a_trial_that_skips_changes_goes_on_with_the_last(level: float, expected: Fork) -> None:
    machine = replayed()
    machine.next()
    machine.close()
    machine.judge(at(0, 4, level))
    assert machine.next() == expected


def test_word_that_comes_twice_changes_nothing() -> None:
    machine = replayed()
    machine.next()
    machine.close()
    machine.judge(at(0, 4))
    machine.judge(at(0, 4))
    assert len(all_of(machine)) == 1
    machine.judge(at(0, 4))
    machine.judge(at(1, 4))
    machine.judge(at(77, 4))
    assert all_of(machine) == []


@pytest.mark.parametrize("failure", [None, Failure.ERROR])
def test_a_trial_that_is_over_is_followed_by_none(failure: Failure | None) -> None:
    machine = replayed()
    machine.next()
    machine.next()
    machine.close()
    assert machine.judge(at(0, 4, 2.0, ended=True, failure=failure, value=None if failure else 1.0)) == []
    assert machine.next() == Wait()
    machine.judge(at(1, 4))
    assert machine.judge(replace(at(1, 4), ended=True)) == [], "while it waits, by somebody else's wish"
    assert machine.next() == Done()


def test_a_trial_that_saved_nothing_is_over_where_the_next_part_would_begin() -> None:
    machine = replayed()
    machine.next()
    machine.close()
    machine.judge(at(0, 4))
    fork = machine.next()
    assert machine.judge(at(1, 9, 0.0, value=None, ended=True)) == [Stop(0, Why.SCHEDULER_DONE)]
    assert fork == Fork(1, 0, B, 9, replaces=0)
    assert machine.next() == Done()
    # A fork that did begin, and failed, is no such case.
    machine = replayed()
    machine.next()
    machine.close()
    machine.judge(at(0, 4))
    machine.next()
    assert machine.judge(at(1, 9, 5.0, value=None, failure=Failure.ERROR, ended=True)) == []


def test_those_that_were_not_served_are_gone() -> None:
    machine = replayed()
    machine.next()
    machine.next()
    assert machine.close([1]) == []
    assert machine.close([1, 5]) == []
    machine.judge(at(0, 4, ended=True))
    assert machine.next() == Done()


# ------------------------------------------------------------------------------------------ what it is read from


def test_rays_policy_file(tmp_path: Path) -> None:
    path = tmp_path / "pbt_policy_ab12_00001.txt"
    rows = [
        ["9@perturbed[lr=1]", "5", 2, 2, {"lr": 9.0}, {"lr": 8.0}],  # of a member that was taken over itself
        ["1_lr=0.1", "0_lr=0.5", 4, 4, {"lr": 0.5, "layers": [8, 8]}, {"lr": 0.6, "layers": [8, 16]}],
        ["3_lr=0.2", "1_lr=0.1", 6, 8, {"lr": 0.6, "layers": [8, 16]}, {"lr": 0.7, "layers": [4, 4]}],
        ["2_lr=0.2", "3_lr=0.2", 7, 8, {"lr": 0.7, "layers": [4, 4]}, {"lr": 0.8, "layers": [4, 4]}],
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert PopulationBasedTrainingReplay(str(path)).schedule == (
        (0, {"lr": 0.5, "layers": [8, 8]}),
        (4, {"lr": 0.6, "layers": [8, 16]}),
        (8, {"lr": 0.8, "layers": [4, 4]}),  # of two changes at the same step the later one
    )


def test_a_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "policy.txt").write_text(json.dumps(["1", "0", 4, 4, A, B]) + "\n")
    assert PopulationBasedTrainingReplay("~/policy.txt").schedule == ((0, A), (4, B))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("no json\n", "is no policy file of Ray Tune's: Expecting value"),
        ('["1", "0", 4, 4, {}]\n', "is no policy file of Ray Tune's: not enough values to unpack"),
        ("5\n", "is no policy file of Ray Tune's: cannot unpack non-iterable int"),
        ('["1", "0", 4, 4, {}, {}]\n\n', "is no policy file of Ray Tune's"),
        ('["1", "0", 4, 0.5, {}, {}]\n', r"schedule=.*: expected steps that are whole numbers"),
        ('["1", "0", 4, 4, 7, {}]\n', r"schedule=.*: expected pairs of a step and a configuration"),
    ],
)
def test_what_is_no_policy_file(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "policy.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        PopulationBasedTrainingReplay(path)


def test_settings_are_the_schedule_wherever_it_came_from(tmp_path: Path) -> None:
    path = tmp_path / "policy.txt"
    path.write_text(json.dumps(["1", "0", 4, 4, A, {"shape": [1, 2]}]))
    policy = PopulationBasedTrainingReplay(path)
    assert policy == PopulationBasedTrainingReplay(schedule=[(0, A), (4, {"shape": [1, 2]})])
    path.unlink()
    exotic = PopulationBasedTrainingReplay(schedule=[(0, {"shape": (1, (2, 3)), "x": float("inf"), "$a": None})])
    for each in (policy, exotic):
        read = PopulationBasedTrainingReplay.from_json(json.loads(json.dumps(each.to_json())))
        assert read == each
        assert read.to_json() == each.to_json()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, "takes policy_file or schedule, and not both"),
        ({"policy_file": "a", "schedule": SCHEDULE}, "takes policy_file or schedule, and not both"),
        ({"policy_file": "/there/is/none"}, "policy_file='/there/is/none': there is no such file or folder"),
        ({"schedule": []}, "schedule=.*: expected steps that are whole numbers, the first 0"),
        ({"schedule": [(1, A)]}, "expected steps that are whole numbers, the first 0"),
        ({"schedule": [(0, A), (4.0, B)]}, "expected steps that are whole numbers"),
        ({"schedule": [(0, A), (True, B)]}, "expected steps that are whole numbers"),
        ({"schedule": [(0, A), (4, B), (4, C)]}, "expected steps that rise"),
        ({"schedule": [(0, A), (4, B), (3, C)]}, "expected steps that rise"),
        ({"schedule": [A, B]}, "expected pairs of a step and a configuration"),
        ({"schedule": [(0, 5)]}, "expected pairs of a step and a configuration"),
        ({"schedule": 5}, "schedule=5: expected pairs of a step and a configuration"),
        ({"schedule": [(0, {"act": max})]}, "config/act is <built-in function max>"),
    ],
)
def test_wrong_settings_are_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PopulationBasedTrainingReplay(**wrong)


def test_a_folder_that_holds_no_study(tmp_path: Path) -> None:
    from raytuner.record.folder import NoStudy

    with pytest.raises(NoStudy, match="there is no study in"):
        PopulationBasedTrainingReplay(tmp_path)
