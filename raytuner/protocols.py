"""The seams of the engine: who may be asked what.

A searcher never sees a scheduler, an executor or Ray; a scheduler never sees a searcher. Both are plain deterministic
machines: the same calls in the same order give the same answers, in another process, on another day. Chance is
``np.random.default_rng([seed, trial])`` or ``[seed, stream, index]``, never a generator kept between calls. NumPy takes
``[a, b]`` and ``[a, b, 0]`` for the same seed: a stream's number must be none that a trial can have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from raytuner.actions import Action, Answer, Stop
from raytuner.events import Event
from raytuner.trial import Lease, Observation, Pending

if TYPE_CHECKING:
    from raytuner.space import Space


class Searcher(Protocol):
    """Proposes configurations."""

    def ask(self, trial: int, until: int, pending: Sequence[Pending]) -> Answer:
        """Propose a configuration for ``trial``, which will run to ``until``; ``pending`` runs or waits meanwhile."""

    def tell(self, seen: Observation) -> None:
        """Take note of a rung's outcome (lower is better; value None: failed)."""

    def recall(self, trial: int, until: int, pending: Sequence[Pending], answer: Answer) -> None:
        """On resume, in place of `ask`: the record says that this was your answer; be as if you had just given it."""


class Scheduler(Protocol):
    """Decides what runs, how far, and what must go."""

    every_report: bool
    """Whether `judge` is called for each report; otherwise when a lease ends or a trial is over."""

    forks: bool
    """Whether it may answer `Fork`: each trial's checkpoint of its last rung is kept for that while it lives."""

    def next(self) -> Action:
        """A slot is free: what runs, until which step? Must answer `Wait` or `Done` when nothing may start."""

    def judge(self, seen: Observation) -> Sequence[Stop]:
        """A trial spoke or ended: who must go? A trial that ended (``seen.ended``) is already gone.

        With `every_report` each report is judged while its lease runs (``seen.running``), the last one of a lease too;
        then its end is, as it is without.
        """

    def close(self, unserved: Sequence[int] = ()) -> Sequence[Stop]:
        """No trial will be started any more; ``unserved`` were started but got no configuration, and never ran.

        Who must go, now that this is known? After this `next` must not answer `Start`. May be called more than once.
        """


@runtime_checkable
class Reopening(Protocol):
    """A scheduler whose study can be given more trials."""

    def reopen(self) -> None:
        """More trials can be started after all, whether or not `close` was called."""


def can_reopen(scheduler: Scheduler) -> bool:
    """Whether a scheduler's study can be given more trials; one around another (its ``inner``) as that one's can."""
    inner: Scheduler | None = getattr(scheduler, "inner", None)
    return isinstance(scheduler, Reopening) and (inner is None or can_reopen(inner))


@runtime_checkable
class Extensible(Protocol):
    """A scheduler whose study can be given more steps."""

    def extend(self, max_t: int) -> Sequence[int]:
        """The last rung is farther. Returns trials that were done at what was the last before, and go on from there:
        `next` resumes them."""


class SearchAlgorithm(Protocol):
    """What a user writes as ``search_alg=``: settings, from which each study builds a fresh searcher."""

    def build(self, space: Space, seed: int) -> Searcher: ...


class SchedulingPolicy(Protocol):
    """What a user writes as ``scheduler=``: settings, from which each study builds a fresh scheduler.

    Of one whose scheduler makes configurations (it has an attribute ``explores``, which is true) `build` takes another
    argument where the study has constraints: a predicate, whether a configuration may be tried.
    """

    def build(self, seed: int) -> Scheduler: ...


class Executor(Protocol):
    """Runs leases somewhere and says what happened."""

    def run(self, lease: Lease) -> None:
        """Begin a lease in a free slot; returns at once."""

    def unwind(self, trial: int, attempt: int) -> None:
        """End a trial's code, running or parked; a running one answers with `events.Ended`. Unknown ones: nothing."""

    def wait(self, timeout_s: float | None) -> Sequence[Event]:
        """Block until something happened, or the timeout (None: for ever); in the order in which it happened."""

    def close(self, at_once: bool = False) -> None:
        """End everything that runs and give all resources back; code that was told to end may first, unless
        ``at_once``."""


class Clock(Protocol):
    """Where the driver reads the time, in seconds since the epoch."""

    def now(self) -> float: ...
