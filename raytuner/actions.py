"""What a scheduler may want and a searcher may answer. `raytuner.protocols` says when they are asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from raytuner.trial import Config, Why


@dataclass(frozen=True, slots=True)
class Start:
    """Run a new trial to ``until``. Trials are numbered 0, 1, 2, … in the order of their `Start`s and `Fork`s.

    ``config``: its configuration, where that is not the searcher's to propose.
    """

    trial: int
    until: int
    config: Config | None = None


@dataclass(frozen=True, slots=True)
class Resume:
    """Run a paused trial on to ``until``, an absolute step beyond where it stands."""

    trial: int
    until: int


@dataclass(frozen=True, slots=True)
class Fork:
    """Run a new trial to ``until`` that starts from a checkpoint of ``source`` with another config.

    It is the newest of its own that ``source`` had made by the end of its last lease: what it was judged by. Where
    there is none, the new trial is over (`Why.NO_SOURCE`) before it begins. ``replaces``: a trial in whose place it
    comes, which is stopped; it is not where there is no checkpoint.
    """

    trial: int
    source: int
    config: Config
    until: int
    replaces: int | None = None


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


Action = Start | Resume | Fork | Wait | Done


@dataclass(frozen=True, slots=True)
class Proposal:
    """A searcher's answer: a configuration, and what it wants to remember of having proposed it.

    ``note`` is journaled with the proposal (JSON: plain scalars, lists, dicts) and handed back by `Searcher.recall`
    on resume. State that an `ask` changes and later asks depend on (a warm-started length scale) must be in it.
    It also tells people where a configuration came from.
    """

    config: Config
    note: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Exhausted:
    """A searcher's answer: there is no further configuration."""


Answer = Proposal | Wait | Exhausted
