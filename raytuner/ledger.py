"""Which trial is in which state: a fold over what happened, which refuses an illegal change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, overload

from raytuner.retry import Tally, merged
from raytuner.trial import LEGAL, Metrics, Observation, Pending, Slot, State, Trial


class IllegalChange(Exception):
    """A scheduler, an executor or the study itself asked for what cannot be: a defect, never the user's fault."""


@dataclass(slots=True)
class Entry:
    """What is known of one trial.

    ``step``, ``level``, ``metrics``: its last lease's end. ``until``: the rung it stands at or runs to. ``since`` and
    ``origin``: when and from which step its lease was first begun (None: it waits for a slot).
    ``checkpoints``: steps whose checkpoints exist, each with its retention score; ``digests``: their manifests' hashes,
    where known. ``donor``: trial and step of the checkpoint it starts from while it has none of its own;
    ``base``: the step that was at, which is where a fork begins; ``inherited``: seconds of slot time that went into it.
    ``rung``: step of the checkpoint it can be forked from.
    ``heard``: what the scheduler last judged of its present
    lease, if it judges every report. ``slot``: what it reserves, if that is not what the study's trials do.
    ``parked``: whether its function may still wait where its last lease ended.
    ``failures``: so far, by class; ``tries``: how many. ``remedy``: what was changed of its configuration, so that it
    fits into memory.
    """

    trial: Trial
    until: int
    state: State
    since: float | None = None
    origin: int = 0
    attempt: int = 0
    step: int = 0
    level: float = 0.0
    metrics: Metrics = field(default_factory=dict)
    checkpoints: dict[int, float | None] = field(default_factory=dict)
    digests: dict[int, str] = field(default_factory=dict)
    donor: tuple[int, int] | None = None
    base: int = 0
    inherited: float = 0.0
    rung: int | None = None
    heard: Observation | None = None
    slot: Slot | None = None
    parked: bool = False
    failures: Tally = field(default_factory=Tally)
    tries: int = 0
    remedy: Mapping[str, Any] = field(default_factory=dict)
    spent: float = 0.0

    @property
    def effective(self) -> Trial:
        """The trial with the configuration that it runs with."""
        return replace(self.trial, config=merged(self.trial.config, self.remedy)) if self.remedy else self.trial

    @property
    def newest(self) -> tuple[int, int] | None:
        """Trial and step of the checkpoint to start from."""
        return (self.trial.id, max(self.checkpoints)) if self.checkpoints else self.donor


class Ledger(Mapping[int, Entry]):
    """The trials of a study by number."""

    def __init__(self) -> None:
        self._entries: dict[int, Entry] = {}
        self._live: dict[int, Entry] = {}
        self._counts = dict.fromkeys(State, 0)

    def __getitem__(self, trial: int) -> Entry:
        return self._entries[trial]

    def __iter__(self) -> Iterator[int]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def open(self, trial: Trial, until: int, donor: tuple[int, int] | None = None) -> Entry:
        """Enter a new trial, running to ``until``."""
        if trial.id in self._entries:
            raise IllegalChange(f"trial {trial.id} exists already")
        origin = donor[1] if donor else 0
        entry = Entry(trial, until, State.RUNNING, origin=origin, step=origin, donor=donor, base=origin)
        self._entries[trial.id] = self._live[trial.id] = entry
        self._counts[State.RUNNING] += 1
        return entry

    def move(self, trial: int, state: State) -> Entry:
        """Change a trial's state; `IllegalChange` where `trial.LEGAL` has no such arrow."""
        entry = self._entries.get(trial)
        if entry is None:
            raise IllegalChange(f"there is no trial {trial}")
        if state not in LEGAL[entry.state]:
            raise IllegalChange(f"trial {trial} is {entry.state.value} and cannot become {state.value}")
        self._counts[entry.state] -= 1
        self._counts[state] += 1
        entry.state = state
        if state.over:
            del self._live[trial]
        return entry

    def revive(self, trial: int) -> Entry:
        """A trial that was done is paused instead: only an extended study has such."""
        entry = self._entries.get(trial)
        if entry is None or entry.state is not State.DONE:
            raise IllegalChange(f"trial {trial} is not done, and cannot go on from there")
        self._counts[State.DONE] -= 1
        self._counts[State.PAUSED] += 1
        entry.state = State.PAUSED
        self._live[trial] = entry
        return entry

    @property
    def live(self) -> Mapping[int, Entry]:
        """The trials that are not over."""
        return self._live

    def counts(self) -> Mapping[State, int]:
        """How many trials are in each state."""
        return self._counts

    def pending(self) -> Sequence[Pending]:
        """What runs or waits; made when it is looked at, for most searchers never do."""
        return _PendingView(self._live)


class _PendingView(Sequence[Pending]):
    """The live trials as they stand now; valid until the next event."""

    def __init__(self, live: Mapping[int, Entry]) -> None:
        self._live = live

    def __len__(self) -> int:
        return len(self._live)

    def __iter__(self) -> Iterator[Pending]:
        return (Pending(entry.trial.id, entry.trial.config, entry.step, entry.until) for entry in self._live.values())

    @overload
    def __getitem__(self, index: int) -> Pending: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Pending]: ...
    def __getitem__(self, index: int | slice) -> Pending | Sequence[Pending]:
        return list(self)[index]
