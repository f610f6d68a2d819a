"""A study that goes on for longer than was planned, or elsewhere: more trials, more steps, another stop, another space.

``Tuner.restore(path, train, extend=Extension(num_samples=200)).fit()``. What changes is one event in the journal
(`raytuner.events.Extended`); ``study.json`` stays as it was written. So a resume meets each extension where it
happened, and takes the decisions that were taken.

What can be extended by what:

- **More trials**: under every scheduler but populations, whose members are there from the beginning. Searchers go on
  where they stood.
- **More steps** (``max_t``): under ASHA, in both its forms. What was the last rung becomes one like the others: of the
  trials that were done there, the best go on from their checkpoints, as they would have at that rung.
- **Another stop rule**, of names and values: it holds for what runs from then on; whoever ended by the old one stays.
- **Another space**: the searcher is made anew for it and told all outcomes again; those that do not lie in it are not
  known to it. (CMA-ES and differential evolution learn only from what they proposed themselves: they begin afresh.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from raytuner.events import Extended
from raytuner.protocols import SchedulingPolicy, can_reopen
from raytuner.schedulers import AsyncHyperBandScheduler, FIFOScheduler

if TYPE_CHECKING:
    from raytuner.space import Space


@dataclass(frozen=True, kw_only=True)
class Extension:
    """What is to change of a study; None: nothing.

    ``num_samples``: as in `TuneConfig`, all in all, so more than before (-1: until the searcher has nothing more).
    ``max_t``: the scheduler's last rung, farther than before. ``stop``: metric names and values, in place of those
    before. ``param_space``: in place of the one before.
    """

    num_samples: int | None = None
    max_t: int | None = None
    stop: Mapping[str, float] | None = None
    param_space: Mapping[str, Any] | Space | None = None

    def __post_init__(self) -> None:
        trials: object = self.num_samples
        if trials is not None and trials != -1 and (type(trials) is not int or trials < 1):
            raise ValueError(f"num_samples must be a whole number of at least 1 (or -1), got {trials!r}")
        top: object = self.max_t
        if top is not None and (type(top) is not int or top < 1):
            raise ValueError(f"max_t must be a whole number of at least 1, got {top!r}")
        for name, most in (self.stop or {}).items():
            if not isinstance(name, str) or isinstance(most, bool) or not isinstance(most, (int, float)):
                raise ValueError(f"stop must hold metric names and numbers, got {name!r}: {most!r}")
        if all(each is None for each in (self.num_samples, self.max_t, self.stop, self.param_space)):
            raise ValueError("an Extension must change num_samples, max_t, stop or param_space; nothing was given")


EXTENDABLE = ("num_samples", "scheduler", "stop", "space")
"""What of ``study.json`` an extension can change."""


def longer(scheduler: SchedulingPolicy | None, max_t: int) -> SchedulingPolicy:
    """The same scheduler with a farther last rung."""
    if not isinstance(scheduler, AsyncHyperBandScheduler) or not scheduler.stop_last_trials:
        name = type(scheduler or FIFOScheduler()).__name__
        raise ValueError(f"max_t cannot be extended under {name}, only under ASHA with stop_last_trials")
    return replace(scheduler, max_t=max_t)


def check_possible(
    was: Mapping[str, Any], changes: Mapping[str, Any], scheduler: SchedulingPolicy, grid: bool, points: bool
) -> None:
    """Refuse changes that a study cannot go on with. ``was``: what it is; ``grid``: whether it searches one;
    ``points``: whether it was given some to begin with."""
    if "num_samples" in changes:
        before, now = was["num_samples"], changes["num_samples"]
        if before == -1 or -1 < now < before:
            raise ValueError(f"num_samples can only grow: the study has {before}, got {now}")
        if not can_reopen(scheduler.build(0)):
            name = type(scheduler).__name__
            raise ValueError(f"num_samples cannot be extended under {name}: its members are there from the beginning")
    tops = [each.get("scheduler", {}).get("args", {}).get("max_t", 0) for each in (was, changes)]
    if "scheduler" in changes and tops[1] < tops[0]:
        before, now = tops
        raise ValueError(f"max_t can only grow: the study has {before}, got {now}")
    if "stop" in changes and "function" in {**was["stop"], **changes["stop"]}:
        raise ValueError("stop cannot be replaced where it is, or would become, a rule that is code")
    if "space" in changes:
        if grid:
            raise ValueError("param_space cannot be replaced in a grid search: another grid is another study")
        if getattr(scheduler, "mutations", {}):
            raise ValueError(f"param_space cannot be replaced under {type(scheduler).__name__}")
        if points:
            raise ValueError("param_space cannot be replaced in a study with points_to_evaluate")


def extended(what: Mapping[str, Any], extensions: Iterable[Extended]) -> dict[str, Any]:
    """What a study is (`raytuner.record.folder.Folder.read`) once it was extended."""
    found = dict(what)
    for each in extensions:
        found |= each.changes
    return found
