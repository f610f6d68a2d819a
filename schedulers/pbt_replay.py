"""A schedule that Population Based Training found, followed once more from the beginning.

What PBT returns is no configuration but a schedule of them: the winner's, those of whoever it took its weights from,
and so on back to one that was started. Here each trial that starts follows it: at each change a fork of it, from its
own checkpoint and with the next configuration, comes in its place; with the last one it runs to its own end.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

from raytuner.actions import Action, Done, Fork, Start, Stop, Wait
from raytuner.space import pack, plain, unpack
from raytuner.trial import END, Config, Observation, Why

Schedule = Sequence[tuple[int, Config]]
"""From which step on which configuration: the first from 0, the steps rising."""


@dataclass(frozen=True)
class PopulationBasedTrainingReplay:
    """Follow the schedule of a study's best result, or another; ``num_samples`` times. No metric is needed.

    Args:
        policy_file: a study's folder, or a policy file that Ray Tune wrote (``pbt_policy_….txt``).
        trial: whose schedule, in a study's folder; None: that of its best result.
        schedule: instead of both, the schedule itself: `raytuner.Result.schedule`.

    The steps are those of ``training_iteration``, whatever the study measured its intervals in.
    """

    policy_file: str | Path | None = None
    trial: str | int | None = None
    schedule: Schedule | None = None

    time_attr = "training_iteration"

    def __post_init__(self) -> None:
        if (self.policy_file is None) == (self.schedule is None):
            raise ValueError("PopulationBasedTrainingReplay takes policy_file or schedule, and not both")
        schedule = self.schedule
        if schedule is None:
            path = Path(str(self.policy_file)).expanduser()
            if not path.exists():
                raise ValueError(f"policy_file={str(path)!r}: there is no such file or folder")
            schedule = _of_study(path, self.trial) if path.is_dir() else _of_rays_file(path)
        object.__setattr__(self, "schedule", _checked(schedule))
        object.__setattr__(self, "policy_file", None)
        object.__setattr__(self, "trial", None)

    def build(self, seed: int) -> Replay:
        """A fresh scheduler; nothing in it is left to chance."""
        return Replay(self.schedule or ())

    def to_json(self) -> dict[str, Any]:
        """The settings as they stand in ``study.json``: the schedule, wherever it came from."""
        return {"schedule": [[step, pack(dict(config))] for step, config in self.schedule or ()]}

    @classmethod
    def from_json(cls, settings: Mapping[str, Any]) -> Self:
        """What `to_json` wrote down."""
        return cls(schedule=[(step, unpack(config)) for step, config in settings["schedule"]])


class Replay:
    """The machine behind `PopulationBasedTrainingReplay`."""

    every_report = False
    forks = True

    def __init__(self, schedule: Schedule) -> None:
        self._configs = [config for _, config in schedule]
        self._ends = [*(step for step, _ in schedule[1:]), END]  # of each configuration's part
        self._numbered = 0
        self._parts: dict[int, int] = {}  # live trials -> which part they are in
        self._ready: dict[int, float] = {}  # trials at the end of theirs, with their levels
        self._replaced: int | None = None  # by the last fork, which may have no source yet
        self._closed = False

    def next(self) -> Action:
        self._replaced = None
        if self._ready:
            trial, level = next(iter(self._ready.items()))
            self._forget(trial)
            self._replaced = trial
            part = bisect_right(self._ends, level)  # reports may skip a change
            return Fork(self._number(part), trial, self._configs[part], self._ends[part], replaces=trial)
        if not self._closed:
            return Start(self._number(0), self._ends[0], self._configs[0])
        return Wait() if self._parts else Done()

    def judge(self, seen: Observation) -> list[Stop]:
        part = self._parts.get(seen.trial)
        if part is None:
            return []
        if seen.ended:
            self._forget(seen.trial)
            if self._replaced is not None and seen.value is None and seen.failure is None:
                return [Stop(self._replaced, Why.SCHEDULER_DONE)]  # it saved nothing: the next part cannot go on
            return []
        if seen.until != self._ends[part] or seen.trial in self._ready:
            return []  # it was said before
        self._ready[seen.trial] = seen.level
        return []

    def close(self, unserved: Sequence[int] = ()) -> list[Stop]:
        self._closed = True
        for trial in unserved:
            self._forget(trial)
        return []

    def _number(self, part: int) -> int:
        self._numbered += 1
        self._parts[self._numbered - 1] = part
        return self._numbered - 1

    def _forget(self, trial: int) -> None:
        self._parts.pop(trial, None)
        self._ready.pop(trial, None)


def _checked(schedule: Any) -> Schedule:
    try:
        steps = [(step, dict(plain(config, "config"))) for step, config in schedule]
    except (TypeError, ValueError) as error:
        raise ValueError(f"schedule={schedule!r:.80}: expected pairs of a step and a configuration; {error}") from None
    if not steps or steps[0][0] != 0 or any(type(step) is not int for step, _ in steps):
        raise ValueError(f"schedule={schedule!r:.80}: expected steps that are whole numbers, the first 0")
    if any(one >= other for (one, _), (other, _) in pairwise(steps)):
        raise ValueError(f"schedule={schedule!r:.80}: expected steps that rise")
    return tuple(steps)


def _of_study(path: Path, trial: str | int | None) -> Schedule:
    from raytuner.results import ResultGrid

    results = ResultGrid(path)
    if trial is None:
        return results.get_best_result().schedule
    found = {result.trial_id: result for result in results.trials}
    if str(trial) not in found:
        raise ValueError(f"trial={trial!r}: the study in {path} has no such trial; it has {len(found)}")
    return found[str(trial)].schedule


def _of_rays_file(path: Path) -> Schedule:
    """Rows of (old tag, new tag, old step, new step, old configuration, new one), as JSON; the last ones that form a
    chain count."""
    changes: list[tuple[int, Config]] = []
    first: Config = {}
    expected = None
    try:
        for line in reversed(path.read_text(encoding="utf-8").splitlines()):
            old_tag, new_tag, _, step, first_so_far, config = json.loads(line)
            if expected is not None and old_tag != expected:
                break
            expected, first = new_tag, first_so_far
            changes.append((step, config))
    except (ValueError, TypeError) as error:
        raise ValueError(f"policy_file={str(path)!r} is no policy file of Ray Tune's: {error}") from None
    if not changes:
        raise ValueError(f"policy_file={str(path)!r} is empty")
    return list(dict([(0, first), *reversed(changes)]).items())  # of two changes at one step the later
