"""What a scheduler may want. `raytuner.protocols.Scheduler` says when it is asked."""

from __future__ import annotations

from dataclasses import dataclass

from raytuner.trial import Config, Why


@dataclass(frozen=True, slots=True)
class Start:
    """Run a new trial to ``until``. Trials are numbered 0, 1, 2, … in the order of their `Start`s and `Fork`s."""

    trial: int
    until: int


@dataclass(frozen=True, slots=True)
class Resume:
    """Run a paused trial on to ``until``, an absolute step beyond where it stands."""

    trial: int
    until: int


@dataclass(frozen=True, slots=True)
class Fork:
    """Run a new trial to ``until`` that starts from the newest checkpoint of ``source`` with another config."""

    trial: int
    source: int
    config: Config
    until: int


@dataclass(frozen=True, slots=True)
class Stop:
    """End a paused or running trial."""

    trial: int
    why: Why


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing now; ask again after the next observation."""


@dataclass(frozen=True, slots=True)
class Done:
    """Nothing any more: every trial is over."""


@dataclass(frozen=True, slots=True)
class Exhausted:
    """A searcher's answer: there is no further configuration."""


Action = Start | Resume | Fork | Wait | Done
